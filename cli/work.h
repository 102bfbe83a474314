/* cli/work.h - what the two files of `paceline worker` share. */
#ifndef PL_CLI_WORK_H
#define PL_CLI_WORK_H

#include "cli/run.h"
#include "rollout/worker.h"

#include <pthread.h>
#include <stdatomic.h>

enum { WORK_FETCH_MS = 30000 };

/* A version of the drafter that a thread hashes, and reads: it takes a tenth of a second, in which
 * nobody would hear that the core is wanted back. */
typedef struct work_reader {
    pthread_t thread;
    int is_running;      /* a thread must be joined */
    _Atomic int is_done; /* it has nothing left to do */
    char dir[PL_CONFIG_STR + 128];
    pl_msg_drafter what;    /* version, hash and n_bytes are used, and written when it is hashed */
    const pl_model *target; /* NULL: it is hashed alone */
    pl_eagle *e;            /* *owned*: what was read, packed */
    pl_status status;
    pl_error err;
} work_reader;

typedef struct work {
    pl_worker_options o;
    int64_t threads;
    const char *isa;
    pl_log log;
    pl_ipc *ipc;
    char host[64];
    char run_dir[PL_CONFIG_STR]; /* of a run on this machine; empty: elsewhere */
    run_config config;           /* of the run, from WELCOME */
    cli_model m;                 /* model NULL: nothing loaded yet */
    pl_engine *engine;
    run_drafting *drafting;         /* NULL: no learned drafter */
    char cache[PL_CONFIG_STR + 32]; /* what was fetched; empty until then */
    uint32_t told;                  /* the newest version of the drafter that the run knows */
    work_reader hasher;             /* of a version that was made here */
    work_reader reader;             /* of one that is to be used */
    /* A version of the drafter that waits to be announced; version 0: none. */
    pl_msg_drafter announced;
    char announced_dir[PL_CONFIG_STR + 128];
    /* figures */
    uint64_t batch, led; /* at hand; the session that was led last */
    float alpha[PL_DRAFTING_DEPTHS];
    pl_pass_cost costs[PL_COST_BUCKETS];
} work;

/* ---- work.c ---- */

/* A directory of our own for what comes over the wire: w->cache. */
pl_status work_make_cache(work *w, pl_error *err);
/* Where chunks of endpoint are served, as this machine reaches it. */
void work_reach(const work *w, const char *endpoint, char *out, size_t n);
/* The file is the content that root names.  Errors: PL_E_FORMAT when not. */
pl_status work_check_file(
    int n_threads, const char *path, const pl_hash *root, uint64_t n_bytes, pl_error *err);

/* ---- work_drafting.c: callbacks of pl_worker_io, ctx is the work ---- */

pl_status work_train(
    void *ctx, const pl_msg_train *t, int (*keep_on)(void *), void *k_ctx, pl_error *err);
void work_train_end(void *ctx);
pl_status work_drafter(
    void *ctx, const pl_msg_drafter *d, void (*keep_alive)(void *), void *ka_ctx, pl_error *err);
void work_figures(void *ctx, pl_msg_drafting *m);
void work_speculate(void *ctx, uint32_t how);
int work_publish(void *ctx, pl_msg_drafter *d);
void work_drafting_close(work *w);

#endif
