/* cli/run_config.c - the option tables of a run's own sections, and the checks across keys. */
#include "cli/run.h"
#include "core/file.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define R(field) offsetof(run_rollout_options, field)
#define S(field) offsetof(run_speculative_options, field)
#define T(field) offsetof(run_trainer_options, field)
#define ROLLOUT  "actor_rollout_ref.rollout."

static const pl_config_key rollout_keys[] = {
    {"actor_rollout_ref.model.path", R(model_path), PL_STRING, 0, 0, "", NULL,
        "GGUF file or Hugging Face directory of the initial policy"},
    {ROLLOUT "n", R(n), PL_INT, 1, 4096, "8", NULL, "samples of a prompt (the group)"},
    {ROLLOUT "temperature", R(temperature), PL_FLOAT, 0.01, 100, "1.0", NULL,
        "of the samples; log-probs are taken at it"},
    {ROLLOUT "top_k", R(top_k), PL_INT, 0, 1e9, "0", NULL, "keep the likeliest tokens; 0: all"},
    {ROLLOUT "top_p", R(top_p), PL_FLOAT, 1e-6, 1, "1.0", NULL,
        "keep the likeliest tokens up to this mass"},
    {ROLLOUT "min_p", R(min_p), PL_FLOAT, 0, 1, "0", NULL,
        "drop tokens below this share of the likeliest"},
    {ROLLOUT "seed", R(seed), PL_INT, 0, 9007199254740991.0, "0", NULL, "keys the sampling noise"},
    {ROLLOUT "max_num_seqs", R(max_num_seqs), PL_INT, 1, 1024, "64", NULL,
        "samples decoded at once"},
    {ROLLOUT "max_num_batched_tokens", R(max_rows), PL_INT, 64, 65536, "256", NULL,
        "rows of one pass: prefill, decode and drafts together"},
    {ROLLOUT "num_workers", R(num_workers), PL_INT, 0, 1024, "0", NULL,
        "worker processes, each with its share of the cores; 0: rollouts in the trainer's process"},
    {ROLLOUT "heartbeat_timeout", R(heartbeat_timeout), PL_INT, 1, 3600, "10", NULL,
        "seconds of silence after which a worker's samples go elsewhere; a worker says nothing "
        "during a pass of the model, so more than the longest of those"},
    {ROLLOUT "consolidate_below", R(consolidate_below), PL_INT, 0, 1024, "0", NULL,
        "when at most so many samples run in all, one worker takes them and the others train the "
        "drafter; 0: never"},
    {ROLLOUT "ignore_eos", R(ignore_eos), PL_BOOL, 0, 0, "false", NULL,
        "go on after the end token (benches)"},
    {ROLLOUT "val_kwargs.n", R(val_n), PL_INT, 1, 4096, "4", NULL, "samples of a held-out prompt"},
    {ROLLOUT "val_kwargs.temperature", R(val_temperature), PL_FLOAT, 0, 100, "1.0", NULL,
        "of the held-out samples"},
    {NULL, 0, PL_INT, 0, 0, NULL, NULL, NULL},
};

