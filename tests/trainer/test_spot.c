/* tests/trainer/test_spot.c - sessions of the spot trainer.
 *
 * Claims: the loss falls; a stop at any place leaves the state as it was, and time given is
 * progress; a lead killed at any place leaves its last finished step to the next session; who is
 * late is refused; bad batches are dropped, and three end the session; with nothing to train on it
 * waits. */
#include "tests/trainer/spot_bed.h"

#include "core/file.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* Stops at call number `at` (from 1) and after; counts. */
typedef struct stopper {
    int n, at;
} stopper;

static int stop_at(void *ctx)
{
    stopper *s = ctx;
    return ++s->n >= s->at;
}

Test(spot, training_raises_acceptance)
{
    pl_spot_stats first, last;
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 8);
    pl_spot *s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 1, 1);
    spot_bed_work(s, 1);
    pl_spot_get_stats(s, &first);
    spot_bed_work(s, 40);
    pl_spot_get_stats(s, &last);
    cr_expect_eq(last.n_steps, 41);
    cr_expect_gt(last.n_tokens, 40 * 2 * 20);
    cr_expect_gt(last.last.alpha[0], 3 * first.last.alpha[0], "%g, then %g", first.last.alpha[0],
        last.last.alpha[0]);
    pl_spot_free(s);
    spot_bed_close(&b);
}

/* The largest change of a weight by the next step. */
static double next_change(pl_spot *s)
{
    const size_t n = (size_t)s->file.head.n_elements;
    float *before = malloc(n * sizeof *before);
    double worst = 0;
    spot_record r;

    cr_assert_not_null(before);
    int half = spot_valid(&s->file, &r);
    memcpy(before, spot_half(&s->file, half, r.step).weights, n * sizeof *before);
    spot_bed_work(s, 1);
    half = spot_valid(&s->file, &r);
    const float *after = spot_half(&s->file, half, r.step).weights;
    for (size_t i = 0; i < n; i++)
        worst = fmax(worst, fabs((double)after[i] - (double)before[i]));
    free(before);
    return worst;
}

Test(spot, who_has_learned_takes_small_steps)
{
    char dir[128], drafter[128];
    pl_error err = {0};
    spot_record r;
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 8);
    pl_spot *s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 1, 1);
    spot_bed_work(s, 2);
    const double at_first = next_change(s), lr = (double)b.o.train.lr;
    cr_expect(at_first > 0.5 * lr && at_first < 2 * lr, "%g of %g", at_first, lr);
    snprintf(dir, sizeof dir, "%s/handed-in", b.dir);
    cr_assert_eq(pl_dir_make(dir, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_eagle_save(s->e, dir, &err), PL_OK, "%s", err.msg);
    pl_spot_free(s);
    snprintf(drafter, sizeof drafter, "%s/other", b.dir);
    b.o.dir = drafter;
    b.o.init = dir;
    s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 1, 1);
    spot_bed_work(s, 1);
    const double then = next_change(s);
    cr_expect(then > 0 && then < 0.2 * at_first, "%g after %g", then, at_first);
    (void)spot_bed_hash(s, &r);
    cr_expect_eq(r.step, SPOT_INIT_STEPS + 2);
    pl_spot_free(s);
    spot_bed_close(&b);
}

/* Of the half that is not valid: 0 when its record is void, else of what it holds. */
static uint64_t other_hash(const pl_spot *s)
{
    spot_record r;
    const int other = 1 - spot_valid(&s->file, &r);
    const uint64_t *seq =
        (const uint64_t *)(const void *)(s->file.base + SPOT_RECORD + other * SPOT_RECORD_STRIDE);

    return *seq == 0 ? 0 : pl_hash64(spot_vocab(&s->file, other), spot_half_bytes(&s->file.head));
}

