/* tests/drafter/test_eagle.c - the learned drafter and its training.
 *
 * Claims: the trained forward is that of a drafter which runs token by token with its own keys (a
 * naive one in double precision here), its gradients are those of that drafter's loss (central
 * differences), the loss has the values of its table; one sequence can be learned by heart;
 * features that are one position late show as a low alpha; bad input, a stop and a file leave
 * weights as they were; a run that is resumed ends in the same bits. */
#include "tests/drafter/eagle_bed.h"

#include "core/file.h"
#include "model/safetensors.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- a naive drafter in double precision ---- */

typedef struct naive {
    const bed *b;
    const double *w; /* in the order of the drafter's flat array */
    eagle_dims d;
    /* keys and values of depth 0 by row, of the chain by depth */
    double k0[MAX_N][64], v0[MAX_N][64], kc[DEPTH][64], vc[DEPTH][64];
    double g0[MAX_N][MAX_C];     /* entering states of depth 0 */
    double target[MAX_N][MAX_V]; /* p on the draft vocabulary */
    double *states;              /* [DEPTH][MAX_N][MAX_C], or NULL */
    double loss[DEPTH], alpha[DEPTH];
    int n[DEPTH];
    pl_eagle_loss kind;
    int is_fixed;                    /* lam of LK stays as it is */
    double lam[MAX_N][MAX_N][DEPTH]; /* by window, row, depth */
    int i_window;
} naive;

static const double *param(const naive *n, eagle_param p)
{
    return n->w + n->b->e->p[p].offset;
}

static void norm(double *y, const double *x, const double *w, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += x[i] * x[i];
    const double inv = 1 / sqrt(sum / n + 1e-5);
    for (int i = 0; i < n; i++)
        y[i] = x[i] * inv * w[i];
}

static void times(double *y, const double *w, const double *x, int rows, int cols)
{
    for (int r = 0; r < rows; r++) {
        y[r] = 0;
        for (int c = 0; c < cols; c++)
            y[r] += w[(size_t)r * (size_t)cols + (size_t)c] * x[c];
    }
}

static void turn(double *x, int position, int d)
{
    for (int i = 0; i < d / 2; i++) {
        const double a = position / pow(10000.0, 2.0 * i / d), c = cos(a), s = sin(a);
        const double lo = x[i], hi = x[i + d / 2];
        x[i] = lo * c - hi * s;
        x[i + d / 2] = hi * c + lo * s;
    }
}

/* q, k and v of a token with an entering state. */
static void project(
    const naive *n, const double *g, int token, int position, double *q, double *k, double *v)
{
    const eagle_dims *d = &n->d;
    double e[MAX_C], u[2 * MAX_C], all[256];

    for (int c = 0; c < d->c; c++) /* tied: the embedding comes first */
        e[c] = (double)n->b->masters[(size_t)token * (size_t)d->c + (size_t)c];
    norm(u, e, param(n, EAGLE_NORM_EMB), d->c);
    norm(u + d->c, g, param(n, EAGLE_NORM_HID), d->c);
    times(all, param(n, EAGLE_QKV), u, d->qkv, 2 * d->c);
    for (int h = 0; h < d->h + d->hkv; h++)
        turn(all + h * d->d, position, d->d);
    memcpy(q, all, (size_t)d->ao * sizeof *q);
    memcpy(k, all + d->ao, (size_t)(d->hkv * d->d) * sizeof *k);
    memcpy(v, all + d->ao + d->hkv * d->d, (size_t)(d->hkv * d->d) * sizeof *v);
}

/* Attention over the committed rows 0 .. row and the chain's own 1 .. depth. */
static void attend(const naive *n, const double *q, int row, int depth, double *out)
{
    const eagle_dims *d = &n->d;
    for (int h = 0; h < d->h; h++) {
        double s[MAX_N + DEPTH], sum = 0;
        const int at = h / d->group * d->d, total = row + 1 + depth;
        for (int j = 0; j < total; j++) {
            const double *k = (j <= row ? n->k0[j] : n->kc[j - row]) + at;
            s[j] = 0;
            for (int c = 0; c < d->d; c++)
                s[j] += q[h * d->d + c] * k[c];
            s[j] = exp(s[j] / sqrt(d->d));
            sum += s[j];
        }
        for (int c = 0; c < d->d; c++) {
            out[h * d->d + c] = 0;
            for (int j = 0; j < total; j++)
                out[h * d->d + c] += s[j] / sum * ((j <= row ? n->v0[j] : n->vc[j - row]) + at)[c];
        }
    }
}

