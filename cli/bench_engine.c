/* cli/bench_engine.c - paceline bench decode, verify, prefill, train: passes of the model.
 *
 * Only the passes are timed: no drawing, no scheduling.  The reference alternates with them. */
#include "cli/bench.h"
#include "core/arena.h"
#include "model/train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    CONTEXT = 512,
    TREE_MAX = 32,
    TREE_DEPTH = 6,
    PREFILL_ROWS = 512,
    TRAIN_TOKENS = 2048,
    SHARED_REPEATS = 3 /* timed passes of one thing before its reference has its turn */
};

/* ---- sequences that have a context ---- */

void bench_bed_close(bench_bed *e)
{
    for (int i = 0; i < e->n_seqs; i++)
        pl_kv_seq_done(e->pool, &e->seqs[i]);
    pl_pass_free(e->pass);
    pl_kv_pool_free(e->pool);
    free(e->tokens);
    cli_model_close(&e->m);
}

/* Some token, different for neighbours in either index: what it is does not matter to the time. */
static int32_t some_token(const bench_bed *e, int i, int j)
{
    return (int32_t)(((int64_t)i * 7919 + (int64_t)j * 104729 + 3) %
                     pl_model_arch(e->m.model)->n_vocab);
}

pl_status bench_bed_fill(bench_bed *e, int i, pl_error *err)
{
    const pl_segment s = {
        .kv = &e->seqs[i], .tokens = e->tokens, .n_rows = e->context, .n_logits = 1};

    for (int j = 0; j < e->context; j++)
        e->tokens[j] = some_token(e, i, j);
    const pl_status st = pl_kv_reserve(e->pool, &e->seqs[i], e->context, err);
    return st == PL_OK ? pl_pass_run(e->pass, e->pool, &s, 1, err) : st;
}

pl_status bench_bed_open(bench_bed *e, bench *b, int n_seqs, int context, int tree, pl_error *err)
{
    memset(e, 0, sizeof *e);
    pl_status st = bench_open(b, &e->m, 0, err);
    if (st != PL_OK)
        return st;
    const pl_arch *a = pl_model_arch(e->m.model);
    e->context = a->n_ctx - TREE_MAX < context ? a->n_ctx - TREE_MAX : context;
    const int most = e->context + TREE_MAX, pages = (most + PL_BLOCK - 1) / PL_BLOCK;
    const pl_pass_options o = {.max_rows = e->context,
        .max_logits = TREE_MAX,
        .max_segments = n_seqs,
        .max_ctx = most,
        .tree = tree};
    if (e->context < TREE_MAX)
        return pl_fail(err, PL_E_SHAPE, "model '%s': a context of %d is too short to measure with",
            b->model, a->n_ctx);
    e->tokens = malloc((size_t)e->context * sizeof *e->tokens);
    if (!e->tokens)
        return pl_fail(err, PL_E_NOMEM, "bench: no memory for %d tokens", e->context);
    st = pl_kv_pool_new(&e->pool, a, n_seqs * pages, err);
    if (st == PL_OK)
        st = pl_pass_new(&e->pass, e->m.model, &o, err);
    for (; st == PL_OK && e->n_seqs < n_seqs; e->n_seqs += st == PL_OK)
        st = pl_kv_seq_init(&e->seqs[e->n_seqs], most, err);
    return st;
}

/* ---- decode ---- */

/* What the reference reads: a buffer of its own of the same size and with the same advice to use
 * huge pages as the weights, since those belong to the model. */
typedef struct stream {
    const uint64_t *words;
    size_t n; /* words to read */
    uint64_t sum;
} stream;

static void read_share(void *ctx, int i_thread, int n_threads)
{
    enum { LANES = 32 };
    stream *s = ctx;
    uint64_t sum[LANES] = {0};
    int begin, end; /* in pages of 512 words */

    pl_share((int)(s->n / 512), 1, i_thread, n_threads, &begin, &end);
    const uint64_t *w = s->words + (size_t)begin * 512, *stop = s->words + (size_t)end * 512;
    for (; w < stop; w += LANES)
        for (int i = 0; i < LANES; i++)
            sum[i] += w[i];
    for (int i = 1; i < LANES; i++)
        sum[0] += sum[i];
    __atomic_fetch_add(&s->sum, sum[0], __ATOMIC_RELAXED);
}

