/* trainer/spot.c - the spot trainer: sessions, and what one piece of work is.
 *
 *     pl_spot_begin -> pl_spot_work ... -> pl_spot_end
 *
 * A piece of a lead: report what became durable, begin the state, look at the vocabulary (once a
 * session), a piece of a gate that is due, else a step.  Of a joiner: a gradient. */
#define _GNU_SOURCE
#include "core/file.h"
#include "trainer/spot_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum {
    WINDOWS_A_STEP = 2,
    GATE_TOKENS = 2000,
    GATE_SAMPLES = 8,
    MAX_VERSIONS = 16,
    GATE_SPARE = 4 /* windows are rarely full: room for so many times the tokens of a gate */
};

double spot_now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void spot_sleep(double seconds)
{
    const struct timespec t = {.tv_nsec = (long)(seconds * 1e9)};
    (void)nanosleep(&t, NULL);
}

int spot_stopped(void *spot)
{
    pl_spot *s = spot;

    if (s->should_stop && !s->is_stopped)
        s->is_stopped = s->should_stop(s->stop_ctx) != 0;
    return s->is_stopped;
}

pl_status spot_stop(pl_error *err)
{
    return pl_fail(err, PL_E_STOPPED, "drafter training: asked to stop; nothing was changed");
}

/* ---- life ---- */

static pl_status copy_name(char *out, size_t size, const char *in, const char *what, pl_error *err)
{
    const size_t n = in ? strlen(in) : 0;

    if (n >= size)
        return pl_fail(err, PL_E_CONFIG, "drafter training: %s '%s' is too long", what, in);
    memcpy(out, in ? in : "", n + 1);
    return PL_OK;
}

static pl_status copy_options(pl_spot *s, const pl_spot_options *o, pl_error *err)
{
    s->o = *o;
    pl_status st = copy_name(s->dir, sizeof s->dir - 64, o->dir, "directory", err);
    if (st == PL_OK)
        st = copy_name(s->name, sizeof s->name - 16, o->name, "name", err);
    if (st == PL_OK)
        st = copy_name(s->init, sizeof s->init, o->init, "init", err);
    if (st != PL_OK)
        return st;
    if (s->dir[0] == '\0' || s->name[0] == '\0' || strchr(s->name, '/'))
        return pl_fail(err, PL_E_CONFIG,
            "drafter training needs a directory and a worker's name without '/'; got '%s', '%s'",
            s->dir, s->name);
    if (o->windows.window < 2 || o->windows.n_embd != pl_model_arch(s->target)->n_embd)
        return pl_fail(err, PL_E_CONFIG,
            "drafter training: windows of %d rows of %d numbers; the target has %d",
            o->windows.window, o->windows.n_embd, pl_model_arch(s->target)->n_embd);
    s->o.dir = s->dir;
    s->o.name = s->name;
    s->o.init = s->init;
    s->o.windows_a_step = o->windows_a_step > 0 ? o->windows_a_step : WINDOWS_A_STEP;
    s->o.gate_tokens = o->gate_tokens > 0 ? o->gate_tokens : GATE_TOKENS;
    s->o.gate_samples = o->gate_samples > 0 ? o->gate_samples : GATE_SAMPLES;
    s->o.max_versions = o->max_versions > 0 ? o->max_versions : MAX_VERSIONS;
    s->o.train.window = o->windows.window;
    s->o.train.max_windows = s->o.windows_a_step;
    s->mark = (uint16_t)(pl_hash64(s->name, strlen(s->name)) % 0xffff + 1);
    if (snprintf(s->state_path, sizeof s->state_path, "%s/state", s->dir) >= SPOT_PATH)
        return pl_fail(err, PL_E_CONFIG, "drafter training: directory '%s' is too long", s->dir);
    return PL_OK;
}

static pl_status make_room(pl_spot *s, pl_error *err)
{
    const int window = s->o.windows.window;
    const int n = s->o.gate_samples + GATE_SPARE * ((s->o.gate_tokens + window - 1) / window);
    spot_gate *g = &s->gate;
    pl_status st = spot_batch_init(&s->batch, s, s->o.windows_a_step, err);

    if (st == PL_OK)
        st = spot_batch_init(&g->batch, s, n, err);
    if (st != PL_OK)
        return st;
    g->candidate.rounds = calloc((size_t)n, sizeof *g->candidate.rounds);
    g->serving.rounds = calloc((size_t)n, sizeof *g->serving.rounds);
    g->served.rounds = calloc((size_t)n, sizeof *g->served.rounds);
    g->parent.rounds = calloc((size_t)n, sizeof *g->parent.rounds);
    if (!g->candidate.rounds || !g->serving.rounds || !g->served.rounds || !g->parent.rounds)
        return pl_fail(err, PL_E_NOMEM, "drafter training: no memory for a gate");
    return PL_OK;
}

