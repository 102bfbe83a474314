/* Claims: the page has the size that was asked for at every size, with and without a run behind it;
 * nothing that stands in a snapshot, a name or a note moves a cursor or breaks a line; a strip
 * shows what a worker did; without UTF-8 all is ASCII; what must be seen is seen at 80 x 24.
 *
 * How: a made-up run of three workers, and one whose every text and number is hostile. */
#include "monitor/text.h"
#include "monitor/view.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_STEPS = 40, N_NAMES = 12 };

static const char *const names[N_NAMES] = {"critic/rewards/mean", "rollout/spec_accept_length",
    "drafter/version", "timing_s/gen", "timing_s/update_actor", "timing_s/step", "bubble/idle_s",
    "bubble/drafter_s", "response_length/mean", "response_length/max", "drafter/alpha_pos_1",
    "\x1b[31mred\nname"};
static double values[N_NAMES][N_STEPS];
static int64_t steps[N_STEPS];

static const double *column(const void *history, const char *name)
{
    (void)history;
    for (int i = 0; i < N_NAMES; i++)
        if (strcmp(names[i], name) == 0)
            return values[i];
    return NULL;
}

static void make_run(pl_snapshot *s, pl_view_data *d)
{
    static const double last[N_NAMES] = {0.5, 2.345, 0, 30, 10, 43, 12, 9, 100, 400, 0.75, 1};

    for (int i = 0; i < N_STEPS; i++) {
        steps[i] = i + 1;
        for (int k = 0; k < N_NAMES; k++)
            values[k][i] = last[k] * (i + 1) / N_STEPS;
        values[2][i] = i / 15;
    }
    values[0][3] = (double)NAN;
    memset(s, 0, sizeof *s);
    *s = (pl_snapshot){.run = "0123456789abcdef",
        .phase = PL_PHASE_ROLLOUT,
        .started_ms = 1000000,
        .updated_ms = 5000000,
        .phase_ms = 4990000,
        .step = N_STEPS,
        .total_steps = 80,
        .n_samples = 64,
        .n_done = 45,
        .n_running = 12,
        .n_queued = 7,
        .rate = 345,
        .eta_s = 3723,
        .policy_version = 40,
        .drafter_version = 2,
        .awaited = "sample 17 from worker-0",
        .n_workers = 3};
    s->lengths[pl_snapshot_bucket(100)] = 45;
    s->running_lengths[pl_snapshot_bucket(390)] = 12;
    for (int i = 0; i < 3; i++) {
        pl_snapshot_worker *w = &s->workers[i];
        snprintf(w->name, sizeof w->name, "worker-%d", i);
        w->state = i == 0 ? PL_WORKER_BUSY : i == 1 ? PL_WORKER_TRAINING : PL_WORKER_IDLE;
        memset(w->strip, w->state + 1, sizeof w->strip);
        w->n_running = i == 0 ? 12 : 0;
    }
    *d = (pl_view_data){.source = "runs/quickstart",
        .now = s,
        .unix_ms = 5000500,
        .n_steps = N_STEPS,
        .n_names = N_NAMES,
        .steps = steps,
        .names = names,
        .column = column};
}

/* Everything that another could have written, at its worst. */
static void make_hostile(pl_snapshot *s, pl_view_data *d)
{
    make_run(s, d);
    unsigned x = 12345;
    for (size_t i = 0; i < sizeof s->workers; i++) {
        x = x * 1664525 + 1013904223;
        ((unsigned char *)s->workers)[i] = (unsigned char)(x >> 24);
    }
    memset(s->awaited, '\x9b', sizeof s->awaited);
    memcpy(s->awaited, "\x1b[2J\x1b]0;x\x07\r\n\xe4\xb8\xad\xe6\x96\x87\xcc\x81\xe2\x80\xae", 24);
    snprintf(s->workers[0].name, sizeof s->workers[0].name,
        "\xe4\xb8\xad\xe4\xb8\xad\xe4\xb8\xad\xe4\xb8\xad\xe4\xb8\xad\xe4\xb8\xad\xe4\xb8\xad");
    s->n_workers = UINT32_MAX;
    s->phase = 77;
    s->rate = 1e300;
    s->eta_s = 1e300;
    s->step = INT64_MAX;
    s->total_steps = INT64_MIN;
    s->started_ms = INT64_MAX / 2;
    for (int i = 0; i < PL_SNAPSHOT_LENGTHS; i++)
        s->lengths[i] = s->running_lengths[i] = UINT32_MAX;
    for (int k = 0; k < N_NAMES; k++)
        for (int i = 0; i < N_STEPS; i++)
            values[k][i] = i % 3 == 0 ? 1e300 : i % 3 == 1 ? -1e300 : (double)NAN;
    d->source = "\x1b[41m\xff\xfe runs/\xf0\x9f\x98\x80\n";
    d->note = "bad \x1bP note";
}

