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

int sequence_accept(const pl_engine *e, sequence *s, const pl_verdict *v)
{
    int i = 0;
    while (i < v->n && s->finish == PL_FINISH_NONE) {
        const int32_t token = v->token[i];
        s->tokens[s->n] = token;
        s->logprobs[s->n] = v->logprob[i];
        s->source[s->n] = v->source[i];
        s->n_accepted += v->source[i] != PL_SOURCE_TARGET;
        s->n++;
        i++;
        const int is_end = !s->r.ignore_eos && is_end_token(e->arch, token);
        if (is_end || ends_stop_string(e, s, token))
            s->finish = PL_FINISH_STOP;
        else if (s->n == s->r.max_tokens)
            s->finish = PL_FINISH_LENGTH;
    }
    return i;
}