pl_status bench_bed_decode(bench_bed *e, int batch, double *seconds, pl_error *err)
{
    pl_segment segs[BENCH_SEQS_MAX];
    int32_t tokens[BENCH_SEQS_MAX];
    double t0 = 0;

    for (int i = 0; i < batch; i++) {
        tokens[i] = some_token(e, i, e->context);
        segs[i] = (pl_segment){.kv = &e->seqs[i], .tokens = &tokens[i], .n_rows = 1, .n_logits = 1};
    }
    for (int r = -1; r < SHARED_REPEATS; r++) {
        if (r == 0)
            t0 = bench_now();
        const pl_status st = pl_pass_run(e->pass, e->pool, segs, batch, err);
        if (st != PL_OK)
            return st;
        for (int i = 0; i < batch; i++)
            e->seqs[i].n_tokens = e->context;
    }
    *seconds = (bench_now() - t0) / SHARED_REPEATS;
    return PL_OK;
}

static double time_stream(bench_bed *e, stream *s)
{
    double t0 = 0;
    for (int r = -1; r < SHARED_REPEATS; r++) {
        if (r == 0)
            t0 = bench_now();
        pl_team_run(e->m.team, read_share, s);
    }
    return (bench_now() - t0) / SHARED_REPEATS;
}

/* Bytes of K and V at one position, without the padding of their layout. */
static size_t kv_bytes(const pl_arch *a)
{
    return (size_t)a->n_layers * 2 * (size_t)a->n_kv_heads * (size_t)a->head_dim * sizeof(uint16_t);
}

static pl_status decode_case(
    bench *b, bench_bed *e, const uint64_t *words, int batch, pl_error *err)
{
    const size_t bytes = pl_model_weight_bytes(e->m.model) +
                         (size_t)batch * (size_t)e->context * kv_bytes(pl_model_arch(e->m.model));
    stream s = {.words = words, .n = bytes / 8};
    double step[BENCH_ROUNDS_MAX], ratio[BENCH_ROUNDS_MAX], read[BENCH_ROUNDS_MAX];
    const int rounds = bench_rounds(b, 11);
    bench_figure f = {.unit = "tokens/s", .ratio_to = "read bandwidth"};

    for (int r = 0; r < rounds; r++) {
        const pl_status st = bench_bed_decode(e, batch, &step[r], err);
        if (st != PL_OK)
            return st;
        read[r] = time_stream(e, &s);
        ratio[r] = read[r] / step[r];
    }
    const double step_s = bench_median(step, rounds), read_s = bench_median(read, rounds);
    snprintf(
        f.name, sizeof f.name, "batch=%d,context=%d,threads=%d", batch, e->context, b->n_threads);
    f.value = batch / step_s;
    f.ratio = bench_median(ratio, rounds);
    const pl_status st = bench_report(b, &f, err);
    fprintf(b->notes,
        "    %.1f MB a step: %.2f ms, %.1f GB/s; reading as much: %.2f ms, %.1f GB/s\n",
        (double)bytes / 1e6, step_s * 1e3, (double)bytes / step_s / 1e9, read_s * 1e3,
        (double)bytes / read_s / 1e9);
    return st;
}

pl_status bench_decode(bench *b, pl_error *err)
{
    static const int batches[] = {1, 8, 32};
    bench_bed e;
    pl_arena arena = {0};
    uint64_t *words = NULL;

    pl_status st = bench_bed_open(&e, b, BENCH_SEQS_MAX, CONTEXT, 0, err);
    for (int i = 0; st == PL_OK && i < e.n_seqs; i++) {
        st = bench_bed_fill(&e, i, err);
        if (st == PL_OK)
            st = pl_kv_reserve(e.pool, &e.seqs[i], 1, err);
    }
    if (st == PL_OK) {
        const pl_arch *a = pl_model_arch(e.m.model);
        const size_t most = pl_model_weight_bytes(e.m.model) +
                            (size_t)BENCH_SEQS_MAX * (size_t)e.context * kv_bytes(a) + 4096;
        st = pl_arena_init(&arena, most, "bench decode, the buffer to stream", err);
        if (st == PL_OK) {
            words = pl_arena_alloc(&arena, most);
            memset(words, 1, most); /* pages of its own, not the zero page */
        }
    }
    for (size_t i = 0; st == PL_OK && i < sizeof batches / sizeof *batches; i++)
        st = decode_case(b, &e, words, batches[i], err);
    if (st == PL_OK)
        fprintf(b->notes, "the reference reads a buffer of its own: same size, same page advice\n");
    pl_arena_done(&arena);
    bench_bed_close(&e);
    return st;
}

/* ---- verify ---- */

