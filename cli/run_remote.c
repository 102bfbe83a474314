/* cli/run_remote.c - rollouts by workers behind the coordinator: the policy trainer's side.
 *
 * Every message may be lost: what is not answered is said again each second, and every handler may
 * run twice.  A sample is ready when its result came from the ledger and its reward stands there.
 */
#include "cli/run_wire.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/rng.h"

#include <stdlib.h>
#include <string.h>

enum { REWARD_WAIT_MS = 5 };

/* How far a sample of the batch at hand is. */
enum { AWAITED, HAVE_RESULT, SENT_REWARD, READY };

/* What is known of a sample's results: uid and attempt name one. */
typedef struct refusal {
    uint32_t attempt;        /* of the result at hand; of those that are still taken the first */
    uint32_t code, position; /* why the one before was refused */
} refusal;

typedef struct remote {
    run_wire w;
    run_scorer *scorer;
    unsigned char *state; /* [total] of the batch at hand */
    refusal *refused;     /* [total] */
    uint64_t batch;       /* its id; UINT64_MAX: none */
    int n_ready;
    int has_begun;         /* a step of training, in this process */
    pl_msg_batch progress; /* what the coordinator last said of it */
    pl_msg_batch counted;  /* its counters as they were last looked at */
    uint64_t counted_epoch;
    run_events events; /* since the last step */
    double groups_at, want_at;
    run_figures figures; /* of the batch at hand */
    int is_collected;
    double moved_at, told_at; /* a result or a reward came; the stall was reported */
    int moved;                /* how many there were then */
} remote;

/* A coordinator that began anew may have another batch at hand. */
static pl_status listen(remote *r, int timeout_ms, pl_msg *m, pl_error *err)
{
    const pl_status st = run_wire_listen(&r->w, timeout_ms, m, err);

    if (r->w.is_anew) {
        r->w.is_anew = 0;
        r->w.version_at = r->groups_at = 0;
        memset(&r->progress, 0, sizeof r->progress);
    }
    return st;
}

static pl_status begin(void *self, uint32_t version, pl_error *err)
{
    remote *r = self;
    const pl_status st = run_wire_publish(&r->w, version, err);
    if (st == PL_OK)
        run_wire_say_version(&r->w);
    return st;
}

/* ---- what workers tell of the drafter ---- */

static void on_drafter(void *ctx, const pl_msg *m)
{
    remote *r = ctx;

    if (!r->scorer->batch)
        return;
    if (m->h.type == PL_MSG_DRAFTER) {
        run_figures_version(&r->figures, &r->w, &m->u.drafter);
    } else if (m->u.drafting.batch == r->batch && r->scorer->batch->responses) {
        run_figures_take(&r->figures, &m->u.drafting);
        if (r->is_collected)
            run_figures_sum(&r->figures, r->scorer->batch);
    }
}

/* ---- a batch ---- */

static void say_groups(remote *r, const run_batch *b, const run_sampling *s)
{
    for (int g = 0; g < b->n_groups; g++) {
        const pl_prompt *p = b->prompts[g];
        const uint32_t first = b->first_uid + (uint32_t)(g * b->n);
        pl_msg m = {.u.group = {.batch = b->id,
                        .n_groups = (uint32_t)b->n_groups,
                        .i_group = (uint32_t)g,
                        .first_uid = first,
                        .group = first / (uint32_t)b->n,
                        .n = (uint32_t)b->n,
                        .policy_version = r->w.version,
                        .sampling = {.max_tokens = (uint32_t)s->max_tokens,
                            .temperature = s->temperature,
                            .top_p = s->top_p,
                            .min_p = s->min_p,
                            .top_k = (uint32_t)s->top_k,
                            .noise_key = pl_noise_key(s->seed),
                            .purpose = s->purpose,
                            .ignore_eos = (uint32_t)s->ignore_eos,
                            .speculative = (uint32_t)s->speculative},
                        .prompt_key = run_prompt_key(p, s),
                        .prompt = {p->ids, (uint32_t)p->n_ids}}};
        run_wire_say(&r->w, &m, PL_MSG_GROUP);
    }
}

static void say_reward(remote *r, int i)
{
    const run_batch *b = r->scorer->batch;
    pl_msg m = {.u.reward = {.batch = b->id,
                    .uid = b->first_uid + (uint32_t)i,
                    .score = b->samples[i].reward,
                    .mark = b->marks[i],
                    .attempt = r->refused[i].attempt}};
    run_wire_say(&r->w, &m, PL_MSG_REWARD);
}

static void ready(remote *r, int i)
{
    if (r->state[i] != READY)
        r->n_ready++;
    r->state[i] = READY;
}

