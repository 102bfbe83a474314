/* tests/rollout/coordinator_sim_spot.c - the spot trainer of the simulated run: workers that train
 * when they are asked to, or leave by themselves; a state file that the highest session owns;
 * versions that arrive torn, twice and late. */
#include "tests/rollout/coordinator_sim.h"

static int is_running(const sim_worker *w)
{
    for (int k = 0; k < SLOTS; k++)
        if (w->at[k].used && !w->at[k].held && w->at[k].batch == w->batch)
            return 1;
    return 0;
}

static void hear_train(sim *s, sim_worker *w, const pl_msg *m)
{
    const pl_msg_train *t = &m->u.train;
    if (m->h.seq <= w->train_seq)
        return;
    w->train_seq = m->h.seq;
    if (is_running(w) || w->version != t->policy_version || t->session == w->session)
        return;
    w->session = t->session;
    w->session_batch = t->batch;
    w->is_lead = t->is_lead != 0;
    w->is_early = sim_faults(s) && sim_draw(s, 10) == 0;
    w->overdue_ms = 0;
    w->status_ms = 0;
}

static void hear_handover(sim *s, int i, const pl_msg_uids *u)
{
    sim_worker *w = &s->workers[i];
    for (uint32_t k = 0; k < u->uids.n; k++)
        for (int j = 0; j < SLOTS; j++) {
            work *at = &w->at[j];
            if (!at->used || at->held || at->batch != u->batch || at->uid != bed_u32(&u->uids, k))
                continue;
            if (at->n)
                sim_worker_progress(s, i, at, 0);
            at->used = 0;
            s->n_handed++;
        }
    w->status_ms = 0;
}

void sim_spot_hear(sim *s, int i, const pl_msg *m)
{
    sim_worker *w = &s->workers[i];
    switch (m->h.type) {
    case PL_MSG_WELCOME:
        break;
    case PL_MSG_TRAIN:
        hear_train(s, w, m);
        break;
    case PL_MSG_HALT:
        if (m->h.seq > w->train_seq) {
            w->train_seq = m->h.seq;
            if (m->u.halt.session >= w->session)
                w->session = 0;
            w->status_ms = 0;
        }
        break;
    case PL_MSG_DRAFTER:
        if (m->u.drafter.version >= w->made.version)
            w->made.version = 0;
        if (m->u.drafter.version > w->drafter && (!sim_faults(s) || sim_draw(s, 4))) {
            w->drafter = m->u.drafter.version;
            s->n_swapped++;
        }
        break;
    case PL_MSG_HANDOVER:
        hear_handover(s, i, &m->u.uids);
        break;
    default:
        break;
    }
}

static void say_version(sim *s, int i)
{
    sim_worker *w = &s->workers[i];
    pl_msg m = {.u.drafter = w->made};
    if (sim_faults(s) && sim_draw(s, 5) == 0) { /* torn */
        m.u.drafter.dir = "";
        m.u.drafter.version += 1000;
    }
    sim_worker_say(s, i, &m, PL_MSG_DRAFTER);
}

static void say_figures(sim *s, int i)
{
    static const float alpha[] = {0.5f, 0.25f};
    pl_msg m = {.u.drafting = {.batch = s->workers[i].batch, .worker = "", .alpha = {alpha, 2}}};
    sim_worker_say(s, i, &m, PL_MSG_DRAFTING);
}

/* A piece of work. */
static void train(sim *s, sim_worker *w)
{
    if (w->is_early && sim_draw(s, 20) == 0) {
        w->session = 0; /* and comes back when it is asked again */
        w->status_ms = 0;
        return;
    }
    if (!w->is_lead)
        return;
    if (w->session < s->owner) { /* another one leads: PL_E_PEER */
        w->session = 0;
        w->status_ms = 0;
        return;
    }
    s->owner = w->session;
    if (sim_draw(s, 20) == 0)
        w->made = (pl_msg_drafter){
            .version = ++s->n_made, .session = w->session, .dir = "d", .host = "h", .endpoint = ""};
}

void sim_spot_tick(sim *s, int i)
{
    sim_worker *w = &s->workers[i];
    if (!w->joined)
        return;
    if (w->session && is_running(w))
        sim_break(s, "who has work does not train", w->session, (uint64_t)i);
    if (w->session)
        train(s, w);
    if (w->made.version && sim_draw(s, 10) == 0)
        say_version(s, i);
    if (sim_draw(s, 20) == 0)
        say_figures(s, i);
    if (!w->session || sim_faults(s) || !s->c || !sim_is_complete(s, w->session_batch))
        w->overdue_ms = 0;
    else if ((w->overdue_ms += TICK_MS) > 3000)
        sim_break(s, "a session ends with its batch", w->session, (uint64_t)i);
}

/* ---- what must hold ---- */

static void check_train(sim *s, const pl_peer *to, const pl_msg_train *t)
{
    if (t->session > s->top) {
        if (!t->is_lead)
            sim_break(s, "the lead is asked first", t->session, s->top);
        s->before = s->top;
        s->top = t->session;
        s->lead = *to;
    } else if (t->session < s->top) {
        sim_break(s, "ids of sessions rise", t->session, s->top);
    } else if (t->is_lead != (uint32_t)(memcmp(&s->lead, to, sizeof *to) == 0)) {
        sim_break(s, "a session has one lead", t->session, t->is_lead);
    }
    if (t->batch >> 32 || sim_is_complete(s, t->batch))
        sim_break(s, "it trains while a training batch is rolled out", t->session, t->batch);
    for (int i = 0; i < N_WORKERS; i++) {
        const pl_peer w = bed_peer(PL_ROLE_WORKER, s->workers[i].incarnation);
        if (memcmp(&w, to, sizeof w) == 0 && s->workers[i].shown_version != t->policy_version)
            sim_break(s, "it trains on the policy that it has loaded", t->policy_version, 0);
    }
}

void sim_spot_check(sim *s, const pl_peer *to, const pl_msg *m)
{
    if (m->h.type == PL_MSG_TRAIN)
        check_train(s, to, &m->u.train);
    if (m->h.type == PL_MSG_DRAFTER && m->u.drafter.version > s->drafter)
        sim_break(s, "no DRAFTER before it is durable", m->u.drafter.version, s->drafter);
    if (m->h.type == PL_MSG_DRAFTING && (!m->u.drafting.worker[0] || m->u.drafting.alpha.n != 2))
        sim_break(s, "figures name their worker", 0, 0);
}

void sim_spot_record(sim *s, const pl_msg_drafter *d)
{
    if (d->version <= s->drafter || d->version > s->n_made)
        sim_break(s, "versions of the drafter rise", d->version, s->drafter);
    if (d->session > s->top || !d->dir[0])
        sim_break(s, "a version is of a session, and whole", d->session, s->top);
    s->drafter = d->version;
}

void sim_spot_count(sim *s)
{
    pl_coordinator_stats now = {0};
    if (!s->c)
        return;
    pl_coordinator_get_stats(s->c, &now);
    s->stats.n_sessions += now.n_sessions;
    s->stats.n_moved += now.n_moved;
    if (now.n_impossible && !s->broken)
        sim_break(s, "no transition is impossible", now.n_impossible, 0);
}
