/* drafter/eagle.h - the learned drafter: EAGLE-3.1, one decoder layer that reads three layers of
 * the target (EAGLE-3: Li et al. 2025, arXiv 2503.01840; per-chunk norms and the normed recurrent
 * state: "EAGLE-3.1").  Weights, training over packed windows, files.  What it proposes cannot
 * change the text, so its numerics are free: bf16 products, fp32 elsewhere.
 *
 *   g   = fc([norm_1(f_1); norm_2(f_2); norm_3(f_3)])           f_i: outputs of three target layers
 *   u   = [norm_in(emb(x_{t+1})); norm_hid(g)]                   2C
 *   h   = g + Wo attn(Wq u, Wk u, Wv u, RoPE);  h = h + mlp(norm_post(h))
 *   s   = norm_final(h);  logits = head s, over the draft vocabulary;  s is what recurs as g
 * The feature of position t with the token at t + 1 predicts the token at t + 2; its query and key
 * are rotated by position t, those of the k-th recurrence after it by t + k.  q is the softmax of
 * the logits over the window's temperature, as p is of the target's. */
#ifndef PL_DRAFTER_EAGLE_H
#define PL_DRAFTER_EAGLE_H

#include "core/error.h"
#include "core/log.h"
#include "model/features.h"
#include "model/model.h"

#include <stdint.h>

typedef struct pl_eagle_options {
    int n_vocab; /* of the draft vocabulary; 0: 8192, or all of the target's when smaller */
    const int32_t *vocab; /* [n_vocab] target ids, ascending; NULL with n_vocab = V: all */
    uint64_t seed;        /* of the random start */
} pl_eagle_options;

typedef struct pl_eagle pl_eagle;

/* A random start: the head is copied from the target's rows, the final gain is a part of the
 * target's, the rest is noise.  *borrows*
 * the target (its embedding, its team and backend).  Errors: PL_E_NOMEM, PL_E_INVAL. */
pl_status pl_eagle_new(
    pl_eagle **out, const pl_model *target, const pl_eagle_options *o, pl_error *err);
/* Its two halves: what is of the target's weights; and the rest, which another thread may fill in
 * beside passes of the target and changes of its weights. */
pl_status pl_eagle_begin(
    pl_eagle **out, const pl_model *target, const pl_eagle_options *o, pl_error *err);
void pl_eagle_fill(pl_eagle *e, uint64_t seed);
void pl_eagle_free(pl_eagle *e);
/* A directory in the EAGLE-3 layout that SGLang and vLLM load (config.json, model.safetensors with
 * d2t and t2d, which a draft vocabulary that is the target's has not), and back.  fc_norm and
 * norm_output are known to vLLM from 0.22 on and to SGLang from 0.5.12 on.  A plain EAGLE-3,
 * without fc_norm and norm_output in its config.json, is read, trained and written as one; tensors
 * may be F32, BF16 or F16.  Errors: PL_E_SHAPE (of another target, vocabulary, hidden size or
 * rotation, or with parts that are not computed here: says which), PL_E_FORMAT, PL_E_IO. */
pl_status pl_eagle_save(const pl_eagle *e, const char *dir, pl_error *err);
pl_status pl_eagle_load(pl_eagle **out, const pl_model *target, const char *dir, pl_error *err);
int pl_eagle_n_vocab(const pl_eagle *e);
const int32_t *pl_eagle_vocab(const pl_eagle *e); /* [n_vocab] target ids */
/* Bytes that a drafter of the target's shape takes, and its training; n_vocab 0: the default. */
size_t pl_eagle_plan(const pl_arch *a, int n_vocab);
size_t pl_eagle_bytes(const pl_eagle *e); /* of parameters, fp32 */

/* ---- training ---- */

enum { PL_EAGLE_DEPTH_MAX = 8 };

/* What a prediction is charged for (DRAFTING 1.3); alpha = sum_v min(p, q) over the draft
 * vocabulary, p the target's, not renormalised. */
typedef enum pl_eagle_loss {
    PL_EAGLE_LOSS_MIX,    /* alpha_weight * -log alpha + (1 - alpha_weight) * cross-entropy */
    PL_EAGLE_LOSS_LK,     /* lam * KL + (1 - lam) * (1 - alpha), lam = exp(-3 alpha) held fixed */
    PL_EAGLE_LOSS_CE,     /* cross-entropy */
    PL_EAGLE_LOSS_EAGLE1, /* SmoothL1 of s against the target's final normed hidden state that
                             predicts the same token, mean over C, + 0.1 * cross-entropy */
} pl_eagle_loss;

