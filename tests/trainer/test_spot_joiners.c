/* tests/trainer/test_spot_joiners.c - several workers in one session.
 *
 * Claims: a joiner's gradient is averaged in by its tokens, as if one worker had had both batches;
 * one that is not there, damaged, late or of another session is left out and, once missed, not
 * waited for; a joiner waits for its lead, and leads the next session when that is killed. */
#include "tests/trainer/spot_bed.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static pl_status work(pl_spot *s)
{
    pl_spot_published p;
    return pl_spot_work(s, NULL, NULL, &p, NULL);
}

/* Relative distance of two arrays. */
static double distance(const float *a, const float *b, size_t n)
{
    double diff = 0, size = 0;

    for (size_t i = 0; i < n; i++) {
        diff += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        size += (double)b[i] * (double)b[i];
    }
    return sqrt(diff / size);
}

/* Gradients of both batches by one worker, depths weighed as they were then. */
static float *both(const double *measured, pl_spot *x, pl_spot *y)
{
    pl_eagle_train_options o = x->o.train;
    pl_eagle_window w[8];
    pl_eagle_step_stats stats;
    pl_eagle_trainer *t = NULL;
    float *grads = aligned_alloc(64, (x->n_grads * sizeof *grads + 63) / 64 * 64);
    int n = 0;

    cr_assert_not_null(grads);
    o.max_windows = 8;
    o.ema = 0;
    for (int i = 0; i < x->batch.n; i++)
        w[n++] = x->batch.train[i];
    for (int i = 0; i < y->batch.n; i++)
        w[n++] = y->batch.train[i];
    cr_assert_eq(pl_eagle_trainer_new(&t, y->e, &o, NULL), PL_OK);
    pl_eagle_trainer_set_measured(t, measured);
    cr_assert_eq(pl_eagle_gradients(t, w, n, NULL, NULL, grads, &stats, NULL), PL_OK);
    pl_eagle_trainer_free(t);
    return grads;
}

Test(spot_joiners, gradients_are_averaged_as_if_one_worker_had_both_batches)
{
    pl_spot_stats stats;
    spot_record before;
    spot_bed b;

    spot_bed_open(&b);
    b.prompt_even = 24; /* their tokens weigh less */
    b.o.windows_a_step = 3;
    spot_bed_fill(&b, 1, 30);
    pl_spot *lead = spot_bed_spot(&b, "w0"), *joiner = spot_bed_spot(&b, "w1");
    spot_bed_begin(&b, lead, 1, 1);
    spot_bed_begin(&b, joiner, 1, 0);
    cr_expect_eq(work(joiner), PL_E_TIMEOUT, "there is no state yet");
    spot_bed_work(lead, 1);
    const int64_t first = lead->stats.last.n_tokens;
    spot_bed_hash(lead, &before);
    cr_expect_gt(before.measured[0], 0);
    cr_assert_eq(work(joiner), PL_OK);
    cr_expect_eq(work(joiner), PL_E_TIMEOUT, "its gradient waits for the lead");
    cr_expect_eq(joiner->seq, lead->seq);
    cr_assert_eq(work(lead), PL_OK);
    cr_expect_eq(lead->n_joiners, 1);
    float *want = both(before.measured, lead, joiner);
    cr_expect_lt(distance(lead->grads, want, lead->n_grads), 0.01, "off by %g",
        distance(lead->grads, want, lead->n_grads));
    cr_expect_gt(
        distance((const float *)(const void *)(joiner->own.base + SPOT_PAGE), want, lead->n_grads),
        0.1, "the joiner's alone is another one");
    pl_spot_get_stats(lead, &stats);
    cr_expect_neq(lead->stats.last.n_tokens, joiner->stats.last.n_tokens, "it is a fair test");
    cr_expect_eq(stats.n_tokens, first + lead->stats.last.n_tokens + joiner->stats.last.n_tokens,
        "%lld", (long long)stats.n_tokens);
    /* The joiner goes on from the lead's step. */
    cr_assert_eq(work(joiner), PL_OK);
    cr_expect_eq(joiner->seq, lead->seq);
    free(want);
    pl_spot_free(lead);
    pl_spot_free(joiner);
    spot_bed_close(&b);
}

