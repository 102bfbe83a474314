/* ipc/socket_internal.h - what the socket files of ipc/ share: addresses, keys, the key handler,
 * the guard of accepted connections. */
#ifndef PL_IPC_SOCKET_INTERNAL_H
#define PL_IPC_SOCKET_INTERNAL_H

#include "ipc/ipc.h"

#include <zmq.h>

#include <stdint.h>
#include <sys/types.h>

/* ---- time and rates ---- */

int64_t socket_now_ms(void); /* monotonic */

/* One log line a second.  Returns how many events the line stands for; 0: say nothing now. */
typedef struct socket_rate {
    int64_t last_ms;
    uint64_t n;
    int started;
} socket_rate;
uint64_t socket_rate_count(socket_rate *r);

/* ---- addresses (address.c) ---- */

enum { SOCKET_ADDRESS_BYTES = 320, SOCKET_PATH_MAX = 107 };

typedef struct socket_address {
    int is_tcp;
    int is_loopback;                 /* of tcp */
    char text[SOCKET_ADDRESS_BYTES]; /* for libzmq: localhost and port * are resolved */
    const char *path;                /* of ipc, inside text */
} socket_address;

/* Errors: PL_E_CONFIG. */
pl_status socket_address_parse(socket_address *a, const char *text, int is_bind, pl_error *err);
/* A path that libzmq would unlink must be a socket that nobody listens on.  Errors: PL_E_IO. */
pl_status socket_address_free(const socket_address *a, pl_error *err);

/* ---- keys (keys.c) ---- */

enum { KEY_CHARS = 40, KEY_TEXT = KEY_CHARS + 1 }; /* Z85 of 32 bytes, and a NUL */

/* Read dir/name: 40 Z85 characters, at most a newline after them; a regular file of ours or root's
 * that others cannot write, and, if it is secret, not read.  Errors: PL_E_NOENT, PL_E_IO,
 * PL_E_FORMAT, PL_E_CONFIG (owner, mode). */
pl_status keys_read(
    const char *dir, const char *name, int is_secret, char out[KEY_TEXT], pl_error *err);

/* ---- who is admitted (zap.c) ---- */

/* Answers libzmq's questions about CURVE clients (RFC 27) from a thread of its own: yes for the
 * keys in dir/clients, no for everything else.  The socket that is asked lives until zap_free, so
 * a handler that died means that nobody is admitted. */
typedef struct zap zap;
pl_status zap_new(zap **out, void *ctx, const char *dir, const pl_log *log, pl_error *err);
void zap_free(zap *z); /* after zmq_ctx_shutdown */

/* ---- connections (guard.c) ---- */

/* Ends connections of a bound socket.  libzmq bounds a frame and a number of whole messages, but a
 * message of endless frames is kept by it and seen by nobody: the guard looks at what a TCP
 * connection has sent since its last whole message. */
typedef struct guard guard;
pl_status guard_new(guard **out, pl_ipc *ipc, void *socket, int receive_hwm, pl_error *err);
void guard_watch(guard *g, const char *address); /* as bound */
void guard_free(guard *g);                       /* before the socket is closed */
/* Cut the connection that m came by; quiet when it is gone already. */
void guard_cut(guard *g, zmq_msg_t *m);
/* A whole message came by m's connection. */
void guard_saw(guard *g, zmq_msg_t *m);
/* Look at all connections, if it is time to.  is_drained: the socket has just had nothing to read.
 *  Returns how many were cut. */
int guard_check(guard *g, int is_drained);
int guard_patience_ms(const guard *g); /* how long nobody needs to look */
/* Who connected what m came by: its process id, by a Unix socket; else 0. */
int guard_sender(const guard *g, const zmq_msg_t *m);

/* ---- sockets ---- */

enum {
    SOCKET_DROPPED = 1024,    /* peers remembered as forgotten, the oldest go first */
    SOCKET_DRAIN_PARTS = 256, /* frames thrown away before a call looks at its deadline */
};

typedef struct socket_dropped {
    pl_peer peer;
    int64_t at_ms;
} socket_dropped;

struct pl_ipc {
    void *ctx;
    const pl_log *log;
    int is_server, has_keys;
    char secret[KEY_TEXT], public[KEY_TEXT], server[KEY_TEXT]; /* server: of a client */
    zap *zap;
};

struct pl_socket {
    pl_ipc *ipc;
    void *zmq;
    int is_server;
    int is_draining; /* the rest of a message is still to be thrown away */
    char address[SOCKET_ADDRESS_BYTES];
    uint64_t incarnation, epoch, seq;
    pl_bytes out;
    zmq_msg_t id, head, body; /* of the last message */
    guard *guard;             /* of a server */
    socket_dropped *dropped;  /* [SOCKET_DROPPED] of a server */
    uint64_t n_dropped;       /* so far */
    socket_rate rate;
    pl_socket_stats stats;
};

/* pl_socket_bind and _connect with high-water marks of the caller's, in messages: what a slow peer
 * may hold in this process is at most send_hwm messages. */
pl_status socket_bind(pl_socket **out, pl_ipc *ipc, const char *address, int send_hwm,
    int receive_hwm, pl_error *err);
pl_status socket_connect(pl_socket **out, pl_ipc *ipc, const char *address, pl_role role,
    int send_hwm, int receive_hwm, pl_error *err);

#endif
