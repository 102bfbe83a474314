/* rollout/controller.h - how many rows are drafted, by whom, and verified (inside rollout/ only).
 *
 * The seam for other controllers: a few calls a round, on proposals that come as plain data.
 * Whatever they answer, the text is the same (law 2); only the clock can tell. */
#ifndef PL_ROLLOUT_CONTROLLER_H
#define PL_ROLLOUT_CONTROLLER_H

#include "rollout/rollout.h"

enum {
    COST_BUCKETS = PL_COST_BUCKETS, /* of rows of a pass */
    COST_ROWS = 4096,               /* largest pass that is told apart */
    CHANCE_BUCKETS = 16,            /* of the drafter's own estimate */
    CHANCE_DEPTHS = 4,              /* levels told apart, the last stands for all deeper ones */
    LEARNED_LEVELS = 16,            /* of a learned tree at most */
    BATCH_CLASSES = 8,              /* samples of a round: 1, 2, 3-4, 5-8, .. */
};

/* Who vouches for a row: each has a calibration of its own. */
typedef enum row_kind {
    ROW_SUFFIX,  /* the suffix drafter, whatever the learned one says */
    ROW_ALONE,   /* the suffix drafter; the learned one was asked and did not */
    ROW_BOTH,    /* the suffix drafter, and the learned one more so */
    ROW_LEARNED, /* the learned drafter */
    ROW_KINDS
} row_kind;

/* Who drafted in a round: each has an account of its own. */
typedef enum round_kind { ROUND_PLAIN, ROUND_SUFFIX, ROUND_LEARNED, ROUND_KINDS } round_kind;

/* What rounds were to take and what they took, for the tokens that came of them: fading sums. */
typedef struct controller_account {
    double foreseen_s, took_s;
    double n_rounds;
} controller_account;

/* One sample's proposal in one round. */
typedef struct controller_item {
    pl_draft proposal;
    float expected[PL_DRAFT_MAX]; /* the drafter's chance that a row is reached; 1 for the root */
    int is_asked;                 /* the learned drafter drafted for it */
    int n_first;                  /* rows of before that, the root included; 0: not described */
    uint8_t kind[PL_DRAFT_MAX];   /* row_kind */
    float chance[PL_DRAFT_MAX];   /* expected, given that the parent is reached */
    float first[PL_DRAFT_MAX];    /* the same before the learned drafter was asked */
    float value[PL_DRAFT_MAX];    /* chance that the row is reached, calibrated */
    int n_keep;                   /* rows chosen, the root included */
    uint8_t keep[PL_DRAFT_MAX];
} controller_item;

/* What may be drafted in a round. */
typedef struct controller_offer_rows {
    int suffix;  /* rows of the suffix drafter, a sample; 0: none now */
    int learned; /* rows of the learned drafter beside them; 0: none now */
    int most;    /* of both together, the root included */
    int levels;  /* of the learned drafter */
    int n_asks;  /* samples that it drafts for, at most */
} controller_offer_rows;

typedef struct controller_entry {
    float value;
    int32_t item;
    int16_t row, level; /* of the learned drafter; 0: another's */
} controller_entry;

/* What the learned drafter is worth in batches of one class of sizes. */
typedef struct learned_record {
    /* goodput with so many levels over that without, running means over rounds that drafted */
    double gain[LEARNED_LEVELS + 1], weight[LEARNED_LEVELS + 1];
    double extend_s, level_s; /* seconds of a round; of each level; < 0: not measured */
    int skip, backoff;        /* rounds without, after probes that did not pay */
    int n_new;                /* probes to come before that, of a new drafter */
    int n_rounds;             /* that drafted since the last one with all levels */
} learned_record;

