/* rollout/coordinator.c - the machine: what comes in goes to the file that knows, and what waited
 * for the ledger goes out when it is durable.
 *
 * Two rules hold everything together.  What is promised to somebody (ACK, RESULT, REWARD, CONSUME,
 * VERSION, a lease of a group) is durable first.  Everything is said again until the answer shows
 * that it arrived, so every message may be lost, doubled or late. */
#include "rollout/coordinator_internal.h"

#include <stdlib.h>
#include <string.h>

pl_status coordinator_copy(char **out, const char *s, pl_error *err)
{
    char *copy = strdup(s ? s : "");
    if (!copy)
        return pl_fail(err, PL_E_NOMEM, "coordinator: no memory for a text");
    free(*out);
    *out = copy;
    return PL_OK;
}

pl_status coordinator_grow(void **array, int n, int *room, size_t size, pl_error *err)
{
    if (n < *room)
        return PL_OK;
    const int more = *room ? 2 * *room : 16;
    void *bigger = realloc(*array, (size_t)more * size);
    if (!bigger)
        return pl_fail(err, PL_E_NOMEM, "coordinator: no memory for %d entries", more);
    *array = bigger;
    *room = more;
    return PL_OK;
}

int coordinator_is_late(int64_t now_ns, int64_t since_ns, uint32_t ms)
{
    return now_ns - since_ns >= (int64_t)ms * NS_PER_MS;
}

void coordinator_progressed(pl_coordinator *c, int64_t now_ns)
{
    c->stats.last_progress_ns = now_ns;
    c->told_stall_ns = now_ns;
}

void coordinator_send(pl_coordinator *c, const pl_peer *to, pl_msg *m, uint16_t type)
{
    m->h.type = type;
    m->h.protocol = PL_PROTOCOL;
    m->h.epoch = c->epoch;
    c->io.send(c->io.ctx, to, m);
}

void coordinator_send_uid(
    pl_coordinator *c, const pl_peer *to, uint16_t type, uint64_t id, uint32_t uid)
{
    pl_msg m = {.u.uids = {.batch = id, .uids = {&uid, 1}}};
    coordinator_send(c, to, &m, type);
}

pl_status coordinator_record(
    pl_coordinator *c, pl_msg *m, uint16_t type, const waiting *w, pl_error *err)
{
    m->h.type = type;
    m->h.protocol = PL_PROTOCOL;
    m->h.epoch = c->epoch;
    pl_status st = coordinator_grow(
        (void **)&c->waiting, c->n_waiting, &c->room_waiting, sizeof *c->waiting, err);
    if (st != PL_OK)
        return st;
    st = c->io.record(c->io.ctx, m, err);
    if (st != PL_OK)
        return pl_wrap(err, st, "ledger");
    c->waiting[c->n_waiting] = *w;
    c->waiting[c->n_waiting++].type = type;
    return PL_OK;
}

pl_status pl_coordinator_new(pl_coordinator **out, const pl_coordinator_options *o,
    const pl_coordinator_io *io, const pl_log *log, pl_error *err)
{
    if (!o->heartbeat_ms || o->lost_ms <= o->heartbeat_ms || !o->resend_ms)
        return pl_fail(err, PL_E_INVAL,
            "coordinator: heartbeat_ms %u, lost_ms %u, resend_ms %u: none may be 0, and lost_ms "
            "must be more than heartbeat_ms",
            o->heartbeat_ms, o->lost_ms, o->resend_ms);
    pl_coordinator *c = calloc(1, sizeof *c);
    if (!c)
        return pl_fail(err, PL_E_NOMEM, "coordinator: no memory");
    c->o = *o;
    c->io = *io;
    c->log = log;
    c->i_newest = -1;
    pl_status st = coordinator_copy(&c->run, o->run, err);
    if (st == PL_OK)
        st = coordinator_copy(&c->build, o->build, err);
    if (st == PL_OK)
        st = coordinator_copy(&c->numeric_class, o->numeric_class, err);
    if (st != PL_OK) {
        pl_coordinator_free(c);
        return st;
    }
    *out = c;
    return PL_OK;
}

void pl_coordinator_free(pl_coordinator *c)
{
    if (!c)
        return;
    batches_free(c);
    for (int i = 0; i < c->n_members; i++)
        free(c->members[i]);
    free(c->members);
    free(c->refused);
    free(c->lengths);
    free(c->steps);
    free(c->waiting);
    free(c->version_dir);
    free(c->version_host);
    free(c->version_endpoint);
    free(c->drafter_dir);
    free(c->drafter_host);
    free(c->drafter_endpoint);
    free(c->run);
    free(c->build);
    free(c->numeric_class);
    free(c->ledger_run);
    free(c->ledger_class);
    free(c);
}

uint64_t pl_coordinator_epoch(const pl_coordinator *c)
{
    return c->epoch;
}

