/* monitor/view.h - a run as text for a terminal: a page of given size, or plain lines.
 *
 * Pure functions of what is known, the time and the size: they read no file and no clock.  Whatever
 * stands in a snapshot or in names, what comes out has no control characters but line ends and,
 * with has_color, the colours of ANSI terminals (ESC [ digits m). */
#ifndef PL_MONITOR_VIEW_H
#define PL_MONITOR_VIEW_H

#include "monitor/monitor.h"

typedef enum pl_view_life {
    PL_VIEW_RUNNING,
    PL_VIEW_SILENT, /* its process is there and says nothing */
    PL_VIEW_DEAD,   /* its process is not there, and did not tell its end */
    PL_VIEW_STOPPED,
    PL_VIEW_FINISHED,
    PL_VIEW_UNKNOWN, /* it is there, or nobody can tell; it wrote no snapshot */
} pl_view_life;
const char *pl_view_life_name(pl_view_life l); /* "running", "not running" */
/* now: its snapshot, or NULL; run_dir: of this machine, or NULL: told by the age alone. */
pl_view_life pl_view_life_of(const pl_snapshot *now, const char *run_dir, int64_t unix_ms);

/* What is known of a run; all borrowed. */
typedef struct pl_view_data {
    const char *source;     /* the run's directory, or where it is served */
    const char *note;       /* what the reader must know (no connection ...); NULL or "": nothing */
    const pl_snapshot *now; /* NULL: none */
    pl_view_life life;
    int64_t unix_ms; /* now, by the clock of now->updated_ms */
    /* The history: steps in rising order; a column [n_steps], or NULL. */
    int n_steps, n_names;
    const int64_t *steps;
    const char *const *names;
    const double *(*column)(const void *history, const char *name);
    const void *history;
} pl_view_data;

typedef enum pl_view_pane {
    PL_VIEW_OVERVIEW,
    PL_VIEW_WORKERS,
    PL_VIEW_DRAFTER,
    PL_VIEW_METRICS,
    PL_VIEW_PANES
} pl_view_pane;

typedef struct pl_view_options {
    int width, height;       /* columns, rows: 1 to 500, 1 to 200 */
    int has_utf8, has_color; /* of the terminal; without UTF-8 all is ASCII */
    pl_view_pane pane;
    int first; /* line of the pane that is shown first */
} pl_view_options;

/* Append height lines of at most width columns.  Errors: PL_E_NOMEM. */
pl_status pl_view_page(
    const pl_view_data *d, const pl_view_options *o, pl_json *out, pl_error *err);

/* Append one line: what step i (index) of the history was; what the run does now. */
void pl_view_step_line(const pl_view_data *d, int i, pl_json *out);
void pl_view_now_line(const pl_view_data *d, pl_json *out);
/* The same as one JSON object: {"life":..,"source":..,"note":..,"snapshot":{..} or null,
 * "step":last,"metrics":{name: value, ..}}; note only when there is one. */
void pl_view_json(const pl_view_data *d, pl_json *out);

#endif
