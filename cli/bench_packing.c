/* cli/bench_packing.c - paceline bench packing: training the drafter on packed samples, against the
 * same samples padded.
 *
 * A batch is eight responses.  Padded, each takes the rows of the batch's longest one, as a trainer
 * with a rectangular batch computes it; packed, each takes its own, side by side, with attention
 * and positions that end at its border.  Both are one step of the same trainer over the same
 * predictions: loss and update are those of the samples alone.  The two alternate, batch by batch,
 * and the ratio is that of the sums of their times over all batches, which hold every length of the
 * mix once.  A third figure cuts the samples into windows as the spot trainer does.
 *
 * Content is noise: the time does not depend on it. */
#include "cli/bench.h"
#include "cli/drafter.h"
#include "core/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    BATCH = 8,
    LIMIT = 768, /* tokens of a response, as in the bench of the arms */
    WINDOW = 256,
    CUTS = LIMIT / WINDOW, /* windows that a response is cut into, at most */
    DRAFT_VOCAB = 8192,
    MAX_LENGTHS = 4096
};

/* Lengths like those of SmolLM2-135M-Instruct at T = 1: of sums (mean 196, median 75, a tenth at
 * the limit) and of stories (mean 448, median 424). */
static const int built_in[] = {7, 10, 14, 18, 23, 28, 33, 38, 43, 48, 53, 58, 63, 67, 71, 74, 76,
    80, 88, 100, 120, 148, 180, 230, 300, 380, 460, 560, 600, 768, 768, 768, /* stories */
    95, 135, 170, 200, 225, 250, 273, 295, 315, 333, 351, 367, 383, 399, 412, 422, 426, 438, 453,
    472, 492, 515, 540, 568, 600, 640, 682, 728, 760, 768, 768, 768};
enum { N_BUILT_IN = sizeof built_in / sizeof *built_in };

typedef enum way { PADDED, PACKED, CUT, N_WAYS } way;

typedef struct packing {
    cli_model m;
    pl_eagle *eagle;
    pl_eagle_trainer *whole, *cut; /* windows of LIMIT and of WINDOW */
    int n_lengths, limit;
    int lengths[MAX_LENGTHS];
    /* one sample of noise, which all share */
    int32_t tokens[LIMIT];
    uint8_t is_target[LIMIT + 1], is_real[BATCH][LIMIT];
    uint16_t *features, *hidden;
    pl_eagle_window windows[BATCH * CUTS];
} packing;

static pl_status make_noise(packing *p, pl_error *err)
{
    const pl_arch *a = pl_model_arch(p->m.model);
    const size_t cp = (size_t)pl_pad32(a->n_embd), n = LIMIT * PL_FEATURE_LAYERS * cp;
    const uint32_t key[2] = {7, 0};
    uint32_t word[4] = {0};

    p->features = calloc(n, sizeof *p->features);
    p->hidden = calloc(LIMIT * cp, sizeof *p->hidden);
    if (!p->features || !p->hidden)
        return pl_fail(err, PL_E_NOMEM, "bench packing: no memory for %d positions", LIMIT);
    for (size_t i = 0; i < n; i++) {
        const uint32_t counter[4] = {(uint32_t)(i / 4), 0, 0, PL_NOISE_INIT};
        if (i % 4 == 0)
            pl_philox4x32(counter, key, word);
        if (i % cp >= (size_t)a->n_embd)
            continue;
        p->features[i] = pl_f32_to_bf16((float)(word[i % 4] >> 8) * 0x1p-23f - 1.0f);
        if (i < LIMIT * cp)
            p->hidden[i] = p->features[i];
    }
    for (int i = 0; i < LIMIT; i++)
        p->tokens[i] = (int32_t)(((int64_t)i * 104729 + 3) % a->n_vocab);
    memset(p->is_target, 1, sizeof p->is_target);
    return PL_OK;
}

