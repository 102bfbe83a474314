/* monitor/web_timeline.c - the end of RUN/trace.json, as short rows for the page. */
#include "monitor/web_internal.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { EVENTS = 8000 };
#define TAIL_BYTES ((size_t)1 << 20) /* of the file, in one answer */

typedef struct sink {
    pl_json *j;
    int n;
} sink;

static int put_event(void *ctx, const pl_timeline_event *e)
{
    sink *k = ctx;

    pl_json_text(k->j, k->n == 0 ? "[" : ",[");
    pl_json_string(k->j, e->track, strlen(e->track));
    pl_json_text(k->j, ",");
    pl_json_string(k->j, e->name, strlen(e->name));
    pl_json_text(k->j, ",");
    pl_json_int(k->j, e->begin_us);
    pl_json_text(k->j, ",");
    pl_json_int(k->j, e->us);
    pl_json_text(k->j, "]");
    return ++k->n == EVENTS;
}

static int64_t file_size(const char *run_dir)
{
    char path[4096];
    struct stat s;

    snprintf(path, sizeof path, "%s/trace.json", run_dir);
    return stat(path, &s) == 0 ? (int64_t)s.st_size : 0;
}

/* No event was found in it: is it one of ours that has none yet? */
static int is_damaged(const char *run_dir, int64_t size)
{
    enum { HEAD_BYTES = 4096 }; /* more than what stands before the first event */
    char path[4096], first = 0;

    snprintf(path, sizeof path, "%s/trace.json", run_dir);
    FILE *f = fopen(path, "re");
    const size_t n = f ? fread(&first, 1, 1, f) : 0;
    if (f)
        fclose(f);
    return size > HEAD_BYTES || (n == 1 && first != '[');
}

/* {"next":byte to go on from,"size":bytes,"events":[[track,name,begin_us,us],...]}, and
 * "damaged":true when there is no event in what is no timeline.
 *
 * The page's own place is kept as long as it is in the tail; a line that is entered in its middle
 * is no event, and passed over. */
pl_status web_timeline(pl_json *j, const char *run_dir, int64_t from, pl_error *err)
{
    const int64_t size = file_size(run_dir), tail = size - (int64_t)TAIL_BYTES;
    int64_t at = from >= 0 && from <= size ? from : 0;
    sink k = {.j = j};

    if (at < tail)
        at = tail;
    pl_json_text(j, "{\"events\":[");
    const pl_status st = pl_timeline_read(run_dir, &at, TAIL_BYTES, 0, put_event, &k, err);
    pl_json_text(j, "],\"next\":");
    pl_json_int(j, at);
    pl_json_text(j, ",\"size\":");
    pl_json_int(j, size);
    pl_json_text(
        j, k.n == 0 && from < 0 && is_damaged(run_dir, size) ? ",\"damaged\":true}\n" : "}\n");
    return st;
}
