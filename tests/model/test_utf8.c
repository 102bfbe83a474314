/* tests/model/test_utf8.c - claims: text is cut at character borders only; invalid bytes are
 * replaced as Python's bytes.decode("utf-8", "replace") does (the expected strings come from
 * there). */
#include "model/tokenizer.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#define R "\xEF\xBF\xBD"

static const struct {
    const char *in, *out;
} cleaned[] = {
    {"", ""},
    {"abc", "abc"},
    {"h\xC3\xA9 \xE6\xBC\xA2 \xF0\x9F\x98\x80", "h\xC3\xA9 \xE6\xBC\xA2 \xF0\x9F\x98\x80"},
    {"\x80", R},
    {"\xC3", R},
    {"a\xC3", "a" R},
    {"\xC3(", R "("},
    {"\xC0\xAF", R R},       /* overlong */
    {"\xE0\x80\x80", R R R}, /* overlong */
    {"\xE2\x82", R},         /* cut */
    {"\xE2\x82(", R "("},    /* one maximal subpart */
    {"\xE2(\xA1", R "(" R},
    {"\xED\xA0\x80", R R R}, /* surrogate */
    {"\xF0\x9F\x98", R},     /* cut */
    {"\xF0\x9F\x98"
     "a",
        R "a"},
    {"\xF0\x80\x80\x80", R R R R}, /* overlong */
    {"\xF4\x90\x80\x80", R R R R}, /* above U+10FFFF */
    {"\xF5\xFF", R R},
    {"\xF0\x9F\xF0\x9F\x98\x80", R "\xF0\x9F\x98\x80"},
    {"\xEF\xBB\xBF", "\xEF\xBB\xBF"},
};

Test(utf8, replaces_each_maximal_invalid_part)
{
    for (size_t i = 0; i < sizeof cleaned / sizeof *cleaned; i++) {
        size_t n = 99;
        char *out = pl_utf8_clean(cleaned[i].in, strlen(cleaned[i].in), &n);
        cr_assert(out != NULL);
        cr_expect(strcmp(out, cleaned[i].out) == 0 && n == strlen(cleaned[i].out), "case %zu", i);
        free(out);
    }
}

Test(utf8, keeps_zero_bytes)
{
    size_t n = 0;
    char *out = pl_utf8_clean("a\0\xFF", 3, &n);
    cr_assert(n == 5 && memcmp(out, "a\0" R, 6) == 0);
    free(out);
}

Test(utf8, holds_back_an_unfinished_character_only)
{
    const char s[] = "a\xC3\xA9\xE6\xBC\xA2\xF0\x9F\x98\x80";
    const size_t want[] = {0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10};
    for (size_t n = 0; n < sizeof want / sizeof *want; n++)
        cr_expect(pl_utf8_complete(s, n) == want[n], "%zu bytes", n);
}

Test(utf8, does_not_wait_for_bytes_that_cannot_follow)
{
    cr_expect(pl_utf8_complete("a\xFF", 2) == 2);
    cr_expect(pl_utf8_complete("a\x80\x80\x80", 4) == 4);
    cr_expect(pl_utf8_complete("\xE0\x80", 2) == 2); /* overlong: already wrong */
    cr_expect(pl_utf8_complete("\xED\xA0", 2) == 2); /* surrogate */
    cr_expect(pl_utf8_complete("\xF0\x9F\x98\x80\x80", 5) == 5);
}
