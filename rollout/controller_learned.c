/* rollout/controller_learned.c - whether the learned drafter drafts, and how deep.
 *
 * It costs time before it is known what it is worth: some for the positions that came since, some
 * for each level of its trees, hardly more for many samples than for one.  So it is weighed by
 * rounds.  A round that drafted with d levels says, from one proposal and by the calibrated
 * chances, how many tokens a second it promises with 1, 2, .. d levels, and how many with the
 * suffix drafter alone; running means of the quotients, by class of batch sizes, decide the rounds
 * to come.  Where it does not pay it is probed, shallow and ever more rarely; where it does, every
 * DEEP_EVERY-th round tries all levels. */
#include "rollout/controller.h"

#include <math.h>

enum {
    PROBE_LEVELS = 2,
    PROBE_SAMPLES = 8,
    PROBE_BACKOFF = 127, /* rounds between two probes at most */
    NEW_PROBES = 12,     /* of a new drafter, one after the other */
    DEEP_FIRST = 12,     /* rounds with all levels, once it pays at all */
    DEEP_EVERY = 16,
    EXTEND_ROWS = 4, /* a sample's new positions in a round, about */
};
static const double PAYS = 1.05;    /* the goodput that is worth the trouble */
static const double RATE = 0.05;    /* of the running means */
static const double HOPEFUL = 0.6;  /* hits of a good drafter's first candidate */
static const double NEW_LABELS = 8; /* what is known of a drafter is worth to its successor */
static const double NEW_ROUNDS = 2, NEW_ACCOUNT = 16;

/* Levels with the best gain; 0: none pays, as far as is known. */
static int best_levels(const controller *c, const learned_record *r)
{
    double best = PAYS;
    int levels = 0;
    for (int d = 1; d <= c->max_levels; d++)
        if (r->weight[d] > 0 && r->gain[d] > best) {
            best = r->gain[d];
            levels = d;
        }
    return levels;
}

/* Seconds of drafting `levels` levels; what other batches cost is the guess of an unmeasured one.
 */
static double draft_seconds(const controller *c, int k, int levels)
{
    for (int away = 0; away < BATCH_CLASSES; away++)
        for (int side = -1; side <= 1; side += 2) {
            const int at = k + side * away;
            if (at >= 0 && at < BATCH_CLASSES && c->learned[at].level_s >= 0)
                return c->learned[at].extend_s + levels * c->learned[at].level_s;
        }
    return 0;
}

/* Could even a good drafter pay here?  One row a sample, hit as a good one hits. */
static int can_pay(const controller *c, int n_samples)
{
    const double n = n_samples;
    const double plain = controller_cost(c, n_samples) + n * c->draw_s;
    const double tokens = n * (1 + HOPEFUL);
    const double seconds = controller_cost(c, 2 * n_samples) + tokens * c->draw_s +
                           draft_seconds(c, controller_class(n_samples), 1);
    return tokens / seconds > PAYS * n / plain;
}

int learned_levels(controller *c, int n_samples, int *n_asks)
{
    learned_record *r = &c->learned[controller_class(n_samples)];
    *n_asks = n_samples;
    if (c->n_measured == 0 || c->max_levels < 1)
        return 0;
    const int best = best_levels(c, r);
    if (r->n_new > 0) {
        r->n_new--;
    } else if (best > 0) {
        const int is_deep =
            r->weight[c->max_levels] < DEEP_FIRST || ++r->n_rounds % DEEP_EVERY == 0;
        return is_deep ? c->max_levels : best;
    } else if (r->skip > 0) {
        r->skip--;
        return 0;
    }
    if (!can_pay(c, n_samples)) {
        r->skip = PROBE_BACKOFF / 4;
        return 0;
    }
    *n_asks = n_samples < PROBE_SAMPLES ? n_samples : PROBE_SAMPLES;
    return c->max_levels < PROBE_LEVELS ? c->max_levels : PROBE_LEVELS;
}