/* Training rewards must stand in the ledger; held-out ones serve a figure only. */
static pl_status on_scored(void *ctx, int i, pl_error *err)
{
    remote *r = ctx;

    (void)err;
    if (r->state[i] != HAVE_RESULT)
        return PL_OK;
    if (r->batch >> 32 != RUN_TRAIN) {
        ready(r, i);
        return PL_OK;
    }
    r->state[i] = SENT_REWARD;
    say_reward(r, i);
    return PL_OK;
}

static int index_of(const remote *r, uint64_t batch, uint32_t uid)
{
    const run_batch *b = r->scorer->batch;
    const uint32_t i = uid - b->first_uid;
    return batch == b->id && i < (uint32_t)(b->n_groups * b->n) ? (int)i : -1;
}

static void say_refuse(remote *r, int i)
{
    const run_batch *b = r->scorer->batch;
    const refusal *x = &r->refused[i];
    char reason[96], where[32] = "the whole";

    if (x->position != UINT32_MAX)
        snprintf(where, sizeof where, "token %u", x->position);
    snprintf(reason, sizeof reason, "%s: %s", pl_audit_name((pl_audit)x->code), where);
    pl_msg m = {.u.refuse = {.batch = b->id,
                    .uid = b->first_uid + (uint32_t)i,
                    .code = x->code,
                    .reason = reason,
                    .attempt = x->attempt - 1,
                    .position = x->position}};
    run_wire_say(&r->w, &m, PL_MSG_REFUSE);
}

static pl_status take_result(
    remote *r, const pl_msg_result *x, const run_sampling *s, pl_error *err)
{
    run_batch *b = r->scorer->batch;
    const int i = index_of(r, x->batch, x->uid);

    if (i < 0 || r->state[i] != AWAITED || x->policy_version != r->w.version || x->tokens.n < 1 ||
        x->tokens.n > (uint32_t)s->max_tokens)
        return PL_OK;                         /* late, doubled, or not ours */
    if (x->attempt < r->refused[i].attempt) { /* refused: late, or the REFUSE was lost */
        say_refuse(r, i);
        return PL_OK;
    }
    const pl_prompt *p = b->prompts[i / b->n];
    const pl_response response = {.uid = x->uid,
        .group = x->uid / (uint32_t)b->n,
        .n_prompt = p->n_ids,
        .prompt = p->ids,
        .n_tokens = (int)x->tokens.n,
        /* the spans are not aligned, and memcpy does not mind */
        .tokens = (int32_t *)(uintptr_t)x->tokens.data,
        .logprobs = (float *)(uintptr_t)x->logprobs.data,
        .token_source = (uint8_t *)(uintptr_t)x->sources.data,
        .finish = (pl_finish)x->finish,
        .policy_version = x->policy_version,
        .spec_num_draft_tokens = (int)x->draft,
        .spec_num_accepted_tokens = (int)x->accepted,
        .spec_num_verify_steps = (int)x->steps,
        .temperature = s->temperature};
    pl_status st = run_batch_keep(b, &response, err);
    if (st != PL_OK)
        return st;
    b->workers[i] = (uint16_t)run_batch_worker(b, x->worker);
    r->state[i] = HAVE_RESULT;
    r->refused[i].attempt = x->attempt;
    r->want_at = run_seconds();
    if (!x->has_reward)
        return run_score(r->scorer, i, err);
    st = run_decode(r->scorer, i, err);
    b->samples[i].reward = x->reward;
    b->marks[i] = (unsigned char)x->reward_mark;
    ready(r, i);
    return st;
}

static void take_reward(remote *r, const pl_msg_reward *x)
{
    run_batch *b = r->scorer->batch;
    const int i = index_of(r, x->batch, x->uid);

    if (i < 0 || r->state[i] != SENT_REWARD || x->attempt != r->refused[i].attempt)
        return;
    b->samples[i].reward = x->score; /* the first one in the ledger stands */
    b->marks[i] = (unsigned char)x->mark;
    ready(r, i);
}

