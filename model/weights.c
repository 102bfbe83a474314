/* model/weights.c - the packed bf16 weights of a model: allocation, loading, packing anew.
 *
 * All weights stand in one arena in the order in which a pass reads them, so that a kernel that
 * prefetches past the end of its matrix reads the next one.  Every thread packs its own panels. */
#include "model/internal.h"

#include "core/rng.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { LAYER_MATRICES = 5 };

model_dims model_dims_of(const pl_arch *a)
{
    model_dims d = {0};
    d.c = a->n_embd;
    d.cp = pl_pad32(d.c);
    d.f = a->n_ff;
    d.fp = pl_pad32(d.f);
    d.d = a->head_dim;
    d.dp = pl_pad32(d.d);
    d.h = a->n_heads;
    d.hkv = a->n_kv_heads;
    d.group = d.h / d.hkv;
    d.qkv = (d.h + 2 * d.hkv) * d.d;
    d.ao = d.h * d.d;
    d.aop = pl_pad32(d.ao);
    d.v = a->n_vocab;
    d.vp = pl_pad32(d.v);
    return d;
}

/* Take memory from the arena, or only count it (arena NULL). */
static void *take(pl_arena *arena, size_t *total, size_t n_bytes)
{
    *total += pl_arena_cost(n_bytes);
    return arena ? pl_arena_alloc(arena, n_bytes) : NULL;
}

static uint16_t *take_packed(pl_arena *arena, size_t *total, int n, int k)
{
    return take(arena, total, pl_packed_elements(n, k) * sizeof(uint16_t));
}

static size_t lay_out(pl_model *m, pl_arena *arena)
{
    const model_dims d = model_dims_of(&m->arch);
    const size_t rope = (size_t)m->arch.n_ctx * (size_t)(d.d / 2) * sizeof(float);
    size_t total = 0;

    for (int l = 0; l < m->arch.n_layers; l++) {
        layer_weights w = {0};
        w.attn_norm = take(arena, &total, (size_t)d.c * sizeof(float));
        w.qkv = take_packed(arena, &total, d.qkv, d.c);
        w.o = take_packed(arena, &total, d.c, d.ao);
        w.ffn_norm = take(arena, &total, (size_t)d.c * sizeof(float));
        w.gate = take_packed(arena, &total, d.f, d.c);
        w.up = take_packed(arena, &total, d.f, d.c);
        w.down = take_packed(arena, &total, d.c, d.f);
        if (arena)
            m->layers[l] = w;
    }
    m->final_norm = take(arena, &total, (size_t)d.c * sizeof(float));
    m->head = take_packed(arena, &total, d.v, d.c);
    m->embed = m->arch.tied ? m->head : take_packed(arena, &total, d.v, d.c);
    m->rope_cos = take(arena, &total, rope);
    m->rope_sin = take(arena, &total, rope);
    for (int l = 0; m->with_backward && l < m->arch.n_layers; l++) {
        layer_weights w = {0};
        w.qkv_t = take_packed(arena, &total, d.c, d.qkv);
        w.o_t = take_packed(arena, &total, d.ao, d.c);
        w.gate_t = take_packed(arena, &total, d.c, d.f);
        w.up_t = take_packed(arena, &total, d.c, d.f);
        w.down_t = take_packed(arena, &total, d.f, d.c);
        if (arena) {
            m->layers[l].qkv_t = w.qkv_t;
            m->layers[l].o_t = w.o_t;
            m->layers[l].gate_t = w.gate_t;
            m->layers[l].up_t = w.up_t;
            m->layers[l].down_t = w.down_t;
        }
    }
    if (m->with_backward)
        m->head_t = take_packed(arena, &total, d.c, d.v);
    return total;
}

size_t pl_model_plan(const pl_arch *arch, int with_backward)
{
    pl_model m = {.arch = *arch, .with_backward = with_backward};
    return lay_out(&m, NULL);
}

/* Frequency of RoPE pair i, with the llama3 stretching of long wavelengths where it is asked for
 * (Hugging Face modeling_rope_utils, "llama3"). */
