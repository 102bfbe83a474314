/* Claims tested: a session of the spot trainer begins when workers are idle while another rolls
 * out, takes in who becomes idle later, moves to another lead when its own is gone, and ends with
 * what it belongs to; TRAIN, HALT and HANDOVER are said again until a STATUS answers them; a device
 * that is needed is asked back first; versions of the drafter rise and are durable before they are
 * said; idle time is counted to the last result; the last samples are put together, once, behind
 * what is known of them.  In no test does a member make an impossible transition. */
#include "tests/rollout/coordinator_world.h"

enum { BATCH = 5, VERSION = 3 };

static uint64_t session_of(const world *w, uint32_t i)
{
    return pl_coordinator_epoch(w->c) << 32 | i;
}

static void begin_with(world *w, int min_idle, uint32_t below)
{
    pl_coordinator_options o = bed_options();
    o.spot_min_idle = min_idle;
    o.consolidate_below = below;
    cr_assert_eq(start(w, &o), PL_OK);
    sync_ledger(w);
}

static void end(world *w)
{
    cr_assert_eq(stats(w).n_impossible, 0);
    done(w);
}

static void shows(world *w, uint64_t who, pl_worker_state state, uint64_t session)
{
    say(w, W, who,
        (pl_msg){.h.type = PL_MSG_STATUS,
            .u.status = {
                .state = state, .policy_version = VERSION, .batch = BATCH, .session = session}});
}

/* What it runs, as its STATUS says; who is not in a session. */
static void runs(world *w, uint64_t who, const uint32_t *uids, uint32_t n)
{
    say(w, W, who,
        (pl_msg){.h.type = PL_MSG_STATUS,
            .u.status = {.state = n ? PL_WORKER_BUSY : PL_WORKER_IDLE,
                .policy_version = VERSION,
                .batch = BATCH,
                .running = {uids, n}}});
}

static pl_msg nth_lease(world *w, uint64_t who, int i)
{
    return heard_nth(w, W, who, PL_MSG_LEASE, i);
}

/* Every sample that it holds is finished and durable. */
static void finish(world *w, uint64_t who)
{
    for (int i = 0; nth_lease(w, who, i).h.type; i++)
        result(w, who, BATCH, nth_lease(w, who, i).u.lease.uid, 2);
    sync_ledger(w);
}

/* n workers, 2 samples each of one batch. */
static world *with_workers(int n, int min_idle, uint32_t below, uint64_t batch)
{
    world *w = make();
    begin_with(w, min_idle, below);
    hello(w, T, TRAINER, "trainer", 0);
    for (int i = 1; i <= n; i++)
        worker(w, (uint64_t)i, VERSION, 8);
    groups(w, batch, (uint32_t)n, 2, VERSION);
    sync_ledger(w);
    for (int i = 1; i <= n; i++)
        cr_assert_eq(count(w, W, (uint64_t)i, PL_MSG_LEASE), 2, "worker %d", i);
    return w;
}

/* Three workers; 2 leads a session, in which 3 takes part; 1 rolls out. */
static world *in_session(void)
{
    world *w = with_workers(3, 1, 0, BATCH);
    finish(w, 2);
    shows(w, 2, PL_WORKER_TRAINING, session_of(w, 1));
    finish(w, 3);
    shows(w, 3, PL_WORKER_TRAINING, session_of(w, 1));
    return w;
}

/* ---- sessions ---- */

Test(coordinator_spot, begins_when_one_is_idle_and_another_rolls_out)
{
    world *w = with_workers(2, 1, 0, BATCH);
    cr_assert_eq(count(w, W, 2, PL_MSG_TRAIN), 0);
    finish(w, 2);
    const pl_msg t = heard(w, W, 2, PL_MSG_TRAIN);
    cr_assert_eq(t.h.type, PL_MSG_TRAIN);
    cr_assert_eq(t.u.train.session, session_of(w, 1));
    cr_assert_eq(t.u.train.is_lead, 1);
    cr_assert_eq(t.u.train.batch, BATCH);
    cr_assert_eq(t.u.train.policy_version, VERSION);
    cr_assert_str_eq(t.u.train.buffers, "worker-1\nworker-2");
    cr_assert_eq(count(w, W, 1, PL_MSG_TRAIN), 0);
    cr_assert_eq(stats(w).session, session_of(w, 1));
    end(w);
}

Test(coordinator_spot, does_not_begin_when_switched_off_or_short_of_idle_workers_or_evaluating)
{
    static const struct {
        int min_idle;
        uint64_t batch;
    } cases[] = {{0, BATCH}, {2, BATCH}, {1, (uint64_t)1 << 32 | BATCH}};
    for (int i = 0; i < 3; i++) {
        world *w = with_workers(2, cases[i].min_idle, 0, cases[i].batch);
        for (int k = 0; k < 2; k++)
            result(w, 2, cases[i].batch, nth_lease(w, 2, k).u.lease.uid, 2);
        sync_ledger(w);
        cr_assert_eq(stats(w).n_done, 2);
        wait_ms(w, 1000);
        cr_assert_eq(count(w, W, 2, PL_MSG_TRAIN), 0, "case %d", i);
        end(w);
    }
}

