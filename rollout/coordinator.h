/* rollout/coordinator.h - leases, members, versions: the one truth of a run of many processes.
 *
 * A state machine without clock, sockets or disk of its own: events in, actions out by
 * pl_coordinator_io; rollout/coordinate.c gives it the real ones, tests give it others.  Knows no
 * tensors. */
#ifndef PL_ROLLOUT_COORDINATOR_H
#define PL_ROLLOUT_COORDINATOR_H

#include "core/error.h"
#include "core/log.h"
#include "ipc/ipc.h"
#include "ipc/schema.h"

#include <stdint.h>
#include <stdio.h>

typedef struct pl_coordinator_options {
    const char *run; /* run id, hex */
    const char *build, *numeric_class;
    uint64_t config_hash;
    const void *config; /* [n_config] resolved config.yaml, for WELCOME */
    uint32_t n_config;
    uint32_t heartbeat_ms; /* 500 */
    uint32_t lost_ms;      /* silence after which a worker's samples go elsewhere */
    uint32_t resend_ms;    /* 1000: an unanswered LEASE, RESULT to the trainer ... is said again */
    uint32_t n_workers;    /* that are being started: the first batch waits a little for them */
    uint32_t stall_s;      /* trainer.stall_seconds; 0: never report */
    uint32_t join_timeout_s; /* no trainer or no worker for so long is said in the log */
    int spot_min_idle; /* so many idle workers begin a session of the spot trainer; 0: never */
    uint32_t
        spot_budget_s; /* its sessions of one batch take so long at most; 0: as the batch does */
    uint32_t consolidate_below; /* so few running samples are put together on fewer workers; 0: off
                                 */
    int members_max;            /* at once, lost ones too; 0: 1024 */
} pl_coordinator_options;

/* What the machine does to the world.  record appends to the ledger, not yet durable: after the
 * next fsync the owner calls pl_coordinator_synced, and only then ACK, RESULT to the trainer,
 * REWARD, CONSUME and VERSION leave.  A failed record is fatal: its error is returned. */
typedef struct pl_coordinator_io {
    void *ctx;
    void (*send)(void *ctx, const pl_peer *peer, const pl_msg *m);
    void (*drop)(void *ctx, const pl_peer *peer); /* after a REJECT, or a lost peer */
    pl_status (*record)(void *ctx, const pl_msg *m, pl_error *err);
    /* 1: the process of this peer has surely ended; 0: it runs, or that cannot be told.  NULL:
     * silence alone tells. */
    int (*is_dead)(void *ctx, const pl_peer *peer);
} pl_coordinator_io;

typedef struct pl_coordinator pl_coordinator;

pl_status pl_coordinator_new(pl_coordinator **out, const pl_coordinator_options *o,
    const pl_coordinator_io *io, const pl_log *log, pl_error *err);
void pl_coordinator_free(pl_coordinator *c);

/* Recovery: every record of the ledger in order, before begin.  Errors: PL_E_FORMAT for a record
 * that contradicts those before it. */
pl_status pl_coordinator_replay(pl_coordinator *c, const pl_msg *record, pl_error *err);
/* Record the next epoch, or refuse (PL_E_CONFIG: another run or numeric class).  Once synced, the
 * machine talks, in that epoch. */
pl_status pl_coordinator_begin(pl_coordinator *c, int64_t now_ns, pl_error *err);
uint64_t pl_coordinator_epoch(const pl_coordinator *c);

/* A message of a peer, and time passing (call tick at least every 50 ms).  Errors are those of the
 * ledger and of memory: the coordinator must end.  What a peer does wrong is answered, counted and
 * logged, never an error. */
pl_status pl_coordinator_message(
    pl_coordinator *c, int64_t now_ns, const pl_peer *from, const pl_msg *m, pl_error *err);
pl_status pl_coordinator_tick(pl_coordinator *c, int64_t now_ns, pl_error *err);
/* Something was recorded since the last synced. */
int pl_coordinator_unsynced(const pl_coordinator *c);
pl_status pl_coordinator_synced(pl_coordinator *c, int64_t now_ns, pl_error *err);
/* DONE was recorded and synced, STOP was sent: the owner may leave. */
int pl_coordinator_is_done(const pl_coordinator *c);
/* DRAIN to every worker (SIGTERM). */
void pl_coordinator_drain(pl_coordinator *c, int64_t now_ns);

