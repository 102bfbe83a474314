/* cli/simulate.h - what `paceline simulate` and `paceline bench simulate` share: a recorded run as
 * the simulator wants it. */
#ifndef PL_CLI_SIMULATE_H
#define PL_CLI_SIMULATE_H

#include "rollout/simulate.h"

/* A STEP record. */
typedef struct simulate_record {
    int64_t step;
    int counts; /* it is looked at, and no later one is of that step */
} simulate_record;

/* A run's trace and what else it says of its shape. */
typedef struct simulate_run {
    const char *dir;               /* borrowed */
    int64_t first, last;           /* steps that are looked at */
    pl_sim_options o;              /* as the run was */
    int n_threads;                 /* of a worker; 0: the run does not say */
    simulate_record *steps;        /* [n_records] in order */
    int n_records, room, n;        /* n: steps that count */
    int64_t first_step, last_step; /* that the trace has */
    pl_sim_costs costs;            /* of these steps, not yet settled */
    int can_fit;                   /* some pass was measured */
} simulate_run;

/* Read steps first..last of RUN/trace (0, INT64_MAX: all) and fit the costs.  Errors: those of
 * pl_trace_read; PL_E_NOENT when there is no such step.  Pair: simulate_close. */
pl_status simulate_open(
    simulate_run *r, const char *dir, int64_t first, int64_t last, pl_error *err);
void simulate_close(simulate_run *r);
/* Simulate the run as it was, and settle its costs by what its rollouts took. */
pl_status simulate_settle(simulate_run *r, pl_error *err);

/* One coordinator over the steps of r; visit is called after each. */
typedef pl_status (*simulate_fn)(
    void *ctx, const pl_trace_step *step, const pl_sim_result *result, pl_error *err);
pl_status simulate_steps(const simulate_run *r, const pl_sim_options *o, const pl_sim_costs *costs,
    simulate_fn visit, void *ctx, pl_error *err);

/* Sums over steps; n_workers of the last one. */
typedef struct simulate_sum {
    pl_sim_result r; /* strips: means by step */
    int n;
} simulate_sum;
void simulate_add(simulate_sum *sum, const pl_sim_result *r);

#endif