static pl_status make_drafter(packing *p, pl_error *err)
{
    const int n_vocab = pl_model_arch(p->m.model)->n_vocab;
    const int n = n_vocab < DRAFT_VOCAB ? n_vocab : DRAFT_VOCAB;
    pl_eagle_train_options o;
    int32_t *vocab = malloc((size_t)n * sizeof *vocab);

    if (!vocab)
        return pl_fail(err, PL_E_NOMEM, "bench packing: no memory for %d ids", n);
    for (int i = 0; i < n; i++)
        vocab[i] = (int32_t)((int64_t)i * n_vocab / n);
    const pl_eagle_options e = {.n_vocab = n, .vocab = vocab, .seed = 1};
    pl_status st = pl_eagle_new(&p->eagle, p->m.model, &e, err);
    free(vocab);
    pl_eagle_train_defaults(&o);
    o.window = p->limit;
    o.max_windows = BATCH;
    if (st == PL_OK)
        st = pl_eagle_trainer_new(&p->whole, p->eagle, &o, err);
    o.window = p->limit < WINDOW ? p->limit : WINDOW;
    o.max_windows = BATCH * CUTS;
    return st == PL_OK ? pl_eagle_trainer_new(&p->cut, p->eagle, &o, err) : st;
}

/* Lengths of recorded responses, or the built-in mix. */
static pl_status read_lengths(packing *p, const bench *b, pl_error *err)
{
    const pl_arch *a = pl_model_arch(p->m.model);
    drafter_data d = {0};
    pl_status st = PL_OK;

    if (b->rollouts)
        st = drafter_data_read(&d, b->rollouts, a, a->n_ctx, DRAFTER_HOLD_ALL, err);
    const int n = b->rollouts ? d.n : N_BUILT_IN;
    for (int i = 0; i < n && p->n_lengths < MAX_LENGTHS && st == PL_OK; i++) {
        const int length = b->rollouts ? d.samples[i].n - d.samples[i].n_prompt : built_in[i];
        if (length >= 4) /* less holds no prediction at the last depth */
            p->lengths[p->n_lengths++] = length < p->limit ? length : p->limit;
    }
    drafter_data_done(&d);
    if (st == PL_OK && p->n_lengths < BATCH)
        return pl_fail(err, PL_E_USAGE, "bench packing: %d responses in '%s'; a batch is %d",
            p->n_lengths, b->rollouts, BATCH);
    return st;
}

/* An order that does not depend on how the records lie. */
static void shuffle(packing *p)
{
    const uint32_t key[2] = {11, 0};

    for (int i = p->n_lengths - 1; i > 0; i--) {
        const uint32_t counter[4] = {(uint32_t)i, 0, 0, PL_NOISE_INIT};
        uint32_t word[4];
        pl_philox4x32(counter, key, word);
        const int j = (int)(word[0] % (uint32_t)(i + 1)), kept = p->lengths[i];
        p->lengths[i] = p->lengths[j];
        p->lengths[j] = kept;
    }
}

static pl_eagle_window window_of(const packing *p, int begin, int n)
{
    const size_t cp = (size_t)pl_pad32(pl_model_arch(p->m.model)->n_embd);
    return (pl_eagle_window){.tokens = p->tokens + begin,
        .features = p->features + (size_t)begin * PL_FEATURE_LAYERS * cp,
        .hidden = p->hidden + (size_t)begin * cp,
        .is_target = p->is_target,
        .n = n,
        .position = begin,
        .temperature = 1};
}

static int lay_out(packing *p, way how, const int *lengths)
{
    int n = 0, longest = 0;

    for (int i = 0; i < BATCH; i++)
        longest = lengths[i] > longest ? lengths[i] : longest;
    for (int i = 0; i < BATCH && how != CUT; i++) {
        p->windows[n++] = window_of(p, 0, how == PADDED ? longest : lengths[i]);
        if (how == PADDED) {
            memset(p->is_real[i], 0, LIMIT);
            memset(p->is_real[i], 1, (size_t)lengths[i]);
            p->windows[n - 1].is_target = p->is_real[i];
        }
    }
    for (int i = 0; i < BATCH && how == CUT; i++)
        for (int at = 0; at < lengths[i]; at += WINDOW) {
            const int left = lengths[i] - at < WINDOW ? lengths[i] - at : WINDOW;
            if (left >= 2)
                p->windows[n++] = window_of(p, at, left);
        }
    return n;
}

