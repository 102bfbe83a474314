/* cli/drafter.h - the parts of `paceline drafter`: recorded samples, their features, figures. */
#ifndef PL_CLI_DRAFTER_H
#define PL_CLI_DRAFTER_H

#include "cli/cli.h"
#include "drafter/eagle.h"

#include <stddef.h>
#include <stdint.h>

/* ---- recorded samples ---- */

typedef struct drafter_sample {
    uint32_t uid;
    int32_t *tokens;    /* [n] prompt and response; owned */
    uint8_t *is_target; /* [n] 1 where token t + 1 is of the response; owned */
    int n, n_prompt;
    int held; /* held out: never trained on */
} drafter_sample;

typedef struct drafter_data {
    drafter_sample *samples; /* [n] */
    int n, room;
    int n_held;
    int64_t n_train_tokens, n_held_tokens; /* of responses */
    uint64_t hash;                         /* of uids and tokens, in order */
} drafter_data;

typedef enum drafter_hold { DRAFTER_HOLD_PROMPT, DRAFTER_HOLD_UID, DRAFTER_HOLD_ALL } drafter_hold;
enum { DRAFTER_HELD_OF = 8 }; /* one of so many prompts, or uids, is held out */

/* "prompt" (hash of the prompt's ids), "uid", "all".  Errors: PL_E_USAGE. */
pl_status drafter_hold_parse(drafter_hold *out, const char *word, pl_error *err);

/* Read rollout records (NAMES 5.7: uid, prompt_ids, tokens) from a file (.jsonl, .jsonl.zst), a
 * directory of such files, or a run directory with rollouts/.  Samples longer than max_len tokens
 * are cut.  *borrows* arch for the check of ids.  After an error call drafter_data_done too.
 * Errors: PL_E_NOENT, PL_E_FORMAT (file:line), PL_E_SHAPE (ids of another vocabulary). */
pl_status drafter_data_read(drafter_data *d, const char *path, const pl_arch *arch, int max_len,
    drafter_hold hold, pl_error *err);
/* Add one sample (tokens are copied); part of the above. */
pl_status drafter_data_add(drafter_data *d, uint32_t uid, const int32_t *prompt, int n_prompt,
    const int32_t *tokens, int n, drafter_hold hold, pl_error *err);
void drafter_data_done(drafter_data *d);

/* The n target ids that the responses to train on hold most often, ascending; ties to the lower id.
 */
pl_status drafter_count_vocab(
    int32_t *ids, int n, const drafter_data *d, int n_vocab, pl_error *err);

typedef struct drafter_noise { /* of the run that made the samples */
    uint64_t seed;
    float temperature;
} drafter_noise;

/* Make rollouts of the prompts of a run configuration (data.train_files, its sampling and seed;
 * overrides: key=value) until there are n_tokens of response, and write them as records to path,
 * which must not exist.  *noise: what they were drawn with. */
pl_status drafter_make_rollouts(const cli_model *m, const char *config, char **overrides,
    int n_overrides, const char *path, int64_t n_tokens, drafter_noise *noise, const pl_log *log,
    pl_error *err);

/* ---- features of samples, in memory that is bounded ---- */

/* Positions begin .. n - 1 of one sample and where they are. */
typedef struct drafter_span {
    const drafter_sample *sample;
    int begin;
    size_t row;     /* of the arrays, of position begin */
    int32_t *drawn; /* [n - begin] token t + 1 as the target draws it, with_draws only */
} drafter_span;

typedef struct drafter_features {
    cli_model *m;
    pl_pass *pass;
    pl_kv_pool *pool;
    pl_kv_seq kv;
    int has_kv;
    int max_len, cp;
    size_t room, n_rows; /* positions */
    uint16_t *features;  /* [room][3][cp] */
    uint16_t *hidden;    /* [room][cp] */
    float *lse;          /* [room] of the target's logits; NaN: not known yet */
    int32_t *drawn;      /* [room], with_draws */
    drafter_span *spans; /* [n_spans] */
    int n_spans, room_spans;
    int64_t n_drawn, n_as_drawn; /* recorded tokens, and those that the target draws here too */
    int64_t n_prefilled;
    double seconds;
} drafter_features;

enum { DRAFTER_LEAD = 8 }; /* prompt positions before the response that a drafter sees */

/* Bytes of one position. */
size_t drafter_position_bytes(const pl_arch *a, int with_draws);
/* At most n_bytes are ever held.  Errors: PL_E_NOMEM, PL_E_USAGE (not even one sample fits). */
pl_status drafter_features_new(
    drafter_features *f, cli_model *m, int max_len, size_t n_bytes, int with_draws, pl_error *err);
