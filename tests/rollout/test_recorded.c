/* tests/rollout/test_recorded.c - an engine over a record against the engine itself.
 *
 * Claims: with the text of one run as its record and no pass of the model, an engine does round for
 * round what a live one does under another drafter, tree, batch or cache; it does not when the
 * record is another text; the controller decides by predicted times; what cannot be answered is
 * refused. */
#include "drafter/eagle.h"
#include "rollout/recorded.h"
#include "tests/rollout/bed.h"

#include <math.h>

/* ---- the record of the plain run ---- */

typedef struct record {
    answer of[SAMPLES];
    uint16_t *features[SAMPLES]; /* [positions][PL_FEATURE_LAYERS][cp]; NULL: not computed */
    size_t row;                  /* elements */
    double base_s, row_s;        /* of a pass */
} record;

static const int32_t *tokens_of(void *ctx, uint32_t uid, int *n)
{
    const record *r = ctx;
    if (uid >= SAMPLES)
        return NULL;
    *n = r->of[uid].n;
    return r->of[uid].tokens;
}

static const uint16_t *features_of(void *ctx, uint32_t uid, int position)
{
    const record *r = ctx;
    return r->features[uid] ? r->features[uid] + (size_t)position * r->row : NULL;
}

static double pass_s(void *ctx, int n_rows)
{
    const record *r = ctx;
    return r->base_s + r->row_s * n_rows;
}

static record rec;
static const pl_recorded recorded = {
    .ctx = &rec, .tokens = tokens_of, .features = features_of, .pass_s = pass_s, .draw_s = 1e-5};

static void make_record(bed *b)
{
    find_base(b);
    memset(&rec, 0, sizeof rec);
    memcpy(rec.of, base, sizeof base);
    rec.base_s = 1e-3;
    rec.row_s = 1e-5;
}

/* What the target computes over prompt and response, by one prefill. */
static void prefill(const bed *b, int i)
{
    const pl_arch *a = pl_model_arch(b->model);
    const int n_prompt = prompt_lengths[i / N], n = n_prompt + rec.of[i].n;
    const pl_pass_options o = {.max_rows = 256, .max_segments = 1, .max_ctx = 256};
    int32_t tokens[256];
    pl_kv_pool *pool = NULL;
    pl_pass *pass = NULL;
    pl_kv_seq kv;
    rec.row = PL_FEATURE_LAYERS * (size_t)pl_pad32(a->n_embd);
    rec.features[i] = malloc((size_t)n * rec.row * sizeof(uint16_t));
    const pl_features to = {.rows = rec.features[i], .room = n};
    const pl_segment seg = {.kv = &kv, .tokens = tokens, .n_rows = n};
    cr_assert_not_null(rec.features[i]);
    memcpy(tokens, prompts[i / N], (size_t)n_prompt * sizeof *tokens);
    memcpy(tokens + n_prompt, rec.of[i].tokens, (size_t)rec.of[i].n * sizeof *tokens);
    cr_assert_eq(pl_kv_pool_new(&pool, a, 256 / PL_BLOCK + 1, NULL), PL_OK);
    cr_assert_eq(pl_pass_new(&pass, b->model, &o, NULL), PL_OK);
    cr_assert_eq(pl_kv_seq_init(&kv, 256, NULL), PL_OK);
    cr_assert_eq(pl_kv_reserve(pool, &kv, n, NULL), PL_OK);
    pl_pass_set_features(pass, &to);
    cr_assert_eq(pl_pass_run(pass, pool, &seg, 1, NULL), PL_OK);
    pl_pass_free(pass);
    pl_kv_seq_done(pool, &kv);
    pl_kv_pool_free(pool);
}

static void forget_features(void)
{
    for (int i = 0; i < SAMPLES; i++) {
        free(rec.features[i]);
        rec.features[i] = NULL;
    }
}

/* ---- both engines ---- */

typedef struct result {
    answer of[SAMPLES];
    pl_engine_stats stats;
} result;

static int keep_all(void *ctx, const pl_response *r, int n_before)
{
    answer *a = (answer *)ctx + r->uid;
    memcpy(a->source + n_before, r->token_source + n_before, (size_t)(r->n_tokens - n_before));
    return keep_answer(ctx, r, n_before);
}