Test(coordinator_spot, does_not_begin_while_a_sample_waits)
{
    world *w = with_workers(2, 1, 0, BATCH);
    finish(w, 2);
    pl_coordinator_free(w->c);
    packets_cut(&w->sent, 0);
    begin_with(w, 1, 0);
    worker(w, 2, VERSION, 8);
    hello(w, W, 1, "worker-1", 8);
    runs(w, 1, (const uint32_t[]){100}, 1); /* and 101? whoever runs it has not said so yet */
    cr_assert_eq(stats(w).n_pending, 1);
    for (int i = 0; i < 25; i++) {
        wait_ms(w, 100);
        status(w, 2, VERSION, 0);
        runs(w, 1, (const uint32_t[]){100}, 1);
    }
    cr_assert_eq(count(w, W, 2, PL_MSG_TRAIN), 0);
    cr_assert_eq(stats(w).n_pending, 1);
    wait_ms(w, 600); /* nobody: 2 gets it */
    cr_assert_eq(stats(w).n_pending, 0);
    cr_assert_eq(count(w, W, 2, PL_MSG_TRAIN), 0);
    end(w);
}

Test(coordinator_spot, does_not_begin_when_who_rolls_out_is_leaving)
{
    world *w = with_workers(2, 1, 0, BATCH);
    shows(w, 1, PL_WORKER_DRAINING, 0);
    finish(w, 2);
    wait_ms(w, 100);
    cr_assert_eq(stats(w).n_leased, 2);
    cr_assert_eq(count(w, W, 2, PL_MSG_TRAIN), 0, "its samples are about to come back");
    end(w);
}

Test(coordinator_spot, train_is_said_again_and_who_declines_is_not_asked_any_more)
{
    world *w = with_workers(3, 1, 0, BATCH);
    finish(w, 2);
    finish(w, 3);
    cr_assert_eq(heard(w, W, 2, PL_MSG_TRAIN).u.train.is_lead, 1);
    cr_assert_eq(heard(w, W, 3, PL_MSG_TRAIN).u.train.is_lead, 0, "it joins");
    shows(w, 3, PL_WORKER_TRAINING, session_of(w, 1));
    for (int i = 0; i < 60; i++) { /* 2 lives, and shows nothing */
        shows(w, 1, PL_WORKER_BUSY, 0);
        shows(w, 2, PL_WORKER_IDLE, 0);
        shows(w, 3, PL_WORKER_TRAINING,
            heard_nth(w, W, 3, PL_MSG_TRAIN, count(w, W, 3, PL_MSG_TRAIN) - 1).u.train.session);
        wait_ms(w, 100);
    }
    cr_assert_eq(count(w, W, 2, PL_MSG_TRAIN), 3);
    cr_assert_eq(count(w, W, 2, PL_MSG_HALT), 1);
    cr_assert_eq(count(w, W, 3, PL_MSG_TRAIN), 2);
    const pl_msg t = heard_nth(w, W, 3, PL_MSG_TRAIN, 1);
    cr_assert_eq(t.u.train.session, session_of(w, 2));
    cr_assert_eq(t.u.train.is_lead, 1);
    end(w);
}

Test(coordinator_spot, who_becomes_idle_later_joins_and_the_session_outlives_its_parts)
{
    world *w = in_session();
    const pl_msg t = heard(w, W, 3, PL_MSG_TRAIN);
    cr_assert_eq(t.u.train.session, session_of(w, 1));
    cr_assert_eq(t.u.train.is_lead, 0);
    for (int i = 0; i < 50; i++) {
        runs(w, 1, (const uint32_t[]){100, 101}, 2);
        shows(w, 2, PL_WORKER_TRAINING, session_of(w, 1));
        shows(w, 3, PL_WORKER_TRAINING, session_of(w, 1));
        wait_ms(w, 100);
    }
    cr_assert_eq(count(w, W, 2, PL_MSG_HALT) + count(w, W, 3, PL_MSG_HALT), 0);
    cr_assert_eq(count(w, W, 2, PL_MSG_TRAIN), 1, "STATUS has answered it");
    end(w);
}

Test(coordinator_spot, who_is_on_another_host_does_not_join)
{
    world *w = with_workers(2, 1, 0, BATCH);
    say(w, W, 7,
        (pl_msg){.h.type = PL_MSG_HELLO,
            .u.hello = {.role = W,
                .name = "away",
                .numeric_class = "class-a",
                .host = "other",
                .max_seqs = 4}});
    finish(w, 2);
    status(w, 7, VERSION, 0);
    wait_ms(w, 100);
    cr_assert_eq(heard(w, W, 2, PL_MSG_TRAIN).u.train.is_lead, 1);
    cr_assert_eq(count(w, W, 7, PL_MSG_TRAIN), 0);
    end(w);
}

