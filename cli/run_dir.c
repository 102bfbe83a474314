/* cli/run_dir.c - the run directory: whose it is, and where its processes meet. */
#include "cli/run.h"
#include "core/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- locks ---- */

enum { LOCK_TRIES = 50 }; /* of 10 ms */

pl_status run_lock(const char *run_dir, const char *name, int *fd, pl_error *err)
{
    char path[PL_CONFIG_STR + 64];

    snprintf(path, sizeof path, "%s/%s", run_dir, name);
    *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (*fd < 0)
        return pl_fail(err, PL_E_IO, "'%s': %s", path, strerror(errno));
    /* Who asks whether somebody holds it (run_is_locked) does so for a moment, and who was killed
     * until it is gone. */
    int is_free = 0;
    for (int i = 0; i < LOCK_TRIES && !is_free; i++) {
        if (i > 0)
            nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
        is_free = flock(*fd, LOCK_EX | LOCK_NB) == 0;
    }
    if (is_free) {
        if (ftruncate(*fd, 0) == 0)
            dprintf(*fd, "%d\n", (int)getpid()); /* for whoever adopts the process */
        return PL_OK;
    }
    close(*fd);
    *fd = -1;
    return pl_fail(err, PL_E_PEER, "another process holds '%s'", path);
}

int run_is_locked(const char *run_dir, const char *name)
{
    char path[PL_CONFIG_STR + 64];

    snprintf(path, sizeof path, "%s/%s", run_dir, name);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    const int is_locked = flock(fd, LOCK_SH | LOCK_NB) != 0;
    close(fd);
    return is_locked;
}

pl_status run_lock_directory(const char *run_dir, int *fd, pl_error *err)
{
    char path[PL_CONFIG_STR + 16];

    snprintf(path, sizeof path, "%s/lock", run_dir);
    if (!pl_dir_is_free(run_dir) && !pl_path_exists(path))
        return pl_fail(err, PL_E_CONFIG,
            "trainer.default_local_dir '%s' is not empty and not a run: name a new directory",
            run_dir);
    const pl_status st = pl_dir_make(run_dir, err);
    if (st != PL_OK)
        return st;
    if (run_lock(run_dir, "lock", fd, err) == PL_OK)
        return PL_OK;
    if (err->code != PL_E_PEER)
        return err->code;
    return pl_fail(err, PL_E_IO,
        "another process is running in '%s': wait for it, or name another "
        "trainer.default_local_dir",
        run_dir);
}

int run_locked_by(const char *run_dir, const char *name)
{
    char path[PL_CONFIG_STR + 64], text[32] = "";

    snprintf(path, sizeof path, "%s/%s", run_dir, name);
    FILE *f = fopen(path, "re");
    if (!f)
        return 0;
    const int got = fgets(text, sizeof text, f) != NULL;
    fclose(f);
    return got && run_is_locked(run_dir, name) ? atoi(text) : 0;
}

/* ---- addresses ---- */

pl_status run_absolute(const char *path, char *out, size_t n, pl_error *err)
{
    char *real = realpath(path, NULL);

    if (!real)
        return pl_fail(
            err, errno == ENOENT ? PL_E_NOENT : PL_E_IO, "'%s': %s", path, strerror(errno));
    const int too_long = (size_t)snprintf(out, n, "%s", real) >= n;
    free(real);
    return too_long ? pl_fail(err, PL_E_INVAL, "'%s' is too long a path", path) : PL_OK;
}

void run_host(char out[64])
{
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");

    snprintf(out, 64, "unknown-%ld", (long)gethostid());
    if (f && fgets(out, 64, f))
        out[strcspn(out, "\n")] = 0;
    if (f)
        fclose(f);
}

/* A socket's path has at most 107 bytes: a long run directory gets a short one elsewhere. */
static pl_status socket_path(
    const char *run_dir, const char *name, char *out, size_t n, pl_error *err)
{
    enum { SOCKET_PATH_MAX = 107 };
    char absolute[PL_CONFIG_STR + 16], dir[256];
    struct stat s;
    const char *runtime = getenv("XDG_RUNTIME_DIR");

    const pl_status st = run_absolute(run_dir, absolute, sizeof absolute, err);
    if (st != PL_OK)
        return st;
    if (strlen(absolute) + 1 + strlen(name) <= SOCKET_PATH_MAX) {
        snprintf(out, n, "ipc://%s/%s", absolute, name);
        return PL_OK;
    }
    if (!runtime || !runtime[0] || strlen(runtime) > 40)
        runtime = "/tmp";
    snprintf(dir, sizeof dir, "%s/paceline-%u-%016llx", runtime, (unsigned)getuid(),
        (unsigned long long)pl_hash64(absolute, strlen(absolute)));
    if (mkdir(dir, 0700) != 0 && errno != EEXIST)
        return pl_fail(err, PL_E_IO, "'%s', for the sockets of a run with a long path: %s", dir,
            strerror(errno));
    if (lstat(dir, &s) != 0 || !S_ISDIR(s.st_mode) || s.st_uid != getuid() || (s.st_mode & 077))
        return pl_fail(err, PL_E_IO, "'%s' is not a directory of yours alone: remove it", dir);
    snprintf(out, n, "ipc://%s/%s", dir, name);
    return PL_OK;
}

pl_status run_coordinator_address(const char *run_dir, char *out, size_t n, pl_error *err)
{
    return socket_path(run_dir, "coordinator.sock", out, n, err);
}

pl_status run_weights_address(
    const char *run_dir, const char *listen, char *out, size_t n, pl_error *err)
{
    const char *port = listen ? strrchr(listen, ':') : NULL;

    if (!port)
        return socket_path(run_dir, "weights.sock", out, n, err);
    snprintf(out, n, "%.*s:*", (int)(port - listen), listen); /* another port of the same host */
    return PL_OK;
}

pl_status run_find_coordinator(
    const char *run_dir, double patience_s, char *out, size_t n, pl_error *err)
{
    const struct timespec nap = {.tv_nsec = 20 * 1000 * 1000};
    const double t0 = run_seconds();
    char path[PL_CONFIG_STR + 64];

    snprintf(path, sizeof path, "%s/endpoint", run_dir);
    for (;;) {
        FILE *f = run_is_locked(run_dir, "coordinator.lock") ? fopen(path, "re") : NULL;
        const int found = f && fgets(out, (int)n, f);
        if (f)
            fclose(f);
        if (found) {
            out[strcspn(out, "\n")] = 0;
            return PL_OK;
        }
        if (cli_stop)
            return pl_fail(err, PL_E_STOPPED, "stopped by a signal");
        if (run_seconds() - t0 > patience_s)
            return pl_fail(err, PL_E_PEER,
                "no coordinator runs in '%s': start the run with rollout.num_workers=1 or more",
                run_dir);
        nanosleep(&nap, NULL);
    }
}

pl_status run_check_orphans(const char *run_dir, pl_error *err)
{
    const int trainer = run_locked_by(run_dir, "trainer.lock");

    if (trainer <= 0)
        return PL_OK;
    return pl_fail(err, PL_E_IO,
        "a trainer (process %d) is still at work in '%s': take it over with "
        "rollout.num_workers=1 or more, or stop it first (kill %d)",
        trainer, run_dir, trainer);
}
