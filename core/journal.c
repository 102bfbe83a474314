/* core/journal.c - journals opened, mended and appended to.
 *
 * The invariant behind recovery: bytes below size are durable, and at most one block is written
 * above them.  So only the last block of a file can be torn, and a broken one before it is damage
 * (journal_read.c).  It costs one fdatasync a block, also inside a long put. */
#define _GNU_SOURCE
#include "core/journal_internal.h"

#include "core/internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

enum { TRIES = 100 }; /* names of temporary files; rounds against others who create and remove */

struct pl_journal {
    int fd;
    pl_status failed; /* of the first write that failed, with its message in why */
    pl_error why;
    uint64_t seq;  /* of the block that is gathered */
    uint64_t size; /* bytes in the file, all durable */
    unsigned char head[PL_HASH_BYTES];
    size_t max_bytes;     /* of a payload */
    size_t n_gathered;    /* bytes of the payload */
    unsigned char *block; /* [JOURNAL_OVERHEAD + max_bytes] */
    char path[PATH_MAX];
};

/* Returns 0 or an errno. */
static int write_at(int fd, const unsigned char *data, size_t n, uint64_t offset)
{
    while (n > 0) {
        const ssize_t done = pwrite(fd, data, n, (off_t)offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done < 0 ? errno : EIO;
        data += done;
        offset += (uint64_t)done;
        n -= (size_t)done;
    }
    return 0;
}

/* --- opening --- */

static pl_status lock(int fd, const char *path, pl_error *err)
{
    int rc;
    do
        rc = flock(fd, LOCK_EX | LOCK_NB);
    while (rc != 0 && errno == EINTR);
    if (rc == 0)
        return PL_OK;
    if (errno == EWOULDBLOCK)
        return pl_fail(err, PL_E_IO,
            "journal '%s': another writer has it open, and there can be only one; end that run, or "
            "give this one a directory of its own",
            path);
    return core_fail_errno(err, errno, "lock journal", path);
}

/* Write the superblock at the start of the empty file and make it durable. */
static pl_status begin(pl_journal *j, const pl_journal_options *o, pl_error *err)
{
    unsigned char super[JOURNAL_SUPER];

    journal_make_super(super, o->magic, o->run_uid);
    const int code = write_at(j->fd, super, sizeof super, 0);
    if (code != 0)
        return core_fail_errno(err, code, "write journal", j->path);
    pl_hash256(j->head, super, sizeof super);
    j->size = sizeof super;
    return core_sync_fd(j->fd, j->path, err);
}

/* Open path.tmp.PID or, when an earlier crash left that, with .1, .2 ... behind it. */
static pl_status open_temp(pl_journal *j, char temp[PATH_MAX], pl_error *err)
{
    for (int i = 0; i < TRIES; i++) {
        const int n = snprintf(temp, PATH_MAX, "%s.tmp.%ld.%d", j->path, (long)getpid(), i);
        if (n < 0 || n >= PATH_MAX)
            return core_fail_errno(err, ENAMETOOLONG, "create journal", j->path);
        do
            j->fd = open(temp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        while (j->fd < 0 && errno == EINTR);
        if (j->fd >= 0)
            return PL_OK;
        if (errno != EEXIST)
            return core_fail_errno(err, errno, "create journal", temp);
    }
    return pl_fail(err, PL_E_IO,
        "create journal '%s': %d temporary files are there; remove '%s.tmp.*'", j->path, TRIES,
        j->path);
}

/* Give the file its name unless that is taken.  Returns 0 or an errno. */
static int place(const char *temp, const char *path)
{
    if (renameat2(AT_FDCWD, temp, AT_FDCWD, path, RENAME_NOREPLACE) == 0)
        return 0;
    if (errno != EINVAL && errno != ENOSYS) /* file systems without RENAME_NOREPLACE, as NFS */
        return errno;
    if (link(temp, path) != 0)
        return errno;
    (void)unlink(temp);
    return 0;
}

/* Make the file beside its place, locked and durable, and rename it there.  *is_made stays 0 when
 * another process was faster. */
static pl_status create(pl_journal *j, const pl_journal_options *o, int *is_made, pl_error *err)
{
    char temp[PATH_MAX];

    pl_status st = open_temp(j, temp, err);
    if (st != PL_OK)
        return st;
    st = lock(j->fd, temp, err);
    if (st == PL_OK)
        st = begin(j, o, err);
    const int code = st == PL_OK ? place(temp, j->path) : 0;
    if (st == PL_OK && code == 0) {
        *is_made = 1;
        return PL_OK;
    }
    (void)unlink(temp);
    (void)close(j->fd);
    j->fd = -1;
    if (code == 0 || code == EEXIST)
        return st;
    return core_fail_errno(err, code, "create journal", j->path);
}

/* The file at path, old or new, locked. */
static pl_status open_or_create(
    pl_journal *j, const pl_journal_options *o, int *is_made, pl_error *err)
{
    for (int i = 0; i < TRIES; i++) {
        do /* O_NONBLOCK: opening a pipe must not wait for its other end */
            j->fd = open(j->path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
        while (j->fd < 0 && errno == EINTR);
        if (j->fd >= 0)
            return lock(j->fd, j->path, err);
        if (errno != ENOENT)
            return core_fail_errno(err, errno, "open journal", j->path);
        const pl_status st = create(j, o, is_made, err);
        if (st != PL_OK || *is_made)
            return st;
    }
    return pl_fail(err, PL_E_IO,
        "create journal '%s': the name is taken, but leads to no file; remove the symbolic link",
        j->path);
}

/* Verify an old file and cut what is torn. */
static pl_status recover(pl_journal *j, const pl_journal_options *o, pl_journal_fn on_record,
    void *ctx, pl_journal_report *report, pl_error *err)
{
    pl_status st = journal_walk(j->fd, j->path, o->magic, on_record, ctx, report, err);
    if (st != PL_OK)
        return st;
    if (report->state == PL_JOURNAL_TORN && ftruncate(j->fd, (off_t)report->n_bytes) != 0)
        return core_fail_errno(err, errno, "cut the torn end of journal", j->path);
    if (report->n_bytes == 0) {
        report->is_new = report->is_remade = 1;
        return begin(j, o, err);
    }
    j->seq = report->n_blocks;
    j->size = report->n_bytes;
    memcpy(j->head, report->head, sizeof j->head);
    return core_sync_fd(j->fd, j->path, err);
}

static pl_status start(pl_journal *j, const pl_journal_options *o, pl_journal_fn on_record,
    void *ctx, pl_journal_report *report, pl_error *err)
{
    j->block = malloc(JOURNAL_OVERHEAD + j->max_bytes);
    if (!j->block)
        return pl_fail(err, PL_E_NOMEM, "journal '%s': no memory for a block of %zu bytes", j->path,
            j->max_bytes);
    pl_status st = open_or_create(j, o, &report->is_new, err);
    if (st == PL_OK && !report->is_new)
        st = recover(j, o, on_record, ctx, report, err);
    if (st != PL_OK)
        return st;
    if (report->is_new) {
        memcpy(report->run_uid, o->run_uid, sizeof report->run_uid);
        memcpy(report->head, j->head, sizeof report->head);
        report->n_bytes = j->size;
    }
    return core_sync_parent(j->path, err); /* also of an old file: its maker may have died before */
}

pl_status pl_journal_open(pl_journal **out, const char *path, const pl_journal_options *o,
    pl_journal_fn on_record, void *ctx, pl_journal_report *report, pl_error *err)
{
    pl_journal_report own;

    assert(out && path && o);
    report = report ? report : &own;
    memset(report, 0, sizeof *report);
    pl_status st = journal_check_magic(o->magic, path, err);
    if (st != PL_OK)
        return st;
    const size_t max_bytes = o->max_bytes ? o->max_bytes : PL_JOURNAL_BLOCK_MAX;
    if (max_bytes < PL_JOURNAL_BLOCK_MIN || max_bytes > PL_JOURNAL_BLOCK_MAX)
        return pl_fail(err, PL_E_INVAL, "journal '%s': blocks of %zu bytes; %d .. %d are possible",
            path, max_bytes, PL_JOURNAL_BLOCK_MIN, PL_JOURNAL_BLOCK_MAX);
    if (strlen(path) >= PATH_MAX)
        return core_fail_errno(err, ENAMETOOLONG, "open journal", path);

    pl_journal *j = calloc(1, sizeof *j);
    if (!j)
        return pl_fail(err, PL_E_NOMEM, "journal '%s': out of memory", path);
    j->fd = -1;
    j->max_bytes = max_bytes;
    memcpy(j->path, path, strlen(path) + 1);
    st = start(j, o, on_record, ctx, report, err);
    if (st != PL_OK) {
        pl_journal_close(j);
        return st;
    }
    *out = j;
    return PL_OK;
}

/* --- appending --- */

static pl_status repeat(const pl_journal *j, pl_error *err)
{
    return pl_fail(err, j->failed, "%s", j->why.msg);
}

static const char *remedy(int code)
{
    switch (code) {
    case ENOSPC:
    case EDQUOT:
        return "free space there";
    case EFBIG:
        return "raise the limit of file sizes (ulimit -f)";
    default:
        return "check the disk and the kernel's log";
    }
}

/* The first failure: remembered for good.  Cutting the file is an attempt, and its result changes
 * nothing: what stays behind is a block that was never promised. */
static pl_status die(pl_journal *j, const char *verb, int code, pl_error *err)
{
    j->failed = pl_fail(&j->why, PL_E_IO,
        "journal '%s': %s block %" PRIu64 " at byte %" PRIu64
        ": %s; nothing more is written to it; %s and start again, all before that byte is kept",
        j->path, verb, j->seq, j->size, strerror(code), remedy(code));
    const int rc = ftruncate(j->fd, (off_t)j->size);
    (void)rc;
    return repeat(j, err);
}

/* Close the gathered block, write it and make it durable. */
static pl_status append(pl_journal *j, pl_error *err)
{
    struct timespec now = {0};
    int rc;

    (void)clock_gettime(CLOCK_MONOTONIC, &now); /* cannot fail for this clock */
    const uint64_t ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    const size_t n = journal_close_block(j->block, j->n_gathered, j->seq, ns, j->head);

    const int code = write_at(j->fd, j->block, n, j->size);
    if (code != 0)
        return die(j, "write", code, err);
    do
        rc = fdatasync(j->fd);
    while (rc != 0 && errno == EINTR);
    if (rc != 0)
        return die(j, "fdatasync", errno, err);

    pl_hash256(j->head, j->block, n);
    j->size += n;
    j->seq++;
    j->n_gathered = 0;
    return PL_OK;
}

pl_status pl_journal_put(pl_journal *j, uint32_t type, const void *data, size_t n, pl_error *err)
{
    return pl_journal_put2(j, type, data, n, NULL, 0, err);
}

pl_status pl_journal_put2(pl_journal *j, uint32_t type, const void *head, size_t n_head,
    const void *bulk, size_t n_bulk, pl_error *err)
{
    const size_t limit = j->max_bytes - PL_JOURNAL_RECORD_ROOM;
    unsigned char front[2 * JOURNAL_VARINT];

    if (j->failed != PL_OK)
        return repeat(j, err);
    if (n_head > limit || n_bulk > limit - n_head)
        return pl_fail(err, PL_E_INVAL,
            "journal '%s': record of type %" PRIu32 " with %zu and %zu bytes; at most %zu fit, "
            "split it",
            j->path, type, n_head, n_bulk, limit);
    size_t n_front = journal_put_varint(front, type);
    n_front += journal_put_varint(front + n_front, (uint32_t)(n_head + n_bulk));
    if (n_front + n_head + n_bulk > j->max_bytes - j->n_gathered) {
        const pl_status st = append(j, err);
        if (st != PL_OK)
            return st;
    }

    unsigned char *to = j->block + JOURNAL_HEADER + j->n_gathered;
    memcpy(to, front, n_front);
    if (n_head > 0)
        memcpy(to + n_front, head, n_head);
    if (n_bulk > 0)
        memcpy(to + n_front + n_head, bulk, n_bulk);
    j->n_gathered += n_front + n_head + n_bulk;
    return PL_OK;
}

pl_status pl_journal_sync(pl_journal *j, pl_error *err)
{
    if (j->failed != PL_OK)
        return repeat(j, err);
    return j->n_gathered > 0 ? append(j, err) : PL_OK;
}

void pl_journal_close(pl_journal *j)
{
    if (!j)
        return;
    if (j->fd >= 0)
        (void)close(j->fd);
    free(j->block);
    free(j);
}

void pl_journal_head(const pl_journal *j, unsigned char out[PL_HASH_BYTES])
{
    memcpy(out, j->head, PL_HASH_BYTES);
}

uint64_t pl_journal_size(const pl_journal *j)
{
    return j->size;
}
