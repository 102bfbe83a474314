/* rollout/coordinator_internal.h - what the files of the coordinator share: members.c who takes
 * part, batches.c what is to be rolled out, leases.c who does it, results.c what came back,
 * authors.c who drew it, steps.c what was made of it, sessions.c who trains the drafter meanwhile,
 * drafters.c what came of that, tail.c the last samples of a batch put together, recover.c all of
 * that from the ledger. */
#ifndef PL_ROLLOUT_COORDINATOR_INTERNAL_H
#define PL_ROLLOUT_COORDINATOR_INTERNAL_H

#include "rollout/coordinator.h"

#include <stddef.h>

enum {
    NAME_ROOM = 64,        /* bytes of a member's name with its NUL */
    MEMBERS_MAX = 1024,    /* lost ones too */
    QUARANTINE_MAX = 4096, /* the oldest entries go */
    SEQS_MAX = 4096,       /* samples at once, whatever a HELLO claims */
    GROUPS_MAX = 1 << 20,  /* of a batch */
    GROUP_MAX = 1 << 16,   /* samples of a group */
    /* A RESULT of 9 bytes a token and a GROUP of 5 bytes a token fit a record of 1 MiB - 64. */
    TOKENS_MAX = 110000,
    PROMPT_MAX = 1 << 17,
    BATCH_MS = 250,         /* BATCH to the trainer this often */
    END_WAIT_MS = 30000,    /* a trainer that wants to go on behind END has joined by then */
    SHARE_MS = 2000,        /* a batch keeps the share of a worker that may yet come so long */
    LOAD_MS = 60000,        /* and that of one that loads its weights */
    SHARE_PARTS = 8,        /* a share of a batch is taken in so many turns */
    START_MS = 10000,       /* workers that are being started are waited for so long */
    FORGET_LOST_MS = 60000, /* a lost member's name is kept so long */
    REPLACE_MS = 3000,      /* one that is silent so long leaves its name to another peer */
    HELD_MS = 10000,        /* a result that was not heard for so long is had from elsewhere */
    DEAD_MS = 100,          /* whether a member's process has ended is asked this often */
    SOURCE_MAX = 2,         /* the greatest pl_draft_source */
    HALT_MS = 100,          /* HALT is said again so soon to one that shows a session */
    HALT_WAIT_MS = 2000,    /* leases are kept so long for one that was asked to stop training */
    TRAIN_TRIES = 3,        /* TRAINs; who shows no session after them wants none in this batch */
    DRAFTER_TRIES = 5,      /* DRAFTERs in quick succession; later ones come ten times slower */
};
static const int64_t NS_PER_MS = 1000000;

/* A worker or the trainer, from its HELLO on. */
typedef struct member {
    pl_peer peer;
    uint64_t incarnation;
    uint32_t role; /* pl_role */
    char name[NAME_ROOM], host[NAME_ROOM];
    uint32_t max_seqs;
    pl_worker_state state;
    uint32_t policy_version; /* as its last STATUS says; UINT32_MAX: none */
    float rate;              /* tokens/s, as it says; 0: not known */
    float fair_rate;         /* mean of those who are as fast: members.c; 0: not known */
    uint32_t n_leased;
    uint32_t pid, n_threads; /* as its HELLO says */
    uint32_t n_held;         /* as its last STATUS says */
    int has_status;          /* its first STATUS since it joined came */
    int is_draining;
    /* Newest h.seq of STATUS, GROUP and VERSION: older ones are late. */
    uint64_t status_seq, group_seq, version_seq;
    uint32_t n_versions; /* a trainer's: announced in this session */
    int64_t heard_ns, joined_ns, asked_ns;
    int was_dead; /* when it was last asked whether its process has ended */
    int64_t told_version_ns, told_drain_ns;

    /* The spot trainer: sessions.c */
    uint64_t session;       /* that it is to take part in; 0: none */
    int is_lead;            /* of that */
    uint64_t shown_session; /* as its last STATUS says */
    uint64_t declined;      /* 1 + id of the batch in which it was asked in vain */
    int n_told;             /* TRAINs since it last showed one */
    int64_t told_session_ns;
    int64_t halted_ns; /* it was asked to stop, 0: it was not, or has */
    uint32_t halt_us;  /* that took so long the last time; 0: it never was */
    /* Its drafter and its figures: drafters.c */
    uint32_t drafter_version;
    int n_told_drafter;
    int64_t told_drafter_ns;
    uint64_t drafting_seq;
    pl_msg_drafting figures; /* of the newest DRAFTING; data of its spans: */
    pl_pass_cost costs[PL_COST_BUCKETS];
    float alpha[PL_DRAFTING_DEPTHS];
    int has_figures;
    int64_t idle_ns;       /* without a sample, while the batch at hand was rolled out */
    uint64_t batch_before; /* the one that was at hand before it, */
    int64_t idle_before;   /* and idle_ns of that */
    uint64_t gave;         /* 1 + id of the batch in which it handed its samples over */
} member;

