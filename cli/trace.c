/* cli/trace.c - paceline trace verify | cat | stat | diff | export.
 *
 * verify also asks the run's ledger, when there is one: the head of the trace that it keeps of each
 * step must be on the trace's chain.  So a trace that was cut on the border of a block, which its
 * own chain cannot show, is damaged. */
#include "cli/trace.h"

#include "cli/cli.h"
#include "core/file.h"
#include "ipc/ipc.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_ROOM = 4096, EXIT_DAMAGED = 65 };

/* ---- the ledger's heads ---- */

typedef struct known_step {
    int64_t step;
    pl_hash head;
} known_step;

typedef struct ledger {
    known_step *steps;
    size_t n, room;
} ledger;

typedef struct chain {
    pl_journal_report report;
    int64_t first; /* steps done before this trace began */
    pl_hash *heads;
    size_t n, room;
} chain;

/* Room for one more element. */
static pl_status grow(void **array, size_t n, size_t *room, size_t size, pl_error *err)
{
    if (n < *room)
        return PL_OK;
    const size_t wanted = *room ? 2 * *room : 64;
    void *p = realloc(*array, wanted * size);
    if (!p)
        return pl_fail(err, PL_E_NOMEM, "no memory for %zu steps", wanted);
    *array = p;
    *room = wanted;
    return PL_OK;
}

static pl_status take_traced(void *ctx, const pl_journal_record *r, pl_error *err)
{
    ledger *l = ctx;
    pl_msg m;

    if (r->type / 2 != PL_MSG_TRACED ||
        pl_body_decode(&m, PL_MSG_TRACED, r->data, r->n, NULL) != PL_OK)
        return PL_OK;
    void *steps = l->steps;
    const pl_status st = grow(&steps, l->n, &l->room, sizeof *l->steps, err);
    l->steps = steps;
    if (st == PL_OK)
        l->steps[l->n++] = (known_step){(int64_t)m.u.traced.step, m.u.traced.head};
    return st;
}

static pl_status put_head(chain *c, pl_error *err)
{
    void *heads = c->heads;
    const pl_status st = grow(&heads, c->n, &c->room, sizeof *c->heads, err);

    c->heads = heads;
    if (st == PL_OK)
        memcpy(c->heads[c->n++].b, c->report.head, PL_HASH_BYTES);
    return st;
}

/* While block k is read, the report's head is that of block k - 1. */
static pl_status take_head(void *ctx, const pl_journal_record *r, pl_error *err)
{
    chain *c = ctx;
    return r->seq >= c->n ? put_head(c, err) : PL_OK;
}

static int by_bytes(const void *a, const void *b)
{
    return memcmp(a, b, sizeof(pl_hash));
}

/* A later record of the ledger is of the same step. */
static int is_said_again(const ledger *l, size_t i)
{
    for (size_t k = l->n; k > i + 1; k--)
        if (l->steps[k - 1].step == l->steps[i].step)
            return 1;
    return 0;
}

/* What the ledger knows and the trace's chain does not have, into what; 0 when there is nothing. */
static int contradict(const ledger *l, chain *c, int64_t last, char *what, size_t size)
{
    int64_t missing = 0;

    qsort(c->heads, c->n, sizeof *c->heads, by_bytes);
    for (size_t i = 0; i < l->n; i++) {
        const known_step *k = &l->steps[i];
        if (k->step <= c->first || is_said_again(l, i))
            continue; /* of a trace that was moved away, or of a step that was trained again */
        if (bsearch(&k->head, c->heads, c->n, sizeof *c->heads, by_bytes))
            continue;
        if (k->step <= last) {
            (void)snprintf(what, size,
                "the ledger knows another trace of step %" PRId64 ": its head is not on the chain",
                k->step);
            return 1;
        }
        missing = k->step > missing ? k->step : missing;
    }
    if (missing > 0)
        (void)snprintf(what, size, "cut after step %" PRId64 ", the ledger knows step %" PRId64,
            last, missing);
    return missing > 0;
}

/* The ledger is read first: what it knows was durable in the trace before. */
static pl_status read_ledger(ledger *l, const char *run, pl_error *err)
{
    char path[PATH_ROOM];
    const int n = snprintf(path, sizeof path, "%s/ledger/000001.journal", run);
    pl_error why = {0};

    if (n < 0 || n >= (int)sizeof path || !pl_path_exists(path))
        return PL_OK;
    const pl_status st = pl_journal_read(path, "PLLEDGR1", take_traced, l, NULL, &why);
    if (st == PL_E_NOMEM)
        return pl_fail(err, st, "%s", why.msg);
    if (st != PL_OK)
        fprintf(stderr, "paceline: not all of the ledger was compared: %s\n", why.msg);
    return PL_OK;
}

static pl_status take_first(void *ctx, const pl_trace_run *r, pl_error *err)
{
    chain *c = ctx;

    (void)err;
    c->first = c->first < 0 ? r->step : c->first;
    return PL_OK;
}

