/* trainer/windows.c - the data buffer: its file, who writes it, and what goes when it is full.
 *
 * A file is never cut short under its readers: one that is not wanted any more loses its name, and
 * a new one gets it.  The writer holds a lock on the file from before it looks into it until it
 * closes it, and knows from memory of its own what the slots hold. */
#include "trainer/windows_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TRIES = 16 }; /* at a file that others replace meanwhile */

static pl_status io_error(const pl_windows *b, const char *what, pl_error *err)
{
    const int why = errno;
    return pl_fail(err, why == ENOENT ? PL_E_NOENT : PL_E_IO, "data buffer '%s': %s: %s", b->path,
        what, strerror(why));
}

/* ---- a view ---- */

static pl_status view_new(
    pl_windows **out, const char *path, const pl_windows_options *o, pl_error *err)
{
    pl_windows *b = calloc(1, sizeof *b);

    if (!b)
        return pl_fail(err, PL_E_NOMEM, "data buffer '%s': no memory", path);
    b->fd = -1;
    b->n_vocab = o->n_vocab;
    *out = b;
    const size_t n = strlen(path);
    if (n >= sizeof b->path)
        return pl_fail(err, PL_E_INVAL, "data buffer: a path of %zu bytes is too long", n);
    memcpy(b->path, path, n + 1);
    return PL_OK;
}

void pl_windows_close(pl_windows *b)
{
    if (!b)
        return;
    if (b->words)
        (void)munmap((void *)b->words, b->shape.file_bytes);
    if (b->fd >= 0)
        (void)close(b->fd);
    free(b->held);
    free(b->candidates);
    free(b);
}

static pl_status map_file(pl_windows *b, pl_error *err)
{
    const int access = b->is_writer ? PROT_READ | PROT_WRITE : PROT_READ;
    void *at = mmap(NULL, b->shape.file_bytes, access, MAP_SHARED, b->fd, 0);

    if (at == MAP_FAILED)
        return io_error(b, "mapping it", err);
    b->words = at;
    return PL_OK;
}

static pl_status view_tables(pl_windows *b, pl_error *err)
{
    const size_t n = (size_t)b->shape.n_slots;

    b->candidates = calloc(n, sizeof *b->candidates);
    b->held = b->is_writer ? calloc(n, sizeof *b->held) : NULL;
    if (!b->candidates || (b->is_writer && !b->held))
        return pl_fail(err, PL_E_NOMEM, "data buffer '%s': no memory for %zu slots", b->path, n);
    return PL_OK;
}

/* ---- the reader ---- */

/* Words in rising order, each an acquire: with the magic comes the rest. */
static void load_header(const pl_windows *b, windows_header *h)
{
    uint64_t words[sizeof *h / 8];

    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        words[i] = atomic_load_explicit(&b->words[i], memory_order_acquire);
    memcpy(h, words, sizeof *h);
}

static pl_status open_regular(pl_windows *b, int flags, struct stat *s, pl_error *err)
{
    do
        b->fd = open(b->path, flags | O_CLOEXEC | O_NONBLOCK, 0600);
    while (b->fd < 0 && errno == EINTR);
    if (b->fd < 0)
        return io_error(b, "opening it", err);
    if (fstat(b->fd, s) != 0)
        return io_error(b, "asking for its size", err);
    if (!S_ISREG(s->st_mode))
        return pl_fail(err, PL_E_FORMAT, "data buffer '%s': not a regular file", b->path);
    return PL_OK;
}

static pl_status attach(pl_windows *b, const pl_windows_options *o, pl_error *err)
{
    struct stat s;
    windows_header h;

    pl_status st = open_regular(b, O_RDONLY, &s, err);
    if (st != PL_OK)
        return st;
    if (s.st_size < WINDOWS_HEADER)
        return pl_fail(err, PL_E_FORMAT,
            "data buffer '%s': %lld bytes: truncated, or not ready yet", b->path,
            (long long)s.st_size);
    b->shape.file_bytes = (uint64_t)s.st_size;
    st = map_file(b, err);
    if (st != PL_OK)
        return st;
    load_header(b, &h);
    windows_shape shape;
    st = windows_check_header(&shape, &h, (uint64_t)s.st_size, o, err);
    if (st != PL_OK)
        return pl_wrap(err, st, "data buffer '%s'", b->path);
    b->shape = shape;
    return view_tables(b, err);
}

