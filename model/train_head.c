/* model/train_head.c - the vocabulary head in chunks of rows: log-probs, the loss, and the
 * gradients of head, final norm and final hidden states.
 *
 * A chunk is a run of whole blocks (up to 32 neighbouring response tokens of one sequence).  The
 * head's gradient is the canonical dot over all blocks with gradients in order, each padded to 32;
 * chunk and micro-batch borders fall between blocks and do not show.  The rest works row by row. */
#include "model/train_internal.h"

#include <math.h>
#include <string.h>

static const float *final_x(const pl_train *t, int row)
{
    const float *x = t->grads ? t->x[t->m->arch.n_layers] : t->pass->acts.x_in;
    return x + (size_t)row * (size_t)t->dims.c;
}

static const pl_train_seq *seq_of(const pl_train *t, const head_row *r)
{
    return &t->seqs[t->slots[r->slot].i_seq];
}

/* Thread 0: the blocks that still fit, and their rows. */
static void begin_chunk(pl_train *t)
{
    train_head *h = &t->head;

    h->begin = h->end;
    h->n_rows = h->n_active = 0;
    while (h->end < h->n_blocks && (h->end - h->begin + 1) * TRAIN_BLOCK <= t->o.head_rows) {
        head_block *b = &h->blocks[h->end++];
        b->first = h->n_rows;
        b->has_grad = 0;
        for (int i = 0; i < b->n; i++)
            h->rows[h->n_rows++] = (head_row){.slot = b->slot,
                .token = b->token + i,
                .row = t->slots[b->slot].row + b->token + i - 1};
    }
}

/* Thread 0: which rows of the chunk are drawn anew, and how. */
static void ask_redraws(pl_train *t)
{
    train_head *h = &t->head;

    for (int i = 0; t->redraw.wants && i < h->n_rows; i++) {
        head_row *r = &h->rows[i];
        r->is_redrawn =
            t->redraw.wants(t->redraw.ctx, t->slots[r->slot].i_seq, r->token, &r->draw) != 0;
        if (r->draw.temperature > 0)
            r->draw.temperature = seq_of(t, r)->temperature;
    }
}

