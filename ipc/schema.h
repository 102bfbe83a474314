/* ipc/schema.h - the records that modules and processes exchange: plain data, no tensors.
 * rollout/ and trainer/ meet here and nowhere else. */
#ifndef PL_IPC_SCHEMA_H
#define PL_IPC_SCHEMA_H

#include <stddef.h>
#include <stdint.h>

typedef enum pl_finish {
    PL_FINISH_NONE, /* still running */
    PL_FINISH_STOP, /* an end token or a stop string */
    PL_FINISH_LENGTH,
    PL_FINISH_ABORTED,
} pl_finish;

/* What a rollout worker is asked for: one sample. */
typedef struct pl_request {
    uint32_t uid;          /* NUMERICS 3 */
    uint32_t group;        /* samples with one group share a prompt and its cache */
    const int32_t *prompt; /* [n_prompt] borrowed until the response is done */
    int n_prompt;
    int max_tokens; /* of the response, >= 1 */
    float temperature, top_p, min_p;
    int top_k;
    uint64_t noise_key; /* pl_noise_key(rollout.seed) */
    uint32_t purpose;   /* PL_NOISE_SAMPLE or PL_NOISE_EVAL */
    int ignore_eos;
    const char *const *stop; /* [n_stop] stop strings, borrowed */
    int n_stop;
    uint64_t prompt_key; /* identifies the prompt across epochs (suffix drafter); 0: none */
} pl_request;

/* What comes back.  Never depends on workers, threads, ISA or drafter, but for the spec_ counters.
 */
typedef struct pl_response {
    uint32_t uid;
    uint32_t group;
    int n_prompt;
    const int32_t *prompt; /* [n_prompt] */
    int n_tokens;          /* the end token included */
    int32_t *tokens;       /* [n_tokens] */
    float *logprobs;       /* [n_tokens] */
    uint8_t *token_source; /* [n_tokens] pl_draft_source */
    pl_finish finish;
    uint32_t policy_version;
    int spec_num_draft_tokens;    /* proposed, the root not counted */
    int spec_num_accepted_tokens; /* of those, emitted */
    int spec_num_verify_steps; /* target passes that emitted for this sample (prefill's counts) */
    float temperature;
} pl_response;

#endif
