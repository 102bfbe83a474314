/* drafter/eagle_head.c - the two heads, over a few windows at a time: the target's p on the draft
 * vocabulary, the drafter's q at every depth, the loss, and back to the states and the head's
 * weights.  A group is as many windows of the micro-batch as one long one has rows, so that short
 * ones share every reading of the heads.
 *
 * The target's logits are made once a position, 512 columns at a time while they are in cache: of
 * each tile the log-sum-exp is kept, and the logits of the draft vocabulary. */
#include "drafter/eagle_trainer.h"

#include <math.h>
#include <string.h>

enum {
    TARGET_COLS = 4096, /* of the target's head in one phase */
    HEAD_ROWS = 1024,   /* of the draft head's gradient in one phase */
};

/* The window of row r of the group. */
static const eagle_slot *slot_of(const pl_eagle_trainer *t, int r)
{
    return eagle_slot_of(t, t->group_row + r);
}

/* Position of row r of the group in its window; its padding is from w->n on. */
static int place_in(const pl_eagle_trainer *t, const eagle_slot *s, int r)
{
    return t->group_row + r - s->row;
}

static float temperature_of(const eagle_slot *s)
{
    return s->w->temperature > 0 ? s->w->temperature : 1.0f;
}

/* ---- the target ---- */

/* Hidden states of the rows, and what is known of their log-sum-exp. */
static void copy_hidden(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const size_t cp = (size_t)t->e->dims.cp;
    int begin, end;

    pl_share(t->group_rows, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++) {
        const eagle_slot *s = slot_of(t, r);
        const int i = place_in(t, s, r), is_in = i < s->w->n;
        if (is_in)
            memcpy(
                t->hidden + (size_t)r * cp, s->w->hidden + (size_t)i * cp, cp * sizeof *t->hidden);
        else
            memset(t->hidden + (size_t)r * cp, 0, cp * sizeof *t->hidden);
        for (int j = 0; j < n_threads; j++)
            t->scratch[j].lse[r] = t->is_known && is_in ? s->w->lse[i] : -INFINITY;
    }
}

static float add_lse(float a, float b)
{
    if (isnan(a) || isnan(b))
        return NAN;
    const float max = a > b ? a : b;
    return max == -INFINITY ? max : max + log1pf(expf(-fabsf(a - b)));
}

