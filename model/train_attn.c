/* model/train_attn.c - the backward through attention, as products of bf16 blocks.
 *
 * A work item is one sequence and one KV head.  Scores are computed anew, keys by queries, 64 keys
 * at a time against all queries that see them; with the row maximum M and sum L that the forward
 * kept, p = exp(s * scale - M) / L, D = sum(dO * O):
 *
 *   dV_j = sum_i p_ij dO_i     dS_ij = p_ij (dO_i . V_j - D_i) scale
 *   dK_j = sum_i dS_ij Q_i     dQ_i  = sum_j dS_ij K_j
 *
 * dK and dV add the heads of a group in ascending order, and queries in ascending order in each; dQ
 * adds keys in ascending order (Dao et al. 2022, FlashAttention, Algorithm 4, with whole rows). */
#include "model/train_internal.h"

#include <string.h>

typedef struct item {
    const pl_train *t;
    const layer_acts *a;
    const back_scratch *s;
    void *gemm;
    int row, n; /* of the pass: query i is row + i */
    int tq;     /* n rounded up to 32 */
    int head;   /* KV head */
    float scale;
} item;

static const uint16_t *key_row(const item *it, const uint16_t *x, int i)
{
    const model_dims *d = &it->t->dims;
    return x + ((size_t)(it->row + i) * (size_t)d->hkv + (size_t)it->head) * (size_t)d->dp;
}

static int block_rows(const item *it, int j0)
{
    return it->n - j0 < PL_BLOCK ? it->n - j0 : PL_BLOCK;
}

/* Both packings of a head's queries and of the gradient of its output; M, 1 / L and D by query. */
static void load_head(const item *it, int h)
{
    const model_dims *d = &it->t->dims;
    const pl_ops *ops = it->t->m->ops;
    const back_scratch *s = it->s;
    const size_t ldq = (size_t)(d->h * d->dp), dp = (size_t)d->dp, aop = (size_t)d->aop;
    const uint16_t *q = it->a->q + (size_t)it->row * ldq + (size_t)h * dp;
    const uint16_t *o = it->a->ao + (size_t)it->row * aop + (size_t)(h * d->d);
    const float *d_o = it->t->dy + (size_t)it->row * aop + (size_t)(h * d->d);

    for (int i = 0; i < it->n; i++) {
        const size_t at = (size_t)(it->row + i) * (size_t)d->h + (size_t)h;
        s->m[i] = it->a->att_m[at];
        s->inv_l[i] = 1.0f / it->a->att_l[at];
        ops->widen_bf16(s->wide, o + (size_t)i * aop, d->d);
        s->d[i] = ops->sdot(s->wide, d_o + (size_t)i * aop, d->d);
    }
    for (int i = 0; i < it->n; i++)
        ops->widen_bf16(s->wide + (size_t)i * dp, q + (size_t)i * ldq, d->d);
    ops->pack_nk(s->q_nk, s->wide, dp, it->n, d->d, 0, it->tq / 32);
    ops->pack_kn_bf16(s->q_kn, q, ldq, d->d, it->n, 0, d->dp / 32);
    ops->pack_nk(s->do_nk, d_o, aop, it->n, d->d, 0, it->tq / 32);
    ops->pack_kn(s->do_kn, d_o, aop, d->d, it->n, 0, d->dp / 32);
    memset(s->dq, 0, (size_t)it->n * dp * sizeof *s->dq);
}

/* out[64, tq] = rows x (keys or values, from j0) against the queries that see them. */
static void by_queries(const item *it, const uint16_t *x, int j0, const uint16_t *w, float *out)
{
    const model_dims *d = &it->t->dims;
    const pl_gemm g = {.x = key_row(it, x, j0),
        .ldx = (size_t)(d->hkv * d->dp),
        .w = w,
        .y = out,
        .ldy = (size_t)it->tq,
        .m = block_rows(it, j0),
        .n = it->n,
        .k = d->dp,
        .panel_begin = j0 / 32,
        .panel_end = it->tq / 32,
        .scratch = it->gemm};
    it->t->m->ops->gemm(&g);
}

/* dst rows from j0 += x [64, tq] (p or ds) times w, packed by (D, queries), queries from j0 on. */
static void add_keys(const item *it, float *dst, const uint16_t *x, const uint16_t *w, int j0)
{
    const model_dims *d = &it->t->dims;
    pl_gemm g = {.x = x + j0,
        .ldx = (size_t)it->tq,
        .ldy = (size_t)d->dp,
        .m = block_rows(it, j0),
        .k = it->tq - j0,
        .accumulate = 1,
        .panel_end = 1,
        .scratch = it->gemm};

    for (int c = 0; c < d->d; c += 32) {
        g.w = w + (size_t)c * (size_t)it->tq + (size_t)j0 * 32;
        g.y = dst + (size_t)j0 * (size_t)d->dp + (size_t)c;
        g.n = d->d - c < 32 ? d->d - c : 32;
        it->t->m->ops->gemm(&g);
    }
}

