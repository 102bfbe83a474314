/* model/source_file.h - the inside of a pl_source, shared by the readers of each kind. */
#ifndef PL_MODEL_SOURCE_FILE_H
#define PL_MODEL_SOURCE_FILE_H

#include "model/gguf.h"
#include "model/safetensors.h"
#include "model/source.h"

/* Where the bytes of one parameter stand. */
typedef struct source_tensor {
    int type;                  /* ggml type id */
    int n_paired;              /* heads whose rows alternate (GGUF Q and K); 0: rows in order */
    const unsigned char *data; /* borrowed from the file */
    const pl_file *file;       /* that holds data */
} source_tensor;

struct pl_source {
    char path[4096]; /* as the user named it */
    pl_arch arch;
    pl_param_table *table;
    source_tensor *tensors; /* [table->n_params] */
    pl_gguf *gguf;          /* NULL for a directory of safetensors */
    int n_shards;
    safetensors **shards; /* [n_shards] */
};

/* Fill everything but path.  On failure the caller closes s. */
pl_status source_from_gguf(pl_source *s, const char *path, pl_error *err);
pl_status source_from_directory(pl_source *s, const char *dir, pl_error *err);
/* arch is set: make the table and an empty list of tensors. */
pl_status source_make_table(pl_source *s, pl_error *err);

#endif