/* A drafter, or a checkpoint, that was handed in is read when it is needed. */
static pl_status check_init(const pl_spot *s, pl_error *err)
{
    struct stat info;

    if (s->serving || s->init[0] == '\0' || strcmp(s->init, "random") == 0)
        return PL_OK;
    if (stat(s->init, &info) != 0)
        return pl_fail(err, PL_E_CONFIG,
            "the drafter '%s' is not there (%s); say 'random' to begin with one of random weights",
            s->init, strerror(errno));
    return PL_OK;
}

/* What is not there begins with the first piece of work; one that cannot be gone on with is put
 * aside by the lead, if there is something to begin with. */
static pl_status open_state(pl_spot *s, pl_error *err)
{
    if (spot_file_has_moved(s))
        spot_file_forget(s);
    const pl_status st = s->file.fd < 0 ? spot_file_open(s, err) : PL_OK;
    return st == PL_E_NOENT || (st == PL_E_FORMAT && s->init[0]) ? PL_OK : st;
}

static pl_status open_all(pl_spot *s, pl_error *err)
{
    char path[SPOT_PATH + 16];
    pl_status st = PL_OK;

    snprintf(path, sizeof path, "%s/versions", s->dir);
    st = pl_dir_make(path, err);
    if (st == PL_OK)
        st = make_room(s, err);
    if (st != PL_OK)
        return st;
    st = open_state(s, err);
    if (st == PL_OK && s->file.fd < 0 && s->init[0] == '\0')
        return pl_fail(err, PL_E_CONFIG,
            "there is no drafter: '%s' is not there; set the drafter's init to 'random' or to a "
            "drafter's directory (paceline drafter warmup makes one)",
            s->state_path);
    if (st == PL_OK)
        st = spot_versions_open(s, err);
    return st == PL_OK ? check_init(s, err) : st;
}

pl_status pl_spot_new(pl_spot **out, const pl_model *target, const pl_spot_options *o,
    const pl_log *log, pl_error *err)
{
    pl_spot *s = calloc(1, sizeof *s);

    if (!s)
        return pl_fail(err, PL_E_NOMEM, "drafter training: no memory");
    s->target = target;
    s->log = log;
    s->file.fd = -1;
    pl_status st = copy_options(s, o, err);
    if (st == PL_OK)
        st = open_all(s, err);
    if (st != PL_OK) {
        pl_spot_free(s);
        return st;
    }
    if (err)
        *err = (pl_error){0};
    *out = s;
    return PL_OK;
}

static void close_buffers(pl_spot *s)
{
    for (int i = 0; i < s->n_buffers; i++) {
        pl_windows_close(s->buffers[i].view);
        free(s->buffers[i].path);
    }
    s->n_buffers = s->n_views = 0;
}

void pl_spot_free(pl_spot *s)
{
    if (!s)
        return;
    (void)spot_job_join(&s->checkpoint.job, NULL);
    (void)spot_job_join(&s->publish.job, NULL);
    spot_aside_done(&s->reading);
    spot_aside_done(&s->starting);
    pl_eagle_free(s->publish.e);
    pl_spot_end(s);
    spot_own_done(s);
    close_buffers(s);
    spot_gate_done(s);
    spot_batch_done(&s->batch);
    pl_eagle_free(s->serving);
    pl_eagle_trainer_free(s->t);
    pl_eagle_free(s->e);
    free(s->grads);
    spot_file_close(&s->file);
    free(s);
}

/* ---- buffers ---- */

int spot_was_said(const pl_spot *s, const char *path)
{
    const uint64_t h = pl_hash64(path, strlen(path));

    for (int i = 0; i < s->n_said; i++)
        if (s->said[i] == h)
            return 1;
    return 0;
}

void spot_say(pl_spot *s, const char *path, const char *why)
{
    if (spot_was_said(s, path))
        return;
    if (s->n_said < SPOT_SAID)
        s->said[s->n_said++] = pl_hash64(path, strlen(path));
    pl_log_warn(s->log, "drafter training goes on without '%s': %s", path, why);
}

/* The view of a path: the one that is there while it is the same file, as it counts what was chosen
 * from it. */
static void use_buffer(pl_spot *s, const char *path)
{
    spot_buffer *b = NULL;
    struct stat info;
    pl_error err = {0};

    for (int i = 0; i < s->n_buffers && !b; i++)
        if (strcmp(s->buffers[i].path, path) == 0)
            b = &s->buffers[i];
    if (!b) {
        if (s->n_buffers == SPOT_BUFFERS)
            return spot_say(s, path, "there are too many buffers");
        char *copy = strdup(path);
        if (!copy)
            return spot_say(s, path, "no memory");
        b = &s->buffers[s->n_buffers++];
        *b = (spot_buffer){.path = copy};
    }
    if (stat(path, &info) != 0)
        return spot_say(s, path, strerror(errno));
    if (b->view && (b->dev != (uint64_t)info.st_dev || b->ino != (uint64_t)info.st_ino)) {
        pl_windows_close(b->view);
        b->view = NULL;
    }
    if (!b->view && pl_windows_attach(&b->view, path, &s->o.windows, &err) != PL_OK) {
        b->view = NULL;
        return spot_say(s, path, err.msg);
    }
    b->dev = (uint64_t)info.st_dev;
    b->ino = (uint64_t)info.st_ino;
    for (int i = 0; i < s->n_views; i++)
        if (s->views[i] == b->view)
            return;
    s->views[s->n_views++] = b->view;
}

