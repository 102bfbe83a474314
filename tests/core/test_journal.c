/* Claims: what was synced comes back equal and in order, from the bytes that the header describes;
 * files that are no journal of ours, and second writers, are refused in words. */
#define _GNU_SOURCE
#include "tests/core/journal_bed.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>

TestSuite(journal, .init = enter, .fini = leave, .timeout = 120);

/* The value is Python's, of the bytes that the header's description gives (struct, hashlib and a
 * bitwise CRC-32C). */
Test(journal, the_format_is_the_one_described)
{
    static const unsigned char want[PL_HASH_BYTES] = {0x54, 0x1b, 0xaf, 0x12, 0xaa, 0x86, 0x8d,
        0x83, 0xc1, 0x4a, 0x15, 0xd5, 0x07, 0x0d, 0x84, 0x7c, 0x36, 0x54, 0x09, 0xf8, 0x3e, 0x77,
        0xe7, 0x49, 0x77, 0x7d, 0x15, 0x41, 0xb2, 0x77, 0x01, 0xbb};
    static const unsigned char records[] = {3, 5, 'h', 'e', 'l', 'l', 'o', 0xac, 2, 0};
    unsigned char file[134], uid[16], got[PL_HASH_BYTES];

    for (int i = 0; i < 16; i++)
        uid[i] = (unsigned char)i;
    journal_make_super(file, KIND, uid);
    pl_hash256(got, file, JOURNAL_SUPER);
    memcpy(file + JOURNAL_SUPER + JOURNAL_HEADER, records, sizeof records);
    cr_assert_eq(journal_close_block(file + JOURNAL_SUPER, sizeof records, 0, 12345, got), 70);
    pl_hash256(got, file, sizeof file);
    cr_assert_arr_eq(got, want, sizeof want);

    list l = {0}, all = {0};
    pl_journal_report report;
    remember(&all, 3, "hello", 5);
    remember(&all, 300, "", 0);
    cr_assert_eq(pl_file_write("x", file, sizeof file, NULL), PL_OK);
    cr_assert_eq(pl_journal_read("x", KIND, hear, &l, &report, NULL), PL_OK);
    check_prefix(&l, &all, 2);
    cr_assert_arr_eq(report.run_uid, uid, 16);
}

Test(journal, a_new_one_is_private_and_leaves_nothing_beside_it)
{
    struct stat info;
    int n = 0;

    pl_journal_close(open_new("x", 1));
    cr_assert_eq(stat("x", &info), 0);
    cr_assert_eq(info.st_mode & 0777, 0600);
    DIR *dir = opendir(".");
    while (readdir(dir))
        n++;
    closedir(dir);
    cr_assert_eq(n, 3); /* x . .. */
}

typedef struct crew {
    pthread_mutex_t mutex;
    pl_journal *j;
    list *l;
    unsigned seed;
} crew;

/* One of several threads that put and sync in turns, as they come. */
static void *work(void *arg)
{
    crew *c = arg;
    unsigned char data[3000];

    for (int i = 0; i < 200; i++) {
        (void)pthread_mutex_lock(&c->mutex);
        const uint32_t type = (uint32_t)rand_r(&c->seed) >> (rand_r(&c->seed) % 31);
        const size_t n = (size_t)rand_r(&c->seed) % sizeof data;
        const size_t cut = n > 0 ? (size_t)rand_r(&c->seed) % n : 0;
        memset(data, rand_r(&c->seed), sizeof data);
        cr_assert_eq(pl_journal_put2(c->j, type, data, cut, data + cut, n - cut, NULL), PL_OK);
        remember(c->l, type, data, n);
        if (rand_r(&c->seed) % 5 == 0)
            cr_assert_eq(pl_journal_sync(c->j, NULL), PL_OK);
        (void)pthread_mutex_unlock(&c->mutex);
    }
    return NULL;
}

Test(journal, records_of_interleaved_puts_and_syncs_come_back_equal)
{
    static list all, got, again;
    pl_journal_options o = options(1);
    crew c = {.mutex = PTHREAD_MUTEX_INITIALIZER, .l = &all, .seed = 1};
    pl_journal_report report;
    pthread_t threads[3];

    o.max_bytes = 4096;
    cr_assert_eq(pl_journal_open(&c.j, "x", &o, NULL, NULL, NULL, NULL), PL_OK);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, work, &c), 0);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(pthread_join(threads[i], NULL), 0);
    cr_assert_eq(pl_journal_sync(c.j, NULL), PL_OK);
    cr_assert_eq(pl_journal_read("x", KIND, hear, &got, &report, NULL), PL_OK);
    check_prefix(&got, &all, 600);
    unsigned char head[PL_HASH_BYTES];
    pl_journal_head(c.j, head);
    cr_assert_arr_eq(head, report.head, sizeof head);
    cr_assert_eq(report.n_bytes, pl_journal_size(c.j));
    pl_journal_close(c.j);

    o.run_uid[0] = 99; /* the file's stays */
    cr_assert_eq(pl_journal_open(&c.j, "x", &o, hear, &again, &report, NULL), PL_OK);
    pl_journal_close(c.j);
    check_prefix(&again, &all, 600);
    cr_assert(report.run_uid[0] == 1 && report.state == PL_JOURNAL_WHOLE && !report.is_new);
}

