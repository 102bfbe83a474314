/* tests/drafter/test_learned.c - drafting with the learned drafter.
 *
 * Claims: every level of a chain has the logits of a naive drafter in double precision that runs
 * token by token over the whole window, in each form that a drafter may have; a tree does not
 * depend on how its text was fed, on what was tried in between, on the samples beside it, on
 * drafters before it or on the threads; a window forgets what is behind it; trees are well formed,
 * merged ones too; a swap back is a swap back; broken features cost proposals, nothing else. */
#include "core/rng.h"
#include "tests/drafter/naive.h"
#include "tests/drafter/trees.h"

/* Chains of a window against the naive drafter. */
static void expect_naive_chains(int form, int window, int p)
{
    static naive n;
    static text x;
    pl_learned_options o = plain;
    double z[BED_V];
    tree t;
    bed b;

    bed_init(&b, 2);
    text_init(&x, 3);
    pl_eagle *e = drafter_of_form(&b, form, 1);
    n = (naive){.b = &b, .e = e};
    o.window = window;
    o.topk = 1;
    for (int depth = 1; depth <= 4; depth++) {
        o.max_depth = depth;
        pl_learned *l = learned(&b, &o, e);
        const int place = open_with(l, &x, p);
        cr_assert_eq(propose(l, place, &t, &x, 0.7f), depth);
        expect_valid(&t, o.max_rows, depth);
        naive_logits(&n, &x, p > window ? p - window : 0, p, t.d.token, depth - 1, z);
        const double far = distance(z, l->logits, e->dims.v);
        cr_expect_lt(far, 2.5e-2, "form %d, window %d, text %d, depth %d: logits off by %g", form,
            window, p, depth, far);
        double own = -1e30;
        const double best = best_score(&t, e, z, depth - 1, t.d.token[depth], &own);
        cr_expect_lt(best - own, 0.1, "depth %d: token %d of score %g, the best has %g", depth,
            t.d.token[depth], own, best);
        pl_learned_free(l);
    }
    pl_eagle_free(e);
    bed_done(&b);
}

Test(learned, a_chain_is_that_of_a_drafter_that_runs_token_by_token)
{
    expect_naive_chains(0, 256, 1);
    expect_naive_chains(0, 256, 21);
    expect_naive_chains(0, 256, 130);
}

Test(learned, raw_features_a_raw_state_and_another_eps_are_those_of_that_drafter)
{
    for (int form = 1; form < 4; form++) {
        expect_naive_chains(form, 256, 21);
        expect_naive_chains(form, 20, 70);
    }
}

Test(learned, a_window_forgets_what_is_behind_it)
{
    expect_naive_chains(0, 20, 19);
    expect_naive_chains(0, 20, 21);
    expect_naive_chains(0, 20, 115);
    expect_naive_chains(0, 64, 128);
    expect_naive_chains(0, 1, 50);
}

/* What recurs in the tree is what recurs in the chain: each path of a tree scores like a chain. */
static void expect_naive_paths(int form)
{
    enum { DEPTH = 5 };
    static naive n;
    static text x;
    pl_learned_options o = plain;
    double z[BED_V];
    int n_seen = 0;
    tree t;
    bed b;

    bed_init(&b, 2);
    text_init(&x, 4);
    pl_eagle *e = drafter_of_form(&b, form, 2);
    n = (naive){.b = &b, .e = e};
    o.max_rows = PL_DRAFT_MAX;
    o.max_depth = DEPTH;
    pl_learned *l = learned(&b, &o, e);
    const int place = open_with(l, &x, 40);
    cr_assert_gt(propose(l, place, &t, &x, 1.5f), 20);
    expect_valid(&t, o.max_rows, o.max_depth);
    for (int r = 0; r < LEARNED_LEVEL_ROWS; r++) { /* the last level is still there */
        const learned_node *node = &l->trees[0].nodes[l->rows[r].node];
        int32_t chain[DEPTH];
        if (node->depth != DEPTH - 1)
            break;
        n_seen++;
        for (int k = DEPTH - 1, at = l->rows[r].node; k >= 0;
             k--, at = l->trees[0].nodes[at].parent)
            chain[k] = l->trees[0].nodes[at].token;
        naive_logits(&n, &x, 0, 40, chain, DEPTH - 1, z);
        const double far = distance(z, l->logits + (size_t)r * (size_t)e->dims.vp, e->dims.v);
        cr_expect_lt(far, 2.5e-2, "form %d, row %d: logits off by %g", form, r, far);
    }
    cr_expect_gt(n_seen, 3, "%d rows of the last level", n_seen);
    pl_learned_free(l);
    pl_eagle_free(e);
    bed_done(&b);
}

