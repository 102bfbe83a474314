/* Claims tested: the simulator gives the same result every time; every sample is done, with the
 * tokens of the record; seconds of workers add up; one worker takes the sum of its rounds; more
 * workers are faster when rows cost alike; the production coordinator's sessions and handovers
 * happen in it; steps that no run writes are refused.
 *
 * Steps are made here; a pass costs what make_step is told: base + slope * rows. */
#include "core/rng.h"
#include "rollout/simulate.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { GROUPS = 4, SIBLINGS = 4, SAMPLES = GROUPS * SIBLINGS, COSTS = 32, MOST = 256 };

typedef struct made {
    pl_trace_step step;
    pl_trace_sample samples[SAMPLES];
    uint8_t sources[MOST];
    uint64_t prompts[GROUPS];
    uint32_t n_prompt[GROUPS];
    pl_trace_cost costs[COSTS];
    pl_sim_costs fitted;
} made;

static const char *const names[] = {"worker-0"};

/* same: all lengths are 64, else they are between 8 and 200. */
static made *make_step(double base, double slope, int same)
{
    made *m = calloc(1, sizeof *m);
    pl_error err = {0};
    cr_assert_not_null(m);
    for (int i = 0; i < SAMPLES; i++) {
        const int n = same ? 64 : 8 + (int)(pl_noise_word(3, (uint32_t)i, 0, 0, 0) % 192);
        m->samples[i] = (pl_trace_sample){.uid = (uint32_t)i, .n_tokens = n, .steps = (uint32_t)n};
    }
    for (int g = 0; g < GROUPS; g++) {
        m->prompts[g] = 1000 + (uint64_t)g;
        m->n_prompt[g] = 8; /* all of them fit a pass that was measured */
    }
    for (uint32_t i = 0; i < COSTS; i++) {
        const uint32_t rows = 1 + 2 * i;
        m->costs[i] = (pl_trace_cost){0, rows, 1000, 1000 * (base + slope * rows)};
    }
    m->step = (pl_trace_step){.step = 1,
        .n_groups = GROUPS,
        .n = SIBLINGS,
        .sampling = {.max_tokens = MOST, .temperature = 1},
        .prompts = m->prompts,
        .n_prompt = m->n_prompt,
        .gen_s = 1,
        .update_s = 2,
        .step_s = 4,
        .n_workers = 1,
        .workers = names,
        .n_costs = COSTS,
        .costs = m->costs,
        .samples = m->samples};
    pl_sim_costs_add(&m->fitted, &m->step);
    cr_assert_eq(pl_sim_costs_fit(&m->fitted, &err), PL_OK, "%s", err.msg);
    return m;
}

static pl_sim_options options(int n_workers)
{
    pl_sim_options o;
    pl_sim_defaults(&o);
    o.n_workers = n_workers;
    return o;
}

static pl_sim_result simulate(const made *m, const pl_sim_options *o, int n_steps)
{
    pl_sim *s = NULL;
    pl_sim_result r = {0};
    pl_error err = {0};
    cr_assert_eq(pl_sim_new(&s, o, &m->fitted, NULL, &err), PL_OK, "%s", err.msg);
    for (int i = 0; i < n_steps; i++)
        cr_assert_eq(pl_sim_step(s, &m->step, &r, &err), PL_OK, "%s", err.msg);
    pl_sim_free(s);
    return r;
}

/* Every sample drafts two rows a round and has one of them accepted. */
static void draft(made *m)
{
    for (int i = 0; i < SAMPLES; i++) {
        pl_trace_sample *x = &m->samples[i];
        x->steps = 1 + (uint32_t)(x->n_tokens - 1) / 2;
        x->draft = 2 * (x->steps - 1);
        x->accepted = x->steps - 1;
    }
}

Test(simulate, gives_the_same_result_every_time, .timeout = 30)
{
    made *m = make_step(0.01, 0.001, 0);
    draft(m);
    for (int rows = PL_SIM_RECORDED; rows <= PL_SIM_OFF; rows++) {
        pl_sim_options o = options(3);
        o.rows = (pl_sim_rows)rows;
        o.fixed_rows = 3;
        o.spot_min_idle = 1;
        o.consolidate_below = 3;
        const pl_sim_result a = simulate(m, &o, 2), b = simulate(m, &o, 2);
        cr_assert_eq(memcmp(&a.step_s, &b.step_s, sizeof a.step_s), 0);
        cr_assert_eq(memcmp(&a.idle_s, &b.idle_s, sizeof a.idle_s), 0);
        cr_assert_eq(a.n_rounds, b.n_rounds);
        cr_assert_eq(a.n_messages, b.n_messages);
        cr_assert_eq(memcmp(a.busy, b.busy, sizeof a.busy), 0);
    }
    free(m);
}

