/* trainer/trainer.h - GRPO: prompts in, rewards, advantages, loss, optimizer, checkpoints. */
#ifndef PL_TRAINER_TRAINER_H
#define PL_TRAINER_TRAINER_H

#include "core/config.h"
#include "core/error.h"
#include "core/log.h"
#include "ipc/schema.h"
#include "model/model.h"
#include "model/tokenizer.h"
#include "model/train.h"
#include "trainer/audit.h"

#include <stddef.h>
#include <stdint.h>

/* ---- options: the tables in trainer/options.c are the truth ---- */

typedef struct pl_data_options {
    char train_files[PL_CONFIG_STR], val_files[PL_CONFIG_STR];
    int64_t train_batch_size;    /* prompts a step */
    int64_t max_prompt_length;   /* tokens */
    int64_t max_response_length; /* tokens */
    int shuffle;
    int64_t seed;
} pl_data_options;
extern const pl_config_key pl_data_keys[]; /* section "data" */

typedef struct pl_actor_options { /* actor_rollout_ref.actor.*, algorithm.* */
    double lr, weight_decay, beta1, beta2, eps, grad_clip;
    int64_t lr_warmup_steps;
    char lr_scheduler_type[PL_CONFIG_STR]; /* constant | cosine */
    double min_lr_ratio;                   /* cosine ends at lr * this */
    int64_t ppo_mini_batch_size;           /* prompts of one optimizer step; 0: all of the step */
    int64_t ppo_epochs;
    int64_t ppo_max_token_len; /* packed tokens of one micro-batch */
    double clip_ratio_low, clip_ratio_high;
    char loss_agg_mode[PL_CONFIG_STR]; /* token-mean | seq-mean-token-mean */
    int use_kl_loss;
    double kl_loss_coef;               /* to the frozen initial policy */
    char kl_loss_type[PL_CONFIG_STR];  /* low_var_kl: the k3 estimate */
    char adv_estimator[PL_CONFIG_STR]; /* grpo */
    int norm_adv_by_std_in_grpo;
    char activations[PL_CONFIG_STR]; /* auto | keep | recompute */
} pl_actor_options;
extern const pl_config_key pl_actor_keys[];

typedef struct pl_reward_options {
    char command[PL_CONFIG_STR]; /* trainer/reward_command.h; empty: the verifiers of this module */
    double timeout;              /* seconds a sample */
    double timeout_value;
    int64_t memory_mb; /* MiB; 0: no limit */
} pl_reward_options;
extern const pl_config_key pl_reward_keys[]; /* section "reward" */

/* ---- dataset ---- */

typedef struct pl_prompt {
    char *data_source, *ground_truth, *extra_info; /* JSON text of extra_info, or NULL */
    int n_messages;
    pl_message *messages;
    char *messages_json; /* compact JSON of the messages, for the record */
    int n_ids;
    int32_t *ids; /* rendered by the chat template */
    int line;     /* in the file, from 1 */
    uint64_t key; /* XXH3 of ids */
} pl_prompt;

typedef struct pl_dataset {
    int n;
    pl_prompt *prompts;
} pl_dataset;

/* Read JSONL with the record of NAMES 5.4; a prompt may also be a plain string (one user message).
 * Errors: PL_E_FORMAT "file:line: ..." (empty line, broken JSON, missing field), PL_E_CONFIG for an
 * unknown data_source, PL_E_SHAPE for a prompt over max_prompt tokens (0: no limit). */
pl_status pl_dataset_open(
    pl_dataset **out, const char *path, const pl_tokenizer *tok, int max_prompt, pl_error *err);
pl_status pl_dataset_parse(pl_dataset **out, const char *text, size_t n_bytes, const char *name,
    const pl_tokenizer *tok, int max_prompt, pl_error *err); /* tok NULL: ids stay empty */
/* As pl_dataset_open, for rewards by a command: any data_source and any ground_truth will do. */
pl_status pl_dataset_open_any(
    pl_dataset **out, const char *path, const pl_tokenizer *tok, int max_prompt, pl_error *err);
void pl_dataset_free(pl_dataset *d);
/* Index of the prompt that stands at ordinal i of the run: epoch i / n, shuffled anew each epoch by
 * keyed noise (purpose 4).  A pure function. */
int pl_dataset_order(const pl_dataset *d, int64_t i, int shuffle, int64_t seed);

/* ---- rewards: pure functions, bounded in work ---- */

/* Score by data_source: "exact", "last_number", "boxed", "gsm8k" (####), "answer_tag": 1 or 0;
 * "words_once": the share of the words of the ground truth that the solution has exactly once.
 * Errors: PL_E_CONFIG naming an unknown data_source and the known ones. */
pl_status pl_reward_score(const char *data_source, const char *solution, size_t n_solution,
    const char *ground_truth, float *score, pl_error *err);
/* PL_OK when the verifier exists. */
pl_status pl_reward_check(const char *data_source, pl_error *err);

/* ---- the step ---- */

