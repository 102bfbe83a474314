/* Claims tested: exp in fp32 keeps its error bound and its exact points; the ops on rows and on
 * attention blocks follow NUMERICS 2 (against sums in double, and against the order of summation
 * written out); the product of softmax weights and values equals the canonical product of a page
 * padded with zeros; the builds agree bit for bit on ordinary and hostile inputs. */
#include "core/rng.h"
#include "tensor/cpu/math.h"
#include "tests/tensor/ops_support.h"

#include <stdlib.h>

Test(rows, exp_stays_within_one_and_a_tenth_ulp)
{
    double worst = 0;
    float last = 0;
    (void)pl_fp_enter();
    for (double x = -87.33; x < 88.7; x += 0.0000371) {
        const float f = (float)x, y = exp_f32(f);
        const double exact = pl_exp_d((double)f);
        const double ulp = (double)nextafterf((float)exact, INFINITY) - (double)(float)exact;
        const double error = fabs((double)y - exact) / ulp;
        worst = error > worst ? error : worst;
        cr_assert(y >= last * 0.9999998f, "not monotone within an ulp at %a", (double)f);
        last = y;
    }
    cr_assert(worst < 1.1, "worst error %.3f ulp", worst);
}

Test(rows, exp_is_exact_at_zero_and_at_the_ends)
{
    (void)pl_fp_enter();
    cr_assert(bits_of(exp_f32(0.0f)) == bits_of(1.0f));
    cr_assert(bits_of(exp_f32(-0.0f)) == bits_of(1.0f));
    cr_assert(bits_of(exp_f32(-INFINITY)) == 0);
    cr_assert(bits_of(exp_f32(-87.5f)) == 0);
    cr_assert(bits_of(exp_f32(-3e38f)) == 0);
    cr_assert(exp_f32(-87.33f) > 0);
    cr_assert(exp_f32(INFINITY) == INFINITY);
    cr_assert(exp_f32(89.0f) == INFINITY);
    cr_assert(exp_f32(88.7f) < INFINITY);
    cr_assert(exp_f32(NAN) != exp_f32(NAN) && exp_f32(-NAN) != exp_f32(-NAN));
}

Test(rows, lanes_add_in_the_order_of_the_law)
{
    float x[100], lane[16] = {0}, by_macro[16] = {0};
    uint64_t s = 1;
    for (int i = 0; i < 100; i++) {
        x[i] = normal(&s) * 1e3f;
        lane[i % 16] += x[i];
    }
    PL_LANES_ADD(by_macro, 100, x[i_]);
    float t[8], q[4];
    for (int i = 0; i < 8; i++)
        t[i] = lane[i] + lane[i + 8];
    for (int i = 0; i < 4; i++)
        q[i] = t[i] + t[i + 4];
    const float sum = (q[0] + q[2]) + (q[1] + q[3]);
    cr_assert(bits_of(lanes_sum(by_macro)) == bits_of(sum));
}

Test(rows, rmsnorm_follows_its_formula_to_the_bit_and_pads_with_zeros)
{
    static float x[WIDTH], w[WIDTH];
    uint16_t y[WIDTH];
    pl_ops ops[3];
    uint64_t s = 5;

    builds(ops);
    for (int n = 1; n < 900; n++) {
        float lane[16] = {0};
        fill(x, n, &s, ORDINARY);
        fill(w, n, &s, ORDINARY);
        memset(y, 0xff, sizeof y);
        for (int i = 0; i < n; i++)
            lane[i % 16] += x[i] * x[i];
        const float inv = 1.0f / sqrtf(lanes_sum(lane) / (float)n + 1e-5f);
        cr_assert(bits_of(ops[0].rmsnorm(y, x, w, n, 1e-5f)) == bits_of(inv), "n %d", n);
        for (int i = 0; i < n; i++)
            cr_assert(y[i] == pl_f32_to_bf16((x[i] * inv) * w[i]), "n %d, element %d", n, i);
        for (int i = n; i < pl_pad32(n); i++)
            cr_assert(y[i] == 0);
        cr_assert(y[pl_pad32(n)] == 0xffff);
    }
}

