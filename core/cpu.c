/* core/cpu.c - CPUID, XGETBV, and the kernel's leave to use AMX tiles. */
#define _GNU_SOURCE
#include "core/cpu.h"

#include "core/internal.h"

#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int core_affinity(int *list, int max)
{
    cpu_set_t sets[CORE_MAX_CPUS / CPU_SETSIZE]; /* one set holds too few CPUs for big machines */
    int n = 0;

    CPU_ZERO_S(sizeof sets, sets);
    if (sched_getaffinity(0, sizeof sets, sets) != 0)
        return 1; /* the caller runs somewhere */
    for (int cpu = 0; cpu < CORE_MAX_CPUS; cpu++) {
        if (!CPU_ISSET_S(cpu, sizeof sets, sets))
            continue;
        if (n < max)
            list[n] = cpu;
        n++;
    }
    return n > 0 ? n : 1;
}

#ifdef __x86_64__
#include <cpuid.h>

#define ARCH_REQ_XCOMP_PERM 0x1023 /* Linux 5.16, asm/prctl.h */
#define XFEATURE_TILE_DATA  18

/* Bits of XCR0: Intel SDM volume 1, section 13.1. */
#define XCR0_AVX    ((uint64_t)0x6)     /* SSE, AVX */
#define XCR0_AVX512 ((uint64_t)0xe6)    /* and opmask, upper halves, upper registers */
#define XCR0_AMX    ((uint64_t)0x60000) /* TILECFG, TILEDATA */

typedef struct leaf {
    unsigned a, b, c, d;
} leaf;

/* Zeros when the CPU has no such leaf. */
static leaf read_leaf(unsigned n, unsigned sub)
{
    leaf l = {0, 0, 0, 0};
    if (!__get_cpuid_count(n, sub, &l.a, &l.b, &l.c, &l.d))
        memset(&l, 0, sizeof l);
    return l;
}

static uint64_t read_xcr0(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static int has_bits(uint64_t word, uint64_t bits)
{
    return (word & bits) == bits;
}

/* The kernel hands the 8 KiB of tile state only to processes that ask; asking again is harmless. */
static int ask_for_tiles(void)
{
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_TILE_DATA) == 0;
}

static void read_features(pl_cpu *cpu)
{
    const leaf l1 = read_leaf(1, 0);
    const int has_osxsave = (l1.c >> 27) & 1;
    if (!has_osxsave)
        return;

    const uint64_t xcr0 = read_xcr0();
    const leaf l7 = read_leaf(7, 0);
    const leaf l71 = read_leaf(7, 1);
    const unsigned f_bw_dq_vl = 1u << 16 | 1u << 30 | 1u << 17 | 1u << 31;
    const unsigned fma_avx = 1u << 12 | 1u << 28;
    const unsigned amx_bf16_tile = 1u << 22 | 1u << 24;

    cpu->has_avx2 = has_bits(xcr0, XCR0_AVX) && has_bits(l1.c, fma_avx) && has_bits(l7.b, 1u << 5);
    cpu->has_avx512 = cpu->has_avx2 && has_bits(xcr0, XCR0_AVX512) && has_bits(l7.b, f_bw_dq_vl);
    cpu->has_avx512_bf16 = cpu->has_avx512 && has_bits(l71.a, 1u << 5);
    cpu->has_amx_bf16 = cpu->has_avx512 && has_bits(xcr0, XCR0_AMX) &&
                        has_bits(l7.d, amx_bf16_tile) && ask_for_tiles();
}

/* Leaves 0x80000002..4 hold 48 characters, some CPUs pad them with spaces in front. */
static void read_name(pl_cpu *cpu)
{
    char brand[49] = {0};

    if ((unsigned)__get_cpuid_max(0x80000000u, NULL) < 0x80000004u)
        return;
    for (unsigned i = 0; i < 3; i++) {
        const leaf l = read_leaf(0x80000002u + i, 0);
        memcpy(brand + 16 * i, &l, 16);
    }
    const char *start = brand + strspn(brand, " ");
    size_t len = strlen(start);
    while (len > 0 && start[len - 1] == ' ')
        len--;
    memcpy(cpu->name, start, len);
    cpu->name[len] = '\0';
}
#else
static void read_features(pl_cpu *cpu)
{
    (void)cpu;
}

static void read_name(pl_cpu *cpu)
{
    (void)cpu;
}
#endif

static size_t cache_size(int name)
{
    const long n = sysconf(name);
    return n > 0 ? (size_t)n : 0;
}

void pl_cpu_read(pl_cpu *cpu)
{
    memset(cpu, 0, sizeof *cpu);
    memcpy(cpu->name, "unknown CPU", sizeof "unknown CPU");
    read_features(cpu);
    read_name(cpu);
    cpu->n_cpus = core_affinity(NULL, 0);
    cpu->l2_bytes = cache_size(_SC_LEVEL2_CACHE_SIZE);
    cpu->l3_bytes = cache_size(_SC_LEVEL3_CACHE_SIZE);
}
