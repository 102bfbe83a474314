/* tensor/cpu/gemm_amx.c - the canonical product by AMX tiles.
 *
 * One TDPBF16PS is one block of 32 k: the accumulator tile gets e + o added (NUMERICS 1), so the
 * loop over K is one instruction a tile and block.  A part is one or two tiles of rows against the
 * two tiles of a panel; tiles 0-3 accumulate, 4-5 hold rows of x, 6-7 the weights.  Fewer rows than
 * 16 are a matter of the tile configuration, which changes only when the number of rows does.
 *
 * tests/tensor/test_gemm_amx.c runs this file on any CPU, over tiles in software. */
#include "tensor/cpu/amx_tile.h"
#include "tensor/cpu/gemm_blocked.h"

enum {
    TILE_ROWS = 16,
    X_BYTES = 64, /* of a row's block of 32 k: bf16 as it is */
    TILE = 512    /* elements of a tile of weights */
};

/* Rows of the first tile when a part has so many. */
static int first_rows(int rows)
{
    return rows <= TILE_ROWS ? rows : (rows + 1) / 2;
}

static void prepare(int rows)
{
    const int first = first_rows(rows);
    tile_shapes shapes = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        const int is_second = t == 2 || t == 3 || t == 5;
        const int n = t >= 6 ? TILE_ROWS : is_second ? rows - first : first;
        if (n == 0)
            continue; /* not configured: 0 rows of 0 bytes */
        shapes.rows[t] = (uint8_t)n;
        shapes.row_bytes[t] = 64;
    }
    tile_configure(&shapes);
}

static void finish(void)
{
    tile_release();
}

static void spread(unsigned char *dst, const uint16_t *x)
{
    memcpy(dst, x, X_BYTES);
}

static inline void prefetch(const uint16_t *w, int lines)
{
    for (int line = 0; line < lines; line++)
        __builtin_prefetch(w + 32 * line, 0, 2); /* into L2 */
}

/* Up to 16 rows: 1 x 2 tiles.  y has 32 columns. */
static void multiply_one(const gemm_part *p)
{
    const size_t stride = sizeof *p->y * p->ldy;
    const unsigned char *x = p->x;
    const uint16_t *w = p->w, *next = p->next;
    if (p->is_first) {
        tile_zero(0);
        tile_zero(1);
    } else {
        tile_load(0, p->y, stride);
        tile_load(1, p->y + 16, stride);
    }
    for (int b = 0; b < p->n_blocks; b++) {
        prefetch(next, p->next_lines);
        next += 32 * p->next_lines;
        tile_load(4, x, X_BYTES);
        tile_load(6, w, 64);
        tile_dot(0, 4, 6);
        tile_load(7, w + TILE, 64);
        tile_dot(1, 4, 7);
        x += p->rows * X_BYTES;
        w += 2 * TILE;
    }
    tile_store(0, p->y, stride);
    tile_store(1, p->y + 16, stride);
}

/* 17 to 32 rows: 2 x 2 tiles. */
static void multiply_two(const gemm_part *p)
{
    const size_t stride = sizeof *p->y * p->ldy;
    const int first = first_rows(p->rows);
    float *lower = p->y + (size_t)first * p->ldy;
    const unsigned char *x = p->x;
    const uint16_t *w = p->w, *next = p->next;
    if (p->is_first) {
        tile_zero(0);
        tile_zero(1);
        tile_zero(2);
        tile_zero(3);
    } else {
        tile_load(0, p->y, stride);
        tile_load(1, p->y + 16, stride);
        tile_load(2, lower, stride);
        tile_load(3, lower + 16, stride);
    }
    for (int b = 0; b < p->n_blocks; b++) {
        prefetch(next, p->next_lines);
        next += 32 * p->next_lines;
        tile_load(4, x, X_BYTES);
        tile_load(6, w, 64);
        tile_dot(0, 4, 6);
        tile_load(7, w + TILE, 64);
        tile_dot(1, 4, 7);
        tile_load(5, x + first * X_BYTES, X_BYTES);
        tile_dot(2, 5, 6);
        tile_dot(3, 5, 7);
        x += p->rows * X_BYTES;
        w += 2 * TILE;
    }
    tile_store(0, p->y, stride);
    tile_store(1, p->y + 16, stride);
    tile_store(2, lower, stride);
    tile_store(3, lower + 16, stride);
}

static void multiply_panel(const gemm_part *p)
{
    if (p->rows <= TILE_ROWS)
        multiply_one(p);
    else
        multiply_two(p);
}

/* A last panel with fewer than 32 outputs goes through a block of its own: tiles are whole. */
static void multiply(const gemm_part *p)
{
    if (p->n == 32) {
        multiply_panel(p);
        return;
    }
    float acc[2 * TILE_ROWS][32] __attribute__((aligned(64)));
    gemm_part whole = *p;
    load_acc(acc, p);
    whole.y = acc[0];
    whole.ldy = 32;
    whole.is_first = 0;
    multiply_panel(&whole);
    store_acc(acc, p);
}

void gemm_amx(const pl_gemm *g)
{
    static const gemm_kernel kernel = {.multiply = multiply,
        .spread = spread,
        .prepare = prepare,
        .finish = finish,
        .x_bytes = X_BYTES,
        .rows_max = 2 * TILE_ROWS};
    gemm_blocked(&kernel, g);
}
