/* Claims: the first failed write or fdatasync ends a journal for good and keeps what was durable;
 * short writes and signals change nothing; a sync costs one write and one fdatasync.  How: pwrite,
 * fdatasync and the allocations of our own objects go through __wrap_*, which fails them on demand
 * (tests/core/CMakeLists.txt). */
#define _GNU_SOURCE
#include "tests/core/journal_bed.h"

#include <errno.h>
#include <signal.h>
#include <sys/resource.h>

TestSuite(journal_fault, .init = enter, .fini = leave, .timeout = 120);

static int n_writes, n_syncs; /* calls seen */
static int sync_errno;        /* of the next fdatasync, then 0 again */
static int n_interrupts;      /* that many calls end with EINTR first */
static size_t most_bytes;     /* a write takes no more; 0: all */
static int n_allocs, fail_at; /* number of the allocation that fails, from 1; 0: none */

ssize_t __real_pwrite(int fd, const void *data, size_t n, off_t at);
ssize_t __wrap_pwrite(int fd, const void *data, size_t n, off_t at);
int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
void *__real_malloc(size_t n);
void *__wrap_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);

static int is_interrupted(void)
{
    if (n_interrupts == 0)
        return 0;
    n_interrupts--;
    errno = EINTR;
    return 1;
}

ssize_t __wrap_pwrite(int fd, const void *data, size_t n, off_t at)
{
    n_writes++;
    if (is_interrupted())
        return -1;
    return __real_pwrite(fd, data, most_bytes > 0 && n > most_bytes ? most_bytes : n, at);
}

int __wrap_fdatasync(int fd)
{
    n_syncs++;
    if (is_interrupted())
        return -1;
    if (sync_errno == 0)
        return __real_fdatasync(fd);
    errno = sync_errno;
    sync_errno = 0;
    return -1;
}

void *__wrap_malloc(size_t n)
{
    return ++n_allocs == fail_at ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return ++n_allocs == fail_at ? NULL : __real_calloc(n, size);
}

Test(journal_fault, a_sync_is_one_write_and_one_fdatasync_and_none_when_nothing_is_gathered)
{
    pl_journal *j = open_new("x", 1);

    n_writes = n_syncs = 0;
    for (int i = 0; i < 50; i++)
        put(j, NULL, 2, "abc", 3);
    cr_assert(n_writes == 0 && n_syncs == 0);
    cr_assert_eq(pl_journal_sync(j, NULL), PL_OK);
    cr_assert(n_writes == 1 && n_syncs == 1);
    cr_assert_eq(pl_journal_sync(j, NULL), PL_OK);
    cr_assert(n_writes == 1 && n_syncs == 1);
    pl_journal_close(j);
}

Test(journal_fault, any_failing_allocation_is_an_error)
{
    const pl_journal_options o = options(1);
    pl_status st = PL_E_NOMEM;
    pl_journal *j = NULL;

    pl_journal_close(open_new("x", 1));
    int at = 1;
    for (; st == PL_E_NOMEM; at++) {
        pl_error err = {0};
        n_allocs = 0;
        fail_at = at;
        st = pl_journal_open(&j, "x", &o, NULL, NULL, NULL, &err);
        fail_at = 0;
        cr_assert(st == PL_OK || (st == PL_E_NOMEM && !j && strstr(err.msg, "'x'")));
    }
    cr_assert_eq(st, PL_OK);
    cr_assert_eq(at, 5); /* the object, its block, the reader's block, none */
    pl_journal_close(j);
}

/* A file size limit stands for the full disk: the second block is written half. */
Test(journal_fault, after_a_failed_write_the_journal_is_dead_and_what_was_synced_is_kept)
{
    struct rlimit limit;
    unsigned char data[3000] = {0};
    pl_journal *j = open_new("x", 1);
    const pl_journal_options o = options(1);
    list all = {0}, got = {0};
    pl_error err = {0}, later = {0};
    pl_journal_report report;

    signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(getrlimit(RLIMIT_FSIZE, &limit), 0);
    put(j, &all, 2, data, sizeof data);
    cr_assert_eq(pl_journal_sync(j, NULL), PL_OK);
    const rlim_t old = limit.rlim_cur;
    limit.rlim_cur = 4096;
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    put(j, NULL, 2, data, sizeof data);
    cr_assert_eq(pl_journal_sync(j, &err), PL_E_IO);
    cr_assert(strstr(err.msg, "'x': write block 1 at byte 3127: File too large"), "%s", err.msg);
    cr_assert(strstr(err.msg, "ulimit -f"), "%s", err.msg);
    limit.rlim_cur = old;
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);

    n_writes = 0; /* there would be room now */
    cr_assert_eq(pl_journal_put(j, 2, data, 1, &later), PL_E_IO);
    cr_assert_str_eq(later.msg, err.msg);
    cr_assert_eq(pl_journal_sync(j, &later), PL_E_IO);
    cr_assert_str_eq(later.msg, err.msg);
    cr_assert_eq(n_writes, 0);
    pl_journal_close(j);
    cr_assert_eq(pl_journal_read("x", KIND, hear, &got, &report, NULL), PL_OK);
    check_prefix(&got, &all, 1);
    cr_assert_eq(pl_journal_open(&j, "x", &o, NULL, NULL, NULL, NULL), PL_OK);
    put(j, &all, 4, data, 10);
    cr_assert_eq(pl_journal_sync(j, NULL), PL_OK);
    pl_journal_close(j);
    got.n = 0;
    cr_assert_eq(pl_journal_read("x", KIND, hear, &got, &report, NULL), PL_OK);
    check_prefix(&got, &all, 2);
}

/* The kernel reports a lost page once; the next fdatasync succeeds and means nothing. */
Test(journal_fault, a_failed_fdatasync_is_never_tried_again)
{
    pl_journal *j = open_new("x", 1);
    list got = {0};
    pl_error err = {0};

    put(j, NULL, 2, "abc", 3);
    sync_errno = EIO;
    cr_assert_eq(pl_journal_sync(j, &err), PL_E_IO);
    cr_assert(strstr(err.msg, "'x': fdatasync block 0 at byte 64: Input"), "%s", err.msg);
    n_syncs = n_writes = 0;
    cr_assert_eq(pl_journal_sync(j, &err), PL_E_IO);
    cr_assert_eq(pl_journal_put(j, 2, "abc", 3, &err), PL_E_IO);
    cr_assert(n_syncs == 0 && n_writes == 0);
    pl_journal_close(j);
    cr_assert_eq(pl_journal_read("x", KIND, hear, &got, NULL, NULL), PL_OK);
    cr_assert_eq(got.n, 0); /* never promised, and cut */
}

Test(journal_fault, short_writes_and_signals_change_nothing)
{
    pl_journal *j = open_new("x", 1);
    list all = {0}, got = {0};
    unsigned char data[100];

    memset(data, 7, sizeof data);
    most_bytes = 3;
    n_interrupts = 5;
    put(j, &all, 2, data, sizeof data);
    cr_assert_eq(pl_journal_sync(j, NULL), PL_OK);
    most_bytes = 0;
    put(j, &all, 2, data, 1);
    n_interrupts = 2;
    cr_assert_eq(pl_journal_sync(j, NULL), PL_OK);
    pl_journal_close(j);
    cr_assert_eq(pl_journal_read("x", KIND, hear, &got, NULL, NULL), PL_OK);
    check_prefix(&got, &all, 2);
}