/* One step of a chain: the state g becomes the next one, s is what the head reads. */
static void draft(const naive *n, double *g, double *s, const double *q, int row, int depth)
{
    const eagle_dims *d = &n->d;
    double o[128], y[MAX_C], x[MAX_C], gate[128], up[128];

    attend(n, q, row, depth, o);
    times(y, param(n, EAGLE_O), o, d->c, d->ao);
    for (int c = 0; c < d->c; c++)
        y[c] += g[c];
    norm(x, y, param(n, EAGLE_NORM_POST), d->c);
    times(gate, param(n, EAGLE_GATE), x, d->f, d->c);
    times(up, param(n, EAGLE_UP), x, d->f, d->c);
    for (int f = 0; f < d->f; f++)
        gate[f] = gate[f] / (1 + exp(-gate[f])) * up[f];
    times(x, param(n, EAGLE_DOWN), gate, d->c, d->f);
    for (int c = 0; c < d->c; c++)
        y[c] += x[c];
    norm(s, y, param(n, EAGLE_NORM_FINAL), d->c);
    memcpy(g, n->b->e->norm_output ? s : y, (size_t)d->c * sizeof *g);
}

static double smooth_l1(const double *a, const uint16_t *b, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) {
        const double d = fabs(a[i] - (double)pl_bf16_to_f32(b[i]));
        sum += d < 1 ? 0.5 * d * d : d - 0.5;
    }
    return sum / n;
}

/* The state s of row i at a depth. */
static void score(naive *n, const pl_eagle_window *w, int row, int depth, const double *s)
{
    double z[MAX_V], top = -1e30, sum = 0, alpha = 0, ce = 0, p_log_p = 0;
    const int v = n->d.v, at = row + 1 + depth;
    const double *p = n->target[at], t = (double)w->temperature;
    double *lam = &n->lam[n->i_window][row][depth];

    times(z, param(n, EAGLE_HEAD), s, v, n->d.c);
    for (int i = 0; i < v; i++)
        top = z[i] / t > top ? z[i] / t : top;
    for (int i = 0; i < v; i++)
        sum += exp(z[i] / t - top);
    for (int i = 0; i < v; i++) {
        const double log_q = z[i] / t - top - log(sum), q = exp(log_q);
        alpha += q < p[i] ? q : p[i];
        ce -= p[i] * log_q;
        p_log_p += p[i] * log(p[i]);
    }
    if (!n->is_fixed)
        *lam = exp(-3 * alpha);
    n->alpha[depth] += alpha;
    if (n->kind == PL_EAGLE_LOSS_MIX)
        n->loss[depth] += -0.5 * log(alpha) + 0.5 * ce;
    else if (n->kind == PL_EAGLE_LOSS_LK)
        n->loss[depth] += *lam * (ce + p_log_p) + (1 - *lam) * (1 - alpha);
    else if (n->kind == PL_EAGLE_LOSS_CE)
        n->loss[depth] += ce;
    else
        n->loss[depth] += smooth_l1(s, w->hidden + at * n->d.cp, n->d.c) + 0.1 * ce;
    n->n[depth]++;
}

static void target_p(naive *n, const pl_eagle_window *w)
{
    const int c = n->d.c, cp = n->d.cp, vt = n->d.vt;
    for (int i = 0; i < w->n; i++) {
        double z[MAX_V], sum = 0;
        for (int v = 0; v < vt; v++) {
            z[v] = 0;
            for (int j = 0; j < c; j++)
                z[v] += (double)n->b->masters[(size_t)v * (size_t)c + (size_t)j] *
                        (double)pl_bf16_to_f32(w->hidden[i * cp + j]);
            z[v] = exp(z[v] / (double)w->temperature);
            sum += z[v];
        }
        for (int v = 0; v < n->d.v; v++)
            n->target[i][v] = z[n->b->vocab[v]] / sum;
    }
}

