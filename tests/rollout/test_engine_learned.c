/* Claims tested: text and log-probs are those of plain decoding whatever learned drafter drafts:
 * none, a random one, a trained one, several in turn in mid-response; with threads, few pages,
 * prefixes and cancels.  Windows hold, bit for bit, what a fresh pass over the finished text
 * computes, each position once and without a gap.  A drafter trained on them is accepted far more
 * often than a random one, and than one trained on features that stand one position off. */
#include "tests/rollout/bed.h"

enum { WINDOW = 24, MAX_WINDOWS = 400, POSITIONS = 256 };

/* ---- what windows bring ---- */

typedef struct record {
    int first, n, is_done, n_prompt; /* positions first .. first + n - 1 */
    int32_t tokens[POSITIONS];
    uint16_t *features, *hidden; /* [POSITIONS][3][cp], [POSITIONS][cp] */
} record;

typedef struct records {
    int cp, n_windows, n_calls, rows; /* rows: of a window at most */
    record of[SAMPLES];
    pl_eagle_window windows[MAX_WINDOWS];
    uint8_t is_target[MAX_WINDOWS][WINDOW];
} records;

static records all;

static void records_open(int cp)
{
    memset(&all, 0, sizeof all);
    all.cp = cp;
    all.rows = WINDOW;
    for (int i = 0; i < SAMPLES; i++) {
        all.of[i].features =
            calloc((size_t)POSITIONS * PL_FEATURE_LAYERS * (size_t)cp, sizeof(uint16_t));
        all.of[i].hidden = calloc((size_t)POSITIONS * (size_t)cp, sizeof(uint16_t));
        cr_assert(all.of[i].features && all.of[i].hidden);
    }
}

static void records_close(void)
{
    for (int i = 0; i < SAMPLES; i++) {
        free(all.of[i].features);
        free(all.of[i].hidden);
    }
}

static void keep_window(void *ctx, const pl_feature_window *w)
{
    records *r = ctx;
    record *one = &r->of[w->uid];
    const size_t cp = (size_t)r->cp, at = (size_t)w->position, n = (size_t)w->n;
    cr_assert_lt(w->uid, SAMPLES);
    cr_assert(w->n >= 1 && w->n <= r->rows, "%d rows", w->n);
    cr_assert(!one->is_done, "sample %u: nothing after its last window", w->uid);
    if (one->n == 0)
        one->first = w->position;
    else
        cr_assert_eq(w->position, one->first + one->n, "sample %u: a gap or an overlap", w->uid);
    cr_assert_eq(w->purpose, PL_NOISE_SAMPLE);
    one->n += w->n;
    one->n_prompt = w->n_prompt;
    one->is_done = w->is_last;
    memcpy(one->tokens + at, w->tokens, n * sizeof *w->tokens);
    memcpy(one->features + at * 3 * cp, w->features, n * 3 * cp * sizeof *w->features);
    memcpy(one->hidden + at * cp, w->hidden, n * cp * sizeof *w->hidden);
    r->n_calls++;
    if (r->n_windows == MAX_WINDOWS)
        return;
    uint8_t *is_target = r->is_target[r->n_windows];
    for (int i = 0; i < w->n; i++)
        is_target[i] = w->position + i + 1 >= w->n_prompt;
    r->windows[r->n_windows++] = (pl_eagle_window){.tokens = one->tokens + at,
        .features = one->features + at * 3 * cp,
        .hidden = one->hidden + at * cp,
        .is_target = is_target,
        .n = w->n,
        .position = w->position,
        .temperature = w->temperature};
}

static int cp_of(const bed *b)
{
    return pl_pad32(pl_model_arch(b->model)->n_embd);
}

