/* tests/rollout/coordinator_world.h - a coordinator whose clock, network and disk are lists and a
 * number: one line says a message, one line asks what was answered. */
#ifndef PL_TESTS_COORDINATOR_WORLD_H
#define PL_TESTS_COORDINATOR_WORLD_H

#include "tests/rollout/coordinator_bed.h"

static const int64_t MS = 1000000;

typedef struct world {
    pl_coordinator *c;
    packets sent, ledger, dropped;
    int n_durable; /* of ledger */
    int64_t now;
    uint64_t seq;
    int fails;          /* the next record fails */
    pl_peer killed;     /* its process has ended */
    int n_asked;        /* whether one has */
    uint32_t n_threads; /* of those who say HELLO */
} world;

static inline void on_send(void *ctx, const pl_peer *peer, const pl_msg *m)
{
    world *w = ctx;
    packets_add(&w->sent, packet_of(peer, m));
}

static inline void on_drop(void *ctx, const pl_peer *peer)
{
    world *w = ctx;
    const pl_msg none = {.h.type = PL_MSG_STOP};
    packets_add(&w->dropped, packet_of(peer, &none));
}

static inline pl_status on_record(void *ctx, const pl_msg *m, pl_error *err)
{
    world *w = ctx;
    if (w->fails)
        return pl_fail(err, PL_E_IO, "disk full");
    packets_add(&w->ledger, packet_of(NULL, m));
    return PL_OK;
}

static inline int on_is_dead(void *ctx, const pl_peer *peer)
{
    world *w = ctx;
    w->n_asked++;
    return memcmp(&w->killed, peer, sizeof *peer) == 0;
}

static inline void sync_ledger(world *w)
{
    pl_error err = {0};
    w->n_durable = w->ledger.n;
    cr_assert_eq(pl_coordinator_synced(w->c, w->now, &err), PL_OK, "%s", err.msg);
    cr_assert(!pl_coordinator_unsynced(w->c));
}

static inline pl_status start(world *w, const pl_coordinator_options *o)
{
    const pl_coordinator_io io = {w, on_send, on_drop, on_record, on_is_dead};
    pl_error err = {0};
    cr_assert_eq(pl_coordinator_new(&w->c, o, &io, NULL, &err), PL_OK, "%s", err.msg);
    for (int i = 0; i < w->ledger.n; i++) {
        const pl_msg m = packet_open(&w->ledger.at[i]);
        const pl_status st = pl_coordinator_replay(w->c, &m, &err);
        if (st != PL_OK)
            return st;
    }
    return pl_coordinator_begin(w->c, w->now, &err);
}

static inline world *make(void)
{
    world *w = calloc(1, sizeof *w);
    cr_assert_not_null(w);
    w->now = 1000 * MS;
    return w;
}

static inline void begin(world *w)
{
    const pl_coordinator_options o = bed_options();
    cr_assert_eq(start(w, &o), PL_OK);
    sync_ledger(w);
}

/* Power fails: only what is durable is there again. */
static inline void restart(world *w)
{
    pl_coordinator_free(w->c);
    packets_cut(&w->ledger, w->n_durable);
    packets_cut(&w->sent, 0);
    begin(w);
}

static inline void done(world *w)
{
    pl_coordinator_free(w->c);
    packets_free(&w->sent);
    packets_free(&w->ledger);
    packets_free(&w->dropped);
    free(w);
}

/* Say m as the peer (role, incarnation), in this epoch. */
static inline void say(world *w, uint32_t role, uint64_t incarnation, pl_msg m)
{
    pl_error err = {0};
    const pl_peer peer = bed_peer(role, incarnation);
    m.h.epoch = pl_coordinator_epoch(w->c);
    m.h.incarnation = incarnation;
    m.h.seq = ++w->seq;
    cr_assert_eq(pl_coordinator_message(w->c, w->now, &peer, &m, &err), PL_OK, "%s", err.msg);
}

static inline void wait_ms(world *w, int ms)
{
    pl_error err = {0};
    for (int i = 0; i < ms; i += 50) {
        w->now += 50 * MS;
        cr_assert_eq(pl_coordinator_tick(w->c, w->now, &err), PL_OK, "%s", err.msg);
    }
}

/* The i-th message of a type to a peer since the last clear; type 0 in the header: none. */
static inline pl_msg heard_nth(
    const world *w, uint32_t role, uint64_t incarnation, uint16_t type, int i)
{
    const pl_peer peer = bed_peer(role, incarnation);
    for (int k = 0; k < w->sent.n; k++)
        if (w->sent.at[k].h.type == type && memcmp(&w->sent.at[k].peer, &peer, sizeof peer) == 0 &&
            i-- == 0)
            return packet_open(&w->sent.at[k]);
    return (pl_msg){0};
}

