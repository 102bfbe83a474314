/* tensor/cpu/optim.c - the optimiser's ops on flat ranges, compiled once an ISA. */
#include "tensor/cpu/cpu.h"
#include "tensor/cpu/math.h"

/* 16 lanes of double and the tree of lanes_sum; squares of fp32 are exact in double. */
double PL_FN(sum_squares)(const float *x, size_t n)
{
    double lane[16] = {0};
    const size_t full = n & ~(size_t)15;

    for (size_t i = 0; i < full; i += 16)
        for (size_t j = 0; j < 16; j++)
            lane[j] += (double)x[i + j] * (double)x[i + j];
    for (size_t j = 0; j < n - full; j++)
        lane[j] += (double)x[full + j] * (double)x[full + j];
    for (int half = 8; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            lane[j] += lane[j + half];
    return lane[0];
}

/* m and v are the moments; w -= lr (m^ / (sqrt(v^) + eps) + weight_decay w), every product, sum,
 * quotient and root rounded by itself. */
void PL_FN(adamw)(float *w, float *m, float *v, const float *g, size_t n, const pl_adamw *o)
{
    const pl_adamw a = *o;
    const float rest1 = 1.0f - a.beta1, rest2 = 1.0f - a.beta2;

    for (size_t i = 0; i < n; i++) {
        const float grad = g[i] * a.grad_scale;
        const float m1 = a.beta1 * m[i] + rest1 * grad;
        const float v1 = a.beta2 * v[i] + rest2 * (grad * grad);
        const float step = (m1 / a.bias1) / (__builtin_sqrtf(v1 / a.bias2) + a.eps);
        m[i] = m1;
        v[i] = v1;
        w[i] = w[i] - a.lr * (step + a.weight_decay * w[i]);
    }
}
