/* tests/drafter/test_replay.c - replaying recorded texts.
 *
 * Claims: a text that a target wrote while it was drafted for gives the rounds of that time
 * exactly, however many windows stand side by side; a text made of a drafter's own proposals is
 * accepted whole; a round that a window's end cuts counts only where the response ends too; a stop
 * stops; the difference of two drafters and its error are those of a table made by hand. */
#include "drafter/learned.h"
#include "drafter/replay.h"
#include "tests/drafter/bed.h"

#include <math.h>

enum { N_PROMPT = 9, STRIDE = PL_FEATURE_LAYERS * BED_CP };

static const pl_replay_options fixed = {.steps = 4, .topk = 4, .verify = 16};

static pl_learned *learned(const bed *b, const pl_eagle *e, const pl_replay_options *o)
{
    const pl_learned_options options = {.max_places = 2,
        .window = 256,
        .max_rows = o->verify,
        .max_depth = o->steps,
        .topk = o->topk};
    pl_error err = {0};
    pl_learned *l;

    cr_assert_eq(pl_learned_new(&l, b->m, &options, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_learned_set(l, e, &err), PL_OK, "%s", err.msg);
    return l;
}

static pl_feature_window window_of(const text *x, int n, uint32_t uid, float temperature)
{
    return (pl_feature_window){.uid = uid,
        .noise_key = 1234,
        .temperature = temperature,
        .top_p = 1,
        .n_prompt = N_PROMPT,
        .n = n,
        .is_last = 1,
        .tokens = x->tokens,
        .features = &x->features[0][0][0]};
}

static pl_draw draw_of(const pl_feature_window *w, int position)
{
    return (pl_draw){.temperature = w->temperature,
        .top_p = 1,
        .key = w->noise_key,
        .uid = w->uid,
        .position = (uint32_t)position};
}

static void propose(pl_learned *l, int place, const pl_feature_window *w, pl_draft *d,
    const pl_replay_options *o, int pending)
{
    const pl_draw draw = draw_of(w, pending + 1);
    float expected[PL_DRAFT_MAX];
    const pl_learned_ask a = {.place = place,
        .draw = &draw,
        .max_rows = o->verify,
        .max_depth = o->steps,
        .draft = d,
        .expected = expected};

    pl_draft_begin(d, w->tokens[pending]);
    pl_learned_propose(l, &a, 1);
}

/* ---- a target that writes ---- */

typedef struct writer {
    const bed *b;
    pl_kv_pool *pool;
    pl_kv_seq kv;
    pl_pass *pass;
    uint16_t rows[16 * STRIDE];
    float scratch[BED_V + 64];
} writer;

static void writer_init(writer *w, const bed *b)
{
    const pl_pass_options o = {.max_rows = 16, .max_logits = 1, .max_segments = 1, .max_ctx = 512};
    const pl_features f = {.rows = w->rows, .room = 16};
    pl_error err = {0};

    w->b = b;
    cr_assert_eq(pl_kv_pool_new(&w->pool, &bed_arch, 8, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_kv_seq_init(&w->kv, 512, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_pass_new(&w->pass, b->m, &o, &err), PL_OK, "%s", err.msg);
    pl_pass_set_features(w->pass, &f);
}

static void writer_done(writer *w)
{
    pl_kv_seq_done(w->pool, &w->kv);
    pl_pass_free(w->pass);
    pl_kv_pool_free(w->pool);
}

/* Run n known tokens of the text, keep their features, draw the next one. */
static void write_one(writer *w, text *x, const pl_feature_window *f, int from, int n)
{
    const pl_segment s = {.kv = &w->kv, .tokens = x->tokens + from, .n_rows = n, .n_logits = 1};
    const pl_draw draw = draw_of(f, from + n);
    pl_drawn drawn;
    pl_error err = {0};

    cr_assert_eq(pl_kv_reserve(w->pool, &w->kv, n, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_pass_run(w->pass, w->pool, &s, 1, &err), PL_OK, "%s", err.msg);
    memcpy(x->features[from], w->rows, (size_t)(n * STRIDE) * sizeof *w->rows);
    w->b->ops->draw(pl_pass_logits(w->pass, 0, n - 1), BED_V, &draw, w->scratch, &drawn);
    x->tokens[from + n] = drawn.token;
}

/* Write up to token n, the last of the response, in rounds; what they were goes to *live. */
static void write_text(const bed *b, const pl_eagle *e, text *x, const pl_feature_window *f, int n,
    pl_replay_window *live)
{
    static writer w;
    pl_learned *l = learned(b, e, &fixed);
    const int place = pl_learned_open(l);
    int pending = N_PROMPT;
    pl_draft d;

    memset(live, 0, sizeof *live);
    writer_init(&w, b);
    write_one(&w, x, f, 0, N_PROMPT);
    pl_learned_feed(l, place, 0, x->tokens, &x->features[0][0][0], STRIDE, N_PROMPT);
    while (pending < n) {
        const int begin = pending;
        int row = 0, depth = 0;
        propose(l, place, f, &d, &fixed, pending);
        do {
            write_one(&w, x, f, pending, 1);
            row = pl_draft_child(&d, row, x->tokens[++pending]);
            live->reached[depth] += depth < fixed.steps && pending < n;
            live->hit[depth++] += row >= 0 && pending < n;
            live->n_tokens++;
        } while (row >= 0 && pending < n);
        live->n_rounds++;
        pl_learned_feed(
            l, place, begin, x->tokens + begin, &x->features[begin][0][0], STRIDE, pending - begin);
    }
    writer_done(&w);
    pl_learned_free(l);
}

static void expect_same(const pl_replay_window *a, const pl_replay_window *b, const char *what)
{
    cr_expect(a->n_rounds == b->n_rounds && a->n_tokens == b->n_tokens,
        "%s: %d tokens in %d rounds, live %d in %d", what, (int)a->n_tokens, (int)a->n_rounds,
        (int)b->n_tokens, (int)b->n_rounds);
    for (int d = 0; d < fixed.steps; d++)
        cr_expect(a->reached[d] == b->reached[d] && a->hit[d] == b->hit[d],
            "%s: depth %d: %d of %d, live %d of %d", what, d + 1, (int)a->hit[d],
            (int)a->reached[d], (int)b->hit[d], (int)b->reached[d]);
}

Test(replay, a_text_written_with_a_drafter_gives_its_rounds_exactly)
{
    enum { N = 5 };
    static text x[N];
    pl_feature_window w[N];
    pl_replay_window live[N], out[N];
    pl_error err = {0};
    bed b;

    bed_init(&b, 2);
    pl_eagle *e = bed_drafter(&b, 3, 3);
    for (int i = 0; i < N; i++) {
        const int n = 60 + 35 * i;
        text_init(&x[i], 50 + i);
        w[i] = window_of(&x[i], n, (uint32_t)i, i == 4 ? 0.0f : 4.0f + (float)i);
        write_text(&b, e, &x[i], &w[i], n, &live[i]);
        cr_expect_eq(live[i].n_tokens, n - N_PROMPT);
    }
    cr_expect(live[3].hit[0] > 10 && live[3].hit[0] < live[3].reached[0] && live[3].hit[1] > 0,
        "%d of %d: no test", (int)live[3].hit[0], (int)live[3].reached[0]);
    for (int batch = 0; batch < 3; batch++) {
        pl_replay_options o = fixed;
        o.batch = batch;
        cr_assert_eq(pl_replay(b.m, e, w, N, &o, NULL, NULL, out, &err), PL_OK, "%s", err.msg);
        for (int i = 0; i < N; i++)
            expect_same(&out[i], &live[i], batch == 1 ? "one by one" : "side by side");
        cr_expect_float_eq(pl_replay_tau(out, N), pl_replay_tau(live, N), 1e-12);
    }
    pl_eagle_free(e);
    bed_done(&b);
}

/* Every round of the text accepts a whole chain of the drafter's. */
static void write_own_chains(const bed *b, const pl_eagle *e, text *x, const pl_feature_window *w,
    const pl_replay_options *o, int n)
{
    pl_learned *l = learned(b, e, o);
    const int place = pl_learned_open(l);
    pl_draft d;

    pl_learned_feed(l, place, 0, x->tokens, &x->features[0][0][0], STRIDE, N_PROMPT);
    for (int pending = N_PROMPT; pending + o->steps + 1 < n; pending += o->steps + 1) {
        propose(l, place, w, &d, o, pending);
        cr_assert_eq(d.n, o->steps + 1);
        memcpy(x->tokens + pending + 1, d.token + 1, (size_t)o->steps * sizeof *d.token);
        pl_learned_feed(l, place, pending, x->tokens + pending, &x->features[pending][0][0], STRIDE,
            o->steps + 1);
    }
    pl_learned_free(l);
}

Test(replay, a_drafters_own_chains_are_accepted_whole_and_cut_rounds_count_at_the_end_alone)
{
    const pl_replay_options o = {.steps = 3, .topk = 1, .verify = 8};
    static text x;
    pl_replay_window out;
    pl_error err = {0};
    bed b;

    bed_init(&b, 2);
    text_init(&x, 60);
    pl_eagle *e = bed_drafter(&b, 3, 4), *other = bed_drafter(&b, 3, 5);
    pl_feature_window w = window_of(&x, N_PROMPT + 80, 8, 0.01f);
    write_own_chains(&b, e, &x, &w, &o, 200);
    cr_assert_eq(pl_replay(b.m, e, &w, 1, &o, NULL, NULL, &out, &err), PL_OK, "%s", err.msg);
    cr_expect(out.n_rounds == 20 && out.n_tokens == 80, "%d tokens in %d rounds", (int)out.n_tokens,
        (int)out.n_rounds);
    for (int d = 0; d < o.steps; d++)
        cr_expect(out.reached[d] == 20 && out.hit[d] == 20);
    cr_expect(out.reached[o.steps] == 0);

    /* One token into the next round, and its last one. */
    w.n += 2;
    cr_assert_eq(pl_replay(b.m, e, &w, 1, &o, NULL, NULL, &out, &err), PL_OK);
    cr_expect(out.n_rounds == 21 && out.n_tokens == 82, "%d tokens in %d rounds", (int)out.n_tokens,
        (int)out.n_rounds);
    cr_expect(out.reached[0] == 21 && out.hit[0] == 21 && out.reached[1] == 20);
    w.is_last = 0;
    cr_assert_eq(pl_replay(b.m, e, &w, 1, &o, NULL, NULL, &out, &err), PL_OK);
    cr_expect(out.n_rounds == 20 && out.n_tokens == 80, "%d tokens in %d rounds", (int)out.n_tokens,
        (int)out.n_rounds);

    /* Nobody else's chains are. */
    w.is_last = 1;
    cr_assert_eq(pl_replay(b.m, other, &w, 1, &o, NULL, NULL, &out, &err), PL_OK);
    cr_expect_lt(pl_replay_tau(&out, 1), 3, "tau %g", pl_replay_tau(&out, 1));
    cr_expect_eq(out.n_tokens, 82);

    /* A response of two tokens has a round, unless no more were asked for; one of one has none. */
    w.n = N_PROMPT + 1;
    cr_assert_eq(pl_replay(b.m, e, &w, 1, &o, NULL, NULL, &out, &err), PL_OK);
    cr_expect(out.n_rounds == 1 && out.n_tokens == 1 && out.reached[0] == 0);
    w.max_tokens = 2;
    cr_assert_eq(pl_replay(b.m, e, &w, 1, &o, NULL, NULL, &out, &err), PL_OK);
    cr_expect(out.n_rounds == 0 && pl_replay_tau(&out, 1) == 0);
    w.max_tokens = 0;
    w.n = N_PROMPT;
    cr_assert_eq(pl_replay(b.m, e, &w, 1, &o, NULL, NULL, &out, &err), PL_OK);
    cr_expect(out.n_rounds == 0 && pl_replay_tau(&out, 1) == 0);
    pl_eagle_free(other);
    pl_eagle_free(e);
    bed_done(&b);
}

static int stop_third(void *ctx)
{
    return ++*(int *)ctx == 3;
}

Test(replay, a_stop_and_bad_input_are_answered)
{
    static text x;
    pl_replay_options o = fixed;
    pl_replay_window out[2];
    pl_error err = {0};
    int asked = 0;
    bed b;

    bed_init(&b, 1);
    text_init(&x, 61);
    pl_eagle *e = bed_drafter(&b, 3, 6);
    pl_feature_window w[2] = {window_of(&x, 100, 1, 1), window_of(&x, 90, 2, 1)};
    cr_expect_eq(pl_replay(b.m, e, w, 2, &o, stop_third, &asked, out, &err), PL_E_STOPPED);
    cr_expect_eq(asked, 3);
    cr_expect_eq(pl_replay(b.m, e, w, 0, &o, NULL, NULL, out, &err), PL_E_INVAL);
    o.verify = 65;
    cr_expect_eq(pl_replay(b.m, e, w, 2, &o, NULL, NULL, out, &err), PL_E_INVAL);
    cr_expect(strstr(err.msg, "65") != NULL, "%s", err.msg);
    o = fixed;
    w[1].position = -1;
    cr_expect_eq(pl_replay(b.m, e, w, 2, &o, NULL, NULL, out, &err), PL_E_INVAL);

    /* Broken features: rounds of one token. */
    for (int i = 0; i < 100; i++)
        x.features[i][0][0] = 0x7fc0;
    cr_assert_eq(pl_replay(b.m, e, w, 1, &o, NULL, NULL, out, &err), PL_OK);
    cr_expect(out[0].n_rounds == 91 && out[0].n_tokens == 91 && out[0].n_plain == 91);
    pl_eagle_free(e);
    bed_done(&b);
}

Test(replay, drafters_are_compared_sample_by_sample)
{
    /* By hand: tau 60 / 30 and 60 / 40; per sample (T_a - 2 R_a) / 30 - (T_b - 1.5 R_b) / 40. */
    const pl_replay_window a[4] = {{.n_tokens = 10, .n_rounds = 5}, {.n_tokens = 10, .n_rounds = 4},
        {.n_tokens = 20, .n_rounds = 12}, {.n_tokens = 20, .n_rounds = 9}};
    const pl_replay_window b[4] = {{.n_tokens = 10, .n_rounds = 6}, {.n_tokens = 10, .n_rounds = 6},
        {.n_tokens = 20, .n_rounds = 16}, {.n_tokens = 20, .n_rounds = 12}};
    static const uint32_t uids[4] = {7, 9, 8, 7}, one[4] = {1, 1, 1, 1};
    const double x7 = (30 - 28) / 30.0 - (30 - 27) / 40.0, x9 = 2 / 30.0 - 1 / 40.0,
                 x8 = -4 / 30.0 + 4 / 40.0;
    double d, se;

    pl_replay_compare(a, b, uids, 4, &d, &se);
    cr_expect_float_eq(d, 0.5, 1e-12);
    cr_expect_float_eq(se, sqrt(1.5 * (x7 * x7 + x8 * x8 + x9 * x9)), 1e-12);
    pl_replay_compare(a, a, uids, 4, &d, &se);
    cr_expect(d == 0 && se == 0);
    pl_replay_compare(a, b, one, 4, &d, &se);
    cr_expect(isinf(se));
    pl_replay_compare(a, b, uids, 0, &d, &se);
    cr_expect(d == 0 && isinf(se));
}
