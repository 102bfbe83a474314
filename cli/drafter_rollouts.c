/* cli/drafter_rollouts.c - a drafter's first data when there is none: the target's own responses to
 * the prompts of a run configuration. */
#include "cli/drafter.h"
#include "cli/run.h"
#include "core/file.h"
#include "core/json.h"
#include "core/rng.h"
#include "rollout/rollout.h"

#include <stdlib.h>
#include <string.h>

typedef struct making {
    const run_config *c;
    const pl_dataset *set;
    pl_engine *engine;
    pl_writer *writer;
    pl_json line;
    int64_t n_tokens, n_wanted; /* of responses: written, wanted */
    int64_t n_samples, i_group;
    double t0, said;
    pl_error err; /* of the callback */
} making;

static void put_ids(pl_json *j, const char *key, const int32_t *ids, int n)
{
    pl_json_text(j, key);
    for (int i = 0; i < n; i++) {
        pl_json_text(j, i > 0 ? "," : "");
        pl_json_int(j, ids[i]);
    }
    pl_json_text(j, "]");
}

/* The part of a record that training reads. */
static int on_tokens(void *ctx, const pl_response *r, int n_before)
{
    making *k = ctx;
    (void)n_before;

    if (cli_stop)
        return pl_fail(&k->err, PL_E_STOPPED, "stopped by a signal; no rollouts were kept");
    if (!r->finish)
        return 0;
    pl_json_clear(&k->line);
    pl_json_text(&k->line, "{\"uid\":");
    pl_json_int(&k->line, r->uid);
    put_ids(&k->line, ",\"prompt_ids\":[", r->prompt, r->n_prompt);
    put_ids(&k->line, ",\"tokens\":[", r->tokens, r->n_tokens);
    pl_json_text(&k->line, "}\n");
    pl_status st = pl_json_check(&k->line, "rollout record", &k->err);
    if (st == PL_OK)
        st = pl_writer_put(k->writer, k->line.data, k->line.n, &k->err);
    k->n_tokens += r->n_tokens;
    k->n_samples++;
    const double now = run_seconds();
    if (now - k->said > 5) {
        k->said = now;
        fprintf(stderr, "rollouts: %lld of %lld tokens, %.0f tokens/s\n", (long long)k->n_tokens,
            (long long)k->n_wanted, (double)k->n_tokens / (now - k->t0));
    }
    return st != PL_OK;
}

/* The next prompt's samples, in the order of a run. */
static pl_status submit_group(making *k, pl_error *err)
{
    const run_rollout_options *r = &k->c->rollout;
    const int at = pl_dataset_order(k->set, k->i_group, k->c->data.shuffle, k->c->data.seed);
    const pl_prompt *p = &k->set->prompts[at];
    pl_status st = PL_OK;

    for (int64_t i = 0; i < r->n && st == PL_OK; i++) {
        const pl_request q = {.uid = (uint32_t)(k->i_group * r->n + i),
            .group = (uint32_t)k->i_group,
            .prompt = p->ids,
            .n_prompt = p->n_ids,
            .max_tokens = (int)k->c->data.max_response_length,
            .temperature = (float)r->temperature,
            .top_p = (float)r->top_p,
            .min_p = (float)r->min_p,
            .top_k = (int)r->top_k,
            .noise_key = pl_noise_key((uint64_t)r->seed),
            .purpose = PL_NOISE_SAMPLE,
            .ignore_eos = r->ignore_eos,
            .prompt_key = p->key};
        st = pl_engine_submit(k->engine, &q, err);
    }
    k->i_group++;
    return st;
}

static pl_status run_rounds(making *k, pl_error *err)
{
    pl_status st = PL_OK;
    int n_left = 0;

    do {
        int n_running, n_queued;
        pl_engine_counts(k->engine, &n_running, &n_queued);
        while (st == PL_OK && n_queued < k->c->rollout.n && k->n_tokens < k->n_wanted) {
            st = submit_group(k, err);
            pl_engine_counts(k->engine, &n_running, &n_queued);
        }
        if (st == PL_OK)
            st = pl_engine_round(k->engine, on_tokens, k, &n_left, err);
    } while (st == PL_OK && n_left > 0);
    if (st == PL_E_STOPPED) {
        *err = k->err;
        st = k->err.code;
    }
    return st;
}

static pl_status make_all(
    making *k, const cli_model *m, const char *path, const pl_log *log, pl_error *err)
{
    pl_engine_options o;
    int longest = 1;

    for (int i = 0; i < k->set->n; i++)
        longest = k->set->prompts[i].n_ids > longest ? k->set->prompts[i].n_ids : longest;
    const int max_ctx = longest + (int)k->c->data.max_response_length;
    if (max_ctx > pl_model_arch(m->model)->n_ctx)
        return pl_fail(err, PL_E_CONFIG,
            "prompt and response of %d tokens, the model's context is %d: lower "
            "data.max_response_length",
            max_ctx, pl_model_arch(m->model)->n_ctx);
    run_engine_options(k->c, max_ctx, &o);
    pl_status st = pl_engine_new(&k->engine, m->model, m->tokenizer, &o, log, err);
    if (st == PL_OK)
        st = pl_writer_open(&k->writer, path, err);
    if (st == PL_OK)
        st = run_rounds(k, err);
    if (st == PL_OK) {
        st = pl_writer_commit(k->writer, err);
        k->writer = NULL;
    }
    return st;
}

pl_status drafter_make_rollouts(const cli_model *m, const char *config, char **overrides,
    int n_overrides, const char *path, int64_t n_tokens, drafter_noise *noise, const pl_log *log,
    pl_error *err)
{
    run_config *c = calloc(1, sizeof *c);
    pl_dataset *set = NULL;
    making k = {.c = c, .n_wanted = n_tokens, .t0 = run_seconds()};

    if (!c)
        return pl_fail(err, PL_E_NOMEM, "no memory for a configuration");
    pl_status st = run_config_load(c, config, overrides, n_overrides, err);
    if (st == PL_OK)
        st = pl_dataset_open_any(
            &set, c->data.train_files, m->tokenizer, (int)c->data.max_prompt_length, err);
    if (st == PL_OK) {
        fprintf(stderr,
            "no --data: the model answers the %d prompts of '%s' until there are %lld tokens\n",
            set->n, c->data.train_files, (long long)n_tokens);
        k.set = set;
        st = make_all(&k, m, path, log, err);
    }
    if (st == PL_OK)
        fprintf(stderr, "rollouts: %lld samples, %lld tokens in %.0f s, kept in '%s'\n",
            (long long)k.n_samples, (long long)k.n_tokens, run_seconds() - k.t0, path);
    *noise = (drafter_noise){(uint64_t)c->rollout.seed, (float)c->rollout.temperature};
    pl_writer_abort(k.writer);
    pl_engine_free(k.engine);
    pl_json_done(&k.line);
    pl_dataset_free(set);
    free(c);
    return st;
}
