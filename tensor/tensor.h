/* tensor/tensor.h - backends and packed matrices.
 *
 * Numeric class `cpu-bf16-k32eo`: every op gives the same bits on every backend, for any number of
 * rows and threads (NUMERICS 1 and 2).  Floats are fp32, bf16 is uint16_t (round to nearest even).
 */
#ifndef PL_TENSOR_TENSOR_H
#define PL_TENSOR_TENSOR_H

#include "core/cpu.h"
#include "core/error.h"
#include "tensor/ops.h"

#include <stddef.h>
#include <stdint.h>

#define PL_NUMERIC_CLASS "cpu-bf16-k32eo"

typedef enum pl_isa { PL_ISA_AUTO, PL_ISA_AMX, PL_ISA_AVX512, PL_ISA_AVX2, PL_ISA_REF } pl_isa;

/* "auto", "amx", "avx512", "avx2", "ref"; -1 when the word is none of them. */
int pl_isa_parse(const char *word);
const char *pl_isa_name(pl_isa isa);

/* Choose a backend.  AUTO takes the fastest that this CPU has and that passes the self-test; a
 * forced one that the CPU lacks is PL_E_DEVICE.  A backend that fails its self-test is skipped
 * (AUTO: the reason is appended to note, may be NULL) or refused (PL_E_NUMERIC). */
pl_status pl_ops_select(
    const pl_ops **out, pl_isa isa, const pl_cpu *cpu, char *note, size_t note_size, pl_error *err);

/* Compare a backend with the scalar formulas on fixed inputs, each op that is sampled from.
 * Errors: PL_E_NUMERIC naming the op. */
pl_status pl_ops_self_test(const pl_ops *ops, pl_error *err);

/* Elements of a packed matrix of n outputs and k inputs: both rounded up to 32. */
static inline int pl_pad32(int n)
{
    return (n + 31) & ~31;
}

static inline size_t pl_packed_elements(int n, int k)
{
    return (size_t)pl_pad32(n) * (size_t)pl_pad32(k);
}

/* Index of element (n, k) in the packed layout [N/32][K/32][2][16 k-pairs][16 n][2 k]; k_pad is K
 * rounded up to 32.  One layout serves AMX tiles, AVX-512, AVX2 and plain C (CPU.md 6). */
static inline size_t pl_packed_index(int n, int k, int k_pad)
{
    const size_t tile =
        ((size_t)(n / 32) * (size_t)(k_pad / 32) + (size_t)(k / 32)) * 2 + (size_t)((n % 32) / 16);
    return tile * 512 + (size_t)((k % 32) / 2) * 32 + (size_t)(n % 16) * 2 + (size_t)(k % 2);
}

static inline float pl_bf16_to_f32(uint16_t b)
{
    union {
        uint32_t u;
        float f;
    } v = {(uint32_t)b << 16};
    return v.f;
}

/* Round to nearest, ties to even.  NaN stays NaN. */
static inline uint16_t pl_f32_to_bf16(float f)
{
    union {
        float f;
        uint32_t u;
    } v = {f};
    if ((v.u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(v.u >> 16 | 0x40u);
    return (uint16_t)((v.u + 0x7fffu + (v.u >> 16 & 1u)) >> 16);
}

#endif
