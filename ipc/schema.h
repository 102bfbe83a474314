/* ipc/schema.h - the records that modules and processes exchange: plain data, no tensors.
 * rollout/ and trainer/ meet here and nowhere else. */
#ifndef PL_IPC_SCHEMA_H
#define PL_IPC_SCHEMA_H

#include <stddef.h>
#include <stdint.h>

typedef enum pl_finish {
    PL_FINISH_NONE, /* still running */
    PL_FINISH_STOP, /* an end token or a stop string */
    PL_FINISH_LENGTH,
    PL_FINISH_ABORTED,
} pl_finish;

/* What a rollout worker is asked for: one sample. */
typedef struct pl_request {
    uint32_t uid;          /* NUMERICS 3 */
    uint32_t group;        /* samples with one group share a prompt and its cache */
    const int32_t *prompt; /* [n_prompt] borrowed until the response is done */
    int n_prompt;
    int max_tokens; /* of the response, >= 1 */
    float temperature, top_p, min_p;
    int top_k;
    uint64_t noise_key; /* pl_noise_key(rollout.seed) */
    uint32_t purpose;   /* PL_NOISE_SAMPLE or PL_NOISE_EVAL */
    int ignore_eos;
    const char *const *stop; /* [n_stop] stop strings, borrowed */
    int n_stop;
    uint64_t prompt_key; /* identifies the prompt across epochs (suffix drafter); 0: none */
    /* Response tokens that were emitted elsewhere, under the same weights and key: the response
     * begins with them and goes on, bit for bit.  Copied by pl_engine_submit; need not be kept. */
    const int32_t *prefix;        /* [n_prefix] */
    const float *prefix_logprobs; /* [n_prefix] handed through as given */
    const uint8_t *prefix_source; /* [n_prefix] pl_draft_source; NULL: the target */
    int n_prefix;                 /* 0: none; less than max_tokens */
    int prefix_draft, prefix_accepted, prefix_steps; /* spec_ counters so far */
} pl_request;

/* What comes back.  Never depends on workers, threads, ISA or drafter, but for the spec_ counters.
 */
typedef struct pl_response {
    uint32_t uid;
    uint32_t group;
    int n_prompt;
    const int32_t *prompt; /* [n_prompt] */
    int n_tokens;          /* the end token included */
    int32_t *tokens;       /* [n_tokens] */
    float *logprobs;       /* [n_tokens] */
    uint8_t *token_source; /* [n_tokens] pl_draft_source */
    pl_finish finish;
    uint32_t policy_version;
    int spec_num_draft_tokens;    /* proposed, the root not counted */
    int spec_num_accepted_tokens; /* of those, emitted */
    int spec_num_verify_steps; /* target passes that emitted for this sample (prefill's counts) */
    float temperature;
} pl_response;

/* ---- messages ----
 *
 * Two frames each: a header of PL_HEADER_BYTES and a body, a msgpack map whose keys are the names
 * of the fields below.  Every message may be lost, doubled or late: each is idempotent, and the
 * sender says it again until the answer shows that it arrived.  What the fields of a received
 * message point to lives until the next receive of the same socket.  docs/PROTOCOL.md has the
 * dialogue. */

enum {
    PL_PROTOCOL = 5,
    PL_HEADER_BYTES = 48,
    PL_BODY_MAX = 2 << 20,    /* bytes */
    PL_CHUNK_BYTES = 1 << 20, /* of the weight channel */
    PL_TEXT_BYTES = 4608      /* room for the strings of a received message */
};

typedef enum pl_role { PL_ROLE_WORKER = 1, PL_ROLE_TRAINER, PL_ROLE_COORDINATOR } pl_role;

