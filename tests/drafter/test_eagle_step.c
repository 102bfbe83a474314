/* tests/drafter/test_eagle_step.c - a training step in two halves, and its state.
 *
 * Claims: gradients and update are the step, bit for bit, in the trainer's buffer or another's;
 * gradients alone change nothing but what was measured; whatever a stop interrupts, the state is
 * the one before the call; a state that is put back trains on to the same bits; a copy is a drafter
 * of its own, with the average if there is one; a depth weighs as it was measured. */
#include "tests/drafter/eagle_bed.h"

#include <math.h>
#include <stdio.h>

typedef struct flat {
    pl_eagle_state s;
    size_t n;
} flat;

static flat flat_new(const pl_eagle *e)
{
    const size_t n = pl_eagle_n_elements(e);
    flat f = {.n = n};
    f.s.weights = calloc(n, sizeof(float));
    f.s.m = calloc(n, sizeof(float));
    f.s.v = calloc(n, sizeof(float));
    f.s.average = calloc(n, sizeof(float));
    cr_assert(f.s.weights && f.s.m && f.s.v && f.s.average);
    return f;
}

static void flat_free(flat *f)
{
    free(f->s.weights);
    free(f->s.m);
    free(f->s.v);
    free(f->s.average);
}

static int same_state(const flat *a, const flat *b)
{
    const size_t n = a->n * sizeof(float);
    return a->s.step == b->s.step &&
           memcmp(a->s.measured, b->s.measured, sizeof a->s.measured) == 0 &&
           memcmp(a->s.weights, b->s.weights, n) == 0 && memcmp(a->s.m, b->s.m, n) == 0 &&
           memcmp(a->s.v, b->s.v, n) == 0 && memcmp(a->s.average, b->s.average, n) == 0;
}

static pl_eagle_train_options averaged(void)
{
    pl_eagle_train_options o = options();
    o.ema = 0.9f;
    o.warmup_steps = 3;
    o.depth_decay = 0; /* as measured */
    return o;
}

static void step(pl_eagle_trainer *t, data *x, int i)
{
    pl_eagle_step_stats s;
    pl_error err = {0};
    cr_assert_eq(
        pl_eagle_train_step(t, &x[i % 2].w, 1, NULL, NULL, &s, &err), PL_OK, "%s", err.msg);
}

Test(eagle_step, gradients_and_update_are_the_step_bit_for_bit)
{
    const pl_eagle_train_options o = averaged();
    static data x[2];
    pl_eagle_step_stats s;
    pl_error err = {0};
    double norm;
    bed whole, halves;

    bed_init(&whole, &small, 2);
    bed_init(&halves, &small, 2);
    for (int i = 0; i < 2; i++)
        data_init(&x[i], &small, 30 + i, i + 1);
    pl_eagle_trainer *a = trainer(whole.e, &o), *b = trainer(halves.e, &o);
    flat before = flat_new(halves.e), after = flat_new(halves.e), want = flat_new(whole.e);
    float *grads = malloc((before.n + 1) * sizeof *grads);
    cr_assert_not_null(grads);
    for (int i = 0; i < 4; i++) {
        step(a, x, i);
        pl_eagle_trainer_get(b, &before.s);
        memset(grads, 0xff, (before.n + 1) * sizeof *grads); /* NaN: what is there is not read */
        cr_assert_eq(pl_eagle_gradients(b, &x[i % 2].w, 1, NULL, NULL, grads, &s, &err), PL_OK,
            "%s", err.msg);
        cr_assert(isnan(grads[before.n]), "wrote beyond the end");
        pl_eagle_trainer_get(b, &after.s);
        memcpy(before.s.measured, after.s.measured, sizeof before.s.measured);
        cr_assert(same_state(&before, &after), "gradients changed the state");
        cr_assert_eq(pl_eagle_apply(b, grads, &norm, &err), PL_OK, "%s", err.msg);
        cr_expect_eq(norm, s.grad_norm);
        pl_eagle_trainer_get(b, &after.s);
        pl_eagle_trainer_get(a, &want.s);
        cr_assert(same_state(&after, &want), "step %d differs", i);
        cr_assert_eq(after.s.step, i + 1);
    }
    grads[7] = NAN;
    cr_expect_eq(pl_eagle_apply(b, grads, &norm, &err), PL_E_NUMERIC);
    pl_eagle_trainer_get(b, &before.s);
    cr_expect(same_state(&before, &after), "a broken gradient changed the state");
    free(grads);
    flat_free(&before);
    flat_free(&after);
    flat_free(&want);
    pl_eagle_trainer_free(a);
    pl_eagle_trainer_free(b);
    bed_done(&whole);
    bed_done(&halves);
}

