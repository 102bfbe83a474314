/* ipc/fetch.c - a content into a file, pulled chunk by chunk.
 *
 *     ASKING LEAVES --(they hash to the root)--> ASKING CHUNKS --(all there)--> fsync, rename
 *
 * At most CHANNEL_CREDIT chunks are asked for and not here.  A publisher answers in order, so a
 * chunk that SURELY_LOST others overtook was lost; so was everything when nothing new has come for
 * a second: it is asked for again. */
#define _GNU_SOURCE
#include "core/hash.h"
#include "ipc/channel_internal.h"
#include "ipc/socket_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SLICE_MS = 200,  /* between two calls of progress, at most */
    CONNECT_MS = 10, /* between two tries to say something while there is no connection */
    REPEAT_MS = 1000,
    REPEAT_MAX_MS = 8000,
    SURELY_LOST = 2 * CHANNEL_CREDIT,
    WRONG_MAX = 16, /* wrong messages in a row, or lists of leaves in all */
    SEND_HWM = 64,
    RECEIVE_HWM = 2 * CHANNEL_CREDIT,
    FLUSH_CHUNKS = 16, /* written chunks after which the disk is set to work */
    TEMP_TRIES = 100,
};

typedef struct slot { /* a chunk that was asked for */
    uint32_t chunk;   /* CHANNEL_NO_CHUNK: free */
    int n_asked;
    uint64_t at; /* arrivals when it was asked for */
} slot;

typedef struct fetch {
    assembly a;
    pl_socket *socket;
    const char *address, *path;
    char temp[PATH_MAX];
    int fd;
    slot slots[CHANNEL_CREDIT];
    uint32_t next;      /* chunks below were asked for */
    uint64_t n_arrived; /* chunks that were right */
    int n_wrong;        /* in a row */
    int silent_ms;      /* without a right message */
    int waited_ms;      /* since something was asked again for silence, or news came */
    int repeat_ms;      /* how long that may last */
    int n_repeats;      /* for silence, since a doubled chunk came */
    int is_unsent;      /* nobody is connected yet */
    int is_empty;       /* the publisher holds nothing at all */
    int64_t clock_ms;
    int timeout_ms;
    pl_fetch_progress progress;
    void *ctx;
} fetch;

/* ---- the file ---- */

static pl_status fail_file(const fetch *f, const char *verb, int code, pl_error *err)
{
    if (code == ENOSPC || code == EDQUOT)
        return pl_fail(err, PL_E_IO,
            "%s '%s': %s: %" PRIu64 " bytes are needed; free space there or choose another "
            "directory",
            verb, f->path, code == ENOSPC ? "disk full" : "disk quota used up", f->a.n_bytes);
    return pl_fail(err, PL_E_IO, "%s '%s': %s", verb, f->path, strerror(code));
}