typedef enum pl_msg_type {
    /* membership */
    PL_MSG_HELLO = 1, /* worker, trainer -> coordinator: let me in */
    PL_MSG_WELCOME,   /* <- */
    PL_MSG_REJECT,    /* <- : no, and why; the peer is disconnected */
    PL_MSG_STATUS,    /* worker, trainer -> : alive, what I do, what I hold */
    PL_MSG_DRAIN,     /* <- : finish nothing more, leave */
    PL_MSG_LEAVE,     /* worker -> : I am gone */
    PL_MSG_STOP,      /* coordinator -> all: the run is over */
    /* samples */
    PL_MSG_GROUP = 16, /* trainer -> : roll out these samples of one prompt */
    PL_MSG_LEASE,      /* -> worker */
    PL_MSG_REVOKE,     /* -> worker: drop these samples */
    PL_MSG_PROGRESS,   /* worker -> : tokens of a running sample */
    PL_MSG_RESULT,     /* worker -> coordinator, coordinator -> trainer: a finished sample */
    PL_MSG_ACK,        /* -> worker: durable, forget it */
    PL_MSG_BATCH,      /* -> trainer: how far the batch is */
    PL_MSG_WANT,       /* trainer -> : send these results (again) */
    PL_MSG_REWARD,     /* trainer -> : score of a sample; <- the one that stands, durable */
    PL_MSG_REFUSE,     /* trainer -> : the audit disproved a sample; roll it out again */
    PL_MSG_HANDOVER,   /* -> worker: a last PROGRESS of these samples, then drop them */
    /* steps and versions */
    PL_MSG_CONSUME = 32, /* trainer -> : a step is trained; <- durable, as first recorded */
    PL_MSG_VERSION,      /* trainer -> coordinator -> workers: a version exists, durable */
    PL_MSG_CHECKPOINT,   /* trainer -> : steps up to this one need not be remembered */
    PL_MSG_DONE,         /* trainer -> : the run is complete */
    PL_MSG_TRACED,       /* trainer -> : head of the trace, before the CONSUME of its last step */
    /* the spot trainer */
    PL_MSG_TRAIN = 40, /* -> worker: take part in this session */
    PL_MSG_HALT,       /* -> worker: leave it, give the device back */
    PL_MSG_DRAFTER,    /* lead -> coordinator -> workers, durable: a version of the drafter */
    PL_MSG_DRAFTING,   /* worker -> coordinator -> trainer: figures of a worker in a batch */
    /* weight channel */
    PL_MSG_FETCH = 48, /* -> publisher: chunks of a content, or its leaves */
    PL_MSG_LEAVES,     /* <- hashes of the chunks */
    PL_MSG_CHUNK,      /* <- */
    PL_MSG_GONE,       /* <- that content is not held any more */
    /* ledger only: never on a wire */
    PL_MSG_EPOCH = 64, /* a coordinator began */
    PL_MSG_END,        /* the run is complete */
} pl_msg_type;

typedef struct pl_header {
    uint16_t protocol, type; /* pl_msg_type */
    uint64_t epoch;          /* of the coordinator that the sender knows; 0: none yet */
    uint64_t incarnation;    /* random, of the sending process */
    uint64_t seq;            /* counts the sender's messages to this peer, from 1 */
    uint32_t n_body;
} pl_header;

/* A piece of bytes in a message: n elements of the type that the comment names, little-endian; not
 * aligned. */
typedef struct pl_span {
    const void *data;
    uint32_t n; /* elements */
} pl_span;

typedef struct pl_hash {
    unsigned char b[32]; /* BLAKE2b-256; root of a tree for weights */
} pl_hash;

typedef struct pl_msg_hello {
    uint32_t role;             /* pl_role */
    const char *name;          /* "worker-0": unique in a run */
    const char *numeric_class; /* PL_NUMERIC_CLASS */
    const char *build;         /* version and commit */
    const char *host;          /* boot id: equal on one machine */
    uint32_t pid, n_threads;
    uint32_t max_seqs; /* samples that it runs at once */
} pl_msg_hello;

typedef struct pl_msg_welcome {
    const char *run;       /* run id, hex */
    uint32_t heartbeat_ms; /* say STATUS this often */
    uint32_t lost_ms;      /* silence after which leases go elsewhere */
    uint64_t config_hash;
    pl_span config; /* u8: the run's resolved config.yaml, at most 256 KiB */
} pl_msg_welcome;

