/* Claims: a written file appears whole or not at all and leaves nothing beside it; readers refuse
 * what is no file; walks do not follow links; a committed directory replaces nothing. */
#define _GNU_SOURCE
#include "core/file.h"

#include "core/internal.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* Each test stands in a fresh directory of its own, and cleans it up. */
static char home[64];

static void enter(void)
{
    snprintf(home, sizeof home, "%s/pl_test_file_XXXXXX", P_tmpdir);
    cr_assert_not_null(mkdtemp(home));
    cr_assert_eq(chdir(home), 0);
}

static void leave(void)
{
    cr_assert_eq(chdir("/"), 0);
    cr_assert_eq(pl_dir_remove(home, NULL), PL_OK);
    cr_assert(!pl_path_exists(home));
}

TestSuite(file, .init = enter, .fini = leave, .timeout = 60);

static int n_entries(const char *path)
{
    int n = 0;
    DIR *dir = opendir(path);
    cr_assert_not_null(dir);
    while (readdir(dir))
        n++;
    closedir(dir);
    return n - 2; /* . and .. */
}

static void put(const char *path, const char *text)
{
    cr_assert_eq(pl_file_write(path, text, strlen(text), NULL), PL_OK);
}

static void check_text(const char *path, const char *text)
{
    char *got = NULL;
    size_t n = 0;
    cr_assert_eq(pl_file_read(&got, &n, path, 1000, NULL), PL_OK);
    cr_assert_eq(n, strlen(text));
    cr_assert_str_eq(got, text);
    free(got);
}

Test(file, what_is_written_in_pieces_reads_back)
{
    static const size_t sizes[] = {0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (3 << 20) + 5};
    unsigned char *data = malloc(4 << 20);
    for (size_t i = 0; i < 4 << 20; i++)
        data[i] = (unsigned char)(i * 2654435761u >> 13);
    for (size_t k = 0; k < 6 * 3; k++) {
        const size_t size = sizes[k % 6];
        const size_t piece = k / 6 == 0 ? 70001 : k / 6 == 1 ? 1 << 20 : 4 << 20;
        pl_writer *w = NULL;
        pl_file f;
        cr_assert_eq(pl_writer_open(&w, "data", NULL), PL_OK);
        for (size_t i = 0; i < size; i += piece) {
            const size_t n = size - i < piece ? size - i : piece;
            cr_assert_eq(pl_writer_put(w, data + i, n, NULL), PL_OK);
        }
        cr_assert_eq(pl_writer_commit(w, NULL), PL_OK);
        cr_assert_eq(pl_file_open(&f, "data", NULL), PL_OK);
        cr_assert_eq(f.size, size);
        cr_assert_not_null(f.data);
        cr_assert_eq(memcmp(f.data, data, size), 0);
        cr_assert_str_eq(f.path, "data");
        pl_file_close(&f);
    }
    cr_assert_eq(n_entries("."), 1);
    free(data);
}

Test(file, the_old_file_stands_until_commit_and_after_abort)
{
    pl_writer *w = NULL;
    put("x", "old");
    cr_assert_eq(pl_writer_open(&w, "x", NULL), PL_OK);
    cr_assert_eq(pl_writer_put(w, "new!", 4, NULL), PL_OK);
    check_text("x", "old");
    cr_assert_eq(n_entries("."), 2);
    pl_writer_abort(w);
    check_text("x", "old");
    cr_assert_eq(n_entries("."), 1);
    pl_writer_abort(NULL);
}