Test(spot, a_stop_at_any_place_leaves_the_state_as_it_was)
{
    spot_record before, after;
    pl_spot_published p;
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 8);
    pl_spot *s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 1, 1);
    spot_bed_work(s, 2);
    const uint64_t hash = spot_bed_hash(s, &before), other = other_hash(s);
    int n = 1, n_void = 0;
    for (;; n++) {
        stopper stop = {0, n};
        const pl_status st = pl_spot_work(s, stop_at, &stop, &p, NULL);
        if (st == PL_OK)
            break;
        cr_assert_eq(st, PL_E_STOPPED);
        cr_expect_eq(stop.n, n, "asked %d times more after the stop", stop.n - n);
        cr_assert_eq(spot_bed_hash(s, &after), hash, "stopped at call %d", n);
        cr_assert_eq(after.seq, before.seq);
        const uint64_t now = other_hash(s);
        cr_assert(now == other || now == 0, "half written, and not void");
        n_void += now == 0;
    }
    cr_expect_gt(n_void, 0, "never stopped while it was written");
    cr_expect_gt(n, 20, "asked %d times only", n);
    spot_bed_hash(s, &after);
    cr_expect_eq(after.step, before.step + 1, "with time there is progress");
    pl_spot_free(s);
    spot_bed_close(&b);
}

static int die_at(void *ctx)
{
    stopper *s = ctx;
    if (++s->n >= s->at)
        _exit(9);
    return 0;
}

/* The child leads a session and dies at call n; *steps counts what it finished.  Returns 1 when it
 * lived. */
static int lead_and_die(spot_bed *b, uint64_t session, int n, int64_t *steps)
{
    const pid_t pid = fork();
    int status;

    cr_assert_geq(pid, 0);
    if (pid == 0) {
        stopper stop = {0, n};
        pl_spot_published p;
        pl_spot *s = NULL;
        pl_error err;
        if (pl_spot_new(&s, b->m, &b->o, NULL, &err) != PL_OK ||
            pl_spot_begin(s, session, 1, b->buffers, 1, 1, &err) != PL_OK)
            _exit(1);
        for (int i = 0; i < 2; i++) {
            if (pl_spot_work(s, die_at, &stop, &p, &err) != PL_OK)
                _exit(1);
            ++*steps;
        }
        _exit(0);
    }
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert(WIFEXITED(status));
    cr_assert(WEXITSTATUS(status) == 9 || WEXITSTATUS(status) == 0, "%d", WEXITSTATUS(status));
    return WEXITSTATUS(status) == 0;
}

Test(spot, a_lead_killed_anywhere_leaves_its_last_finished_step)
{
    spot_record r;
    spot_bed b;
    int64_t *steps =
        mmap(NULL, sizeof *steps, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    cr_assert_neq(steps, MAP_FAILED);
    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 8);
    uint64_t session = 1;
    int64_t total = 0;
    for (int n = 1; !lead_and_die(&b, session, n, steps); n += 3, session++) {
        pl_spot *s = spot_bed_spot(&b, "w1");
        spot_bed_begin(&b, s, ++session, 1);
        if (s->file.fd >= 0) {
            spot_bed_hash(s, &r);
            cr_assert_eq(r.step, total + *steps, "killed at call %d: step %lld of %lld", n,
                (long long)r.step, (long long)(total + *steps));
        }
        spot_bed_work(s, 1);
        total += *steps + 1;
        *steps = 0;
        pl_spot_free(s);
    }
    cr_expect_gt(session, 20);
    spot_bed_close(&b);
}

Test(spot, a_half_that_was_being_written_is_not_read)
{
    spot_record r, again;
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 8);
    pl_spot *s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 1, 1);
    spot_bed_work(s, 3);
    spot_bed_hash(s, &r);
    const int half = spot_valid(&s->file, &r);
    s->file.base[SPOT_RECORD + half * SPOT_RECORD_STRIDE + 8] ^= 1; /* its session */
    memset(spot_vocab(&s->file, half), 0xff, spot_half_bytes(&s->file.head));
    pl_spot_free(s);

    s = spot_bed_spot(&b, "w1");
    spot_bed_begin(&b, s, 2, 1);
    cr_expect_eq(spot_valid(&s->file, &again), 1 - half);
    cr_expect_eq(again.step, r.step - 1);
    spot_bed_work(s, 2);
    spot_bed_hash(s, &again);
    cr_expect_eq(again.step, r.step + 1);
    pl_spot_free(s);
    spot_bed_close(&b);
}

