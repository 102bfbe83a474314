/* Claims tested: whatever a coordinator says, loses, doubles or forgets, and whenever it dies, a
 * worker's samples are those of an engine that was asked for them directly, bit for bit; what it
 * runs and holds stays known; what is not acknowledged is said again; and it leaves for a reason
 * that it names.  The clock is the test's own. */
#include "tests/rollout/worker_bed.h"

#include <math.h>

static bed the_bed;
static world w;

static void begin(int max_seqs)
{
    find_base(&the_bed);
    world_open(&w, &the_bed, max_seqs);
}

static void end(void)
{
    world_close(&w);
    bed_close(&the_bed);
}

/* What a coordinator does once a second: lease what nobody has, acknowledge what came. */
static int serve(world *x, int n_at_once)
{
    int n_left = 0, n_leased = 0;
    cr_assert_eq(say_welcome(x), PL_OK, "%s", x->err.msg);
    cr_assert_eq(say_version(x, x->version), PL_OK, "%s", x->err.msg);
    for (int i = 0; i < SAMPLES; i++) {
        const uint32_t uid = (uint32_t)i;
        heard *h = x->heard + i;
        if (h->n_results > 0) {
            h->is_acked = 1;
            cr_assert_eq(say_uid(x, PL_MSG_ACK, BATCH, uid), PL_OK);
            continue;
        }
        n_left++;
        if (n_leased == n_at_once || lists(&x->status.running, uid))
            continue;
        n_leased++;
        for (int k = 0; k < 2; k++) /* always twice */
            cr_assert_eq(say_lease(x, i, i % 3 == 0 ? h : NULL), PL_OK, "%s", x->err.msg);
    }
    return n_left;
}

Test(worker, results_are_those_of_the_engine_whatever_is_lost_or_doubled, .timeout = 60)
{
    int n_left = SAMPLES, n = 0;
    const setting direct = {.batch = 8, .max_rows = 64};
    begin(16);
    run(&the_bed, &direct, got, NULL);
    expect_same(base, got, "a direct run");
    w.lose = 80; /* 31 % either way */
    for (; n < 20000 && (n_left > 0 || w.status.held.n > 0); n++) {
        cr_assert_eq(turn(&w, 40), PL_OK, "%s", w.err.msg);
        if (n % 10 == 0)
            n_left = serve(&w, 3);
    }
    cr_assert_eq(n_left, 0);
    cr_assert_eq(w.w->n_samples, 0, "everything is acknowledged");
    for (int i = 0; i < SAMPLES; i++)
        expect_result(&w, i);
    cr_assert_eq(w.n_loads, 1);
    cr_assert_gt(w.n_result, SAMPLES, "something was said again");
    end();
}

Test(worker, goes_on_where_a_drained_worker_stopped, .timeout = 60)
{
    static heard known[SAMPLES];
    int n_prefixes = 0, n_again = 0;
    begin(SAMPLES);
    join(&w);
    for (int i = 0; i < SAMPLES; i++)
        say_lease(&w, i, NULL);
    expect_turns(&w, 14, 10);
    w.stop = 1;
    while (turn(&w, 10) == PL_OK)
        for (int i = 0; i < SAMPLES; i++)
            if (w.heard[i].n_results > 0)
                cr_assert_eq(say_uid(&w, PL_MSG_ACK, BATCH, (uint32_t)i), PL_OK);
    cr_assert_eq(w.err.code, PL_E_STOPPED, "%s", w.err.msg);
    cr_assert_eq(w.status.state, PL_WORKER_DRAINING);
    worker_leave(w.w);
    cr_assert_eq(w.n_leave, 1);
    memcpy(known, w.heard, sizeof known);
    world_close(&w);

    world_open(&w, &the_bed, SAMPLES);
    join(&w);
    for (int i = 0; i < SAMPLES; i++) {
        if (known[i].n_results > 0)
            continue;
        n_again++;
        n_prefixes += known[i].progress.n > 0;
        cr_assert_eq(
            memcmp(known[i].progress.tokens, base[i].tokens, 4 * (size_t)known[i].progress.n), 0,
            "progress of sample %d", i);
        say_lease(&w, i, known + i);
    }
    cr_assert_gt(n_prefixes, 5, "the test wants prefixes, %d of %d", n_prefixes, n_again);
    pl_engine_reset_stats(w.engine);
    for (int n = 0; n < 500 && w.w->n_running > 0; n++)
        expect_turns(&w, 1, 10);
    expect_turns(&w, 1, 10);
    pl_engine_stats stats;
    pl_engine_get_stats(w.engine, &stats);
    int64_t n_missing = 0, n_steps = 0, n_draft = 0;
    for (int i = 0; i < SAMPLES; i++) {
        if (known[i].n_results > 0)
            continue;
        expect_result(&w, i);
        n_missing += base[i].n - known[i].progress.n;
        n_steps += w.heard[i].result.n_verify - known[i].progress.n_verify;
        n_draft += w.heard[i].result.n_draft - known[i].progress.n_draft;
        cr_assert_eq(
            memcmp(w.heard[i].result_sources, known[i].sources, (size_t)known[i].progress.n), 0,
            "sources of sample %d", i);
    }
    cr_assert_eq(stats.n_emitted, n_missing, "what was known was not computed again");
    cr_assert_eq(stats.n_verify_steps, n_steps, "counters go on");
    cr_assert_eq(stats.n_draft, n_draft);
    end();
}

