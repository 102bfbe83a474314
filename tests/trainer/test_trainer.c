/* Claims: the step is AdamW on the published loss; before the first update every log-prob has the
 * rollout's bits, and a step whose samples have not is refused with nothing changed; the weights
 * after a step do not depend on threads, kept activations or ISA. */
#include "tests/trainer/bed.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static bed b;
static pl_error err;
static pl_step_stats stats;
static pl_actor_options options;

static void begin(void)
{
    bed_options(&options);
}

TestSuite(trainer, .init = begin, .timeout = 300);

static void open_bed(void)
{
    bed_open(&b, &options, PL_ISA_AUTO, 2);
    bed_sample(&b, 1);
}

static void step_ok(int step)
{
    cr_assert_eq(bed_step(&b, step, &stats, &err), PL_OK, "%s", err.msg);
}

Test(trainer, before_the_first_update_every_log_prob_has_the_rollouts_bits)
{
    int64_t n_tokens = 0;

    open_bed();
    for (int step = 1; step <= 3; step++) {
        bed_sample(&b, step);
        step_ok(step);
        cr_assert_eq(stats.logprob_mismatches, 0);
        cr_assert_eq(stats.ratio_max_abs_dev, 0);
        cr_assert_eq(stats.ppo_kl, 0);
        cr_assert_eq(stats.pg_clipfrac, 0);
        cr_assert_gt(stats.grad_norm, 0);
        cr_assert_gt(stats.entropy, 1);
    }
    for (int i = 0; i < BED_SAMPLES; i++)
        n_tokens += b.responses[i].n_tokens;
    cr_assert_eq(stats.n_tokens, n_tokens, "groups of equal rewards count too");
    cr_assert_eq(stats.n_groups, BED_GROUPS);
    cr_assert_geq(stats.n_zero_std_groups, 1);
    bed_close(&b);
}

Test(trainer, a_step_raises_what_was_rewarded_and_lowers_the_rest)
{
    double before[BED_SAMPLES], after[BED_SAMPLES];
    int n_right = 0, n_moved = 0;

    open_bed();
    bed_score(&b, before);
    step_ok(1);
    bed_score(&b, after);
    for (int i = 0; i < BED_SAMPLES; i++)
        if (b.samples[i].advantage != 0) {
            n_moved++;
            n_right += (after[i] - before[i] > 0) == (b.samples[i].advantage > 0);
        }
    cr_assert_geq(n_moved, 12);
    cr_assert_geq(n_right, n_moved - 1, "%d of %d", n_right, n_moved);
    bed_close(&b);
}

/* ---- the update itself ---- */

typedef struct plain_loss {
    const bed *b;
    double n_tokens;
    int by_seq, first;
} plain_loss;

static float plain_token(void *ctx, int i_seq, int i_token, float logprob, float entropy)
{
    const plain_loss *l = ctx;
    const pl_sample *s = &l->b->samples[l->first + i_seq];
    (void)i_token;
    (void)logprob;
    (void)entropy;
    return (float)(-(double)s->advantage /
                   (l->by_seq ? (double)s->response->n_tokens * BED_SAMPLES : l->n_tokens));
}

/* Gradient of mean(-advantage * logprob) over all samples, one by one. */
static void plain_gradient(float *grads, int by_seq)
{
    const pl_train_options o = {.max_tokens = 256, .max_seqs = 8, .max_len = BED_LEN, .keep = 1};
    plain_loss l = {.b = &b, .by_seq = by_seq};
    pl_train *t = NULL;

    for (int i = 0; i < BED_SAMPLES; i++)
        l.n_tokens += b.responses[i].n_tokens;
    cr_assert_eq(pl_train_new(&t, b.model, &o, &err), PL_OK, "%s", err.msg);
    for (int i = 0; i < BED_SAMPLES; i++) {
        const pl_response *r = &b.responses[i];
        const pl_train_seq seq = {b.tokens[i], r->n_prompt + r->n_tokens, r->n_prompt, 1};
        l.first = i;
        cr_assert_eq(pl_train_step(t, &seq, 1, plain_token, &l, grads, &err), PL_OK);
    }
    pl_train_free(t);
}

