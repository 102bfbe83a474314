/* drafter/eagle_train.c - one step of the drafter's training: micro-batches, figures, AdamW.
 *
 *   1. check the windows and count what they predict   nothing is touched before that
 *   2. micro-batches: forward, heads, backward         the caller may stop between any two phases
 *   3. is the loss finite, is the gradient?            else nothing is updated
 *   4. clip, AdamW, average                            from here on the step is done */
#include "drafter/eagle_trainer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    NORM_ROWS = 3 + 4,
    CLEAR_BLOCKS = 1 << 16, /* of 16 gradients, cleared in one phase */
};

#define MEASURED_DECAY 0.95 /* of the running mean of acceptance by depth */

#define BACK_BYTES                                                                                 \
    ((size_t)4 << 20) /* of fresh memory that the kernel is asked for between stops */

void pl_eagle_train_defaults(pl_eagle_train_options *o)
{
    *o = (pl_eagle_train_options){.window = 256,
        .max_windows = 8,
        .depth = 4,
        .lr = 1e-3f,
        .beta1 = 0.9f,
        .beta2 = 0.95f,
        .weight_decay = 0.0f,
        .clip = 1.0f,
        .alpha_weight = 0.5f,
        .depth_decay = 0.0f,
        .ema = 0.0f,
        .warmup_steps = 5};
}

static pl_status check_options(const pl_eagle *e, const pl_eagle_train_options *o, pl_error *err)
{
    const int n_ctx = pl_model_arch(e->target)->n_ctx;

    if (o->window < 2 || o->max_windows < 1 || o->depth < 1 || o->depth > PL_EAGLE_DEPTH_MAX)
        return pl_fail(err, PL_E_INVAL,
            "drafter training: %d windows of %d tokens, depth %d; at least 1 of 2, and 1 to %d",
            o->max_windows, o->window, o->depth, PL_EAGLE_DEPTH_MAX);
    if (pl_pad32(o->window) + o->depth > n_ctx)
        return pl_fail(err, PL_E_INVAL,
            "drafter training: windows of %d tokens and depth %d; the target's context is %d",
            o->window, o->depth, n_ctx);
    if (!(o->lr >= 0) || !(o->beta1 >= 0 && o->beta1 < 1) || !(o->beta2 >= 0 && o->beta2 < 1) ||
        !(o->weight_decay >= 0) || !(o->clip > 0) || !(o->ema >= 0 && o->ema < 1) ||
        !(o->alpha_weight >= 0 && o->alpha_weight <= 1) || !(o->depth_decay >= 0) ||
        o->warmup_steps < 0)
        return pl_fail(err, PL_E_INVAL,
            "drafter training: lr %g, betas %g %g, decay %g, clip %g, alpha_weight %g, depth_decay "
            "%g, ema %g, warmup %d: one is out of range",
            (double)o->lr, (double)o->beta1, (double)o->beta2, (double)o->weight_decay,
            (double)o->clip, (double)o->alpha_weight, (double)o->depth_decay, (double)o->ema,
            o->warmup_steps);
    if (o->loss < PL_EAGLE_LOSS_MIX || o->loss > PL_EAGLE_LOSS_EAGLE1)
        return pl_fail(err, PL_E_INVAL, "drafter training: loss %d is none", (int)o->loss);
    return PL_OK;
}

/* ---- memory ---- */

static void *take(pl_arena *arena, size_t *total, size_t n, size_t size)
{
    *total += pl_arena_cost(n * size);
    return arena ? pl_arena_alloc(arena, n * size) : NULL;
}

#define TAKE(field, n) ((field) = take(arena, total, (size_t)(n), sizeof *(field)))

static int max_int(int a, int b)
{
    return a > b ? a : b;
}

static void take_acts(pl_eagle_trainer *t, eagle_acts *a, pl_arena *arena, size_t *total)
{
    const eagle_dims *d = &t->e->dims;
    const size_t rows = (size_t)t->rows_max, kv = (size_t)(d->hkv * d->dp);

    TAKE(a->x_in, rows * (size_t)d->c);
    TAKE(a->u, rows * (size_t)d->ld2);
    TAKE(a->inv_emb, rows);
    TAKE(a->inv_hid, rows);
    TAKE(a->q, rows * (size_t)(d->h * d->dp));
    TAKE(a->k, rows * kv);
    TAKE(a->v, rows * kv);
    TAKE(a->probs, (size_t)d->h * rows * (size_t)t->window);
    TAKE(a->diag, (size_t)d->h * rows * PL_EAGLE_DEPTH_MAX);
    TAKE(a->ao, rows * (size_t)d->aop);
    TAKE(a->x_mid, rows * (size_t)d->c);
    TAKE(a->x_out, rows * (size_t)d->c);
    TAKE(a->xn, rows * (size_t)d->cp);
    TAKE(a->inv_post, rows);
    TAKE(a->inv_final, rows);
    TAKE(a->gate, rows * (size_t)d->fp);
    TAKE(a->up, rows * (size_t)d->fp);
    TAKE(a->hid, rows * (size_t)d->fp);
    TAKE(a->s, rows * (size_t)d->cp);
    TAKE(a->ds, rows * (size_t)d->cp);
    TAKE(a->dk, rows * kv);
    TAKE(a->dv, rows * kv);
}

