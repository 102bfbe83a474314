/* tensor/cpu/amx_tile.h - the five AMX instructions that gemm_amx.c uses.
 *
 * Own assembler instead of <amxintrin.h>: gcc 12 tells the optimiser of 8 of the 64 bytes that
 * ldtilecfg reads and of none that tile loads and stores touch, so it drops the stores before them
 * and the program dies of SIGILL.  Macros, since a tile's number is part of the instruction.
 * tests/tensor/amx_emulation.h has the same names in plain C. */
#ifndef PL_TENSOR_CPU_AMX_TILE_H
#define PL_TENSOR_CPU_AMX_TILE_H

#include <stdint.h>

/* Palette 1: by tile, bytes of a row and number of rows. */
typedef struct tile_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

#define tile_configure(shapes) __asm__ volatile("ldtilecfg %0" : : "m"(*(shapes)) : "memory")
#define tile_release()         __asm__ volatile("tilerelease" : : : "memory")
#define tile_zero(t)           __asm__ volatile("tilezero %%tmm" #t : : : "memory")
#define tile_load(t, at, stride)                                                                   \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t                                               \
                     :                                                                             \
                     : "r"((const void *)(at)), "r"((size_t)(stride))                              \
                     : "memory")
#define tile_store(t, at, stride)                                                                  \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)"                                           \
                     :                                                                             \
                     : "r"((void *)(at)), "r"((size_t)(stride))                                    \
                     : "memory")
/* tile c += a (rows of x) times b (k-pairs of 16 outputs) */
#define tile_dot(c, a, b)                                                                          \
    __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c : : : "memory")

#endif
