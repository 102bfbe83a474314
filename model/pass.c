/* model/pass.c - one packed pass over the rows of many sequences: embed, layers, norm, head.
 *
 * Every phase splits rows or output columns over the team and ends with a barrier; no phase splits
 * a sum, so the bits of a row do not depend on its neighbours or on the number of threads (law 1).
 */
#include "model/internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void *take(pl_arena *arena, size_t *total, size_t n_bytes)
{
    *total += pl_arena_cost(n_bytes);
    return arena ? pl_arena_alloc(arena, n_bytes) : NULL;
}

/* Attention rows of one item: ATTN_ROWS query rows of a segment by the heads of a group. */
static size_t lay_out_scratch(thread_scratch *s, const model_dims *d, pl_arena *arena)
{
    const size_t rows = (size_t)attention_rows(d), dv = (size_t)d->dp;
    size_t total = 0;

    s->gemm = take(arena, &total, PL_GEMM_SCRATCH);
    s->q = take(arena, &total, rows * dv * sizeof(uint16_t));
    s->scores = take(arena, &total, rows * PL_BLOCK * sizeof(float));
    s->keys = take(arena, &total, rows * PL_DRAFT_MAX * sizeof(float));
    s->o_block = take(arena, &total, rows * dv * sizeof(float));
    s->probs = take(arena, &total, rows * PL_BLOCK * sizeof(uint16_t));
    s->state = take(arena, &total, rows * (dv + 2) * sizeof(float));
    s->block_m = take(arena, &total, rows * sizeof(float));
    s->block_l = take(arena, &total, rows * sizeof(float));
    s->tail_v = take(arena, &total, (size_t)PL_BLOCK * dv * sizeof(uint16_t));
    s->tree_k = take(arena, &total, (size_t)PL_DRAFT_MAX * dv * sizeof(uint16_t));
    return total;
}

static size_t lay_out(pl_pass *p, int n_threads, pl_arena *arena)
{
    const model_dims *d = &p->dims;
    const size_t rows = (size_t)p->o.max_rows, logits = (size_t)p->o.max_logits;
    layer_acts *a = &p->acts;
    size_t total = 0;

    a->x_in = take(arena, &total, rows * (size_t)d->c * sizeof(float));
    a->x_mid = a->x_in;
    a->xn = take(arena, &total, rows * (size_t)d->cp * sizeof(uint16_t));
    a->xn2 = a->xn;
    a->qkv = take(arena, &total, rows * (size_t)d->qkv * sizeof(float));
    a->q = take(arena, &total, rows * (size_t)(d->h * d->dp) * sizeof(uint16_t));
    a->k = take(arena, &total, rows * (size_t)(d->hkv * d->dp) * sizeof(uint16_t));
    a->v = take(arena, &total, rows * (size_t)(d->hkv * d->dp) * sizeof(uint16_t));
    a->ao = take(arena, &total, rows * (size_t)d->aop * sizeof(uint16_t));
    a->gate = take(arena, &total, rows * (size_t)d->fp * sizeof(float));
    a->up = take(arena, &total, rows * (size_t)d->fp * sizeof(float));
    a->hid = take(arena, &total, rows * (size_t)d->fp * sizeof(uint16_t));
    p->proj = take(arena, &total, rows * (size_t)d->cp * sizeof(float));
    if (p->o.tree) {
        const size_t n = (size_t)p->m->arch.n_layers * rows * (size_t)(d->hkv * d->dp);
        p->tree_k = take(arena, &total, n * sizeof(uint16_t));
        p->tree_v = take(arena, &total, n * sizeof(uint16_t));
    }
    p->final_xn = take(arena, &total, logits * (size_t)d->cp * sizeof(uint16_t));
    p->logits = take(arena, &total, logits * (size_t)d->vp * sizeof(float));
    p->segs = take(arena, &total, (size_t)p->o.max_segments * sizeof *p->segs);
    p->rows = take(arena, &total, rows * sizeof *p->rows);
    p->logit_rows = take(arena, &total, logits * sizeof *p->logit_rows);
    p->scratch = take(arena, &total, (size_t)n_threads * sizeof *p->scratch);
    for (int i = 0; i < n_threads; i++) {
        thread_scratch counted;
        total += lay_out_scratch(arena ? &p->scratch[i] : &counted, d, arena);
    }
    return total;
}

