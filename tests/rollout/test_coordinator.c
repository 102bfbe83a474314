/* Claims tested: who may take part in a run, and who gets which lease.  Results, steps and
 * recovery: test_coordinator_ledger.c; random faults: test_coordinator_faults.c. */
#include "tests/rollout/coordinator_world.h"

/* ---- members ---- */

Test(coordinator, says_nothing_before_its_epoch_is_durable)
{
    world *w = make();
    const pl_coordinator_options o = bed_options();
    cr_assert_eq(start(w, &o), PL_OK);
    hello(w, W, 1, "worker-1", 4);
    wait_ms(w, 5000);
    cr_expect_eq(w->sent.n, 0);
    cr_expect(pl_coordinator_unsynced(w->c));
    sync_ledger(w);
    hello(w, W, 1, "worker-1", 4);
    cr_expect_eq(heard(w, W, 1, PL_MSG_WELCOME).h.epoch, 1);
    done(w);
}

Test(coordinator, welcomes_as_often_as_it_is_greeted_and_keeps_leases)
{
    world *w = with_batch(8);
    cr_expect_eq(stats(w).n_leased, 4);
    hello(w, W, 1, "worker-1", 8);
    cr_expect_eq(count(w, W, 1, PL_MSG_WELCOME), 2);
    cr_expect_eq(stats(w).n_leased, 4);
    cr_expect_eq(stats(w).n_workers, 1);
    done(w);
}

Test(coordinator, refuses_another_numeric_class_in_words)
{
    world *w = make();
    begin(w);
    say(w, W, 1,
        (pl_msg){.h.type = PL_MSG_HELLO,
            .u.hello = {.role = W, .name = "w", .numeric_class = "class-b", .max_seqs = 1}});
    const pl_msg no = heard(w, W, 1, PL_MSG_REJECT);
    cr_assert_eq(no.h.type, PL_MSG_REJECT);
    cr_expect_eq(no.u.reject.code, PL_E_CONFIG);
    cr_expect(strstr(no.u.reject.reason, "class-a") && strstr(no.u.reject.reason, "class-b"));
    cr_expect_eq(w->dropped.n, 1);
    cr_expect_eq(stats(w).n_workers, 0);
    done(w);
}

Test(coordinator, a_second_peer_of_a_name_waits_until_the_first_is_silent)
{
    world *w = with_batch(8);
    hello(w, W, 2, "worker-1", 8);
    cr_expect_eq(heard(w, W, 2, PL_MSG_REJECT).u.reject.code, PL_E_TIMEOUT);
    hello(w, T, 901, "other", 0);
    cr_expect_eq(heard(w, T, 901, PL_MSG_REJECT).u.reject.code, PL_E_TIMEOUT);
    cr_expect_eq(w->dropped.n, 0);
    wait_ms(w, 3000);
    hello(w, W, 2, "worker-1", 8);
    hello(w, T, 901, "other", 0);
    cr_expect_eq(count(w, W, 2, PL_MSG_WELCOME), 1);
    cr_expect_eq(count(w, T, 901, PL_MSG_WELCOME), 1);
    done(w);
}

Test(coordinator, tells_strangers_and_old_epochs_to_say_hello)
{
    world *w = with_batch(8);
    status(w, 7, 3, 0);
    cr_expect_eq(heard(w, W, 7, PL_MSG_REJECT).u.reject.code, PL_E_PEER);
    const pl_peer peer = bed_peer(W, 1);
    const text t = bed_text(5, 100);
    pl_msg m = bed_result(5, 100, 50, 3, &t);
    pl_error err = {0};
    m.h.epoch = 77;
    cr_assert_eq(pl_coordinator_message(w->c, w->now, &peer, &m, &err), PL_OK);
    cr_expect_eq(heard(w, W, 1, PL_MSG_REJECT).u.reject.code, PL_E_PEER);
    cr_expect_eq(stats(w).n_old_epoch, 1);
    sync_ledger(w);
    cr_expect_eq(stats(w).n_done, 0);
    cr_expect_eq(w->dropped.n, 0);
    done(w);
}

