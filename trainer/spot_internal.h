/* trainer/spot_internal.h - what the files of the spot trainer share.
 *
 * RUN/drafter/state, one mapped file:
 *
 *     head (fixed) | claim | record 0 | record 1 | half 0 | half 1
 *     half: vocabulary [n_vocab], weights, first and second moments, average [n_elements]
 *
 * A record names what its half holds: sequence number, session, step.  The half with the highest
 * sequence number is valid.  A step goes from the valid half into the other: its record is voided,
 * the half is filled, the record is written, which is the flip.  So whoever is killed anywhere, and
 * whoever is told to stop in the middle, leaves the half before as it was; readers copy, and look
 * whether the record still stands.  After a power cut nothing is promised: a state that is torn, or
 * that was last written before this machine started, is put aside for the checkpoint.
 *
 * The claim is the session that owns the state, with a mark of its lead.  A lead writes under an
 * flock of the file, and only as long as the claim is its own; a later session's lead claims first
 * and locks then, so a lead that was late finds the claim changed before it can flip, or flips
 * before the other begins, who then finds another sequence number and reloads. */
#ifndef PL_TRAINER_SPOT_INTERNAL_H
#define PL_TRAINER_SPOT_INTERNAL_H

#include "trainer/spot.h"

#include <pthread.h>
#include <stdatomic.h>

enum {
    SPOT_LAYOUT = 2,
    SPOT_PAGE = 4096,
    SPOT_CLAIM = 1024, /* offsets in the first page */
    SPOT_RECORD = 2048,
    SPOT_RECORD_STRIDE = 1024,
    SPOT_PATH = 4096,
    SPOT_NAME = 128,
    SPOT_BUFFERS = 64,
    SPOT_JOINERS = 64,
    SPOT_SAID = 64,
    SPOT_PIECE = 4, /* windows that a gate replays at a time */
    SPOT_BAD_MAX = 3,
    SPOT_DECAY_STEPS = 100, /* after which the rate is half of what it was */
    SPOT_INIT_STEPS = 1000  /* for which a drafter that was handed in counts */
};
#define SPOT_DECAY_MIN 0.03 /* the least part of the rate: the policy goes on moving */

typedef struct spot_head {
    char magic[8]; /* "PLSPOT01" */
    uint32_t layout, has_average;
    uint64_t target, n_elements, file_bytes;
    int32_t n_ff, n_heads, n_kv_heads, n_vocab;
    uint32_t variant; /* bit 0: no_fc_norm, bit 1: raw_output */
    uint32_t crc;     /* CRC-32C of all before */
} spot_head;
_Static_assert(sizeof(spot_head) == 64, "no padding");

/* What a half holds, as 64-bit words of the file. */
typedef struct spot_record {
    uint64_t seq; /* 0: nothing */
    uint64_t session;
    int64_t step;
    uint64_t trained_us;                 /* of all sessions: the time that the gate goes by */
    uint64_t vocab_id;                   /* counts vocabularies */
    double measured[PL_EAGLE_DEPTH_MAX]; /* acceptance by depth, running mean */
    uint64_t crc;                        /* CRC-32C of all before */
} spot_record;
enum { SPOT_RECORD_WORDS = 6 + PL_EAGLE_DEPTH_MAX };
_Static_assert(sizeof(spot_record) == 8 * SPOT_RECORD_WORDS, "no padding");

/* In the claim's place. */
typedef struct spot_claim {
    _Atomic uint64_t owner;    /* session << 16 | mark of the lead's name */
    _Atomic uint64_t gated_us; /* trained_us at the last gate */
    _Atomic uint64_t boot;     /* hash of the kernel's boot id when it was claimed; 0: not known */
} spot_claim;

typedef struct spot_file {
    int fd; /* -1: there is none yet */
    unsigned char *base;
    size_t size;
    spot_head head;
} spot_file;

/* One window batch: storage of the caller and the views of it. */
typedef struct spot_batch {
    unsigned char *storage;
    pl_feature_window *windows;
    pl_eagle_window *train;
    uint8_t *is_target;
    float *lse;
    uint32_t *uids;
    int room, n;
} spot_batch;

typedef struct spot_buffer {
    char *path;
    uint64_t dev, ino;
    pl_windows *view;
    int is_used; /* of this session */
} spot_buffer;

/* The gradient file of a joiner, mapped. */
typedef struct spot_joiner {
    char name[SPOT_NAME];
    uint64_t dev, ino;
    unsigned char *base;
    size_t size;
    int has_missed;
} spot_joiner;