static double rope_frequency(const pl_arch *a, int i)
{
    const double pi = 3.14159265358979323846;
    const double f = pl_exp_d(-(2.0 * i / a->head_dim) * pl_log_d(a->rope_theta));
    if (a->rope_type == PL_ROPE_DEFAULT)
        return f;
    const double wavelength = 2.0 * pi / f;
    const double longest = a->rope_original_ctx / a->rope_low_freq_factor;
    const double shortest = a->rope_original_ctx / a->rope_high_freq_factor;
    if (wavelength > longest)
        return f / a->rope_factor;
    if (wavelength < shortest)
        return f;
    const double smooth = (a->rope_original_ctx / wavelength - a->rope_low_freq_factor) /
                          (a->rope_high_freq_factor - a->rope_low_freq_factor);
    return (1.0 - smooth) * (f / a->rope_factor) + smooth * f;
}

static void fill_rope(void *ctx, int i_thread, int n_threads)
{
    pl_model *m = ctx;
    const int half = m->arch.head_dim / 2;
    int begin, end;

    pl_share(m->arch.n_ctx, 1, i_thread, n_threads, &begin, &end);
    for (int i = 0; i < half; i++) {
        const double f = rope_frequency(&m->arch, i);
        for (int p = begin; p < end; p++) {
            double s, c;
            pl_sincos_d(p * f, &s, &c);
            m->rope_cos[(size_t)p * (size_t)half + (size_t)i] = (float)c;
            m->rope_sin[(size_t)p * (size_t)half + (size_t)i] = (float)s;
        }
    }
}

pl_status pl_model_new(pl_model **out, const pl_arch *arch, const pl_ops *ops, pl_team *team,
    int with_backward, pl_error *err)
{
    pl_status st = pl_arch_check(arch, err);
    if (st != PL_OK)
        return st;
    pl_model *m = calloc(1, sizeof *m);
    if (!m)
        return pl_fail(err, PL_E_NOMEM, "model: no memory");
    m->arch = *arch;
    m->ops = ops;
    m->team = team;
    m->with_backward = with_backward;
    m->layers = calloc((size_t)arch->n_layers, sizeof *m->layers);
    if (!m->layers) {
        st = pl_fail(err, PL_E_NOMEM, "model: no memory for %d layers", arch->n_layers);
        goto fail;
    }
    st = pl_param_table_new(&m->params, arch, err);
    if (st != PL_OK)
        goto fail;
    st = pl_arena_init(&m->arena, lay_out(m, NULL), "weights", err);
    if (st != PL_OK)
        goto fail;
    lay_out(m, &m->arena);
    pl_team_run(team, fill_rope, m);
    *out = m;
    return PL_OK;

fail:
    pl_model_free(m);
    return st;
}

void pl_model_free(pl_model *m)
{
    if (!m)
        return;
    pl_arena_done(&m->arena);
    pl_param_table_free(m->params);
    free(m->layers);
    free(m);
}

static weights_matrix matrix_of(
    const pl_model *m, uint16_t *w, uint16_t *w_t, int layer, const pl_param_kind *kinds, int n)
{
    weights_matrix x = {.packed = w, .packed_t = w_t, .n_parts = n};
    for (int i = 0; i < n; i++) {
        x.part[i] = pl_param_find(m->params, kinds[i], layer);
        x.rows += x.part[i]->rows;
        x.cols = x.part[i]->cols;
    }
    return x;
}

int weights_n_matrices(const pl_model *m)
{
    return m->arch.n_layers * LAYER_MATRICES + (m->arch.tied ? 1 : 2);
}

weights_matrix weights_matrix_at(const pl_model *m, int i)
{
    static const pl_param_kind qkv[] = {PL_P_Q, PL_P_K, PL_P_V}, o = PL_P_O, gate = PL_P_GATE,
                               up = PL_P_UP, down = PL_P_DOWN, embed = PL_P_EMBED, head = PL_P_HEAD;
    const int l = i / LAYER_MATRICES;
    if (l >= m->arch.n_layers) {
        if (i == m->arch.n_layers * LAYER_MATRICES)
            return matrix_of(m, m->head, m->head_t, -1, m->arch.tied ? &embed : &head, 1);
        return matrix_of(m, m->embed, NULL, -1, &embed, 1);
    }
    const layer_weights *w = &m->layers[l];
    switch (i % LAYER_MATRICES) {
    case 0:
        return matrix_of(m, w->qkv, w->qkv_t, l, qkv, 3);
    case 1:
        return matrix_of(m, w->o, w->o_t, l, &o, 1);
    case 2:
        return matrix_of(m, w->gate, w->gate_t, l, &gate, 1);
    case 3:
        return matrix_of(m, w->up, w->up_t, l, &up, 1);
    default:
        return matrix_of(m, w->down, w->down_t, l, &down, 1);
    }
}

