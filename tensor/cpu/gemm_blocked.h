/* tensor/cpu/gemm_blocked.h - the loops around the AVX-512 and AMX products; each gemm_*.c brings
 * its own kernel for a few rows and one panel.
 *
 * Rows are cut into bands and K into chunks, so that a band's rows of a chunk stay in the scratch,
 * in L2, spread as the kernel reads them; each panel of weights is then read from memory once a
 * band, and by all parts of the band while it is in L1 or L2.  Between chunks the accumulators wait
 * in y, which keeps the bits (fp32 both). */
#ifndef PL_TENSOR_CPU_GEMM_BLOCKED_H
#define PL_TENSOR_CPU_GEMM_BLOCKED_H

#include "tensor/cpu/cpu.h"

#include <string.h>

enum {
    BAND_ROWS = 256,        /* rows of a band, at most */
    BAND_BYTES = 512 << 10, /* of the scratch that a band takes: half of a usual L2 */
    AHEAD = 8192,           /* elements of w from what is read to what is prefetched into L2 */
    FEW_ROWS = 16,          /* that finish with a panel sooner than memory brings the next */
    BLOCK_LINES = 32        /* of 64 bytes of weights */
};

/* y[r][0..n-1] (+)= product of the rows and one panel, over n_blocks blocks of 32 k. */
typedef struct gemm_part {
    float *y; /* [rows, ldy] */
    size_t ldy;
    const unsigned char *x; /* [n_blocks][rows][x_bytes] */
    const uint16_t *w;      /* n_blocks * 1024 elements */
    int rows, n, n_blocks;
    int is_first; /* start from zero, not from y */
    /* Two ways to ask for weights into L2 before they are read; a kernel takes one. */
    int ahead;            /* AHEAD the first time that these weights are read, 0 afterwards */
    const uint16_t *next; /* with each block next_lines lines of 64 bytes, from here on */
    int next_lines;       /* 0: nothing */
} gemm_part;

typedef struct gemm_kernel {
    void (*multiply)(const gemm_part *p);
    void (*spread)(unsigned char *dst, const uint16_t *x); /* 32 bf16 of a row -> x_bytes */
    void (*prepare)(int rows);                             /* before parts of so many rows */
    void (*finish)(void);
    int x_bytes;
    int rows_max; /* rows of a part */
} gemm_kernel;

/* The n <= 32 columns of y that exist, to and from a block of 32 (is_first: zeros). */
static inline void load_acc(float (*acc)[32], const gemm_part *p)
{
    for (int r = 0; r < p->rows; r++) {
        const float *row = p->y + (size_t)r * p->ldy;
        if (p->is_first)
            memset(acc[r], 0, sizeof acc[r]);
        else if (p->n == 32)
            memcpy(acc[r], row, sizeof acc[r]);
        else {
            memset(acc[r], 0, sizeof acc[r]);
            memcpy(acc[r], row, sizeof *row * (size_t)p->n);
        }
    }
}

static inline void store_acc(float (*acc)[32], const gemm_part *p)
{
    for (int r = 0; r < p->rows; r++) {
        float *row = p->y + (size_t)r * p->ldy;
        if (p->n == 32)
            memcpy(row, acc[r], sizeof acc[r]);
        else
            memcpy(row, acc[r], sizeof *row * (size_t)p->n);
    }
}

/* The rows [row, row + rows) of the chunk at k0 -> [n_blocks][rows][x_bytes]. */
static inline void spread_rows(const gemm_kernel *kernel, unsigned char *dst, const pl_gemm *g,
    int row, int rows, int k0, int n_blocks)
{
    for (int b = 0; b < n_blocks; b++)
        for (int r = 0; r < rows; r++) {
            kernel->spread(dst, g->x + (size_t)(row + r) * g->ldx + (size_t)(k0 + 32 * b));
            dst += kernel->x_bytes;
        }
}

/* A part's share of the next panel, so that memory works while all parts of this one compute; with
 * few rows what comes AHEAD. */
static inline const uint16_t *next_of(
    const pl_gemm *g, const uint16_t *w, int i, int n_rows, int n_blocks, int lines)
{
    if (n_rows <= FEW_ROWS)
        return w + AHEAD;
    return w + 32 * (size_t)g->k + 32 * (size_t)i * (size_t)n_blocks * (size_t)lines;
}

/* One band of rows, one chunk of K, all panels. */
static inline void multiply_band(
    const gemm_kernel *kernel, const pl_gemm *g, int row0, int n_rows, int k0, int n_blocks)
{
    const int n_parts = (n_rows + kernel->rows_max - 1) / kernel->rows_max;
    unsigned char *spread = g->scratch;
    const size_t row_bytes = (size_t)n_blocks * (size_t)kernel->x_bytes;
    for (int i = 0; i < n_parts; i++) {
        const int r = n_rows * i / n_parts;
        spread_rows(kernel, spread + (size_t)r * row_bytes, g, row0 + r,
            n_rows * (i + 1) / n_parts - r, k0, n_blocks);
    }
    /* A few blocks of keys are not a stream of weights: what follows them is not read next. */
    const int is_stream =
        (size_t)(g->panel_end - g->panel_begin) * (size_t)n_blocks * 1024 >= 4 * (size_t)AHEAD;
    const int lines = (BLOCK_LINES + n_parts - 1) / n_parts;
    int prepared = 0;
    for (int p = g->panel_begin; p < g->panel_end; p++)
        for (int i = 0; i < n_parts; i++) {
            const int r = n_rows * i / n_parts;
            const uint16_t *w = g->w + 32 * ((size_t)p * (size_t)g->k + (size_t)k0);
            const gemm_part part = {
                .y = g->y + (size_t)(row0 + r) * g->ldy + 32 * (size_t)p,
                .ldy = g->ldy,
                .x = spread + (size_t)r * row_bytes,
                .w = w,
                .rows = n_rows * (i + 1) / n_parts - r,
                .n = g->n - 32 * p < 32 ? g->n - 32 * p : 32,
                .n_blocks = n_blocks,
                .is_first = !g->accumulate && k0 == 0,
                .ahead = i == 0 && is_stream ? AHEAD : 0,
                .next = next_of(g, w, i, n_rows, n_blocks, lines),
                .next_lines = is_stream ? lines : 0,
            };
            if (kernel->prepare && part.rows != prepared)
                kernel->prepare(part.rows);
            prepared = part.rows;
            kernel->multiply(&part);
        }
    if (kernel->finish && prepared)
        kernel->finish();
}

static inline void gemm_blocked(const gemm_kernel *kernel, const pl_gemm *g)
{
    const int most = BAND_ROWS / kernel->rows_max * kernel->rows_max;
    const int band = g->m < most ? g->m : most;
    if (band <= 0)
        return;
    const int chunk = BAND_BYTES / (band * kernel->x_bytes); /* blocks of 32 k */
    for (int b = 0; b < g->k / 32; b += chunk) {
        const int n_blocks = g->k / 32 - b < chunk ? g->k / 32 - b : chunk;
        for (int row = 0; row < g->m; row += band)
            multiply_band(kernel, g, row, g->m - row < band ? g->m - row : band, 32 * b, n_blocks);
    }
}

#endif
