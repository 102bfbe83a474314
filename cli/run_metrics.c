/* cli/run_metrics.c - one step's figures, under the names of the field (docs of metrics.jsonl). */
#include "cli/run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int by_length(const void *a, const void *b)
{
    const int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

static void measure_percentiles(run_lengths *l, const run_batch *b, int n)
{
    int *sorted = malloc((size_t)n * sizeof *sorted);

    if (!sorted)
        return; /* figures only */
    for (int i = 0; i < n; i++)
        sorted[i] = b->responses[i].n_tokens;
    qsort(sorted, (size_t)n, sizeof *sorted, by_length);
    l->p50 = sorted[(50 * n + 99) / 100 - 1];
    l->p90 = sorted[(90 * n + 99) / 100 - 1];
    l->p99 = sorted[(99 * n + 99) / 100 - 1];
    free(sorted);
}

run_lengths run_measure_lengths(const run_batch *b)
{
    const int n = b->n_groups * b->n;
    run_lengths l = {.min = b->responses[0].n_tokens,
        .reward_max = (double)b->samples[0].reward,
        .reward_min = (double)b->samples[0].reward};

    for (int i = 0; i < n; i++) {
        const int tokens = b->responses[i].n_tokens;
        const double reward = (double)b->samples[i].reward;
        l.mean += (double)tokens / n;
        l.clipped += b->responses[i].finish == PL_FINISH_LENGTH ? 1.0 / n : 0;
        l.max = tokens > l.max ? tokens : l.max;
        l.min = tokens < l.min ? tokens : l.min;
        l.reward_max = reward > l.reward_max ? reward : l.reward_max;
        l.reward_min = reward < l.reward_min ? reward : l.reward_min;
    }
    measure_percentiles(&l, b, n);
    return l;
}

double run_acceptance_length(const pl_engine_stats *s)
{
    return s->n_verify_steps > 0 ? 1.0 + (double)s->n_accepted / (double)s->n_verify_steps : 1.0;
}

static int count_marks(const run_batch *b, pl_reward_mark mark)
{
    int n = 0;
    for (int i = 0; i < b->n_groups * b->n; i++)
        n += b->marks[i] == mark;
    return n;
}

/* Idle seconds are of workers from their drain to the step's last response. */
static int drafting_metrics(pl_metric *m, const run_batch *b)
{
    static const char *const alpha[PL_EAGLE_DEPTH_MAX] = {"drafter/alpha_pos_1",
        "drafter/alpha_pos_2", "drafter/alpha_pos_3", "drafter/alpha_pos_4", "drafter/alpha_pos_5",
        "drafter/alpha_pos_6", "drafter/alpha_pos_7", "drafter/alpha_pos_8"};
    const run_draft_figures *d = &b->drafting;
    const pl_engine_stats *e = &b->stats;
    int n = 0;

    m[n++] = (pl_metric){"drafter/version", d->version};
    m[n++] = (pl_metric){"drafter/optimizer_steps", (double)d->n_steps};
    m[n++] = (pl_metric){"drafter/trained_tokens", (double)d->n_tokens};
    m[n++] = (pl_metric){"drafter/dropped", (double)d->n_dropped};
    m[n++] = (pl_metric){"drafter/published", (double)d->n_published};
    m[n++] = (pl_metric){"drafter/rollbacks", (double)d->n_rollbacks};
    m[n++] = (pl_metric){"drafter/swaps", (double)d->n_swaps};
    m[n++] = (pl_metric){"drafter/accept_length", run_drafted_length(e)};
    m[n++] = (pl_metric){"drafter/accept_length_before_swap", run_length_before_swap(e)};
    m[n++] = (pl_metric){"drafter/accept_length_after_swap", run_length_after_swap(e)};
    m[n++] =
        (pl_metric){"rollout/spec_num_draft_learned", (double)e->n_draft_of[PL_SOURCE_LEARNED]};
    m[n++] = (pl_metric){
        "rollout/spec_num_accepted_learned", (double)e->n_accepted_of[PL_SOURCE_LEARNED]};
    m[n++] = (pl_metric){"rollout/tail_throughput",
        e->tail_s > 0 ? (double)e->n_tail_emitted / e->tail_s : (double)NAN};
    m[n++] = (pl_metric){"drafter/halts", (double)d->n_halts};
    m[n++] = (pl_metric){"drafter/halt_ms", d->n_halts > 0 ? d->halt_ms : (double)NAN};
    m[n++] = (pl_metric){"bubble/halt_s", d->halt_s};
    m[n++] = (pl_metric){"bubble/idle_s", d->idle_s};
    m[n++] = (pl_metric){"bubble/drafter_s", d->train_s};
    m[n++] = (pl_metric){"bubble/gate_s", d->gate_s};
    m[n++] = (pl_metric){"bubble/pack_s", d->pack_s};
    m[n++] = (pl_metric){"bubble/wait_s", d->wait_s};
    if (d->depth > 0)
        m[n++] = (pl_metric){"drafter/loss", d->loss};
    for (int i = 0; i < d->depth; i++)
        m[n++] = (pl_metric){alpha[i], d->alpha[i]};
    return n;
}

static double ratio(int64_t n_emitted, int64_t n_steps)
{
    return n_steps > 0 ? (double)n_emitted / (double)n_steps : (double)NAN;
}

double run_rollout_rate(const run_batch *b)
{
    return b->is_continued ? (double)NAN : (double)b->stats.n_emitted / b->seconds;
}

double run_drafted_length(const pl_engine_stats *s)
{
    return ratio(s->n_drafted_emitted, s->n_drafted_steps);
}

double run_length_before_swap(const pl_engine_stats *s)
{
    return ratio(s->n_before_emitted, s->n_before_steps);
}

double run_length_after_swap(const pl_engine_stats *s)
{
    return s->n_before_steps > 0 ? ratio(s->n_drafted_emitted - s->n_before_emitted,
                                       s->n_drafted_steps - s->n_before_steps)
                                 : (double)NAN;
}

pl_status run_record_step(run_watch *w, int64_t step, const run_batch *b, const pl_step_stats *u,
    double step_s, int has_learned, pl_error *err)
{
    const pl_engine_stats *e = &b->stats;
    const run_lengths l = run_measure_lengths(b);
    const double drafted = e->n_draft > 0 ? (double)e->n_accepted / (double)e->n_draft : NAN;
    enum { DRAFTING_MAX = 32 };
    const pl_metric own[] = {
        {"critic/rewards/mean", run_batch_reward(b)},
        {"critic/rewards/max", l.reward_max},
        {"critic/rewards/min", l.reward_min},
        {"response_length/mean", l.mean},
        {"response_length/max", l.max},
        {"response_length/min", l.min},
        {"response_length/p50", l.p50},
        {"response_length/p90", l.p90},
        {"response_length/p99", l.p99},
        {"response_length/clip_ratio", l.clipped},
        {"actor/pg_loss", u->pg_loss},
        {"actor/kl_loss", u->kl_loss},
        {"actor/pg_clipfrac", u->pg_clipfrac},
        {"actor/ppo_kl", u->ppo_kl},
        {"actor/entropy", u->entropy},
        {"actor/grad_norm", u->grad_norm},
        {"actor/lr", u->lr},
        {"rollout/spec_accept_length", run_acceptance_length(e)},
        {"rollout/spec_accept_rate", drafted},
        {"rollout/zero_std/count", u->n_zero_std_groups},
        {"reward/timed_out", count_marks(b, PL_REWARD_TIMED_OUT)},
        {"reward/failed", count_marks(b, PL_REWARD_FAILED)},
        {"reward/retries", (double)b->events.reward_retries},
        {"audit/refused", (double)b->events.refused},
        {"workers/lost", (double)b->events.lost},
        {"workers/quarantined", (double)b->events.quarantined},
        {"workers/leased_again", (double)b->events.leased_again},
        {"workers/recomputed_tokens", (double)b->events.recomputed_tokens},
        {"training/rollout_ratio_max_abs_dev", u->ratio_max_abs_dev},
        {"training/rollout_logprob_mismatches", (double)u->logprob_mismatches},
        {"perf/total_num_tokens", (double)e->n_emitted},
        {"perf/throughput", b->is_continued ? (double)NAN : (double)e->n_emitted / step_s},
        {"perf/rollout_throughput", run_rollout_rate(b)},
        {"perf/micro_batches", u->n_micro_batches},
        {"timing_s/gen", b->seconds},
        {"timing_s/update_actor", u->update_s},
        {"timing_s/step", step_s},
    };
    pl_metric m[sizeof own / sizeof own[0] + DRAFTING_MAX];
    int n = (int)(sizeof own / sizeof own[0]);
    memcpy(m, own, sizeof own);
    if (has_learned)
        n += drafting_metrics(m + n, b);
    return run_watch_metrics(w, step, m, n, err);
}
