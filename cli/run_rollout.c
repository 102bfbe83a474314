/* cli/run_rollout.c - one batch of rollouts: submit, collect in uid order, decode, score. */
#include "cli/run.h"
#include "core/rng.h"

#include <stdlib.h>
#include <string.h>

static void free_responses(run_batch *b)
{
    for (int i = 0; b->responses && i < b->room; i++) {
        free(b->responses[i].tokens);
        free(b->responses[i].logprobs);
        free(b->responses[i].token_source);
        free(b->samples[i].text);
    }
    free(b->responses);
    free(b->samples);
    b->responses = NULL;
    b->samples = NULL;
    b->room = 0;
}

void run_batch_done(run_batch *b)
{
    free_responses(b);
}

/* The engine's response is gone when the callback returns: copy it. */
static pl_status keep(run_batch *b, const pl_response *r)
{
    pl_response *d = &b->responses[r->uid - b->first_uid];
    const size_t n = (size_t)r->n_tokens;

    *d = *r;
    d->tokens = malloc((n + 1) * sizeof *d->tokens);
    d->logprobs = malloc((n + 1) * sizeof *d->logprobs);
    d->token_source = malloc(n + 1);
    if (!d->tokens || !d->logprobs || !d->token_source)
        return pl_fail(&b->err, PL_E_NOMEM, "response %u: no memory", r->uid);
    memcpy(d->tokens, r->tokens, n * sizeof *d->tokens);
    memcpy(d->logprobs, r->logprobs, n * sizeof *d->logprobs);
    memcpy(d->token_source, r->token_source, n);
    b->n_done++;
    return PL_OK;
}

static int on_tokens(void *ctx, const pl_response *r, int n_before)
{
    run_batch *b = ctx;
    char detail[96];
    const int total = b->n_groups * b->n;

    b->n_tokens += r->n_tokens - n_before;
    if (cli_stop)
        return pl_fail(&b->err, PL_E_STOPPED, "stopped by a signal during %s", b->phase);
    if (r->finish && keep(b, r) != PL_OK)
        return 1;
    if (r->finish) {
        snprintf(detail, sizeof detail, "%d of %d samples, %lld tokens", b->n_done, total,
            (long long)b->n_tokens);
        run_progress(b->report, b->phase, (double)b->n_done / total, detail);
    }
    return 0;
}

static pl_status submit(run_batch *b, pl_engine *e, const run_sampling *s, pl_error *err)
{
    const uint64_t key = pl_noise_key(s->seed);

    for (int g = 0; g < b->n_groups; g++)
        for (int k = 0; k < b->n; k++) {
            const uint32_t uid = b->first_uid + (uint32_t)(g * b->n + k);
            const pl_request r = {.uid = uid,
                .group = uid / (uint32_t)b->n,
                .prompt = b->prompts[g]->ids,
                .n_prompt = b->prompts[g]->n_ids,
                .max_tokens = s->max_tokens,
                .temperature = s->temperature,
                .top_p = s->top_p,
                .min_p = s->min_p,
                .top_k = s->top_k,
                .noise_key = key,
                .purpose = s->purpose,
                .ignore_eos = s->ignore_eos,
                /* Held-out samples repeat with the same noise: a drafter that remembered the last
                 * evaluation would know the answers, and its figures would say nothing. */
                .prompt_key = s->purpose == PL_NOISE_EVAL ? 0 : b->prompts[g]->key};
            const pl_status st = pl_engine_submit(e, &r, err);
            if (st != PL_OK)
                return pl_wrap(err, st, "prompt on line %d", b->prompts[g]->line);
        }
    return PL_OK;
}

static pl_status finish_samples(run_batch *b, const pl_tokenizer *tok, pl_error *err)
{
    for (int i = 0; i < b->n_groups * b->n; i++) {
        pl_sample *x = &b->samples[i];
        const pl_response *r = &b->responses[i];
        x->response = r;
        x->prompt = b->prompts[i / b->n];
        pl_status st =
            pl_tokenizer_decode(tok, r->tokens, r->n_tokens, 1, &x->text, &x->n_text, err);
        if (st == PL_OK)
            st = pl_reward_score(x->prompt->data_source, x->text, x->n_text,
                x->prompt->ground_truth, &x->reward, err);
        if (st != PL_OK)
            return pl_wrap(err, st, "sample %u", r->uid);
    }
    return PL_OK;
}

pl_status run_batch_collect(
    run_batch *b, pl_engine *e, const pl_tokenizer *tok, const run_sampling *s, pl_error *err)
{
    const int total = b->n_groups * b->n;
    const double t0 = run_seconds();

    free_responses(b);
    b->room = total;
    b->n_done = 0;
    b->n_tokens = 0;
    b->responses = calloc((size_t)total, sizeof *b->responses);
    b->samples = calloc((size_t)total, sizeof *b->samples);
    if (!b->responses || !b->samples) {
        free(b->responses);
        free(b->samples);
        b->responses = NULL;
        b->samples = NULL;
        return pl_fail(err, PL_E_NOMEM, "no memory for %d responses", total);
    }
    pl_engine_reset_stats(e);
    run_progress(b->report, b->phase, 0, "");
    pl_status st = submit(b, e, s, err);
    if (st == PL_OK)
        st = pl_engine_run(e, on_tokens, b, err);
    if (st == PL_E_STOPPED) {
        *err = b->err;
        st = err->code;
    }
    b->seconds = run_seconds() - t0;
    pl_engine_get_stats(e, &b->stats);
    run_progress_clear(b->report);
    if (st == PL_OK)
        st = finish_samples(b, tok, err);
    else
        pl_engine_clear(e);
    return st;
}

double run_batch_reward(const run_batch *b)
{
    const int total = b->n_groups * b->n;
    double sum = 0;

    for (int i = 0; i < total; i++)
        sum += (double)b->samples[i].reward;
    return total > 0 ? sum / total : 0;
}
