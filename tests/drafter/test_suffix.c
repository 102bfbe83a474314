/* Claims tested: counts are exact (against a scan of the texts), shares follow them, texts that
 * grow side by side are one knowledge, ageing weighs, the bound in tokens holds, full automata go
 * on reading, periodic and one-token text stay cheap. */
#include "core/rng.h"
#include "drafter/internal.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const pl_suffix_options big = {.min_match = 1, .max_tokens = 1 << 20, .decay = 0.5f};

static pl_suffix *make(const pl_suffix_options *o)
{
    pl_suffix *s = NULL;
    cr_assert_eq(pl_suffix_new(&s, o, NULL), PL_OK);
    return s;
}

static pl_suffix_cursor *cursor(pl_suffix *s)
{
    pl_suffix_cursor *c = NULL;
    cr_assert_eq(pl_suffix_cursor_new(&c, s, NULL), PL_OK);
    return c;
}

static void append(pl_suffix_cursor *c, const char *text)
{
    for (; *text; text++) {
        const int32_t token = *text;
        cr_assert_eq(pl_suffix_append(c, &token, 1, NULL), PL_OK);
    }
}

static float share_of(const pl_suffix_cursor *c, int match_max, int32_t token, int *match)
{
    int32_t tokens[64];
    float shares[64];
    const int n = suffix_shares(c, match_max, 64, tokens, shares, match);
    for (int i = 0; i < n; i++)
        if (tokens[i] == token)
            return shares[i];
    return 0;
}

Test(suffix, shares_of_the_example_are_two_thirds_and_one_third)
{
    pl_suffix *s = make(&big);
    pl_suffix_cursor *a = cursor(s), *b = cursor(s);
    append(a, "abcabcabd");
    append(b, "ab");
    int match;
    cr_expect_float_eq(share_of(b, 8, 'c', &match), 2.0f / 3, 1e-6f);
    cr_expect_eq(match, 2);
    cr_expect_float_eq(share_of(b, 8, 'd', &match), 1.0f / 3, 1e-6f);
    cr_expect_float_eq(share_of(b, 1, 'c', &match), 2.0f / 3, 1e-6f);
    pl_suffix_cursor_free(a);
    pl_suffix_cursor_free(b);
    pl_suffix_free(s);
}

Test(suffix, greedy_proposal_takes_the_most_frequent_path_first)
{
    pl_suffix *s = make(&big);
    pl_suffix_cursor *a = cursor(s), *b = cursor(s);
    append(a, "abcabcabd");
    append(b, "ab");
    pl_draft d;
    float expected[PL_DRAFT_MAX];
    const pl_draw greedy = {.temperature = 0, .top_p = 1};
    pl_draft_begin(&d, 'b');
    const int n = pl_suffix_propose(b, &greedy, 8, 3, &d, expected);
    cr_assert_geq(n, 2);
    cr_expect_eq(d.n, n + 1);
    cr_expect_eq(d.token[1], 'c');
    cr_expect_eq(d.parent[1], 0);
    cr_expect(pl_draft_child(&d, 0, 'd') > 0);
    for (int i = 1; i < d.n; i++) {
        cr_expect_lt(d.parent[i], i);
        cr_expect_eq(d.depth[i], d.depth[d.parent[i]] + 1);
        cr_expect_leq(d.depth[i], 3);
        cr_expect_eq(d.source[i], PL_SOURCE_SUFFIX);
        cr_expect(expected[i] > 0 && expected[i] <= expected[d.parent[i]]);
        cr_expect_leq(expected[i], expected[i - 1]);
        cr_expect_eq(pl_draft_child(&d, d.parent[i], d.token[i]), i, "siblings differ");
    }
    pl_suffix_cursor_free(a);
    pl_suffix_cursor_free(b);
    pl_suffix_free(s);
}

Test(suffix, proposal_never_exceeds_rows_or_depth)
{
    pl_suffix *s = make(&big);
    pl_suffix_cursor *c = cursor(s);
    for (int i = 0; i < 4000; i++) {
        const int32_t token = (int32_t)(pl_noise_word(1, 2, 3, 4, (uint32_t)i) % 5);
        cr_assert_eq(pl_suffix_append(c, &token, 1, NULL), PL_OK);
    }
    for (int rows = 1; rows <= 70; rows++) {
        pl_draft d;
        const pl_draw draw = {.temperature = 1, .top_p = 1, .key = 5, .position = (uint32_t)rows};
        pl_draft_begin(&d, 0);
        const int depth = rows % 9;
        pl_suffix_propose(c, &draw, rows, depth, &d, NULL);
        cr_expect_leq(d.n, rows < PL_DRAFT_MAX ? rows : PL_DRAFT_MAX);
        for (int i = 0; i < d.n; i++)
            cr_expect_leq(d.depth[i], depth);
    }
    pl_suffix_cursor_free(c);
    pl_suffix_free(s);
}

