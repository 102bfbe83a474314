/* Claims tested: what the coordinator promises is durable first; the first durable result, reward
 * and step stand; liars are found; a recovered coordinator goes on. */
#include "tests/rollout/coordinator_world.h"

/* ---- results ---- */

static world *with_results(void)
{
    world *w = with_batch(8);
    for (uint32_t uid = 100; uid < 104; uid++)
        result(w, 1, 5, uid, 2);
    sync_ledger(w);
    clear(w);
    return w;
}

Test(coordinator_ledger, nothing_is_acknowledged_before_it_is_durable)
{
    world *w = with_batch(8);
    result(w, 1, 5, 100, 2);
    wait_ms(w, 500);
    cr_expect_eq(count(w, W, 1, PL_MSG_ACK), 0);
    cr_expect_eq(count(w, T, TRAINER, PL_MSG_RESULT), 0);
    say(w, T, TRAINER,
        (pl_msg){.h.type = PL_MSG_WANT, .u.uids = {5, {(const uint32_t[]){100}, 1}}});
    cr_expect_eq(count(w, T, TRAINER, PL_MSG_RESULT), 0);
    sync_ledger(w);
    const pl_msg ack = heard(w, W, 1, PL_MSG_ACK);
    cr_assert_eq(ack.u.uids.uids.n, 1);
    cr_expect_eq(bed_u32(&ack.u.uids.uids, 0), 100);
    const pl_msg r = heard(w, T, TRAINER, PL_MSG_RESULT);
    const text t = bed_text(5, 100);
    cr_assert_eq(r.u.result.tokens.n, t.n);
    cr_expect_eq(memcmp(r.u.result.tokens.data, t.tokens, t.n * 4), 0);
    cr_expect_eq(memcmp(r.u.result.logprobs.data, t.logprobs, t.n * 4), 0);
    cr_expect_str_eq(r.u.result.worker, "worker-1");
    cr_expect_eq(r.u.result.has_reward, 0);
    cr_expect_eq(stats(w).n_done, 1);
    say(w, T, TRAINER,
        (pl_msg){.h.type = PL_MSG_WANT, .u.uids = {5, {(const uint32_t[]){100, 101}, 2}}});
    cr_expect_eq(count(w, T, TRAINER, PL_MSG_RESULT), 2);
    done(w);
}

Test(coordinator_ledger, an_equal_second_result_is_counted_and_acknowledged)
{
    world *w = with_batch(8);
    result(w, 1, 5, 100, 2);
    result(w, 1, 5, 100, 2);
    cr_expect_eq(count(w, W, 1, PL_MSG_ACK), 0, "the first is not durable");
    sync_ledger(w);
    result(w, 1, 5, 100, 2);
    cr_expect_eq(count(w, W, 1, PL_MSG_ACK), 2);
    cr_expect_eq(stats(w).n_duplicates, 2);
    cr_expect_eq(count(w, T, TRAINER, PL_MSG_RESULT), 1);
    done(w);
}

/* Worker 1 was lost with all four samples, worker 2 has them now, worker 1 is back with what it
 * had: who of them is first? */
static world *with_two_workers(void)
{
    world *w = with_batch(8);
    wait_ms(w, 3000);
    hello(w, T, TRAINER, "trainer", 0);
    worker(w, 2, 3, 8);
    cr_assert_eq(count(w, W, 2, PL_MSG_LEASE), 4);
    hello(w, W, 1, "worker-1", 8);
    clear(w);
    return w;
}

static void refuse(world *w, uint32_t uid, uint32_t attempt, uint32_t position)
{
    say(w, T, TRAINER,
        (pl_msg){.h.type = PL_MSG_REFUSE,
            .u.refuse = {.batch = 5,
                .uid = uid,
                .code = 2,
                .reason = "token at 4",
                .attempt = attempt,
                .position = position}});
}

static void result_of_attempt(world *w, uint64_t who, uint32_t uid, uint32_t attempt)
{
    const text t = bed_text(5, uid);
    pl_msg m = bed_result(5, uid, 50 + (uid - 100) / 2, 3, &t);
    m.u.result.attempt = attempt;
    say(w, W, who, m);
}

