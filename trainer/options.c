/* trainer/options.c - the option tables: type, range, default and meaning of each key, with the
 * names and the defaults of verl where it has the thing. */
#include "trainer/trainer.h"

#define DATA(field)   offsetof(pl_data_options, field)
#define ACTOR(field)  offsetof(pl_actor_options, field)
#define REWARD(field) offsetof(pl_reward_options, field)

enum { MAX_TOKENS = 1 << 20 }; /* of a prompt, a response, a micro-batch */

const pl_config_key pl_data_keys[] = {
    {"data.train_files", DATA(train_files), PL_STRING, 0, 0, "", NULL,
        "JSONL file of the prompts that are trained on"},
    {"data.val_files", DATA(val_files), PL_STRING, 0, 0, "", NULL,
        "JSONL file of the held-out prompts; empty: no evaluation"},
    {"data.train_batch_size", DATA(train_batch_size), PL_INT, 1, 65536, "8", NULL,
        "prompts of a step"},
    {"data.max_prompt_length", DATA(max_prompt_length), PL_INT, 1, MAX_TOKENS, "512", NULL,
        "longest prompt with its chat template, tokens; a longer one is an error"},
    {"data.max_response_length", DATA(max_response_length), PL_INT, 1, MAX_TOKENS, "512", NULL,
        "longest response, tokens; it is cut off there"},
    {"data.shuffle", DATA(shuffle), PL_BOOL, 0, 0, "true", NULL,
        "shuffle the prompts anew each epoch, by data.seed"},
    {"data.seed", DATA(seed), PL_INT, 0, 9007199254740991.0, "0", NULL, "keys the shuffling"},
    {NULL, 0, PL_INT, 0, 0, NULL, NULL, NULL},
};

#define OPTIM "actor_rollout_ref.actor.optim."
#define A     "actor_rollout_ref.actor."

const pl_config_key pl_actor_keys[] = {
    {OPTIM "lr", ACTOR(lr), PL_FLOAT, 0, 1, "1e-6", NULL, "learning rate of AdamW"},
    {OPTIM "weight_decay", ACTOR(weight_decay), PL_FLOAT, 0, 10, "0.01", NULL,
        "decoupled weight decay of the matrices; norm gains have none"},
    {OPTIM "beta1", ACTOR(beta1), PL_FLOAT, 0, 0.999999, "0.9", NULL, "decay of the first moment"},
    {OPTIM "beta2", ACTOR(beta2), PL_FLOAT, 0, 0.99999999, "0.999", NULL,
        "decay of the second moment"},
    {OPTIM "eps", ACTOR(eps), PL_FLOAT, 1e-30, 1, "1e-8", NULL,
        "added to the root of the second moment"},
    {OPTIM "lr_warmup_steps", ACTOR(lr_warmup_steps), PL_INT, 0, 1e9, "0", NULL,
        "steps of linear warm-up; step 1 runs at lr / lr_warmup_steps"},
    {OPTIM "lr_scheduler_type", ACTOR(lr_scheduler_type), PL_ENUM, 0, 0, "constant",
        "constant|cosine", "learning rate after the warm-up"},
    {OPTIM "min_lr_ratio", ACTOR(min_lr_ratio), PL_FLOAT, 0, 1, "0", NULL,
        "cosine ends at lr times this, at the last step of the run"},
    {A "grad_clip", ACTOR(grad_clip), PL_FLOAT, 0, 1e9, "1.0", NULL,
        "largest norm of the whole gradient; 0: no clipping"},
    {A "ppo_mini_batch_size", ACTOR(ppo_mini_batch_size), PL_INT, 0, 65536, "0", NULL,
        "prompts of one optimizer update; 0: all of the step"},
    {A "ppo_epochs", ACTOR(ppo_epochs), PL_INT, 1, 100, "1", NULL,
        "passes over the samples of a step"},
    {A "ppo_max_token_len", ACTOR(ppo_max_token_len), PL_INT, 32, MAX_TOKENS, "2048", NULL,
        "packed tokens of one micro-batch; part of the numeric result"},
    {A "clip_ratio_low", ACTOR(clip_ratio_low), PL_FLOAT, 0, 1, "0.2", NULL,
        "the ratio is clipped at 1 minus this"},
    {A "clip_ratio_high", ACTOR(clip_ratio_high), PL_FLOAT, 0, 100, "0.28", NULL,
        "the ratio is clipped at 1 plus this"},
    {A "loss_agg_mode", ACTOR(loss_agg_mode), PL_ENUM, 0, 0, "token-mean",
        "token-mean|seq-mean-token-mean", "mean over all tokens, or over samples of their means"},
    {A "use_kl_loss", ACTOR(use_kl_loss), PL_BOOL, 0, 0, "false", NULL,
        "add the KL divergence to the initial policy to the loss"},
    {A "kl_loss_coef", ACTOR(kl_loss_coef), PL_FLOAT, 0, 1000, "0.001", NULL,
        "weight of that divergence"},
    {A "kl_loss_type", ACTOR(kl_loss_type), PL_ENUM, 0, 0, "low_var_kl", "low_var_kl",
        "its estimate a token; low_var_kl is k3"},
    {A "activations", ACTOR(activations), PL_ENUM, 0, 0, "auto", "auto|keep|recompute",
        "keep the activations of every layer for the backward pass, or compute them twice; auto: "
        "keep when the memory plan allows"},
    {"algorithm.adv_estimator", ACTOR(adv_estimator), PL_ENUM, 0, 0, "grpo", "grpo",
        "how rewards become advantages"},
    {"algorithm.norm_adv_by_std_in_grpo", ACTOR(norm_adv_by_std_in_grpo), PL_BOOL, 0, 0, "true",
        NULL, "divide the advantages of a group by its standard deviation"},
    {NULL, 0, PL_INT, 0, 0, NULL, NULL, NULL},
};

const pl_config_key pl_reward_keys[] = {
    {"reward.command", REWARD(command), PL_STRING, 0, 0, "", NULL,
        "command line, run by /bin/sh, that scores samples: JSON lines in and out; empty: the "
        "built-in verifiers, by data_source"},
    {"reward.timeout", REWARD(timeout), PL_FLOAT, 0.001, 1e6, "300", NULL,
        "seconds that the command may take for a sample; it gets a second try at four times this"},
    {"reward.timeout_value", REWARD(timeout_value), PL_FLOAT, -1e9, 1e9, "0", NULL,
        "reward of a sample that the command failed to score twice; it is marked"},
    {"reward.memory_mb", REWARD(memory_mb), PL_INT, 0, 1e9, "4096", NULL,
        "address space of each process of the command, MiB; 0: no limit"},
    {NULL, 0, PL_INT, 0, 0, NULL, NULL, NULL},
};