Test(eagle_step, a_stop_leaves_the_state_before_the_call_wherever_it_comes)
{
    const pl_eagle_train_options o = averaged();
    static data x[2];
    pl_eagle_step_stats s;
    pl_error err = {0};
    stopper count = {1 << 30, 0};
    bed b;

    bed_init(&b, &small, 1);
    for (int i = 0; i < 2; i++)
        data_init(&x[i], &small, 30 + i, i + 1);
    pl_eagle_trainer *t = trainer(b.e, &o);
    flat before = flat_new(b.e), after = flat_new(b.e);
    for (int i = 0; i < 2; i++)
        step(t, x, i);
    pl_eagle_trainer_get(t, &before.s);
    pl_eagle_trainer_put(t, &before.s);
    cr_assert_eq(pl_eagle_train_step(t, &x[0].w, 1, stop_at, &count, &s, &err), PL_OK);
    cr_assert_gt(count.asked, 60);
    for (int at = 0; at < count.asked; at++) {
        stopper now = {at, 0};
        pl_eagle_trainer_put(t, &before.s); /* packs anew */
        const pl_status st = pl_eagle_train_step(t, &x[0].w, 1, stop_at, &now, &s, &err);
        pl_eagle_trainer_get(t, &after.s);
        cr_assert(st == PL_E_STOPPED && same_state(&before, &after), "at %d of %d: %s", at,
            count.asked, err.msg);
        cr_assert_eq(now.asked, at + 1, "it went on after the stop");
    }
    flat_free(&before);
    flat_free(&after);
    pl_eagle_trainer_free(t);
    bed_done(&b);
}

Test(eagle_step, a_state_that_is_put_back_trains_on_to_the_same_bits)
{
    const pl_eagle_train_options o = averaged();
    static data x[2];
    bed b, other;

    bed_init(&b, &small, 2);
    bed_init(&other, &small, 2);
    for (int i = 0; i < 2; i++)
        data_init(&x[i], &small, 30 + i, i + 1);
    pl_eagle_trainer *t = trainer(b.e, &o), *u = trainer(other.e, &o);
    flat kept = flat_new(b.e), want = flat_new(b.e);
    for (int i = 0; i < 2; i++)
        step(t, x, i);
    pl_eagle_trainer_get(t, &kept.s);
    for (int i = 2; i < 4; i++)
        step(t, x, i);
    pl_eagle_trainer_get(t, &want.s);
    step(u, x, 1); /* elsewhere, and packed */
    pl_eagle_trainer_put(u, &kept.s);
    for (int i = 2; i < 4; i++)
        step(u, x, i);
    pl_eagle_trainer_get(u, &kept.s);
    cr_expect(same_state(&kept, &want));
    cr_expect_eq(pl_eagle_trainer_steps(u), 4);
    flat_free(&kept);
    flat_free(&want);
    pl_eagle_trainer_free(t);
    pl_eagle_trainer_free(u);
    bed_done(&b);
    bed_done(&other);
}