Test(simulate, every_sample_is_done_with_the_tokens_of_the_record, .timeout = 30)
{
    made *m = make_step(0.01, 0.001, 0);
    int64_t n = 0;
    draft(m);
    for (int i = 0; i < SAMPLES; i++)
        n += m->samples[i].n_tokens;
    for (int rows = PL_SIM_RECORDED; rows <= PL_SIM_OFF; rows++) {
        pl_sim_options o = options(2);
        o.rows = (pl_sim_rows)rows;
        o.fixed_rows = 3;
        o.scale = 3;
        o.max_num_seqs = 4; /* some wait for a place */
        const pl_sim_result r = simulate(m, &o, 1);
        cr_assert_eq(r.n_done, 3 * SAMPLES);
        cr_assert_eq(r.n_tokens, 3 * n);
        cr_assert_eq(r.n_emitted, 3 * n, "%lld tokens of rounds, %lld recorded",
            (long long)r.n_emitted, (long long)(3 * n));
    }
    free(m);
}

Test(simulate, one_worker_takes_the_sum_of_its_rounds, .timeout = 30)
{
    made *m = make_step(0.01, 0, 1);
    pl_sim_options o = options(1);
    o.latency_s = o.fsync_s = 0;
    const pl_sim_result r = simulate(m, &o, 1);
    /* A round for the prompts; the first token of each is drawn beside the next row. */
    cr_assert_eq(r.n_rounds, 1 + 63, "%lld", (long long)r.n_rounds);
    cr_assert_float_eq(r.busy_s, 64 * 0.01, 1e-4, "%g", r.busy_s);
    cr_assert_float_eq(r.gen_s, r.busy_s, 0.05, "%g, busy %g", r.gen_s, r.busy_s);
    cr_assert_float_eq(r.step_s, r.gen_s + 2 + 1, 1e-9);
    free(m);
}

Test(simulate, tokens_a_round_are_the_recorded_ones, .timeout = 30)
{
    made *m = make_step(0.01, 0, 1);
    for (int i = 1; i < MOST; i++) /* the first token, then rounds of three */
        m->sources[i] = i % 3 ? PL_SOURCE_SUFFIX : PL_SOURCE_TARGET;
    for (int i = 0; i < SAMPLES; i++)
        m->samples[i].source = m->sources;
    const pl_sim_options o = options(1);
    const pl_sim_result r = simulate(m, &o, 1);
    cr_assert_eq(r.n_rounds, 1 + 63 / 3, "%lld", (long long)r.n_rounds);
    free(m);
}

Test(simulate, more_workers_are_faster_when_rows_cost_alike, .timeout = 30)
{
    made *m = make_step(1e-6, 0.005, 0);
    double before = INFINITY;
    for (int n = 1; n <= 16; n *= 2) {
        const pl_sim_options o = options(n);
        const pl_sim_result r = simulate(m, &o, 1);
        cr_assert(r.gen_s < before, "%d workers: %g s, half of them %g s", n, r.gen_s, before);
        before = r.gen_s;
    }
    free(m);
}

Test(simulate, seconds_of_workers_add_up, .timeout = 30)
{
    made *m = make_step(0.02, 0.001, 0);
    pl_sim_options o = options(5);
    o.spot_min_idle = 1;
    o.optimizer_step_s = 0.01;
    const pl_sim_result r = simulate(m, &o, 1);
    double busy = 0, training = 0;
    for (int i = 0; i < PL_SIM_STRIP; i++) {
        busy += (double)r.busy[i] / PL_SIM_STRIP;
        training += (double)r.training[i] / PL_SIM_STRIP;
        cr_assert(r.busy[i] + r.training[i] < 1.0001f && r.busy[i] >= 0 && r.training[i] >= 0);
    }
    cr_assert(r.idle_s >= 0 && r.busy_s > 0 && r.session_s > 0);
    cr_assert_float_eq(r.busy_s + r.session_s + r.idle_s, 5 * r.gen_s, 1e-6);
    cr_assert_float_eq(busy * 5 * r.gen_s, r.busy_s, 1e-3 * r.busy_s);
    cr_assert_float_eq(training * 5 * r.gen_s, r.session_s, 1e-3 * r.session_s);
    cr_assert(r.tail_s > 0 && r.tail_s < r.gen_s);
    free(m);
}

Test(simulate, idle_workers_train_when_sessions_are_on, .timeout = 30)
{
    made *m = make_step(0.02, 0.001, 0);
    pl_sim_options o = options(4);
    o.optimizer_step_s = 0.05;
    const pl_sim_result without = simulate(m, &o, 1);
    cr_assert_eq(without.n_sessions + without.n_drafter_steps, 0);
    cr_assert_eq(without.session_s, 0);
    o.spot_min_idle = 1;
    const pl_sim_result with = simulate(m, &o, 1);
    cr_assert_eq(with.n_sessions, 1);
    cr_assert(with.idle_s < without.idle_s && with.session_s > 0);
    cr_assert(with.n_drafter_steps > 0 &&
              (double)with.n_drafter_steps <= with.tail_s / o.optimizer_step_s);
    o.slowdown = 2; /* of the others' passes meanwhile */
    cr_assert(simulate(m, &o, 1).gen_s > with.gen_s * 1.05);
    free(m);
}

