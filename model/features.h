/* model/features.h - what a learned drafter reads of the target: plain data. */
#ifndef PL_MODEL_FEATURES_H
#define PL_MODEL_FEATURES_H

#include "model/arch.h"

#include <stdint.h>

enum { PL_FEATURE_LAYERS = 3 };

/* Layers (from 0) whose outputs are read: 1, L/2 - 1, L - 4, as the published drafters do; with
 * fewer than 7 layers the first, the middle and the last. */
void pl_feature_layers(const pl_arch *a, int layers[PL_FEATURE_LAYERS]);

/* Features of rows of one pass: the residual stream after those layers, rounded to bf16.  Row i of
 * a buffer is row i of the pass: segments in order, their rows in order. */
typedef struct pl_features {
    uint16_t *rows;   /* [room][PL_FEATURE_LAYERS][pad32(C)] bf16, of the caller; padding is zero */
    uint16_t *hidden; /* [room][pad32(C)] bf16, or NULL: the final normed hidden state of every row,
                         from which the head makes its logits; padding is zero */
    int room;         /* rows */
} pl_features;

/* Have every run from now on write its rows' features from row 0 of *f (copied; the buffers are
 * *borrowed*); NULL: stop.  A run of more rows than there is room for is refused with PL_E_INVAL.
 * The bits of the pass are the same with and without. */
typedef struct pl_pass pl_pass;
void pl_pass_set_features(pl_pass *p, const pl_features *f);

/* Consecutive positions of one sample, and what the target computed there: what a drafter trains on
 * and is replayed on.  Plain data; who gets one copies what it keeps. */
typedef struct pl_feature_window {
    uint32_t uid, policy_version;
    /* how the sample's tokens are drawn */
    uint64_t noise_key;
    uint32_t purpose;
    float temperature, top_p, min_p;
    int top_k;
    int n_prompt;     /* tokens of the sample's prompt */
    int max_tokens;   /* of its response; 0: not known */
    int position;     /* of row 0 in the sample, the prompt counted */
    int n;            /* rows */
    int is_last;      /* the response ends in this window */
    int served_from;  /* first row of the rounds that the learned drafter in service was there for
                         (n: it was there for none) ... */
    uint32_t drafter; /* ... and its version; 0: none, or not known */
    const int32_t *tokens;    /* [n] */
    const uint16_t *features; /* [n][PL_FEATURE_LAYERS][pad32(C)] bf16 */
    const uint16_t *hidden;   /* [n][pad32(C)] bf16: the final normed hidden state */
} pl_feature_window;

/* What a drafter reads of its target's weights; *borrowed*, as long as the model lives.  Packed
 * matrices: pl_packed_index. */
typedef struct pl_model pl_model;
typedef struct pl_model_parts {
    const uint16_t *embed, *head;     /* packed, V outputs, C inputs */
    const float *final_norm;          /* [C] */
    const float *rope_cos, *rope_sin; /* [n_ctx, D/2] */
} pl_model_parts;
pl_model_parts pl_model_lend(const pl_model *m);

#endif