Test(spot, a_stale_lead_is_refused_and_writes_nothing)
{
    pl_spot_published p;
    spot_record before, after;
    pl_error err = {0};
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 8);
    pl_spot *old = spot_bed_spot(&b, "w0"), *new = spot_bed_spot(&b, "w1");
    spot_bed_begin(&b, old, 5, 1);
    spot_bed_work(old, 2);
    cr_expect_eq(pl_spot_begin(new, 5, 1, b.buffers, 1, 1, &err), PL_E_PEER, "two leads of one");
    cr_expect_eq(pl_spot_begin(new, 4, 1, b.buffers, 1, 1, &err), PL_E_PEER, "an older session");
    spot_bed_begin(&b, new, 6, 1);
    const uint64_t hash = spot_bed_hash(new, &before);
    cr_expect_eq(pl_spot_work(old, NULL, NULL, &p, &err), PL_E_PEER);
    cr_expect(strstr(err.msg, "session 6") != NULL, "%s", err.msg);
    cr_expect_eq(spot_bed_hash(new, &after), hash);
    cr_expect_eq(pl_spot_work(old, NULL, NULL, &p, &err), PL_E_PEER, "and stays out");
    spot_bed_work(new, 1);
    spot_bed_hash(new, &after);
    cr_expect_eq(after.step, before.step + 1);
    cr_expect_eq(after.session, 6);
    pl_spot_free(old);
    pl_spot_free(new);
    spot_bed_close(&b);
}

Test(spot, a_run_in_one_process_takes_the_session_after_the_last)
{
    spot_record r;
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 8);
    pl_spot *s = spot_bed_spot(&b, "w0");
    spot_bed_begin(&b, s, 41, 1);
    spot_bed_work(s, 1);
    pl_spot_free(s);
    s = spot_bed_spot(&b, "local"); /* another name, after a restart */
    for (uint64_t i = 0; i < 3; i++) {
        spot_bed_begin(&b, s, 0, 1);
        spot_bed_work(s, 1);
        spot_bed_hash(s, &r);
        cr_expect_eq(r.session, 42 + i);
        cr_expect_eq(r.step, (int64_t)i + 2);
        pl_spot_end(s);
    }
    pl_spot_free(s);
    spot_bed_close(&b);
}

static pl_spot *claims;
static spot_bed *claim_bed;

/* Another session takes the state while the lead computes. */
static int take_over(void *ctx)
{
    stopper *s = ctx;
    if (++s->n == s->at)
        spot_bed_begin(claim_bed, claims, 9, 1);
    return 0;
}

Test(spot, a_lead_that_loses_the_state_in_a_step_does_not_finish_it)
{
    pl_spot_published p;
    spot_record r;
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 8);
    pl_spot *old = spot_bed_spot(&b, "w0");
    spot_bed_begin(&b, old, 5, 1);
    spot_bed_work(old, 1);
    stopper count = {0, 1 << 30};
    cr_assert_eq(pl_spot_work(old, stop_at, &count, &p, NULL), PL_OK);
    claim_bed = &b;
    claims = spot_bed_spot(&b, "w1");
    int n_late = 0; /* in the middle of the writing */
    for (int at = count.n + 4; at > 2; at -= at > count.n - 4 ? 1 : 5) {
        pl_spot *s = spot_bed_spot(&b, "w2");
        pl_spot_free(claims);
        claims = spot_bed_spot(&b, "w1");
        atomic_store(&spot_claim_of(&old->file)->owner, 0);
        spot_bed_begin(&b, s, 8, 1);
        spot_bed_hash(s, &r);
        const int64_t step = r.step;
        stopper stop = {0, at};
        const pl_status st = pl_spot_work(s, take_over, &stop, &p, NULL);
        spot_bed_hash(s, &r);
        if (stop.n >= at)
            cr_assert_eq(st, PL_E_PEER, "call %d", at);
        cr_assert_eq(r.step, step + (stop.n < at), "call %d", at);
        n_late += stop.n >= at && s->stats.n_dropped == 1;
        pl_spot_free(s);
    }
    cr_expect_gt(n_late, 0);
    pl_spot_free(claims);
    pl_spot_free(old);
    spot_bed_close(&b);
}

