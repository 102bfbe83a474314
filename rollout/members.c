/* rollout/members.c - who takes part in the run.
 *
 * States of a worker.  It is in exactly one of them; only this file changes it, by members_move.
 *
 *                     .--(loads a version)--.
 *                     v                     |
 *   HELLO --> JOINING --(first STATUS)--> IDLE --(it says so)--> TRAINING --(asked)--> STOPPING
 *                ^ |                      |  ^                      |                     |
 *                | |          (lease)-----'  |                      |                     |
 *                | |             v           |                      |                     |
 *                | '---------> BUSY --(last sample)                 |                     |
 *                |                           '--(shows no session)--'---------------------'
 *              LOST <--(silence)-- any --(SIGTERM, its own or the run's)--> DRAINING --> gone
 *
 *   (none)   -> JOINING  [members_hello]   name, role and numeric class are right
 *   LOST     -> JOINING  [members_hello]   it came back, under the same routing id
 *   JOINING  -> BUSY     [members_update]  its first STATUS lists samples that become its leases
 *   JOINING  -> IDLE     [members_status]  it is ready
 *   IDLE     -> BUSY     [members_update]  a lease was granted
 *   BUSY     -> IDLE     [members_update]  its last lease ended
 *   IDLE     -> JOINING  [members_status]  it loads weights
 *   IDLE     -> TRAINING [sessions_on_status]  it is in the session that it was asked to join
 *   TRAINING -> STOPPING [sessions_tick, sessions_call_back, sessions_on_status]  it was asked to
 *                        give the device back
 *   JOINING, IDLE -> STOPPING [sessions_on_status]  it is in a session that is over, or of another
 *                        epoch: it is asked to leave that
 *   TRAINING, STOPPING -> IDLE    [members_status]  it gave the device back
 *   TRAINING, STOPPING -> JOINING [members_status]  and loads weights already
 *   any      -> DRAINING [members_status, members_drain]  no lease any more, it hands over
 *   any      -> LOST     [members_tick]    lost_ms of silence, or its process has ended; its leases
 *                                          are pending again
 *   any      -> gone     [members_leave, members_quarantine, members_tick]  forgotten
 *
 * The trainer has JOINING, IDLE and LOST only. */
#include "rollout/coordinator_internal.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define TO(state) (1u << PL_WORKER_##state)

/* transitions[from]: the states that may follow. */
static const unsigned transitions[] = {
    [PL_WORKER_JOINING] = TO(BUSY) | TO(IDLE) | TO(STOPPING) | TO(DRAINING) | TO(LOST),
    [PL_WORKER_BUSY] = TO(IDLE) | TO(DRAINING) | TO(LOST),
    [PL_WORKER_IDLE] =
        TO(BUSY) | TO(JOINING) | TO(TRAINING) | TO(STOPPING) | TO(DRAINING) | TO(LOST),
    [PL_WORKER_TRAINING] = TO(STOPPING) | TO(IDLE) | TO(JOINING) | TO(DRAINING) | TO(LOST),
    [PL_WORKER_STOPPING] = TO(IDLE) | TO(JOINING) | TO(DRAINING) | TO(LOST),
    [PL_WORKER_DRAINING] = TO(LOST),
    [PL_WORKER_LOST] = TO(JOINING),
};

const char *members_state_name(pl_worker_state s)
{
    static const char *const names[] = {
        "JOINING", "BUSY", "IDLE", "TRAINING", "STOPPING", "DRAINING", "LOST"};
    return (unsigned)s < sizeof names / sizeof names[0] ? names[s] : "?";
}

void members_move(pl_coordinator *c, member *m, pl_worker_state to, const char *cause)
{
    if (m->state == to)
        return;
    if (!(transitions[m->state] & 1u << to)) {
        c->stats.n_impossible++;
        pl_log_error(c->log,
            "bug: event=transition worker=%s from=%s to=%s cause=%s is impossible; it stays; "
            "please report it",
            m->name, members_state_name(m->state), members_state_name(to), cause);
        return;
    }
    pl_log_debug(c->log, "event=transition worker=%s from=%s to=%s cause=%s", m->name,
        members_state_name(m->state), members_state_name(to), cause);
    m->state = to;
    c->want_grant = 1;
}

