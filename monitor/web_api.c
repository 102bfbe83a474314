/* monitor/web_api.c - the paths that answer with figures. */
#include "core/file.h"
#include "monitor/prometheus.h"
#include "monitor/web_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { POINTS_MAX = 2000 };

typedef enum MHD_Result answer_fn(pl_web *w, struct MHD_Connection *c, const web_query *q);

static enum MHD_Result refuse_number(struct MHD_Connection *c, const web_query *q, const char *name)
{
    char why[WEB_REASON];

    snprintf(why, sizeof why, "field '%s' is not a whole number in its range", name);
    return web_refuse(c, q->path, 400, why);
}

void web_look_at_history(pl_web *w)
{
    w->n_polls += pl_history_poll(w->history) != 0;
}

pl_view_life web_life(const pl_web *w, const pl_snapshot *s)
{
    return pl_view_life_of(s, w->run_dir, web_unix_ms());
}

void web_put_snapshot(pl_json *out, const pl_snapshot *s, pl_view_life life)
{
    const char *word = pl_view_life_name(life);
    pl_json j = {0};

    pl_snapshot_json(s, &j);
    if (j.failed || j.n < 2) {
        out->failed = 1;
    } else {
        pl_json_text(out, "{\"life\":");
        pl_json_string(out, word, strlen(word));
        pl_json_text(out, ",");
        pl_json_bytes(out, j.data + 1, j.n - 1);
    }
    pl_json_done(&j);
}

static enum MHD_Result get_snapshot(pl_web *w, struct MHD_Connection *c, const web_query *q)
{
    pl_snapshot *s = malloc(sizeof *s);
    pl_error err = {0};
    pl_json j = {0};

    if (!s)
        return web_refuse(c, q->path, 500, "no memory for a snapshot");
    const pl_status st = pl_snapshot_read(w->run_dir, s, &err);
    if (st == PL_OK)
        web_put_snapshot(&j, s, web_life(w, s));
    free(s);
    if (st != PL_OK && !pl_path_exists(w->run_dir))
        return web_refuse(c, q->path, 404, "the run's directory is gone");
    return st == PL_OK ? web_reply_json(c, 200, &j)
                       : web_refuse(c, q->path, st == PL_E_NOENT ? 404 : 500, err.msg);
}

/* The name of the run and the clock here; browsers have another one. */
static enum MHD_Result get_run(pl_web *w, struct MHD_Connection *c, const web_query *q)
{
    const char *slash = strrchr(w->run_dir, '/');
    const char *name = slash && slash[1] ? slash + 1 : w->run_dir;
    pl_json j = {0};

    (void)q;
    pl_json_text(&j, "{\"name\":");
    pl_json_string(&j, name, strlen(name));
    pl_json_text(&j, ",\"now_ms\":");
    pl_json_int(&j, web_unix_ms());
    pl_json_text(&j, "}\n");
    return web_reply_json(c, 200, &j);
}

/* The whole history is asked for by every page that opens: made once a step. */
static enum MHD_Result get_metrics(pl_web *w, struct MHD_Connection *c, const web_query *q)
{
    web_kept *k = &w->kept;
    int64_t from = 0, points = 0;
    pl_json j = {0};

    if (web_query_int(q, "from", 0, INT64_MAX / 4, &from) < 0)
        return refuse_number(c, q, "from");
    if (web_query_int(q, "points", 2, POINTS_MAX, &points) < 0)
        return refuse_number(c, q, "points");
    if (points == 0)
        points = POINTS_MAX;
    web_look_at_history(w);
    if (k->data && k->polls == w->n_polls && k->from == from && k->points == points)
        return web_reply_copy(c, "application/json", k->data, k->n);
    web_columns(&j, w->history, from, points);
    if (!j.failed && from == 0) {
        free(k->data);
        *k = (web_kept){malloc(j.n), j.n, w->n_polls, from, points};
        if (k->data)
            memcpy(k->data, j.data, j.n);
    }
    return web_reply_json(c, 200, &j);
}

static enum MHD_Result get_versions(pl_web *w, struct MHD_Connection *c, const web_query *q)
{
    pl_json j = {0};

    (void)q;
    web_look_at_history(w);
    web_versions(&j, w->history);
    return web_reply_json(c, 200, &j);
}

static enum MHD_Result get_timeline(pl_web *w, struct MHD_Connection *c, const web_query *q)
{
    int64_t from = -1;
    pl_error err = {0};
    pl_json j = {0};

    if (web_query_int(q, "from", -1, INT64_MAX / 4, &from) < 0)
        return refuse_number(c, q, "from");
    const pl_status st = web_timeline(&j, w->run_dir, from, &err);
    if (st == PL_OK)
        return web_reply_json(c, 200, &j);
    pl_json_done(&j);
    return web_refuse(c, q->path, st == PL_E_NOENT ? 404 : 500, err.msg);
}

static enum MHD_Result get_prometheus(pl_web *w, struct MHD_Connection *c, const web_query *q)
{
    pl_snapshot *s = malloc(sizeof *s);
    pl_json j = {0};

    if (!s)
        return web_refuse(c, q->path, 500, "no memory for a snapshot");
    const int has_snapshot = pl_snapshot_read(w->run_dir, s, NULL) == PL_OK;
    const pl_view_life life = web_life(w, has_snapshot ? s : NULL);
    const int is_alive =
        life == PL_VIEW_RUNNING || life == PL_VIEW_SILENT || life == PL_VIEW_UNKNOWN;
    web_look_at_history(w);
    pl_prometheus_text(has_snapshot ? s : NULL, is_alive, w->history, &j);
    free(s);
    if (j.failed || !j.data) {
        pl_json_done(&j);
        return web_refuse(c, q->path, 500, "no memory for the answer");
    }
    return web_reply(c, 200, PL_PROMETHEUS_TYPE, j.data, j.n, WEB_OWNED);
}

static enum MHD_Result get_health(pl_web *w, struct MHD_Connection *c, const web_query *q)
{
    static const char ok[] = "ok\n";

    (void)w;
    (void)q;
    return web_reply(c, 200, "text/plain; charset=utf-8", ok, sizeof ok - 1, WEB_STATIC);
}

static enum MHD_Result get_events_head(pl_web *w, struct MHD_Connection *c, const web_query *q)
{
    (void)w;
    (void)q;
    return web_reply(c, 200, "text/event-stream", "", 0, WEB_STATIC);
}

enum MHD_Result web_api(pl_web *w, struct MHD_Connection *c, const web_query *q)
{
    static const struct {
        const char *path;
        answer_fn *answer;
    } table[] = {
        {"/api/run", get_run},
        {"/api/snapshot", get_snapshot},
        {"/api/metrics", get_metrics},
        {"/api/versions", get_versions},
        {"/api/timeline", get_timeline},
        {"/api/samples", web_samples},
        {"/api/sample", web_sample},
        {"/api/prompt", web_prompt},
        {"/api/events", get_events_head}, /* HEAD; GET went to the stream */
        {"/metrics", get_prometheus},
        {"/healthz", get_health},
    };

    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (strcmp(table[i].path, q->path) == 0)
            return table[i].answer(w, c, q);
    return web_refuse(c, q->path, 404, "no such page");
}
