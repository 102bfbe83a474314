/* core/file.c - files mapped, read whole, and written so that they appear whole or not at all. */
#define _GNU_SOURCE
#include "core/file.h"

#include "core/internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum {
    WRITER_BUFFER = 1 << 20, /* bytes gathered before a write(2) */
    READ_START = 64 << 10,   /* first guess for files that do not know their size, bytes */
    TEMP_TRIES = 100,        /* other names tried when an earlier crash left the first behind */
};

pl_status core_fail_errno(pl_error *err, int code, const char *verb, const char *path)
{
    if (code == ENOENT)
        return pl_fail(err, PL_E_NOENT, "%s '%s': no such file or directory", verb, path);
    if (code == ENOMEM)
        return pl_fail(err, PL_E_NOMEM, "%s '%s': out of memory", verb, path);
    if (code == ENOSPC)
        return pl_fail(err, PL_E_IO,
            "%s '%s': disk full; free space there or choose another directory", verb, path);
    if (code == EDQUOT)
        return pl_fail(err, PL_E_IO,
            "%s '%s': disk quota used up; free space or choose another directory", verb, path);
    return pl_fail(err, PL_E_IO, "%s '%s': %s", verb, path, strerror(code));
}

static int open_retry(const char *path, int flags)
{
    int fd;
    do
        fd = open(path, flags | O_CLOEXEC);
    while (fd < 0 && errno == EINTR);
    return fd;
}

/* --- reading --- */

static const unsigned char empty_data[1];

static pl_status map_fd(pl_file *f, int fd, const char *path, pl_error *err)
{
    struct stat info;

    if (fstat(fd, &info) != 0)
        return core_fail_errno(err, errno, "examine", path);
    if (S_ISDIR(info.st_mode))
        return pl_fail(err, PL_E_FORMAT, "open '%s': is a directory, a file is needed", path);
    if (!S_ISREG(info.st_mode))
        return pl_fail(err, PL_E_FORMAT, "open '%s': is not a regular file", path);
    if (info.st_size == 0) {
        f->data = empty_data;
        return PL_OK;
    }

    void *p = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED)
        return core_fail_errno(err, errno, "map", path);
    f->data = p;
    f->size = (size_t)info.st_size;
    return PL_OK;
}

pl_status pl_file_open(pl_file *f, const char *path, pl_error *err)
{
    assert(f && path);
    memset(f, 0, sizeof *f);
    if (strlen(path) >= sizeof f->path)
        return core_fail_errno(err, ENAMETOOLONG, "open", path);

    /* O_NONBLOCK: opening a pipe must not wait for its writer. */
    const int fd = open_retry(path, O_RDONLY | O_NONBLOCK);
    if (fd < 0)
        return core_fail_errno(err, errno, "open", path);
    const pl_status st = map_fd(f, fd, path, err);
    (void)close(fd);
    if (st == PL_OK)
        memcpy(f->path, path, strlen(path) + 1);
    return st;
}

void pl_file_close(pl_file *f)
{
    if (!f)
        return;
    if (f->size > 0)
        (void)munmap((void *)(uintptr_t)f->data, f->size);
    memset(f, 0, sizeof *f);
}

/* Room for one byte more than is there, up to max_bytes + 2: the byte that shows that the file is
 * too large, and the NUL. */
static pl_status grow(char **buf, size_t *room, size_t max_bytes, const char *path, pl_error *err)
{
    const size_t limit = max_bytes + 2;
    const size_t larger = *room > limit / 2 ? limit : 2 * *room;
    char *p = realloc(*buf, larger);
    if (!p)
        return pl_fail(err, PL_E_NOMEM, "read '%s': no memory for %zu bytes", path, larger);
    *buf = p;
    *room = larger;
    return PL_OK;
}

