/* drafter/eagle_attention.c - the attention of training-time test, exact (DRAFTING 1.2).
 *
 * The query of row i at depth k sees the keys of depth 0 up to row i, and of each depth 1 .. k the
 * one key of its own row.  The causal square is products of bf16 blocks, whole windows at a time;
 * the diagonal is added row by row.  A work item is one window and one KV head. */
#include "drafter/eagle_trainer.h"

#include <math.h>
#include <string.h>

typedef struct item {
    pl_eagle_trainer *t;
    const eagle_slot *slot;
    eagle_scratch *s;
    int kv; /* KV head */
} item;

static float dot_bf16(const uint16_t *a, const uint16_t *b, int n)
{
    float lane[16] = {0};
    for (int i = 0; i < n; i += 16)
        for (int j = 0; j < 16; j++)
            lane[j] += pl_bf16_to_f32(a[i + j]) * pl_bf16_to_f32(b[i + j]);
    float sum = 0;
    for (int j = 0; j < 16; j++)
        sum += lane[j];
    return sum;
}

static float dot_mixed(const float *a, const uint16_t *b, int n)
{
    float sum = 0;
    for (int i = 0; i < n; i++)
        sum += a[i] * pl_bf16_to_f32(b[i]);
    return sum;
}

static void axpy_bf16(float *restrict y, float a, const uint16_t *restrict x, int n)
{
    for (int i = 0; i < n; i++)
        y[i] += a * pl_bf16_to_f32(x[i]);
}

/* Row i of the window, of keys, values or their gradients. */
static size_t kv_at(const item *it, int i)
{
    const eagle_dims *d = &it->t->e->dims;
    return ((size_t)(it->slot->row + i) * (size_t)d->hkv + (size_t)it->kv) * (size_t)d->dp;
}

static size_t q_at(const item *it, int h, int i)
{
    const eagle_dims *d = &it->t->e->dims;
    return ((size_t)(it->slot->row + i) * (size_t)d->h + (size_t)h) * (size_t)d->dp;
}

static uint16_t *probs_at(const item *it, const eagle_acts *a, int h, int i)
{
    const size_t row = (size_t)h * (size_t)it->t->rows_max + (size_t)(it->slot->row + i);
    return a->probs + row * (size_t)it->t->window;
}

static float *diag_at(const item *it, const eagle_acts *a, int h, int i)
{
    const size_t row = (size_t)h * (size_t)it->t->rows_max + (size_t)(it->slot->row + i);
    return a->diag + row * PL_EAGLE_DEPTH_MAX;
}

/* y [m, ldy] (+)= x [m, ldx] times w, packed n x k. */
static void multiply(const item *it, const uint16_t *x, size_t ldx, const uint16_t *w, float *y,
    size_t ldy, int n, int k, int accumulate)
{
    const pl_gemm g = {.x = x,
        .ldx = ldx,
        .w = w,
        .y = y,
        .ldy = ldy,
        .m = it->slot->rows,
        .n = n,
        .k = pl_pad32(k),
        .accumulate = accumulate,
        .panel_end = pl_pad32(n) / 32,
        .scratch = it->s->gemm};
    it->t->e->ops->gemm(&g);
}

/* Keys or values of depth 0 as outputs by D. */
static void pack_rows(const item *it, const uint16_t *x)
{
    const eagle_dims *d = &it->t->e->dims;
    const int n = it->slot->rows;

    for (int i = 0; i < n; i++)
        it->t->e->ops->widen_bf16(it->s->wide + (size_t)i * (size_t)d->dp, x + kv_at(it, i), d->d);
    it->t->e->ops->pack_nk(it->s->nk, it->s->wide, (size_t)d->dp, n, d->d, 0, n / 32);
}

/* Keys or values of depth 0 as D outputs by rows. */
static void pack_columns(const item *it, const uint16_t *x)
{
    const eagle_dims *d = &it->t->e->dims;
    it->t->e->ops->pack_kn_bf16(
        it->s->kn, x + kv_at(it, 0), (size_t)(d->hkv * d->dp), d->d, it->slot->rows, 0, d->dp / 32);
}

