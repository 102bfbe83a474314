/* cli/work_drafting.c - the learned drafter in a worker: sessions of the spot trainer while it has
 * nothing to roll out, versions that it makes, versions of others. */
#include "cli/work.h"
#include "core/file.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- a version is hashed, and read ---- */

static pl_status hash_file(const char *path, pl_msg_drafter *d, pl_error *err)
{
    pl_file f = {0};

    pl_status st = pl_file_open(&f, path, err);
    if (st != PL_OK)
        return st;
    d->n_bytes = f.size;
    st = pl_content_hash(f.data, f.size, 1, NULL, &d->hash, err);
    pl_file_close(&f);
    return st;
}

static void *read_version(void *arg)
{
    work_reader *r = arg;
    char path[sizeof r->dir + 32];

    snprintf(path, sizeof path, "%s/model.safetensors", r->dir);
    if (!r->target)
        r->status = hash_file(path, &r->what, &r->err);
    else
        r->status = work_check_file(1, path, &r->what.hash, r->what.n_bytes, &r->err);
    if (r->target && r->status == PL_OK)
        r->status = pl_eagle_load(&r->e, r->target, r->dir, &r->err);
    if (r->e)
        pl_eagle_pack_alone(r->e);
    atomic_store(&r->is_done, 1);
    return NULL;
}

/* The directory is set.  Nothing may run. */
static void begin_reading(work_reader *r, const pl_msg_drafter *d, const pl_model *target)
{
    r->what = *d;
    r->what.dir = r->what.host = r->what.endpoint = ""; /* they are of a message */
    r->target = target;
    memset(&r->err, 0, sizeof r->err);
    atomic_store(&r->is_done, 0);
    r->is_running = pthread_create(&r->thread, NULL, read_version, r) == 0;
    if (!r->is_running)
        (void)read_version(r);
}

/* 1 when it has an end: what it brought is the caller's. */
static int has_read(work_reader *r)
{
    if (!atomic_load(&r->is_done))
        return 0;
    if (r->is_running)
        (void)pthread_join(r->thread, NULL);
    r->is_running = 0;
    atomic_store(&r->is_done, 0);
    return 1;
}

static void end_reading(work_reader *r)
{
    if (r->is_running)
        (void)pthread_join(r->thread, NULL);
    pl_eagle_free(r->e);
    r->e = NULL;
    r->is_running = 0;
    atomic_store(&r->is_done, 0);
}

void work_drafting_close(work *w)
{
    end_reading(&w->hasher);
    end_reading(&w->reader);
    run_drafting_close(w->drafting);
}

/* ---- sessions ---- */

typedef struct permission {
    int (*keep_on)(void *);
    void *ctx;
} permission;

static int is_wanted_back(void *ctx)
{
    const permission *p = ctx;
    return !p->keep_on(p->ctx);
}

/* What others need to have the version: its files by their hashes. */
static pl_status announce(work *w, const pl_spot_published *p, uint64_t session, pl_error *err)
{
    const pl_msg_drafter d = {.version = p->version,
        .parent = p->parent,
        .session = session,
        .step = (uint64_t)p->step,
        .tau = (float)p->tau,
        .tau_parent = (float)p->tau_parent,
        .se = (float)p->se,
        .rollback = (uint32_t)p->is_rollback};

    end_reading(&w->hasher); /* of an older one */
    const pl_status st = run_absolute(p->dir, w->hasher.dir, sizeof w->hasher.dir, err);
    if (st == PL_OK)
        begin_reading(&w->hasher, &d, NULL);
    return st;
}

pl_status work_train(
    void *ctx, const pl_msg_train *t, int (*keep_on)(void *), void *k_ctx, pl_error *err)
{
    work *w = ctx;
    permission p = {keep_on, k_ctx};
    const run_session s = {.id = t->session,
        .is_lead = t->is_lead != 0,
        .workers = t->buffers,
        .policy_version = t->policy_version};
    pl_spot_published published;

    if (!w->drafting)
        return pl_fail(err, PL_E_CONFIG, "this run has no learned drafter");
    const pl_status st = run_drafting_work(w->drafting, &s, is_wanted_back, &p, &published, err);
    if (!published.version && t->is_lead && t->session != w->led)
        (void)run_drafting_unannounced(w->drafting, &published);
    w->led = t->session;
    if (!published.version || published.version <= w->told)
        return st;
    const pl_status announced = announce(w, &published, t->session, err);
    return announced != PL_OK ? announced : st;
}