typedef struct pl_msg_reject {
    uint32_t code; /* pl_status; PL_E_PEER: say HELLO (again); PL_E_TIMEOUT: say it again later, the
                      place is taken; others are final */
    const char *reason;
} pl_msg_reject;

typedef enum pl_worker_state {
    PL_WORKER_JOINING,
    PL_WORKER_BUSY,
    PL_WORKER_IDLE,
    PL_WORKER_TRAINING,
    PL_WORKER_STOPPING,
    PL_WORKER_DRAINING,
    PL_WORKER_LOST,
} pl_worker_state;

typedef struct pl_msg_status {
    uint32_t state;           /* pl_worker_state as the worker sees it */
    uint32_t policy_version;  /* loaded; UINT32_MAX: none */
    uint64_t batch;           /* of the samples below */
    float rate;               /* tokens/s over the last rounds; 0: not known */
    pl_span running;          /* u32 uids, queued ones too */
    pl_span held;             /* u32 uids of finished, unacknowledged samples */
    uint64_t session;         /* of the spot trainer, that it takes part in; 0: none */
    uint32_t drafter_version; /* in use; 0: none */
} pl_msg_status;

/* Who drafts; what is drawn is the same. */
typedef enum pl_speculate {
    PL_SPECULATE_OFF,
    PL_SPECULATE_ON,     /* all that there are, in their newest version */
    PL_SPECULATE_SUFFIX, /* the suffix drafter alone */
    PL_SPECULATE_FIRST,  /* the learned drafter as it was first published, or began */
} pl_speculate;

/* How samples are drawn; the same for a whole batch. */
typedef struct pl_sampling {
    uint32_t max_tokens;
    float temperature, top_p, min_p;
    uint32_t top_k;
    uint64_t noise_key;
    uint32_t purpose;
    uint32_t ignore_eos;  /* 0, 1 */
    uint32_t speculative; /* pl_speculate */
} pl_sampling;

typedef struct pl_msg_group {
    uint64_t batch;     /* kind << 32 | step: what was rolled out stays known by it */
    uint32_t n_groups;  /* of the batch */
    uint32_t i_group;   /* 0 .. n_groups - 1 */
    uint32_t first_uid; /* of the group; samples are first_uid .. first_uid + n - 1 */
    uint32_t group;     /* pl_request.group */
    uint32_t n;
    uint32_t policy_version; /* that must roll it out */
    pl_sampling sampling;
    uint64_t prompt_key;
    pl_span prompt; /* i32 */
} pl_msg_group;

typedef struct pl_msg_progress {
    uint64_t batch;
    uint32_t uid, policy_version;
    uint32_t pos0;                     /* response tokens before these */
    pl_span tokens, logprobs, sources; /* i32, f32, u8: the same n */
    uint32_t draft, accepted, steps;   /* spec_ counters after them */
    uint32_t attempt;                  /* of the LEASE */
} pl_msg_progress;

typedef struct pl_msg_lease {
    uint64_t batch;
    uint32_t uid, group, policy_version;
    pl_sampling sampling;
    uint64_t prompt_key;
    pl_span prompt;                                  /* i32 */
    pl_span prefix, prefix_logprobs, prefix_sources; /* i32, f32, u8: what is known already */
    uint32_t draft, accepted, steps;                 /* spec_ counters of the prefix */
    uint32_t attempt; /* refusals of the sample before; a later one replaces an earlier one */
} pl_msg_lease;

