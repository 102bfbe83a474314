/* rollout/recorded.c - what stands for the target in an engine that runs over a record. */
#include "rollout/recorded.h"
#include "rollout/internal.h"

#include <string.h>

/* The pages are counted, not written: one small head each. */
pl_arch recorded_arch(const pl_arch *a)
{
    pl_arch slim = *a;
    slim.n_layers = slim.n_heads = slim.n_kv_heads = 1;
    slim.head_dim = slim.n_embd = 2;
    return slim;
}

pl_status recorded_take(const pl_engine *e, sequence *s, pl_error *err)
{
    s->text = e->record->tokens(e->record->ctx, s->r.uid, &s->n_text);
    if (!s->text)
        return pl_fail(err, PL_E_INVAL, "it is not in the record");
    return PL_OK;
}

void recorded_pass(const pl_engine *e, const plan *p)
{
    for (int i = 0; i < p->n_segs; i++)
        if (!e->segs[i].parent)
            e->segs[i].kv->n_tokens += e->segs[i].n_rows;
}

/* Walk down the draft while it holds what the target drew, as pl_verify. */
pl_status recorded_verify(const sequence *s, const pl_draft *draft, pl_verdict *out, pl_error *err)
{
    int row = 0;
    out->n = 0;
    do {
        if (s->n + out->n >= s->n_text) {
            if (out->n > 0)
                return PL_OK; /* the response ends here, or the next round says that it does not */
            return pl_fail(err, PL_E_INVAL,
                "sample %u: the record ends after %d tokens, its response does not", s->r.uid,
                s->n_text);
        }
        const int i = out->n++;
        const int32_t token = s->text[s->n + i];
        const int child = pl_draft_child(draft, row, token);
        out->token[i] = token;
        out->logprob[i] = 0;
        out->source[i] = child >= 0 ? draft->source[child] : (uint8_t)PL_SOURCE_TARGET;
        out->row[i] = (int16_t)row;
        row = child;
    } while (row >= 0 && out->n < PL_DRAFT_MAX);
    return PL_OK;
}

static void put_row(pl_engine *e, const sequence *s, size_t i_row, int position)
{
    const size_t n = PL_FEATURE_LAYERS * (size_t)pl_pad32(e->arch->n_embd);
    const uint16_t *f = e->record->features(e->record->ctx, s->r.uid, position);
    uint16_t *to = e->features.rows + i_row * n;
    if (f)
        memcpy(to, f, n * sizeof *to);
    else
        memset(to, 0, n * sizeof *to);
}

void recorded_features(pl_engine *e, const plan *p)
{
    size_t i_row = 0;
    for (int i = 0; i < p->n_segs; i++) {
        const work *w = &e->work[i];
        const int n_rows = e->segs[i].n_rows;
        if (w->is_prefill) {
            const int position = e->segs[i].kv->n_tokens - n_rows;
            for (int r = 0; r < n_rows; r++)
                put_row(e, w->s, i_row + (size_t)r, position + r);
        } else if (w->s->finish == PL_FINISH_NONE) {
            const int position = engine_known(w->s) - w->n_kept;
            for (int r = 0; r < w->n_kept; r++)
                put_row(e, w->s, i_row + (size_t)w->verdict.row[r], position + r);
        }
        i_row += (size_t)n_rows;
    }
}

double recorded_pass_s(const pl_engine *e, int n_rows)
{
    return e->record->pass_s(e->record->ctx, n_rows);
}
