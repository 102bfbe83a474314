/* tests/model/reference.h - a Llama in double precision, unrounded and simple: what the gradients
 * of training are held against.  Its backward is itself checked by central differences. */
#ifndef PL_TESTS_MODEL_REFERENCE_H
#define PL_TESTS_MODEL_REFERENCE_H

#include "model/arch.h"
#include "model/train.h"

/* sum over sequences and response tokens of weight * log p_T(token), by weights w (flat, param
 * table order).  token_weight is asked once a token.  grads (may be NULL) += its gradient. logprobs
 * (may be NULL) [n_seqs][n_tokens] are set for response tokens. */
typedef double (*reference_weight_fn)(int i_seq, int i_token);
double reference_loss(const pl_arch *a, const pl_param_table *t, const double *w,
    const pl_train_seq *seqs, int n_seqs, reference_weight_fn token_weight, double *grads,
    double **logprobs);

#endif
