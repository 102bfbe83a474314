/* tests/fuzz/fuzz_chunk.c - the assembly of a content against any sequence of messages.  The
 * content is fixed: two chunks and a piece.  Each step of the input is an op byte and two
 * arguments: right or damaged leaves and chunks, other types, or a body of raw bytes through the
 * decoder.  A chunk that is reported as right is the content's own, once, and never before its
 * leaves. */
#include "core/hash.h"
#include "ipc/channel_internal.h"

#include <stdlib.h>
#include <string.h>

enum { CHUNKS = 3, TAIL = 5, BYTES = 2 * PL_CHUNK_BYTES + TAIL };

typedef struct bed {
    assembly a;
    const unsigned char *data; /* [BYTES] */
    pl_hash leaves[CHUNKS], root;
    int had[CHUNKS];
} bed;

static void must(int is_true)
{
    if (!is_true)
        abort();
}

static pl_msg make_leaves(const bed *b, pl_hash leaves[CHUNKS], unsigned x, unsigned y)
{
    const uint32_t first = x % 8 < CHUNKS ? 0 : x % 5;

    memcpy(leaves, b->leaves, sizeof b->leaves);
    if (y & 1)
        leaves[x % CHUNKS].b[y % 32] ^= (unsigned char)(y | 1);
    const pl_msg m = {.h.type = PL_MSG_LEAVES,
        .u.leaves = {b->root, (uint64_t)BYTES + ((y & 6) == 6), first,
            {leaves + (first < CHUNKS ? first : 0), (y >> 4) % (CHUNKS + 1)}}};
    return m;
}

static pl_msg make_chunk(const bed *b, unsigned x, unsigned y)
{
    const uint32_t i = x % 4, from = (x >> 2) % CHUNKS; /* from: the bytes that it carries */
    const uint32_t n = from < 2 ? PL_CHUNK_BYTES : TAIL;
    const unsigned char *bytes = b->data + (size_t)from * PL_CHUNK_BYTES;
    pl_msg m = {.h.type = PL_MSG_CHUNK,
        .u.chunk = {b->root, i, (uint64_t)i * PL_CHUNK_BYTES, pl_crc32c(0, bytes, n), {bytes, n}}};

    if (y % 8 == 1)
        m.u.chunk.bytes.n -= y >> 3 < n ? y >> 3 : 0;
    if (y % 8 == 2)
        m.u.chunk.crc ^= y;
    if (y % 8 == 3)
        m.u.chunk.offset += y;
    if (y % 8 == 4)
        m.u.chunk.hash.b[y >> 3] ^= 1;
    if (y % 8 == 5)
        m.u.chunk.index = UINT32_MAX - (y >> 3);
    return m;
}

static void give(bed *b, const pl_msg *m)
{
    const int had_tree = b->a.is_checked;
    const assembly_news news = assembly_take(&b->a, m);

    if (news == NEWS_CHUNK) {
        const pl_msg_chunk *c = &m->u.chunk;
        must(had_tree && c->index < CHUNKS && !b->had[c->index]);
        must(c->offset + c->bytes.n <= BYTES);
        must(memcmp(b->data + c->offset, c->bytes.data, c->bytes.n) == 0);
        b->had[c->index] = 1;
    }
    must(!b->a.is_checked || memcmp(b->a.leaves, b->leaves, sizeof b->leaves) == 0);
    must(assembly_is_whole(&b->a) == (b->had[0] && b->had[1] && b->had[2]));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static unsigned char content[BYTES];
    static const uint16_t types[] = {PL_MSG_LEAVES, PL_MSG_CHUNK, PL_MSG_GONE, PL_MSG_FETCH};
    bed b = {.data = content};

    for (int i = 0; i < CHUNKS; i++)
        content[(size_t)i * PL_CHUNK_BYTES] = (unsigned char)(i + 1);
    must(pl_content_hash(content, BYTES, 1, b.leaves, &b.root, NULL) == PL_OK);
    must(assembly_init(&b.a, &b.root, BYTES, NULL) == PL_OK);
    for (; size >= 3; data += 3, size -= 3) {
        pl_hash leaves[CHUNKS];
        pl_msg m = {0};
        pl_error err = {0};
        if (data[0] % 4 == 0) {
            m = make_leaves(&b, leaves, data[1], data[2]);
            give(&b, &m);
        } else if (data[0] % 4 < 3) {
            m = make_chunk(&b, data[1], data[2]);
            give(&b, &m);
        } else {
            const size_t n = data[1] < size - 3 ? data[1] : size - 3;
            if (pl_body_decode(&m, types[data[2] % 4], data + 3, n, &err) == PL_OK)
                give(&b, &m);
        }
    }
    assembly_done(&b.a);
    return 0;
}
