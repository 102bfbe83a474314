/* tests/model/test_train.c - the training forward and backward.
 *
 * Claims: gradients of every parameter agree with a double-precision, unrounded reference (relative
 * L2 at most 3e-2, cosine at least 0.999) whose own backward agrees with central differences; the
 * log-probs are those of scoring and decoding, bit for bit; the bits of gradients do not depend on
 * keep, threads, backend, head chunks or, but for a tied embedding, micro-batch borders. */
#include "core/threads.h"
#include "model/train_internal.h"
#include "tests/model/reference.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_SEQS = 6, MAX_LEN = 112 };

typedef struct model_case {
    const char *name;
    pl_arch arch;
} model_case;

#define COMMON .n_layers = 2, .n_ctx = 160, .rms_eps = 1e-5f, .rope_theta = 10000.0, .bos_id = -1

static const model_case cases[] = {
    {"grouped heads, tied", {COMMON, .n_embd = 64, .n_heads = 4, .n_kv_heads = 2, .head_dim = 16,
                                .n_ff = 160, .n_vocab = 512, .tied = 1}},
    {"head size 48, one KV head", {COMMON, .n_embd = 96, .n_heads = 3, .n_kv_heads = 1,
                                      .head_dim = 48, .n_ff = 200, .n_vocab = 1003, .tied = 1}},
    {"seven heads, untied", {COMMON, .n_embd = 56, .n_heads = 7, .n_kv_heads = 7, .head_dim = 8,
                                .n_ff = 120, .n_vocab = 1003}},
    {"llama3 rotation, heads wider than the residual",
        {COMMON, .n_embd = 40, .n_heads = 6, .n_kv_heads = 2, .head_dim = 32, .n_ff = 72,
            .n_vocab = 300, .rope_type = PL_ROPE_LLAMA3, .rope_factor = 8,
            .rope_low_freq_factor = 1, .rope_high_freq_factor = 4, .rope_original_ctx = 64}},
};
enum { N_CASES = sizeof cases / sizeof *cases };

/* A model on a backend, and its weights in other forms. */
typedef struct bed {
    const pl_ops *ops;
    pl_team *team;
    pl_model *m;
    const pl_param_table *params;
    float *masters; /* rounded to bf16 */
    float *grads;
} bed;

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* Uniform in (-1, 1). */
static double uniform(uint64_t i)
{
    return ((double)(mix(i + 0x9e3779b97f4a7c15u) >> 11) + 0.5) * 0x1p-52 - 1.0;
}

static void fill_masters(const pl_param_table *t, float *masters)
{
    for (int i = 0; i < t->n_params; i++) {
        const pl_param *p = &t->params[i];
        const size_t n = (size_t)p->rows * (size_t)p->cols;
        const double size = 2.0 / sqrt(p->cols);
        for (size_t j = 0; j < n; j++) {
            const double u = uniform(p->offset + j);
            const double w = p->rows == 1 ? 1 + 0.5 * u : size * u;
            masters[p->offset + j] = pl_bf16_to_f32(pl_f32_to_bf16((float)w));
        }
    }
}

