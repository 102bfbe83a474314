/* cli/replay_rollouts.c - what a run sampled, sampled again and compared.
 *
 *   1. the trace: which steps there are, which of them are asked for   [choose_steps]
 *   2. the policy before a step: nearest checkpoint, training on the recorded rollouts, hash
 *      compared with the trace's                                       [bring_to]
 *   3. its samples again, from recorded prompts and sampling           [replay_generate]
 *   4. tokens, log-prob bits and finish against the record             [replay_compare]
 *
 * Who generates is a run_source: the engine of this process, or workers behind a coordinator in a
 * directory of their own, whose trainer process runs this same file. */
#include "cli/replay_parts.h"
#include "core/file.h"

#include <stdlib.h>
#include <string.h>

/* ---- which steps ---- */

/* "1, 3, 4": steps of the trace whose policy is (1) or is not (0) the initial one or in a
 * checkpoint. */
static void list_steps(const replay_again *a, int is_untrained, char *out, size_t room)
{
    size_t at = 0;

    snprintf(out, room, "none");
    for (int i = 0; i < a->index.n && at + 24 < room; i++) {
        const int64_t step = a->index.steps[i].step;
        if ((replay_checkpoint(a->o->run_dir, step - 1) == step - 1) == is_untrained)
            at += (size_t)snprintf(
                out + at, room - at, "%s%lld", at > 0 ? ", " : "", (long long)step);
    }
}

/* s: the step that has it; NULL: none. */
static pl_status no_sample(const replay_again *a, const replay_step *s, pl_error *err)
{
    const replay_step *last = &a->index.steps[a->index.n - 1];

    if (s)
        return pl_fail(err, PL_E_USAGE, "sample %lld is in step %lld, not in step %lld",
            (long long)a->o->sample, (long long)s->step, (long long)a->o->step);
    return pl_fail(err, PL_E_USAGE, "sample %lld is not in the trace: it has samples %u to %lld",
        (long long)a->o->sample, a->index.steps[0].first_uid,
        (long long)last->first_uid + (long long)last->n_groups * last->n - 1);
}

static pl_status choose_steps(replay_again *a, pl_error *err)
{
    const replay_index *x = &a->index;
    const replay_step *s = NULL;
    char steps[200];

    a->first = x->steps[0].step;
    a->last = x->steps[x->n - 1].step;
    if (a->o->sample >= 0) {
        s = replay_index_sample(x, a->o->sample);
        if (!s || (a->o->step > 0 && s->step != a->o->step))
            return no_sample(a, s, err);
        a->first = a->last = s->step;
    } else if (a->o->step > 0) {
        if (!replay_index_step(x, a->o->step))
            return pl_fail(err, PL_E_USAGE,
                "step %lld is not in the trace: it has steps %lld to %lld", (long long)a->o->step,
                (long long)a->first, (long long)a->last);
        a->first = a->last = a->o->step;
    }
    if (!a->o->rollout_only || a->first != a->last ||
        replay_checkpoint(a->o->run_dir, a->first - 1) == a->first - 1)
        return PL_OK;
    list_steps(a, 1, steps, sizeof steps);
    return pl_fail(err, PL_E_NOENT,
        "step %lld wants training first, there is no checkpoint of step %lld: without training "
        "these can be replayed: %s",
        (long long)a->first, (long long)a->first - 1, steps);
}

/* All that can be said before anything is started. */
static pl_status prepare(replay_again *a, const char *dir, pl_error *err)
{
    pl_status st = replay_config(a->o, &a->config, err);
    if (st == PL_OK)
        st = replay_index_read(&a->index, a->o->run_dir, err);
    if (st == PL_OK)
        st = choose_steps(a, err);
    if (st == PL_OK)
        st = replay_drafter_choose(a->o, &a->index, dir, &a->config, a->drafter, err);
    return st;
}

/* ---- the policy ---- */

static void hex(char out[33], const unsigned char h[16])
{
    for (int i = 0; i < 16; i++)
        snprintf(out + (size_t)2 * (size_t)i, 3, "%02x", h[i]);
}

