/* cli/trace.h - what the verbs of `paceline trace` share: options, steps as rows, clean text. */
#ifndef PL_CLI_TRACE_H
#define PL_CLI_TRACE_H

#include "core/json.h"
#include "rollout/trace.h"

typedef struct trace_options {
    const char *path, *other; /* other: of diff */
    int64_t step;             /* --step; 0: all */
    int64_t sample;           /* --sample UID; -1: all */
    int tokens, json, all;
} trace_options;

/* A step as it counts (the last of its number), in sums and hashes. */
typedef struct trace_row {
    int64_t step, ordinal; /* ordinal: among all steps of the trace, from 0 */
    int n_times;           /* it stands in the trace */
    int n_groups, n, n_workers;
    uint32_t policy_version, drafter_version, first_uid;
    int64_t n_samples, n_tokens;
    uint64_t n_bytes, n_token_bytes;
    uint64_t draft, accepted, steps; /* spec_ counters */
    double gen_s, update_s, step_s, draft_s, verify_s;
    unsigned char before[16], after[16];
    uint64_t shape;   /* hash of uids, sampling and prompts */
    uint64_t samples; /* hash of what replay must give: tokens, hashes, finish, reward */
    uint64_t sources; /* hash of what may differ: token_source, spec_ counters */
} trace_row;

typedef struct trace_pass { /* passes of one size, all workers and steps */
    uint32_t rows;
    uint64_t n;
    double seconds;
} trace_pass;

enum { TRACE_PASSES = 256 };

typedef struct trace_rows {
    trace_row *rows; /* [n] rising steps */
    size_t n, room;
    int64_t n_read; /* steps in all */
    trace_pass passes[TRACE_PASSES];
    int n_passes;
    uint64_t config_hash; /* of the last RUN record */
    pl_trace_report report;
} trace_rows;

/* Errors: as pl_trace_read; rows has what stands before the damage.  Pair: trace_rows_done. */
pl_status trace_rows_read(trace_rows *t, const char *path, pl_error *err);
void trace_rows_done(trace_rows *t);
const trace_row *trace_rows_find(const trace_rows *t, int64_t step); /* NULL: not there */

/* Text for a terminal: bytes that are no printable ASCII become '?'.  In out [size]. */
const char *trace_clean(char *out, size_t size, const char *text);
/* A JSON string without control characters of any kind but escaped newlines. */
void trace_json_string(pl_json *j, const char *text, size_t n);
void trace_json_hash(pl_json *j, const unsigned char hash[16]);
void trace_json_int(pl_json *j, const char *key, int64_t v); /* key with its quotes and colon */
const char *trace_finish_name(pl_finish f);                  /* "stop" */
const char *trace_source_name(uint8_t source);               /* "suffix" */

static inline const char *trace_s(int64_t n) /* of a plural */
{
    return n == 1 ? "" : "s";
}

/* "step 3", or "steps 1 to 4", in out. */
const char *trace_steps(char out[64], int64_t first, int64_t last);

/* ---- the ledger (trace_ledger.c) ---- */

typedef struct trace_ledger {
    int is_contrary; /* it knows what the trace lacks: in cut */
    int is_unknown;  /* the run has a ledger, and not all of it could be compared */
    char cut[256];
    char said[256]; /* always: whether the two were compared, and why not */
} trace_ledger;

/* Read a trace, and compare it with the ledger of its run when path is no file alone.  PL_OK for
 * damaged traces too.  Errors: PL_E_NOENT, PL_E_IO, PL_E_NOMEM of the trace. */
pl_status trace_check(const char *path, pl_trace_report *r, trace_ledger *out, pl_error *err);
/* For those who use a trace: 1 and one line in out [size] when the run's ledger knows more than the
 * trace has; 0 and "" when it does not, or cannot be asked. */
int trace_beyond(const char *path, char *out, size_t size);

/* The verbs.  *exit_code is for results that are no errors: 65 damaged, 1 different. */
pl_status trace_verify(const trace_options *o, int *exit_code, pl_error *err);
pl_status trace_cat(const trace_options *o, int *exit_code, pl_error *err);
pl_status trace_stat(const trace_options *o, int *exit_code, pl_error *err);
pl_status trace_diff(const trace_options *o, int *exit_code, pl_error *err);
pl_status trace_export(const trace_options *o, int *exit_code, pl_error *err);

#endif
