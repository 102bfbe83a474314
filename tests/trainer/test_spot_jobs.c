/* tests/trainer/test_spot_jobs.c - what threads make for sessions that end before it is there.
 *
 * Claims: what a piece of work that is stopped waited for is there in a later one, made once;
 * nothing of the trainer changes while a thread makes its state; a state that is gone again is made
 * again; a checkpoint that came meanwhile is found; a damaged version is looked at once, so the one
 * before it is read to its end; weights are not taken for copied when the copy was stopped.
 */
#include "tests/trainer/spot_bed.h"

#include "core/file.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const struct timespec rest = {.tv_nsec = 1000000};

static int stop_at_second(void *ctx)
{
    return ++*(int *)ctx >= 2;
}

static void state_path(const spot_bed *b, char path[128])
{
    snprintf(path, 128, "%s/state", b->drafter);
}

static int stop_now(void *ctx)
{
    (void)ctx;
    return 1;
}

/* Until it has an end, ten seconds at most. */
static void wait_for_end(const spot_job *j)
{
    for (int i = 0; i < 10000 && !atomic_load(&j->is_done); i++)
        (void)nanosleep(&rest, NULL);
    cr_assert(atomic_load(&j->is_done), "a thread has no end");
}

static _Atomic int is_let_go, n_made;

static pl_status make_when_let_go(spot_aside *a, pl_error *err)
{
    (void)a;
    (void)err;
    while (!atomic_load(&is_let_go))
        (void)nanosleep(&rest, NULL);
    atomic_fetch_add(&n_made, 1);
    return PL_OK;
}

static pl_status make_nothing(spot_aside *a, pl_error *err)
{
    return pl_fail(err, PL_E_FORMAT, "nothing comes of '%s'", a->path);
}

static void ask_to_stop(pl_spot *s, int is_asked)
{
    s->should_stop = is_asked ? stop_now : NULL;
    s->is_stopped = 0;
}

Test(spot_jobs, what_a_stopped_piece_of_work_waited_for_is_there_in_a_later_one)
{
    pl_error err = {0};
    spot_bed b;

    spot_bed_open(&b);
    pl_spot *s = spot_bed_spot(&b, NULL);
    spot_aside *a = &s->reading;
    cr_assert_eq(spot_aside_begin(s, a, make_when_let_go, "one", &err), PL_OK);
    ask_to_stop(s, 1);
    cr_expect_eq(spot_aside_work(s, a, &err), PL_E_STOPPED);
    cr_assert(spot_aside_is(a, make_when_let_go, "one"));
    cr_expect_not(spot_aside_is(a, make_when_let_go, "two"));
    ask_to_stop(s, 1);
    cr_expect_eq(spot_aside_work(s, a, &err), PL_E_STOPPED, "the thread is still at it");
    ask_to_stop(s, 1);
    cr_expect_eq(spot_aside_begin(s, a, make_nothing, "two", &err), PL_E_STOPPED);
    cr_assert(spot_aside_is(a, make_when_let_go, "one"));
    atomic_store(&is_let_go, 1);
    ask_to_stop(s, 0);
    cr_expect_eq(spot_aside_work(s, a, &err), PL_OK);
    cr_expect_eq(atomic_load(&n_made), 1, "it was made %d times", atomic_load(&n_made));
    cr_assert_eq(spot_aside_begin(s, a, make_nothing, "two", &err), PL_OK);
    cr_expect_eq(spot_aside_work(s, a, &err), PL_E_FORMAT);
    cr_expect_not_null(strstr(err.msg, "nothing comes of 'two'"), "%s", err.msg);
    pl_spot_free(s);
    spot_bed_close(&b);
}

Test(spot_jobs, nothing_changes_while_a_thread_makes_the_state)
{
    pl_error err = {0};
    spot_record before, after;
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 8);
    pl_spot *s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 1, 1);
    spot_bed_work(s, 1);
    cr_assert_eq(spot_aside_begin(s, &s->starting, make_when_let_go, "slow", &err), PL_OK);
    ask_to_stop(s, 1); /* as it was left in a session before */
    cr_assert_eq(spot_aside_work(s, &s->starting, &err), PL_E_STOPPED);
    (void)spot_valid(&s->file, &before);
    spot_bed_begin(&b, s, 2, 1);
    pl_spot_published p;
    int asked = -400; /* more looks than a step has */
    cr_expect_eq(pl_spot_work(s, stop_at_second, &asked, &p, NULL), PL_E_STOPPED);
    (void)spot_valid(&s->file, &after);
    cr_expect_eq(before.seq, after.seq);
    atomic_store(&is_let_go, 1);
    spot_bed_work(s, 1);
    cr_expect_not(s->starting.job.is_running);
    pl_spot_free(s);
    spot_bed_close(&b);
}

