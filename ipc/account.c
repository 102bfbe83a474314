/* ipc/account.c - counts the bytes that libzmq holds, exactly: each body is handed over with a
 * function that libzmq calls when it is done with it, from a thread of its own. */
#include "ipc/channel_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

typedef struct parcel { /* one message */
    account *account;
    size_t n;
} parcel;

account *account_new(account *parent)
{
    account *a = calloc(1, sizeof *a);

    if (!a)
        return NULL;
    a->wake = parent ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!parent && a->wake < 0) {
        free(a);
        return NULL;
    }
    atomic_init(&a->refs, 1);
    a->parent = parent;
    if (parent)
        atomic_fetch_add(&parent->refs, 1);
    return a;
}

void account_free(account *a)
{
    while (a && atomic_fetch_sub(&a->refs, 1) == 1) {
        account *parent = a->parent;
        if (a->wake >= 0)
            (void)close(a->wake);
        free(a);
        a = parent;
    }
}

void account_wake(const account *a)
{
    const uint64_t one = 1;

    while (a->parent)
        a = a->parent;
    while (write(a->wake, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

static void take_room(account *a, size_t n)
{
    atomic_fetch_add(&a->refs, 1);
    for (; a; a = a->parent) {
        const size_t now = atomic_fetch_add(&a->standing, n) + n;
        if (now > atomic_load(&a->most)) /* nobody else adds */
            atomic_store(&a->most, now);
    }
}

static void let_go(void *data, void *hint)
{
    parcel *x = hint;

    free(data);
    for (account *a = x->account; a; a = a->parent)
        atomic_fetch_sub(&a->standing, x->n);
    account_wake(x->account);
    account_free(x->account);
    free(x);
}

pl_status account_body(zmq_msg_t *body, account *a, const pl_msg *m, size_t *n, pl_error *err)
{
    pl_bytes out = {.data = malloc(CHANNEL_MESSAGE_BYTES), .room = CHANNEL_MESSAGE_BYTES};
    parcel *x = malloc(sizeof *x);

    pl_status st = out.data && x ? pl_body_encode(m, &out, err)
                                 : pl_fail(err, PL_E_NOMEM, "no memory to send a chunk");
    if (st == PL_OK) {
        *x = (parcel){a, out.n};
        *n = out.n;
        if (zmq_msg_init_data(body, out.data, out.n, let_go, x) == 0) {
            take_room(a, out.n);
            return PL_OK;
        }
        st = pl_fail(err, PL_E_NOMEM, "no memory to send a chunk");
    }
    free(x);
    pl_bytes_done(&out);
    return st;
}
