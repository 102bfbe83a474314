/* monitor/view_charts.c - curves over steps, lengths of responses, and where a step's time goes. */
#include "monitor/view_internal.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { LABEL = 7 /* columns of the figures beside a chart */ };

/* Which steps a column of a chart shows. */
typedef struct scale {
    int first, n;        /* steps */
    int columns, repeat; /* used in all; of one step, when there are fewer */
} scale;

static scale scale_of(int n_steps, int width)
{
    scale s = {0, n_steps, width, 1};

    if (n_steps > 0 && n_steps <= width) {
        s.repeat = width / n_steps < 3 ? width / n_steps : 3;
        s.columns = n_steps * s.repeat;
    }
    return s;
}

static void steps_of(const scale *s, int column, int *from, int *to)
{
    if (s->n <= s->columns) {
        *from = column / s->repeat;
        *to = *from + 1;
        return;
    }
    *from = (int)((int64_t)column * s->n / s->columns);
    *to = (int)((int64_t)(column + 1) * s->n / s->columns);
}

static double mean(const double *v, int from, int to)
{
    double sum = 0;
    int n = 0;

    for (int i = from; i < to; i++)
        if (isfinite(v[i])) {
            sum += v[i];
            n++;
        }
    return n > 0 ? sum / n : (double)NAN;
}

/* values [CANVAS_WIDTH_MAX]: a column's mean each; 0 when there is none at all. */
static int resample(const double *column, const scale *s, double *values, double *low, double *high)
{
    int any = 0;

    for (int i = 0; i < s->columns; i++) {
        int from, to;
        steps_of(s, i, &from, &to);
        values[i] = mean(column, from, to);
        if (!isfinite(values[i]))
            continue;
        *low = any && *low < values[i] ? *low : values[i];
        *high = any && *high > values[i] ? *high : values[i];
        any = 1;
    }
    return any;
}

void view_sparkline(canvas *c, const double *values, int n, view_box b, canvas_style style)
{
    double v[CANVAS_WIDTH_MAX], low = 0, high = 0;
    const int width = b.width < CANVAS_WIDTH_MAX ? b.width : CANVAS_WIDTH_MAX;
    const scale s = scale_of(n, width);

    if (width < 1 || n < 1 || !resample(values, &s, v, &low, &high))
        return;
    canvas_columns(c, b.x, b.y, b.height, style, v, s.columns, low, high);
}

/* Steps below the chart, and where the drafter's version changed: "p0   d1    d2     p39". */
static void draw_axis(canvas *c, const pl_view_data *d, const scale *s, int x, int y, int width)
{
    const double *drafter = view_column(d, "drafter/version");
    double before = drafter ? drafter[0] : 0;
    int end;

    end = canvas_print(
        c, x, y, width, STYLE_DIM, "p%lld ", (long long)(d->steps[0] > 0 ? d->steps[0] - 1 : 0));
    for (int i = 0; drafter && i < s->columns; i++) {
        int from, to;
        steps_of(s, i, &from, &to);
        const double version = drafter[to - 1 > from ? to - 1 : from];
        if (!isfinite(version) || version == before)
            continue;
        before = version;
        char mark[32];
        const int n_mark = snprintf(mark, sizeof mark, "d%.0f", version);
        const int at = i + n_mark > width ? x + width - n_mark : x + i;
        if (at >= end) /* marks do not cover one another */
            end = canvas_text(c, at, y, n_mark, STYLE_MAGENTA, mark) + 1;
    }
    char last[32];
    const int n = snprintf(last, sizeof last, "p%lld", (long long)d->steps[d->n_steps - 1] - 1);
    const int at = x + s->columns - n;
    if (at >= end && d->n_steps > 1)
        canvas_text(c, at, y, n, STYLE_DIM, last);
}

/* A figure of at most LABEL - 1 columns, whatever its size. */
static void label_of(char label[24], double v)
{
    view_number(label, v);
    if (strlen(label) < LABEL)
        return;
    snprintf(label, 24, "%.0e", v);
    char *plus = strchr(label, '+');
    if (plus)
        memmove(plus, plus + 1, strlen(plus));
}

