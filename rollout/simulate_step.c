/* rollout/simulate_step.c - a step: the trainer's side of it, and what is told of it afterwards. */
#include "rollout/simulate_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- the trainer ---- */

static pl_hash weights_of(uint64_t step)
{
    pl_hash h = {{0}};
    memcpy(h.b, &step, sizeof step);
    return h;
}

void sim_trainer_hear(pl_sim *s, const sim_note *n)
{
    switch (n->type) {
    case PL_MSG_WELCOME:
        s->is_joined = 1;
        break;
    case PL_MSG_RESULT:
        if (n->batch != s->step || n->uid >= (uint32_t)s->n_samples || s->state[n->uid])
            break;
        s->state[n->uid] = 1;
        s->msg.u.reward = (pl_msg_reward){.batch = n->batch, .uid = n->uid};
        sim_trainer_say(s, PL_MSG_REWARD);
        break;
    case PL_MSG_REWARD:
        if (n->batch != s->step || n->uid >= (uint32_t)s->n_samples || s->state[n->uid] != 1)
            break;
        s->state[n->uid] = 2;
        s->n_ready++;
        break;
    case PL_MSG_CONSUME:
        s->is_consumed = 1;
        break;
    default:
        break;
    }
}

static void say_groups(pl_sim *s)
{
    const pl_trace_step *t = s->recorded;
    const int n_groups = t->n_groups * s->o.scale;
    for (int g = 0; g < n_groups; g++) {
        const int of = g % t->n_groups, copy = g / t->n_groups;
        const uint64_t key = t->prompts ? t->prompts[of] : (uint64_t)of;
        s->msg.u.group = (pl_msg_group){.batch = s->step,
            .n_groups = (uint32_t)n_groups,
            .i_group = (uint32_t)g,
            .first_uid = (uint32_t)(g * t->n),
            .group = (uint32_t)g,
            .n = (uint32_t)t->n,
            .policy_version = (uint32_t)s->step,
            .sampling = {.max_tokens = t->sampling.max_tokens,
                .temperature = 1,
                .top_p = 1,
                .speculative = PL_SPECULATE_ON},
            .prompt_key = (key + (uint64_t)copy * 0x9e3779b97f4a7c15u) | 1,
            .prompt = {s->tokens, t->n_prompt[of]}};
        sim_trainer_say(s, PL_MSG_GROUP);
    }
}

static void say_version(pl_sim *s)
{
    s->msg.u.version = (pl_msg_version){.version = (uint32_t)s->step,
        .hash = weights_of(s->step - 1),
        .n_bytes = 1,
        .dir = "sim",
        .host = "sim",
        .endpoint = "sim"};
    sim_trainer_say(s, PL_MSG_VERSION);
}

/* ---- a step ---- */

static pl_status check_step(const pl_sim *s, const pl_trace_step *t, pl_error *err)
{
    const int64_t n = t->n_groups > 0 && t->n > 0 ? (int64_t)t->n_groups * t->n * s->o.scale : 0;
    if (n < 1 || n > PL_SIM_SAMPLES)
        return pl_fail(err, PL_E_SHAPE,
            "step %lld: %lld samples (%d prompts of %d samples, %d times), 1 to %d can be "
            "simulated",
            (long long)t->step, (long long)n, t->n_groups, t->n, s->o.scale, PL_SIM_SAMPLES);
    if (t->sampling.max_tokens < 1 || t->sampling.max_tokens > 110000)
        return pl_fail(err, PL_E_FORMAT, "step %lld: max_tokens %u is not in 1..110000",
            (long long)t->step, t->sampling.max_tokens);
    for (int g = 0; g < t->n_groups; g++)
        if (t->n_prompt[g] < 1 || t->n_prompt[g] > 1 << 17)
            return pl_fail(err, PL_E_FORMAT, "step %lld: a prompt of %u tokens is not in 1..%d",
                (long long)t->step, t->n_prompt[g], 1 << 17);
    for (int i = 0; i < t->n_groups * t->n; i++) {
        const pl_trace_sample *x = &t->samples[i];
        if (x->n_tokens < 1 || (uint32_t)x->n_tokens > t->sampling.max_tokens)
            return pl_fail(err, PL_E_FORMAT, "step %lld: sample %u has %d tokens, 1..%u can be",
                (long long)t->step, x->uid, x->n_tokens, t->sampling.max_tokens);
    }
    return PL_OK;
}

