/* rollout/worker_session.c - a worker's dialogue with its coordinator: joining, versions, leaving.
 */
#include "rollout/worker_internal.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const int64_t HELLO_NS = 1000 * 1000000LL; /* of silence, before it asks */
static const int64_t KNOCK_NS = 100 * 1000000LL;  /* between two HELLOs of one who is outside */
static const int64_t DRAIN_NS = 2000 * 1000000LL; /* that results may take to be acknowledged */
static const int64_t STATUS_CHANGED_NS = 20 * 1000000LL; /* between two STATUS at least */

static int64_t now_of(const worker *w)
{
    return w->wire.now_ns(w->wire.ctx);
}

pl_status worker_new(worker **out, const pl_worker_options *o, const pl_worker_io *io,
    const worker_wire *wire, const pl_log *log, pl_error *err)
{
    if (o->max_seqs < 1 || o->n_threads < 1 || o->patience_s < 0)
        return pl_fail(err, PL_E_INVAL,
            "worker '%s': max_seqs %d and n_threads %d are at least 1, patience_s %d at least 0",
            o->name, o->max_seqs, o->n_threads, o->patience_s);
    worker *w = calloc(1, sizeof *w);
    if (!w)
        return pl_fail(err, PL_E_NOMEM, "worker '%s': no memory", o->name);
    w->o = *o;
    if (w->o.patience_s == 0)
        w->o.patience_s = 60;
    w->io = *io;
    w->wire = *wire;
    w->log = log;
    w->version = WORKER_NONE;
    w->heartbeat_ms = 500; /* until WELCOME tells */
    w->lost_ms = 3000;
    w->heard_ns = w->linked_ns = w->ticked_ns = now_of(w);
    w->hello_ns = w->heard_ns - HELLO_NS;
    *out = w;
    return PL_OK;
}

void worker_free(worker *w)
{
    if (!w)
        return;
    if (w->engine)
        pl_engine_clear(w->engine); /* a broken one too: it borrows the prompts */
    worker_drop_all(w);
    free(w->samples);
    free(w->uids);
    free(w);
}

/* ---- what is said ---- */

static void say_hello(worker *w, int64_t now)
{
    const pl_msg m = {.h.type = PL_MSG_HELLO,
        .u.hello = {.role = PL_ROLE_WORKER,
            .name = w->o.name,
            .numeric_class = w->o.numeric_class,
            .build = w->o.build,
            .host = w->o.host,
            .pid = (uint32_t)getpid(),
            .n_threads = (uint32_t)w->o.n_threads,
            .max_seqs = (uint32_t)w->o.max_seqs}};
    w->hello_ns = now;
    w->n_told += w->is_told;
    w->is_told = 0;
    w->wire.send(w->wire.ctx, &m);
}

static pl_worker_state state_of(const worker *w)
{
    if (w->is_draining)
        return PL_WORKER_DRAINING;
    if (w->version == WORKER_NONE)
        return PL_WORKER_JOINING;
    if (w->n_running > 0)
        return PL_WORKER_BUSY;
    if (worker_has_session(w))
        return PL_WORKER_TRAINING;
    return w->session.m.session ? PL_WORKER_STOPPING : PL_WORKER_IDLE;
}

static void say_status(worker *w, int64_t now)
{
    uint32_t *running = w->uids, *held = w->uids + w->n_running;
    for (int i = 0; i < w->n_samples; i++) {
        if (w->samples[i]->is_held)
            *held++ = w->samples[i]->uid;
        else
            *running++ = w->samples[i]->uid;
    }
    const int n_held = w->n_samples - w->n_running;
    const pl_msg m = {.h.type = PL_MSG_STATUS,
        .u.status = {.state = (uint32_t)state_of(w),
            .policy_version = w->version,
            .batch = w->batch,
            .rate = w->busy_s > 0 ? (float)(w->n_emitted / w->busy_s) : 0,
            .session = worker_has_session(w) ? w->asked.m.session : w->session.m.session,
            .drafter_version = w->drafter_version,
            .running = {w->uids, (uint32_t)w->n_running},
            .held = {w->uids + w->n_running,
                (uint32_t)(n_held < WORKER_UIDS_MAX ? n_held : WORKER_UIDS_MAX)}}};
    w->status_ns = now;
    w->is_status_due = 0;
    w->wire.send(w->wire.ctx, &m);
}

void worker_say_status(worker *w)
{
    if (w->is_joined)
        say_status(w, now_of(w));
}

static void say_status_if_due(worker *w, int64_t now)
{
    const int64_t age = now - w->status_ns;
    const int64_t heartbeat = (int64_t)w->heartbeat_ms * WORKER_MS;
    const int64_t changed = heartbeat < STATUS_CHANGED_NS ? heartbeat : STATUS_CHANGED_NS;
    if (w->is_joined && age >= (w->is_status_due ? changed : heartbeat))
        say_status(w, now);
}

