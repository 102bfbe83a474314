/* tests/fuzz/fuzz_rollouts.c - the reader of rollout records against any bytes, with and without a
 * tokenizer.  What is accepted is whole: ids in range, lengths that agree, finite numbers, groups
 * that add up; what is refused is refused in a sentence that names the file. */
#include "trainer/rollouts_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB = 300, LONGEST = 256 };

/* A letter a token, and a chat template of ours. */
static const char tokenizer[] =
    "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2},\"merges\":[]},"
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},"
    "\"decoder\":{\"type\":\"ByteLevel\"},\"added_tokens\":[{\"id\":3,\"content\":\"<|im_start|>\","
    "\"special\":true},{\"id\":4,\"content\":\"<|im_end|>\",\"special\":true}]}";

static void check(int is_true)
{
    if (!is_true)
        abort();
}

static void check_ids(const int32_t *ids, int n)
{
    for (int i = 0; i < n; i++)
        check(ids[i] >= 0 && ids[i] < VOCAB);
}

static void check_sample(const pl_rollouts *r, const pl_sample *x)
{
    const pl_response *s = x->response;

    check(s->n_prompt > 0 && s->n_tokens > 0 && s->n_prompt + s->n_tokens <= LONGEST);
    check(s->prompt == x->prompt->ids && s->n_prompt == x->prompt->n_ids);
    check_ids(s->prompt, s->n_prompt);
    check_ids(s->tokens, s->n_tokens);
    check(isfinite(x->reward) && isfinite(x->advantage) && s->temperature >= 0);
    check((s->logprobs != NULL) == r->has_logprobs);
    for (int i = 0; s->logprobs && i < s->n_tokens; i++)
        check(isfinite(s->logprobs[i]));
    for (int i = 0; s->token_source && i < s->n_tokens; i++)
        check(s->token_source[i] <= 2);
    check(!x->text || x->text[x->n_text] == '\0');
}

static void try(const uint8_t *data, size_t size, const pl_tokenizer *tok)
{
    pl_rollouts *r = NULL;
    pl_error err = {0};

    const pl_status st = rollouts_parse(&r, data, size, "fuzz", tok, VOCAB, LONGEST, &err);
    if (st != PL_OK) {
        check(!r && st == err.code && strncmp(err.msg, "fuzz", 4) == 0);
        return;
    }
    check(r->n > 0 && r->n_groups > 0 && r->n_groups <= r->n);
    check(r->group_size == 0 || r->group_size * r->n_groups == r->n);
    for (int i = 0; i < r->n; i++)
        check_sample(r, &r->samples[i]);
    pl_rollouts_free(r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static pl_tokenizer *tok; /* once: slow to make */
    pl_error err;

    if (!tok && pl_tokenizer_parse(&tok, tokenizer, sizeof tokenizer - 1, NULL,
                    "{{ '<|im_start|>' }}", VOCAB, &err) != PL_OK)
        abort();
    try(data, size, NULL);
    try(data, size, tok);
    return 0;
}
