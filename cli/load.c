/* cli/load.c - a version of the weights into a model, checked while it is in cache.
 *
 * Hashing and packing both read every byte.  A thread hashes a chunk, which brings it into its
 * cache, and packs what begins there at once.  The root is compared at the end: until then, and
 * after a failure, the model holds a mixture and must not run. */
#include "cli/run.h"
#include "core/hash.h"
#include "ipc/ipc.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum {
    PIECE = 256 << 10, /* bytes hashed before they are packed: a part of the L2 cache */
    ALIVE_CHUNKS = 16, /* some 30 ms of work */
};

typedef struct job {
    pl_model *m;
    const pl_source *source;
    const pl_file *file;
    uint32_t n_chunks;
    pl_hash *leaves; /* [n_chunks] */
    atomic_uint_least32_t next;
    atomic_int failed; /* pl_status; err of the thread that set it says why */
    pl_error *err;     /* [threads] */
    void (*keep_alive)(void *);
    void *ctx;
} job;

static pl_status load_chunk(job *j, uint32_t i, pl_error *err)
{
    const size_t begin = (size_t)i * PL_CHUNK_BYTES, left = j->file->size - begin;
    const size_t n = left < PL_CHUNK_BYTES ? left : PL_CHUNK_BYTES;
    pl_status st = PL_OK;
    pl_blake2b h;

    pl_blake2b_init(&h);
    for (size_t at = begin; at < begin + n && st == PL_OK; at += PIECE) {
        const size_t size = begin + n - at < PIECE ? begin + n - at : PIECE;
        pl_blake2b_update(&h, j->file->data + at, size);
        st = pl_model_load_bytes(j->m, j->source, at, at + size, err);
    }
    pl_blake2b_final(&h, j->leaves[i].b);
    return st;
}

static void load_chunks(void *ctx, int i_thread, int n_threads)
{
    job *j = ctx;

    (void)n_threads;
    for (int n = 0; atomic_load(&j->failed) == PL_OK; n++) {
        const uint32_t i = atomic_fetch_add(&j->next, 1);
        if (i >= j->n_chunks)
            return;
        if (i_thread == 0 && j->keep_alive && n % ALIVE_CHUNKS == 0) /* the caller's thread */
            j->keep_alive(j->ctx);
        const pl_status st = load_chunk(j, i, &j->err[i_thread]);
        if (st != PL_OK)
            atomic_store(&j->failed, st);
    }
}

static pl_status load_all(job *j, const pl_hash *root, pl_error *err)
{
    const int n_threads = pl_team_size(pl_model_team(j->m));
    pl_hash found;

    j->n_chunks = pl_content_chunks(j->file->size);
    j->leaves = calloc(j->n_chunks, sizeof *j->leaves);
    j->err = calloc((size_t)n_threads, sizeof *j->err);
    if (!j->leaves || !j->err)
        return pl_fail(err, PL_E_NOMEM, "no memory for the hashes of %u chunks", j->n_chunks);
    pl_team_run(pl_model_team(j->m), load_chunks, j);
    for (int i = 0; i < n_threads; i++)
        if (j->err[i].code != PL_OK)
            return pl_fail(err, j->err[i].code, "%s", j->err[i].msg);
    pl_content_root(j->leaves, j->file->size, &found);
    if (memcmp(found.b, root->b, sizeof found.b) != 0)
        return pl_fail(err, PL_E_FORMAT,
            "'%s' is not the weights that were announced: it was changed on disk", j->file->path);
    return PL_OK;
}

/* One after the other: any kind of source. */
static pl_status load_slowly(job *j, const char *dir, const pl_hash *root, pl_error *err)
{
    char path[4096];
    pl_file f = {0};
    pl_hash found;

    if (snprintf(path, sizeof path, "%s/model.safetensors", dir) >= (int)sizeof path)
        return pl_fail(err, PL_E_IO, "'%s': the path is too long", dir);
    pl_status st = pl_file_open(&f, path, err);
    if (st == PL_OK)
        st = pl_content_hash(f.data, f.size, pl_team_size(pl_model_team(j->m)), NULL, &found, err);
    pl_file_close(&f);
    if (st == PL_OK && memcmp(found.b, root->b, sizeof found.b) != 0)
        st = pl_fail(err, PL_E_FORMAT,
            "'%s' is not the weights that were announced: it was changed on disk", path);
    return st == PL_OK ? pl_model_load(j->m, j->source, NULL, err) : st;
}

pl_status run_load_checked(pl_model *m, const char *dir, const pl_hash *root,
    void (*keep_alive)(void *), void *ctx, pl_error *err)
{
    pl_source *source = NULL;
    job j = {.m = m, .keep_alive = keep_alive, .ctx = ctx};

    pl_status st = pl_source_open(&source, dir, err);
    if (st != PL_OK)
        return st;
    j.source = source;
    j.file = pl_source_file(source);
    st = j.file ? load_all(&j, root, err) : load_slowly(&j, dir, root, err);
    free(j.leaves);
    free(j.err);
    pl_source_close(source);
    return st;
}
