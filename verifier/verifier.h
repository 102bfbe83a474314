/* verifier/verifier.h - coupled verification: the target draws with keyed noise and walks down the
 * draft while it holds the drawn token (DRAFTING 2.5, NUMERICS 3). */
#ifndef PL_VERIFIER_VERIFIER_H
#define PL_VERIFIER_VERIFIER_H

#include "core/error.h"
#include "model/draft.h"
#include "tensor/tensor.h"

#include <stdint.h>

/* What one round emits for one sample. */
typedef struct pl_verdict {
    int n;                        /* tokens emitted, 1 .. draft depth + 1 */
    int32_t token[PL_DRAFT_MAX];  /* [n]; the last is the new pending token */
    float logprob[PL_DRAFT_MAX];  /* [n] of the unfiltered distribution at T */
    uint8_t source[PL_DRAFT_MAX]; /* [n] pl_draft_source: who proposed it, TARGET for the last */
    int16_t row[PL_DRAFT_MAX];    /* [n] rows to commit: row[0] = 0, then the accepted nodes */
} pl_verdict;

/* Logits of one row of the draft. */
typedef const float *(*pl_row_logits_fn)(void *ctx, int i_row);

/* Decide one draft.  draw->position is that of the FIRST token to be drawn (the child of the root);
 * deeper ones count up from it.  scratch holds n_vocab floats.  The text depends on draw and the
 * logits alone, never on the draft.  Errors: PL_E_NUMERIC when a reached row has NaN or infinity:
 * the response must be discarded.  Never allocates.  Source: Daliri, Musco, Suresh 2024 (arXiv
 * 2408.07978) for one draft; the tree with one noise vector a position is DRAFTING 2.5. */
pl_status pl_verify(const pl_draft *draft, int n_vocab, const pl_draw *draw, const pl_ops *ops,
    pl_row_logits_fn logits, void *ctx, float *scratch, pl_verdict *out, pl_error *err);

#endif
