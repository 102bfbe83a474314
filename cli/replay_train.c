/* cli/replay_train.c - the trainer on recorded rollouts, without generation.
 *
 *   1. what is changed: keys of the loss and the optimizer, rewards, or the rollouts  [open_all]
 *   2. each step: its records, checked against the trace, scored again if asked for   [take_step]
 *   3. the update, and the hash of the weights against the recorded one               [train_one]
 *   4. the verdict                                                                    [conclude]
 *
 * From the first update that gave other weights on, another policy than this one drew the samples:
 * then the ratios of the loss are taken to the recorded log-probs, and how far the two policies are
 * apart is counted.  Before that every log-prob must have the recorded bits, as in a run. */
#include "cli/replay_train.h"
#include "cli/replay_parts.h"
#include "core/file.h"

#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- a step as the run trained it ---- */

static int stop_asked(void *ctx)
{
    (void)ctx;
    return cli_stop;
}

static void say_progress(void *ctx, double done)
{
    const replay *r = ctx;
    char detail[48];

    snprintf(detail, sizeof detail, "step %lld", (long long)r->state.step + 1);
    run_progress(&r->report, "update", done, detail);
}

static void record_path(const replay *r, int64_t step, char *out, size_t n)
{
    snprintf(out, n, "%s/rollouts/step_%06lld.jsonl.zst", r->o->run_dir, (long long)step);
}

/* Sample i of n a group is the one that the run had there. */
static int is_in_place(const pl_rollouts *x, int i, uint32_t first_uid, int n)
{
    const pl_response *r = x->samples[i].response;
    const pl_response *head = x->samples[i - i % n].response;

    return r->uid == first_uid + (uint32_t)i && r->n_prompt == head->n_prompt &&
           memcmp(r->prompt, head->prompt, (size_t)r->n_prompt * sizeof *r->prompt) == 0;
}

static pl_status check_record(
    const replay *r, const pl_rollouts *x, const char *path, pl_error *err)
{
    const int n = (int)r->state.samples_per_group;
    const uint32_t first = (uint32_t)((uint64_t)r->state.next_group * (uint64_t)n);

    if (x->step != r->state.step + 1)
        return pl_fail(err, PL_E_FORMAT, "'%s' is of step %lld, not %lld", path, (long long)x->step,
            (long long)r->state.step + 1);
    if (!x->has_logprobs)
        return pl_fail(err, PL_E_FORMAT, "'%s': a sample has no log-probs", path);
    if (x->n % n != 0)
        return pl_fail(err, PL_E_FORMAT,
            "'%s' has %d samples, not groups of %d: the file was cut off or changed", path, x->n,
            n);
    for (int i = 0; i < x->n; i++) {
        const pl_response *s = x->samples[i].response;
        if (!is_in_place(x, i, first, n))
            return pl_fail(err, PL_E_FORMAT,
                "'%s': sample %u stands where sample %u of this prompt is to stand: the file was "
                "changed, or is another run's",
                path, s->uid, first + (uint32_t)i);
        if (s->policy_version != r->state.policy_version)
            return pl_fail(err, PL_E_FORMAT,
                "'%s': sample %u was drawn by policy version %u, the run was at %u", path, s->uid,
                s->policy_version, r->state.policy_version);
    }
    return PL_OK;
}

/* Records do not tell it, all of a run are drawn alike. */
static void set_temperature(const replay *r, const pl_rollouts *x)
{
    const replay_sitting *own = replay_sittings_find(&r->sittings, r->state.step + 1);
    const run_config *c = own && !r->o->rollouts ? &own->config : &r->config;

    for (int i = 0; i < x->n; i++) {
        pl_response *s = (pl_response *)(uintptr_t)x->samples[i].response;
        if (s->temperature == 0)
            s->temperature = (float)c->rollout.temperature;
    }
}

/* Without its rollouts a step cannot be trained; from a later checkpoint on others can. */
static pl_status say_unread(const replay *r, pl_status st, pl_error *err)
{
    const int64_t step = r->state.step + 1;
    const pl_error why = *err;
    int64_t later = 0;

    for (int64_t at = replay_checkpoint(r->o->run_dir, INT64_MAX); at >= step;
         at = replay_checkpoint(r->o->run_dir, at - 1))
        later = at;
    if (st != PL_E_NOENT || later == 0)
        return pl_wrap(err, st, "rollouts of step %lld", (long long)step);
    return pl_fail(err, st,
        "rollouts of step %lld: %.300s; --step %lld begins at the checkpoint of step %lld, behind "
        "it",
        (long long)step, why.msg, (long long)later + 1, (long long)later);
}

