/* cli/simulate_run.c - a recorded run as the simulator wants it: its steps, its shape, its costs.
 */
#include "cli/run.h"
#include "cli/simulate.h"
#include "cli/trace.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* ---- what was recorded ---- */

/* Options of the run by its resolved configuration; the defaults stay where it cannot be read. */
static pl_status on_run(void *ctx, const pl_trace_run *t, pl_error *err)
{
    simulate_run *r = ctx;
    pl_engine_options e;
    run_config *c = calloc(1, sizeof *c);
    if (!c)
        return pl_fail(err, PL_E_NOMEM, "no memory for a configuration");
    if (!t->config || run_config_parse(c, t->config, t->n_config, "trace", NULL) != PL_OK) {
        free(c);
        return PL_OK;
    }
    run_engine_options(c, 1, &e);
    pl_sim_options *o = &r->o;
    o->max_num_seqs = e.max_num_seqs;
    o->max_rows = e.max_rows;
    o->max_spec_rows = e.max_spec_rows;
    o->max_spec_depth = e.max_spec_depth;
    o->lost_ms = 1000 * (uint32_t)c->rollout.heartbeat_timeout;
    const int is_training =
        run_has_learned(c) && c->speculative.train && c->rollout.num_workers > 0;
    o->spot_min_idle = is_training ? (int)c->speculative.min_workers : 0;
    o->consolidate_below = is_training ? (uint32_t)c->rollout.consolidate_below : 0;
    o->n_workers = c->rollout.num_workers > 0 ? (int)c->rollout.num_workers : 1;
    r->n_threads = (int)c->trainer.threads;
    free(c);
    return PL_OK;
}

static int is_wanted(const simulate_run *r, int64_t step)
{
    return step >= r->first && step <= r->last;
}

/* "worker-0.4711" is worker-0, and so is the one that was started in its place. */
static size_t name_length(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot && dot[1] && strspn(dot + 1, "0123456789") == strlen(dot + 1) ? (size_t)(dot - name)
                                                                             : strlen(name);
}

static int count_workers(const pl_trace_step *s)
{
    int n = 0;
    for (int i = 0; i < s->n_workers; i++) {
        const size_t length = name_length(s->workers[i]);
        int k = 0;
        while (k < i && (name_length(s->workers[k]) != length ||
                            memcmp(s->workers[k], s->workers[i], length) != 0))
            k++;
        n += k == i;
    }
    return n;
}

static pl_status on_step(void *ctx, const pl_trace_step *s, pl_error *err)
{
    simulate_run *r = ctx;
    if (r->n_records == r->room) {
        const int room = r->room ? 2 * r->room : 64;
        simulate_record *steps = realloc(r->steps, (size_t)room * sizeof *steps);
        if (!steps)
            return pl_fail(err, PL_E_NOMEM, "no memory for %d steps", room);
        r->steps = steps;
        r->room = room;
    }
    r->steps[r->n_records++] = (simulate_record){.step = s->step};
    if (!is_wanted(r, s->step))
        return PL_OK;
    pl_sim_costs_add(&r->costs, s);
    const int n_workers = count_workers(s);
    if (n_workers > r->o.n_workers) /* some came by hand */
        r->o.n_workers = n_workers;
    return PL_OK;
}

static int by_step(const void *a, const void *b)
{
    const simulate_record *const *x = a, *const *y = b;

    if ((*x)->step != (*y)->step)
        return (*x)->step < (*y)->step ? -1 : 1;
    return *x < *y ? -1 : *x > *y; /* as they stand */
}

/* A step that stands twice counts as it stands last. */
static pl_status mark_counted(simulate_run *r, pl_error *err)
{
    const size_t n = (size_t)r->n_records;
    simulate_record **sorted = malloc((n + 1) * sizeof(simulate_record *));

    if (!sorted)
        return pl_fail(err, PL_E_NOMEM, "no memory for %zu steps", n);
    for (size_t i = 0; i < n; i++)
        sorted[i] = &r->steps[i];
    qsort(sorted, n, sizeof(simulate_record *), by_step);
    for (size_t i = 0; i < n; i++) {
        const int is_last = i + 1 == n || sorted[i + 1]->step != sorted[i]->step;
        sorted[i]->counts = is_last && is_wanted(r, sorted[i]->step);
        r->n += sorted[i]->counts;
    }
    r->first_step = n > 0 ? sorted[0]->step : 0;
    r->last_step = n > 0 ? sorted[n - 1]->step : 0;
    free(sorted);
    return PL_OK;
}

static pl_status has_no_step(const simulate_run *r, pl_error *err)
{
    char wanted[64], there[64];

    if (r->n_records == 0)
        return pl_fail(err, PL_E_NOENT, "the trace of '%s' has no step yet", r->dir);
    return pl_fail(err, PL_E_NOENT, "'%s': no %s: the trace has %s", r->dir,
        trace_steps(wanted, r->first, r->last), trace_steps(there, r->first_step, r->last_step));
}

static double number_of(const json_t *line, const char *key)
{
    const json_t *v = json_object_get(line, key);
    const double x = json_is_number(v) ? json_number_value(v) : 0;
    return x > -1e15 && x < 1e15 ? x : 0;
}

