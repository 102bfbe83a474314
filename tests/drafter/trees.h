/* tests/drafter/trees.h - samples that are drafted for, and what every tree must be. */
#ifndef TESTS_DRAFTER_TREES_H
#define TESTS_DRAFTER_TREES_H

#include "core/rng.h"
#include "drafter/learned_internal.h"
#include "tests/drafter/bed.h"

static const pl_learned_options plain = {
    .max_places = 12, .window = 256, .max_rows = 24, .max_depth = 6, .topk = 4};

/* A drafter of form 0 .. 3: plain EAGLE-3 in none, one or both of the parts that differ, and with
 * an eps that counts. */
static inline pl_eagle *drafter_of_form(const bed *b, int form, uint64_t seed)
{
    pl_eagle *e = bed_drafter(b, 3, seed);

    e->has_fc_norm = !(form & 1);
    e->norm_output = !(form & 2);
    e->eps = form ? 0.3f : e->eps;
    return e;
}

static inline pl_learned *learned(const bed *b, const pl_learned_options *o, const pl_eagle *e)
{
    pl_learned *l;
    pl_error err = {0};

    cr_assert_eq(pl_learned_new(&l, b->m, o, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_learned_set(l, e, &err), PL_OK, "%s", err.msg);
    l->least_row = 1e-9f; /* these drafters know nothing: trees of full depth all the same */
    l->least_run = 1e-9f;
    return l;
}

static inline void feed(pl_learned *l, int place, const text *x, int from, int to)
{
    pl_learned_feed(l, place, from, x->tokens + from, &x->features[from][0][0],
        PL_FEATURE_LAYERS * BED_CP, to - from);
}

static inline int open_with(pl_learned *l, const text *x, int n)
{
    const int place = pl_learned_open(l);
    cr_assert_geq(place, 0);
    feed(l, place, x, 0, n);
    return place;
}

typedef struct tree {
    pl_draft d;
    float expected[PL_DRAFT_MAX];
    pl_draw draw;
} tree;

static inline pl_learned_ask ask_for(
    pl_learned *l, int place, tree *t, int32_t pending, float temperature)
{
    memset(t, 0, sizeof *t);
    pl_draft_begin(&t->d, pending);
    t->draw = (pl_draw){.temperature = temperature,
        .top_p = 1,
        .key = 77,
        .uid = 5,
        .position = (uint32_t)pl_learned_position(l, place) + 1};
    return (pl_learned_ask){.place = place,
        .draw = &t->draw,
        .max_rows = l->o.max_rows,
        .max_depth = l->o.max_depth,
        .draft = &t->d,
        .expected = t->expected};
}

static inline int propose(pl_learned *l, int place, tree *t, const text *x, float temperature)
{
    const pl_learned_ask a =
        ask_for(l, place, t, x->tokens[pl_learned_position(l, place)], temperature);
    return pl_learned_propose(l, &a, 1);
}

static inline int same(const tree *a, const tree *b)
{
    const size_t n = (size_t)a->d.n;
    return a->d.n == b->d.n && memcmp(a->d.token, b->d.token, n * sizeof *a->d.token) == 0 &&
           memcmp(a->d.parent, b->d.parent, n * sizeof *a->d.parent) == 0 &&
           memcmp(a->expected, b->expected, n * sizeof *a->expected) == 0;
}

static inline void expect_valid(const tree *t, int max_rows, int max_depth)
{
    const pl_draft *d = &t->d;
    cr_expect(d->n <= max_rows, "%d rows of %d", d->n, max_rows);
    cr_expect(d->parent[0] == -1 && t->expected[0] == 1);
    for (int i = 1; i < d->n; i++) {
        cr_assert(d->parent[i] >= 0 && d->parent[i] < i, "row %d under %d", i, d->parent[i]);
        cr_expect_eq(d->depth[i], d->depth[d->parent[i]] + 1);
        cr_expect(d->depth[i] <= max_depth);
        cr_expect(d->token[i] >= 0 && d->token[i] < BED_V);
        cr_expect(t->expected[i] > 0 && t->expected[i] <= t->expected[d->parent[i]],
            "row %d: %g under %g", i, (double)t->expected[i], (double)t->expected[d->parent[i]]);
        for (int j = 1; j < i; j++)
            cr_expect(
                d->parent[j] != d->parent[i] || d->token[j] != d->token[i], "twins %d %d", j, i);
    }
}

/* The best score of depth `depth` under logits z, and that of a token. */
static inline double best_score(
    const tree *t, const pl_eagle *e, const double *z, int depth, int32_t id, double *of_id)
{
    double best = -1e30;
    for (int i = 0; i < e->dims.v; i++) {
        const double s = z[i] / (double)t->draw.temperature +
                         pl_noise_gumbel(t->draw.key, t->draw.uid,
                             t->draw.position + (uint32_t)depth, 0, (uint32_t)e->vocab[i]);
        best = s > best ? s : best;
        if (e->vocab[i] == id)
            *of_id = s;
    }
    return best;
}

#endif
