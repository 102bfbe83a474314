/* cli/run_figures.c - what workers tell of the drafter, and what engines did, as one step's
 * figures. */
#include "cli/run_wire.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The newest figures of a worker. */
struct run_worker_figures {
    char name[64];
    int is_current;    /* they are of the batch at hand */
    uint32_t halt_us;  /* of the leaving that was counted last */
    pl_msg_drafting m; /* its pointers are not valid */
    float alpha[PL_DRAFTING_DEPTHS];
    pl_pass_cost costs[PL_COST_BUCKETS];
};

void run_figures_clear(run_figures *f, int is_told)
{
    for (int i = 0; i < f->n; i++)
        f->list[i].is_current = 0;
    if (is_told) {
        f->n_halts = 0;
        f->halt_s = f->halt_ms = 0;
    }
    f->n_published = f->n_rollbacks = 0;
}

void run_figures_done(run_figures *f)
{
    free(f->list);
    *f = (run_figures){0};
}

/* The coordinator tells how long the last leaving took, again and again: another number is another
 * leaving. */
static void count_halt(run_figures *f, struct run_worker_figures *w, uint32_t us)
{
    if (us == 0 || us == w->halt_us)
        return;
    w->halt_us = us;
    f->n_halts++;
    f->halt_s += us * 1e-6;
    f->halt_ms = fmax(f->halt_ms, us * 1e-3);
}

void run_figures_take(run_figures *f, const pl_msg_drafting *m)
{
    struct run_worker_figures *w = NULL;

    for (int i = 0; i < f->n && !w; i++)
        if (strncmp(f->list[i].name, m->worker, sizeof w->name - 1) == 0)
            w = &f->list[i];
    if (!w) {
        struct run_worker_figures *more = realloc(f->list, (size_t)(f->n + 1) * sizeof *more);
        if (!more)
            return; /* figures only */
        f->list = more;
        w = &f->list[f->n++];
        *w = (struct run_worker_figures){0};
        snprintf(w->name, sizeof w->name, "%s", m->worker);
    }
    count_halt(f, w, m->halt_us);
    w->is_current = 1;
    w->m = *m;
    w->m.worker = NULL;
    memcpy(w->alpha, m->alpha.data, m->alpha.n * sizeof w->alpha[0]); /* at most that many */
    if (m->costs.n)
        memcpy(w->costs, m->costs.data, m->costs.n * sizeof w->costs[0]);
}

static void add(run_batch *b, const struct run_worker_figures *w)
{
    run_draft_figures *d = &b->drafting;
    pl_engine_stats *s = &b->stats;

    d->version = w->m.drafter_version > d->version ? w->m.drafter_version : d->version;
    d->idle_s += w->m.idle_ms * 1e-3;
    d->train_s += w->m.train_ms * 1e-3;
    d->gate_s += w->m.gate_ms * 1e-3;
    d->pack_s += w->m.pack_ms * 1e-3;
    d->wait_s += w->m.wait_ms * 1e-3;
    d->n_steps += w->m.n_optimizer_steps;
    d->n_dropped += w->m.n_dropped;
    d->n_tokens += (int64_t)w->m.n_trained_tokens;
    d->n_swaps += w->m.n_swaps;
    s->n_drafted_steps += (int64_t)w->m.n_drafted_steps;
    s->n_drafted_emitted += (int64_t)w->m.n_drafted_emitted;
    /* Of one that did not swap all rounds are of the version before. */
    const int has_swapped = w->m.n_swaps > 0 && w->m.n_before_steps <= w->m.n_drafted_steps &&
                            w->m.n_before_emitted <= w->m.n_drafted_emitted;
    s->n_before_steps += (int64_t)(has_swapped ? w->m.n_before_steps : w->m.n_drafted_steps);
    s->n_before_emitted += (int64_t)(has_swapped ? w->m.n_before_emitted : w->m.n_drafted_emitted);
    s->n_draft_of[PL_SOURCE_LEARNED] += (int64_t)w->m.n_learned_draft;
    s->n_accepted_of[PL_SOURCE_LEARNED] += (int64_t)w->m.n_learned_accepted;
    s->n_draft_of[PL_SOURCE_SUFFIX] += (int64_t)w->m.n_suffix_draft;
    s->n_accepted_of[PL_SOURCE_SUFFIX] += (int64_t)w->m.n_suffix_accepted;
    s->n_tail_steps += (int64_t)w->m.n_tail_steps;
    s->n_tail_emitted += (int64_t)w->m.n_tail_emitted;
    s->tail_s += w->m.tail_ms * 1e-3;
    s->draft_s += w->m.draft_ms * 1e-3;
    s->verify_s += w->m.verify_ms * 1e-3;
    run_batch_cost(b, w->name, w->costs, (int)w->m.costs.n);
    if (w->m.n_optimizer_steps == 0)
        return;
    d->loss = (double)w->m.loss;
    d->depth = (int)w->m.alpha.n;
    for (int i = 0; i < d->depth; i++)
        d->alpha[i] = (double)w->alpha[i];
}

