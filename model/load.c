/* model/load.c - packed weights straight from the bytes of a bf16 file, piece by piece.
 *
 * The values are the file's own, so packing only moves them: 16 rows by 16 pairs of columns are a
 * block of 32-bit words that is turned over, four by four in registers (pl_packed_index).  Plain
 * vectors of 16 bytes: this runs at the speed of memory on every ISA. */
#include "model/internal.h"
#include "model/source_file.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum { PANEL = 32, SIDE = 16, BLOCK_BYTES = SIDE * SIDE * 4 };

typedef uint32_t words __attribute__((vector_size(16)));
typedef uint16_t halves __attribute__((vector_size(16)));

/* Lanes of bad become non-zero where v holds NaN or infinity. */
static inline halves find_bad(halves bad, words v)
{
    const halves exponent = (halves)v & 0x7f80;
    return bad | (halves)(exponent == 0x7f80);
}

/* Packed weights are read much later: past the cache, so that they are not read for writing. */
static inline void put_past_cache(unsigned char *out, words v)
{
#ifdef __SSE2__
    _mm_stream_si128((__m128i *)(void *)out, (__m128i)v);
#else
    memcpy(out, &v, sizeof v);
#endif
}

static void finish_stores(void)
{
#ifdef __SSE2__
    _mm_sfence();
#endif
}

/* Four rows of four words, turned over, into four rows of a block. */
static inline void flip4(unsigned char *out, const words v[4])
{
    const words a = __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5);
    const words b = __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5);
    const words c = __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7);
    const words d = __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
    const words r[4] = {__builtin_shufflevector(a, b, 0, 1, 4, 5),
        __builtin_shufflevector(a, b, 2, 3, 6, 7), __builtin_shufflevector(c, d, 0, 1, 4, 5),
        __builtin_shufflevector(c, d, 2, 3, 6, 7)};

    for (int i = 0; i < 4; i++)
        put_past_cache(out + (size_t)i * SIDE * 4, r[i]);
}

/* One block of the packed layout from 16 rows of 64 bytes. */
static halves flip_block(
    unsigned char *out, const unsigned char *const rows[SIDE], size_t at, halves bad)
{
    for (int c = 0; c < SIDE; c += 4) /* whole lines of the block, one after the other */
        for (int r = 0; r < SIDE; r += 4) {
            words v[4];
            for (int i = 0; i < 4; i++) {
                memcpy(&v[i], rows[r + i] + at + (size_t)c * 4, sizeof v[i]);
                bad = find_bad(bad, v[i]);
            }
            flip4(out + ((size_t)c * SIDE + (size_t)r) * 4, v);
        }
    return bad;
}

/* The same at the edge: n rows, n_bytes of each; zeros beyond. */
static halves flip_edge(unsigned char *out, const unsigned char *const *rows, int n, size_t at,
    size_t n_bytes, halves bad)
{
    unsigned char whole[SIDE][SIDE * 4] = {{0}};
    const unsigned char *copies[SIDE];

    for (int i = 0; i < SIDE; i++) {
        copies[i] = whole[i];
        if (i < n)
            memcpy(whole[i], rows[i] + at, n_bytes);
    }
    return flip_block(out, copies, 0, bad);
}

/* A panel of n <= 32 rows of k values.  Returns 0 when one is NaN or infinite. */
static int pack_panel(uint16_t *packed, const unsigned char *const rows[PANEL], int n, int k)
{
    unsigned char *out = (unsigned char *)packed;
    halves bad = {0};

    for (int k0 = 0; k0 < k; k0 += 2 * SIDE) {
        const size_t at = (size_t)k0 * 2;
        const size_t n_bytes = k - k0 < 2 * SIDE ? (size_t)(k - k0) * 2 : SIDE * 4;
        for (int half = 0; half < 2; half++, out += BLOCK_BYTES) {
            const int left = n - half * SIDE, here = left < 0 ? 0 : left < SIDE ? left : SIDE;
            if (here == SIDE && n_bytes == SIDE * 4)
                bad = flip_block(out, rows + half * SIDE, at, bad);
            else
                bad = flip_edge(out, rows + half * SIDE, here, at, n_bytes, bad);
        }
    }
    uint64_t any[2];
    memcpy(any, &bad, sizeof any);
    return (any[0] | any[1]) == 0;
}

