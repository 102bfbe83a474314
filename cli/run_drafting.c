/* cli/run_drafting.c - the learned drafter of one engine, as a run uses it:
 *
 *   RUN/drafter/windows-NAME   what worker NAME has recorded      [on_window]
 *   RUN/drafter/state          of the training, and a checkpoint  [run_drafting_work]
 *   RUN/drafter/versions/N/    published ones, EAGLE-3 layout     [run_drafting_serve] */
#include "cli/run.h"
#include "core/file.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    BUFFERS_MAX = 64,
    PATH_ROOM = 4096,
    TRAINED_WINDOW = 256,
    SAVE_S = 120 /* between two checkpoints of the training */
};

/* Of the weights: batches are small. */
#define TRAINED_EMA 0.97f

struct run_drafting {
    const run_config *c;
    const cli_model *m;
    pl_engine *engine;
    const pl_log *log;
    char dir[PATH_ROOM - 512]; /* RUN/drafter; empty: nothing is trained here */
    int is_unrecorded;         /* no buffer could be had, so nothing is trained either */
    char name[64];
    pl_windows_options wo;
    pl_windows *windows; /* what is recorded here */
    int n_refused;       /* windows that were not kept */
    pl_spot *spot;       /* from the first session on */
    uint64_t session;    /* at hand; 0: none */
    int is_in_session, is_lead;
    pl_eagle *serving; /* NULL: none */
    uint32_t version;
    pl_eagle *held; /* until no sample runs: of another vocabulary; NULL: none */
    uint32_t held_version;
    pl_eagle *first;       /* in service instead in comparisons; NULL before the first of them */
    int is_exchanged;      /* the engine does not draft with serving now */
    int is_off;            /* it does not draft at all */
    run_draft_figures sum; /* of sessions that have ended */
    double saved_at;
};

static uint64_t target_of(const pl_arch *a)
{
    const int64_t shape[] = {
        a->n_vocab, a->n_embd, a->n_layers, a->n_heads, a->n_kv_heads, a->n_ff, a->head_dim};
    return pl_hash64(shape, sizeof shape);
}

static void on_window(void *ctx, const pl_feature_window *w)
{
    run_drafting *d = ctx;
    pl_feature_window named = *w;
    pl_error err = {0};
    named.drafter = d->is_exchanged || d->is_off ? 0 : d->version;
    if (pl_windows_put(d->windows, &named, &err) != PL_OK && d->n_refused++ < 3)
        pl_log_warn(d->log, "event=window_refused %s", err.msg);
}

static int is_lasting(const char *id)
{
    return strncmp(id, "worker-", 7) == 0 || strcmp(id, "local") == 0;
}

/* What a worker leaves outlives it: "worker-0.4711" goes on where "worker-0" was.  0: no name. */
static int lasting_name(const char *name, size_t n_name, char id[64])
{
    if (n_name == 0 || n_name >= 64 || memchr(name, '/', n_name))
        return 0;
    memcpy(id, name, n_name);
    id[n_name] = '\0';
    char *pid = strrchr(id, '.');
    if (is_lasting(id) && pid)
        *pid = '\0';
    return 1;
}

static int buffer_path(const run_drafting *d, const char *name, size_t n_name, char out[PATH_ROOM])
{
    char id[64];
    if (!lasting_name(name, n_name, id))
        return 0;
    return snprintf(out, PATH_ROOM, "%s/windows-%s", d->dir, id) < PATH_ROOM;
}

static pl_status open_windows(run_drafting *d, pl_error *err)
{
    char path[PATH_ROOM];

    pl_status st = pl_dir_make(d->dir, err);
    if (st == PL_OK && !buffer_path(d, d->name, strlen(d->name), path))
        st = pl_fail(err, PL_E_CONFIG, "worker name '%s' does not make a file name", d->name);
    if (st == PL_OK)
        st = pl_windows_open(&d->windows, path, &d->wo, err);
    if (st == PL_OK)
        st = pl_engine_set_windows(d->engine, on_window, d, d->wo.window, err);
    return st;
}

/* ---- versions ---- */

/* N of the newest (or oldest) directory in versions/ below limit; 0: none. */
static uint32_t find_version(const char *drafter_dir, int newest, uint32_t limit)
{
    char path[PATH_ROOM];
    uint32_t found = 0;

    snprintf(path, sizeof path, "%s/versions", drafter_dir);
    DIR *list = drafter_dir[0] ? opendir(path) : NULL;
    for (const struct dirent *e; list && (e = readdir(list)) != NULL;) {
        char *end;
        const unsigned long v = strtoul(e->d_name, &end, 10);
        if (e->d_name[0] < '1' || e->d_name[0] > '9' || *end || v >= limit)
            continue;
        if (!found || (newest ? v > found : v < found))
            found = (uint32_t)v;
    }
    if (list)
        (void)closedir(list);
    return found;
}

