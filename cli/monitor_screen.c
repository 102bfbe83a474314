/* cli/monitor_screen.c - the page on a terminal: drawn again every interval, on a key, on a new
 * size; the terminal is given back as it was on every way out. */
#define _GNU_SOURCE
#include "cli/monitor.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

/* Another screen, no cursor, no wrapping at the right edge; and back. */
static const char enter_text[] = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J";
static const char leave_text[] = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l";

/* What a signal handler gives back: nothing but this is kept outside of the functions. */
static struct termios saved;
static volatile sig_atomic_t is_entered, has_saved;

/* ---- the terminal ---- */

static void write_text(const char *text, size_t n)
{
    while (n > 0) {
        const ssize_t put = write(STDOUT_FILENO, text, n);
        if (put < 0 && errno != EINTR)
            return; /* the terminal has gone */
        if (put > 0) {
            text += put;
            n -= (size_t)put;
        }
    }
}

static void leave(void)
{
    if (!is_entered)
        return;
    is_entered = 0;
    if (has_saved)
        (void)tcsetattr(STDIN_FILENO, TCSADRAIN, &saved);
    write_text(leave_text, sizeof leave_text - 1);
}

static void enter(void)
{
    struct termios raw;

    has_saved = isatty(STDIN_FILENO) && tcgetattr(STDIN_FILENO, &saved) == 0;
    if (has_saved) { /* keys at once and unseen; ^C and ^Z stay signals */
        raw = saved;
        raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
        raw.c_cc[VMIN] = 0;
        raw.c_cc[VTIME] = 0;
        (void)tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
    }
    is_entered = 1;
    write_text(enter_text, sizeof enter_text - 1);
}

/* A fault, or ^Z: the terminal first, then what the signal does by itself. */
static void on_fault(int sig)
{
    leave();
    (void)raise(sig); /* SA_RESETHAND: the default */
}

static void on_stop(int sig)
{
    const int code = errno;
    sigset_t set;

    leave();
    (void)signal(sig, SIG_DFL);
    sigemptyset(&set);
    sigaddset(&set, sig);
    (void)raise(sig);
    (void)sigprocmask(SIG_UNBLOCK, &set, NULL); /* here it stops, until SIGCONT */
    struct sigaction again = {.sa_handler = on_stop};
    (void)sigaction(sig, &again, NULL);
    enter();
    errno = code;
}

static void on_end(int sig)
{
    (void)sig;
    cli_stop = 1;
}

static void on_resize(int sig)
{
    (void)sig; /* poll returns */
}

static void catch_signals(void)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    const struct sigaction fault = {.sa_handler = on_fault, .sa_flags = SA_RESETHAND};
    const struct sigaction stop = {.sa_handler = on_stop}, end = {.sa_handler = on_end},
                           size = {.sa_handler = on_resize};

    cli_catch_signals(1);
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++)
        (void)sigaction(faults[i], &fault, NULL);
    (void)sigaction(SIGTSTP, &stop, NULL);
    (void)sigaction(SIGHUP, &end, NULL);
    (void)sigaction(SIGQUIT, &end, NULL);
    (void)sigaction(SIGWINCH, &size, NULL);
}

/* ---- what it can show ---- */

static int names_utf8(const char *locale)
{
    return strcasestr(locale, "UTF-8") || strcasestr(locale, "UTF8");
}

static void look_at_terminal(pl_view_options *o)
{
    static const char *const variables[] = {"LC_ALL", "LC_CTYPE", "LANG"};
    const char *no_color = getenv("NO_COLOR");

    for (int i = 0; i < 3; i++) {
        const char *locale = getenv(variables[i]);
        if (locale && locale[0]) {
            o->has_utf8 = names_utf8(locale);
            break;
        }
    }
    o->has_color = !(no_color && no_color[0]);
}

static void look_at_size(pl_view_options *o)
{
    struct winsize w = {0};

    o->width = 80;
    o->height = 24;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 0 && w.ws_row > 0) {
        o->width = w.ws_col;
        o->height = w.ws_row;
    }
}

/* ---- drawing ---- */

