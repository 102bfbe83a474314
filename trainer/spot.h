/* trainer/spot.h - the spot trainer: trains the drafter on a device that has nothing else to do,
 * and gives it back at once.
 *
 * Sessions are ordered by the coordinator (or by the only process of a small run).  The state of
 * the training - weights, moments, average, step - is one mapped file, two halves, of which the
 * valid one is named by a header with the session that owns it: whoever leads session s + 1 goes on
 * from what the lead of session s had finished last, whatever became of it.  Joiners read the
 * weights from there, leave gradients in a file of their own, and the lead averages those that are
 * there in time, in the order of names.  What is trained, when and by whom cannot change the text.
 *
 * A version is published when the gate says so: its exact replay (drafter/replay.h, fixed:6_4_16)
 * on held-out windows is better than the serving one's by more than one standard error.  It is
 * taken back when its parent replays better by two on the rounds that it served, whatever sample
 * they are of. */
#ifndef PL_TRAINER_SPOT_H
#define PL_TRAINER_SPOT_H

#include "core/log.h"
#include "drafter/eagle.h"
#include "drafter/replay.h"
#include "trainer/windows.h"

typedef struct pl_spot_options {
    const char *dir;  /* RUN/drafter: state, versions/N/, grads of joiners */
    const char *name; /* of this worker, unique in the run */
    pl_eagle_train_options train;
    pl_windows_options windows; /* of the buffers that are read */
    int windows_a_step;         /* 2 */
    int n_vocab;                /* of a new drafter's vocabulary, by counting; 0: 8192 or all */
    uint64_t seed;
    double gate_s; /* seconds of training between two gates, at least (and twice what a gate takes);
                      0: after every step; 10 */
    int gate_tokens;  /* held out (or served), at least; 2000 */
    int gate_samples; /* at least; 8 */
    int max_versions; /* kept on disk; 16 */
    /* "random", a drafter's directory, or a checkpoint (of pl_spot_checkpoint); NULL: an existing
     * state is demanded.  A state that is there goes before it.  A directory's drafter is what the
     * first version must beat. */
    const char *init;
} pl_spot_options;

typedef struct pl_spot pl_spot;

/* *borrows* the target.  Nothing is trained yet, and init is read when it is needed.  Errors:
 * PL_E_CONFIG (no state and no init), PL_E_SHAPE (a state of another target), PL_E_IO, PL_E_NOMEM.
 */
pl_status pl_spot_new(pl_spot **out, const pl_model *target, const pl_spot_options *o,
    const pl_log *log, pl_error *err);
void pl_spot_free(pl_spot *s);

/* Take part in a session (0: the one after the last, of a run in one process); buffers [n] are
 * paths of data buffers on this machine (those that cannot be read are left out, said once).
 * newest: the policy version at hand.  Errors: PL_E_PEER (a later session owns the state). */
pl_status pl_spot_begin(pl_spot *s, uint64_t session, int is_lead, const char *const *buffers,
    int n, uint32_t newest, pl_error *err);

/* The ledger that numbered the sessions so far is gone: those of a new one, which counts from 1
 * again, may own the state in dir.  Errors: PL_E_IO. */
pl_status pl_spot_disown(const char *dir, pl_error *err);

typedef struct pl_spot_published {
    uint32_t version, parent; /* parent 0: none.  Versions count from 1 */
    char dir[4096];           /* of the drafter, EAGLE-3 layout, durable */
    double tau, tau_parent, se;
    int64_t step;
    int is_rollback; /* the weights are those of an older version, under a new number */
} pl_spot_published;

/* What dir/versions/N says of itself (its gate.json; what that lacks is 0).  0: the name is too
 * long. */
int pl_spot_version(const char *dir, uint32_t version, pl_spot_published *out);

typedef struct pl_spot_stats {            /* since pl_spot_begin */
    int64_t n_steps, n_dropped, n_tokens; /* optimizer steps; unfinished or NaN; trained on */
    int64_t n_gates, n_published, n_rollbacks;
    double train_s, gate_s, pack_s, wait_s; /* wait: nothing to train on */
    pl_eagle_step_stats last;
} pl_spot_stats;

/* One piece of work: an optimizer step (a joiner: a gradient), or a gate.  should_stop is asked
 * between ops.  *published is set (version > 0) when a version was published.
 * Errors: PL_E_STOPPED (a step that was not finished is dropped; a gate, and what is read or made
 * by a thread, is gone on with later), PL_E_TIMEOUT (nothing to do now: ask again later),
 * PL_E_NUMERIC (three bad batches in a row: the session is over), PL_E_PEER (the session is over),
 * PL_E_IO (disk full: training goes on, publishing not); of reading init: PL_E_SHAPE (a drafter of
 * another target), PL_E_FORMAT, PL_E_NUMERIC. */
pl_status pl_spot_work(pl_spot *s, int (*should_stop)(void *ctx), void *ctx,
    pl_spot_published *published, pl_error *err);
/* Leave the session; the state is as the last finished step left it. */
void pl_spot_end(pl_spot *s);
void pl_spot_get_stats(const pl_spot *s, pl_spot_stats *out);

/* Selective checkpoint, off the training path: the state is copied, a thread writes it to path.
 * Waits for the one before.  Errors: of the one before (PL_E_IO), PL_E_NOENT (nothing to save yet).
 */
pl_status pl_spot_checkpoint(pl_spot *s, const char *path, pl_error *err);
pl_status pl_spot_checkpoint_wait(pl_spot *s, pl_error *err);

#endif
