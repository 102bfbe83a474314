/* rollout/worker_spot.c - what a worker does for the drafter when it has nothing to roll out:
 * sessions of the spot trainer, versions, figures.
 *
 * The coordinator says TRAIN and HALT, and both again, until STATUS shows that they were heard; the
 * newest of the two counts.  A lease ends the session without a word.  Nothing here can fail a
 * worker: a drafter changes how fast it is, never what it says. */
#include "rollout/worker_internal.h"

#include <stdlib.h>
#include <string.h>

static const int64_t ANNOUNCE_NS = 1000 * 1000000LL;
static const int64_t FIGURES_NS = 500 * 1000000LL; /* while they change */
static const int64_t REPEAT_NS = 2000 * 1000000LL; /* else: one may have been lost */

/* ---- copies of what a message points to ---- */

/* s into *text, which has the room of all strings of a message; *to points there. */
static void keep(const char **to, char **text, const char *s)
{
    const size_t n = strlen(s) + 1;
    memcpy(*text, s, n);
    *to = *text;
    *text += n;
}

static void keep_train(asked *a, const pl_msg_train *m)
{
    char *text = a->text;
    const char *buffers = m->buffers;
    a->m = *m;
    keep(&a->m.buffers, &text, buffers);
}

static void keep_drafter(staged *d, const pl_msg_drafter *m)
{
    char *text = d->text;
    d->m = *m;
    keep(&d->m.dir, &text, m->dir);
    keep(&d->m.host, &text, m->host);
    keep(&d->m.endpoint, &text, m->endpoint);
}

/* ---- sessions ---- */

int worker_has_session(const worker *w)
{
    return w->asked.m.session && w->n_running == 0 && !w->is_draining &&
           w->asked.m.policy_version == w->version;
}

static int is_in_it(const worker *w)
{
    return w->session.m.session == w->asked.m.session && w->session.m.is_lead == w->asked.m.is_lead;
}

void worker_on_train(worker *w, const pl_msg *m)
{
    const pl_msg_train *t = &m->u.train;
    if (!worker_mark_pass(&w->train_mark, &m->h))
        return;
    if (!w->io.train || w->is_declined || t->session <= w->over || w->n_running > 0 ||
        w->is_draining || t->policy_version != w->version)
        return; /* it stays what it is, and STATUS says so */
    const int is_new = t->session != w->asked.m.session || t->is_lead != w->asked.m.is_lead;
    keep_train(&w->asked, t);
    if (!is_new)
        return;
    w->must_stop |= w->is_training;
    w->is_status_due = 1;
}

void worker_on_halt(worker *w, const pl_msg *m)
{
    if (!worker_mark_pass(&w->train_mark, &m->h))
        return;
    if (m->u.halt.session >= w->asked.m.session)
        w->asked.m.session = 0; /* keep_on sees it */
    w->is_status_due = 1;
}

static int is_to_wait(const worker *w, const pl_msg *m)
{
    if (m->h.epoch != w->epoch)
        return m->h.epoch > w->epoch;
    switch (m->h.type) {
    case PL_MSG_LEASE:
    case PL_MSG_DRAIN:
    case PL_MSG_STOP:
    case PL_MSG_REJECT:
        return 1;
    case PL_MSG_VERSION:
        return m->u.version.version != w->version ||
               memcmp(&m->u.version.hash, &w->hash, sizeof w->hash) != 0;
    default:
        return 0;
    }
}

int worker_defers(worker *w, const pl_msg *m)
{
    if (!w->is_training || !is_to_wait(w, m))
        return 0;
    w->heard_ns = w->wire.now_ns(w->wire.ctx);
    w->must_stop = 1;
    return 1;
}

/* Between two ops of the training: what the coordinator says, what time brings. */
static int keep_on(void *ctx)
{
    worker *w = ctx;
    if (w->must_stop)
        return 0;
    pl_status st = w->wire.listen ? w->wire.listen(w->wire.ctx, &w->train_error) : PL_OK;
    if (st == PL_OK && !w->must_stop)
        st = worker_tick(w, &w->train_error);
    w->train_status = st;
    if (st != PL_OK || w->is_over || !worker_has_session(w))
        w->must_stop = 1;
    return !w->must_stop;
}

