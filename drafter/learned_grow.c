/* drafter/learned_grow.c - trees of drafted tokens: caches brought up to date, then grown level by
 * level, the rows of all samples together.
 *
 * A node is worth the product of its chances down from the root.  Of a level the most valuable
 * nodes are run, but none that would not be among the rows that are added in the end: nothing below
 * it would be either. */
#include "drafter/learned_internal.h"

#include "core/rng.h"

#include <string.h>
#include <time.h>

/* A node is run if a child of this chance would be among the rows that are added. */
static const float BEST_CHILD = 0.5f;

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int least(int a, int b)
{
    return a < b ? a : b;
}

/* ---- the caches ---- */

static void flush_keys(pl_learned *l)
{
    if (l->n_rows > 0)
        learned_run_keys(l);
    l->n_rows = 0;
}

/* The keys of all positions that have none; that of the last one always, for its fused feature. */
static void extend(pl_learned *l, int n_trees)
{
    l->n_rows = 0;
    for (int i = 0; i < n_trees; i++) {
        learned_tree *t = &l->trees[i];
        learned_place *p = t->place;
        const int last = p->position - 1;
        for (int at = least(p->n_cached, last); at <= last; at++) {
            const int32_t next =
                at == last ? t->ask->draft->token[0] : p->tokens[(at + 1) % l->ring];
            l->rows[l->n_rows++] = (learned_row){.tree = t, .position = at, .token = next};
            l->stats.n_rebuilt += at < p->n_stale;
            l->stats.n_extended += at >= p->n_stale;
            if (l->n_rows == LEARNED_ROWS)
                flush_keys(l);
        }
        p->n_cached = p->position;
        p->n_stale = 0;
        p->pending = t->ask->draft->token[0];
    }
    flush_keys(l);
}

/* ---- one tree ---- */

/* 0: there is nothing to do. */
static int plant(pl_learned *l, learned_tree *t, const pl_learned_ask *a)
{
    t->ask = a;
    t->place = &l->places[a->place];
    t->max_depth = least(a->max_depth, l->o.max_depth);
    t->room = least(a->max_rows, l->o.max_rows) - a->draft->n;
    if (t->room < 1 || t->max_depth < 1 || t->place->position == t->place->first)
        return 0;
    t->nodes[0] = (learned_node){
        .reach = 1, .token = a->draft->token[0], .parent = -1, .run = -1, .is_alive = 1};
    t->n_nodes = 1;
    t->level = 0;
    t->n_runs = 0;
    t->n_best = 0;
    return 1;
}

/* Put a node where it belongs among those that are added; the last one may have to leave.  A parent
 * is worth no less than its children and stands before its equals, so it never leaves before them.
 */
static void rank(learned_tree *t, int node)
{
    int i = t->n_best;

    if (i == t->room) {
        if (t->nodes[t->best[i - 1]].reach >= t->nodes[node].reach) {
            t->nodes[node].is_alive = 0;
            return;
        }
        t->nodes[t->best[--i]].is_alive = 0;
    } else {
        t->n_best++;
    }
    for (; i > 0 && t->nodes[t->best[i - 1]].reach < t->nodes[node].reach; i--)
        t->best[i] = t->best[i - 1];
    t->best[i] = (int16_t)node;
}

/* Another drafter proposed this row too: each may be right alone, but neither more often than the
 * row above is reached. */
static float agree(const pl_learned_ask *a, int row, float reach)
{
    const float both = 1 - (1 - a->expected[row]) * (1 - reach);
    const float above = a->expected[a->draft->parent[row]];
    const float more = both > a->expected[row] ? both : a->expected[row];
    return more < above ? more : a->expected[row] > above ? a->expected[row] : above;
}

static void add_node(learned_tree *t, int parent, int32_t token, double chance)
{
    const pl_learned_ask *a = t->ask;
    const learned_node *up = &t->nodes[parent];
    const int i = t->n_nodes++;

    t->nodes[i] = (learned_node){.reach = (float)((double)up->reach * chance),
        .token = token,
        .parent = (int16_t)parent,
        .depth = (int16_t)(up->depth + 1),
        .run = -1,
        .row = -1,
        .is_alive = 1};
    if (up->row >= 0)
        t->nodes[i].row = (int16_t)pl_draft_child(a->draft, up->row, token);
    if (t->nodes[i].row < 0) {
        rank(t, i);
        return;
    }
    a->expected[t->nodes[i].row] = agree(a, t->nodes[i].row, t->nodes[i].reach);
    t->nodes[i].reach = a->expected[t->nodes[i].row];
}

/* Chance that each candidate of a row is the token that will be drawn.  Without noise it is its
 * share.  With noise the drafter's best would always be, were q the target's p; it is not, so a
 * candidate must also beat what q is wrong about: a constant.  A score that is more noise than
 * share is trusted less.  Fitted on SmolLM2-135M and a drafter of 160 k tokens at T = 1 (2.9 k
 * positions; means within 0.03 in every bucket of chance); the controller calibrates what is left.
 */
