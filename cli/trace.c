/* cli/trace.c - paceline trace verify | cat | stat | diff | export.
 *
 * verify also asks the run's ledger (cli/trace_ledger.c), and always says whether it could. */
#include "cli/trace.h"

#include "cli/cli.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { PATH_ROOM = 4096, EXIT_DAMAGED = 65 };

/* ---- verify ---- */

static void print_verdict(const trace_options *o, const pl_trace_report *r, const trace_ledger *l)
{
    char name[PATH_ROOM], what[sizeof r->what];

    printf("%s: ", trace_clean(name, sizeof name, o->path));
    if (l->is_contrary)
        printf("damaged: %s", l->cut);
    else if (r->state == PL_TRACE_DAMAGED)
        printf("damaged at block %" PRIu64 ", byte %" PRIu64 ": %s", r->journal.bad_seq,
            r->journal.bad_offset, trace_clean(what, sizeof what, r->what));
    else if (r->state == PL_TRACE_COMPLETE)
        printf("complete: %" PRId64 " step%s", r->step, trace_s(r->step));
    else
        printf("%s", trace_clean(what, sizeof what, r->what));
    printf("; %" PRId64 " sitting%s, %" PRId64 " step%s (%" PRId64 " repeated), %" PRId64
           " sample%s, %" PRId64 " token%s in %" PRIu64 " bytes; %s\n",
        r->n_runs, trace_s(r->n_runs), r->n_steps, trace_s(r->n_steps), r->n_repeated, r->n_samples,
        trace_s(r->n_samples), r->n_tokens, trace_s(r->n_tokens), r->journal.n_bytes,
        trace_clean(name, sizeof name, l->said));
}

static const char *state_name(const pl_trace_report *r, const trace_ledger *l)
{
    return l->is_contrary || r->state == PL_TRACE_DAMAGED ? "damaged"
           : r->state == PL_TRACE_COMPLETE                ? "complete"
                                                          : "open";
}

static pl_status print_verdict_json(const pl_trace_report *r, const trace_ledger *l, pl_error *err)
{
    pl_json j = {0};
    const char *what = l->is_contrary ? l->cut : r->what;

    pl_json_text(&j, "{\"state\":\"");
    pl_json_text(&j, state_name(r, l));
    trace_json_int(&j, "\",\"step\":", r->step);
    trace_json_int(&j, ",\"runs\":", r->n_runs);
    trace_json_int(&j, ",\"steps\":", r->n_steps);
    trace_json_int(&j, ",\"repeated\":", r->n_repeated);
    trace_json_int(&j, ",\"samples\":", r->n_samples);
    trace_json_int(&j, ",\"tokens\":", r->n_tokens);
    trace_json_int(&j, ",\"bytes\":", (int64_t)r->journal.n_bytes);
    trace_json_int(&j, ",\"blocks\":", (int64_t)r->journal.n_blocks);
    if (r->journal.state != PL_JOURNAL_WHOLE) {
        trace_json_int(&j, ",\"bad_block\":", (int64_t)r->journal.bad_seq);
        trace_json_int(&j, ",\"bad_offset\":", (int64_t)r->journal.bad_offset);
        trace_json_int(&j, ",\"torn_bytes\":", (int64_t)r->journal.torn_bytes);
    }
    pl_json_text(&j, ",\"what\":");
    trace_json_string(&j, what, strlen(what));
    pl_json_text(&j, ",\"ledger\":");
    trace_json_string(&j, l->said, strlen(l->said));
    pl_json_text(&j, "}\n");
    const pl_status st = pl_json_check(&j, "verdict", err);
    if (st == PL_OK)
        fwrite(j.data, 1, j.n, stdout);
    pl_json_done(&j);
    return st;
}

pl_status trace_verify(const trace_options *o, int *exit_code, pl_error *err)
{
    pl_trace_report r;
    trace_ledger l;

    const pl_status st = trace_check(o->path, &r, &l, err);
    if (st != PL_OK)
        return st;
    if (l.is_contrary || r.state == PL_TRACE_DAMAGED)
        *exit_code = EXIT_DAMAGED;
    else if (l.is_unknown)
        *exit_code = pl_status_exit_code(PL_E_IO);
    if (o->json)
        return print_verdict_json(&r, &l, err);
    print_verdict(o, &r, &l);
    return PL_OK;
}

