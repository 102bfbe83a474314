/* bench/kernels/gemm.c - speed of the canonical product on this machine, beside its two limits.
 *
 *   kernels_gemm [backend] [threads]
 *
 * "pass" is all products of one forward pass of a SmolLM2-135M shape over m rows, weights in one
 * arena in execution order (269 MB of bf16: streamed from memory each time), panels split over the
 * team; "read" is a plain read of the same arena by the same threads, the limit at m = 1.  Rounds
 * of read and pass alternate, since the speed of a shared machine moves.  "shape" is one product at
 * a time, by one thread, as training asks for it: the limit is arithmetic. */
#include "core/arena.h"
#include "core/cpu.h"
#include "core/threads.h"
#include "tensor/tensor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LAYERS = 30, ROUNDS = 7, M_MAX = 2048, WIDEST = 49152 };

typedef struct shape {
    int n, k;
} shape;

static const shape layer_shapes[] = {{960, 576}, {576, 576}, {1536, 576}, {1536, 576}, {576, 1536}};
enum { PER_LAYER = sizeof layer_shapes / sizeof *layer_shapes };
static const shape head_shape = {49152, 576};

typedef struct bench {
    const pl_ops *ops;
    pl_team *team;
    pl_arena arena;
    uint16_t *weights;
    size_t n_weights;
    uint16_t *x; /* [M_MAX, 1536] or [128, 49152] */
    float *y;
    unsigned char *scratch; /* PL_GEMM_SCRATCH a thread */
    int m;
    uint64_t checksum;
} bench;

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, by_value);
    return v[n / 2];
}

/* One product, this thread's share of the panels; returns the weights behind it. */
static const uint16_t *multiply(
    const bench *b, shape s, const uint16_t *w, int i_thread, int n_threads)
{
    pl_gemm g = {.x = b->x,
        .ldx = (size_t)s.k,
        .w = w,
        .y = b->y,
        .ldy = (size_t)s.n,
        .m = b->m,
        .n = s.n,
        .k = s.k,
        .scratch = b->scratch + (size_t)i_thread * PL_GEMM_SCRATCH};
    pl_share(s.n / 32, 1, i_thread, n_threads, &g.panel_begin, &g.panel_end);
    b->ops->gemm(&g);
    return w + pl_packed_elements(s.n, s.k);
}

static void forward_pass(void *ctx, int i_thread, int n_threads)
{
    const bench *b = ctx;
    const uint16_t *w = b->weights;
    for (int l = 0; l < LAYERS; l++)
        for (int i = 0; i < PER_LAYER; i++) {
            w = multiply(b, layer_shapes[i], w, i_thread, n_threads);
            pl_team_barrier(b->team);
        }
    multiply(b, head_shape, w, i_thread, n_threads);
}

/* Read the arena in pieces of the same size as the products' shares. */
static void read_pass(void *ctx, int i_thread, int n_threads)
{
    bench *b = ctx;
    const uint64_t *words = (const uint64_t *)(const void *)b->weights;
    const size_t n = b->n_weights / 4 / 64 * 64;
    const size_t begin = n / (size_t)n_threads * (size_t)i_thread / 8 * 8;
    const size_t end = n / (size_t)n_threads * (size_t)(i_thread + 1) / 8 * 8;
    uint64_t sum[8] = {0};
    for (size_t i = begin; i < end; i += 8)
        for (int j = 0; j < 8; j++)
            sum[j] ^= words[i + (size_t)j];
    for (int j = 1; j < 8; j++)
        sum[0] ^= sum[j];
    __atomic_fetch_xor(&b->checksum, sum[0], __ATOMIC_RELAXED);
}

static double time_of(bench *b, pl_team_fn fn)
{
    const double t = now_s();
    pl_team_run(b->team, fn, b);
    return now_s() - t;
}

static void bench_passes(bench *b)
{
    static const int rows[] = {1, 2, 4, 6, 8, 12, 16, 24, 32, 64};
    enum { N = sizeof rows / sizeof *rows };
    double reads[ROUNDS], passes[N][ROUNDS];
    for (int round = 0; round < ROUNDS; round++) {
        reads[round] = time_of(b, read_pass);
        for (int i = 0; i < N; i++) {
            b->m = rows[i];
            passes[i][round] = time_of(b, forward_pass);
        }
    }
    const double bytes = 2.0 * (double)b->n_weights;
    const double read_s = median(reads, ROUNDS);
    printf("read  %6.2f ms  %5.1f GB/s\n", 1e3 * read_s, 1e-9 * bytes / read_s);
    const double one_s = median(passes[0], ROUNDS);
    for (int i = 0; i < N; i++) {
        const double s = median(passes[i], ROUNDS);
        printf("pass  m %3d  %7.2f ms  %5.1f GB/s  %3.0f %% of read  %6.0f GFLOP/s  x%.2f of m=1\n",
            rows[i], 1e3 * s, 1e-9 * bytes / s, 100 * read_s / s, 1e-9 * bytes * rows[i] / s,
            s / one_s);
    }
}

