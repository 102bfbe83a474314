/* ipc/message.c - messages over sockets: two frames each, everything else is thrown away, counted,
 * and its sender cut off. */
#include "ipc/socket_internal.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* ---- sending ---- */

/* A part of a message, without waiting. */
static int send_part(pl_socket *s, const void *data, size_t n, int more)
{
    int rc;

    do
        rc = zmq_send(s->zmq, data, n, ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0));
    while (rc < 0 && errno == EINTR);
    return rc >= 0;
}

pl_status pl_socket_send(pl_socket *s, const pl_peer *peer, const pl_msg *m, pl_error *err)
{
    unsigned char head[PL_HEADER_BYTES];
    pl_header h = {
        .protocol = PL_PROTOCOL, .type = m->h.type, .epoch = s->epoch, .seq = s->seq + 1};
    const pl_status st = pl_body_encode(m, &s->out, err);

    if (st != PL_OK)
        return st;
    assert(s->is_server == (peer != NULL));
    h.incarnation = s->incarnation;
    h.n_body = (uint32_t)s->out.n;
    pl_header_encode(&h, s->out.data, head);
    if ((peer && !send_part(s, peer->id, sizeof peer->id, 1)) ||
        !send_part(s, head, sizeof head, 1) || !send_part(s, s->out.data, s->out.n, 0)) {
        s->stats.n_dropped++;
        return pl_fail(err, PL_E_PEER, "%s to '%s' was dropped: the peer %s", pl_msg_name(h.type),
            s->address, errno == EAGAIN ? "is slow or not there" : "is not there");
    }
    s->seq++;
    s->stats.n_sent++;
    return PL_OK;
}

/* ---- forgetting ---- */

static const socket_dropped *find_dropped(const pl_socket *s, const pl_peer *peer)
{
    const uint64_t n = s->n_dropped < SOCKET_DROPPED ? s->n_dropped : SOCKET_DROPPED;

    for (uint64_t i = 0; i < n; i++)
        if (memcmp(&s->dropped[i].peer, peer, sizeof *peer) == 0)
            return &s->dropped[i];
    return NULL;
}

void pl_socket_drop(pl_socket *s, const pl_peer *peer)
{
    if (s->is_server && !find_dropped(s, peer))
        s->dropped[s->n_dropped++ % SOCKET_DROPPED] = (socket_dropped){*peer, socket_now_ms()};
}

/* ---- receiving ---- */

enum {
    REFUSED_A_CALL = 64, /* messages thrown away before a call without patience returns */
    GOODBYE_MS = 200     /* for what was said last to a dropped peer, the reason */
};

typedef enum arrival {
    ARRIVAL_NONE,    /* nothing there */
    ARRIVAL_REFUSED, /* thrown away, the sender is not to be answered */
    ARRIVAL_BAD,     /* thrown away, *from is set */
    ARRIVAL_WHOLE,   /* two frames, in head and body */
} arrival;

/* Take the next part; 0: none. */
static int take_part(const pl_socket *s, zmq_msg_t *m)
{
    int rc;

    do
        rc = zmq_msg_recv(m, s->zmq, ZMQ_DONTWAIT);
    while (rc < 0 && errno == EINTR);
    return rc >= 0;
}

/* Throw away what is left of a message, a bounded piece at a time. */
static void drain(pl_socket *s)
{
    for (int i = 0; i < SOCKET_DRAIN_PARTS && s->is_draining; i++)
        s->is_draining = take_part(s, &s->body) && zmq_msg_more(&s->body);
}

static int is_peer(const zmq_msg_t *id)
{
    const unsigned char *p = zmq_msg_data((zmq_msg_t *)id);

    return zmq_msg_size(id) == PL_PEER_BYTES && p[0] >= PL_ROLE_WORKER &&
           p[0] <= PL_ROLE_COORDINATOR;
}

static void log_refused(pl_socket *s, const char *why)
{
    const uint64_t n = socket_rate_count(&s->rate);

    if (n > 0)
        pl_log_warn(s->ipc->log,
            "event=message_refused n=%" PRIu64 " socket='%s' reason=\"%s\": continuing", n,
            s->address, why);
}

