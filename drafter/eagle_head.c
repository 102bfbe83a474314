/* drafter/eagle_head.c - the two heads, window by window: the target's p on the draft vocabulary,
 * the drafter's q at every depth, the loss, and back to the states and the head's weights.
 *
 * The target's logits are made once a position, 512 columns at a time while they are in cache: of
 * each tile the log-sum-exp is kept, and the logits of the draft vocabulary. */
#include "drafter/eagle_trainer.h"

#include <math.h>
#include <string.h>

enum {
    TARGET_COLS = 8192, /* of the target's head in one phase */
    HEAD_ROWS = 2048,   /* of the draft head's gradient in one phase */
    LANES = 16,
};

static const eagle_slot *slot_of(const pl_eagle_trainer *t)
{
    return &t->slots[t->slot];
}

/* ---- the target ---- */

static void copy_hidden(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_slot *s = slot_of(t);
    const size_t cp = (size_t)t->e->dims.cp;
    int begin, end;

    pl_share(s->rows, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++) {
        if (r < s->w->n)
            memcpy(
                t->hidden + (size_t)r * cp, s->w->hidden + (size_t)r * cp, cp * sizeof *t->hidden);
        else
            memset(t->hidden + (size_t)r * cp, 0, cp * sizeof *t->hidden);
    }
    for (int i = 0; i < n_threads && i_thread == 0; i++)
        for (int r = 0; r < s->rows; r++)
            t->scratch[i].lse[r] = -INFINITY;
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
    const eagle_slot *slot = slot_of(t);
    const int first = place_of(e, v), last = place_of(e, v + n);

    for (int r = 0; r < slot->w->n; r++) {
        const float *z = s->tile + (size_t)r * EAGLE_TILE;
        float *kept = t->p + (size_t)r * (size_t)e->dims.vp, max, lse;
        e->ops->logsumexp(
            z, n, slot->w->temperature > 0 ? slot->w->temperature : 1.0f, NULL, &max, &lse);
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
            .m = slot_of(t)->w->n,
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
    const eagle_slot *s = slot_of(t);

    for (int r = 0; r < s->w->n && i_thread == 0; r++) {
        float *all = &t->scratch[0].lse[r];
        for (int i = 1; i < n_threads; i++)
            *all = add_lse(*all, t->scratch[i].lse[r]);
        if (s->w->lse)
            s->w->lse[r] = *all;
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

    eagle_multiply(t, t->hidden, (size_t)d->cp, t->kept, t->p, (size_t)d->vp, slot_of(t)->w->n,
        d->v, d->c, 0, i_thread, n_threads);
}

static int knows_lse(const pl_eagle_window *w)
{
    for (int i = 0; w->lse && i < w->n; i++)
        if (isnan(w->lse[i]))
            return 0;
    return w->lse != NULL;
}

/* Kept logits to probabilities under the whole vocabulary. */
static void target_rows(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_slot *s = slot_of(t);
    const int v = t->e->dims.v;
    const float temperature = s->w->temperature > 0 ? s->w->temperature : 1.0f;
    const float *all = s->w->lse ? s->w->lse : t->scratch[0].lse;
    float *e = t->scratch[i_thread].row;
    int begin, end;

    pl_share(s->w->n, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++) {
        float *p = t->p + (size_t)r * (size_t)t->e->dims.vp, max, lse;
        t->e->ops->logsumexp(p, v, temperature, e, &max, &lse);
        t->e->ops->scale(e, expf(max - all[r]), v);
        memcpy(p, e, (size_t)v * sizeof *p);
    }
}

static pl_status target_p(pl_eagle_trainer *t, pl_error *err)
{
    pl_status st = eagle_phase(t, copy_hidden, err);

    if (st == PL_OK && knows_lse(slot_of(t)->w)) {
        if (!t->has_kept)
            st = eagle_phase(t, gather_kept, err);
        t->has_kept = st == PL_OK;
        return st == PL_OK ? eagle_phase(t, kept_columns, err) : st;
    }
    for (t->v0 = 0; t->v0 < t->e->dims.vt && st == PL_OK; t->v0 += TARGET_COLS)
        st = eagle_phase(t, target_columns, err);
    return st == PL_OK ? eagle_phase(t, join_lse, err) : st;
}

/* ---- the loss ---- */

static float lanes_total(const float *lane)
{
    float sum = 0;
    for (int j = 0; j < LANES; j++)
        sum += lane[j];
    return sum;
}

typedef struct sums {
    float alpha, mass, pz, p;
} sums;

/* q where q < p, else +0; by masks, which become vectors where a ?: becomes a branch. */
static inline float below(float q, float p)
{
    uint32_t bits;
    memcpy(&bits, &q, sizeof bits);
    bits &= -(uint32_t)(q < p);
    memcpy(&q, &bits, sizeof q);
    return q;
}

/* What a row's loss is made of, over whole lanes. */
static sums add_up(const float *restrict q, const float *restrict p, const float *restrict z, int n)
{
    float alpha[LANES] = {0}, mass[LANES] = {0}, pz[LANES] = {0}, kept[LANES] = {0};

    for (int i = 0; i < n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            const float least = q[i + j] < p[i + j] ? q[i + j] : p[i + j];
            alpha[j] += least;
            mass[j] += below(q[i + j], p[i + j]);
            pz[j] += p[i + j] * z[i + j];
            kept[j] += p[i + j];
        }
    return (sums){lanes_total(alpha), lanes_total(mass), lanes_total(pz), lanes_total(kept)};
}

eagle_loss eagle_loss_row(float *restrict q, const float *restrict p, const float *restrict z,
    int n, float temperature, float lse, float alpha_weight, float weight)
{
    const float least = 1e-4f; /* of alpha: keeps the gradient of a row that has none finite */
    const int whole = n / LANES * LANES;
    sums s = add_up(q, p, z, whole);

    for (int i = whole; i < n; i++) {
        s.alpha += q[i] < p[i] ? q[i] : p[i];
        s.mass += below(q[i], p[i]);
        s.pz += p[i] * z[i];
        s.p += p[i];
    }
    const float ce = lse * s.p - s.pz / temperature;
    const float safe = s.alpha > least ? s.alpha : least;
    const float on_alpha = weight * alpha_weight / (safe * temperature);
    const float on_ce = weight * (1.0f - alpha_weight) / temperature;
    const float on_q = on_alpha * s.mass + on_ce * s.p;
    for (int i = 0; i < n; i++)
        q[i] = (on_q * q[i] - on_alpha * below(q[i], p[i])) - on_ce * p[i];
    /* A NaN must come out, whatever the comparisons made of it. */
    return (eagle_loss){.alpha = s.alpha,
        .ce = ce,
        .coverage = s.p,
        .loss = alpha_weight * -logf(safe) + (1.0f - alpha_weight) * ce};
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
    const eagle_slot *s = slot_of(t);

    eagle_multiply(t, t->acts[t->k].s + (size_t)s->row * (size_t)d->cp, (size_t)d->cp,
        t->e->p[EAGLE_HEAD].packed, t->logits, (size_t)d->vp, s->rows, d->v, d->c, 0, i_thread,
        n_threads);
}

/* One row that counts: its loss, its figures, the gradient of its logits. */
static void score_row(pl_eagle_trainer *t, const eagle_slot *s, int i, float *q)
{
    const pl_eagle *e = t->e;
    const int v = e->dims.v, at = i + 1 + t->k;
    const float *z = t->logits + (size_t)i * (size_t)e->dims.vp;
    const float temperature = s->w->temperature > 0 ? s->w->temperature : 1.0f;
    eagle_row *row = &t->stat[t->k][s->row + i];
    float max, lse;

    e->ops->logsumexp(z, v, temperature, q, &max, &lse);
    e->ops->scale(q, expf(max - lse), v);
    const eagle_loss l = eagle_loss_row(q, t->p + (size_t)at * (size_t)e->dims.vp, z, v,
        temperature, lse, t->o.alpha_weight, t->weight[t->k]);
    *row = (eagle_row){.loss = l.loss, .alpha = l.alpha, .coverage = l.coverage, .counts = 1};
    if (at + 1 < s->w->n) {
        const int32_t next = e->to_draft[s->w->tokens[at + 1]];
        row->is_known = 1;
        row->is_hit = next >= 0 && z[next] / temperature >= max;
    }
    if (!t->is_eval)
        e->ops->round_bf16(dlogits_at(t, t->k, i), q, v);
}

static void score_rows(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_slot *s = slot_of(t);
    int begin, end;

    pl_share(s->rows, 1, i_thread, n_threads, &begin, &end);
    for (int i = begin; i < end; i++) {
        if (eagle_counts(s->w, i, t->k)) {
            score_row(t, s, i, t->scratch[i_thread].row);
            continue;
        }
        t->stat[t->k][s->row + i] = (eagle_row){0};
        if (!t->is_eval)
            memset(dlogits_at(t, t->k, i), 0, (size_t)t->e->dims.vp * sizeof *t->dlogits);
    }
}

static void state_back(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;
    const eagle_slot *s = slot_of(t);

    eagle_multiply(t, dlogits_at(t, t->k, 0), (size_t)d->vp, t->e->p[EAGLE_HEAD].packed_t,
        t->acts[t->k].ds + (size_t)s->row * (size_t)d->cp, (size_t)d->cp, s->rows, d->c, d->v, 0,
        i_thread, n_threads);
}

/* The states of all depths, packed C by (depth, row). */
static void pack_states(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;
    const eagle_slot *s = slot_of(t);
    const size_t k = (size_t)(t->o.depth * s->rows);
    int begin, end;

    pl_share(d->cp / 32, 1, i_thread, n_threads, &begin, &end);
    for (int p = begin; p < end; p++)
        for (int j = 0; j < t->o.depth; j++)
            t->e->ops->pack_kn_bf16(t->packed + (size_t)(32 * p) * k + (size_t)(j * s->rows) * 32,
                t->acts[j].s + (size_t)s->row * (size_t)d->cp + (size_t)(32 * p), (size_t)d->cp,
                d->c - 32 * p, s->rows, 0, 1);
}

/* HEAD_ROWS rows of the head's gradient, over all depths at once. */
static void head_back(void *ctx, int i_thread, int n_threads)
{
    pl_eagle_trainer *t = ctx;
    const eagle_dims *d = &t->e->dims;
    const eagle_slot *s = slot_of(t);
    const eagle_scratch *w = &t->scratch[i_thread];
    const int n = d->v - t->v0 < HEAD_ROWS ? d->v - t->v0 : HEAD_ROWS;
    const int k = t->o.depth * s->rows;
    const size_t ld = (size_t)(k / 32 | 1) * 32; /* odd: columns in many cache sets */
    int begin, end;

    pl_share(pl_pad32(n) / 32, 1, i_thread, n_threads, &begin, &end);
    end = t->v0 + 32 * end < d->v ? t->v0 + 32 * end : d->v;
    for (int v = t->v0 + 32 * begin; v < end; v += EAGLE_SLAB) {
        const int rows = end - v < EAGLE_SLAB ? end - v : EAGLE_SLAB;
        for (int j = 0; j < t->o.depth; j++)
            t->e->ops->transpose_bf16(w->turned + j * s->rows, ld, dlogits_at(t, j, 0) + v,
                (size_t)d->vp, s->rows, 0, rows);
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

static pl_status window_head(pl_eagle_trainer *t, pl_error *err)
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
    for (t->slot = 0; t->slot < t->n_slots && st == PL_OK; t->slot++)
        st = window_head(t, err);
    return st;
}