static void bench_shape(bench *b, int m, int n, int k, int accumulate)
{
    double s[5];
    const pl_gemm g = {.x = b->x,
        .ldx = (size_t)k,
        .w = b->weights,
        .y = b->y,
        .ldy = (size_t)n,
        .m = m,
        .n = n,
        .k = k,
        .accumulate = accumulate,
        .panel_end = n / 32,
        .scratch = b->scratch};
    for (int i = 0; i < 5; i++) {
        const double t = now_s();
        b->ops->gemm(&g);
        s[i] = now_s() - t;
    }
    const double t = median(s, 5);
    printf("shape m %4d n %5d k %5d%s  %8.2f ms  %6.0f GFLOP/s\n", m, n, k,
        accumulate ? " +=" : "   ", 1e3 * t, 2e-9 * m * n * k / t);
}

/* Carve and fill the arena.  Returns 0 when there is no memory. */
static int set_up(bench *b, int n_threads, pl_error *err)
{
    b->n_weights = pl_packed_elements(head_shape.n, head_shape.k);
    for (int i = 0; i < PER_LAYER; i++)
        b->n_weights += LAYERS * pl_packed_elements(layer_shapes[i].n, layer_shapes[i].k);
    const size_t n_x = (size_t)128 * WIDEST, n_y = (size_t)M_MAX * 4096;
    if (pl_arena_init(&b->arena,
            2 * (b->n_weights + n_x) + 4 * n_y + (size_t)n_threads * PL_GEMM_SCRATCH + 4096,
            "bench", err) != PL_OK)
        return 0;
    b->weights = pl_arena_alloc(&b->arena, 2 * b->n_weights);
    b->x = pl_arena_alloc(&b->arena, 2 * n_x);
    b->y = pl_arena_alloc(&b->arena, 4 * n_y);
    b->scratch = pl_arena_alloc(&b->arena, (size_t)n_threads * PL_GEMM_SCRATCH);
    for (size_t i = 0; i < b->n_weights; i++)
        b->weights[i] = (uint16_t)(0x3c00u + (i * 2654435761u >> 20 & 0x81ffu));
    for (size_t i = 0; i < n_x; i++)
        b->x[i] = (uint16_t)(0x3c00u + (i * 2246822519u >> 20 & 0x81ffu));
    memset(b->y, 0, 4 * n_y);
    return 1;
}

int main(int argc, char **argv)
{
    pl_error err = {0};
    char note[256];
    pl_cpu cpu;
    bench b = {0};
    const int isa = pl_isa_parse(argc > 1 ? argv[1] : "auto");
    const int n_threads = argc > 2 ? atoi(argv[2]) : 1;
    pl_cpu_read(&cpu);
    if (isa < 0 || n_threads < 1 ||
        pl_ops_select(&b.ops, (pl_isa)isa, &cpu, note, sizeof note, &err) != PL_OK ||
        pl_team_new(&b.team, n_threads, 1, &err) != PL_OK || !set_up(&b, n_threads, &err)) {
        fprintf(stderr, "kernels_gemm [auto|amx|avx512|avx2|ref] [threads]: %s\n", err.msg);
        return 64;
    }
    printf("%s, backend %s, %d threads%s%s\n", cpu.name, b.ops->name, n_threads,
        note[0] ? ", " : "", note);
    bench_passes(&b);
    bench_shape(&b, 256, 1536, 576, 0);
    bench_shape(&b, 256, 576, 1536, 0);
    bench_shape(&b, 2048, 1536, 576, 0);
    bench_shape(&b, 2048, 576, 1536, 0);
    bench_shape(&b, 1536, 576, 2048, 1);
    bench_shape(&b, 128, 49152, 576, 0);
    bench_shape(&b, 128, 576, 49152, 0);
    pl_team_free(b.team);
    pl_arena_done(&b.arena);
    return 0;
}
