/* rollout/recorded_costs.c - seconds of a pass by its rows, from recorded passes: means by bucket,
 * drawn towards a line while they are few, made monotone, linear between them. */
#include "rollout/recorded.h"

#include <math.h>

enum { MOST_ROWS = 1 << 20 };
static const double PRIOR_PASSES = 4;       /* of a bucket, that the line is worth */
static const double GUESS_SLOPE = 1.0 / 64; /* of the time of one row, for each more */
static const double PRIOR_SPREAD = 128;     /* of rows: two passes, 8 rows from the others */

void pl_costs_add(pl_costs *c, double n_rows, double n, double seconds)
{
    const int b = pl_cost_bucket(n_rows > 0 && n_rows < MOST_ROWS ? (int)n_rows : MOST_ROWS);
    if (!(n_rows >= 0) || !(n > 0) || !(seconds > 0) || !isfinite(n) || !isfinite(seconds))
        return;
    c->n[b] += n;
    c->seconds[b] += seconds;
}

/* By relative error: a pass of many rows may err by more seconds. */
static void fit_line(pl_costs *c)
{
    double w = 0, x = 0, y = 0, xx = 0, xy = 0;
    for (int b = 0; b < PL_COST_BUCKETS; b++) {
        if (!(c->n[b] > 0))
            continue;
        const double mean = c->seconds[b] / c->n[b], at = pl_cost_rows(b);
        const double weight = (c->n[b] < 100 ? c->n[b] : 100) / (mean * mean);
        w += weight;
        x += weight * at;
        y += weight * mean;
        xx += weight * at * at;
        xy += weight * at * mean;
    }
    const double middle = x / w, mean = y / w, spread = xx - x * x / w;
    /* Of passes that were all alike the slope is a guess, as the controller's. */
    const double guess = mean * GUESS_SLOPE / (1 + middle * GUESS_SLOPE);
    const double prior = PRIOR_SPREAD / (mean * mean);
    c->slope = (xy - x * y / w + prior * guess) / (spread + prior);
    c->slope = c->slope > 0 ? c->slope : 0;
    c->base = mean - c->slope * middle;
    if (c->base < 0.05 * mean) {
        c->base = 0.05 * mean;
        c->slope = 0.95 * mean / middle;
    }
}

int pl_costs_fit(pl_costs *c)
{
    double weight[PL_COST_BUCKETS], block[PL_COST_BUCKETS];
    int first[PL_COST_BUCKETS], n = 0, n_blocks = 0, has_any = 0;
    for (int b = 0; b < PL_COST_BUCKETS; b++)
        has_any |= c->n[b] > 0;
    c->n_points = 0;
    if (!has_any)
        return 0;
    fit_line(c);
    for (int b = 0; b < PL_COST_BUCKETS; b++) {
        if (!(c->n[b] > 0))
            continue;
        c->at[n] = pl_cost_rows(b);
        const double line = c->base + c->slope * c->at[n];
        weight[n_blocks] = c->n[b];
        block[n_blocks] =
            line + (c->seconds[b] / c->n[b] - line) * c->n[b] / (c->n[b] + PRIOR_PASSES);
        first[n_blocks++] = n++;
        /* Neighbours in the wrong order are one block. */
        for (; n_blocks > 1 && block[n_blocks - 1] < block[n_blocks - 2]; n_blocks--) {
            const double sum = weight[n_blocks - 2] + weight[n_blocks - 1];
            block[n_blocks - 2] +=
                (block[n_blocks - 1] - block[n_blocks - 2]) * weight[n_blocks - 1] / sum;
            weight[n_blocks - 2] = sum;
        }
    }
    for (int k = 0, i = 0; k < n_blocks; k++)
        for (const int end = k + 1 < n_blocks ? first[k + 1] : n; i < end; i++)
            c->mean[i] = block[k];
    c->n_points = n;
    return 1;
}

double pl_costs_of(const pl_costs *c, int n_rows)
{
    const double rows = n_rows;
    int next = 0;
    double t;
    while (next < c->n_points && c->at[next] < rows)
        next++;
    if (next == 0)
        t = c->mean[0] - c->slope * (c->at[0] - rows);
    else if (next == c->n_points)
        t = c->mean[next - 1] + c->slope * (rows - c->at[next - 1]);
    else
        t = c->mean[next - 1] + (c->mean[next] - c->mean[next - 1]) * (rows - c->at[next - 1]) /
                                    (c->at[next] - c->at[next - 1]);
    return t > 0.1 * c->mean[0] ? t : 0.1 * c->mean[0];
}

double pl_costs_most(const pl_costs *c)
{
    return c->n_points > 0 ? c->at[c->n_points - 1] : 0;
}
