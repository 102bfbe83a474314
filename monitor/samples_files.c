/* monitor/samples_files.c - the files of RUN/rollouts: listed, unpacked line by line, bounded. */
#define _GNU_SOURCE
#include "monitor/samples_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <zstd.h>

enum {
    NAME_ROOM = 64,
    FILES_MAX = 1 << 20,  /* of a directory; others are not seen */
    FILE_BYTES = 1 << 30, /* of a file, packed and unpacked: what is more counts as damage */
    WINDOW_LOG = 23,      /* zstd's memory: 8 MiB, what levels up to 19 use */
    IN_BYTES = 64 << 10,
    OUT_BYTES = 128 << 10,
};
#define SETTLED_NS ((int64_t)2000000000) /* clocks of file systems tick slower than this */

static int64_t ns_of(struct timespec t)
{
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int file_name(char out[NAME_ROOM], int64_t step)
{
    return snprintf(out, NAME_ROOM, "step_%06lld.jsonl.zst", (long long)step);
}

/* Step of a file's name; -1: it is none of ours. */
static int64_t step_of(const char *name)
{
    static const char head[] = "step_";
    char back[NAME_ROOM];
    int64_t step = 0;

    if (strncmp(name, head, sizeof head - 1) != 0 || strlen(name) >= sizeof back)
        return -1;
    for (const char *p = name + sizeof head - 1; *p >= '0' && *p <= '9'; p++) {
        if (step > (INT64_MAX - 9) / 10)
            return -1;
        step = 10 * step + (*p - '0');
    }
    return file_name(back, step) > 0 && strcmp(back, name) == 0 ? step : -1;
}

/* ---- the directory ---- */

static int by_step(const void *a, const void *b)
{
    const samples_file *x = a, *y = b;
    return (x->step > y->step) - (x->step < y->step);
}

samples_file *samples_find(const pl_samples *s, int64_t step)
{
    const samples_file key = {.step = step};

    if (s->n_files == 0)
        return NULL;
    return bsearch(&key, s->files, (size_t)s->n_files, sizeof *s->files, by_step);
}

void samples_file_done(samples_file *f)
{
    free(f->rows);
    f->rows = NULL;
    f->n_rows = f->n_bad = 0;
}

typedef struct list {
    samples_file *files;
    int64_t n, room;
} list;

static int add(list *l, const samples_file *f)
{
    if (l->n == l->room) {
        const int64_t room = l->room ? 2 * l->room : 64;
        samples_file *p = realloc(l->files, (size_t)room * sizeof *p);
        if (!p)
            return 0;
        l->files = p;
        l->room = room;
    }
    l->files[l->n++] = *f;
    return 1;
}

static int read_names(list *l, DIR *d)
{
    const struct dirent *e;

    while (l->n < FILES_MAX && (e = readdir(d)) != NULL) {
        samples_file f = {.step = step_of(e->d_name)};
        struct stat st;
        if (f.step < 0 || fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 ||
            !S_ISREG(st.st_mode))
            continue;
        f.inode = st.st_ino;
        f.size = st.st_size;
        f.mtime_ns = ns_of(st.st_mtim);
        if (!add(l, &f))
            return 0;
    }
    return 1;
}

static int is_same(const samples_file *a, const samples_file *b)
{
    return a->inode == b->inode && a->size == b->size && a->mtime_ns == b->mtime_ns;
}

/* Take what is known of files that are the same over.  1: some are new, changed or gone. */
static int take_over(pl_samples *s, list *l)
{
    int is_other = 0;

    if (l->n > 0)
        qsort(l->files, (size_t)l->n, sizeof *l->files, by_step);
    is_other = l->n != s->n_files;
    for (int64_t i = 0; i < l->n; i++) {
        samples_file *old = samples_find(s, l->files[i].step);
        if (old && is_same(old, &l->files[i])) {
            l->files[i] = *old;
            old->rows = NULL; /* moved */
            old->n_rows = 0;
        } else {
            is_other = 1;
        }
    }
    for (int64_t i = 0; i < s->n_files; i++) {
        s->n_rows -= s->files[i].n_rows;
        samples_file_done(&s->files[i]);
    }
    free(s->files);
    s->files = l->files;
    s->n_files = l->n;
    return is_other;
}

int samples_list(pl_samples *s)
{
    struct timespec now;
    struct stat st;
    list l = {0};

    const int fd = open(s->dir, O_RDONLY | O_DIRECTORY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return 0;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    if (fstat(fd, &st) != 0 ||
        (ns_of(st.st_mtim) == s->dir_ns && s->listed_ns - s->dir_ns > SETTLED_NS)) {
        (void)close(fd);
        return 0;
    }
    DIR *d = fdopendir(fd);
    if (!d) {
        (void)close(fd);
        return 0;
    }
    const int is_whole = read_names(&l, d);
    (void)closedir(d);
    if (!is_whole) {
        free(l.files);
        return 0;
    }
    s->dir_ns = ns_of(st.st_mtim);
    s->listed_ns = ns_of(now);
    return take_over(s, &l);
}

/* ---- one file ---- */

typedef struct unpack {
    ZSTD_DCtx *z;
    lines lines;
    char *in, *out; /* [IN_BYTES] [OUT_BYTES] */
    int fd;
    size_t n_in, n_out; /* bytes so far */
    int is_open;        /* a frame has begun and not ended */
} unpack;

static pl_status begin_unpack(unpack *u, const pl_samples *s, const samples_file *f, pl_error *err)
{
    char name[NAME_ROOM], path[SAMPLES_PATH];
    struct stat st;

    if (file_name(name, f->step) < 0 ||
        snprintf(path, sizeof path, "%s/%s", s->dir, name) >= (int)sizeof path)
        return pl_fail(err, PL_E_IO, "'%s': name too long", s->dir);
    u->lines.max = PL_SAMPLES_LINE;
    u->fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (u->fd < 0 || fstat(u->fd, &st) != 0)
        return pl_fail(
            err, errno == ENOENT ? PL_E_NOENT : PL_E_IO, "open '%s': %s", path, strerror(errno));
    const samples_file now = {
        .inode = st.st_ino, .size = st.st_size, .mtime_ns = ns_of(st.st_mtim)};
    if (!S_ISREG(st.st_mode) || !is_same(&now, f))
        return pl_fail(err, PL_E_NOENT, "'%s' was written anew; ask again", path);
    u->z = ZSTD_createDCtx();
    u->in = malloc(IN_BYTES);
    u->out = malloc(OUT_BYTES);
    if (!u->z || !u->in || !u->out ||
        ZSTD_isError(ZSTD_DCtx_setParameter(u->z, ZSTD_d_windowLogMax, WINDOW_LOG)))
        return pl_fail(err, PL_E_NOMEM, "'%s': no memory to unpack it", path);
    return PL_OK;
}

static void end_unpack(unpack *u)
{
    if (u->fd >= 0)
        (void)close(u->fd);
    ZSTD_freeDCtx(u->z);
    free(u->in);
    free(u->out);
    lines_done(&u->lines);
}

/* Unpack n bytes of u->in.  *is_enough: fn said so. */
static pl_status unpack_some(
    unpack *u, size_t n, lines_fn fn, void *ctx, int *is_enough, pl_error *err)
{
    ZSTD_inBuffer in = {u->in, n, 0};
    int is_full = 1; /* there may be more to come out */

    while (in.pos < in.size || (is_full && u->is_open)) {
        ZSTD_outBuffer out = {u->out, OUT_BYTES, 0};
        const size_t rc = ZSTD_decompressStream(u->z, &out, &in);
        if (ZSTD_isError(rc))
            return pl_fail(err, PL_E_FORMAT, "zstd: %s", ZSTD_getErrorName(rc));
        u->is_open = rc != 0;
        is_full = out.pos == out.size;
        u->n_out += out.pos;
        if (u->n_out > FILE_BYTES)
            return pl_fail(err, PL_E_FORMAT, "more than %d bytes in it", FILE_BYTES);
        *is_enough = lines_feed(&u->lines, u->out, out.pos, fn, ctx);
        if (*is_enough)
            return PL_OK;
    }
    return PL_OK;
}

static pl_status unpack_all(unpack *u, lines_fn fn, void *ctx, pl_error *err)
{
    int is_enough = 0;

    for (;;) {
        const ssize_t n = read(u->fd, u->in, IN_BYTES);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return pl_fail(err, PL_E_IO, "read: %s", strerror(errno));
        if (n == 0)
            break;
        u->n_in += (size_t)n;
        if (u->n_in > FILE_BYTES)
            return pl_fail(err, PL_E_FORMAT, "more than %d bytes", FILE_BYTES);
        const pl_status st = unpack_some(u, (size_t)n, fn, ctx, &is_enough, err);
        if (st != PL_OK || is_enough)
            return st;
    }
    if (u->is_open || u->n_in == 0)
        return pl_fail(err, PL_E_FORMAT, "zstd: the frame is cut");
    (void)lines_end(&u->lines, fn, ctx);
    return PL_OK;
}

pl_status samples_read(const pl_samples *s, const samples_file *f, lines_fn fn, void *ctx,
    size_t *n_bytes, pl_error *err)
{
    unpack u = {.fd = -1};

    pl_status st = begin_unpack(&u, s, f, err);
    if (st == PL_OK) {
        st = unpack_all(&u, fn, ctx, err);
        if (st != PL_OK)
            st = pl_wrap(err, st, "rollouts of step %lld", (long long)f->step);
    }
    *n_bytes += u.n_out;
    end_unpack(&u);
    return st;
}
