/* rollout/finish.c - what ends a response: an end token, a stop string, the length. */
#include "rollout/internal.h"

#include <string.h>

static int is_end_token(const pl_arch *a, int32_t token)
{
    for (int i = 0; i < a->n_eos; i++)
        if (a->eos_ids[i] == token)
            return 1;
    return 0;
}

/* Append one byte of text; 1 when a stop string ends here. */
static int push_byte(sequence *s, char byte)
{
    if (s->n_tail == 2 * s->tail_max) {
        memmove(s->tail, s->tail + s->tail_max, (size_t)s->tail_max);
        s->n_tail = s->tail_max;
    }
    s->tail[s->n_tail++] = byte;
    for (int i = 0; i < s->r.n_stop; i++) {
        const size_t n = strlen(s->r.stop[i]);
        if (n <= (size_t)s->n_tail && memcmp(s->tail + s->n_tail - n, s->r.stop[i], n) == 0)
            return 1;
    }
    return 0;
}

/* Stop strings are looked for in the bytes of the response, special tokens left out, across the
 * borders of tokens. */
static int ends_stop_string(const pl_engine *e, sequence *s, int32_t token)
{
    const char *bytes;
    size_t n;
    if (s->r.n_stop == 0)
        return 0;
    pl_tokenizer_piece(e->tok, token, 1, &bytes, &n);
    for (size_t i = 0; i < n; i++)
        if (push_byte(s, bytes[i]))
            return 1;
    return 0;
}

static void append(const pl_engine *e, sequence *s, int32_t token, float logprob, uint8_t source)
{
    s->tokens[s->n] = token;
    s->logprobs[s->n] = logprob;
    s->source[s->n] = source;
    s->n++;
    const int is_end = !s->r.ignore_eos && is_end_token(e->arch, token);
    if (is_end || ends_stop_string(e, s, token))
        s->finish = PL_FINISH_STOP;
    else if (s->n == s->r.max_tokens)
        s->finish = PL_FINISH_LENGTH;
}

int sequence_accept(const pl_engine *e, sequence *s, const pl_verdict *v)
{
    int i = 0;
    while (i < v->n && s->finish == PL_FINISH_NONE) {
        append(e, s, v->token[i], v->logprob[i], v->source[i]);
        s->n_accepted += v->source[i] != PL_SOURCE_TARGET;
        i++;
    }
    return i;
}

/* The bytes of the prefix pass through the stop matcher: a stop string may begin in it and end
 * behind it. */
pl_status sequence_resume(const pl_engine *e, sequence *s, pl_error *err)
{
    const pl_request *r = &s->r;
    for (int i = 0; i < r->n_prefix; i++) {
        append(e, s, r->prefix[i], r->prefix_logprobs[i],
            r->prefix_source ? r->prefix_source[i] : PL_SOURCE_TARGET);
        if (s->finish != PL_FINISH_NONE)
            return pl_fail(err, PL_E_INVAL,
                "token %d of the prefix of %d ends the response (%s); report it as done", i,
                r->n_prefix,
                s->finish == PL_FINISH_LENGTH ? "its length" : "an end token or a stop string");
    }
    s->n_reported = s->n;
    s->n_draft = r->prefix_draft;
    s->n_accepted = r->prefix_accepted;
    s->n_verify = r->prefix_steps;
    return PL_OK;
}
