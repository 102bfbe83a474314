/* Claims: one message is one line, levels filter, NULL drops, a terminal's last line is cleared. */
#include "core/log.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

/* Read what is in the pipe now. */
static size_t drain(int fd, char *out, size_t room)
{
    const ssize_t n = read(fd, out, room - 1);
    cr_assert_geq(n, 0);
    out[n] = '\0';
    return (size_t)n;
}

Test(log, writes_one_line_and_blanks_what_would_steer_the_terminal)
{
    int ends[2];
    char got[256];
    cr_assert_eq(pipe(ends), 0);
    const pl_log log = {PL_LOG_INFO, ends[1], 0};

    errno = EDOM;
    pl_log_info(&log, "step=%d text=%s", 3, "a\nb\033[2J");
    cr_assert_eq(errno, EDOM);
    (void)drain(ends[0], got, sizeof got);
    cr_assert_str_eq(got, "info: step=3 text=a b [2J\n");
}

Test(log, drops_what_is_above_its_level)
{
    int ends[2];
    char got[256];
    cr_assert_eq(pipe(ends), 0);
    const pl_log log = {PL_LOG_WARN, ends[1], 0};

    pl_log_info(&log, "dropped");
    pl_log_debug(&log, "dropped");
    pl_log_warn(&log, "kept");
    pl_log_write(NULL, PL_LOG_ERROR, "nobody");
    (void)drain(ends[0], got, sizeof got);
    cr_assert_str_eq(got, "warn: kept\n");
}

Test(log, clears_the_line_of_a_progress_bar)
{
    int ends[2];
    char got[256];
    cr_assert_eq(pipe(ends), 0);
    const pl_log log = {PL_LOG_INFO, ends[1], 1};

    pl_log_info(&log, "x");
    (void)drain(ends[0], got, sizeof got);
    cr_assert_eq(strncmp(got, "\r\033[K", 4), 0);
}

Test(log, cuts_long_lines)
{
    int ends[2];
    char got[8192], text[6000];
    cr_assert_eq(pipe(ends), 0);
    const pl_log log = {PL_LOG_INFO, ends[1], 0};

    memset(text, 'a', sizeof text);
    text[sizeof text - 1] = '\0';
    pl_log_info(&log, "%s", text);
    const size_t n = drain(ends[0], got, sizeof got);
    cr_assert_leq(n, 4096);
    cr_assert_str_eq(got + n - 5, "a...\n");
}
