/* cli/bench_checkpoint.c - paceline bench checkpoint: how long the drafter's training stands still
 * while its state is saved.
 *
 *   whole        weights, moments, average and the target's embedding and head, written and synced
 *   whole async  the same copied, a thread writes
 *   selective    what is trained only; a thread copies the half that is not being written */
#include "cli/bench_spot.h"
#include "core/file.h"
#include "core/rng.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WINDOW = 256, ROUNDS = 9, UIDS_BETWEEN = PL_HELD_OUT };

/* ---- the spot trainer of the benches ---- */

static void fill_noise(uint16_t *x, size_t rows, int c, int cp, uint64_t key, float size)
{
    const uint32_t k[2] = {(uint32_t)key, (uint32_t)(key >> 32)};

    for (size_t r = 0; r < rows; r++)
        for (int i = 0; i < c; i += 4) {
            const uint32_t counter[4] = {(uint32_t)i, (uint32_t)r, 0, 0};
            uint32_t word[4];
            pl_philox4x32(counter, k, word);
            for (int j = 0; j < 4 && i + j < c; j++)
                x[r * (size_t)cp + (size_t)(i + j)] =
                    pl_f32_to_bf16(size * ((float)(word[j] >> 8) * 0x1p-23f - 1.0f));
        }
}

static pl_status put_window(bench_spot *x, const pl_arch *a, uint32_t uid, pl_error *err)
{
    const int cp = pl_pad32(a->n_embd);
    const size_t n_features = (size_t)WINDOW * PL_FEATURE_LAYERS * (size_t)cp;
    const size_t n_hidden = (size_t)WINDOW * (size_t)cp;
    uint16_t *features = calloc(n_features + n_hidden, sizeof *features);
    int32_t tokens[WINDOW];

    if (!features)
        return pl_fail(err, PL_E_NOMEM, "no memory for a window of %d tokens", WINDOW);
    fill_noise(features, (size_t)WINDOW * PL_FEATURE_LAYERS, a->n_embd, cp, uid, 2.0f);
    fill_noise(features + n_features, WINDOW, a->n_embd, cp, uid + 1000u, 2.0f);
    for (int i = 0; i < WINDOW; i++) /* about as many different ones as a text has */
        tokens[i] = (int32_t)(pl_noise_word(1, uid, (uint32_t)i, 0, 0) % 6000u) % a->n_vocab;
    const pl_feature_window w = {.uid = uid,
        .policy_version = 1,
        .noise_key = 1,
        .temperature = 1,
        .top_p = 1,
        .n_prompt = 8,
        .n = WINDOW,
        .tokens = tokens,
        .features = features,
        .hidden = features + n_features};
    const pl_status st = pl_windows_put(x->w, &w, err);
    free(features);
    return st;
}

static pl_status fill_buffer(
    bench_spot *x, const pl_arch *a, int n_train, int n_held, pl_error *err)
{
    const size_t room = pl_windows_room(&x->o.windows);
    pl_status st;

    x->o.windows.max_bytes = (size_t)(n_train + n_held + 2) * (room + 4096) + 65536;
    st = pl_windows_open(&x->w, x->buffer, &x->o.windows, err);
    for (uint32_t i = 0; i < (uint32_t)n_train && st == PL_OK; i++)
        st = put_window(x, a, i + 1 + i / (UIDS_BETWEEN - 1), err);
    for (uint32_t i = 0; i < (uint32_t)n_held && st == PL_OK; i++)
        st = put_window(x, a, i * UIDS_BETWEEN, err);
    return st;
}

pl_status bench_spot_begin(bench_spot *x, pl_error *err)
{
    const char *const paths[] = {x->buffer};
    return pl_spot_begin(x->s, ++x->session, 1, paths, 1, 1, err);
}

