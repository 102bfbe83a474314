/* trainer/checkpoint.c - checkpoints of a run: written beside, committed by rename, found, read.
 *
 *   RUN/checkpoints/.global_step_N.tmp/   being written, or being removed: never read
 *   RUN/checkpoints/global_step_N/        policy/ (Hugging Face, fp32 masters),
 * optimizer.safetensors, state.json: the exact state after step N
 *   RUN/checkpoints/latest_checkpointed_iteration.txt "N", RUN/latest "global_step_N": for people
 */
#define _GNU_SOURCE
#include "trainer/checkpoint.h"
#include "core/file.h"
#include "model/source.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PREFIX "global_step_"

static pl_status join_step(char out[CHECKPOINT_PATH], const char *root, const char *before,
    int64_t step, const char *after, pl_error *err)
{
    char name[64];

    if (snprintf(name, sizeof name, "%s" PREFIX "%lld%s", before, (long long)step, after) < 0)
        return pl_fail(err, PL_E_IO, "checkpoint name");
    return checkpoint_join(out, root, name, err);
}

/* ---- what is there ---- */

/* N of "global_step_N" written as we write it, else -1. */
static int64_t step_of(const char *name)
{
    const size_t len = strlen(PREFIX);
    const size_t n = strlen(name);

    if (n <= len || n > len + 15 || strncmp(name, PREFIX, len) != 0 ||
        strspn(name + len, "0123456789") != n - len || (name[len] == '0' && n > len + 1))
        return -1;
    return (int64_t)strtoll(name + len, NULL, 10);
}