void members_update(pl_coordinator *c, member *m)
{
    if (m->state == PL_WORKER_BUSY && !m->n_leased)
        members_move(c, m, PL_WORKER_IDLE, "last lease ended");
    else if ((m->state == PL_WORKER_IDLE || m->state == PL_WORKER_JOINING) && m->n_leased)
        members_move(c, m, PL_WORKER_BUSY, "lease");
    c->want_grant = 1;
}

member *members_find(const pl_coordinator *c, const pl_peer *peer)
{
    for (int i = 0; i < c->n_members; i++)
        if (memcmp(c->members[i]->peer.id, peer->id, PL_PEER_BYTES) == 0)
            return c->members[i];
    return NULL;
}

member *members_trainer(const pl_coordinator *c)
{
    for (int i = 0; i < c->n_members; i++)
        if (c->members[i]->role == PL_ROLE_TRAINER && c->members[i]->state != PL_WORKER_LOST)
            return c->members[i];
    return NULL;
}

void members_reject(pl_coordinator *c, const pl_peer *to, pl_status code, const char *fmt, ...)
{
    char reason[400];
    va_list args;
    va_start(args, fmt);
    if (vsnprintf(reason, sizeof reason, fmt, args) < 0)
        reason[0] = '\0';
    va_end(args);
    c->stats.n_rejected++;
    pl_log_debug(c->log, "event=reject code=%d reason=%s", (int)code, reason);
    pl_msg m = {.u.reject = {.code = (uint32_t)code, .reason = reason}};
    coordinator_send(c, to, &m, PL_MSG_REJECT);
}

void members_remove(pl_coordinator *c, member *m)
{
    leases_return(c, m, 1);
    for (int i = 0; i < c->n_members; i++)
        if (c->members[i] == m) {
            memmove(&c->members[i], &c->members[i + 1],
                (size_t)(c->n_members - i - 1) * sizeof c->members[0]);
            c->n_members--;
            break;
        }
    free(m);
    c->want_grant = 1;
}

/* ---- quarantine ---- */

static refused *find_refused(const pl_coordinator *c, const char *name, uint64_t incarnation)
{
    for (int i = 0; i < c->n_refused; i++)
        if (c->refused[i].incarnation == incarnation &&
            (!name || strcmp(c->refused[i].name, name) == 0))
            return &c->refused[i];
    return NULL;
}

int members_turn_away(
    pl_coordinator *c, const pl_peer *from, const char *name, uint64_t incarnation)
{
    const refused *r = find_refused(c, name, incarnation);
    if (!r)
        return 0;
    if (r->is_open) {
        members_reject(c, from, PL_E_TIMEOUT,
            "%s is quarantined: its sample %u differs from the durable one; say HELLO again, the "
            "audit will tell which is true",
            r->name, r->uid);
        return 1;
    }
    members_reject(c, from, PL_E_INVAL, "%s is quarantined: what it sent was wrong", r->name);
    c->io.drop(c->io.ctx, from);
    return 1;
}

/* NULL: no memory; it is thrown out all the same. */
static refused *remember_refused(pl_coordinator *c, const char *name, uint64_t incarnation)
{
    refused *r = find_refused(c, name, incarnation);
    if (r)
        return r;
    if (c->n_refused == c->next_refused && c->n_refused < QUARANTINE_MAX) {
        refused *more = realloc(c->refused, (size_t)(c->n_refused + 1) * sizeof *more);
        if (!more)
            return NULL;
        c->refused = more;
        c->n_refused++;
    }
    r = &c->refused[c->next_refused++];
    if (c->next_refused == QUARANTINE_MAX)
        c->next_refused = 0;
    *r = (refused){.incarnation = incarnation};
    memcpy(r->name, name, strnlen(name, NAME_ROOM - 1));
    return r;
}

