/* model/train.c - a micro-batch: its layout in the pass, the forward, and the order of the steps.
 *
 * A sequence takes n_tokens - 1 rows of the pass (its last token predicts nothing).  Rows stand
 * without gaps; only the packed token index, over which weight gradients are summed, is padded to
 * blocks of 32 a sequence, so that no block mixes two sequences.  A block whose gradients are all
 * zero is left out of those sums: it could only have added +0. */
#include "model/train_internal.h"

#include <stdlib.h>
#include <string.h>

enum { HEAD_ROWS = 128 };

int pl_train_rows(int n_tokens)
{
    return n_tokens > 1 ? pl_pad32(n_tokens - 1) : 0;
}

/* Take memory from the arena, or only count it (arena NULL). */
static void *take(pl_arena *arena, size_t *total, size_t n, size_t size)
{
    *total += pl_arena_cost(n * size);
    return arena ? pl_arena_alloc(arena, n * size) : NULL;
}

#define TAKE(field, n) ((field) = take(arena, total, (size_t)(n), sizeof *(field)))

static void take_head(pl_train *t, pl_arena *arena, size_t *total)
{
    const size_t rows = (size_t)t->o.head_rows, cp = (size_t)t->dims.cp, vp = (size_t)t->dims.vp;
    train_head *h = &t->head;

    TAKE(h->blocks, t->o.max_tokens / TRAIN_BLOCK);
    TAKE(h->active, rows / TRAIN_BLOCK);
    TAKE(h->rows, rows);
    TAKE(h->hidden, rows * cp);
    TAKE(h->logits, rows * vp);
    TAKE(h->e, (size_t)t->n_threads * vp);
    if (t->o.forward_only)
        return;
    TAKE(h->dlogits, rows * vp);
    TAKE(h->dhidden, rows * cp);
    TAKE(h->packed, rows * cp);
    TAKE(h->dnorm, rows / TRAIN_BLOCK * cp);
}

/* Activations of one layer.  Without keep, what the backward does not need beside the pass's own
 * set is taken from there. */
static void take_acts(pl_train *t, layer_acts *a, pl_arena *arena, size_t *total)
{
    const model_dims *d = &t->dims;
    const size_t rows = (size_t)t->o.max_tokens;

    TAKE(a->x_mid, rows * (size_t)d->c);
    TAKE(a->inv_attn, rows);
    TAKE(a->inv_ffn, rows);
    TAKE(a->att_m, rows * (size_t)d->h);
    TAKE(a->att_l, rows * (size_t)d->h);
    TAKE(a->xn2, rows * (size_t)d->cp);
    if (!t->o.keep)
        return;
    TAKE(a->xn, rows * (size_t)d->cp);
    TAKE(a->q, rows * (size_t)(d->h * d->dp));
    TAKE(a->k, rows * (size_t)(d->hkv * d->dp));
    TAKE(a->v, rows * (size_t)(d->hkv * d->dp));
    TAKE(a->ao, rows * (size_t)d->aop);
    TAKE(a->gate, rows * (size_t)d->fp);
    TAKE(a->up, rows * (size_t)d->fp);
    TAKE(a->hid, rows * (size_t)d->fp);
}

static void take_scratch(const pl_train *t, back_scratch *s, pl_arena *arena, size_t *total)
{
    const size_t tq = (size_t)pl_pad32(t->o.max_len), dp = (size_t)t->dims.dp;

    TAKE(s->turned, TRAIN_DW_ROWS * t->o.head_rows);
    TAKE(s->dgate, TRAIN_BLOCK * TRAIN_COLS);
    TAKE(s->dup, TRAIN_BLOCK * TRAIN_COLS);
    TAKE(s->q_nk, tq * dp);
    TAKE(s->q_kn, tq * dp);
    TAKE(s->do_nk, tq * dp);
    TAKE(s->do_kn, tq * dp);
    TAKE(s->k_kn, (tq + PL_BLOCK) * dp);
    TAKE(s->wide, tq * dp);
    TAKE(s->dq, tq * dp);
    TAKE(s->dk, tq * dp);
    TAKE(s->dv, tq * dp);
    TAKE(s->s, PL_BLOCK * tq);
    TAKE(s->dp, PL_BLOCK * tq);
    TAKE(s->p, PL_BLOCK * tq);
    TAKE(s->ds, PL_BLOCK * tq);
    TAKE(s->ds_t, PL_BLOCK * tq);
    TAKE(s->m, tq);
    TAKE(s->inv_l, tq);
    TAKE(s->d, tq);
}

