/* model/attention.c - attention of one layer over paged keys, for chains and for trees.
 *
 * The order is that of NUMERICS 2: blocks of 64 logical positions counted from the sample's
 * position 0, each block on its own (maximum, rounded weights, sum, product), combined in ascending
 * order.
 *
 * Chains have their keys in the pages, so each block is two small products over the page.  The rows
 * of a tree have their own keys in scratch: siblings share a position, so they cannot stand in a
 * page.  Whole committed blocks go as for a chain; in the tail block the scores of all rows against
 * all keys come from two products (a score does not depend on where its key stands), then each row
 * puts those of its own root path in logical order, and its weights meet the V rows of that path
 * through pointers (op attn_pv_rows), which gives the lanes of sequential decoding. */
#include "model/internal.h"

#include <assert.h>
#include <string.h>

/* One unit of work: some query rows of a segment and one KV head. */
typedef struct item {
    pl_pass *p;
    const layer_acts *a;
    const pass_seg *seg;
    thread_scratch *s;
    int layer, head;
    int row_begin, n_rows; /* of the pass */
    int n;                 /* attention rows: n_rows * group; row i / group, head i % group */
} item;

static int row_of(const item *it, int i)
{
    return it->row_begin + i / it->p->dims.group;
}

static int position_of(const item *it, int i)
{
    return it->p->rows[row_of(it, i)].position;
}

static int query_head(const item *it, int i)
{
    return it->head * it->p->dims.group + i % it->p->dims.group;
}

static float *state_o(const item *it, int i)
{
    return it->s->state + (size_t)i * (size_t)it->p->dims.dp;
}

static float *state_m(const item *it, int i)
{
    return it->s->state + (size_t)it->n * (size_t)it->p->dims.dp + (size_t)i;
}

static float *state_l(const item *it, int i)
{
    return state_m(it, i) + it->n;
}

static void gather_queries(const item *it)
{
    const model_dims *d = &it->p->dims;
    for (int i = 0; i < it->n; i++)
        memcpy(it->s->q + (size_t)i * (size_t)d->dp,
            it->a->q +
                ((size_t)row_of(it, i) * (size_t)d->h + (size_t)query_head(it, i)) * (size_t)d->dp,
            (size_t)d->dp * sizeof *it->s->q);
}

/* Scores of attention rows first .. n-1 against n_keys packed keys. */
static void score(
    const item *it, int first, const uint16_t *keys, int n_keys, float *out, size_t ld)
{
    const model_dims *d = &it->p->dims;
    const pl_gemm g = {.x = it->s->q + (size_t)first * (size_t)d->dp,
        .ldx = (size_t)d->dp,
        .w = keys,
        .y = out + (size_t)first * ld,
        .ldy = ld,
        .m = it->n - first,
        .n = n_keys,
        .k = d->dp,
        .panel_end = pl_pad32(n_keys) / 32,
        .scratch = it->s->gemm};
    it->p->m->ops->gemm(&g);
}

static float attention_scale(const item *it)
{
    return 1.0f / __builtin_sqrtf((float)it->p->dims.d);
}

/* Ask for the keys and values of a block while the one before it is computed: pages lie far apart,
 * so the hardware does not guess them. */
static void prefetch_block(const item *it, int block)
{
    const char *k = (const char *)kv_k(
        it->p->pool, it->seg->s.kv->pages[block], it->layer * it->p->kv_layer_stride, it->head);
    for (size_t i = 0; i < it->p->pool->head_elements * sizeof(uint16_t); i += 64)
        __builtin_prefetch(k + i, 0, 2);
}

/* One block of pages for attention rows first .. n-1; row i sees keys up to its position (limit <
 * 0) or the whole block (limit = 64). */