void worker_end_session(worker *w)
{
    if (!w->session.m.session)
        return;
    pl_log_debug(
        w->log, "worker=%s session=%llu left", w->o.name, (unsigned long long)w->session.m.session);
    w->session.m.session = 0;
    w->is_status_due = 1;
    if (w->io.train_end)
        w->io.train_end(w->io.ctx);
}

/* Sessions are over for this worker: up to this one, or for good. */
static void judge(worker *w, pl_status st, const pl_error *why)
{
    if (st == PL_OK || st == PL_E_STOPPED || st == PL_E_TIMEOUT)
        return;
    if (st == PL_E_IO) { /* a full disk may have room again */
        if (w->n_io_failures++ % 100 == 0)
            pl_log_warn(w->log, "worker=%s session=%llu goes on: %s", w->o.name,
                (unsigned long long)w->session.m.session, why->msg);
        return;
    }
    w->over = w->session.m.session;
    if (w->asked.m.session <= w->over)
        w->asked.m.session = 0;
    if (st == PL_E_PEER || st == PL_E_NUMERIC) {
        pl_log_info(w->log, "worker=%s session=%llu is over: %s", w->o.name,
            (unsigned long long)w->over, why->msg);
        return;
    }
    w->is_declined = 1;
    w->asked.m.session = 0;
    pl_log_warn(w->log,
        "worker=%s session=%llu failed: %s; it trains no drafter any more, and rolls out as "
        "before",
        w->o.name, (unsigned long long)w->over, why->msg);
}

pl_status worker_train(worker *w, pl_error *err)
{
    pl_error why = {0};
    if (!is_in_it(w))
        worker_end_session(w);
    worker_next_figures(w, w->asked.m.batch);
    keep_train(&w->session, &w->asked.m);
    w->must_stop = 0;
    w->train_status = PL_OK;
    w->is_training = 1;
    const pl_status st = w->io.train(w->io.ctx, &w->session.m, keep_on, w, &why);
    w->is_training = 0;
    judge(w, st, &why);
    if (w->train_status != PL_OK) {
        if (err)
            *err = w->train_error;
        return w->train_status;
    }
    if (!worker_has_session(w) || !is_in_it(w)) {
        worker_end_session(w);
        worker_say_status(w); /* it may be waited for */
        return PL_OK;
    }
    return st == PL_E_TIMEOUT || st == PL_E_IO ? PL_E_TIMEOUT : PL_OK;
}

/* ---- versions of the drafter ---- */

void worker_on_drafter(worker *w, const pl_msg *m)
{
    const pl_msg_drafter *d = &m->u.drafter;
    if (d->version > w->drafter_known)
        w->drafter_known = d->version;
    if (!w->io.drafter || d->version <= w->drafter_version)
        return; /* versions rise: it is an old one, or here */
    if (d->version < w->staged.m.version)
        return;
    const int is_served = d->version == w->staged.m.version && d->endpoint[0] &&
                          strcmp(d->endpoint, w->staged.m.endpoint) != 0; /* from elsewhere now */
    if (d->version > w->staged.m.version || is_served) {
        keep_drafter(&w->staged, d);
        w->n_drafter_failures = 0;
    }
    w->is_staged = w->n_drafter_failures < WORKER_TRIES; /* said again: tried again */
}

static void swap_drafter(worker *w)
{
    pl_error why = {0};
    if (!w->is_staged || w->version == WORKER_NONE)
        return; /* an engine is there from the first version of the policy on */
    w->is_staged = 0;
    const pl_status st = w->io.drafter(w->io.ctx, &w->staged.m, worker_keep_alive, w, &why);
    if (st == PL_OK) {
        w->drafter_version = w->staged.m.version;
        w->is_status_due = 1;
        pl_log_info(w->log, "worker=%s drafter=%u in use", w->o.name, w->drafter_version);
        return;
    }
    if (st == PL_E_TIMEOUT) {
        w->is_staged = 1;
        return;
    }
    w->n_drafter_failures++;
    pl_log_warn(w->log, "worker=%s drafter=%u not in use, try=%d of %d: %s; going on with %u",
        w->o.name, w->staged.m.version, w->n_drafter_failures, WORKER_TRIES, why.msg,
        w->drafter_version);
}

