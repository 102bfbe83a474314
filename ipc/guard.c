/* ipc/guard.c - ends connections that abuse a bound socket.
 *
 * libzmq 4.3 has no call for that, and its limits count whole messages: a message of endless small
 * frames grows in its memory, about twenty bytes for one sent, and is seen by nobody.  So the
 * socket's monitor tells which file descriptors were accepted, the kernel how many bytes each has
 * received, and every whole message by which descriptor it came (ZMQ_SRCFD).  What came more than
 * one look ago is complete and was read by us, or it is a message that has not ended:
 *
 *     bytes at the previous look - bytes at the last whole message > LIMIT  =>  shutdown(2)
 *
 * libzmq sees an end of file and frees what it held.  A number that was closed and given to another
 * connection meanwhile: it is cut only if it is one of this very listener, and its peer connects
 * again.  Unix sockets have no such counter; they admit only this user and root (socket.c). */
#define _GNU_SOURCE /* struct ucred */
#include "ipc/socket_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    LOOK_MS = 100,          /* between looks */
    SUSPICIOUS_MS = 5,      /* the same, while a message is coming that is longer than */
    SUSPICIOUS = 256 << 10, /* this; bytes */
    FILES_MS = 1000,        /* between looks for too many open files */
    FD_MAX = 1 << 16,       /* connections above are not watched */
    EVENTS_A_LOOK = 4096,   /* so that a flood of connections does not hold the caller */
    MESSAGE_MAX = 4 << 20,  /* one message in pieces, generously; bytes */
    QUEUED_MAX = PL_BODY_MAX + (64 << 10), /* one whole message that waits for us; bytes */
};

typedef struct connection {
    int is_open;
    uint64_t at_message; /* bytes received when a whole message was last seen */
    uint64_t at_look;    /* bytes received at the previous look */
} connection;

struct guard {
    const pl_log *log;
    void *socket, *monitor;
    int is_tcp, receive_hwm;
    uint16_t port; /* of the listener, network order */
    char path[SOCKET_PATH_MAX + 1];
    connection *connections; /* [n_connections] by descriptor */
    int n_connections;
    int64_t looked_ms;
    int is_suspicious;
    int64_t counted_ms; /* when the open files were last looked at */
    socket_rate cut;
};

/* ---- descriptors ---- */

/* Bytes that libzmq has read from the connection; 0 when that cannot be told. */
static uint64_t bytes_read(int fd)
{
    struct tcp_info info;
    socklen_t n = sizeof info;
    int unread = 0;

    memset(&info, 0, sizeof info);
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &n) != 0 || ioctl(fd, SIOCINQ, &unread) != 0)
        return 0;
    return info.tcpi_bytes_received > (uint64_t)unread ? info.tcpi_bytes_received - (uint64_t)unread
                                                       : 0;
}

/* 1 if fd is a connection that our listener accepted. */
static int is_ours(const guard *g, int fd)
{
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_un un;
    } name;
    socklen_t n = sizeof name, n_peer = sizeof name;

    memset(&name, 0, sizeof name);
    if (getpeername(fd, &name.any, &n_peer) != 0)
        return 0;
    memset(&name, 0, sizeof name);
    if (getsockname(fd, &name.any, &n) != 0)
        return 0;
    if (g->is_tcp)
        return name.any.sa_family == AF_INET && name.in.sin_port == g->port;
    return name.any.sa_family == AF_UNIX &&
           strncmp(name.un.sun_path, g->path, sizeof name.un.sun_path) == 0;
}

static int cut(guard *g, int fd)
{
    if (fd < 0 || !is_ours(g, fd))
        return 0;
    return shutdown(fd, SHUT_RDWR) == 0;
}

static int descriptor(zmq_msg_t *m)
{
    return zmq_msg_get(m, ZMQ_SRCFD);
}

void guard_cut(guard *g, zmq_msg_t *m)
{
    cut(g, descriptor(m));
}

void guard_saw(guard *g, zmq_msg_t *m)
{
    const int fd = g->is_tcp ? descriptor(m) : -1;

    if (fd >= 0 && fd < g->n_connections)
        g->connections[fd].at_message = bytes_read(fd);
}

int guard_sender(const guard *g, const zmq_msg_t *m)
{
    struct ucred who = {0};
    socklen_t n = sizeof who;
    const int fd = descriptor((zmq_msg_t *)(uintptr_t)m); /* zmq_msg_get changes nothing */

    if (g->is_tcp || fd < 0 || !is_ours(g, fd) ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &n) != 0)
        return 0;
    return (int)who.pid;
}

/* ---- looking ---- */

static void opened(guard *g, int fd)
{
    if (fd < 0 || fd >= FD_MAX || !g->is_tcp)
        return;
    if (fd >= g->n_connections) {
        int n = g->n_connections > 0 ? g->n_connections : 64;
        while (n <= fd)
            n *= 2;
        connection *c = realloc(g->connections, (size_t)n * sizeof *c);
        if (!c)
            return; /* unwatched, as it would be without a guard */
        memset(c + g->n_connections, 0, (size_t)(n - g->n_connections) * sizeof *c);
        g->connections = c;
        g->n_connections = n;
    }
    g->connections[fd] = (connection){.is_open = 1};
}