Test(worker, progress_heals_after_a_loss_and_after_a_new_coordinator, .timeout = 60)
{
    const heard *h = w.heard;
    pl_msg m;
    begin(4);
    join(&w);
    make_lease(&w, 0, NULL, &m);
    m.u.lease.sampling.speculative = 0; /* a token a round */
    say(&w, &m, PL_MSG_LEASE);
    w.lose = 256;
    while (w.w->samples[0]->n_progress == 0)
        expect_turns(&w, 1, 300);
    w.lose = 0;
    expect_turns(&w, 7, 300);
    cr_assert_eq(h->n_progress, 7);
    cr_assert_eq(h->progress.n, 0, "they begin behind the gap");
    expect_turns(&w, 1, 300);
    cr_assert_geq(h->progress.n, 8);
    cr_assert_eq(memcmp(h->progress.tokens, base[0].tokens, 4 * (size_t)h->progress.n), 0);

    w.heard[0].progress.n = 0; /* a new coordinator knows nothing */
    expect_turns(&w, 2, 300);
    cr_assert_eq(h->progress.n, 0);
    w.epoch = 2;
    say_welcome(&w);
    expect_turns(&w, 1, 300);
    cr_assert_geq(h->progress.n, 11);
    cr_assert_eq(memcmp(h->progress.tokens, base[0].tokens, 4 * (size_t)h->progress.n), 0);

    /* A few tokens wait for the clock. */
    const int n = h->n_progress, n_known = h->progress.n;
    expect_turns(&w, base[0].n - n_known - 1, 0);
    cr_assert_eq(h->n_progress, n, "fewer than 64 tokens, no time");
    pl_engine_stats stats;
    pl_engine_get_stats(w.engine, &stats);
    cr_assert_eq(stats.n_draft, 0, "the lease asked for plain decoding");
    end();
}

Test(worker, revoked_samples_are_dropped_and_come_out_the_same_later, .timeout = 60)
{
    begin(8);
    join(&w);
    for (int i = 0; i < 4; i++)
        say_lease(&w, i, NULL);
    expect_turns(&w, 3, 30);
    say_uid(&w, PL_MSG_REVOKE, BATCH + 1, 1); /* of another batch: nothing */
    say_uid(&w, PL_MSG_REVOKE, BATCH, 2);
    say_uid(&w, PL_MSG_ACK, BATCH, 3); /* of a result that it never sent: late */
    expect_turns(&w, 1, 30);
    cr_assert(lists(&w.status.running, 3));
    cr_assert(lists(&w.status.running, 1));
    cr_assert_not(lists(&w.status.running, 2));
    for (int n = 0; n < 200 && w.w->n_running > 0; n++)
        expect_turns(&w, 1, 10);
    expect_turns(&w, 1, 10);
    cr_assert_eq(w.heard[2].n_results, 0);
    say_lease(&w, 2, NULL);
    for (int n = 0; n < 200 && w.w->n_running > 0; n++)
        expect_turns(&w, 1, 10);
    expect_turns(&w, 1, 10);
    for (int i = 0; i < 4; i++)
        expect_result(&w, i);
    say_uid(&w, PL_MSG_REVOKE, BATCH, 3); /* held: dropped, too */
    expect_turns(&w, 1, 30);
    cr_assert(lists(&w.status.held, 0));
    cr_assert_not(lists(&w.status.held, 3));
    end();
}

