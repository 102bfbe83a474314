/* trainer/reward_notes.c - what a reward command makes us say: bounded, whatever it writes. */
#include "trainer/reward_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { LINES_A_MINUTE = 30, MINUTE_MS = 60000 };

/* Start a new minute when the old one is over; 1 when a line may be written in it. */
static int has_room(reward_notes *n)
{
    const int64_t now = reward_now_ms();

    if (n->n_lines == 0 || now - n->since_ms >= MINUTE_MS) {
        if (n->n_dropped > 0)
            pl_log_warn(
                n->log, "reward.command: %lld more lines were not shown", (long long)n->n_dropped);
        n->since_ms = now;
        n->n_lines = 0;
        n->n_dropped = 0;
    }
    if (n->n_lines < LINES_A_MINUTE) {
        n->n_lines++;
        return 1;
    }
    n->n_dropped++;
    return 0;
}

void reward_note(reward_notes *n, const char *fmt, ...)
{
    char text[1024];
    va_list args;

    if (!has_room(n))
        return;
    va_start(args, fmt);
    (void)vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    pl_log_warn(n->log, "reward.command: %s", text);
}

static void end_line(reward_notes *n)
{
    char text[4 * sizeof n->line + 4];

    if (n->n_line == 0)
        return;
    reward_escape(text, sizeof text, n->line, n->n_line);
    reward_escape(n->last, sizeof n->last, n->line, n->n_line);
    n->n_line = 0;
    reward_note(n, "stderr: %s", text);
}

void reward_note_stderr(reward_notes *n, const char *data, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes; i++) {
        if (data[i] == '\n')
            end_line(n);
        else if (n->n_line < sizeof n->line)
            n->line[n->n_line++] = data[i]; /* the rest of a longer line is dropped */
    }
}

void reward_note_end(reward_notes *n)
{
    end_line(n);
}
