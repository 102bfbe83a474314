/* cli/run_loop.c - the loop of rollout, reward, update, record, checkpoint.
 *
 *   1. configuration, model, data, memory plan          [open_run]
 *   2. continue at the last whole checkpoint, if any    [resume]
 *   3. held-out reward before                           [evaluate]
 *   4. each step: rollouts, update, records, checkpoint [run_step]
 *   5. held-out reward after, speculation on and off compared, closing table [close_run]
 *
 * rollout/ and trainer/ do not know each other: what passes between them is pl_response, and where
 * it comes from, this process or others, only the run_source knows. */
#include "cli/run.h"
#include "core/file.h"
#include "core/rng.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

typedef struct run {
    run_config config;
    int is_remote; /* rollouts come from workers */
    pl_log log;
    run_report report;
    run_plan plan;
    cli_model m;
    run_data data;
    pl_rewarder *rewarder; /* reward.command; NULL: built-in verifiers */
    run_scorer scorer;
    run_source source;
    pl_trainer *trainer;
    run_watch *watch; /* records, and what monitors see */
    pl_run_state state;
    int64_t saved_step; /* of the newest checkpoint */
    int lock_fd;
    run_batch batch, eval;
    const pl_prompt **prompts; /* [train_batch_size] of the step */
    const pl_prompt **held_out;
    pl_engine_stats totals; /* of the training rollouts */
    int n_lines;
    double drafted_before; /* acceptance length of the step before, where it drafted */
    double elapsed_before; /* seconds of earlier sittings */
} run;

static const char *run_dir(const run *r)
{
    return r->config.trainer.default_local_dir;
}

/* ---- checkpoints ---- */

/* A failed save does not end the run: the checkpoint before it stays whole. */
static pl_status save(run *r, pl_error *err)
{
    const double t0 = run_seconds();
    const uint32_t v = r->batch.drafting.version; /* of the drafter; 0: none of this run's */
    char drafter[PL_CONFIG_STR + 64];

    if (r->saved_step == r->state.step)
        return PL_OK;
    r->state.elapsed_s = r->elapsed_before + t0 - r->report.t0;
    run_progress(&r->report, "checkpoint", 0, "");
    run_watch_phase(r->watch, PL_PHASE_CHECKPOINT, NULL);
    snprintf(drafter, sizeof drafter, "%s/drafter/versions/%u", run_dir(r), v);
    const pl_status st = pl_checkpoint_save(run_dir(r), r->trainer, r->m.tokenizer,
        v > 0 ? drafter : NULL, &r->state, (int)r->config.trainer.max_ckpt_to_keep, err);
    run_progress_clear(&r->report);
    if (st != PL_OK)
        return st;
    r->saved_step = r->state.step;
    r->source.checkpointed(r->source.self, r->saved_step);
    return PL_OK;
}

static pl_status resume(run *r, pl_error *err)
{
    char dir[4096];
    pl_error none = {0};
    const pl_status found = pl_checkpoint_find(run_dir(r), dir, sizeof dir, &none);

    r->state.val_before = NAN;
    r->state.config_hash = run_config_hash(&r->config) ^ run_data_hash(r->data.train);
    r->state.samples_per_group = r->config.rollout.n;
    r->saved_step = -1;
    if (found == PL_E_NOENT)
        return r->source.begin(r->source.self, 0, err);
    if (found != PL_OK)
        return pl_fail(err, found, "%s", none.msg);
    if (none.msg[0])
        pl_log_warn(&r->log, "%s", none.msg);
    if (strcmp(r->config.trainer.resume_mode, "disable") == 0)
        return pl_fail(err, PL_E_CONFIG,
            "'%s' holds a run already and trainer.resume_mode is disable: name another "
            "trainer.default_local_dir",
            run_dir(r));
    const uint64_t hash = r->state.config_hash;
    const pl_status st = pl_checkpoint_load(dir, r->trainer, &r->state, err);
    if (st != PL_OK)
        return st;
    if (r->state.samples_per_group != r->config.rollout.n)
        return pl_fail(err, PL_E_CONFIG,
            "'%s' began with actor_rollout_ref.rollout.n %lld, which numbers its samples: keep it, "
            "or name another trainer.default_local_dir",
            run_dir(r), (long long)r->state.samples_per_group);
    run_print_resume(&r->config, r->state.step, dir);
    if (r->state.config_hash != hash)
        pl_log_warn(&r->log,
            "keys that decide the result differ from those of the checkpoint: continuing, but the "
            "run is not the one that '%s' began",
            run_dir(r));
    r->state.config_hash = hash;
    r->saved_step = r->state.step;
    r->elapsed_before = r->state.elapsed_s;
    return r->source.begin(r->source.self, r->state.policy_version, err);
}

