/* cli/bench_arms.c - paceline bench arms: the same steps rolled out by each arm in turn, the policy
 * trained once.
 *
 * An arm is a run's own coordinator and workers (adaptive-1: the engine of this process); this
 * process is the policy trainer of them all.  Text cannot differ between arms, so every step is
 * compared bit for bit and only the clock tells them apart.  Every (step, arm) is a line of
 * DIR/arms.csv and DIR holds checkpoints: an interrupted bench goes on at its next step. */
#include "cli/bench_arms.h"
#include "cli/run.h"
#include "core/file.h"
#include "core/rng.h"

#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ROLLOUT "actor_rollout_ref.rollout."

enum { MAX_WORKERS = 2, KEYS_MAX = 16, OVERRIDES_MAX = 64 };

static const struct arm_form {
    const char *name;
    int n_workers; /* 0: in this process */
    int is_speculative, is_learned, is_trained;
    int is_always; /* takes part in every step, not in the first, middle and last ones only */
} forms[ARMS] = {
    [NONE] = {"none", 2, 0, 0, 0, 1},
    [NONE_1] = {"none-1", 1, 0, 0, 0, 0},
    [SUFFIX] = {"suffix", 2, 1, 0, 0, 0},
    [FROZEN] = {"frozen", 2, 1, 1, 0, 0},
    [ADAPTIVE] = {"adaptive", 2, 1, 1, 1, 1},
    [FROZEN_1] = {"frozen-1", 1, 1, 1, 0, 0},
    [ADAPTIVE_1] = {"adaptive-1", 0, 1, 1, 1, 0},
};

typedef struct arm {
    const struct arm_form *form;
    int is_used, is_open;
    int is_stale; /* of this process, and the policy has changed since */
    char dir[PL_CONFIG_STR];
    int lock_fd;
    run_config config;
    run_scorer scorer;
    run_source source;
    run_batch batch;
    bench_child coordinator, workers[MAX_WORKERS];
    double wall_s; /* of the step at hand */
} arm;

typedef struct arms {
    bench *b;
    char dir[PL_CONFIG_STR - 128];
    run_config config; /* of the workload */
    pl_log log;
    cli_model m;
    run_data data;
    pl_trainer *trainer;
    pl_run_state state;
    arm arm[ARMS];
    const pl_prompt **prompts;
    FILE *csv;
    int total;
} arms;

/* ---- options ---- */

static pl_status choose_arms(arms *a, pl_error *err)
{
    const char *list = a->b->arms;

    for (const char *p = list; *p;) {
        const size_t n = strcspn(p, ",");
        int k = 0;
        while (k < ARMS && (strlen(forms[k].name) != n || strncmp(forms[k].name, p, n) != 0))
            k++;
        if (k == ARMS)
            return pl_fail(err, PL_E_USAGE,
                "--arms: '%.*s' is none of none, none-1, suffix, frozen, adaptive, frozen-1, "
                "adaptive-1",
                (int)n, p);
        a->arm[k].is_used = 1;
        p += n + (p[n] == ',');
    }
    if (!a->arm[NONE].is_used)
        return pl_fail(err, PL_E_USAGE, "--arms wants the arm none: the others are measured by it");
    return PL_OK;
}

/* key=value arguments, as a command line has them. */
typedef struct keys {
    int n;
    char text[KEYS_MAX][PL_CONFIG_STR + 64];
} keys;

static void add_key(keys *k, const char *key, const char *value)
{
    if (k->n < KEYS_MAX)
        snprintf(k->text[k->n++], sizeof k->text[0], "%s=%s", key, value);
}

static void add_form(keys *k, const struct arm_form *f, const char *drafter)
{
    char workers[16];

    snprintf(workers, sizeof workers, "%d", f->n_workers);
    add_key(k, ROLLOUT "num_workers", workers);
    add_key(k, "speculative.enable", f->is_speculative ? "true" : "false");
    add_key(k, "speculative.method", f->is_learned ? "eagle" : "suffix");
    add_key(k, "speculative.train.enable_drafter_training", f->is_trained ? "true" : "false");
    if (f->is_learned)
        add_key(k, "speculative.drafter.init", drafter);
}

