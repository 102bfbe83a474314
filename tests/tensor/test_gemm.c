/* Claims tested, for every product this CPU can run: the plain C one is the formula of NUMERICS 1;
 * all others give its bits for any number of rows, any shape, strides, panel range and split of K;
 * nothing is written outside the range; ordinary, wide and denormal values alike. */
#include "core/threads.h"
#include "tests/tensor/products.h"

#include <criterion/criterion.h>
#include <math.h>

typedef struct backend {
    const char *name;
    void (*gemm)(const pl_gemm *g);
} backend;

/* The products of this CPU.  Sets FTZ and DAZ. */
static int backends(backend out[5])
{
    int n = 0;
    pl_cpu cpu;
    pl_cpu_read(&cpu);
    (void)pl_fp_enter();
    out[n++] = (backend){"ref", gemm_ref};
#ifdef __x86_64__
    if (cpu.has_avx2)
        out[n++] = (backend){"avx2", gemm_avx2};
    if (cpu.has_avx512)
        out[n++] = (backend){"avx512", gemm_avx512};
    if (cpu.has_avx512 && cpu.has_avx512_bf16 && strncmp(cpu.name, "AMD", 3) == 0)
        out[n++] = (backend){"avx512bf16", gemm_avx512bf16};
    if (cpu.has_avx512 && cpu.has_amx_bf16)
        out[n++] = (backend){"amx", gemm_amx};
#endif
    return n;
}

static void check_all(product *p)
{
    backend list[5];
    const int n = backends(list);
    product_make(p);
    for (int i = 0; i < n; i++) {
        const pl_gemm g = product_begin(p);
        list[i].gemm(&g);
        cr_assert(product_is_right(p), "%s: m %d n %d k %d accumulate %d gap %d wild %d",
            list[i].name, p->m, p->n, p->k, p->accumulate, p->gap, p->is_wild);
    }
    product_free(p);
}

/* The text of NUMERICS 1, with the fused step of the C library. */
static float formula(const uint16_t *x, const uint16_t *w, int j, int k, float acc)
{
    for (int k0 = 0; k0 < k; k0 += 32) {
        float e = 0, o = 0;
        for (int i = k0; i < k0 + 32; i += 2) {
            e = fmaf(pl_bf16_to_f32(x[i]), pl_bf16_to_f32(w[pl_packed_index(j, i, k)]), e);
            o = fmaf(pl_bf16_to_f32(x[i + 1]), pl_bf16_to_f32(w[pl_packed_index(j, i + 1, k)]), o);
        }
        acc += e + o;
    }
    return acc;
}

Test(gemm, plain_c_is_the_canonical_formula)
{
    (void)pl_fp_enter();
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        product p = {.m = 9, .n = 50, .k = 224, .accumulate = accumulate, .gap = 1, .seed = 3};
        product_make(&p);
        for (int r = 0; r < p.m; r++)
            for (int j = 0; j < p.n; j++) {
                const size_t at = PRODUCT_GUARD + (size_t)r * p.ldy + (size_t)j;
                const float start = accumulate ? p.before[at] : 0.0f;
                const float y = formula(p.x + (size_t)r * p.ldx, p.w, j, p.k, start);
                cr_assert(memcmp(&y, &p.expected[at], sizeof y) == 0, "row %d column %d", r, j);
            }
        product_free(&p);
    }
}

Test(gemm, any_number_of_rows_gives_the_bits_of_one_row)
{
    for (int m = 1; m <= 70; m++)
        check_all(&(product){.m = m, .n = 96, .k = 160, .seed = (uint64_t)m});
}

Test(gemm, wide_and_denormal_values_give_the_same_bits)
{
    for (int m = 1; m <= 40; m++)
        check_all(&(product){
            .m = m, .n = 64, .k = 32 * (1 + m % 9), .accumulate = m % 2, .seed = 7, .is_wild = 1});
}

