/* monitor/scan.c - members of one JSON object, found without allocating. */
#include "monitor/lines.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    DIGITS = 40,       /* of a number that are looked at */
    EXPONENT = 100000, /* where an exponent stops to grow */
    NUMBER_ROOM = 64,  /* sign, DIGITS, e, exponent */
    EXACT_POWER = 22,  /* 10^22 is a double */
};

static int is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static int is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static const char *skip_space(const char *p, const char *end)
{
    while (p < end && is_space(*p))
        p++;
    return p;
}

/* After the closing quote of the string whose first byte is p; NULL: it does not end. */
static const char *skip_string(const char *p, const char *end)
{
    const char *quote = NULL; /* the next one, escaped or not */

    while (p < end) {
        if (!quote || quote < p)
            quote = memchr(p, '"', (size_t)(end - p));
        if (!quote)
            return NULL;
        const char *slash = memchr(p, '\\', (size_t)(quote - p));
        if (!slash)
            return quote + 1;
        p = slash + 2;
    }
    return NULL;
}

/* After the bracket that closes the one at p; NULL: none does. */
static const char *skip_nested(const char *p, const char *end)
{
    uint64_t is_object = 0; /* a bit a level */
    int depth = 0;

    while (p < end) {
        const char c = *p++;
        if (c == '"') {
            p = skip_string(p, end);
            if (!p)
                return NULL;
        } else if (c == '[' || c == '{') {
            if (depth == LINES_DEPTH)
                return NULL;
            is_object = is_object << 1 | (c == '{');
            depth++;
        } else if (c == ']' || c == '}') {
            if ((int)(is_object & 1) != (c == '}'))
                return NULL;
            is_object >>= 1;
            if (--depth == 0)
                return p;
        }
    }
    return NULL;
}

static const char *skip_digits(const char *p, const char *end)
{
    const char *begin = p;

    while (p < end && is_digit(*p))
        p++;
    return p > begin ? p : NULL;
}

static const char *skip_number(const char *p, const char *end)
{
    if (p < end && *p == '-')
        p++;
    if (p < end && *p == '0')
        p++;
    else
        p = skip_digits(p, end);
    if (p && p < end && *p == '.')
        p = skip_digits(p + 1, end);
    if (p && p < end && (*p == 'e' || *p == 'E')) {
        p++;
        if (p < end && (*p == '+' || *p == '-'))
            p++;
        p = skip_digits(p, end);
    }
    return p;
}

static const char *skip_word(const char *p, const char *end, const char *word)
{
    const size_t n = strlen(word);
    return (size_t)(end - p) >= n && memcmp(p, word, n) == 0 ? p + n : NULL;
}

/* The value at p; returns what follows it, NULL when there is none. */
static const char *take_value(const char *p, const char *end, scan_value *v)
{
    if (p >= end)
        return NULL;
    v->kind = *p == '-' || is_digit(*p) ? '0' : *p;
    v->at = *p == '"' ? p + 1 : p;
    const char *after = v->kind == '"'                     ? skip_string(p + 1, end)
                        : v->kind == '0'                   ? skip_number(p, end)
                        : v->kind == 't'                   ? skip_word(p, end, "true")
                        : v->kind == 'f'                   ? skip_word(p, end, "false")
                        : v->kind == 'n'                   ? skip_word(p, end, "null")
                        : v->kind == '[' || v->kind == '{' ? skip_nested(p, end)
                                                           : NULL;
    if (after)
        v->n = (size_t)(after - v->at) - (v->kind == '"');
    return after;
}

void scan_begin(scan *s, const char *line, size_t n)
{
    s->at = skip_space(line, line + n);
    s->end = line + n;
    s->is_first = 1;
}

/* The closing bracket, or the start of the next member or element.  1: one follows. */
static int step_on(scan *s, char open, char close)
{
    const char *p = skip_space(s->at, s->end);

    if (s->is_first) {
        if (p >= s->end || *p != open)
            return -1;
        p = skip_space(p + 1, s->end);
    }
    if (p < s->end && *p == close)
        return skip_space(p + 1, s->end) == s->end ? 0 : -1;
    if (!s->is_first) {
        if (p >= s->end || *p != ',')
            return -1;
        p = skip_space(p + 1, s->end);
    }
    s->is_first = 0;
    s->at = p;
    return 1;
}

int scan_next(scan *s, scan_value *v)
{
    const int more = step_on(s, '{', '}');

    if (more != 1)
        return more;
    const char *p = s->at;
    if (p >= s->end || *p != '"')
        return -1;
    v->key = p + 1;
    p = skip_string(p + 1, s->end);
    if (!p)
        return -1;
    v->n_key = (size_t)(p - v->key) - 1;
    p = skip_space(p, s->end);
    if (p >= s->end || *p != ':')
        return -1;
    p = take_value(skip_space(p + 1, s->end), s->end, v);
    if (!p)
        return -1;
    s->at = p;
    return 1;
}

void scan_begin_array(scan *s, const scan_value *v)
{
    scan_begin(s, v->at, v->n);
}

int scan_next_element(scan *s, scan_value *v)
{
    const int more = step_on(s, '[', ']');

    if (more != 1)
        return more;
    v->key = "";
    v->n_key = 0;
    const char *p = take_value(s->at, s->end, v);
    if (!p)
        return -1;
    s->at = p;
    return 1;
}

