/* model/draft.h - a tree of drafted tokens: plain data between drafter and verifier. */
#ifndef PL_MODEL_DRAFT_H
#define PL_MODEL_DRAFT_H

#include <stdint.h>

enum { PL_DRAFT_MAX = 64 }; /* rows of one tree, the root included */

typedef enum pl_draft_source {
    PL_SOURCE_TARGET, /* drawn by the target itself (the root, bonus tokens) */
    PL_SOURCE_SUFFIX,
    PL_SOURCE_LEARNED,
} pl_draft_source;

/* Rows in an order where a parent stands before its children.  Row 0 is the root: the pending
 * token, emitted already but not yet in the cache.  Siblings carry different tokens. */
typedef struct pl_draft {
    int n; /* rows, >= 1; 1 is plain decoding */
    int32_t token[PL_DRAFT_MAX];
    int16_t parent[PL_DRAFT_MAX]; /* parent[0] = -1, parent[i] < i */
    int16_t depth[PL_DRAFT_MAX];  /* depth[0] = 0, else depth[parent] + 1 */
    uint8_t source[PL_DRAFT_MAX]; /* pl_draft_source */
} pl_draft;

/* Start a draft: the root alone. */
void pl_draft_begin(pl_draft *d, int32_t pending);
/* The child of parent with that token; -1 when there is none. */
int pl_draft_child(const pl_draft *d, int parent, int32_t token);
/* Add a child (or return the one that is there); -1 when the draft holds max_rows already. */
int pl_draft_add(pl_draft *d, int parent, int32_t token, pl_draft_source source, int max_rows);

#endif
