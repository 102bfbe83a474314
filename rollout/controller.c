/* rollout/controller.c - rows by measured pass times and measured acceptance.
 *
 * GOODPUT: all proposed rows of all samples are sorted by the calibrated chance that they are
 * reached; of the prefixes of that list, the one with the most expected tokens a predicted second
 * is taken (DRAFTING 3.5: any prefix is closed under parents, and no set of its size expects more).
 * Nothing drafted is one of the prefixes: speculation goes off by itself where it does not pay, and
 * after rounds where it did not, proposing rests for up to MAX_BACKOFF / 2 rounds.
 *
 * Pass times: running means by bucket of rows, made monotone (pool adjacent violators), linear
 * between buckets; beyond the measured ones a guess that is optimistic, so that it gets tested.
 *
 * The suffix drafter costs next to nothing, so it rests by rounds alone; whether the learned one
 * drafts, and how deep, is weighed in controller_learned.c. */
#include "rollout/controller.h"

#include <stdlib.h>
#include <string.h>

enum {
    MAX_BACKOFF = 63,
    PRIOR_PASSES = 20, /* of a bucket, that the line is worth */
    PRIOR_LABELS = 8,
    PRIOR_HOPES = 4,   /* expected hits that full trust is worth */
    MAX_LABELS = 2000, /* of a bucket, so that it follows */
};
static const double GUESS_SLOPE = 1.0 / 64; /* of the time of one row, for each more */
static const double MIN_GAIN = 1.05;        /* what speculation must promise */
static const double PRIOR_SPREAD = 128;     /* of rows: two passes, 8 rows from the others */
static const float MIN_VALUE = 0.02f;

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

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* Twice what is verified at most: so many are there to choose from. */
int controller_max_proposal(const pl_engine_options *o)
{
    return min_int(2 * o->max_spec_rows, PL_DRAFT_MAX);
}

int controller_max_levels(const pl_engine_options *o)
{
    return min_int(o->learned_depth, LEARNED_LEVELS);
}

static int max_entries(const pl_engine_options *o)
{
    return o->max_num_seqs * (controller_max_proposal(o) - 1) + 1;
}

static int max_cost_rows(const pl_engine_options *o)
{
    return min_int(o->max_rows, COST_ROWS);
}

size_t controller_plan(const pl_engine_options *o)
{
    return (size_t)max_entries(o) * sizeof(controller_entry) +
           ((size_t)max_cost_rows(o) + 1) * sizeof(float);
}

