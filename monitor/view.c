/* monitor/view.c - the page: what every pane shows on top, and how the overview shares its lines.
 */
#include "monitor/view.h"
#include "monitor/view_internal.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    TOP = 4,    /* lines of every pane: run, steps, batch, awaited */
    LOWER = 6,  /* of lengths and time */
    CHARTS = 6, /* of the curves, at least */
    CHARTS_MAX = 14,
};

const char *pl_view_life_name(pl_view_life l)
{
    static const char *const names[] = {
        "running", "silent", "not running", "stopped", "finished", "no snapshot"};
    return (unsigned)l < sizeof names / sizeof names[0] ? names[l] : "?";
}

int view_is_there(const pl_view_data *d)
{
    return d->life == PL_VIEW_RUNNING || d->life == PL_VIEW_SILENT;
}

/* ---- the top ---- */

static void draw_title(canvas *c, const pl_view_data *d)
{
    static const canvas_style styles[] = {
        STYLE_GREEN, STYLE_YELLOW, STYLE_RED, STYLE_YELLOW, STYLE_GREEN, STYLE_DIM};
    const pl_snapshot *s = d->now;
    char state[64], ago[24];
    int n;

    if (s && (d->life == PL_VIEW_DEAD || d->life == PL_VIEW_SILENT || d->life == PL_VIEW_STOPPED ||
                 d->life == PL_VIEW_FINISHED)) {
        view_duration(ago, (double)(d->unix_ms - s->updated_ms) / 1000);
        n = snprintf(state, sizeof state, "%s (last seen %s ago)", pl_view_life_name(d->life), ago);
    } else {
        n = snprintf(state, sizeof state, "%s", pl_view_life_name(d->life));
    }
    const int x = canvas_text(c, 0, 0, c->width, STYLE_BOLD, "paceline ");
    const int room = c->width - x - n - 1;
    if (room > 4)
        canvas_text(c, x, 0, room, STYLE_PLAIN, d->source);
    canvas_text(c, c->width - n > x ? c->width - n : x, 0, n, styles[d->life], state);
}

static void draw_steps(canvas *c, const pl_view_data *d, int y)
{
    const pl_snapshot *s = d->now;
    char elapsed[24], left[24], text[128];
    const double share =
        s && s->total_steps > 0 ? (double)s->step / (double)s->total_steps : (double)NAN;

    if (!s) {
        canvas_print(c, 0, y, c->width, STYLE_PLAIN, "%d steps are recorded", d->n_steps);
        return;
    }
    const int is_there = view_is_there(d);
    const int64_t until = is_there ? d->unix_ms : s->updated_ms;
    view_duration(elapsed, (double)(until - s->started_ms) / 1000);
    const double passed = (double)(d->unix_ms - s->updated_ms) / 1000;
    view_duration(left, is_there && s->eta_s > passed ? s->eta_s - passed : s->eta_s);
    snprintf(text, sizeof text, "step %lld of %lld, %s %s", (long long)s->step,
        (long long)s->total_steps, is_there ? "runs for" : "ran for", elapsed);
    int x = canvas_text(c, 0, y, c->width, STYLE_PLAIN, text);
    if (is_there && isfinite(s->eta_s))
        x = canvas_print(c, x, y, c->width - x, STYLE_PLAIN, ", to the end %s", left);
    if (c->width - x > 8)
        canvas_bar(c, x + 1, y, c->width - x - 1, STYLE_GREEN, share);
}

static void draw_batch(canvas *c, const pl_view_data *d, int y)
{
    const pl_snapshot *s = d->now;
    char since[24], rate[24];

    if (!s)
        return;
    if (!view_is_there(d)) {
        canvas_print(c, 0, y, c->width, STYLE_PLAIN,
            "lost workers %u, thrown out %u, leased again %llu", s->n_lost, s->n_quarantined,
            (unsigned long long)s->n_leased_again);
        return;
    }
    view_duration(since, (double)(d->unix_ms - s->phase_ms) / 1000);
    view_number(rate, s->rate);
    int x = canvas_print(
        c, 0, y, c->width, STYLE_BOLD, "%s %s", pl_phase_name((pl_phase)s->phase), since);
    x = canvas_print(c, x, y, c->width - x, STYLE_PLAIN,
        ": %u of %u samples, %u running, %u queued, %s tokens/s", s->n_done, s->n_samples,
        s->n_running, s->n_queued, rate);
    if (s->n_lost > 0)
        x = canvas_print(c, x, y, c->width - x, STYLE_YELLOW, ", %u lost", s->n_lost);
    if (s->n_quarantined > 0)
        canvas_print(c, x, y, c->width - x, STYLE_RED, ", %u thrown out", s->n_quarantined);
}

