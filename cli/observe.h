/* cli/observe.h - keeps the snapshot of a run and the rows of its timeline: whoever knows what the
 * run does says so every 250 ms; strips, sums of seconds and the pace of steps are kept here. */
#ifndef PL_CLI_OBSERVE_H
#define PL_CLI_OBSERVE_H

#include "monitor/monitor.h"

enum { OBSERVE_PACE = 16 /* steps that the time to the end is guessed from */ };

typedef struct observe_track { /* of a worker */
    int is_seen;               /* in this round */
    int64_t since_us;          /* it is in its state */
} observe_track;

typedef struct observer {
    pl_snapshot now; /* fill in what is known between observe_begin and observe_end */
    pl_snapshot_file *file;
    pl_timeline *timeline;
    observe_track tracks[PL_SNAPSHOT_WORKERS]; /* as now.workers */
    uint32_t n_rows, n_beyond;                 /* workers with a row; others, this round */
    int64_t second;                            /* unix time of the last cell of the strips */
    int64_t at_ms, before_ms;                  /* this round, the one before */
    int64_t pace_step[OBSERVE_PACE], pace_ms[OBSERVE_PACE];
    int n_pace, has_pace; /* whole steps only */
    int is_first;
} observer;

/* Go on with RUN/snapshot if it is of this run, else a new one.  total_steps: wanted.  *returns
 * owned*.  Errors: those of pl_snapshot_open; PL_E_NOMEM.  The run may go on without. */
pl_status observe_open(
    observer **out, const char *run_dir, const char *run, int64_t total_steps, pl_error *err);

/* A round: the time is now, no worker has been seen. */
void observe_begin(observer *o);
void observe_phase(observer *o, pl_phase phase);
/* w: what it does now; its strip and seconds are kept here.  name: as it calls itself. */
void observe_worker(observer *o, const char *name, const pl_snapshot_worker *w);
/* Workers that were not seen have left; write. */
void observe_end(observer *o);

/* The last word of a run, if it had any before: finished or stopped. */
void observe_close(observer *o, int is_finished); /* accepts NULL */

#endif
