/* drafter/eagle_layout.h - the tensors of a drafter's directory, for those who write and read it.
 */
#ifndef PL_DRAFTER_EAGLE_LAYOUT_H
#define PL_DRAFTER_EAGLE_LAYOUT_H

#include "core/file.h"
#include "drafter/eagle_internal.h"

enum { EAGLE_MAX_TENSORS = 20 };

static const char eagle_weights_file[] = "model.safetensors";

typedef enum eagle_type { EAGLE_F32, EAGLE_I64, EAGLE_BOOL } eagle_type;

/* A tensor of the file: rows of a parameter, or one of the two tables, d2t and t2d. */
typedef struct eagle_tensor {
    char name[64];
    eagle_type type;
    int rows, cols; /* rows 0: one dimension */
    eagle_param param;
    int first; /* row of the parameter */
} eagle_tensor;

/* All of a drafter's, in the order of the file; returns how many. */
int eagle_list_tensors(const pl_eagle *e, eagle_tensor out[EAGLE_MAX_TENSORS]);
size_t eagle_tensor_elements(const eagle_tensor *t);
size_t eagle_tensor_bytes(const eagle_tensor *t);
float *eagle_tensor_values(const pl_eagle *e, const eagle_tensor *t); /* of a parameter */
/* Commit what was written if st is PL_OK, else give it up. */
pl_status eagle_finish(pl_writer *w, pl_status st, pl_error *err);

#endif