static pl_status time_batch(
    packing *p, way how, const int *lengths, double *seconds, int64_t *counted, pl_error *err)
{
    const int n = lay_out(p, how, lengths);
    pl_eagle_step_stats s;
    const double t0 = bench_now();
    const pl_status st =
        pl_eagle_train_step(how == CUT ? p->cut : p->whole, p->windows, n, NULL, NULL, &s, err);

    *seconds += bench_now() - t0;
    *counted += st == PL_OK ? s.n_tokens : 0;
    return st;
}

static pl_status report(
    bench *b, const packing *p, int rounds, const double *seconds, pl_error *err)
{
    static const char *const names[] = {"padded", "packed", "packed,window=256"};
    const double samples = (double)rounds * BATCH;
    pl_status st = PL_OK;
    double sum = 0;

    for (int i = 0; i < rounds * BATCH; i++)
        sum += p->lengths[i % p->n_lengths];
    fprintf(b->notes, "%d batches of %d %s responses, mean length %.0f, limit %d\n", rounds, BATCH,
        b->rollouts ? "recorded" : "built-in", sum / samples, p->limit);
    for (int how = 0; how < N_WAYS && st == PL_OK; how++) {
        bench_figure f = {.value = samples / seconds[how],
            .unit = "samples/s",
            .ratio = how == PADDED ? NAN : seconds[PADDED] / seconds[how],
            .ratio_to = how == PADDED ? NULL : "padded"};
        snprintf(f.name, sizeof f.name, "%s,threads=%d", names[how], b->n_threads);
        st = bench_report(b, &f, err);
    }
    return st;
}

static pl_status run_rounds(bench *b, packing *p, pl_error *err)
{
    const int rounds = bench_rounds(b, p->n_lengths / BATCH < 16 ? p->n_lengths / BATCH : 16);
    double seconds[N_WAYS] = {0}, unused[N_WAYS] = {0};
    int64_t counted[N_WAYS] = {0}, ignored = 0;
    pl_status st = PL_OK;

    for (int i = 0; i < rounds && st == PL_OK; i++) {
        int lengths[BATCH];
        for (int j = 0; j < BATCH; j++)
            lengths[j] = p->lengths[(i * BATCH + j) % p->n_lengths];
        for (int k = 0; k < N_WAYS && i == 0 && st == PL_OK; k++) /* fresh memory is not timed */
            st = time_batch(p, (way)k, lengths, &unused[k], &ignored, err);
        for (int k = 0; k < N_WAYS && st == PL_OK; k++) {
            const way how = (way)((k + i) % N_WAYS);
            st = time_batch(p, how, lengths, &seconds[how], &counted[how], err);
        }
    }
    if (st == PL_OK && counted[PADDED] != counted[PACKED])
        return pl_fail(err, PL_E_NUMERIC, "bench packing: %lld predictions padded, %lld packed",
            (long long)counted[PADDED], (long long)counted[PACKED]);
    return st == PL_OK ? report(b, p, rounds, seconds, err) : st;
}

pl_status bench_packing(bench *b, pl_error *err)
{
    packing *p = calloc(1, sizeof *p);

    if (!p)
        return pl_fail(err, PL_E_NOMEM, "bench packing: no memory");
    pl_status st = bench_open(b, &p->m, 0, err);
    if (st == PL_OK) {
        const int room = pl_model_arch(p->m.model)->n_ctx / 32 * 32 - 32;
        p->limit = room < LIMIT ? room : LIMIT;
        st = read_lengths(p, b, err);
    }
    if (st == PL_OK) {
        shuffle(p);
        st = make_noise(p, err);
    }
    if (st == PL_OK)
        st = make_drafter(p, err);
    if (st == PL_OK)
        st = run_rounds(b, p, err);
    pl_eagle_trainer_free(p->whole);
    pl_eagle_trainer_free(p->cut);
    pl_eagle_free(p->eagle);
    free(p->features);
    free(p->hidden);
    cli_model_close(&p->m);
    free(p);
    return st;
}
