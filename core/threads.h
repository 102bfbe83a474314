/* core/threads.h - a fixed team of threads, one a core, for parallel regions of microseconds. */
#ifndef PL_CORE_THREADS_H
#define PL_CORE_THREADS_H

#include "core/error.h"

typedef struct pl_team pl_team;

/* What every thread of the team runs; i_thread 0 is the caller. */
typedef void (*pl_team_fn)(void *ctx, int i_thread, int n_threads);

/* n_threads >= 1 (0: the number of CPUs in the affinity mask).  Threads 1.. are created, pinned to
 * the CPUs of the mask in order when pin is set and n_threads does not exceed them, and spin for a
 * few microseconds before they sleep in a futex.  Every thread, the caller too, gets FTZ and DAZ
 * set (NUMERICS 1); the caller's CPU affinity is not changed.  Errors: PL_E_NOMEM, PL_E_INVAL. */
pl_status pl_team_new(pl_team **out, int n_threads, int pin, pl_error *err);
void pl_team_free(pl_team *team);

int pl_team_size(const pl_team *team);

/* Run fn on all threads and return when all have returned.  One caller at a time. */
void pl_team_run(pl_team *team, pl_team_fn fn, void *ctx);

/* Inside fn only: wait until every thread of the team is here. */
void pl_team_barrier(pl_team *team);

/* The [begin, end) share of n items for thread i_thread, in multiples of grain. */
void pl_share(int n, int grain, int i_thread, int n_threads, int *begin, int *end);

/* Set FTZ and DAZ in the calling thread (part of the numeric class).  Returns the old MXCSR. */
unsigned pl_fp_enter(void);

#endif
