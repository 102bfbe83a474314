/* drafter/eagle_backward.c - back through the depths of a micro-batch, the last one first.
 *
 * A row's state at depth k is read by the head and, as the next depth's entering state, by depth
 * k + 1: t->dx carries the second part from depth to depth.  Rounding to bf16 counts as the
 * identity.  The embedding is the target's and gets no gradient. */
#include "drafter/eagle_trainer.h"

#include <string.h>

/* Place of a norm's gradient in a thread's dnorm: rows of [C]. */
enum { NORM_FC = 0, NORM_EMB = 3, NORM_HID, NORM_POST, NORM_FINAL };

static float *dnorm_of(const pl_eagle_trainer *t, int i_thread, int norm)
{
    return t->scratch[i_thread].dnorm + (size_t)norm * (size_t)t->e->dims.c;
}

void eagle_weight_back(pl_eagle_trainer *t, eagle_param i, const uint16_t *dy, size_t ldy,
    const uint16_t *x, size_t ldx, int i_thread, int n_threads)
{
    const eagle_matrix *m = &t->e->p[i];
    const eagle_scratch *w = &t->scratch[i_thread];
    const pl_ops *ops = t->e->ops;
    int begin, end;

    pl_share(pl_pad32(m->cols) / 32, 1, i_thread, n_threads, &begin, &end);
    ops->pack_kn_bf16(t->packed, x, ldx, m->cols, t->n_rows, begin, end);
    pl_team_barrier(t->e->team);
    pl_share(pl_pad32(m->rows) / 32, 1, i_thread, n_threads, &begin, &end);
    end = 32 * end < m->rows ? 32 * end : m->rows;
    for (int r = 32 * begin; r < end; r += EAGLE_SLAB) {
        const int rows = end - r < EAGLE_SLAB ? end - r : EAGLE_SLAB;
        ops->transpose_bf16(w->turned, t->ldt, dy + r, ldy, t->n_rows, 0, rows);
        const pl_gemm g = {.x = w->turned,
            .ldx = t->ldt,
            .w = t->packed,
            .y = t->grads + m->offset + (size_t)r * (size_t)m->cols,
            .ldy = (size_t)m->cols,
            .m = rows,
            .n = m->cols,
            .k = t->n_rows,
            .accumulate = 1,
            .panel_end = pl_pad32(m->cols) / 32,
            .scratch = w->gemm};
        ops->gemm(&g);
    }
    pl_team_barrier(t->e->team);
}

/* Through a norm: dx += , rounded afterwards. */
static void norm_back(pl_eagle_trainer *t, const float *dy, size_t ldy, const float *x,
    eagle_param param, int norm, const float *inv, int i_thread, int n_threads)
{
    const eagle_dims *d = &t->e->dims;
    const size_t c = (size_t)d->c;
    int begin, end;

    pl_share(t->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++) {
        float *dx = t->dx + (size_t)r * c;
        t->e->ops->rmsnorm_back(dx, dnorm_of(t, i_thread, norm), dy + (size_t)r * ldy,
            x + (size_t)r * c, eagle_weights(t->e, param), inv[r], d->c);
        t->e->ops->round_bf16(t->dx16 + (size_t)r * (size_t)d->cp, dx, d->c);
    }
}

/* The state's two gradients, through the final norm: both when the normed state recurs, else only
 * the head's. */
static void leave_back(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;
    const eagle_acts *a = &t->acts[t->k];
    const int is_last = t->k == t->o.depth - 1, is_normed = t->e->norm_output;
    int begin, end;

    pl_share(t->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++) {
        float *dx = t->dx + (size_t)r * (size_t)d->c;
        if (!is_last && is_normed)
            t->e->ops->add(a->ds + (size_t)r * (size_t)d->cp, dx, d->c);
        if (is_last || is_normed)
            memset(dx, 0, (size_t)d->c * sizeof *dx);
    }
    norm_back(t, a->ds, (size_t)d->cp, a->x_out, EAGLE_NORM_FINAL, NORM_FINAL, a->inv_final,
        i_thread, n_threads);
}

