/* ipc/publisher.c - serves contents to whoever asks, from a thread of its own.
 *
 * A reader asks for chunks, at most CHANNEL_CREDIT at once; what it asks for stands in its list of
 * wishes until there is room for it.  Room is counted in bytes that libzmq holds: each body is
 * handed over with a function that libzmq calls when it has let go of it, so the count is exact,
 * where high-water marks count messages a connection.  A reader has its share of the room and no
 * more; one that takes nothing for STALLED_MS is cut off.
 *
 *     FETCH -> wishes -> (room?) -> pread -> LEAVES, CHUNK or GONE -> libzmq -> let_go -> room */
#define _GNU_SOURCE
#include "core/hash.h"
#include "ipc/channel_internal.h"
#include "ipc/socket_internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    READERS_MAX = 64,
    WISHES = 2 * CHANNEL_CREDIT,
    READER_CHUNKS = CHANNEL_CREDIT + 2, /* libzmq lets go of a chunk a little after it is read */
    SHARE = 4,                          /* of the room, that one reader may fill */
    SEND_HWM = 64,                      /* messages; the room is bounded before */
    RECEIVE_HWM = 16,
    A_LOOK = 64, /* messages taken before something is sent */
    LOOK_MS = 1000,
    STALLED_MS = 10000,
    HASH_THREADS = 8,
};

/* ---- the object ---- */

typedef struct content {
    pl_hash root;
    uint32_t version, n_chunks;
    uint64_t n_bytes;
    int fd;
    pl_hash *leaves; /* [n_chunks] */
} content;

typedef struct wish {
    pl_hash hash;
    uint32_t first; /* chunk, or first leaf */
    int is_leaves;
} wish;

typedef struct reader {
    pl_peer id;
    account *account;    /* NULL: no reader here */
    wish wishes[WISHES]; /* the oldest first */
    int n_wishes;
    size_t standing;      /* when last looked at */
    int64_t moved_ms;     /* when it last took something, or asked while nothing stood */
    zmq_msg_t connection; /* a message that came by it */
} reader;

struct pl_publisher {
    pl_socket *socket; /* the thread's */
    const pl_log *log;
    pthread_t thread;
    int is_running;
    atomic_int stop;
    account *account;
    size_t max_bytes, reader_bytes;
    reader readers[READERS_MAX]; /* the thread's */
    unsigned char *chunk;        /* [PL_CHUNK_BYTES] the thread's */
    int64_t looked_ms;
    pthread_mutex_t lock; /* of the contents */
    content *contents;    /* [max_contents], the oldest first */
    int n_contents, max_contents;
};

/* ---- contents ---- */

static void content_done(content *c)
{
    if (c->fd >= 0)
        (void)close(c->fd);
    free(c->leaves);
}

static void remove_content(pl_publisher *p, int i)
{
    content_done(&p->contents[i]);
    p->n_contents--;
    memmove(
        &p->contents[i], &p->contents[i + 1], (size_t)(p->n_contents - i) * sizeof *p->contents);
}

static int find_content(const pl_publisher *p, const pl_hash *root)
{
    for (int i = 0; i < p->n_contents; i++)
        if (memcmp(&p->contents[i].root, root, sizeof *root) == 0)
            return i;
    return -1;
}

static uint32_t oldest_version(const pl_publisher *p)
{
    uint32_t v = UINT32_MAX;

    for (int i = 0; i < p->n_contents; i++)
        v = p->contents[i].version < v ? p->contents[i].version : v;
    return v;
}

/* ---- sending ---- */

static int send_bytes(pl_socket *s, const void *data, size_t n)
{
    int rc;

    do
        rc = zmq_send(s->zmq, data, n, ZMQ_DONTWAIT | ZMQ_SNDMORE);
    while (rc < 0 && errno == EINTR);
    return rc >= 0;
}

static pl_status send_counted(pl_publisher *p, reader *r, const pl_msg *m, pl_error *err)
{
    pl_socket *s = p->socket;
    unsigned char head[PL_HEADER_BYTES];
    pl_header h = {.protocol = PL_PROTOCOL,
        .type = m->h.type,
        .epoch = s->epoch,
        .incarnation = s->incarnation,
        .seq = s->seq + 1};
    zmq_msg_t body;
    size_t n;
    int rc = -1;

    pl_status st = account_body(&body, r->account, m, &n, err);
    if (st != PL_OK)
        return st;
    h.n_body = (uint32_t)n;
    pl_header_encode(&h, zmq_msg_data(&body), head);
    if (send_bytes(s, r->id.id, sizeof r->id.id) && send_bytes(s, head, sizeof head))
        do
            rc = zmq_msg_send(&body, s->zmq, ZMQ_DONTWAIT);
        while (rc < 0 && errno == EINTR);
    if (rc < 0) {
        zmq_msg_close(&body); /* lets go */
        s->stats.n_dropped++;
        return pl_fail(err, PL_E_PEER, "a reader is gone");
    }
    s->seq++;
    s->stats.n_sent++;
    return PL_OK;
}