static void norm_rows(pl_train *t, int i_thread, int n_threads)
{
    train_head *h = &t->head;
    int begin, end;

    pl_share(h->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (int i = begin; i < end; i++)
        h->rows[i].inv = t->m->ops->rmsnorm(h->hidden + (size_t)i * (size_t)t->dims.cp,
            final_x(t, h->rows[i].row), t->m->final_norm, t->dims.c, t->m->arch.rms_eps);
    pl_team_barrier(t->m->team);
}

/* Log-sum-exp of a row; the draw computes it on the way. */
static float row_lse(const pl_ops *ops, head_row *r, const float *z, int n, float t, float *e)
{
    float max, lse;

    if (r->is_redrawn) {
        pl_drawn drawn;
        ops->draw(z, n, &r->draw, e, &drawn);
        r->drawn = drawn.token;
        if (r->draw.temperature > 0 || t == 1.0f) /* else the draw's is that at T = 1 */
            return drawn.lse;
    }
    ops->logsumexp(z, n, t, NULL, &max, &lse);
    return lse;
}

/* Log-prob and entropy of each row: the draw op's formula, so the bits of the rollout. */
static void score_rows(pl_train *t, int i_thread, int n_threads)
{
    const pl_ops *ops = t->m->ops;
    train_head *h = &t->head;
    float *e = h->e + (size_t)i_thread * (size_t)t->dims.vp;
    int begin, end;

    pl_share(h->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (int i = begin; i < end; i++) {
        head_row *r = &h->rows[i];
        const float *z = h->logits + (size_t)i * (size_t)t->dims.vp;
        const float temperature = seq_of(t, r)->temperature;
        r->lse = row_lse(ops, r, z, t->dims.v, temperature, e);
        r->logprob = z[seq_of(t, r)->tokens[r->token]] / temperature - r->lse;
        if (t->o.want_entropy)
            r->entropy = ops->entropy(z, t->dims.v, temperature, r->lse);
    }
    pl_team_barrier(t->m->team);
}

/* Thread 0: the loss of every row in order, and which blocks have gradients. */
static void call_loss(pl_train *t)
{
    train_head *h = &t->head;

    for (int i = h->begin; i < h->end; i++) {
        head_block *b = &h->blocks[i];
        for (int j = 0; j < b->n; j++) {
            head_row *r = &h->rows[b->first + j];
            const int i_seq = t->slots[r->slot].i_seq;
            if (!isfinite(r->logprob)) {
                t->st = pl_fail(t->err, PL_E_NUMERIC,
                    "log-prob of token %d of sequence %d is not finite; the weights or the "
                    "learning rate are beyond repair",
                    r->token, i_seq);
                return;
            }
            if (r->is_redrawn)
                t->redraw.drawn(t->redraw.ctx, i_seq, r->token, r->drawn);
            r->g = t->loss(t->loss_ctx, i_seq, r->token, r->logprob, r->entropy);
            if (t->grads && !isfinite(r->g)) {
                t->st = pl_fail(t->err, PL_E_NUMERIC,
                    "gradient of the loss at token %d of sequence %d is not finite", r->token,
                    i_seq);
                return;
            }
            b->has_grad |= r->g != 0.0f;
        }
        if (b->has_grad) {
            t->slots[b->slot].has_grad = 1;
            h->active[h->n_active++] = i;
        }
    }
}

/* Gradient of the logits, rounded; rows without one are zero. */
static void logits_back(pl_train *t, int i_thread, int n_threads)
{
    const pl_ops *ops = t->m->ops;
    const size_t vp = (size_t)t->dims.vp, cp = (size_t)t->dims.cp;
    train_head *h = &t->head;
    int begin, end;

    pl_share(h->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (int i = begin; i < end; i++) {
        const head_row *r = &h->rows[i];
        uint16_t *dz = h->dlogits + (size_t)i * vp;
        if (r->g == 0.0f)
            memset(dz, 0, vp * sizeof *dz);
        else
            ops->logprob_back(dz, h->logits + (size_t)i * vp, t->dims.v, seq_of(t, r)->temperature,
                r->lse, seq_of(t, r)->tokens[r->token], r->g);
    }
    /* The hidden states as the other operand of the head's gradient. */
    const size_t panel = TRAIN_BLOCK * (size_t)(h->n_active * TRAIN_BLOCK);
    pl_share((int)cp / 32, 1, i_thread, n_threads, &begin, &end);
    for (int p = begin; p < end; p++)
        for (int k = 0; k < h->n_active; k++) {
            const head_block *b = &h->blocks[h->active[k]];
            ops->pack_kn_bf16(h->packed + (size_t)p * panel + (size_t)k * 1024,
                h->hidden + (size_t)b->first * cp + (size_t)p * 32, cp, t->dims.c - 32 * p, b->n, 0,
                1);
        }
    pl_team_barrier(t->m->team);
}

/* Gradient of the head: the rows of this thread, some at a time. */
static void weight_back(pl_train *t, int i_thread, int n_threads)
{
    const pl_ops *ops = t->m->ops;
    const train_head *h = &t->head;
    const size_t ld = (size_t)t->o.head_rows, c = (size_t)t->dims.c;
    const pl_param_kind kind = t->m->arch.tied ? PL_P_EMBED : PL_P_HEAD;
    float *grads = t->grads + pl_param_find(t->m->params, kind, -1)->offset;
    uint16_t *turned = t->scratch[i_thread].turned;
    int begin, end;

    train_columns(t->dims.v, i_thread, n_threads, &begin, &end);
    for (int v = begin; v < end; v += TRAIN_DW_ROWS) {
        const int n = end - v < TRAIN_DW_ROWS ? end - v : TRAIN_DW_ROWS;
        for (int k = 0; k < h->n_active; k++) {
            const head_block *b = &h->blocks[h->active[k]];
            ops->transpose_bf16(turned + k * TRAIN_BLOCK, ld,
                h->dlogits + (size_t)b->first * (size_t)t->dims.vp + (size_t)v, (size_t)t->dims.vp,
                b->n, 0, n);
        }
        const pl_gemm g = {.x = turned,
            .ldx = ld,
            .w = h->packed,
            .y = grads + (size_t)v * c,
            .ldy = c,
            .m = n,
            .n = t->dims.c,
            .k = h->n_active * TRAIN_BLOCK,
            .accumulate = 1,
            .panel_end = t->dims.cp / 32,
            .scratch = t->pass->scratch[i_thread].gemm};
        ops->gemm(&g);
    }
}

/* Final norm, by block. */
static void norm_back(pl_train *t, int i_thread, int n_threads)
{
    const size_t c = (size_t)t->dims.c, cp = (size_t)t->dims.cp;
    const train_head *h = &t->head;
    int begin, end;

    pl_share(h->n_active, 1, i_thread, n_threads, &begin, &end);
    for (int k = begin; k < end; k++) {
        const head_block *b = &h->blocks[h->active[k]];
        float *dw = h->dnorm + (size_t)k * cp;
        memset(dw, 0, cp * sizeof *dw);
        for (int i = b->first; i < b->first + b->n; i++)
            t->m->ops->rmsnorm_back(t->dx + (size_t)h->rows[i].row * c, dw,
                h->dhidden + (size_t)i * cp, final_x(t, h->rows[i].row), t->m->final_norm,
                h->rows[i].inv, t->dims.c);
    }
    pl_team_barrier(t->m->team);
    train_add_norm(t, PL_P_FINAL_NORM, -1, h->dnorm, h->n_active, i_thread, n_threads);
}

static void chunk_back(pl_train *t, int i_thread, int n_threads)
{
    const model_dims *d = &t->dims;
    const train_head *h = &t->head;

    logits_back(t, i_thread, n_threads);
    weight_back(t, i_thread, n_threads);
    model_gemm(t->pass, h->dlogits, (size_t)d->vp, t->m->head_t, h->dhidden, (size_t)d->cp,
        h->n_rows, d->c, d->v, i_thread, n_threads);
    pl_team_barrier(t->m->team);
    norm_back(t, i_thread, n_threads);
}

void train_head_run(pl_train *t, int i_thread, int n_threads)
{
    const model_dims *d = &t->dims;
    train_head *h = &t->head;

    if (i_thread == 0)
        h->begin = h->end = 0;
    for (;;) {
        /* 1. Logits of the next rows. */
        if (i_thread == 0) {
            begin_chunk(t);
            ask_redraws(t);
        }
        pl_team_barrier(t->m->team);
        if (h->n_rows == 0)
            break;
        norm_rows(t, i_thread, n_threads);
        model_gemm(t->pass, h->hidden, (size_t)d->cp, t->m->head, h->logits, (size_t)d->vp,
            h->n_rows, d->v, d->c, i_thread, n_threads);
        pl_team_barrier(t->m->team);

        /* 2. Log-probs, and what the loss says of them. */
        score_rows(t, i_thread, n_threads);
        if (i_thread == 0)
            call_loss(t);
        pl_team_barrier(t->m->team);
        if (t->st != PL_OK)
            return;

        /* 3. Back to the final hidden states. */
        if (t->grads && h->n_active > 0)
            chunk_back(t, i_thread, n_threads);
        pl_team_barrier(t->m->team);
    }
}
