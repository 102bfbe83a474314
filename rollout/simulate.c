/* rollout/simulate.c - the clock, and what the coordinator says and records.
 *
 * Two things make time pass: a heap of plans (a worker's round is over, a commit is done, a tick)
 * and the wire, on which every message of the coordinator takes latency_s.  What workers and
 * trainer say is heard at once: the way back is in the same latency. */
#include "rollout/simulate_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const int64_t MS = 1000000;

pl_status sim_grow(void **array, int n, int *room, size_t size, pl_error *err)
{
    if (n < *room)
        return PL_OK;
    const int more = *room ? 2 * *room : 64;
    void *bigger = realloc(*array, (size_t)more * size);
    if (!bigger)
        return pl_fail(err, PL_E_NOMEM, "simulation: no memory for %d entries", more);
    *array = bigger;
    *room = more;
    return PL_OK;
}

/* ---- plans ---- */

static int is_before(const sim_event *a, const sim_event *b)
{
    return a->due_ns != b->due_ns ? a->due_ns < b->due_ns : a->order < b->order;
}

static void plan(pl_sim *s, sim_event e)
{
    if (s->status == PL_OK)
        s->status = sim_grow((void **)&s->heap, s->n_heap, &s->room_heap, sizeof *s->heap, &s->err);
    if (s->status != PL_OK)
        return;
    e.order = s->order++;
    int i = s->n_heap++;
    for (int up = (i - 1) / 2; i > 0 && is_before(&e, &s->heap[up]); i = up, up = (i - 1) / 2)
        s->heap[i] = s->heap[up];
    s->heap[i] = e;
}

static sim_event next_plan(pl_sim *s)
{
    const sim_event top = s->heap[0], e = s->heap[--s->n_heap];
    int i = 0;
    for (int down = 1; down < s->n_heap; down = 2 * i + 1) {
        down += down + 1 < s->n_heap && is_before(&s->heap[down + 1], &s->heap[down]);
        if (!is_before(&s->heap[down], &e))
            break;
        s->heap[i] = s->heap[down];
        i = down;
    }
    s->heap[i] = e;
    return top;
}

void sim_plan(pl_sim *s, sim_worker *w, int64_t due_ns)
{
    plan(s, (sim_event){.due_ns = due_ns, .who = w->i, .stamp = ++w->stamp});
}

/* ---- the wire ---- */

static void append(pl_sim *s, sim_list *l, int32_t i)
{
    s->notes[i].next = SIM_NONE;
    if (l->last >= 0)
        s->notes[l->last].next = i;
    else
        l->first = i;
    l->last = i;
}

static int32_t unlink_first(pl_sim *s, sim_list *l)
{
    const int32_t i = l->first;
    l->first = s->notes[i].next;
    if (l->first < 0)
        l->last = SIM_NONE;
    return i;
}

int sim_take(pl_sim *s, sim_list *l, sim_note *out)
{
    if (l->first < 0)
        return 0;
    const int32_t i = unlink_first(s, l);
    *out = s->notes[i];
    s->notes[i].next = s->free_note;
    s->free_note = i;
    return 1;
}

static int32_t new_note(pl_sim *s)
{
    const int32_t i = s->free_note;
    if (i >= 0) {
        s->free_note = s->notes[i].next;
        return i;
    }
    if (s->status == PL_OK)
        s->status =
            sim_grow((void **)&s->notes, s->n_notes, &s->room_notes, sizeof *s->notes, &s->err);
    return s->status == PL_OK ? s->n_notes++ : SIM_NONE;
}

static void post(pl_sim *s, const sim_note *n)
{
    const int32_t i = new_note(s);
    if (i < 0)
        return;
    s->notes[i] = *n;
    s->notes[i].due_ns = s->now_ns + (int64_t)(s->o.latency_s * 1e9);
    append(s, &s->wire, i);
}

static uint32_t uid_at(const pl_span *uids, uint32_t i)
{
    uint32_t uid;
    memcpy(&uid, (const char *)uids->data + (size_t)i * 4, 4);
    return uid;
}

