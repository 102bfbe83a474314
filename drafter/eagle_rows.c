/* drafter/eagle_rows.c - an evaluation that shows every row's logits: what offline figures are made
 * of. */
#include "drafter/eagle_trainer.h"

#include <string.h>

static void draft_logits(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;
    const eagle_slot *s = &t->slots[0];

    eagle_multiply(t, t->acts[t->k].s + (size_t)s->row * (size_t)d->cp, (size_t)d->cp,
        t->e->p[EAGLE_HEAD].packed, t->logits, (size_t)d->vp, s->rows, d->v, d->c, 0, i_thread,
        n_threads);
}

/* The states of all depths stand in the acts of the only window of the last evaluation. */
static pl_status show_rows(
    pl_eagle_trainer *t, int i_window, pl_eagle_row_fn row, void *ctx, pl_error *err)
{
    const eagle_slot *s = &t->slots[0];
    pl_status st = PL_OK;

    for (t->k = 0; t->k < t->o.depth && st == PL_OK; t->k++) {
        st = eagle_phase(t, draft_logits, err);
        for (int i = 0; i < s->w->n && st == PL_OK; i++)
            if (eagle_counts(s->w, i, t->k))
                row(ctx, i_window, i, t->k, t->logits + (size_t)i * (size_t)t->e->dims.vp);
    }
    return st;
}

static int window_counts(const pl_eagle_window *w)
{
    for (int i = 0; i < w->n; i++)
        if (eagle_counts(w, i, 0))
            return 1;
    return 0;
}

/* Means of one window into sums over all; counted[k] is what they are means of. */
static void add_stats(pl_eagle_step_stats *sum, int64_t counted[PL_EAGLE_DEPTH_MAX],
    const pl_eagle_trainer *t, const pl_eagle_step_stats *s)
{
    const double n = (double)t->counted[0];

    sum->loss += s->loss * n;
    sum->coverage += s->coverage * n;
    sum->n_tokens += s->n_tokens;
    for (int k = 0; k < t->o.depth; k++) {
        counted[k] += t->counted[k];
        sum->alpha[k] += s->alpha[k] * (double)t->counted[k];
        sum->accept[k] += s->accept[k] * (double)t->counted[k];
    }
}

pl_status pl_eagle_eval_rows(pl_eagle_trainer *t, const pl_eagle_window *w, int n,
    pl_eagle_row_fn row, void *ctx, pl_eagle_step_stats *stats, pl_error *err)
{
    int64_t counted[PL_EAGLE_DEPTH_MAX] = {0};
    pl_eagle_step_stats one;
    pl_status st = PL_OK;

    memset(stats, 0, sizeof *stats);
    for (int i = 0; i < n && st == PL_OK; i++) {
        if (!window_counts(&w[i]))
            continue;
        st = pl_eagle_eval(t, &w[i], 1, &one, err);
        if (st == PL_OK)
            st = show_rows(t, i, row, ctx, err);
        if (st == PL_OK)
            add_stats(stats, counted, t, &one);
    }
    if (st != PL_OK)
        return st;
    if (counted[0] == 0)
        return pl_fail(err, PL_E_INVAL, "drafter evaluation: nothing counts in %d windows", n);
    stats->loss /= (double)counted[0];
    stats->coverage /= (double)counted[0];
    for (int k = 0; k < t->o.depth; k++) {
        stats->alpha[k] /= counted[k] > 0 ? (double)counted[k] : 1;
        stats->accept[k] /= counted[k] > 0 ? (double)counted[k] : 1;
    }
    return PL_OK;
}
