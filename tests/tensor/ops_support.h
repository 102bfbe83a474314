/* tests/tensor/ops_support.h - what the tests of plain-C ops share: the builds that this CPU can
 * run, random and hostile inputs, and the comparison of builds bit for bit. */
#ifndef PL_TESTS_TENSOR_OPS_SUPPORT_H
#define PL_TESTS_TENSOR_OPS_SUPPORT_H

#include "core/threads.h"
#include "tensor/cpu/cpu.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

enum { WIDTH = 2048 }; /* floats of a test row */

#define OPS_REF(ret, name, args)    .name = name##_ref,
#define OPS_AVX2(ret, name, args)   .name = name##_avx2,
#define OPS_AVX512(ret, name, args) .name = name##_avx512,

/* The builds that this CPU can run, the reference first.  Sets FTZ and DAZ, as every thread of the
 * program does.  Returns how many. */
static inline int builds(pl_ops out[3])
{
    int n = 0;
    (void)pl_fp_enter();
    out[n++] = (pl_ops){.name = "ref", PL_OPS(OPS_REF)};
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        out[n++] = (pl_ops){.name = "avx2", PL_OPS(OPS_AVX2)};
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        out[n++] = (pl_ops){.name = "avx512", PL_OPS(OPS_AVX512)};
#endif
    return n;
}

/* splitmix64 (Steele et al. 2014). */
static inline uint64_t next_random(uint64_t *s)
{
    uint64_t x = *s += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static inline double uniform(uint64_t *s)
{
    return (double)(next_random(s) >> 11) * 0x1p-53;
}

/* Near enough to a normal variable. */
static inline float normal(uint64_t *s)
{
    double sum = -6;
    for (int i = 0; i < 12; i++)
        sum += uniform(s);
    return (float)sum;
}

/* ORDINARY: normal.  WIDE: any magnitude.  TINY: denormals and their neighbours.  ANY_BITS: every
 * pattern, infinities and NaNs with them. */
enum { ORDINARY, WIDE, TINY, ANY_BITS, N_KINDS };

static inline float hostile(uint64_t *s, int kind)
{
    const uint64_t r = next_random(s);
    uint32_t bits = (uint32_t)r;
    float x;

    if (kind == ORDINARY)
        return normal(s);
    if (kind == TINY)
        bits = (bits & 0x80ffffffu) | (uint32_t)(r >> 40 & 1) << 24;
    if (kind == ANY_BITS && (r >> 33 & 15) == 0)
        bits |= 0x7f800000u;
    if (kind == WIDE && (bits & 0x7f800000u) == 0x7f800000u)
        bits ^= 0x40000000u;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline void fill(float *x, int n, uint64_t *s, int kind)
{
    for (int i = 0; i < n; i++)
        x[i] = hostile(s, kind);
}

static inline uint32_t bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

/* Same bits; any NaN equals any other (its payload depends on the order of operands, and whatever
 * is NaN is refused by the sampler). */
static inline int same(float a, float b)
{
    return bits_of(a) == bits_of(b) || (a != a && b != b);
}

/* One run of an op on inputs made from seed, n and kind; results go to out[0 .. 4 * WIDTH). */
typedef void (*op_case)(const pl_ops *ops, uint64_t seed, int n, int kind, float *out);

/* Every build gives the reference's bits, and writes nothing beside its results. */
static inline void check_parity(op_case run, const char *what)
{
    static const int sizes[] = {
        1, 2, 3, 4, 7, 15, 16, 17, 31, 33, 48, 63, 64, 65, 100, 130, 255, 257, 576, 1003, 1536};
    static float expected[4 * WIDTH], got[4 * WIDTH];
    pl_ops ops[3];
    const int n_ops = builds(ops);

    for (int i = 1; i < n_ops; i++)
        for (size_t j = 0; j < sizeof sizes / sizeof *sizes; j++)
            for (int trial = 0; trial < 6 * N_KINDS; trial++) {
                const uint64_t seed = (uint64_t)trial * 1000 + j;
                for (int k = 0; k < 4 * WIDTH; k++)
                    expected[k] = got[k] = 12345.0f;
                run(&ops[0], seed, sizes[j], trial % N_KINDS, expected);
                run(&ops[i], seed, sizes[j], trial % N_KINDS, got);
                for (int k = 0; k < 4 * WIDTH; k++)
                    cr_assert(same(expected[k], got[k]),
                        "%s: %s differs from ref: n %d, trial %d, element %d: %a, not %a", what,
                        ops[i].name, sizes[j], trial, k, (double)got[k], (double)expected[k]);
            }
}

/* bf16 results as floats, [n], for comparison. */
static inline void widen(float *y, const uint16_t *x, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = pl_bf16_to_f32(x[i]);
}

#endif
