/* tests/tensor/products.h - one matrix product with its expected result, guarded on all sides.
 *
 * The expected values come from gemm_ref row by row; test_gemm.c holds gemm_ref itself to the text
 * of NUMERICS 1. */
#ifndef PL_TESTS_TENSOR_PRODUCTS_H
#define PL_TESTS_TENSOR_PRODUCTS_H

#include "tensor/cpu/cpu.h"

#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { PRODUCT_GUARD = 64 }; /* floats before and after y */

typedef struct product {
    int m, n, k;
    int accumulate;
    int gap; /* extra floats (y) and 32s of bf16 (x) between rows */
    uint64_t seed;
    int is_wild;     /* wide exponents and denormals instead of ordinary values */
    uint16_t *x, *w; /* made by product_make */
    float *y, *before, *expected;
    void *scratch;
    size_t ldx, ldy, n_y;
} product;

static inline uint32_t product_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)(z >> 32);
}

/* Ordinary: magnitudes 2^-4 .. 2^3.  Wild: three kinds, so that sums cancel, underflow and meet
 * denormal inputs. */
static inline uint16_t product_bf16(uint64_t *state, int is_wild)
{
    const uint32_t r = product_random(state);
    const uint32_t t = r >> 16;
    const uint32_t exponent = !is_wild      ? 123 + t % 8
                              : t % 4 == 0  ? 97 + t / 4 % 61
                              : t % 31 == 1 ? 0
                                            : 58 + t / 4 % 10;
    return (uint16_t)((r & 0x807fu) | exponent << 7);
}

static inline void *product_alloc(size_t n_bytes)
{
    void *p = aligned_alloc(64, (n_bytes + 63) / 64 * 64);
    assert(p);
    return p;
}

static inline pl_gemm product_begin(product *p)
{
    memcpy(p->y, p->before, sizeof *p->y * p->n_y);
    return (pl_gemm){.x = p->x,
        .ldx = p->ldx,
        .w = p->w,
        .y = p->y + PRODUCT_GUARD,
        .ldy = p->ldy,
        .m = p->m,
        .n = p->n,
        .k = p->k,
        .accumulate = p->accumulate,
        .panel_end = pl_pad32(p->n) / 32,
        .scratch = p->scratch};
}

/* Fill the inputs and compute the expected y one row at a time.  The thread has FTZ and DAZ set. */
static inline void product_make(product *p)
{
    uint64_t state = p->seed;
    p->ldx = (size_t)p->k + 32 * (size_t)p->gap;
    p->ldy = (size_t)p->n + (size_t)p->gap;
    p->n_y = (size_t)p->m * p->ldy + 2 * PRODUCT_GUARD;
    const size_t n_x = (size_t)p->m * p->ldx, n_w = pl_packed_elements(p->n, p->k);
    p->x = product_alloc(2 * n_x);
    p->w = product_alloc(2 * n_w);
    p->y = product_alloc(4 * p->n_y);
    p->before = product_alloc(4 * p->n_y);
    p->expected = product_alloc(4 * p->n_y);
    p->scratch = product_alloc(PL_GEMM_SCRATCH);
    for (size_t i = 0; i < n_x; i++)
        p->x[i] = product_bf16(&state, p->is_wild);
    for (size_t i = 0; i < n_w; i++)
        p->w[i] = product_bf16(&state, p->is_wild);
    for (size_t i = 0; i < p->n_y; i++)
        p->before[i] = pl_bf16_to_f32(product_bf16(&state, p->is_wild));

    pl_gemm g = product_begin(p);
    g.m = 1;
    for (int r = 0; r < p->m; r++) {
        gemm_ref(&g);
        g.x += p->ldx;
        g.y += p->ldy;
    }
    memcpy(p->expected, p->y, sizeof *p->y * p->n_y);
}

/* All of y as expected, the gaps between rows and the guards too. */
static inline int product_is_right(const product *p)
{
    return memcmp(p->y, p->expected, sizeof *p->y * p->n_y) == 0;
}

static inline void product_free(product *p)
{
    free(p->x);
    free(p->w);
    free(p->y);
    free(p->before);
    free(p->expected);
    free(p->scratch);
}

#endif