static void take_back(pl_train *t, pl_arena *arena, size_t *total)
{
    const model_dims *d = &t->dims;
    const size_t rows = (size_t)t->o.max_tokens, c = (size_t)d->c, cp = (size_t)d->cp;
    const size_t fp = (size_t)d->fp, inner = d->fp > d->aop ? fp : (size_t)d->aop;

    TAKE(t->blocks, rows / TRAIN_BLOCK);
    TAKE(t->runs, t->o.max_seqs);
    TAKE(t->dx, rows * c);
    TAKE(t->dx16, rows * cp);
    TAKE(t->dx_t, cp * t->ldt);
    TAKE(t->dnorm, rows / TRAIN_BLOCK * cp);
    TAKE(t->dy, rows * inner);
    TAKE(t->dxn, rows * cp);
    TAKE(t->dqkv, rows * (size_t)d->qkv);
    TAKE(t->dqkv16, rows * (size_t)pl_pad32(d->qkv));
    TAKE(t->dqkv_t, (size_t)pl_pad32(d->qkv) * t->ldt);
    TAKE(t->dgate16, rows * fp);
    TAKE(t->dup16, rows * fp);
    TAKE(t->dgate_t, fp * t->ldt);
    TAKE(t->dup_t, fp * t->ldt);
    TAKE(t->x_packed, rows * cp);
    TAKE(t->y_packed, rows * inner);
    TAKE(t->scratch, t->n_threads);
    for (int i = 0; i < t->n_threads; i++) {
        back_scratch counted;
        take_scratch(t, arena ? &t->scratch[i] : &counted, arena, total);
    }
}

static size_t lay_out(pl_train *t, int n_layers, pl_arena *arena)
{
    const size_t rows = (size_t)t->o.max_tokens;
    size_t n = 0, *total = &n;

    TAKE(t->segs, t->o.max_seqs);
    TAKE(t->slots, t->o.max_seqs);
    TAKE(t->kv, t->o.max_seqs);
    take_head(t, arena, total);
    if (t->o.forward_only)
        return n;
    const int n_sets = t->o.keep ? n_layers : 1;
    TAKE(t->acts, n_sets);
    TAKE(t->x, n_layers + 1);
    for (int l = 0; l <= n_layers; l++) {
        float *counted;
        TAKE(*(arena ? &t->x[l] : &counted), rows * (size_t)t->dims.c);
    }
    for (int l = 0; l < n_sets; l++) {
        layer_acts counted;
        take_acts(t, arena ? &t->acts[l] : &counted, arena, total);
    }
    take_back(t, arena, total);
    return n;
}

/* Options with defaults filled in, and what follows from them. */
static pl_train prepare(const pl_arch *arch, const pl_train_options *o, int n_threads)
{
    pl_train t = {.o = *o, .dims = model_dims_of(arch), .n_threads = n_threads};

    if (t.o.head_rows == 0)
        t.o.head_rows = HEAD_ROWS;
    t.o.max_tokens = pl_pad32(t.o.max_tokens);
    /* An odd number of cache lines: the columns of a power of two would share few cache sets. */
    t.ldt = (size_t)(t.o.max_tokens / 32 | 1) * 32;
    return t;
}