int scan_is_key(const scan_value *v, const char *key)
{
    return v->n_key == strlen(key) && memcmp(v->key, key, v->n_key) == 0;
}

/* ---- numbers: the digits as a whole number and a power of ten, so that the C library sees no
 * decimal point, which depends on the locale ---- */

typedef struct decimal {
    char text[NUMBER_ROOM];
    int n;          /* digits */
    uint64_t whole; /* they as a number, when n <= 18 */
    int64_t power;
    int is_negative;
} decimal;

static void take_digit(decimal *d, char c, int is_fraction)
{
    if (d->n == 0 && c == '0') { /* leading zeros count for nothing */
        d->power -= is_fraction;
        return;
    }
    if (d->n >= DIGITS) {
        d->power += !is_fraction;
        return;
    }
    d->text[d->n++] = c;
    d->whole = d->n <= 18 ? 10 * d->whole + (uint64_t)(c - '0') : 0;
    d->power -= is_fraction;
}

static void take_number(decimal *d, const char *p, const char *end)
{
    int64_t exponent = 0;
    int is_fraction = 0, is_down = 0;

    memset(d, 0, sizeof *d);
    d->is_negative = *p == '-';
    for (p += d->is_negative; p < end && *p != 'e' && *p != 'E'; p++) {
        if (*p == '.')
            is_fraction = 1;
        else
            take_digit(d, *p, is_fraction);
    }
    if (p < end)
        p++;
    for (; p < end; p++) {
        is_down |= *p == '-';
        if (is_digit(*p) && exponent < EXPONENT)
            exponent = 10 * exponent + (*p - '0');
    }
    d->power += is_down ? -exponent : exponent;
}

static double exact(const decimal *d)
{
    static const double powers[EXACT_POWER + 1] = {1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9,
        1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    const double whole = (double)d->whole;
    return d->power < 0 ? whole / powers[-d->power] : whole * powers[d->power];
}

double scan_number(const scan_value *v)
{
    decimal d;
    double x;

    if (v->kind != '0' || v->n == 0)
        return NAN;
    take_number(&d, v->at, v->at + v->n);
    if (d.n <= 18 && d.whole < (uint64_t)1 << 53 && d.power >= -EXACT_POWER &&
        d.power <= EXACT_POWER) {
        x = exact(&d); /* both are exact, one rounding */
    } else {
        int64_t power = d.power < -EXPONENT ? -EXPONENT : d.power;
        char *p = d.text + d.n;
        *p++ = 'e';
        if (power < 0)
            *p++ = '-';
        power = power < 0 ? -power : power;
        power = power > EXPONENT ? EXPONENT : power;
        for (int64_t unit = EXPONENT; unit > 0; unit /= 10)
            *p++ = (char)('0' + power / unit % 10);
        *p = '\0';
        x = strtod(d.text, NULL);
    }
    return isfinite(x) ? d.is_negative ? -x : x : NAN;
}

int64_t scan_int(const scan_value *v, int64_t low, int64_t high, int64_t missing)
{
    const double x = scan_number(v);
    return x >= (double)low && x <= (double)high && x == floor(x) ? (int64_t)x : missing;
}

/* ---- strings ---- */

/* Value of four hex digits; -1: they are none. */
static int32_t hex4(const char *p, const char *end)
{
    int32_t code = 0;

    if (end - p < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        const char c = p[i];
        const int digit = is_digit(c)            ? c - '0'
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                 : -1;
        if (digit < 0)
            return -1;
        code = 16 * code + digit;
    }
    return code;
}

static size_t put_utf8(char *out, int32_t code)
{
    const unsigned c = (unsigned)code;

    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 63));
        out[2] = (char)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 63));
    out[2] = (char)(0x80 | (c >> 6 & 63));
    out[3] = (char)(0x80 | (c & 63));
    return 4;
}

/* The character of \uXXXX at p (after the u), *used bytes long; U+FFFD: half a pair. */
static int32_t coded_char(const char *p, const char *end, size_t *used)
{
    const int32_t code = hex4(p, end);

    *used = code < 0 ? 0 : 4;
    if (code < 0 || (code >= 0xdc00 && code < 0xe000))
        return 0xfffd;
    if (code < 0xd800 || code >= 0xe000)
        return code;
    if (end - p < 10 || p[4] != '\\' || p[5] != 'u')
        return 0xfffd;
    const int32_t low = hex4(p + 6, end);
    if (low < 0xdc00 || low >= 0xe000)
        return 0xfffd;
    *used = 10;
    return 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
}

size_t scan_string(const scan_value *v, char *out)
{
    const char *p = v->at, *end = v->at + v->n;
    size_t n = 0;

    while (p < end) {
        if (*p != '\\' || p + 1 >= end) {
            out[n++] = *p++;
            continue;
        }
        const char c = p[1];
        p += 2;
        if (c == 'u') {
            size_t used;
            const int32_t code = coded_char(p, end, &used);
            p += used;
            if (used > 0) /* 6 or 12 bytes went in, at most 4 come out */
                n += put_utf8(out + n, code);
            else
                out[n++] = '?';
        } else {
            out[n++] = c == 'n'   ? '\n'
                       : c == 't' ? '\t'
                       : c == 'r' ? '\r'
                       : c == 'b' ? '\b'
                       : c == 'f' ? '\f'
                                  : c;
        }
    }
    return n;
}
