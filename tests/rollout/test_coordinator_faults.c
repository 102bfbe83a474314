/* Claims tested, on thousands of random runs with faults (PL_SEEDS: how many; PL_SEED: the first):
 * a sample is durable once; nothing is acknowledged, shown or announced before it is durable; no
 * step is consumed twice with different hashes, though rewards would differ when computed again; a
 * lease goes to a worker of its version only; sessions of the spot trainer have ids that rise over
 * restarts and one lead each, are of training batches that somebody still rolls out, and end with
 * them; versions of the drafter rise and are durable before they are said; samples are handed over
 * and stay the same; no member makes an impossible transition; honest workers are never expelled,
 * true results never refused, liars' samples never trained on; and once faults stop the run ends.
 */
#include "tests/rollout/coordinator_sim.h"

#include <stdio.h>

void sim_break(sim *s, const char *claim, uint64_t a, uint64_t b)
{
    if (s->broken)
        return;
    s->broken = claim;
    snprintf(s->detail, sizeof s->detail, "%llu, %llu, at %lld ms", (unsigned long long)a,
        (unsigned long long)b, (long long)s->now_ms);
}

uint32_t sim_draw(sim *s, uint32_t n) /* splitmix64 */
{
    uint64_t z = s->state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ z >> 31) >> 32) % n;
}

int sim_faults(const sim *s)
{
    return s->now_ms < FAULTS_MS;
}

pl_hash sim_weights(uint64_t step)
{
    return bed_hash(0xabc000 + step);
}

stored *sim_stored(sim *s, uint64_t batch, uint32_t uid)
{
    const uint64_t kind = batch >> 32, step = (uint32_t)batch;
    if (kind > 1 || step > N_STEPS || uid - 100 >= N_SAMPLES)
        return NULL;
    return &s->samples[kind][step][uid - 100];
}

/* ---- the network ---- */

int sim_is_complete(sim *s, uint64_t batch)
{
    for (uint32_t i = 0; i < N_SAMPLES; i++)
        if (!sim_stored(s, batch, 100 + i)->is_there)
            return 0;
    return 1;
}

static void put(sim *s, flight f)
{
    if (s->n_net == s->room_net) {
        s->room_net = s->room_net ? 2 * s->room_net : 256;
        s->net = realloc(s->net, (size_t)s->room_net * sizeof *s->net);
        cr_assert_not_null(s->net);
    }
    s->net[s->n_net++] = f;
}

void sim_send(sim *s, int to_coordinator, const pl_peer *peer, const pl_msg *m)
{
    const int bad = sim_faults(s);
    if (bad && sim_draw(s, 5) == 0)
        return;
    flight f = {packet_of(peer, m), to_coordinator, 0};
    for (int copies = bad && sim_draw(s, 5) == 0 ? 2 : 1; copies > 0; copies--) {
        f.due_ms = s->now_ms + (bad ? sim_draw(s, sim_draw(s, 20) ? 60 : 1500) : 1);
        if (copies == 2) {
            flight twin = f;
            twin.p = packet_copy(&f.p);
            put(s, twin);
        } else {
            put(s, f);
        }
    }
}

static void deliver(sim *s, packet *p, int to_coordinator)
{
    pl_error err = {0};
    const pl_msg m = packet_open(p);
    for (int i = 0; i < N_WORKERS; i++) {
        sim_worker *w = &s->workers[i];
        const pl_peer peer = bed_peer(PL_ROLE_WORKER, w->incarnation);
        if (memcmp(&peer, &p->peer, sizeof peer) != 0)
            continue;
        if (!to_coordinator && w->is_up && s->now_ms >= w->wake_ms)
            sim_worker_hear(s, i, &m);
        if (to_coordinator && s->c && m.h.type == PL_MSG_STATUS && m.h.seq > w->shown_seq &&
            m.h.epoch == pl_coordinator_epoch(s->c)) {
            w->shown_seq = m.h.seq;
            w->shown_version = m.u.status.policy_version;
        }
    }
    const pl_peer trainer = bed_peer(PL_ROLE_TRAINER, s->trainer.incarnation);
    if (!to_coordinator && memcmp(&trainer, &p->peer, sizeof trainer) == 0 && s->trainer.is_up &&
        s->now_ms >= s->trainer.wake_ms)
        sim_trainer_hear(s, &m);
    if (to_coordinator && s->c &&
        pl_coordinator_message(s->c, s->now_ms * 1000000, &p->peer, &m, &err) != PL_OK)
        sim_break(s, "messages are never errors", m.h.type, 0);
}

