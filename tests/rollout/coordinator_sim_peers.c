/* tests/rollout/coordinator_sim_peers.c - the workers and the trainer of the simulated run. */
#include "tests/rollout/coordinator_sim.h"

/* ---- a worker ---- */

void sim_worker_say(sim *s, int i, pl_msg *m, uint16_t type)
{
    sim_worker *w = &s->workers[i];
    const pl_peer peer = bed_peer(PL_ROLE_WORKER, w->incarnation);
    m->h = (pl_header){
        .type = type, .epoch = w->epoch, .incarnation = w->incarnation, .seq = ++w->seq};
    sim_send(s, 1, &peer, m);
}

void sim_worker_start(sim *s, int i)
{
    sim_worker *w = &s->workers[i];
    *w = (sim_worker){.incarnation = ++s->next_incarnation,
        .is_up = 1,
        .version = UINT32_MAX,
        .shown_version = UINT32_MAX,
        .lies = s->with_liars && sim_faults(s) && sim_draw(s, 3) == 0};
}

static work *worker_find(sim_worker *w, uint64_t batch, uint32_t uid)
{
    for (int k = 0; k < SLOTS; k++)
        if (w->at[k].used && w->at[k].batch == batch && w->at[k].uid == uid)
            return &w->at[k];
    return NULL;
}

static void worker_drop_running(sim_worker *w)
{
    for (int k = 0; k < SLOTS; k++)
        if (!w->at[k].held)
            w->at[k].used = 0;
}

static void worker_lease(sim *s, sim_worker *w, const pl_msg *m)
{
    const pl_msg_lease *l = &m->u.lease;
    text t = bed_text(l->batch, l->uid);
    work *had = worker_find(w, l->batch, l->uid);
    if (m->h.seq <= w->mark || w->version != l->policy_version ||
        (had && had->attempt >= l->attempt))
        return;
    if (had)
        had->used = 0;
    const int is_true = l->prefix.n < t.n && memcmp(l->prefix.data, t.tokens, l->prefix.n * 4) == 0;
    if (l->prefix.n && !is_true && !s->with_liars)
        sim_break(s, "a prefix is a true beginning", l->uid, l->prefix.n);
    s->n_tainted += l->prefix.n && !is_true && !w->lies;
    memcpy(t.tokens, l->prefix.data, l->prefix.n * 4); /* an honest one goes on behind it */
    if (w->lies)
        t.tokens[l->prefix.n + sim_draw(s, t.n - l->prefix.n)] ^= 1;
    if (w->batch != l->batch)
        worker_drop_running(w);
    w->batch = l->batch;
    for (int k = 0; k < SLOTS; k++)
        if (!w->at[k].used) {
            s->n_resent += l->prefix.n > 0;
            w->session = 0;
            w->at[k] = (work){.used = 1,
                .batch = l->batch,
                .uid = l->uid,
                .group = l->group,
                .version = l->policy_version,
                .attempt = l->attempt,
                .t = t,
                .n = l->prefix.n,
                .told = l->prefix.n};
            return;
        }
}

static void worker_version(sim_worker *w, const pl_msg *m)
{
    if (m->h.seq <= w->mark || w->version == m->u.version.version)
        return;
    w->mark = m->h.seq;
    worker_drop_running(w);
    w->version = m->u.version.version;
    w->status_ms = 0;
    w->session = 0;
}

static void worker_rejected(sim *s, sim_worker *w, const pl_msg_reject *r)
{
    w->joined = 0;
    if (r->code == PL_E_TIMEOUT && !w->outside_ms)
        w->outside_ms = s->now_ms;
    if (r->code == PL_E_PEER || (r->code == PL_E_TIMEOUT && s->now_ms - w->outside_ms < 10000))
        return;
    if (r->code != PL_E_TIMEOUT && !w->lies)
        sim_break(s, "an honest worker is never expelled", r->code, w->incarnation);
    s->n_quarantined++;
    w->outside_ms = 0;
    w->is_up = 0;
    w->wake_ms = s->now_ms + 500;
}

