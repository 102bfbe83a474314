/* tensor/cpu/backward.c - gradients of the ops on rows and of the log-prob, compiled once an ISA.
 * Rounding to bf16 counts as the identity.  Inputs and outputs may be the same array only where the
 * comment says so. */
#include "tensor/cpu/cpu.h"
#include "tensor/cpu/math.h"

#include <assert.h>

/* y = x inv w with inv = (sum x^2 / n + eps)^(-1/2), so d inv / d x_i = -inv^3 x_i / n and
 *   dx_i = inv (w_i dy_i - x_i (inv^2 / n) sum_j w_j dy_j x_j),   dw_i = dy_i x_i inv. */
void PL_FN(rmsnorm_back)(
    float *dx, float *dw, const float *dy, const float *x, const float *w, float inv, int n)
{
    float lane[16] = {0};
    PL_LANES_ADD(lane, n, (w[i_] * dy[i_]) * x[i_]);
    const float c = ((inv * inv) / (float)n) * lanes_sum(lane);

    for (int i = 0; i < n; i++)
        dx[i] += inv * (w[i] * dy[i] - x[i] * c);
    for (int i = 0; i < n; i++)
        dw[i] += (dy[i] * x[i]) * inv;
}

/* The inverse rotation of dy; dx may be dy. */
void PL_FN(rope_back)(float *dx, const float *dy, const float *cosine, const float *sine, int d)
{
    const int h = d / 2;
    for (int i = 0; i < h; i++) {
        const float a = dy[i], b = dy[i + h];
        dx[i] = a * cosine[i] + b * sine[i];
        dx[i + h] = b * cosine[i] - a * sine[i];
    }
}

/* With s = 1 / (1 + exp(-g)): silu = g s, silu' = s (1 + g (1 - s)).  dgate and dup are set; they
 * may be gate and up. */
void PL_FN(silu_mul_back)(
    float *dgate, float *dup, const float *dy, const float *gate, const float *up, int n)
{
    for (int i = 0; i < n; i++) {
        const float g = gate[i], u = up[i];
        const float s = 1.0f / (1.0f + exp_f32(-g));
        dup[i] = dy[i] * (g * s);
        dgate[i] = (dy[i] * u) * (s * (1.0f + g * (1.0f - s)));
    }
}

float PL_FN(sdot)(const float *a, const float *b, int n)
{
    float lane[16] = {0};
    PL_LANES_ADD(lane, n, a[i_] * b[i_]);
    return lanes_sum(lane);
}

void PL_FN(saxpy)(float *y, float a, const float *x, int n)
{
    for (int i = 0; i < n; i++)
        y[i] += a * x[i];
}

void PL_FN(scale)(float *y, float a, int n)
{
    for (int i = 0; i < n; i++)
        y[i] *= a;
}

/* A logit of -inf has probability +0 and gradient +0; adding +0 makes every zero a +0. */
void PL_FN(logprob_back)(
    uint16_t *dz, const float *z, int n, float t, float lse, int32_t token, float g)
{
    assert(token >= 0 && token < n && t > 0);
    for (int i = 0; i < n; i++)
        dz[i] = pl_f32_to_bf16((g * (0.0f - exp_f32(z[i] / t - lse))) / t + 0.0f);
    const float p = exp_f32(z[token] / t - lse);
    dz[token] = pl_f32_to_bf16((g * (1.0f - p)) / t + 0.0f);
    for (int i = n; i < pl_pad32(n); i++)
        dz[i] = 0;
}

/* p log p, +0 where p is (a logit of -inf, where the product would be NaN). */
static inline float plogp(float a)
{
    const float p = exp_f32(a);
    return f32_of((uint32_t)pick(f32_bits(p) == 0, 0, (int32_t)f32_bits(p * a)));
}

float PL_FN(entropy)(const float *z, int n, float t, float lse)
{
    enum { CHUNK = 256 };
    float lane[16] = {0};
    float term[CHUNK];
    assert(t > 0);

    for (int b = 0; b < n; b += CHUNK) {
        const int m = n - b < CHUNK ? n - b : CHUNK;
        for (int i = 0; i < m; i++)
            term[i] = plogp(z[b + i] / t - lse);
        PL_LANES_ADD(lane, m, term[i_]);
    }
    return 0.0f - lanes_sum(lane);
}