/* A job off the training path. */
typedef struct spot_job {
    pthread_t thread;
    int is_running;        /* a thread must be joined */
    _Atomic int is_done;   /* it has nothing left to do */
    _Atomic int is_pinned; /* 1 + the half that it still reads; 0: none */
    pl_status status;
    pl_error err;
} spot_job;

/* Something large that is made by a thread, from what is here and from what of the trainer no piece
 * of work changes; of the target it reads no weights, as those change between sessions.  A piece of
 * work waits for it; one that is told to stop leaves the thread at it, and a later one goes on
 * waiting. */
typedef struct spot_aside spot_aside;
typedef pl_status spot_make(spot_aside *a, pl_error *err);
struct spot_aside {
    spot_job job;
    const struct pl_spot *s;
    spot_make *make;
    char path[SPOT_PATH];
    const pl_eagle *from; /* *borrowed* */
    pl_eagle *e;          /* *owned*: what it is made from, or was made */
};

typedef struct spot_publish {
    spot_job job;
    pl_eagle *e; /* *owned* until it serves */
    pl_spot_published what;
    char note[2048]; /* gate.json */
    char temp[SPOT_PATH];
} spot_publish;

typedef struct spot_checkpoint {
    spot_job job;
    char path[SPOT_PATH];
    const struct pl_spot *s;
    spot_record record;
    int half;
} spot_checkpoint;

/* Replays of one drafter over the gate's windows. */
typedef struct spot_side {
    pl_eagle *e;              /* *borrowed*, but the candidate's and the parent's */
    uint32_t version;         /* of the serving one and of its parent */
    pl_replay_window *rounds; /* [room] */
    int n_done;
} spot_side;

/* The candidate and the parent stay from gate to gate, and go round when a version is published:
 * fresh memory for one takes a tenth of a second, in which nobody looks at the stop. */
typedef struct spot_gate {
    int is_on;
    spot_batch batch;
    uint64_t key; /* of the windows */
    uint32_t newest;
    spot_side candidate, serving; /* on what is held out */
    spot_side served, parent;     /* on the rounds that the serving one served: it, its parent */
    int has_serving;
    int is_back; /* it is the serving one that is weighed, against its parent */
    uint32_t back_version, back_newest; /* when it was last, and the policy then */
    int64_t step;
    uint64_t check_us; /* trained_us at which enough windows are looked for again */
    double cost_s;     /* of the gate that goes on; of the last one, when none does */
} spot_gate;

struct pl_spot {
    const pl_model *target;
    const pl_log *log;
    pl_spot_options o; /* strings are copies */
    char dir[SPOT_PATH], name[SPOT_NAME], init[SPOT_PATH], state_path[SPOT_PATH];
    uint16_t mark;

    spot_file file;
    pl_eagle *e; /* the weights of the half with s->seq */
    pl_eagle_trainer *t;
    uint64_t seq, vocab_id;
    float *grads;
    size_t n_grads; /* elements */

    uint64_t session;
    int is_in, is_lead, is_over, n_bad;
    uint32_t newest, looked_at; /* policy version; the one whose coverage was looked at */
    int has_looked, is_look_due;
    spot_buffer buffers[SPOT_BUFFERS];
    int n_buffers;
    pl_windows *views[SPOT_BUFFERS];
    int n_views;
    uint64_t said[SPOT_SAID];
    int n_said;
    spot_batch batch;
    uint64_t n_picks;

    spot_joiner joiners[SPOT_JOINERS]; /* in order of names */
    int n_joiners;
    spot_joiner own;  /* as a joiner */
    uint64_t own_seq; /* of the weights that its gradients were made from last */

    spot_gate gate;
    pl_eagle *serving; /* version of it: serving_version; NULL: none */
    uint32_t serving_version, serving_parent;
    int serving_is_rollback;
    spot_publish publish;
    spot_checkpoint checkpoint;
    spot_aside reading;  /* a drafter's directory */
    spot_aside starting; /* the state file */
    int is_begun_anew;   /* in this session there is no checkpoint to start from */

    pl_spot_stats stats;
    double waiting_since;          /* 0: not waiting */
    int (*should_stop)(void *ctx); /* of the call */
    void *stop_ctx;
    int is_stopped; /* it said so */
};

double spot_now(void); /* seconds, monotonic */
/* Is this call to end?  spot: pl_spot *.  Once it is, nobody is asked any more. */
int spot_stopped(void *spot);
pl_status spot_stop(pl_error *err); /* PL_E_STOPPED with words */
void spot_sleep(double seconds);
/* Warn that training goes on without that file or directory, once for each. */
void spot_say(pl_spot *s, const char *path, const char *why);
int spot_was_said(const pl_spot *s, const char *path);

