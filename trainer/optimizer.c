/* trainer/optimizer.c - global norm, clipping and AdamW over fixed chunks of the flat arrays.
 *
 * A chunk belongs to one tensor and has at most 64 Ki elements.  Squares are summed a chunk, the
 * sums are added in ascending order: no bit depends on the threads.  Weight decay is for matrices
 * only; norm gains (one row) have none, as is usual for them. */
#include "trainer/internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { CHUNK = 64 << 10, HUGE_PAGE = 2 << 20 };

float *flat_new(size_t n)
{
    const size_t align = n * sizeof(float) >= HUGE_PAGE ? HUGE_PAGE : 64;
    const size_t n_bytes = (n * sizeof(float) + align - 1) / align * align;
    float *p = n > 0 && n < SIZE_MAX / 8 ? aligned_alloc(align, n_bytes) : NULL;

    if (!p)
        return NULL;
    if (align == HUGE_PAGE)
        (void)madvise(p, n_bytes, MADV_HUGEPAGE); /* a hint */
    memset(p, 0, n_bytes);
    return p;
}

pl_status optimizer_init(pl_trainer *t, pl_error *err)
{
    const pl_param_table *p = pl_model_params(t->model);
    int n = 0;

    for (int i = 0; i < p->n_params; i++) {
        const size_t size = (size_t)p->params[i].rows * (size_t)p->params[i].cols;
        n += (int)((size + CHUNK - 1) / CHUNK);
    }
    t->chunks = calloc((size_t)n, sizeof *t->chunks);
    t->chunk_squares = calloc((size_t)n, sizeof *t->chunk_squares);
    if (!t->chunks || !t->chunk_squares)
        return pl_fail(err, PL_E_NOMEM, "trainer: no memory for %d chunks", n);
    for (int i = 0; i < p->n_params; i++) {
        const pl_param *q = &p->params[i];
        const size_t size = (size_t)q->rows * (size_t)q->cols;
        for (size_t at = 0; at < size; at += CHUNK)
            t->chunks[t->n_chunks++] = (optimizer_chunk){
                .offset = q->offset + at,
                .n = size - at < CHUNK ? size - at : CHUNK,
                .decays = q->rows > 1,
            };
    }
    return PL_OK;
}

static void clear_share(void *ctx, int i_thread, int n_threads)
{
    pl_trainer *t = ctx;
    int begin, end;

    pl_share(t->n_chunks, 1, i_thread, n_threads, &begin, &end);
    for (int i = begin; i < end; i++)
        memset(t->grads + t->chunks[i].offset, 0, t->chunks[i].n * sizeof(float));
}

void optimizer_clear_grads(pl_trainer *t)
{
    pl_team_run(pl_model_team(t->model), clear_share, t);
}

static void squares_share(void *ctx, int i_thread, int n_threads)
{
    pl_trainer *t = ctx;
    const pl_ops *ops = pl_model_ops(t->model);
    int begin, end;

    pl_share(t->n_chunks, 1, i_thread, n_threads, &begin, &end);
    for (int i = begin; i < end; i++)
        t->chunk_squares[i] = ops->sum_squares(t->grads + t->chunks[i].offset, t->chunks[i].n);
}

typedef struct adamw_job {
    pl_trainer *t;
    pl_adamw matrices, gains;
} adamw_job;

static void adamw_share(void *ctx, int i_thread, int n_threads)
{
    const adamw_job *job = ctx;
    const pl_trainer *t = job->t;
    const pl_ops *ops = pl_model_ops(t->model);
    int begin, end;

    pl_share(t->n_chunks, 1, i_thread, n_threads, &begin, &end);
    for (int i = begin; i < end; i++) {
        const optimizer_chunk *c = &t->chunks[i];
        ops->adamw(t->masters + c->offset, t->m + c->offset, t->v + c->offset, t->grads + c->offset,
            c->n, c->decays ? &job->matrices : &job->gains);
    }
}

/* x to the n-th by squaring: products only, so the same everywhere. */
static double power(double x, int64_t n)
{
    double y = 1;

    for (; n > 0; n >>= 1) {
        if (n & 1)
            y *= x;
        x *= x;
    }
    return y;
}

pl_status optimizer_update(pl_trainer *t, double lr, double *grad_norm, pl_error *err)
{
    const pl_actor_options *o = &t->o;
    double sum = 0;

    pl_team_run(pl_model_team(t->model), squares_share, t);
    for (int i = 0; i < t->n_chunks; i++)
        sum += t->chunk_squares[i];
    const double norm = sqrt(sum);
    *grad_norm = norm;
    if (!isfinite(norm))
        return pl_fail(err, PL_E_NUMERIC,
            "the gradient is not finite (norm %g); this update was not made: lower the learning "
            "rate, "
            "or "
            "go back to an older checkpoint",
            norm);

    const double scale = o->grad_clip > 0 && norm > o->grad_clip ? o->grad_clip / (norm + 1e-6) : 1;
    const int64_t n = ++t->n_updates;
    adamw_job job = {
        .t = t,
        .matrices =
            {
                .lr = (float)lr,
                .beta1 = (float)o->beta1,
                .beta2 = (float)o->beta2,
                .eps = (float)o->eps,
                .weight_decay = (float)o->weight_decay,
                .bias1 = (float)(1 - power(o->beta1, n)),
                .bias2 = (float)(1 - power(o->beta2, n)),
                .grad_scale = (float)scale,
            },
    };
    job.gains = job.matrices;
    job.gains.weight_decay = 0;
    pl_team_run(pl_model_team(t->model), adamw_share, &job);
    return pl_model_pack(t->model, t->masters, err);
}
