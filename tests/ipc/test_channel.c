/* Claims: a content has one name whatever hashes it, and no other content has it; what is fetched
 * is that content or nothing, whatever the publisher sends, in any order, doubled or not at all; a
 * reader that does not read costs the publisher its bound and no more, and others go on. */
#include "core/file.h"
#include "core/hash.h"
#include "ipc/channel_internal.h"
#include "ipc/socket_internal.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MIB = 1 << 20, PATIENCE_MS = 20000 };

static char dir[] = "/tmp/paceline-channel-XXXXXX", address[128];

static void make_dir(void)
{
    cr_assert(mkdtemp(dir));
    snprintf(address, sizeof address, "ipc://%s/w", dir);
}

static void remove_dir(void)
{
    pl_error err = {0};
    cr_assert_eq(pl_dir_remove(dir, &err), PL_OK, "%s", err.msg);
}

TestSuite(channel, .init = make_dir, .fini = remove_dir, .timeout = 120);

static const char *in_dir(const char *name)
{
    static char path[4][256];
    static int i;
    i = (i + 1) % 4;
    snprintf(path[i], sizeof path[i], "%s/%s", dir, name);
    return path[i];
}

/* n bytes that differ from chunk to chunk and from seed to seed. */
static unsigned char *make_bytes(size_t n, uint64_t seed)
{
    unsigned char *data = malloc(n + 8);
    uint64_t x = seed * 0x9e3779b97f4a7c15u + 1;

    cr_assert(data);
    for (size_t i = 0; i < n; i += 8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        memcpy(data + i, &x, 8);
    }
    return data;
}

static void write_file(const char *name, size_t n, uint64_t seed)
{
    unsigned char *data = make_bytes(n, seed);
    cr_assert_eq(pl_file_write(in_dir(name), data, n, NULL), PL_OK);
    free(data);
}

static int holds(const char *name, size_t n, uint64_t seed)
{
    unsigned char *data = make_bytes(n, seed);
    pl_file f = {0};
    const int same = pl_file_open(&f, in_dir(name), NULL) == PL_OK && f.size == n &&
                     memcmp(f.data, data, n) == 0;
    pl_file_close(&f);
    free(data);
    return same;
}

/* Files in the directory whose names begin so. */
static int count_files(const char *prefix)
{
    char command[512], line[16] = "";
    snprintf(command, sizeof command, "ls %s | grep -c '^%s'", dir, prefix);
    FILE *f = popen(command, "r");
    cr_assert(f && fgets(line, sizeof line, f));
    pclose(f);
    return atoi(line);
}

/* ---- names ---- */

Test(channel, a_content_has_one_name_whatever_hashes_it)
{
    const size_t sizes[] = {0, 1, MIB - 1, MIB, MIB + 1, 5 * MIB + 77};

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const size_t n = sizes[i];
        unsigned char *data = make_bytes(n, i);
        pl_hash leaves[8], again[8], root, other;
        pl_error err = {0};
        cr_assert_eq(pl_content_chunks(n), (n + MIB - 1) / MIB);
        cr_assert_eq(pl_content_hash(data, n, 1, leaves, &root, &err), PL_OK);
        for (int t = 2; t <= 9; t += 7) {
            cr_assert_eq(pl_content_hash(data, n, t, NULL, &other, &err), PL_OK);
            cr_assert_arr_eq(root.b, other.b, sizeof root.b);
        }
        cr_assert_eq(pl_file_write(in_dir("x"), data, n, &err), PL_OK);
        const int fd = open(in_dir("x"), O_RDONLY);
        cr_assert_eq(content_hash_fd(fd, "x", n, 3, again, &other, &err), PL_OK, "%s", err.msg);
        cr_assert_arr_eq(root.b, other.b, sizeof root.b);
        cr_assert_eq(content_hash_fd(fd, "x", n + 1, 3, again, &other, &err), PL_E_IO);
        cr_assert(strstr(err.msg, "shorter"), "%s", err.msg);
        close(fd);
        free(data);
    }
}

