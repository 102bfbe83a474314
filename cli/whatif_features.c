/* cli/whatif_features.c - what a learned drafter reads of its target, recomputed for recorded
 * samples: one prefill of each prompt, forked by its responses. */
#include "cli/whatif.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PASS_ROWS = 256 };
static const size_t IN_MEMORY = (size_t)1 << 30; /* bytes; more goes to a file */

typedef struct bed {
    pl_pass *pass;
    pl_kv_pool *pool;
    pl_kv_seq prompt, sample;
} bed;

/* ---- where they stay ---- */

static pl_status map_file(whatif_features *f, pl_error *err)
{
    const char *dir = getenv("TMPDIR");
    char path[PL_CONFIG_STR];

    if (snprintf(path, sizeof path, "%s/paceline-features-XXXXXX", dir && dir[0] ? dir : "/tmp") >=
        (int)sizeof path)
        return pl_fail(err, PL_E_INVAL, "TMPDIR is too long a path");
    const int fd = mkstemp(path); /* no child is started */
    if (fd < 0)
        return pl_fail(err, PL_E_IO, "'%s': %s; set TMPDIR", path, strerror(errno));
    (void)unlink(path);
    const int full = posix_fallocate(fd, 0, (off_t)f->n_bytes);
    void *p = full ? MAP_FAILED : mmap(NULL, f->n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    const int failed = full ? full : errno;
    (void)close(fd);
    if (p == MAP_FAILED)
        return pl_fail(err, PL_E_IO,
            "%zu MiB of features: %s; set TMPDIR to a larger disk, or take one --step",
            f->n_bytes >> 20, strerror(failed));
    f->rows = p;
    return PL_OK;
}

static pl_status map(whatif_features *f, pl_error *err)
{
    if (f->n_bytes > IN_MEMORY)
        return map_file(f, err);
    void *p = mmap(NULL, f->n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return pl_fail(err, PL_E_NOMEM, "no memory for %zu MiB of features", f->n_bytes >> 20);
    f->rows = p;
    return PL_OK;
}

void whatif_features_done(whatif_features *f)
{
    if (f->rows)
        (void)munmap(f->rows, f->n_bytes);
    f->rows = NULL;
}

/* Give every sample its rows: a prompt once a group; the last token of a response has none. */
static size_t lay_out(whatif_batch *b)
{
    size_t n = 0, prompt = 0;

    for (int i = 0; i < b->n_groups * b->n; i++) {
        whatif_sample *s = &b->samples[i];
        if (i % b->n == 0) {
            prompt = n;
            n += (size_t)s->n_prompt;
        }
        s->prompt_row = prompt;
        s->row = n;
        n += s->n > 1 ? (size_t)(s->n - 1) : 0;
    }
    return n;
}

/* ---- the passes ---- */

static pl_status open_bed(bed *d, pl_model *model, const whatif_batch *b, pl_error *err)
{
    const pl_arch *a = pl_model_arch(model);
    int prompt = 1, total = 1;

    for (int i = 0; i < b->n_groups * b->n; i++) {
        const whatif_sample *s = &b->samples[i];
        prompt = s->n_prompt > prompt ? s->n_prompt : prompt;
        total = s->n_prompt + s->n > total ? s->n_prompt + s->n : total;
    }
    const pl_pass_options o = {.max_rows = PASS_ROWS, .max_segments = 1, .max_ctx = total};
    pl_status st = pl_pass_new(&d->pass, model, &o, err);
    if (st == PL_OK)
        st = pl_kv_pool_new(&d->pool, a, (prompt + total) / PL_BLOCK + 3, err);
    if (st == PL_OK)
        st = pl_kv_seq_init(&d->prompt, prompt, err);
    if (st == PL_OK)
        st = pl_kv_seq_init(&d->sample, total, err);
    return st;
}

static void close_bed(bed *d)
{
    if (d->pool) {
        pl_kv_seq_done(d->pool, &d->prompt);
        pl_kv_seq_done(d->pool, &d->sample);
    }
    pl_kv_pool_free(d->pool);
    pl_pass_free(d->pass);
}

/* n tokens through seq, their features to `to`. */
static pl_status feed(
    bed *d, pl_kv_seq *seq, const int32_t *tokens, int n, uint16_t *to, size_t row, pl_error *err)
{
    pl_status st = PL_OK;

    for (int from = 0, k; from < n && st == PL_OK; from += k) {
        k = n - from < PASS_ROWS ? n - from : PASS_ROWS;
        const pl_features f = {.rows = to + (size_t)from * row, .room = k};
        const pl_segment seg = {.kv = seq, .tokens = tokens + from, .n_rows = k};
        pl_pass_set_features(d->pass, &f);
        st = pl_kv_reserve(d->pool, seq, k, err);
        if (st == PL_OK)
            st = pl_pass_run(d->pass, d->pool, &seg, 1, err);
    }
    return st;
}

static pl_status run_all(
    bed *d, const whatif_features *f, whatif_batch *b, const run_report *report, pl_error *err)
{
    const int total = b->n_groups * b->n;
    pl_status st = PL_OK;

    for (int i = 0; i < total && st == PL_OK; i++) {
        const whatif_sample *s = &b->samples[i];
        if (cli_stop)
            return pl_fail(err, PL_E_STOPPED, "stopped by a signal during the prefill");
        if (i % b->n == 0) {
            pl_kv_seq_clear(d->pool, &d->prompt);
            st = feed(d, &d->prompt, s->prompt, s->n_prompt, f->rows + s->prompt_row * b->row,
                b->row, err);
        }
        if (st != PL_OK)
            break;
        pl_kv_seq_clear(d->pool, &d->sample);
        pl_kv_fork(d->pool, &d->prompt, &d->sample);
        st = feed(d, &d->sample, s->tokens, s->n - 1, f->rows + s->row * b->row, b->row, err);
        if (report)
            run_progress(report, "features", (double)(i + 1) / total, "");
    }
    return st;
}

pl_status whatif_features_make(
    whatif_features *f, whatif_batch *b, pl_model *model, const run_report *report, pl_error *err)
{
    bed d = {0};

    memset(f, 0, sizeof *f);
    b->row = PL_FEATURE_LAYERS * (size_t)pl_pad32(pl_model_arch(model)->n_embd);
    f->n_bytes = lay_out(b) * b->row * sizeof *f->rows;
    pl_status st = map(f, err);
    if (st == PL_OK)
        st = open_bed(&d, model, b, err);
    if (st == PL_OK)
        st = run_all(&d, f, b, report, err);
    close_bed(&d);
    if (report)
        run_progress_clear(report);
    if (st != PL_OK) {
        whatif_features_done(f);
        return pl_wrap(err, st, "features");
    }
    b->features = f->rows;
    return PL_OK;
}