static void fuse(naive *n, const pl_eagle_window *w, int i)
{
    const int c = n->d.c, cp = n->d.cp;
    double f[MAX_C], x[3 * MAX_C];
    for (int l = 0; l < PL_FEATURE_LAYERS; l++) {
        for (int j = 0; j < c; j++)
            f[j] = (double)pl_bf16_to_f32(w->features[(i * PL_FEATURE_LAYERS + l) * cp + j]);
        if (n->b->e->has_fc_norm)
            norm(x + l * c, f, param(n, EAGLE_FC_NORM) + l * c, c);
        else
            memcpy(x + l * c, f, (size_t)c * sizeof *x);
    }
    times(n->g0[i], param(n, EAGLE_FC), x, c, 3 * c);
}

/* Every row of a window drafts a chain of its own. */
static void run_window(naive *n, const pl_eagle_window *w, int depth)
{
    double q[128], g[MAX_C], s[MAX_C];

    target_p(n, w);
    for (int i = 0; i + 1 < w->n; i++) {
        fuse(n, w, i);
        project(n, n->g0[i], w->tokens[i + 1], i, q, n->k0[i], n->v0[i]);
        memcpy(g, n->g0[i], sizeof g);
        for (int k = 0; k < depth && i + 1 + k < w->n; k++) {
            if (k > 0)
                project(n, g, w->tokens[i + 1 + k], i + k, q, n->kc[k], n->vc[k]);
            draft(n, g, s, q, i, k);
            if (n->states)
                memcpy(n->states + (k * MAX_N + i) * MAX_C, s, sizeof s);
            if (w->is_target[i + 1 + k])
                score(n, w, i, k, s);
        }
    }
}

static double naive_loss(naive *n, const pl_eagle_window *w, int n_windows, int depth)
{
    double loss = 0;
    memset(n->loss, 0, sizeof n->loss);
    memset(n->alpha, 0, sizeof n->alpha);
    memset(n->n, 0, sizeof n->n);
    for (int i = 0; i < n_windows; i++) {
        n->i_window = i;
        run_window(n, &w[i], depth);
    }
    for (int k = 0; k < depth; k++)
        loss += pow(0.8, k) * n->loss[k] / n->n[k];
    return loss;
}

/* The drafter's weights as the products see them. */
static double *rounded_weights(const pl_eagle *e)
{
    double *w = calloc(e->n_elements, sizeof *w);
    cr_assert_not_null(w);
    for (size_t i = 0; i < e->n_elements; i++)
        w[i] = (double)(i < e->p[EAGLE_FC].offset ? e->w[i] : rounded((double)e->w[i]));
    return w;
}

/* plain: EAGLE-3 as first published, no norm at the fusion and none of what recurs. */
static void compare_with_naive(int is_plain)
{
    const pl_eagle_train_options o = options();
    static naive n;
    static data x;
    pl_eagle_step_stats s;
    pl_error err = {0};
    bed b;

    bed_init(&b, &small, 2);
    disturb(b.e);
    b.e->has_fc_norm = b.e->norm_output = !is_plain;
    data_init(&x, &small, 38, 3);
    double *w = rounded_weights(b.e);
    double *states = calloc(DEPTH * MAX_N * MAX_C, sizeof *states);
    n = (naive){.b = &b, .w = w, .d = b.e->dims, .states = states};
    const double want = naive_loss(&n, &x.w, 1, o.depth);
    pl_eagle_trainer *t = trainer(b.e, &o);
    cr_assert_eq(pl_eagle_eval(t, &x.w, 1, &s, &err), PL_OK, "%s", err.msg);
    cr_expect_float_eq(s.loss, want, 5e-3 * want, "loss %g, not %g", s.loss, want);
    for (int k = 0; k < o.depth; k++) {
        double diff = 0, size = 0;
        for (int i = 0; i + 1 + k < x.w.n; i++)
            for (int c = 0; c < b.e->dims.c; c++) {
                const double a = states[(k * MAX_N + i) * MAX_C + c];
                const double got = (double)pl_bf16_to_f32(t->acts[k].s[i * b.e->dims.cp + c]);
                diff += (a - got) * (a - got);
                size += a * a;
            }
        cr_expect_lt(sqrt(diff / size), 1e-2, "depth %d: states off by %g", k, sqrt(diff / size));
        cr_expect_float_eq(s.alpha[k], n.alpha[k] / n.n[k], 4e-3, "depth %d: alpha %g, not %g", k,
            s.alpha[k], n.alpha[k] / n.n[k]);
    }
    cr_expect_eq(s.n_tokens, n.n[0]);
    pl_eagle_trainer_free(t);
    free(states);
    free(w);
    bed_done(&b);
}

