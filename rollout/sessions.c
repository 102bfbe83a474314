/* rollout/sessions.c - sessions of the spot trainer: workers with nothing to roll out train the
 * drafter until somebody needs them.
 *
 * One session runs at a time, of one batch, one policy and one host, and one worker leads it.  It
 * begins when nothing of a training batch waits for a worker, enough workers are idle and another
 * still rolls out; who becomes idle later on that host joins.  It ends with the batch, the policy
 * or the run, never because some of its workers have done their part.  When its lead is gone the
 * next one leads session + 1: ids rise, over restarts too, and whoever owns the state by a lower id
 * has lost it.  TRAIN and HALT are said again until STATUS shows them.  What a STATUS shows that is
 * not wanted here - an id of an earlier epoch, a session that is over - is halted. */
#include "rollout/coordinator_internal.h"

#include <string.h>

/* ---- what is said ---- */

/* Names of the workers on its host, one a line, as many as fit: lost ones too, their files are
 * still there. */
static void list_buffers(const pl_coordinator *c, char *out, size_t room)
{
    size_t at = 0;
    out[0] = '\0';
    for (int i = 0; i < c->n_members; i++) {
        const member *m = c->members[i];
        const size_t n = strlen(m->name);
        if (m->role != PL_ROLE_WORKER || strcmp(m->host, c->session.host) != 0 ||
            strchr(m->name, '\n') || at + n + 2 > room)
            continue;
        if (at)
            out[at++] = '\n';
        memcpy(out + at, m->name, n + 1);
        at += n;
    }
}

static void send_train(pl_coordinator *c, int64_t now_ns, member *m)
{
    char buffers[4096];
    list_buffers(c, buffers, sizeof buffers);
    pl_msg t = {.u.train = {.session = m->session,
                    .is_lead = (uint32_t)m->is_lead,
                    .batch = c->session.batch,
                    .policy_version = c->session.policy_version,
                    .buffers = buffers}};
    m->told_session_ns = now_ns;
    m->n_told++;
    coordinator_send(c, &m->peer, &t, PL_MSG_TRAIN);
}

static void send_halt(pl_coordinator *c, int64_t now_ns, member *m, uint64_t id)
{
    pl_msg h = {.u.halt = {id}};
    m->told_session_ns = now_ns;
    if (!m->halted_ns)
        m->halted_ns = now_ns;
    coordinator_send(c, &m->peer, &h, PL_MSG_HALT);
}

/* Out of the session, if it is in one. */
static void release(pl_coordinator *c, int64_t now_ns, member *m, const char *cause)
{
    const uint64_t id = m->session;
    if (!id)
        return;
    m->session = 0;
    m->is_lead = m->n_told = 0;
    if (m->state == PL_WORKER_TRAINING)
        members_move(c, m, PL_WORKER_STOPPING, cause);
    if (m->state != PL_WORKER_LOST && m->state != PL_WORKER_BUSY) /* the lease has told it */
        send_halt(c, now_ns, m, id > m->shown_session ? id : m->shown_session);
}

void sessions_call_back(pl_coordinator *c, int64_t now_ns, member *m)
{
    release(c, now_ns, m, "a sample waits for it");
}

static void stop(pl_coordinator *c, int64_t now_ns, const char *cause)
{
    pl_log_info(c->log, "event=session_end session=%llu cause=%s",
        (unsigned long long)c->session.id, cause);
    for (int i = 0; i < c->n_members; i++)
        release(c, now_ns, c->members[i], cause);
    c->session.used_ns += now_ns - c->session.begin_ns;
    c->session.last = c->session.id;
    c->session.id = 0;
}

/* ---- who takes part ---- */

static int is_of_batch(const pl_coordinator *c, const member *m)
{
    return m->role == PL_ROLE_WORKER && !m->is_draining &&
           m->policy_version == c->current->groups[0]->m.policy_version &&
           m->declined != c->current->id + 1 && m->declined != UINT64_MAX;
}

static int is_idle(const pl_coordinator *c, const member *m)
{
    return is_of_batch(c, m) && m->state == PL_WORKER_IDLE && !m->shown_session;
}

