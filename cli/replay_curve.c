/* cli/replay_curve.c - what training on recorded rollouts gave, beside what the run had recorded:
 * as a table, and as JSON lines under the names of metrics.jsonl, to be plotted. */
#include "cli/replay_train.h"

#include <math.h>
#include <string.h>

enum { FIGURE_REWARD, FIGURE_LR = TRAIN_FIGURES - 1 };

static const struct {
    const char *name, *label;
} figures[TRAIN_FIGURES] = {
    {"critic/rewards/mean", "reward mean"},
    {"actor/pg_loss", "pg_loss"},
    {"actor/kl_loss", "kl_loss"},
    {"actor/grad_norm", "grad_norm"},
    {"actor/ppo_kl", "ppo_kl"},
    {"actor/entropy", "entropy"},
    {"actor/pg_clipfrac", "pg_clipfrac"},
    {"actor/lr", "lr"},
};

/* ---- filling ---- */

static double recorded(const pl_history *h, const char *name, int64_t step)
{
    const int64_t *steps = NULL;
    const double *column = h ? pl_history_column(h, name) : NULL;
    const int n = column ? pl_history_steps(h, &steps) : 0;

    for (int i = n - 1; i >= 0; i--)
        if (steps[i] == step)
            return column[i];
    return (double)NAN;
}

void train_point_fill(
    train_point *p, const pl_rollouts *x, double recorded_reward, const pl_history *history)
{
    const pl_step_stats *u = &p->stats;
    double reward = 0;

    for (int i = 0; i < x->n; i++)
        reward += (double)x->samples[i].reward;
    const double now[TRAIN_FIGURES] = {reward / x->n, u->pg_loss, u->kl_loss, u->grad_norm,
        u->ppo_kl, u->entropy, u->pg_clipfrac, u->lr};
    memcpy(p->now, now, sizeof now);
    p->n_samples = x->n;
    for (int k = 0; k < TRAIN_FIGURES; k++)
        p->recorded[k] = recorded(history, figures[k].name, p->step);
    p->recorded[FIGURE_REWARD] = recorded_reward; /* of the records themselves */
}

void train_point_add(train_point *sums, const train_point *p)
{
    for (int k = 0; k < TRAIN_FIGURES; k++) {
        sums->recorded[k] += p->recorded[k];
        sums->now[k] += p->now[k];
    }
}

/* ---- as a table ---- */

static void print_row(const char *label, double then, double now)
{
    printf("  %-12s", label);
    if (isnan(then))
        printf(" %14s %14.6g %14s\n", "-", now, "-");
    else
        printf(" %14.6g %14.6g %+14.6g\n", then, now, now - then);
}

static void print_rows(const train_point *p)
{
    for (int k = 0; k < TRAIN_FIGURES; k++)
        if (p->now[k] != 0 || (!isnan(p->recorded[k]) && p->recorded[k] != 0))
            print_row(figures[k].label, p->recorded[k], p->now[k]);
}

static const char *said(train_weights w)
{
    return w == WEIGHTS_EQUAL    ? "weights equal"
           : w == WEIGHTS_DIFFER ? "weights differ"
                                 : "weights not recorded";
}

static void print_off_policy(const train_point *p, const char *before)
{
    const pl_step_stats *u = &p->stats;

    printf("%soff-policy: %lld of %lld log-probs differ, largest |ratio - 1| %.3g, kl %.3g, "
           "k3 %.3g, effective samples %.1f %%\n",
        before, (long long)u->logprob_mismatches, (long long)u->n_tokens, u->ratio_max_abs_dev,
        u->rollout_kl, u->rollout_k3, 100 * u->rollout_ess);
}

void train_point_print(const train_point *p, int with_recorded)
{
    if (!with_recorded) {
        printf("step %-5lld reward %.3f  pg_loss %.6g  grad_norm %.6g  ppo_kl %.3g  entropy %.4g  "
               "%s\n",
            (long long)p->step, p->now[FIGURE_REWARD], p->stats.pg_loss, p->stats.grad_norm,
            p->stats.ppo_kl, p->stats.entropy, said(p->weights));
        if (p->is_off)
            print_off_policy(p, "           ");
        fflush(stdout);
        return;
    }
    printf("step %-9lld %14s %14s %14s\n", (long long)p->step, "recorded", "new", "difference");
    print_rows(p);
    if (p->n_rescored >= 0)
        printf("  rewards that changed: %d of %d\n", p->n_rescored, p->n_samples);
    if (p->is_off)
        print_off_policy(p, "  ");
    printf("  %s\n\n", said(p->weights));
    fflush(stdout);
}

void train_means_print(const train_point *sums, int n)
{
    train_point means = *sums;
    char title[48];

    for (int k = 0; k < TRAIN_FIGURES; k++) {
        means.recorded[k] /= n;
        means.now[k] /= n;
    }
    snprintf(title, sizeof title, "mean of %d", n);
    printf("%-14s %14s %14s %14s\n", title, "recorded", "new", "difference");
    print_rows(&means);
}

/* ---- as JSON ---- */

static void put_figure(pl_json *j, const char *name, double value)
{
    pl_json_text(j, ",\"");
    pl_json_text(j, name);
    pl_json_text(j, "\":");
    pl_json_double(j, value);
}

pl_status train_point_json(const train_point *p, pl_error *err)
{
    static const char *const words[] = {"unknown", "equal", "differ"};
    const pl_step_stats *u = &p->stats;
    pl_json j = {0};

    pl_json_text(&j, "{\"step\":");
    pl_json_int(&j, p->step);
    for (int k = 0; k < TRAIN_FIGURES; k++)
        put_figure(&j, figures[k].name, p->now[k]);
    put_figure(&j, "training/rollout_ratio_max_abs_dev", u->ratio_max_abs_dev);
    put_figure(&j, "training/rollout_logprob_mismatches", (double)u->logprob_mismatches);
    put_figure(&j, "rollout_corr/kl", u->rollout_kl);
    put_figure(&j, "rollout_corr/k3_kl", u->rollout_k3);
    put_figure(&j, "rollout_corr/rollout_is_eff_sample_size", u->rollout_ess);
    if (p->n_rescored >= 0)
        put_figure(&j, "reward/changed", p->n_rescored);
    pl_json_text(&j, ",\"weights\":\"");
    pl_json_text(&j, words[p->weights]);
    pl_json_text(&j, "\",\"recorded\":{\"step\":");
    pl_json_int(&j, p->step);
    for (int k = 0; k < TRAIN_FIGURES; k++)
        put_figure(&j, figures[k].name, p->recorded[k]);
    pl_json_text(&j, "}}\n");
    const pl_status st = pl_json_check(&j, "curve", err);
    if (st == PL_OK)
        fwrite(j.data, 1, j.n, stdout);
    pl_json_done(&j);
    return st == PL_OK ? cli_flush(err) : st;
}