Test(coordinator_ledger, a_different_second_result_quarantines_its_sender)
{
    for (int kind = 0; kind < 3; kind++) {
        world *w = with_two_workers();
        for (uint32_t uid = 100; uid < 104; uid++)
            result(w, 1, 5, uid, 2);
        sync_ledger(w);
        text t = bed_text(5, 102);
        cr_assert(t.n > 1);
        if (kind == 0)
            t.tokens[t.n - 1]++;
        if (kind == 1)
            ((unsigned char *)&t.logprobs[0])[0] ^= 1;
        if (kind == 2) {
            t.n--;
            t.finish = PL_FINISH_STOP;
        }
        say(w, W, 2, bed_result(5, 102, 51, 3, &t));
        cr_expect_eq(stats(w).n_conflicts, 1);
        cr_expect_eq(stats(w).n_quarantined, 1);
        const pl_msg no = heard(w, W, 2, PL_MSG_REJECT);
        cr_assert_eq(no.h.type, PL_MSG_REJECT);
        cr_expect(strstr(no.u.reject.reason, "worker-1") && strstr(no.u.reject.reason, "worker-2"));
        clear(w);
        hello(w, W, 2, "worker-2", 8);
        cr_expect_eq(count(w, W, 2, PL_MSG_WELCOME), 0);
        cr_expect_eq(heard(w, W, 2, PL_MSG_REJECT).u.reject.code, PL_E_TIMEOUT, "undecided");
        hello(w, W, 3, "worker-2", 8);
        cr_expect_eq(count(w, W, 3, PL_MSG_WELCOME), 1, "another process of that name");
        cr_expect_eq(stats(w).n_done, 4);
        clear(w);
        say(w, T, TRAINER, consume(5, 1, 2)); /* the audit found nothing */
        hello(w, W, 2, "worker-2", 8);
        cr_expect_eq(heard(w, W, 2, PL_MSG_REJECT).u.reject.code, PL_E_INVAL, "for good");
        cr_expect_eq(w->dropped.n, 1);
        done(w);
    }
}

Test(coordinator_ledger, who_differed_from_a_result_that_is_refused_is_let_in_again)
{
    world *w = with_two_workers();
    text t = bed_text(5, 102);
    t.tokens[1]++;
    say(w, W, 1, bed_result(5, 102, 51, 3, &t)); /* the liar is first */
    sync_ledger(w);
    result(w, 2, 5, 102, 2);
    cr_expect_eq(stats(w).n_quarantined, 1);
    clear(w);
    refuse(w, 102, 0, 1);
    cr_expect_eq(heard(w, W, 1, PL_MSG_REJECT).u.reject.code, PL_E_INVAL);
    cr_expect_eq(stats(w).n_pardoned, 1);
    worker(w, 2, 3, 8);
    cr_expect_eq(count(w, W, 2, PL_MSG_WELCOME), 1);
    hello(w, W, 1, "worker-1", 8);
    cr_expect_eq(count(w, W, 1, PL_MSG_WELCOME), 0);
    done(w);
}

Test(coordinator_ledger, a_malformed_result_quarantines_its_sender)
{
    for (int kind = 0; kind < 8; kind++) {
        world *w = with_batch(8);
        text t = bed_text(5, 100);
        pl_msg m = bed_result(5, 100, 50, 3, &t);
        pl_msg_result *r = &m.u.result;
        if (kind == 0)
            r->tokens.n = r->logprobs.n = r->sources.n = 0;
        else if (kind == 1)
            r->finish = PL_FINISH_ABORTED;
        else if (kind == 2)
            r->finish = t.n == BED_MAX_TOKENS ? PL_FINISH_NONE : PL_FINISH_LENGTH;
        else if (kind == 3)
            r->policy_version = 2;
        else if (kind == 4)
            t.sources[0] = 3;
        else if (kind == 5)
            r->temperature = 1;
        else if (kind == 6)
            t.tokens[0] = -1;
        else
            r->tokens.n = r->logprobs.n = r->sources.n = BED_MAX_TOKENS + 1;
        say(w, W, 1, m);
        cr_expect_eq(stats(w).n_invalid, 1, "kind %d", kind);
        cr_expect_eq(stats(w).n_quarantined, 1, "kind %d", kind);
        cr_expect_eq(stats(w).n_workers, 0);
        cr_expect_eq(stats(w).n_pending, 4, "its leases return");
        done(w);
    }
}

Test(coordinator_ledger, a_result_of_what_was_not_leased_is_dropped_and_nobody_blamed)
{
    world *w = with_batch(2);
    clear(w);
    result(w, 1, 5, 103, 2); /* it was granted two */
    const text t = bed_text(5, 104);
    say(w, W, 1, bed_result(5, 104, 52, 3, &t)); /* of a batch 5 of another shape */
    result_of_attempt(w, 1, 100, 1);
    cr_expect_eq(count(w, W, 1, PL_MSG_REVOKE), 3);
    cr_expect_eq(stats(w).n_stale, 3);
    cr_expect_eq(stats(w).n_quarantined, 0);
    cr_expect(!pl_coordinator_unsynced(w->c));
    done(w);
}

