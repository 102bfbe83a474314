/* rollout/controller.c - rows by measured pass times and measured acceptance.
 *
 * GOODPUT: all proposed rows of all samples are sorted by the calibrated chance that they are
 * reached; of the prefixes of that list, the one with the most expected tokens a predicted second
 * is taken (DRAFTING 3.5: any prefix is closed under parents, and no set of its size expects more).
 * Nothing drafted is one of the prefixes: speculation goes off by itself where it does not pay, and
 * after rounds where it did not, proposing rests for up to MAX_BACKOFF / 2 rounds.
 *
 * Promises are checked: of each kind of rounds, in batches of a class of sizes, what they took is
 * held against what was foreseen, and what a kind promises over plain rounds is scaled by how far
 * it kept that.  Plain rounds come up now and then for it.
 *
 * The suffix drafter costs next to nothing, so it rests by rounds alone; whether the learned one
 * drafts, and how deep, is weighed in controller_learned.c. */
#include "rollout/controller.h"

#include <stdlib.h>
#include <string.h>

enum {
    MAX_BACKOFF = 63,
    PRIOR_LABELS = 8,
    PRIOR_HOPES = 4,   /* expected hits that full trust is worth */
    MAX_LABELS = 2000, /* of a bucket, so that it follows */
    PLAIN_EVERY = 24,  /* rounds, of which one drafts nothing: what that takes stays known */
    PLAIN_FIRST = 8,   /* the same while few of them are known */
    PRIOR_ROUNDS = 8,  /* that kept what they promised */
};
static const double FADE = 0.985;    /* of an account, with each round */
static const double MIN_GAIN = 1.05; /* what speculation must promise */
static const float MIN_VALUE = 0.02f;

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

int controller_class(int n_samples)
{
    int k = 0;
    while (k < BATCH_CLASSES - 1 && 1 << k < n_samples)
        k++;
    return k;
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

static int is_plain_due(const controller *c, int n_samples)
{
    const int k = controller_class(n_samples);
    const int is_known = c->accounts[k][ROUND_PLAIN].n_rounds > PRIOR_ROUNDS;
    return c->n_drafted[k] >= (is_known ? PLAIN_EVERY : PLAIN_FIRST);
}

static controller_offer_rows offer_goodput(
    controller *c, int n_samples, int n_learned, int rows_left)
{
    /* Twice what was lately worth verifying, so that it can grow. */
    const int wish = 2 + (int)(2 * c->kept);
    const int share = 1 + 2 * rows_left / n_samples;
    const int rows = min_int(min_int(wish, share), c->max_spec_rows - 1);
    controller_offer_rows o = {.suffix = rows, .most = c->max_proposal};
    if (is_plain_due(c, n_samples)) {
        c->n_drafted[controller_class(n_samples)] = 0;
        return (controller_offer_rows){0};
    }
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

void controller_begin(controller *c, long n_positions)
{
    c->n_positions = (double)n_positions;
    c->kind_of_round = ROUND_PLAIN;
    c->n_samples = 0;
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
    c->asked_s = 0;
    c->n_samples = n_samples;
    c->kind_of_round = ROUND_PLAIN;
    c->round_s = n_samples > 0 && c->n_measured > 0
                     ? controller_cost(c, n_samples) + n_samples * c->draw_s
                     : 0;
    c->round_tokens = n_samples;
    return o;
}

/* ---- what was promised and kept ---- */

void controller_observe_round(
    controller *c, int n_samples, int n_emitted, double draft_s, double seconds)
{
    const int k = controller_class(n_samples);
    controller_account *a = &c->accounts[k][c->kind_of_round];
    /* Others took part, or pass times were in no unit yet. */
    if (c->kind != PL_CONTROLLER_GOODPUT || n_samples != c->n_samples || !(c->round_s > 0) ||
        n_emitted < 1)
        return;
    c->n_drafted[k] = c->kind_of_round == ROUND_PLAIN ? 0 : c->n_drafted[k] + 1;
    if (c->kind_of_round != ROUND_PLAIN) /* what was proposed and refused is not plain decoding */
        seconds += draft_s;
    const double foreseen_s = c->round_s * n_emitted / c->round_tokens;
    /* The rest of the machine may have taken the core. */
    const double took_s = seconds < 4 * c->round_s ? seconds : 4 * c->round_s;
    *a = (controller_account){
        FADE * a->foreseen_s + foreseen_s, FADE * a->took_s + took_s, FADE * a->n_rounds + 1};
}

static double kept_of(const controller_account *a)
{
    return a->n_rounds > 0 ? (a->foreseen_s / a->took_s * a->n_rounds + PRIOR_ROUNDS) /
                                 (a->n_rounds + PRIOR_ROUNDS)
                           : 1;
}

double controller_faith(const controller *c, int batch_class, round_kind kind)
{
    const controller_account *a = c->accounts[batch_class];
    return kept_of(&a[kind]) / kept_of(&a[ROUND_PLAIN]);
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
    const double alone = MIN_GAIN / controller_faith(c, controller_class(n), ROUND_SUFFIX);
    outlook without = {0};
    int n_suffix = 0;
    refresh_trust(c);
    if (c->n_asked > 0) {
        const int n_first = min_int(sort_entries(c, items, n, 1), rows_left);
        without = controller_best(c, n_first, n, n_other, 0, alone, 0);
    }
    const int n_entries = min_int(sort_entries(c, items, n, 0), rows_left);
    if (c->n_measured == 0)
        return 0; /* times are in no unit yet: draft nothing */
    if (c->n_asked > 0)
        learned_weigh(c, &without, n_entries, n, n_other);
    for (int k = 0; k < n_entries; k++)
        n_suffix += c->entries[k].level == 0;
    /* What the learned drafter took is spent, whatever is made of it. */
    const round_kind kind = c->n_asked > 0 ? ROUND_LEARNED : ROUND_SUFFIX;
    const double gain = kind == ROUND_SUFFIX ? alone : MIN_GAIN;
    const outlook o =
        controller_best(c, n_entries, n, n_other, LEARNED_LEVELS, gain, c->draft_s * n_suffix);
    c->kind_of_round = o.n_rows > 0 || kind == ROUND_LEARNED ? kind : ROUND_PLAIN;
    c->round_s = o.seconds + c->asked_s;
    c->round_tokens = o.tokens;
    return o.n_rows;
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
    controller_account *a = &c->accounts[controller_class(n)][ROUND_SUFFIX];
    if (n_suffix == 0) /* what is not tried is believed less and less */
        *a = a->n_rounds < 0.01
                 ? (controller_account){0}
                 : (controller_account){FADE * a->foreseen_s, FADE * a->took_s, FADE * a->n_rounds};
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
