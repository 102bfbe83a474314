/* monitor/monitor.h - the writer of metrics.jsonl: one JSON object a step, with `step` and the
 * names of the field (actor/pg_loss, response_length/mean, timing_s/gen, perf/throughput, ...). */
#ifndef PL_MONITOR_MONITOR_H
#define PL_MONITOR_MONITOR_H

#include "core/error.h"

#include <stdint.h>

typedef struct pl_metric {
    const char *name; /* as "critic/rewards/mean" */
    double value;     /* NaN and infinity are written as null */
} pl_metric;

typedef struct pl_metrics pl_metrics; /* one thread at a time */

/* Open RUN/metrics.jsonl for appending; the directory must exist.  Lines of steps beyond last_step
 * (that of the checkpoint the run continues at; 0: a fresh run, which keeps lines of step 0; -1:
 * keep none) are cut off, and so is a torn last line.  Errors: PL_E_IO, PL_E_NOENT, PL_E_NOMEM. */
pl_status pl_metrics_open(pl_metrics **out, const char *run_dir, int64_t last_step, pl_error *err);
/* Append a line with one write: whole or, after an error, not at all.  Lines are not synced: a
 * power cut may cost the last ones, a killed process none.  Errors: PL_E_IO (disk full),
 * PL_E_NOMEM. */
pl_status pl_metrics_put(
    pl_metrics *m, int64_t step, const pl_metric *metrics, int n, pl_error *err);
void pl_metrics_close(pl_metrics *m); /* accepts NULL */

#endif