Test(coordinator_ledger, a_zombie_of_an_evaluation_that_began_anew_is_not_blamed)
{
    const uint64_t evaluation = (uint64_t)1 << 32 | 5;
    world *w = with_results();
    groups(w, evaluation, 1, 2, 3);
    sync_ledger(w);
    cr_assert_eq(count(w, W, 1, PL_MSG_LEASE), 2);
    groups(w, evaluation + 1, 1, 2, 3); /* the one before is forgotten */
    sync_ledger(w);
    wait_ms(w, 2000);
    status(w, 1, 3, 0);
    wait_ms(w, 1000);
    hello(w, T, 902, "trainer", 0); /* it resumes, and evaluates again */
    say(w, T, 902, bed_group(evaluation, 1, 0, 2, 3));
    text t = bed_text(evaluation, 100);
    say(w, W, 1, bed_result(evaluation, 100, 50, 3, &t)); /* before any lease of it */
    cr_expect_eq(stats(w).n_quarantined, 0);
    cr_expect_eq(stats(w).n_stale, 1);
    sync_ledger(w);
    hello(w, W, 2, "worker-2", 8);
    status(w, 2, 3, 0);
    t.tokens[0]++; /* it was handed that by a liar */
    say(w, W, 2, bed_result(evaluation, 100, 50, 3, &t));
    sync_ledger(w);
    say(w, T, 902,
        (pl_msg){.h.type = PL_MSG_REFUSE,
            .u.refuse = {.batch = evaluation, .uid = 100, .code = 2, .reason = "token"}});
    cr_expect_eq(stats(w).n_refused, 1);
    cr_expect_eq(stats(w).n_quarantined, 0);
    done(w);
}

Test(coordinator_ledger, a_result_of_another_than_the_holder_counts)
{
    world *w = with_two_workers();
    result(w, 1, 5, 101, 2);
    const pl_msg revoke = heard(w, W, 2, PL_MSG_REVOKE);
    cr_assert_eq(revoke.u.uids.uids.n, 1);
    cr_expect_eq(bed_u32(&revoke.u.uids.uids, 0), 101);
    sync_ledger(w);
    cr_expect_eq(count(w, W, 1, PL_MSG_ACK), 1);
    cr_expect_str_eq(heard(w, T, TRAINER, PL_MSG_RESULT).u.result.worker, "worker-1");
    done(w);
}

/* ---- rewards, refusals ---- */

static void reward(world *w, uint32_t uid, float score)
{
    say(w, T, TRAINER,
        (pl_msg){.h.type = PL_MSG_REWARD,
            .u.reward = {.batch = 5, .uid = uid, .score = score, .mark = 1}});
}

Test(coordinator_ledger, the_first_reward_stands)
{
    world *w = with_batch(8);
    reward(w, 100, 1);
    cr_expect_eq(w->n_durable, w->ledger.n, "of what?");
    result(w, 1, 5, 100, 2);
    sync_ledger(w);
    reward(w, 100, 0.5f);
    cr_expect_eq(count(w, T, TRAINER, PL_MSG_REWARD), 0);
    reward(w, 100, 0.25f);
    sync_ledger(w);
    cr_expect_eq(count(w, T, TRAINER, PL_MSG_REWARD), 1);
    cr_expect_float_eq(heard(w, T, TRAINER, PL_MSG_REWARD).u.reward.score, 0.5f, 0);
    clear(w);
    reward(w, 100, 0.25f);
    cr_expect_float_eq(heard(w, T, TRAINER, PL_MSG_REWARD).u.reward.score, 0.5f, 0);
    cr_expect(!pl_coordinator_unsynced(w->c));
    done(w);
}

Test(coordinator_ledger, a_refused_sample_is_rolled_out_again_from_its_prompt)
{
    world *w = with_batch(8);
    worker(w, 2, 3, 8);
    result(w, 1, 5, 100, 2);
    sync_ledger(w);
    reward(w, 100, 0.5f);
    sync_ledger(w);
    clear(w);
    refuse(w, 100, 0, 4);
    const pl_msg no = heard(w, W, 1, PL_MSG_REJECT);
    cr_assert_eq(no.h.type, PL_MSG_REJECT);
    cr_expect(strstr(no.u.reject.reason, "sample 100") && strstr(no.u.reject.reason, "token at 4"));
    cr_expect_eq(stats(w).n_refused, 1);
    for (int i = 0; i < count(w, W, 2, PL_MSG_LEASE); i++)
        cr_expect_neq(heard_nth(w, W, 2, PL_MSG_LEASE, i).u.lease.uid, 100,
            "a crash now would bring the false result back");
    clear(w);
    sync_ledger(w);
    cr_assert_eq(count(w, W, 2, PL_MSG_LEASE), 1);
    cr_expect_eq(heard(w, W, 2, PL_MSG_LEASE).u.lease.uid, 100);
    cr_expect_eq(heard(w, W, 2, PL_MSG_LEASE).u.lease.prefix.n, 0);
    cr_expect_eq(heard(w, W, 2, PL_MSG_LEASE).u.lease.attempt, 1);
    refuse(w, 100, 0, 4);
    cr_expect_eq(stats(w).n_refused, 1, "nothing stands");
    result_of_attempt(w, 2, 100, 1);
    sync_ledger(w);
    cr_expect_eq(heard(w, T, TRAINER, PL_MSG_RESULT).u.result.has_reward, 0);
    cr_expect_eq(heard(w, T, TRAINER, PL_MSG_RESULT).u.result.attempt, 1);
    cr_expect_eq(stats(w).n_conflicts, 0);
    restart(w);
    cr_expect_eq(stats(w).n_done, 1);
    hello(w, T, TRAINER, "trainer", 0);
    say(w, T, TRAINER,
        (pl_msg){.h.type = PL_MSG_WANT, .u.uids = {5, {(const uint32_t[]){100}, 1}}});
    cr_expect_eq(heard(w, T, TRAINER, PL_MSG_RESULT).u.result.attempt, 1, "from the ledger");
    done(w);
}