static void throw_out(
    pl_coordinator *c, const char *name, uint64_t incarnation, pl_status code, const char *reason)
{
    c->stats.n_quarantined++;
    pl_log_error(c->log, "event=quarantine worker=%s incarnation=%016llx reason=%s", name,
        (unsigned long long)incarnation, reason);
    leases_distrust(c, incarnation);
    for (int i = 0; i < c->n_members; i++) {
        member *m = c->members[i];
        if (m->role != PL_ROLE_WORKER || m->incarnation != incarnation)
            continue;
        const pl_peer peer = m->peer;
        leases_return(c, m, 0);
        members_reject(c, &peer, code, "quarantined: %s", reason);
        members_remove(c, m);
        if (code != PL_E_TIMEOUT)
            c->io.drop(c->io.ctx, &peer);
        return;
    }
}

void members_quarantine(
    pl_coordinator *c, const char *name, uint64_t incarnation, const char *reason)
{
    refused *r = remember_refused(c, name, incarnation);
    if (r)
        r->is_open = 0;
    throw_out(c, name, incarnation, PL_E_INVAL, reason);
}

void members_suspend(
    pl_coordinator *c, const member *who, const batch *b, const sample *s, const char *reason)
{
    char name[NAME_ROOM];
    memcpy(name, who->name, sizeof name);
    refused *r = remember_refused(c, name, who->incarnation);
    if (r) {
        r->is_open = 1;
        r->batch = b->id;
        r->uid = s->uid;
        r->attempt = s->attempt;
    }
    throw_out(c, name, who->incarnation, PL_E_TIMEOUT, reason);
}

void members_convict(pl_coordinator *c, uint64_t id)
{
    for (int i = 0; i < c->n_refused; i++)
        if (c->refused[i].is_open && c->refused[i].batch == id)
            c->refused[i].is_open = 0;
}

static void let_in(pl_coordinator *c, refused *r, const char *cause)
{
    pl_log_warn(c->log, "event=pardon worker=%s sample=%u cause=%s", r->name, r->uid, cause);
    *r = (refused){0};
    c->stats.n_pardoned++;
}

void members_release(pl_coordinator *c, uint64_t id)
{
    for (int i = 0; i < c->n_refused; i++)
        if (c->refused[i].is_open && c->refused[i].batch == id)
            let_in(c, &c->refused[i], "nobody audits it");
}

void members_pardon(pl_coordinator *c, uint64_t id, const sample *s)
{
    for (int i = 0; i < c->n_refused; i++) {
        refused *r = &c->refused[i];
        if (r->is_open && r->batch == id && r->uid == s->uid && r->attempt == s->attempt)
            let_in(c, r, "the other one was refused");
    }
}

/* ---- HELLO ---- */

static void welcome(pl_coordinator *c, int64_t now_ns, member *m)
{
    pl_msg w = {.u.welcome = {.run = c->run,
                    .heartbeat_ms = c->o.heartbeat_ms,
                    .lost_ms = c->o.lost_ms,
                    .config = {c->o.config, c->o.n_config},
                    .config_hash = c->o.config_hash}};
    coordinator_send(c, &m->peer, &w, PL_MSG_WELCOME);
    if (m->role == PL_ROLE_WORKER)
        steps_send_version(c, now_ns, m);
    if (m->role == PL_ROLE_WORKER)
        drafters_send(c, now_ns, m);
    if (c->is_done) {
        pl_msg stop = {0};
        coordinator_send(c, &m->peer, &stop, PL_MSG_STOP);
    }
}

