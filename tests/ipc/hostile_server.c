/* tests/ipc/hostile_server.c - what tests/ipc/hostile.py attacks: a server that answers STATUS by
 * BATCH and says once a second what it counted.  hostile_server ADDRESS [KEYS] */
#include "ipc/ipc.h"

#include <inttypes.h>
#include <stdio.h>
#include <time.h>

static void answer(pl_socket *s, const pl_peer *peer, const pl_msg *m)
{
    const pl_msg reply = {.h.type = PL_MSG_BATCH, .u.batch.batch = m->u.status.batch};

    (void)pl_socket_send(s, peer, &reply, NULL);
}

static void report(const pl_socket *s)
{
    pl_socket_stats t;

    pl_socket_get_stats(s, &t);
    printf("received %" PRIu64 " sent %" PRIu64 " malformed %" PRIu64 " dropped %" PRIu64 "\n",
        t.n_received, t.n_sent, t.n_malformed, t.n_dropped);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    const pl_log log = {PL_LOG_WARN, 2, 0};
    const pl_ipc_options o = {.keys = argc > 2 ? argv[2] : NULL, .is_server = 1};
    pl_error err = {0};
    pl_socket *s = NULL;
    pl_ipc *ipc = NULL;
    time_t said = 0;

    if (argc < 2 || pl_ipc_new(&ipc, &o, &log, &err) != PL_OK ||
        pl_socket_bind(&s, ipc, argv[1], &err) != PL_OK) {
        fprintf(stderr, "hostile_server ADDRESS [KEYS]: %s\n", err.msg);
        pl_ipc_free(ipc);
        return 1;
    }
    printf("%s\n", pl_socket_address(s));
    for (;;) {
        pl_peer peer;
        pl_msg m;
        if (pl_socket_recv(s, 100, &peer, &m, NULL) == PL_OK && m.h.type == PL_MSG_STATUS)
            answer(s, &peer, &m);
        if (time(NULL) != said)
            report(s);
        said = time(NULL);
    }
}
