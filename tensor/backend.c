/* tensor/backend.c - the tables of ops and the choice among them. */
#include "tensor/cpu/cpu.h"

#include <stdio.h>
#include <string.h>

#if defined(__x86_64__)
#define PL_HAS_X86 1
#else
#define PL_HAS_X86 0
#endif

#define REF(ret, name, args)    .name = name##_ref,
#define AVX2(ret, name, args)   .name = name##_avx2,
#define AVX512(ret, name, args) .name = name##_avx512,

/* The other products on top of the AVX-512 rows: one initialiser overrides another here. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Woverride-init"
#ifdef __clang__
#pragma GCC diagnostic ignored "-Winitializer-overrides"
#endif
static const pl_ops ops_ref = {.name = "ref", PL_OPS(REF)};
#if PL_HAS_X86
static const pl_ops ops_avx2 = {.name = "avx2", PL_OPS(AVX2)};
static const pl_ops ops_avx512 = {.name = "avx512", PL_OPS(AVX512)};
static const pl_ops ops_avx512bf16 = {.name = "avx512", PL_OPS(AVX512).gemm = gemm_avx512bf16};
static const pl_ops ops_amx = {.name = "amx", PL_OPS(AVX512).gemm = gemm_amx};
#endif
#pragma GCC diagnostic pop

static const char *const isa_names[] = {
    [PL_ISA_AUTO] = "auto",
    [PL_ISA_AMX] = "amx",
    [PL_ISA_AVX512] = "avx512",
    [PL_ISA_AVX2] = "avx2",
    [PL_ISA_REF] = "ref",
};
enum { N_ISA = sizeof isa_names / sizeof *isa_names };

const pl_ops *backend_ref(void)
{
    return &ops_ref;
}

int pl_isa_parse(const char *word)
{
    for (int i = 0; i < N_ISA; i++)
        if (strcmp(word, isa_names[i]) == 0)
            return i;
    return -1;
}

const char *pl_isa_name(pl_isa isa)
{
    return (unsigned)isa < N_ISA ? isa_names[isa] : "unknown";
}

/* The candidates for an ISA on this CPU, best first: two for avx512 where VDPBF16PS runs at full
 * rate (AMD; on Intel it has half the rate of the fp32 FMA, CPU.md 2).  Returns how many. */
static int candidates(const pl_ops *out[2], pl_isa isa, const pl_cpu *cpu)
{
    int n = 0;
    if (isa == PL_ISA_REF)
        out[n++] = &ops_ref;
#if PL_HAS_X86
    if (isa == PL_ISA_AMX && cpu->has_amx_bf16 && cpu->has_avx512)
        out[n++] = &ops_amx;
    if (isa == PL_ISA_AVX512 && cpu->has_avx512 && cpu->has_avx512_bf16 &&
        strncmp(cpu->name, "AMD", 3) == 0)
        out[n++] = &ops_avx512bf16;
    if (isa == PL_ISA_AVX512 && cpu->has_avx512)
        out[n++] = &ops_avx512;
    if (isa == PL_ISA_AVX2 && cpu->has_avx2)
        out[n++] = &ops_avx2;
#else
    (void)cpu;
#endif
    return n;
}

static void add_note(char *note, size_t size, const char *isa, const char *reason)
{
    if (!note || size == 0)
        return;
    const size_t used = strnlen(note, size - 1);
    const int n = snprintf(
        note + used, size - used, "%sbackend %s not used: %s", used ? "; " : "", isa, reason);
    if (n < 0)
        note[used] = '\0';
}

pl_status pl_ops_select(
    const pl_ops **out, pl_isa isa, const pl_cpu *cpu, char *note, size_t note_size, pl_error *err)
{
    if ((unsigned)isa >= N_ISA)
        return pl_fail(err, PL_E_INVAL, "backend %d: not one of auto, amx, avx512, avx2, ref", isa);
    if (note && note_size > 0)
        note[0] = '\0';

    const pl_isa first = isa == PL_ISA_AUTO ? PL_ISA_AMX : isa;
    const pl_isa last = isa == PL_ISA_AUTO ? PL_ISA_REF : isa;
    pl_status st = PL_E_DEVICE;
    for (pl_isa i = first; i <= last; i++) {
        const pl_ops *ops[2];
        const int n = candidates(ops, i, cpu);
        for (int c = 0; c < n; c++) {
            pl_error why = {0};
            st = pl_ops_self_test(ops[c], &why);
            if (st == PL_OK) {
                *out = ops[c];
                return PL_OK;
            }
            add_note(note, note_size, pl_isa_name(i), why.msg);
            pl_error_set(err, st, "%s", why.msg);
        }
    }
    if (st == PL_E_DEVICE)
        return pl_fail(err, PL_E_DEVICE, "backend %s: this CPU (%s) does not have it; use auto",
            pl_isa_name(isa), cpu->name[0] ? cpu->name : "unknown");
    return pl_wrap(err, st, "backend %s", pl_isa_name(isa));
}