/* Reject for good what can never be a member.  Returns 1 if it did. */
static int refuse_hello(pl_coordinator *c, const pl_peer *from, const pl_msg *m)
{
    const pl_msg_hello *h = &m->u.hello;
    const size_t n_name = strlen(h->name);
    const uint64_t had = c->stats.n_rejected;
    if (h->role != PL_ROLE_WORKER && h->role != PL_ROLE_TRAINER)
        members_reject(c, from, PL_E_INVAL, "role %u is neither worker nor trainer", h->role);
    else if (!n_name || n_name >= NAME_ROOM)
        members_reject(
            c, from, PL_E_INVAL, "a name has 1 to %d bytes, not %zu", NAME_ROOM - 1, n_name);
    else if (strcmp(h->numeric_class, c->numeric_class) != 0)
        members_reject(c, from, PL_E_CONFIG,
            "numeric class '%.100s' differs from the run's '%.100s': its bits would not be equal; "
            "start %s with the run's build",
            h->numeric_class, c->numeric_class, h->name);
    else if (h->role == PL_ROLE_WORKER && !h->max_seqs)
        members_reject(c, from, PL_E_INVAL, "%s runs 0 samples at once", h->name);
    if (c->stats.n_rejected == had)
        return 0;
    pl_log_warn(c->log, "event=refused name=%.*s", NAME_ROOM, h->name);
    c->io.drop(c->io.ctx, from);
    return 1;
}

static int is_dead(const pl_coordinator *c, const member *m)
{
    return c->io.is_dead && c->io.is_dead(c->io.ctx, &m->peer);
}

/* Another peer under this name, or another trainer: replaced when it is lost, else the new one must
 * wait.  Returns 1 if it must. */
static int must_wait(pl_coordinator *c, int64_t now_ns, const pl_peer *from, const pl_msg_hello *h)
{
    const uint32_t wait_ms = c->o.lost_ms < REPLACE_MS ? c->o.lost_ms : REPLACE_MS;
    for (int i = 0; i < c->n_members; i++) {
        member *m = c->members[i];
        const int is_same_place = strcmp(m->name, h->name) == 0 ||
                                  (m->role == PL_ROLE_TRAINER && h->role == PL_ROLE_TRAINER);
        if (!is_same_place || memcmp(m->peer.id, from->id, PL_PEER_BYTES) == 0)
            continue;
        if (m->state != PL_WORKER_LOST && !coordinator_is_late(now_ns, m->heard_ns, wait_ms) &&
            !is_dead(c, m)) {
            members_reject(c, from, PL_E_TIMEOUT,
                "%s is here already (%s), heard %lld ms ago: say HELLO again after %u ms", m->name,
                m->role == PL_ROLE_TRAINER ? "trainer" : "worker",
                (long long)((now_ns - m->heard_ns) / NS_PER_MS), wait_ms);
            return 1;
        }
        pl_log_info(c->log, "event=replaced name=%s", m->name);
        members_remove(c, m);
        i--;
    }
    return 0;
}

static pl_status add(pl_coordinator *c, member **out, const pl_peer *from, pl_error *err)
{
    const pl_status st = coordinator_grow(
        (void **)&c->members, c->n_members, &c->room_members, sizeof c->members[0], err);
    if (st != PL_OK)
        return st;
    member *m = calloc(1, sizeof *m);
    if (!m)
        return pl_fail(err, PL_E_NOMEM, "coordinator: no memory for a member");
    m->peer = *from;
    m->state = PL_WORKER_LOST; /* until members_hello moves it */
    c->members[c->n_members++] = m;
    *out = m;
    return PL_OK;
}

