/* model/score.c - log-probs of given tokens: the pass that decodes, run over the text in chunks. */
#include "model/internal.h"

#include <stdlib.h>
#include <string.h>

typedef struct score_job {
    pl_pass *p;
    const int32_t *tokens; /* of the whole text */
    int n;
    int begin, rows; /* chunk */
    float t;
    float *logprobs;
    int top_k;
    int32_t *top_ids;
    float *top_logprobs;
} score_job;

/* The k largest logits, ties to the lower id, best first; insertion, for small k. */
static void top_of_row(const float *z, int n, float t, float lse, int k, int32_t *ids, float *lp)
{
    int have = 0;

    for (int v = 0; v < n; v++) {
        if (have == k && !(z[v] > z[ids[k - 1]]))
            continue;
        int i = have < k ? have++ : k - 1;
        for (; i > 0 && z[v] > z[ids[i - 1]]; i--)
            ids[i] = ids[i - 1];
        ids[i] = v;
    }
    for (int i = 0; i < k; i++) {
        lp[i] = i < have ? z[ids[i]] / t - lse : -__builtin_inff();
        if (i >= have)
            ids[i] = -1;
    }
}

static void score_rows(void *ctx, int i_thread, int n_threads)
{
    const score_job *j = ctx;
    const model_dims *d = &j->p->dims;
    int begin, end;

    pl_share(j->rows, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++) {
        const float *z = pl_pass_logits(j->p, 0, r);
        const int position = j->begin + r;
        float max, lse;
        j->p->m->ops->logsumexp(z, d->v, j->t, NULL, &max, &lse);
        if (position + 1 < j->n)
            j->logprobs[position + 1] = z[j->tokens[position + 1]] / j->t - lse;
        if (j->top_k > 0)
            top_of_row(z, d->v, j->t, lse, j->top_k,
                j->top_ids + (size_t)position * (size_t)j->top_k,
                j->top_logprobs + (size_t)position * (size_t)j->top_k);
    }
}

pl_status pl_score(pl_pass *p, pl_kv_pool *pool, const int32_t *tokens, int n, float t,
    float *logprobs, int top_k, int32_t *top_ids, float *top_logprobs, pl_error *err)
{
    const int chunk = p->o.max_rows < p->o.max_logits ? p->o.max_rows : p->o.max_logits;
    pl_kv_seq kv;

    if (n < 1 || n > p->o.max_ctx || chunk < 1)
        return pl_fail(err, PL_E_INVAL, "score: %d tokens, context of %d", n, p->o.max_ctx);
    pl_status st = pl_kv_seq_init(&kv, n, err);
    if (st != PL_OK)
        return st;
    score_job j = {.p = p,
        .tokens = tokens,
        .n = n,
        .t = t > 0 ? t : 1,
        .logprobs = logprobs,
        .top_k = top_k,
        .top_ids = top_ids,
        .top_logprobs = top_logprobs};
    for (; j.begin < n && st == PL_OK; j.begin += chunk) {
        j.rows = n - j.begin < chunk ? n - j.begin : chunk;
        st = pl_kv_reserve(pool, &kv, j.rows, err);
        if (st != PL_OK)
            break;
        const pl_segment seg = {
            .kv = &kv, .tokens = tokens + j.begin, .n_rows = j.rows, .n_logits = j.rows};
        st = pl_pass_run(p, pool, &seg, 1, err);
        if (st == PL_OK)
            pl_team_run(p->m->team, score_rows, &j);
    }
    pl_kv_seq_done(pool, &kv);
    for (int i = 1; i < n && st == PL_OK; i++)
        if (!(logprobs[i] <= 0.0f && logprobs[i] >= -3e38f))
            st = pl_fail(err, PL_E_NUMERIC,
                "score: the log-prob of token %d is not finite: the model's weights are damaged",
                i);
    return st;
}
