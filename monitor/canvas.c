/* monitor/canvas.c - a page of character cells, written out as lines of text. */
#include "monitor/canvas.h"
#include "monitor/text.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int canvas_init(canvas *c, int width, int height, int has_utf8, int has_color)
{
    width = width < 1 ? 1 : width > CANVAS_WIDTH_MAX ? CANVAS_WIDTH_MAX : width;
    height = height < 1 ? 1 : height > CANVAS_HEIGHT_MAX ? CANVAS_HEIGHT_MAX : height;
    *c = (canvas){width, height, has_utf8, has_color, NULL};
    c->cells = malloc((size_t)width * (size_t)height * sizeof *c->cells);
    for (int i = 0; c->cells && i < width * height; i++)
        c->cells[i] = (canvas_cell){' ', STYLE_PLAIN};
    return c->cells != NULL;
}

void canvas_done(canvas *c)
{
    free(c->cells);
    c->cells = NULL;
}

/* ---- characters ---- */

typedef struct range {
    uint32_t first, last;
} range;

static int is_in(uint32_t code, const range *r, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (code >= r[i].first && code <= r[i].last)
            return 1;
    return 0;
}

/* Columns that a terminal gives a character: 0 for marks above others, 2 for wide ones. */
static int columns_of(uint32_t code)
{
    static const range wide[] = {{0x1100, 0x115F}, {0x2E80, 0x303E}, {0x3041, 0xA4CF},
        {0xA960, 0xA97F}, {0xAC00, 0xD7A3}, {0xF900, 0xFAFF}, {0xFE30, 0xFE6F}, {0xFF00, 0xFF60},
        {0xFFE0, 0xFFE6}, {0x1F300, 0x1F64F}, {0x1F680, 0x1F6FF}, {0x1F900, 0x1FAFF},
        {0x20000, 0x3FFFD}};
    static const range marks[] = {{0x300, 0x36F}, {0x483, 0x489}, {0x591, 0x5C7}, {0x610, 0x61A},
        {0x64B, 0x65F}, {0x6D6, 0x6ED}, {0x900, 0x902}, {0x93A, 0x94F}, {0xE31, 0xE3A},
        {0xE47, 0xE4E}, {0x1AB0, 0x1AFF}, {0x1DC0, 0x1DFF}, {0x20D0, 0x20FF}, {0xFE00, 0xFE0F},
        {0xFE20, 0xFE2F}};

    if (code < 0x300)
        return 1;
    return is_in(code, marks, sizeof marks / sizeof marks[0]) ? 0
           : is_in(code, wide, sizeof wide / sizeof wide[0])  ? 2
                                                              : 1;
}

void canvas_put(canvas *c, int x, int y, canvas_style style, uint32_t code)
{
    if (x < 0 || y < 0 || x >= c->width || y >= c->height)
        return;
    c->cells[y * c->width + x] = (canvas_cell){code, (uint8_t)style};
}

int canvas_text(canvas *c, int x, int y, int n, canvas_style style, const char *text)
{
    const int end = x + n < c->width ? x + n : c->width;
    char clean[1024];
    uint32_t code;

    text_clean(clean, sizeof clean, text, strlen(text));
    for (size_t at = 0, left = strlen(clean); left > 0;) {
        const int n_bytes = text_char(clean + at, left, &code);
        const int n_columns = n_bytes > 0 ? columns_of(code) : 1;
        if (n_bytes <= 0 || x + n_columns > end)
            break;
        if (n_columns > 0)
            canvas_put(c, x, y, style, code);
        if (n_columns > 1)
            canvas_put(c, x + 1, y, style, 0);
        x += n_columns;
        at += (size_t)n_bytes;
        left -= (size_t)n_bytes;
    }
    return x;
}

int canvas_print(canvas *c, int x, int y, int n, canvas_style style, const char *fmt, ...)
{
    char text[1024];
    va_list args;

    va_start(args, fmt);
    const int got = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return got < 0 ? x : canvas_text(c, x, y, n, style, text);
}

/* ---- shapes ---- */

void canvas_rule(canvas *c, int x, int y, int n, const char *title)
{
    const int at = canvas_text(c, x, y, n, STYLE_BOLD, title);

    for (int i = at + 1; i < x + n; i++)
        canvas_put(c, i, y, STYLE_DIM, 0x2500);
}