Test(coordinator, a_silent_worker_is_lost_and_says_hello_again)
{
    world *w = with_batch(8);
    wait_ms(w, 2950);
    cr_expect_eq(stats(w).n_lost, 0);
    wait_ms(w, 50);
    cr_expect_eq(stats(w).n_leased, 0);
    cr_expect_eq(stats(w).n_pending, 4);
    cr_expect_eq(stats(w).n_lost, 2); /* the trainer too */
    clear(w);
    status(w, 1, 3, 0);
    cr_expect_eq(heard(w, W, 1, PL_MSG_REJECT).u.reject.code, PL_E_PEER);
    worker(w, 1, 3, 8);
    cr_expect_eq(stats(w).n_leased, 4);
    cr_expect_eq(stats(w).n_releases, 4);
    done(w);
}

Test(coordinator, a_worker_whose_process_has_ended_is_lost_after_two_looks)
{
    world *w = with_batch(8);
    w->killed = bed_peer(W, 1);
    wait_ms(w, 100);
    cr_expect_eq(stats(w).n_lost, 0, "what it sent before may be on its way");
    wait_ms(w, 100);
    cr_expect_eq(stats(w).n_lost, 1);
    cr_expect_eq(stats(w).n_pending, 4);
    worker(w, 2, 3, 8);
    cr_expect_eq(stats(w).n_leased, 4);
    cr_expect_eq(stats(w).n_releases, 4);
    w->n_asked = 0;
    wait_ms(w, 1000);
    cr_expect_leq(w->n_asked, 20, "two members, ten times");
    done(w);
}

Test(coordinator, the_successor_of_a_killed_trainer_is_let_in_at_once)
{
    world *w = with_batch(8);
    hello(w, T, 901, "trainer", 0);
    cr_expect_eq(heard(w, T, 901, PL_MSG_REJECT).u.reject.code, PL_E_TIMEOUT);
    w->killed = bed_peer(T, TRAINER);
    hello(w, T, 901, "trainer", 0);
    cr_expect_eq(count(w, T, 901, PL_MSG_WELCOME), 1);
    cr_expect_eq(stats(w).n_leased, 4, "the batch goes on");
    done(w);
}

Test(coordinator, a_coordinator_that_was_stopped_itself_blames_nobody)
{
    world *w = with_batch(8);
    pl_error err = {0};
    wait_ms(w, 1000);
    w->now += 60000 * MS;
    status(w, 1, 3, 0); /* read before the clock is looked at */
    cr_assert_eq(pl_coordinator_tick(w->c, w->now, &err), PL_OK);
    cr_expect_eq(stats(w).n_lost, 0);
    cr_expect_eq(stats(w).n_leased, 4);
    wait_ms(w, 3000);
    cr_expect_eq(stats(w).n_lost, 2);
    done(w);
}

Test(coordinator, a_drained_worker_gets_nothing_new_and_hands_over)
{
    world *w = with_batch(2);
    pl_coordinator_drain(w->c, w->now);
    cr_expect_eq(count(w, W, 1, PL_MSG_DRAIN), 1);
    clear(w);
    result(w, 1, 5, 100, 2);
    sync_ledger(w);
    cr_expect_eq(count(w, W, 1, PL_MSG_LEASE), 0);
    wait_ms(w, 1000);
    cr_expect_eq(count(w, W, 1, PL_MSG_DRAIN), 1, "said again");
    say(w, W, 1, (pl_msg){.h.type = PL_MSG_LEAVE});
    cr_expect_eq(stats(w).n_workers, 0);
    cr_expect_eq(stats(w).n_leased, 0);
    done(w);
}

/* ---- leases ---- */

