/* cli/run.h - the parts of `paceline run`. */
#ifndef PL_CLI_RUN_H
#define PL_CLI_RUN_H

#include "cli/cli.h"
#include "core/json.h"
#include "monitor/monitor.h"
#include "rollout/rollout.h"
#include "trainer/trainer.h"

/* ---- configuration: sections of the modules and those of the run itself ---- */

typedef struct run_rollout_options { /* actor_rollout_ref.rollout.*, actor_rollout_ref.model.* */
    char model_path[PL_CONFIG_STR];
    int64_t n, top_k, seed, max_num_seqs, max_rows, num_workers, val_n;
    double temperature, top_p, min_p, val_temperature;
    int ignore_eos;
} run_rollout_options;

typedef struct run_speculative_options { /* speculative.* */
    int enable;
    char method[PL_CONFIG_STR], controller[PL_CONFIG_STR];
    int64_t max_depth, max_rows, suffix_min_match, suffix_max_tokens;
    double suffix_decay;
} run_speculative_options;

typedef struct run_trainer_options { /* trainer.* */
    int64_t total_training_steps, save_freq, test_freq, max_ckpt_to_keep, threads, compare_prompts;
    int val_before_train;
    char default_local_dir[PL_CONFIG_STR], experiment_name[PL_CONFIG_STR];
    char resume_mode[PL_CONFIG_STR], isa[PL_CONFIG_STR];
} run_trainer_options;

typedef struct run_config {
    pl_data_options data;
    run_rollout_options rollout;
    pl_actor_options actor;
    run_speculative_options speculative;
    run_trainer_options trainer;
} run_config;

enum { RUN_SECTIONS = 5 };
void run_config_sections(run_config *c, pl_config_section sections[RUN_SECTIONS]);
/* Defaults, file (NULL: none), overrides; then what one key alone cannot tell. */
pl_status run_config_load(
    run_config *c, const char *path, char *const *overrides, int n, pl_error *err);
/* Write RUN/config.yaml, resolved. */
pl_status run_config_write(const run_config *c, pl_error *err);
/* Hash of the keys that decide the bits of the weights, besides code and numeric class. */
uint64_t run_config_hash(const run_config *c);
/* The same of the prompts themselves, not of their file's name. */
uint64_t run_data_hash(const pl_dataset *d);
/* The engine's options that the configuration asks for, with max_ctx for the longest prompt. */
void run_engine_options(const run_config *c, int longest_prompt, pl_engine_options *o);

/* ---- memory ---- */

typedef struct run_plan {
    size_t weights, optimizer, gradients, activations, reference, passes, other, total;
    int keep; /* activations */
} run_plan;
void run_plan_make(
    const run_config *c, const pl_arch *a, int longest_prompt, int n_threads, run_plan *out);
void run_plan_print(const run_plan *p, FILE *out);
/* Errors: PL_E_NOMEM when the machine has less than the plan. */
pl_status run_plan_check(const run_plan *p, pl_error *err);

/* ---- what the user sees ---- */

typedef struct run_report {
    int is_tty; /* stderr: a progress bar may be drawn */
    double t0;  /* when the command began, monotonic seconds */
} run_report;
double run_seconds(void);
void run_progress(const run_report *r, const char *phase, double done, const char *detail);
void run_progress_clear(const run_report *r);

/* One finished step as a line of the table; a heading goes before the first. */
typedef struct run_step_line {
    int64_t step, total;
    double reward, length_mean, rate, acceptance, rollout_s, update_s;
    int length_max;
} run_step_line;
void run_print_step(const run_step_line *l, int with_heading);

/* The same prompts with speculation on and off. */
typedef struct run_comparison {
    int n_samples, n_different; /* samples whose tokens or log-probs differ: 0 by law */
    int64_t n_tokens;
    double on_s, off_s, acceptance;
} run_comparison;
void run_print_closing(
    double before, double after, const pl_engine_stats *all, const run_comparison *c);

/* ---- rollouts ---- */

/* One batch of responses, kept in uid order. */
typedef struct run_batch {
    const pl_prompt **prompts; /* [n_groups] */
    int n_groups, n;           /* samples a group */
    uint32_t first_uid;
    pl_response *responses; /* [n_groups * n] owned */
    pl_sample *samples;     /* [n_groups * n] */
    int n_done;
    int64_t n_tokens; /* so far */
    double seconds;
    pl_engine_stats stats;
    /* of the collection at hand */
    const run_report *report;
    const char *phase;
    int room; /* responses that the arrays hold */
    pl_error err;
} run_batch;

typedef struct run_sampling {
    float temperature, top_p, min_p;
    int top_k, max_tokens, ignore_eos;
    uint64_t seed;
    uint32_t purpose;
} run_sampling;

/* Generate n samples of each prompt, decode and score them.  Errors: PL_E_STOPPED after a signal;
 * those of the engine and of the rewards. */
pl_status run_batch_collect(
    run_batch *b, pl_engine *e, const pl_tokenizer *tok, const run_sampling *s, pl_error *err);
void run_batch_done(run_batch *b);
double run_batch_reward(const run_batch *b);

/* ---- figures ---- */

typedef struct run_lengths {
    double mean, clipped; /* tokens; share cut off at the limit */
    double reward_max, reward_min;
    int max, min;
} run_lengths;
run_lengths run_measure_lengths(const run_batch *b);
/* 1 + accepted / verify steps, a ratio of sums. */
double run_acceptance_length(const pl_engine_stats *s);
/* One line of metrics.jsonl. */
pl_status run_record_step(pl_metrics *metrics, int64_t step, const run_batch *b,
    const pl_step_stats *u, double step_s, pl_error *err);

#endif