static pl_status open_trainer(run *r, pl_error *err)
{
    const run_sampling s = run_train_sampling(&r->config);
    pl_audit_options audit = {.share = r->config.trainer.audit,
        .temperature = s.temperature,
        .top_p = s.top_p,
        .min_p = s.min_p,
        .top_k = s.top_k,
        .noise_key = pl_noise_key(s.seed),
        .purpose = s.purpose,
        .ignore_eos = s.ignore_eos,
        .max_tokens = s.max_tokens};
    float *masters = r->m.masters;
    pl_actor_options actor = r->config.actor;

    snprintf(actor.activations, sizeof actor.activations, "%s",
        r->plan.keep ? "keep" : "recompute"); /* what the plan decided, when it was asked to */
    r->m.masters = NULL;                      /* taken, also on failure */
    const pl_status st = pl_trainer_new(&r->trainer, r->m.model, masters, &actor,
        run_data_longest(&r->data) + s.max_tokens, r->config.trainer.total_training_steps, &r->log,
        err);
    if (st != PL_OK || !r->is_remote)
        return st; /* the engine of this process is not audited beyond the log-probs */
    if (getrandom(&audit.pick_key, sizeof audit.pick_key, 0) != sizeof audit.pick_key)
        return pl_fail(err, PL_E_IO, "getrandom: %s", strerror(errno));
    pl_trainer_set_audit(r->trainer, &audit);
    return PL_OK;
}

static pl_status open_source(run *r, pl_error *err)
{
    const pl_reward_options *o = &r->config.reward;
    const pl_rewarder_options ro = {.command = o->command,
        .timeout_s = o->timeout,
        .timeout_value = (float)o->timeout_value,
        .memory_mb = o->memory_mb,
        .log = &r->log};

    r->scorer.tokenizer = r->m.tokenizer;
    if (o->command[0]) {
        const pl_status st = pl_rewarder_new(&r->rewarder, &ro, err);
        if (st != PL_OK)
            return st;
        r->scorer.rewarder = r->rewarder;
    }
    if (r->is_remote)
        return run_remote_open(&r->source, &r->config, &r->m, pl_trainer_masters(r->trainer),
            run_data_longest(&r->data), &r->scorer, &r->log, err);
    return run_local_open(
        &r->source, &r->config, &r->m, run_data_longest(&r->data), &r->scorer, &r->log, err);
}

static pl_status open_watch(run *r, pl_error *err)
{
    run_watch_begin b = {.step = r->state.step,
        .last_line = r->saved_step,
        .policy_version = r->state.policy_version,
        .config_hash = r->state.config_hash,
        .isa = r->m.ops->name,
        .machine = r->m.cpu.name,
        .n_vocab = pl_source_arch(r->m.source)->n_vocab,
        .n_threads = pl_team_size(r->m.team)};

    pl_trainer_hash(r->trainer, b.policy);
    return run_watch_open(&r->watch, &r->config, r->is_remote, &b, &r->log, err);
}

