/* trainer/spot_versions.c - published drafters: dir/versions/N, whole or absent, and gate.json in
 * each, which says why.  They are written by a thread: fsync takes as long as it likes, and a
 * device must be given back at once. */
#include "core/file.h"
#include "core/json.h"
#include "model/json_file.h"
#include "trainer/spot_internal.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { NOTE_BYTES = 1 << 16, VERSION_DIGITS = 9 };

static pl_status version_dir(const pl_spot *s, uint32_t version, char out[SPOT_PATH], pl_error *err)
{
    if (snprintf(out, SPOT_PATH, "%s/versions/%u", s->dir, (unsigned)version) >= SPOT_PATH)
        return pl_fail(err, PL_E_IO, "'%s': the name is too long", s->dir);
    return PL_OK;
}

/* N of a directory's name, 0: it is none. */
static uint32_t version_of(const char *name)
{
    const size_t n = strlen(name);

    if (n < 1 || n > VERSION_DIGITS || strspn(name, "0123456789") != n || name[0] == '0')
        return 0;
    return (uint32_t)strtoul(name, NULL, 10);
}

/* The highest version below limit on disk, 0: none; *n of all. */
static uint32_t newest_below(const pl_spot *s, uint32_t limit, uint32_t *lowest, int *n)
{
    char path[SPOT_PATH + 16];
    uint32_t best = 0;

    *lowest = 0;
    *n = 0;
    snprintf(path, sizeof path, "%s/versions", s->dir);
    DIR *d = opendir(path);
    if (!d)
        return 0;
    for (const struct dirent *e = readdir(d); e; e = readdir(d)) {
        const uint32_t v = version_of(e->d_name);
        if (v == 0)
            continue;
        ++*n;
        if (v < limit && v > best)
            best = v;
        if (*lowest == 0 || v < *lowest)
            *lowest = v;
    }
    (void)closedir(d);
    return best;
}

/* ---- reading ---- */

static pl_status read_drafter(spot_aside *a, pl_error *err)
{
    const pl_status st = pl_eagle_load(&a->e, a->s->target, a->path, err);

    if (st == PL_OK)
        pl_eagle_pack_alone(a->e);
    return st;
}

pl_status spot_drafter_read(pl_spot *s, const char *dir, pl_eagle **out, pl_error *err)
{
    const pl_status st = spot_aside_run(s, &s->reading, read_drafter, dir, err);

    if (st != PL_OK)
        return st;
    *out = s->reading.e;
    s->reading.e = NULL;
    return PL_OK;
}

pl_status spot_version_load(pl_spot *s, uint32_t version, pl_eagle **out, pl_error *err)
{
    char path[SPOT_PATH];
    pl_status st = version_dir(s, version, path, err);

    return st == PL_OK ? spot_drafter_read(s, path, out, err) : st;
}

static double number_of(const json_t *root, const char *key)
{
    const json_t *x = json_object_get(root, key);
    return json_is_number(x) ? json_number_value(x) : 0;
}

int pl_spot_version(const char *dir, uint32_t version, pl_spot_published *out)
{
    json_t *root = NULL;

    *out = (pl_spot_published){.version = version};
    if (snprintf(out->dir, sizeof out->dir, "%s/versions/%u", dir, (unsigned)version) >=
        (int)sizeof out->dir)
        return 0;
    if (json_file_read(&root, out->dir, "gate.json", NOTE_BYTES, NULL) != PL_OK)
        return 1;
    const double parent = number_of(root, "parent"), step = number_of(root, "step");
    out->parent = parent > 0 && parent < version ? (uint32_t)parent : 0;
    out->step = step > 0 && step < 1e15 ? (int64_t)step : 0;
    out->tau = number_of(root, "tau");
    out->tau_parent = number_of(root, "tau_parent");
    out->se = number_of(root, "se");
    out->is_rollback = json_is_true(json_object_get(root, "is_rollback"));
    json_decref(root);
    return 1;
}