/* ---- spot_state.c: the file ---- */

/* Map dir/state.  Errors: PL_E_NOENT, PL_E_SHAPE (another target), PL_E_FORMAT, PL_E_IO. */
pl_status spot_file_open(pl_spot *s, pl_error *err);
void spot_file_close(spot_file *f);
/* Make it from a state (m NULL: moments zero, average the weights), unless another process was
 * faster.  Any thread may.  Errors: PL_E_IO. */
pl_status spot_file_write(
    const pl_spot *s, const pl_eagle *e, const pl_eagle_state *from, pl_error *err);
/* The file of another, or none, is at its place now. */
int spot_file_has_moved(const pl_spot *s);
/* Let go of the state; what is at its place is read anew. */
void spot_file_forget(pl_spot *s);
/* The same for a lead: one that is torn, or that a power cut may have harmed, is left at
 * dir/state.aside for the user to look at, and there is none then.  Errors: PL_E_TIMEOUT (another
 * lead is at it), and as above. */
pl_status spot_file_open_sound(pl_spot *s, pl_error *err);

/* The valid record and its half (0, 1); -1: both are torn. */
int spot_valid(const spot_file *f, spot_record *out);
uint64_t spot_record_crc(const spot_record *r);
/* 1 while that half holds the record of that number: it is voided before it is written again. */
int spot_half_is(const spot_file *f, int half, uint64_t seq);
int32_t *spot_vocab(const spot_file *f, int half);
pl_eagle_state spot_half(const spot_file *f, int half, int64_t step);
size_t spot_half_bytes(const spot_head *h);
void spot_head_fill(spot_head *h, const pl_spot *s, const pl_eagle_shape *shape, size_t n_elements);
pl_eagle_shape spot_head_shape(const spot_head *h);
/* Errors: PL_E_SHAPE, PL_E_FORMAT. */
pl_status spot_head_check(
    const spot_head *h, const pl_spot *s, uint64_t file_bytes, const char *path, pl_error *err);
spot_claim *spot_claim_of(const spot_file *f);
/* Own the state, from a lower session.  Errors: PL_E_PEER. */
pl_status spot_claim_take(pl_spot *s, pl_error *err);
/* Is the session still the state's?  Errors: PL_E_PEER. */
pl_status spot_claim_check(const pl_spot *s, pl_error *err);
/* Have s->e and s->t be what the valid half holds.  Errors: PL_E_STOPPED, PL_E_FORMAT, PL_E_NOMEM.
 */
pl_status spot_sync(pl_spot *s, pl_error *err);

/* Fill the other half by pieces, then flip.  fill is called with ascending ranges of elements; it
 * may be NULL with all done in `vocab`. */
typedef struct spot_change {
    int from, to; /* halves */
    spot_record old, next;
    pl_eagle_state src, dst;
} spot_change;
/* Errors: PL_E_PEER, PL_E_TIMEOUT (another holds the lock, or a later step is there). */
pl_status spot_change_begin(pl_spot *s, spot_change *c, pl_error *err);
void spot_change_flip(pl_spot *s, spot_change *c);
void spot_change_end(pl_spot *s); /* gives the lock back, flipped or not */

/* ---- spot_train.c ---- */

pl_status spot_batch_init(spot_batch *b, const pl_spot *s, int room, pl_error *err);
void spot_batch_done(spot_batch *b);
/* What is chosen next, of those that train or of those that are held out; *borrows* s. */
pl_windows_pick spot_pick_rule(pl_spot *s, int is_held_out);
/* Choose windows; b->n may be 0, and is less when it is told to stop. */
void spot_pick(pl_spot *s, spot_batch *b, const pl_windows_pick *p);
/* Weights [n_elements] into e, by parts.  Errors: PL_E_STOPPED. */
pl_status spot_copy_weights(pl_spot *s, pl_eagle *e, const float *weights, pl_error *err);
pl_status spot_step_lead(pl_spot *s, pl_error *err);
pl_status spot_step_joiner(pl_spot *s, pl_error *err);

/* ---- spot_joiners.c ---- */

/* The lead looks for files, and forgets those of other sessions. */
void spot_joiners_scan(pl_spot *s);
/* Average in the gradients that are there within wait_s; *n_tokens grows.  Errors: PL_E_STOPPED. */
pl_status spot_joiners_add(
    pl_spot *s, uint64_t seq, double wait_s, int64_t *n_tokens, pl_error *err);
