/* Claims tested: a sample that begins with what was emitted of it elsewhere goes on with the same
 * bits, wherever it was cut, whatever else runs: tokens, log-probs, finish, stop strings across the
 * border.  Submits, cancels and rounds may alternate at will.  A prefix that ends its sample is
 * refused.  After a round that failed midway the engine is good for pl_engine_clear alone. */
#include "tests/rollout/bed.h"

#include <math.h>

/* ---- workloads ---- */

typedef enum workload { ORDINARY, STOPS, LONG } workload;

static answer truth[SAMPLES];
static char stop_text[SAMPLES][10];
static const char *stops[SAMPLES][2];

static pl_request case_of(workload w, int i)
{
    pl_request r = request_of(i);
    if (w == STOPS && stop_text[i][0]) {
        stops[i][0] = "\x01 this never comes \x02";
        stops[i][1] = stop_text[i];
        r.stop = stops[i];
        r.n_stop = 2;
    }
    if (w == LONG) {
        r.ignore_eos = 1;
        r.max_tokens = 250 - r.n_prompt < 190 ? 250 - r.n_prompt : 190 - i;
    }
    return r;
}

static int keep_all(void *ctx, const pl_response *r, int n_before)
{
    answer *a = (answer *)ctx + r->uid;
    cr_assert_eq(a->n, n_before, "sample %u begins at %d, not %d", r->uid, n_before, a->n);
    cr_assert_gt(r->n_tokens, n_before);
    cr_assert_leq(r->n_tokens, ROOM);
    cr_assert_eq(a->finish, PL_FINISH_NONE, "nothing after the end");
    a->n = r->n_tokens;
    memcpy(a->tokens, r->tokens, (size_t)a->n * sizeof *a->tokens);
    memcpy(a->logprobs, r->logprobs, (size_t)a->n * sizeof *a->logprobs);
    memcpy(a->source, r->token_source, (size_t)a->n);
    a->finish = r->finish;
    a->n_draft = r->spec_num_draft_tokens;
    a->n_accepted = r->spec_num_accepted_tokens;
    a->n_verify = r->spec_num_verify_steps;
    return 0;
}

/* Submit with the first n tokens of from; the arrays are spoiled and freed at once. */
static void submit_cut(pl_engine *e, pl_request r, const answer *from, int n)
{
    const size_t size = (size_t)n + 1;
    int32_t *tokens = calloc(size, sizeof *tokens);
    float *logprobs = calloc(size, sizeof *logprobs);
    uint8_t *source = calloc(size, 1);
    pl_error err;
    cr_assert(tokens && logprobs && source);
    memcpy(tokens, from->tokens, (size_t)n * sizeof *tokens);
    memcpy(logprobs, from->logprobs, (size_t)n * sizeof *logprobs);
    memcpy(source, from->source, (size_t)n);
    r.prefix = tokens;
    r.prefix_logprobs = logprobs;
    r.prefix_source = source;
    r.n_prefix = n;
    r.prefix_steps = n;
    cr_assert_eq(pl_engine_submit(e, &r, &err), PL_OK, "%s", err.msg);
    memset(tokens, 0x55, size * sizeof *tokens);
    memset(logprobs, 0x55, size * sizeof *logprobs);
    memset(source, 0x55, size);
    free(tokens);
    free(logprobs);
    free(source);
}

