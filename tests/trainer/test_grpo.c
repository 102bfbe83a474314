/* Claims: advantages, loss, gradient and learning rate are the published formulas, and exact where
 * the laws need it (ratio 1 before the first update, zero for equal rewards). */
#include "trainer/internal.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

static const grpo_coef coef = {.clip_low = 0.8, .clip_high = 1.28, .kl = 0};

static int is_near(double a, double b, double tolerance)
{
    return fabs(a - b) <= tolerance;
}

Test(grpo, advantages_are_the_reward_minus_the_mean_of_the_group)
{
    const float rewards[4] = {1, 0, 0, 1};
    float a[4];

    pl_grpo_advantages(rewards, 4, 0, a);
    for (int k = 0; k < 4; k++)
        cr_assert_eq(a[k], rewards[k] - 0.5f);
    pl_grpo_advantages(rewards, 4, 1, a); /* std of a sample: sqrt(4 * 0.25 / 3) */
    cr_assert(is_near((double)a[0], 0.5 / (sqrt(1.0 / 3) + 1e-6), 1e-6), "%g", (double)a[0]);
    cr_assert_eq(a[1], -a[0]);
}

Test(grpo, equal_rewards_give_exactly_zero)
{
    const float values[] = {0, 1, 0.1f, -3.3f, 1e30f};
    float rewards[7], a[7];

    for (size_t v = 0; v < sizeof values / sizeof values[0]; v++) {
        for (int k = 0; k < 7; k++)
            rewards[k] = values[v];
        for (int n = 1; n <= 7; n++)
            for (int by_std = 0; by_std < 2; by_std++) {
                pl_grpo_advantages(rewards, n, by_std, a);
                for (int k = 0; k < n; k++)
                    cr_assert_eq(a[k], 0, "reward %g, group of %d", (double)values[v], n);
            }
    }
}

Test(grpo, before_an_update_the_ratio_is_one_and_the_gradient_the_advantage)
{
    grpo_terms t;

    grpo_token(&coef, 1.5, -2.25f, -2.25f, NULL, &t);
    cr_assert_eq(t.ratio, 1.0);
    cr_assert_eq(t.d_logprob, -1.5);
    cr_assert_eq(t.pg_loss, -1.5);
    cr_assert_eq(t.is_clipped, 0);
}

Test(grpo, the_ratio_is_clipped_only_where_that_raises_the_loss)
{
    grpo_terms t;

    grpo_token(&coef, 1, -1, -2, NULL, &t); /* e^1 > 1.28, pushed up already */
    cr_assert(t.is_clipped && t.d_logprob == 0);
    cr_assert_eq(t.pg_loss, -1.28);
    grpo_token(&coef, -1, -1, -2, NULL, &t); /* too high and bad: full gradient */
    cr_assert(!t.is_clipped && is_near(t.d_logprob, exp(1), 1e-12));
    grpo_token(&coef, -1, -3, -2, NULL, &t); /* pushed down already */
    cr_assert(t.is_clipped && t.d_logprob == 0);
    cr_assert_eq(t.pg_loss, 0.8);
    grpo_token(&coef, 1, -3, -2, NULL, &t); /* too low and good: full gradient */
    cr_assert(!t.is_clipped && is_near(t.d_logprob, -exp(-1), 1e-12));
    grpo_token(&coef, 0, -1, -2, NULL, &t);
    cr_assert(!t.is_clipped && t.d_logprob == 0 && t.pg_loss == 0);
}

Test(grpo, extreme_ratios_stay_finite)
{
    grpo_terms t;
    const grpo_coef with_kl = {.clip_low = 0.8, .clip_high = 1.28, .kl = 1};
    const float ref = -1;

    grpo_token(&with_kl, -1, -1, -3e38f, &ref, &t);
    cr_assert(isfinite(t.pg_loss) && isfinite(t.d_logprob));
    grpo_token(&with_kl, 1, -3e38f, -1, &ref, &t);
    cr_assert(isfinite(t.pg_loss) && isfinite(t.d_logprob) && isfinite(t.kl_loss));
}