/* Group-relative advantages (Shao et al. 2024, arXiv 2402.03300): reward minus the group's mean, in
 * k order, divided by (std + 1e-6) when by_std; std is that of a sample (n - 1), as in verl.  A
 * group of equal rewards, or of one, gets zeros.  rewards, out [n]. */
void pl_grpo_advantages(const float *rewards, int n, int by_std, float *out);

typedef struct pl_trainer pl_trainer;

/* One sample with what the trainer adds to it. */
typedef struct pl_sample {
    const pl_response *response; /* borrowed */
    const pl_prompt *prompt;     /* borrowed */
    float reward, advantage;
    char *text; /* decoded, special tokens skipped; owned by the caller */
    size_t n_text;
    int32_t *token_ends; /* [n_tokens] where a token's text ends, bytes; as text; NULL: not known */
    pl_audit audit;      /* set by pl_trainer_step: what is wrong with it */
    int audit_position;  /* where: absolute, in prompt and response; 0: the whole */
} pl_sample;

typedef struct pl_step_stats { /* names: NAMES 5.3 */
    double pg_loss, kl_loss, pg_clipfrac, ppo_kl, entropy, grad_norm, lr;
    double ratio_max_abs_dev;   /* max |ratio - 1| before the first update: 0 by law 1 */
    int64_t logprob_mismatches; /* tokens whose bits differ from the rollout's: 0 by law 1 */
    int64_t n_redrawn;          /* tokens that the audit drew anew */
    int n_bad;                  /* samples whose audit is not PL_AUDIT_OK: 0 but on failure */
    int64_t n_tokens;           /* trained response tokens, zero-variance groups included */
    int n_groups, n_zero_std_groups;
    int n_micro_batches;
    double update_s;
    /* The policy before the first update against the rollout's log-probs, all response tokens: mean
     * of rollout minus policy, its k3 estimate, effective share of the samples when tokens are
     * weighed by their ratio.  0, 0, 1 by law 1. */
    double rollout_kl, rollout_k3, rollout_ess;
} pl_step_stats;

/* A zeroed flat fp32 array for the param table, for pl_model_load to fill.  Pair: pl_masters_free.
 */
pl_status pl_masters_new(float **out, const pl_param_table *params, pl_error *err);
void pl_masters_free(float *masters);

/* Masters and moments in fp32; *borrows* the model (made with_backward), which is packed anew after
 * every update.  masters (of pl_masters_new, or malloc) are *taken*, also on failure.  The
 * reference of use_kl_loss is made from them here, so a resumed run makes its trainer from the
 * initial model too and then calls pl_checkpoint_load.  o->activations: the caller resolves "auto"
 * by pl_trainer_plan_get; left as it is, it means recompute.  max_len: longest sequence.
 * total_steps: of the run, for the cosine. Errors: PL_E_CONFIG (a sequence does not fit
 * ppo_max_token_len), PL_E_NOMEM. */
pl_status pl_trainer_new(pl_trainer **out, pl_model *model, float *masters,
    const pl_actor_options *o, int max_len, int64_t total_steps, const pl_log *log, pl_error *err);
/* From the next step on train with o, as a run that was resumed with other keys does; activations
 * stay as they are.  Errors: PL_E_CONFIG when ppo_max_token_len is more than, or use_kl_loss other
 * than, what pl_trainer_new took memory for (less is well); nothing has changed then. */
pl_status pl_trainer_set_options(
    pl_trainer *t, const pl_actor_options *o, int64_t total_steps, pl_error *err);
void pl_trainer_free(pl_trainer *t);
/* Bytes by part, for the plan that is printed before it is taken.  memory_limit: what they may take
 * together before "auto" gives up keeping activations; 0: no limit. */
typedef struct pl_trainer_plan {
    size_t masters, moments, gradients, activations, reference;
    int keep; /* activations are kept (1) or recomputed (0) */
} pl_trainer_plan;
void pl_trainer_plan_get(const pl_arch *a, const pl_actor_options *o, int max_len, int n_threads,
    size_t memory_limit, pl_trainer_plan *out);
float *pl_trainer_masters(pl_trainer *t);
/* XXH3-128 of the fp32 masters in the order of the param table: names the policy to the bit, the
 * same for every number of workers, threads and instruction sets of one numeric class. */
void pl_trainer_hash(const pl_trainer *t, unsigned char out[16]);

/* Advantages, loss, gradients, update; step counts from 1.  samples: group by group in k order, n
 * samples a group (so in uid order); their advantage and audit are set.  progress (may be NULL) is
 * called after each micro-batch with the done share. should_stop (may be NULL) is asked before the
 * first update only: then PL_E_STOPPED, nothing changed.
 *
 * All samples are checked before the first update: their log-probs, and all else when an audit is
 * set.  If any is bad: PL_E_NUMERIC naming the first (uid and position), n_bad of them, each with
 * its audit, and nothing has changed; call again with true samples.  Other errors, n_bad 0:
 * PL_E_NUMERIC (a gradient is not finite), PL_E_INVAL or PL_E_SHAPE (without audit: a sample that
 * is not whole or too long). */
