/* tests/drafter/bed.h - a small target with random weights, drafters for it, and texts with random
 * features. */
#ifndef TESTS_DRAFTER_BED_H
#define TESTS_DRAFTER_BED_H

#include "drafter/eagle_internal.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

enum { BED_C = 40, BED_CP = 64, BED_V = 320, BED_TEXT = 300 };

static const pl_arch bed_arch = {.n_layers = 3,
    .n_embd = BED_C,
    .n_heads = 4,
    .n_kv_heads = 2,
    .head_dim = 12,
    .n_ff = 56,
    .n_vocab = BED_V,
    .n_ctx = 512,
    .rms_eps = 1e-5f,
    .rope_theta = 10000.0,
    .tied = 1,
    .bos_id = -1};

typedef struct bed {
    const pl_ops *ops;
    pl_team *team;
    pl_model *m;
    float *masters;
} bed;

static inline uint64_t bed_mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* Uniform in (-1, 1). */
static inline double bed_uniform(uint64_t i)
{
    return ((double)(bed_mix(i + 0x9e3779b97f4a7c15u) >> 11) + 0.5) * 0x1p-52 - 1.0;
}

static inline void bed_init(bed *b, int n_threads)
{
    pl_cpu cpu;
    pl_error err = {0};

    memset(b, 0, sizeof *b);
    pl_cpu_read(&cpu);
    cr_assert_eq(pl_ops_select(&b->ops, PL_ISA_AUTO, &cpu, NULL, 0, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_team_new(&b->team, n_threads, 0, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_model_new(&b->m, &bed_arch, b->ops, b->team, 0, &err), PL_OK, "%s", err.msg);
    const pl_param_table *t = pl_model_params(b->m);
    b->masters = calloc(t->n_elements, sizeof *b->masters);
    cr_assert_not_null(b->masters);
    for (int i = 0; i < t->n_params; i++) {
        const pl_param *p = &t->params[i];
        for (size_t j = 0; j < (size_t)p->rows * (size_t)p->cols; j++) {
            const double u = bed_uniform(p->offset + j);
            b->masters[p->offset + j] =
                pl_bf16_to_f32(pl_f32_to_bf16((float)(p->rows == 1 ? 1 + 0.3 * u : 0.5 * u)));
        }
    }
    cr_assert_eq(pl_model_pack(b->m, b->masters, NULL), PL_OK);
}

static inline void bed_done(bed *b)
{
    pl_model_free(b->m);
    pl_team_free(b->team);
    free(b->masters);
}

/* A drafter that leaves out every skip-th token; noise on all weights, norms too. */
static inline pl_eagle *bed_drafter(const bed *b, int skip, uint64_t seed)
{
    int32_t vocab[BED_V];
    int n = 0;
    pl_error err = {0};
    pl_eagle *e;

    for (int i = 0; i < BED_V; i++)
        if (i % skip != 1)
            vocab[n++] = i;
    const pl_eagle_options o = {.n_vocab = n, .vocab = vocab, .seed = seed};
    cr_assert_eq(pl_eagle_new(&e, b->m, &o, &err), PL_OK, "%s", err.msg);
    for (int p = 0; p < EAGLE_N_PARAMS; p++)
        for (size_t i = 0; i < (size_t)e->p[p].rows * (size_t)e->p[p].cols; i++)
            e->w[e->p[p].offset + i] +=
                (float)(0.15 * bed_uniform((seed << 32) + i * 31 + 7) * (p < EAGLE_FC ? 2 : 1));
    eagle_touch(e);
    return e;
}

/* Random tokens and features. */
typedef struct text {
    int32_t tokens[BED_TEXT + 1];
    uint16_t features[BED_TEXT][PL_FEATURE_LAYERS][BED_CP];
} text;

static inline void text_init(text *x, int seed)
{
    const uint64_t base = (uint64_t)seed << 32;

    memset(x, 0, sizeof *x);
    for (int i = 0; i <= BED_TEXT; i++)
        x->tokens[i] = (int32_t)(bed_mix(base + (uint64_t)i) % BED_V);
    for (int i = 0; i < BED_TEXT; i++)
        for (int j = 0; j < PL_FEATURE_LAYERS; j++)
            for (int c = 0; c < BED_C; c++)
                x->features[i][j][c] = pl_f32_to_bf16(
                    (float)(2 * bed_uniform(base + (uint64_t)(1000 + (i * 3 + j) * 1000 + c))));
}

#endif