uint32_t run_drafting_newest(const char *run_dir)
{
    char dir[PATH_ROOM - 512];

    snprintf(dir, sizeof dir, "%s/drafter", run_dir);
    return find_version(dir, 1, UINT32_MAX);
}

void run_print_resume(const run_config *c, int64_t step, const char *dir)
{
    const int goes_on = run_has_learned(c) && (c->speculative.train || c->rollout.num_workers > 0);
    const uint32_t v = goes_on ? run_drafting_newest(c->trainer.default_local_dir) : 0;

    printf("resuming   after step %lld, from %s\n", (long long)step, dir);
    if (v)
        printf("drafter    version %u of this run goes on; speculative.drafter.init '%s' is for a "
               "new run\n",
            v, c->speculative.init);
}

pl_status run_drafting_check(const run_config *c, const pl_model *m, pl_error *err)
{
    const int has_own = c->speculative.train && run_drafting_newest(c->trainer.default_local_dir);
    pl_eagle *e = NULL;

    if (!run_has_learned(c) || has_own || strcmp(c->speculative.init, "random") == 0)
        return PL_OK;
    if (!pl_path_exists(c->speculative.init))
        return pl_fail(err, PL_E_NOENT,
            "speculative.drafter.init '%s' is not there: paceline drafter warmup makes a drafter, "
            "and 'random' begins without one",
            c->speculative.init);
    const pl_status st = pl_eagle_load(&e, m, c->speculative.init, err);
    pl_eagle_free(e);
    return st == PL_OK ? st : pl_wrap(err, st, "speculative.drafter.init");
}

int run_drafting_holds(const run_drafting *d, uint32_t version)
{
    return d->held && d->held_version == version;
}

void run_drafting_hold(run_drafting *d, pl_eagle *e, uint32_t version)
{
    pl_eagle_free(d->held); /* an older one */
    d->held = e;
    d->held_version = version;
}

/* What was held, or from dir. */
static pl_status take_drafter(
    run_drafting *d, const char *dir, uint32_t version, pl_eagle **out, pl_error *err)
{
    *out = run_drafting_holds(d, version) ? d->held : NULL;
    if (!*out)
        pl_eagle_free(d->held); /* an older one */
    d->held = NULL;
    return *out ? PL_OK : pl_eagle_load(out, d->m->model, dir, err);
}

/* While another one drafts for a comparison, it waits. */
pl_status run_drafting_serve(run_drafting *d, const char *dir, uint32_t version, pl_error *err)
{
    pl_eagle *fresh = NULL;

    pl_status st = take_drafter(d, dir, version, &fresh, err);
    if (st == PL_OK && !d->is_exchanged)
        st = pl_engine_set_drafter(d->engine, fresh, err);
    if (st == PL_E_TIMEOUT) {
        d->held = fresh;
        d->held_version = version;
        return st;
    }
    if (st != PL_OK) {
        pl_eagle_free(fresh);
        return st;
    }
    pl_eagle_free(d->serving);
    d->serving = fresh;
    if (version != d->version)
        d->sum.n_swaps++;
    d->version = version;
    return PL_OK;
}

uint32_t run_drafting_version(const run_drafting *d)
{
    return d->version;
}

static int is_random(const run_drafting *d)
{
    return strcmp(d->c->speculative.init, "random") == 0;
}

/* The oldest version that is there, else what the run began with. */
static void load_first(run_drafting *d)
{
    char dir[PATH_ROOM];
    pl_error err = {0};
    const uint32_t v = find_version(d->dir, 0, UINT32_MAX);

    snprintf(dir, sizeof dir, "%s", d->c->speculative.init);
    if (v)
        snprintf(dir, sizeof dir, "%s/versions/%u", d->dir, v);
    if ((v || !is_random(d)) && pl_eagle_load(&d->first, d->m->model, dir, &err) != PL_OK)
        pl_log_warn(d->log, "the first drafter is not there for a comparison: %s", err.msg);
}

void run_drafting_speculate(run_drafting *d, uint32_t how)
{
    pl_error err = {0};
    const int is_exchanged = how == PL_SPECULATE_SUFFIX || how == PL_SPECULATE_FIRST;

    d->is_off = how == PL_SPECULATE_OFF;
    pl_engine_set_speculative(d->engine, !d->is_off);
    if (!is_exchanged && !d->is_exchanged)
        return;
    if (how == PL_SPECULATE_FIRST && !d->first)
        load_first(d);
    const pl_eagle *e = how == PL_SPECULATE_FIRST    ? d->first
                        : how == PL_SPECULATE_SUFFIX ? NULL
                                                     : d->serving;
    if (pl_engine_set_drafter(d->engine, e, &err) != PL_OK) {
        pl_log_warn(d->log, "%s", err.msg);
        (void)pl_engine_set_drafter(d->engine, NULL, &err); /* what it has is freed soon */
    }
    d->is_exchanged = is_exchanged;
}