Test(worker, results_are_said_again_until_acknowledged_and_forgotten_with_their_batch)
{
    pl_msg m;
    begin(4);
    join(&w);
    say_lease(&w, 9, NULL); /* one token */
    for (int n = 0; n < 10 && w.n_result == 0; n++)
        expect_turns(&w, 1, 10);
    cr_assert_eq(w.n_result, 1);
    expect_turns(&w, 9, 100);
    cr_assert_eq(w.n_result, 1);
    expect_turns(&w, 10, 100);
    cr_assert_eq(w.n_result, 2);
    say_lease(&w, 9, NULL); /* who leases it again has not got it */
    cr_assert_eq(w.n_result, 3);
    cr_assert_eq(w.w->n_running, 0);
    say_uid(&w, PL_MSG_ACK, BATCH - 1, 9);
    expect_turns(&w, 1, 30);
    cr_assert(lists(&w.status.held, 9));

    make_lease(&w, 0, NULL, &m);
    m.u.lease.batch = BATCH + 1;
    say(&w, &m, PL_MSG_LEASE);
    expect_turns(&w, 1, 30);
    cr_assert_eq(w.status.batch, BATCH + 1);
    cr_assert_eq(w.status.held.n, 0);
    cr_assert(lists(&w.status.running, 0));

    /* Late from the batch before: not again. */
    make_lease(&w, 1, NULL, &m);
    m.h = (pl_header){.type = PL_MSG_LEASE, .epoch = 1, .incarnation = 77, .seq = 4};
    cr_assert_eq(worker_message(w.w, &m, &w.err), PL_OK);
    expect_turns(&w, 1, 30);
    cr_assert_eq(w.status.batch, BATCH + 1);
    end();
}

Test(worker, a_new_coordinator_hears_all_that_is_run_and_held, .timeout = 60)
{
    begin(8);
    join(&w);
    say_lease(&w, 9, NULL);
    say_lease(&w, 0, NULL);
    say_lease(&w, 1, NULL);
    for (int n = 0; n < 10 && w.heard[9].n_results == 0; n++)
        expect_turns(&w, 1, 10);
    cr_assert_eq(w.epoch_set, 1);
    expect_turns(&w, 1, 1000);

    w.epoch = 2; /* it died; nobody told the worker */
    w.incarnation = 78;
    w.seq = 0;
    const int n_hello = w.n_hello, n_status = w.n_status, n_joined = w.n_joined;
    say_lease(&w, 5, NULL);
    expect_turns(&w, 3, 600);
    cr_assert_gt(w.n_hello, n_hello, "a higher epoch makes it say HELLO");
    cr_assert_eq(w.n_status, n_status, "and nothing else until it is welcome");
    say_welcome(&w);
    cr_assert_eq(w.epoch_set, 2);
    cr_assert_eq(w.n_joined, n_joined + 1);
    const int n_results = w.heard[9].n_results;
    expect_turns(&w, 1, 10);
    cr_assert_eq(w.n_status, n_status + 1);
    cr_assert_eq(w.heard[9].n_results, n_results + 1, "results are said again at once");
    cr_assert(lists(&w.status.held, 9));
    cr_assert(lists(&w.status.running, 0));
    cr_assert(lists(&w.status.running, 1));
    cr_assert_not(lists(&w.status.running, 5), "a LEASE to a stranger does not count");

    w.epoch = 1; /* the zombie speaks */
    pl_msg m = {0};
    cr_assert_eq(say(&w, &m, PL_MSG_STOP), PL_OK);
    say_uid(&w, PL_MSG_REVOKE, BATCH, 0);
    expect_turns(&w, 1, 30);
    cr_assert_not(w.w->is_over);
    cr_assert(lists(&w.status.running, 0) || lists(&w.status.held, 0));
    w.epoch = 2;
    for (int n = 0; n < 200 && w.w->n_running > 0; n++)
        expect_turns(&w, 1, 10);
    expect_turns(&w, 1, 10);
    expect_result(&w, 0);
    expect_result(&w, 1);
    expect_result(&w, 9);
    end();
}