void worker_leave(worker *w)
{
    const pl_msg m = {.h.type = PL_MSG_LEAVE};
    if (w->is_joined)
        w->wire.send(w->wire.ctx, &m);
    w->is_joined = 0;
}

/* ---- joining ---- */

/* The coordinator does not know this worker (any more): HELLO, at most once a second. */
static void rejoin(worker *w)
{
    w->is_joined = 0;
    w->version_mark = w->lease_mark = w->train_mark =
        (worker_mark){0}; /* its counting may begin anew */
}

static pl_status welcome(worker *w, const pl_msg *m, pl_error *err)
{
    const pl_msg_welcome *c = &m->u.welcome;
    const int is_new = m->h.epoch > w->epoch;
    if (w->run[0] && strncmp(w->run, c->run, sizeof w->run - 1) != 0)
        return pl_fail(err, PL_E_PEER,
            "the coordinator at '%s' serves run '%s' now, worker '%s' belongs to run '%s': start "
            "it again to join the new one",
            w->o.address, c->run, w->o.name, w->run);
    if (!w->is_joined || is_new) {
        w->epoch = m->h.epoch;
        w->wire.set_epoch(w->wire.ctx, w->epoch); /* of a new socket too */
        worker_report_anew(w);
        w->is_status_due = 1;
        w->status_ns = now_of(w) - STATUS_CHANGED_NS;
    }
    w->is_joined = 1;
    w->n_told = w->is_told = w->is_to_wait = 0;
    w->heartbeat_ms = c->heartbeat_ms < 10 ? 10 : c->heartbeat_ms;
    w->lost_ms = c->lost_ms < 1000 ? 1000 : c->lost_ms;
    if (!is_new)
        return PL_OK;
    (void)snprintf(w->run, sizeof w->run, "%s", c->run);
    pl_log_info(w->log, "worker=%s joined run=%s epoch=%llu", w->o.name, w->run,
        (unsigned long long)w->epoch);
    return w->io.joined ? w->io.joined(w->io.ctx, c, err) : PL_OK;
}

static pl_status rejected(worker *w, const pl_msg_reject *r, pl_error *err)
{
    const int n_max = r->code == PL_E_PEER      ? WORKER_TOLD_MAX
                      : r->code == PL_E_TIMEOUT ? w->o.patience_s
                                                : 0;
    w->is_to_wait = r->code == PL_E_TIMEOUT;
    if (w->n_told < n_max) {
        w->is_told = 1;
        rejoin(w);
        return PL_OK;
    }
    w->is_joined = 0;
    return pl_fail(err, PL_E_PEER, "the coordinator at '%s' refuses worker '%s': %s", w->o.address,
        w->o.name, r->reason);
}

/* ---- versions ---- */

void worker_keep_alive(void *ctx)
{
    worker *w = ctx;
    say_status_if_due(w, now_of(w));
}

/* A version that is not the loaded one is a barrier: what still runs is of the one before, and
 * without use. */
static pl_status take_version(worker *w, const pl_msg *m, pl_error *err)
{
    const pl_msg_version *v = &m->u.version;
    pl_error why;
    if (w->is_draining || !worker_mark_pass(&w->version_mark, &m->h))
        return PL_OK;
    if (v->version == w->version && memcmp(&v->hash, &w->hash, sizeof v->hash) == 0)
        return PL_OK;
    worker_drop_running(w);
    worker_end_session(w);
    w->version = WORKER_NONE; /* if loading breaks off in the middle */
    const pl_status st = w->io.load(w->io.ctx, v, worker_keep_alive, w, &w->engine, &why);
    w->heard_ns = now_of(w); /* nobody listened: no silence */
    w->is_status_due = 1;
    if (st == PL_OK) {
        assert(w->engine);
        w->version = v->version;
        w->hash = v->hash;
        w->n_load_failures = 0;
        pl_log_info(w->log, "worker=%s loaded version=%u", w->o.name, w->version);
        return PL_OK;
    }
    if (st == PL_E_STOPPED)
        return PL_OK; /* worker_tick asks why */
    w->n_load_failures++;
    pl_log_warn(w->log, "worker=%s version=%u not loaded, try=%d of %d: %s", w->o.name, v->version,
        w->n_load_failures, WORKER_TRIES, why.msg);
    if (w->n_load_failures < WORKER_TRIES)
        return PL_OK;
    if (err)
        *err = why;
    return pl_wrap(err, st, "worker '%s' cannot load version %u", w->o.name, v->version);
}