/* What the coordinator says: what matters of it. */
static void on_send(void *ctx, const pl_peer *peer, const pl_msg *m)
{
    pl_sim *s = ctx;
    sim_note n = {.type = m->h.type};
    uint32_t role, i;
    memcpy(&role, peer->id, sizeof role);
    memcpy(&i, peer->id + 8, sizeof i);
    n.to = role == PL_ROLE_WORKER ? (int32_t)i : SIM_TRAINER;
    if (s->out)
        s->out->n_messages++;
    switch (m->h.type) {
    case PL_MSG_LEASE:
        n.batch = m->u.lease.batch;
        n.uid = m->u.lease.uid;
        n.version = m->u.lease.policy_version;
        n.prefix = m->u.lease.prefix.n;
        break;
    case PL_MSG_VERSION:
        n.version = m->u.version.version;
        break;
    case PL_MSG_TRAIN:
        n.session = m->u.train.session;
        n.version = m->u.train.policy_version;
        n.is_lead = m->u.train.is_lead != 0;
        break;
    case PL_MSG_HALT:
        n.session = m->u.halt.session;
        break;
    case PL_MSG_RESULT:
        n.batch = m->u.result.batch;
        n.uid = m->u.result.uid;
        break;
    case PL_MSG_REWARD:
        n.batch = m->u.reward.batch;
        n.uid = m->u.reward.uid;
        break;
    case PL_MSG_REVOKE:
    case PL_MSG_HANDOVER:
        for (uint32_t k = 0; k < m->u.uids.uids.n; k++) {
            n.batch = m->u.uids.batch;
            n.uid = uid_at(&m->u.uids.uids, k);
            post(s, &n);
        }
        return;
    case PL_MSG_WELCOME:
    case PL_MSG_CONSUME:
        break;
    case PL_MSG_REJECT:
        if (s->status == PL_OK)
            s->status = pl_fail(&s->err, PL_E_FORMAT, "simulation: the coordinator refuses: %s",
                m->u.reject.reason);
        return;
    default: /* ACK, BATCH, ...: nothing follows from them here */
        return;
    }
    post(s, &n);
}

static void on_drop(void *ctx, const pl_peer *peer)
{
    (void)ctx;
    (void)peer;
}

static pl_status on_record(void *ctx, const pl_msg *m, pl_error *err)
{
    (void)ctx;
    (void)m;
    (void)err;
    return PL_OK;
}

/* What was recorded is durable after one fsync, as soon as nobody else speaks. */
static void commit_soon(pl_sim *s)
{
    if (s->is_syncing || !pl_coordinator_unsynced(s->c))
        return;
    s->is_syncing = 1;
    plan(s, (sim_event){.due_ns = s->now_ns + (int64_t)(s->o.fsync_s * 1e9), .who = SIM_SYNC});
}

static void say(pl_sim *s, const pl_peer *peer, uint64_t incarnation, uint64_t seq, uint16_t type)
{
    if (s->status != PL_OK)
        return;
    s->msg.h = (pl_header){.protocol = PL_PROTOCOL,
        .type = type,
        .epoch = pl_coordinator_epoch(s->c),
        .incarnation = incarnation,
        .seq = seq};
    if (s->out)
        s->out->n_messages++;
    s->status = pl_coordinator_message(s->c, s->now_ns, peer, &s->msg, &s->err);
    commit_soon(s);
}

void sim_say(pl_sim *s, sim_worker *w, uint16_t type)
{
    say(s, &w->peer, (uint64_t)w->i + 1, ++w->seq, type);
}

void sim_trainer_say(pl_sim *s, uint16_t type)
{
    say(s, &s->trainer, UINT64_MAX, ++s->trainer_seq, type);
}

/* ---- what workers do, as time passes ---- */

void sim_set_mode(pl_sim *s, sim_worker *w, sim_mode mode)
{
    if (mode == w->mode)
        return;
    const int64_t since = w->mode_ns > s->begin_ns ? w->mode_ns : s->begin_ns;
    if (s->out && w->mode == SIM_BUSY)
        w->busy_ns += s->now_ns - since;
    if (s->out && w->mode == SIM_TRAINING)
        w->session_ns += s->now_ns - since;
    if (s->out && w->mode == SIM_TRAINING && w->is_lead && s->o.optimizer_step_s > 0)
        s->out->n_drafter_steps +=
            (int64_t)((double)(s->now_ns - since) * 1e-9 / s->o.optimizer_step_s);
    const sim_change change = {.at_ns = s->now_ns,
        .busy = (int8_t)((mode == SIM_BUSY) - (w->mode == SIM_BUSY)),
        .training = (int8_t)((mode == SIM_TRAINING) - (w->mode == SIM_TRAINING))};
    s->n_training += change.training;
    w->mode = mode;
    w->mode_ns = s->now_ns;
    if (s->status == PL_OK)
        s->status = sim_grow(
            (void **)&s->changes, s->n_changes, &s->room_changes, sizeof *s->changes, &s->err);
    if (s->status == PL_OK)
        s->changes[s->n_changes++] = change;
}

/* ---- time passes ---- */

static void deliver(pl_sim *s)
{
    const int32_t to = s->notes[s->wire.first].to;
    if (to == SIM_TRAINER) {
        sim_note n;
        (void)sim_take(s, &s->wire, &n);
        sim_trainer_hear(s, &n);
        return;
    }
    append(s, &s->workers[to].inbox, unlink_first(s, &s->wire));
    sim_worker *w = &s->workers[to];
    if (w->is_in_round || w->is_waking)
        return;
    w->is_waking = 1;
    sim_plan(s, w, s->now_ns); /* when all that comes now is there */
}