/* A file size limit stands for the full disk: write(2) fails half way. */
Test(file, a_failed_write_is_remembered_and_nothing_is_left)
{
    const struct rlimit limit = {1 << 20, 1 << 20};
    char *data = calloc(1, 3 << 20);
    pl_writer *w = NULL;
    pl_error err = {0};

    put("x", "old");
    signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    cr_assert_eq(pl_writer_open(&w, "x", NULL), PL_OK);
    cr_assert_eq(pl_writer_put(w, data, 3 << 20, &err), PL_E_IO);
    cr_assert(strstr(err.msg, "write 'x'"), "%s", err.msg);
    cr_assert_eq(pl_writer_put(w, data, 1, NULL), PL_E_IO);
    err.msg[0] = '\0';
    cr_assert_eq(pl_writer_commit(w, &err), PL_E_IO);
    cr_assert(strstr(err.msg, "write 'x'"), "%s", err.msg);
    check_text("x", "old");
    cr_assert_eq(n_entries("."), 1);
    free(data);
}

Test(file, a_full_disk_is_named_with_the_remedy)
{
    pl_error err;
    cr_assert_eq(core_fail_errno(&err, ENOSPC, "write", "x"), PL_E_IO);
    cr_assert_str_eq(err.msg, "write 'x': disk full; free space there or choose another directory");
}

Test(file, a_commit_that_cannot_rename_leaves_nothing)
{
    pl_writer *w = NULL;
    pl_error err;
    cr_assert_eq(mkdir("x", 0755), 0);
    cr_assert_eq(pl_writer_open(&w, "x", NULL), PL_OK);
    cr_assert_eq(pl_writer_commit(w, &err), PL_E_IO);
    cr_assert(strstr(err.msg, "'x'"));
    cr_assert_eq(n_entries("."), 1);
}

/* In a container every run may have the same process number. */
Test(file, a_leftover_of_the_same_process_number_does_not_block)
{
    char temp[64];
    snprintf(temp, sizeof temp, "x.tmp.%ld", (long)getpid());
    put(temp, "left behind by a kill");
    put("x", "new");
    check_text("x", "new");
    check_text(temp, "left behind by a kill");
}

Test(file, a_missing_directory_is_noent_and_by_name)
{
    pl_writer *w = NULL;
    pl_error err;
    cr_assert_eq(pl_writer_open(&w, "no/x", &err), PL_E_NOENT);
    cr_assert(strstr(err.msg, "no/x"));
    cr_assert_null(w);
}

Test(file, readers_refuse_what_is_no_file)
{
    pl_file f;
    pl_error err;
    char *text = NULL;
    cr_assert_eq(mkfifo("pipe", 0600), 0);
    cr_assert_eq(pl_file_open(&f, "gone", &err), PL_E_NOENT);
    cr_assert_str_eq(err.msg, "open 'gone': no such file or directory");
    cr_assert_eq(pl_file_open(&f, ".", &err), PL_E_FORMAT);
    cr_assert_eq(pl_file_open(&f, "pipe", &err), PL_E_FORMAT);
    cr_assert_eq(pl_file_open(&f, "/dev/zero", &err), PL_E_FORMAT);
    cr_assert_eq(pl_file_read(&text, NULL, ".", 10, &err), PL_E_IO);
    cr_assert_eq(pl_file_read(&text, NULL, "gone", 10, &err), PL_E_NOENT);
    cr_assert_null(text);
    memset(&f, 0, sizeof f);
    pl_file_close(&f);
    pl_file_close(NULL);
}

Test(file, read_holds_its_limit_also_for_endless_files)
{
    char *text = NULL;
    size_t n = 0;
    put("x", "12345");
    cr_assert_eq(pl_file_read(&text, &n, "x", 4, NULL), PL_E_FORMAT);
    cr_assert_eq(pl_file_read(&text, &n, "/dev/zero", 1 << 20, NULL), PL_E_FORMAT);
    cr_assert_null(text);
    cr_assert_eq(pl_file_read(&text, &n, "x", 5, NULL), PL_OK);
    cr_assert_eq(n, 5);
    cr_assert_str_eq(text, "12345");
    free(text);
    put("x", "");
    cr_assert_eq(pl_file_read(&text, &n, "x", 0, NULL), PL_OK);
    cr_assert_eq(n, 0);
    free(text);
    cr_assert_eq(pl_file_read(&text, &n, "/proc/self/status", 1 << 20, NULL), PL_OK);
    cr_assert_gt(n, 0); /* a file whose size says 0 */
    free(text);
}