Test(coordinator_ledger, what_is_said_of_a_refused_result_does_not_touch_the_next_one)
{
    world *w = with_batch(8);
    worker(w, 2, 3, 8);
    result(w, 1, 5, 100, 2);
    sync_ledger(w);
    refuse(w, 100, 0, 4);
    sync_ledger(w);
    result_of_attempt(w, 2, 100, 1);
    sync_ledger(w);
    /* The trainer read the first RESULT a second time, after its REFUSE: it scores and refuses it
     * again, and says so later than the REFUSE that was heard. */
    reward(w, 100, 0.5f);
    refuse(w, 100, 0, 4);
    cr_expect(!pl_coordinator_unsynced(w->c));
    cr_expect_eq(stats(w).n_refused, 1);
    cr_expect_eq(stats(w).n_quarantined, 1);
    cr_expect_eq(stats(w).n_done, 1);
    done(w);
}

/* ---- who is blamed ---- */

/* Worker 1 says 8 tokens of sample 100 and is lost; worker 2 goes on behind 7 of them and finishes.
 * The fault is at a token of this one or of that one. */
static world *with_shared_sample(text *t)
{
    world *w = with_batch(8);
    *t = (text){.n = BED_MAX_TOKENS, .finish = PL_FINISH_LENGTH};
    for (uint32_t i = 0; i < t->n; i++)
        t->tokens[i] = (int32_t)(10 + i);
    say(w, W, 1, progress(100, t, 0, 8));
    wait_ms(w, 3000);
    hello(w, T, TRAINER, "trainer", 0);
    worker(w, 2, 3, 8);
    cr_assert_eq(heard(w, W, 2, PL_MSG_LEASE).u.lease.prefix.n, 7);
    t->tokens[7] += 100; /* not what worker 1 said: it was never handed on */
    say(w, W, 2, progress(100, t, 0, 12));
    hello(w, W, 1, "worker-1", 8);
    status(w, 1, 3, 0);
    return w;
}

Test(coordinator_ledger, who_wrote_the_token_is_blamed_and_not_who_went_on_behind_it)
{
    static const struct {
        uint32_t position, liar;
    } cases[] = {{0, 1}, {6, 1}, {7, 2}, {19, 2}, {UINT32_MAX, 2}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        text t;
        world *w = with_shared_sample(&t);
        say(w, W, 2, bed_result(5, 100, 50, 3, &t));
        sync_ledger(w);
        clear(w);
        refuse(w, 100, 0, cases[i].position);
        cr_expect_eq(stats(w).n_quarantined, 1, "case %zu", i);
        cr_expect_eq(count(w, W, cases[i].liar, PL_MSG_REJECT), 1, "case %zu", i);
        done(w);
    }
}

Test(coordinator_ledger, who_changes_what_it_was_handed_is_blamed_for_it)
{
    text t;
    world *w = with_shared_sample(&t);
    t.tokens[3]++;
    say(w, W, 2, bed_result(5, 100, 50, 3, &t));
    sync_ledger(w);
    refuse(w, 100, 0, 3);
    cr_expect_eq(count(w, W, 2, PL_MSG_REJECT), 1);
    cr_expect_eq(count(w, W, 1, PL_MSG_REJECT), 0);
    done(w);
}

Test(coordinator_ledger, recovery_blames_the_same_one_or_nobody)
{
    for (int kind = 0; kind < 3; kind++) {
        text t;
        world *w = with_shared_sample(&t);
        say(w, W, 2, bed_result(5, 100, 50, 3, &t));
        sync_ledger(w);
        restart(w);
        hello(w, T, TRAINER, "trainer", 0);
        worker(w, 1, 3, 8);
        worker(w, kind == 2 ? 3 : 2, 3, 8); /* 2: the liar has gone, another has its name */
        if (kind == 2)
            hello(w, W, 4, "worker-2", 8);
        refuse(w, 100, 0, kind == 0 ? 3 : 12);
        cr_expect_eq(count(w, W, 1, PL_MSG_REJECT), 0, "it is not known that it wrote that");
        cr_expect_eq(count(w, W, 2, PL_MSG_REJECT), kind == 1);
        cr_expect_eq(count(w, W, 4, PL_MSG_REJECT), 0);
        sync_ledger(w);
        cr_expect_eq(stats(w).n_done, 0);
        done(w);
    }
}