/* What was said and not answered. */
static pl_status say_again(remote *r, const run_batch *b, const run_sampling *s, pl_error *err)
{
    const int total = b->n_groups * b->n;
    const int idle = r->progress.n_running == 0; /* perhaps nobody knows the version */
    uint32_t *uids;
    uint32_t n = 0;

    if (!r->w.welcomed)
        return PL_OK;
    if (r->progress.n_groups_known < (uint32_t)b->n_groups &&
        run_is_due(&r->groups_at, run_resend_s))
        say_groups(r, b, s);
    if (idle && run_is_due(&r->w.version_at, run_resend_s))
        run_wire_say_version(&r->w);
    if (!run_is_due(&r->want_at, run_resend_s))
        return PL_OK;
    uids = malloc((size_t)total * sizeof *uids);
    if (!uids)
        return pl_fail(err, PL_E_NOMEM, "no memory for a list of %d samples", total);
    for (int i = 0; i < total; i++) {
        if (r->state[i] == AWAITED)
            uids[n++] = b->first_uid + (uint32_t)i;
        if (r->state[i] == SENT_REWARD)
            say_reward(r, i);
    }
    if (n > 0) {
        pl_msg m = {.u.uids = {.batch = b->id, .uids = {uids, n}}};
        run_wire_say(&r->w, &m, PL_MSG_WANT);
    }
    free(uids);
    return PL_OK;
}

static void show(const remote *r, run_batch *b)
{
    const int total = b->n_groups * b->n;
    char detail[96];

    b->n_tokens = (int64_t)r->progress.n_tokens;
    snprintf(detail, sizeof detail, "%d of %d samples, %lld tokens", b->n_done, total,
        (long long)b->n_tokens);
    run_progress(b->report, b->phase, (double)b->n_done / total, detail);
}

/* The counters of a coordinator begin at 0; what it counted before this trainer came is of others.
 */
static void count_events(remote *r, const pl_msg_batch *m)
{
    if (r->counted_epoch != r->w.epoch)
        r->counted = r->counted_epoch ? (pl_msg_batch){0} : *m;
    r->counted_epoch = r->w.epoch;
    r->events.lost += (int64_t)m->n_lost - r->counted.n_lost;
    r->events.quarantined += (int64_t)m->n_quarantined - r->counted.n_quarantined;
    r->events.leased_again += (int64_t)(m->n_leased_again - r->counted.n_leased_again);
    r->events.recomputed_tokens += (int64_t)(m->n_recomputed - r->counted.n_recomputed);
    r->counted = *m;
}

static pl_status take(
    remote *r, run_batch *b, const pl_msg *m, const run_sampling *s, pl_error *err)
{
    switch (m->h.type) {
    case PL_MSG_RESULT: {
        const pl_status st = take_result(r, &m->u.result, s, err);
        show(r, b);
        return st;
    }
    case PL_MSG_REWARD:
        take_reward(r, &m->u.reward);
        return PL_OK;
    case PL_MSG_BATCH:
        count_events(r, &m->u.batch);
        if (m->u.batch.batch == b->id) {
            r->progress = m->u.batch;
            show(r, b);
        }
        return PL_OK;
    default:
        return PL_OK;
    }
}

static pl_status open_batch(remote *r, run_batch *b, pl_error *err)
{
    const size_t total = (size_t)(b->n_groups * b->n);

    if (r->batch == b->id && b->responses)
        return PL_OK; /* refused samples are had again */
    const pl_status st = run_batch_begin(b, err);
    if (st != PL_OK)
        return st;
    const int is_training = b->id >> 32 == 0;
    b->is_continued = is_training && !r->has_begun && (r->w.epoch > 1 || b->id > 1);
    r->has_begun |= is_training;
    run_figures_clear(&r->figures, r->batch >> 32 == 0);
    r->is_collected = 0;
    free(r->state);
    free(r->refused);
    r->state = calloc(total, 1);
    r->refused = calloc(total, sizeof *r->refused);
    if (!r->state || !r->refused)
        return pl_fail(err, PL_E_NOMEM, "no memory for a batch of %zu samples", total);
    r->batch = r->w.batch = b->id;
    r->n_ready = 0;
    memset(&r->progress, 0, sizeof r->progress);
    r->groups_at = 0;
    b->seconds = 0;
    return PL_OK;
}

/* The coordinator tells of workers, and knows nothing of rewards that are awaited here. */
static void watch_rewards(remote *r, const run_batch *b)
{
    const double now = run_seconds(), stall_s = (double)r->w.config->trainer.stall_seconds;
    const int moved = r->n_ready + b->n_done;
    char what[160];

    if (moved != r->moved || !r->scorer->rewarder ||
        pl_rewarder_describe(r->scorer->rewarder, what, sizeof what) == 0) {
        r->moved = moved;
        r->moved_at = r->told_at = now;
    } else if (stall_s > 0 && now - r->told_at >= stall_s) {
        pl_log_warn(
            r->w.log, "stall: awaited by the trainer for %.0f s: %s", now - r->moved_at, what);
        r->told_at = now;
    }
}

