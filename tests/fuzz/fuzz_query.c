/* tests/fuzz/fuzz_query.c - a request's target against any bytes.  What is accepted, written again
 * with every byte escaped, is the same query. */
#include "monitor/web_query.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* "/path?name=%61%62": room for every value escaped. */
static char *write_again(const web_query *q)
{
    const size_t room = WEB_PATH + WEB_FIELDS * (WEB_NAME + 3 * WEB_VALUE + 2) + 2;
    char *out = malloc(room);
    size_t n = 0;

    if (!out)
        return NULL;
    n += (size_t)snprintf(out, room, "%s?", q->path);
    for (int i = 0; i < q->n; i++) {
        n += (size_t)snprintf(out + n, room - n, "%s%s=", i ? "&" : "", q->fields[i].name);
        for (const char *s = q->fields[i].value; *s; s++)
            n += (size_t)snprintf(out + n, room - n, "%%%02X", (unsigned char)*s);
    }
    return out;
}

static void check_same(const web_query *q)
{
    static web_query again;
    char *text = write_again(q);
    int status;

    if (!text)
        return;
    if (strlen(text) <= WEB_TARGET_MAX) {
        if (web_query_parse(&again, text, &status) || again.n != q->n ||
            strcmp(again.path, q->path) != 0)
            abort();
        for (int i = 0; i < q->n; i++)
            if (strcmp(again.fields[i].name, q->fields[i].name) != 0 ||
                strcmp(again.fields[i].value, q->fields[i].value) != 0)
                abort();
    }
    free(text);
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t n);
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t n)
{
    static web_query q;
    char *target = malloc(n + 1);
    int status = 0;

    if (!target)
        return 0;
    memcpy(target, data, n);
    target[n] = 0;
    const char *wrong = web_query_parse(&q, target, &status);
    if (wrong && (status < 400 || status > 499 || !*wrong))
        abort();
    for (int i = 0; !wrong && i < q.n; i++) {
        int64_t v = 7;
        double x = 7;
        if (web_query_int(&q, q.fields[i].name, -5, 1000, &v) == 1 && (v < -5 || v > 1000))
            abort();
        if (web_query_number(&q, q.fields[i].name, &x) == 1 && !isfinite(x))
            abort();
        if (web_query_text(&q, q.fields[i].name) != q.fields[i].value)
            abort();
    }
    if (!wrong)
        check_same(&q);
    free(target);
    return 0;
}
