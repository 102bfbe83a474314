/* ipc/channel_internal.h - what the files of the weight channel share: the hash tree, the assembly
 * of a content from messages, the table of a bundle. */
#ifndef PL_IPC_CHANNEL_INTERNAL_H
#define PL_IPC_CHANNEL_INTERNAL_H

#include "ipc/ipc.h"

#include <stdatomic.h>
#include <stdint.h>
#include <zmq.h>

enum {
    CHANNEL_MESSAGE_BYTES = PL_CHUNK_BYTES + 4096, /* of the longest, with its map */
    CHANNEL_CREDIT = 8,                            /* chunks asked for and not yet here */
    CHANNEL_LEAVES = 1 << 15,                      /* in one message: what the codec admits */
    CHANNEL_CHUNKS_MAX = 1 << 20,                  /* 1 TiB of content, 32 MiB of leaves */
    CHANNEL_LENGTH_BYTES = 8,                      /* before the leaves, little-endian */
    CHANNEL_NO_CHUNK = UINT32_C(~0),               /* no index */
};

/* ---- the tree (content.c) ---- */

uint32_t content_chunk_bytes(uint64_t n_bytes, uint32_t i_chunk);
/* Exactly n bytes of a file, from offset.  Returns 0, or an errno; ENODATA: it ends before. */
int content_read(int fd, unsigned char *to, size_t n, uint64_t offset);
/* As pl_content_hash, of an open file that is read, not mapped: a file that becomes shorter is an
 * error and not a signal.  leaves [pl_content_chunks(n_bytes)]. */
pl_status content_hash_fd(int fd, const char *path, uint64_t n_bytes, int n_threads,
    pl_hash *leaves, pl_hash *root, pl_error *err);

/* ---- assembly (assembly.c): what a receiver knows of a content ---- */

typedef enum assembly_news {
    NEWS_NONE,   /* nothing new: of another content, doubled, late */
    NEWS_LEAVES, /* leaves arrived; all of them when assembly_has_leaves */
    NEWS_CHUNK,  /* a chunk is right: *bytes of it belong at *offset */
    NEWS_WRONG,  /* it claims to be of this content, and is not */
    NEWS_GONE,   /* the other side does not hold it */
} assembly_news;

typedef struct assembly {
    pl_hash root;
    uint64_t n_bytes;
    uint32_t n_chunks, n_leaves; /* n_leaves: in a row from 0 */
    pl_hash *leaves;             /* [n_chunks] */
    int is_checked;              /* the leaves hash to the root */
    unsigned char *have;         /* [n_chunks] */
    uint32_t n_have;
    uint64_t n_ignored, n_wrong; /* messages */
} assembly;

/* Errors: PL_E_NOMEM; PL_E_INVAL (too large). */
pl_status assembly_init(assembly *a, const pl_hash *root, uint64_t n_bytes, pl_error *err);
void assembly_done(assembly *a);
int assembly_is_whole(const assembly *a);
/* Take any message.  After NEWS_CHUNK the chunk counts as had: the caller stores it, or fails. */
assembly_news assembly_take(assembly *a, const pl_msg *m);

/* ---- what libzmq holds of ours (account.c) ---- */

/* Bytes handed over and not yet let go of.  Lives until the last message that it counts is gone,
 * which may be after its owner. */
typedef struct account {
    struct account *parent; /* of a reader: the publisher's, which counts all */
    atomic_size_t standing, most;
    atomic_size_t refs;
    int wake; /* of the one without parent: an eventfd, written when room appears */
} account;
account *account_new(account *parent); /* NULL: no memory or descriptors */
void account_free(account *a);         /* accepts NULL */
void account_wake(const account *a);
/* The body of m as a message of *n bytes that stands in a until libzmq has let go of it.  Only one
 * thread makes messages.  Errors: those of pl_body_encode. */
pl_status account_body(zmq_msg_t *body, account *a, const pl_msg *m, size_t *n, pl_error *err);

/* ---- bundles (bundle.c) ---- */

enum { BUNDLE_FILES_MAX = 256, BUNDLE_NAME_MAX = 128, BUNDLE_FILE_BYTES_MAX = 64 << 20 };

typedef struct bundle_entry {
    char name[BUNDLE_NAME_MAX + 1];
    uint64_t n_bytes, offset; /* in the bundle */
} bundle_entry;

typedef struct bundle_table {
    int n;
    bundle_entry files[BUNDLE_FILES_MAX];
} bundle_table;

/* Bytes of the longest table. */
enum { BUNDLE_TABLE_BYTES = 12 + BUNDLE_FILES_MAX * (1 + BUNDLE_NAME_MAX + 8) };
/* Read the table at the head of a bundle of n_file bytes; head holds the first n of them, all or
 * BUNDLE_TABLE_BYTES.  Errors: PL_E_FORMAT. */
pl_status bundle_parse(
    bundle_table *t, const unsigned char *head, size_t n, uint64_t n_file, pl_error *err);

/* ---- for tests ---- */

/* Bytes of chunks and leaves that libzmq holds now, and the most that it held. */
size_t publisher_standing(const pl_publisher *p, size_t *most);

#endif
