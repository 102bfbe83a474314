/* rollout/simulate.h - a recorded step rolled out again without tensors: with other workers, other
 * thresholds, more prompts.
 *
 * Modelled
 *   The production coordinator (rollout/coordinator.h) runs on a virtual clock: shares, leases,
 *   longest prompts first, sessions of the spot trainer, handing over of the last samples.  Virtual
 *   workers speak its messages and do what rollout/worker.c and rollout/round.c do: continuous
 *   batching, a prompt prefilled once a worker and group, reports and STATUS between two rounds.  A
 *   virtual trainer says VERSION, GROUP, REWARD and CONSUME.  Every record waits for an fsync.
 *   A sample has the length that was recorded.  Tokens a round are the recorded ones (token_source
 *   tells where a verify step ended), or are drawn anew with the sample's own recorded chance.
 *   A round takes the pass of its rows by the table of recorded passes, plus recorded seconds for a
 *   drafted row, an emitted token and a round.
 *   Rows are the sample's recorded mean (PL_SIM_RECORDED), or what the production controller
 *   (rollout/controller.c) chooses for so many samples with that table, for chains of the mean
 *   chance (PL_SIM_GOODPUT).
 *
 * Not modelled
 *   PROGRESS but for the last one of a handover (with no losses nothing follows from it), lost or
 *   late messages, workers that fail, audits that refuse, rewards that take time; caches that run
 *   out of pages; how a pass grows with its context; what workers of one machine take from each
 *   other, beyond what the recorded passes hold already; versions of the drafter: acceptance stays
 *   as it was recorded.  Update and the rest of a step are recorded seconds (an update by its
 *   tokens): the world stands still meanwhile. */
#ifndef PL_ROLLOUT_SIMULATE_H
#define PL_ROLLOUT_SIMULATE_H

#include "core/error.h"
#include "core/log.h"
#include "rollout/recorded.h"
#include "rollout/trace.h"

enum {
    PL_SIM_WORKERS = 10000, /* at most */
    PL_SIM_SAMPLES = 1 << 20,
    PL_SIM_STRIP = 60, /* parts of a rollout, for a chart */
};

typedef enum pl_sim_rows {
    PL_SIM_RECORDED, /* rows and tokens a round as recorded */
    PL_SIM_GOODPUT,  /* rows by rollout/controller.c; tokens a round drawn for them */
    PL_SIM_FIXED,    /* so many rows a sample, tokens drawn */
    PL_SIM_OFF,      /* nothing is drafted */
} pl_sim_rows;

typedef struct pl_sim_options {
    int n_workers;    /* 1 .. PL_SIM_WORKERS */
    int max_num_seqs; /* of a worker */
    int max_rows;     /* of a pass */
    int max_spec_rows, max_spec_depth;
    int scale;         /* so many times the prompts of the step */
    double acceptance; /* factor of the accepted tokens a round; 1: as recorded */
    pl_sim_rows rows;
    int fixed_rows;             /* of PL_SIM_FIXED, the root included */
    uint32_t consolidate_below; /* rollout.consolidate_below; 0: never */
    int spot_min_idle;          /* idle workers that begin a session; 0: none begins */
    double optimizer_step_s; /* of the spot trainer's lead; 0: not known, steps are not counted */
    double slowdown; /* a pass takes so many times as long while a session runs; 1: as long */
    double pace;     /* a pass takes so many times as long as measured; 1: as long */
    uint32_t heartbeat_ms, lost_ms; /* 500, 10000 */
    double latency_s, fsync_s;      /* of a message, of a commit */
    uint64_t seed;                  /* of what is drawn */
} pl_sim_options;
/* As a run of one worker with default options has it. */
void pl_sim_defaults(pl_sim_options *o);

/* Measured seconds.  Begin with {0}, add steps, fit. */
typedef struct pl_sim_costs {
    pl_costs pass;
    double draft_s;  /* of a drafted row */
    double verify_s; /* of an emitted token */
    double round_s;  /* of a round, beside pass, drafting and verification: pl_sim_costs_settle */
    double factor;   /* of all of these: the same */
    double update_s; /* of a token that is trained on */
    double rest_s;   /* of a step beside rollouts and update */
    /* sums behind them */
    double sum_draft_s, sum_verify_s, sum_update_s, sum_rest_s;
    double n_drafted, n_tokens, n_trained, n_steps;
} pl_sim_costs;
void pl_sim_costs_add(pl_sim_costs *c, const pl_trace_step *s);
/* Errors: PL_E_FORMAT when no pass was measured. */
pl_status pl_sim_costs_fit(pl_sim_costs *c, pl_error *err);
/* What a step's rollout took, and took in a simulation with round_s 0, of so many rounds: what is
 * missing goes to round_s, what is too much to factor. */
void pl_sim_costs_settle(pl_sim_costs *c, double recorded_s, double simulated_s, double n_rounds);

/* One simulated step.  busy_s + session_s + idle_s is the time of all workers while the samples
 * were rolled out: n_workers * gen_s. */
typedef struct pl_sim_result {
    int n_workers, n_samples, n_done;
    int64_t n_tokens, n_emitted; /* recorded; drawn in rounds: more when some were drawn twice */
    int64_t n_rounds;            /* of all workers */
    double n_rows, n_drafted;    /* rows of all passes; of those, drafted */
    double longest_rounds;       /* of the worker that had the most */
    double step_s, gen_s, update_s, rest_s;
    double busy_s, session_s, idle_s;
    double tail_s; /* from the first worker without work to the last sample */
    int64_t n_drafter_steps;
    int n_sessions, n_handed; /* sessions begun; samples handed over */
    int64_t n_messages;       /* to and from the coordinator */
    double recorded_gen_s, recorded_step_s;
    float busy[PL_SIM_STRIP], training[PL_SIM_STRIP]; /* mean share of the workers */
} pl_sim_result;

/* One coordinator and its members, over as many steps as wanted: it learns the lengths of prompts.
 */
typedef struct pl_sim pl_sim; /* one thread at a time */

/* *borrows* costs and log.  Errors: PL_E_INVAL (options out of range), PL_E_NOMEM. */
pl_status pl_sim_new(pl_sim **out, const pl_sim_options *o, const pl_sim_costs *costs,
    const pl_log *log, pl_error *err);
/* Simulate a step.  The same steps with the same options give the same results to the bit.
 * Errors: PL_E_SHAPE (more than PL_SIM_SAMPLES), PL_E_FORMAT (a step that no run writes),
 * PL_E_NOMEM; PL_E_TIMEOUT: nothing moves any more (a bug of the coordinator: says what is
 * awaited). */
pl_status pl_sim_step(pl_sim *s, const pl_trace_step *step, pl_sim_result *out, pl_error *err);
void pl_sim_free(pl_sim *s); /* accepts NULL */

#endif
