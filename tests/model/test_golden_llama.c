/* tests/model/test_golden_llama.c - models that transformers saved give, here, what transformers in
 * fp32 gives.  The files and where they come from: tests/data/README-llama.md.
 *
 * KL is over the likeliest tokens of the file and one bucket for the rest, so a little less than
 * that of the whole distribution, which tests/oracle/logits.py takes. */
#include "model/model.h"

#include <criterion/criterion.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>

#define MEAN_KL    4e-4 /* and a quarter of what transformers in bf16 has */
#define SAME_CLASS 1.25 /* times the KL of the same roundings done by torch */
#define MAX_ERROR  0.06 /* of a token's log-prob; measured: 0.033 */

typedef struct bed {
    pl_team *team;
    pl_source *src;
    pl_model *m;
    pl_pass *pass;
    pl_kv_pool *pool;
    json_t *golden;
    int32_t *tokens; /* [n] */
    int n, n_vocab;
    float *logprobs; /* [n] */
    float *full;     /* [n, n_vocab] log-probs of every next token, by id */
} bed;

static void open_model(bed *b, const char *dir)
{
    pl_error err = {0};
    pl_cpu cpu;
    const pl_ops *ops;

    pl_fp_enter();
    pl_cpu_read(&cpu);
    cr_assert_eq(pl_ops_select(&ops, PL_ISA_AUTO, &cpu, NULL, 0, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_team_new(&b->team, 2, 0, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_source_open(&b->src, dir, &err), PL_OK, "%s", err.msg);
    const pl_arch *a = pl_source_arch(b->src);
    b->n_vocab = a->n_vocab;
    cr_assert_eq(pl_model_new(&b->m, a, ops, b->team, 0, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_model_load(b->m, b->src, NULL, &err), PL_OK, "%s", err.msg);
    const pl_pass_options o = {
        .max_rows = 48, .max_logits = 48, .max_segments = 1, .max_ctx = a->n_ctx};
    cr_assert_eq(pl_pass_new(&b->pass, b->m, &o, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_kv_pool_new(&b->pool, a, 4, &err), PL_OK, "%s", err.msg);
}

static void read_golden(bed *b, const char *dir)
{
    char path[256];
    json_error_t error;

    cr_assert_lt(snprintf(path, sizeof path, "%s/expected.json", dir), (int)sizeof path);
    b->golden = json_load_file(path, 0, &error);
    cr_assert_not_null(b->golden, "%s: %s", path, error.text);
    const json_t *list = json_object_get(b->golden, "tokens");
    b->n = (int)json_array_size(list);
    cr_assert_gt(b->n, PL_BLOCK, "the text must pass a block's end");
    b->tokens = calloc((size_t)b->n, sizeof *b->tokens);
    cr_assert_not_null(b->tokens);
    for (int i = 0; i < b->n; i++)
        b->tokens[i] = (int32_t)json_integer_value(json_array_get(list, (size_t)i));
}

static void score(bed *b)
{
    const size_t v = (size_t)b->n_vocab, all = (size_t)b->n * v;
    int32_t *ids = malloc(all * sizeof *ids);
    float *best = malloc(all * sizeof *best);
    pl_error err = {0};

    b->logprobs = calloc((size_t)b->n, sizeof *b->logprobs);
    b->full = calloc(all, sizeof *b->full);
    cr_assert(ids && best && b->logprobs && b->full);
    cr_assert_eq(
        pl_score(b->pass, b->pool, b->tokens, b->n, 1.0f, b->logprobs, b->n_vocab, ids, best, &err),
        PL_OK, "%s", err.msg);
    for (size_t i = 0; i < all; i++)
        b->full[i / v * v + (size_t)ids[i]] = best[i];
    free(ids);
    free(best);
}

/* KL(expected || ours) of one position. */
static double divergence(const json_t *top, const float *ours)
{
    double kl = 0.0, rest_p = 1.0, rest_q = 1.0;

    for (size_t i = 0; i < json_array_size(top); i++) {
        const json_t *pair = json_array_get(top, i);
        const double lp = json_number_value(json_array_get(pair, 1));
        const double lq = (double)ours[json_integer_value(json_array_get(pair, 0))];
        kl += exp(lp) * (lp - lq);
        rest_p -= exp(lp);
        rest_q -= exp(lq);
    }
    return rest_p > 1e-6 && rest_q > 1e-6 ? kl + rest_p * log(rest_p / rest_q) : kl;
}

static double number(const bed *b, const char *key)
{
    const json_t *v = json_object_get(b->golden, key);
    cr_assert(json_is_number(v), "no '%s'", key);
    return json_number_value(v);
}

static void expect_divergence(const bed *b)
{
    const json_t *top = json_object_get(b->golden, "top");
    double sum = 0.0;

    cr_assert_eq(json_array_size(top), (size_t)b->n);
    for (int i = 0; i < b->n; i++)
        sum += divergence(json_array_get(top, (size_t)i), b->full + (size_t)i * (size_t)b->n_vocab);
    const double mean = sum / b->n, bf16 = number(b, "kl_mean_transformers_bf16");
    cr_expect_leq(mean, MEAN_KL, "mean KL %.3g", mean);
    cr_expect_leq(mean, bf16 / 4, "mean KL %.3g, transformers in bf16 %.3g", mean, bf16);
    cr_expect_leq(mean, SAME_CLASS * number(b, "kl_mean_same_class"), "mean KL %.3g", mean);
    cr_expect_gt(mean, 0.0, "bf16 cannot equal fp32");
}

static void expect_logprobs(const bed *b)
{
    const json_t *want = json_object_get(b->golden, "logprobs");

    cr_assert_eq(json_array_size(want), (size_t)b->n);
    for (int i = 1; i < b->n; i++) {
        const double lp = json_number_value(json_array_get(want, (size_t)i));
        cr_expect_lt(fabs(lp - (double)b->logprobs[i]), MAX_ERROR, "token %d: %.5f, ours %.5f", i,
            lp, (double)b->logprobs[i]);
    }
}

static void close_bed(bed *b)
{
    pl_pass_free(b->pass);
    pl_kv_pool_free(b->pool);
    pl_model_free(b->m);
    pl_source_close(b->src);
    pl_team_free(b->team);
    json_decref(b->golden);
    free(b->tokens);
    free(b->logprobs);
    free(b->full);
}

static void expect_golden(const char *dir)
{
    bed b = {0};

    read_golden(&b, dir);
    open_model(&b, dir);
    score(&b);
    expect_divergence(&b);
    expect_logprobs(&b);
    close_bed(&b);
}

Test(golden_llama, head_size_48_with_one_kv_head_untied_is_transformers)
{
    expect_golden("tests/data/llama_head48");
}

Test(golden_llama, seven_heads_with_llama3_rope_tied_is_transformers)
{
    expect_golden("tests/data/llama_heads7");
}

Test(golden_llama, shards_of_odd_widths_are_transformers)
{
    expect_golden("tests/data/llama_sharded");
}
