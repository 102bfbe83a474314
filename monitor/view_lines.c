/* monitor/view_lines.c - a run as plain lines, and as JSON for scripts. */
#include "monitor/text.h"
#include "monitor/view_internal.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static void put_figure(pl_json *out, const pl_view_data *d, int i, const char *word,
    const char *metric, const char *unit)
{
    const double v = view_at(d, metric, i);
    char text[24];

    if (!isfinite(v))
        return;
    view_number(text, v);
    pl_json_text(out, " ");
    pl_json_text(out, word);
    pl_json_text(out, " ");
    pl_json_text(out, text);
    pl_json_text(out, unit);
}

/* The held-out reward's name, which says how many samples a prompt it is the mean of. */
static const char *held_out_name(const pl_view_data *d)
{
    static const char prefix[] = "val-core/held_out/reward/mean@";

    for (int i = 0; i < d->n_names; i++)
        if (strncmp(d->names[i], prefix, sizeof prefix - 1) == 0)
            return d->names[i];
    return "";
}

void pl_view_step_line(const pl_view_data *d, int i, pl_json *out)
{
    char text[64];

    if (d->now && d->now->total_steps > 0)
        snprintf(text, sizeof text, "step %lld/%lld", (long long)d->steps[i],
            (long long)d->now->total_steps);
    else
        snprintf(text, sizeof text, "step %lld", (long long)d->steps[i]);
    pl_json_text(out, text);
    put_figure(out, d, i, "reward", "critic/rewards/mean", "");
    put_figure(out, d, i, "held-out", held_out_name(d), "");
    put_figure(out, d, i, "length", "response_length/mean", "");
    put_figure(out, d, i, "longest", "response_length/max", "");
    put_figure(out, d, i, "acceptance", "rollout/spec_accept_length", "");
    put_figure(out, d, i, "drafter", "drafter/version", "");
    put_figure(out, d, i, "tokens/s", "perf/rollout_throughput", "");
    put_figure(out, d, i, "rollout", "timing_s/gen", " s");
    put_figure(out, d, i, "update", "timing_s/update_actor", " s");
    put_figure(out, d, i, "step", "timing_s/step", " s");
    pl_json_text(out, "\n");
}

static void put_workers(pl_json *out, const pl_snapshot *s)
{
    int busy = 0, training = 0, idle = 0;
    char text[96];

    for (int i = 0; i < view_workers_shown(s); i++) {
        busy += s->workers[i].state == PL_WORKER_BUSY;
        training += s->workers[i].state == PL_WORKER_TRAINING;
        idle += s->workers[i].state == PL_WORKER_IDLE;
    }
    snprintf(text, sizeof text, ", workers: %d busy %d training %d idle", busy, training, idle);
    pl_json_text(out, text);
}

void pl_view_now_line(const pl_view_data *d, pl_json *out)
{
    const pl_snapshot *s = d->now;
    char text[256], since[24], rate[24], awaited[PL_SNAPSHOT_TEXT];

    pl_json_text(out, pl_view_life_name(d->life));
    if (!s) {
        pl_json_text(out, "\n");
        return;
    }
    if (d->life == PL_VIEW_DEAD || d->life == PL_VIEW_SILENT) {
        view_duration(since, (double)(d->unix_ms - s->updated_ms) / 1000);
        snprintf(text, sizeof text, " (last seen %s ago)", since);
        pl_json_text(out, text);
    }
    snprintf(
        text, sizeof text, ": step %lld of %lld", (long long)s->step, (long long)s->total_steps);
    pl_json_text(out, text);
    if (d->life == PL_VIEW_RUNNING || d->life == PL_VIEW_SILENT) {
        view_duration(since, (double)(d->unix_ms - s->phase_ms) / 1000);
        view_number(rate, s->rate);
        snprintf(text, sizeof text,
            ", %s for %s, samples: %u of %u done %u running %u queued, %s tokens/s",
            pl_phase_name((pl_phase)s->phase), since, s->n_done, s->n_samples, s->n_running,
            s->n_queued, rate);
        pl_json_text(out, text);
        put_workers(out, s);
        view_duration(since, s->eta_s);
        snprintf(text, sizeof text, ", to the end %s", since);
        pl_json_text(out, text);
        text_clean(awaited, sizeof awaited, s->awaited, sizeof s->awaited);
        pl_json_text(out, awaited[0] ? ", awaited: " : "");
        pl_json_text(out, awaited);
    }
    pl_json_text(out, "\n");
}

void pl_view_json(const pl_view_data *d, pl_json *out)
{
    const char *life = pl_view_life_name(d->life);
    int n = 0;

    pl_json_text(out, "{\"life\":");
    pl_json_string(out, life, strlen(life));
    pl_json_text(out, ",\"source\":");
    pl_json_string(out, d->source, strlen(d->source));
    if (d->note && d->note[0]) {
        pl_json_text(out, ",\"note\":");
        pl_json_string(out, d->note, strlen(d->note));
    }
    pl_json_text(out, ",\"snapshot\":");
    if (d->now)
        pl_snapshot_json(d->now, out);
    else
        pl_json_text(out, "null");
    pl_json_text(out, ",\"step\":");
    if (d->n_steps > 0)
        pl_json_int(out, d->steps[d->n_steps - 1]);
    else
        pl_json_text(out, "null");
    pl_json_text(out, ",\"metrics\":{");
    for (int i = 0; i < d->n_names; i++) {
        const double v = view_at(d, d->names[i], d->n_steps - 1);
        if (!isfinite(v))
            continue;
        pl_json_text(out, n++ > 0 ? "," : "");
        pl_json_string(out, d->names[i], strlen(d->names[i]));
        pl_json_text(out, ":");
        pl_json_double(out, v);
    }
    pl_json_text(out, "}}\n");
}
