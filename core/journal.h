/* core/journal.h - an append-only file of records that shows every change and survives a crash.
 *
 * File, little endian:
 *   superblock, 64 bytes: magic [8], version u32 = 1, flags u32 = 0, run uid [16], hash [32] of the
 *     32 bytes before it;
 *   blocks: magic "PLJB", payload length u32 (1 .. 1 MiB), sequence number u64 from 0, monotonic
 *     clock of the writer u64 (ns), hash [32] of the block before (of the superblock before the
 *     first), payload, CRC-32C u32 of all of the block before it.
 *   payload: records of varint type, varint length, bytes.  Varints are LEB128, as short as can be,
 *     at most 32 bits.  Types with bit 0 set are critical: a reader that does not know one must not
 *     go on without it.
 * Hashes are BLAKE2b-256.
 *
 * A block is written with one write and made durable before the next one is begun, so a crash can
 * tear the last block only.  Hence two kinds of harm, told apart:
 *   torn: the file ends inside its last block, or exactly at the end of a block whose CRC is wrong;
 *     no whole block lies behind.  pl_journal_open cuts that and reports it, readers stop there.
 *   damaged: everything else.  PL_E_FORMAT names path, block and byte, and nothing is changed.
 * A changed record is never handed out: the CRC and the chain are checked before the callback runs.
 * The chain has no key: it shows accidents and edits of parts, not a forger who writes all of it.
 */
#ifndef PL_CORE_JOURNAL_H
#define PL_CORE_JOURNAL_H

#include "core/error.h"
#include "core/hash.h"

#include <stddef.h>
#include <stdint.h>

enum {
    PL_JOURNAL_BLOCK_MAX = 1 << 20,         /* bytes of payload in a block */
    PL_JOURNAL_BLOCK_MIN = 128,             /* smallest max_bytes */
    PL_JOURNAL_RECORD_ROOM = 64,            /* bytes of a block that no record's data may take */
    PL_JOURNAL_RECORD_MAX = (1 << 20) - 64, /* bytes of data in a record, with max_bytes 0 */
};

/* A journal that is open for writing.  One thread at a time. */
typedef struct pl_journal pl_journal;

typedef struct pl_journal_record {
    uint64_t seq;     /* of its block */
    uint64_t mono_ns; /* CLOCK_MONOTONIC of the writer when the block was closed; starts again with
                         each boot: for durations inside a run, never for order */
    uint32_t type;
    int is_critical;           /* type & 1 */
    const unsigned char *data; /* [n], valid during the call */
    size_t n;
} pl_journal_record;

/* Receives each record in order.  A status other than PL_OK ends the reading, which returns it with
 * the place put before its message: the way to refuse unknown critical types. */
typedef pl_status (*pl_journal_fn)(void *ctx, const pl_journal_record *record, pl_error *err);

typedef enum pl_journal_state {
    PL_JOURNAL_WHOLE,
    PL_JOURNAL_TORN,    /* bad_offset: where the tail begins; bad_seq: the block that it would be */
    PL_JOURNAL_DAMAGED, /* bad_offset, bad_seq: the block */
} pl_journal_state;

/* Filled as far as the reading came, also on errors. */
typedef struct pl_journal_report {
    pl_journal_state state;       /* as found, before open cut anything */
    uint64_t n_blocks, n_records; /* whole ones; of a block that the callback refused: none */
    uint64_t n_bytes;             /* superblock and whole blocks */
    uint64_t torn_bytes;          /* behind them; 0 unless torn */
    uint64_t bad_offset, bad_seq;
    const char *why; /* damaged in its bytes: in words, static; else NULL */
    unsigned char run_uid[16];
    unsigned char head[PL_HASH_BYTES]; /* hash of the last whole block, or of the superblock */
    int is_new;                        /* open made the file, or made it anew: see is_remade */
    int is_remade; /* a start of a superblock was there, torn_bytes long, and no block */
} pl_journal_report;

typedef struct pl_journal_options {
    const char *magic;         /* 8 characters, as "PLLEDGR1" */
    unsigned char run_uid[16]; /* for a new file; that of an old one is in the report */
    size_t max_bytes; /* payload of a block, PL_JOURNAL_BLOCK_MIN .. PL_JOURNAL_BLOCK_MAX; 0: MAX */
} pl_journal_options;

/* Open the journal at path for appending, or create it (mode 0600).  An old one is verified from
 * its first byte, its records go to on_record (may be NULL), a torn tail is cut, and the file is
 * fsynced: what on_record saw stays.  A superblock shorter than 64 bytes is written anew only when
 * its bytes are the start of one with this magic, or zeros.  The file is locked (flock) until
 * close.  *report (may be NULL) tells what was found and cut.
 * Errors: PL_E_FORMAT damaged, another magic or version, no regular file; PL_E_IO, PL_E_NOENT (no
 * directory), PL_E_NOMEM; PL_E_IO when another process has it open; PL_E_INVAL options; what
 * on_record returned.  After an error no record is changed on disk (a torn tail may have been cut,
 * or an empty journal made, when the fsync behind it failed); what on_record built is to be
 * dropped. Pair: pl_journal_close. */
pl_status pl_journal_open(pl_journal **out, const char *path, const pl_journal_options *o,
    pl_journal_fn on_record, void *ctx, pl_journal_report *report, pl_error *err);

/* Gather one record.  Nothing is durable before pl_journal_sync returns PL_OK, but records appear
 * in the order of the calls, and those since the last sync that fit in one block (max_bytes - 64
 * bytes with at most 10 bytes for each record's type and length) appear together or not at all.  A
 * record that finds the block full has it written and made durable first, so put may fail as sync
 * does.
 * Errors: PL_E_INVAL when n is more than max_bytes - 64 (PL_JOURNAL_RECORD_MAX; the journal lives
 * on); else as pl_journal_sync. */
pl_status pl_journal_put(pl_journal *j, uint32_t type, const void *data, size_t n, pl_error *err);

/* The same with data in two pieces, head and bulk, that become one. */
pl_status pl_journal_put2(pl_journal *j, uint32_t type, const void *head, size_t n_head,
    const void *bulk, size_t n_bulk, pl_error *err);

/* Write what was gathered and make it durable (one write, one fdatasync); nothing gathered: nothing
 * is done.  After the first failure the journal is dead: this and every later put and sync return
 * that first error, because a kernel that failed to write may call the same pages clean the next
 * time.  The file is cut back to what was durable, as far as the file system lets; the message says
 * what is kept.  Close, mend the cause, open again.
 * Errors: PL_E_IO, PL_E_NOMEM. */
pl_status pl_journal_sync(pl_journal *j, pl_error *err);

/* Close and unlock.  What was gathered after the last sync is dropped: the caller syncs.  Accepts
 * NULL. */
void pl_journal_close(pl_journal *j);

/* Hash of the last block in the file, or of the superblock. */
void pl_journal_head(const pl_journal *j, unsigned char out[PL_HASH_BYTES]);

/* Bytes in the file: superblock and durable blocks. */
uint64_t pl_journal_size(const pl_journal *j);

/* Read a journal; the file is neither changed nor locked.  PL_OK when whole, and when torn (report
 * says where; of a file that is being written the block in flight may look so).
 * Errors: PL_E_FORMAT damaged and so on, as pl_journal_open; what on_record returned. */
pl_status pl_journal_read(const char *path, const char *magic, pl_journal_fn on_record, void *ctx,
    pl_journal_report *report, pl_error *err);

#endif
