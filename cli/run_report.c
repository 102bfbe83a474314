/* cli/run_report.c - the step table, the progress bar, the closing table. */
#include "cli/run.h"

#include <math.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

double run_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void run_progress(const run_report *r, const char *phase, double done, const char *detail)
{
    enum { WIDTH = 30 };
    char bar[WIDTH + 1];
    const int full = (int)(done * WIDTH + 0.5);

    struct winsize window = {0};
    char line[160];

    if (!r->is_tty)
        return;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &window) != 0 || window.ws_col < 2)
        window.ws_col = 80;
    memset(bar, '.', WIDTH);
    memset(bar, '#', (size_t)(full < 0 ? 0 : full > WIDTH ? WIDTH : full));
    bar[WIDTH] = 0;
    snprintf(line, sizeof line, "%-10s [%s] %3.0f %%  %s", phase, bar, done * 100, detail);
    dprintf(STDERR_FILENO, "\r\033[K%.*s", window.ws_col - 1, line);
}

void run_progress_clear(const run_report *r)
{
    if (r->is_tty)
        dprintf(STDERR_FILENO, "\r\033[K");
}

void run_print_step(const run_step_line *l, int with_heading)
{
    if (with_heading)
        printf("%9s %8s %11s %5s %9s %7s %10s %9s\n", "step", "reward", "length mean", "max",
            "tokens/s", "accept", "rollout s", "update s");
    printf("%4lld/%-4lld %8.3f %11.1f %5d %9.1f %7.2f %10.1f %9.1f\n", (long long)l->step,
        (long long)l->total, l->reward, l->length_mean, l->length_max, l->rate, l->acceptance,
        l->rollout_s, l->update_s);
    fflush(stdout);
}

static void print_change(double before, double after)
{
    printf("  %-34s %8.3f -> %.3f", "held-out reward, before -> after", before, after);
    if (before > 0)
        printf("  (x %.2f)", after / before);
    printf("\n");
}

void run_print_closing(
    double before, double after, const pl_engine_stats *all, const run_comparison *c)
{
    printf("\nresult\n");
    if (!isnan(before) && !isnan(after))
        print_change(before, after);
    else if (!isnan(after))
        printf("  %-34s %8.3f\n", "held-out reward", after);
    if (all->n_verify_steps > 0)
        printf("  %-34s %8.2f\n", "acceptance length, training rollouts",
            1.0 + (double)all->n_accepted / (double)all->n_verify_steps);
    if (c->n_samples > 0) {
        const double on = (double)c->n_tokens / c->on_s, off = (double)c->n_tokens / c->off_s;
        printf("  rollout tokens/s, held-out samples: %d\n", c->n_samples);
        printf("    %-32s %8.1f\n", "without speculation", off);
        printf("    %-32s %8.1f  (x %.2f, acceptance length %.2f)\n", "with speculation", on,
            on / off, c->acceptance);
        if (c->n_different == 0)
            printf("    %-32s %s\n", "tokens and log-probs", "compared: same bits in every sample");
        else
            printf("    %-32s DIFFERENT in %d samples: law 1 is broken, please report this\n",
                "tokens and log-probs", c->n_different);
    }
    fflush(stdout);
}
