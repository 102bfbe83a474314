/* core/log.c - one write(2) a line, so that lines of several processes do not mix. */
#include "core/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { LINE_MAX_BYTES = 4096 };

static const char *const level_names[] = {"error", "warn", "info", "debug"};
/* Red, yellow, none, grey: SGR codes. */
static const char *const level_colours[] = {"\033[31m", "\033[33m", "", "\033[90m"};

static void write_all(int fd, const char *data, size_t n_bytes)
{
    while (n_bytes > 0) {
        const ssize_t n = write(fd, data, n_bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return; /* a log that cannot be written has nowhere to say so */
        data += n;
        n_bytes -= (size_t)n;
    }
}

/* One message is one line, and text from outside must not steer the terminal. */
static void blank_controls(char *text, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const unsigned char c = (unsigned char)text[i];
        if (c < 0x20 || c == 0x7f)
            text[i] = ' ';
    }
}

void pl_log_write(const pl_log *log, pl_log_level level, const char *fmt, ...)
{
    char line[LINE_MAX_BYTES];
    const int saved_errno = errno;
    va_list args;

    if (!log || level > log->level)
        return;

    /* "\r", erase to the end of line: the progress bar is drawn again by its owner. */
    int n = snprintf(line, sizeof line, "%s%s%s:%s ", log->is_tty ? "\r\033[K" : "",
        log->is_tty ? level_colours[level] : "", level_names[level], log->is_tty ? "\033[0m" : "");
    if (n < 0 || n >= (int)sizeof line)
        return;
    const size_t head = (size_t)n;
    const size_t room = sizeof line - head - 1; /* one byte for the newline */

    va_start(args, fmt);
    n = vsnprintf(line + head, room, fmt, args);
    va_end(args);
    if (n < 0)
        return;
    const size_t text = (size_t)n < room ? (size_t)n : room - 1;
    blank_controls(line + head, text);
    if ((size_t)n >= room)
        memcpy(line + head + text - 3, "...", 3);
    line[head + text] = '\n';
    write_all(log->fd, line, head + text + 1);
    errno = saved_errno;
}
