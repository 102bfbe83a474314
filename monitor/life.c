/* monitor/life.c - whether a run lives: by the age of its snapshot, and by the lock that it holds.
 */
#define _GNU_SOURCE
#include "monitor/view.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum {
    PATH_ROOM = 4096,
    FRESH_MS = 5000, /* a snapshot so new is of a run that runs */
    BUSY_MS = 30000, /* one that holds its lock may be silent so long, in an update */
};

/* The kernel's list of locks, so that none has to be taken: a run that begins just then would find
 * its directory taken.  1: the process that wrote RUN/lock holds it. */
static int holds_lock(const char *run_dir)
{
    char path[PATH_ROOM + 8], line[256], kind[16], mode[16], what[16];
    struct stat s;
    long pid, wanted = -1;
    unsigned long inode;
    int is_held = 0;

    snprintf(path, sizeof path, "%s/lock", run_dir);
    FILE *f = fopen(path, "re");
    if (!f)
        return 0;
    if (fstat(fileno(f), &s) != 0 || fscanf(f, "%ld", &wanted) != 1)
        wanted = -1;
    fclose(f);
    f = wanted > 0 ? fopen("/proc/locks", "re") : NULL;
    while (f && !is_held && fgets(line, sizeof line, f))
        if (sscanf(line, "%*d: %15s %15s %15s %ld %*x:%*x:%lu", kind, mode, what, &pid, &inode) ==
            5)
            is_held = strcmp(kind, "FLOCK") == 0 && (pid == wanted || inode == s.st_ino);
    if (f)
        fclose(f);
    return is_held;
}

pl_view_life pl_view_life_of(const pl_snapshot *now, const char *run_dir, int64_t unix_ms)
{
    if (!now)
        return run_dir && !holds_lock(run_dir) ? PL_VIEW_DEAD : PL_VIEW_UNKNOWN;
    if (now->phase == PL_PHASE_DONE)
        return PL_VIEW_FINISHED;
    if (now->phase == PL_PHASE_STOPPED)
        return PL_VIEW_STOPPED;
    const int64_t age = unix_ms - now->updated_ms;
    if (age < FRESH_MS)
        return PL_VIEW_RUNNING;
    const int is_there = run_dir ? holds_lock(run_dir) : age < BUSY_MS;
    return !is_there ? PL_VIEW_DEAD : age < BUSY_MS ? PL_VIEW_RUNNING : PL_VIEW_SILENT;
}
