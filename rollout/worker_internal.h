/* rollout/worker_internal.h - what the files of the worker share; no other folder includes it.
 *
 * The worker is a machine without clock and socket of its own: messages and time come in, messages
 * go out by worker_wire.  rollout/worker.c gives it the real ones, tests give it others.
 *
 *     JOINING --(WELCOME)--> joined --(DRAIN, signal)--> draining --(all acknowledged, 2 s)--> over
 *        ^                     |
 *        `--(REJECT "HELLO", a higher epoch, silence)--'
 *
 *   JOINING -> joined   [welcome]      HELLO every second until then
 *   joined -> JOINING   [rejoin]       samples run on, results are held
 *   joined -> draining  [drain]        last PROGRESS of all that runs, then nothing runs
 *   any -> over         [worker_tick, worker_message] STOP, refusal, patience, errors */
#ifndef PL_ROLLOUT_WORKER_INTERNAL_H
#define PL_ROLLOUT_WORKER_INTERNAL_H

#include "rollout/worker.h"

#define WORKER_NONE UINT32_MAX /* no version is loaded */

enum {
    WORKER_TOKENS_MAX = 110000, /* of a response: its RESULT fits a record of the ledger */
    WORKER_UIDS_MAX = 1 << 16,  /* of a list in STATUS */
    WORKER_REFUSED_MAX = 64,    /* leases that cannot be run, remembered */
    WORKER_TRIES = 3,           /* of a load, of a lease */
    WORKER_TOLD_MAX = 5,        /* HELLOs in a row that were answered by "say HELLO" */
};

static const int64_t WORKER_MS = 1000000; /* ns */

typedef struct worker_wire {
    void *ctx;
    int (*send)(void *ctx, const pl_msg *m); /* 0: dropped */
    void (*set_epoch)(void *ctx, uint64_t epoch);
    void (*reconnect)(void *ctx); /* as another incarnation */
    int64_t (*now_ns)(void *ctx); /* monotonic */
} worker_wire;

/* One lease: running (or queued in the engine) until it is finished, then held. */
typedef struct sample {
    uint32_t uid, group, policy_version, attempt;
    int is_held;
    int n_prompt, max_tokens;
    int n;               /* tokens so far, the prefix included */
    int n_sent;          /* of those, in PROGRESS messages */
    unsigned n_progress; /* PROGRESS messages; every 8th starts at 0 */
    int64_t sent_ns;     /* last PROGRESS or RESULT */
    pl_finish finish;
    int draft, accepted, steps;
    float temperature;
    int32_t *prompt;  /* [n_prompt] lent to the engine */
    int32_t *tokens;  /* [max_tokens] these four stand behind the struct */
    float *logprobs;  /* [max_tokens] */
    uint8_t *sources; /* [max_tokens] */
} sample;

/* The newest of a kind of messages: what a sender said before it is out of date. */
typedef struct worker_mark {
    uint64_t incarnation, seq;
} worker_mark;

typedef struct worker {
    pl_worker_options o;
    pl_worker_io io;
    worker_wire wire;
    const pl_log *log;

    /* the session */
    int is_joined, is_draining, is_over;
    pl_status end; /* of a drain */
    uint64_t epoch;
    char run[65];
    uint32_t heartbeat_ms, lost_ms;
    int64_t heard_ns, linked_ns, hello_ns, status_ns, drain_ns;
    int is_told, n_told; /* "say HELLO" */
    int is_to_wait;      /* ... again, but later */
    int is_status_due;

    /* the version */
    pl_engine *engine; /* borrowed; NULL before the first load */
    uint32_t version;
    pl_hash hash;
    worker_mark version_mark;
    int n_load_failures;

    /* the batch */
    uint64_t batch;
    int has_batch;
    worker_mark lease_mark;
    sample **samples; /* [n_samples] by uid */
    uint32_t *uids;   /* [room] of a STATUS */
    int n_samples, n_running, room;
    struct {
        uint32_t uid;
        int n;
    } refused[WORKER_REFUSED_MAX];
    int n_refused;

    /* the rate */
    double busy_s, n_emitted;
} worker;

/* ---- worker_session.c: the dialogue with the coordinator ---- */

/* *borrows* everything.  Errors: PL_E_NOMEM, PL_E_INVAL (max_seqs). */
pl_status worker_new(worker **out, const pl_worker_options *o, const pl_worker_io *io,
    const worker_wire *wire, const pl_log *log, pl_error *err);
/* The engine keeps none of its samples. */
void worker_free(worker *w);
/* A message of the coordinator.  Errors end the worker. */
pl_status worker_message(worker *w, const pl_msg *m, pl_error *err);
/* What time brings: HELLO, STATUS, what is said again, patience, signals.  Errors end the worker.
 */
pl_status worker_tick(worker *w, pl_error *err);
/* Say LEAVE, if the coordinator knows this worker. */
void worker_leave(worker *w);

/* ---- worker_samples.c: leases and their samples ---- */

/* 0: the sender has said something of the kind after h. */
int worker_mark_pass(worker_mark *mark, const pl_header *h);
pl_status worker_lease(worker *w, const pl_msg *m, pl_error *err);
void worker_revoke(worker *w, const pl_msg_uids *m);
void worker_ack(worker *w, const pl_msg_uids *m);
/* Drop what runs; results stay. */
void worker_drop_running(worker *w);
/* Drop everything. */
void worker_drop_all(worker *w);
/* PROGRESS and RESULT, as far as they are due. */
void worker_report(worker *w);
/* PROGRESS of everything that runs, from its first token. */
void worker_report_all(worker *w);
/* What was said may have been lost: results and whole texts are due again. */
void worker_report_anew(worker *w);
/* One round of the engine; only when something runs. */
pl_status worker_round(worker *w, pl_error *err);

#endif
