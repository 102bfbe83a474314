/* cli/bench_arms_report.c - what bench arms says at its end: ratios of the last quarter's sums. */
#include "cli/bench_arms.h"
#include "cli/run.h"

#include <stdlib.h>
#include <string.h>

typedef struct report {
    bench *b;
    const char *dir;
    const char *const *names;
    int64_t seed, total;
} report;

/* A line of arms.csv, as far as the report reads it. */
typedef struct row {
    int is_there; /* of a sum: steps */
    double wall_s, tokens, update_s;
    double drafted_steps, drafted_emitted;
    double tail_s, tail_steps, tail_emitted;
} row;

/* rows [total + 1, ARMS] by step and arm, of this seed; of a step that was done twice the later. */
static pl_status read_rows(const report *a, row *rows, pl_error *err)
{
    char path[PL_CONFIG_STR], line[1024], name[16];

    snprintf(path, sizeof path, "%s/arms.csv", a->dir);
    FILE *f = fopen(path, "r");
    if (!f)
        return pl_fail(err, PL_E_IO, "'%s' cannot be read", path);
    while (fgets(line, sizeof line, f)) {
        long long seed, step;
        row r = {.is_there = 1};
        if (sscanf(line,
                "%lld,%lld,%15[^,],%lf,%lf,%*f,%*f,%*f,%*f,%*f,%*f,%*f,%*d,%*d,%*f,%*f,%*u,%*d,"
                "%lf,%*f,%lf,%lf,%lf,%lf,%lf",
                &seed, &step, name, &r.wall_s, &r.tokens, &r.update_s, &r.drafted_steps,
                &r.drafted_emitted, &r.tail_s, &r.tail_steps, &r.tail_emitted) != 11 ||
            seed != a->seed || step < 1 || step > a->total)
            continue;
        for (int k = 0; k < ARMS; k++)
            if (strcmp(name, a->names[k]) == 0)
                rows[step * ARMS + k] = r;
    }
    fclose(f);
    return PL_OK;
}

/* Sums over the steps in which the arm and none took part.  Returns how many. */
static int add_up(const report *a, const row *rows, int k, row *sum, row *none)
{
    *sum = *none = (row){0};
    for (int64_t step = a->total - a->total / 4 + 1; step <= a->total; step++) {
        const row *at[] = {&rows[step * ARMS + k], &rows[step * ARMS + NONE]};
        row *to[] = {sum, none};
        for (int i = 0; i < 2 && at[0]->is_there && at[1]->is_there; i++) {
            to[i]->is_there++;
            to[i]->wall_s += at[i]->wall_s;
            to[i]->tokens += at[i]->tokens;
            to[i]->update_s += at[i]->update_s;
            to[i]->drafted_steps += at[i]->drafted_steps;
            to[i]->drafted_emitted += at[i]->drafted_emitted;
            to[i]->tail_s += at[i]->tail_s;
            to[i]->tail_steps += at[i]->tail_steps;
            to[i]->tail_emitted += at[i]->tail_emitted;
        }
    }
    return sum->is_there;
}

static pl_status report_figure(
    const report *a, int k, const char *what, double value, double ratio, pl_error *err)
{
    bench_figure f = {.value = value, .unit = "tokens/s", .ratio = ratio, .ratio_to = "none"};

    snprintf(f.name, sizeof f.name, "arm=%s,quarter=4,%sseed=%lld", a->names[k], what,
        (long long)a->seed);
    return bench_report(a->b, &f, err);
}

/* Rollouts, the tail (at most 4 running samples in an engine), and steps: the policy's update is
 * one for all arms, so a step's ratio follows from the rollouts' and their share of it. */
static pl_status report_arm(const report *a, const row *rows, int k, pl_error *err)
{
    row x, none;

    if (!add_up(a, rows, k, &x, &none))
        return PL_OK; /* it took part in none of them */
    const double s = none.wall_s / x.wall_s;
    pl_status st = report_figure(a, k, "", x.tokens / x.wall_s, s, err);
    if (st == PL_OK && x.tail_s > 0 && none.tail_s > 0)
        st = report_figure(a, k, "tail,", x.tail_emitted / x.tail_s,
            x.tail_emitted / x.tail_s * none.tail_s / none.tail_emitted, err);
    if (st == PL_OK)
        st = report_figure(a, k, "step,", x.tokens / (x.wall_s + x.update_s),
            (none.wall_s + none.update_s) / (x.wall_s + x.update_s), err);
    if (st == PL_OK)
        fprintf(a->b->notes,
            "    %d steps; acceptance length %.3f of rounds that drafted, %.3f in the tail; "
            "rollout is %.3f of a step of none\n",
            x.is_there, x.drafted_steps > 0 ? x.drafted_emitted / x.drafted_steps : 1,
            x.tail_steps > 0 ? x.tail_emitted / x.tail_steps : 1,
            none.wall_s / (none.wall_s + none.update_s));
    return st;
}

pl_status bench_arms_report(bench *b, const char *dir, int64_t seed, int64_t total,
    const char *const names[ARMS], pl_error *err)
{
    const report a = {b, dir, names, seed, total};
    row *rows = calloc(((size_t)total + 1) * ARMS, sizeof *rows);
    pl_status st = rows ? read_rows(&a, rows, err)
                        : pl_fail(err, PL_E_NOMEM, "no memory for the report of bench arms");

    if (st == PL_OK && total < 4)
        fprintf(b->notes, "  fewer than 4 steps: there is no last quarter to report\n");
    for (int k = 0; k < ARMS && st == PL_OK; k++)
        st = report_arm(&a, rows, k, err);
    free(rows);
    return st;
}
