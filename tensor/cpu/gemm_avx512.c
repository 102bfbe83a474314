/* tensor/cpu/gemm_avx512.c - the canonical product (NUMERICS 1) by fp32 fused multiply-adds on bf16
 * widened with a shift: any CPU with AVX-512.
 *
 * A lane is an output; e and o are the chains over the even and the odd elements of a block of 32.
 * Rows of x are widened once a call (spread), so that each factor is one broadcast from memory. */
#include "tensor/cpu/gemm_blocked.h"

#include <immintrin.h>

#define ROWS_MAX 12 /* 2 x 12 accumulators and a few more: 32 registers */

enum {
    LANES = 16,
    X_BYTES = 128 /* of a row's block of 32 k, as fp32 */
};
typedef __m512 vec;

static void spread(unsigned char *dst, const uint16_t *x)
{
    for (int h = 0; h < 2; h++) {
        const __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)(x + 16 * h));
        _mm512_storeu_si512(dst + 64 * h, _mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
}

/* One block of 32 k, one tile of 16 outputs: sum[r] = e + o. */
static inline __attribute__((always_inline)) void block(
    __m512 *sum, const int rows, const unsigned char *x, const uint16_t *w, int ahead)
{
    const __m512i high = _mm512_set1_epi32((int)0xffff0000u);
    __m512 e[ROWS_MAX], o[ROWS_MAX];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
        e[r] = o[r] = _mm512_setzero_ps();
#pragma GCC unroll 2 /* more gains nothing and costs compile time */
    for (int s = 0; s < 16; s++) {
        const unsigned char *at = x + 8 * s;
        __asm__("" : "+r"(at)); /* or gcc computes all addresses first, and spills them */
        _mm_prefetch((const char *)(w + ahead + 32 * s), _MM_HINT_T1);
        const __m512i pair = _mm512_loadu_si512(w + 32 * s);
        const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
        const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(pair, high));
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const float *factor = (const float *)(const void *)(at + X_BYTES * r);
            e[r] = _mm512_fmadd_ps(even, _mm512_set1_ps(factor[0]), e[r]);
            o[r] = _mm512_fmadd_ps(odd, _mm512_set1_ps(factor[1]), o[r]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
        sum[r] = _mm512_add_ps(e[r], o[r]);
}

static inline void add_to(float *at, __m512 sum)
{
    _mm512_store_ps(at, _mm512_add_ps(_mm512_load_ps(at), sum));
}

#include "tensor/cpu/gemm_rows.h"

void gemm_avx512(const pl_gemm *g)
{
    static const gemm_kernel kernel = {
        .multiply = multiply, .spread = spread, .x_bytes = X_BYTES, .rows_max = ROWS_MAX};
    gemm_blocked(&kernel, g);
}
