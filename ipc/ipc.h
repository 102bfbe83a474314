/* ipc/ipc.h - messages over ZeroMQ: codec, sockets with deadlines and keys, the weight channel.
 * Knows no tensors: names, sizes, bytes. */
#ifndef PL_IPC_IPC_H
#define PL_IPC_IPC_H

#include "core/error.h"
#include "core/log.h"
#include "ipc/schema.h"

#include <stddef.h>
#include <stdint.h>

/* ---- codec ---- */

/* A growing buffer, reused from message to message.  Zeroed before first use; pl_bytes_done. */
typedef struct pl_bytes {
    unsigned char *data;
    size_t n, room;
} pl_bytes;
void pl_bytes_done(pl_bytes *b);

/* The body of the message m->h.type as msgpack (replaces what out holds), and back.  A NULL string
 * is sent as the empty one; reasons (REJECT, REFUSE) are cut at their limit and bytes that are not
 * UTF-8 become '?', so that no answer is lost for its words.
 * Decoding allocates nothing: spans point into body, strings into m->text.  It sets m->h.type and
 * leaves the rest of m->h.  It refuses what is not exactly a map of the type's own keys, each once,
 * in any order, with counts within the limits of the tables in ipc/fields.c, valid UTF-8 without
 * NUL in strings, equal n where spans belong together, nothing after it; then m->u must not be
 * used.
 * Errors: PL_E_FORMAT, PL_E_SHAPE (sizes and counts); encoding: PL_E_NOMEM, PL_E_INVAL (an unknown
 * type, over PL_BODY_MAX or a field's limit, a string that is not UTF-8). */
pl_status pl_body_encode(const pl_msg *m, pl_bytes *out, pl_error *err);
pl_status pl_body_decode(pl_msg *m, uint16_t type, const void *body, size_t n, pl_error *err);

/* The fixed header: magic, protocol, type, epoch, incarnation, seq, length, CRC-32C of header and
 * body; layout in ipc/codec.c.  Encoding writes what h says, h->protocol too; body has h->n_body
 * bytes. */
void pl_header_encode(const pl_header *h, const void *body, unsigned char out[PL_HEADER_BYTES]);
/* Errors: PL_E_FORMAT (size, magic, CRC, length; *h is not written), PL_E_PEER (another protocol
 * version, which h->protocol tells). */
pl_status pl_header_decode(
    pl_header *h, const void *head, size_t n_head, const void *body, size_t n_body, pl_error *err);
const char *pl_msg_name(uint16_t type); /* "HELLO"; "?" */

/* ---- sockets ---- */

typedef struct pl_ipc_options {
    /* CURVE, demanded for tcp beyond loopback: a directory of `paceline keygen` (NULL: none).  A
     * server reads server.key_secret and admits the public keys in clients/; a client reads
     * client.key_secret and server.key. */
    const char *keys;
    int is_server;
} pl_ipc_options;

typedef struct pl_ipc pl_ipc; /* a ZeroMQ context and the handler that admits keys */
pl_status pl_ipc_new(pl_ipc **out, const pl_ipc_options *o, const pl_log *log, pl_error *err);
void pl_ipc_free(pl_ipc *ipc); /* after its sockets */

enum { PL_PEER_BYTES = 16 };
typedef struct pl_peer { /* routing id: role, random incarnation */
    unsigned char id[PL_PEER_BYTES];
} pl_peer;

/* Counters of what came in and was not a message. */
typedef struct pl_socket_stats {
    uint64_t n_received, n_sent;
    uint64_t n_malformed; /* frames, sizes, magic, CRC, codec */
    uint64_t n_dropped;   /* sends to a peer that is gone or slow */
} pl_socket_stats;

/* A server (ROUTER) has many peers, a client (DEALER) one.  One thread at a time per object. */
typedef struct pl_socket pl_socket;
/* address: ipc:///path (at most 107 bytes of path), tcp://host:port (port * or 0: any).  tcp beyond
 * loopback without keys is refused, PL_E_CONFIG. */
pl_status pl_socket_bind(pl_socket **out, pl_ipc *ipc, const char *address, pl_error *err);
pl_status pl_socket_connect(
    pl_socket **out, pl_ipc *ipc, const char *address, pl_role role, pl_error *err);
void pl_socket_close(pl_socket *s);                /* lingers at most 200 ms */
const char *pl_socket_address(const pl_socket *s); /* as bound */
uint64_t pl_socket_incarnation(const pl_socket *s);
/* Process id of whoever sent the message that was received last, as the kernel tells it for a Unix
 * socket; 0: not known (tcp, gone already, of another pid namespace). */