Test(worker, a_version_is_a_barrier_and_is_loaded_once, .timeout = 60)
{
    pl_msg m;
    begin(4);
    say_version(&w, 3);
    cr_assert_eq(w.n_loads, 0, "nothing before WELCOME");
    join(&w);
    w.version = 4;
    say_lease(&w, 0, NULL); /* of a version that is not loaded */
    expect_turns(&w, 1, 30);
    cr_assert_eq(w.w->n_samples, 0);
    w.version = UINT32_MAX;
    say_lease(&w, 0, NULL);
    cr_assert_eq(w.w->n_samples, 0);
    w.version = 3;
    say_lease(&w, 0, NULL);
    say_lease(&w, 9, NULL);
    for (int n = 0; n < 10 && w.n_result == 0; n++)
        expect_turns(&w, 1, 10);
    cr_assert_eq(w.w->n_running, 1);

    const int n_status = w.n_status;
    w.load_alive = 20;
    say_version(&w, 4);
    say_version(&w, 4);
    cr_assert_eq(w.n_loads, 2);
    cr_assert_geq(w.n_status, n_status + 4, "it says STATUS while it loads");
    cr_assert_eq(w.status.policy_version, UINT32_MAX);
    expect_turns(&w, 1, 30);
    cr_assert_eq(w.status.policy_version, 4);
    cr_assert_eq(w.status.running.n, 0, "the sample of version 3 is gone");
    cr_assert(lists(&w.status.held, 9), "its results are not");

    m = (pl_msg){.h = {.type = PL_MSG_VERSION, .epoch = 1, .incarnation = 77, .seq = 2},
        .u.version = {.version = 3}};
    cr_assert_eq(worker_message(w.w, &m, &w.err), PL_OK);
    cr_assert_eq(w.n_loads, 2, "a late VERSION is an old one");
    w.version = 4;
    say_lease(&w, 1, NULL);
    for (int n = 0; n < 200 && w.heard[1].n_results == 0; n++)
        expect_turns(&w, 1, 10);
    expect_result(&w, 1);
    end();
}

Test(worker, a_version_that_does_not_load_is_tried_three_times)
{
    begin(4);
    expect_turns(&w, 1, 10);
    say_welcome(&w);
    w.load_fails = 2;
    cr_assert_eq(say_version(&w, 3), PL_OK);
    cr_assert_eq(say_version(&w, 3), PL_OK);
    cr_assert_eq(say_version(&w, 3), PL_OK);
    cr_assert_eq(w.w->version, 3);
    w.load_fails = 3;
    cr_assert_eq(say_version(&w, 4), PL_OK);
    expect_turns(&w, 1, 30);
    cr_assert_eq(w.status.policy_version, UINT32_MAX, "half a version is none");
    w.version = UINT32_MAX;
    say_lease(&w, 0, NULL);
    cr_assert_eq(w.w->n_samples, 0);
    cr_assert_eq(say_version(&w, 4), PL_OK);
    cr_assert_eq(say_version(&w, 4), PL_E_IO);
    cr_assert(strstr(w.err.msg, "on fire") && strstr(w.err.msg, "worker-0"), "%s", w.err.msg);
    end();
}

Test(worker, a_later_attempt_begins_anew_and_an_earlier_one_is_late, .timeout = 60)
{
    pl_msg m;
    begin(4);
    join(&w);
    say_lease(&w, 9, NULL); /* one token */
    for (int n = 0; n < 10 && w.n_result == 0; n++)
        expect_turns(&w, 1, 10);
    make_lease(&w, 9, NULL, &m);
    m.u.lease.attempt = 1;
    say(&w, &m, PL_MSG_LEASE);
    cr_assert_eq(w.w->n_running, 1, "the result it holds was refused");
    say_lease(&w, 9, NULL);
    cr_assert_eq(w.w->samples[0]->attempt, 1);
    for (int n = 0; n < 10 && w.n_result == 1; n++)
        expect_turns(&w, 1, 10);
    expect_result(&w, 9);
    cr_assert_eq(w.heard[9].attempt, 1, "RESULT says of which");
    end();
}

