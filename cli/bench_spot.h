/* cli/bench_spot.h - a spot trainer with made-up windows, for the benches of drafter training: what
 * the numbers in them are does not change the time. */
#ifndef PL_CLI_BENCH_SPOT_H
#define PL_CLI_BENCH_SPOT_H

#include "cli/bench.h"
#include "trainer/spot.h"

typedef struct bench_spot {
    char dir[64], buffer[80], drafter[80]; /* temporary */
    pl_spot_options o;
    pl_windows *w;
    pl_spot *s;
    uint64_t session;
} bench_spot;

/* A drafter of the usual size for the model, random, and windows of 256 tokens: n_train to train
 * on, n_held held out.  One step is done.  Errors: those of the spot trainer. */
pl_status bench_spot_open(bench_spot *x, const pl_model *m, int n_train, int n_held, pl_error *err);
void bench_spot_close(bench_spot *x);
/* Begin the next session as its lead. */
pl_status bench_spot_begin(bench_spot *x, pl_error *err);

#endif
