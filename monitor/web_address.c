/* monitor/web_address.c - where the page listens, and by which names it may be called. */
#define _GNU_SOURCE
#include "monitor/web_internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BACKLOG = 64, TRIES = 20 };

typedef struct place {
    char host[256]; /* without brackets */
    int port;
    int is_fixed; /* the user named the port */
} place;

static int parse_port(const char *text, int *port)
{
    const size_t n = strlen(text);

    if (n == 0 || n > 5 || strspn(text, "0123456789") != n || atoi(text) > 65535)
        return 0;
    *port = atoi(text);
    return 1;
}

static pl_status parse(place *p, const char *text, pl_error *err)
{
    const char *colon = strrchr(text, ':');
    size_t n = strlen(text);

    *p = (place){.host = "127.0.0.1", .port = PL_WEB_PORT};
    if (n == 0)
        return PL_OK;
    if (parse_port(text, &p->port)) {
        p->is_fixed = 1;
        return PL_OK;
    }
    if (text[0] == '[' ? colon && colon[-1] == ']' : colon && strchr(text, ':') == colon) {
        if (!parse_port(colon + 1, &p->port))
            return pl_fail(
                err, PL_E_USAGE, "--web '%.100s': no port 0 .. 65535 after the colon", text);
        p->is_fixed = 1;
        n = (size_t)(colon - text);
    }
    if (n >= 2 && text[0] == '[' && text[n - 1] == ']') {
        text++;
        n -= 2;
    }
    if (n >= sizeof p->host || memchr(text, '/', n))
        return pl_fail(err, PL_E_USAGE,
            "--web '%.100s': wants HOST:PORT, HOST, PORT or [IP6]:PORT, as 127.0.0.1:8780", text);
    if (n > 0) {
        memcpy(p->host, text, n);
        p->host[n] = 0;
    }
    return PL_OK;
}

static int bind_port(const struct addrinfo *a, int port)
{
    struct sockaddr_storage s = {0};
    const int on = 1;

    memcpy(&s, a->ai_addr, a->ai_addrlen);
    if (a->ai_family == AF_INET6)
        ((struct sockaddr_in6 *)&s)->sin6_port = htons((uint16_t)port);
    else
        ((struct sockaddr_in *)&s)->sin_port = htons((uint16_t)port);
    const int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0 &&
        (a->ai_family != AF_INET6 ||
            setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) == 0) &&
        bind(fd, (struct sockaddr *)&s, a->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0)
        return fd;
    const int code = errno;
    close(fd);
    errno = code;
    return -1;
}

static int bound_port(int fd)
{
    struct sockaddr_storage s = {0};
    socklen_t n = sizeof s;

    if (getsockname(fd, (struct sockaddr *)&s, &n) != 0)
        return -1;
    return ntohs(s.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&s)->sin6_port
                                         : ((struct sockaddr_in *)&s)->sin_port);
}

static int is_loopback(const struct addrinfo *a)
{
    if (a->ai_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)a->ai_addr)->sin6_addr);
    return ntohl(((const struct sockaddr_in *)a->ai_addr)->sin_addr.s_addr) >> 24 == 127;
}

static int is_any(const struct addrinfo *a)
{
    if (a->ai_family == AF_INET6)
        return IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)a->ai_addr)->sin6_addr);
    return ((const struct sockaddr_in *)a->ai_addr)->sin_addr.s_addr == 0;
}

static void add_host(pl_web *w, const char *host)
{
    if (w->n_hosts == WEB_HOSTS)
        return;
    snprintf(w->hosts[w->n_hosts++], sizeof w->hosts[0], strchr(host, ':') ? "[%s]:%d" : "%s:%d",
        host, w->port);
    if (w->port == 80 && w->n_hosts < WEB_HOSTS) /* which browsers leave out */
        snprintf(
            w->hosts[w->n_hosts++], sizeof w->hosts[0], strchr(host, ':') ? "[%s]" : "%s", host);
}

static void name_hosts(pl_web *w, const place *p, const struct addrinfo *a)
{
    char own[256] = "";

    add_host(w, "127.0.0.1");
    add_host(w, "localhost");
    add_host(w, "::1");
    add_host(w, p->host);
    w->any_address = is_any(a);
    if (w->any_address && gethostname(own, sizeof own - 1) == 0 && own[0])
        add_host(w, own);
    snprintf(w->url, sizeof w->url, "http://%s/",
        w->any_address && own[0] ? w->hosts[w->n_hosts - 1] : w->hosts[3]);
    snprintf(w->cookie, sizeof w->cookie, "paceline_%d", w->port);
}

pl_status web_listen(pl_web *w, const char *address, pl_error *err)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *found = NULL;
    char port[8];
    place p;

    pl_status st = parse(&p, address ? address : "", err);
    if (st != PL_OK)
        return st;
    snprintf(port, sizeof port, "%d", p.port);
    const int code = getaddrinfo(p.host, port, &hints, &found);
    if (code != 0)
        return pl_fail(err, PL_E_USAGE, "--web: host '%.100s': %s", p.host, gai_strerror(code));
    /* 1. The port that is named; else the usual one, one of the next, or any. */
    for (int i = 0; i <= (p.is_fixed ? 0 : TRIES); i++) {
        w->listen_fd = bind_port(found, i < TRIES ? p.port + i : 0);
        if (w->listen_fd >= 0 || errno != EADDRINUSE)
            break;
    }
    if (w->listen_fd < 0) {
        st = pl_fail(err, PL_E_IO, "--web: listen at %.100s port %d: %s%s", p.host, p.port,
            strerror(errno), errno == EADDRINUSE ? "; name another port, as --web 0" : "");
        freeaddrinfo(found);
        return st;
    }
    /* 2. By which names it is called, and whether a token is wanted. */
    w->port = bound_port(w->listen_fd);
    w->wants_token = !is_loopback(found);
    name_hosts(w, &p, found);
    freeaddrinfo(found);
    return w->port > 0 ? PL_OK : pl_fail(err, PL_E_IO, "getsockname: %s", strerror(errno));
}
