/* model/draft.c - growing a tree of drafted tokens. */
#include "model/draft.h"

#include <assert.h>

void pl_draft_begin(pl_draft *d, int32_t pending)
{
    d->n = 1;
    d->token[0] = pending;
    d->parent[0] = -1;
    d->depth[0] = 0;
    d->source[0] = PL_SOURCE_TARGET;
}

int pl_draft_child(const pl_draft *d, int parent, int32_t token)
{
    /* A child stands after its parent, and trees are small: a scan beats any index. */
    for (int i = parent + 1; i < d->n; i++)
        if (d->parent[i] == parent && d->token[i] == token)
            return i;
    return -1;
}

int pl_draft_add(pl_draft *d, int parent, int32_t token, pl_draft_source source, int max_rows)
{
    assert(d->n >= 1 && parent >= 0 && parent < d->n);
    const int known = pl_draft_child(d, parent, token);
    if (known >= 0)
        return known;
    const int i = d->n;
    if (i >= max_rows || i >= PL_DRAFT_MAX)
        return -1;
    d->token[i] = token;
    d->parent[i] = (int16_t)parent;
    d->depth[i] = (int16_t)(d->depth[parent] + 1);
    d->source[i] = (uint8_t)source;
    d->n = i + 1;
    return i;
}
