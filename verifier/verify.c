/* verifier/verify.c - walk down the draft while it holds what the target draws. */
#include "verifier/verifier.h"

#include <assert.h>
#include <string.h>

/* 1 when no value is NaN or infinite: the largest exponent of all is below the reserved one. */
static int is_finite_row(const float *z, int n)
{
    uint32_t most = 0;
    for (int i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, z + i, sizeof bits);
        bits &= 0x7f800000u;
        most = bits > most ? bits : most;
    }
    return most < 0x7f800000u;
}

pl_status pl_verify(const pl_draft *draft, int n_vocab, const pl_draw *draw, const pl_ops *ops,
    pl_row_logits_fn logits, void *ctx, float *scratch, pl_verdict *out, pl_error *err)
{
    assert(draft->n >= 1 && draft->n <= PL_DRAFT_MAX);
    pl_draw here = *draw;
    int row = 0;
    out->n = 0;
    do {
        const float *z = logits(ctx, row);
        if (!is_finite_row(z, n_vocab))
            return pl_fail(err, PL_E_NUMERIC,
                "logits of sample %u at position %u are not finite; the response is void", here.uid,
                here.position);
        pl_drawn drawn;
        ops->draw(z, n_vocab, &here, scratch, &drawn);
        if (drawn.token < 0)
            return pl_fail(err, PL_E_NUMERIC,
                "logits of sample %u at position %u, divided by the temperature %g, are not "
                "finite: raise the temperature",
                here.uid, here.position, (double)here.temperature);

        /* The draw did not look at the draft: what is emitted cannot depend on it. */
        const int child = pl_draft_child(draft, row, drawn.token);
        const int i = out->n++;
        out->token[i] = drawn.token;
        out->logprob[i] = drawn.logprob;
        out->source[i] = child >= 0 ? draft->source[child] : (uint8_t)PL_SOURCE_TARGET;
        out->row[i] = (int16_t)row;
        row = child;
        here.position++;
    } while (row >= 0 && out->n < PL_DRAFT_MAX);
    return PL_OK;
}