Test(eagle_step, a_copy_is_a_drafter_of_its_own)
{
    const pl_eagle_train_options o = averaged();
    static data x[2];
    pl_eagle *plain, *mean;
    pl_error err = {0};
    bed b;

    bed_init(&b, &small, 2);
    b.e->has_fc_norm = 0;
    for (int i = 0; i < 2; i++)
        data_init(&x[i], &small, 30 + i, i + 1);
    pl_eagle_trainer *t = trainer(b.e, &o);
    for (int i = 0; i < 3; i++)
        step(t, x, i);
    cr_assert_eq(pl_eagle_copy(&plain, b.e, NULL, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_eagle_copy(&mean, b.e, t, &err), PL_OK, "%s", err.msg);
    cr_expect(same_weights(b.e, plain->w));
    cr_expect(memcmp(mean->w, t->average, b.e->n_elements * sizeof *mean->w) == 0);
    cr_expect(!same_weights(b.e, mean->w));
    cr_expect(plain->has_fc_norm == 0 && plain->norm_output == 1);
    cr_expect_eq(pl_eagle_n_vocab(plain), pl_eagle_n_vocab(b.e));
    cr_expect(memcmp(pl_eagle_vocab(plain), b.vocab, (size_t)b.n_vocab * sizeof *b.vocab) == 0);
    float *w = copy_weights(plain);
    step(t, x, 3);
    cr_expect(same_weights(plain, w) && !same_weights(b.e, w));
    free(w);
    pl_eagle_free(plain);
    pl_eagle_free(mean);
    pl_eagle_trainer_free(t);
    bed_done(&b);
}

static double loss_with(pl_eagle_trainer *t, data *x)
{
    pl_eagle_step_stats s;
    cr_assert_eq(pl_eagle_eval(t, &x->w, 1, &s, NULL), PL_OK);
    return s.loss;
}

/* Nothing measured: all depths count the same.  Then each as the tokens that it gains. */
Test(eagle_step, depths_weigh_as_they_are_measured)
{
    pl_eagle_train_options o = options();
    pl_eagle_step_stats s;
    static data x;
    pl_error err = {0};
    double want = 0;
    float weights[PL_EAGLE_DEPTH_MAX];
    bed b;

    bed_init(&b, &small, 1);
    data_init(&x, &small, 30, 1);
    float *grads = malloc(pl_eagle_n_elements(b.e) * sizeof *grads);
    cr_assert_not_null(grads);
    double by_depth[PL_EAGLE_DEPTH_MAX + 1] = {0};
    for (int depth = 1; depth <= o.depth; depth++) {
        pl_eagle_train_options fewer = o;
        fewer.depth = depth;
        fewer.depth_decay = 1;
        pl_eagle_trainer *t = trainer(b.e, &fewer);
        by_depth[depth] = loss_with(t, &x);
        pl_eagle_trainer_free(t);
    }
    o.depth_decay = 0;
    pl_eagle_trainer *t = trainer(b.e, &o);
    cr_expect_eq(loss_with(t, &x), by_depth[o.depth]);
    cr_assert_eq(pl_eagle_gradients(t, &x.w, 1, NULL, NULL, grads, &s, &err), PL_OK, "%s", err.msg);
    pl_eagle_depth_weights(weights, s.alpha, o.depth);
    for (int k = 0; k < o.depth; k++)
        want += (double)weights[k] * (by_depth[k + 1] - by_depth[k]);
    cr_assert_eq(pl_eagle_gradients(t, &x.w, 1, NULL, NULL, grads, &s, &err), PL_OK, "%s", err.msg);
    cr_expect_float_eq(s.loss, want, 1e-5 * want, "%.9g, not %.9g", s.loss, want);
    cr_expect_lt(s.loss, 0.9 * by_depth[o.depth]);
    cr_expect_eq(loss_with(t, &x), by_depth[o.depth], "an evaluation weighs them alike");
    pl_eagle_trainer_free(t);
    o.depth_decay = -1;
    cr_expect_eq(pl_eagle_trainer_new(&t, b.e, &o, &err), PL_E_INVAL);
    o = options();
    o.loss = (pl_eagle_loss)9;
    cr_expect_eq(pl_eagle_trainer_new(&t, b.e, &o, &err), PL_E_INVAL);
    free(grads);
    bed_done(&b);
}