size_t pl_pass_plan(const pl_arch *arch, const pl_pass_options *o, int n_threads)
{
    pl_model m = {.arch = *arch};
    pl_pass p = {.m = &m, .o = *o, .dims = model_dims_of(arch)};
    return lay_out(&p, n_threads, NULL);
}

pl_status pl_pass_new(pl_pass **out, pl_model *m, const pl_pass_options *o, pl_error *err)
{
    const int n_threads = pl_team_size(m->team);

    if (o->max_rows < 1 || o->max_logits < 0 || o->max_segments < 1 || o->max_ctx < 1 ||
        o->max_ctx > m->arch.n_ctx)
        return pl_fail(err, PL_E_INVAL, "pass: %d rows, %d logits, %d segments, context %d of %d",
            o->max_rows, o->max_logits, o->max_segments, o->max_ctx, m->arch.n_ctx);
    pl_pass *p = calloc(1, sizeof *p);
    if (!p)
        return pl_fail(err, PL_E_NOMEM, "pass: no memory");
    p->m = m;
    p->o = *o;
    p->dims = model_dims_of(&m->arch);
    p->kv_layer_stride = 1;
    const pl_status st = pl_arena_init(&p->arena, lay_out(p, n_threads, NULL), "pass", err);
    if (st != PL_OK) {
        free(p);
        return st;
    }
    lay_out(p, n_threads, &p->arena);
    *out = p;
    return PL_OK;
}

void pl_pass_free(pl_pass *p)
{
    if (!p)
        return;
    pl_arena_done(&p->arena);
    free(p);
}

/* ---- laying out rows ---- */

static pl_status add_segment(pl_pass *p, const pl_segment *s, int i_seg, pl_error *err)
{
    const int base = s->kv->n_tokens;
    int deepest = s->n_rows - 1;

    if (s->n_rows < 1 || p->n_rows + s->n_rows > p->o.max_rows || s->n_logits < 0 ||
        s->n_logits > s->n_rows || p->n_logits + s->n_logits > p->o.max_logits)
        return pl_fail(err, PL_E_INVAL, "pass: segment %d has %d rows, %d logits; over the limits",
            i_seg, s->n_rows, s->n_logits);
    if (s->parent && (!p->o.tree || s->n_rows > PL_DRAFT_MAX))
        return pl_fail(err, PL_E_INVAL, "pass: segment %d is a tree of %d rows", i_seg, s->n_rows);
    p->segs[i_seg] =
        (pass_seg){.s = *s, .row_begin = p->n_rows, .base = base, .logits_begin = p->n_logits};
    if (s->parent)
        deepest = 0;
    for (int r = 0; r < s->n_rows; r++) {
        row_info *row = &p->rows[p->n_rows + r];
        if (s->tokens[r] < 0 || s->tokens[r] >= p->dims.v)
            return pl_fail(err, PL_E_INVAL, "pass: token %d of segment %d, vocabulary of %d",
                (int)s->tokens[r], i_seg, p->dims.v);
        *row = (row_info){.token = s->tokens[r], .position = base + r, .seg = i_seg, .row = r};
        if (s->parent) {
            assert(r == 0 ? s->parent[0] < 0 : s->parent[r] >= 0 && s->parent[r] < r);
            row->position = r == 0 ? base : p->rows[p->n_rows + s->parent[r]].position + 1;
            if (row->position - base > deepest)
                deepest = row->position - base;
        }
    }
    if (base + deepest + 1 > p->o.max_ctx)
        return pl_fail(err, PL_E_INVAL, "pass: position %d of segment %d, context of %d",
            base + deepest, i_seg, p->o.max_ctx);
    if (!s->parent && s->kv->n_pages * PL_BLOCK < base + s->n_rows)
        return pl_fail(
            err, PL_E_INVAL, "pass: segment %d has no pages for %d rows", i_seg, s->n_rows);
    for (int r = s->n_rows - s->n_logits; r < s->n_rows; r++)
        p->logit_rows[p->n_logits++] = p->n_rows + r;
    p->n_rows += s->n_rows;
    return PL_OK;
}

