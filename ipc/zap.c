/* ipc/zap.c - who is admitted: the handler that libzmq asks about every CURVE client (ZeroMQ RFC
 * 27, "ZAP").  CURVE alone admits any key at all.
 *
 * The list is clients/NAME.key.  It is read again when the directory changed, or changed so
 * recently that its time stamp may not tell; a key that is on the list is read again from its file
 * before it is admitted, so that a file that was removed or rewritten counts at once.  A connection
 * that stands is not cut by that. */
#include "ipc/socket_internal.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum {
    CLIENTS_MAX = 4096,
    NAME_BYTES = 256,
    DIR_BYTES = 4000,
    SETTLED_S = 2, /* a stamp this old changes with the next change of the directory */
    CURVE_KEY_BYTES = 32,
    ZAP_FRAMES = 7, /* version, id, domain, address, routing id, mechanism, key */
    ZAP_FRAME_BYTES = 256,
};

typedef struct client {
    char key[KEY_TEXT];
    char name[NAME_BYTES];
} client;

struct zap {
    void *socket; /* REP; used by the thread while that runs */
    const pl_log *log;
    pthread_t thread;
    char dir[DIR_BYTES]; /* of the clients */
    client *clients;     /* [n_clients] */
    int n_clients;
    struct timespec stamp; /* of the directory when it was read */
    int is_fresh;          /* the stamp can be relied on */
    socket_rate denied;
};

/* ---- the list ---- */

static int is_key_name(const char *name)
{
    const size_t n = strlen(name);

    return name[0] != '.' && n > 4 && n < NAME_BYTES && strcmp(name + n - 4, ".key") == 0;
}

static void read_client(zap *z, const char *name)
{
    pl_error err = {0};
    client *c = &z->clients[z->n_clients];

    if (keys_read(z->dir, name, 0, c->key, &err) != PL_OK) {
        pl_log_warn(z->log, "event=client_key_skipped reason=\"%s\"", err.msg);
        return;
    }
    snprintf(c->name, sizeof c->name, "%s", name);
    z->n_clients++;
}

static void read_clients(zap *z)
{
    struct stat s;
    struct timespec now;
    DIR *d = opendir(z->dir);

    z->n_clients = 0;
    z->is_fresh = 0;
    if (!d || fstat(dirfd(d), &s) != 0) {
        pl_log_warn(z->log, "event=clients_unreadable dir='%s' reason=\"%s\": nobody is admitted",
            z->dir, strerror(errno));
        if (d)
            closedir(d);
        return;
    }
    z->stamp = s.st_mtim;
    clock_gettime(CLOCK_REALTIME, &now);
    z->is_fresh = now.tv_sec - s.st_mtim.tv_sec > SETTLED_S;
    if ((s.st_mode & 022) != 0) {
        pl_log_warn(z->log,
            "event=clients_unsafe dir='%s' mode=%04o: nobody is admitted, chmod 700 it", z->dir,
            (unsigned)(s.st_mode & 07777));
        closedir(d);
        return;
    }
    for (const struct dirent *e = readdir(d); e && z->n_clients < CLIENTS_MAX; e = readdir(d))
        if (is_key_name(e->d_name))
            read_client(z, e->d_name);
    closedir(d);
}

static int is_list_current(const zap *z)
{
    struct stat s;

    return z->is_fresh && stat(z->dir, &s) == 0 && s.st_mtim.tv_sec == z->stamp.tv_sec &&
           s.st_mtim.tv_nsec == z->stamp.tv_nsec;
}

/* The name of the file that admits the key; NULL: none does. */
static const char *find_client(zap *z, const char *key)
{
    char again[KEY_TEXT];

    if (!is_list_current(z))
        read_clients(z);
    for (int i = 0; i < z->n_clients; i++)
        if (strcmp(z->clients[i].key, key) == 0 &&
            keys_read(z->dir, z->clients[i].name, 0, again, NULL) == PL_OK &&
            strcmp(again, key) == 0)
            return z->clients[i].name;
    return NULL;
}

/* ---- the dialogue ---- */

typedef struct question {
    char frame[ZAP_FRAMES][ZAP_FRAME_BYTES];
    int n_bytes[ZAP_FRAMES]; /* -1: longer than it may be */
    int n_frames;
} question;

/* 1, or 0 when the socket is over. */
static int receive(const zap *z, question *q)
{
    int more = 1;
    size_t n_more = sizeof more;

    for (q->n_frames = 0; more; q->n_frames++) {
        char drop[1];
        const int keep = q->n_frames < ZAP_FRAMES;
        char *to = keep ? q->frame[q->n_frames] : drop;
        const size_t room = keep ? ZAP_FRAME_BYTES : sizeof drop;
        int n;
        do
            n = zmq_recv(z->socket, to, room, 0);
        while (n < 0 && errno == EINTR);
        if (n < 0 || zmq_getsockopt(z->socket, ZMQ_RCVMORE, &more, &n_more) != 0)
            return 0;
        if (keep)
            q->n_bytes[q->n_frames] = n > (int)room ? -1 : n;
    }
    return 1;
}

