/* monitor/prometheus.c - the text form 0.0.4 of Prometheus: a family is HELP, TYPE and its samples
 * in a row, no family and no set of labels comes twice. */
#include "monitor/prometheus.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_ROOM = 192 }; /* bytes: "paceline_" and a metric's name */

static void family(pl_json *out, const char *name, const char *type, const char *help)
{
    pl_json_text(out, "# HELP ");
    pl_json_text(out, name);
    pl_json_text(out, " ");
    pl_json_text(out, help);
    pl_json_text(out, "\n# TYPE ");
    pl_json_text(out, name);
    pl_json_text(out, " ");
    pl_json_text(out, type);
    pl_json_text(out, "\n");
}

static void value(pl_json *out, double v)
{
    pl_json_text(out, " ");
    if (isnan(v))
        pl_json_text(out, "NaN");
    else if (isinf(v))
        pl_json_text(out, v > 0 ? "+Inf" : "-Inf");
    else
        pl_json_double(out, v);
    pl_json_text(out, "\n");
}

/* A label's value: at most n bytes of text, its quotes, backslashes and line ends escaped. */
static void label(pl_json *out, const char *key, const char *text, size_t n)
{
    pl_json_text(out, key);
    pl_json_text(out, "=\"");
    for (size_t i = 0; i < n && text[i]; i++) {
        const char c = text[i];
        if (c == '\n')
            pl_json_text(out, "\\n");
        else if (c == '"' || c == '\\') {
            pl_json_text(out, "\\");
            pl_json_bytes(out, &c, 1);
        } else if ((unsigned char)c >= 0x20)
            pl_json_bytes(out, &c, 1);
    }
    pl_json_text(out, "\"");
}

static void one(pl_json *out, const char *name, const char *type, const char *help, double v)
{
    if (isnan(v))
        return;
    family(out, name, type, help);
    pl_json_text(out, name);
    value(out, v);
}

/* ---- the snapshot ---- */

static void put_run(pl_json *out, const pl_snapshot *s, int is_alive)
{
    family(out, "paceline_run_info", "gauge", "The run; always 1.");
    pl_json_text(out, "paceline_run_info{");
    label(out, "run", s->run, sizeof s->run);
    pl_json_text(out, "} 1\n");
    one(out, "paceline_run_alive", "gauge", "1 while the run's process is there.", is_alive != 0);
    family(out, "paceline_phase", "gauge", "1 for what the run does now, 0 for the rest.");
    for (int p = 0; p < PL_PHASES; p++) {
        const char *name = pl_phase_name((pl_phase)p);
        pl_json_text(out, "paceline_phase{");
        label(out, "phase", name, strlen(name));
        pl_json_text(out, "}");
        value(out, s->phase == (uint32_t)p);
    }
    one(out, "paceline_started_timestamp_seconds", "gauge", "Unix time of the start of the run.",
        (double)s->started_ms / 1e3);
    one(out, "paceline_updated_timestamp_seconds", "gauge",
        "Unix time of these figures; they stand still when the run is gone.",
        (double)s->updated_ms / 1e3);
    one(out, "paceline_steps_total", "counter", "Steps trained.", (double)s->step);
    one(out, "paceline_steps_wanted", "gauge", "Steps that the run shall train.",
        (double)s->total_steps);
    if (is_alive)
        one(out, "paceline_eta_seconds", "gauge", "Expected time to the end of the run.", s->eta_s);
}

/* Rows of those that are gone stay for a while, to be seen. */
static uint32_t count_workers(const pl_snapshot *s)
{
    uint32_t n = s->n_workers;

    for (uint32_t i = 0; i < s->n_workers && i < PL_SNAPSHOT_WORKERS; i++)
        n -= s->workers[i].state == PL_WORKER_LOST || s->workers[i].state == PL_WORKER_DRAINING;
    return n;
}