pl_status pass_begin(pl_pass *p, pl_kv_pool *pool, const pl_segment *segs, int n, pl_error *err)
{
    pl_status st = PL_OK;

    if (n < 1 || n > p->o.max_segments)
        return pl_fail(err, PL_E_INVAL, "pass: %d segments, at most %d", n, p->o.max_segments);
    p->pool = pool;
    p->n_segs = n;
    p->n_rows = p->n_logits = 0;
    for (int i = 0; i < n && st == PL_OK; i++)
        st = add_segment(p, &segs[i], i, err);
    return st;
}

void pass_end(pl_pass *p)
{
    for (int i = 0; i < p->n_segs; i++)
        if (!p->segs[i].s.parent)
            p->segs[i].s.kv->n_tokens += p->segs[i].s.n_rows;
}

/* ---- phases ---- */

void model_gemm(const pl_pass *p, const uint16_t *x, size_t ldx, const uint16_t *w, float *y,
    size_t ldy, int m, int n, int k, int i_thread, int n_threads)
{
    pl_gemm g = {.x = x,
        .ldx = ldx,
        .w = w,
        .y = y,
        .ldy = ldy,
        .m = m,
        .n = n,
        .k = pl_pad32(k),
        .scratch = p->scratch[i_thread].gemm};
    pl_share(pl_pad32(n) / 32, 1, i_thread, n_threads, &g.panel_begin, &g.panel_end);
    if (g.panel_begin < g.panel_end)
        p->m->ops->gemm(&g);
}

/* The columns of this thread in an output of n columns: those of its panels. */
static void columns(int n, int i_thread, int n_threads, int *begin, int *end)
{
    pl_share(pl_pad32(n) / 32, 1, i_thread, n_threads, begin, end);
    *begin = *begin * 32 < n ? *begin * 32 : n;
    *end = *end * 32 < n ? *end * 32 : n;
}

void pass_embed(pl_pass *p, float *x, int i_thread, int n_threads)
{
    int begin, end;

    pl_share(p->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++)
        p->m->ops->packed_row(
            x + (size_t)r * (size_t)p->dims.c, p->m->embed, p->rows[r].token, p->dims.c);
    pl_team_barrier(p->m->team);
}

static void norm_rows(const pl_pass *p, const float *x, const float *w, uint16_t *y, float *inv,
    int i_thread, int n_threads)
{
    int begin, end;

    pl_share(p->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++) {
        const float s = p->m->ops->rmsnorm(y + (size_t)r * (size_t)p->dims.cp,
            x + (size_t)r * (size_t)p->dims.c, w, p->dims.c, p->m->arch.rms_eps);
        if (inv)
            inv[r] = s;
    }
    pl_team_barrier(p->m->team);
}

/* Rotate and round q and k, round v, put K and V where attention reads them. */
static void project_head(pl_pass *p, int layer, const layer_acts *a, int r, int head)
{
    const model_dims *d = &p->dims;
    const pl_ops *ops = p->m->ops;
    const row_info *row = &p->rows[r];
    const pass_seg *seg = &p->segs[row->seg];
    const float *x = a->qkv + (size_t)r * (size_t)d->qkv;
    const size_t rope = (size_t)row->position * (size_t)(d->d / 2);
    const float *cosine = p->m->rope_cos + rope, *sine = p->m->rope_sin + rope;

    if (head < d->h) {
        ops->rope(a->q + ((size_t)r * (size_t)d->h + (size_t)head) * (size_t)d->dp,
            x + (size_t)head * (size_t)d->d, cosine, sine, d->d);
        return;
    }
    const int kv_head = head - d->h;
    const size_t at = ((size_t)r * (size_t)d->hkv + (size_t)kv_head) * (size_t)d->dp;
    ops->rope(a->k + at, x + (size_t)(d->h + kv_head) * (size_t)d->d, cosine, sine, d->d);
    ops->round_bf16(a->v + at, x + (size_t)(d->h + d->hkv + kv_head) * (size_t)d->d, d->d);
    if (!seg->s.parent) {
        kv_put(p->pool, seg->s.kv, row->position, layer * p->kv_layer_stride, kv_head, a->k + at,
            a->v + at);
        return;
    }
    const size_t per_layer = (size_t)p->o.max_rows * (size_t)d->hkv * (size_t)d->dp;
    memcpy(p->tree_k + (size_t)layer * per_layer + at, a->k + at, (size_t)d->dp * sizeof *a->k);
    memcpy(p->tree_v + (size_t)layer * per_layer + at, a->v + at, (size_t)d->dp * sizeof *a->v);
}