/* All samples, sample i with the first cuts[i] tokens of the truth. */
static void run_cuts(
    const bed *b, const setting *s, workload w, const int *cuts, answer *a, pl_engine_stats *stats)
{
    pl_engine *e = make_engine(b, s);
    pl_error err;
    memset(a, 0, SAMPLES * sizeof *a);
    for (int k = 0; k < SAMPLES; k++) {
        const int i = s->is_reversed ? SAMPLES - 1 - k : k;
        a[i].n = cuts[i];
        submit_cut(e, case_of(w, i), &truth[i], cuts[i]);
    }
    cr_assert_eq(pl_engine_run(e, keep_all, a, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_kv_pool_free_pages(e->pool), e->n_pages, "pages are lost");
    cr_assert_null(e->groups);
    pl_engine_get_stats(e, stats);
    pl_engine_free(e);
}

static const int uncut[SAMPLES];

/* The truth of a workload: each sample alone, uninterrupted, without drafts. */
static void find_truth(bed *b, workload w)
{
    const setting alone = {.batch = 1, .max_rows = 64};
    pl_engine_stats stats;
    find_base(b);
    for (int i = 0; w == STOPS && i < SAMPLES; i++)
        if (!make_stop(b, &base[i], stop_text[i]))
            stop_text[i][0] = 0;
    run_cuts(b, &alone, w, uncut, truth, &stats);
    reference = truth;
}

static int draw_below(uint32_t seed, uint32_t i, int n)
{
    return (int)(pl_noise_word(23, seed, 1, 0, i) % (uint32_t)n);
}

static const setting settings[] = {
    {.batch = 64, .max_rows = 256},
    {.batch = 3, .max_rows = 17, .is_reversed = 1},
    {.batch = 64, .max_rows = 256, .speculative = 1, .controller = PL_CONTROLLER_FIXED},
    {.batch = 6,
        .max_rows = 90,
        .kv_pages = 5,
        .speculative = 1,
        .controller = PL_CONTROLLER_FIXED,
        .fixed_rows = 20,
        .depth = 15,
        .propose = propose_oracle},
};
enum { SETTINGS = sizeof settings / sizeof *settings };

/* ---- cuts ---- */

/* Cut t of each sample; every third time of one sibling only, the others begin at their prompt. */
static void choose_cuts(int t, int *cuts)
{
    for (int i = 0; i < SAMPLES; i++) {
        cuts[i] = t % truth[i].n;
        if (t >= MAX_TOKENS && (i + t) % N != 0)
            cuts[i] = 0;
    }
}

static void cut_everywhere(workload w)
{
    bed b;
    int cuts[SAMPLES];
    int64_t n_preempted = 0;
    pl_engine_stats stats;
    find_truth(&b, w);
    for (int k = 0; k < SETTINGS; k++)
        for (int t = 1; t < MAX_TOKENS + 20; t++) {
            choose_cuts(t, cuts);
            run_cuts(&b, &settings[k], w, cuts, got, &stats);
            expect_same(truth, got, "cut");
            n_preempted += stats.n_preempted;
            for (int i = 0; i < SAMPLES && !settings[k].speculative; i++)
                cr_assert_eq(got[i].n_verify, got[i].n, "steps go on from those of the prefix");
        }
    cr_expect_gt(n_preempted, 100, "few pages must preempt");
    bed_close(&b);
}

Test(prefix, a_sample_cut_anywhere_goes_on_bit_equal, .timeout = 240)
{
    cut_everywhere(ORDINARY);
}

Test(prefix, a_sample_with_stop_strings_cut_anywhere_goes_on_bit_equal, .timeout = 240)
{
    int n_straddling = 0;
    cut_everywhere(STOPS);
    for (int i = 0; i < SAMPLES; i++)
        n_straddling += stop_text[i][0] && truth[i].finish == PL_FINISH_STOP && truth[i].n > 1;
    cr_expect_gt(n_straddling, 8, "%d stop strings", n_straddling);
}

/* The text before the border is needed: the last token alone does not hold the stop string. */
Test(prefix, stop_strings_end_across_the_border_of_the_prefix, .timeout = 60)
{
    bed b;
    pl_error err;
    int n_straddling = 0;
    find_truth(&b, STOPS);
    for (int i = 0; i < SAMPLES; i++) {
        const answer *a = &truth[i];
        if (!stop_text[i][0] || a->finish != PL_FINISH_STOP || a->n < 2)
            continue;
        for (int n_before = 1; n_before < a->n; n_before++) {
            char *said;
            size_t n;
            cr_assert_eq(pl_tokenizer_decode(
                             b.tok, a->tokens + n_before, a->n - n_before, 1, &said, &n, &err),
                PL_OK);
            n_straddling += !holds(said, n, stop_text[i]);
            free(said);
        }
        pl_engine *e = make_engine(&b, &plain);
        memset(got, 0, sizeof got);
        got[i].n = a->n - 1;
        submit_cut(e, case_of(STOPS, i), a, a->n - 1);
        cr_assert_eq(pl_engine_run(e, keep_all, got, &err), PL_OK, "%s", err.msg);
        cr_expect_eq(got[i].n, a->n, "sample %d", i);
        cr_expect_eq(got[i].finish, PL_FINISH_STOP);
        pl_engine_free(e);
    }
    cr_expect_gt(n_straddling, 20, "%d cuts inside a stop string", n_straddling);
    bed_close(&b);
}

Test(prefix, long_samples_cut_at_random_go_on_bit_equal, .timeout = 240)
{
    bed b;
    int cuts[SAMPLES];
    pl_engine_stats stats;
    find_truth(&b, LONG);
    for (int i = 0; i < SAMPLES; i++)
        cr_assert_gt(truth[i].n, 100);
    for (int k = 0; k < SETTINGS; k++)
        for (uint32_t t = 0; t < 12; t++) {
            for (int i = 0; i < SAMPLES; i++)
                cuts[i] = draw_below(100 * (uint32_t)k + t, (uint32_t)i, truth[i].n);
            run_cuts(&b, &settings[k], LONG, cuts, got, &stats);
            expect_same(truth, got, "random cut");
        }
    bed_close(&b);
}

/* ---- what is handed through ---- */

Test(prefix, log_probs_sources_and_counters_of_the_prefix_are_handed_through, .timeout = 60)
{
    bed b;
    pl_error err;
    find_truth(&b, ORDINARY);
    const int i = 2, n = 5;
    answer given = truth[i];
    cr_assert_gt(given.n, n + 1);
    for (int k = 0; k < n; k++) {
        given.logprobs[k] = -100.5f - (float)k;
        given.source[k] = (uint8_t)(k % 2 ? PL_SOURCE_SUFFIX : PL_SOURCE_TARGET);
    }
    for (int with_source = 0; with_source < 2; with_source++) {
        pl_engine *e = make_engine(&b, &plain);
        pl_request r = case_of(ORDINARY, i);
        r.prefix = given.tokens;
        r.prefix_logprobs = given.logprobs;
        r.prefix_source = with_source ? given.source : NULL;
        r.n_prefix = n;
        r.prefix_draft = 1000;
        r.prefix_accepted = 200;
        r.prefix_steps = 30;
        memset(got, 0, sizeof got);
        got[i].n = n;
        cr_assert_eq(pl_engine_submit(e, &r, &err), PL_OK, "%s", err.msg);
        cr_assert_eq(pl_engine_run(e, keep_all, got, &err), PL_OK, "%s", err.msg);
        cr_expect_eq(got[i].n, truth[i].n);
        cr_expect_eq(memcmp(got[i].logprobs, given.logprobs, (size_t)given.n * 4), 0);
        for (int k = 0; k < n; k++)
            cr_expect_eq(got[i].source[k], with_source ? given.source[k] : PL_SOURCE_TARGET);
        cr_expect_eq(got[i].n_draft, 1000);
        cr_expect_eq(got[i].n_accepted, 200);
        cr_expect_eq(got[i].n_verify, 30 + got[i].n - n);
        pl_engine_free(e);
    }
    bed_close(&b);
}

Test(prefix, the_suffix_drafter_learns_the_prefix, .timeout = 60)
{
    bed b;
    pl_error err;
    int n_left = 0;
    find_truth(&b, ORDINARY);
    pl_engine *e = make_engine(&b, &settings[2]);
    const int i = 6, n = 20;
    cr_assert_gt(truth[i].n, n + 2);
    submit_cut(e, case_of(ORDINARY, i), &truth[i], n);
    memset(got, 0, sizeof got);
    got[i].n = n;
    cr_assert_eq(pl_engine_round(e, keep_all, got, &n_left, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(got[i].n, n, "the first round prefills the prompt");
    cr_expect_eq(
        pl_suffix_tokens(e->store.entries->suffix), (size_t)(case_of(ORDINARY, i).n_prompt + n));
    pl_engine_free(e);
    bed_close(&b);
}

/* ---- what is refused ---- */

static void expect_refused(pl_engine *e, const pl_request *r, const char *why)
{
    pl_error err;
    int n_running = 0, n_queued = 0;
    cr_expect_eq(pl_engine_submit(e, r, &err), PL_E_INVAL, "%s", why);
    cr_expect_not_null(strstr(err.msg, why), "'%s' in '%s'", why, err.msg);
    pl_engine_counts(e, &n_running, &n_queued);
    cr_expect_eq(n_running + n_queued, 0);
    cr_expect_null(e->groups);
}

Test(prefix, a_prefix_that_ends_its_sample_is_refused, .timeout = 60)
{
    static const float logprobs[ROOM];
    bed b;
    int n_stops = 0, n_ends = 0;
    find_truth(&b, STOPS);
    pl_engine *e = make_engine(&b, &plain);
    for (int i = 0; i < SAMPLES; i++) {
        pl_request r = case_of(STOPS, i);
        r.prefix = truth[i].tokens;
        r.prefix_logprobs = logprobs;
        r.n_prefix = truth[i].n;
        expect_refused(e, &r, truth[i].finish == PL_FINISH_STOP ? "string" : "its length");
        n_stops += truth[i].finish == PL_FINISH_STOP;
        r = case_of(ORDINARY, i);
        r.prefix = base[i].tokens;
        r.prefix_logprobs = logprobs;
        r.n_prefix = base[i].n;
        expect_refused(e, &r, base[i].finish == PL_FINISH_STOP ? "end token" : "its length");
        n_ends += base[i].finish == PL_FINISH_STOP;
    }
    cr_expect(n_stops > 8 && n_ends > 2);
    const int32_t wild[2] = {5, 512}, negative[1] = {-1};
    pl_request r = case_of(ORDINARY, 0);
    r.n_prefix = 2;
    expect_refused(e, &r, "with their ids");
    r.prefix_logprobs = logprobs;
    r.prefix = wild;
    expect_refused(e, &r, "prefix token 1 is id 512");
    r.prefix = negative;
    r.n_prefix = 1;
    expect_refused(e, &r, "prefix token 0 is id -1");
    r.n_prefix = -1;
    expect_refused(e, &r, "prefix of -1 tokens");
    pl_engine_free(e);
    bed_close(&b);
}

/* ---- submits, cancels and rounds in any order ---- */

typedef struct crowd {
    pl_engine *e;
    uint32_t seed, n_draws;
    int is_live[SAMPLES];
    int n_done, n_cancelled, n_resumed;
} crowd;

static int roll(crowd *c, int n)
{
    return draw_below(c->seed, c->n_draws++, n);
}

static void submit_one(crowd *c, int i)
{
    if (c->is_live[i] || got[i].finish != PL_FINISH_NONE)
        return;
    /* The journal may lag behind what was emitted, down to nothing. */
    const int n = roll(c, 4) == 0 ? 0 : roll(c, got[i].n + 1);
    got[i].n = n;
    submit_cut(c->e, case_of(STOPS, i), &got[i], n);
    c->n_resumed += n > 0;
    c->is_live[i] = 1;
}

static void cancel_one(crowd *c, int i)
{
    cr_assert_eq(pl_engine_cancel(c->e, (uint32_t)i), c->is_live[i], "sample %d", i);
    c->n_cancelled += c->is_live[i];
    c->is_live[i] = 0;
}

static void check_counts(const pl_engine *e)
{
    for (const group *g = e->groups; g; g = g->next) {
        int n_running = 0, n_live = 0;
        for (int i = 0; i < e->n_running; i++)
            n_running += e->running[i]->group == g;
        for (const sequence *s = e->queue; s; s = s->next)
            n_live += s->group == g;
        cr_assert_eq(g->n_running, n_running, "group %u", g->id);
        cr_assert_eq(g->n_live, n_live + n_running, "group %u", g->id);
    }
}

static void round_one(crowd *c)
{
    pl_error err;
    int n_left = 0, n_live = 0, n_running = 0, n_queued = 0;
    cr_assert_eq(pl_engine_round(c->e, keep_all, got, &n_left, &err), PL_OK, "%s", err.msg);
    for (int i = 0; i < SAMPLES; i++) {
        if (c->is_live[i] && got[i].finish != PL_FINISH_NONE) {
            c->is_live[i] = 0;
            c->n_done++;
        }
        n_live += c->is_live[i];
    }
    pl_engine_counts(c->e, &n_running, &n_queued);
    cr_assert_eq(n_running + n_queued, n_live);
    cr_assert_eq(n_left, n_live);
}

Test(prefix, submits_cancels_and_rounds_in_any_order_change_nothing, .timeout = 240)
{
    bed b;
    int n_cancelled = 0, n_resumed = 0;
    find_truth(&b, STOPS);
    for (uint32_t seed = 1; seed <= 60; seed++) {
        crowd c = {.seed = seed, .e = make_engine(&b, &settings[seed % SETTINGS])};
        memset(got, 0, sizeof got);
        for (int step = 0; c.n_done < SAMPLES; step++) {
            const int what = roll(&c, 8);
            cr_assert_lt(step, 20000, "it ends");
            if (what < 3)
                submit_one(&c, roll(&c, SAMPLES));
            else if (what < 5 && step < 300)
                cancel_one(&c, roll(&c, SAMPLES));
            else
                round_one(&c);
            check_counts(c.e);
        }
        expect_same(truth, got, "crowd");
        cr_assert_eq(pl_kv_pool_free_pages(c.e->pool), c.e->n_pages, "pages are lost");
        cr_assert_null(c.e->groups);
        cr_assert_null(c.e->queue_last);
        n_cancelled += c.n_cancelled;
        n_resumed += c.n_resumed;
        pl_engine_free(c.e);
    }
    cr_expect_gt(n_cancelled, 200, "%d", n_cancelled);
    cr_expect_gt(n_resumed, 100, "%d", n_resumed);
    bed_close(&b);
}

Test(prefix, cancel_takes_head_middle_and_end_of_the_queue, .timeout = 60)
{
    static const uint32_t order[3] = {0, 2, 4};
    bed b;
    pl_error err;
    int n_running = 0, n_queued = 0;
    find_base(&b);
    pl_engine *e = make_engine(&b, &plain);
    for (int i = 0; i < 5; i++) {
        const pl_request r = request_of(i);
        cr_assert_eq(pl_engine_submit(e, &r, &err), PL_OK, "%s", err.msg);
    }
    for (int k = 0; k < 3; k++) {
        cr_expect_eq(pl_engine_cancel(e, order[k]), 1);
        cr_expect_eq(pl_engine_cancel(e, order[k]), 0, "it is gone");
    }
    cr_expect_eq(pl_engine_cancel(e, 77), 0);
    const pl_request r = request_of(5); /* behind what is the last now */
    cr_assert_eq(pl_engine_submit(e, &r, &err), PL_OK, "%s", err.msg);
    pl_engine_counts(e, &n_running, &n_queued);
    cr_expect_eq(n_running, 0);
    cr_expect_eq(n_queued, 3);
    memset(got, 0, sizeof got);
    cr_assert_eq(pl_engine_run(e, keep_all, got, &err), PL_OK, "%s", err.msg);
    for (int i = 0; i < SAMPLES; i++)
        if (i == 1 || i == 3 || i == 5)
            cr_expect_eq(memcmp(got[i].tokens, base[i].tokens, (size_t)base[i].n * 4), 0);
        else
            cr_expect_eq(got[i].n, 0, "sample %d", i);
    pl_engine_free(e);
    bed_close(&b);
}

/* ---- rounds that end early ---- */

static int keep_and_stop(void *ctx, const pl_response *r, int n_before)
{
    keep_all(ctx, r, n_before);
    return (r->uid + (uint32_t)r->n_tokens) % 3 == 0;
}

Test(prefix, a_stopped_engine_goes_on_with_the_next_round, .timeout = 60)
{
    bed b;
    pl_error err;
    find_truth(&b, STOPS);
    for (int k = 0; k < SETTINGS; k++) {
        pl_engine *e = make_engine(&b, &settings[k]);
        pl_status st = PL_E_STOPPED;
        int n_stopped = 0;
        memset(got, 0, sizeof got);
        for (int i = 0; i < SAMPLES; i++)
            submit_cut(e, case_of(STOPS, i), &truth[i], 0);
        for (; st == PL_E_STOPPED; n_stopped++)
            st = pl_engine_run(e, keep_and_stop, got, &err);
        cr_assert_eq(st, PL_OK, "%s", err.msg);
        expect_same(truth, got, "stopped");
        cr_expect_gt(n_stopped, 5, "%d stops", n_stopped);
        cr_expect_eq(pl_kv_pool_free_pages(e->pool), e->n_pages, "pages are lost");
        pl_engine_free(e);
    }
    bed_close(&b);
}

Test(prefix, after_a_numeric_failure_only_clear_is_valid_and_makes_all_good, .timeout = 60)
{
    bed b;
    pl_error err;
    pl_status st = PL_OK;
    int n_left = 1;
    find_base(&b);
    const setting two = {.batch = 2, .max_rows = 256};
    pl_engine *e = make_engine(&b, &two);
    for (int i = 0; i < N; i++) {
        const pl_request r = request_of(i);
        cr_assert_eq(pl_engine_submit(e, &r, &err), PL_OK, "%s", err.msg);
    }
    memset(got, 0, sizeof got);
    while (got[0].n < 3)
        cr_assert_eq(pl_engine_round(e, keep_all, got, &n_left, &err), PL_OK, "%s", err.msg);
    for (int v = 0; v < e->arch->n_vocab; v++) /* the third and fourth sibling draw from these */
        e->groups->logits[v] = NAN;
    while (st == PL_OK && n_left > 0)
        st = pl_engine_round(e, keep_all, got, &n_left, &err);
    cr_assert_eq(st, PL_E_NUMERIC, "%d", (int)st);

    const pl_request r = request_of(9);
    cr_expect_eq(pl_engine_round(e, keep_all, got, &n_left, &err), PL_E_INVAL);
    cr_expect_not_null(strstr(err.msg, "clear"), "%s", err.msg);
    cr_expect_eq(pl_engine_submit(e, &r, &err), PL_E_INVAL);

    pl_engine_clear(e);
    cr_expect_eq(pl_kv_pool_free_pages(e->pool), e->n_pages);
    memset(got, 0, sizeof got);
    for (int i = 0; i < SAMPLES; i++) {
        const pl_request again = request_of(i);
        cr_assert_eq(pl_engine_submit(e, &again, &err), PL_OK, "%s", err.msg);
    }
    cr_assert_eq(pl_engine_run(e, keep_all, got, &err), PL_OK, "%s", err.msg);
    expect_same(base, got, "after clear");
    pl_engine_free(e);
    bed_close(&b);
}