Test(gemm, columns_that_do_not_fill_a_panel_and_gaps_between_rows_are_left_alone)
{
    for (int n = 1; n <= 66; n++)
        check_all(&(product){
            .m = 1 + n % 15, .n = n, .k = 64, .accumulate = n % 3 == 0, .gap = n % 5, .seed = 11});
}

Test(gemm, bands_of_rows_and_chunks_of_k_keep_the_bits, .timeout = 120)
{
    check_all(&(product){.m = 300, .n = 32, .k = 64, .seed = 1});
    check_all(&(product){.m = 253, .n = 40, .k = 1120, .accumulate = 1, .seed = 2});
    check_all(&(product){.m = 3, .n = 32, .k = 32 * 1400, .seed = 3});
    check_all(&(product){.m = 64, .n = 33, .k = 32 * 140, .seed = 4});
}

Test(gemm, panel_ranges_write_their_columns_only)
{
    backend list[5];
    const int n = backends(list);
    product p = {.m = 13, .n = 150, .k = 96, .seed = 21};
    product_make(&p);
    for (int i = 0; i < n; i++)
        for (int begin = 0; begin <= 5; begin++)
            for (int end = begin; end <= 5; end++) {
                pl_gemm g = product_begin(&p);
                g.panel_begin = begin;
                g.panel_end = end;
                list[i].gemm(&g);
                for (size_t at = 0; at < p.n_y; at++) {
                    const size_t c = (at - PRODUCT_GUARD) % p.ldy;
                    const int is_in = at >= PRODUCT_GUARD && at < p.n_y - PRODUCT_GUARD &&
                                      c >= 32 * (size_t)begin && c < 32 * (size_t)end;
                    const float *want = is_in ? &p.expected[at] : &p.before[at];
                    cr_assert(memcmp(&p.y[at], want, sizeof *want) == 0,
                        "%s: panels %d to %d, float %zu", list[i].name, begin, end, at);
                }
            }
    product_free(&p);
}

/* A packed matrix of the columns [k0, k0 + k) of another. */
static uint16_t *slice_of(const product *p, int k0, int k)
{
    uint16_t *w = product_alloc(2 * pl_packed_elements(p->n, k));
    for (int j = 0; j < pl_pad32(p->n); j++)
        for (int i = 0; i < k; i++)
            w[pl_packed_index(j, i, k)] = p->w[pl_packed_index(j, k0 + i, p->k)];
    return w;
}

Test(gemm, split_k_with_accumulate_gives_the_bits_of_one_call)
{
    backend list[5];
    const int n = backends(list);
    product p = {.m = 21, .n = 64, .k = 320, .seed = 31};
    product_make(&p);
    for (int cut = 32; cut < p.k; cut += 32) {
        uint16_t *left = slice_of(&p, 0, cut), *right = slice_of(&p, cut, p.k - cut);
        for (int i = 0; i < n; i++) {
            pl_gemm g = product_begin(&p);
            g.w = left;
            g.k = cut;
            list[i].gemm(&g);
            g.x += cut;
            g.w = right;
            g.k = p.k - cut;
            g.accumulate = 1;
            list[i].gemm(&g);
            cr_assert(product_is_right(&p), "%s: cut at %d", list[i].name, cut);
        }
        free(left);
        free(right);
    }
    product_free(&p);
}

Test(gemm, no_rows_and_no_panels_write_nothing)
{
    backend list[5];
    const int n = backends(list);
    product p = {.m = 2, .n = 32, .k = 32, .seed = 41};
    product_make(&p);
    for (int i = 0; i < n; i++)
        for (int empty = 0; empty < 2; empty++) {
            pl_gemm g = product_begin(&p);
            if (empty)
                g.panel_end = 0;
            else
                g.m = 0;
            list[i].gemm(&g);
            cr_assert(memcmp(p.y, p.before, sizeof *p.y * p.n_y) == 0, "%s", list[i].name);
        }
    product_free(&p);
}
