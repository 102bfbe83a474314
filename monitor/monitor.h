/* monitor/monitor.h - what is known of a run while it runs and afterwards, written by the run and
 * read by others: metrics.jsonl, the snapshot of now, the timeline, TensorBoard's event files.
 *
 * A monitor is another process that reads files: it can do nothing to the run. */
#ifndef PL_MONITOR_MONITOR_H
#define PL_MONITOR_MONITOR_H

#include "core/error.h"
#include "core/json.h"
#include "ipc/schema.h"

#include <stddef.h>
#include <stdint.h>

/* ---- metrics.jsonl: one JSON object a step, with `step` and the names of the field
 * (actor/pg_loss, response_length/mean, timing_s/gen, perf/throughput, ...) ---- */

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

/* ---- TensorBoard: RUN/events.out.tfevents.*, the same figures as scalars ---- */

typedef struct pl_events pl_events;
/* A new file of this process and second, its first record brain.Event:2.  Errors: PL_E_IO,
 * PL_E_NOENT, PL_E_NOMEM. */
pl_status pl_events_open(pl_events **out, const char *run_dir, pl_error *err);
/* One record a call with all scalars; NaN and infinity are left out.  Errors: PL_E_IO, PL_E_NOMEM.
 */
pl_status pl_events_put(
    pl_events *e, int64_t step, double unix_s, const pl_metric *metrics, int n, pl_error *err);
void pl_events_close(pl_events *e); /* accepts NULL */

/* ---- the timeline: RUN/trace.json, Chrome's trace events (opens in Perfetto) ---- */

/* One process of a run appends to it with one write an event, so that several may; the array's
 * closing bracket is left out, as the format allows.  At most max_bytes, then events are dropped
 * and that is said once, in the file. */
typedef struct pl_timeline pl_timeline;
pl_status pl_timeline_open(pl_timeline **out, const char *run_dir, size_t max_bytes, pl_error *err);
/* name did this from begin_us on, for us (CLOCK_REALTIME microseconds); track: whose row
 * ("worker-0", "trainer"), at most 63 bytes; detail (may be NULL): JSON object text of its args. */
void pl_timeline_put(pl_timeline *t, const char *track, const char *name, int64_t begin_us,
    int64_t us, const char *detail);
void pl_timeline_close(pl_timeline *t); /* accepts NULL */

/* An event read back: clean text. */
typedef struct pl_timeline_event {
    char track[64], name[64];
    int64_t begin_us, us; /* unix time; how long */
    const char *detail;   /* JSON object of its plain members, borrowed for the call; "" for none */
} pl_timeline_event;
typedef int (*pl_timeline_fn)(void *ctx, const pl_timeline_event *e); /* not 0: enough */
/* Read trace.json on from the byte *at (0: the start), at most max_bytes of it, and move *at behind
 * the last whole line taken: events that end at from_us or later, in the order of the file.
 * *at greater than the file (it was replaced): from the start.  Lines that are no events are passed
 * over.  Errors: PL_E_NOENT (there is none), PL_E_IO, PL_E_NOMEM. */
pl_status pl_timeline_read(const char *run_dir, int64_t *at, size_t max_bytes, int64_t from_us,
    pl_timeline_fn fn, void *ctx, pl_error *err);

/* ---- the snapshot: RUN/snapshot, what the run does now ---- */

enum {
    PL_SNAPSHOT_WORKERS = 128, /* shown one by one; the others are in the sums */
    PL_SNAPSHOT_STRIP = 240,   /* seconds of a worker's past */
    PL_SNAPSHOT_LENGTHS = 48,  /* buckets of response lengths: pl_snapshot_length */
    PL_SNAPSHOT_TEXT = 512,
};

typedef enum pl_phase {
    PL_PHASE_STARTING,
    PL_PHASE_ROLLOUT, /* of training samples */
    PL_PHASE_REWARD,  /* all are rolled out, rewards are awaited */
    PL_PHASE_UPDATE,
    PL_PHASE_EVAL,
    PL_PHASE_COMPARE,
    PL_PHASE_CHECKPOINT,
    PL_PHASE_DONE,
    PL_PHASE_STOPPED,
    PL_PHASES
} pl_phase;
const char *pl_phase_name(pl_phase p); /* "rollout" */

typedef struct pl_snapshot_worker {
    char name[32];
    uint8_t state;                    /* pl_worker_state */
    uint8_t strip[PL_SNAPSHOT_STRIP]; /* pl_worker_state + 1 of each second, the last is now; 0: was
                                         not there */
    uint32_t n_threads, pid;
    uint32_t policy_version, drafter_version;
    uint32_t n_running, n_held;       /* samples; finished, not acknowledged */
    float rate;                       /* tokens/s; 0: not known */
    float busy_s, training_s, idle_s; /* since it joined */
} pl_snapshot_worker;