/* Through the down projection and the gate, on this thread's columns. */
static void gate_back(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;
    const eagle_acts *a = &t->acts[t->k];
    const size_t fp = (size_t)d->fp;
    const pl_ops *ops = t->e->ops;
    float *dgate = t->scratch[i_thread].row, *dup = dgate + fp;
    int begin, end;

    eagle_multiply(t, t->dx16, (size_t)d->cp, t->e->p[EAGLE_DOWN].packed_t, t->dhid, fp, t->n_rows,
        d->f, d->c, 0, i_thread, n_threads);
    pl_share(d->fp / 32, 1, i_thread, n_threads, &begin, &end);
    begin *= 32;
    end = 32 * end < d->f ? 32 * end : d->f;
    for (int r = 0; r < t->n_rows && begin < end; r++) {
        const size_t at = (size_t)r * fp + (size_t)begin;
        ops->silu_mul_back(dgate, dup, t->dhid + at, a->gate + at, a->up + at, end - begin);
        ops->round_bf16(t->dgate16 + at, dgate, end - begin);
        ops->round_bf16(t->dup16 + at, dup, end - begin);
    }
}

static void down_weight(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    eagle_weight_back(t, EAGLE_DOWN, t->dx16, (size_t)t->e->dims.cp, t->acts[t->k].hid,
        (size_t)t->e->dims.fp, i_thread, n_threads);
}

static void gate_weights(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;
    const uint16_t *xn = t->acts[t->k].xn;

    eagle_weight_back(
        t, EAGLE_GATE, t->dgate16, (size_t)d->fp, xn, (size_t)d->cp, i_thread, n_threads);
    eagle_weight_back(t, EAGLE_UP, t->dup16, (size_t)d->fp, xn, (size_t)d->cp, i_thread, n_threads);
}

static void gate_inputs(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;
    const size_t cp = (size_t)d->cp, fp = (size_t)d->fp;

    eagle_multiply(t, t->dgate16, fp, t->e->p[EAGLE_GATE].packed_t, t->proj, cp, t->n_rows, d->c,
        d->f, 0, i_thread, n_threads);
    eagle_multiply(t, t->dup16, fp, t->e->p[EAGLE_UP].packed_t, t->proj, cp, t->n_rows, d->c, d->f,
        1, i_thread, n_threads);
}

static void middle_back(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_acts *a = &t->acts[t->k];

    norm_back(t, t->proj, (size_t)t->e->dims.cp, a->x_mid, EAGLE_NORM_POST, NORM_POST, a->inv_post,
        i_thread, n_threads);
}

static void out_back(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;

    eagle_multiply(t, t->dx16, (size_t)d->cp, t->e->p[EAGLE_O].packed_t, t->dao, (size_t)d->aop,
        t->n_rows, d->ao, d->c, 0, i_thread, n_threads);
    eagle_weight_back(
        t, EAGLE_O, t->dx16, (size_t)d->cp, t->acts[t->k].ao, (size_t)d->aop, i_thread, n_threads);
}

static void round_qkv(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;
    int begin, end;

    pl_share(t->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++)
        t->e->ops->round_bf16(
            t->dqkv16 + (size_t)r * (size_t)d->qkvp, t->qkv + (size_t)r * (size_t)d->qkvp, d->qkv);
}

static void qkv_weight(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;

    eagle_weight_back(t, EAGLE_QKV, t->dqkv16, (size_t)d->qkvp, t->acts[t->k].u, (size_t)d->ld2,
        i_thread, n_threads);
}

static void qkv_inputs(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;

    eagle_multiply(t, t->dqkv16, (size_t)d->qkvp, t->e->p[EAGLE_QKV].packed_t, t->proj,
        (size_t)d->ld2, t->n_rows, 2 * d->c, d->qkv, 0, i_thread, n_threads);
}

