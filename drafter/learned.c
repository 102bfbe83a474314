/* drafter/learned.c - what the learned drafter remembers: places, rings of features, memory. */
#include "drafter/learned_internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Nodes that are reached less often are not worth a row of the target's pass, or being run: a level
 * costs about a tenth of a plain pass of SmolLM2-135M. */
static const float LEAST_ROW = 0.004f, LEAST_RUN = 0.04f;

static eagle_dims dims_of(const pl_arch *a)
{
    eagle_dims d = {.c = a->n_embd,
        .cp = pl_pad32(a->n_embd),
        .ld2 = pl_pad32(2 * a->n_embd) + 32,
        .ld3 = pl_pad32(3 * a->n_embd) + 32,
        .f = a->n_ff,
        .fp = pl_pad32(a->n_ff),
        .d = a->head_dim,
        .dp = pl_pad32(a->head_dim),
        .h = a->n_heads,
        .hkv = a->n_kv_heads,
        .v = a->n_vocab < LEARNED_VOCAB ? a->n_vocab : LEARNED_VOCAB,
        .vt = a->n_vocab};

    d.qkv = (d.h + 2 * d.hkv) * d.d;
    d.qkvp = pl_pad32(d.qkv);
    d.ao = d.h * d.d;
    d.aop = pl_pad32(d.ao);
    d.vp = pl_pad32(d.v);
    return d;
}

static void set_sizes(pl_learned *l, const pl_arch *a, const pl_learned_options *o, int n_threads)
{
    l->o = *o;
    l->max = dims_of(a);
    l->n_ctx = a->n_ctx;
    l->ring = pl_pad32(o->window);
    l->n_threads = n_threads;
    l->max_runs = 1 + LEARNED_LEVEL_ROWS * (o->max_depth - 1);
    l->max_nodes = 1 + o->topk * l->max_runs;
}

/* Take memory from the arena, or only count it. */
static void *take(pl_arena *arena, size_t *total, size_t n, size_t n_bytes)
{
    *total += pl_arena_cost(n * n_bytes);
    return arena ? pl_arena_alloc(arena, n * n_bytes) : NULL;
}

static size_t kv_elements(const pl_learned *l)
{
    return (size_t)l->max.hkv * pl_packed_elements(l->ring, l->max.d);
}

static size_t feature_elements(const pl_learned *l)
{
    return (size_t)l->ring * (size_t)(PL_FEATURE_LAYERS * l->max.cp);
}

static size_t lay_out_places(pl_learned *l, pl_arena *arena)
{
    const size_t n = (size_t)l->o.max_places, runs = (size_t)l->max_runs;
    const size_t head = runs * (size_t)(l->max.hkv * l->max.dp);
    size_t total = 0;

    l->places = take(arena, &total, n, sizeof *l->places);
    l->trees = take(arena, &total, n, sizeof *l->trees);
    for (int i = 0; i < l->o.max_places; i++) {
        learned_place none, *p = arena ? &l->places[i] : &none;
        learned_tree bare, *t = arena ? &l->trees[i] : &bare;
        p->tokens = take(arena, &total, (size_t)l->ring, sizeof *p->tokens);
        p->features = take(arena, &total, feature_elements(l), sizeof *p->features);
        p->k = take(arena, &total, kv_elements(l), sizeof *p->k);
        p->v = take(arena, &total, kv_elements(l), sizeof *p->v);
        t->nodes = take(arena, &total, (size_t)l->max_nodes, sizeof *t->nodes);
        t->root = take(arena, &total, (size_t)l->max.c, sizeof *t->root);
        t->states = take(arena, &total, runs * (size_t)l->max.c, sizeof *t->states);
        t->k = take(arena, &total, head, sizeof *t->k);
        t->v = take(arena, &total, head, sizeof *t->v);
    }
    return total;
}

static size_t lay_out_scratch(pl_learned *l, pl_arena *arena)
{
    /* Every head counts: a drafter may have fewer KV heads than its target. */
    const size_t n = (size_t)(LEARNED_LEVEL_ROWS * l->max.h), ring = (size_t)l->ring;
    const size_t dp = (size_t)l->max.dp, cp = (size_t)l->max.cp;
    size_t total = 0;

    l->scratch = take(arena, &total, (size_t)l->n_threads, sizeof *l->scratch);
    for (int i = 0; i < l->n_threads; i++) {
        learned_scratch none, *s = arena ? &l->scratch[i] : &none;
        s->gemm = take(arena, &total, 1, PL_GEMM_SCRATCH);
        s->row = take(arena, &total, cp > ring + 32 ? cp : ring + 32, sizeof *s->row);
        s->scores = take(arena, &total, n * (ring + 32), sizeof *s->scores);
        s->q = take(arena, &total, n * dp, sizeof *s->q);
        s->probs = take(arena, &total, n * ring, sizeof *s->probs);
        s->diag = take(arena, &total, n * LEARNED_DEPTH, sizeof *s->diag);
        s->out = take(arena, &total, n * dp, sizeof *s->out);
        s->query = take(arena, &total, dp, sizeof *s->query);
    }
    return total;
}

