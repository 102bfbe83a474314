/* trainer/schedule.c - learning rate of a step: linear warm-up, then constant or half a cosine. */
#include "core/rng.h"
#include "trainer/internal.h"

#include <string.h>

#define PI 3.14159265358979323846

double schedule_lr(const pl_actor_options *o, int64_t step, int64_t total_steps)
{
    const int64_t warmup = o->lr_warmup_steps;

    if (step < warmup)
        return o->lr * ((double)step / (double)warmup);
    if (strcmp(o->lr_scheduler_type, "cosine") != 0)
        return o->lr;

    /* 0 at the first step at full rate, 1 at the last step of the run. */
    const int64_t first = warmup > 1 ? warmup : 1;
    if (total_steps <= first)
        return o->lr;
    const double x = (double)(step - first) / (double)(total_steps - first);
    double sine, cosine;
    pl_sincos_d(PI * (x > 1 ? 1 : x), &sine, &cosine);
    return o->lr * (o->min_lr_ratio + (1 - o->min_lr_ratio) * 0.5 * (1 + cosine));
}
