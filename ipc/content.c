/* ipc/content.c - the name of a content: a tree of BLAKE2b-256 over its chunks. */
#include "core/hash.h"
#include "ipc/channel_internal.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { THREADS_MAX = 256 };

_Static_assert((int)PL_HASH_BYTES == sizeof(pl_hash), "a leaf is a hash");

uint32_t pl_content_chunks(uint64_t n_bytes)
{
    const uint64_t n = n_bytes / PL_CHUNK_BYTES + (n_bytes % PL_CHUNK_BYTES != 0);
    return n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
}

uint32_t content_chunk_bytes(uint64_t n_bytes, uint32_t i_chunk)
{
    const uint64_t left = n_bytes - (uint64_t)i_chunk * PL_CHUNK_BYTES;
    return left < PL_CHUNK_BYTES ? (uint32_t)left : (uint32_t)PL_CHUNK_BYTES;
}

void pl_content_root(const pl_hash *leaves, uint64_t n_bytes, pl_hash *root)
{
    unsigned char length[CHANNEL_LENGTH_BYTES];
    pl_blake2b h;

    for (int i = 0; i < CHANNEL_LENGTH_BYTES; i++)
        length[i] = (unsigned char)(n_bytes >> 8 * i);
    pl_blake2b_init(&h);
    pl_blake2b_update(&h, length, sizeof length);
    pl_blake2b_update(&h, leaves, pl_content_chunks(n_bytes) * sizeof *leaves);
    pl_blake2b_final(&h, root->b);
}

int content_read(int fd, unsigned char *to, size_t n, uint64_t offset)
{
    while (n > 0) {
        const ssize_t got = pread(fd, to, n, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? errno : ENODATA;
        to += got;
        n -= (size_t)got;
        offset += (uint64_t)got;
    }
    return 0;
}

/* Threads take chunk after chunk. */
typedef struct hash_job {
    const unsigned char *data; /* NULL: read from fd */
    int fd;
    uint64_t n_bytes;
    uint32_t n_chunks;
    pl_hash *leaves;
    atomic_uint_least32_t next;
    atomic_int code; /* errno of the first failure; ENODATA: the file ended early */
} hash_job;

static void *hash_chunks(void *ctx)
{
    hash_job *j = ctx;
    unsigned char *buffer = NULL;
    int code = 0;

    if (!j->data && !(buffer = malloc(PL_CHUNK_BYTES)))
        code = ENOMEM;
    while (code == 0 && atomic_load(&j->code) == 0) {
        const uint32_t i = atomic_fetch_add(&j->next, 1);
        if (i >= j->n_chunks)
            break;
        const uint64_t offset = (uint64_t)i * PL_CHUNK_BYTES;
        const uint32_t n = content_chunk_bytes(j->n_bytes, i);
        if (buffer)
            code = content_read(j->fd, buffer, n, offset);
        if (code == 0)
            pl_hash256(j->leaves[i].b, buffer ? buffer : j->data + offset, n);
    }
    free(buffer);
    if (code != 0)
        atomic_store(&j->code, code);
    return NULL;
}

/* With up to n_threads, the caller among them; fewer when no more can be had. */
static void hash_all(hash_job *j, int n_threads)
{
    pthread_t threads[THREADS_MAX];
    int n = 0;

    if (n_threads > THREADS_MAX)
        n_threads = THREADS_MAX;
    if ((uint32_t)n_threads > j->n_chunks)
        n_threads = (int)j->n_chunks;
    while (n + 1 < n_threads && pthread_create(&threads[n], NULL, hash_chunks, j) == 0)
        n++;
    hash_chunks(j);
    for (int i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
}

pl_status pl_content_hash(
    const void *data, size_t n, int n_threads, pl_hash *leaves, pl_hash *root, pl_error *err)
{
    hash_job j = {.data = data, .n_bytes = n, .n_chunks = pl_content_chunks(n), .leaves = leaves};

    if (!leaves && j.n_chunks > 0) {
        j.leaves = malloc(j.n_chunks * sizeof *j.leaves);
        if (!j.leaves)
            return pl_fail(err, PL_E_NOMEM, "no memory for the hashes of %u chunks", j.n_chunks);
    }
    hash_all(&j, n_threads);
    pl_content_root(j.leaves, n, root);
    if (!leaves)
        free(j.leaves);
    return PL_OK;
}

pl_status content_hash_fd(int fd, const char *path, uint64_t n_bytes, int n_threads,
    pl_hash *leaves, pl_hash *root, pl_error *err)
{
    hash_job j = {
        .fd = fd, .n_bytes = n_bytes, .n_chunks = pl_content_chunks(n_bytes), .leaves = leaves};

    hash_all(&j, n_threads);
    const int code = atomic_load(&j.code);
    if (code == ENODATA)
        return pl_fail(err, PL_E_IO, "'%s' became shorter while it was read", path);
    if (code == ENOMEM)
        return pl_fail(err, PL_E_NOMEM, "no memory to hash '%s'", path);
    if (code != 0)
        return pl_fail(err, PL_E_IO, "read '%s': %s", path, strerror(code));
    pl_content_root(leaves, n_bytes, root);
    return PL_OK;
}