Test(spot_joiners, one_that_is_damaged_late_or_gone_is_left_out)
{
    pl_spot_stats stats;
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 30);
    pl_spot *lead = spot_bed_spot(&b, "w0"), *joiner = spot_bed_spot(&b, "w1");
    spot_bed_begin(&b, lead, 1, 1);
    spot_bed_work(lead, 1);
    spot_bed_begin(&b, joiner, 1, 0);
    cr_assert_eq(work(joiner), PL_OK);
    ((float *)(void *)(joiner->own.base + SPOT_PAGE))[5] += 1; /* not what it hashed */
    cr_assert_eq(work(lead), PL_OK);
    pl_spot_get_stats(lead, &stats);
    cr_expect_eq(stats.n_tokens, 2 * 2 * 28);
    cr_expect_eq(lead->joiners[0].has_missed, 1);
    cr_assert_eq(work(joiner), PL_OK);
    cr_assert_eq(work(lead), PL_OK); /* back in time: taken again */
    cr_expect_eq(lead->joiners[0].has_missed, 0);
    cr_assert_eq(work(joiner), PL_OK);
    cr_assert_eq(work(lead), PL_OK);
    cr_assert_eq(work(lead), PL_OK); /* nothing new of it: missed */
    cr_expect_eq(lead->joiners[0].has_missed, 1);
    pl_spot_get_stats(lead, &stats);
    cr_expect_eq(stats.n_tokens, 7 * 2 * 28, "%lld", (long long)stats.n_tokens);
    pl_spot_end(joiner);
    cr_assert_eq(work(lead), PL_OK);
    cr_expect_eq(lead->n_joiners, 0, "it left");
    pl_spot_free(lead);
    pl_spot_free(joiner);
    spot_bed_close(&b);
}

Test(spot_joiners, one_of_another_session_is_refused_or_left_out)
{
    pl_error err = {0};
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 30);
    pl_spot *lead = spot_bed_spot(&b, "w0"), *joiner = spot_bed_spot(&b, "w1");
    spot_bed_begin(&b, lead, 4, 1);
    spot_bed_work(lead, 1);
    spot_bed_begin(&b, joiner, 4, 0);
    cr_assert_eq(work(joiner), PL_OK);
    spot_bed_begin(&b, lead, 5, 1);
    cr_assert_eq(work(lead), PL_OK);
    cr_expect_eq(lead->n_joiners, 0);
    cr_expect_eq(work(joiner), PL_E_PEER, "its session is over");
    cr_expect_eq(pl_spot_begin(joiner, 4, 0, b.buffers, 1, 1, &err), PL_E_PEER);
    spot_bed_begin(&b, joiner, 6, 0);
    cr_expect_eq(work(joiner), PL_E_TIMEOUT, "the lead of session 6 has not begun");
    pl_spot_free(lead);
    pl_spot_free(joiner);
    spot_bed_close(&b);
}

typedef struct joint {
    pl_spot *lead;
    int n;
} joint;

/* The lead finishes a step while the joiner computes. */
static int lead_works(void *ctx)
{
    joint *j = ctx;
    if (++j->n == 5)
        cr_assert_eq(work(j->lead), PL_OK);
    return 0;
}

Test(spot_joiners, a_gradient_that_the_lead_did_not_wait_for_is_given_up)
{
    pl_spot_published p;
    pl_spot_stats stats;
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 30);
    pl_spot *lead = spot_bed_spot(&b, "w0"), *joiner = spot_bed_spot(&b, "w1");
    spot_bed_begin(&b, lead, 1, 1);
    spot_bed_work(lead, 1);
    spot_bed_begin(&b, joiner, 1, 0);
    joint j = {lead, 0};
    cr_expect_eq(pl_spot_work(joiner, lead_works, &j, &p, NULL), PL_E_TIMEOUT);
    pl_spot_get_stats(joiner, &stats);
    cr_expect_eq(stats.n_dropped, 1);
    cr_expect_eq(stats.n_steps, 0);
    cr_assert_eq(work(joiner), PL_OK, "and begins at the new step");
    cr_expect_eq(joiner->seq, lead->seq);
    pl_spot_free(lead);
    pl_spot_free(joiner);
    spot_bed_close(&b);
}

static int die_late(void *ctx)
{
    if (++*(int *)ctx > 500)
        _exit(9);
    return 0;
}

/* A worker of its own process, which is killed in its work. */
static void run_and_die(spot_bed *b, const char *name, int is_lead)
{
    const pid_t pid = fork();
    int status, n = 0;

    cr_assert_geq(pid, 0);
    if (pid == 0) {
        pl_spot *s = spot_bed_spot(b, name);
        pl_spot_published p;
        spot_bed_begin(b, s, 1, is_lead);
        for (;;)
            (void)pl_spot_work(s, die_late, &n, &p, NULL);
    }
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 9);
}

Test(spot_joiners, of_three_workers_the_last_goes_on_when_lead_and_joiner_are_killed)
{
    spot_record before, after;
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 30);
    run_and_die(&b, "w0", 1);
    run_and_die(&b, "w1", 0);
    pl_spot *s = spot_bed_spot(&b, "w2");
    spot_bed_begin(&b, s, 1, 0); /* it had joined, then the coordinator makes it the lead */
    spot_bed_hash(s, &before);
    cr_expect_gt(before.step, 0);
    cr_assert_eq(work(s), PL_OK);
    spot_bed_begin(&b, s, 2, 1);
    spot_bed_work(s, 5);
    spot_bed_hash(s, &after);
    cr_expect_eq(after.step, before.step + 5);
    cr_expect_eq(after.session, 2);
    cr_expect_eq(s->n_joiners, 0, "what the dead left behind is of session 1");
    pl_spot_free(s);
    spot_bed_close(&b);
}