/* ---- a session ---- */

pl_status pl_spot_begin(pl_spot *s, uint64_t session, int is_lead, const char *const *buffers,
    int n, uint32_t newest, pl_error *err)
{
    pl_status st;

    pl_spot_end(s);
    s->session = session;
    s->is_lead = is_lead;
    s->newest = newest;
    s->is_over = s->n_bad = 0;
    s->is_look_due = 1;
    s->own_seq = 0;
    s->stats = (pl_spot_stats){0};
    s->waiting_since = 0;
    if (!s->starting.job.is_running)
        s->is_begun_anew = 0; /* another lead may have saved one since */
    st = open_state(s, err);
    if (s->file.fd >= 0)
        spot_aside_tidy(&s->starting);
    if (!is_lead)
        spot_aside_tidy(&s->reading);
    if (st == PL_OK && is_lead && s->file.fd >= 0 && s->init[0]) {
        st = spot_file_open_sound(s, err);
        st = st == PL_E_NOENT ? PL_OK : st;
    }
    if (session == 0)
        s->session = s->file.fd < 0 ? 1 : (atomic_load(&spot_claim_of(&s->file)->owner) >> 16) + 1;
    if (st == PL_OK && s->file.fd >= 0)
        st = is_lead ? spot_claim_take(s, err) : spot_claim_check(s, err);
    if (st != PL_OK)
        return st;
    s->n_views = 0;
    for (int i = 0; i < n; i++)
        use_buffer(s, buffers[i]);
    s->is_in = 1;
    if (err)
        *err = (pl_error){0};
    return PL_OK;
}

void pl_spot_end(pl_spot *s)
{
    s->is_in = 0;
    spot_own_leave(s);
    spot_joiners_done(s);
}

/* Between two stages of a session's beginning. */
static pl_status look(pl_spot *s, pl_status st, pl_error *err)
{
    return st == PL_OK && spot_stopped(s) ? spot_stop(err) : st;
}

static pl_status work_lead(pl_spot *s, pl_error *err)
{
    pl_status st = PL_OK;

    if (s->file.fd < 0) {
        st = spot_start(s, err);
        if (st == PL_OK)
            st = spot_claim_take(s, err);
        st = look(s, st, err);
    }
    if (st == PL_OK) /* it may still read the drafter that serves */
        st = spot_aside_end(s, &s->starting, err);
    if (st == PL_OK)
        st = spot_claim_check(s, err);
    if (st == PL_OK)
        st = look(s, spot_sync(s, err), err);
    if (st == PL_OK && s->is_look_due)
        st = look(s, spot_refresh(s, err), err);
    if (st != PL_OK)
        return st;
    if (spot_gate_is_due(s)) {
        st = spot_gate_work(s, err);
        if (st != PL_E_TIMEOUT)
            return st;
    }
    return spot_step_lead(s, err);
}

static pl_status work_joiner(pl_spot *s, pl_error *err)
{
    pl_status st = s->file.fd < 0 ? spot_start(s, err) : PL_OK;

    if (st == PL_OK)
        st = spot_claim_check(s, err);
    if (st != PL_OK)
        return st;
    if (atomic_load(&spot_claim_of(&s->file)->owner) >> 16 != s->session)
        return pl_fail(err, PL_E_TIMEOUT, "drafter training: the lead has not begun yet");
    return spot_step_joiner(s, err);
}

pl_status pl_spot_work(pl_spot *s, int (*should_stop)(void *ctx), void *ctx,
    pl_spot_published *published, pl_error *err)
{
    const double t0 = spot_now();
    pl_error cause = {0};
    pl_status st;

    *published = (pl_spot_published){0};
    if (s->waiting_since > 0)
        s->stats.wait_s += t0 - s->waiting_since;
    s->waiting_since = 0;
    if (!s->is_in || s->is_over)
        return pl_fail(err, s->is_over ? PL_E_NUMERIC : PL_E_PEER,
            "drafter training: the session is over; begin the next one");
    s->should_stop = should_stop;
    s->stop_ctx = ctx;
    s->is_stopped = 0;
    const pl_status kept = spot_publish_poll(s, 0, published, &cause);
    st = spot_stopped(s) ? spot_stop(&cause) : kept;
    if (st == PL_OK)
        st = s->is_lead ? work_lead(s, &cause) : work_joiner(s, &cause);
    s->should_stop = NULL;
    s->is_stopped = 0;
    if (st == PL_E_PEER)
        s->is_in = 0;
    if (st == PL_E_TIMEOUT) {
        s->waiting_since = spot_now();
        s->stats.wait_s += s->waiting_since - t0;
    }
    if (published->version > 0 && st != PL_E_PEER && st != PL_E_NUMERIC)
        st = PL_OK; /* what was done besides is of less interest */
    if (st != PL_OK && err)
        *err = cause;
    return st;
}

void pl_spot_get_stats(const pl_spot *s, pl_spot_stats *out)
{
    *out = s->stats;
}
