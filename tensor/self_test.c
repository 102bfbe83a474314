/* tensor/self_test.c - compares a backend with the formulas of NUMERICS before it is trusted.
 *
 * The product is checked against a scalar formula of this file (not gemm_ref) on inputs that span
 * ordinary values, wide exponents and denormals; the ops that a sampled token passes through are
 * checked against the plain C backend.  All inputs are fixed; the whole takes about a millisecond.
 */
#include "core/threads.h"
#include "tensor/cpu/cpu.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { M_MAX = 17, N_MAX = 64, K_MAX = 160 };

/* What the products are tried on. */
typedef struct room {
    uint16_t x[M_MAX * K_MAX];
    uint16_t w[N_MAX * K_MAX];
    float y[M_MAX * N_MAX];
    float expected[M_MAX * N_MAX];
} room;

typedef enum spread { ORDINARY, WIDE, TINY } spread;

static uint32_t next(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 32);
}

/* A bf16 value: of magnitude 2^-3 .. 2^1, 2^-30 .. 2^30, or around the square root of the smallest
 * normal number, so that products and sums underflow; of these some are denormal themselves. */
static uint16_t draw_bf16(uint64_t *state, spread s)
{
    const uint32_t r = next(state);
    const uint32_t sign_and_mantissa = r & 0x807fu;
    const uint32_t t = r >> 16 & 0xffu;
    const uint32_t exponent = s == ORDINARY ? 124 + t % 5
                              : s == WIDE   ? 97 + t % 61
                              : t < 16      ? 0
                                            : 60 + t % 8;
    return (uint16_t)(sign_and_mantissa | exponent << 7);
}

/* NUMERICS 1 for one output, straight from the text; the thread flushes denormals. */
static float formula(const uint16_t *x, const uint16_t *w, int j, int k, float acc)
{
    for (int k0 = 0; k0 < k; k0 += 32) {
        float chain[2] = {0, 0};
        for (int i = k0; i < k0 + 32; i++) {
            const double a = (double)pl_bf16_to_f32(x[i]);
            const double b = (double)pl_bf16_to_f32(w[pl_packed_index(j, i, k)]);
            chain[i % 2] = (float)(a * b + (double)chain[i % 2]);
        }
        acc += chain[0] + chain[1];
    }
    return acc;
}

static int try_gemm(const pl_ops *ops, room *s, void *scratch, int m, int n, int k, spread kind)
{
    uint64_t state = (uint64_t)(m * 1000003 + n * 1009 + k + kind);
    for (int i = 0; i < m * k; i++)
        s->x[i] = draw_bf16(&state, kind);
    for (int i = 0; i < pl_pad32(n) * k; i++)
        s->w[i] = draw_bf16(&state, kind);
    const int accumulate = m % 2;
    for (int i = 0; i < m * n; i++) {
        s->y[i] = pl_bf16_to_f32(draw_bf16(&state, kind));
        s->expected[i] = formula(s->x + i / n * k, s->w, i % n, k, accumulate ? s->y[i] : 0.0f);
    }
    const pl_gemm g = {.x = s->x,
        .ldx = (size_t)k,
        .w = s->w,
        .y = s->y,
        .ldy = (size_t)n,
        .m = m,
        .n = n,
        .k = k,
        .accumulate = accumulate,
        .panel_end = pl_pad32(n) / 32,
        .scratch = scratch};
    ops->gemm(&g);
    return memcmp(s->y, s->expected, sizeof *s->y * (size_t)(m * n)) == 0;
}

static pl_status check_gemm(const pl_ops *ops, pl_error *err)
{
    static const struct {
        int m, n, k;
    } shapes[] = {{1, 64, 160}, {2, 40, 96}, {6, 32, 96}, {17, 33, 64}};
    pl_status st = PL_OK;
    room *s = aligned_alloc(64, (sizeof *s + 63) / 64 * 64);
    void *scratch = aligned_alloc(64, PL_GEMM_SCRATCH);
    if (!s || !scratch) {
        st = pl_fail(err, PL_E_NOMEM, "self-test of backend %s: scratch", ops->name);
        goto done;
    }
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int kind = ORDINARY; kind <= TINY; kind++)
            if (!try_gemm(ops, s, scratch, shapes[i].m, shapes[i].n, shapes[i].k, (spread)kind)) {
                st = pl_fail(err, PL_E_NUMERIC,
                    "self-test of backend %s: gemm %dx%dx%d, input kind %d, differs from the "
                    "scalar "
                    "formula; choose another backend",
                    ops->name, shapes[i].m, shapes[i].n, shapes[i].k, kind);
                goto done;
            }
done:
    free(scratch);
    free(s);
    return st;
}

/* Inputs of the other ops. */
enum { WIDTH = 320, HEAD = 64, VOCAB = 1000 };
typedef struct rows_in {
    float a[VOCAB], b[VOCAB], c[VOCAB];
    uint16_t p[PL_BLOCK], v[PL_BLOCK][HEAD];
} rows_in;

/* What an op gave: compared as bytes. */
typedef struct rows_out {
    uint16_t h[WIDTH];
    float f[VOCAB], scalar[4];
    pl_drawn drawn;
} rows_out;

