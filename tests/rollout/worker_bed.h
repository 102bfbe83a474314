/* tests/rollout/worker_bed.h - a coordinator of the test's own around the worker machine: it hears
 * every message in the instant it is sent, loses what the test wants lost, and owns the clock. */
#ifndef PL_TESTS_ROLLOUT_WORKER_BED_H
#define PL_TESTS_ROLLOUT_WORKER_BED_H

#include "rollout/worker_internal.h"
#include "tests/rollout/bed.h"

static const uint64_t BATCH = (uint64_t)1 << 32 | 7;

typedef struct heard { /* of one sample */
    answer result;     /* n == 0: none */
    answer progress;   /* as far as it joins what is known */
    uint8_t sources[MAX_TOKENS], result_sources[MAX_TOKENS];
    int n_results, n_progress, is_acked;
    uint32_t attempt; /* of the newest RESULT */
} heard;

typedef struct world {
    bed *b;
    pl_engine *engine;
    worker *w;
    pl_error err;
    int64_t now;
    /* the coordinator */
    uint64_t epoch, incarnation, seq;
    uint32_t version;
    int lose; /* of 256 messages, either way */
    uint32_t n_drawn;
    heard heard[SAMPLES];
    pl_msg_status status;
    uint32_t running[SAMPLES], held[SAMPLES];
    int n_hello, n_status, n_leave, n_reconnect, n_result, n_drafter, n_drafting;
    uint32_t drafter_said;    /* version of the last DRAFTER */
    pl_msg_drafting drafting; /* the last one, without its span */
    uint64_t epoch_set;
    /* the other side of pl_worker_io */
    int n_loads, n_joined, load_fails, stop, load_alive;
} world;

static inline int is_lost(world *x)
{
    return (int)(pl_noise_word(3, 1, 2, 3, x->n_drawn++) % 256) < x->lose;
}

static inline void hear_progress(world *x, const pl_msg_progress *p)
{
    heard *h = x->heard + p->uid;
    answer *a = &h->progress;
    const int pos0 = (int)p->pos0, n = (int)p->tokens.n;
    h->n_progress++;
    cr_assert_leq(pos0 + n, MAX_TOKENS);
    cr_assert_eq(p->logprobs.n, p->tokens.n);
    cr_assert_eq(p->sources.n, p->tokens.n);
    if (pos0 > a->n || pos0 + n <= a->n)
        return; /* a gap, or old */
    memcpy(a->tokens + pos0, p->tokens.data, 4 * (size_t)n);
    memcpy(a->logprobs + pos0, p->logprobs.data, 4 * (size_t)n);
    memcpy(h->sources + pos0, p->sources.data, (size_t)n);
    a->n = pos0 + n;
    a->n_draft = (int)p->draft;
    a->n_accepted = (int)p->accepted;
    a->n_verify = (int)p->steps;
}

static inline void hear_result(world *x, const pl_msg_result *r)
{
    heard *h = x->heard + r->uid;
    answer a = {.n = (int)r->tokens.n,
        .finish = (pl_finish)r->finish,
        .n_draft = (int)r->draft,
        .n_accepted = (int)r->accepted,
        .n_verify = (int)r->steps};
    x->n_result++;
    h->attempt = r->attempt;
    cr_assert_eq(r->policy_version, x->version);
    cr_assert_eq(r->group, r->uid / N);
    cr_assert_eq(r->temperature, request_of((int)r->uid).temperature);
    cr_assert_leq(a.n, MAX_TOKENS);
    memcpy(a.tokens, r->tokens.data, 4 * (size_t)a.n);
    memcpy(a.logprobs, r->logprobs.data, 4 * (size_t)a.n);
    if (h->n_results++ > 0)
        cr_assert_eq(memcmp(&a, &h->result, sizeof a), 0, "sample %u has two results", r->uid);
    h->result = a;
    memcpy(h->result_sources, r->sources.data, (size_t)a.n);
}

static inline void hear_status(world *x, const pl_msg_status *s)
{
    x->n_status++;
    x->status = *s;
    cr_assert_leq(s->running.n + s->held.n, SAMPLES);
    if (s->running.n > 0)
        memcpy(x->running, s->running.data, 4 * s->running.n);
    if (s->held.n > 0)
        memcpy(x->held, s->held.data, 4 * s->held.n);
    x->status.running.data = x->running;
    x->status.held.data = x->held;
}

