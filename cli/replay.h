/* cli/replay.h - what the ways of `paceline replay` share: a run opened for reading, its policy
 * brought to a step by training on the recorded rollouts. */
#ifndef PL_CLI_REPLAY_H
#define PL_CLI_REPLAY_H

#include "cli/run.h"
#include "rollout/trace.h"

/* What the command line says; strings are borrowed from argv. */
typedef struct replay_options {
    const char *run_dir;
    int64_t step;           /* --step; 0: all, or the last, as the way has it */
    int64_t sample;         /* --sample UID; -1: all */
    int64_t workers;        /* --workers; -1: in this process */
    int64_t threads;        /* --threads; 0: all */
    const char *isa;        /* --isa; NULL: as the run */
    const char *drafter;    /* --drafter none|suffix|random|VERSION; NULL: as the run */
    const char *controller; /* --controller; NULL: as the run */
    const char *rollouts;   /* --rollouts FILE or DIR of another system (train-only); NULL */
    const char *reward;     /* --reward VERIFIER or COMMAND (train-only); NULL: as recorded */
    int train_only, rollout_only, what_if, json;
    int is_quiet;           /* another process has given the warnings */
    char *const *overrides; /* [n_overrides] key=value */
    int n_overrides;
} replay_options;

/* What the trace says of the configuration that each sitting had: a run may have been resumed with
 * other keys. */
typedef struct replay_sitting {
    int64_t first, last; /* steps that it trained; 0, 0: none */
    run_config config;   /* with the overrides */
    uint64_t hash;       /* of its keys that decide bits */
} replay_sitting;

typedef struct replay_sittings {
    int n;
    replay_sitting *list; /* [n] as they were; NULL: there is no trace to tell */
    char edited[400];     /* keys that decide bits of RUN/config.yaml which are not the last
                             sitting's any more, in words; empty: none */
} replay_sittings;

/* A run opened for reading: nothing in its directory is changed. */
typedef struct replay {
    const replay_options *o;
    run_config config; /* of the run, with the overrides */
    replay_sittings sittings;
    pl_log log;
    run_report report;
    cli_model m;
    pl_trainer *trainer; /* its masters are the policy after state.step */
    pl_run_state state;
} replay;

/* Config, model, the newest checkpoint of at most last_step steps (the initial model when there is
 * none), trainer.  Errors: PL_E_NOENT (no run there), PL_E_FORMAT, PL_E_CONFIG (numeric class),
 * those of the parts.  Pair: replay_close. */
pl_status replay_open(replay *r, const replay_options *o, int64_t last_step, pl_error *err);
void replay_close(replay *r);

/* Train the next step (state.step + 1) on the rollouts of RUN/rollouts, as the run did; seen (may
 * be NULL): its samples stay there, to be freed by pl_rollouts_free.  Errors: PL_E_NOENT naming the
 * missing file, PL_E_NUMERIC (log-probs that this policy does not give: says uid and position). */
pl_status replay_train_step(replay *r, pl_step_stats *stats, pl_rollouts **seen, pl_error *err);

/* The ways; each returns the verdict: PL_OK when every bit is equal (or nothing was compared),
 * PL_E_NUMERIC naming the first difference. */
pl_status replay_rollouts(const replay_options *o, pl_error *err);   /* replay_rollouts.c */
pl_status replay_train_only(const replay_options *o, pl_error *err); /* replay_train.c */
pl_status replay_what_if(const replay_options *o, pl_error *err);    /* replay_whatif.c */

#endif
