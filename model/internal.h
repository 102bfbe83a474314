/* model/internal.h - what forward, training and cache share inside model/. */
#ifndef PL_MODEL_INTERNAL_H
#define PL_MODEL_INTERNAL_H

#include "core/arena.h"
#include "model/draft.h"
#include "model/features.h"
#include "model/model.h"

/* ---- weights ---- */

typedef struct layer_weights {
    float *attn_norm, *ffn_norm; /* [C] bf16 values as fp32 */
    uint16_t *qkv;               /* packed, (H + 2 Hkv) D outputs, C inputs: q, k, v rows stacked */
    uint16_t *o;                 /* packed, C outputs, H * D inputs */
    uint16_t *gate, *up;         /* packed, F outputs, C inputs */
    uint16_t *down;              /* packed, C outputs, F inputs */
    /* the same matrices for gradients with respect to inputs: outputs and inputs exchanged; NULL
     * unless with_backward */
    uint16_t *qkv_t, *o_t, *gate_t, *up_t, *down_t;
} layer_weights;

struct pl_model {
    pl_arch arch;
    const pl_ops *ops;
    pl_team *team;
    pl_param_table *params;
    pl_arena arena;             /* all of the below, in the order of a pass */
    layer_weights *layers;      /* [L] */
    float *final_norm;          /* [C] */
    uint16_t *head;             /* packed, V outputs, C inputs; the embedding itself when tied */
    uint16_t *embed;            /* packed like the head; == head when tied */
    uint16_t *head_t;           /* packed, C outputs, V inputs; with_backward */
    float *rope_cos, *rope_sin; /* [n_ctx, D/2] */
    int with_backward;
};

/* Sizes derived from an architecture, in elements. */
typedef struct model_dims {
    int c, cp; /* hidden, padded to 32 */
    int f, fp; /* inner */
    int d, dp; /* head */
    int h, hkv, group;
    int qkv;     /* (H + 2 Hkv) * D */
    int ao, aop; /* H * D, padded to 32 */
    int v, vp;
} model_dims;
model_dims model_dims_of(const pl_arch *a);

/* One packed matrix and the parameters whose rows it stacks. */
enum { WEIGHTS_PARTS = 3 };
typedef struct weights_matrix {
    uint16_t *packed, *packed_t;
    const pl_param *part[WEIGHTS_PARTS];
    int n_parts, rows, cols;
} weights_matrix;
/* Some a layer, the head, and the embedding where it is another. */
int weights_n_matrices(const pl_model *m);
weights_matrix weights_matrix_at(const pl_model *m, int i);
/* pl_model_load of a source with a pl_source_file, with the model's team (load.c). */
pl_status weights_load_file(pl_model *m, const pl_source *src, pl_error *err);

/* ---- KV pages ---- */

/* One page of one layer and KV head: K packed (64 keys as outputs, D inputs), then V packed (D
 * outputs, 64 keys as inputs).  Positions that hold no token are zero. */
struct pl_kv_pool {
    model_dims dims;
    int n_layers;
    int n_pages, n_free;
    size_t head_elements; /* K and V of one layer and head */
    size_t page_elements; /* n_layers * hkv * head_elements */
    pl_arena arena;
    uint16_t *data;
    int32_t *free_list; /* [n_pages], a stack */
    int32_t *refs;      /* [n_pages] */
};
uint16_t *kv_k(const pl_kv_pool *pool, int page, int layer, int head);
uint16_t *kv_v(const pl_kv_pool *pool, int page, int layer, int head);
/* Write K and V (bf16 [D]) of one position into its page. */
void kv_put(const pl_kv_pool *pool, const pl_kv_seq *s, int position, int layer, int head,
    const uint16_t *k, const uint16_t *v);

/* ---- one layer over all rows of a pass ---- */

/* Activations of one layer, [rows, ...].  Inference uses one set for every layer with x_in == x_mid
 * (the residual in place); training keeps one a layer.  Pointers that only the backward reads
 * (marked B) may be NULL. */
