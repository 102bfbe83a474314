/* ipc/socket.c - contexts and sockets: made with every limit and deadline set, waited for, closed.
 * What goes over them is in message.c. */
#include "ipc/socket_internal.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Frames are bounded by the longest body and what libzmq adds.  High-water marks count messages:
 * a peer that does not read holds at most SEND_HWM of ours, one that floods RECEIVE_HWM of its own,
 * 132 MiB at worst, before TCP holds it back.  CURVE_DOMAIN asks for the handler of keys. */
enum { FRAME_MAX = PL_BODY_MAX + (64 << 10), SEND_HWM = 256, RECEIVE_HWM = 64 };
enum { GOODBYE_MS = 200, WAIT_ITEMS = 64, WAIT_CAPPED_MS = 20 };
static const char CURVE_DOMAIN[] = "paceline";

/* libzmq's zmq.h hides it among the drafts; the library takes it in every build: without an answer
 * of a handler, nobody is admitted. */
enum { OPTION_ZAP_ENFORCE_DOMAIN = 93 };

int64_t socket_now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

uint64_t socket_rate_count(socket_rate *r)
{
    const int64_t now = socket_now_ms();
    const uint64_t n = ++r->n;

    if (r->started && now - r->last_ms < 1000)
        return 0;
    r->started = 1;
    r->last_ms = now;
    r->n = 0;
    return n;
}

/* ---- contexts ---- */

static pl_status read_keys(pl_ipc *ipc, const char *dir, pl_error *err)
{
    pl_status st = keys_read(
        dir, ipc->is_server ? "server.key_secret" : "client.key_secret", 1, ipc->secret, err);

    if (st == PL_OK && !ipc->is_server)
        st = keys_read(dir, "server.key", 0, ipc->server, err);
    if (st == PL_OK && zmq_curve_public(ipc->public, ipc->secret) != 0)
        st = pl_fail(err, PL_E_CONFIG, "keys '%s': libzmq was built without CURVE", dir);
    ipc->has_keys = st == PL_OK;
    return st;
}

pl_status pl_ipc_new(pl_ipc **out, const pl_ipc_options *o, const pl_log *log, pl_error *err)
{
    pl_ipc *ipc = calloc(1, sizeof *ipc);
    pl_status st = PL_OK;

    if (!ipc)
        return pl_fail(err, PL_E_NOMEM, "ZeroMQ context: no memory");
    ipc->log = log;
    ipc->is_server = o && o->is_server;
    ipc->ctx = zmq_ctx_new();
    if (!ipc->ctx || zmq_ctx_set(ipc->ctx, ZMQ_BLOCKY, 0) != 0 ||
        zmq_ctx_set(ipc->ctx, ZMQ_IPV6, 0) != 0)
        st = pl_fail(err, PL_E_IO, "ZeroMQ context: %s", zmq_strerror(errno));
    if (st == PL_OK && o && o->keys)
        st = read_keys(ipc, o->keys, err);
    /* Before anything can be bound: nobody is admitted unasked. */
    if (st == PL_OK && ipc->has_keys && ipc->is_server)
        st = zap_new(&ipc->zap, ipc->ctx, o->keys, log, err);
    if (st != PL_OK) {
        pl_ipc_free(ipc);
        return st;
    }
    *out = ipc;
    return PL_OK;
}

void pl_ipc_free(pl_ipc *ipc)
{
    if (!ipc)
        return;
    if (ipc->ctx) {
        zmq_ctx_shutdown(ipc->ctx);
        zap_free(ipc->zap);
        while (zmq_ctx_term(ipc->ctx) != 0 && errno == EINTR) {
        }
    }
    sodium_memzero(ipc, sizeof *ipc);
    free(ipc);
}

/* ---- making sockets ---- */

static int set_int(void *zmq, int option, int value)
{
    return zmq_setsockopt(zmq, option, &value, sizeof value) == 0;
}

static int set_text(void *zmq, int option, const char *text)
{
    return zmq_setsockopt(zmq, option, text, strlen(text)) == 0;
}

