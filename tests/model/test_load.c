/* Claims: weights packed straight from a bf16 file, in ranges of any size, are bit for bit those
 * that go through fp32; NaN, infinity and a file that was cut are refused in words. */
#include "core/cpu.h"
#include "core/file.h"
#include "model/internal.h"
#include "model/model.h"
#include "model/tiny.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* layers, C, H, Hkv, D, F, V, tied: rows and columns that are no multiples of 32 or 16, and parts
 * of a stacked matrix that begin in the middle of a panel */
static const int shapes[][8] = {
    {2, 64, 4, 2, 16, 160, 512, 1},
    {1, 72, 3, 1, 8, 104, 333, 0},
    {2, 40, 5, 5, 24, 88, 301, 1},
    {1, 96, 2, 2, 48, 33, 320, 0},
};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

typedef struct bed {
    char dir[64];
    pl_source *src;
    const pl_ops *ops;
    pl_team *team;
} bed;

static void bed_open(bed *b, int i)
{
    const int *s = shapes[i];
    pl_tiny_options t;
    pl_cpu cpu;
    pl_error err = {0};

    pl_cpu_read(&cpu);
    cr_assert_eq(pl_ops_select(&b->ops, PL_ISA_REF, &cpu, NULL, 0, &err), PL_OK, "%s", err.msg);
    pl_tiny_defaults(&t);
    t.arch.n_layers = s[0];
    t.arch.n_embd = s[1];
    t.arch.n_heads = s[2];
    t.arch.n_kv_heads = s[3];
    t.arch.head_dim = s[4];
    t.arch.n_ff = s[5];
    t.arch.n_vocab = s[6];
    t.arch.tied = s[7];
    snprintf(b->dir, sizeof b->dir, "%s/pl-load-XXXXXX", P_tmpdir);
    cr_assert_not_null(mkdtemp(b->dir));
    cr_assert_eq(pl_tiny_write(b->dir, &t, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_source_open(&b->src, b->dir, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_team_new(&b->team, 2, 0, &err), PL_OK, "%s", err.msg);
    cr_assert_not_null(pl_source_file(b->src), "the test wants a bf16 file");
}

static void bed_close(bed *b)
{
    pl_team_free(b->team);
    pl_source_close(b->src);
    cr_assert_eq(pl_dir_remove(b->dir, NULL), PL_OK);
}

static pl_model *new_model(bed *b)
{
    pl_model *m;
    pl_error err = {0};
    cr_assert_eq(
        pl_model_new(&m, pl_source_arch(b->src), b->ops, b->team, 0, &err), PL_OK, "%s", err.msg);
    return m;
}

static void check_same(const pl_model *a, const pl_model *b, const char *what)
{
    const size_t c = (size_t)a->arch.n_embd * sizeof(float);

    for (int i = 0; i < weights_n_matrices(a); i++) {
        const weights_matrix x = weights_matrix_at(a, i), y = weights_matrix_at(b, i);
        cr_assert_eq(memcmp(x.packed, y.packed, pl_packed_elements(x.rows, x.cols) * 2), 0,
            "%s: matrix %d", what, i);
    }
    for (int l = 0; l < a->arch.n_layers; l++) {
        cr_assert_eq(memcmp(a->layers[l].attn_norm, b->layers[l].attn_norm, c), 0, "%s", what);
        cr_assert_eq(memcmp(a->layers[l].ffn_norm, b->layers[l].ffn_norm, c), 0, "%s", what);
    }
    cr_assert_eq(memcmp(a->final_norm, b->final_norm, c), 0, "%s", what);
}

Test(load, ranges_of_any_size_give_the_bits_of_the_long_way)
{
    static const size_t steps[] = {1 << 20, 4096, 777, 64};

    for (int i = 0; i < N_SHAPES; i++) {
        bed b;
        pl_error err = {0};
        bed_open(&b, i);
        pl_model *plain = new_model(&b);
        float *masters = calloc(pl_source_params(b.src)->n_elements, sizeof *masters);
        cr_assert_eq(pl_model_load(plain, b.src, masters, &err), PL_OK, "%s", err.msg);
        for (size_t k = 0; k < sizeof steps / sizeof *steps; k++) {
            pl_model *m = new_model(&b);
            const size_t n = pl_source_file(b.src)->size;
            for (size_t at = 0; at < n; at += steps[k])
                cr_assert_eq(
                    pl_model_load_bytes(m, b.src, at, at + steps[k] < n ? at + steps[k] : n, &err),
                    PL_OK, "%s", err.msg);
            check_same(plain, m, "ranges");
            pl_model_free(m);
        }
        pl_model *m = new_model(&b);
        cr_assert_eq(pl_model_load(m, b.src, NULL, &err), PL_OK, "%s", err.msg);
        check_same(plain, m, "the whole file");
        pl_model_free(m);
        pl_model_free(plain);
        free(masters);
        bed_close(&b);
    }
}

/* Write a bf16 pattern into the file in place, where parameter i begins. */
static void poke(const bed *b, int i, size_t element, uint16_t bits)
{
    const pl_file *f = pl_source_file(b->src);
    const pl_param *p = &pl_source_params(b->src)->params[i];
    const char *name = strstr((const char *)f->data + 8, p->name);
    FILE *out = fopen(f->path, "r+b");
    uint64_t n_header;
    size_t begin;

    memcpy(&n_header, f->data, sizeof n_header);
    cr_assert(name && out);
    cr_assert_eq(sscanf(strstr(name, "data_offsets"), "data_offsets\":[%zu", &begin), 1);
    fseek(out, (long)(8 + n_header + begin + 2 * element), SEEK_SET);
    cr_assert_eq(fwrite(&bits, 2, 1, out), 1);
    fclose(out);
}

Test(load, a_value_that_is_none_is_refused)
{
    static const uint16_t bad[] = {0x7f80, 0xff80, 0x7fc1, 0xff81};
    const uint16_t largest = 0xff7f;

    for (int i = 0; i < N_SHAPES; i++) {
        bed b;
        bed_open(&b, i);
        pl_model *m = new_model(&b);
        const int n = pl_source_params(b.src)->n_params;
        for (int k = 0; k < n; k++) {
            const pl_param *p = &pl_source_params(b.src)->params[k];
            const size_t last = (size_t)p->rows * (size_t)p->cols - 1;
            pl_error err = {0};
            poke(&b, k, last, bad[k % 4]);
            cr_assert_eq(pl_model_load(m, b.src, NULL, &err), PL_E_NUMERIC, "%s", p->name);
            cr_assert(strstr(err.msg, "NaN or infinity"), "%s", err.msg);
            poke(&b, k, last, largest);
            cr_assert_eq(pl_model_load(m, b.src, NULL, &err), PL_OK, "%s", err.msg);
        }
        pl_model_free(m);
        bed_close(&b);
    }
}

Test(load, a_file_that_was_cut_is_an_error_and_no_signal)
{
    bed b;
    pl_error err = {0};

    bed_open(&b, 0);
    pl_model *m = new_model(&b);
    cr_assert_eq(truncate(pl_source_file(b.src)->path, 100), 0);
    cr_assert_eq(pl_model_load(m, b.src, NULL, &err), PL_E_IO);
    cr_assert(strstr(err.msg, "became shorter"), "%s", err.msg);
    pl_model_free(m);
    bed_close(&b);
}
