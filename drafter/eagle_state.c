/* drafter/eagle_state.c - the training state in arrays of the caller, for those who keep it in a
 * file: from one copy to the next by pieces, so that a step that is not finished leaves the old one
 * whole, and from one draft vocabulary to another. */
#include "drafter/eagle_trainer.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { BLOCK = 16 }; /* elements; parameters begin at multiples of it */

pl_eagle_shape pl_eagle_get_shape(const pl_eagle *e)
{
    return (pl_eagle_shape){.n_ff = e->dims.f,
        .n_heads = e->dims.h,
        .n_kv_heads = e->dims.hkv,
        .n_vocab = e->dims.v,
        .no_fc_norm = !e->has_fc_norm,
        .raw_output = !e->norm_output,
        .eps = e->eps};
}

static int is_shape(const pl_eagle_shape *s, const pl_arch *a)
{
    return s->n_ff > 0 && s->n_ff <= 1 << 24 && s->n_kv_heads > 0 && s->n_heads <= 1 << 16 &&
           s->n_heads >= s->n_kv_heads && s->n_heads % s->n_kv_heads == 0 && s->n_vocab > 0 &&
           s->n_vocab <= a->n_vocab;
}

pl_status pl_eagle_from(pl_eagle **out, const pl_model *target, const pl_eagle_shape *shape,
    const int32_t *vocab, const float *weights, pl_error *err)
{
    const eagle_shape inner = {.n_ff = shape->n_ff,
        .n_heads = shape->n_heads,
        .n_kv_heads = shape->n_kv_heads,
        .no_fc_norm = shape->no_fc_norm,
        .raw_output = shape->raw_output};
    pl_eagle *e;

    if (!is_shape(shape, pl_model_arch(target)))
        return pl_fail(err, PL_E_INVAL,
            "drafter: inner size %d, %d heads, %d KV heads, vocabulary %d: they do not fit",
            shape->n_ff, shape->n_heads, shape->n_kv_heads, shape->n_vocab);
    const pl_status st = eagle_alloc(&e, target, &inner, vocab, shape->n_vocab, err);
    if (st != PL_OK)
        return st;
    if (shape->eps > 0)
        e->eps = shape->eps;
    if (weights)
        memcpy(e->w, weights, e->n_elements * sizeof *e->w);
    *out = e;
    return PL_OK;
}

const float *pl_eagle_get_weights(const pl_eagle *e)
{
    return e->w;
}

void pl_eagle_set_weights(pl_eagle *e, const float *weights)
{
    pl_eagle_set_part(e, weights, 0, e->n_elements);
}

void pl_eagle_set_part(pl_eagle *e, const float *weights, size_t begin, size_t n)
{
    memcpy(e->w + begin, weights + begin, n * sizeof *e->w);
    eagle_touch(e);
}

/* ---- the norm ---- */

enum { MAX_THREADS = 256 };

typedef struct square_job {
    const pl_ops *ops;
    const float *x;
    size_t n;
    double sums[MAX_THREADS];
} square_job;

static void square_share(void *ctx, int i_thread, int n_threads)
{
    square_job *j = ctx;
    int begin, end;

    if (i_thread >= MAX_THREADS)
        return;
    pl_share((int)(j->n / BLOCK), 1, i_thread, n_threads < MAX_THREADS ? n_threads : MAX_THREADS,
        &begin, &end);
    j->sums[i_thread] =
        j->ops->sum_squares(j->x + (size_t)begin * BLOCK, (size_t)(end - begin) * BLOCK);
}

double pl_eagle_norm(const pl_eagle *e, const float *grads)
{
    square_job j = {.ops = e->ops, .x = grads, .n = e->n_elements};
    double sum = 0;

    pl_team_run(e->team, square_share, &j);
    for (int i = 0; i < MAX_THREADS; i++)
        sum += j.sums[i];
    return sqrt(sum);
}

/* ---- a piece of an update ---- */

typedef struct part_job {
    const pl_eagle *e;
    const pl_eagle_state *from;
    pl_eagle_state *to;
    const float *grads;
    size_t begin, n, n_norms; /* n_norms: elements that belong to norms, which stand first */
    float keep;
    pl_adamw norms, matrices;
} part_job;

