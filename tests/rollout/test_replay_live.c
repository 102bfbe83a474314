/* tests/rollout/test_replay_live.c - what an engine counted against what its windows replay.
 *
 * Claims: rounds and tokens of a live run with the learned drafter, one sample at a time and the
 * same tree each round, are those of the replay of its windows exactly, sample by sample, whatever
 * ends a response: its length, an end token, either of them inside of a draft; and of a drafter
 * that came in the middle, the rounds that it served. */
#include "core/rng.h"
#include "drafter/eagle.h"
#include "drafter/replay.h"
#include "tests/rollout/bed.h"

enum { TEXTS = SAMPLES, TEXT = 100, ROWS = 160, LOOK_BACK = 256, MAX_PROMPT = 32 };

static const float SHARP = 0.25f;
static const pl_replay_options tree = {.steps = 4, .topk = 3, .verify = 10};

/* ---- windows, one a sample ---- */

typedef struct record {
    pl_feature_window w; /* points into the rest */
    int32_t tokens[ROWS];
    uint8_t is_target[ROWS];
    uint16_t *features, *hidden;
} record;

typedef struct records {
    size_t cp;
    int n_calls;
    record of[TEXTS];
} records;

static records *records_new(const bed *b)
{
    records *all = calloc(1, sizeof *all);
    cr_assert_not_null(all);
    all->cp = (size_t)pl_pad32(pl_model_arch(b->model)->n_embd);
    for (int i = 0; i < TEXTS; i++) {
        all->of[i].features = calloc(ROWS * PL_FEATURE_LAYERS * all->cp, sizeof(uint16_t));
        all->of[i].hidden = calloc(ROWS * all->cp, sizeof(uint16_t));
        cr_assert(all->of[i].features && all->of[i].hidden);
    }
    return all;
}

static void records_free(records *all)
{
    for (int i = 0; i < TEXTS; i++) {
        free(all->of[i].features);
        free(all->of[i].hidden);
    }
    free(all);
}

static void keep_window(void *ctx, const pl_feature_window *w)
{
    records *all = ctx;
    record *r = &all->of[w->uid];
    const size_t n = (size_t)w->n;
    cr_assert(w->is_last && w->position == 0, "sample %u: one window holds it all", w->uid);
    all->n_calls++;
    r->w = *w;
    memcpy(r->tokens, w->tokens, n * sizeof *w->tokens);
    memcpy(r->features, w->features, n * PL_FEATURE_LAYERS * all->cp * sizeof *w->features);
    memcpy(r->hidden, w->hidden, n * all->cp * sizeof *w->hidden);
    for (int i = 0; i < w->n; i++)
        r->is_target[i] = i + 1 >= w->n_prompt && i + 1 < w->n;
    r->w.tokens = r->tokens;
    r->w.features = r->features;
    r->w.hidden = r->hidden;
}

/* ---- the live run ---- */

static int32_t text_prompts[TEXTS][MAX_PROMPT];

static pl_request text_request(int i)
{
    const int n = i % 5 == 4 ? MAX_PROMPT : 1 + 3 * (i % 5);
    for (int k = 0; k < n; k++)
        text_prompts[i][k] = (int32_t)(3 + pl_noise_word(17, (uint32_t)i, 0, 0, (uint32_t)k) % 500);
    pl_request r = {.uid = (uint32_t)i,
        .group = (uint32_t)i,
        .prompt = text_prompts[i],
        .n_prompt = n,
        .max_tokens = i == 7   ? 1
                      : i == 8 ? 2
                      : i == 9 ? 3
                               : TEXT + i % 7,
        .temperature = i % 6 == 5 ? 0
                       : i % 2    ? 0.5f
                                  : 0.25f,
        .top_p = i % 4 == 3 ? 0.95f : 1,
        .noise_key = pl_noise_key(5),
        .purpose = PL_NOISE_SAMPLE,
        .ignore_eos = i % 3 == 0};
    return r;
}

static int keep_all(void *ctx, const pl_response *r, int n_before)
{
    answer *a = (answer *)ctx + r->uid;
    memcpy(a->source + n_before, r->token_source + n_before, (size_t)(r->n_tokens - n_before));
    return keep_answer(ctx, r, n_before);
}

static int propose_nothing(
    sequence *s, const pl_draw *draw, int max_rows, int max_depth, pl_draft *d, float *expected)
{
    (void)s, (void)draw, (void)max_rows, (void)max_depth, (void)d, (void)expected;
    return 0;
}

