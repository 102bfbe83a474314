/* drafter/learned_run.c - the drafter's layer over a few rows: keys of new positions, and nodes of
 * trees.  One region of the team a run, with barriers between what is split differently; what a row
 * gives does not depend on the rows beside it. */
#include "drafter/learned_internal.h"

#include <math.h>
#include <string.h>

/* y = x w^T on this thread's share of panels first .. last - 1. */
static void multiply(const pl_learned *l, const uint16_t *x, size_t ldx, eagle_param p, float *y,
    size_t ldy, int first, int last, int i_thread, int n_threads)
{
    const eagle_matrix *w = &l->e->p[p];
    pl_gemm g = {.x = x,
        .ldx = ldx,
        .w = w->packed,
        .y = y,
        .ldy = ldy,
        .m = l->n_rows,
        .n = w->rows,
        .k = pl_pad32(w->cols),
        .scratch = l->scratch[i_thread].gemm};

    pl_share(last - first, 1, i_thread, n_threads, &g.panel_begin, &g.panel_end);
    g.panel_begin += first;
    g.panel_end += first;
    if (g.panel_begin < g.panel_end)
        l->ops->gemm(&g);
}

static void multiply_all(const pl_learned *l, const uint16_t *x, size_t ldx, eagle_param p,
    float *y, size_t ldy, int i_thread, int n_threads)
{
    multiply(l, x, ldx, p, y, ldy, 0, pl_pad32(l->e->p[p].rows) / 32, i_thread, n_threads);
}

/* The three features of one position f into y, each normed by its own norm if the drafter has
 * them. */
static void fuse_row(const pl_learned *l, const uint16_t *f, uint16_t *y, float *wide)
{
    const eagle_dims *d = &l->max;
    const float *w = eagle_weights(l->e, EAGLE_FC_NORM);

    for (int i = 0; i < PL_FEATURE_LAYERS; i++, f += d->cp, y += d->c, w += d->c) {
        if (!l->e->has_fc_norm) {
            memcpy(y, f, (size_t)d->c * sizeof *y);
            continue;
        }
        l->ops->widen_bf16(wide, f, d->c);
        l->ops->rmsnorm(y, wide, w, d->c, l->e->eps);
    }
}

static void fuse_rows(const pl_learned *l, int i_thread, int n_threads)
{
    int begin, end;

    pl_share(l->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++) {
        const learned_row *row = &l->rows[r];
        fuse_row(l, learned_features(l, row->tree->place, row->position),
            l->fused + (size_t)r * (size_t)l->max.ld3, l->scratch[i_thread].row);
    }
}

/* [norm(emb); norm(state)]. */
static void enter_row(const pl_learned *l, int r, float *emb)
{
    const eagle_dims *d = &l->max;
    const int32_t token = l->rows[r].token;
    uint16_t *u = l->u + (size_t)r * (size_t)d->ld2;

    l->ops->packed_row(emb, l->parts.embed, token >= 0 && token < d->vt ? token : 0, d->c);
    l->ops->rmsnorm(u, emb, eagle_weights(l->e, EAGLE_NORM_EMB), d->c, l->e->eps);
    l->ops->rmsnorm(u + d->c, l->g + (size_t)r * (size_t)d->c, eagle_weights(l->e, EAGLE_NORM_HID),
        d->c, l->e->eps);
}

static const float *cosines(const pl_learned *l, int position, const float **sines)
{
    const int last = l->n_ctx - 1;
    const size_t at = (size_t)(position < last ? position : last) * (size_t)(l->max.d / 2);
    *sines = l->parts.rope_sin + at;
    return l->parts.rope_cos + at;
}

/* ---- keys ---- */

static void enter_keys(const pl_learned *l, int i_thread, int n_threads)
{
    const size_t c = (size_t)l->max.c;
    int begin, end;

    pl_share(l->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++) {
        const learned_row *row = &l->rows[r];
        enter_row(l, r, l->scratch[i_thread].row);
        if (row->position == row->tree->place->position - 1)
            memcpy(row->tree->root, l->g + (size_t)r * c, c * sizeof *l->g);
    }
}

/* What is not finite becomes 0: a slot stays in the products after its position was forgotten. */
static uint16_t tame(uint16_t x)
{
    return (x & 0x7f80) == 0x7f80 ? 0 : x;
}

static void keep_key(const pl_learned *l, int r, int kv, uint16_t *key, uint16_t *value)
{
    const eagle_dims *d = &l->e->dims;
    const learned_row *row = &l->rows[r];
    const learned_place *p = row->tree->place;
    const size_t head = pl_packed_elements(l->ring, l->max.d) * (size_t)kv;
    const float *x = l->qkv + (size_t)r * (size_t)l->max.qkvp + (d->h + kv) * d->d, *sines;
    const float *cos = cosines(l, row->position, &sines);
    const int slot = row->position % l->ring;

    l->ops->rope(key, x, cos, sines, d->d);
    l->ops->round_bf16(value, x + d->hkv * d->d, d->d);
    for (int i = 0; i < d->d; i++) {
        p->k[head + pl_packed_index(slot, i, d->dp)] = tame(key[i]);
        p->v[head + pl_packed_index(i, slot, l->ring)] = tame(value[i]);
    }
}