Test(coordinator_spot, halts_in_the_instant_that_the_batch_is_complete_until_status_shows_it)
{
    world *w = in_session();
    for (int i = 0; nth_lease(w, 1, i).h.type; i++)
        result(w, 1, BATCH, nth_lease(w, 1, i).u.lease.uid, 2);
    cr_assert_eq(count(w, W, 2, PL_MSG_HALT), 0, "not durable yet");
    clear(w);
    sync_ledger(w);
    cr_assert_eq(heard(w, W, 2, PL_MSG_HALT).u.halt.session, session_of(w, 1));
    cr_assert_eq(heard(w, W, 3, PL_MSG_HALT).u.halt.session, session_of(w, 1));
    cr_assert_eq(stats(w).session, 0);
    shows(w, 3, PL_WORKER_IDLE, 0);
    shows(w, 2, PL_WORKER_TRAINING, session_of(w, 1)); /* said before it heard */
    cr_assert_eq(count(w, W, 2, PL_MSG_HALT), 1);
    wait_ms(w, 150);
    shows(w, 2, PL_WORKER_TRAINING, session_of(w, 1));
    cr_assert_eq(count(w, W, 2, PL_MSG_HALT), 2, "it still trains");
    wait_ms(w, 1500);
    cr_assert_eq(count(w, W, 3, PL_MSG_HALT), 1);
    cr_assert_geq(count(w, W, 2, PL_MSG_HALT), 3, "again");
    shows(w, 2, PL_WORKER_IDLE, 0);
    const int n = count(w, W, 2, PL_MSG_HALT);
    wait_ms(w, 1500);
    cr_assert_eq(count(w, W, 2, PL_MSG_HALT), n);
    cr_assert_eq(count(w, W, 2, PL_MSG_TRAIN), 0, "nothing is rolled out any more");
    end(w);
}

Test(coordinator_spot, a_device_that_a_sample_waits_for_is_asked_back_first)
{
    world *w = with_workers(2, 1, 0, BATCH);
    finish(w, 2);
    shows(w, 2, PL_WORKER_TRAINING, session_of(w, 1));
    clear(w);
    say(w, W, 1, (pl_msg){.h.type = PL_MSG_LEAVE});
    cr_assert_eq(count(w, W, 2, PL_MSG_HALT), 1);
    cr_assert_eq(count(w, W, 2, PL_MSG_LEASE), 0, "it still trains");
    cr_assert_eq(stats(w).n_pending, 2);
    shows(w, 2, PL_WORKER_TRAINING, session_of(w, 1));
    cr_assert_eq(count(w, W, 2, PL_MSG_LEASE), 0);
    shows(w, 2, PL_WORKER_IDLE, 0);
    cr_assert_eq(count(w, W, 2, PL_MSG_LEASE), 2);
    cr_assert_eq(stats(w).session, 0);
    end(w);
}

Test(coordinator_spot, who_is_idle_is_taken_before_one_that_trains)
{
    world *w = with_workers(3, 1, 0, BATCH);
    finish(w, 2);
    shows(w, 2, PL_WORKER_TRAINING, session_of(w, 1));
    say(w, W, 2,
        (pl_msg){.h.type = PL_MSG_STATUS,
            .u.status = {.state = PL_WORKER_TRAINING,
                .policy_version = VERSION,
                .rate = 1000,
                .session = session_of(w, 1)}});
    status(w, 3, VERSION, 10);
    finish(w, 3); /* it was asked to join, and has not yet */
    clear(w);
    say(w, W, 1, (pl_msg){.h.type = PL_MSG_LEAVE});
    cr_assert_gt(count(w, W, 3, PL_MSG_LEASE), 0, "at once, whoever may be faster");
    end(w);
}

Test(coordinator_spot, a_lead_that_drains_is_no_lead)
{
    world *w = in_session();
    clear(w);
    shows(w, 2, PL_WORKER_DRAINING, 0);
    cr_assert_eq(heard(w, W, 3, PL_MSG_TRAIN).u.train.is_lead, 1);
    cr_assert_eq(stats(w).session, session_of(w, 2));
    end(w);
}

Test(coordinator_spot, samples_do_not_wait_for_ever_for_one_that_does_not_stop)
{
    world *w = with_workers(3, 1, 0, BATCH);
    finish(w, 2);
    shows(w, 2, PL_WORKER_TRAINING, session_of(w, 1));
    status(w, 2, VERSION, 90);
    shows(w, 2, PL_WORKER_TRAINING, session_of(w, 1));
    clear(w);
    say(w, W, 1, (pl_msg){.h.type = PL_MSG_LEAVE});
    for (int i = 0; i < 30; i++) {
        shows(w, 2, PL_WORKER_TRAINING, session_of(w, 1));
        if (stats(w).n_pending)
            runs(w, 3, (const uint32_t[]){102, 105}, 2);
        wait_ms(w, 100);
        cr_assert(i > 15 || stats(w).n_pending == 2, "a moment it is waited for");
    }
    cr_assert_eq(stats(w).n_pending, 0);
    cr_assert_eq(nth_lease(w, 3, 0).u.lease.uid, 100);
    cr_assert_eq(nth_lease(w, 3, 1).u.lease.uid, 103);
    end(w);
}