static pl_status open_run(run *r, int dry_run, pl_error *err)
{
    const cli_model_options mo = {.path = r->config.rollout.model_path,
        .isa = r->config.trainer.isa,
        .threads = r->config.trainer.threads,
        .with_backward = 1};

    pl_status st = cli_model_open(&r->m, &mo, &r->log, err);
    if (st == PL_OK)
        st = run_data_open(
            &r->data, &r->config, r->m.tokenizer, pl_source_arch(r->m.source)->n_ctx, err);
    if (st != PL_OK)
        return st;
    run_print_heading(&r->config, &r->m, &r->data);
    run_plan_make(&r->config, pl_source_arch(r->m.source), run_data_longest(&r->data),
        pl_team_size(r->m.team), &r->plan);
    run_plan_print(&r->plan, stdout);
    st = run_drafting_check(&r->config, r->m.model, err);
    if (dry_run || st != PL_OK)
        return st;
    st = run_plan_check(&r->plan, err);
    if (st == PL_OK)
        st = r->is_remote ? run_lock(run_dir(r), "trainer.lock", &r->lock_fd, err)
                          : run_lock_directory(run_dir(r), &r->lock_fd, err);
    if (st == PL_OK && !r->is_remote)
        st = run_check_orphans(run_dir(r), err);
    if (st == PL_OK && !r->is_remote)
        st = run_config_write(&r->config, err);
    if (st == PL_OK)
        st = open_trainer(r, err);
    if (st == PL_OK)
        st = open_source(r, err);
    if (st == PL_OK)
        st = resume(r, err);
    if (st == PL_OK)
        st = open_watch(r, err);
    r->prompts = calloc((size_t)r->config.data.train_batch_size, sizeof *r->prompts);
    r->held_out = calloc((size_t)(r->data.val ? r->data.val->n : 1), sizeof *r->held_out);
    if (st == PL_OK && (!r->prompts || !r->held_out))
        st = pl_fail(err, PL_E_NOMEM, "no memory for the prompts of a step");
    return st;
}

/* ---- evaluation ---- */

static uint64_t batch_id(int kind, int64_t step)
{
    return (uint64_t)kind << 32 | (uint64_t)step;
}

/* n_prompts held-out prompts, the same noise at every call. */
static pl_status evaluate(
    run *r, int n_prompts, int kind, pl_speculate how, const char *phase, pl_error *err)
{
    run_sampling s = run_held_out_sampling(&r->config);

    s.speculative = how;
    for (int i = 0; i < n_prompts; i++)
        r->held_out[i] = &r->data.val->prompts[i];
    r->eval.prompts = r->held_out;
    r->eval.n_groups = n_prompts;
    r->eval.n = (int)r->config.rollout.val_n;
    r->eval.first_uid = 0;
    r->eval.id = batch_id(kind, r->state.step);
    r->eval.watch = r->watch;
    run_watch_phase(r->watch, kind == RUN_EVAL ? PL_PHASE_EVAL : PL_PHASE_COMPARE, &r->eval);
    r->eval.report = &r->report;
    r->eval.phase = phase;
    return r->source.collect(r->source.self, &r->eval, &s, err);
}

static pl_status record_evaluation(run *r, double reward, pl_error *err)
{
    char name[64];
    snprintf(name, sizeof name, "val-core/held_out/reward/mean@%lld",
        (long long)r->config.rollout.val_n);
    const pl_metric m[] = {{name, reward}, {"timing_s/testing", r->eval.seconds}};
    return run_watch_metrics(r->watch, r->state.step, m, 2, err);
}

static pl_status evaluate_all(run *r, double *reward, pl_error *err)
{
    *reward = NAN;
    if (!r->data.val)
        return PL_OK;
    const pl_status st = evaluate(
        r, r->data.val->n, RUN_EVAL, run_train_sampling(&r->config).speculative, "held out", err);
    if (st != PL_OK)
        return st;
    *reward = run_batch_reward(&r->eval);
    return record_evaluation(r, *reward, err);
}

/* ---- a step ---- */

static int stop_asked(void *ctx)
{
    (void)ctx;
    return cli_stop;
}

static void update_progress(void *ctx, double done)
{
    const run *r = ctx;
    run_progress(&r->report, "update", done, "");
    run_watch_tick(r->watch);
    r->source.alive(r->source.self);
}

static void add_stats(pl_engine_stats *sum, const pl_engine_stats *s)
{
    sum->n_verify_steps += s->n_verify_steps;
    sum->n_accepted += s->n_accepted;
}

