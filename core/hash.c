/* core/hash.c - CRC-32C by ISA-L and BLAKE2b by libsodium, behind our own names.
 *
 * libsodium's generichash needs no sodium_init: that only chooses a faster form of the same
 * function. */
#include "core/hash.h"

#include <assert.h>
#include <isa-l/crc.h>
#include <sodium.h>

_Static_assert(
    sizeof(crypto_generichash_state) <= sizeof(pl_blake2b), "libsodium's state grew: enlarge ours");
_Static_assert(_Alignof(crypto_generichash_state) <= _Alignof(pl_blake2b), "alignment of ours");
_Static_assert(crypto_generichash_BYTES == PL_HASH_BYTES, "32 bytes are BLAKE2b-256");

enum { CRC_STEP = 1 << 30 }; /* bytes: ISA-L counts in an int */

uint32_t pl_crc32c(uint32_t seed, const void *data, size_t n)
{
    unsigned char *p = (unsigned char *)(uintptr_t)data; /* ISA-L reads only, but does not say so */
    uint32_t crc = ~seed;                                /* and inverts neither in nor out */

    while (n > 0) {
        const size_t step = n < CRC_STEP ? n : CRC_STEP;
        crc = crc32_iscsi(p, (int)step, crc);
        p += step;
        n -= step;
    }
    return ~crc;
}

static crypto_generichash_state *state_of(pl_blake2b *h)
{
    return (crypto_generichash_state *)(void *)h->state;
}

/* The calls below fail for lengths that are not ours only. */

void pl_blake2b_init(pl_blake2b *h)
{
    const int rc = crypto_generichash_init(state_of(h), NULL, 0, PL_HASH_BYTES);
    assert(rc == 0);
    (void)rc;
}

void pl_blake2b_update(pl_blake2b *h, const void *data, size_t n)
{
    const int rc = crypto_generichash_update(state_of(h), data, n);
    assert(rc == 0);
    (void)rc;
}

void pl_blake2b_final(pl_blake2b *h, unsigned char out[PL_HASH_BYTES])
{
    const int rc = crypto_generichash_final(state_of(h), out, PL_HASH_BYTES);
    assert(rc == 0);
    (void)rc;
}

void pl_hash256(unsigned char out[PL_HASH_BYTES], const void *data, size_t n)
{
    const int rc = crypto_generichash(out, PL_HASH_BYTES, data, n, NULL, 0);
    assert(rc == 0);
    (void)rc;
}
