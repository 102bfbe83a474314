/* monitor/web_guard.c - who may ask, and how: checked before anything is looked at.
 *
 * A page in the user's browser can send requests here.  It cannot choose the Host header (so a
 * name that it made point to this address is seen), cannot hide its Origin where it may read the
 * answer, and does not know the token. */
#define _GNU_SOURCE
#include "monitor/web_internal.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

typedef struct headers {
    int n, n_hosts, n_origins;
    const char *host, *origin, *site, *authorization;
    int has_body;
} headers;

static enum MHD_Result take_header(
    void *ctx, enum MHD_ValueKind kind, const char *name, const char *value)
{
    headers *h = ctx;

    (void)kind;
    value = value ? value : "";
    h->n++;
    if (strcasecmp(name, "Host") == 0) {
        h->n_hosts++;
        h->host = value;
    } else if (strcasecmp(name, "Origin") == 0) {
        h->n_origins++;
        h->origin = value;
    } else if (strcasecmp(name, "Sec-Fetch-Site") == 0) {
        h->site = value;
    } else if (strcasecmp(name, "Authorization") == 0) {
        h->authorization = value;
    } else if (strcasecmp(name, "Transfer-Encoding") == 0 ||
               (strcasecmp(name, "Content-Length") == 0 && strcmp(value, "0") != 0)) {
        h->has_body = 1;
    }
    return MHD_YES;
}

/* "192.0.2.1:8780" or "[2001:db8::1]:8780": an address cannot be made to point elsewhere. */
static int is_address(const pl_web *w, const char *host)
{
    char ip[64], port[16];
    unsigned char bytes[16];
    const size_t n = strlen(host);
    const int n_port = snprintf(port, sizeof port, ":%d", w->port);

    if (n <= (size_t)n_port || n - (size_t)n_port >= sizeof ip ||
        strcmp(host + n - n_port, port) != 0)
        return 0;
    const int is_6 = host[0] == '[' && host[n - (size_t)n_port - 1] == ']';
    snprintf(ip, sizeof ip, "%.*s", (int)n - n_port - 2 * is_6, host + is_6);
    return inet_pton(is_6 ? AF_INET6 : AF_INET, ip, bytes) == 1;
}

static int is_host(const pl_web *w, const char *host)
{
    for (int i = 0; i < w->n_hosts; i++)
        if (strcasecmp(w->hosts[i], host) == 0)
            return 1;
    return w->any_address && is_address(w, host);
}

/* The page that asks is ours, or none. */
static int is_origin(const char *origin, const char *host)
{
    return strncasecmp(origin, "http://", 7) == 0 && strcasecmp(origin + 7, host) == 0;
}

static size_t header_bytes(struct MHD_Connection *c)
{
    const union MHD_ConnectionInfo *i =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    return i ? i->header_size : 0;
}

int web_guard_knows_token(const pl_web *w, struct MHD_Connection *c)
{
    const char *h = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Authorization");
    const char *cookie = MHD_lookup_connection_value(c, MHD_COOKIE_KIND, w->cookie);

    if (h && strncasecmp(h, "Bearer ", 7) == 0)
        return web_token_is(w, h + 7, strlen(h + 7));
    return cookie && web_token_is(w, cookie, strlen(cookie));
}

static int refuse(char *why, int status, const char *text)
{
    snprintf(why, WEB_REASON, "%s", text);
    return status;
}

int web_guard(
    const pl_web *w, struct MHD_Connection *c, const web_query *q, const char *method, char *why)
{
    headers h = {0};
    const int is_page = strcmp(q->path, "/") == 0;

    MHD_get_connection_values(c, MHD_HEADER_KIND, take_header, &h);
    if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0)
        return refuse(why, 405, "only GET and HEAD: a monitor changes nothing");
    if (h.n > WEB_HEADERS || header_bytes(c) > WEB_HEADER_BYTES)
        return refuse(why, 431, "more than 64 headers, or more than 16384 bytes of them");
    if (h.has_body)
        return refuse(why, 413, "a request here has no body");
    if (h.n_hosts != 1)
        return refuse(why, 400, "exactly one Host header is wanted");
    if (!is_host(w, h.host)) {
        snprintf(why, WEB_REASON,
            "Host '%.80s' is not one of this page's names: open %s (through a tunnel: with the "
            "same port on both ends)",
            h.host, w->url);
        return 421;
    }
    if (h.n_origins > 1 || (h.origin && !is_origin(h.origin, h.host)))
        return refuse(why, 403, "a page of another origin asked: only this page itself may");
    if (h.site && strcmp(h.site, "same-origin") != 0 && strcmp(h.site, "none") != 0 && !is_page)
        return refuse(why, 403, "a page of another site asked: only this page itself may");
    if (!w->wants_token || strcmp(q->path, "/healthz") == 0 || web_guard_knows_token(w, c))
        return 0;
    const char *token = is_page ? web_query_text(q, "token") : NULL;
    if (token && web_token_is(w, token, strlen(token)))
        return 0;
    snprintf(why, WEB_REASON,
        "the token is wanted: open %s?token=... once, or send Authorization: Bearer ...; the "
        "monitor said where the token stands",
        w->url);
    return 401;
}
