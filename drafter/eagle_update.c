/* drafter/eagle_update.c - the second half of a training step, and the state that it changes.
 *
 * The update is never stopped half-way: whoever asks gets the state before it or after it. */
#include "drafter/eagle_trainer.h"

#include <math.h>
#include <string.h>

enum {
    BLOCK = 16,   /* elements; parameters begin at multiples of it */
    PIECE = 8192, /* elements of an update at a time */
};

size_t pl_eagle_n_elements(const pl_eagle *e)
{
    return e->n_elements;
}

/* ---- the norm ---- */

typedef struct square_job {
    pl_eagle_trainer *t;
    const float *grads;
    size_t n;
} square_job;

static void square_share(void *ctx, int i_thread, int n_threads)
{
    const square_job *j = ctx;
    int begin, end;

    pl_share((int)(j->n / BLOCK), 1, i_thread, n_threads, &begin, &end);
    j->t->scratch[i_thread].sum =
        j->t->e->ops->sum_squares(j->grads + (size_t)begin * BLOCK, (size_t)(end - begin) * BLOCK);
}

static double norm_of(pl_eagle_trainer *t, const float *grads)
{
    square_job j = {t, grads, t->e->n_elements};
    double sum = 0;

    pl_team_run(t->e->team, square_share, &j);
    for (int i = 0; i < t->n_threads; i++)
        sum += t->scratch[i].sum;
    return sqrt(sum);
}

pl_status eagle_grad_norm(pl_eagle_trainer *t, double *norm, pl_error *err)
{
    if (t->should_stop && t->should_stop(t->stop_ctx))
        return pl_fail(err, PL_E_STOPPED, "drafter training: asked to stop; nothing was changed");
    *norm = norm_of(t, t->grads);
    return PL_OK;
}

/* ---- the update ---- */

typedef struct update_job {
    pl_eagle_trainer *t;
    const float *grads;
    pl_adamw norms, matrices;
} update_job;

/* In pieces, so that the average finds the weights in cache. */
static void update_range(const update_job *j, size_t at, size_t end, const pl_adamw *a)
{
    pl_eagle_trainer *t = j->t;
    const pl_ops *ops = t->e->ops;

    for (; at < end; at += PIECE) {
        const size_t n = end - at < PIECE ? end - at : PIECE;
        ops->adamw(t->e->w + at, t->m + at, t->v + at, j->grads + at, n, a);
        if (!t->average)
            continue;
        ops->scale(t->average + at, t->o.ema, (int)n);
        ops->saxpy(t->average + at, 1.0f - t->o.ema, t->e->w + at, (int)n);
    }
}

static void update_share(void *ctx, int i_thread, int n_threads)
{
    const update_job *j = ctx;
    int begin, end;

    for (int p = 0; p < EAGLE_N_PARAMS; p++) {
        const eagle_matrix *m = &j->t->e->p[p];
        pl_share((m->rows * m->cols + BLOCK - 1) / BLOCK, 1, i_thread, n_threads, &begin, &end);
        update_range(j, m->offset + (size_t)begin * BLOCK, m->offset + (size_t)end * BLOCK,
            p < EAGLE_FC ? &j->norms : &j->matrices);
    }
}

void eagle_update(pl_eagle_trainer *t, const float *grads, double norm)
{
    const double step = (double)++t->step;
    const double ramp = step < t->o.warmup_steps ? step / t->o.warmup_steps : 1.0;
    const pl_adamw a = {.lr = (float)((double)t->o.lr * ramp),
        .beta1 = t->o.beta1,
        .beta2 = t->o.beta2,
        .eps = 1e-8f,
        .weight_decay = t->o.weight_decay,
        .bias1 = (float)(1 - pow((double)t->o.beta1, step)),
        .bias2 = (float)(1 - pow((double)t->o.beta2, step)),
        .grad_scale = norm > (double)t->o.clip ? (float)((double)t->o.clip / norm) : 1.0f};
    update_job j = {t, grads, a, a};

    j.norms.weight_decay = 0;
    pl_team_run(t->e->team, update_share, &j);
    eagle_touch(t->e);
}

pl_status pl_eagle_apply(pl_eagle_trainer *t, const float *grads, double *grad_norm, pl_error *err)
{
    *grad_norm = norm_of(t, grads);
    if (!isfinite(*grad_norm))
        return pl_fail(err, PL_E_NUMERIC,
            "drafter training: gradient norm %g; the update is dropped", *grad_norm);
    eagle_update(t, grads, *grad_norm);
    return PL_OK;
}

/* ---- the state ---- */

void pl_eagle_trainer_get(const pl_eagle_trainer *t, pl_eagle_state *out)
{
    const size_t n_bytes = t->e->n_elements * sizeof(float);

    memcpy(out->weights, t->e->w, n_bytes);
    memcpy(out->m, t->m, n_bytes);
    memcpy(out->v, t->v, n_bytes);
    if (t->average && out->average)
        memcpy(out->average, t->average, n_bytes);
    out->step = t->step;
    memcpy(out->measured, t->measured, sizeof out->measured);
}

void pl_eagle_trainer_put(pl_eagle_trainer *t, const pl_eagle_state *in)
{
    const size_t n_bytes = t->e->n_elements * sizeof(float);

    memcpy(t->e->w, in->weights, n_bytes);
    memcpy(t->m, in->m, n_bytes);
    memcpy(t->v, in->v, n_bytes);
    if (t->average)
        memcpy(t->average, in->average ? in->average : in->weights, n_bytes);
    t->step = in->step;
    pl_eagle_trainer_set_measured(t, in->measured);
    eagle_touch(t->e);
}

pl_status pl_eagle_copy(
    pl_eagle **out, const pl_eagle *e, const pl_eagle_trainer *average, pl_error *err)
{
    const eagle_shape shape = {e->dims.f, e->dims.h, e->dims.hkv, !e->has_fc_norm, !e->norm_output};
    pl_eagle *copy;
    const pl_status st = eagle_alloc(&copy, e->target, &shape, e->vocab, e->dims.v, err);

    if (st != PL_OK)
        return pl_wrap(err, st, "a copy of the drafter");
    memcpy(copy->w, average && average->average ? average->average : e->w,
        e->n_elements * sizeof(float));
    copy->eps = e->eps;
    *out = copy;
    return PL_OK;
}

void pl_eagle_trainer_set_lr(pl_eagle_trainer *t, float lr)
{
    t->o.lr = lr;
}

const double *pl_eagle_trainer_measured(const pl_eagle_trainer *t)
{
    return t->measured;
}

void pl_eagle_trainer_set_measured(pl_eagle_trainer *t, const double *measured)
{
    memcpy(t->measured, measured, sizeof t->measured);
}

int64_t pl_eagle_trainer_steps(const pl_eagle_trainer *t)
{
    return t->step;
}

void pl_eagle_trainer_swap_average(pl_eagle_trainer *t)
{
    for (size_t i = 0; t->average && i < t->e->n_elements; i++) {
        const float w = t->e->w[i];
        t->e->w[i] = t->average[i];
        t->average[i] = w;
    }
    if (t->average)
        eagle_touch(t->e);
}