typedef struct controller {
    pl_controller_kind kind;
    int fixed_rows, max_spec_rows, max_proposal, max_levels;
    /* seconds of a pass by rows: means of what was measured, and the table made from them */
    double cost_mean[COST_BUCKETS];
    double cost_weight[COST_BUCKETS];
    float *cost; /* [max_rows + 1], without the attention of plain rounds */
    int max_rows;
    int n_measured;
    double position_s;  /* seconds of attention for a position in the cache; 0: not measured */
    double n_positions; /* of this round */
    double draw_s;      /* seconds an emitted token costs beside the pass */
    double draft_s;     /* seconds of drafting a proposed row of the suffix drafter */
    /* how often a proposed row held the drawn token, given that its parent was reached */
    double hits[ROW_KINDS][CHANCE_DEPTHS][CHANCE_BUCKETS];
    double trials[ROW_KINDS][CHANCE_DEPTHS][CHANCE_BUCKETS];
    /* hits over what was expected: an empty bucket is believed as far as its neighbours were right
     */
    double trust[ROW_KINDS][CHANCE_DEPTHS];
    double kept;       /* running mean of rows kept a sample */
    int skip_samples;  /* that ran when skip was set */
    int skip, backoff; /* rounds without proposals, after rounds that did not pay */
    learned_record learned[BATCH_CLASSES];
    controller_account accounts[BATCH_CLASSES][ROUND_KINDS];
    int n_drafted[BATCH_CLASSES]; /* rounds since the last plain one */
    controller_offer_rows offer;  /* of this round */
    int n_asked;                  /* samples that the learned drafter drafted for in this round */
    double asked_s;               /* seconds that it took */
    int n_samples;                /* of this round; 0: nothing is known of it */
    round_kind kind_of_round;
    double round_s, round_tokens; /* what is foreseen of it */
    controller_entry *entries;    /* [max_entries] */
    int max_entries;
} controller;

pl_status controller_init(controller *c, const pl_engine_options *o, pl_error *err);
void controller_done(controller *c);
size_t controller_plan(const pl_engine_options *o); /* bytes */
/* Rows of a proposal and levels of a learned tree that will ever be asked for. */
int controller_max_proposal(const pl_engine_options *o);
int controller_max_levels(const pl_engine_options *o);

/* A round begins whose samples have so many positions in the cache. */
void controller_begin(controller *c, long n_positions);
/* Rows to propose for each of n samples, n_learned of which the learned drafter can draft for, when
 * rows_left rows of the pass are free. */
controller_offer_rows controller_offer(controller *c, int n_samples, int n_learned, int rows_left);
/* Note who proposed which row; once more after the learned drafter was asked. */
void controller_describe(controller_item *item, int is_asked);
/* Choose rows of n items (described; closed under parents) with at most rows_left beyond the roots;
 * n_other rows (prefill) go along.  Fills value, keep and n_keep. */
void controller_choose(controller *c, controller_item **items, int n, int n_other, int rows_left);
/* A pass of n_rows took pass_s, attention_s of them in attention (0: not known); is_pure: no
 * prefill in it.  n_emitted tokens took verify_s. */
void controller_observe_pass(controller *c, int n_rows, int is_pure, double pass_s,
    double attention_s, int n_emitted, double verify_s);
/* A round without prefill gave n_emitted tokens of n_samples; drafting took draft_s, the pass and
 * what came after it so many seconds. */
void controller_observe_round(
    controller *c, int n_samples, int n_emitted, double draft_s, double seconds);
/* Proposing n_rows rows with the suffix drafter took draft_s. */
void controller_observe_draft(controller *c, int n_rows, double draft_s);
/* The learned drafter drafted for n_asked of n samples, before controller_choose. */
void controller_observe_learned(
    controller *c, int n_samples, int n_asked, const pl_learned_stats *s, double seconds);
/* The tokens that were drawn where this was proposed. */
void controller_observe_item(
    controller *c, const controller_item *item, const int32_t *tokens, int n);
/* Another learned drafter, or another target: what is known of the old one is a guess. */
void controller_new_drafter(controller *c);
/* Predicted seconds of a pass of this round. */
double controller_cost(const controller *c, int n_rows);

/* ---- controller.c and controller_learned.c, for each other ---- */

/* Of batches of so many samples: index below BATCH_CLASSES. */
int controller_class(int n_samples);
/* How far rounds of this kind keep what they promise over plain ones; 1: as far as is known. */
double controller_faith(const controller *c, int batch_class, round_kind kind);

/* Levels of the learned drafter in a round of n samples; 0: none now.  *n_asks: for how many. */
int learned_levels(controller *c, int n_samples, int *n_asks);
/* Rows of a prefix of the sorted entries, expected tokens, predicted seconds. */
typedef struct outlook {
    int n_rows;
    double tokens, seconds;
} outlook;
/* The prefix with the most tokens a second, of entries with at most `level` levels of the learned
 * drafter, when more than base_gain times plain decoding; else plain decoding. */
outlook controller_best(const controller *c, int n_entries, int n_samples, int n_other, int level,
    double base_gain, double draft_s);
/* The best prefix of the sorted entries, against what was promised without the learned drafter,
 * says what it is worth. */
void learned_weigh(
    controller *c, const outlook *without, int n_entries, int n_samples, int n_other);

#endif