static void print_step(run *r, const pl_step_stats *u)
{
    const run_lengths l = run_measure_lengths(&r->batch);
    const run_step_line line = {.step = r->state.step,
        .total = r->config.trainer.total_training_steps,
        .reward = run_batch_reward(&r->batch),
        .length_mean = l.mean,
        .length_max = l.max,
        .rate = run_rollout_rate(&r->batch),
        .acceptance = run_acceptance_length(&r->batch.stats),
        .rollout_s = r->batch.seconds,
        .update_s = u->update_s};
    run_print_step(&line, r->n_lines++ % 20 == 0);
    if (!run_has_learned(&r->config))
        return;
    run_print_drafting(&r->batch.drafting, &r->batch.stats, r->drafted_before);
    r->drafted_before = run_drafted_length(&r->batch.stats);
}

static pl_status roll_out(run *r, pl_error *err)
{
    const run_rollout_options *o = &r->config.rollout;
    const run_sampling s = run_train_sampling(&r->config);
    const int n = (int)r->config.data.train_batch_size;

    if (((uint64_t)r->state.next_group + (uint64_t)n) * (uint64_t)o->n > UINT32_MAX)
        return pl_fail(err, PL_E_INVAL,
            "this run has used all 2^32 sample ids: begin another one with another rollout.seed");
    for (int i = 0; i < n; i++)
        r->prompts[i] = &r->data.train->prompts[pl_dataset_order(
            r->data.train, r->state.next_group + i, r->config.data.shuffle, r->config.data.seed)];
    r->batch.prompts = r->prompts;
    r->batch.n_groups = n;
    r->batch.n = (int)o->n;
    r->batch.first_uid = (uint32_t)((uint64_t)r->state.next_group * (uint64_t)o->n);
    r->batch.id = batch_id(RUN_TRAIN, r->state.step + 1);
    r->batch.watch = r->watch;
    run_watch_phase(r->watch, PL_PHASE_ROLLOUT, &r->batch);
    r->batch.report = &r->report;
    r->batch.phase = "rollout";
    return r->source.collect(r->source.self, &r->batch, &s, err);
}

/* The update.  Samples that the audit disproves are rolled out again by others, and the step begun
 * anew: nothing has changed before all of them are true. */
static pl_status update(run *r, int64_t step, pl_step_stats *u, pl_error *err)
{
    enum { TRIES = 8 };
    const run_sampling s = run_train_sampling(&r->config);

    for (int i = 0;; i++) {
        pl_status st = pl_trainer_step(r->trainer, step, r->batch.samples, r->batch.n_groups,
            r->batch.n, update_progress, stop_asked, r, u, err);
        run_progress_clear(&r->report);
        if (st == PL_OK || u->n_bad == 0 || !r->source.refuse || i == TRIES)
            return st;
        pl_log_error(&r->log, "audit: %d of %d samples are refused: %s", u->n_bad,
            r->batch.n_groups * r->batch.n, err->msg);
        st = r->source.refuse(r->source.self, &r->batch, err);
        if (st == PL_OK)
            st = r->source.collect(r->source.self, &r->batch, &s, err);
        if (st != PL_OK)
            return st;
    }
}

/* A failed one is said, and the run goes on: the one before it is whole. */
static void checkpoint(run *r)
{
    const double t0 = run_seconds();
    pl_error lost = {0};
    pl_status st = save(r, &lost);

    if (st == PL_OK) {
        const pl_metric m = {"timing_s/save_checkpoint", run_seconds() - t0};
        st = run_watch_metrics(r->watch, r->state.step, &m, 1, &lost);
    }
    if (st != PL_OK)
        pl_log_error(&r->log, "%s; the one before it is whole, continuing", lost.msg);
}

/* What stays of the step that was trained, beside the policy. */
static pl_status record(
    run *r, const pl_step_stats *u, uint32_t rolled_out_by, double seconds, pl_error *err)
{
    const int total = r->batch.n_groups * r->batch.n;
    const pl_status st =
        pl_rollouts_write(run_dir(r), r->state.step, r->batch.samples, total, rolled_out_by, err);
    return st == PL_OK ? run_record_step(r->watch, r->state.step, &r->batch, u, seconds,
                             run_has_learned(&r->config), err)
                       : st;
}

