/* monitor/text.h - internal: text from outside, made fit to be shown. */
#ifndef PL_MONITOR_TEXT_H
#define PL_MONITOR_TEXT_H

#include <stddef.h>
#include <stdint.h>

/* Copy the text of in, which ends at a NUL or after n bytes, to out [room >= 1]: valid UTF-8,
 * NUL-terminated, cut between characters.  Control characters (escapes, line ends, C1), marks that
 * turn the direction of text or are not seen, and bytes that are no UTF-8 become '?'.  out may be
 * in. */
void text_clean(char *out, size_t room, const char *in, size_t n);

/* The character at s [n >= 1]: its bytes (1 to 4), *code is its number; 0 when it is no UTF-8. */
int text_char(const char *s, size_t n, uint32_t *code);

#endif
