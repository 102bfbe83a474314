/* Claims: a trainer that is told so takes samples of another policy, takes the loss's ratios to
 * their log-probs and says how far off they are; it refuses them again when told otherwise; samples
 * of its own policy train to the same bits either way; log-probs that it makes have a rollout's
 * bits. */
#include "tests/trainer/bed.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static bed b;
static pl_error err;
static pl_step_stats stats;

static void begin(void)
{
    pl_actor_options options;

    bed_options(&options);
    bed_open(&b, &options, PL_ISA_AUTO, 2);
    bed_sample(&b, 1);
}

static void end(void)
{
    bed_close(&b);
}

TestSuite(off_policy, .init = begin, .fini = end, .timeout = 300);

/* Log-probs of a policy that gave each token exp(-by) times its share. */
static void lower(float by)
{
    for (int i = 0; i < BED_SAMPLES; i++)
        for (int k = 0; k < b.responses[i].n_tokens; k++)
            b.responses[i].logprobs[k] -= by;
}

Test(off_policy, samples_of_another_policy_are_taken_and_measured)
{
    pl_trainer_set_off_policy(b.trainer, 1);
    lower(0.125f);
    cr_assert_eq(bed_step(&b, 1, &stats, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(stats.logprob_mismatches, stats.n_tokens);
    cr_assert_eq(stats.n_bad, 0);
    cr_assert_float_eq(stats.rollout_kl, -0.125, 1e-5);
    cr_assert_float_eq(stats.rollout_k3, exp(0.125) - 1 - 0.125, 1e-5);
    cr_assert_float_eq(stats.ratio_max_abs_dev, exp(0.125) - 1, 1e-5);
    cr_assert_float_eq(stats.rollout_ess, 1, 1e-6, "all ratios are the same");
    cr_assert_float_eq(stats.ppo_kl, -0.125, 1e-5, "the loss takes the recorded log-probs");

    bed_sample(&b, 2);
    lower(0.125f);
    b.responses[0].logprobs[0] -= 3;
    cr_assert_eq(bed_step(&b, 2, &stats, &err), PL_OK, "%s", err.msg);
    cr_assert_lt(stats.rollout_ess, 0.9, "one token weighs as twenty");

    pl_trainer_set_off_policy(b.trainer, 0);
    bed_sample(&b, 3);
    lower(0.125f);
    cr_assert_eq(bed_step(&b, 3, &stats, &err), PL_E_NUMERIC);
    cr_assert_gt(stats.n_bad, 0);
}

Test(off_policy, its_own_samples_train_to_the_same_bits)
{
    unsigned char with[16], without[16];

    cr_assert_eq(bed_step(&b, 1, &stats, &err), PL_OK, "%s", err.msg);
    pl_trainer_hash(b.trainer, without);
    bed_close(&b);
    begin();
    pl_trainer_set_off_policy(b.trainer, 1);
    cr_assert_eq(bed_step(&b, 1, &stats, &err), PL_OK, "%s", err.msg);
    pl_trainer_hash(b.trainer, with);
    cr_assert_arr_eq(with, without, sizeof with);
    cr_assert_eq(stats.logprob_mismatches, 0);
    cr_assert_eq(stats.rollout_kl, 0);
    cr_assert_eq(stats.rollout_k3, 0);
    cr_assert_eq(stats.rollout_ess, 1);
}

Test(off_policy, log_probs_are_made_with_a_rollouts_bits)
{
    float made[BED_LEN];

    for (int i = 0; i < BED_SAMPLES; i++) {
        const pl_response *r = &b.responses[i];
        cr_assert_eq(pl_trainer_logprobs(b.trainer, r, made, &err), PL_OK, "%s", err.msg);
        cr_assert_arr_eq(made, r->logprobs, (size_t)r->n_tokens * sizeof *made);
    }
    pl_response longer = b.responses[0];
    longer.n_tokens = BED_LEN;
    cr_assert_eq(pl_trainer_logprobs(b.trainer, &longer, made, &err), PL_E_SHAPE);
}