static pl_status on_worker_message(
    pl_coordinator *c, int64_t now_ns, member *who, const pl_msg *m, pl_error *err)
{
    switch (m->h.type) {
    case PL_MSG_PROGRESS:
        return leases_on_progress(c, now_ns, who, &m->u.progress, err);
    case PL_MSG_RESULT:
        return results_on_result(c, now_ns, who, m, err);
    case PL_MSG_DRAFTER:
        return drafters_on_drafter(c, now_ns, who, m, err);
    case PL_MSG_DRAFTING:
        drafters_on_drafting(c, who, m);
        return PL_OK;
    default:
        members_reject(c, &who->peer, PL_E_INVAL, "a worker does not say message type %u",
            (unsigned)m->h.type);
        return PL_OK;
    }
}

static pl_status on_trainer_message(
    pl_coordinator *c, int64_t now_ns, member *who, const pl_msg *m, pl_error *err)
{
    switch (m->h.type) {
    case PL_MSG_GROUP:
        return batches_on_group(c, now_ns, who, m, err);
    case PL_MSG_WANT:
        results_on_want(c, who, m);
        return PL_OK;
    case PL_MSG_REWARD:
        return results_on_reward(c, now_ns, who, m, err);
    case PL_MSG_REFUSE:
        return results_on_refuse(c, m, err);
    case PL_MSG_CONSUME:
        return steps_on_consume(c, now_ns, who, m, err);
    case PL_MSG_VERSION:
        return steps_on_version(c, now_ns, who, m, err);
    case PL_MSG_DRAFTER:
        return drafters_on_served(c, m, err);
    case PL_MSG_CHECKPOINT:
        return steps_on_checkpoint(c, m, err);
    case PL_MSG_DONE:
        return steps_on_done(c, m, err);
    case PL_MSG_TRACED:
        return steps_on_traced(c, m, err);
    default:
        members_reject(c, &who->peer, PL_E_INVAL, "a trainer does not say message type %u",
            (unsigned)m->h.type);
        return PL_OK;
    }
}

/* What follows from how things stand now. */
static void act(pl_coordinator *c, int64_t now_ns)
{
    leases_grant(c, now_ns);
    tail_tick(c, now_ns);
    sessions_tick(c, now_ns);
}

/* A member that is known in this epoch, or NULL: then the peer was told what to do. */
static member *admit(pl_coordinator *c, int64_t now_ns, const pl_peer *from, const pl_msg *m)
{
    member *who = members_find(c, from);
    if (m->h.epoch != c->epoch) {
        c->stats.n_old_epoch++;
        members_reject(c, from, PL_E_PEER,
            "say HELLO: this is epoch %llu of the coordinator, the message is of epoch %llu",
            (unsigned long long)c->epoch, (unsigned long long)m->h.epoch);
        return NULL;
    }
    if (!who || who->state == PL_WORKER_LOST) {
        if (!members_turn_away(c, from, NULL, m->h.incarnation)) {
            members_reject(c, from, PL_E_PEER, "say HELLO: the coordinator does not know you%s",
                who ? " any more, it heard nothing for too long" : "");
        }
        return NULL;
    }
    who->heard_ns = now_ns;
    return who;
}

pl_status pl_coordinator_message(
    pl_coordinator *c, int64_t now_ns, const pl_peer *from, const pl_msg *m, pl_error *err)
{
    if (!c->is_open)
        return PL_OK;
    drafters_count_idle(c, now_ns);
    if (m->h.type == PL_MSG_HELLO)
        return members_hello(c, now_ns, from, m, err);
    member *who = admit(c, now_ns, from, m);
    if (!who)
        return PL_OK;
    pl_status st = PL_OK;
    if (c->is_done && m->h.type != PL_MSG_LEAVE) { /* it did not hear it */
        pl_msg stop = {0};
        coordinator_send(c, from, &stop, PL_MSG_STOP);
    }
    if (m->h.type == PL_MSG_STATUS) {
        const int is_first = !who->has_status;
        if (members_status(c, now_ns, who, m) && who->role == PL_ROLE_WORKER)
            leases_on_status(c, now_ns, who, &m->u.status, is_first);
    } else if (m->h.type == PL_MSG_LEAVE) {
        members_leave(c, who);
    } else if (who->role == PL_ROLE_TRAINER) {
        st = on_trainer_message(c, now_ns, who, m, err);
    } else {
        st = on_worker_message(c, now_ns, who, m, err);
    }
    if (st == PL_OK)
        act(c, now_ns);
    return st;
}

/* The stall report: describe, line by line. */
static void report_stall(pl_coordinator *c, int64_t now_ns)
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    if (!f)
        return;
    pl_coordinator_describe(c, now_ns, f);
    if (fclose(f) == 0) {
        pl_log_warn(c->log, "nothing has moved for %lld s: event=stall",
            (long long)((now_ns - c->stats.last_progress_ns) / (1000 * NS_PER_MS)));
        char *rest = NULL;
        for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
            pl_log_warn(c->log, "stall: %s", line);
    }
    free(text);
}

static int has_live_worker(const pl_coordinator *c)
{
    for (int i = 0; i < c->n_members; i++)
        if (c->members[i]->role == PL_ROLE_WORKER && c->members[i]->state != PL_WORKER_LOST)
            return 1;
    return 0;
}