/* No heartbeats of libzmq: when a connection ends whose messages wait at the high-water mark, the
 * next of its PINGs fails an assertion and aborts the process (4.3.4, "!_io_error", and its issues
 * 3596, 3937, 4767; tests/ipc/test_socket.c has it).  A peer that ends is seen through its socket;
 * one whose machine is gone, by the kernel in some 6 s, or 10 s when something was under way; one
 * that hangs, by STATUS, which is our own. */
static int set_limits(void *zmq, int send_hwm, int receive_hwm)
{
    const int64_t frame_max = FRAME_MAX;
    const struct {
        int option, value;
    } options[] = {
        {ZMQ_LINGER, 0},
        {ZMQ_SNDHWM, send_hwm},
        {ZMQ_RCVHWM, receive_hwm},
        {ZMQ_HANDSHAKE_IVL, 2000},
        {ZMQ_HEARTBEAT_IVL, 0}, /* see above */
        {ZMQ_RECONNECT_IVL, 100},
        {ZMQ_RECONNECT_IVL_MAX, 2000},
        {ZMQ_IPV6, 0},
        {ZMQ_TCP_KEEPALIVE, 1},
        {ZMQ_TCP_KEEPALIVE_IDLE, 2},
        {ZMQ_TCP_KEEPALIVE_INTVL, 1},
        {ZMQ_TCP_KEEPALIVE_CNT, 4},
        {ZMQ_TCP_MAXRT, 10000},
        {ZMQ_BACKLOG, 256},
    };

    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
        if (!set_int(zmq, options[i].option, options[i].value))
            return 0;
    return zmq_setsockopt(zmq, ZMQ_MAXMSGSIZE, &frame_max, sizeof frame_max) == 0;
}

/* Unix sockets: whoever runs as this user or root.  tcp: whoever has a key. */
static int set_server(const pl_socket *s, int is_tcp)
{
    const uid_t self = geteuid(), root = 0;

    if (!set_int(s->zmq, ZMQ_ROUTER_MANDATORY, 1) || !set_int(s->zmq, ZMQ_ROUTER_HANDOVER, 0))
        return 0;
    if (!is_tcp)
        return zmq_setsockopt(s->zmq, ZMQ_IPC_FILTER_UID, &self, sizeof self) == 0 &&
               zmq_setsockopt(s->zmq, ZMQ_IPC_FILTER_UID, &root, sizeof root) == 0;
    if (!s->ipc->has_keys)
        return 1;
    return set_int(s->zmq, ZMQ_CURVE_SERVER, 1) &&
           set_text(s->zmq, ZMQ_CURVE_SECRETKEY, s->ipc->secret) &&
           set_text(s->zmq, ZMQ_ZAP_DOMAIN, CURVE_DOMAIN) &&
           set_int(s->zmq, OPTION_ZAP_ENFORCE_DOMAIN, 1);
}

static int set_client(const pl_socket *s, int is_tcp, pl_role role)
{
    pl_peer id = {{(unsigned char)role}};

    memcpy(id.id + PL_PEER_BYTES - sizeof s->incarnation, &s->incarnation, sizeof s->incarnation);
    if (zmq_setsockopt(s->zmq, ZMQ_ROUTING_ID, id.id, sizeof id.id) != 0 ||
        !set_int(s->zmq, ZMQ_IMMEDIATE, 1))
        return 0;
    if (!is_tcp || !s->ipc->has_keys)
        return 1;
    return set_text(s->zmq, ZMQ_CURVE_SERVERKEY, s->ipc->server) &&
           set_text(s->zmq, ZMQ_CURVE_PUBLICKEY, s->ipc->public) &&
           set_text(s->zmq, ZMQ_CURVE_SECRETKEY, s->ipc->secret);
}

static pl_status check_keys(
    const pl_ipc *ipc, const socket_address *a, int is_server, pl_error *err)
{
    if (!a->is_tcp)
        return PL_OK;
    if (!a->is_loopback && !ipc->has_keys)
        return pl_fail(err, PL_E_CONFIG,
            "address '%s' reaches beyond this machine and there are no keys: make them with "
            "paceline keygen DIR and name DIR, or use 127.0.0.1",
            a->text);
    if (ipc->has_keys && ipc->is_server != is_server)
        return pl_fail(err, PL_E_CONFIG, "address '%s': %s", a->text,
            is_server ? "listening wants a server's keys" : "connecting wants a client's keys");
    return PL_OK;
}