static int descending(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Steps of the checkpoints in root, newest first, *returned owned*.  A root that is not there has
 * none. */
static pl_status list_steps(const char *root, int64_t **out, int *n_out, pl_error *err)
{
    const struct dirent *entry;
    int64_t *steps = NULL;
    int n = 0, room = 0;
    DIR *d = opendir(root);

    *out = NULL;
    *n_out = 0;
    if (!d && errno == ENOENT)
        return PL_OK;
    if (!d)
        return pl_fail(err, PL_E_IO, "open '%s': %s", root, strerror(errno));
    while ((entry = readdir(d)) != NULL) {
        const int64_t step = step_of(entry->d_name);
        if (step < 0)
            continue;
        if (n == room) {
            room = room ? 2 * room : 16;
            int64_t *p = realloc(steps, (size_t)room * sizeof *p);
            if (!p) {
                free(steps);
                (void)closedir(d);
                return pl_fail(err, PL_E_NOMEM, "list of checkpoints");
            }
            steps = p;
        }
        steps[n++] = step;
    }
    (void)closedir(d);
    if (n > 0)
        qsort(steps, (size_t)n, sizeof *steps, descending);
    *out = steps;
    *n_out = n;
    return PL_OK;
}

/* ---- removing ---- */

/* Rename first: what is half removed must not look like a damaged checkpoint. */
static pl_status remove_step(const char *root, int64_t step, pl_error *err)
{
    char path[CHECKPOINT_PATH], temp[CHECKPOINT_PATH];
    pl_status st = join_step(path, root, "", step, "", err);

    if (st == PL_OK)
        st = join_step(temp, root, ".", step, ".old.tmp", err);
    if (st == PL_OK)
        st = pl_dir_remove(temp, err);
    if (st != PL_OK)
        return st;
    if (rename(path, temp) != 0)
        return errno == ENOENT ? PL_OK : pl_fail(err, PL_E_IO, "'%s': %s", path, strerror(errno));
    return pl_dir_remove(temp, err);
}

/* Remove what a killed run left unfinished. */
static pl_status remove_unfinished(const char *root, pl_error *err)
{
    char path[CHECKPOINT_PATH];
    const struct dirent *entry;
    pl_status st = PL_OK;
    DIR *d = opendir(root);

    if (!d)
        return pl_fail(err, PL_E_IO, "open '%s': %s", root, strerror(errno));
    while (st == PL_OK && (entry = readdir(d)) != NULL) {
        const char *end = strrchr(entry->d_name, '.');
        if (strncmp(entry->d_name, "." PREFIX, strlen("." PREFIX)) != 0 || !end ||
            strcmp(end, ".tmp") != 0)
            continue;
        st = checkpoint_join(path, root, entry->d_name, err);
        if (st == PL_OK)
            st = pl_dir_remove(path, err);
    }
    (void)closedir(d);
    return st;
}

/* Keep the newest max_keep up to step.  A failure costs disk space, not the run. */
static void prune(const pl_trainer *t, const char *root, int64_t step, int max_keep)
{
    int64_t *steps = NULL;
    int n = 0, n_kept = 0;
    pl_error err;
    pl_status st = list_steps(root, &steps, &n, &err);

    for (int i = 0; i < n && st == PL_OK; i++)
        if (steps[i] <= step && ++n_kept > max_keep)
            st = remove_step(root, steps[i], &err);
    free(steps);
    if (st != PL_OK)
        pl_log_warn(t->log, "old checkpoints not removed, continuing: %s", err.msg);
}

/* ---- writing ---- */

/* A file that does not change any more, here too: another name of it, or a copy. */
static pl_status place(const char *from, const char *to, pl_error *err)
{
    pl_file f;

    if (link(from, to) == 0)
        return PL_OK;
    pl_status st = pl_file_open(&f, from, err);
    if (st != PL_OK)
        return st;
    st = pl_file_write(to, f.data, f.size, err);
    pl_file_close(&f);
    return st;
}

/* The drafter that goes with the policy.  It decides no bit: without it the checkpoint is whole. */
static void write_drafter(const char *temp, const pl_trainer *t, const char *drafter)
{
    static const char *const names[] = {"config.json", "model.safetensors"};
    char dir[CHECKPOINT_PATH], from[CHECKPOINT_PATH], to[CHECKPOINT_PATH];
    pl_error err;
    pl_status st = checkpoint_join(dir, temp, "drafter", &err);

    if (st == PL_OK)
        st = pl_dir_make(dir, &err);
    for (size_t i = 0; i < sizeof names / sizeof names[0] && st == PL_OK; i++) {
        st = checkpoint_join(from, drafter, names[i], &err);
        if (st == PL_OK)
            st = checkpoint_join(to, dir, names[i], &err);
        if (st == PL_OK)
            st = place(from, to, &err);
    }
    if (st == PL_OK)
        return;
    pl_log_warn(t->log, "the checkpoint has no drafter: %s", err.msg);
    (void)pl_dir_remove(dir, NULL);
}

static pl_status write_parts(const char *temp, const pl_trainer *t, const pl_tokenizer *tok,
    const char *drafter, const pl_run_state *s, pl_error *err)
{
    const checkpoint_state state = {.run = *s, .n_updates = t->n_updates};
    char path[CHECKPOINT_PATH];
    pl_status st = checkpoint_join(path, temp, "policy", err);

    if (st == PL_OK)
        st = pl_dir_make(path, err);
    if (st == PL_OK)
        st = pl_model_save(
            path, pl_model_arch(t->model), pl_model_params(t->model), t->masters, 0, tok, err);
    if (st == PL_OK)
        st = checkpoint_join(path, temp, "optimizer.safetensors", err);
    if (st == PL_OK)
        st = moments_save(t, path, err);
    if (st == PL_OK && drafter)
        write_drafter(temp, t, drafter);
    if (st == PL_OK)
        st = state_save(temp, &state, err);
    return st;
}

static pl_status write_latest(const char *run_dir, const char *root, int64_t step, pl_error *err)
{
    char path[CHECKPOINT_PATH], text[64];

    int n = snprintf(text, sizeof text, PREFIX "%lld\n", (long long)step);
    pl_status st = checkpoint_join(path, run_dir, "latest", err);
    if (st == PL_OK)
        st = pl_file_write(path, text, (size_t)n, err);
    n = snprintf(text, sizeof text, "%lld", (long long)step); /* verl writes no newline */
    if (st == PL_OK)
        st = checkpoint_join(path, root, "latest_checkpointed_iteration.txt", err);
    if (st == PL_OK)
        st = pl_file_write(path, text, (size_t)n, err);
    return st;
}

pl_status pl_checkpoint_save(const char *run_dir, const pl_trainer *t, const pl_tokenizer *tok,
    const char *drafter, const pl_run_state *s, int max_keep, pl_error *err)
{
    char root[CHECKPOINT_PATH], temp[CHECKPOINT_PATH], path[CHECKPOINT_PATH];
    pl_status st = checkpoint_join(root, run_dir, "checkpoints", err);

    if (st == PL_OK)
        st = join_step(temp, root, ".", s->step, ".tmp", err);
    if (st == PL_OK)
        st = join_step(path, root, "", s->step, "", err);
    if (st == PL_OK)
        st = pl_dir_make(root, err);
    if (st == PL_OK)
        st = remove_unfinished(root, err);
    if (st != PL_OK)
        return pl_wrap(err, st, "checkpoint of step %lld", (long long)s->step);

    st = write_parts(temp, t, tok, drafter, s, err);
    if (st == PL_OK && pl_path_exists(path)) /* a damaged one that the run has come back to */
        st = remove_step(root, s->step, err);
    if (st == PL_OK)
        st = pl_dir_commit(temp, path, err);
    if (st != PL_OK) {
        (void)pl_dir_remove(temp, NULL);
        return pl_wrap(err, st, "checkpoint of step %lld was not written, older ones are untouched",
            (long long)s->step);
    }
    if (max_keep > 0)
        prune(t, root, s->step, max_keep);
    return write_latest(run_dir, root, s->step, err);
}

/* ---- finding and reading ---- */

pl_status pl_checkpoint_find(const char *run_dir, char *dir, size_t dir_size, pl_error *err)
{
    char root[CHECKPOINT_PATH], path[CHECKPOINT_PATH];
    pl_error cause, first = {0};
    checkpoint_state state;
    int64_t *steps = NULL;
    int n = 0, i = 0;
    pl_status st = checkpoint_join(root, run_dir, "checkpoints", err);

    if (st == PL_OK)
        st = list_steps(root, &steps, &n, err);
    if (st != PL_OK)
        return st;
    for (; i < n; i++) {
        st = join_step(path, root, "", steps[i], "", &cause);
        if (st == PL_OK)
            st = state_load(path, &state, &cause);
        if (st == PL_OK)
            break;
        if (i == 0)
            first = cause;
    }
    free(steps);
    if (n == 0)
        return pl_fail(err, PL_E_NOENT, "no checkpoint in '%s'", root);
    if (i == n)
        return pl_fail(err, PL_E_FORMAT,
            "none of %d checkpoints in '%s' is whole (newest: %s); move them away to start anew", n,
            root, first.msg);
    if (snprintf(dir, dir_size, "%s", path) >= (int)dir_size)
        return pl_fail(err, PL_E_IO, "'%s': name too long", path);
    if (err)
        *err = (pl_error){0};
    if (i > 0)
        pl_error_set(err, PL_OK,
            "%d damaged checkpoints passed over, continuing at '%s' (newest: %s)", i, path,
            first.msg);
    return PL_OK;
}

static pl_status check_shapes(const pl_source *src, const pl_model *model, pl_error *err)
{
    const pl_param_table *a = pl_source_params(src), *b = pl_model_params(model);
    int is_same = a->n_params == b->n_params && a->n_elements == b->n_elements;

    for (int i = 0; i < a->n_params && is_same; i++)
        is_same = a->params[i].rows == b->params[i].rows &&
                  a->params[i].cols == b->params[i].cols &&
                  strcmp(a->params[i].name, b->params[i].name) == 0;
    return is_same ? PL_OK
                   : pl_fail(err, PL_E_SHAPE,
                         "its policy has another architecture than the model of this run");
}

static pl_status load_policy(pl_trainer *t, const char *path, pl_error *err)
{
    pl_source *src = NULL;
    pl_status st = pl_source_open(&src, path, err);

    if (st == PL_OK)
        st = check_shapes(src, t->model, err);
    if (st == PL_OK)
        st = pl_model_load(t->model, src, t->masters, err);
    pl_source_close(src);
    return st;
}

pl_status pl_checkpoint_load(const char *dir, pl_trainer *t, pl_run_state *s, pl_error *err)
{
    char path[CHECKPOINT_PATH];
    checkpoint_state state;
    pl_status st = state_load(dir, &state, err);

    if (st == PL_OK)
        st = checkpoint_join(path, dir, "policy", err);
    if (st == PL_OK)
        st = load_policy(t, path, err);
    if (st == PL_OK)
        st = checkpoint_join(path, dir, "optimizer.safetensors", err);
    if (st == PL_OK)
        st = moments_load(t, path, err);
    if (st != PL_OK)
        return pl_wrap(err, st, "checkpoint '%s'", dir);
    t->n_updates = state.n_updates;
    *s = state.run;
    return PL_OK;
}
