/* Claims tested: the worker as a process is the machine of test_worker.c on a real socket: it
 * joins, outlives a coordinator that goes without a word and comes back in a new epoch, gives its
 * core back from the drafter's training as soon as an op is over, and stops when told.  No
 * assertion looks at the clock; waits have deadlines. */
#include "tests/rollout/worker_bed.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

static bed the_bed;
static world w;

typedef struct process {
    pl_ipc *ipc; /* the worker's own */
    char address[96];
    pl_status st;
    pl_error err;
} process;

/* ---- training that never ends by itself ---- */

enum { OP_US = 2000, OPS_MAX = 10000 };

static struct spot {
    atomic_int n_ops, n_stopped, n_ends, is_within, n_pieces;
    atomic_int has_nothing; /* to train on */
    atomic_int n_wrong;     /* calls in the middle of a piece */
    atomic_llong stopped_ns;
} spot;

static int64_t clock_ns(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static pl_status train(
    void *ctx, const pl_msg_train *t, int (*keep_on)(void *), void *k_ctx, pl_error *err)
{
    (void)ctx;
    (void)t;
    spot.n_pieces++;
    if (spot.has_nothing)
        return pl_fail(err, PL_E_TIMEOUT, "nothing to train on");
    spot.is_within = 1;
    for (int i = 0; i < OPS_MAX; i++) {
        const int64_t begin = clock_ns();
        while (clock_ns() - begin < OP_US * 1000LL)
            ;
        spot.n_ops++;
        if (keep_on(k_ctx))
            continue;
        spot.stopped_ns = clock_ns();
        spot.n_stopped++;
        break;
    }
    spot.is_within = 0;
    return pl_fail(err, PL_E_STOPPED, "asked to stop");
}

static pl_status load(void *ctx, const pl_msg_version *v, void (*keep)(void *), void *keep_ctx,
    pl_engine **engine, pl_error *err)
{
    spot.n_wrong += spot.is_within;
    return world_load(ctx, v, keep, keep_ctx, engine, err);
}

static void train_end(void *ctx)
{
    (void)ctx;
    spot.n_ends++;
    spot.n_wrong += spot.is_within;
}

static void *process_main(void *ctx)
{
    process *p = ctx;
    const pl_worker_options o = {.address = p->address,
        .name = "worker-0",
        .numeric_class = "test",
        .build = "test",
        .host = "test",
        .n_threads = 1,
        .max_seqs = 8};
    const pl_worker_io io = {
        .ctx = &w, .load = load, .joined = world_joined, .train = train, .train_end = train_end};
    p->st = pl_work(&o, &io, p->ipc, NULL, &p->err);
    return NULL;
}

static void answer_to(pl_socket *s, const pl_peer *to, pl_msg *m, uint16_t type)
{
    m->h.type = type;
    (void)pl_socket_send(s, to, m, NULL);
}

/* One message in, what a coordinator answers out.  Samples from .. to - 1 are leased. */
static void attend(pl_socket *s, int from, int to)
{
    pl_msg m, a = {.u.welcome = {.run = "cafe", .heartbeat_ms = 50, .lost_ms = 3000}};
    pl_peer peer;
    if (pl_socket_recv(s, 100, &peer, &m, NULL) != PL_OK)
        return;
    if (m.h.type != PL_MSG_HELLO && m.h.epoch != w.epoch) {
        a = (pl_msg){.u.reject = {.code = PL_E_PEER, .reason = "say HELLO"}};
        answer_to(s, &peer, &a, PL_MSG_REJECT);
        return;
    }
    cr_assert(world_send(&w, &m));
    if (m.h.type == PL_MSG_HELLO) {
        answer_to(s, &peer, &a, PL_MSG_WELCOME);
    } else if (m.h.type == PL_MSG_RESULT) {
        const uint32_t uid = m.u.result.uid;
        a = (pl_msg){.u.uids = {.batch = BATCH, .uids = {&uid, 1}}};
        answer_to(s, &peer, &a, PL_MSG_ACK);
    } else if (m.h.type == PL_MSG_STATUS && w.status.policy_version != w.version) {
        a = (pl_msg){.u.version = {.version = w.version, .dir = "", .host = "", .endpoint = ""}};
        answer_to(s, &peer, &a, PL_MSG_VERSION);
    } else if (m.h.type == PL_MSG_STATUS) {
        for (int i = from; i < to; i++) {
            if (w.heard[i].n_results > 0 || lists(&w.status.running, (uint32_t)i))
                continue;
            make_lease(&w, i, NULL, &a);
            answer_to(s, &peer, &a, PL_MSG_LEASE);
        }
    }
}

static int n_done(int from, int to)
{
    int n = 0;
    for (int i = from; i < to; i++)
        n += w.heard[i].n_results > 0;
    return n;
}

Test(worker, the_process_outlives_its_coordinator_and_stops_when_told, .timeout = 120)
{
    const pl_ipc_options server = {.is_server = 1}, client = {0};
    const setting direct = {.batch = 8, .max_rows = 64};
    pl_ipc *ipc = NULL;
    pl_socket *s = NULL;
    process p = {0};
    pthread_t thread;
    find_base(&the_bed);
    run(&the_bed, &direct, got, NULL);
    expect_same(base, got, "a direct run");
    world_open(&w, &the_bed, 8);
    snprintf(p.address, sizeof p.address, "ipc://%s/c.sock", the_bed.dir);
    cr_assert_eq(pl_ipc_new(&p.ipc, &client, NULL, &w.err), PL_OK, "%s", w.err.msg);
    cr_assert_eq(pthread_create(&thread, NULL, process_main, &p), 0);
    for (w.epoch = 1; w.epoch <= 2; w.epoch++) {
        const int from = w.epoch == 1 ? 0 : SAMPLES / 2, to = from + SAMPLES / 2;
        cr_assert_eq(pl_ipc_new(&ipc, &server, NULL, &w.err), PL_OK, "%s", w.err.msg);
        cr_assert_eq(pl_socket_bind(&s, ipc, p.address, &w.err), PL_OK, "%s", w.err.msg);
        pl_socket_set_epoch(s, w.epoch);
        for (int n = 0; n < 5000 && n_done(from, to) < to - from; n++)
            attend(s, from, to);
        cr_assert_eq(n_done(from, to), to - from);
        if (w.epoch == 2)
            break;
        pl_socket_close(s); /* without a word */
        pl_ipc_free(ipc);
    }
    for (int n = 0; n < 5000 && w.n_leave == 0; n++) {
        pl_msg m, a = {0};
        pl_peer peer;
        if (pl_socket_recv(s, 100, &peer, &m, NULL) != PL_OK)
            continue;
        if (m.h.type == PL_MSG_LEAVE)
            w.n_leave++;
        answer_to(s, &peer, &a, PL_MSG_STOP);
    }
    cr_assert_eq(w.n_leave, 1);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    cr_assert_eq(p.st, PL_OK, "%s", p.err.msg);
    cr_assert_eq(w.n_joined, 2, "once an epoch");
    cr_assert_eq(w.n_loads, 1);
    for (int i = 0; i < SAMPLES; i++)
        expect_result(&w, i);
    pl_socket_close(s);
    pl_ipc_free(p.ipc);
    pl_ipc_free(ipc);
    (void)unlink(p.address + strlen("ipc://"));
    world_close(&w);
    bed_close(&the_bed);
}

static int compare_ns(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

/* Until the worker shows what is wanted of it: the session, or one more result. */
static void attend_until(pl_socket *s, uint64_t session, int n_results)
{
    for (int n = 0; n < 2000; n++) {
        if (session ? w.status.session == session && w.status.state == PL_WORKER_TRAINING
                    : w.n_result >= n_results && w.status.held.n == 0 && w.status.running.n == 0)
            return;
        attend(s, 0, 0);
    }
    cr_assert_fail("the worker does not show session %llu", (unsigned long long)session);
}

Test(worker, the_process_gives_its_core_back_as_soon_as_an_op_is_over, .timeout = 120)
{
    const pl_ipc_options server = {.is_server = 1}, client = {0};
    const char *wish = getenv("PL_PREEMPTIONS");
    const int n = wish ? atoi(wish) : 30;
    pl_ipc *ipc = NULL;
    pl_socket *s = NULL;
    process p = {0};
    pthread_t thread;
    int64_t *took = calloc((size_t)n, sizeof *took);
    cr_assert_not_null(took);
    find_base(&the_bed);
    world_open(&w, &the_bed, 8);
    w.epoch = 1;
    snprintf(p.address, sizeof p.address, "ipc://%s/c.sock", the_bed.dir);
    cr_assert_eq(pl_ipc_new(&p.ipc, &client, NULL, &w.err), PL_OK, "%s", w.err.msg);
    cr_assert_eq(pl_ipc_new(&ipc, &server, NULL, &w.err), PL_OK, "%s", w.err.msg);
    cr_assert_eq(pl_socket_bind(&s, ipc, p.address, &w.err), PL_OK, "%s", w.err.msg);
    pl_socket_set_epoch(s, w.epoch);
    cr_assert_eq(pthread_create(&thread, NULL, process_main, &p), 0);

    pl_peer peer = {{0}};
    pl_msg m;
    while (w.n_status == 0 || w.status.policy_version != w.version) {
        pl_msg a = {.u.welcome = {.run = "cafe", .heartbeat_ms = 50, .lost_ms = 3000}};
        if (pl_socket_recv(s, 100, &peer, &m, NULL) != PL_OK)
            continue;
        cr_assert(world_send(&w, &m));
        if (m.h.type == PL_MSG_HELLO)
            answer_to(s, &peer, &a, PL_MSG_WELCOME);
        a = (pl_msg){.u.version = {.version = w.version, .dir = "", .host = "", .endpoint = ""}};
        if (m.h.type == PL_MSG_STATUS)
            answer_to(s, &peer, &a, PL_MSG_VERSION);
    }
    for (int i = 0; i < n; i++) {
        const int n_results = w.n_result;
        pl_msg a = {.u.train = {.session = (uint64_t)i + 1,
                        .is_lead = 1,
                        .policy_version = w.version,
                        .buffers = "worker-0"}};
        answer_to(s, &peer, &a, PL_MSG_TRAIN);
        attend_until(s, (uint64_t)i + 1, 0);
        w.heard[i % SAMPLES] = (heard){0}; /* counters of drafting are of each attempt */
        make_lease(&w, i % SAMPLES, NULL, &a);
        const int64_t order_ns = clock_ns();
        answer_to(s, &peer, &a, PL_MSG_LEASE);
        attend_until(s, 0, n_results + 1);
        cr_assert_not(spot.is_within);
        took[i] = spot.stopped_ns - order_ns;
    }
    cr_assert_eq(spot.n_stopped, n, "every order stopped one piece");
    cr_assert_eq(spot.n_ends, n);
    qsort(took, (size_t)n, sizeof *took, compare_ns);
    fprintf(stderr, "%d preemptions, ops of %.1f ms: order to core returned %.2f ms, p99 %.2f ms\n",
        n, OP_US / 1e3, (double)took[n / 2] / 1e6, (double)took[n * 99 / 100] / 1e6);
    /* A version of the policy in the middle of a piece is loaded behind it. */
    pl_msg t = {.u.train = {.session = 1000, .policy_version = w.version, .buffers = "worker-0"}};
    answer_to(s, &peer, &t, PL_MSG_TRAIN);
    attend_until(s, 1000, 0);
    w.version++;
    pl_msg v = {.u.version = {.version = w.version, .dir = "", .host = "", .endpoint = ""}};
    answer_to(s, &peer, &v, PL_MSG_VERSION);
    for (int i = 0; i < 2000 && w.status.policy_version != w.version; i++)
        attend(s, 0, 0);
    cr_assert_eq(w.n_loads, 2);
    cr_assert_eq(spot.n_wrong, 0, "in the middle of a piece");
    cr_assert_eq(spot.n_ends, n + 1);

    /* With nothing to train on it rests between two questions. */
    spot.has_nothing = 1;
    spot.n_pieces = 0;
    t.u.train = (pl_msg_train){.session = 1001, .policy_version = w.version, .buffers = "worker-0"};
    answer_to(s, &peer, &t, PL_MSG_TRAIN);
    attend_until(s, 1001, 0);
    for (int i = w.n_status + 4; w.n_status < i;)
        attend(s, 0, 0);
    cr_assert(spot.n_pieces > 0 && spot.n_pieces < 1000, "%d", spot.n_pieces);

    pl_msg stop = {0};
    answer_to(s, &peer, &stop, PL_MSG_STOP);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    cr_assert_eq(p.st, PL_OK, "%s", p.err.msg);
    for (int i = 0; i < SAMPLES && i < n; i++)
        expect_result(&w, i);
    free(took);
    pl_socket_close(s);
    pl_ipc_free(p.ipc);
    pl_ipc_free(ipc);
    (void)unlink(p.address + strlen("ipc://"));
    world_close(&w);
    bed_close(&the_bed);
}
