/* tensor/cpu/gemm_avx512bf16.c - the canonical product by VDPBF16PS, for CPUs where it is the
 * faster way (AMD from Zen 4 on: twice the rate of the fp32 FMA).
 *
 * One lane of VDPBF16PS computes fma(lo, lo, fma(hi, hi, acc)), each step rounded, denormals taken
 * and given as zero (measured on Zen 4: 0 differences in 96 million random cases; the self-test
 * repeats it at every start).  Fed with neighbours in K that breaks the canonical order, which has
 * one chain over the even and one over the odd elements (NUMERICS 1).  Fed with two consecutive
 * elements of the same chain it is that chain, two steps at a time.  Two rows of the packed layout,
 * W0 = (w[2j], w[2j + 1]) and W1 = (w[2j + 2], w[2j + 3]), give both kinds with a shift and a
 * blend:
 *
 *   even chain: hi w[2j],     lo w[2j + 2]  =  W0 << 16, low halves from W1
 *   odd chain:  hi w[2j + 1], lo w[2j + 3]  =  W0,       low halves from W1 >> 16
 *
 * Rows of x are permuted to match once a call (spread). */
#include "tensor/cpu/gemm_blocked.h"

#include <immintrin.h>

#define ROWS_MAX 12 /* 2 x 12 accumulators and a few more: 32 registers */

enum {
    LANES = 16,
    X_BYTES = 64, /* of a row's block of 32 k */
    ASKING_ROWS = 4
};
typedef __m512 vec;

/* Four elements x0 x1 x2 x3 become x2 x0 x3 x1: the pair of the even chain, then of the odd one. */
static void spread(unsigned char *dst, const uint16_t *x)
{
    const __m512i order =
        _mm512_broadcast_i32x4(_mm_setr_epi8(4, 5, 0, 1, 6, 7, 2, 3, 12, 13, 8, 9, 14, 15, 10, 11));
    _mm512_storeu_si512(dst, _mm512_shuffle_epi8(_mm512_loadu_si512(x), order));
}

/* acc += pairs of w times the pair at x, the same for all 16 lanes. */
static inline __m512 dot_pairs(__m512 acc, __m512i w, const unsigned char *x)
{
    __asm__("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*(const uint32_t *)x));
    return acc;
}

/* Pairs of two steps of the even and of the odd chain, 16 outputs. */
static inline __m512i even_pairs(const uint16_t *w)
{
    const __m512i first = _mm512_slli_epi32(_mm512_loadu_si512(w), 16);
    return _mm512_mask_blend_epi16(0x55555555, first, _mm512_loadu_si512(w + 32));
}

static inline __m512i odd_pairs(const uint16_t *w)
{
    const __m512i second = _mm512_srli_epi32(_mm512_loadu_si512(w + 32), 16);
    return _mm512_mask_blend_epi16(0x55555555, _mm512_loadu_si512(w), second);
}

/* One block of 32 k, one tile of 16 outputs: sum[r] = e + o.  With few rows, asking for weights
 * ahead only keeps the processor from doing so itself (docs/SPEED.md). */
static inline __attribute__((always_inline)) void block(
    __m512 *sum, const int rows, const unsigned char *x, const uint16_t *w, int ahead)
{
    __m512 e[ROWS_MAX], o[ROWS_MAX];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
        e[r] = o[r] = _mm512_setzero_ps();
#pragma GCC unroll 2 /* more gains nothing and costs compile time */
    for (int s = 0; s < 8; s++) {
        const unsigned char *at = x + 8 * s;
        __asm__("" : "+r"(at)); /* or gcc computes all addresses first, and spills them */
        if (rows > ASKING_ROWS) {
            _mm_prefetch((const char *)(w + ahead + 64 * s), _MM_HINT_T1);
            _mm_prefetch((const char *)(w + ahead + 64 * s + 32), _MM_HINT_T1);
        }
        const __m512i even = even_pairs(w + 64 * s);
        const __m512i odd = odd_pairs(w + 64 * s);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            e[r] = dot_pairs(e[r], even, at + X_BYTES * r);
            o[r] = dot_pairs(o[r], odd, at + X_BYTES * r + 4);
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

void gemm_avx512bf16(const pl_gemm *g)
{
    static const gemm_kernel kernel = {
        .multiply = multiply, .spread = spread, .x_bytes = X_BYTES, .rows_max = ROWS_MAX};
    gemm_blocked(&kernel, g);
}