Test(eagle, training_sees_what_a_drafter_sees_that_runs_token_by_token)
{
    compare_with_naive(0);
}

Test(eagle, so_does_the_training_of_a_plain_eagle_3)
{
    compare_with_naive(1);
}

Test(eagle, a_known_log_sum_exp_gives_the_figures_of_an_unknown_one)
{
    const pl_eagle_train_options o = options();
    static data x;
    pl_eagle_step_stats plain, filling, known, wrong;
    float lse[MAX_N];
    bed b;

    bed_init(&b, &small, 2);
    data_init(&x, &small, 37, 3);
    for (int i = 0; i < MAX_N; i++)
        lse[i] = NAN;
    pl_eagle_trainer *t = trainer(b.e, &o);
    cr_assert_eq(pl_eagle_eval(t, &x.w, 1, &plain, NULL), PL_OK);
    x.w.lse = lse;
    cr_assert_eq(pl_eagle_eval(t, &x.w, 1, &filling, NULL), PL_OK);
    cr_expect_eq(filling.loss, plain.loss);
    for (int i = 0; i < x.w.n; i++) {
        double sum = 0;
        for (int v = 0; v < small.n_vocab; v++) {
            double z = 0;
            for (int c = 0; c < small.n_embd; c++)
                z += (double)b.masters[v * small.n_embd + c] *
                     (double)pl_bf16_to_f32(x.w.hidden[i * 64 + c]);
            sum += exp(z / (double)x.w.temperature);
        }
        cr_expect_float_eq((double)lse[i], log(sum), 1e-4);
    }
    cr_assert_eq(pl_eagle_eval(t, &x.w, 1, &known, NULL), PL_OK);
    cr_expect_float_eq(known.loss, plain.loss, 1e-5 * plain.loss);
    cr_expect_float_eq(known.coverage, plain.coverage, 1e-5);
    for (int i = 0; i < x.w.n; i++)
        lse[i] += 1;
    cr_assert_eq(pl_eagle_eval(t, &x.w, 1, &wrong, NULL), PL_OK);
    cr_expect_lt(wrong.coverage, 0.5 * plain.coverage, "it is not read");
    pl_eagle_trainer_free(t);
    bed_done(&b);
}

static void check_gradients(pl_eagle_loss kind, int is_plain)
{
    const int is_usual = kind == PL_EAGLE_LOSS_MIX && !is_plain;
    const uint64_t n_samples = is_usual ? 64 : 16; /* fewer: more of the rounding shows */
    pl_eagle_train_options o = options();
    static naive n;
    static data x[2];
    pl_eagle_window windows[2];
    pl_eagle_step_stats s;
    pl_error err = {0};
    bed b;

    o.loss = kind;
    bed_init(&b, &small, 2);
    disturb(b.e);
    b.e->has_fc_norm = b.e->norm_output = !is_plain;
    for (int i = 0; i < 2; i++) {
        data_init(&x[i], &small, 14 - 4 * i, i + 1);
        windows[i] = x[i].w;
    }
    double *w = rounded_weights(b.e);
    n = (naive){.b = &b, .w = w, .d = b.e->dims, .kind = kind};
    pl_eagle_trainer *t = trainer(b.e, &o);
    float *grads = calloc(b.e->n_elements, sizeof *grads);
    cr_assert_eq(
        pl_eagle_gradients(t, windows, 2, NULL, NULL, grads, &s, &err), PL_OK, "%s", err.msg);
    const double loss = naive_loss(&n, windows, 2, o.depth);
    cr_expect_float_eq(s.loss, loss, 5e-3 * loss, "loss %g, not %g", s.loss, loss);
    n.is_fixed = 1;
    for (int p = 0; p < EAGLE_N_PARAMS; p++) {
        const eagle_matrix *m = &b.e->p[p];
        double diff = 0, gg = 0, ww = 0, gw = 0;
        for (uint64_t i = 0; i < n_samples; i++) {
            const size_t at =
                m->offset + mix(i + 31 * (uint64_t)p) % ((size_t)m->rows * (size_t)m->cols);
            const double kept = w[at], h = 1e-5, got = (double)grads[at];
            w[at] = kept + h;
            const double up = naive_loss(&n, windows, 2, o.depth);
            w[at] = kept - h;
            const double want = (up - naive_loss(&n, windows, 2, o.depth)) / (2 * h);
            w[at] = kept;
            diff += (got - want) * (got - want);
            gg += got * got;
            ww += want * want;
            gw += got * want;
        }
        if (p == EAGLE_FC_NORM && is_plain) {
            cr_expect(gg == 0 && ww == 0);
            continue;
        }
        cr_expect(sqrt(diff / ww) <= (is_usual ? 3e-2 : 5e-2) && gw / sqrt(gg * ww) >= 0.999,
            "parameter %d: relative L2 %g, cosine %g", p, sqrt(diff / ww), gw / sqrt(gg * ww));
    }
    pl_eagle_trainer_free(t);
    free(grads);
    free(w);
    bed_done(&b);
}

