/* tensor/cpu/gemm_avx2.c - the canonical product (NUMERICS 1) for CPUs with AVX2 and FMA: as
 * gemm_avx512.c, with vectors of 8 outputs and half the registers.
 *
 * The plain source of gemm_ref.c, built with -mavx2 -mfma, gives the same bits at 8 GFLOP/s where
 * this file reaches 90 (one thread of a 3.5 GHz Zen 4). */
#include "tensor/cpu/gemm_blocked.h"

#include <immintrin.h>

#define ROWS_MAX 6 /* 2 x 6 accumulators and a few more: 16 registers */

enum {
    LANES = 8,
    X_BYTES = 128 /* of a row's block of 32 k, as fp32 */
};
typedef __m256 vec;

static void spread(unsigned char *dst, const uint16_t *x)
{
    for (int h = 0; h < 4; h++) {
        const __m128i part = _mm_loadu_si128((const __m128i *)(const void *)(x + 8 * h));
        _mm256_storeu_si256(
            (__m256i *)(void *)(dst + 32 * h), _mm256_slli_epi32(_mm256_cvtepu16_epi32(part), 16));
    }
}

/* One block of 32 k, 8 outputs: sum[r] = e + o. */
static inline __attribute__((always_inline)) void block(
    __m256 *sum, const int rows, const unsigned char *x, const uint16_t *w, int ahead)
{
    const __m256i high = _mm256_set1_epi32((int)0xffff0000u);
    __m256 e[ROWS_MAX], o[ROWS_MAX];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
        e[r] = o[r] = _mm256_setzero_ps();
#pragma GCC unroll 2 /* more gains nothing and costs compile time */
    for (int s = 0; s < 16; s++) {
        const unsigned char *at = x + 8 * s;
        __asm__("" : "+r"(at)); /* or gcc computes all addresses first, and spills them */
        _mm_prefetch((const char *)(w + ahead + 32 * s), _MM_HINT_T1);
        const __m256i pair = _mm256_loadu_si256((const __m256i *)(const void *)(w + 32 * s));
        const __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
        const __m256 odd = _mm256_castsi256_ps(_mm256_and_si256(pair, high));
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const float *factor = (const float *)(const void *)(at + X_BYTES * r);
            e[r] = _mm256_fmadd_ps(even, _mm256_set1_ps(factor[0]), e[r]);
            o[r] = _mm256_fmadd_ps(odd, _mm256_set1_ps(factor[1]), o[r]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
        sum[r] = _mm256_add_ps(e[r], o[r]);
}

static inline void add_to(float *at, __m256 sum)
{
    _mm256_store_ps(at, _mm256_add_ps(_mm256_load_ps(at), sum));
}

#include "tensor/cpu/gemm_rows.h"

void gemm_avx2(const pl_gemm *g)
{
    static const gemm_kernel kernel = {
        .multiply = multiply, .spread = spread, .x_bytes = X_BYTES, .rows_max = ROWS_MAX};
    gemm_blocked(&kernel, g);
}
