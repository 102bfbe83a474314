/* cli/run_data.c - the prompts of a run, and whether they fit the model. */
#include "cli/run.h"

int run_data_longest(const run_data *d)
{
    int n = 1;
    for (int i = 0; i < d->train->n; i++)
        n = d->train->prompts[i].n_ids > n ? d->train->prompts[i].n_ids : n;
    for (int i = 0; d->val && i < d->val->n; i++)
        n = d->val->prompts[i].n_ids > n ? d->val->prompts[i].n_ids : n;
    return n;
}

static pl_status check_rewards(const pl_dataset *set, const char *path, pl_error *err)
{
    for (int i = 0; i < set->n; i++) {
        const pl_status st = pl_reward_check(set->prompts[i].data_source, err);
        if (st != PL_OK)
            return pl_wrap(err, st, "%s:%d", path, set->prompts[i].line);
    }
    return PL_OK;
}

static pl_status open_set(
    pl_dataset **out, const run_config *c, const char *path, const pl_tokenizer *tok, pl_error *err)
{
    const int max_prompt = (int)c->data.max_prompt_length;

    if (c->reward.command[0]) /* what it can score is for it to say */
        return pl_dataset_open_any(out, path, tok, max_prompt, err);
    const pl_status st = pl_dataset_open(out, path, tok, max_prompt, err);
    return st == PL_OK ? check_rewards(*out, path, err) : st;
}

static pl_status check_context(const run_data *d, const run_config *c, int n_ctx, pl_error *err)
{
    const int longest = run_data_longest(d);
    const int64_t response = c->data.max_response_length;

    if (longest + response > n_ctx)
        return pl_fail(err, PL_E_CONFIG,
            "the longest prompt of %d tokens and data.max_response_length %lld do not fit the "
            "model's context of %d: lower data.max_response_length to %d",
            longest, (long long)response, n_ctx, n_ctx - longest);
    return PL_OK;
}

pl_status run_data_open(
    run_data *d, const run_config *c, const pl_tokenizer *tok, int n_ctx, pl_error *err)
{
    pl_status st = open_set(&d->train, c, c->data.train_files, tok, err);
    if (st == PL_OK && c->data.val_files[0])
        st = open_set(&d->val, c, c->data.val_files, tok, err);
    return st == PL_OK ? check_context(d, c, n_ctx, err) : st;
}

void run_data_close(run_data *d)
{
    pl_dataset_free(d->train);
    pl_dataset_free(d->val);
}
