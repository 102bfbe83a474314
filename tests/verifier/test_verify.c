/* Claims tested: whatever the draft, the emitted tokens, log-probs and rows are those of drawing
 * plainly, one token after the other; rows are those of the accepted path; only reached rows
 * matter; the coupled acceptance of one candidate is 19/35 for the p and q of DRAFTING L4. */
#include "core/rng.h"
#include "verifier/verifier.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { V = 1003 };

/* A model of the world: logits are a pure function of the path of tokens. */
typedef struct world {
    const pl_draft *draft;
    float (*rows)[V];
    int poison_row; /* -1: none */
    int n_asked;
} world;

static void logits_of_path(const int32_t *path, int n, float *z)
{
    uint32_t h = 17;
    for (int i = 0; i < n; i++)
        h = h * 1000003u + (uint32_t)path[i];
    for (int v = 0; v < V; v++)
        z[v] = 6.0f * (float)pl_noise_uniform(99, h, 0, PL_NOISE_INIT, (uint32_t)v);
}

static const float *row_logits(void *ctx, int row)
{
    world *w = ctx;
    int32_t path[PL_DRAFT_MAX];
    int n = 0;
    for (int i = row; i >= 0; i = w->draft->parent[i])
        path[n++] = w->draft->token[i];
    for (int i = 0; i < n / 2; i++) {
        const int32_t t = path[i];
        path[i] = path[n - 1 - i];
        path[n - 1 - i] = t;
    }
    logits_of_path(path, n, w->rows[row]);
    if (row == w->poison_row)
        w->rows[row][V / 2] = NAN;
    w->n_asked++;
    return w->rows[row];
}

static const pl_ops *ref_ops(pl_isa isa)
{
    const pl_ops *ops = NULL;
    pl_cpu cpu;
    pl_cpu_read(&cpu);
    return pl_ops_select(&ops, isa, &cpu, NULL, 0, NULL) == PL_OK ? ops : NULL;
}

/* The plain sampler: one token after the other. */
static void draw_plain(const pl_ops *ops, int32_t pending, const pl_draw *draw, int n,
    int32_t *tokens, float *logprobs)
{
    static float z[V], scratch[V];
    int32_t path[PL_DRAFT_MAX + 1] = {pending};
    pl_draw d = *draw;
    for (int i = 0; i < n; i++) {
        pl_drawn out;
        logits_of_path(path, i + 1, z);
        ops->draw(z, V, &d, scratch, &out);
        tokens[i] = path[i + 1] = out.token;
        logprobs[i] = out.logprob;
        d.position++;
    }
}

/* Shapes: 0 none, 1 right chain, 2 chain wrong at the third, 3 all wrong, 4 random tree that holds
 * the right path, 5 right path last of 64 rows, 6 random tokens. */
enum { SHAPES = 7 };
static int make_draft(pl_draft *d, int shape, const int32_t *right, uint32_t seed)
{
    pl_draft_begin(d, 5);
    int row = 0, depth = 0;
    if (shape == 1 || shape == 2) {
        for (int i = 0; i < 12; i++)
            row = pl_draft_add(
                d, row, shape == 2 && i == 2 ? (right[i] + 1) % V : right[i], PL_SOURCE_SUFFIX, 64);
        return shape == 1 ? 12 : 2;
    }
    if (shape == 3 || shape == 6) {
        for (int i = 0; i < 30; i++) {
            const uint32_t r = pl_noise_word(1, seed, 0, 0, (uint32_t)i);
            int32_t t = (int32_t)(r % V);
            const int parent = (int)(r >> 16) % d->n;
            if (d->depth[parent] < 60 && t != right[d->depth[parent]])
                pl_draft_add(d, parent, t, PL_SOURCE_LEARNED, 64);
        }
        return 0;
    }
    if (shape == 4 || shape == 5) {
        for (int i = 0; d->n < (shape == 5 ? 58 : 20); i++) {
            const uint32_t r = pl_noise_word(2, seed, 0, 0, (uint32_t)i);
            const int parent = (int)(r >> 16) % d->n;
            const int32_t t = (int32_t)(r % V);
            if (t != right[d->depth[parent]])
                pl_draft_add(d, parent, t, PL_SOURCE_SUFFIX, 64);
        }
        for (; depth < 6; depth++)
            row = pl_draft_add(d, row, right[depth], PL_SOURCE_LEARNED, 64);
        return 6;
    }
    return 0;
}

