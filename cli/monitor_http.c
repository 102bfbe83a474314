/* cli/monitor_http.c - one GET over HTTP/1.1, of a server that may be slow, broken or hostile: what
 * it may send is bounded in bytes and in time, and its words are not shown. */
#define _GNU_SOURCE
#include "cli/monitor.h"
#include "core/file.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ANSWER_MS = 10000, HEAD_MAX = 16 << 10, PIECE = 64 << 10 };

typedef struct deadline {
    int64_t at_ms;
} deadline;

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

pl_status monitor_parse_url(monitor_server *s, const char *url, pl_error *err)
{
    const char *at = strncmp(url, "http://", 7) == 0 ? url + 7 : "";
    const char *end = at + strcspn(at, "/");
    const char *port = NULL;

    if (at[0] == '[') { /* an IPv6 address */
        const char *close = memchr(at, ']', (size_t)(end - at));
        port = close && close[1] == ':' ? close + 1 : NULL;
        if (!close || (close + 1 != end && !port))
            at = end;
    } else {
        port = memchr(at, ':', (size_t)(end - at));
    }
    const size_t n_host = (size_t)((port ? port : end) - at), n_port = port ? end - port - 1 : 0;
    const int is_host = n_host > 0 && n_host < sizeof s->host &&
                        strspn(at, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                   "-._[]:%") >= n_host;
    const int is_port =
        !port || (n_port > 0 && n_port < 6 && strspn(port + 1, "0123456789") == n_port);
    if (!is_host || !is_port || (end[0] == '/' && end[1]))
        return pl_fail(
            err, PL_E_USAGE, "'%s' is not http://HOST:PORT of paceline monitor --web", url);
    snprintf(s->host, sizeof s->host, "%.*s", (int)n_host, at);
    snprintf(s->port, sizeof s->port, "%.*s", port ? (int)n_port : 2, port ? port + 1 : "80");
    return PL_OK;
}

pl_status monitor_read_token(monitor_server *s, const char *path, pl_error *err)
{
    char *text = NULL;
    size_t n = 0;

    pl_status st = pl_file_read(&text, &n, path, 4096, err);
    if (st != PL_OK)
        return st;
    n = strcspn(text, "\r\n");
    int is_token = n > 0 && n < sizeof s->token;
    for (size_t i = 0; i < n; i++)
        is_token &= text[i] > ' ' && text[i] < 0x7F;
    if (is_token)
        snprintf(s->token, sizeof s->token, "%.*s", (int)n, text);
    else
        st = pl_fail(err, PL_E_FORMAT, "'%s' holds no token", path);
    free(text);
    return st;
}

/* Wait until the socket may be read or written. */
static pl_status wait_for(
    const monitor_server *s, int fd, short events, const deadline *d, pl_error *err)
{
    for (;;) {
        struct pollfd p = {.fd = fd, .events = events};
        const int64_t left = d->at_ms - now_ms();
        if (left <= 0)
            return pl_fail(err, PL_E_TIMEOUT, "%s:%s does not answer within %d s", s->host, s->port,
                ANSWER_MS / 1000);
        const int n = poll(&p, 1, (int)left);
        if (n > 0)
            return PL_OK;
        if (n < 0 && errno != EINTR)
            return pl_fail(err, PL_E_IO, "poll: %s", strerror(errno));
        if (cli_stop)
            return pl_fail(err, PL_E_STOPPED, "stopped");
    }
}

static pl_status try_address(
    const monitor_server *s, const struct addrinfo *a, const deadline *d, int *out, pl_error *err)
{
    int code = 0;
    socklen_t n = sizeof code;
    const int fd =
        socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol);

    if (fd < 0)
        return pl_fail(err, PL_E_IO, "socket: %s", strerror(errno));
    pl_status st = PL_OK;
    if (connect(fd, a->ai_addr, a->ai_addrlen) != 0) {
        if (errno == EINPROGRESS || errno == EINTR)
            st = wait_for(s, fd, POLLOUT, d, err);
        else
            code = errno;
        if (st == PL_OK && !code && getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &n) != 0)
            code = errno;
    }
    if (st == PL_OK && code)
        st = pl_fail(err, PL_E_PEER, "%s:%s: %s; is paceline monitor --web running there?", s->host,
            s->port, strerror(code));
    if (st != PL_OK) {
        close(fd);
        return st;
    }
    *out = fd;
    return PL_OK;
}

static pl_status dial(const monitor_server *s, const deadline *d, int *out, pl_error *err)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *list = NULL;
    char host[sizeof s->host];
    const size_t n = strlen(s->host);
    const int is_bracketed = s->host[0] == '[' && n > 2;

    snprintf(host, sizeof host, "%.*s", (int)(is_bracketed ? n - 2 : n),
        s->host + (is_bracketed ? 1 : 0));
    const int code = getaddrinfo(host, s->port, &hints, &list);
    if (code != 0)
        return pl_fail(err, PL_E_PEER, "host '%s': %s", host, gai_strerror(code));
    pl_status st = pl_fail(err, PL_E_PEER, "host '%s' has no address", host);
    for (const struct addrinfo *a = list; a && st != PL_OK && st != PL_E_STOPPED; a = a->ai_next)
        st = try_address(s, a, d, out, err);
    freeaddrinfo(list);
    return st;
}