/* Lines, and their width in columns as a terminal counts them; no control bytes but ESC [ .. m. */
static void check_page(const pl_json *j, const pl_view_options *o)
{
    int n_lines = 0, width = 0;

    for (size_t at = 0; at < j->n;) {
        uint32_t c = 0;
        if (o->has_color && j->data[at] == '\x1b') {
            const size_t n = strspn(j->data + at + 2, "0123456789;");
            cr_assert(j->data[at + 1] == '[' && j->data[at + 2 + n] == 'm', "an escape");
            at += n + 3;
            continue;
        }
        const int n = text_char(j->data + at, j->n - at, &c);
        cr_assert_gt(n, 0, "no UTF-8 at %zu", at);
        at += (size_t)n;
        if (c == '\n') {
            cr_assert_leq(width, o->width, "line %d of %d x %d", n_lines, o->width, o->height);
            n_lines++;
            width = 0;
            continue;
        }
        cr_assert(c >= 0x20 && c != 0x7f && !(c >= 0x80 && c < 0xa0), "control character %x", c);
        cr_assert(c < 0x80 || o->has_utf8, "no ASCII: %x", c);
        cr_assert(c != 0x202e && (c != 0x301 || o->height == N_STEPS + 1)); /* lines may have it */
        width += (c >= 0x4e00 && c < 0xa000) || c >= 0x1f300 ? 2 : 1;
    }
    cr_assert_eq(width, 0);
    cr_assert_eq(n_lines, o->height);
}

static void draw(const pl_view_data *d, const pl_view_options *o, pl_json *j)
{
    pl_error err = {0};

    pl_json_clear(j);
    cr_assert_eq(pl_view_page(d, o, j, &err), PL_OK, "%s", err.msg);
    check_page(j, o);
}

/* All sizes by coarse steps, the small ones all, and all panes. */
static void draw_all(pl_view_data *d)
{
    pl_json j = {0};

    for (int height = 1; height <= 60; height += height < 26 ? 1 : 17)
        for (int width = 1; width <= 200; width += width < 20 ? 6 : width < 90 ? 9 : 55)
            for (int k = 0; k < 4 * PL_VIEW_PANES; k++) {
                const pl_view_options o = {.width = width,
                    .height = height,
                    .has_utf8 = k & 1,
                    .has_color = k >> 1 & 1,
                    .pane = (pl_view_pane)(k >> 2),
                    .first = height % 7};
                draw(d, &o, &j);
            }
    pl_json_done(&j);
}

Test(view, fits_the_terminal_at_every_size_in_every_pane)
{
    static pl_snapshot s;
    pl_view_data d;

    make_run(&s, &d);
    draw_all(&d);
    d.life = PL_VIEW_DEAD;
    d.n_steps = d.n_names = 0;
    draw_all(&d);
    d.now = NULL; /* a run that never wrote one */
    draw_all(&d);
}

