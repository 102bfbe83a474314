/* rollout/internal.h - what the files of the engine share; no other folder includes it. */
#ifndef PL_ROLLOUT_INTERNAL_H
#define PL_ROLLOUT_INTERNAL_H

#include "model/features.h"
#include "rollout/controller.h"
#include "rollout/recorded.h"
#include "rollout/rollout.h"
#include "verifier/verifier.h"

enum {
    MAX_STOP_BYTES = 4096, /* of one stop string */
    STORE_AUTOMATA = 4,    /* the store holds this many times suffix.max_tokens */
    LEAD_ROWS = 32,        /* of a prompt's end, that windows begin with */
    LEARNED_DEPTH_MAX = 16,
    LEARNED_TOPK_MAX = 8,
    TAIL_RUNNING = 4, /* samples at most in a round of the tail */
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

/* ---- features of rows, gathered for windows ---- */

/* Consecutive positions of one sample (or of a prompt's end) and what the target computed there. */
typedef struct recorder {
    int position, n;    /* of row 0; rows */
    int served_from;    /* first row of the rounds of the drafter in service */
    int32_t *tokens;    /* [room] */
    uint16_t *features; /* [room][PL_FEATURE_LAYERS][cp] */
    uint16_t *hidden;   /* [room][cp] */
    struct recorder *next;
} recorder;

typedef struct window_set {
    pl_window_fn fn; /* NULL: no windows are wanted */
    void *ctx;
    int rows;
    recorder *recorders; /* [2 * max_num_seqs]: of samples, of prompts */
    recorder *free, *free_leads;
    void *store; /* what they point into */
} window_set;

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
    int place;               /* of the learned drafter, knows the prompt; -1: none */
    recorder *lead;          /* the prompt's last rows; NULL: none */
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
    int place;           /* of the learned drafter; -1: none */
    recorder *rec;       /* NULL: no windows of this sample */
    int recorded;        /* positions before this one are in windows that were handed over */
    const int32_t *text; /* [n_text] what is drawn, of an engine over a record */
    int n_text;
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
    pl_draw draw;
    pl_status status;
    pl_error err;
} work;

/* The pass of one round. */
typedef struct plan {
    int n_segs;
    int rows_left;
    int n_decode_left; /* samples further down that want a row each */
    int n_rows, n_prefill;
    double draft_s;
} plan;

typedef void (*job_fn)(pl_engine *e, work *w, int i_thread);

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
    const pl_recorded *record; /* instead of passes; NULL: the target runs */
    propose_fn propose;        /* the suffix drafter; tests put hostile ones here */
    pl_learned *learned;       /* NULL: made without */
    pl_learned_ask *asks;      /* [max_num_seqs] */
    const pl_eagle *eagle;     /* that drafts now, or NULL */
    pl_features features; /* of the rows of the last pass; buffers are NULL where none are wanted */
    window_set windows;
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
/* Drop what is held of a prompt: its pages and its features. */
void group_forget(pl_engine *e, group *g);
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

/* ---- round.c ---- */

/* How the next token of a sample is drawn. */
pl_draw engine_draw_of(const sequence *s);
/* Positions that must be in the cache before the sample decodes; the pending token's is the next.
 */
int engine_known(const sequence *s);
/* Run fn for the first n jobs, spread over the team. */
void engine_run_jobs(pl_engine *e, int n, job_fn fn);
double engine_seconds(void);

/* ---- recorded.c: an engine over a record (e->record is set) ---- */

/* Of a pool whose pages are only counted. */
pl_arch recorded_arch(const pl_arch *a);
/* The recorded response of a sample.  Errors: PL_E_INVAL. */
pl_status recorded_take(const pl_engine *e, sequence *s, pl_error *err);
/* What a pass does to the sequences. */
void recorded_pass(const pl_engine *e, const plan *p);
/* As pl_verify.  Errors: PL_E_INVAL when the record ends too early. */
pl_status recorded_verify(const sequence *s, const pl_draft *draft, pl_verdict *out, pl_error *err);
/* Features of the rows that stay, where the pass would have written them. */
void recorded_features(pl_engine *e, const plan *p);
double recorded_pass_s(const pl_engine *e, int n_rows);

/* ---- draft.c: trees for the samples that decode, as far as they pay ---- */

void engine_draft(pl_engine *e, plan *p);

/* ---- features.c: what the pass computed goes to the learned drafter and into windows ---- */

pl_status features_new(pl_engine *e, pl_error *err);
void features_done(pl_engine *e);
size_t features_plan(const pl_arch *a, const pl_engine_options *o, int n_threads); /* bytes */
/* Have the next pass write what is wanted now. */
void features_begin_pass(pl_engine *e);
/* After verification: rows that are in the cache now go where they belong. */
void features_settle(pl_engine *e, const plan *p);
/* A sample was forked from its prompt: it begins with what is known of that. */
void features_open(pl_engine *e, sequence *s);
/* The sample stops running.  Rows that no window holds yet come again when it is prefilled anew. */
void features_close(pl_engine *e, sequence *s);
void features_forget(pl_engine *e, group *g);

/* ---- windows.c ---- */

void windows_open(pl_engine *e, sequence *s);
void windows_close(pl_engine *e, sequence *s);
void windows_forget(pl_engine *e, group *g);
void windows_done(pl_engine *e);
/* Rows of the last pass from i_row on are those of n tokens from position on; is_known: which were
 * drawn before, so that no drafter served them now. */
void windows_take(pl_engine *e, sequence *s, int position, const int32_t *tokens, size_t i_row,
    int n, int is_known);
void windows_take_prompt(pl_engine *e, group *g, int position, size_t i_row, int n);
/* The drafter in service is there from the next round on. */
void windows_serve(sequence *s);
/* All of a round was taken: hand over what is full, or all when the sample is done. */
void windows_settle(pl_engine *e, sequence *s);

/* ---- finish.c: what ends a response ---- */

/* Append what a verdict says, up to the token that finishes; returns how many count. */
int sequence_accept(const pl_engine *e, sequence *s, const pl_verdict *v);
/* Begin the response (its arrays are there) with the prefix of its request.  Errors: PL_E_INVAL
 * when the prefix ends the response. */
pl_status sequence_resume(const pl_engine *e, sequence *s, pl_error *err);

#endif
