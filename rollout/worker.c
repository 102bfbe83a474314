/* rollout/worker.c - the worker as a process: its socket, its clock, its loop. */
#include "rollout/worker_internal.h"

#include <time.h>

enum {
    DRAIN_MAX = 64, /* messages between two rounds */
    IDLE_MS = 50,   /* on the socket, when nothing runs */
};

typedef struct line {
    pl_ipc *ipc;
    pl_socket *socket;
    const char *address;
    const pl_log *log;
    worker *w;
    pl_msg m;        /* the newest */
    int is_deferred; /* m came in the middle of a piece of training: it is handled after that */
} line;

static int line_send(void *ctx, const pl_msg *m)
{
    line *l = ctx;
    pl_error err;
    const pl_status st = pl_socket_send(l->socket, NULL, m, &err);
    if (st != PL_OK && st != PL_E_PEER)
        pl_log_warn(l->log, "%s not sent: %s", pl_msg_name(m->h.type), err.msg);
    return st == PL_OK;
}

static void line_set_epoch(void *ctx, uint64_t epoch)
{
    line *l = ctx;
    pl_socket_set_epoch(l->socket, epoch);
}

/* The old socket stays when there can be no new one. */
static void line_reconnect(void *ctx)
{
    line *l = ctx;
    pl_socket *s = NULL;
    pl_error err;
    if (pl_socket_connect(&s, l->ipc, l->address, PL_ROLE_WORKER, &err) != PL_OK) {
        pl_log_warn(l->log, "%s", err.msg);
        return;
    }
    pl_socket_close(l->socket);
    l->socket = s;
}

static int64_t line_now_ns(void *ctx)
{
    struct timespec t;
    (void)ctx;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* What has come in; neither engine nor training is kept waiting for more. */
static pl_status listen(void *ctx, pl_error *err)
{
    line *l = ctx;
    worker *w = l->w;
    for (int i = 0; i < DRAIN_MAX && !w->is_over; i++) {
        pl_peer from;
        pl_error why;
        pl_status st = PL_OK;
        if (!l->is_deferred)
            st = pl_socket_recv(l->socket, 0, &from, &l->m, &why);
        if (st == PL_E_TIMEOUT)
            return PL_OK;
        if (st == PL_E_FORMAT || st == PL_E_SHAPE || st == PL_E_PEER) {
            pl_log_debug(l->log, "%s: refused a message: %s", l->address, why.msg);
            continue; /* the socket counts it; whatever it was is said again */
        }
        if (st != PL_OK) {
            if (err)
                *err = why;
            return pl_wrap(err, st, "coordinator '%s'", l->address);
        }
        l->is_deferred = worker_defers(w, &l->m);
        if (l->is_deferred)
            return PL_OK; /* nothing is received before it is handled: it stays whole */
        st = worker_message(w, &l->m, err);
        if (st != PL_OK)
            return st;
    }
    return PL_OK;
}

pl_status pl_work(const pl_worker_options *o, const pl_worker_io *io, pl_ipc *ipc,
    const pl_log *log, pl_error *err)
{
    line l = {.ipc = ipc, .address = o->address, .log = log};
    const worker_wire wire = {&l, line_send, line_set_epoch, line_reconnect, line_now_ns, listen};
    worker *w = NULL;
    pl_status st = pl_socket_connect(&l.socket, ipc, o->address, PL_ROLE_WORKER, err);
    if (st != PL_OK)
        return st;
    st = worker_new(&w, o, io, &wire, log, err);
    l.w = w;
    while (st == PL_OK && !w->is_over) {
        /* 1. What the coordinator says. */
        st = listen(&l, err);
        /* 2. What time brings: reports of the round before, too. */
        if (st == PL_OK)
            st = worker_tick(w, err);
        /* 3. A round, or a piece of the drafter's training, or rest. */
        if (st != PL_OK || w->is_over)
            break;
        int is_resting = 0;
        if (w->n_running > 0) {
            st = worker_round(w, err);
        } else if (worker_has_session(w)) {
            st = worker_train(w, err);
            is_resting = st == PL_E_TIMEOUT;
        } else {
            is_resting = 1;
        }
        if (is_resting) {
            st = PL_OK;
            pl_socket_wait(&l.socket, 1, NULL, 0, IDLE_MS);
        }
    }
    if (w) {
        worker_end_session(w);
        worker_leave(w);
    }
    worker_free(w);
    pl_socket_close(l.socket);
    return st;
}