/* The policy after state.step, against what the trace says of it. */
static pl_status check_policy(const replay_again *a, pl_error *err)
{
    const int64_t step = a->r.state.step;
    const replay_step *s = replay_index_step(&a->index, step + 1);
    unsigned char h[16];
    char is[33], was[33];

    if (!s)
        return PL_OK;
    pl_trainer_hash(a->r.trainer, h);
    if (memcmp(h, s->before, sizeof h) == 0)
        return PL_OK;
    hex(is, h);
    hex(was, s->before);
    if (step > 0 && step == a->opened_at)
        return pl_fail(err, PL_E_NUMERIC,
            "policy of step %lld: hash %s, in the trace %s: checkpoint "
            "'%s/checkpoints/global_step_%lld' is not this run's%s%s",
            (long long)step, is, was, a->o->run_dir, (long long)step, a->index.changed ? "; " : "",
            a->index.changed ? a->index.changed : "");
    if (step == 0)
        return pl_fail(err, PL_E_NUMERIC,
            "policy of step 0: hash %s, in the trace %s: '%s' is not the model that the run began "
            "with; say where that is with actor_rollout_ref.model.path=PATH",
            is, was, a->config.rollout.model_path);
    return pl_fail(err, PL_E_NUMERIC,
        "policy of step %lld, trained from step %lld on: hash %s, in the trace %s: another build, "
        "changed rollouts, or law 1 is broken%s%s",
        (long long)step, (long long)a->opened_at, is, was, a->index.changed ? "; " : "",
        a->index.changed ? a->index.changed : "");
}

/* The next step is trained on a record that the trace vouches for. */
static pl_status train_one(replay_again *a, pl_error *err)
{
    const int64_t step = a->r.state.step + 1;
    const int n_vocab = pl_source_arch(a->r.m.source)->n_vocab;
    replay_record x = {0};
    pl_step_stats stats;
    pl_status st = PL_OK;

    if (replay_index_step(&a->index, step))
        st = replay_record_open(
            &x, a->o->run_dir, step, n_vocab, pl_source_arch(a->r.m.source)->n_ctx, err);
    replay_record_close(&x);
    return st == PL_OK ? replay_train_step(&a->r, &stats, NULL, err) : st;
}

/* Where the policy before step s comes from: what is open, or a later checkpoint where the rollouts
 * in between are gone.  *missing: a step whose rollouts are wanted and are gone; 0: none. */
static int64_t start_of(const replay_again *a, const replay_step *s, int64_t *missing)
{
    const int64_t newest = replay_checkpoint(a->o->run_dir, s->step - 1);
    const int64_t open = a->is_open ? a->r.state.step : newest;
    int64_t from = open;
    char path[PL_CONFIG_STR + 64];

    *missing = 0;
    for (int64_t step = from + 1; step < s->step; step++) {
        snprintf(
            path, sizeof path, "%s/rollouts/step_%06lld.jsonl.zst", a->o->run_dir, (long long)step);
        if (pl_path_exists(path))
            continue;
        if (newest >= step) {
            from = step = newest; /* that step's training is behind it */
            continue;
        }
        *missing = step;
        break;
    }
    return from;
}

/* The policy before step s, said when it is the traced one. */
static pl_status bring_to(replay_again *a, const replay_step *s, pl_error *err)
{
    pl_status st = PL_OK;
    int trained = 0, is_fresh = 0;
    int64_t missing;
    const int64_t from = start_of(a, s, &missing);

    if (!a->is_open) {
        st = replay_open(&a->r, a->o, s->step - 1, err);
        a->is_open = st == PL_OK;
        is_fresh = 1;
    } else if (a->o->rollout_only && a->r.state.step < s->step - 1) {
        st = replay_load(&a->r, s->step - 1, err);
        is_fresh = 1;
    } else if (a->r.state.step < from) {
        st = replay_load(&a->r, from, err);
        is_fresh = 1;
    }
    if (is_fresh)
        a->opened_at = a->r.state.step;
    if (st == PL_OK && is_fresh)
        st = check_policy(a, err);
    if (st == PL_OK && a->o->rollout_only && a->r.state.step != s->step - 1)
        return pl_fail(err, PL_E_NOENT,
            "the checkpoint of step %lld is damaged, or not there any more",
            (long long)s->step - 1);
    while (st == PL_OK && a->r.state.step < s->step - 1) {
        if (cli_stop)
            return pl_fail(err, PL_E_STOPPED, "stopped by a signal before step %lld was replayed",
                (long long)s->step);
        st = train_one(a, err);
        trained++;
        if (st == PL_OK)
            st = check_policy(a, err);
    }
    if (st == PL_OK)
        replay_say_policy(a, s, is_fresh, trained);
    return st;
}

