/* cli/replay_config.c - the configuration that each step of a run was traced with.
 *
 * The trace holds the resolved configuration of every sitting, which nobody edits; RUN/config.yaml
 * says where the model and the data are now. */
#define _GNU_SOURCE /* memfd_create */
#include "cli/replay_parts.h"
#include "core/file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- keys ---- */

/* The words of the command line that are keys: all but the alternatives of --what-if. */
static int is_key(const replay_options *o, const char *word)
{
    const size_t n = strcspn(word, "=");
    return !o->what_if || memchr(word, '.', n) != NULL;
}

/* Where the model lies decides nothing by itself: its weights are compared. */
static uint64_t hash_of(const run_config *c)
{
    run_config copy = *c;

    memset(copy.rollout.model_path, 0, sizeof copy.rollout.model_path);
    return run_config_hash(&copy);
}

static size_t size_of(const pl_config_key *k)
{
    switch (k->type) {
    case PL_INT:
        return sizeof(int64_t);
    case PL_FLOAT:
        return sizeof(double);
    case PL_BOOL:
        return sizeof(int);
    case PL_STRING:
    case PL_ENUM:
        break;
    }
    return PL_CONFIG_STR;
}

static int is_equal(const pl_config_key *k, const void *a, const void *b)
{
    if (k->type == PL_STRING || k->type == PL_ENUM)
        return strcmp(a, b) == 0;
    return memcmp(a, b, size_of(k)) == 0;
}

static void say_value(const pl_config_key *k, const void *v, char out[64])
{
    if (k->type == PL_INT)
        snprintf(out, 64, "%lld", (long long)*(const int64_t *)v);
    else if (k->type == PL_FLOAT)
        snprintf(out, 64, "%.9g", *(const double *)v);
    else if (k->type == PL_BOOL)
        snprintf(out, 64, "%s", *(const int *)v ? "true" : "false");
    else
        snprintf(out, 64, "'%.50s'", (const char *)v);
}

/* Give c the keys of was that decide bits, and tell which were others; out may be NULL. */
static void take_keys(run_config *c, const run_config *was, char *out, size_t room)
{
    run_config copy = *was;
    pl_config_section mine[RUN_SECTIONS], theirs[RUN_SECTIONS];
    char is[64], then[64];
    size_t at = 0;

    memcpy(copy.rollout.model_path, c->rollout.model_path, sizeof copy.rollout.model_path);
    run_config_sections(c, mine);
    run_config_sections(&copy, theirs);
    for (int s = 0; s < RUN_SECTIONS; s++)
        for (const pl_config_key *k = mine[s].keys; k->key; k++) {
            char *a = (char *)mine[s].options + k->offset;
            const char *b = (const char *)theirs[s].options + k->offset;
            if (is_equal(k, a, b))
                continue;
            const run_config before = *c;
            memcpy(a, b, size_of(k));
            if (hash_of(c) == hash_of(&before)) {
                *c = before;
                continue;
            }
            const char *own =
                (const char *)&before + (a - (const char *)c); /* the same place in the copy */
            const char *name =
                strncmp(k->key, "actor_rollout_ref.", 18) == 0 ? k->key + 18 : k->key;
            say_value(k, own, is);
            say_value(k, b, then);
            if (out && at < room)
                at += (size_t)snprintf(
                    out + at, room - at, "%s%s %s, was %s", at > 0 ? "; " : "", name, is, then);
        }
}

void replay_config_differ(const run_config *now, const run_config *was, char *out, size_t room)
{
    run_config copy = *now;

    out[0] = 0;
    take_keys(&copy, was, out, room);
}

/* ---- the command line ---- */

typedef struct key_words {
    int n;
    char **list; /* [n] of argv, or of lines */
    char lines[3][PL_CONFIG_STR + 64];
} key_words;