Test(journal, what_was_not_synced_is_dropped_at_close)
{
    pl_journal *j = open_new("x", 1);
    list all = {0}, got = {0};

    put(j, &all, 2, "kept", 4);
    cr_assert_eq(pl_journal_sync(j, NULL), PL_OK);
    put(j, NULL, 2, "dropped", 7);
    pl_journal_close(j);
    cr_assert_eq(pl_journal_read("x", KIND, hear, &got, NULL, NULL), PL_OK);
    check_prefix(&got, &all, 1);
}

Test(journal, the_largest_record_fits_and_a_larger_one_is_refused_without_harm)
{
    unsigned char *data = calloc(1, PL_JOURNAL_RECORD_MAX + 1);
    pl_journal *j = open_new("x", 1);
    list all = {0}, got = {0};
    pl_error err = {0};

    cr_assert_eq(pl_journal_put(j, 2, data, PL_JOURNAL_RECORD_MAX + 1, &err), PL_E_INVAL);
    cr_assert(strstr(err.msg, "at most 1048512 fit"), "%s", err.msg);
    cr_assert_eq(pl_journal_put2(j, 2, data, 1, data, PL_JOURNAL_RECORD_MAX, NULL), PL_E_INVAL);
    cr_assert_eq(pl_journal_put2(j, 2, data, 1, data, SIZE_MAX, NULL), PL_E_INVAL);
    for (int i = 0; i < 3; i++)
        put(j, &all, UINT32_MAX, data, PL_JOURNAL_RECORD_MAX);
    cr_assert_eq(pl_journal_sync(j, NULL), PL_OK);
    pl_journal_close(j);
    cr_assert_eq(pl_journal_read("x", KIND, hear, &got, NULL, NULL), PL_OK);
    check_prefix(&got, &all, 3);
    free(data);
}

static void check_refused(const char *path, const char *magic, pl_status want, const char *words)
{
    pl_journal_options o = {.magic = magic};
    pl_journal *j = NULL;
    pl_error err = {0};

    cr_assert_eq(pl_journal_open(&j, path, &o, NULL, NULL, NULL, &err), want, "%s", err.msg);
    cr_assert_null(j);
    cr_assert(strstr(err.msg, words), "%s", err.msg);
    cr_assert(strstr(err.msg, path), "%s", err.msg);
}

Test(journal, other_files_are_refused_and_stay_as_they_are)
{
    cr_assert_eq(pl_file_write("note", "buy milk", 8, NULL), PL_OK);
    check_refused("note", KIND, PL_E_FORMAT, "kind PLLEDGR1: another kind of file");
    check_bytes("note", "buy milk", 8);
    pl_journal_close(open_new("x", 1));
    check_refused("x", "PLTRACE1", PL_E_FORMAT, "kind PLTRACE1: another kind of file");
    check_refused("x", "PLTRACE", PL_E_INVAL, "needs 8 characters");
    check_refused("none/x", KIND, PL_E_NOENT, "no such file or directory");
    cr_assert_eq(pl_dir_make("dir", NULL), PL_OK);
    check_refused("dir", KIND, PL_E_IO, "Is a directory");
    cr_assert_eq(symlink("nowhere", "link"), 0);
    check_refused("link", KIND, PL_E_IO, "remove the symbolic link");
    cr_assert_eq(mkfifo("pipe", 0600), 0);
    check_refused("pipe", KIND, PL_E_FORMAT, "not a regular file");
    cr_assert_eq(pl_journal_read("none", KIND, NULL, NULL, NULL, NULL), PL_E_NOENT);
}

Test(journal, a_second_writer_is_refused_in_words_and_a_reader_is_not)
{
    pl_journal *j = open_new("x", 1);
    pl_journal_options o = options(1);

    check_refused("x", KIND, PL_E_IO, "another writer has it open");
    cr_assert_eq(pl_journal_read("x", KIND, NULL, NULL, NULL, NULL), PL_OK);
    pl_journal_close(j);
    cr_assert_eq(pl_journal_open(&j, "x", &o, NULL, NULL, NULL, NULL), PL_OK);
    pl_journal_close(j);
}