static void project(pl_pass *p, int layer, const layer_acts *a, int i_thread, int n_threads)
{
    const int heads = p->dims.h + p->dims.hkv;
    int begin, end;

    pl_share(p->n_rows * heads, 1, i_thread, n_threads, &begin, &end);
    for (int i = begin; i < end; i++)
        project_head(p, layer, a, i / heads, i % heads);
    pl_team_barrier(p->m->team);
}

/* out = in + proj on the columns of this thread, which it has computed itself. */
static void add_residual(const pl_pass *p, float *out, const float *in, int i_thread, int n_threads)
{
    int begin, end;

    columns(p->dims.c, i_thread, n_threads, &begin, &end);
    for (int r = 0; r < p->n_rows && begin < end; r++) {
        const size_t at = (size_t)r * (size_t)p->dims.c + (size_t)begin;
        if (out != in)
            memcpy(out + at, in + at, (size_t)(end - begin) * sizeof *out);
        p->m->ops->add(
            out + at, p->proj + (size_t)r * (size_t)p->dims.cp + (size_t)begin, end - begin);
    }
    pl_team_barrier(p->m->team);
}

static void feed_forward(pl_pass *p, const layer_weights *w, const layer_acts *a, float *x_out,
    int i_thread, int n_threads)
{
    const model_dims *d = &p->dims;
    const size_t cp = (size_t)d->cp, fp = (size_t)d->fp;
    int begin, end;

    model_gemm(p, a->xn2, cp, w->gate, a->gate, fp, p->n_rows, d->f, d->c, i_thread, n_threads);
    model_gemm(p, a->xn2, cp, w->up, a->up, fp, p->n_rows, d->f, d->c, i_thread, n_threads);
    columns(d->f, i_thread, n_threads, &begin, &end);
    for (int r = 0; r < p->n_rows && begin < end; r++) {
        const size_t at = (size_t)r * fp + (size_t)begin;
        p->m->ops->silu_mul(a->hid + at, a->gate + at, a->up + at, end - begin);
    }
    pl_team_barrier(p->m->team);
    model_gemm(p, a->hid, fp, w->down, p->proj, cp, p->n_rows, d->c, d->f, i_thread, n_threads);
    add_residual(p, x_out, a->x_mid, i_thread, n_threads);
}

static double seconds_now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void pass_layer(
    pl_pass *p, int layer, const layer_acts *a, float *x_out, int i_thread, int n_threads)
{
    const model_dims *d = &p->dims;
    const layer_weights *w = &p->m->layers[layer];
    const size_t cp = (size_t)d->cp;

    /* 1. Norm, projections, rotation, cache. */
    norm_rows(p, a->x_in, w->attn_norm, a->xn, a->inv_attn, i_thread, n_threads);
    model_gemm(
        p, a->xn, cp, w->qkv, a->qkv, (size_t)d->qkv, p->n_rows, d->qkv, d->c, i_thread, n_threads);
    pl_team_barrier(p->m->team);
    project(p, layer, a, i_thread, n_threads);

    /* 2. Attention and its output projection. */
    const double begin = seconds_now();
    pass_attention(p, layer, a, i_thread, n_threads);
    if (i_thread == 0)
        p->attention_s += seconds_now() - begin;
    model_gemm(
        p, a->ao, (size_t)d->aop, w->o, p->proj, cp, p->n_rows, d->c, d->ao, i_thread, n_threads);
    add_residual(p, a->x_mid, a->x_in, i_thread, n_threads);

    /* 3. Feed-forward. */
    norm_rows(p, a->x_mid, w->ffn_norm, a->xn2, a->inv_ffn, i_thread, n_threads);
    feed_forward(p, w, a, x_out, i_thread, n_threads);
}