Test(worker, a_prefix_that_cannot_be_is_left_and_the_sample_begun_at_its_prompt, .timeout = 60)
{
    int32_t token = INT32_MAX;
    float logprob = 0;
    uint8_t source = 0;
    pl_msg m;
    begin(4);
    join(&w);
    make_lease(&w, 0, NULL, &m);
    m.u.lease.prefix = (pl_span){&token, 1};
    m.u.lease.prefix_logprobs = (pl_span){&logprob, 1};
    m.u.lease.prefix_sources = (pl_span){&source, 1};
    cr_assert_eq(say(&w, &m, PL_MSG_LEASE), PL_OK);
    for (int n = 0; n < 200 && w.n_result == 0; n++)
        expect_turns(&w, 1, 10);
    expect_result(&w, 0);
    end();
}

Test(worker, a_lease_that_cannot_be_run_ends_it_at_the_third_try, .timeout = 60)
{
    pl_msg m;
    begin(4);
    join(&w);
    say_lease(&w, 0, NULL);
    for (int k = 0; k < 3; k++) {
        make_lease(&w, 1, NULL, &m);
        m.u.lease.sampling.max_tokens = 5000; /* over the context */
        const pl_status st = say(&w, &m, PL_MSG_LEASE);
        cr_assert_eq(st, k < 2 ? PL_OK : PL_E_SHAPE);
        if (st != PL_OK)
            break;
        expect_turns(&w, 1, 30);
        cr_assert(lists(&w.status.running, 0) || lists(&w.status.held, 0));
        cr_assert_not(lists(&w.status.running, 1));
    }
    cr_assert_not_null(strstr(w.err.msg, "context"), "%s", w.err.msg);
    make_lease(&w, 2, NULL, &m);
    m.u.lease.sampling.max_tokens = UINT32_MAX;
    cr_assert_eq(say(&w, &m, PL_MSG_LEASE), PL_OK, "refused before memory is asked for");
    end();
}

Test(worker, takes_twice_what_it_runs_at_once)
{
    begin(3);
    join(&w);
    for (int i = 0; i < 9; i++)
        say_lease(&w, i, NULL);
    cr_assert_eq(w.w->n_running, 6);
    end();
}

Test(worker, logits_that_are_no_numbers_end_it_with_the_sample_named)
{
    pl_status st = PL_OK;
    begin(3);
    join(&w);
    say_lease(&w, 13, NULL);
    while (!w.engine->groups->is_ready)
        expect_turns(&w, 1, 10);
    w.engine->groups->logits[5] = NAN;
    for (int n = 0; n < 3 && st == PL_OK; n++)
        st = turn(&w, 10);
    cr_assert_eq(st, PL_E_NUMERIC, "%s", w.err.msg);
    cr_assert_not_null(strstr(w.err.msg, "sample 13"), "%s", w.err.msg);
    end();
}

Test(worker, a_refusal_ends_it_in_the_words_of_the_coordinator)
{
    begin(3);
    join(&w);
    cr_assert_eq(say_reject(&w, PL_E_CONFIG, "another numeric class"), PL_E_PEER);
    cr_assert(strstr(w.err.msg, "another numeric class") && strstr(w.err.msg, "ipc:///nowhere"),
        "%s", w.err.msg);
    worker_leave(w.w);
    cr_assert_eq(w.n_leave, 0, "it was thrown out");
    end();
}

Test(worker, told_to_say_hello_it_does_so_but_not_for_ever)
{
    begin(3);
    join(&w);
    expect_turns(&w, 1, 1500);
    const int n_hello = w.n_hello;
    for (int i = 0; i < 7; i++) /* one for each message that was on its way */
        cr_assert_eq(say_reject(&w, PL_E_PEER, "say HELLO"), PL_OK);
    expect_turns(&w, 5, 10);
    cr_assert_leq(w.n_hello, n_hello + 1);
    say_welcome(&w);
    pl_status st = PL_OK;
    int n = 0;
    for (; n < 50 && st == PL_OK; n++) {
        st = say_reject(&w, PL_E_PEER, "say HELLO");
        if (st == PL_OK)
            expect_turns(&w, 1, 1000);
    }
    cr_assert_eq(st, PL_E_PEER);
    cr_assert_eq(n, WORKER_TOLD_MAX + 1);
    end();
}