Test(spot, three_bad_batches_in_a_row_end_the_session)
{
    pl_spot_published p;
    pl_spot_stats stats;
    spot_record r;
    pl_error err = {0};
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_put(&b, 1, 1, 1e38f); /* finite, but its logits are not */
    pl_spot *s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 1, 1);
    spot_bed_work(s, 2);
    cr_expect_eq(pl_spot_work(s, NULL, NULL, &p, &err), PL_E_NUMERIC);
    pl_spot_get_stats(s, &stats);
    cr_expect_eq(stats.n_dropped, 3);
    cr_expect_eq(stats.n_steps, 0);
    spot_bed_hash(s, &r);
    cr_expect_eq(r.step, 0);
    cr_expect_eq(pl_spot_work(s, NULL, NULL, &p, &err), PL_E_NUMERIC, "it is over");
    pl_spot_free(s);
    spot_bed_close(&b);
}

Test(spot, a_bad_batch_between_good_ones_is_dropped_and_counted)
{
    pl_spot_stats stats;
    spot_bed b;

    spot_bed_open(&b);
    b.o.windows_a_step = 1;
    spot_bed_put(&b, 1, 1, 1e38f);
    spot_bed_put(&b, 2, 1, 4);
    pl_spot *s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 1, 1);
    spot_bed_work(s, 12); /* in turns: who was chosen less is next */
    pl_spot_get_stats(s, &stats);
    cr_expect_eq(stats.n_dropped, 6);
    cr_expect_eq(stats.n_steps, 6);
    pl_spot_free(s);
    spot_bed_close(&b);
}

Test(spot, a_half_that_a_checkpoint_copies_is_not_written)
{
    spot_record before, after;
    pl_spot_published p;
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 8);
    pl_spot *s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 1, 1);
    spot_bed_work(s, 2);
    spot_bed_hash(s, &before);
    const uint64_t other = other_hash(s);
    atomic_store(&s->checkpoint.job.is_pinned, 1 + 1 - spot_valid(&s->file, &before));
    stopper stop = {0, 2000}; /* more than a step asks: it waits */
    cr_expect_eq(pl_spot_work(s, stop_at, &stop, &p, NULL), PL_E_STOPPED);
    cr_expect_eq(other_hash(s), other);
    atomic_store(&s->checkpoint.job.is_pinned, 0);
    spot_bed_work(s, 1);
    spot_bed_hash(s, &after);
    cr_expect_eq(after.step, before.step + 1);
    pl_spot_free(s);
    spot_bed_close(&b);
}

Test(spot, with_nothing_to_train_on_it_waits)
{
    pl_spot_published p;
    pl_error err = {0};
    spot_bed b;

    spot_bed_open(&b);
    pl_spot *s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 1, 1);
    cr_expect_eq(pl_spot_work(s, NULL, NULL, &p, &err), PL_E_TIMEOUT);
    spot_bed_fill(&b, 8, 9); /* held out: never trained on */
    cr_expect_eq(pl_spot_work(s, NULL, NULL, &p, &err), PL_E_TIMEOUT);
    spot_bed_fill(&b, 1, 2); /* one sample is enough */
    spot_bed_work(s, 3);
    pl_spot_free(s);
    spot_bed_close(&b);
}

Test(spot, buffers_that_are_not_there_are_left_out)
{
    spot_bed b;
    pl_error err = {0};

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 3);
    const char *const paths[] = {"/nowhere/buffer", b.buffer, b.buffer};
    pl_spot *s = spot_bed_spot(&b, NULL);
    cr_assert_eq(pl_spot_begin(s, 1, 1, paths, 3, 1, &err), PL_OK, "%s", err.msg);
    cr_expect_eq(s->n_views, 1);
    spot_bed_work(s, 2);
    pl_spot_free(s);
    spot_bed_close(&b);
}

Test(spot, a_state_of_another_target_and_no_drafter_are_refused)
{
    pl_spot_options o;
    pl_error err = {0};
    pl_spot *s = NULL;
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 3);
    o = b.o;
    o.init = NULL;
    cr_expect_eq(pl_spot_new(&s, b.m, &o, NULL, &err), PL_E_CONFIG);
    cr_expect(strstr(err.msg, "random") != NULL, "%s", err.msg);
    o.init = "/nowhere/drafter";
    cr_expect_eq(pl_spot_new(&s, b.m, &o, NULL, &err), PL_E_CONFIG);
    s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 1, 1);
    spot_bed_work(s, 1);
    pl_spot_free(s);
    o = b.o;
    o.windows.target = 78;
    cr_expect_eq(pl_spot_new(&s, b.m, &o, NULL, &err), PL_E_SHAPE);
    cr_expect(strstr(err.msg, "another target") != NULL, "%s", err.msg);
    o = b.o;
    o.init = NULL; /* there is a state now */
    cr_assert_eq(pl_spot_new(&s, b.m, &o, NULL, &err), PL_OK, "%s", err.msg);
    pl_spot_free(s);
    char path[128];
    snprintf(path, sizeof path, "%s/state", b.drafter);
    cr_assert_eq(truncate(path, 5000), 0);
    cr_expect_eq(pl_spot_new(&s, b.m, &o, NULL, &err), PL_E_FORMAT, "torn, and no init");
    spot_bed_close(&b);
}

