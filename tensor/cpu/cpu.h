/* tensor/cpu/cpu.h - what the CPU backends are put together from (inside tensor/ only).
 *
 * rows.c, attention.c, sample.c, pack.c, optim.c are compiled once per ISA with PL_ISA_SUFFIX set
 * to ref, avx2 or avx512; PL_FN(name) is then name_ref, name_avx2 or name_avx512.  amx uses the
 * avx512 objects and its own gemm. */
#ifndef PL_TENSOR_CPU_CPU_H
#define PL_TENSOR_CPU_CPU_H

#include "tensor/ops.h"
#include "tensor/tensor.h"

#define PL_CAT2(a, b) a##_##b
#define PL_CAT(a, b)  PL_CAT2(a, b)
#define PL_FN(name)   PL_CAT(name, PL_ISA_SUFFIX)

#define PL_DECLARE_REF(ret, name, args)    ret name##_ref args;
#define PL_DECLARE_AVX2(ret, name, args)   ret name##_avx2 args;
#define PL_DECLARE_AVX512(ret, name, args) ret name##_avx512 args;
PL_OPS(PL_DECLARE_REF)
PL_OPS(PL_DECLARE_AVX2)
PL_OPS(PL_DECLARE_AVX512)
void gemm_amx(const pl_gemm *g);
/* The AVX-512 product by VDPBF16PS over same-parity pairs (see gemm_avx512bf16.c). */
void gemm_avx512bf16(const pl_gemm *g);

/* The plain C table: what the others are compared with. */
const pl_ops *backend_ref(void);

#endif