Test(spot_jobs, a_state_that_is_gone_again_is_made_again)
{
    pl_spot_published p;
    pl_error err = {0};
    char path[128];
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 33);
    state_path(&b, path);
    pl_spot *s = spot_bed_spot(&b, NULL);
    uint64_t session = 1;
    int n = 0;
    while (session < 5000 && !s->starting.job.is_running) {
        int asked = n--;
        spot_bed_begin(&b, s, session++, 1);
        if (pl_spot_work(s, stop_at_second, &asked, &p, &err) == PL_E_STOPPED && s->file.fd < 0)
            continue;
        n = 0; /* the thread was faster than the stop: once more */
        (void)unlink(path);
    }
    cr_assert(s->starting.job.is_running, "it was never stopped while the state was made");
    wait_for_end(&s->starting.job);
    cr_assert_eq(unlink(path), 0);
    spot_bed_begin(&b, s, session, 1);
    const pl_status st = pl_spot_work(s, NULL, NULL, &p, &err);
    cr_expect(st == PL_OK || st == PL_E_TIMEOUT, "%d: %s", (int)st, err.msg);
    spot_bed_work(s, 2);
    cr_expect_geq(s->file.fd, 0);
    pl_spot_free(s);
    spot_bed_close(&b);
}

Test(spot_jobs, a_checkpoint_that_came_meanwhile_is_found)
{
    pl_spot_published p;
    pl_error err = {0};
    char path[128], state[128];
    spot_record r;
    spot_bed b;

    spot_bed_open(&b);
    pl_spot *a = spot_bed_spot(&b, "a");
    spot_bed_begin(&b, a, 1, 1);
    cr_assert_eq(pl_spot_work(a, NULL, NULL, &p, &err), PL_E_TIMEOUT, "%s", err.msg);
    spot_bed_fill(&b, 1, 33);
    pl_spot *other = spot_bed_spot(&b, "b");
    spot_bed_begin(&b, other, 2, 1);
    spot_bed_work(other, 25);
    snprintf(path, sizeof path, "%s/checkpoint", b.drafter);
    cr_assert_eq(pl_spot_checkpoint(other, path, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_spot_checkpoint_wait(other, &err), PL_OK, "%s", err.msg);
    pl_spot_free(other);
    state_path(&b, state);
    cr_assert_eq(unlink(state), 0);
    spot_bed_begin(&b, a, 3, 1);
    spot_bed_work(a, 1);
    cr_assert_geq(spot_valid(&a->file, &r), 0);
    cr_expect_geq(r.step, 20, "it began anew: step %d", (int)r.step);
    pl_spot_free(a);
    spot_bed_close(&b);
}

Test(spot_jobs, one_damaged_version_does_not_keep_the_one_before_from_being_read)
{
    char path[160];
    pl_error err = {0};
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 33);
    pl_spot *s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 1, 1);
    spot_bed_work(s, 1);
    for (int v = 1; v <= 2; v++) {
        snprintf(path, sizeof path, "%s/versions/%d", b.drafter, v);
        cr_assert_eq(pl_eagle_save(s->e, path, &err), PL_OK, "%s", err.msg);
    }
    snprintf(path, sizeof path, "%s/versions/2/model.safetensors", b.drafter);
    cr_assert_eq(truncate(path, 100), 0);
    pl_status st = PL_E_STOPPED;
    for (int i = 0; i < 300 && st == PL_E_STOPPED; i++) {
        int n = 0; /* one look before the first wait is over: version 2's end, and then a stop */
        ask_to_stop(s, 1);
        s->should_stop = stop_at_second;
        s->stop_ctx = &n;
        st = spot_versions_open(s, &err);
        ask_to_stop(s, 0);
        if (s->reading.job.is_running)
            wait_for_end(&s->reading.job);
    }
    cr_expect_eq(st, PL_OK);
    cr_expect_eq(s->serving_version, 1);
    pl_spot_free(s);
    spot_bed_close(&b);
}

Test(spot_jobs, a_copy_that_is_stopped_is_none)
{
    pl_error err = {0};
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 8);
    pl_spot *s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 1, 1);
    spot_bed_work(s, 1);
    ask_to_stop(s, 1);
    cr_expect_eq(spot_copy_weights(s, s->e, pl_eagle_get_weights(s->e), &err), PL_E_STOPPED);
    s->seq = 0; /* as when another lead went on */
    cr_expect_eq(spot_sync(s, &err), PL_E_STOPPED);
    cr_expect_eq(s->seq, 0, "weights that were not copied are taken for those of the state");
    ask_to_stop(s, 0);
    pl_spot_free(s);
    spot_bed_close(&b);
}