static void add_line(key_words *w, int i, const char *key, const char *value)
{
    const int n = snprintf(w->lines[i], sizeof w->lines[i], "%s=%s", key, value);

    if (n > 0 && (size_t)n < sizeof w->lines[i])
        w->list[w->n++] = w->lines[i];
}

static key_words *words_new(const replay_options *o)
{
    key_words *w = calloc(1, sizeof *w);
    char threads[32];

    if (w)
        w->list = calloc((size_t)o->n_overrides + 3, sizeof *w->list);
    if (!w || !w->list) {
        free(w);
        return NULL;
    }
    for (int i = 0; i < o->n_overrides; i++)
        if (is_key(o, o->overrides[i]))
            w->list[w->n++] = o->overrides[i];
    snprintf(threads, sizeof threads, "%lld", (long long)o->threads);
    if (o->isa)
        add_line(w, 0, "trainer.isa", o->isa);
    if (o->threads > 0)
        add_line(w, 1, "trainer.threads", threads);
    if (o->controller)
        add_line(w, 2, "speculative.controller", o->controller);
    return w;
}

static void words_free(key_words *w)
{
    if (w)
        free(w->list);
    free(w);
}

/* c as YAML in memory; *fd to be closed, path names it for this process. */
static pl_status write_text(const run_config *c, int *fd, char path[48], pl_error *err)
{
    run_config copy = *c;
    pl_config_section sections[RUN_SECTIONS];
    FILE *f = NULL;

    *fd = memfd_create("config.yaml", MFD_CLOEXEC);
    const int other = *fd >= 0 ? dup(*fd) : -1;
    if (other >= 0 && !(f = fdopen(other, "w")))
        (void)close(other);
    run_config_sections(&copy, sections);
    if (f)
        pl_config_dump(sections, RUN_SECTIONS, 0, f);
    if (!f || fclose(f) != 0) {
        const int why = errno;
        if (*fd >= 0)
            (void)close(*fd);
        *fd = -1;
        return pl_fail(err, PL_E_IO, "a configuration in memory: %s", strerror(why));
    }
    snprintf(path, 48, "/proc/self/fd/%d", *fd);
    return PL_OK;
}

/* The words over base; one by one too when none may decide bits, so that the one can be named. */
static pl_status apply(const replay_options *o, const key_words *w, const run_config *base,
    int is_checked, run_config *c, pl_error *err)
{
    char path[48];
    int fd = -1;
    const uint64_t plain = hash_of(base);

    pl_status st = write_text(base, &fd, path, err);
    for (int i = 0; i < w->n && is_checked && st == PL_OK; i++) {
        st = run_config_load(c, path, w->list + i, 1, err);
        if (st == PL_OK && hash_of(c) != plain)
            st = pl_fail(err, PL_E_CONFIG,
                "'%.100s' decides bits, so that would be another run: use --train-only or "
                "--what-if",
                w->list[i]);
    }
    if (st == PL_OK)
        st = run_config_load(c, path, w->list, w->n, err);
    if (fd >= 0)
        (void)close(fd);
    if (st != PL_OK)
        return st;
    snprintf(c->trainer.default_local_dir, PL_CONFIG_STR, "%s", o->run_dir); /* where it is now */
    c->rollout.num_workers = o->workers > 0 ? o->workers : 0;
    return PL_OK;
}

static pl_status load_file(const replay_options *o, run_config *base, pl_error *err)
{
    char path[PL_CONFIG_STR + 16];

    snprintf(path, sizeof path, "%s/config.yaml", o->run_dir);
    if (!pl_path_exists(path))
        return pl_fail(err, PL_E_NOENT, "'%s' is not the directory of a run: it has no config.yaml",
            o->run_dir);
    return run_config_load(base, path, NULL, 0, err);
}

/* ---- sittings ---- */