Test(coordinator, leases_wait_for_all_groups_durable_and_for_the_version)
{
    world *w = make();
    begin(w);
    hello(w, T, TRAINER, "trainer", 0);
    worker(w, 1, 2, 8);
    worker(w, 2, 3, 8);
    say(w, T, TRAINER, bed_group(5, 2, 0, 2, 3));
    sync_ledger(w);
    cr_expect_eq(stats(w).n_leased, 0, "a group is missing");
    say(w, T, TRAINER, bed_group(5, 2, 1, 2, 3));
    cr_expect_eq(stats(w).n_leased, 0, "it is not durable");
    sync_ledger(w);
    cr_expect_eq(count(w, W, 1, PL_MSG_LEASE), 0, "another version");
    cr_expect_eq(count(w, W, 2, PL_MSG_LEASE), 2, "the other's share is kept while it may load");
    for (int ms = 0; ms < 57000; ms += 1000) {
        wait_ms(w, 1000);
        status(w, 1, 2, 0);
        status(w, 2, 3, 0);
    }
    cr_expect_eq(count(w, W, 1, PL_MSG_LEASE), 0, "another version");
    cr_expect_eq(stats(w).n_leased, 2, "it still loads");
    for (int ms = 0; ms < 5000; ms += 1000) {
        wait_ms(w, 1000);
        status(w, 1, 2, 0);
        status(w, 2, 3, 0);
    }
    cr_expect_eq(stats(w).n_leased, 4, "but not for ever");
    const pl_msg l = heard(w, W, 2, PL_MSG_LEASE);
    cr_expect_eq(l.u.lease.uid, 100);
    cr_expect_eq(l.u.lease.group, 50);
    cr_expect_eq(l.u.lease.prompt.n, 3);
    cr_expect_eq(l.u.lease.sampling.max_tokens, BED_MAX_TOKENS);
    done(w);
}

Test(coordinator, the_trainer_is_told_of_groups_that_are_durable)
{
    world *w = make();
    begin(w);
    hello(w, T, TRAINER, "trainer", 0);
    groups(w, 5, 2, 2, 3);
    wait_ms(w, 250);
    const pl_msg first = heard(w, T, TRAINER, PL_MSG_BATCH);
    cr_assert_eq(first.u.batch.batch, 5);
    cr_expect_eq(first.u.batch.n_groups_known, 0, "a crash now would forget them");
    cr_expect_eq(first.u.batch.n_samples, 4);
    sync_ledger(w);
    clear(w);
    wait_ms(w, 250);
    cr_expect_eq(heard(w, T, TRAINER, PL_MSG_BATCH).u.batch.n_groups_known, 2);
    done(w);
}

Test(coordinator, siblings_go_together_and_faster_workers_get_more)
{
    world *w = make();
    begin(w);
    hello(w, T, TRAINER, "trainer", 0);
    for (uint32_t i = 1; i <= 3; i++) {
        w->n_threads = i; /* else they are equally fast */
        worker(w, i, 3, i == 3 ? 2 : 256);
    }
    status(w, 1, 3, 10);
    status(w, 2, 3, 30);
    status(w, 3, 3, 20);
    groups(w, 5, 24, 4, 3);
    sync_ledger(w);
    const int n1 = count(w, W, 1, PL_MSG_LEASE), n2 = count(w, W, 2, PL_MSG_LEASE);
    cr_expect_eq(count(w, W, 3, PL_MSG_LEASE), 2, "no more than it runs at once");
    cr_expect_eq(n1 + n2, 94);
    cr_expect(n2 >= 64 && n1 >= 20, "%d and %d", n1, n2);
    int n_whole = 0;
    for (int g = 0; g < 24; g++) {
        int of1 = 0;
        for (int i = 0; i < n2; i++)
            of1 += (int)heard_nth(w, W, 2, PL_MSG_LEASE, i).u.lease.group == 50 + g;
        n_whole += of1 == 4;
    }
    cr_expect_geq(n_whole, 12);
    done(w);
}

Test(coordinator, a_small_share_is_of_several_prompts)
{
    world *w = make();
    begin(w);
    hello(w, T, TRAINER, "trainer", 0);
    worker(w, 1, 3, 64);
    worker(w, 2, 3, 64);
    groups(w, 5, 4, 4, 3); /* every second prompt has long answers, say */
    sync_ledger(w);
    for (int g = 0; g < 4; g++) {
        int n = 0;
        for (int i = 0; i < 8; i++)
            n += (int)heard_nth(w, W, 2, PL_MSG_LEASE, i).u.lease.group == 50 + g;
        cr_expect_eq(n, 2, "prompt %d: %d", g, n);
    }
    done(w);
}