/* ---- the command ---- */

typedef struct verb {
    const char *name, *usage;
    pl_status (*run)(const trace_options *o, int *exit_code, pl_error *err);
    int n_paths;
    const char *options; /* names, each between blanks */
    const char *summary;
} verb;

static const verb verbs[] = {
    {"verify", "trace verify RUN [--json]", trace_verify, 1, " json ",
        "complete, open at step N, or damaged at ... (exit 65; 74: the ledger cannot be asked)"},
    {"cat", "trace cat RUN [--step N] [--sample UID] [--tokens] [--json]", trace_cat, 1,
        " step sample tokens json ", "its records"},
    {"stat", "trace stat RUN [--json]", trace_stat, 1, " json ",
        "steps, sizes, acceptance length, what passes cost"},
    {"diff", "trace diff RUN RUN [--all] [--json]", trace_diff, 2, " all json ",
        "the first sample that differs (exit 1)"},
    {"export", "trace export RUN [--step N] [--sample UID]", trace_export, 1, " step sample ",
        "samples as JSON lines, for other tools; prompts and log-probs stand in RUN/rollouts/"},
};
enum { N_VERBS = sizeof verbs / sizeof verbs[0] };

static void print_verbs(void)
{
    printf("usage: paceline trace VERB RUN (a run directory, or a trace file of one)\n\n");
    for (int i = 0; i < N_VERBS; i++)
        printf("  %-8s %s\n", verbs[i].name, verbs[i].summary);
    printf("\npaceline trace VERB --help shows its options.\n");
}

/* The options of a verb alone: another one is refused, not passed over. */
static int has_option(const verb *v, const char *name)
{
    char word[16];

    (void)snprintf(word, sizeof word, " %s ", name);
    return strstr(v->options, word) != NULL;
}

static pl_status parse(
    int argc, char **argv, const verb *v, trace_options *o, int *helped, pl_error *err)
{
    const cli_option all[] = {
        {"step", CLI_INT, &o->step, 1, 9e15, "N", "this step alone"},
        {"sample", CLI_INT, &o->sample, 0, UINT32_MAX, "UID", "this sample alone"},
        {"tokens", CLI_FLAG, &o->tokens, 0, 0, NULL,
            "token ids too, marked s (suffix) or l (learned) by who proposed them"},
        {"all", CLI_FLAG, &o->all, 0, 0, NULL,
            "also what may differ: spec_ counters, sources, times, workers"},
        {"json", CLI_FLAG, &o->json, 0, 0, NULL, "one object a line"},
        {0},
    };
    cli_option options[sizeof all / sizeof all[0]] = {{0}};
    int n = 0;

    for (int i = 0; all[i].name; i++)
        if (has_option(v, all[i].name))
            options[n++] = all[i];
    const pl_status st = cli_parse(argc, argv, v->usage, options, &n, helped, err);
    if (st != PL_OK || *helped)
        return st;
    if (n != v->n_paths)
        return pl_fail(err, PL_E_USAGE, "trace %s wants %s", v->name,
            v->n_paths == 1 ? "one run directory or trace file"
                            : "two run directories or trace files");
    o->path = argv[1];
    o->other = v->n_paths > 1 ? argv[2] : NULL;
    return PL_OK;
}

int cmd_trace(int argc, char **argv)
{
    trace_options o = {.sample = -1};
    const verb *v = NULL;
    pl_error err = {0};
    int helped = 0, exit_code = 0;

    for (int i = 0; i < N_VERBS && argc > 1; i++)
        if (strcmp(argv[1], verbs[i].name) == 0)
            v = &verbs[i];
    if (!v && argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        print_verbs();
        return 0;
    }
    if (!v) {
        pl_error_set(&err, PL_E_USAGE,
            "trace wants one of verify, cat, stat, diff, export (trace verify --help)");
        return cli_report(&err);
    }
    pl_status st = parse(argc - 1, argv + 1, v, &o, &helped, &err);
    if (st == PL_OK && helped)
        return 0;
    if (st == PL_OK)
        st = v->run(&o, &exit_code, &err);
    if (st == PL_OK)
        st = cli_flush(&err);
    return st == PL_OK ? exit_code : cli_report(&err);
}