/* What is loaded, and from where. */
typedef struct range {
    const pl_model *m;
    const pl_source *src;
    const unsigned char *file;
    size_t begin, end;
} range;

/* NULL: the source has no such parameter. */
static const source_tensor *tensor_of(const range *g, const pl_param *p)
{
    const pl_param *known = pl_param_find(g->src->table, p->kind, p->layer);

    if (!known || known->rows != p->rows || known->cols != p->cols)
        return NULL;
    return &g->src->tensors[known - g->src->table->params];
}

static pl_status fail_bad(const range *g, const pl_param *p, pl_error *err)
{
    return pl_fail(err, PL_E_NUMERIC,
        "model '%s': parameter '%s' holds NaN or infinity: the file is damaged", g->src->path,
        p->name);
}

static pl_status fail_shape(const range *g, const pl_param *p, pl_error *err)
{
    return pl_fail(
        err, PL_E_INVAL, "model '%s' has no parameter '%s' of that shape", g->src->path, p->name);
}

/* Row r of a stacked matrix. */
static const unsigned char *row_at(
    const weights_matrix *x, const source_tensor *const tensors[WEIGHTS_PARTS], int r)
{
    int i = 0;

    while (i + 1 < x->n_parts && r >= x->part[i]->rows)
        r -= x->part[i++]->rows;
    return tensors[i]->data + (size_t)r * (size_t)x->cols * 2;
}

/* Rows 32 i_panel .. of a stacked matrix, wherever they stand. */
static pl_status load_panel(const range *g, const weights_matrix *x,
    const source_tensor *const tensors[WEIGHTS_PARTS], int i_panel, pl_error *err)
{
    const unsigned char *rows[PANEL] = {0};
    const int r0 = PANEL * i_panel, n = x->rows - r0 < PANEL ? x->rows - r0 : PANEL;
    const size_t panel_elements = PANEL * (size_t)pl_pad32(x->cols);

    for (int i = 0; i < n; i++)
        rows[i] = row_at(x, tensors, r0 + i);
    if (pack_panel(x->packed + (size_t)i_panel * panel_elements, rows, n, x->cols))
        return PL_OK;
    return fail_bad(g, x->part[0], err);
}

/* The panels whose first row begins in the range. */
static pl_status load_matrix(const range *g, const weights_matrix *x, pl_error *err)
{
    const source_tensor *tensors[WEIGHTS_PARTS] = {0};
    const size_t row_bytes = (size_t)x->cols * 2, step = PANEL * row_bytes;
    int r0 = 0; /* first row of a part in the stack */

    for (int i = 0; i < x->n_parts; i++) {
        tensors[i] = tensor_of(g, x->part[i]);
        if (!tensors[i])
            return fail_shape(g, x->part[i], err);
    }
    for (int i = 0; i < x->n_parts; r0 += x->part[i++]->rows) {
        const int p0 = (r0 + PANEL - 1) / PANEL, p1 = (r0 + x->part[i]->rows - 1) / PANEL + 1;
        const size_t base =
            (size_t)(tensors[i]->data - g->file) + (size_t)(PANEL * p0 - r0) * row_bytes;
        if (p1 <= p0 || base >= g->end || base + (size_t)(p1 - p0) * step <= g->begin)
            continue;
        size_t p = g->begin > base ? (g->begin - base + step - 1) / step : 0;
        for (; p < (size_t)(p1 - p0) && base + p * step < g->end; p++) {
            const pl_status st = load_panel(g, x, tensors, p0 + (int)p, err);
            if (st != PL_OK)
                return st;
        }
    }
    return PL_OK;
}