/* Softmax of row i over its keys and its diagonal; s: the raw scores, room for the diagonal. */
static void soften(const item *it, int h, int i, float *s)
{
    pl_eagle_trainer *t = it->t;
    const eagle_acts *a = &t->acts[t->k];
    const int n = i + 1, total = n + t->k;
    float *e = it->s->row, max, lse;
    uint16_t *p = probs_at(it, a, h, i);

    for (int j = 1; j <= t->k; j++)
        s[n + j - 1] = dot_bf16(a->q + q_at(it, h, i), t->acts[j].k + kv_at(it, i), t->e->dims.dp);
    t->e->ops->logsumexp(s, total, sqrtf((float)t->e->dims.d), e, &max, &lse);
    t->e->ops->scale(e, expf(max - lse), total);
    memcpy(diag_at(it, a, h, i), e + n, (size_t)t->k * sizeof *e);
    t->e->ops->round_bf16(p, e, n);
    memset(p + n, 0, (size_t)(it->slot->rows - n) * sizeof *p);
}

static void attend_head(const item *it, int h)
{
    pl_eagle_trainer *t = it->t;
    const eagle_dims *d = &t->e->dims;
    const eagle_acts *a = &t->acts[t->k];
    const int rows = it->slot->rows;
    const size_t lds = (size_t)t->window + 32;

    multiply(it, a->q + q_at(it, h, 0), (size_t)(d->h * d->dp), it->s->nk, it->s->scores, lds, rows,
        d->dp, 0);
    for (int i = 0; i < rows; i++)
        soften(it, h, i, it->s->scores + (size_t)i * lds);
    multiply(it, probs_at(it, a, h, 0), (size_t)t->window, it->s->kn, it->s->head, (size_t)d->dp,
        d->d, rows, 0);
    for (int i = 0; i < rows; i++) {
        float *o = it->s->head + (size_t)i * (size_t)d->dp;
        const float *w = diag_at(it, a, h, i);
        for (int j = 1; j <= t->k; j++)
            axpy_bf16(o, w[j - 1], t->acts[j].v + kv_at(it, i), d->d);
        t->e->ops->round_bf16(
            a->ao + (size_t)(it->slot->row + i) * (size_t)d->aop + (size_t)(h * d->d), o, d->d);
    }
}

static void attend_item(const item *it)
{
    const int group = it->t->e->dims.group;

    pack_rows(it, it->t->acts[0].k);
    pack_columns(it, it->t->acts[0].v);
    for (int h = it->kv * group; h < (it->kv + 1) * group; h++)
        attend_head(it, h);
}

/* Items dealt out one by one. */
static void deal(void *ctx, int i_thread, int n_threads, void (*run)(const item *))
{
    pl_eagle_trainer *t = ctx;
    const int hkv = t->e->dims.hkv;

    for (int i = i_thread; i < t->n_slots * hkv; i += n_threads) {
        const item it = {t, &t->slots[i / hkv], &t->scratch[i_thread], i % hkv};
        run(&it);
    }
}

void eagle_attend(void *ctx, int i_thread, int n_threads)
{
    deal(ctx, i_thread, n_threads, attend_item);
}

/* ---- backward ---- */

/* dS of row i, rounded, from dP in its place; the diagonal's gradients.  d_o: of this row's output;
 * dq gets the diagonal's part. */
static void soften_back(const item *it, int h, int i, float *dp, const float *d_o, float *dq)
{
    pl_eagle_trainer *t = it->t;
    const eagle_dims *d = &t->e->dims;
    const eagle_acts *a = &t->acts[t->k];
    const pl_ops *ops = t->e->ops;
    const float *w = diag_at(it, a, h, i), scale = 1.0f / sqrtf((float)d->d);
    const int n = i + 1;
    float *p = it->s->row, g[PL_EAGLE_DEPTH_MAX];
    uint16_t *ds = it->s->ds + (size_t)i * (size_t)t->window;

    ops->widen_bf16(p, probs_at(it, a, h, i), n);
    float sum = ops->sdot(p, dp, n);
    for (int j = 1; j <= t->k; j++) {
        g[j - 1] = dot_mixed(d_o, t->acts[j].v + kv_at(it, i), d->d);
        sum += w[j - 1] * g[j - 1];
    }
    for (int j = 0; j < n; j++)
        p[j] *= (dp[j] - sum) * scale;
    ops->round_bf16(ds, p, n);
    memset(ds + n, 0, (size_t)(it->slot->rows - n) * sizeof *ds);
    for (int j = 1; j <= t->k; j++) {
        const float s = w[j - 1] * (g[j - 1] - sum) * scale;
        axpy_bf16(dq, s, t->acts[j].k + kv_at(it, i), d->d);
        axpy_bf16(t->acts[j].dk + kv_at(it, i), s, a->q + q_at(it, h, i), d->d);
        ops->saxpy(t->acts[j].dv + kv_at(it, i), w[j - 1], d_o, d->d);
    }
}

