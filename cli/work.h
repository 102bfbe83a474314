/* cli/work.h - what the two files of `paceline worker` share. */
#ifndef PL_CLI_WORK_H
#define PL_CLI_WORK_H

#include "cli/run.h"
#include "rollout/worker.h"

enum { WORK_FETCH_MS = 30000 };

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
    /* A version of the drafter that waits to be announced; version 0: none. */
    pl_msg_drafter announced;
    char announced_dir[PL_CONFIG_STR + 64];
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
    const work *w, const char *path, const pl_hash *root, uint64_t n_bytes, pl_error *err);

/* ---- work_drafting.c: callbacks of pl_worker_io, ctx is the work ---- */

pl_status work_train(
    void *ctx, const pl_msg_train *t, int (*keep_on)(void *), void *k_ctx, pl_error *err);
void work_train_end(void *ctx);
pl_status work_drafter(
    void *ctx, const pl_msg_drafter *d, void (*keep_alive)(void *), void *ka_ctx, pl_error *err);
void work_figures(void *ctx, pl_msg_drafting *m);
void work_speculate(void *ctx, uint32_t how);
int work_publish(void *ctx, pl_msg_drafter *d);

#endif
