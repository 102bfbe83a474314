/* monitor/canvas.h - internal: a page of character cells, drawn on and then written out as lines of
 * text.  What does not fit is cut off; nothing that is drawn can move the cursor. */
#ifndef PL_MONITOR_CANVAS_H
#define PL_MONITOR_CANVAS_H

#include "core/json.h"

#include <stdint.h>

enum { CANVAS_WIDTH_MAX = 500, CANVAS_HEIGHT_MAX = 200 };

typedef enum canvas_style {
    STYLE_PLAIN,
    STYLE_DIM,
    STYLE_BOLD,
    STYLE_GREEN,
    STYLE_BLUE,
    STYLE_YELLOW,
    STYLE_RED,
    STYLE_CYAN,
    STYLE_MAGENTA,
    STYLES
} canvas_style;

typedef struct canvas_cell {
    uint32_t code; /* 0: the right half of a wide character */
    uint8_t style; /* canvas_style */
} canvas_cell;

typedef struct canvas {
    int width, height;
    int has_utf8, has_color;
    canvas_cell *cells; /* [height * width] */
} canvas;

/* 1; 0 when there is no memory.  Sizes beyond the limits are cut to them. */
int canvas_init(canvas *c, int width, int height, int has_utf8, int has_color);
void canvas_done(canvas *c);
/* Draw text (any bytes) from x on, at most n columns of it; returns the column after it. */
int canvas_text(canvas *c, int x, int y, int n, canvas_style style, const char *text);
int canvas_print(canvas *c, int x, int y, int n, canvas_style style, const char *fmt, ...)
    __attribute__((format(printf, 6, 7)));
void canvas_put(canvas *c, int x, int y, canvas_style style, uint32_t code);
/* A heading with a line to the right end of its n columns. */
void canvas_rule(canvas *c, int x, int y, int n, const char *title);
/* n columns, filled from the left as far as share (0 to 1) says. */
void canvas_bar(canvas *c, int x, int y, int n, canvas_style style, double share);
/* Values as columns of height rows above y + rows; NaN: none.  One column a value. */
void canvas_columns(canvas *c, int x, int y, int rows, canvas_style style, const double *values,
    int n, double low, double high);
/* Append the page: height lines, no spaces at their ends. */
void canvas_write(const canvas *c, pl_json *out);

#endif
