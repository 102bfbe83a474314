/* cli/simulate.c - paceline simulate RUN: what a recorded run's steps would take with other
 * workers, thresholds or more prompts. */
#include "cli/simulate.h"
#include "cli/cli.h"
#include "cli/trace.h"
#include "core/json.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char shades[] = " .:-=+*%@#";

typedef struct simulate_options {
    const char *steps, *controller, *cost_from;
    int64_t workers, threads, threshold, min_workers, max_num_seqs, scale;
    double acceptance, slowdown, pace;
    int json;
} simulate_options;

typedef struct simulation {
    const simulate_options *o;
    simulate_run run, costs;
    pl_sim_options sim;
    int is_as_recorded; /* the same shape: rows a round can be the recorded ones */
    simulate_sum sum;
} simulation;

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- what is asked for ---- */

static pl_status parse_steps(const char *text, int64_t *first, int64_t *last, pl_error *err)
{
    int n = 0;
    *first = 0;
    *last = INT64_MAX;
    if (!text)
        return PL_OK;
    if (sscanf(text, "%" SCNd64 "-%" SCNd64 "%n", first, last, &n) == 2 && !text[n] &&
        *first <= *last)
        return PL_OK;
    n = 0;
    if (sscanf(text, "%" SCNd64 "%n", first, &n) == 1 && !text[n]) {
        *last = *first;
        return PL_OK;
    }
    return pl_fail(err, PL_E_USAGE, "--steps '%s' is neither a step nor A-B", text);
}

/* auto: as recorded where the shape is the recorded one; else the production controller, because
 * smaller batches draft more. */
static pl_status parse_controller(simulation *s, pl_error *err)
{
    const char *word = s->o->controller;
    int rows = 0, n = 0;
    if (strcmp(word, "recorded") == 0)
        s->sim.rows = PL_SIM_RECORDED;
    else if (strcmp(word, "goodput") == 0)
        s->sim.rows = PL_SIM_GOODPUT;
    else if (strcmp(word, "off") == 0)
        s->sim.rows = PL_SIM_OFF;
    else if (strcmp(word, "auto") == 0)
        s->sim.rows =
            s->is_as_recorded || s->run.costs.n_drafted == 0 ? PL_SIM_RECORDED : PL_SIM_GOODPUT;
    else if (sscanf(word, "fixed:%d%n", &rows, &n) == 1 && !word[n] && rows >= 1 &&
             rows <= PL_DRAFT_MAX) {
        s->sim.rows = PL_SIM_FIXED;
        s->sim.fixed_rows = rows;
    } else {
        return pl_fail(err, PL_E_USAGE,
            "--controller '%s' is none of auto, recorded, goodput, off, fixed:ROWS (at most %d)",
            word, PL_DRAFT_MAX);
    }
    return PL_OK;
}

static pl_status set_threads(simulation *s, pl_error *err)
{
    const int had = s->o->cost_from ? s->costs.n_threads : s->run.n_threads;
    if (s->o->threads == 0)
        return PL_OK;
    if (had < 1)
        return pl_fail(err, PL_E_USAGE,
            "--threads: the run does not say how many its workers had (trainer.threads 0); say "
            "--pace F: a pass takes F times as long");
    s->sim.pace *= (double)had / (double)s->o->threads;
    return PL_OK;
}

static pl_status set_options(simulation *s, pl_error *err)
{
    const simulate_options *o = s->o;
    s->sim = s->run.o;
    if (o->workers > 0)
        s->sim.n_workers = (int)o->workers;
    if (o->max_num_seqs > 0)
        s->sim.max_num_seqs = (int)o->max_num_seqs;
    if (s->sim.max_rows < s->sim.max_num_seqs)
        s->sim.max_rows = s->sim.max_num_seqs;
    if (o->threshold >= 0)
        s->sim.consolidate_below = (uint32_t)o->threshold;
    if (o->min_workers >= 0)
        s->sim.spot_min_idle = (int)o->min_workers;
    s->sim.scale = (int)o->scale;
    s->sim.acceptance = o->acceptance;
    s->sim.slowdown = o->slowdown;
    s->sim.pace = o->pace;
    s->is_as_recorded = s->sim.n_workers == s->run.o.n_workers && o->scale == 1 &&
                        (o->acceptance == 1 || s->run.costs.n_drafted == 0) &&
                        s->sim.max_num_seqs == s->run.o.max_num_seqs;
    const pl_status st = parse_controller(s, err);
    return st == PL_OK ? set_threads(s, err) : st;
}

