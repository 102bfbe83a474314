/* model/files.h - what the file readers of this folder share; no other folder includes it.
 *
 * Element types are ggml type ids everywhere; safetensors dtypes are mapped onto them. */
#ifndef PL_MODEL_FILES_H
#define PL_MODEL_FILES_H

#include "core/error.h"

#include <stddef.h>

enum {
    FILES_F32 = 0,
    FILES_F16 = 1,
    FILES_Q4_0 = 2,
    FILES_Q4_1 = 3,
    FILES_Q8_0 = 8,
    FILES_BF16 = 30,
};

/* "Q4_1"; "unknown" for an id that ggml does not have. */
const char *dequant_type_name(int type);
/* Elements and bytes of one block.  Returns 0 for a type that this program does not read. */
int dequant_type_block(int type, size_t *n_elements, size_t *n_bytes);
/* Turn n elements (a multiple of the block) at src, of any alignment, into fp32.  Only integer
 * operations touch F32, F16 and BF16, so denormals survive whatever MXCSR says. */
void dequant_row(int type, const unsigned char *src, size_t n, float *out);
/* 1 when none of n values is NaN or infinite. */
int dequant_is_finite(const float *v, size_t n);

/* A string of a file made fit to print: bytes outside printable ASCII as \xNN, cut with "..." after
 * some 90 characters.  Returns out. */
enum { FILES_QUOTE = 104 };
const char *files_quote(char out[FILES_QUOTE], const char *s, size_t n_bytes);

/* out = a * b; returns 0 when it does not fit size_t. */
static inline int files_mul(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

#endif