Test(eagle, gradients_of_every_parameter_agree_with_central_differences)
{
    check_gradients(PL_EAGLE_LOSS_MIX, 0);
}

Test(eagle, gradients_of_the_lk_hybrid_agree_with_central_differences)
{
    check_gradients(PL_EAGLE_LOSS_LK, 0);
}

Test(eagle, gradients_of_plain_cross_entropy_agree_with_central_differences)
{
    check_gradients(PL_EAGLE_LOSS_CE, 0);
}

Test(eagle, gradients_of_the_loss_of_eagle_1_agree_with_central_differences)
{
    check_gradients(PL_EAGLE_LOSS_EAGLE1, 0);
}

Test(eagle, gradients_of_a_plain_eagle_3_agree_with_central_differences)
{
    check_gradients(PL_EAGLE_LOSS_MIX, 1);
}

static eagle_loss loss_of(float *q, const eagle_goal *g)
{
    static const float p[4] = {.4f, .3f, .2f, .1f}, q0[4] = {.1f, .2f, .3f, .4f};
    float z[4];

    for (int i = 0; i < 4; i++)
        z[i] = logf(q0[i]) * g->temperature;
    memcpy(q, q0, sizeof q0);
    return eagle_loss_row(q, p, z, 4, g);
}

Test(eagle, the_loss_has_the_values_of_its_table)
{
    static const float on_alpha[4] = {-.116667f, -.233333f, .15f, .2f},
                       on_ce[4] = {-.3f, -.1f, .1f, .3f},
                       on_lk[4] = {-.108019f, -.133388f, .091653f, .149754f};
    const float p_log_p = -1.27985423f;
    eagle_goal g = {.alpha_weight = 1, .temperature = 1, .p_log_p = p_log_p, .weight = 1};
    float q[4];

    eagle_loss l = loss_of(q, &g);
    cr_expect_float_eq(1 - l.alpha, .4f, 1e-6f);
    cr_expect_float_eq(l.loss, .510826f, 1e-5f);
    for (int i = 0; i < 4; i++)
        cr_expect_float_eq(q[i], on_alpha[i], 1e-5f);
    g.kind = PL_EAGLE_LOSS_CE;
    l = loss_of(q, &g);
    cr_expect_float_eq(l.loss + p_log_p, .456435f, 1e-5f);
    for (int i = 0; i < 4; i++)
        cr_expect_float_eq(q[i], on_ce[i], 1e-5f);
    g.kind = PL_EAGLE_LOSS_LK;
    l = loss_of(q, &g);
    cr_expect_float_eq(l.loss, .409329f, 1e-5f);
    for (int i = 0; i < 4; i++)
        cr_expect_float_eq(
            q[i], on_lk[i], 1e-5f, "%d: %g, not %g", i, (double)q[i], (double)on_lk[i]);
    g = (eagle_goal){.alpha_weight = .25f, .temperature = .5f, .weight = 2};
    loss_of(q, &g);
    for (int i = 0; i < 4; i++)
        cr_expect_float_eq(q[i], 4 * (.25f * on_alpha[i] + .75f * on_ce[i]), 1e-5f);
}

Test(eagle, measured_depth_weights_are_those_of_their_table)
{
    static const double alpha[3] = {.8, .6, .5}, none[3] = {0, .5, .5};
    static const float want[3] = {1, .473684f, .157895f};
    float w[3];

    pl_eagle_depth_weights(w, alpha, 3);
    for (int k = 0; k < 3; k++)
        cr_expect_float_eq(w[k], want[k], 1e-6f);
    pl_eagle_depth_weights(w, none, 3);
    cr_expect(w[0] == 1 && w[1] == 0 && w[2] == 0);
}

