/* cli/run_rollout.c - one batch of responses: kept in uid order, decoded, scored. */
#include "cli/run.h"
#include "core/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { NAMES_MAX = 1000 }; /* workers of one batch that are told apart */

run_sampling run_train_sampling(const run_config *c)
{
    const run_rollout_options *o = &c->rollout;

    return (run_sampling){.temperature = (float)o->temperature,
        .top_p = (float)o->top_p,
        .min_p = (float)o->min_p,
        .top_k = (int)o->top_k,
        .ignore_eos = o->ignore_eos,
        .speculative = c->speculative.enable ? PL_SPECULATE_ON : PL_SPECULATE_OFF,
        .max_tokens = (int)c->data.max_response_length,
        .seed = (uint64_t)o->seed,
        .purpose = PL_NOISE_SAMPLE};
}

run_sampling run_held_out_sampling(const run_config *c)
{
    return (run_sampling){.temperature = (float)c->rollout.val_temperature,
        .top_p = 1,
        .max_tokens = (int)c->data.max_response_length,
        .seed = (uint64_t)c->rollout.seed,
        .purpose = PL_NOISE_EVAL};
}

static void forget(pl_response *r, pl_sample *x)
{
    free(r->tokens);
    free(r->logprobs);
    free(r->token_source);
    free(x->text);
    free(x->token_ends);
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
    free(b->workers);
    free(b->lengths);
    free(b->names);
    free(b->costs);
    b->workers = NULL;
    b->lengths = NULL;
    b->names = NULL;
    b->costs = NULL;
    b->n_names = b->n_costs = 0;
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
    b->workers = calloc((size_t)total, sizeof *b->workers);
    b->lengths = calloc((size_t)total, sizeof *b->lengths);
    memset(&b->trace, 0, sizeof b->trace);
    if (!b->responses || !b->samples || !b->marks || !b->workers || !b->lengths) {
        run_batch_done(b);
        return pl_fail(err, PL_E_NOMEM, "no memory for %d responses", total);
    }
    b->room = total;
    return PL_OK;
}

int run_batch_worker(run_batch *b, const char *name)
{
    for (int i = 0; i < b->n_names; i++)
        if (strcmp(b->names[i], name) == 0)
            return i;
    char(*more)[64] = realloc(b->names, (size_t)(b->n_names + 1) * sizeof *more);
    if (!more || b->n_names >= NAMES_MAX) {
        b->names = more ? more : b->names;
        return 0;
    }
    b->names = more;
    snprintf(b->names[b->n_names], sizeof b->names[0], "%s", name);
    return b->n_names++;
}

void run_batch_cost(run_batch *b, const char *worker, const pl_pass_cost *costs, int n)
{
    const size_t room = (size_t)(b->n_costs + n);
    pl_trace_cost *more = n > 0 ? realloc(b->costs, room * sizeof *more) : NULL;
    if (!more)
        return; /* figures only */
    b->costs = more;
    for (int i = 0; i < n; i++)
        if (costs[i].bucket < PL_COST_BUCKETS && costs[i].n > 0 && isfinite(costs[i].seconds) &&
            costs[i].seconds >= 0)
            b->costs[b->n_costs++] =
                (pl_trace_cost){.worker = (uint32_t)run_batch_worker(b, worker),
                    .rows = (uint32_t)(pl_cost_rows((int)costs[i].bucket) + 0.5),
                    .n = costs[i].n,
                    .seconds = (double)costs[i].seconds};
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

/* Where each token ends in the decoded text, for rollouts/; without memory it is left out. */
static void find_ends(const pl_tokenizer *t, pl_sample *x)
{
    const pl_response *r = x->response;
    size_t n, end = 0;
    const char *bytes;

    free(x->token_ends);
    x->token_ends = malloc(((size_t)r->n_tokens + 1) * sizeof *x->token_ends);
    for (int k = 0; x->token_ends && k < r->n_tokens; k++) {
        pl_tokenizer_piece(t, r->tokens[k], 1, &bytes, &n);
        end += n;
        x->token_ends[k] = (int32_t)end;
    }
    if (end != x->n_text) {
        free(x->token_ends);
        x->token_ends = NULL;
    }
}

pl_status run_decode(run_scorer *s, int i, pl_error *err)
{
    run_batch *b = s->batch;
    pl_sample *x = &b->samples[i];
    const pl_response *r = &b->responses[i];

    x->response = r;
    x->prompt = b->prompts[i / b->n];
    const pl_status st =
        pl_tokenizer_decode(s->tokenizer, r->tokens, r->n_tokens, 1, &x->text, &x->n_text, err);
    if (st != PL_OK)
        return pl_wrap(err, st, "sample %u", r->uid);
    find_ends(s->tokenizer, x);
    return PL_OK;
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
