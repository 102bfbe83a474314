/* monitor/samples_query.c - search in the samples.  Figures are compared in the index; text is
 * looked for in the records themselves, newest step first, until enough was read. */
#define _GNU_SOURCE
#include "monitor/samples_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    EXCERPT = 160, /* bytes */
    BEFORE = 40,   /* of them before the text that was found */
    PAGE_DEFAULT = 50,
};

typedef struct excerpt {
    int is_there;
    int is_tried; /* its file was read */
    unsigned char n;
    char text[EXCERPT];
} excerpt;

typedef struct search {
    const pl_samples_query *q;
    pl_samples_row *rows; /* [q->limit] */
    excerpt *excerpts;    /* [q->limit] or NULL: not wanted */
    int n;                /* rows */
    int64_t n_match;
    const samples_file *file; /* being read */
    uint32_t line, i_row;
    char *text; /* of a record */
    size_t text_room, n_bytes;
} search;

static const char *const orders[PL_SAMPLES_ORDERS] = {
    "newest", "best", "worst", "longest", "shortest"};

int pl_samples_order_of(const char *name)
{
    for (int i = 0; i < PL_SAMPLES_ORDERS; i++)
        if (strcmp(orders[i], name) == 0)
            return i;
    return -1;
}

pl_samples_query pl_samples_any(void)
{
    return (pl_samples_query){.step_max = INT64_MAX,
        .reward_min = -INFINITY,
        .reward_max = INFINITY,
        .length_max = INT64_MAX,
        .limit = PAGE_DEFAULT};
}

static int is_match(const pl_samples_query *q, const pl_samples_row *r)
{
    const double x = (double)r->reward;

    if ((q->prompt != 0 && r->prompt != q->prompt) || r->n_tokens < q->length_min ||
        r->n_tokens > q->length_max)
        return 0;
    return isnan(x) ? isinf(q->reward_min) && isinf(q->reward_max)
                    : x >= q->reward_min && x <= q->reward_max;
}

static int is_in_steps(const pl_samples_query *q, const samples_file *f)
{
    return f->step >= q->step_min && f->step <= q->step_max;
}

static void take_excerpt(excerpt *e, const char *text, size_t n, size_t found)
{
    size_t begin = found > BEFORE ? found - BEFORE : 0;
    size_t end = n - begin > EXCERPT ? begin + EXCERPT : n;

    while (begin < end && ((unsigned char)text[begin] & 0xc0) == 0x80)
        begin++;
    while (end < n && end > begin && ((unsigned char)text[end] & 0xc0) == 0x80)
        end--;
    e->is_there = 1;
    e->n = (unsigned char)(end - begin);
    memcpy(e->text, text + begin, end - begin);
}

/* ---- by figures ---- */

static int newer(const pl_samples_row *a, const pl_samples_row *b)
{
    return a->step != b->step ? (a->step < b->step) - (a->step > b->step)
                              : (a->line > b->line) - (a->line < b->line);
}

/* What is not known comes last. */
static int by_reward(const pl_samples_row *a, const pl_samples_row *b, int sign)
{
    const double x = (double)a->reward, y = (double)b->reward;

    if (isnan(x) || isnan(y))
        return isnan(x) - isnan(y);
    return sign * ((x < y) - (x > y));
}

static int best(const void *a, const void *b)
{
    const pl_samples_row *x = *(const pl_samples_row *const *)a;
    const pl_samples_row *y = *(const pl_samples_row *const *)b;
    const int by = by_reward(x, y, 1);
    return by ? by : newer(x, y);
}

static int worst(const void *a, const void *b)
{
    const pl_samples_row *x = *(const pl_samples_row *const *)a;
    const pl_samples_row *y = *(const pl_samples_row *const *)b;
    const int by = by_reward(x, y, -1);
    return by ? by : newer(x, y);
}

static int longest(const void *a, const void *b)
{
    const pl_samples_row *x = *(const pl_samples_row *const *)a;
    const pl_samples_row *y = *(const pl_samples_row *const *)b;
    const int by = (x->n_tokens < y->n_tokens) - (x->n_tokens > y->n_tokens);
    return by ? by : newer(x, y);
}

static int shortest(const void *a, const void *b)
{
    const pl_samples_row *x = *(const pl_samples_row *const *)a;
    const pl_samples_row *y = *(const pl_samples_row *const *)b;
    const int by = (x->n_tokens > y->n_tokens) - (x->n_tokens < y->n_tokens);
    return by ? by : newer(x, y);
}

