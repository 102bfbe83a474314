/* monitor/view_panes.c - the pages of the drafter and of all metrics. */
#include "monitor/view_internal.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { AROUND = 3 /* steps before and after a change of version that are compared */ };

/* ---- the drafter ---- */

static double mean_of(const double *v, int from, int to)
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

static void draw_depths(canvas *c, const pl_view_data *d, view_box b)
{
    canvas_rule(c, b.x, b.y, b.width, "accepted by depth");
    for (int i = 0; i + 1 < b.height && i < 8; i++) {
        char name[32], text[24];
        snprintf(name, sizeof name, "drafter/alpha_pos_%d", i + 1);
        const double share = view_last(d, name);
        if (!isfinite(share)) {
            if (i == 0)
                canvas_text(c, b.x, b.y + 1, b.width, STYLE_DIM, "no drafter was trained yet");
            return;
        }
        view_number(text, share);
        canvas_print(c, b.x, b.y + 1 + i, 12, STYLE_PLAIN, "%d %8s", i + 1, text);
        canvas_bar(c, b.x + 12, b.y + 1 + i, b.width - 12, STYLE_MAGENTA, share);
    }
}

static void draw_training(canvas *c, const pl_view_data *d, view_box b)
{
    static const struct {
        const char *name, *metric;
    } rows[] = {
        {"loss", "drafter/loss"},
        {"optimizer steps", "drafter/optimizer_steps"},
        {"trained tokens", "drafter/trained_tokens"},
        {"published", "drafter/published"},
        {"rolled back", "drafter/rollbacks"},
        {"drafted length", "drafter/accept_length"},
        {"idle, worker-s", "bubble/idle_s"},
        {"  of it trained", "bubble/drafter_s"},
    };
    char text[24];

    canvas_rule(c, b.x, b.y, b.width, "the last step");
    for (int i = 0; i < (int)(sizeof rows / sizeof rows[0]) && i + 1 < b.height; i++) {
        view_number(text, view_last(d, rows[i].metric));
        canvas_print(c, b.x, b.y + 1 + i, b.width, STYLE_PLAIN, "%-16s %8s", rows[i].name, text);
    }
}

/* One line a version, newest first: which steps, acceptance before and with it. */
static void draw_versions(canvas *c, const pl_view_data *d, view_box b, int first)
{
    const double *version = view_column(d, "drafter/version");
    const double *length = view_column(d, "rollout/spec_accept_length");
    int row = 1, end = d->n_steps;

    canvas_rule(
        c, b.x, b.y, b.width, "versions, newest first: steps, acceptance before, then with");
    if (!version || !length) {
        canvas_text(c, b.x, b.y + 1, b.width, STYLE_DIM, "no learned drafter in this run");
        return;
    }
    while (end > 0 && row < b.height) {
        int begin = end - 1;
        while (begin > 0 && version[begin - 1] == version[end - 1])
            begin--;
        if (isfinite(version[end - 1]) && first-- <= 0) {
            char before[24], with[24], all[24];
            view_number(before, mean_of(length, begin > AROUND ? begin - AROUND : 0, begin));
            view_number(with, mean_of(length, begin, end - begin > AROUND ? begin + AROUND : end));
            view_number(all, mean_of(length, begin, end));
            canvas_print(c, b.x, b.y + row++, b.width, STYLE_PLAIN,
                "d%-5.0f steps %5lld to %-5lld  %6s -> %-6s all %s", version[end - 1],
                (long long)d->steps[begin], (long long)d->steps[end - 1], before, with, all);
        }
        end = begin;
    }
}

void view_drafter(canvas *c, const pl_view_data *d, view_box b, int first)
{
    const int half = b.width / 2, chart = b.height >= 24 ? 8 : 6;
    const int middle = b.height >= 24 ? 9 : b.height - chart - 4;

    if (b.height < 3)
        return;
    view_acceptance(c, d, (view_box){b.x, b.y, b.width, chart < b.height ? chart : b.height});
    if (middle < 2)
        return;
    draw_training(c, d, (view_box){b.x, b.y + chart, half - 1, middle});
    draw_depths(c, d, (view_box){b.x + half, b.y + chart, b.width - half, middle});
    const int y = chart + middle;
    if (b.height - y >= 2)
        draw_versions(c, d, (view_box){b.x, b.y + y, b.width, b.height - y}, first);
}

/* ---- metrics ---- */

void view_metrics(canvas *c, const pl_view_data *d, view_box b, int first)
{
    const int name_columns = b.width < 60 ? b.width / 2 : 38;
    int row = 1;
    char text[24];

    if (b.height < 1)
        return;
    canvas_rule(c, b.x, b.y, b.width, "all metrics: the newest, and over the steps");
    if (d->n_names == 0 && b.height > 1)
        canvas_text(c, b.x, b.y + 1, b.width, STYLE_DIM, "no step is done yet");
    for (int i = first > 0 ? first : 0; i < d->n_names && row < b.height; i++, row++) {
        const double *column = view_column(d, d->names[i]);
        canvas_text(c, b.x, b.y + row, name_columns, STYLE_PLAIN, d->names[i]);
        view_number(text, view_last(d, d->names[i]));
        canvas_print(c, b.x + name_columns + 1, b.y + row, 10, STYLE_BOLD, "%9s", text);
        const int at = name_columns + 12;
        if (column && b.width > at)
            view_sparkline(c, column, d->n_steps, (view_box){b.x + at, b.y + row, b.width - at, 1},
                STYLE_CYAN);
    }
}
