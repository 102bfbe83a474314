/* rollout/controller.c - rows by measured pass times and measured acceptance.
 *
 * GOODPUT: all proposed rows of all samples are sorted by the calibrated chance that they are
 * reached; of the prefixes of that list, the one with the most expected tokens a predicted second
 * is taken (DRAFTING 3.5: any prefix is closed under parents, and no set of its size expects more).
 * Nothing drafted is one of the prefixes: speculation goes off by itself where it does not pay, and
 * after rounds where it did not, proposing rests for up to MAX_BACKOFF / 2 rounds.
 *
 * Pass times: running means by bucket of rows, made monotone (pool adjacent violators), linear
 * between buckets; beyond the measured ones a guess that is optimistic, so that it gets tested. */
#include "rollout/controller.h"

#include <stdlib.h>
#include <string.h>

enum {
    MAX_BACKOFF = 63,
    PRIOR_PASSES = 20, /* of a bucket, that the line is worth */
};
static const double GUESS_SLOPE = 1.0 / 64; /* of the time of one row, for each more */
static const double MIN_GAIN = 1.05;        /* what speculation must promise */
static const float MIN_VALUE = 0.02f;

/* Rows 1..8 exactly, then 8 buckets an octave. */
static int bucket_of(int n_rows)
{
    int octave = 0;
    while (n_rows >> octave > 15)
        octave++;
    const int b = n_rows < 16 ? n_rows : 16 + (octave - 1) * 8 + ((n_rows >> octave) - 8);
    return b < COST_BUCKETS ? b : COST_BUCKETS - 1;
}

static double bucket_rows(int b)
{
    if (b < 16)
        return b;
    const int octave = (b - 16) / 8 + 1;
    const int low = ((b - 16) % 8 + 8) << octave;
    return low + ((1 << octave) - 1) * 0.5;
}

pl_status controller_init(controller *c, const pl_engine_options *o, pl_error *err)
{
    memset(c, 0, sizeof *c);
    c->kind = o->controller;
    c->fixed_rows = o->fixed_rows;
    c->max_spec_rows = o->max_spec_rows;
    c->max_rows = o->max_rows < COST_ROWS ? o->max_rows : COST_ROWS;
    c->max_entries = o->max_num_seqs * (o->max_spec_rows - 1) + 1;
    c->kept = 2;
    c->cost = calloc((size_t)c->max_rows + 1, sizeof *c->cost);
    c->entries = malloc((size_t)c->max_entries * sizeof *c->entries);
    if (!c->cost || !c->entries) {
        controller_done(c);
        return pl_fail(err, PL_E_NOMEM, "controller: no memory for %d rows", c->max_rows);
    }
    return PL_OK;
}

void controller_done(controller *c)
{
    free(c->cost);
    free(c->entries);
    memset(c, 0, sizeof *c);
}

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

int controller_offer(controller *c, int n_samples, int rows_left)
{
    if (n_samples == 0 || rows_left < 1)
        return 0;
    switch (c->kind) {
    case PL_CONTROLLER_OFF:
        return 0;
    case PL_CONTROLLER_FIXED:
        return min_int(c->fixed_rows, c->max_spec_rows) - 1;
    case PL_CONTROLLER_GOODPUT:
        break;
    }
    /* Rest, unless the batch has shrunk since: then rows have become cheaper. */
    if (c->skip > 0 && 4 * n_samples > 3 * c->skip_samples) {
        c->skip--;
        return 0;
    }
    /* Twice what was lately worth verifying, so that it can grow. */
    const int wish = 2 + (int)(2 * c->kept);
    const int share = 1 + 2 * rows_left / n_samples;
    return min_int(min_int(wish, share), c->max_spec_rows - 1);
}

double controller_cost(const controller *c, int n_rows)
{
    return (double)c->cost[n_rows < c->max_rows ? n_rows : c->max_rows];
}