static void read_note(pl_spot *s, uint32_t version)
{
    pl_spot_published p;

    (void)pl_spot_version(s->dir, version, &p);
    s->serving_parent = p.parent;
    s->serving_is_rollback = p.is_rollback;
}

/* Of bytes that are there and cannot be used: they will not get better. */
static int is_damage(pl_status st)
{
    return st == PL_E_FORMAT || st == PL_E_NUMERIC || st == PL_E_NOENT;
}

pl_status spot_versions_open(pl_spot *s, pl_error *err)
{
    uint32_t lowest, version = UINT32_MAX;
    char path[SPOT_PATH];
    pl_error cause = {0};
    int n;

    for (;;) {
        version = newest_below(s, version, &lowest, &n);
        if (version == 0 || version == s->serving_version)
            return PL_OK;
        pl_status st = version_dir(s, version, path, err);
        if (st != PL_OK)
            return st;
        if (spot_was_said(s, path))
            continue;
        pl_eagle *e = NULL;
        st = spot_drafter_read(s, path, &e, &cause);
        if (st == PL_OK) {
            spot_gate_serve(s, e, version);
            read_note(s, version);
            return PL_OK;
        }
        if (st == PL_E_SHAPE || st == PL_E_NOMEM || st == PL_E_STOPPED)
            return pl_fail(err, st, "%s", cause.msg);
        if (is_damage(st))
            spot_say(s, path, cause.msg);
        else
            pl_log_warn(
                s->log, "drafter version %u is passed over: %s", (unsigned)version, cause.msg);
    }
}

pl_status spot_init_load(pl_spot *s, pl_error *err)
{
    struct stat info;

    if (s->serving || s->init[0] == '\0' || strcmp(s->init, "random") == 0)
        return PL_OK;
    if (stat(s->init, &info) != 0) /* it was there when the trainer was made, and may be again */
        return pl_fail(err, PL_E_IO, "the drafter '%s': %s", s->init, strerror(errno));
    if (!S_ISDIR(info.st_mode))
        return PL_OK; /* a checkpoint */
    const pl_status st = spot_drafter_read(s, s->init, &s->serving, err);
    return st == PL_E_NOENT ? pl_wrap(err, PL_E_IO, "what the run began with") : st;
}

/* ---- publishing ---- */

static void add_number(pl_json *j, const char *key, double v)
{
    pl_json_text(j, key);
    pl_json_double(j, v);
}

static pl_status describe(const pl_spot *s, spot_publish *p, pl_error *err)
{
    const pl_spot_published *w = &p->what;
    pl_json j = {0};

    add_number(&j, "{\"version\": ", w->version);
    add_number(&j, ", \"parent\": ", w->parent);
    add_number(&j, ", \"tau\": ", w->tau);
    add_number(&j, ", \"tau_parent\": ", w->tau_parent);
    add_number(&j, ", \"se\": ", w->se);
    pl_json_text(&j, ", \"step\": ");
    pl_json_int(&j, w->step);
    pl_json_text(&j, ", \"policy_version\": ");
    pl_json_int(&j, s->gate.newest);
    pl_json_text(&j, ", \"session\": ");
    pl_json_int(&j, (int64_t)s->session);
    pl_json_text(&j, w->is_rollback ? ", \"is_rollback\": true}\n" : ", \"is_rollback\": false}\n");
    pl_status st = pl_json_check(&j, "gate.json", err);
    if (st == PL_OK && j.n >= sizeof p->note)
        st = pl_fail(err, PL_E_IO, "gate.json: %zu bytes are too long", j.n);
    if (st == PL_OK)
        memcpy(p->note, j.data, j.n + 1);
    pl_json_done(&j);
    return st;
}