static void check_isa(pl_isa isa)
{
    const pl_ops *ops = ref_ops(isa);
    if (!ops)
        return;
    static float rows[PL_DRAFT_MAX][V], scratch[V];
    const float temperatures[4] = {0, 0.7f, 1, 1};
    for (int c = 0; c < 4 * SHAPES * 6; c++) {
        const int shape = c % SHAPES, sampling = c / SHAPES % 4;
        pl_draw draw = {.temperature = temperatures[sampling],
            .top_p = 1,
            .key = 42,
            .uid = (uint32_t)c,
            .position = (uint32_t)(7 * c)};
        if (sampling == 3) {
            draw.top_k = 20;
            draw.top_p = 0.9f;
        }
        int32_t tokens[PL_DRAFT_MAX];
        float logprobs[PL_DRAFT_MAX];
        draw_plain(ops, 5, &draw, PL_DRAFT_MAX, tokens, logprobs);

        pl_draft d;
        const int n_accepted = make_draft(&d, shape, tokens, (uint32_t)c);
        world w = {.draft = &d, .rows = rows, .poison_row = -1};
        pl_verdict v;
        cr_assert_eq(pl_verify(&d, V, &draw, ops, row_logits, &w, scratch, &v, NULL), PL_OK);
        cr_assert_eq(v.n, n_accepted + 1, "case %d: %d", c, v.n);
        cr_assert_eq(w.n_asked, v.n, "only reached rows are drawn");
        cr_assert_eq(memcmp(v.token, tokens, (size_t)v.n * sizeof *tokens), 0, "case %d", c);
        cr_assert_eq(memcmp(v.logprob, logprobs, (size_t)v.n * sizeof *logprobs), 0, "case %d", c);
        cr_assert_eq(v.row[0], 0);
        for (int i = 1; i < v.n; i++) {
            cr_assert_eq(d.parent[v.row[i]], v.row[i - 1]);
            cr_assert_eq(d.token[v.row[i]], v.token[i - 1]);
            cr_assert_eq(v.source[i - 1], d.source[v.row[i]]);
        }
        cr_assert_eq(v.source[v.n - 1], PL_SOURCE_TARGET);
    }
}

Test(verify, every_draft_gives_the_tokens_and_log_probs_of_plain_drawing)
{
    cr_assert_not_null(ref_ops(PL_ISA_REF));
    check_isa(PL_ISA_REF);
    check_isa(PL_ISA_AVX2);
    check_isa(PL_ISA_AVX512);
    check_isa(PL_ISA_AMX);
}

Test(verify, sixty_three_right_tokens_give_sixty_four)
{
    const pl_ops *ops = ref_ops(PL_ISA_REF);
    static float rows[PL_DRAFT_MAX][V], scratch[V];
    const pl_draw draw = {.temperature = 1, .top_p = 1, .key = 1, .uid = 2, .position = 3};
    int32_t tokens[PL_DRAFT_MAX];
    float logprobs[PL_DRAFT_MAX];
    draw_plain(ops, 5, &draw, PL_DRAFT_MAX, tokens, logprobs);
    pl_draft d;
    pl_draft_begin(&d, 5);
    for (int i = 0; i < 63; i++)
        cr_assert_eq(pl_draft_add(&d, i, tokens[i], PL_SOURCE_SUFFIX, 64), i + 1);
    cr_assert_eq(pl_draft_add(&d, 63, 1, PL_SOURCE_SUFFIX, 1000), -1, "a full draft takes no more");
    world w = {.draft = &d, .rows = rows, .poison_row = -1};
    pl_verdict v;
    cr_assert_eq(pl_verify(&d, V, &draw, ops, row_logits, &w, scratch, &v, NULL), PL_OK);
    cr_expect_eq(v.n, 64);
    cr_expect_eq(memcmp(v.token, tokens, sizeof tokens), 0);
}

