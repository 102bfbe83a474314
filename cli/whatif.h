/* cli/whatif.h - the parts of `paceline replay --what-if`, which bench whatif shares: recorded
 * samples, features of them, engines that run over them. */
#ifndef PL_CLI_WHATIF_H
#define PL_CLI_WHATIF_H

#include "cli/run.h"
#include "rollout/recorded.h"

/* ---- what was recorded ---- */

typedef struct whatif_sample {
    const int32_t *prompt, *tokens; /* [n_prompt], [n] of the response */
    int n_prompt, n;
    uint32_t worker;        /* who finished it */
    uint64_t prompt_key;    /* of the suffix drafter, across steps */
    size_t prompt_row, row; /* of the features: of position 0, of the response's first token */
} whatif_sample;

/* The samples of one step, in uid order. */
typedef struct whatif_batch {
    uint32_t first_uid;
    int n_groups, n;        /* samples a group */
    whatif_sample *samples; /* [n_groups * n] */
    run_sampling sampling;
    const uint16_t *features; /* rows of [PL_FEATURE_LAYERS][pad32(C)]; NULL: not computed */
    size_t row;               /* elements */
    double draw_s;            /* seconds of an emitted token beside the pass */
} whatif_batch;

/* ---- whatif_features.c ---- */

/* What the target computes over prompts and responses, recomputed by one prefill; in memory, or in
 * a file under TMPDIR that has no name when it is large. */
typedef struct whatif_features {
    uint16_t *rows;
    size_t n_bytes;
} whatif_features;
/* Of all samples of the batch, by the weights that the model has now; fills b->features, b->row and
 * the samples' rows.  report may be NULL.  Errors: PL_E_NOMEM, PL_E_IO (no room for the file),
 * PL_E_STOPPED after a signal. */
pl_status whatif_features_make(
    whatif_features *f, whatif_batch *b, pl_model *model, const run_report *report, pl_error *err);
void whatif_features_done(whatif_features *f);

/* ---- whatif_play.c ---- */

/* One engine over recorded samples, of one worker under one alternative. */
typedef struct whatif_engine {
    pl_engine *engine;
    pl_recorded record;
    const whatif_batch *batch;
    const pl_costs *costs;
    double scale;     /* of costs: this worker in this step against all */
    double guessed_s; /* of passes larger than any that was recorded */
    char worker[64];
    struct whatif_engine *next;
} whatif_engine;

/* Errors: those of pl_engine_new_recorded.  *borrows* costs. */
pl_status whatif_engine_new(whatif_engine **out, pl_model *model, const pl_engine_options *o,
    const pl_costs *costs, pl_error *err);
void whatif_engine_free(whatif_engine *e);
/* Run the worker's samples of the batch in uid order (worker < 0: all); stats of these alone. */
pl_status whatif_engine_play(
    whatif_engine *e, const whatif_batch *b, int64_t worker, pl_engine_stats *stats, pl_error *err);

/* ---- whatif_alternatives.c ---- */

typedef struct whatif_figures {
    pl_engine_stats stats;      /* of the steps that count */
    double pass_s, predicted_s; /* of the slowest worker of each step; with what is not modelled */
    double draft_s, verify_s, rest_s;
    double guessed_s;
} whatif_figures;

typedef enum whatif_drafter {
    WHATIF_NONE,   /* no learned one */
    WHATIF_FILE,   /* of a directory */
    WHATIF_RANDOM, /* untrained */
    WHATIF_RUN,    /* the version that the run had in each step */
} whatif_drafter;

typedef struct whatif_alternative {
    char name[128];
    int is_shown;
    run_config config;
    pl_engine_options options;
    whatif_drafter drafter;
    char drafter_dir[PL_CONFIG_STR + 64];
    pl_eagle *eagle;        /* that drafts, once loaded */
    int64_t version;        /* WHATIF_RUN: of eagle; -1: none yet */
    whatif_engine *engines; /* by worker */
    whatif_figures sum;
} whatif_alternative;

/* Parse "key=value,key=value": drafter, controller, max_rows, max_depth, or a key of the
 * configuration; words [n_words]: overrides before them.  Errors: PL_E_USAGE, PL_E_CONFIG (a key
 * that decides the text). */
pl_status whatif_alternative_parse(whatif_alternative *a, const char *text, const run_config *base,
    const char *run_dir, char *const *words, int n_words, pl_error *err);
/* The run's own way. */
void whatif_alternative_base(whatif_alternative *a, const run_config *base);
void whatif_alternative_done(whatif_alternative *a);
/* Have the drafter of a step ready (version: that the run drafted with).  Errors: PL_E_NOENT,
 * PL_E_SHAPE, PL_E_NOMEM. */
pl_status whatif_alternative_load(
    whatif_alternative *a, const pl_model *model, uint32_t version, pl_error *err);
/* The engine of a worker, made if there is none. */
pl_status whatif_alternative_engine(whatif_alternative *a, const char *worker, pl_model *model,
    const pl_costs *costs, whatif_engine **out, pl_error *err);
void whatif_alternative_forget(whatif_alternative *a); /* all engines, and what they know */

/* ---- whatif_print.c ---- */

/* What the run itself counted. */
typedef struct whatif_recorded {
    int64_t first_step, last_step, n_steps, n_samples, n_tokens;
    int64_t n_draft, n_accepted, n_verify_steps, n_rounds; /* n_rounds: passes without prefill */
    int64_t n_from[3];                                     /* tokens by pl_draft_source */
    double gen_s, n_passes, most_rows;
    int n_workers; /* at most in a step */
} whatif_recorded;
pl_status whatif_print(const char *run_dir, const whatif_recorded *r, const whatif_alternative *a,
    int n, int json, pl_error *err);

#endif