static void run_head(pl_pass *p, int i_thread, int n_threads)
{
    const model_dims *d = &p->dims;
    int begin, end;

    pl_share(p->n_logits, 1, i_thread, n_threads, &begin, &end);
    for (int i = begin; i < end; i++)
        p->m->ops->rmsnorm(p->final_xn + (size_t)i * (size_t)d->cp,
            p->acts.x_in + (size_t)p->logit_rows[i] * (size_t)d->c, p->m->final_norm, d->c,
            p->m->arch.rms_eps);
    pl_team_barrier(p->m->team);
    model_gemm(p, p->final_xn, (size_t)d->cp, p->m->head, p->logits, (size_t)d->vp, p->n_logits,
        d->v, d->c, i_thread, n_threads);
}

static void run_team(void *ctx, int i_thread, int n_threads)
{
    pl_pass *p = ctx;

    pass_embed(p, p->acts.x_in, i_thread, n_threads);
    for (int l = 0; l < p->m->arch.n_layers; l++) {
        pass_layer(p, l, &p->acts, p->acts.x_in, i_thread, n_threads);
        pass_capture_layer(p, l, i_thread, n_threads);
    }
    pass_capture_hidden(p, i_thread, n_threads);
    if (p->n_logits > 0)
        run_head(p, i_thread, n_threads);
}

pl_status pl_pass_run(
    pl_pass *p, pl_kv_pool *pool, const pl_segment *segs, int n_segs, pl_error *err)
{
    const pl_status st = pass_begin(p, pool, segs, n_segs, err);
    if (st != PL_OK)
        return st;
    if ((p->features.rows || p->features.hidden) && p->n_rows > p->features.room)
        return pl_fail(err, PL_E_INVAL, "pass: %d rows, and room for the features of %d", p->n_rows,
            p->features.room);
    p->attention_s = 0;
    pl_team_run(p->m->team, run_team, p);
    pass_end(p);
    return PL_OK;
}

double pl_pass_attention_seconds(const pl_pass *p)
{
    return p->attention_s;
}

static int logits_index(const pl_pass *p, int i_seg, int i_row)
{
    const pass_seg *s = &p->segs[i_seg];
    const int i = i_row - (s->s.n_rows - s->s.n_logits);
    assert(i_seg < p->n_segs && i >= 0 && i < s->s.n_logits);
    return s->logits_begin + i;
}

const float *pl_pass_logits(const pl_pass *p, int i_seg, int i_row)
{
    return p->logits + (size_t)logits_index(p, i_seg, i_row) * (size_t)p->dims.vp;
}

const uint16_t *pl_pass_hidden(const pl_pass *p, int i_seg, int i_row)
{
    return p->final_xn + (size_t)logits_index(p, i_seg, i_row) * (size_t)p->dims.cp;
}

void pl_pass_commit(pl_pass *p, pl_kv_pool *pool, int i_seg, const int16_t *rows, int n)
{
    const model_dims *d = &p->dims;
    const pass_seg *seg = &p->segs[i_seg];
    const size_t per_layer = (size_t)p->o.max_rows * (size_t)d->hkv * (size_t)d->dp;

    assert(seg->s.parent && n >= 1 && rows[0] == 0);
    for (int i = 0; i < n; i++)
        assert(i == 0 || seg->s.parent[rows[i]] == rows[i - 1]);
    for (int l = 0; l < p->m->arch.n_layers; l++)
        for (int i = 0; i < n; i++)
            for (int h = 0; h < d->hkv; h++) {
                const size_t r = (size_t)(seg->row_begin + rows[i]);
                const size_t at =
                    (size_t)l * per_layer + (r * (size_t)d->hkv + (size_t)h) * (size_t)d->dp;
                kv_put(pool, seg->s.kv, seg->base + i, l, h, p->tree_k + at, p->tree_v + at);
            }
    seg->s.kv->n_tokens += n;
}
