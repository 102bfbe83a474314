/* drafter/eagle_forward.c - the drafter over a micro-batch, depth after depth. */
#include "drafter/eagle_trainer.h"

#include <string.h>

pl_status eagle_phase(pl_eagle_trainer *t, pl_team_fn fn, pl_error *err)
{
    if (t->should_stop && t->should_stop(t->stop_ctx))
        return pl_fail(err, PL_E_STOPPED, "drafter training: asked to stop; nothing was changed");
    pl_team_run(t->e->team, fn, t);
    return PL_OK;
}

void eagle_multiply(const pl_eagle_trainer *t, const uint16_t *x, size_t ldx, const uint16_t *w,
    float *y, size_t ldy, int m, int n, int k, int accumulate, int i_thread, int n_threads)
{
    pl_gemm g = {.x = x,
        .ldx = ldx,
        .w = w,
        .y = y,
        .ldy = ldy,
        .m = m,
        .n = n,
        .k = pl_pad32(k),
        .accumulate = accumulate,
        .scratch = t->scratch[i_thread].gemm};

    pl_share(pl_pad32(n) / 32, 1, i_thread, n_threads, &g.panel_begin, &g.panel_end);
    if (g.panel_begin < g.panel_end)
        t->e->ops->gemm(&g);
}

const eagle_slot *eagle_slot_of(const pl_eagle_trainer *t, int row)
{
    const eagle_slot *s = t->slots;
    while (row >= s->row + s->rows)
        s++;
    return s;
}

/* Feature i of row r into y, normed by its own norm if the drafter has them. */
static void fuse_one(
    pl_eagle_trainer *t, const eagle_slot *s, int r, int i, uint16_t *y, float *wide)
{
    const pl_eagle *e = t->e;
    const size_t n = (size_t)e->dims.c;
    const size_t at = ((size_t)(r - s->row) * PL_FEATURE_LAYERS + (size_t)i) * (size_t)e->dims.cp;

    if (r - s->row >= s->w->n)
        memset(y, 0, n * sizeof *y);
    else if (!e->has_fc_norm)
        memcpy(y, s->w->features + at, n * sizeof *y);
    else {
        e->ops->widen_bf16(wide, s->w->features + at, e->dims.c);
        t->inv_fc[(size_t)r * PL_FEATURE_LAYERS + (size_t)i] = e->ops->rmsnorm(
            y, wide, eagle_weights(e, EAGLE_FC_NORM) + (size_t)i * n, e->dims.c, e->eps);
    }
}

static void fuse_rows(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;
    int begin, end;

    pl_share(t->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++) {
        const eagle_slot *s = eagle_slot_of(t, r);
        uint16_t *y = t->fused + (size_t)r * (size_t)d->ld3;
        for (int i = 0; i < PL_FEATURE_LAYERS; i++)
            fuse_one(t, s, r, i, y + i * d->c, t->scratch[i_thread].row);
    }
}

static void fuse(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;

    eagle_multiply(t, t->fused, (size_t)d->ld3, t->e->p[EAGLE_FC].packed, t->acts[0].x_in,
        (size_t)d->c, t->n_rows, d->c, 3 * d->c, 0, i_thread, n_threads);
}

/* The state that enters, and [norm(emb); norm(state)]. */
static void enter_rows(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;
    const pl_ops *ops = t->e->ops;
    eagle_acts *a = &t->acts[t->k];
    float *emb = t->scratch[i_thread].row;
    int begin, end;

    pl_share(t->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++) {
        const eagle_slot *s = eagle_slot_of(t, r);
        uint16_t *u = a->u + (size_t)r * (size_t)d->ld2;
        float *x = a->x_in + (size_t)r * (size_t)d->c;
        if (t->k > 0 && t->e->norm_output)
            ops->widen_bf16(x, t->acts[t->k - 1].s + (size_t)r * (size_t)d->cp, d->c);
        else if (t->k > 0)
            memcpy(x, t->acts[t->k - 1].x_out + (size_t)r * (size_t)d->c, (size_t)d->c * sizeof *x);
        ops->packed_row(emb, t->e->parts.embed, eagle_token(s, r - s->row, t->k), d->c);
        a->inv_emb[r] = ops->rmsnorm(u, emb, eagle_weights(t->e, EAGLE_NORM_EMB), d->c, t->e->eps);
        a->inv_hid[r] =
            ops->rmsnorm(u + d->c, x, eagle_weights(t->e, EAGLE_NORM_HID), d->c, t->e->eps);
    }
}

