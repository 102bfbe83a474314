/* model/bpe_word.c - joining the bytes of one word into tokens.
 *
 * The rule with the lowest rank goes first, at its leftmost place, until no rule applies.  Short
 * words: a scan over the ranks for each join.  Long ones (a hostile text is one word of megabytes):
 * a linked list of symbols and a heap of (rank, place), n log n.  An entry of the heap is stale
 * when the pair at its place has another rank by now; a pair never comes back at a place, since
 * symbols only grow. */
#include "model/bpe.h"

#include <stdlib.h>
#include <string.h>

enum {
    SHORT_WORD = 48, /* symbols; above it the heap is faster */
    HEAP_WAYS = 8,   /* the children of a node are one cache line */
};

int bpe_ids_reserve(bpe_ids *ids, size_t n)
{
    if (n <= (size_t)(ids->cap - ids->n))
        return 1;
    if (n > (size_t)INT32_MAX / 4 || ids->n > INT32_MAX / 4)
        return 0;
    const int cap = 2 * (ids->n + (int)n) + 16;
    int32_t *v = realloc(ids->v, (size_t)cap * sizeof *v);
    if (!v)
        return 0;
    ids->v = v;
    ids->cap = cap;
    return 1;
}

/* Symbols of the bytes; those without a token are dropped, or unknown, as in Hugging Face. */
static int first_symbols(const pl_tokenizer *t, const char *word, size_t n, int32_t *out)
{
    int n_out = 0;
    for (size_t i = 0; i < n; i++) {
        const int32_t id = t->byte_id[(unsigned char)word[i]];
        if (id >= 0 || t->model_unk_id >= 0)
            out[n_out++] = id >= 0 ? id : t->model_unk_id;
    }
    return n_out;
}

/* Join in place; returns how many symbols are left. */
static int join_short(const pl_tokenizer *t, int32_t *v, int n)
{
    int32_t rank[SHORT_WORD], id[SHORT_WORD];
    for (int i = 0; i + 1 < n; i++)
        rank[i] = bpe_rank(t, v[i], v[i + 1], &id[i]);
    while (n > 1) {
        int best = 0;
        for (int i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best])
                best = i;
        if (rank[best] == INT32_MAX)
            break;

        const size_t n_after = (size_t)(n - best - 2);
        v[best] = id[best];
        memmove(v + best + 1, v + best + 2, n_after * sizeof *v);
        n--;
        if (n_after > 0) {
            memmove(rank + best + 1, rank + best + 2, (n_after - 1) * sizeof *rank);
            memmove(id + best + 1, id + best + 2, (n_after - 1) * sizeof *id);
            rank[best] = bpe_rank(t, v[best], v[best + 1], &id[best]);
        }
        if (best > 0)
            rank[best - 1] = bpe_rank(t, v[best - 1], v[best], &id[best - 1]);
    }
    return n;
}

/* A symbol of a long word; the list is linked by places. */
typedef struct symbol {
    int32_t id;
    int32_t rank; /* of the pair with the next symbol; INT32_MAX: no rule, or joined away */
    int32_t prev, next;
} symbol;

/* Min-heap of rank << 32 | place. */
typedef struct heap {
    uint64_t *v;
    size_t n;
} heap;

static void heap_push(heap *h, uint64_t key)
{
    size_t i = h->n++;
    while (i > 0 && h->v[(i - 1) / HEAP_WAYS] > key) {
        h->v[i] = h->v[(i - 1) / HEAP_WAYS];
        i = (i - 1) / HEAP_WAYS;
    }
    h->v[i] = key;
}

static uint64_t heap_pop(heap *h)
{
    const uint64_t top = h->v[0], key = h->v[--h->n];
    size_t i = 0;
    for (;;) {
        const size_t first = i * HEAP_WAYS + 1;
        const size_t end = first + HEAP_WAYS < h->n ? first + HEAP_WAYS : h->n;
        size_t least = first;
        if (first >= h->n)
            break;
        for (size_t c = first + 1; c < end; c++)
            if (h->v[c] < h->v[least])
                least = c;
        if (h->v[least] >= key)
            break;
        h->v[i] = h->v[least];
        i = least;
    }
    h->v[i] = key;
    return top;
}

/* Rank of the pair at place i, pushed when a rule joins it. */
static void rank_pair(const pl_tokenizer *t, symbol *s, heap *h, int32_t i)
{
    int32_t id;
    s[i].rank = s[i].next < 0 ? INT32_MAX : bpe_rank(t, s[i].id, s[s[i].next].id, &id);
    if (s[i].rank != INT32_MAX)
        heap_push(h, (uint64_t)(uint32_t)s[i].rank << 32 | (uint32_t)i);
}

static void join_heap(const pl_tokenizer *t, symbol *s, heap *h)
{
    while (h->n > 0) {
        const uint64_t key = heap_pop(h);
        const int32_t i = (int32_t)(key & UINT32_MAX), rank = (int32_t)(key >> 32);
        const int32_t gone = s[i].next;
        if (s[i].rank != rank)
            continue;

        bpe_rank(t, s[i].id, s[gone].id, &s[i].id);
        s[i].next = s[gone].next;
        s[gone].rank = INT32_MAX;
        if (s[i].next >= 0)
            s[s[i].next].prev = i;
        rank_pair(t, s, h, i);
        if (s[i].prev >= 0)
            rank_pair(t, s, h, s[i].prev);
    }
}

/* Join in place as join_short does; -1 when there is no memory. */
static int join_long(const pl_tokenizer *t, int32_t *v, int n)
{
    symbol *s = malloc((size_t)n * sizeof *s);
    /* n - 1 pairs at first; a join takes one entry out and puts in at most two, n - 1 times. */
    heap h = {malloc(2 * (size_t)n * sizeof *h.v), 0};
    int n_out = -1;
    if (!s || !h.v)
        goto done;

    for (int i = 0; i < n; i++)
        s[i] = (symbol){v[i], INT32_MAX, i - 1, i + 1 < n ? i + 1 : -1};
    for (int i = 0; i < n; i++)
        rank_pair(t, s, &h, i);
    join_heap(t, s, &h);
    n_out = 0;
    for (int32_t i = 0; i >= 0; i = s[i].next)
        v[n_out++] = s[i].id;
done:
    free(s);
    free(h.v);
    return n_out;
}

int bpe_encode_word(const pl_tokenizer *t, const char *word, size_t n, bpe_ids *out)
{
    if (!bpe_ids_reserve(out, n))
        return 0;
    if (t->ignore_merges) {
        const int32_t id = bpe_find(t, word, n);
        if (id >= 0) {
            out->v[out->n++] = id;
            return 1;
        }
    }
    int32_t *v = out->v + out->n;
    int n_symbols = first_symbols(t, word, n, v);
    if (n_symbols > 1)
        n_symbols =
            n_symbols <= SHORT_WORD ? join_short(t, v, n_symbols) : join_long(t, v, n_symbols);
    if (n_symbols < 0)
        return 0;
    out->n += n_symbols;
    return 1;
}