Test(grpo, the_gradient_is_the_derivative_of_the_loss)
{
    const float ref = -1.3f;
    const grpo_coef with_kl = {.clip_low = 0.8, .clip_high = 1.28, .kl = 0.5};
    const float logprobs[] = {-1.5f, -1.45f, -1.75f, -1.3f};
    const float h = 0x1p-10f;

    for (int i = 0; i < 4; i++)
        for (int sign = -1; sign <= 1; sign++) {
            grpo_terms at, above, below;
            grpo_token(&with_kl, sign, logprobs[i], -1.5f, &ref, &at);
            grpo_token(&with_kl, sign, logprobs[i] + h, -1.5f, &ref, &above);
            grpo_token(&with_kl, sign, logprobs[i] - h, -1.5f, &ref, &below);
            const double up = above.pg_loss + with_kl.kl * above.kl_loss;
            const double down = below.pg_loss + with_kl.kl * below.kl_loss;
            cr_assert(is_near((up - down) / (2 * (double)h), at.d_logprob, 1e-3),
                "log-prob %g, advantage %d: %g against %g", (double)logprobs[i], sign,
                (up - down) / (2 * (double)h), at.d_logprob);
        }
}

Test(grpo, k3_is_zero_at_the_reference_and_positive_elsewhere)
{
    const grpo_coef with_kl = {.clip_low = 0.8, .clip_high = 1.28, .kl = 0.5};
    const float ref = -1.25f;
    grpo_terms t;

    grpo_token(&with_kl, 0, ref, ref, &ref, &t);
    cr_assert(t.kl_loss == 0 && t.d_logprob == 0);
    grpo_token(&with_kl, 0, -2.25f, -2.25f, &ref, &t); /* ref - logprob = 1 */
    cr_assert(
        is_near(t.kl_loss, exp(1) - 2, 1e-12) && is_near(t.d_logprob, 0.5 * (1 - exp(1)), 1e-12));
}

/* ---- learning rate ---- */

static pl_actor_options plan(const char *type, int64_t warmup, double ratio)
{
    pl_actor_options o = {.lr = 2e-5, .lr_warmup_steps = warmup, .min_lr_ratio = ratio};
    memcpy(o.lr_scheduler_type, type, strlen(type) + 1);
    return o;
}

Test(schedule, warm_up_is_linear_and_then_it_is_constant)
{
    const pl_actor_options o = plan("constant", 4, 0);

    cr_assert(is_near(schedule_lr(&o, 1, 100), 0.5e-5, 1e-20));
    cr_assert(is_near(schedule_lr(&o, 3, 100), 1.5e-5, 1e-20));
    for (int step = 4; step <= 100; step++)
        cr_assert_eq(schedule_lr(&o, step, 100), 2e-5);
    const pl_actor_options none = plan("constant", 0, 0);
    cr_assert_eq(schedule_lr(&none, 1, 0), 2e-5);
}

Test(schedule, cosine_runs_from_the_full_rate_to_its_floor)
{
    const pl_actor_options o = plan("cosine", 10, 0.1);

    cr_assert(is_near(schedule_lr(&o, 10, 110), 2e-5, 1e-18));
    cr_assert(is_near(schedule_lr(&o, 60, 110), 2e-5 * 0.55, 1e-18));
    cr_assert(is_near(schedule_lr(&o, 110, 110), 2e-6, 1e-18));
    cr_assert(is_near(schedule_lr(&o, 200, 110), 2e-6, 1e-18), "a run that goes on stays there");
    for (int step = 10; step < 110; step++)
        cr_assert_gt(schedule_lr(&o, step, 110), schedule_lr(&o, step + 1, 110));
    cr_assert_eq(schedule_lr(&o, 10, 10), 2e-5, "no step left to fall in");
}
