/* tests/fuzz/fuzz_history.c - the reader of metrics.jsonl against any bytes.  The first byte says
 * where the rest is cut in two: read as it grows or at once, the columns are the same.  What
 * Jansson takes as an object the scanner takes too, and sees the same numbers. */
#include "core/file.h"
#include "monitor/lines.h"
#include "monitor/monitor.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void must(int is_true)
{
    if (!is_true)
        abort();
}

static int depth_of(const json_t *v)
{
    int deepest = 0;
    const char *key;
    json_t *member;
    size_t i;

    json_object_foreach((json_t *)v, key, member)
    {
        const int d = depth_of(member);
        deepest = d > deepest ? d : deepest;
    }
    json_array_foreach(v, i, member)
    {
        const int d = depth_of(member);
        deepest = d > deepest ? d : deepest;
    }
    return deepest + (json_is_object(v) || json_is_array(v));
}

/* Number of the last member of that key, as the scanner sees it. */
static double seen(const char *line, size_t n, const char *key)
{
    double x = INFINITY;
    scan s;
    scan_value v;

    scan_begin(&s, line, n);
    while (scan_next(&s, &v) == 1)
        if (scan_is_key(&v, key))
            x = scan_number(&v);
    return x;
}

static void compare(const char *line, size_t n)
{
    json_t *o = json_loadb(line, n, 0, NULL), *member;
    const char *key;
    char *text = malloc(n + 1);
    scan s;
    scan_value v;
    int more;

    must(text != NULL);
    scan_begin(&s, line, n);
    while ((more = scan_next(&s, &v)) == 1) {
        must(v.at >= line && v.at + v.n <= line + n);
        must(scan_string(&v, text) <= v.n);
        (void)scan_number(&v);
    }
    /* Jansson reads past a NUL between tokens; the scanner does not. */
    if (json_is_object(o) && !memchr(line, 0, n) && depth_of(o) <= LINES_DEPTH) {
        must(more == 0);
        json_object_foreach(o, key, member)
        {
            const double x = seen(line, n, key);
            if (json_is_number(member) && !isinf(x)) /* its key has no escapes */
                must(x == json_number_value(member));
        }
    }
    json_decref(o);
    free(text);
}

static void check(const pl_history *h)
{
    const char *const *names;
    const int64_t *steps;
    const int n = pl_history_steps(h, &steps), n_names = pl_history_names(h, &names);

    must(n <= PL_HISTORY_STEPS && n_names <= PL_HISTORY_NAMES);
    for (int i = 0; i < n; i++)
        must(steps[i] >= 0 && (i == 0 || steps[i] > steps[i - 1]));
    for (int i = 0; i < n_names; i++) {
        const double *x = pl_history_column(h, names[i]);
        must(x && names[i][0] && strlen(names[i]) < 128);
        for (int k = 0; k < n; k++)
            must(!isinf(x[k]));
    }
}

static void same(const pl_history *a, const pl_history *b)
{
    const char *const *names;
    const int64_t *x, *y;
    const int n = pl_history_steps(a, &x), n_names = pl_history_names(a, &names);

    must(pl_history_steps(b, &y) == n && pl_history_names(b, NULL) == n_names);
    must(pl_history_bad_lines(a) == pl_history_bad_lines(b));
    for (int i = 0; i < n; i++)
        must(x[i] == y[i]);
    for (int i = 0; i < n_names; i++) {
        const double *u = pl_history_column(a, names[i]), *v = pl_history_column(b, names[i]);
        must(u && v);
        for (int k = 0; k < n; k++)
            must(u[k] == v[k] || (isnan(u[k]) && isnan(v[k])));
    }
}

static void append(const char *path, const uint8_t *data, size_t n)
{
    FILE *f = fopen(path, "a");
    must(f && fwrite(data, 1, n, f) == n && fclose(f) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char dir[] = "/tmp/fuzz_history_XXXXXX", path[64];
    pl_history *grown = NULL, *whole = NULL;

    if (size < 1)
        return 0;
    const size_t n = size - 1, cut = n * data[0] / 255;
    must(mkdtemp(dir) != NULL && snprintf(path, sizeof path, "%s/metrics.jsonl", dir) > 0);
    must(pl_history_open(&grown, dir, NULL) == PL_OK);
    append(path, data + 1, cut);
    (void)pl_history_poll(grown);
    check(grown);
    append(path, data + 1 + cut, n - cut);
    (void)pl_history_poll(grown);
    check(grown);
    must(pl_history_open(&whole, dir, NULL) == PL_OK);
    (void)pl_history_poll(whole);
    same(whole, grown);
    pl_history_close(grown);
    pl_history_close(whole);
    must(unlink(path) == 0 && rmdir(dir) == 0);
    compare((const char *)data + 1, n);
    return 0;
}