Test(file, directories_are_made_with_their_parents)
{
    pl_error err;
    cr_assert_eq(pl_dir_make("a/b//c/", NULL), PL_OK);
    cr_assert_eq(pl_dir_make("a/b/c", NULL), PL_OK);
    cr_assert(pl_path_exists("a/b/c"));
    put("file", "");
    cr_assert_eq(pl_dir_make("file", &err), PL_E_IO);
    cr_assert_eq(pl_dir_make("file/below", &err), PL_E_IO);
    cr_assert(strstr(err.msg, "'file'"), "%s", err.msg);
    cr_assert_eq(pl_dir_make("", &err), PL_E_INVAL);
    cr_assert_eq(pl_dir_make("/", &err), PL_OK);
}

Test(file, remove_takes_the_tree_and_no_more)
{
    cr_assert_eq(pl_dir_make("keep", NULL), PL_OK);
    put("keep/file", "precious");
    cr_assert_eq(pl_dir_make("a/b/c", NULL), PL_OK);
    put("a/b/c/file", "x");
    cr_assert_eq(symlink("../../keep", "a/b/link"), 0);
    cr_assert_eq(symlink("keep", "link"), 0);
    cr_assert_eq(pl_dir_remove("a", NULL), PL_OK);
    cr_assert_eq(pl_dir_remove("a", NULL), PL_OK);
    cr_assert_eq(pl_dir_remove("link", NULL), PL_E_IO);
    cr_assert_eq(pl_dir_remove("link/", NULL), PL_E_IO);
    cr_assert_eq(pl_dir_remove("keep/file", NULL), PL_E_IO);
    cr_assert(!pl_path_exists("a"));
    check_text("keep/file", "precious");
}

Test(file, remove_takes_a_thousand_files)
{
    char name[32];
    cr_assert_eq(pl_dir_make("many", NULL), PL_OK);
    for (int i = 0; i < 1000; i++) {
        snprintf(name, sizeof name, "many/%d", i);
        FILE *f = fopen(name, "w");
        cr_assert_not_null(f);
        fclose(f);
    }
    cr_assert_eq(pl_dir_remove("many//", NULL), PL_OK);
    cr_assert(!pl_path_exists("many"));
}

Test(file, a_directory_is_committed_whole_and_replaces_nothing)
{
    pl_error err;
    cr_assert_eq(pl_dir_make("step.tmp/policy", NULL), PL_OK);
    put("step.tmp/policy/w", "weights");
    cr_assert_eq(symlink("nowhere", "step.tmp/link"), 0);
    cr_assert_eq(pl_dir_make("taken", NULL), PL_OK); /* empty: rename(2) would replace it */
    cr_assert_eq(pl_dir_commit("step.tmp", "taken", &err), PL_E_IO);
    cr_assert(strstr(err.msg, "'taken'") && strstr(err.msg, "there already"), "%s", err.msg);
    cr_assert(pl_path_exists("step.tmp/policy/w"));
    cr_assert_eq(pl_dir_commit("step.tmp", "step", &err), PL_OK);
    check_text("step/policy/w", "weights");
    cr_assert(!pl_path_exists("step.tmp"));
    cr_assert_eq(pl_dir_commit("step.tmp", "other", &err), PL_E_NOENT);
    cr_assert_eq(pl_dir_commit("step/", "moved/", &err), PL_OK);
    check_text("moved/policy/w", "weights");
}

/* Provenance: XXH3-64 of nothing and of one byte, as xxhsum -H3 prints them. */
Test(file, hash_is_xxh3)
{
    cr_assert_eq(pl_hash64("", 0), 0x2d06800538d394c2u);
    cr_assert_eq(pl_hash64("a", 1), 0xe6c632b61e964e1fu, "%#lx", (unsigned long)pl_hash64("a", 1));
}