static void update_range(const part_job *j, size_t at, size_t n, const pl_adamw *a)
{
    const pl_eagle_state *from = j->from, *to = j->to;
    const float keep = j->keep;

    memcpy(to->weights + at, from->weights + at, n * sizeof(float));
    memcpy(to->m + at, from->m + at, n * sizeof(float));
    memcpy(to->v + at, from->v + at, n * sizeof(float));
    j->e->ops->adamw(to->weights + at, to->m + at, to->v + at, j->grads + at, n, a);
    for (size_t i = at; to->average && i < at + n; i++)
        to->average[i] = keep * from->average[i] + (1.0f - keep) * to->weights[i];
}

static void part_share(void *ctx, int i_thread, int n_threads)
{
    const part_job *j = ctx;
    int begin, end;

    pl_share((int)(j->n / BLOCK), 1, i_thread, n_threads, &begin, &end);
    size_t at = j->begin + (size_t)begin * BLOCK;
    const size_t stop = j->begin + (size_t)end * BLOCK;
    if (at < j->n_norms && at < stop) {
        const size_t n = (stop < j->n_norms ? stop : j->n_norms) - at;
        update_range(j, at, n, &j->norms);
        at += n;
    }
    if (at < stop)
        update_range(j, at, stop - at, &j->matrices);
}

void pl_eagle_update_part(const pl_eagle *e, const pl_eagle_train_options *o,
    const pl_eagle_state *from, const float *grads, double norm, pl_eagle_state *to, size_t begin,
    size_t n)
{
    const double step = (double)from->step + 1;
    const double ramp = step < o->warmup_steps ? step / o->warmup_steps : 1.0;
    /* A young average forgets the random start sooner. */
    const double young = step / (step + 9);
    const pl_adamw a = {.lr = (float)((double)o->lr * ramp),
        .beta1 = o->beta1,
        .beta2 = o->beta2,
        .eps = 1e-8f,
        .weight_decay = o->weight_decay,
        .bias1 = (float)(1 - pow((double)o->beta1, step)),
        .bias2 = (float)(1 - pow((double)o->beta2, step)),
        .grad_scale = norm > (double)o->clip ? (float)((double)o->clip / norm) : 1.0f};
    part_job j = {.e = e,
        .from = from,
        .to = to,
        .grads = grads,
        .begin = begin,
        .n = n,
        .n_norms = e->p[EAGLE_FC].offset,
        .keep = (double)o->ema < young ? o->ema : (float)young,
        .norms = a,
        .matrices = a};

    assert(begin % BLOCK == 0 && n % BLOCK == 0 && begin + n <= e->n_elements);
    j.norms.weight_decay = 0;
    pl_team_run(e->team, part_share, &j);
    to->step = from->step + 1;
}

/* ---- another vocabulary ---- */

void pl_eagle_remap(
    const pl_eagle *e, const pl_eagle *fresh, const pl_eagle_state *from, pl_eagle_state *to)
{
    const eagle_matrix *a = &e->p[EAGLE_HEAD], *b = &fresh->p[EAGLE_HEAD];
    const float *const src[] = {from->weights, from->m, from->v, from->average};
    float *const dst[] = {to->weights, to->m, to->v, to->average};
    const size_t row = (size_t)e->dims.c;

    assert(a->offset == b->offset && a->cols == b->cols);
    for (int i = 0; i < 4; i++) {
        if (!src[i] || !dst[i])
            continue;
        memcpy(dst[i], src[i], a->offset * sizeof(float));
        memset(dst[i] + b->offset, 0, (fresh->n_elements - b->offset) * sizeof(float));
        for (int r = 0; r < fresh->dims.v; r++) {
            const int old = e->to_draft[fresh->vocab[r]];
            float *out = dst[i] + b->offset + (size_t)r * row;
            if (old >= 0)
                memcpy(out, src[i] + a->offset + (size_t)old * row, row * sizeof(float));
            else if (i == 0 || i == 3)
                e->ops->packed_row(out, e->parts.head, fresh->vocab[r], e->dims.c);
        }
    }
    to->step = from->step;
}
