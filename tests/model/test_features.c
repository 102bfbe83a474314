/* Claims tested: the features of a position have the same bits whether it was decoded, prefilled in
 * chunks, verified in a tree or stood beside others, on any thread count; they are the outputs of
 * the layers that pl_feature_layers names, of the row's own token (held against a model that ends
 * after that layer); capturing changes no logits; too small a buffer is refused. */
#include "core/file.h"
#include "model/features.h"
#include "model/internal.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_TOKENS = 90, N_LAYERS = 8, HIDDEN = 84, PADDED = 96, VOCAB = 333, ROWS = 128 };
enum { ROW = (PL_FEATURE_LAYERS + 1) * PADDED }; /* features, then the hidden state */

typedef struct bed {
    char dir[64];
    pl_source *src;
    pl_team *team;
    pl_model *model;
    pl_kv_pool *pool;
    pl_pass *pass;
    float *masters;
    uint16_t *rows, *hidden; /* [ROWS] as captured */
} bed;

static void *zeros(size_t n, size_t size)
{
    void *x = calloc(n, size);
    cr_assert_not_null(x);
    return x;
}

static int bed_open(bed *b, pl_isa isa, int n_threads)
{
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
    t.arch.n_layers = N_LAYERS;
    t.arch.n_embd = HIDDEN;
    t.arch.n_heads = 6;
    t.arch.n_kv_heads = 3;
    t.arch.head_dim = 34;
    t.arch.n_ff = 72;
    t.arch.n_vocab = VOCAB;
    snprintf(b->dir, sizeof b->dir, "%s/pl-features-XXXXXX", P_tmpdir);
    cr_assert_not_null(mkdtemp(b->dir));
    cr_assert_eq(pl_tiny_write(b->dir, &t, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_source_open(&b->src, b->dir, &err), PL_OK, "%s", err.msg);
    const pl_arch *a = pl_source_arch(b->src);
    cr_assert_eq(pl_team_new(&b->team, n_threads, 0, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_model_new(&b->model, a, ops, b->team, 0, &err), PL_OK, "%s", err.msg);
    b->masters = zeros(pl_model_params(b->model)->n_elements, sizeof *b->masters);
    cr_assert_eq(pl_model_load(b->model, b->src, b->masters, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_kv_pool_new(&b->pool, a, 16, &err), PL_OK, "%s", err.msg);
    const pl_pass_options o = {
        .max_rows = ROWS, .max_logits = ROWS, .max_segments = 4, .max_ctx = 128, .tree = 1};
    cr_assert_eq(pl_pass_new(&b->pass, b->model, &o, &err), PL_OK, "%s", err.msg);
    b->rows = zeros((size_t)ROWS * PL_FEATURE_LAYERS * PADDED, sizeof *b->rows);
    b->hidden = zeros((size_t)ROWS * PADDED, sizeof *b->hidden);
    const pl_features f = {.rows = b->rows, .hidden = b->hidden, .room = ROWS};
    pl_pass_set_features(b->pass, &f);
    return 1;
}

static void bed_close(bed *b)
{
    pl_error err = {0};

    pl_pass_free(b->pass);
    pl_kv_pool_free(b->pool);
    pl_model_free(b->model);
    pl_team_free(b->team);
    pl_source_close(b->src);
    free(b->masters);
    free(b->rows);
    free(b->hidden);
    cr_assert_eq(pl_dir_remove(b->dir, &err), PL_OK, "%s", err.msg);
}

static int32_t token_at(int i)
{
    return (int32_t)(pl_hash64(&i, sizeof i) % VOCAB);
}

static void start(pl_kv_seq *kv)
{
    pl_error err = {0};
    cr_assert_eq(pl_kv_seq_init(kv, 128, &err), PL_OK, "%s", err.msg);
}

/* Row i of the pass as one piece. */
static void keep_row(const bed *b, int i, uint16_t *out)
{
    memcpy(out, b->rows + (size_t)i * PL_FEATURE_LAYERS * PADDED,
        (size_t)PL_FEATURE_LAYERS * PADDED * sizeof *out);
    memcpy(out + (size_t)PL_FEATURE_LAYERS * PADDED, b->hidden + (size_t)i * PADDED,
        PADDED * sizeof *out);
}

/* The next n tokens of the text as a chain; their features to out (may be NULL) at their places. */
static void chain(bed *b, pl_kv_seq *kv, int n, int n_logits, uint16_t *out)
{
    int32_t tokens[N_TOKENS];
    const int base = kv->n_tokens;
    pl_error err = {0};

    for (int i = 0; i < n; i++)
        tokens[i] = token_at(base + i);
    cr_assert_eq(pl_kv_reserve(b->pool, kv, n, &err), PL_OK, "%s", err.msg);
    const pl_segment s = {.kv = kv, .tokens = tokens, .n_rows = n, .n_logits = n_logits};
    cr_assert_eq(pl_pass_run(b->pass, b->pool, &s, 1, &err), PL_OK, "%s", err.msg);
    for (int i = 0; out && i < n; i++)
        keep_row(b, i, out + (size_t)(base + i) * ROW);
}

/* The whole text in chunks; *returns owned* [N_TOKENS][ROW]. */
static uint16_t *capture(bed *b, int chunk, int with_logits)
{
    uint16_t *out = zeros((size_t)N_TOKENS * ROW, sizeof *out);
    pl_kv_seq kv;

    start(&kv);
    while (kv.n_tokens < N_TOKENS) {
        const int left = N_TOKENS - kv.n_tokens, n = left < chunk ? left : chunk;
        chain(b, &kv, n, with_logits ? n : 0, out);
    }
    pl_kv_seq_done(b->pool, &kv);
    return out;
}

static void expect_row(const uint16_t *truth, const uint16_t *got, int i, const char *what)
{
    cr_assert_eq(memcmp(truth + (size_t)i * ROW, got, ROW * sizeof *got), 0,
        "%s: the features of position %d differ", what, i);
}

/* Trees of a right path with a wrong sibling beside every node, beside a stranger's row. */
static void check_trees(bed *b, const uint16_t *truth)
{
    enum { DEPTH = 7 };
    pl_kv_seq kv, other;
    pl_error err = {0};
    uint16_t got[ROW];
    const int32_t stray = 7;

    start(&kv);
    start(&other);
    chain(b, &kv, 61, 0, NULL);
    while (kv.n_tokens + DEPTH <= N_TOKENS) {
        int32_t tokens[2 * DEPTH];
        int16_t parent[2 * DEPTH], path[DEPTH];
        int n = 0;
        for (int d = 0; d < DEPTH; d++) {
            const int16_t up = d > 0 ? path[d - 1] : -1;
            if (d > 0) {
                tokens[n] = (token_at(kv.n_tokens + d) + 1) % VOCAB;
                parent[n++] = up;
            }
            tokens[n] = token_at(kv.n_tokens + d);
            parent[n] = up;
            path[d] = (int16_t)n++;
        }
        const pl_segment segs[2] = {{.kv = &other, .tokens = &stray, .n_rows = 1},
            {.kv = &kv, .tokens = tokens, .parent = parent, .n_rows = n, .n_logits = n}};
        cr_assert_eq(pl_kv_reserve(b->pool, &other, 1, &err), PL_OK, "%s", err.msg);
        cr_assert_eq(pl_kv_reserve(b->pool, &kv, DEPTH, &err), PL_OK, "%s", err.msg);
        cr_assert_eq(pl_pass_run(b->pass, b->pool, segs, 2, &err), PL_OK, "%s", err.msg);
        for (int d = 0; d < DEPTH; d++) {
            keep_row(b, 1 + path[d], got);
            expect_row(truth, got, kv.n_tokens + d, "in a tree");
            cr_assert_eq(memcmp(got + (size_t)PL_FEATURE_LAYERS * PADDED,
                             pl_pass_hidden(b->pass, 1, path[d]), HIDDEN * sizeof *got),
                0, "the hidden state is not the one that the logits are made of");
        }
        pl_pass_commit(b->pass, b->pool, 1, path, 3);
    }
    pl_kv_seq_done(b->pool, &kv);
    pl_kv_seq_done(b->pool, &other);
}

Test(features, have_the_same_bits_decoded_prefilled_and_in_trees, .timeout = 120)
{
    static const pl_isa isas[] = {PL_ISA_REF, PL_ISA_AVX2, PL_ISA_AVX512, PL_ISA_AMX};
    uint16_t *truth = NULL;

    for (size_t k = 0; k < sizeof isas / sizeof isas[0]; k++)
        for (int threads = 1; threads <= 3; threads++) {
            bed b;
            if (!bed_open(&b, isas[k], threads))
                continue;
            if (!truth)
                truth = capture(&b, 1, 1);
            for (int chunk = 1; chunk <= N_TOKENS; chunk = chunk * 3 + 1) {
                uint16_t *got = capture(&b, chunk, chunk % 2);
                for (int i = 0; i < N_TOKENS; i++)
                    expect_row(truth, got + (size_t)i * ROW, i, "in chunks");
                free(got);
            }
            check_trees(&b, truth);
            bed_close(&b);
        }
    for (int i = 0; i < N_TOKENS; i++)
        for (int l = 0; l <= PL_FEATURE_LAYERS; l++)
            for (int c = HIDDEN; c < PADDED; c++)
                cr_assert_eq(truth[(size_t)i * ROW + (size_t)l * PADDED + (size_t)c], 0);
    free(truth);
}

static double value(uint16_t x)
{
    const uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return (double)f;
}

/* Have the layers after the last one wanted add nothing: what is normed at the end is its output.
 */
static void cut_after(bed *b, int layer)
{
    const pl_param_table *t = pl_model_params(b->model);
    pl_error err = {0};

    for (int i = 0; i < t->n_params; i++) {
        const pl_param *p = &t->params[i];
        if (p->layer > layer && (p->kind == PL_P_O || p->kind == PL_P_DOWN))
            memset(
                b->masters + p->offset, 0, (size_t)p->rows * (size_t)p->cols * sizeof *b->masters);
    }
    cr_assert_eq(pl_model_pack(b->model, b->masters, &err), PL_OK, "%s", err.msg);
}

/* The largest distance between the normed feature i of a row and the hidden state of the cut model,
 * in units of the row's rms. */
static double distance(const bed *b, const uint16_t *feature, const uint16_t *hidden)
{
    double sum = 0, worst = 0;

    for (int c = 0; c < HIDDEN; c++)
        sum += value(feature[c]) * value(feature[c]);
    const double inv = 1 / sqrt(sum / HIDDEN + (double)b->model->arch.rms_eps);
    for (int c = 0; c < HIDDEN; c++) {
        const double want = value(feature[c]) * inv * (double)b->model->final_norm[c];
        const double d = fabs(want - value(hidden[c]));
        worst = d > worst ? d : worst;
    }
    return worst;
}

Test(features, are_the_outputs_of_the_published_layers, .timeout = 60)
{
    static const int want[PL_FEATURE_LAYERS] = {1, N_LAYERS / 2 - 1, N_LAYERS - 4};
    int layers[PL_FEATURE_LAYERS];
    bed b;

    cr_assert(bed_open(&b, PL_ISA_REF, 2));
    pl_feature_layers(&b.model->arch, layers);
    cr_assert_eq(
        memcmp(layers, want, sizeof want), 0, "layers %d %d %d", layers[0], layers[1], layers[2]);
    uint16_t *whole = capture(&b, N_TOKENS, 0);
    for (int i = PL_FEATURE_LAYERS - 1; i >= 0; i--) {
        cut_after(&b, want[i]);
        uint16_t *cut = capture(&b, N_TOKENS, 0);
        for (int r = 0; r < N_TOKENS; r++) {
            const uint16_t *feature = whole + (size_t)r * ROW + (size_t)i * PADDED;
            const size_t hidden = (size_t)PL_FEATURE_LAYERS * PADDED;
            const double d = distance(&b, feature, cut + (size_t)r * ROW + hidden);
            cr_assert_lt(d, 0.05, "feature %d of row %d is off by %g", i, r, d);
            if (r > 0) {
                const double off = distance(&b, feature, cut + (size_t)(r - 1) * ROW + hidden);
                cr_assert_gt(off, 0.1, "row %d cannot be told from the one before (%g)", r, off);
            }
        }
        free(cut);
    }
    free(whole);
    bed_close(&b);
}

Test(features, cost_nothing_in_bits_and_stop_when_told, .timeout = 60)
{
    bed b;
    pl_kv_seq kv[2];
    static float truth[N_TOKENS * VOCAB];
    const uint16_t mark = 0x1234;

    cr_assert(bed_open(&b, PL_ISA_REF, 2));
    for (int on = 1; on >= 0; on--) {
        if (!on) {
            pl_pass_set_features(b.pass, NULL);
            b.rows[0] = b.hidden[0] = mark;
        }
        start(&kv[on]);
        chain(&b, &kv[on], N_TOKENS, N_TOKENS, NULL);
        for (int i = 0; i < N_TOKENS; i++) {
            float *at = truth + (size_t)i * VOCAB;
            const float *z = pl_pass_logits(b.pass, 0, i);
            if (on)
                memcpy(at, z, VOCAB * sizeof *z);
            cr_assert_eq(memcmp(at, z, VOCAB * sizeof *z), 0, "the logits of row %d differ", i);
        }
        pl_kv_seq_done(b.pool, &kv[on]);
    }
    cr_assert(b.rows[0] == mark && b.hidden[0] == mark, "written though nothing was asked");
    bed_close(&b);
}

Test(features, a_buffer_that_is_too_small_is_refused_before_anything_is_run, .timeout = 60)
{
    bed b;
    pl_kv_seq kv;
    pl_error err = {0};
    const int32_t tokens[3] = {1, 2, 3};

    cr_assert(bed_open(&b, PL_ISA_REF, 1));
    const pl_features f = {.rows = b.rows, .room = 2};
    pl_pass_set_features(b.pass, &f);
    start(&kv);
    cr_assert_eq(pl_kv_reserve(b.pool, &kv, 3, &err), PL_OK, "%s", err.msg);
    const pl_segment s = {.kv = &kv, .tokens = tokens, .n_rows = 3};
    cr_assert_eq(pl_pass_run(b.pass, b.pool, &s, 1, &err), PL_E_INVAL);
    cr_assert_not_null(strstr(err.msg, "features"), "%s", err.msg);
    cr_assert_eq(kv.n_tokens, 0);
    pl_kv_seq_done(b.pool, &kv);
    bed_close(&b);
}

Test(features, small_models_have_layers_too)
{
    for (int n = 1; n <= 40; n++) {
        const pl_arch a = {.n_layers = n};
        int l[PL_FEATURE_LAYERS];
        pl_feature_layers(&a, l);
        cr_assert(0 <= l[0] && l[0] <= l[1] && l[1] <= l[2] && l[2] < n, "%d layers: %d %d %d", n,
            l[0], l[1], l[2]);
    }
}
