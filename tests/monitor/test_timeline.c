/* Claims: trace.json is an array of Chrome's trace events as soon as a bracket closes it, whatever
 * the names hold, however many processes write it, and after a full disk; it stops at its bound and
 * says so once; what is read back is what was written, and hostile lines are passed over. */
#include "core/file.h"
#include "monitor/monitor.h"

#include <criterion/criterion.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[] = "/tmp/pl_timeline_XXXXXX";
static char path[128];
static pl_error err;

static void begin(void)
{
    cr_assert_not_null(mkdtemp(dir));
    cr_assert(snprintf(path, sizeof path, "%s/trace.json", dir) > 0);
}

static void end(void)
{
    cr_assert_eq(pl_dir_remove(dir, &err), PL_OK, "%s", err.msg);
}

TestSuite(timeline, .init = begin, .fini = end);

static pl_timeline *open_timeline(size_t max_bytes)
{
    pl_timeline *t = NULL;
    cr_assert_eq(pl_timeline_open(&t, dir, max_bytes, &err), PL_OK, "%s", err.msg);
    return t;
}

/* The whole array, once it is closed. */
static json_t *parse(void)
{
    json_error_t cause;
    char *text;
    size_t n;

    cr_assert_eq(pl_file_read(&text, &n, path, 64 << 20, &err), PL_OK, "%s", err.msg);
    cr_assert(n > 4 && strcmp(text + n - 2, ",\n") == 0);
    text[n - 2] = ']';
    json_t *all = json_loadb(text, n - 1, JSON_REJECT_DUPLICATES, &cause);
    cr_assert_not_null(all, "%s at %d", cause.text, cause.position);
    free(text);
    return all;
}

static int count(const json_t *all, const char *phase)
{
    int n = 0;
    for (size_t i = 0; i < json_array_size(all); i++)
        n += strcmp(json_string_value(json_object_get(json_array_get(all, i), "ph")), phase) == 0;
    return n;
}

static const char *text_of(const json_t *o, const char *key)
{
    return json_string_value(json_object_get(o, key));
}

Test(timeline, events_are_complete_and_tracks_have_their_names_once)
{
    pl_timeline *t = open_timeline(1 << 20);

    pl_timeline_put(t, "worker-0", "rollout", 1000, 250, "{\"step\":1}");
    pl_timeline_put(t, "worker-0", "a \"quoted\"\n\\ name \xff", 2000, -5, "{\"torn\":");
    pl_timeline_put(t, "trainer", "update", 3000, 7, NULL);
    pl_timeline_close(t);
    json_t *all = parse();
    cr_assert_eq(count(all, "X"), 3);
    cr_assert_eq(count(all, "M"), 3); /* of the process and two threads */
    const json_t *first = json_array_get(all, 2), *second = json_array_get(all, 3);
    cr_assert_str_eq(text_of(first, "name"), "rollout");
    cr_assert_eq(json_integer_value(json_object_get(first, "ts")), 1000);
    cr_assert_eq(json_integer_value(json_object_get(first, "dur")), 250);
    cr_assert_eq(json_integer_value(json_object_get(json_object_get(first, "args"), "step")), 1);
    cr_assert_str_eq(text_of(second, "name"), "a \"quoted\"\n\\ name \xef\xbf\xbd");
    cr_assert_eq(json_integer_value(json_object_get(second, "dur")), 0);
    cr_assert_null(json_object_get(second, "args"));
    const json_t *name = json_array_get(all, 1);
    cr_assert_str_eq(text_of(json_object_get(name, "args"), "name"), "worker-0");
    cr_assert(json_equal(json_object_get(name, "tid"), json_object_get(first, "tid")));
    json_decref(all);
}

Test(timeline, several_processes_write_one_array)
{
    enum { WRITERS = 3, EVENTS = 300 };
    int status;

    for (int i = 0; i < WRITERS; i++) {
        if (fork() != 0)
            continue;
        pl_timeline *t = NULL;
        if (pl_timeline_open(&t, dir, 1 << 20, NULL) != PL_OK)
            _exit(1);
        for (int k = 0; k < EVENTS; k++)
            pl_timeline_put(t, k % 2 ? "shared" : i ? "a" : "b", "work", k, 1, "{\"k\":1}");
        pl_timeline_close(t);
        _exit(0);
    }
    for (int i = 0; i < WRITERS; i++)
        cr_assert(wait(&status) > 0 && status == 0);
    json_t *all = parse();
    cr_assert_eq(count(all, "X"), WRITERS * EVENTS);
    cr_assert_eq(count(all, "M"), 1 + 2 * WRITERS);
    json_decref(all);
}

Test(timeline, it_stops_at_its_bound_and_says_so_once)
{
    enum { BOUND = 4096 };
    pl_timeline *a = open_timeline(BOUND), *b = open_timeline(BOUND);
    char *text;
    size_t n;

    for (int i = 0; i < 100; i++) {
        pl_timeline_put(a, "a", "event", i, 1, NULL);
        pl_timeline_put(b, "b", i % 2 ? "e" : "a longer name of an event", i, 1, NULL);
    }
    pl_timeline_close(a);
    pl_timeline_close(b);
    cr_assert_eq(pl_file_read(&text, &n, path, 1 << 20, &err), PL_OK);
    cr_assert(n <= BOUND && n > BOUND - 512, "%zu", n);
    const char *said = strstr(text, "events dropped");
    cr_assert_not_null(said);
    cr_assert_null(strstr(said + 1, "events dropped"));
    free(text);
    json_t *all = parse();
    cr_assert_eq(count(all, "i"), 1);
    json_decref(all);
    pl_timeline_close(open_timeline(10)); /* no room for anything */
}

