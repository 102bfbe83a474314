/* rollout/coordinate.c - the process around the machine: sockets, the monotonic clock, the ledger.
 *
 * Group commit: what arrives within COMMIT_MS shares one fsync, and nobody waits for company: as
 * soon as no message is waiting, what was recorded is made durable.  Ledger records are bodies of
 * messages; the type of a record is 2 * (message type) + 1, critical (core/journal.h).  DRAFTER is
 * 2 * (message type): a build that does not know it goes on without; TRACED too, which is for those
 * who verify the trace. */
#define _GNU_SOURCE /* syscall */
#include "core/file.h"
#include "core/journal.h"
#include "rollout/coordinator.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    WAKE_MS = 20,       /* the loop looks at clock and wishes this often */
    OBSERVE_MS = 250,   /* who watches is told this often */
    COMMIT_MS = 50,     /* records wait at most so long for their fsync */
    BURST_MAX = 256,    /* messages between two looks at the clock */
    FAREWELL_MS = 2000, /* after STOP or DRAIN: workers have left by then, or are left */
    PARTING_MS = 100,   /* after STOP without workers: who is just joining hears it too */
    REMOTE_MAX = 4096,  /* peers of the tcp socket that are known */
    GUESTS_MAX = 1024,  /* peers that said HELLO, the oldest are forgotten */
    LOCAL = 0,          /* the socket of this machine */
    REMOTE = 1,         /* the socket of others: workers only */
    N_SOCKETS = 2
};

/* A peer that said HELLO: how it is called, and its process if it is one of this machine. */
typedef struct guest {
    pl_peer peer;
    char name[64];
    uint32_t pid, n_threads;
    int pidfd;      /* -1: not known, or it has ended: */
    int has_ended;  /* seen on pidfd */
    int is_started; /* one of the run's own workers, or the trainer: nobody wonders about it */
    int has_joined;
} guest;

typedef struct process {
    const pl_coordinate_options *o;
    const pl_log *log;
    pl_coordinator *machine;
    pl_journal *ledger;
    pl_bytes body;
    pl_ipc *ipc;
    pl_socket *sockets[N_SOCKETS];
    pl_peer *remote; /* [n_remote] peers of sockets[REMOTE] */
    int n_remote, next_remote;
    guest *guests; /* [n_guests] */
    int n_guests, next_guest;
    int64_t observed_ns; /* when who watches was told */
    int64_t unsynced_ns; /* when the first record that waits was made; 0: none waits */
    uint64_t n_syncs, n_records;
} process;

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- peers ---- */

static pl_socket *socket_of(const process *p, const pl_peer *peer)
{
    for (int i = 0; i < p->n_remote; i++)
        if (memcmp(p->remote[i].id, peer->id, PL_PEER_BYTES) == 0)
            return p->sockets[REMOTE];
    return p->sockets[LOCAL];
}

static void remember_remote(process *p, const pl_peer *peer)
{
    if (socket_of(p, peer) == p->sockets[REMOTE])
        return;
    p->remote[p->next_remote] = *peer;
    p->next_remote = (p->next_remote + 1) % REMOTE_MAX;
    if (p->n_remote < REMOTE_MAX)
        p->n_remote++;
}

/* ---- who comes and goes ---- */

static guest *find_guest(const process *p, const pl_peer *peer)
{
    for (int i = 0; i < p->n_guests; i++)
        if (memcmp(p->guests[i].peer.id, peer->id, PL_PEER_BYTES) == 0)
            return &p->guests[i];
    return NULL;
}

static void close_guest(guest *g)
{
    if (g->pidfd >= 0)
        close(g->pidfd);
    g->pidfd = -1;
}

/* "worker-0.4711" with fewer than n such workers: paceline run has started it. */
static int is_started(const char *name, uint32_t n)
{
    unsigned i;
    return sscanf(name, "worker-%u.", &i) == 1 && i < n;
}

/* A peer says HELLO.  Its process is watched if the kernel says that it is the one it claims to be
 * (it may be one of another pid namespace), by a descriptor: a number may soon be of another. */
static void meet(process *p, int socket, const pl_peer *from, const pl_msg_hello *h)
{
    const int pid = socket == LOCAL ? pl_socket_sender(p->sockets[LOCAL]) : 0;
    guest *g = find_guest(p, from);
    if (!g) {
        g = &p->guests[p->next_guest];
        p->next_guest = (p->next_guest + 1) % GUESTS_MAX;
        if (p->n_guests < GUESTS_MAX)
            p->n_guests++;
        else
            close_guest(g);
        *g = (guest){.peer = *from, .pidfd = -1};
    }
    memcpy(g->name, h->name, strnlen(h->name, sizeof g->name - 1));
    g->n_threads = h->n_threads;
    g->pid = h->pid;
    g->is_started = h->role == PL_ROLE_TRAINER ||
                    (socket == LOCAL && is_started(g->name, p->o->machine.n_workers));
    if (g->pidfd < 0 && !g->has_ended && pid > 0 && (uint32_t)pid == h->pid)
        g->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
}

