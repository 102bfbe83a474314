/* tests/fuzz/fuzz_journal.c - the journal's reader and its recovery against any bytes.  The first
 * byte chooses: even, the rest is the file as it stands; odd, the rest is cut into payloads (a
 * length byte before each), which get right headers, hashes and CRCs, and a last byte says how much
 * of the end is missing.  What is refused stays as it is; what is accepted goes on. */
#define _GNU_SOURCE
#include "core/journal_internal.h"

#include "core/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const char kind[] = "PLLEDGR1";

typedef struct heard {
    uint64_t n, hash;
} heard;

static pl_status hear(void *ctx, const pl_journal_record *r, pl_error *err)
{
    heard *h = ctx;

    (void)err;
    h->n++;
    h->hash = 31 * h->hash + pl_hash64(r->data, r->n) + r->type;
    return PL_OK;
}

static void must(int is_true)
{
    if (!is_true)
        abort();
}

/* A file of right blocks.  out has room for 62 bytes more than each payload. */
static size_t build(unsigned char *out, const uint8_t *data, size_t size)
{
    static const unsigned char uid[16];
    unsigned char head[PL_HASH_BYTES];
    size_t at = JOURNAL_SUPER;
    uint64_t seq = 0;

    journal_make_super(out, kind, uid);
    pl_hash256(head, out, JOURNAL_SUPER);
    while (size > 1) {
        size_t n = 1 + data[0];
        n = n < size - 1 ? n : size - 1;
        memcpy(out + at + JOURNAL_HEADER, data + 1, n);
        const size_t length = journal_close_block(out + at, n, seq++, 0, head);
        pl_hash256(head, out + at, length);
        at += length;
        data += 1 + n;
        size -= 1 + n;
    }
    return size == 1 && data[0] < at ? at - data[0] : at;
}

static void check_refused(const char *path, const unsigned char *file, size_t n,
    const pl_journal_options *o, const pl_error *err)
{
    pl_journal *j = NULL;
    char *now = NULL;
    size_t n_now = 0;

    must(err->code == PL_E_FORMAT && strncmp(err->msg, "journal '", 9) == 0);
    must(pl_journal_open(&j, path, o, NULL, NULL, NULL, NULL) == PL_E_FORMAT && !j);
    must(pl_file_read(&now, &n_now, path, 1 << 24, NULL) == PL_OK);
    must(n_now == n && memcmp(now, file, n) == 0);
    free(now);
}

static void check_continued(const char *path, const pl_journal_options *o, const heard *first)
{
    heard again = {0}, longer = {0};
    pl_journal_report report;
    pl_journal *j = NULL;

    must(pl_journal_open(&j, path, o, hear, &again, &report, NULL) == PL_OK);
    must(again.n == first->n && again.hash == first->hash && report.n_records == first->n);
    must(pl_journal_put(j, 5, "more", 4, NULL) == PL_OK);
    must(pl_journal_sync(j, NULL) == PL_OK);
    pl_journal_close(j);
    must(pl_journal_read(path, kind, hear, &longer, &report, NULL) == PL_OK);
    must(report.state == PL_JOURNAL_WHOLE && longer.n == first->n + 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const pl_journal_options o = {.magic = kind};
    pl_journal_report report;
    heard first = {0};
    pl_error err = {0};
    char path[64];

    if (size < 1)
        return 0;
    unsigned char *file = malloc(JOURNAL_SUPER + 64 * size);
    const int fd = memfd_create("fuzz", MFD_CLOEXEC);
    must(file && fd >= 0);
    size_t n = size - 1;
    if (data[0] % 2 == 0)
        memcpy(file, data + 1, n);
    else
        n = build(file, data + 1, n);
    must(write(fd, file, n) == (ssize_t)n);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);

    const pl_status st = pl_journal_read(path, kind, hear, &first, &report, &err);
    must(report.n_bytes + report.torn_bytes == n || report.state == PL_JOURNAL_DAMAGED);
    if (st == PL_OK)
        check_continued(path, &o, &first);
    else
        check_refused(path, file, n, &o, &err);
    (void)close(fd);
    free(file);
    return 0;
}
