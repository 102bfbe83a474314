/* drafter/replay.h - what a drafter would have done on recorded text, exactly: since a drafted
 * token is accepted if and only if it is the one that the target drew, recorded tokens, features
 * and the keyed noise decide every round without the target (DRAFTING 2.5). */
#ifndef PL_DRAFTER_REPLAY_H
#define PL_DRAFTER_REPLAY_H

#include "drafter/eagle.h"

/* As controller fixed:STEPS_TOPK_VERIFY. */
typedef struct pl_replay_options {
    int steps, topk, verify; /* levels, children of a row, rows of a tree with its root */
    int batch;               /* windows side by side; 0: 16 */
    int is_served;           /* only rounds from a window's served_from on */
} pl_replay_options;

typedef struct pl_replay_window {
    int64_t n_tokens, n_rounds;   /* emitted by rounds that could draft, and those rounds */
    int64_t n_plain;              /* of those, rounds of one token: nothing was drafted; an engine
                                     does not count them as drafted steps */
    int64_t reached[16], hit[16]; /* by depth from 1: rounds that got there; of those, accepted */
} pl_replay_window;

/* Replay e over n windows, each from its first position on; only response tokens count, and of a
 * window in which the response does not end, only rounds that do not run into its end.  A response
 * ends with one token more than its last window holds, whose features nobody computed: it counts
 * with the round that drew it, but not in reached and hit.  As in the engine no tree reaches beyond
 * max_tokens, and a round that only one token is left for is none.  The drafter looks back 256
 * positions, but not beyond its window: a live run's rounds are these exactly if the window holds
 * all that the live drafter looked back at.  *out [n].
 * should_stop (may be NULL) is asked every round: PL_E_STOPPED.  *borrows* the target.
 * Errors: PL_E_SHAPE, PL_E_NOMEM, PL_E_INVAL. */
pl_status pl_replay(const pl_model *target, const pl_eagle *e, const pl_feature_window *w, int n,
    const pl_replay_options *o, int (*should_stop)(void *ctx), void *ctx, pl_replay_window *out,
    pl_error *err);

/* Acceptance length: tokens over rounds of all windows. */
double pl_replay_tau(const pl_replay_window *w, int n);
/* The difference of two drafters on the same n windows: mean of tau_a - tau_b by the ratio
 * estimator, and its paired standard error over samples (windows of one uid are one sample).  n < 2
 * samples: *se is infinite. */
void pl_replay_compare(const pl_replay_window *a, const pl_replay_window *b, const uint32_t *uids,
    int n, double *difference, double *se);

#endif