/* The one with the lowest name that could lead now: on this host (NULL: any), of the session's own
 * (id; 0: of nobody's). */
static member *lowest(const pl_coordinator *c, const char *host)
{
    member *best = NULL;
    for (int i = 0; i < c->n_members; i++) {
        member *m = c->members[i];
        const int can = is_idle(c, m) || (is_of_batch(c, m) && m->session && c->session.id &&
                                             m->state == PL_WORKER_TRAINING);
        if (can && (!host || strcmp(m->host, host) == 0) &&
            (!best || strcmp(m->name, best->name) < 0))
            best = m;
    }
    return best;
}

static void join(pl_coordinator *c, int64_t now_ns, member *m, int is_lead)
{
    m->session = c->session.id;
    m->is_lead = is_lead;
    m->n_told = 0;
    send_train(c, now_ns, m);
}

/* A new id, led by this one. */
static void begin(pl_coordinator *c, int64_t now_ns, member *lead, const char *cause)
{
    c->session.last = c->session.id ? c->session.id : c->session.last;
    if (c->session.n_begun == 0 || c->session.batch != c->current->id)
        c->session.used_ns = 0;
    else if (c->session.id)
        c->session.used_ns += now_ns - c->session.begin_ns;
    c->session.begin_ns = now_ns;
    c->session.id = c->epoch << 32 | ++c->session.n_begun;
    c->session.batch = c->current->id;
    c->session.policy_version = lead->policy_version;
    memcpy(c->session.host, lead->host, sizeof c->session.host);
    c->stats.n_sessions++;
    pl_log_info(c->log, "event=session_begin session=%llu lead=%s cause=%s",
        (unsigned long long)c->session.id, lead->name, cause);
    join(c, now_ns, lead, 1);
}

/* ---- when ---- */

static int is_spent(const pl_coordinator *c, int64_t running_ns)
{
    return c->o.spot_budget_s > 0 &&
           c->session.used_ns + running_ns >= c->o.spot_budget_s * (int64_t)1000000000;
}

int sessions_is_tail(const pl_coordinator *c)
{
    const batch *b = c->current;
    return b && b->n_durable == b->n_groups && !b->n_in[SAMPLE_PENDING] && !b->n_in[SAMPLE_VOID] &&
           b->n_in[SAMPLE_LEASED];
}

static void begin_if_due(pl_coordinator *c, int64_t now_ns)
{
    int n_idle = 0, n_busy = 0;
    if (c->o.spot_min_idle <= 0 || !c->current || c->current->id >> 32 != 0 ||
        c->current->n_durable != c->current->n_groups || c->is_draining || c->is_done ||
        (c->session.batch == c->current->id && is_spent(c, 0)))
        return;
    for (int i = 0; i < c->n_members; i++) {
        n_idle += is_idle(c, c->members[i]);
        n_busy += c->members[i]->role == PL_ROLE_WORKER && c->members[i]->state == PL_WORKER_BUSY;
    }
    if (n_idle >= c->o.spot_min_idle && n_busy && sessions_is_tail(c))
        begin(c, now_ns, lowest(c, NULL), "idle workers");
}

static const char *why_over(pl_coordinator *c, int64_t now_ns)
{
    if (c->is_draining || c->is_done)
        return "the run ends";
    if (!c->current || c->current->id != c->session.batch)
        return "another batch";
    if (c->version.version != c->session.policy_version && c->version_state != NOT_RECORDED)
        return "another policy";
    if (c->current->was_complete || batches_is_complete(c->current))
        return "the batch is complete";
    return is_spent(c, now_ns - c->session.begin_ns) ? "its time is used up" : NULL;
}

/* Who cannot take part any more is out; is the lead still there? */
static int has_lead(pl_coordinator *c, int64_t now_ns)
{
    int is_there = 0;
    for (int i = 0; i < c->n_members; i++) {
        member *m = c->members[i];
        if (m->session &&
            (!is_of_batch(c, m) || (m->state != PL_WORKER_IDLE && m->state != PL_WORKER_TRAINING)))
            release(c, now_ns, m, "it has work, loads weights, leaves or is lost");
        is_there |= m->is_lead;
    }
    return is_there;
}