/* Matching rows, newest step first; found [s->n_rows] or NULL to take the page itself. */
static void collect(const pl_samples *s, search *x, const pl_samples_row **found)
{
    const pl_samples_query *q = x->q;

    for (int64_t i = s->n_files - 1; i >= 0; i--) {
        const samples_file *f = &s->files[i];
        for (uint32_t k = 0; is_in_steps(q, f) && k < f->n_rows; k++) {
            if (!is_match(q, &f->rows[k]))
                continue;
            if (found)
                found[x->n_match] = &f->rows[k];
            else if (x->n_match >= q->offset && x->n < q->limit)
                x->rows[x->n++] = f->rows[k];
            x->n_match++;
        }
    }
}

static pl_status select_rows(const pl_samples *s, search *x, pl_error *err)
{
    static int (*const compare[PL_SAMPLES_ORDERS])(const void *, const void *) = {
        NULL, best, worst, longest, shortest};
    const pl_samples_query *q = x->q;

    if (!compare[q->order]) {
        collect(s, x, NULL);
        return PL_OK;
    }
    const pl_samples_row **found = malloc((size_t)(s->n_rows + 1) * sizeof(const pl_samples_row *));
    if (!found)
        return pl_fail(err, PL_E_NOMEM, "search in %lld samples: no memory", (long long)s->n_rows);
    collect(s, x, found);
    qsort(found, (size_t)x->n_match, sizeof *found, compare[q->order]);
    for (int64_t i = q->offset; i < x->n_match && x->n < q->limit; i++)
        x->rows[x->n++] = *found[i];
    free(found);
    return PL_OK;
}

/* ---- by text ---- */

/* The row of the line that comes; NULL: it has none. */
static const pl_samples_row *next_row(search *x)
{
    const uint32_t line = x->line++;
    const samples_file *f = x->file;

    while (x->i_row < f->n_rows && f->rows[x->i_row].line < line)
        x->i_row++;
    return x->i_row < f->n_rows && f->rows[x->i_row].line == line ? &f->rows[x->i_row] : NULL;
}

static int search_line(void *ctx, const char *line, size_t n)
{
    search *x = ctx;
    const pl_samples_query *q = x->q;
    const pl_samples_row *row = next_row(x);

    if (!row || !line || !is_match(q, row))
        return 0;
    const int64_t n_text = samples_text(line, n, &x->text, &x->text_room);
    const char *at = n_text > 0 ? memmem(x->text, (size_t)n_text, q->text, strlen(q->text)) : NULL;
    if (!at)
        return 0;
    if (x->n_match++ >= q->offset && x->n < q->limit) {
        if (x->excerpts)
            take_excerpt(&x->excerpts[x->n], x->text, (size_t)n_text, (size_t)(at - x->text));
        x->rows[x->n++] = *row;
    }
    return 0;
}

static int has_match(const pl_samples_query *q, const samples_file *f)
{
    for (uint32_t i = 0; i < f->n_rows; i++)
        if (is_match(q, &f->rows[i]))
            return 1;
    return 0;
}

/* Returns the step that was searched last when there would be more to read, else -1. */
static int64_t search_text(pl_samples *s, search *x)
{
    int64_t last = -1;

    for (int64_t i = s->n_files - 1; i >= 0; i--) {
        const samples_file *f = &s->files[i];
        if (!is_in_steps(x->q, f) || !has_match(x->q, f))
            continue;
        if (x->n_bytes >= PL_SAMPLES_SEARCH)
            return last;
        x->file = f;
        x->line = x->i_row = 0;
        (void)samples_read(s, f, search_line, x, &x->n_bytes, NULL); /* what is whole counts */
        last = f->step;
    }
    return -1;
}

/* ---- excerpts of rows that were found by figures ---- */

static int excerpt_line(void *ctx, const char *line, size_t n)
{
    search *x = ctx;
    const pl_samples_row *row = next_row(x);
    int n_open = 0;

    for (int i = 0; i < x->n; i++) {
        if (x->excerpts[i].is_there || x->rows[i].step != x->file->step)
            continue;
        n_open++;
        if (!row || !line || x->rows[i].line != row->line)
            continue;
        const int64_t n_text = samples_text(line, n, &x->text, &x->text_room);
        take_excerpt(
            &x->excerpts[i], n_text > 0 ? x->text : "", n_text > 0 ? (size_t)n_text : 0, 0);
        n_open--;
    }
    return n_open == 0;
}