/* A trunk as deep as allowed, the other rows spread over it as second, third ... children. */
static void make_tree(const bench_bed *e, int n, int32_t *tokens, int16_t *parent)
{
    for (int i = 0; i < n; i++) {
        tokens[i] = some_token(e, i, e->context);
        parent[i] = (int16_t)(i <= TREE_DEPTH ? i - 1 : (i - TREE_DEPTH - 1) % TREE_DEPTH);
    }
}

static pl_status time_tree(bench_bed *e, int n_rows, double *seconds, pl_error *err)
{
    int32_t tokens[TREE_MAX];
    int16_t parent[TREE_MAX];
    const pl_segment s = {.kv = &e->seqs[0],
        .tokens = tokens,
        .parent = parent,
        .n_rows = n_rows,
        .n_logits = n_rows};

    make_tree(e, n_rows, tokens, parent);
    double t0 = bench_now();
    for (int r = -1; r < SHARED_REPEATS; r++) {
        if (r == 0)
            t0 = bench_now();
        const pl_status st = pl_pass_run(e->pass, e->pool, &s, 1, err);
        if (st != PL_OK)
            return st;
    }
    *seconds = (bench_now() - t0) / SHARED_REPEATS;
    return PL_OK;
}

pl_status bench_verify(bench *b, pl_error *err)
{
    static const int rows[] = {1, 2, 4, 8, 16, 32};
    enum { N = sizeof rows / sizeof *rows };
    double t[N][BENCH_ROUNDS_MAX], ratio[N][BENCH_ROUNDS_MAX];
    const int rounds = bench_rounds(b, 21);
    bench_bed e;

    pl_status st = bench_bed_open(&e, b, 1, CONTEXT, 1, err);
    if (st == PL_OK)
        st = bench_bed_fill(&e, 0, err);
    if (st == PL_OK)
        st = pl_kv_reserve(e.pool, &e.seqs[0], TREE_MAX, err);
    for (int r = 0; st == PL_OK && r < rounds; r++)
        for (int i = 0; st == PL_OK && i < N; i++) {
            st = time_tree(&e, rows[i], &t[i][r], err);
            ratio[i][r] = t[i][r] / t[0][r];
        }
    for (int i = 0; st == PL_OK && i < N; i++) {
        bench_figure f = {.value = bench_median(t[i], rounds) * 1e3,
            .unit = "ms",
            .ratio = bench_median(ratio[i], rounds),
            .ratio_to = "one row"};
        snprintf(f.name, sizeof f.name, "rows=%d,context=%d,threads=%d", rows[i], e.context,
            b->n_threads);
        st = bench_report(b, &f, err);
    }
    bench_bed_close(&e);
    return st;
}

/* ---- against oneDNN: prefill and train ---- */

/* After the helper's turn its threads still spin for a moment; they must not share our cores. */
static void let_settle(void)
{
    const struct timespec t = {.tv_nsec = 20000000};
    nanosleep(&t, NULL);
}

/* Alternate `ours` with a round of the helper; report tokens a second. */
static pl_status versus_peer(bench *b, bench_child *peer, int found, int n_tokens, int n_rounds,
    pl_status (*ours)(void *ctx, double *seconds, pl_error *err), void *ctx, bench_figure *f,
    pl_error *err)
{
    double mine[BENCH_ROUNDS_MAX], theirs[BENCH_ROUNDS_MAX], ratio[BENCH_ROUNDS_MAX], warm;
    const int rounds = bench_rounds(b, n_rounds);

    pl_status st = ours(ctx, &warm, err);
    if (st == PL_OK && found)
        st = bench_peer_round(peer, &warm, err);
    for (int r = 0; st == PL_OK && r < rounds; r++) {
        let_settle();
        st = ours(ctx, &mine[r], err);
        if (st == PL_OK && found)
            st = bench_peer_round(peer, &theirs[r], err);
        if (st == PL_OK && found)
            ratio[r] = theirs[r] / mine[r];
    }
    if (st != PL_OK)
        return st;
    f->unit = "tokens/s";
    f->value = n_tokens / bench_median(mine, rounds);
    f->ratio = found ? bench_median(ratio, rounds) : (double)NAN;
    f->ratio_to = "oneDNN GEMMs";
    st = bench_report(b, f, err);
    if (found)
        fprintf(b->notes, "    oneDNN, the products alone: %.4g tokens/s\n",
            n_tokens / bench_median(theirs, rounds));
    return st;
}

static pl_status time_prefill(void *ctx, double *seconds, pl_error *err)
{
    bench_bed *e = ctx;

    pl_kv_seq_clear(e->pool, &e->seqs[0]);
    const double t0 = bench_now();
    const pl_status st = bench_bed_fill(e, 0, err);
    *seconds = bench_now() - t0;
    return st;
}

