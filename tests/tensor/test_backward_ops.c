/* Claims tested: each gradient op is the derivative of its forward formula (against central
 * differences of the formula in double); sums accumulate where the list of ops says so; in-place
 * use is safe where it is allowed; the builds agree bit for bit. */
#include "core/rng.h"
#include "tensor/cpu/math.h"
#include "tests/tensor/ops_support.h"

enum { N = 77 };

static const double step = 1e-5;

/* A scalar function of one input vector, the others fixed in ctx. */
typedef double (*scalar_fn)(const double *x, const void *ctx);

static void check_gradient(
    const float *got, const float *at, int n, scalar_fn f, const void *ctx, const char *what)
{
    double x[N];
    double error = 0, norm = 0;
    for (int i = 0; i < n; i++)
        x[i] = (double)at[i];
    for (int i = 0; i < n; i++) {
        x[i] = (double)at[i] + step;
        const double up = f(x, ctx);
        x[i] = (double)at[i] - step;
        const double down = f(x, ctx);
        x[i] = (double)at[i];
        const double slope = (up - down) / (2 * step);
        error += (slope - (double)got[i]) * (slope - (double)got[i]);
        norm += slope * slope;
    }
    cr_assert(
        norm > 0 && sqrt(error / norm) < 2e-6, "%s: relative error %.2e", what, sqrt(error / norm));
}

typedef struct fixed {
    float a[N], b[N], dy[N];
    int n;
} fixed;

static fixed make_fixed(uint64_t seed)
{
    fixed f = {.n = N};
    fill(f.a, N, &seed, ORDINARY);
    fill(f.b, N, &seed, ORDINARY);
    fill(f.dy, N, &seed, ORDINARY);
    return f;
}

/* sum dy * rmsnorm(x) with gains w */
static double norm_value(const double *x, const double *w, const fixed *f)
{
    double sum = 0, y = 0;
    for (int i = 0; i < N; i++)
        sum += x[i] * x[i];
    for (int i = 0; i < N; i++)
        y += (double)f->dy[i] * x[i] / sqrt(sum / N + 1e-5) * w[i];
    return y;
}

static double norm_of_x(const double *x, const void *ctx)
{
    const fixed *f = ctx;
    double w[N];
    for (int i = 0; i < N; i++)
        w[i] = (double)f->b[i];
    return norm_value(x, w, f);
}

static double norm_of_w(const double *w, const void *ctx)
{
    const fixed *f = ctx;
    double x[N];
    for (int i = 0; i < N; i++)
        x[i] = (double)f->a[i];
    return norm_value(x, w, f);
}

Test(backward_ops, rmsnorm_back_is_the_derivative_and_accumulates)
{
    const fixed f = make_fixed(1);
    float dx[N], dw[N];
    uint16_t y[96];
    pl_ops ops[3];
    builds(ops);

    const float inv = ops[0].rmsnorm(y, f.a, f.b, N, 1e-5f);
    for (int i = 0; i < N; i++)
        dx[i] = dw[i] = 0;
    ops[0].rmsnorm_back(dx, dw, f.dy, f.a, f.b, inv, N);
    check_gradient(dx, f.a, N, norm_of_x, &f, "dx");
    check_gradient(dw, f.b, N, norm_of_w, &f, "dw");

    float twice_x[N], twice_w[N];
    memcpy(twice_x, dx, sizeof dx);
    memcpy(twice_w, dw, sizeof dw);
    ops[0].rmsnorm_back(twice_x, twice_w, f.dy, f.a, f.b, inv, N);
    for (int i = 0; i < N; i++)
        cr_assert(twice_x[i] == 2 * dx[i] && twice_w[i] == 2 * dw[i]);
}

static double silu_of_gate(const double *g, const void *ctx)
{
    const fixed *f = ctx;
    double y = 0;
    for (int i = 0; i < N; i++)
        y += (double)f->dy[i] * (g[i] / (1 + exp(-g[i]))) * (double)f->b[i];
    return y;
}

static double silu_of_up(const double *u, const void *ctx)
{
    const fixed *f = ctx;
    double y = 0;
    for (int i = 0; i < N; i++)
        y += (double)f->dy[i] * ((double)f->a[i] / (1 + exp(-(double)f->a[i]))) * u[i];
    return y;
}

