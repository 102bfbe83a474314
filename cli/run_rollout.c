/* cli/run_rollout.c - one batch of responses: kept in uid order, decoded, scored. */
#include "cli/run.h"
#include "core/rng.h"

#include <stdlib.h>
#include <string.h>

static void forget(pl_response *r, pl_sample *x)
{
    free(r->tokens);
    free(r->logprobs);
    free(r->token_source);
    free(x->text);
    memset(r, 0, sizeof *r);
    memset(x, 0, sizeof *x);
}

void run_batch_done(run_batch *b)
{
    for (int i = 0; b->responses && b->samples && i < b->room; i++)
        forget(&b->responses[i], &b->samples[i]);
    free(b->responses);
    free(b->samples);
    free(b->marks);
    b->responses = NULL;
    b->samples = NULL;
    b->marks = NULL;
    b->room = 0;
}

pl_status run_batch_begin(run_batch *b, pl_error *err)
{
    const int total = b->n_groups * b->n;

    run_batch_done(b);
    b->n_done = 0;
    b->n_tokens = 0;
    memset(&b->stats, 0, sizeof b->stats);
    memset(&b->events, 0, sizeof b->events);
    b->responses = calloc((size_t)total, sizeof *b->responses);
    b->samples = calloc((size_t)total, sizeof *b->samples);
    b->marks = calloc((size_t)total, 1);
    if (!b->responses || !b->samples || !b->marks) {
        run_batch_done(b);
        return pl_fail(err, PL_E_NOMEM, "no memory for %d responses", total);
    }
    b->room = total;
    return PL_OK;
}

pl_status run_batch_keep(run_batch *b, const pl_response *r, pl_error *err)
{
    pl_response *d = &b->responses[r->uid - b->first_uid];
    const size_t n = (size_t)r->n_tokens;

    *d = *r;
    d->tokens = malloc((n + 1) * sizeof *d->tokens);
    d->logprobs = malloc((n + 1) * sizeof *d->logprobs);
    d->token_source = malloc(n + 1);
    if (!d->tokens || !d->logprobs || !d->token_source) {
        run_batch_forget(b, (int)(r->uid - b->first_uid));
        return pl_fail(err, PL_E_NOMEM, "response %u: no memory", r->uid);
    }
    memcpy(d->tokens, r->tokens, n * sizeof *d->tokens);
    memcpy(d->logprobs, r->logprobs, n * sizeof *d->logprobs);
    memcpy(d->token_source, r->token_source, n);
    b->n_done++;
    return PL_OK;
}

void run_batch_forget(run_batch *b, int i)
{
    b->n_done -= b->responses[i].finish != PL_FINISH_NONE && b->responses[i].token_source != NULL;
    forget(&b->responses[i], &b->samples[i]);
    b->marks[i] = PL_REWARD_OK;
}

uint64_t run_prompt_key(const pl_prompt *p, const run_sampling *s)
{
    return s->purpose == PL_NOISE_EVAL ? 0 : p->key;
}

static int is_same(const pl_response *a, const pl_response *b)
{
    const size_t n = (size_t)a->n_tokens;
    return a->n_tokens == b->n_tokens && a->finish == b->finish &&
           memcmp(a->tokens, b->tokens, n * sizeof *a->tokens) == 0 &&
           memcmp(a->logprobs, b->logprobs, n * sizeof *a->logprobs) == 0;
}

int run_batch_differ(const run_batch *a, const run_batch *b)
{
    int n = 0;
    for (int i = 0; i < a->n_groups * a->n; i++)
        n += !is_same(&a->responses[i], &b->responses[i]);
    return n;
}

double run_batch_reward(const run_batch *b)
{
    const int total = b->n_groups * b->n;
    double sum = 0;

    for (int i = 0; i < total; i++)
        sum += (double)b->samples[i].reward;
    return total > 0 ? sum / total : 0;
}

/* ---- scoring ---- */

pl_status run_decode(run_scorer *s, int i, pl_error *err)
{
    run_batch *b = s->batch;
    pl_sample *x = &b->samples[i];
    const pl_response *r = &b->responses[i];

    x->response = r;
    x->prompt = b->prompts[i / b->n];
    const pl_status st =
        pl_tokenizer_decode(s->tokenizer, r->tokens, r->n_tokens, 1, &x->text, &x->n_text, err);
    return st == PL_OK ? st : pl_wrap(err, st, "sample %u", r->uid);
}

pl_status run_score(run_scorer *s, int i, pl_error *err)
{
    pl_sample *x = &s->batch->samples[i];

    pl_status st = run_decode(s, i, err);
    if (st != PL_OK)
        return st;
    const pl_prompt *p = x->prompt;
    if (s->rewarder)
        return pl_rewarder_submit(s->rewarder, i, p->data_source, x->text, x->n_text,
            p->ground_truth, p->extra_info, err);
    st = pl_reward_score(p->data_source, x->text, x->n_text, p->ground_truth, &x->reward, err);
    if (st != PL_OK)
        return pl_wrap(err, st, "sample %u", x->response->uid);
    return s->scored(s->ctx, i, err);
}

static void take_reward(void *ctx, int64_t id, float score, pl_reward_mark mark)
{
    run_scorer *s = ctx;

    s->batch->samples[id].reward = score;
    s->batch->marks[id] = (unsigned char)mark;
    if (s->err.code == PL_OK)
        (void)s->scored(s->ctx, (int)id, &s->err);
}

pl_status run_score_poll(run_scorer *s, int timeout_ms, pl_error *err)
{
    pl_rewarder_stats before, after;

    if (!s->rewarder || pl_rewarder_pending(s->rewarder) == 0)
        return PL_OK;
    s->err.code = PL_OK;
    pl_rewarder_stats_get(s->rewarder, &before);
    const pl_status st = pl_rewarder_poll(s->rewarder, timeout_ms, take_reward, s, err);
    pl_rewarder_stats_get(s->rewarder, &after);
    s->batch->events.reward_retries += after.n_retries - before.n_retries;
    if (st == PL_OK && s->err.code != PL_OK) {
        *err = s->err;
        return err->code;
    }
    return st;
}
