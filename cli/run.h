/* cli/run.h - the parts of `paceline run`. */
#ifndef PL_CLI_RUN_H
#define PL_CLI_RUN_H

#include "cli/cli.h"
#include "core/json.h"
#include "ipc/ipc.h"
#include "monitor/monitor.h"
#include "rollout/rollout.h"
#include "rollout/trace.h"
#include "trainer/reward_command.h"
#include "trainer/spot.h"
#include "trainer/trainer.h"

/* ---- configuration: sections of the modules and those of the run itself ---- */

typedef struct run_rollout_options { /* actor_rollout_ref.rollout.*, actor_rollout_ref.model.* */
    char model_path[PL_CONFIG_STR];
    int64_t n, top_k, seed, max_num_seqs, max_rows, num_workers, val_n;
    int64_t heartbeat_timeout, consolidate_below;
    double temperature, top_p, min_p, val_temperature;
    int ignore_eos;
} run_rollout_options;

typedef struct run_speculative_options { /* speculative.* */
    int enable;
    char method[PL_CONFIG_STR], controller[PL_CONFIG_STR];
    int64_t max_depth, max_rows, suffix_min_match, suffix_max_tokens;
    double suffix_decay;
    /* the learned drafter: where it begins, its trees, its training */
    char init[PL_CONFIG_STR];
    int64_t spec_steps, spec_topk, window;
    int train;
    int64_t buffer_mb, batch, gate_seconds, gate_tokens, gate_samples, min_workers, max_versions;
    int64_t session_seconds;
    double lr, slice;
} run_speculative_options;

typedef struct run_trainer_options { /* trainer.* */
    int64_t total_training_steps, save_freq, test_freq, max_ckpt_to_keep, threads, compare_prompts;
    int64_t stall_seconds;
    double audit;
    int val_before_train, trace;
    char default_local_dir[PL_CONFIG_STR], experiment_name[PL_CONFIG_STR];
    char resume_mode[PL_CONFIG_STR], isa[PL_CONFIG_STR];
} run_trainer_options;

enum { RUN_TRAINER_WORDS = 56 };
typedef struct run_supervise_options {
    const char *listen, *keys; /* NULL: this machine only */
    char *const *trainer;      /* [n_trainer] what the trainer's process is told, at most
                                  RUN_TRAINER_WORDS; NULL: to train */
    int n_trainer;
} run_supervise_options;

typedef struct run_config {
    pl_data_options data;
    run_rollout_options rollout;
    pl_actor_options actor;
    run_speculative_options speculative;
    run_trainer_options trainer;
    pl_reward_options reward;
    run_supervise_options wire; /* of the command line, not of the file */
} run_config;

enum { RUN_SECTIONS = 6 };
void run_config_sections(run_config *c, pl_config_section sections[RUN_SECTIONS]);
/* Defaults, file (NULL: none), overrides; then what one key alone cannot tell. */
pl_status run_config_load(
    run_config *c, const char *path, char *const *overrides, int n, pl_error *err);
/* A resolved one from memory; name stands in messages. */
pl_status run_config_parse(
    run_config *c, const char *text, size_t n_bytes, const char *name, pl_error *err);
/* 1 when RUN/config.yaml says the same. */
int run_config_is_written(const run_config *c);
/* Write RUN/config.yaml, resolved. */
pl_status run_config_write(const run_config *c, pl_error *err);
/* Hash of the keys that decide the bits of the weights, besides code and numeric class. */
uint64_t run_config_hash(const run_config *c);
/* The same of the prompts themselves, not of their file's name. */
uint64_t run_data_hash(const pl_dataset *d);
/* The engine's options that the configuration asks for. */
void run_engine_options(const run_config *c, int max_ctx, pl_engine_options *o);

/* 1: a learned drafter drafts beside the suffix drafter. */
int run_has_learned(const run_config *c);

/* ---- prompts ---- */

typedef struct run_data {
    pl_dataset *train, *val; /* val NULL: nothing held out */
} run_data;
/* Errors: those of pl_dataset_open; PL_E_CONFIG (no such verifier; too long for n_ctx). */
pl_status run_data_open(
    run_data *d, const run_config *c, const pl_tokenizer *tok, int n_ctx, pl_error *err);
void run_data_close(run_data *d);
int run_data_longest(const run_data *d); /* prompt, tokens */

/* ---- memory ---- */

