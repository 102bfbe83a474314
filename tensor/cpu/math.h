/* tensor/cpu/math.h - what the row kernels share: bits of floats, exp, and the 16-lane sum.
 *
 * Everything here is plain C on IEEE +, -, *, / in the order written, so the scalar form, the
 * 4-lane, the 8-lane and the 16-lane form that the compiler makes of a loop give the same bits
 * (the build sets -ffp-contract=off; FTZ and DAZ are set in every thread, NUMERICS 1). */
#ifndef PL_TENSOR_CPU_MATH_H
#define PL_TENSOR_CPU_MATH_H

#include <stdint.h>
#include <string.h>

static inline uint32_t f32_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float f32_of(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

#define PL_F32_INF __builtin_inff()
#define PL_F32_NAN __builtin_nanf("")

/* The order of floats as an order of integers: -NaN < -inf < .. < -0 < +0 < .. < +inf < +NaN.  An
 * integer maximum vectorises without -ffast-math and shows a NaN at either end. */
static inline int32_t f32_key(float x)
{
    const int32_t b = (int32_t)f32_bits(x);
    return b ^ (int32_t)((uint32_t)(b >> 31) >> 1);
}

static inline float f32_of_key(int32_t k)
{
    return f32_of((uint32_t)(k ^ (int32_t)((uint32_t)(k >> 31) >> 1)));
}

#define PL_KEY_PLUS_INF  ((int32_t)0x7f800000)
#define PL_KEY_MINUS_INF ((int32_t)0x807fffff)

/* cond ? a : b by masks.  gcc makes a branch of a ?: whose operand is float arithmetic, since that
 * may trap, and a branch keeps the loop from becoming vectors. */
static inline int32_t pick(int cond, int32_t a, int32_t b)
{
    const int32_t mask = -cond;
    return (a & mask) | (b & ~mask);
}

/* Adding and subtracting 1.5 * 2^23 rounds |x| < 2^22 to the nearest integer, ties to even; the
 * low bits of the sum are that integer in two's complement. */
#define PL_ROUNDER 0x1.8p23f

/* e^x, relative error below 1.1 ulp on the normal range.  exp(0) is exactly 1; below -87.336
 * (results under the smallest normal number) exactly +0; above 88.72 +inf; NaN stays NaN.
 *
 * x = k ln 2 + r, |r| <= 0.3467, with ln 2 in two parts (k times the first, of 9 bits, is exact;
 * Cody and Waite 1980); e^r = 1 + (r + r^2 q(r)), q of degree 4 fitted for the least relative
 * error of e^r (Lawson's iteration, 3e-9); 2^k enters through the exponent bits. */
static inline float exp_f32(float x)
{
    const float t = x * 0x1.715476p+0f + PL_ROUNDER; /* x / ln 2 */
    const float k = t - PL_ROUNDER;
    const float r = (x - k * 0.693359375f) - k * -2.12194440e-4f;
    float q = 1.381453825e-03f;
    q = q * r + 8.368745446e-03f;
    q = q * r + 4.166838899e-02f;
    q = q * r + 1.666652113e-01f;
    q = q * r + 4.999999404e-01f;
    const float exp_r = 1.0f + (r + r * r * q);
    const int32_t b = (int32_t)f32_bits(x);
    int32_t y = (int32_t)(f32_bits(exp_r) + (f32_bits(t) << 23));
    y = pick((b ^ INT32_MIN) > 0x42aeac08, 0, y); /* x < -87.336 */
    y = pick(b > 0x42b170a4, 0x7f800000, y);      /* x > 88.72 */
    y = pick((b & INT32_MAX) > 0x7f800000, b, y); /* NaN */
    return f32_of((uint32_t)y);
}

/* The 16-lane sum of NUMERICS 2: lane i (from +0) adds elements i, i + 16, .. in order; then the
 * tree 8, 4, 2, 1: lanes i and i + 8 first, then i and i + 4, i + 2, i + 1.  A width that is no
 * multiple of 16: the missing lanes add nothing.  PL_LANES_ADD takes an expression in the element
 * index i_, so that products are rounded before they are added. */
#define PL_LANES_ADD(lane, n, expr)                                                                \
    do {                                                                                           \
        const int full_ = (n) & ~15;                                                               \
        int i_ = 0;                                                                                \
        for (int b_ = 0; b_ < full_; b_ += 16)                                                     \
            for (int j_ = 0; j_ < 16; j_++) {                                                      \
                i_ = b_ + j_;                                                                      \
                (lane)[j_] += (expr);                                                              \
            }                                                                                      \
        for (int j_ = 0; j_ < (n)-full_; j_++) {                                                   \
            i_ = full_ + j_;                                                                       \
            (lane)[j_] += (expr);                                                                  \
        }                                                                                          \
    } while (0)

static inline float lanes_sum(const float lane[16])
{
    float t[8];
    for (int j = 0; j < 8; j++)
        t[j] = lane[j] + lane[j + 8];
    for (int j = 0; j < 4; j++)
        t[j] = t[j] + t[j + 4];
    for (int j = 0; j < 2; j++)
        t[j] = t[j] + t[j + 2];
    return t[0] + t[1];
}

#endif
