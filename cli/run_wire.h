/* cli/run_wire.h - the trainer's connection to the coordinator, and the weights that it publishes.
 */
#ifndef PL_CLI_RUN_WIRE_H
#define PL_CLI_RUN_WIRE_H

#include "cli/run.h"

enum { RUN_WAIT_MS = 50 };
static const double run_resend_s = 1.0; /* what is not answered is said again */

typedef struct run_wire {
    const run_config *config;
    const cli_model *m;
    const float *masters; /* of the policy, as they are now */
    const pl_log *log;
    int max_ctx;                  /* tokens of a sample at most */
    char dir[PL_CONFIG_STR + 16]; /* of the run, absolute */
    char host[64], address[512];
    uint64_t batch; /* at hand, for STATUS */
    /* DRAFTING and DRAFTER, whenever they come. */
    void (*on_drafter)(void *ctx, const pl_msg *m);
    uint32_t drafter;        /* newest version that was heard of, for STATUS */
    uint32_t drafter_before; /* newest of the sittings before */
    void *ctx;

    pl_ipc *ipc;
    pl_socket *socket;
    pl_publisher *publisher, *drafters; /* of the policy's versions, and of the drafter's */
    int welcomed;
    int is_anew;    /* welcomed by another coordinator, or again: what was said before is lost */
    uint64_t epoch; /* of the coordinator; 0: none yet */
    double heartbeat_s, hello_at, status_at, orphan_since;
    double lost_s, heard_at, listened_at;

    uint32_t version;
    char version_dir[PL_CONFIG_STR + 64];
    pl_hash weights, bundle;
    uint64_t n_weights, n_bundle;
    double version_at;
} run_wire;

/* The fields up to batch are set.  Errors: PL_E_PEER (no coordinator), those of sockets.  Pair:
 * run_wire_close. */
pl_status run_wire_open(run_wire *w, pl_error *err);
void run_wire_close(run_wire *w);

void run_wire_say(run_wire *w, pl_msg *m, pl_msg_type type);
/* 1, and *at is now, when `every` seconds have passed since. */
int run_is_due(double *at, double every);

/* One message for the caller, or PL_E_TIMEOUT.  Keeps the connection: HELLO, STATUS, a new socket
 * after a silence of twice lost_s.  Errors: PL_E_STOPPED (a signal, or no supervisor for a minute),
 * PL_E_PEER (refused for good). */
pl_status run_wire_listen(run_wire *w, int timeout_ms, pl_msg *m, pl_error *err);
/* The same for one who is busy: nothing is waited for, nothing handed out. */
void run_wire_alive(run_wire *w);

/* Write the policy as version `version`, durable, and hold it for those who fetch it. */
pl_status run_wire_publish(run_wire *w, uint32_t version, pl_error *err);
void run_wire_say_version(run_wire *w);

/* ---- run_figures.c: what workers tell of the drafter ---- */

typedef struct run_figures {
    struct run_worker_figures *list; /* [n], one a worker */
    int n;
    int64_t n_halts;
    double halt_s, halt_ms;
    int64_t n_published, n_rollbacks;
} run_figures;
/* Another batch begins; is_told: a step told of the one before, and of who left its session. */
void run_figures_clear(run_figures *f, int is_told);
void run_figures_done(run_figures *f);
void run_figures_take(run_figures *f, const pl_msg_drafting *m);
/* b's stats and drafting, from its responses and what was taken. */
void run_figures_sum(const run_figures *f, run_batch *b);
/* A version was published: say it, and serve it to other machines. */
void run_figures_version(run_figures *f, run_wire *w, const pl_msg_drafter *d);

#endif