void drafter_features_done(drafter_features *f);
void drafter_features_clear(drafter_features *f);
/* Positions of a sample that are kept: from the end of its prompt on. */
int drafter_first_position(const drafter_sample *s);
/* Run the target over a sample and keep what a drafter reads.  noise (may be NULL): also draw every
 * response token anew.  *taken is 0 when there is no room for it. */
pl_status drafter_features_add(drafter_features *f, const drafter_sample *s,
    const drafter_noise *noise, int *taken, pl_error *err);
/* The window [begin, begin + n) of a span; positions are absolute. */
pl_eagle_window drafter_window(
    const drafter_features *f, const drafter_span *s, int begin, int n, float temperature);

/* ---- figures ---- */

enum { DRAFTER_WIDTHS = 4 }; /* 1, 2, 4, 8 candidates */

typedef struct drafter_figures {
    int64_t n[PL_EAGLE_DEPTH_MAX];
    double alpha[PL_EAGLE_DEPTH_MAX];                   /* mean of sum min(p, q) */
    double coupled[PL_EAGLE_DEPTH_MAX][DRAFTER_WIDTHS]; /* share */
    double tau[DRAFTER_WIDTHS]; /* 1 + the sum of products over the depths */
    double loss, coverage;
    int depth;
    double seconds;
} drafter_figures;

extern const int drafter_widths[DRAFTER_WIDTHS];

typedef struct drafter_student {
    pl_eagle *eagle;
    pl_eagle_trainer *trainer;
    pl_eagle_train_options o;
    drafter_noise noise; /* of its data */
} drafter_student;

/* Figures over the spans of f (with draws), until max_tokens positions have been seen. */
pl_status drafter_measure(drafter_figures *out, const drafter_features *f, const drafter_student *s,
    int64_t max_tokens, pl_error *err);
/* Acceptance length of trees of each budget of "STEPS_TOPK_VERIFY,..." (a checked list) over the
 * samples of f, a line each.  Errors: PL_E_STOPPED, PL_E_NOMEM, PL_E_USAGE. */
pl_status drafter_check_budgets(const char *list, pl_error *err);
pl_status drafter_measure_budgets(const char *list, const drafter_features *f,
    const drafter_student *s, int as_json, pl_error *err);
/* One line for eyes, or one object a line. */
void drafter_print_heading(int depth);
void drafter_print_figures(const drafter_figures *g, int64_t tokens);
void drafter_print_json(const drafter_figures *g, int64_t step, int64_t tokens);

/* ---- commands ---- */

typedef struct drafter_options {
    cli_model_options model;
    const char *data, *drafter, *out, *config, *hold, *schedule, *loss, *budget;
    int64_t vocab, steps, tokens, window, windows, depth, seed, noise_seed, memory_mb, every;
    int64_t eval_tokens;
    double lr, temperature, alpha_weight, depth_decay, ema;
    int resume, json;
} drafter_options;

void drafter_student_done(drafter_student *s);
/* "mix", "lk", "ce", "eagle1".  Errors: PL_E_USAGE. */
pl_status drafter_loss_parse(pl_eagle_loss *out, const char *word, pl_error *err);
/* Read the data of the options; without --data rollouts are made first, beside --out. */
pl_status drafter_open_data(drafter_data *d, drafter_noise *noise, const drafter_options *o,
    const cli_model *m, const pl_log *log, pl_error *err);
/* Fill f (with draws) with held-out samples, in order, until they hold max_tokens positions. */
pl_status drafter_open_held(drafter_features *f, const drafter_data *d, const drafter_options *o,
    const drafter_noise *noise, cli_model *m, pl_error *err);
pl_status drafter_warmup(const drafter_options *o, cli_model *m, const pl_log *log, pl_error *err);
/* Where a warm-up stands: beside the drafter, in warmup.json. */
typedef struct drafter_place {
    int64_t step, tokens;
    int64_t epoch, window;  /* passes over the data that are done, windows done of the next */
    uint64_t data, options; /* hashes of what the order of the windows follows from */
    uint64_t model;         /* hash of the target's embedding */
} drafter_place;
/* Can drafter_save write dir?  Before hours of training that it is to hold.  Errors: PL_E_IO,
 * PL_E_NOENT. */
pl_status drafter_try_out(const char *dir, pl_error *err);
/* Write drafter, trainer and place as one directory, which replaces dir at once. */
pl_status drafter_save(
    const drafter_student *s, const drafter_place *p, const char *dir, pl_error *err);
/* Errors: PL_E_NOENT, PL_E_FORMAT. */
pl_status drafter_read_place(drafter_place *p, const char *dir, pl_error *err);
int cmd_drafter(int argc, char **argv);

#endif
