/* core/journal_read.c - the walk along a journal's chain: what is whole, torn or damaged.
 *
 * A block that does not hold is torn when it can be the one block that a crash interrupted: nothing
 * whole stands behind it, and it is not followed by more bytes than a block has.  A length that was
 * changed would hide the blocks behind it, so those are looked for byte by byte. */
#define _GNU_SOURCE
#include "core/journal_internal.h"

#include "core/internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    VERSION = 1,
    BLOCK_ROOM = JOURNAL_OVERHEAD + PL_JOURNAL_BLOCK_MAX, /* bytes of the largest block */
    SCAN_MAX =
        256, /* places that may be blocks, behind a bad one, whose CRC is computed: bounds the
                work on hostile files (256 MiB); one with more of them counts as damaged */
};

static const unsigned char block_magic[4] = {'P', 'L', 'J', 'B'};

/* A walk stands at report->n_bytes and wants block report->n_blocks. */
typedef struct reader {
    int fd;
    const char *path;
    uint64_t size;         /* of the file, when the walk began */
    unsigned char *buffer; /* [BLOCK_ROOM] */
    pl_journal_fn on_record;
    void *ctx;
    pl_journal_report *report;
} reader;

pl_status journal_check_magic(const char *magic, const char *path, pl_error *err)
{
    if (!magic || strlen(magic) != JOURNAL_MAGIC)
        return pl_fail(err, PL_E_INVAL, "journal '%s': its magic '%s' needs 8 characters", path,
            magic ? magic : "");
    return PL_OK;
}

void journal_make_super(
    unsigned char out[JOURNAL_SUPER], const char *magic, const unsigned char run_uid[16])
{
    memcpy(out, magic, JOURNAL_MAGIC);
    journal_put_u32(out + 8, VERSION);
    journal_put_u32(out + 12, 0);
    memcpy(out + 16, run_uid, 16);
    pl_hash256(out + 32, out, 32);
}

size_t journal_close_block(unsigned char *block, size_t n, uint64_t seq, uint64_t mono_ns,
    const unsigned char head[PL_HASH_BYTES])
{
    assert(n > 0 && n <= PL_JOURNAL_BLOCK_MAX);
    memcpy(block, block_magic, sizeof block_magic);
    journal_put_u32(block + 4, (uint32_t)n);
    journal_put_u64(block + 8, seq);
    journal_put_u64(block + 16, mono_ns);
    memcpy(block + 24, head, PL_HASH_BYTES);
    journal_put_u32(block + JOURNAL_HEADER + n, pl_crc32c(0, block, JOURNAL_HEADER + n));
    return JOURNAL_OVERHEAD + n;
}

