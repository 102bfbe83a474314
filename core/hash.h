/* core/hash.h - checksums and hashes of what goes to disk and over the wire: CRC-32C against
 * accidents, BLAKE2b-256 as a name of content.  (pl_hash64 of core/file.h is the fast one.) */
#ifndef PL_CORE_HASH_H
#define PL_CORE_HASH_H

#include <stddef.h>
#include <stdint.h>

enum { PL_HASH_BYTES = 32 };

/* CRC-32C (Castagnoli, reflected, inverted in and out) of n bytes.  seed: 0, or the value of the
 * bytes before these: pl_crc32c(pl_crc32c(0, a, n), b, m) is that of a and b in a row. */
uint32_t pl_crc32c(uint32_t seed, const void *data, size_t n);

/* BLAKE2b with 32 bytes out and no key (RFC 7693), of bytes that come in pieces.  Storage of the
 * caller, aligned to 64 (a local variable is; memory of malloc is not).  May be copied to hash two
 * continuations.  After _final only _init is allowed.  Nothing to free. */
typedef struct pl_blake2b {
    _Alignas(64) unsigned char state[384];
} pl_blake2b;

void pl_blake2b_init(pl_blake2b *h);
void pl_blake2b_update(pl_blake2b *h, const void *data, size_t n);
void pl_blake2b_final(pl_blake2b *h, unsigned char out[PL_HASH_BYTES]);

/* The three in one call. */
void pl_hash256(unsigned char out[PL_HASH_BYTES], const void *data, size_t n);

#endif