Test(backward_ops, silu_mul_back_is_the_derivative_in_place_too)
{
    fixed f = make_fixed(2);
    float dgate[N], dup[N];
    pl_ops ops[3];
    const int n_ops = builds(ops);

    ops[0].silu_mul_back(dgate, dup, f.dy, f.a, f.b, N);
    check_gradient(dgate, f.a, N, silu_of_gate, &f, "dgate");
    check_gradient(dup, f.b, N, silu_of_up, &f, "dup");
    for (int i = 0; i < n_ops; i++) {
        fixed g = f;
        ops[i].silu_mul_back(g.a, g.b, g.dy, g.a, g.b, N);
        cr_assert(memcmp(g.a, dgate, sizeof dgate) == 0 && memcmp(g.b, dup, sizeof dup) == 0);
    }
}

Test(backward_ops, silu_mul_back_stays_finite_at_the_ends)
{
    const float gate[4] = {-200, -88.5f, 88.5f, 200}, ones[4] = {1, 1, 1, 1};
    float dgate[4], dup[4];
    pl_ops ops[3];
    builds(ops);
    ops[0].silu_mul_back(dgate, dup, ones, gate, ones, 4);
    cr_assert(fabsf(dgate[0]) < 1e-30f && fabsf(dgate[1]) < 1e-30f);
    cr_assert(dgate[2] == 1 && dgate[3] == 1 && dup[3] == 200 && fabsf(dup[0]) < 1e-30f);
}

static double rope_value(const double *x, const void *ctx)
{
    const fixed *f = ctx;
    double y = 0;
    for (int i = 0; i < 32; i++) {
        const double c = (double)f->a[i], s = (double)f->b[i];
        y += (double)f->dy[i] * (x[i] * c - x[i + 32] * s);
        y += (double)f->dy[i + 32] * (x[i + 32] * c + x[i] * s);
    }
    return y;
}

Test(backward_ops, rope_back_is_the_derivative_in_place_too)
{
    fixed f = make_fixed(3);
    float dx[64], x[64];
    uint64_t s = 9;
    pl_ops ops[3];
    const int n_ops = builds(ops);

    fill(x, 64, &s, ORDINARY);
    ops[0].rope_back(dx, f.dy, f.a, f.b, 64);
    check_gradient(dx, x, 64, rope_value, &f, "dx");
    for (int i = 0; i < n_ops; i++) {
        fixed g = f;
        ops[i].rope_back(g.dy, g.dy, g.a, g.b, 64);
        cr_assert(memcmp(g.dy, dx, sizeof dx) == 0);
    }
}

/* g * log p_T(token), T = 0.7, g = -1.5, token 5 */
static double logprob_value(const double *x, const void *ctx)
{
    double sum = 0;
    (void)ctx;
    for (int i = 0; i < N; i++)
        sum += exp(x[i] / 0.7);
    return -1.5 * (x[5] / 0.7 - log(sum));
}

Test(backward_ops, logprob_back_is_the_derivative_rounded)
{
    const fixed f = make_fixed(4);
    uint16_t dz[96];
    float max, lse;
    pl_ops ops[3];
    builds(ops);

    ops[0].logsumexp(f.a, N, 0.7f, NULL, &max, &lse);
    memset(dz, 0xff, sizeof dz);
    ops[0].logprob_back(dz, f.a, N, 0.7f, lse, 5, -1.5f);
    double x[N];
    for (int i = 0; i < N; i++)
        x[i] = (double)f.a[i];
    for (int i = 0; i < N; i++) {
        x[i] += step;
        const double up = logprob_value(x, NULL);
        x[i] -= 2 * step;
        const double down = logprob_value(x, NULL);
        x[i] += step;
        const double slope = (up - down) / (2 * step);
        cr_assert(fabs((double)pl_bf16_to_f32(dz[i]) - slope) <= 0.0041 * fabs(slope) + 1e-9,
            "logit %d", i);
    }
    for (int i = N; i < 96; i++)
        cr_assert(dz[i] == 0, "padding");

    ops[0].logprob_back(dz, f.a, N, 0.7f, lse, 5, 0.0f);
    for (int i = 0; i < 96; i++)
        cr_assert(dz[i] == 0, "no weight, yet element %d is %04x", i, dz[i]);
}