/* What it is doing, for the stall report, the status file and tests. */
typedef struct pl_coordinator_stats {
    int n_workers, n_lost, n_quarantined;
    int n_pending, n_leased, n_done;    /* samples of the batch at hand */
    uint64_t n_leases, n_releases;      /* granted; granted again after a loss */
    uint64_t n_duplicates, n_conflicts; /* equal, different second results */
    uint64_t n_old_epoch, n_rejected, n_refused, n_invalid;
    uint64_t n_stale;             /* results of an older attempt, or of what was leased to nobody */
    uint64_t n_pardoned;          /* of n_quarantined: let in again */
    uint64_t recomputed_tokens;   /* emitted by lost workers and not journalled */
    uint64_t session;             /* of the spot trainer, that runs; 0: none */
    uint64_t n_sessions, n_moved; /* begun; of those, under another lead than the one before */
    uint32_t drafter_version;     /* the newest that is durable; 0: none */
    uint64_t n_old_drafters;      /* versions that came doubled or too late */
    uint64_t n_refused_drafters;  /* of a session that is neither this one nor the last */
    uint64_t n_handovers;         /* samples that were asked back */
    uint64_t n_impossible;        /* transitions of members that did not happen: bugs */
    int64_t last_progress_ns;
} pl_coordinator_stats;
void pl_coordinator_get_stats(const pl_coordinator *c, pl_coordinator_stats *s);
/* What is awaited, from whom, since when: one line each. */
void pl_coordinator_describe(const pl_coordinator *c, int64_t now_ns, FILE *out);

/* ---- what it does now, for who watches: figures of this moment, nothing is changed ---- */

typedef struct pl_coordinator_view {
    int has_batch; /* the next fields are of the batch at hand: */
    uint64_t batch;
    uint32_t n_samples, n_done, n_running, n_queued; /* of the groups that are known */
    uint32_t n_rewarded;                             /* rewards that are durable */
    uint64_t n_tokens;                               /* known so far */
    int is_complete;                                 /* every result is durable */
    int is_consumed;                                 /* a step was trained on it */
    uint64_t step, checkpoint;                       /* the newest that is durable; 0: none */
    uint32_t policy_version, drafter_version;
    uint64_t session; /* of the spot trainer; 0: none */
    uint32_t n_workers, n_lost, n_quarantined;
    uint64_t n_leased_again, n_recomputed;
    int is_done;
    char awaited[320]; /* what, from whom, since when: one line; names in it are the peers' words */
} pl_coordinator_view;
void pl_coordinator_watch(const pl_coordinator *c, int64_t now_ns, pl_coordinator_view *out);

typedef struct pl_coordinator_worker {
    const char *name; /* as it calls itself */
    pl_worker_state state;
    uint32_t pid, n_threads, policy_version; /* UINT32_MAX: none */
    uint32_t drafter_version;
    uint32_t n_leased, n_held; /* samples; finished, not acknowledged, as it last said */
    float rate;                /* tokens/s, as it last said; 0: not known */
} pl_coordinator_worker;
/* Each worker, lost ones too; each sample of the batch at hand that runs or is done, with the
 * response tokens that are known. */
void pl_coordinator_each_worker(
    const pl_coordinator *c, void (*take)(void *ctx, const pl_coordinator_worker *w), void *ctx);
void pl_coordinator_each_length(
    const pl_coordinator *c, void (*take)(void *ctx, uint32_t n_tokens, int is_done), void *ctx);

/* ---- the process: sockets, clock, ledger ---- */

typedef struct pl_coordinate_options {
    pl_coordinator_options machine;
    const char *ledger;            /* directory: RUN/ledger */
    const char *address;           /* ipc:// of this machine */
    const char *listen;            /* tcp:// for others; NULL */
    const char *keys;              /* CURVE directory; NULL */
    const char *endpoint_file;     /* the addresses, written whole when they are bound */
    int (*should_stop)(void *ctx); /* asked every loop: 1 drain and leave, 2 leave now */
    /* Called every 250 ms, and a last time when the loop ends; may be NULL. */
    void (*observe)(void *ctx, const pl_coordinator *machine, int64_t now_ns);
    void *ctx;
} pl_coordinate_options;
/* Until the run is done (PL_OK), or asked to stop (PL_E_STOPPED), or its ledger fails. */
pl_status pl_coordinate(const pl_coordinate_options *o, const pl_log *log, pl_error *err);

#endif
