/* monitor/history.c - metrics.jsonl as columns, read on as it grows.
 *
 * Rows stand in the order of the lines while those come in order of steps, which is the rule; after
 * a poll that met others they are sorted once and rows of one step are merged, the later line
 * winning.  What a row does not tell is ABSENT, a NaN with bits of its own, so that null in a later
 * line takes a value back and silence does not. */
#define _GNU_SOURCE
#include "core/file.h"
#include "monitor/lines.h"
#include "monitor/monitor.h"
#include "monitor/text.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    PATH_ROOM = 4096,
    LINE_MAX_BYTES = 1 << 20,
    READ_BYTES = 64 << 10,
    POLL_BYTES = 256 << 20, /* of one poll: a reader that shows things comes back soon */
    NAME_BYTES = 128,       /* of a metric, with the NUL */
    TAIL_BYTES = 256,       /* before the place reached: tell whether the file is still the same */
    FIRST_ROWS = 256,
    MAX_ROWS = PL_HISTORY_STEPS + PL_HISTORY_STEPS / 4, /* stored; cut to STEPS when full */
};
#define STEP_MAX    ((int64_t)1 << 53)
#define ABSENT_BITS UINT64_C(0x7ff8000000abce17)

struct pl_history {
    char path[PATH_ROOM];
    dev_t device;
    ino_t inode;
    int64_t at; /* bytes read; 0: nothing yet */
    char tail[TAIL_BYTES];
    int n_tail;
    lines lines;
    int64_t n_bad;
    int code; /* errno of the last poll */

    int64_t *steps;                    /* [room] */
    double *columns[PL_HISTORY_NAMES]; /* [n_names][room] */
    char *names[PL_HISTORY_NAMES];
    int n_names, n_rows, room;
    int is_mixed; /* rows are not in order of steps, or several are of one */
};

static double absent(void)
{
    const uint64_t bits = ABSENT_BITS;
    double x;

    memcpy(&x, &bits, sizeof x);
    return x;
}

static int is_absent(const double *x)
{
    const uint64_t bits = ABSENT_BITS;
    return memcmp(x, &bits, sizeof bits) == 0;
}

/* ---- rows ---- */

static void forget(pl_history *h)
{
    for (int i = 0; i < h->n_names; i++) {
        free(h->columns[i]);
        free(h->names[i]);
    }
    free(h->steps);
    h->steps = NULL;
    h->n_names = h->n_rows = h->room = h->is_mixed = 0;
    h->at = h->n_tail = 0;
    h->n_bad = 0;
    lines_clear(&h->lines);
}

typedef struct place {
    int64_t step;
    int row;
} place;

static int by_step(const void *a, const void *b)
{
    const place *x = a, *y = b;
    return x->step != y->step ? (x->step > y->step) - (x->step < y->step)
                              : (x->row > y->row) - (x->row < y->row);
}

/* Put a column into the order of places, rows of one step merged.  Returns how many. */
static int merge(double *column, const place *places, int n, double *scratch)
{
    int n_out = 0;

    for (int i = 0; i < n; i++) {
        const double *x = &column[places[i].row];
        if (i == 0 || places[i].step != places[i - 1].step)
            scratch[n_out++] = *x;
        else if (!is_absent(x))
            scratch[n_out - 1] = *x;
    }
    memcpy(column, scratch, (size_t)n_out * sizeof *column);
    return n_out;
}

/* Rows in order, one a step.  0: no memory for it. */
static int settle(pl_history *h)
{
    int n_out = 0;

    if (!h->is_mixed)
        return 1;
    place *places = malloc((size_t)h->n_rows * sizeof *places);
    double *scratch = malloc((size_t)h->n_rows * sizeof *scratch);
    if (!places || !scratch) {
        free(places);
        free(scratch);
        return 0;
    }
    for (int i = 0; i < h->n_rows; i++)
        places[i] = (place){h->steps[i], i};
    qsort(places, (size_t)h->n_rows, sizeof *places, by_step);
    for (int i = 0; i < h->n_names; i++)
        (void)merge(h->columns[i], places, h->n_rows, scratch);
    for (int i = 0; i < h->n_rows; i++)
        if (i == 0 || places[i].step != places[i - 1].step)
            h->steps[n_out++] = places[i].step;
    h->n_rows = n_out;
    h->is_mixed = 0;
    free(places);
    free(scratch);
    return 1;
}

