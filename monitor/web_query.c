/* monitor/web_query.c - a request's target, taken apart; every byte is hostile. */
#include "monitor/web_query.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static int hex(int c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

static int is_name(int c)
{
    return (c >= 'a' && c <= 'z') || c == '_' || (c >= '0' && c <= '9');
}

static int is_path(int c)
{
    return (c >= 'a' && c <= 'z') || c == '/' || c == '.' || c == '_';
}

/* Undo the escapes of at most n bytes; what is wrong, or NULL. */
static const char *take_value(char *out, const char *s, size_t n)
{
    size_t used = 0;

    for (size_t i = 0; i < n; i++) {
        int c = (unsigned char)s[i];
        if (c == '%') {
            if (i + 2 >= n || hex(s[i + 1]) < 0 || hex(s[i + 2]) < 0)
                return "a % in the query is not followed by two hexadecimal digits";
            c = hex(s[i + 1]) * 16 + hex(s[i + 2]);
            i += 2;
        } else if (c == '+') {
            c = ' ';
        }
        if (c == 0)
            return "the query holds a NUL byte";
        if (used == WEB_VALUE - 1)
            return "a value of the query is longer than 511 bytes";
        out[used++] = (char)c;
    }
    out[used] = 0;
    return NULL;
}

static const char *take_field(web_query *q, const char *s, size_t n)
{
    const char *equals = memchr(s, '=', n);
    const size_t n_name = equals ? (size_t)(equals - s) : n;

    if (q->n == WEB_FIELDS)
        return "the query has more than 12 fields";
    web_field *f = &q->fields[q->n];
    if (n_name == 0 || n_name >= WEB_NAME)
        return "a field of the query has no name, or one of more than 15 bytes";
    for (size_t i = 0; i < n_name; i++)
        if (!is_name((unsigned char)s[i]))
            return "a field's name in the query is not of a-z, 0-9 and _";
    memcpy(f->name, s, n_name);
    f->name[n_name] = 0;
    if (web_query_text(q, f->name))
        return "a field stands in the query twice";
    f->value[0] = 0;
    const char *wrong = equals ? take_value(f->value, equals + 1, n - n_name - 1) : NULL;
    q->n += !wrong;
    return wrong;
}

const char *web_query_parse(web_query *q, const char *target, int *status)
{
    const size_t n = strnlen(target, WEB_TARGET_MAX + 1);
    const size_t n_path = strcspn(target, "?");

    q->n = 0;
    q->path[0] = 0;
    *status = 414;
    if (n > WEB_TARGET_MAX)
        return "the request line is longer than 8192 bytes";
    *status = 400;
    if (target[0] != '/')
        return "the request's target is not a path: /... is wanted";
    *status = 404;
    if (n_path >= WEB_PATH)
        return "no such page";
    for (size_t i = 0; i < n_path; i++)
        if (!is_path((unsigned char)target[i]))
            return "no such page";
    memcpy(q->path, target, n_path);
    q->path[n_path] = 0;
    *status = 400;
    if (target[n_path] == 0)
        return NULL;
    for (const char *s = target + n_path + 1; *s;) {
        const size_t n_field = strcspn(s, "&");
        const char *wrong = n_field > 0 ? take_field(q, s, n_field) : NULL;
        if (wrong)
            return wrong;
        s += n_field + (s[n_field] == '&');
    }
    return NULL;
}

const char *web_query_text(const web_query *q, const char *name)
{
    for (int i = 0; i < q->n; i++)
        if (strcmp(q->fields[i].name, name) == 0)
            return q->fields[i].value;
    return NULL;
}

int web_query_int(const web_query *q, const char *name, int64_t min, int64_t max, int64_t *v)
{
    const char *text = web_query_text(q, name);
    char *end;

    if (!text || !*text)
        return 0;
    if (text[0] != '-' && (text[0] < '0' || text[0] > '9'))
        return -1;
    errno = 0;
    const long long x = strtoll(text, &end, 10);
    if (end == text || *end || errno || x < min || x > max)
        return -1;
    *v = x;
    return 1;
}

int web_query_number(const web_query *q, const char *name, double *v)
{
    const char *text = web_query_text(q, name);
    char *end;

    if (!text || !*text)
        return 0;
    if (!strchr("-.0123456789", text[0]))
        return -1;
    const double x = strtod(text, &end);
    if (end == text || *end || !isfinite(x))
        return -1;
    *v = x;
    return 1;
}