/* Records of the next step, in the order in which the run trained on them. */
static pl_status read_step(replay *r, pl_rollouts **out, pl_error *err)
{
    const pl_arch *a = pl_source_arch(r->m.source);
    char path[PL_CONFIG_STR + 64];
    pl_rollouts *x = NULL;

    record_path(r, r->state.step + 1, path, sizeof path);
    pl_status st = pl_rollouts_read(&x, path, NULL, a->n_vocab, a->n_ctx, err);
    if (st != PL_OK)
        return say_unread(r, st, err);
    st = check_record(r, x, path, err);
    if (st != PL_OK) {
        pl_rollouts_free(x);
        return st;
    }
    x->group_size = (int)r->state.samples_per_group;
    x->n_groups = x->n / x->group_size;
    set_temperature(r, x);
    *out = x;
    return PL_OK;
}

static pl_status update(replay *r, pl_rollouts *x, pl_step_stats *stats, pl_error *err)
{
    const int64_t step = r->state.step + 1;
    const replay_sitting *s = r->o->rollouts ? NULL : replay_sittings_find(&r->sittings, step);
    const run_config *c = s ? &s->config : &r->config;

    pl_status st =
        pl_trainer_set_options(r->trainer, &c->actor, c->trainer.total_training_steps, err);
    if (st != PL_OK)
        return st;
    st = pl_trainer_step(r->trainer, step, x->samples, x->n_groups, x->group_size, say_progress,
        stop_asked, r, stats, err);
    run_progress_clear(&r->report);
    if (st != PL_OK)
        return st;
    r->state.step = step;
    r->state.next_group += x->n_groups;
    r->state.policy_version++;
    return PL_OK;
}

pl_status replay_train_step(replay *r, pl_step_stats *stats, pl_rollouts **seen, pl_error *err)
{
    pl_rollouts *x = NULL;

    pl_status st = read_step(r, &x, err);
    if (st == PL_OK)
        st = update(r, x, stats, err);
    if (st == PL_OK && seen)
        *seen = x;
    else
        pl_rollouts_free(x);
    return st;
}

/* ---- train-only ---- */

typedef struct train {
    const replay_options *o;
    replay r;
    int is_open;
    int64_t last;      /* step that is trained last */
    train_files files; /* of another system */
    train_marks marks; /* of the trace */
    int has_trace;
    pl_history *history; /* NULL: no metrics.jsonl */
    train_scorer *scorer;
    int is_changed; /* something is other than in the run */
    int is_off;     /* the weights have left those of the run */
    train_point sums;
    int n_steps, n_equal, n_differ;
    int64_t first_differ, n_samples;
    int is_said;
} train;

/* ---- what is changed ---- */

static pl_status load_config(const replay_options *o, int n_overrides, run_config *c, pl_error *err)
{
    replay_options some = *o;

    some.n_overrides = n_overrides;
    return replay_config(&some, c, err);
}

/* Of all that decides bits; where the model lies, and how rewards are asked for, does not. */
static uint64_t hash_of(const run_config *c, const run_config *base, int but_for_training)
{
    run_config *copy = malloc(sizeof *copy);

    if (!copy)
        return 0;
    *copy = *c;
    memcpy(copy->rollout.model_path, base->rollout.model_path, PL_CONFIG_STR);
    copy->reward = base->reward;
    if (but_for_training) {
        copy->actor = base->actor;
        copy->trainer.total_training_steps = base->trainer.total_training_steps;
    }
    const uint64_t h = run_config_hash(copy);
    free(copy);
    return h;
}

/* A key may have the value that one sitting had, and another sitting had not. */
static pl_status find_changed_sitting(train *t, pl_error *err)
{
    replay_options plain = *t->o;
    replay_sittings with = {0}, without = {0};

    plain.n_overrides = 0;
    pl_status st = replay_sittings_read(&with, t->o, err);
    if (st == PL_OK)
        st = replay_sittings_read(&without, &plain, err);
    for (int i = 0; st == PL_OK && i < with.n && i < without.n; i++) {
        const run_config *own = &without.list[i].config;
        if (with.list[i].first > 0 && hash_of(&with.list[i].config, own, 0) != run_config_hash(own))
            t->is_changed = 1;
    }
    replay_sittings_done(&with);
    replay_sittings_done(&without);
    return st;
}