Test(eagle, one_sequence_is_learned_by_heart_at_every_depth)
{
    pl_eagle_train_options o = options();
    static data x;
    pl_eagle_step_stats s;
    pl_error err = {0};
    bed b;

    o.depth = DEPTH;
    o.lr = 4e-3f;
    o.ema = 0.9f;
    bed_init(&b, &small, 2);
    data_init(&x, &small, 40, 2);
    pl_eagle_trainer *t = trainer(b.e, &o);
    cr_assert_eq(pl_eagle_eval(t, &x.w, 1, &s, &err), PL_OK, "%s", err.msg);
    cr_expect_lt(s.alpha[0], 0.6, "alpha %g before", s.alpha[0]);
    for (int i = 0; i < 600; i++) {
        t->o.lr = i < 400 ? 4e-3f : 5e-4f;
        cr_assert_eq(pl_eagle_train_step(t, &x.w, 1, NULL, NULL, &s, &err), PL_OK, "%s", err.msg);
    }
    for (int k = 0; k < DEPTH; k++) /* of the mass that the draft vocabulary has */
        cr_expect_gt(
            s.alpha[k], 0.95 * s.coverage, "depth %d: alpha %g of %g", k, s.alpha[k], s.coverage);
    pl_eagle_trainer_swap_average(t);
    cr_assert_eq(pl_eagle_eval(t, &x.w, 1, &s, &err), PL_OK, "%s", err.msg);
    cr_expect_gt(s.alpha[0], 0.95 * s.coverage, "average: %g of %g", s.alpha[0], s.coverage);
    pl_eagle_trainer_free(t);
    bed_done(&b);
}

/* A text whose feature at t alone says what follows t + 1, by a fixed linear map; late: every
 * feature stands one position too far behind. */
static void linear_data(data *x, const pl_arch *a, int seed, int late)
{
    enum { LATENT = 6 };
    const int cp = pl_pad32(a->n_embd);
    uint16_t *f = (uint16_t *)x->w.features, *hidden = (uint16_t *)x->w.hidden;

    for (int i = 0; i < x->w.n; i++)
        for (int c = 0; c < a->n_embd; c++) {
            double past = 0, now = 0;
            for (int j = 0; j < LATENT; j++) {
                const uint64_t z = ((uint64_t)seed << 40) + (uint64_t)(i * 64 + j);
                past += uniform(z - 64) * uniform((uint64_t)(c * 64 + j));
                now += uniform(late ? z - 64 : z) * uniform((uint64_t)(7000 + c * 64 + j));
            }
            hidden[i * cp + c] = pl_f32_to_bf16((float)past);
            for (int l = 0; l < PL_FEATURE_LAYERS; l++)
                f[(i * PL_FEATURE_LAYERS + l) * cp + c] = pl_f32_to_bf16((float)now);
        }
}

static double alpha_after_training(int late)
{
    enum { N_WINDOWS = 24, N_STEPS = 240 };
    pl_eagle_train_options o = options();
    static data x[N_WINDOWS];
    pl_eagle_step_stats s;
    pl_error err = {0};
    bed b;

    o.depth = 1;
    o.lr = 4e-3f;
    bed_init(&b, &small, 2);
    pl_eagle_trainer *t = trainer(b.e, &o);
    for (int i = 0; i < N_WINDOWS; i++) {
        data_init(&x[i], &small, 40, i + 1);
        x[i].w.temperature = 0.5f;
        linear_data(&x[i], &small, i + 1, late);
    }
    for (int i = 0; i < N_STEPS; i++)
        cr_assert_eq(
            pl_eagle_train_step(t, &x[i % (N_WINDOWS - 1)].w, 1, NULL, NULL, &s, &err), PL_OK);
    cr_assert_eq(pl_eagle_eval(t, &x[N_WINDOWS - 1].w, 1, &s, &err), PL_OK);
    pl_eagle_trainer_free(t);
    bed_done(&b);
    return s.alpha[0];
}

Test(eagle, features_that_are_one_position_late_show_as_a_low_alpha)
{
    const double right = alpha_after_training(0), late = alpha_after_training(1);
    cr_expect_gt(right, 0.4, "alpha %g", right);
    cr_expect_lt(late, 0.5 * right, "alpha %g with late features, %g without", late, right);
}