Test(coordinator_spot, when_the_lead_is_gone_the_next_one_leads_session_plus_one)
{
    for (int way = 0; way < 2; way++) {
        world *w = in_session();
        clear(w);
        if (way == 0)
            say(w, W, 2, (pl_msg){.h.type = PL_MSG_LEAVE});
        for (int i = 0; i < 35 && way == 1; i++) { /* silence */
            shows(w, 1, PL_WORKER_BUSY, 0);
            shows(w, 3, PL_WORKER_TRAINING, session_of(w, stats(w).n_moved ? 2 : 1));
            wait_ms(w, 100);
        }
        const pl_msg t = heard(w, W, 3, PL_MSG_TRAIN);
        cr_assert_eq(t.u.train.session, session_of(w, 2));
        cr_assert_eq(t.u.train.is_lead, 1);
        cr_assert_eq(stats(w).n_moved, 1);
        cr_assert_eq(count(w, W, 3, PL_MSG_HALT), 0, "it goes on");
        shows(w, 3, PL_WORKER_TRAINING, session_of(w, 1)); /* late */
        shows(w, 3, PL_WORKER_TRAINING, session_of(w, 2));
        cr_assert_eq(count(w, W, 3, PL_MSG_HALT), 0);
        cr_assert_eq(stats(w).session, session_of(w, 2));
        end(w);
    }
}

Test(coordinator_spot, a_joiner_that_is_gone_leaves_the_session_as_it_is)
{
    world *w = in_session();
    clear(w);
    say(w, W, 3, (pl_msg){.h.type = PL_MSG_LEAVE});
    cr_assert_eq(stats(w).session, session_of(w, 1));
    cr_assert_eq(count(w, W, 2, PL_MSG_TRAIN) + count(w, W, 2, PL_MSG_HALT), 0);
    say(w, W, 2, (pl_msg){.h.type = PL_MSG_LEAVE});
    cr_assert_eq(stats(w).session, 0, "nobody is left");
    end(w);
}

Test(coordinator_spot, halt_comes_before_a_version)
{
    world *w = in_session();
    clear(w);
    say(w, T, TRAINER, version(0, 9));
    sync_ledger(w);
    const pl_peer two = bed_peer(W, 2);
    int halt_at = -1, version_at = -1;
    for (int i = 0; i < w->sent.n; i++) {
        if (memcmp(&w->sent.at[i].peer, &two, sizeof two) != 0)
            continue;
        halt_at = w->sent.at[i].h.type == PL_MSG_HALT && halt_at < 0 ? i : halt_at;
        version_at = w->sent.at[i].h.type == PL_MSG_VERSION ? i : version_at;
    }
    cr_assert(halt_at >= 0 && halt_at < version_at, "%d, %d", halt_at, version_at);
    say(w, W, 2,
        (pl_msg){.h.type = PL_MSG_STATUS,
            .u.status = {.state = PL_WORKER_JOINING, .policy_version = UINT32_MAX}});
    end(w);
}

Test(coordinator_spot, ends_with_the_run_and_with_another_batch)
{
    world *w = in_session();
    groups(w, BATCH + 1, 1, 2, VERSION);
    cr_assert_eq(count(w, W, 2, PL_MSG_HALT), 1);
    end(w);
    w = in_session();
    pl_coordinator_drain(w->c, w->now);
    wait_ms(w, 50);
    cr_assert_eq(count(w, W, 2, PL_MSG_HALT), 1);
    cr_assert_eq(stats(w).session, 0);
    shows(w, 2, PL_WORKER_TRAINING, session_of(w, 1));
    end(w);
}

/* n workers, n groups of two samples; sessions of a batch may take a second. */
static world *with_a_second(int n)
{
    world *w = make();
    pl_coordinator_options o = bed_options();
    o.spot_min_idle = 1;
    o.spot_budget_s = 1;
    cr_assert_eq(start(w, &o), PL_OK);
    sync_ledger(w);
    hello(w, T, TRAINER, "trainer", 0);
    for (int i = 1; i <= n; i++)
        worker(w, (uint64_t)i, VERSION, 8);
    groups(w, BATCH, n, 2, VERSION);
    sync_ledger(w);
    return w;
}

Test(coordinator_spot, ends_when_its_time_is_used_up_and_none_begins_in_that_batch)
{
    world *w = with_a_second(2);
    finish(w, 2);
    shows(w, 2, PL_WORKER_TRAINING, session_of(w, 1));
    for (int i = 0; i < 9; i++) {
        wait_ms(w, 100);
        shows(w, 2, PL_WORKER_TRAINING, session_of(w, 1));
        shows(w, 1, PL_WORKER_BUSY, 0);
    }
    cr_assert_eq(count(w, W, 2, PL_MSG_HALT), 0);
    wait_ms(w, 200);
    cr_assert_eq(count(w, W, 2, PL_MSG_HALT), 1);
    cr_assert_eq(stats(w).session, 0);
    for (int i = 0; i < 20; i++) {
        shows(w, 2, PL_WORKER_IDLE, 0);
        shows(w, 1, PL_WORKER_BUSY, 0);
        wait_ms(w, 100);
    }
    cr_assert_eq(count(w, W, 2, PL_MSG_TRAIN), 1);
    end(w);
}