static pl_status create_file(fetch *f, pl_error *err)
{
    for (int i = 0; i < TEMP_TRIES && f->fd < 0; i++) {
        if (snprintf(f->temp, sizeof f->temp, "%s.tmp.%ld.%d", f->path, (long)getpid(), i) >=
            (int)sizeof f->temp)
            return fail_file(f, "create", ENAMETOOLONG, err);
        f->fd = open(f->temp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (f->fd < 0 && errno != EEXIST && errno != EINTR)
            break;
    }
    if (f->fd < 0) {
        f->temp[0] = 0; /* not ours to remove */
        return fail_file(f, "create", errno, err);
    }
    /* Room for all of it now, where the file system knows how; else a write finds out. */
    if (f->a.n_bytes > 0 && fallocate(f->fd, 0, 0, (off_t)f->a.n_bytes) != 0 &&
        (errno == ENOSPC || errno == EDQUOT || errno == EFBIG))
        return fail_file(f, "create", errno, err);
    return ftruncate(f->fd, (off_t)f->a.n_bytes) == 0 ? PL_OK : fail_file(f, "create", errno, err);
}

static pl_status store(fetch *f, const pl_msg_chunk *m, pl_error *err)
{
    const unsigned char *data = m->bytes.data;
    size_t n = m->bytes.n, at = 0;

    while (at < n) {
        const ssize_t put = pwrite(f->fd, data + at, n - at, (off_t)(m->offset + at));
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return fail_file(f, "write", put < 0 ? errno : EIO, err);
        at += (size_t)put;
    }
    if (f->n_arrived % FLUSH_CHUNKS == 0) /* so that the fsync at the end is short */
        (void)sync_file_range(f->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
    return PL_OK;
}

static pl_status sync_directory(const fetch *f, pl_error *err)
{
    char dir[PATH_MAX];
    const char *slash = strrchr(f->path, '/');
    const int n = slash == f->path ? 1 : slash ? (int)(slash - f->path) : 0;

    snprintf(dir, sizeof dir, "%.*s", n > 0 ? n : 1, n > 0 ? f->path : ".");
    const int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const int rc = fd < 0 ? -1 : fsync(fd);
    const int code = errno;
    if (fd >= 0)
        (void)close(fd);
    return rc == 0 || code == EINVAL ? PL_OK : fail_file(f, "fsync the directory of", code, err);
}

static pl_status commit(fetch *f, pl_error *err)
{
    int rc;

    do
        rc = fsync(f->fd);
    while (rc != 0 && errno == EINTR);
    if (rc != 0)
        return fail_file(f, "fsync", errno, err);
    rc = close(f->fd);
    f->fd = -1;
    if (rc != 0 && errno != EINTR)
        return fail_file(f, "close", errno, err);
    if (rename(f->temp, f->path) != 0)
        return fail_file(f, "rename into place", errno, err);
    f->temp[0] = 0;
    return sync_directory(f, err);
}

/* ---- asking ---- */

static void ask(fetch *f, uint32_t first, uint32_t n)
{
    const pl_msg m = {.h.type = PL_MSG_FETCH, .u.fetch = {f->a.root, first, n}};
    pl_error lost = {0};

    f->is_unsent = pl_socket_send(f->socket, NULL, &m, &lost) != PL_OK;
}

static void ask_slot(fetch *f, slot *s)
{
    s->at = f->n_arrived;
    s->n_asked++;
    ask(f, s->chunk, 1);
}

/* Fill free slots; ask again for what was overtaken. */
static void ask_on(fetch *f)
{
    for (int i = 0; i < CHANNEL_CREDIT; i++) {
        slot *s = &f->slots[i];
        if (s->chunk == CHANNEL_NO_CHUNK && f->next < f->a.n_chunks) {
            *s = (slot){.chunk = f->next++};
            ask_slot(f, s);
        } else if (s->chunk != CHANNEL_NO_CHUNK && f->n_arrived - s->at >= SURELY_LOST) {
            ask_slot(f, s);
        }
    }
}

/* Nothing new for a while: say all of it again. */
static void ask_again(fetch *f)
{
    f->waited_ms = 0;
    if (!f->a.is_checked) {
        ask(f, f->a.n_leaves, 0);
        return;
    }
    for (int i = 0; i < CHANNEL_CREDIT; i++)
        if (f->slots[i].chunk != CHANNEL_NO_CHUNK)
            ask_slot(f, &f->slots[i]);
}

static slot *slot_of(fetch *f, uint32_t chunk)
{
    for (int i = 0; i < CHANNEL_CREDIT; i++)
        if (f->slots[i].chunk == chunk)
            return &f->slots[i];
    return NULL;
}

/* ---- taking ---- */

static pl_status take_wrong(fetch *f, const pl_msg *m, pl_error *err)
{
    if (++f->n_wrong >= WRONG_MAX)
        return pl_fail(err, PL_E_PEER,
            "publisher '%s' sends bytes that are not of the content that was announced (%d times)",
            f->address, WRONG_MAX);
    slot *s = m->h.type == PL_MSG_CHUNK ? slot_of(f, m->u.chunk.index) : NULL;
    if (s && s->chunk != CHANNEL_NO_CHUNK)
        ask_slot(f, s);
    else if (m->h.type == PL_MSG_LEAVES)
        ask_again(f);
    return PL_OK;
}

static pl_status take_chunk(fetch *f, const pl_msg_chunk *m, pl_error *err)
{
    slot *s = slot_of(f, m->index);

    f->n_arrived++;
    if (s)
        s->chunk = CHANNEL_NO_CHUNK;
    const pl_status st = store(f, m, err);
    if (st == PL_OK)
        ask_on(f);
    return st;
}

static pl_status take(fetch *f, const pl_msg *m, pl_error *err)
{
    const assembly_news news = assembly_take(&f->a, m);

    if (m->h.type == PL_MSG_REJECT)
        return pl_fail(
            err, PL_E_PEER, "publisher '%s' refuses: %s", f->address, m->u.reject.reason);
    if (news == NEWS_GONE && m->u.gone.oldest == UINT32_MAX) {
        f->is_empty = 1; /* it may be beginning: asked again until the time is up */
        return PL_OK;
    }
    if (news == NEWS_GONE)
        return pl_fail(err, PL_E_PEER,
            "the content is not held any more by '%s': version %u is the oldest there", f->address,
            m->u.gone.oldest);
    if (news == NEWS_WRONG)
        return take_wrong(f, m, err);
    if (news == NEWS_NONE) {
        /* A chunk that was asked for twice came twice: the line is slow, not lossy. */
        if (m->h.type == PL_MSG_CHUNK && f->n_repeats > 0 && f->repeat_ms < REPEAT_MAX_MS)
            f->repeat_ms *= 2;
        f->n_repeats = 0;
        return PL_OK;
    }
    f->silent_ms = f->waited_ms = f->is_empty = 0;
    if (f->a.is_checked)
        f->n_wrong = 0;
    if (news == NEWS_CHUNK)
        return take_chunk(f, &m->u.chunk, err);
    if (f->a.is_checked)
        ask_on(f);
    else
        ask(f, f->a.n_leaves, 0);
    return PL_OK;
}

/* A process that was stopped has not waited meanwhile: no slice counts more than twice. */
static void count_silence(fetch *f)
{
    const int64_t now = socket_now_ms(), took = now - f->clock_ms;
    const int ms = took < 2 * SLICE_MS ? (int)took : 2 * SLICE_MS;

    f->clock_ms = now;
    f->silent_ms += ms;
    f->waited_ms += ms;
    if (f->is_unsent || f->waited_ms >= f->repeat_ms) {
        f->n_repeats += !f->is_unsent;
        ask_again(f);
    }
}

/* One message, if one comes. */
static pl_status pull_one(fetch *f, pl_msg *m, pl_error *err)
{
    pl_error lost = {0};

    if (pl_socket_recv(f->socket, f->is_unsent ? CONNECT_MS : SLICE_MS, NULL, m, &lost) == PL_OK) {
        const pl_status st = take(f, m, err);
        if (st != PL_OK)
            return st;
    } /* else: nothing, or damaged; it comes again */
    count_silence(f);
    if (f->silent_ms > f->timeout_ms && f->is_empty)
        return pl_fail(
            err, PL_E_PEER, "the content is not held any more by '%s', nor any other", f->address);
    if (f->silent_ms > f->timeout_ms)
        return pl_fail(err, PL_E_PEER,
            "publisher '%s' has not answered for %d ms: it is gone, or the network is", f->address,
            f->timeout_ms);
    return PL_OK;
}

static pl_status pull(fetch *f, pl_error *err)
{
    pl_msg m;
    pl_status st = PL_OK;

    f->clock_ms = socket_now_ms();
    if (!assembly_is_whole(&f->a))
        ask(f, 0, 0);
    while (st == PL_OK && !assembly_is_whole(&f->a)) {
        const uint64_t done = (uint64_t)f->a.n_have * PL_CHUNK_BYTES;
        if (f->progress &&
            f->progress(f->ctx, done < f->a.n_bytes ? done : f->a.n_bytes, f->a.n_bytes) != 0)
            return pl_fail(err, PL_E_STOPPED, "stopped while '%s' was fetched", f->path);
        st = pull_one(f, &m, err);
    }
    return st;
}

/* ---- life ---- */

static void fetch_done(fetch *f)
{
    pl_socket_close(f->socket);
    if (f->fd >= 0)
        (void)close(f->fd);
    if (f->temp[0])
        (void)unlink(f->temp);
    assembly_done(&f->a);
    free(f);
}

pl_status pl_fetch(pl_ipc *ipc, const char *address, const pl_hash *root, uint64_t n_bytes,
    const char *path, int timeout_ms, pl_fetch_progress progress, void *ctx, pl_error *err)
{
    fetch *f = calloc(1, sizeof *f);

    if (!f)
        return pl_fail(err, PL_E_NOMEM, "fetching '%s': no memory", path);
    f->address = address;
    f->path = path;
    f->fd = -1;
    f->repeat_ms = REPEAT_MS;
    f->timeout_ms = timeout_ms;
    f->progress = progress;
    f->ctx = ctx;
    for (int i = 0; i < CHANNEL_CREDIT; i++)
        f->slots[i].chunk = CHANNEL_NO_CHUNK;
    pl_status st = assembly_init(&f->a, root, n_bytes, err);
    if (st == PL_OK && n_bytes == 0 && !f->a.is_checked)
        st = pl_fail(err, PL_E_PEER, "an empty content has another hash than was announced");
    if (st == PL_OK)
        st = create_file(f, err);
    if (st == PL_OK && n_bytes > 0)
        st = socket_connect(&f->socket, ipc, address, PL_ROLE_WORKER, SEND_HWM, RECEIVE_HWM, err);
    if (st == PL_OK)
        st = pull(f, err);
    if (st == PL_OK)
        st = commit(f, err);
    fetch_done(f);
    return st == PL_OK ? PL_OK : pl_wrap(err, st, "fetching '%s'", path);
}
