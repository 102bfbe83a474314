/* cli/replay_drafter.c - who drafts in a replay, and the directory that it takes.  Nothing is
 * trained: a run's drafter is read, never written. */
#include "cli/replay_parts.h"
#include "core/file.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- versions of the run ---- */

static int version_path(const replay_options *o, uint32_t version, char out[PL_CONFIG_STR])
{
    const int n = snprintf(out, PL_CONFIG_STR, "%s/drafter/versions/%u", o->run_dir, version);
    return n > 0 && n < PL_CONFIG_STR && pl_path_exists(out);
}

static int ascending(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* "3, 4, 7" */
static void list_versions(const replay_options *o, char *out, size_t room)
{
    enum { VERSIONS_MAX = 64 };
    char path[PL_CONFIG_STR + 32];
    uint32_t found[VERSIONS_MAX];
    int n = 0;
    size_t at = 0;

    snprintf(path, sizeof path, "%s/drafter/versions", o->run_dir);
    DIR *list = opendir(path);
    for (const struct dirent *e; list && n < VERSIONS_MAX && (e = readdir(list)) != NULL;) {
        char *end;
        const unsigned long v = strtoul(e->d_name, &end, 10);
        if (e->d_name[0] >= '1' && e->d_name[0] <= '9' && !*end && v <= UINT32_MAX)
            found[n++] = (uint32_t)v;
    }
    if (list)
        (void)closedir(list);
    qsort(found, (size_t)n, sizeof *found, ascending);
    snprintf(out, room, "none");
    for (int i = 0; i < n && at + 16 < room; i++)
        at += (size_t)snprintf(out + at, room - at, "%s%u", i > 0 ? ", " : "", found[i]);
}

static void draft_with(run_config *c, const char *dir)
{
    c->speculative.enable = 1;
    snprintf(c->speculative.method, PL_CONFIG_STR, "eagle");
    snprintf(c->speculative.init, PL_CONFIG_STR, "%s", dir);
}

static void draft_by_suffix(run_config *c, char name[96])
{
    c->speculative.enable = 1;
    snprintf(c->speculative.method, PL_CONFIG_STR, "suffix");
    snprintf(name, 96, "suffix");
}

static pl_status choose_version(
    const replay_options *o, run_config *c, char name[96], pl_error *err)
{
    char path[PL_CONFIG_STR], there[256], *end;
    const unsigned long v = strtoul(o->drafter, &end, 10);

    if (o->drafter[0] < '1' || o->drafter[0] > '9' || *end || v > UINT32_MAX)
        return pl_fail(err, PL_E_USAGE,
            "--drafter '%.60s' is none of none, suffix, random, and no version of a drafter",
            o->drafter);
    if (!version_path(o, (uint32_t)v, path)) {
        list_versions(o, there, sizeof there);
        return pl_fail(err, PL_E_NOENT,
            "drafter version %lu is not in '%s/drafter/versions': there are %s", v, o->run_dir,
            there);
    }
    draft_with(c, path);
    snprintf(name, 96, "version %lu", v);
    return PL_OK;
}

static void say_gone(const replay_options *o, uint32_t version, const char *name)
{
    if (o->is_quiet)
        return;
    fprintf(stderr,
        "paceline: the run drafted with version %u, which is not here any more: %s drafts (the "
        "bits "
        "are the same)\n",
        version, name);
}

/* The newest one that drafted in the trace and is kept; what the run began with; the suffix drafter
 * beside them alone. */
static void choose_as_run(
    const replay_options *o, const replay_index *x, run_config *c, char name[96])
{
    char path[PL_CONFIG_STR];
    char init[PL_CONFIG_STR];
    uint32_t newest = 0;

    memcpy(init, c->speculative.init, sizeof init);
    if (!c->speculative.enable) {
        snprintf(name, 96, "none");
        return;
    }
    for (int i = x->n - 1; i >= 0 && run_has_learned(c); i--) {
        const uint32_t v = x->steps[i].drafter_version;
        if (newest == 0)
            newest = v;
        if (v > 0 && version_path(o, v, path)) {
            draft_with(c, path);
            snprintf(name, 96, "version %u", v);
            if (v != newest)
                say_gone(o, newest, name);
            return;
        }
    }
    const int is_gone = run_has_learned(c) && !pl_path_exists(c->speculative.init);
    if (run_has_learned(c) && !is_gone)
        snprintf(name, 96, "%.80s", c->speculative.init);
    else
        draft_by_suffix(c, name);
    if (newest > 0)
        say_gone(o, newest, name);
    else if (is_gone && !o->is_quiet)
        fprintf(stderr,
            "paceline: the run's drafter '%.200s' is not here any more: suffix drafts\n", init);
}

pl_status replay_drafter_choose(const replay_options *o, const replay_index *x, const char *dir,
    run_config *c, char name[96], pl_error *err)
{
    char path[PL_CONFIG_STR];

    c->speculative.train = 0;
    if (!o->drafter) {
        choose_as_run(o, x, c, name);
        return PL_OK;
    }
    snprintf(name, 96, "%.80s", o->drafter);
    if (strcmp(o->drafter, "none") == 0) {
        c->speculative.enable = 0;
    } else if (strcmp(o->drafter, "suffix") == 0) {
        draft_by_suffix(c, name);
    } else if (strcmp(o->drafter, "random") == 0) {
        if (snprintf(path, sizeof path, "%s/random", dir) >= (int)sizeof path)
            return pl_fail(err, PL_E_IO, "'%s': name too long", dir);
        draft_with(c, path);
    } else {
        return choose_version(o, c, name, err);
    }
    return PL_OK;
}

pl_status replay_drafter_make(
    const replay_options *o, const pl_model *model, const run_config *c, pl_error *err)
{
    enum { RANDOM_VOCAB = 8192 };
    const int n_target = pl_model_arch(model)->n_vocab;
    const int n = n_target < RANDOM_VOCAB ? n_target : RANDOM_VOCAB;
    pl_eagle *e = NULL;

    if (!o->drafter || strcmp(o->drafter, "random") != 0)
        return PL_OK;
    int32_t *ids = malloc((size_t)n * sizeof *ids);
    if (!ids)
        return pl_fail(err, PL_E_NOMEM, "no memory for a draft vocabulary of %d", n);
    for (int i = 0; i < n; i++)
        ids[i] = i;
    const pl_eagle_options eo = {.n_vocab = n, .vocab = ids, .seed = (uint64_t)c->rollout.seed};
    pl_status st = pl_eagle_new(&e, model, &eo, err);
    if (st == PL_OK)
        st = pl_dir_make(c->speculative.init, err);
    if (st == PL_OK)
        st = pl_eagle_save(e, c->speculative.init, err);
    pl_eagle_free(e);
    free(ids);
    return st == PL_OK ? st : pl_wrap(err, st, "random drafter");
}

/* ---- a place ---- */

pl_status replay_directory(const char *run_dir, char out[PL_CONFIG_STR], pl_error *err)
{
    const char *base = getenv("TMPDIR");
    char beside[PL_CONFIG_STR + 8];

    snprintf(beside, sizeof beside, "%s/..", run_dir);
    if (!base || !base[0])
        base = access(beside, W_OK) == 0 ? beside : "/tmp";
    if (snprintf(out, PL_CONFIG_STR, "%s/replay-XXXXXX", base) >= PL_CONFIG_STR) {
        out[0] = 0;
        return pl_fail(err, PL_E_IO, "'%s': name too long", base);
    }
    if (mkdtemp(out))
        return PL_OK;
    const int why = errno;
    out[0] = 0;
    return pl_fail(err, PL_E_IO,
        "a directory for the replay in '%s': %s: set TMPDIR to another place", base, strerror(why));
}
