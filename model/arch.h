/* model/arch.h - the shape of a Llama model and the flat order of its parameters. */
#ifndef PL_MODEL_ARCH_H
#define PL_MODEL_ARCH_H

#include "core/error.h"

#include <stddef.h>
#include <stdint.h>

enum { PL_MAX_EOS = 8 };

typedef enum pl_rope_type { PL_ROPE_DEFAULT, PL_ROPE_LLAMA3 } pl_rope_type;

typedef struct pl_arch {
    int n_layers;   /* L, 1..1024 */
    int n_embd;     /* C, hidden size */
    int n_heads;    /* H, query heads */
    int n_kv_heads; /* divides n_heads */
    int head_dim;   /* D, even; n_heads * head_dim need not equal n_embd */
    int n_ff;       /* inner size of the SwiGLU */
    int n_vocab;    /* V, rows of the embedding */
    int n_ctx;      /* positions the model was made for */
    int tied;       /* the head is the embedding */
    float rms_eps;
    double rope_theta;
    pl_rope_type rope_type;
    double rope_factor, rope_low_freq_factor, rope_high_freq_factor; /* llama3 only */
    int rope_original_ctx;                                           /* llama3 only */
    int bos_id;                                                      /* -1: none */
    int eos_ids[PL_MAX_EOS]; /* generation stops at any of them */
    int n_eos;
} pl_arch;

/* Refuse what no Llama model can be, or what this program cannot hold, in a sentence.
 * Errors: PL_E_SHAPE. */
pl_status pl_arch_check(const pl_arch *a, pl_error *err);

/* The tensors of a model, in file and in memory order. */
typedef enum pl_param_kind {
    PL_P_EMBED,      /* [V, C] */
    PL_P_ATTN_NORM,  /* [C]          per layer from here */
    PL_P_Q,          /* [H * D, C]   rows in Hugging Face order (RoPE pairs d and d + D/2) */
    PL_P_K,          /* [Hkv * D, C] */
    PL_P_V,          /* [Hkv * D, C] */
    PL_P_O,          /* [C, H * D] */
    PL_P_FFN_NORM,   /* [C] */
    PL_P_GATE,       /* [F, C] */
    PL_P_UP,         /* [F, C] */
    PL_P_DOWN,       /* [C, F]       to here */
    PL_P_FINAL_NORM, /* [C] */
    PL_P_HEAD,       /* [V, C], only when not tied */
} pl_param_kind;

typedef struct pl_param {
    pl_param_kind kind;
    int layer;     /* -1 for EMBED, FINAL_NORM, HEAD */
    int rows;      /* first dimension; 1 for norms */
    int cols;      /* second dimension, contiguous */
    size_t offset; /* in elements, into any flat array of all parameters; multiple of 16 */
    char name[96]; /* Hugging Face name, as "model.layers.0.self_attn.q_proj.weight" */
} pl_param;

/* All parameters of a model in order: EMBED, the layers, FINAL_NORM, HEAD.  Masters, gradients and
 * moments are flat fp32 arrays of n_elements with this layout; gaps between tensors are zero. */
typedef struct pl_param_table {
    int n_params;
    size_t n_elements; /* length of the flat array, gaps included */
    pl_param *params;  /* [n_params] */
} pl_param_table;

pl_status pl_param_table_new(pl_param_table **out, const pl_arch *a, pl_error *err);
void pl_param_table_free(pl_param_table *t);
/* The entry of a kind (layer -1 where there is none); NULL when the model has no such tensor. */
const pl_param *pl_param_find(const pl_param_table *t, pl_param_kind kind, int layer);

#endif