static void fill_excerpts(pl_samples *s, search *x)
{
    for (int i = 0; i < x->n && x->n_bytes < PL_SAMPLES_SEARCH; i++) {
        x->file = samples_find(s, x->rows[i].step);
        if (x->excerpts[i].is_there || x->excerpts[i].is_tried || !x->file)
            continue;
        x->line = x->i_row = 0;
        (void)samples_read(s, x->file, excerpt_line, x, &x->n_bytes, NULL);
        for (int k = i; k < x->n; k++)
            x->excerpts[k].is_tried |= x->rows[k].step == x->file->step;
    }
}

/* ---- both ---- */

static pl_status run(pl_samples *s, search *x, int64_t *searched, pl_error *err)
{
    const pl_samples_query *q = x->q;
    const int is_text = q->text && q->text[0];
    pl_status st = PL_OK;

    *searched = -1;
    if (q->limit < 1 || q->limit > PL_SAMPLES_PAGE || q->offset < 0 ||
        (unsigned)q->order >= PL_SAMPLES_ORDERS)
        return pl_fail(err, PL_E_INVAL, "limit must be 1 to %d, offset 0 or more", PL_SAMPLES_PAGE);
    if (is_text)
        *searched = search_text(s, x);
    else
        st = select_rows(s, x, err);
    if (st == PL_OK && x->excerpts)
        fill_excerpts(s, x);
    free(x->text);
    x->text = NULL;
    return st;
}

int pl_samples_rows(pl_samples *s, const pl_samples_query *q, pl_samples_row *rows,
    int64_t *n_match, int64_t *searched, pl_error *err)
{
    search x = {.q = q, .rows = rows};

    const pl_status st = run(s, &x, searched, err);
    *n_match = x.n_match;
    return st == PL_OK ? x.n : -1;
}

static void put_int(pl_json *j, const char *key, int64_t v)
{
    pl_json_text(j, key);
    pl_json_int(j, v);
}

static void put_info(pl_json *j, const pl_samples *s)
{
    pl_samples_info info;

    pl_samples_info_get(s, &info);
    put_int(j, "{\"info\":{\"n_rows\":", info.n_rows);
    put_int(j, ",\"first_step\":", info.first_step);
    put_int(j, ",\"last_step\":", info.last_step);
    put_int(j, ",\"n_files\":", info.n_files);
    put_int(j, ",\"n_pending\":", info.n_pending);
    put_int(j, ",\"n_bad_lines\":", info.n_bad_lines);
    put_int(j, ",\"n_bad_files\":", info.n_bad_files);
    put_int(j, ",\"n_forgotten\":", info.n_forgotten);
}

static void put_found(pl_json *j, const search *x, int64_t searched)
{
    put_int(j, "},\"n_match\":", x->n_match);
    pl_json_text(j, ",\"searched\":");
    if (searched >= 0)
        pl_json_int(j, searched);
    else
        pl_json_text(j, "null");
    put_int(j, ",\"offset\":", x->q->offset);
    pl_json_text(j, ",\"samples\":[");
    for (int i = 0; i < x->n; i++) {
        const excerpt *e = &x->excerpts[i];
        pl_json_text(j, i > 0 ? ",{" : "{");
        samples_put_row(j, &x->rows[i]);
        pl_json_text(j, ",\"excerpt\":");
        if (e->is_there)
            pl_json_string(j, e->text, e->n);
        else
            pl_json_text(j, "null");
        pl_json_text(j, "}");
    }
    pl_json_text(j, "]}");
}

pl_status pl_samples_query_json(
    pl_samples *s, const pl_samples_query *q, pl_json *out, pl_error *err)
{
    search x = {.q = q};
    int64_t searched;
    pl_status st;

    x.rows = calloc(PL_SAMPLES_PAGE, sizeof *x.rows);
    x.excerpts = calloc(PL_SAMPLES_PAGE, sizeof *x.excerpts);
    if (x.rows && x.excerpts)
        st = run(s, &x, &searched, err);
    else
        st = pl_fail(err, PL_E_NOMEM, "search in samples: no memory");
    if (st == PL_OK) {
        put_info(out, s);
        put_found(out, &x, searched);
        st = pl_json_check(out, "samples", err);
    }
    free(x.rows);
    free(x.excerpts);
    return st;
}