pl_status members_hello(
    pl_coordinator *c, int64_t now_ns, const pl_peer *from, const pl_msg *m, pl_error *err)
{
    const pl_msg_hello *h = &m->u.hello;
    if (refuse_hello(c, from, m) || members_turn_away(c, from, h->name, m->h.incarnation) ||
        must_wait(c, now_ns, from, h))
        return PL_OK;
    member *who = members_find(c, from);
    const int most = c->o.members_max > 0 ? c->o.members_max : MEMBERS_MAX;
    if (!who && c->n_members >= most) {
        members_reject(c, from, PL_E_TIMEOUT, "the run has %d members already", most);
        return PL_OK;
    }
    if (!who) {
        const pl_status st = add(c, &who, from, err);
        if (st != PL_OK)
            return st;
    } else if (who->role != h->role || strcmp(who->name, h->name) != 0) {
        members_reject(c, from, PL_E_INVAL, "this connection is %s already", who->name);
        return PL_OK;
    }
    who->heard_ns = now_ns;
    if (who->state == PL_WORKER_LOST) {
        who->incarnation = m->h.incarnation;
        who->role = h->role;
        memcpy(who->name, h->name, strlen(h->name) + 1);
        snprintf(who->host, sizeof who->host, "%.*s", NAME_ROOM - 1, h->host);
        who->max_seqs = h->max_seqs < SEQS_MAX ? h->max_seqs : SEQS_MAX;
        who->policy_version = UINT32_MAX;
        who->pid = h->pid;
        who->n_threads = h->n_threads;
        who->n_held = 0;
        who->has_status = 0;
        who->is_draining = 0;
        who->joined_ns = now_ns;
        who->session = who->shown_session = who->declined = 0;
        who->is_lead = who->n_told = who->n_told_drafter = 0;
        who->halted_ns = 0;
        who->drafter_version = 0;
        members_move(c, who, PL_WORKER_JOINING, "HELLO");
        coordinator_progressed(c, now_ns);
        if (who->role == PL_ROLE_TRAINER && who->incarnation != c->trainer) {
            c->trainer = who->incarnation;
            c->n_trainers++;
        }
        pl_log_info(c->log, "event=join name=%s role=%u threads=%u pid=%u", who->name, who->role,
            h->n_threads, h->pid);
    }
    welcome(c, now_ns, who);
    return PL_OK;
}

static int is_as_fast(const member *a, const member *b)
{
    return a->role == PL_ROLE_WORKER && a->state != PL_WORKER_LOST &&
           a->n_threads == b->n_threads && strcmp(a->host, b->host) == 0;
}

/* Workers of one host with as many threads are equally fast: what they measure differs by the
 * lengths that they happened to get, and would give the same one too much again.  The middle one
 * (of two the lower): one that lies, or that its machine slows down, says nothing of the others. */
static void share_rate(pl_coordinator *c, const member *who)
{
    float rates[MEMBERS_MAX];
    int n = 0;
    for (int i = 0; i < c->n_members; i++) {
        const member *m = c->members[i];
        if (is_as_fast(m, who) && m->rate > 0 && n < MEMBERS_MAX) {
            int at = n++;
            for (; at > 0 && rates[at - 1] > m->rate; at--)
                rates[at] = rates[at - 1];
            rates[at] = m->rate;
        }
    }
    for (int i = 0; i < c->n_members; i++)
        if (is_as_fast(c->members[i], who))
            c->members[i]->fair_rate = n ? rates[(n - 1) / 2] : 0;
}

int members_status(pl_coordinator *c, int64_t now_ns, member *who, const pl_msg *m)
{
    const pl_msg_status *s = &m->u.status;
    if (who->status_seq && m->h.seq <= who->status_seq)
        return 0;
    who->status_seq = m->h.seq;
    who->has_status = 1;
    who->drafter_version = s->drafter_version;
    if (who->role == PL_ROLE_TRAINER) {
        if (who->state == PL_WORKER_JOINING)
            members_move(c, who, PL_WORKER_IDLE, "STATUS");
        return 1;
    }
    if (who->policy_version != s->policy_version) {
        who->policy_version = s->policy_version;
        c->want_grant = 1;
    }
    const float rate = s->rate > 0 && s->rate < 1e9f ? s->rate : 0;
    if (rate != who->rate || !who->fair_rate) {
        who->rate = rate;
        share_rate(c, who);
    }
    who->n_held = s->held.n;
    if (who->is_draining || s->state == PL_WORKER_DRAINING) {
        members_move(c, who, PL_WORKER_DRAINING, "STATUS");
    } else if (s->state == PL_WORKER_BUSY || s->state == PL_WORKER_IDLE) {
        /* Which of the two is ours to say: it may not know of its newest lease. */
        if (who->state != PL_WORKER_BUSY)
            members_move(c, who, PL_WORKER_IDLE, "STATUS");
    } else if (s->state == PL_WORKER_JOINING) {
        if (!who->n_leased)
            members_move(c, who, PL_WORKER_JOINING, "STATUS");
    }
    sessions_on_status(c, now_ns, who, s);
    return 1;
}

