/* core/journal_internal.h - what the writer and the reader of journals share: layout and walk. */
#ifndef PL_CORE_JOURNAL_INTERNAL_H
#define PL_CORE_JOURNAL_INTERNAL_H

#include "core/journal.h"

enum {
    JOURNAL_MAGIC = 8,     /* bytes of a file's magic */
    JOURNAL_SUPER = 64,    /* bytes of a superblock */
    JOURNAL_HEADER = 56,   /* bytes of a block before its payload */
    JOURNAL_OVERHEAD = 60, /* header and CRC */
    JOURNAL_VARINT = 5,    /* longest varint, bytes */
};

static inline void journal_put_u32(unsigned char *out, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        out[i] = (unsigned char)(v >> (8 * i));
}

static inline void journal_put_u64(unsigned char *out, uint64_t v)
{
    for (int i = 0; i < 8; i++)
        out[i] = (unsigned char)(v >> (8 * i));
}

static inline uint32_t journal_get_u32(const unsigned char *in)
{
    return in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16 | (uint32_t)in[3] << 24;
}

static inline uint64_t journal_get_u64(const unsigned char *in)
{
    return journal_get_u32(in) | (uint64_t)journal_get_u32(in + 4) << 32;
}

/* Write v as a varint; returns its bytes, 1 .. JOURNAL_VARINT. */
static inline size_t journal_put_varint(unsigned char *out, uint32_t v)
{
    size_t n = 0;
    for (; v >= 0x80; v >>= 7)
        out[n++] = (unsigned char)(v | 0x80);
    out[n++] = (unsigned char)v;
    return n;
}

/* journal_read.c */

/* The 64 bytes that begin a journal. */
void journal_make_super(
    unsigned char out[JOURNAL_SUPER], const char *magic, const unsigned char run_uid[16]);

/* Header and CRC around the payload of n bytes that stands at block + JOURNAL_HEADER.  Returns the
 * bytes of the block. */
size_t journal_close_block(unsigned char *block, size_t n, uint64_t seq, uint64_t mono_ns,
    const unsigned char head[PL_HASH_BYTES]);

/* PL_E_INVAL unless magic has 8 characters. */
pl_status journal_check_magic(const char *magic, const char *path, pl_error *err);

/* Walk the file behind fd from its start.  Does not change it. */
pl_status journal_walk(int fd, const char *path, const char *magic, pl_journal_fn on_record,
    void *ctx, pl_journal_report *report, pl_error *err);

#endif
