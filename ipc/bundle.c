/* ipc/bundle.c - the small files of a model directory as one file.
 *
 *      0  magic   "PLBUNDL1"
 *      8  n       u32  files, at most BUNDLE_FILES_MAX
 *     12  n times: length of the name u8, name, bytes of the file u64
 *         the files, in the order of the table
 *
 * Little endian.  Names rise strictly, so that the same files are the same bytes, and none is there
 * twice.  Weights are never in it: a bundle cannot replace them. */
#include "core/file.h"
#include "ipc/channel_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HEAD_BYTES = 12 };
static const char magic[8] = {'P', 'L', 'B', 'U', 'N', 'D', 'L', '1'};

static int ends_with(const char *s, const char *end)
{
    const size_t n = strlen(s), n_end = strlen(end);
    return n >= n_end && strcmp(s + n - n_end, end) == 0;
}

static int is_plain(const char *name)
{
    const size_t n =
        strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");
    return n > 0 && n <= BUNDLE_NAME_MAX && name[n] == 0 && name[0] != '.';
}

/* Weights travel on their own, and a bundle holds no bundle. */
static int is_bundled(const char *name)
{
    return !ends_with(name, ".safetensors") && strcmp(name, PL_BUNDLE_FILE) != 0;
}

static void put_u64(unsigned char *to, uint64_t v, int n)
{
    for (int i = 0; i < n; i++)
        to[i] = (unsigned char)(v >> 8 * i);
}

static uint64_t get_u64(const unsigned char *from, int n)
{
    uint64_t v = 0;
    for (int i = 0; i < n; i++)
        v |= (uint64_t)from[i] << 8 * i;
    return v;
}

static pl_status fail_file(const char *verb, const char *path, int code, pl_error *err)
{
    return pl_fail(err, PL_E_IO, "%s '%s': %s", verb, path, strerror(code));
}

/* ---- writing ---- */

static pl_status add_file(bundle_table *t, const char *dir, const char *name, pl_error *err)
{
    char path[PATH_MAX];
    struct stat info;

    if (snprintf(path, sizeof path, "%s/%s", dir, name) >= (int)sizeof path)
        return fail_file("examine", dir, ENAMETOOLONG, err);
    if (stat(path, &info) != 0)
        return fail_file("examine", path, errno, err);
    if (!S_ISREG(info.st_mode))
        return PL_OK;
    if (!is_plain(name))
        return pl_fail(
            err, PL_E_FORMAT, "'%s': the name cannot travel: use A-Z a-z 0-9 . _ -", path);
    if (info.st_size > BUNDLE_FILE_BYTES_MAX)
        return pl_fail(err, PL_E_FORMAT, "'%s' has %lld bytes, at most %d travel in a bundle", path,
            (long long)info.st_size, (int)BUNDLE_FILE_BYTES_MAX);
    if (t->n == BUNDLE_FILES_MAX)
        return pl_fail(
            err, PL_E_FORMAT, "'%s' holds more than %d files", dir, (int)BUNDLE_FILES_MAX);
    bundle_entry *e = &t->files[t->n++];
    memcpy(e->name, name, strlen(name) + 1);
    e->n_bytes = (uint64_t)info.st_size;
    return PL_OK;
}