/* Zeros for every text and prompt. */
static pl_status make_texts(pl_sim *s, const pl_trace_step *t, pl_error *err)
{
    size_t n = t->sampling.max_tokens;
    for (int g = 0; g < t->n_groups; g++)
        n = t->n_prompt[g] > n ? t->n_prompt[g] : n;
    if (n <= s->room_tokens)
        return PL_OK;
    free(s->tokens);
    free(s->logprobs);
    free(s->sources);
    s->room_tokens = 0;
    s->tokens = calloc(n, sizeof *s->tokens);
    s->logprobs = calloc(n, sizeof *s->logprobs);
    s->sources = calloc(n, 1);
    if (!s->tokens || !s->logprobs || !s->sources)
        return pl_fail(err, PL_E_NOMEM, "simulation: no memory for a text of %zu tokens", n);
    s->room_tokens = n;
    return PL_OK;
}

static pl_status open_step(pl_sim *s, const pl_trace_step *t, pl_sim_result *out, pl_error *err)
{
    pl_status st = check_step(s, t, err);
    if (st == PL_OK)
        st = make_texts(s, t, err);
    if (st == PL_OK)
        st = sim_costs_begin(s, t, err);
    if (st != PL_OK)
        return st;
    s->n_samples = t->n_groups * t->n * s->o.scale;
    if (s->n_samples > s->room_state) {
        uint8_t *state = realloc(s->state, (size_t)s->n_samples);
        if (!state)
            return pl_fail(err, PL_E_NOMEM, "simulation: no memory for %d samples", s->n_samples);
        s->state = state;
        s->room_state = s->n_samples;
    }
    memset(s->state, 0, (size_t)s->n_samples);
    *out = (pl_sim_result){.n_workers = s->o.n_workers,
        .n_samples = s->n_samples,
        .recorded_gen_s = t->gen_s,
        .recorded_step_s = t->step_s};
    s->recorded = t;
    s->out = out;
    s->n_ready = s->is_consumed = s->n_changes = 0;
    s->begin_ns = s->now_ns;
    s->step++;
    for (int i = 0; i < s->o.n_workers; i++) {
        sim_worker *w = &s->workers[i];
        w->busy_ns = w->session_ns = w->worked_ns = w->n_rounds = 0;
        /* The update was longer than the rest between two STATUS. */
        if (s->now_ns - w->status_ns < SIM_STATUS_MS * 1000000LL)
            w->status_ns = s->now_ns - SIM_STATUS_MS * 1000000LL;
    }
    return PL_OK;
}

/* Means over equal parts of the rollout. */
static void draw_strip(const pl_sim *s, pl_sim_result *out)
{
    const int64_t all_ns = s->now_ns - s->begin_ns;
    double busy[PL_SIM_STRIP] = {0}, training[PL_SIM_STRIP] = {0};
    int n_busy = 0, n_training = 0;
    int64_t at = 0;
    if (all_ns < 1)
        return;
    for (int k = 0; k <= s->n_changes; k++) {
        const int64_t to = k < s->n_changes ? s->changes[k].at_ns - s->begin_ns : all_ns;
        while (at < to) { /* one part at a time; whole numbers, so that each moment is in one */
            const int64_t i = at * PL_SIM_STRIP / all_ns;
            int64_t end = ((i + 1) * all_ns + PL_SIM_STRIP - 1) / PL_SIM_STRIP;
            end = end < to ? end : to;
            busy[i] += (double)(end - at) * n_busy;
            training[i] += (double)(end - at) * n_training;
            at = end;
        }
        n_busy += k < s->n_changes ? s->changes[k].busy : 0;
        n_training += k < s->n_changes ? s->changes[k].training : 0;
    }
    const double part = (double)all_ns / PL_SIM_STRIP * s->o.n_workers;
    for (int i = 0; i < PL_SIM_STRIP; i++) {
        out->busy[i] = (float)(busy[i] / part);
        out->training[i] = (float)(training[i] / part);
    }
}

