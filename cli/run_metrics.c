/* cli/run_metrics.c - one step's figures, under the names of the field (docs of metrics.jsonl). */
#include "cli/run.h"

#include <math.h>

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
    return l;
}

double run_acceptance_length(const pl_engine_stats *s)
{
    return s->n_verify_steps > 0 ? 1.0 + (double)s->n_accepted / (double)s->n_verify_steps : 1.0;
}

pl_status run_record_step(pl_metrics *metrics, int64_t step, const run_batch *b,
    const pl_step_stats *u, double step_s, pl_error *err)
{
    const pl_engine_stats *e = &b->stats;
    const run_lengths l = run_measure_lengths(b);
    const double drafted = e->n_draft > 0 ? (double)e->n_accepted / (double)e->n_draft : NAN;
    const pl_metric m[] = {
        {"critic/rewards/mean", run_batch_reward(b)},
        {"critic/rewards/max", l.reward_max},
        {"critic/rewards/min", l.reward_min},
        {"response_length/mean", l.mean},
        {"response_length/max", l.max},
        {"response_length/min", l.min},
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
        {"training/rollout_ratio_max_abs_dev", u->ratio_max_abs_dev},
        {"training/rollout_logprob_mismatches", (double)u->logprob_mismatches},
        {"perf/total_num_tokens", (double)e->n_emitted},
        {"perf/throughput", (double)e->n_emitted / step_s},
        {"perf/rollout_throughput", (double)e->n_emitted / b->seconds},
        {"perf/micro_batches", u->n_micro_batches},
        {"timing_s/gen", b->seconds},
        {"timing_s/update_actor", u->update_s},
        {"timing_s/step", step_s},
    };
    return pl_metrics_put(metrics, step, m, (int)(sizeof m / sizeof m[0]), err);
}