void sim_worker_hear(sim *s, int i, const pl_msg *m)
{
    sim_worker *w = &s->workers[i];
    if (m->h.epoch < w->epoch)
        return;
    if (m->h.type == PL_MSG_REJECT) {
        worker_rejected(s, w, &m->u.reject);
        return;
    }
    if (m->h.type == PL_MSG_WELCOME) {
        if (!w->joined || m->h.epoch > w->epoch) {
            for (int k = 0; k < SLOTS; k++)
                w->at[k].told = 0;
            if (m->h.epoch > w->epoch)
                w->mark = 0;
            w->status_ms = 0;
        }
        w->epoch = m->h.epoch;
        w->joined = 1;
        w->outside_ms = 0;
        return;
    }
    if (m->h.epoch > w->epoch) {
        w->joined = 0;
        return;
    }
    work *at = NULL;
    sim_spot_hear(s, i, m);
    if (m->h.type == PL_MSG_LEASE)
        worker_lease(s, w, m);
    else if (m->h.type == PL_MSG_VERSION)
        worker_version(w, m);
    else if (m->h.type == PL_MSG_ACK || m->h.type == PL_MSG_REVOKE)
        for (uint32_t k = 0; k < m->u.uids.uids.n; k++) {
            at = worker_find(w, m->u.uids.batch, bed_u32(&m->u.uids.uids, k));
            if (at)
                at->used = 0;
        }
}

void sim_worker_progress(sim *s, int i, work *at, uint32_t pos0)
{
    const text *t = &at->t;
    pl_msg m = {.u.progress = {.batch = at->batch,
                    .uid = at->uid,
                    .policy_version = at->version,
                    .pos0 = pos0,
                    .tokens = {t->tokens + pos0, at->n - pos0},
                    .logprobs = {t->logprobs + pos0, at->n - pos0},
                    .sources = {t->sources + pos0, at->n - pos0},
                    .attempt = at->attempt}};
    sim_worker_say(s, i, &m, PL_MSG_PROGRESS);
}

static void worker_result(sim *s, int i, work *at)
{
    pl_msg m = bed_result(at->batch, at->uid, at->group, at->version, &at->t);
    m.u.result.attempt = at->attempt;
    sim_worker_say(s, i, &m, PL_MSG_RESULT);
}

/* A few tokens, told now and then; the result, told until somebody has it. */
static void worker_round(sim *s, int i, work *at)
{
    sim_worker *w = &s->workers[i];
    const text t = at->t;
    if (!at->held) {
        at->n += sim_draw(s, 6) == 0;
        if (at->n >= t.n) {
            at->n = t.n;
            at->held = 1;
            at->said_ms = -1000;
        }
    }
    if (!w->joined)
        return;
    if (at->held && s->now_ms - at->said_ms >= 500) {
        at->said_ms = s->now_ms;
        worker_result(s, i, at);
    } else if (!at->held && at->n > at->told && sim_draw(s, 3) == 0) {
        sim_worker_progress(s, i, at, at->told);
        at->told = at->n;
    }
}

static void worker_status(sim *s, int i)
{
    sim_worker *w = &s->workers[i];
    uint32_t running[SLOTS], held[SLOTS], n_running = 0, n_held = 0;
    for (int k = 0; k < SLOTS; k++)
        if (w->at[k].used && w->at[k].batch == w->batch) {
            if (w->at[k].held)
                held[n_held++] = w->at[k].uid;
            else
                running[n_running++] = w->at[k].uid;
        }
    pl_msg m = {.u.status = {.state = w->version == UINT32_MAX ? PL_WORKER_JOINING
                                      : n_running              ? PL_WORKER_BUSY
                                      : w->session             ? PL_WORKER_TRAINING
                                                               : PL_WORKER_IDLE,
                    .session = w->session,
                    .drafter_version = w->drafter,
                    .policy_version = w->version,
                    .batch = w->batch,
                    .rate = (float)(i * 10),
                    .running = {running, n_running},
                    .held = {held, n_held}}};
    w->status_ms = s->now_ms;
    sim_worker_say(s, i, &m, PL_MSG_STATUS);
}