/* What a pass over prompt and response computes of sample i. */
static void compare_record(
    pl_pass *pass, pl_kv_pool *pool, int i, uint16_t *features, uint16_t *hidden)
{
    const pl_request r = request_of(i);
    const record *one = &all.of[i];
    const size_t cp = (size_t)all.cp;
    int32_t text[POSITIONS];
    pl_kv_seq kv;
    pl_error err;
    const int n = r.n_prompt + base[i].n - 1; /* the last token was never processed */
    if (base[i].n == 1)
        return;
    memcpy(text, r.prompt, (size_t)r.n_prompt * sizeof *text);
    memcpy(text + r.n_prompt, base[i].tokens, (size_t)base[i].n * sizeof *text);
    cr_assert(one->is_done, "sample %d has a last window", i);
    cr_assert_eq(one->first + one->n, n, "sample %d: to its end", i);
    cr_assert_eq(one->first, r.n_prompt > all.rows ? r.n_prompt - all.rows : 0,
        "sample %d: from %d", i, one->first);
    cr_assert_eq(pl_kv_seq_init(&kv, 256, &err), PL_OK);
    cr_assert_eq(pl_kv_reserve(pool, &kv, n, &err), PL_OK);
    const pl_segment seg = {.kv = &kv, .tokens = text, .n_rows = n};
    cr_assert_eq(pl_pass_run(pass, pool, &seg, 1, &err), PL_OK, "%s", err.msg);
    for (int t = one->first; t < n; t++) {
        const size_t at = (size_t)t;
        cr_assert_eq(one->tokens[t], text[t], "sample %d, position %d", i, t);
        cr_assert_eq(memcmp(one->features + at * 3 * cp, features + at * 3 * cp, 6 * cp), 0,
            "features of sample %d, position %d", i, t);
        cr_assert_eq(memcmp(one->hidden + at * cp, hidden + at * cp, 2 * cp), 0,
            "hidden state of sample %d, position %d", i, t);
    }
    pl_kv_seq_done(pool, &kv);
}

