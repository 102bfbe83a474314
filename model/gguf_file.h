/* model/gguf_file.h - the inside of a pl_gguf, shared by gguf.c (parser) and gguf_meta.c (look-up).
 */
#ifndef PL_MODEL_GGUF_FILE_H
#define PL_MODEL_GGUF_FILE_H

#include "model/gguf.h"

/* Metadata value types, by their numbers in the file. */
enum {
    GGUF_U8 = 0,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_N_TYPES,
};

/* One key.  A scalar is an array of one. */
typedef struct gguf_pair {
    const char *key; /* borrowed from the file, key_len bytes */
    size_t key_len;
    int is_array;
    int type;                    /* of the value or of the elements, never GGUF_ARRAY */
    uint64_t count;              /* elements */
    const unsigned char *value;  /* first element in the file */
    const unsigned char **texts; /* GGUF_STRING: [count] where each string's length stands */
    int64_t *ints;               /* arrays of an integer type: [count] */
} gguf_pair;

struct pl_gguf {
    pl_file file; /* zero when parsed from memory */
    const unsigned char *data;
    size_t size;
    uint64_t n_pairs;
    gguf_pair *pairs; /* sorted by key */
    int n_tensors;
    pl_gguf_tensor *tensors;  /* file order */
    pl_gguf_tensor **by_name; /* sorted */
    char *names;              /* all tensor names */
    uint64_t alignment;       /* bytes, of tensor data */
};

/* Bytes of one scalar of a metadata type, 0 for strings and unknown types. */
size_t gguf_type_bytes(int type);
/* Value of the integer or bool type at p; returns 0 for other types and for u64 above INT64_MAX. */
int gguf_load_int(int type, const unsigned char *p, int64_t *value);
/* Order of two keys: bytes, then length. */
int gguf_key_order(const char *a, size_t n_a, const char *b, size_t n_b);
/* The pair of a key; NULL when it is not there. */
const gguf_pair *gguf_pair_find(const pl_gguf *g, const char *key);

#endif