static void average(double *mean, double value)
{
    *mean = *mean < 0 ? value : *mean + 0.1 * ((value < 3 * *mean ? value : 3 * *mean) - *mean);
}

void controller_observe_learned(
    controller *c, int n_samples, int n_asked, const pl_learned_stats *s, double seconds)
{
    learned_record *r = &c->learned[controller_class(n_samples)];
    if (c->kind != PL_CONTROLLER_GOODPUT || n_asked < 1 || c->offer.levels < 1)
        return;
    const double scale = (double)n_samples / n_asked; /* a probe of few: no less than this */
    const double n_rows = (double)(s->n_extended + s->n_rebuilt), usual = EXTEND_ROWS * n_asked;
    const double other = seconds > s->grow_s + s->extend_s ? seconds - s->grow_s - s->extend_s : 0;
    c->n_asked = n_asked;
    c->asked_s = seconds;
    /* After a rest many positions are made good at once; drafting every round pays a few. */
    average(&r->extend_s, scale * (s->extend_s * (n_rows > usual ? usual / n_rows : 1) + other));
    average(&r->level_s, scale * s->grow_s / c->offer.levels);
}

void learned_weigh(controller *c, const outlook *without, int n_entries, int n_samples, int n_other)
{
    const int k = controller_class(n_samples), levels = c->offer.levels;
    learned_record *r = &c->learned[k];
    const double scale = (double)n_samples / c->n_asked;
    /* As far as such promises are kept, against what would be done without. */
    const double faith = controller_faith(c, k, ROUND_LEARNED) /
                         (without->n_rows > 0 ? controller_faith(c, k, ROUND_SUFFIX) : 1);
    for (int d = 1; d <= levels; d++) {
        const outlook o = controller_best(c, n_entries, n_samples, n_other, d, 1, 0);
        /* What it gave the samples it was asked for, it would give to all. */
        const double tokens = without->tokens + scale * (o.tokens - without->tokens);
        const double seconds =
            without->seconds + scale * (o.seconds - without->seconds) + draft_seconds(c, k, d);
        const double gain = faith * tokens / seconds * without->seconds / without->tokens;
        /* A new drafter's first rounds say little: its chances are not calibrated yet. */
        r->weight[d] = r->n_new > 0 && r->weight[d] > NEW_ROUNDS ? NEW_ROUNDS : r->weight[d] + 1;
        const double rate = 1 / r->weight[d] > RATE ? 1 / r->weight[d] : RATE;
        r->gain[d] += rate * (gain - r->gain[d]);
    }
    if (best_levels(c, r) > 0) {
        r->backoff = 0;
    } else {
        r->backoff = 2 * r->backoff + 1 < PROBE_BACKOFF ? 2 * r->backoff + 1 : PROBE_BACKOFF;
        r->skip = r->backoff;
    }
}

void controller_new_drafter(controller *c)
{
    for (int kind = ROW_ALONE; kind < ROW_KINDS; kind++)
        for (int i = 0; i < CHANCE_DEPTHS; i++)
            for (int b = 0; b < CHANCE_BUCKETS; b++) {
                const double trials = c->trials[kind][i][b];
                if (trials > NEW_LABELS) {
                    c->hits[kind][i][b] *= NEW_LABELS / trials;
                    c->trials[kind][i][b] = NEW_LABELS;
                }
            }
    for (int k = 0; k < BATCH_CLASSES; k++) {
        learned_record *r = &c->learned[k];
        r->skip = r->backoff = 0;
        r->n_new = NEW_PROBES;
        for (int d = 0; d <= LEARNED_LEVELS; d++)
            r->weight[d] = r->weight[d] < NEW_ROUNDS ? r->weight[d] : NEW_ROUNDS;
        controller_account *a = &c->accounts[k][ROUND_LEARNED];
        const double left = a->n_rounds > NEW_ACCOUNT ? NEW_ACCOUNT / a->n_rounds : 1;
        *a = (controller_account){a->foreseen_s * left, a->took_s * left, a->n_rounds * left};
    }
}
