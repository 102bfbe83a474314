/* model/train_back.c - the backward through the layers.
 *
 * Work on rows runs over blocks of up to 32 rows of one sequence; a weight's gradient is the
 * canonical dot over the packed token index, continued from what grads holds; a norm's gradient is
 * summed in a block from zero, row by row, then over the blocks in order; the embedding's is added
 * token by token.  Threads split blocks, rows or columns of the result, never a sum.  The inputs of
 * all products are rounded to bf16, everything between them is fp32. */
#include "model/train_internal.h"

#include <string.h>

/* y = x w^T over the rows with gradients, on this thread's panels. */
static void multiply(const pl_train *t, const uint16_t *x, size_t ldx, const uint16_t *w, float *y,
    size_t ldy, int n, int k, int accumulate, int i_thread, int n_threads)
{
    pl_gemm g = {.ldx = ldx,
        .w = w,
        .ldy = ldy,
        .n = n,
        .k = pl_pad32(k),
        .accumulate = accumulate,
        .scratch = t->pass->scratch[i_thread].gemm};

    pl_share(pl_pad32(n) / 32, 1, i_thread, n_threads, &g.panel_begin, &g.panel_end);
    if (g.panel_begin == g.panel_end)
        return;
    for (int i = 0; i < t->n_runs; i++) {
        g.x = x + (size_t)t->runs[i].row * ldx;
        g.y = y + (size_t)t->runs[i].row * ldy;
        g.m = t->runs[i].n;
        t->m->ops->gemm(&g);
    }
}

/* Rows [begin, end) of a weight's gradient += their part of dy^T x. */
static void add_weight(const pl_train *t, const pl_param *p, const uint16_t *dy_t,
    const uint16_t *x_packed, int begin, int end, int i_thread)
{
    for (int r = begin; r < end; r += TRAIN_DW_ROWS) {
        const pl_gemm g = {.x = dy_t + (size_t)r * t->ldt,
            .ldx = t->ldt,
            .w = x_packed,
            .y = t->grads + p->offset + (size_t)r * (size_t)p->cols,
            .ldy = (size_t)p->cols,
            .m = end - r < TRAIN_DW_ROWS ? end - r : TRAIN_DW_ROWS,
            .n = p->cols,
            .k = t->k,
            .accumulate = 1,
            .panel_end = pl_pad32(p->cols) / 32,
            .scratch = t->pass->scratch[i_thread].gemm};
        t->m->ops->gemm(&g);
    }
}

static void weight_back(const pl_train *t, pl_param_kind kind, int layer, const uint16_t *dy_t,
    const uint16_t *x_packed, int i_thread, int n_threads)
{
    const pl_param *p = pl_param_find(t->m->params, kind, layer);
    int begin, end;

    train_columns(p->rows, i_thread, n_threads, &begin, &end);
    add_weight(t, p, dy_t, x_packed, begin, end, i_thread);
}

/* x [rows, ld], of which n columns, packed as n outputs by the token index. */
static void pack_tokens(const pl_train *t, uint16_t *packed, const uint16_t *x, size_t ld, int n,
    int i_thread, int n_threads)
{
    int begin, end;

    pl_share(pl_pad32(n) / 32, 1, i_thread, n_threads, &begin, &end);
    for (int b = 0; b < t->n_blocks; b++)
        for (int p = begin; p < end; p++) {
            const train_span *s = &t->blocks[b];
            t->m->ops->pack_kn_bf16(packed + (size_t)(32 * p) * (size_t)t->k + (size_t)s->k0 * 32,
                x + (size_t)s->row * ld + (size_t)(32 * p), ld, n - 32 * p, s->n, 0, 1);
        }
}

/* A block's rows of the residual's gradient, rounded: as they are, and transposed. */
static void round_residual(const pl_train *t, const train_span *s)
{
    const size_t c = (size_t)t->dims.c, cp = (size_t)t->dims.cp;

    for (int r = s->row; r < s->row + s->n; r++)
        t->m->ops->round_bf16(t->dx16 + (size_t)r * cp, t->dx + (size_t)r * c, t->dims.c);
    t->m->ops->transpose_bf16(
        t->dx_t + s->k0, t->ldt, t->dx16 + (size_t)s->row * cp, cp, s->n, 0, t->dims.c);
}

