/* rollout/drafters.c - versions of the drafter, and what each worker says of its drafting.
 *
 * A version is made by the lead of a session, recorded, and then said to every worker until its
 * STATUS shows it, and to the trainer, which serves it to other machines.  Versions rise; what is
 * not newer than the newest is answered with that one. Nothing here can change a text, so nothing
 * here can end a run: its record is not critical. */
#include "rollout/coordinator_internal.h"

#include <math.h>
#include <string.h>

/* A version further on than this was made by nobody. */
enum { VERSIONS_AT_ONCE = 1024 };

pl_status drafters_set(
    pl_coordinator *c, const pl_msg_drafter *d, record_state state, pl_error *err)
{
    pl_status st = coordinator_copy(&c->drafter_dir, d->dir, err);
    if (st == PL_OK)
        st = coordinator_copy(&c->drafter_host, d->host, err);
    if (st == PL_OK)
        st = coordinator_copy(&c->drafter_endpoint, d->endpoint, err);
    if (st != PL_OK)
        return st;
    c->drafter = *d;
    c->drafter.dir = c->drafter_dir;
    c->drafter.host = c->drafter_host;
    c->drafter.endpoint = c->drafter_endpoint;
    c->drafter_state = state;
    return PL_OK;
}

/* The same version, and where it is served. */
static pl_status set_served(pl_coordinator *c, const pl_msg_drafter *d, pl_error *err)
{
    const pl_status st = coordinator_copy(&c->drafter_endpoint, d->endpoint, err);
    if (st != PL_OK)
        return st;
    c->drafter.endpoint = c->drafter_endpoint;
    c->drafter.bundle = d->bundle;
    c->drafter.n_bundle = d->n_bundle;
    c->drafter_state = RECORDED;
    return PL_OK;
}

void drafters_send(pl_coordinator *c, int64_t now_ns, member *to)
{
    if (c->drafter_state != DURABLE)
        return;
    to->told_drafter_ns = now_ns;
    to->n_told_drafter++;
    pl_msg m = {.u.drafter = c->drafter};
    coordinator_send(c, &to->peer, &m, PL_MSG_DRAFTER);
}

/* Is it of the session that runs or of the last one?  Of an earlier epoch's only while none has
 * begun in this one, and not of one before the newest version's. */
static int is_of_session(const pl_coordinator *c, uint64_t id)
{
    if (!id)
        return 0;
    if (id == c->session.id || id == c->session.last)
        return 1;
    return !c->session.n_begun && id >> 32 < c->epoch && id >= c->drafter.session;
}

static int is_wrong(const pl_msg_drafter *d)
{
    return !d->version || d->parent >= d->version || !d->dir[0] || !isfinite(d->tau) ||
           !isfinite(d->tau_parent) || !isfinite(d->se);
}

pl_status drafters_on_drafter(
    pl_coordinator *c, int64_t now_ns, member *who, const pl_msg *m, pl_error *err)
{
    const pl_msg_drafter *d = &m->u.drafter;
    if (is_wrong(d)) {
        c->stats.n_invalid++;
        return PL_OK;
    }
    if (d->version <= c->drafter.version) {
        c->stats.n_old_drafters++;
        drafters_send(c, now_ns, who);
        return PL_OK;
    }
    if (!is_of_session(c, d->session) || strcmp(d->host, who->host) != 0 ||
        d->version - c->drafter.version > VERSIONS_AT_ONCE) {
        c->stats.n_refused_drafters++;
        pl_log_debug(c->log, "event=drafter_refused version=%u session=%llu worker=%s", d->version,
            (unsigned long long)d->session, who->name);
        return PL_OK;
    }
    pl_msg record = *m;
    const waiting w = {.id = d->version};
    const pl_status st = coordinator_record(c, &record, PL_MSG_DRAFTER, &w, err);
    if (st != PL_OK)
        return st;
    pl_log_info(c->log, "event=drafter version=%u parent=%u tau=%.3f tau_parent=%.3f rollback=%u",
        d->version, d->parent, (double)d->tau, (double)d->tau_parent, d->rollback);
    return drafters_set(c, d, RECORDED, err);
}

