/* core/rng.c - Philox4x32-10, the noise built on it, and elementary functions without libm.
 *
 * The functions in double use +, -, *, / only, in the order written here (no fused operations: the
 * build sets -ffp-contract=off), so that any vector form of the same lines gives the same bits.
 * Coefficients are quotients of integers, rounded once by the compiler. */
#include "core/rng.h"

#include <math.h>
#include <string.h>
#include <xxhash.h>

/* Multipliers and Weyl constants of Philox4x32: Salmon et al. 2011, table 2 and section 3.3 (the
 * golden ratio and sqrt(3) - 1 as fractions of 2^32). */
#define PHILOX_M0 0xD2511F53u
#define PHILOX_M1 0xCD9E8D57u
#define PHILOX_W0 0x9E3779B9u
#define PHILOX_W1 0xBB67AE85u

void pl_philox4x32(const uint32_t ctr[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t c0 = ctr[0], c1 = ctr[1], c2 = ctr[2], c3 = ctr[3];
    uint32_t k0 = key[0], k1 = key[1];

    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)PHILOX_M0 * c0;
        const uint64_t p1 = (uint64_t)PHILOX_M1 * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += PHILOX_W0;
        k1 += PHILOX_W1;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

uint64_t pl_noise_key(uint64_t seed)
{
    unsigned char bytes[8];

    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)(seed >> (8 * i));
    return XXH3_64bits(bytes, sizeof bytes);
}

uint32_t pl_noise_word(
    uint64_t key, uint32_t uid, uint32_t position, uint32_t purpose, uint32_t index)
{
    const uint32_t ctr[4] = {index / 4, position, uid, purpose};
    const uint32_t half[2] = {(uint32_t)key, (uint32_t)(key >> 32)};
    uint32_t out[4];

    pl_philox4x32(ctr, half, out);
    return out[index % 4];
}

double pl_noise_uniform(
    uint64_t key, uint32_t uid, uint32_t position, uint32_t purpose, uint32_t index)
{
    const uint64_t hi = pl_noise_word(key, uid, position, purpose, index);
    const uint64_t lo = pl_noise_word(key, uid, position, purpose | 0x100, index);
    const uint64_t k = hi << 20 | lo >> 12;

    return ((double)k + 0.5) * 0x1p-52; /* k < 2^52: sum and product are exact */
}

double pl_noise_gumbel(
    uint64_t key, uint32_t uid, uint32_t position, uint32_t purpose, uint32_t index)
{
    return -pl_log_d(-pl_log_d(pl_noise_uniform(key, uid, position, purpose, index)));
}