static inline int world_send(void *ctx, const pl_msg *m)
{
    world *x = ctx;
    if (is_lost(x))
        return 1; /* the sender cannot know */
    switch (m->h.type) {
    case PL_MSG_HELLO:
        x->n_hello++;
        cr_assert_str_eq(m->u.hello.name, "worker-0");
        break;
    case PL_MSG_STATUS:
        hear_status(x, &m->u.status);
        break;
    case PL_MSG_PROGRESS:
        hear_progress(x, &m->u.progress);
        break;
    case PL_MSG_RESULT:
        hear_result(x, &m->u.result);
        break;
    case PL_MSG_LEAVE:
        x->n_leave++;
        break;
    case PL_MSG_DRAFTER:
        x->n_drafter++;
        x->drafter_said = m->u.drafter.version;
        break;
    case PL_MSG_DRAFTING:
        x->n_drafting++;
        x->drafting = m->u.drafting;
        break;
    default:
        cr_assert_fail("a worker does not say message %u", m->h.type);
    }
    return 1;
}

static inline void world_set_epoch(void *ctx, uint64_t epoch)
{
    ((world *)ctx)->epoch_set = epoch;
}

static inline void world_reconnect(void *ctx)
{
    ((world *)ctx)->n_reconnect++;
}

static inline int64_t world_now(void *ctx)
{
    return ((world *)ctx)->now;
}

static inline pl_status world_load(void *ctx, const pl_msg_version *v, void (*keep)(void *),
    void *keep_ctx, pl_engine **engine, pl_error *err)
{
    world *x = ctx;
    x->n_loads++;
    for (int i = 0; i < x->load_alive; i++) {
        x->now += 100 * WORKER_MS;
        keep(keep_ctx);
    }
    if (x->load_fails > 0) {
        x->load_fails--;
        return pl_fail(err, PL_E_IO, "weights of version %u: the disk is on fire", v->version);
    }
    const pl_status st = pl_engine_new_version(x->engine, v->version, err);
    *engine = x->engine;
    return st;
}

static inline int world_stop(void *ctx)
{
    return ((world *)ctx)->stop;
}

static inline pl_status world_joined(void *ctx, const pl_msg_welcome *m, pl_error *err)
{
    (void)err;
    cr_assert_str_eq(m->run, "cafe");
    ((world *)ctx)->n_joined++;
    return PL_OK;
}

/* ---- a world begins and ends ---- */

static inline void world_open(world *x, bed *b, int max_seqs)
{
    const setting fast = {.batch = 8,
        .max_rows = 64,
        .speculative = 1,
        .controller = PL_CONTROLLER_FIXED,
        .fixed_rows = 6};
    const pl_worker_options o = {.address = "ipc:///nowhere",
        .name = "worker-0",
        .numeric_class = "test",
        .build = "test",
        .host = "test",
        .n_threads = 1,
        .max_seqs = max_seqs,
        .patience_s = 30};
    const pl_worker_io io = {
        .ctx = x, .load = world_load, .should_stop = world_stop, .joined = world_joined};
    const worker_wire wire = {.ctx = x,
        .send = world_send,
        .set_epoch = world_set_epoch,
        .reconnect = world_reconnect,
        .now_ns = world_now};
    memset(x, 0, sizeof *x);
    x->b = b;
    x->now = 5000 * WORKER_MS;
    x->epoch = 1;
    x->incarnation = 77;
    x->version = 3;
    x->engine = make_engine(b, &fast);
    cr_assert_eq(worker_new(&x->w, &o, &io, &wire, NULL, &x->err), PL_OK, "%s", x->err.msg);
}

static inline void world_close(world *x)
{
    worker_free(x->w);
    cr_assert_null(x->engine->groups, "a sample was left behind");
    pl_engine_free(x->engine);
}

/* ---- what the coordinator says ---- */

static inline pl_status say(world *x, pl_msg *m, uint16_t type)
{
    m->h = (pl_header){.protocol = PL_PROTOCOL,
        .type = type,
        .epoch = x->epoch,
        .incarnation = x->incarnation,
        .seq = ++x->seq};
    return is_lost(x) ? PL_OK : worker_message(x->w, m, &x->err);
}

static inline pl_status say_welcome(world *x)
{
    pl_msg m = {.u.welcome = {.run = "cafe", .heartbeat_ms = 500, .lost_ms = 3000}};
    return say(x, &m, PL_MSG_WELCOME);
}

