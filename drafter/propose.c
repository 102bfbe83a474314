/* drafter/propose.c - a tree of likely continuations, grown best-first.
 *
 * Estimate of p in a context: the shares of what followed its longest known suffix, mixed with
 * those of shorter suffixes (Witten and Bell 1991: a context seen N times with D different
 * followers is believed with N / (N + D); the rest goes to the next shorter one).  What is left
 * over belongs to tokens never seen here.
 *
 * Rank: log share + the target's own noise of (key, uid, position, token), DRAFTING 2.5: where the
 * estimate is right, the best candidate IS the token that the target will draw.  Only the high word
 * of the noise is used: a last-bit difference may cost an acceptance, never a token of text.
 *
 * Chance that candidate c is drawn, for growth: the unseen tokens' best score is a Gumbel variable
 * at log(escape), so the best known candidate beats it with exp(-escape * exp(-score)); among the
 * known ones chances go like exp(score).  Rough; the controller calibrates it. */
#include "drafter/internal.h"

#include "core/rng.h"

#include <assert.h>

enum {
    MAX_CANDIDATES = 64, /* different tokens of one context */
    MAX_ROOT = 12,       /* of those, proposed without any context */
    MAX_LEVEL = 16,      /* levels of a tree that are told apart without context */
    MAX_LEVELS = 6,      /* contexts mixed */
    MAX_EDGES = 512,     /* followers of one context that are looked at, newest first */
    MAX_CHILDREN = 6,    /* of one row */
    MAX_HEAP = PL_DRAFT_MAX * MAX_CHILDREN,
};
static const double MIN_REACH = 0.004;

typedef struct candidate {
    int32_t token;
    int32_t to;     /* state after it */
    int32_t to_len; /* length of the match there */
    double share, score;
} candidate;

/* A row that may be added: its parent is in the draft. */
typedef struct leaf {
    float reach;
    int32_t parent, token, state, len;
} leaf;

/* The best tokens at one level whatever stands before: the noise there is the same for all rows. */
typedef struct root_list {
    int n;                /* -1: not made yet */
    double total, unseen; /* weight of all tokens; mass of those never seen */
    candidate best[MAX_ROOT];
} root_list;

typedef struct growth {
    const pl_suffix *s;
    const pl_draw *draw;
    int n_heap;
    leaf heap[MAX_HEAP];
    root_list roots[MAX_LEVEL];
} growth;

static candidate *find_candidate(candidate *list, int *n, int32_t token)
{
    for (int i = 0; i < *n; i++)
        if (list[i].token == token)
            return &list[i];
    if (*n == MAX_CANDIDATES - MAX_ROOT)
        return NULL;
    candidate *c = &list[(*n)++];
    *c = (candidate){.token = token, .to = -1};
    return c;
}

/* Add the followers of a state, matched with len tokens, with mass * belief of their shares.
 * Returns the mass that is left for shorter contexts. */
static double add_followers(
    const automaton *a, int state, int len, double mass, candidate *list, int *n)
{
    double total = 0;
    int n_followers = 0;
    for (int e = a->head[state]; e >= 0 && n_followers < MAX_EDGES; e = a->edges[e].next) {
        total += (double)a->count[a->edges[e].to];
        n_followers++;
    }
    if (!(total > 0))
        return mass;

    const double belief = mass * total / (total + n_followers);
    int i = 0;
    for (int e = a->head[state]; e >= 0 && i < n_followers; e = a->edges[e].next, i++) {
        candidate *c = find_candidate(list, n, a->edges[e].token);
        if (!c)
            continue;
        c->share += belief * (double)a->count[a->edges[e].to] / total;
        if (c->to < 0) {
            c->to = a->edges[e].to;
            c->to_len = len + 1;
        }
    }
    return mass - belief;
}

/* Candidates after a match of len tokens that stands in state; returns the unseen mass. */
static double gather(const pl_suffix *s, int state, int len, candidate *list, int *n)
{
    const automaton *a = &s->a;
    double mass = 1;
    int n_levels = 0;
    *n = 0;
    if (len >= SUFFIX_DEPTH) /* so that followers have counts */
        len = SUFFIX_DEPTH - 1;
    state = suffix_settle(a, state, len);
    while (state > 0 && len >= s->o.min_match && n_levels < MAX_LEVELS) {
        if (a->head[state] >= 0) {
            mass = add_followers(a, state, len, mass, list, n);
            n_levels++;
        }
        state = a->link[state];
        len = state >= 0 ? a->len[state] : 0;
    }
    return mass;
}