static pl_status load_config(const arms *a, const arm *x, run_config *out, pl_error *err)
{
    const bench *b = a->b;
    char *overrides[KEYS_MAX + OVERRIDES_MAX];
    int n = 0;
    keys *k = calloc(1, sizeof *k);

    if (!k)
        return pl_fail(err, PL_E_NOMEM, "bench arms: no memory");
    add_key(k, "actor_rollout_ref.model.path", b->model);
    add_key(k, "trainer.default_local_dir", x ? x->dir : a->dir);
    add_key(k, "trainer.stall_seconds", "0");
    add_key(k, ROLLOUT "heartbeat_timeout", "3600"); /* arms wait for one another */
    if (x)
        add_form(k, x->form, b->drafter);
    while (n < k->n) {
        overrides[n] = k->text[n];
        n++;
    }
    for (int i = 0; i < b->n_overrides && i < OVERRIDES_MAX; i++)
        overrides[n++] = b->overrides[i];
    const pl_status st = run_config_load(out, b->config, overrides, n, err);
    free(k);
    return st;
}

/* ---- an arm's processes ---- */

static pl_status start_processes(arm *x, const bench *b, int n_threads, pl_error *err)
{
    char program[4096], threads[16], name[32];
    const int each = n_threads / x->form->n_workers;

    snprintf(threads, sizeof threads, "%d", each > 0 ? each : 1);
    pl_status st = bench_program(program, sizeof program, "", err);
    const char *const coordinator[] = {program, "coordinator", x->dir, NULL};
    const char *const worker[] = {program, "worker", "--connect", x->dir, "--name", name,
        "--threads", threads, "--isa", b->isa, NULL};
    if (st == PL_OK)
        st = bench_child_start(&x->coordinator, coordinator, err);
    for (int i = 0; i < x->form->n_workers && st == PL_OK; i++) {
        snprintf(name, sizeof name, "worker-%d", i);
        st = bench_child_start(&x->workers[i], worker, err);
    }
    return st;
}

/* What another sitting left of the arm, but for its drafter. */
static pl_status clean(const arm *x, pl_error *err)
{
    static const char *const parts[] = {"ledger", "weights", "id", "endpoint"};
    char path[PL_CONFIG_STR + 16];
    pl_status st = PL_OK;

    for (size_t i = 0; i < sizeof parts / sizeof *parts && st == PL_OK; i++) {
        snprintf(path, sizeof path, "%s/%s", x->dir, parts[i]);
        if (unlink(path) != 0)
            st = pl_dir_remove(path, err);
    }
    return st;
}

/* All arms are there at once: on a machine that is too small for them they would take the files of
 * one another out of memory, and the clock would show that. */
static pl_status configure_arms(arms *a, pl_error *err)
{
    const pl_arch *arch = pl_source_arch(a->m.source);
    const int longest = run_data_longest(&a->data);
    pl_status st = PL_OK;
    run_plan all, p;

    run_plan_make(&a->config, arch, longest, a->b->n_threads, &all);
    all.total -= all.workers + all.passes + all.drafter;
    for (int k = 0; k < ARMS && st == PL_OK; k++) {
        arm *x = &a->arm[k];
        if (!x->is_used)
            continue;
        snprintf(x->dir, sizeof x->dir, "%s/arm-%s", a->dir, x->form->name);
        st = load_config(a, x, &x->config, err);
        if (st != PL_OK)
            return st;
        run_plan_make(&x->config, arch, longest, a->b->n_threads, &p);
        all.total += p.workers + p.passes + p.drafter;
    }
    st = run_plan_check(&all, err);
    return st == PL_OK ? st : pl_wrap(err, st, "the arms are there at once; --arms takes fewer");
}

