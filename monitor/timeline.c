/* monitor/timeline.c - trace.json: one trace event a line, appended by several processes.
 *
 * The file is "[\n" and then lines that end in a comma.  A track is a thread of process 1, its
 * number the hash of its name, so that all writers agree; each writer tells the name of a track
 * before its first event.  The track stands in cat too, so that a reader needs no other line. */
#define _GNU_SOURCE
#include "core/file.h"
#include "core/json.h"
#include "monitor/lines.h"
#include "monitor/monitor.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    PATH_ROOM = 4096,
    TRACK_BYTES = 63,
    NAME_BYTES = 255,
    DETAIL_BYTES = 4096,
    NOTICE_ROOM = 256, /* left for the words that events were dropped */
    TRACKS = 4096,     /* room of the hash table; names of TRACKS / 2 are told */
};

struct pl_timeline {
    int fd;
    size_t max_bytes;
    int is_broken; /* a write failed and could not be taken back: nothing more is written */
    pl_json line;
    int n_tracks;
    uint32_t tracks[TRACKS]; /* told; 0: free */
    char path[PATH_ROOM];
};

/* ---- writing ---- */

static int64_t file_size(int fd)
{
    struct stat s;
    return fstat(fd, &s) == 0 ? (int64_t)s.st_size : -1;
}

/* Where there are no locks it goes on without. */
static void lock(const pl_timeline *t, int how)
{
    int rc;

    do
        rc = flock(t->fd, how);
    while (rc != 0 && errno == EINTR);
}

/* Append whole, or not at all: what a full disk cuts is taken back unless another process has
 * written behind it. */
static int append(pl_timeline *t, const char *text, size_t n)
{
    ssize_t written;

    do
        written = write(t->fd, text, n);
    while (written < 0 && errno == EINTR);
    if (written == (ssize_t)n)
        return 1;
    if (written > 0) {
        const off_t end = lseek(t->fd, 0, SEEK_CUR);
        if (end < written || (off_t)file_size(t->fd) != end || ftruncate(t->fd, end - written) != 0)
            t->is_broken = 1;
    }
    return 0;
}

/* Append the line at hand.  Below the bound it fits or a notice stands instead of it, which brings
 * the file over the bound: whoever finds it there drops its events and says nothing. */
static int append_locked(pl_timeline *t)
{
    const int64_t bound = (int64_t)t->max_bytes - NOTICE_ROOM;
    const int64_t size = file_size(t->fd);
    pl_json *j = &t->line;

    if (t->is_broken || size < 0 || size > bound || j->failed)
        return 0;
    if (size + (int64_t)j->n <= bound)
        return append(t, j->data, j->n);
    pl_json_clear(j);
    pl_json_text(j, "{\"name\":\"events dropped: the file is full\",\"ph\":\"i\",\"s\":\"g\","
                    "\"ts\":0,\"pid\":1,\"tid\":0}");
    while (!j->failed && size + (int64_t)j->n < bound)
        pl_json_text(j, " ");
    pl_json_text(j, ",\n");
    if (!j->failed)
        (void)append(t, j->data, j->n);
    return 0;
}

/* One who opens the file cuts a torn end off, and what another is just writing may look like one:
 * the lock tells them apart. */
static int append_line(pl_timeline *t)
{
    lock(t, LOCK_SH);
    const int done = append_locked(t);
    lock(t, LOCK_UN);
    return done;
}

static uint32_t number_of(const char *track, size_t n)
{
    const uint32_t v = (uint32_t)(pl_hash64(track, n) & 0x7fffffff);
    return v ? v : 1;
}

static void put_place(pl_json *j, uint32_t number)
{
    pl_json_text(j, ",\"pid\":1,\"tid\":");
    pl_json_int(j, number);
}

/* Say once whose row this is. */
static void tell_track(pl_timeline *t, uint32_t number, const char *track, size_t n)
{
    uint32_t at = number % TRACKS;

    while (t->tracks[at] != 0 && t->tracks[at] != number)
        at = (at + 1) % TRACKS;
    if (t->tracks[at] == number || t->n_tracks >= TRACKS / 2)
        return;
    pl_json_clear(&t->line);
    pl_json_text(&t->line, "{\"name\":\"thread_name\",\"ph\":\"M\"");
    put_place(&t->line, number);
    pl_json_text(&t->line, ",\"args\":{\"name\":");
    pl_json_string(&t->line, track, n);
    pl_json_text(&t->line, "}},\n");
    if (append_line(t)) {
        t->tracks[at] = number;
        t->n_tracks++;
    }
}

