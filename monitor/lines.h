/* monitor/lines.h - internal: bytes that come in pieces, cut into lines of bounded length, and the
 * top level of a line that is a JSON object.
 *
 * The scanner allocates nothing, whatever the line: it finds where values begin and end.  It takes
 * every object that is JSON and nests at most LINES_DEPTH deep; inside nested values it checks
 * brackets and strings only, so whoever needs one of those parses it. */
#ifndef PL_MONITOR_LINES_H
#define PL_MONITOR_LINES_H

#include <stddef.h>
#include <stdint.h>

enum { LINES_DEPTH = 64 };

/* A whole line without its end; NULL: it was longer than max.  Not 0: stop. */
typedef int (*lines_fn)(void *ctx, const char *line, size_t n);

typedef struct lines {
    size_t max;      /* bytes of a line: set before the first use, all else 0 */
    char *data;      /* [n] of a line whose end has not come */
    size_t n, room;  /* bytes */
    int is_skipping; /* that line is too long already, or there was no memory for it */
} lines;

/* Call fn for each line that ends in these bytes.  Returns what fn said when it was not 0. */
int lines_feed(lines *l, const char *bytes, size_t n, lines_fn fn, void *ctx);
/* The last line, when it has no end. */
int lines_end(lines *l, lines_fn fn, void *ctx);
void lines_clear(lines *l); /* begin anew */
void lines_done(lines *l);

/* A member of the object. */
typedef struct scan_value {
    const char *key; /* [n_key] between its quotes, escapes as they stand */
    size_t n_key;
    const char *at; /* [n] the value; a string without its quotes */
    size_t n;
    char kind; /* '"' string, '0' number, '[', '{', 't', 'f', 'n' (null) */
} scan_value;

typedef struct scan {
    const char *at, *end;
    int is_first;
} scan;

void scan_begin(scan *s, const char *line, size_t n);
/* 1: *v is the next member; 0: the object ended well; -1: this is no JSON object. */
int scan_next(scan *s, scan_value *v);
/* The next element of the array v, as scan_begin and scan_next; its key is empty. */
void scan_begin_array(scan *s, const scan_value *v);
int scan_next_element(scan *s, scan_value *v);

int scan_is_key(const scan_value *v, const char *key);
/* The number v, whatever the locale; NaN for null, for what is none, and beyond the range. */
double scan_number(const scan_value *v);
/* A whole number from low to high, else missing. */
int64_t scan_int(const scan_value *v, int64_t low, int64_t high, int64_t missing);
/* Bytes that the string v stands for, to out [v->n], which may be v->at.  Half a surrogate pair
 * becomes U+FFFD; other bytes stay, UTF-8 or not.  Returns how many. */
size_t scan_string(const scan_value *v, char *out);

#endif