static pl_status new_socket(pl_socket **out, pl_ipc *ipc, int is_server, pl_error *err)
{
    pl_socket *s = calloc(1, sizeof *s);
    ssize_t n;

    if (s && is_server)
        s->dropped = calloc(SOCKET_DROPPED, sizeof *s->dropped);
    if (!s || (is_server && !s->dropped)) {
        free(s);
        return pl_fail(err, PL_E_NOMEM, "socket: no memory");
    }
    s->ipc = ipc;
    s->is_server = is_server;
    zmq_msg_init(&s->id);
    zmq_msg_init(&s->head);
    zmq_msg_init(&s->body);
    *out = s;
    do
        n = getrandom(&s->incarnation, sizeof s->incarnation, 0);
    while ((n < 0 && errno == EINTR) || (n > 0 && s->incarnation == 0));
    if (n != (ssize_t)sizeof s->incarnation)
        return pl_fail(err, PL_E_IO, "socket: no random bytes: %s", strerror(errno));
    s->zmq = zmq_socket(ipc->ctx, is_server ? ZMQ_ROUTER : ZMQ_DEALER);
    if (!s->zmq)
        return pl_fail(err, PL_E_IO, "socket: %s%s", zmq_strerror(errno),
            errno == EMFILE ? ": raise the limit of open files (ulimit -n)" : "");
    return PL_OK;
}

static pl_status fail_listen(const char *address, pl_error *err)
{
    const char *remedy = errno == EADDRINUSE      ? ": choose another port, or 0 for any"
                         : errno == EADDRNOTAVAIL ? ": that is no address of this machine"
                         : errno == ENODEV        ? ": that is no address of this machine"
                         : errno == EACCES        ? ": choose a place where you may write"
                         : errno == ENOENT        ? ": make its directory first"
                                                  : "";
    return pl_fail(
        err, PL_E_IO, "cannot listen on '%s': %s%s", address, zmq_strerror(errno), remedy);
}

static pl_status listen_on(pl_socket *s, const socket_address *a, int receive_hwm, pl_error *err)
{
    size_t n = sizeof s->address;
    pl_status st = socket_address_free(a, err);

    if (st == PL_OK)
        st = guard_new(&s->guard, s->ipc, s->zmq, receive_hwm, err);
    if (st != PL_OK)
        return st;
    if (zmq_bind(s->zmq, a->text) != 0)
        return fail_listen(a->text, err);
    if (zmq_getsockopt(s->zmq, ZMQ_LAST_ENDPOINT, s->address, &n) != 0)
        return fail_listen(a->text, err);
    /* The filter above holds anyway; this says so to others. */
    if (!a->is_tcp && chmod(a->path, 0600) != 0)
        return fail_listen(a->text, err);
    guard_watch(s->guard, s->address);
    return PL_OK;
}

pl_status socket_bind(
    pl_socket **out, pl_ipc *ipc, const char *address, int send_hwm, int receive_hwm, pl_error *err)
{
    socket_address a;
    pl_socket *s = NULL;
    pl_status st = socket_address_parse(&a, address, 1, err);

    if (st == PL_OK)
        st = check_keys(ipc, &a, 1, err);
    if (st == PL_OK)
        st = new_socket(&s, ipc, 1, err);
    if (st == PL_OK && (!set_limits(s->zmq, send_hwm, receive_hwm) || !set_server(s, a.is_tcp)))
        st = pl_fail(err, PL_E_IO, "socket '%s': %s", a.text, zmq_strerror(errno));
    if (st == PL_OK)
        st = listen_on(s, &a, receive_hwm, err);
    if (st != PL_OK) {
        pl_socket_close(s);
        return st;
    }
    *out = s;
    return PL_OK;
}

pl_status socket_connect(pl_socket **out, pl_ipc *ipc, const char *address, pl_role role,
    int send_hwm, int receive_hwm, pl_error *err)
{
    socket_address a;
    pl_socket *s = NULL;
    pl_status st = socket_address_parse(&a, address, 0, err);

    if (st == PL_OK)
        st = check_keys(ipc, &a, 0, err);
    if (st == PL_OK)
        st = new_socket(&s, ipc, 0, err);
    if (st == PL_OK &&
        (!set_limits(s->zmq, send_hwm, receive_hwm) || !set_client(s, a.is_tcp, role)))
        st = pl_fail(err, PL_E_IO, "socket '%s': %s", a.text, zmq_strerror(errno));
    if (st == PL_OK && zmq_connect(s->zmq, a.text) != 0)
        st = pl_fail(err, PL_E_IO, "cannot connect to '%s': %s", a.text, zmq_strerror(errno));
    if (st != PL_OK) {
        pl_socket_close(s);
        return st;
    }
    snprintf(s->address, sizeof s->address, "%s", a.text);
    *out = s;
    return PL_OK;
}