static pl_engine_options options_of(const bed *b, const setting *s)
{
    pl_engine_options o;
    pl_engine_defaults(&o);
    o.max_num_seqs = s->batch;
    o.max_rows = s->max_rows;
    o.max_ctx = 256;
    o.speculative = s->speculative;
    o.controller = s->controller;
    o.fixed_rows = s->fixed_rows;
    o.max_spec_depth = s->depth ? s->depth : 8;
    o.learned_window = s->learned_window;
    if (s->kv_pages)
        o.kv_bytes = (size_t)s->kv_pages * pl_kv_page_bytes(pl_model_arch(b->model));
    return o;
}

/* Two epochs of the workload: what is known of a prompt counts too. */
static void play(
    const bed *b, const setting *s, const pl_recorded *r, const pl_eagle *drafter, result *out)
{
    const pl_engine_options o = options_of(b, s);
    pl_engine *e = NULL;
    pl_error err = {0};
    const pl_status st = r ? pl_engine_new_recorded(&e, b->model, &o, r, NULL, &err)
                           : pl_engine_new(&e, b->model, NULL, &o, NULL, &err);
    cr_assert_eq(st, PL_OK, "%s", err.msg);
    if (drafter)
        cr_assert_eq(pl_engine_set_drafter(e, drafter, &err), PL_OK, "%s", err.msg);
    for (int epoch = 0; epoch < 2; epoch++) {
        memset(out->of, 0, sizeof out->of);
        for (int i = 0; i < SAMPLES; i++) {
            const pl_request q = request_of(i);
            cr_assert_eq(pl_engine_submit(e, &q, &err), PL_OK, "%s", err.msg);
        }
        cr_assert_eq(pl_engine_run(e, keep_all, out->of, &err), PL_OK, "%s", err.msg);
    }
    cr_assert_eq(pl_kv_pool_free_pages(e->pool), e->n_pages, "pages are lost");
    pl_engine_get_stats(e, &out->stats);
    pl_engine_free(e);
}

/* 1: the counters of two runs that are not times. */
static int is_same_work(const pl_engine_stats *a, const pl_engine_stats *b)
{
    return a->n_rounds == b->n_rounds && a->n_rows == b->n_rows &&
           a->n_prefill_rows == b->n_prefill_rows && a->n_emitted == b->n_emitted &&
           a->n_verify_steps == b->n_verify_steps && a->n_draft == b->n_draft &&
           a->n_accepted == b->n_accepted && a->n_preempted == b->n_preempted &&
           memcmp(a->n_draft_of, b->n_draft_of, sizeof a->n_draft_of) == 0 &&
           memcmp(a->n_accepted_of, b->n_accepted_of, sizeof a->n_accepted_of) == 0 &&
           memcmp(a->n_reached, b->n_reached, sizeof a->n_reached) == 0 &&
           memcmp(a->n_hit, b->n_hit, sizeof a->n_hit) == 0 &&
           memcmp(a->n_passes, b->n_passes, sizeof a->n_passes) == 0 &&
           a->n_drafted_steps == b->n_drafted_steps && a->n_tail_steps == b->n_tail_steps;
}

static void expect_same_run(const result *live, const result *replayed, const char *what)
{
    cr_expect(is_same_work(&live->stats, &replayed->stats),
        "%s: %ld rounds, %ld rows, %ld of %ld drafted; recorded %ld, %ld, %ld of %ld", what,
        (long)live->stats.n_rounds, (long)live->stats.n_rows, (long)live->stats.n_accepted,
        (long)live->stats.n_draft, (long)replayed->stats.n_rounds, (long)replayed->stats.n_rows,
        (long)replayed->stats.n_accepted, (long)replayed->stats.n_draft);
    for (int i = 0; i < SAMPLES; i++) {
        const answer *a = &live->of[i], *b = &replayed->of[i];
        cr_expect(a->n == b->n && a->finish == b->finish && a->n_draft == b->n_draft &&
                      a->n_callbacks == b->n_callbacks && a->n_verify == b->n_verify &&
                      memcmp(a->tokens, b->tokens, sizeof a->tokens) == 0 &&
                      memcmp(a->source, b->source, sizeof a->source) == 0,
            "%s: sample %d", what, i);
    }
}