Test(learned, the_rows_of_a_tree_see_their_own_path_alone)
{
    expect_naive_paths(0);
    expect_naive_paths(3);
}

/* ---- the caches ---- */

Test(learned, odd_pieces_drafted_in_between_are_one_feed)
{
    static const int pieces[] = {1, 2, 7, 31, 64, 65, 3, 1, 90};
    static text x;
    tree t, want;
    bed b;

    bed_init(&b, 2);
    text_init(&x, 5);
    pl_eagle *e = bed_drafter(&b, 3, 3);
    for (int window = 33; window <= 256; window += 223) {
        pl_learned_options o = plain;
        o.window = window;
        pl_learned *l = learned(&b, &o, e);
        const int place = pl_learned_open(l);
        for (size_t i = 0, at = 0; i < sizeof pieces / sizeof *pieces; at += (size_t)pieces[i++]) {
            feed(l, place, &x, (int)at, (int)at + pieces[i]);
            const int whole = open_with(l, &x, (int)at + pieces[i]);
            cr_assert_eq(pl_learned_position(l, place), (int)at + pieces[i]);
            cr_expect_gt(propose(l, place, &t, &x, 1), 0);
            propose(l, whole, &want, &x, 1);
            cr_expect(same(&t, &want), "window %d, after piece %zu", window, i);
            pl_learned_close(l, whole);
        }
        pl_learned_free(l);
    }
    pl_eagle_free(e);
    bed_done(&b);
}

Test(learned, a_cut_text_and_another_pending_token_leave_nothing_behind)
{
    static text x, other;
    tree t, want;
    bed b;

    bed_init(&b, 2);
    text_init(&x, 6);
    text_init(&other, 7);
    pl_eagle *e = bed_drafter(&b, 3, 4);
    pl_learned *l = learned(&b, &plain, e);
    const int fresh = open_with(l, &x, 100);
    propose(l, fresh, &want, &x, 1);

    /* Another text from 60 on, drafted for and taken back. */
    int place = open_with(l, &x, 60);
    feed(l, place, &other, 60, 130);
    propose(l, place, &t, &other, 1);
    cr_expect(!same(&t, &want));
    feed(l, place, &x, 60, 100);
    propose(l, place, &t, &x, 1);
    cr_expect(same(&t, &want), "after a cut");

    /* Another pending token than the one that came. */
    place = open_with(l, &x, 50);
    propose(l, place, &t, &other, 1);
    feed(l, place, &x, 50, 100);
    propose(l, place, &t, &other, 1);
    propose(l, place, &t, &x, 1);
    cr_expect(same(&t, &want), "after other pending tokens");

    /* A gap, and a text that begins late. */
    feed(l, place, &other, 150, 170);
    feed(l, fresh, &other, 0, 1);
    propose(l, place, &t, &other, 1);
    pl_learned_close(l, fresh);
    const int late = pl_learned_open(l);
    feed(l, late, &other, 150, 170);
    propose(l, late, &want, &other, 1);
    cr_expect(same(&t, &want), "after a gap");
    pl_learned_free(l);
    pl_eagle_free(e);
    bed_done(&b);
}

