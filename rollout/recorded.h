/* rollout/recorded.h - the engine run over a record instead of its target: what would have been
 * drafted, verified and accepted, exactly, without a pass of the model.
 *
 * A drafted token is accepted if and only if it is the one that the target drew.  So admission,
 * groups, trees, drafters and controller are those of any engine; only the pass is left out, and
 * the draw at a reached row is the recorded token.  Times are predicted, and the controller decides
 * by them; drafting is done and its time is measured. */
#ifndef PL_ROLLOUT_RECORDED_H
#define PL_ROLLOUT_RECORDED_H

#include "rollout/rollout.h"

/* What was recorded; *borrowed* as long as the engine lives. */
typedef struct pl_recorded {
    void *ctx;
    /* The response of sample uid, [*n] tokens, which stay while it runs; NULL: there is none. */
    const int32_t *(*tokens)(void *ctx, uint32_t uid, int *n);
    /* What the target computed at a position (the prompt counted) of sample uid:
     * [PL_FEATURE_LAYERS][pad32(C)] bf16; NULL: not known, zeros are taken.  The function may be
     * NULL when nothing learned drafts. */
    const uint16_t *(*features)(void *ctx, uint32_t uid, int position);
    double (*pass_s)(void *ctx, int n_rows); /* predicted seconds of a pass */
    double draw_s;                           /* seconds that an emitted token costs beside it */
} pl_recorded;

/* As pl_engine_new; the model lends its team, its shape and its embedding.  Log-probs are zero, and
 * pass_s, passes_s and verify_s of the counters are predicted.  Submitting a sample that is not
 * recorded, or that the record ends before its response does, is PL_E_INVAL (the latter from the
 * round that gets there); windows are refused. */
pl_status pl_engine_new_recorded(pl_engine **out, pl_model *model, const pl_engine_options *o,
    const pl_recorded *record, const pl_log *log, pl_error *err);

/* ---- what a pass costs, from recorded passes: drawn as the controller draws it ---- */

typedef struct pl_costs {
    double n[PL_COST_BUCKETS], seconds[PL_COST_BUCKETS]; /* passes by pl_cost_bucket, their time */
    double at[PL_COST_BUCKETS], mean[PL_COST_BUCKETS];   /* measured points, made monotone */
    int n_points;
    double base, slope; /* the line beyond them */
} pl_costs;
/* Begin with all zero, add passes, then fit. */
void pl_costs_add(pl_costs *c, double n_rows, double n, double seconds);
/* 0: nothing was measured. */
int pl_costs_fit(pl_costs *c);
/* Seconds of a pass of n_rows, once fitted. */
double pl_costs_of(const pl_costs *c, int n_rows);
/* Rows of the largest measured pass: what lies beyond is a guess. */
double pl_costs_most(const pl_costs *c);

#endif
