/* rollout/rollout.h - the engine: continuous batching of prefill, decode and tree verification. */
#ifndef PL_ROLLOUT_ROLLOUT_H
#define PL_ROLLOUT_ROLLOUT_H

#include "core/error.h"
#include "core/log.h"
#include "drafter/drafter.h"
#include "drafter/learned.h"
#include "ipc/schema.h"
#include "model/model.h"
#include "model/tokenizer.h"

#include <stddef.h>
#include <stdint.h>

/* How much is drafted.  Timing may decide it; what is emitted never depends on it. */
typedef enum pl_controller_kind {
    PL_CONTROLLER_OFF,
    PL_CONTROLLER_FIXED,   /* the same tree every round */
    PL_CONTROLLER_GOODPUT, /* rows by measured pass times and measured acceptance */
} pl_controller_kind;

typedef struct pl_engine_options {
    int max_num_seqs; /* samples running at once, 1..1024 */
    int max_rows;     /* rows of one pass (prefill chunks, decode and drafts together) */
    int max_ctx;      /* prompt and response, tokens */
    size_t kv_bytes;  /* of the KV pool; 0: enough for max_num_seqs full sequences, at most half of
                         the free memory */
    int prefault;     /* take the whole KV pool at the start: a run must not fail later */
    int speculative;  /* 0: plain decoding */
    pl_controller_kind controller;
    int fixed_rows;     /* FIXED: rows of a tree, the root included */
    int max_spec_rows;  /* rows of one sample's tree at most, root included, <= PL_DRAFT_MAX */
    int max_spec_depth; /* levels below the root */
    pl_suffix_options suffix;
    int learned_window; /* positions that a learned drafter looks back; 0: no learned drafter */
    int learned_depth, learned_topk; /* of its trees; 6, 4 */
} pl_engine_options;

/* Passes are told apart by their rows: 1..15 exactly, then 8 buckets an octave. */
int pl_cost_bucket(int n_rows);
double pl_cost_rows(int bucket); /* the middle of a bucket */

/* Counters since the last pl_engine_stats_reset. */
typedef struct pl_engine_stats {
    int64_t n_rounds, n_rows, n_prefill_rows;
    int64_t n_emitted;      /* response tokens */
    int64_t n_verify_steps; /* sum over samples of passes that emitted */
    int64_t n_draft, n_accepted;
    int64_t n_preempted; /* samples whose cache was dropped for want of pages, and prefilled anew */
    double pass_s, draft_s, verify_s;
    /* by pl_draft_source; accepted of [0]: tokens of the target itself */
    int64_t n_draft_of[3], n_accepted_of[3];
    /* rounds of a sample that drafted: acceptance length is the ratio of the sums */
    int64_t n_drafted_steps, n_drafted_emitted;
    int64_t n_before_steps, n_before_emitted; /* of them, before the newest swap of drafters */
    /* the learned drafter's verified rows by depth, [0] is depth 1: levels that were reached, and
     * held the token */
    int64_t n_reached[16], n_hit[16];
    /* rounds with at most 4 running samples */
    int64_t n_tail_emitted, n_tail_steps;
    double tail_s;
    int64_t n_swaps;
    /* passes without prefill, by pl_cost_bucket of their rows */
    int64_t n_passes[PL_COST_BUCKETS];
    double passes_s[PL_COST_BUCKETS];
} pl_engine_stats;

typedef struct pl_engine pl_engine;

/* tok may be NULL when no request has stop strings.  *borrows* model, tok and log. */
pl_status pl_engine_new(pl_engine **out, pl_model *model, const pl_tokenizer *tok,
    const pl_engine_options *o, const pl_log *log, pl_error *err);
void pl_engine_free(pl_engine *e);
void pl_engine_defaults(pl_engine_options *o);
size_t pl_engine_plan(const pl_arch *arch, const pl_engine_options *o, int n_threads); /* bytes */

