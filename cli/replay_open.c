/* cli/replay_open.c - a run opened for reading: its model, the newest checkpoint of at most so many
 * steps.
 *
 * The run may still be going on: a checkpoint that vanishes or is damaged is passed over for an
 * older one. */
#include "cli/replay_parts.h"
#include "core/file.h"

#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECKPOINT "global_step_"

/* ---- checkpoints ---- */

int64_t replay_checkpoint(const char *run_dir, int64_t limit)
{
    char path[PL_CONFIG_STR + 16];
    int64_t found = 0;

    snprintf(path, sizeof path, "%s/checkpoints", run_dir);
    DIR *list = opendir(path);
    for (const struct dirent *e; list && (e = readdir(list)) != NULL;) {
        const size_t n = strlen(CHECKPOINT);
        char *end;
        if (strncmp(e->d_name, CHECKPOINT, n) != 0 || e->d_name[n] < '1' || e->d_name[n] > '9')
            continue;
        const long long step = strtoll(e->d_name + n, &end, 10);
        if (!*end && step <= limit && step > found)
            found = step;
    }
    if (list)
        (void)closedir(list);
    return found;
}

/* ---- opening ---- */

/* Tokens of a sequence: of the trace when there is one; other rollouts may be as long as a
 * micro-batch is. */
static int longest(const replay *r)
{
    const int n_ctx = pl_source_arch(r->m.source)->n_ctx;
    int64_t budget = r->config.actor.ppo_max_token_len;
    for (int i = 0; i < r->sittings.n; i++)
        if (r->sittings.list[i].config.actor.ppo_max_token_len > budget)
            budget = r->sittings.list[i].config.actor.ppo_max_token_len;
    const int64_t most = budget / 32 * 32;
    const int fits = most > 0 && most < n_ctx ? (int)most : n_ctx;
    replay_index x;
    pl_error none = {0};

    if (r->o->rollouts || replay_index_read(&x, r->o->run_dir, &none) != PL_OK)
        return fits;
    const int64_t n = (int64_t)x.longest + x.max_tokens; /* of any sitting */
    replay_index_done(&x);
    return n < fits ? (int)n : fits;
}

static pl_status open_model(replay *r, pl_error *err)
{
    const cli_model_options mo = {.path = r->config.rollout.model_path,
        .isa = r->config.trainer.isa,
        .threads = r->config.trainer.threads,
        .with_backward = 1};

    if (!pl_path_exists(mo.path))
        return pl_fail(err, PL_E_NOENT,
            "the model that the run began with is not at '%s': say where it is with "
            "actor_rollout_ref.model.path=PATH (its weights are compared)",
            mo.path);
    return cli_model_open(&r->m, &mo, &r->log, err);
}

static pl_status open_trainer(replay *r, pl_error *err)
{
    const int max_len = longest(r), response = (int)r->config.data.max_response_length;
    run_config c = r->config;
    pl_actor_options actor;
    run_plan plan;
    float *masters = r->m.masters;

    for (int i = 0; i < r->sittings.n; i++) { /* room for what any of them wants */
        const pl_actor_options *o = &r->sittings.list[i].config.actor;
        c.actor.use_kl_loss |= o->use_kl_loss;
        if (o->ppo_max_token_len > c.actor.ppo_max_token_len)
            c.actor.ppo_max_token_len = o->ppo_max_token_len;
    }
    actor = c.actor;
    run_plan_make(&c, pl_source_arch(r->m.source), max_len > response ? max_len - response : 1,
        pl_team_size(r->m.team), &plan);
    const pl_status st = run_plan_check(&plan, err);
    if (st != PL_OK)
        return st;
    snprintf(actor.activations, sizeof actor.activations, "%s", plan.keep ? "keep" : "recompute");
    r->m.masters = NULL; /* taken, also on failure */
    return pl_trainer_new(&r->trainer, r->m.model, masters, &actor, max_len,
        r->config.trainer.total_training_steps, &r->log, err);
}

pl_status replay_load(replay *r, int64_t step, pl_error *err)
{
    char dir[PL_CONFIG_STR + 64];

    if (step == 0)
        return PL_OK;
    snprintf(dir, sizeof dir, "%s/checkpoints/" CHECKPOINT "%lld", r->o->run_dir, (long long)step);
    return pl_checkpoint_load(dir, r->trainer, &r->state, err);
}

static void close_parts(replay *r)
{
    pl_trainer_free(r->trainer);
    r->trainer = NULL;
    cli_model_close(&r->m);
}

pl_status replay_open(replay *r, const replay_options *o, int64_t last_step, pl_error *err)
{
    memset(r, 0, sizeof *r);
    r->o = o;
    r->log = (pl_log){PL_LOG_INFO, STDERR_FILENO, isatty(STDERR_FILENO)};
    r->report = (run_report){.is_tty = r->log.is_tty, .t0 = run_seconds()};
    pl_status st = replay_config(o, &r->config, err);
    if (st == PL_OK)
        st = replay_sittings_read(&r->sittings, o, err);
    if (st == PL_OK && r->sittings.edited[0])
        pl_log_warn(&r->log,
            "'%s/config.yaml' is not the one that the run was traced with: %s: that of the trace "
            "is taken",
            o->run_dir, r->sittings.edited);
    for (int64_t limit = last_step; st == PL_OK;) {
        const int64_t step = replay_checkpoint(o->run_dir, limit);
        memset(&r->state, 0, sizeof r->state);
        r->state.val_before = NAN;
        r->state.samples_per_group = r->config.rollout.n;
        r->state.config_hash = run_config_hash(&r->config);
        st = open_model(r, err);
        if (st == PL_OK)
            st = open_trainer(r, err);
        if (st != PL_OK)
            break;
        st = replay_load(r, step, err);
        if (st != PL_E_FORMAT && st != PL_E_NOENT && st != PL_E_IO)
            break;
        pl_log_warn(&r->log, "%s: an older one is taken", err->msg);
        close_parts(r); /* its weights are a mixture */
        limit = step - 1;
        st = PL_OK;
    }
    if (st != PL_OK)
        replay_close(r);
    return st;
}

void replay_close(replay *r)
{
    close_parts(r);
    replay_sittings_done(&r->sittings);
}