Test(timeline, a_full_disk_and_a_torn_end_leave_whole_events)
{
    struct rlimit before;
    FILE *f;

    (void)signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(getrlimit(RLIMIT_FSIZE, &before), 0);
    pl_timeline *t = open_timeline(1 << 20);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &(struct rlimit){300, before.rlim_max}), 0);
    for (int i = 0; i < 5; i++)
        pl_timeline_put(t, "a", "event", i, 1, NULL);
    json_decref(parse());
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &before), 0);
    pl_timeline_put(t, "a", "after", 9, 1, NULL);
    pl_timeline_close(t);
    f = fopen(path, "a");
    cr_assert(f && fputs("{\"name\":\"to", f) >= 0 && fclose(f) == 0);
    t = open_timeline(1 << 20);
    pl_timeline_put(t, "a", "at last", 10, 1, NULL);
    pl_timeline_close(t);
    json_t *all = parse();
    const json_t *last = json_array_get(all, json_array_size(all) - 1);
    cr_assert_str_eq(text_of(last, "name"), "at last");
    json_decref(all);
}

typedef struct heard {
    int n, enough;
    int64_t last_us;
    char names[256], details[256];
} heard;

static int hear(void *ctx, const pl_timeline_event *e)
{
    heard *x = ctx;

    x->n++;
    x->last_us = e->begin_us;
    strncat(x->names, e->track, sizeof x->names - strlen(x->names) - 1);
    strncat(x->names, ":", sizeof x->names - strlen(x->names) - 1);
    strncat(x->names, e->name, sizeof x->names - strlen(x->names) - 1);
    strncat(x->names, " ", sizeof x->names - strlen(x->names) - 1);
    strncat(x->details, e->detail, sizeof x->details - strlen(x->details) - 1);
    return x->n == x->enough;
}

Test(timeline, what_was_written_is_read_back_and_followed)
{
    pl_timeline *t = open_timeline(1 << 20);
    heard x = {0}, late = {0}, one = {.enough = 1};
    int64_t at = 0, again = 0;

    cr_assert_eq(pl_timeline_read("/nowhere", &at, 1 << 20, 0, hear, &x, &err), PL_E_NOENT);
    pl_timeline_put(
        t, "w", "first", 1000, 100, "{\"a\":\"\\u0041\",\"b\":[1],\"c\":1e2,\"d\":null}");
    pl_timeline_put(t, "w", "esc\x1b[31m", 2000, 100, NULL);
    cr_assert_eq(pl_timeline_read(dir, &at, 1 << 20, 0, hear, &x, &err), PL_OK, "%s", err.msg);
    cr_assert_str_eq(x.names, "w:first w:esc?[31m ");
    cr_assert_str_eq(x.details, "{\"a\":\"A\",\"c\":100,\"d\":null}");
    cr_assert_eq(pl_timeline_read(dir, &at, 1 << 20, 0, hear, &x, &err), PL_OK);
    cr_assert_eq(x.n, 2);
    pl_timeline_put(t, "v", "third", 3000, 100, NULL);
    cr_assert_eq(pl_timeline_read(dir, &at, 1 << 20, 0, hear, &x, &err), PL_OK);
    cr_assert_str_eq(x.names, "w:first w:esc?[31m v:third ");
    cr_assert_eq(pl_timeline_read(dir, &again, 1 << 20, 2050, hear, &late, &err), PL_OK);
    cr_assert_eq(late.n, 2);
    again = 0;
    cr_assert_eq(pl_timeline_read(dir, &again, 1 << 20, 0, hear, &one, &err), PL_OK);
    cr_assert_eq(one.n, 1);
    cr_assert_eq(pl_timeline_read(dir, &again, 1 << 20, 0, hear, &one, &err), PL_OK);
    cr_assert_eq(one.n, 3);
    again = 1 << 30; /* of a file that was longer */
    cr_assert_eq(pl_timeline_read(dir, &again, 1 << 20, 2950, hear, &one, &err), PL_OK);
    cr_assert_eq(one.n, 4);
    pl_timeline_close(t);
}

Test(timeline, lines_that_are_no_events_are_passed_over)
{
    const size_t n = 64 << 10;
    char *long_line = malloc(n + 1);
    heard x = {0};
    int64_t at = 0;
    FILE *f = fopen(path, "w");

    cr_assert(f && long_line);
    memset(long_line, '[', n);
    long_line[n] = '\0';
    fprintf(f,
        "[\nno\n{}\n{\"ph\":\"X\"},\n{\"ph\":\"X\",\"ts\":-1,\"dur\":1},\n"
        "{\"ph\":\"X\",\"ts\":1,\"dur\":1e99},\n{\"ph\":\"X\",\"ts\":1,\"dur\":1} x\n"
        "{\"ph\":1,\"ts\":1,\"dur\":1}\n%s\n{\"ph\":\"X\",\"ts\":1,\"dur\":2,\"name\":3}\n%s",
        long_line, long_line);
    cr_assert_eq(fclose(f), 0);
    cr_assert_eq(pl_timeline_read(dir, &at, 1 << 30, 0, hear, &x, &err), PL_OK);
    cr_assert_eq(x.n, 1);
    cr_assert_str_eq(x.names, ": ");
    const int64_t before = at;
    cr_assert_eq(pl_timeline_read(dir, &at, 1 << 30, 0, hear, &x, &err), PL_OK);
    cr_assert_eq(at, before); /* at the end, past a line that does not */
    free(long_line);
}
