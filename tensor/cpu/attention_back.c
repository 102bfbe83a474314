/* tensor/cpu/attention_back.c - the elementwise part of the attention gradient, compiled once an
 * ISA. */
#include "tensor/cpu/cpu.h"
#include "tensor/cpu/math.h"

/* restrict: seven streams are more than the compiler checks for overlap at run time. */
void PL_FN(attn_back)(uint16_t *restrict p, uint16_t *restrict ds, const float *restrict s,
    const float *restrict dp, const float *restrict m, const float *restrict inv_l,
    const float *restrict d, float scale, int n)
{
    for (int i = 0; i < n; i++) {
        const float w = exp_f32(s[i] * scale - m[i]) * inv_l[i];
        p[i] = pl_f32_to_bf16(w);
        ds[i] = pl_f32_to_bf16((w * (dp[i] - d[i])) * scale);
    }
}