static pl_status serve_what_is_there(run_drafting *d, pl_error *err)
{
    char dir[PATH_ROOM];
    pl_error why = {0};

    for (uint32_t v = UINT32_MAX; (v = find_version(d->dir, 1, v)) > 0;) {
        snprintf(dir, sizeof dir, "%s/versions/%u", d->dir, v);
        if (run_drafting_serve(d, dir, v, &why) == PL_OK)
            return PL_OK;
        pl_log_warn(d->log, "drafter version %u is passed over: %s", v, why.msg);
    }
    if (is_random(d))
        return PL_OK; /* the first one that passes the gate */
    /* On another machine the directory is not there: it drafts when a version is published. */
    if (!d->dir[0] && !pl_path_exists(d->c->speculative.init))
        return PL_OK;
    const pl_status st = run_drafting_serve(d, d->c->speculative.init, 0, err);
    return st == PL_OK ? st : pl_wrap(err, st, "speculative.drafter.init");
}

/* ---- life ---- */

pl_status run_drafting_open(run_drafting **out, const run_config *c, const char *run_dir,
    const char *name, const cli_model *m, pl_engine *e, const pl_log *log, pl_error *err)
{
    const pl_arch *a = pl_model_arch(m->model);
    run_drafting *d = calloc(1, sizeof *d);

    if (!d)
        return pl_fail(err, PL_E_NOMEM, "no memory for the learned drafter");
    *d = (run_drafting){.c = c, .m = m, .engine = e, .log = log};
    d->wo = (pl_windows_options){.max_bytes = (size_t)c->speculative.buffer_mb << 20,
        .window = TRAINED_WINDOW,
        .n_embd = a->n_embd,
        .n_vocab = a->n_vocab,
        .target = target_of(a)};
    pl_status st = PL_OK;
    if (snprintf(d->name, sizeof d->name, "%s", name) >= (int)sizeof d->name)
        st = pl_fail(err, PL_E_CONFIG, "worker name '%.80s' is too long", name);
    if (run_dir && c->speculative.train &&
        snprintf(d->dir, sizeof d->dir, "%s/drafter", run_dir) >= (int)sizeof d->dir)
        st = pl_fail(err, PL_E_CONFIG, "the run's path '%.80s...' is too long", run_dir);
    if (st == PL_OK && d->dir[0] && open_windows(d, err) != PL_OK) {
        pl_log_warn(log, "no drafter is trained in %s: %s", name, err->msg);
        d->is_unrecorded = 1; /* the run does not need it */
    }
    if (st == PL_OK)
        st = serve_what_is_there(d, err);
    if (st != PL_OK) {
        run_drafting_close(d);
        return st;
    }
    *out = d;
    return PL_OK;
}

void run_drafting_close(run_drafting *d)
{
    char path[PATH_ROOM];
    pl_error none = {0};

    if (!d)
        return;
    pl_spot_free(d->spot);
    (void)pl_engine_set_windows(d->engine, NULL, NULL, 0, &none);
    (void)pl_engine_set_drafter(d->engine, NULL, &none);
    pl_eagle_free(d->first);
    pl_eagle_free(d->held);
    pl_eagle_free(d->serving);
    pl_windows_close(d->windows);
    if (d->windows && !is_lasting(d->name) && buffer_path(d, d->name, strlen(d->name), path))
        (void)unlink(path);
    free(d);
}

void run_drafting_tidy(const char *run_dir)
{
    char dir[PATH_ROOM - 512], path[PATH_ROOM];

    snprintf(dir, sizeof dir, "%s/drafter", run_dir);
    DIR *list = opendir(dir);
    for (const struct dirent *e; list && (e = readdir(list)) != NULL;) {
        if (strncmp(e->d_name, "windows-", 8) != 0 && strncmp(e->d_name, "grads.", 6) != 0)
            continue;
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        (void)unlink(path); /* who has it mapped goes on with it */
    }
    if (list)
        (void)closedir(list);
}

/* ---- training ---- */

void run_drafting_train_options(const run_config *c, pl_eagle_train_options *o)
{
    pl_eagle_train_defaults(o);
    o->lr = (float)c->speculative.lr;
    o->ema = TRAINED_EMA;
    o->window = TRAINED_WINDOW;
    o->max_windows = (int)c->speculative.batch;
}