/* ---- what comes of it ---- */

static void print_row(const char *name, const pl_sim_result *r)
{
    const double all_s = r->gen_s * r->n_workers;
    printf("%8s %9d %11" PRId64 " %9.2f %9.2f %11.1f %6.1f %10.1f %8" PRId64 " %8.2f %11.0f", name,
        r->n_samples, r->n_tokens, r->step_s, r->gen_s, r->idle_s,
        all_s > 0 ? 100 * r->idle_s / all_s : 0, r->session_s, r->n_drafter_steps, r->tail_s,
        r->gen_s > 0 ? (double)r->n_tokens / r->gen_s : 0);
    printf(" %9.2f %7.3f\n", r->recorded_step_s,
        r->recorded_step_s > 0 ? r->step_s / r->recorded_step_s : 0);
}

/* What was asked for by factors, and when that is nothing. */
static void print_factors(const simulation *s)
{
    const simulate_options *o = s->o;

    if (o->acceptance != 1)
        printf("acceptance x %g%s\n", o->acceptance,
            s->run.costs.n_drafted == 0 ? ": changes nothing, the run drafted nothing"
            : s->sim.rows == PL_SIM_OFF ? ": changes nothing without drafts"
                                        : "");
    if (s->sim.pace != 1)
        printf("a pass takes %g times as long as recorded\n", s->sim.pace);
    if (o->slowdown != 1)
        printf("and %g times as long while a session runs\n", o->slowdown);
    printf("recorded: step s of the run as it was; ratio: simulated to recorded%s\n",
        s->is_as_recorded && s->sim.pace == 1 && o->slowdown == 1 &&
                s->sim.rows == PL_SIM_RECORDED && !o->cost_from
            ? ", 1 when the simulation is right"
            : ", by what was asked for");
}

static void print_heading(const simulation *s)
{
    static const char *const rows[] = {"as recorded", "by the controller", "fixed", "none"};
    printf(
        "%s: %d step%s, recorded with %d worker%s; simulated: %d worker%s of %d samples, prompts "
        "x %d, drafts %s,\nthreshold %u, sessions from %d idle on, costs of %s (passes of up to "
        "%.0f rows; more is a "
        "guess)\n",
        s->run.dir, s->run.n, trace_s(s->run.n), s->run.o.n_workers,
        s->run.o.n_workers == 1 ? "" : "s", s->sim.n_workers, s->sim.n_workers == 1 ? "" : "s",
        s->sim.max_num_seqs, s->sim.scale, rows[s->sim.rows], s->sim.consolidate_below,
        s->sim.spot_min_idle, s->o->cost_from ? s->o->cost_from : "this run",
        pl_costs_most(s->o->cost_from ? &s->costs.costs.pass : &s->run.costs.pass));
    print_factors(s);
    printf("%8s %9s %11s %9s %9s %11s %6s %10s %8s %8s %11s %9s %7s\n", "step", "samples", "tokens",
        "step s", "gen s", "idle s", "idle %", "session s", "drafter", "tail s", "tokens/s",
        "recorded", "ratio");
}

static void print_strip(const char *name, const float *share)
{
    char line[PL_SIM_STRIP + 1] = {0};
    for (int i = 0; i < PL_SIM_STRIP; i++) {
        const float at = share[i] < 0 ? 0 : share[i] > 1 ? 1 : share[i];
        line[i] = shades[(int)lroundf(at * (float)(sizeof shades - 2))];
    }
    printf("%9s |%s|\n", name, line);
}

static void json_number(pl_json *j, const char *key, double v)
{
    pl_json_text(j, ",\"");
    pl_json_text(j, key);
    pl_json_text(j, "\":");
    pl_json_double(j, v);
}

