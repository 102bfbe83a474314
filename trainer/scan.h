/* trainer/scan.h - JSON read in place, bounded in depth; for this folder only.
 *
 * For lines that strangers write: nothing is allocated for what is stepped over, and NaN and
 * Infinity, which Python writes, are numbers here, for the caller to refuse in words. */
#ifndef PL_TRAINER_SCAN_H
#define PL_TRAINER_SCAN_H

enum { SCAN_DEPTH_MAX = 32 /* brackets inside brackets */ };

typedef struct scan_text {
    const char *p, *end;
} scan_text;

typedef enum scan_kind {
    SCAN_STRING,
    SCAN_NUMBER,
    SCAN_TRUE,
    SCAN_FALSE,
    SCAN_NULL,
    SCAN_OBJECT,
    SCAN_ARRAY
} scan_kind;

typedef struct scan_item {
    scan_kind kind;
    scan_text raw; /* as it stands there; of a string without its quotes, still escaped */
} scan_item;

void scan_space(scan_text *t);
/* The next byte after white space is c: step over it. */
int scan_eat(scan_text *t, char c);
/* A string, after its opening quote.  0: it is broken. */
int scan_quoted(scan_text *t, scan_text *out);
/* Any value; depth: brackets around it.  0: it is broken, or nested too deep. */
int scan_value(scan_text *t, scan_item *out, int depth);

#endif