/* One event of the monitor: frame 1 is event and value, frame 2 the address.  0: there is none. */
static int take_event(guard *g)
{
    unsigned char frame[6];
    char address[8];
    uint16_t event;
    uint32_t value;

    const int n = zmq_recv(g->monitor, frame, sizeof frame, ZMQ_DONTWAIT);
    if (n < 0)
        return 0;
    (void)zmq_recv(g->monitor, address, sizeof address, ZMQ_DONTWAIT);
    if (n != (int)sizeof frame)
        return 1;
    memcpy(&event, frame, sizeof event);
    memcpy(&value, frame + 2, sizeof value);
    if (event == ZMQ_EVENT_ACCEPTED)
        opened(g, (int)value);
    else if (event == ZMQ_EVENT_DISCONNECTED && value < (uint32_t)g->n_connections)
        g->connections[value].is_open = 0;
    return 1;
}

static int look_at(guard *g, int fd, uint64_t limit)
{
    connection *c = &g->connections[fd];
    int is_cut = 0;

    if (c->at_look > c->at_message && c->at_look - c->at_message > limit) {
        is_cut = cut(g, fd);
        c->is_open = 0;
        const uint64_t k = socket_rate_count(&g->cut);
        if (k > 0)
            pl_log_warn(g->log,
                "event=peer_cut n=%" PRIu64 " bytes=%" PRIu64
                " reason=\"a message without end\": continuing",
                k, c->at_look - c->at_message);
    }
    c->at_look = bytes_read(fd);
    if (c->is_open && c->at_look > c->at_message + SUSPICIOUS)
        g->is_suspicious = 1;
    return is_cut;
}

/* Say it when no file can be opened any more: libzmq's thread then tries to accept as fast as it
 * can and tells nobody.  (Its event ACCEPT_FAILED comes 40,000 times a second, hence not that.) */
static void check_files(guard *g, int64_t now)
{
    if (now - g->counted_ms < FILES_MS)
        return;
    g->counted_ms = now;
    const int fd = eventfd(0, EFD_CLOEXEC);
    if (fd >= 0)
        close(fd);
    else if (errno == EMFILE || errno == ENFILE)
        pl_log_warn(g->log,
            "event=accept_failed reason=\"%s\": no peer can come in, raise the limit of open "
            "files (ulimit -n): continuing",
            strerror(errno));
}

int guard_check(guard *g, int is_drained)
{
    const int64_t now = socket_now_ms();
    const uint64_t waiting = (uint64_t)g->receive_hwm * QUEUED_MAX;
    int n_cut = 0;

    if (now - g->looked_ms < (g->is_suspicious ? SUSPICIOUS_MS : LOOK_MS))
        return 0;
    g->looked_ms = now;
    g->is_suspicious = 0;
    check_files(g, now);
    for (int i = 0; i < EVENTS_A_LOOK && take_event(g); i++) {
    }
    for (int fd = 0; fd < g->n_connections; fd++)
        if (g->connections[fd].is_open)
            n_cut += look_at(g, fd, MESSAGE_MAX + (is_drained ? 0 : waiting));
    return n_cut;
}

int guard_patience_ms(const guard *g)
{
    return g->is_suspicious ? SUSPICIOUS_MS : LOOK_MS;
}

/* ---- life ---- */

pl_status guard_new(guard **out, pl_ipc *ipc, void *socket, int receive_hwm, pl_error *err)
{
    /* Without a limit: libzmq's thread would wait for us to read events, and we for it. */
    const int zero = 0;
    char name[64];
    guard *g = calloc(1, sizeof *g);

    if (!g)
        return pl_fail(err, PL_E_NOMEM, "socket: no memory");
    g->log = ipc->log;
    g->socket = socket;
    g->receive_hwm = receive_hwm;
    snprintf(name, sizeof name, "inproc://guard-%p", (void *)g);
    g->monitor = zmq_socket(ipc->ctx, ZMQ_PAIR);
    if (!g->monitor || zmq_setsockopt(g->monitor, ZMQ_LINGER, &zero, sizeof zero) != 0 ||
        zmq_setsockopt(g->monitor, ZMQ_RCVHWM, &zero, sizeof zero) != 0 ||
        zmq_socket_monitor(socket, name, ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_DISCONNECTED) != 0 ||
        zmq_connect(g->monitor, name) != 0) {
        const pl_status st =
            pl_fail(err, PL_E_IO, "socket: cannot be watched: %s", zmq_strerror(errno));
        guard_free(g);
        return st;
    }
    *out = g;
    return PL_OK;
}

void guard_watch(guard *g, const char *address)
{
    const char *colon = strrchr(address, ':');

    g->is_tcp = strncmp(address, "tcp://", 6) == 0;
    if (g->is_tcp)
        g->port = htons((uint16_t)strtoul(colon + 1, NULL, 10));
    else
        snprintf(g->path, sizeof g->path, "%s", address + strlen("ipc://"));
}

void guard_free(guard *g)
{
    if (!g)
        return;
    (void)zmq_socket_monitor(g->socket, NULL, 0);
    if (g->monitor)
        zmq_close(g->monitor);
    free(g->connections);
    free(g);
}