pl_status controller_init(controller *c, const pl_engine_options *o, pl_error *err)
{
    memset(c, 0, sizeof *c);
    c->kind = o->controller;
    c->fixed_rows = o->fixed_rows;
    c->max_spec_rows = o->max_spec_rows;
    c->max_proposal = controller_max_proposal(o);
    c->max_levels = controller_max_levels(o);
    c->max_rows = max_cost_rows(o);
    c->max_entries = max_entries(o);
    c->kept = 2;
    for (int i = 0; i < BATCH_CLASSES; i++)
        c->learned[i].extend_s = c->learned[i].level_s = -1;
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

/* ---- what is proposed ---- */

static controller_offer_rows offer_fixed(const controller *c, int n_learned)
{
    const int rows = min_int(c->fixed_rows, c->max_spec_rows);
    controller_offer_rows o = {.suffix = rows - 1, .most = rows};
    if (n_learned > 0 && rows > 1) {
        o.suffix = (rows - 1) / 2;
        o.learned = rows - 1;
        o.levels = c->max_levels;
        o.n_asks = n_learned;
    }
    return o;
}

static controller_offer_rows offer_goodput(
    controller *c, int n_samples, int n_learned, int rows_left)
{
    /* Twice what was lately worth verifying, so that it can grow. */
    const int wish = 2 + (int)(2 * c->kept);
    const int share = 1 + 2 * rows_left / n_samples;
    const int rows = min_int(min_int(wish, share), c->max_spec_rows - 1);
    controller_offer_rows o = {.suffix = rows, .most = c->max_proposal};
    /* Rest, unless the batch has shrunk since: then rows have become cheaper. */
    if (c->skip > 0 && 4 * n_samples > 3 * c->skip_samples) {
        c->skip--;
        o.suffix = 0;
    }
    o.levels = n_learned > 0 && rows > 0 ? learned_levels(c, n_samples, &o.n_asks) : 0;
    o.n_asks = min_int(o.n_asks, n_learned);
    o.learned = o.levels > 0 ? rows : 0;
    return o;
}

controller_offer_rows controller_offer(controller *c, int n_samples, int n_learned, int rows_left)
{
    controller_offer_rows o = {0};
    if (n_samples > 0 && rows_left > 0 && c->kind == PL_CONTROLLER_FIXED)
        o = offer_fixed(c, n_learned);
    else if (n_samples > 0 && rows_left > 0 && c->kind == PL_CONTROLLER_GOODPUT)
        o = offer_goodput(c, n_samples, n_learned, rows_left);
    c->offer = o;
    c->n_asked = 0;
    return o;
}

/* ---- what a pass costs ---- */

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
    const int b = pl_cost_bucket(n_rows);
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

/* ---- who is right how often ---- */

static float chance_of(const controller_item *it, int row)
{
    const float parent = it->expected[it->proposal.parent[row]];
    return parent > 0 ? it->expected[row] / parent : 0;
}

void controller_describe(controller_item *it, int is_asked)
{
    const pl_draft *d = &it->proposal;
    const int n_first = is_asked ? it->n_first : d->n;
    for (int i = 1; i < d->n; i++) {
        const int is_suffix = d->source[i] == PL_SOURCE_SUFFIX;
        if (i >= n_first || !is_asked) {
            it->kind[i] = is_suffix ? ROW_SUFFIX : ROW_LEARNED;
            it->chance[i] = it->first[i] = chance_of(it, i);
        } else if (is_suffix) {
            /* value holds what was expected of it at first. */
            it->kind[i] = it->expected[i] > it->value[i] ? ROW_BOTH : ROW_ALONE;
            it->chance[i] = it->kind[i] == ROW_BOTH ? chance_of(it, i) : it->first[i];
        }
    }
    memcpy(it->value, it->expected, (size_t)d->n * sizeof *it->value);
    it->n_first = n_first;
    it->is_asked = is_asked;
}

static int chance_bucket(float chance)
{
    const int b = (int)(chance * CHANCE_BUCKETS);
    return b < 0 ? 0 : min_int(b, CHANCE_BUCKETS - 1);
}

static int depth_class(int depth)
{
    return min_int(depth - 1, CHANCE_DEPTHS - 1);
}

static void label(controller *c, row_kind kind, int depth, float chance, int is_hit)
{
    const int k = depth_class(depth), b = chance_bucket(chance);
    double *trials = &c->trials[kind][k][b], *hits = &c->hits[kind][k][b];
    *trials += 1;
    *hits += is_hit;
    if (*trials > MAX_LABELS) {
        *trials /= 2;
        *hits /= 2;
    }
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
            const int is_hit = d->token[k] == tokens[i];
            label(c, it->kind[k], d->depth[k], it->chance[k], is_hit);
            if (it->kind[k] == ROW_ALONE || it->kind[k] == ROW_BOTH)
                label(c, ROW_SUFFIX, d->depth[k], it->first[k], is_hit);
        }
        row = pl_draft_child(d, row, tokens[i]);
    }
}

static double middle_of(int bucket)
{
    return (bucket + 0.5) / CHANCE_BUCKETS;
}

/* Hits over what was expected, of a depth and beyond it of all depths. */
static void refresh_trust(controller *c)
{
    for (int kind = 0; kind < ROW_KINDS; kind++) {
        double hits[CHANCE_DEPTHS] = {0}, hopes[CHANCE_DEPTHS] = {0};
        double all_hits = PRIOR_HOPES, all_hopes = PRIOR_HOPES;
        for (int k = 0; k < CHANCE_DEPTHS; k++) {
            for (int b = 0; b < CHANCE_BUCKETS; b++) {
                hits[k] += c->hits[kind][k][b];
                hopes[k] += c->trials[kind][k][b] * middle_of(b);
            }
            all_hits += hits[k];
            all_hopes += hopes[k];
        }
        for (int k = 0; k < CHANCE_DEPTHS; k++)
            c->trust[kind][k] =
                (hits[k] + PRIOR_HOPES * all_hits / all_hopes) / (hopes[k] + PRIOR_HOPES);
    }
}

/* The drafter's estimate, as far as it is trusted, is worth PRIOR_LABELS labels. */
static float calibrated(const controller *c, int kind, int depth, float chance)
{
    const int k = depth_class(depth), b = chance_bucket(chance);
    const double trusted = middle_of(b) * c->trust[kind][k];
    const double prior = trusted < 1 ? trusted : 1;
    return (float)((c->hits[kind][k][b] + PRIOR_LABELS * prior) /
                   (c->trials[kind][k][b] + PRIOR_LABELS));
}