static void draw_chart(canvas *c, const pl_view_data *d, view_box b, const double *column,
    canvas_style style, double floor_at)
{
    double values[CANVAS_WIDTH_MAX], low = 0, high = 0;
    char label[24];
    const int width = b.width - LABEL;
    const scale s = scale_of(d->n_steps, width < CANVAS_WIDTH_MAX ? width : CANVAS_WIDTH_MAX);

    if (width < 4 || b.height < 2 || !resample(column, &s, values, &low, &high))
        return;
    if (isfinite(floor_at)) { /* a gain that is not seen in the figure is not seen in the curve */
        low = floor_at < low ? floor_at : low;
        high = high > low + 0.5 ? high : low + 0.5;
    }
    label_of(label, high);
    canvas_print(c, b.x, b.y, LABEL - 1, STYLE_DIM, "%6s", label);
    label_of(label, low);
    canvas_print(c, b.x, b.y + b.height - 2, LABEL - 1, STYLE_DIM, "%6s", label);
    canvas_columns(c, b.x + LABEL, b.y, b.height - 1, style, values, s.columns, low, high);
    draw_axis(c, d, &s, b.x + LABEL, b.y + b.height - 1, width);
}

void view_chart(canvas *c, const pl_view_data *d, view_box b, const char *title, const char *name,
    canvas_style style)
{
    const double *column = view_column(d, name);
    char text[96], value[24];

    view_number(value, view_last(d, name));
    snprintf(text, sizeof text, "%s %s", title, value);
    canvas_rule(c, b.x, b.y, b.width, text);
    if (!column) {
        canvas_text(c, b.x, b.y + 1, b.width, STYLE_DIM, "no step is done yet");
        return;
    }
    const view_box inner = {b.x, b.y + 1, b.width, b.height - 1};
    draw_chart(c, d, inner, column, style, (double)INFINITY);
}

/* 1 is no gain: the chart stands on it. */
void view_acceptance(canvas *c, const pl_view_data *d, view_box b)
{
    const double *column = view_column(d, "rollout/spec_accept_length");
    char text[96], value[24];
    const int policy = d->now && d->now->policy_version != UINT32_MAX
                           ? (int)(d->now->policy_version & INT32_MAX)
                           : 0;

    view_number(value, view_last(d, "rollout/spec_accept_length"));
    if (d->now)
        snprintf(text, sizeof text, "acceptance length %s, p%d d%u", value, policy,
            d->now->drafter_version);
    else
        snprintf(text, sizeof text, "acceptance length %s", value);
    canvas_rule(c, b.x, b.y, b.width, text);
    if (!column) {
        canvas_text(c, b.x, b.y + 1, b.width, STYLE_DIM, "no step is done yet");
        return;
    }
    const view_box inner = {b.x, b.y + 1, b.width, b.height - 1};
    draw_chart(c, d, inner, column, STYLE_CYAN, 1.0);
}

/* ---- lengths ---- */

static void draw_histogram(canvas *c, const pl_view_data *d, view_box b)
{
    const pl_snapshot *s = d->now;
    double all[PL_SNAPSHOT_LENGTHS * 3], done[PL_SNAPSHOT_LENGTHS * 3], high = 0;
    int first = PL_SNAPSHOT_LENGTHS, last = -1;

    for (int i = 0; i < PL_SNAPSHOT_LENGTHS; i++)
        if (s->lengths[i] || s->running_lengths[i]) {
            first = first < i ? first : i;
            last = i;
        }
    if (last < 0 || b.height < 2 || b.width < 8)
        return;
    const int wide = b.width / (last - first + 1);
    const int each = wide > 3 ? 3 : wide < 1 ? 1 : wide;
    int n = 0;
    for (int i = first; i <= last; i++)
        for (int k = 0; k < each; k++, n++) {
            all[n] = (double)s->lengths[i] + (double)s->running_lengths[i];
            done[n] = s->lengths[i] ? (double)s->lengths[i] : (double)NAN;
            high = high > all[n] ? high : all[n];
            all[n] = all[n] > 0 ? all[n] : (double)NAN;
        }
    const int from = n > b.width ? n - b.width : 0; /* the tail is what matters */
    canvas_columns(c, b.x, b.y, b.height - 1, STYLE_YELLOW, all + from, n - from, 0, high);
    canvas_columns(c, b.x, b.y, b.height - 1, STYLE_GREEN, done + from, n - from, 0, high);
    const int at = canvas_print(c, b.x, b.y + b.height - 1, b.width, STYLE_DIM, "%d",
        pl_snapshot_length(first + from / each));
    char end[32];
    const int n_end = snprintf(end, sizeof end, "%d", view_bucket_end(d, last));
    const int at_end = b.x + (n - from < n_end ? n_end : n - from) - n_end;
    if (at_end > at)
        canvas_text(c, at_end, b.y + b.height - 1, n_end, STYLE_DIM, end);
}