/* In one write: each line cleared and drawn. */
static pl_status draw(const monitor_source *s, const pl_view_options *o, pl_error *err)
{
    pl_json page = {0}, text = {0};

    pl_status st = pl_view_page(monitor_source_data(s), o, &page, err);
    pl_json_text(&text, "\x1b[H");
    for (const char *at = page.data; st == PL_OK && at && *at;) {
        const size_t n = strcspn(at, "\n");
        const int is_last = at[n] == '\0' || at[n + 1] == '\0';
        pl_json_text(&text, "\x1b[K"); /* first: after a full line it would take its last column */
        pl_json_bytes(&text, at, n);
        pl_json_text(&text, is_last ? "" : "\r\n");
        at += n + (at[n] == '\n');
    }
    if (st == PL_OK)
        st = pl_json_check(&text, "the page", err);
    if (st == PL_OK)
        write_text(text.data, text.n);
    pl_json_done(&page);
    pl_json_done(&text);
    return st;
}

/* ---- keys ---- */

static void show_pane(pl_view_options *o, pl_view_pane pane)
{
    o->pane = pane;
    o->first = 0;
}

static void scroll(pl_view_options *o, int by)
{
    const int first = o->first + by;
    o->first = first < 0 ? 0 : first > PL_SNAPSHOT_WORKERS * 8 ? PL_SNAPSHOT_WORKERS * 8 : first;
}

/* 1: quit. */
static int take_key(pl_view_options *o, const char *keys, size_t n)
{
    if (n >= 3 && keys[0] == '\x1b' && (keys[1] == '[' || keys[1] == 'O')) {
        const int page = o->height > 8 ? o->height - 8 : 1;
        scroll(o, keys[2] == 'A'   ? -1
                  : keys[2] == 'B' ? 1
                  : keys[2] == '5' ? -page
                  : keys[2] == '6' ? page
                                   : 0);
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        switch (keys[i]) {
        case 'q':
        case 'Q':
            return 1;
        case '1':
        case 'o':
            show_pane(o, PL_VIEW_OVERVIEW);
            break;
        case '2':
        case 'w':
            show_pane(o, PL_VIEW_WORKERS);
            break;
        case '3':
        case 'd':
            show_pane(o, PL_VIEW_DRAFTER);
            break;
        case '4':
        case 'm':
            show_pane(o, PL_VIEW_METRICS);
            break;
        case '\t':
            show_pane(o, (pl_view_pane)(((int)o->pane + 1) % PL_VIEW_PANES));
            break;
        case 'k':
            scroll(o, -1);
            break;
        case 'j':
            scroll(o, 1);
            break;
        default:
            break;
        }
    }
    return 0;
}

/* Wait for a key or the next look.  1: quit. */
static int wait_key(pl_view_options *o, double seconds, int *has_keys)
{
    struct pollfd p = {.fd = *has_keys ? STDIN_FILENO : -1, .events = POLLIN};
    char keys[64];

    if (poll(&p, 1, (int)(1000 * seconds)) < 1)
        return 0;
    const ssize_t n = read(STDIN_FILENO, keys, sizeof keys);
    if (n <= 0) { /* nobody will type any more */
        *has_keys = 0;
        return (p.revents & POLLHUP) != 0;
    }
    return take_key(o, keys, (size_t)n);
}

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

pl_status monitor_screen(monitor_source *s, double interval_s, pl_error *err)
{
    pl_view_options o = {0};
    pl_error unseen = {0};
    int has_keys = isatty(STDIN_FILENO);
    double next = 0;
    pl_status st = PL_OK;

    look_at_terminal(&o);
    catch_signals();
    enter();
    while (st == PL_OK && !cli_stop) {
        const double now = seconds_now();
        if (now >= next) {
            (void)monitor_source_poll(s, &unseen); /* shown on the page */
            next = now + interval_s;
        }
        look_at_size(&o);
        st = draw(s, &o, err);
        const double left = next - seconds_now();
        if (st == PL_OK && wait_key(&o, left > 0 ? left : 0, &has_keys))
            break;
    }
    leave();
    return st;
}