typedef struct pl_msg_result {
    uint64_t batch;
    uint32_t uid, group, policy_version;
    uint32_t finish;                   /* pl_finish */
    pl_span tokens, logprobs, sources; /* i32, f32, u8 */
    uint32_t draft, accepted, steps;
    float temperature;
    const char *worker;  /* who finished it (ledger and trainer; empty from a worker) */
    uint32_t has_reward; /* to the trainer: the ledger knows its reward */
    float reward;
    uint32_t reward_mark; /* 0 scored, 1 timed out, 2 failed */
    uint32_t attempt;     /* with batch and uid: which result */
    uint64_t author;      /* ledger only: incarnation of worker */
    uint32_t own;         /* ledger only: tokens from here on are surely its own */
} pl_msg_result;

typedef struct pl_msg_uids { /* REVOKE, ACK, WANT, HANDOVER */
    uint64_t batch;
    pl_span uids; /* u32 */
} pl_msg_uids;

typedef struct pl_msg_batch {
    uint64_t batch;
    uint32_t n_groups_known; /* GROUP messages that arrived */
    uint32_t n_samples, n_done, n_running;
    uint64_t n_tokens; /* emitted so far, as far as known */
    /* of the coordinator since it began: members lost, workers thrown out, samples leased again,
     * tokens that must be generated again */
    uint32_t n_lost, n_quarantined;
    uint64_t n_leased_again, n_recomputed;
} pl_msg_batch;

typedef struct pl_msg_reward {
    uint64_t batch;
    uint32_t uid;
    float score;
    uint32_t mark;
    uint32_t attempt; /* of the RESULT that was scored */
} pl_msg_reward;

typedef struct pl_msg_refuse {
    uint64_t batch;
    uint32_t uid, code; /* what the audit found */
    const char *reason;
    uint32_t attempt;  /* of the RESULT that is refused */
    uint32_t position; /* of the fault, in the response; UINT32_MAX: the whole */
} pl_msg_refuse;

typedef struct pl_msg_consume {
    uint64_t step, batch;
    uint32_t n_samples;
    pl_hash samples; /* over uid, tokens, log-prob bits, finish, reward in uid order */
    pl_hash weights; /* root of the version that came out */
    uint32_t again;  /* the step was trained before, by a trainer that was lost since */
} pl_msg_consume;

typedef struct pl_msg_traced {
    uint64_t step;
    pl_hash head; /* pl_trace_put */
} pl_msg_traced;

typedef struct pl_msg_version {
    uint32_t version;
    pl_hash hash;         /* root over the leaves of model.safetensors */
    uint64_t n_bytes;     /* of it */
    const char *dir;      /* the version as a model directory on the trainer's machine */
    const char *host;     /* that machine's boot id */
    const char *endpoint; /* where chunks are served */
    pl_hash bundle;       /* root of what makes a model directory of it: config, tokenizer */
    uint64_t n_bundle;    /* bytes */
    uint32_t max_ctx;     /* tokens of a sample, prompt and response, at most */
} pl_msg_version;

typedef struct pl_msg_step { /* CHECKPOINT, DONE */
    uint64_t step;
} pl_msg_step;

/* Ids of sessions rise: epoch << 32 | counter.  One worker leads a session. */
typedef struct pl_msg_train {
    uint64_t session;
    uint32_t is_lead; /* 0, 1 */
    uint64_t batch;   /* that the session belongs to */
    uint32_t policy_version;
    const char *buffers; /* names of the workers on this host whose data may be read, one a line */
} pl_msg_train;

typedef struct pl_msg_halt {
    uint64_t session;
} pl_msg_halt;

typedef struct pl_msg_drafter {
    uint32_t version, parent;  /* versions count from 1 and rise; parent 0: none */
    uint64_t session, step;    /* optimizer steps so far */
    pl_hash hash;              /* root over the leaves of its weights */
    uint64_t n_bytes;          /* of them */
    const char *dir;           /* the drafter as a directory on that machine */
    const char *host;          /* its boot id */
    const char *endpoint;      /* where chunks are served; empty: nowhere */
    pl_hash bundle;            /* root of what makes a drafter's directory of it */
    uint64_t n_bundle;         /* bytes */
    float tau, tau_parent, se; /* of the gate: tokens a verify pass, standard error of the gain */
    uint32_t rollback;         /* 1: the weights are those of an older version */
} pl_msg_drafter;