/* Rollouts are recorded: keys of how they come about cannot be changed. */
static pl_status find_changes(train *t, pl_error *err)
{
    const replay_options *o = t->o;
    run_config *base = malloc(sizeof *base), *c = malloc(sizeof *c);
    pl_status st = base && c ? load_config(o, 0, base, err)
                             : pl_fail(err, PL_E_NOMEM, "no memory for the configuration");

    if (st == PL_OK)
        st = load_config(o, o->n_overrides, c, err);
    if (st == PL_OK) {
        const uint64_t h = run_config_hash(base);
        t->is_changed = hash_of(c, base, 0) != h || o->reward || o->rollouts;
        if (hash_of(c, base, 1) != h && !o->rollouts)
            st = pl_fail(err, PL_E_CONFIG,
                "%s '%.80s'%s: --train-only takes keys of the loss and the optimizer (actor.*, "
                "algorithm.*); another one of these decides what is rolled out, and rollouts are "
                "recorded here",
                o->n_overrides > 1 ? "keys" : "key", o->overrides[0],
                o->n_overrides > 1 ? " and others" : "");
    }
    free(base);
    free(c);
    return st == PL_OK && o->n_overrides > 0 ? find_changed_sitting(t, err) : st;
}

/* ---- which steps ---- */

/* The newest step with records; 0: none. */
static int64_t last_record(const char *run_dir)
{
    char path[PL_CONFIG_STR + 16], rest[16];
    int64_t last = 0;

    snprintf(path, sizeof path, "%s/rollouts", run_dir);
    DIR *d = opendir(path);
    for (const struct dirent *e; d && (e = readdir(d)) != NULL;) {
        long long step = 0;
        if (sscanf(e->d_name, "step_%lld%15s", &step, rest) == 2 &&
            strcmp(rest, ".jsonl.zst") == 0 && step > last)
            last = step;
    }
    if (d)
        (void)closedir(d);
    return last;
}

static pl_status choose_steps(train *t, pl_error *err)
{
    const int64_t from = t->o->step > 0 ? t->o->step : 1;

    t->last = last_record(t->o->run_dir);
    if (t->marks.n > 0 && t->marks.marks[t->marks.n - 1].step > t->last)
        t->last = t->marks.marks[t->marks.n - 1].step;
    if (t->last == 0)
        return pl_fail(err, PL_E_NOENT, "'%s/rollouts' holds no step yet", t->o->run_dir);
    if (from > t->last)
        return pl_fail(err, PL_E_USAGE, "--step %lld: there are records up to step %lld",
            (long long)from, (long long)t->last);
    return PL_OK;
}

/* ---- opening ---- */

static void say(const train *t, const char *text)
{
    fprintf(t->o->json ? stderr : stdout, "%s\n", text);
}

static void say_heading(const train *t)
{
    const replay_options *o = t->o;
    FILE *out = o->json ? stderr : stdout;

    fprintf(out, "training   from step %lld on, %s, on rollouts of %s\n",
        (long long)t->r.state.step + 1,
        t->r.state.step > 0 ? "from its checkpoint" : "from the initial model",
        o->rollouts ? o->rollouts : o->run_dir);
    fprintf(out, "backend    %s on %d threads\n", t->r.m.ops->name, pl_team_size(t->r.m.team));
    for (int i = 0; i < o->n_overrides; i++)
        fprintf(out, "changed    %s\n", o->overrides[i]);
    if (o->reward)
        fprintf(out, "rewards    by %s\n", o->reward);
    if (!t->has_trace && !o->rollouts)
        fprintf(out, "trace      there is none: the weights' hashes cannot be compared\n");
    if (o->step > 0 && t->r.state.step + 1 < o->step && t->is_changed)
        fprintf(out,
            "note       step %lld has no checkpoint before it: what is changed is so from step "
            "%lld on\n",
            (long long)o->step, (long long)t->r.state.step + 1);
    fprintf(out, "\n");
    fflush(out);
}

static pl_status open_records(train *t, pl_error *err)
{
    pl_error none = {0};

    if (t->o->rollouts)
        return train_files_list(&t->files, t->o->rollouts, err);
    pl_status st = train_marks_read(&t->marks, t->o->run_dir, err);
    t->has_trace = st == PL_OK && t->marks.n > 0;
    if (st != PL_OK && st != PL_E_NOENT)
        return st;
    if (pl_history_open(&t->history, t->o->run_dir, &none) == PL_OK)
        (void)pl_history_poll(t->history);
    return choose_steps(t, err);
}