/* Called after each round for each sample that got tokens: r->tokens[n_before .. n_tokens - 1] are
 * new; r->finish is set when it is done, and r is freed when the call returns.  Copy what you keep.
 * A non-zero return stops the engine (pl_engine_run returns PL_E_STOPPED). */
typedef int (*pl_response_fn)(void *ctx, const pl_response *r, int n_before);

/* Queue a sample; between rounds at any time, also while others run.  r->prompt and r->stop are
 * borrowed until its response is done, r->prefix is copied.  A prefix is prefilled with the prompt
 * and the sample goes on from there: the first callback has n_before = n_prefix.
 * Errors: PL_E_INVAL (sampling parameters out of range; a prefix that already ends the response, or
 * with an id out of the vocabulary), PL_E_SHAPE (prompt and max_tokens do not fit max_ctx: says by
 * how much), PL_E_NOMEM.  After an error the engine is as before. */
pl_status pl_engine_submit(pl_engine *e, const pl_request *r, pl_error *err);
/* Drop the sample uid, queued or running; its callback is not called again.  Between rounds only,
 * not from a callback.  Returns 1, or 0 when there is none (it is done, or never was). */
int pl_engine_cancel(pl_engine *e, uint32_t uid);
/* Samples that run and samples that wait. */
void pl_engine_counts(const pl_engine *e, int *n_running, int *n_queued);
/* Rounds until every sample is done.  Errors: as pl_engine_round. */
pl_status pl_engine_run(pl_engine *e, pl_response_fn on_tokens, void *ctx, pl_error *err);
/* One round; *n_left samples are not done.
 * Errors: PL_E_STOPPED (the callback's wish) and PL_E_NOMEM (not even one sample can be started)
 * leave every sample as it is, and a later round goes on.  PL_E_NUMERIC (logits that are no
 * numbers) and what the pass returns break off in mid-round: the cache is ahead of the text, so
 * only pl_engine_clear and pl_engine_free are valid then, and further rounds and submits are
 * refused with PL_E_INVAL.  Tokens that callbacks got before stay good. */
pl_status pl_engine_round(
    pl_engine *e, pl_response_fn on_tokens, void *ctx, int *n_left, pl_error *err);
/* Drop every queued and running sample; whatever a round returned, new ones may come then. */
void pl_engine_clear(pl_engine *e);

/* The weights changed: cached keys are void, the suffix counts age.  No sample may be running or
 * wait with tokens (a prefix is of the version that goes on with it): PL_E_INVAL. */
pl_status pl_engine_new_version(pl_engine *e, uint32_t version, pl_error *err);
/* Draft with a learned drafter from the next round on, beside the suffix drafter; NULL: without.
 * *borrowed* until the next call.  Between rounds at any time: the text of running samples does not
 * change.  Errors, and the one before goes on: PL_E_INVAL (made with learned_window 0), PL_E_SHAPE,
 * PL_E_NOMEM, PL_E_TIMEOUT (another draft vocabulary than that of the one before, and samples run:
 * vocabularies change between steps only). */
pl_status pl_engine_set_drafter(pl_engine *e, const pl_eagle *drafter, pl_error *err);
/* Have fn called with the features of training samples (purpose PL_NOISE_SAMPLE): a window as soon
 * as `rows` positions are full, the rest when the sample is done (not when it is cancelled).
 * Windows of a sample follow one another without overlap, from the prompt's last positions on.
 * NULL: stop. Errors: PL_E_NOMEM. */
typedef void (*pl_window_fn)(void *ctx, const pl_feature_window *w);
pl_status pl_engine_set_windows(pl_engine *e, pl_window_fn fn, void *ctx, int rows, pl_error *err);
/* Bytes that windows take beside pl_engine_plan. */
size_t pl_engine_windows_plan(const pl_arch *arch, const pl_engine_options *o, int rows);
/* Turn drafting on or off between samples. */
void pl_engine_set_speculative(pl_engine *e, int on);

void pl_engine_get_stats(const pl_engine *e, pl_engine_stats *s);
void pl_engine_reset_stats(pl_engine *e);

#endif