/* dx += gradient through a norm with input x, from t->dxn; its own gradient by block. */
static void norm_back(const pl_train *t, const float *x, const float *w, const float *inv,
    int i_thread, int n_threads)
{
    const size_t c = (size_t)t->dims.c, cp = (size_t)t->dims.cp;
    int begin, end;

    pl_share(t->n_blocks, 1, i_thread, n_threads, &begin, &end);
    for (int b = begin; b < end; b++) {
        const train_span *s = &t->blocks[b];
        float *dw = t->dnorm + (size_t)b * cp;
        memset(dw, 0, cp * sizeof *dw);
        for (int r = s->row; r < s->row + s->n; r++)
            t->m->ops->rmsnorm_back(t->dx + (size_t)r * c, dw, t->dxn + (size_t)r * cp,
                x + (size_t)r * c, w, inv[r], t->dims.c);
        round_residual(t, s);
    }
    pl_team_barrier(t->m->team);
}

void train_add_norm(const pl_train *t, pl_param_kind kind, int layer, const float *partial, int n,
    int i_thread, int n_threads)
{
    float *grads = t->grads + pl_param_find(t->m->params, kind, layer)->offset;
    int begin, end;

    train_columns(t->dims.c, i_thread, n_threads, &begin, &end);
    for (int b = 0; b < n && begin < end; b++)
        t->m->ops->add(
            grads + begin, partial + (size_t)b * (size_t)t->dims.cp + (size_t)begin, end - begin);
}

/* Some columns of a block: gradient of silu(gate) * up, rounded, as it is and transposed. */
static void gate_block(
    const pl_train *t, const layer_acts *a, const train_span *s, int col, int n, int i_thread)
{
    const back_scratch *w = &t->scratch[i_thread];
    const size_t fp = (size_t)t->dims.fp;
    const pl_ops *ops = t->m->ops;

    for (int i = 0; i < s->n; i++) {
        const size_t at = (size_t)(s->row + i) * fp + (size_t)col;
        ops->silu_mul_back(w->dgate, w->dup, t->dy + at, a->gate + at, a->up + at, n);
        ops->round_bf16(t->dgate16 + at, w->dgate, n);
        ops->round_bf16(t->dup16 + at, w->dup, n);
    }
    const size_t from = (size_t)s->row * fp + (size_t)col;
    const size_t to = (size_t)col * t->ldt + (size_t)s->k0;
    ops->transpose_bf16(t->dgate_t + to, t->ldt, t->dgate16 + from, fp, s->n, 0, n);
    ops->transpose_bf16(t->dup_t + to, t->ldt, t->dup16 + from, fp, s->n, 0, n);
}

static void feed_forward_back(
    pl_train *t, int layer, const layer_acts *a, int i_thread, int n_threads)
{
    const model_dims *d = &t->dims;
    const layer_weights *w = &t->m->layers[layer];
    const size_t cp = (size_t)d->cp, fp = (size_t)d->fp;
    int begin, end;

    /* 1. Through the down projection, the product and the gate: columns of this thread. */
    multiply(t, t->dx16, cp, w->down_t, t->dy, fp, d->f, d->c, 0, i_thread, n_threads);
    pack_tokens(t, t->y_packed, a->hid, fp, d->f, i_thread, n_threads);
    pack_tokens(t, t->x_packed, a->xn2, cp, d->c, i_thread, n_threads);
    pl_share(d->fp / 32, 1, i_thread, n_threads, &begin, &end);
    end = 32 * end < d->f ? 32 * end : d->f;
    for (int b = 0; b < t->n_blocks; b++)
        for (int c = 32 * begin; c < end; c += TRAIN_COLS)
            gate_block(
                t, a, &t->blocks[b], c, end - c < TRAIN_COLS ? end - c : TRAIN_COLS, i_thread);
    pl_team_barrier(t->m->team);

    /* 2. Weights, and through gate and up. */
    weight_back(t, PL_P_DOWN, layer, t->dx_t, t->y_packed, i_thread, n_threads);
    weight_back(t, PL_P_GATE, layer, t->dgate_t, t->x_packed, i_thread, n_threads);
    weight_back(t, PL_P_UP, layer, t->dup_t, t->x_packed, i_thread, n_threads);
    multiply(t, t->dgate16, fp, w->gate_t, t->dxn, cp, d->c, d->f, 0, i_thread, n_threads);
    multiply(t, t->dup16, fp, w->up_t, t->dxn, cp, d->c, d->f, 1, i_thread, n_threads);
    pl_team_barrier(t->m->team);

    /* 3. Norm. */
    norm_back(t, a->x_mid, w->ffn_norm, a->inv_ffn, i_thread, n_threads);
    train_add_norm(t, PL_P_FFN_NORM, layer, t->dnorm, t->n_blocks, i_thread, n_threads);
}

