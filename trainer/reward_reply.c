/* trainer/reward_reply.c - one line of a reward command: JSON read in place, bounded in depth.
 *
 * Not jansson, for three reasons: Python writes NaN and Infinity, which must cost that sample a try
 * and not be a line without an id; most of a line is skipped, so nothing is allocated; and a line
 * is what code that a model may have written sends.  jansson converts the number, whatever the
 * locale. */
#include "trainer/reward_internal.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    DEPTH_MAX = 32,  /* brackets inside brackets */
    NUMBER_MAX = 64, /* bytes of a number that is converted; Python writes up to 25 */
};

typedef struct text {
    const char *p, *end;
} text;

typedef enum kind { KIND_STRING, KIND_NUMBER, KIND_TRUE, KIND_FALSE, KIND_NULL, KIND_NESTED } kind;

typedef struct value {
    kind kind;
    text raw; /* of a string without its quotes, still escaped */
} value;

static void skip_space(text *t)
{
    while (t->p < t->end && (*t->p == ' ' || *t->p == '\t' || *t->p == '\r' || *t->p == '\n'))
        t->p++;
}

/* The next byte after white space is c: step over it. */
static int eat(text *t, char c)
{
    skip_space(t);
    if (t->p == t->end || *t->p != c)
        return 0;
    t->p++;
    return 1;
}

static int eat_word(text *t, const char *word)
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

/* After the opening quote. */
static int read_string(text *t, text *out)
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
    return eat(t, '"');
}

static size_t eat_digits(text *t)
{
    const char *begin = t->p;

    while (t->p < t->end && *t->p >= '0' && *t->p <= '9')
        t->p++;
    return (size_t)(t->p - begin);
}

static int read_number(text *t, text *out)
{
    out->p = t->p;
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
    out->end = t->p;
    return 1;
}

static int read_value(text *t, value *out, int depth);

/* After the opening bracket: step over all that it holds. */
static int skip_nested(text *t, char close, int depth)
{
    value inner;

    if (depth >= DEPTH_MAX)
        return 0;
    if (eat(t, close))
        return 1;
    do {
        if (close == '}' && (!eat(t, '"') || !read_string(t, &inner.raw) || !eat(t, ':')))
            return 0;
        if (!read_value(t, &inner, depth + 1))
            return 0;
    } while (eat(t, ','));
    return eat(t, close);
}

static int read_value(text *t, value *out, int depth)
{
    skip_space(t);
    out->raw.p = out->raw.end = t->p;
    if (t->p == t->end)
        return 0;
    switch (*t->p) {
    case '"':
        out->kind = KIND_STRING;
        t->p++;
        return read_string(t, &out->raw);
    case '{':
    case '[':
        out->kind = KIND_NESTED;
        t->p++;
        return skip_nested(t, t->p[-1] == '{' ? '}' : ']', depth);
    case 't':
        out->kind = KIND_TRUE;
        return eat_word(t, "true");
    case 'f':
        out->kind = KIND_FALSE;
        return eat_word(t, "false");
    case 'n':
        out->kind = KIND_NULL;
        return eat_word(t, "null");
    default:
        out->kind = KIND_NUMBER;
        return read_number(t, &out->raw);
    }
}

/* ---- the keys ---- */

/* Infinity for what no double holds: it is refused as that. */
static double number_of(text raw)
{
    const size_t n = (size_t)(raw.end - raw.p);

    if (n > NUMBER_MAX)
        return HUGE_VAL;
    json_t *v = json_loadb(raw.p, n, JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL, NULL);
    const double out = v ? json_number_value(v) : HUGE_VAL;
    json_decref(v);
    return out;
}

static int id_of(value v, int64_t *out)
{
    const int is_negative = v.raw.p < v.raw.end && *v.raw.p == '-';
    int64_t id = 0;

    if (v.kind != KIND_NUMBER)
        return 0;
    for (const char *p = v.raw.p + is_negative; p < v.raw.end; p++) {
        if (*p < '0' || *p > '9' || id > (INT64_MAX - 9) / 10)
            return 0;
        id = id * 10 + (*p - '0');
    }
    *out = is_negative ? -id : id;
    return 1;
}