typedef struct layer_acts {
    float *x_in;          /* [C] residual entering */
    uint16_t *xn;         /* [cp] normed, attention input */
    float *inv_attn;      /* [1] B: 1 / rms */
    float *qkv;           /* [qkv] fp32 projections (scratch) */
    uint16_t *q;          /* [H, dp] rotated, rounded; padding zero */
    uint16_t *k, *v;      /* [Hkv, dp] rounded as in the cache; padding zero */
    float *att_m, *att_l; /* [H] B: running maximum and sum of each row's softmax */
    uint16_t *ao;         /* [aop] attention output */
    float *x_mid;         /* [C] residual after attention */
    uint16_t *xn2;        /* [cp] normed, FFN input */
    float *inv_ffn;       /* [1] B */
    float *gate, *up;     /* [fp] fp32 accumulators, row stride fp (gate may be scratch) */
    uint16_t *hid;        /* [fp] silu(gate) * up */
} layer_acts;

/* Where a row belongs. */
typedef struct row_info {
    int32_t token;
    int32_t position; /* absolute */
    int32_t seg;
    int32_t row; /* in the segment */
} row_info;

/* Query rows of a segment that one attention item takes, and the attention rows that makes (the
 * heads of a group count as rows). */
enum { ATTN_ROWS = 16 };
static inline int attention_rows(const model_dims *d)
{
    return PL_DRAFT_MAX * d->group; /* a whole tree is one item, and larger than ATTN_ROWS */
}

/* Scratch of one thread; rows = attention_rows(), [rows, ..]. */
typedef struct thread_scratch {
    void *gemm;               /* PL_GEMM_SCRATCH */
    uint16_t *q;              /* [dp] query rows of an item, gathered */
    float *scores;            /* [64] against one block of keys */
    float *keys;              /* [PL_DRAFT_MAX] against the nodes of a tree */
    float *o_block;           /* [dp] */
    uint16_t *probs;          /* [64] */
    float *state;             /* [dp] O, then [rows] M, [rows] L */
    float *block_m, *block_l; /* [1] */
    uint16_t *tail_v;         /* [64, dp] V rows of the committed part of a tail block */
    uint16_t *tree_k;         /* packed, PL_DRAFT_MAX nodes */
} thread_scratch;

typedef struct pass_seg {
    pl_segment s;
    int row_begin;    /* first row of the pass */
    int base;         /* kv->n_tokens when the pass began */
    int logits_begin; /* first row among the rows with logits */
} pass_seg;

struct pl_pass {
    pl_model *m;
    pl_pass_options o;
    model_dims dims;
    pl_arena arena;
    pl_kv_pool *pool;    /* of the current run */
    int kv_layer_stride; /* 1; 0 when every layer shares the pages of layer 0 (training) */
    pass_seg *segs;      /* [max_segments] */
    int n_segs, n_rows, n_logits;
    row_info *rows;  /* [max_rows] */
    int *logit_rows; /* [max_logits] */
    layer_acts acts;
    float *proj;               /* [max_rows, cp] output of the o and down projections */
    uint16_t *tree_k, *tree_v; /* [L, max_rows, Hkv, dp], tree rows of every layer */
    uint16_t *final_xn;        /* [max_logits, cp] */
    float *logits;             /* [max_logits, vp] */
    thread_scratch *scratch;   /* [threads] */
    double attention_s;        /* seconds of the current run in attention */
    pl_features features;      /* rows NULL: not wanted */
    int feature_layers[PL_FEATURE_LAYERS];
};

/* Lay out the rows of a pass.  Errors: those of pl_pass_run. */
pl_status pass_begin(pl_pass *p, pl_kv_pool *pool, const pl_segment *segs, int n, pl_error *err);
/* Inside a team region, all threads.  Each ends with a barrier. */
void pass_embed(pl_pass *p, float *x, int i_thread, int n_threads);
void pass_layer(
    pl_pass *p, int layer, const layer_acts *a, float *x_out, int i_thread, int n_threads);
/* The attention of a layer alone: needs a->q, a->k, a->v; writes a->ao (and att_m, att_l). */
void pass_attention(pl_pass *p, int layer, const layer_acts *a, int i_thread, int n_threads);
/* Copy what is wanted of a layer's output, and of the last layer's: no barrier, see features.c. */
void pass_capture_layer(pl_pass *p, int layer, int i_thread, int n_threads);
void pass_capture_hidden(pl_pass *p, int i_thread, int n_threads);
/* Advance the chain segments' n_tokens. */
void pass_end(pl_pass *p);

/* y = x w^T on the panels of this thread, all rows; rows are blocked by the op. */
void model_gemm(const pl_pass *p, const uint16_t *x, size_t ldx, const uint16_t *w, float *y,
    size_t ldy, int m, int n, int k, int i_thread, int n_threads);

#endif
