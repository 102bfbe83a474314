/* trainer/workspace.c - what a trainer holds between steps: plan, masters, moments, workspaces. */
#include "core/file.h"
#include "trainer/internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* ---- the plan ---- */

pl_train_options plan_train(const pl_actor_options *o, int max_len, int keep)
{
    const int budget = pl_pad32((int)o->ppo_max_token_len);
    return (pl_train_options){
        .max_tokens = budget,
        .max_seqs = budget / 32,
        .max_len = max_len,
        .keep = keep,
        .want_entropy = 1,
    };
}

/* The bits of a forward pass do not depend on its neighbours, so the smallest workspace will do. */
pl_train_options plan_reference(int max_len)
{
    const int budget = pl_train_rows(max_len);
    return (pl_train_options){
        .max_tokens = budget,
        .max_seqs = budget / 32,
        .max_len = max_len,
        .forward_only = 1,
    };
}

void pl_trainer_plan_get(const pl_arch *a, const pl_actor_options *o, int max_len, int n_threads,
    size_t memory_limit, pl_trainer_plan *out)
{
    pl_param_table *params = NULL;

    memset(out, 0, sizeof *out);
    if (pl_param_table_new(&params, a, NULL) != PL_OK)
        return;
    out->masters = params->n_elements * sizeof(float);
    out->moments = 2 * out->masters;
    out->gradients = out->masters;
    pl_param_table_free(params);
    if (o->use_kl_loss) {
        const pl_train_options ref = plan_reference(max_len);
        out->reference = pl_model_plan(a, 0) + pl_train_plan(a, &ref, n_threads);
    }

    const pl_train_options keep = plan_train(o, max_len, 1);
    const pl_train_options recompute = plan_train(o, max_len, 0);
    const size_t kept = pl_train_plan(a, &keep, n_threads);
    const size_t others = out->masters + out->moments + out->gradients + out->reference;
    const int fits = memory_limit == 0 || (others <= memory_limit && kept <= memory_limit - others);
    out->keep =
        strcmp(o->activations, "keep") == 0 || (strcmp(o->activations, "recompute") != 0 && fits);
    out->activations = out->keep ? kept : pl_train_plan(a, &recompute, n_threads);
}

/* ---- life ---- */

pl_status pl_masters_new(float **out, const pl_param_table *params, pl_error *err)
{
    float *p = flat_new(params->n_elements);

    if (!p)
        return pl_fail(err, PL_E_NOMEM, "no memory for the fp32 master weights (%zu MiB)",
            params->n_elements * sizeof(float) >> 20);
    *out = p;
    return PL_OK;
}

void pl_masters_free(float *masters)
{
    free(masters);
}

static pl_status make_reference(pl_trainer *t, pl_error *err)
{
    const pl_train_options o = plan_reference(t->max_len);
    pl_status st = pl_model_new(
        &t->ref, pl_model_arch(t->model), pl_model_ops(t->model), pl_model_team(t->model), 0, err);

    if (st != PL_OK)
        return pl_wrap(err, st, "reference policy of use_kl_loss");
    t->ref_budget = o.max_tokens;
    st = pl_model_pack(t->ref, t->masters, err);
    if (st == PL_OK)
        st = pl_train_new(&t->ref_train, t->ref, &o, err);
    return st == PL_OK ? PL_OK : pl_wrap(err, st, "reference policy of use_kl_loss");
}

static pl_status make_parts(pl_trainer *t, pl_error *err)
{
    const pl_train_options o = plan_train(&t->o, t->max_len, strcmp(t->o.activations, "keep") == 0);
    const size_t n = pl_model_params(t->model)->n_elements;

    t->budget = t->room = o.max_tokens;
    t->grads = flat_new(n);
    t->m = flat_new(n);
    t->v = flat_new(n);
    /* A sequence of n tokens costs n - 1 rows, rounded up: it may hold one token more than rows. */
    t->tokens = calloc((size_t)t->budget + (size_t)o.max_seqs, sizeof *t->tokens);
    t->batch = calloc((size_t)o.max_seqs, sizeof *t->batch);
    if (!t->grads || !t->m || !t->v || !t->tokens || !t->batch)
        return pl_fail(err, PL_E_NOMEM,
            "no memory for gradients and moments (%zu MiB); use a smaller model",
            3 * n * sizeof(float) >> 20);
    pl_status st = optimizer_init(t, err);
    if (st == PL_OK)
        st = pl_train_new(&t->train, t->model, &o, err);
    if (st == PL_OK && t->o.use_kl_loss)
        st = make_reference(t, err);
    return st;
}

static pl_status check_budget(const pl_trainer *t, pl_error *err)
{
    const int rows = pl_train_rows(t->max_len);

    if (rows <= pl_pad32((int)t->o.ppo_max_token_len))
        return PL_OK;
    return pl_fail(err, PL_E_CONFIG,
        "a sequence of %d tokens (prompt and response) does not fit ppo_max_token_len %lld; set it "
        "to %d at least",
        t->max_len, (long long)t->o.ppo_max_token_len, rows);
}

pl_status pl_trainer_new(pl_trainer **out, pl_model *model, float *masters,
    const pl_actor_options *o, int max_len, int64_t total_steps, const pl_log *log, pl_error *err)
{
    assert(out && model && masters && o && max_len > 1);
    pl_trainer *t = calloc(1, sizeof *t);
    if (!t) {
        pl_masters_free(masters);
        return pl_fail(err, PL_E_NOMEM, "trainer");
    }
    t->model = model;
    t->masters = masters;
    t->o = *o;
    t->max_len = max_len;
    t->total_steps = total_steps;
    if (log) {
        t->log_copy = *log;
        t->log = &t->log_copy;
    }
    pl_status st = check_budget(t, err);
    if (st == PL_OK)
        st = make_parts(t, err);
    if (st != PL_OK) {
        pl_trainer_free(t);
        return pl_wrap(err, st, "trainer");
    }
    *out = t;
    return PL_OK;
}

pl_status pl_trainer_set_options(
    pl_trainer *t, const pl_actor_options *o, int64_t total_steps, pl_error *err)
{
    char activations[PL_CONFIG_STR];
    const int budget = pl_pad32((int)o->ppo_max_token_len);

    assert(t && total_steps > 0);
    if (budget > t->room || (o->use_kl_loss && !t->ref))
        return pl_fail(err, PL_E_CONFIG,
            "trainer: ppo_max_token_len %lld (there is room for %d) or use_kl_loss is not what its "
            "memory was taken for",
            (long long)o->ppo_max_token_len, t->room);
    memcpy(activations, t->o.activations, sizeof activations);
    t->o = *o;
    memcpy(t->o.activations, activations, sizeof activations);
    t->budget = budget;
    t->total_steps = total_steps;
    return PL_OK;
}

void pl_trainer_free(pl_trainer *t)
{
    if (!t)
        return;
    pl_train_free(t->ref_train);
    pl_model_free(t->ref);
    pl_train_free(t->train);
    pl_masters_free(t->masters);
    free(t->grads);
    free(t->m);
    free(t->v);
    free(t->chunks);
    free(t->chunk_squares);
    free(t->tokens);
    free(t->batch);
    free(t->ids);
    free(t->seqs);
    free(t->group_rewards);
    free(t->ref_logprobs);
    free(t);
}

void pl_trainer_hash(const pl_trainer *t, unsigned char out[16])
{
    pl_hash128(out, t->masters, pl_model_params(t->model)->n_elements * sizeof *t->masters);
}

float *pl_trainer_masters(pl_trainer *t)
{
    return t->masters;
}
