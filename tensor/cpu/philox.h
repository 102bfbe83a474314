/* tensor/cpu/philox.h - many Philox4x32-10 counters at once, for sample.c only.
 *
 * Each 64-bit lane holds one word of one counter in its low half; what is in the high half is
 * ignored, because the widening multiply reads low halves only.  So a round is two multiplies, two
 * shifts and the XORs.  gcc 12 finds a full 64-bit multiply and permutations in the plain form
 * (twice the time), hence the one instruction by name. */
#ifndef PL_TENSOR_CPU_PHILOX_H
#define PL_TENSOR_CPU_PHILOX_H

#include "tensor/ops.h"

#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

/* u64v: as many 64-bit lanes as a register has; mul_low: product of the low halves of the lanes. */
#if defined __AVX512F__
typedef uint64_t u64v __attribute__((vector_size(64)));
#define mul_low(a, b) ((u64v)_mm512_mul_epu32((__m512i)(a), (__m512i)(b)))
#elif defined __AVX2__
typedef uint64_t u64v __attribute__((vector_size(32)));
#define mul_low(a, b) ((u64v)_mm256_mul_epu32((__m256i)(a), (__m256i)(b)))
#elif defined __SSE2__
typedef uint64_t u64v __attribute__((vector_size(16)));
#define mul_low(a, b) ((u64v)_mm_mul_epu32((__m128i)(a), (__m128i)(b)))
#else
typedef uint64_t u64v __attribute__((vector_size(16)));
#define mul_low(a, b) (((a)&0xffffffffu) * ((b)&0xffffffffu))
#endif

enum { PHILOX_LANES = sizeof(u64v) / sizeof(uint64_t) };

/* Multipliers and Weyl constants: core/rng.c. */
#define PHILOX_M0 0xD2511F53u
#define PHILOX_M1 0xCD9E8D57u
#define PHILOX_W0 0x9E3779B9u
#define PHILOX_W1 0xBB67AE85u

/* word[j][i] = output word j of counter (block[i], position, uid, purpose) under the key of d, with
 * anything in the high half.  n is a multiple of 8; stride is the length of word[j]. */
static inline void philox_many(
    uint64_t *word, int stride, const uint64_t *block, int n, const pl_draw *d)
{
    const u64v zero = {0};
    const u64v m0 = zero + PHILOX_M0, m1 = zero + PHILOX_M1;

    for (int i = 0; i < n; i += PHILOX_LANES) {
        u64v c0, c1 = zero + d->position, c2 = zero + d->uid, c3 = zero + d->purpose;
        uint32_t k0 = (uint32_t)d->key, k1 = (uint32_t)(d->key >> 32);
        memcpy(&c0, block + i, sizeof c0);
        for (int round = 0; round < 10; round++) {
            const u64v p0 = mul_low(c0, m0), p1 = mul_low(c2, m1);
            c0 = (p1 >> 32) ^ c1 ^ (zero + k0);
            c2 = (p0 >> 32) ^ c3 ^ (zero + k1);
            c1 = p1;
            c3 = p0;
            k0 += PHILOX_W0;
            k1 += PHILOX_W1;
        }
        memcpy(word + i, &c0, sizeof c0);
        memcpy(word + stride + i, &c1, sizeof c1);
        memcpy(word + 2 * stride + i, &c2, sizeof c2);
        memcpy(word + 3 * stride + i, &c3, sizeof c3);
    }
}

#endif
