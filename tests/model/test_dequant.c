/* tests/model/test_dequant.c - blocks become the same fp32 bits as in the gguf package (golden
 * values), and every half and bfloat16 keeps its value. */
#include "model/files.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "tests/data/dequant_golden.h"

Test(dequant, blocks_match_the_gguf_package_bit_for_bit)
{
    for (size_t i = 0; i < sizeof golden / sizeof golden[0]; i++) {
        float out[64];
        uint32_t bits[64];
        dequant_row(golden[i].type, golden[i].bytes, (size_t)golden[i].n, out);
        memcpy(bits, out, sizeof bits);
        for (int k = 0; k < golden[i].n; k++)
            cr_expect_eq(bits[k], golden[i].bits[k], "%s element %d: %08x, not %08x",
                dequant_type_name(golden[i].type), k, bits[k], golden[i].bits[k]);
    }
}

/* Value of a half by its definition. */
static double half_value(unsigned h)
{
    const int exponent = (int)(h >> 10 & 31), mantissa = (int)(h & 1023);
    const double size =
        exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
    return h & 0x8000 ? -size : size;
}

Test(dequant, all_65536_halves_are_exact)
{
    for (unsigned h = 0; h < 65536; h++) {
        const unsigned char bytes[2] = {(unsigned char)h, (unsigned char)(h >> 8)};
        float v;
        dequant_row(FILES_F16, bytes, 1, &v);
        if ((h & 0x7c00) == 0x7c00) {
            cr_expect_not(dequant_is_finite(&v, 1), "%04x", h);
            cr_expect_eq(isnan(v) != 0, (h & 1023) != 0, "%04x", h);
        } else {
            cr_expect((double)v == half_value(h) && !signbit(v) == !(h & 0x8000), "%04x", h);
        }
    }
}

Test(dequant, all_65536_bfloat16_keep_their_bits)
{
    for (unsigned h = 0; h < 65536; h++) {
        const unsigned char bytes[3] = {0, (unsigned char)h, (unsigned char)(h >> 8)};
        uint32_t bits;
        float v;
        dequant_row(FILES_BF16, bytes + 1, 1, &v); /* at an odd address */
        memcpy(&bits, &v, sizeof bits);
        cr_expect_eq(bits, h << 16);
    }
}

Test(dequant, types_are_known_by_name_and_size)
{
    size_t n, bytes;
    cr_expect(dequant_type_block(FILES_Q4_1, &n, &bytes) && n == 32 && bytes == 20);
    cr_expect_not(dequant_type_block(12, &n, &bytes));
    cr_expect_str_eq(dequant_type_name(12), "Q4_K");
    cr_expect_str_eq(dequant_type_name(-1), "unknown");
}

Test(dequant, quoting_never_overflows_or_prints_control_bytes)
{
    char raw[300], out[FILES_QUOTE];

    for (size_t n = 0; n < sizeof raw; n++) {
        memset(raw, n % 2 ? 0x1b : 'x', sizeof raw);
        cr_expect_lt(strlen(files_quote(out, raw, n)), sizeof out);
        cr_expect_null(strchr(out, 0x1b));
    }
}