/* Line a + b * rows through the measured buckets, by relative error; b >= 0 and a > 0. */
static void fit_line(const controller *c, double *a, double *b)
{
    double w = 0, x = 0, y = 0, xx = 0, xy = 0;
    for (int i = 0; i < COST_BUCKETS; i++) {
        if (!(c->cost_weight[i] > 0))
            continue;
        const double weight = c->cost_weight[i] / (c->cost_mean[i] * c->cost_mean[i]);
        const double at = bucket_rows(i);
        w += weight;
        x += weight * at;
        y += weight * c->cost_mean[i];
        xx += weight * at * at;
        xy += weight * at * c->cost_mean[i];
    }
    const double spread = xx - x * x / w, middle = x / w, mean = y / w;
    /* All at one place: the guess is the slope. */
    *b = spread > 1e-6 * xx ? (xy - x * y / w) / spread
                            : mean * GUESS_SLOPE / (1 + middle * GUESS_SLOPE);
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
        at[n] = bucket_rows(i);
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

void controller_observe_pass(
    controller *c, int n_rows, int is_pure, double pass_s, int n_emitted, double verify_s)
{
    if (c->kind != PL_CONTROLLER_GOODPUT)
        return;
    if (n_emitted > 0) {
        const double s = verify_s / n_emitted;
        c->draw_s = c->draw_s > 0 ? c->draw_s + 0.1 * (s - c->draw_s) : s;
    }
    if (!is_pure)
        return;
    const int b = bucket_of(n_rows);
    if (c->cost_weight[b] > 0) {
        /* The rest of the machine may have taken the core: one long pass says little. */
        if (c->cost_weight[b] > 3 && pass_s > 2 * c->cost_mean[b])
            pass_s = 2 * c->cost_mean[b];
        const double drift = pass_s / c->cost_mean[b] - 1;
        const double rate = 1 / (c->cost_weight[b] + 1) > 0.1 ? 1 / (c->cost_weight[b] + 1) : 0.1;
        for (int i = 0; i < COST_BUCKETS; i++) /* contexts grow: all buckets follow a little */
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

static int chance_bucket(const controller_item *it, int row)
{
    const float parent = it->expected[it->proposal.parent[row]];
    const float chance = parent > 0 ? it->expected[row] / parent : 0;
    const int b = (int)(chance * CHANCE_BUCKETS);
    return b < 0 ? 0 : min_int(b, CHANCE_BUCKETS - 1);
}

void controller_observe_item(controller *c, const controller_item *it, const int32_t *tokens, int n)
{
    const pl_draft *d = &it->proposal;
    if (c->kind != PL_CONTROLLER_GOODPUT)
        return;
    /* Every child of a reached row gets its label, verified or not: the drawn token is known. */
    for (int i = 0, row = 0; i < n && row >= 0; i++) {
        for (int k = row + 1; k < d->n; k++) {
            if (d->parent[k] != row)
                continue;
            const int level = i > 0, b = chance_bucket(it, k);
            c->trials[level][b] += 1;
            c->hits[level][b] += d->token[k] == tokens[i];
            if (c->trials[level][b] > 2000) {
                c->trials[level][b] /= 2;
                c->hits[level][b] /= 2;
            }
        }
        row = pl_draft_child(d, row, tokens[i]);
    }
}

static void calibrate(const controller *c, controller_item *it)
{
    const pl_draft *d = &it->proposal;
    it->value[0] = 1;
    for (int i = 1; i < d->n; i++) {
        const int level = d->depth[i] > 1, b = chance_bucket(it, i);
        const double prior = (b + 0.5) / CHANCE_BUCKETS;
        const double chance = (c->hits[level][b] + 8 * prior) / (c->trials[level][b] + 8);
        it->value[i] = it->value[d->parent[i]] * (float)(chance < 1 ? chance : 1);
    }
}

static int compare_entries(const void *a, const void *b)
{
    const controller_entry *x = a, *y = b;
    if (x->value != y->value)
        return x->value > y->value ? -1 : 1;
    if (x->row != y->row) /* parents first */
        return x->row < y->row ? -1 : 1;
    return x->item < y->item ? -1 : x->item > y->item;
}

/* Entries of the best prefix. */
static int best_prefix(controller *c, int n_entries, int n_samples, int n_other)
{
    const double base = n_samples;
    const double plain = base / (controller_cost(c, n_samples + n_other) + base * c->draw_s);
    double expected = base, best = plain * MIN_GAIN;
    int n_best = 0;
    for (int k = 1; k <= n_entries; k++) {
        expected += (double)c->entries[k - 1].value;
        const double seconds = controller_cost(c, n_samples + n_other + k) + expected * c->draw_s +
                               n_entries * c->draft_s;
        if (expected / seconds > best) {
            best = expected / seconds;
            n_best = k;
        }
    }
    return n_best;
}

static void choose_goodput(
    controller *c, controller_item **items, int n, int n_other, int rows_left)
{
    int n_entries = 0;
    for (int i = 0; i < n; i++) {
        controller_item *it = items[i];
        calibrate(c, it);
        for (int row = 1; row < it->proposal.n && n_entries < c->max_entries; row++)
            if (it->value[row] >= MIN_VALUE)
                c->entries[n_entries++] = (controller_entry){it->value[row], i, row};
    }
    qsort(c->entries, (size_t)n_entries, sizeof *c->entries, compare_entries);
    if (n_entries > rows_left)
        n_entries = rows_left;
    /* Until one pass was measured, times are in no unit: draft nothing. */
    const int n_best = c->n_measured > 0 ? best_prefix(c, n_entries, n, n_other) : 0;
    for (int k = 0; k < n_best; k++) {
        controller_item *it = items[c->entries[k].item];
        it->keep[c->entries[k].row] = 1;
        it->n_keep++;
    }
    c->kept += 0.2 * ((double)n_best / n - c->kept);
    c->backoff = n_best > 0 ? 0 : min_int(2 * c->backoff + 1, MAX_BACKOFF);
    c->skip = c->backoff / 2;
    c->skip_samples = n;
}

void controller_choose(controller *c, controller_item **items, int n, int n_other, int rows_left)
{
    for (int i = 0; i < n; i++) {
        memset(items[i]->keep, 0, sizeof items[i]->keep);
        items[i]->keep[0] = 1;
        items[i]->n_keep = 1;
    }
    if (n == 0 || c->kind == PL_CONTROLLER_OFF)
        return;
    if (c->kind == PL_CONTROLLER_GOODPUT) {
        choose_goodput(c, items, n, n_other, rows_left);
        return;
    }
    /* FIXED: level by level of rank, so that a short pass serves all samples alike. */
    for (int row = 1; row < c->fixed_rows; row++)
        for (int i = 0; i < n && rows_left > 0; i++)
            if (row < items[i]->proposal.n) {
                items[i]->keep[row] = 1;
                items[i]->n_keep++;
                rows_left--;
            }
}
