/* rollout/worker.h - a rollout worker: leases in, samples out, until it is told to leave.
 *
 * What it expects of the coordinator, besides the messages themselves:
 *   - life: HELLO of a member is answered by WELCOME again; a worker that heard nothing for a
 *     second says it.  Any message counts as life.  After two lost_ms of silence the worker
 *     connects anew, as another incarnation; REJECT with code PL_E_TIMEOUT (its name is still
 *     taken) makes it say HELLO again, every second, until its patience is over;
 *   - epochs: what comes with a lower epoch than the highest WELCOME's is ignored; a higher one,
 *     or REJECT with code PL_E_PEER, makes the worker say HELLO again, and then STATUS, with all
 *     that it runs and holds;
 *   - LEASE and VERSION are said again until STATUS shows them: the worker answers neither, and
 *     drops a LEASE of a policy version that it has not loaded;
 *   - a LEASE of another batch ends the batch before: its samples are dropped, results that are
 *     not acknowledged too. */
#ifndef PL_ROLLOUT_WORKER_H
#define PL_ROLLOUT_WORKER_H

#include "core/error.h"
#include "core/log.h"
#include "ipc/ipc.h"
#include "rollout/rollout.h"

typedef struct pl_worker_io {
    void *ctx;
    /* Make version v's weights the engine's: called at a barrier, no sample running.  The engine
     * does not exist before the first call; *engine is set or stays.  keep_alive is to be called at
     * least every 100 ms while it works. */
    pl_status (*load)(void *ctx, const pl_msg_version *v, void (*keep_alive)(void *), void *ka_ctx,
        pl_engine **engine, pl_error *err);
    int (*should_stop)(void *ctx); /* 1 drain: hand progress over and leave; 2 leave now */
    /* The run that it joined, before anything is loaded; again after each of the coordinator's
     * restarts.  An error ends the worker.  NULL: not asked. */
    pl_status (*joined)(void *ctx, const pl_msg_welcome *m, pl_error *err);
} pl_worker_io;

typedef struct pl_worker_options {
    const char *address; /* of the coordinator */
    const char *name, *numeric_class, *build, *host;
    int n_threads, max_seqs;
    int patience_s; /* without a coordinator for so long it leaves: 60 */
} pl_worker_options;

/* Until STOP or DRAIN (PL_OK), or a refusal (PL_E_PEER with the coordinator's reason), or patience
 * is over (PL_E_PEER), or a signal (PL_E_STOPPED).  Other errors: three loads of versions in a row
 * failed, a lease cannot be run in three tries, or a round failed (PL_E_NUMERIC names the sample):
 * the error of the load, of pl_engine_submit, of pl_engine_round.  The engine is io's: it is left
 * without samples. */
pl_status pl_work(const pl_worker_options *o, const pl_worker_io *io, pl_ipc *ipc,
    const pl_log *log, pl_error *err);

#endif