Test(view, shows_hostile_text_and_numbers_without_a_control_character)
{
    static pl_snapshot s;
    pl_view_data d;
    pl_json j = {0};
    const pl_view_options line = {.width = 100000, .height = N_STEPS + 1, .has_utf8 = 1};

    make_hostile(&s, &d);
    draw_all(&d);
    for (int i = 0; i < N_STEPS; i++)
        pl_view_step_line(&d, i, &j);
    pl_view_now_line(&d, &j);
    check_page(&j, &line);
    pl_json_clear(&j);
    pl_view_json(&d, &j);
    cr_assert_eq(strcspn(j.data, "\x1b\x07\r"), j.n);
    cr_assert_eq(strcspn(j.data, "\n"), j.n - 1, "one line");
    pl_json_done(&j);
}

Test(view, tells_at_80_by_24_all_that_is_asked_of_it)
{
    static const char *const wanted[] = {"runs/quickstart", "running", "step 40 of 80", "1:02:0",
        "rollout 0:10", "45 of 64 samples", "12 running", "7 queued", "345 tokens/s",
        "awaited: sample 17 from worker-0", "worker-0", "busy", "worker-1", "training", "worker-2",
        "idle", "acceptance length 2.345", "d1", "d2", "p40", "reward 0.500", "p50 1", "p99 3",
        "45 done", "12 run", "time of step 40: 43 s", "rollout       30 s", "update        10 s",
        "other          3 s", "idle 12 worker-s, 75 %", "q quit"};
    static pl_snapshot s;
    pl_view_data d;
    pl_json j = {0};
    const pl_view_options o = {.width = 80, .height = 24, .has_utf8 = 1};

    make_run(&s, &d);
    draw(&d, &o, &j);
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++)
        cr_assert_not_null(strstr(j.data, wanted[i]), "no '%s' in\n%s", wanted[i], j.data);
    pl_json_done(&j);
}

/* The cells of the line with this name, after its figures. */
static const char *strip_of(const pl_json *j, const char *name)
{
    const char *at = strstr(j->data, name); /* "\nworker-0" */
    cr_assert_not_null(at);
    return at + 1 + 42;
}

Test(view, draws_in_a_strip_what_a_worker_did_when)
{
    static pl_snapshot s;
    pl_view_data d;
    pl_json j = {0};
    const pl_view_options o = {.width = 282, .height = 24}; /* a column a second */

    make_run(&s, &d);
    memset(s.workers[0].strip, 0, 40);
    memset(s.workers[0].strip + 100, PL_WORKER_TRAINING + 1, 50);
    memset(s.workers[0].strip + 200, PL_WORKER_IDLE + 1, 40);
    draw(&d, &o, &j);
    const char *strip = strip_of(&j, "\nworker-0");
    for (int i = 0; i < PL_SNAPSHOT_STRIP; i++) {
        const char want = i < 40 ? ' ' : i >= 100 && i < 150 ? '%' : i >= 200 ? '.' : '#';
        cr_assert_eq(strip[i], want, "second %d is '%c', not '%c'", i, strip[i], want);
    }
    /* Narrower, a column is what most of its seconds were. */
    const pl_view_options narrow = {.width = 42 + 24, .height = 24};
    draw(&d, &narrow, &j);
    cr_assert_eq(strncmp(strip_of(&j, "\nworker-0"), "    ######%%%%%#####....", 24), 0);
    pl_json_done(&j);
}

Test(view, says_when_a_run_is_over_and_how)
{
    static pl_snapshot s;
    pl_view_data d;
    pl_json j = {0};

    make_run(&s, &d);
    d.life = PL_VIEW_DEAD;
    d.unix_ms = s.updated_ms + 7384000;
    pl_view_now_line(&d, &j);
    cr_assert_str_eq(j.data, "not running (last seen 2:03:04 ago): step 40 of 80\n");
    pl_json_clear(&j);
    d.life = PL_VIEW_FINISHED;
    pl_view_now_line(&d, &j);
    cr_assert_str_eq(j.data, "finished: step 40 of 80\n");
    pl_json_clear(&j);
    const pl_view_options o = {.width = 80, .height = 24};
    draw(&d, &o, &j);
    cr_assert_not_null(strstr(j.data, "finished (last seen 2:03:04 ago)"));
    cr_assert_null(strstr(j.data, "awaited"));
    pl_json_done(&j);
}