/* Gradients of a head's keys += x^T w: x (probabilities or dS) by rows, w packed D by rows. */
static void add_keys(const item *it, const uint16_t *x, const uint16_t *w, float *y)
{
    const eagle_dims *d = &it->t->e->dims;
    const size_t ld = (size_t)it->t->window;

    it->t->e->ops->transpose_bf16(it->s->flip, ld, x, ld, it->slot->rows, 0, it->slot->rows);
    multiply(it, it->s->flip, ld, w, y, (size_t)(d->hkv * d->dp), d->d, it->slot->rows, 1);
}

static void turn_back(const item *it, float *out, const float *grad, size_t ld)
{
    pl_eagle_trainer *t = it->t;
    const eagle_dims *d = &t->e->dims;

    for (int i = 0; i < it->slot->rows; i++) {
        const size_t rope = (size_t)(it->slot->position + i + t->k) * (size_t)(d->d / 2);
        t->e->ops->rope_back(out + (size_t)(it->slot->row + i) * (size_t)d->qkvp,
            grad + (size_t)i * ld, t->e->parts.rope_cos + rope, t->e->parts.rope_sin + rope, d->d);
    }
}

static void head_back(const item *it, int h)
{
    pl_eagle_trainer *t = it->t;
    const eagle_dims *d = &t->e->dims;
    const eagle_acts *a = &t->acts[t->k];
    const pl_ops *ops = t->e->ops;
    const int rows = it->slot->rows;
    const size_t lds = (size_t)t->window + 32, dp = (size_t)d->dp;
    const float *d_o = t->dao + (size_t)it->slot->row * (size_t)d->aop + (size_t)(h * d->d);

    /* 1. dP = dO V^T, dS, and what the diagonal says. */
    for (int i = 0; i < rows; i++)
        ops->round_bf16(it->s->x16 + (size_t)i * dp, d_o + (size_t)i * (size_t)d->aop, d->d);
    pack_rows(it, t->acts[0].v);
    multiply(it, it->s->x16, dp, it->s->nk, it->s->scores, lds, rows, d->dp, 0);
    memset(it->s->head, 0, (size_t)rows * dp * sizeof *it->s->head);
    for (int i = 0; i < rows; i++)
        soften_back(it, h, i, it->s->scores + (size_t)i * lds, d_o + (size_t)i * (size_t)d->aop,
            it->s->head + (size_t)i * dp);

    /* 2. dQ += dS K. */
    pack_columns(it, t->acts[0].k);
    multiply(it, it->s->ds, (size_t)t->window, it->s->kn, it->s->head, dp, d->d, rows, 1);
    turn_back(it, t->qkv + h * d->d, it->s->head, dp);

    /* 3. dV += P^T dO, dK += dS^T Q. */
    ops->pack_kn_bf16(it->s->kn, it->s->x16, dp, d->d, rows, 0, d->dp / 32);
    add_keys(it, probs_at(it, a, h, 0), it->s->kn, t->acts[0].dv + kv_at(it, 0));
    ops->pack_kn_bf16(
        it->s->kn, a->q + q_at(it, h, 0), (size_t)(d->h * d->dp), d->d, rows, 0, d->dp / 32);
    add_keys(it, it->s->ds, it->s->kn, t->acts[0].dk + kv_at(it, 0));
}

static void attend_item_back(const item *it)
{
    pl_eagle_trainer *t = it->t;
    const eagle_dims *d = &t->e->dims;
    const eagle_acts *a = &t->acts[t->k];
    const size_t ld = (size_t)(d->hkv * d->dp);

    for (int h = it->kv * d->group; h < (it->kv + 1) * d->group; h++)
        head_back(it, h);
    /* This depth's keys have no more readers. */
    turn_back(it, t->qkv + (d->h + it->kv) * d->d, a->dk + kv_at(it, 0), ld);
    for (int i = 0; i < it->slot->rows; i++)
        memcpy(t->qkv + (size_t)(it->slot->row + i) * (size_t)d->qkvp +
                   (size_t)((d->h + d->hkv + it->kv) * d->d),
            a->dv + kv_at(it, i), (size_t)d->d * sizeof *a->dv);
}

void eagle_attend_back(void *ctx, int i_thread, int n_threads)
{
    deal(ctx, i_thread, n_threads, attend_item_back);
}