/* Values of the first n rows; at_first: as if the learned drafter had not been asked. */
static void calibrate(const controller *c, controller_item *it, int n, int at_first)
{
    const pl_draft *d = &it->proposal;
    it->value[0] = 1;
    for (int i = 1; i < n; i++) {
        const int kind = at_first && d->source[i] == PL_SOURCE_SUFFIX ? ROW_SUFFIX : it->kind[i];
        it->value[i] = it->value[d->parent[i]] *
                       calibrated(c, kind, d->depth[i], at_first ? it->first[i] : it->chance[i]);
    }
}

/* ---- what is verified ---- */

static int compare_entries(const void *a, const void *b)
{
    const controller_entry *x = a, *y = b;
    if (x->value != y->value)
        return x->value > y->value ? -1 : 1;
    if (x->row != y->row) /* parents first */
        return x->row < y->row ? -1 : 1;
    return x->item < y->item ? -1 : x->item > y->item;
}

outlook controller_best(const controller *c, int n_entries, int n_samples, int n_other, int level,
    double base_gain, double draft_s)
{
    const double base = n_samples;
    outlook best = {0, base, controller_cost(c, n_samples + n_other) + base * c->draw_s};
    double expected = base, bar = base / best.seconds * base_gain;
    for (int k = 0, n = 0; k < n_entries; k++) {
        if (c->entries[k].level > level)
            continue;
        n++;
        expected += (double)c->entries[k].value;
        const double seconds =
            controller_cost(c, n_samples + n_other + n) + expected * c->draw_s + draft_s;
        if (expected / seconds > bar) {
            bar = expected / seconds;
            best = (outlook){n, expected, seconds};
        }
    }
    return best;
}

static int level_of(const controller_item *it, int row)
{
    return it->kind[row] == ROW_LEARNED ? min_int(it->proposal.depth[row], LEARNED_LEVELS) : 0;
}

/* All rows that are worth a look, best first; at most max_spec_rows - 1 of a sample.  at_first: of
 * those that were there before the learned drafter was asked. */
static int sort_entries(controller *c, controller_item **items, int n, int at_first)
{
    int n_entries = 0, n_left = 0;
    for (int i = 0; i < n; i++) {
        controller_item *it = items[i];
        const int n_rows = at_first ? it->n_first : it->proposal.n;
        calibrate(c, it, n_rows, at_first);
        for (int row = 1; row < n_rows && n_entries < c->max_entries; row++)
            if (it->value[row] >= MIN_VALUE)
                c->entries[n_entries++] = (controller_entry){.value = it->value[row],
                    .item = i,
                    .row = (int16_t)row,
                    .level = (int16_t)(at_first ? 0 : level_of(it, row))};
    }
    qsort(c->entries, (size_t)n_entries, sizeof *c->entries, compare_entries);
    for (int k = 0; k < n_entries; k++) {
        controller_item *it = items[c->entries[k].item];
        if (it->n_keep == c->max_spec_rows)
            continue;
        it->n_keep++;
        c->entries[n_left++] = c->entries[k];
    }
    for (int i = 0; i < n; i++)
        items[i]->n_keep = 1;
    return n_left;
}

/* Entries of the best prefix; what is learnt about the learned drafter on the way. */
static int weigh(controller *c, controller_item **items, int n, int n_other, int rows_left)
{
    outlook without = {0};
    int n_suffix = 0;
    refresh_trust(c);
    if (c->n_asked > 0) {
        const int n_first = min_int(sort_entries(c, items, n, 1), rows_left);
        without = controller_best(c, n_first, n, n_other, 0, MIN_GAIN, 0);
    }
    const int n_entries = min_int(sort_entries(c, items, n, 0), rows_left);
    if (c->n_measured == 0)
        return 0; /* times are in no unit yet: draft nothing */
    if (c->n_asked > 0)
        learned_weigh(c, &without, n_entries, n, n_other);
    for (int k = 0; k < n_entries; k++)
        n_suffix += c->entries[k].level == 0;
    return controller_best(
        c, n_entries, n, n_other, LEARNED_LEVELS, MIN_GAIN, c->draft_s * n_suffix)
        .n_rows;
}

static void choose_goodput(
    controller *c, controller_item **items, int n, int n_other, int rows_left)
{
    const int n_best = weigh(c, items, n, n_other, rows_left);
    int n_suffix = 0;
    for (int k = 0; k < n_best; k++) {
        controller_item *it = items[c->entries[k].item];
        it->keep[c->entries[k].row] = 1;
        it->n_keep++;
        n_suffix += c->entries[k].level == 0;
    }
    c->kept += 0.2 * ((double)n_best / n - c->kept);
    if (c->offer.suffix == 0)
        return;
    c->backoff = n_suffix > 0 ? 0 : min_int(2 * c->backoff + 1, MAX_BACKOFF);
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
