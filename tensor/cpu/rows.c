/* tensor/cpu/rows.c - ops on one row of activations, compiled once an ISA. */
#include "tensor/cpu/cpu.h"
#include "tensor/cpu/math.h"

float PL_FN(rmsnorm)(uint16_t *y, const float *x, const float *w, int n, float eps)
{
    float lane[16] = {0};
    PL_LANES_ADD(lane, n, x[i_] * x[i_]);
    const float inv = 1.0f / __builtin_sqrtf(lanes_sum(lane) / (float)n + eps);

    for (int i = 0; i < n; i++)
        y[i] = pl_f32_to_bf16((x[i] * inv) * w[i]);
    for (int i = n; i < pl_pad32(n); i++)
        y[i] = 0;
    return inv;
}

void PL_FN(rope)(uint16_t *y, const float *x, const float *cosine, const float *sine, int d)
{
    const int h = d / 2;
    for (int i = 0; i < h; i++) {
        y[i] = pl_f32_to_bf16(x[i] * cosine[i] - x[i + h] * sine[i]);
        y[i + h] = pl_f32_to_bf16(x[i + h] * cosine[i] + x[i] * sine[i]);
    }
}

void PL_FN(silu_mul)(uint16_t *y, const float *gate, const float *up, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = pl_f32_to_bf16((gate[i] / (1.0f + exp_f32(-gate[i]))) * up[i]);
}

void PL_FN(add)(float *y, const float *x, int n)
{
    for (int i = 0; i < n; i++)
        y[i] += x[i];
}
