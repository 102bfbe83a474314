/* ipc/assembly.c - a content put together from messages that may be lost, doubled, late or wrong.
 *
 *     leaves in a row -> they hash to the root -> each chunk against its leaf
 *
 * Nothing of a chunk is believed before its leaf, and no leaf before the root, which the caller has
 * from elsewhere. */
#include "core/hash.h"
#include "ipc/channel_internal.h"

#include <stdlib.h>
#include <string.h>

static int same(const pl_hash *a, const pl_hash *b)
{
    return memcmp(a->b, b->b, sizeof a->b) == 0;
}

static void check_leaves(assembly *a)
{
    pl_hash root;

    pl_content_root(a->leaves, a->n_bytes, &root);
    a->is_checked = same(&root, &a->root);
}

pl_status assembly_init(assembly *a, const pl_hash *root, uint64_t n_bytes, pl_error *err)
{
    const uint32_t n = pl_content_chunks(n_bytes);

    *a = (assembly){.root = *root, .n_bytes = n_bytes, .n_chunks = n};
    if (n > CHANNEL_CHUNKS_MAX)
        return pl_fail(err, PL_E_INVAL, "a content of %llu bytes: at most %llu are transferred",
            (unsigned long long)n_bytes, (unsigned long long)CHANNEL_CHUNKS_MAX * PL_CHUNK_BYTES);
    a->leaves = calloc(n > 0 ? n : 1, sizeof *a->leaves);
    a->have = calloc(n > 0 ? n : 1, 1);
    if (!a->leaves || !a->have) {
        assembly_done(a);
        return pl_fail(err, PL_E_NOMEM, "no memory for the hashes of %u chunks", n);
    }
    if (n == 0) /* there is nothing to wait for */
        check_leaves(a);
    return PL_OK;
}

void assembly_done(assembly *a)
{
    free(a->leaves);
    free(a->have);
    a->leaves = NULL;
    a->have = NULL;
}

int assembly_is_whole(const assembly *a)
{
    return a->is_checked && a->n_have == a->n_chunks;
}

static assembly_news wrong(assembly *a)
{
    a->n_wrong++;
    return NEWS_WRONG;
}

static assembly_news take_leaves(assembly *a, const pl_msg_leaves *m)
{
    if (!same(&m->hash, &a->root) || a->is_checked)
        return NEWS_NONE;
    if (m->n_bytes != a->n_bytes || m->first > a->n_chunks || m->leaves.n > a->n_chunks - m->first)
        return wrong(a);
    if (m->leaves.n == 0 || m->first != a->n_leaves)
        return NEWS_NONE;
    memcpy(a->leaves + m->first, m->leaves.data, m->leaves.n * sizeof *a->leaves);
    a->n_leaves += m->leaves.n;
    if (a->n_leaves < a->n_chunks)
        return NEWS_LEAVES;
    check_leaves(a);
    if (a->is_checked)
        return NEWS_LEAVES;
    a->n_leaves = 0; /* any of them may be the wrong one */
    return wrong(a);
}

static assembly_news take_chunk(assembly *a, const pl_msg_chunk *m)
{
    pl_hash leaf;

    if (!same(&m->hash, &a->root) || !a->is_checked)
        return NEWS_NONE;
    if (m->index >= a->n_chunks || m->offset != (uint64_t)m->index * PL_CHUNK_BYTES ||
        m->bytes.n != content_chunk_bytes(a->n_bytes, m->index))
        return wrong(a);
    if (a->have[m->index])
        return NEWS_NONE;
    if (pl_crc32c(0, m->bytes.data, m->bytes.n) != m->crc)
        return wrong(a);
    pl_hash256(leaf.b, m->bytes.data, m->bytes.n);
    if (!same(&leaf, &a->leaves[m->index]))
        return wrong(a);
    a->have[m->index] = 1;
    a->n_have++;
    return NEWS_CHUNK;
}

assembly_news assembly_take(assembly *a, const pl_msg *m)
{
    assembly_news news = NEWS_NONE;

    if (m->h.type == PL_MSG_LEAVES)
        news = take_leaves(a, &m->u.leaves);
    else if (m->h.type == PL_MSG_CHUNK)
        news = take_chunk(a, &m->u.chunk);
    else if (m->h.type == PL_MSG_GONE && same(&m->u.gone.hash, &a->root))
        news = NEWS_GONE;
    if (news == NEWS_NONE)
        a->n_ignored++;
    return news;
}
