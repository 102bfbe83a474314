/* cli/run_local.c - rollouts by the engine of this process (rollout.num_workers=0).  No core is
 * ever idle here: the learned drafter is trained between rollout and update, in a slice of the
 * step. */
#include "cli/run.h"
#include "core/rng.h"

#include <stdlib.h>
#include <string.h>

typedef struct local {
    pl_engine *engine;
    run_scorer *scorer;
    run_drafting *drafting; /* NULL: no learned drafter */
    double slice;           /* share of a step that trains it */
    int n_scored;           /* of the batch at hand */
    uint32_t version;       /* of the policy */
    double update_s;        /* of the policy, the last one */
    const pl_log *log;
    double piece_s; /* of the spot trainer's work, running mean */
} local;

static pl_status on_scored(void *ctx, int i, pl_error *err)
{
    local *l = ctx;
    (void)i;
    (void)err;
    l->n_scored++;
    return PL_OK;
}

static void show(const local *l, const run_batch *b, int is_training)
{
    run_watch_now now = {.is_training = is_training,
        .drafter_version = l->drafting ? run_drafting_version(l->drafting) : 0};

    pl_engine_counts(l->engine, &now.n_running, &now.n_queued);
    run_watch_batch(b->watch, b, &now);
}

static int on_tokens(void *ctx, const pl_response *r, int n_before)
{
    local *l = ctx;
    run_batch *b = l->scorer->batch;
    char detail[96];
    const int total = b->n_groups * b->n;

    b->n_tokens += r->n_tokens - n_before;
    b->lengths[r->uid - b->first_uid] = (uint32_t)r->n_tokens;
    show(l, b, 0);
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

/* ---- the drafter's slice ---- */

static int is_stopped(void *ctx)
{
    (void)ctx;
    return cli_stop != 0;
}

/* Pieces of training until the slice is used up; one is begun only if it is likely to fit. */
static pl_status train_drafter(local *l, run_batch *b, pl_error *err)
{
    const run_session session = {.is_lead = 1, .workers = "local", .policy_version = l->version};
    const double begin = run_seconds(), end = begin + l->slice * (b->seconds + l->update_s);
    pl_spot_published p;
    pl_status st = PL_OK;

    for (double t = begin; st == PL_OK && t + l->piece_s <= end;) {
        st = run_drafting_work(l->drafting, &session, is_stopped, l, &p, err);
        const double now = run_seconds();
        if (st == PL_OK && !p.version)
            l->piece_s += (l->piece_s > 0 ? 0.2 : 1) * (now - t - l->piece_s);
        t = now;
        if (p.version)
            st = run_drafting_serve(l->drafting, p.dir, p.version, err);
        run_progress(b->report, "drafter", (now - begin) / (end - begin), "");
        show(l, b, 1);
    }
    run_drafting_end(l->drafting);
    l->piece_s *= 0.9; /* one slow piece must not end it for good */
    if (st == PL_E_IO || st == PL_E_NUMERIC || st == PL_E_PEER) { /* this slice is over */
        pl_log_warn(l->log, "drafter training: %s", err->msg);
        return PL_OK;
    }
    return st == PL_E_TIMEOUT || st == PL_E_STOPPED ? PL_OK : st;
}

/* The drafter cannot hurt the run: what fails is said, and rollouts go on without. */
static void spend_slice(local *l, run_batch *b, const pl_log *log)
{
    pl_error err = {0};

    if (!l->drafting)
        return;
    if (b->id >> 32 == RUN_TRAIN && l->slice > 0 && train_drafter(l, b, &err) != PL_OK) {
        pl_log_warn(log, "event=drafter_training_ended %s; the run goes on with drafter version %u",
            err.msg, run_drafting_version(l->drafting));
        l->slice = 0;
    }
    run_drafting_figures(l->drafting, &b->drafting);
}

static void tell_costs(run_batch *b)
{
    pl_pass_cost costs[PL_COST_BUCKETS];
    int n = 0;

    for (int i = 0; i < PL_COST_BUCKETS; i++)
        if (b->stats.n_passes[i] > 0)
            costs[n++] = (pl_pass_cost){
                (uint32_t)i, (uint32_t)b->stats.n_passes[i], (float)b->stats.passes_s[i]};
    (void)run_batch_worker(b, "local");
    run_batch_cost(b, "local", costs, n);
}

static pl_status collect(void *self, run_batch *b, const run_sampling *s, pl_error *err)
{
    local *l = self;
    int is_waiting = 0;

    pl_status st = run_batch_begin(b, err);
    if (st != PL_OK)
        return st;
    l->scorer->batch = b;
    l->scorer->scored = on_scored;
    l->scorer->ctx = l;
    l->n_scored = 0;
    if (l->drafting) {
        run_drafting_speculate(l->drafting, s->speculative);
        run_drafting_reset(l->drafting);
    } else {
        pl_engine_set_speculative(l->engine, s->speculative != PL_SPECULATE_OFF);
    }
    pl_engine_reset_stats(l->engine);
    run_progress(b->report, b->phase, 0, "");
    const double t0 = run_seconds();
    st = submit(b, l->engine, s, err);
    if (st == PL_OK)
        st = pl_engine_run(l->engine, on_tokens, l, err);
    if (st == PL_E_STOPPED) {
        *err = b->err;
        st = err->code;
    }
    b->seconds = run_seconds() - t0;
    pl_engine_get_stats(l->engine, &b->stats);
    tell_costs(b);
    while (st == PL_OK && l->n_scored < b->n_groups * b->n) {
        if (!is_waiting && b->id >> 32 == RUN_TRAIN)
            run_watch_phase(b->watch, PL_PHASE_REWARD, b);
        is_waiting = 1;
        show(l, b, 0);
        st = run_score_poll(l->scorer, 100, err);
        if (st == PL_OK && cli_stop)
            st = pl_fail(err, PL_E_STOPPED, "stopped by a signal while rewards were awaited");
    }
    if (l->scorer->rewarder)
        pl_rewarder_settle(l->scorer->rewarder);
    if (st == PL_OK)
        spend_slice(l, b, l->log);
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
    l->version = version;
    return version == 0 ? PL_OK : pl_engine_new_version(l->engine, version, err);
}

static pl_status consume(
    void *self, int64_t step, const run_batch *b, uint32_t version, pl_error *err)
{
    local *l = self;
    (void)step;
    l->update_s = b->update_s;
    l->version = version;
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
    run_drafting_close(l->drafting);
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
    l->scorer = scorer;
    l->log = log;
    l->slice = c->speculative.train ? c->speculative.slice : 0;
    pl_status st = pl_engine_new(&l->engine, m->model, m->tokenizer, &o, log, err);
    if (st == PL_OK && run_has_learned(c))
        st = run_drafting_open(
            &l->drafting, c, c->trainer.default_local_dir, "local", m, l->engine, log, err);
    if (st != PL_OK) {
        local_close(l);
        return st;
    }
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