static void take_scratch(
    const pl_eagle_trainer *t, eagle_scratch *s, pl_arena *arena, size_t *total)
{
    const eagle_dims *d = &t->e->dims;
    const size_t window = (size_t)t->window, dp = (size_t)d->dp;
    const size_t head_ld = (size_t)(t->o.depth * t->window + 32);

    *total += pl_arena_cost(PL_GEMM_SCRATCH);
    s->gemm = arena ? pl_arena_alloc(arena, PL_GEMM_SCRATCH) : NULL;
    TAKE(s->turned, EAGLE_SLAB * (head_ld > t->ldt ? head_ld : t->ldt));
    TAKE(s->tile, max_int(t->window * EAGLE_TILE, 32 * d->c));
    TAKE(s->lse, window);
    TAKE(s->row, max_int(max_int(d->vp, t->window + 64), max_int(2 * d->fp, 2 * d->cp + 32)));
    TAKE(s->scores, window * (window + 32));
    TAKE(s->wide, window * dp);
    TAKE(s->nk, window * dp);
    TAKE(s->kn, window * dp);
    TAKE(s->x16, window * dp);
    TAKE(s->ds, window * window);
    TAKE(s->flip, window * window);
    TAKE(s->head, window * dp);
    TAKE(s->dnorm, NORM_ROWS * d->c);
}

static void take_shared(pl_eagle_trainer *t, pl_arena *arena, size_t *total)
{
    const eagle_dims *d = &t->e->dims;
    const size_t rows = (size_t)t->rows_max, vp = (size_t)d->vp;
    const size_t window = (size_t)t->window;
    const int widest = max_int(max_int(d->ld3, d->fp), max_int(d->ld2, d->aop));

    TAKE(t->slots, t->o.max_windows);
    TAKE(t->fused, rows * (size_t)d->ld3);
    TAKE(t->inv_fc, rows * PL_FEATURE_LAYERS);
    TAKE(t->qkv, rows * (size_t)d->qkvp);
    TAKE(t->proj, rows * (size_t)max_int(widest, d->cp));
    TAKE(t->dx, rows * (size_t)d->c);
    TAKE(t->dx16, rows * (size_t)d->cp);
    TAKE(t->dao, rows * (size_t)d->aop);
    TAKE(t->dqkv16, rows * (size_t)d->qkvp);
    TAKE(t->dhid, rows * (size_t)d->fp);
    TAKE(t->dgate16, rows * (size_t)d->fp);
    TAKE(t->dup16, rows * (size_t)d->fp);
    TAKE(t->packed, max_int(t->rows_max * pl_pad32(widest), t->o.depth * t->window * d->cp));
    TAKE(t->hidden, window * (size_t)d->cp);
    TAKE(t->kept, vp * (size_t)d->cp);
    TAKE(t->p, window * vp);
    TAKE(t->p_log_p, window);
    TAKE(t->logits, window * vp);
    TAKE(t->dlogits, (size_t)t->o.depth * window * vp);
}

static size_t lay_out(pl_eagle_trainer *t, pl_arena *arena)
{
    size_t n = 0, *total = &n;

    TAKE(t->grads, t->e->n_elements);
    TAKE(t->m, t->e->n_elements);
    TAKE(t->v, t->e->n_elements);
    if (t->o.ema > 0)
        TAKE(t->average, t->e->n_elements);
    t->state_bytes = n;
    take_shared(t, arena, total);
    for (int k = 0; k < t->o.depth; k++) {
        take_acts(t, &t->acts[k], arena, total);
        TAKE(t->stat[k], t->rows_max);
    }
    TAKE(t->scratch, t->n_threads);
    for (int i = 0; i < t->n_threads; i++) {
        eagle_scratch counted;
        take_scratch(t, arena ? &t->scratch[i] : &counted, arena, total);
    }
    return n;
}