static pl_status open_arm(arms *a, arm *x, pl_error *err)
{
    pl_status st = run_lock_directory(x->dir, &x->lock_fd, err);
    if (st == PL_OK)
        st = clean(x, err);
    if (st == PL_OK)
        st = run_config_write(&x->config, err);
    if (st == PL_OK && x->form->n_workers > 0)
        st = start_processes(x, a->b, a->b->n_threads, err);
    return st;
}

static void close_arm(arm *x)
{
    if (x->is_open)
        x->source.close(x->source.self);
    run_batch_done(&x->batch);
    for (int i = 0; i < MAX_WORKERS; i++) {
        if (x->workers[i].pid > 0)
            kill(x->workers[i].pid, SIGTERM);
        (void)bench_child_end(&x->workers[i]);
    }
    if (x->coordinator.pid > 0)
        kill(x->coordinator.pid, SIGTERM);
    (void)bench_child_end(&x->coordinator);
    if (x->lock_fd >= 0)
        close(x->lock_fd);
}

/* Join the arm as its trainer, with the policy as it is. */
static pl_status join(arms *a, arm *x, pl_error *err)
{
    const int longest = run_data_longest(&a->data);
    pl_status st;

    x->scorer.tokenizer = a->m.tokenizer;
    if (x->form->n_workers > 0)
        st = run_remote_open(&x->source, &x->config, &a->m, pl_trainer_masters(a->trainer), longest,
            &x->scorer, &a->log, err);
    else
        st = run_local_open(&x->source, &x->config, &a->m, longest, &x->scorer, &a->log, err);
    if (st != PL_OK)
        return pl_wrap(err, st, "arm %s", x->form->name);
    x->is_open = 1;
    return x->source.begin(x->source.self, a->state.policy_version, err);
}

/* An arm that skips steps leaves, and joins anew under the version of that time. */
static void part(arm *x)
{
    x->is_stale = 1;
    if (!x->is_open || x->form->n_workers == 0)
        return;
    x->source.close(x->source.self);
    memset(&x->source, 0, sizeof x->source);
    x->is_open = 0;
}

/* ---- life ---- */

/* What may not change between two sittings. */
static pl_status identify(const arms *a, uint64_t *hash, pl_error *err)
{
    char path[PL_CONFIG_STR];
    pl_file f = {0};

    snprintf(path, sizeof path, "%s/model.safetensors", a->b->drafter);
    const pl_status st = pl_file_open(&f, path, err);
    if (st == PL_OK)
        *hash =
            run_config_hash(&a->config) ^ run_data_hash(a->data.train) ^ pl_hash64(f.data, f.size);
    pl_file_close(&f);
    return st;
}

static pl_status resume(arms *a, pl_error *err)
{
    char dir[4096];
    pl_error none = {0};
    uint64_t hash = 0;
    const pl_status known = identify(a, &hash, err);
    if (known != PL_OK)
        return known;
    a->state.config_hash = hash;
    const pl_status found = pl_checkpoint_find(a->dir, dir, sizeof dir, &none);

    if (found == PL_E_NOENT)
        return PL_OK;
    if (found != PL_OK)
        return pl_fail(err, found, "%s", none.msg);
    const pl_status st = pl_checkpoint_load(dir, a->trainer, &a->state, err);
    if (st == PL_OK && a->state.config_hash != hash)
        return pl_fail(err, PL_E_USAGE,
            "--dir '%s' was begun with another model, drafter or configuration: give the same, or "
            "another --dir",
            a->dir);
    if (st == PL_OK)
        fprintf(
            a->b->notes, "going on after step %lld of '%s'\n", (long long)a->state.step, a->dir);
    return st;
}

static const char csv_head[] =
    "seed,step,arm,wall_s,tokens,tokens_per_s,accept_length,tail_tokens_per_s,idle_s,train_s,"
    "gate_s,pack_s,optimizer_steps,trained_tokens,loss,alpha_1,drafter_version,swaps,update_s,"
    "reward,drafted_steps,drafted_emitted,tail_s,tail_steps,tail_emitted\n";