/* The trace has the step before the ledger has it: what is consumed can be sampled again. */
static pl_status trace(run *r, const pl_step_stats *u, double seconds, pl_error *err)
{
    const run_sampling s = run_train_sampling(&r->config);
    run_watch_step x = {.step = r->state.step + 1,
        .policy_version = r->state.policy_version,
        .sampling = &s,
        .update_s = u->update_s,
        .step_s = seconds};

    pl_trainer_hash(r->trainer, x.after);
    const pl_status st = run_watch_trace(r->watch, &x, &r->batch, err);
    memcpy(r->state.trace, r->batch.trace.b, sizeof r->state.trace);
    return st;
}

static pl_status run_step(run *r, pl_error *err)
{
    const double t0 = run_seconds();
    const int64_t step = r->state.step + 1, freq = r->config.trainer.save_freq;
    pl_error lost = {0};
    pl_step_stats u;

    /* 1. Rollouts of the next groups under the current policy. */
    pl_status st = roll_out(r, err);
    if (st != PL_OK)
        return st;
    add_stats(&r->totals, &r->batch.stats);

    /* 2. Advantages, loss, update: from here on the step is finished, signal or not. */
    run_watch_phase(r->watch, PL_PHASE_UPDATE, &r->batch);
    st = update(r, step, &u, err);
    if (st == PL_OK)
        st = trace(r, &u, run_seconds() - t0, err);
    if (st != PL_OK)
        return st;
    const uint32_t rolled_out_by = r->state.policy_version;
    r->state.step = step;
    r->state.next_group += r->batch.n_groups;
    r->state.policy_version++;
    r->batch.update_s = u.update_s;
    st = r->source.consume(r->source.self, step, &r->batch, r->state.policy_version, err);

    /* 3. Records, then the checkpoint; a failed one is said.  No records, none: trained again. */
    const int is_whole = st == PL_OK || st == PL_E_STOPPED;
    const pl_status recorded =
        record(r, &u, rolled_out_by, run_seconds() - t0, is_whole ? err : &lost);
    run_watch_step_done(r->watch, step, r->state.policy_version, run_seconds() - t0);
    print_step(r, &u);
    if (recorded == PL_OK && st != PL_E_NUMERIC && (st != PL_OK || (freq > 0 && step % freq == 0)))
        checkpoint(r);
    return is_whole && recorded != PL_OK ? recorded : st;
}

/* ---- closing ---- */

static pl_status roll_by(void *ctx, pl_speculate how, int round, pl_error *err)
{
    run *r = ctx;
    return evaluate(
        r, r->eval.n_groups, RUN_COMPARE + RUN_ARMS * round + (int)how, how, "compare", err);
}

/* Held-out prompts by each way of drafting. */
static pl_status compare(run *r, run_comparison *c, pl_error *err)
{
    const int n = (int)r->config.trainer.compare_prompts;

    memset(c, 0, sizeof *c);
    if (!r->data.val || n == 0 || !r->config.speculative.enable)
        return PL_OK;
    r->eval.n_groups = run_comparable(&r->eval, n);
    const run_config *g = &r->config;
    const int is_learned = run_has_learned(g);
    const int has_version = strcmp(g->speculative.init, "random") != 0 ||
                            run_drafting_newest(g->trainer.default_local_dir) > 0;
    const pl_status st = run_compare(c, &r->eval, is_learned && has_version, roll_by, r, err);
    c->lacks_version = is_learned && !has_version;
    return st;
}