static const pl_config_key speculative_keys[] = {
    {"speculative.enable", S(enable), PL_BOOL, 0, 0, "true", NULL,
        "draft and verify; the text is the same either way"},
    {"speculative.method", S(method), PL_ENUM, 0, 0, "auto", "auto|suffix|eagle",
        "who drafts: the suffix automaton alone, or with a learned drafter; auto: with one when "
        "speculative.drafter.init names it"},
    {"speculative.max_depth", S(max_depth), PL_INT, 1, 63, "16", NULL, "levels of a draft tree"},
    {"speculative.max_rows", S(max_rows), PL_INT, 2, PL_DRAFT_MAX, "32", NULL,
        "verified rows of a sample and round"},
    {"speculative.controller", S(controller), PL_STRING, 0, 0, "goodput", NULL,
        "how much is drafted: goodput, off, or fixed:STEPS_TOPK_VERIFY"},
    {"speculative.suffix.min_match", S(suffix_min_match), PL_INT, 0, 31, "0", NULL,
        "shortest suffix match that proposes, tokens"},
    {"speculative.suffix.max_tokens", S(suffix_max_tokens), PL_INT, 1024, 1 << 24, "65536", NULL,
        "tokens that the automaton of one prompt holds"},
    {"speculative.suffix.decay", S(suffix_decay), PL_FLOAT, 0.01, 1, "0.7", NULL,
        "weight of a text per policy version of age"},
    {"speculative.drafter.init", S(init), PL_STRING, 0, 0, "", NULL,
        "the learned drafter: a directory of paceline drafter or of an EAGLE-3 drafter, or random "
        "(it drafts once it is better than nothing)"},
    {"speculative.eagle.spec_steps", S(spec_steps), PL_INT, 1, 16, "6", NULL,
        "levels of a learned tree"},
    {"speculative.eagle.spec_topk", S(spec_topk), PL_INT, 1, 8, "4", NULL,
        "children of a row of a learned tree"},
    {"speculative.eagle.window", S(window), PL_INT, 32, 4096, "256", NULL,
        "positions that the learned drafter looks back"},
    {"speculative.train.enable_drafter_training", S(train), PL_BOOL, 0, 0, "true", NULL,
        "train the learned drafter on the rollouts, in idle workers (num_workers=0: in a slice)"},
    {"speculative.train.buffer_mb", S(buffer_mb), PL_INT, 8, 1 << 20, "256", NULL,
        "megabytes of features that a worker keeps, never more"},
    {"speculative.train.batch_size_per_gpu", S(batch), PL_INT, 1, 64, "2", NULL,
        "windows of an optimizer step of one worker"},
    {"speculative.train.optim.lr", S(lr), PL_FLOAT, 0, 1, "1e-3", NULL,
        "learning rate of a drafter's random start; it falls with its steps to 3 %"},
    {"speculative.train.gate_tokens", S(gate_tokens), PL_INT, 1, 1e9, "2000", NULL,
        "tokens at least, held out or served, that versions are weighed on"},
    {"speculative.train.gate_samples", S(gate_samples), PL_INT, 2, 1e6, "8", NULL,
        "samples at least of them"},
    {"speculative.train.gate_seconds", S(gate_seconds), PL_INT, 0, 3600, "10", NULL,
        "seconds of training before a new version is weighed against the serving one"},
    {"speculative.train.min_workers_for_training", S(min_workers), PL_INT, 1, 1024, "1", NULL,
        "idle workers that begin a session"},
    {"speculative.train.max_session_seconds", S(session_seconds), PL_INT, 0, 86400, "0", NULL,
        "seconds that idle workers train in a step at most; 0: until its last response"},
    {"speculative.train.max_versions", S(max_versions), PL_INT, 2, 1000, "16", NULL,
        "published drafters that are kept"},
    {"speculative.train.slice", S(slice), PL_FLOAT, 0, 1, "0.08", NULL,
        "num_workers=0: share of a step that trains the drafter"},
    {NULL, 0, PL_INT, 0, 0, NULL, NULL, NULL},
};

static const pl_config_key trainer_keys[] = {
    {"trainer.total_training_steps", T(total_training_steps), PL_INT, 0, 1e9, "10", NULL,
        "steps of the run"},
    {"trainer.save_freq", T(save_freq), PL_INT, 0, 1e9, "10", NULL,
        "steps between checkpoints; 0: only at the end"},
    {"trainer.max_actor_ckpt_to_keep", T(max_ckpt_to_keep), PL_INT, 0, 1e6, "2", NULL,
        "checkpoints that are kept, the newest; 0: all"},
    {"trainer.test_freq", T(test_freq), PL_INT, 0, 1e9, "0", NULL,
        "steps between held-out evaluations; 0: only before and after"},
    {"trainer.val_before_train", T(val_before_train), PL_BOOL, 0, 0, "true", NULL,
        "evaluate the held-out prompts before the first step"},
    {"trainer.resume_mode", T(resume_mode), PL_ENUM, 0, 0, "auto", "auto|disable",
        "auto: continue an existing run directory; disable: refuse one"},
    {"trainer.default_local_dir", T(default_local_dir), PL_STRING, 0, 0, "", NULL,
        "the run directory; empty: runs/<experiment_name>"},
    {"trainer.experiment_name", T(experiment_name), PL_STRING, 0, 0, "default", NULL,
        "names the run"},
    {"trainer.compare_prompts", T(compare_prompts), PL_INT, 0, 65536, "8", NULL,
        "held-out prompts that each drafter answers at the end, as far as ten seconds go; 0: none"},
    {"trainer.audit", T(audit), PL_FLOAT, 0, 1, "1.0", NULL,
        "share of the rollouts' tokens that the trainer draws anew from its own logits"},
    {"trainer.stall_seconds", T(stall_seconds), PL_INT, 0, 1e6, "60", NULL,
        "say what is awaited when nothing has moved for so long; 0: never"},
    {"trainer.trace", T(trace), PL_BOOL, 0, 0, "true", NULL,
        "keep a trace of what was sampled, for paceline replay: about 3 bytes a token"},
    {"trainer.threads", T(threads), PL_INT, 0, 1024, "0", NULL, "0: one a core"},
    {"trainer.isa", T(isa), PL_ENUM, 0, 0, "auto", "auto|amx|avx512|avx2|ref", "backend"},
    {NULL, 0, PL_INT, 0, 0, NULL, NULL, NULL},
};