/* p and ds of 64 keys; zero where a query does not see a key, and past the last query. */
static void soften(const item *it, int j0)
{
    const back_scratch *s = it->s;
    const int rows = block_rows(it, j0);

    for (int j = 0; j < rows; j++) {
        const size_t at = (size_t)j * (size_t)it->tq;
        const int first = j0 + j;
        memset(s->p + at + j0, 0, (size_t)j * sizeof *s->p);
        memset(s->ds + at + j0, 0, (size_t)j * sizeof *s->ds);
        it->t->m->ops->attn_back(s->p + at + first, s->ds + at + first, s->s + at + first,
            s->dp + at + first, s->m + first, s->inv_l + first, s->d + first, it->scale,
            it->n - first);
        memset(s->p + at + it->n, 0, (size_t)(it->tq - it->n) * sizeof *s->p);
        memset(s->ds + at + it->n, 0, (size_t)(it->tq - it->n) * sizeof *s->ds);
    }
}

/* 64 keys of one query head. */
static void block_back(const item *it, int j0)
{
    const model_dims *d = &it->t->dims;
    const pl_ops *ops = it->t->m->ops;
    const back_scratch *s = it->s;
    const int rows = block_rows(it, j0);

    by_queries(it, it->a->k, j0, s->q_nk, s->s);
    by_queries(it, it->a->v, j0, s->do_nk, s->dp);
    soften(it, j0);
    add_keys(it, s->dv, s->p, s->do_kn, j0);
    add_keys(it, s->dk, s->ds, s->q_kn, j0);
    ops->transpose_bf16(s->ds_t, PL_BLOCK, s->ds + j0, (size_t)it->tq, rows, 0, it->n - j0);
    const pl_gemm g = {.x = s->ds_t,
        .ldx = PL_BLOCK,
        .w = s->k_kn + (size_t)j0 * (size_t)d->dp,
        .y = s->dq + (size_t)j0 * (size_t)d->dp,
        .ldy = (size_t)d->dp,
        .m = it->n - j0,
        .n = d->d,
        .k = pl_pad32(rows),
        .accumulate = 1,
        .panel_end = d->dp / 32,
        .scratch = it->gemm};
    ops->gemm(&g);
}

/* Undo the rotation of the gradients of head h of [q; k]. */
static void rotate_back(const item *it, int h, const float *grad)
{
    const model_dims *d = &it->t->dims;
    const size_t half = (size_t)(d->d / 2);

    for (int i = 0; i < it->n; i++)
        it->t->m->ops->rope_back(
            it->t->dqkv + (size_t)(it->row + i) * (size_t)d->qkv + (size_t)(h * d->d),
            grad + (size_t)i * (size_t)d->dp, it->t->m->rope_cos + (size_t)i * half,
            it->t->m->rope_sin + (size_t)i * half, d->d);
}

static void run_item(const item *it)
{
    const model_dims *d = &it->t->dims;
    const back_scratch *s = it->s;
    const size_t dp = (size_t)d->dp;

    memset(s->dk, 0, (size_t)it->n * dp * sizeof *s->dk);
    memset(s->dv, 0, (size_t)it->n * dp * sizeof *s->dv);
    for (int j0 = 0; j0 < it->n; j0 += PL_BLOCK)
        it->t->m->ops->pack_kn_bf16(s->k_kn + (size_t)j0 * dp, key_row(it, it->a->k, j0),
            (size_t)(d->hkv * d->dp), d->d, block_rows(it, j0), 0, d->dp / 32);
    for (int h = it->head * d->group; h < (it->head + 1) * d->group; h++) {
        load_head(it, h);
        for (int j0 = 0; j0 < it->n; j0 += PL_BLOCK)
            block_back(it, j0);
        rotate_back(it, h, s->dq);
    }
    rotate_back(it, d->h + it->head, s->dk);
    for (int i = 0; i < it->n; i++)
        memcpy(it->t->dqkv + (size_t)(it->row + i) * (size_t)d->qkv +
                   (size_t)((d->h + d->hkv + it->head) * d->d),
            s->dv + (size_t)i * dp, (size_t)d->d * sizeof *s->dv);
}

/* What an item costs, roughly: products over half the square, and packing. */
static long cost(int n)
{
    return (long)n * (n + 256);
}

void train_attention_back(pl_train *t, const layer_acts *a, int i_thread, int n_threads)
{
    long total = 0, before = 0;

    for (int i = 0; i < t->n_slots; i++)
        if (t->slots[i].has_grad)
            total += cost(t->slots[i].n_rows) * t->dims.hkv;
    for (int i = 0; i < t->n_slots; i++) {
        const train_slot *slot = &t->slots[i];
        for (int h = 0; slot->has_grad && h < t->dims.hkv; h++) {
            /* An item belongs to the thread in whose share of the cost its middle falls. */
            const long c = cost(slot->n_rows);
            const int owner = (int)((double)(before + c / 2) / (double)total * n_threads);
            before += c;
            if (owner != i_thread)
                continue;
            const item it = {.t = t,
                .a = a,
                .s = &t->scratch[i_thread],
                .gemm = t->pass->scratch[i_thread].gemm,
                .row = slot->row,
                .n = slot->n_rows,
                .tq = pl_pad32(slot->n_rows),
                .head = h,
                .scale = 1.0f / __builtin_sqrtf((float)t->dims.d)};
            run_item(&it);
        }
    }
}