pl_status bench_spot_open(bench_spot *x, const pl_model *m, int n_train, int n_held, pl_error *err)
{
    const pl_arch *a = pl_model_arch(m);
    const pl_log log = {PL_LOG_WARN, STDERR_FILENO, 0};
    pl_spot_published p;

    memset(x, 0, sizeof *x);
    snprintf(x->dir, sizeof x->dir, "%s/paceline-bench-XXXXXX", P_tmpdir);
    if (!mkdtemp(x->dir))
        return pl_fail(err, PL_E_IO, "no temporary directory in '%s'", P_tmpdir);
    snprintf(x->buffer, sizeof x->buffer, "%s/buffer", x->dir);
    snprintf(x->drafter, sizeof x->drafter, "%s/drafter", x->dir);
    x->o = (pl_spot_options){.dir = x->drafter,
        .name = "bench",
        .windows = {.window = WINDOW, .n_embd = a->n_embd, .target = 1},
        .windows_a_step = 2,
        .gate_s = 10,
        .gate_tokens = 2000,
        .gate_samples = 8,
        .init = "random"};
    pl_eagle_train_defaults(&x->o.train);
    x->o.train.ema = 0.98f;
    pl_status st = fill_buffer(x, a, n_train, n_held, err);
    if (st == PL_OK)
        st = pl_spot_new(&x->s, m, &x->o, &log, err);
    if (st == PL_OK)
        st = bench_spot_begin(x, err);
    if (st == PL_OK)
        st = pl_spot_work(x->s, NULL, NULL, &p, err);
    if (st != PL_OK)
        bench_spot_close(x);
    return st;
}

void bench_spot_close(bench_spot *x)
{
    pl_spot_free(x->s);
    pl_windows_close(x->w);
    if (x->dir[0] != '\0')
        (void)pl_dir_remove(x->dir, NULL);
    memset(x, 0, sizeof *x);
}

/* ---- the three ways ---- */

/* What a naive trainer saves, as one block of memory. */
typedef struct whole {
    const unsigned char *state; /* a file of the trained half's size, mapped */
    size_t n_state, n_frozen;
    const float *frozen; /* the target's embedding and head */
    unsigned char *copy;
    const char *path;
    pthread_t thread;
    pl_status status;
    pl_error err;
} whole;

static pl_status write_whole(
    const char *path, const void *a, size_t n_a, const void *b, size_t n_b, pl_error *err)
{
    pl_writer *w = NULL;
    pl_status st = pl_writer_open(&w, path, err);

    if (st != PL_OK)
        return st;
    st = pl_writer_put(w, a, n_a, err);
    if (st == PL_OK)
        st = pl_writer_put(w, b, n_b, err);
    if (st == PL_OK)
        return pl_writer_commit(w, err);
    pl_writer_abort(w);
    return st;
}

static void *run_whole(void *arg)
{
    whole *w = arg;
    w->status =
        write_whole(w->path, w->copy, w->n_state, w->copy + w->n_state, w->n_frozen, &w->err);
    return NULL;
}

static pl_status save_sync(whole *w, double *seconds, pl_error *err)
{
    const double t0 = bench_now();
    const pl_status st = write_whole(w->path, w->state, w->n_state, w->frozen, w->n_frozen, err);

    *seconds = bench_now() - t0;
    return st;
}

static pl_status save_async(whole *w, double *seconds, pl_error *err)
{
    const double t0 = bench_now();

    w->copy = malloc(w->n_state + w->n_frozen);
    if (!w->copy)
        return pl_fail(err, PL_E_NOMEM, "no memory for a copy of the state");
    memcpy(w->copy, w->state, w->n_state);
    memcpy(w->copy + w->n_state, w->frozen, w->n_frozen);
    if (pthread_create(&w->thread, NULL, run_whole, w) != 0) {
        free(w->copy);
        return pl_fail(err, PL_E_NOMEM, "no thread");
    }
    *seconds = bench_now() - t0;
    (void)pthread_join(w->thread, NULL);
    free(w->copy);
    w->copy = NULL;
    return w->status == PL_OK ? PL_OK : pl_fail(err, w->status, "%s", w->err.msg);
}

/* The call, and what two steps after it take longer than two steps before: the thread copies. */
static pl_status save_selective(
    bench_spot *x, const char *path, double *seconds, double *steps, pl_error *err)
{
    pl_spot_published p;
    double t[2] = {0};
    pl_status st = PL_OK;

    for (int k = 0; k < 2 && st == PL_OK; k++) {
        if (k == 1) {
            const double t0 = bench_now();
            st = pl_spot_checkpoint(x->s, path, err);
            *seconds = bench_now() - t0;
        }
        const double t0 = bench_now();
        for (int i = 0; i < 2 && st == PL_OK; i++)
            st = pl_spot_work(x->s, NULL, NULL, &p, err);
        t[k] = bench_now() - t0;
    }
    *steps = t[1] - t[0];
    if (st == PL_OK)
        st = pl_spot_checkpoint_wait(x->s, err);
    return st;
}

