/* drafter/drafter.h - who proposes tokens.  A drafter can make rounds shorter, never change text.
 */
#ifndef PL_DRAFTER_DRAFTER_H
#define PL_DRAFTER_DRAFTER_H

#include "core/error.h"
#include "model/draft.h"
#include "tensor/tensor.h"

#include <stddef.h>
#include <stdint.h>

/* ---- the suffix drafter: one suffix automaton a prompt group (DRAFTING 1.6) ---- */

typedef struct pl_suffix_options {
    int max_children; /* of one row of a draft, at most 6; 0: 6 */
    int min_match;    /* shortest suffix match that proposes, tokens; 0: frequent tokens too */
    int max_tokens;   /* tokens that one automaton holds; the oldest texts are dropped beyond it */
    float decay;      /* count weight of a text per policy version of age, (0, 1] */
} pl_suffix_options;

/* All that is known about one prompt: prompt, responses of its samples, earlier epochs. */
typedef struct pl_suffix pl_suffix;

pl_status pl_suffix_new(pl_suffix **out, const pl_suffix_options *o, pl_error *err);
void pl_suffix_free(pl_suffix *s);
size_t pl_suffix_tokens(const pl_suffix *s);
/* The prompt that every text of this automaton continues; known once, not once a sample.  Call
 * before the first cursor; later calls change nothing.  Errors: PL_E_NOMEM (usable without a
 * prompt). */
pl_status pl_suffix_set_prompt(pl_suffix *s, const int32_t *prompt, int n, pl_error *err);
/* Start a new policy version: what is there ages by one. */
void pl_suffix_age(pl_suffix *s);

/* A sample's place in the automaton: its text so far and the longest suffix of it that is known. */
typedef struct pl_suffix_cursor pl_suffix_cursor;
pl_status pl_suffix_cursor_new(pl_suffix_cursor **out, pl_suffix *s, pl_error *err);
void pl_suffix_cursor_free(pl_suffix_cursor *c);
/* Append committed tokens of this sample; they are found by siblings from now on.  Amortised O(1) a
 * token.  A failed allocation drops knowledge, not text: PL_E_NOMEM, the cursor stays usable. */
pl_status pl_suffix_append(pl_suffix_cursor *c, const int32_t *tokens, int n, pl_error *err);

/* Grow draft (begun with the root) to at most max_rows rows and max_depth levels: best-first by
 * the product of count shares, candidates of a level ranked with the keyed noise of draw (position
 * = that of the first token to be drawn).  draw->temperature 0 ranks by share alone.  Returns rows
 * added; expected[i] (may be NULL, [PL_DRAFT_MAX]) the estimated chance that row i is reached. */
int pl_suffix_propose(pl_suffix_cursor *c, const pl_draw *draw, int max_rows, int max_depth,
    pl_draft *draft, float *expected);

#endif