pl_status pl_windows_attach(
    pl_windows **out, const char *path, const pl_windows_options *o, pl_error *err)
{
    pl_windows *b = NULL;

    pl_status st = view_new(&b, path, o, err);
    if (st == PL_OK)
        st = attach(b, o, err);
    if (st != PL_OK)
        pl_windows_close(b);
    else
        *out = b;
    return st;
}

/* ---- the writer ---- */

static pl_status lock_file(pl_windows *b, pl_error *err)
{
    int n;

    do
        n = flock(b->fd, LOCK_EX | LOCK_NB);
    while (n != 0 && errno == EINTR);
    if (n != 0 && errno == EWOULDBLOCK)
        return pl_fail(err, PL_E_PEER,
            "data buffer '%s': another process writes it; give this one a name of its own",
            b->path);
    return n != 0 ? io_error(b, "locking it", err) : PL_OK;
}

/* Is the locked file still the one that the path names? */
static int is_named(const pl_windows *b)
{
    struct stat ours, named;

    return fstat(b->fd, &ours) == 0 && stat(b->path, &named) == 0 && ours.st_dev == named.st_dev &&
           ours.st_ino == named.st_ino;
}

/* Take the space of the whole file, at once; a file that does not get it goes. */
static pl_status take_space(pl_windows *b, pl_error *err)
{
    int why;

    do
        why = posix_fallocate(b->fd, 0, (off_t)b->shape.file_bytes);
    while (why == EINTR);
    if (why == 0)
        return PL_OK;
    (void)unlink(b->path);
    return pl_fail(err, PL_E_IO,
        "data buffer '%s': no space for its %llu bytes: %s; free some or make the buffer smaller",
        b->path, (unsigned long long)b->shape.file_bytes, strerror(why));
}

/* Counters first, the magic last: who sees it sees the rest. */
static void store_header(pl_windows *b, uint64_t target)
{
    windows_header h;
    uint64_t words[sizeof h / 8];

    windows_make_header(&h, &b->shape, target);
    memcpy(words, &h, sizeof h);
    for (size_t i = sizeof words / sizeof *words; i-- > 0;)
        atomic_store_explicit(&b->words[i], words[i], memory_order_release);
}

static void publish_counters(pl_windows *b)
{
    const int64_t n[] = {b->n_put, b->n_bad, b->n_evicted};

    for (int i = 0; i < 3; i++)
        atomic_store_explicit(
            &b->words[WINDOWS_STATE / 8 + i], (uint64_t)n[i], memory_order_relaxed);
}

static pl_status start_file(pl_windows *b, uint64_t target, pl_error *err)
{
    pl_status st = take_space(b, err);

    if (st == PL_OK)
        st = map_file(b, err);
    if (st == PL_OK)
        st = view_tables(b, err);
    if (st == PL_OK)
        store_header(b, target);
    return st;
}

/* Learn what a file of ours holds.  What its last writer did not finish counts as empty. */
static pl_status take_over(pl_windows *b, pl_error *err)
{
    pl_status st = map_file(b, err);

    if (st == PL_OK)
        st = view_tables(b, err);
    for (int i = 0, n = st == PL_OK ? windows_touched(b) : 0; i < n; i++) {
        if (!windows_peek(b, i, &b->held[i]))
            b->held[i].n = 0;
        else if (b->held[i].serial > b->serial)
            b->serial = b->held[i].serial;
    }
    if (st == PL_OK)
        publish_counters(b);
    return st;
}

/* What to do with the file that is open and locked. */
typedef enum fate { FATE_NEW, FATE_KEPT, FATE_REPLACED } fate;

/* A file that does not begin as a data buffer (or as the nothing that a crash left of one) is
 * somebody's, and stays. */