/* Time in which nobody trains is not used up. */
Test(coordinator_spot, its_time_is_that_of_its_sessions)
{
    world *w = with_a_second(3);
    finish(w, 2);
    for (int i = 0; i < 5; i++) {
        shows(w, 2, PL_WORKER_TRAINING, session_of(w, 1));
        wait_ms(w, 100);
    }
    say(w, W, 2, (pl_msg){.h.type = PL_MSG_LEAVE});
    for (int i = 0; i < 20; i++) {
        shows(w, 1, PL_WORKER_BUSY, 0);
        shows(w, 3, PL_WORKER_BUSY, 0);
        wait_ms(w, 100);
    }
    cr_assert_eq(stats(w).session, 0);
    finish(w, 3);
    wait_ms(w, 50);
    cr_assert_eq(count(w, W, 3, PL_MSG_TRAIN), 1, "half of it is left");
    for (int i = 0; i < 3; i++) {
        shows(w, 1, PL_WORKER_BUSY, 0);
        shows(w, 3, PL_WORKER_TRAINING, session_of(w, 2));
        wait_ms(w, 100);
    }
    cr_assert_eq(count(w, W, 3, PL_MSG_HALT), 0);
    shows(w, 3, PL_WORKER_TRAINING, session_of(w, 2));
    wait_ms(w, 300);
    cr_assert_eq(count(w, W, 3, PL_MSG_HALT), 1);
    end(w);
}

Test(coordinator_spot, a_session_of_another_epoch_is_halted_and_ids_rise)
{
    world *w = in_session();
    const uint64_t old = session_of(w, 1);
    pl_coordinator_free(w->c);
    packets_cut(&w->sent, 0);
    begin_with(w, 1, 0);
    for (int i = 1; i <= 3; i++) {
        char name[16];
        snprintf(name, sizeof name, "worker-%d", i);
        hello(w, W, (uint64_t)i, name, 8);
    }
    runs(w, 1, (const uint32_t[]){100, 103}, 2);
    shows(w, 2, PL_WORKER_TRAINING, old);
    cr_assert_eq(heard(w, W, 2, PL_MSG_HALT).u.halt.session, old);
    shows(w, 3, PL_WORKER_IDLE, 0);
    const pl_msg t = heard(w, W, 3, PL_MSG_TRAIN);
    cr_assert_gt(t.u.train.session, old);
    cr_assert_eq(t.u.train.session, session_of(w, 1));
    shows(w, 2, PL_WORKER_IDLE, 0);
    cr_assert_eq(heard(w, W, 2, PL_MSG_TRAIN).u.train.is_lead, 0);
    end(w);
}

/* ---- versions of the drafter ---- */

static void drafter(world *w, uint64_t who, uint32_t v, uint64_t session)
{
    say(w, W, who,
        (pl_msg){.h.type = PL_MSG_DRAFTER,
            .u.drafter = {.version = v,
                .parent = v - 1,
                .session = session,
                .hash = bed_hash(v),
                .dir = "/d",
                .host = "h",
                .endpoint = "",
                .tau = 2.5f}});
}

Test(coordinator_spot, a_version_is_durable_before_it_is_said_and_said_until_status_shows_it)
{
    world *w = in_session();
    clear(w);
    const int n = w->ledger.n;
    drafter(w, 2, 1, session_of(w, 1));
    cr_assert_eq(w->ledger.n, n + 1);
    cr_assert_eq(count(w, W, 1, PL_MSG_DRAFTER), 0);
    sync_ledger(w);
    for (int i = 1; i <= 3; i++)
        cr_assert_eq(count(w, W, (uint64_t)i, PL_MSG_DRAFTER), 1, "worker %d", i);
    cr_assert_eq(stats(w).drafter_version, 1);
    drafter(w, 2, 1, session_of(w, 1)); /* it did not hear the echo */
    cr_assert_eq(count(w, W, 2, PL_MSG_DRAFTER), 2);
    cr_assert_eq(w->ledger.n, n + 1);
    say(w, W, 1,
        (pl_msg){.h.type = PL_MSG_STATUS,
            .u.status = {.state = PL_WORKER_BUSY,
                .policy_version = VERSION,
                .batch = BATCH,
                .drafter_version = 1}});
    wait_ms(w, 1000);
    cr_assert_eq(count(w, W, 1, PL_MSG_DRAFTER), 1);
    cr_assert_eq(count(w, W, 3, PL_MSG_DRAFTER), 2);
    end(w);
}

static void serves(world *w, uint64_t peer, pl_role role, const char *endpoint, uint64_t hash)
{
    say(w, role == PL_ROLE_TRAINER ? T : W, peer,
        (pl_msg){.h.type = PL_MSG_DRAFTER,
            .u.drafter = {.version = 1,
                .hash = bed_hash(hash),
                .dir = "/elsewhere",
                .host = "h",
                .endpoint = endpoint,
                .n_bundle = 7}});
    sync_ledger(w);
}

