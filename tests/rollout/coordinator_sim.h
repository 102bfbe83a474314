/* tests/rollout/coordinator_sim.h - a run in one process: a network that drops, doubles, delays and
 * overtakes, workers and a trainer that crash, stop and come back, a coordinator whose power fails.
 * Everything is drawn from the seed. */
#ifndef PL_TESTS_COORDINATOR_SIM_H
#define PL_TESTS_COORDINATOR_SIM_H

#include "tests/rollout/coordinator_bed.h"

enum {
    N_WORKERS = 3,
    N_GROUPS = 3,
    N_SIBLINGS = 2,
    N_SAMPLES = N_GROUPS * N_SIBLINGS,
    N_STEPS = 4,
    TICK_MS = 25,
    FAULTS_MS = 20000, /* then nothing fails any more */
    END_MS = 200000,   /* and the run must be done by then */
    SLOTS = 16,
};

typedef struct flight {
    packet p;
    int to_coordinator;
    int64_t due_ms;
} flight;

typedef struct work {
    int used, held, refused;
    uint64_t batch;
    uint32_t uid, group, version, attempt;
    text t; /* what it makes of it */
    uint32_t n, told;
    int64_t said_ms;
} work;

typedef struct sim_worker {
    uint64_t incarnation, epoch, seq, mark;
    int is_up, joined, lies;
    int64_t outside_ms; /* told to wait since */
    uint32_t version;   /* UINT32_MAX: none */
    uint64_t batch;
    work at[SLOTS];
    int64_t hello_ms, status_ms, wake_ms; /* wake: frozen, or down, until then */
    uint32_t shown_version;               /* of the newest STATUS that the coordinator got */
    uint64_t shown_seq;
    /* the spot trainer */
    uint64_t session, session_batch; /* 0: none */
    uint64_t train_seq;              /* newest TRAIN or HALT */
    int is_lead, is_early;           /* early: it leaves by itself */
    int64_t overdue_ms, announced_ns;
    uint32_t drafter;    /* in use */
    pl_msg_drafter made; /* to be announced; version 0: none */
} sim_worker;

enum { AWAITED, HAVE, SENT, READY };

typedef struct sim_trainer {
    uint64_t incarnation, epoch, seq;
    int is_up, joined;
    uint64_t step; /* that is trained now, 1..N_STEPS; then DONE */
    uint64_t batch;
    enum { COLLECT, CONSUME, EVALUATE, FINISH, HOME } phase;
    int state[N_SAMPLES];
    uint32_t attempt[N_SAMPLES], position[N_SAMPLES];
    text texts[N_SAMPLES];
    float rewards[N_SAMPLES];
    pl_msg_batch progress;
    int64_t hello_ms, said_ms, groups_ms, wake_ms;
    uint64_t checkpoint; /* on its disk */
} sim_trainer;

typedef struct stored { /* what the durable ledger says */
    int is_there, has_reward;
    text t;
    float reward;
} stored;

typedef struct sim {
    uint64_t seed, state;
    int64_t now_ms;
    int with_liars;
    pl_coordinator *c;
    int64_t up_ms; /* when a crashed coordinator is back */
    uint64_t seq;
    packets ledger;
    int n_durable, n_seen; /* records: durable; of those, applied to the truth below */
    flight *net;
    int n_net, room_net;
    sim_worker workers[N_WORKERS];
    sim_trainer trainer;
    uint64_t next_incarnation;
    stored samples[2][N_STEPS + 1][N_SAMPLES]; /* [kind][step] */
    int n_groups_durable[2][N_STEPS + 1];
    pl_msg_consume consumed[N_STEPS + 1];
    int is_consumed[N_STEPS + 1];
    int n_crashes, n_again, n_refused, n_resent, n_quarantined, n_tainted;
    /* the spot trainer */
    uint64_t owner;             /* of the state file: a session */
    uint32_t n_made;            /* versions, as the state file counts them */
    uint64_t top, before;       /* newest session that was said, the one before */
    pl_peer lead;               /* of top */
    uint32_t drafter;           /* newest durable version */
    pl_coordinator_stats stats; /* of coordinators that are gone, some of them */
    int n_swapped, n_handed;
    const char *broken; /* the first invariant that did not hold */
    char detail[160];
} sim;

/* One run; s->broken tells. */
void sim_run(sim *s, uint64_t seed);
void sim_break(sim *s, const char *claim, uint64_t a, uint64_t b);
uint32_t sim_draw(sim *s, uint32_t n); /* 0 .. n - 1 */
int sim_faults(const sim *s);
void sim_send(sim *s, int to_coordinator, const pl_peer *peer, const pl_msg *m);
pl_hash sim_weights(uint64_t step);
stored *sim_stored(sim *s, uint64_t batch, uint32_t uid);

void sim_worker_start(sim *s, int i);
void sim_worker_hear(sim *s, int i, const pl_msg *m);
void sim_worker_tick(sim *s, int i);
void sim_worker_say(sim *s, int i, pl_msg *m, uint16_t type);
void sim_worker_progress(sim *s, int i, work *at, uint32_t pos0);
int sim_is_complete(sim *s, uint64_t batch);

/* coordinator_sim_spot.c: the same for sessions and versions of the drafter */
void sim_spot_hear(sim *s, int i, const pl_msg *m);
void sim_spot_tick(sim *s, int i);
void sim_spot_check(sim *s, const pl_peer *to, const pl_msg *m); /* what the coordinator says */
void sim_spot_record(sim *s, const pl_msg_drafter *d);           /* is durable */
void sim_spot_count(sim *s);                                     /* a coordinator goes */

void sim_trainer_start(sim *s);
void sim_trainer_hear(sim *s, const pl_msg *m);
void sim_trainer_tick(sim *s);

#endif