static void keep_keys(const pl_learned *l, int i_thread, int n_threads)
{
    uint16_t *scratch = l->scratch[i_thread].q;
    int begin, end;

    pl_share(l->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++)
        for (int kv = 0; kv < l->e->dims.hkv; kv++)
            keep_key(l, r, kv, scratch, scratch + l->max.dp);
}

static void make_keys(void *ctx, int i_thread, int n_threads)
{
    const pl_learned *l = ctx;
    const eagle_dims *d = &l->e->dims;

    fuse_rows(l, i_thread, n_threads);
    pl_team_barrier(l->team);
    multiply_all(l, l->fused, (size_t)d->ld3, EAGLE_FC, l->g, (size_t)d->c, i_thread, n_threads);
    pl_team_barrier(l->team);
    enter_keys(l, i_thread, n_threads);
    pl_team_barrier(l->team);
    multiply(l, l->u, (size_t)d->ld2, EAGLE_QKV, l->qkv, (size_t)l->max.qkvp, d->ao / 32,
        d->qkvp / 32, i_thread, n_threads);
    pl_team_barrier(l->team);
    keep_keys(l, i_thread, n_threads);
}

void learned_run_keys(pl_learned *l)
{
    pl_team_run(l->team, make_keys, l);
}

/* ---- nodes ---- */

static void enter_nodes(const pl_learned *l, int i_thread, int n_threads)
{
    const eagle_dims *d = &l->max;
    int begin, end;

    pl_share(l->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++) {
        const learned_row *row = &l->rows[r];
        const learned_tree *t = row->tree;
        const int run = row->node == 0 ? -1 : t->nodes[t->nodes[row->node].parent].run;
        const float *state = run < 0 ? t->root : t->states + (size_t)run * (size_t)d->c;
        memcpy(l->g + (size_t)r * (size_t)d->c, state, (size_t)d->c * sizeof *l->g);
        enter_row(l, r, l->scratch[i_thread].row);
    }
}

/* Rows of one tree and one KV head. */
typedef struct item {
    const pl_learned *l;
    learned_scratch *s;
    const learned_tree *tree;
    int row, n_rows, kv;
    int begin, n_keys, n_slots; /* slots that count: n_keys from begin on, around the ring */
} item;

/* Rotated query of attention row i (row i / group, head i % group). */
static void turn_queries(const item *it)
{
    const pl_learned *l = it->l;
    const eagle_dims *d = &l->e->dims;

    for (int i = 0; i < it->n_rows * d->group; i++) {
        const int r = it->row + i / d->group, h = it->kv * d->group + i % d->group;
        const float *x = l->qkv + (size_t)r * (size_t)l->max.qkvp + h * d->d, *sines;
        const float *cos = cosines(l, l->rows[r].position, &sines);
        l->ops->rope(it->s->q + (size_t)i * (size_t)d->dp, x, cos, sines, d->d);
    }
}

/* The keys and values of nodes below the root, for themselves and for what grows from them. */
static void keep_nodes(const item *it)
{
    const pl_learned *l = it->l;
    const eagle_dims *d = &l->e->dims;
    uint16_t *narrow = it->s->probs;

    for (int r = it->row; r < it->row + it->n_rows; r++) {
        const learned_row *row = &l->rows[r];
        const float *x = l->qkv + (size_t)r * (size_t)l->max.qkvp + (d->h + it->kv) * d->d, *sines;
        const float *cos = cosines(l, row->position, &sines);
        float *k = learned_tree_k(l, it->tree, row->run, it->kv);
        if (row->node == 0)
            continue; /* stands in the ring */
        l->ops->rope(narrow, x, cos, sines, d->d);
        l->ops->widen_bf16(k, narrow, d->d);
        memcpy(learned_tree_v(l, it->tree, row->run, it->kv), x + d->hkv * d->d,
            (size_t)d->d * sizeof *k);
    }
}

/* Slots that count are [begin, begin + n) around the ring; the others get no weight. */
static void mask(const item *it, float *s)
{
    const int end = it->begin + it->n_keys, ring = it->l->ring;
    const int from = end > ring ? end - ring : 0;

    for (int i = from; i < it->begin && i < it->n_slots; i++)
        s[i] = -INFINITY;
    for (int i = end; i < it->n_slots; i++)
        s[i] = -INFINITY;
}