static void worker_fail(sim *s, int i)
{
    sim_worker *w = &s->workers[i];
    pl_msg leave = {0};
    switch (sim_draw(s, 3)) {
    case 0: /* it leaves */
        sim_worker_say(s, i, &leave, PL_MSG_LEAVE);
        w->is_up = 0;
        w->wake_ms = s->now_ms + sim_draw(s, 5000);
        break;
    case 1: /* kill -9 */
        w->is_up = 0;
        w->wake_ms = s->now_ms + sim_draw(s, 5000);
        break;
    default: /* SIGSTOP for a while */
        w->wake_ms = s->now_ms + sim_draw(s, 6000);
        break;
    }
    s->n_crashes++;
}

void sim_worker_tick(sim *s, int i)
{
    sim_worker *w = &s->workers[i];
    if (s->now_ms < w->wake_ms)
        return;
    if (!w->is_up)
        sim_worker_start(s, i);
    if (sim_faults(s) && sim_draw(s, 150) == 0) {
        worker_fail(s, i);
        return;
    }
    if (!w->joined && s->now_ms >= w->hello_ms) {
        char name[16];
        snprintf(name, sizeof name, "worker-%d", i);
        pl_msg m = {.u.hello = {.role = PL_ROLE_WORKER,
                        .name = name,
                        .numeric_class = "class-a",
                        .host = "h",
                        .max_seqs = 4}};
        w->hello_ms = s->now_ms + 200;
        sim_worker_say(s, i, &m, PL_MSG_HELLO);
    }
    for (int k = 0; k < SLOTS; k++)
        if (w->at[k].used)
            worker_round(s, i, &w->at[k]);
    sim_spot_tick(s, i);
    if (w->joined && s->now_ms - w->status_ms >= 300)
        worker_status(s, i);
}

/* ---- the trainer ---- */

static void trainer_say(sim *s, pl_msg *m, uint16_t type)
{
    sim_trainer *t = &s->trainer;
    const pl_peer peer = bed_peer(PL_ROLE_TRAINER, t->incarnation);
    m->h = (pl_header){
        .type = type, .epoch = t->epoch, .incarnation = t->incarnation, .seq = ++t->seq};
    sim_send(s, 1, &peer, m);
}

static void trainer_open(sim *s, uint64_t batch)
{
    sim_trainer *t = &s->trainer;
    t->batch = batch;
    t->progress = (pl_msg_batch){0};
    memset(t->state, 0, sizeof t->state);
    memset(t->attempt, 0, sizeof t->attempt);
    t->groups_ms = t->said_ms = 0;
}

/* From its checkpoint. */
void sim_trainer_start(sim *s)
{
    sim_trainer *t = &s->trainer;
    *t = (sim_trainer){.incarnation = ++s->next_incarnation,
        .is_up = 1,
        .checkpoint = t->checkpoint,
        .step = t->checkpoint + 1,
        .phase = t->checkpoint == N_STEPS ? FINISH : COLLECT};
    trainer_open(s, t->step);
}

static uint32_t trainer_version(const sim_trainer *t)
{
    return (uint32_t)(t->phase == EVALUATE ? t->step : t->step - 1);
}

static pl_hash trainer_samples(const sim_trainer *t)
{
    uint64_t h = 1;
    for (int i = 0; i < N_SAMPLES; i++) {
        uint32_t bits;
        memcpy(&bits, &t->rewards[i], 4);
        h = (h ^ bits) * 1099511628211u;
        for (uint32_t k = 0; k < t->texts[i].n; k++)
            h = (h ^ (uint32_t)t->texts[i].tokens[k]) * 1099511628211u;
    }
    return bed_hash(h);
}

static void trainer_say_version(sim *s)
{
    const uint32_t v = trainer_version(&s->trainer);
    pl_msg m = {.u.version = {.version = v,
                    .hash = sim_weights(v),
                    .n_bytes = 8,
                    .dir = "d",
                    .host = "h",
                    .endpoint = "e"}};
    trainer_say(s, &m, PL_MSG_VERSION);
}