static void put_batch(pl_json *out, const pl_snapshot *s)
{
    const struct {
        const char *state;
        uint32_t n;
    } samples[] = {{"done", s->n_done}, {"running", s->n_running}, {"queued", s->n_queued}};

    one(out, "paceline_batch_size_samples", "gauge", "Samples of the batch at hand.",
        (double)s->n_samples);
    family(out, "paceline_batch_samples", "gauge", "Samples of the batch at hand, by state.");
    for (size_t i = 0; i < sizeof samples / sizeof samples[0]; i++) {
        pl_json_text(out, "paceline_batch_samples{");
        label(out, "state", samples[i].state, strlen(samples[i].state));
        pl_json_text(out, "}");
        value(out, (double)samples[i].n);
    }
    one(out, "paceline_batch_tokens", "gauge", "Tokens of the batch so far.", (double)s->n_tokens);
    one(out, "paceline_tokens_per_second", "gauge", "Tokens emitted, all workers.", s->rate);
    one(out, "paceline_policy_version", "gauge", "Version of the policy.",
        (double)s->policy_version);
    one(out, "paceline_drafter_version", "gauge", "Version of the learned drafter; 0: none.",
        (double)s->drafter_version);
    one(out, "paceline_drafter_training", "gauge", "1 while a session trains the drafter.",
        s->session != 0);
    one(out, "paceline_workers", "gauge", "Workers that take part.", (double)count_workers(s));
    one(out, "paceline_workers_lost_total", "counter", "Workers lost.", (double)s->n_lost);
    one(out, "paceline_workers_quarantined_total", "counter", "Workers shut out.",
        (double)s->n_quarantined);
    one(out, "paceline_samples_leased_again_total", "counter", "Samples given to another worker.",
        (double)s->n_leased_again);
    one(out, "paceline_tokens_recomputed_total", "counter", "Tokens that were rolled out again.",
        (double)s->n_recomputed);
}

enum figure { STATE, RUNNING, HELD, RATE, BUSY, TRAINING, IDLE, THREADS, POLICY, DRAFTER, FIGURES };

static double figure_of(const pl_snapshot_worker *w, enum figure f)
{
    switch (f) {
    case RUNNING:
        return (double)w->n_running;
    case HELD:
        return (double)w->n_held;
    case RATE:
        return (double)w->rate;
    case BUSY:
        return (double)w->busy_s;
    case TRAINING:
        return (double)w->training_s;
    case IDLE:
        return (double)w->idle_s;
    case THREADS:
        return (double)w->n_threads;
    case POLICY:
        return w->policy_version == UINT32_MAX ? NAN : (double)w->policy_version;
    case DRAFTER:
        return (double)w->drafter_version;
    case STATE:
    case FIGURES:
        break;
    }
    return 1;
}

/* 1: a worker before has the same name. */
static int is_repeated(const pl_snapshot *s, uint32_t i)
{
    for (uint32_t k = 0; k < i; k++)
        if (strncmp(s->workers[k].name, s->workers[i].name, sizeof s->workers[i].name) == 0)
            return 1;
    return 0;
}

