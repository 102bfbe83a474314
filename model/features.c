/* model/features.c - what a learned drafter reads of a pass: copied on the way, at no pass more.
 *
 * The residual stream is in place, so the output of a layer is there only until the next layer adds
 * to it.  Rows are shared out as in the norm that comes next, and everything that could change the
 * stream stands behind that norm's barrier: a capture needs none of its own. */
#include "model/features.h"
#include "model/internal.h"

#include <string.h>

void pl_feature_layers(const pl_arch *a, int layers[PL_FEATURE_LAYERS])
{
    const int n = a->n_layers;
    const int published[PL_FEATURE_LAYERS] = {1, n / 2 - 1, n - 4};
    const int small[PL_FEATURE_LAYERS] = {0, (n - 1) / 2, n - 1};

    memcpy(layers, n >= 7 ? published : small, sizeof published);
}

void pl_pass_set_features(pl_pass *p, const pl_features *f)
{
    p->features = f ? *f : (pl_features){0};
    pl_feature_layers(&p->m->arch, p->feature_layers);
}

void pass_capture_layer(pl_pass *p, int layer, int i_thread, int n_threads)
{
    const size_t cp = (size_t)p->dims.cp, c = (size_t)p->dims.c;
    int begin, end;

    if (!p->features.rows)
        return;
    pl_share(p->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (int i = 0; i < PL_FEATURE_LAYERS; i++) {
        if (p->feature_layers[i] != layer)
            continue;
        for (int r = begin; r < end; r++) {
            uint16_t *to = p->features.rows + ((size_t)r * PL_FEATURE_LAYERS + (size_t)i) * cp;
            p->m->ops->round_bf16(to, p->acts.x_in + (size_t)r * c, p->dims.c);
            memset(to + c, 0, (cp - c) * sizeof *to);
        }
    }
}

void pass_capture_hidden(pl_pass *p, int i_thread, int n_threads)
{
    const size_t cp = (size_t)p->dims.cp, c = (size_t)p->dims.c;
    int begin, end;

    if (!p->features.hidden)
        return;
    pl_share(p->n_rows, 1, i_thread, n_threads, &begin, &end);
    for (int r = begin; r < end; r++) {
        uint16_t *to = p->features.hidden + (size_t)r * cp;
        p->m->ops->rmsnorm(
            to, p->acts.x_in + (size_t)r * c, p->m->final_norm, p->dims.c, p->m->arch.rms_eps);
        memset(to + c, 0, (cp - c) * sizeof *to);
    }
}