static pl_status open_csv(arms *a, pl_error *err)
{
    char path[PL_CONFIG_STR], head[sizeof csv_head + 1] = "";

    snprintf(path, sizeof path, "%s/arms.csv", a->dir);
    a->csv = fopen(path, "a+");
    if (!a->csv)
        return pl_fail(err, PL_E_IO, "'%s' cannot be written", path);
    if (!fgets(head, sizeof head, a->csv))
        fputs(csv_head, a->csv);
    else if (strcmp(head, csv_head) != 0)
        return pl_fail(err, PL_E_FORMAT,
            "'%s' has other columns than this build writes: take another --dir", path);
    (void)fseek(a->csv, 0, SEEK_END); /* C wants it between reading and writing */
    return PL_OK;
}

static pl_status open_trainer(arms *a, pl_error *err)
{
    float *masters = a->m.masters;
    pl_actor_options actor = a->config.actor;
    run_plan plan;

    run_plan_make(&a->config, pl_source_arch(a->m.source), run_data_longest(&a->data),
        a->b->n_threads, &plan);
    snprintf(actor.activations, sizeof actor.activations, "%s", plan.keep ? "keep" : "recompute");
    a->m.masters = NULL; /* taken */
    return pl_trainer_new(&a->trainer, a->m.model, masters, &actor,
        run_data_longest(&a->data) + (int)a->config.data.max_response_length, a->total, &a->log,
        err);
}

static pl_status open_all(arms *a, pl_error *err)
{
    pl_status st = choose_arms(a, err);
    if (st == PL_OK && !a->b->dir)
        st = pl_fail(err, PL_E_USAGE, "bench arms wants --dir DIR, where it can go on");
    if (st == PL_OK && !a->b->drafter)
        st = pl_fail(err, PL_E_USAGE,
            "bench arms wants --drafter DIR: a drafter of paceline drafter warmup");
    if (st == PL_OK && snprintf(a->dir, sizeof a->dir, "%s", a->b->dir) >= (int)sizeof a->dir)
        st = pl_fail(err, PL_E_USAGE, "--dir '%.60s...' is too long", a->b->dir);
    if (st == PL_OK)
        st = pl_dir_make(a->dir, err);
    if (st == PL_OK)
        st = load_config(a, NULL, &a->config, err);
    if (st == PL_OK && strcmp(a->config.rollout.model_path, a->b->model) != 0)
        st = pl_fail(err, PL_E_USAGE, "bench arms takes its model by --model, not as '%s'",
            a->config.rollout.model_path);
    if (st == PL_OK)
        st = bench_open(a->b, &a->m, 1, err);
    if (st == PL_OK)
        st = run_data_open(
            &a->data, &a->config, a->m.tokenizer, pl_source_arch(a->m.source)->n_ctx, err);
    a->total = a->b->steps > 1 ? (int)a->b->steps : (int)a->config.trainer.total_training_steps;
    a->total = a->b->quick ? 2 : a->total;
    if (st == PL_OK)
        st = configure_arms(a, err);
    for (int k = 0; k < ARMS && st == PL_OK; k++)
        if (a->arm[k].is_used)
            st = run_drafting_check(&a->arm[k].config, a->m.model, err);
    if (st == PL_OK)
        st = open_trainer(a, err);
    if (st == PL_OK)
        st = resume(a, err);
    a->prompts = calloc((size_t)a->config.data.train_batch_size, sizeof *a->prompts);
    if (st == PL_OK && !a->prompts)
        st = pl_fail(err, PL_E_NOMEM, "no memory for the prompts of a step");
    if (st == PL_OK)
        st = open_csv(a, err);
    for (int k = 0; k < ARMS && st == PL_OK; k++)
        if (a->arm[k].is_used)
            st = open_arm(a, &a->arm[k], err);
    return st;
}