void spot_joiners_done(pl_spot *s);
/* A joiner's own file.  Errors: PL_E_IO. */
pl_status spot_own_open(pl_spot *s, pl_error *err);
float *spot_own_begin(pl_spot *s); /* the gradients are being written from now on */
void spot_own_commit(pl_spot *s, uint64_t seq, int64_t n_tokens);
void spot_own_leave(pl_spot *s);
void spot_own_done(pl_spot *s);

/* ---- spot_vocab.c ---- */

/* The first state: what was saved in dir/checkpoint, else what init says: a new drafter, a
 * drafter's directory or a checkpoint.  Errors: PL_E_TIMEOUT (nothing to count yet), PL_E_STOPPED,
 * and those of loading. */
pl_status spot_start(pl_spot *s, pl_error *err);
/* Another vocabulary, when it covers too little of the newest windows.  Errors: as spot_change. */
pl_status spot_refresh(pl_spot *s, pl_error *err);
/* The same number of ids, ascending. */
pl_status spot_vocab_change(pl_spot *s, const int32_t *ids, pl_error *err);

/* ---- spot_versions.c ---- */

/* The newest version on disk, loaded; none: nothing.  Errors of the three: PL_E_STOPPED (go on with
 * the same call later), and those of loading. */
pl_status spot_versions_open(pl_spot *s, pl_error *err);
/* With no version there: the drafter that was handed in serves, until a better one is published. */
pl_status spot_init_load(pl_spot *s, pl_error *err);
pl_status spot_version_load(pl_spot *s, uint32_t version, pl_eagle **out, pl_error *err);
/* A drafter's directory, packed. */
pl_status spot_drafter_read(pl_spot *s, const char *dir, pl_eagle **out, pl_error *err);
/* Begin to write e (*taken*) as the next version; the figures of *what are set. */
pl_status spot_publish_begin(pl_spot *s, pl_eagle *e, const pl_spot_published *what, pl_error *err);
/* 1 when one became durable: *out is set and it serves.  Errors: PL_E_IO. */
pl_status spot_publish_poll(pl_spot *s, int wait, pl_spot_published *out, pl_error *err);

/* ---- spot_gate.c ---- */

int spot_gate_is_due(const pl_spot *s);
/* Begin, or go on with, a gate: one piece.  PL_E_TIMEOUT: not now, there is too little held out or
 * what it weighs has changed. */
pl_status spot_gate_work(pl_spot *s, pl_error *err);
void spot_gate_drop(pl_spot *s);
/* e (*taken*) serves now; the one that did is its parent. */
void spot_gate_serve(pl_spot *s, pl_eagle *e, uint32_t version);
void spot_gate_done(pl_spot *s);

/* ---- spot_jobs.c ---- */

pl_status spot_job_start(spot_job *j, void *(*run)(void *), void *arg, pl_error *err);
void spot_job_finish(spot_job *j, pl_status status, const pl_error *err);
pl_status spot_job_join(spot_job *j, pl_error *err); /* waits */
/* Has that been begun, and its end not been seen? */
int spot_aside_is(const spot_aside *a, spot_make *make, const char *path);
/* Begin that, when the end of another is there, which is dropped; what it is made from can be set
 * then.  Errors: PL_E_STOPPED, PL_E_INVAL. */
pl_status spot_aside_begin(
    pl_spot *s, spot_aside *a, spot_make *make, const char *path, pl_error *err);
/* Wait for its end; what was made is in *a.  Errors: PL_E_STOPPED, PL_E_NOMEM, those of make. */
pl_status spot_aside_work(pl_spot *s, spot_aside *a, pl_error *err);
/* Begin, if it has not been, and wait: of what is made from the path alone. */
pl_status spot_aside_run(
    pl_spot *s, spot_aside *a, spot_make *make, const char *path, pl_error *err);
/* Wait for its end, if it has been begun, and drop what came of it.  Errors: PL_E_STOPPED. */
pl_status spot_aside_end(pl_spot *s, spot_aside *a, pl_error *err);
void spot_aside_done(spot_aside *a); /* waits, and frees what is owned */
void spot_aside_tidy(spot_aside *a); /* the same, if its end is there */

/* ---- spot_checkpoint.c ---- */

/* A state file from a checkpoint.  Errors: PL_E_NOENT, PL_E_FORMAT, PL_E_SHAPE, PL_E_STOPPED. */
pl_status spot_checkpoint_load(pl_spot *s, const char *path, pl_error *err);

#endif
