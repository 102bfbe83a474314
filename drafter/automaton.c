/* drafter/automaton.c - generalised suffix automaton, built online over several growing texts.
 *
 * Blumer et al. 1985, in the form for many texts: each text keeps its own `last`, and extending
 * over a transition that is there already reuses its state (or splits it).  The whole of a text so
 * far is always the longest string of its state, because nothing stands left of it; so a sibling's
 * split, which gives the shorter strings to the clone, never moves `last`.
 *
 * Chosen over a depth-capped trie (24 nodes a token): 2 states and 3 edges a token at most, and the
 * share of a continuation is exact at every length at once.  Counts live in states; a clone starts
 * with the count of what it was split from, and the caller adds the weight of each new end place to
 * the states on its suffix path (suffix.c). */
#include "drafter/internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static uint32_t slot_of(const automaton *a, int state, int32_t token)
{
    uint64_t x = ((uint64_t)(uint32_t)state << 32 | (uint32_t)token) ^ a->seed;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)(x ^ x >> 31) & (a->n_slots - 1);
}

void automaton_reset(automaton *a)
{
    a->n_edges = 0;
    a->n_states = 0;
    if (a->slots)
        memset(a->slots, 0, a->n_slots * sizeof *a->slots);
    if (a->cap_states > 0) {
        a->n_states = 1;
        a->len[0] = 0;
        a->link[0] = -1;
        a->head[0] = -1;
        a->count[0] = 0;
    }
}

void automaton_init(automaton *a, uint64_t seed)
{
    memset(a, 0, sizeof *a);
    a->seed = seed;
}

void automaton_done(automaton *a)
{
    free(a->len);
    free(a->link);
    free(a->head);
    free(a->count);
    free(a->edges);
    free(a->slots);
    memset(a, 0, sizeof *a);
}

/* Index of the slot that holds the edge, or of the empty one where it belongs. */
static uint32_t find_slot(const automaton *a, int state, int32_t token)
{
    uint32_t i = slot_of(a, state, token);
    while (a->slots[i]) {
        const automaton_edge *e = &a->edges[a->slots[i] - 1];
        if (e->from == state && e->token == token)
            return i;
        i = (i + 1) & (a->n_slots - 1);
    }
    return i;
}

static int grow_states(automaton *a, int cap)
{
    int32_t **columns[3] = {&a->len, &a->link, &a->head};
    for (int i = 0; i < 3; i++) {
        int32_t *p = realloc(*columns[i], (size_t)cap * sizeof *p);
        if (!p)
            return 0;
        *columns[i] = p;
    }
    float *count = realloc(a->count, (size_t)cap * sizeof *count);
    if (!count)
        return 0;
    a->count = count;
    const int is_first = a->cap_states == 0;
    a->cap_states = cap;
    if (is_first)
        automaton_reset(a);
    return 1;
}

static int grow_edges(automaton *a, int cap)
{
    automaton_edge *edges = realloc(a->edges, (size_t)cap * sizeof *edges);
    if (!edges)
        return 0;
    a->edges = edges;
    uint32_t n_slots = 64;
    while (n_slots < 2u * (uint32_t)cap)
        n_slots *= 2;
    int32_t *slots = calloc(n_slots, sizeof *slots);
    if (!slots)
        return 0;
    free(a->slots);
    a->slots = slots;
    a->n_slots = n_slots;
    a->cap_edges = cap;
    for (int i = 0; i < a->n_edges; i++)
        a->slots[find_slot(a, a->edges[i].from, a->edges[i].token)] = i + 1;
    return 1;
}

int automaton_reserve(automaton *a, size_t n_tokens)
{
    if (n_tokens > (size_t)1 << 27)
        return 0;
    /* Bounds of Blumer et al.: 2n states, 3n edges; a clone may stand before its edges are shared.
     */
    const int states = 2 * (int)n_tokens + 2, edges = 3 * (int)n_tokens + 4;
    if (states > a->cap_states && !grow_states(a, states + states / 2))
        return 0;
    return edges <= a->cap_edges || grow_edges(a, edges + edges / 2);
}

int automaton_next(const automaton *a, int state, int32_t token)
{
    if (a->n_edges == 0)
        return -1;
    const int32_t e = a->slots[find_slot(a, state, token)];
    return e ? a->edges[e - 1].to : -1;
}

static int add_state(automaton *a, int32_t len, int32_t link, float count)
{
    assert(a->n_states < a->cap_states);
    const int s = a->n_states++;
    a->len[s] = len;
    a->link[s] = link;
    a->head[s] = -1;
    a->count[s] = count;
    return s;
}

static void add_edge(automaton *a, uint32_t slot, int from, int32_t token, int to)
{
    assert(a->n_edges < a->cap_edges);
    a->edges[a->n_edges] = (automaton_edge){from, token, to, a->head[from]};
    a->head[from] = a->n_edges;
    a->slots[slot] = ++a->n_edges;
}

/* Give the strings of q that are no longer than len[p] + 1 a state of their own: they now end in a
 * place where the longer ones do not. */
static int split(automaton *a, int p, int32_t token, int q)
{
    const int clone = add_state(a, a->len[p] + 1, a->link[q], a->count[q]);
    for (int e = a->head[q]; e >= 0; e = a->edges[e].next) {
        const automaton_edge was = a->edges[e];
        add_edge(a, find_slot(a, clone, was.token), clone, was.token, was.to);
    }
    a->link[q] = clone;
    for (; p >= 0; p = a->link[p]) {
        const int32_t e = a->slots[find_slot(a, p, token)];
        if (!e || a->edges[e - 1].to != q)
            break;
        a->edges[e - 1].to = clone;
    }
    return clone;
}

int automaton_extend(automaton *a, int last, int32_t token)
{
    const int q = automaton_next(a, last, token);
    if (q >= 0)
        return a->len[q] == a->len[last] + 1 ? q : split(a, last, token, q);

    const int cur = add_state(a, a->len[last] + 1, 0, 0);
    for (int p = last; p >= 0; p = a->link[p]) {
        const uint32_t slot = find_slot(a, p, token);
        const int32_t e = a->slots[slot];
        if (!e) {
            add_edge(a, slot, p, token, cur);
            continue;
        }
        const int to = a->edges[e - 1].to;
        a->link[cur] = a->len[to] == a->len[p] + 1 ? to : split(a, p, token, to);
        break;
    }
    return cur;
}