static void take_score(reward_reply *out, value v)
{
    const double d = v.kind == KIND_NUMBER ? number_of(v.raw) : v.kind == KIND_TRUE ? 1 : 0;
    const float score = (float)d;

    out->answer = REWARD_NO_SCORE;
    reward_escape(out->text, sizeof out->text, v.raw.p, (size_t)(v.raw.end - v.raw.p));
    if (v.kind == KIND_STRING || v.kind == KIND_NULL || v.kind == KIND_NESTED)
        (void)snprintf(out->text, sizeof out->text, "score is not a number");
    else if (isfinite(score)) {
        out->answer = REWARD_SCORE;
        out->score = score;
    }
}

enum { KEY_ID, KEY_SCORE, KEY_REWARD, KEY_ERROR, N_KEYS };

static int key_of(text raw)
{
    static const char *const names[N_KEYS] = {"id", "score", "reward", "error"};
    const size_t n = (size_t)(raw.end - raw.p);

    for (int i = 0; i < N_KEYS; i++)
        if (strlen(names[i]) == n && memcmp(names[i], raw.p, n) == 0)
            return i;
    return -1;
}

static pl_status read_keys(text *t, value found[N_KEYS], unsigned *seen, pl_error *err)
{
    value v;
    text key;

    if (!eat(t, '{'))
        return pl_fail(err, PL_E_FORMAT, "is not a JSON object");
    if (!eat(t, '}')) {
        do {
            if (!eat(t, '"') || !read_string(t, &key) || !eat(t, ':') || !read_value(t, &v, 1))
                return pl_fail(err, PL_E_FORMAT, "is broken JSON");
            const int k = key_of(key);
            if (k < 0)
                continue;
            if (*seen >> k & 1)
                return pl_fail(err, PL_E_FORMAT, "has a key twice");
            *seen |= 1u << k;
            found[k] = v;
        } while (eat(t, ','));
        if (!eat(t, '}'))
            return pl_fail(err, PL_E_FORMAT, "is broken JSON");
    }
    skip_space(t);
    return t->p == t->end ? PL_OK : pl_fail(err, PL_E_FORMAT, "goes on after its object");
}

pl_status reward_reply_parse(reward_reply *out, const char *line, size_t n_bytes, pl_error *err)
{
    text t = {line, line + n_bytes};
    value found[N_KEYS];
    unsigned seen = 0;

    const pl_status st = read_keys(&t, found, &seen, err);
    if (st != PL_OK)
        return st;
    memset(out, 0, sizeof *out);
    if (!(seen >> KEY_ID & 1) || !id_of(found[KEY_ID], &out->id))
        return pl_fail(err, PL_E_FORMAT, "has no whole number \"id\"");
    if (seen >> KEY_ERROR & 1 && found[KEY_ERROR].kind != KIND_NULL) {
        const text raw = found[KEY_ERROR].raw;
        out->answer = REWARD_ERROR;
        reward_escape(out->text, sizeof out->text, raw.p, (size_t)(raw.end - raw.p));
    } else if (seen >> KEY_SCORE & 1) {
        take_score(out, found[KEY_SCORE]);
    } else if (seen >> KEY_REWARD & 1) {
        take_score(out, found[KEY_REWARD]);
    } else {
        out->answer = REWARD_NO_SCORE;
        (void)snprintf(out->text, sizeof out->text, "neither \"score\" nor \"error\"");
    }
    return PL_OK;
}

void reward_escape(char *out, size_t size, const char *s, size_t n_bytes)
{
    static const char hex[] = "0123456789abcdef";
    size_t n = 0;

    for (size_t i = 0; i < n_bytes; i++) {
        const unsigned char c = (unsigned char)s[i];
        const int is_plain = c >= 0x20 && c < 0x7f;
        if (n + (is_plain ? 1 : 4) + 3 >= size) { /* room for "..." and the NUL */
            memcpy(out + n, "...", 3);
            n += 3;
            break;
        }
        if (is_plain) {
            out[n++] = (char)c;
        } else {
            const char coded[] = {'\\', 'x', hex[c >> 4], hex[c & 15]};
            memcpy(out + n, coded, sizeof coded);
            n += sizeof coded;
        }
    }
    out[n] = '\0';
}