/* Those who were in the session of a lead that is gone go on under the next one. */
static void move(pl_coordinator *c, int64_t now_ns)
{
    member *lead = lowest(c, c->session.host);
    if (!lead) {
        stop(c, now_ns, "nobody is left to lead");
        return;
    }
    const uint64_t before = c->session.id;
    c->stats.n_moved++;
    begin(c, now_ns, lead, "the lead is gone");
    for (int i = 0; i < c->n_members; i++)
        if (c->members[i] != lead && c->members[i]->session == before)
            join(c, now_ns, c->members[i], 0);
}

/* ---- one worker ---- */

/* It was asked again and again, and shows nothing: it cannot, or will not. */
static void give_up(pl_coordinator *c, int64_t now_ns, member *m)
{
    pl_log_info(c->log, "event=session_declined session=%llu worker=%s",
        (unsigned long long)m->session, m->name);
    /* One of another machine than the trainer's has nothing to train on, ever. */
    const member *trainer = members_trainer(c);
    const int is_away = trainer && strcmp(trainer->host, m->host) != 0;
    m->declined = is_away ? UINT64_MAX : c->session.batch + 1;
    release(c, now_ns, m, "it does not take part");
}

static void tell(pl_coordinator *c, int64_t now_ns, member *m)
{
    if (m->session && m->shown_session != m->session) {
        if (!coordinator_is_late(now_ns, m->told_session_ns, c->o.resend_ms))
            return;
        if (m->n_told >= TRAIN_TRIES)
            give_up(c, now_ns, m);
        else
            send_train(c, now_ns, m);
    } else if (!m->session && m->shown_session &&
               coordinator_is_late(now_ns, m->told_session_ns, c->o.resend_ms)) {
        send_halt(c, now_ns, m, m->shown_session);
    }
    if (m->halted_ns && coordinator_is_late(now_ns, m->halted_ns, HALT_WAIT_MS))
        c->want_grant = 1; /* leases wait no longer for it */
}

void sessions_on_status(pl_coordinator *c, int64_t now_ns, member *who, const pl_msg_status *s)
{
    const int had_one = who->shown_session != 0;

    who->shown_session = s->session;
    if (!s->session) {
        if (who->halted_ns && had_one) {
            const int64_t us = (now_ns - who->halted_ns) / 1000;
            pl_log_info(
                c->log, "event=session_left worker=%s ms=%.1f", who->name, (double)us / 1e3);
            who->halt_us = us < 1 ? 1 : us < UINT32_MAX ? (uint32_t)us : UINT32_MAX;
        }
        who->halted_ns = 0;
        return;
    }
    if (who->state == PL_WORKER_DRAINING)
        return;
    if (who->session == s->session) {
        who->n_told = 0;
        if (who->state == PL_WORKER_IDLE && s->state == PL_WORKER_TRAINING)
            members_move(c, who, PL_WORKER_TRAINING, "STATUS");
        return;
    }
    if (who->session) /* it was told of the next one */
        return;
    if (who->state != PL_WORKER_BUSY)
        members_move(c, who, PL_WORKER_STOPPING, "it shows a session that is over");
    if (coordinator_is_late(now_ns, who->told_session_ns, HALT_MS))
        send_halt(c, now_ns, who, s->session);
}

void sessions_tick(pl_coordinator *c, int64_t now_ns)
{
    if (c->session.id) {
        const char *cause = why_over(c, now_ns);
        if (cause)
            stop(c, now_ns, cause);
        else if (!has_lead(c, now_ns))
            move(c, now_ns);
    } else {
        begin_if_due(c, now_ns);
    }
    for (int i = 0; i < c->n_members; i++) {
        member *m = c->members[i];
        if (m->role != PL_ROLE_WORKER || m->state == PL_WORKER_LOST)
            continue;
        if (c->session.id && !m->session && is_idle(c, m) &&
            strcmp(m->host, c->session.host) == 0 && sessions_is_tail(c))
            join(c, now_ns, m, 0);
        tell(c, now_ns, m);
    }
}
