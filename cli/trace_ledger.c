/* cli/trace_ledger.c - a trace compared with what the run's ledger knows of it.
 *
 * The ledger of a run with worker processes has the head of the trace of each step: it must be on
 * the trace's chain.  So a trace that was cut on the border of a block, which its own chain cannot
 * show, is damaged.  Steps of a run in one process are in no ledger. */
#include "cli/trace.h"

#include "core/file.h"
#include "ipc/ipc.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { PATH_ROOM = 4096 };

typedef struct known_step {
    int64_t step;
    pl_hash head;
} known_step;

typedef struct ledger {
    known_step *steps; /* [n] rising, as they were said last */
    size_t n, room;
} ledger;

typedef struct chain {
    pl_journal_report report;
    int64_t first;   /* steps done before this trace began; -1: it has no RUN record */
    int64_t workers; /* last step of worker processes; 0: none */
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

/* ---- what the ledger knows ---- */

/* Where the step stands or would stand. */
static size_t place(const ledger *l, int64_t step)
{
    size_t low = 0, high = l->n;

    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (l->steps[middle].step < step)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static pl_status know(ledger *l, known_step k, pl_error *err)
{
    const size_t at = place(l, k.step);
    if (at == l->n || l->steps[at].step != k.step) {
        void *steps = l->steps;
        const pl_status st = grow(&steps, l->n, &l->room, sizeof *l->steps, err);
        l->steps = steps;
        if (st != PL_OK)
            return st;
        memmove(&l->steps[at + 1], &l->steps[at], (l->n - at) * sizeof *l->steps);
        l->n++;
    }
    l->steps[at] = k;
    return PL_OK;
}

static pl_status take_traced(void *ctx, const pl_journal_record *r, pl_error *err)
{
    ledger *l = ctx;
    pl_msg m;

    if (r->type / 2 != PL_MSG_TRACED ||
        pl_body_decode(&m, PL_MSG_TRACED, r->data, r->n, NULL) != PL_OK)
        return PL_OK;
    return know(l, (known_step){(int64_t)m.u.traced.step, m.u.traced.head}, err);
}

/* The newest checkpoint has the head of its step too; nothing is added when it cannot be read.
 * 1: it was. */
static int read_checkpoint(ledger *l, const char *run, pl_error *err)
{
    char path[PATH_ROOM], latest[64] = "";
    char *text = NULL;
    size_t n_text = 0;
    known_step k = {0};
    int n = snprintf(path, sizeof path, "%s/latest", run);

    if (n < 0 || n >= (int)sizeof path || pl_file_read(&text, &n_text, path, 60, NULL) != PL_OK)
        return 0;
    (void)snprintf(latest, sizeof latest, "%.*s", (int)strcspn(text, "\n/"), text);
    free(text);
    n = snprintf(path, sizeof path, "%s/checkpoints/%s/state.json", run, latest);
    if (n < 0 || n >= (int)sizeof path ||
        pl_file_read(&text, &n_text, path, 1 << 20, NULL) != PL_OK)
        return 0;
    json_t *state = json_loadb(text, n_text, 0, NULL);
    const char *head = json_string_value(json_object_get(state, "trace_head"));
    k.step = json_integer_value(json_object_get(state, "step"));
    int is_there = head && k.step > 0 && strlen(head) == 2 * sizeof k.head.b;
    unsigned any = 0, byte = 0;
    for (size_t i = 0; is_there && i < sizeof k.head.b; i++) {
        is_there = sscanf(head + 2 * i, "%2x", &byte) == 1;
        k.head.b[i] = (unsigned char)byte;
        any |= byte;
    }
    json_decref(state);
    free(text);
    return is_there && any && know(l, k, err) == PL_OK;
}

/* Whatever of it can be read.  why: what cannot, "" when all of it was. */
static pl_status read_ledger(ledger *l, const char *run, char *why, size_t size, pl_error *err)
{
    char path[PATH_ROOM];
    pl_journal_report report = {0};
    pl_error own = {0};
    const int n = snprintf(path, sizeof path, "%s/ledger/000001.journal", run);

    why[0] = '\0';
    const pl_status st = n < 0 || n >= (int)sizeof path
                             ? pl_fail(&own, PL_E_NOENT, "path too long")
                             : pl_journal_read(path, "PLLEDGR1", take_traced, l, &report, &own);
    if (st == PL_E_NOMEM)
        return pl_fail(err, st, "%s", own.msg);
    const char *colon = strrchr(own.msg, ':'); /* the cause behind the path, which is known */
    if (st == PL_E_NOENT)
        (void)snprintf(why, size, "it is not there");
    else if (st != PL_OK)
        (void)snprintf(why, size, "%.150s", report.why ? report.why : colon ? colon + 2 : own.msg);
    else if (report.n_bytes == 0)
        (void)snprintf(why, size, "it is empty");
    return PL_OK;
}

/* ---- what the trace says ---- */

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

static pl_status take_run(void *ctx, const pl_trace_run *r, pl_error *err)
{
    chain *c = ctx;

    (void)err;
    c->first = c->first < 0 ? r->step : c->first;
    return PL_OK;
}

static pl_status take_step(void *ctx, const pl_trace_step *s, pl_error *err)
{
    chain *c = ctx;

    (void)err;
    if (s->n_workers > 1 || strcmp(s->workers[0], "local") != 0)
        c->workers = s->step > c->workers ? s->step : c->workers;
    else if (s->step <= c->workers) /* trained again, in one process */
        c->workers = s->step - 1;
    return PL_OK;
}

static int by_bytes(const void *a, const void *b)
{
    return memcmp(a, b, sizeof(pl_hash));
}

/* ---- the two together ---- */

/* What the ledger knows and the trace's chain does not have, into what; 0 when there is nothing. */
static int contradict(
    const ledger *l, chain *c, int64_t last, const char *who, char *what, size_t size)
{
    int64_t missing = 0;

    qsort(c->heads, c->n, sizeof *c->heads, by_bytes);
    for (size_t i = 0; i < l->n; i++) {
        const known_step *k = &l->steps[i];
        if (k->step <= c->first) /* of a trace that was moved away */
            continue;
        if (bsearch(&k->head, c->heads, c->n, sizeof *c->heads, by_bytes))
            continue;
        if (k->step <= last) {
            (void)snprintf(what, size,
                "the ledger or a checkpoint knows another trace of step %" PRId64
                ": its head is not on the chain",
                k->step);
            return 1;
        }
        missing = k->step > missing ? k->step : missing;
    }
    if (missing > 0)
        (void)snprintf(
            what, size, "cut after step %" PRId64 ", %s knows step %" PRId64, last, who, missing);
    return missing > 0;
}

/* The run directory that path means, or 0: a trace file alone. */
static int find_run(char out[PATH_ROOM], const char *path)
{
    struct stat info;
    int n = snprintf(out, PATH_ROOM, "%s", path);

    if (n < 0 || n >= PATH_ROOM - 64 || stat(path, &info) != 0 || !S_ISDIR(info.st_mode))
        return 0;
    const size_t end = strlen(out);
    (void)snprintf(out + end, PATH_ROOM - end, "/000001.journal");
    const int is_trace = pl_path_exists(out);
    (void)snprintf(out + end, PATH_ROOM - end, is_trace ? "/.." : "");
    return 1;
}

static int has_id(const char *run)
{
    char path[PATH_ROOM];
    const int n = snprintf(path, sizeof path, "%s/id", run);
    return n > 0 && n < (int)sizeof path && pl_path_exists(path);
}

static pl_status compare(
    const char *run, chain *c, const pl_trace_report *r, trace_ledger *out, pl_error *err)
{
    char path[PATH_ROOM], why[192];
    ledger l = {0};

    pl_status st = read_ledger(&l, run, why, sizeof why, err);
    const size_t n_ledger = l.n;
    const int64_t known = l.n > 0 ? l.steps[l.n - 1].step : 0;
    const int has_checkpoint = st == PL_OK && read_checkpoint(&l, run, err);
    const int n = snprintf(path, sizeof path, "%s/trace/000001.journal", run);
    if (st == PL_OK && l.n > 0 && n > 0 && n < (int)sizeof path) {
        st = pl_journal_read(path, "PLTRACE1", take_head, c, &c->report, err);
        if (st == PL_OK)
            st = put_head(c, err); /* of the last block */
        if (st == PL_OK)
            out->is_contrary = contradict(&l, c, r->step, n_ledger ? "the ledger" : "a checkpoint",
                out->cut, sizeof out->cut);
    }
    /* The trace has a step before the ledger has it. */
    const int64_t due = c->workers - (r->state != PL_TRACE_COMPLETE && c->workers == r->step);
    free(l.steps);
    if (st != PL_OK)
        return st;
    if (!why[0] && known < due)
        (void)snprintf(why, sizeof why, "it ends at step %" PRId64 ", the trace at step %" PRId64,
            known, r->step);
    if (!why[0]) {
        (void)snprintf(out->said, sizeof out->said, "compared with the ledger");
    } else if (c->workers == 0 && n_ledger == 0 && !has_id(run)) {
        (void)snprintf(out->said, sizeof out->said, "no ledger (a run in one process)%s",
            has_checkpoint ? ", compared with the newest checkpoint" : "");
    } else {
        out->is_unknown = 1;
        (void)snprintf(
            out->said, sizeof out->said, "not all of the ledger could be compared: %s", why);
    }
    return PL_OK;
}

pl_status trace_check(const char *path, pl_trace_report *r, trace_ledger *out, pl_error *err)
{
    char run[PATH_ROOM];
    chain c = {.first = -1};
    const pl_trace_visitor v = {&c, take_run, take_step};

    memset(out, 0, sizeof *out);
    pl_status st = pl_trace_read(path, &v, r, err);
    if (st == PL_E_FORMAT) {
        (void)snprintf(out->said, sizeof out->said, "the ledger was not asked");
        return PL_OK;
    }
    if (st != PL_OK)
        return st;
    if (!find_run(run, path))
        (void)snprintf(out->said, sizeof out->said, "the ledger was not asked (a file alone)");
    else
        st = compare(run, &c, r, out, err);
    free(c.heads);
    return st;
}

int trace_beyond(const char *path, char *out, size_t size)
{
    pl_trace_report r;
    trace_ledger l;

    out[0] = '\0';
    if (trace_check(path, &r, &l, NULL) != PL_OK || !l.is_contrary)
        return 0;
    (void)snprintf(out, size, "the trace is damaged: %s", l.cut);
    return 1;
}