static pl_status ask_ledger(const ledger *l, const char *run, const pl_trace_report *r, char *what,
    size_t size, pl_error *err)
{
    char path[PATH_ROOM];
    chain c = {0};

    what[0] = '\0';
    const int n = snprintf(path, sizeof path, "%s/trace/000001.journal", run);
    if (l->n == 0 || r->state == PL_TRACE_DAMAGED || n < 0 || n >= (int)sizeof path)
        return PL_OK;
    pl_status st = pl_journal_read(path, "PLTRACE1", take_head, &c, &c.report, err);
    if (st == PL_OK)
        st = put_head(&c, err); /* of the last block */
    const pl_trace_visitor v = {.ctx = &c, .run = take_first};
    pl_trace_report report;
    c.first = -1;
    if (st == PL_OK)
        st = pl_trace_read(path, &v, &report, err);
    if (st == PL_OK)
        (void)contradict(l, &c, r->step, what, size);
    free(c.heads);
    return st;
}

/* ---- verify ---- */

static void print_verdict(const trace_options *o, const pl_trace_report *r, const char *cut)
{
    char name[PATH_ROOM], what[sizeof r->what];

    printf("%s: ", trace_clean(name, sizeof name, o->path));
    if (cut[0])
        printf("damaged: %s", cut);
    else if (r->state == PL_TRACE_DAMAGED)
        printf("damaged at block %" PRIu64 ", byte %" PRIu64 ": %s", r->journal.bad_seq,
            r->journal.bad_offset, trace_clean(what, sizeof what, r->what));
    else if (r->state == PL_TRACE_COMPLETE)
        printf("complete: %" PRId64 " steps", r->step);
    else
        printf("%s", trace_clean(what, sizeof what, r->what));
    printf("; %" PRId64 " sitting%s, %" PRId64 " steps (%" PRId64 " repeated), %" PRId64
           " samples, %" PRId64 " tokens in %" PRIu64 " bytes\n",
        r->n_runs, r->n_runs == 1 ? "" : "s", r->n_steps, r->n_repeated, r->n_samples, r->n_tokens,
        r->journal.n_bytes);
}

static const char *state_name(const pl_trace_report *r, const char *cut)
{
    return cut[0] || r->state == PL_TRACE_DAMAGED ? "damaged"
           : r->state == PL_TRACE_COMPLETE        ? "complete"
                                                  : "open";
}

static pl_status print_verdict_json(const pl_trace_report *r, const char *cut, pl_error *err)
{
    pl_json j = {0};
    const char *what = cut[0] ? cut : r->what;

    pl_json_text(&j, "{\"state\":\"");
    pl_json_text(&j, state_name(r, cut));
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
    ledger l = {0};
    char cut[256] = "";

    pl_status st = read_ledger(&l, o->path, err);
    if (st == PL_OK)
        st = pl_trace_read(o->path, NULL, &r, err);
    if (st == PL_E_FORMAT)
        st = PL_OK; /* that is the answer */
    if (st == PL_OK)
        st = ask_ledger(&l, o->path, &r, cut, sizeof cut, err);
    free(l.steps);
    if (st != PL_OK)
        return st;
    if (cut[0] || r.state == PL_TRACE_DAMAGED)
        *exit_code = EXIT_DAMAGED;
    if (o->json)
        return print_verdict_json(&r, cut, err);
    print_verdict(o, &r, cut);
    return PL_OK;
}

/* ---- the command ---- */

typedef struct verb {
    const char *name, *usage;
    pl_status (*run)(const trace_options *o, int *exit_code, pl_error *err);
    int n_paths;
    const char *summary;
} verb;

static const verb verbs[] = {
    {"verify", "trace verify RUN [--json]", trace_verify, 1,
        "complete, open at step N, or damaged at ... (exit 65)"},
    {"cat", "trace cat RUN [--step N] [--sample UID] [--tokens] [--json]", trace_cat, 1,
        "its records"},
    {"stat", "trace stat RUN [--json]", trace_stat, 1,
        "steps, sizes, acceptance length, what passes cost"},
    {"diff", "trace diff RUN RUN [--all] [--json]", trace_diff, 2,
        "the first sample that differs (exit 1)"},
    {"export", "trace export RUN [--step N] [--sample UID]", trace_export, 1,
        "samples as JSON lines, for other tools"},
};
enum { N_VERBS = sizeof verbs / sizeof verbs[0] };

static void print_verbs(void)
{
    printf("usage: paceline trace VERB RUN (a run directory, or a trace file of one)\n\n");
    for (int i = 0; i < N_VERBS; i++)
        printf("  %-8s %s\n", verbs[i].name, verbs[i].summary);
    printf("\npaceline trace VERB --help shows its options.\n");
}

static pl_status parse(
    int argc, char **argv, const verb *v, trace_options *o, int *helped, pl_error *err)
{
    const cli_option options[] = {
        {"step", CLI_INT, &o->step, 1, 9e15, "N", "this step alone (cat, export)"},
        {"sample", CLI_INT, &o->sample, 0, UINT32_MAX, "UID", "this sample alone (cat, export)"},
        {"tokens", CLI_FLAG, &o->tokens, 0, 0, NULL,
            "token ids too, marked s (suffix) or l (learned) by who proposed them (cat)"},
        {"all", CLI_FLAG, &o->all, 0, 0, NULL,
            "also what may differ: spec_ counters, sources, times, workers (diff)"},
        {"json", CLI_FLAG, &o->json, 0, 0, NULL, "one object a line"},
        {0},
    };
    int n;

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