/* ---- a step, and all ---- */

static pl_status replay_one(replay_again *a, const replay_step *s, pl_error *err)
{
    const int64_t total = a->o->sample >= 0 ? 1 : (int64_t)s->n_groups * s->n;
    replay_record x = {0};
    replay_difference d = {0};
    int first = 0;

    pl_status st = bring_to(a, s, err);
    if (st != PL_OK)
        return st;
    const pl_arch *arch = pl_source_arch(a->r.m.source);
    st = replay_record_open(&x, a->o->run_dir, s->step, arch->n_vocab, arch->n_ctx, err);
    if (st == PL_OK)
        st = replay_generate(a, s, &x, &first, err);
    if (st == PL_OK) {
        replay_compare(&x, &a->batch, first, &d);
        a->n_steps++;
        a->n_samples += total;
        a->n_tokens += d.n_tokens;
        a->n_drafted += d.n_drafted;
        st = replay_say_step(a, s, &d, err);
    }
    if (st == PL_OK)
        st = cli_flush(err); /* nobody reads any more: no more work */
    replay_record_close(&x);
    if (st == PL_OK && d.n_samples > 0)
        st = pl_fail(err, PL_E_NUMERIC,
            "step %lld: %lld of %lld samples differ, the first is sample %u at token %d: %s is %s "
            "now, %s recorded (drafter %s, isa %s)",
            (long long)s->step, (long long)d.n_samples, (long long)total, d.uid, d.position, d.what,
            d.now, d.then, a->drafter, a->r.m.ops->name);
    return st;
}

static void add_step(char list[REPLAY_LIST], int64_t step)
{
    const size_t at = strlen(list);

    if (at + 32 < REPLAY_LIST)
        snprintf(list + at, REPLAY_LIST - at, "%s%lld", at > 0 ? ", " : "", (long long)step);
    else if (list[at - 1] != '.')
        snprintf(list + at, REPLAY_LIST - at, ", ...");
}

/* Without a policy there is nothing to generate with: such a step is left out. */
static int is_left_out(replay_again *a, const replay_step *s, int64_t *missing)
{
    int64_t step = 0;

    if (a->o->rollout_only)
        return replay_checkpoint(a->o->run_dir, s->step - 1) != s->step - 1;
    (void)start_of(a, s, &step);
    if (step > 0 && *missing == 0)
        *missing = step;
    return step > 0;
}

/* What was left out, and why. */
static pl_status conclude(replay_again *a, int64_t missing, pl_error *err)
{
    char steps[200];

    if (a->n_left == 0)
        return PL_OK;
    if (missing > 0) {
        list_steps(a, 1, steps, sizeof steps);
        return pl_fail(err, PL_E_NOENT,
            "'%s/rollouts/step_%06lld.jsonl.zst' is gone, and the policy of later steps comes of "
            "training on it: left out: %s; these need no training (--rollout-only): %s",
            a->o->run_dir, (long long)missing, a->left, steps);
    }
    if (!a->is_open)
        return pl_fail(err, PL_E_NOENT,
            "no step of the trace can be replayed without training: the run keeps no checkpoint "
            "before one");
    pl_log_warn(&a->r.log, "left out, because their policy is in no checkpoint: step%s %s",
        a->n_left == 1 ? "" : "s", a->left);
    return PL_OK;
}