static void run_rmsnorm(const pl_ops *ops, const rows_in *in, rows_out *out)
{
    out->scalar[0] = ops->rmsnorm(out->h, in->a, in->b, WIDTH - 8, 1e-5f);
}

static void run_rope(const pl_ops *ops, const rows_in *in, rows_out *out)
{
    ops->rope(out->h, in->a, in->b, in->c, HEAD);
}

static void run_silu_mul(const pl_ops *ops, const rows_in *in, rows_out *out)
{
    ops->silu_mul(out->h, in->a, in->b, WIDTH);
}

static void run_add(const pl_ops *ops, const rows_in *in, rows_out *out)
{
    memcpy(out->f, in->a, sizeof out->f);
    ops->add(out->f, in->b, WIDTH);
}

static void run_attn_softmax(const pl_ops *ops, const rows_in *in, rows_out *out)
{
    ops->attn_softmax(out->h, out->scalar, out->scalar + 1, in->a, 51, 0.125f);
}

static void run_attn_pv_rows(const pl_ops *ops, const rows_in *in, rows_out *out)
{
    const uint16_t *rows[PL_BLOCK];
    for (int i = 0; i < PL_BLOCK; i++)
        rows[i] = in->v[i];
    ops->attn_pv_rows(out->f, in->p, rows, 51, HEAD);
}

static void run_attn_combine(const pl_ops *ops, const rows_in *in, rows_out *out)
{
    out->scalar[0] = 0.5f;
    out->scalar[1] = 7.0f;
    memcpy(out->f, in->a, sizeof out->f);
    ops->attn_combine(out->f, out->scalar, out->scalar + 1, in->b, 1.5f, 3.0f, HEAD, 0);
    ops->attn_finish(out->h, out->f, out->scalar[1], HEAD);
}

static void run_logsumexp(const pl_ops *ops, const rows_in *in, rows_out *out)
{
    ops->logsumexp(in->a, VOCAB, 0.7f, out->f, out->scalar, out->scalar + 1);
}

static void run_draw(const pl_ops *ops, const rows_in *in, rows_out *out)
{
    const pl_draw how = {.temperature = 0.9f, .top_p = 1, .key = 77, .uid = 5, .position = 123};
    pl_drawn drawn = {0};
    ops->draw(in->a, VOCAB, &how, out->f, &drawn);
    out->drawn.token = drawn.token;
    out->drawn.logprob = drawn.logprob;
    out->drawn.lse = drawn.lse;
    out->drawn.max = drawn.max;
    memset(out->f, 0, sizeof out->f); /* scratch of the op */
}

static pl_status check_rows(const pl_ops *ops, pl_error *err)
{
    static const struct {
        const char *name;
        void (*run)(const pl_ops *ops, const rows_in *in, rows_out *out);
    } probes[] = {{"rmsnorm", run_rmsnorm}, {"rope", run_rope}, {"silu_mul", run_silu_mul},
        {"add", run_add}, {"attn_softmax", run_attn_softmax}, {"attn_pv_rows", run_attn_pv_rows},
        {"attn_combine", run_attn_combine}, {"logsumexp", run_logsumexp}, {"draw", run_draw}};
    pl_status st = PL_OK;
    rows_in *in = aligned_alloc(64, (sizeof *in + 63) / 64 * 64);
    rows_out *out = aligned_alloc(64, (2 * sizeof *out + 63) / 64 * 64);
    if (!in || !out) {
        st = pl_fail(err, PL_E_NOMEM, "self-test of backend %s: scratch", ops->name);
        goto done;
    }
    uint64_t state = 1;
    for (int i = 0; i < VOCAB; i++) {
        in->a[i] = 4 * pl_bf16_to_f32(draw_bf16(&state, ORDINARY)) + 1e-3f * (float)i;
        in->b[i] = pl_bf16_to_f32(draw_bf16(&state, ORDINARY));
        in->c[i] = pl_bf16_to_f32(draw_bf16(&state, ORDINARY));
    }
    for (int i = 0; i < PL_BLOCK; i++) {
        in->p[i] = i < 51 ? draw_bf16(&state, ORDINARY) & 0x7fffu : 0;
        for (int j = 0; j < HEAD; j++)
            in->v[i][j] = draw_bf16(&state, ORDINARY);
    }
    for (size_t i = 0; i < sizeof probes / sizeof *probes; i++) {
        memset(out, 0, 2 * sizeof *out);
        probes[i].run(ops, in, &out[0]);
        probes[i].run(backend_ref(), in, &out[1]);
        if (memcmp(&out[0], &out[1], sizeof *out) != 0) {
            st = pl_fail(err, PL_E_NUMERIC,
                "self-test of backend %s: %s differs from plain C; choose another backend",
                ops->name, probes[i].name);
            goto done;
        }
    }
done:
    free(out);
    free(in);
    return st;
}

pl_status pl_ops_self_test(const pl_ops *ops, pl_error *err)
{
    const unsigned old_mode = pl_fp_enter();
    pl_status st = check_gemm(ops, err);
    if (st == PL_OK)
        st = check_rows(ops, err);
#if defined(__x86_64__)
    _mm_setcsr(old_mode);
#else
    (void)old_mode;
#endif
    return st;
}