/* As a reboot leaves it: torn, or whole and doubtful. */
static void expect_goes_on_from_the_checkpoint(spot_bed *b, int64_t step)
{
    char path[128];
    spot_record r;

    pl_spot *s = spot_bed_spot(b, NULL);
    spot_bed_begin(b, s, 8, 1);
    pl_spot_free(s); /* gone before it did anything */
    s = spot_bed_spot(b, NULL);
    spot_bed_begin(b, s, 9, 1);
    spot_bed_work(s, 1);
    (void)spot_bed_hash(s, &r);
    cr_expect_eq(r.step, step + 1, "step %lld", (long long)r.step);
    pl_spot_free(s);
    snprintf(path, sizeof path, "%s/state.aside", b->drafter);
    cr_expect_eq(unlink(path), 0, "left to look at");
}

Test(spot, a_torn_state_and_one_of_before_a_reboot_give_way_to_the_checkpoint)
{
    char path[128], saved[128];
    pl_error err = {0};
    spot_record r;
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 3);
    snprintf(path, sizeof path, "%s/state", b.drafter);
    snprintf(saved, sizeof saved, "%s/checkpoint", b.drafter);
    pl_spot *s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 1, 1);
    spot_bed_work(s, 3);
    cr_assert_eq(pl_spot_checkpoint(s, saved, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_spot_checkpoint_wait(s, &err), PL_OK, "%s", err.msg);
    (void)spot_bed_hash(s, &r);
    const int64_t step = r.step;
    spot_bed_work(s, 2); /* lost */
    pl_spot_free(s);
    cr_assert_eq(truncate(path, 5000), 0);
    expect_goes_on_from_the_checkpoint(&b, step);
    s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 10, 1);
    spot_bed_work(s, 2);
    (void)spot_bed_hash(s, &r);
    cr_expect_eq(r.step, step + 3, "of the same boot it is trusted");
    atomic_fetch_xor(&spot_claim_of(&s->file)->boot, 1);
    pl_spot_free(s);
    expect_goes_on_from_the_checkpoint(&b, step);
    cr_assert_eq(truncate(path, 5000), 0);
    cr_assert_eq(truncate(saved, 5000), 0);
    s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 11, 1);
    spot_bed_work(s, 1);
    (void)spot_bed_hash(s, &r);
    cr_expect_eq(r.step, 1, "neither is whole: anew");
    atomic_fetch_xor(&spot_claim_of(&s->file)->boot, 1);
    pl_spot_free(s);
    cr_assert_eq(unlink(saved), 0);
    s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 12, 1);
    spot_bed_work(s, 1);
    (void)spot_bed_hash(s, &r);
    cr_expect_eq(r.step, 1, "of another boot, and nothing was saved: anew");
    pl_spot_free(s);
    spot_bed_close(&b);
}

Test(spot, a_ledger_that_counts_from_the_start_again_may_own_the_state)
{
    pl_error err = {0};
    spot_record r;
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 3);
    pl_spot *s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 9, 1);
    spot_bed_work(s, 3);
    pl_spot_free(s);
    s = spot_bed_spot(&b, NULL);
    cr_expect_eq(pl_spot_begin(s, 1, 1, NULL, 0, 1, &err), PL_E_PEER, "an earlier one may not");
    cr_expect_eq(pl_spot_disown("/nowhere", &err), PL_OK, "there is none: %s", err.msg);
    cr_assert_eq(pl_spot_disown(b.drafter, &err), PL_OK, "%s", err.msg);
    spot_bed_begin(&b, s, 1, 1);
    spot_bed_work(s, 1);
    (void)spot_bed_hash(s, &r);
    cr_expect_eq(r.step, 4, "step %lld", (long long)r.step);
    pl_spot_free(s);
    spot_bed_close(&b);
}