Test(coordinator_ledger, who_goes_on_in_a_new_epoch_is_not_blamed_for_what_it_was_handed_before)
{
    for (int kind = 0; kind < 2; kind++) {
        text t;
        world *w = with_shared_sample(&t);
        const uint32_t running[] = {100};
        restart(w);
        hello(w, T, TRAINER, "trainer", 0);
        hello(w, W, 2, "worker-2", 8);
        status_lists(w, 2, 3, 5, running, 1, NULL, 0);
        say(w, W, 2, progress(100, &t, 0, 12));
        say(w, W, 2, bed_result(5, 100, 50, 3, &t));
        sync_ledger(w);
        refuse(w, 100, 0, kind ? 19 : 3);
        cr_expect_eq(stats(w).n_refused, 1);
        cr_expect_eq(stats(w).n_quarantined, kind, "the last token is always the finisher's");
        done(w);
    }
}

Test(coordinator_ledger, a_refused_sample_is_of_one_worker_alone)
{
    world *w = with_batch(8);
    result(w, 1, 5, 100, 2);
    sync_ledger(w);
    restart(w);
    hello(w, T, TRAINER, "trainer", 0);
    worker(w, 1, 3, 8);
    worker(w, 2, 3, 8);
    refuse(w, 100, 0, UINT32_MAX);
    sync_ledger(w);
    pl_msg l = heard(w, W, 2, PL_MSG_LEASE);
    cr_assert_eq(l.u.lease.uid, 100);
    const text t = {.n = 8};
    pl_msg m = progress(100, &t, 0, 5);
    m.u.progress.attempt = 1;
    say(w, W, 2, m);
    const uint32_t running[] = {100};
    worker(w, 3, 3, 8);
    wait_ms(w, 2000);
    status(w, 3, 3, 0);
    wait_ms(w, 1000);
    l = heard(w, W, 3, PL_MSG_LEASE);
    for (int i = 0; l.u.lease.uid != 100; i++)
        l = heard_nth(w, W, 3, PL_MSG_LEASE, i);
    cr_expect_eq(l.u.lease.prefix.n, 0, "nothing is handed on");
    say(w, W, 3, (pl_msg){.h.type = PL_MSG_LEAVE});
    hello(w, W, 2, "worker-2", 8);
    clear(w);
    status_lists(w, 2, 3, 5, running, 1, NULL, 0);
    cr_expect_eq(count(w, W, 2, PL_MSG_REVOKE), 1, "of which attempt?");
    done(w);
}

/* ---- steps, versions ---- */

Test(coordinator_ledger, a_step_is_consumed_once)
{
    world *w = with_results();
    say(w, T, TRAINER, consume(5, 1, 2));
    cr_expect_eq(count(w, T, TRAINER, PL_MSG_CONSUME), 0);
    sync_ledger(w);
    cr_expect_eq(heard(w, T, TRAINER, PL_MSG_CONSUME).u.consume.again, 0);
    const int n = w->ledger.n;
    say(w, T, TRAINER, consume(5, 1, 2)); /* the echo was lost */
    cr_expect_eq(count(w, T, TRAINER, PL_MSG_CONSUME), 2);
    cr_expect_eq(w->ledger.n, n);
    say(w, T, TRAINER, consume(5, 1, 3));
    const pl_msg no = heard(w, T, TRAINER, PL_MSG_REJECT);
    cr_assert_eq(no.u.reject.code, PL_E_NUMERIC);
    cr_expect(strstr(no.u.reject.reason, "0200000000000000") &&
              strstr(no.u.reject.reason, "0300000000000000"));
    cr_expect_eq(w->ledger.n, n);
    /* Another trainer trains it again: recorded as a RESUME. */
    wait_ms(w, 3000);
    hello(w, T, 901, "trainer", 0);
    say(w, T, 901, consume(5, 1, 2));
    cr_expect_eq(w->ledger.n, n + 1);
    sync_ledger(w);
    cr_expect_eq(heard(w, T, 901, PL_MSG_CONSUME).u.consume.again, 1);
    say(w, T, 901, consume(5, 7, 2));
    cr_expect_eq(count(w, T, 901, PL_MSG_REJECT), 1);
    done(w);
}

