/* cli/monitor.c - paceline monitor: look into a run, live or over.
 *
 * It reads files (or asks the server that another monitor is), and can do nothing to the run. */
#include "cli/monitor.h"
#include "cli/monitor_web.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { STEPS_AT_FIRST = 10 /* lines of what was before */ };

typedef struct monitor_options {
    const char *where, *address, *token_file;
    int as_json, once, web;
    double interval_s; /* 0: what suits the output */
} monitor_options;

static int is_over(const pl_view_data *d)
{
    return d->life == PL_VIEW_FINISHED || d->life == PL_VIEW_STOPPED || d->life == PL_VIEW_DEAD;
}

/* ---- lines ---- */

static void add_steps(const pl_view_data *d, int64_t *last_step, pl_json *out)
{
    int first = d->n_steps;

    while (first > 0 && d->steps[first - 1] > *last_step)
        first--;
    if (*last_step < 0 && d->n_steps - first > STEPS_AT_FIRST)
        first = d->n_steps - STEPS_AT_FIRST;
    for (int i = first; i < d->n_steps; i++)
        pl_view_step_line(d, i, out);
    if (d->n_steps > 0)
        *last_step = d->steps[d->n_steps - 1];
}

static pl_status print_look(
    const monitor_source *s, const monitor_options *o, int64_t *last_step, pl_error *err)
{
    const pl_view_data *d = monitor_source_data(s);
    pl_json out = {0};

    if (o->as_json) {
        pl_view_json(d, &out);
    } else {
        add_steps(d, last_step, &out);
        pl_view_now_line(d, &out);
    }
    pl_status st = pl_json_check(&out, "the line", err);
    if (st == PL_OK && d->note && d->note[0] && !o->as_json)
        fprintf(stderr, "paceline: %s\n", d->note);
    if (st == PL_OK) {
        (void)fwrite(out.data, 1, out.n, stdout);
        errno = 0;
        st = cli_flush(err);
        if (st != PL_OK && errno == EPIPE)
            st = PL_E_STOPPED; /* nobody reads any more: a good end */
    }
    pl_json_done(&out);
    return st;
}

/* A look every interval, until the run is over or nobody reads. */
static pl_status print_lines(monitor_source *s, const monitor_options *o, pl_error *err)
{
    const double interval_s = o->interval_s > 0 ? o->interval_s : o->as_json ? 1.0 : 5.0;
    int64_t last_step = -1;

    cli_catch_signals(1);
    for (;;) {
        pl_error why = {0};
        const pl_status looked = monitor_source_poll(s, &why);
        const int is_new = monitor_source_data(s)->now == NULL;
        if (looked != PL_OK && (o->once || is_new)) { /* a server that was never reached */
            *err = why;
            return looked;
        }
        const pl_status st = print_look(s, o, &last_step, err);
        if (st != PL_OK)
            return st;
        if (o->once || cli_stop || (is_over(monitor_source_data(s)) && looked == PL_OK))
            return PL_OK;
        (void)poll(NULL, 0, (int)(1000 * interval_s));
        if (cli_stop)
            return PL_OK;
    }
}

/* ---- the command ---- */

static int is_directory(const char *path)
{
    struct stat s;
    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

static pl_status take_places(monitor_options *o, int argc, char **argv, int n, pl_error *err)
{
    (void)argc;
    if (n < 1 || n > (o->web ? 2 : 1))
        return pl_fail(err, PL_E_USAGE, "monitor wants RUN_DIR or http://HOST:PORT");
    o->where = argv[1];
    o->address = n > 1 ? argv[2] : NULL;
    if (o->address && !is_directory(o->where) && is_directory(o->address)) { /* --web ADDR RUN */
        o->address = argv[1];
        o->where = argv[2];
    }
    if (o->web && (o->as_json || o->once))
        return pl_fail(err, PL_E_USAGE, "--web serves the page: --json and --once print");
    if (o->token_file && !o->web && !strstr(o->where, "://"))
        return pl_fail(err, PL_E_USAGE, "--token-file is for --web and for http://HOST:PORT");
    if (o->web && strstr(o->where, "://"))
        return pl_fail(err, PL_E_USAGE, "--web wants RUN_DIR: open '%s' in a browser", o->where);
    return PL_OK;
}

static pl_status watch(const monitor_options *o, pl_error *err)
{
    const char *term = getenv("TERM");
    monitor_source *s = NULL;

    pl_status st = monitor_source_open(&s, o->where, o->token_file, err);
    if (st != PL_OK)
        return st;
    const int is_screen = isatty(STDOUT_FILENO) && !o->as_json && !o->once && term && term[0] &&
                          strcmp(term, "dumb") != 0;
    st = is_screen ? monitor_screen(s, o->interval_s > 0 ? o->interval_s : 0.5, err)
                   : print_lines(s, o, err);
    monitor_source_close(s);
    return st;
}

int cmd_monitor(int argc, char **argv)
{
    monitor_options o = {0};
    int n, helped;
    const cli_option options[] = {
        {"json", CLI_FLAG, &o.as_json, 0, 0, NULL,
            "one JSON object a line: the snapshot and the newest metrics"},
        {"once", CLI_FLAG, &o.once, 0, 0, NULL, "look once"},
        {"interval", CLI_FLOAT, &o.interval_s, 0.05, 3600, "S",
            "seconds between two looks: 0.5 on a terminal, 5, with --json 1"},
        {"web", CLI_FLAG, &o.web, 0, 0, NULL,
            "serve the page instead, at ADDR (127.0.0.1:8780): monitor RUN_DIR --web [ADDR]"},
        {"token-file", CLI_STRING, &o.token_file, 0, 0, "FILE",
            "the token that the server wants, or is to want from everybody"},
        {0},
    };
    pl_error err = {0};

    pl_status st = cli_parse(
        argc, argv, "monitor RUN_DIR|http://HOST:PORT [options]", options, &n, &helped, &err);
    if (st == PL_OK && helped)
        return 0;
    if (st == PL_OK)
        st = take_places(&o, argc, argv, n, &err);
    if (st == PL_OK && o.web)
        return monitor_web_serve(o.where, o.address, o.token_file);
    if (st == PL_OK)
        st = watch(&o, &err);
    return st == PL_OK || st == PL_E_STOPPED ? 0 : cli_report(&err);
}
