/* rollout/simulate_internal.h - what the files of the simulator share: simulate.c the clock and
 * the coordinator's world, simulate_step.c the trainer, simulate_worker.c a worker,
 * simulate_costs.c seconds and rows; no other folder includes it. */
#ifndef PL_ROLLOUT_SIMULATE_INTERNAL_H
#define PL_ROLLOUT_SIMULATE_INTERNAL_H

#include "rollout/controller.h"
#include "rollout/coordinator.h"
#include "rollout/simulate.h"

enum {
    SIM_TICK_MS = 20,   /* of the coordinator's loop */
    SIM_STATUS_MS = 20, /* between two STATUS at least */
    SIM_STUCK_S = 3600, /* without a round: nothing will come */
    SIM_NONE = -1,
};
#define SIM_NO_VERSION UINT32_MAX

/* ---- what happens when ---- */

enum { SIM_TICK = -1, SIM_SYNC = -2, SIM_TRAINER = -3 }; /* who, beside workers from 0 on */

typedef struct sim_event {
    int64_t due_ns;
    uint64_t order; /* of two at one time the one that was planned first */
    int who;
    uint32_t stamp; /* of the worker's plan: an older one counts no more */
} sim_event;

/* A message of the coordinator, on its way or not yet read. */
typedef struct sim_note {
    int64_t due_ns;
    uint64_t batch, session;
    uint32_t uid, version, prefix;
    int32_t to; /* worker, or SIM_TRAINER */
    int32_t next;
    uint16_t type;
    uint8_t is_lead;
} sim_note;

typedef struct sim_list { /* of notes */
    int32_t first, last;
} sim_list;

/* ---- a worker ---- */

/* A sample that it runs. */
typedef struct sim_task {
    uint32_t uid;
    int prompt;   /* place in prompts */
    int n, next;  /* tokens; after the round at hand */
    int own_left; /* rows of its own text that are to be prefilled */
    int planned;  /* of those, in the round at hand */
} sim_task;

/* A prompt that samples on it share. */
typedef struct sim_prompt {
    uint32_t group;
    int n_live; /* samples; 0: the place is free */
    int left;   /* rows to be prefilled */
    int planned;
} sim_prompt;

typedef enum sim_mode { SIM_IDLE, SIM_BUSY, SIM_TRAINING } sim_mode;

typedef struct sim_worker {
    int i;
    pl_peer peer;
    uint64_t seq, batch;
    int is_joined, is_in_round, is_waking;
    uint32_t version;
    sim_list inbox;
    uint32_t stamp;
    int64_t status_ns;
    int is_status_due;
    sim_task *tasks; /* in order of their leases */
    int n_tasks, room_tasks;
    sim_prompt *prompts;
    int n_prompts, room_prompts;
    double rate_s, rate_tokens;
    uint64_t session;
    int is_lead;
    /* since the step began */
    sim_mode mode;
    int64_t mode_ns;                        /* it began */
    int64_t busy_ns, session_ns, worked_ns; /* worked: when its last round ended; 0: none */
    int64_t n_rounds;
} sim_worker;

/* ---- the world ---- */

/* What is known of a recorded sample. */
typedef struct sim_record {
    int n_tokens;
    const uint8_t *source; /* NULL: tokens a round are drawn */
    double drafted;        /* rows a round */
    double extra;          /* accepted tokens a round */
    double chance;         /* that a drafted row of a chain holds */
} sim_record;

typedef struct sim_change { /* of what a worker does */
    int64_t at_ns;
    int8_t busy, training;
} sim_change;

struct pl_sim {
    pl_sim_options o;
    const pl_sim_costs *costs;
    const pl_log *log;
    pl_coordinator *c;
    pl_msg msg; /* scratch: what is said */
    int64_t now_ns;
    sim_event *heap;
    int n_heap, room_heap;
    uint64_t order;
    sim_note *notes;
    int n_notes, room_notes;
    int32_t free_note;
    sim_list wire; /* by time */
    int is_syncing;
    pl_status status; /* of a call that could not return it */
    pl_error err;
    sim_worker *workers;
    /* the trainer */
    pl_peer trainer;
    uint64_t trainer_seq, step; /* steps begun */
    int is_joined, is_consumed;
    uint8_t *state; /* [n_samples] 1: result, 2: reward */
    int n_samples, room_state, n_ready, n_joined;
    /* the step at hand */
    const pl_trace_step *recorded;
    sim_record *records;
    int room_records;
    int n_recorded;  /* samples of it */
    int32_t *tokens; /* [room_tokens] zeros; any token is like another */
    float *logprobs;
    uint8_t *sources;
    size_t room_tokens;
    sim_change *changes;
    int n_changes, room_changes;
    int64_t begin_ns, moved_ns;
    int n_training;
    pl_sim_result *out;
    /* seconds and rows */
    float *pass_s; /* [n_pass_s] by rows */
    int n_pass_s;
    double mean_chance; /* of the step */
    float *kept;        /* [max_num_seqs + 1] rows a sample, the root included; < 0: not known */
    controller control;
    int has_control;
    controller_item *items; /* [max_num_seqs] */
    controller_item **at;
};

/* ---- simulate.c ---- */
pl_status sim_grow(void **array, int n, int *room, size_t size, pl_error *err);
/* Plan the worker's next wake; what was planned before counts no more. */
void sim_plan(pl_sim *s, sim_worker *w, int64_t due_ns);
/* Say s->msg.u to the coordinator, as this worker.  What goes wrong is kept in s->status. */
void sim_say(pl_sim *s, sim_worker *w, uint16_t type);
/* The oldest note of a list; 0: there is none. */
int sim_take(pl_sim *s, sim_list *l, sim_note *out);
void sim_set_mode(pl_sim *s, sim_worker *w, sim_mode mode);

void sim_trainer_say(pl_sim *s, uint16_t type);
/* Until *n is target. */
pl_status sim_pass_time(pl_sim *s, const int *n, int target, pl_error *err);

/* ---- simulate_step.c ---- */
void sim_trainer_hear(pl_sim *s, const sim_note *n);

/* ---- simulate_worker.c ---- */
/* Its round or its rest is over: it reports, hears what has come, and begins a round if it has
 * work. */
void sim_worker_wake(pl_sim *s, sim_worker *w);
void sim_worker_hello(pl_sim *s, sim_worker *w);
void sim_worker_free(sim_worker *w);

/* ---- simulate_costs.c ---- */
pl_status sim_costs_open(pl_sim *s, pl_error *err);
void sim_costs_close(pl_sim *s);
/* What the samples of a step say of drafting. */
pl_status sim_costs_begin(pl_sim *s, const pl_trace_step *step, pl_error *err);
/* Tokens of a verify step of sample uid that has n, and rows that are drafted for it among
 * n_running that decode. */
int sim_emit(pl_sim *s, uint32_t uid, int n, int n_running, double *drafted);
/* Seconds of a round. */
double sim_round_seconds(const pl_sim *s, double n_rows, double n_drafted, int n_emitted);

#endif