static pl_status finish_run(run *r, pl_error *err)
{
    run_comparison c;
    double after;

    pl_status st = save(r, err);
    if (st == PL_OK)
        st = evaluate_all(r, &after, err);
    if (st == PL_OK)
        st = compare(r, &c, err);
    if (st == PL_OK)
        st = run_watch_end(r->watch, err);
    if (st == PL_OK)
        st = r->source.finish(r->source.self, r->state.step, err);
    if (st != PL_OK)
        return st;
    if (run_has_learned(&r->config))
        run_drafting_tidy(run_dir(r));
    run_print_closing(r->state.val_before, after, &r->totals, &c);
    printf("  %-34s %8.1f s\n  %-34s %s/checkpoints/global_step_%lld/policy\n", "wall clock",
        run_seconds() - r->report.t0, "policy", run_dir(r), (long long)r->state.step);
    if (c.n_different > 0)
        return pl_fail(err, PL_E_NUMERIC,
            "speculation changed %d of %d samples: law 1 is broken on this machine", c.n_different,
            c.n_samples);
    return PL_OK;
}

static pl_status train(run *r, pl_error *err)
{
    const int64_t total = r->config.trainer.total_training_steps;
    const int64_t test_freq = r->config.trainer.test_freq;
    double reward;
    pl_status st = PL_OK;

    if (r->state.step >= total && total > 0) {
        printf("complete   all %lld steps are done: the policy is measured again; name another "
               "trainer.default_local_dir for another run\n",
            (long long)total);
        r->config.trainer.compare_prompts = 0;
    }
    if (r->state.step == 0 && r->config.trainer.val_before_train && r->data.val) {
        st = evaluate_all(r, &r->state.val_before, err);
        if (st == PL_OK)
            printf("held-out reward before training: %.3f (%d samples, %.1f s)\n\n",
                r->state.val_before, r->eval.n_groups * r->eval.n, r->eval.seconds);
    }
    while (st == PL_OK && r->state.step < total) {
        st = run_step(r, err);
        if (st == PL_OK && cli_stop)
            st = pl_fail(err, PL_E_STOPPED, "stopped by a signal");
        if (st == PL_OK && test_freq > 0 && r->state.step % test_freq == 0 &&
            r->state.step < total) {
            st = evaluate_all(r, &reward, err);
            if (st == PL_OK)
                printf("held-out reward after step %lld: %.3f\n", (long long)r->state.step, reward);
        }
    }
    return st == PL_OK ? finish_run(r, err) : st;
}

/* The last whole step is kept when the run is cut short. */
static pl_status stopped(run *r, pl_error *err)
{
    pl_error lost = {0};

    run_progress_clear(&r->report);
    if (r->state.step == 0)
        return pl_fail(err, PL_E_STOPPED, "stopped before the first step was done; run it again");
    if (save(r, &lost) != PL_OK)
        return pl_fail(err, lost.code, "stopped after step %lld, whose checkpoint failed: %s",
            (long long)r->state.step, lost.msg);
    return pl_fail(err, PL_E_STOPPED,
        "stopped after step %lld, checkpointed: the same command continues there",
        (long long)r->state.step);
}

static void close_run(run *r)
{
    run_batch_done(&r->batch);
    run_batch_done(&r->eval);
    run_watch_close(r->watch);
    if (r->source.close)
        r->source.close(r->source.self);
    pl_rewarder_free(r->rewarder);
    pl_trainer_free(r->trainer);
    run_data_close(&r->data);
    free(r->prompts);
    free(r->held_out);
    cli_model_close(&r->m);
    if (r->lock_fd >= 0)
        close(r->lock_fd);
}

int run_loop(const run_config *c, double t0, int dry_run, int is_remote)
{
    pl_error err = {0};
    run r = {.config = *c,
        .is_remote = is_remote,
        .log = {PL_LOG_INFO, STDERR_FILENO, isatty(STDERR_FILENO)},
        .report = {.is_tty = isatty(STDERR_FILENO), .t0 = t0},
        .drafted_before = NAN,
        .lock_fd = -1};

    pl_status st = open_run(&r, dry_run, &err);
    if (st == PL_OK && !dry_run)
        st = train(&r, &err);
    if (st == PL_E_STOPPED)
        st = stopped(&r, &err);
    if (st == PL_OK)
        st = cli_flush(&err);
    close_run(&r);
    return st == PL_OK ? 0 : cli_report(&err);
}
