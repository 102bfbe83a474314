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
 *   any -> over         [worker_tick, worker_message] STOP, refusal, patience, errors
 *
 * One who has joined and has nothing to roll out may be in a session of the spot trainer:
 *
 *     no session --(TRAIN)--> asked --(first piece of work)--> in it --(HALT, LEASE, ...)--> none
 *
 *   none -> asked  [worker_on_train]      shown as TRAINING from now on
 *   asked -> in it [worker_train]         io.train, piece by piece
 *   in it -> none  [worker_train, worker_tick, take_version] nobody wants it any more: io.train_end
 *
 * While io.train works, messages and time come in by its keep_on; what cannot be done in the middle
 * of it is kept by the wire until it has returned [worker_defers]. */
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
    WORKER_ANNOUNCES = 30,      /* of a version of the drafter, each after a second of silence */
};

static const int64_t WORKER_MS = 1000000; /* ns */

typedef struct worker_wire {
    void *ctx;
    int (*send)(void *ctx, const pl_msg *m); /* 0: dropped */
    void (*set_epoch)(void *ctx, uint64_t epoch);
    void (*reconnect)(void *ctx); /* as another incarnation */
    int64_t (*now_ns)(void *ctx); /* monotonic */
    /* Hand over by worker_message what has come in, until worker_defers keeps one back: that one
     * after io.train has returned.  Called from within io.train; NULL: there is nothing to hear. */
    pl_status (*listen)(void *ctx, pl_error *err);
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

/* A TRAIN or DRAFTER that outlives its message. */
typedef struct asked {
    pl_msg_train m; /* session 0: none */
    char text[PL_TEXT_BYTES];
} asked;

typedef struct staged {
    pl_msg_drafter m; /* version 0: none */
    char text[PL_TEXT_BYTES];
} staged;

typedef struct figures { /* of a DRAFTING */
    pl_msg_drafting m; /* its pointers are NULL */
    pl_pass_cost costs[PL_COST_BUCKETS];
    float alpha[PL_DRAFTING_DEPTHS];
} figures;

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

    /* the spot trainer */
    worker_mark train_mark; /* of TRAIN and HALT */
    asked asked;            /* what the coordinator wants */
    asked session;          /* what io.train was called with last, until io.train_end */
    uint64_t over;          /* sessions up to this one are over */
    int is_training;        /* io.train works: keep_on hears messages */
    int must_stop, is_declined, n_io_failures;
    pl_status train_status; /* of what was heard meanwhile; it ends the worker */
    pl_error train_error;

    /* the drafter */
    staged staged;            /* the newest that is not in use */
    int is_staged;            /* it is to be tried now */
    int n_drafter_failures;   /* of that one */
    uint32_t drafter_version; /* in use; 0: none */
    uint32_t drafter_known;   /* the newest that the coordinator has named */
    uint32_t announced;       /* said by this worker last */
    int n_announces;
    int64_t announced_ns;

    /* figures */
    figures figures;        /* as they were said last */
    uint64_t figures_batch; /* of a lease or a TRAIN, whichever came first */
    int has_figures;
    int has_run; /* samples ran at the last tick */
    int64_t figures_ns, idle_ns, ticked_ns;
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

/* Say STATUS, if joined: something is as it was not a moment ago. */
void worker_say_status(worker *w);
/* STATUS when it is due; ctx is the worker. */
void worker_keep_alive(void *ctx);

/* ---- worker_spot.c: sessions of the spot trainer, versions of the drafter, figures ---- */

void worker_on_train(worker *w, const pl_msg *m);
void worker_on_halt(worker *w, const pl_msg *m);
void worker_on_drafter(worker *w, const pl_msg *m);
/* There is a session that it is to take part in, and nothing to roll out. */
int worker_has_session(const worker *w);
/* One piece of work.  PL_E_TIMEOUT: there was nothing to do, rest a little.  Other errors end the
 * worker; those of the training itself do not. */
pl_status worker_train(worker *w, pl_error *err);
/* Leave the session, if it is in one; not from within io.train. */
void worker_end_session(worker *w);
/* 1: in the middle of io.train this message cannot be handled; io.train will return, then it is to
 * come by worker_message. */
int worker_defers(worker *w, const pl_msg *m);
/* Between rounds: the session that is over ends, a version is swapped in, or announced; figures. */
void worker_spot_tick(worker *w, int64_t now);
/* A batch begins, unless it has: the last figures of the one before. */
void worker_next_figures(worker *w, uint64_t batch);

/* ---- worker_samples.c: leases and their samples ---- */

/* 0: the sender has said something of the kind after h. */
int worker_mark_pass(worker_mark *mark, const pl_header *h);
pl_status worker_lease(worker *w, const pl_msg *m, pl_error *err);
void worker_revoke(worker *w, const pl_msg_uids *m);
void worker_ack(worker *w, const pl_msg_uids *m);
void worker_handover(worker *w, const pl_msg_uids *m);
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
