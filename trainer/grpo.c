/* trainer/grpo.c - group-relative advantages and the clipped loss of one token.
 *
 * Gradients decide weights, so all of it is +, -, *, /, sqrt in double and pl_exp_d: the same bits
 * on every machine.  Sources: Shao et al. 2024 (arXiv 2402.03300, equations 3 and 4), clip-higher
 * and token-mean: Yu et al. 2025 (DAPO, arXiv 2503.14476), k3: Schulman 2020. */
#include "core/rng.h"
#include "trainer/internal.h"

#include <math.h>

/* Log-ratios beyond this are taken as this: exp(20) is out of reach of any sound step, and a bound
 * keeps every sum finite.  verl's value. */
static const double log_ratio_max = 20.0;

void pl_grpo_advantages(const float *rewards, int n, int by_std, float *out)
{
    double sum = 0, squares = 0;

    for (int k = 0; k < n; k++)
        sum += (double)rewards[k];
    const double mean = sum / n; /* exactly the reward when all are equal: the sum is exact */
    for (int k = 0; k < n; k++) {
        const double d = (double)rewards[k] - mean;
        squares += d * d;
    }
    const double std = n > 1 ? sqrt(squares / (n - 1)) : 0;
    for (int k = 0; k < n; k++) {
        const double d = (double)rewards[k] - mean;
        out[k] = (float)(by_std ? d / (std + 1e-6) : d);
    }
}

static double bounded(double x)
{
    return x > log_ratio_max ? log_ratio_max : x < -log_ratio_max ? -log_ratio_max : x;
}

void grpo_token(const grpo_coef *c, double advantage, float logprob, float old, const float *ref,
    grpo_terms *out)
{
    /* exp(0) is exactly 1: before the first update the ratio is 1 and not nearly 1. */
    const double ratio = pl_exp_d(bounded((double)logprob - (double)old));
    const double clipped = ratio < c->clip_low    ? c->clip_low
                           : ratio > c->clip_high ? c->clip_high
                                                  : ratio;

    /* The larger loss counts; where the two are equal the gradient is that of the plain one. */
    const double plain = -advantage * ratio;
    const double held = -advantage * clipped;
    out->ratio = ratio;
    out->is_clipped = held > plain;
    out->pg_loss = out->is_clipped ? held : plain;
    out->d_logprob = out->is_clipped ? 0 : plain; /* d ratio / d logprob = ratio */
    out->kl_loss = 0;
    if (c->kl == 0 || !ref)
        return;

    const double d = bounded((double)*ref - (double)logprob);
    const double e = pl_exp_d(d);
    out->kl_loss = e - d - 1;
    out->d_logprob += c->kl * (1 - e);
}