Test(verify, a_poisoned_row_matters_only_when_it_is_reached)
{
    const pl_ops *ops = ref_ops(PL_ISA_REF);
    static float rows[PL_DRAFT_MAX][V], scratch[V];
    const pl_draw draw = {.temperature = 1, .top_p = 1, .key = 1, .uid = 2, .position = 3};
    int32_t tokens[PL_DRAFT_MAX];
    float logprobs[PL_DRAFT_MAX];
    draw_plain(ops, 5, &draw, PL_DRAFT_MAX, tokens, logprobs);
    pl_draft d;
    pl_draft_begin(&d, 5);
    const int wrong = pl_draft_add(&d, 0, (tokens[0] + 1) % V, PL_SOURCE_SUFFIX, 64);
    const int right = pl_draft_add(&d, 0, tokens[0], PL_SOURCE_SUFFIX, 64);
    pl_verdict v;
    pl_error err;
    world w = {.draft = &d, .rows = rows, .poison_row = wrong};
    cr_expect_eq(pl_verify(&d, V, &draw, ops, row_logits, &w, scratch, &v, &err), PL_OK);
    cr_expect_eq(v.n, 2);
    w.poison_row = right;
    cr_expect_eq(pl_verify(&d, V, &draw, ops, row_logits, &w, scratch, &v, &err), PL_E_NUMERIC);
    cr_expect_not_null(strstr(err.msg, "sample 2 at position 4"), "%s", err.msg);
}

/* L4: p = (.4, .3, .2, .1), q = (.1, .2, .3, .4): the drafter's first candidate by the shared noise
 * is the drawn token with 19/35, and what is emitted follows p. */
static const float *four_logits(void *ctx, int row)
{
    (void)row;
    return ctx;
}

Test(verify, coupled_acceptance_is_nineteen_thirty_fifths_and_the_output_follows_p)
{
    const pl_ops *ops = ref_ops(PL_ISA_REF);
    enum { N = 200000 };
    float z[4] = {logf(.4f), logf(.3f), logf(.2f), logf(.1f)}, scratch[16];
    const double q[4] = {.1, .2, .3, .4};
    int accepted = 0, seen[4] = {0};
    for (uint32_t pos = 0; pos < N; pos++) {
        const pl_draw draw = {.temperature = 1, .top_p = 1, .key = 9, .uid = 1, .position = pos};
        int best = 0;
        double best_score = -1e9;
        for (int t = 0; t < 4; t++) {
            const double score = log(q[t]) + pl_noise_gumbel(9, 1, pos, 0, (uint32_t)t);
            if (score > best_score) {
                best_score = score;
                best = t;
            }
        }
        pl_draft d;
        pl_verdict v;
        pl_draft_begin(&d, 0);
        pl_draft_add(&d, 0, best, PL_SOURCE_LEARNED, 64);
        cr_assert_eq(pl_verify(&d, 4, &draw, ops, four_logits, z, scratch, &v, NULL), PL_OK);
        accepted += v.n == 2;
        seen[v.token[0]]++;
    }
    cr_expect_float_eq(accepted / (double)N, 19.0 / 35, 0.006, "%d of %d", accepted, N);
    double chi2 = 0;
    for (int t = 0; t < 4; t++) {
        const double e = N * (.4 - .1 * t);
        chi2 += (seen[t] - e) * (seen[t] - e) / e;
    }
    cr_expect_lt(chi2, 30.66, "chi2 %.2f, 3 degrees of freedom, p = 1e-6", chi2);
}