static pl_pass_options pass_options(const pl_train *t)
{
    return (pl_pass_options){
        .max_rows = t->o.max_tokens, .max_segments = t->o.max_seqs, .max_ctx = t->o.max_len};
}

static int n_pages(const pl_train *t)
{
    return t->o.max_tokens / PL_BLOCK + t->o.max_seqs;
}

size_t pl_train_plan(const pl_arch *arch, const pl_train_options *o, int n_threads)
{
    pl_train t = prepare(arch, o, n_threads);
    const pl_pass_options po = pass_options(&t);
    pl_arch one = *arch;

    one.n_layers = 1;
    return lay_out(&t, arch->n_layers, NULL) + pl_pass_plan(arch, &po, n_threads) +
           (size_t)n_pages(&t) * pl_kv_page_bytes(&one);
}

static pl_status check_options(const pl_model *m, const pl_train_options *o, pl_error *err)
{
    if (o->max_tokens < 1 || o->max_seqs < 1 || o->max_len < 2 || o->max_len > m->arch.n_ctx ||
        o->head_rows < 0 || o->head_rows % TRAIN_BLOCK != 0)
        return pl_fail(err, PL_E_INVAL,
            "training: %d tokens, %d sequences, longest %d (context %d), %d head rows (a multiple "
            "of %d)",
            o->max_tokens, o->max_seqs, o->max_len, m->arch.n_ctx, o->head_rows, TRAIN_BLOCK);
    if (!m->with_backward && !o->forward_only)
        return pl_fail(err, PL_E_INVAL,
            "training: the model holds no weights for gradients; make it with_backward, or set "
            "forward_only");
    return PL_OK;
}

/* The pointers of a layer's activations that are not its own. */
static void share_acts(pl_train *t)
{
    const layer_acts *shared = &t->pass->acts;
    const int n_sets = t->o.keep ? t->m->arch.n_layers : 1;

    for (int l = 0; l < n_sets; l++) {
        layer_acts *a = &t->acts[l];
        a->x_in = t->x[l];
        a->qkv = shared->qkv;
        if (t->o.keep)
            continue;
        a->xn = shared->xn;
        a->q = shared->q;
        a->k = shared->k;
        a->v = shared->v;
        a->ao = shared->ao;
        a->gate = shared->gate;
        a->up = shared->up;
        a->hid = shared->hid;
    }
}

static pl_status build(pl_train *t, pl_error *err)
{
    const pl_pass_options po = pass_options(t);
    pl_arch one = t->m->arch;
    pl_status st;

    st = pl_arena_init(&t->arena, lay_out(t, t->m->arch.n_layers, NULL), "training", err);
    if (st != PL_OK)
        return st;
    lay_out(t, t->m->arch.n_layers, &t->arena);
    st = pl_pass_new(&t->pass, t->m, &po, err);
    if (st != PL_OK)
        return st;
    t->pass->kv_layer_stride = 0;
    one.n_layers = 1;
    st = pl_kv_pool_new(&t->pool, &one, n_pages(t), err);
    if (st != PL_OK)
        return st;
    while (t->n_kv < t->o.max_seqs) {
        st = pl_kv_seq_init(&t->kv[t->n_kv], t->o.max_len, err);
        if (st != PL_OK)
            return st;
        t->n_kv++;
    }
    if (!t->o.forward_only)
        share_acts(t);
    return PL_OK;
}

pl_status pl_train_new(pl_train **out, pl_model *m, const pl_train_options *o, pl_error *err)
{
    pl_status st = check_options(m, o, err);
    if (st != PL_OK)
        return st;
    pl_train *t = malloc(sizeof *t);
    if (!t)
        return pl_fail(err, PL_E_NOMEM, "training: no memory");
    *t = prepare(&m->arch, o, pl_team_size(m->team));
    t->m = m;
    st = build(t, err);
    if (st != PL_OK) {
        pl_train_free(t);
        return st;
    }
    *out = t;
    return PL_OK;
}