static void compare_records(const bed *b)
{
    const pl_pass_options po = {
        .max_rows = 256, .max_logits = 1, .max_segments = 1, .max_ctx = 256};
    const size_t cp = (size_t)all.cp;
    uint16_t *features = calloc(256 * 3 * cp, sizeof *features);
    uint16_t *hidden = calloc(256 * cp, sizeof *hidden);
    const pl_features f = {.rows = features, .hidden = hidden, .room = 256};
    pl_pass *pass = NULL;
    pl_kv_pool *pool = NULL;
    pl_error err;
    cr_assert(features && hidden);
    cr_assert_eq(pl_pass_new(&pass, b->model, &po, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_kv_pool_new(&pool, pl_model_arch(b->model), 8, &err), PL_OK, "%s", err.msg);
    pl_pass_set_features(pass, &f);
    for (int i = 0; i < SAMPLES; i++)
        compare_record(pass, pool, i, features, hidden);
    pl_pass_free(pass);
    pl_kv_pool_free(pool);
    free(features);
    free(hidden);
}

/* ---- drafters ---- */

static pl_eagle *random_drafter(const bed *b, uint64_t seed)
{
    const pl_eagle_options o = {.seed = seed};
    pl_eagle *e = NULL;
    pl_error err;
    cr_assert_eq(pl_eagle_new(&e, b->model, &o, &err), PL_OK, "%s", err.msg);
    return e;
}

/* Train on the recorded windows; shift: what the target computed stands one position before the
 * token that it was computed from. */
static pl_eagle *trained_drafter(const bed *b, int n_steps, int shift)
{
    enum { STEP = 8 };
    pl_eagle *e = random_drafter(b, 3);
    pl_eagle_trainer *t = NULL;
    pl_eagle_train_options o;
    pl_eagle_step_stats stats;
    pl_error err;
    pl_eagle_train_defaults(&o);
    o.window = WINDOW;
    o.max_windows = STEP;
    o.lr = 5e-3f;
    cr_assert_eq(pl_eagle_trainer_new(&t, e, &o, &err), PL_OK, "%s", err.msg);
    for (int i = 0; i < n_steps; i++) {
        pl_eagle_window w[STEP];
        for (int k = 0; k < STEP; k++) {
            w[k] = all.windows[(i * STEP + k) % all.n_windows];
            if (shift && w[k].n > 3) {
                w[k].features += PL_FEATURE_LAYERS * all.cp;
                w[k].hidden += all.cp;
                w[k].is_target++;
                w[k].n--;
            }
        }
        cr_assert_eq(
            pl_eagle_train_step(t, w, STEP, NULL, NULL, &stats, &err), PL_OK, "%s", err.msg);
    }
    pl_eagle_trainer_free(t);
    pl_eagle *copy = NULL;
    cr_assert_eq(pl_eagle_copy(&copy, e, NULL, &err), PL_OK, "%s", err.msg);
    pl_eagle_free(e);
    return copy;
}

/* ---- runs ---- */

typedef struct way {
    const pl_eagle *drafters[3]; /* in turn */
    int n_drafters, swap_every;  /* rounds; 0: never */
    int windows;                 /* rows of a window; 0: none */
} way;

static void submit_all(pl_engine *e, int is_reversed)
{
    pl_error err;
    for (int i = 0; i < SAMPLES; i++) {
        const pl_request r = request_of(is_reversed ? SAMPLES - 1 - i : i);
        cr_assert_eq(pl_engine_submit(e, &r, &err), PL_OK, "%s", err.msg);
    }
}

static void run_rounds(pl_engine *e, const way *w, answer *a)
{
    pl_error err;
    for (int n_left = 1, round = 0; n_left > 0; round++) {
        const pl_eagle *next = w->n_drafters == 0 ? NULL
                               : w->swap_every ? w->drafters[round / w->swap_every % w->n_drafters]
                                               : w->drafters[0];
        if (w->n_drafters > 0 && (w->swap_every ? round % w->swap_every == 0 : round == 0))
            cr_assert_eq(pl_engine_set_drafter(e, next, &err), PL_OK, "%s", err.msg);
        cr_assert_eq(pl_engine_round(e, keep_answer, a, &n_left, &err), PL_OK, "%s", err.msg);
    }
}

static int count_free(const recorder *r)
{
    int n = 0;
    for (; r; r = r->next)
        n++;
    return n;
}

static void run_way(const bed *b, const setting *s, const way *w, answer *a, pl_engine_stats *stats)
{
    pl_engine *e = make_engine(b, s);
    pl_error err;
    memset(a, 0, SAMPLES * sizeof *a);
    if (w->windows)
        cr_assert_eq(
            pl_engine_set_windows(e, keep_window, &all, all.rows, &err), PL_OK, "%s", err.msg);
    submit_all(e, s->is_reversed);
    run_rounds(e, w, a);
    cr_assert_eq(pl_kv_pool_free_pages(e->pool), e->n_pages, "pages are lost");
    if (w->windows) {
        cr_assert_eq(count_free(e->windows.free), s->batch, "recorders are lost");
        cr_assert_eq(count_free(e->windows.free_leads), s->batch, "leads are lost");
    }
    if (e->learned)
        for (int i = 0; i < s->batch; i++)
            cr_assert_geq(pl_learned_open(e->learned), 0, "places are lost");
    if (stats)
        pl_engine_get_stats(e, stats);
    pl_engine_free(e);
}

/* ---- the law ---- */

Test(learned, text_is_that_of_plain_decoding_under_any_drafter, .timeout = 240)
{
    static const int batches[] = {1, 2, 5, 8, 64};
    bed b;
    find_base(&b);
    pl_eagle *x = random_drafter(&b, 1), *y = random_drafter(&b, 2);
    for (int i = 0; i < 5; i++)
        for (int k = 0; k < 4; k++) {
            const way w = {.drafters = {x, y, NULL},
                .n_drafters = k == 0   ? 1
                              : k == 1 ? 3
                                       : 2,
                .swap_every = k == 0 ? 0 : 2 * k - 1};
            const setting s = {.batch = batches[i],
                .max_rows = k == 1 ? 40 : 256,
                .speculative = 1,
                .controller = k == 2 ? PL_CONTROLLER_GOODPUT : PL_CONTROLLER_FIXED,
                .learned_window = k == 3 ? 8 : 64,
                .fixed_rows = k == 3 ? 64 : 12,
                .depth = k == 3 ? 63 : 6,
                .is_reversed = (i + k) % 2};
            pl_engine_stats stats;
            run_way(&b, &s, &w, got, &stats);
            expect_same(base, got, "drafter");
            cr_expect(k == 2 || stats.n_draft_of[PL_SOURCE_LEARNED] > 0, "%d rows",
                (int)stats.n_draft_of[PL_SOURCE_LEARNED]);
            if (s.batch <= 4) {
                cr_expect_eq(stats.n_tail_emitted, stats.n_emitted);
                cr_expect_eq(stats.n_tail_steps, stats.n_verify_steps);
            }
            cr_expect_leq(stats.n_drafted_steps, stats.n_verify_steps);
            /* A round emits what was accepted and one more, but for one that ends in it. */
            cr_expect_leq(stats.n_drafted_emitted - stats.n_drafted_steps, stats.n_accepted);
            cr_expect(k == 0 ? stats.n_swaps == 1 : stats.n_swaps > 5);
            cr_expect_eq(stats.n_draft,
                stats.n_draft_of[PL_SOURCE_SUFFIX] + stats.n_draft_of[PL_SOURCE_LEARNED]);
            cr_expect_eq(stats.n_accepted,
                stats.n_accepted_of[PL_SOURCE_SUFFIX] + stats.n_accepted_of[PL_SOURCE_LEARNED]);
        }
    pl_eagle_free(x);
    pl_eagle_free(y);
    bed_close(&b);
}

static int propose_noise(
    sequence *s, const pl_draw *draw, int max_rows, int max_depth, pl_draft *d, float *expected)
{
    for (uint32_t i = 0; d->n < max_rows && i < 500; i++) {
        const uint32_t r = pl_noise_word(8, s->r.uid, draw->position, 3, i);
        const int parent = (int)(r >> 12) % d->n;
        if (d->depth[parent] >= max_depth)
            continue;
        const int row = pl_draft_add(d, parent, (int32_t)(r % 512), PL_SOURCE_SUFFIX, max_rows);
        expected[row] = expected[parent] * 0.9f;
    }
    return d->n - 1;
}

Test(learned, threads_few_pages_and_a_hostile_neighbour_change_nothing, .timeout = 240)
{
    bed b;
    find_base(&b);
    bed_close(&b);
    for (int threads = 1; threads <= 2; threads++)
        for (int k = 0; k < 3; k++) {
            cr_assert(bed_open(&b, PL_ISA_AUTO, threads));
            pl_eagle *x = random_drafter(&b, 1), *y = random_drafter(&b, 2);
            const way w = {.drafters = {x, y}, .n_drafters = 2, .swap_every = 3, .windows = 1};
            const setting s = {.batch = k == 2 ? 4 : 64,
                .max_rows = 100,
                .speculative = 1,
                .controller = PL_CONTROLLER_FIXED,
                .propose = k == 1 ? propose_noise : NULL,
                .kv_pages = 4 + k,
                .learned_window = 32,
                .is_reversed = k == 1};
            pl_engine_stats stats;
            records_open(cp_of(&b));
            all.rows = 5; /* so that samples lose their pages between two windows */
            run_way(&b, &s, &w, got, &stats);
            expect_same(base, got, "few pages");
            cr_expect_gt(stats.n_preempted, 0);
            compare_records(&b);
            records_close();
            pl_eagle_free(x);
            pl_eagle_free(y);
            bed_close(&b);
        }
}

Test(learned, prefixes_and_cancels_leave_the_others_alone, .timeout = 120)
{
    bed b;
    pl_error err;
    find_base(&b);
    pl_eagle *x = random_drafter(&b, 1);
    const setting s = {.batch = 8,
        .max_rows = 128,
        .speculative = 1,
        .controller = PL_CONTROLLER_FIXED,
        .learned_window = 64};
    pl_engine *e = make_engine(&b, &s);
    records_open(cp_of(&b));
    cr_assert_eq(pl_engine_set_windows(e, keep_window, &all, WINDOW, &err), PL_OK);
    cr_assert_eq(pl_engine_set_drafter(e, x, &err), PL_OK, "%s", err.msg);
    memset(got, 0, sizeof got);
    for (int i = 0; i < SAMPLES; i++) {
        pl_request r = request_of(i);
        if (i % 3 == 1 && base[i].n > 8) {
            r.prefix = base[i].tokens;
            r.prefix_logprobs = base[i].logprobs;
            r.n_prefix = base[i].n / 2;
            got[i] = base[i];
            got[i].n = r.n_prefix;
            got[i].finish = PL_FINISH_NONE;
        }
        cr_assert_eq(pl_engine_submit(e, &r, &err), PL_OK, "%s", err.msg);
    }
    int n_left = 1, n_cancelled = 0;
    for (int round = 0; n_left > 0; round++) {
        cr_assert_eq(pl_engine_round(e, keep_answer, got, &n_left, &err), PL_OK, "%s", err.msg);
        const uint32_t uid = (uint32_t)(round % SAMPLES);
        if (round > 3 && uid % 5 == 2 && pl_engine_cancel(e, uid)) {
            n_cancelled++;
            cr_expect(!all.of[uid].is_done);
            got[uid] = base[uid]; /* it is out of the comparison */
            all.of[uid].n = -1;
        }
    }
    cr_expect_gt(n_cancelled, 1);
    cr_expect_eq(count_free(e->windows.free), 8);
    expect_same(base, got, "prefix and cancel");
    pl_engine_free(e);
    for (int i = 0; i < SAMPLES; i++)
        base[i].n = all.of[i].n < 0 ? 1 : base[i].n; /* 1: not compared */
    compare_records(&b);
    records_close();
    pl_eagle_free(x);
    bed_close(&b);
}

/* ---- windows ---- */

Test(learned, windows_hold_what_a_fresh_pass_computes_bit_for_bit, .timeout = 240)
{
    bed b;
    find_base(&b);
    for (int k = 0; k < 5; k++) {
        const setting s = {.batch = k == 0   ? 1
                                    : k == 1 ? 5
                                             : 64,
            .max_rows = k == 2 ? 17 : 200,
            .speculative = k != 4,
            .propose = propose_oracle,
            .controller = PL_CONTROLLER_FIXED,
            .learned_window = k == 3 ? 64 : 0,
            .kv_pages = k == 2 ? 5 : 0};
        const way w = {.windows = 1};
        records_open(cp_of(&b));
        run_way(&b, &s, &w, got, NULL);
        expect_same(base, got, "windows");
        cr_expect_gt(all.n_calls, SAMPLES);
        compare_records(&b);
        records_close();
    }
    bed_close(&b);
}

Test(learned, a_sample_that_is_prefilled_anew_hands_no_row_over_twice, .timeout = 60)
{
    bed b;
    pl_error err;
    find_base(&b);
    pl_eagle *x = random_drafter(&b, 1);
    for (int every = 3; every < 30; every += 8) {
        const setting s = {.batch = 6,
            .max_rows = 64,
            .speculative = 1,
            .controller = PL_CONTROLLER_FIXED,
            .learned_window = 32};
        pl_engine *e = make_engine(&b, &s);
        records_open(cp_of(&b));
        all.rows = 7;
        cr_assert_eq(pl_engine_set_windows(e, keep_window, &all, all.rows, &err), PL_OK);
        cr_assert_eq(pl_engine_set_drafter(e, x, &err), PL_OK, "%s", err.msg);
        memset(got, 0, sizeof got);
        submit_all(e, 0);
        for (int n_left = 1, round = 1; n_left > 0; round++) {
            cr_assert_eq(pl_engine_round(e, keep_answer, got, &n_left, &err), PL_OK);
            if (round % every == 0 && e->n_running > 0)
                engine_preempt(e, e->running[round % e->n_running]);
        }
        expect_same(base, got, "preempted");
        compare_records(&b);
        records_close();
        pl_engine_free(e);
    }
    pl_eagle_free(x);
    bed_close(&b);
}

/* Which windows lie in the prefix, across its end, behind it. */
typedef struct served {
    int n_prefix[SAMPLES];
    int n_known, n_across, n_drawn;
} served;

/* What a sample came with was drawn elsewhere: rounds begin at its last token. */
static void check_served(void *ctx, const pl_feature_window *w)
{
    served *s = ctx;
    const int n_prefix = s->n_prefix[w->uid];
    const int first = w->n_prompt + n_prefix - (n_prefix > 0) - w->position;
    const int want = first < 0 ? 0 : first < w->n ? first : w->n;
    cr_expect_eq(w->served_from, want, "sample %u: rows %d to %d, %d of the prompt, %d known: %d",
        w->uid, w->position, w->position + w->n, w->n_prompt, n_prefix, w->served_from);
    s->n_known += n_prefix > 0 && want == w->n;
    s->n_across += n_prefix > 0 && want > 0 && want < w->n;
    s->n_drawn += want == 0;
}

Test(learned, windows_of_what_a_sample_came_with_were_served_by_nobody, .timeout = 120)
{
    bed b;
    pl_error err;
    find_base(&b);
    pl_eagle *x = random_drafter(&b, 1);
    for (int max_rows = 16; max_rows <= 128; max_rows *= 8) { /* a prefix in pieces, or in one */
        const setting s = {.batch = 8,
            .max_rows = max_rows,
            .speculative = 1,
            .controller = PL_CONTROLLER_FIXED,
            .learned_window = 64};
        served seen = {0};
        pl_engine *e = make_engine(&b, &s);
        cr_assert_eq(pl_engine_set_windows(e, check_served, &seen, 5, &err), PL_OK);
        cr_assert_eq(pl_engine_set_drafter(e, x, &err), PL_OK, "%s", err.msg);
        memset(got, 0, sizeof got);
        for (int i = 0; i < SAMPLES; i++) {
            pl_request r = request_of(i);
            if (i % 2 == 1 && base[i].n > 8) {
                r.prefix = base[i].tokens;
                r.prefix_logprobs = base[i].logprobs;
                r.n_prefix = seen.n_prefix[i] = base[i].n - 4;
                got[i] = base[i];
                got[i].n = r.n_prefix;
                got[i].finish = PL_FINISH_NONE;
            }
            cr_assert_eq(pl_engine_submit(e, &r, &err), PL_OK, "%s", err.msg);
        }
        cr_assert_eq(pl_engine_run(e, keep_answer, got, &err), PL_OK, "%s", err.msg);
        cr_expect(seen.n_known > 3 && seen.n_across > 3 && seen.n_drawn > 3, "%d, %d, %d",
            seen.n_known, seen.n_across, seen.n_drawn);
        expect_same(base, got, "prefixes");
        pl_engine_free(e);
    }
    pl_eagle_free(x);
    bed_close(&b);
}

/* [0] how many, [1] the policy version of the newest */
static void count_windows(void *ctx, const pl_feature_window *w)
{
    int *n = ctx;
    n[0]++;
    n[1] = (int)w->policy_version;
}

Test(learned, windows_are_of_training_samples_and_stop_when_told, .timeout = 60)
{
    bed b;
    pl_error err;
    int n_left = 0, n_windows[2] = {0};
    find_base(&b);
    const setting s = {.batch = 4, .max_rows = 64, .speculative = 1};
    pl_engine *e = make_engine(&b, &s);
    cr_expect_eq(pl_engine_set_windows(e, count_windows, NULL, 0, &err), PL_E_INVAL);
    cr_assert_eq(pl_engine_set_windows(e, count_windows, n_windows, WINDOW, &err), PL_OK);
    pl_request r = request_of(0);
    r.purpose = PL_NOISE_EVAL;
    memset(got, 0, sizeof got);
    cr_assert_eq(pl_engine_submit(e, &r, &err), PL_OK);
    cr_assert_eq(pl_engine_run(e, keep_answer, got, &err), PL_OK, "%s", err.msg);
    cr_expect_eq(n_windows[0], 0, "of an evaluation");
    cr_assert_eq(pl_engine_new_version(e, 7, &err), PL_OK);
    r = request_of(5);
    cr_assert_eq(pl_engine_submit(e, &r, &err), PL_OK);
    for (int i = 0; i < 10; i++)
        cr_assert_eq(pl_engine_round(e, keep_answer, got, &n_left, &err), PL_OK);
    cr_assert_eq(n_left, 1);
    cr_expect_eq(n_windows[0], 1, "the prompt's last rows");
    cr_expect_eq(n_windows[1], 7, "of the policy that drew them");
    cr_assert_eq(pl_engine_set_windows(e, NULL, NULL, 0, &err), PL_OK);
    cr_assert_eq(pl_engine_run(e, keep_answer, got, &err), PL_OK, "%s", err.msg);
    cr_expect_eq(n_windows[0], 1);
    cr_expect_eq(got[5].n, base[5].n);
    pl_engine_free(e);
    bed_close(&b);
}

Test(learned, another_vocabulary_waits_until_no_sample_runs, .timeout = 60)
{
    enum { FEW = 64 };
    bed b;
    pl_error err;
    int32_t ids[FEW];
    pl_eagle *few = NULL;
    find_base(&b);
    for (int i = 0; i < FEW; i++)
        ids[i] = 2 * i;
    const pl_eagle_options o = {.n_vocab = FEW, .vocab = ids, .seed = 1};
    cr_assert_eq(pl_eagle_new(&few, b.model, &o, &err), PL_OK, "%s", err.msg);
    pl_eagle *x = random_drafter(&b, 1), *y = random_drafter(&b, 2);
    const setting s = {.batch = 8,
        .max_rows = 128,
        .speculative = 1,
        .controller = PL_CONTROLLER_FIXED,
        .learned_window = 64};
    pl_engine *e = make_engine(&b, &s);
    cr_assert_eq(pl_engine_set_drafter(e, x, &err), PL_OK, "%s", err.msg);
    memset(got, 0, sizeof got);
    submit_all(e, 0);
    int n_left = 1;
    cr_assert_eq(pl_engine_round(e, keep_answer, got, &n_left, &err), PL_OK, "%s", err.msg);
    cr_expect_eq(pl_engine_set_drafter(e, few, &err), PL_E_TIMEOUT);
    cr_expect_eq(e->eagle, x, "the one before goes on");
    cr_expect_eq(pl_engine_set_drafter(e, y, &err), PL_OK, "%s", err.msg);
    while (n_left > 0)
        cr_assert_eq(pl_engine_round(e, keep_answer, got, &n_left, &err), PL_OK, "%s", err.msg);
    cr_expect_eq(pl_engine_set_drafter(e, few, &err), PL_OK, "%s", err.msg);
    expect_same(base, got, "a vocabulary that waited");
    pl_engine_free(e);
    pl_eagle_free(few);
    pl_eagle_free(x);
    pl_eagle_free(y);
    bed_close(&b);
}

Test(learned, without_room_a_drafter_is_refused_and_with_it_the_plan_grows, .timeout = 60)
{
    bed b;
    pl_error err;
    pl_engine_options o;
    make_prompts();
    cr_assert(bed_open(&b, PL_ISA_REF, 1));
    pl_eagle *x = random_drafter(&b, 1);
    const setting s = {.batch = 4, .max_rows = 64, .speculative = 1};
    pl_engine *e = make_engine(&b, &s);
    cr_expect_eq(pl_engine_set_drafter(e, x, &err), PL_E_INVAL);
    cr_expect_not_null(strstr(err.msg, "learned_window"), "%s", err.msg);
    cr_expect_eq(pl_engine_set_drafter(e, NULL, &err), PL_OK);
    pl_engine_free(e);
    pl_engine_defaults(&o);
    o.max_ctx = 256;
    o.kv_bytes = 1 << 20;
    const size_t before = pl_engine_plan(pl_model_arch(b.model), &o, 2);
    o.learned_window = 64;
    const size_t after = pl_engine_plan(pl_model_arch(b.model), &o, 2);
    cr_expect_geq(after, before + (size_t)o.max_num_seqs * 64 * 3 * (size_t)cp_of(&b) * 2);
    cr_expect_gt(pl_engine_windows_plan(pl_model_arch(b.model), &o, WINDOW),
        (size_t)o.max_num_seqs * WINDOW * 4 * (size_t)cp_of(&b) * 2);
    o.learned_depth = 0;
    cr_expect_eq(pl_engine_new(&e, b.model, b.tok, &o, NULL, &err), PL_E_INVAL);
    pl_eagle_free(x);
    bed_close(&b);
}

/* ---- alignment ---- */

static const float SHARP = 0.25f;
enum { TEXTS = SAMPLES, TEXT_TOKENS = 120 };

static int propose_nothing(
    sequence *s, const pl_draw *draw, int max_rows, int max_depth, pl_draft *d, float *expected)
{
    (void)s, (void)draw, (void)max_rows, (void)max_depth, (void)d, (void)expected;
    return 0;
}

static int ignore_answer(void *ctx, const pl_response *r, int n_before)
{
    (void)ctx, (void)r, (void)n_before;
    return 0;
}

/* Texts of prompts that all differ, drafted for by the learned drafter alone. */
static void run_texts(const bed *b, const pl_eagle *drafter, int windows, pl_engine_stats *stats)
{
    static int32_t own[TEXTS][6];
    const setting s = {.batch = 8,
        .max_rows = 256,
        .speculative = 1,
        .controller = PL_CONTROLLER_FIXED,
        .fixed_rows = 9,
        .depth = 4,
        .propose = propose_nothing,
        .learned_window = 64};
    pl_engine *e = make_engine(b, &s);
    pl_error err;
    if (windows)
        cr_assert_eq(pl_engine_set_windows(e, keep_window, &all, WINDOW, &err), PL_OK);
    cr_assert_eq(pl_engine_set_drafter(e, drafter, &err), PL_OK, "%s", err.msg);
    for (int i = 0; i < TEXTS; i++) {
        for (int k = 0; k < 6; k++)
            own[i][k] = (int32_t)(3 + pl_noise_word(17, (uint32_t)i, 0, 0, (uint32_t)k) % 500);
        const pl_request r = {.uid = (uint32_t)i,
            .group = (uint32_t)i,
            .prompt = own[i],
            .n_prompt = 6,
            .max_tokens = TEXT_TOKENS,
            .temperature = 0.25f,
            .top_p = 1,
            .noise_key = pl_noise_key(5),
            .purpose = PL_NOISE_SAMPLE,
            .ignore_eos = 1};
        cr_assert_eq(pl_engine_submit(e, &r, &err), PL_OK, "%s", err.msg);
    }
    cr_assert_eq(pl_engine_run(e, ignore_answer, NULL, &err), PL_OK, "%s", err.msg);
    pl_engine_get_stats(e, stats);
    pl_engine_free(e);
}

Test(learned, a_drafter_trained_on_windows_is_accepted_and_on_shifted_ones_not, .timeout = 240)
{
    bed b;
    pl_engine_stats stats;
    double share[3];
    cr_assert(bed_open_with(&b, PL_ISA_AUTO, 1, SHARP));
    records_open(cp_of(&b));
    run_texts(&b, NULL, 1, &stats);
    pl_eagle *drafters[3] = {
        random_drafter(&b, 3), trained_drafter(&b, 250, 0), trained_drafter(&b, 250, 1)};
    for (int i = 0; i < 3; i++) {
        run_texts(&b, drafters[i], 0, &stats);
        share[i] = (double)stats.n_accepted_of[PL_SOURCE_LEARNED] / (double)stats.n_emitted;
        cr_log_info("drafted %ld, accepted %ld, depth 1: %ld of %ld, 2: %ld of %ld",
            (long)stats.n_draft_of[PL_SOURCE_LEARNED], (long)stats.n_accepted_of[PL_SOURCE_LEARNED],
            (long)stats.n_hit[0], (long)stats.n_reached[0], (long)stats.n_hit[1],
            (long)stats.n_reached[1]);
        cr_expect_leq(stats.n_reached[1], stats.n_reached[0]);
        cr_expect_eq(stats.n_emitted, TEXTS * TEXT_TOKENS);
        pl_eagle_free(drafters[i]);
    }
    cr_expect_gt(share[1], 4 * share[0], "trained %.3f, random %.3f", share[1], share[0]);
    cr_expect_gt(share[1], 1.5 * share[2], "trained %.3f, shifted %.3f", share[1], share[2]);
    records_close();
    bed_close(&b);
}