static void close_all(arms *a)
{
    for (int k = 0; k < ARMS; k++)
        close_arm(&a->arm[k]);
    if (a->csv)
        fclose(a->csv);
    pl_trainer_free(a->trainer);
    free(a->prompts);
    run_data_close(&a->data);
    cli_model_close(&a->m);
}

/* ---- a step ---- */

/* The first three steps, three in the middle, the last quarter. */
static int takes_part(const arms *a, const arm *x, int64_t step)
{
    const int64_t middle = a->total / 2 - 1, last = a->total - a->total / 4;
    return x->is_used && (x->form->is_always || step <= 3 ||
                             (step >= middle && step < middle + 3) || step > last);
}

static pl_status roll_out(arms *a, arm *x, int64_t step, pl_error *err)
{
    const run_config *c = &a->config;
    const run_report quiet = {0};
    const int n = (int)c->data.train_batch_size;
    run_batch *b = &x->batch;
    const run_sampling s = {.temperature = (float)c->rollout.temperature,
        .top_p = (float)c->rollout.top_p,
        .min_p = (float)c->rollout.min_p,
        .top_k = (int)c->rollout.top_k,
        .ignore_eos = c->rollout.ignore_eos,
        .speculative = x->form->is_speculative ? PL_SPECULATE_ON : PL_SPECULATE_OFF,
        .max_tokens = (int)c->data.max_response_length,
        .seed = (uint64_t)c->rollout.seed,
        .purpose = PL_NOISE_SAMPLE};

    pl_status st = PL_OK;

    if (!x->is_open)
        st = join(a, x, err);
    else if (x->is_stale)
        st = x->source.begin(x->source.self, a->state.policy_version, err);
    if (st != PL_OK)
        return st;
    x->is_stale = 0;
    for (int i = 0; i < n; i++)
        a->prompts[i] = &a->data.train->prompts[pl_dataset_order(
            a->data.train, a->state.next_group + i, c->data.shuffle, c->data.seed)];
    b->prompts = a->prompts;
    b->n_groups = n;
    b->n = (int)c->rollout.n;
    b->first_uid = (uint32_t)((uint64_t)a->state.next_group * (uint64_t)c->rollout.n);
    b->id = (uint64_t)RUN_TRAIN << 32 | (uint64_t)step;
    b->report = &quiet;
    b->phase = x->form->name;
    const double t0 = bench_now();
    st = x->source.collect(x->source.self, b, &s, err);
    x->wall_s = bench_now() - t0; /* the slice of adaptive-1 counts */
    return st == PL_OK ? st : pl_wrap(err, st, "arm %s", x->form->name);
}

static double accept_length(const pl_engine_stats *s)
{
    return s->n_drafted_steps > 0 ? (double)s->n_drafted_emitted / (double)s->n_drafted_steps : 1;
}

static void record(arms *a, arm *x, int64_t step, double update_s)
{
    const run_draft_figures *d = &x->batch.drafting;
    const pl_engine_stats *s = &x->batch.stats;
    const arm *none = &a->arm[NONE];
    const double tail = s->tail_s > 0 ? (double)s->n_tail_emitted / s->tail_s : 0;

    fprintf(a->csv,
        "%lld,%lld,%s,%.3f,%lld,%.1f,%.3f,%.1f,%.2f,%.2f,%.2f,%.2f,%lld,%lld,%.3f,%.3f,%u,%lld,"
        "%.2f,%.4f,%lld,%lld,%.3f,%lld,%lld\n",
        (long long)a->config.rollout.seed, (long long)step, x->form->name, x->wall_s,
        (long long)x->batch.n_tokens, (double)x->batch.n_tokens / x->wall_s, accept_length(s), tail,
        d->idle_s, d->train_s, d->gate_s, d->pack_s, (long long)d->n_steps, (long long)d->n_tokens,
        d->loss, d->alpha[0], d->version, (long long)d->n_swaps, update_s,
        run_batch_reward(&x->batch), (long long)s->n_drafted_steps, (long long)s->n_drafted_emitted,
        s->tail_s, (long long)s->n_tail_steps, (long long)s->n_tail_emitted);
    fflush(a->csv);
    fprintf(a->b->notes, "  step %lld %-10s %7.2f s  x %.3f  accept %.2f", (long long)step,
        x->form->name, x->wall_s, none->wall_s / x->wall_s, accept_length(s));
    if (none->batch.stats.n_tail_emitted > 0 && tail > 0)
        fprintf(a->b->notes, "  tail x %.2f",
            tail * none->batch.stats.tail_s / (double)none->batch.stats.n_tail_emitted);
    fprintf(a->b->notes, "  drafter v%u\n", d->version);
}

