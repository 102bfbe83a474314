/* Claims tested: the draw with its shortcut is the plain argmax of z/T + g, token for token, for
 * any sharpness, temperature, filter and reduced vocabulary; drawn tokens follow the distribution
 * (chi-square), and a shared or ranked noise would be seen; log-probs are the unfiltered ones; bad
 * logits are refused; the builds agree bit for bit.
 *
 * PL_TEST_ROWS noise rows are tried with every shape and temperature: a one-off run of millions
 * sets it by -DPL_TEST_ROWS=. */
#include "core/rng.h"
#include "tests/tensor/ops_support.h"

#include <stdlib.h>

#ifndef PL_TEST_ROWS
#ifdef __SANITIZE_ADDRESS__
#define PL_TEST_ROWS 600 /* ten times slower there */
#else
#define PL_TEST_ROWS 6000
#endif
#endif

enum { V_MAX = 5003 };

/* ---- the plain form ---- */

static float z[V_MAX], e[V_MAX];
static double noise[V_MAX];

static void make_noise(const pl_draw *d, int n)
{
    for (int v = 0; v < n; v++)
        noise[v] = pl_noise_gumbel(d->key, d->uid, d->position, d->purpose, (uint32_t)v);
}

/* The winner among the tokens with keep (NULL: all). */
static int32_t plain_draw(int n, float t, const unsigned char *keep)
{
    int32_t best = -1;
    double score = 0;
    for (int v = 0; v < n; v++) {
        const double s = (double)(z[v] / t) + noise[v];
        if ((!keep || keep[v]) && (best < 0 || s > score)) {
            best = v;
            score = s;
        }
    }
    return best;
}

static pl_draw draw_at(float t, uint32_t position)
{
    return (pl_draw){.temperature = t,
        .top_p = 1,
        .key = pl_noise_key(7),
        .uid = 3,
        .position = position,
        .purpose = PL_NOISE_SAMPLE};
}

/* Logits of several sharpnesses and forms. */
enum { N_SHAPES = 8 };

static void make_logits(int n, int shape, uint64_t seed)
{
    static const float width[N_SHAPES] = {0, 0.1f, 1, 3, 8, 3, 3, 2};
    for (int v = 0; v < n; v++)
        z[v] = width[shape] * normal(&seed);
    for (int v = 0; v < n; v++) {
        if (shape == 5) /* rounded: many ties */
            z[v] = floorf(z[v]);
        if (shape == 6) /* one token far above, the last of the ids */
            z[v] = v == n - 1 ? 90.0f : z[v];
        if (shape == 7 && v % 3) /* masked */
            z[v] = -INFINITY;
    }
}

Test(sample, shortcut_draws_the_plain_token, .timeout = 0)
{
    static const int sizes[4] = {1000, 1003, 257, V_MAX};
    static const float temperatures[5] = {1, 0.7f, 0.2f, 2.5f, 1e-3f};
    pl_ops ops[3];
    const int n_ops = builds(ops);
    long n_draws = 0, n_exact = 0;

    for (uint32_t row = 0; row < PL_TEST_ROWS; row++) {
        const int n = sizes[row % 8 == 7 ? 3 : row % 3];
        pl_draw d = draw_at(1, row);
        make_noise(&d, n);
        for (int shape = 0; shape < N_SHAPES; shape++) {
            make_logits(n, shape, row * N_SHAPES + (uint64_t)shape);
            for (int i = 0; i < 5; i++) {
                pl_drawn got;
                d.temperature = temperatures[i];
                ops[(row + (uint32_t)i) % (uint32_t)n_ops].draw(z, n, &d, e, &got);
                const int32_t expected = plain_draw(n, d.temperature, NULL);
                cr_assert(got.token == expected, "row %u, shape %d, T %g: token %d, plain %d", row,
                    shape, (double)d.temperature, got.token, expected);
                n_draws++;
                n_exact += got.n_exact;
            }
        }
    }
    const double mean = (double)n_exact / (double)n_draws;
    cr_log_info("%ld draws, %.2f exact scores a draw", n_draws, mean);
    cr_assert(n_draws == 40L * PL_TEST_ROWS && mean < 20, "%.1f exact scores a draw", mean);
}

