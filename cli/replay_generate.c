/* cli/replay_generate.c - the samples of a traced step, asked for again: recorded prompts, sampling
 * and keys, from the engine of this process or from worker processes. */
#include "cli/replay_parts.h"
#include "core/rng.h"

#include <stdlib.h>

/* Of the configuration's file, where the rollouts are gone. */
static pl_status open_data(replay_again *a, pl_error *err)
{
    if (a->data.train)
        return PL_OK;
    a->config.data.val_files[0] = 0;
    const pl_status st = run_data_open(
        &a->data, &a->config, a->r.m.tokenizer, pl_source_arch(a->r.m.source)->n_ctx, err);
    return st == PL_OK ? st
                       : pl_wrap(err, st, "the rollouts of the step are gone, and its prompts");
}

/* Prompt of group g, checked: what the run asked is asked again. */
static pl_status fill_prompt(
    replay_again *a, const replay_record *x, int g, pl_prompt *out, pl_error *err)
{
    const pl_trace_step *t = x->trace;

    *out = (pl_prompt){.data_source = (char *)(uintptr_t) "exact",
        .ground_truth = (char *)(uintptr_t) "",
        .key = t->prompts[g]};
    if (x->rollouts) { /* checked against the trace when it was opened */
        const pl_response *r = x->rollouts->samples[g * t->n].response;
        out->ids = (int32_t *)(uintptr_t)r->prompt;
        out->n_ids = r->n_prompt;
        return PL_OK;
    }
    const pl_status st = open_data(a, err);
    if (st != PL_OK)
        return st;
    const pl_prompt *p = &a->data.train->prompts[pl_dataset_order(a->data.train,
        (int64_t)t->first_uid / t->n + g, a->config.data.shuffle, a->config.data.seed)];
    if (p->key != t->prompts[g])
        return pl_fail(err, PL_E_FORMAT,
            "prompt %d of step %lld is not the traced one, and '%s' is gone: the prompts of '%s' "
            "were changed",
            g, (long long)t->step, x->path, a->config.data.train_files);
    out->ids = p->ids;
    out->n_ids = p->n_ids;
    out->line = p->line;
    return PL_OK;
}

/* The batch of the step, or of the one sample; *first: place of its first sample in the step. */
static pl_status make_batch(
    replay_again *a, const replay_step *s, const replay_record *x, int *first, pl_error *err)
{
    const int is_one = a->o->sample >= 0;
    const int n_groups = is_one ? 1 : s->n_groups;
    run_batch *b = &a->batch;
    pl_status st = PL_OK;

    *first = is_one ? (int)(a->o->sample - s->first_uid) : 0;
    free(a->prompts);
    free(a->list);
    a->prompts = calloc((size_t)n_groups, sizeof *a->prompts);
    a->list = calloc((size_t)n_groups, sizeof *a->list);
    if (!a->prompts || !a->list)
        return pl_fail(err, PL_E_NOMEM, "no memory for %d prompts", n_groups);
    for (int g = 0; g < n_groups && st == PL_OK; g++) {
        a->list[g] = &a->prompts[g];
        st = fill_prompt(a, x, is_one ? *first / s->n : g, &a->prompts[g], err);
    }
    b->prompts = a->list;
    b->n_groups = n_groups;
    b->n = is_one ? 1 : s->n;
    b->first_uid = s->first_uid + (uint32_t)*first;
    b->id = (uint64_t)RUN_EVAL << 32 | (uint64_t)s->step; /* nothing is consumed */
    b->report = &a->r.report;
    b->phase = "replay";
    return st;
}

static pl_status open_source(replay_again *a, pl_error *err)
{
    const int n_ctx = pl_source_arch(a->r.m.source)->n_ctx;

    if (a->source.self)
        return PL_OK;
    if ((int64_t)a->index.longest + a->index.max_tokens > n_ctx)
        return pl_fail(err, PL_E_SHAPE,
            "the trace has prompts of %d tokens and responses of up to %u, the model's context is "
            "%d: it is another model's",
            a->index.longest, a->index.max_tokens, n_ctx);
    pl_status st = replay_drafter_make(a->o, a->r.m.model, &a->config, err);
    if (st != PL_OK)
        return st;
    a->config.data.max_response_length = a->index.max_tokens;
    a->scorer.tokenizer = a->r.m.tokenizer;
    if (!a->dir)
        return run_local_open(
            &a->source, &a->config, &a->r.m, a->index.longest, &a->scorer, &a->r.log, err);
    return run_remote_open(&a->source, &a->config, &a->r.m, pl_trainer_masters(a->r.trainer),
        a->index.longest, &a->scorer, &a->r.log, err);
}

/* The policy as it is now.  A coordinator takes a version after the first as what came of a batch:
 * here, of the one that was replayed before. */
static pl_status hand_over(replay_again *a, const replay_step *s, pl_error *err)
{
    const int64_t before = a->replayed;

    a->replayed = s->step;
    return before == 0
               ? a->source.begin(a->source.self, s->policy_version, err)
               : a->source.consume(a->source.self, before, &a->batch, s->policy_version, err);
}

pl_status replay_generate(
    replay_again *a, const replay_step *s, const replay_record *x, int *first, pl_error *err)
{
    const pl_sampling *t = &x->trace->sampling;
    const replay_sitting *own = replay_sittings_find(&a->r.sittings, s->step);
    const run_config *c = own ? &own->config : &a->config;
    const run_sampling how = {.temperature = t->temperature,
        .top_p = t->top_p,
        .min_p = t->min_p,
        .top_k = (int)t->top_k,
        .max_tokens = (int)t->max_tokens,
        .ignore_eos = (int)t->ignore_eos,
        .speculative = a->config.speculative.enable ? PL_SPECULATE_ON : PL_SPECULATE_OFF,
        .seed = (uint64_t)c->rollout.seed,
        .purpose = t->purpose};

    if (pl_noise_key(how.seed) != t->noise_key)
        return pl_fail(err, PL_E_CONFIG,
            "rollout.seed in the configuration of '%s' is not the one of step %lld of the trace",
            a->o->run_dir, (long long)s->step);
    pl_status st = open_source(a, err);
    if (st == PL_OK)
        st = hand_over(a, s, err);
    if (st == PL_OK)
        st = make_batch(a, s, x, first, err);
    if (st == PL_OK)
        st = a->source.collect(a->source.self, &a->batch, &how, err);
    return st;
}