typedef enum sample_state {
    SAMPLE_PENDING,
    SAMPLE_LEASED,   /* holder has it */
    SAMPLE_RECORDED, /* a result is in the ledger, not yet durable */
    SAMPLE_DURABLE,
    SAMPLE_VOID, /* refused; pending once the refusal is durable */
    SAMPLE_STATES
} sample_state;

typedef enum record_state { NOT_RECORDED, RECORDED, DURABLE } record_state;

typedef struct writer { /* of the tokens from here to the next writer's */
    uint32_t from;
    uint64_t incarnation; /* 0: nobody knows */
    char name[NAME_ROOM];
} writer;

typedef struct handed { /* prefix tokens that a worker was leased, at most */
    uint64_t incarnation;
    uint32_t n;
} handed;

typedef struct sample {
    uint32_t uid;
    uint32_t attempt;   /* refusals of it: with the uid that names a result */
    sample_state state; /* changed by batches_move only */
    int was_leased;
    int may_run;    /* it may have been leased before this coordinator knew of it */
    member *holder; /* LEASED only */
    int64_t leased_ns, sent_lease_ns;
    int64_t held_ns;    /* its holder says since then that it has finished it; 0: it does not */
    int is_listed;      /* the last STATUS of holder says that it runs */
    int64_t handing_ns; /* holder was asked to hand it over; 0: not */
    int64_t sent_hand_ns;
    uint64_t heir; /* incarnation of who gets it when it is pending; 0: anybody */
    /* What is known of the response: progress, later the result. */
    uint32_t n, room;
    uint32_t n_prefix; /* of those, none of which ends the response */
    int32_t *tokens;
    float *logprobs;
    uint8_t *sources;
    uint32_t draft, accepted, steps;
    /* The result: RECORDED and DURABLE only. */
    uint32_t finish;
    char worker[NAME_ROOM];
    uint64_t by; /* incarnation of the worker */
    record_state reward_state;
    float reward;
    uint32_t reward_mark;
    uint64_t sent_to; /* incarnation of the trainer that was sent the result */
    /* Who drew it: authors.c */
    writer *writers;
    handed *handed;
    int n_writers, room_writers, n_handed, room_handed;
    uint32_t n_written; /* tokens that writers speaks of */
    uint32_t own;       /* of a result: the first token that is surely of its worker */
    int is_disputed;    /* there were two versions of what is known */
} sample;

typedef struct group {
    pl_msg_group m; /* prompt is owned */
    int is_durable;
    sample *samples; /* [m.n] */
    double expected; /* tokens of a sample */
} group;

typedef struct batch {
    uint64_t id;
    uint32_t n_groups, n_known, n_durable, n_samples;
    uint32_t n_in[SAMPLE_STATES]; /* samples by state */
    int was_handed;               /* some were asked back */
    group **groups;               /* [n_groups]; NULL: not yet known */
    group **order;    /* [n_groups] longest expected first, once all are durable; else NULL */
    int64_t open_ns;  /* when its samples could first be leased; 0: not yet */
    int was_complete; /* said in a BATCH to this trainer at once */
} batch;

typedef struct consumed {
    pl_msg_consume m;
    record_state state;
    uint64_t by; /* incarnation of the trainer that trained it last; 0: from the ledger */
} consumed;

typedef struct length_mean { /* of finished samples of a prompt */
    uint64_t prompt_key;
    uint64_t n, sum;
} length_mean;

typedef struct refused {
    char name[NAME_ROOM];
    uint64_t incarnation;
    int is_open; /* its result differs from the durable one of this sample: one of the two lies */
    uint64_t batch;
    uint32_t uid, attempt;
} refused;

