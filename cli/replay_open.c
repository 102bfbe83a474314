/* cli/replay_open.c - a run opened for reading: its configuration, its model, the newest checkpoint
 * of at most so many steps.
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

/* ---- configuration ---- */

/* The words of the command line that are keys: all but the alternatives of --what-if. */
static int is_key(const replay_options *o, const char *word)
{
    const size_t n = strcspn(word, "=");
    return !o->what_if || memchr(word, '.', n) != NULL;
}

/* Where the model lies decides nothing by itself: its weights are compared. */
static uint64_t hash_of(run_config *c)
{
    char path[PL_CONFIG_STR];

    memcpy(path, c->rollout.model_path, sizeof path);
    memset(c->rollout.model_path, 0, sizeof c->rollout.model_path);
    const uint64_t h = run_config_hash(c);
    memcpy(c->rollout.model_path, path, sizeof path);
    return h;
}

/* One by one, so that the one can be named. */
static pl_status check_overrides(const char *path, char *const *words, int n, pl_error *err)
{
    run_config *c = malloc(sizeof *c);
    pl_status st =
        c ? run_config_load(c, path, NULL, 0, err) : pl_fail(err, PL_E_NOMEM, "no memory");
    const uint64_t plain = st == PL_OK ? hash_of(c) : 0;

    for (int i = 0; i < n && st == PL_OK; i++) {
        st = run_config_load(c, path, words + i, 1, err);
        if (st == PL_OK && hash_of(c) != plain)
            st = pl_fail(err, PL_E_CONFIG,
                "'%.100s' decides bits, so that would be another run: use --train-only or "
                "--what-if",
                words[i]);
    }
    free(c);
    return st;
}

pl_status replay_config(const replay_options *o, run_config *c, pl_error *err)
{
    enum { OWN = 3, LINE = PL_CONFIG_STR + 64 };
    char path[PL_CONFIG_STR + 16], lines[OWN][LINE];
    char **words = calloc((size_t)o->n_overrides + OWN, sizeof *words);
    int n = 0;
    pl_status st = PL_OK;

    snprintf(path, sizeof path, "%s/config.yaml", o->run_dir);
    if (!words)
        st = pl_fail(err, PL_E_NOMEM, "no memory for the configuration");
    else if (!pl_path_exists(path))
        st = pl_fail(err, PL_E_NOENT, "'%s' is not the directory of a run: it has no config.yaml",
            o->run_dir);
    for (int i = 0; i < o->n_overrides && st == PL_OK; i++)
        if (is_key(o, o->overrides[i]))
            words[n++] = o->overrides[i];
    if (st == PL_OK && !o->train_only && !o->what_if)
        st = check_overrides(path, words, n, err);
    if (st == PL_OK && o->isa && snprintf(lines[0], LINE, "trainer.isa=%s", o->isa) < LINE)
        words[n++] = lines[0];
    if (st == PL_OK && o->threads > 0 &&
        snprintf(lines[1], LINE, "trainer.threads=%lld", (long long)o->threads) < LINE)
        words[n++] = lines[1];
    if (st == PL_OK && o->controller &&
        snprintf(lines[2], LINE, "speculative.controller=%s", o->controller) < LINE)
        words[n++] = lines[2];
    if (st == PL_OK)
        st = run_config_load(c, path, words, n, err);
    free(words);
    if (st != PL_OK)
        return st;
    snprintf(c->trainer.default_local_dir, PL_CONFIG_STR, "%s", o->run_dir); /* where it is now */
    c->rollout.num_workers = o->workers > 0 ? o->workers : 0;
    return PL_OK;
}

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
    const int64_t most = r->config.actor.ppo_max_token_len / 32 * 32;
    const int fits = most > 0 && most < n_ctx ? (int)most : n_ctx;
    replay_index x;
    pl_error none = {0};

    if (r->o->rollouts || replay_index_read(&x, r->o->run_dir, &none) != PL_OK)
        return fits;
    const int64_t n = x.longest + r->config.data.max_response_length;
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
    pl_actor_options actor = r->config.actor;
    run_plan plan;
    float *masters = r->m.masters;

    run_plan_make(&r->config, pl_source_arch(r->m.source),
        max_len > response ? max_len - response : 1, pl_team_size(r->m.team), &plan);
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

pl_status replay_open(replay *r, const replay_options *o, int64_t last_step, pl_error *err)
{
    memset(r, 0, sizeof *r);
    r->o = o;
    r->log = (pl_log){PL_LOG_INFO, STDERR_FILENO, isatty(STDERR_FILENO)};
    r->report = (run_report){.is_tty = r->log.is_tty, .t0 = run_seconds()};
    pl_status st = replay_config(o, &r->config, err);
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
        replay_close(r); /* its weights are a mixture */
        limit = step - 1;
        st = PL_OK;
    }
    if (st != PL_OK)
        replay_close(r);
    return st;
}

void replay_close(replay *r)
{
    pl_trainer_free(r->trainer);
    r->trainer = NULL;
    cli_model_close(&r->m);
}
