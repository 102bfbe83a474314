/* monitor/snapshot.c - RUN/snapshot: what the run does now, in a file of fixed size.
 *
 *     0   magic[8]  layout u32  size u32
 *     16  slot 0: seq u64, hash u64 (XXH3 of seq and snapshot), the snapshot
 *         slot 1: the same
 *
 * A snapshot goes to the slot seq % 2, so that the one before stands untouched meanwhile: a writer
 * that is killed in the middle of a write leaves a whole one.  A reader takes the newest slot whose
 * hash is right; it holds no lock, and nothing that it does reaches the writer.
 *
 * Written and read by pwrite and pread, not through a mapping: a file that somebody cuts short, or
 * whose blocks the disk has lost, is an error then, and not a SIGBUS that ends the run (or its
 * monitor).  45 KiB four times a second cost some 10 us each. */
#define _GNU_SOURCE
#include "core/file.h"
#include "monitor/monitor.h"
#include "monitor/text.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    LAYOUT = 1, /* rises with each change of pl_snapshot */
    N_SLOTS = 2,
    N_TRIES = 50, /* of a reader, with TRY_NS between: both slots are in the middle of a write only
                     when the writer came by twice during one read */
    TRY_NS = 2000000,
    PATH_ROOM = 4096,
};
#define TIME_MAX_MS 100000000000000LL /* year 5138 */

static const char magic[8] = "PLSNAP\r\n";

typedef struct head {
    char magic[8];
    uint32_t layout, size;
} head;

typedef struct slot {
    uint64_t seq, hash;
    pl_snapshot s;
} slot;

struct pl_snapshot_file {
    int fd;
    slot next;
};

static off_t offset_of(uint64_t seq)
{
    return (off_t)(sizeof(head) + seq % N_SLOTS * sizeof(slot));
}

/* The hash of a slot whose field hash holds 0. */
static uint64_t hash_of(const slot *t)
{
    return pl_hash64(t, sizeof *t);
}

static int is_whole(slot *t)
{
    const uint64_t hash = t->hash;

    t->hash = 0;
    const int is_it = t->seq > 0 && hash_of(t) == hash;
    t->hash = hash;
    return is_it;
}