static void happen(pl_sim *s, const sim_event *e)
{
    switch (e->who) {
    case SIM_TICK:
        s->status = pl_coordinator_tick(s->c, s->now_ns, &s->err);
        plan(s, (sim_event){.due_ns = s->now_ns + SIM_TICK_MS * MS, .who = SIM_TICK});
        break;
    case SIM_SYNC:
        s->is_syncing = 0;
        s->status = pl_coordinator_synced(s->c, s->now_ns, &s->err);
        commit_soon(s);
        break;
    case SIM_TRAINER:
        s->msg.u.status = (pl_msg_status){0};
        if (s->is_joined)
            sim_trainer_say(s, PL_MSG_STATUS);
        plan(s, (sim_event){.due_ns = s->now_ns + s->o.heartbeat_ms * MS, .who = SIM_TRAINER});
        break;
    default:
        if (e->stamp == s->workers[e->who].stamp)
            sim_worker_wake(s, &s->workers[e->who]);
        break;
    }
}

static pl_status stuck(pl_sim *s, pl_error *err)
{
    char what[512] = "";
    FILE *f = fmemopen(what, sizeof what - 1, "w");
    if (f) {
        pl_coordinator_describe(s->c, s->now_ns, f);
        (void)fclose(f);
    }
    for (char *c = what; *c; c++)
        *c = *c == '\n' ? ';' : *c;
    return pl_fail(err, PL_E_TIMEOUT,
        "simulation: nothing has moved for %d virtual seconds, %d of %d samples are done: %.300s",
        SIM_STUCK_S, s->n_ready, s->n_samples, what);
}

pl_status sim_pass_time(pl_sim *s, const int *n, int target, pl_error *err)
{
    s->moved_ns = s->now_ns;
    while (*n != target && s->status == PL_OK) {
        const int64_t due = s->wire.first >= 0 ? s->notes[s->wire.first].due_ns : INT64_MAX;
        if (due <= s->heap[0].due_ns) {
            s->now_ns = due;
            deliver(s);
        } else {
            const sim_event e = next_plan(s);
            s->now_ns = e.due_ns;
            happen(s, &e);
        }
        if (s->now_ns - s->moved_ns > SIM_STUCK_S * 1000 * MS)
            return stuck(s, err);
    }
    if (s->status != PL_OK && err)
        *err = s->err;
    return s->status;
}

/* ---- opening ---- */

void pl_sim_defaults(pl_sim_options *o)
{
    *o = (pl_sim_options){.n_workers = 1,
        .max_num_seqs = 64,
        .max_rows = 512,
        .max_spec_rows = 16,
        .max_spec_depth = 8,
        .scale = 1,
        .acceptance = 1,
        .slowdown = 1,
        .pace = 1,
        .heartbeat_ms = 500,
        .lost_ms = 10000,
        .latency_s = 1e-4,
        .fsync_s = 1e-3};
}

static pl_status check_options(const pl_sim_options *o, pl_error *err)
{
    if (o->n_workers < 1 || o->n_workers > PL_SIM_WORKERS)
        return pl_fail(err, PL_E_INVAL, "simulation: %d workers are not in 1..%d", o->n_workers,
            PL_SIM_WORKERS);
    if (o->max_num_seqs < 1 || o->max_num_seqs > 1024 || o->max_rows < o->max_num_seqs ||
        o->max_rows > 1 << 20)
        return pl_fail(err, PL_E_INVAL,
            "simulation: max_num_seqs %d is not in 1..1024, or max_rows %d is less, or too many",
            o->max_num_seqs, o->max_rows);
    if (o->scale < 1 || o->scale > PL_SIM_SAMPLES || !(o->acceptance >= 0) ||
        !(o->acceptance <= 100) || !(o->slowdown >= 1) || !(o->slowdown <= 1000) ||
        !(o->pace > 0) || !(o->pace <= 1000))
        return pl_fail(err, PL_E_INVAL,
            "simulation: scale %d is at least 1, acceptance %g in 0..100, slowdown %g in 1..1000, "
            "pace %g more than 0",
            o->scale, o->acceptance, o->slowdown, o->pace);
    if (o->max_spec_rows < 1 || o->max_spec_rows > PL_DRAFT_MAX || o->max_spec_depth < 0 ||
        (o->rows == PL_SIM_FIXED && (o->fixed_rows < 1 || o->fixed_rows > PL_DRAFT_MAX)))
        return pl_fail(err, PL_E_INVAL, "simulation: trees of %d rows (fixed: %d), 1..%d can be",
            o->max_spec_rows, o->fixed_rows, PL_DRAFT_MAX);
    if (o->optimizer_step_s != 0 && !(o->optimizer_step_s >= 1e-6))
        return pl_fail(err, PL_E_INVAL, "simulation: %g s are no time of an optimizer step",
            o->optimizer_step_s);
    if (!o->heartbeat_ms || o->lost_ms <= o->heartbeat_ms || !(o->latency_s >= 0) ||
        !(o->latency_s <= 60) || !(o->fsync_s >= 0) || !(o->fsync_s <= 60))
        return pl_fail(err, PL_E_INVAL,
            "simulation: heartbeat %u ms, lost after %u ms, latency %g s, fsync %g s: the second "
            "is more than the first, the others are in 0..60",
            o->heartbeat_ms, o->lost_ms, o->latency_s, o->fsync_s);
    return PL_OK;
}

