/* Claims tested: with emulated tiles the AMX product gives the bits of the plain C one for every
 * number of rows, partial panels, split panels and split K; it writes nothing outside its range; it
 * asks nothing of the tiles that hardware would refuse; it leaves them released.
 *
 * This runs gemm_amx.c itself, compiled against amx_emulation.h: its index arithmetic, not the
 * hardware.  On a CPU with AMX test_gemm.c runs the real thing. */
#include "tests/tensor/amx_emulation.h"

#define gemm_amx gemm_amx_emulated
#include "tensor/cpu/gemm_amx.c"
#undef gemm_amx

#include "core/threads.h"
#include "tests/tensor/products.h"

#include <criterion/criterion.h>

static void check(product *p, const char *what)
{
    emulation.n_faults = 0;
    emulation.n_configured = 0;
    emulation.n_released = 0;
    const pl_gemm g = product_begin(p);
    gemm_amx_emulated(&g);
    cr_assert(product_is_right(p), "%s: m %d n %d k %d accumulate %d differs from ref", what, p->m,
        p->n, p->k, p->accumulate);
    cr_assert(emulation.n_faults == 0, "%s: m %d n %d k %d: %d faults", what, p->m, p->n, p->k,
        emulation.n_faults);
    cr_assert(emulation.n_released > 0 && emulation.shapes.palette == 0, "tiles left configured");
}

Test(gemm_amx, emulated_equals_plain_c_for_1_to_70_rows, .timeout = 120)
{
    pl_fp_enter();
    for (int m = 1; m <= 70; m++) {
        product p = {.m = m, .n = 64, .k = 96, .accumulate = m % 2, .seed = (uint64_t)m};
        product_make(&p);
        check(&p, "rows");
        product_free(&p);
    }
}

Test(gemm_amx, emulated_equals_plain_c_for_partial_panels, .timeout = 120)
{
    pl_fp_enter();
    for (int n = 1; n <= 65; n++) {
        product p = {
            .m = 1 + n % 35, .n = n, .k = 32, .accumulate = n % 2, .gap = n % 7, .seed = 5};
        product_make(&p);
        check(&p, "columns");
        product_free(&p);
    }
}

Test(gemm_amx, emulated_equals_plain_c_across_bands_and_chunks, .timeout = 120)
{
    pl_fp_enter();
    const int shapes[][3] = {{257, 33, 64}, {300, 32, 1100 / 32 * 32}, {1, 32, 17 * 1024}};
    for (int i = 0; i < 3; i++) {
        product p = {.m = shapes[i][0], .n = shapes[i][1], .k = shapes[i][2], .seed = 9};
        product_make(&p);
        check(&p, "bands");
        product_free(&p);
    }
}
