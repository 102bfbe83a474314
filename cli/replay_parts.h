/* cli/replay_parts.h - what the files of replaying rollouts share. */
#ifndef PL_CLI_REPLAY_PARTS_H
#define PL_CLI_REPLAY_PARTS_H

#include "cli/replay.h"

/* ---- replay.c ---- */

/* The command line of `paceline replay`; argv is permuted.  Errors: PL_E_USAGE. */
pl_status replay_parse(int argc, char **argv, replay_options *o, int *helped, pl_error *err);
/* `paceline trainer replay DIR ARG...`: the trainer's process of a replay by worker processes in
 * DIR; ARG... are the arguments of `paceline replay`.  Returns the exit code. */
int replay_in_trainer(int argc, char **argv);

/* ---- replay_config.c: the configuration that a step was traced with ---- */

/* Of the last sitting, with what the command line says: its keys that decide bits are those of the
 * trace where there is one, all others those of RUN/config.yaml.  For rollouts an override that
 * decides bits is refused.  Errors: PL_E_NOENT, PL_E_CONFIG. */
pl_status replay_config(const replay_options *o, run_config *c, pl_error *err);
/* The same of each sitting; none when no trace can be read. */
pl_status replay_sittings_read(replay_sittings *s, const replay_options *o, pl_error *err);
void replay_sittings_done(replay_sittings *s);
/* Who trained the step; NULL: the trace does not say. */
const replay_sitting *replay_sittings_find(const replay_sittings *s, int64_t step);
/* "actor.optim.lr 0.5, was 0.001": keys that decide bits, with what they are now. */
void replay_config_differ(const run_config *now, const run_config *was, char *out, size_t room);

/* ---- replay_open.c ---- */

/* Steps of the newest checkpoint of at most limit steps; 0: none, so the initial model. */
int64_t replay_checkpoint(const char *run_dir, int64_t limit);
/* Put the checkpoint of step over what is open; 0: leave it.  Errors: of pl_checkpoint_load. */
pl_status replay_load(replay *r, int64_t step, pl_error *err);

/* ---- replay_index.c: the steps of a trace, without their samples ---- */

typedef struct replay_step {
    int64_t step;
    uint32_t first_uid, policy_version, drafter_version;
    int n_groups, n;
    unsigned char before[16];
} replay_step;

typedef struct replay_index {
    pl_trace_report report;
    int n, room;
    replay_step *steps;  /* [n] ascending, as they count */
    int longest;         /* prompt, tokens */
    uint32_t max_tokens; /* of a response, the most of any step */
    char *changed;       /* a sitting whose keys decide other bits than those of the one before: in
                            words; NULL: all alike */
    run_config *config;  /* of the last sitting */
} replay_index;

/* Errors: those of pl_trace_read; PL_E_CONFIG (another numeric class); PL_E_NOENT (no trace). */
pl_status replay_index_read(replay_index *x, const char *run_dir, pl_error *err);
void replay_index_done(replay_index *x);
const replay_step *replay_index_step(const replay_index *x, int64_t step); /* NULL: not there */
const replay_step *replay_index_sample(const replay_index *x, int64_t uid);

/* ---- replay_compare.c ---- */

/* A step as the trace and, where it is there, RUN/rollouts have it. */
typedef struct replay_record {
    pl_trace_step *trace;
    pl_rollouts *rollouts; /* NULL: the file is gone */
    char path[PL_CONFIG_STR + 64];
} replay_record;

/* Both, checked against each other.  Errors: PL_E_FORMAT naming the sample and the position where
 * the file of rollouts says something else than the trace; those of the readers. */
pl_status replay_record_open(replay_record *x, const char *run_dir, int64_t step, int n_vocab,
    int max_tokens, pl_error *err);
void replay_record_close(replay_record *x);

/* What was generated again, and the first difference. */
typedef struct replay_difference {
    int64_t n_samples; /* that differ; 0: none */
    int64_t n_tokens;  /* of all that was compared */
    int64_t n_drafted; /* rows verified for them */
    uint32_t uid;
    int position; /* in the response; of a hashed block of log-probs its first */
    const char *what;
    char now[48], then[48];
} replay_difference;
/* Compare samples first .. first + b->n_groups * b->n - 1 of the step with those of b. */
void replay_compare(
    const replay_record *x, const run_batch *b, int first, replay_difference *difference);

/* ---- replay_rollouts.c ---- */

enum { REPLAY_LIST = 200 };
/* Samples of a run, sampled again. */
typedef struct replay_again {
    const replay_options *o;
    const char *dir; /* of the worker processes; NULL: samples come from this one */
    replay_index index;
    int64_t first, last; /* steps asked for */
    int64_t replayed;    /* the last one; 0: none yet */
    replay r;
    int is_open;
    int64_t opened_at; /* steps of the checkpoint under the policy; 0: the initial model */
    run_config config; /* of the source: drafter, directory, workers */
    run_source source;
    run_scorer scorer; /* of nothing: rewards are not compared */
    run_data data;     /* prompts, when a file of rollouts is gone */
    pl_prompt *prompts;
    const pl_prompt **list;
    run_batch batch;
    char temp[PL_CONFIG_STR]; /* for a random drafter; empty: none was made */
    char drafter[96];
    int64_t n_steps, n_samples, n_tokens, n_drafted;
    int64_t n_left;                            /* steps left out */
    char left[REPLAY_LIST], done[REPLAY_LIST]; /* "2, 4": those, and those that were replayed */
} replay_again;

/* dir: of the worker processes that the samples come from; NULL: from this process. */
pl_status replay_rollouts_in(const replay_options *o, const char *dir, pl_error *err);
/* With o->workers worker processes in a directory of their own, removed at the end; argv: of
 * `paceline replay`.  Returns the exit code. */
int replay_with_workers(const replay_options *o, int argc, char *const *argv);

/* ---- replay_generate.c ---- */

/* Samples of step s into a->batch; *first: place of its first one in the step.  Errors: PL_E_FORMAT
 * (the prompts are not the traced ones), PL_E_CONFIG; those of the source. */
pl_status replay_generate(
    replay_again *a, const replay_step *s, const replay_record *x, int *first, pl_error *err);

/* ---- replay_say.c ---- */

void replay_say_trace(const replay_again *a);
/* is_fresh: the policy, or what it was trained from, was just opened. */
void replay_say_policy(const replay_again *a, const replay_step *s, int is_fresh, int trained);
/* One JSON object of a step; nothing without --json. */
pl_status replay_say_step(
    const replay_again *a, const replay_step *s, const replay_difference *d, pl_error *err);
void replay_say_verdict(const replay_again *a);
/* The last JSON object: {"event":"end","verdict":"equal|different|uncompared|error", ...}. */
void replay_say_end(const char *verdict, const char *message);

/* ---- replay_drafter.c ---- */

/* Who drafts, put into c; words, for the verdict, into name.  dir: where a random one will be, by
 * replay_drafter_make.  Errors: PL_E_NOENT naming the versions that are there. */
pl_status replay_drafter_choose(const replay_options *o, const replay_index *x, const char *dir,
    run_config *c, char name[96], pl_error *err);
/* Write the random drafter, if it is to draft. */
pl_status replay_drafter_make(
    const replay_options *o, const pl_model *model, const run_config *c, pl_error *err);
/* A new directory under TMPDIR, beside the run, or in /tmp.  Errors: PL_E_IO. */
pl_status replay_directory(const char *run_dir, char out[PL_CONFIG_STR], pl_error *err);

#endif