Test(coordinator, workers_of_one_kind_get_the_same_whatever_they_measured)
{
    world *w = make();
    begin(w);
    hello(w, T, TRAINER, "trainer", 0);
    worker(w, 1, 3, 64);
    worker(w, 2, 3, 64);
    status(w, 1, 3, 10); /* of long answers: few samples at once, few tokens a second */
    status(w, 2, 3, 30);
    groups(w, 5, 6, 4, 3);
    sync_ledger(w);
    cr_expect_eq(count(w, W, 1, PL_MSG_LEASE), 12);
    cr_expect_eq(count(w, W, 2, PL_MSG_LEASE), 12);
    done(w);
}

Test(coordinator, who_claims_a_rate_and_does_not_load_keeps_no_more_than_its_part)
{
    world *w = make();
    begin(w);
    hello(w, T, TRAINER, "trainer", 0);
    for (uint32_t i = 1; i <= 2; i++) {
        w->n_threads = i;
        worker(w, i, 4 - i, 64); /* the second has another version */
    }
    status(w, 1, 3, 100);
    status(w, 2, 2, 9e8f);
    groups(w, 5, 6, 4, 3);
    sync_ledger(w);
    cr_expect_eq(count(w, W, 1, PL_MSG_LEASE), 12);
    done(w);
}

Test(coordinator, prompts_with_long_answers_go_first)
{
    world *w = with_batch(8);
    uint32_t n[2] = {0, 0};
    for (uint32_t uid = 100; uid < 104; uid++) {
        result(w, 1, 5, uid, 2);
        n[(uid - 100) / 2] += bed_text(5, uid).n;
    }
    cr_assert_neq(n[0], n[1]);
    sync_ledger(w);
    clear(w);
    groups(w, 6, 3, 2, 3); /* the third prompt is new: max_tokens */
    sync_ledger(w);
    cr_assert_eq(count(w, W, 1, PL_MSG_LEASE), 6);
    cr_expect_eq(heard_nth(w, W, 1, PL_MSG_LEASE, 0).u.lease.group, 52);
    cr_expect_eq(heard_nth(w, W, 1, PL_MSG_LEASE, 2).u.lease.group, n[0] > n[1] ? 50 : 51);
    done(w);
}

Test(coordinator, a_lost_workers_sample_goes_on_behind_what_is_known)
{
    world *w = with_batch(8);
    text t = bed_text(5, 100);
    for (t.n = 0; t.n < 12; t.n++)
        t.tokens[t.n] = (int32_t)t.n;
    say(w, W, 1, progress(100, &t, 0, 5));
    say(w, W, 1, progress(100, &t, 7, 2)); /* a gap */
    say(w, W, 1, progress(100, &t, 3, 5)); /* overlaps: 5, 6, 7 are new */
    say(w, W, 1, progress(100, &t, 0, 4)); /* late */
    wait_ms(w, 2000);
    hello(w, T, TRAINER, "trainer", 0);
    worker(w, 2, 3, 8);
    clear(w);
    wait_ms(w, 1000);
    pl_msg l = {0};
    for (int i = 0; i < 4; i++)
        if (heard_nth(w, W, 2, PL_MSG_LEASE, i).u.lease.uid == 100)
            l = heard_nth(w, W, 2, PL_MSG_LEASE, i);
    cr_assert_eq(l.u.lease.prefix.n, 7, "8 are known, the last is drawn again");
    cr_expect_eq(memcmp(l.u.lease.prefix.data, t.tokens, 7 * 4), 0);
    cr_expect_eq(memcmp(l.u.lease.prefix_sources.data, t.sources, 7), 0);
    done(w);
}

Test(coordinator, progress_that_contradicts_itself_is_dropped)
{
    world *w = with_batch(8);
    text t = bed_text(5, 100);
    say(w, W, 1, progress(100, &t, 0, 1));
    t.tokens[0]++;
    say(w, W, 1, progress(100, &t, 0, 2));
    say(w, W, 1, (pl_msg){.h.type = PL_MSG_LEAVE});
    worker(w, 2, 3, 8);
    for (int i = 0; i < 4; i++)
        cr_expect_eq(heard_nth(w, W, 2, PL_MSG_LEASE, i).u.lease.prefix.n, 0);
    done(w);
}