static pl_status collect(void *self, run_batch *b, const run_sampling *s, pl_error *err)
{
    remote *r = self;
    const int total = b->n_groups * b->n;
    const double t0 = run_seconds();
    pl_msg m;

    pl_status st = open_batch(r, b, err);
    if (st != PL_OK)
        return st;
    r->scorer->batch = b;
    r->scorer->scored = on_scored;
    r->scorer->ctx = r;
    r->want_at = r->moved_at = r->told_at = t0;
    run_progress(b->report, b->phase, 0, "");
    while (st == PL_OK && r->n_ready < total) {
        st = say_again(r, b, s, err);
        if (st != PL_OK)
            break;
        const int scoring = r->scorer->rewarder && pl_rewarder_pending(r->scorer->rewarder) > 0;
        st = listen(r, scoring ? REWARD_WAIT_MS : RUN_WAIT_MS, &m, err);
        if (st == PL_OK)
            st = take(r, b, &m, s, err);
        if (st == PL_E_TIMEOUT)
            st = PL_OK;
        if (st == PL_OK)
            st = run_score_poll(r->scorer, 0, err);
        watch_rewards(r, b);
    }
    run_progress_clear(b->report);
    if (r->scorer->rewarder)
        pl_rewarder_settle(r->scorer->rewarder);
    b->seconds += run_seconds() - t0;
    b->events.lost = r->events.lost;
    b->events.quarantined = r->events.quarantined;
    b->events.leased_again = r->events.leased_again;
    b->events.recomputed_tokens = r->events.recomputed_tokens;
    r->is_collected = st == PL_OK;
    if (st == PL_OK)
        run_figures_sum(&r->figures, b);
    else if (r->scorer->rewarder)
        pl_rewarder_clear(r->scorer->rewarder);
    return st;
}

/* ---- a step ---- */

/* Where, in the response.  UINT32_MAX: nowhere, or how it ends, which is of whoever finished it. */
static uint32_t position_of(const pl_sample *x)
{
    const int at = x->response ? x->audit_position - x->response->n_prompt : -1;
    if (at < 0 || (x->audit == PL_AUDIT_SHAPE && at >= x->response->n_tokens - 1))
        return UINT32_MAX;
    return (uint32_t)at;
}

static pl_status refuse(void *self, run_batch *b, pl_error *err)
{
    remote *r = self;

    (void)err;
    for (int i = 0; i < b->n_groups * b->n; i++) {
        const pl_sample *x = &b->samples[i];
        if (x->audit == PL_AUDIT_OK)
            continue;
        r->refused[i] = (refusal){r->refused[i].attempt + 1, (uint32_t)x->audit, position_of(x)};
        say_refuse(r, i);
        b->events.refused++;
        run_batch_forget(b, i);
        r->n_ready -= r->state[i] == READY;
        r->state[i] = AWAITED;
    }
    return PL_OK;
}

/* Over what the step was trained on: uid, tokens, log-prob bits, finish, reward, in uid order. */
static pl_hash hash_samples(const run_batch *b)
{
    pl_blake2b h;
    pl_hash out;

    pl_blake2b_init(&h);
    for (int i = 0; i < b->n_groups * b->n; i++) {
        const pl_response *x = &b->responses[i];
        const uint32_t head[3] = {x->uid, (uint32_t)x->n_tokens, (uint32_t)x->finish};
        pl_blake2b_update(&h, head, sizeof head);
        pl_blake2b_update(&h, x->tokens, (size_t)x->n_tokens * sizeof *x->tokens);
        pl_blake2b_update(&h, x->logprobs, (size_t)x->n_tokens * sizeof *x->logprobs);
        pl_blake2b_update(&h, &b->samples[i].reward, sizeof b->samples[i].reward);
    }
    pl_blake2b_final(&h, out.b);
    return out;
}

static int same_hash(const pl_hash *a, const pl_hash *b)
{
    return memcmp(a->b, b->b, sizeof a->b) == 0;
}