/* Gumbel noise from the high word alone. */
static double rough_noise(const pl_draw *d, uint32_t position, int32_t token)
{
    const uint32_t hi = pl_noise_word(d->key, d->uid, position, d->purpose, (uint32_t)token);
    return -pl_log_d(-pl_log_d(((double)hi + 0.5) * 0x1p-32));
}

/* Sort the best k to the front (ties to the lower id); returns how many. */
static int select_best(candidate *list, int n, int k)
{
    k = n < k ? n : k;
    for (int i = 0; i < k; i++) {
        int best = i;
        for (int j = i + 1; j < n; j++)
            if (list[j].score > list[best].score ||
                (list[j].score == list[best].score && list[j].token < list[best].token))
                best = j;
        const candidate c = list[i];
        list[i] = list[best];
        list[best] = c;
    }
    return k;
}

/* Put c among the best, kept in descending order. */
static void keep_best(root_list *r, candidate c)
{
    int i = r->n < MAX_ROOT ? r->n++ : MAX_ROOT - 1;
    for (; i > 0 && r->best[i - 1].score < c.score; i--)
        r->best[i] = r->best[i - 1];
    r->best[i] = c;
}

/* Tokens by log share in all texts + noise.  NUMERICS 3 has the shortcut: since -log u >= 1 - u,
 * most tokens are ruled out by the noise word alone. */
static void fill_root(const growth *g, root_list *r, uint32_t position)
{
    const automaton *a = &g->s->a;
    const int is_greedy = !(g->draw->temperature > 0);
    int n_followers = 0;
    r->n = 0;
    r->total = 0;
    for (int e = a->head[0]; e >= 0 && n_followers < MAX_EDGES; e = a->edges[e].next) {
        r->total += (double)a->count[a->edges[e].to];
        n_followers++;
    }
    r->unseen = n_followers / (r->total + n_followers);
    double bar = 0; /* exp(-score) of the last of the best */
    for (int e = a->head[0], i = 0; i < n_followers; e = a->edges[e].next, i++) {
        const int to = a->edges[e].to;
        const double share = (double)a->count[to] / r->total;
        candidate c = {.token = a->edges[e].token, .to = to, .to_len = 1, .share = share};
        if (!(share > 0))
            continue;
        if (is_greedy) {
            c.score = pl_log_d(share);
        } else {
            const uint32_t hi = pl_noise_word(
                g->draw->key, g->draw->uid, position, g->draw->purpose, (uint32_t)c.token);
            if (r->n == MAX_ROOT && (double)~hi * 0x1p-32 > share * bar)
                continue;
            c.score = pl_log_d(share) - pl_log_d(-pl_log_d(((double)hi + 0.5) * 0x1p-32));
        }
        if (r->n == MAX_ROOT && c.score <= r->best[MAX_ROOT - 1].score)
            continue;
        keep_best(r, c);
        if (r->n == MAX_ROOT)
            bar = pl_exp_d(-r->best[MAX_ROOT - 1].score);
    }
}

/* Give the mass that no context claims to tokens by their share in all texts; returns what is left.
 */
static double add_root(growth *g, int depth, double mass, candidate *list, int *n)
{
    if (g->s->o.min_match > 0 || depth >= MAX_LEVEL || !(mass > 0))
        return mass;
    root_list *r = &g->roots[depth];
    if (r->n < 0)
        fill_root(g, r, g->draw->position + (uint32_t)depth);
    const automaton *a = &g->s->a;
    const double given = mass * (1 - r->unseen);
    const int n_context = *n;
    for (int i = 0; i < n_context; i++) {
        const int to = automaton_next(a, 0, list[i].token);
        if (to >= 0)
            list[i].share += given * (double)a->count[to] / r->total;
    }
    for (int i = 0; i < r->n; i++) {
        int k = 0;
        while (k < n_context && list[k].token != r->best[i].token)
            k++;
        if (k < n_context)
            continue;
        list[*n] = r->best[i];
        list[*n].share *= given;
        list[*n].score += pl_log_d(given);
        ++*n;
    }
    return mass * r->unseen;
}

