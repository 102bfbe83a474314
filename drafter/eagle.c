/* drafter/eagle.c - the learned drafter's weights: sizes, memory, random start, packing. */
#include "drafter/eagle_internal.h"

#include "core/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DEFAULT_VOCAB = 8192 };

/* The final gain starts at the target's times this: with the target's own, the random state's first
 * logits are far too sharp (cross-entropy 14 nats; 9 is uniform).  Measured on SmolLM2-135M:
 * held-out alpha after 10 k tokens .115 with 1, .187 with .3, .197 with .15. */
#define START_GAIN 0.15f
/* The fusion starts as the last layer's feature and this much noise: .218 instead of .196. */
#define START_FUSE 0.3f

static eagle_dims dims_of(const pl_arch *a, const eagle_shape *s, int n_vocab)
{
    eagle_dims d = {.c = a->n_embd,
        .cp = pl_pad32(a->n_embd),
        .ld2 = pl_pad32(2 * a->n_embd) + 32,
        .ld3 = pl_pad32(3 * a->n_embd) + 32,
        .f = s->n_ff,
        .fp = pl_pad32(s->n_ff),
        .d = a->head_dim,
        .dp = pl_pad32(a->head_dim),
        .h = s->n_heads,
        .hkv = s->n_kv_heads,
        .group = s->n_heads / s->n_kv_heads,
        .v = n_vocab,
        .vp = pl_pad32(n_vocab),
        .vt = a->n_vocab};

    d.qkv = (d.h + 2 * d.hkv) * d.d;
    d.qkvp = pl_pad32(d.qkv);
    d.ao = d.h * d.d;
    d.aop = pl_pad32(d.ao);
    return d;
}

static void set_params(pl_eagle *e)
{
    const eagle_dims *d = &e->dims;
    const int size[EAGLE_N_PARAMS][2] = {
        [EAGLE_FC_NORM] = {PL_FEATURE_LAYERS, d->c},
        [EAGLE_NORM_EMB] = {1, d->c},
        [EAGLE_NORM_HID] = {1, d->c},
        [EAGLE_NORM_POST] = {1, d->c},
        [EAGLE_NORM_FINAL] = {1, d->c},
        [EAGLE_FC] = {d->c, PL_FEATURE_LAYERS * d->c},
        [EAGLE_QKV] = {d->qkv, 2 * d->c},
        [EAGLE_O] = {d->c, d->ao},
        [EAGLE_GATE] = {d->f, d->c},
        [EAGLE_UP] = {d->f, d->c},
        [EAGLE_DOWN] = {d->c, d->f},
        [EAGLE_HEAD] = {d->v, d->c},
    };

    for (int i = 0; i < EAGLE_N_PARAMS; i++) {
        e->p[i] = (eagle_matrix){.rows = size[i][0], .cols = size[i][1], .offset = e->n_elements};
        e->n_elements += ((size_t)size[i][0] * (size_t)size[i][1] + 15) & ~(size_t)15;
    }
}

/* Take memory from the arena, or only count it. */
static void *take(pl_arena *arena, size_t *total, size_t n_bytes)
{
    *total += pl_arena_cost(n_bytes);
    return arena ? pl_arena_alloc(arena, n_bytes) : NULL;
}

static size_t lay_out(pl_eagle *e, pl_arena *arena)
{
    size_t total = 0;

    e->w = take(arena, &total, e->n_elements * sizeof *e->w);
    e->vocab = take(arena, &total, (size_t)e->dims.v * sizeof *e->vocab);
    e->to_draft = take(arena, &total, (size_t)e->dims.vt * sizeof *e->to_draft);
    for (int i = EAGLE_FC; i < EAGLE_N_PARAMS; i++) {
        eagle_matrix *m = &e->p[i];
        m->packed = take(arena, &total, pl_packed_elements(m->rows, m->cols) * sizeof *m->packed);
        m->packed_t =
            take(arena, &total, pl_packed_elements(m->rows, m->cols) * sizeof *m->packed_t);
    }
    return total;
}

size_t eagle_sketch(pl_eagle *e, const pl_arch *a, int n_vocab)
{
    const eagle_shape shape = {.n_ff = a->n_ff, .n_heads = a->n_heads, .n_kv_heads = a->n_kv_heads};
    const int n = n_vocab > 0 ? n_vocab : a->n_vocab < DEFAULT_VOCAB ? a->n_vocab : DEFAULT_VOCAB;

    *e = (pl_eagle){.dims = dims_of(a, &shape, n)};
    set_params(e);
    return lay_out(e, NULL);
}

