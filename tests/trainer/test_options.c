/* Claims: the tables give the field's defaults, name no key twice, and refuse what is out of range.
 */
#include "trainer/trainer.h"

#include <criterion/criterion.h>
#include <string.h>

static pl_data_options data;
static pl_actor_options actor;
static pl_reward_options reward;
static pl_error err;

static pl_status load(const char *text)
{
    const pl_config_section sections[] = {
        {pl_data_keys, &data}, {pl_actor_keys, &actor}, {pl_reward_keys, &reward}};
    static const pl_config_alias none[] = {{NULL, NULL}};
    return pl_config_parse(sections, 3, none, text, strlen(text), "c.yaml", &err);
}

Test(options, defaults_are_those_of_the_field)
{
    cr_assert_eq(load("{}"), PL_OK, "%s", err.msg);
    cr_assert_eq(actor.lr, 1e-6);
    cr_assert_eq(actor.beta1, 0.9);
    cr_assert_eq(actor.beta2, 0.999);
    cr_assert_eq(actor.eps, 1e-8);
    cr_assert_eq(actor.weight_decay, 0.01);
    cr_assert_eq(actor.grad_clip, 1.0);
    cr_assert_eq(actor.clip_ratio_low, 0.2);
    cr_assert_eq(actor.clip_ratio_high, 0.28);
    cr_assert_eq(actor.ppo_epochs, 1);
    cr_assert_eq(actor.ppo_max_token_len, 2048);
    cr_assert_eq(actor.use_kl_loss, 0);
    cr_assert_eq(actor.norm_adv_by_std_in_grpo, 1);
    cr_assert_str_eq(actor.loss_agg_mode, "token-mean");
    cr_assert_str_eq(actor.adv_estimator, "grpo");
    cr_assert_str_eq(actor.lr_scheduler_type, "constant");
    cr_assert_str_eq(actor.activations, "auto");
    cr_assert_eq(data.shuffle, 1);
    cr_assert_str_eq(data.train_files, "");
    cr_assert_str_eq(reward.command, "");
    cr_assert_eq(reward.timeout, 300);
    cr_assert_eq(reward.timeout_value, 0);
    cr_assert_eq(reward.memory_mb, 4096);
}

Test(options, every_key_has_help_and_stands_once)
{
    const pl_config_key *const tables[] = {pl_data_keys, pl_actor_keys, pl_reward_keys};

    for (int t = 0; t < 3; t++)
        for (const pl_config_key *a = tables[t]; a->key; a++) {
            cr_assert_gt(strlen(a->help), 10, "%s", a->key);
            for (const pl_config_key *o = a + 1; o->key; o++) {
                cr_assert_str_neq(a->key, o->key);
                cr_assert_neq(a->offset, o->offset, "%s and %s", a->key, o->key);
            }
        }
}

Test(options, values_out_of_range_are_refused)
{
    static const char *const texts[] = {"data:\n  train_batch_size: 0\n",
        "actor_rollout_ref:\n  actor:\n    ppo_epochs: 0\n",
        "actor_rollout_ref:\n  actor:\n    clip_ratio_low: -0.1\n",
        "actor_rollout_ref:\n  actor:\n    optim:\n      lr: 2\n",
        "actor_rollout_ref:\n  actor:\n    loss_agg_mode: seq-sum\n",
        "algorithm:\n  adv_estimator: gae\n", "reward:\n  timeout: 0\n",
        "reward:\n  memory_mb: -1\n"};

    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        cr_expect_eq(load(texts[i]), PL_E_CONFIG, "%s", texts[i]);
    cr_assert_eq(
        load("actor_rollout_ref:\n  actor:\n    optim:\n      lr: 2e-5\n"), PL_OK, "%s", err.msg);
    cr_assert_eq(actor.lr, 2e-5);
}
