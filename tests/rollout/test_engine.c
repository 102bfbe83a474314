/* Claims tested: the text and the log-probs of a sample depend on weights, prompt and key alone:
 * not on batch, order, rows of a pass, threads, ISA, preemption, drafter or controller.  End
 * tokens, stop strings and lengths end a response inside an accepted path.  Pages return to the
 * pool. */
#include "tests/rollout/bed.h"

/* ---- hostile drafters ---- */

static int propose_noise(
    sequence *s, const pl_draw *draw, int max_rows, int max_depth, pl_draft *d, float *expected)
{
    for (uint32_t i = 0; d->n < max_rows && i < 500; i++) {
        const uint32_t r = pl_noise_word(8, s->r.uid, draw->position, 3, i);
        const int parent = (int)(r >> 12) % d->n;
        if (d->depth[parent] >= max_depth)
            continue;
        const int row = pl_draft_add(d, parent, (int32_t)(r % 512), PL_SOURCE_LEARNED, max_rows);
        expected[row] = expected[parent] * 0.9f;
    }
    return d->n - 1;
}

/* Draw the tokens of a sample again, from the logits of one pass over its whole text. */
static void check_draws(
    const bed *b, pl_pass *pass, pl_kv_pool *pool, const pl_request *r, const answer *a)
{
    static float scratch[512];
    int32_t text[256];
    pl_kv_seq kv;
    pl_error err;
    const int n = r->n_prompt + a->n - 1;
    memcpy(text, r->prompt, (size_t)r->n_prompt * sizeof *text);
    memcpy(text + r->n_prompt, a->tokens, (size_t)a->n * sizeof *text);
    cr_assert_eq(pl_kv_seq_init(&kv, 256, &err), PL_OK);
    cr_assert_eq(pl_kv_reserve(pool, &kv, n, &err), PL_OK);
    const pl_segment seg = {.kv = &kv, .tokens = text, .n_rows = n, .n_logits = a->n};
    cr_assert_eq(pl_pass_run(pass, pool, &seg, 1, &err), PL_OK, "%s", err.msg);
    for (int i = 0; i < a->n; i++) {
        const pl_draw draw = {.temperature = r->temperature,
            .top_k = r->top_k,
            .top_p = r->top_p,
            .min_p = r->min_p,
            .key = r->noise_key,
            .uid = r->uid,
            .purpose = r->purpose,
            .position = (uint32_t)(r->n_prompt + i)};
        pl_drawn drawn;
        pl_model_ops(b->model)->draw(
            pl_pass_logits(pass, 0, r->n_prompt - 1 + i), 512, &draw, scratch, &drawn);
        cr_assert_eq(drawn.token, a->tokens[i], "sample %u, token %d", r->uid, i);
        cr_assert_eq(memcmp(&drawn.logprob, &a->logprobs[i], sizeof(float)), 0,
            "sample %u, token %d", r->uid, i);
    }
    pl_kv_seq_done(pool, &kv);
}

Test(engine, tokens_are_those_drawn_from_one_pass_over_the_text, .timeout = 60)
{
    bed b;
    find_base(&b);
    const pl_pass_options po = {
        .max_rows = 256, .max_logits = 256, .max_segments = 1, .max_ctx = 256};
    pl_pass *pass = NULL;
    pl_kv_pool *pool = NULL;
    pl_error err;
    int n_stop = 0, n_length = 0;
    cr_assert_eq(pl_pass_new(&pass, b.model, &po, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_kv_pool_new(&pool, pl_model_arch(b.model), 8, &err), PL_OK, "%s", err.msg);
    for (int i = 0; i < SAMPLES; i++) {
        const pl_request r = request_of(i);
        check_draws(&b, pass, pool, &r, &base[i]);
        cr_assert_leq(base[i].n, r.max_tokens);
        if (r.ignore_eos)
            cr_assert_eq(base[i].finish, PL_FINISH_LENGTH, "sample %d", i);
        cr_assert(base[i].finish == PL_FINISH_STOP || base[i].n == r.max_tokens);
        cr_assert_eq(base[i].n_verify, base[i].n);
        n_stop += base[i].finish == PL_FINISH_STOP;
        n_length += base[i].finish == PL_FINISH_LENGTH;
    }
    cr_expect_gt(n_stop, 2, "the workload must have end tokens");
    cr_expect_gt(n_length, 2);
    pl_kv_pool_free(pool);
    pl_pass_free(pass);
    bed_close(&b);
}

Test(engine, text_does_not_depend_on_batch_rows_or_order, .timeout = 120)
{
    bed b;
    find_base(&b);
    static const int batches[] = {2, 3, 7, 16, 64}, rows[] = {1, 5, 17, 256};
    for (int i = 0; i < 5; i++)
        for (int k = 0; k < 4; k++) {
            const setting s = {
                .batch = batches[i], .max_rows = rows[k], .is_reversed = (i + k) % 2};
            run(&b, &s, got, NULL);
            expect_same(base, got, "batch");
        }
    bed_close(&b);
}

Test(engine, text_does_not_depend_on_drafting, .timeout = 240)
{
    static const propose_fn drafters[] = {NULL, propose_noise, propose_oracle};
    static const int batches[] = {1, 5, 64};
    pl_engine_stats stats;
    bed b;
    find_base(&b);
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < 3; k++)
            for (int c = (i + k) % 2; c < 4; c += 2) {
                const setting s = {.batch = batches[k],
                    .max_rows = c == 1 ? 40 : 256,
                    .speculative = 1,
                    .propose = drafters[i],
                    .fixed_rows = c == 2 ? 64 : 9,
                    .depth = c == 2 ? 63 : 5,
                    .is_reversed = c == 1,
                    .controller = c == 3 ? PL_CONTROLLER_GOODPUT : PL_CONTROLLER_FIXED};
                run(&b, &s, got, &stats);
                expect_same(base, got, i == 0 ? "suffix" : i == 1 ? "noise" : "oracle");
                if (i == 2 && c == 2)
                    cr_expect_gt(stats.n_accepted, stats.n_emitted / 2, "the oracle is right");
                if (c < 3)
                    cr_expect_gt(stats.n_draft, 0);
                cr_expect_eq(stats.n_prefill_rows, 1 + 64 + 7 + 130 + 63, "each prompt once");
            }
    bed_close(&b);
}

