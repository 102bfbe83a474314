/* monitor/events.c - TensorBoard's event files: TFRecord frames around Event messages.
 *
 * A frame: length (u64), masked CRC-32C of those 8 bytes, the message, its masked CRC-32C; all
 * little-endian.  The messages are written by hand: wall_time (1, double), step (2, varint),
 * file_version (3, string), summary (5: value 1 {tag 1, simple_value 2, a float}) and session_log
 * (7: status 1).  A session that begins at step n makes readers forget the steps from n on that
 * earlier files of the directory tell: those of a run that went on from an older checkpoint. */
#define _GNU_SOURCE
#include "core/hash.h"
#include "monitor/monitor.h"

#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    PATH_ROOM = 4096,
    HOST_ROOM = 64,
    TRIES = 1000,    /* names of one process and second */
    FRAME_HEAD = 12, /* bytes: length and its CRC */
    FRAME_TAIL = 4,
    TAG_BYTES = 1024, /* of a metric's name; longer ones are left out */
    WIRE_VARINT = 0,
    WIRE_64 = 1,
    WIRE_BYTES = 2,
    WIRE_32 = 5,
    STATUS_START = 1,
};

typedef struct bytes {
    unsigned char *data; /* [n] */
    size_t n, room;
    int failed; /* an allocation did */
} bytes;

struct pl_events {
    int fd;
    off_t size; /* of the file, all of it whole records */
    int has_begun;
    bytes record, value;
    char path[PATH_ROOM];
};

/* ---- messages ---- */

static void put(bytes *b, const void *data, size_t n)
{
    size_t room = b->room ? b->room : 256;

    while (room < b->n + n)
        room *= 2;
    if (room != b->room) {
        unsigned char *p = b->failed ? NULL : realloc(b->data, room);
        if (!p) {
            b->failed = 1;
            return;
        }
        b->data = p;
        b->room = room;
    }
    if (n > 0)
        memcpy(b->data + b->n, data, n);
    b->n += n;
}

static void put_varint(bytes *b, uint64_t v)
{
    unsigned char text[10];
    size_t n = 0;

    do {
        text[n++] = (unsigned char)((v & 127) | (v > 127 ? 128 : 0));
        v >>= 7;
    } while (v > 0);
    put(b, text, n);
}

static void put_key(bytes *b, unsigned field, unsigned wire)
{
    put_varint(b, field << 3 | wire);
}

static void put_little(bytes *b, uint64_t v, size_t n)
{
    unsigned char text[8];

    for (size_t i = 0; i < n; i++)
        text[i] = (unsigned char)(v >> 8 * i);
    put(b, text, n);
}

static void put_double(bytes *b, unsigned field, double v)
{
    uint64_t bits;

    memcpy(&bits, &v, sizeof bits);
    put_key(b, field, WIRE_64);
    put_little(b, bits, 8);
}

static void put_float(bytes *b, unsigned field, float v)
{
    uint32_t bits;

    memcpy(&bits, &v, sizeof bits);
    put_key(b, field, WIRE_32);
    put_little(b, bits, 4);
}

static void put_bytes(bytes *b, unsigned field, const void *data, size_t n)
{
    put_key(b, field, WIRE_BYTES);
    put_varint(b, n);
    put(b, data, n);
}

/* ---- frames ---- */

