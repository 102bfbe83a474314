/* tests/trainer/spot_bed.c */
#include "tests/trainer/spot_bed.h"

#include "core/file.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { C = 40, V = 320 };

static const pl_arch tiny = {.n_layers = 2,
    .n_embd = C,
    .n_heads = 4,
    .n_kv_heads = 2,
    .head_dim = 12,
    .n_ff = 56,
    .n_vocab = V,
    .n_ctx = 128,
    .rms_eps = 1e-5f,
    .rope_theta = 10000.0,
    .tied = 1,
    .bos_id = -1};

static double uniform(uint64_t i)
{
    uint64_t x = i + 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    x ^= x >> 31;
    return ((double)(x >> 11) + 0.5) * 0x1p-52 - 1.0;
}

static void make_target(spot_bed *b)
{
    pl_cpu cpu;
    pl_error err = {0};

    pl_cpu_read(&cpu);
    cr_assert_eq(pl_ops_select(&b->ops, PL_ISA_AUTO, &cpu, NULL, 0, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_team_new(&b->team, 1, 0, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_model_new(&b->m, &tiny, b->ops, b->team, 0, &err), PL_OK, "%s", err.msg);
    const pl_param_table *t = pl_model_params(b->m);
    b->masters = calloc(t->n_elements, sizeof *b->masters);
    cr_assert_not_null(b->masters);
    for (int i = 0; i < t->n_params; i++) {
        const pl_param *p = &t->params[i];
        for (size_t j = 0; j < (size_t)p->rows * (size_t)p->cols; j++) {
            const double u = uniform(p->offset + j);
            b->masters[p->offset + j] = (float)(p->rows == 1 ? 1 + 0.3 * u : 0.5 * u);
        }
    }
    cr_assert_eq(pl_model_pack(b->m, b->masters, NULL), PL_OK);
}

void spot_bed_open(spot_bed *b)
{
    pl_error err = {0};

    memset(b, 0, sizeof *b);
    make_target(b);
    b->prompt_even = 4;
    snprintf(b->dir, sizeof b->dir, "%s/pl-spot-XXXXXX", P_tmpdir);
    cr_assert_not_null(mkdtemp(b->dir));
    snprintf(b->drafter, sizeof b->drafter, "%s/drafter", b->dir);
    snprintf(b->buffer, sizeof b->buffer, "%s/buffer", b->dir);
    b->buffers[0] = b->buffer;
    b->o = (pl_spot_options){.dir = b->drafter,
        .name = "w0",
        .windows = {.max_bytes = 4 << 20, .window = SPOT_ROWS, .n_embd = C, .target = 77},
        .windows_a_step = 2,
        .n_vocab = V,
        .seed = 3,
        .gate_s = 1e9,
        .gate_tokens = 60,
        .gate_samples = 2,
        .max_versions = 4,
        .init = "random"};
    pl_eagle_train_defaults(&b->o.train);
    b->o.train.depth = 2;
    b->o.train.lr = 5e-3f;
    b->o.train.warmup_steps = 0;
    cr_assert_eq(pl_windows_open(&b->w, b->buffer, &b->o.windows, &err), PL_OK, "%s", err.msg);
}

void spot_bed_close(spot_bed *b)
{
    pl_windows_close(b->w);
    pl_model_free(b->m);
    pl_team_free(b->team);
    free(b->masters);
    (void)pl_dir_remove(b->dir, NULL);
}

void spot_bed_put(spot_bed *b, uint32_t uid, uint32_t version, float size)
{
    static int32_t tokens[SPOT_ROWS];
    static uint16_t features[SPOT_ROWS][PL_FEATURE_LAYERS][64], hidden[SPOT_ROWS][64];
    const int cp = pl_pad32(C);
    uint16_t *f = &features[0][0][0], *h = &hidden[0][0];
    pl_error err = {0};

    memset(features, 0, sizeof features);
    memset(hidden, 0, sizeof hidden);
    int32_t token = (int32_t)(uid * 11 % SPOT_TOKENS);
    for (int i = 0; i < SPOT_ROWS; i++) {
        const int32_t next = (token * 5 + 3) % SPOT_TOKENS;
        tokens[i] = token + b->token_shift;
        for (int c = 0; c < C; c++) {
            for (int l = 0; l < PL_FEATURE_LAYERS; l++)
                f[(i * PL_FEATURE_LAYERS + l) * cp + c] = pl_f32_to_bf16(
                    (float)uniform((uint64_t)((uid * 64 + (uint32_t)i) * 256 + (uint32_t)c)));
            h[i * cp + c] = pl_f32_to_bf16(size * b->masters[(next + b->token_shift) * C + c]);
        }
        token = next;
    }
    const pl_feature_window w = {.uid = uid,
        .policy_version = version,
        .noise_key = 99,
        .temperature = 1,
        .top_p = 1,
        .n_prompt = uid % 2 ? 4 : b->prompt_even,
        .position = 0,
        .n = SPOT_ROWS,
        .is_last = 1,
        .served_from = b->served_from,
        .drafter = b->served_by,
        .tokens = tokens,
        .features = f,
        .hidden = h};
    cr_assert_eq(pl_windows_put(b->w, &w, &err), PL_OK, "%s", err.msg);
}

void spot_bed_fill(spot_bed *b, uint32_t begin, uint32_t end)
{
    for (uint32_t uid = begin; uid < end; uid++)
        spot_bed_put(b, uid, 1, 4);
}

pl_spot *spot_bed_spot(spot_bed *b, const char *name)
{
    pl_spot_options o = b->o;
    pl_error err = {0};
    pl_spot *s = NULL;

    o.name = name ? name : "w0";
    cr_assert_eq(pl_spot_new(&s, b->m, &o, NULL, &err), PL_OK, "%s", err.msg);
    return s;
}

void spot_bed_begin(spot_bed *b, pl_spot *s, uint64_t session, int is_lead)
{
    pl_error err = {0};
    cr_assert_eq(pl_spot_begin(s, session, is_lead, b->buffers, 1, 1, &err), PL_OK, "%s", err.msg);
}

void spot_bed_work(pl_spot *s, int n)
{
    pl_spot_published p;
    pl_error err = {0};

    for (int i = 0; i < n; i++)
        cr_assert_eq(pl_spot_work(s, NULL, NULL, &p, &err), PL_OK, "%s", err.msg);
}

uint32_t spot_bed_publish(pl_spot *s, int n, pl_spot_published *out)
{
    pl_error err = {0};

    for (int i = 0; i < n; i++) {
        cr_assert_eq(pl_spot_work(s, NULL, NULL, out, &err), PL_OK, "%s", err.msg);
        if (out->version > 0)
            return out->version;
        if (s->publish.job.is_running) { /* its thread: wait for it */
            cr_assert_eq(spot_publish_poll(s, 1, out, &err), PL_OK, "%s", err.msg);
            if (out->version > 0)
                return out->version;
        }
    }
    return 0;
}

uint64_t spot_bed_hash(const pl_spot *s, spot_record *r)
{
    const int half = spot_valid(&s->file, r);

    cr_assert_geq(half, 0);
    return pl_hash64(spot_vocab(&s->file, half), spot_half_bytes(&s->file.head));
}