static void *run_publish(void *arg)
{
    spot_publish *p = arg;
    char path[SPOT_PATH + 16];
    pl_error err = {0};
    pl_status st = pl_dir_remove(p->temp, &err);

    if (st == PL_OK)
        st = pl_eagle_save(p->e, p->temp, &err);
    if (st == PL_OK) {
        snprintf(path, sizeof path, "%s/gate.json", p->temp);
        st = pl_file_write(path, p->note, strlen(p->note), &err);
    }
    if (st == PL_OK)
        st = pl_dir_commit(p->temp, p->what.dir, &err);
    if (st != PL_OK)
        (void)pl_dir_remove(p->temp, NULL);
    spot_job_finish(&p->job, st, &err);
    return NULL;
}

/* The one in service is weighed again. */
static void give_up(pl_spot *s)
{
    pl_eagle_free(s->publish.e);
    s->publish.e = NULL;
    s->gate.back_version = 0;
}

pl_status spot_publish_begin(pl_spot *s, pl_eagle *e, const pl_spot_published *what, pl_error *err)
{
    spot_publish *p = &s->publish;
    uint32_t lowest;
    int n;

    p->e = e;
    p->what = *what;
    p->what.version = newest_below(s, UINT32_MAX, &lowest, &n) + 1;
    if (p->what.version <= s->serving_version) /* someone removed it */
        p->what.version = s->serving_version + 1;
    pl_status st = version_dir(s, p->what.version, p->what.dir, err);
    if (st == PL_OK && snprintf(p->temp, sizeof p->temp, "%s/versions/.%u.%s.tmp", s->dir,
                           (unsigned)p->what.version, s->name) >= SPOT_PATH)
        st = pl_fail(err, PL_E_IO, "'%s': the name is too long", s->dir);
    if (st == PL_OK)
        st = describe(s, p, err);
    if (st == PL_OK)
        st = spot_job_start(&p->job, run_publish, p, err);
    if (st != PL_OK)
        give_up(s);
    return st;
}

/* Those that are too old, but never the parent of the one that serves. */
static void prune(const pl_spot *s)
{
    char path[SPOT_PATH];
    uint32_t lowest, limit = UINT32_MAX;
    pl_error err = {0};
    int n, n_kept = 0;

    for (;;) {
        limit = newest_below(s, limit, &lowest, &n);
        if (limit == 0)
            return;
        if (n_kept++ < s->o.max_versions || limit == s->serving_parent ||
            limit == s->serving_version)
            continue;
        pl_status st = version_dir(s, limit, path, &err);
        if (st == PL_OK)
            st = pl_dir_remove(path, &err);
        if (st != PL_OK)
            pl_log_warn(s->log, "old drafter not removed, continuing: %s", err.msg);
    }
}

pl_status spot_publish_poll(pl_spot *s, int wait, pl_spot_published *out, pl_error *err)
{
    spot_publish *p = &s->publish;

    if (!p->job.is_running || (!wait && !atomic_load(&p->job.is_done)))
        return PL_OK;
    const pl_status st = spot_job_join(&p->job, err);
    if (st != PL_OK) {
        give_up(s);
        pl_log_warn(s->log, "drafter version %u was not published, continuing: %s",
            (unsigned)p->what.version, p->job.err.msg);
        return pl_wrap(err, st, "drafter version %u was not published", (unsigned)p->what.version);
    }
    spot_gate_serve(s, p->e, p->what.version);
    p->e = NULL;
    s->serving_parent = p->what.parent;
    s->serving_is_rollback = p->what.is_rollback;
    s->stats.n_published++;
    s->stats.n_rollbacks += p->what.is_rollback;
    *out = p->what;
    pl_log_info(s->log,
        "drafter version=%u parent=%u published%s step=%lld tau=%.3f before=%.3f se=%.3f",
        (unsigned)out->version, (unsigned)out->parent, out->is_rollback ? " as a rollback" : "",
        (long long)out->step, out->tau, out->tau_parent, out->se);
    prune(s);
    return PL_OK;
}