Test(engine, text_does_not_depend_on_threads_or_isa, .timeout = 240)
{
    static const pl_isa isas[] = {PL_ISA_REF, PL_ISA_AVX2, PL_ISA_AVX512, PL_ISA_AMX};
    bed b;
    find_base(&b);
    bed_close(&b);
    for (int i = 0; i < 4; i++)
        for (int threads = 1; threads <= 2; threads++) {
            const setting spec = {.batch = 64,
                .max_rows = 128,
                .speculative = 1,
                .controller = PL_CONTROLLER_FIXED,
                .propose = propose_oracle};
            if (!bed_open(&b, isas[i], threads))
                continue;
            run(&b, &plain, got, NULL);
            expect_same(base, got, "isa, plain");
            run(&b, &spec, got, NULL);
            expect_same(base, got, "isa, drafts");
            bed_close(&b);
        }
}

Test(engine, few_pages_preempt_and_change_nothing, .timeout = 120)
{
    static const int pages[] = {4, 5, 9}; /* the longest sample needs 4 */
    bed b;
    find_base(&b);
    for (int i = 0; i < 3; i++)
        for (int spec = 0; spec < 2; spec++) {
            const setting s = {.batch = 64,
                .max_rows = 100,
                .kv_pages = pages[i],
                .speculative = spec,
                .controller = PL_CONTROLLER_FIXED,
                .is_reversed = i == 1,
                .propose = propose_oracle};
            pl_engine_stats stats;
            run(&b, &s, got, &stats);
            expect_same(base, got, "few pages");
            cr_expect(i == 2 || stats.n_preempted > 0, "%d pages must preempt", pages[i]);
        }
    bed_close(&b);
}

Test(engine, a_sample_that_can_never_fit_is_refused, .timeout = 60)
{
    bed b;
    pl_error err;
    make_prompts();
    cr_assert(bed_open(&b, PL_ISA_REF, 1));
    const setting s = {.batch = 4, .max_rows = 64, .kv_pages = 2};
    pl_engine *e = make_engine(&b, &s);
    pl_request r = request_of(12);
    r.max_tokens = 60; /* 130 + 60 tokens: 3 pages */
    cr_expect_eq(pl_engine_submit(e, &r, &err), PL_E_SHAPE);
    cr_expect_not_null(strstr(err.msg, "need 3 pages"), "%s", err.msg);
    r.max_tokens = 200;
    cr_expect_eq(pl_engine_submit(e, &r, &err), PL_E_SHAPE);
    cr_expect_not_null(strstr(err.msg, "74 over the context of 256"), "%s", err.msg);
    r = request_of(0);
    r.temperature = -1;
    cr_expect_eq(pl_engine_submit(e, &r, &err), PL_E_INVAL);
    r = request_of(0);
    r.top_p = 0;
    cr_expect_eq(pl_engine_submit(e, &r, &err), PL_E_INVAL);
    r = request_of(0);
    cr_expect_eq(pl_engine_submit(e, &r, &err), PL_OK);
    r = request_of(N);
    r.group = 0;
    cr_expect_eq(pl_engine_submit(e, &r, &err), PL_E_INVAL, "another prompt in the same group");
    pl_engine_clear(e);
    pl_engine_free(e);
    bed_close(&b);
}