Test(eagle, a_stop_or_a_broken_batch_changes_no_weight)
{
    const pl_eagle_train_options o = options();
    static data x;
    pl_eagle_step_stats s;
    pl_error err = {0};
    stopper all = {1 << 30, 0};
    bed b;

    bed_init(&b, &small, 2);
    data_init(&x, &small, 40, 2);
    pl_eagle_trainer *t = trainer(b.e, &o);
    float *w = copy_weights(b.e);
    x.features[17][1][3] = 0x7fc0;
    cr_expect_eq(pl_eagle_train_step(t, &x.w, 1, NULL, NULL, &s, &err), PL_E_NUMERIC);
    cr_expect(strstr(err.msg, "features") && same_weights(b.e, w), "%s", err.msg);
    data_init(&x, &small, 40, 2);
    x.tokens[4] = small.n_vocab;
    cr_expect_eq(pl_eagle_train_step(t, &x.w, 1, NULL, NULL, &s, &err), PL_E_INVAL);
    data_init(&x, &small, 40, 2);
    b.e->w[b.e->p[EAGLE_UP].offset] = INFINITY;
    eagle_touch(b.e);
    cr_expect_eq(
        pl_eagle_train_step(t, &x.w, 1, NULL, NULL, &s, &err), PL_E_NUMERIC, "%s", err.msg);
    memcpy(b.e->w, w, b.e->n_elements * sizeof *w);
    eagle_touch(b.e);
    pl_eagle_eval(t, &x.w, 1, &s, &err);
    for (int at = 0; at < 80; at += 7) {
        stopper early = {at, 0};
        const pl_status st = pl_eagle_train_step(t, &x.w, 1, stop_at, &early, &s, &err);
        cr_expect(st == PL_E_STOPPED && same_weights(b.e, w), "stopped at %d: %s", at, err.msg);
    }
    cr_expect_eq(pl_eagle_trainer_steps(t), 0);
    cr_expect_eq(pl_eagle_train_step(t, &x.w, 1, stop_at, &all, &s, &err), PL_OK, "%s", err.msg);
    cr_expect_gt(all.asked, 60, "asked %d times in a step", all.asked);
    cr_expect(!same_weights(b.e, w));
    cr_expect_eq(pl_eagle_trainer_steps(t), 1);
    pl_eagle_trainer_free(t);
    free(w);
    bed_done(&b);
}

static void some_steps(pl_eagle_trainer *t, data *x, int from, int to)
{
    pl_eagle_step_stats s;
    pl_error err = {0};
    for (int i = from; i < to; i++)
        cr_assert_eq(
            pl_eagle_train_step(t, &x[i % 3].w, 1, NULL, NULL, &s, &err), PL_OK, "%s", err.msg);
}