Test(coordinator_ledger, a_batch_with_open_samples_is_not_consumed)
{
    world *w = with_batch(8);
    say(w, T, TRAINER, consume(5, 1, 2));
    cr_expect_eq(count(w, T, TRAINER, PL_MSG_REJECT), 1);
    cr_expect(!pl_coordinator_unsynced(w->c));
    done(w);
}

Test(coordinator_ledger, a_version_is_announced_after_its_step_is_durable)
{
    world *w = with_results();
    say(w, T, TRAINER, version(3, 30));
    cr_expect_eq(count(w, W, 1, PL_MSG_VERSION), 0);
    sync_ledger(w);
    cr_expect_eq(count(w, W, 1, PL_MSG_VERSION), 1, "where this trainer began");
    say(w, T, TRAINER, version(4, 2));
    cr_expect_eq(count(w, T, TRAINER, PL_MSG_REJECT), 1, "of no step");
    say(w, T, TRAINER, consume(5, 1, 2));
    say(w, T, TRAINER, version(4, 2));
    cr_expect_eq(count(w, T, TRAINER, PL_MSG_REJECT), 2, "of a step that is not durable");
    sync_ledger(w);
    say(w, T, TRAINER, version(4, 2));
    cr_expect_eq(count(w, T, TRAINER, PL_MSG_REJECT), 2);
    cr_expect_eq(count(w, W, 1, PL_MSG_VERSION), 1, "the record is not durable");
    sync_ledger(w);
    cr_assert_eq(count(w, W, 1, PL_MSG_VERSION), 2);
    cr_expect_eq(heard_nth(w, W, 1, PL_MSG_VERSION, 1).u.version.version, 4);
    hello(w, W, 2, "worker-2", 4);
    cr_expect_eq(heard(w, W, 2, PL_MSG_VERSION).u.version.version, 4);
    clear(w);
    wait_ms(w, 1000);
    cr_expect_eq(count(w, W, 1, PL_MSG_VERSION), 1, "again, until its STATUS shows it");
    status(w, 1, 4, 0);
    clear(w);
    wait_ms(w, 1500);
    cr_expect_eq(count(w, W, 1, PL_MSG_VERSION), 0);
    done(w);
}

Test(coordinator_ledger, a_version_that_comes_after_the_next_one_is_no_fault)
{
    world *w = with_results();
    say(w, T, TRAINER, version(3, 30));
    const uint64_t early = w->seq;
    say(w, T, TRAINER, version(3, 30));
    say(w, T, TRAINER, consume(5, 1, 2));
    sync_ledger(w);
    say(w, T, TRAINER, version(4, 2));
    sync_ledger(w);
    const uint64_t seq = w->seq;
    w->seq = early; /* the second VERSION of 3 is late, and comes twice */
    say(w, T, TRAINER, version(3, 30));
    w->seq = seq;
    cr_expect_eq(count(w, T, TRAINER, PL_MSG_REJECT), 0);
    hello(w, W, 2, "worker-2", 4);
    cr_expect_eq(heard(w, W, 2, PL_MSG_VERSION).u.version.version, 4);
    done(w);
}

Test(coordinator_ledger, the_run_ends_when_that_is_durable)
{
    world *w = with_results();
    say(w, T, TRAINER, (pl_msg){.h.type = PL_MSG_DONE, .u.step = {5}});
    cr_expect(!pl_coordinator_is_done(w->c));
    cr_expect_eq(count(w, W, 1, PL_MSG_STOP), 0);
    sync_ledger(w);
    cr_expect(pl_coordinator_is_done(w->c));
    cr_expect_eq(count(w, W, 1, PL_MSG_STOP), 1);
    cr_expect_eq(count(w, T, TRAINER, PL_MSG_STOP), 1);
    status(w, 1, 3, 0);
    cr_expect_eq(count(w, W, 1, PL_MSG_STOP), 2, "it did not hear it");
    restart(w);
    cr_expect(!pl_coordinator_is_done(w->c), "a trainer may go on behind the end");
    wait_ms(w, 30000);
    cr_expect(pl_coordinator_is_done(w->c));
    restart(w);
    hello(w, T, 902, "trainer", 0);
    say(w, T, 902, (pl_msg){.h.type = PL_MSG_DONE, .u.step = {5}});
    cr_expect(pl_coordinator_is_done(w->c));
    done(w);
}

/* ---- recovery ---- */

