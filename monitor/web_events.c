/* monitor/web_events.c - server-sent events: the newest snapshot, and that metrics grew.
 *
 * A stream holds one blob and a place in it.  While it sends, newer ones replace what it would send
 * next; a browser that reads nothing costs one blob, the kernel's send buffer, and is dropped when
 * nothing went out for WEB_STALL_S. */
#define _GNU_SOURCE
#include "core/file.h"
#include "monitor/web_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static void drop_blob(web_blob *b)
{
    if (b && --b->n_users == 0)
        free(b);
}

static web_blob *new_blob(const char *event, const char *data, size_t n)
{
    const size_t n_event = strlen(event);
    web_blob *b = malloc(sizeof *b + n_event + n + 32);

    if (!b)
        return NULL;
    const int n_head = snprintf(b->data, n_event + 24, "event: %s\ndata: ", event);
    char *text = b->data + n_head;
    for (size_t i = 0; i < n; i++) /* a line end would end the event */
        text[i] = data[i] == '\n' || data[i] == '\r' ? ' ' : data[i];
    memcpy(text + n, "\n\n", 2);
    b->n = (size_t)n_head + n + 2;
    b->n_users = 1;
    return b;
}

/* The new event takes the place of the one before; without memory the old one stays. */
static void replace(web_blob **place, uint64_t *number, web_blob *b)
{
    if (!b)
        return;
    drop_blob(*place);
    *place = b;
    (*number)++;
}

static web_blob *beat_blob(void)
{
    char text[64];
    const int n = snprintf(text, sizeof text, "{\"now_ms\":%lld}", (long long)web_unix_ms());
    return new_blob("beat", text, (size_t)n);
}

/* What the stream sends next; NULL: nothing.  Metrics first: they are short. */
static web_blob *next_blob(web_client *c)
{
    pl_web *w = c->web;
    web_blob *b = NULL;

    if (c->steps != w->steps && w->step_event) {
        c->steps = w->steps;
        b = w->step_event;
    } else if (c->snapshot != w->snapshot && w->snapshot_event) {
        c->snapshot = w->snapshot;
        b = w->snapshot_event;
    } else if (c->beat != w->beat) {
        c->beat = w->beat;
        return beat_blob();
    }
    if (b)
        b->n_users++;
    return b;
}

static int has_news(const web_client *c)
{
    const pl_web *w = c->web;
    return c->blob || c->beat != w->beat || (c->steps != w->steps && w->step_event) ||
           (c->snapshot != w->snapshot && w->snapshot_event);
}

static ssize_t read_stream(void *ctx, uint64_t pos, char *out, size_t room)
{
    web_client *c = ctx;

    (void)pos;
    if (!c->web)
        return MHD_CONTENT_READER_END_OF_STREAM;
    if (!c->blob) {
        c->blob = next_blob(c);
        c->at = 0;
    }
    if (!c->blob) {
        c->is_suspended = 1;
        MHD_suspend_connection(c->connection);
        return 0;
    }
    const size_t left = c->blob->n - c->at;
    const size_t n = left < room ? left : room;
    memcpy(out, c->blob->data + c->at, n);
    c->at += n;
    if (c->at == c->blob->n) {
        drop_blob(c->blob);
        c->blob = NULL;
    }
    return (ssize_t)n;
}

enum MHD_Result web_events(pl_web *w, struct MHD_Connection *c, web_client *client)
{
    if (w->n_streams >= WEB_STREAMS)
        return web_refuse(c, "/api/events", 503, "24 pages listen already: close one");
    struct MHD_Response *r =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 4096, read_stream, client, NULL);
    if (!r)
        return MHD_NO;
    enum MHD_Result done = MHD_NO;
    if (web_headers(r, "text/event-stream") &&
        MHD_add_response_header(r, "Cache-Control", "no-store") == MHD_YES)
        done = MHD_queue_response(c, 200, r);
    MHD_destroy_response(r);
    if (done != MHD_YES)
        return done;
    client->doing = WEB_STREAMING;
    client->snapshot = client->steps = 0;
    client->beat = 0;
    w->n_streams++;
    if (w->n_streams == 1) /* look at once: nobody looked for some time */
        w->snapshot_at = w->history_at = 0;
    return done;
}

void web_events_drop(web_client *client)
{
    if (client->doing == WEB_STREAMING)
        client->web->n_streams--;
    drop_blob(client->blob);
    client->blob = NULL;
    client->is_suspended = 0;
}

void web_events_done(pl_web *w)
{
    drop_blob(w->snapshot_event);
    drop_blob(w->step_event);
    w->snapshot_event = w->step_event = NULL;
}

/* The run's directory was removed, or is there again. */
static void look_at_directory(pl_web *w)
{
    const int is_gone = !pl_path_exists(w->run_dir);

    if (is_gone == w->is_gone)
        return;
    w->is_gone = is_gone;
    w->updated_pid = 0;
    replace(&w->snapshot_event, &w->snapshot, new_blob(is_gone ? "gone" : "back", "{}", 2));
}

static void look_at_snapshot(pl_web *w)
{
    pl_snapshot *s = malloc(sizeof *s);
    pl_json j = {0};

    look_at_directory(w);
    if (!s || pl_snapshot_read(w->run_dir, s, NULL) != PL_OK) {
        free(s);
        return;
    }
    const pl_view_life life = web_life(w, s);
    if (s->updated_ms != w->updated_ms || s->step != w->updated_step || s->pid != w->updated_pid ||
        life != w->updated_life || !w->snapshot_event) {
        web_put_snapshot(&j, s, life);
        if (!j.failed && j.data) {
            replace(&w->snapshot_event, &w->snapshot, new_blob("snapshot", j.data, j.n));
            w->updated_ms = s->updated_ms;
            w->updated_step = s->step;
            w->updated_pid = s->pid;
            w->updated_life = life;
        }
    }
    pl_json_done(&j);
    free(s);
}

static void look_at_history(pl_web *w)
{
    const int64_t *steps = NULL;
    char text[96];

    web_look_at_history(w);
    if (w->told_polls == w->n_polls && w->step_event)
        return;
    w->told_polls = w->n_polls;
    const int n = pl_history_steps(w->history, &steps);
    const int n_text = snprintf(
        text, sizeof text, "{\"step\":%lld,\"n\":%d}", n > 0 ? (long long)steps[n - 1] : -1LL, n);
    replace(&w->step_event, &w->steps, new_blob("step", text, (size_t)n_text));
}

/* A suspended connection is not watched by microhttpd: has its other end gone? */
static int is_gone(const web_client *c)
{
    char byte;
    const ssize_t n = recv(c->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

void web_events_tick(pl_web *w)
{
    const int64_t now = web_now_ms();

    if (w->n_streams == 0)
        return;
    if (now >= w->snapshot_at) {
        w->snapshot_at = now + WEB_SNAPSHOT_MS;
        look_at_snapshot(w);
    }
    if (now >= w->history_at) {
        w->history_at = now + WEB_HISTORY_MS;
        look_at_history(w);
    }
    if (now >= w->beat_at) {
        w->beat_at = now + WEB_BEAT_MS;
        w->beat++;
    }
    for (size_t i = 0; i < sizeof w->clients / sizeof w->clients[0]; i++) {
        web_client *c = &w->clients[i];
        if (!c->web || !c->is_suspended || (!has_news(c) && !is_gone(c)))
            continue;
        if (!has_news(c))
            c->beat--; /* its write fails, and ends it */
        c->is_suspended = 0;
        MHD_resume_connection(c->connection);
    }
}