Test(channel, the_name_is_blake2b_of_length_and_leaves)
{
    unsigned char *data = make_bytes(MIB + 3, 1), text[8 + 64] = {3, 0, 16};
    pl_hash root, direct;

    pl_hash256(text + 8, data, MIB);
    pl_hash256(text + 40, data + MIB, 3);
    pl_hash256(direct.b, text, sizeof text);
    cr_assert_eq(pl_content_hash(data, MIB + 3, 2, NULL, &root, NULL), PL_OK);
    cr_assert_arr_eq(root.b, direct.b, sizeof root.b);
    data[MIB] ^= 1;
    cr_assert_eq(pl_content_hash(data, MIB + 3, 2, NULL, &root, NULL), PL_OK);
    cr_assert_arr_neq(root.b, direct.b, sizeof root.b);
    free(data);
}

/* ---- publisher and reader ---- */

typedef struct rig {
    pl_ipc *ipc;
    pl_publisher *publisher;
} rig;

static void rig_up(rig *r, int max_contents, size_t max_bytes)
{
    const pl_publisher_options o = {address, max_contents, max_bytes};
    pl_error err = {0};
    cr_assert_eq(pl_ipc_new(&r->ipc, NULL, NULL, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_publisher_new(&r->publisher, r->ipc, &o, NULL, &err), PL_OK, "%s", err.msg);
}

static void rig_down(rig *r)
{
    pl_publisher_free(r->publisher);
    pl_ipc_free(r->ipc);
}

static void add(rig *r, const char *name, uint32_t version, pl_hash *root, uint64_t *n)
{
    pl_error err = {0};
    cr_assert_eq(
        pl_publisher_add(r->publisher, in_dir(name), version, root, n, &err), PL_OK, "%s", err.msg);
}

Test(channel, what_arrives_is_what_was_added)
{
    const size_t sizes[] = {0, 1, MIB, 3 * MIB + 5, 40 * MIB + 1};
    pl_hash root;
    uint64_t n;
    rig r;

    rig_up(&r, 2, 64 * MIB);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        pl_error err = {0};
        write_file("in", sizes[i], i);
        add(&r, "in", (uint32_t)i, &root, &n);
        cr_assert_eq(n, sizes[i]);
        cr_assert_eq(pl_fetch(r.ipc, pl_publisher_address(r.publisher), &root, n, in_dir("out"),
                         PATIENCE_MS, NULL, NULL, &err),
            PL_OK, "%s", err.msg);
        cr_assert(holds("out", sizes[i], i));
    }
    cr_assert_eq(count_files("out"), 1);
    rig_down(&r);
}

Test(channel, the_oldest_content_goes_and_its_reader_is_told)
{
    pl_hash root[3];
    uint64_t n;
    pl_error err = {0};
    rig r;

    rig_up(&r, 2, 8 * MIB);
    for (uint32_t v = 0; v < 3; v++) {
        write_file("in", MIB, v);
        add(&r, "in", 7 + v, &root[v], &n);
        cr_assert_eq(unlink(in_dir("in")), 0); /* a held file may go */
    }
    cr_assert_eq(
        pl_fetch(r.ipc, address, &root[0], n, in_dir("out"), PATIENCE_MS, NULL, NULL, &err),
        PL_E_PEER);
    cr_assert(strstr(err.msg, "not held any more"), "%s", err.msg);
    cr_assert(strstr(err.msg, "version 8"), "%s", err.msg);
    for (int v = 1; v < 3; v++) {
        cr_assert_eq(
            pl_fetch(r.ipc, address, &root[v], n, in_dir("out"), PATIENCE_MS, NULL, NULL, &err),
            PL_OK, "%s", err.msg);
        cr_assert(holds("out", MIB, (uint64_t)v));
    }
    rig_down(&r);
}

typedef struct beginning {
    rig *r;
    int n_asked;
} beginning;

/* The publisher begins to hold it a while after it was first asked. */
static int begin_late(void *ctx, uint64_t done, uint64_t total)
{
    beginning *b = ctx;
    pl_hash root;
    uint64_t n;

    (void)done;
    (void)total;
    if (++b->n_asked == 8)
        add(b->r, "in", 1, &root, &n);
    return 0;
}