Test(learned, a_swap_and_back_proposes_what_it_did)
{
    static text x;
    tree t, want, swapped;
    pl_learned_stats s;
    pl_error err = {0};
    bed b;

    bed_init(&b, 2);
    text_init(&x, 8);
    pl_eagle *e = bed_drafter(&b, 3, 5), *small = bed_drafter(&b, 2, 6);
    pl_learned_options o = plain;
    o.window = 48;
    pl_learned *l = learned(&b, &o, e);
    const int place = open_with(l, &x, 90);
    propose(l, place, &want, &x, 1);
    pl_learned_get_stats(l, &s, 1);
    cr_expect(s.n_extended == 48 && s.n_rebuilt == 0 && s.n_level_rows > 0);
    cr_assert_eq(pl_learned_set(l, small, &err), PL_OK, "%s", err.msg);
    propose(l, place, &swapped, &x, 1);
    expect_valid(&swapped, o.max_rows, o.max_depth);
    cr_expect(!same(&swapped, &want));
    pl_learned_get_stats(l, &s, 1);
    cr_expect(s.n_extended == 0 && s.n_rebuilt == 48, "%d new, %d anew", (int)s.n_extended,
        (int)s.n_rebuilt);
    cr_assert_eq(pl_learned_set(l, NULL, &err), PL_OK);
    cr_expect_eq(propose(l, place, &t, &x, 1), 0);
    cr_expect(t.d.n == 1 && t.expected[0] == 1);
    cr_assert_eq(pl_learned_set(l, e, &err), PL_OK, "%s", err.msg);
    propose(l, place, &t, &x, 1);
    cr_expect(same(&t, &want));
    pl_learned_free(l);
    pl_eagle_free(e);
    pl_eagle_free(small);
    bed_done(&b);
}

/* The same weights in each form, one after the other and each alone. */
Test(learned, drafters_of_different_forms_follow_one_another)
{
    static const int forms[] = {0, 3, 1, 2, 0};
    static text x;
    tree t, want, before;
    pl_error err = {0};
    pl_eagle *e[4];
    bed b;

    bed_init(&b, 2);
    text_init(&x, 18);
    for (int i = 0; i < 4; i++)
        e[i] = drafter_of_form(&b, i, 15);
    pl_learned *l = learned(&b, &plain, e[3]);
    const int place = open_with(l, &x, 70);
    propose(l, place, &before, &x, 1);
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        const pl_eagle *now = e[forms[i]];
        pl_learned *fresh = learned(&b, &plain, now);
        cr_assert_gt(propose(fresh, open_with(fresh, &x, 70), &want, &x, 1), 4);
        cr_assert_eq(pl_learned_set(l, now, &err), PL_OK, "%s", err.msg);
        propose(l, place, &t, &x, 1);
        cr_expect(same(&t, &want), "form %d", forms[i]);
        cr_expect(!same(&t, &before), "form %d is the one before", forms[i]);
        before = t;
        pl_learned_free(fresh);
    }
    pl_learned_free(l);
    for (int i = 0; i < 4; i++)
        pl_eagle_free(e[i]);
    bed_done(&b);
}

Test(learned, a_fork_knows_what_its_origin_knew)
{
    static text x, other;
    tree t, want, own;
    bed b;

    bed_init(&b, 2);
    text_init(&x, 9);
    text_init(&other, 10);
    pl_eagle *e = bed_drafter(&b, 3, 7);
    pl_learned *l = learned(&b, &plain, e);
    const int place = open_with(l, &x, 70), fork = pl_learned_open(l);
    propose(l, place, &want, &x, 1);
    pl_learned_fork(l, fork, place);
    cr_expect_eq(pl_learned_position(l, fork), 70);
    propose(l, fork, &t, &x, 1);
    cr_expect(same(&t, &want));
    feed(l, fork, &other, 70, 100); /* of its own from here */
    propose(l, fork, &own, &other, 1);
    propose(l, place, &t, &x, 1);
    cr_expect(same(&t, &want) && !same(&own, &want));
    pl_learned_free(l);
    pl_eagle_free(e);
    bed_done(&b);
}

