/* trainer/logprobs.c - samples that another policy drew, or that came without log-probs. */
#include "trainer/internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void pl_trainer_set_off_policy(pl_trainer *t, int is_off)
{
    assert(t);
    t->is_off_policy = is_off;
}

typedef struct taker {
    float *out;
    int n_prompt;
} taker;

static float take(void *ctx, int i_seq, int i_token, float logprob, float entropy)
{
    const taker *k = ctx;

    (void)i_seq;
    (void)entropy;
    k->out[i_token - k->n_prompt] = logprob;
    return 0;
}

pl_status pl_trainer_logprobs(pl_trainer *t, const pl_response *r, float *out, pl_error *err)
{
    assert(t && r && out);
    taker k = {out, r->n_prompt};

    if (r->n_prompt < 1 || r->n_tokens < 1 || r->n_prompt > t->max_len - r->n_tokens)
        return pl_fail(err, PL_E_SHAPE,
            "uid %u: prompt and response have %d and %d tokens, together at most %d are planned "
            "for",
            r->uid, r->n_prompt, r->n_tokens, t->max_len);
    memcpy(t->tokens, r->prompt, (size_t)r->n_prompt * sizeof *t->tokens);
    memcpy(t->tokens + r->n_prompt, r->tokens, (size_t)r->n_tokens * sizeof *t->tokens);
    const pl_train_seq seq = {
        .tokens = t->tokens,
        .n_tokens = r->n_prompt + r->n_tokens,
        .n_prompt = r->n_prompt,
        .temperature = r->temperature > 0 ? r->temperature : 1,
    };
    return pl_train_logprobs(t->train, &seq, 1, take, &k, err);
}
