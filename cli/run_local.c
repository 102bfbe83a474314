/* cli/run_local.c - rollouts by the engine of this process (rollout.num_workers=0). */
#include "cli/run.h"
#include "core/rng.h"

#include <stdlib.h>
#include <string.h>

typedef struct local {
    pl_engine *engine;
    run_scorer *scorer;
    int n_scored; /* of the batch at hand */
} local;

static pl_status on_scored(void *ctx, int i, pl_error *err)
{
    local *l = ctx;
    (void)i;
    (void)err;
    l->n_scored++;
    return PL_OK;
}

static int on_tokens(void *ctx, const pl_response *r, int n_before)
{
    local *l = ctx;
    run_batch *b = l->scorer->batch;
    char detail[96];
    const int total = b->n_groups * b->n;

    b->n_tokens += r->n_tokens - n_before;
    if (cli_stop)
        return pl_fail(&b->err, PL_E_STOPPED, "stopped by a signal during %s", b->phase);
    if (!r->finish)
        return 0;
    pl_status st = run_batch_keep(b, r, &b->err);
    if (st == PL_OK)
        st = run_score(l->scorer, (int)(r->uid - b->first_uid), &b->err);
    if (st == PL_OK)
        st = run_score_poll(l->scorer, 0, &b->err);
    snprintf(detail, sizeof detail, "%d of %d samples, %lld tokens", b->n_done, total,
        (long long)b->n_tokens);
    run_progress(b->report, b->phase, (double)b->n_done / total, detail);
    return st != PL_OK;
}

static pl_status submit(const run_batch *b, pl_engine *e, const run_sampling *s, pl_error *err)
{
    const uint64_t key = pl_noise_key(s->seed);

    for (int i = 0; i < b->n_groups * b->n; i++) {
        const pl_prompt *p = b->prompts[i / b->n];
        const uint32_t uid = b->first_uid + (uint32_t)i;
        const pl_request r = {.uid = uid,
            .group = uid / (uint32_t)b->n,
            .prompt = p->ids,
            .n_prompt = p->n_ids,
            .max_tokens = s->max_tokens,
            .temperature = s->temperature,
            .top_p = s->top_p,
            .min_p = s->min_p,
            .top_k = s->top_k,
            .noise_key = key,
            .purpose = s->purpose,
            .ignore_eos = s->ignore_eos,
            .prompt_key = run_prompt_key(p, s)};
        const pl_status st = pl_engine_submit(e, &r, err);
        if (st != PL_OK)
            return pl_wrap(err, st, "prompt on line %d", p->line);
    }
    return PL_OK;
}

static pl_status collect(void *self, run_batch *b, const run_sampling *s, pl_error *err)
{
    local *l = self;
    const double t0 = run_seconds();

    pl_status st = run_batch_begin(b, err);
    if (st != PL_OK)
        return st;
    l->scorer->batch = b;
    l->scorer->scored = on_scored;
    l->scorer->ctx = l;
    l->n_scored = 0;
    pl_engine_set_speculative(l->engine, s->speculative);
    pl_engine_reset_stats(l->engine);
    run_progress(b->report, b->phase, 0, "");
    st = submit(b, l->engine, s, err);
    if (st == PL_OK)
        st = pl_engine_run(l->engine, on_tokens, l, err);
    if (st == PL_E_STOPPED) {
        *err = b->err;
        st = err->code;
    }
    b->seconds = run_seconds() - t0;
    pl_engine_get_stats(l->engine, &b->stats);
    while (st == PL_OK && l->n_scored < b->n_groups * b->n) {
        st = run_score_poll(l->scorer, 100, err);
        if (st == PL_OK && cli_stop)
            st = pl_fail(err, PL_E_STOPPED, "stopped by a signal while rewards were awaited");
    }
    run_progress_clear(b->report);
    if (st != PL_OK)
        pl_engine_clear(l->engine);
    if (st != PL_OK && l->scorer->rewarder)
        pl_rewarder_clear(l->scorer->rewarder);
    return st;
}

static pl_status begin(void *self, uint32_t version, pl_error *err)
{
    local *l = self;
    return version == 0 ? PL_OK : pl_engine_new_version(l->engine, version, err);
}

static pl_status consume(
    void *self, int64_t step, const run_batch *b, uint32_t version, pl_error *err)
{
    local *l = self;
    (void)step;
    (void)b;
    return pl_engine_new_version(l->engine, version, err);
}

static void checkpointed(void *self, int64_t step)
{
    (void)self;
    (void)step;
}

static void alive(void *self)
{
    (void)self;
}

static pl_status finish(void *self, int64_t step, pl_error *err)
{
    (void)self;
    (void)step;
    (void)err;
    return PL_OK;
}

static void local_close(void *self)
{
    local *l = self;

    if (!l)
        return;
    pl_engine_free(l->engine);
    free(l);
}

pl_status run_local_open(run_source *out, const run_config *c, const cli_model *m,
    int longest_prompt, run_scorer *scorer, const pl_log *log, pl_error *err)
{
    pl_engine_options o;
    local *l = calloc(1, sizeof *l);

    if (!l)
        return pl_fail(err, PL_E_NOMEM, "no memory for the rollout engine");
    run_engine_options(c, longest_prompt + (int)c->data.max_response_length, &o);
    const pl_status st = pl_engine_new(&l->engine, m->model, m->tokenizer, &o, log, err);
    if (st != PL_OK) {
        free(l);
        return st;
    }
    l->scorer = scorer;
    *out = (run_source){.self = l,
        .begin = begin,
        .collect = collect,
        .consume = consume,
        .checkpointed = checkpointed,
        .alive = alive,
        .finish = finish,
        .close = local_close};
    return PL_OK;
}