typedef struct pl_eagle_train_options {
    int window;                                 /* tokens of a window; 256 */
    int max_windows;                            /* of one step */
    int depth;                                  /* TTT steps, 1 .. PL_EAGLE_DEPTH_MAX; 4 */
    float lr, beta1, beta2, weight_decay, clip; /* AdamW; 1e-3, 0.9, 0.95, 0, 1.0 */
    float alpha_weight;                         /* of -log alpha; the rest is cross-entropy; 0.5 */
    float depth_decay;  /* weight of step k: depth_decay^k; 0: pl_eagle_depth_weights of the running
                           mean of what the training measures; 0 */
    float ema;          /* decay of the averaged weights; 0: none */
    int warmup_steps;   /* the rate rises over so many; 5 */
    pl_eagle_loss loss; /* the mix */
} pl_eagle_train_options;
void pl_eagle_train_defaults(pl_eagle_train_options *o);
/* Weights [depth] that make the loss follow the tokens of a pass: w_k = S_k / S_1, S_k the sum over
 * j >= k of alpha_1 .. alpha_j.  alpha [depth]: acceptance measured at each depth. */
void pl_eagle_depth_weights(float *weights, const double *alpha, int depth);

/* Consecutive positions of one recorded sample, never of two. */
typedef struct pl_eagle_window {
    const int32_t *tokens;    /* [n] x_t */
    const uint16_t *features; /* [n][3][pad32(C)] bf16 */
    const uint16_t *hidden;   /* [n][pad32(C)] bf16: the target's final normed hidden state, from
                                 which its logits are made again */
    const uint8_t *is_target; /* [n] 1: the prediction of token t + 1 by the target counts (response
                                 tokens) */
    int n;                    /* at most window */
    int position;             /* of its first token in the sample: RoPE */
    float temperature;        /* 0: as 1 */
    float *lse; /* [n], or NULL.  Log-sum-exp of the target's logits over the temperature, NaN where
                   unknown: then the step fills it in.  A window whose lse is known costs a fifth
                   less; it must be forgotten when the target's weights change */
} pl_eagle_window;

typedef struct pl_eagle_step_stats { /* of the step's windows, by depth */
    double loss, grad_norm;
    int64_t n_tokens;                  /* predictions that counted, depth 1 */
    double alpha[PL_EAGLE_DEPTH_MAX];  /* mean of sum_v min(p, q), un-renormalised p */
    double accept[PL_EAGLE_DEPTH_MAX]; /* share of positions whose recorded next token is the
                                          drafter's best */
    double coverage;                   /* mass of p on the draft vocabulary */
} pl_eagle_step_stats;

typedef struct pl_eagle_trainer pl_eagle_trainer;
/* *borrows* e.  Errors: PL_E_INVAL, PL_E_NOMEM. */
pl_status pl_eagle_trainer_new(
    pl_eagle_trainer **out, pl_eagle *e, const pl_eagle_train_options *o, pl_error *err);
void pl_eagle_trainer_free(pl_eagle_trainer *t);
size_t pl_eagle_trainer_plan(
    const pl_arch *a, int n_vocab, const pl_eagle_train_options *o, int n_threads);
/* Forward and backward over the windows (TTT with the exact attention: causal keys of step 0 and
 * the diagonal of later steps), one AdamW update.  should_stop (may be NULL) is asked between ops:
 * then PL_E_STOPPED and no update.  Errors: PL_E_NUMERIC (NaN in features or loss: nothing is
 * updated). */
pl_status pl_eagle_train_step(pl_eagle_trainer *t, const pl_eagle_window *w, int n,
    int (*should_stop)(void *ctx), void *ctx, pl_eagle_step_stats *stats, pl_error *err);
/* The same forward only: held-out figures. */
pl_status pl_eagle_eval(pl_eagle_trainer *t, const pl_eagle_window *w, int n,
    pl_eagle_step_stats *stats, pl_error *err);
/* The same, and row is called for every counted prediction, depth by depth, with the drafter's
 * logits [n_vocab] over the draft vocabulary: the prediction of token i_row + 2 + depth of window
 * i_window (depth from 0).  May be called by one thread only; logits are *borrowed* for the call.
 */
typedef void (*pl_eagle_row_fn)(void *ctx, int i_window, int i_row, int depth, const float *logits);
pl_status pl_eagle_eval_rows(pl_eagle_trainer *t, const pl_eagle_window *w, int n,
    pl_eagle_row_fn row, void *ctx, pl_eagle_step_stats *stats, pl_error *err);
/* ---- one step in two halves, for several workers ---- */

size_t pl_eagle_n_elements(const pl_eagle *e); /* of weights, gradients, moments */
/* Forward and backward: grads [n_elements] = gradients of the windows' mean loss (over
 * stats->n_tokens predictions).  Nothing is updated but pl_eagle_trainer_measured.  Errors: as
 * pl_eagle_train_step. */
