/* cli/whatif_play.c - an engine of one worker over the samples that it once rolled out. */
#include "cli/whatif.h"
#include "core/rng.h"

#include <stdlib.h>
#include <string.h>

static const double BEYOND = 1.1; /* times the most recorded rows: a guess from there on */

static const whatif_sample *sample_of(const whatif_batch *b, uint32_t uid)
{
    const uint32_t i = uid - b->first_uid;
    return i < (uint32_t)(b->n_groups * b->n) ? &b->samples[i] : NULL;
}

static const int32_t *tokens_of(void *ctx, uint32_t uid, int *n)
{
    const whatif_engine *e = ctx;
    const whatif_sample *s = sample_of(e->batch, uid);

    if (!s)
        return NULL;
    *n = s->n;
    return s->tokens;
}

static const uint16_t *features_of(void *ctx, uint32_t uid, int position)
{
    const whatif_engine *e = ctx;
    const whatif_batch *b = e->batch;
    const whatif_sample *s = sample_of(b, uid);

    if (!b->features || !s || position >= s->n_prompt + s->n - 1)
        return NULL;
    const size_t row = position < s->n_prompt ? s->prompt_row + (size_t)position
                                              : s->row + (size_t)(position - s->n_prompt);
    return b->features + row * b->row;
}

static double pass_s(void *ctx, int n_rows)
{
    whatif_engine *e = ctx;
    const double s = e->scale * pl_costs_of(e->costs, n_rows);

    if (n_rows > BEYOND * pl_costs_most(e->costs))
        e->guessed_s += s;
    return s;
}

pl_status whatif_engine_new(whatif_engine **out, pl_model *model, const pl_engine_options *o,
    const pl_costs *costs, pl_error *err)
{
    whatif_engine *e = calloc(1, sizeof *e);

    if (!e)
        return pl_fail(err, PL_E_NOMEM, "no memory for an engine");
    e->costs = costs;
    e->scale = 1;
    e->record =
        (pl_recorded){.ctx = e, .tokens = tokens_of, .features = features_of, .pass_s = pass_s};
    const pl_status st = pl_engine_new_recorded(&e->engine, model, o, &e->record, NULL, err);
    if (st != PL_OK) {
        free(e);
        return st;
    }
    *out = e;
    return PL_OK;
}

void whatif_engine_free(whatif_engine *e)
{
    if (!e)
        return;
    pl_engine_free(e->engine);
    free(e);
}

static pl_status submit(whatif_engine *e, int i, pl_error *err)
{
    const whatif_batch *b = e->batch;
    const whatif_sample *s = &b->samples[i];
    const run_sampling *how = &b->sampling;
    const uint32_t uid = b->first_uid + (uint32_t)i;
    const pl_request r = {.uid = uid,
        .group = uid / (uint32_t)b->n,
        .prompt = s->prompt,
        .n_prompt = s->n_prompt,
        .max_tokens = how->max_tokens,
        .temperature = how->temperature,
        .top_p = how->top_p,
        .min_p = how->min_p,
        .top_k = how->top_k,
        .noise_key = pl_noise_key(how->seed),
        .purpose = how->purpose,
        .ignore_eos = how->ignore_eos,
        .prompt_key = s->prompt_key};

    return pl_engine_submit(e->engine, &r, err);
}

static int is_stopped(void *ctx, const pl_response *r, int n_before)
{
    (void)ctx, (void)r, (void)n_before;
    return cli_stop != 0;
}

pl_status whatif_engine_play(
    whatif_engine *e, const whatif_batch *b, int64_t worker, pl_engine_stats *stats, pl_error *err)
{
    pl_status st = PL_OK;

    e->batch = b;
    e->record.draw_s = b->draw_s;
    e->guessed_s = 0;
    pl_engine_reset_stats(e->engine);
    for (int i = 0; i < b->n_groups * b->n && st == PL_OK; i++)
        if (worker < 0 || b->samples[i].worker == worker)
            st = submit(e, i, err);
    if (st == PL_OK)
        st = pl_engine_run(e->engine, is_stopped, NULL, err);
    pl_engine_get_stats(e->engine, stats);
    if (st != PL_OK)
        pl_engine_clear(e->engine);
    return st;
}