static int on_is_dead(void *ctx, const pl_peer *peer)
{
    guest *g = find_guest(ctx, peer);
    struct pollfd at = {.fd = g ? g->pidfd : -1, .events = POLLIN};
    if (!g || g->has_ended)
        return g != NULL;
    if (at.fd < 0 || poll(&at, 1, 0) < 1)
        return 0;
    close_guest(g);
    return g->has_ended = 1;
}

/* A line for who looks at the terminal of paceline run. */
static void tell(const process *p, guest *g, int has_joined)
{
    if (g->has_joined != has_joined && !g->is_started && p->log) {
        const pl_log log = {PL_LOG_INFO, p->log->fd, p->log->is_tty};
        if (has_joined)
            pl_log_info(&log, "worker %s joins, threads=%u", g->name, g->n_threads);
        else
            pl_log_info(&log, "worker %s leaves", g->name);
    }
    g->has_joined = has_joined;
}

/* ---- what the machine does to the world ---- */

static void on_send(void *ctx, const pl_peer *peer, const pl_msg *m)
{
    pl_error ignored; /* a peer that is gone or slow: everything is said again */
    guest *g = m->h.type == PL_MSG_WELCOME ? find_guest(ctx, peer) : NULL;
    if (g)
        tell(ctx, g, 1);
    (void)pl_socket_send(socket_of(ctx, peer), peer, m, &ignored);
}

static void on_drop(void *ctx, const pl_peer *peer)
{
    pl_socket_drop(socket_of(ctx, peer), peer);
}

static pl_status on_record(void *ctx, const pl_msg *m, pl_error *err)
{
    process *p = ctx;
    const pl_status st = pl_body_encode(m, &p->body, err);
    if (st != PL_OK)
        return st;
    p->n_records++;
    const uint32_t is_critical = m->h.type != PL_MSG_DRAFTER && m->h.type != PL_MSG_TRACED;
    return pl_journal_put(
        p->ledger, 2 * (uint32_t)m->h.type + is_critical, p->body.data, p->body.n, err);
}

/* ---- the ledger ---- */

static pl_status replay(void *ctx, const pl_journal_record *r, pl_error *err)
{
    process *p = ctx;
    pl_msg m;
    if (!r->is_critical && r->type != 2 * PL_MSG_DRAFTER)
        return PL_OK;
    if (r->type / 2 > UINT16_MAX)
        return pl_fail(err, PL_E_FORMAT, "record type %u is not known", r->type);
    memset(&m, 0, sizeof m);
    const uint16_t type = (uint16_t)(r->type / 2);
    pl_error why = {0};
    const pl_status st = pl_body_decode(&m, type, r->data, r->n, &why);
    if (st != PL_OK && !r->is_critical) {
        pl_log_warn(p->log, "event=skipped: %s; the run goes on without", why.msg);
        return PL_OK;
    }
    if (st != PL_OK)
        return pl_fail(err, st, "%.400s", why.msg);
    m.h.type = type;
    return pl_coordinator_replay(p->machine, &m, err);
}

/* The 16 bytes that 32 hex digits say; of another run id: the first bytes of its hash. */
static void run_uid(unsigned char out[16], const char *run)
{
    unsigned char hash[PL_HASH_BYTES];
    const size_t n = strlen(run);
    pl_hash256(hash, run, n);
    memcpy(out, hash, 16);
    if (n != 32 || strspn(run, "0123456789abcdefABCDEF") != 32)
        return;
    for (int i = 0; i < 16; i++) {
        const char two[3] = {run[2 * i], run[2 * i + 1], '\0'};
        out[i] = (unsigned char)strtoul(two, NULL, 16);
    }
}