static pl_status read_at(
    const reader *r, unsigned char *out, size_t n, uint64_t offset, pl_error *err)
{
    while (n > 0) {
        const ssize_t got = pread(r->fd, out, n, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return core_fail_errno(err, errno, "read journal", r->path);
        if (got == 0)
            return pl_fail(
                err, PL_E_IO, "read journal '%s': it became shorter meanwhile; try again", r->path);
        out += got;
        offset += (uint64_t)got;
        n -= (size_t)got;
    }
    return PL_OK;
}

/* --- what does not hold --- */

static pl_status damaged(reader *r, const char *what, pl_error *err)
{
    pl_journal_report *report = r->report;

    report->state = PL_JOURNAL_DAMAGED;
    report->bad_offset = report->n_bytes;
    report->bad_seq = report->n_blocks;
    report->why = what;
    return pl_fail(err, PL_E_FORMAT,
        "journal '%s': block %" PRIu64 " at byte %" PRIu64
        " is damaged: %s; put a good copy of the file in its place, or move it away to start anew",
        r->path, report->bad_seq, report->bad_offset, what);
}

static pl_status damaged_super(reader *r, const char *magic, const char *what, pl_error *err)
{
    r->report->state = PL_JOURNAL_DAMAGED;
    r->report->why = what;
    return pl_fail(err, PL_E_FORMAT,
        "journal '%s': byte 0, the superblock of kind %s: %s; give the right file, or move "
        "this one away to start anew",
        r->path, magic, what);
}

static pl_status torn(reader *r)
{
    pl_journal_report *report = r->report;

    report->state = PL_JOURNAL_TORN;
    report->bad_offset = report->n_bytes;
    report->bad_seq = report->n_blocks;
    report->torn_bytes = r->size - report->n_bytes;
    return PL_OK;
}

/* Bytes of the block whose header is at h, or 0 when it is no header. */
static size_t block_bytes(const unsigned char h[JOURNAL_HEADER])
{
    const uint32_t n = journal_get_u32(h + 4);

    if (memcmp(h, block_magic, sizeof block_magic) != 0 || n == 0 || n > PL_JOURNAL_BLOCK_MAX)
        return 0;
    return JOURNAL_OVERHEAD + (size_t)n;
}

static int is_crc_right(const unsigned char *block, size_t n)
{
    return journal_get_u32(block + n - 4) == pl_crc32c(0, block, n - 4);
}

/* 1 if a whole block, of this place in the chain or later, stands in the n bytes, not at their
 * start. */
static int holds_block(const unsigned char *bytes, size_t n, uint64_t seq)
{
    int n_scanned = 0;

    for (size_t i = 1; i + JOURNAL_OVERHEAD < n; i++) {
        const unsigned char *p = memmem(bytes + i, n - i, block_magic, sizeof block_magic);
        if (!p)
            return 0;
        i = (size_t)(p - bytes);
        if (n - i <= JOURNAL_OVERHEAD)
            return 0;
        const size_t length = block_bytes(p);
        if (length == 0 || length > n - i || journal_get_u64(p + 8) < seq)
            continue;
        if (++n_scanned > SCAN_MAX || is_crc_right(p, length))
            return 1;
    }
    return 0;
}

/* The rest of the file does not begin with a block that lies in it. */
static pl_status judge_rest(reader *r, pl_error *err)
{
    static const char why[] = "its header is wrong and it is not the last";
    const uint64_t rest = r->size - r->report->n_bytes;

    if (rest > BLOCK_ROOM)
        return damaged(r, why, err);
    const pl_status st = read_at(r, r->buffer, (size_t)rest, r->report->n_bytes, err);
    if (st != PL_OK)
        return st;
    return holds_block(r->buffer, (size_t)rest, r->report->n_blocks) ? damaged(r, why, err)
                                                                     : torn(r);
}

/* --- records --- */

/* Read a varint, as short as can be and at most 32 bits, and move *p behind it.  Returns 0 when
 * there is none before end. */
static int get_varint(const unsigned char **p, const unsigned char *end, uint32_t *v)
{
    uint64_t sum = 0;

    for (int i = 0; i < JOURNAL_VARINT && *p < end; i++) {
        const unsigned char byte = *(*p)++;
        sum |= (uint64_t)(byte & 0x7f) << (7 * i);
        if (byte < 0x80) {
            *v = (uint32_t)sum;
            return sum <= UINT32_MAX && (byte != 0 || i == 0);
        }
    }
    return 0;
}

/* Take the record at *p and move *p behind it.  Returns 0 when it does not parse. */
static int get_record(const unsigned char **p, const unsigned char *end, pl_journal_record *record)
{
    uint32_t n;

    if (!get_varint(p, end, &record->type) || !get_varint(p, end, &n) || n > (size_t)(end - *p))
        return 0;
    record->is_critical = (int)(record->type & 1);
    record->data = *p;
    record->n = n;
    *p += n;
    return 1;
}

/* Records in the payload, or 0 when one of them does not parse. */
static uint64_t count_records(const unsigned char *p, const unsigned char *end)
{
    pl_journal_record record;
    uint64_t n = 0;

    for (; p < end; n++)
        if (!get_record(&p, end, &record))
            return 0;
    return n;
}

static pl_status hand_out(
    const reader *r, const unsigned char *p, const unsigned char *end, pl_error *err)
{
    pl_journal_record record = {
        .seq = journal_get_u64(r->buffer + 8), .mono_ns = journal_get_u64(r->buffer + 16)};

    while (r->on_record && p < end && get_record(&p, end, &record)) {
        const pl_status st = r->on_record(r->ctx, &record, err);
        if (st != PL_OK)
            return pl_wrap(err, st,
                "journal '%s': record of type %" PRIu32 " in block %" PRIu64 " at byte %" PRIu64,
                r->path, record.type, record.seq, r->report->n_bytes);
    }
    return PL_OK;
}

/* --- the walk --- */

/* 1. the header; 2. the rest of it and its CRC; 3. its place in the chain; 4. its records. */
static pl_status read_block(reader *r, pl_error *err)
{
    pl_journal_report *report = r->report;
    const uint64_t at = report->n_bytes;
    const uint64_t rest = r->size - at;
    unsigned char *block = r->buffer;

    if (rest <= JOURNAL_OVERHEAD)
        return torn(r);
    pl_status st = read_at(r, block, JOURNAL_HEADER, at, err);
    if (st != PL_OK)
        return st;
    const size_t n = block_bytes(block);
    if (n == 0 || n > rest)
        return judge_rest(r, err);

    st = read_at(r, block + JOURNAL_HEADER, n - JOURNAL_HEADER, at + JOURNAL_HEADER, err);
    if (st != PL_OK)
        return st;
    if (!is_crc_right(block, n))
        return n == rest ? torn(r) : damaged(r, "its CRC-32C is wrong and it is not the last", err);

    if (journal_get_u64(block + 8) != report->n_blocks)
        return damaged(r, "its sequence number is that of another place", err);
    if (memcmp(block + 24, report->head, PL_HASH_BYTES) != 0)
        return damaged(r, "it does not continue the block before it", err);

    const unsigned char *end = block + n - 4;
    const uint64_t n_records = count_records(block + JOURNAL_HEADER, end);
    if (n_records == 0)
        return damaged(r, "its records do not parse", err);
    st = hand_out(r, block + JOURNAL_HEADER, end, err);
    if (st != PL_OK)
        return st;
    pl_hash256(report->head, block, n);
    report->n_bytes += n;
    report->n_blocks++;
    report->n_records += n_records;
    return PL_OK;
}

/* 1 if these n < 64 bytes can be what is left of writing a superblock. */
static int is_super_start(const unsigned char *bytes, size_t n, const char *magic)
{
    static const unsigned char zeros[JOURNAL_SUPER];

    return memcmp(bytes, magic, n < JOURNAL_MAGIC ? n : JOURNAL_MAGIC) == 0 ||
           memcmp(bytes, zeros, n) == 0;
}

static pl_status read_super(reader *r, const char *magic, pl_error *err)
{
    const size_t n = r->size < JOURNAL_SUPER ? (size_t)r->size : JOURNAL_SUPER;
    unsigned char hash[PL_HASH_BYTES];
    unsigned char *super = r->buffer;

    const pl_status st = read_at(r, super, n, 0, err);
    if (st != PL_OK)
        return st;
    if (n < JOURNAL_SUPER && is_super_start(super, n, magic))
        return torn(r);
    if (n < JOURNAL_SUPER || memcmp(super, magic, JOURNAL_MAGIC) != 0)
        return damaged_super(r, magic, "another kind of file, or damaged", err);
    pl_hash256(hash, super, 32);
    if (memcmp(hash, super + 32, PL_HASH_BYTES) != 0)
        return damaged_super(r, magic, "damaged, its hash is wrong", err);
    if (journal_get_u32(super + 8) != VERSION || journal_get_u32(super + 12) != 0)
        return damaged_super(r, magic, "of another version than 1, or with unknown flags", err);
    memcpy(r->report->run_uid, super + 16, 16);
    pl_hash256(r->report->head, super, JOURNAL_SUPER);
    r->report->n_bytes = JOURNAL_SUPER;
    return PL_OK;
}

pl_status journal_walk(int fd, const char *path, const char *magic, pl_journal_fn on_record,
    void *ctx, pl_journal_report *report, pl_error *err)
{
    reader r = {.fd = fd, .path = path, .on_record = on_record, .ctx = ctx, .report = report};
    struct stat info;

    if (fstat(fd, &info) != 0)
        return core_fail_errno(err, errno, "examine journal", path);
    if (!S_ISREG(info.st_mode))
        return pl_fail(err, PL_E_FORMAT, "journal '%s': is not a regular file", path);
    r.size = (uint64_t)info.st_size;
    r.buffer = malloc(BLOCK_ROOM);
    if (!r.buffer)
        return pl_fail(err, PL_E_NOMEM, "read journal '%s': no memory for a block of 1 MiB", path);

    pl_status st = read_super(&r, magic, err);
    while (st == PL_OK && report->state == PL_JOURNAL_WHOLE && report->n_bytes < r.size)
        st = read_block(&r, err);
    free(r.buffer);
    return st;
}

pl_status pl_journal_read(const char *path, const char *magic, pl_journal_fn on_record, void *ctx,
    pl_journal_report *report, pl_error *err)
{
    pl_journal_report own;
    int fd;

    assert(path);
    report = report ? report : &own;
    memset(report, 0, sizeof *report);
    pl_status st = journal_check_magic(magic, path, err);
    if (st != PL_OK)
        return st;
    do /* O_NONBLOCK: opening a pipe must not wait for its writer */
        fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    while (fd < 0 && errno == EINTR);
    if (fd < 0)
        return core_fail_errno(err, errno, "open journal", path);
    st = journal_walk(fd, path, magic, on_record, ctx, report, err);
    (void)close(fd);
    return st;
}