static pl_status make_spot(run_drafting *d, pl_error *err)
{
    const run_speculative_options *o = &d->c->speculative;
    char id[64];
    pl_spot_options so = {.dir = d->dir,
        .name = lasting_name(d->name, strlen(d->name), id) ? id : d->name,
        .windows = d->wo,
        .windows_a_step = (int)o->batch,
        .seed = (uint64_t)d->c->rollout.seed,
        .gate_s = (double)o->gate_seconds,
        .gate_tokens = (int)o->gate_tokens,
        .gate_samples = (int)o->gate_samples,
        .max_versions = (int)o->max_versions,
        .init = o->init};

    run_drafting_train_options(d->c, &so.train);
    return pl_spot_new(&d->spot, d->m->model, &so, d->log, err);
}

static pl_status begin(run_drafting *d, const run_session *s, pl_error *err)
{
    char paths[BUFFERS_MAX][PATH_ROOM];
    const char *list[BUFFERS_MAX];
    int n = 0;

    for (const char *p = s->workers; *p && n < BUFFERS_MAX;) {
        const size_t len = strcspn(p, "\n");
        if (buffer_path(d, p, len, paths[n])) {
            list[n] = paths[n];
            n++;
        }
        p += len + (p[len] == '\n');
    }
    pl_status st = d->spot ? PL_OK : make_spot(d, err);
    if (st == PL_OK)
        st = pl_spot_begin(d->spot, s->id, s->is_lead, list, n, s->policy_version, err);
    if (st == PL_OK) {
        d->session = s->id;
        d->is_in_session = 1;
        d->is_lead = s->is_lead;
    }
    return st;
}

pl_status run_drafting_work(run_drafting *d, const run_session *s, int (*should_stop)(void *ctx),
    void *ctx, pl_spot_published *published, pl_error *err)
{
    memset(published, 0, sizeof *published);
    if (!d->dir[0] || d->is_unrecorded)
        return pl_fail(err, PL_E_CONFIG, "nothing is trained here");
    if (d->is_in_session && d->session != s->id)
        run_drafting_end(d);
    if (!d->is_in_session) {
        const pl_status st = begin(d, s, err);
        if (st != PL_OK)
            return st;
    }
    const pl_status st = pl_spot_work(d->spot, should_stop, ctx, published, err);
    if (published->version) {
        d->sum.n_published++;
        d->sum.n_rollbacks += published->is_rollback;
    }
    return st;
}

static void add(run_draft_figures *f, const pl_spot_stats *s)
{
    f->train_s += s->train_s;
    f->gate_s += s->gate_s;
    f->pack_s += s->pack_s;
    f->wait_s += s->wait_s;
    f->n_steps += s->n_steps;
    f->n_dropped += s->n_dropped;
    f->n_tokens += s->n_tokens;
    if (s->n_steps == 0)
        return;
    f->loss = s->last.loss;
    f->depth = 0;
    while (f->depth < PL_EAGLE_DEPTH_MAX && s->last.alpha[f->depth] > 0) {
        f->alpha[f->depth] = s->last.alpha[f->depth];
        f->depth++;
    }
}

/* The state is a mapped file and outlives processes; a copy of it outlives the machine's power.  It
 * is written by a thread. */
static void save(run_drafting *d)
{
    char path[PATH_ROOM];
    pl_error err = {0};

    if (d->saved_at > 0 && run_seconds() - d->saved_at < SAVE_S)
        return;
    d->saved_at = run_seconds();
    snprintf(path, sizeof path, "%s/checkpoint", d->dir);
    if (pl_spot_checkpoint(d->spot, path, &err) != PL_OK)
        pl_log_warn(d->log, "drafter checkpoint '%s': %s; training goes on", path, err.msg);
}

int run_drafting_unannounced(const run_drafting *d, pl_spot_published *out)
{
    const uint32_t v = find_version(d->dir, 1, UINT32_MAX);

    *out = (pl_spot_published){0};
    return v > 0 && pl_spot_version(d->dir, v, out);
}

void run_drafting_end(run_drafting *d)
{
    pl_spot_stats s;

    if (!d->is_in_session)
        return;
    pl_spot_get_stats(d->spot, &s);
    add(&d->sum, &s);
    pl_spot_end(d->spot);
    d->is_in_session = 0;
    if (s.n_steps > 0 && d->is_lead)
        save(d);
}

void run_drafting_figures(const run_drafting *d, run_draft_figures *out)
{
    pl_spot_stats s;

    *out = d->sum;
    out->version = d->version;
    if (d->is_in_session) {
        pl_spot_get_stats(d->spot, &s);
        add(out, &s);
    }
}

/* A session that goes on over the reset would be counted in both. */
void run_drafting_reset(run_drafting *d)
{
    run_drafting_end(d);
    memset(&d->sum, 0, sizeof d->sum);
}