Test(coordinator_spot, the_trainer_serves_a_version_to_other_machines_and_nobody_else_does)
{
    world *w = in_session();
    drafter(w, 2, 1, session_of(w, 1));
    sync_ledger(w);
    cr_assert_eq(count(w, T, TRAINER, PL_MSG_DRAFTER), 1);
    serves(w, TRAINER, PL_ROLE_TRAINER, "tcp://x:1", 2); /* of other weights */
    serves(w, 2, PL_ROLE_WORKER, "tcp://y:1", 1);
    cr_assert_str_eq(heard(w, W, 3, PL_MSG_DRAFTER).u.drafter.endpoint, "");
    clear(w);
    serves(w, TRAINER, PL_ROLE_TRAINER, "tcp://x:1", 1);
    const pl_msg m = heard(w, W, 3, PL_MSG_DRAFTER);
    cr_assert_str_eq(m.u.drafter.endpoint, "tcp://x:1");
    cr_assert_eq(m.u.drafter.n_bundle, 7);
    cr_assert_str_eq(m.u.drafter.dir, "/d");
    const int n = w->ledger.n;
    serves(w, TRAINER, PL_ROLE_TRAINER, "tcp://x:1", 1); /* said again */
    cr_assert_eq(w->ledger.n, n);
    serves(w, TRAINER, PL_ROLE_TRAINER, "tcp://z:1", 1); /* by the next trainer */
    cr_assert_eq(w->ledger.n, n + 1);
    restart(w);
    worker(w, 1, VERSION, 4);
    cr_assert_str_eq(heard(w, W, 1, PL_MSG_DRAFTER).u.drafter.endpoint, "tcp://z:1");
    end(w);
}

Test(coordinator_spot, old_torn_and_foreign_versions_are_counted_and_dropped)
{
    world *w = in_session();
    drafter(w, 2, 3, session_of(w, 1));
    const int n = w->ledger.n;
    drafter(w, 2, 2, session_of(w, 1));
    cr_assert_eq(stats(w).n_old_drafters, 1);
    drafter(w, 2, 4, session_of(w, 7));
    drafter(w, 2, UINT32_MAX, session_of(w, 1)); /* would be the last one for ever */
    drafter(w, 2, 4, 0);
    drafter(w, 2, 4, session_of(w, 1) - ((uint64_t)1 << 32)); /* sessions are of this epoch now */
    cr_assert_eq(stats(w).n_refused_drafters, 4);
    const uint64_t invalid = stats(w).n_invalid;
    say(w, W, 2,
        (pl_msg){.h.type = PL_MSG_DRAFTER,
            .u.drafter = {.version = 4,
                .session = session_of(w, 1),
                .dir = "",
                .host = "h",
                .endpoint = ""}});
    cr_assert_eq(stats(w).n_invalid, invalid + 1);
    cr_assert_eq(w->ledger.n, n);
    say(w, W, 2, (pl_msg){.h.type = PL_MSG_LEAVE}); /* the session moves */
    drafter(w, 3, 4, session_of(w, 1));
    cr_assert_eq(w->ledger.n, n + 1, "the last session's");
    end(w);
}

Test(coordinator_spot, the_newest_version_is_known_after_a_restart)
{
    world *w = in_session();
    const uint64_t old = session_of(w, 1);
    drafter(w, 2, 1, old);
    drafter(w, 2, 2, old);
    sync_ledger(w);
    drafter(w, 2, 3, old); /* not durable */
    restart(w);
    cr_assert_eq(stats(w).drafter_version, 2);
    worker(w, 1, VERSION, 4);
    cr_assert_eq(heard(w, W, 1, PL_MSG_DRAFTER).u.drafter.version, 2);
    cr_assert_str_eq(heard(w, W, 1, PL_MSG_DRAFTER).u.drafter.dir, "/d");
    worker(w, 2, VERSION, 4);
    drafter(w, 2, 3, old); /* of the epoch before, in which it was made */
    sync_ledger(w);
    cr_assert_eq(stats(w).drafter_version, 3);
    end(w);
}

/* ---- figures ---- */

static void figures(world *w, uint64_t who, uint64_t batch, uint32_t n_steps)
{
    static const float alpha[] = {0.5f, 0.25f};
    say(w, W, who,
        (pl_msg){.h.type = PL_MSG_DRAFTING,
            .u.drafting = {.batch = batch,
                .worker = "",
                .idle_ms = 77,
                .n_optimizer_steps = n_steps,
                .alpha = {alpha, 2}}});
}

