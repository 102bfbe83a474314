/* monitor/web_reply.c - answers, each with the headers that keep a browser from doing more than
 * showing them. */
#include "monitor/web_internal.h"

#include <stdlib.h>
#include <string.h>

int web_headers(struct MHD_Response *r, const char *type)
{
    static const char *const fixed[][2] = {
        {"Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
                                    "form-action 'none'"},
        {"X-Content-Type-Options", "nosniff"},
        {"X-Frame-Options", "DENY"},
        {"Referrer-Policy", "no-referrer"},
        {"Cross-Origin-Resource-Policy", "same-origin"},
        {"Cross-Origin-Opener-Policy", "same-origin"},
    };

    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++)
        if (MHD_add_response_header(r, fixed[i][0], fixed[i][1]) != MHD_YES)
            return 0;
    return MHD_add_response_header(r, "Content-Type", type) == MHD_YES;
}

enum MHD_Result web_reply(struct MHD_Connection *c, int status, const char *type, const void *data,
    size_t n, web_memory memory)
{
    /* microhttpd takes a pointer to what it may free, so to bytes that are not const. */
    struct MHD_Response *r = MHD_create_response_from_buffer(n, (void *)(uintptr_t)data,
        memory == WEB_OWNED ? MHD_RESPMEM_MUST_FREE : MHD_RESPMEM_PERSISTENT);
    enum MHD_Result done = MHD_NO;

    if (!r) {
        if (memory == WEB_OWNED)
            free((void *)(uintptr_t)data);
        return MHD_NO;
    }
    if (web_headers(r, type) &&
        MHD_add_response_header(r, "Cache-Control", "no-store") == MHD_YES &&
        (status != 405 || MHD_add_response_header(r, "Allow", "GET, HEAD") == MHD_YES) &&
        (status != 401 || MHD_add_response_header(
                              r, "WWW-Authenticate", "Bearer realm=\"paceline\"") == MHD_YES) &&
        (status < 400 || status == 404 ||
            MHD_add_response_header(r, "Connection", "close") == MHD_YES))
        done = MHD_queue_response(c, (unsigned)status, r);
    MHD_destroy_response(r);
    return done;
}

enum MHD_Result web_reply_copy(
    struct MHD_Connection *c, const char *type, const void *data, size_t n)
{
    void *copy = malloc(n + 1);

    if (!copy)
        return MHD_NO;
    memcpy(copy, data, n);
    return web_reply(c, 200, type, copy, n, WEB_OWNED);
}

enum MHD_Result web_reply_json(struct MHD_Connection *c, int status, pl_json *j)
{
    if (j->failed || !j->data) {
        pl_json_done(j);
        static const char text[] = "{\"error\":\"no memory for the answer\"}";
        return web_reply(c, 500, "application/json", text, sizeof text - 1, WEB_STATIC);
    }
    char *data = j->data;
    const size_t n = j->n;
    *j = (pl_json){0};
    return web_reply(c, status, "application/json", data, n, WEB_OWNED);
}

enum MHD_Result web_refuse(struct MHD_Connection *c, const char *path, int status, const char *why)
{
    pl_json j = {0};

    if (strncmp(path, "/api/", 5) == 0) {
        pl_json_text(&j, "{\"error\":");
        pl_json_string(&j, why, strlen(why));
        pl_json_text(&j, "}\n");
        return web_reply_json(c, status, &j);
    }
    pl_json_text(&j, why);
    pl_json_text(&j, "\n");
    if (j.failed) {
        pl_json_done(&j);
        return MHD_NO;
    }
    return web_reply(c, status, "text/plain; charset=utf-8", j.data, j.n, WEB_OWNED);
}