/* The short names that NAMES 5.7 promises. */
static const pl_config_alias aliases[] = {
    {"rollout.", "actor_rollout_ref.rollout."},
    {"actor.", "actor_rollout_ref.actor."},
    {"model.", "actor_rollout_ref.model."},
    {NULL, NULL},
};

void run_config_sections(run_config *c, pl_config_section sections[RUN_SECTIONS])
{
    const pl_config_section all[RUN_SECTIONS] = {
        {pl_data_keys, &c->data},
        {rollout_keys, &c->rollout},
        {pl_actor_keys, &c->actor},
        {speculative_keys, &c->speculative},
        {trainer_keys, &c->trainer},
        {pl_reward_keys, &c->reward},
    };
    memcpy(sections, all, sizeof all);
}

/* "fixed:STEPS_TOPK_VERIFY": STEPS levels, TOPK children a row, VERIFY rows a tree. */
static int parse_fixed(const char *text, int *steps, int *topk, int *verify)
{
    int n = 0;
    return sscanf(text, "fixed:%d_%d_%d%n", steps, topk, verify, &n) == 3 && text[n] == 0 &&
           *steps >= 1 && *steps <= 63 && *topk >= 1 && *verify >= 2 && *verify <= PL_DRAFT_MAX;
}

static pl_status check(const run_config *c, pl_error *err)
{
    const char *controller = c->speculative.controller;
    int steps, topk, verify;

    if (!c->rollout.model_path[0])
        return pl_fail(err, PL_E_CONFIG,
            "actor_rollout_ref.model.path is empty: name a GGUF file or a model directory");
    if (!c->data.train_files[0])
        return pl_fail(err, PL_E_CONFIG, "data.train_files is empty: name a JSONL file of prompts");
    if (strcmp(controller, "goodput") != 0 && strcmp(controller, "off") != 0 &&
        !parse_fixed(controller, &steps, &topk, &verify))
        return pl_fail(err, PL_E_CONFIG,
            "speculative.controller '%s' is none of goodput, off, fixed:STEPS_TOPK_VERIFY "
            "(as fixed:6_4_16, at most %d rows)",
            controller, (int)PL_DRAFT_MAX);
    if (strcmp(c->speculative.method, "eagle") == 0 && !c->speculative.init[0])
        return pl_fail(err, PL_E_CONFIG,
            "speculative.method eagle wants speculative.drafter.init: a drafter's directory "
            "(paceline "
            "drafter warmup makes one), or random");
    if (c->actor.ppo_mini_batch_size > c->data.train_batch_size)
        return pl_fail(err, PL_E_CONFIG,
            "actor_rollout_ref.actor.ppo_mini_batch_size %lld is more than data.train_batch_size "
            "%lld",
            (long long)c->actor.ppo_mini_batch_size, (long long)c->data.train_batch_size);
    if (c->data.train_batch_size * c->rollout.n > 1 << 20)
        return pl_fail(err, PL_E_CONFIG, "%lld prompts of %lld samples are too many for a step",
            (long long)c->data.train_batch_size, (long long)c->rollout.n);
    return PL_OK;
}

pl_status run_config_parse(
    run_config *c, const char *text, size_t n_bytes, const char *name, pl_error *err)
{
    pl_config_section sections[RUN_SECTIONS];

    memset(c, 0, sizeof *c);
    run_config_sections(c, sections);
    const pl_status st = pl_config_parse(sections, RUN_SECTIONS, aliases, text, n_bytes, name, err);
    return st == PL_OK ? check(c, err) : st;
}

pl_status run_config_load(
    run_config *c, const char *path, char *const *overrides, int n, pl_error *err)
{
    pl_config_section sections[RUN_SECTIONS];

    memset(c, 0, sizeof *c);
    run_config_sections(c, sections);
    const pl_status st = pl_config_load(sections, RUN_SECTIONS, aliases, path, overrides, n, err);
    if (st != PL_OK || (path == NULL && n == 0))
        return st;
    if (!c->trainer.default_local_dir[0] &&
        snprintf(c->trainer.default_local_dir, PL_CONFIG_STR, "runs/%s",
            c->trainer.experiment_name) >= PL_CONFIG_STR)
        return pl_fail(err, PL_E_CONFIG, "trainer.experiment_name is too long");
    return check(c, err);
}

