/* tests/trainer/bed.c */
#include "tests/trainer/bed.h"

#include "core/rng.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static pl_error err;

#define OK(call) cr_assert_eq((call), PL_OK, "%s", err.msg)

void bed_options(pl_actor_options *o)
{
    *o = (pl_actor_options){
        .lr = 1e-3,
        .weight_decay = 0.01,
        .beta1 = 0.9,
        .beta2 = 0.999,
        .eps = 1e-8,
        .grad_clip = 1.0,
        .ppo_epochs = 1,
        .ppo_max_token_len = 256,
        .clip_ratio_low = 0.2,
        .clip_ratio_high = 0.28,
        .kl_loss_coef = 0.1,
        .lr_scheduler_type = "constant",
        .loss_agg_mode = "token-mean",
        .kl_loss_type = "low_var_kl",
        .adv_estimator = "grpo",
        .activations = "keep",
    };
}

void bed_open(bed *b, const pl_actor_options *o, pl_isa isa, int n_threads)
{
    const pl_ops *ops = NULL;
    pl_tiny_options tiny;
    pl_cpu cpu;
    char path[80];
    float *masters = NULL;

    memset(b, 0, sizeof *b);
    b->o = *o;
    cr_assert(snprintf(b->dir, sizeof b->dir, "%s/pl-trainer-XXXXXX", P_tmpdir) > 0);
    cr_assert_not_null(mkdtemp(b->dir));
    cr_assert(snprintf(path, sizeof path, "%s/model", b->dir) > 0);
    cr_assert(snprintf(b->run_dir, sizeof b->run_dir, "%s/run", b->dir) > 0);
    OK(pl_dir_make(path, &err));
    OK(pl_dir_make(b->run_dir, &err));
    pl_tiny_defaults(&tiny);
    OK(pl_tiny_write(path, &tiny, &err));
    OK(pl_source_open(&b->src, path, &err));
    pl_cpu_read(&cpu);
    OK(pl_ops_select(&ops, isa, &cpu, NULL, 0, &err));
    OK(pl_team_new(&b->team, n_threads, 0, &err));
    OK(pl_model_new(&b->model, pl_source_arch(b->src), ops, b->team, 1, &err));
    OK(pl_masters_new(&masters, pl_model_params(b->model), &err));
    OK(pl_model_load(b->model, b->src, masters, &err));
    OK(pl_trainer_new(&b->trainer, b->model, masters, o, BED_LEN, 10, NULL, &err));
}

void bed_close(bed *b)
{
    pl_trainer_free(b->trainer);
    pl_model_free(b->model);
    pl_team_free(b->team);
    pl_source_close(b->src);
    OK(pl_dir_remove(b->dir, &err));
}

/* ---- samples ---- */

static void score_one(const bed *b, pl_pass *pass, pl_kv_pool *pool, int i, float *logprobs)
{
    const pl_response *r = &b->responses[i];
    OK(pl_score(pass, pool, b->tokens[i], r->n_prompt + r->n_tokens, r->temperature, logprobs, 0,
        NULL, NULL, &err));
}

static void score_all(const bed *b, float logprobs[BED_SAMPLES][BED_LEN])
{
    const pl_pass_options o = {
        .max_rows = BED_LEN, .max_logits = BED_LEN, .max_segments = 1, .max_ctx = BED_LEN};
    pl_pass *pass = NULL;
    pl_kv_pool *pool = NULL;

    OK(pl_pass_new(&pass, b->model, &o, &err));
    OK(pl_kv_pool_new(&pool, pl_model_arch(b->model), 4, &err));
    for (int i = 0; i < BED_SAMPLES; i++)
        score_one(b, pass, pool, i, logprobs[i]);
    pl_kv_pool_free(pool);
    pl_pass_free(pass);
}

void bed_sample(bed *b, int step)
{
    const int n_vocab = pl_model_arch(b->model)->n_vocab;

    for (int i = 0; i < BED_SAMPLES; i++) {
        const int group = i / BED_N;
        pl_response *r = &b->responses[i];
        *r = (pl_response){
            .uid = (uint32_t)((step - 1) * BED_SAMPLES + i),
            .group = (uint32_t)group,
            .n_prompt = 5 + group,
            .n_tokens = 1 + (i * 37 + step * 11) % 80,
            .prompt = b->tokens[i],
            .tokens = b->tokens[i] + 5 + group,
            .logprobs = b->logprobs[i] + 5 + group,
            .finish = PL_FINISH_STOP,
            .temperature = 1,
        };
        for (int j = 0; j < BED_LEN; j++)
            b->tokens[i][j] = (int32_t)(pl_noise_word(9, j < r->n_prompt ? (uint32_t)group : r->uid,
                                            (uint32_t)j, PL_NOISE_SAMPLE, 0) %
                                        (uint32_t)n_vocab);
        b->samples[i] = (pl_sample){
            .response = r,
            .prompt = &b->prompt,
            .reward = group == 2 ? 1.0f : (float)((i * 7 + step) % 3 == 0),
        };
    }
    score_all(b, b->logprobs);
}

void bed_score(bed *b, double sums[BED_SAMPLES])
{
    float(*now)[BED_LEN] = calloc(BED_SAMPLES, sizeof *now);

    cr_assert_not_null(now);
    score_all(b, now);
    for (int i = 0; i < BED_SAMPLES; i++) {
        const pl_response *r = &b->responses[i];
        sums[i] = 0;
        for (int j = 0; j < r->n_tokens; j++)
            sums[i] += (double)now[i][r->n_prompt + j];
    }
    free(now);
}

pl_status bed_step(bed *b, int step, pl_step_stats *stats, pl_error *e)
{
    return pl_trainer_step(
        b->trainer, step, b->samples, BED_GROUPS, BED_N, NULL, NULL, NULL, stats, e);
}

float *bed_copy(const bed *b)
{
    const size_t n = pl_model_params(b->model)->n_elements;
    float *copy = malloc(3 * n * sizeof *copy);

    cr_assert_not_null(copy);
    memcpy(copy, b->trainer->masters, n * sizeof *copy);
    memcpy(copy + n, b->trainer->m, n * sizeof *copy);
    memcpy(copy + 2 * n, b->trainer->v, n * sizeof *copy);
    return copy;
}

int bed_same(const bed *b, const float *copy)
{
    const size_t n = pl_model_params(b->model)->n_elements;

    return memcmp(copy, b->trainer->masters, n * sizeof *copy) == 0 &&
           memcmp(copy + n, b->trainer->m, n * sizeof *copy) == 0 &&
           memcmp(copy + 2 * n, b->trainer->v, n * sizeof *copy) == 0;
}
