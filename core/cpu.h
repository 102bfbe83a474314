/* core/cpu.h - what this CPU can do, read once. */
#ifndef PL_CORE_CPU_H
#define PL_CORE_CPU_H

#include <stddef.h>

typedef struct pl_cpu {
    int has_avx2;              /* AVX2 and FMA, and the OS saves the state */
    int has_avx512;            /* AVX-512 F, BW, DQ, VL, and the OS saves the state */
    int has_avx512_bf16;       /* VDPBF16PS */
    int has_amx_bf16;          /* AMX tiles and BF16, and the kernel granted the tile state */
    int n_cpus;                /* CPUs in the affinity mask */
    char name[64];             /* brand string */
    size_t l2_bytes, l3_bytes; /* 0 when unknown */
} pl_cpu;

/* Fill *cpu.  Asks the kernel for the AMX state (arch_prctl ARCH_REQ_XCOMP_PERM), once a process.
 */
void pl_cpu_read(pl_cpu *cpu);

#endif