/* ---- the distribution ---- */

/* 3 degrees of freedom, p = 1e-6. */
#define CHI_SQUARE_3 30.66

static double chi_square(const double *seen, const double *p, int n, double total)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (seen[i] - total * p[i]) * (seen[i] - total * p[i]) / (total * p[i]);
    return sum;
}

static const double four[4] = {.4, .3, .2, .1};

Test(sample, tokens_follow_the_distribution)
{
    const float logits[4] = {logf(.4f), logf(.3f), logf(.2f), logf(.1f)};
    double seen[4] = {0};
    const int total = 1000000;
    float scratch[4];
    pl_ops ops[3];
    const int last = builds(ops) - 1;

    for (int i = 0; i < total; i++) {
        const pl_draw d = draw_at(1, (uint32_t)i);
        pl_drawn got;
        ops[last].draw(logits, 4, &d, scratch, &got);
        seen[got.token]++;
    }
    const double chi2 = chi_square(seen, four, 4, total);
    cr_assert(chi2 < CHI_SQUARE_3, "chi-square %.2f", chi2);
}

/* Mutant: one 24-bit value a row, spread over the tokens by XOR. */
Test(sample, one_shared_value_a_row_would_be_seen)
{
    double seen[4] = {0};
    const int total = 200000;
    for (int i = 0; i < total; i++) {
        const uint32_t word = pl_noise_word(1, 2, (uint32_t)i, PL_NOISE_SAMPLE, 0) >> 8;
        int best = 0;
        double score = -1e300;
        for (uint32_t v = 0; v < 4; v++) {
            const double u = ((double)((word ^ v * 0x5bd1e9u) & 0xffffffu) + 0.5) * 0x1p-24;
            const double s = log(four[v]) - log(-log(u));
            if (s > score) {
                score = s;
                best = (int)v;
            }
        }
        seen[best]++;
    }
    const double chi2 = chi_square(seen, four, 4, total);
    cr_assert(chi2 > 10 * CHI_SQUARE_3, "chi-square %.2f: the test sees nothing", chi2);
}

/* Mutant: with 24 bits the noise ends at 17.3, so a tail token of probability 2^-30 is never met
 * although its noise of 52 bits may lift it. */
Test(sample, noise_reaches_beyond_24_bits)
{
    int n_beyond = 0;
    float logits[V_MAX], scratch[V_MAX];
    pl_ops ops[3];
    builds(ops);
    for (int v = 0; v < V_MAX; v++)
        logits[v] = v == 17 ? 0.0f : -14.0f; /* 5002 e^-14: one row in 240 */
    for (int i = 0; i < 30000; i++) {
        const pl_draw d = draw_at(1, (uint32_t)i);
        pl_drawn got;
        ops[0].draw(logits, V_MAX, &d, scratch, &got);
        n_beyond += got.token != 17;
    }
    cr_assert(n_beyond > 70 && n_beyond < 190, "%d rows, 125 expected", n_beyond);
}

/* ---- filters ---- */

typedef struct ranked {
    float z;
    int32_t id;
} ranked;

