/* ipc/address.c - ipc:///path and tcp://host:port: parsed before libzmq sees them, because its own
 * errors name neither cause nor remedy, and because its bind unlinks whatever a path names. */
#include "ipc/socket_internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static pl_status parse_path(socket_address *a, const char *path, pl_error *err)
{
    const size_t n = strlen(path);

    if (n == 0 || path[0] == '@' || path[0] == '*')
        return pl_fail(err, PL_E_CONFIG, "address 'ipc://%s': wants a path, as in ipc:///run/x/s",
            n > 0 ? path : "");
    if (n > SOCKET_PATH_MAX)
        return pl_fail(err, PL_E_CONFIG,
            "address 'ipc://%.60s...': a path of %zu bytes; a Unix socket takes %d: use a shorter "
            "run directory, or a symbolic link to it",
            path, n, SOCKET_PATH_MAX);
    snprintf(a->text, sizeof a->text, "ipc://%s", path);
    a->path = a->text + strlen("ipc://");
    return PL_OK;
}

/* 1 when the text is a port number, or (of bind) any port. */
static int parse_port(const char *text, int is_bind, int *port)
{
    char *end;

    if (strcmp(text, "*") == 0) {
        *port = 0;
        return is_bind;
    }
    if (text[0] < '0' || text[0] > '9' || strlen(text) > 5)
        return 0;
    const long v = strtol(text, &end, 10);
    *port = (int)v;
    return *end == 0 && v <= 65535 && (v > 0 || is_bind);
}

static pl_status parse_tcp(socket_address *a, const char *rest, int is_bind, pl_error *err)
{
    const char *colon = strrchr(rest, ':');
    char host[256];
    struct in_addr ip;
    int port;

    if (!colon || colon == rest || !parse_port(colon + 1, is_bind, &port))
        return pl_fail(err, PL_E_CONFIG, "address 'tcp://%.100s': wants tcp://HOST:PORT%s", rest,
            is_bind ? ", port 0 for any" : "");
    const size_t n = (size_t)(colon - rest);
    if (n >= sizeof host || memchr(rest, '[', n) || memchr(rest, ':', n) || memchr(rest, ';', n))
        return pl_fail(err, PL_E_CONFIG,
            "address 'tcp://%.100s': the host must be an IPv4 address or a name", rest);
    memcpy(host, rest, n);
    host[n] = 0;
    if (!is_bind && strcmp(host, "*") == 0)
        return pl_fail(err, PL_E_CONFIG, "address 'tcp://%.100s': connect wants a host", rest);
    if (strcmp(host, "localhost") == 0)
        snprintf(host, sizeof host, "127.0.0.1");
    a->is_tcp = 1;
    a->is_loopback = inet_pton(AF_INET, host, &ip) == 1 && ntohl(ip.s_addr) >> 24 == 127;
    if (!is_bind && inet_pton(AF_INET, host, &ip) == 1 && ip.s_addr == 0)
        return pl_fail(err, PL_E_CONFIG, "address 'tcp://%.100s': connect wants a host", rest);
    if (port == 0)
        snprintf(a->text, sizeof a->text, "tcp://%s:*", host);
    else
        snprintf(a->text, sizeof a->text, "tcp://%s:%d", host, port);
    return PL_OK;
}

pl_status socket_address_parse(socket_address *a, const char *text, int is_bind, pl_error *err)
{
    memset(a, 0, sizeof *a);
    if (!text)
        return pl_fail(err, PL_E_CONFIG, "an address is missing: ipc:///path or tcp://HOST:PORT");
    if (strncmp(text, "ipc://", 6) == 0)
        return parse_path(a, text + 6, err);
    if (strncmp(text, "tcp://", 6) == 0)
        return parse_tcp(a, text + 6, is_bind, err);
    return pl_fail(
        err, PL_E_CONFIG, "address '%.100s': wants ipc:///path or tcp://HOST:PORT", text);
}

pl_status socket_address_free(const socket_address *a, pl_error *err)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    struct stat s;

    if (a->is_tcp || lstat(a->path, &s) != 0)
        return PL_OK;
    if (!S_ISSOCK(s.st_mode))
        return pl_fail(err, PL_E_IO,
            "cannot listen on '%s': that path is something else than a socket: choose another",
            a->text);
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return pl_fail(err, PL_E_IO, "cannot listen on '%s': %s", a->text, strerror(errno));
    memcpy(name.sun_path, a->path, strlen(a->path) + 1);
    const int rc = connect(fd, (const struct sockaddr *)&name, sizeof name);
    const int is_live = rc == 0 || errno == EAGAIN || errno == EINPROGRESS;
    close(fd);
    if (is_live)
        return pl_fail(err, PL_E_IO,
            "cannot listen on '%s': another process does: stop it, or choose another path",
            a->text);
    return PL_OK;
}