/* First place in the draft vocabulary whose id is at least v. */
static int place_of(const pl_eagle *e, int v)
{
    int low = 0, high = e->dims.v;
    while (low < high) {
        const int mid = (low + high) / 2;
        if (e->vocab[mid] < v)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* What one tile of logits, columns [v, v + n), says. */
static void read_tile(pl_eagle_trainer *t, eagle_scratch *s, int v, int n)
{
    const pl_eagle *e = t->e;
    const int first = place_of(e, v), last = place_of(e, v + n);

    for (int r = 0; r < t->group_rows; r++) {
        const eagle_slot *slot = slot_of(t, r);
        const float *z = s->tile + (size_t)r * EAGLE_TILE;
        float *kept = t->p + (size_t)r * (size_t)e->dims.vp, max, lse;
        if (place_in(t, slot, r) >= slot->w->n)
            continue;
        e->ops->logsumexp(z, n, temperature_of(slot), NULL, &max, &lse);
        s->lse[r] = add_lse(s->lse[r], lse);
        for (int j = first; j < last; j++)
            kept[j] = z[e->vocab[j] - v];
    }
}

static void target_columns(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;
    eagle_scratch *s = &t->scratch[i_thread];
    const int n = d->vt - t->v0 < TARGET_COLS ? d->vt - t->v0 : TARGET_COLS;
    int begin, end;

    pl_share(pl_pad32(n) / 32, 1, i_thread, n_threads, &begin, &end);
    end = t->v0 + 32 * end < d->vt ? t->v0 + 32 * end : d->vt;
    for (int v = t->v0 + 32 * begin; v < end; v += EAGLE_TILE) {
        const int cols = end - v < EAGLE_TILE ? end - v : EAGLE_TILE;
        const pl_gemm g = {.x = t->hidden,
            .ldx = (size_t)d->cp,
            .w = t->e->parts.head + (size_t)v * (size_t)d->cp,
            .y = s->tile,
            .ldy = EAGLE_TILE,
            .m = t->group_rows,
            .n = cols,
            .k = d->cp,
            .panel_end = pl_pad32(cols) / 32,
            .scratch = s->gemm};
        t->e->ops->gemm(&g);
        read_tile(t, s, v, cols);
    }
}

/* What the tiles of all threads say of the whole vocabulary. */
static void join_lse(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    for (int r = 0; r < t->group_rows && i_thread == 0; r++) {
        const eagle_slot *s = slot_of(t, r);
        const int at = place_in(t, s, r);
        float *all = &t->scratch[0].lse[r];
        for (int i = 1; i < n_threads; i++)
            *all = add_lse(*all, t->scratch[i].lse[r]);
        if (s->w->lse && at < s->w->n)
            s->w->lse[at] = *all;
    }
}

/* The rows of the target's head that the draft vocabulary has; anew in every step, since the
 * target's weights may have changed. */
static void gather_kept(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;
    float *rows = t->scratch[i_thread].tile;
    int begin, end;

    pl_share(d->vp / 32, 1, i_thread, n_threads, &begin, &end);
    for (int p = begin; p < end; p++) {
        const int n = d->v - 32 * p < 32 ? d->v - 32 * p : 32;
        for (int i = 0; i < n; i++)
            t->e->ops->packed_row(
                rows + (size_t)i * (size_t)d->c, t->e->parts.head, t->e->vocab[32 * p + i], d->c);
        t->e->ops->pack_nk(
            t->kept + (size_t)(32 * p) * (size_t)d->cp, rows, (size_t)d->c, n, d->c, 0, 1);
    }
}

static void kept_columns(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;

    eagle_multiply(t, t->hidden, (size_t)d->cp, t->kept, t->p, (size_t)d->vp, t->group_rows, d->v,
        d->c, 0, i_thread, n_threads);
}

/* Whether every row of the group brings its log-sum-exp. */
static int knows_lse(const pl_eagle_trainer *t)
{
    for (int r = 0; r < t->group_rows; r++) {
        const eagle_slot *s = slot_of(t, r);
        const int i = place_in(t, s, r);
        if (i < s->w->n && (!s->w->lse || isnan(s->w->lse[i])))
            return 0;
    }
    return 1;
}

/* Kept logits to probabilities under the whole vocabulary. */
static void target_rows(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const int v = t->e->dims.v;
    const float *all = t->scratch[0].lse;
    float *e = t->scratch[i_thread].row;
    int begin, end;

    pl_share(t->group_rows, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++) {
        const eagle_slot *s = slot_of(t, r);
        const float temperature = temperature_of(s);
        float *p = t->p + (size_t)r * (size_t)t->e->dims.vp, max, lse;
        if (place_in(t, s, r) >= s->w->n)
            continue;
        t->e->ops->logsumexp(p, v, temperature, e, &max, &lse);
        t->e->ops->scale(e, expf(max - all[r]), v);
        t->p_log_p[r] = t->e->ops->sdot(e, p, v) / temperature - all[r] * expf(lse - all[r]);
        memcpy(p, e, (size_t)v * sizeof *p);
    }
}

static pl_status target_p(pl_eagle_trainer *t, pl_error *err)
{
    t->is_known = knows_lse(t);
    pl_status st = eagle_phase(t, copy_hidden, err);

    if (st == PL_OK && t->is_known) {
        if (!t->has_kept)
            st = eagle_phase(t, gather_kept, err);
        t->has_kept = st == PL_OK;
        return st == PL_OK ? eagle_phase(t, kept_columns, err) : st;
    }
    for (t->v0 = 0; t->v0 < t->e->dims.vt && st == PL_OK; t->v0 += TARGET_COLS)
        st = eagle_phase(t, target_columns, err);
    return st == PL_OK ? eagle_phase(t, join_lse, err) : st;
}

/* ---- the drafter ---- */

static uint16_t *dlogits_at(const pl_eagle_trainer *t, int depth, int row)
{
    return t->dlogits + ((size_t)depth * (size_t)t->window + (size_t)row) * (size_t)t->e->dims.vp;
}

static void draft_logits(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;

    eagle_multiply(t, t->acts[t->k].s + (size_t)t->group_row * (size_t)d->cp, (size_t)d->cp,
        t->e->p[EAGLE_HEAD].packed, t->logits, (size_t)d->vp, t->group_rows, d->v, d->c, 0,
        i_thread, n_threads);
}

/* Row r of the group, which counts: its loss, its figures, the gradient of its logits. */
static void score_row(pl_eagle_trainer *t, const eagle_slot *s, int r, float *q)
{
    const pl_eagle *e = t->e;
    const int v = e->dims.v, ahead = 1 + t->k, at = place_in(t, s, r) + ahead;
    const float *z = t->logits + (size_t)r * (size_t)e->dims.vp;
    const float temperature = temperature_of(s);
    eagle_row *row = &t->stat[t->k][t->group_row + r];
    float max, lse;

    e->ops->logsumexp(z, v, temperature, q, &max, &lse);
    e->ops->scale(q, expf(max - lse), v);
    const eagle_goal goal = {.kind = t->o.loss,
        .alpha_weight = t->o.alpha_weight,
        .temperature = temperature,
        .lse = lse,
        .p_log_p = t->p_log_p[r + ahead],
        .weight = t->weight[t->k]};
    const eagle_loss l =
        eagle_loss_row(q, t->p + (size_t)(r + ahead) * (size_t)e->dims.vp, z, v, &goal);
    *row = (eagle_row){.loss = l.loss, .alpha = l.alpha, .coverage = l.coverage, .counts = 1};
    if (at + 1 < s->w->n) {
        const int32_t next = e->to_draft[s->w->tokens[at + 1]];
        row->is_known = 1;
        row->is_hit = next >= 0 && z[next] / temperature >= max;
    }
    if (!t->is_eval)
        e->ops->round_bf16(dlogits_at(t, t->k, r), q, v);
}

static void score_rows(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    int begin, end;

    pl_share(t->group_rows, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++) {
        const eagle_slot *s = slot_of(t, r);
        if (eagle_counts(s->w, place_in(t, s, r), t->k)) {
            score_row(t, s, r, t->scratch[i_thread].row);
            continue;
        }
        t->stat[t->k][t->group_row + r] = (eagle_row){0};
        if (!t->is_eval)
            memset(dlogits_at(t, t->k, r), 0, (size_t)t->e->dims.vp * sizeof *t->dlogits);
    }
}

static void state_back(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;

    eagle_multiply(t, dlogits_at(t, t->k, 0), (size_t)d->vp, t->e->p[EAGLE_HEAD].packed_t,
        t->acts[t->k].ds + (size_t)t->group_row * (size_t)d->cp, (size_t)d->cp, t->group_rows, d->c,
        d->v, 0, i_thread, n_threads);
}

/* EAGLE-1: the state of row i at depth k stands for the target's at position i + 1 + k, the one
 * that predicts the same token. */
static void match_states(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;
    int begin, end;

    pl_share(t->group_rows, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++) {
        const eagle_slot *s = slot_of(t, r);
        const size_t row = (size_t)(t->group_row + r) * (size_t)d->cp;
        if (eagle_counts(s->w, place_in(t, s, r), t->k))
            t->stat[t->k][t->group_row + r].loss +=
                eagle_match_row(t->acts[t->k].ds + row, t->acts[t->k].s + row,
                    t->hidden + (size_t)(r + 1 + t->k) * (size_t)d->cp, d->c, t->weight[t->k]);
    }
}

/* The states of all depths, packed C by (depth, row). */
static void pack_states(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;
    const int rows = t->group_rows;
    const size_t k = (size_t)(t->o.depth * rows);
    int begin, end;

    pl_share(d->cp / 32, 1, i_thread, n_threads, &begin, &end);
    for (int p = begin; p < end; p++)
        for (int j = 0; j < t->o.depth; j++)
            t->e->ops->pack_kn_bf16(t->packed + (size_t)(32 * p) * k + (size_t)(j * rows) * 32,
                t->acts[j].s + (size_t)t->group_row * (size_t)d->cp + (size_t)(32 * p),
                (size_t)d->cp, d->c - 32 * p, rows, 0, 1);
}

/* HEAD_ROWS rows of the head's gradient, over all depths at once. */
static void head_back(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;
    const eagle_scratch *w = &t->scratch[i_thread];
    const int n = d->v - t->v0 < HEAD_ROWS ? d->v - t->v0 : HEAD_ROWS;
    const int k = t->o.depth * t->group_rows;
    const size_t ld = (size_t)(k / 32 | 1) * 32; /* odd: columns in many cache sets */
    int begin, end;

    pl_share(pl_pad32(n) / 32, 1, i_thread, n_threads, &begin, &end);
    end = t->v0 + 32 * end < d->v ? t->v0 + 32 * end : d->v;
    for (int v = t->v0 + 32 * begin; v < end; v += EAGLE_SLAB) {
        const int rows = end - v < EAGLE_SLAB ? end - v : EAGLE_SLAB;
        for (int j = 0; j < t->o.depth; j++)
            t->e->ops->transpose_bf16(w->turned + j * t->group_rows, ld, dlogits_at(t, j, 0) + v,
                (size_t)d->vp, t->group_rows, 0, rows);
        const pl_gemm g = {.x = w->turned,
            .ldx = ld,
            .w = t->packed,
            .y = t->grads + t->e->p[EAGLE_HEAD].offset + (size_t)v * (size_t)d->c,
            .ldy = (size_t)d->c,
            .m = rows,
            .n = d->c,
            .k = k,
            .accumulate = 1,
            .panel_end = d->cp / 32,
            .scratch = w->gemm};
        t->e->ops->gemm(&g);
    }
}

static pl_status group_head(pl_eagle_trainer *t, pl_error *err)
{
    const eagle_dims *d = &t->e->dims;

    /* 1. The target's p. */
    pl_status st = target_p(t, err);
    if (st == PL_OK)
        st = eagle_phase(t, target_rows, err);

    /* 2. The drafter's q, depth by depth, and back to its states. */
    for (t->k = 0; t->k < t->o.depth && st == PL_OK; t->k++) {
        st = eagle_phase(t, draft_logits, err);
        if (st == PL_OK)
            st = eagle_phase(t, score_rows, err);
        if (st == PL_OK && !t->is_eval)
            st = eagle_phase(t, state_back, err);
        if (st == PL_OK && t->o.loss == PL_EAGLE_LOSS_EAGLE1)
            st = eagle_phase(t, match_states, err);
    }

    /* 3. The head's weights. */
    if (st == PL_OK && !t->is_eval)
        st = eagle_phase(t, pack_states, err);
    for (t->v0 = 0; t->v0 < d->v && st == PL_OK && !t->is_eval; t->v0 += HEAD_ROWS)
        st = eagle_phase(t, head_back, err);
    return st;
}

pl_status eagle_head(pl_eagle_trainer *t, pl_error *err)
{
    pl_status st = PL_OK;

    for (int next = 0; next < t->n_slots && st == PL_OK;) {
        t->group_row = t->slots[next].row;
        t->group_rows = 0;
        while (next < t->n_slots && t->group_rows + t->slots[next].rows <= t->window)
            t->group_rows += t->slots[next++].rows;
        st = group_head(t, err);
    }
    return st;
}