static void chances_of(const learned_row *row, int is_greedy, double *chances)
{
    const double on_score = 0.86, on_share = 0.17, others = 0.84;
    double sum = others;

    for (int i = 0; i < row->n; i++) {
        chances[i] = is_greedy ? pl_exp_d(row->logs[i])
                               : pl_exp_d(on_score * row->scores[i] + on_share * row->logs[i]);
        sum += chances[i];
    }
    for (int i = 0; i < row->n && !is_greedy; i++)
        chances[i] /= sum;
}

static void add_children(const pl_learned *l, learned_tree *t, const learned_row *row)
{
    const double reach = (double)t->nodes[row->node].reach;
    double chances[LEARNED_TOPK];

    chances_of(row, !(t->ask->draw->temperature > 0), chances);
    for (int i = 0; i < row->n && i < l->o.topk; i++)
        if (reach * chances[i] >= (double)l->least_row)
            add_node(t, row->node, row->ids[i], chances[i] < 1 ? chances[i] : 1);
}

/* ---- levels ---- */

static void flush_nodes(pl_learned *l)
{
    if (l->n_rows > 0)
        learned_run_nodes(l);
    for (int r = 0; r < l->n_rows; r++)
        add_children(l, l->rows[r].tree, &l->rows[r]);
    l->n_rows = 0;
}

/* The most valuable of nodes begin .. end - 1 that are still worth a row; returns how many. */
static int choose_level(const pl_learned *l, learned_tree *t, int begin, int end, int *nodes)
{
    const int is_full = t->n_best == t->room;
    const float last = is_full ? t->nodes[t->best[t->n_best - 1]].reach / BEST_CHILD : 0;
    const float least_reach = last > l->least_run ? last : l->least_run;
    int n = 0;

    while (n < LEARNED_LEVEL_ROWS) {
        int best = -1;
        for (int i = begin; i < end; i++) {
            const learned_node *x = &t->nodes[i];
            if (x->is_alive && x->run < 0 && (best < 0 || x->reach > t->nodes[best].reach))
                best = i;
        }
        if (best < 0 || t->nodes[best].reach < least_reach)
            break;
        t->nodes[best].run = (int16_t)t->n_runs++;
        nodes[n++] = best;
    }
    return n;
}

/* Run the level of depth `depth` of every tree; returns rows run. */
static int run_level(pl_learned *l, int n_trees, int depth)
{
    int nodes[LEARNED_LEVEL_ROWS], n_run = 0;

    l->n_rows = 0;
    for (int i = 0; i < n_trees; i++) {
        learned_tree *t = &l->trees[i];
        const int begin = t->level, end = t->n_nodes;
        t->level = end;
        if (depth >= t->max_depth)
            continue;
        /* All are chosen before one is run: who else is drafted for must not matter. */
        const int n = choose_level(l, t, begin, end, nodes);
        for (int k = 0; k < n; k++) {
            l->rows[l->n_rows++] = (learned_row){.tree = t,
                .node = nodes[k],
                .run = t->nodes[nodes[k]].run,
                .token = t->nodes[nodes[k]].token,
                .position = t->place->position - 1 + depth};
            if (l->n_rows == LEARNED_ROWS)
                flush_nodes(l);
        }
        n_run += n;
    }
    flush_nodes(l);
    return n_run;
}

/* Nodes to rows of the draft, the best first: parents before their children. */
static int harvest(learned_tree *t)
{
    const pl_learned_ask *a = t->ask;
    const int before = a->draft->n;

    for (int i = 0; i < t->n_best; i++) {
        learned_node *n = &t->nodes[t->best[i]];
        n->row = (int16_t)pl_draft_add(
            a->draft, t->nodes[n->parent].row, n->token, PL_SOURCE_LEARNED, PL_DRAFT_MAX);
        a->expected[n->row] = n->reach;
    }
    return a->draft->n - before;
}

static int propose_some(pl_learned *l, const pl_learned_ask *asks, int n)
{
    const double t0 = seconds();
    int n_trees = 0, n_added = 0, n_run = 1;

    /* 1. The positions that came since. */
    for (int i = 0; i < n; i++)
        n_trees += plant(l, &l->trees[n_trees], &asks[i]);
    extend(l, n_trees);
    const double t1 = seconds();

    /* 2. Levels, until nothing is worth another one. */
    for (int depth = 0; n_run > 0 && depth < l->o.max_depth; depth++) {
        n_run = run_level(l, n_trees, depth);
        l->stats.n_level_rows += depth > 0 ? n_run : 0;
    }

    /* 3. What is worth a row. */
    for (int i = 0; i < n_trees; i++)
        n_added += harvest(&l->trees[i]);
    l->stats.extend_s += t1 - t0;
    l->stats.grow_s += seconds() - t1;
    return n_added;
}

int pl_learned_propose(pl_learned *l, const pl_learned_ask *asks, int n)
{
    int n_added = 0;

    for (int i = 0; i < n; i++)
        asks[i].expected[0] = 1;
    if (!l->e)
        return 0;
    for (int i = 0; i < n; i += l->o.max_places)
        n_added += propose_some(l, asks + i, least(n - i, l->o.max_places));
    return n_added;
}