static inline pl_msg heard(const world *w, uint32_t role, uint64_t incarnation, uint16_t type)
{
    return heard_nth(w, role, incarnation, type, 0);
}

static inline int count(const world *w, uint32_t role, uint64_t incarnation, uint16_t type)
{
    int n = 0;
    while (heard_nth(w, role, incarnation, type, n).h.type)
        n++;
    return n;
}

static inline void clear(world *w)
{
    packets_cut(&w->sent, 0);
}

static inline pl_coordinator_stats stats(const world *w)
{
    pl_coordinator_stats s;
    pl_coordinator_get_stats(w->c, &s);
    return s;
}

enum { W = PL_ROLE_WORKER, T = PL_ROLE_TRAINER, TRAINER = 900 };

static inline void hello(
    world *w, uint32_t role, uint64_t incarnation, const char *name, uint32_t seqs)
{
    say(w, role, incarnation,
        (pl_msg){.h.type = PL_MSG_HELLO,
            .u.hello = {.role = role,
                .name = name,
                .numeric_class = "class-a",
                .build = "test",
                .host = "h",
                .n_threads = w->n_threads,
                .max_seqs = seqs}});
}

static inline void status_lists(world *w, uint64_t who, uint32_t version, uint64_t batch,
    const uint32_t *running, uint32_t n_running, const uint32_t *held, uint32_t n_held)
{
    say(w, W, who,
        (pl_msg){.h.type = PL_MSG_STATUS,
            .u.status = {.state = PL_WORKER_IDLE,
                .policy_version = version,
                .batch = batch,
                .running = {running, n_running},
                .held = {held, n_held}}});
}

static inline void status(world *w, uint64_t who, uint32_t version, float rate)
{
    say(w, W, who,
        (pl_msg){.h.type = PL_MSG_STATUS,
            .u.status = {.state = PL_WORKER_IDLE, .policy_version = version, .rate = rate}});
}

static inline void worker(world *w, uint64_t who, uint32_t version, uint32_t seqs)
{
    char name[16];
    snprintf(name, sizeof name, "worker-%u", (unsigned)who);
    hello(w, W, who, name, seqs);
    status(w, who, version, 0);
}

static inline void groups(world *w, uint64_t batch, uint32_t n_groups, uint32_t n, uint32_t version)
{
    for (uint32_t i = 0; i < n_groups; i++)
        say(w, T, TRAINER, bed_group(batch, n_groups, i, n, version));
}

static inline void result(world *w, uint64_t who, uint64_t batch, uint32_t uid, uint32_t n)
{
    const text t = bed_text(batch, uid);
    say(w, W, who, bed_result(batch, uid, 50 + (uid - 100) / n, 3, &t));
}

/* A batch of 2 groups of 2 (uids 100 to 103) at version 3, all with worker 1. */
static inline world *with_batch(uint32_t seqs)
{
    world *w = make();
    begin(w);
    hello(w, T, TRAINER, "trainer", 0);
    worker(w, 1, 3, seqs);
    groups(w, 5, 2, 2, 3);
    sync_ledger(w);
    return w;
}

static inline pl_msg consume(uint64_t step, uint64_t samples, uint64_t weights)
{
    return (pl_msg){.h.type = PL_MSG_CONSUME,
        .u.consume = {.step = step,
            .batch = step,
            .n_samples = 4,
            .samples = bed_hash(samples),
            .weights = bed_hash(weights)}};
}

static inline pl_msg version(uint32_t v, uint64_t hash)
{
    return (pl_msg){.h.type = PL_MSG_VERSION,
        .u.version = {.version = v,
            .hash = bed_hash(hash),
            .n_bytes = 8,
            .dir = "d",
            .host = "h",
            .endpoint = "ipc:///x"}};
}

static inline pl_msg progress(uint32_t uid, const text *t, uint32_t pos0, uint32_t n)
{
    return (pl_msg){.h.type = PL_MSG_PROGRESS,
        .u.progress = {.batch = 5,
            .uid = uid,
            .policy_version = 3,
            .pos0 = pos0,
            .tokens = {t->tokens + pos0, n},
            .logprobs = {t->logprobs + pos0, n},
            .sources = {t->sources + pos0, n}}};
}

#endif
