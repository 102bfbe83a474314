/* model/utf8.c - UTF-8: checking, cutting at character borders, replacing what is invalid. */
#include "model/utf8.h"
#include "model/tokenizer.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Length of the character that starts with b (0: none does), and the range of its second byte,
 * which excludes overlong forms, surrogates and values above U+10FFFF (Unicode table 3-7). */
static size_t lead(unsigned char b, unsigned char *low, unsigned char *high)
{
    *low = 0x80;
    *high = 0xBF;
    if (b < 0x80)
        return 1;
    if (b < 0xC2 || b > 0xF4)
        return 0;
    if (b == 0xE0)
        *low = 0xA0;
    if (b == 0xED)
        *high = 0x9F;
    if (b == 0xF0)
        *low = 0x90;
    if (b == 0xF4)
        *high = 0x8F;
    return b < 0xE0 ? 2 : b < 0xF0 ? 3 : 4;
}

utf8_kind utf8_step(const char *s, size_t n_bytes, size_t *len)
{
    const unsigned char *u = (const unsigned char *)s;
    unsigned char low, high;
    const size_t want = lead(u[0], &low, &high);
    assert(n_bytes > 0);

    *len = 1;
    if (want == 0)
        return UTF8_INVALID;
    while (*len < want && *len < n_bytes) {
        if (u[*len] < low || u[*len] > high)
            return UTF8_INVALID;
        low = 0x80;
        high = 0xBF;
        ++*len;
    }
    return *len == want ? UTF8_VALID : UTF8_CUT;
}

size_t utf8_valid(const char *s, size_t n_bytes)
{
    size_t i = 0;
    while (i < n_bytes) {
        size_t len = 1;
        if ((unsigned char)s[i] >= 0x80 && utf8_step(s + i, n_bytes - i, &len) != UTF8_VALID)
            break;
        i += len;
    }
    return i;
}

uint32_t utf8_decode(const char *s, size_t len)
{
    const unsigned char *u = (const unsigned char *)s;
    uint32_t c = len == 1 ? u[0] : u[0] & (0xFFU >> (len + 1));
    for (size_t i = 1; i < len; i++)
        c = c << 6 | (u[i] & 0x3F);
    return c;
}

size_t utf8_put2(char *out, uint32_t c)
{
    assert(c <= 0x7FF);
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    out[0] = (char)(0xC0 | c >> 6);
    out[1] = (char)(0x80 | (c & 0x3F));
    return 2;
}

size_t pl_utf8_complete(const char *s, size_t n_bytes)
{
    /* A cut character is at most three bytes: its lead is among the last three. */
    for (size_t back = 1; back <= 3 && back <= n_bytes; back++) {
        const unsigned char b = (unsigned char)s[n_bytes - back];
        size_t len;
        if (b >= 0x80 && b < 0xC0)
            continue; /* a continuation byte */
        if (utf8_step(s + n_bytes - back, back, &len) == UTF8_CUT)
            return n_bytes - back;
        break;
    }
    return n_bytes;
}

/* Copy s into out (NULL: only count) with the replacement character for each maximal subpart. */
static size_t clean(const char *s, size_t n_bytes, char *out)
{
    size_t n = 0;
    for (size_t i = 0; i < n_bytes;) {
        size_t len;
        const int is_valid = utf8_step(s + i, n_bytes - i, &len) == UTF8_VALID;
        const size_t n_put = is_valid ? len : 3;
        if (out)
            memcpy(out + n, is_valid ? s + i : "\xEF\xBF\xBD", n_put);
        n += n_put;
        i += len;
    }
    return n;
}

char *pl_utf8_clean(const char *s, size_t n_bytes, size_t *n_out)
{
    const size_t n = clean(s, n_bytes, NULL);
    char *out = malloc(n + 1);
    if (!out)
        return NULL;
    clean(s, n_bytes, out);
    out[n] = '\0';
    if (n_out)
        *n_out = n;
    return out;
}