static pl_status decide(
    pl_windows *b, const pl_windows_options *o, off_t size, fate *out, pl_error *err)
{
    windows_header h, ours;
    windows_shape found;
    ssize_t n;

    memset(&h, 0, sizeof h);
    *out = FATE_NEW;
    if (size == 0)
        return PL_OK;
    do
        n = pread(b->fd, &h, sizeof h, 0);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return io_error(b, "reading its header", err);
    windows_make_header(&ours, &b->shape, o->target);
    static const char nothing[sizeof ours.magic];
    if (memcmp(h.magic, ours.magic, sizeof h.magic) != 0 &&
        memcmp(h.magic, nothing, sizeof h.magic) != 0)
        return pl_fail(err, PL_E_FORMAT, "'%s' is not a data buffer: move it away", b->path);
    const int is_ours = windows_check_header(&found, &h, (uint64_t)size, o, NULL) == PL_OK;
    *out = is_ours && found.file_bytes == b->shape.file_bytes ? FATE_KEPT : FATE_REPLACED;
    return PL_OK;
}

/* *again: the path names, or will name, another file. */
static pl_status open_once(pl_windows *b, const pl_windows_options *o, int *again, pl_error *err)
{
    struct stat s;
    fate f = FATE_NEW;

    *again = 0;
    pl_status st = open_regular(b, O_RDWR | O_CREAT, &s, err);
    if (st == PL_OK)
        st = lock_file(b, err);
    if (st != PL_OK)
        return st;
    *again = !is_named(b);
    if (*again)
        return PL_OK;
    if (fstat(b->fd, &s) != 0) /* as it is under the lock */
        return io_error(b, "asking for its size", err);
    st = decide(b, o, s.st_size, &f, err);
    if (st != PL_OK)
        return st;
    if (f == FATE_NEW)
        return start_file(b, o->target, err);
    if (f == FATE_KEPT)
        return take_over(b, err);
    *again = 1;
    return unlink(b->path) != 0 ? io_error(b, "replacing it", err) : PL_OK;
}

static pl_status open_writer(pl_windows *b, const pl_windows_options *o, pl_error *err)
{
    int again = 1;

    b->is_writer = 1;
    pl_status st = windows_plan(&b->shape, o, err);
    for (int i = 0; i < TRIES && st == PL_OK && again; i++) {
        if (b->fd >= 0)
            (void)close(b->fd);
        b->fd = -1;
        st = open_once(b, o, &again, err);
    }
    if (st == PL_OK && again)
        return pl_fail(err, PL_E_PEER, "data buffer '%s': others replace it all the time", b->path);
    return st;
}

pl_status pl_windows_open(
    pl_windows **out, const char *path, const pl_windows_options *o, pl_error *err)
{
    pl_windows *b = NULL;

    pl_status st = view_new(&b, path, o, err);
    if (st == PL_OK)
        st = open_writer(b, o, err);
    if (st != PL_OK)
        pl_windows_close(b);
    else
        *out = b;
    return st;
}

/* ---- put ---- */

static pl_status check_window(pl_windows *b, const pl_feature_window *w, pl_error *err)
{
    const windows_small f = {.temperature = w->temperature,
        .top_p = w->top_p,
        .min_p = w->min_p,
        .top_k = w->top_k,
        .n_prompt = w->n_prompt,
        .position = w->position,
        .n = w->n,
        .is_last = w->is_last,
        .max_tokens = w->max_tokens,
        .served_from = w->served_from};

    const int is_number = isfinite(w->temperature) && isfinite(w->top_p) && isfinite(w->min_p);
    if (is_number &&
        (!w->tokens || !w->features || !w->hidden || !windows_is_sane(&f, b->shape.window)))
        return pl_fail(err, PL_E_INVAL,
            "data buffer '%s': a window of %d rows (at most %d) at %d of sample %u is not one",
            b->path, w->n, b->shape.window, w->position, w->uid);
    const size_t n = is_number ? (size_t)w->n * b->shape.row : 0;
    if (!is_number || !windows_is_finite(w->features, n * PL_FEATURE_LAYERS) ||
        !windows_is_finite(w->hidden, n))
        return pl_fail(err, PL_E_NUMERIC,
            "data buffer '%s': sample %u, window at %d: numbers that are not finite; it is left "
            "out",
            b->path, w->uid, w->position);
    for (int i = 0; i < w->n; i++)
        if (w->tokens[i] < 0 || (b->n_vocab > 0 && w->tokens[i] >= b->n_vocab))
            return pl_fail(err, PL_E_INVAL, "data buffer '%s': sample %u: no token has the id %d",
                b->path, w->uid, (int)w->tokens[i]);
    return PL_OK;
}

