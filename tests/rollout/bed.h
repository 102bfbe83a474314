/* tests/rollout/bed.h - what the tests of the engine share: a tiny model, a workload of samples
 * that differ in length, prompt and sampling, a drafter that knows the truth, and comparison by
 * bits. */
#ifndef PL_TESTS_ROLLOUT_BED_H
#define PL_TESTS_ROLLOUT_BED_H

#include "core/rng.h"
#include "rollout/internal.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PROMPTS = 5, N = 4, SAMPLES = PROMPTS * N, MAX_TOKENS = 70, ROOM = 200 };

/* ---- the model of all tests ---- */

typedef struct bed {
    char dir[64];
    pl_source *src;
    pl_tokenizer *tok;
    pl_team *team;
    pl_model *model;
} bed;

/* init_std: of the weights; the larger, the sharper the text. */
static inline int bed_open_with(bed *b, pl_isa isa, int n_threads, float init_std)
{
    const pl_ops *ops = NULL;
    pl_cpu cpu;
    pl_error err;
    pl_tiny_options tiny;
    memset(b, 0, sizeof *b);
    pl_cpu_read(&cpu);
    if (pl_ops_select(&ops, isa, &cpu, NULL, 0, &err) != PL_OK)
        return 0;
    snprintf(b->dir, sizeof b->dir, "%s/pl-engine-XXXXXX", P_tmpdir);
    cr_assert_not_null(mkdtemp(b->dir));
    pl_tiny_defaults(&tiny);
    tiny.init_std = init_std;
    tiny.arch.n_eos = 4;
    for (int i = 1; i < tiny.arch.n_eos; i++)
        tiny.arch.eos_ids[i] = 300 + 17 * i;
    cr_assert_eq(pl_tiny_write(b->dir, &tiny, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_source_open(&b->src, b->dir, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_source_arch(b->src)->n_eos, 4);
    cr_assert_eq(pl_tokenizer_open(&b->tok, b->src, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_team_new(&b->team, n_threads, 0, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_model_new(&b->model, pl_source_arch(b->src), ops, b->team, 0, &err), PL_OK,
        "%s", err.msg);
    cr_assert_eq(pl_model_load(b->model, b->src, NULL, &err), PL_OK, "%s", err.msg);
    return 1;
}

static inline int bed_open(bed *b, pl_isa isa, int n_threads)
{
    return bed_open_with(b, isa, n_threads, 0.12f);
}

static inline void bed_close(bed *b)
{
    static const char *const names[] = {"config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"};
    char path[128];
    pl_model_free(b->model);
    pl_team_free(b->team);
    pl_tokenizer_free(b->tok);
    pl_source_close(b->src);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", b->dir, names[i]);
        unlink(path);
    }
    rmdir(b->dir);
}

/* ---- a workload: prompts of odd lengths, sampling parameters that differ by sample ---- */

typedef struct answer {
    int n, n_callbacks, n_draft, n_accepted, n_verify;
    pl_finish finish;
    int32_t tokens[ROOM];
    float logprobs[ROOM];
    uint8_t source[ROOM];
} answer;

static const int prompt_lengths[PROMPTS] = {1, 64, 7, 130, 63};
static int32_t prompts[PROMPTS][130];

static inline void make_prompts(void)
{
    for (int p = 0; p < PROMPTS; p++)
        for (int i = 0; i < prompt_lengths[p]; i++)
            prompts[p][i] = (int32_t)(3 + pl_noise_word(11, (uint32_t)p, 0, 0, (uint32_t)i) % 290);
}

static inline pl_request request_of(int i)
{
    static const float t[4] = {0, 0.7f, 1, 1};
    const int p = i / N;
    pl_request r = {.uid = (uint32_t)i,
        .group = (uint32_t)p,
        .prompt = prompts[p],
        .n_prompt = prompt_lengths[p],
        .max_tokens = MAX_TOKENS - 3 * (i % 7),
        .temperature = t[i % 4],
        .top_p = 1,
        .noise_key = pl_noise_key(5),
        .purpose = PL_NOISE_SAMPLE,
        .ignore_eos = i % 5 == 0,
        .prompt_key = (uint64_t)p + 1};
    if (i % 4 == 3) {
        r.top_k = 30;
        r.top_p = 0.9f;
    }
    if (i % 6 == 5)
        r.min_p = 0.05f;
    if (i == 9)
        r.max_tokens = 1;
    return r;
}

static inline int keep_answer(void *ctx, const pl_response *r, int n_before)
{
    answer *a = (answer *)ctx + r->uid;
    cr_assert_eq(a->n, n_before, "sample %u", r->uid);
    cr_assert_gt(r->n_tokens, n_before);
    cr_assert_eq(a->finish, PL_FINISH_NONE, "nothing after the end");
    for (int i = n_before; i < r->n_tokens; i++) {
        a->tokens[i] = r->tokens[i];
        a->logprobs[i] = r->logprobs[i];
    }
    a->n = r->n_tokens;
    a->finish = r->finish;
    a->n_callbacks++;
    a->n_draft = r->spec_num_draft_tokens;
    a->n_accepted = r->spec_num_accepted_tokens;
    a->n_verify = r->spec_num_verify_steps;
    return 0;
}

static const answer *reference; /* what the oracle knows */

/* The right tokens down to the last level, wrong siblings beside them. */
static inline int propose_oracle(
    sequence *s, const pl_draw *draw, int max_rows, int max_depth, pl_draft *d, float *expected)
{
    const answer *a = reference + s->r.uid;
    int row = 0;
    (void)draw;
    for (int i = 0; i < max_depth && row >= 0; i++) {
        const int32_t right = s->n + i < a->n ? a->tokens[s->n + i] : 7;
        const int wrong = pl_draft_add(d, row, (right + 1) % 512, PL_SOURCE_LEARNED, max_rows);
        if (wrong >= 0)
            expected[wrong] = expected[row] * 0.5f;
        const int next = pl_draft_add(d, row, right, PL_SOURCE_LEARNED, max_rows);
        if (next >= 0)
            expected[next] = expected[row] * 0.5f;
        row = next;
    }
    return d->n - 1;
}

/* ---- running a workload ---- */

typedef struct setting {
    int batch, max_rows, speculative, is_reversed, kv_pages, fixed_rows, depth, learned_window;
    pl_controller_kind controller;
    propose_fn propose;
} setting;

static const setting plain = {.batch = 64, .max_rows = 256};

static inline pl_engine *make_engine(const bed *b, const setting *s)
{
    pl_engine_options o;
    pl_engine *e = NULL;
    pl_error err;
    pl_engine_defaults(&o);
    o.max_num_seqs = s->batch;
    o.max_rows = s->max_rows;
    o.max_ctx = 256;
    o.speculative = s->speculative;
    o.controller = s->controller;
    o.max_spec_rows = 64;
    o.fixed_rows = s->fixed_rows ? s->fixed_rows : 12;
    o.max_spec_depth = s->depth ? s->depth : 8;
    o.learned_window = s->learned_window;
    if (s->kv_pages)
        o.kv_bytes = (size_t)s->kv_pages * pl_kv_page_bytes(pl_model_arch(b->model));
    cr_assert_eq(pl_engine_new(&e, b->model, b->tok, &o, NULL, &err), PL_OK, "%s", err.msg);
    if (s->propose)
        e->propose = s->propose;
    return e;
}

static inline void run(const bed *b, const setting *s, answer *a, pl_engine_stats *stats)
{
    pl_engine *e = make_engine(b, s);
    pl_error err;
    memset(a, 0, SAMPLES * sizeof *a);
    for (int i = 0; i < SAMPLES; i++) {
        const pl_request r = request_of(s->is_reversed ? SAMPLES - 1 - i : i);
        cr_assert_eq(pl_engine_submit(e, &r, &err), PL_OK, "%s", err.msg);
    }
    cr_assert_eq(pl_engine_run(e, keep_answer, a, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_kv_pool_free_pages(e->pool), e->n_pages, "pages are lost");
    cr_assert_null(e->groups);
    if (stats)
        pl_engine_get_stats(e, stats);
    pl_engine_free(e);
}

static inline void expect_same(const answer *a, const answer *b, const char *what)
{
    for (int i = 0; i < SAMPLES; i++) {
        cr_assert_eq(a[i].n, b[i].n, "%s: sample %d has %d and %d tokens", what, i, a[i].n, b[i].n);
        cr_assert_eq(a[i].finish, b[i].finish, "%s: sample %d", what, i);
        cr_assert_eq(memcmp(a[i].tokens, b[i].tokens, (size_t)a[i].n * sizeof(int32_t)), 0,
            "%s: tokens of sample %d", what, i);
        cr_assert_eq(memcmp(a[i].logprobs, b[i].logprobs, (size_t)a[i].n * sizeof(float)), 0,
            "%s: log-probs of sample %d", what, i);
    }
}

static answer base[SAMPLES], got[SAMPLES];

/* The plain truth: one sample at a time, no drafts. */
static inline void find_base(bed *b)
{
    const setting alone = {.batch = 1, .max_rows = 64};
    make_prompts();
    cr_assert(bed_open(b, PL_ISA_AUTO, 1));
    run(b, &alone, base, NULL);
    reference = base;
}

static inline int holds(const char *s, size_t n, const char *what)
{
    const size_t k = strlen(what);
    for (size_t i = 0; i + k <= n; i++)
        if (memcmp(s + i, what, k) == 0)
            return 1;
    return 0;
}

/* A stop string for sample i: the last bytes, at most 9, of the first half of what it says without.
 */
static inline int make_stop(const bed *b, const answer *a, char stop[10])
{
    char *said;
    size_t n;
    pl_error err;
    cr_assert_eq(pl_tokenizer_decode(b->tok, a->tokens, a->n / 2 + 1, 1, &said, &n, &err), PL_OK);
    const size_t k = n < 9 ? n : 9;
    memcpy(stop, said + (n - k), k);
    stop[k] = 0;
    free(said);
    return k > 2 && strlen(stop) == k;
}

#endif