static void json_strip(pl_json *j, const char *key, const float *share)
{
    pl_json_text(j, ",\"");
    pl_json_text(j, key);
    for (int i = 0; i < PL_SIM_STRIP; i++) {
        pl_json_text(j, i == 0 ? "\":[" : ",");
        pl_json_float(j, share[i]);
    }
    pl_json_text(j, "]");
}

/* step < 0: the sum. */
static pl_status print_json(
    const simulation *s, int64_t step, const pl_sim_result *r, double wall_s, pl_error *err)
{
    pl_json j = {0};
    pl_json_text(&j, step < 0 ? "{\"event\":\"sum\",\"steps\":" : "{\"event\":\"step\",\"step\":");
    pl_json_int(&j, step < 0 ? s->sum.n : step);
    const struct {
        const char *key;
        double value;
    } figures[] = {{"workers", r->n_workers}, {"samples", r->n_samples},
        {"tokens", (double)r->n_tokens}, {"rounds", (double)r->n_rounds}, {"rows", r->n_rows},
        {"drafted_rows", r->n_drafted}, {"step_s", r->step_s}, {"gen_s", r->gen_s},
        {"update_s", r->update_s}, {"rest_s", r->rest_s}, {"busy_s", r->busy_s},
        {"idle_s", r->idle_s},
        {"idle_share", r->gen_s > 0 ? r->idle_s / (r->gen_s * r->n_workers) : 0},
        {"session_s", r->session_s}, {"sessions", r->n_sessions},
        {"drafter_steps", (double)r->n_drafter_steps}, {"tail_s", r->tail_s},
        {"handed_over", r->n_handed}, {"messages", (double)r->n_messages},
        {"tokens_per_s", r->gen_s > 0 ? (double)r->n_tokens / r->gen_s : 0}};
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++)
        json_number(&j, figures[i].key, figures[i].value);
    json_number(&j, "recorded_step_s", r->recorded_step_s);
    json_number(&j, "recorded_gen_s", r->recorded_gen_s);
    if (step < 0) {
        json_number(&j, "acceptance", s->o->acceptance);
        json_number(&j, "pace", s->sim.pace);
        json_number(&j, "slowdown", s->o->slowdown);
    }
    json_strip(&j, "busy", r->busy);
    json_strip(&j, "training", r->training);
    if (step < 0)
        json_number(&j, "wall_s", wall_s);
    pl_json_text(&j, "}\n");
    const pl_status st = pl_json_check(&j, "a simulated step", err);
    if (st == PL_OK)
        fwrite(j.data, 1, j.n, stdout);
    pl_json_done(&j);
    return st;
}

static pl_status on_result(
    void *ctx, const pl_trace_step *step, const pl_sim_result *r, pl_error *err)
{
    simulation *s = ctx;
    char name[24];
    simulate_add(&s->sum, r);
    if (s->o->json)
        return print_json(s, step->step, r, 0, err);
    snprintf(name, sizeof name, "%lld", (long long)step->step);
    print_row(name, r);
    return cli_flush(err);
}

static pl_status print_sum(const simulation *s, double wall_s, pl_error *err)
{
    if (s->o->json) {
        const pl_status st = print_json(s, -1, &s->sum.r, wall_s, err);
        return st == PL_OK ? cli_flush(err) : st;
    }
    if (s->sum.n > 1)
        print_row("all", &s->sum.r);
    printf("\nshare of the workers over a rollout, '%s' from none to all:\n", shades + 1);
    print_strip("busy", s->sum.r.busy);
    if (s->sum.r.session_s > 0)
        print_strip("training", s->sum.r.training);
    if (s->sum.r.session_s > 0 && !(s->sim.optimizer_step_s > 0))
        printf("drafter steps are not counted: this run trained no drafter\n");
    printf("%d step%s simulated in %.2f s\n", s->sum.n, s->sum.n == 1 ? "" : "s", wall_s);
    return cli_flush(err);
}