static size_t lay_out(pl_learned *l, pl_arena *arena)
{
    const eagle_dims *d = &l->max;
    const size_t rows = LEARNED_ROWS, c = (size_t)d->c, cp = (size_t)d->cp, fp = (size_t)d->fp;
    size_t total = lay_out_places(l, arena) + lay_out_scratch(l, arena);

    l->fused = take(arena, &total, rows * (size_t)d->ld3, sizeof *l->fused);
    l->g = take(arena, &total, rows * c, sizeof *l->g);
    l->u = take(arena, &total, rows * (size_t)d->ld2, sizeof *l->u);
    l->qkv = take(arena, &total, rows * (size_t)d->qkvp, sizeof *l->qkv);
    l->ao = take(arena, &total, rows * (size_t)d->aop, sizeof *l->ao);
    l->proj = take(arena, &total, rows * cp, sizeof *l->proj);
    l->xn = take(arena, &total, rows * cp, sizeof *l->xn);
    l->gate = take(arena, &total, rows * fp, sizeof *l->gate);
    l->up = take(arena, &total, rows * fp, sizeof *l->up);
    l->hid = take(arena, &total, rows * fp, sizeof *l->hid);
    l->s = take(arena, &total, rows * cp, sizeof *l->s);
    l->logits = take(arena, &total, rows * (size_t)d->vp, sizeof *l->logits);
    return total;
}

size_t pl_learned_plan(const pl_arch *a, const pl_learned_options *o, int n_threads)
{
    pl_learned l;
    memset(&l, 0, sizeof l);
    set_sizes(&l, a, o, n_threads);
    return sizeof l + lay_out(&l, NULL);
}

static pl_status check(const pl_learned_options *o, pl_error *err)
{
    if (o->max_places < 1 || o->window < 1)
        return pl_fail(err, PL_E_INVAL, "learned drafter: %d places of %d positions; at least 1",
            o->max_places, o->window);
    if (o->max_rows < 2 || o->max_rows > PL_DRAFT_MAX)
        return pl_fail(err, PL_E_INVAL, "learned drafter: trees of %d rows; from 2 to %d",
            o->max_rows, PL_DRAFT_MAX);
    if (o->max_depth < 1 || o->max_depth > LEARNED_DEPTH)
        return pl_fail(err, PL_E_INVAL, "learned drafter: trees of %d levels; from 1 to %d",
            o->max_depth, LEARNED_DEPTH);
    if (o->topk < 1 || o->topk > LEARNED_TOPK)
        return pl_fail(err, PL_E_INVAL, "learned drafter: %d children of a row; from 1 to %d",
            o->topk, LEARNED_TOPK);
    return PL_OK;
}

pl_status pl_learned_new(
    pl_learned **out, const pl_model *target, const pl_learned_options *o, pl_error *err)
{
    pl_status st = check(o, err);

    if (st != PL_OK)
        return st;
    pl_learned *l = calloc(1, sizeof *l);
    if (!l)
        return pl_fail(err, PL_E_NOMEM, "learned drafter: no memory");
    l->target = target;
    l->ops = pl_model_ops(target);
    l->team = pl_model_team(target);
    l->parts = pl_model_lend(target);
    l->least_row = LEAST_ROW;
    l->least_run = LEAST_RUN;
    set_sizes(l, pl_model_arch(target), o, pl_team_size(l->team));
    st = pl_arena_init(&l->arena, lay_out(l, NULL), "learned drafter", err);
    if (st != PL_OK) {
        pl_learned_free(l);
        return st;
    }
    lay_out(l, &l->arena);
    *out = l;
    return PL_OK;
}

void pl_learned_free(pl_learned *l)
{
    if (!l)
        return;
    pl_arena_done(&l->arena);
    free(l);
}