typedef struct session { /* of the spot trainer */
    uint64_t id;         /* 0: none runs */
    uint64_t last;       /* the one before, in this epoch; 0: none */
    uint32_t n_begun;    /* in this epoch */
    uint64_t batch;
    int64_t begin_ns, used_ns; /* used: by the sessions of the same batch before this one */
    uint32_t policy_version;
    char host[NAME_ROOM];
} session;

/* What to do when a record is durable. */
typedef struct waiting {
    uint16_t type;
    uint64_t batch; /* or step */
    uint32_t id;    /* uid, i_group */
    pl_peer to;     /* who is answered; zeros: nobody */
} waiting;

struct pl_coordinator {
    pl_coordinator_options o;
    char *run, *build, *numeric_class;
    pl_coordinator_io io;
    const pl_log *log;
    uint64_t epoch;
    int is_open;  /* the EPOCH is durable: it talks */
    int has_runs; /* the ledger has an EPOCH, of run and numeric class: */
    char *ledger_run, *ledger_class;
    uint64_t ledger_config;

    member **members;
    int n_members, room_members;
    refused *refused;
    int n_refused, next_refused;

    batch **batches;
    int n_batches, room_batches;
    batch *current;
    int n_seen;     /* workers at once, at most, in this epoch */
    int want_grant; /* something changed that may allow a lease */
    int is_kept;    /* samples wait for members that load: the next tick looks again */
    length_mean *lengths;
    size_t n_lengths, room_lengths;

    consumed *steps;
    int n_steps, room_steps;
    int i_newest;         /* of steps: the one recorded last; -1 */
    pl_msg_traced traced; /* as it was recorded last, since this process began */
    pl_msg_version version;
    char *version_dir, *version_host, *version_endpoint;
    record_state version_state;
    pl_msg_drafter drafter; /* the newest; version 0: none */
    char *drafter_dir, *drafter_host, *drafter_endpoint;
    record_state drafter_state;
    session session;
    uint64_t checkpoint;
    int has_checkpoint;
    record_state end;

    waiting *waiting;
    int n_waiting, room_waiting;

    uint64_t trainer; /* incarnation of the newest in this epoch; 0: none yet */
    int n_trainers;   /* that joined in it */
    int is_draining, is_done;
    int is_waiting;  /* for workers of the epoch before to say what they run */
    int64_t tick_ns; /* the last one */
    int64_t idle_ns; /* members' idle time is counted up to here */
    int64_t begin_ns, told_batch_ns, told_stall_ns, told_join_ns;
    pl_coordinator_stats stats;
};

/* ---- coordinator.c ---- */
void coordinator_send(pl_coordinator *c, const pl_peer *to, pl_msg *m, uint16_t type);
void coordinator_send_uid(
    pl_coordinator *c, const pl_peer *to, uint16_t type, uint64_t id, uint32_t uid);
/* Append m to the ledger; once it is durable, do *w. */
pl_status coordinator_record(
    pl_coordinator *c, pl_msg *m, uint16_t type, const waiting *w, pl_error *err);
/* Room for one more element: doubles.  Errors: PL_E_NOMEM, the array stays. */
pl_status coordinator_grow(void **array, int n, int *room, size_t size, pl_error *err);
pl_status coordinator_copy(char **out, const char *s, pl_error *err); /* frees what *out was */
int coordinator_is_late(int64_t now_ns, int64_t since_ns, uint32_t ms);
void coordinator_progressed(pl_coordinator *c, int64_t now_ns);