static pl_status replay_all(replay_again *a, pl_error *err)
{
    pl_status st = PL_OK;
    int64_t last = 0, missing = 0;

    replay_say_trace(a);
    for (int i = 0; i < a->index.n && st == PL_OK; i++) {
        const replay_step *s = &a->index.steps[i];
        if (s->step < a->first || s->step > a->last)
            continue;
        if (is_left_out(a, s, &missing)) {
            add_step(a->left, s->step);
            a->n_left++;
            continue;
        }
        st = replay_one(a, s, err);
        add_step(a->done, s->step);
        last = s->step;
    }
    if (st == PL_OK && a->is_open && a->source.finish)
        st = a->source.finish(a->source.self, last, err);
    if (st == PL_OK && a->is_open)
        replay_say_verdict(a);
    return st == PL_OK ? conclude(a, missing, err) : st;
}

static void close_all(replay_again *a)
{
    pl_error ignored = {0};

    run_batch_done(&a->batch);
    if (a->source.close)
        a->source.close(a->source.self);
    run_data_close(&a->data);
    free(a->prompts);
    free(a->list);
    if (a->is_open)
        replay_close(&a->r);
    replay_index_done(&a->index);
    if (a->temp[0])
        (void)pl_dir_remove(a->temp, &ignored);
    free(a);
}

pl_status replay_rollouts_in(const replay_options *o, const char *dir, pl_error *err)
{
    replay_again *a = calloc(1, sizeof *a);
    pl_status st = PL_OK;

    if (!a)
        return pl_fail(err, PL_E_NOMEM, "no memory for a replay");
    a->o = o;
    a->dir = dir;
    if (!dir && o->drafter && strcmp(o->drafter, "random") == 0)
        st = replay_directory(o->run_dir, a->temp, err);
    if (st == PL_OK)
        st = prepare(a, dir ? dir : a->temp, err);
    if (st == PL_OK && dir)
        snprintf(a->config.trainer.default_local_dir, PL_CONFIG_STR, "%s", dir);
    if (st == PL_OK)
        st = replay_all(a, err);
    close_all(a);
    return st;
}

pl_status replay_rollouts(const replay_options *o, pl_error *err)
{
    return replay_rollouts_in(o, NULL, err);
}

/* ---- worker processes ---- */

int replay_with_workers(const replay_options *o, int argc, char *const *argv)
{
    replay_again *a = calloc(1, sizeof *a);
    char **words = calloc((size_t)argc + 1, sizeof *words);
    char dir[PL_CONFIG_STR] = "";
    pl_error err = {0}, ignored = {0};
    pl_status st = a && words ? PL_OK : pl_fail(&err, PL_E_NOMEM, "no memory for a replay");
    int code = 0;

    if (st == PL_OK) {
        a->o = o;
        st = replay_directory(o->run_dir, dir, &err);
    }
    if (st == PL_OK)
        st = prepare(a, dir, &err);
    if (st == PL_OK && argc > RUN_TRAINER_WORDS - 1)
        st =
            pl_fail(&err, PL_E_USAGE, "a command line of %d words is too long for --workers", argc);
    if (st == PL_OK) {
        words[0] = (char *)(uintptr_t) "replay"; /* trainer replay DIR ARG... */
        words[1] = dir;
        memcpy(words + 2, argv + 1, (size_t)(argc - 1) * sizeof *words);
        a->config.wire.trainer = words;
        a->config.wire.n_trainer = argc + 1;
        snprintf(a->config.trainer.default_local_dir, PL_CONFIG_STR, "%s", dir);
        code = run_supervise(&a->config);
    } else {
        if (o->json)
            replay_say_end("error", err.msg);
        code = cli_report(&err);
    }
    if (dir[0] && pl_dir_remove(dir, &ignored) != PL_OK)
        fprintf(stderr, "paceline: '%s' is left behind: %s\n", dir, ignored.msg);
    if (a)
        close_all(a);
    free(words);
    return code;
}