static pl_status open_all(train *t, pl_error *err)
{
    const int64_t before = t->o->step > 0 ? t->o->step - 1 : 0;

    pl_status st = find_changes(t, err);
    if (st == PL_OK)
        st = open_records(t, err);
    if (st == PL_OK)
        st = replay_open(&t->r, t->o, before, err);
    if (st != PL_OK)
        return st;
    t->is_open = 1;
    if (t->o->rollouts)
        t->last = t->r.state.step + t->files.n;
    if (t->o->reward)
        st = train_scorer_new(&t->scorer, t->o->reward, &t->r.config, &t->r.log, err);
    if (st == PL_OK)
        say_heading(t);
    return st;
}

static void close_all(train *t)
{
    train_scorer_free(t->scorer);
    pl_history_close(t->history);
    train_marks_done(&t->marks);
    train_files_done(&t->files);
    if (t->is_open)
        replay_close(&t->r);
}

/* ---- a step ---- */

/* Log-probs that no one recorded: those of the policy at hand. */
static pl_status make_logprobs(train *t, pl_rollouts *x, pl_error *err)
{
    if (!t->is_said)
        say(t, "note       the records have no log-probs: those of the policy before each step are "
               "taken, as if it had drawn the samples");
    t->is_said = 1;
    for (int i = 0; i < x->n; i++) {
        pl_response *r = (pl_response *)(uintptr_t)x->samples[i].response;
        r->logprobs = malloc((size_t)r->n_tokens * sizeof *r->logprobs);
        if (!r->logprobs)
            return pl_fail(err, PL_E_NOMEM, "no memory for log-probs");
        const pl_status st = pl_trainer_logprobs(t->r.trainer, r, r->logprobs, err);
        if (st != PL_OK)
            return st;
        if (cli_stop)
            return pl_fail(err, PL_E_STOPPED, "stopped by a signal");
        run_progress(&t->r.report, "log-probs", (double)(i + 1) / x->n, "");
    }
    run_progress_clear(&t->r.report);
    x->has_logprobs = 1;
    return PL_OK;
}

static pl_status take_foreign(train *t, pl_rollouts **out, pl_error *err)
{
    const pl_arch *a = pl_source_arch(t->r.m.source);
    const char *path = t->files.paths[t->n_steps];
    pl_rollouts *x = NULL;

    pl_status st = pl_rollouts_read(&x, path, t->r.m.tokenizer, a->n_vocab, a->n_ctx, err);
    if (st == PL_OK)
        st = train_regroup(x, path, err);
    if (st == PL_OK && x->group_size == 1)
        pl_log_warn(&t->r.log,
            "'%s' has one sample of each prompt: there is nothing to compare it "
            "with, so it teaches nothing",
            path);
    if (st == PL_OK) {
        set_temperature(&t->r, x);
        t->is_off = x->has_logprobs;
        if (!x->has_logprobs)
            st = make_logprobs(t, x, err);
    }
    if (st == PL_OK)
        *out = x;
    else
        pl_rollouts_free(x);
    return st;
}

static pl_status take_step(train *t, const train_mark *mark, pl_rollouts **out, pl_error *err)
{
    if (t->o->rollouts)
        return take_foreign(t, out, err);
    const pl_status st = read_step(&t->r, out, err);
    if (st != PL_OK || !mark)
        return st;
    return train_marks_check(
        mark, t->o->run_dir, *out, pl_source_arch(t->r.m.source)->n_vocab, err);
}

/* Is the policy before the step still the one that drew its samples? */
static pl_status find_off(train *t, const train_mark *mark, pl_error *err)
{
    unsigned char h[16];

    if (mark && !t->o->rollouts) {
        pl_trainer_hash(t->r.trainer, h);
        if (t->n_steps == 0 && memcmp(h, mark->before, sizeof h) != 0 && t->r.state.step == 0)
            return pl_fail(err, PL_E_NUMERIC,
                "'%s' is not the model that the run began with (its weights have another hash than "
                "in the trace); say where that is with actor_rollout_ref.model.path=PATH",
                t->r.config.rollout.model_path);
        if (t->n_steps == 0 && memcmp(h, mark->before, sizeof h) != 0)
            return pl_fail(err, PL_E_NUMERIC,
                "checkpoint '%s/checkpoints/global_step_%lld' is not this run's: its weights have "
                "another hash than in the trace",
                t->o->run_dir, (long long)t->r.state.step);
        t->is_off = t->is_changed && memcmp(h, mark->before, sizeof h) != 0;
    } else if (!t->o->rollouts) {
        t->is_off = t->is_changed && t->n_steps > 0;
    }
    pl_trainer_set_off_policy(t->r.trainer, t->is_off);
    return PL_OK;
}

static double mean_reward(const pl_rollouts *x)
{
    double sum = 0;

    for (int i = 0; i < x->n; i++)
        sum += (double)x->samples[i].reward;
    return sum / x->n;
}