/* Seconds of a session by optimizer step; 0: the run trained no drafter. */
static double read_optimizer_step(const simulate_run *r)
{
    char path[4096];
    cli_lines lines;
    double seconds = 0, steps = 0;
    size_t n;
    const int n_path = snprintf(path, sizeof path, "%s/metrics.jsonl", r->dir);
    if (n_path < 0 || n_path >= (int)sizeof path || cli_lines_open(&lines, path, NULL) != PL_OK)
        return 0;
    while (cli_lines_next(&lines, &n, NULL) > 0) {
        json_t *line = json_loadb(lines.text, n, 0, NULL);
        if (line && is_wanted(r, (int64_t)number_of(line, "step"))) {
            steps += number_of(line, "drafter/optimizer_steps");
            seconds += number_of(line, "bubble/drafter_s") + number_of(line, "bubble/gate_s") +
                       number_of(line, "bubble/pack_s");
        }
        json_decref(line);
    }
    cli_lines_close(&lines);
    return steps > 0 && seconds / steps >= 1e-6 ? seconds / steps : 0;
}

pl_status simulate_open(
    simulate_run *r, const char *dir, int64_t first, int64_t last, pl_error *err)
{
    const pl_trace_visitor v = {r, on_run, on_step};
    pl_trace_report report;
    memset(r, 0, sizeof *r);
    r->dir = dir;
    r->first = first;
    r->last = last;
    pl_sim_defaults(&r->o);
    pl_status st = pl_trace_read(dir, &v, &report, err);
    if (st == PL_OK)
        st = mark_counted(r, err);
    if (st == PL_OK && r->n == 0)
        st = has_no_step(r, err);
    if (st != PL_OK)
        return st;
    if (r->o.max_rows < r->o.max_num_seqs)
        r->o.max_rows = r->o.max_num_seqs;
    r->o.optimizer_step_s = read_optimizer_step(r);
    r->can_fit = pl_sim_costs_fit(&r->costs, NULL) == PL_OK;
    return PL_OK;
}

void simulate_close(simulate_run *r)
{
    free(r->steps);
    r->steps = NULL;
}

/* ---- over the steps ---- */

typedef struct walk {
    const simulate_run *r;
    pl_sim *sim;
    int i; /* of the STEP record */
    simulate_fn visit;
    void *ctx;
} walk;

static pl_status simulate_one(void *ctx, const pl_trace_step *s, pl_error *err)
{
    walk *w = ctx;
    pl_sim_result result;
    if (cli_stop)
        return pl_fail(err, PL_E_STOPPED, "stopped");
    if (w->i >= w->r->n_records || !w->r->steps[w->i++].counts || !is_wanted(w->r, s->step))
        return PL_OK; /* what was written meanwhile too */
    const pl_status st = pl_sim_step(w->sim, s, &result, err);
    return st == PL_OK ? w->visit(w->ctx, s, &result, err) : st;
}

pl_status simulate_steps(const simulate_run *r, const pl_sim_options *o, const pl_sim_costs *costs,
    simulate_fn visit, void *ctx, pl_error *err)
{
    walk w = {.r = r, .visit = visit, .ctx = ctx};
    const pl_trace_visitor v = {&w, NULL, simulate_one};
    pl_trace_report report;
    pl_status st = pl_sim_new(&w.sim, o, costs, NULL, err);
    if (st == PL_OK)
        st = pl_trace_read(r->dir, &v, &report, err);
    pl_sim_free(w.sim);
    return st;
}

void simulate_add(simulate_sum *sum, const pl_sim_result *r)
{
    pl_sim_result *s = &sum->r;
    sum->n++;
    s->n_workers = r->n_workers;
    s->n_samples += r->n_samples;
    s->n_done += r->n_done;
    s->n_tokens += r->n_tokens;
    s->n_emitted += r->n_emitted;
    s->n_rounds += r->n_rounds;
    s->n_rows += r->n_rows;
    s->n_drafted += r->n_drafted;
    s->longest_rounds += r->longest_rounds;
    s->step_s += r->step_s;
    s->gen_s += r->gen_s;
    s->update_s += r->update_s;
    s->rest_s += r->rest_s;
    s->busy_s += r->busy_s;
    s->session_s += r->session_s;
    s->idle_s += r->idle_s;
    s->tail_s += r->tail_s;
    s->n_drafter_steps += r->n_drafter_steps;
    s->n_sessions += r->n_sessions;
    s->n_handed += r->n_handed;
    s->n_messages += r->n_messages;
    s->recorded_gen_s += r->recorded_gen_s;
    s->recorded_step_s += r->recorded_step_s;
    for (int i = 0; i < PL_SIM_STRIP; i++) {
        s->busy[i] += (r->busy[i] - s->busy[i]) / (float)sum->n;
        s->training[i] += (r->training[i] - s->training[i]) / (float)sum->n;
    }
}

static pl_status add_one(
    void *ctx, const pl_trace_step *step, const pl_sim_result *result, pl_error *err)
{
    (void)step;
    (void)err;
    simulate_add(ctx, result);
    return PL_OK;
}

pl_status simulate_settle(simulate_run *r, pl_error *err)
{
    simulate_sum sum = {0};
    if (!r->can_fit)
        return pl_sim_costs_fit(&r->costs, err);
    const pl_status st = simulate_steps(r, &r->o, &r->costs, add_one, &sum, err);
    if (st == PL_OK)
        pl_sim_costs_settle(&r->costs, sum.r.recorded_gen_s, sum.r.gen_s, sum.r.longest_rounds);
    return st;
}