/* 1: a JSON object of one line and bounded length. */
static int is_detail(const char *detail)
{
    const size_t n = detail ? strlen(detail) : 0;
    scan s;
    scan_value v;
    int more;

    if (n == 0 || n > DETAIL_BYTES || memchr(detail, '\n', n))
        return 0;
    scan_begin(&s, detail, n);
    while ((more = scan_next(&s, &v)) == 1)
        continue;
    return more == 0;
}

void pl_timeline_put(pl_timeline *t, const char *track, const char *name, int64_t begin_us,
    int64_t us, const char *detail)
{
    const size_t n_track = strnlen(track, TRACK_BYTES);
    const uint32_t number = number_of(track, n_track);
    pl_json *j = &t->line;

    tell_track(t, number, track, n_track);
    pl_json_clear(j);
    pl_json_text(j, "{\"name\":");
    pl_json_string(j, name, strnlen(name, NAME_BYTES));
    pl_json_text(j, ",\"cat\":");
    pl_json_string(j, track, n_track);
    pl_json_text(j, ",\"ph\":\"X\",\"ts\":");
    pl_json_int(j, begin_us);
    pl_json_text(j, ",\"dur\":");
    pl_json_int(j, us > 0 ? us : 0);
    put_place(j, number);
    if (is_detail(detail)) {
        pl_json_text(j, ",\"args\":");
        pl_json_text(j, detail);
    }
    pl_json_text(j, "},\n");
    (void)append_line(t);
}

/* ---- opening: the first writer begins the array, and what a power cut tore is cut off ---- */

/* Bytes of whole lines; -1: the file cannot be read. */
static int64_t whole_bytes(int fd, int64_t size)
{
    char buffer[4096];

    while (size > 0) {
        const size_t n = size < (int64_t)sizeof buffer ? (size_t)size : sizeof buffer;
        const ssize_t got = pread(fd, buffer, n, (off_t)(size - (int64_t)n));
        if (got < 0 && errno == EINTR)
            continue;
        if (got != (ssize_t)n)
            return -1;
        const char *end = memrchr(buffer, '\n', n);
        if (end)
            return size - (int64_t)n + (end - buffer) + 1;
        size -= (int64_t)n;
    }
    return 0;
}

static pl_status begin(pl_timeline *t, pl_error *err)
{
    static const char head[] = "[\n{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":1,\"tid\":0,"
                               "\"args\":{\"name\":\"paceline\"}},\n";
    int64_t size = file_size(t->fd);
    const int64_t whole = whole_bytes(t->fd, size);

    if (size < 0 || whole < 0)
        return pl_fail(err, PL_E_IO, "read '%s': %s", t->path, strerror(errno));
    if (whole < size && ftruncate(t->fd, (off_t)whole) != 0)
        return pl_fail(err, PL_E_IO, "truncate '%s': %s", t->path, strerror(errno));
    if (whole == 0 && t->max_bytes > sizeof head && !append(t, head, sizeof head - 1))
        return pl_fail(err, PL_E_IO, "write '%s': %s", t->path, strerror(errno));
    return PL_OK;
}

pl_status pl_timeline_open(pl_timeline **out, const char *run_dir, size_t max_bytes, pl_error *err)
{
    pl_timeline *t = calloc(1, sizeof *t);

    if (!t)
        return pl_fail(err, PL_E_NOMEM, "timeline of '%s'", run_dir);
    t->fd = -1;
    t->max_bytes = max_bytes < (size_t)INT64_MAX ? max_bytes : (size_t)INT64_MAX;
    if (snprintf(t->path, sizeof t->path, "%s/trace.json", run_dir) >= (int)sizeof t->path) {
        pl_timeline_close(t);
        return pl_fail(err, PL_E_IO, "'%s': name too long", run_dir);
    }
    do
        t->fd = open(t->path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    while (t->fd < 0 && errno == EINTR);
    if (t->fd < 0) {
        const int code = errno;
        const pl_status st =
            code == ENOENT
                ? pl_fail(err, PL_E_NOENT, "open '%s': the directory is not there", t->path)
                : pl_fail(err, PL_E_IO, "open '%s': %s", t->path, strerror(code));
        pl_timeline_close(t);
        return st;
    }
    lock(t, LOCK_EX);
    const pl_status st = begin(t, err);
    lock(t, LOCK_UN);
    if (st != PL_OK) {
        pl_timeline_close(t);
        return st;
    }
    *out = t;
    return PL_OK;
}

void pl_timeline_close(pl_timeline *t)
{
    if (!t)
        return;
    if (t->fd >= 0)
        (void)close(t->fd);
    pl_json_done(&t->line);
    free(t);
}
