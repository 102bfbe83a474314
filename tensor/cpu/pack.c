/* tensor/cpu/pack.c - layouts: packed weights, transposes, and rounding to bf16.
 *
 * Plain C, compiled once an ISA (cpu.h).  All inner loops work on 16 x 16 blocks of 32-bit words,
 * one word a pair of neighbours along the inner dimension K: that is a tile of the packed layout,
 * and half a block of a transpose. */
#include "tensor/cpu/cpu.h"

#include <assert.h>
#include <string.h>

enum { TILE = 16 }; /* words along each side: 16 outputs, 16 pairs of K */

typedef uint32_t word_block[TILE][TILE];

static inline uint32_t pair_of(uint16_t lo, uint16_t hi)
{
    return (uint32_t)lo | (uint32_t)hi << 16;
}

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* A block whose words come from two neighbours in a row: src[i][2j], src[i][2j + 1]; what lies
 * outside rows x cols is zero. */
static void load_row_pairs(word_block t, const float *src, size_t ld, int rows, int cols)
{
    float line[2 * TILE];
    for (int i = 0; i < TILE; i++) {
        if (i >= rows) {
            memset(t[i], 0, sizeof t[i]);
            continue;
        }
        const float *row = src + (size_t)i * ld;
        if (cols < 2 * TILE) {
            memset(line, 0, sizeof line);
            memcpy(line, row, sizeof *line * (size_t)cols);
            row = line;
        }
        for (int j = 0; j < TILE; j++)
            t[i][j] = pair_of(pl_f32_to_bf16(row[2 * j]), pl_f32_to_bf16(row[2 * j + 1]));
    }
}

/* A block whose words come from two neighbours in a column: src[2i][j], src[2i + 1][j]. */
static void load_column_pairs(word_block t, const float *src, size_t ld, int rows, int cols)
{
    float line[2][TILE] = {{0}};
    for (int i = 0; i < TILE; i++) {
        const float *row[2];
        for (int h = 0; h < 2; h++) {
            const int n = 2 * i + h < rows ? min_int(cols, TILE) : 0;
            row[h] = src + (size_t)(2 * i + h) * ld;
            if (n < TILE) {
                memset(line[h], 0, sizeof line[h]);
                if (n > 0)
                    memcpy(line[h], row[h], sizeof **line * (size_t)n);
                row[h] = line[h];
            }
        }
        for (int j = 0; j < TILE; j++)
            t[i][j] = pair_of(pl_f32_to_bf16(row[0][j]), pl_f32_to_bf16(row[1][j]));
    }
}

/* Sixteen words of two rows; restrict lets this become two loads, a shift and an or. */
static inline void pair_rows(
    uint32_t *restrict t, const uint16_t *restrict even, const uint16_t *restrict odd)
{
    for (int j = 0; j < TILE; j++)
        t[j] = pair_of(even[j], odd[j]);
}

static void load_column_pairs_bf16(word_block t, const uint16_t *src, size_t ld, int rows, int cols)
{
    uint16_t line[2][TILE] = {{0}};
    if (rows >= 2 * TILE && cols >= TILE) {
        for (int i = 0; i < TILE; i++)
            pair_rows(t[i], src + (size_t)(2 * i) * ld, src + (size_t)(2 * i + 1) * ld);
        return;
    }
    for (int i = 0; i < TILE; i++) {
        for (int h = 0; h < 2; h++) {
            const int n = 2 * i + h < rows ? min_int(cols, TILE) : 0;
            memset(line[h], 0, sizeof line[h]);
            if (n > 0)
                memcpy(line[h], src + (size_t)(2 * i + h) * ld, sizeof **line * (size_t)n);
        }
        pair_rows(t[i], line[0], line[1]);
    }
}

static void flip(word_block out, word_block in)
{
    for (int i = 0; i < TILE; i++)
        for (int j = 0; j < TILE; j++)
            out[i][j] = in[j][i];
}