void run_engine_options(const run_config *c, int max_ctx, pl_engine_options *o)
{
    const char *controller = c->speculative.controller;
    int steps = 0, topk = 0, verify = 0;

    pl_engine_defaults(o);
    o->max_num_seqs = (int)c->rollout.max_num_seqs;
    o->max_rows = (int)c->rollout.max_rows;
    if (o->max_rows < o->max_num_seqs)
        o->max_rows = o->max_num_seqs;
    o->max_ctx = max_ctx;
    o->prefault = 1;
    o->speculative = c->speculative.enable;
    o->max_spec_rows = (int)c->speculative.max_rows;
    o->max_spec_depth = (int)c->speculative.max_depth;
    o->controller = PL_CONTROLLER_GOODPUT;
    if (strcmp(controller, "off") == 0)
        o->controller = PL_CONTROLLER_OFF;
    if (parse_fixed(controller, &steps, &topk, &verify)) {
        o->controller = PL_CONTROLLER_FIXED;
        o->fixed_rows = verify;
        o->max_spec_rows = verify;
        o->max_spec_depth = steps;
        o->suffix.max_children = topk;
    }
    if (run_has_learned(c)) {
        o->learned_window = (int)c->speculative.window;
        o->learned_depth = steps > 0 ? steps : (int)c->speculative.spec_steps;
        o->learned_topk = topk > 0 ? topk : (int)c->speculative.spec_topk;
    }
    o->suffix.min_match = (int)c->speculative.suffix_min_match;
    o->suffix.max_tokens = (int)c->speculative.suffix_max_tokens;
    o->suffix.decay = (float)c->speculative.suffix_decay;
}

int run_has_learned(const run_config *c)
{
    return c->speculative.enable && c->speculative.init[0] &&
           strcmp(c->speculative.method, "suffix") != 0;
}

/* As YAML; *returns owned*, NULL without memory. */
static char *resolved(const run_config *c, size_t *n)
{
    pl_config_section sections[RUN_SECTIONS];
    run_config copy = *c;
    char *text = NULL;
    FILE *f = open_memstream(&text, n);

    if (!f)
        return NULL;
    run_config_sections(&copy, sections);
    pl_config_dump(sections, RUN_SECTIONS, 0, f);
    if (fclose(f) == 0)
        return text;
    free(text);
    return NULL;
}

static void config_path(const run_config *c, char path[PL_CONFIG_STR + 16])
{
    snprintf(path, PL_CONFIG_STR + 16, "%s/config.yaml", c->trainer.default_local_dir);
}

int run_config_is_written(const run_config *c)
{
    char path[PL_CONFIG_STR + 16], *there = NULL;
    size_t n = 0, n_there = 0;
    char *text = resolved(c, &n);
    pl_error none = {0};

    config_path(c, path);
    const int is_same = text && pl_file_read(&there, &n_there, path, 1 << 20, &none) == PL_OK &&
                        n == n_there && memcmp(text, there, n) == 0;
    free(there);
    free(text);
    return is_same;
}

pl_status run_config_write(const run_config *c, pl_error *err)
{
    char path[PL_CONFIG_STR + 16];
    size_t n = 0;
    char *text = resolved(c, &n);

    if (!text)
        return pl_fail(err, PL_E_NOMEM, "config.yaml: no memory");
    config_path(c, path);
    const pl_status st = pl_file_write(path, text, n, err);
    free(text);
    return st;
}

uint64_t run_config_hash(const run_config *c)
{
    pl_config_section sections[RUN_SECTIONS];
    run_config copy = *c;
    char *text = NULL;
    size_t n = 0;

    /* Length, places, threads and drafting do not. */
    memset(&copy.speculative, 0, sizeof copy.speculative);
    memset(&copy.trainer, 0, sizeof copy.trainer);
    if (strcmp(c->actor.lr_scheduler_type, "cosine") == 0) /* it ends at the last step */
        copy.trainer.total_training_steps = c->trainer.total_training_steps;
    copy.rollout.max_num_seqs = copy.rollout.max_rows = copy.rollout.val_n = 0;
    copy.rollout.num_workers = 0;
    copy.rollout.heartbeat_timeout = copy.rollout.consolidate_below = 0;
    copy.rollout.val_temperature = 0;
    memset(copy.data.val_files, 0, sizeof copy.data.val_files);
    memset(copy.data.train_files, 0, sizeof copy.data.train_files); /* their prompts are hashed */
    copy.data.max_prompt_length = 0;
    memset(copy.actor.activations, 0, sizeof copy.actor.activations);
    FILE *f = open_memstream(&text, &n);
    if (!f)
        return 0;
    run_config_sections(&copy, sections);
    pl_config_dump(sections, RUN_SECTIONS, 0, f);
    fclose(f);
    const uint64_t h = pl_hash64(text, n);
    free(text);
    return h;
}

uint64_t run_data_hash(const pl_dataset *d)
{
    uint64_t h = 0;
    for (int i = 0; i < d->n; i++) {
        const pl_prompt *p = &d->prompts[i];
        const uint64_t mix[3] = {h, p->key, pl_hash64(p->ground_truth, strlen(p->ground_truth))};
        h = pl_hash64(mix, sizeof mix);
    }
    return h;
}