typedef void (*pl_progress_fn)(void *ctx, double done);
typedef int (*pl_stop_fn)(void *ctx);
pl_status pl_trainer_step(pl_trainer *t, int64_t step, pl_sample *samples, int n_groups, int n,
    pl_progress_fn progress, pl_stop_fn should_stop, void *ctx, pl_step_stats *stats,
    pl_error *err);
/* is_off: from the next step on the samples are another policy's.  The ratios of the loss are taken
 * to the log-probs that they came with; those that differ are counted, and none is bad for it.  A
 * new trainer has 0. */
void pl_trainer_set_off_policy(pl_trainer *t, int is_off);
/* Log-probs of the response's tokens under the policy as it is now, at r->temperature, with the
 * bits that a rollout would have: out [r->n_tokens].  r->logprobs is not read.  Errors: PL_E_SHAPE
 * (empty, or too long for this trainer), PL_E_NUMERIC. */
pl_status pl_trainer_logprobs(pl_trainer *t, const pl_response *r, float *out, pl_error *err);

/* ---- checkpoints (DESIGN 6): written beside, committed by rename, complete or absent ---- */

typedef struct pl_run_state {
    int64_t step;              /* steps done */
    int64_t next_group;        /* ordinal of the next prompt group */
    int64_t samples_per_group; /* uid = ordinal * this + k: fixed for a run */
    uint32_t policy_version;
    uint64_t config_hash;    /* of the keys that decide the bits */
    unsigned char trace[32]; /* head of the trace with that step in it; zeros: none is kept. Written
                                for who verifies the trace, not read back */
    double val_before;       /* held-out reward before the first step; NaN: not measured */
    double elapsed_s;
} pl_run_state;

/* Write RUN/checkpoints/global_step_N/{policy/,optimizer.safetensors,state.json}, and drafter/ of
 * the files of a drafter's directory (NULL: none; one that is gone is logged), move RUN/latest
 * (text "global_step_N") and checkpoints/latest_checkpointed_iteration.txt, keep the newest
 * max_keep (0: all).  Errors: PL_E_IO (disk full: the older checkpoints stay whole, nothing is left
 * behind). */
pl_status pl_checkpoint_save(const char *run_dir, const pl_trainer *t, const pl_tokenizer *tok,
    const char *drafter, const pl_run_state *s, int max_keep, pl_error *err);
/* Find the newest whole checkpoint (every file has the size and the hash that state.json tells).
 * PL_E_NOENT when there is none; PL_E_FORMAT when there are some and none is whole.  On PL_OK
 * err->msg is empty, or tells which newer ones were damaged and passed over: log it. */
pl_status pl_checkpoint_find(const char *run_dir, char *dir, size_t dir_size, pl_error *err);
/* Read masters and moments back, bit for bit, and pack the model.  Errors: PL_E_FORMAT (damaged, or
 * of another numeric class), PL_E_SHAPE (another architecture); the trainer must not be used then.
 */
pl_status pl_checkpoint_load(const char *dir, pl_trainer *t, pl_run_state *s, pl_error *err);

/* ---- records (NAMES 5.7) ---- */

/* RUN/rollouts/step_%06d.jsonl.zst, one sample a line in uid order; written whole or not at all. */
pl_status pl_rollouts_write(const char *run_dir, int64_t step, const pl_sample *samples, int n,
    uint32_t policy_version, pl_error *err);

/* Rollouts read back, of a run or of another system: hostile until parsed. */
typedef struct pl_rollouts {
    int64_t step;       /* of the records; 0: they do not tell */
    int n;              /* samples, in the order of the file */
    pl_sample *samples; /* [n] reward as recorded; response and prompt point into the object */
    int n_groups;       /* consecutive samples with the same prompt_ids, or the same uid / n */
    int group_size;     /* samples a group when all have the same; else 0 */
    int has_logprobs;   /* every sample has them; else responses' are NULL */
} pl_rollouts;
/* Read a JSONL file of rollout records, plain or compressed with zstd (told apart by its first
 * bytes).  Needed of a line: tokens and prompt_ids, or (with tok) prompt (messages or a string) and
 * text or response; reward; all else is taken when it is there.  Ids must be below n_vocab.
 * *owned*: pl_rollouts_free.  max_tokens: of a prompt and response together.
 * Errors: PL_E_FORMAT "file:line: ..." (broken JSON, ids out of range, lengths that differ, a torn
 * or damaged frame, more than 2^20 samples), PL_E_SHAPE, PL_E_NOENT, PL_E_IO, PL_E_NOMEM. */
pl_status pl_rollouts_read(pl_rollouts **out, const char *path, const pl_tokenizer *tok,
    int n_vocab, int max_tokens, pl_error *err);
void pl_rollouts_free(pl_rollouts *r); /* accepts NULL */

#endif
