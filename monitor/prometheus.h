/* monitor/prometheus.h - the figures of a run in Prometheus' text form, for GET /metrics. */
#ifndef PL_MONITOR_PROMETHEUS_H
#define PL_MONITOR_PROMETHEUS_H

#include "core/json.h"
#include "monitor/monitor.h"

/* Content-Type of the text. */
#define PL_PROMETHEUS_TYPE "text/plain; version=0.0.4; charset=utf-8"

/* Append to out (used as a plain text buffer; pl_json_check tells whether memory lasted): the
 * snapshot as paceline_* with HELP and TYPE, seconds and tokens as units, counters ending in
 * _total, a worker's figures labelled worker="name" for at most PL_SNAPSHOT_WORKERS of them; and of
 * each column of metrics.jsonl the newest value, "actor/pg_loss" as paceline_actor_pg_loss.
 * Either may be NULL.  is_alive: the run's process is there; else no time to its end is told. */
void pl_prometheus_text(const pl_snapshot *s, int is_alive, const pl_history *h, pl_json *out);

#endif