/* The last sample has its reward. */
static void close_rollout(pl_sim *s, const pl_coordinator_stats *before, pl_sim_result *out)
{
    int64_t first_ns = s->now_ns, busy_ns = 0, session_ns = 0;
    double n_trained = 0;
    pl_coordinator_stats now;
    draw_strip(s, out);
    for (int i = 0; i < s->o.n_workers; i++) {
        sim_worker *w = &s->workers[i];
        sim_set_mode(s, w, SIM_IDLE); /* who trains is halted a moment later */
        if (w->worked_ns && w->worked_ns < first_ns)
            first_ns = w->worked_ns;
        out->longest_rounds = fmax(out->longest_rounds, (double)w->n_rounds);
        out->n_rounds += w->n_rounds;
        busy_ns += w->busy_ns;
        session_ns += w->session_ns;
    }
    pl_coordinator_get_stats(s->c, &now);
    out->n_done = s->n_ready;
    out->n_sessions = (int)(now.n_sessions - before->n_sessions);
    out->n_handed = (int)(now.n_handovers - before->n_handovers);
    for (int i = 0; i < s->n_recorded; i++)
        n_trained +=
            s->recorded->samples[i].n_tokens + (double)s->recorded->n_prompt[i / s->recorded->n];
    for (int i = 0; i < s->n_recorded; i++)
        out->n_tokens += (int64_t)s->recorded->samples[i].n_tokens * s->o.scale;
    out->gen_s = (double)(s->now_ns - s->begin_ns) * 1e-9;
    out->busy_s = (double)busy_ns * 1e-9;
    out->session_s = (double)session_ns * 1e-9;
    out->idle_s = s->o.n_workers * out->gen_s - out->busy_s - out->session_s;
    out->tail_s = (double)(s->now_ns - first_ns) * 1e-9;
    out->update_s = n_trained * s->o.scale * s->costs->update_s;
    out->rest_s = s->costs->rest_s;
    out->step_s = out->gen_s + out->update_s + out->rest_s;
}

static pl_status consume(pl_sim *s, pl_error *err)
{
    s->msg.u.consume = (pl_msg_consume){.step = s->step,
        .batch = s->step,
        .n_samples = (uint32_t)s->n_samples,
        .weights = weights_of(s->step)};
    sim_trainer_say(s, PL_MSG_CONSUME);
    const pl_status st = sim_pass_time(s, &s->is_consumed, 1, err);
    if (st != PL_OK)
        return st;
    s->msg.u.step.step = s->step; /* nobody asks for it again */
    sim_trainer_say(s, PL_MSG_CHECKPOINT);
    if (s->status != PL_OK && err)
        *err = s->err;
    return s->status;
}

pl_status pl_sim_step(pl_sim *s, const pl_trace_step *step, pl_sim_result *out, pl_error *err)
{
    pl_coordinator_stats before;
    pl_status st = open_step(s, step, out, err);
    if (st != PL_OK)
        return st;
    pl_coordinator_get_stats(s->c, &before);
    say_version(s);
    say_groups(s);
    st = sim_pass_time(s, &s->n_ready, s->n_samples, err);
    if (st == PL_OK) {
        close_rollout(s, &before, out);
        s->out = NULL;
        st = consume(s, err);
    }
    s->out = NULL;
    s->recorded = NULL;
    return st;
}
