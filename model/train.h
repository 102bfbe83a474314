/* model/train.h - forward and backward over packed sequences: log-probs out, gradients in.
 *
 * The forward is the pass of model.h (same kernels, same bits).  The vocabulary head, its
 * log-softmax and its gradient run in row chunks: a T x V matrix never exists. */
#ifndef PL_MODEL_TRAIN_H
#define PL_MODEL_TRAIN_H

#include "model/model.h"

/* One sequence: prompt and response.  Log-probs exist for tokens n_prompt .. n_tokens - 1. */
typedef struct pl_train_seq {
    const int32_t *tokens; /* [n_tokens] */
    int n_tokens;
    int n_prompt;      /* >= 1 */
    float temperature; /* of the rollout; > 0 */
} pl_train_seq;

/* Called once for every response token of a micro-batch, from one thread, in order of sequence and
 * position, when its log-prob is known.  entropy is that of the distribution it was drawn from.
 * Returns d loss / d logprob of this token (0: no gradient). */
typedef float (*pl_train_loss_fn)(void *ctx, int i_seq, int i_token, float logprob, float entropy);

/* Draw response tokens anew, as a rollout drew them (ops->draw), from the logits of their rows: the
 * audit of a rollout.  wants is asked for every response token of a micro-batch; where it fills
 * *draw and returns non-zero, drawn is told the token that came, just before loss is called for it.
 * Both are called from one thread, in order of sequence and position; the draws are spread over the
 * team, at about the price of the log-sum-exp that they bring along.  draw->temperature counts only
 * as 0 (greedy) or not: the sequence's is taken. */
typedef struct pl_train_redraw {
    int (*wants)(void *ctx, int i_seq, int i_token, pl_draw *draw);
    void (*drawn)(void *ctx, int i_seq, int i_token, int32_t token);
    void *ctx;
} pl_train_redraw;

typedef struct pl_train_options {
    int max_tokens;   /* tokens of one micro-batch, each sequence padded to a multiple of 32 */
    int max_seqs;     /* sequences of one micro-batch */
    int max_len;      /* longest sequence */
    int keep;         /* 1: activations of every layer are kept; 0: recomputed in the backward */
    int head_rows;    /* rows of a head chunk, a multiple of 32 (0: 128) */
    int want_entropy; /* compute it (else 0 is passed) */
    int forward_only; /* only pl_train_logprobs will be called: no memory for gradients */
} pl_train_options;

typedef struct pl_train pl_train;

/* The model must have been made with_backward, unless forward_only is set.  *borrows* m.
 * Errors: PL_E_INVAL (options), PL_E_NOMEM. */
pl_status pl_train_new(pl_train **out, pl_model *m, const pl_train_options *o, pl_error *err);
void pl_train_free(pl_train *t);
/* Bytes that pl_train_new takes, its pass and pages included. */
size_t pl_train_plan(const pl_arch *arch, const pl_train_options *o, int n_threads);

/* Draw tokens anew from the next call on; *r is copied.  NULL: no more.  Log-probs, entropies and
 * gradients keep their bits. */
void pl_train_set_redraw(pl_train *t, const pl_train_redraw *r);

/* Rows that a sequence takes in the micro-batch budget: all tokens but the last, padded to 32. */
int pl_train_rows(int n_tokens);

/* Forward, loss, backward: adds the gradients of sum of loss to grads (flat fp32, param table
 * order).  Sequences whose every d loss / d logprob is zero cost no backward work; when all are,
 * there is none.
 *
 * What the bits of grads depend on: weights, the sequences and their order, the values that loss
 * returned, and what grads held.  Not on keep, threads, ISA, head_rows or budget; not on
 * micro-batch borders either, but for the embedding of a tied model, where each micro-batch adds
 * first its part as head, then its tokens in order.  Orders: a weight's gradient is the canonical
 * dot over tokens, each sequence padded to blocks of 32 with zeros, blocks that have no gradient
 * left out; a norm's is summed in each block, then over blocks; the inputs of all products are
 * rounded to bf16.
 *
 * Errors: PL_E_INVAL (over budget; temperature not above 0), PL_E_NUMERIC (a log-prob or a returned
 * gradient is not finite; grads then hold a part). */
pl_status pl_train_step(pl_train *t, const pl_train_seq *seqs, int n_seqs, pl_train_loss_fn loss,
    void *ctx, float *grads, pl_error *err);

/* Forward only: the same calls of loss, whose results are ignored. */
pl_status pl_train_logprobs(pl_train *t, const pl_train_seq *seqs, int n_seqs,
    pl_train_loss_fn loss, void *ctx, pl_error *err);

#endif