pl_status pl_eagle_gradients(pl_eagle_trainer *t, const pl_eagle_window *w, int n,
    int (*should_stop)(void *ctx), void *ctx, float *grads, pl_eagle_step_stats *stats,
    pl_error *err);
/* Clip and one AdamW update.  *grad_norm before clipping.  Errors: PL_E_NUMERIC (nothing done). */
pl_status pl_eagle_apply(pl_eagle_trainer *t, const float *grads, double *grad_norm, pl_error *err);
/* Weights, moments, average as flat arrays [n_elements]; average NULL without EMA. */
typedef struct pl_eagle_state {
    float *weights, *m, *v, *average;
    int64_t step;
    double measured[PL_EAGLE_DEPTH_MAX]; /* pl_eagle_trainer_measured */
} pl_eagle_state;
void pl_eagle_trainer_get(const pl_eagle_trainer *t, pl_eagle_state *out); /* copies into it */
void pl_eagle_trainer_put(pl_eagle_trainer *t, const pl_eagle_state *in);
/* A drafter of its own with the same weights (the average, if average and there is one), ready to
 * draft with.  Errors: PL_E_NOMEM. */
pl_status pl_eagle_copy(
    pl_eagle **out, const pl_eagle *e, const pl_eagle_trainer *average, pl_error *err);

/* ---- the state of a training in arrays of the caller: files that several processes map ---- */

typedef struct pl_eagle_shape {
    int n_ff, n_heads, n_kv_heads, n_vocab;
    int no_fc_norm, raw_output; /* 0: EAGLE-3.1; both 1: plain EAGLE-3 */
    float eps;                  /* of its norms; 0: the target's */
} pl_eagle_shape;
pl_eagle_shape pl_eagle_get_shape(const pl_eagle *e);
/* A drafter of that shape; vocab [n_vocab] target ids, ascending; weights [n_elements] (NULL:
 * zeros) are copied.  *borrows* the target.  Errors: PL_E_INVAL, PL_E_NOMEM. */
pl_status pl_eagle_from(pl_eagle **out, const pl_model *target, const pl_eagle_shape *shape,
    const int32_t *vocab, const float *weights, pl_error *err);
const float *pl_eagle_get_weights(const pl_eagle *e); /* *borrowed*, until they are set */
void pl_eagle_set_weights(pl_eagle *e, const float *weights);
/* The same of elements begin .. begin + n - 1. */
void pl_eagle_set_part(pl_eagle *e, const float *weights, size_t begin, size_t n);
/* Pack one matrix, over the target's team, for products to read; 0: none was left.  Who drafts or
 * trains does so at the beginning; who must not be held up for all of them does so before. */
int pl_eagle_pack_one(pl_eagle *e);
/* Pack them all, by this thread alone: a drafter that nobody else has yet, beside passes of the
 * target. */
void pl_eagle_pack_alone(pl_eagle *e);
/* L2 norm of grads [n_elements]. */
double pl_eagle_norm(const pl_eagle *e, const float *grads);
/* Elements begin .. begin + n - 1 (multiples of 16) of one AdamW update with grads of that norm,
 * from one state into another: a caller who stops half-way still has the first.  The update that
 * pl_eagle_apply makes, but for the average's decay: at most s / (s + 9) at step s. */
void pl_eagle_update_part(const pl_eagle *e, const pl_eagle_train_options *o,
    const pl_eagle_state *from, const float *grads, double norm, pl_eagle_state *to, size_t begin,
    size_t n);
/* A state of e becomes one of fresh, a drafter with another vocabulary and otherwise the same
 * sizes: rows of the head that both know are kept with their moments, others are the target's. */
void pl_eagle_remap(
    const pl_eagle *e, const pl_eagle *fresh, const pl_eagle_state *from, pl_eagle_state *to);

/* The rate of the steps to come. */
void pl_eagle_trainer_set_lr(pl_eagle_trainer *t, float lr);
/* Running mean of acceptance by depth [PL_EAGLE_DEPTH_MAX], which every gradient adds to and
 * depth_decay 0 weighs by; 0: none yet. */
const double *pl_eagle_trainer_measured(const pl_eagle_trainer *t);
void pl_eagle_trainer_set_measured(pl_eagle_trainer *t, const double *measured);
/* Optimizer steps so far. */
int64_t pl_eagle_trainer_steps(const pl_eagle_trainer *t);
/* With ema > 0: exchange the drafter's weights with their average, to evaluate or save that; a
 * second call goes back, and must come before the next step.  Without: nothing. */
void pl_eagle_trainer_swap_average(pl_eagle_trainer *t);
/* Moments and step, for resume: beside the drafter's own directory. */
pl_status pl_eagle_trainer_save(const pl_eagle_trainer *t, const char *path, pl_error *err);
pl_status pl_eagle_trainer_load(pl_eagle_trainer *t, const char *path, pl_error *err);

#endif