Test(coordinator_ledger, recovery_goes_on_without_the_trainer)
{
    world *w = with_batch(8);
    result(w, 1, 5, 100, 2);
    sync_ledger(w);
    result(w, 1, 5, 101, 2); /* not durable: lost with the power */
    restart(w);
    cr_expect_eq(pl_coordinator_epoch(w->c), 2);
    cr_expect_eq(stats(w).n_done, 1);
    cr_expect_eq(stats(w).n_pending, 3);
    hello(w, W, 1, "worker-1", 8);
    hello(w, W, 2, "worker-2", 8);
    const uint32_t running[] = {102}, held[] = {101};
    status_lists(w, 1, 3, 5, running, 1, held, 1);
    cr_expect_eq(stats(w).n_quarantined, 0);
    result(w, 1, 5, 101, 2);
    sync_ledger(w);
    cr_expect_eq(count(w, W, 1, PL_MSG_ACK), 1, "leased in an epoch before");
    for (int i = 0; i < count(w, W, 1, PL_MSG_LEASE); i++)
        cr_expect_neq(heard_nth(w, W, 1, PL_MSG_LEASE, i).u.lease.uid, 102, "it has that");
    status(w, 2, 3, 0);
    for (int i = 0; i < count(w, W, 2, PL_MSG_LEASE); i++)
        cr_expect_neq(heard_nth(w, W, 2, PL_MSG_LEASE, i).u.lease.uid, 102, "worker-1 has it");
    done(w);
}

Test(coordinator_ledger, what_an_earlier_epoch_may_have_leased_waits_for_its_worker)
{
    world *w = with_batch(8);
    restart(w);
    hello(w, T, 902, "trainer", 0);
    worker(w, 2, 3, 8); /* it has room, and is heard first */
    wait_ms(w, 2000);
    cr_expect_eq(count(w, W, 2, PL_MSG_LEASE), 0);
    const uint32_t running[] = {100, 102};
    hello(w, W, 1, "worker-1", 8);
    status_lists(w, 1, 3, 5, running, 2, NULL, 0);
    cr_expect_eq(count(w, W, 1, PL_MSG_REVOKE), 0);
    cr_expect_eq(stats(w).n_leased, 2, "it gets exactly that again");
    status(w, 2, 3, 0);
    wait_ms(w, 950);
    cr_expect_eq(stats(w).n_leased, 2);
    wait_ms(w, 50);
    cr_expect_eq(stats(w).n_leased, 4, "no longer than that");
    restart(w);
    hello(w, T, 902, "trainer", 0);
    worker(w, 2, 3, 8);
    for (uint32_t i = 0; i < 2; i++)
        say(w, T, 902, bed_group(6, 2, i, 2, 3));
    sync_ledger(w);
    cr_expect_eq(count(w, W, 2, PL_MSG_LEASE), 4, "nobody can have a new batch");
    done(w);
}

/* The places of the run are filled again: whoever had them is gone. */
Test(coordinator_ledger, what_an_earlier_epoch_may_have_leased_waits_for_no_more_than_the_places)
{
    world *w = with_batch(8);
    pl_coordinator_options o = bed_options();
    const uint32_t running[] = {100};

    o.n_workers = 2;
    pl_coordinator_free(w->c);
    packets_cut(&w->ledger, w->n_durable);
    packets_cut(&w->sent, 0);
    cr_assert_eq(start(w, &o), PL_OK);
    sync_ledger(w);
    hello(w, T, 902, "trainer", 0);
    worker(w, 2, 3, 8);
    wait_ms(w, 1000);
    cr_expect_eq(stats(w).n_leased, 0, "one place is empty");
    hello(w, W, 1, "worker-1", 8);
    status_lists(w, 1, 3, 5, running, 1, NULL, 0);
    wait_ms(w, 50);
    cr_expect_eq(stats(w).n_leased, 4);
    cr_expect_eq(count(w, W, 1, PL_MSG_REVOKE), 0, "what it runs stays its own");
    done(w);
}

Test(coordinator_ledger, a_batch_that_is_trained_again_has_its_results_and_rewards)
{
    world *w = with_results();
    reward(w, 101, 0.75f);
    sync_ledger(w);
    say(w, T, TRAINER, consume(5, 1, 2));
    sync_ledger(w);
    restart(w);
    hello(w, T, 902, "trainer", 0);
    worker(w, 1, 3, 8);
    for (int again = 0; again < 2; again++)
        for (uint32_t i = 0; i < 2; i++)
            say(w, T, 902, bed_group(5, 2, i, 2, 3));
    cr_assert_eq(count(w, T, 902, PL_MSG_RESULT), 4, "each once");
    for (int i = 0; i < 4; i++) {
        const pl_msg r = heard_nth(w, T, 902, PL_MSG_RESULT, i);
        cr_expect_eq(r.u.result.has_reward, r.u.result.uid == 101);
        cr_expect_float_eq(r.u.result.reward, r.u.result.uid == 101 ? 0.75f : 0, 0);
    }
    cr_expect_eq(count(w, W, 1, PL_MSG_LEASE), 0);
    cr_expect_eq(w->n_durable, w->ledger.n);
    done(w);
}