static pl_status weigh(train *t, const train_mark *mark, train_point *p)
{
    unsigned char h[16];

    if (!mark)
        return PL_OK;
    pl_trainer_hash(t->r.trainer, h);
    p->weights = memcmp(h, mark->after, sizeof h) == 0 ? WEIGHTS_EQUAL : WEIGHTS_DIFFER;
    t->n_equal += p->weights == WEIGHTS_EQUAL;
    if (p->weights == WEIGHTS_DIFFER && t->n_differ++ == 0)
        t->first_differ = p->step;
    return PL_OK;
}

static pl_status train_on(train *t, pl_rollouts *x, const train_mark *mark, pl_error *err)
{
    train_point p = {.step = t->r.state.step + 1, .n_rescored = -1};
    const double recorded = mean_reward(x);
    pl_status st = PL_OK;

    if (t->scorer)
        st = train_scorer_run(t->scorer, t->r.m.tokenizer, x, &t->r.report, &p.n_rescored, err);
    if (st == PL_OK)
        st = update(&t->r, x, &p.stats, err);
    if (st == PL_OK)
        st = weigh(t, mark, &p);
    if (st != PL_OK)
        return st;
    p.is_off = t->is_off;
    train_point_fill(&p, x, recorded, t->history);
    train_point_add(&t->sums, &p);
    t->n_steps++;
    t->n_samples += x->n;
    if (t->o->json)
        return train_point_json(&p, err);
    train_point_print(&p, t->is_changed && !t->o->rollouts);
    return PL_OK;
}

static pl_status train_one(train *t, pl_error *err)
{
    const train_mark *mark =
        t->o->rollouts ? NULL : train_marks_find(&t->marks, t->r.state.step + 1);
    pl_rollouts *x = NULL;

    pl_status st = take_step(t, mark, &x, err);
    if (st == PL_OK) {
        st = find_off(t, mark, err);
        if (st == PL_OK)
            st = train_on(t, x, mark, err);
    }
    pl_rollouts_free(x);
    if (st == PL_OK && !t->is_changed && t->n_differ > 0)
        st = pl_fail(err, PL_E_NUMERIC,
            "after step %lld the weights are not those that the trace has recorded: this is "
            "another build, the model or the configuration was changed, or law 1 is broken",
            (long long)t->first_differ);
    return st;
}

/* ---- the verdict ---- */

static void conclude(const train *t)
{
    FILE *out = t->o->json ? stderr : stdout;

    if (t->is_changed && !t->o->json && !t->o->rollouts && t->n_steps > 1)
        train_means_print(&t->sums, t->n_steps);
    fprintf(out,
        "%strained %d step%s on %lld recorded samples in %.1f s: ", t->is_changed ? "\n" : "",
        t->n_steps, t->n_steps == 1 ? "" : "s", (long long)t->n_samples,
        run_seconds() - t->r.report.t0);
    if (t->o->rollouts)
        fprintf(out, "records of another system, nothing to compare with\n");
    else if (t->n_equal == t->n_steps)
        fprintf(out, "the weights have the recorded hash after every step\n");
    else if (t->n_differ > 0)
        fprintf(out, "the weights are others than the recorded ones from step %lld on\n",
            (long long)t->first_differ);
    else if (t->n_equal == 0)
        fprintf(out, "no hash of the weights is recorded to compare with\n");
    else
        fprintf(out,
            "the weights have the recorded hash after %d of them, the trace lacks the "
            "others\n",
            t->n_equal);
}

pl_status replay_train_only(const replay_options *o, pl_error *err)
{
    train *t = calloc(1, sizeof *t);

    if (!t)
        return pl_fail(err, PL_E_NOMEM, "no memory for a replay");
    t->o = o;
    pl_status st = o->reward ? train_reward_check(o->reward, err) : PL_OK;
    if (st == PL_OK)
        st = open_all(t, err);
    while (st == PL_OK && t->r.state.step < t->last) {
        st = train_one(t, err);
        if (st == PL_OK && cli_stop)
            st = pl_fail(err, PL_E_STOPPED, "stopped by a signal after step %lld",
                (long long)t->r.state.step);
    }
    if (t->is_open)
        run_progress_clear(&t->r.report);
    if (st == PL_OK)
        conclude(t);
    if (st == PL_OK && o->json)
        replay_say_end(t->n_differ > 0            ? "different"
                       : t->n_equal == t->n_steps ? "equal"
                                                  : "uncompared",
            "");
    close_all(t);
    free(t);
    return st;
}
