/* trainer/audit.c - what a sample of this run must look like, and which tokens are drawn anew.
 *
 * A worker that lies can lie about everything it sends.  What the trainer can recompute it compares
 * bit by bit (log-probs, tokens); the rest follows from the request: the prompt, where a response
 * ends and how.  Tokens need their own check: a forger may replace one and compute the log-probs of
 * his text honestly. */
#include "core/rng.h"
#include "trainer/internal.h"

#include <assert.h>
#include <math.h>
#include <string.h>

const char *pl_audit_name(pl_audit a)
{
    static const char *const names[] = {"ok", "logprob", "token", "shape"};
    return names[a];
}

void pl_trainer_set_audit(pl_trainer *t, const pl_audit_options *o)
{
    assert(t && (!o || (o->share >= 0 && o->share <= 1 && o->max_tokens > 0)));
    t->is_audited = o != NULL;
    if (o)
        t->audit = *o;
}

static int is_end_token(const pl_arch *a, int32_t token)
{
    for (int i = 0; i < a->n_eos; i++)
        if (a->eos_ids[i] == token)
            return 1;
    return 0;
}

static int is_prompt(const pl_response *r, const pl_prompt *p, int n_vocab)
{
    for (int i = 0; i < r->n_prompt; i++)
        if (r->prompt[i] < 0 || r->prompt[i] >= n_vocab)
            return 0;
    if (!p || p->n_ids == 0)
        return 1;
    return r->n_prompt == p->n_ids &&
           memcmp(r->prompt, p->ids, (size_t)p->n_ids * sizeof *p->ids) == 0;
}

/* Index of the first response token that cannot stand there; n_tokens when there is none. */
static int first_misfit(const pl_audit_options *o, const pl_arch *a, const pl_response *r)
{
    for (int i = 0; i < r->n_tokens; i++) {
        const int is_last = i == r->n_tokens - 1;
        if (r->tokens[i] < 0 || r->tokens[i] >= a->n_vocab)
            return i;
        if (!isfinite(r->logprobs[i]) || r->logprobs[i] > 0)
            return i;
        if (!is_last && !o->ignore_eos && is_end_token(a, r->tokens[i]))
            return i;
    }
    return r->n_tokens;
}

int audit_has_shape(const pl_trainer *t, const pl_sample *x, int *position)
{
    const pl_audit_options *o = &t->audit;
    const pl_arch *a = pl_model_arch(t->model);
    const pl_response *r = x->response;

    *position = 0;
    if (!r || !r->prompt || !r->tokens || !r->logprobs)
        return 0;
    if (r->n_tokens < 1 || r->n_tokens > o->max_tokens || r->n_prompt < 1 ||
        r->n_prompt > t->max_len - r->n_tokens ||
        pl_train_rows(r->n_prompt + r->n_tokens) > t->budget)
        return 0;
    if (memcmp(&r->temperature, &o->temperature, sizeof r->temperature) != 0 ||
        !is_prompt(r, x->prompt, a->n_vocab))
        return 0;
    const int at = first_misfit(o, a, r);
    const int is_stop = !o->ignore_eos && is_end_token(a, r->tokens[r->n_tokens - 1]);
    *position = r->n_prompt + (at < r->n_tokens ? at : r->n_tokens - 1);
    if (at < r->n_tokens)
        return 0;
    if (is_stop)
        return r->finish == PL_FINISH_STOP;
    return r->finish == PL_FINISH_LENGTH && r->n_tokens == o->max_tokens;
}

int audit_wants(const pl_audit_options *o, const pl_response *r, int i_token, pl_draw *draw)
{
    const uint32_t position = (uint32_t)i_token;

    if (!(pl_noise_uniform(o->pick_key, r->uid, position, PL_NOISE_EXPLORE, 0) < o->share))
        return 0;
    *draw = (pl_draw){
        .temperature = o->temperature,
        .top_k = o->top_k,
        .top_p = o->top_p,
        .min_p = o->min_p,
        .key = o->noise_key,
        .uid = r->uid,
        .position = position,
        .purpose = o->purpose,
    };
    return 1;
}
