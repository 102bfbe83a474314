/* rollout/controller.h - how many rows are drafted and verified (inside rollout/ only).
 *
 * The seam for other controllers: three calls a round, on proposals that come as plain data.
 * Whatever they answer, the text is the same (law 2); only the clock can tell. */
#ifndef PL_ROLLOUT_CONTROLLER_H
#define PL_ROLLOUT_CONTROLLER_H

#include "rollout/rollout.h"

enum {
    COST_BUCKETS = 64,  /* of rows of a pass */
    COST_ROWS = 4096,   /* largest pass that is told apart */
    CHANCE_BUCKETS = 16 /* of the drafter's own estimate */
};

/* One sample's proposal in one round. */
typedef struct controller_item {
    pl_draft proposal;
    float expected[PL_DRAFT_MAX]; /* the drafter's chance that a row is reached; 1 for the root */
    float value[PL_DRAFT_MAX];    /* the same, calibrated (controller_choose) */
    int n_keep;                   /* rows chosen, the root included */
    uint8_t keep[PL_DRAFT_MAX];
} controller_item;

typedef struct controller_entry {
    float value;
    int32_t item;
    int32_t row;
} controller_entry;

typedef struct controller {
    pl_controller_kind kind;
    int fixed_rows, max_spec_rows;
    /* seconds of a pass by rows: means of what was measured, and the table made from them */
    double cost_mean[COST_BUCKETS];
    double cost_weight[COST_BUCKETS];
    float *cost; /* [max_rows + 1] */
    int max_rows;
    int n_measured;
    double draw_s;  /* seconds an emitted token costs beside the pass */
    double draft_s; /* seconds of drafting a proposed row */
    /* how often a proposed row held the drawn token, given that its parent was reached */
    double hits[2][CHANCE_BUCKETS], trials[2][CHANCE_BUCKETS];
    double kept;               /* running mean of rows kept a sample */
    int skip_samples;          /* that ran when skip was set */
    int skip, backoff;         /* rounds without proposals, after rounds that did not pay */
    controller_entry *entries; /* [max_entries] */
    int max_entries;
} controller;

pl_status controller_init(controller *c, const pl_engine_options *o, pl_error *err);
void controller_done(controller *c);

/* Rows to propose for each of n samples when rows_left rows of the pass are free; 0: none now. */
int controller_offer(controller *c, int n_samples, int rows_left);
/* Choose rows of n items (closed under parents) with at most rows_left beyond the roots; n_other
 * rows (prefill) go along.  Fills value, keep and n_keep. */
void controller_choose(controller *c, controller_item **items, int n, int n_other, int rows_left);
/* A pass of n_rows took pass_s; is_pure: no prefill in it.  n_emitted tokens took verify_s. */
void controller_observe_pass(
    controller *c, int n_rows, int is_pure, double pass_s, int n_emitted, double verify_s);
/* Proposing n_rows rows took draft_s. */
void controller_observe_draft(controller *c, int n_rows, double draft_s);
/* The tokens that were drawn where this was proposed. */
void controller_observe_item(
    controller *c, const controller_item *item, const int32_t *tokens, int n);
/* Predicted seconds of a pass. */
double controller_cost(const controller *c, int n_rows);

#endif