/* The frames of one message, up to the second. */
static arrival take_frames(pl_socket *s, pl_peer *from, pl_error *err)
{
    if (s->is_draining) {
        drain(s);
        return ARRIVAL_REFUSED;
    }
    memset(from, 0, sizeof *from);
    if (!take_part(s, s->is_server ? &s->id : &s->head))
        return ARRIVAL_NONE;
    if (s->is_server && (!zmq_msg_more(&s->id) || !take_part(s, &s->head)))
        return ARRIVAL_REFUSED;
    int n = 1;
    if (zmq_msg_more(&s->head) && take_part(s, &s->body)) {
        n = zmq_msg_more(&s->body) ? 3 : 2;
        s->is_draining = n == 3;
    }
    const int known = !s->is_server || is_peer(&s->id);
    const socket_dropped *dropped = NULL;
    if (known && s->is_server)
        memcpy(from, zmq_msg_data(&s->id), sizeof *from);
    if (known && s->is_server)
        dropped = find_dropped(s, from);
    if (s->is_server && n == 2)
        guard_saw(s->guard, &s->head);
    if (known && n == 2 && !dropped)
        return ARRIVAL_WHOLE;

    /* 1. Cut: a peer that is not ours, one that was told to go and had the time to hear it, or one
     * that breaks the frames. */
    if (s->is_server && (!dropped || n != 2 || socket_now_ms() - dropped->at_ms > GOODBYE_MS))
        guard_cut(s->guard, &s->head);
    drain(s);
    if (dropped)
        return ARRIVAL_REFUSED;
    /* 2. Count, and forget. */
    s->stats.n_malformed++;
    log_refused(s, known ? "not two frames" : "the routing id is not of a peer");
    if (!known)
        return ARRIVAL_REFUSED;
    pl_socket_drop(s, from);
    pl_error_set(
        err, PL_E_FORMAT, "a message of %s", n == 1 ? "one frame" : "more than two frames");
    return ARRIVAL_BAD;
}

/* A whole message into *m. */
static pl_status decode(pl_socket *s, pl_msg *m, pl_error *err)
{
    pl_header h;
    const void *body = zmq_msg_data(&s->body);
    const size_t n_body = zmq_msg_size(&s->body);
    pl_status st =
        pl_header_decode(&h, zmq_msg_data(&s->head), zmq_msg_size(&s->head), body, n_body, err);

    if (st == PL_OK)
        st = pl_body_decode(m, h.type, body, n_body, err);
    if (st == PL_OK) {
        m->h = h;
        s->stats.n_received++;
        return PL_OK;
    }
    s->stats.n_malformed++;
    log_refused(s, err->msg);
    return st == PL_E_PEER ? PL_E_PEER : (err->code = PL_E_FORMAT);
}

/* Wait for something to read, at most until the deadline, and not long where there is a guard to
 * look round.  0: the deadline passed, or a signal came. */
static int wait_until(const pl_socket *s, int64_t deadline)
{
    const int64_t left = deadline - socket_now_ms();
    const int most = s->is_server ? guard_patience_ms(s->guard) : 1000;
    zmq_pollitem_t item = {.socket = s->zmq, .events = ZMQ_POLLIN};

    return left > 0 && zmq_poll(&item, 1, (long)(left < most ? left : most)) >= 0;
}

pl_status pl_socket_recv(pl_socket *s, int timeout_ms, pl_peer *from, pl_msg *m, pl_error *err)
{
    const int64_t deadline = timeout_ms > 0 ? socket_now_ms() + timeout_ms : 0;
    pl_error local = {0};
    pl_peer peer;
    arrival a;
    int n_refused = 0, go_on;

    do {
        a = take_frames(s, &peer, &local);
        if (s->is_server)
            guard_check(s->guard, a == ARRIVAL_NONE);
        if (a == ARRIVAL_REFUSED)
            go_on = ++n_refused < REFUSED_A_CALL || deadline > socket_now_ms();
        else
            go_on = a == ARRIVAL_NONE && wait_until(s, deadline);
    } while (go_on);
    if (a != ARRIVAL_WHOLE && a != ARRIVAL_BAD)
        return pl_fail(err, PL_E_TIMEOUT, "nothing came in %d ms", timeout_ms);
    if (from)
        *from = peer;
    const pl_status st = a == ARRIVAL_WHOLE ? decode(s, m, &local) : PL_E_FORMAT;
    if (st != PL_OK && err)
        *err = local;
    return st;
}