/* Durable weights first, then the record that they came of this step, then the word to workers. */
static pl_status consume(
    void *self, int64_t step, const run_batch *b, uint32_t version, pl_error *err)
{
    remote *r = self;
    static const pl_hash none;
    pl_msg m, record = {0}, traced = {.u.traced = {.step = (uint64_t)step, .head = b->trace}};
    double said_at = 0, stop_at = 0;

    memset(&r->events, 0, sizeof r->events); /* the batch has them, and is recorded */
    pl_status st = run_wire_publish(&r->w, version, err);
    if (st != PL_OK)
        return st;
    record.u.consume = (pl_msg_consume){.step = (uint64_t)step,
        .batch = b->id,
        .n_samples = (uint32_t)(b->n_groups * b->n),
        .samples = hash_samples(b),
        .weights = r->w.weights};
    for (;;) {
        if (r->w.welcomed && run_is_due(&said_at, run_resend_s)) {
            if (!same_hash(&b->trace, &none))
                run_wire_say(&r->w, &traced, PL_MSG_TRACED);
            run_wire_say(&r->w, &record, PL_MSG_CONSUME);
        }
        st = listen(r, RUN_WAIT_MS, &m, err);
        if (st == PL_E_STOPPED && cli_stop) { /* the update is done: its record is finished too */
            const int is_there = run_is_locked(r->w.dir, "coordinator.lock");
            stop_at = stop_at > 0 ? stop_at : run_seconds() + 5 * run_resend_s;
            st = pl_socket_recv(r->w.socket, RUN_WAIT_MS, NULL, &m, err) == PL_OK ? PL_OK
                                                                                  : PL_E_TIMEOUT;
            if (st != PL_OK && (!is_there || run_seconds() > stop_at))
                return PL_OK; /* no coordinator: the resumed run goes on without the record */
        }
        if (st == PL_OK && m.h.type == PL_MSG_CONSUME && m.u.consume.step == (uint64_t)step)
            break;
        if (st != PL_OK && st != PL_E_TIMEOUT)
            return st;
    }
    if (!same_hash(&m.u.consume.weights, &r->w.weights))
        return pl_fail(err, PL_E_NUMERIC,
            "step %lld was trained before and gave other weights: law 1 is broken on this machine",
            (long long)step);
    if (m.u.consume.again)
        pl_log_info(r->w.log, "step %lld was trained before: same weights", (long long)step);
    run_wire_say_version(&r->w);
    return PL_OK;
}

static void checkpointed(void *self, int64_t step)
{
    remote *r = self;
    pl_msg m = {.u.step = {(uint64_t)step}};
    run_wire_say(&r->w, &m, PL_MSG_CHECKPOINT);
}

static void alive(void *self)
{
    remote *r = self;
    run_wire_alive(&r->w);
}

/* The coordinator sends all home. */
static pl_status finish(void *self, int64_t step, pl_error *err)
{
    remote *r = self;
    pl_msg m, done = {.u.step = {(uint64_t)step}};
    char dir[sizeof r->w.dir + 16];
    double said_at = 0, there_at = run_seconds();
    const double t0 = there_at;

    while (run_seconds() - t0 < 10) {
        if (r->w.welcomed && run_is_due(&said_at, run_resend_s))
            run_wire_say(&r->w, &done, PL_MSG_DONE);
        if (run_is_locked(r->w.dir, "coordinator.lock"))
            there_at = run_seconds();
        else if (said_at > 0 && run_seconds() - there_at > run_resend_s)
            break; /* it has left, and its STOP is lost */
        const pl_status st = listen(r, RUN_WAIT_MS, &m, err);
        if (st == PL_OK && m.h.type == PL_MSG_STOP)
            break;
        if (st != PL_OK && st != PL_E_TIMEOUT)
            return st;
    }
    snprintf(dir, sizeof dir, "%s/weights", r->w.dir); /* the policy is in its checkpoint */
    return pl_dir_remove(dir, err);
}

/* ---- opening ---- */

static void remote_close(void *self)
{
    remote *r = self;

    if (!r)
        return;
    run_wire_close(&r->w);
    run_figures_done(&r->figures);
    free(r->state);
    free(r->refused);
    free(r);
}

pl_status run_remote_open(run_source *out, const run_config *c, const cli_model *m,
    const float *masters, int longest_prompt, run_scorer *scorer, const pl_log *log, pl_error *err)
{
    remote *r = calloc(1, sizeof *r);

    if (!r)
        return pl_fail(err, PL_E_NOMEM, "no memory to reach the workers");
    r->w.config = c;
    r->w.m = m;
    r->w.masters = masters;
    r->w.log = log;
    r->w.max_ctx = longest_prompt + (int)c->data.max_response_length;
    r->w.on_drafter = on_drafter;
    r->w.ctx = r;
    r->scorer = scorer;
    r->batch = UINT64_MAX;
    const pl_status st = run_wire_open(&r->w, err);
    if (st != PL_OK) {
        remote_close(r);
        return st;
    }
    *out = (run_source){.self = r,
        .begin = begin,
        .collect = collect,
        .refuse = refuse,
        .consume = consume,
        .checkpointed = checkpointed,
        .alive = alive,
        .finish = finish,
        .close = remote_close};
    return PL_OK;
}