static void page_block(const item *it, int first, int block, int limit)
{
    const model_dims *d = &it->p->dims;
    const pl_ops *ops = it->p->m->ops;
    thread_scratch *s = it->s;
    const int page = it->seg->s.kv->pages[block], layer = it->layer * it->p->kv_layer_stride;
    const float scale = attention_scale(it);

    score(it, first, kv_k(it->p->pool, page, layer, it->head), PL_BLOCK, s->scores, PL_BLOCK);
    for (int i = first; i < it->n; i++) {
        const int seen = position_of(it, i) + 1 - block * PL_BLOCK;
        const int valid = limit > 0 || seen > PL_BLOCK ? PL_BLOCK : seen;
        ops->attn_softmax(s->probs + (size_t)i * PL_BLOCK, &s->block_m[i], &s->block_l[i],
            s->scores + (size_t)i * PL_BLOCK, valid, scale);
    }
    const pl_gemm g = {.x = s->probs + (size_t)first * PL_BLOCK,
        .ldx = PL_BLOCK,
        .w = kv_v(it->p->pool, page, layer, it->head),
        .y = s->o_block + (size_t)first * (size_t)d->dp,
        .ldy = (size_t)d->dp,
        .m = it->n - first,
        .n = d->d,
        .k = PL_BLOCK,
        .panel_end = d->dp / 32,
        .scratch = s->gemm};
    ops->gemm(&g);
    for (int i = first; i < it->n; i++)
        ops->attn_combine(state_o(it, i), state_m(it, i), state_l(it, i),
            s->o_block + (size_t)i * (size_t)d->dp, s->block_m[i], s->block_l[i], d->d, block == 0);
}

static void finish(const item *it)
{
    const model_dims *d = &it->p->dims;
    for (int i = 0; i < it->n; i++) {
        const size_t r = (size_t)row_of(it, i), h = (size_t)query_head(it, i);
        it->p->m->ops->attn_finish(it->a->ao + r * (size_t)d->aop + h * (size_t)d->d,
            state_o(it, i), *state_l(it, i), d->d);
        if (it->a->att_m) {
            it->a->att_m[r * (size_t)d->h + h] = *state_m(it, i);
            it->a->att_l[r * (size_t)d->h + h] = *state_l(it, i);
        }
    }
}

static void attend_chain(const item *it)
{
    const int last = position_of(it, it->n - 1) / PL_BLOCK;

    for (int b = 0; b <= last; b++) {
        int first = 0;
        if (b < last)
            prefetch_block(it, b + 1);
        while (position_of(it, first) < b * PL_BLOCK)
            first++;
        page_block(it, first, b, -1);
    }
}

/* ---- trees ---- */

/* V rows of the committed positions of the tail block, row-major [n][dp]. */
static void gather_tail_v(const item *it, int block, int n)
{
    const model_dims *d = &it->p->dims;
    const uint16_t *v = kv_v(
        it->p->pool, it->seg->s.kv->pages[block], it->layer * it->p->kv_layer_stride, it->head);

    for (int t = 0; t < d->dp; t += 16)
        for (int key = 0; key < n; key++) {
            const uint16_t *from = v + pl_packed_index(t, key, PL_BLOCK);
            uint16_t *to = it->s->tail_v + (size_t)key * (size_t)d->dp + (size_t)t;
            for (int i = 0; i < 16; i++)
                to[i] = from[2 * i];
        }
}

/* Nodes that the rows of an item can have on their paths: all up to its own last one. */
static int n_nodes(const item *it)
{
    return it->row_begin + it->n_rows - it->seg->row_begin;
}

/* K of those nodes as packed keys. */
static void pack_tree_keys(const item *it)
{
    const model_dims *d = &it->p->dims;
    const int n = n_nodes(it);

    memset(it->s->tree_k, 0, pl_packed_elements(n, d->d) * sizeof *it->s->tree_k);
    for (int r = 0; r < n; r++) {
        const uint16_t *k =
            it->a->k +
            ((size_t)(it->seg->row_begin + r) * (size_t)d->hkv + (size_t)it->head) * (size_t)d->dp;
        uint16_t *to = it->s->tree_k + pl_packed_index(r, 0, d->dp);
        for (int c = 0; c < d->d; c++)
            to[(size_t)(c / 32) * 1024 + (size_t)(c % 32 / 2) * 32 + (size_t)(c % 2)] = k[c];
    }
}

/* Attention row i over positions from .. its own, all in one block: committed ones below base, then
 * the nodes of its path. */