static pl_status check_drafter(const pl_learned *l, const pl_eagle *e, pl_error *err)
{
    const eagle_dims *d = &e->dims, *max = &l->max;

    if (d->c != max->c || d->vt != max->vt || d->d != max->d)
        return pl_fail(err, PL_E_SHAPE,
            "drafter of a target with hidden size %d, %d tokens, heads of %d; this target has %d, "
            "%d, %d: train one for it",
            d->c, d->vt, d->d, max->c, max->vt, max->d);
    if (d->v > max->v)
        return pl_fail(err, PL_E_NOMEM,
            "drafter: vocabulary of %d, there is room for %d: use a smaller one", d->v, max->v);
    if (d->h > max->h || d->hkv > max->hkv || d->f > max->f)
        return pl_fail(err, PL_E_NOMEM,
            "drafter: %d heads, %d KV heads, inner size %d; there is room for its target's %d, %d, "
            "%d",
            d->h, d->hkv, d->f, max->h, max->hkv, max->f);
    return PL_OK;
}

pl_status pl_learned_set(pl_learned *l, const pl_eagle *e, pl_error *err)
{
    const pl_status st = e ? check_drafter(l, e, err) : PL_OK;

    if (st != PL_OK)
        return st;
    /* Packing changes no weight, only what products read. */
    while (e && pl_eagle_pack_one((pl_eagle *)e) != 0)
        continue;
    l->e = e;
    for (int i = 0; i < l->o.max_places; i++) {
        learned_place *p = &l->places[i];
        if (p->n_cached > p->n_stale)
            p->n_stale = p->n_cached;
        p->n_cached = p->first;
    }
    /* Columns of padding may hold what a wider drafter left there. */
    memset(l->ao, 0, (size_t)(LEARNED_ROWS * l->max.aop) * sizeof *l->ao);
    memset(l->hid, 0, (size_t)(LEARNED_ROWS * l->max.fp) * sizeof *l->hid);
    return PL_OK;
}

/* ---- places ---- */

static void begin(learned_place *p, int position)
{
    p->first = position;
    p->position = position;
    p->n_cached = position;
    p->n_stale = 0;
}

int pl_learned_open(pl_learned *l)
{
    for (int i = 0; i < l->o.max_places; i++)
        if (!l->places[i].is_open) {
            begin(&l->places[i], 0);
            l->places[i].is_open = 1;
            return i;
        }
    return -1;
}

static learned_place *place_of(const pl_learned *l, int place)
{
    assert(place >= 0 && place < l->o.max_places && l->places[place].is_open);
    return &l->places[place];
}

void pl_learned_close(pl_learned *l, int place)
{
    place_of(l, place)->is_open = 0;
}

void pl_learned_fork(pl_learned *l, int to, int from)
{
    learned_place *dst = place_of(l, to);
    const learned_place *src = place_of(l, from);
    const learned_place own = *dst;

    if (to == from)
        return;
    *dst = *src;
    dst->tokens = own.tokens;
    dst->features = own.features;
    dst->k = own.k;
    dst->v = own.v;
    memcpy(dst->tokens, src->tokens, (size_t)l->ring * sizeof *dst->tokens);
    memcpy(dst->features, src->features, feature_elements(l) * sizeof *dst->features);
    memcpy(dst->k, src->k, kv_elements(l) * sizeof *dst->k);
    memcpy(dst->v, src->v, kv_elements(l) * sizeof *dst->v);
}

/* Forget positions from position on; token is what stands there now. */
static void cut(learned_place *p, int position, int32_t token)
{
    if (position > p->position || position <= p->first) {
        begin(p, position);
        return;
    }
    /* The key of the position before was made with a token that was drafted for or that is gone. */
    if (p->n_cached > position)
        p->n_cached = position - 1;
    else if (p->n_cached == position && p->pending != token)
        p->n_cached--;
    if (p->n_stale > position)
        p->n_stale = position;
    p->position = position;
}

void pl_learned_feed(pl_learned *l, int place, int position, const int32_t *tokens,
    const uint16_t *features, size_t stride, int n)
{
    learned_place *p = place_of(l, place);
    const size_t size = (size_t)(PL_FEATURE_LAYERS * l->max.cp) * sizeof *features;

    assert(position >= 0 && n >= 0);
    if (n < 1)
        return;
    cut(p, position, tokens[0]);
    for (int i = n > l->ring ? n - l->ring : 0; i < n; i++) {
        p->tokens[(position + i) % l->ring] = tokens[i];
        memcpy(learned_features(l, p, position + i), features + (size_t)i * stride, size);
    }
    p->position = position + n;
    if (p->first < p->position - l->o.window)
        p->first = p->position - l->o.window;
    if (p->n_cached < p->first)
        p->n_cached = p->first;
}

int pl_learned_position(const pl_learned *l, int place)
{
    return place_of(l, place)->position;
}

void pl_learned_get_stats(pl_learned *l, pl_learned_stats *out, int reset)
{
    *out = l->stats;
    if (reset)
        memset(&l->stats, 0, sizeof l->stats);
}