/* 1 when all n bytes were read or written. */
static int read_all(int fd, void *data, size_t n, off_t at)
{
    size_t done = 0;

    while (done < n) {
        const ssize_t got = pread(fd, (char *)data + done, n - done, at + (off_t)done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return 0;
        done += (size_t)got;
    }
    return 1;
}

static int write_all(int fd, const void *data, size_t n, off_t at)
{
    size_t done = 0;

    while (done < n) {
        const ssize_t put = pwrite(fd, (const char *)data + done, n - done, at + (off_t)done);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return 0;
        done += (size_t)put;
    }
    return 1;
}

/* Open RUN/snapshot, which must be an ordinary file; path [PATH_ROOM] for messages. */
static pl_status open_file(int *out, char *path, const char *run_dir, int flags, pl_error *err)
{
    struct stat s;
    int fd;

    if (snprintf(path, PATH_ROOM, "%s/snapshot", run_dir) >= PATH_ROOM)
        return pl_fail(err, PL_E_IO, "'%.200s...': name too long", run_dir);
    do
        fd = open(path, flags | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0666);
    while (fd < 0 && errno == EINTR);
    if (fd < 0 && errno == ENOENT)
        return pl_fail(err, PL_E_NOENT, "'%s': not there: the run never wrote one", path);
    if (fd < 0 && (errno == ELOOP || errno == ENXIO || errno == EISDIR))
        return pl_fail(err, PL_E_FORMAT, "'%s' is no ordinary file: remove it", path);
    if (fd < 0)
        return pl_fail(err, PL_E_IO, "open '%s': %s", path, strerror(errno));
    if (fstat(fd, &s) != 0 || !S_ISREG(s.st_mode)) {
        close(fd);
        return pl_fail(err, PL_E_FORMAT, "'%s' is no ordinary file: remove it", path);
    }
    *out = fd;
    return PL_OK;
}

/* The newest whole slot: 1, and *out. */
static int newest(int fd, slot *out, slot *room)
{
    int any = 0;

    for (uint64_t i = 0; i < N_SLOTS; i++) {
        if (!read_all(fd, room, sizeof *room, offset_of(i)) || room->seq % N_SLOTS != i)
            continue;
        if (is_whole(room) && (!any || room->seq > out->seq)) {
            *out = *room;
            any = 1;
        }
    }
    return any;
}

static int is_ours(int fd)
{
    head h;
    return read_all(fd, &h, sizeof h, 0) && memcmp(h.magic, magic, sizeof magic) == 0 &&
           h.layout == LAYOUT && h.size == sizeof(pl_snapshot);
}

/* Make room for good, and go on counting where a writer before stopped. */
static pl_status prepare(pl_snapshot_file *f, const char *path, pl_error *err)
{
    const off_t size = offset_of(N_SLOTS - 1) + (off_t)sizeof(slot);
    head h = {.layout = LAYOUT, .size = sizeof(pl_snapshot)};
    slot *room = malloc(sizeof *room);
    int code = 0;

    if (!room)
        return pl_fail(err, PL_E_NOMEM, "snapshot '%s'", path);
    if (is_ours(f->fd))
        (void)newest(f->fd, &f->next, room);
    else if (ftruncate(f->fd, 0) != 0)
        code = errno;
    free(room);
    memcpy(h.magic, magic, sizeof magic);
    while (code == 0 || code == EINTR) {
        code = posix_fallocate(f->fd, 0, size);
        if (code == 0)
            break;
    }
    if (code == 0 && (ftruncate(f->fd, size) != 0 || !write_all(f->fd, &h, sizeof h, 0)))
        code = errno ? errno : EIO;
    if (code == 0)
        return PL_OK;
    return pl_fail(err, PL_E_IO, "write '%s': %s", path,
        code == ENOSPC ? "disk full; free space there" : strerror(code));
}

pl_status pl_snapshot_open(pl_snapshot_file **out, const char *run_dir, pl_error *err)
{
    char path[PATH_ROOM];
    pl_snapshot_file *f = calloc(1, sizeof *f);

    if (!f)
        return pl_fail(err, PL_E_NOMEM, "snapshot of '%s'", run_dir);
    f->fd = -1;
    pl_status st = open_file(&f->fd, path, run_dir, O_RDWR | O_CREAT, err);
    if (st == PL_OK)
        st = prepare(f, path, err);
    if (st != PL_OK) {
        pl_snapshot_close(f);
        return st;
    }
    *out = f;
    return PL_OK;
}

void pl_snapshot_write(pl_snapshot_file *f, const pl_snapshot *s)
{
    slot *t = &f->next;

    t->seq++;
    t->hash = 0;
    t->s = *s;
    t->hash = hash_of(t);
    (void)write_all(f->fd, t, sizeof *t, offset_of(t->seq)); /* else the one before stands */
}

void pl_snapshot_close(pl_snapshot_file *f)
{
    if (!f)
        return;
    if (f->fd >= 0)
        (void)close(f->fd);
    free(f);
}

/* ---- reading ---- */

static double mended(double v)
{
    return v >= 0.0 && v < 1e15 ? v : 0.0;
}

static int is_time(int64_t ms)
{
    return ms >= 0 && ms < TIME_MAX_MS;
}

/* What a field may not be is refused; an unknown number is 0, and text is made fit to be shown. */
static const char *bad_field(pl_snapshot *s)
{
    if (s->phase >= PL_PHASES)
        return "phase";
    if (!is_time(s->started_ms) || !is_time(s->updated_ms) || !is_time(s->phase_ms))
        return "time";
    if (s->step < 0 || s->total_steps < 0 || s->step > INT32_MAX || s->total_steps > INT32_MAX)
        return "step";
    if (s->n_workers > 1u << 24)
        return "n_workers";
    for (int i = 0; i < PL_SNAPSHOT_WORKERS; i++) {
        pl_snapshot_worker *w = &s->workers[i];
        if (w->state > PL_WORKER_LOST)
            return "state of a worker";
        for (int j = 0; j < PL_SNAPSHOT_STRIP; j++)
            if (w->strip[j] > PL_WORKER_LOST + 1)
                return "strip of a worker";
        w->rate = (float)mended(w->rate);
        w->busy_s = (float)mended(w->busy_s);
        w->training_s = (float)mended(w->training_s);
        w->idle_s = (float)mended(w->idle_s);
        text_clean(w->name, sizeof w->name, w->name, sizeof w->name);
    }
    s->rate = mended(s->rate);
    if (!(s->eta_s >= 0.0 && s->eta_s < 1e10))
        s->eta_s = NAN;
    text_clean(s->run, sizeof s->run, s->run, sizeof s->run);
    text_clean(s->awaited, sizeof s->awaited, s->awaited, sizeof s->awaited);
    return NULL;
}

static pl_status read_slot(int fd, const char *path, slot *out, slot *room, pl_error *err)
{
    const struct timespec pause = {0, TRY_NS};

    head h;

    if (!read_all(fd, &h, sizeof h, 0) || memcmp(h.magic, magic, sizeof magic) != 0)
        return pl_fail(err, PL_E_FORMAT, "'%s' is damaged: it is empty or no snapshot", path);
    if (!is_ours(fd))
        return pl_fail(err, PL_E_FORMAT,
            "'%s' is no snapshot of this build of paceline: use the paceline that runs the run",
            path);
    for (int i = 0; i < N_TRIES; i++) {
        if (newest(fd, out, room))
            return PL_OK;
        (void)nanosleep(&pause, NULL);
    }
    return pl_fail(err, PL_E_TIMEOUT,
        "'%s' holds no whole snapshot: none was written yet, or it is damaged", path);
}

pl_status pl_snapshot_read(const char *run_dir, pl_snapshot *out, pl_error *err)
{
    char path[PATH_ROOM];
    int fd = -1;
    slot *slots = malloc(2 * sizeof *slots);

    if (!slots)
        return pl_fail(err, PL_E_NOMEM, "snapshot of '%s'", run_dir);
    pl_status st = open_file(&fd, path, run_dir, O_RDONLY, err);
    if (st == PL_OK)
        st = read_slot(fd, path, &slots[0], &slots[1], err);
    const char *bad = st == PL_OK ? bad_field(&slots[0].s) : NULL;
    if (bad)
        st = pl_fail(err, PL_E_FORMAT, "'%s' is damaged: %s out of range", path, bad);
    if (st == PL_OK)
        *out = slots[0].s;
    if (fd >= 0)
        close(fd);
    free(slots);
    return st;
}

/* ---- words and buckets ---- */

const char *pl_phase_name(pl_phase p)
{
    static const char *const names[PL_PHASES] = {"starting", "rollout", "reward", "update", "eval",
        "compare", "checkpoint", "done", "stopped"};
    return (unsigned)p < PL_PHASES ? names[p] : "?";
}

/* 0-3, 4-7, 8-11, 12-15, then four an octave; the last is 28672 and longer. */
int pl_snapshot_bucket(int n_tokens)
{
    if (n_tokens < 16)
        return n_tokens > 0 ? n_tokens / 4 : 0;
    const int octave = 31 - __builtin_clz((unsigned)n_tokens);
    const int bucket = 4 * (octave - 3) + (n_tokens >> (octave - 2) & 3);
    return bucket < PL_SNAPSHOT_LENGTHS ? bucket : PL_SNAPSHOT_LENGTHS - 1;
}

int pl_snapshot_length(int bucket)
{
    if (bucket < 4)
        return bucket > 0 ? 4 * bucket : 0;
    if (bucket >= PL_SNAPSHOT_LENGTHS)
        bucket = PL_SNAPSHOT_LENGTHS - 1;
    return (4 + bucket % 4) << (bucket / 4 + 1);
}