typedef struct pack_job {
    pl_model *m;
    const pl_source *src; /* NULL: from masters */
    float *masters;       /* NULL: not kept */
    float **rows;         /* [threads] 32 rows of the widest matrix */
    pl_status *st;        /* [threads] */
    pl_error *err;        /* [threads] */
} pack_job;

/* Row r of a stacked matrix into out. */
static pl_status fetch_row(
    const pack_job *j, const weights_matrix *x, int r, float *out, pl_error *err)
{
    int i = 0;
    while (r >= x->part[i]->rows)
        r -= x->part[i++]->rows;
    const size_t cols = (size_t)x->cols;
    float *master = j->masters ? j->masters + x->part[i]->offset + (size_t)r * cols : NULL;
    if (!j->src) {
        memcpy(out, master, cols * sizeof *out);
        return PL_OK;
    }
    const pl_status st = pl_source_read_rows(j->src, x->part[i], r, 1, out, err);
    if (st == PL_OK && master)
        memcpy(master, out, cols * sizeof *out);
    return st;
}

static pl_status pack_matrix(
    const pack_job *j, const weights_matrix *x, int i_thread, int n_threads)
{
    float *rows = j->rows[i_thread];
    const size_t panel_elements = 32 * (size_t)pl_pad32(x->cols);
    int begin, end;

    pl_share(pl_pad32(x->rows) / 32, 1, i_thread, n_threads, &begin, &end);
    for (int p = begin; p < end; p++) {
        const int n = x->rows - 32 * p < 32 ? x->rows - 32 * p : 32;
        for (int r = 0; r < n; r++) {
            const pl_status st =
                fetch_row(j, x, 32 * p + r, rows + (size_t)r * (size_t)x->cols, &j->err[i_thread]);
            if (st != PL_OK)
                return st;
        }
        j->m->ops->pack_nk(
            x->packed + (size_t)p * panel_elements, rows, (size_t)x->cols, n, x->cols, 0, 1);
    }
    return PL_OK;
}

static pl_status pack_norm(
    const pack_job *j, pl_param_kind kind, int layer, float *out, pl_error *err)
{
    const pl_param *p = pl_param_find(j->m->params, kind, layer);
    if (j->src) {
        const pl_status st = pl_source_read(j->src, p, out, err);
        if (st != PL_OK)
            return st;
        if (j->masters)
            memcpy(j->masters + p->offset, out, (size_t)p->cols * sizeof *out);
    } else {
        memcpy(out, j->masters + p->offset, (size_t)p->cols * sizeof *out);
    }
    for (int i = 0; i < p->cols; i++)
        out[i] = pl_bf16_to_f32(pl_f32_to_bf16(out[i]));
    return PL_OK;
}

static pl_status pack_norms(const pack_job *j, pl_error *err)
{
    pl_status st = pack_norm(j, PL_P_FINAL_NORM, -1, j->m->final_norm, err);
    for (int l = 0; st == PL_OK && l < j->m->arch.n_layers; l++) {
        st = pack_norm(j, PL_P_ATTN_NORM, l, j->m->layers[l].attn_norm, err);
        if (st == PL_OK)
            st = pack_norm(j, PL_P_FFN_NORM, l, j->m->layers[l].ffn_norm, err);
    }
    return st;
}

/* The packing with outputs and inputs exchanged; masters are complete.  Where the parts of a
 * stacked matrix do not touch in the flat array, its rows go one by one. */
