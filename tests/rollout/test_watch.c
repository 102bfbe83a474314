/* Claims tested: what who watches is told is how the coordinator stands: samples by state, lengths,
 * steps, versions, workers that came and went, and what is awaited, from whom. */
#include "tests/rollout/coordinator_world.h"

static pl_coordinator_view look(const world *w)
{
    pl_coordinator_view v;
    pl_coordinator_watch(w->c, w->now, &v);
    return v;
}

typedef struct seen {
    int n_workers, n_running, n_done;
    uint32_t tokens_running, tokens_done;
    pl_coordinator_worker last;
    char name[64];
} seen;

static void see_worker(void *ctx, const pl_coordinator_worker *k)
{
    seen *s = ctx;
    s->n_workers++;
    s->last = *k;
    snprintf(s->name, sizeof s->name, "%s", k->name);
}

static void see_length(void *ctx, uint32_t n_tokens, int is_done)
{
    seen *s = ctx;
    s->n_done += is_done;
    s->n_running += !is_done;
    *(is_done ? &s->tokens_done : &s->tokens_running) += n_tokens;
}

static seen see(const world *w)
{
    seen s = {0};
    pl_coordinator_each_worker(w->c, see_worker, &s);
    pl_coordinator_each_length(w->c, see_length, &s);
    return s;
}

Test(watch, awaits_a_trainer_then_a_worker_then_prompts)
{
    world *w = make();
    begin(w);
    cr_expect_str_eq(look(w).awaited, "a trainer");
    cr_expect_not(look(w).has_batch);
    hello(w, T, TRAINER, "trainer", 0);
    cr_expect_str_eq(look(w).awaited, "a worker");
    worker(w, 1, 3, 4);
    cr_expect_str_eq(look(w).awaited, "the first prompts from the trainer");
    cr_expect_eq(look(w).n_workers, 1);
    done(w);
}

Test(watch, counts_samples_lengths_and_leases_while_a_batch_is_rolled_out)
{
    world *w = with_batch(3); /* four samples, three of them leased */
    const text t = bed_text(5, 101);
    const uint32_t held[] = {100};

    say(w, W, 1, progress(101, &t, 0, 2));
    result(w, 1, 5, 100, 2);
    sync_ledger(w);
    status_lists(w, 1, 3, 5, (uint32_t[]){101, 102}, 2, held, 1);
    w->now += 2000 * MS;
    const pl_coordinator_view v = look(w);
    cr_expect(v.has_batch && v.batch == 5 && v.n_samples == 4);
    cr_expect_eq(v.n_done, 1);
    cr_expect_eq(v.n_done + v.n_running + v.n_queued, 4);
    cr_expect_not(v.is_complete);
    cr_expect(strstr(v.awaited, " samples; longest: sample 10") && strstr(v.awaited, "worker-1"),
        "%s", v.awaited);
    const seen s = see(w);
    cr_expect_eq(s.n_workers, 1);
    cr_expect_eq((uint32_t)s.n_running, v.n_running);
    cr_expect_eq(s.n_done, 1);
    cr_expect_eq(s.tokens_running, 2);
    cr_expect_eq(v.n_tokens, s.tokens_running + s.tokens_done);
    cr_expect_str_eq(s.name, "worker-1");
    cr_expect(s.last.state == PL_WORKER_BUSY && s.last.n_held == 1 && s.last.policy_version == 3);
    cr_expect_eq(s.last.n_leased, v.n_running);
    done(w);
}

Test(watch, follows_a_step_from_its_last_result_to_its_end)
{
    world *w = with_batch(8);

    for (uint32_t uid = 100; uid < 104; uid++)
        result(w, 1, 5, uid, 2);
    cr_expect_not(look(w).is_complete, "not durable yet");
    sync_ledger(w);
    cr_expect(look(w).is_complete);
    cr_expect_eq(look(w).n_rewarded, 0);
    say(w, T, TRAINER,
        (pl_msg){.h.type = PL_MSG_REWARD, .u.reward = {.batch = 5, .uid = 101, .score = 1}});
    sync_ledger(w);
    cr_expect_eq(look(w).n_rewarded, 1);
    cr_expect_str_eq(look(w).awaited, "3 of 4 rewards from the trainer");
    cr_expect_not(look(w).is_consumed);
    say(w, T, TRAINER, consume(5, 1, 2));
    cr_expect_not(look(w).is_consumed, "not durable yet");
    sync_ledger(w);
    cr_expect(look(w).is_consumed);
    cr_expect_eq(look(w).step, 5);
    say(w, T, TRAINER, version(4, 2));
    sync_ledger(w);
    cr_expect_eq(look(w).policy_version, 4);
    cr_expect_str_eq(look(w).awaited, "the trainer");
    done(w);
}

Test(watch, tells_lost_workers_apart)
{
    world *w = with_batch(8);
    wait_ms(w, 30000);
    cr_expect_eq(look(w).n_workers, 0);
    cr_expect_eq(look(w).n_lost, 2, "the trainer is silent too");
    const seen s = see(w);
    cr_expect_eq(s.n_workers, 1);
    cr_expect_eq(s.last.state, PL_WORKER_LOST);
    cr_expect_eq(look(w).n_queued, 4);
    done(w);
}
