/* core/json.c - JSON text out.  Numbers: the C library gives correctly rounded digits (their
 * decimal point, which depends on the locale, is skipped), the layout is ours. */
#include "core/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    FIRST_ROOM = 256, /* bytes */
    NUMBER_ROOM = 64, /* bytes, more than sign, 17 digits, point, exponent */
};

void pl_json_done(pl_json *j)
{
    free(j->data);
    memset(j, 0, sizeof *j);
}

void pl_json_clear(pl_json *j)
{
    j->n = 0;
    j->failed = 0;
}

/* Have n_bytes and a NUL free at the end. */
static int have(pl_json *j, size_t n_bytes)
{
    size_t room = j->room ? j->room : FIRST_ROOM;

    if (j->failed)
        return 0;
    if (j->room - j->n > n_bytes)
        return 1;
    if (n_bytes > SIZE_MAX / 4 - j->n) {
        j->failed = 1;
        return 0;
    }
    while (room - j->n <= n_bytes)
        room *= 2;
    char *p = realloc(j->data, room);
    if (!p) {
        j->failed = 1;
        return 0;
    }
    j->data = p;
    j->room = room;
    return 1;
}

void pl_json_bytes(pl_json *j, const char *text, size_t n_bytes)
{
    if (!have(j, n_bytes))
        return;
    if (n_bytes > 0)
        memcpy(j->data + j->n, text, n_bytes);
    j->n += n_bytes;
    j->data[j->n] = '\0';
}

void pl_json_text(pl_json *j, const char *text)
{
    pl_json_bytes(j, text, strlen(text));
}

/* ---- strings ---- */

/* Bytes of a UTF-8 lead that may follow it: count, and the range of the first of them (Unicode,
 * table 3-7).  Returns 0 for a byte that cannot lead. */
static int lead(unsigned char c, unsigned char *low, unsigned char *high)
{
    *low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80;
    *high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    if (c >= 0xc2 && c <= 0xdf)
        return 1;
    if (c >= 0xe0 && c <= 0xef)
        return 2;
    return c >= 0xf0 && c <= 0xf4 ? 3 : 0;
}

/* Length of the sequence at s; *is_valid tells whether it is a character or the maximal subpart of
 * one that is broken. */
static size_t sequence(const unsigned char *s, size_t n_bytes, int *is_valid)
{
    unsigned char low, high;
    const size_t n_more = (size_t)lead(s[0], &low, &high);

    *is_valid = 0;
    if (n_more == 0)
        return 1;
    for (size_t i = 1; i <= n_more; i++) {
        if (i >= n_bytes || s[i] < low || s[i] > high)
            return i;
        low = 0x80;
        high = 0xbf;
    }
    *is_valid = 1;
    return n_more + 1;
}

size_t pl_json_sequence(const char *s, size_t n_bytes, int *is_valid)
{
    const unsigned char *p = (const unsigned char *)s;

    *is_valid = p[0] < 0x80;
    return *is_valid ? 1 : sequence(p, n_bytes, is_valid);
}

static void control(pl_json *j, unsigned char c)
{
    static const char hex[] = "0123456789abcdef";
    const char *known = c == '\n'   ? "\\n"
                        : c == '\t' ? "\\t"
                        : c == '\r' ? "\\r"
                        : c == '\b' ? "\\b"
                        : c == '\f' ? "\\f"
                        : c == '"'  ? "\\\""
                        : c == '\\' ? "\\\\"
                                    : NULL;
    const char coded[] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15], '\0'};

    pl_json_text(j, known ? known : coded);
}

void pl_json_string(pl_json *j, const char *s, size_t n_bytes)
{
    const unsigned char *p = (const unsigned char *)s;
    size_t begin = 0; /* of what can be copied as it is */
    size_t i = 0;

    pl_json_text(j, "\"");
    while (i < n_bytes) {
        const int is_plain = p[i] >= 0x20 && p[i] < 0x80 && p[i] != '"' && p[i] != '\\';
        int is_valid = is_plain;
        const size_t len = p[i] < 0x80 ? 1 : sequence(p + i, n_bytes - i, &is_valid);
        if (!is_valid) {
            pl_json_bytes(j, s + begin, i - begin);
            if (p[i] < 0x80)
                control(j, p[i]);
            else
                pl_json_text(j, "\xef\xbf\xbd");
            begin = i + len;
        }
        i += len;
    }
    pl_json_bytes(j, s + begin, n_bytes - begin);
    pl_json_text(j, "\"");
}