void members_leave(pl_coordinator *c, member *who)
{
    pl_log_info(c->log, "event=leave name=%s leases=%u", who->name, who->n_leased);
    members_remove(c, who);
}

static void lose(pl_coordinator *c, int64_t now_ns, member *m, const char *cause)
{
    pl_log_warn(c->log, "event=lost name=%s cause=%s silent_ms=%lld leases=%u", m->name, cause,
        (long long)((now_ns - m->heard_ns) / NS_PER_MS), m->n_leased);
    members_move(c, m, PL_WORKER_LOST, cause);
    leases_return(c, m, 1);
    c->stats.n_lost++;
}

static void send_drain(pl_coordinator *c, int64_t now_ns, member *m)
{
    m->told_drain_ns = now_ns;
    pl_msg d = {0};
    coordinator_send(c, &m->peer, &d, PL_MSG_DRAIN);
}

void members_forgive(pl_coordinator *c, int64_t now_ns, int64_t away_ns)
{
    for (int i = 0; i < c->n_members; i++) {
        member *m = c->members[i];
        m->heard_ns = m->heard_ns + away_ns < now_ns ? m->heard_ns + away_ns : now_ns;
    }
}

/* NULL, or why it takes part no more. */
static const char *why_lost(pl_coordinator *c, int64_t now_ns, member *m)
{
    if (coordinator_is_late(now_ns, m->heard_ns, c->o.lost_ms))
        return "silence";
    if (!coordinator_is_late(now_ns, m->asked_ns, DEAD_MS))
        return NULL;
    m->asked_ns = now_ns;
    /* Asked twice: what it sent before its death may be on its way. */
    const int was_dead = m->was_dead;
    m->was_dead = is_dead(c, m);
    return was_dead && m->was_dead ? "death" : NULL;
}

void members_tick(pl_coordinator *c, int64_t now_ns)
{
    for (int i = 0; i < c->n_members; i++) {
        member *m = c->members[i];
        if (m->state == PL_WORKER_LOST) {
            if (coordinator_is_late(now_ns, m->heard_ns, c->o.lost_ms + FORGET_LOST_MS)) {
                members_remove(c, m);
                i--;
            }
            continue;
        }
        const char *cause = why_lost(c, now_ns, m);
        if (cause) {
            lose(c, now_ns, m, cause);
            continue;
        }
        drafters_tick(c, now_ns, m);
        if (m->role != PL_ROLE_WORKER)
            continue;
        if (c->version_state == DURABLE && m->policy_version != c->version.version &&
            coordinator_is_late(now_ns, m->told_version_ns, c->o.resend_ms))
            steps_send_version(c, now_ns, m);
        if (c->is_draining && !m->is_draining)
            m->is_draining = 1;
        if (m->is_draining && coordinator_is_late(now_ns, m->told_drain_ns, c->o.resend_ms))
            send_drain(c, now_ns, m);
    }
}

void members_drain(pl_coordinator *c, int64_t now_ns)
{
    for (int i = 0; i < c->n_members; i++) {
        member *m = c->members[i];
        if (m->role != PL_ROLE_WORKER || m->state == PL_WORKER_LOST || m->is_draining)
            continue;
        m->is_draining = 1;
        members_move(c, m, PL_WORKER_DRAINING, "drain");
        send_drain(c, now_ns, m);
    }
}

void members_stop(pl_coordinator *c)
{
    pl_msg stop = {0};
    for (int i = 0; i < c->n_members; i++)
        coordinator_send(c, &c->members[i]->peer, &stop, PL_MSG_STOP);
}