static const setting alternatives[] = {
    {.batch = 64, .max_rows = 256},
    {.batch = 6, .max_rows = 40, .kv_pages = 12},
    {.batch = 64, .max_rows = 256, .speculative = 1},
    {.batch = 64,
        .max_rows = 256,
        .speculative = 1,
        .controller = PL_CONTROLLER_FIXED,
        .fixed_rows = 4},
    {.batch = 5,
        .max_rows = 48,
        .speculative = 1,
        .controller = PL_CONTROLLER_FIXED,
        .fixed_rows = 12,
        .depth = 3},
    {.batch = 7,
        .max_rows = 64,
        .speculative = 1,
        .kv_pages = 12,
        .controller = PL_CONTROLLER_FIXED,
        .fixed_rows = 16},
};

Test(recorded, an_engine_over_a_record_does_what_a_live_one_does, .timeout = 120)
{
    enum { N_ALTERNATIVES = sizeof alternatives / sizeof *alternatives };
    static result live, replayed;
    int64_t n_preempted = 0;
    bed b;
    make_record(&b);
    for (int i = 0; i < N_ALTERNATIVES; i++) {
        char what[32];
        snprintf(what, sizeof what, "alternative %d", i);
        play(&b, &alternatives[i], NULL, NULL, &live);
        play(&b, &alternatives[i], &recorded, NULL, &replayed);
        expect_same_run(&live, &replayed, what);
        n_preempted += live.stats.n_preempted;
        cr_expect(i < 3 || live.stats.n_accepted > 100, "%ld", (long)live.stats.n_accepted);
    }
    cr_expect_gt(n_preempted, 0, "no cache ran short: this proves less than it should");
    bed_close(&b);
}

Test(recorded, a_learned_drafter_proposes_the_same_from_prefilled_features, .timeout = 120)
{
    static const setting trees[] = {
        {.batch = 64,
            .max_rows = 256,
            .speculative = 1,
            .controller = PL_CONTROLLER_FIXED,
            .fixed_rows = 10,
            .learned_window = 64},
        {.batch = 6,
            .max_rows = 50,
            .speculative = 1,
            .controller = PL_CONTROLLER_FIXED,
            .fixed_rows = 6,
            .kv_pages = 12,
            .learned_window = 32},
    };
    static result live, replayed;
    const pl_eagle_options eo = {.seed = 3};
    pl_eagle *drafter = NULL;
    bed b;
    make_record(&b);
    for (int i = 0; i < SAMPLES; i++)
        prefill(&b, i);
    cr_assert_eq(pl_eagle_new(&drafter, b.model, &eo, NULL), PL_OK);
    for (int i = 0; i < 2; i++) {
        play(&b, &trees[i], NULL, drafter, &live);
        play(&b, &trees[i], &recorded, drafter, &replayed);
        expect_same_run(&live, &replayed, "learned");
        cr_expect_gt(live.stats.n_draft_of[PL_SOURCE_LEARNED], 500);
        cr_expect_gt(live.stats.n_reached[0], 100);
    }

    /* It is the features that say so. */
    forget_features();
    play(&b, &trees[0], NULL, drafter, &live);
    play(&b, &trees[0], &recorded, drafter, &replayed);
    cr_expect(!is_same_work(&live.stats, &replayed.stats) ||
                  memcmp(live.of, replayed.of, sizeof live.of) != 0,
        "features of zeros draft the same");
    pl_eagle_free(drafter);
    bed_close(&b);
}

Test(recorded, another_text_is_another_run, .timeout = 60)
{
    static result live, replayed;
    answer *a = &rec.of[SAMPLES - 1];
    bed b;
    make_record(&b);
    play(&b, &alternatives[3], NULL, NULL, &live);
    a->tokens[a->n / 2] = a->tokens[a->n / 2] == 5 ? 6 : 5;
    memcpy(got, rec.of, sizeof got);
    play(&b, &alternatives[3], &recorded, NULL, &replayed);
    for (int i = 0; i < SAMPLES; i++)
        cr_expect_eq(memcmp(got[i].tokens, replayed.of[i].tokens, sizeof got[i].tokens), 0);
    cr_expect_neq(memcmp(live.of, replayed.of, sizeof live.of), 0);
    bed_close(&b);
}

/* ---- times ---- */