static inline pl_status say_version(world *x, uint32_t version)
{
    pl_msg m = {.u.version = {.version = version, .dir = "", .host = "", .endpoint = ""}};
    m.u.version.hash.b[0] = (unsigned char)version;
    return say(x, &m, PL_MSG_VERSION);
}

static inline pl_status say_reject(world *x, pl_status code, const char *reason)
{
    pl_msg m = {.u.reject = {.code = (uint32_t)code, .reason = reason}};
    return say(x, &m, PL_MSG_REJECT);
}

static inline pl_status say_uid(world *x, uint16_t type, uint64_t batch, uint32_t uid)
{
    pl_msg m = {.u.uids = {.batch = batch, .uids = {&uid, 1}}};
    return say(x, &m, type);
}

/* Lease sample i, going on from p (NULL: from the prompt). */
static inline void make_lease(const world *x, int i, const heard *p, pl_msg *m)
{
    const pl_request r = request_of(i);
    *m = (pl_msg){.u.lease = {.batch = BATCH,
                      .uid = r.uid,
                      .group = r.group,
                      .policy_version = x->version,
                      .sampling = {.max_tokens = (uint32_t)r.max_tokens,
                          .temperature = r.temperature,
                          .top_p = r.top_p,
                          .min_p = r.min_p,
                          .top_k = (uint32_t)r.top_k,
                          .noise_key = r.noise_key,
                          .purpose = r.purpose,
                          .ignore_eos = (uint32_t)r.ignore_eos,
                          .speculative = 1},
                      .prompt_key = r.prompt_key,
                      .prompt = {r.prompt, (uint32_t)r.n_prompt}}};
    if (!p)
        return;
    const uint32_t n = (uint32_t)p->progress.n;
    m->u.lease.prefix = (pl_span){p->progress.tokens, n};
    m->u.lease.prefix_logprobs = (pl_span){p->progress.logprobs, n};
    m->u.lease.prefix_sources = (pl_span){p->sources, n};
    m->u.lease.draft = (uint32_t)p->progress.n_draft;
    m->u.lease.accepted = (uint32_t)p->progress.n_accepted;
    m->u.lease.steps = (uint32_t)p->progress.n_verify;
}

static inline pl_status say_lease(world *x, int i, const heard *p)
{
    pl_msg m;
    make_lease(x, i, p, &m);
    return say(x, &m, PL_MSG_LEASE);
}

/* ---- time ---- */

/* One turn of the loop of rollout/worker.c, ms later. */
static inline pl_status turn(world *x, int ms)
{
    x->now += ms * WORKER_MS;
    pl_status st = worker_tick(x->w, &x->err);
    if (st == PL_OK && !x->w->is_over && x->w->n_running > 0)
        st = worker_round(x->w, &x->err);
    return st;
}

static inline void expect_turns(world *x, int n, int ms)
{
    for (int i = 0; i < n; i++)
        cr_assert_eq(turn(x, ms), PL_OK, "%s", x->err.msg);
}

/* Join, with version 3 loaded. */
static inline void join(world *x)
{
    expect_turns(x, 1, 10);
    cr_assert_eq(x->n_hello, 1);
    cr_assert_eq(say_welcome(x), PL_OK, "%s", x->err.msg);
    cr_assert_eq(say_version(x, x->version), PL_OK, "%s", x->err.msg);
    expect_turns(x, 1, 30);
    cr_assert_eq(x->status.policy_version, x->version);
    cr_assert_eq(x->status.state, PL_WORKER_IDLE);
}

static inline int lists(const pl_span *uids, uint32_t uid)
{
    for (uint32_t i = 0; i < uids->n; i++)
        if (((const uint32_t *)uids->data)[i] == uid)
            return 1;
    return 0;
}

static inline void expect_result(const world *x, int i)
{
    const answer *a = &x->heard[i].result;
    cr_assert_gt(a->n, 0, "sample %d has no result", i);
    cr_assert_eq(a->n, base[i].n, "sample %d has %d tokens for %d", i, a->n, base[i].n);
    cr_assert_eq(a->finish, base[i].finish, "sample %d", i);
    cr_assert_eq(memcmp(a->tokens, base[i].tokens, 4 * (size_t)a->n), 0, "sample %d", i);
    cr_assert_eq(memcmp(a->logprobs, base[i].logprobs, 4 * (size_t)a->n), 0, "sample %d", i);
    cr_assert_leq(a->n_verify, a->n, "sample %d", i);
}

#endif
