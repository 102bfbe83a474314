/* tests/drafter/eagle_bed.h - a small target, a drafter for it and windows of random content. */
#ifndef PL_TESTS_DRAFTER_EAGLE_BED_H
#define PL_TESTS_DRAFTER_EAGLE_BED_H

#include "drafter/eagle_trainer.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_N = 64, MAX_C = 64, MAX_V = 512, DEPTH = 4 };

static const pl_arch small = {.n_layers = 2,
    .n_embd = 40,
    .n_heads = 4,
    .n_kv_heads = 2,
    .head_dim = 12,
    .n_ff = 56,
    .n_vocab = 320,
    .n_ctx = 128,
    .rms_eps = 1e-5f,
    .rope_theta = 10000.0,
    .tied = 1,
    .bos_id = -1};

static inline uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* Uniform in (-1, 1). */
static inline double uniform(uint64_t i)
{
    return ((double)(mix(i + 0x9e3779b97f4a7c15u) >> 11) + 0.5) * 0x1p-52 - 1.0;
}

static inline float rounded(double x)
{
    return pl_bf16_to_f32(pl_f32_to_bf16((float)x));
}

typedef struct bed {
    pl_arch arch;
    const pl_ops *ops;
    pl_team *team;
    pl_model *m;
    float *masters;
    int32_t vocab[MAX_V];
    int n_vocab;
    pl_eagle *e;
} bed;

static inline void fill_target(bed *b)
{
    const pl_param_table *t = pl_model_params(b->m);

    b->masters = calloc(t->n_elements, sizeof *b->masters);
    cr_assert_not_null(b->masters);
    for (int i = 0; i < t->n_params; i++) {
        const pl_param *p = &t->params[i];
        for (size_t j = 0; j < (size_t)p->rows * (size_t)p->cols; j++) {
            const double u = uniform(p->offset + j);
            b->masters[p->offset + j] = rounded(p->rows == 1 ? 1 + 0.3 * u : 0.5 * u);
        }
    }
    cr_assert_eq(pl_model_pack(b->m, b->masters, NULL), PL_OK);
}

/* A drafter whose vocabulary is every third token of the target's left out. */
static inline void bed_init(bed *b, const pl_arch *a, int n_threads)
{
    pl_cpu cpu;
    pl_error err = {0};

    memset(b, 0, sizeof *b);
    b->arch = *a;
    pl_cpu_read(&cpu);
    cr_assert_eq(pl_ops_select(&b->ops, PL_ISA_AUTO, &cpu, NULL, 0, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_team_new(&b->team, n_threads, 0, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_model_new(&b->m, a, b->ops, b->team, 0, &err), PL_OK, "%s", err.msg);
    fill_target(b);
    for (int i = 0; i < a->n_vocab; i++)
        if (i % 3 != 1)
            b->vocab[b->n_vocab++] = i;
    const pl_eagle_options o = {.n_vocab = b->n_vocab, .vocab = b->vocab, .seed = 5};
    cr_assert_eq(pl_eagle_new(&b->e, b->m, &o, &err), PL_OK, "%s", err.msg);
}

static inline void bed_done(bed *b)
{
    pl_eagle_free(b->e);
    pl_model_free(b->m);
    pl_team_free(b->team);
    free(b->masters);
}

/* Windows with random content. */
typedef struct data {
    int32_t tokens[MAX_N];
    uint16_t features[MAX_N][PL_FEATURE_LAYERS][MAX_C];
    uint16_t hidden[MAX_N][MAX_C];
    uint8_t is_target[MAX_N];
    pl_eagle_window w;
} data;

static inline void data_init(data *x, const pl_arch *a, int n, int seed)
{
    const uint64_t base = (uint64_t)seed << 32;
    const int cp = pl_pad32(a->n_embd);
    uint16_t *f = &x->features[0][0][0], *hidden = &x->hidden[0][0];

    memset(x, 0, sizeof *x);
    for (int i = 0; i < n; i++) {
        x->tokens[i] = (int32_t)(mix(base + (uint64_t)i) % (uint64_t)a->n_vocab);
        x->is_target[i] = i >= 3 && i % 7 != 5;
        for (int c = 0; c < a->n_embd; c++) {
            const uint64_t at = base + 1000 + (uint64_t)(i * 1000 + c);
            for (int l = 0; l < PL_FEATURE_LAYERS; l++)
                f[(i * PL_FEATURE_LAYERS + l) * cp + c] =
                    pl_f32_to_bf16((float)(2 * uniform(at * 3 + (uint64_t)l)));
            hidden[i * cp + c] = pl_f32_to_bf16((float)(1.5 * uniform(at + 500)));
        }
    }
    x->w = (pl_eagle_window){.tokens = x->tokens,
        .features = f,
        .hidden = hidden,
        .is_target = x->is_target,
        .n = n,
        .position = 7 * seed,
        .temperature = seed % 2 ? 0.8f : 1.0f};
}

static inline pl_eagle_train_options options(void)
{
    pl_eagle_train_options o;
    pl_eagle_train_defaults(&o);
    o.window = 40;
    o.max_windows = 4;
    o.depth = 3;
    o.depth_decay = 0.8f;
    o.warmup_steps = 0;
    return o;
}

static inline pl_eagle_trainer *trainer(pl_eagle *e, const pl_eagle_train_options *o)
{
    pl_eagle_trainer *t;
    pl_error err = {0};
    cr_assert_eq(pl_eagle_trainer_new(&t, e, o, &err), PL_OK, "%s", err.msg);
    return t;
}

/* Norms that are not one, a drafter that is not its target. */
static inline void disturb(pl_eagle *e)
{
    for (size_t i = 0; i < e->n_elements; i++)
        e->w[i] += (float)(0.1 * uniform(i + 99) * (i < e->p[EAGLE_FC].offset ? 3 : 1));
    for (int p = 0; p < EAGLE_N_PARAMS; p++) /* padding between them stays zero */
        for (size_t i = e->p[p].offset + (size_t)e->p[p].rows * (size_t)e->p[p].cols;
             i < (p + 1 < EAGLE_N_PARAMS ? e->p[p + 1].offset : e->n_elements); i++)
            e->w[i] = 0;
    eagle_touch(e);
}

static inline float *copy_weights(const pl_eagle *e)
{
    float *w = malloc(e->n_elements * sizeof *w);
    cr_assert_not_null(w);
    memcpy(w, e->w, e->n_elements * sizeof *w);
    return w;
}

static inline int same_weights(const pl_eagle *e, const float *w)
{
    return memcmp(e->w, w, e->n_elements * sizeof *w) == 0;
}

typedef struct stopper {
    int at, asked;
} stopper;

static inline int stop_at(void *ctx)
{
    stopper *s = ctx;
    return s->asked++ >= s->at;
}

#endif