static pl_status compare(const arms *a, int64_t step, pl_error *err)
{
    for (int k = 0; k < ARMS; k++)
        if (takes_part(a, &a->arm[k], step) &&
            run_batch_differ(&a->arm[NONE].batch, &a->arm[k].batch) > 0)
            return pl_fail(err, PL_E_NUMERIC,
                "step %lld: arm %s gave another text than none: law 1 is broken on this machine",
                (long long)step, forms[k].name);
    return PL_OK;
}

static pl_status train(arms *a, int64_t step, double *update_s, pl_error *err)
{
    run_batch *b = &a->arm[NONE].batch;
    pl_step_stats u;

    const pl_status st =
        pl_trainer_step(a->trainer, step, b->samples, b->n_groups, b->n, NULL, NULL, NULL, &u, err);
    *update_s = u.update_s;
    if (st != PL_OK)
        return st;
    a->state.step = step;
    a->state.next_group += b->n_groups;
    a->state.policy_version++;
    return PL_OK;
}

static pl_status run_step(arms *a, int64_t step, pl_error *err)
{
    double update_s = 0;
    pl_status st = PL_OK;

    for (int i = 0; i < ARMS && st == PL_OK; i++) {
        arm *x = &a->arm[(i + step) % ARMS]; /* each is first in turn */
        if (takes_part(a, x, step))
            st = roll_out(a, x, step, err);
        else if (x->is_used)
            part(x);
    }
    if (st == PL_OK)
        st = compare(a, step, err);
    if (st == PL_OK)
        st = train(a, step, &update_s, err);
    for (int k = 0; k < ARMS && st == PL_OK; k++) {
        arm *x = &a->arm[k];
        if (!takes_part(a, x, step))
            continue;
        x->batch.update_s = update_s;
        record(a, x, step, update_s);
        if (takes_part(a, x, step + 1))
            st = x->source.consume(x->source.self, step, &x->batch, a->state.policy_version, err);
    }
    if (st == PL_OK)
        st = pl_checkpoint_save(a->dir, a->trainer, a->m.tokenizer, NULL, &a->state, 1, err);
    return st;
}

static pl_status report(const arms *a, pl_error *err)
{
    const char *names[ARMS];

    for (int k = 0; k < ARMS; k++)
        names[k] = forms[k].name;
    return bench_arms_report(a->b, a->dir, a->config.rollout.seed, a->total, names, err);
}

pl_status bench_arms(bench *b, pl_error *err)
{
    arms *a = calloc(1, sizeof *a);

    if (!a)
        return pl_fail(err, PL_E_NOMEM, "bench arms: no memory");
    a->b = b;
    a->log = (pl_log){PL_LOG_WARN, STDERR_FILENO, isatty(STDERR_FILENO)};
    for (int k = 0; k < ARMS; k++) {
        a->arm[k].form = &forms[k];
        a->arm[k].lock_fd = -1;
    }
    cli_catch_signals(0);
    pl_status st = open_all(a, err);
    while (st == PL_OK && a->state.step < a->total && !cli_stop)
        st = run_step(a, a->state.step + 1, err);
    if (st == PL_OK && cli_stop)
        st = pl_fail(err, PL_E_STOPPED, "stopped after step %lld: the same command goes on there",
            (long long)a->state.step);
    if (st == PL_OK)
        st = report(a, err);
    close_all(a);
    free(a);
    return st;
}
