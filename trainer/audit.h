/* trainer/audit.h - proof that samples are what this policy draws, before they are trained on. */
#ifndef PL_TRAINER_AUDIT_H
#define PL_TRAINER_AUDIT_H

#include <stdint.h>

/* What is wrong with a sample: the first fault by position; a token comes before its log-prob. */
typedef enum pl_audit {
    PL_AUDIT_OK,
    PL_AUDIT_LOGPROB, /* a log-prob has not the bits that the trainer computes */
    PL_AUDIT_TOKEN,   /* logits and keyed noise give another token */
    PL_AUDIT_SHAPE,   /* lengths, finish, temperature, prompt or a value that no rollout of this run
                         returns; the sample was not put through the model */
} pl_audit;

/* "ok", "logprob", "token", "shape". */
const char *pl_audit_name(pl_audit a);

/* How the samples were asked for: the same for all of a run.  End tokens are those of the trainer's
 * model; stop strings are not known here, requests must have none. */
typedef struct pl_audit_options {
    /* Share of the response positions that are drawn anew, 0..1.  Which ones: those whose uniform
     * of (pick_key, uid, position, purpose 8) is below share.  Below 1, who knows pick_key knows
     * where he may lie: workers know noise_key, so give another one.  The choice decides no bit. */
    double share;
    uint64_t pick_key;

    float temperature, top_p, min_p;
    int top_k;
    uint64_t noise_key;
    uint32_t purpose;
    int ignore_eos;
    int max_tokens; /* of a response */
} pl_audit_options;

typedef struct pl_trainer pl_trainer;

/* From the next step on, hold all samples against *o before the step's first update; *o is copied.
 * NULL: compare log-probs only, as a new trainer does.  uid and policy_version of a response are
 * the caller's to check: they say which sample this is. */
void pl_trainer_set_audit(pl_trainer *t, const pl_audit_options *o);

#endif
