/* model/safetensors.h - a parsed and checked safetensors file; for this folder and its tests.
 * Hostile input: every size is checked against the file.  Source: huggingface/safetensors,
 * safetensors/src/tensor.rs. */
#ifndef PL_MODEL_SAFETENSORS_H
#define PL_MODEL_SAFETENSORS_H

#include "core/error.h"
#include "core/file.h"

#include <stddef.h>
#include <stdint.h>

enum { SAFETENSORS_MAX_DIMS = 8 };

typedef struct safetensors safetensors;

typedef struct safetensors_tensor {
    const char *name;  /* owned by the file object */
    const char *dtype; /* "BF16", static */
    int type;          /* ggml type id; -1 for dtypes that no model here can use */
    int n_dims;
    uint64_t dims[SAFETENSORS_MAX_DIMS]; /* the last one contiguous */
    const unsigned char *data;           /* of any alignment */
    size_t n_bytes;
} safetensors_tensor;

/* Map and parse.  Errors: PL_E_NOENT, PL_E_IO, PL_E_FORMAT, PL_E_NOMEM. */
pl_status safetensors_open(safetensors **out, const char *path, pl_error *err);
/* Parse from memory, *borrows* data. */
pl_status safetensors_parse(
    safetensors **out, const void *data, size_t size, const char *name, pl_error *err);
void safetensors_close(safetensors *f);

int safetensors_count(const safetensors *f);
/* In order of place in the file. */
const safetensors_tensor *safetensors_at(const safetensors *f, int i);
const safetensors_tensor *safetensors_find(const safetensors *f, const char *name); /* or NULL */
const char *safetensors_name(const safetensors *f); /* path or the name given */
const pl_file *safetensors_file(const safetensors *f);

#endif
