/* monitor/samples.c - the index of a run's samples: built file by file, the newest first. */
#include "monitor/samples_internal.h"

#include "core/file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- building ---- */

typedef struct builder {
    pl_samples_row *rows; /* [n] */
    uint32_t n, room, n_bad, line;
    int64_t step;
    int failed; /* no memory */
} builder;

static int index_line(void *ctx, const char *line, size_t n)
{
    builder *b = ctx;
    pl_samples_row row;
    const uint32_t number = b->line++;

    if (line && n == 0)
        return 0;
    if (!line || !samples_parse_row(line, n, &row)) {
        b->n_bad++;
        return 0;
    }
    if (b->n == b->room) {
        const uint32_t room = b->room ? 2 * b->room : 64;
        pl_samples_row *p = realloc(b->rows, room * sizeof *p);
        if (!p) {
            b->failed = 1;
            return 1;
        }
        b->rows = p;
        b->room = room;
    }
    row.step = b->step;
    row.line = number;
    b->rows[b->n++] = row;
    return b->n >= PL_SAMPLES_ROWS;
}

static void forget(pl_samples *s, samples_file *f)
{
    s->n_rows -= f->n_rows;
    samples_file_done(f);
    f->state = SAMPLES_FORGOTTEN;
}

/* Forget oldest files until the rows are few enough. */
static void make_room(pl_samples *s)
{
    for (int64_t i = 0; i < s->n_files && s->n_rows > PL_SAMPLES_ROWS; i++)
        if (s->files[i].n_rows > 0)
            forget(s, &s->files[i]);
}

static void index_file(pl_samples *s, samples_file *f, size_t *n_bytes)
{
    builder b = {.step = f->step};

    const pl_status st = samples_read(s, f, index_line, &b, n_bytes, NULL);
    f->state = st == PL_OK && !b.failed ? SAMPLES_INDEXED : SAMPLES_DAMAGED;
    pl_samples_row *fit = b.n > 0 ? realloc(b.rows, b.n * sizeof *fit) : NULL;
    f->rows = fit ? fit : b.rows;
    f->n_rows = b.n;
    f->n_bad = b.n_bad;
    s->n_rows += f->n_rows;
    make_room(s);
}

int pl_samples_poll(pl_samples *s, size_t max_bytes)
{
    int is_new = samples_list(s);
    size_t n_bytes = 0;

    for (int64_t i = s->n_files - 1; i >= 0 && (max_bytes == 0 || n_bytes < max_bytes); i--) {
        samples_file *f = &s->files[i];
        if (f->state != SAMPLES_PENDING)
            continue;
        if (i < s->n_files - 1 && s->files[i + 1].state == SAMPLES_FORGOTTEN) {
            f->state = SAMPLES_FORGOTTEN; /* the next newer one did not fit */
            continue;
        }
        index_file(s, f, &n_bytes);
        is_new = 1;
    }
    return is_new;
}

pl_status pl_samples_open(pl_samples **out, const char *run_dir, pl_error *err)
{
    if (!pl_path_exists(run_dir))
        return pl_fail(err, PL_E_NOENT, "run directory '%s' is not there", run_dir);
    pl_samples *s = calloc(1, sizeof *s);
    if (!s)
        return pl_fail(err, PL_E_NOMEM, "samples of '%s'", run_dir);
    if (snprintf(s->dir, sizeof s->dir, "%s/rollouts", run_dir) >= (int)sizeof s->dir) {
        free(s);
        return pl_fail(err, PL_E_IO, "'%s': name too long", run_dir);
    }
    *out = s;
    return PL_OK;
}

void pl_samples_info_get(const pl_samples *s, pl_samples_info *out)
{
    memset(out, 0, sizeof *out);
    out->first_step = out->last_step = -1;
    out->n_rows = s->n_rows;
    out->n_files = s->n_files;
    for (int64_t i = 0; i < s->n_files; i++) {
        const samples_file *f = &s->files[i];
        out->n_pending += f->state == SAMPLES_PENDING;
        out->n_bad_files += f->state == SAMPLES_DAMAGED;
        out->n_forgotten += f->state == SAMPLES_FORGOTTEN;
        out->n_bad_lines += f->n_bad;
        if (f->n_rows == 0)
            continue;
        if (out->first_step < 0)
            out->first_step = f->step;
        out->last_step = f->step;
    }
}

void pl_samples_close(pl_samples *s)
{
    if (!s)
        return;
    for (int64_t i = 0; i < s->n_files; i++)
        samples_file_done(&s->files[i]);
    free(s->files);
    free(s);
}

/* ---- one record ---- */

typedef struct fetch {
    const pl_samples_row *row;
    uint32_t line;
    pl_json *out;
    int is_prompt; /* of the record, only the prompt is wanted */
    int is_done;
} fetch;

static int fetch_line(void *ctx, const char *line, size_t n)
{
    fetch *f = ctx;

    if (f->line++ != f->row->line)
        return 0;
    if (line)
        f->is_done = f->is_prompt ? samples_put_prompt(f->out, line, n)
                                  : samples_put_record(f->out, f->row, line, n);
    return 1;
}