typedef struct run_plan {
    size_t weights, optimizer, gradients, activations, reference, passes, workers, drafter, other,
        total;
    int n_workers;
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
void run_print_heading(const run_config *c, const cli_model *m, const run_data *d);
void run_print_step(const run_step_line *l, int with_heading);

/* The same prompts by each way of drafting. */
enum { RUN_ARMS = 4 };
typedef struct run_arm {
    pl_speculate how;
    double seconds;        /* of all rounds, as the figures of */
    pl_engine_stats stats; /* accepted tokens and verify steps; the rest is zero */
} run_arm;
typedef struct run_comparison {
    int n_samples, n_different; /* samples whose tokens or log-probs differ in the worst of the
                                   rollouts: 0 by law */
    int n_rounds;               /* of all arms in turn, as many as about ten seconds an arm hold */
    int64_t n_tokens;           /* of one round */
    int n_arms;                 /* the first is PL_SPECULATE_OFF; 0: nothing was compared */
    int lacks_version;          /* of the learned drafter, none of which passed the gate */
    run_arm arms[RUN_ARMS];
} run_comparison;
void run_print_closing(
    double before, double after, const pl_engine_stats *all, const run_comparison *c);

/* ---- the learned drafter of one engine: drafts, is recorded for, trained and exchanged ---- */

typedef struct run_drafting run_drafting;

/* What became of it in one batch; of a run of workers, of all of them. */
typedef struct run_draft_figures {
    uint32_t version; /* that drafts at the end; 0: none, or the first one */
    /* Sessions that workers left since the step before was told: how many, how long the core took
     * to be free in all and at most. */
    int64_t n_halts;
    double halt_s, halt_ms;
    double idle_s;                          /* of workers, from their drain to the last response */
    double train_s, gate_s, pack_s, wait_s; /* of idle_s; num_workers=0: of the slice */
    int64_t n_steps, n_dropped, n_tokens;   /* optimizer steps; micro-batches lost; trained on */
    int64_t n_published, n_rollbacks, n_swaps;
    int depth;                              /* of alpha; 0: nothing was trained */
    double loss, alpha[PL_EAGLE_DEPTH_MAX]; /* of the last step */
} run_draft_figures;

/* As the configuration asks for. */
void run_drafting_train_options(const run_config *c, pl_eagle_train_options *o);
/* speculative.drafter.init can be drafted with.  Errors: PL_E_NOENT, PL_E_SHAPE, PL_E_FORMAT. */
pl_status run_drafting_check(const run_config *c, const pl_model *m, pl_error *err);
/* The newest published version of a run on this machine; 0: none. */
uint32_t run_drafting_newest(const char *run_dir);
/* What goes on: the policy of checkpoint `dir`, and which drafter. */
void run_print_resume(const run_config *c, int64_t step, const char *dir);
/* name: of the worker; run_dir NULL: the run is another machine's, nothing is trained here.  The
 * newest published version drafts, else speculative.drafter.init.  *borrows* all.  Errors:
 * PL_E_NOENT, PL_E_SHAPE (init is no drafter, or one of another model), PL_E_IO, PL_E_NOMEM. */
pl_status run_drafting_open(run_drafting **out, const run_config *c, const char *run_dir,
    const char *name, const cli_model *m, pl_engine *e, const pl_log *log, pl_error *err);
void run_drafting_close(run_drafting *d); /* before the engine is freed */
/* Draft with the drafter in dir from the next round on.  Errors: the one before goes on.
 * PL_E_TIMEOUT: its vocabulary is another one, and samples run; it is held, and the next call with
 * this version takes it from memory. */
pl_status run_drafting_serve(run_drafting *d, const char *dir, uint32_t version, pl_error *err);
int run_drafting_holds(const run_drafting *d, uint32_t version);
/* e (*taken*) is what the next call with this version takes. */
void run_drafting_hold(run_drafting *d, pl_eagle *e, uint32_t version);
uint32_t run_drafting_version(const run_drafting *d);
/* Who drafts for the samples to come (pl_speculate); none is running. */
void run_drafting_speculate(run_drafting *d, uint32_t how);
/* One piece of the spot trainer's work in a session (0: the one after the last; trainer/spot.h);
 * buffers: names of workers, '\n' between them.  Errors: of pl_spot_work. */
typedef struct run_session {
    uint64_t id;
    int is_lead;
    const char *workers;
    uint32_t policy_version;
} run_session;
pl_status run_drafting_work(run_drafting *d, const run_session *s, int (*should_stop)(void *ctx),
    void *ctx, pl_spot_published *published, pl_error *err);
/* The newest version on disk, which may have become durable when nobody was left to say so, or when
 * another ledger was there: 1, and where it is. */
int run_drafting_unannounced(const run_drafting *d, pl_spot_published *out);
void run_drafting_end(run_drafting *d);
/* Figures since the last reset; idle_s is the caller's. */
void run_drafting_figures(const run_drafting *d, run_draft_figures *out);
void run_drafting_reset(run_drafting *d); /* before the engine's statistics are */
/* The line below a step's: what the learned drafter did, and what was done for it; before:
 * acceptance length of the step before, NaN: none. */
void run_print_drafting(const run_draft_figures *d, const pl_engine_stats *s, double before);

/* A run is complete: what was recorded for training, and gradients, are removed; the state, its
 * checkpoint and the versions stay. */
void run_drafting_tidy(const char *run_dir);

/* ---- rollouts ---- */

/* What a batch is for; kind << 32 | step is its id: a batch once rolled out stays known by it. */
typedef enum run_kind {
    RUN_TRAIN,
    RUN_EVAL,
    RUN_COMPARE /* + RUN_ARMS * round + pl_speculate */
} run_kind;

/* What went wrong meanwhile and was mended: no sample is another one for it. */
typedef struct run_events {
    int64_t reward_retries; /* second tries of reward.command */
    int64_t refused;        /* results that the audit disproved */
    /* as the coordinator tells: members lost, workers thrown out, samples leased again, tokens
     * generated again */
    int64_t lost, quarantined, leased_again, recomputed_tokens;
} run_events;

/* One batch of responses, kept in uid order. */
typedef struct run_batch {
    uint64_t id;
    const pl_prompt **prompts; /* [n_groups] */
    int n_groups, n;           /* samples a group */
    uint32_t first_uid;
    pl_response *responses; /* [n_groups * n] owned; tokens NULL: not there yet */
    pl_sample *samples;     /* [n_groups * n] */
    unsigned char *marks;   /* [n_groups * n] how the reward came about: pl_reward_mark */
    int n_done;
    int64_t n_tokens; /* so far */
    double seconds;
    int is_continued; /* begun before this process was: seconds are not those of all of it */
    double update_s;  /* of the policy's training on it */
    pl_engine_stats stats;
    run_events events;
    run_draft_figures drafting;
    /* who finished a sample, and what passes cost there */
    uint16_t *workers; /* [n_groups * n] index into names */
    uint32_t *lengths; /* [n_groups * n] tokens so far, of running ones too (in one process) */
    char (*names)[64]; /* [n_names] */
    int n_names;
    pl_trace_cost *costs; /* [n_costs] */
    int n_costs;
    pl_hash trace; /* head of the trace with this batch in it; zeros: none */
    /* of the collection at hand */
    const run_report *report;
    struct run_watch *watch; /* NULL: nobody looks */
    const char *phase;
    int room; /* responses that the arrays hold */
    pl_error err;
} run_batch;

typedef struct run_sampling {
    float temperature, top_p, min_p;
    int top_k, max_tokens, ignore_eos;
    pl_speculate speculative;
    uint64_t seed;
    uint32_t purpose;
} run_sampling;

/* All training samples of a run are asked for alike, and all held-out ones (speculative is left to
 * the caller). */
run_sampling run_train_sampling(const run_config *c);
run_sampling run_held_out_sampling(const run_config *c);

/* What the suffix drafter knows a prompt by across epochs.  0 for held-out samples, which repeat
 * with the same noise: a drafter that remembered the last evaluation would know the answers, and
 * its figures would say nothing. */
uint64_t run_prompt_key(const pl_prompt *p, const run_sampling *s);
/* Make an empty batch of its groups, n and first_uid. */
pl_status run_batch_begin(run_batch *b, pl_error *err);
/* Keep a copy of a response.  Errors: PL_E_NOMEM. */
pl_status run_batch_keep(run_batch *b, const pl_response *r, pl_error *err);
/* Drop sample i, to be had again. */
void run_batch_forget(run_batch *b, int i);
void run_batch_done(run_batch *b);
/* Index of a worker's name in b->names; 0 when memory is short. */
int run_batch_worker(run_batch *b, const char *name);
/* What passes cost on a worker; nothing when memory is short. */
void run_batch_cost(run_batch *b, const char *worker, const pl_pass_cost *costs, int n);
/* Samples of two batches of the same prompts that differ in tokens, log-prob bits or finish. */
int run_batch_differ(const run_batch *a, const run_batch *b);
double run_batch_reward(const run_batch *b);

/* Decodes finished samples and has them scored: by the built-in verifier of their data_source at
 * once, or by reward.command beside the rollout. */
typedef struct run_scorer {
    const pl_tokenizer *tokenizer;
    pl_rewarder *rewarder; /* NULL: built-in verifiers */
    run_batch *batch;      /* whose samples come back */
    /* Called for each sample i of the batch whose reward is known. */
    pl_status (*scored)(void *ctx, int i, pl_error *err);
    void *ctx;
    pl_error err; /* of a callback */
} run_scorer;
pl_status run_decode(run_scorer *s, int i, pl_error *err); /* without scoring */
pl_status run_score(run_scorer *s, int i, pl_error *err);
/* Take what reward.command has answered, waiting at most timeout_ms. */
pl_status run_score_poll(run_scorer *s, int timeout_ms, pl_error *err);

/* Where rollouts come from: the engine of this process, or workers behind the coordinator. */
typedef struct run_source {
    void *self;
    /* The weights with which the run begins (or goes on) are those of the model. */
    pl_status (*begin)(void *self, uint32_t version, pl_error *err);
    /* Generate n samples of each prompt and score them: fills what is missing in b.  Errors:
     * PL_E_STOPPED after a signal; those of the engine, the peers and the rewards. */
    pl_status (*collect)(void *self, run_batch *b, const run_sampling *s, pl_error *err);
    /* The audit disproved the samples whose audit is not PL_AUDIT_OK: drop them, to be collected
     * again.  NULL: that cannot be helped. */
    pl_status (*refuse)(void *self, run_batch *b, pl_error *err);
    /* Step was trained on b: from now on the policy is version. */
    pl_status (*consume)(
        void *self, int64_t step, const run_batch *b, uint32_t version, pl_error *err);
    void (*checkpointed)(void *self, int64_t step);
    void (*alive)(void *self); /* called now and then during an update */
    pl_status (*finish)(void *self, int64_t step, pl_error *err); /* the run is complete */
    void (*close)(void *self);
} run_source;

pl_status run_local_open(run_source *out, const run_config *c, const cli_model *m,
    int longest_prompt, run_scorer *scorer, const pl_log *log, pl_error *err);
pl_status run_remote_open(run_source *out, const run_config *c, const cli_model *m,
    const float *masters, int longest_prompt, run_scorer *scorer, const pl_log *log, pl_error *err);

/* ---- figures ---- */

typedef struct run_lengths {
    double mean, clipped; /* tokens; share cut off at the limit */
    double reward_max, reward_min;
    int max, min, p50, p90, p99; /* percentiles: the smallest length that so many do not exceed */
} run_lengths;
run_lengths run_measure_lengths(const run_batch *b);
/* 1 + accepted / verify steps, a ratio of sums. */
double run_acceptance_length(const pl_engine_stats *s);
/* Tokens a second; NaN: another process began the batch. */
double run_rollout_rate(const run_batch *b);
/* Tokens a round of those rounds that drafted; NaN: none did. */
double run_drafted_length(const pl_engine_stats *s);
/* Of the rounds before and after the newest swap of drafters in it; NaN: none. */
double run_length_before_swap(const pl_engine_stats *s);
double run_length_after_swap(const pl_engine_stats *s);
/* Of n prompts as many as one way of drafting takes about ten seconds for, by an evaluation just
 * made. */
int run_comparable(const run_batch *eval, int n);
/* Roll the same prompts out by each way, which fills *b, without drafting first; again in another
 * order while there is time.  Tokens and log-probs are compared with the first ones.  Errors: those
 * of roll, PL_E_NOMEM. */
pl_status run_compare(run_comparison *c, run_batch *b, int has_learned,
    pl_status (*roll)(void *ctx, pl_speculate how, int round, pl_error *err), void *ctx,
    pl_error *err);
/* One line of metrics.jsonl. */
pl_status run_record_step(struct run_watch *w, int64_t step, const run_batch *b,
    const pl_step_stats *u, double step_s, int has_learned, pl_error *err);

/* ---- what others see: metrics.jsonl, events, trace, timeline, snapshot (run_watch.c) ---- */

typedef struct run_watch run_watch;

typedef struct run_watch_begin {
    int64_t step;      /* steps done before */
    int64_t last_line; /* of metrics.jsonl, that stays: pl_metrics_open */
    uint32_t policy_version;
    unsigned char policy[16]; /* pl_trainer_hash */
    uint64_t config_hash;
    const char *isa, *machine;
    int n_vocab, n_threads;
} run_watch_begin;
/* Errors: those of pl_metrics_open and pl_trace_open. */
pl_status run_watch_open(run_watch **out, const run_config *c, int is_remote,
    const run_watch_begin *b, const pl_log *log, pl_error *err);
void run_watch_close(run_watch *w); /* accepts NULL, as run_watch_phase, _batch and _tick do */
/* A phase begins; b: the batch that it works at, or NULL. */
void run_watch_phase(run_watch *w, pl_phase phase, const run_batch *b);
/* How far the batch is, called often: what is shown is as old as a quarter of a second. */
typedef struct run_watch_now {
    int n_running, n_queued, is_training;
    uint32_t drafter_version;
} run_watch_now;
void run_watch_batch(run_watch *w, const run_batch *b, const run_watch_now *now);
void run_watch_tick(run_watch *w); /* the same where nothing but time has moved */
/* A line of metrics.jsonl, and of TensorBoard's events.  Errors: those of pl_metrics_put. */
pl_status run_watch_metrics(
    run_watch *w, int64_t step, const pl_metric *metrics, int n, pl_error *err);
/* The step's samples go to the trace, durable; b->trace is its head then.  Errors: PL_E_IO. */
typedef struct run_watch_step {
    int64_t step;
    uint32_t policy_version; /* that rolled it out */
    const run_sampling *sampling;
    double update_s, step_s;
    unsigned char after[16]; /* pl_trainer_hash after the update */
} run_watch_step;
pl_status run_watch_trace(run_watch *w, const run_watch_step *x, run_batch *b, pl_error *err);
/* Step is done, in so many seconds (0: not measured). */
void run_watch_step_done(run_watch *w, int64_t step, uint32_t policy_version, double seconds);
/* The run is complete.  Errors: of pl_trace_end. */
pl_status run_watch_end(run_watch *w, pl_error *err);

/* ---- the loop, and the processes ---- */

/* The steps of a run, from the first to the closing table.  is_remote: rollouts come from workers
 * (this is the policy trainer's process). */
int run_loop(const run_config *c, double t0, int dry_run, int is_remote);

/* rollout.num_workers processes, the coordinator and the trainer: started, restarted when a signal
 * killed them, stopped.  Returns the exit code. */
int run_supervise(const run_config *c);

/* A directory is one run's, and each of its processes is there once: flock on RUN/name.  *fd is
 * closed with the process.  Errors: PL_E_PEER when another process holds it. */
pl_status run_lock(const char *run_dir, const char *name, int *fd, pl_error *err);
/* 1 when some process holds RUN/name. */
int run_is_locked(const char *run_dir, const char *name);
/* Process id of who holds it; 0: nobody. */
int run_locked_by(const char *run_dir, const char *name);
/* A trainer of a run with workers whose paceline run was lost must not meet another one.  Errors:
 * PL_E_IO naming its process. */
pl_status run_check_orphans(const char *run_dir, pl_error *err);
/* Lock RUN, which must be a run's directory or free for one. */
pl_status run_lock_directory(const char *run_dir, int *fd, pl_error *err);

/* Where the coordinator of RUN listens; out [n].  Waits for it at most patience_s.  Errors:
 * PL_E_PEER. */
pl_status run_find_coordinator(
    const char *run_dir, double patience_s, char *out, size_t n, pl_error *err);
/* Where it is to listen: a socket in RUN, or elsewhere when that path is too long for one. */
pl_status run_coordinator_address(const char *run_dir, char *out, size_t n, pl_error *err);
/* Where the trainer serves weights: beside the coordinator, or on the host of listen. */
pl_status run_weights_address(
    const char *run_dir, const char *listen, char *out, size_t n, pl_error *err);
/* path as an absolute one.  Errors: PL_E_INVAL when it does not fit. */
pl_status run_absolute(const char *path, char *out, size_t n, pl_error *err);
/* The boot id: equal for processes of one machine. */
void run_host(char out[64]);

/* Load DIR/model.safetensors into a model and check that it is the content that root names
 * (load.c); keep_alive (may be NULL) is called by this thread every some 30 ms.  After any error
 * the weights are a mixture: load again before the model runs.  Errors: those of pl_source_open and
 * pl_model_load; PL_E_FORMAT when it is another content. */
pl_status run_load_checked(pl_model *m, const char *dir, const pl_hash *root,
    void (*keep_alive)(void *), void *ctx, pl_error *err);

#endif