static void draw_last_lengths(canvas *c, const pl_view_data *d, view_box b)
{
    char mean_text[24], max_text[24];

    view_number(mean_text, view_last(d, "response_length/mean"));
    view_number(max_text, view_last(d, "response_length/max"));
    if (isfinite(view_last(d, "response_length/p50"))) {
        char p50[24], p90[24], p99[24];
        view_number(p50, view_last(d, "response_length/p50"));
        view_number(p90, view_last(d, "response_length/p90"));
        view_number(p99, view_last(d, "response_length/p99"));
        canvas_print(c, b.x, b.y, b.width, STYLE_PLAIN, "p50 %s p90 %s p99 %s longest %s", p50, p90,
            p99, max_text);
    } else {
        canvas_print(c, b.x, b.y, b.width, STYLE_PLAIN, "last step: mean %s, longest %s", mean_text,
            max_text);
    }
    const double *column = view_column(d, "response_length/mean");
    const view_box line = {b.x, b.y + 1, b.width, b.height - 1 < 3 ? b.height - 1 : 3};
    if (column && line.height > 0)
        view_sparkline(c, column, d->n_steps, line, STYLE_GREEN);
}

void view_lengths(canvas *c, const pl_view_data *d, view_box b)
{
    const view_box inner = {b.x, b.y + 1, b.width, b.height - 1};

    if (b.height < 2)
        return;
    canvas_rule(c, b.x, b.y, b.width, "response lengths, tokens");
    /* What is left of a run that is over is the closing comparison's. */
    const int is_over = d->life == PL_VIEW_FINISHED || d->life == PL_VIEW_STOPPED;
    const int median = is_over ? -1 : view_percentile(d, 0.5);
    if (median < 0) {
        draw_last_lengths(c, d, inner);
        return;
    }
    int at = canvas_print(c, b.x, b.y + 1, b.width, STYLE_PLAIN, "p50 %d p90 %d p99 %d", median,
        view_percentile(d, 0.9), view_percentile(d, 0.99));
    at = canvas_print(
        c, at + 1, b.y + 1, b.x + b.width - at - 1, STYLE_GREEN, "%u done", d->now->n_done);
    canvas_print(
        c, at + 1, b.y + 1, b.x + b.width - at - 1, STYLE_YELLOW, "%u run", d->now->n_running);
    const view_box below = {b.x, b.y + 2, b.width, b.height - 2};
    draw_histogram(c, d, below);
}

/* ---- time ---- */

static void draw_part(
    canvas *c, view_box b, int row, const char *name, double s, double all, canvas_style style)
{
    char text[24];

    if (row >= b.height)
        return;
    view_number(text, s);
    canvas_print(c, b.x, b.y + row, 20, STYLE_PLAIN, "%-9s%7s s", name, text);
    if (b.width > 24 && all > 0 && isfinite(s))
        canvas_bar(c, b.x + 19, b.y + row, b.width - 19, style, s / all);
}

void view_time(canvas *c, const pl_view_data *d, view_box b)
{
    const int last = d->n_steps - 1;
    int i = last;

    if (b.height < 2)
        return;
    while (i > 0 && !isfinite(view_at(d, "timing_s/step", i)))
        i--;
    const double all = view_at(d, "timing_s/step", i), gen = view_at(d, "timing_s/gen", i);
    const double update = view_at(d, "timing_s/update_actor", i);
    const double idle = view_at(d, "bubble/idle_s", i), used = view_at(d, "bubble/drafter_s", i);
    char text[96], value[24];

    view_number(value, all);
    if (isfinite(all))
        snprintf(text, sizeof text, "time of step %lld: %s s", (long long)d->steps[i], value);
    else
        snprintf(text, sizeof text, "time of a step");
    canvas_rule(c, b.x, b.y, b.width, text);
    const view_box inner = {b.x, b.y + 1, b.width, b.height - 1};
    if (!isfinite(all)) {
        canvas_text(c, b.x, b.y + 1, b.width, STYLE_DIM, "no step is done yet");
        return;
    }
    const double rest = all - (isfinite(gen) ? gen : 0) - (isfinite(update) ? update : 0);
    draw_part(c, inner, 0, "rollout", gen, all, STYLE_GREEN);
    draw_part(c, inner, 1, "update", update, all, STYLE_BLUE);
    draw_part(c, inner, 2, "other", rest > 0 ? rest : 0, all, STYLE_DIM);
    if (isfinite(idle) && inner.height > 3) {
        view_number(value, idle);
        canvas_print(c, b.x, inner.y + 3, b.width, STYLE_PLAIN, "idle %s worker-s, %.0f %% trained",
            value, idle > 0 && isfinite(used) ? 100 * fmin(used / idle, 1.0) : 0.0);
    }
}
