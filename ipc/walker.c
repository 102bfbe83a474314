/* ipc/walker.c - the bounded reader of msgpack. */
#include "ipc/walker.h"

typedef struct format {
    unsigned char kind;  /* walker_kind, or one of the two below */
    unsigned char width; /* bytes of the big-endian number after the first byte */
    const char *what;
} format;

enum { KIND_INT = WALKER_OTHER + 1, KIND_NEVER };

/* First bytes 0xc0 to 0xdf (msgpack specification, "Formats"). */
static const format formats[32] = {
    {WALKER_OTHER, 0, "nil"},
    {KIND_NEVER, 0, "the byte 0xc1"},
    {WALKER_OTHER, 0, "false"},
    {WALKER_OTHER, 0, "true"},
    {WALKER_BIN, 1, "bytes"},
    {WALKER_BIN, 2, "bytes"},
    {WALKER_BIN, 4, "bytes"},
    {WALKER_OTHER, 0, "an extension"},
    {WALKER_OTHER, 0, "an extension"},
    {WALKER_OTHER, 0, "an extension"},
    {WALKER_F32, 4, "a float"},
    {WALKER_OTHER, 0, "a double"},
    {WALKER_UINT, 1, "an integer"},
    {WALKER_UINT, 2, "an integer"},
    {WALKER_UINT, 4, "an integer"},
    {WALKER_UINT, 8, "an integer"},
    {KIND_INT, 1, "an integer"},
    {KIND_INT, 2, "an integer"},
    {KIND_INT, 4, "an integer"},
    {KIND_INT, 8, "an integer"},
    {WALKER_OTHER, 0, "an extension"},
    {WALKER_OTHER, 0, "an extension"},
    {WALKER_OTHER, 0, "an extension"},
    {WALKER_OTHER, 0, "an extension"},
    {WALKER_OTHER, 0, "an extension"},
    {WALKER_STR, 1, "a string"},
    {WALKER_STR, 2, "a string"},
    {WALKER_STR, 4, "a string"},
    {WALKER_ARRAY, 2, "an array"},
    {WALKER_ARRAY, 4, "an array"},
    {WALKER_MAP, 2, "a map"},
    {WALKER_MAP, 4, "a map"},
};

/* The format of a first byte; of the short forms also the number inside it. */
static format format_of(unsigned char first, uint64_t *value)
{
    *value = 0;
    if (first < 0x80) {
        *value = first;
        return (format){WALKER_UINT, 0, "an integer"};
    }
    if (first < 0x90) {
        *value = first & 15;
        return (format){WALKER_MAP, 0, "a map"};
    }
    if (first < 0xa0) {
        *value = first & 15;
        return (format){WALKER_ARRAY, 0, "an array"};
    }
    if (first < 0xc0) {
        *value = first & 31;
        return (format){WALKER_STR, 0, "a string"};
    }
    if (first >= 0xe0)
        return (format){WALKER_OTHER, 0, "a negative integer"};
    return formats[first - 0xc0];
}

/* What the number of a kind promises must fit into the bytes that are left. */
static pl_status bound(const walker *w, const walker_item *item, pl_error *err)
{
    const size_t left = w->n - w->pos;
    uint64_t most = UINT64_MAX;

    if (item->kind == WALKER_STR || item->kind == WALKER_BIN || item->kind == WALKER_ARRAY)
        most = left;
    else if (item->kind == WALKER_MAP)
        most = left / 2;
    if (item->value > most)
        return pl_fail(err, PL_E_FORMAT, "byte %zu: %s of %llu in a body that has %zu bytes left",
            w->pos, item->what, (unsigned long long)item->value, left);
    return PL_OK;
}

pl_status walker_next(walker *w, walker_item *item, pl_error *err)
{
    const size_t start = w->pos;
    if (start == w->n)
        return pl_fail(
            err, PL_E_FORMAT, "byte %zu: the body ends where a value should begin", start);

    /* 1. The first byte says what follows. */
    uint64_t value;
    const format f = format_of(w->body[w->pos++], &value);
    if (f.kind == KIND_NEVER)
        return pl_fail(err, PL_E_FORMAT, "byte %zu: 0xc1 is not msgpack", start);

    /* 2. Its number. */
    if (f.width > w->n - w->pos)
        return pl_fail(err, PL_E_FORMAT, "byte %zu: the body ends inside %s", start, f.what);
    for (int i = 0; i < f.width; i++)
        value = value << 8 | w->body[w->pos++];
    *item = (walker_item){(walker_kind)f.kind, f.what, value, NULL};
    if (f.kind == KIND_INT) {
        const int is_negative = (int)(value >> (8 * f.width - 1));
        item->kind = is_negative ? WALKER_OTHER : WALKER_UINT;
        item->what = is_negative ? "a negative integer" : f.what;
    }

    /* 3. What the number promises. */
    const pl_status st = bound(w, item, err);
    if (st != PL_OK)
        return st;
    if (item->kind == WALKER_STR || item->kind == WALKER_BIN) {
        item->data = w->body + w->pos;
        w->pos += (size_t)item->value;
    }
    return PL_OK;
}

size_t walker_char(const unsigned char *s, size_t n)
{
    /* The second byte is where overlong forms, surrogates and what lies beyond U+10FFFF show
     * (Unicode, table 3-7). */
    unsigned low = 0x80, high = 0xbf;

    if (s[0] < 0x80)
        return s[0] != 0;
    if (s[0] < 0xc2 || s[0] > 0xf4)
        return 0;
    if (s[0] == 0xe0)
        low = 0xa0;
    else if (s[0] == 0xed)
        high = 0x9f;
    else if (s[0] == 0xf0)
        low = 0x90;
    else if (s[0] == 0xf4)
        high = 0x8f;
    const size_t len = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    if (len > n || s[1] < low || s[1] > high)
        return 0;
    for (size_t i = 2; i < len; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    return len;
}

int walker_is_text(const unsigned char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        const size_t len = walker_char(s + i, n - i);
        if (len == 0)
            return 0;
        i += len;
    }
    return 1;
}