Test(spot, a_state_without_an_average_gives_way_to_its_checkpoint)
{
    char saved[128];
    pl_error err = {0};
    spot_record r;
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 3);
    b.o.train.ema = 0;
    snprintf(saved, sizeof saved, "%s/checkpoint", b.drafter);
    pl_spot *s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 1, 1);
    spot_bed_work(s, 3);
    cr_assert_eq(pl_spot_checkpoint(s, saved, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_spot_checkpoint_wait(s, &err), PL_OK, "%s", err.msg);
    pl_spot_free(s);
    b.o.train.ema = 0.9f;
    s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 2, 1);
    spot_bed_work(s, 1);
    (void)spot_bed_hash(s, &r);
    cr_expect_eq(r.step, 4, "step %lld", (long long)r.step);
    pl_spot_free(s);
    spot_bed_close(&b);
}

Test(spot, a_session_preempted_at_random_keeps_whole_and_makes_progress)
{
    pl_spot_published p;
    spot_record r;
    spot_bed b;
    uint32_t x = 1;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 8);
    pl_spot *s = spot_bed_spot(&b, NULL);
    for (uint64_t session = 1; session <= 60; session++) {
        x = x * 1664525u + 1013904223u;
        stopper stop = {0, 1 + (int)(x >> 25)};
        spot_bed_begin(&b, s, session, 1);
        for (pl_status st = PL_OK; st == PL_OK;)
            st = pl_spot_work(s, stop_at, &stop, &p, NULL);
        pl_spot_end(s);
    }
    spot_bed_hash(s, &r);
    cr_expect_gt(r.step, 5, "%lld steps", (long long)r.step);
    for (size_t i = 0; i < s->file.head.n_elements; i++)
        cr_assert(isfinite(spot_half(&s->file, spot_valid(&s->file, &r), 0).weights[i]));
    pl_spot_free(s);
    spot_bed_close(&b);
}

static void alloc_state(pl_eagle_state *s, size_t n)
{
    float *all = calloc(3 * n, sizeof *all);

    cr_assert_not_null(all);
    *s = (pl_eagle_state){.weights = all, .m = all + n, .v = all + 2 * n};
}

Test(spot, an_update_by_pieces_has_the_bits_of_one_in_place)
{
    spot_bed b;
    pl_eagle *e = NULL;
    pl_eagle_trainer *t = NULL;
    pl_eagle_state from, to, want;
    double norm;

    spot_bed_open(&b);
    const pl_eagle_options o = {.n_vocab = b.o.n_vocab, .seed = 1};
    pl_eagle_train_options train = b.o.train;
    train.window = SPOT_ROWS;
    train.weight_decay = 0.1f; /* not of norms */
    cr_assert_eq(pl_eagle_new(&e, b.m, &o, NULL), PL_OK);
    cr_assert_eq(pl_eagle_trainer_new(&t, e, &train, NULL), PL_OK);
    const size_t n = pl_eagle_n_elements(e), part = 4096;
    float *grads = calloc(n, sizeof *grads);
    cr_assert_not_null(grads);
    for (size_t i = 0; i < n; i++)
        grads[i] = (float)((double)(i * 2654435761u % 1000) / 500 - 1);
    alloc_state(&from, n);
    alloc_state(&to, n);
    alloc_state(&want, n);
    for (int step = 0; step < 3; step++) {
        pl_eagle_trainer_get(t, &from);
        cr_assert_eq(pl_eagle_apply(t, grads, &norm, NULL), PL_OK);
        pl_eagle_trainer_get(t, &want);
        cr_expect_float_eq(pl_eagle_norm(e, grads), norm, 1e-9 * norm);
        for (size_t at = 0; at < n; at += part)
            pl_eagle_update_part(
                e, &train, &from, grads, norm, &to, at, n - at < part ? n - at : part);
        cr_assert_eq(to.step, want.step);
        cr_assert_eq(memcmp(to.weights, want.weights, 3 * n * sizeof(float)), 0, "step %d", step);
    }
    free(from.weights);
    free(to.weights);
    free(want.weights);
    free(grads);
    pl_eagle_trainer_free(t);
    pl_eagle_free(e);
    spot_bed_close(&b);
}
