/* trainer/reward_notes.c - what a reward command makes us say: bounded, whatever it writes. */
#include "trainer/reward_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { SHOWN = 3, MINUTE_MS = 60000 };

static void say_hidden(const reward_notes *n, reward_kind *k, const char *what)
{
    if (k->n_hidden > 0)
        pl_log_warn(n->log, "reward.command: %lld more %s, the last one: %s",
            (long long)k->n_hidden, what, k->last);
    k->n_hidden = 0;
}

void reward_notes_settle(reward_notes *n)
{
    say_hidden(n, &n->failures, "failures");
    say_hidden(n, &n->words, "lines on its stderr");
}

static void note(reward_notes *n, reward_kind *k, const char *text)
{
    const int64_t now = reward_now_ms();

    if (k->n_shown < SHOWN) {
        k->n_shown++;
        pl_log_warn(n->log, "reward.command: %s%s", text,
            k->n_shown == SHOWN ? " (from now on they are counted)" : "");
        return;
    }
    if (n->failures.n_hidden + n->words.n_hidden == 0)
        n->since_ms = now;
    k->n_hidden++;
    (void)snprintf(k->last, sizeof k->last, "%.*s", (int)sizeof k->last - 1, text);
    if (now - n->since_ms >= MINUTE_MS)
        reward_notes_settle(n);
}

void reward_note(reward_notes *n, const char *fmt, ...)
{
    char text[1024];
    va_list args;

    va_start(args, fmt);
    (void)vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    note(n, &n->failures, text);
}

static void end_line(reward_notes *n)
{
    char text[4 * sizeof n->line + 4], said[sizeof text + 16];

    if (n->n_line == 0)
        return;
    reward_escape(text, sizeof text, n->line, n->n_line);
    reward_escape(n->last, sizeof n->last, n->line, n->n_line);
    n->n_line = 0;
    snprintf(said, sizeof said, "stderr: %s", text);
    note(n, &n->words, said);
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
