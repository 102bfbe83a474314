/* monitor/text.c - text from outside, made fit to be shown. */
#include "monitor/text.h"

#include <string.h>

int text_char(const char *s, size_t n, uint32_t *code)
{
    static const uint32_t smallest[5] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *b = (const unsigned char *)s;
    const int n_bytes = b[0] < 0x80   ? 1
                        : b[0] < 0xC2 ? 0
                        : b[0] < 0xE0 ? 2
                        : b[0] < 0xF0 ? 3
                        : b[0] < 0xF5 ? 4
                                      : 0;
    uint32_t c = n_bytes < 2 ? b[0] : b[0] & (0x7Fu >> n_bytes);

    if (n_bytes == 0 || (size_t)n_bytes > n)
        return 0;
    for (int i = 1; i < n_bytes; i++) {
        if ((b[i] & 0xC0) != 0x80)
            return 0;
        c = c << 6 | (b[i] & 0x3F);
    }
    if (c < smallest[n_bytes] || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000))
        return 0;
    *code = c;
    return n_bytes;
}

/* Something that a terminal or a reader's eye takes as itself. */
static int is_shown(uint32_t c)
{
    if (c < 0x20 || (c >= 0x7F && c < 0xA0) || c == 0xAD)
        return 0;
    if ((c >= 0x200B && c <= 0x200F) || (c >= 0x2028 && c <= 0x202E))
        return 0;
    if ((c >= 0x2060 && c <= 0x206F) || c == 0x61C || c == 0xFEFF)
        return 0;
    return c < 0xE0000 && (c & 0xFFFE) != 0xFFFE && (c < 0xFFF0 || c > 0xFFFB);
}

void text_clean(char *out, size_t room, const char *in, size_t n)
{
    size_t at = 0, to = 0;

    n = strnlen(in, n);
    while (at < n) {
        uint32_t c = 0;
        const int n_bytes = text_char(in + at, n - at, &c);
        const int n_kept = n_bytes > 0 && is_shown(c) ? n_bytes : 1;
        if (to + (size_t)n_kept >= room)
            break;
        if (n_bytes > 0 && is_shown(c))
            memmove(out + to, in + at, (size_t)n_kept);
        else
            out[to] = '?';
        to += (size_t)n_kept;
        at += n_bytes > 0 ? (size_t)n_bytes : 1;
    }
    out[to] = '\0';
}