int pl_socket_sender(const pl_socket *s);
void pl_socket_set_epoch(pl_socket *s, uint64_t epoch); /* written into what is sent from now on */

/* Send m (type in m->h.type; the rest of the header is filled in).  Never blocks: a full or missing
 * peer counts as dropped and returns PL_E_PEER, which callers may ignore, since everything is said
 * again.  peer: of a server; NULL for a client. */
pl_status pl_socket_send(pl_socket *s, const pl_peer *peer, const pl_msg *m, pl_error *err);
/* Wait at most timeout_ms (0: do not; a signal ends it early) for a message.  *m points into the
 * socket until the next call. Errors: PL_E_TIMEOUT; PL_E_FORMAT or PL_E_PEER for a message that was
 * refused (*from is set, the caller may answer REJECT and pl_socket_drop). */
pl_status pl_socket_recv(pl_socket *s, int timeout_ms, pl_peer *from, pl_msg *m, pl_error *err);
/* Forget a peer: what it sends from now on is thrown away unread. */
void pl_socket_drop(pl_socket *s, const pl_peer *peer);
/* Wait until one of n sockets (NULL entries are skipped) or file descriptors fds [n_fds] is
 * readable; returns at once when something is. */
void pl_socket_wait(pl_socket *const *sockets, int n, const int *fds, int n_fds, int timeout_ms);
void pl_socket_get_stats(const pl_socket *s, pl_socket_stats *out);

/* Make DIR (0700) with server and client key pairs (secret files 0600) and clients/ as above.
 * Errors: PL_E_IO, PL_E_CONFIG when it holds keys already. */
pl_status pl_keys_make(const char *dir, pl_error *err);

/* ---- weight channel ---- */

/* Leaves: BLAKE2b-256 of each PL_CHUNK_BYTES of a content; root: BLAKE2b-256 of (length as 8 bytes,
 * leaves).  n_threads > 1 hashes with threads of its own. */
pl_status pl_content_hash(
    const void *data, size_t n, int n_threads, pl_hash *leaves, pl_hash *root, pl_error *err);
uint32_t pl_content_chunks(uint64_t n_bytes);
/* The root of leaves [pl_content_chunks(n_bytes)] that were made elsewhere, pl_hash256 of each
 * chunk. */
void pl_content_root(const pl_hash *leaves, uint64_t n_bytes, pl_hash *root);

/* Serves contents (mapped files) from a thread of its own.  At most max_contents are held, the
 * oldest go first; at most max_bytes stand in sockets, whatever a slow reader does. */
typedef struct pl_publisher pl_publisher;
typedef struct pl_publisher_options {
    const char *address; /* as pl_socket_bind */
    int max_contents;
    size_t max_bytes;
} pl_publisher_options;
pl_status pl_publisher_new(pl_publisher **out, pl_ipc *ipc, const pl_publisher_options *o,
    const pl_log *log, pl_error *err);
void pl_publisher_free(pl_publisher *p);
const char *pl_publisher_address(const pl_publisher *p);
/* Hold the file's content; *root names it, *n_bytes is its size.  The file must not change while it
 * is held.  version is what GONE names. */
pl_status pl_publisher_add(pl_publisher *p, const char *path, uint32_t version, pl_hash *root,
    uint64_t *n_bytes, pl_error *err);

/* Fetch a content into a file (written beside, checked chunk by chunk and as a whole, renamed).
 * progress may be NULL; a non-zero return stops (PL_E_STOPPED).  Errors: PL_E_PEER (no answer for
 * timeout_ms; the content is gone: says so), PL_E_IO. */
typedef int (*pl_fetch_progress)(void *ctx, uint64_t done, uint64_t total);
pl_status pl_fetch(pl_ipc *ipc, const char *address, const pl_hash *root, uint64_t n_bytes,
    const char *path, int timeout_ms, pl_fetch_progress progress, void *ctx, pl_error *err);

/* A bundle: the small files of a directory (all but *.safetensors and the bundle itself, each at
 * most 64 MiB, plain names) as one content, and back.  Writing is deterministic: files in order of
 * name.  The file is DIR/PL_BUNDLE_FILE.  Reading trusts nothing: names are plain, sizes checked;
 * what is unpacked is written beside and renamed.  Errors: PL_E_IO, PL_E_FORMAT. */
#define PL_BUNDLE_FILE "bundle"
pl_status pl_bundle_write(const char *dir, pl_error *err);
pl_status pl_bundle_unpack(const char *path, const char *dir, pl_error *err);

#endif