Test(worker, waits_while_its_name_is_taken)
{
    pl_status st = PL_OK;
    begin(3);
    expect_turns(&w, 1, 10);
    for (int n = 0; n < 10; n++) {
        cr_assert_eq(say_reject(&w, PL_E_TIMEOUT, "worker-0 is here already"), PL_OK);
        expect_turns(&w, 1, 1000);
    }
    say_welcome(&w);
    expect_turns(&w, 1, 30);
    cr_assert_eq(w.n_status, 1);
    for (int n = 0; n < 100 && st == PL_OK; n++) {
        st = say_reject(&w, PL_E_TIMEOUT, "worker-0 is here already");
        if (st == PL_OK)
            expect_turns(&w, 1, 1000);
    }
    cr_assert_eq(st, PL_E_PEER);
    cr_assert_not_null(strstr(w.err.msg, "here already"), "%s", w.err.msg);
    end();
}

Test(worker, in_silence_it_asks_connects_anew_ends_its_samples_and_leaves, .timeout = 60)
{
    pl_status st = PL_OK;
    int n = 0;
    begin(3);
    join(&w);
    say_lease(&w, 0, NULL);
    say_lease(&w, 1, NULL);
    const int n_hello = w.n_hello;
    expect_turns(&w, 2, 1100);
    cr_assert_eq(w.n_hello, n_hello + 2, "HELLO asks for a sign of life");
    cr_assert_eq(w.n_reconnect, 0);
    expect_turns(&w, 1, 5000);
    cr_assert_eq(w.n_reconnect, 1);
    const int n_status = w.n_status;
    expect_turns(&w, 1, 1000);
    cr_assert_eq(w.n_status, n_status, "a stranger says HELLO only");
    expect_turns(&w, 1, 60000); /* patience is over, samples run */
    for (; n < 500 && st == PL_OK; n++)
        st = turn(&w, 10);
    cr_assert_eq(st, PL_E_PEER);
    cr_assert_eq(w.w->n_running, 0);
    cr_assert_eq(w.w->n_samples, 2, "both were finished first");
    cr_assert(strstr(w.err.msg, "ipc:///nowhere") && strstr(w.err.msg, " s:"), "%s", w.err.msg);
    end();
}

Test(worker, a_sign_of_life_a_second_keeps_it)
{
    begin(3);
    join(&w);
    for (int n = 0; n < 100; n++) {
        const int n_hello = w.n_hello;
        expect_turns(&w, 1, 1000);
        if (w.n_hello > n_hello)
            say_welcome(&w);
    }
    cr_assert_eq(w.n_reconnect, 0);
    cr_assert_eq(w.n_loads, 1);
    end();
}

Test(worker, drain_and_stop_are_good_ends, .timeout = 60)
{
    pl_msg m = {0};
    begin(3);
    join(&w);
    say_lease(&w, 9, NULL);
    say_lease(&w, 0, NULL);
    for (int n = 0; n < 10 && w.heard[9].n_results == 0; n++)
        expect_turns(&w, 1, 10);
    say(&w, &m, PL_MSG_DRAIN);
    cr_assert_gt(w.heard[0].progress.n, 0, "the last tokens are handed over");
    cr_assert_eq(w.heard[0].progress.n, w.heard[0].n_results ? 0 : w.heard[0].progress.n);
    expect_turns(&w, 1, 30);
    cr_assert_eq(w.status.state, PL_WORKER_DRAINING);
    cr_assert_eq(w.status.running.n, 0);
    say_lease(&w, 1, NULL);
    cr_assert_eq(w.w->n_running, 0, "no lease any more");
    cr_assert_not(w.w->is_over, "a result is not acknowledged");
    expect_turns(&w, 1, 2000);
    cr_assert(w.w->is_over, "two seconds are enough");
    world_close(&w);

    world_open(&w, &the_bed, 3);
    join(&w);
    say(&w, &m, PL_MSG_STOP);
    cr_assert(w.w->is_over);
    worker_leave(w.w);
    cr_assert_eq(w.n_leave, 1);
    world_close(&w);

    world_open(&w, &the_bed, 3);
    join(&w);
    w.stop = 2;
    cr_assert_eq(turn(&w, 10), PL_E_STOPPED);
    end();
}
