/* model/utf8.h - UTF-8 one sequence at a time; included only inside model/. */
#ifndef PL_MODEL_UTF8_H
#define PL_MODEL_UTF8_H

#include <stddef.h>
#include <stdint.h>

typedef enum utf8_kind { UTF8_VALID, UTF8_INVALID, UTF8_CUT } utf8_kind;

/* Look at the sequence at s[0], n_bytes > 0.  *len: its length when valid; when invalid, that of
 * the longest part that could have begun a character, at least 1 (Unicode 3.9, "maximal subpart");
 * when the text ends inside a character that is right so far, n_bytes. */
utf8_kind utf8_step(const char *s, size_t n_bytes, size_t *len);

/* Length of the longest valid prefix. */
size_t utf8_valid(const char *s, size_t n_bytes);

/* Code point of a valid sequence of len bytes. */
uint32_t utf8_decode(const char *s, size_t len);

/* Write c, at most 0x7ff, into out[2]; returns the bytes written. */
size_t utf8_put2(char *out, uint32_t c);

#endif