static int name_order(const void *a, const void *b)
{
    const bundle_entry *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static pl_status list_files(bundle_table *t, const char *dir, pl_error *err)
{
    DIR *d = opendir(dir);
    pl_status st = PL_OK;

    if (!d)
        return fail_file("open directory", dir, errno, err);
    for (const struct dirent *e = readdir(d); e && st == PL_OK; e = readdir(d))
        if (e->d_name[0] != '.' && is_bundled(e->d_name))
            st = add_file(t, dir, e->d_name, err);
    (void)closedir(d);
    qsort(t->files, (size_t)t->n, sizeof *t->files, name_order);
    return st;
}

static pl_status put_table(pl_writer *w, const bundle_table *t, pl_error *err)
{
    unsigned char head[HEAD_BYTES], size[8];

    memcpy(head, magic, sizeof magic);
    put_u64(head + sizeof magic, (uint64_t)t->n, 4);
    pl_status st = pl_writer_put(w, head, sizeof head, err);
    for (int i = 0; i < t->n && st == PL_OK; i++) {
        const bundle_entry *e = &t->files[i];
        const unsigned char length = (unsigned char)strlen(e->name);
        st = pl_writer_put(w, &length, 1, err);
        if (st == PL_OK)
            st = pl_writer_put(w, e->name, length, err);
        put_u64(size, e->n_bytes, 8);
        if (st == PL_OK)
            st = pl_writer_put(w, size, sizeof size, err);
    }
    return st;
}

static pl_status put_files(pl_writer *w, const bundle_table *t, const char *dir, pl_error *err)
{
    char path[PATH_MAX];
    pl_status st = PL_OK;

    for (int i = 0; i < t->n && st == PL_OK; i++) {
        char *data = NULL;
        size_t n = 0;
        (void)snprintf(path, sizeof path, "%s/%s", dir, t->files[i].name); /* it fitted before */
        st = pl_file_read(&data, &n, path, BUNDLE_FILE_BYTES_MAX, err);
        if (st == PL_OK && n != t->files[i].n_bytes)
            st = pl_fail(err, PL_E_IO, "'%s' changed while it was read", path);
        if (st == PL_OK)
            st = pl_writer_put(w, data, n, err);
        free(data);
    }
    return st;
}

pl_status pl_bundle_write(const char *dir, pl_error *err)
{
    char path[PATH_MAX];
    pl_writer *w = NULL;
    bundle_table *t = calloc(1, sizeof *t);

    if (!t)
        return pl_fail(err, PL_E_NOMEM, "bundle of '%s': no memory", dir);
    pl_status st = list_files(t, dir, err);
    if (st == PL_OK && snprintf(path, sizeof path, "%s/" PL_BUNDLE_FILE, dir) >= (int)sizeof path)
        st = fail_file("create", dir, ENAMETOOLONG, err);
    if (st == PL_OK)
        st = pl_writer_open(&w, path, err);
    if (st == PL_OK)
        st = put_table(w, t, err);
    if (st == PL_OK)
        st = put_files(w, t, dir, err);
    if (st == PL_OK)
        st = pl_writer_commit(w, err);
    else
        pl_writer_abort(w);
    free(t);
    return st == PL_OK ? PL_OK : pl_wrap(err, st, "bundle");
}

/* ---- reading ---- */

/* One entry of the table at *at.  before: the name that it must rise above; NULL: none. */
static pl_status parse_entry(bundle_entry *e, const unsigned char *head, size_t n, size_t *at,
    const char *before, pl_error *err)
{
    const size_t length = *at < n ? head[*at] : 0;

    if (*at >= n || n - *at < 1 + length + 8)
        return pl_fail(err, PL_E_FORMAT, "its table is cut off");
    if (length < 1 || length > BUNDLE_NAME_MAX)
        return pl_fail(err, PL_E_FORMAT, "a name of %zu bytes", length);
    memcpy(e->name, head + *at + 1, length);
    e->name[length] = 0;
    if (strlen(e->name) != length || !is_plain(e->name) || !is_bundled(e->name))
        return pl_fail(err, PL_E_FORMAT, "a name that no file here may have");
    if (before && strcmp(before, e->name) >= 0)
        return pl_fail(err, PL_E_FORMAT, "'%s' is out of order, or there twice", e->name);
    e->n_bytes = get_u64(head + *at + 1 + length, 8);
    if (e->n_bytes > BUNDLE_FILE_BYTES_MAX)
        return pl_fail(err, PL_E_FORMAT, "'%s' has %llu bytes, at most %d are allowed", e->name,
            (unsigned long long)e->n_bytes, (int)BUNDLE_FILE_BYTES_MAX);
    *at += 1 + length + 8;
    return PL_OK;
}

pl_status bundle_parse(
    bundle_table *t, const unsigned char *head, size_t n, uint64_t n_file, pl_error *err)
{
    size_t at = HEAD_BYTES;

    t->n = 0;
    if (n < HEAD_BYTES || memcmp(head, magic, sizeof magic) != 0)
        return pl_fail(err, PL_E_FORMAT, "it is no bundle");
    const uint64_t n_files = get_u64(head + sizeof magic, 4);
    if (n_files > BUNDLE_FILES_MAX)
        return pl_fail(err, PL_E_FORMAT, "%llu files, at most %d are allowed",
            (unsigned long long)n_files, (int)BUNDLE_FILES_MAX);
    for (int i = 0; i < (int)n_files; i++) {
        const pl_status st =
            parse_entry(&t->files[i], head, n, &at, i > 0 ? t->files[i - 1].name : NULL, err);
        if (st != PL_OK)
            return st;
    }
    uint64_t offset = at; /* at most 256 files of 64 MiB: no sum overflows */
    for (int i = 0; i < (int)n_files; i++) {
        t->files[i].offset = offset;
        offset += t->files[i].n_bytes;
    }
    if (offset != n_file)
        return pl_fail(err, PL_E_FORMAT, "%llu bytes, its table says %llu",
            (unsigned long long)n_file, (unsigned long long)offset);
    t->n = (int)n_files;
    return PL_OK;
}

static pl_status read_table(bundle_table *t, int fd, const char *path, pl_error *err)
{
    struct stat info;

    if (fstat(fd, &info) != 0)
        return fail_file("examine", path, errno, err);
    if (!S_ISREG(info.st_mode))
        return pl_fail(err, PL_E_FORMAT, "it is not a regular file");
    const size_t n = info.st_size < BUNDLE_TABLE_BYTES ? (size_t)info.st_size : BUNDLE_TABLE_BYTES;
    unsigned char *head = malloc(n > 0 ? n : 1);
    if (!head)
        return pl_fail(err, PL_E_NOMEM, "no memory for its table");
    const int code = content_read(fd, head, n, 0);
    const pl_status st = code != 0 ? fail_file("read", path, code, err)
                                   : bundle_parse(t, head, n, (uint64_t)info.st_size, err);
    free(head);
    return st;
}

static pl_status unpack_file(const bundle_entry *e, int fd, const char *dir, pl_error *err)
{
    char path[PATH_MAX];
    unsigned char *data = malloc(e->n_bytes > 0 ? e->n_bytes : 1);

    if (!data)
        return pl_fail(err, PL_E_NOMEM, "no memory for the %llu bytes of '%s'",
            (unsigned long long)e->n_bytes, e->name);
    const int code = content_read(fd, data, e->n_bytes, e->offset);
    pl_status st = code == 0 ? PL_OK : fail_file("read", e->name, code, err);
    if (st == PL_OK && snprintf(path, sizeof path, "%s/%s", dir, e->name) >= (int)sizeof path)
        st = fail_file("create", dir, ENAMETOOLONG, err);
    if (st == PL_OK)
        st = pl_file_write(path, data, e->n_bytes, err);
    free(data);
    return st;
}

pl_status pl_bundle_unpack(const char *path, const char *dir, pl_error *err)
{
    bundle_table *t = calloc(1, sizeof *t);
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    pl_status st = PL_OK;

    if (fd < 0)
        st = fail_file("open", path, errno, err);
    else if (!t)
        st = pl_fail(err, PL_E_NOMEM, "no memory");
    if (st == PL_OK)
        st = read_table(t, fd, path, err);
    for (int i = 0; st == PL_OK && i < t->n; i++)
        st = unpack_file(&t->files[i], fd, dir, err);
    if (fd >= 0)
        (void)close(fd);
    free(t);
    return st == PL_OK ? PL_OK : pl_wrap(err, st, "bundle '%s'", path);
}