static void set_sizes(
    pl_eagle_trainer *t, pl_eagle *e, const pl_eagle_train_options *o, int n_threads)
{
    t->e = e;
    t->o = *o;
    t->n_threads = n_threads;
    t->window = pl_pad32(o->window);
    const int whole = EAGLE_MICRO_ROWS / t->window;
    t->rows_max = t->window * max_int(1, whole < o->max_windows ? whole : o->max_windows);
    /* An odd number of cache lines: columns of a power of two would share few cache sets. */
    t->ldt = (size_t)(t->rows_max / 32 | 1) * 32;
}

size_t pl_eagle_trainer_plan(
    const pl_arch *a, int n_vocab, const pl_eagle_train_options *o, int n_threads)
{
    pl_eagle e;
    pl_eagle_trainer t = {0};

    (void)eagle_sketch(&e, a, n_vocab);
    set_sizes(&t, &e, o, n_threads);
    return lay_out(&t, NULL);
}

pl_status pl_eagle_trainer_new(
    pl_eagle_trainer **out, pl_eagle *e, const pl_eagle_train_options *o, pl_error *err)
{
    pl_status st = check_options(e, o, err);

    if (st != PL_OK)
        return st;
    pl_eagle_trainer *t = calloc(1, sizeof *t);
    if (!t)
        return pl_fail(err, PL_E_NOMEM, "drafter training: no memory");
    set_sizes(t, e, o, pl_team_size(e->team));
    st = pl_arena_init(&t->arena, lay_out(t, NULL), "drafter training", err);
    if (st != PL_OK) {
        pl_eagle_trainer_free(t);
        return st;
    }
    lay_out(t, &t->arena);
    t->backed_work = t->state_bytes / BACK_BYTES * BACK_BYTES;
    if (t->average)
        memcpy(t->average, e->w, e->n_elements * sizeof *e->w);
    *out = t;
    return PL_OK;
}

void pl_eagle_trainer_free(pl_eagle_trainer *t)
{
    if (!t)
        return;
    pl_arena_done(&t->arena);
    free(t);
}

/* ---- what comes in ---- */

/* 1 when a bf16 value is infinite or NaN. */
static int has_bad(const uint16_t *x, size_t n)
{
    int bad = 0;
    for (size_t i = 0; i < n; i++)
        bad |= (x[i] & 0x7f80) == 0x7f80;
    return bad;
}

static pl_status check_window(const pl_eagle_trainer *t, int i, pl_error *err)
{
    const pl_eagle_window *w = &t->windows[i];
    const size_t cp = (size_t)t->e->dims.cp;

    if (w->n < 0 || w->n > t->o.window || w->position < 0 || !(w->temperature >= 0))
        return pl_fail(err, PL_E_INVAL,
            "drafter training: window %d has %d tokens (at most %d), position %d, temperature %g",
            i, w->n, t->o.window, w->position, (double)w->temperature);
    for (int j = 0; j < w->n; j++)
        if (w->tokens[j] < 0 || w->tokens[j] >= t->e->dims.vt)
            return pl_fail(err, PL_E_INVAL,
                "drafter training: token %d of window %d is %d; the vocabulary has %d", j, i,
                (int)w->tokens[j], t->e->dims.vt);
    if (has_bad(w->features, (size_t)w->n * PL_FEATURE_LAYERS * cp))
        return pl_fail(err, PL_E_NUMERIC,
            "drafter training: features of window %d hold NaN or infinity; drop the batch", i);
    if (has_bad(w->hidden, (size_t)w->n * cp))
        return pl_fail(err, PL_E_NUMERIC,
            "drafter training: hidden states of window %d hold NaN or infinity; drop the batch", i);
    return PL_OK;
}

static int window_counts(const pl_eagle_window *w)
{
    int n = 0;
    for (int i = 0; i < w->n; i++)
        n += eagle_counts(w, i, 0);
    return n;
}

static void weigh_depths(const pl_eagle_trainer *t, float *weights)
{
    const double decay = t->o.depth_decay > 0 ? (double)t->o.depth_decay : 1;

    if (t->o.depth_decay == 0 && t->measured[0] > 0 && !t->is_eval) {
        pl_eagle_depth_weights(weights, t->measured, t->o.depth);
        return;
    }
    for (int k = 0; k < t->o.depth; k++)
        weights[k] = (float)pow(decay, k);
}

static void measure_depths(pl_eagle_trainer *t, const pl_eagle_step_stats *s)
{
    const double keep = t->measured[0] > 0 ? MEASURED_DECAY : 0;

    for (int k = 0; k < t->o.depth; k++)
        t->measured[k] = keep * t->measured[k] + (1 - keep) * s->alpha[k];
}

