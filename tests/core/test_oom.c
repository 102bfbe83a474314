/* Claims: whichever allocation fails, constructors and the configuration reader return PL_E_NOMEM
 * with a message and leave nothing behind; no crash.  The linker sends the calls of our own objects
 * here (--wrap); those inside libraries are not touched. */
#include "core/config.h"
#include "core/file.h"
#include "core/threads.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int n_calls; /* wrapped calls since arm */
static int fail_at; /* number of the call that fails, from 1; 0: none */

static int is_failing(void)
{
    return ++n_calls == fail_at;
}

static void arm(int at)
{
    n_calls = 0;
    fail_at = at;
}

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t align, size_t n);
int __real_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*fn)(void *), void *arg);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t align, size_t n);
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*fn)(void *), void *arg);

void *__wrap_malloc(size_t n)
{
    return is_failing() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return is_failing() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
    return is_failing() ? NULL : __real_realloc(p, n);
}

void *__wrap_aligned_alloc(size_t align, size_t n)
{
    return is_failing() ? NULL : __real_aligned_alloc(align, n);
}

int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *attr, void *(*fn)(void *), void *arg)
{
    return is_failing() ? EAGAIN : __real_pthread_create(t, attr, fn, arg);
}

/* Run try with each of its allocations failing in turn, until none is left to fail.  Returns how
 * many there were. */
static int walk(pl_status (*try)(pl_error *err))
{
    for (int at = 1;; at++) {
        pl_error err = {0};
        arm(at);
        const pl_status st = try(&err);
        const int was_reached = n_calls >= at;
        arm(0);
        if (!was_reached) {
            cr_assert_eq(st, PL_OK, "%s", err.msg);
            return at - 1;
        }
        cr_assert_eq(st, PL_E_NOMEM, "allocation %d: status %d", at, st);
        cr_assert_eq(err.code, PL_E_NOMEM);
        cr_assert_gt(strlen(err.msg), 10);
        cr_assert_lt(at, 1000);
    }
}

static void nothing(void *ctx, int i, int n)
{
    (void)ctx;
    (void)i;
    (void)n;
}

static pl_status try_team(pl_error *err)
{
    pl_team *team = NULL;
    const pl_status st = pl_team_new(&team, 4, 1, err);
    if (st != PL_OK) {
        cr_assert_null(team);
        return st;
    }
    pl_team_run(team, nothing, NULL);
    pl_team_free(team);
    return PL_OK;
}

Test(oom, team_new_survives_every_failure, .timeout = 60)
{
    cr_assert_eq(walk(try_team), 5); /* two blocks of memory, three threads */
}

static pl_status try_parse(pl_error *err)
{
    static const pl_config_key keys[] = {
        {"a.path", 0, PL_STRING, 0, 0, "", NULL, ""},
        {"a.n", PL_CONFIG_STR, PL_INT, 0, 9, "1", NULL, ""},
        {0},
    };
    static const char text[] = "a: {path: 'some text', n: 3}\n";
    struct {
        char path[PL_CONFIG_STR];
        int64_t n;
    } options;
    const pl_config_section section = {keys, &options};
    return pl_config_parse(&section, 1, NULL, text, sizeof text - 1, "f.yaml", err);
}

Test(oom, config_parse_survives_every_failure, .timeout = 60)
{
    cr_assert_geq(walk(try_parse), 5);
}

static char path[64];

static pl_status try_load(pl_error *err)
{
    static const pl_config_key keys[] = {{"n", 0, PL_INT, 0, 9, "1", NULL, ""}, {0}};
    char text[] = "n=4";
    char *const overrides[] = {text};
    int64_t n = 0;
    const pl_config_section section = {keys, &n};
    return pl_config_load(&section, 1, NULL, path, overrides, 1, err);
}

static pl_status try_writer(pl_error *err)
{
    pl_writer *w = NULL;
    const pl_status st = pl_writer_open(&w, path, err);
    if (st != PL_OK)
        return st;
    return pl_writer_commit(w, err);
}

Test(oom, writer_and_load_survive_every_failure, .timeout = 60)
{
    snprintf(path, sizeof path, "%s/pl_test_oom_XXXXXX", P_tmpdir);
    const int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    cr_assert_eq(write(fd, "n: 3\n", 5), 5);
    close(fd);
    cr_assert_geq(walk(try_load), 3);
    cr_assert_eq(walk(try_writer), 2);
    cr_assert_eq(unlink(path), 0);
}