Test(backward_ops, entropy_is_that_of_doubles_and_skips_impossible_tokens)
{
    static float z[1000];
    float max, lse;
    uint64_t s = 5;
    double sum = 0, h = 0;
    pl_ops ops[3];
    builds(ops);

    for (int i = 0; i < 1000; i++) {
        z[i] = i % 7 == 3 ? -INFINITY : 3 * normal(&s);
        sum += exp((double)z[i] / 1.3);
    }
    for (int i = 0; i < 1000; i++) {
        const double p = exp((double)z[i] / 1.3) / sum;
        h -= p > 0 ? p * log(p) : 0;
    }
    ops[0].logsumexp(z, 1000, 1.3f, NULL, &max, &lse);
    const double got = (double)ops[0].entropy(z, 1000, 1.3f, lse);
    cr_assert(fabs(got - h) < 1e-5, "%.7f, not %.7f", got, h);
    const float one[3] = {-INFINITY, 2, -INFINITY};
    cr_assert(bits_of(ops[0].entropy(one, 3, 1, 2)) == 0, "a sure token has entropy +0");
}

Test(backward_ops, sdot_saxpy_and_scale_do_what_they_say)
{
    const fixed f = make_fixed(6);
    float y[N];
    double sum = 0;
    pl_ops ops[3];
    builds(ops);

    for (int i = 0; i < N; i++)
        sum += (double)f.a[i] * (double)f.b[i];
    cr_assert(fabs((double)ops[0].sdot(f.a, f.b, N) - sum) < 1e-5);
    memcpy(y, f.a, sizeof y);
    ops[0].saxpy(y, 0.3f, f.b, N);
    for (int i = 0; i < N; i++) {
        const float product = 0.3f * f.b[i];
        cr_assert(y[i] == f.a[i] + product);
    }
    ops[0].scale(y, 4, N);
    for (int i = 0; i < N; i++) {
        const float product = 0.3f * f.b[i];
        cr_assert(y[i] == 4 * (f.a[i] + product));
    }
}

/* ---- the builds agree ---- */

static float a[WIDTH], b[WIDTH], c[WIDTH];

static void inputs(uint64_t seed, int kind)
{
    fill(a, WIDTH, &seed, kind);
    fill(b, WIDTH, &seed, kind);
    fill(c, WIDTH, &seed, kind);
}

static void run_rmsnorm_back(const pl_ops *ops, uint64_t seed, int n, int kind, float *out)
{
    inputs(seed, kind);
    ops->rmsnorm_back(out, out + WIDTH, a, b, c, 0.37f, n);
}

static void run_rope_back(const pl_ops *ops, uint64_t seed, int n, int kind, float *out)
{
    inputs(seed, kind);
    ops->rope_back(out, a, b, c, n & ~1);
}

static void run_silu_mul_back(const pl_ops *ops, uint64_t seed, int n, int kind, float *out)
{
    inputs(seed, kind);
    ops->silu_mul_back(out, out + WIDTH, a, b, c, n);
}

static void run_vector_ops(const pl_ops *ops, uint64_t seed, int n, int kind, float *out)
{
    inputs(seed, kind);
    memcpy(out, a, sizeof a);
    ops->saxpy(out, c[0], b, n);
    memcpy(out + WIDTH, a, sizeof a);
    ops->scale(out + WIDTH, c[1], n);
    out[2 * WIDTH] = ops->sdot(a, b, n);
    out[2 * WIDTH + 1] = ops->entropy(a, n, 0.9f, c[2]);
}

static void run_logprob_back(const pl_ops *ops, uint64_t seed, int n, int kind, float *out)
{
    static uint16_t dz[WIDTH];
    inputs(seed, kind);
    memset(dz, 0x7f, sizeof dz);
    ops->logprob_back(dz, a, n, 0.9f, c[0], (int32_t)(seed % (uint64_t)n), b[0]);
    widen(out, dz, WIDTH);
}

static void run_attn_back(const pl_ops *ops, uint64_t seed, int n, int kind, float *out)
{
    static uint16_t p[WIDTH], ds[WIDTH];
    static float m[WIDTH], inv_l[WIDTH];
    inputs(seed, kind);
    fill(m, WIDTH, &seed, kind);
    fill(inv_l, WIDTH, &seed, kind);
    ops->attn_back(p, ds, a, b, m, inv_l, c, 0.3f, n);
    widen(out, p, n);
    widen(out + WIDTH, ds, n);
}

Test(backward_ops, builds_agree)
{
    check_parity(run_attn_back, "attn_back");
    check_parity(run_rmsnorm_back, "rmsnorm_back");
    check_parity(run_rope_back, "rope_back");
    check_parity(run_silu_mul_back, "silu_mul_back");
    check_parity(run_vector_ops, "saxpy, scale, sdot, entropy");
    check_parity(run_logprob_back, "logprob_back");
}
