/* tensor/cpu/gemm_ref.c - the canonical bf16 product (NUMERICS 1) in plain C, for any CPU.
 *
 * A fused multiply-add is written through double: the product of two bf16 values is exact there,
 * and the sum of such a product and an fp32 value rounds to fp32 as the exact sum would. */
#include "tensor/cpu/cpu.h"

#include <string.h>

enum { LANES = 16 }; /* outputs of one tile */

static inline float fused(float a, float b, float c)
{
    return (float)((double)a * (double)b + (double)c);
}

/* acc += e + o over one block of 32 k for the 16 outputs of a tile. */
static inline void add_block(
    float *restrict acc, const uint16_t *restrict x, const uint16_t *restrict tile)
{
    float e[LANES] = {0};
    float o[LANES] = {0};
    for (int kp = 0; kp < 16; kp++) {
        const float x_even = pl_bf16_to_f32(x[2 * kp]);
        const float x_odd = pl_bf16_to_f32(x[2 * kp + 1]);
        uint32_t pair[LANES];
        memcpy(pair, tile + kp * 2 * LANES, sizeof pair);
        for (int j = 0; j < LANES; j++) {
            e[j] = fused(x_even, pl_bf16_to_f32((uint16_t)pair[j]), e[j]);
            o[j] = fused(x_odd, pl_bf16_to_f32((uint16_t)(pair[j] >> 16)), o[j]);
        }
    }
    for (int j = 0; j < LANES; j++)
        acc[j] += e[j] + o[j];
}

/* One row against the 32 outputs of a panel, of which the first n are there. */
static void add_panel(float *y, const uint16_t *x, const uint16_t *w, int n, int k, int accumulate)
{
    float acc[2 * LANES] = {0};
    if (accumulate)
        memcpy(acc, y, sizeof *y * (size_t)n);
    for (int k0 = 0; k0 < k; k0 += 32) {
        add_block(acc, x + k0, w);
        add_block(acc + LANES, x + k0, w + 32 * LANES);
        w += 64 * LANES;
    }
    memcpy(y, acc, sizeof *y * (size_t)n);
}

void gemm_ref(const pl_gemm *g)
{
    for (int p = g->panel_begin; p < g->panel_end; p++) {
        const int n = g->n - 32 * p < 32 ? g->n - 32 * p : 32;
        const uint16_t *w = g->w + (size_t)p * 32 * (size_t)g->k;
        for (int r = 0; r < g->m; r++)
            add_panel(g->y + (size_t)r * g->ldy + 32 * (size_t)p, g->x + (size_t)r * g->ldx, w, n,
                g->k, g->accumulate);
    }
}