/* Forget all but the newest PL_HISTORY_STEPS steps. */
static void drop_oldest(pl_history *h)
{
    const int n_old = h->n_rows - PL_HISTORY_STEPS;

    if (n_old <= 0)
        return;
    for (int i = 0; i < h->n_names; i++)
        memmove(h->columns[i], h->columns[i] + n_old, PL_HISTORY_STEPS * sizeof(double));
    memmove(h->steps, h->steps + n_old, PL_HISTORY_STEPS * sizeof *h->steps);
    h->n_rows = PL_HISTORY_STEPS;
}

static int grow(pl_history *h)
{
    int room = h->room ? 2 * h->room : FIRST_ROWS;

    if (h->room >= MAX_ROWS) {
        if (!settle(h))
            return 0;
        drop_oldest(h);
        return 1;
    }
    room = room < MAX_ROWS ? room : MAX_ROWS;
    int64_t *steps = realloc(h->steps, (size_t)room * sizeof *steps);
    if (!steps)
        return 0;
    h->steps = steps;
    for (int i = 0; i < h->n_names; i++) {
        double *column = realloc(h->columns[i], (size_t)room * sizeof *column);
        if (!column)
            return 0;
        h->columns[i] = column;
    }
    h->room = room;
    return 1;
}

/* Row of a line's step: the last one, or a new one.  -1: no memory. */
static int row_of(pl_history *h, int64_t step)
{
    if (h->n_rows > 0 && step == h->steps[h->n_rows - 1])
        return h->n_rows - 1;
    if (h->n_rows == h->room && !grow(h))
        return -1;
    if (h->n_rows > 0 && step <= h->steps[h->n_rows - 1])
        h->is_mixed = 1;
    for (int i = 0; i < h->n_names; i++)
        h->columns[i][h->n_rows] = absent();
    h->steps[h->n_rows] = step;
    return h->n_rows++;
}

/* ---- names ---- */

static int add_name(pl_history *h, const char *name)
{
    if (h->n_names == PL_HISTORY_NAMES)
        return -1;
    char *copy = strdup(name);
    double *column = malloc((size_t)h->room * sizeof *column);
    if (!copy || !column) {
        free(copy);
        free(column);
        return -1;
    }
    for (int i = 0; i < h->n_rows; i++)
        column[i] = absent();
    h->names[h->n_names] = copy;
    h->columns[h->n_names] = column;
    return h->n_names++;
}

/* Column of a key; -1: there is none, and no room or no use for it.  guess: likely the one. */
static int column_of(pl_history *h, const scan_value *v, int guess)
{
    char name[NAME_BYTES], clean[NAME_BYTES];

    if (v->n_key == 0 || v->n_key >= sizeof name || memchr(v->key, '\\', v->n_key) ||
        memchr(v->key, '\0', v->n_key))
        return -1;
    if (guess < h->n_names && scan_is_key(v, h->names[guess]))
        return guess;
    for (int i = 0; i < h->n_names; i++)
        if (scan_is_key(v, h->names[i]))
            return i;
    memcpy(name, v->key, v->n_key);
    name[v->n_key] = '\0';
    text_clean(clean, sizeof clean, name, v->n_key);
    return strcmp(name, clean) == 0 ? add_name(h, name) : -1;
}

/* ---- lines ---- */

/* Step of a line that is an object; -1: it is none, or has none. */
static int64_t step_of(const char *line, size_t n)
{
    int64_t step = -1;
    scan s;
    scan_value v;
    int more;

    scan_begin(&s, line, n);
    while ((more = scan_next(&s, &v)) == 1)
        if (scan_is_key(&v, "step"))
            step = scan_int(&v, 0, STEP_MAX, -1);
    return more == 0 ? step : -1;
}

static int take_line(void *ctx, const char *line, size_t n)
{
    pl_history *h = ctx;
    scan s;
    scan_value v;
    int guess = 0;

    if (line && n == 0)
        return 0;
    const int64_t step = line ? step_of(line, n) : -1;
    const int row = step >= 0 ? row_of(h, step) : -1;
    if (row < 0) {
        h->n_bad++;
        return 0;
    }
    scan_begin(&s, line, n);
    while (scan_next(&s, &v) == 1) {
        if ((v.kind != '0' && v.kind != 'n') || scan_is_key(&v, "step"))
            continue;
        const int i = column_of(h, &v, guess);
        if (i >= 0) {
            h->columns[i][row] = scan_number(&v);
            guess = i + 1;
        }
    }
    return 0;
}

