/* trainer/spot_joiners.c - gradients of several workers: each joiner's file, and their average.
 *
 *     dir/grads.NAME: head | gradients [n_elements]
 *
 * A joiner voids `ready`, writes, and sets it to the sequence number of the weights that it read;
 * the lead takes a file that is ready for its own, adds it, and looks again. */
#define _GNU_SOURCE
#include "core/file.h"
#include "trainer/spot_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const char prefix[] = "grads.";
static const char grads_magic[8] = "PLGRADS1";

typedef struct grads_head {
    char magic[8];
    uint64_t n_elements;
    _Atomic uint64_t session;  /* that it takes part in; 0: none */
    _Atomic uint64_t ready;    /* seq of the weights that the gradients are of; 0: not ready */
    _Atomic uint64_t n_tokens; /* predictions that they are a mean over */
    _Atomic uint64_t hash;
} grads_head;

static grads_head *head_of(const spot_joiner *j)
{
    return (grads_head *)(void *)j->base;
}

static float *grads_of(const spot_joiner *j)
{
    return (float *)(void *)(j->base + SPOT_PAGE);
}

static size_t file_bytes(size_t n_elements)
{
    return SPOT_PAGE + n_elements * sizeof(float);
}

static void unmap(spot_joiner *j)
{
    if (j->base)
        (void)munmap(j->base, j->size);
    *j = (spot_joiner){0};
}

void spot_joiners_done(pl_spot *s)
{
    for (int i = 0; i < s->n_joiners; i++)
        unmap(&s->joiners[i]);
    s->n_joiners = 0;
}

/* ---- the lead ---- */

static int map_joiner(const pl_spot *s, const char *name, spot_joiner *out)
{
    char path[SPOT_PATH + SPOT_NAME + 16];
    struct stat info;
    spot_joiner j = {.size = file_bytes((size_t)s->file.head.n_elements)};

    snprintf(path, sizeof path, "%s/%s", s->dir, name);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    if (fstat(fd, &info) == 0 && (size_t)info.st_size == j.size) {
        void *p = mmap(NULL, j.size, PROT_READ, MAP_SHARED, fd, 0);
        j.base = p == MAP_FAILED ? NULL : p;
    }
    (void)close(fd);
    if (!j.base)
        return 0;
    const grads_head *h = head_of(&j);
    if (memcmp(h->magic, grads_magic, sizeof h->magic) != 0 ||
        h->n_elements != s->file.head.n_elements || atomic_load(&h->session) != s->session) {
        unmap(&j);
        return 0;
    }
    snprintf(j.name, sizeof j.name, "%s", name);
    j.dev = (uint64_t)info.st_dev;
    j.ino = (uint64_t)info.st_ino;
    *out = j;
    return 1;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const spot_joiner *)a)->name, ((const spot_joiner *)b)->name);
}

static int find(const pl_spot *s, const char *name)
{
    for (int i = 0; i < s->n_joiners; i++)
        if (strcmp(s->joiners[i].name, name) == 0)
            return i;
    return -1;
}

/* Those that left, or whose file is another one now. */
static void forget(pl_spot *s)
{
    char path[SPOT_PATH + SPOT_NAME + 16];
    struct stat info;
    int kept = 0;

    for (int i = 0; i < s->n_joiners; i++) {
        spot_joiner *j = &s->joiners[i];
        snprintf(path, sizeof path, "%s/%s", s->dir, j->name);
        if (stat(path, &info) != 0 || (uint64_t)info.st_ino != j->ino ||
            (uint64_t)info.st_dev != j->dev || (size_t)info.st_size != j->size ||
            j->size != file_bytes((size_t)s->file.head.n_elements) ||
            atomic_load(&head_of(j)->session) != s->session) {
            unmap(j);
            continue;
        }
        if (kept != i) {
            s->joiners[kept] = *j;
            *j = (spot_joiner){0};
        }
        kept++;
    }
    s->n_joiners = kept;
}

void spot_joiners_scan(pl_spot *s)
{
    DIR *d = opendir(s->dir);

    forget(s);
    if (!d)
        return;
    for (const struct dirent *e = readdir(d); e; e = readdir(d)) {
        if (strncmp(e->d_name, prefix, sizeof prefix - 1) != 0 || strlen(e->d_name) >= SPOT_NAME ||
            s->n_joiners == SPOT_JOINERS || find(s, e->d_name) >= 0)
            continue;
        if (map_joiner(s, e->d_name, &s->joiners[s->n_joiners])) {
            pl_log_debug(s->log, "drafter training: %s joined session=%llu", e->d_name,
                (unsigned long long)s->session);
            s->n_joiners++;
        }
    }
    (void)closedir(d);
    qsort(s->joiners, (size_t)s->n_joiners, sizeof s->joiners[0], by_name);
}

static int is_ready(const spot_joiner *j, uint64_t seq)
{
    return atomic_load_explicit(&head_of(j)->ready, memory_order_acquire) == seq;
}

