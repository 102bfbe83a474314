/* monitor/samples.h - the samples of a run: an index of RUN/rollouts/, to be searched; a record is
 * read again from its file when somebody asks for it.
 *
 * The files are hostile until parsed: a damaged frame ends a file's rows, a broken line is counted
 * and passed over, lengths are bounded.  All text that comes out is clean UTF-8 JSON. */
#ifndef PL_MONITOR_SAMPLES_H
#define PL_MONITOR_SAMPLES_H

#include "core/error.h"
#include "core/json.h"

#include <stddef.h>
#include <stdint.h>

enum {
    PL_SAMPLES_ROWS = 1 << 20,    /* kept; beyond, the oldest steps are forgotten */
    PL_SAMPLES_PAGE = 500,        /* rows of one answer, at most */
    PL_SAMPLES_LINE = 8 << 20,    /* bytes of a record, at most: longer ones are passed over */
    PL_SAMPLES_SEARCH = 64 << 20, /* bytes of records that one search reads, about */
};

/* One sample, as the index knows it. */
typedef struct pl_samples_row {
    int64_t step;
    uint64_t prompt; /* key: the same prompt has the same at every step; never 0 */
    uint32_t uid;
    uint32_t n_tokens, n_prompt;
    uint32_t policy_version;
    uint32_t n_drafted, n_accepted, n_verify_steps;
    float reward, advantage; /* NaN: the record does not tell */
    uint32_t line;           /* in its file, from 0 */
    uint8_t finish;          /* pl_finish of ipc/schema.h */
} pl_samples_row;

typedef enum pl_samples_order {
    PL_SAMPLES_NEWEST, /* by step, newest first, then by uid */
    PL_SAMPLES_BEST,   /* by reward */
    PL_SAMPLES_WORST,
    PL_SAMPLES_LONGEST, /* by tokens */
    PL_SAMPLES_SHORTEST,
    PL_SAMPLES_ORDERS
} pl_samples_order;
/* "newest", "best", "worst", "longest", "shortest"; -1: none of these. */
int pl_samples_order_of(const char *name);

/* What is looked for: begin with pl_samples_any(). */
typedef struct pl_samples_query {
    int64_t step_min, step_max;
    double reward_min, reward_max; /* infinite: do not care */
    int64_t length_min, length_max;
    uint64_t prompt;  /* key; 0: any */
    const char *text; /* substring of the response, bytes as they are, borrowed; NULL or "": any */
    pl_samples_order order; /* with text always PL_SAMPLES_NEWEST */
    int64_t offset;         /* of the first row wanted */
    int limit;              /* rows wanted, 1 to PL_SAMPLES_PAGE */
} pl_samples_query;
pl_samples_query pl_samples_any(void); /* everything, newest first, the first 50 */

typedef struct pl_samples_info {
    int64_t n_rows;
    int64_t first_step, last_step;    /* of the rows; -1: none */
    int64_t n_files, n_pending;       /* files there; not indexed yet */
    int64_t n_bad_lines, n_bad_files; /* passed over; damaged or unreadable */
    int64_t n_forgotten;              /* files left out for the bound on rows */
} pl_samples_info;

typedef struct pl_samples pl_samples; /* one thread at a time */

/* Errors: PL_E_NOENT (the run directory is not there; without rollouts/ it is empty), PL_E_IO,
 * PL_E_NOMEM. */
pl_status pl_samples_open(pl_samples **out, const char *run_dir, pl_error *err);
/* Index files that are new or changed, newest step first, until about max_bytes of records were
 * read (0: all there are).  1 when the index changed.  Call it again while n_pending is above 0. */
int pl_samples_poll(pl_samples *s, size_t max_bytes);
void pl_samples_info_get(const pl_samples *s, pl_samples_info *out);
void pl_samples_close(pl_samples *s); /* accepts NULL */

/* The rows that match, at most q->limit from q->offset on, into rows [q->limit].  *n_match: how
 * many match in all; with text: of those found so far.  *searched: with text, the oldest step that
 * was searched when PL_SAMPLES_SEARCH ended it (narrow the steps to go on), else -1.
 * Returns how many rows.  Errors: -1 and PL_E_INVAL (limit), PL_E_NOMEM. */
int pl_samples_rows(pl_samples *s, const pl_samples_query *q, pl_samples_row *rows,
    int64_t *n_match, int64_t *searched, pl_error *err);

/* The three below append JSON to out; after an error what they appended is not to be used.
 *
 * GET /api/samples:
 *   {"info":{"n_rows":..,"first_step":..,"last_step":..,"n_files":..,"n_pending":..,
 *            "n_bad_lines":..,"n_bad_files":..,"n_forgotten":..},
 *    "n_match":.., "searched":step or null, "offset":..,
 *    "samples":[{"step":..,"uid":..,"reward":..,"advantage":..,"n_tokens":..,"n_prompt":..,
 *                "finish_reason":"stop","policy_version":..,"spec_num_draft_tokens":..,
 *                "spec_num_accepted_tokens":..,"spec_num_verify_steps":..,
 *                "acceptance_length":n_tokens per verify step or null,
 *                "prompt":"16 hex digits",
 *                "excerpt":"start of the response, or where the text was found" or null}, ...]}
 * Errors: PL_E_INVAL (limit), PL_E_NOMEM. */
pl_status pl_samples_query_json(
    pl_samples *s, const pl_samples_query *q, pl_json *out, pl_error *err);

/* GET /api/sample.  step -1: the newest that has the uid.  One object: the figures of a row as
 * above, without excerpt, and
 *   "messages":[{"role":..,"content":..},..] or a string or null, "ground_truth":string or null,
 *   "text":string, "tokens":[ids], "logprobs":[number or null],
 *   "token_source":["target"|"suffix"|"learned",..],
 *   "pieces":[string, ..] text of each token (their sum is text; a character that several tokens
 *            make stands at the last of them), or null when the record has no token_ends.
 * An array that the record lacks is [].
 * Errors: PL_E_NOENT (no such sample), PL_E_FORMAT (its record is broken), PL_E_IO, PL_E_NOMEM. */
pl_status pl_samples_get(pl_samples *s, int64_t step, uint32_t uid, pl_json *out, pl_error *err);

/* GET /api/prompt: one prompt across steps, oldest first, the newest PL_SAMPLES_PAGE steps.
 *   {"prompt":"16 hex digits","messages":..,"ground_truth":..,
 *    "steps":[{"step":..,"n":..,"reward_mean":..,"reward_min":..,"reward_max":..,"length_mean":..,
 *              "acceptance_length":..,"uids":[..]}, ...]}
 * Errors: PL_E_NOENT (no such prompt), PL_E_IO, PL_E_FORMAT, PL_E_NOMEM. */
pl_status pl_samples_prompt_json(pl_samples *s, uint64_t prompt, pl_json *out, pl_error *err);
/* Key of its 16 hex digits; 0: these are none. */
uint64_t pl_samples_prompt_key(const char *hex);

#endif