static void draw_top(canvas *c, const pl_view_data *d)
{
    draw_title(c, d);
    draw_steps(c, d, 1);
    draw_batch(c, d, 2);
    if (d->note && d->note[0])
        canvas_text(c, 0, 3, c->width, STYLE_RED, d->note);
    else if (d->now && d->now->awaited[0] && d->life == PL_VIEW_RUNNING)
        canvas_print(c, 0, 3, c->width, STYLE_DIM, "awaited: %s", d->now->awaited);
}

/* ---- the overview ---- */

static int clamp(int v, int low, int high)
{
    return v < low ? low : v > high ? high : v;
}

static void draw_curves(canvas *c, const pl_view_data *d, view_box b)
{
    const int half = b.width / 2;

    if (b.width < 60) {
        view_acceptance(c, d, b);
        return;
    }
    view_acceptance(c, d, (view_box){b.x, b.y, half - 1, b.height});
    view_chart(c, d, (view_box){b.x + half, b.y, b.width - half, b.height}, "reward",
        "critic/rewards/mean", STYLE_GREEN);
}

static void draw_lower(canvas *c, const pl_view_data *d, view_box b)
{
    const int half = b.width / 2;

    if (b.width < 60) {
        view_lengths(c, d, b);
        return;
    }
    view_lengths(c, d, (view_box){b.x, b.y, half - 1, b.height});
    view_time(c, d, (view_box){b.x + half, b.y, b.width - half, b.height});
}

/* Lines go to the workers, then to curves and lengths; what is left over makes those taller. */
static void draw_overview(canvas *c, const pl_view_data *d, view_box b)
{
    const int wanted = 1 + (d->now ? clamp(view_workers_shown(d->now), 1, PL_SNAPSHOT_WORKERS) : 0);
    const int is_tall = b.height >= LOWER + CHARTS + 2;
    const int fixed = is_tall ? LOWER + CHARTS : 0;
    int workers = d->now ? clamp(wanted, 0, b.height - fixed) : 0;
    int charts = 0, lower = 0;

    if (!is_tall && d->now)
        workers = clamp(wanted, 0, b.height > 8 ? 3 : b.height);
    if (is_tall) {
        charts = clamp(b.height - workers - LOWER, CHARTS, CHARTS_MAX);
        lower = clamp(b.height - workers - charts, LOWER, CHARTS_MAX);
    } else if (b.height - workers >= 4) {
        charts = b.height - workers;
    }
    if (workers > 0)
        view_workers(c, d, (view_box){b.x, b.y, b.width, workers}, 0, 0);
    if (charts > 0)
        draw_curves(c, d, (view_box){b.x, b.y + workers, b.width, charts});
    if (lower > 0)
        draw_lower(c, d, (view_box){b.x, b.y + workers + charts, b.width, lower});
}

static void draw_pane(canvas *c, const pl_view_data *d, const pl_view_options *o, view_box b)
{
    if (b.height < 1)
        return;
    switch (o->pane) {
    case PL_VIEW_WORKERS:
        if (d->now)
            view_workers(c, d, b, o->first, 1);
        break;
    case PL_VIEW_DRAFTER:
        view_drafter(c, d, b, o->first);
        break;
    case PL_VIEW_METRICS:
        view_metrics(c, d, b, o->first);
        break;
    default:
        draw_overview(c, d, b);
        break;
    }
}

/* What the width has room for: all, without scrolling, or bare letters. */
static void draw_keys(canvas *c, const pl_view_options *o)
{
    static const char *const names[PL_VIEW_PANES] = {
        "o overview", "w workers", "d drafter", "m metrics"};
    enum { WIDE = 63, NARROW = 51 };
    const int y = c->height - 1;
    int x = 0;

    for (int i = 0; i < PL_VIEW_PANES; i++)
        x = 2 + canvas_text(c, x, y, c->width < NARROW ? 1 : c->width - x,
                    o->pane == (pl_view_pane)i ? STYLE_BOLD : STYLE_DIM, names[i]);
    if (c->width >= WIDE)
        x = 2 + canvas_text(c, x, y, c->width - x, STYLE_DIM, "j k scroll");
    canvas_text(c, x, y, c->width < NARROW ? 1 : c->width - x, STYLE_DIM, "q quit");
}

pl_status pl_view_page(const pl_view_data *d, const pl_view_options *o, pl_json *out, pl_error *err)
{
    canvas c;

    if (!canvas_init(&c, o->width, o->height, o->has_utf8, o->has_color))
        return pl_fail(err, PL_E_NOMEM, "no memory for a page of %d x %d", o->width, o->height);
    draw_top(&c, d);
    draw_pane(&c, d, o, (view_box){0, TOP, c.width, c.height - TOP - 1});
    draw_keys(&c, o);
    canvas_write(&c, out);
    canvas_done(&c);
    return pl_json_check(out, "the page", err);
}
