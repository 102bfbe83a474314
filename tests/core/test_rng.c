/* Claims: Philox is Random123's; noise has the layout of NUMERICS 3 and the same bits from every
 * compiler; the elementary functions are as accurate as the header says; the argmax of log p plus
 * noise follows p. */
#include "core/rng.h"

#include "core/file.h"
#include "core/threads.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

enum { N_POINTS = 400000 };

static uint64_t bits(double x)
{
    uint64_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

/* Provenance: kat_vectors of Random123 for philox4x32 with 10 rounds. */
Test(rng, philox_gives_the_known_answers)
{
    static const struct {
        uint32_t ctr[4], key[2], out[4];
    } cases[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff},
            {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0},
            {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (int i = 0; i < 3; i++) {
        uint32_t out[4];
        memcpy(out, cases[i].ctr, sizeof out);
        pl_philox4x32(out, cases[i].key, out); /* out may alias ctr */
        cr_assert_eq(memcmp(out, cases[i].out, sizeof out), 0, "case %d: %08x", i, out[0]);
    }
}

Test(rng, the_key_is_xxh3_of_the_little_endian_seed)
{
    const unsigned char bytes[8] = {0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01};
    cr_assert_eq(pl_noise_key(0x0123456789abcdefu), pl_hash64(bytes, 8));
    cr_assert_neq(pl_noise_key(0), pl_noise_key(1));
}

Test(rng, words_lie_at_index_position_uid_purpose)
{
    const uint64_t key = 0x1122334455667788u;
    const uint32_t half[2] = {0x55667788u, 0x11223344u};
    for (uint32_t v = 0; v < 40; v++) {
        const uint32_t ctr[4] = {v / 4, 17, 3, PL_NOISE_COIN};
        uint32_t out[4];
        pl_philox4x32(ctr, half, out);
        cr_assert_eq(pl_noise_word(key, 3, 17, PL_NOISE_COIN, v), out[v % 4]);
    }
}

Test(rng, uniforms_are_52_bits_of_two_words_and_never_0_or_1)
{
    const uint64_t key = pl_noise_key(7);
    double sum = 0;
    for (uint32_t v = 0; v < 100000; v++) {
        const double u = pl_noise_uniform(key, 1, 2, PL_NOISE_SAMPLE, v);
        const uint64_t hi = pl_noise_word(key, 1, 2, 0, v);
        const uint64_t lo = pl_noise_word(key, 1, 2, 0x100, v);
        cr_assert(u > 0 && u < 1);
        cr_assert_eq(ldexp(u, 53), (double)(2 * (hi << 20 | lo >> 12) + 1));
        sum += u;
    }
    /* Five standard deviations of the mean of 100,000. */
    cr_assert_lt(fabs(sum / 100000 - 0.5), 5 * 0.2887 / sqrt(100000));
}

Test(rng, noise_is_finite_at_both_ends_of_the_uniform)
{
    const double first = 0x1p-53, last = 1 - 0x1p-53;
    cr_assert_lt(-pl_log_d(-pl_log_d(last)), 36.74);
    cr_assert_gt(-pl_log_d(-pl_log_d(last)), 36.73);
    cr_assert(fabs(-pl_log_d(-pl_log_d(first)) + 3.6039) < 1e-3);
}

/* The golden hash: taken from gcc 12 -O2 on x86-64; clang and other levels must agree, with and
 * without flushing of denormals. */
Test(rng, noise_has_the_same_bits_everywhere)
{
    static double g[20000];
    const uint64_t key = pl_noise_key(42);
    uint64_t hash[2];

    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t v = 0; v < 20000; v++)
            g[v] = pl_noise_gumbel(key, 5, 100, PL_NOISE_SAMPLE, v);
        hash[pass] = pl_hash64(g, sizeof g);
        (void)pl_fp_enter();
    }
    cr_assert_eq(hash[0], hash[1]);
    cr_assert_eq(hash[0], 0x5259549b71bc1f6du, "%#lx", (unsigned long)hash[0]);
}