static pl_status read_fd(
    int fd, char **buf, size_t *n_bytes, size_t max_bytes, const char *path, pl_error *err)
{
    struct stat info;
    size_t room = READ_START;
    size_t n = 0;

    if (fstat(fd, &info) == 0 && info.st_size > 0 && (size_t)info.st_size < max_bytes)
        room = (size_t)info.st_size + 2;
    if (room > max_bytes + 2)
        room = max_bytes + 2;
    *buf = malloc(room);
    if (!*buf)
        return pl_fail(err, PL_E_NOMEM, "read '%s': no memory for %zu bytes", path, room);

    for (;;) {
        const ssize_t got = read(fd, *buf + n, room - 1 - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return core_fail_errno(err, errno, "read", path);
        if (got == 0)
            break;
        n += (size_t)got;
        if (n > max_bytes)
            return pl_fail(
                err, PL_E_FORMAT, "read '%s': larger than the %zu bytes allowed", path, max_bytes);
        if (n == room - 1) {
            const pl_status st = grow(buf, &room, max_bytes, path, err);
            if (st != PL_OK)
                return st;
        }
    }
    (*buf)[n] = '\0';
    *n_bytes = n;
    return PL_OK;
}

pl_status pl_file_read(
    char **out, size_t *n_bytes, const char *path, size_t max_bytes, pl_error *err)
{
    char *buf = NULL;
    size_t n = 0;

    assert(out && path && max_bytes <= SIZE_MAX / 4);
    const int fd = open_retry(path, O_RDONLY);
    if (fd < 0)
        return core_fail_errno(err, errno, "open", path);
    const pl_status st = read_fd(fd, &buf, &n, max_bytes, path, err);
    (void)close(fd);
    if (st != PL_OK) {
        free(buf);
        return st;
    }
    *out = buf;
    if (n_bytes)
        *n_bytes = n;
    return PL_OK;
}

/* --- writing --- */

struct pl_writer {
    int fd;
    pl_status failed; /* of the first write that failed, with its message in why */
    pl_error why;
    size_t n_buffered;
    char path[PATH_MAX];
    char temp[PATH_MAX];
    unsigned char *buffer; /* [WRITER_BUFFER] */
};

static pl_status write_all(
    int fd, const unsigned char *data, size_t n_bytes, const char *path, pl_error *err)
{
    while (n_bytes > 0) {
        const ssize_t n = write(fd, data, n_bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return core_fail_errno(err, n < 0 ? errno : EIO, "write", path);
        data += n;
        n_bytes -= (size_t)n;
    }
    return PL_OK;
}

/* Open path.tmp.PID, or with .1, .2 ... behind it: a process killed in a container may have left
 * the very name that this one, with the same number, wants. */
static pl_status open_temp(pl_writer *w, pl_error *err)
{
    for (int i = 0; i < TEMP_TRIES; i++) {
        const int n =
            i == 0 ? snprintf(w->temp, sizeof w->temp, "%s.tmp.%ld", w->path, (long)getpid())
                   : snprintf(w->temp, sizeof w->temp, "%s.tmp.%ld.%d", w->path, (long)getpid(), i);
        if (n < 0 || n >= (int)sizeof w->temp)
            return core_fail_errno(err, ENAMETOOLONG, "create", w->path);
        do
            w->fd = open(w->temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        while (w->fd < 0 && errno == EINTR);
        if (w->fd >= 0)
            return PL_OK;
        if (errno != EEXIST)
            return core_fail_errno(err, errno, "create", w->temp);
    }
    return pl_fail(err, PL_E_IO, "create '%s': %d such files are there already; remove '%s.tmp.*'",
        w->temp, TEMP_TRIES, w->path);
}

/* Close and free; the temporary file is removed unless it has been renamed. */
static void release(pl_writer *w, int is_renamed)
{
    if (w->fd >= 0)
        (void)close(w->fd);
    if (!is_renamed && w->temp[0])
        (void)unlink(w->temp);
    free(w->buffer);
    free(w);
}

pl_status pl_writer_open(pl_writer **out, const char *path, pl_error *err)
{
    assert(out && path);
    pl_writer *w = calloc(1, sizeof *w);
    if (!w)
        return pl_fail(err, PL_E_NOMEM, "write '%s': out of memory", path);
    w->fd = -1;
    w->buffer = malloc(WRITER_BUFFER);
    if (!w->buffer) {
        release(w, 0);
        return pl_fail(err, PL_E_NOMEM, "write '%s': no memory for a buffer of 1 MiB", path);
    }
    const int n = snprintf(w->path, sizeof w->path, "%s", path);
    if (n < 0 || n >= (int)sizeof w->path) {
        release(w, 0);
        return core_fail_errno(err, ENAMETOOLONG, "create", path);
    }
    const pl_status st = open_temp(w, err);
    if (st != PL_OK) {
        w->temp[0] = '\0'; /* not ours to remove */
        release(w, 0);
        return st;
    }
    *out = w;
    return PL_OK;
}

static pl_status flush(pl_writer *w)
{
    const pl_status st = write_all(w->fd, w->buffer, w->n_buffered, w->path, &w->why);
    w->n_buffered = 0;
    w->failed = st;
    return st;
}

static pl_status report(const pl_writer *w, pl_error *err)
{
    return pl_fail(err, w->failed, "%s", w->why.msg);
}

pl_status pl_writer_put(pl_writer *w, const void *data, size_t n_bytes, pl_error *err)
{
    const unsigned char *bytes = data;

    if (w->failed != PL_OK)
        return report(w, err);
    if (n_bytes > WRITER_BUFFER - w->n_buffered && flush(w) != PL_OK)
        return report(w, err);
    if (n_bytes >= WRITER_BUFFER) {
        w->failed = write_all(w->fd, bytes, n_bytes, w->path, &w->why);
        return w->failed == PL_OK ? PL_OK : report(w, err);
    }
    if (n_bytes > 0)
        memcpy(w->buffer + w->n_buffered, bytes, n_bytes);
    w->n_buffered += n_bytes;
    return PL_OK;
}

pl_status core_sync_fd(int fd, const char *path, pl_error *err)
{
    int rc;
    do
        rc = fsync(fd);
    while (rc != 0 && errno == EINTR);
    return rc == 0 ? PL_OK : core_fail_errno(err, errno, "fsync", path);
}

/* Some file systems refuse to sync a directory (EINVAL): they have nothing to sync there. */
pl_status core_sync_parent(const char *path, pl_error *err)
{
    char parent[PATH_MAX];
    size_t len = strlen(path);
    int rc;

    if (len >= sizeof parent)
        return core_fail_errno(err, ENAMETOOLONG, "open", path);
    memcpy(parent, path, len);
    while (len > 1 && parent[len - 1] == '/') /* "dir/" */
        len--;
    while (len > 0 && parent[len - 1] != '/') /* the last name */
        len--;
    while (len > 1 && parent[len - 1] == '/')
        len--;
    parent[len] = '\0';
    if (len == 0)
        memcpy(parent, ".", 2);

    const int fd = open_retry(parent, O_RDONLY | O_DIRECTORY);
    if (fd < 0)
        return core_fail_errno(err, errno, "open directory", parent);
    do
        rc = fsync(fd);
    while (rc != 0 && errno == EINTR);
    const int code = errno;
    (void)close(fd);
    if (rc != 0 && code != EINVAL)
        return core_fail_errno(err, code, "fsync directory", parent);
    return PL_OK;
}

static pl_status finish(pl_writer *w, int *is_renamed, pl_error *err)
{
    if (w->failed != PL_OK || flush(w) != PL_OK)
        return report(w, err);
    const pl_status st = core_sync_fd(w->fd, w->path, err);
    if (st != PL_OK)
        return st;
    const int rc = close(w->fd);
    w->fd = -1;
    if (rc != 0 && errno != EINTR) /* Linux closes in any case */
        return core_fail_errno(err, errno, "close", w->path);
    if (rename(w->temp, w->path) != 0)
        return core_fail_errno(err, errno, "rename into place", w->path);
    *is_renamed = 1;
    return core_sync_parent(w->path, err);
}

pl_status pl_writer_commit(pl_writer *w, pl_error *err)
{
    int is_renamed = 0;
    const pl_status st = finish(w, &is_renamed, err);
    release(w, is_renamed);
    return st;
}

void pl_writer_abort(pl_writer *w)
{
    if (w)
        release(w, 0);
}

pl_status pl_file_write(const char *path, const void *data, size_t n_bytes, pl_error *err)
{
    pl_writer *w = NULL;
    pl_status st = pl_writer_open(&w, path, err);
    if (st != PL_OK)
        return st;
    st = pl_writer_put(w, data, n_bytes, err);
    if (st != PL_OK) {
        pl_writer_abort(w);
        return st;
    }
    return pl_writer_commit(w, err);
}

int pl_path_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

uint64_t pl_hash64(const void *data, size_t n_bytes)
{
    return XXH3_64bits(data, n_bytes);
}

void pl_hash128(unsigned char out[16], const void *data, size_t n_bytes)
{
    XXH128_canonical_t bytes;
    XXH128_canonicalFromHash(&bytes, XXH3_128bits(data, n_bytes));
    memcpy(out, bytes.digest, 16);
}