static void deliver_due(sim *s)
{
    for (int i = 0; i < s->n_net;) {
        if (s->net[i].due_ms > s->now_ms) {
            i++;
            continue;
        }
        flight f = s->net[i];
        s->net[i] = s->net[--s->n_net];
        deliver(s, &f.p, f.to_coordinator);
        packet_free(&f.p);
    }
}

/* ---- the durable truth, and what the coordinator may say ---- */

static void see_record(sim *s, packet *p)
{
    const pl_msg m = packet_open(p);
    if (m.h.type == PL_MSG_GROUP) {
        s->n_groups_durable[m.u.group.batch >> 32 != 0][(uint32_t)m.u.group.batch]++;
    } else if (m.h.type == PL_MSG_RESULT) {
        stored *at = sim_stored(s, m.u.result.batch, m.u.result.uid);
        if (at->is_there)
            sim_break(s, "a sample is durable once", m.u.result.batch, m.u.result.uid);
        at->is_there = 1;
        at->has_reward = 0;
        at->t.n = m.u.result.tokens.n;
        memcpy(at->t.tokens, m.u.result.tokens.data, (size_t)at->t.n * 4);
    } else if (m.h.type == PL_MSG_REWARD) {
        stored *at = sim_stored(s, m.u.reward.batch, m.u.reward.uid);
        if (!at->is_there || at->has_reward)
            sim_break(s, "the first reward stands", m.u.reward.batch, m.u.reward.uid);
        const text honest = bed_text(m.u.reward.batch, m.u.reward.uid);
        if (memcmp(at->t.tokens, honest.tokens, honest.n * 4) == 0 && m.u.reward.score >= 1000)
            sim_break(s, "a reward is of the result that stands", m.u.reward.batch, m.u.reward.uid);
        at->has_reward = 1;
        at->reward = m.u.reward.score;
    } else if (m.h.type == PL_MSG_REFUSE) {
        stored *at = sim_stored(s, m.u.refuse.batch, m.u.refuse.uid);
        const text honest = bed_text(m.u.refuse.batch, m.u.refuse.uid);
        if (memcmp(at->t.tokens, honest.tokens, honest.n * 4) == 0)
            sim_break(s, "a true result is never refused", m.u.refuse.batch, m.u.refuse.uid);
        *at = (stored){0};
    } else if (m.h.type == PL_MSG_CONSUME) {
        const uint64_t step = m.u.consume.step;
        if (s->is_consumed[step] && memcmp(&s->consumed[step].samples, &m.u.consume.samples,
                                        sizeof m.u.consume.samples) != 0)
            sim_break(s, "no step is consumed with two hashes", step, 0);
        if (s->is_consumed[step] != (int)(m.u.consume.again != 0))
            sim_break(s, "a step trained again says so", step, m.u.consume.again);
        s->n_again += s->is_consumed[step];
        s->is_consumed[step] = 1;
        s->consumed[step] = m.u.consume;
    } else if (m.h.type == PL_MSG_DRAFTER) {
        sim_spot_record(s, &m.u.drafter);
    }
}

static void sync_ledger(sim *s)
{
    pl_error err = {0};
    s->n_durable = s->ledger.n;
    while (s->n_seen < s->n_durable)
        see_record(s, &s->ledger.at[s->n_seen++]);
    if (pl_coordinator_synced(s->c, s->now_ms * 1000000, &err) != PL_OK)
        sim_break(s, "synced is no error", 0, 0);
}

static void check_lease(sim *s, const pl_peer *peer, const pl_msg_lease *l)
{
    const stored *at = sim_stored(s, l->batch, l->uid);
    if (at->is_there)
        sim_break(s, "what is durable is not leased", l->batch, l->uid);
    if (s->n_groups_durable[l->batch >> 32 != 0][(uint32_t)l->batch] < N_GROUPS)
        sim_break(s, "groups are durable before leases", l->batch, l->uid);
    for (int i = 0; i < N_WORKERS; i++) {
        const pl_peer w = bed_peer(PL_ROLE_WORKER, s->workers[i].incarnation);
        if (memcmp(&w, peer, sizeof w) == 0 && s->workers[i].shown_version != l->policy_version)
            sim_break(s, "a lease goes to a worker of its version", l->policy_version,
                s->workers[i].shown_version);
    }
}

