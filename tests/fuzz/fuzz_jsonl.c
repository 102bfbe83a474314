/* tests/fuzz/fuzz_jsonl.c - the prompts reader and the verifiers against any bytes.  What is
 * accepted has every field that the trainer relies on; what is refused is refused in a sentence. */
#include "trainer/trainer.h"

#include <stdlib.h>
#include <string.h>

static void check_prompt(const pl_prompt *p, const char *text, size_t n)
{
    pl_error err;
    float score = -1;

    if (!p->data_source || !p->ground_truth || !p->messages_json || p->n_messages < 1)
        abort();
    for (int i = 0; i < p->n_messages; i++)
        if (!p->messages[i].role || !p->messages[i].content)
            abort();
    if (pl_reward_score(p->data_source, text, n, p->ground_truth, &score, &err) != PL_OK)
        abort();
    if (score != 0.0f && score != 1.0f)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const sources[] = {"exact", "last_number", "boxed", "gsm8k", "answer_tag"};
    const char *text = (const char *)data;
    pl_dataset *d = NULL;
    pl_error err = {0};
    float score;

    for (size_t i = 0; i < sizeof sources / sizeof sources[0]; i++)
        if (pl_reward_score(sources[i], text, size, "56", &score, &err) != PL_OK)
            abort();
    const pl_status st = pl_dataset_parse(&d, text, size, "fuzz.jsonl", NULL, 0, &err);
    if (st != PL_OK) {
        if (d || st != err.code || strncmp(err.msg, "fuzz.jsonl:", 11) != 0)
            abort();
        return 0;
    }
    if (d->n < 1)
        abort();
    for (int i = 0; i < d->n; i++)
        check_prompt(&d->prompts[i], text, size);
    pl_dataset_free(d);
    return 0;
}
