/* monitor/lines.c - lines of bounded length out of pieces. */
#include "monitor/lines.h"

#include <stdlib.h>
#include <string.h>

enum { FIRST_ROOM = 4096 }; /* bytes */

/* Keep bytes of a line that goes on. */
static void keep(lines *l, const char *bytes, size_t n)
{
    size_t room = l->room ? l->room : FIRST_ROOM;

    if (l->is_skipping || n == 0)
        return;
    if (n > l->max - l->n) {
        l->is_skipping = 1;
        l->n = 0;
        return;
    }
    while (room < l->n + n)
        room *= 2;
    if (room != l->room) {
        char *p = realloc(l->data, room);
        if (!p) {
            l->is_skipping = 1;
            l->n = 0;
            return;
        }
        l->data = p;
        l->room = room;
    }
    memcpy(l->data + l->n, bytes, n);
    l->n += n;
}

int lines_feed(lines *l, const char *bytes, size_t n, lines_fn fn, void *ctx)
{
    int rc = 0;

    while (n > 0 && rc == 0) {
        const char *end = memchr(bytes, '\n', n);
        const size_t len = end ? (size_t)(end - bytes) : n;
        const int is_whole = end && l->n == 0 && !l->is_skipping && len <= l->max;
        if (is_whole) {
            rc = fn(ctx, bytes, len);
        } else {
            keep(l, bytes, len);
            if (end) {
                rc = fn(ctx, l->is_skipping ? NULL : l->data, l->n);
                lines_clear(l);
            }
        }
        bytes += len + (end ? 1 : 0);
        n -= len + (end ? 1 : 0);
    }
    return rc;
}

int lines_end(lines *l, lines_fn fn, void *ctx)
{
    const int is_any = l->n > 0 || l->is_skipping;
    const int rc = is_any ? fn(ctx, l->is_skipping ? NULL : l->data, l->n) : 0;

    lines_clear(l);
    return rc;
}

void lines_clear(lines *l)
{
    l->n = 0;
    l->is_skipping = 0;
}

void lines_done(lines *l)
{
    free(l->data);
    l->data = NULL;
    l->n = l->room = 0;
    l->is_skipping = 0;
}
