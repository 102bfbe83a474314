/* monitor/timeline_read.c - trace.json read back, by others than who wrote it: hostile. */
#define _GNU_SOURCE
#include "core/json.h"
#include "monitor/lines.h"
#include "monitor/monitor.h"
#include "monitor/text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    PATH_ROOM = 4096,
    READ_BYTES = 64 << 10,
    LINE_MAX_BYTES = 16 << 10,
    TEXT_BYTES = 256, /* of a track or a name, with escapes */
};
#define US_MAX ((int64_t)1 << 53)

typedef struct reader {
    int64_t from_us;
    int64_t done; /* place in the file behind the last line taken */
    pl_timeline_fn fn;
    void *ctx;
    pl_json detail;
} reader;

static void take_text(char out[64], const scan_value *v)
{
    char text[TEXT_BYTES];
    scan_value cut = *v;

    cut.n = cut.n < sizeof text ? cut.n : sizeof text;
    text_clean(out, 64, text, scan_string(&cut, text));
}

/* Members of args that are texts, numbers or words, as clean JSON. */
static void take_detail(pl_json *j, const scan_value *args)
{
    char text[LINE_MAX_BYTES];
    scan s;
    scan_value v;
    int n = 0;

    pl_json_clear(j);
    scan_begin(&s, args->at, args->n);
    while (scan_next(&s, &v) == 1) {
        const scan_value key = {.at = v.key, .n = v.n_key, .kind = '"'};
        if (v.kind == '[' || v.kind == '{')
            continue;
        pl_json_text(j, n++ == 0 ? "{" : ",");
        pl_json_string(j, text, scan_string(&key, text));
        pl_json_text(j, ":");
        if (v.kind == '"')
            pl_json_string(j, text, scan_string(&v, text));
        else if (v.kind == '0')
            pl_json_double(j, scan_number(&v));
        else
            pl_json_bytes(j, v.at, v.n);
    }
    if (n > 0)
        pl_json_text(j, "}");
}

static int take_line(void *ctx, const char *line, size_t n)
{
    reader *r = ctx;
    pl_timeline_event e = {.begin_us = -1, .us = -1, .detail = ""};
    scan_value v, args = {.kind = 0};
    scan s;
    int more, is_event = 0;

    while (line && n > 0 && (line[n - 1] == ',' || line[n - 1] == '\r'))
        n--;
    if (!line)
        return 0;
    scan_begin(&s, line, n);
    while ((more = scan_next(&s, &v)) == 1) {
        if (scan_is_key(&v, "ph"))
            is_event = v.kind == '"' && v.n == 1 && v.at[0] == 'X';
        else if (scan_is_key(&v, "ts"))
            e.begin_us = scan_int(&v, 0, US_MAX, -1);
        else if (scan_is_key(&v, "dur"))
            e.us = scan_int(&v, 0, US_MAX, -1);
        else if (scan_is_key(&v, "cat") && v.kind == '"')
            take_text(e.track, &v);
        else if (scan_is_key(&v, "name") && v.kind == '"')
            take_text(e.name, &v);
        else if (scan_is_key(&v, "args") && v.kind == '{')
            args = v;
    }
    if (more != 0 || !is_event || e.begin_us < 0 || e.us < 0 || e.begin_us + e.us < r->from_us)
        return 0;
    if (args.kind)
        take_detail(&r->detail, &args);
    if (args.kind && r->detail.n > 0 && !r->detail.failed)
        e.detail = r->detail.data;
    return r->fn(r->ctx, &e);
}

/* The chunk that stands at place in the file, line by line so that done can follow. */
static int feed(reader *r, lines *l, const char *chunk, size_t n, int64_t place)
{
    size_t i = 0;
    int rc = 0;

    while (i < n && rc == 0) {
        const char *end = memchr(chunk + i, '\n', n - i);
        const size_t len = end ? (size_t)(end - chunk) + 1 - i : n - i;
        rc = lines_feed(l, chunk + i, len, take_line, r);
        i += len;
        if (end)
            r->done = place + (int64_t)i;
    }
    return rc;
}

static pl_status read_on(reader *r, int fd, size_t max_bytes, char *buffer, pl_error *err)
{
    lines l = {.max = LINE_MAX_BYTES};
    const int64_t begin = r->done;
    int64_t place = begin;
    pl_status st = PL_OK;
    int rc = 0;

    while (rc == 0 && (size_t)(place - begin) < max_bytes) {
        const size_t left = max_bytes - (size_t)(place - begin);
        const ssize_t n = pread(fd, buffer, left < READ_BYTES ? left : READ_BYTES, (off_t)place);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            st = pl_fail(err, PL_E_IO, "read trace.json: %s", strerror(errno));
        if (n <= 0)
            break;
        rc = feed(r, &l, buffer, (size_t)n, place);
        place += n;
    }
    if (l.is_skipping) /* a line without end: do not read it again and again */
        r->done = place;
    lines_done(&l);
    return st;
}

pl_status pl_timeline_read(const char *run_dir, int64_t *at, size_t max_bytes, int64_t from_us,
    pl_timeline_fn fn, void *ctx, pl_error *err)
{
    reader r = {.from_us = from_us, .done = *at > 0 ? *at : 0, .fn = fn, .ctx = ctx};
    char path[PATH_ROOM];
    struct stat s;
    pl_status st;

    if (snprintf(path, sizeof path, "%s/trace.json", run_dir) >= (int)sizeof path)
        return pl_fail(err, PL_E_IO, "'%s': name too long", run_dir);
    const int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return pl_fail(
            err, errno == ENOENT ? PL_E_NOENT : PL_E_IO, "open '%s': %s", path, strerror(errno));
    char *buffer = malloc(READ_BYTES);
    if (!buffer) {
        st = pl_fail(err, PL_E_NOMEM, "'%s': no memory", path);
    } else if (fstat(fd, &s) != 0 || !S_ISREG(s.st_mode)) {
        st = pl_fail(err, PL_E_IO, "'%s' is no file", path);
    } else {
        if (r.done > s.st_size)
            r.done = 0;
        st = read_on(&r, fd, max_bytes, buffer, err);
        *at = r.done;
    }
    pl_json_done(&r.detail);
    free(buffer);
    (void)close(fd);
    return st;
}