/* Plain bytes, the same layout for writer and reader of one build. */
typedef struct pl_snapshot {
    char run[40];                             /* run id */
    uint32_t pid;                             /* of the writer */
    uint32_t phase;                           /* pl_phase */
    int64_t started_ms, updated_ms, phase_ms; /* unix time: of the run, of this, of the phase */
    int64_t step, total_steps;                /* steps done; wanted */
    uint64_t batch;
    uint32_t n_samples, n_done, n_running, n_queued; /* of the batch at hand */
    uint64_t n_tokens;                               /* of the batch so far */
    double rate;  /* tokens/s, all workers, over the last seconds */
    double eta_s; /* to the end of the run; NaN: not known */
    uint32_t policy_version, drafter_version;
    uint64_t session;                              /* of the spot trainer; 0: none */
    uint32_t lengths[PL_SNAPSHOT_LENGTHS];         /* finished responses of the batch, by length */
    uint32_t running_lengths[PL_SNAPSHOT_LENGTHS]; /* running ones, as far as they are */
    uint32_t n_lost, n_quarantined;                /* workers, so far */
    uint64_t n_leased_again, n_recomputed;
    char awaited[PL_SNAPSHOT_TEXT]; /* what is awaited, from whom, in words; clean UTF-8 */
    uint32_t n_workers;             /* in all; the first PL_SNAPSHOT_WORKERS follow */
    pl_snapshot_worker workers[PL_SNAPSHOT_WORKERS];
} pl_snapshot;

/* Bucket of a length in tokens (4 an octave), and the smallest length of a bucket. */
int pl_snapshot_bucket(int n_tokens);
int pl_snapshot_length(int bucket);

/* The file has a fixed size and two places, written in turn and hashed: a reader takes the newest
 * that is whole and never makes the writer wait; a writer that dies in the middle leaves the one
 * before.  One writer. */
typedef struct pl_snapshot_file pl_snapshot_file;
pl_status pl_snapshot_open(pl_snapshot_file **out, const char *run_dir, pl_error *err);
void pl_snapshot_write(pl_snapshot_file *f, const pl_snapshot *s);
void pl_snapshot_close(pl_snapshot_file *f); /* accepts NULL */
/* A consistent copy; its text is clean, its numbers are in range.  Errors: PL_E_NOENT (the run
 * never wrote one), PL_E_FORMAT (of another build, or damaged), PL_E_TIMEOUT (none is whole). */
pl_status pl_snapshot_read(const char *run_dir, pl_snapshot *out, pl_error *err);
/* As one JSON object under the names of the fields, on one line: phase and state in words, a strip
 * as a string of one letter a second (.JBITSDL: not there, JOINING, BUSY, IDLE, TRAINING, STOPPING,
 * DRAINING, LOST), no version and what is not known as null, length_from: smallest length of each
 * bucket. */
void pl_snapshot_json(const pl_snapshot *s, pl_json *j);
/* Back from that; what is missing or out of range is 0, text is made clean.  Errors: PL_E_FORMAT
 * (no such object). */
pl_status pl_snapshot_parse(const char *text, size_t n, pl_snapshot *out, pl_error *err);
const char *pl_worker_state_name(unsigned state); /* "BUSY" */

/* ---- reading a run: metrics.jsonl and rollouts/ as columns ---- */

/* All lines of metrics.jsonl so far, by name; lines of one step are merged.  Bounded: the newest
 * PL_HISTORY_STEPS steps, PL_HISTORY_NAMES names. */
enum { PL_HISTORY_STEPS = 100000, PL_HISTORY_NAMES = 256 };
typedef struct pl_history pl_history; /* one thread at a time; read nothing before the first poll */
/* Errors: PL_E_NOENT (no such directory; a missing file is an empty one), PL_E_IO, PL_E_NOMEM. */
pl_status pl_history_open(pl_history **out, const char *run_dir, pl_error *err);
/* Take what was appended since, 256 MiB at most (or all anew, when the file was cut or replaced): 1
 * when something was.  Columns and steps handed out before are then gone.  Lines that are no JSON
 * object with a step, or longer than 1 MiB, are passed over; names that hold control characters or
 * are longer than 127 bytes are left out. */
int pl_history_poll(pl_history *h);
int pl_history_steps(const pl_history *h, const int64_t **steps); /* how many */
int pl_history_names(const pl_history *h, const char *const **names);
/* [pl_history_steps] in order of steps, NaN where a step has none; NULL: no such name. */
const double *pl_history_column(const pl_history *h, const char *name);
int64_t pl_history_bad_lines(const pl_history *h);
/* errno of opening metrics.jsonl at the last poll; 0: it was read. */
int pl_history_error(const pl_history *h);
void pl_history_close(pl_history *h); /* accepts NULL */

#endif