Test(learned, a_batch_proposes_what_each_sample_proposes_alone)
{
    enum { N = 12 };
    static text x[N];
    static tree t[N], want;
    pl_learned_ask a[N];
    bed b;

    bed_init(&b, 3);
    pl_eagle *e = bed_drafter(&b, 3, 8);
    pl_learned *l = learned(&b, &plain, e);
    int place[N], n = 0;
    for (int i = 0; i < N; i++) {
        text_init(&x[i], 20 + i);
        place[i] = open_with(l, &x[i], 1 + 23 * i);
        a[i] = ask_for(l, place[i], &t[i], x[i].tokens[1 + 23 * i], i % 3 == 0 ? 0.0f : 1.2f);
        a[i].max_rows -= i;
        a[i].max_depth -= i % 4;
    }
    cr_expect_eq(pl_learned_open(l), -1);
    cr_expect_gt(pl_learned_propose(l, a, N), N);
    pl_team *one;
    cr_assert_eq(pl_team_new(&one, 1, 0, NULL), PL_OK);
    l->team = one; /* alone, and on one thread */
    for (int i = 0; i < N; i++) {
        pl_learned_ask alone =
            ask_for(l, place[i], &want, x[i].tokens[1 + 23 * i], i % 3 == 0 ? 0.0f : 1.2f);
        alone.max_rows -= i;
        alone.max_depth -= i % 4;
        n += pl_learned_propose(l, &alone, 1) > 0;
        expect_valid(&t[i], alone.max_rows, alone.max_depth);
        cr_expect(same(&t[i], &want), "sample %d: %d rows, alone %d", i, t[i].d.n, want.d.n);
    }
    cr_expect_eq(n, N);
    l->team = b.team;
    pl_learned_free(l);
    pl_team_free(one);
    pl_eagle_free(e);
    bed_done(&b);
}

/* ---- trees ---- */

Test(learned, another_drafters_rows_stay_and_are_joined)
{
    static text x;
    tree alone, t;
    bed b;

    bed_init(&b, 2);
    text_init(&x, 11);
    pl_eagle *e = bed_drafter(&b, 3, 9);
    pl_learned *l = learned(&b, &plain, e);
    const int place = open_with(l, &x, 33);
    propose(l, place, &alone, &x, 1);
    cr_assert_gt(alone.d.n, 4);

    /* Row 1 and a child of it stood there already, and a row that nobody else proposes. */
    int child = 1;
    while (child < alone.d.n && alone.d.parent[child] != 1)
        child++;
    cr_assert_lt(child, alone.d.n);
    pl_learned_ask a = ask_for(l, place, &t, x.tokens[33], 1);
    const int top = pl_draft_add(&t.d, 0, alone.d.token[1], PL_SOURCE_SUFFIX, 64);
    const int below = pl_draft_add(&t.d, top, alone.d.token[child], PL_SOURCE_SUFFIX, 64);
    int32_t strange = 0;
    while (pl_draft_child(&alone.d, 0, strange) >= 0)
        strange++;
    const int lone = pl_draft_add(&t.d, 0, strange, PL_SOURCE_SUFFIX, 64);
    t.expected[0] = 1;
    t.expected[top] = 0.3f;
    t.expected[below] = 0.2f;
    t.expected[lone] = 0.1f;
    a.max_rows = 14;
    cr_expect_eq(pl_learned_propose(l, &a, 1), 10);
    expect_valid(&t, 14, plain.max_depth);
    cr_expect_eq(t.d.n, 14);
    for (int i = 1; i < t.d.n; i++)
        cr_expect_eq(t.d.source[i], i <= lone ? PL_SOURCE_SUFFIX : PL_SOURCE_LEARNED);
    cr_expect(t.expected[top] > 0.3f && t.expected[top] >= alone.expected[1]);
    cr_expect(t.expected[below] > 0.2f);
    cr_expect_eq(t.expected[lone], 0.1f);

    /* Never more often than the row above, where the other drafter was too sure. */
    tree sure;
    pl_learned_ask again = ask_for(l, place, &sure, x.tokens[33], 1);
    pl_draft_add(&sure.d, 0, alone.d.token[1], PL_SOURCE_SUFFIX, 64);
    pl_draft_add(&sure.d, 1, alone.d.token[child], PL_SOURCE_SUFFIX, 64);
    sure.expected[1] = 0.01f;
    sure.expected[2] = 0.9f * alone.expected[1];
    pl_learned_propose(l, &again, 1);
    expect_valid(&sure, plain.max_rows, plain.max_depth);

    /* A full draft stays as it is. */
    const tree before = t;
    a.max_rows = 14;
    cr_expect_eq(pl_learned_propose(l, &a, 1), 0);
    cr_expect(same(&t, &before));
    pl_learned_free(l);
    pl_eagle_free(e);
    bed_done(&b);
}

