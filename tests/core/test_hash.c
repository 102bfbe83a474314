/* Claims: CRC-32C and BLAKE2b-256 are those of RFC 3720 (B.4) and RFC 7693, whole and in pieces.
 * The BLAKE2b values are Python's hashlib.blake2b(digest_size=32), which is another source. */
#include "core/hash.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

TestSuite(hash, .timeout = 60);

Test(hash, crc32c_gives_the_published_check_values)
{
    unsigned char bytes[32];

    cr_assert_eq(pl_crc32c(0, "123456789", 9), 0xe3069283u);
    cr_assert_eq(pl_crc32c(0, NULL, 0), 0);
    memset(bytes, 0, sizeof bytes);
    cr_assert_eq(pl_crc32c(0, bytes, sizeof bytes), 0x8a9136aau);
    memset(bytes, 0xff, sizeof bytes);
    cr_assert_eq(pl_crc32c(0, bytes, sizeof bytes), 0x62a8ab43u);
    for (int i = 0; i < 32; i++)
        bytes[i] = (unsigned char)i;
    cr_assert_eq(pl_crc32c(0, bytes, sizeof bytes), 0x46dd794eu);
}

Test(hash, crc32c_goes_on_from_any_cut)
{
    for (size_t cut = 0; cut <= 9; cut++) {
        const uint32_t first = pl_crc32c(0, "123456789", cut);
        cr_assert_eq(pl_crc32c(first, &"123456789"[cut], 9 - cut), 0xe3069283u, "cut at %zu", cut);
    }
}

static void check_hex(const unsigned char got[PL_HASH_BYTES], const char *want)
{
    char text[2 * PL_HASH_BYTES + 1];

    for (int i = 0; i < PL_HASH_BYTES; i++)
        snprintf(text + 2 * (size_t)i, 3, "%02x", got[i]);
    cr_assert_str_eq(text, want);
}

Test(hash, blake2b_gives_the_known_values_whole_and_in_pieces)
{
    unsigned char data[1000];
    unsigned char out[PL_HASH_BYTES];

    pl_hash256(out, NULL, 0);
    check_hex(out, "0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8");
    pl_hash256(out, "abc", 3);
    check_hex(out, "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319");
    for (int i = 0; i < 1000; i++)
        data[i] = (unsigned char)(i % 251);
    for (size_t piece = 1; piece <= 1000; piece += 37) {
        pl_blake2b h;
        pl_blake2b_init(&h);
        for (size_t at = 0; at < 1000; at += piece)
            pl_blake2b_update(&h, data + at, 1000 - at < piece ? 1000 - at : piece);
        pl_blake2b_final(&h, out);
        check_hex(out, "b372d0608f720c8c3dd41e9c8eecb10143b41abe520b616607e754bf79c08331");
    }
}

Test(hash, a_copied_state_continues_on_its_own)
{
    unsigned char out[PL_HASH_BYTES];
    pl_blake2b h;

    pl_blake2b_init(&h);
    pl_blake2b_update(&h, "ab", 2);
    pl_blake2b other = h;
    pl_blake2b_update(&other, "x", 1);
    pl_blake2b_update(&h, "c", 1);
    pl_blake2b_final(&h, out);
    check_hex(out, "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319");
}
