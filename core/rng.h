/* core/rng.h - keyed noise: Philox4x32-10 (Salmon et al. 2011, Random123) addressed by (seed, uid,
 * position, token), never by order of use.  Layout: NUMERICS section 3. */
#ifndef PL_CORE_RNG_H
#define PL_CORE_RNG_H

#include <stdint.h>

typedef enum pl_purpose {
    PL_NOISE_SAMPLE = 0, /* target and drafter: the token draw */
    PL_NOISE_COIN = 1,
    PL_NOISE_RESIDUAL = 2,
    PL_NOISE_DRAFT = 3,
    PL_NOISE_SHUFFLE = 4,
    PL_NOISE_DROPOUT = 5,
    PL_NOISE_INIT = 6,
    PL_NOISE_MASK = 7,
    PL_NOISE_EXPLORE = 8,
    PL_NOISE_FAULT = 9,
    PL_NOISE_EVAL = 10, /* held-out evaluation: the same at every evaluation */
} pl_purpose;

/* Ten rounds of Philox4x32.  ctr and key are read, out is written; out may alias ctr. */
void pl_philox4x32(const uint32_t ctr[4], const uint32_t key[2], uint32_t out[4]);

/* The 64-bit key of a run: XXH3 of the 8 little-endian bytes of seed. */
uint64_t pl_noise_key(uint64_t seed);

/* Word number index of the stream (key, uid, position, purpose): word index % 4 of the block with
 * counter (index / 4, position, uid, purpose). */
uint32_t pl_noise_word(
    uint64_t key, uint32_t uid, uint32_t position, uint32_t purpose, uint32_t index);

/* Uniform in (0, 1) with 52 bits, exact in double: (k + 0.5) * 2^-52, k = hi << 20 | lo >> 12, hi
 * the word above, lo the same word with purpose | 0x100. */
double pl_noise_uniform(
    uint64_t key, uint32_t uid, uint32_t position, uint32_t purpose, uint32_t index);

/* Gumbel noise -log(-log u) of that uniform, at most 36.74, by pl_log_d only. */
double pl_noise_gumbel(
    uint64_t key, uint32_t uid, uint32_t position, uint32_t purpose, uint32_t index);

/* Natural logarithm of a positive, finite, normal double; sine and cosine of |x| < 2^20.  Own
 * polynomials and no libm, so the bits are the same on every machine; relative error < 2e-15 (log),
 * absolute error < 1e-14 (sin, cos).  pl_exp_d takes any double: relative error < 2e-15, exp(0) is
 * exactly 1, results below the normal range are 0, above it infinity. */
double pl_log_d(double x);
double pl_exp_d(double x);
void pl_sincos_d(double x, double *sine, double *cosine);

#endif
