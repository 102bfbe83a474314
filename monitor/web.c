/* monitor/web.c - the server of a run's page: one thread, which waits in microhttpd and looks at
 * the run's files between two waits.
 *
 * A client costs a connection of at most WEB_MEMORY bytes and a place in the table.  Its request
 * has WEB_READ_MS to become whole, its answer WEB_SEND_MS to be taken. */
#define _GNU_SOURCE
#include "core/file.h"
#include "monitor/web_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { WEB_MEMORY = 64 << 10, WAIT_MS = 250 };

static int64_t clock_ms(clockid_t id)
{
    struct timespec t = {0};

    clock_gettime(id, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int64_t web_now_ms(void)
{
    return clock_ms(CLOCK_MONOTONIC);
}

int64_t web_unix_ms(void)
{
    return clock_ms(CLOCK_REALTIME);
}

/* ---- clients ---- */

static web_client *new_client(pl_web *w, struct MHD_Connection *c)
{
    const union MHD_ConnectionInfo *i =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD);
    const int size = WEB_SEND_BUFFER;

    for (size_t k = 0; k < sizeof w->clients / sizeof w->clients[0]; k++)
        if (!w->clients[k].web) {
            w->clients[k] = (web_client){
                .web = w, .connection = c, .fd = i ? i->connect_fd : -1, .since_ms = web_now_ms()};
            /* a bound on what the kernel holds for it; without, its own bound */
            (void)setsockopt(w->clients[k].fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
            return &w->clients[k];
        }
    return NULL;
}

static void on_connection(
    void *ctx, struct MHD_Connection *c, void **client, enum MHD_ConnectionNotificationCode what)
{
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        *client = new_client(ctx, c);
    } else if (*client) {
        web_events_drop(*client);
        *(web_client *)*client = (web_client){.fd = -1};
        *client = NULL;
    }
}

static web_client *client_of(struct MHD_Connection *c)
{
    const union MHD_ConnectionInfo *i =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return i ? i->socket_context : NULL;
}

static void set_doing(web_client *c, web_doing doing)
{
    c->doing = doing;
    c->since_ms = web_now_ms();
}

/* End those that took too long; microhttpd sees the end of the socket.  When the places run out,
 * whoever is slow to ask has less time, so that others get in. */
static void end_slow(pl_web *w)
{
    const int64_t now = web_now_ms();
    int n = 0;

    for (size_t i = 0; i < sizeof w->clients / sizeof w->clients[0]; i++)
        n += w->clients[i].web != NULL;
    const int64_t read_ms = n > WEB_CONNECTIONS - 4 ? WEB_HURRY_MS : WEB_READ_MS;
    for (size_t i = 0; i < sizeof w->clients / sizeof w->clients[0]; i++) {
        const web_client *c = &w->clients[i];
        const int64_t ms = now - c->since_ms;
        if (c->web && ((c->doing == WEB_READING && ms > read_ms) ||
                          (c->doing == WEB_ANSWERING && ms > WEB_SEND_MS)))
            shutdown(c->fd, SHUT_RDWR);
    }
}

/* ---- requests ---- */

typedef struct request {
    web_query query;
    const char *wrong; /* with the query; NULL: nothing */
    int status;
    int is_checked;
} request;

/* The target as it came, before microhttpd undoes escapes. */
static void *on_target(void *ctx, const char *target, struct MHD_Connection *c)
{
    request *r = calloc(1, sizeof *r);

    (void)ctx;
    (void)c;
    if (r)
        r->wrong = web_query_parse(&r->query, target, &r->status);
    return r;
}

static size_t keep_escapes(void *ctx, struct MHD_Connection *c, char *text)
{
    (void)ctx;
    (void)c;
    return strlen(text);
}

static void on_completed(
    void *ctx, struct MHD_Connection *c, void **own, enum MHD_RequestTerminationCode why)
{
    web_client *client = client_of(c);

    (void)ctx;
    (void)why;
    if (client) {
        web_events_drop(client);
        set_doing(client, WEB_READING);
    }
    free(*own);
    *own = NULL;
}

/* The token came in the address: it goes to a cookie, and out of the address. */
static enum MHD_Result keep_token(pl_web *w, struct MHD_Connection *c)
{
    struct MHD_Response *r = MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
    char cookie[160];
    enum MHD_Result done = MHD_NO;

    if (!r)
        return MHD_NO;
    snprintf(cookie, sizeof cookie, "%s=%s; HttpOnly; SameSite=Strict; Path=/; Max-Age=2592000",
        w->cookie, w->token);
    if (web_headers(r, "text/plain") && MHD_add_response_header(r, "Location", "/") == MHD_YES &&
        MHD_add_response_header(r, "Cache-Control", "no-store") == MHD_YES &&
        MHD_add_response_header(r, "Set-Cookie", cookie) == MHD_YES)
        done = MHD_queue_response(c, 303, r);
    MHD_destroy_response(r);
    return done;
}

/* Who asks comes first: a refusal tells nothing about what is here. */
static int check(
    const pl_web *w, struct MHD_Connection *c, const char *method, const request *r, char *why)
{
    const int status = web_guard(w, c, &r->query, method, why);

    if (status != 0 || !r->wrong)
        return status;
    snprintf(why, WEB_REASON, "%s", r->wrong);
    return r->status;
}

static enum MHD_Result answer(
    pl_web *w, struct MHD_Connection *c, web_client *client, const char *method, const request *r)
{
    const web_asset *asset = web_asset_find(r->query.path);

    if (asset && strcmp(asset->path, "/") == 0 && web_query_text(&r->query, "token"))
        return keep_token(w, c);
    if (asset)
        return web_reply(
            c, 200, asset->type, asset->data, (size_t)(asset->end - asset->data), WEB_STATIC);
    if (strcmp(r->query.path, "/api/events") == 0 && strcmp(method, "GET") == 0)
        return web_events(w, c, client);
    return web_api(w, c, &r->query);
}

static enum MHD_Result on_request(void *ctx, struct MHD_Connection *c, const char *url,
    const char *method, const char *version, const char *body, size_t *n_body, void **own)
{
    web_client *client = client_of(c);
    request *r = *own;
    char why[WEB_REASON];

    (void)url;
    (void)version;
    (void)body;
    *n_body = 0;
    if (!client || !r)
        return MHD_NO; /* no memory: the connection ends */
    if (r->is_checked) {
        set_doing(client, WEB_ANSWERING);
        return answer(ctx, c, client, method, r);
    }
    /* The first call comes after the headers.  An answer here ends the connection, which is right
     * for a refusal: there may be a body behind it. */
    const int status = check(ctx, c, method, r, why);
    if (status == 0) {
        r->is_checked = 1;
        return MHD_YES;
    }
    set_doing(client, WEB_ANSWERING);
    return web_refuse(c, r->query.path, status, why);
}

/* microhttpd tells of every client that breaks off: nothing that a user can mend. */
static void on_log(void *ctx, const char *format, va_list args)
{
    (void)ctx;
    (void)format;
    (void)args;
}

/* ---- life ---- */

static pl_status start(pl_web *w, pl_error *err)
{
    w->daemon = MHD_start_daemon(MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0,
        NULL, NULL, on_request, w, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
        MHD_OPTION_LISTEN_SOCKET, w->listen_fd, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)WEB_CONNECTIONS, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)WEB_MEMORY,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)WEB_STALL_S, MHD_OPTION_STRICT_FOR_CLIENT, 1,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, w, MHD_OPTION_NOTIFY_COMPLETED, on_completed,
        w, MHD_OPTION_URI_LOG_CALLBACK, on_target, w, MHD_OPTION_UNESCAPE_CALLBACK, keep_escapes, w,
        MHD_OPTION_END);
    if (!w->daemon)
        return pl_fail(err, PL_E_IO, "the page's server does not start: %s",
            errno ? strerror(errno) : "libmicrohttpd refuses");
    w->listen_fd = -1; /* closed with the daemon */
    return PL_OK;
}

