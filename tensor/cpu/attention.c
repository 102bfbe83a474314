/* tensor/cpu/attention.c - one row of queries against one block of 64 keys, and the combination of
 * blocks (NUMERICS 2), compiled once an ISA. */
#include "tensor/cpu/cpu.h"
#include "tensor/cpu/math.h"

#include <assert.h>

enum { MINUS_INF = (int32_t)0xff800000 }; /* its bits */

void PL_FN(attn_softmax)(uint16_t *p, float *m, float *l, const float *s, int n_valid, float scale)
{
    float t[PL_BLOCK];
    float lane[16] = {0};
    int32_t key = INT32_MIN;
    assert(n_valid >= 1 && n_valid <= PL_BLOCK);

    for (int i = 0; i < PL_BLOCK; i++)
        t[i] = f32_of((uint32_t)pick(i < n_valid, (int32_t)f32_bits(s[i] * scale), MINUS_INF));
    for (int i = 0; i < PL_BLOCK; i++) {
        const int32_t k = f32_key(t[i]);
        key = k > key ? k : key;
    }
    const float max = f32_of_key(key);
    for (int i = 0; i < PL_BLOCK; i++) {
        p[i] = pl_f32_to_bf16(exp_f32(t[i] - max)); /* masked: exp(-inf) is +0 */
        t[i] = pl_bf16_to_f32(p[i]);
    }
    PL_LANES_ADD(lane, PL_BLOCK, t[i_]);
    *m = max;
    *l = lanes_sum(lane);
}

/* One step of a chain of the canonical dot.  The product of two bf16 is exact in double, and the
 * sum of a 16-bit product and a 24-bit term, rounded to 53 and then to 24 bits, is the fused
 * result: baseline x86-64 has no fused instruction. */
#ifdef __FMA__
#define PL_CHAIN(a, b, c) __builtin_fmaf((a), (b), (c))
#else
#define PL_CHAIN(a, b, c) ((float)((double)(a) * (double)(b) + (double)(c)))
#endif

enum { STRIP = 64 }; /* columns whose two chains fit the registers of AVX-512 */

/* acc += e + o over up to 32 keys, where chain e runs over the even keys and o over the odd ones.
 * Keys past n stand for p = +0 times 0 and are left out: they could at most turn a chain's -0 into
 * +0, which acc does not show, since +0 + -0 is +0. */
static inline void pv_block(
    float *acc, const uint16_t *p, const uint16_t *const *v, int n, int col, int width)
{
    float e[STRIP] = {0}, o[STRIP] = {0};

    for (int k = 0; k + 1 < n; k += 2) {
        const float pe = pl_bf16_to_f32(p[k]), po = pl_bf16_to_f32(p[k + 1]);
        const uint16_t *ve = v[k] + col, *vo = v[k + 1] + col;
        for (int j = 0; j < width; j++)
            e[j] = PL_CHAIN(pe, pl_bf16_to_f32(ve[j]), e[j]);
        for (int j = 0; j < width; j++)
            o[j] = PL_CHAIN(po, pl_bf16_to_f32(vo[j]), o[j]);
    }
    if (n % 2) {
        const float pe = pl_bf16_to_f32(p[n - 1]);
        const uint16_t *ve = v[n - 1] + col;
        for (int j = 0; j < width; j++)
            e[j] = PL_CHAIN(pe, pl_bf16_to_f32(ve[j]), e[j]);
    }
    for (int j = 0; j < width; j++)
        acc[j] += e[j] + o[j];
}

/* Columns [col, col + width) of the product; a constant width keeps the chains in registers. */
static inline void pv_strip(
    float *out, const uint16_t *p, const uint16_t *const *v, int n_valid, int col, int width)
{
    float acc[STRIP] = {0};

    for (int b = 0; b < n_valid; b += 32)
        pv_block(acc, p + b, v + b, n_valid - b < 32 ? n_valid - b : 32, col, width);
    for (int j = 0; j < width; j++)
        out[col + j] = acc[j];
}

void PL_FN(attn_pv_rows)(float *o, const uint16_t *p, const uint16_t *const *v, int n_valid, int d)
{
    int col = 0;
    assert(n_valid >= 0 && n_valid <= PL_BLOCK);

    for (; col + STRIP <= d; col += STRIP)
        pv_strip(o, p, v, n_valid, col, STRIP);
    for (; col + STRIP / 2 <= d; col += STRIP / 2)
        pv_strip(o, p, v, n_valid, col, STRIP / 2);
    if (col < d)
        pv_strip(o, p, v, n_valid, col, d - col);
}

void PL_FN(attn_combine)(
    float *O, float *M, float *L, const float *o, float m, float l, int d, int first)
{
    if (first) {
        for (int i = 0; i < d; i++)
            O[i] = o[i];
        *M = m;
        *L = l;
        return;
    }
    const float max = m > *M ? m : *M;
    const float a = exp_f32(*M - max), b = exp_f32(m - max);
    for (int i = 0; i < d; i++)
        O[i] = O[i] * a + o[i] * b;
    *L = *L * a + l * b;
    *M = max;
}

void PL_FN(attn_finish)(uint16_t *y, const float *O, float L, int d)
{
    for (int i = 0; i < d; i++)
        y[i] = pl_f32_to_bf16(O[i] / L);
}