/* Where shares equal the target's probabilities, keyed ranking proposes the token that is drawn. */
Test(suffix, keyed_noise_makes_the_first_candidate_the_drawn_token)
{
    pl_suffix *s = make(&big);
    pl_suffix_cursor *c = cursor(s);
    enum { N = 3000 };
    const double p[4] = {.5, .25, .15, .1};
    for (int i = 0; i < N; i++) { /* context 9, then a token by p */
        const double u = pl_noise_uniform(7, 0, (uint32_t)i, 3, 0);
        const int32_t pair[2] = {9, u < .5 ? 0 : u < .75 ? 1 : u < .9 ? 2 : 3};
        cr_assert_eq(pl_suffix_append(c, pair, 2, NULL), PL_OK);
    }
    const int32_t nine = 9;
    cr_assert_eq(pl_suffix_append(c, &nine, 1, NULL), PL_OK);
    pl_suffix_cursor *fresh = cursor(s);
    cr_assert_eq(pl_suffix_append(fresh, &nine, 1, NULL), PL_OK);

    int hits = 0;
    for (uint32_t pos = 0; pos < 1000; pos++) {
        int drawn = 0;
        double best = -1e9;
        for (int v = 0; v < 4; v++) {
            const double score = log(p[v]) + pl_noise_gumbel(77, 3, pos, 0, (uint32_t)v);
            if (score > best) {
                best = score;
                drawn = v;
            }
        }
        pl_draft d;
        const pl_draw draw = {
            .temperature = 1, .top_p = 1, .key = 77, .uid = 3, .position = pos, .purpose = 0};
        pl_draft_begin(&d, 9);
        cr_assert_gt(pl_suffix_propose(fresh, &draw, 2, 1, &d, NULL), 0);
        hits += d.token[1] == drawn;
    }
    cr_expect_gt(hits, 950, "%d of 1000", hits);
    pl_suffix_cursor_free(c);
    pl_suffix_cursor_free(fresh);
    pl_suffix_free(s);
}

enum { TEXTS = 5, PROMPT = 40, ROUNDS = 100000 };

static double scan(
    const int32_t *prompt, int32_t *const *texts, const int *n, const int32_t *what, int len)
{
    double count = 0;
    for (int t = -1; t < TEXTS; t++) {
        const int n_end = t < 0 ? PROMPT : n[t];
        for (int end = 1; end <= n_end; end++) {
            int k = 0;
            for (; k < len; k++) {
                const int at = end - 1 - k; /* index of the k-th token from the end */
                const int32_t w = what[len - 1 - k];
                if (t < 0     ? at < 0 || prompt[at] != w
                    : at >= 0 ? texts[t][at] != w
                              : at + PROMPT < 0 || prompt[at + PROMPT] != w)
                    break;
            }
            count += k == len;
        }
    }
    return count;
}

Test(suffix, counts_of_a_hundred_thousand_random_appends_are_exact, .timeout = 60)
{
    pl_suffix *s = make(&big);
    int32_t prompt[PROMPT], *texts[TEXTS];
    int n[TEXTS] = {0};
    pl_suffix_cursor *c[TEXTS];
    for (int i = 0; i < PROMPT; i++)
        prompt[i] = (int32_t)(pl_noise_word(3, 0, 0, 0, (uint32_t)i) % 3);
    cr_assert_eq(pl_suffix_set_prompt(s, prompt, PROMPT, NULL), PL_OK);
    for (int t = 0; t < TEXTS; t++) {
        texts[t] = malloc(ROUNDS * sizeof *texts[t]);
        c[t] = cursor(s);
    }
    for (int i = 0; i < ROUNDS; i++) {
        const uint32_t r = pl_noise_word(4, 0, 0, 0, (uint32_t)i);
        const int t = (int)(r % TEXTS);
        /* Runs, copies of a sibling, and noise: all cases of extend. */
        int32_t token = (int32_t)(r >> 8 & 1) ? 0 : (int32_t)(r >> 9 & 3);
        if ((r >> 12 & 7) > 2 && n[t] < n[(t + 1) % TEXTS])
            token = texts[(t + 1) % TEXTS][n[t]];
        texts[t][n[t]++] = token;
        cr_assert_eq(pl_suffix_append(c[t], &token, 1, NULL), PL_OK);
        if (i % 1000 != 999 && i > 200)
            continue;
        const int len = 1 + (int)(r >> 16) % SUFFIX_DEPTH;
        if (n[t] < len)
            continue;
        const int32_t *what = texts[t] + (int)(r >> 3) % (n[t] - len + 1);
        int state = 0;
        for (int k = 0; k < len; k++) {
            state = automaton_next(&s->a, state, what[k]);
            cr_assert_geq(state, 0, "substring of %d tokens is lost", len);
        }
        cr_assert_lt(s->a.len[s->a.link[state]], len);
        const double expected = scan(prompt, texts, n, what, len);
        cr_assert_float_eq((double)s->a.count[state], expected, 1e-3,
            "append %d, %d tokens: %g, not %g", i, len, (double)s->a.count[state], expected);
    }
    cr_expect_leq(s->a.n_states, 2 * (ROUNDS + PROMPT));
    cr_expect_leq(s->a.n_edges, 3 * (ROUNDS + PROMPT));
    for (int t = 0; t < TEXTS; t++) {
        cr_expect_eq(s->a.len[c[t]->place.last], PROMPT + n[t]);
        pl_suffix_cursor_free(c[t]);
        free(texts[t]);
    }
    pl_suffix_free(s);
}