/* Runs of a node and of its ancestors below the root, nearest first. */
static int path_of(const learned_tree *t, int node, int *runs)
{
    int n = 0;
    for (; node > 0; node = t->nodes[node].parent)
        runs[n++] = t->nodes[node].run;
    return n;
}

/* Softmax over ring and path; s: raw scores of the ring, with room for the path's. */
static void soften(const item *it, int i, float *s)
{
    const pl_learned *l = it->l;
    const eagle_dims *d = &l->e->dims;
    const int node = l->rows[it->row + i / d->group].node;
    uint16_t *p = it->s->probs + (size_t)i * (size_t)l->ring;
    float *e = it->s->row, *q = it->s->query, max, lse;
    int runs[LEARNED_DEPTH];
    const int n = path_of(it->tree, node, runs);

    mask(it, s);
    l->ops->widen_bf16(q, it->s->q + (size_t)i * (size_t)d->dp, d->d);
    for (int j = 0; j < n; j++)
        s[it->n_slots + j] = l->ops->sdot(q, learned_tree_k(l, it->tree, runs[j], it->kv), d->d);
    l->ops->logsumexp(s, it->n_slots + n, sqrtf((float)d->d), e, &max, &lse);
    l->ops->scale(e, expf(max - lse), it->n_slots + n);
    memcpy(it->s->diag + (size_t)(i * LEARNED_DEPTH), e + it->n_slots, (size_t)n * sizeof *e);
    l->ops->round_bf16(p, e, it->n_slots);
    memset(p + it->n_slots, 0, (size_t)(l->ring - it->n_slots) * sizeof *p);
}

static void finish(const item *it, int i)
{
    const pl_learned *l = it->l;
    const eagle_dims *d = &l->e->dims;
    const int r = it->row + i / d->group, h = it->kv * d->group + i % d->group;
    const float *w = it->s->diag + (size_t)(i * LEARNED_DEPTH);
    float *o = it->s->out + (size_t)i * (size_t)d->dp;
    int runs[LEARNED_DEPTH];
    const int n = path_of(it->tree, l->rows[r].node, runs);

    for (int j = 0; j < n; j++)
        l->ops->saxpy(o, w[j], learned_tree_v(l, it->tree, runs[j], it->kv), d->d);
    l->ops->round_bf16(l->ao + (size_t)r * (size_t)d->aop + (size_t)(h * d->d), o, d->d);
}

static void attend(const item *it)
{
    const pl_learned *l = it->l;
    const eagle_dims *d = &l->e->dims;
    const size_t head = pl_packed_elements(l->ring, l->max.d) * (size_t)it->kv;
    const size_t lds = (size_t)l->ring + 32;
    const int n = it->n_rows * d->group;
    pl_gemm g = {.x = it->s->q,
        .ldx = (size_t)d->dp,
        .w = it->tree->place->k + head,
        .y = it->s->scores,
        .ldy = lds,
        .m = n,
        .n = it->n_slots,
        .k = d->dp,
        .panel_end = it->n_slots / 32,
        .scratch = it->s->gemm};

    keep_nodes(it);
    turn_queries(it);
    l->ops->gemm(&g);
    for (int i = 0; i < n; i++)
        soften(it, i, it->s->scores + (size_t)i * lds);
    g = (pl_gemm){.x = it->s->probs,
        .ldx = (size_t)l->ring,
        .w = it->tree->place->v + head,
        .y = it->s->out,
        .ldy = (size_t)d->dp,
        .m = n,
        .n = d->d,
        .k = l->ring,
        .panel_end = d->dp / 32,
        .scratch = it->s->gemm};
    l->ops->gemm(&g);
    for (int i = 0; i < n; i++)
        finish(it, i);
}

/* Items dealt out one by one. */
static void attend_all(const pl_learned *l, int i_thread, int n_threads)
{
    const int hkv = l->e->dims.hkv;
    int turn = 0;

    for (int r = 0, n; r < l->n_rows; r += n) {
        const learned_tree *t = l->rows[r].tree;
        const learned_place *p = t->place;
        for (n = 1; r + n < l->n_rows && l->rows[r + n].tree == t; n++)
            continue;
        item it = {.l = l,
            .s = &l->scratch[i_thread],
            .tree = t,
            .row = r,
            .n_rows = n,
            .begin = p->first % l->ring,
            .n_keys = p->position - p->first};
        const int end = it.begin + it.n_keys;
        it.n_slots = end > l->ring ? l->ring : pl_pad32(end);
        for (it.kv = 0; it.kv < hkv; it.kv++)
            if (turn++ % n_threads == i_thread)
                attend(&it);
    }
}

