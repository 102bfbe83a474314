/* model/tiny.c - a tiny random Llama: weights that are a pure function of shape and seed. */
#include "model/tiny.h"

#include "core/file.h"
#include "core/rng.h"
#include "model/source.h"

#include <math.h>
#include <stdlib.h>

enum { MIN_VOCAB = 300 }; /* 3 special tokens, 256 bytes, and room for some merges */

#define DEFAULT_STD 0.05f /* logits with a spread of about 1 at the default shape */
#define NORM_STD    0.02  /* gains are 1 and a little, so that a forgotten gain shows */

void pl_tiny_defaults(pl_tiny_options *o)
{
    *o = (pl_tiny_options){
        .seed = 1,
        .arch =
            {
                .n_layers = 2,
                .n_embd = 64,
                .n_heads = 4,
                .n_kv_heads = 2,
                .head_dim = 16,
                .n_ff = 160,
                .n_vocab = 512,
                .n_ctx = 512,
                .tied = 1,
                .rms_eps = 1e-5f,
                .rope_theta = 10000.0,
                .bos_id = 1,
                .eos_ids = {2},
                .n_eos = 1,
            },
        .init_std = DEFAULT_STD,
    };
}

/* Four normal deviates from one Philox block (Box and Muller), by no libm function but sqrt. */
static void normals(uint64_t key, uint32_t stream, uint32_t block, double out[4])
{
    const double tau = 6.28318530717958647692, unit = 1.0 / 4294967296.0;
    const uint32_t k[2] = {(uint32_t)key, (uint32_t)(key >> 32)};
    uint32_t w[4] = {block, stream, 0, PL_NOISE_INIT};

    pl_philox4x32(w, k, w);
    for (int i = 0; i < 4; i += 2) {
        const double radius = sqrt(-2.0 * pl_log_d((w[i] + 0.5) * unit));
        double sine, cosine;
        pl_sincos_d(tau * ((w[i + 1] + 0.5) * unit), &sine, &cosine);
        out[i] = radius * cosine;
        out[i + 1] = radius * sine;
    }
}

static void fill(const pl_param *p, uint32_t stream, uint64_t key, float std, float *out)
{
    const int is_norm =
        p->kind == PL_P_ATTN_NORM || p->kind == PL_P_FFN_NORM || p->kind == PL_P_FINAL_NORM;
    const size_t n = (size_t)p->rows * (size_t)p->cols;
    double z[4];

    for (size_t i = 0; i < n; i++) {
        if (i % 4 == 0)
            normals(key, stream, (uint32_t)(i / 4), z);
        out[i] = (float)(is_norm ? 1.0 + NORM_STD * z[i % 4] : (double)std * z[i % 4]);
    }
}

static pl_status write_model(const char *dir, const pl_tiny_options *o, pl_error *err)
{
    const uint64_t key = pl_noise_key(o->seed);
    const float std = o->init_std > 0.0f ? o->init_std : DEFAULT_STD;
    pl_param_table *t = NULL;
    pl_status st = pl_param_table_new(&t, &o->arch, err);

    if (st != PL_OK)
        return st;
    float *masters = calloc(t->n_elements, sizeof *masters);
    if (masters == NULL) {
        st = pl_fail(err, PL_E_NOMEM, "no memory for %zu weights", t->n_elements);
    } else {
        for (int i = 0; i < t->n_params; i++)
            fill(&t->params[i], (uint32_t)i, key, std, masters + t->params[i].offset);
        st = pl_model_save(dir, &o->arch, t, masters, 1, NULL, err);
    }
    free(masters);
    pl_param_table_free(t);
    return st;
}

pl_status pl_tiny_write(const char *dir, const pl_tiny_options *o, pl_error *err)
{
    pl_status st = PL_OK;

    if (o->arch.n_vocab < MIN_VOCAB)
        st = pl_fail(err, PL_E_SHAPE, "a vocabulary of %d is too small, %d tokens are needed",
            o->arch.n_vocab, MIN_VOCAB);
    if (st == PL_OK && (!isfinite(o->init_std) || o->init_std < 0.0f))
        st = pl_fail(err, PL_E_INVAL, "init_std must be finite and not negative");
    if (st == PL_OK)
        st = pl_dir_make(dir, err);
    if (st == PL_OK)
        st = write_model(dir, o, err);
    if (st == PL_OK)
        st = tiny_tokenizer_write(dir, o->arch.n_vocab, o->arch.n_ctx, err);
    if (st != PL_OK)
        return pl_wrap(err, st, "tiny model '%s'", dir);
    return PL_OK;
}