pl_status bench_prefill(bench *b, pl_error *err)
{
    bench_child peer = {0};
    bench_figure f = {0};
    bench_bed e;
    int found = 0;

    pl_status st = bench_bed_open(&e, b, 1, CONTEXT, 0, err);
    if (st == PL_OK)
        st = bench_peer_open(b, &peer, pl_model_arch(e.m.model), e.context, 1, 0, &found, err);
    if (st == PL_OK) {
        snprintf(f.name, sizeof f.name, "rows=%d,threads=%d", e.context, b->n_threads);
        st = versus_peer(b, &peer, found, e.context, 15, time_prefill, &e, &f, err);
    }
    bench_child_end(&peer);
    bench_bed_close(&e);
    return st;
}

/* ---- train ---- */

typedef struct training {
    cli_model m;
    pl_train *train;
    float *grads;
    size_t n_grads;
    int32_t tokens[TRAIN_TOKENS];
    pl_train_seq seqs[TRAIN_TOKENS / 32];
    int n_seqs, n_tokens;
} training;

/* Every token counts, as when the whole micro-batch is responses. */
static float constant_slope(void *ctx, int i_seq, int i_token, float logprob, float entropy)
{
    (void)ctx, (void)i_seq, (void)i_token, (void)logprob, (void)entropy;
    return -1.0f / TRAIN_TOKENS;
}

/* Sequences of 128 and 256 tokens in turn. */
static void make_sequences(training *t)
{
    const pl_arch *a = pl_model_arch(t->m.model);

    for (int i = 0; i < TRAIN_TOKENS; i++)
        t->tokens[i] = (int32_t)(((int64_t)i * 104729 + 3) % a->n_vocab);
    while (t->n_tokens < TRAIN_TOKENS) {
        int n = t->n_seqs % 2 ? 256 : 128;
        if (n > a->n_ctx)
            n = a->n_ctx / 32 * 32;
        if (n > TRAIN_TOKENS - t->n_tokens)
            n = TRAIN_TOKENS - t->n_tokens;
        t->seqs[t->n_seqs++] = (pl_train_seq){
            .tokens = t->tokens + t->n_tokens, .n_tokens = n, .n_prompt = 1, .temperature = 1.0f};
        t->n_tokens += n;
    }
}

static pl_status training_open(training *t, bench *b, pl_error *err)
{
    const pl_train_options o = {.max_tokens = TRAIN_TOKENS,
        .max_seqs = TRAIN_TOKENS / 32,
        .max_len = 256,
        .keep = 1,
        .want_entropy = 1};

    pl_status st = bench_open(b, &t->m, 1, err);
    if (st != PL_OK)
        return st;
    if (pl_model_arch(t->m.model)->n_ctx < 32)
        return pl_fail(err, PL_E_SHAPE, "model '%s': its context is shorter than 32", b->model);
    make_sequences(t);
    t->n_grads = pl_model_params(t->m.model)->n_elements;
    t->grads = calloc(t->n_grads, sizeof *t->grads);
    if (!t->grads)
        return pl_fail(err, PL_E_NOMEM, "bench train: no memory for gradients");
    return pl_train_new(&t->train, t->m.model, &o, err);
}

static pl_status time_training(void *ctx, double *seconds, pl_error *err)
{
    training *t = ctx;

    const double t0 = bench_now();
    const pl_status st =
        pl_train_step(t->train, t->seqs, t->n_seqs, constant_slope, NULL, t->grads, err);
    *seconds = bench_now() - t0;
    return st;
}

pl_status bench_train(bench *b, pl_error *err)
{
    bench_child peer = {0};
    bench_figure f = {0};
    int found = 0;
    training *t = calloc(1, sizeof *t);

    if (!t)
        return pl_fail(err, PL_E_NOMEM, "bench train: no memory");
    pl_status st = training_open(t, b, err);
    if (st == PL_OK)
        st = bench_peer_open(
            b, &peer, pl_model_arch(t->m.model), t->n_tokens, t->n_tokens, 1, &found, err);
    if (st == PL_OK) {
        snprintf(f.name, sizeof f.name, "tokens=%d,sequences=%d,threads=%d", t->n_tokens, t->n_seqs,
            b->n_threads);
        st = versus_peer(b, &peer, found, t->n_tokens, 5, time_training, t, &f, err);
    }
    bench_child_end(&peer);
    pl_train_free(t->train);
    free(t->grads);
    cli_model_close(&t->m);
    free(t);
    return st;
}