Test(rng, log_is_within_2e_15)
{
    double worst = 0;
    for (uint32_t i = 0; i < N_POINTS; i++) {
        const double u = pl_noise_uniform(1, 2, i, PL_NOISE_SAMPLE, 0);
        const int e = i % 4 ? (int)(pl_noise_word(1, 2, i, 1, 0) % 2000) - 1000 : 0;
        const double x = i % 8 == 4 ? 1 + (u - 0.5) * 0x1p-20 : ldexp(u, e);
        const long double want = logl(x);
        if (want != 0)
            worst = fmax(worst, (double)fabsl((pl_log_d(x) - want) / want));
    }
    cr_assert_lt(worst, 2e-15, "%g", worst);
    cr_assert_eq(bits(pl_log_d(1.0)), bits(0.0));
    cr_assert_eq(pl_log_d(0x1p-1022), log(0x1p-1022));
}

Test(rng, exp_is_within_2e_15_and_exact_at_zero)
{
    double worst = 0;
    for (uint32_t i = 0; i < N_POINTS; i++) {
        const double u = pl_noise_uniform(1, 3, i, PL_NOISE_SAMPLE, 0) - 0.5;
        const double x = i % 2 ? 1400 * u : 4 * u;
        worst = fmax(worst, (double)fabsl((pl_exp_d(x) - expl(x)) / expl(x)));
    }
    cr_assert_lt(worst, 2e-15, "%g", worst);
    cr_assert_eq(bits(pl_exp_d(0.0)), bits(1.0));
    cr_assert_eq(bits(pl_exp_d(-0.0)), bits(1.0));
    cr_assert_eq(pl_exp_d(-1e9), 0);
    cr_assert_eq(pl_exp_d(-INFINITY), 0);
    cr_assert(isinf(pl_exp_d(710)) && isinf(pl_exp_d(INFINITY)) && isnan(pl_exp_d(NAN)));
    cr_assert(isfinite(pl_exp_d(709.78)) && pl_exp_d(-708.39) > 0);
}

/* The header promises 1e-14; the third part of pi / 2 shows at 2e-15 only. */
Test(rng, sine_and_cosine_are_within_1e_14)
{
    double worst = 0;
    for (uint32_t i = 0; i < N_POINTS; i++) {
        const double u = 2 * pl_noise_uniform(1, 4, i, PL_NOISE_SAMPLE, 0) - 1;
        /* Whole range, small angles, and close to multiples of pi / 2. */
        const double near = (double)(i * 3) * 1.5707963267948966 + u * 1e-9;
        const double x = i % 3 == 0 ? u * 0x1p20 : i % 3 == 1 ? u * 8 : fmod(near, 0x1p20);
        double s, c;
        pl_sincos_d(x, &s, &c);
        worst = fmax(worst, (double)fmaxl(fabsl(s - sinl(x)), fabsl(c - cosl(x))));
    }
    cr_assert_lt(worst, 1e-15, "%g", worst);
}

/* Chi-square, 3 degrees of freedom: 16.27 at p = 0.001. */
Test(rng, the_argmax_of_log_p_plus_noise_follows_p)
{
    static const double p[4] = {.1, .2, .3, .4};
    const int n = 200000;
    const uint64_t key = pl_noise_key(1);
    double seen[4] = {0}, chi2 = 0;

    for (int t = 0; t < n; t++) {
        int best = 0;
        double best_score = -INFINITY;
        for (int v = 0; v < 4; v++) {
            const double g =
                pl_noise_gumbel(key, (uint32_t)t % 7, (uint32_t)t, PL_NOISE_SAMPLE, (uint32_t)v);
            if (log(p[v]) + g > best_score) {
                best_score = log(p[v]) + g;
                best = v;
            }
        }
        seen[best]++;
    }
    for (int v = 0; v < 4; v++)
        chi2 += (seen[v] - n * p[v]) * (seen[v] - n * p[v]) / (n * p[v]);
    cr_assert_lt(chi2, 16.27, "%.2f", chi2);
}