/* ---- members.c ---- */
member *members_find(const pl_coordinator *c, const pl_peer *peer);
member *members_trainer(const pl_coordinator *c); /* NULL: none, or lost */
void members_reject(pl_coordinator *c, const pl_peer *to, pl_status code, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* One of the transitions of members.c; an impossible one is logged and does not happen. */
void members_move(pl_coordinator *c, member *m, pl_worker_state to, const char *cause);
void members_update(pl_coordinator *c, member *m); /* BUSY or IDLE, by its leases */
const char *members_state_name(pl_worker_state s);
pl_status members_hello(
    pl_coordinator *c, int64_t now_ns, const pl_peer *from, const pl_msg *m, pl_error *err);
/* Returns 0 when the STATUS is an old one. */
int members_status(pl_coordinator *c, int64_t now_ns, member *who, const pl_msg *m);
void members_leave(pl_coordinator *c, member *who);
/* The coordinator did not listen for so long: nobody was silent meanwhile. */
void members_forgive(pl_coordinator *c, int64_t now_ns, int64_t away_ns);
void members_tick(pl_coordinator *c, int64_t now_ns);
void members_drain(pl_coordinator *c, int64_t now_ns);
void members_stop(pl_coordinator *c);
/* Refuse name and incarnation from now on, and throw the member out if it is here. */
void members_quarantine(
    pl_coordinator *c, const char *name, uint64_t incarnation, const char *reason);
/* The same until it is decided whose result of the sample is true. */
void members_suspend(
    pl_coordinator *c, const member *who, const batch *b, const sample *s, const char *reason);
/* It is: the results of the batch stand, or nobody will tell; or that of this sample is refused. */
void members_convict(pl_coordinator *c, uint64_t batch);
void members_release(pl_coordinator *c, uint64_t batch);
void members_pardon(pl_coordinator *c, uint64_t batch, const sample *s);
/* Reject one in quarantine.  name may be NULL.  0: it is not. */
int members_turn_away(
    pl_coordinator *c, const pl_peer *from, const char *name, uint64_t incarnation);
void members_remove(pl_coordinator *c, member *m);

/* ---- batches.c ---- */
batch *batches_find(const pl_coordinator *c, uint64_t id);
sample *batches_sample(const batch *b, uint32_t uid, group **g); /* g may be NULL */
pl_status batches_on_group(
    pl_coordinator *c, int64_t now_ns, member *from, const pl_msg *m, pl_error *err);
pl_status batches_add(pl_coordinator *c, const pl_msg_group *m, int is_durable, pl_error *err);
/* What is wrong with it: a sentence in why, or 0. */
int batches_contradicts(const pl_coordinator *c, const pl_msg_group *m, char *why, size_t room);
void batches_group_durable(pl_coordinator *c, batch *b, uint32_t i_group);
void batches_forget(pl_coordinator *c, uint64_t step); /* CHECKPOINT */
void batches_free(pl_coordinator *c);
/* Leases of the one before are revoked. */
void batches_make_current(pl_coordinator *c, batch *b);
void batches_move(batch *b, sample *s, sample_state to);
void batches_count(const batch *b, pl_msg_batch *out);
int batches_is_complete(const batch *b); /* every sample is durable */
void batches_tell(pl_coordinator *c, int64_t now_ns);
pl_status batches_learn(pl_coordinator *c, uint64_t prompt_key, uint32_t n, pl_error *err);

/* ---- leases.c ---- */
void leases_grant(pl_coordinator *c, int64_t now_ns);
void leases_end(pl_coordinator *c, sample *s); /* LEASED -> PENDING, nobody is told */
/* All of a member's; keep: what is known of them stays known. */
void leases_return(pl_coordinator *c, member *m, int keep);
void leases_revoke_all(pl_coordinator *c, batch *b);
/* Nothing that it wrote is handed on. */
void leases_distrust(pl_coordinator *c, uint64_t incarnation);
void leases_cut(sample *s, uint32_t n); /* n tokens stay known */
void leases_on_status(
    pl_coordinator *c, int64_t now_ns, member *who, const pl_msg_status *s, int is_first);
pl_status leases_on_progress(
    pl_coordinator *c, int64_t now_ns, member *who, const pl_msg_progress *p, pl_error *err);
/* Tokens from..from + n - 1 of s become these; s->n is their end. */
pl_status leases_store(sample *s, uint32_t from, const pl_span *tokens, const pl_span *logprobs,
    const pl_span *sources, pl_error *err);

int leases_can_take(const pl_coordinator *c, const member *m, uint32_t version);

/* ---- sessions.c ---- */
/* STATUS of a worker that is in a session, or was asked to be. */
void sessions_on_status(pl_coordinator *c, int64_t now_ns, member *who, const pl_msg_status *s);
/* Begin, go on under another lead, end, as things stand; TRAIN and HALT that are due. */
void sessions_tick(pl_coordinator *c, int64_t now_ns);
/* Its device is needed: out of the session, HALT. */
void sessions_call_back(pl_coordinator *c, int64_t now_ns, member *m);
/* Nothing of the batch at hand waits for a worker, and somebody still rolls it out. */
int sessions_is_tail(const pl_coordinator *c);

/* ---- drafters.c ---- */
/* The trainer tells where the newest version is served. */
pl_status drafters_on_served(pl_coordinator *c, const pl_msg *m, pl_error *err);
pl_status drafters_on_drafter(
    pl_coordinator *c, int64_t now_ns, member *who, const pl_msg *m, pl_error *err);
pl_status drafters_set(
    pl_coordinator *c, const pl_msg_drafter *d, record_state state, pl_error *err);
void drafters_durable(pl_coordinator *c, int64_t now_ns, uint32_t version);
void drafters_send(pl_coordinator *c, int64_t now_ns, member *to); /* if there is one */
void drafters_tick(pl_coordinator *c, int64_t now_ns, member *m);
void drafters_on_drafting(pl_coordinator *c, member *who, const pl_msg *m);
/* Idle time up to now, by what everybody did since the last call. */
void drafters_count_idle(pl_coordinator *c, int64_t now_ns);
void drafters_tell(pl_coordinator *c); /* all figures of the batch at hand, to the trainer */

/* ---- tail.c ---- */
/* Few samples run: have a worker hand over, or wait for one that was asked to. */
void tail_tick(pl_coordinator *c, int64_t now_ns);

/* ---- authors.c ---- */
/* A lease with a prefix of n tokens leaves; one that left before, in this epoch or not, stands. */
void authors_hand(sample *s, uint64_t incarnation, uint32_t n);
void authors_adopt(sample *s, uint64_t incarnation);
/* who said the tokens from .. to - 1, behind those that are known. */
pl_status authors_add(sample *s, uint32_t from, uint32_t to, const member *who, pl_error *err);
void authors_cut(sample *s, uint32_t n);
/* How many of these are as known, token and log-prob bits, from the first on. */
uint32_t authors_agree(
    const sample *s, uint32_t from, const pl_span *tokens, const pl_span *logprobs);
/* The result of who comes, and is not yet stored: what of it is surely its own. */
void authors_finish(sample *s, const member *who, const pl_msg_result *r);
/* Did this worker surely draw the token there, in a result of its own? */
int authors_wrote(const sample *s, uint64_t incarnation, uint32_t position);
/* Who drew a token of the result; UINT32_MAX: who finished it.  0: nobody knows. */
int authors_blame(const sample *s, uint32_t position, writer *out);
uint32_t authors_first(const sample *s, uint64_t incarnation); /* UINT32_MAX: none */
void authors_clear(sample *s);
void authors_free(sample *s);

/* ---- results.c ---- */
pl_status results_on_result(
    pl_coordinator *c, int64_t now_ns, member *who, const pl_msg *m, pl_error *err);
pl_status results_on_reward(
    pl_coordinator *c, int64_t now_ns, member *who, const pl_msg *m, pl_error *err);
pl_status results_on_refuse(pl_coordinator *c, const pl_msg *m, pl_error *err);
void results_on_want(pl_coordinator *c, member *who, const pl_msg *m);
pl_status results_put(sample *s, const pl_msg_result *r, pl_error *err);
void results_discard(sample *s);
void results_refuse(sample *s); /* discarded, the next attempt begins */
int results_is_equal(const sample *s, const pl_msg_result *r);
int results_is_wrong(const group *g, const pl_msg_result *r, char *why, size_t room);
void results_durable(pl_coordinator *c, const waiting *w, batch *b);
void results_reward_durable(pl_coordinator *c, const waiting *w, batch *b);
void results_send(pl_coordinator *c, const batch *b, const group *g, sample *s);

/* ---- steps.c ---- */
consumed *steps_find(const pl_coordinator *c, uint64_t step);
pl_status steps_on_consume(
    pl_coordinator *c, int64_t now_ns, member *who, const pl_msg *m, pl_error *err);
pl_status steps_on_version(
    pl_coordinator *c, int64_t now_ns, member *who, const pl_msg *m, pl_error *err);
pl_status steps_on_checkpoint(pl_coordinator *c, const pl_msg *m, pl_error *err);
pl_status steps_on_traced(pl_coordinator *c, const pl_msg *m, pl_error *err);
pl_status steps_on_done(pl_coordinator *c, const pl_msg *m, pl_error *err);
pl_status steps_add(
    pl_coordinator *c, const pl_msg_consume *m, record_state state, uint64_t by, pl_error *err);
pl_status steps_set_version(
    pl_coordinator *c, const pl_msg_version *v, record_state state, pl_error *err);
void steps_consume_durable(pl_coordinator *c, uint64_t step);
void steps_version_durable(pl_coordinator *c, int64_t now_ns);
void steps_send_version(pl_coordinator *c, int64_t now_ns, member *to);
void steps_finish(pl_coordinator *c); /* STOP to all */

#endif