void PL_FN(pack_nk)(
    uint16_t *dst, const float *src, size_t ld, int n, int k, int panel_begin, int panel_end)
{
    const int k_pad = pl_pad32(k);
    for (int n0 = 32 * panel_begin; n0 < 32 * panel_end; n0 += TILE) {
        const int rows = n0 < n ? n - n0 : 0;
        for (int k0 = 0; k0 < k_pad; k0 += 2 * TILE) {
            word_block in, out;
            load_row_pairs(
                in, src + (rows > 0 ? (size_t)n0 * ld + (size_t)k0 : 0), ld, rows, k - k0);
            flip(out, in);
            memcpy(dst + pl_packed_index(n0, k0, k_pad), out, sizeof out);
        }
    }
}

void PL_FN(pack_kn)(
    uint16_t *dst, const float *src, size_t ld, int n, int k, int panel_begin, int panel_end)
{
    const int k_pad = pl_pad32(k);
    for (int k0 = 0; k0 < k_pad; k0 += 2 * TILE) { /* rows of src: read in order */
        for (int n0 = 32 * panel_begin; n0 < 32 * panel_end; n0 += TILE) {
            word_block out;
            const size_t at = n0 < n ? (size_t)k0 * ld + (size_t)n0 : 0;
            load_column_pairs(out, src + at, ld, n0 < n ? k - k0 : 0, n - n0);
            memcpy(dst + pl_packed_index(n0, k0, k_pad), out, sizeof out);
        }
    }
}

void PL_FN(pack_kn_bf16)(
    uint16_t *dst, const uint16_t *src, size_t ld, int n, int k, int panel_begin, int panel_end)
{
    const int k_pad = pl_pad32(k);
    for (int k0 = 0; k0 < k_pad; k0 += 2 * TILE) { /* rows of src: read in order */
        for (int n0 = 32 * panel_begin; n0 < 32 * panel_end; n0 += TILE) {
            word_block out;
            const size_t at = n0 < n ? (size_t)k0 * ld + (size_t)n0 : 0;
            load_column_pairs_bf16(out, src + at, ld, n0 < n ? k - k0 : 0, n - n0);
            memcpy(dst + pl_packed_index(n0, k0, k_pad), out, sizeof out);
        }
    }
}

void PL_FN(transpose)(
    uint16_t *dst, size_t ldd, const float *src, size_t lds, int rows, int col_begin, int col_end)
{
    for (int r = 0; r < pl_pad32(rows); r += 2 * TILE) {
        for (int c = col_begin; c < col_end; c += TILE) {
            word_block in, out;
            load_column_pairs(in, src + (size_t)r * lds + (size_t)c, lds, rows - r, col_end - c);
            flip(out, in);
            for (int i = 0; i < min_int(TILE, col_end - c); i++)
                memcpy(dst + (size_t)(c + i) * ldd + (size_t)r, out[i], sizeof out[i]);
        }
    }
}

void PL_FN(transpose_bf16)(uint16_t *dst, size_t ldd, const uint16_t *src, size_t lds, int rows,
    int col_begin, int col_end)
{
    for (int r = 0; r < pl_pad32(rows); r += 2 * TILE) {
        for (int c = col_begin; c < col_end; c += TILE) {
            word_block in, out;
            load_column_pairs_bf16(
                in, src + (size_t)r * lds + (size_t)c, lds, rows - r, col_end - c);
            flip(out, in);
            for (int i = 0; i < min_int(TILE, col_end - c); i++)
                memcpy(dst + (size_t)(c + i) * ldd + (size_t)r, out[i], sizeof out[i]);
        }
    }
}

void PL_FN(round_bf16)(uint16_t *y, const float *x, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = pl_f32_to_bf16(x[i]);
}

void PL_FN(widen_bf16)(float *y, const uint16_t *x, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = pl_bf16_to_f32(x[i]);
}

void PL_FN(packed_row)(float *y, const uint16_t *w, int row, int k)
{
    const int k_pad = pl_pad32(k);
    for (int k0 = 0; k0 < k; k0 += 2 * TILE) {
        const uint16_t *tile = w + pl_packed_index(row, k0, k_pad);
        for (int i = 0; i < min_int(2 * TILE, k - k0); i++)
            y[k0 + i] = pl_bf16_to_f32(tile[(i / 2) * 32 + i % 2]);
    }
}