void work_train_end(void *ctx)
{
    work *w = ctx;
    if (w->drafting)
        run_drafting_end(w->drafting);
}

static void take_announcement(work *w)
{
    snprintf(w->announced_dir, sizeof w->announced_dir, "%s", w->hasher.dir);
    w->announced = w->hasher.what;
    w->announced.dir = w->announced_dir;
    w->announced.host = w->host;
}

int work_publish(void *ctx, pl_msg_drafter *d)
{
    work *w = ctx;
    work_reader *r = &w->hasher;

    if (has_read(r)) {
        if (r->status != PL_OK)
            pl_log_warn(
                &w->log, "drafter version %u is not announced: %s", r->what.version, r->err.msg);
        else
            take_announcement(w);
    }
    if (!w->announced.version)
        return 0;
    *d = w->announced;
    return 1;
}

/* ---- versions ---- */

typedef struct life { /* a fetch may take longer than lost_ms */
    void (*keep_alive)(void *);
    void *ctx;
} life;

static int on_fetched(void *ctx, uint64_t done, uint64_t total)
{
    const life *l = ctx;

    (void)done;
    (void)total;
    l->keep_alive(l->ctx);
    return cli_stop > 0;
}

enum { DIR_ROOM = PL_CONFIG_STR + 128 };

/* Over the wire, into the cache. */
static pl_status fetch(work *w, const pl_msg_drafter *d, char dir[DIR_ROOM], life *l, pl_error *err)
{
    char path[PL_CONFIG_STR + 192], endpoint[512];

    if (!d->endpoint[0])
        return pl_fail(
            err, PL_E_PEER, "drafter version %u is on another machine and not served", d->version);
    pl_status st = work_make_cache(w, err);
    snprintf(dir, DIR_ROOM, "%s/drafter", w->cache);
    if (st == PL_OK)
        st = pl_dir_make(dir, err);
    work_reach(w, d->endpoint, endpoint, sizeof endpoint);
    snprintf(path, sizeof path, "%s/" PL_BUNDLE_FILE, dir);
    if (st == PL_OK)
        st = pl_fetch(
            w->ipc, endpoint, &d->bundle, d->n_bundle, path, WORK_FETCH_MS, on_fetched, l, err);
    if (st == PL_OK)
        st = pl_bundle_unpack(path, dir, err);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    if (st == PL_OK)
        st = pl_fetch(
            w->ipc, endpoint, &d->hash, d->n_bytes, path, WORK_FETCH_MS, on_fetched, l, err);
    if (st == PL_E_TIMEOUT)
        st = PL_E_PEER; /* it counts as a try */
    return st == PL_OK ? st : pl_wrap(err, st, "drafter version %u", d->version);
}

pl_status work_drafter(
    void *ctx, const pl_msg_drafter *d, void (*keep_alive)(void *), void *ka_ctx, pl_error *err)
{
    work *w = ctx;
    work_reader *r = &w->reader;
    life l = {keep_alive, ka_ctx};

    w->told = d->version > w->told ? d->version : w->told;
    if (w->announced.version && d->version >= w->announced.version)
        w->announced.version = 0;
    if (!w->drafting || d->version == run_drafting_version(w->drafting))
        return PL_OK;
    if (run_drafting_holds(w->drafting, d->version))
        return run_drafting_serve(w->drafting, r->dir, d->version, err);
    if (has_read(r)) {
        if (r->what.version == d->version && r->status == PL_OK) {
            run_drafting_hold(w->drafting, r->e, d->version);
            r->e = NULL;
            return run_drafting_serve(w->drafting, r->dir, d->version, err);
        }
        end_reading(r);
        if (r->what.version == d->version) {
            if (err)
                *err = r->err;
            return r->status;
        }
    }
    if (r->is_running)
        return pl_fail(err, PL_E_TIMEOUT, "drafter version %u is being read", r->what.version);
    pl_status st = PL_OK;
    snprintf(r->dir, sizeof r->dir, "%s", d->dir);
    if (strcmp(d->host, w->host) != 0 || access(r->dir, R_OK) != 0)
        st = fetch(w, d, r->dir, &l, err);
    if (st != PL_OK)
        return st;
    begin_reading(r, d, w->m.model);
    return pl_fail(err, PL_E_TIMEOUT, "drafter version %u is being read", d->version);
}

