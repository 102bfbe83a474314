/* monitor/metrics.c - metrics.jsonl: whole lines appended, lines of undone steps cut off. */
#define _GNU_SOURCE
#include "core/file.h"
#include "core/json.h"
#include "monitor/monitor.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH_ROOM = 4096 };
#define FILE_MAX_BYTES ((size_t)4 << 30)

struct pl_metrics {
    int fd;
    off_t size; /* of the file, all of it whole lines */
    pl_json line;
    char path[PATH_ROOM];
};

static pl_status fail_io(const pl_metrics *m, const char *verb, int code, pl_error *err)
{
    return pl_fail(err, PL_E_IO, "%s '%s': %s", verb, m->path,
        code == ENOSPC ? "disk full; free space there" : strerror(code));
}

/* Step of a line as pl_metrics_put writes it; -1 when it is none of ours. */
static int64_t step_of(const char *line, size_t n)
{
    static const char head[] = "{\"step\":";
    const size_t len = sizeof head - 1;
    int64_t step = 0;

    if (n <= len || memcmp(line, head, len) != 0 || line[len] < '0' || line[len] > '9')
        return -1;
    for (size_t i = len; i < n && line[i] >= '0' && line[i] <= '9'; i++) {
        if (step > INT64_MAX / 10 - 1)
            return -1;
        step = 10 * step + (line[i] - '0');
    }
    return step;
}

/* Bytes to keep: up to the first line of a later step, or the line that does not end.  Lines that
 * somebody else wrote are left where they stand. */
static size_t kept_bytes(const char *text, size_t n, int64_t last_step)
{
    size_t at = 0;

    while (last_step >= 0 && at < n) {
        const char *end = memchr(text + at, '\n', n - at);
        if (!end || step_of(text + at, (size_t)(end - (text + at))) > last_step)
            break;
        at = (size_t)(end - text) + 1;
    }
    return at;
}

static pl_status cut(pl_metrics *m, int64_t last_step, pl_error *err)
{
    char *text = NULL;
    size_t n = 0;
    int rc;
    const pl_status st = pl_file_read(&text, &n, m->path, FILE_MAX_BYTES, err);

    if (st != PL_OK)
        return st;
    m->size = (off_t)kept_bytes(text, n, last_step);
    free(text);
    if ((size_t)m->size == n)
        return PL_OK;
    do
        rc = ftruncate(m->fd, m->size);
    while (rc != 0 && errno == EINTR);
    return rc == 0 ? PL_OK : fail_io(m, "truncate", errno, err);
}

pl_status pl_metrics_open(pl_metrics **out, const char *run_dir, int64_t last_step, pl_error *err)
{
    pl_metrics *m = calloc(1, sizeof *m);

    if (!m)
        return pl_fail(err, PL_E_NOMEM, "metrics of '%s'", run_dir);
    m->fd = -1;
    if (snprintf(m->path, sizeof m->path, "%s/metrics.jsonl", run_dir) >= (int)sizeof m->path) {
        pl_metrics_close(m);
        return pl_fail(err, PL_E_IO, "'%s': name too long", run_dir);
    }
    do
        m->fd = open(m->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    while (m->fd < 0 && errno == EINTR);
    if (m->fd < 0) {
        const int code = errno;
        const pl_status st = code == ENOENT ? pl_fail(err, PL_E_NOENT,
                                                  "open '%s': the directory is not there", m->path)
                                            : fail_io(m, "open", code, err);
        pl_metrics_close(m);
        return st;
    }
    const pl_status st = cut(m, last_step, err);
    if (st != PL_OK) {
        pl_metrics_close(m);
        return st;
    }
    *out = m;
    return PL_OK;
}

pl_status pl_metrics_put(
    pl_metrics *m, int64_t step, const pl_metric *metrics, int n, pl_error *err)
{
    ssize_t written;

    pl_json_clear(&m->line);
    pl_json_text(&m->line, "{\"step\":");
    pl_json_int(&m->line, step);
    for (int i = 0; i < n; i++) {
        pl_json_text(&m->line, ",");
        pl_json_string(&m->line, metrics[i].name, strlen(metrics[i].name));
        pl_json_text(&m->line, ":");
        pl_json_double(&m->line, metrics[i].value);
    }
    pl_json_text(&m->line, "}\n");
    const pl_status st = pl_json_check(&m->line, "metrics", err);
    if (st != PL_OK)
        return st;
    do
        written = write(m->fd, m->line.data, m->line.n);
    while (written < 0 && errno == EINTR);
    if (written == (ssize_t)m->line.n) {
        m->size += written;
        return PL_OK;
    }
    const int code = written < 0 ? errno : ENOSPC;
    if (written > 0 && ftruncate(m->fd, m->size) != 0)
        return fail_io(m, "truncate", errno, err); /* the torn line goes at the next open */
    return fail_io(m, "write", code, err);
}

void pl_metrics_close(pl_metrics *m)
{
    if (!m)
        return;
    if (m->fd >= 0)
        (void)close(m->fd);
    pl_json_done(&m->line);
    free(m);
}