/* What recurs below a node: what the head reads, or what was there before its norm. */
static void keep_state(const pl_learned *l, int r, const float *x, const uint16_t *s)
{
    const size_t c = (size_t)l->max.c;
    float *state = l->rows[r].tree->states + (size_t)l->rows[r].run * c;

    if (l->e->norm_output)
        l->ops->widen_bf16(state, s, l->max.c);
    else
        memcpy(state, x, c * sizeof *state);
}

/* g += proj, then normed. */
static void add_and_norm(
    const pl_learned *l, eagle_param norm, uint16_t *y, int i_thread, int n_threads)
{
    const eagle_dims *d = &l->max;
    int begin, end;

    pl_share(l->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++) {
        float *x = l->g + (size_t)r * (size_t)d->c;
        uint16_t *to = y + (size_t)r * (size_t)d->cp;
        l->ops->add(x, l->proj + (size_t)r * (size_t)d->cp, d->c);
        l->ops->rmsnorm(to, x, eagle_weights(l->e, norm), d->c, l->e->eps);
        if (norm == EAGLE_NORM_FINAL)
            keep_state(l, r, x, to);
    }
}

static void feed_forward(const pl_learned *l, int i_thread, int n_threads)
{
    const eagle_dims *d = &l->e->dims;
    const size_t cp = (size_t)d->cp, fp = (size_t)d->fp;
    int begin, end;

    multiply_all(l, l->xn, cp, EAGLE_GATE, l->gate, fp, i_thread, n_threads);
    multiply_all(l, l->xn, cp, EAGLE_UP, l->up, fp, i_thread, n_threads);
    /* This thread's own columns. */
    pl_share(d->fp / 32, 1, i_thread, n_threads, &begin, &end);
    begin *= 32;
    end = 32 * end < d->f ? 32 * end : d->f;
    for (int r = 0; r < l->n_rows && begin < end; r++) {
        const size_t at = (size_t)r * fp + (size_t)begin;
        l->ops->silu_mul(l->hid + at, l->gate + at, l->up + at, end - begin);
    }
    pl_team_barrier(l->team);
    multiply_all(l, l->hid, fp, EAGLE_DOWN, l->proj, cp, i_thread, n_threads);
}

/* The best candidates of each row, by log q + the target's noise where they stand. */
static void choose(pl_learned *l, int i_thread, int n_threads)
{
    const pl_eagle *e = l->e;
    int begin, end;

    pl_share(l->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++) {
        learned_row *row = &l->rows[r];
        const float *z = l->logits + (size_t)r * (size_t)e->dims.vp;
        pl_draw draw = *row->tree->ask->draw;
        const float t = draw.temperature > 0 ? draw.temperature : 1.0f;
        float max, lse;
        draw.position += (uint32_t)row->tree->nodes[row->node].depth;
        row->n =
            l->ops->draw_topk(z, e->dims.v, e->vocab, &draw, LEARNED_TOPK, row->ids, row->scores);
        l->ops->logsumexp(z, e->dims.v, t, NULL, &max, &lse);
        for (int i = 0; i < row->n; i++) {
            row->scores[i] -= (double)lse;
            row->logs[i] = (double)(z[e->to_draft[row->ids[i]]] / t - lse);
        }
    }
}

static void run_layer(void *ctx, int i_thread, int n_threads)
{
    pl_learned *l = ctx;
    const eagle_dims *d = &l->e->dims;
    const size_t cp = (size_t)d->cp;

    enter_nodes(l, i_thread, n_threads);
    pl_team_barrier(l->team);
    multiply(l, l->u, (size_t)d->ld2, EAGLE_QKV, l->qkv, (size_t)l->max.qkvp, 0,
        pl_pad32(l->n_cols) / 32, i_thread, n_threads);
    pl_team_barrier(l->team);
    attend_all(l, i_thread, n_threads);
    pl_team_barrier(l->team);
    multiply_all(l, l->ao, (size_t)d->aop, EAGLE_O, l->proj, cp, i_thread, n_threads);
    pl_team_barrier(l->team);
    add_and_norm(l, EAGLE_NORM_POST, l->xn, i_thread, n_threads);
    pl_team_barrier(l->team);
    feed_forward(l, i_thread, n_threads);
    pl_team_barrier(l->team);
    add_and_norm(l, EAGLE_NORM_FINAL, l->s, i_thread, n_threads);
    pl_team_barrier(l->team);
    multiply_all(l, l->s, cp, EAGLE_HEAD, l->logits, (size_t)d->vp, i_thread, n_threads);
    pl_team_barrier(l->team);
    choose(l, i_thread, n_threads);
}

void learned_run_nodes(pl_learned *l)
{
    l->n_cols = l->e->dims.ao;
    for (int r = 0; r < l->n_rows; r++)
        if (l->rows[r].node > 0)
            l->n_cols = l->e->dims.qkv;
    pl_team_run(l->team, run_layer, l);
}