/* ---- leaving ---- */

static void drain(worker *w, pl_status end)
{
    if (w->is_draining)
        return;
    w->is_draining = 1;
    w->end = end;
    w->drain_ns = now_of(w);
    if (w->is_joined)
        worker_report_all(w);
    worker_drop_running(w);
    worker_report_anew(w);
    w->is_status_due = 1;
}

static pl_status end_of_drain(worker *w, int64_t now, pl_error *err)
{
    if (w->is_joined && w->n_samples > 0 && now - w->drain_ns < DRAIN_NS)
        return PL_OK;
    w->is_over = 1;
    if (w->end == PL_OK)
        return PL_OK;
    return pl_fail(err, w->end, "worker '%s' was asked to stop; %d results are not acknowledged",
        w->o.name, w->n_samples);
}

/* ---- what happens ---- */

static pl_status handle(worker *w, const pl_msg *m, pl_error *err)
{
    switch (m->h.type) {
    case PL_MSG_LEASE:
        return worker_lease(w, m, err);
    case PL_MSG_VERSION:
        return take_version(w, m, err);
    case PL_MSG_REVOKE:
        worker_revoke(w, &m->u.uids);
        return PL_OK;
    case PL_MSG_ACK:
        worker_ack(w, &m->u.uids);
        return PL_OK;
    case PL_MSG_HANDOVER:
        worker_handover(w, &m->u.uids);
        return PL_OK;
    case PL_MSG_TRAIN:
        worker_on_train(w, m);
        return PL_OK;
    case PL_MSG_HALT:
        worker_on_halt(w, m);
        return PL_OK;
    case PL_MSG_DRAFTER:
        worker_on_drafter(w, m);
        return PL_OK;
    case PL_MSG_DRAIN:
        drain(w, PL_OK);
        return PL_OK;
    case PL_MSG_STOP:
        w->is_over = 1;
        return PL_OK;
    default:
        return PL_OK;
    }
}

pl_status worker_message(worker *w, const pl_msg *m, pl_error *err)
{
    if (m->h.epoch < w->epoch)
        return PL_OK; /* a coordinator that was replaced */
    w->heard_ns = now_of(w);
    if (m->h.type == PL_MSG_WELCOME)
        return welcome(w, m, err);
    if (m->h.type == PL_MSG_REJECT)
        return rejected(w, &m->u.reject, err);
    if (m->h.epoch > w->epoch) {
        if (w->is_joined)
            rejoin(w);
        return PL_OK;
    }
    return handle(w, m, err);
}

/* Silence: a coordinator that took this worker for lost throws away what it says, so it comes back
 * as another.  0: patience is over. */
static int bear_silence(worker *w, int64_t now)
{
    const int64_t patience = (int64_t)w->o.patience_s * 1000 * WORKER_MS;
    const int64_t since = w->heard_ns > w->linked_ns ? w->heard_ns : w->linked_ns;
    if (now - w->heard_ns >= patience && w->n_running == 0)
        return 0;
    if (now - since < 2 * (int64_t)w->lost_ms * WORKER_MS)
        return 1;
    pl_log_warn(w->log, "worker=%s coordinator=%s silent_s=%.1f connecting anew", w->o.name,
        w->o.address, (double)(now - w->heard_ns) * 1e-9);
    w->wire.reconnect(w->wire.ctx);
    w->linked_ns = now;
    w->hello_ns = now - HELLO_NS;
    rejoin(w);
    return 1;
}

pl_status worker_tick(worker *w, pl_error *err)
{
    const int64_t now = now_of(w);
    const int stop = w->io.should_stop ? w->io.should_stop(w->io.ctx) : 0;
    if (w->is_over)
        return PL_OK;
    if (stop >= 2)
        return pl_fail(err, PL_E_STOPPED, "worker '%s' was told to leave at once", w->o.name);
    if (stop == 1)
        drain(w, PL_E_STOPPED);
    if (!bear_silence(w, now))
        return pl_fail(err, PL_E_PEER,
            "no word from the coordinator at '%s' for %.0f s: worker '%s' leaves; start it again "
            "when the run goes on",
            w->o.address, (double)(now - w->heard_ns) * 1e-9, w->o.name);
    /* A member asks for a sign of life by it. */
    if (now - w->hello_ns >= (w->is_joined || w->is_to_wait ? HELLO_NS : KNOCK_NS) &&
        (!w->is_joined || now - w->heard_ns >= HELLO_NS))
        say_hello(w, now);
    worker_report(w);
    if (!w->is_training)
        worker_spot_tick(w, now);
    say_status_if_due(w, now);
    return w->is_draining ? end_of_drain(w, now, err) : PL_OK;
}