/* Through the two norms at the entrance; of the embedding's only the gain. */
static void enter_back(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;
    const eagle_acts *a = &t->acts[t->k];
    float *emb = t->scratch[i_thread].row, *unused = emb + d->cp;
    int begin, end;

    pl_share(t->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++) {
        const eagle_slot *s = eagle_slot_of(t, r);
        t->e->ops->packed_row(emb, t->e->parts.embed, eagle_token(s, r - s->row, t->k), d->c);
        memset(unused, 0, (size_t)d->c * sizeof *unused);
        t->e->ops->rmsnorm_back(unused, dnorm_of(t, i_thread, NORM_EMB),
            t->proj + (size_t)r * (size_t)d->ld2, emb, eagle_weights(t->e, EAGLE_NORM_EMB),
            a->inv_emb[r], d->c);
    }
    norm_back(t, t->proj + d->c, (size_t)d->ld2, a->x_in, EAGLE_NORM_HID, NORM_HID, a->inv_hid,
        i_thread, n_threads);
}

static void fuse_weight(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;

    eagle_weight_back(
        t, EAGLE_FC, t->dx16, (size_t)d->cp, t->fused, (size_t)d->ld3, i_thread, n_threads);
    eagle_multiply(t, t->dx16, (size_t)d->cp, t->e->p[EAGLE_FC].packed_t, t->proj, (size_t)d->ld3,
        t->n_rows, 3 * d->c, d->c, 0, i_thread, n_threads);
}

static void fuse_norms(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;
    const float *w = eagle_weights(t->e, EAGLE_FC_NORM);
    float *x = t->scratch[i_thread].row, *unused = x + d->cp;
    int begin, end;

    pl_share(t->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++) {
        const eagle_slot *s = eagle_slot_of(t, r);
        for (int i = 0; i < PL_FEATURE_LAYERS && r - s->row < s->w->n; i++) {
            const size_t at = (size_t)(r - s->row) * PL_FEATURE_LAYERS + (size_t)i;
            t->e->ops->widen_bf16(x, s->w->features + at * (size_t)d->cp, d->c);
            memset(unused, 0, (size_t)d->c * sizeof *unused);
            t->e->ops->rmsnorm_back(unused, dnorm_of(t, i_thread, NORM_FC + i),
                t->proj + (size_t)r * (size_t)d->ld3 + (size_t)(i * d->c), x, w + i * d->c,
                t->inv_fc[(size_t)r * PL_FEATURE_LAYERS + (size_t)i], d->c);
        }
    }
}

static void clear_keys(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const size_t width = (size_t)(t->e->dims.hkv * t->e->dims.dp);
    int begin, end;

    pl_share(t->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (int k = 0; k < t->o.depth; k++) {
        const size_t n = (size_t)(end - begin) * width * sizeof(float);
        memset(t->acts[k].dk + (size_t)begin * width, 0, n);
        memset(t->acts[k].dv + (size_t)begin * width, 0, n);
    }
}

pl_status eagle_backward(pl_eagle_trainer *t, pl_error *err)
{
    static const pl_team_fn layer[] = {leave_back, gate_back, down_weight, gate_weights,
        gate_inputs, middle_back, out_back, eagle_attend_back, round_qkv, qkv_weight, qkv_inputs,
        enter_back};
    pl_status st = eagle_phase(t, clear_keys, err);

    for (t->k = t->o.depth - 1; t->k >= 0; t->k--)
        for (size_t i = 0; i < sizeof layer / sizeof *layer && st == PL_OK; i++)
            st = eagle_phase(t, layer[i], err);
    if (st == PL_OK)
        st = eagle_phase(t, fuse_weight, err);
    if (st == PL_OK && t->e->has_fc_norm)
        st = eagle_phase(t, fuse_norms, err);
    return st;
}