static pl_status load_norm(const range *g, pl_param_kind kind, int layer, float *out, pl_error *err)
{
    const pl_param *p = pl_param_find(g->m->params, kind, layer);
    const source_tensor *t = tensor_of(g, p);

    if (!t)
        return fail_shape(g, p, err);
    const size_t at = (size_t)(t->data - g->file);
    if (at < g->begin || at >= g->end)
        return PL_OK;
    for (int i = 0; i < p->cols; i++) {
        uint16_t half;
        memcpy(&half, t->data + 2 * (size_t)i, sizeof half);
        if ((half & 0x7f80) == 0x7f80)
            return fail_bad(g, p, err);
        out[i] = pl_bf16_to_f32(half);
    }
    return PL_OK;
}

/* As model/source.c does: a mapped page beyond the end of a file is a signal. */
static pl_status check_length(const pl_file *f, pl_error *err)
{
    struct stat info;

    if (stat(f->path, &info) != 0) {
        assert(errno != EFAULT);
        return PL_OK; /* removed or renamed: the mapping keeps the old file */
    }
    if ((uint64_t)info.st_size < f->size)
        return pl_fail(err, PL_E_IO, "model file '%s' became shorter while it was in use", f->path);
    return PL_OK;
}

pl_status pl_model_load_bytes(
    pl_model *m, const pl_source *src, size_t begin, size_t end, pl_error *err)
{
    const pl_file *f = pl_source_file(src);

    assert(!m->with_backward);
    if (!f)
        return pl_fail(err, PL_E_INVAL, "model '%s' is not one file of bf16", src->path);
    const range g = {m, src, f->data, begin, end};
    pl_status st = check_length(f, err);
    for (int i = 0; st == PL_OK && i < weights_n_matrices(m); i++) {
        const weights_matrix x = weights_matrix_at(m, i);
        st = load_matrix(&g, &x, err);
    }
    for (int l = 0; st == PL_OK && l < m->arch.n_layers; l++) {
        st = load_norm(&g, PL_P_ATTN_NORM, l, m->layers[l].attn_norm, err);
        if (st == PL_OK)
            st = load_norm(&g, PL_P_FFN_NORM, l, m->layers[l].ffn_norm, err);
    }
    if (st == PL_OK)
        st = load_norm(&g, PL_P_FINAL_NORM, -1, m->final_norm, err);
    finish_stores();
    return st;
}

/* ---- the whole file ---- */

typedef struct file_job {
    pl_model *m;
    const pl_source *src;
    pl_status *st; /* [threads] */
    pl_error *err; /* [threads] */
} file_job;

static void load_share(void *ctx, int i_thread, int n_threads)
{
    const file_job *j = ctx;
    const size_t n = pl_source_file(j->src)->size, share = n / (size_t)n_threads + 1;
    const size_t begin = (size_t)i_thread * share;

    if (begin < n)
        j->st[i_thread] =
            pl_model_load_bytes(j->m, j->src, begin, begin + share, &j->err[i_thread]);
}

pl_status weights_load_file(pl_model *m, const pl_source *src, pl_error *err)
{
    const int n = pl_team_size(m->team);
    file_job j = {m, src, calloc((size_t)n, sizeof *j.st), calloc((size_t)n, sizeof *j.err)};
    pl_status st = PL_OK;

    if (!j.st || !j.err)
        st = pl_fail(err, PL_E_NOMEM, "loading weights: no memory");
    else
        pl_team_run(m->team, load_share, &j);
    for (int i = 0; i < n && st == PL_OK; i++)
        if (j.st[i] != PL_OK)
            st = pl_fail(err, j.st[i], "%s", j.err[i].msg);
    free(j.st);
    free(j.err);
    return st;
}