Test(coordinator_spot, figures_go_to_the_trainer_with_idle_time_up_to_the_last_result)
{
    world *w = in_session();
    clear(w);
    figures(w, 2, BATCH, 4);
    pl_msg f = heard(w, T, TRAINER, PL_MSG_DRAFTING);
    cr_assert_str_eq(f.u.drafting.worker, "worker-2");
    cr_assert_eq(f.u.drafting.n_optimizer_steps, 4);
    cr_assert_eq(f.u.drafting.alpha.n, 2);
    cr_assert_eq(f.u.drafting.idle_ms, 0);
    figures(w, 2, BATCH - 1, 9);
    cr_assert_eq(count(w, T, TRAINER, PL_MSG_DRAFTING), 1, "of a batch that is over");
    wait_ms(w, 1000);
    finish(w, 1);
    wait_ms(w, 5);
    for (int i = 0; i < 2; i++)
        result(w, 1, BATCH, 100 + (uint32_t)i, 2);
    clear(w);
    end(w);
    w = in_session();
    figures(w, 2, BATCH, 4);
    const pl_msg a = nth_lease(w, 1, 0), b = nth_lease(w, 1, 1);
    clear(w);
    wait_ms(w, 1000);
    result(w, 1, BATCH, a.u.lease.uid, 2);
    result(w, 1, BATCH, b.u.lease.uid, 2);
    sync_ledger(w);
    f = heard(w, T, TRAINER, PL_MSG_DRAFTING);
    cr_assert_eq(f.u.drafting.idle_ms, 1000);
    cr_assert_eq(f.u.drafting.n_optimizer_steps, 4);
    wait_ms(w, 1000); /* the policy is trained meanwhile: nobody waits for a response */
    figures(w, 2, BATCH, 5);
    f = heard_nth(w, T, TRAINER, PL_MSG_DRAFTING, 1);
    cr_assert_eq(f.u.drafting.idle_ms, 1000);
    cr_assert_eq(f.u.drafting.n_optimizer_steps, 5);
    groups(w, BATCH + 1, 1, 2, VERSION);
    clear(w);
    wait_ms(w, 50);
    shows(w, 2, PL_WORKER_IDLE, 0); /* 1050 ms after HALT */
    figures(w, 2, BATCH, 6);        /* the last word about a batch comes with the next one */
    f = heard(w, T, TRAINER, PL_MSG_DRAFTING);
    cr_assert_eq(f.u.drafting.idle_ms, 1000);
    cr_assert_eq(f.u.drafting.halt_us, 1050000);
    cr_assert_eq(f.u.drafting.batch, BATCH);
    end(w);
}

Test(coordinator_spot, who_never_showed_the_session_took_no_time_to_leave_it)
{
    world *w = with_workers(2, 1, 0, BATCH);
    finish(w, 2);
    cr_assert_eq(count(w, W, 2, PL_MSG_TRAIN), 1);
    finish(w, 1);
    cr_assert_geq(count(w, W, 2, PL_MSG_HALT), 1);
    clear(w);
    wait_ms(w, 50);
    shows(w, 2, PL_WORKER_IDLE, 0); /* on its way when it heard of TRAIN and HALT */
    figures(w, 2, BATCH, 0);
    const pl_msg f = heard(w, T, TRAINER, PL_MSG_DRAFTING);
    cr_assert_eq(f.h.type, PL_MSG_DRAFTING);
    cr_assert_eq(f.u.drafting.halt_us, 0);
    end(w);
}

/* ---- tail consolidation ---- */

/* Worker 1 runs 100 and 102, worker 2 runs 101 alone; enough time has passed. */
static world *with_tail(uint32_t below)
{
    world *w = with_workers(2, 1, below, BATCH);
    const uint32_t a[2] = {nth_lease(w, 1, 0).u.lease.uid, nth_lease(w, 1, 1).u.lease.uid};
    const uint32_t b[2] = {nth_lease(w, 2, 0).u.lease.uid, nth_lease(w, 2, 1).u.lease.uid};
    cr_assert(a[0] == 100 && a[1] == 102 && b[0] == 101 && b[1] == 103);
    result(w, 2, BATCH, 103, 2);
    sync_ledger(w);
    wait_ms(w, 1800);
    runs(w, 1, a, 2);
    runs(w, 2, b, 1);
    clear(w);
    cr_assert_eq(count(w, W, 2, PL_MSG_HANDOVER), 0, "not in the first seconds");
    wait_ms(w, 200);
    return w;
}

static const uint32_t all_of_1[] = {100, 102}, of_2[] = {101};

Test(coordinator_spot, the_worker_with_fewer_samples_hands_over_what_is_known)
{
    const text t = bed_text(BATCH, 101);
    world *w = with_tail(3);
    cr_assert_gt(t.n, 3);
    const pl_msg h = heard(w, W, 2, PL_MSG_HANDOVER);
    cr_assert_eq(h.u.uids.batch, BATCH);
    cr_assert_eq(bed_u32(&h.u.uids.uids, 0), 101);
    cr_assert_eq(count(w, W, 1, PL_MSG_HANDOVER), 0);
    cr_assert_eq(stats(w).n_handovers, 1);
    runs(w, 2, of_2, 1); /* it has not heard it */
    cr_assert_eq(count(w, W, 1, PL_MSG_LEASE), 0);
    wait_ms(w, 1000);
    cr_assert_eq(count(w, W, 2, PL_MSG_HANDOVER), 2, "said again");
    say(w, W, 2, progress(101, &t, 0, 3));
    runs(w, 2, NULL, 0);
    const pl_msg l = heard(w, W, 1, PL_MSG_LEASE);
    cr_assert_eq(l.u.lease.uid, 101);
    cr_assert_eq(l.u.lease.prefix.n, 2, "the last one is drawn again");
    cr_assert_eq(memcmp(l.u.lease.prefix.data, t.tokens, 8), 0);
    cr_assert_eq(count(w, W, 2, PL_MSG_LEASE), 0);
    cr_assert_eq(heard(w, W, 2, PL_MSG_TRAIN).u.train.is_lead, 1, "a core is free");
    cr_assert_eq(stats(w).recomputed_tokens, 1);
    end(w);
}