static void project(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;

    eagle_multiply(t, t->acts[t->k].u, (size_t)d->ld2, t->e->p[EAGLE_QKV].packed, t->qkv,
        (size_t)d->qkvp, t->n_rows, d->qkv, 2 * d->c, 0, i_thread, n_threads);
}

/* Rotate and round q and k, round v. */
static void rotate_rows(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;
    const pl_ops *ops = t->e->ops;
    eagle_acts *a = &t->acts[t->k];
    int begin, end;

    pl_share(t->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++) {
        const eagle_slot *s = eagle_slot_of(t, r);
        const size_t rope = (size_t)(s->position + r - s->row + t->k) * (size_t)(d->d / 2);
        const float *c = t->e->parts.rope_cos + rope, *sn = t->e->parts.rope_sin + rope;
        const float *x = t->qkv + (size_t)r * (size_t)d->qkvp;
        for (int h = 0; h < d->h; h++)
            ops->rope(a->q + (size_t)(r * d->h + h) * (size_t)d->dp, x + h * d->d, c, sn, d->d);
        for (int h = 0; h < d->hkv; h++) {
            const size_t at = (size_t)(r * d->hkv + h) * (size_t)d->dp;
            ops->rope(a->k + at, x + (d->h + h) * d->d, c, sn, d->d);
            ops->round_bf16(a->v + at, x + (d->h + d->hkv + h) * d->d, d->d);
        }
    }
}

static void project_out(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;

    eagle_multiply(t, t->acts[t->k].ao, (size_t)d->aop, t->e->p[EAGLE_O].packed, t->proj,
        (size_t)d->cp, t->n_rows, d->c, d->ao, 0, i_thread, n_threads);
}

/* out = in + proj, then normed. */
static void add_and_norm(pl_eagle_trainer *t, float *out, const float *in, eagle_param norm,
    uint16_t *y, float *inv, int i_thread, int n_threads)
{
    const eagle_dims *d = &t->e->dims;
    const size_t c = (size_t)d->c, cp = (size_t)d->cp;
    int begin, end;

    pl_share(t->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++) {
        float *x = out + (size_t)r * c;
        memcpy(x, in + (size_t)r * c, c * sizeof *x);
        t->e->ops->add(x, t->proj + (size_t)r * cp, d->c);
        inv[r] =
            t->e->ops->rmsnorm(y + (size_t)r * cp, x, eagle_weights(t->e, norm), d->c, t->e->eps);
    }
}

static void middle_rows(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    eagle_acts *a = &t->acts[t->k];
    add_and_norm(t, a->x_mid, a->x_in, EAGLE_NORM_POST, a->xn, a->inv_post, i_thread, n_threads);
}

static void gate(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;
    const size_t cp = (size_t)d->cp, fp = (size_t)d->fp;
    eagle_acts *a = &t->acts[t->k];
    int begin, end;

    eagle_multiply(t, a->xn, cp, t->e->p[EAGLE_GATE].packed, a->gate, fp, t->n_rows, d->f, d->c, 0,
        i_thread, n_threads);
    eagle_multiply(t, a->xn, cp, t->e->p[EAGLE_UP].packed, a->up, fp, t->n_rows, d->f, d->c, 0,
        i_thread, n_threads);
    pl_share(d->fp / 32, 1, i_thread, n_threads, &begin, &end);
    begin *= 32;
    end = 32 * end < d->f ? 32 * end : d->f;
    for (int r = 0; r < t->n_rows && begin < end; r++) {
        const size_t at = (size_t)r * fp + (size_t)begin;
        t->e->ops->silu_mul(a->hid + at, a->gate + at, a->up + at, end - begin);
    }
}

static void down(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;

    eagle_multiply(t, t->acts[t->k].hid, (size_t)d->fp, t->e->p[EAGLE_DOWN].packed, t->proj,
        (size_t)d->cp, t->n_rows, d->c, d->f, 0, i_thread, n_threads);
}

static void leave_rows(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    eagle_acts *a = &t->acts[t->k];
    add_and_norm(t, a->x_out, a->x_mid, EAGLE_NORM_FINAL, a->s, a->inv_final, i_thread, n_threads);
}

pl_status eagle_forward(pl_eagle_trainer *t, pl_error *err)
{
    static const pl_team_fn layer[] = {enter_rows, project, rotate_rows, eagle_attend, project_out,
        middle_rows, gate, down, leave_rows};
    pl_status st = eagle_phase(t, fuse_rows, err);

    if (st == PL_OK)
        st = eagle_phase(t, fuse, err);
    for (t->k = 0; t->k < t->o.depth; t->k++)
        for (size_t i = 0; i < sizeof layer / sizeof *layer && st == PL_OK; i++)
            st = eagle_phase(t, layer[i], err);
    return st;
}