static pl_status on_run(void *ctx, const pl_trace_run *r, pl_error *err)
{
    replay_sittings *s = ctx;
    replay_sitting *more = realloc(s->list, ((size_t)s->n + 1) * sizeof *more);
    pl_error none = {0};

    if (!more)
        return pl_fail(err, PL_E_NOMEM, "no memory for the sittings of the trace");
    s->list = more;
    memset(&more[s->n], 0, sizeof *more);
    if (r->config &&
        run_config_parse(&more[s->n].config, r->config, r->n_config, "trace", &none) == PL_OK)
        more[s->n].hash = hash_of(&more[s->n].config);
    s->n++;
    return PL_OK;
}

static pl_status on_step(void *ctx, const pl_trace_step *t, pl_error *err)
{
    replay_sittings *s = ctx;

    (void)err;
    if (s->n > 0 && s->list[s->n - 1].first == 0)
        s->list[s->n - 1].first = t->step;
    if (s->n > 0)
        s->list[s->n - 1].last = t->step;
    return PL_OK;
}

/* As the trace has them.  One that cannot be read is told of by who needs it. */
static pl_status read_raw(replay_sittings *s, const replay_options *o, pl_error *err)
{
    const pl_trace_visitor v = {.ctx = s, .run = on_run, .step = on_step};
    pl_trace_report report;
    pl_error why = {0};

    memset(s, 0, sizeof *s);
    const pl_status st = pl_trace_read(o->run_dir, &v, &report, &why);
    if (st != PL_OK)
        replay_sittings_done(s);
    return st == PL_E_NOMEM ? pl_fail(err, st, "%s", why.msg) : PL_OK;
}

pl_status replay_sittings_read(replay_sittings *s, const replay_options *o, pl_error *err)
{
    run_config *base = calloc(1, sizeof *base);
    run_config *own = calloc(1, sizeof *own);
    key_words *w = words_new(o);

    memset(s, 0, sizeof *s);
    pl_status st = base && own && w ? load_file(o, base, err)
                                    : pl_fail(err, PL_E_NOMEM, "no memory for the configuration");
    if (st == PL_OK)
        st = read_raw(s, o, err);
    for (int i = 0; i < s->n && st == PL_OK; i++) {
        replay_sitting *x = &s->list[i];
        const int is_last = i == s->n - 1;
        *own = *base;
        if (x->hash) /* else nobody could read it */
            take_keys(own, &x->config, is_last ? s->edited : NULL, sizeof s->edited);
        st = apply(o, w, own, is_last && !o->train_only && !o->what_if, &x->config, err);
        x->hash = hash_of(&x->config);
    }
    if (st != PL_OK)
        replay_sittings_done(s);
    words_free(w);
    free(own);
    free(base);
    return st;
}

void replay_sittings_done(replay_sittings *s)
{
    free(s->list);
    memset(s, 0, sizeof *s);
}

const replay_sitting *replay_sittings_find(const replay_sittings *s, int64_t step)
{
    for (int i = s->n - 1; i >= 0; i--)
        if (s->list[i].first > 0 && s->list[i].first <= step && step <= s->list[i].last)
            return &s->list[i];
    return s->n > 0 ? &s->list[s->n - 1] : NULL; /* not traced yet */
}

pl_status replay_config(const replay_options *o, run_config *c, pl_error *err)
{
    replay_sittings s;
    run_config *base = NULL;
    key_words *w = NULL;

    pl_status st = replay_sittings_read(&s, o, err);
    if (st == PL_OK && s.n > 0) {
        *c = s.list[s.n - 1].config;
    } else if (st == PL_OK) {
        base = calloc(1, sizeof *base);
        w = words_new(o);
        st = base && w ? load_file(o, base, err)
                       : pl_fail(err, PL_E_NOMEM, "no memory for the configuration");
        if (st == PL_OK)
            st = apply(o, w, base, !o->train_only && !o->what_if, c, err);
    }
    replay_sittings_done(&s);
    words_free(w);
    free(base);
    return st;
}