static void trainer_say_reward(sim *s, int i)
{
    /* Timed out here, not there: only the ledger makes it one value. */
    const text *x = &s->trainer.texts[i], honest = bed_text(s->trainer.batch, 100 + (uint32_t)i);
    const int is_lie = memcmp(x->tokens, honest.tokens, honest.n * 4) != 0;
    pl_msg m = {.u.reward = {.batch = s->trainer.batch,
                    .uid = 100 + (uint32_t)i,
                    .score = (float)((uint64_t)i + s->trainer.incarnation % 7 + 1000u * is_lie),
                    .attempt = s->trainer.attempt[i]}};
    trainer_say(s, &m, PL_MSG_REWARD);
}

static void trainer_say_refuse(sim *s, int i)
{
    pl_msg m = {.u.refuse = {.batch = s->trainer.batch,
                    .uid = 100 + (uint32_t)i,
                    .code = 1,
                    .reason = "token",
                    .attempt = s->trainer.attempt[i] - 1,
                    .position = s->trainer.position[i]}};
    trainer_say(s, &m, PL_MSG_REFUSE);
}

static void trainer_collect(sim *s)
{
    sim_trainer *t = &s->trainer;
    uint32_t want[N_SAMPLES], n = 0;
    if (t->progress.n_groups_known < N_GROUPS && s->now_ms - t->groups_ms >= 500) {
        t->groups_ms = s->now_ms;
        for (uint32_t g = 0; g < N_GROUPS; g++) {
            pl_msg m = bed_group(t->batch, N_GROUPS, g, N_SIBLINGS, trainer_version(t));
            trainer_say(s, &m, PL_MSG_GROUP);
        }
    }
    if (s->now_ms - t->said_ms < 500)
        return;
    t->said_ms = s->now_ms;
    if (t->progress.n_running == 0) /* the VERSION may have been lost */
        trainer_say_version(s);
    for (int i = 0; i < N_SAMPLES; i++) {
        if (t->state[i] == AWAITED)
            want[n++] = 100 + (uint32_t)i;
        if (t->state[i] == SENT)
            trainer_say_reward(s, i);
    }
    pl_msg m = {.u.uids = {t->batch, {want, n}}};
    if (n)
        trainer_say(s, &m, PL_MSG_WANT);
}

/* The audit: what is not the sample's one text is refused.  1: all is well. */
static int trainer_audit(sim *s)
{
    sim_trainer *t = &s->trainer;
    int good = 1;
    for (int i = 0; i < N_SAMPLES; i++) {
        const text honest = bed_text(t->batch, 100 + (uint32_t)i);
        if (t->texts[i].n == honest.n &&
            memcmp(t->texts[i].tokens, honest.tokens, honest.n * 4) == 0)
            continue;
        if (!s->with_liars)
            sim_break(s, "a sample is what it must be", (uint64_t)i, t->batch);
        for (t->position[i] = 0;
             t->texts[i].tokens[t->position[i]] == honest.tokens[t->position[i]];)
            t->position[i]++;
        t->attempt[i]++;
        trainer_say_refuse(s, i);
        t->state[i] = AWAITED;
        s->n_refused++;
        good = 0;
    }
    return good;
}

static void trainer_next(sim *s)
{
    sim_trainer *t = &s->trainer;
    for (int i = 0; i < N_SAMPLES; i++)
        if (t->state[i] != READY)
            return;
    if (!trainer_audit(s))
        return;
    t->said_ms = 0;
    if (t->phase == COLLECT) {
        t->phase = CONSUME;
        return;
    }
    t->step++; /* evaluated */
    t->phase = t->step > N_STEPS ? FINISH : COLLECT;
    trainer_open(s, t->step);
}

