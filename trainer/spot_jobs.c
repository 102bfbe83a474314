/* trainer/spot_jobs.c - work of the spot trainer off the training path, by threads: a file that is
 * written, or something large that is made and that a piece of work waits for. */
#include "trainer/spot_internal.h"

#include <string.h>

pl_status spot_job_start(spot_job *j, void *(*run)(void *), void *arg, pl_error *err)
{
    atomic_store(&j->is_done, 0);
    if (pthread_create(&j->thread, NULL, run, arg) != 0) {
        atomic_store(&j->is_pinned, 0);
        return pl_fail(err, PL_E_NOMEM, "no thread for a file of the drafter");
    }
    j->is_running = 1;
    return PL_OK;
}

void spot_job_finish(spot_job *j, pl_status status, const pl_error *err)
{
    j->status = status;
    j->err = status == PL_OK ? (pl_error){0} : *err;
    atomic_store(&j->is_pinned, 0);
    atomic_store(&j->is_done, 1);
}

pl_status spot_job_join(spot_job *j, pl_error *err)
{
    if (!j->is_running)
        return PL_OK;
    (void)pthread_join(j->thread, NULL);
    j->is_running = 0;
    if (j->status != PL_OK)
        return pl_fail(err, j->status, "%s", j->err.msg);
    return PL_OK;
}

/* ---- what a piece of work waits for ---- */

static const double LOOK_S = 0.0005; /* between two looks at the stop */

static void *run_aside(void *arg)
{
    spot_aside *a = arg;
    pl_error err = {0};
    const pl_status st = a->make(a, &err);

    spot_job_finish(&a->job, st, &err);
    return NULL;
}

static pl_status wait_for(pl_spot *s, const spot_aside *a, pl_error *err)
{
    while (a->job.is_running && !atomic_load(&a->job.is_done)) {
        if (spot_stopped(s))
            return spot_stop(err);
        spot_sleep(LOOK_S);
    }
    return PL_OK;
}

int spot_aside_is(const spot_aside *a, spot_make *make, const char *path)
{
    return a->job.is_running && a->make == make && strcmp(a->path, path) == 0;
}

pl_status spot_aside_end(pl_spot *s, spot_aside *a, pl_error *err)
{
    const pl_status st = wait_for(s, a, err);

    if (st == PL_OK)
        spot_aside_done(a);
    return st;
}

pl_status spot_aside_begin(
    pl_spot *s, spot_aside *a, spot_make *make, const char *path, pl_error *err)
{
    const pl_status st = spot_aside_end(s, a, err);

    if (st != PL_OK)
        return st;
    if (strlen(path) >= sizeof a->path)
        return pl_fail(err, PL_E_INVAL, "'%s': the name is too long", path);
    memcpy(a->path, path, strlen(path) + 1);
    a->s = s;
    a->make = make;
    return PL_OK;
}

pl_status spot_aside_work(pl_spot *s, spot_aside *a, pl_error *err)
{
    pl_status st = PL_OK;

    if (!a->job.is_running)
        st = spot_job_start(&a->job, run_aside, a, err);
    if (st == PL_OK)
        st = wait_for(s, a, err);
    return st == PL_OK ? spot_job_join(&a->job, err) : st;
}

pl_status spot_aside_run(
    pl_spot *s, spot_aside *a, spot_make *make, const char *path, pl_error *err)
{
    pl_status st = PL_OK;

    if (!spot_aside_is(a, make, path))
        st = spot_aside_begin(s, a, make, path, err);
    return st == PL_OK ? spot_aside_work(s, a, err) : st;
}

void spot_aside_done(spot_aside *a)
{
    (void)spot_job_join(&a->job, NULL);
    pl_eagle_free(a->e);
    a->e = NULL;
    a->from = NULL;
}

void spot_aside_tidy(spot_aside *a)
{
    if (!a->job.is_running || atomic_load(&a->job.is_done))
        spot_aside_done(a);
}
