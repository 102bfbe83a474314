/* trainer/internal.h - shared by the sources of this folder only. */
#ifndef PL_TRAINER_INTERNAL_H
#define PL_TRAINER_INTERNAL_H

#include "trainer/trainer.h"

/* ---- rewards ---- */

/* The ground truth is one that the verifier can compare with.  Errors: PL_E_CONFIG (unknown
 * data_source), PL_E_FORMAT. */
pl_status rewards_check_truth(const char *data_source, const char *ground_truth, pl_error *err);

/* ---- the loss of one token ---- */

typedef struct grpo_coef {
    double clip_low, clip_high; /* 1 - clip_ratio_low, 1 + clip_ratio_high */
    double kl;                  /* weight of the KL term; 0: none */
} grpo_coef;

typedef struct grpo_terms {
    double pg_loss;   /* of this token, not weighted */
    double kl_loss;   /* k3 estimate, not weighted, without its coefficient */
    double ratio;     /* exp(logprob - old) */
    int is_clipped;   /* the clipped ratio decides: no policy gradient */
    double d_logprob; /* d (pg_loss + kl coefficient * kl_loss) / d logprob */
} grpo_terms;

/* ref (may be NULL when c->kl is 0): log-prob of the reference. */
void grpo_token(const grpo_coef *c, double advantage, float logprob, float old, const float *ref,
    grpo_terms *out);

/* ---- learning rate: step counts from 1 ---- */

double schedule_lr(const pl_actor_options *o, int64_t step, int64_t total_steps);

/* ---- the audit ---- */

/* 1 when the sample is one that the run could have asked for; else *position tells of what token
 * (absolute; 0: of the whole). */
int audit_has_shape(const pl_trainer *t, const pl_sample *x, int *position);
/* pl_train_redraw's question for one token of r. */
int audit_wants(const pl_audit_options *o, const pl_response *r, int i_token, pl_draw *draw);

/* ---- the trainer ---- */

/* At most 64 Ki elements of one tensor: the unit of the optimizer's work, whatever the threads. */
typedef struct optimizer_chunk {
    size_t offset; /* elements */
    size_t n;
    int decays; /* weight decay applies */
} optimizer_chunk;

/* One sample of the running step. */
typedef struct step_seq {
    pl_sample *sample;
    size_t offset; /* of its first response token in ref_logprobs */
    double weight; /* of one token's loss in the loss of its mini-batch */
} step_seq;

struct pl_trainer {
    pl_model *model; /* borrowed */
    pl_log log_copy;
    const pl_log *log; /* &log_copy or NULL */
    pl_actor_options o;
    int max_len;
    int64_t total_steps;
    int is_audited;
    pl_audit_options audit; /* is_audited */
    int is_off_policy;

    float *masters, *grads, *m, *v; /* flat, by the param table */
    int64_t n_updates;              /* optimizer updates since the start of the run */
    int n_chunks;
    optimizer_chunk *chunks; /* [n_chunks] */
    double *chunk_squares;   /* [n_chunks] */

    pl_train *train;
    pl_model *ref; /* the initial policy, only with use_kl_loss */
    pl_train *ref_train;
    int budget, ref_budget; /* packed rows of one micro-batch */
    int room;               /* budget that there is memory for */

    int32_t *tokens;      /* [budget] of the micro-batch */
    pl_train_seq *batch;  /* [budget / 32] */
    int *ids;             /* [room_seqs] sequences of the list at hand */
    step_seq *seqs;       /* [room_seqs] */
    float *group_rewards; /* [2 * room_seqs] rewards and advantages of a group */
    int room_seqs;
    float *ref_logprobs; /* [room_ref] */
    size_t room_ref;
};

/* Options of the workspace of o, and of the reference's (as small as one sequence allows). */
pl_train_options plan_train(const pl_actor_options *o, int max_len, int keep);
pl_train_options plan_reference(int max_len);

/* Flat zeroed fp32, aligned to 64 bytes; NULL when there is no memory.  Pair: free. */
float *flat_new(size_t n);

/* Make t->chunks.  Errors: PL_E_NOMEM. */
pl_status optimizer_init(pl_trainer *t, pl_error *err);
void optimizer_clear_grads(pl_trainer *t);
/* Clip, AdamW, pack.  Errors: PL_E_NUMERIC when the norm is not finite, nothing has changed then.
 */
pl_status optimizer_update(pl_trainer *t, double lr, double *grad_norm, pl_error *err);

#endif