static uint64_t bits_of(double x)
{
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static double double_of(uint64_t u)
{
    double x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* ln 2 in two parts: the first 32 bits, so that its product with an exponent (11 bits) is exact,
 * and the rest. */
#define LN2_HI 0x1.62e42fee00000p-1
#define LN2_LO 0x1.a39ef35793c76p-33

/* x = 2^e m with m in [sqrt(1/2), sqrt(2)); with s = (m - 1) / (m + 1), |s| < 0.1716, the series
 * log m = 2 atanh s = 2 s (1 + z/3 + z^2/5 + ...), z = s^2 < 0.02945, is cut after z^10 / 21 (the
 * next term is below 3e-18 of the sum).  m - 1 is exact, so x near 1 loses nothing. */
double pl_log_d(double x)
{
    /* Adding 1 - sqrt(1/2) in bits moves the border between exponents to sqrt(1/2). */
    const uint64_t shifted = bits_of(x) - bits_of(0x1.6a09e667f3bcdp-1);
    const int64_t e = (int64_t)shifted >> 52;
    const double m = double_of(bits_of(x) - ((uint64_t)e << 52));

    const double f = m - 1.0;
    const double s = f / (m + 1.0);
    const double z = s * s;
    double p = 1.0 / 21;
    p = p * z + 1.0 / 19;
    p = p * z + 1.0 / 17;
    p = p * z + 1.0 / 15;
    p = p * z + 1.0 / 13;
    p = p * z + 1.0 / 11;
    p = p * z + 1.0 / 9;
    p = p * z + 1.0 / 7;
    p = p * z + 1.0 / 5;
    p = p * z + 1.0 / 3;
    const double log_m = 2.0 * s + 2.0 * s * (p * z);
    const double n = (double)e;
    return n * LN2_HI + (n * LN2_LO + log_m);
}

/* Adding and subtracting 1.5 * 2^52 rounds |x| < 2^51 to the nearest integer, ties to even. */
#define ROUNDER 0x1.8p52

/* 2^k for a normal result. */
static double two_to(int k)
{
    return double_of((uint64_t)(k + 1023) << 52);
}

/* x = k ln 2 + r with |r| <= 0.3466 (Cody and Waite's reduction with the two parts above);
 * exp r by its Taylor series up to r^13 / 13! (the next term is below 5e-18). */
double pl_exp_d(double x)
{
    if (x > 0x1.62e42fefa39efp+9) /* log of the largest double */
        return INFINITY;
    if (x < -0x1.6232bdd7abcd2p+9) /* log of the smallest normal double */
        return 0.0;
    if (x != x)
        return x;

    const double k = (x * 0x1.71547652b82fep+0 + ROUNDER) - ROUNDER; /* x / ln 2 */
    const double r = (x - k * LN2_HI) - k * LN2_LO;
    double p = 1.0 / 6227020800; /* 13! */
    p = p * r + 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 1.0 / 2;
    const double exp_r = 1.0 + (r + r * r * p);

    const int e = (int)k; /* -1022 .. 1024: in two factors, since 2^1024 is no double */
    return exp_r * two_to(e / 2) * two_to(e - e / 2);
}

/* pi / 2 in three parts: twice 33 bits, so that their products with a quotient below 2^20 are
 * exact, and the rest. */
#define PIO2_1 0x1.921fb54400000p+0
#define PIO2_2 0x1.0b4611a600000p-34
#define PIO2_3 0x1.3198a2e037073p-69

/* Taylor series on |r| <= pi / 4: up to r^17 / 17! (next term 1e-19) and r^16 / 16! (3e-18). */
static double sin_poly(double r, double z)
{
    double p = 1.0 / 355687428096000; /* 17! */
    p = p * z - 1.0 / 1307674368000;
    p = p * z + 1.0 / 6227020800;
    p = p * z - 1.0 / 39916800;
    p = p * z + 1.0 / 362880;
    p = p * z - 1.0 / 5040;
    p = p * z + 1.0 / 120;
    p = p * z - 1.0 / 6;
    return r + r * (z * p);
}

static double cos_poly(double z)
{
    double p = 1.0 / 20922789888000; /* 16! */
    p = p * z - 1.0 / 87178291200;
    p = p * z + 1.0 / 479001600;
    p = p * z - 1.0 / 3628800;
    p = p * z + 1.0 / 40320;
    p = p * z - 1.0 / 720;
    p = p * z + 1.0 / 24;
    p = p * z - 1.0 / 2;
    return 1.0 + z * p;
}

void pl_sincos_d(double x, double *sine, double *cosine)
{
    const double q = (x * 0x1.45f306dc9c883p-1 + ROUNDER) - ROUNDER; /* x / (pi / 2) */
    const double r = ((x - q * PIO2_1) - q * PIO2_2) - q * PIO2_3;
    const double z = r * r;
    const double s = sin_poly(r, z);
    const double c = cos_poly(z);

    switch ((int)q & 3) {
    case 0:
        *sine = s;
        *cosine = c;
        break;
    case 1:
        *sine = c;
        *cosine = -s;
        break;
    case 2:
        *sine = -s;
        *cosine = -c;
        break;
    default:
        *sine = -c;
        *cosine = s;
        break;
    }
}