static void forget_wish(reader *r, int i)
{
    r->n_wishes--;
    memmove(&r->wishes[i], &r->wishes[i + 1], (size_t)(r->n_wishes - i) * sizeof *r->wishes);
}

static void send_gone(pl_publisher *p, reader *r, const pl_hash *hash)
{
    pl_msg m = {.h.type = PL_MSG_GONE, .u.gone = {*hash, oldest_version(p)}};
    pl_error lost = {0};

    (void)pl_socket_send(p->socket, &r->id, &m, &lost); /* asked again, answered again */
}

static pl_status send_leaves(pl_publisher *p, reader *r, const content *c, const wish *w)
{
    const uint32_t left = c->n_chunks - w->first;
    const uint32_t n = left < CHANNEL_LEAVES ? left : CHANNEL_LEAVES;
    pl_error lost = {0};
    const pl_msg m = {.h.type = PL_MSG_LEAVES,
        .u.leaves = {c->root, c->n_bytes, w->first, {c->leaves + w->first, n}}};

    return send_counted(p, r, &m, &lost);
}

static pl_status send_chunk(pl_publisher *p, reader *r, const content *c, const wish *w)
{
    const uint32_t n = content_chunk_bytes(c->n_bytes, w->first);
    const uint64_t offset = (uint64_t)w->first * PL_CHUNK_BYTES;
    pl_error lost = {0};
    const int code = content_read(c->fd, p->chunk, n, offset);

    if (code != 0)
        return pl_fail(&lost, PL_E_IO, "%s", strerror(code));
    const pl_msg m = {.h.type = PL_MSG_CHUNK,
        .u.chunk = {c->root, w->first, offset, pl_crc32c(0, p->chunk, n), {p->chunk, n}}};
    return send_counted(p, r, &m, &lost);
}

/* The oldest wish of a reader.  With the lock. */
static void grant(pl_publisher *p, reader *r)
{
    const wish w = r->wishes[0];
    const int i = find_content(p, &w.hash);
    pl_status st = PL_OK;

    forget_wish(r, 0);
    if (i < 0) {
        for (int k = r->n_wishes - 1; k >= 0; k--) /* one answer is enough */
            if (memcmp(&r->wishes[k].hash, &w.hash, sizeof w.hash) == 0)
                forget_wish(r, k);
        send_gone(p, r, &w.hash);
        return;
    }
    if (w.first >= p->contents[i].n_chunks)
        return; /* nobody who knows the size asks for it */
    st = w.is_leaves ? send_leaves(p, r, &p->contents[i], &w)
                     : send_chunk(p, r, &p->contents[i], &w);
    if (st == PL_E_PEER)
        r->n_wishes = 0; /* it asks again, if it is there */
    if (st == PL_E_IO) {
        pl_log_warn(p->log,
            "event=content_lost version=%u reason=\"its file changed or cannot be read\": "
            "continuing without it",
            p->contents[i].version);
        remove_content(p, i);
        send_gone(p, r, &w.hash);
    }
}

static int has_room(const pl_publisher *p, const reader *r)
{
    return atomic_load(&r->account->standing) + CHANNEL_MESSAGE_BYTES <= p->reader_bytes &&
           atomic_load(&p->account->standing) + CHANNEL_MESSAGE_BYTES <= p->max_bytes;
}

/* One wish of each reader that has room.  Returns how many. */
static int deliver(pl_publisher *p)
{
    int n = 0;

    for (int i = 0; i < READERS_MAX; i++) {
        reader *r = &p->readers[i];
        if (!r->account || r->n_wishes == 0 || !has_room(p, r))
            continue;
        pthread_mutex_lock(&p->lock);
        grant(p, r);
        pthread_mutex_unlock(&p->lock);
        n++;
    }
    return n;
}

/* ---- readers ---- */

static void reader_done(reader *r)
{
    if (!r->account)
        return;
    zmq_msg_close(&r->connection);
    account_free(r->account);
    memset(r, 0, sizeof *r);
}

/* Where a new one goes: a free place, or that of the longest idle. */
static reader *free_place(pl_publisher *p)
{
    reader *best = NULL;

    for (int i = 0; i < READERS_MAX; i++) {
        reader *r = &p->readers[i];
        if (!r->account)
            return r;
        if (atomic_load(&r->account->standing) == 0 && (!best || r->moved_ms < best->moved_ms))
            best = r;
    }
    if (best)
        reader_done(best);
    return best;
}