/* Weights after one AdamW update from zero moments: m / bias1 = g, sqrt(v / bias2) = |g|.  Where
 * the gradient is tiny its sign is rounding noise; the rest must be near. */
static double worst_weight(const float *before, const float *grads, double scale)
{
    const pl_param_table *p = pl_model_params(b.model);
    double worst = 0;

    for (int k = 0; k < p->n_params; k++) {
        const pl_param *q = &p->params[k];
        const double decay = q->rows > 1 ? options.lr * options.weight_decay : 0;
        for (size_t i = q->offset; i < q->offset + (size_t)q->rows * (size_t)q->cols; i++) {
            const double g = (double)grads[i] * scale;
            const double want =
                (double)before[i] * (1 - decay) - options.lr * g / (fabs(g) + options.eps);
            const double d = fabs((double)b.trainer->masters[i] - want);
            if (fabs(g) > 1e-4 && d > worst)
                worst = d;
        }
    }
    return worst;
}

static void expect_first_update(const float *before, const float *grads)
{
    const size_t n = pl_model_params(b.model)->n_elements;
    double squares = 0, off = 0;

    for (size_t i = 0; i < n; i++)
        squares += (double)grads[i] * (double)grads[i];
    const double norm = sqrt(squares);
    cr_assert(fabs(stats.grad_norm - norm) < 2e-2 * norm, "%g and %g", stats.grad_norm, norm);
    cr_assert_gt(norm, 2 * options.grad_clip, "the test should see clipping");
    const double scale = options.grad_clip / norm;
    for (size_t i = 0; i < n; i++) {
        const double want = (1 - options.beta1) * scale * (double)grads[i];
        off += ((double)b.trainer->m[i] - want) * ((double)b.trainer->m[i] - want);
    }
    const double size = (1 - options.beta1) * options.grad_clip;
    cr_assert_lt(sqrt(off), 2e-2 * size, "first moment off by %g of %g", sqrt(off), size);
    const double worst = worst_weight(before, grads, scale);
    cr_assert_lt(worst, 0.05 * options.lr, "a weight is off by %g", worst);
}

static void run_first_update(int by_seq)
{
    options.weight_decay = 1; /* large enough to be seen */
    options.grad_clip = 0.05;
    open_bed();
    const size_t n = pl_model_params(b.model)->n_elements;
    float *before = bed_copy(&b);
    float *grads = calloc(n, sizeof *grads);

    cr_assert_not_null(grads);
    step_ok(1);
    float *after = bed_copy(&b);
    memcpy(b.trainer->masters, before, n * sizeof *before);
    cr_assert_eq(pl_model_pack(b.model, before, &err), PL_OK);
    plain_gradient(grads, by_seq);
    memcpy(b.trainer->masters, after, n * sizeof *after);
    expect_first_update(before, grads);
    free(before);
    free(after);
    free(grads);
    bed_close(&b);
}

Test(trainer, the_update_is_adamw_on_the_mean_over_all_tokens)
{
    run_first_update(0);
}

Test(trainer, seq_mean_token_mean_weighs_each_sample_alike)
{
    memcpy(options.loss_agg_mode, "seq-mean-token-mean", sizeof "seq-mean-token-mean");
    run_first_update(1);
}

/* ---- the same bits ---- */

static float *weights_after(int n_steps, pl_isa isa, int n_threads)
{
    bed_open(&b, &options, isa, n_threads);
    for (int step = 1; step <= n_steps; step++) {
        bed_sample(&b, step);
        step_ok(step);
    }
    return bed_copy(&b);
}

static void expect_bits(const float *want, pl_isa isa, int n_threads, const char *what)
{
    float *have = weights_after(2, isa, n_threads);
    cr_assert(bed_same(&b, want), "%s", what);
    free(have);
    bed_close(&b);
}

