/* cli/replay_train.h - what the files of `paceline replay --train-only` share. */
#ifndef PL_CLI_REPLAY_TRAIN_H
#define PL_CLI_REPLAY_TRAIN_H

#include "cli/replay.h"

/* ---- what the trace says of each step, in one pass over it (replay_train_trace.c) ---- */

typedef struct train_mark {
    int64_t step;
    unsigned char before[16], after[16];
    uint64_t samples; /* hash of all that the trace tells of them */
} train_mark;

typedef struct train_marks {
    int n, room;
    train_mark *marks; /* [n] ascending */
} train_marks;

/* Errors: those of pl_trace_read; PL_E_NOENT: no trace. */
pl_status train_marks_read(train_marks *m, const char *run_dir, pl_error *err);
void train_marks_done(train_marks *m);
const train_mark *train_marks_find(const train_marks *m, int64_t step); /* NULL: not there */
/* The samples are those of the trace.  Errors: PL_E_FORMAT naming the sample. */
pl_status train_marks_check(
    const train_mark *m, const char *run_dir, const pl_rollouts *x, int n_vocab, pl_error *err);

/* ---- rewards given anew (replay_score.c) ---- */

typedef struct train_scorer train_scorer;
/* Before anything is opened: one bare word must be a verifier or a program.  Errors: PL_E_USAGE. */
pl_status train_reward_check(const char *what, pl_error *err);
/* what: a built-in verifier, or else a command line; with the limits of c->reward. */
pl_status train_scorer_new(
    train_scorer **out, const char *what, const run_config *c, const pl_log *log, pl_error *err);
void train_scorer_free(train_scorer *s); /* accepts NULL */
/* Score all samples; *n_changed: rewards that are others now.  Errors: PL_E_FORMAT (a record
 * without ground_truth), those of the verifier and the command, PL_E_STOPPED. */
pl_status train_scorer_run(train_scorer *s, const pl_tokenizer *tok, pl_rollouts *x,
    const run_report *report, int *n_changed, pl_error *err);

/* ---- records of another system (replay_foreign.c) ---- */

typedef struct train_files {
    int n;
    char **paths; /* [n] one a step, in order */
} train_files;
/* A file, or the .jsonl and .jsonl.zst files of a directory by name.  Errors: PL_E_NOENT, PL_E_IO.
 */
pl_status train_files_list(train_files *f, const char *path, pl_error *err);
void train_files_done(train_files *f);
/* Samples of one prompt side by side, groups of one size.  Errors: PL_E_FORMAT naming two groups
 * whose sizes differ. */
pl_status train_regroup(pl_rollouts *x, const char *path, pl_error *err);

/* ---- the curves (replay_curve.c) ---- */

enum { TRAIN_FIGURES = 8 };
typedef enum train_weights { WEIGHTS_UNKNOWN, WEIGHTS_EQUAL, WEIGHTS_DIFFER } train_weights;

typedef struct train_point {
    int64_t step;
    int n_samples, n_rescored; /* rewards that changed; -1: not scored again */
    double recorded[TRAIN_FIGURES], now[TRAIN_FIGURES]; /* NaN: not known */
    pl_step_stats stats;
    train_weights weights; /* after the step */
    int is_off;            /* another policy than this one drew the samples */
} train_point;

/* Fill figures; history (may be NULL): of metrics.jsonl. */
void train_point_fill(
    train_point *p, const pl_rollouts *x, double recorded_reward, const pl_history *history);
/* with_recorded: both curves and their difference. */
void train_point_print(const train_point *p, int with_recorded);
pl_status train_point_json(const train_point *p, pl_error *err);
/* The means over n points, recorded and now. */
void train_means_print(const train_point *sums, int n);
void train_point_add(train_point *sums, const train_point *p);

#endif