static void on_send(void *ctx, const pl_peer *peer, const pl_msg *m)
{
    sim *s = ctx;
    pl_msg out = *m;
    const stored *at = NULL;
    if (m->h.type == PL_MSG_ACK) {
        for (uint32_t k = 0; k < m->u.uids.uids.n; k++) {
            at = sim_stored(s, m->u.uids.batch, bed_u32(&m->u.uids.uids, k));
            if (!at || !at->is_there)
                sim_break(s, "no ACK before it is durable", m->u.uids.batch, 0);
        }
    } else if (m->h.type == PL_MSG_RESULT) {
        at = sim_stored(s, m->u.result.batch, m->u.result.uid);
        if (!at->is_there || (m->u.result.has_reward && !at->has_reward))
            sim_break(s, "no RESULT before it is durable", m->u.result.batch, m->u.result.uid);
    } else if (m->h.type == PL_MSG_REWARD) {
        at = sim_stored(s, m->u.reward.batch, m->u.reward.uid);
        if (!at->has_reward || at->reward != m->u.reward.score)
            sim_break(s, "no REWARD before it is durable", m->u.reward.batch, m->u.reward.uid);
    } else if (m->h.type == PL_MSG_CONSUME) {
        if (!s->is_consumed[m->u.consume.step])
            sim_break(s, "no CONSUME before it is durable", m->u.consume.step, 0);
    } else if (m->h.type == PL_MSG_VERSION) {
        if (m->u.version.version && !s->is_consumed[m->u.version.version])
            sim_break(s, "no VERSION before its CONSUME is durable", m->u.version.version, 0);
    } else if (m->h.type == PL_MSG_LEASE) {
        check_lease(s, peer, &m->u.lease);
    }
    sim_spot_check(s, peer, m);
    out.h.seq = ++s->seq;
    sim_send(s, 0, peer, &out);
}

static void on_drop(void *ctx, const pl_peer *peer)
{
    (void)ctx;
    (void)peer;
}

static pl_status on_record(void *ctx, const pl_msg *m, pl_error *err)
{
    sim *s = ctx;
    (void)err;
    packets_add(&s->ledger, packet_of(NULL, m));
    return PL_OK;
}

/* ---- a run ---- */

static void start_coordinator(sim *s)
{
    const pl_coordinator_io io = {s, on_send, on_drop, on_record, NULL};
    pl_coordinator_options o = bed_options();
    pl_error err = {0};
    o.spot_min_idle = s->seed % 5 ? 1 : 0;
    o.consolidate_below = s->seed % 2 ? N_SAMPLES : 0;
    pl_status st = pl_coordinator_new(&s->c, &o, &io, NULL, &err);
    for (int i = 0; i < s->ledger.n && st == PL_OK; i++) {
        const pl_msg m = packet_open(&s->ledger.at[i]);
        st = pl_coordinator_replay(s->c, &m, &err);
    }
    if (st == PL_OK)
        st = pl_coordinator_begin(s->c, s->now_ms * 1000000, &err);
    if (st != PL_OK) {
        fprintf(stderr, "seed %llu: %s\n", (unsigned long long)s->seed, err.msg);
        sim_break(s, "every ledger is recovered", st, 0);
    }
    for (int i = 0; i < N_WORKERS; i++)
        s->workers[i].shown_version = UINT32_MAX;
}

/* Power fails: the ledger ends with what is durable, everything else is gone. */
static void stop_coordinator(sim *s)
{
    sim_spot_count(s);
    pl_coordinator_free(s->c);
    s->c = NULL;
    s->up_ms = s->now_ms + sim_draw(s, 2000);
    packets_cut(&s->ledger, s->n_durable);
    s->n_crashes++;
}