/* One that is expected has not come yet. */
static int is_missing(const pl_spot *s, uint64_t seq)
{
    for (int i = 0; i < s->n_joiners; i++)
        if (!s->joiners[i].has_missed && !is_ready(&s->joiners[i], seq))
            return 1;
    return 0;
}

/* grads = (n grads + m theirs) / (n + m).  Returns 0, with grads as they were, when theirs are
 * damaged. */
static int add_one(pl_spot *s, spot_joiner *j, uint64_t seq, int64_t *n_tokens)
{
    const grads_head *h = head_of(j);
    const size_t n = s->n_grads;
    const int64_t m = (int64_t)atomic_load(&h->n_tokens);
    const float *theirs = grads_of(j);

    if (m < 1 || m > (int64_t)1 << 40 || pl_hash64(theirs, n * sizeof *theirs) != h->hash ||
        !is_ready(j, seq))
        return 0;
    const double total = (double)*n_tokens + (double)m;
    const float a = (float)((double)*n_tokens / total), b = (float)((double)m / total);
    for (size_t i = 0; i < n; i++)
        s->grads[i] = a * s->grads[i] + b * theirs[i];
    *n_tokens += m;
    return 1;
}

pl_status spot_joiners_add(
    pl_spot *s, uint64_t seq, double wait_s, int64_t *n_tokens, pl_error *err)
{
    const double until = spot_now() + wait_s;

    while (is_missing(s, seq) && spot_now() < until) {
        if (spot_stopped(s))
            return spot_stop(err);
        spot_sleep(0.0005);
    }
    for (int i = 0; i < s->n_joiners; i++) {
        spot_joiner *j = &s->joiners[i];
        if (spot_stopped(s))
            return spot_stop(err);
        const int is_there = is_ready(j, seq) && add_one(s, j, seq, n_tokens);
        if (!is_there && !j->has_missed)
            pl_log_debug(s->log, "drafter training: %s missed a step, not waited for", j->name);
        j->has_missed = !is_there;
    }
    return PL_OK;
}

/* ---- a joiner ---- */

static pl_status own_make(pl_spot *s, const char *path, pl_error *err)
{
    spot_joiner j = {.size = file_bytes((size_t)s->file.head.n_elements)};
    pl_status st = PL_OK;

    (void)unlink(path); /* the lead may have an older one mapped */
    const int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return pl_fail(err, PL_E_IO, "create '%s': %s", path, strerror(errno));
    const int code = posix_fallocate(fd, 0, (off_t)j.size);
    if (code != 0)
        st = pl_fail(err, PL_E_IO, "a joiner's gradients need %zu bytes at '%s': %s; free space",
            j.size, path, strerror(code));
    if (st == PL_OK) {
        void *p = mmap(NULL, j.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (p == MAP_FAILED)
            st = pl_fail(err, PL_E_IO, "map '%s': %s", path, strerror(errno));
        else
            j.base = p;
    }
    (void)close(fd);
    if (st != PL_OK) {
        (void)unlink(path);
        return st;
    }
    grads_head *h = head_of(&j);
    h->n_elements = s->file.head.n_elements;
    memcpy(h->magic, grads_magic, sizeof h->magic);
    spot_own_leave(s);
    unmap(&s->own); /* of the file before */
    s->own = j;
    return PL_OK;
}

pl_status spot_own_open(pl_spot *s, pl_error *err)
{
    char path[SPOT_PATH + SPOT_NAME + 16];

    if (!s->own.base || s->own.size != file_bytes((size_t)s->file.head.n_elements)) {
        snprintf(path, sizeof path, "%s/%s%s", s->dir, prefix, s->name);
        const pl_status st = own_make(s, path, err);
        if (st != PL_OK)
            return st;
    }
    if (atomic_load(&head_of(&s->own)->session) != s->session) {
        atomic_store(&head_of(&s->own)->ready, 0);
        atomic_store(&head_of(&s->own)->session, s->session);
    }
    return PL_OK;
}

float *spot_own_begin(pl_spot *s)
{
    atomic_store(&head_of(&s->own)->ready, 0);
    return grads_of(&s->own);
}

void spot_own_commit(pl_spot *s, uint64_t seq, int64_t n_tokens)
{
    grads_head *h = head_of(&s->own);

    atomic_store(&h->n_tokens, (uint64_t)n_tokens);
    atomic_store(&h->hash, pl_hash64(grads_of(&s->own), s->n_grads * sizeof(float)));
    atomic_store_explicit(&h->ready, seq, memory_order_release);
}

void spot_own_leave(pl_spot *s)
{
    if (s->own.base)
        atomic_store(&head_of(&s->own)->session, 0);
}

void spot_own_done(pl_spot *s)
{
    char path[SPOT_PATH + SPOT_NAME + 16];

    spot_own_leave(s);
    if (s->own.base) {
        snprintf(path, sizeof path, "%s/%s%s", s->dir, prefix, s->name);
        (void)unlink(path);
    }
    unmap(&s->own);
}
