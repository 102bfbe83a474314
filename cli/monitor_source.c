/* cli/monitor_source.c - a run as its files show it, or as a server of another machine tells it. */
#define _GNU_SOURCE
#include "cli/monitor.h"
#include "core/file.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum {
    PATH_ROOM = 4096,
    ANSWER_MAX = 8 << 20,
    COLUMN_MAX = PL_HISTORY_STEPS,
};

typedef struct column {
    char name[128];
    double *values; /* [n_steps] */
} column;

struct monitor_source {
    char where[PATH_ROOM], note[512];
    pl_view_data data;
    pl_snapshot snapshot;
    /* of a directory */
    pl_history *history;
    /* of a server */
    int is_remote;
    monitor_server server;
    int64_t *steps; /* [n_steps] */
    column *columns;
    const char **names; /* [n_columns] */
    int n_steps, n_columns;
    int64_t n_told, last_told; /* what it said of its history */
};

static int64_t unix_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- a directory ---- */

static const double *history_column(const void *history, const char *name)
{
    return pl_history_column(history, name);
}

static void poll_files(monitor_source *s)
{
    pl_error why = {0};

    s->data.unix_ms = unix_ms();
    const pl_status st = pl_snapshot_read(s->where, &s->snapshot, &why);
    if (st == PL_OK)
        s->data.now = &s->snapshot;
    s->data.life = pl_view_life_of(s->data.now, s->where, s->data.unix_ms);
    if (st != PL_OK && (st != PL_E_NOENT || s->data.life == PL_VIEW_DEAD || s->data.now))
        snprintf(s->note, sizeof s->note, "%s", why.msg);
    (void)pl_history_poll(s->history);
    s->data.n_steps = pl_history_steps(s->history, &s->data.steps);
    s->data.n_names = pl_history_names(s->history, &s->data.names);
    const int64_t bad = pl_history_bad_lines(s->history);
    if (bad > 0 && !s->note[0])
        snprintf(s->note, sizeof s->note, "metrics.jsonl: %lld %s no JSON, passed over",
            (long long)bad, bad == 1 ? "line is" : "lines are");
    /* A run has no metrics before its first step. */
    const int code = pl_history_error(s->history);
    const int is_early =
        code == ENOENT && s->data.life != PL_VIEW_DEAD && (!s->data.now || s->data.now->step == 0);
    if (code != 0 && !is_early && (!s->note[0] || st == PL_E_NOENT))
        snprintf(s->note, sizeof s->note, "%smetrics.jsonl: %s",
            s->data.now ? "" : "no snapshot, and ", strerror(code));
}