static void bed_init(bed *b, const pl_arch *a, pl_isa isa, int n_threads)
{
    pl_cpu cpu;
    pl_error err = {0};

    pl_cpu_read(&cpu);
    memset(b, 0, sizeof *b);
    cr_assert_eq(pl_ops_select(&b->ops, isa, &cpu, NULL, 0, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_team_new(&b->team, n_threads, 0, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_model_new(&b->m, a, b->ops, b->team, 1, &err), PL_OK, "%s", err.msg);
    b->params = pl_model_params(b->m);
    b->masters = calloc(b->params->n_elements, sizeof *b->masters);
    b->grads = calloc(b->params->n_elements, sizeof *b->grads);
    cr_assert(b->masters && b->grads);
    fill_masters(b->params, b->masters);
    cr_assert_eq(pl_model_pack(b->m, b->masters, &err), PL_OK, "%s", err.msg);
}

static void bed_done(bed *b)
{
    pl_model_free(b->m);
    pl_team_free(b->team);
    free(b->masters);
    free(b->grads);
}

/* Sequences across page and block borders, one without response, one whose gradients are zero. */
typedef struct batch {
    int32_t tokens[N_SEQS][MAX_LEN];
    pl_train_seq seqs[N_SEQS];
    float logprobs[N_SEQS][MAX_LEN];
    int n_called;
    int quiet; /* no gradients at all */
} batch;

static void batch_init(batch *b, int n_vocab)
{
    static const int lengths[N_SEQS] = {101, 34, 70, 5, 3, 66},
                     prompts[N_SEQS] = {7, 33, 60, 1, 3, 2};
    memset(b, 0, sizeof *b);
    for (int s = 0; s < N_SEQS; s++) {
        for (int i = 0; i < lengths[s]; i++)
            b->tokens[s][i] = (int32_t)(mix((uint64_t)(s * 1000 + i)) % (uint64_t)n_vocab);
        b->seqs[s] = (pl_train_seq){.tokens = b->tokens[s],
            .n_tokens = lengths[s],
            .n_prompt = prompts[s],
            .temperature = s % 2 ? 0.7f : 1.0f};
    }
}

/* d loss / d logprob: sequence 2 has none, nor has every fifth token. */
static double token_weight(int i_seq, int i_token)
{
    if (i_seq == 2 || i_token % 5 == 4)
        return 0;
    return (double)(float)uniform((uint64_t)(i_seq * 7919 + i_token));
}

static float loss(void *ctx, int i_seq, int i_token, float logprob, float entropy)
{
    batch *b = ctx;
    (void)entropy;
    b->logprobs[i_seq][i_token] = logprob;
    b->n_called++;
    return b->quiet ? 0.0f : (float)token_weight(i_seq, i_token);
}

static pl_train_options options(void)
{
    return (pl_train_options){
        .max_tokens = 448, .max_seqs = N_SEQS, .max_len = MAX_LEN, .keep = 1, .head_rows = 64};
}

/* Gradients of a whole batch, or of its sequences [0, split) and [split, N_SEQS) one by one. */
static void step(bed *b, batch *q, const pl_train_options *o, int split)
{
    pl_train *t;
    pl_error err = {0};

    memset(b->grads, 0, b->params->n_elements * sizeof *b->grads);
    cr_assert_eq(pl_train_new(&t, b->m, o, &err), PL_OK, "%s", err.msg);
    if (split > 0) {
        batch rest = *q;
        cr_assert_eq(
            pl_train_step(t, q->seqs, split, loss, q, b->grads, &err), PL_OK, "%s", err.msg);
        for (int i = split; i < N_SEQS; i++) {
            /* one more micro-batch a sequence, told apart by its own weights */
            pl_train_seq padded[N_SEQS];
            for (int j = 0; j < N_SEQS; j++)
                padded[j] = (pl_train_seq){
                    .tokens = q->tokens[j], .n_tokens = 1, .n_prompt = 1, .temperature = 1};
            padded[i] = q->seqs[i];
            cr_assert_eq(pl_train_step(t, padded, N_SEQS, loss, &rest, b->grads, &err), PL_OK, "%s",
                err.msg);
        }
    } else {
        cr_assert_eq(
            pl_train_step(t, q->seqs, N_SEQS, loss, q, b->grads, &err), PL_OK, "%s", err.msg);
    }
    pl_train_free(t);
}

static double *as_double(const float *x, size_t n)
{
    double *y = calloc(n, sizeof *y);
    cr_assert_not_null(y);
    for (size_t i = 0; i < n; i++)
        y[i] = (double)x[i];
    return y;
}

/* Relative L2 and cosine of a parameter's gradient against the reference. */
static void compare(
    const pl_param *p, const float *got, const double *want, double *l2, double *cosine)
{
    double diff = 0, gg = 0, ww = 0, gw = 0;
    for (size_t i = p->offset; i < p->offset + (size_t)p->rows * (size_t)p->cols; i++) {
        const double g = (double)got[i], w = want[i];
        diff += (g - w) * (g - w);
        gg += g * g;
        ww += w * w;
        gw += g * w;
    }
    *l2 = sqrt(diff / ww);
    *cosine = gw / sqrt(gg * ww);
}

Test(train, the_reference_agrees_with_central_differences)
{
    for (int c = 0; c < N_CASES; c++) {
        const pl_arch *a = &cases[c].arch;
        pl_param_table *t;
        batch q;
        pl_error err = {0};
        cr_assert_eq(pl_param_table_new(&t, a, &err), PL_OK, "%s", err.msg);
        const size_t n = t->n_elements;
        float *masters = calloc(n, sizeof *masters);
        double *grads = calloc(n, sizeof *grads);
        cr_assert(masters && grads);
        fill_masters(t, masters);
        double *w = as_double(masters, n);
        batch_init(&q, a->n_vocab);
        q.seqs[0].n_tokens = 40; /* enough here */
        reference_loss(a, t, w, q.seqs, N_SEQS, token_weight, grads, NULL);
        for (int i = 0; i < t->n_params; i++) {
            const pl_param *p = &t->params[i];
            const size_t size = (size_t)p->rows * (size_t)p->cols;
            const double h = 1e-5;
            double slope = 0, loss_at[2];
            for (int side = 0; side < 2; side++) {
                for (size_t j = 0; j < size; j++)
                    w[p->offset + j] += (side ? -2 : 1) * h * uniform(j + 77);
                loss_at[side] = reference_loss(a, t, w, q.seqs, N_SEQS, token_weight, NULL, NULL);
            }
            for (size_t j = 0; j < size; j++) {
                w[p->offset + j] = (double)masters[p->offset + j];
                slope += grads[p->offset + j] * uniform(j + 77);
            }
            const double central = (loss_at[0] - loss_at[1]) / (2 * h);
            cr_expect_lt(fabs(central - slope), 1e-5 * (1 + fabs(slope)), "%s, %s: %g, %g",
                cases[c].name, p->name, central, slope);
        }
        pl_param_table_free(t);
        free(masters);
        free(grads);
        free(w);
    }
}

Test(train, gradients_of_every_parameter_agree_with_the_reference)
{
    const pl_train_options o = options();
    for (int c = 0; c < N_CASES; c++) {
        bed b;
        batch q;
        bed_init(&b, &cases[c].arch, PL_ISA_AUTO, 2);
        batch_init(&q, cases[c].arch.n_vocab);
        step(&b, &q, &o, 0);
        double *w = as_double(b.masters, b.params->n_elements);
        double *want = calloc(b.params->n_elements, sizeof *want);
        cr_assert_not_null(want);
        reference_loss(&cases[c].arch, b.params, w, q.seqs, N_SEQS, token_weight, want, NULL);
        for (int i = 0; i < b.params->n_params; i++) {
            double l2, cosine;
            compare(&b.params->params[i], b.grads, want, &l2, &cosine);
            cr_expect(l2 <= 3e-2 && cosine >= 0.999, "%s, %s: relative L2 %g, cosine %g",
                cases[c].name, b.params->params[i].name, l2, cosine);
        }
        free(w);
        free(want);
        bed_done(&b);
    }
}

static void logprobs_by_scoring(bed *b, const batch *q, float out[N_SEQS][MAX_LEN])
{
    const pl_pass_options po = {
        .max_rows = 48, .max_logits = 48, .max_segments = 1, .max_ctx = MAX_LEN};
    pl_pass *p;
    pl_kv_pool *pool;
    pl_error err = {0};

    cr_assert_eq(pl_pass_new(&p, b->m, &po, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_kv_pool_new(&pool, pl_model_arch(b->m), 4, &err), PL_OK, "%s", err.msg);
    for (int s = 0; s < N_SEQS; s++) {
        const pl_train_seq *seq = &q->seqs[s];
        cr_assert_eq(pl_score(p, pool, seq->tokens, seq->n_tokens, seq->temperature, out[s], 0,
                         NULL, NULL, &err),
            PL_OK, "%s", err.msg);
    }
    pl_kv_pool_free(pool);
    pl_pass_free(p);
}

Test(train, log_probs_are_those_of_scoring_bit_for_bit)
{
    for (int c = 0; c < N_CASES; c++) {
        static float scored[N_SEQS][MAX_LEN];
        pl_train_options o = options();
        bed b;
        batch q;
        pl_train *t;
        pl_error err = {0};
        bed_init(&b, &cases[c].arch, PL_ISA_AUTO, 2);
        batch_init(&q, cases[c].arch.n_vocab);
        logprobs_by_scoring(&b, &q, scored);
        for (int only = 0; only < 2; only++) {
            memset(q.logprobs, 0, sizeof q.logprobs);
            q.n_called = 0;
            o.forward_only = only;
            cr_assert_eq(pl_train_new(&t, b.m, &o, &err), PL_OK, "%s", err.msg);
            const pl_status st = only ? pl_train_logprobs(t, q.seqs, N_SEQS, loss, &q, &err)
                                      : pl_train_step(t, q.seqs, N_SEQS, loss, &q, b.grads, &err);
            cr_assert_eq(st, PL_OK, "%s", err.msg);
            int n = 0;
            for (int s = 0; s < N_SEQS; s++) {
                const int from = q.seqs[s].n_prompt, count = q.seqs[s].n_tokens - from;
                n += count;
                cr_expect_arr_eq(q.logprobs[s] + from, scored[s] + from,
                    (size_t)count * sizeof(float), "%s, sequence %d", cases[c].name, s);
            }
            cr_expect_eq(q.n_called, n);
            pl_train_free(t);
        }
        bed_done(&b);
    }
}

/* Gradients of a case under some conditions, to compare. */
static float *gradients(int c, const pl_train_options *o, pl_isa isa, int n_threads, int split)
{
    bed b;
    batch q;
    bed_init(&b, &cases[c].arch, isa, n_threads);
    batch_init(&q, cases[c].arch.n_vocab);
    step(&b, &q, o, split);
    float *g = b.grads;
    b.grads = NULL;
    bed_done(&b);
    return g;
}

static size_t n_elements(int c)
{
    pl_param_table *t;
    cr_assert_eq(pl_param_table_new(&t, &cases[c].arch, NULL), PL_OK);
    const size_t n = t->n_elements;
    pl_param_table_free(t);
    return n;
}

static void expect_same(int c, const float *a, float *b, const char *what)
{
    cr_expect(memcmp(a, b, n_elements(c) * sizeof *a) == 0, "%s: %s", cases[c].name, what);
    free(b);
}

Test(train, bits_of_gradients_depend_on_no_condition_of_the_run)
{
    for (int c = 0; c < N_CASES; c++) {
        const pl_train_options o = options();
        pl_train_options recompute = o, chunks = o, room = o;
        recompute.keep = 0;
        chunks.head_rows = 32;
        room.max_tokens = 1024;
        float *want = gradients(c, &o, PL_ISA_AUTO, 2, 0);
        expect_same(c, want, gradients(c, &recompute, PL_ISA_AUTO, 2, 0), "recomputed");
        expect_same(c, want, gradients(c, &chunks, PL_ISA_AUTO, 2, 0), "smaller head chunks");
        expect_same(c, want, gradients(c, &room, PL_ISA_AUTO, 2, 0), "a larger budget");
        expect_same(c, want, gradients(c, &o, PL_ISA_AUTO, 1, 0), "one thread");
        expect_same(c, want, gradients(c, &recompute, PL_ISA_AUTO, 3, 0), "three threads");
        expect_same(c, want, gradients(c, &o, PL_ISA_REF, 2, 0), "plain C");
        free(want);
    }
}

Test(train, bits_of_gradients_are_the_same_on_every_backend)
{
    static const pl_isa isas[] = {PL_ISA_AMX, PL_ISA_AVX512, PL_ISA_AVX2};
    const pl_train_options o = options();
    pl_cpu cpu;

    pl_cpu_read(&cpu);
    float *want = gradients(1, &o, PL_ISA_REF, 2, 0);
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
        const pl_ops *ops;
        if (pl_ops_select(&ops, isas[i], &cpu, NULL, 0, NULL) == PL_OK)
            expect_same(1, want, gradients(1, &o, isas[i], 2, 0), pl_isa_name(isas[i]));
    }
    free(want);
}

Test(train, micro_batch_borders_do_not_show_but_in_a_tied_embedding)
{
    const pl_train_options o = options();
    for (int c = 0; c < N_CASES; c++) {
        float *want = gradients(c, &o, PL_ISA_AUTO, 2, 0);
        float *split = gradients(c, &o, PL_ISA_AUTO, 2, 3);
        const size_t embedding =
            cases[c].arch.tied ? (size_t)cases[c].arch.n_vocab * (size_t)cases[c].arch.n_embd : 0;
        cr_expect(memcmp(want + embedding, split + embedding,
                      (n_elements(c) - embedding) * sizeof *want) == 0,
            "%s", cases[c].name);
        for (size_t i = 0; i < embedding; i++)
            cr_assert_float_eq(want[i], split[i], 1e-4f);
        free(want);
        free(split);
    }
}

Test(train, sequences_without_gradients_leave_the_sums_alone)
{
    const pl_train_options o = options();
    bed b;
    batch q;
    bed_init(&b, &cases[0].arch, PL_ISA_AUTO, 2);
    batch_init(&q, cases[0].arch.n_vocab);
    q.quiet = 1;
    step(&b, &q, &o, 0);
    for (size_t i = 0; i < b.params->n_elements; i++)
        cr_assert_eq(b.grads[i], 0.0f);
    bed_done(&b);
}

static float push_up(void *ctx, int i_seq, int i_token, float logprob, float entropy)
{
    double *sum = ctx;
    (void)i_seq;
    (void)i_token;
    (void)entropy;
    *sum += (double)logprob;
    return 1.0f;
}

Test(train, steps_along_the_gradient_raise_a_sequences_log_prob)
{
    const pl_train_options o = options();
    bed b;
    batch q;
    pl_train *t;
    pl_error err = {0};
    double first = 0, sum = 0;

    bed_init(&b, &cases[1].arch, PL_ISA_AUTO, 2);
    batch_init(&q, cases[1].arch.n_vocab);
    cr_assert_eq(pl_train_new(&t, b.m, &o, &err), PL_OK, "%s", err.msg);
    for (int i = 0; i < 12; i++) {
        sum = 0;
        memset(b.grads, 0, b.params->n_elements * sizeof *b.grads);
        cr_assert_eq(
            pl_train_step(t, &q.seqs[5], 1, push_up, &sum, b.grads, &err), PL_OK, "%s", err.msg);
        first = i == 0 ? sum : first;
        for (size_t j = 0; j < b.params->n_elements; j++)
            b.masters[j] += 2e-3f * b.grads[j];
        cr_assert_eq(pl_model_pack(b.m, b.masters, &err), PL_OK, "%s", err.msg);
    }
    cr_expect_gt(sum, first * 0.5, "log-prob %g after, %g before", sum, first);
    pl_train_free(t);
    bed_done(&b);
}

static float count_entropy(void *ctx, int i_seq, int i_token, float logprob, float entropy)
{
    float *least = ctx;
    (void)i_seq;
    (void)i_token;
    (void)logprob;
    *least = entropy < *least ? entropy : *least;
    return 0.0f;
}

Test(train, entropy_is_given_where_it_is_wanted)
{
    pl_train_options o = options();
    bed b;
    batch q;
    pl_train *t;
    pl_error err = {0};
    float least = 100.0f;

    o.want_entropy = 1;
    bed_init(&b, &cases[0].arch, PL_ISA_AUTO, 1);
    batch_init(&q, cases[0].arch.n_vocab);
    cr_assert_eq(pl_train_new(&t, b.m, &o, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_train_logprobs(t, q.seqs, N_SEQS, count_entropy, &least, &err), PL_OK);
    cr_expect(least > 1.0f && least < logf(512.0f), "least entropy %g", (double)least);
    pl_train_free(t);
    bed_done(&b);
}

static float broken(void *ctx, int i_seq, int i_token, float logprob, float entropy)
{
    (void)ctx;
    (void)entropy;
    return i_seq == 1 && i_token == 33 ? NAN : logprob;
}

Test(train, what_cannot_be_trained_is_refused_in_words)
{
    pl_train_options o = options();
    bed b;
    batch q;
    pl_train *t;
    pl_error err = {0};

    bed_init(&b, &cases[0].arch, PL_ISA_AUTO, 2);
    batch_init(&q, cases[0].arch.n_vocab);
    o.max_tokens = 416; /* the sequences take 128 + 64 + 96 + 32 + 32 + 96 rows */
    cr_assert_eq(pl_train_new(&t, b.m, &o, &err), PL_OK, "%s", err.msg);
    cr_expect_eq(pl_train_step(t, q.seqs, N_SEQS, loss, &q, b.grads, &err), PL_E_INVAL);
    cr_expect(strstr(err.msg, "micro-batch") != NULL, "%s", err.msg);
    q.seqs[0].temperature = 0;
    cr_expect_eq(pl_train_step(t, q.seqs, 2, loss, &q, b.grads, &err), PL_E_INVAL);
    cr_expect(strstr(err.msg, "temperature") != NULL, "%s", err.msg);
    q.seqs[0].temperature = 1;
    cr_expect_eq(pl_train_step(t, q.seqs, 2, broken, &q, b.grads, &err), PL_E_NUMERIC);
    cr_expect(strstr(err.msg, "token 33 of sequence 1") != NULL, "%s", err.msg);
    cr_expect_eq(pl_train_step(t, q.seqs, 2, loss, &q, b.grads, &err), PL_OK, "%s", err.msg);
    pl_train_free(t);
    o.head_rows = 33;
    cr_expect_eq(pl_train_new(&t, b.m, &o, &err), PL_E_INVAL);
    bed_done(&b);
}

Test(train, the_plan_counts_every_byte_that_is_taken)
{
    for (int mode = 0; mode < 3; mode++) {
        pl_train_options o = options();
        bed b;
        pl_train *t;
        pl_error err = {0};
        o.keep = mode == 0;
        o.forward_only = mode == 2;
        bed_init(&b, &cases[1].arch, PL_ISA_AUTO, 2);
        cr_assert_eq(pl_train_new(&t, b.m, &o, &err), PL_OK, "%s", err.msg);
        cr_expect_eq(pl_train_plan(&cases[1].arch, &o, 2),
            t->arena.used + t->pass->arena.used + t->pool->arena.size, "mode %d", mode);
        pl_train_free(t);
        bed_done(&b);
    }
}

Test(train, a_sequence_takes_a_multiple_of_32_rows)
{
    cr_expect_eq(pl_train_rows(1), 0);
    cr_expect_eq(pl_train_rows(2), 32);
    cr_expect_eq(pl_train_rows(33), 32);
    cr_expect_eq(pl_train_rows(34), 64);
}
