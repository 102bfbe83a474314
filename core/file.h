/* core/file.h - whole files in and out: mapped for reading, written beside and renamed. */
#ifndef PL_CORE_FILE_H
#define PL_CORE_FILE_H

#include "core/error.h"

#include <stddef.h>
#include <stdint.h>

/* A file mapped read-only and private.  Pair: pl_file_close (accepts a zeroed struct). */
typedef struct pl_file {
    const unsigned char *data; /* [size] */
    size_t size;
    char path[4096];
} pl_file;

/* Errors: PL_E_NOENT when it is not there, PL_E_IO, PL_E_FORMAT for a directory or a device. */
pl_status pl_file_open(pl_file *f, const char *path, pl_error *err);
void pl_file_close(pl_file *f);

/* Read a whole file of at most max_bytes into *out, *returns owned* (free), with a NUL after it. */
pl_status pl_file_read(
    char **out, size_t *n_bytes, const char *path, size_t max_bytes, pl_error *err);

/* A file written beside its place (path + ".tmp.<pid>"), which appears whole or not at all.
 * _commit: flush, fsync, rename over path, fsync the directory.  _abort: remove it.  Both end the
 * object; after a failed _commit nothing is left behind.  Writes are buffered; a failed write is
 * remembered, and reported by _commit too. */
typedef struct pl_writer pl_writer;
pl_status pl_writer_open(pl_writer **out, const char *path, pl_error *err);
pl_status pl_writer_put(pl_writer *w, const void *data, size_t n_bytes, pl_error *err);
pl_status pl_writer_commit(pl_writer *w, pl_error *err);
void pl_writer_abort(pl_writer *w); /* accepts NULL */

/* pl_writer in one call. */
pl_status pl_file_write(const char *path, const void *data, size_t n_bytes, pl_error *err);

/* Create a directory and its parents (mode 0755 & ~umask); PL_OK if it is there. */
pl_status pl_dir_make(const char *path, pl_error *err);
/* Remove a directory tree; PL_OK if it is not there.  Does not follow symbolic links. */
pl_status pl_dir_remove(const char *path, pl_error *err);
/* fsync every file below and the directories, rename from to to, fsync the parent: a directory that
 * is whole or absent.  to must not exist. */
pl_status pl_dir_commit(const char *from, const char *to, pl_error *err);
/* 1 if it is a directory that holds nothing, or is not there. */
int pl_dir_is_free(const char *path);
/* 1 if the path exists. */
int pl_path_exists(const char *path);

/* XXH3-64 and XXH3-128 (canonical bytes) of a buffer. */
uint64_t pl_hash64(const void *data, size_t n_bytes);
void pl_hash128(unsigned char out[16], const void *data, size_t n_bytes);

#endif