static reader *reader_of(pl_publisher *p, const pl_peer *from)
{
    for (int i = 0; i < READERS_MAX; i++)
        if (p->readers[i].account && memcmp(&p->readers[i].id, from, sizeof *from) == 0)
            return &p->readers[i];
    reader *r = free_place(p);
    if (!r)
        return NULL;
    r->account = account_new(p->account);
    if (!r->account)
        return NULL;
    r->id = *from;
    r->moved_ms = socket_now_ms();
    zmq_msg_init(&r->connection);
    return r;
}

static void add_wish(reader *r, const wish *w)
{
    for (int i = 0; i < r->n_wishes; i++)
        if (r->wishes[i].first == w->first && r->wishes[i].is_leaves == w->is_leaves &&
            memcmp(&r->wishes[i].hash, &w->hash, sizeof w->hash) == 0)
            return;
    if (r->n_wishes < WISHES)
        r->wishes[r->n_wishes++] = *w;
}

static void take_fetch(pl_publisher *p, const pl_peer *from, const pl_msg_fetch *m)
{
    reader *r = reader_of(p, from);
    const uint32_t n = m->n < CHANNEL_CREDIT ? m->n : CHANNEL_CREDIT;

    if (!r)
        return; /* it asks again, when there is a place */
    (void)zmq_msg_copy(&r->connection, &p->socket->head);
    for (uint32_t i = 0; i < (n > 0 ? n : 1) && m->first <= UINT32_MAX - i; i++) {
        const wish w = {m->hash, m->first + i, n == 0};
        add_wish(r, &w);
    }
}

static void reject(pl_publisher *p, const pl_peer *from, pl_status code, const char *reason)
{
    pl_msg m = {.h.type = PL_MSG_REJECT, .u.reject = {(uint32_t)code, reason}};
    pl_error lost = {0};

    (void)pl_socket_send(p->socket, from, &m, &lost);
    pl_socket_drop(p->socket, from);
}

static void listen_some(pl_publisher *p)
{
    pl_peer from;
    pl_msg m;

    for (int i = 0; i < A_LOOK; i++) {
        pl_error err = {0};
        const pl_status st = pl_socket_recv(p->socket, 0, &from, &m, &err);
        if (st == PL_E_TIMEOUT)
            return;
        if (st == PL_OK && m.h.type == PL_MSG_FETCH)
            take_fetch(p, &from, &m.u.fetch);
        else if (st == PL_OK)
            reject(p, &from, PL_E_PEER, "only weights are served here");
        else if (st == PL_E_PEER)
            reject(p, &from, PL_E_PEER, err.msg);
        /* else: damaged on its way, counted; it comes again */
    }
}

/* Cut those that take nothing of what they asked for: it stands here. */
static void look_round(pl_publisher *p)
{
    const int64_t now = socket_now_ms();

    if (now - p->looked_ms < LOOK_MS)
        return;
    p->looked_ms = now;
    for (int i = 0; i < READERS_MAX; i++) {
        reader *r = &p->readers[i];
        if (!r->account)
            continue;
        const size_t standing = atomic_load(&r->account->standing);
        if (standing == 0 || standing != r->standing)
            r->moved_ms = now;
        r->standing = standing;
        if (now - r->moved_ms < STALLED_MS)
            continue;
        pl_log_warn(p->log,
            "event=reader_cut standing_bytes=%zu reason=\"took nothing for %d s\": continuing",
            standing, STALLED_MS / 1000);
        guard_cut(p->socket->guard, &r->connection);
        r->n_wishes = 0;
        r->moved_ms = now;
    }
}

static void *serve(void *ctx)
{
    pl_publisher *p = ctx;
    uint64_t n;

    while (!atomic_load(&p->stop)) {
        listen_some(p);
        look_round(p);
        if (deliver(p) > 0)
            continue;
        pl_socket_wait(&p->socket, 1, &p->account->wake, 1, LOOK_MS);
        while (read(p->account->wake, &n, sizeof n) < 0 && errno == EINTR) {
        }
    }
    return NULL;
}

/* ---- life ---- */

static pl_status start(pl_publisher *p, pl_ipc *ipc, const char *address, pl_error *err)
{
    p->account = account_new(NULL);
    p->chunk = malloc(PL_CHUNK_BYTES);
    p->contents = calloc((size_t)p->max_contents, sizeof *p->contents);
    if (!p->account || !p->chunk || !p->contents)
        return pl_fail(err, PL_E_NOMEM, "publisher: no memory, or too many open files");
    const pl_status st = socket_bind(&p->socket, ipc, address, SEND_HWM, RECEIVE_HWM, err);
    if (st != PL_OK)
        return st;
    const int rc = pthread_create(&p->thread, NULL, serve, p);
    if (rc != 0)
        return pl_fail(err, PL_E_NOMEM, "publisher: no thread: %s", strerror(rc));
    p->is_running = 1;
    return PL_OK;
}

