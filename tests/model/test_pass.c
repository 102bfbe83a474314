/* Claims tested (law 1): the logits of a position have the same bits whether it was decoded alone,
 * prefilled in chunks of any size, verified as an accepted path of a tree, or stood in a pass with
 * other sequences; with any thread count and backend; over shared pages.  Scoring gives the
 * log-probs of decoding.  Shapes are odd on purpose. */
#include "core/file.h"
#include "model/internal.h"
#include "model/tokenizer.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_TOKENS = 150, N_SHAPES = 3, MAX_VOCAB = 1003 };

/* layers, hidden, heads, KV heads, head size, inner, vocabulary, tied, llama3 RoPE */
static const int shapes[N_SHAPES][9] = {
    {2, 64, 4, 2, 16, 160, 512, 1, 0},
    {3, 84, 7, 1, 48, 100, 1003, 0, 1},
    {2, 96, 6, 3, 34, 72, 333, 1, 0},
};

typedef struct bed {
    char dir[64];
    pl_source *src;
    pl_team *team;
    pl_model *model;
    pl_kv_pool *pool;
    pl_pass *pass;
    int vocab;
} bed;

static int bed_open(bed *b, int shape, pl_isa isa, int n_threads)
{
    const int *s = shapes[shape];
    const pl_ops *ops;
    pl_cpu cpu;
    pl_error err = {0};
    pl_tiny_options t;

    memset(b, 0, sizeof *b);
    pl_fp_enter();
    pl_cpu_read(&cpu);
    if (pl_ops_select(&ops, isa, &cpu, NULL, 0, &err) != PL_OK)
        return 0;
    pl_tiny_defaults(&t);
    t.init_std = 0.1f;
    t.arch.n_layers = s[0];
    t.arch.n_embd = s[1];
    t.arch.n_heads = s[2];
    t.arch.n_kv_heads = s[3];
    t.arch.head_dim = s[4];
    t.arch.n_ff = s[5];
    t.arch.n_vocab = s[6];
    t.arch.tied = s[7];
    if (s[8]) {
        t.arch.rope_type = PL_ROPE_LLAMA3;
        t.arch.rope_factor = 8;
        t.arch.rope_low_freq_factor = 1;
        t.arch.rope_high_freq_factor = 4;
        t.arch.rope_original_ctx = 64;
    }
    snprintf(b->dir, sizeof b->dir, "%s/pl-pass-XXXXXX", P_tmpdir);
    cr_assert_not_null(mkdtemp(b->dir));
    cr_assert_eq(pl_tiny_write(b->dir, &t, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_source_open(&b->src, b->dir, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_team_new(&b->team, n_threads, 0, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_model_new(&b->model, pl_source_arch(b->src), ops, b->team, 0, &err), PL_OK,
        "%s", err.msg);
    cr_assert_eq(pl_model_load(b->model, b->src, NULL, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_kv_pool_new(&b->pool, pl_source_arch(b->src), 24, &err), PL_OK, "%s", err.msg);
    const pl_pass_options o = {
        .max_rows = 200, .max_logits = 200, .max_segments = 8, .max_ctx = 256, .tree = 1};
    cr_assert_eq(pl_pass_new(&b->pass, b->model, &o, &err), PL_OK, "%s", err.msg);
    b->vocab = t.arch.n_vocab;
    return 1;
}

static void bed_close(bed *b)
{
    pl_error err = {0};
    cr_assert_eq(pl_kv_pool_free_pages(b->pool), 24, "pages were lost");
    pl_pass_free(b->pass);
    pl_kv_pool_free(b->pool);
    pl_model_free(b->model);
    pl_team_free(b->team);
    pl_source_close(b->src);
    cr_assert_eq(pl_dir_remove(b->dir, &err), PL_OK, "%s", err.msg);
}

static int32_t token_at(const bed *b, int stream, int i)
{
    return (int32_t)(pl_hash64(&(int[2]){stream, i}, 2 * sizeof(int)) % (uint64_t)b->vocab);
}

static void start(pl_kv_seq *kv)
{
    pl_error err = {0};
    cr_assert_eq(pl_kv_seq_init(kv, 256, &err), PL_OK, "%s", err.msg);
}

/* Run positions kv->n_tokens .. + n - 1 of a stream as a chain; logits of all rows to out (may be
 * NULL), one vocabulary row a position, at their positions. */
static void chain(bed *b, pl_kv_seq *kv, int stream, int n, float *out)
{
    int32_t tokens[N_TOKENS];
    const int base = kv->n_tokens;
    pl_error err = {0};

    for (int i = 0; i < n; i++)
        tokens[i] = token_at(b, stream, base + i);
    cr_assert_eq(pl_kv_reserve(b->pool, kv, n, &err), PL_OK, "%s", err.msg);
    const pl_segment s = {.kv = kv, .tokens = tokens, .n_rows = n, .n_logits = n};
    cr_assert_eq(pl_pass_run(b->pass, b->pool, &s, 1, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(kv->n_tokens, base + n);
    for (int i = 0; out && i < n; i++)
        memcpy(out + (size_t)(base + i) * (size_t)b->vocab, pl_pass_logits(b->pass, 0, i),
            (size_t)b->vocab * sizeof *out);
}

/* The truth of a shape: decoded one by one on one thread by the plain backend. */
static float *decode_alone(int shape, int stream)
{
    bed b;
    pl_kv_seq kv;
    cr_assert(bed_open(&b, shape, PL_ISA_REF, 1));
    float *out = malloc((size_t)N_TOKENS * (size_t)b.vocab * sizeof *out);
    cr_assert_not_null(out);
    start(&kv);
    for (int i = 0; i < N_TOKENS; i++)
        chain(&b, &kv, stream, 1, out);
    pl_kv_seq_done(b.pool, &kv);
    bed_close(&b);
    return out;
}

static void expect_rows(const bed *b, const float *truth, const float *got, const char *what)
{
    for (int i = 0; i < N_TOKENS; i++)
        cr_assert_eq(memcmp(truth + (size_t)i * (size_t)b->vocab,
                         got + (size_t)i * (size_t)b->vocab, (size_t)b->vocab * sizeof *got),
            0, "%s on %s: position %d differs", what, b->model->ops->name, i);
}

static void check_chunks(bed *b, const float *truth)
{
    static const int sizes[] = {1, 2, 3, 15, 16, 17, 63, 64, 65, 128, N_TOKENS};
    float *got = malloc((size_t)N_TOKENS * (size_t)b->vocab * sizeof *got);
    cr_assert_not_null(got);
    for (size_t c = 0; c < sizeof sizes / sizeof sizes[0]; c++) {
        pl_kv_seq kv;
        start(&kv);
        while (kv.n_tokens < N_TOKENS) {
            const int left = N_TOKENS - kv.n_tokens;
            chain(b, &kv, 0, left < sizes[c] ? left : sizes[c], got);
        }
        pl_kv_seq_done(b->pool, &kv);
        expect_rows(b, truth, got, "prefill in chunks");
    }
    free(got);
}

/* A tree of n rows over base positions: a main path of the stream's own tokens, with wrong siblings
 * and their children between. */
static int make_tree(
    const bed *b, int base, int depth, int32_t *tokens, int16_t *parent, int16_t *path)
{
    int n = 0, last = -1;
    for (int d = 0; d < depth; d++) {
        const int32_t right = token_at(b, 0, base + d);
        if (d > 0) {
            tokens[n] = (right + 1) % b->vocab;
            parent[n++] = (int16_t)last;
            tokens[n] = (right + 2) % b->vocab;
            parent[n] = (int16_t)(n - 1);
            n++;
        }
        tokens[n] = right;
        parent[n] = (int16_t)last;
        path[d] = (int16_t)n;
        last = n++;
    }
    return n;
}

/* From several starts, so that every position of a block falls on rows of every kind of item. */
static void check_trees(bed *b, const float *truth, int first)
{
    pl_error err = {0};
    pl_kv_seq kv;
    start(&kv);
    chain(b, &kv, 0, first, NULL);
    for (int round = 0; kv.n_tokens < N_TOKENS; round++) {
        int32_t tokens[PL_DRAFT_MAX];
        int16_t parent[PL_DRAFT_MAX], path[PL_DRAFT_MAX];
        const int base = kv.n_tokens, left = N_TOKENS - base;
        const int depth = 1 + round * 7 % 20 < left ? 1 + round * 7 % 20 : left;
        const int accepted = 1 + round * 5 % depth;
        const int n = make_tree(b, base, depth, tokens, parent, path);
        const pl_segment s = {
            .kv = &kv, .tokens = tokens, .parent = parent, .n_rows = n, .n_logits = n};
        cr_assert_eq(pl_kv_reserve(b->pool, &kv, depth, &err), PL_OK, "%s", err.msg);
        cr_assert_eq(pl_pass_run(b->pass, b->pool, &s, 1, &err), PL_OK, "%s", err.msg);
        cr_assert_eq(kv.n_tokens, base, "a tree commits nothing by itself");
        /* At once: rows that are not accepted are run again later, perhaps in another item. */
        for (int d = 0; d < depth; d++)
            cr_assert_eq(memcmp(truth + (size_t)(base + d) * (size_t)b->vocab,
                             pl_pass_logits(b->pass, 0, path[d]), (size_t)b->vocab * sizeof *truth),
                0, "tree on %s: position %d differs", b->model->ops->name, base + d);
        pl_pass_commit(b->pass, b->pool, 0, path, accepted);
    }
    pl_kv_seq_done(b->pool, &kv);
}

/* Three samples of one prompt over shared pages, with a stranger, in one pass each step. */
static void check_neighbours(bed *b, const float *truth)
{
    enum { PROMPT = 70, SAMPLES = 3 };
    float *got = malloc((size_t)N_TOKENS * (size_t)b->vocab * sizeof *got);
    pl_kv_seq kv[SAMPLES + 1];
    pl_error err = {0};
    cr_assert_not_null(got);
    for (int s = 0; s <= SAMPLES; s++)
        start(&kv[s]);
    chain(b, &kv[1], 0, PROMPT, got);
    pl_kv_fork(b->pool, &kv[1], &kv[0]);
    pl_kv_fork(b->pool, &kv[1], &kv[2]);
    chain(b, &kv[SAMPLES], 9, 33, NULL);
    for (int i = PROMPT; i < N_TOKENS; i++) {
        pl_segment segs[SAMPLES + 1];
        int32_t tokens[SAMPLES + 1];
        for (int s = 0; s <= SAMPLES; s++) {
            /* Sample 1 goes on with the stream; the others go astray. */
            tokens[s] = s == 1 ? token_at(b, 0, i) : token_at(b, 20 + s, i);
            cr_assert_eq(pl_kv_reserve(b->pool, &kv[s], 1, &err), PL_OK, "%s", err.msg);
            segs[s] =
                (pl_segment){.kv = &kv[s], .tokens = &tokens[s], .n_rows = 1, .n_logits = s == 1};
        }
        cr_assert_eq(pl_pass_run(b->pass, b->pool, segs, SAMPLES + 1, &err), PL_OK, "%s", err.msg);
        memcpy(got + (size_t)i * (size_t)b->vocab, pl_pass_logits(b->pass, 1, 0),
            (size_t)b->vocab * sizeof *got);
    }
    for (int s = 0; s <= SAMPLES; s++)
        pl_kv_seq_done(b->pool, &kv[s]);
    expect_rows(b, truth, got, "decoding beside others over shared pages");
    free(got);
}

static void check_scores(bed *b, const float *truth)
{
    int32_t tokens[N_TOKENS], top_ids[N_TOKENS * 3];
    float got[N_TOKENS], top[N_TOKENS * 3];
    pl_error err = {0};
    for (int i = 0; i < N_TOKENS; i++)
        tokens[i] = token_at(b, 0, i);
    cr_assert_eq(pl_score(b->pass, b->pool, tokens, N_TOKENS, 0.7f, got, 3, top_ids, top, &err),
        PL_OK, "%s", err.msg);
    for (int i = 1; i < N_TOKENS; i++) {
        const float *z = truth + (size_t)(i - 1) * (size_t)b->vocab;
        const pl_ops *ops = b->model->ops;
        float max, lse;
        ops->logsumexp(z, b->vocab, 0.7f, NULL, &max, &lse);
        const float want = z[tokens[i]] / 0.7f - lse;
        cr_assert_eq(memcmp(&want, &got[i], sizeof want), 0, "token %d", i);
        for (int v = 0; v < b->vocab; v++)
            cr_assert(z[v] <= z[top_ids[(i - 1) * 3]], "position %d has a better id", i - 1);
        cr_assert(top[(i - 1) * 3] >= top[(i - 1) * 3 + 1]);
    }
}

static void check_shape(int shape)
{
    static const pl_isa isas[] = {PL_ISA_REF, PL_ISA_AVX2, PL_ISA_AVX512, PL_ISA_AMX};
    float *truth = decode_alone(shape, 0);
    for (size_t i = 0; i < sizeof isas / sizeof isas[0]; i++)
        for (int threads = 1; threads <= 3; threads++) {
            bed b;
            if (!bed_open(&b, shape, isas[i], threads))
                continue;
            check_chunks(&b, truth);
            for (int first = 5; first < 64; first += 7)
                check_trees(&b, truth, first);
            check_neighbours(&b, truth);
            check_scores(&b, truth);
            bed_close(&b);
        }
    free(truth);
}

Test(pass, tied_model_has_one_forward, .timeout = 300)
{
    check_shape(0);
}

Test(pass, untied_odd_heads_llama3_rope_have_one_forward, .timeout = 300)
{
    check_shape(1);
}

Test(pass, head_size_34_has_one_forward, .timeout = 300)
{
    check_shape(2);
}

Test(pass, refuses_what_does_not_fit)
{
    bed b;
    pl_kv_seq kv;
    pl_error err = {0};
    int32_t bad = 100000, good = 5;
    cr_assert(bed_open(&b, 0, PL_ISA_REF, 1));
    start(&kv);
    pl_segment s = {.kv = &kv, .tokens = &good, .n_rows = 1};
    cr_assert_eq(pl_pass_run(b.pass, b.pool, &s, 1, &err), PL_E_INVAL, "no page was reserved");
    cr_assert_eq(pl_kv_reserve(b.pool, &kv, 1, &err), PL_OK);
    s.tokens = &bad;
    cr_assert_eq(pl_pass_run(b.pass, b.pool, &s, 1, &err), PL_E_INVAL, "token out of vocabulary");
    s.tokens = &good;
    s.n_logits = 2;
    cr_assert_eq(pl_pass_run(b.pass, b.pool, &s, 1, &err), PL_E_INVAL, "more logits than rows");
    pl_kv_seq_done(b.pool, &kv);
    bed_close(&b);
}