Test(eagle, a_resumed_run_ends_in_the_same_bits)
{
    pl_eagle_train_options o = options();
    static data x[3];
    char dir[] = "/tmp/pl_eagle_XXXXXX", path[128];
    pl_error err = {0};
    bed b;

    o.ema = 0.9f;
    o.warmup_steps = 5;
    o.depth_decay = 0; /* what was measured goes on too */
    cr_assert_not_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/trainer.state", dir);
    bed_init(&b, &small, 2);
    for (int i = 0; i < 3; i++)
        data_init(&x[i], &small, 30 + i, i + 1);
    pl_eagle_trainer *t = trainer(b.e, &o);
    some_steps(t, x, 0, 3);
    cr_assert_eq(pl_eagle_save(b.e, dir, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_eagle_trainer_save(t, path, &err), PL_OK, "%s", err.msg);
    some_steps(t, x, 3, 7);
    float *w = copy_weights(b.e);
    pl_eagle_trainer_free(t);

    pl_eagle *again;
    cr_assert_eq(pl_eagle_load(&again, b.m, dir, &err), PL_OK, "%s", err.msg);
    t = trainer(again, &o);
    cr_assert_eq(pl_eagle_trainer_load(t, path, &err), PL_OK, "%s", err.msg);
    some_steps(t, x, 3, 7);
    cr_expect(same_weights(again, w), "the resumed run differs");

    char *text;
    size_t n_bytes;
    cr_assert_eq(pl_file_read(&text, &n_bytes, path, 1 << 26, &err), PL_OK, "%s", err.msg);
    text[n_bytes / 2] ^= 1;
    cr_assert_eq(pl_file_write(path, text, n_bytes, &err), PL_OK);
    cr_expect_eq(pl_eagle_trainer_load(t, path, &err), PL_E_FORMAT, "%s", err.msg);
    cr_assert_eq(pl_file_write(path, text, n_bytes - 100, &err), PL_OK);
    cr_expect_eq(pl_eagle_trainer_load(t, path, &err), PL_E_FORMAT, "%s", err.msg);
    free(text);
    pl_eagle_trainer_free(t);
    pl_eagle_free(again);
    pl_dir_remove(dir, NULL);
    free(w);
    bed_done(&b);
}

Test(eagle, a_drafter_comes_back_from_its_directory_as_it_was)
{
    char dir[] = "/tmp/pl_eagle_XXXXXX", path[128];
    pl_error err = {0};
    safetensors *f;
    pl_eagle *e;
    bed b, other;

    cr_assert_not_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    bed_init(&b, &small, 2);
    disturb(b.e);
    cr_assert_eq(pl_eagle_save(b.e, dir, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(safetensors_open(&f, path, &err), PL_OK, "%s", err.msg);
    const safetensors_tensor *d2t = safetensors_find(f, "d2t"), *t2d = safetensors_find(f, "t2d");
    cr_assert(d2t && t2d && strcmp(d2t->dtype, "I64") == 0 && strcmp(t2d->dtype, "BOOL") == 0);
    for (int i = 0; i < b.n_vocab; i++) {
        int64_t offset;
        memcpy(&offset, d2t->data + 8 * i, sizeof offset);
        cr_assert_eq(offset, b.vocab[i] - i);
    }
    for (int i = 0; i < small.n_vocab; i++)
        cr_assert_eq(t2d->data[i], i % 3 != 1);
    safetensors_close(f);
    cr_assert_eq(pl_eagle_load(&e, b.m, dir, &err), PL_OK, "%s", err.msg);
    cr_expect_eq(pl_eagle_n_vocab(e), b.n_vocab);
    cr_expect(memcmp(pl_eagle_vocab(e), b.vocab, (size_t)b.n_vocab * sizeof *b.vocab) == 0);
    cr_expect(same_weights(b.e, e->w));
    pl_eagle_free(e);

    pl_arch wide = small, many = small, deep = small;
    wide.n_embd = 48;
    many.n_vocab = 330;
    deep.n_layers = 3;
    const pl_arch others[] = {wide, many, deep};
    static const char *const words[] = {"hidden_size", "vocab_size", "layers"};
    for (int i = 0; i < 3; i++) {
        bed_init(&other, &others[i], 1);
        cr_expect_eq(pl_eagle_load(&e, other.m, dir, &err), PL_E_SHAPE);
        cr_expect(strstr(err.msg, words[i]) && strstr(err.msg, dir), "%s", err.msg);
        bed_done(&other);
    }
    cr_assert_eq(truncate(path, 5000), 0);
    cr_expect_eq(pl_eagle_load(&e, b.m, dir, &err), PL_E_FORMAT, "%s", err.msg);
    pl_dir_remove(dir, NULL);
    cr_expect_eq(pl_eagle_load(&e, b.m, dir, &err), PL_E_NOENT, "%s", err.msg);
    bed_done(&b);
}

Test(eagle, what_cannot_be_a_drafter_is_refused_in_words)
{
    static const int32_t bad[2] = {7, 7};
    pl_eagle_train_options o = options();
    pl_eagle_trainer *t;
    pl_error err = {0};
    pl_eagle *e;
    bed b;

    bed_init(&b, &small, 1);
    const pl_eagle_options twice = {.n_vocab = 2, .vocab = bad}, none = {.n_vocab = 9},
                           many = {.n_vocab = small.n_vocab + 1};
    cr_expect_eq(pl_eagle_new(&e, b.m, &twice, &err), PL_E_INVAL);
    cr_expect(strstr(err.msg, "ascend") != NULL, "%s", err.msg);
    cr_expect_eq(pl_eagle_new(&e, b.m, &none, &err), PL_E_INVAL);
    cr_expect_eq(pl_eagle_new(&e, b.m, &many, &err), PL_E_INVAL);
    o.depth = PL_EAGLE_DEPTH_MAX + 1;
    cr_expect_eq(pl_eagle_trainer_new(&t, b.e, &o, &err), PL_E_INVAL);
    o = options();
    o.window = small.n_ctx;
    cr_expect_eq(pl_eagle_trainer_new(&t, b.e, &o, &err), PL_E_INVAL);
    cr_expect(strstr(err.msg, "context") != NULL, "%s", err.msg);
    bed_done(&b);
}