void pl_train_free(pl_train *t)
{
    if (!t)
        return;
    for (int i = 0; i < t->n_kv; i++)
        pl_kv_seq_done(t->pool, &t->kv[i]);
    pl_kv_pool_free(t->pool);
    pl_pass_free(t->pass);
    pl_arena_done(&t->arena);
    free(t);
}

void pl_train_set_redraw(pl_train *t, const pl_train_redraw *r)
{
    t->redraw = r ? *r : (pl_train_redraw){0};
}

void train_columns(int n, int i_thread, int n_threads, int *begin, int *end)
{
    pl_share(n, 32, i_thread, n_threads, begin, end);
}

/* ---- a micro-batch ---- */

static pl_status check_seq(const pl_train *t, const pl_train_seq *s, int i, pl_error *err)
{
    if (s->n_tokens < 1 || s->n_tokens > t->o.max_len || s->n_prompt < 1)
        return pl_fail(err, PL_E_INVAL,
            "sequence %d of the micro-batch: %d tokens, %d of them prompt; at most %d", i,
            s->n_tokens, s->n_prompt, t->o.max_len);
    if (!(s->temperature > 0.0f))
        return pl_fail(err, PL_E_INVAL,
            "sequence %d of the micro-batch: temperature %g; it must be above 0 (1 for greedy "
            "rollouts)",
            i, (double)s->temperature);
    return PL_OK;
}

static void add_head_blocks(pl_train *t, int i_slot, const pl_train_seq *s)
{
    for (int token = s->n_prompt; token < s->n_tokens; token += TRAIN_BLOCK) {
        const int n = s->n_tokens - token;
        t->head.blocks[t->head.n_blocks++] =
            (head_block){.slot = i_slot, .token = token, .n = n < TRAIN_BLOCK ? n : TRAIN_BLOCK};
    }
}

/* A slot, a segment and the pages of a sequence. */
static pl_status add_seq(pl_train *t, int i_seq, int *row, pl_error *err)
{
    const pl_train_seq *s = &t->seqs[i_seq];
    const int i = t->n_slots;

    t->slots[i] = (train_slot){.i_seq = i_seq, .row = *row, .n_rows = s->n_tokens - 1};
    t->segs[i] = (pl_segment){.kv = &t->kv[i], .tokens = s->tokens, .n_rows = s->n_tokens - 1};
    *row += s->n_tokens - 1;
    t->n_slots++;
    add_head_blocks(t, i, s);
    return pl_kv_reserve(t->pool, &t->kv[i], s->n_tokens - 1, err);
}

static pl_status begin(pl_train *t, const pl_train_seq *seqs, int n, pl_error *err)
{
    int budget = 0, row = 0;
    pl_status st = PL_OK;

    t->seqs = seqs;
    t->n_slots = t->head.n_blocks = 0;
    for (int i = 0; i < n && st == PL_OK; i++) {
        budget += pl_train_rows(seqs[i].n_tokens);
        st = check_seq(t, &seqs[i], i, err);
    }
    if (st != PL_OK)
        return st;
    if (n < 0 || n > t->o.max_seqs || budget > t->o.max_tokens)
        return pl_fail(err, PL_E_INVAL,
            "micro-batch of %d sequences and %d rows; at most %d and %d", n, budget, t->o.max_seqs,
            t->o.max_tokens);
    for (int i = 0; i < t->o.max_seqs; i++)
        pl_kv_seq_clear(t->pool, &t->kv[i]);
    for (int i = 0; i < n && st == PL_OK; i++)
        if (seqs[i].n_tokens > seqs[i].n_prompt)
            st = add_seq(t, i, &row, err);
    if (st == PL_OK && t->n_slots > 0)
        st = pass_begin(t->pass, t->pool, t->segs, t->n_slots, err);
    return st;
}

