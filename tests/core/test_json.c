/* Claims: numbers read back to the same bits, whatever MXCSR says; strings are valid UTF-8 and
 * valid JSON whatever goes in. */
#include "core/json.h"
#include "core/threads.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *float_text(pl_json *j, uint32_t bits)
{
    float v;
    memcpy(&v, &bits, sizeof v);
    pl_json_clear(j);
    pl_json_float(j, v);
    return j->data;
}

static uint32_t read_bits(const char *text)
{
    const float v = strtof(text, NULL);
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

Test(json, floats_read_back_to_the_same_bits)
{
    pl_json j = {0};
    uint32_t state = 1;

    for (int i = 0; i < 100000; i++) {
        state = state * 1664525u + 1013904223u;
        const uint32_t bits = state ^ state >> 13;
        if ((bits >> 23 & 0xff) == 0xff)
            continue;
        const char *text = float_text(&j, bits);
        cr_assert_eq(read_bits(text), bits, "%08x became '%s'", bits, text);
    }
    pl_json_done(&j);
}

Test(json, denormals_survive_ftz_and_daz)
{
    pl_json j = {0};

    (void)pl_fp_enter();
    cr_assert_eq(read_bits(float_text(&j, 0x00000001u)), 0x00000001u, "%s", j.data);
    cr_assert_eq(read_bits(float_text(&j, 0x807fffffu)), 0x807fffffu, "%s", j.data);
    pl_json_done(&j);
}

typedef struct number_case {
    double v;
    const char *text;
} number_case;

Test(json, doubles_are_short_and_in_the_usual_layout)
{
    static const number_case cases[] = {
        {0, "0"},
        {-0.0, "-0.0"},
        {1, "1"},
        {-3, "-3"},
        {0.1, "0.1"},
        {0.0001, "0.0001"},
        {0.00001, "1e-5"},
        {-2.5e-7, "-2.5e-7"},
        {1e15, "1000000000000000"},
        {1e16, "1e16"},
        {123456.75, "123456.75"},
        {1.0 / 3, "0.3333333333333333"},
        {1.5e300, "1.5e300"},
        {NAN, "null"},
        {INFINITY, "null"},
        {-INFINITY, "null"},
    };
    pl_json j = {0};

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        pl_json_clear(&j);
        pl_json_double(&j, cases[i].v);
        cr_assert_str_eq(j.data, cases[i].text);
    }
    pl_json_clear(&j);
    pl_json_int(&j, INT64_MIN);
    cr_assert_str_eq(j.data, "-9223372036854775808");
    pl_json_done(&j);
}

static void expect_string(const char *in, size_t n, const char *out)
{
    pl_json j = {0};

    pl_json_string(&j, in, n);
    cr_assert_str_eq(j.data, out);
    pl_json_done(&j);
}

Test(json, strings_are_escaped_and_broken_utf8_is_replaced_as_python_does)
{
    expect_string("", 0, "\"\"");
    expect_string("a\"b\\c\n\x01\x7f", 8, "\"a\\\"b\\\\c\\n\\u0001\x7f\"");
    expect_string("\0", 1, "\"\\u0000\"");
    expect_string("\xc3\xa9\xf0\x9f\x98\x80", 6, "\"\xc3\xa9\xf0\x9f\x98\x80\"");
    /* a cut character is one replacement; a surrogate and an overlong form are one a byte */
    expect_string("x\xf0\x9f\x98", 4, "\"x\xef\xbf\xbd\"");
    expect_string("\xed\xa0\x80", 3, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"");
    expect_string("\xc0\xaf", 2, "\"\xef\xbf\xbd\xef\xbf\xbd\"");
    expect_string("\xe2\x82y", 3, "\"\xef\xbf\xbdy\"");
    expect_string("\xff", 1, "\"\xef\xbf\xbd\"");
}

Test(json, a_large_text_grows_the_buffer)
{
    pl_json j = {0};
    pl_error err;

    for (int i = 0; i < 100000; i++)
        pl_json_text(&j, "0123456789");
    cr_assert_eq(j.n, 1000000);
    cr_assert_eq(strlen(j.data), j.n);
    cr_assert_eq(pl_json_check(&j, "text", &err), PL_OK);
    pl_json_done(&j);
    cr_assert_null(j.data);
}