static pl_status put_fetched(pl_samples *s, const samples_file *file, fetch *f, pl_error *err)
{
    const size_t begin = f->out->n;
    size_t n_bytes = 0;

    const pl_status st = samples_read(s, file, fetch_line, f, &n_bytes, err);
    if (!f->is_done)
        f->out->n = begin;
    if (st != PL_OK && !f->is_done)
        return st;
    if (!f->is_done)
        return pl_fail(err, PL_E_FORMAT, "sample %u of step %lld: its record is broken",
            f->row->uid, (long long)file->step);
    return pl_json_check(f->out, "sample", err);
}

static const pl_samples_row *row_of(const samples_file *f, uint32_t uid)
{
    for (uint32_t i = 0; i < f->n_rows; i++)
        if (f->rows[i].uid == uid)
            return &f->rows[i];
    return NULL;
}

pl_status pl_samples_get(pl_samples *s, int64_t step, uint32_t uid, pl_json *out, pl_error *err)
{
    for (int64_t i = s->n_files - 1; i >= 0; i--) {
        const samples_file *f = &s->files[i];
        fetch x = {.out = out};
        x.row = step < 0 || step == f->step ? row_of(f, uid) : NULL;
        if (x.row)
            return put_fetched(s, f, &x, err);
    }
    if (step < 0)
        return pl_fail(err, PL_E_NOENT, "no sample %u in rollouts/", uid);
    return pl_fail(err, PL_E_NOENT, "no sample %u of step %lld in rollouts/", uid, (long long)step);
}

/* ---- one prompt across steps ---- */

uint64_t pl_samples_prompt_key(const char *hex)
{
    uint64_t key = 0;
    int n = 0;

    for (; hex[n]; n++) {
        const char c = hex[n];
        const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (digit < 0 || n >= 16)
            return 0;
        key = key << 4 | (uint64_t)digit;
    }
    return n == 16 ? key : 0;
}

static const pl_samples_row *prompt_row(const samples_file *f, uint64_t prompt)
{
    for (uint32_t i = 0; i < f->n_rows; i++)
        if (f->rows[i].prompt == prompt)
            return &f->rows[i];
    return NULL;
}

typedef struct sums {
    int64_t n, n_rewards, n_tokens, n_verify_steps;
    double reward, low, high;
} sums;

static void add(sums *a, const pl_samples_row *r)
{
    const double x = (double)r->reward;

    a->n++;
    a->n_tokens += r->n_tokens;
    a->n_verify_steps += r->n_verify_steps;
    if (isnan(x))
        return;
    a->low = a->n_rewards == 0 || x < a->low ? x : a->low;
    a->high = a->n_rewards == 0 || x > a->high ? x : a->high;
    a->reward += x;
    a->n_rewards++;
}

static void put_number(pl_json *j, const char *key, double v)
{
    pl_json_text(j, key);
    pl_json_double(j, v);
}

static void put_step(pl_json *j, const samples_file *f, uint64_t prompt)
{
    sums a = {0};

    for (uint32_t i = 0; i < f->n_rows; i++)
        if (f->rows[i].prompt == prompt)
            add(&a, &f->rows[i]);
    put_number(j, "{\"step\":", (double)f->step);
    put_number(j, ",\"n\":", (double)a.n);
    put_number(j, ",\"reward_mean\":", a.n_rewards > 0 ? a.reward / (double)a.n_rewards : NAN);
    put_number(j, ",\"reward_min\":", a.n_rewards > 0 ? a.low : NAN);
    put_number(j, ",\"reward_max\":", a.n_rewards > 0 ? a.high : NAN);
    put_number(j, ",\"length_mean\":", (double)a.n_tokens / (double)a.n);
    put_number(j, ",\"acceptance_length\":",
        a.n_verify_steps > 0 ? (double)a.n_tokens / (double)a.n_verify_steps : NAN);
    pl_json_text(j, ",\"uids\":[");
    for (uint32_t i = 0, n = 0; i < f->n_rows; i++)
        if (f->rows[i].prompt == prompt) {
            pl_json_text(j, n++ > 0 ? "," : "");
            pl_json_int(j, f->rows[i].uid);
        }
    pl_json_text(j, "]}");
}

pl_status pl_samples_prompt_json(pl_samples *s, uint64_t prompt, pl_json *out, pl_error *err)
{
    const samples_file *newest = NULL;
    fetch x = {.out = out, .is_prompt = 1};
    int64_t first = s->n_files;
    char key[40];

    for (int n = 0; first > 0 && n < PL_SAMPLES_PAGE; first--) {
        const pl_samples_row *row = prompt_row(&s->files[first - 1], prompt);
        if (row && !newest) {
            newest = &s->files[first - 1];
            x.row = row;
        }
        n += row != NULL;
    }
    if (!newest)
        return pl_fail(
            err, PL_E_NOENT, "no prompt %016llx in rollouts/", (unsigned long long)prompt);
    if (snprintf(key, sizeof key, "{\"prompt\":\"%016llx\",", (unsigned long long)prompt) > 0)
        pl_json_text(out, key);
    const pl_status st = put_fetched(s, newest, &x, err);
    if (st != PL_OK)
        return st;
    pl_json_text(out, ",\"steps\":[");
    for (int64_t i = first, n = 0; i < s->n_files; i++)
        if (prompt_row(&s->files[i], prompt)) {
            pl_json_text(out, n++ > 0 ? "," : "");
            put_step(out, &s->files[i], prompt);
        }
    pl_json_text(out, "]}");
    return pl_json_check(out, "prompt", err);
}