Test(trainer, weights_do_not_depend_on_threads_activations_or_isa)
{
    options.ppo_mini_batch_size = 4;
    float *want = weights_after(2, PL_ISA_AUTO, 1);
    bed_close(&b);

    expect_bits(want, PL_ISA_AUTO, 2, "2 threads");
    expect_bits(want, PL_ISA_AUTO, 3, "3 threads");
    expect_bits(want, PL_ISA_REF, 2, "plain C");
    memcpy(options.activations, "recompute", sizeof "recompute");
    expect_bits(want, PL_ISA_AUTO, 2, "recomputed activations");
    free(want);
}

/* ---- law 1, and other refusals ---- */

static void expect_unchanged(pl_status want, const char *words)
{
    float *before = bed_copy(&b);

    cr_assert_eq(bed_step(&b, 1, &stats, &err), want, "%s", err.msg);
    cr_assert_not_null(strstr(err.msg, words), "%s", err.msg);
    cr_assert(bed_same(&b, before));
    cr_assert_eq(b.trainer->n_updates, 0);
    free(before);
    bed_close(&b);
}

static void flip_last_bit(float *v)
{
    uint32_t bits;
    memcpy(&bits, v, sizeof bits);
    bits ^= 1;
    memcpy(v, &bits, sizeof bits);
}

Test(trainer, one_bit_in_one_log_prob_is_caught_by_uid_and_position)
{
    open_bed();
    flip_last_bit(&b.responses[13].logprobs[0]); /* group 3: prompt of 8 */
    expect_unchanged(PL_E_NUMERIC, "uid 13 position 8");
}

Test(trainer, samples_without_gradient_are_checked_too)
{
    open_bed();
    flip_last_bit(&b.responses[8].logprobs[2]); /* group 2: equal rewards */
    expect_unchanged(PL_E_NUMERIC, "uid 8 position 9");
}

Test(trainer, later_mini_batches_are_checked_before_the_first_update)
{
    options.ppo_mini_batch_size = 2;
    open_bed();
    flip_last_bit(&b.responses[BED_SAMPLES - 1].logprobs[0]);
    expect_unchanged(PL_E_NUMERIC, "uid 23 position 10");
}

Test(trainer, a_reward_that_is_not_finite_is_refused)
{
    open_bed();
    b.samples[5].reward = NAN;
    expect_unchanged(PL_E_NUMERIC, "reward of uid 5");
}

Test(trainer, an_aborted_sample_is_refused)
{
    open_bed();
    b.responses[5].finish = PL_FINISH_ABORTED;
    expect_unchanged(PL_E_INVAL, "uid 5");
}

Test(trainer, a_sequence_beyond_the_budget_is_refused_at_the_start)
{
    pl_trainer *t = NULL;
    float *masters = NULL;

    open_bed();
    cr_assert_eq(pl_masters_new(&masters, pl_model_params(b.model), &err), PL_OK);
    options.ppo_max_token_len = 64;
    cr_assert_eq(
        pl_trainer_new(&t, b.model, masters, &options, BED_LEN, 1, NULL, &err), PL_E_CONFIG);
    cr_assert_not_null(strstr(err.msg, "ppo_max_token_len 64; set it to 96"), "%s", err.msg);
    bed_close(&b);
}

/* ---- stopping and progress ---- */

typedef struct watch {
    int n_asked, stop_at, n_progress;
    double last;
} watch;

static int asked(void *ctx)
{
    watch *w = ctx;
    return ++w->n_asked == w->stop_at;
}

static void progressed(void *ctx, double done)
{
    watch *w = ctx;
    cr_assert_gt(done, w->last);
    w->last = done;
    w->n_progress++;
}

static pl_status watched_step(watch *w)
{
    return pl_trainer_step(
        b.trainer, 1, b.samples, BED_GROUPS, BED_N, progressed, asked, w, &stats, &err);
}