size_t pl_eagle_plan(const pl_arch *a, int n_vocab)
{
    pl_eagle e;
    return eagle_sketch(&e, a, n_vocab);
}

static pl_status set_vocab(pl_eagle *e, const int32_t *vocab, pl_error *err)
{
    memset(e->to_draft, 0xff, (size_t)e->dims.vt * sizeof *e->to_draft);
    for (int i = 0; i < e->dims.v; i++) {
        const int32_t id = vocab ? vocab[i] : i;
        if (id < (i > 0 ? e->vocab[i - 1] + 1 : 0) || id >= e->dims.vt)
            return pl_fail(err, PL_E_INVAL,
                "draft vocabulary: id %d at place %d; ids must ascend and be below %d", (int)id, i,
                e->dims.vt);
        e->vocab[i] = id;
        e->to_draft[id] = i;
    }
    return PL_OK;
}

pl_status eagle_alloc(pl_eagle **out, const pl_model *target, const eagle_shape *shape,
    const int32_t *vocab, int n_vocab, pl_error *err)
{
    const pl_arch *a = pl_model_arch(target);
    pl_eagle *e = calloc(1, sizeof *e);

    if (!e)
        return pl_fail(err, PL_E_NOMEM, "drafter: no memory");
    e->target = target;
    e->ops = pl_model_ops(target);
    e->team = pl_model_team(target);
    e->parts = pl_model_lend(target);
    e->eps = a->rms_eps;
    e->has_fc_norm = !shape->no_fc_norm;
    e->norm_output = !shape->raw_output;
    e->dims = dims_of(a, shape, n_vocab);
    set_params(e);
    pl_status st = pl_arena_init(&e->arena, lay_out(e, NULL), "drafter", err);
    if (st == PL_OK) {
        lay_out(e, &e->arena);
        st = set_vocab(e, vocab, err);
    }
    if (st != PL_OK) {
        pl_eagle_free(e);
        return st;
    }
    eagle_touch(e);
    *out = e;
    return PL_OK;
}

void pl_eagle_free(pl_eagle *e)
{
    if (!e)
        return;
    pl_arena_done(&e->arena);
    free(e);
}

/* Uniform in +- 1 / sqrt(inputs), the usual start of a linear layer. */
static void fill_matrix(pl_eagle *e, eagle_param i, uint64_t key)
{
    const eagle_matrix *m = &e->p[i];
    const size_t n = (size_t)m->rows * (size_t)m->cols;
    const float size = 1.0f / sqrtf((float)m->cols);
    const uint32_t k[2] = {(uint32_t)key, (uint32_t)(key >> 32)};
    uint32_t word[4] = {0};

    for (size_t j = 0; j < n; j++) {
        if (j % 4 == 0) {
            const uint32_t counter[4] = {(uint32_t)(j / 4), (uint32_t)i, 0, PL_NOISE_INIT};
            pl_philox4x32(counter, k, word);
        }
        e->w[m->offset + j] = size * ((float)(word[j % 4] >> 8) * 0x1p-23f - 1.0f);
    }
}

static void start_fusion(pl_eagle *e)
{
    const eagle_matrix *m = &e->p[EAGLE_FC];
    const int last = (PL_FEATURE_LAYERS - 1) * e->dims.c;

    for (int r = 0; r < m->rows; r++) {
        float *w = e->w + m->offset + (size_t)r * (size_t)m->cols;
        e->ops->scale(w, START_FUSE, m->cols);
        w[last + r] += 1.0f;
    }
}

static void copy_of_target(pl_eagle *e)
{
    float *gain = e->w + e->p[EAGLE_NORM_FINAL].offset;

    for (int j = 0; j < e->dims.c; j++)
        gain[j] = START_GAIN * e->parts.final_norm[j];
    for (int i = 0; i < e->dims.v; i++)
        e->ops->packed_row(e->w + e->p[EAGLE_HEAD].offset + (size_t)i * (size_t)e->dims.c,
            e->parts.head, e->vocab[i], e->dims.c);
}

