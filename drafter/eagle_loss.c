/* drafter/eagle_loss.c - what a prediction is charged for (DRAFTING 1.3), and how the depths are
 * weighed. */
#include "drafter/eagle_trainer.h"

#include <math.h>
#include <string.h>

enum { LANES = 16 };

/* Of EAGLE-1: weight of the cross-entropy beside that of the hidden state, which is 1. */
#define EAGLE1_CE 0.1f
/* Of the LK hybrid: lam = exp(-LK_ETA alpha). */
#define LK_ETA 3.0f

static float lanes_total(const float *lane)
{
    float sum = 0;
    for (int j = 0; j < LANES; j++)
        sum += lane[j];
    return sum;
}

typedef struct sums {
    float alpha, mass, pz, p;
} sums;

/* q where q < p, else +0; by masks, which become vectors where a ?: becomes a branch. */
static inline float below(float q, float p)
{
    uint32_t bits;
    memcpy(&bits, &q, sizeof bits);
    bits &= -(uint32_t)(q < p);
    memcpy(&q, &bits, sizeof q);
    return q;
}

/* What a row's loss is made of, over whole lanes. */
static sums add_up(const float *restrict q, const float *restrict p, const float *restrict z, int n)
{
    float alpha[LANES] = {0}, mass[LANES] = {0}, pz[LANES] = {0}, kept[LANES] = {0};

    for (int i = 0; i < n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            const float least = q[i + j] < p[i + j] ? q[i + j] : p[i + j];
            alpha[j] += least;
            mass[j] += below(q[i + j], p[i + j]);
            pz[j] += p[i + j] * z[i + j];
            kept[j] += p[i + j];
        }
    return (sums){lanes_total(alpha), lanes_total(mass), lanes_total(pz), lanes_total(kept)};
}

/* A loss as a sum: value, and the weights of d alpha / dz (negated) and of d CE / dz. */
typedef struct mixture {
    float loss, on_alpha, on_ce;
} mixture;

static mixture mix_of(const eagle_goal *g, float alpha, float ce)
{
    const float least = 1e-4f; /* of alpha: keeps the gradient of a row that has none finite */
    const float safe = alpha > least ? alpha : least;
    const float lam = g->kind == PL_EAGLE_LOSS_LK ? expf(-LK_ETA * alpha) : g->alpha_weight;

    switch (g->kind) {
    case PL_EAGLE_LOSS_LK: /* lam is held fixed */
        return (mixture){lam * (ce + g->p_log_p) + (1 - lam) * (1 - alpha), 1 - lam, lam};
    case PL_EAGLE_LOSS_CE:
        return (mixture){ce, 0, 1};
    case PL_EAGLE_LOSS_EAGLE1:
        return (mixture){EAGLE1_CE * ce, 0, EAGLE1_CE};
    default:
        return (mixture){lam * -logf(safe) + (1 - lam) * ce, lam / safe, 1 - lam};
    }
}

eagle_loss eagle_loss_row(
    float *restrict q, const float *restrict p, const float *restrict z, int n, const eagle_goal *g)
{
    const int whole = n / LANES * LANES;
    sums s = add_up(q, p, z, whole);

    for (int i = whole; i < n; i++) {
        s.alpha += q[i] < p[i] ? q[i] : p[i];
        s.mass += below(q[i], p[i]);
        s.pz += p[i] * z[i];
        s.p += p[i];
    }
    const float ce = g->lse * s.p - s.pz / g->temperature;
    const mixture m = mix_of(g, s.alpha, ce);
    const float on_alpha = g->weight * m.on_alpha / g->temperature;
    const float on_ce = g->weight * m.on_ce / g->temperature;
    const float on_q = on_alpha * s.mass + on_ce * s.p;
    for (int i = 0; i < n; i++)
        q[i] = (on_q * q[i] - on_alpha * below(q[i], p[i])) - on_ce * p[i];
    return (eagle_loss){.alpha = s.alpha, .ce = ce, .coverage = s.p, .loss = m.loss};
}

float eagle_match_row(float *ds, const uint16_t *s, const uint16_t *target, int n, float weight)
{
    const float each = weight / (float)n;
    float sum = 0;

    for (int i = 0; i < n; i++) {
        const float d = pl_bf16_to_f32(s[i]) - pl_bf16_to_f32(target[i]), size = fabsf(d);
        sum += size < 1 ? 0.5f * d * d : size - 0.5f;
        ds[i] += each * (size < 1 ? d : copysignf(1, d));
    }
    return sum / (float)n;
}

/* ---- depths ---- */

void pl_eagle_depth_weights(float *weights, const double *alpha, int depth)
{
    double reached[PL_EAGLE_DEPTH_MAX], later = 0, chain = 1;

    for (int k = 0; k < depth; k++)
        reached[k] = chain *= alpha[k];
    for (int k = depth - 1; k >= 0; k--)
        reached[k] = later += reached[k];
    for (int k = 0; k < depth; k++)
        weights[k] = k == 0 ? 1.0f : later > 0 ? (float)(reached[k] / later) : 0.0f;
}