static pl_status begin(pl_eagle_trainer *t, const pl_eagle_window *w, int n, pl_error *err)
{
    float weights[PL_EAGLE_DEPTH_MAX];
    pl_status st = PL_OK;

    if (n < 1 || n > t->o.max_windows)
        return pl_fail(
            err, PL_E_INVAL, "drafter training: %d windows; 1 to %d", n, t->o.max_windows);
    t->has_kept = 0;
    t->windows = w;
    t->n_windows = n;
    for (int i = 0; i < n && st == PL_OK; i++)
        st = check_window(t, i, err);
    if (st != PL_OK)
        return st;
    weigh_depths(t, weights);
    for (int k = 0; k < t->o.depth; k++) {
        t->counted[k] = 0;
        for (int i = 0; i < n; i++)
            for (int j = 0; j < w[i].n; j++)
                t->counted[k] += eagle_counts(&w[i], j, k);
        t->weight[k] = t->counted[k] > 0 ? (float)(weights[k] / (double)t->counted[k]) : 0.0f;
    }
    if (t->counted[0] == 0)
        return pl_fail(err, PL_E_INVAL,
            "drafter training: %d windows without a position whose prediction counts", n);
    return PL_OK;
}

/* The windows from *next on that fit; 0 when none is left. */
static int next_micro(pl_eagle_trainer *t, int *next)
{
    const int n_ctx = pl_model_arch(t->e->target)->n_ctx;

    t->n_slots = t->n_rows = 0;
    for (; *next < t->n_windows; (*next)++) {
        const pl_eagle_window *w = &t->windows[*next];
        const int rows = pl_pad32(w->n), last = n_ctx - rows - t->o.depth;
        if (window_counts(w) == 0)
            continue;
        if (t->n_rows + rows > t->rows_max)
            break;
        /* Attention sees differences of positions only, so a window may slide into the table. */
        t->slots[t->n_slots++] = (eagle_slot){.w = w,
            .row = t->n_rows,
            .rows = rows,
            .position = w->position < last ? w->position : last};
        t->n_rows += rows;
    }
    return t->n_slots > 0;
}

/* ---- the step ---- */

typedef struct totals {
    double loss, alpha, coverage, hits, known;
} totals;

static void add_rows(const pl_eagle_trainer *t, totals *total)
{
    for (int k = 0; k < t->o.depth; k++)
        for (int r = 0; r < t->n_rows; r++) {
            const eagle_row *s = &t->stat[k][r];
            total[k].loss += (double)s->loss;
            total[k].alpha += (double)s->alpha;
            total[k].coverage += (double)s->coverage;
            total[k].known += s->is_known;
            total[k].hits += s->is_hit;
        }
}

static void fill_stats(const pl_eagle_trainer *t, const totals *total, pl_eagle_step_stats *s)
{
    memset(s, 0, sizeof *s);
    s->n_tokens = t->counted[0];
    s->coverage = total[0].coverage / (double)t->counted[0];
    for (int k = 0; k < t->o.depth; k++) {
        s->loss += total[k].loss * (double)t->weight[k];
        s->alpha[k] = t->counted[k] > 0 ? total[k].alpha / (double)t->counted[k] : 0;
        s->accept[k] = total[k].known > 0 ? total[k].hits / total[k].known : 0;
    }
}

/* CLEAR_BLOCKS blocks of gradients, from block v0 on. */
static void clear_grads(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const int left = (int)(t->e->n_elements / 16) - t->v0;
    int begin, end;

    pl_share(left < CLEAR_BLOCKS ? left : CLEAR_BLOCKS, 1, i_thread, n_threads, &begin, &end);
    memset(
        t->grads + (size_t)(t->v0 + begin) * 16, 0, (size_t)(end - begin) * 16 * sizeof *t->grads);
    memset(t->scratch[i_thread].dnorm, 0, (size_t)(NORM_ROWS * t->e->dims.c) * sizeof(float));
}

/* Have some more of the arena, up to byte end, backed by memory; 0: all of it is.  Fresh memory
 * costs milliseconds a megabyte in a virtual machine, which no single op should pay. */
static int back_some(pl_eagle_trainer *t, size_t *at, size_t end)
{
    pl_arena piece = {.base = t->arena.base + *at};

    if (*at >= end)
        return 0;
    piece.size = end - *at < BACK_BYTES ? end - *at : BACK_BYTES;
    pl_arena_prefault(&piece);
    *at += piece.size;
    return 1;
}