static void watch(pl_coordinator *c, int64_t now_ns)
{
    if (c->o.stall_s && coordinator_is_late(now_ns, c->told_stall_ns, 1000 * c->o.stall_s)) {
        c->told_stall_ns = now_ns;
        report_stall(c, now_ns);
    }
    const int is_whole = members_trainer(c) && has_live_worker(c);
    if (is_whole || !c->o.join_timeout_s)
        c->told_join_ns = now_ns;
    else if (coordinator_is_late(now_ns, c->told_join_ns, 1000 * c->o.join_timeout_s)) {
        c->told_join_ns = now_ns;
        pl_log_warn(c->log, "no %s has joined for %u s; start one with this run's address",
            members_trainer(c) ? "worker" : "trainer", c->o.join_timeout_s);
    }
}

/* A place of the run has one process at a time: when each has said what it runs, none of the epoch
 * before is left to wait for. */
static int have_all_said(const pl_coordinator *c)
{
    uint32_t n = 0;

    for (int i = 0; i < c->n_members; i++)
        n += c->members[i]->role == PL_ROLE_WORKER && c->members[i]->has_status &&
             c->members[i]->state != PL_WORKER_LOST;
    return c->o.n_workers > 0 && n >= c->o.n_workers;
}

pl_status pl_coordinator_tick(pl_coordinator *c, int64_t now_ns, pl_error *err)
{
    (void)err; /* today nothing here is recorded */
    if (!c->is_open)
        return PL_OK;
    /* It was away itself (stopped, suspended, a slow fsync): what members said is not read yet. */
    if (c->tick_ns && coordinator_is_late(now_ns, c->tick_ns, c->o.heartbeat_ms))
        members_forgive(c, now_ns, now_ns - c->tick_ns);
    c->tick_ns = now_ns;
    drafters_count_idle(c, now_ns);
    members_tick(c, now_ns);
    if (c->is_waiting &&
        (have_all_said(c) || coordinator_is_late(now_ns, c->begin_ns, c->o.lost_ms))) {
        c->is_waiting = 0;
        c->want_grant = 1;
    }
    c->want_grant |= c->is_kept;
    act(c, now_ns);
    if (coordinator_is_late(now_ns, c->told_batch_ns, BATCH_MS))
        batches_tell(c, now_ns);
    /* The ledger ends with END: its trainer may have gone before this epoch began. */
    if (c->end == DURABLE && !c->is_done && !members_trainer(c) &&
        coordinator_is_late(now_ns, c->begin_ns, END_WAIT_MS))
        steps_finish(c);
    if (!c->is_done)
        watch(c, now_ns);
    return PL_OK;
}

int pl_coordinator_unsynced(const pl_coordinator *c)
{
    return c->n_waiting > 0;
}

static void do_waiting(pl_coordinator *c, int64_t now_ns, const waiting *w)
{
    batch *b = batches_find(c, w->batch);
    sample *s = b ? batches_sample(b, w->id, NULL) : NULL;
    switch (w->type) {
    case PL_MSG_EPOCH:
        c->is_open = 1;
        break;
    case PL_MSG_GROUP:
        if (b)
            batches_group_durable(c, b, w->id);
        break;
    case PL_MSG_RESULT:
        if (b)
            results_durable(c, w, b);
        break;
    case PL_MSG_REWARD:
        if (b)
            results_reward_durable(c, w, b);
        break;
    case PL_MSG_REFUSE:
        if (s && s->state == SAMPLE_VOID)
            batches_move(b, s, SAMPLE_PENDING);
        break;
    case PL_MSG_CONSUME:
        steps_consume_durable(c, w->batch);
        break;
    case PL_MSG_VERSION:
        steps_version_durable(c, now_ns);
        break;
    case PL_MSG_DRAFTER:
        drafters_durable(c, now_ns, w->id);
        break;
    case PL_MSG_END:
        c->end = DURABLE;
        steps_finish(c);
        break;
    default:
        break;
    }
}

pl_status pl_coordinator_synced(pl_coordinator *c, int64_t now_ns, pl_error *err)
{
    (void)err;
    for (int i = 0; i < c->n_waiting; i++)
        do_waiting(c, now_ns, &c->waiting[i]);
    c->n_waiting = 0;
    c->want_grant = 1;
    if (!c->is_open)
        return PL_OK;
    drafters_count_idle(c, now_ns);
    const int is_complete =
        c->current && !c->current->was_complete && batches_is_complete(c->current);
    if (is_complete)
        c->current->was_complete = 1;
    act(c, now_ns); /* HALT before anything else, when it is complete */
    if (is_complete) {
        drafters_tell(c);
        batches_tell(c, now_ns);
    }
    return PL_OK;
}

int pl_coordinator_is_done(const pl_coordinator *c)
{
    return c->is_done;
}

void pl_coordinator_drain(pl_coordinator *c, int64_t now_ns)
{
    c->is_draining = 1;
    members_drain(c, now_ns);
}
