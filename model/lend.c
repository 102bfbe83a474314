/* model/lend.c - what a drafter reads of its target's weights. */
#include "model/internal.h"

#include "model/features.h"

pl_model_parts pl_model_lend(const pl_model *m)
{
    return (pl_model_parts){.embed = m->embed,
        .head = m->head,
        .final_norm = m->final_norm,
        .rope_cos = m->rope_cos,
        .rope_sin = m->rope_sin};
}