/* Round this thread's columns of dqkv, as they are and transposed; their rows of the weights. */
static void qkv_back(pl_train *t, int layer, int i_thread, int n_threads)
{
    const pl_param_kind kinds[] = {PL_P_Q, PL_P_K, PL_P_V};
    const size_t ld = (size_t)t->dims.qkv, ld16 = (size_t)pl_pad32(t->dims.qkv);
    int begin, end, base = 0;

    train_columns(t->dims.qkv, i_thread, n_threads, &begin, &end);
    if (begin == end)
        return;
    for (int b = 0; b < t->n_blocks; b++) {
        const train_span *s = &t->blocks[b];
        for (int r = s->row; r < s->row + s->n; r++)
            t->m->ops->round_bf16(t->dqkv16 + (size_t)r * ld16 + (size_t)begin,
                t->dqkv + (size_t)r * ld + (size_t)begin, end - begin);
        t->m->ops->transpose_bf16(
            t->dqkv_t + s->k0, t->ldt, t->dqkv16 + (size_t)s->row * ld16, ld16, s->n, begin, end);
    }
    for (int i = 0; i < 3; i++) {
        const pl_param *p = pl_param_find(t->m->params, kinds[i], layer);
        const int from = begin > base ? begin - base : 0;
        const int to = end - base < p->rows ? end - base : p->rows;
        add_weight(t, p, t->dqkv_t + (size_t)base * t->ldt, t->x_packed, from, to, i_thread);
        base += p->rows;
    }
}

static void attention_back(pl_train *t, int layer, const layer_acts *a, int i_thread, int n_threads)
{
    const model_dims *d = &t->dims;
    const layer_weights *w = &t->m->layers[layer];
    const size_t cp = (size_t)d->cp, aop = (size_t)d->aop;

    /* 1. Through the output projection. */
    multiply(t, t->dx16, cp, w->o_t, t->dy, aop, d->ao, d->c, 0, i_thread, n_threads);
    pack_tokens(t, t->y_packed, a->ao, aop, d->ao, i_thread, n_threads);
    pack_tokens(t, t->x_packed, a->xn, cp, d->c, i_thread, n_threads);
    pl_team_barrier(t->m->team);

    /* 2. Through attention and rotation. */
    weight_back(t, PL_P_O, layer, t->dx_t, t->y_packed, i_thread, n_threads);
    train_attention_back(t, a, i_thread, n_threads);
    pl_team_barrier(t->m->team);

    /* 3. Through the projections. */
    qkv_back(t, layer, i_thread, n_threads);
    pl_team_barrier(t->m->team);
    multiply(t, t->dqkv16, (size_t)pl_pad32(d->qkv), w->qkv_t, t->dxn, cp, d->c, d->qkv, 0,
        i_thread, n_threads);
    pl_team_barrier(t->m->team);

    /* 4. Norm. */
    norm_back(t, a->x_in, w->attn_norm, a->inv_attn, i_thread, n_threads);
    train_add_norm(t, PL_P_ATTN_NORM, layer, t->dnorm, t->n_blocks, i_thread, n_threads);
}

/* Each token's row of the embedding, in token order, on this thread's columns. */
static void embedding_back(const pl_train *t, int i_thread, int n_threads)
{
    const size_t c = (size_t)t->dims.c;
    float *grads = t->grads + pl_param_find(t->m->params, PL_P_EMBED, -1)->offset;
    int begin, end;

    train_columns(t->dims.c, i_thread, n_threads, &begin, &end);
    for (int b = 0; b < t->n_blocks && begin < end; b++) {
        const train_span *s = &t->blocks[b];
        for (int r = s->row; r < s->row + s->n; r++)
            t->m->ops->add(grads + (size_t)t->pass->rows[r].token * c + (size_t)begin,
                t->dx + (size_t)r * c + (size_t)begin, end - begin);
    }
}

void train_layers_back(pl_train *t, int i_thread, int n_threads)
{
    const int n_layers = t->m->arch.n_layers;
    int begin, end;

    pl_share(t->n_blocks, 1, i_thread, n_threads, &begin, &end);
    for (int b = begin; b < end; b++)
        round_residual(t, &t->blocks[b]);
    pl_team_barrier(t->m->team);
    for (int l = n_layers - 1; l >= 0; l--) {
        layer_acts a = t->acts[t->o.keep ? l : 0];
        a.x_in = t->x[l];
        /* The last layer's activations are still there; the residual that leaves is not needed. */
        if (!t->o.keep && l < n_layers - 1)
            pass_layer(t->pass, l, &a, t->x[n_layers], i_thread, n_threads);
        feed_forward_back(t, l, &a, i_thread, n_threads);
        attention_back(t, l, &a, i_thread, n_threads);
    }
    embedding_back(t, i_thread, n_threads);
}