/* One of the files that a run writes first, or that are left of it. */
static pl_status find_run(const pl_web *w, pl_error *err)
{
    static const char *const files[] = {"config.yaml", "metrics.jsonl", "snapshot", "rollouts"};
    char path[sizeof w->run_dir + 32];

    if (!pl_path_exists(w->run_dir))
        return pl_fail(err, PL_E_NOENT, "no run directory '%s'", w->run_dir);
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", w->run_dir, files[i]);
        if (pl_path_exists(path))
            return PL_OK;
    }
    return pl_fail(err, PL_E_NOENT,
        "'%s' is not the directory of a run: it has no config.yaml, metrics.jsonl or snapshot",
        w->run_dir);
}

pl_status pl_web_open(pl_web **out, const pl_web_options *o, pl_error *err)
{
    pl_web *w = calloc(1, sizeof *w);

    if (!w)
        return pl_fail(err, PL_E_NOMEM, "monitor of '%s'", o->run_dir);
    w->listen_fd = -1;
    w->piece = o->piece;
    w->piece_ctx = o->piece_ctx;
    pl_status st = PL_OK;
    if (snprintf(w->run_dir, sizeof w->run_dir, "%s", o->run_dir) >= (int)sizeof w->run_dir)
        st = pl_fail(err, PL_E_INVAL, "the run directory's path is longer than 3071 bytes");
    if (st == PL_OK)
        st = find_run(w, err);
    if (st == PL_OK)
        st = pl_history_open(&w->history, w->run_dir, err);
    if (st == PL_OK)
        st = pl_samples_open(&w->samples, w->run_dir, err);
    if (st == PL_OK)
        st = web_listen(w, o->address, err);
    w->wants_token |= o->token_file != NULL;
    if (st == PL_OK && w->wants_token)
        st = web_token_open(w, o, err);
    if (st == PL_OK)
        st = start(w, err);
    if (st != PL_OK) {
        pl_web_close(w);
        return st;
    }
    (void)pl_history_poll(w->history);
    *out = w;
    return PL_OK;
}

const char *pl_web_url(const pl_web *w)
{
    return w->url;
}

const char *pl_web_token_path(const pl_web *w)
{
    return w->wants_token ? w->token_path : NULL;
}

pl_status pl_web_run(pl_web *w, const volatile sig_atomic_t *stop, pl_error *err)
{
    while (!*stop) {
        errno = 0;
        if (MHD_run_wait(w->daemon, WAIT_MS) != MHD_YES && errno && errno != EINTR)
            return pl_fail(err, PL_E_IO, "the page's server: %s", strerror(errno));
        web_events_tick(w);
        end_slow(w);
    }
    return PL_OK;
}

void pl_web_close(pl_web *w)
{
    if (!w)
        return;
    for (size_t i = 0; i < sizeof w->clients / sizeof w->clients[0]; i++)
        if (w->clients[i].web && w->clients[i].is_suspended) {
            w->clients[i].is_suspended = 0;
            MHD_resume_connection(w->clients[i].connection);
        }
    if (w->daemon)
        MHD_stop_daemon(w->daemon); /* its callbacks empty the table */
    if (w->listen_fd >= 0)
        close(w->listen_fd);
    web_events_done(w);
    pl_samples_close(w->samples);
    pl_history_close(w->history);
    free(w->kept.data);
    free(w);
}