Test(channel, a_publisher_that_holds_nothing_yet_is_asked_again)
{
    pl_hash root;
    uint64_t n;
    pl_error err = {0};
    rig r;

    rig_up(&r, 2, 8 * MIB);
    write_file("in", 2 * MIB, 1);
    add(&r, "in", 1, &root, &n);
    rig_down(&r);
    rig_up(&r, 2, 8 * MIB);
    beginning b = {&r, 0};
    cr_assert_eq(
        pl_fetch(r.ipc, address, &root, n, in_dir("out"), PATIENCE_MS, begin_late, &b, &err), PL_OK,
        "%s", err.msg);
    cr_assert_geq(b.n_asked, 8);
    cr_assert(holds("out", 2 * MIB, 1));
    rig_down(&r);
}

Test(channel, equal_bytes_are_held_once_under_the_latest_version)
{
    pl_hash root, other;
    uint64_t n;
    rig r;

    rig_up(&r, 2, 8 * MIB);
    write_file("a", 100, 1);
    write_file("b", MIB, 2);
    add(&r, "a", 1, &root, &n);
    add(&r, "b", 1, &other, &n);
    add(&r, "a", 2, &root, &n); /* does not push b out */
    pl_error err = {0};
    cr_assert_eq(
        pl_fetch(r.ipc, address, &other, MIB, in_dir("out"), PATIENCE_MS, NULL, NULL, &err), PL_OK,
        "%s", err.msg);
    rig_down(&r);
}

Test(channel, a_file_that_was_cut_is_gone_and_no_signal)
{
    pl_hash root;
    uint64_t n;
    pl_error err = {0};
    rig r;

    rig_up(&r, 2, 8 * MIB);
    write_file("in", 4 * MIB, 1);
    add(&r, "in", 1, &root, &n);
    cr_assert_eq(truncate(in_dir("in"), MIB + 1), 0);
    cr_assert_eq(
        pl_fetch(r.ipc, address, &root, n, in_dir("out"), 1500, NULL, NULL, &err), PL_E_PEER);
    cr_assert(strstr(err.msg, "not held any more"), "%s", err.msg);
    cr_assert_eq(count_files("out"), 0);
    rig_down(&r);
}

static int stop_at_once(void *ctx, uint64_t done, uint64_t total)
{
    (void)ctx;
    return done > 0 || total == 0;
}

Test(channel, nothing_is_left_of_a_fetch_that_failed)
{
    pl_hash root;
    uint64_t n;
    pl_error err = {0};
    rig r;

    rig_up(&r, 2, 8 * MIB);
    write_file("in", 4 * MIB, 1);
    add(&r, "in", 1, &root, &n);
    cr_assert_eq(
        pl_fetch(r.ipc, address, &root, n, in_dir("out"), PATIENCE_MS, stop_at_once, NULL, &err),
        PL_E_STOPPED);
    cr_assert_eq(
        pl_fetch(r.ipc, address, &root, n, in_dir("no/out"), 1, NULL, NULL, &err), PL_E_IO);
    cr_assert(strstr(err.msg, "No such file"), "%s", err.msg);
    signal(SIGXFSZ, SIG_IGN);
    const struct rlimit small = {2 * MIB, 2 * MIB}; /* a disk that fills up */
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    cr_assert_eq(
        pl_fetch(r.ipc, address, &root, n, in_dir("out"), PATIENCE_MS, NULL, NULL, &err), PL_E_IO);
    cr_assert(strstr(err.msg, "out'"), "%s", err.msg);
    cr_assert_eq(count_files("out"), 0);
    rig_down(&r);
}

Test(channel, silence_is_an_error_in_words)
{
    const pl_hash root = {{1}};
    pl_error err = {0};
    pl_ipc *ipc;

    cr_assert_eq(pl_ipc_new(&ipc, NULL, NULL, &err), PL_OK);
    cr_assert_eq(pl_fetch(ipc, address, &root, 5, in_dir("out"), 100, NULL, NULL, &err), PL_E_PEER);
    cr_assert(strstr(err.msg, "has not answered for 100 ms"), "%s", err.msg);
    cr_assert_eq(count_files("out"), 0);
    cr_assert_eq(pl_fetch(ipc, address, &root, 0, in_dir("out"), 100, NULL, NULL, &err), PL_E_PEER);
    cr_assert_eq(
        pl_fetch(ipc, address, &root, UINT64_MAX, in_dir("out"), 1, NULL, NULL, &err), PL_E_INVAL);
    pl_ipc_free(ipc);
}