static pl_status open_ledger(process *p, pl_error *err)
{
    char path[4096];
    const int n = snprintf(path, sizeof path, "%s/000001.journal", p->o->ledger);
    if (n < 0 || n >= (int)sizeof path)
        return pl_fail(err, PL_E_CONFIG,
            "the path of the ledger '%.60s...' is too long: use a "
            "shorter run directory",
            p->o->ledger);
    pl_status st = pl_dir_make(p->o->ledger, err);
    if (st != PL_OK)
        return st;
    pl_journal_options jo = {.magic = "PLLEDGR1"};
    run_uid(jo.run_uid, p->o->machine.run);
    pl_journal_report report;
    st = pl_journal_open(&p->ledger, path, &jo, replay, p, &report, err);
    if (st != PL_OK)
        return pl_wrap(err, st, "ledger '%s'", path);
    if (report.torn_bytes)
        pl_log_warn(p->log,
            "event=torn_ledger path=%s cut_bytes=%llu: a crash in mid-write; "
            "nothing that was acknowledged is lost",
            path, (unsigned long long)report.torn_bytes);
    pl_log_info(p->log, "event=ledger path=%s records=%llu bytes=%llu", path,
        (unsigned long long)report.n_records, (unsigned long long)report.n_bytes);
    return PL_OK;
}

static pl_status commit(process *p, pl_error *err)
{
    p->unsynced_ns = 0;
    if (!pl_coordinator_unsynced(p->machine))
        return PL_OK;
    const pl_status st = pl_journal_sync(p->ledger, err);
    if (st != PL_OK)
        return pl_wrap(err, st, "ledger '%s'", p->o->ledger);
    p->n_syncs++;
    return pl_coordinator_synced(p->machine, now(), err);
}

/* ---- sockets ---- */

static pl_status bind_all(process *p, pl_error *err)
{
    const pl_ipc_options io = {.keys = p->o->keys, .is_server = 1};
    pl_status st = pl_ipc_new(&p->ipc, &io, p->log, err);
    if (st == PL_OK)
        st = pl_socket_bind(&p->sockets[LOCAL], p->ipc, p->o->address, err);
    if (st == PL_OK && p->o->listen)
        st = pl_socket_bind(&p->sockets[REMOTE], p->ipc, p->o->listen, err);
    for (int i = 0; i < N_SOCKETS && st == PL_OK; i++)
        if (p->sockets[i])
            pl_socket_set_epoch(p->sockets[i], pl_coordinator_epoch(p->machine));
    return st;
}

static pl_status write_endpoints(const process *p, pl_error *err)
{
    if (!p->o->endpoint_file)
        return PL_OK;
    char text[2048];
    const int n = snprintf(text, sizeof text, "%s\n%s%s", pl_socket_address(p->sockets[LOCAL]),
        p->sockets[REMOTE] ? pl_socket_address(p->sockets[REMOTE]) : "",
        p->sockets[REMOTE] ? "\n" : "");
    if (n < 0 || n >= (int)sizeof text)
        return pl_fail(err, PL_E_CONFIG, "addresses of the coordinator are too long");
    return pl_file_write(p->o->endpoint_file, text, (size_t)n, err);
}

static void refuse(process *p, int i, const pl_peer *from, const char *why)
{
    const pl_msg no = {.h.type = PL_MSG_REJECT, .u.reject = {PL_E_INVAL, why}};
    (void)pl_socket_send(p->sockets[i], from, &no, NULL);
    pl_socket_drop(p->sockets[i], from);
}

/* One message of socket i.  *any is set when there was one. */
static pl_status receive(process *p, int i, int *any, pl_error *err)
{
    pl_peer from;
    pl_msg m;
    pl_error bad;
    const pl_status st = pl_socket_recv(p->sockets[i], 0, &from, &m, &bad);
    if (st == PL_E_TIMEOUT)
        return PL_OK;
    const int is_bad = st == PL_E_FORMAT || st == PL_E_SHAPE || st == PL_E_PEER;
    if (st == PL_OK || is_bad)
        *any = 1;
    if (st == PL_OK && i == REMOTE && m.h.type == PL_MSG_HELLO &&
        m.u.hello.role != PL_ROLE_WORKER) {
        refuse(p, i, &from, "only workers join from another machine");
        return PL_OK;
    }
    if (st == PL_OK) {
        if (i == REMOTE)
            remember_remote(p, &from);
        if (m.h.type == PL_MSG_HELLO)
            meet(p, i, &from, &m.u.hello);
        guest *g = m.h.type == PL_MSG_LEAVE ? find_guest(p, &from) : NULL;
        if (g)
            tell(p, g, 0);
        return pl_coordinator_message(p->machine, now(), &from, &m, err);
    }
    pl_log_debug(p->log, "event=malformed: %s", bad.msg);
    if (st == PL_E_PEER) /* another protocol: it cannot be helped */
        refuse(p, i, &from, bad.msg);
    return is_bad ? PL_OK : pl_fail(err, st, "%.400s", bad.msg);
}

