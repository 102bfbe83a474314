/* tests/core/journal_bed.h - a directory for each test, and lists of records to compare. */
#ifndef PL_TESTS_CORE_JOURNAL_BED_H
#define PL_TESTS_CORE_JOURNAL_BED_H

#include "core/file.h"
#include "core/journal_internal.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char KIND[] = "PLLEDGR1";

static char home[64];

static inline void enter(void)
{
    snprintf(home, sizeof home, "%s/pl_test_journal_XXXXXX", P_tmpdir);
    cr_assert_not_null(mkdtemp(home));
    cr_assert_eq(chdir(home), 0);
}

static inline void leave(void)
{
    cr_assert_eq(chdir("/"), 0);
    cr_assert_eq(pl_dir_remove(home, NULL), PL_OK);
}

enum { MOST = 4096 };

typedef struct list {
    size_t n;
    uint32_t type[MOST];
    uint64_t hash[MOST]; /* of type, length and data */
    uint32_t refused;    /* type that the reader does not know; 0: knows all */
} list;

static inline void remember(list *l, uint32_t type, const void *data, size_t n)
{
    const uint64_t parts[3] = {type, n, pl_hash64(data, n)};

    cr_assert_lt(l->n, MOST);
    l->type[l->n] = type;
    l->hash[l->n++] = pl_hash64(parts, sizeof parts);
}

static inline pl_status hear(void *ctx, const pl_journal_record *r, pl_error *err)
{
    list *l = ctx;

    cr_assert_eq(r->is_critical, (int)(r->type % 2));
    if (l->refused != 0 && r->type == l->refused && r->is_critical)
        return pl_fail(err, PL_E_FORMAT, "critical record of an unknown type");
    remember(l, r->type, r->data, r->n);
    return PL_OK;
}

static inline void check_prefix(const list *got, const list *all, size_t n)
{
    cr_assert_eq(got->n, n, "%zu records instead of %zu", got->n, n);
    cr_assert_arr_eq(got->hash, all->hash, n * sizeof got->hash[0]);
}

static inline pl_journal_options options(int uid)
{
    pl_journal_options o = {.magic = KIND};
    o.run_uid[0] = (unsigned char)uid;
    return o;
}

static inline pl_journal *open_new(const char *path, int uid)
{
    const pl_journal_options o = options(uid);
    pl_journal_report report;
    pl_journal *j = NULL;
    pl_error err = {0};

    cr_assert_eq(pl_journal_open(&j, path, &o, NULL, NULL, &report, &err), PL_OK, "%s", err.msg);
    cr_assert(report.is_new && !report.is_remade && report.n_bytes == JOURNAL_SUPER);
    return j;
}

static inline void put(pl_journal *j, list *l, uint32_t type, const void *data, size_t n)
{
    pl_error err = {0};

    cr_assert_eq(pl_journal_put(j, type, data, n, &err), PL_OK, "%s", err.msg);
    if (l)
        remember(l, type, data, n);
}

static inline void check_bytes(const char *path, const void *bytes, size_t n)
{
    char *got = NULL;
    size_t n_got = 0;

    cr_assert_eq(pl_file_read(&got, &n_got, path, 4 << 20, NULL), PL_OK);
    cr_assert_eq(n_got, n);
    cr_assert_arr_eq(got, bytes, n);
    free(got);
}

#endif