/* Asks for everything, over and over, and reads nothing. */
static pl_socket *make_slow(rig *r, const pl_hash *root)
{
    pl_socket *s;
    pl_error err = {0};

    cr_assert_eq(socket_connect(&s, r->ipc, address, PL_ROLE_WORKER, 64, 1, &err), PL_OK);
    for (int i = 0; i < 40; i++) {
        const pl_msg m = {.h.type = PL_MSG_FETCH, .u.fetch = {*root, 8 * (uint32_t)(i % 4), 8}};
        while (pl_socket_send(s, NULL, &m, &err) == PL_E_PEER && i == 0) {
        }
    }
    return s;
}

Test(channel, slow_readers_cost_their_bound_and_others_go_on)
{
    enum { BOUND = 24 * MIB, N_SLOW = 3 };
    pl_socket *slow[N_SLOW];
    pl_hash root, first;
    uint64_t n;
    size_t most;
    pl_error err = {0};
    rig r;

    rig_up(&r, 2, BOUND);
    write_file("in", 32 * MIB, 0);
    add(&r, "in", 0, &first, &n);
    for (int i = 0; i < N_SLOW; i++)
        slow[i] = make_slow(&r, &first);
    for (int i = 0; i < PATIENCE_MS && publisher_standing(r.publisher, NULL) < 8 * MIB; i++)
        poll(NULL, 0, 1);
    cr_assert_geq(publisher_standing(r.publisher, &most), 8 * MIB, "they hold something");
    for (uint32_t v = 1; v < 6; v++) { /* publications meanwhile */
        write_file("in", 32 * MIB, v);
        add(&r, "in", v, &root, &n);
        cr_assert_eq(
            pl_fetch(r.ipc, address, &root, n, in_dir("out"), PATIENCE_MS, NULL, NULL, &err), PL_OK,
            "%s", err.msg);
        cr_assert(holds("out", 32 * MIB, v));
    }
    (void)publisher_standing(r.publisher, &most);
    cr_assert_leq(most, BOUND);
    for (int i = 0; i < N_SLOW; i++)
        pl_socket_close(slow[i]);
    for (int i = 0; i < PATIENCE_MS && publisher_standing(r.publisher, NULL) > 0; i++)
        poll(NULL, 0, 1);
    cr_assert_eq(publisher_standing(r.publisher, NULL), 0, "what they held is free again");
    rig_down(&r);
}

