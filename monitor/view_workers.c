/* monitor/view_workers.c - what each worker does now, and did over the last minutes. */
#include "monitor/view_internal.h"

#include <stdio.h>
#include <string.h>

enum { NAME_COLUMNS = 13, FIGURES = 42 /* columns left of a strip */ };

typedef struct look {
    canvas_style style;
    uint32_t code;
    const char *name;
} look;

/* By pl_worker_state. */
static const look looks[] = {
    {STYLE_YELLOW, 0x2592, "joining"},
    {STYLE_GREEN, 0x2588, "busy"},
    {STYLE_DIM, 0x2591, "idle"},
    {STYLE_MAGENTA, 0x2593, "training"},
    {STYLE_YELLOW, 0x2592, "stopping"},
    {STYLE_DIM, 0xB7, "left"},
    {STYLE_RED, 'x', "lost"},
};
enum { N_LOOKS = sizeof looks / sizeof looks[0] };

int view_workers_shown(const pl_snapshot *s)
{
    return s->n_workers < PL_SNAPSHOT_WORKERS ? (int)s->n_workers : PL_SNAPSHOT_WORKERS;
}

/* The state in which most of the seconds from..to - 1 were spent; 0: it was not there. */
static uint8_t most_of(const uint8_t *strip, int from, int to)
{
    int n[N_LOOKS + 1] = {0};
    uint8_t best = 0;

    for (int i = from; i < to; i++)
        n[strip[i] <= N_LOOKS ? strip[i] : 0]++;
    for (uint8_t k = 1; k <= N_LOOKS; k++)
        if (n[k] > 0 && (best == 0 || n[k] > n[best]))
            best = k;
    return best;
}

static void draw_strip(canvas *c, const pl_snapshot_worker *w, int x, int y, int n)
{
    n = n > PL_SNAPSHOT_STRIP ? PL_SNAPSHOT_STRIP : n;
    for (int i = 0; i < n; i++) {
        const int from = i * PL_SNAPSHOT_STRIP / n, to = (i + 1) * PL_SNAPSHOT_STRIP / n;
        const uint8_t state = most_of(w->strip, from, to);
        if (state > 0)
            canvas_put(c, x + i, y, looks[state - 1].style, looks[state - 1].code);
    }
}

static int draw_share(canvas *c, int x, int y, canvas_style style, float part, double all)
{
    return canvas_print(c, x, y, 6, style, "%4.0f%%", 100 * (double)part / all) + 1;
}

/* is_past: its figures are not of now. */
static void draw_worker(
    canvas *c, const pl_snapshot_worker *w, int x, int y, int width, int with_shares, int is_past)
{
    const look *l = &looks[w->state < N_LOOKS ? w->state : PL_WORKER_LOST];
    const int end = x + width;
    const double all = (double)w->busy_s + (double)w->training_s + (double)w->idle_s;
    char rate[24];
    int at = x;

    canvas_text(c, at, y, NAME_COLUMNS, is_past ? STYLE_DIM : STYLE_PLAIN, w->name);
    at += NAME_COLUMNS + 1;
    if (is_past && w->state < PL_WORKER_DRAINING)
        canvas_print(c, at, y, 14, STYLE_DIM, "was %s", l->name);
    else
        canvas_text(c, at, y, 8, l->style, l->name);
    at += 9;
    if (width > 30 && !is_past)
        canvas_print(c, at, y, 9, STYLE_PLAIN, "%4u +%-3u", w->n_running, w->n_held);
    at += 10;
    view_number(rate, (double)w->rate);
    if (width > FIGURES && !is_past)
        canvas_print(c, at, y, 7, STYLE_PLAIN, "%7s",
            w->state == PL_WORKER_BUSY && w->rate > 0 ? rate : "-");
    at += 9;
    if (with_shares && width >= 80) {
        at = draw_share(c, at, y, STYLE_GREEN, w->busy_s, all > 0 ? all : 1);
        at = draw_share(c, at, y, STYLE_MAGENTA, w->training_s, all > 0 ? all : 1);
        at = draw_share(c, at, y, STYLE_DIM, w->idle_s, all > 0 ? all : 1);
        at = canvas_print(c, at, y, 12, STYLE_DIM, "v%d d%u",
            w->policy_version == UINT32_MAX ? -1 : (int)(w->policy_version & INT32_MAX),
            w->drafter_version);
        at = at < x + FIGURES + 28 ? x + FIGURES + 28 : at + 1;
    }
    if (end - at > 4)
        draw_strip(c, w, at, y, end - at);
}

static void draw_heading(canvas *c, const pl_snapshot *s, view_box b, int with_shares, int is_past)
{
    int n[N_LOOKS] = {0};
    char title[96];

    for (int i = 0; i < view_workers_shown(s); i++)
        n[s->workers[i].state < N_LOOKS ? s->workers[i].state : PL_WORKER_LOST]++;
    snprintf(title, sizeof title, "workers: %d busy, %d training, %d idle", n[PL_WORKER_BUSY],
        n[PL_WORKER_TRAINING], n[PL_WORKER_IDLE]);
    canvas_rule(c, b.x, b.y, b.width, is_past ? "workers, as last seen" : title);
    if (b.width < 70)
        return;
    if (with_shares && b.width >= 80) {
        canvas_text(c, b.x + FIGURES, b.y, 28, STYLE_DIM, "  busy train  idle version  ");
        canvas_text(c, b.x + FIGURES + 28, b.y, 7, STYLE_DIM, "4 min ");
    } else {
        canvas_text(c, b.x + FIGURES - 1, b.y, 22, STYLE_DIM,
            is_past ? " 4 minutes " : " the last 4 minutes ");
    }
}

void view_workers(canvas *c, const pl_view_data *d, view_box b, int first, int with_shares)
{
    const pl_snapshot *s = d->now;
    const int is_past = !view_is_there(d);
    const int n = view_workers_shown(s);
    int row = 1;

    if (b.height < 1)
        return;
    draw_heading(c, s, b, with_shares, is_past);
    for (int i = first > 0 ? first : 0; i < n && row < b.height; i++, row++) {
        const int n_left = n - i + ((int)s->n_workers - n);
        if (row == b.height - 1 && n_left > 1) {
            canvas_print(c, b.x, b.y + row, b.width, STYLE_DIM, "and %d more", n_left);
            break;
        }
        draw_worker(c, &s->workers[i], b.x, b.y + row, b.width, with_shares, is_past);
    }
    if (n == 0 && b.height > 1)
        canvas_text(c, b.x, b.y + 1, b.width, STYLE_DIM, "none has joined");
}
