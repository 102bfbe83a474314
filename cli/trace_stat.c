/* cli/trace_stat.c - a trace in figures: steps, sizes, acceptance length, what passes cost. */
#include "cli/trace.h"

#include "cli/cli.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static double ratio(double a, double b)
{
    return b > 0 ? a / b : NAN;
}

static double acceptance(const trace_row *r)
{
    return 1 + ratio((double)r->accepted, (double)r->steps);
}

/* Bytes of a sample beside its tokens, with its share of step and block; bytes of a token with its
 * source and its share of a hash. */
static double sample_bytes(const trace_row *r)
{
    return ratio((double)(r->n_bytes - r->n_token_bytes), (double)r->n_samples);
}

static double token_bytes(const trace_row *r)
{
    return ratio((double)r->n_token_bytes, (double)r->n_tokens);
}

static void add(trace_row *sum, const trace_row *r)
{
    sum->n_samples += r->n_samples;
    sum->n_tokens += r->n_tokens;
    sum->n_bytes += r->n_bytes;
    sum->n_token_bytes += r->n_token_bytes;
    sum->draft += r->draft;
    sum->accepted += r->accepted;
    sum->steps += r->steps;
    sum->gen_s += r->gen_s;
    sum->update_s += r->update_s;
    sum->step_s += r->step_s;
}

static void print_row(const char *name, const trace_row *r)
{
    printf("%8s %8" PRId64 " %10" PRId64 " %9.1f %8.2f %7.3f %9.3f %9.3f %9.3f %8d %8" PRIu32
           "%s\n",
        name, r->n_samples, r->n_tokens, sample_bytes(r), token_bytes(r), acceptance(r), r->gen_s,
        r->update_s, r->step_s, r->n_workers, r->drafter_version,
        r->n_times > 1 ? "  (trained again)" : "");
}

static void print_table(const trace_rows *t, const trace_row *sum)
{
    char name[24];

    printf("%8s %8s %10s %9s %8s %7s %9s %9s %9s %8s %8s\n", "step", "samples", "tokens",
        "B/sample", "B/token", "accept", "gen_s", "update_s", "step_s", "workers", "drafter");
    for (size_t i = 0; i < t->n; i++) {
        (void)snprintf(name, sizeof name, "%" PRId64, t->rows[i].step);
        print_row(name, &t->rows[i]);
    }
    if (t->n > 1)
        print_row("all", sum);
    if (t->n_passes > 0)
        printf("\npasses without prefill: rows x passes, ms each\n");
    for (int i = 0; i < t->n_passes; i++)
        printf("%8" PRIu32 " x %-10" PRIu64 " %9.3f\n", t->passes[i].rows, t->passes[i].n,
            1000 * ratio(t->passes[i].seconds, (double)t->passes[i].n));
}

/* ---- JSON ---- */

static void put_double(pl_json *j, const char *key, double v)
{
    pl_json_text(j, key);
    pl_json_double(j, v);
}

static void row_json(pl_json *j, const trace_row *r)
{
    trace_json_int(j, "{\"step\":", r->step);
    trace_json_int(j, ",\"samples\":", r->n_samples);
    trace_json_int(j, ",\"tokens\":", r->n_tokens);
    trace_json_int(j, ",\"bytes\":", (int64_t)r->n_bytes);
    put_double(j, ",\"bytes_per_sample\":", sample_bytes(r));
    put_double(j, ",\"bytes_per_token\":", token_bytes(r));
    put_double(j, ",\"acceptance_length\":", acceptance(r));
    put_double(j, ",\"gen_s\":", r->gen_s);
    put_double(j, ",\"update_s\":", r->update_s);
    put_double(j, ",\"step_s\":", r->step_s);
    put_double(j, ",\"draft_s\":", r->draft_s);
    put_double(j, ",\"verify_s\":", r->verify_s);
    trace_json_int(j, ",\"workers\":", r->n_workers);
    trace_json_int(j, ",\"policy_version\":", r->policy_version);
    trace_json_int(j, ",\"drafter_version\":", r->drafter_version);
    trace_json_int(j, ",\"times\":", r->n_times);
    pl_json_text(j, ",\"before\":");
    trace_json_hash(j, r->before);
    pl_json_text(j, ",\"after\":");
    trace_json_hash(j, r->after);
    pl_json_text(j, "}\n");
}

static pl_status print_json(const trace_rows *t, pl_error *err)
{
    pl_json j = {0};

    for (size_t i = 0; i < t->n; i++)
        row_json(&j, &t->rows[i]);
    for (int i = 0; i < t->n_passes; i++) {
        trace_json_int(&j, "{\"rows\":", t->passes[i].rows);
        trace_json_int(&j, ",\"passes\":", (int64_t)t->passes[i].n);
        put_double(&j, ",\"seconds\":", t->passes[i].seconds);
        pl_json_text(&j, "}\n");
    }
    const pl_status st = pl_json_check(&j, "figures of the trace", err);
    if (st == PL_OK && j.n > 0)
        fwrite(j.data, 1, j.n, stdout);
    pl_json_done(&j);
    return st;
}

pl_status trace_stat(const trace_options *o, int *exit_code, pl_error *err)
{
    trace_rows t;
    trace_row sum = {0};
    char name[256];

    (void)exit_code;
    char beyond[320];
    if (trace_beyond(o->path, beyond, sizeof beyond))
        fprintf(stderr, "paceline: %s\n", beyond);
    pl_status st = trace_rows_read(&t, o->path, err);
    const pl_trace_report *r = &t.report;
    for (size_t i = 0; i < t.n; i++) {
        add(&sum, &t.rows[i]);
        sum.n_workers = t.rows[i].n_workers;
        sum.drafter_version = t.rows[i].drafter_version;
    }
    if (st == PL_OK && o->json) {
        st = print_json(&t, err);
    } else if (st == PL_OK) {
        printf("%s: %s; %" PRId64 " sitting%s, %" PRIu64 " bytes in %" PRIu64 " block%s\n",
            trace_clean(name, sizeof name, o->path),
            r->state == PL_TRACE_COMPLETE ? "complete" : r->what, r->n_runs, trace_s(r->n_runs),
            r->journal.n_bytes, r->journal.n_blocks, trace_s((int64_t)r->journal.n_blocks));
        print_table(&t, &sum);
    }
    trace_rows_done(&t);
    return st;
}