pl_status pl_publisher_new(pl_publisher **out, pl_ipc *ipc, const pl_publisher_options *o,
    const pl_log *log, pl_error *err)
{
    if (o->max_contents < 1 || o->max_bytes < CHANNEL_MESSAGE_BYTES)
        return pl_fail(err, PL_E_INVAL, "a publisher holds one content and %d bytes at least",
            (int)CHANNEL_MESSAGE_BYTES);
    pl_publisher *p = calloc(1, sizeof *p);
    if (!p)
        return pl_fail(err, PL_E_NOMEM, "publisher: no memory");
    const size_t share = o->max_bytes / SHARE, most = (size_t)READER_CHUNKS * CHANNEL_MESSAGE_BYTES;
    p->log = log;
    p->max_contents = o->max_contents;
    p->max_bytes = o->max_bytes;
    p->reader_bytes = share > most                    ? most
                      : share < CHANNEL_MESSAGE_BYTES ? CHANNEL_MESSAGE_BYTES
                                                      : share;
    pthread_mutex_init(&p->lock, NULL);
    const pl_status st = start(p, ipc, o->address, err);
    if (st != PL_OK) {
        pl_publisher_free(p);
        return st;
    }
    *out = p;
    return PL_OK;
}

void pl_publisher_free(pl_publisher *p)
{
    if (!p)
        return;
    if (p->is_running) {
        atomic_store(&p->stop, 1);
        account_wake(p->account);
        pthread_join(p->thread, NULL);
    }
    for (int i = 0; i < READERS_MAX; i++)
        reader_done(&p->readers[i]);
    pl_socket_close(p->socket);
    while (p->n_contents > 0)
        remove_content(p, 0);
    account_free(p->account);
    pthread_mutex_destroy(&p->lock);
    free(p->contents);
    free(p->chunk);
    free(p);
}

const char *pl_publisher_address(const pl_publisher *p)
{
    return pl_socket_address(p->socket);
}

size_t publisher_standing(const pl_publisher *p, size_t *most)
{
    if (most)
        *most = atomic_load(&p->account->most);
    return atomic_load(&p->account->standing);
}

/* ---- adding ---- */

static pl_status open_content(content *c, const char *path, pl_error *err)
{
    struct stat info;
    cpu_set_t cpus;

    c->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (c->fd < 0)
        return pl_fail(
            err, errno == ENOENT ? PL_E_NOENT : PL_E_IO, "open '%s': %s", path, strerror(errno));
    if (fstat(c->fd, &info) != 0)
        return pl_fail(err, PL_E_IO, "examine '%s': %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode))
        return pl_fail(err, PL_E_FORMAT, "'%s' is not a regular file", path);
    c->n_bytes = (uint64_t)info.st_size;
    c->n_chunks = pl_content_chunks(c->n_bytes);
    if (c->n_chunks > CHANNEL_CHUNKS_MAX)
        return pl_fail(err, PL_E_INVAL, "'%s' has %" PRIu64 " bytes: too large for the channel",
            path, c->n_bytes);
    c->leaves = calloc(c->n_chunks > 0 ? c->n_chunks : 1, sizeof *c->leaves);
    if (!c->leaves)
        return pl_fail(err, PL_E_NOMEM, "no memory for the hashes of '%s'", path);
    int n = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
    n = n < HASH_THREADS ? n : HASH_THREADS;
    return content_hash_fd(c->fd, path, c->n_bytes, n, c->leaves, &c->root, err);
}

pl_status pl_publisher_add(pl_publisher *p, const char *path, uint32_t version, pl_hash *root,
    uint64_t *n_bytes, pl_error *err)
{
    content c = {.version = version, .fd = -1};
    const pl_status st = open_content(&c, path, err);

    if (st != PL_OK) {
        content_done(&c);
        return st;
    }
    pthread_mutex_lock(&p->lock);
    const int same = find_content(p, &c.root);
    if (same >= 0) /* the same bytes again: this file holds them longer */
        remove_content(p, same);
    else if (p->n_contents == p->max_contents)
        remove_content(p, 0);
    p->contents[p->n_contents++] = c;
    pthread_mutex_unlock(&p->lock);
    *root = c.root;
    *n_bytes = c.n_bytes;
    return PL_OK;
}