static pl_status open_files(monitor_source *s, pl_error *err)
{
    static const char *const marks[] = {"snapshot", "metrics.jsonl", "config.yaml", "lock"};
    char path[PATH_ROOM + 16];
    struct stat st;
    int is_run = 0;

    if (stat(s->where, &st) != 0 || !S_ISDIR(st.st_mode))
        return pl_fail(err, PL_E_NOENT,
            "'%s' is no directory: name a run's (runs/NAME), or http://HOST:PORT", s->where);
    for (size_t i = 0; i < sizeof marks / sizeof marks[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", s->where, marks[i]);
        is_run |= pl_path_exists(path);
    }
    if (!is_run)
        return pl_fail(err, PL_E_NOENT,
            "'%s' is not the directory of a run: it has no metrics.jsonl and no snapshot",
            s->where);
    const pl_status opened = pl_history_open(&s->history, s->where, err);
    s->data.history = s->history;
    s->data.column = history_column;
    return opened;
}

/* ---- a server ---- */

static const double *server_column(const void *history, const char *name)
{
    const monitor_source *s = history;

    for (int i = 0; i < s->n_columns; i++)
        if (strcmp(s->columns[i].name, name) == 0)
            return s->columns[i].values;
    return NULL;
}

static void forget(monitor_source *s)
{
    for (int i = 0; i < s->n_columns; i++)
        free(s->columns[i].values);
    free(s->columns);
    free(s->names);
    free(s->steps);
    s->columns = NULL;
    s->names = NULL;
    s->steps = NULL;
    s->n_columns = s->n_steps = s->data.n_steps = s->data.n_names = 0;
}

/* Rising steps, and a number or null for each in every column. */
static pl_status take_columns(monitor_source *s, const json_t *j, pl_error *err)
{
    const json_t *steps = json_object_get(j, "steps"), *columns = json_object_get(j, "columns");
    const size_t n = json_array_size(steps), n_columns = json_object_size(columns);
    const char *name;
    json_t *values;

    forget(s);
    if (!json_is_array(steps) || !json_is_object(columns) || n > COLUMN_MAX ||
        n_columns > PL_HISTORY_NAMES)
        return pl_fail(err, PL_E_FORMAT, "what came are no metrics of a run: is it a paceline?");
    s->steps = calloc(n + 1, sizeof *s->steps);
    s->columns = calloc(n_columns + 1, sizeof *s->columns);
    s->names = calloc(n_columns + 1, sizeof *s->names);
    if (!s->steps || !s->columns || !s->names)
        return pl_fail(err, PL_E_NOMEM, "no memory for %zu steps", n);
    for (size_t i = 0; i < n; i++) {
        s->steps[i] = json_integer_value(json_array_get(steps, i));
        if (s->steps[i] < 0 || (i > 0 && s->steps[i] <= s->steps[i - 1]))
            return pl_fail(err, PL_E_FORMAT, "the server's steps do not rise");
    }
    s->n_steps = (int)n;
    json_object_foreach((json_t *)(uintptr_t)columns, name, values)
    {
        column *c = &s->columns[s->n_columns];
        if (json_array_size(values) != n || strlen(name) >= sizeof c->name)
            continue;
        c->values = malloc((n + 1) * sizeof *c->values);
        if (!c->values)
            return pl_fail(err, PL_E_NOMEM, "no memory for %zu steps", n);
        snprintf(c->name, sizeof c->name, "%s", name);
        for (size_t i = 0; i < n; i++) {
            const json_t *v = json_array_get(values, i);
            c->values[i] = json_is_number(v) ? json_number_value(v) : (double)NAN;
        }
        s->names[s->n_columns++] = c->name;
    }
    return PL_OK;
}

static pl_status get_json(monitor_source *s, const char *path, json_t **out, pl_error *err)
{
    char *text = NULL;
    size_t n = 0;
    json_error_t why;

    const pl_status st = monitor_get(&s->server, path, ANSWER_MAX, &text, &n, err);
    if (st != PL_OK)
        return st;
    *out = json_loadb(text, n, 0, &why);
    free(text);
    return *out ? PL_OK
                : pl_fail(err, PL_E_FORMAT, "%s:%s sends no JSON for %s", s->server.host,
                      s->server.port, path);
}

/* The whole history again when it has grown: at most 2000 points. */
static pl_status poll_metrics(monitor_source *s, pl_error *err)
{
    char path[64];
    json_t *j = NULL;

    snprintf(path, sizeof path, "/api/metrics?from=%lld", (long long)s->last_told);
    pl_status st = get_json(s, s->n_told > 0 ? path : "/api/metrics", &j, err);
    if (st != PL_OK)
        return st;
    const int64_t n = json_integer_value(json_object_get(j, "n"));
    const int64_t last = json_integer_value(json_object_get(j, "last"));
    const int is_news = n != s->n_told || last != s->last_told;
    if (is_news && s->n_told > 0) {
        json_decref(j);
        j = NULL;
        st = get_json(s, "/api/metrics", &j, err);
    }
    if (st == PL_OK && is_news) {
        st = take_columns(s, j, err);
        s->n_told = n > 0 && last > 0 ? n : 0;
        s->last_told = last;
    }
    json_decref(j);
    s->data.steps = s->steps;
    s->data.names = s->names;
    s->data.n_steps = s->n_steps;
    s->data.n_names = s->n_columns;
    return st;
}

/* It knows whether its run lives; one of before says nothing of it. */
static pl_view_life told_life(const monitor_source *s, const char *text)
{
    char word[32];

    if (sscanf(text, "{\"life\":\"%31[a-z ]\"", word) == 1)
        for (int l = 0; l <= PL_VIEW_UNKNOWN; l++)
            if (strcmp(word, pl_view_life_name((pl_view_life)l)) == 0)
                return (pl_view_life)l;
    return pl_view_life_of(s->data.now, NULL, s->data.unix_ms);
}

static pl_status poll_server(monitor_source *s, pl_error *err)
{
    json_t *run = NULL;
    char *text = NULL;
    size_t n = 0;

    pl_status st = get_json(s, "/api/run", &run, err);
    if (st != PL_OK)
        return st;
    const int64_t ms = json_integer_value(json_object_get(run, "now_ms"));
    json_decref(run);
    s->data.unix_ms = ms > 0 && ms < 100000000000000 ? ms : unix_ms();
    st = monitor_get(&s->server, "/api/snapshot", ANSWER_MAX, &text, &n, err);
    if (st == PL_OK)
        st = pl_snapshot_parse(text, n, &s->snapshot, err);
    if (st == PL_OK) {
        s->data.now = &s->snapshot;
        s->data.life = told_life(s, text);
    }
    free(text);
    if (st == PL_OK || st == PL_E_NOENT)
        st = poll_metrics(s, err);
    return st;
}

/* ---- both ---- */

pl_status monitor_source_open(
    monitor_source **out, const char *where, const char *token_file, pl_error *err)
{
    monitor_source *s = calloc(1, sizeof *s);

    if (!s)
        return pl_fail(err, PL_E_NOMEM, "no memory for a monitor");
    pl_status st = PL_OK;
    if ((size_t)snprintf(s->where, sizeof s->where, "%s", where) >= sizeof s->where)
        st = pl_fail(err, PL_E_USAGE, "'%.60s...' is too long", where);
    s->data.source = s->where;
    s->data.note = s->note;
    s->data.life = PL_VIEW_UNKNOWN;
    s->is_remote = strstr(where, "://") != NULL;
    if (st == PL_OK && s->is_remote) {
        s->data.history = s;
        s->data.column = server_column;
        st = monitor_parse_url(&s->server, where, err);
        if (st == PL_OK && token_file)
            st = monitor_read_token(&s->server, token_file, err);
    } else if (st == PL_OK) {
        st = open_files(s, err);
    }
    if (st != PL_OK) {
        monitor_source_close(s);
        return st;
    }
    *out = s;
    return PL_OK;
}

void monitor_source_close(monitor_source *s)
{
    if (!s)
        return;
    forget(s);
    pl_history_close(s->history);
    free(s);
}

pl_status monitor_source_poll(monitor_source *s, pl_error *err)
{
    pl_status st = PL_OK;

    s->note[0] = '\0';
    if (s->is_remote) {
        st = poll_server(s, err);
        if (st != PL_OK) {
            snprintf(s->note, sizeof s->note, "%s", err->msg);
            s->data.life = pl_view_life_of(s->data.now, NULL, unix_ms());
        }
    } else {
        poll_files(s);
    }
    return st;
}

const pl_view_data *monitor_source_data(const monitor_source *s)
{
    return &s->data;
}