static int by_rank(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    if (x->z != y->z)
        return x->z < y->z ? 1 : -1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* The support by sorting.  Returns 0 when top_p falls so near a border that rounding decides. */
static int plain_filter(int n, const pl_draw *d, unsigned char *keep, ranked *order)
{
    double total = 0, sum = 0, top = 0;
    int k = d->top_k > 0 && d->top_k < n ? d->top_k : n, is_clear = 1;
    for (int v = 0; v < n; v++)
        order[v] = (ranked){z[v], v};
    qsort(order, (size_t)n, sizeof *order, by_rank);
    memset(keep, 0, (size_t)n);
    for (int i = 0; i < k; i++)
        total += exp((double)(order[i].z - order[0].z) / (double)d->temperature);
    for (int i = 0; i < k; i++) {
        const double p = exp((double)(order[i].z - order[0].z) / (double)d->temperature) / total;
        top = i == 0 ? p : top;
        if (d->top_p < 1 && i > 0 && sum >= (double)d->top_p)
            break;
        sum += p;
        is_clear &= d->top_p >= 1 || fabs(sum - (double)d->top_p) > 1e-5;
        is_clear &= fabs(p / top - (double)d->min_p) > 1e-5;
        keep[order[i].id] = p >= (double)d->min_p * top;
    }
    return is_clear;
}

Test(sample, filtered_draw_is_the_plain_one_among_the_survivors)
{
    static unsigned char keep[V_MAX];
    static ranked order[V_MAX];
    static const int ks[6] = {0, 1, 2, 10, 50, 100000};
    static const float ps[5] = {1, 0.9f, 0.5f, 0.01f, 0.9999f}, mins[3] = {0, 0.05f, 0.7f};
    pl_ops ops[3];
    const int n = 700, n_ops = builds(ops);
    int n_checked = 0, n_ranked_noise_differs = 0;

    for (uint32_t row = 0; row < 6000; row++) {
        pl_draw d = draw_at(row % 4 ? 1.0f : 0.6f, row);
        pl_drawn got;
        d.top_k = ks[row % 6];
        d.top_p = ps[row / 6 % 5];
        d.min_p = mins[row / 30 % 3];
        make_logits(n, (int)(row / 90 % N_SHAPES), row);
        make_noise(&d, n);
        if (!plain_filter(n, &d, keep, order))
            continue;
        n_checked++;
        ops[row % (uint32_t)n_ops].draw(z, n, &d, e, &got);
        const int32_t expected = plain_draw(n, d.temperature, keep);
        cr_assert(got.token == expected, "row %u, k %d, p %g, min %g: token %d, plain %d", row,
            d.top_k, (double)d.top_p, (double)d.min_p, got.token, expected);

        /* Mutant: noise by rank in the sorted list. */
        double score = -INFINITY;
        int32_t ranked_token = -1;
        for (int i = 0; i < n; i++) {
            const double s = (double)(order[i].z / d.temperature) + noise[i];
            if (keep[order[i].id] && s > score) {
                score = s;
                ranked_token = order[i].id;
            }
        }
        n_ranked_noise_differs += ranked_token != got.token;
    }
    cr_assert(n_checked > 4000, "%d rows were clear of borders", n_checked);
    cr_assert(n_ranked_noise_differs > 500, "noise by rank is seen in %d rows only",
        n_ranked_noise_differs);
}

Test(sample, nucleus_of_point_six_holds_two_tokens_four_to_three)
{
    const float logits[4] = {logf(.4f), logf(.3f), logf(.2f), logf(.1f)};
    const double p[2] = {4. / 7, 3. / 7};
    double seen[4] = {0};
    const int total = 200000;
    float scratch[4];
    pl_ops ops[3];
    builds(ops);

    for (int i = 0; i < total; i++) {
        pl_draw d = draw_at(1, (uint32_t)i);
        pl_drawn got;
        d.top_p = 0.6f;
        ops[0].draw(logits, 4, &d, scratch, &got);
        seen[got.token]++;
        cr_assert(fabs((double)got.logprob - log(four[got.token])) < 1e-6,
            "a filter may not show in the log-prob");
    }
    cr_assert(seen[2] == 0 && seen[3] == 0);
    const double chi2 = chi_square(seen, p, 2, total);
    cr_assert(chi2 < 23.93, "chi-square %.2f, 1 degree of freedom, p = 1e-6", chi2);
}

Test(sample, nucleus_ends_where_its_mass_is_reached)
{
    const float equal[4] = {1, 1, 1, 1};
    float scratch[4];
    pl_ops ops[3];
    builds(ops);
    for (int i = 0; i < 400;
         i++) { /* .5 of four equal tokens: the first two ids; a bit more: three */
        pl_draw d = draw_at(1, (uint32_t)i);
        pl_drawn got;
        d.top_p = i % 2 ? 0.5f : nextafterf(0.5f, 1);
        ops[0].draw(equal, 4, &d, scratch, &got);
        cr_assert(got.token < (i % 2 ? 2 : 3));
    }
}

Test(sample, logprobs_of_zero_to_three_are_those_of_the_softmax)
{
    static const float t[3] = {1, .7f, .5f};
    static const double p[3][4] = {{.032059, .087144, .236883, .643914},
        {.0105, .043813, .182821, .762865}, {.002144, .015842, .117059, .864955}};
    const float logits[4] = {0, 1, 2, 3};
    float scratch[4];
    pl_ops ops[3];
    builds(ops);

    for (int i = 0; i < 3; i++)
        for (uint32_t row = 0; row < 400; row++) {
            const pl_draw d = draw_at(t[i], row);
            pl_drawn got;
            ops[0].draw(logits, 4, &d, scratch, &got);
            cr_assert(fabs(exp((double)got.logprob) - p[i][got.token]) < 1e-6);
        }
}

/* ---- greedy, log-probs, refusals ---- */

Test(sample, greedy_takes_the_lowest_of_the_best_and_reports_at_one)
{
    const float logits[6] = {-1, 2, 0.5f, 2, -0.0f, 0};
    const float zeros[3] = {-0.0f, 0, -0.0f};
    float scratch[6], max, lse;
    pl_ops ops[3];
    const int n_ops = builds(ops);

    for (int i = 0; i < n_ops; i++) {
        pl_draw d = draw_at(0, 5);
        pl_drawn got;
        ops[i].draw(logits, 6, &d, scratch, &got);
        ops[i].logsumexp(logits, 6, 1, NULL, &max, &lse);
        cr_assert(got.token == 1 && got.n_exact == 0 && got.max == 2);
        cr_assert(bits_of(got.lse) == bits_of(lse) && bits_of(got.logprob) == bits_of(2 - lse));
        ops[i].draw(zeros, 3, &d, scratch, &got);
        cr_assert(got.token == 0, "zeros of both signs are equal");
    }
}

Test(sample, top_one_is_the_greedy_token_at_any_temperature)
{
    pl_ops ops[3];
    builds(ops);
    for (uint32_t row = 0; row < 300; row++) {
        pl_draw d = draw_at(0, row);
        pl_drawn greedy, got;
        make_logits(500, (int)(row % N_SHAPES), row);
        ops[0].draw(z, 500, &d, e, &greedy);
        for (int i = 0; i < 4; i++) {
            d.temperature = (float[]){1, 0.01f, 50, 1e30f}[i];
            d.top_k = 1;
            ops[0].draw(z, 500, &d, e, &got);
            cr_assert(got.token == greedy.token, "row %u, T %g", row, (double)d.temperature);
        }
    }
}

Test(sample, logsumexp_is_that_of_doubles_and_of_the_draw)
{
    pl_ops ops[3];
    const int n_ops = builds(ops);
    for (int shape = 0; shape < N_SHAPES; shape++)
        for (int n = 1; n < 1200; n += 37) {
            double sum = 0;
            float max, lse, max2, lse2;
            const float t = 0.8f;
            pl_drawn got;
            const pl_draw d = draw_at(t, 1);
            make_logits(n, shape, (uint64_t)n);
            z[0] = 0.3f;
            ops[0].logsumexp(z, n, t, NULL, &max, &lse);
            for (int v = 0; v < n; v++)
                sum += exp((double)(z[v] / t) - (double)max);
            const double exact = (double)max + log(sum);
            cr_assert(fabs((double)lse - exact) <= 2e-6 * fabs(exact) + 1e-6, "%.9g, not %.9g",
                (double)lse, exact);
            for (int i = 0; i < n_ops; i++) {
                ops[i].logsumexp(z, n, t, e, &max2, &lse2);
                ops[i].draw(z, n, &d, e, &got);
                cr_assert(bits_of(lse) == bits_of(lse2) && bits_of(max) == bits_of(max2));
                cr_assert(bits_of(got.lse) == bits_of(lse) && bits_of(got.max) == bits_of(max));
                cr_assert(bits_of(got.logprob) == bits_of(z[got.token] / t - lse));
            }
        }
}

Test(sample, bad_logits_are_refused)
{
    static const float bad[6] = {NAN, -NAN, INFINITY, 0, 0, 0};
    pl_ops ops[3];
    const int n_ops = builds(ops);
    int32_t ids[4];
    double scores[4];

    for (int i = 0; i < n_ops; i++)
        for (int c = 0; c < 6; c++)
            for (int at = 0; at < 1100; at += 99) {
                pl_draw d = draw_at(c == 4 ? 2e-38f : 1, 9);
                pl_drawn got;
                make_logits(1100, 3, 4);
                z[at] = bad[c];
                if (c == 3) /* nothing is possible */
                    for (int v = 0; v < 1100; v++)
                        z[v] = -INFINITY;
                if (c == 5) { /* z/T of every token is too low for fp32 */
                    d.temperature = 1e-30f;
                    for (int v = 0; v < 1100; v++)
                        z[v] = -1e10f;
                }
                ops[i].draw(z, 1100, &d, e, &got);
                cr_assert(got.token == -1 && got.lse != got.lse, "case %d at %d", c, at);
                cr_assert(ops[i].draw_topk(z, 1100, NULL, &d, 4, ids, scores) == 0);
            }
}

/* ---- the k best ---- */

typedef struct candidate {
    double score;
    int32_t id;
} candidate;

static int by_score(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->score != y->score)
        return x->score < y->score ? 1 : -1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static void check_topk(const pl_ops *ops, int n, const int32_t *map, const pl_draw *d, int k)
{
    static candidate all[V_MAX];
    static int32_t ids[V_MAX];
    static double scores[V_MAX];
    int n_all = 0;

    for (int i = 0; i < n; i++) {
        const int32_t id = map ? map[i] : i;
        const double g = d->temperature > 0 ? noise[id] : 0;
        const float a = d->temperature > 0 ? z[i] / d->temperature : z[i];
        if (a > -INFINITY)
            all[n_all++] = (candidate){(double)a + g, id};
    }
    qsort(all, (size_t)n_all, sizeof *all, by_score);
    const int expected = k < n_all ? k : n_all;
    const int got = ops->draw_topk(z, n, map, d, k, ids, scores);
    cr_assert(got == expected, "%s: %d candidates, not %d", ops->name, got, expected);
    for (int i = 0; i < got; i++)
        cr_assert(ids[i] == all[i].id && scores[i] == all[i].score,
            "%s: n %d, k %d, T %g, rank %d: id %d, plain %d", ops->name, n, k,
            (double)d->temperature, i, ids[i], all[i].id);
}

Test(sample, the_k_best_are_those_of_a_sort, .timeout = 0)
{
    static int32_t map[V_MAX];
    static const float temperatures[6] = {1, 0, 0.05f, 3, 1e-3f, 1e-12f};
    static const int ks[6] = {1, 2, 8, 16, 100, 2000};
    pl_ops ops[3];
    const int n_ops = builds(ops);

    for (uint32_t row = 0; row < 1200; row++) {
        const int n = row % 10 == 9 ? 1501 : 1 + (int)(row * 37 % 900);
        pl_draw d = draw_at(temperatures[row % 6], row);
        uint64_t s = row;
        int n_map = 0;
        make_noise(&d, n);
        make_logits(n, (int)(row / 6 % N_SHAPES), row);
        if (row % 7 == 0) /* the rest so far below that exp of the distance to the top is 0 */
            for (int v = 0; v < n; v++)
                z[v] = v == n / 2 ? 0.0f : -300.0f + z[v];
        check_topk(&ops[row % (uint32_t)n_ops], n, NULL, &d, ks[row / 6 % 6]);
        for (int v = 0; v < n; v++)
            if (next_random(&s) % 3 == 0)
                map[n_map++] = v;
        if (n_map > 0)
            check_topk(&ops[row % (uint32_t)n_ops], n_map, map, &d, ks[row / 6 % 6]);
    }
}

/* Beside a large z/T the noise is rounded: scores tie that do not tie exactly. */
Test(sample, shortcut_holds_where_scores_lose_their_digits)
{
    static const float scale[10] = {
        1e4f, 1e6f, 1e9f, 1e12f, 1e14f, 5e14f, 1e15f, 1e18f, 1e30f, 3e38f};
    pl_ops ops[3];
    const int n = 600, n_ops = builds(ops);

    for (uint32_t row = 0; row < 4000; row++) {
        const pl_ops *o = &ops[row % (uint32_t)n_ops];
        pl_draw d = draw_at(1, row);
        pl_drawn got;
        uint64_t s = row;
        make_noise(&d, n);
        for (int v = 0; v < n; v++) { /* neighbours of one large value, and ties of it */
            const float top = row % 2 ? scale[row / 2 % 10] : -scale[row / 2 % 10];
            z[v] = next_random(&s) % 2 ? top : nextafterf(top, 0);
        }
        o->draw(z, n, &d, e, &got);
        cr_assert(got.token == plain_draw(n, 1, NULL), "row %u, scale %g: token %d, plain %d", row,
            (double)z[0], got.token, plain_draw(n, 1, NULL));
        check_topk(o, n, NULL, &d, 1 + (int)(row % 9));
    }
}

Test(sample, first_candidate_is_the_token_that_is_drawn)
{
    pl_ops ops[3];
    builds(ops);
    for (uint32_t row = 0; row < 2000; row++) {
        const pl_draw d = draw_at(row % 5 ? 0.9f : 0, row);
        pl_drawn got;
        int32_t ids[3];
        double scores[3];
        make_logits(800, (int)(row % N_SHAPES), row);
        ops[0].draw(z, 800, &d, e, &got);
        ops[0].draw_topk(z, 800, NULL, &d, 3, ids, scores);
        cr_assert(ids[0] == got.token, "row %u", row);
    }
}

/* ---- the builds agree ---- */

static void run_logsumexp(const pl_ops *ops, uint64_t seed, int n, int kind, float *out)
{
    static float x[WIDTH];
    fill(x, WIDTH, &seed, kind);
    ops->logsumexp(x, n, seed % 3 ? 1.0f : 0.3f, out, out + WIDTH, out + WIDTH + 1);
}

static void run_draw(const pl_ops *ops, uint64_t seed, int n, int kind, float *out)
{
    static float x[WIDTH];
    pl_draw d = draw_at(seed % 3 ? 1.0f : 0.3f, (uint32_t)seed);
    pl_drawn got;
    uint64_t s = seed;
    fill(x, WIDTH, &s, kind);
    d.top_k = seed % 2 ? 0 : 40;
    d.top_p = seed % 5 ? 1 : 0.8f;
    ops->draw(x, n, &d, out, &got);
    out[WIDTH] = (float)got.token;
    out[WIDTH + 1] = got.logprob;
    out[WIDTH + 2] = got.lse;
    out[WIDTH + 3] = got.max;
    out[WIDTH + 4] = (float)got.n_exact;
}

static void run_topk(const pl_ops *ops, uint64_t seed, int n, int kind, float *out)
{
    static float x[WIDTH];
    const pl_draw d = draw_at(seed % 3 ? 1.0f : 0, (uint32_t)seed);
    int32_t ids[20];
    double scores[20];
    uint64_t s = seed;
    fill(x, WIDTH, &s, kind);
    const int k = ops->draw_topk(x, n, NULL, &d, 20, ids, scores);
    for (int i = 0; i < k; i++) {
        out[i] = (float)ids[i];
        out[WIDTH + i] = (float)scores[i];
    }
}

Test(sample, builds_agree)
{
    check_parity(run_logsumexp, "logsumexp");
    check_parity(run_draw, "draw");
    check_parity(run_topk, "draw_topk");
}
