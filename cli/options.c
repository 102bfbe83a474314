/* cli/options.c - getopt_long driven by one table a command, and the help from the same table. */
#include "cli/cli.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_OPTIONS = 48, HELP_COLUMN = 26 };

volatile sig_atomic_t cli_stop;

static void on_signal(int sig)
{
    (void)sig;
    cli_stop = cli_stop ? 2 : 1;
}

static void say_and_stop(int sig)
{
    static const char text[] = "\nstopping: the step at hand is finished or dropped first\n";

    on_signal(sig);
    if (cli_stop == 1 && write(STDERR_FILENO, text, sizeof text - 1) < 0)
        cli_stop = 2;
}

void cli_catch_signals(int quiet)
{
    struct sigaction a = {.sa_handler = quiet ? on_signal : say_and_stop};

    sigemptyset(&a.sa_mask);
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
    signal(SIGXFSZ, SIG_IGN); /* a write past ulimit -f fails, and is reported as one */
    if (quiet)                /* a process of a run outlives the terminal that it reports to */
        signal(SIGPIPE, SIG_IGN);
}

int cli_report(const pl_error *err)
{
    fflush(stdout);
    fprintf(stderr, "paceline: %s\n", err->msg);
    return pl_status_exit_code(err->code);
}

static void print_help(const char *usage, const cli_option *options)
{
    printf("usage: paceline %s\n\n", usage);
    for (; options->name; options++) {
        char left[64];
        snprintf(left, sizeof left, "--%s%s%s", options->name, options->meta ? " " : "",
            options->meta ? options->meta : "");
        printf("  %-*s %s\n", HELP_COLUMN, left, options->help);
    }
    printf("  %-*s %s\n", HELP_COLUMN, "--help", "this text");
}

static pl_status read_int(const cli_option *o, const char *text, pl_error *err)
{
    char *end;
    errno = 0;
    const long long v = strtoll(text, &end, 10);
    if (end == text || *end || errno || isspace((unsigned char)text[0]))
        return pl_fail(err, PL_E_USAGE, "--%s '%s' is not a whole number", o->name, text);
    if ((double)v < o->min || (double)v > o->max)
        return pl_fail(err, PL_E_USAGE, "--%s %lld is out of range, %.15g .. %.15g", o->name, v,
            o->min, o->max);
    *(int64_t *)o->value = v;
    return PL_OK;
}

static pl_status read_float(const cli_option *o, const char *text, pl_error *err)
{
    char *end;
    errno = 0;
    const double v = strtod(text, &end);
    if (end == text || *end || !(v - v == 0) || isspace((unsigned char)text[0]))
        return pl_fail(err, PL_E_USAGE, "--%s '%s' is not a number", o->name, text);
    if (v < o->min || v > o->max)
        return pl_fail(
            err, PL_E_USAGE, "--%s %g is out of range, %g .. %g", o->name, v, o->min, o->max);
    *(double *)o->value = v;
    return PL_OK;
}

static pl_status set_value(const cli_option *o, const char *text, pl_error *err)
{
    cli_list *list = o->value;

    switch (o->type) {
    case CLI_FLAG:
        *(int *)o->value = 1;
        return PL_OK;
    case CLI_INT:
        return read_int(o, text, err);
    case CLI_FLOAT:
        return read_float(o, text, err);
    case CLI_STRING:
        *(const char **)o->value = text;
        return PL_OK;
    case CLI_LIST:
        if (list->n == CLI_LIST_MAX)
            return pl_fail(
                err, PL_E_USAGE, "--%s is given more than %d times", o->name, (int)CLI_LIST_MAX);
        list->items[list->n++] = text;
        return PL_OK;
    }
    return PL_OK;
}

/* The words that a usage begins with: "drafter eval" of "drafter eval --model PATH". */
static int command_length(const char *usage)
{
    const char *p = usage;

    while (islower((unsigned char)*p))
        p += strcspn(p, " ") + (strchr(p, ' ') != NULL);
    while (p > usage && p[-1] == ' ')
        p--;
    return (int)(p - usage);
}

pl_status cli_parse(int argc, char **argv, const char *usage, const cli_option *options,
    int *n_positional, int *helped, pl_error *err)
{
    struct option longs[MAX_OPTIONS + 2] = {0};
    int n = 0, index = 0;

    for (; options[n].name && n < MAX_OPTIONS; n++)
        longs[n] = (struct option){options[n].name,
            options[n].type == CLI_FLAG ? no_argument : required_argument, NULL, 0};
    longs[n] = (struct option){"help", no_argument, NULL, 'h'};
    *helped = 0;
    optind = 1;
    opterr = 0;
    for (;;) {
        const int c = getopt_long(argc, argv, ":h", longs, &index);
        if (c < 0)
            break;
        if (c == 'h') {
            print_help(usage, options);
            *helped = 1;
            return PL_OK;
        }
        if (c == ':')
            return pl_fail(err, PL_E_USAGE, "%s wants a value", argv[optind - 1]);
        if (c == '?')
            return pl_fail(err, PL_E_USAGE, "unknown option '%s': paceline %.*s --help lists them",
                argv[optind - 1], command_length(usage), usage);
        const pl_status st = set_value(&options[index], optarg, err);
        if (st != PL_OK)
            return st;
    }
    *n_positional = argc - optind;
    memmove(argv + 1, argv + optind, (size_t)*n_positional * sizeof *argv);
    return PL_OK;
}