Test(trainer, a_stop_is_heard_before_the_first_update_only)
{
    watch w = {.stop_at = 0};

    options.ppo_mini_batch_size = 2;
    options.ppo_epochs = 2;
    open_bed();
    float *before = bed_copy(&b);
    for (int at = 1; at <= 3; at++) {
        watch early = {.stop_at = at};
        cr_assert_eq(watched_step(&early), PL_E_STOPPED);
        cr_assert(bed_same(&b, before));
    }
    cr_assert_eq(watched_step(&w), PL_OK, "%s", err.msg);
    cr_assert_lt(w.n_asked, w.n_progress, "not asked once the update has begun");
    cr_assert_eq(w.n_progress, stats.n_micro_batches);
    cr_assert(fabs(w.last - 1) < 1e-9, "progress ends at %g", w.last);
    free(before);
    bed_close(&b);
}

/* ---- mini-batches, epochs, KL, zero variance ---- */

Test(trainer, later_epochs_have_ratios_and_the_check_stays_clean)
{
    options.ppo_mini_batch_size = 4; /* the last one is smaller */
    options.ppo_epochs = 3;
    options.lr = 1e-2;
    open_bed();
    step_ok(1);
    cr_assert_eq(b.trainer->n_updates, 6);
    cr_assert_eq(stats.logprob_mismatches, 0);
    cr_assert_neq(stats.ppo_kl, 0);
    cr_assert_gt(stats.pg_clipfrac, 0);
    bed_close(&b);
}

Test(trainer, equal_rewards_everywhere_leave_the_weights_alone)
{
    options.weight_decay = 0;
    open_bed();
    for (int i = 0; i < BED_SAMPLES; i++)
        b.samples[i].reward = 1;
    float *before = bed_copy(&b);
    step_ok(1);
    cr_assert(bed_same(&b, before));
    cr_assert_eq(stats.grad_norm, 0);
    cr_assert_eq(stats.n_zero_std_groups, BED_GROUPS);
    free(before);
    bed_close(&b);
}

Test(trainer, gradients_of_one_update_do_not_reach_the_next)
{
    open_bed();
    step_ok(1);
    cr_assert_gt(stats.grad_norm, 0);
    bed_sample(&b, 2);
    for (int i = 0; i < BED_SAMPLES; i++)
        b.samples[i].reward = 1;
    step_ok(2);
    cr_assert_eq(stats.grad_norm, 0);
    bed_close(&b);
}

Test(trainer, kl_is_zero_at_the_initial_policy_and_grows_away_from_it)
{
    options.use_kl_loss = 1;
    options.kl_loss_coef = 10;
    open_bed();
    step_ok(1);
    cr_assert_eq(stats.kl_loss, 0, "%g", stats.kl_loss);
    bed_sample(&b, 2);
    for (int i = 0; i < BED_SAMPLES; i++)
        b.samples[i].reward = 1; /* only the KL term pulls now */
    step_ok(2);
    cr_assert_gt(stats.kl_loss, 0);
    cr_assert_gt(stats.grad_norm, 0);
    bed_close(&b);
}

Test(trainer, the_plan_counts_what_is_allocated)
{
    pl_trainer_plan keep, tight;

    open_bed();
    const size_t n = pl_model_params(b.model)->n_elements * sizeof(float);
    memcpy(options.activations, "auto", sizeof "auto");
    pl_trainer_plan_get(pl_model_arch(b.model), &options, BED_LEN, 2, 0, &keep);
    cr_assert_eq(keep.masters, n);
    cr_assert_eq(keep.moments, 2 * n);
    cr_assert_eq(keep.gradients, n);
    cr_assert_eq(keep.reference, 0);
    cr_assert_eq(keep.keep, 1);
    pl_trainer_plan_get(pl_model_arch(b.model), &options, BED_LEN, 2,
        keep.masters + keep.moments + keep.gradients + keep.activations - 1, &tight);
    cr_assert_eq(tight.keep, 0);
    cr_assert_lt(tight.activations, keep.activations);
    bed_close(&b);
}
