/* tensor/cpu/gemm_rows.h - the kernel of gemm_blocked.h for vectors of 8 or 16 outputs, with one
 * function for each number of rows: constant bounds let the accumulators stay in registers.
 *
 * The file that includes it defines ROWS_MAX, X_BYTES, the type vec of LANES floats and
 *   block(sum, rows, x, w, ahead)   sum[r] = e + o of one block of 32 k, LANES outputs from w on
 *   add_to(at, sum)                 LANES floats at at += sum */
#ifndef PL_TENSOR_CPU_GEMM_ROWS_H
#define PL_TENSOR_CPU_GEMM_ROWS_H

static inline __attribute__((always_inline)) void add_rows(
    float (*acc)[32], const int rows, const gemm_part *p)
{
    const unsigned char *x = p->x;
    const uint16_t *w = p->w;
    for (int b = 0; b < p->n_blocks; b++) {
        for (int j = 0; j < 32; j += LANES) {
            vec sum[ROWS_MAX];
            block(sum, rows, x, w + 512 * (j / 16) + 2 * (j % 16), p->ahead);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++)
                add_to(acc[r] + j, sum[r]);
        }
        x += rows * X_BYTES;
        w += 1024;
    }
}

#define ROWS(R)                                                                                    \
    static void add_rows_##R(float(*acc)[32], const gemm_part *p)                                  \
    {                                                                                              \
        add_rows(acc, R, p);                                                                       \
    }
ROWS(1)
ROWS(2)
ROWS(3)
ROWS(4)
ROWS(5)
ROWS(6)
#if ROWS_MAX == 12
ROWS(7)
ROWS(8)
ROWS(9)
ROWS(10)
ROWS(11)
ROWS(12)
#endif
#undef ROWS

static void multiply(const gemm_part *p)
{
    static void (*const add[])(float(*)[32], const gemm_part *) = {
        NULL,
        add_rows_1,
        add_rows_2,
        add_rows_3,
        add_rows_4,
        add_rows_5,
        add_rows_6,
#if ROWS_MAX == 12
        add_rows_7,
        add_rows_8,
        add_rows_9,
        add_rows_10,
        add_rows_11,
        add_rows_12,
#endif
    };
    float acc[ROWS_MAX][32] __attribute__((aligned(64)));
    load_acc(acc, p);
    add[p->rows](acc, p);
    store_acc(acc, p);
}

#endif