enum { PL_DRAFTING_DEPTHS = 8, PL_COST_BUCKETS = 64 };

/* Passes without prefill of about the same number of rows (pl_cost_bucket). */
typedef struct pl_pass_cost {
    uint32_t bucket, n;
    float seconds; /* of all n */
} pl_pass_cost;

/* Since the batch began; the newest of a worker and batch counts. */
typedef struct pl_msg_drafting {
    uint64_t batch;
    const char *worker; /* empty from a worker: the coordinator fills it in */
    uint32_t drafter_version;
    uint32_t halt_us; /* the coordinator's: from HALT to the free device, the last time; 0: never */
    uint32_t idle_ms; /* nothing to roll out; of that: */
    uint32_t train_ms, gate_ms, pack_ms, wait_ms; /* wait: in a session, nothing to train on */
    uint32_t n_optimizer_steps, n_dropped;        /* dropped: unfinished or NaN */
    uint64_t n_trained_tokens;
    float loss;
    pl_span alpha; /* f32 by depth from 1, at most PL_DRAFTING_DEPTHS */
    uint64_t n_drafted_steps, n_drafted_emitted; /* rounds that drafted, tokens of them */
    uint64_t n_learned_draft, n_learned_accepted;
    uint64_t n_suffix_draft, n_suffix_accepted;
    uint64_t n_tail_steps, n_tail_emitted; /* rounds with at most 4 running samples */
    uint32_t tail_ms, draft_ms, verify_ms;
    uint32_t n_swaps;                          /* of drafters */
    uint64_t n_before_steps, n_before_emitted; /* that drafted before the newest of them */
    pl_span costs;                             /* pl_pass_cost, at most PL_COST_BUCKETS */
} pl_msg_drafting;

typedef struct pl_msg_fetch {
    pl_hash hash;
    uint32_t first, n; /* chunks; n = 0: the leaves */
} pl_msg_fetch;

typedef struct pl_msg_leaves {
    pl_hash hash;
    uint64_t n_bytes;
    uint32_t first;
    pl_span leaves; /* 32-byte hashes, n of them */
} pl_msg_leaves;

typedef struct pl_msg_chunk {
    pl_hash hash;
    uint32_t index;
    uint64_t offset;
    uint32_t crc; /* CRC-32C of the bytes */
    pl_span bytes;
} pl_msg_chunk;

typedef struct pl_msg_gone {
    pl_hash hash;
    uint32_t oldest; /* version still held */
} pl_msg_gone;

typedef struct pl_msg_epoch {
    uint64_t epoch;
    const char *run, *build, *numeric_class;
    uint64_t config_hash;
} pl_msg_epoch;

typedef struct pl_msg {
    pl_header h; /* type says which of these */
    union {
        pl_msg_hello hello;
        pl_msg_welcome welcome;
        pl_msg_reject reject;
        pl_msg_status status;
        pl_msg_group group;
        pl_msg_lease lease;
        pl_msg_progress progress;
        pl_msg_result result;
        pl_msg_uids uids;
        pl_msg_batch batch;
        pl_msg_reward reward;
        pl_msg_refuse refuse;
        pl_msg_consume consume;
        pl_msg_traced traced;
        pl_msg_version version;
        pl_msg_step step;
        pl_msg_train train;
        pl_msg_halt halt;
        pl_msg_drafter drafter;
        pl_msg_drafting drafting;
        pl_msg_fetch fetch;
        pl_msg_leaves leaves;
        pl_msg_chunk chunk;
        pl_msg_gone gone;
        pl_msg_epoch epoch;
    } u; /* DRAIN, LEAVE, STOP, END: none */
    /* Strings of a decoded message, each with its NUL (msgpack has none): the const char * above
     * point here, so a copy of a decoded pl_msg still points into the first.  Senders leave it. */
    char text[PL_TEXT_BYTES];
} pl_msg;

#endif