Test(rows, rope_turns_each_pair_by_its_angle)
{
    float x[64], c[32], sn[32];
    uint16_t y[64];
    pl_ops ops[3];
    uint64_t s = 6;

    builds(ops);
    fill(x, 64, &s, ORDINARY);
    for (int i = 0; i < 32; i++) {
        c[i] = cosf((float)i);
        sn[i] = sinf((float)i);
    }
    ops[0].rope(y, x, c, sn, 64);
    for (int i = 0; i < 32; i++) {
        const float a = x[i] * c[i] - x[i + 32] * sn[i], b = x[i + 32] * c[i] + x[i] * sn[i];
        cr_assert(y[i] == pl_f32_to_bf16(a) && y[i + 32] == pl_f32_to_bf16(b), "pair %d", i);
    }
}

Test(rows, silu_follows_its_formula_to_the_ends)
{
    const float gate[8] = {0, 1, -1, 20, -20, 87, -88.5f, -200}, up[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    uint16_t y[8];
    pl_ops ops[3];

    builds(ops);
    ops[0].silu_mul(y, gate, up, 8);
    for (int i = 0; i < 8; i++) {
        const double g = (double)gate[i], e = g / (1 + exp(-g)) * (double)up[i];
        cr_assert(fabs((double)pl_bf16_to_f32(y[i]) - e) <= 0.0040 * fabs(e) + 1e-30, "gate %g", g);
        cr_assert(y[i] == pl_f32_to_bf16(gate[i] / (1.0f + exp_f32(-gate[i])) * up[i]));
    }
}

/* ---- attention ---- */

Test(rows, softmax_weights_are_one_at_the_maximum_and_zero_where_masked)
{
    float s[64], m, l;
    uint16_t p[64];
    pl_ops ops[3];
    uint64_t seed = 7;

    builds(ops);
    for (int n = 1; n <= 64; n++) {
        fill(s, 64, &seed, ORDINARY);
        for (int i = n; i < 64; i++)
            s[i] = i % 2 ? NAN : 1e30f; /* poison past the valid keys */
        ops[0].attn_softmax(p, &m, &l, s, n, 0.125f);
        float max = s[0] * 0.125f, lane[16] = {0};
        for (int i = 1; i < n; i++)
            max = fmaxf(max, s[i] * 0.125f);
        cr_assert(m == max);
        for (int i = 0; i < 64; i++) {
            const float w = i < n ? exp_f32(s[i] * 0.125f - max) : 0.0f;
            cr_assert(p[i] == pl_f32_to_bf16(w), "n %d, key %d", n, i);
            lane[i % 16] += pl_bf16_to_f32(p[i]);
        }
        cr_assert(bits_of(l) == bits_of(lanes_sum(lane)));
    }
}

/* Softmax weights and values, the values past n unreadable. */
typedef struct page {
    uint16_t p[64], v[64][256];
    const uint16_t *rows[64];
} page;

static void make_page(page *g, uint64_t seed, int n, int kind)
{
    for (int i = 0; i < 64; i++) {
        g->p[i] = i < n ? pl_f32_to_bf16((float)uniform(&seed)) : 0;
        g->rows[i] = i < n ? g->v[i] : NULL;
        for (int j = 0; j < 256; j++)
            g->v[i][j] = i < n ? pl_f32_to_bf16(hostile(&seed, kind)) : 0;
    }
}

/* The law, element by element, with a fused multiply-add. */
static float canonical(const page *g, int col)
{
    float acc = 0;
    for (int b = 0; b < 64; b += 32) {
        float e = 0, o = 0;
        for (int k = b; k < b + 32; k += 2) {
            e = fmaf(pl_bf16_to_f32(g->p[k]), pl_bf16_to_f32(g->v[k][col]), e);
            o = fmaf(pl_bf16_to_f32(g->p[k + 1]), pl_bf16_to_f32(g->v[k + 1][col]), o);
            e = fabsf(e) < 0x1p-126f ? copysignf(0, e) : e; /* libm may not know FTZ */
            o = fabsf(o) < 0x1p-126f ? copysignf(0, o) : o;
        }
        acc += e + o;
    }
    return acc;
}

Test(rows, values_are_weighted_by_the_canonical_product)
{
    static page g;
    float o[256];
    pl_ops ops[3];
    const int n_ops = builds(ops);

    for (int kind = 0; kind < ANY_BITS; kind++)
        for (int n = 1; n <= 64; n++) {
            make_page(&g, (uint64_t)(n + 100 * kind), n, kind);
            for (int i = 0; i < n_ops; i++) {
                ops[i].attn_pv_rows(o, g.p, g.rows, n, 130);
                for (int j = 0; j < 130; j++)
                    cr_assert(same(o[j], canonical(&g, j)), "%s: kind %d, n %d, column %d: %a, %a",
                        ops[i].name, kind, n, j, (double)o[j], (double)canonical(&g, j));
            }
        }
}

Test(rows, values_of_a_padded_page_give_the_bits_of_gemm)
{
    static page g;
    static uint16_t packed[64 * 96] __attribute__((aligned(64)));
    static unsigned char scratch[PL_GEMM_SCRATCH] __attribute__((aligned(64)));
    static uint16_t x[64] __attribute__((aligned(64)));
    float o[96], y[96];
    pl_ops ops[3];
    builds(ops);

    for (int kind = 0; kind < ANY_BITS; kind++)
        for (int n = 1; n <= 64; n += 3) {
            make_page(&g, (uint64_t)(n + 100 * kind), n, kind);
            for (int k = 0; k < 64; k++)
                for (int j = 0; j < 96; j++)
                    packed[pl_packed_index(j, k, 64)] = g.v[k][j];
            memcpy(x, g.p, sizeof x);
            ops[0].gemm(&(pl_gemm){.x = x,
                .ldx = 64,
                .w = packed,
                .y = y,
                .ldy = 96,
                .m = 1,
                .n = 96,
                .k = 64,
                .panel_begin = 0,
                .panel_end = 3,
                .scratch = scratch});
            ops[0].attn_pv_rows(o, g.p, g.rows, n, 96);
            for (int j = 0; j < 96; j++)
                cr_assert(bits_of(o[j]) == bits_of(y[j]), "kind %d, n %d, column %d: %a, gemm %a",
                    kind, n, j, (double)o[j], (double)y[j]);
        }
}

Test(rows, blocks_combine_to_the_softmax_over_all_keys)
{
    enum { KEYS = 200, D = 64 };
    static float s[256], v[KEYS][D], O[D], o[D];
    static uint16_t vb[KEYS][D], p[64], y[D];
    float M = 0, L = 0, m, l;
    pl_ops ops[3];
    uint64_t seed = 11;

    builds(ops);
    fill(s, KEYS, &seed, ORDINARY);
    for (int i = 0; i < KEYS; i++)
        for (int j = 0; j < D; j++) {
            vb[i][j] = pl_f32_to_bf16(normal(&seed));
            v[i][j] = pl_bf16_to_f32(vb[i][j]);
        }
    for (int b = 0; b < KEYS; b += 64) {
        const uint16_t *rows[64];
        const int n = KEYS - b < 64 ? KEYS - b : 64;
        for (int i = 0; i < n; i++)
            rows[i] = vb[b + i];
        ops[0].attn_softmax(p, &m, &l, s + b, n, 2.0f);
        ops[0].attn_pv_rows(o, p, rows, n, D);
        ops[0].attn_combine(O, &M, &L, o, m, l, D, b == 0);
    }
    ops[0].attn_finish(y, O, L, D);
    for (int j = 0; j < D; j++) {
        double num = 0, den = 0;
        for (int i = 0; i < KEYS; i++) {
            num += exp(2 * (double)s[i]) * (double)v[i][j];
            den += exp(2 * (double)s[i]);
        }
        cr_assert(fabs((double)pl_bf16_to_f32(y[j]) - num / den) < 0.012, "column %d", j);
    }
}

Test(rows, combining_rounds_each_product_and_sum)
{
    float O[40], o[40], M = 0.3f, L = 1.7f;
    uint64_t seed = 12;
    pl_ops ops[3];
    builds(ops);
    for (int first = 1; first >= 0; first--) {
        const float m = 1.1f - (float)first, l = 2.9f;
        fill(O, 40, &seed, ORDINARY);
        fill(o, 40, &seed, ORDINARY);
        const float M0 = M, L0 = L, top = fmaxf(M, m);
        const float a = exp_f32(M0 - top), b = exp_f32(m - top);
        float expected[40];
        for (int j = 0; j < 40; j++) {
            const float old = O[j] * a, new = o[j] * b;
            expected[j] = first ? o[j] : old + new;
        }
        const float old = L0 * a, new = l *b;
        ops[0].attn_combine(O, &M, &L, o, m, l, 40, first);
        cr_assert(memcmp(O, expected, sizeof O) == 0);
        cr_assert(M == (first ? m : top) && L == (first ? l : old + new));
    }
}

Test(rows, a_block_far_below_the_maximum_leaves_the_sum_as_it_is)
{
    float O[2] = {3, -5}, M = 100, L = 2;
    const float o[2] = {7, 7};
    pl_ops ops[3];
    builds(ops);
    ops[0].attn_combine(O, &M, &L, o, -100, 9, 2, 0);
    cr_assert(O[0] == 3 && O[1] == -5 && M == 100 && L == 2);
}

/* ---- the builds agree ---- */

static float a[WIDTH], b[WIDTH], c[WIDTH];
static uint16_t h[WIDTH];

static void inputs(uint64_t seed, int kind)
{
    fill(a, WIDTH, &seed, kind);
    fill(b, WIDTH, &seed, kind);
    fill(c, WIDTH, &seed, kind);
    memset(h, 0x7f, sizeof h);
}

static void run_rmsnorm(const pl_ops *ops, uint64_t seed, int n, int kind, float *out)
{
    inputs(seed, kind);
    out[WIDTH] = ops->rmsnorm(h, a, b, n, 1e-5f);
    widen(out, h, WIDTH);
}

static void run_rope(const pl_ops *ops, uint64_t seed, int n, int kind, float *out)
{
    inputs(seed, kind);
    ops->rope(h, a, b, c, n & ~1);
    widen(out, h, WIDTH);
}

static void run_silu_mul(const pl_ops *ops, uint64_t seed, int n, int kind, float *out)
{
    inputs(seed, kind);
    for (int i = 0; i < WIDTH; i += 2)
        a[i] = kind == ORDINARY ? a[i] * 30 : a[i];
    ops->silu_mul(h, a, b, n);
    widen(out, h, WIDTH);
}

static void run_add(const pl_ops *ops, uint64_t seed, int n, int kind, float *out)
{
    inputs(seed, kind);
    memcpy(out, a, sizeof a);
    ops->add(out, b, n);
}

static void run_softmax(const pl_ops *ops, uint64_t seed, int n, int kind, float *out)
{
    inputs(seed, kind);
    ops->attn_softmax(h, out + WIDTH, out + WIDTH + 1, a, (n - 1) % 64 + 1, 0.7f);
    widen(out, h, WIDTH);
}

static void run_pv_rows(const pl_ops *ops, uint64_t seed, int n, int kind, float *out)
{
    static page g;
    make_page(&g, seed, (int)(seed % 64) + 1, kind);
    ops->attn_pv_rows(out, g.p, g.rows, (int)(seed % 64) + 1, n > 256 ? 256 : n);
}

static void run_combine(const pl_ops *ops, uint64_t seed, int n, int kind, float *out)
{
    inputs(seed, kind);
    memcpy(out, a, sizeof a);
    out[WIDTH] = c[0];
    out[WIDTH + 1] = c[1];
    ops->attn_combine(out, out + WIDTH, out + WIDTH + 1, b, c[2], c[3], n, seed % 5 == 0);
}

static void run_finish(const pl_ops *ops, uint64_t seed, int n, int kind, float *out)
{
    inputs(seed, kind);
    ops->attn_finish(h, a, c[0], n);
    widen(out, h, WIDTH);
}

Test(rows, builds_agree_on_rows)
{
    check_parity(run_rmsnorm, "rmsnorm");
    check_parity(run_rope, "rope");
    check_parity(run_silu_mul, "silu_mul");
    check_parity(run_add, "add");
}

Test(rows, builds_agree_on_attention)
{
    check_parity(run_softmax, "attn_softmax");
    check_parity(run_pv_rows, "attn_pv_rows");
    check_parity(run_combine, "attn_combine");
    check_parity(run_finish, "attn_finish");
}
