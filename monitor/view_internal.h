/* monitor/view_internal.h - what the files of the terminal's view share. */
#ifndef PL_MONITOR_VIEW_INTERNAL_H
#define PL_MONITOR_VIEW_INTERNAL_H

#include "monitor/canvas.h"
#include "monitor/view.h"

/* A place on the page. */
typedef struct view_box {
    int x, y, width, height;
} view_box;

/* view_numbers.c: of the history */
const double *view_column(const pl_view_data *d, const char *name); /* NULL: none */
double view_last(const pl_view_data *d, const char *name);          /* the newest there is; NaN */
double view_at(const pl_view_data *d, const char *name, int i);     /* NaN: step i has none */
/* The length below which share of the responses (finished, running as far as they are) stay; -1:
 * there are none. */
int view_percentile(const pl_view_data *d, double share);
/* The length at which a bucket ends: not beyond what the steps so far have seen, if that ends in
 * it.
 */
int view_bucket_end(const pl_view_data *d, int bucket);
/* "1:02:03", "4:05"; "?" for NaN. */
void view_duration(char out[24], double seconds);
/* 4 digits that tell something: "0.412", "2.31", "31.2k". */
void view_number(char out[24], double v);

/* view_workers.c */
void view_workers(canvas *c, const pl_view_data *d, view_box b, int first, int with_shares);
int view_is_there(const pl_view_data *d); /* what the snapshot tells is of now */
int view_workers_shown(const pl_snapshot *s);

/* view_charts.c */
void view_chart(canvas *c, const pl_view_data *d, view_box b, const char *title, const char *name,
    canvas_style style);
void view_acceptance(canvas *c, const pl_view_data *d, view_box b);
void view_lengths(canvas *c, const pl_view_data *d, view_box b);
void view_time(canvas *c, const pl_view_data *d, view_box b);
void view_sparkline(canvas *c, const double *values, int n, view_box b, canvas_style style);

/* view_panes.c */
void view_drafter(canvas *c, const pl_view_data *d, view_box b, int first);
void view_metrics(canvas *c, const pl_view_data *d, view_box b, int first);

#endif
