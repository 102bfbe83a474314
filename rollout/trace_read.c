/* rollout/trace_read.c - traces read from their files. */
#include "rollout/trace_internal.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* The journal that path means: a file itself, or that of a run directory or its trace/. */
static pl_status find(char out[PATH_MAX], const char *path, pl_error *err)
{
    static const char *const behind[] = {"", "/trace/000001.journal", "/000001.journal"};
    struct stat info;

    if (strlen(path) >= PATH_MAX - 32)
        return pl_fail(err, PL_E_NOENT, "trace: the path '%.80s...' is too long", path);
    for (int i = 0; i < 3; i++) {
        const int n = snprintf(out, PATH_MAX, "%s%s", path, behind[i]);
        const int rc = n > 0 && n < PATH_MAX ? stat(out, &info) : 0;
        if (rc == 0 && !S_ISDIR(info.st_mode))
            return PL_OK;
        if (rc != 0 && errno != ENOENT && errno != ENOTDIR)
            return pl_fail(err, PL_E_IO, "trace '%s': %s", out, strerror(errno));
    }
    return pl_fail(err, PL_E_NOENT,
        "'%s' has no trace: a run directory with trace/000001.journal, or such a file, is wanted",
        path);
}

static pl_status walk(trace_walk *w, const char *path, pl_error *err)
{
    char file[PATH_MAX];
    pl_error own = {0};

    memset(w->report, 0, sizeof *w->report);
    pl_status st = find(file, path, &own);
    if (st == PL_OK)
        st = pl_journal_read(file, TRACE_MAGIC, trace_walk_record, w, &w->report->journal, &own);
    st = trace_walk_end(w, st, &own);
    if (w->report->state == PL_TRACE_DAMAGED) /* what a reader of it can do is not what its writer
                                                 can */
        pl_error_set(&own, PL_E_FORMAT,
            "trace '%s': damaged at block %" PRIu64 ", byte %" PRIu64 ": %s", file,
            w->report->journal.bad_seq, w->report->journal.bad_offset, w->report->what);
    if (st != PL_OK && err)
        *err = own;
    return st;
}

pl_status pl_trace_read(
    const char *path, const pl_trace_visitor *v, pl_trace_report *report, pl_error *err)
{
    pl_trace_report own;
    trace_walk w = {.v = v, .report = report ? report : &own, .wanted = -1};

    assert(path);
    const pl_status st = walk(&w, path, err);
    trace_walk_done(&w);
    return st;
}

pl_status pl_trace_load(const char *path, int64_t step, pl_trace_step **out,
    const pl_trace_run **run, pl_trace_report *report, pl_error *err)
{
    pl_trace_report own;
    trace_walk w = {.report = report ? report : &own, .wanted = step};

    assert(path && out);
    pl_status st = walk(&w, path, err);
    if (st == PL_OK && !w.kept)
        st = pl_fail(err, PL_E_NOENT,
            "the trace of '%s' has no step %" PRId64 "; its last one is step %" PRId64, path, step,
            w.report->step);
    if (st == PL_OK) {
        *out = &w.kept->s;
        if (run)
            *run = &w.kept->run.r;
        w.kept = NULL;
    }
    trace_walk_done(&w);
    return st;
}

void pl_trace_step_free(pl_trace_step *s)
{
    trace_step_free((trace_step *)s); /* its first member */
}