void run_figures_sum(const run_figures *f, run_batch *b)
{
    pl_engine_stats *s = &b->stats;

    memset(s, 0, sizeof *s);
    b->n_costs = 0;
    b->drafting = (run_draft_figures){.n_published = f->n_published,
        .n_rollbacks = f->n_rollbacks,
        .n_halts = f->n_halts,
        .halt_s = f->halt_s,
        .halt_ms = f->halt_ms};
    for (int i = 0; i < b->n_groups * b->n; i++) {
        const pl_response *x = &b->responses[i];
        s->n_emitted += x->n_tokens;
        s->n_verify_steps += x->spec_num_verify_steps;
        s->n_draft += x->spec_num_draft_tokens;
        s->n_accepted += x->spec_num_accepted_tokens;
    }
    for (int i = 0; i < f->n; i++)
        if (f->list[i].is_current)
            add(b, &f->list[i]);
    b->n_tokens = s->n_emitted;
}

/* The lead may go; this process stays, so it serves the version to other machines. */
static pl_status serve(run_wire *w, pl_msg_drafter *d, pl_error *err)
{
    char path[PL_CONFIG_STR + 160], own[PL_CONFIG_STR + 64];
    uint64_t n = 0;

    /* Nothing but what this run published leaves this machine. */
    snprintf(own, sizeof own, "%s/drafter/versions/%u", w->dir, d->version);
    if (strcmp(d->dir, own) != 0)
        return pl_fail(err, PL_E_INVAL, "'%.200s' is not '%s'", d->dir, own);
    pl_status st = pl_bundle_write(d->dir, err);
    snprintf(path, sizeof path, "%s/" PL_BUNDLE_FILE, d->dir);
    if (st == PL_OK)
        st = pl_publisher_add(w->drafters, path, d->version, &d->bundle, &d->n_bundle, err);
    snprintf(path, sizeof path, "%s/model.safetensors", d->dir);
    if (st == PL_OK)
        st = pl_publisher_add(w->drafters, path, d->version, &d->hash, &n, err);
    d->endpoint = pl_publisher_address(w->drafters);
    return st;
}

/* Other machines can have it from here, or none may. */
static int is_served(const run_wire *w, const pl_msg_drafter *d)
{
    return !w->config->wire.listen || strcmp(d->host, w->host) != 0 ||
           strcmp(d->endpoint, pl_publisher_address(w->drafters)) == 0;
}

static void serve_again(run_wire *w, const pl_msg_drafter *d)
{
    pl_error err = {0};
    pl_msg m = {.u.drafter = *d};

    if (serve(w, &m.u.drafter, &err) == PL_OK)
        run_wire_say(w, &m, PL_MSG_DRAFTER);
    else
        pl_log_warn(
            w->log, "drafter version %u is not served to other machines: %s", d->version, err.msg);
}

void run_figures_version(run_figures *f, run_wire *w, const pl_msg_drafter *d)
{
    const int is_new = d->version > w->drafter;

    if (d->version < w->drafter)
        return;
    if (!is_served(w, d)) /* by nobody yet, or by a trainer that is gone */
        serve_again(w, d);
    if (!is_new)
        return;
    w->drafter = d->version;
    if (d->version <= w->drafter_before)
        return;
    f->n_published++;
    f->n_rollbacks += d->rollback != 0;
    pl_log_info(w->log, "event=%s version=%u parent=%u tau=%.2f before=%.2f se=%.2f",
        d->rollback ? "drafter_taken_back" : "drafter_published", d->version, d->parent,
        (double)d->tau, (double)d->tau_parent, (double)d->se);
}
