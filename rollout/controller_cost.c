/* rollout/controller_cost.c - what a pass is predicted to take.
 *
 * Attention of plain rounds goes by positions in the cache; of the rest there are running means by
 * bucket of rows, made monotone (pool adjacent violators), linear between buckets; beyond the
 * measured ones a guess that is optimistic, so that it gets tested. */
#include "rollout/controller.h"

enum { PRIOR_PASSES = 20 };                 /* of a bucket, that the line is worth */
static const double GUESS_SLOPE = 1.0 / 64; /* of the time of one row, for each more */
static const double PRIOR_SPREAD = 128;     /* of rows: two passes, 8 rows from the others */

int pl_cost_bucket(int n_rows)
{
    int octave = 0;
    while (n_rows >> octave > 15)
        octave++;
    const int b = n_rows < 16 ? n_rows : 16 + (octave - 1) * 8 + ((n_rows >> octave) - 8);
    return b < COST_BUCKETS ? b : COST_BUCKETS - 1;
}

double pl_cost_rows(int b)
{
    if (b < 16)
        return b;
    const int octave = (b - 16) / 8 + 1;
    const int low = ((b - 16) % 8 + 8) << octave;
    return low + ((1 << octave) - 1) * 0.5;
}

double controller_cost(const controller *c, int n_rows)
{
    return (double)c->cost[n_rows < c->max_rows ? n_rows : c->max_rows] +
           c->position_s * c->n_positions;
}

/* Line a + b * rows through the measured buckets, by relative error; b >= 0 and a > 0. */
static void fit_line(const controller *c, double *a, double *b)
{
    double w = 0, x = 0, y = 0, xx = 0, xy = 0;
    for (int i = 0; i < COST_BUCKETS; i++) {
        if (!(c->cost_weight[i] > 0))
            continue;
        const double weight = c->cost_weight[i] / (c->cost_mean[i] * c->cost_mean[i]);
        const double at = pl_cost_rows(i);
        w += weight;
        x += weight * at;
        y += weight * c->cost_mean[i];
        xx += weight * at * at;
        xy += weight * at * c->cost_mean[i];
    }
    const double spread = xx - x * x / w, middle = x / w, mean = y / w;
    /* Few rows were seen apart: the guess is most of the slope, so that more rows get tested. */
    const double guess = mean * GUESS_SLOPE / (1 + middle * GUESS_SLOPE);
    const double prior = PRIOR_SPREAD / (mean * mean);
    *b = (xy - x * y / w + prior * guess) / (spread + prior);
    *b = *b < 0 ? 0 : *b;
    *a = mean - *b * middle;
    if (*a < 0.05 * mean) {
        *a = 0.05 * mean;
        *b = 0.95 * mean / middle;
    }
}

/* Monotone means of the measured buckets, drawn towards the line while they are few (the difference
 * of two noisy neighbours would be taken for the price of a row); returns how many. */
static int pool_means(const controller *c, double a, double b, double *at, double *mean)
{
    double weight[COST_BUCKETS], block[COST_BUCKETS];
    int first[COST_BUCKETS], n = 0, n_blocks = 0;
    for (int i = 0; i < COST_BUCKETS; i++) {
        const double w = c->cost_weight[i];
        if (!(w > 0))
            continue;
        at[n] = pl_cost_rows(i);
        const double line = a + b * at[n];
        block[n_blocks] = line + (c->cost_mean[i] - line) * w / (w + PRIOR_PASSES);
        weight[n_blocks] = w;
        first[n_blocks++] = n++;
        while (n_blocks > 1 && block[n_blocks - 1] < block[n_blocks - 2]) {
            const double sum = weight[n_blocks - 2] + weight[n_blocks - 1];
            block[n_blocks - 2] = (block[n_blocks - 2] * weight[n_blocks - 2] +
                                      block[n_blocks - 1] * weight[n_blocks - 1]) /
                                  sum;
            weight[n_blocks - 2] = sum;
            n_blocks--;
        }
    }
    for (int i = 0; i < n_blocks; i++)
        for (int k = first[i]; k < (i + 1 < n_blocks ? first[i + 1] : n); k++)
            mean[k] = block[i];
    return n;
}

static void refresh_cost(controller *c)
{
    double at[COST_BUCKETS], mean[COST_BUCKETS], a, b;
    int next = 0;
    fit_line(c, &a, &b);
    const int n = pool_means(c, a, b, at, mean);
    for (int rows = 0; rows <= c->max_rows; rows++) {
        double t;
        while (next < n && at[next] < rows)
            next++;
        if (next == 0)
            t = mean[0] - b * (at[0] - rows);
        else if (next == n)
            t = mean[n - 1] + b * (rows - at[n - 1]);
        else
            t = mean[next - 1] +
                (mean[next] - mean[next - 1]) * (rows - at[next - 1]) / (at[next] - at[next - 1]);
        c->cost[rows] = (float)(t > 0.1 * mean[0] ? t : 0.1 * mean[0]);
    }
}

/* Attention reads what is in the cache once for all rows of a sample, and the samples that are left
 * late in a batch have long ones: in the table, many rows would look too cheap for few samples. */
static double without_cache(controller *c, double pass_s, double attention_s)
{
    if (c->kind_of_round == ROUND_PLAIN && attention_s > 0 && c->n_positions > 0) {
        const double s = attention_s / c->n_positions, most = 2 * c->position_s;
        c->position_s += most > 0 ? 0.1 * ((s < most ? s : most) - c->position_s) : s;
    }
    const double rest = pass_s - c->position_s * c->n_positions;
    return rest > 0.2 * pass_s ? rest : 0.2 * pass_s;
}

void controller_observe_pass(controller *c, int n_rows, int is_pure, double pass_s,
    double attention_s, int n_emitted, double verify_s)
{
    if (c->kind != PL_CONTROLLER_GOODPUT)
        return;
    if (n_emitted > 0) {
        const double s = verify_s / n_emitted;
        c->draw_s = c->draw_s > 0 ? c->draw_s + 0.1 * (s - c->draw_s) : s;
    }
    if (!is_pure)
        return;
    pass_s = without_cache(c, pass_s, attention_s);
    const int b = pl_cost_bucket(n_rows);
    if (c->cost_weight[b] > 0) {
        /* The rest of the machine may have taken the core: one long pass says little. */
        if (c->cost_weight[b] > 3 && pass_s > 2 * c->cost_mean[b])
            pass_s = 2 * c->cost_mean[b];
        const double drift = pass_s / c->cost_mean[b] - 1;
        const double rate = 1 / (c->cost_weight[b] + 1) > 0.1 ? 1 / (c->cost_weight[b] + 1) : 0.1;
        for (int i = 0; i < COST_BUCKETS; i++) /* all buckets follow a little */
            c->cost_mean[i] *= 1 + drift * (i == b ? rate : 0.01);
        c->cost_weight[b] = c->cost_weight[b] < 100 ? c->cost_weight[b] + 1 : 100;
    } else {
        c->cost_mean[b] = pass_s;
        c->cost_weight[b] = 1;
    }
    c->n_measured++;
    refresh_cost(c);
}

void controller_observe_draft(controller *c, int n_rows, double draft_s)
{
    if (n_rows < 1)
        return;
    const double s = draft_s / n_rows;
    c->draft_s = c->draft_s > 0 ? c->draft_s + 0.1 * (s - c->draft_s) : s;
}