/* ---- the file ---- */

/* 1: what was read of this file before still stands in it. */
static int is_same_file(const pl_history *h, int fd, const struct stat *s)
{
    char tail[TAIL_BYTES];
    ssize_t n;

    if (s->st_dev != h->device || s->st_ino != h->inode || s->st_size < h->at)
        return 0;
    do
        n = pread(fd, tail, (size_t)h->n_tail, (off_t)(h->at - h->n_tail));
    while (n < 0 && errno == EINTR);
    return n == h->n_tail && memcmp(tail, h->tail, (size_t)n) == 0;
}

static void keep_tail(pl_history *h, const char *bytes, int n)
{
    const int n_new = n < TAIL_BYTES ? n : TAIL_BYTES;
    const int n_old = h->n_tail < TAIL_BYTES - n_new ? h->n_tail : TAIL_BYTES - n_new;

    memmove(h->tail, h->tail + h->n_tail - n_old, (size_t)n_old);
    memcpy(h->tail + n_old, bytes + n - n_new, (size_t)n_new);
    h->n_tail = n_old + n_new;
}

/* Read on.  1: something came. */
static int read_on(pl_history *h, int fd, char *buffer)
{
    int64_t taken = 0;

    while (taken < POLL_BYTES) {
        const ssize_t n = pread(fd, buffer, READ_BYTES, (off_t)h->at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        h->at += n;
        taken += n;
        keep_tail(h, buffer, (int)n);
        (void)lines_feed(&h->lines, buffer, (size_t)n, take_line, h);
    }
    return taken > 0;
}

int pl_history_poll(pl_history *h)
{
    struct stat s;
    char *buffer = NULL;
    int is_new = 0;

    const int fd = open(h->path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    h->code = fd < 0 ? errno : 0;
    if (fd < 0)
        return 0; /* not written yet, or gone: what is known stays */
    if (fstat(fd, &s) == 0 && S_ISREG(s.st_mode))
        buffer = malloc(READ_BYTES);
    if (buffer) {
        if (h->at > 0 && !is_same_file(h, fd, &s)) {
            forget(h);
            is_new = 1;
        }
        h->device = s.st_dev;
        h->inode = s.st_ino;
        is_new |= read_on(h, fd, buffer);
        (void)settle(h);
    }
    free(buffer);
    (void)close(fd);
    return is_new;
}

/* ---- what was read ---- */

/* Rows before the newest PL_HISTORY_STEPS. */
static int n_hidden(const pl_history *h)
{
    return h->n_rows > PL_HISTORY_STEPS ? h->n_rows - PL_HISTORY_STEPS : 0;
}

int pl_history_steps(const pl_history *h, const int64_t **steps)
{
    if (steps)
        *steps = h->steps ? h->steps + n_hidden(h) : NULL;
    return h->n_rows - n_hidden(h);
}

int pl_history_names(const pl_history *h, const char *const **names)
{
    if (names)
        *names = (const char *const *)h->names;
    return h->n_names;
}

const double *pl_history_column(const pl_history *h, const char *name)
{
    for (int i = 0; i < h->n_names; i++)
        if (strcmp(h->names[i], name) == 0)
            return h->columns[i] + n_hidden(h);
    return NULL;
}

int64_t pl_history_bad_lines(const pl_history *h)
{
    return h->n_bad;
}

int pl_history_error(const pl_history *h)
{
    return h->code;
}

pl_status pl_history_open(pl_history **out, const char *run_dir, pl_error *err)
{
    if (!pl_path_exists(run_dir))
        return pl_fail(err, PL_E_NOENT, "run directory '%s' is not there", run_dir);
    pl_history *h = calloc(1, sizeof *h);
    if (!h)
        return pl_fail(err, PL_E_NOMEM, "history of '%s'", run_dir);
    if (snprintf(h->path, sizeof h->path, "%s/metrics.jsonl", run_dir) >= (int)sizeof h->path) {
        free(h);
        return pl_fail(err, PL_E_IO, "'%s': name too long", run_dir);
    }
    h->lines.max = LINE_MAX_BYTES;
    *out = h;
    return PL_OK;
}

void pl_history_close(pl_history *h)
{
    if (!h)
        return;
    forget(h);
    lines_done(&h->lines);
    free(h);
}