pl_status pl_socket_bind(pl_socket **out, pl_ipc *ipc, const char *address, pl_error *err)
{
    return socket_bind(out, ipc, address, SEND_HWM, RECEIVE_HWM, err);
}

pl_status pl_socket_connect(
    pl_socket **out, pl_ipc *ipc, const char *address, pl_role role, pl_error *err)
{
    return socket_connect(out, ipc, address, role, SEND_HWM, RECEIVE_HWM, err);
}

void pl_socket_close(pl_socket *s)
{
    if (!s)
        return;
    guard_free(s->guard);
    zmq_msg_close(&s->id);
    zmq_msg_close(&s->head);
    zmq_msg_close(&s->body);
    if (s->zmq) {
        (void)set_int(s->zmq, ZMQ_LINGER, GOODBYE_MS);
        zmq_close(s->zmq);
    }
    pl_bytes_done(&s->out);
    free(s->dropped);
    free(s);
}

/* ---- facts, waiting ---- */

const char *pl_socket_address(const pl_socket *s)
{
    return s->address;
}

uint64_t pl_socket_incarnation(const pl_socket *s)
{
    return s->incarnation;
}

int pl_socket_sender(const pl_socket *s)
{
    return s->is_server ? guard_sender(s->guard, &s->head) : 0;
}

void pl_socket_set_epoch(pl_socket *s, uint64_t epoch)
{
    s->epoch = epoch;
}

void pl_socket_get_stats(const pl_socket *s, pl_socket_stats *out)
{
    *out = s->stats;
}

/* One wait, at most until a guard wants to look round.  1: something is readable, or a signal came;
 * else 0. */
static int wait_once(pl_socket *const *sockets, int n, zmq_pollitem_t *items, int n_items, int ms)
{
    int rc;

    for (int i = 0; i < n; i++)
        if (sockets[i] && sockets[i]->guard &&
            (ms < 0 || guard_patience_ms(sockets[i]->guard) < ms))
            ms = guard_patience_ms(sockets[i]->guard);
    rc = n_items > 0 ? zmq_poll(items, n_items, ms) : poll(NULL, 0, ms);
    if (rc != 0)
        return 1;
    for (int i = 0; i < n; i++)
        if (sockets[i] && sockets[i]->guard)
            guard_check(sockets[i]->guard, 1);
    return 0;
}

/* More than WAIT_ITEMS: the rest is looked at by the caller's next round, soon. */
void pl_socket_wait(pl_socket *const *sockets, int n, const int *fds, int n_fds, int timeout_ms)
{
    zmq_pollitem_t items[WAIT_ITEMS];
    int k = 0, n_wanted = n_fds;

    for (int i = 0; i < n; i++) {
        if (!sockets[i])
            continue;
        n_wanted++;
        if (k < WAIT_ITEMS)
            items[k++] = (zmq_pollitem_t){.socket = sockets[i]->zmq, .events = ZMQ_POLLIN};
    }
    for (int i = 0; i < n_fds && k < WAIT_ITEMS; i++)
        items[k++] = (zmq_pollitem_t){.fd = fds[i], .events = ZMQ_POLLIN | ZMQ_POLLERR};
    if (n_wanted > k && (timeout_ms < 0 || timeout_ms > WAIT_CAPPED_MS))
        timeout_ms = WAIT_CAPPED_MS;
    const int64_t deadline = socket_now_ms() + timeout_ms;
    int left = timeout_ms;
    while (!wait_once(sockets, n, items, k, left) && left != 0) {
        if (timeout_ms < 0)
            continue;
        const int64_t rest = deadline - socket_now_ms();
        left = rest > 0 ? (int)rest : 0;
        if (left == 0)
            break;
    }
}