void work_speculate(void *ctx, uint32_t how)
{
    work *w = ctx;
    if (w->drafting)
        run_drafting_speculate(w->drafting, how);
    else
        pl_engine_set_speculative(w->engine, how != PL_SPECULATE_OFF);
}

/* ---- figures ---- */

static uint32_t ms(double s)
{
    return s > 0 ? (uint32_t)(s * 1000 + 0.5) : 0;
}

/* What passes of each size cost on this machine. */
static void tell_costs(work *w, const pl_engine_stats *s, pl_msg_drafting *m)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < PL_COST_BUCKETS; i++) {
        if (s->n_passes[i] == 0)
            continue;
        w->costs[n++] = (pl_pass_cost){i, (uint32_t)s->n_passes[i], (float)s->passes_s[i]};
    }
    m->costs = (pl_span){w->costs, n};
}

void work_figures(void *ctx, pl_msg_drafting *m)
{
    work *w = ctx;
    run_draft_figures f = {0};
    pl_engine_stats s;

    if (!w->engine)
        return;
    if (m->batch != w->batch) { /* the first call of a batch: it began a moment ago */
        w->batch = m->batch;
        if (w->drafting)
            run_drafting_reset(w->drafting);
        pl_engine_reset_stats(w->engine);
    }
    if (w->drafting)
        run_drafting_figures(w->drafting, &f);
    pl_engine_get_stats(w->engine, &s);
    for (int i = 0; i < f.depth && i < PL_DRAFTING_DEPTHS; i++)
        w->alpha[i] = (float)f.alpha[i];
    m->drafter_version = f.version;
    m->train_ms = ms(f.train_s);
    m->gate_ms = ms(f.gate_s);
    m->pack_ms = ms(f.pack_s);
    m->wait_ms = ms(f.wait_s);
    m->n_optimizer_steps = (uint32_t)f.n_steps;
    m->n_dropped = (uint32_t)f.n_dropped;
    m->n_trained_tokens = (uint64_t)f.n_tokens;
    m->loss = (float)f.loss;
    m->alpha = (pl_span){w->alpha, (uint32_t)f.depth};
    m->n_drafted_steps = (uint64_t)s.n_drafted_steps;
    m->n_drafted_emitted = (uint64_t)s.n_drafted_emitted;
    m->n_before_steps = (uint64_t)s.n_before_steps;
    m->n_before_emitted = (uint64_t)s.n_before_emitted;
    m->n_learned_draft = (uint64_t)s.n_draft_of[PL_SOURCE_LEARNED];
    m->n_learned_accepted = (uint64_t)s.n_accepted_of[PL_SOURCE_LEARNED];
    m->n_suffix_draft = (uint64_t)s.n_draft_of[PL_SOURCE_SUFFIX];
    m->n_suffix_accepted = (uint64_t)s.n_accepted_of[PL_SOURCE_SUFFIX];
    m->n_tail_steps = (uint64_t)s.n_tail_steps;
    m->n_tail_emitted = (uint64_t)s.n_tail_emitted;
    m->tail_ms = ms(s.tail_s);
    m->draft_ms = ms(s.draft_s);
    m->verify_ms = ms(s.verify_s);
    tell_costs(w, &s, m);
    m->n_swaps = (uint32_t)f.n_swaps;
}