/* Take what is there.  Records are made durable when nothing is left, or have waited enough. */
static pl_status serve(process *p, pl_error *err)
{
    int any = 1;
    for (int n = 0; any && n < BURST_MAX; n++) {
        any = 0;
        for (int i = 0; i < N_SOCKETS; i++) {
            const pl_status st = p->sockets[i] ? receive(p, i, &any, err) : PL_OK;
            if (st != PL_OK)
                return st;
        }
        if (!p->unsynced_ns && pl_coordinator_unsynced(p->machine))
            p->unsynced_ns = now();
        if (p->unsynced_ns && now() - p->unsynced_ns >= COMMIT_MS * 1000000LL)
            break;
    }
    pl_status st = pl_coordinator_tick(p->machine, now(), err);
    const int is_due = p->unsynced_ns && now() - p->unsynced_ns >= COMMIT_MS * 1000000LL;
    if (st == PL_OK && (!any || is_due))
        st = commit(p, err);
    return st;
}

static int has_workers(const process *p)
{
    pl_coordinator_stats s;
    pl_coordinator_get_stats(p->machine, &s);
    return s.n_workers > 0;
}

static void observe(process *p, int is_last)
{
    const int64_t at = now();
    if (!p->o->observe || (!is_last && at - p->observed_ns < OBSERVE_MS * 1000000LL))
        return;
    p->observed_ns = at;
    p->o->observe(p->o->ctx, p->machine, at);
}

static pl_status run(process *p, pl_error *err)
{
    int64_t leaving_ns = 0;
    int is_stopped = 0;
    for (;;) {
        const int wish = p->o->should_stop ? p->o->should_stop(p->o->ctx) : 0;
        if (wish >= 2)
            return pl_fail(err, PL_E_STOPPED,
                "the coordinator was told to leave; the ledger has "
                "all that was acknowledged");
        if (wish == 1 && !is_stopped) {
            is_stopped = 1;
            pl_coordinator_drain(p->machine, now());
        }
        const pl_status st = serve(p, err);
        if (st != PL_OK)
            return st;
        if (is_stopped || pl_coordinator_is_done(p->machine)) {
            if (!leaving_ns)
                leaving_ns = now();
            const int64_t left_ms = (now() - leaving_ns) / 1000000;
            if (left_ms > (has_workers(p) ? FAREWELL_MS : PARTING_MS))
                break;
        }
        observe(p, 0);
        pl_socket_wait(p->sockets, N_SOCKETS, NULL, 0, WAKE_MS);
    }
    if (pl_coordinator_is_done(p->machine))
        return PL_OK;
    return pl_fail(err, PL_E_STOPPED, "the coordinator was asked to stop; workers have left");
}

pl_status pl_coordinate(const pl_coordinate_options *o, const pl_log *log, pl_error *err)
{
    process p = {.o = o, .log = log};
    const pl_coordinator_io io = {&p, on_send, on_drop, on_record, on_is_dead};
    p.remote = calloc(REMOTE_MAX, sizeof *p.remote);
    p.guests = calloc(GUESTS_MAX, sizeof *p.guests);
    if (!p.remote || !p.guests) {
        free(p.remote);
        free(p.guests);
        return pl_fail(err, PL_E_NOMEM, "coordinator: no memory for peers");
    }

    /* 1. What was, from the ledger. */
    pl_status st = pl_coordinator_new(&p.machine, &o->machine, &io, log, err);
    if (st == PL_OK)
        st = open_ledger(&p, err);

    /* 2. A new epoch, durable before anything is said. */
    if (st == PL_OK)
        st = pl_coordinator_begin(p.machine, now(), err);
    if (st == PL_OK)
        st = bind_all(&p, err);
    if (st == PL_OK)
        st = commit(&p, err);

    /* 3. Now others may find it. */
    if (st == PL_OK)
        st = write_endpoints(&p, err);
    if (st == PL_OK) {
        pl_log_info(log, "event=coordinator epoch=%llu address=%s",
            (unsigned long long)pl_coordinator_epoch(p.machine),
            pl_socket_address(p.sockets[LOCAL]));
        st = run(&p, err);
        observe(&p, 1);
        pl_log_info(log, "event=end syncs=%llu records=%llu", (unsigned long long)p.n_syncs,
            (unsigned long long)p.n_records);
    }

    for (int i = 0; i < N_SOCKETS; i++)
        pl_socket_close(p.sockets[i]);
    pl_ipc_free(p.ipc);
    pl_journal_close(p.ledger);
    pl_coordinator_free(p.machine);
    pl_bytes_done(&p.body);
    for (int i = 0; i < p.n_guests; i++)
        close_guest(&p.guests[i]);
    free(p.guests);
    free(p.remote);
    return st;
}
