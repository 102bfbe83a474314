/* cli/run_report.c - the step table, the progress bar, the closing table. */
#include "cli/run.h"

#include "tensor/tensor.h"

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

void run_print_heading(const run_config *c, const cli_model *m, const run_data *d)
{
    const pl_arch *a = pl_source_arch(m->source);
    printf("model      %s: %d layers, hidden %d, vocabulary %d\n", c->rollout.model_path,
        a->n_layers, a->n_embd, a->n_vocab);
    printf("data       %d prompts to train on, %d held out; %lld prompts x %lld samples a step\n",
        d->train->n, d->val ? d->val->n : 0, (long long)c->data.train_batch_size,
        (long long)c->rollout.n);
    printf("backend    %s on %d threads, numeric class %s\n", m->ops->name, pl_team_size(m->team),
        PL_NUMERIC_CLASS);
    printf("run        %s\n", c->trainer.default_local_dir);
    if (run_has_learned(c) && c->speculative.train && c->rollout.num_workers > 0 &&
        c->speculative.min_workers >= c->rollout.num_workers)
        printf("note       the drafter will not be trained: of %lld workers never %lld "
               "(speculative.train.min_workers_for_training) are idle while others roll out\n",
            (long long)c->rollout.num_workers, (long long)c->speculative.min_workers);
}

void run_print_step(const run_step_line *l, int with_heading)
{
    char rate[24] = "-"; /* of a step that another process began */

    if (with_heading)
        printf("%9s %8s %11s %5s %9s %7s %10s %9s\n", "step", "reward", "length mean", "max",
            "tokens/s", "accept", "rollout s", "update s");
    if (!isnan(l->rate))
        snprintf(rate, sizeof rate, "%.1f", l->rate);
    printf("%4lld/%-4lld %8.3f %11.1f %5d %9s %7.2f %10.1f %9.1f\n", (long long)l->step,
        (long long)l->total, l->reward, l->length_mean, l->length_max, rate, l->acceptance,
        l->rollout_s, l->update_s);
    fflush(stdout);
}

void run_print_drafting(const run_draft_figures *d, const pl_engine_stats *s, double before)
{
    const double length = run_drafted_length(s);

    printf("          drafter v%u", d->version);
    if (!isnan(length))
        printf("  accept %.2f", length);
    if (!isnan(length) && !isnan(before))
        printf(" (step before %.2f)", before);
    if (!isnan(run_length_after_swap(s)))
        printf(" (before a swap %.2f, after %.2f)", run_length_before_swap(s),
            run_length_after_swap(s));
    if (d->idle_s > 0)
        printf("  idle %.1f worker-s", d->idle_s);
    if (d->n_steps > 0)
        printf(
            "  trained %.1f s, %lld steps, loss %.2f", d->train_s, (long long)d->n_steps, d->loss);
    for (int i = 0; i < d->depth; i++)
        printf("%s%.2f", i == 0 ? ", alpha " : " ", d->alpha[i]);
    if (d->gate_s > 0)
        printf("  gate %.1f s", d->gate_s);
    if (d->n_halts > 0)
        printf("  core back in %.0f ms", d->halt_ms);
    if (d->n_published > 0)
        printf("  +%lld published", (long long)d->n_published);
    if (d->n_rollbacks > 0)
        printf(", %lld taken back", (long long)d->n_rollbacks);
    printf("\n");
    fflush(stdout);
}

static void print_change(double before, double after)
{
    printf("  %-34s %8.3f -> %.3f", "held-out reward, before -> after", before, after);
    if (before > 0)
        printf("  (x %.2f)", after / before);
    printf("\n");
}

static void print_arms(const run_comparison *c)
{
    static const char *const plain[] = {
        "without speculation", "with speculation", "suffix drafter alone", "first learned drafter"};
    const double n = (double)c->n_tokens * c->n_rounds, off = n / c->arms[0].seconds;

    printf("  rollout tokens/s, held-out samples: %d", c->n_samples);
    if (c->n_rounds > 1)
        printf(", %d times by each way, in turn", c->n_rounds);
    printf("\n");
    printf("    %-32s %8.1f\n", plain[PL_SPECULATE_OFF], off);
    for (int k = 1; k < c->n_arms; k++) {
        const run_arm *a = &c->arms[k];
        const char *name = a->how == PL_SPECULATE_ON && c->n_arms == RUN_ARMS
                               ? "newest learned drafter"
                               : plain[a->how];
        printf("    %-32s %8.1f  (x %.2f, acceptance length %.2f)\n", name, n / a->seconds,
            n / a->seconds / off, run_acceptance_length(&a->stats));
    }
    if (c->lacks_version)
        printf("    %-32s no version has passed the gate yet\n", "learned drafter");
    if (c->n_different == 0)
        printf("    %-32s %s\n", "tokens and log-probs", "compared: same bits in every sample");
    else
        printf("    %-32s DIFFERENT in %d samples: law 1 is broken, please report this\n",
            "tokens and log-probs", c->n_different);
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
        printf(
            "  %-34s %8.2f\n", "acceptance length, training rollouts", run_acceptance_length(all));
    if (c->n_arms > 0)
        print_arms(c);
    fflush(stdout);
}