static void put_workers(pl_json *out, const pl_snapshot *s)
{
    static const struct {
        const char *name, *type, *help;
    } figures[FIGURES] = {
        [STATE] = {"paceline_worker_state", "gauge", "1 for what the worker does now."},
        [RUNNING] = {"paceline_worker_running_samples", "gauge", "Samples that it runs."},
        [HELD] = {"paceline_worker_held_samples", "gauge", "Finished, not acknowledged."},
        [RATE] = {"paceline_worker_tokens_per_second", "gauge", "Tokens that it emits."},
        [BUSY] = {"paceline_worker_busy_seconds_total", "counter", "Time with rollouts."},
        [TRAINING] = {"paceline_worker_training_seconds_total", "counter",
            "Time with the drafter's training."},
        [IDLE] = {"paceline_worker_idle_seconds_total", "counter", "Time with nothing."},
        [THREADS] = {"paceline_worker_threads", "gauge", "Threads that it computes with."},
        [POLICY] = {"paceline_worker_policy_version", "gauge", "Policy that it has loaded."},
        [DRAFTER] = {"paceline_worker_drafter_version", "gauge", "Drafter in use; 0: none."},
    };
    const uint32_t n = s->n_workers < PL_SNAPSHOT_WORKERS ? s->n_workers : PL_SNAPSHOT_WORKERS;

    for (int f = 0; f < FIGURES && n > 0; f++) {
        family(out, figures[f].name, figures[f].type, figures[f].help);
        for (uint32_t i = 0; i < n; i++) {
            const pl_snapshot_worker *w = &s->workers[i];
            const double v = figure_of(w, (enum figure)f);
            if (isnan(v) || is_repeated(s, i))
                continue;
            pl_json_text(out, figures[f].name);
            pl_json_text(out, "{");
            label(out, "worker", w->name, sizeof w->name);
            if (f == STATE) {
                pl_json_text(out, ",");
                label(out, "state", pl_worker_state_name(w->state), 16);
            }
            pl_json_text(out, "}");
            value(out, v);
        }
    }
}

/* ---- metrics.jsonl ---- */

/* "actor/pg_loss" as paceline_actor_pg_loss; 0: too long. */
static int make_name(char out[NAME_ROOM], const char *name)
{
    static const char prefix[] = "paceline_";
    size_t n = sizeof prefix - 1;

    memcpy(out, prefix, n);
    for (; *name && n < NAME_ROOM - 1; name++) {
        const char c = *name;
        const int is_fit =
            (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
        out[n++] = is_fit ? c : '_';
    }
    out[n] = '\0';
    return *name == '\0' && n > sizeof prefix - 1;
}

/* 1: the text so far has a family of that name. */
static int is_taken(const pl_json *out, size_t begin, const char *name)
{
    const size_t n = strlen(name);
    const char *p = out->data ? out->data + begin : NULL;

    while (p && (p = strstr(p, "# TYPE ")) != NULL) {
        p += strlen("# TYPE ");
        if (strncmp(p, name, n) == 0 && p[n] == ' ')
            return 1;
    }
    return 0;
}

static void put_help(pl_json *out, const char *name)
{
    for (; *name; name++)
        pl_json_bytes(out, *name == '\\' ? "\\\\" : name, *name == '\\' ? 2 : 1);
}

static void put_history(pl_json *out, const pl_history *h, size_t begin)
{
    const char *const *names;
    const int64_t *steps;
    const int n_names = pl_history_names(h, &names);
    const int n = pl_history_steps(h, &steps);
    char name[NAME_ROOM];

    if (n > 0)
        one(out, "paceline_metrics_step", "gauge", "Newest step of metrics.jsonl.",
            (double)steps[n - 1]);
    for (int i = 0; i < n_names && !out->failed; i++) {
        const double *column = pl_history_column(h, names[i]);
        int at = n - 1;
        while (at >= 0 && isnan(column[at]))
            at--;
        if (at < 0 || !make_name(name, names[i]) || is_taken(out, begin, name))
            continue;
        pl_json_text(out, "# HELP ");
        pl_json_text(out, name);
        pl_json_text(out, " Newest ");
        put_help(out, names[i]);
        pl_json_text(out, " of metrics.jsonl.\n# TYPE ");
        pl_json_text(out, name);
        pl_json_text(out, " gauge\n");
        pl_json_text(out, name);
        value(out, column[at]);
    }
}

void pl_prometheus_text(const pl_snapshot *s, int is_alive, const pl_history *h, pl_json *out)
{
    const size_t begin = out->n;

    if (s) {
        put_run(out, s, is_alive);
        put_batch(out, s);
        put_workers(out, s);
    }
    if (h)
        put_history(out, h, begin);
}