static pl_status simulate(simulation *s, const char *dir, pl_error *err)
{
    const simulate_options *o = s->o;
    char beyond[320], there[64];
    int64_t first, last;
    const simulate_run *costs = o->cost_from ? &s->costs : &s->run;
    pl_status st = parse_steps(o->steps, &first, &last, err);
    if (st == PL_OK)
        st = simulate_open(&s->run, dir, first, last, err);
    if (st == PL_OK && o->steps && (first < s->run.first_step || last > s->run.last_step))
        st = pl_fail(err, PL_E_NOENT, "--steps %s: the trace has %s", o->steps,
            trace_steps(there, s->run.first_step, s->run.last_step));
    if (st == PL_OK && trace_beyond(dir, beyond, sizeof beyond))
        fprintf(stderr, "paceline: %s\n", beyond);
    if (st == PL_OK && o->cost_from)
        st = simulate_open(&s->costs, o->cost_from, 0, INT64_MAX, err);
    if (st == PL_OK)
        st = simulate_settle(o->cost_from ? &s->costs : &s->run, err);
    if (st == PL_OK)
        st = set_options(s, err);
    if (st == PL_OK && !(s->sim.optimizer_step_s > 0))
        s->sim.optimizer_step_s = costs->o.optimizer_step_s;
    if (st != PL_OK)
        return st;
    if (!o->json)
        print_heading(s);
    const double t0 = seconds_now();
    st = simulate_steps(&s->run, &s->sim, &costs->costs, on_result, s, err);
    return st == PL_OK ? print_sum(s, seconds_now() - t0, err) : st;
}

int cmd_simulate(int argc, char **argv)
{
    simulate_options o = {.controller = "auto",
        .threshold = -1,
        .min_workers = -1,
        .scale = 1,
        .acceptance = 1,
        .slowdown = 1,
        .pace = 1};
    const cli_option options[] = {
        {"workers", CLI_INT, &o.workers, 1, PL_SIM_WORKERS, "N", "as many (as recorded)"},
        {"steps", CLI_STRING, &o.steps, 0, 0, "A-B", "these of the run (all)"},
        {"scale", CLI_INT, &o.scale, 1, PL_SIM_SAMPLES, "K",
            "so many times the prompts of a step, with the recorded lengths (1)"},
        {"threshold", CLI_INT, &o.threshold, 0, 1 << 20, "K",
            "rollout.consolidate_below (as recorded)"},
        {"min-workers", CLI_INT, &o.min_workers, 0, PL_SIM_WORKERS, "N",
            "idle workers that begin a session of the spot trainer, 0: never (as recorded)"},
        {"max-num-seqs", CLI_INT, &o.max_num_seqs, 1, 1024, "N",
            "samples that a worker runs at once (as recorded)"},
        {"threads", CLI_INT, &o.threads, 1, 1024, "N",
            "of a worker, as if passes scaled with them (as recorded)"},
        {"controller", CLI_STRING, &o.controller, 0, 0, "NAME",
            "rows a round: recorded, goodput, off, fixed:ROWS; auto: recorded if the shape is"},
        {"acceptance", CLI_FLOAT, &o.acceptance, 0, 100, "X",
            "so many times the accepted tokens a round (1)"},
        {"pace", CLI_FLOAT, &o.pace, 1e-3, 1000, "F", "a pass takes F times as long (1)"},
        {"slowdown", CLI_FLOAT, &o.slowdown, 1, 1000, "F",
            "and F times as long while a session runs (1)"},
        {"cost-from", CLI_STRING, &o.cost_from, 0, 0, "RUN", "the costs of another run (of RUN)"},
        {"json", CLI_FLAG, &o.json, 0, 0, NULL, "one JSON object a step, and their sum"},
        {0},
    };
    pl_error err = {0};
    simulation s = {.o = &o};
    int n, helped;

    pl_status st = cli_parse(argc, argv, "simulate RUN [options]", options, &n, &helped, &err);
    if (st == PL_OK && helped)
        return 0;
    if (st == PL_OK && n != 1)
        st = pl_fail(&err, PL_E_USAGE, "simulate wants one run directory: paceline simulate RUN");
    cli_catch_signals(0);
    if (st == PL_OK)
        st = simulate(&s, argv[1], &err);
    simulate_close(&s.run);
    simulate_close(&s.costs);
    return st == PL_OK ? 0 : cli_report(&err);
}