Test(suffix, newer_versions_weigh_more)
{
    pl_suffix *s = make(&big); /* decay 0.5 */
    pl_suffix_cursor *a = cursor(s);
    append(a, "xay");
    pl_suffix_cursor_free(a);
    pl_suffix_age(s);
    a = cursor(s);
    append(a, "xaz");
    pl_suffix_cursor_free(a);
    a = cursor(s);
    append(a, "xa");
    int match;
    cr_expect_float_eq(share_of(a, 8, 'z', &match), 2.0f / 3, 1e-6f);
    for (int i = 0; i < 100; i++) /* far beyond the range of float */
        pl_suffix_age(s);
    cr_expect_float_eq(share_of(a, 8, 'z', &match), 2.0f / 3, 1e-5f);
    pl_suffix_cursor_free(a);
    pl_suffix_free(s);
}

Test(suffix, oldest_texts_are_dropped_beyond_the_bound)
{
    const pl_suffix_options o = {.min_match = 1, .max_tokens = 400, .decay = 1};
    pl_suffix *s = make(&o);
    const int32_t prompt[3] = {1000, 1001, 1002};
    cr_assert_eq(pl_suffix_set_prompt(s, prompt, 3, NULL), PL_OK);
    pl_suffix_cursor *keep = cursor(s);
    for (int t = 0; t < 40; t++) {
        pl_suffix_cursor *c = cursor(s);
        const int32_t token = 7;
        cr_assert_eq(pl_suffix_append(keep, &token, 1, NULL), PL_OK);
        for (int i = 0; i < 50; i++) {
            const int32_t own = 100 * t + i;
            cr_assert_eq(pl_suffix_append(c, &own, 1, NULL), PL_OK);
        }
        cr_assert_leq(pl_suffix_tokens(s), 400u);
        pl_suffix_cursor_free(c);
    }
    cr_expect_geq(automaton_next(&s->a, 0, 1001), 0, "the prompt stays");
    cr_expect_geq(automaton_next(&s->a, 0, 3949), 0, "the newest text stays");
    cr_expect_lt(automaton_next(&s->a, 0, 149), 0, "the oldest text goes");
    cr_expect_eq(s->a.len[keep->place.last], 3 + 40, "a running text survives the rebuilds");
    pl_suffix_cursor_free(keep);
    pl_suffix_free(s);
}

Test(suffix, a_full_automaton_refuses_more_text_and_goes_on_matching)
{
    const pl_suffix_options o = {.min_match = 1, .max_tokens = 16, .decay = 1};
    pl_suffix *s = make(&o);
    pl_suffix_cursor *a = cursor(s), *b = cursor(s);
    append(a, "abcdefghijklmnop");
    append(b, "xyzabc");
    cr_expect_eq(pl_suffix_tokens(s), 16u);
    int match;
    cr_expect_float_eq(share_of(b, 8, 'd', &match), 1, 1e-6f);
    cr_expect_eq(match, 3);
    pl_suffix_cursor_free(a);
    pl_suffix_cursor_free(b);
    pl_suffix_free(s);
}

Test(suffix, one_token_text_stays_linear, .timeout = 20)
{
    pl_suffix *s = make(&big);
    pl_suffix_cursor *c = cursor(s);
    const int32_t token = 3;
    for (int i = 0; i < 300000; i++)
        cr_assert_eq(pl_suffix_append(c, &token, 1, NULL), PL_OK);
    cr_expect_eq(s->a.n_states, 300001);
    const int at = c->place.at;
    cr_expect_eq(s->a.len[at], SUFFIX_DEPTH);
    cr_expect_float_eq((double)s->a.count[at], 300001.0 - SUFFIX_DEPTH, 1.0);
    pl_suffix_cursor_free(c);
    pl_suffix_free(s);
}

Test(suffix, options_out_of_range_are_refused)
{
    pl_suffix *s = NULL;
    pl_error err;
    pl_suffix_options o = big;
    o.min_match = -1;
    cr_expect_eq(pl_suffix_new(&s, &o, &err), PL_E_INVAL);
    o = big;
    o.max_tokens = 0;
    cr_expect_eq(pl_suffix_new(&s, &o, &err), PL_E_INVAL);
    o = big;
    o.decay = NAN;
    cr_expect_eq(pl_suffix_new(&s, &o, &err), PL_E_INVAL);
    cr_expect_null(s);
    pl_suffix_free(NULL);
    pl_suffix_cursor_free(NULL);
}