pl_status pl_eagle_begin(
    pl_eagle **out, const pl_model *target, const pl_eagle_options *o, pl_error *err)
{
    const pl_arch *a = pl_model_arch(target);
    const eagle_shape shape = {.n_ff = a->n_ff, .n_heads = a->n_heads, .n_kv_heads = a->n_kv_heads};
    int n = o->n_vocab;
    pl_eagle *e;

    if (n == 0)
        n = a->n_vocab < DEFAULT_VOCAB ? a->n_vocab : DEFAULT_VOCAB;
    if (n < 1 || n > a->n_vocab)
        return pl_fail(
            err, PL_E_INVAL, "drafter: vocabulary of %d; the target has %d tokens", n, a->n_vocab);
    if (!o->vocab && n < a->n_vocab)
        return pl_fail(err, PL_E_INVAL,
            "drafter: %d of the target's %d tokens, but no list that says which", n, a->n_vocab);
    const pl_status st = eagle_alloc(&e, target, &shape, o->vocab, n, err);
    if (st != PL_OK)
        return st;
    copy_of_target(e);
    *out = e;
    return PL_OK;
}

void pl_eagle_fill(pl_eagle *e, uint64_t seed)
{
    const uint64_t key = pl_noise_key(seed);

    for (int i = 0; i < EAGLE_FC; i++)
        for (size_t j = 0; i != EAGLE_NORM_FINAL && j < (size_t)e->p[i].rows * (size_t)e->p[i].cols;
             j++)
            e->w[e->p[i].offset + j] = 1.0f;
    for (int i = EAGLE_FC; i < EAGLE_HEAD; i++)
        fill_matrix(e, (eagle_param)i, key);
    start_fusion(e);
}

pl_status pl_eagle_new(
    pl_eagle **out, const pl_model *target, const pl_eagle_options *o, pl_error *err)
{
    const pl_status st = pl_eagle_begin(out, target, o, err);

    if (st == PL_OK)
        pl_eagle_fill(*out, o->seed);
    return st;
}

int pl_eagle_n_vocab(const pl_eagle *e)
{
    return e->dims.v;
}

const int32_t *pl_eagle_vocab(const pl_eagle *e)
{
    return e->vocab;
}

size_t pl_eagle_bytes(const pl_eagle *e)
{
    return e->n_elements * sizeof *e->w;
}

/* ---- packing ---- */

void eagle_touch(pl_eagle *e)
{
    for (int i = EAGLE_FC; i < EAGLE_N_PARAMS; i++)
        e->stale |= 1u << i;
    e->stale_t = e->stale;
}

typedef struct pack_job {
    const pl_eagle *e;
    const eagle_matrix *m;
} pack_job; /* one of the matrices, one way */

static void pack_share(void *ctx, int i_thread, int n_threads)
{
    const pack_job *j = ctx;
    const eagle_matrix *m = j->m;
    const float *w = j->e->w + m->offset;
    int begin, end;

    pl_share(pl_pad32(m->rows) / 32, 1, i_thread, n_threads, &begin, &end);
    j->e->ops->pack_nk(m->packed, w, (size_t)m->cols, m->rows, m->cols, begin, end);
}

static void pack_t_share(void *ctx, int i_thread, int n_threads)
{
    const pack_job *j = ctx;
    const eagle_matrix *m = j->m;
    int begin, end;

    pl_share(pl_pad32(m->cols) / 32, 1, i_thread, n_threads, &begin, &end);
    j->e->ops->pack_kn(
        m->packed_t, j->e->w + m->offset, (size_t)m->cols, m->cols, m->rows, begin, end);
}

static int pack_one_of(pl_eagle *e, unsigned *stale, pl_team_fn fn)
{
    for (int i = EAGLE_FC; i < EAGLE_N_PARAMS; i++) {
        pack_job j = {e, &e->p[i]};
        if (!(*stale >> i & 1))
            continue;
        pl_team_run(e->team, fn, &j);
        *stale &= ~(1u << i);
        return 1;
    }
    return 0;
}

int pl_eagle_pack_one(pl_eagle *e)
{
    return pack_one_of(e, &e->stale, pack_share);
}

void pl_eagle_pack_alone(pl_eagle *e)
{
    for (int i = EAGLE_FC; i < EAGLE_N_PARAMS; i++) {
        pack_job j = {e, &e->p[i]};
        if (e->stale >> i & 1)
            pack_share(&j, 0, 1);
    }
    e->stale = 0;
}

int eagle_pack_one_to_train(pl_eagle *e)
{
    return pl_eagle_pack_one(e) || pack_one_of(e, &e->stale_t, pack_t_share);
}