Test(coordinator, a_lease_is_said_again_when_the_worker_does_not_list_it)
{
    world *w = with_batch(8);
    const uint32_t running[] = {100, 101}, held[] = {102};
    clear(w);
    status_lists(w, 1, 3, 5, NULL, 0, NULL, 0);
    cr_expect_eq(count(w, W, 1, PL_MSG_LEASE), 0, "its STATUS may be older than the lease");
    wait_ms(w, 1000);
    status_lists(w, 1, 3, 5, running, 2, held, 1);
    cr_assert_eq(count(w, W, 1, PL_MSG_LEASE), 1);
    cr_expect_eq(heard(w, W, 1, PL_MSG_LEASE).u.lease.uid, 103);
    done(w);
}

Test(coordinator, a_result_that_never_comes_is_had_from_elsewhere)
{
    static const uint32_t held[] = {100, 101, 102, 103};
    world *w = with_batch(8);
    for (int i = 0; i < 10; i++) {
        status_lists(w, 1, 3, 5, NULL, 0, held, 4);
        hello(w, T, TRAINER, "trainer", 0);
        wait_ms(w, 1000);
        cr_assert_eq(stats(w).n_releases, 0, "not yet");
    }
    worker(w, 2, 3, 8); /* idle, as all are leased */
    status_lists(w, 1, 3, 5, NULL, 0, held, 4);
    cr_expect_eq(count(w, W, 1, PL_MSG_REVOKE), 4);
    cr_expect_eq(stats(w).n_releases, 4);
    cr_expect_eq(count(w, W, 2, PL_MSG_LEASE), 4);
    done(w);
}

Test(coordinator, a_worker_that_runs_what_it_should_not_is_told)
{
    world *w = with_batch(8);
    const uint32_t running[] = {100, 999};
    clear(w);
    worker(w, 2, 3, 8);
    status_lists(w, 2, 3, 5, running, 2, NULL, 0);
    cr_expect_eq(count(w, W, 2, PL_MSG_REVOKE), 2);
    status_lists(w, 2, 3, 4, running, 1, NULL, 0);
    cr_expect_eq(count(w, W, 2, PL_MSG_REVOKE), 3, "of a batch that is not at hand");
    done(w);
}

Test(coordinator, a_worker_that_loads_other_weights_loses_its_leases)
{
    world *w = with_batch(8);
    status(w, 1, 4, 0);
    cr_expect_eq(stats(w).n_leased, 0);
    cr_expect_eq(count(w, W, 1, PL_MSG_REVOKE), 4);
    done(w);
}

Test(coordinator, a_new_batch_closes_the_old_one)
{
    world *w = with_batch(8);
    clear(w);
    groups(w, 6, 1, 2, 3);
    cr_expect_eq(count(w, W, 1, PL_MSG_REVOKE), 4);
    sync_ledger(w);
    cr_expect_eq(count(w, W, 1, PL_MSG_LEASE), 2);
    clear(w);
    result(w, 1, 5, 100, 2);
    cr_expect(!pl_coordinator_unsynced(w->c));
    cr_expect_eq(heard(w, W, 1, PL_MSG_REVOKE).u.uids.batch, 5);
    cr_expect_eq(stats(w).n_quarantined, 0);
    /* A doubled GROUP of the old batch that comes late does not bring it back. */
    w->seq = 2;
    groups(w, 5, 2, 2, 3);
    cr_expect_eq(stats(w).n_leased, 2);
    done(w);
}

Test(coordinator, a_group_that_contradicts_the_ledger_is_refused)
{
    world *w = with_batch(8);
    const int n = w->ledger.n;
    groups(w, 5, 2, 2, 3);
    cr_expect_eq(count(w, T, TRAINER, PL_MSG_REJECT), 0);
    pl_msg m = bed_group(5, 2, 1, 2, 3);
    m.u.group.sampling.temperature = 1;
    say(w, T, TRAINER, m);
    m = bed_group(5, 3, 2, 2, 3);
    say(w, T, TRAINER, m);
    cr_expect_eq(count(w, T, TRAINER, PL_MSG_REJECT), 2);
    cr_expect_eq(w->ledger.n, n);
    done(w);
}