Test(learned, a_smaller_tree_is_the_best_part_of_a_larger_one)
{
    static text x;
    tree large, t;
    bed b;

    bed_init(&b, 2);
    text_init(&x, 12);
    pl_eagle *e = bed_drafter(&b, 3, 10);
    pl_learned_options o = plain;
    o.max_depth = 3;
    pl_learned *l = learned(&b, &o, e);
    const int place = open_with(l, &x, 80);
    cr_assert_eq(propose(l, place, &large, &x, 1), o.max_rows - 1);
    for (int rows = 2; rows < 12; rows++) {
        pl_learned_ask a = ask_for(l, place, &t, x.tokens[80], 1);
        a.max_rows = rows;
        cr_expect_eq(pl_learned_propose(l, &a, 1), rows - 1);
        large.d.n = rows;
        cr_expect(same(&t, &large), "%d rows", rows);
    }
    pl_learned_free(l);
    pl_eagle_free(e);
    bed_done(&b);
}

Test(learned, candidates_are_ranked_with_the_noise_of_their_own_position)
{
    static text x;
    tree t;
    bed b;
    int n_best = 0;

    bed_init(&b, 2);
    text_init(&x, 13);
    pl_eagle *e = bed_drafter(&b, 3, 11);
    pl_learned *l = learned(&b, &plain, e);
    const int place = open_with(l, &x, 25);
    /* So hot that noise alone decides: every row's best child is the noise's best token. */
    propose(l, place, &t, &x, 1e6f);
    for (int depth = 1; depth <= 3; depth++) {
        double best = -1e30, s;
        int32_t id = -1;
        for (int i = 0; i < e->dims.v; i++) {
            s = pl_noise_gumbel(77, 5, (uint32_t)(25 + depth), 0, (uint32_t)e->vocab[i]);
            if (s > best) {
                best = s;
                id = e->vocab[i];
            }
        }
        for (int i = 0; i < t.d.n; i++)
            n_best += t.d.depth[i] == depth && t.d.token[i] == id;
    }
    /* So cold that one token has all of q: then its noise alone says how sure it is. */
    propose(l, place, &t, &x, 1e-5f);
    const double sure = exp(0.86 * pl_noise_gumbel(77, 5, 26, 0, (uint32_t)t.d.token[1]));
    cr_expect_float_eq((double)t.expected[1], sure / (sure + 0.84), 1e-3);
    cr_expect_geq(n_best, 3, "%d rows hold the token of the largest noise", n_best);
    pl_learned_free(l);
    pl_eagle_free(e);
    bed_done(&b);
}

Test(learned, without_noise_the_likeliest_tokens_are_drafted_with_their_share)
{
    static naive n;
    static text x;
    double z[BED_V], sum = 0;
    int best = 0, row = 0;
    tree t;
    bed b;

    bed_init(&b, 2);
    text_init(&x, 15);
    pl_eagle *e = bed_drafter(&b, 3, 13);
    n = (naive){.b = &b, .e = e};
    pl_learned *l = learned(&b, &plain, e);
    const int place = open_with(l, &x, 60);
    propose(l, place, &t, &x, 0);
    expect_valid(&t, plain.max_rows, plain.max_depth);
    naive_logits(&n, &x, 0, 60, &x.tokens[60], 0, z);
    for (int i = 0; i < e->dims.v; i++)
        best = z[i] > z[best] ? i : best;
    for (int i = 0; i < e->dims.v; i++)
        sum += exp(z[i] - z[best]);
    row = pl_draft_child(&t.d, 0, e->vocab[best]);
    cr_assert_gt(row, 0);
    cr_expect_float_eq((double)t.expected[row], 1 / sum, 0.02 / sum);
    pl_learned_free(l);
    pl_eagle_free(e);
    bed_done(&b);
}

/* ---- what is wrong ---- */