static pl_peer peer_of(uint32_t role, uint64_t i)
{
    pl_peer p = {{0}};
    memcpy(p.id, &role, sizeof role);
    memcpy(p.id + 8, &i, sizeof i);
    return p;
}

static pl_status open_coordinator(pl_sim *s, pl_error *err)
{
    const pl_coordinator_options o = {.run = "00000000000000000000000000000000",
        .build = "simulation",
        .numeric_class = "simulation",
        .heartbeat_ms = s->o.heartbeat_ms,
        .lost_ms = s->o.lost_ms,
        .resend_ms = 1000,
        .n_workers = (uint32_t)s->o.n_workers,
        .spot_min_idle = s->o.spot_min_idle,
        .consolidate_below = s->o.consolidate_below,
        .members_max = PL_SIM_WORKERS + 1};
    const pl_coordinator_io io = {s, on_send, on_drop, on_record, NULL};
    pl_status st = pl_coordinator_new(&s->c, &o, &io, s->log, err);
    if (st == PL_OK)
        st = pl_coordinator_begin(s->c, s->now_ns, err);
    return st == PL_OK ? pl_coordinator_synced(s->c, s->now_ns, err) : st;
}

static pl_status join_all(pl_sim *s, pl_error *err)
{
    plan(s, (sim_event){.due_ns = s->now_ns, .who = SIM_TICK});
    plan(s, (sim_event){.due_ns = s->now_ns + s->o.heartbeat_ms * MS, .who = SIM_TRAINER});
    s->trainer = peer_of(PL_ROLE_TRAINER, 0);
    s->msg.u.hello = (pl_msg_hello){.role = PL_ROLE_TRAINER,
        .name = "trainer",
        .numeric_class = "simulation",
        .build = "simulation",
        .host = "sim"};
    sim_trainer_say(s, PL_MSG_HELLO);
    for (int i = 0; i < s->o.n_workers; i++) {
        sim_worker *w = &s->workers[i];
        *w = (sim_worker){.i = i,
            .peer = peer_of(PL_ROLE_WORKER, (uint64_t)i),
            .version = SIM_NO_VERSION,
            .inbox = {SIM_NONE, SIM_NONE}};
        sim_worker_hello(s, w);
    }
    pl_status st = sim_pass_time(s, &s->is_joined, 1, err);
    return st == PL_OK ? sim_pass_time(s, &s->n_joined, s->o.n_workers, err) : st;
}

pl_status pl_sim_new(pl_sim **out, const pl_sim_options *o, const pl_sim_costs *costs,
    const pl_log *log, pl_error *err)
{
    pl_status st = check_options(o, err);
    if (st != PL_OK)
        return st;
    pl_sim *s = calloc(1, sizeof *s);
    if (!s)
        return pl_fail(err, PL_E_NOMEM, "simulation: no memory");
    s->o = *o;
    s->costs = costs;
    s->log = log;
    s->now_ns = 1000 * 1000 * MS; /* 0 means never to the coordinator */
    s->free_note = SIM_NONE;
    s->wire = (sim_list){SIM_NONE, SIM_NONE};
    s->workers = calloc((size_t)o->n_workers, sizeof *s->workers);
    if (!s->workers)
        st = pl_fail(err, PL_E_NOMEM, "simulation: no memory for %d workers", o->n_workers);
    if (st == PL_OK)
        st = sim_costs_open(s, err);
    if (st == PL_OK)
        st = open_coordinator(s, err);
    if (st == PL_OK)
        st = join_all(s, err);
    if (st != PL_OK) {
        pl_sim_free(s);
        return st;
    }
    *out = s;
    return PL_OK;
}

void pl_sim_free(pl_sim *s)
{
    if (!s)
        return;
    pl_coordinator_free(s->c);
    for (int i = 0; s->workers && i < s->o.n_workers; i++)
        sim_worker_free(&s->workers[i]);
    sim_costs_close(s);
    free(s->workers);
    free(s->heap);
    free(s->notes);
    free(s->state);
    free(s->records);
    free(s->tokens);
    free(s->logprobs);
    free(s->sources);
    free(s->changes);
    free(s);
}