static pl_engine *live_engine(const bed *b, const pl_eagle *drafter, records *all)
{
    pl_engine_options o;
    pl_engine *e = NULL;
    pl_error err;
    pl_engine_defaults(&o);
    o.max_num_seqs = 1;
    o.max_ctx = 256;
    o.speculative = 1;
    o.controller = PL_CONTROLLER_FIXED;
    o.fixed_rows = o.max_spec_rows = tree.verify;
    o.learned_window = LOOK_BACK;
    o.learned_depth = o.max_spec_depth = tree.steps;
    o.learned_topk = tree.topk;
    cr_assert_eq(pl_engine_new(&e, b->model, b->tok, &o, NULL, &err), PL_OK, "%s", err.msg);
    e->propose = propose_nothing;
    cr_assert_eq(pl_engine_set_windows(e, keep_window, all, ROWS, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_engine_set_drafter(e, drafter, &err), PL_OK, "%s", err.msg);
    return e;
}

/* The texts one after the other; what was counted for each. */
static void run_live(const bed *b, const pl_eagle *drafter, records *all, pl_engine_stats *live)
{
    pl_engine *e = live_engine(b, drafter, all);
    pl_error err;
    memset(got, 0, sizeof got);
    all->n_calls = 0;
    for (int i = 0; i < TEXTS; i++) {
        const pl_request r = text_request(i);
        pl_engine_reset_stats(e);
        cr_assert_eq(pl_engine_submit(e, &r, &err), PL_OK, "%s", err.msg);
        cr_assert_eq(pl_engine_run(e, keep_all, got, &err), PL_OK, "%s", err.msg);
        pl_engine_get_stats(e, &live[i]);
    }
    pl_engine_free(e);
}

/* The same with `second` from a round in the middle on, or with the sample put off there and
 * computed anew; what was counted from there.  A window of a text that ends before is emptied. */
static void run_broken(const bed *b, const pl_eagle *first, const pl_eagle *second, records *all,
    pl_engine_stats *live)
{
    pl_engine *e = live_engine(b, first, all);
    pl_error err;
    memset(got, 0, sizeof got);
    for (int i = 0; i < TEXTS; i++) {
        const pl_request r = text_request(i);
        int n_left = 1;
        if (first != second)
            cr_assert_eq(pl_engine_set_drafter(e, first, &err), PL_OK, "%s", err.msg);
        cr_assert_eq(pl_engine_submit(e, &r, &err), PL_OK, "%s", err.msg);
        for (int k = 0; k < 2 + i % 9 && n_left > 0; k++)
            cr_assert_eq(pl_engine_round(e, keep_all, got, &n_left, &err), PL_OK, "%s", err.msg);
        const int is_over = n_left == 0;
        if (first != second)
            cr_assert_eq(pl_engine_set_drafter(e, second, &err), PL_OK, "%s", err.msg);
        else if (!is_over)
            engine_preempt(e, e->running[0]);
        pl_engine_reset_stats(e);
        cr_assert_eq(pl_engine_run(e, keep_all, got, &err), PL_OK, "%s", err.msg);
        pl_engine_get_stats(e, &live[i]);
        const pl_feature_window *w = &all->of[i].w;
        cr_expect(is_over || (w->served_from > 0 && w->served_from < w->n));
        all->of[i].w.n = is_over ? 0 : w->n;
    }
    pl_engine_free(e);
}

/* ---- the drafter ---- */

static pl_eagle *random_drafter(const bed *b)
{
    const pl_eagle_options o = {.seed = 3};
    pl_eagle *e = NULL;
    pl_error err;
    cr_assert_eq(pl_eagle_new(&e, b->model, &o, &err), PL_OK, "%s", err.msg);
    return e;
}

static pl_eagle *trained_drafter(const bed *b, const records *all)
{
    enum { STEP = 4, N_STEPS = 200, WINDOW = 40 };
    pl_eagle *e = random_drafter(b), *copy = NULL;
    pl_eagle_trainer *t = NULL;
    pl_eagle_train_options o;
    pl_eagle_step_stats stats;
    pl_error err;
    pl_eagle_train_defaults(&o);
    o.window = WINDOW;
    o.max_windows = STEP;
    o.lr = 5e-3f;
    cr_assert_eq(pl_eagle_trainer_new(&t, e, &o, &err), PL_OK, "%s", err.msg);
    for (int i = 0; i < N_STEPS; i++) {
        pl_eagle_window w[STEP];
        for (int k = 0, at = i * STEP; k < STEP; at++) {
            const record *r = &all->of[at % TEXTS];
            const int first = at / TEXTS % 3 * 30, n = r->w.n - first;
            if (n < 8)
                continue;
            w[k++] = (pl_eagle_window){.tokens = r->tokens + first,
                .features = r->features + (size_t)first * PL_FEATURE_LAYERS * all->cp,
                .hidden = r->hidden + (size_t)first * all->cp,
                .is_target = r->is_target + first,
                .n = n < WINDOW ? n : WINDOW,
                .position = first,
                .temperature = r->w.temperature > 0 ? r->w.temperature : 0.25f};
        }
        cr_assert_eq(
            pl_eagle_train_step(t, w, STEP, NULL, NULL, &stats, &err), PL_OK, "%s", err.msg);
    }
    pl_eagle_trainer_free(t);
    cr_assert_eq(pl_eagle_copy(&copy, e, NULL, &err), PL_OK, "%s", err.msg);
    pl_eagle_free(e);
    return copy;
}

/* ---- both ---- */

typedef struct sums {
    int64_t rounds, tokens, plain;
    int n_length, n_stop, n_drafted_stop; /* what ended responses; the last: an accepted token */
} sums;

static void count_end(sums *s, const answer *a)
{
    const int is_stop = a->finish == PL_FINISH_STOP;
    s->n_length += a->finish == PL_FINISH_LENGTH;
    s->n_stop += is_stop;
    s->n_drafted_stop += is_stop && a->source[a->n - 1] == PL_SOURCE_LEARNED;
}

static sums expect_replayed(const bed *b, const pl_eagle *drafter, const records *all,
    const pl_engine_stats *live, int batch, int is_served)
{
    pl_replay_options o = tree;
    pl_feature_window w[TEXTS];
    pl_replay_window out[TEXTS];
    int uid[TEXTS], n = 0;
    sums s = {0};
    pl_error err;
    o.batch = batch;
    o.is_served = is_served;
    for (int i = 0; i < TEXTS; i++) {
        uid[n] = i;
        w[n] = all->of[i].w;
        n += all->of[i].w.n > 0;
    }
    cr_assert_eq(
        pl_replay(b->model, drafter, w, n, &o, NULL, NULL, out, &err), PL_OK, "%s", err.msg);
    for (int i = 0; i < n; i++) {
        const pl_engine_stats *l = &live[uid[i]];
        const int64_t idle = out[i].n_plain;
        cr_expect(out[i].n_rounds - idle == l->n_drafted_steps &&
                      out[i].n_tokens - idle == l->n_drafted_emitted,
            "sample %d (finish %d): %ld tokens in %ld rounds, %ld of them plain; live %ld in %ld",
            uid[i], (int)got[uid[i]].finish, (long)out[i].n_tokens, (long)out[i].n_rounds,
            (long)idle, (long)l->n_drafted_emitted, (long)l->n_drafted_steps);
        cr_expect_eq(l->n_draft_of[PL_SOURCE_SUFFIX], 0);
        s.rounds += out[i].n_rounds;
        s.tokens += out[i].n_tokens;
        s.plain += idle;
        count_end(&s, &got[uid[i]]);
    }
    return s;
}

Test(replay_live, a_live_run_and_the_replay_of_its_windows_count_the_same_rounds, .timeout = 240)
{
    static pl_engine_stats live[TEXTS];
    bed b;
    cr_assert(bed_open_with(&b, PL_ISA_AUTO, 1, SHARP));
    records *all = records_new(&b);
    pl_eagle *none = random_drafter(&b);
    run_live(&b, none, all, live);
    cr_expect_eq(all->n_calls, TEXTS - 1, "a response of one token has no window");
    sums s = expect_replayed(&b, none, all, live, 1, 0);
    cr_expect_gt(s.plain, 0);

    pl_eagle *e = trained_drafter(&b, all);
    run_live(&b, e, all, live);
    s = expect_replayed(&b, e, all, live, 1, 0);
    cr_expect_gt((double)s.tokens / (double)s.rounds, 1.5, "%ld tokens in %ld rounds",
        (long)s.tokens, (long)s.rounds);
    cr_expect(s.n_length > 5 && s.n_stop > 5 && s.n_drafted_stop > 0,
        "%d by length, %d by an end token, %d of them drafted", s.n_length, s.n_stop,
        s.n_drafted_stop);
    expect_replayed(&b, e, all, live, 0, 0);

    const sums whole = s;
    const pl_eagle *first[] = {none, e};
    for (int i = 0; i < 2; i++) {
        run_broken(&b, first[i], e, all, live);
        s = expect_replayed(&b, e, all, live, 1, 1);
        cr_expect(s.rounds > 0 && s.rounds < whole.rounds, "%ld rounds of %ld", (long)s.rounds,
            (long)whole.rounds);
    }
    pl_eagle_free(none);
    pl_eagle_free(e);
    records_free(all);
    bed_close(&b);
}