static void add_norms(pl_eagle_trainer *t)
{
    static const int first[EAGLE_FC] = {[EAGLE_FC_NORM] = 0,
        [EAGLE_NORM_EMB] = 3,
        [EAGLE_NORM_HID] = 4,
        [EAGLE_NORM_POST] = 5,
        [EAGLE_NORM_FINAL] = 6};

    for (int p = 0; p < EAGLE_FC; p++)
        for (int i = 0; i < t->n_threads; i++)
            t->e->ops->add(t->grads + t->e->p[p].offset,
                t->scratch[i].dnorm + (size_t)first[p] * (size_t)t->e->dims.c,
                t->e->p[p].rows * t->e->dims.c);
}

static pl_status run(pl_eagle_trainer *t, totals *total, pl_error *err)
{
    pl_status st = PL_OK;
    int next = 0;

    do {
        if (t->should_stop && t->should_stop(t->stop_ctx))
            return pl_fail(err, PL_E_STOPPED, "drafter training: asked to stop");
    } while (eagle_pack_one_to_train(t->e) || back_some(t, &t->backed_work, t->arena.size));
    for (t->v0 = 0; !t->is_eval && t->v0 < (int)(t->e->n_elements / 16) && st == PL_OK;
         t->v0 += CLEAR_BLOCKS)
        st = eagle_phase(t, clear_grads, err);
    while (st == PL_OK && next_micro(t, &next)) {
        st = eagle_forward(t, err);
        if (st == PL_OK)
            st = eagle_head(t, err);
        if (st == PL_OK)
            add_rows(t, total);
        if (st == PL_OK && !t->is_eval)
            st = eagle_backward(t, err);
    }
    return st;
}

/* What both halves have in common: gradients into t->grads and their norm. */
static pl_status make_gradients(pl_eagle_trainer *t, pl_eagle_step_stats *stats, pl_error *err)
{
    totals total[PL_EAGLE_DEPTH_MAX] = {0};
    pl_status st = run(t, total, err);

    if (st != PL_OK)
        return st;
    add_norms(t);
    fill_stats(t, total, stats);
    st = eagle_grad_norm(t, &stats->grad_norm, err);
    if (st == PL_OK && (!isfinite(stats->loss) || !isfinite(stats->grad_norm)))
        return pl_fail(err, PL_E_NUMERIC,
            "drafter training: loss %g, gradient norm %g; the batch is dropped", stats->loss,
            stats->grad_norm);
    return st;
}

static pl_status gradients(pl_eagle_trainer *t, const pl_eagle_window *w, int n,
    int (*should_stop)(void *ctx), void *ctx, float *grads, pl_eagle_step_stats *stats,
    pl_error *err)
{
    float *own = t->grads;

    t->should_stop = should_stop;
    t->stop_ctx = ctx;
    t->is_eval = 0;
    t->grads = grads;
    pl_status st = begin(t, w, n, err);
    if (st == PL_OK)
        st = make_gradients(t, stats, err);
    t->grads = own;
    return st;
}

pl_status pl_eagle_gradients(pl_eagle_trainer *t, const pl_eagle_window *w, int n,
    int (*should_stop)(void *ctx), void *ctx, float *grads, pl_eagle_step_stats *stats,
    pl_error *err)
{
    const pl_status st = gradients(t, w, n, should_stop, ctx, grads, stats, err);

    if (st == PL_OK)
        measure_depths(t, stats);
    return st;
}

pl_status pl_eagle_train_step(pl_eagle_trainer *t, const pl_eagle_window *w, int n,
    int (*should_stop)(void *ctx), void *ctx, pl_eagle_step_stats *stats, pl_error *err)
{
    const pl_status st = gradients(t, w, n, should_stop, ctx, t->grads, stats, err);

    if (st != PL_OK)
        return st;
    do {
        if (should_stop && should_stop(ctx))
            return pl_fail(
                err, PL_E_STOPPED, "drafter training: asked to stop; nothing was changed");
    } while (back_some(t, &t->backed_state, t->state_bytes));
    measure_depths(t, stats);
    eagle_update(t, t->grads, stats->grad_norm);
    return PL_OK;
}

pl_status pl_eagle_eval(
    pl_eagle_trainer *t, const pl_eagle_window *w, int n, pl_eagle_step_stats *stats, pl_error *err)
{
    totals total[PL_EAGLE_DEPTH_MAX] = {0};
    t->should_stop = NULL;
    t->is_eval = 1; /* all depths count the same, or as depth_decay says */
    pl_status st = begin(t, w, n, err);
    if (st != PL_OK)
        return st;
    st = run(t, total, err);
    if (st != PL_OK)
        return st;
    fill_stats(t, total, stats);
    if (!isfinite(stats->loss))
        return pl_fail(err, PL_E_NUMERIC, "drafter evaluation: loss %g", stats->loss);
    return PL_OK;
}