static uint32_t masked_crc(const void *data, size_t n)
{
    const uint32_t crc = pl_crc32c(0, data, n);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

/* An empty record: room for the frame's head, filled in by end_record. */
static void begin_record(bytes *b, double unix_s)
{
    static const unsigned char head[FRAME_HEAD];

    b->n = 0;
    b->failed = 0;
    put(b, head, sizeof head);
    put_double(b, 1, unix_s);
}

static pl_status write_record(pl_events *e, pl_error *err)
{
    bytes *b = &e->record;
    ssize_t written;

    if (b->failed || e->value.failed)
        return pl_fail(err, PL_E_NOMEM, "'%s': no memory for a record", e->path);
    const size_t n = b->n - FRAME_HEAD;
    put_little(b, masked_crc(b->data + FRAME_HEAD, n), FRAME_TAIL);
    if (b->failed)
        return pl_fail(err, PL_E_NOMEM, "'%s': no memory for a record", e->path);
    const size_t end = b->n;
    b->n = 0;
    put_little(b, n, 8);
    put_little(b, masked_crc(b->data, 8), 4);
    do
        written = write(e->fd, b->data, end);
    while (written < 0 && errno == EINTR);
    if (written == (ssize_t)end) {
        e->size += written;
        return PL_OK;
    }
    const int code = written < 0 ? errno : ENOSPC;
    if (written > 0 && ftruncate(e->fd, e->size) != 0)
        return pl_fail(err, PL_E_IO, "truncate '%s': %s", e->path, strerror(errno));
    return pl_fail(err, PL_E_IO, "write '%s': %s", e->path,
        code == ENOSPC ? "disk full; free space there" : strerror(code));
}

static pl_status write_version(pl_events *e, double unix_s, pl_error *err)
{
    static const char version[] = "brain.Event:2";

    begin_record(&e->record, unix_s);
    put_bytes(&e->record, 3, version, sizeof version - 1);
    return write_record(e, err);
}

static pl_status write_start(pl_events *e, int64_t step, double unix_s, pl_error *err)
{
    static const unsigned char start[] = {1 << 3 | WIRE_VARINT, STATUS_START};

    begin_record(&e->record, unix_s);
    put_key(&e->record, 2, WIRE_VARINT);
    put_varint(&e->record, (uint64_t)step);
    put_bytes(&e->record, 7, start, sizeof start);
    const pl_status st = write_record(e, err);
    e->has_begun = st == PL_OK;
    return st;
}

/* One value of a summary: itself a message of length-delimited parts. */
static void put_value(bytes *summary, const pl_metric *m, size_t n_name)
{
    bytes head = {0};
    unsigned char room[16];

    head.data = room; /* key, length, of the tag: at most 6 bytes */
    head.room = sizeof room;
    put_key(&head, 1, WIRE_BYTES);
    put_varint(&head, n_name);
    put_key(summary, 1, WIRE_BYTES);
    put_varint(summary, head.n + n_name + 5); /* a float is 5 bytes with its key */
    put(summary, room, head.n);
    put(summary, m->name, n_name);
    put_float(summary, 2, (float)m->value);
}

pl_status pl_events_put(
    pl_events *e, int64_t step, double unix_s, const pl_metric *metrics, int n, pl_error *err)
{
    pl_status st = PL_OK;

    if (!e->has_begun)
        st = write_start(e, step, unix_s, err);
    if (st != PL_OK)
        return st;
    e->value.n = 0;
    e->value.failed = 0;
    for (int i = 0; i < n; i++) {
        const size_t n_name = strlen(metrics[i].name);
        if (fabs(metrics[i].value) <= (double)FLT_MAX && n_name <= TAG_BYTES)
            put_value(&e->value, &metrics[i], n_name);
    }
    begin_record(&e->record, unix_s);
    put_key(&e->record, 2, WIRE_VARINT);
    put_varint(&e->record, (uint64_t)step);
    put_bytes(&e->record, 5, e->value.data, e->value.n);
    return write_record(e, err);
}

/* ---- the file ---- */

/* The machine's name, fit for a file name. */
static void host_name(char out[HOST_ROOM])
{
    if (gethostname(out, HOST_ROOM) != 0)
        out[0] = '\0';
    out[HOST_ROOM - 1] = '\0';
    for (char *p = out; *p; p++) {
        const char c = *p;
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                c == '-' || c == '.'))
            *p = '_';
    }
    if (!out[0])
        strcpy(out, "host");
}

static pl_status create(pl_events *e, const char *run_dir, int64_t unix_s, pl_error *err)
{
    char host[HOST_ROOM];

    host_name(host);
    for (int i = 0; i < TRIES; i++) {
        if (snprintf(e->path, sizeof e->path, "%s/events.out.tfevents.%010lld.%s.%ld.%d", run_dir,
                (long long)unix_s, host, (long)getpid(), i) >= (int)sizeof e->path)
            return pl_fail(err, PL_E_IO, "'%s': name too long", run_dir);
        do
            e->fd = open(e->path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
        while (e->fd < 0 && errno == EINTR);
        if (e->fd >= 0)
            return PL_OK;
        if (errno == ENOENT)
            return pl_fail(err, PL_E_NOENT, "open '%s': the directory is not there", e->path);
        if (errno != EEXIST)
            break;
    }
    return pl_fail(err, PL_E_IO, "open '%s': %s", e->path, strerror(errno));
}

pl_status pl_events_open(pl_events **out, const char *run_dir, pl_error *err)
{
    struct timespec now;
    pl_events *e = calloc(1, sizeof *e);

    if (!e)
        return pl_fail(err, PL_E_NOMEM, "events of '%s'", run_dir);
    e->fd = -1;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    pl_status st = create(e, run_dir, (int64_t)now.tv_sec, err);
    if (st == PL_OK)
        st = write_version(e, (double)now.tv_sec + (double)now.tv_nsec * 1e-9, err);
    if (st != PL_OK) {
        pl_events_close(e);
        return st;
    }
    *out = e;
    return PL_OK;
}

void pl_events_close(pl_events *e)
{
    if (!e)
        return;
    if (e->fd >= 0)
        (void)close(e->fd);
    free(e->record.data);
    free(e->value.data);
    free(e);
}