/* ---- the bench ---- */

typedef struct times {
    double sync[BENCH_ROUNDS_MAX], async[BENCH_ROUNDS_MAX], selective[BENCH_ROUNDS_MAX];
    double steps[BENCH_ROUNDS_MAX];
} times;

static pl_status report(bench *b, times *t, int n, size_t n_bytes, pl_error *err)
{
    const double sync = bench_median(t->sync, n), async = bench_median(t->async, n);
    const double selective = bench_median(t->selective, n), steps = bench_median(t->steps, n);
    bench_figure f = {.value = 1e3 * sync, .unit = "ms", .ratio = NAN};

    fprintf(b->notes,
        "median of %d rounds; %.0f MB of trained state; whole: with the target's embedding and "
        "head; steps: and what the 2 steps after it take longer\n",
        n, (double)n_bytes / 1e6);
    snprintf(f.name, sizeof f.name, "whole=1,async=0");
    pl_status st = bench_report(b, &f, err);
    f = (bench_figure){
        .value = 1e3 * async, .unit = "ms", .ratio = async / sync, .ratio_to = "whole"};
    snprintf(f.name, sizeof f.name, "whole=1,async=1");
    if (st == PL_OK)
        st = bench_report(b, &f, err);
    f = (bench_figure){
        .value = 1e3 * selective, .unit = "ms", .ratio = selective / sync, .ratio_to = "whole"};
    snprintf(f.name, sizeof f.name, "whole=0,async=1");
    if (st == PL_OK)
        st = bench_report(b, &f, err);
    f = (bench_figure){
        .value = 1e3 * (selective + (steps > 0 ? steps : 0)), .unit = "ms", .ratio_to = "whole"};
    f.ratio = f.value / (1e3 * sync);
    snprintf(f.name, sizeof f.name, "whole=0,async=1,steps=2");
    return st == PL_OK ? bench_report(b, &f, err) : st;
}

static pl_status measure(bench *b, bench_spot *x, whole *w, pl_error *err)
{
    const int n = bench_rounds(b, ROUNDS);
    char path[128], state[128];
    pl_file f = {0};
    times *t = calloc(1, sizeof *t);
    pl_status st = t ? PL_OK : pl_fail(err, PL_E_NOMEM, "no memory for %d rounds", n);

    snprintf(path, sizeof path, "%s/whole", x->dir);
    snprintf(state, sizeof state, "%s/selective", x->dir);
    w->path = path;
    if (st == PL_OK) /* once, for its size */
        st = pl_spot_checkpoint(x->s, state, err);
    if (st == PL_OK)
        st = pl_spot_checkpoint_wait(x->s, err);
    if (st == PL_OK)
        st = pl_file_open(&f, state, err);
    w->state = f.data;
    w->n_state = f.size;
    for (int i = 0; i < n && st == PL_OK; i++) {
        st = save_sync(w, &t->sync[i], err);
        if (st == PL_OK)
            st = save_async(w, &t->async[i], err);
        if (st == PL_OK)
            st = save_selective(x, path, &t->selective[i], &t->steps[i], err);
    }
    if (st == PL_OK)
        st = report(b, t, n, f.size, err);
    pl_file_close(&f);
    free(t);
    return st;
}

pl_status bench_checkpoint(bench *b, pl_error *err)
{
    bench_spot x = {0};
    cli_model m = {0};
    whole w = {0};
    float *frozen = NULL;

    pl_status st = bench_open(b, &m, 0, err);
    if (st == PL_OK)
        st = bench_spot_open(&x, m.model, 28, 0, err);
    if (st == PL_OK) {
        const pl_arch *a = pl_model_arch(m.model);
        w.n_frozen = (size_t)a->n_vocab * (size_t)a->n_embd * sizeof(float) * 2;
        frozen = malloc(w.n_frozen);
        w.frozen = frozen;
        if (frozen)
            memset(frozen, 1, w.n_frozen);
        else
            st = pl_fail(err, PL_E_NOMEM, "no memory for embedding and head");
    }
    if (st == PL_OK)
        st = measure(b, &x, &w, err);
    free(frozen);
    bench_spot_close(&x);
    cli_model_close(&m);
    return st;
}