/* The slots with gradients: their place in the token index, their blocks and ranges of rows. */
static void plan_backward(pl_train *t)
{
    t->n_blocks = t->n_runs = t->k = 0;
    for (int i = 0; i < t->n_slots; i++) {
        train_slot *s = &t->slots[i];
        if (!s->has_grad)
            continue;
        s->k0 = t->k;
        for (int r = 0; r < s->n_rows; r += TRAIN_BLOCK) {
            const int n = s->n_rows - r < TRAIN_BLOCK ? s->n_rows - r : TRAIN_BLOCK;
            t->blocks[t->n_blocks++] = (train_span){.row = s->row + r, .n = n, .k0 = t->k};
            t->k += TRAIN_BLOCK;
        }
        train_span *last = t->n_runs > 0 ? &t->runs[t->n_runs - 1] : NULL;
        if (last && last->row + last->n == s->row)
            last->n += s->n_rows;
        else
            t->runs[t->n_runs++] = (train_span){.row = s->row, .n = s->n_rows, .k0 = s->k0};
    }
}

static void zero_rows(float *x, int n_rows, int n_cols, int i_thread, int n_threads)
{
    int from, to;
    pl_share(n_rows, 1, i_thread, n_threads, &from, &to);
    memset(x + (size_t)from * (size_t)n_cols, 0, (size_t)(to - from) * (size_t)n_cols * sizeof *x);
}

static void forward(pl_train *t, int i_thread, int n_threads)
{
    float *inference_x = t->pass->acts.x_in;
    const int n_layers = t->m->arch.n_layers;

    pass_embed(t->pass, t->grads ? t->x[0] : inference_x, i_thread, n_threads);
    for (int l = 0; l < n_layers; l++) {
        layer_acts a = t->pass->acts;
        if (t->grads)
            a = t->acts[t->o.keep ? l : 0];
        a.x_in = t->grads ? t->x[l] : inference_x;
        pass_layer(t->pass, l, &a, t->grads ? t->x[l + 1] : inference_x, i_thread, n_threads);
    }
}

static void run_team(void *ctx, int i_thread, int n_threads)
{
    pl_train *t = ctx;

    /* 1. Forward through the layers. */
    forward(t, i_thread, n_threads);
    if (t->grads)
        zero_rows(t->dx, t->pass->n_rows, t->dims.c, i_thread, n_threads);

    /* 2. Head, log-probs, loss, and back to the final hidden states, chunk by chunk. */
    train_head_run(t, i_thread, n_threads);
    if (t->st != PL_OK || !t->grads)
        return;

    /* 3. Back through the layers, for the sequences that have gradients. */
    if (i_thread == 0)
        plan_backward(t);
    pl_team_barrier(t->m->team);
    if (t->k > 0)
        train_layers_back(t, i_thread, n_threads);
}

static pl_status run(pl_train *t, const pl_train_seq *seqs, int n_seqs, pl_train_loss_fn loss,
    void *ctx, float *grads, pl_error *err)
{
    pl_status st = begin(t, seqs, n_seqs, err);
    if (st != PL_OK || t->n_slots == 0)
        return st;
    t->loss = loss;
    t->loss_ctx = ctx;
    t->grads = grads;
    t->st = PL_OK;
    t->err = err;
    pl_team_run(t->m->team, run_team, t);
    return t->st;
}

pl_status pl_train_step(pl_train *t, const pl_train_seq *seqs, int n_seqs, pl_train_loss_fn loss,
    void *ctx, float *grads, pl_error *err)
{
    if (t->o.forward_only || !grads)
        return pl_fail(err, PL_E_INVAL, "training step: made for log-probs only");
    return run(t, seqs, n_seqs, loss, ctx, grads, err);
}

pl_status pl_train_logprobs(pl_train *t, const pl_train_seq *seqs, int n_seqs,
    pl_train_loss_fn loss, void *ctx, pl_error *err)
{
    return run(t, seqs, n_seqs, loss, ctx, NULL, err);
}