Test(engine, stop_strings_end_across_token_borders, .timeout = 120)
{
    bed b;
    int n_cases = 0;
    find_base(&b);
    for (int i = 1; i < SAMPLES; i++) {
        char text[10];
        const char *const stops[2] = {"\x01 this never comes \x02", text};
        if (!make_stop(&b, &base[i], text))
            continue;
        for (int spec = 0; spec < 2; spec++) {
            const setting s = {.batch = 4,
                .max_rows = 64,
                .speculative = spec,
                .controller = PL_CONTROLLER_FIXED,
                .propose = propose_oracle};
            pl_engine *e = make_engine(&b, &s);
            pl_request r = request_of(i);
            pl_error err;
            r.stop = stops;
            r.n_stop = 1 + i % 2;
            memset(got, 0, sizeof got);
            cr_assert_eq(pl_engine_submit(e, &r, &err), PL_OK, "%s", err.msg);
            cr_assert_eq(pl_engine_run(e, keep_answer, got, &err), PL_OK, "%s", err.msg);
            pl_engine_free(e);
            cr_assert_eq(memcmp(got[i].tokens, base[i].tokens, (size_t)got[i].n * 4), 0);
            if (r.n_stop == 1) { /* only the string that never comes */
                cr_assert_eq(got[i].n, base[i].n);
                continue;
            }
            cr_assert_eq(got[i].finish, PL_FINISH_STOP);
            cr_assert_leq(got[i].n, base[i].n / 2 + 1);
            for (int k = 0; k < 2; k++) { /* with its last token the text holds it, without not */
                char *said;
                size_t n;
                cr_assert_eq(
                    pl_tokenizer_decode(b.tok, got[i].tokens, got[i].n - k, 1, &said, &n, &err),
                    PL_OK);
                cr_assert_eq(holds(said, n, text), k == 0, "sample %d", i);
                free(said);
            }
            n_cases++;
        }
    }
    cr_expect_gt(n_cases, 8, "%d", n_cases);
    bed_close(&b);
}

Test(engine, knowledge_survives_a_version_and_text_follows_the_key, .timeout = 60)
{
    bed b;
    pl_error err;
    pl_engine_stats stats;
    find_base(&b);
    const setting s = {.batch = 64,
        .max_rows = 256,
        .speculative = 1,
        .controller = PL_CONTROLLER_FIXED,
        .fixed_rows = 8};
    pl_engine *e = make_engine(&b, &s);
    int64_t accepted[2];
    for (int epoch = 0; epoch < 2; epoch++) {
        memset(got, 0, sizeof got);
        pl_engine_reset_stats(e);
        for (int i = 0; i < SAMPLES; i++) {
            const pl_request r = request_of(i);
            cr_assert_eq(pl_engine_submit(e, &r, &err), PL_OK, "%s", err.msg);
        }
        cr_assert_eq(pl_engine_run(e, keep_answer, got, &err), PL_OK, "%s", err.msg);
        expect_same(base, got, "epoch");
        pl_engine_get_stats(e, &stats);
        accepted[epoch] = stats.n_accepted;
        cr_assert_eq(pl_engine_new_version(e, (uint32_t)epoch + 1, &err), PL_OK, "%s", err.msg);
    }
    /* The second time it has seen each text: nearly every token is known. */
    cr_expect_gt(
        accepted[1], 2 * accepted[0], "%ld after %ld", (long)accepted[1], (long)accepted[0]);
    cr_expect_gt(accepted[1], stats.n_emitted / 2);
    pl_engine_free(e);
    bed_close(&b);
}

static int stop_at_once(void *ctx, const pl_response *r, int n_before)
{
    (void)r;
    (void)n_before;
    ++*(int *)ctx;
    return 1;
}

Test(engine, a_callback_can_stop_and_the_rest_is_dropped, .timeout = 60)
{
    bed b;
    pl_error err;
    int calls = 0;
    make_prompts();
    cr_assert(bed_open(&b, PL_ISA_REF, 1));
    pl_engine *e = make_engine(&b, &plain);
    for (int i = 0; i < SAMPLES; i++) {
        const pl_request r = request_of(i);
        cr_assert_eq(pl_engine_submit(e, &r, &err), PL_OK);
    }
    cr_expect_eq(pl_engine_run(e, stop_at_once, &calls, &err), PL_E_STOPPED);
    cr_expect_eq(calls, 1);
    pl_engine_clear(e);
    cr_expect_eq(pl_kv_pool_free_pages(e->pool), e->n_pages);
    pl_engine_free(e);
    bed_close(&b);
}