Test(learned, the_end_of_the_context_and_strange_tokens_are_survived)
{
    static text x;
    tree t;
    bed b;

    bed_init(&b, 2);
    text_init(&x, 16);
    pl_eagle *e = bed_drafter(&b, 3, 14);
    pl_learned *l = learned(&b, &plain, e);
    const int place = pl_learned_open(l);
    x.tokens[3] = BED_V + 7;
    x.tokens[4] = -1;
    pl_learned_feed(l, place, bed_arch.n_ctx - 20, x.tokens, &x.features[0][0][0],
        PL_FEATURE_LAYERS * BED_CP, 20);
    const pl_learned_ask a = ask_for(l, place, &t, -5, 1);
    cr_expect_gt(pl_learned_propose(l, &a, 1), 0);
    t.d.token[0] = 0;
    expect_valid(&t, plain.max_rows, plain.max_depth);
    pl_learned_free(l);
    pl_eagle_free(e);
    bed_done(&b);
}

Test(learned, broken_features_cost_proposals_until_they_are_out_of_the_state)
{
    static text x, bad;
    tree t;
    bed b;

    bed_init(&b, 2);
    text_init(&x, 14);
    pl_eagle *e = bed_drafter(&b, 3, 12);
    pl_learned *l = learned(&b, &plain, e);
    bad = x;
    for (int c = 0; c < BED_CP; c++)
        bad.features[29][1][c] = c % 2 ? 0x7fc0 : 0x7f80;
    const int place = open_with(l, &bad, 30);
    cr_expect_eq(propose(l, place, &t, &x, 1), 0);
    cr_expect_eq(t.d.n, 1);
    feed(l, place, &x, 30, 32);
    cr_expect_gt(propose(l, place, &t, &x, 1), 0);
    expect_valid(&t, plain.max_rows, plain.max_depth);
    feed(l, place, &x, 29, 31); /* mended */
    const int fresh = open_with(l, &x, 31);
    tree want;
    propose(l, place, &t, &x, 1);
    propose(l, fresh, &want, &x, 1);
    cr_expect(same(&t, &want));

    const int empty = pl_learned_open(l);
    cr_expect_eq(propose(l, empty, &t, &x, 1), 0);
    pl_learned_free(l);
    pl_eagle_free(e);
    bed_done(&b);
}

Test(learned, what_does_not_fit_is_refused_in_words)
{
    pl_learned_options o = plain;
    pl_arch arch = bed_arch;
    pl_error err = {0};
    pl_model *wide;
    pl_learned *l;
    bed b;

    bed_init(&b, 1);
    o.topk = LEARNED_TOPK + 1;
    cr_expect_eq(pl_learned_new(&l, b.m, &o, &err), PL_E_INVAL);
    cr_expect(strstr(err.msg, "children") != NULL, "%s", err.msg);
    o = plain;
    o.max_rows = PL_DRAFT_MAX + 1;
    cr_expect_eq(pl_learned_new(&l, b.m, &o, &err), PL_E_INVAL);
    o = plain;
    o.max_depth = 17;
    cr_expect_eq(pl_learned_new(&l, b.m, &o, &err), PL_E_INVAL);

    pl_eagle *e = bed_drafter(&b, 3, 1), *other;
    l = learned(&b, &plain, e);
    arch.n_embd = 48;
    cr_assert_eq(pl_model_new(&wide, &arch, b.ops, b.team, 0, &err), PL_OK);
    const pl_eagle_options all = {.n_vocab = BED_V};
    cr_assert_eq(pl_eagle_new(&other, wide, &all, &err), PL_OK);
    cr_expect_eq(pl_learned_set(l, other, &err), PL_E_SHAPE);
    cr_expect(strstr(err.msg, "48") && l->e == e, "%s", err.msg);
    l->max.v = e->dims.v - 1;
    cr_expect_eq(pl_learned_set(l, e, &err), PL_E_NOMEM);
    cr_expect(pl_learned_plan(&bed_arch, &plain, 2) > pl_learned_plan(&bed_arch, &plain, 1));
    const learned_tree *first = &l->trees[0]; /* its keys stand behind its states */
    cr_expect_geq(first->k - first->states, l->max_runs * BED_C, "room for raw states");
    pl_learned_free(l);
    pl_learned_free(NULL);
    pl_eagle_free(other);
    pl_eagle_free(e);
    pl_model_free(wide);
    bed_done(&b);
}