static pl_status send_all(
    const monitor_server *s, int fd, const char *text, size_t n, const deadline *d, pl_error *err)
{
    for (size_t done = 0; done < n;) {
        const ssize_t put = send(fd, text + done, n - done, MSG_NOSIGNAL);
        if (put > 0) {
            done += (size_t)put;
            continue;
        }
        if (put < 0 && errno != EAGAIN && errno != EINTR)
            return pl_fail(err, PL_E_PEER, "%s:%s: %s", s->host, s->port, strerror(errno));
        const pl_status st = wait_for(s, fd, POLLOUT, d, err);
        if (st != PL_OK)
            return st;
    }
    return PL_OK;
}

/* All until the server closes, at most max bytes. */
static pl_status receive(const monitor_server *s, int fd, size_t max, char **out, size_t *n,
    const deadline *d, pl_error *err)
{
    size_t room = PIECE;
    char *text = malloc(room + 1);

    *n = 0;
    pl_status st = text ? PL_OK : pl_fail(err, PL_E_NOMEM, "no memory for an answer");
    while (st == PL_OK) {
        if (*n == room) {
            char *more = room < max ? realloc(text, 2 * room + 1) : NULL;
            if (!more) {
                st = room < max ? pl_fail(err, PL_E_NOMEM, "no memory for an answer")
                                : pl_fail(err, PL_E_FORMAT, "%s:%s sends more than %zu bytes",
                                      s->host, s->port, max);
                break;
            }
            text = more;
            room *= 2;
        }
        const ssize_t got = recv(fd, text + *n, room - *n, 0);
        if (got == 0)
            break;
        if (got > 0)
            *n += (size_t)got;
        else if (errno == EAGAIN || errno == EINTR)
            st = wait_for(s, fd, POLLIN, d, err);
        else
            st = pl_fail(err, PL_E_PEER, "%s:%s: %s", s->host, s->port, strerror(errno));
    }
    if (st != PL_OK) {
        free(text);
        return st;
    }
    text[*n] = '\0';
    *out = text;
    return PL_OK;
}

/* Cut the head off; the rest is the body, whole. */
static pl_status take_body(const monitor_server *s, char *text, size_t *n, pl_error *err)
{
    char *end = memmem(text, *n < HEAD_MAX ? *n : HEAD_MAX, "\r\n\r\n", 4);
    int status = 0;

    if (!end || strncmp(text, "HTTP/1.", 7) != 0 || sscanf(text + 8, " %3d", &status) != 1)
        return pl_fail(err, PL_E_PEER, "%s:%s does not speak HTTP/1.1", s->host, s->port);
    *end = '\0';
    if (status == 401 || status == 403)
        return pl_fail(err, PL_E_PEER,
            "%s:%s wants the token: give --token-file FILE, its RUN/monitor.token", s->host,
            s->port);
    if (status != 200)
        return pl_fail(err, status == 404 ? PL_E_NOENT : PL_E_PEER, "%s:%s answers %d", s->host,
            s->port, status);
    if (strcasestr(text, "\r\nTransfer-Encoding:"))
        return pl_fail(err, PL_E_PEER, "%s:%s sends its answer in chunks", s->host, s->port);
    const char *length = strcasestr(text, "\r\nContent-Length:");
    const size_t n_body = *n - (size_t)(end + 4 - text);
    const unsigned long long told = length ? strtoull(length + 17, NULL, 10) : n_body;
    if (told > n_body)
        return pl_fail(
            err, PL_E_PEER, "%s:%s hung up in the middle of an answer", s->host, s->port);
    memmove(text, end + 4, (size_t)told);
    text[told] = '\0';
    *n = (size_t)told;
    return PL_OK;
}

pl_status monitor_get(const monitor_server *s, const char *path, size_t max_bytes, char **out,
    size_t *n, pl_error *err)
{
    const deadline d = {now_ms() + ANSWER_MS};
    char request[1024], *text = NULL;
    int fd = -1;

    const int n_request = snprintf(request, sizeof request,
        "GET %s HTTP/1.1\r\nHost: %s:%s\r\nAccept: application/json\r\n%s%s%s"
        "Connection: close\r\n\r\n",
        path, s->host, s->port, s->token[0] ? "Authorization: Bearer " : "", s->token,
        s->token[0] ? "\r\n" : "");
    if (n_request < 0 || n_request >= (int)sizeof request)
        return pl_fail(err, PL_E_INVAL, "a request for '%.60s...' is too long", path);
    pl_status st = dial(s, &d, &fd, err);
    if (st == PL_OK)
        st = send_all(s, fd, request, (size_t)n_request, &d, err);
    if (st == PL_OK)
        st = receive(s, fd, max_bytes, &text, n, &d, err);
    if (fd >= 0)
        close(fd);
    if (st == PL_OK)
        st = take_body(s, text, n, err);
    if (st != PL_OK) {
        free(text);
        return st;
    }
    *out = text;
    return PL_OK;
}