static void announce(worker *w, int64_t now)
{
    pl_msg m = {.h.type = PL_MSG_DRAFTER};
    if (!w->io.publish || !w->is_joined || !w->io.publish(w->io.ctx, &m.u.drafter))
        return;
    const uint32_t version = m.u.drafter.version;
    if (version <= w->drafter_known)
        return;
    if (version != w->announced) {
        w->announced = version;
        w->n_announces = 0;
    } else if (now - w->announced_ns < ANNOUNCE_NS || w->n_announces >= WORKER_ANNOUNCES) {
        return;
    }
    w->announced_ns = now;
    if (++w->n_announces == WORKER_ANNOUNCES)
        pl_log_warn(w->log,
            "worker=%s drafter=%u announced %d times, the coordinator does not "
            "take it: given up",
            w->o.name, version, WORKER_ANNOUNCES);
    w->wire.send(w->wire.ctx, &m);
}

/* ---- figures ---- */

static void say_figures(worker *w, int64_t now, int is_last)
{
    figures f;
    if (!w->io.drafting || !w->has_figures || !w->is_joined)
        return;
    const int64_t age = now - w->figures_ns;
    if (!is_last && age < FIGURES_NS)
        return;
    memset(&f, 0, sizeof f);
    const uint32_t idle_ms = (uint32_t)(w->idle_ns / WORKER_MS);
    f.m.batch = w->figures_batch;
    f.m.worker = "";
    f.m.drafter_version = w->drafter_version;
    f.m.idle_ms = idle_ms;
    w->io.drafting(w->io.ctx, &f.m);
    f.m.alpha.n = f.m.alpha.n < PL_DRAFTING_DEPTHS ? f.m.alpha.n : PL_DRAFTING_DEPTHS;
    if (f.m.alpha.n)
        memcpy(f.alpha, f.m.alpha.data, f.m.alpha.n * sizeof f.alpha[0]);
    f.m.costs.n = f.m.costs.n < PL_COST_BUCKETS ? f.m.costs.n : PL_COST_BUCKETS;
    if (f.m.costs.n)
        memcpy(f.costs, f.m.costs.data, f.m.costs.n * sizeof f.costs[0]);
    f.m.alpha.data = f.m.costs.data = NULL;
    f.m.idle_ms = 0; /* it always changes */
    if (!is_last && age < REPEAT_NS && memcmp(&f, &w->figures, sizeof f) == 0)
        return;
    w->figures = f;
    w->figures_ns = now;
    pl_msg m = {.h.type = PL_MSG_DRAFTING, .u.drafting = f.m};
    m.u.drafting.idle_ms = idle_ms;
    m.u.drafting.alpha.data = f.alpha;
    m.u.drafting.costs.data = f.costs;
    w->wire.send(w->wire.ctx, &m);
}

void worker_next_figures(worker *w, uint64_t batch)
{
    pl_msg_drafting begin = {.batch = batch, .worker = ""};
    if (w->has_figures && w->figures_batch == batch)
        return;
    say_figures(w, w->wire.now_ns(w->wire.ctx), 1);
    w->figures_batch = batch;
    w->has_figures = 1;
    w->idle_ns = 0;
    if (w->io.drafting)
        w->io.drafting(w->io.ctx, &begin); /* from here on it counts anew */
}

void worker_spot_tick(worker *w, int64_t now)
{
    if (w->n_running == 0 && w->has_figures)
        w->idle_ns += now - w->ticked_ns;
    w->ticked_ns = now;
    if (!worker_has_session(w)) {
        w->asked.m.session = 0; /* its time is over, even if that of the leases is short */
        worker_end_session(w);
    }
    swap_drafter(w);
    announce(w, now);
    const int has_drained = w->has_run && w->n_running == 0;
    w->has_run = w->n_running > 0;
    say_figures(w, now, has_drained); /* the step's figures, before its last result is durable */
}
