/* trainer/scan.c - JSON read in place. */
#include "trainer/scan.h"

#include <string.h>

void scan_space(scan_text *t)
{
    while (t->p < t->end && (*t->p == ' ' || *t->p == '\t' || *t->p == '\r' || *t->p == '\n'))
        t->p++;
}

int scan_eat(scan_text *t, char c)
{
    scan_space(t);
    if (t->p == t->end || *t->p != c)
        return 0;
    t->p++;
    return 1;
}

static int eat_word(scan_text *t, const char *word)
{
    const size_t n = strlen(word);

    if ((size_t)(t->end - t->p) < n || memcmp(t->p, word, n) != 0)
        return 0;
    t->p += n;
    return 1;
}

static int is_hex(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

int scan_quoted(scan_text *t, scan_text *out)
{
    out->p = t->p;
    while (t->p < t->end && *t->p != '"') {
        if ((unsigned char)*t->p < 0x20)
            return 0;
        if (*t->p++ != '\\')
            continue;
        if (t->p == t->end || !strchr("\"\\/bfnrtu", *t->p) || *t->p == '\0')
            return 0;
        if (*t->p++ != 'u')
            continue;
        for (int i = 0; i < 4; i++, t->p++)
            if (t->p == t->end || !is_hex(*t->p))
                return 0;
    }
    out->end = t->p;
    return scan_eat(t, '"');
}

static size_t eat_digits(scan_text *t)
{
    const char *begin = t->p;

    while (t->p < t->end && *t->p >= '0' && *t->p <= '9')
        t->p++;
    return (size_t)(t->p - begin);
}

static int eat_number(scan_text *t)
{
    (void)eat_word(t, "-");
    if (!eat_word(t, "Infinity") && !eat_word(t, "NaN")) {
        const char *first = t->p;
        const size_t n = eat_digits(t);
        if (n == 0 || (n > 1 && *first == '0'))
            return 0;
        if (eat_word(t, ".") && eat_digits(t) == 0)
            return 0;
        if (eat_word(t, "e") || eat_word(t, "E")) {
            if (!eat_word(t, "+"))
                (void)eat_word(t, "-");
            if (eat_digits(t) == 0)
                return 0;
        }
    }
    return 1;
}

/* After the opening bracket: step over all that it holds. */
static int skip_nested(scan_text *t, char close, int depth)
{
    scan_item inner;

    if (depth >= SCAN_DEPTH_MAX)
        return 0;
    if (scan_eat(t, close))
        return 1;
    do {
        if (close == '}' && (!scan_eat(t, '"') || !scan_quoted(t, &inner.raw) || !scan_eat(t, ':')))
            return 0;
        if (!scan_value(t, &inner, depth + 1))
            return 0;
    } while (scan_eat(t, ','));
    return scan_eat(t, close);
}

/* The value that begins at t, but for a string; sets its kind. */
static int skip_value(scan_text *t, scan_kind *kind, int depth)
{
    switch (*t->p) {
    case '{':
        *kind = SCAN_OBJECT;
        t->p++;
        return skip_nested(t, '}', depth);
    case '[':
        *kind = SCAN_ARRAY;
        t->p++;
        return skip_nested(t, ']', depth);
    case 't':
        *kind = SCAN_TRUE;
        return eat_word(t, "true");
    case 'f':
        *kind = SCAN_FALSE;
        return eat_word(t, "false");
    case 'n':
        *kind = SCAN_NULL;
        return eat_word(t, "null");
    default:
        *kind = SCAN_NUMBER;
        return eat_number(t);
    }
}

int scan_value(scan_text *t, scan_item *out, int depth)
{
    scan_space(t);
    out->raw.p = t->p;
    if (t->p == t->end)
        return 0;
    if (*t->p == '"') {
        out->kind = SCAN_STRING;
        t->p++;
        return scan_quoted(t, &out->raw);
    }
    const int is_whole = skip_value(t, &out->kind, depth);
    out->raw.end = t->p;
    return is_whole;
}
