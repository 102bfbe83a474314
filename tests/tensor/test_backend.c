/* Claims tested: names parse and print; auto takes the best backend that the CPU has and that
 * passes its self-test; a forced one is refused when the CPU lacks it; the self-test notices a
 * wrong op. */
#include "core/threads.h"
#include "tensor/cpu/cpu.h"

#include <criterion/criterion.h>
#include <string.h>

Test(backend, names_parse_and_print)
{
    for (int i = PL_ISA_AUTO; i <= PL_ISA_REF; i++)
        cr_assert(pl_isa_parse(pl_isa_name((pl_isa)i)) == i, "%s", pl_isa_name((pl_isa)i));
    cr_assert(pl_isa_parse("avx1024") == -1);
    cr_assert(pl_isa_parse("") == -1);
    cr_assert(strcmp(pl_isa_name((pl_isa)99), "unknown") == 0);
}

Test(backend, auto_takes_the_best_that_the_cpu_has)
{
    pl_cpu cpu;
    pl_error err = {0};
    char note[512];
    const pl_ops *ops = NULL;
    pl_cpu_read(&cpu);
    cr_assert(
        pl_ops_select(&ops, PL_ISA_AUTO, &cpu, note, sizeof note, &err) == PL_OK, "%s", err.msg);
    const char *best = cpu.has_amx_bf16 && cpu.has_avx512 ? "amx"
                       : cpu.has_avx512                   ? "avx512"
                       : cpu.has_avx2                     ? "avx2"
                                                          : "ref";
    cr_assert(strcmp(ops->name, best) == 0, "%s instead of %s: %s", ops->name, best, note);
    cr_assert(note[0] == '\0', "%s", note);
}

Test(backend, a_cpu_without_vectors_gets_plain_c)
{
    const pl_cpu cpu = {.name = "plain"};
    const pl_ops *ops = NULL;
    cr_assert(pl_ops_select(&ops, PL_ISA_AUTO, &cpu, NULL, 0, NULL) == PL_OK);
    cr_assert(strcmp(ops->name, "ref") == 0);
}

Test(backend, a_forced_backend_that_the_cpu_lacks_is_refused)
{
    const pl_cpu cpu = {.name = "plain"};
    for (int i = PL_ISA_AMX; i <= PL_ISA_AVX2; i++) {
        const pl_ops *ops = NULL;
        pl_error err = {0};
        cr_assert(pl_ops_select(&ops, (pl_isa)i, &cpu, NULL, 0, &err) == PL_E_DEVICE);
        cr_assert(ops == NULL);
        cr_assert(
            strstr(err.msg, pl_isa_name((pl_isa)i)) && strstr(err.msg, "plain"), "%s", err.msg);
    }
}

Test(backend, a_forced_backend_is_taken_and_not_a_better_one)
{
    pl_cpu cpu;
    pl_cpu_read(&cpu);
    const int has[] = {1, cpu.has_amx_bf16, cpu.has_avx512, cpu.has_avx2, 1};
    for (int i = PL_ISA_AMX; i <= PL_ISA_REF; i++) {
        const pl_ops *ops = NULL;
        if (!has[i])
            continue;
        cr_assert(pl_ops_select(&ops, (pl_isa)i, &cpu, NULL, 0, NULL) == PL_OK);
        cr_assert(strcmp(ops->name, pl_isa_name((pl_isa)i)) == 0, "%s", ops->name);
    }
}

Test(backend, an_unknown_number_is_refused)
{
    const pl_cpu cpu = {.name = "plain"};
    const pl_ops *ops = NULL;
    pl_error err = {0};
    cr_assert(pl_ops_select(&ops, (pl_isa)17, &cpu, NULL, 0, &err) == PL_E_INVAL);
    cr_assert(err.msg[0] != '\0');
}

/* The same value in another order: what a careless kernel gives. */
static void gemm_in_another_order(const pl_gemm *g)
{
    for (int r = 0; r < g->m; r++)
        for (int j = 32 * g->panel_begin; j < 32 * g->panel_end && j < g->n; j++) {
            float *y = g->y + (size_t)r * g->ldy + j;
            float sum = g->accumulate ? *y : 0.0f;
            for (int i = 0; i < g->k; i++)
                sum += pl_bf16_to_f32(g->x[(size_t)r * g->ldx + (size_t)i]) *
                       pl_bf16_to_f32(g->w[pl_packed_index(j, i, g->k)]);
            *y = sum;
        }
}

static void gemm_without_the_last_row(const pl_gemm *g)
{
    pl_gemm fewer = *g;
    fewer.m = g->m > 1 ? g->m - 1 : 1;
    gemm_ref(&fewer);
}

static void logsumexp_a_little_off(const float *z, int n, float t, float *e, float *max, float *lse)
{
    backend_ref()->logsumexp(z, n, t, e, max, lse);
    *lse *= 1.0000001f;
}

Test(backend, the_self_test_notices_a_wrong_op)
{
    pl_error err = {0};
    pl_ops ops = *backend_ref();
    cr_assert(pl_ops_self_test(&ops, &err) == PL_OK, "%s", err.msg);
    ops.gemm = gemm_in_another_order;
    cr_assert(pl_ops_self_test(&ops, &err) == PL_E_NUMERIC);
    cr_assert(strstr(err.msg, "gemm"), "%s", err.msg);
    ops.gemm = gemm_without_the_last_row;
    cr_assert(pl_ops_self_test(&ops, &err) == PL_E_NUMERIC);
    ops.gemm = gemm_ref;
    ops.logsumexp = logsumexp_a_little_off;
    cr_assert(pl_ops_self_test(&ops, &err) == PL_E_NUMERIC);
    cr_assert(strstr(err.msg, "logsumexp"), "%s", err.msg);
}

Test(backend, the_self_test_leaves_the_rounding_mode_as_it_was)
{
#ifdef __x86_64__
    const unsigned before = __builtin_ia32_stmxcsr();
    cr_assert(pl_ops_self_test(backend_ref(), NULL) == PL_OK);
    cr_assert(__builtin_ia32_stmxcsr() == before);
#endif
}