static int is_same_window(const windows_small *a, const windows_small *b)
{
    return a->uid == b->uid && a->policy_version == b->policy_version &&
           a->position == b->position && a->noise_key == b->noise_key && a->purpose == b->purpose;
}

/* Should x go before y?  A version above the newest is of a run that was set back: the oldest. */
static int goes_first(const windows_small *x, const windows_small *y, uint32_t newest)
{
    const uint32_t age_x = newest - x->policy_version, age_y = newest - y->policy_version;
    const int depth_x = x->position - x->n_prompt, depth_y = y->position - y->n_prompt;

    if (age_x != age_y)
        return age_x > age_y;
    if (age_x == 1 && depth_x != depth_y)
        return depth_x < depth_y;
    return x->serial < y->serial;
}

/* The slot for f: its own, an empty one, or that of the window that goes.  -1: f itself goes. */
static int find_slot(pl_windows *b, const windows_small *f)
{
    int empty = -1, victim = 0;

    for (int i = 0; i < b->shape.n_slots; i++) {
        const windows_small *h = &b->held[i];
        if (h->n > 0 && is_same_window(h, f))
            return i;
        if (h->n == 0 && empty < 0)
            empty = i;
        if (h->n > 0 && (b->held[victim].n == 0 || goes_first(h, &b->held[victim], b->newest)))
            victim = i;
    }
    if (empty >= 0)
        return empty;
    b->n_evicted++;
    return goes_first(f, &b->held[victim], b->newest) ? -1 : victim;
}

pl_status pl_windows_put(pl_windows *b, const pl_feature_window *w, pl_error *err)
{
    if (!b->is_writer)
        return pl_fail(err, PL_E_INVAL, "data buffer '%s' is open for reading", b->path);
    const pl_status st = check_window(b, w, err);
    if (st != PL_OK) {
        b->n_bad += st == PL_E_NUMERIC;
        publish_counters(b);
        return st;
    }
    const windows_small f = {.serial = b->serial + 1,
        .hash = windows_hash(w->tokens, w->features, w->hidden, w->n, b->shape.row),
        .noise_key = w->noise_key,
        .uid = w->uid,
        .policy_version = w->policy_version,
        .purpose = w->purpose,
        .temperature = w->temperature,
        .top_p = w->top_p,
        .min_p = w->min_p,
        .top_k = w->top_k,
        .n_prompt = w->n_prompt,
        .position = w->position,
        .n = w->n,
        .is_last = w->is_last,
        .max_tokens = w->max_tokens,
        .served_from = w->served_from,
        .drafter = w->drafter};
    if (!b->has_put || w->policy_version > b->newest)
        b->newest = w->policy_version;
    b->has_put = 1;
    b->n_put++;
    const int i = find_slot(b, &f);
    if (i >= 0) {
        b->serial++;
        b->held[i] = f;
        windows_store(b, i, &f, w);
    }
    publish_counters(b);
    return PL_OK;
}

/* ---- figures ---- */

void pl_windows_get_stats(const pl_windows *b, pl_windows_stats *out)
{
    int64_t n[3];

    memset(out, 0, sizeof *out);
    out->n_slots = b->shape.n_slots;
    out->bytes = b->shape.file_bytes;
    for (int i = 0; i < 3; i++)
        n[i] =
            (int64_t)(atomic_load_explicit(&b->words[WINDOWS_STATE / 8 + i], memory_order_relaxed) &
                      INT64_MAX);
    out->n_put = n[0];
    out->n_bad = n[1];
    out->n_evicted = n[2];
    for (int i = 0, n_touched = windows_touched(b); i < n_touched; i++) {
        windows_small f;
        if (windows_peek(b, i, &f)) {
            out->n_used++;
            out->n_tokens += f.n;
        }
    }
}