/* A peer that is refused: the publisher has seen what was said before. */
static void see_refusal(rig *r)
{
    const pl_msg stop = {.h.type = PL_MSG_STOP};
    pl_msg m;
    pl_error err = {0};
    pl_socket *s;

    cr_assert_eq(pl_socket_connect(&s, r->ipc, address, PL_ROLE_WORKER, &err), PL_OK);
    while (pl_socket_send(s, NULL, &stop, &err) == PL_E_PEER) {
    }
    cr_assert_eq(pl_socket_recv(s, PATIENCE_MS, NULL, &m, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(m.h.type, PL_MSG_REJECT);
    pl_socket_close(s);
}

Test(channel, many_slow_readers_share_one_bound)
{
    enum { BOUND = 8 * MIB, N_SLOW = 14 };
    pl_socket *slow[N_SLOW];
    pl_hash root;
    uint64_t n;
    size_t most;
    rig r;

    rig_up(&r, 1, BOUND);
    write_file("in", 32 * MIB, 0);
    add(&r, "in", 0, &root, &n);
    for (int i = 0; i < N_SLOW; i++)
        slow[i] = make_slow(&r, &root);
    for (int i = 0; i < PATIENCE_MS && publisher_standing(r.publisher, NULL) < BOUND - 2 * MIB; i++)
        poll(NULL, 0, 1);
    for (int i = 0; i < 4; i++)
        see_refusal(&r);
    (void)publisher_standing(r.publisher, &most);
    cr_assert_geq(most, BOUND - 2 * MIB);
    cr_assert_leq(most, BOUND);
    for (int i = 0; i < N_SLOW; i++)
        pl_socket_close(slow[i]);
    rig_down(&r);
}

Test(channel, who_asks_for_no_weights_is_refused)
{
    rig r;

    rig_up(&r, 1, 4 * MIB);
    see_refusal(&r);
    rig_down(&r);
}

/* ---- a publisher that lies, loses, doubles and reorders ---- */

enum { BAD_CHUNKS = 24 };

typedef struct liar {
    pl_socket *socket;
    unsigned char *data; /* [BAD_CHUNKS MiB] */
    pl_hash leaves[BAD_CHUNKS], root;
    int lies_always, wrong_leaves;
    uint32_t asked[BAD_CHUNKS];
    uint64_t x;
    atomic_int stop;
} liar;

static uint32_t draw(liar *l, uint32_t n)
{
    l->x = l->x * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(l->x >> 33) % n;
}

static void answer_leaves(liar *l, const pl_peer *to, uint32_t first)
{
    pl_hash leaves[BAD_CHUNKS];
    pl_error lost = {0};
    const uint32_t n = BAD_CHUNKS - first < 10 ? BAD_CHUNKS - first : 10; /* in pieces */

    memcpy(leaves, l->leaves, sizeof leaves);
    if (l->wrong_leaves != 0 && l->wrong_leaves-- != 0)
        leaves[5].b[3] ^= 1;
    const pl_msg m = {.h.type = PL_MSG_LEAVES,
        .u.leaves = {l->root, (uint64_t)BAD_CHUNKS * MIB, first, {leaves + first, n}}};
    for (int i = 0; i < 2; i++)
        (void)pl_socket_send(l->socket, to, &m, &lost);
}

static void answer_chunk(liar *l, const pl_peer *to, uint32_t i)
{
    const unsigned char *bytes = l->data + (size_t)i * MIB;
    pl_msg m = {.h.type = PL_MSG_CHUNK,
        .u.chunk = {l->root, i, (uint64_t)i * MIB, pl_crc32c(0, bytes, MIB), {bytes, MIB}}};
    pl_error lost = {0};
    const int first_time = l->asked[i]++ == 0;

    switch (l->lies_always ? 1 : first_time ? draw(l, 8) : 0) {
    case 1: /* other bytes with a right CRC */
        m.u.chunk.bytes.data = l->data + (size_t)((i + 1) % BAD_CHUNKS) * MIB;
        m.u.chunk.crc = pl_crc32c(0, m.u.chunk.bytes.data, MIB);
        break;
    case 2:
        m.u.chunk.crc ^= 1;
        break;
    case 3:
        m.u.chunk.bytes.n--;
        break;
    case 4:
        m.u.chunk.hash.b[0] ^= 1;
        break;
    case 5:
        m.u.chunk.offset += MIB;
        break;
    case 6:
        return; /* lost */
    case 7:
        m.u.chunk.index = UINT32_MAX;
        break;
    default:
        (void)pl_socket_send(l->socket, to, &m, &lost); /* doubled */
    }
    (void)pl_socket_send(l->socket, to, &m, &lost);
}

static void *lie(void *ctx)
{
    liar *l = ctx;
    uint32_t kept = UINT32_MAX; /* answered after the next: out of order */
    pl_peer from;
    pl_msg m;
    pl_error err;

    while (!atomic_load(&l->stop)) {
        if (pl_socket_recv(l->socket, 20, &from, &m, &err) != PL_OK || m.h.type != PL_MSG_FETCH)
            continue;
        const pl_msg_fetch f = m.u.fetch;
        if (f.n == 0) {
            answer_leaves(l, &from, f.first);
            continue;
        }
        if (kept == UINT32_MAX && draw(l, 3) == 0) {
            kept = f.first;
            continue;
        }
        answer_chunk(l, &from, f.first);
        if (kept != UINT32_MAX)
            answer_chunk(l, &from, kept);
        kept = UINT32_MAX;
    }
    return NULL;
}

/* Fetch from a liar; returns how it ended. */
static pl_status fetch_from(liar *l, uint64_t seed, pl_error *err)
{
    pl_ipc *ipc;
    pthread_t thread;

    l->x = seed;
    l->data = make_bytes((size_t)BAD_CHUNKS * MIB, seed);
    cr_assert_eq(
        pl_content_hash(l->data, (size_t)BAD_CHUNKS * MIB, 2, l->leaves, &l->root, err), PL_OK);
    cr_assert_eq(pl_ipc_new(&ipc, NULL, NULL, err), PL_OK);
    cr_assert_eq(pl_socket_bind(&l->socket, ipc, address, err), PL_OK, "%s", err->msg);
    cr_assert_eq(pthread_create(&thread, NULL, lie, l), 0);
    const pl_status st = pl_fetch(ipc, address, &l->root, (uint64_t)BAD_CHUNKS * MIB, in_dir("out"),
        PATIENCE_MS, NULL, NULL, err);
    atomic_store(&l->stop, 1);
    pthread_join(thread, NULL);
    pl_socket_close(l->socket);
    pl_ipc_free(ipc);
    free(l->data);
    return st;
}

Test(channel, lost_doubled_reordered_and_wrong_chunks_only_delay)
{
    for (uint64_t seed = 1; seed <= 2; seed++) {
        liar l = {.wrong_leaves = 3};
        pl_error err = {0};
        cr_assert_eq(fetch_from(&l, seed, &err), PL_OK, "%s", err.msg);
        cr_assert(holds("out", (size_t)BAD_CHUNKS * MIB, seed));
    }
    cr_assert_eq(count_files("out"), 1);
}

Test(channel, a_publisher_that_always_lies_is_named)
{
    liar l = {.lies_always = 1};
    pl_error err = {0};

    cr_assert_eq(fetch_from(&l, 1, &err), PL_E_PEER);
    cr_assert(strstr(err.msg, "not of the content"), "%s", err.msg);
    l = (liar){.wrong_leaves = -1};
    cr_assert_eq(fetch_from(&l, 1, &err), PL_E_PEER);
    cr_assert(strstr(err.msg, "not of the content"), "%s", err.msg);
    cr_assert_eq(count_files("out"), 0);
}

/* ---- the assembly alone ---- */

Test(channel, a_chunk_counts_once_and_never_before_its_leaf)
{
    unsigned char *data = make_bytes(2 * MIB + 9, 3);
    pl_hash leaves[3], root;
    assembly a;

    cr_assert_eq(pl_content_hash(data, 2 * MIB + 9, 1, leaves, &root, NULL), PL_OK);
    cr_assert_eq(assembly_init(&a, &root, 2 * MIB + 9, NULL), PL_OK);
    pl_msg last = {.h.type = PL_MSG_CHUNK,
        .u.chunk = {root, 2, 2 * MIB, pl_crc32c(0, data + 2 * MIB, 9), {data + 2 * MIB, 9}}};
    cr_assert_eq(assembly_take(&a, &last), NEWS_NONE);
    pl_msg tree = {.h.type = PL_MSG_LEAVES, .u.leaves = {root, 2 * MIB + 9, 0, {leaves, 3}}};
    tree.u.leaves.n_bytes++; /* another length is another content */
    cr_assert_eq(assembly_take(&a, &tree), NEWS_WRONG);
    tree.u.leaves.n_bytes--;
    tree.u.leaves.first = UINT32_MAX;
    cr_assert_eq(assembly_take(&a, &tree), NEWS_WRONG);
    tree.u.leaves.first = 0;
    cr_assert_eq(assembly_take(&a, &tree), NEWS_LEAVES);
    cr_assert_eq(assembly_take(&a, &last), NEWS_CHUNK);
    cr_assert_eq(assembly_take(&a, &last), NEWS_NONE);
    cr_assert_eq(a.n_have, 1);
    cr_assert_eq(a.n_ignored, 2);
    cr_assert_eq(a.n_wrong, 2);
    cr_assert_not(assembly_is_whole(&a));
    assembly_done(&a);
    free(data);
}