pl_status drafters_on_served(pl_coordinator *c, const pl_msg *m, pl_error *err)
{
    const pl_msg_drafter *d = &m->u.drafter;
    if (c->drafter_state != DURABLE || d->version != c->drafter.version || !d->endpoint[0] ||
        strcmp(c->drafter.endpoint, d->endpoint) == 0 ||
        memcmp(&d->hash, &c->drafter.hash, sizeof d->hash) != 0) {
        c->stats.n_old_drafters++;
        return PL_OK;
    }
    pl_msg record = {.h = m->h, .u.drafter = c->drafter};
    record.u.drafter.endpoint = d->endpoint;
    record.u.drafter.bundle = d->bundle;
    record.u.drafter.n_bundle = d->n_bundle;
    const waiting w = {.id = d->version};
    const pl_msg_drafter served = record.u.drafter;
    const pl_status st = coordinator_record(c, &record, PL_MSG_DRAFTER, &w, err);
    return st == PL_OK ? set_served(c, &served, err) : st;
}

void drafters_durable(pl_coordinator *c, int64_t now_ns, uint32_t version)
{
    if (c->drafter.version != version)
        return; /* a newer one is being recorded */
    c->drafter_state = DURABLE;
    for (int i = 0; i < c->n_members; i++) {
        member *m = c->members[i];
        m->n_told_drafter = 0;
        if (m->state != PL_WORKER_LOST && m->drafter_version <= version)
            drafters_send(c, now_ns, m);
    }
}

void drafters_tick(pl_coordinator *c, int64_t now_ns, member *m)
{
    const uint32_t wait_ms = (m->n_told_drafter < DRAFTER_TRIES ? 1 : 10) * c->o.resend_ms;
    if (c->drafter_state == DURABLE && m->drafter_version < c->drafter.version &&
        coordinator_is_late(now_ns, m->told_drafter_ns, wait_ms))
        drafters_send(c, now_ns, m);
}

/* ---- figures ---- */

static void tell_figures(pl_coordinator *c, member *m, int64_t idle_ns)
{
    const member *trainer = members_trainer(c);
    if (!trainer)
        return;
    const int64_t idle_ms = idle_ns / NS_PER_MS;
    pl_msg f = {.u.drafting = m->figures};
    f.u.drafting.worker = m->name;
    f.u.drafting.halt_us = m->halt_us;
    f.u.drafting.idle_ms = idle_ms < UINT32_MAX ? (uint32_t)idle_ms : UINT32_MAX;
    f.u.drafting.alpha.data = m->alpha;
    f.u.drafting.costs.data = m->costs;
    coordinator_send(c, &trainer->peer, &f, PL_MSG_DRAFTING);
}

void drafters_on_drafting(pl_coordinator *c, member *who, const pl_msg *m)
{
    const pl_msg_drafting *d = &m->u.drafting;
    if (who->drafting_seq && m->h.seq <= who->drafting_seq)
        return;
    who->drafting_seq = m->h.seq;
    const int is_current = c->current && d->batch == c->current->id;
    if (d->alpha.n > PL_DRAFTING_DEPTHS || d->costs.n > PL_COST_BUCKETS ||
        (!is_current && d->batch != who->batch_before))
        return; /* of a batch that the trainer has left long since */
    const uint32_t newest = c->drafter_state == DURABLE ? c->drafter.version : 0;
    who->figures = *d;
    if (d->drafter_version > newest) /* of none that there is */
        who->figures.drafter_version = newest;
    who->has_figures = is_current;
    if (d->alpha.n)
        memcpy(who->alpha, d->alpha.data, d->alpha.n * sizeof who->alpha[0]);
    if (d->costs.n)
        memcpy(who->costs, d->costs.data, d->costs.n * sizeof who->costs[0]);
    tell_figures(c, who, is_current ? who->idle_ns : who->idle_before);
}

void drafters_tell(pl_coordinator *c)
{
    for (int i = 0; i < c->n_members; i++)
        if (c->members[i]->has_figures)
            tell_figures(c, c->members[i], c->members[i]->idle_ns);
}

void drafters_count_idle(pl_coordinator *c, int64_t now_ns)
{
    const int64_t passed = c->idle_ns ? now_ns - c->idle_ns : 0;
    const batch *b = c->current;
    c->idle_ns = now_ns;
    if (!b || !b->open_ns || b->was_complete)
        return;
    for (int i = 0; i < c->n_members; i++) {
        member *m = c->members[i];
        if (m->role == PL_ROLE_WORKER && !m->n_leased &&
            (m->state == PL_WORKER_IDLE || m->state == PL_WORKER_TRAINING ||
                m->state == PL_WORKER_STOPPING))
            m->idle_ns += passed;
    }
}
