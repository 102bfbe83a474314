/* drafter/eagle_internal.h - the learned drafter's weights, for this folder and its tests. */
#ifndef PL_DRAFTER_EAGLE_INTERNAL_H
#define PL_DRAFTER_EAGLE_INTERNAL_H

#include "core/arena.h"
#include "drafter/eagle.h"

/* Sizes in elements; ..p: rounded up to 32. */
typedef struct eagle_dims {
    int c, cp;    /* hidden */
    int ld2, ld3; /* rows of [emb; hidden] and of the three features: room for a norm's padding */
    int f, fp;    /* inner */
    int d, dp;    /* head */
    int h, hkv, group;
    int qkv, qkvp; /* (H + 2 Hkv) D */
    int ao, aop;   /* H D */
    int v, vp;     /* draft vocabulary */
    int vt;        /* the target's */
} eagle_dims;

typedef enum eagle_param {
    EAGLE_FC_NORM,    /* [3, C]: three norms */
    EAGLE_NORM_EMB,   /* [1, C] */
    EAGLE_NORM_HID,   /* [1, C] */
    EAGLE_NORM_POST,  /* [1, C] */
    EAGLE_NORM_FINAL, /* [1, C] */
    EAGLE_FC,         /* [C, 3C]   matrices from here */
    EAGLE_QKV,        /* [(H + 2 Hkv) D, 2C]: q, k, v rows stacked */
    EAGLE_O,          /* [C, H D] */
    EAGLE_GATE,       /* [F, C] */
    EAGLE_UP,         /* [F, C] */
    EAGLE_DOWN,       /* [C, F] */
    EAGLE_HEAD,       /* [Vd, C] */
    EAGLE_N_PARAMS
} eagle_param;

typedef struct eagle_matrix {
    int rows, cols;
    size_t offset;               /* into w, a multiple of 16 */
    uint16_t *packed, *packed_t; /* bf16; rows as outputs, and exchanged; NULL for norms */
} eagle_matrix;

struct pl_eagle {
    const pl_model *target;
    const pl_ops *ops;
    pl_team *team;
    pl_model_parts parts; /* of the target */
    float eps;
    int has_fc_norm; /* 0: the features enter fc as they are (plain EAGLE-3); the norms are unused
                      */
    int norm_output; /* 0: the state recurs as it leaves the layer, before the final norm */
    eagle_dims dims;
    eagle_matrix p[EAGLE_N_PARAMS];
    size_t n_elements;
    float *w;          /* [n_elements] fp32 */
    int32_t *vocab;    /* [v] target ids, ascending */
    int32_t *to_draft; /* [vt] index in vocab, or -1 */
    pl_arena arena;
    unsigned stale, stale_t; /* bit i: matrix i, and it exchanged, is packed before it is used */
};

/* Inner size and heads of a drafter; a new one has its target's.  Both flags 0: EAGLE-3.1, both 1:
 * plain EAGLE-3. */
typedef struct eagle_shape {
    int n_ff, n_heads, n_kv_heads;
    int no_fc_norm, raw_output;
} eagle_shape;
/* Weights zero, vocab (NULL: all) copied.  Errors: PL_E_NOMEM, PL_E_INVAL. */
pl_status eagle_alloc(pl_eagle **out, const pl_model *target, const eagle_shape *shape,
    const int32_t *vocab, int n_vocab, pl_error *err);
/* Sizes alone, of a drafter of the target's shape; n_vocab 0: as pl_eagle_new has it.  Returns
 * bytes. */
size_t eagle_sketch(pl_eagle *e, const pl_arch *a, int n_vocab);
/* Weights were written: all matrices must be packed anew. */
void eagle_touch(pl_eagle *e);
/* As pl_eagle_pack_one; backward passes read the transposed ones, too. */
int eagle_pack_one_to_train(pl_eagle *e);

static inline const float *eagle_weights(const pl_eagle *e, eagle_param i)
{
    return e->w + e->p[i].offset;
}

#endif