static void pack_transposed(const pack_job *j, const weights_matrix *x, int i_thread, int n_threads)
{
    const float *base = j->masters + x->part[0]->offset;
    const int k_pad = pl_pad32(x->rows);
    int begin, end, contiguous = 1, r = 0;

    for (int i = 1; i < x->n_parts; i++)
        contiguous &= x->part[i]->offset ==
                      x->part[i - 1]->offset + (size_t)x->part[i - 1]->rows * (size_t)x->cols;
    pl_share(pl_pad32(x->cols) / 32, 1, i_thread, n_threads, &begin, &end);
    if (contiguous) {
        j->m->ops->pack_kn(x->packed_t, base, (size_t)x->cols, x->cols, x->rows, begin, end);
        return;
    }
    for (int i = 0; i < x->n_parts; i++)
        for (int pr = 0; pr < x->part[i]->rows; pr++, r++) {
            const float *row = j->masters + x->part[i]->offset + (size_t)pr * (size_t)x->cols;
            for (int c = 32 * begin; c < 32 * end && c < x->cols; c++)
                x->packed_t[pl_packed_index(c, r, k_pad)] = pl_f32_to_bf16(row[c]);
        }
}

static void pack_team(void *ctx, int i_thread, int n_threads)
{
    pack_job *j = ctx;
    pl_status st = PL_OK;

    for (int i = 0; st == PL_OK && i < weights_n_matrices(j->m); i++) {
        const weights_matrix x = weights_matrix_at(j->m, i);
        st = pack_matrix(j, &x, i_thread, n_threads);
    }
    if (st == PL_OK && i_thread == 0)
        st = pack_norms(j, &j->err[0]);
    j->st[i_thread] = st;
    if (!j->m->with_backward)
        return;
    pl_team_barrier(j->m->team);
    for (int i = 0; i < weights_n_matrices(j->m); i++) {
        const weights_matrix x = weights_matrix_at(j->m, i);
        if (x.packed_t)
            pack_transposed(j, &x, i_thread, n_threads);
    }
}

static pl_status pack_all(pack_job *j, pl_error *err)
{
    const int n = pl_team_size(j->m->team);
    const model_dims d = model_dims_of(&j->m->arch);
    const int widest = d.f > d.c ? d.f : d.c, cols = widest > d.ao ? widest : d.ao;
    const size_t stride = 32 * (size_t)cols;
    float *buffer = malloc((size_t)n * stride * sizeof *buffer);
    pl_status st = PL_OK;

    j->rows = calloc((size_t)n, sizeof *j->rows);
    j->st = calloc((size_t)n, sizeof *j->st);
    j->err = calloc((size_t)n, sizeof *j->err);
    if (!buffer || !j->rows || !j->st || !j->err) {
        st = pl_fail(err, PL_E_NOMEM, "packing weights: no memory");
        goto done;
    }
    for (int i = 0; i < n; i++)
        j->rows[i] = buffer + (size_t)i * stride;
    pl_team_run(j->m->team, pack_team, j);
    for (int i = 0; i < n && st == PL_OK; i++)
        if (j->st[i] != PL_OK)
            st = pl_fail(err, j->st[i], "%s", j->err[i].msg);
done:
    free(buffer);
    free(j->rows);
    free(j->st);
    free(j->err);
    return st;
}

pl_status pl_model_load(pl_model *m, const pl_source *src, float *masters, pl_error *err)
{
    pack_job j = {.m = m, .src = src, .masters = masters};
    assert(masters || !m->with_backward);
    if (!masters && pl_source_file(src))
        return weights_load_file(m, src, err);
    return pack_all(&j, err);
}

pl_status pl_model_pack(pl_model *m, const float *masters, pl_error *err)
{
    /* fetch_row only reads masters when there is no source. */
    pack_job j = {.m = m, .masters = (float *)(uintptr_t)masters};
    return pack_all(&j, err);
}

const pl_arch *pl_model_arch(const pl_model *m)
{
    return &m->arch;
}

const pl_param_table *pl_model_params(const pl_model *m)
{
    return m->params;
}

const pl_ops *pl_model_ops(const pl_model *m)
{
    return m->ops;
}

pl_team *pl_model_team(const pl_model *m)
{
    return m->team;
}

size_t pl_model_weight_bytes(const pl_model *m)
{
    size_t n = 0;
    for (int i = 0; i < weights_n_matrices(m); i++) {
        const weights_matrix x = weights_matrix_at(m, i);
        if (x.packed != m->embed || m->arch.tied)
            n += pl_packed_elements(x.rows, x.cols) * sizeof(uint16_t);
    }
    return n;
}