static void tail_block(const item *it, int i, int block, const int *path)
{
    const model_dims *d = &it->p->dims;
    const pl_ops *ops = it->p->m->ops;
    thread_scratch *s = it->s;
    const int base = it->seg->base, from = block * PL_BLOCK, to = position_of(it, i) + 1;
    const int valid = to - from < PL_BLOCK ? to - from : PL_BLOCK;
    const uint16_t *v[PL_BLOCK];
    float scores[PL_BLOCK];
    uint16_t probs[PL_BLOCK];
    float m, l;

    for (int j = 0; j < valid; j++) {
        const int position = from + j;
        if (position < base) {
            scores[j] = s->scores[(size_t)i * PL_BLOCK + (size_t)j];
            v[j] = s->tail_v + (size_t)j * (size_t)d->dp;
            continue;
        }
        const int node = path[position - base];
        scores[j] = s->keys[(size_t)i * PL_DRAFT_MAX + (size_t)node];
        v[j] =
            it->a->v + ((size_t)(it->seg->row_begin + node) * (size_t)d->hkv + (size_t)it->head) *
                           (size_t)d->dp;
    }
    ops->attn_softmax(probs, &m, &l, scores, valid, attention_scale(it));
    ops->attn_pv_rows(s->o_block, probs, v, valid, d->d);
    ops->attn_combine(
        state_o(it, i), state_m(it, i), state_l(it, i), s->o_block, m, l, d->d, block == 0);
}

static void attend_tree(const item *it)
{
    const int base = it->seg->base, whole = base / PL_BLOCK, n_tail = base % PL_BLOCK;
    int path[PL_DRAFT_MAX];

    for (int b = 0; b < whole; b++) {
        if (b + 1 < whole)
            prefetch_block(it, b + 1);
        page_block(it, 0, b, PL_BLOCK);
    }
    if (n_tail > 0) {
        const int page = it->seg->s.kv->pages[whole];
        score(it, 0, kv_k(it->p->pool, page, it->layer * it->p->kv_layer_stride, it->head),
            PL_BLOCK, it->s->scores, PL_BLOCK);
        gather_tail_v(it, whole, n_tail);
    }
    pack_tree_keys(it);
    score(it, 0, it->s->tree_k, n_nodes(it), it->s->keys, PL_DRAFT_MAX);
    for (int i = 0; i < it->n; i++) {
        const int position = position_of(it, i);
        for (int node = row_of(it, i) - it->seg->row_begin; node >= 0;
             node = it->seg->s.parent[node])
            path[it->p->rows[it->seg->row_begin + node].position - base] = node;
        for (int b = whole; b <= position / PL_BLOCK; b++)
            tail_block(it, i, b, path);
    }
}

static int common_divisor(int a, int b)
{
    return b == 0 ? a : common_divisor(b, a % b);
}

/* Query rows of one item.  A whole tree reads its keys and gathers its tail once; where a few trees
 * would leave threads idle, each is cut into the fewest pieces that go round evenly. */
static int item_rows(const pl_pass *p, const pass_seg *seg, int n_threads)
{
    const int whole = p->n_segs * p->dims.hkv;

    if (!seg->s.parent)
        return ATTN_ROWS;
    if (whole >= 4 * n_threads)
        return seg->s.n_rows;
    const int n_pieces = n_threads / common_divisor(whole, n_threads);
    return (seg->s.n_rows + n_pieces - 1) / n_pieces;
}

void pass_attention(pl_pass *p, int layer, const layer_acts *a, int i_thread, int n_threads)
{
    const model_dims *d = &p->dims;
    int count = 0;

    /* Items go round the threads; which thread runs one changes no bit. */
    for (int g = 0; g < p->n_segs; g++) {
        const pass_seg *seg = &p->segs[g];
        const int step = item_rows(p, seg, n_threads);
        for (int r = 0; r < seg->s.n_rows; r += step)
            for (int h = 0; h < d->hkv; h++) {
                if (count++ % n_threads != i_thread)
                    continue;
                const int n_rows = seg->s.n_rows - r < step ? seg->s.n_rows - r : step;
                const item it = {.p = p,
                    .a = a,
                    .seg = seg,
                    .s = &p->scratch[i_thread],
                    .layer = layer,
                    .head = h,
                    .row_begin = seg->row_begin + r,
                    .n_rows = n_rows,
                    .n = n_rows * d->group};
                gather_queries(&it);
                if (seg->s.parent)
                    attend_tree(&it);
                else
                    attend_chain(&it);
                finish(&it);
            }
    }
    pl_team_barrier(p->m->team);
}
