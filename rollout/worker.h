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
    /* pl_speculate of the samples to come, none is running.  NULL: on or off, by the engine. */
    void (*speculate)(void *ctx, uint32_t how);
    int (*should_stop)(void *ctx); /* 1 drain: hand progress over and leave; 2 leave now */
    /* The run that it joined, before anything is loaded; again after each of the coordinator's
     * restarts.  An error ends the worker.  NULL: not asked. */
    pl_status (*joined)(void *ctx, const pl_msg_welcome *m, pl_error *err);

    /* The spot trainer.  train NULL: this worker takes no part in sessions.
     *
     * One piece of work (an optimizer step, a gate) of session t->session, again and again while
     * the coordinator wants it; a session begins with the first call of its id.  The call with
     * another id, or with another is_lead, is another session.  keep_on(k_ctx) is to be called
     * between ops: it hears and answers the coordinator, and returns 0 as soon as the device is
     * wanted: then return PL_E_STOPPED (also right, if late: PL_OK).  Neither drafter nor load is
     * called meanwhile.  PL_E_TIMEOUT: nothing to do now.  PL_E_PEER: this session is over, a later
     * one may come, and so PL_E_NUMERIC.  PL_E_IO: logged, it goes on.  Others: logged, no session
     * is taken part in any more. */
    pl_status (*train)(
        void *ctx, const pl_msg_train *t, int (*keep_on)(void *k_ctx), void *k_ctx, pl_error *err);
    /* The session of the calls before is over: give everything back.  NULL: not told. */
    void (*train_end)(void *ctx);
    /* Make this version of the drafter the engine's; called between rounds, samples may run.
     * keep_alive as of load.  On an error the one before goes on; tried WORKER_TRIES times.
     * PL_E_TIMEOUT: not yet, or not while these samples run; asked again.  NULL: versions are not
     * used, and shown as 0. */
    pl_status (*drafter)(void *ctx, const pl_msg_drafter *d, void (*keep_alive)(void *),
        void *ka_ctx, pl_error *err);
    /* Fill in what is known of m->batch; idle_ms and worker are set already.  Strings and spans are
     * borrowed until the next call.  NULL: no figures. */
    void (*drafting)(void *ctx, pl_msg_drafting *m);
    /* 1: *d is a version to be announced; asked again until it comes back by drafter.  NULL: never.
     */
    int (*publish)(void *ctx, pl_msg_drafter *d);
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
