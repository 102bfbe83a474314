/* Claims tested: AdamW follows Loshchilov and Hutter (against doubles over many steps), decays
 * weights apart from the gradient, moves by the learning rate in the first step; the sum of squares
 * is exact where it can be and ordered where it cannot; the builds agree bit for bit. */
#include "tests/tensor/ops_support.h"

enum { N = 101 };

static pl_adamw options_at(int t)
{
    return (pl_adamw){.lr = 1e-3f,
        .beta1 = 0.9f,
        .beta2 = 0.95f,
        .eps = 1e-8f,
        .weight_decay = 0.1f,
        .bias1 = (float)(1 - pow(0.9, t)),
        .bias2 = (float)(1 - pow(0.95, t)),
        .grad_scale = 0.5f};
}

Test(optim, adamw_follows_the_paper_for_a_hundred_steps)
{
    float w[N], m[N] = {0}, v[N] = {0}, g[N];
    double dw[N], dm[N] = {0}, dv[N] = {0};
    uint64_t s = 3;
    pl_ops ops[3];
    builds(ops);

    fill(w, N, &s, ORDINARY);
    for (int i = 0; i < N; i++)
        dw[i] = (double)w[i];
    for (int t = 1; t <= 100; t++) {
        const pl_adamw o = options_at(t);
        fill(g, N, &s, ORDINARY);
        ops[0].adamw(w, m, v, g, N, &o);
        for (int i = 0; i < N; i++) {
            const double grad = 0.5 * (double)g[i];
            dm[i] = 0.9 * dm[i] + 0.1 * grad;
            dv[i] = 0.95 * dv[i] + 0.05 * grad * grad;
            const double mh = dm[i] / (1 - pow(0.9, t)), vh = dv[i] / (1 - pow(0.95, t));
            dw[i] -= 1e-3 * (mh / (sqrt(vh) + 1e-8) + 0.1 * dw[i]);
        }
    }
    for (int i = 0; i < N; i++)
        cr_assert(fabs((double)w[i] - dw[i]) < 2e-6 * (1 + fabs(dw[i])), "weight %d: %.8f, %.8f", i,
            (double)w[i], dw[i]);
}

Test(optim, first_step_moves_by_the_learning_rate)
{
    float w[2] = {1, 1}, m[2] = {0}, v[2] = {0};
    const float g[2] = {1e-3f, -50};
    pl_adamw o = options_at(1);
    pl_ops ops[3];
    builds(ops);
    o.weight_decay = 0;
    ops[0].adamw(w, m, v, g, 2, &o);
    cr_assert(fabsf(w[0] - 0.999f) < 1e-6f && fabsf(w[1] - 1.001f) < 1e-6f);
}

Test(optim, decay_is_apart_from_the_gradient)
{
    float w[1] = {2}, m[1] = {0}, v[1] = {0};
    const float g[1] = {0};
    const pl_adamw o = options_at(1);
    pl_ops ops[3];
    builds(ops);
    ops[0].adamw(w, m, v, g, 1, &o);
    cr_assert(fabsf(w[0] - 2 * (1 - 1e-4f)) < 1e-6f && m[0] == 0 && v[0] == 0);
}

Test(optim, squares_sum_exactly_and_in_lanes)
{
    static float x[1000];
    double lane[16] = {0}, exact = 0;
    uint64_t s = 4;
    pl_ops ops[3];
    builds(ops);

    for (int i = 0; i < 1000; i++) {
        x[i] = (float)(i - 500);
        exact += (double)x[i] * (double)x[i];
    }
    cr_assert(ops[0].sum_squares(x, 1000) == exact);
    cr_assert(ops[0].sum_squares(x, 0) == 0);

    fill(x, 1000, &s, ORDINARY);
    for (int i = 0; i < 1000; i++)
        lane[i % 16] += (double)x[i] * (double)x[i];
    for (int h = 8; h > 0; h /= 2)
        for (int j = 0; j < h; j++)
            lane[j] += lane[j + h];
    cr_assert(ops[0].sum_squares(x, 1000) == lane[0]);
}

static void run_optim(const pl_ops *ops, uint64_t seed, int n, int kind, float *out)
{
    static float g[WIDTH];
    const pl_adamw o = options_at((int)(seed % 9) + 1);
    uint64_t s = seed;
    fill(g, WIDTH, &s, kind);
    fill(out, WIDTH, &s, kind);
    fill(out + WIDTH, WIDTH, &s, kind);
    for (int i = 0; i < WIDTH; i++)
        out[2 * WIDTH + i] = fabsf(hostile(&s, kind));
    ops->adamw(out, out + WIDTH, out + 2 * WIDTH, g, (size_t)n, &o);
    const double sum = ops->sum_squares(g, (size_t)n);
    float halves[2];
    memcpy(halves, &sum, sizeof halves);
    if (sum == sum)
        memcpy(out + 3 * WIDTH, halves, sizeof halves);
}

Test(optim, builds_agree)
{
    check_parity(run_optim, "adamw, sum_squares");
}