Test(coordinator_spot, nothing_is_handed_over_above_the_limit_or_without_room_or_when_off)
{
    world *w = with_tail(2);
    cr_assert_eq(stats(w).n_handovers, 0);
    end(w);
    w = with_tail(0);
    cr_assert_eq(stats(w).n_handovers, 0);
    end(w);
}

Test(coordinator_spot, nothing_is_handed_over_in_an_evaluation)
{
    const uint64_t batch = (uint64_t)1 << 32 | BATCH;
    world *w = with_workers(2, 1, 4, batch);
    for (int i = 0; i < 25; i++) {
        for (uint64_t who = 1; who <= 2; who++) {
            const uint32_t uids[] = {98 + 2 * (uint32_t)who, 99 + 2 * (uint32_t)who};
            status_lists(w, who, VERSION, batch, uids, 2, NULL, 0);
        }
        wait_ms(w, 100);
    }
    cr_assert_eq(stats(w).n_handovers, 0, "nobody would train");
    end(w);
}

Test(coordinator_spot, a_worker_hands_over_once_a_batch)
{
    world *w = with_tail(3);
    runs(w, 2, NULL, 0);
    cr_assert_eq(count(w, W, 1, PL_MSG_LEASE), 1);
    say(w, W, 1, (pl_msg){.h.type = PL_MSG_LEAVE}); /* all comes back to 2 */
    wait_ms(w, 50);
    cr_assert_eq(stats(w).n_leased, 3);
    worker(w, 3, VERSION, 8);
    runs(w, 2, (const uint32_t[]){100, 101, 102}, 3);
    wait_ms(w, 2000);
    cr_assert_eq(stats(w).n_handovers, 1);
    end(w);
}

Test(coordinator_spot, results_in_flight_are_not_handed_over)
{
    world *w = with_workers(2, 1, 3, BATCH);
    result(w, 2, BATCH, 103, 2);
    sync_ledger(w);
    runs(w, 1, all_of_1, 2);
    status_lists(w, 2, VERSION, BATCH, NULL, 0, of_2, 1);
    for (int i = 0; i < 25; i++) {
        wait_ms(w, 100);
        runs(w, 1, all_of_1, 2);
        status_lists(w, 2, VERSION, BATCH, NULL, 0, of_2, 1);
    }
    cr_assert_eq(stats(w).n_handovers, 0);
    end(w);
}

Test(coordinator_spot, who_does_not_answer_keeps_its_samples_after_lost_ms)
{
    world *w = with_tail(3);
    for (int i = 0; i < 40; i++) {
        wait_ms(w, 100);
        runs(w, 1, all_of_1, 2);
        runs(w, 2, of_2, 1);
    }
    const int n = count(w, W, 2, PL_MSG_HANDOVER);
    cr_assert_leq(n, 4);
    runs(w, 2, NULL, 0); /* late: its own again */
    wait_ms(w, 1000);
    runs(w, 2, NULL, 0);
    cr_assert_eq(count(w, W, 2, PL_MSG_HANDOVER), n);
    cr_assert_eq(count(w, W, 1, PL_MSG_LEASE), 0);
    cr_assert_gt(count(w, W, 2, PL_MSG_LEASE), 0);
    end(w);
}

Test(coordinator_spot, a_result_that_was_on_its_way_ends_the_handover)
{
    world *w = with_tail(3);
    result(w, 2, BATCH, 101, 2);
    sync_ledger(w);
    cr_assert_eq(stats(w).n_done, 2);
    runs(w, 2, NULL, 0);
    wait_ms(w, 1500);
    cr_assert_eq(count(w, W, 1, PL_MSG_LEASE), 0);
    cr_assert_eq(count(w, W, 2, PL_MSG_HANDOVER), 1);
    end(w);
}

Test(coordinator_spot, when_the_giver_or_the_heir_dies_the_sample_goes_on)
{
    for (int who = 1; who <= 2; who++) {
        world *w = with_tail(3);
        const uint64_t other = (uint64_t)(3 - who);
        clear(w);
        say(w, W, (uint64_t)who, (pl_msg){.h.type = PL_MSG_LEAVE});
        if (who == 1) /* what it had is leased to 2, which hands its own over to nobody */
            runs(w, 2, (const uint32_t[]){100, 101}, 2);
        wait_ms(w, 50);
        cr_assert_eq(stats(w).n_pending, 0);
        cr_assert_eq(stats(w).n_leased, 3, "with the one that is left");
        cr_assert_gt(count(w, W, other, PL_MSG_LEASE), 0);
        end(w);
    }
}
