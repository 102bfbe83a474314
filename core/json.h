/* core/json.h - JSON text out: a growing buffer, numbers that read back exactly, clean strings.
 *
 * No call fails by itself: an allocation that does is remembered, and pl_json_check reports it once
 * at the end.  Nothing here depends on the locale or on the caller's FTZ and DAZ. */
#ifndef PL_CORE_JSON_H
#define PL_CORE_JSON_H

#include "core/error.h"

#include <stddef.h>
#include <stdint.h>

typedef struct pl_json {
    char *data;  /* [n] and a NUL; NULL before the first byte */
    size_t n;    /* bytes */
    size_t room; /* bytes allocated */
    int failed;  /* an allocation failed: the text is incomplete */
} pl_json;       /* start with {0} */

void pl_json_done(pl_json *j);  /* accepts a zeroed one */
void pl_json_clear(pl_json *j); /* empty, keep the memory */

/* Text that is JSON already: punctuation, keys, objects. */
void pl_json_text(pl_json *j, const char *text);
void pl_json_bytes(pl_json *j, const char *text, size_t n_bytes);
/* Bytes of the UTF-8 character at s [n_bytes >= 1], or of the maximal subpart of one that is broken
 * (then *is_valid is 0, and pl_json_string writes U+FFFD for it). */
size_t pl_json_sequence(const char *s, size_t n_bytes, int *is_valid);
/* A string with its quotes: escaped, each invalid UTF-8 sequence (maximal subpart) as U+FFFD. */
void pl_json_string(pl_json *j, const char *s, size_t n_bytes);
void pl_json_int(pl_json *j, int64_t v);
/* Text of as few digits (6 to 9, 15 to 17 for double, zeros at the end dropped) as read back to the
 * same bits; NaN and infinity become null. */
void pl_json_float(pl_json *j, float v);
void pl_json_double(pl_json *j, double v);

/* Errors: PL_E_NOMEM, when a part is missing.  what names the text. */
pl_status pl_json_check(const pl_json *j, const char *what, pl_error *err);

#endif