Test(coordinator_ledger, a_want_brings_its_batch_back_to_hand)
{
    world *w = with_batch(1);
    const uint64_t evaluation = (uint64_t)1 << 32 | 5;
    groups(w, evaluation, 1, 2, 3);
    sync_ledger(w);
    restart(w);
    wait_ms(w, 3000);
    hello(w, T, 902, "trainer", 0);
    worker(w, 1, 3, 1);
    cr_expect_eq(heard(w, W, 1, PL_MSG_LEASE).u.lease.batch, evaluation);
    clear(w);
    say(w, T, 902, (pl_msg){.h.type = PL_MSG_WANT, .u.uids = {5, {(const uint32_t[]){100}, 1}}});
    cr_expect_eq(heard(w, W, 1, PL_MSG_LEASE).u.lease.batch, 5);
    done(w);
}

Test(coordinator_ledger, what_a_checkpoint_holds_is_forgotten_and_stays_so)
{
    world *w = with_results();
    say(w, T, TRAINER, consume(5, 1, 2));
    sync_ledger(w);
    groups(w, (uint64_t)1 << 32 | 5, 1, 2, 3);
    groups(w, (uint64_t)1 << 32 | 6, 1, 2, 3);
    say(w, T, TRAINER, (pl_msg){.h.type = PL_MSG_CHECKPOINT, .u.step = {5}});
    sync_ledger(w);
    for (int again = 0; again < 2; again++) {
        clear(w);
        const uint32_t uid = 100;
        const uint64_t gone[] = {5, (uint64_t)1 << 32 | 5};
        for (int i = 0; i < 2; i++) {
            const text t = bed_text(gone[i], uid);
            say(w, W, 1, bed_result(gone[i], uid, 50, 3, &t));
            cr_expect_eq(count(w, W, 1, PL_MSG_REVOKE), i + 1, "batch %d is forgotten", i);
        }
        say(w, T, again ? 902 : TRAINER, consume(5, 9, 9));
        cr_expect_eq(count(w, T, again ? 902 : TRAINER, PL_MSG_REJECT), 1, "its CONSUME is not");
        restart(w);
        hello(w, T, 902, "trainer", 0);
        worker(w, 1, 3, 8);
    }
    done(w);
}

Test(coordinator_ledger, another_run_or_class_does_not_go_on_with_a_ledger)
{
    for (int kind = 0; kind < 2; kind++) {
        world *w = make();
        begin(w);
        pl_coordinator_free(w->c);
        pl_coordinator_options o = bed_options();
        if (kind)
            o.numeric_class = "class-b";
        else
            o.run = "ff";
        cr_expect_eq(start(w, &o), PL_E_CONFIG);
        done(w);
    }
}

Test(coordinator_ledger, a_ledger_that_contradicts_itself_is_refused)
{
    for (int kind = 0; kind < 5; kind++) {
        world *w = with_results();
        const text t = bed_text(5, 100);
        pl_msg m = bed_result(5, 100, 50, 3, &t); /* 0: a second result */
        if (kind == 1)
            m = bed_group(5, 2, 1, 2, 3);
        if (kind == 2)
            m = (pl_msg){.h.type = PL_MSG_REWARD, .u.reward = {.batch = 5, .uid = 200}};
        if (kind == 3)
            m = (pl_msg){.h.type = PL_MSG_WELCOME, .u.welcome = {.run = "x"}};
        if (kind == 4) {
            say(w, T, TRAINER, consume(5, 1, 2));
            m = consume(5, 1, 3);
        }
        packets_add(&w->ledger, packet_of(NULL, &m));
        pl_coordinator_free(w->c);
        const pl_coordinator_options o = bed_options();
        cr_expect_eq(start(w, &o), PL_E_FORMAT, "kind %d", kind);
        done(w);
    }
}

Test(coordinator_ledger, a_failed_record_ends_the_coordinator)
{
    world *w = with_batch(8);
    const text t = bed_text(5, 100);
    pl_msg m = bed_result(5, 100, 50, 3, &t);
    const pl_peer peer = bed_peer(W, 1);
    pl_error err = {0};
    m.h.epoch = 1;
    m.h.seq = 99;
    w->fails = 1;
    cr_expect_eq(pl_coordinator_message(w->c, w->now, &peer, &m, &err), PL_E_IO);
    cr_expect(strstr(err.msg, "disk full"));
    done(w);
}

Test(coordinator_ledger, the_stall_report_names_what_is_awaited_and_from_whom)
{
    world *w = with_batch(8);
    char *lines = NULL;
    size_t n = 0;
    wait_ms(w, 2000);
    FILE *f = open_memstream(&lines, &n);
    cr_assert_not_null(f);
    pl_coordinator_describe(w->c, w->now, f);
    fclose(f);
    cr_expect(strstr(lines, "sample 102 from worker-1 since 2.0 s"), "%s", lines);
    cr_expect(strstr(lines, "trainer trainer"), "%s", lines);
    free(lines);
    done(w);
}