/* ---- numbers ---- */

void pl_json_int(pl_json *j, int64_t v)
{
    char text[NUMBER_ROOM];

    if (snprintf(text, sizeof text, "%lld", (long long)v) > 0)
        pl_json_text(j, text);
}

/* From "%.*e" text: digits (at most 17, without zeros at the end) and decimal exponent. */
static int digits_of(const char *text, char digits[NUMBER_ROOM], int *exponent)
{
    int n = 0;

    for (; *text && *text != 'e'; text++)
        if (*text >= '0' && *text <= '9')
            digits[n++] = *text;
    while (n > 1 && digits[n - 1] == '0')
        n--;
    *exponent = *text ? atoi(text + 1) : 0;
    return n;
}

/* Lay out as Python's repr does: fixed from 1e-4 up to below 1e16, else with an exponent. */
static void layout(pl_json *j, const char *text)
{
    char digits[NUMBER_ROOM], out[NUMBER_ROOM];
    int exponent;
    const int n = digits_of(text, digits, &exponent);

    if (text[0] == '-')
        pl_json_text(j, "-");
    if (exponent < -4 || exponent >= 16) {
        pl_json_bytes(j, digits, 1);
        if (n > 1) {
            pl_json_text(j, ".");
            pl_json_bytes(j, digits + 1, (size_t)n - 1);
        }
        if (snprintf(out, sizeof out, "e%d", exponent) > 0)
            pl_json_text(j, out);
        return;
    }
    if (exponent < 0) {
        pl_json_text(j, "0.");
        pl_json_bytes(j, "000", (size_t)(-exponent - 1));
        pl_json_bytes(j, digits, (size_t)n);
        return;
    }
    const int whole = n < exponent + 1 ? n : exponent + 1;
    pl_json_bytes(j, digits, (size_t)whole);
    pl_json_bytes(j, "000000000000000", (size_t)(exponent + 1 - whole));
    if (n > whole) {
        pl_json_text(j, ".");
        pl_json_bytes(j, digits + whole, (size_t)(n - whole));
    }
}

/* Integer operations only up to here: DAZ would make a denormal zero. */
void pl_json_float(pl_json *j, float v)
{
    char text[NUMBER_ROOM];
    uint32_t bits, back_bits;

    memcpy(&bits, &v, sizeof bits);
    const uint32_t exponent = bits >> 23 & 0xff;
    const uint32_t fraction = bits & 0x7fffff;
    if (exponent == 0xff) {
        pl_json_text(j, "null");
        return;
    }
    if ((bits & 0x7fffffff) == 0) {
        pl_json_text(j, bits ? "-0.0" : "0");
        return;
    }
    double wide = exponent ? (double)v : (double)fraction * 0x1p-149;
    if (!exponent && bits >> 31)
        wide = -wide;
    for (int precision = 5; precision <= 8; precision++) {
        if (snprintf(text, sizeof text, "%.*e", precision, wide) < 0)
            return;
        const float back = strtof(text, NULL);
        memcpy(&back_bits, &back, sizeof back_bits);
        if (back_bits == bits)
            break;
    }
    layout(j, text);
}

void pl_json_double(pl_json *j, double v)
{
    char text[NUMBER_ROOM];
    uint64_t bits, back_bits;

    memcpy(&bits, &v, sizeof bits);
    if ((bits >> 52 & 0x7ff) == 0x7ff) {
        pl_json_text(j, "null");
        return;
    }
    if (bits << 1 == 0) {
        pl_json_text(j, bits ? "-0.0" : "0");
        return;
    }
    for (int precision = 14; precision <= 16; precision++) {
        if (snprintf(text, sizeof text, "%.*e", precision, v) < 0)
            return;
        const double back = strtod(text, NULL);
        memcpy(&back_bits, &back, sizeof back_bits);
        if (back_bits == bits)
            break;
    }
    layout(j, text);
}

pl_status pl_json_check(const pl_json *j, const char *what, pl_error *err)
{
    if (!j->failed)
        return PL_OK;
    return pl_fail(err, PL_E_NOMEM, "%s: no memory for text of more than %zu bytes", what, j->n);
}