static int frame_is(const question *q, int i, const char *text)
{
    return q->n_bytes[i] == (int)strlen(text) && memcmp(q->frame[i], text, strlen(text)) == 0;
}

static void log_denied(zap *z, const question *q, const char *why, const char *key)
{
    const uint64_t n = socket_rate_count(&z->denied);

    if (n > 0)
        pl_log_warn(z->log, "event=key_denied n=%llu address=%.*s key=%s reason=\"%s\"",
            (unsigned long long)n, q->n_frames > 3 && q->n_bytes[3] > 0 ? q->n_bytes[3] : 0,
            q->frame[3], key, why);
}

/* The name of who is admitted, or NULL. */
static const char *judge(zap *z, const question *q)
{
    char key[KEY_TEXT];

    if (q->n_frames != ZAP_FRAMES || !frame_is(q, 0, "1.0") || !frame_is(q, 5, "CURVE") ||
        q->n_bytes[6] != CURVE_KEY_BYTES ||
        !zmq_z85_encode(key, (const uint8_t *)q->frame[6], CURVE_KEY_BYTES)) {
        log_denied(z, q, "not a CURVE key", "-");
        return NULL;
    }
    const char *name = find_client(z, key);
    if (!name)
        log_denied(z, q, "no file of clients/ holds it", key);
    else
        pl_log_debug(z->log, "event=key_admitted name='%s'", name);
    return name;
}

static int send_text(const zap *z, const char *text, size_t n, int more)
{
    int rc;

    do
        rc = zmq_send(z->socket, text, n, more ? ZMQ_SNDMORE : 0);
    while (rc < 0 && errno == EINTR);
    return rc >= 0;
}

static int answer(zap *z, const question *q)
{
    const char *name = judge(z, q);
    const char *code = name ? "200" : "400", *text = name ? "OK" : "denied";
    const size_t n_id = q->n_frames > 1 && q->n_bytes[1] > 0 ? (size_t)q->n_bytes[1] : 0;

    return send_text(z, "1.0", 3, 1) && send_text(z, q->frame[1], n_id, 1) &&
           send_text(z, code, 3, 1) && send_text(z, text, strlen(text), 1) &&
           send_text(z, name ? name : "", name ? strlen(name) : 0, 1) && send_text(z, "", 0, 0);
}

/* Ends with the context.  Any other end leaves the socket open and silent: nobody is admitted. */
static void *serve(void *arg)
{
    zap *z = arg;
    question q;

    memset(&q, 0, sizeof q);
    while (receive(z, &q) && answer(z, &q))
        memset(&q, 0, sizeof q);
    if (errno != ETERM)
        pl_log_error(z->log, "event=key_handler_ended reason=\"%s\": no new peer is admitted",
            zmq_strerror(errno));
    return NULL;
}

static pl_status start(zap *z, void *ctx, pl_error *err)
{
    sigset_t all, before;
    const int zero = 0;

    z->socket = zmq_socket(ctx, ZMQ_REP);
    if (!z->socket || zmq_setsockopt(z->socket, ZMQ_LINGER, &zero, sizeof zero) != 0 ||
        zmq_bind(z->socket, "inproc://zeromq.zap.01") != 0)
        return pl_fail(err, PL_E_IO, "handler of keys: %s", zmq_strerror(errno));
    /* Signals are for the thread that started us. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int rc = pthread_create(&z->thread, NULL, serve, z);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0)
        return pl_fail(err, PL_E_IO, "handler of keys: cannot start a thread: %s", strerror(rc));
    return PL_OK;
}

pl_status zap_new(zap **out, void *ctx, const char *dir, const pl_log *log, pl_error *err)
{
    zap *z = calloc(1, sizeof *z);

    if (z)
        z->clients = calloc(CLIENTS_MAX, sizeof *z->clients);
    if (!z || !z->clients) {
        free(z);
        return pl_fail(err, PL_E_NOMEM, "handler of keys: no memory");
    }
    z->log = log;
    snprintf(z->dir, sizeof z->dir, "%s/clients", dir);
    read_clients(z);
    if (z->n_clients == 0)
        pl_log_warn(log, "event=no_client_keys dir='%s': nobody is admitted", z->dir);
    const pl_status st = start(z, ctx, err);
    if (st != PL_OK) {
        if (z->socket)
            zmq_close(z->socket);
        free(z->clients);
        free(z);
        return st;
    }
    *out = z;
    return PL_OK;
}

void zap_free(zap *z)
{
    if (!z)
        return;
    pthread_join(z->thread, NULL);
    zmq_close(z->socket);
    free(z->clients);
    free(z);
}
