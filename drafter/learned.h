/* drafter/learned.h - drafting with the learned drafter (drafter/eagle.h): what it remembers of
 * each sample, and the trees that it grows.
 *
 * A place holds one sample: a ring of its last `window` positions with the target's features, and
 * the drafter's keys and values of as many as were needed so far.  Drafting first extends the cache
 * over the positions that came since, with the target's true features (what was guessed in a tree
 * is never kept), then grows the trees of all samples level by level, one product for all rows of a
 * level.  Candidates of a row are ranked by log q + the target's own noise at that position
 * (DRAFTING 2.5).  What is proposed can change the time of a text, never the text. */
#ifndef PL_DRAFTER_LEARNED_H
#define PL_DRAFTER_LEARNED_H

#include "drafter/eagle.h"
#include "model/draft.h"
#include "tensor/tensor.h"

typedef struct pl_learned_options {
    int max_places; /* samples at once */
    int window;     /* positions that the drafter looks back; 256 */
    int max_rows;   /* of one sample's tree, the root included, <= PL_DRAFT_MAX */
    int max_depth;  /* levels below the root, <= 16 */
    int topk;       /* children of a row at most, <= 8 */
} pl_learned_options;

typedef struct pl_learned pl_learned;

/* *borrows* the target (its team, backend, embedding).  Errors: PL_E_INVAL, PL_E_NOMEM. */
pl_status pl_learned_new(
    pl_learned **out, const pl_model *target, const pl_learned_options *o, pl_error *err);
void pl_learned_free(pl_learned *l);
size_t pl_learned_plan(const pl_arch *a, const pl_learned_options *o, int n_threads); /* bytes */
/* Draft with e from now on (*borrowed* until the next call, its weights must not change meanwhile;
 * NULL: with none, features are still taken).  Caches are stale then and are made anew from the
 * rings when a sample is drafted for.  There is room for a vocabulary of 32768 tokens (the
 * target's, when it is smaller), and for as many heads and inner columns as the target has. Errors:
 * PL_E_SHAPE (of another target), PL_E_NOMEM (larger than that: the old one stays). */
pl_status pl_learned_set(pl_learned *l, const pl_eagle *e, pl_error *err);

/* A place for a sample; -1: none is free.  A fork begins with all that another place knows. */
int pl_learned_open(pl_learned *l);
void pl_learned_close(pl_learned *l, int place);
void pl_learned_fork(pl_learned *l, int to, int from);
/* The target processed tokens [n] at positions position ..: features [n][3][pad32(C)], rows
 * `stride` elements apart.  A position that is known already is forgotten with all behind it; a gap
 * begins the place anew. */
void pl_learned_feed(pl_learned *l, int place, int position, const int32_t *tokens,
    const uint16_t *features, size_t stride, int n);
/* Positions known: the next to be fed; 0: none. */
int pl_learned_position(const pl_learned *l, int place);

/* One sample that is drafted for.  draft was begun with the pending token, which stands at position
 * pl_learned_position (all before it were fed), and may hold another drafter's rows: a candidate
 * that is there already is not added twice.  draw->position is that of the first drawn token, the
 * pending one's + 1. */
typedef struct pl_learned_ask {
    int place;
    const pl_draw *draw;
    int max_rows, max_depth; /* of the draft with what it holds */
    pl_draft *draft;
    float *expected; /* [PL_DRAFT_MAX] chance that a row is reached; of old rows: raised */
} pl_learned_ask;
/* Grow the drafts of n asks, each of another place; returns rows added.  A place that knows nothing
 * adds none, nor does one whose features are not finite.  Rows that are hardly ever reached are
 * left out, so a tree may stay smaller than max_rows.  Called by the thread that owns the team. */
int pl_learned_propose(pl_learned *l, const pl_learned_ask *asks, int n);

/* Where the time went since the last call with reset. */
typedef struct pl_learned_stats {
    int64_t n_extended, n_rebuilt; /* rows of caches: by new positions; after a swap */
    int64_t n_level_rows;          /* rows of trees that were run */
    double extend_s, grow_s;
} pl_learned_stats;
void pl_learned_get_stats(pl_learned *l, pl_learned_stats *out, int reset);

#endif
