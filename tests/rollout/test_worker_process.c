/* Claims tested: the worker as a process is the machine of test_worker.c on a real socket: it
 * joins, outlives a coordinator that goes without a word and comes back in a new epoch, and stops
 * when told.  No assertion looks at the clock; waits have deadlines. */
#include "tests/rollout/worker_bed.h"

#include <pthread.h>

static bed the_bed;
static world w;

typedef struct process {
    pl_ipc *ipc; /* the worker's own */
    char address[96];
    pl_status st;
    pl_error err;
} process;

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
    const pl_worker_io io = {&w, world_load, NULL, world_joined};
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