static void tick(sim *s)
{
    pl_error err = {0};
    s->now_ms += TICK_MS;
    if (!s->c && s->now_ms >= s->up_ms)
        start_coordinator(s);
    deliver_due(s);
    for (int i = 0; i < N_WORKERS; i++)
        sim_worker_tick(s, i);
    sim_trainer_tick(s);
    if (!s->c || s->broken)
        return;
    if (pl_coordinator_tick(s->c, s->now_ms * 1000000, &err) != PL_OK)
        sim_break(s, "a tick is no error", 0, 0);
    if (pl_coordinator_unsynced(s->c) && (!sim_faults(s) || sim_draw(s, 2)))
        sync_ledger(s);
    /* Some runs go without: progress is in no ledger, and prefixes are to be handed on. */
    if (sim_faults(s) && sim_draw(s, 120) == 0 && s->seed % 8 != 7)
        stop_coordinator(s);
}

void sim_run(sim *s, uint64_t seed)
{
    memset(s, 0, sizeof *s);
    s->seed = s->state = seed;
    s->with_liars = seed % 4 == 3;
    for (int i = 0; i < N_WORKERS; i++)
        sim_worker_start(s, i);
    sim_trainer_start(s);
    while (!s->broken && s->trainer.phase != HOME && s->now_ms < END_MS)
        tick(s);
    if (!s->broken && s->trainer.phase != HOME)
        sim_break(s, "once faults stop the run ends", s->trainer.step, s->trainer.phase);
    for (uint64_t step = 1; step <= N_STEPS; step++)
        if (!s->broken && !s->is_consumed[step])
            sim_break(s, "every step is consumed", step, 0);
    for (int i = 0; i < N_SAMPLES; i++) {
        const text honest = bed_text(N_STEPS, 100 + (uint32_t)i);
        const stored *at = &s->samples[0][N_STEPS][i];
        if (!s->broken && (!at->is_there || at->t.n != honest.n ||
                              memcmp(at->t.tokens, honest.tokens, honest.n * 4) != 0))
            sim_break(s, "the ledger has the true samples", (uint64_t)i, 0);
    }
    if (s->broken && s->c && s->now_ms >= END_MS)
        pl_coordinator_describe(s->c, s->now_ms * 1000000, stderr);
    sim_spot_count(s);
    pl_coordinator_free(s->c);
    packets_free(&s->ledger);
    for (int i = 0; i < s->n_net; i++)
        packet_free(&s->net[i].p);
    free(s->net);
}

static uint64_t setting(const char *name, uint64_t other)
{
    const char *v = getenv(name);
    return v ? strtoull(v, NULL, 10) : other;
}

Test(coordinator_faults, whatever_fails_every_sample_is_durable_once_and_the_run_ends)
{
    const uint64_t first = setting("PL_SEED", 1), n = setting("PL_SEEDS", 300);
    long crashes = 0, again = 0, refused = 0, resent = 0, quarantined = 0, tainted = 0;
    long sessions = 0, moved = 0, drafters = 0, swaps = 0, handed = 0;
    sim *s = malloc(sizeof *s);
    cr_assert_not_null(s);
    for (uint64_t seed = first; seed < first + n; seed++) {
        sim_run(s, seed);
        cr_assert_null(s->broken, "seed %llu: '%s' does not hold: %s", (unsigned long long)seed,
            s->broken, s->detail);
        crashes += s->n_crashes;
        again += s->n_again;
        refused += s->n_refused;
        resent += s->n_resent;
        quarantined += s->n_quarantined;
        tainted += s->n_tainted;
        sessions += (long)s->stats.n_sessions;
        moved += (long)s->stats.n_moved;
        drafters += s->drafter;
        swaps += s->n_swapped;
        handed += s->n_handed;
    }
    free(s);
    fprintf(stderr,
        "%llu runs: %ld crashes, %ld steps trained again, %ld leases with a prefix, %ld samples "
        "refused, %ld workers quarantined, %ld false prefixes handed on\n",
        (unsigned long long)n, crashes, again, resent, refused, quarantined, tainted);
    fprintf(stderr,
        "%ld sessions, %ld of them under another lead, %ld versions of the drafter, %ld swaps, %ld "
        "samples handed over\n",
        sessions, moved, drafters, swaps, handed);
    if (n >= 100)
        cr_expect(again > 0 && resent > 0 && refused > 0 && quarantined > 0 && tainted > 0,
            "faults must happen");
    if (n >= 100)
        cr_expect(sessions > 0 && moved > 0 && drafters > 0 && swaps > 0 && handed > 0,
            "sessions and handovers must happen");
}