Test(simulate, the_last_samples_are_put_together_below_the_threshold, .timeout = 30)
{
    made *m = make_step(0.05, 1e-4, 0); /* rows are nearly free: others can be idle for nothing */
    pl_sim_options o = options(4);
    const pl_sim_result apart = simulate(m, &o, 1);
    o.consolidate_below = 8;
    const pl_sim_result together = simulate(m, &o, 1);
    cr_assert_eq(apart.n_handed, 0);
    cr_assert(together.n_handed > 0);
    cr_assert_eq(together.n_done, SAMPLES);
    cr_assert(together.busy_s < apart.busy_s, "busy %g, apart %g", together.busy_s, apart.busy_s);
    cr_assert(together.n_emitted >= together.n_tokens); /* the last known token is drawn again */
    cr_assert(together.n_emitted <= together.n_tokens + together.n_handed);
    free(m);
}

Test(simulate, the_controller_drafts_where_it_pays, .timeout = 60)
{
    made *cheap = make_step(0.02, 1e-6, 1), *dear = make_step(1e-6, 0.02, 1);
    draft(cheap);
    draft(dear);
    cheap->fitted = dear->fitted = (pl_sim_costs){0};
    pl_sim_costs_add(&cheap->fitted, &cheap->step);
    pl_sim_costs_add(&dear->fitted, &dear->step);
    cr_assert_eq(pl_sim_costs_fit(&cheap->fitted, NULL), PL_OK);
    cr_assert_eq(pl_sim_costs_fit(&dear->fitted, NULL), PL_OK);
    pl_sim_options o = options(1);
    o.rows = PL_SIM_GOODPUT;
    const pl_sim_result a = simulate(cheap, &o, 1), b = simulate(dear, &o, 1);
    cr_assert(a.n_drafted > 0 && a.n_rounds < b.n_rounds, "%g drafted, %lld and %lld rounds",
        a.n_drafted, (long long)a.n_rounds, (long long)b.n_rounds);
    cr_assert_eq(b.n_drafted, 0, "%g", b.n_drafted);
    o.acceptance = 0;
    cr_assert(simulate(cheap, &o, 1).n_rounds >= b.n_rounds);
    free(cheap);
    free(dear);
}

Test(simulate, settled_costs_give_the_recorded_seconds, .timeout = 30)
{
    made *m = make_step(0.01, 0.001, 0);
    const pl_sim_options o = options(1);
    for (int i = 0; i < 2; i++) { /* a run that took longer, and one that took less */
        const double recorded = i ? 1.0 : 5.0;
        m->fitted.round_s = 0;
        m->fitted.factor = 1;
        const pl_sim_result r = simulate(m, &o, 1);
        pl_sim_costs_settle(&m->fitted, recorded, r.gen_s, r.longest_rounds);
        const double again = simulate(m, &o, 1).gen_s;
        cr_assert_float_eq(again, recorded, 0.02 * recorded, "%g s, recorded %g", again, recorded);
    }
    free(m);
}

Test(simulate, a_thousand_workers_finish_a_step, .timeout = 60)
{
    made *m = make_step(0.02, 0.001, 0);
    pl_sim_options o = options(1000);
    o.scale = 150;
    o.spot_min_idle = 1;
    o.consolidate_below = 64;
    const pl_sim_result r = simulate(m, &o, 1);
    cr_assert_eq(r.n_done, 150 * SAMPLES);
    cr_assert_float_eq(r.busy_s + r.session_s + r.idle_s, 1000 * r.gen_s, 1e-4);
    cr_assert_eq(r.n_sessions, 1);
    free(m);
}

Test(simulate, refuses_what_no_run_writes, .timeout = 30)
{
    made *m = make_step(0.01, 0.001, 0);
    pl_sim_options o = options(1);
    pl_sim *s = NULL;
    pl_sim_result r;
    pl_error err = {0};
    cr_assert_eq(pl_sim_new(&s, &o, &m->fitted, NULL, &err), PL_OK, "%s", err.msg);
    m->samples[3].n_tokens = MOST + 1;
    cr_assert_eq(pl_sim_step(s, &m->step, &r, &err), PL_E_FORMAT);
    cr_assert(strstr(err.msg, "sample 3"), "%s", err.msg);
    m->samples[3].n_tokens = 1;
    m->step.sampling.max_tokens = 0;
    cr_assert_eq(pl_sim_step(s, &m->step, &r, &err), PL_E_FORMAT);
    m->step.sampling.max_tokens = MOST;
    m->n_prompt[1] = 0;
    cr_assert_eq(pl_sim_step(s, &m->step, &r, &err), PL_E_FORMAT);
    m->n_prompt[1] = 8;
    cr_assert_eq(pl_sim_step(s, &m->step, &r, &err), PL_OK, "%s", err.msg); /* it goes on */
    pl_sim_free(s);
    o.n_workers = PL_SIM_WORKERS + 1;
    cr_assert_eq(pl_sim_new(&s, &o, &m->fitted, NULL, &err), PL_E_INVAL);
    const pl_sim_costs none = {0};
    pl_sim_costs unfit = none;
    cr_assert_eq(pl_sim_costs_fit(&unfit, &err), PL_E_FORMAT);
    free(m);
}