Test(recorded, the_controller_decides_by_predicted_times, .timeout = 60)
{
    const setting goodput = {
        .batch = 8, .max_rows = 256, .speculative = 1, .controller = PL_CONTROLLER_GOODPUT};
    static result cheap, dear;
    bed b;
    make_record(&b);
    rec.base_s = 1; /* rows cost nothing, then all */
    rec.row_s = 1e-6;
    play(&b, &goodput, &recorded, NULL, &cheap);
    rec.base_s = 1e-6;
    rec.row_s = 1;
    play(&b, &goodput, &recorded, NULL, &dear);
    cr_expect_gt(cheap.stats.n_draft, 4 * dear.stats.n_draft, "%ld and %ld rows drafted",
        (long)cheap.stats.n_draft, (long)dear.stats.n_draft);
    cr_expect_gt(cheap.stats.n_draft, 500);
    /* One second a pass, and all of them counted. */
    cr_expect_float_eq(
        cheap.stats.pass_s, (double)cheap.stats.n_rounds, 0.02 * (double)cheap.stats.n_rounds + 2);
    cr_expect_float_eq(cheap.stats.verify_s, 1e-5 * (double)cheap.stats.n_emitted, 1e-9);
    bed_close(&b);
}

Test(recorded, costs_are_drawn_through_the_measured_passes)
{
    pl_costs c = {0};
    cr_expect_not(pl_costs_fit(&c));
    pl_costs_add(&c, 1, NAN, 1);
    pl_costs_add(&c, 1, 1, INFINITY);
    cr_expect_not(pl_costs_fit(&c), "what is no number is left out");
    for (int rows = 1; rows <= 14; rows++)
        pl_costs_add(&c, rows, 20, 20 * (0.010 + 0.001 * rows));
    cr_assert(pl_costs_fit(&c));
    for (int rows = 1; rows <= 200; rows++)
        cr_expect_float_eq(pl_costs_of(&c, rows) / (0.010 + 0.001 * rows), 1,
            rows <= 14 ? 0.01 : 0.1, "%d rows", rows);
    cr_expect_eq(pl_costs_most(&c), 14);
    pl_costs_add(&c, 7, 20, 20 * 0.5); /* an outlier */
    cr_assert(pl_costs_fit(&c));
    for (int rows = 2; rows <= 200; rows++)
        cr_expect_geq(pl_costs_of(&c, rows), pl_costs_of(&c, rows - 1) - 1e-12);
    pl_costs one = {0};
    pl_costs_add(&one, 8, 3, 0.3);
    cr_assert(pl_costs_fit(&one));
    cr_expect_float_eq(pl_costs_of(&one, 8), 0.1, 1e-9);
    cr_expect_gt(pl_costs_of(&one, 64), 1.5 * pl_costs_of(&one, 8), "rows are not free");
}

/* ---- what is refused ---- */

static void drop_window(void *ctx, const pl_feature_window *w)
{
    (void)ctx, (void)w;
}

Test(recorded, what_no_record_can_answer_is_refused, .timeout = 60)
{
    const setting s = alternatives[3];
    pl_engine_options o;
    pl_recorded blind = recorded;
    pl_engine *e = NULL;
    pl_request q;
    pl_error err = {0};
    int n_left;
    bed b;
    make_record(&b);
    o = options_of(&b, &s);
    o.learned_window = 64;
    blind.features = NULL;
    cr_expect_eq(pl_engine_new_recorded(&e, b.model, &o, &blind, NULL, &err), PL_E_INVAL);
    o.learned_window = 0;
    cr_assert_eq(pl_engine_new_recorded(&e, b.model, &o, &blind, NULL, &err), PL_OK);
    cr_expect_eq(pl_engine_set_windows(e, drop_window, NULL, 16, &err), PL_E_INVAL);

    q = request_of(0);
    q.uid = SAMPLES + 1;
    cr_expect_eq(pl_engine_submit(e, &q, &err), PL_E_INVAL);
    cr_expect(strstr(err.msg, "record") != NULL, "%s", err.msg);
    pl_engine_counts(e, &(int){0}, &n_left);
    cr_expect_eq(n_left, 0, "an engine is as it was");

    rec.of[1].n = 3; /* no end token, nor its length */
    q = request_of(1);
    cr_assert_eq(pl_engine_submit(e, &q, &err), PL_OK, "%s", err.msg);
    cr_expect_eq(pl_engine_run(e, NULL, NULL, &err), PL_E_INVAL);
    cr_expect(strstr(err.msg, "ends after 3 tokens") != NULL, "%s", err.msg);
    pl_engine_clear(e);
    pl_engine_free(e);
    bed_close(&b);
}