void canvas_bar(canvas *c, int x, int y, int n, canvas_style style, double share)
{
    const double full = (share > 0 ? share < 1 ? share : 1 : 0) * n;

    for (int i = 0; i < n; i++) {
        const double part = full - i;
        const int eighths = part >= 1 ? 8 : part > 0 ? (int)(8 * part) : 0;
        if (eighths > 0) /* 2588 is the full block, 2589 seven eighths, ... */
            canvas_put(c, x + i, y, style, 0x2588u + (uint32_t)(8 - eighths));
        else
            canvas_put(c, x + i, y, STYLE_DIM, 0x2500);
    }
}

void canvas_columns(canvas *c, int x, int y, int rows, canvas_style style, const double *values,
    int n, double low, double high)
{
    for (int i = 0; i < n; i++) {
        if (!isfinite(values[i]))
            continue;
        const double share = high > low ? (values[i] - low) / (high - low) : 0.5;
        int eighths = (int)lround((share > 0 ? share < 1 ? share : 1 : 0) * 8 * rows);
        eighths = eighths > 0 ? eighths : 1;
        for (int r = rows - 1; r >= 0 && eighths > 0; r--, eighths -= 8)
            canvas_put(c, x + i, y + r, style, 0x2580u + (uint32_t)(eighths > 8 ? 8 : eighths));
    }
}

/* ---- out ---- */

/* What stands for a character where only ASCII is shown. */
static char ascii_of(uint32_t code)
{
    static const char blocks[] = " ..::++##"; /* by eighths */

    if (code < 0x7F)
        return (char)code;
    if (code >= 0x2581 && code <= 0x2588) /* from below */
        return blocks[code - 0x2580];
    if (code >= 0x2589 && code <= 0x258F) /* from the left */
        return blocks[8 - (code - 0x2588)];
    switch (code) {
    case 0x2500:
        return '-';
    case 0x2502:
        return '|';
    case 0x2591:
        return '.';
    case 0x2592:
        return ':';
    case 0x2593:
        return '%';
    case 0xB7:
        return '.';
    default:
        return '?';
    }
}

static void put_code(pl_json *out, uint32_t c)
{
    char b[4];
    size_t n = 0;

    if (c < 0x80) {
        b[n++] = (char)c;
    } else if (c < 0x800) {
        b[n++] = (char)(0xC0 | c >> 6);
    } else if (c < 0x10000) {
        b[n++] = (char)(0xE0 | c >> 12);
        b[n++] = (char)(0x80 | (c >> 6 & 0x3F));
    } else {
        b[n++] = (char)(0xF0 | c >> 18);
        b[n++] = (char)(0x80 | (c >> 12 & 0x3F));
        b[n++] = (char)(0x80 | (c >> 6 & 0x3F));
    }
    if (c >= 0x80)
        b[n++] = (char)(0x80 | (c & 0x3F));
    pl_json_bytes(out, b, n);
}

static const char *const sgr[STYLES] = {"\x1b[0m", "\x1b[0;2m", "\x1b[0;1m", "\x1b[0;32m",
    "\x1b[0;34m", "\x1b[0;33m", "\x1b[0;31m", "\x1b[0;36m", "\x1b[0;35m"};

static void write_line(const canvas *c, const canvas_cell *line, pl_json *out)
{
    int n = c->width;
    uint8_t style = STYLE_PLAIN;

    while (n > 0 && line[n - 1].code == ' ')
        n--;
    for (int i = 0; i < n; i++) {
        if (c->has_color && line[i].style != style && line[i].code != ' ' && line[i].code != 0) {
            style = line[i].style;
            pl_json_text(out, sgr[style]);
        }
        /* Half a wide character, whose other half something else covers, must not move the rest. */
        const int is_wide = line[i].code != 0 && columns_of(line[i].code) == 2;
        const int has_right = i + 1 < c->width && line[i + 1].code == 0;
        const int has_left = i > 0 && line[i].code == 0 && columns_of(line[i - 1].code) == 2;
        if (line[i].code == 0 && has_left && c->has_utf8)
            continue;
        if (line[i].code == 0 || (is_wide && !has_right))
            pl_json_text(out, "?");
        else
            put_code(out, c->has_utf8 ? line[i].code : (uint32_t)ascii_of(line[i].code));
    }
    if (style != STYLE_PLAIN)
        pl_json_text(out, sgr[STYLE_PLAIN]);
    pl_json_text(out, "\n");
}

void canvas_write(const canvas *c, pl_json *out)
{
    for (int y = 0; y < c->height; y++)
        write_line(c, c->cells + y * c->width, out);
}
