/* model/gguf.h - a parsed and checked GGUF v3 file: metadata and tensor directory.  Hostile input:
 * every size is checked against the file before it is used.  Source: ggml docs/gguf.md. */
#ifndef PL_MODEL_GGUF_H
#define PL_MODEL_GGUF_H

#include "core/error.h"
#include "core/file.h"

#include <stddef.h>
#include <stdint.h>

typedef struct pl_gguf pl_gguf;

/* Map and parse.  Errors: PL_E_NOENT, PL_E_IO, PL_E_FORMAT ("... at byte N"). */
pl_status pl_gguf_open(pl_gguf **out, const char *path, pl_error *err);
/* Parse from memory, *borrows* data (tests, fuzzing). */
pl_status pl_gguf_parse(
    pl_gguf **out, const void *data, size_t size, const char *name, pl_error *err);
void pl_gguf_close(pl_gguf *g);

/* Metadata by key.  Strings are *borrowed*: bytes and length, not NUL-terminated.
 * Return 1 when the key is there with a fitting type, else 0. */
int pl_gguf_get_int(
    const pl_gguf *g, const char *key, int64_t *value); /* any integer or bool type */
int pl_gguf_get_float(const pl_gguf *g, const char *key, double *value); /* f32, f64 or integer */
int pl_gguf_get_string(const pl_gguf *g, const char *key, const char **s, size_t *len);
/* Arrays of strings: count, then each element. */
int pl_gguf_get_string_array(const pl_gguf *g, const char *key, uint64_t *count);
int pl_gguf_string_at(
    const pl_gguf *g, const char *key, uint64_t i, const char **s, size_t *len); /* O(1) */
/* Arrays of integers: *borrowed* as int64 copies owned by g. */
int pl_gguf_get_int_array(const pl_gguf *g, const char *key, const int64_t **v, uint64_t *count);

typedef struct pl_gguf_tensor {
    const char *name; /* owned by g, NUL-terminated */
    int type;         /* ggml type id: 0 F32, 1 F16, 2 Q4_0, 3 Q4_1, 8 Q8_0, 30 BF16 */
    int n_dims;
    uint64_t dims[4]; /* dims[0] contiguous */
    const unsigned char *data;
    size_t n_bytes;
} pl_gguf_tensor;

int pl_gguf_n_tensors(const pl_gguf *g);
const pl_gguf_tensor *pl_gguf_tensor_at(const pl_gguf *g, int i);
const pl_gguf_tensor *pl_gguf_find(const pl_gguf *g, const char *name); /* NULL: not there */

#endif