void sim_trainer_tick(sim *s)
{
    sim_trainer *t = &s->trainer;
    if (s->now_ms < t->wake_ms || t->phase == HOME)
        return;
    if (!t->is_up)
        sim_trainer_start(s);
    if (sim_faults(s) && sim_draw(s, 200) == 0) {
        t->is_up = (int)sim_draw(s, 2); /* killed or frozen */
        t->wake_ms = s->now_ms + sim_draw(s, 5000);
        s->n_crashes++;
        return;
    }
    pl_msg m = {0};
    if (!t->joined) {
        m.u.hello =
            (pl_msg_hello){.role = PL_ROLE_TRAINER, .name = "trainer", .numeric_class = "class-a"};
        if (s->now_ms >= t->hello_ms)
            trainer_say(s, &m, PL_MSG_HELLO);
        t->hello_ms = s->now_ms >= t->hello_ms ? s->now_ms + 200 : t->hello_ms;
        return;
    }
    if (s->now_ms % 500 == 0)
        trainer_say(s, &m, PL_MSG_STATUS);
    if (t->phase == COLLECT || t->phase == EVALUATE) {
        trainer_collect(s);
        trainer_next(s);
    } else if (s->now_ms - t->said_ms >= 500) {
        t->said_ms = s->now_ms;
        if (t->phase == CONSUME)
            m.u.consume = (pl_msg_consume){.step = t->step,
                .batch = t->batch,
                .n_samples = N_SAMPLES,
                .samples = trainer_samples(t),
                .weights = sim_weights(t->step)};
        trainer_say(s, &m, t->phase == CONSUME ? PL_MSG_CONSUME : PL_MSG_DONE);
    }
}

static void trainer_result(sim *s, const pl_msg_result *r)
{
    sim_trainer *t = &s->trainer;
    const uint32_t i = r->uid - 100;
    if (r->batch != t->batch || i >= N_SAMPLES || t->state[i] != AWAITED || t->phase == CONSUME)
        return;
    if (r->attempt < t->attempt[i]) {
        trainer_say_refuse(s, (int)i);
        return;
    }
    t->attempt[i] = r->attempt;
    t->texts[i].n = r->tokens.n;
    memcpy(t->texts[i].tokens, r->tokens.data, (size_t)r->tokens.n * 4);
    t->rewards[i] = r->reward;
    t->state[i] = r->has_reward || t->phase == EVALUATE ? READY : SENT;
    if (t->state[i] == SENT)
        trainer_say_reward(s, (int)i);
}

static void trainer_consumed(sim *s, const pl_msg_consume *c)
{
    sim_trainer *t = &s->trainer;
    const pl_hash mine = trainer_samples(t);
    if (t->phase != CONSUME || c->step != t->step)
        return;
    if (memcmp(&c->samples, &mine, sizeof mine) != 0)
        sim_break(s, "a step is consumed with one set of samples", c->step, c->again);
    t->phase = EVALUATE; /* of the new version */
    trainer_say_version(s);
    trainer_open(s, (uint64_t)1 << 32 | t->step);
    if (t->step % 2 == 0) {
        pl_msg m = {.u.step = {t->step}};
        t->checkpoint = t->step;
        trainer_say(s, &m, PL_MSG_CHECKPOINT);
    }
}

void sim_trainer_hear(sim *s, const pl_msg *m)
{
    sim_trainer *t = &s->trainer;
    const uint32_t i = m->u.reward.uid - 100;
    if (m->h.epoch < t->epoch)
        return;
    switch (m->h.type) {
    case PL_MSG_WELCOME:
        if (!t->joined || m->h.epoch > t->epoch) {
            t->progress = (pl_msg_batch){0};
            t->groups_ms = 0;
        }
        t->joined = 1;
        t->epoch = m->h.epoch;
        break;
    case PL_MSG_REJECT:
        t->joined = 0;
        if (m->u.reject.code != PL_E_PEER && m->u.reject.code != PL_E_TIMEOUT)
            sim_break(s,
                m->u.reject.code == PL_E_NUMERIC ? "retraining reaches the same hashes"
                                                 : "the trainer is never refused",
                m->u.reject.code, t->step);
        break;
    case PL_MSG_BATCH:
        if (m->u.batch.batch == t->batch)
            t->progress = m->u.batch;
        break;
    case PL_MSG_RESULT:
        trainer_result(s, &m->u.result);
        break;
    case PL_MSG_REWARD:
        if (m->u.reward.batch == t->batch && i < N_SAMPLES && t->state[i] == SENT &&
            m->u.reward.attempt == t->attempt[i]) {
            t->rewards[i] = m->u.reward.score;
            t->state[i] = READY;
        }
        break;
    case PL_MSG_CONSUME:
        trainer_consumed(s, &m->u.consume);
        break;
    case PL_MSG_STOP:
        if (t->phase == FINISH)
            t->phase = HOME;
        break;
    default:
        break;
    }
}
