/* rollout/internal.h - what the files of the engine share; no other folder includes it. */
#ifndef PL_ROLLOUT_INTERNAL_H
#define PL_ROLLOUT_INTERNAL_H

#include "rollout/controller.h"
#include "rollout/rollout.h"
#include "verifier/verifier.h"

enum {
    MAX_STOP_BYTES = 4096, /* of one stop string */
    STORE_AUTOMATA = 4,    /* the store holds this many times suffix.max_tokens */
};

/* ---- what is known of prompts, across groups and epochs ---- */

typedef struct suffix_entry {
    uint64_t key; /* 0: of one group only */
    pl_suffix *suffix;
    uint64_t used; /* tick of the last use */
    int n_users;
    struct suffix_entry *next;
} suffix_entry;

typedef struct suffix_store {
    pl_suffix_options o;
    suffix_entry *entries;
    uint64_t tick;
} suffix_store;

/* The entry of a key, made if there is none; NULL when memory is short (drafting is off then). */
suffix_entry *store_get(suffix_store *s, uint64_t key, const int32_t *prompt, int n_prompt);
void store_put(suffix_store *s, suffix_entry *e);
void store_age(suffix_store *s);
void store_done(suffix_store *s);

/* ---- samples and their groups ---- */

typedef struct group {
    uint32_t id;
    int32_t *prompt; /* own copy: siblings may outlive the request that brought it */
    int n_prompt;
    int n_live, n_running;
    pl_kv_seq kv;            /* of the prompt; n_tokens == n_prompt when it can be forked */
    int is_ready;            /* kv and logits hold the prompt */
    float *logits;           /* [V] of the prompt's last token */
    suffix_entry *knowledge; /* NULL: none */
    uint64_t planned;        /* the round whose pass prefills it */
    struct group *next;
} group;

typedef struct sequence {
    pl_request r;
    group *group;
    uint64_t order; /* of submission: the older goes first, the youngest is preempted first */
    struct sequence *next; /* in the queue */
    int32_t *tokens;       /* [max_tokens] NULL until first admitted, but for a prefix */
    float *logprobs;       /* [max_tokens] */
    uint8_t *source;       /* [max_tokens] */
    int n, n_reported;     /* both begin at r.n_prefix */
    pl_kv_seq kv; /* holds prompt and all but the last token when nothing is to be prefilled */
    int is_forked;
    pl_suffix_cursor *cursor;
    char *tail; /* [2 * tail_max] last bytes of the text, for stop strings */
    int n_tail, tail_max;
    pl_finish finish;
    int n_draft, n_accepted, n_verify;
} sequence;

/* One running sample's share of a round. */
typedef struct work {
    sequence *s;
    int i_seg;           /* of the pass; -1: none */
    int is_prefill;      /* the segment feeds known tokens */
    const float *logits; /* of the first token, else NULL */
    pl_draft draft;      /* what is verified */
    controller_item item;
    pl_verdict verdict;
    int n_kept; /* tokens of the verdict that count */
    pl_status status;
    pl_error err;
} work;

typedef int (*propose_fn)(sequence *s, const pl_draw *draw, int max_rows, int max_depth,
    pl_draft *draft, float *expected);

struct pl_engine {
    pl_engine_options o;
    pl_model *model;
    const pl_arch *arch;
    const pl_tokenizer *tok;
    const pl_log *log;
    pl_pass *pass;
    pl_kv_pool *pool;
    int n_pages;
    controller controller;
    suffix_store store;
    propose_fn propose; /* the suffix drafter; tests put hostile ones here */
    uint32_t version;
    int is_speculative;
    int is_broken; /* a round ended midway: nothing but pl_engine_clear is valid */

    group *groups;   /* live ones, newest first */
    sequence *queue; /* by order */
    sequence *queue_last;
    sequence **running; /* [max_num_seqs] by order */
    int n_running, n_queued;
    uint64_t next_order, round;

    work *work;              /* [max_num_seqs], of running in order */
    work **jobs;             /* [max_num_seqs] */
    controller_item **items; /* [max_num_seqs] */
    pl_segment *segs;        /* [max_num_seqs] */
    float *scratch;          /* [threads, pad32(V)] */
    pl_engine_stats stats;
};

/* ---- admit.c: who runs, and on which pages ---- */

/* Errors: PL_E_NOMEM when not even one sample can be started. */
pl_status engine_admit(pl_engine *e, pl_error *err);
/* Fork what waits for a prompt that is there now. */
void engine_fork_ready(pl_engine *e);
/* Pages for n more positions of kv, for sample s: idle prompts and then samples younger than s give
 * theirs.  0: s itself was put back into the queue. */
int engine_reserve(pl_engine *e, sequence *s, pl_kv_seq *kv, int n);
/* Take the sample out of the running ones; its text stays. */
void engine_preempt(pl_engine *e, sequence *s);
void engine_queue(pl_engine *e, sequence *s);
/* Take the sample uid out of the running ones or the queue; NULL: there is none. */
sequence *engine_take(pl_engine *e, uint32_t uid);
void sequence_free(pl_engine *e, sequence *s);
/* The arrays of the whole response, if they are not there yet.  0: memory is short. */
int sequence_alloc(sequence *s);
/* The live group of a request, made if there is none. */
pl_status group_get(pl_engine *e, const pl_request *r, group **out, pl_error *err);

/* ---- finish.c: what ends a response ---- */

/* Append what a verdict says, up to the token that finishes; returns how many count. */
int sequence_accept(const pl_engine *e, sequence *s, const pl_verdict *v);
/* Begin the response (its arrays are there) with the prefix of its request.  Errors: PL_E_INVAL
 * when the prefix ends the response. */
pl_status sequence_resume(const pl_engine *e, sequence *s, pl_error *err);

#endif
