/* tests/tensor/amx_emulation.h - the instructions of tensor/cpu/amx_tile.h in plain C, for one
 * thread.
 *
 * Follows the operation sections of Intel's manual, with the arithmetic that was measured on
 * Sapphire Rapids (NUMERICS 1): two chains over the even and the odd elements, from zero, then
 * acc += e + o.  What hardware would refuse (an unconfigured tile, shapes that do not fit) is
 * counted in emulation.n_faults. */
#ifndef PL_TESTS_TENSOR_AMX_EMULATION_H
#define PL_TESTS_TENSOR_AMX_EMULATION_H
#define PL_TENSOR_CPU_AMX_TILE_H /* stands in for amx_tile.h, which is then empty */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct tile_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

static struct {
    tile_shapes shapes; /* palette 0: no tiles */
    unsigned char tile[8][16][64];
    int n_faults, n_configured, n_released;
} emulation;

static inline void tile_configure(const tile_shapes *shapes)
{
    emulation.shapes = *shapes;
    emulation.n_configured++;
    memset(emulation.tile, 0, sizeof emulation.tile);
    for (int t = 0; t < 16; t++) {
        const int rows = shapes->rows[t], bytes = shapes->row_bytes[t];
        if (rows > 16 || bytes > 64 || (t >= 8 && (rows || bytes)) || !rows != !bytes)
            emulation.n_faults++;
    }
    if (shapes->palette != 1)
        emulation.n_faults++;
}

static inline void tile_release(void)
{
    memset(&emulation.shapes, 0, sizeof emulation.shapes);
    emulation.n_released++;
}

/* Rows of a tile; an unconfigured one is a fault. */
static inline int tile_rows_of(int t)
{
    if (emulation.shapes.palette != 1 || emulation.shapes.rows[t] == 0)
        emulation.n_faults++;
    return emulation.shapes.rows[t];
}

static inline void tile_zero(int t)
{
    (void)tile_rows_of(t);
    memset(emulation.tile[t], 0, sizeof emulation.tile[t]);
}

static inline void tile_load(int t, const void *at, size_t stride)
{
    const int rows = tile_rows_of(t);
    memset(emulation.tile[t], 0, sizeof emulation.tile[t]);
    for (int r = 0; r < rows; r++)
        memcpy(emulation.tile[t][r], (const char *)at + (size_t)r * stride,
            emulation.shapes.row_bytes[t]);
}

static inline void tile_store(int t, void *at, size_t stride)
{
    const int rows = tile_rows_of(t);
    for (int r = 0; r < rows; r++)
        memcpy(
            (char *)at + (size_t)r * stride, emulation.tile[t][r], emulation.shapes.row_bytes[t]);
}

/* Element i of 32-bit word j in row r of tile t, a bf16, as fp32. */
static inline float tile_bf16(int t, int r, int j, int i)
{
    uint16_t half;
    memcpy(&half, emulation.tile[t][r] + 4 * j + 2 * i, sizeof half);
    const uint32_t bits = (uint32_t)half << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline void tile_dot(int c, int a, int b)
{
    const int rows = tile_rows_of(c);
    const int pairs = emulation.shapes.row_bytes[a] / 4;
    const int columns = emulation.shapes.row_bytes[c] / 4;
    if (tile_rows_of(a) != rows || tile_rows_of(b) != pairs ||
        emulation.shapes.row_bytes[b] != emulation.shapes.row_bytes[c])
        emulation.n_faults++;
    for (int r = 0; r < rows; r++)
        for (int n = 0; n < columns; n++) {
            float e = 0, o = 0, acc;
            for (int k = 0; k < pairs; k++) {
                e = fmaf(tile_bf16(a, r, k, 0), tile_bf16(b, k, n, 0), e);
                o = fmaf(tile_bf16(a, r, k, 1), tile_bf16(b, k, n, 1), o);
            }
            memcpy(&acc, emulation.tile[c][r] + 4 * n, sizeof acc);
            acc += e + o;
            memcpy(emulation.tile[c][r] + 4 * n, &acc, sizeof acc);
        }
}

#endif