static void push(growth *g, leaf l)
{
    if (g->n_heap == MAX_HEAP)
        return;
    int i = g->n_heap++;
    for (; i > 0 && g->heap[(i - 1) / 2].reach < l.reach; i = (i - 1) / 2)
        g->heap[i] = g->heap[(i - 1) / 2];
    g->heap[i] = l;
}

static leaf pop(growth *g)
{
    const leaf top = g->heap[0], last = g->heap[--g->n_heap];
    int i = 0;
    for (int child = 1; child < g->n_heap; child = 2 * i + 1) {
        if (child + 1 < g->n_heap && g->heap[child + 1].reach > g->heap[child].reach)
            child++;
        if (last.reach >= g->heap[child].reach)
            break;
        g->heap[i] = g->heap[child];
        i = child;
    }
    g->heap[i] = last;
    return top;
}

/* Offer the children of a row that is reached with the given chance. */
static void expand(growth *g, int row, int depth, int state, int len, double reach)
{
    candidate list[MAX_CANDIDATES];
    int n;
    double escape = gather(g->s, state, len, list, &n);
    const int is_greedy = !(g->draw->temperature > 0), n_context = n;
    escape = add_root(g, depth, escape, list, &n);
    for (int i = 0; i < n_context; i++) {
        list[i].score = pl_log_d(list[i].share);
        if (!is_greedy)
            list[i].score +=
                rough_noise(g->draw, g->draw->position + (uint32_t)depth, list[i].token);
    }
    const int wanted = g->s->o.max_children;
    const int k = select_best(list, n, wanted > 0 && wanted < MAX_CHILDREN ? wanted : MAX_CHILDREN);
    double sum = 0, known = 1;
    if (!is_greedy && k > 0) {
        for (int i = 0; i < k; i++)
            sum += pl_exp_d(list[i].score - list[0].score);
        const double lost = escape * pl_exp_d(-list[0].score);
        known = lost < 50 ? pl_exp_d(-lost) : 0;
    }
    for (int i = 0; i < k; i++) {
        const double chance =
            is_greedy ? list[i].share : known * pl_exp_d(list[i].score - list[0].score) / sum;
        if (reach * chance < MIN_REACH)
            break;
        push(g, (leaf){(float)(reach * chance), row, list[i].token, list[i].to, list[i].to_len});
    }
}

int pl_suffix_propose(pl_suffix_cursor *c, const pl_draw *draw, int max_rows, int max_depth,
    pl_draft *draft, float *expected)
{
    assert(draft->n >= 1);
    if (max_rows > PL_DRAFT_MAX)
        max_rows = PL_DRAFT_MAX;
    const int n_before = draft->n;
    if (expected)
        expected[0] = 1;
    if (max_rows <= n_before || max_depth < 1)
        return 0;

    growth g;
    g.s = c->s;
    g.draw = draw;
    g.n_heap = 0;
    for (int i = 0; i < MAX_LEVEL; i++)
        g.roots[i].n = -1;
    expand(&g, 0, 0, c->place.at, c->place.at_len, 1);
    while (g.n_heap > 0 && draft->n < max_rows) {
        const leaf l = pop(&g);
        const int row = pl_draft_add(draft, l.parent, l.token, PL_SOURCE_SUFFIX, max_rows);
        if (row < 0)
            break;
        if (expected)
            expected[row] = l.reach;
        if (draft->depth[row] < max_depth)
            expand(&g, row, draft->depth[row], l.state, l.len, (double)l.reach);
    }
    return draft->n - n_before;
}

int suffix_shares(
    const pl_suffix_cursor *c, int match_max, int max, int32_t *tokens, float *shares, int *match)
{
    const automaton *a = &c->s->a;
    int len = c->place.at_len < match_max ? c->place.at_len : match_max;
    if (len >= SUFFIX_DEPTH)
        len = SUFFIX_DEPTH - 1;
    int state = suffix_settle(a, c->place.at, len), n = 0;
    while (state > 0 && a->head[state] < 0) {
        state = a->link[state];
        len = a->len[state];
    }
    *match = state > 0 ? len : 0;
    double total = 0;
    for (int e = a->head[state]; e >= 0; e = a->edges[e].next)
        total += (double)a->count[a->edges[e].to];
    for (int e = a->head[state]; e >= 0 && n < max; e = a->edges[e].next, n++) {
        tokens[n] = a->edges[e].token;
        shares[n] = (float)((double)a->count[a->edges[e].to] / total);
    }
    return n;
}
