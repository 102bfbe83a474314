/* tests/ipc/test_keys.c - keys in files, and who is admitted with which key.  That somebody is not
 * admitted is told by libzmq's monitor of the client: the handshake failed. */
#include "core/file.h"
#include "ipc/ipc.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

enum { PATIENCE_MS = 20000, KEY_ROOM = 41 };

typedef struct bed {
    char dir[64], keys[96];
    pl_ipc *ipc;
    pl_socket *server;
} bed;

static void make_keys(bed *b)
{
    pl_error err = {0};

    memset(b, 0, sizeof *b);
    snprintf(b->dir, sizeof b->dir, "/tmp/pl-keys-XXXXXX");
    cr_assert(mkdtemp(b->dir) != NULL);
    snprintf(b->keys, sizeof b->keys, "%s/keys", b->dir);
    cr_assert_eq(pl_keys_make(b->keys, &err), PL_OK, "%s", err.msg);
}

static void open_bed(bed *b)
{
    pl_error err = {0};

    make_keys(b);
    const pl_ipc_options o = {.keys = b->keys, .is_server = 1};
    cr_assert_eq(pl_ipc_new(&b->ipc, &o, NULL, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(
        pl_socket_bind(&b->server, b->ipc, "tcp://127.0.0.1:0", &err), PL_OK, "%s", err.msg);
}

static void close_bed(bed *b)
{
    pl_socket_close(b->server);
    pl_ipc_free(b->ipc);
    cr_assert_eq(pl_dir_remove(b->dir, NULL), PL_OK);
}

static void path_of(const bed *b, const char *name, char out[160])
{
    snprintf(out, 160, "%s/%s", b->keys, name);
}

static void read_key(const bed *b, const char *name, char out[KEY_ROOM])
{
    char path[160], *text;
    size_t n;

    path_of(b, name, path);
    cr_assert_eq(pl_file_read(&text, &n, path, 100, NULL), PL_OK);
    cr_assert_eq(n, KEY_ROOM);
    memcpy(out, text, KEY_ROOM - 1);
    out[KEY_ROOM - 1] = 0;
    free(text);
}

/* ---- files ---- */

static unsigned mode_of(const bed *b, const char *name)
{
    char path[160];
    struct stat s;

    path_of(b, name, path);
    cr_assert_eq(stat(path, &s), 0, "%s", name);
    return s.st_mode & 07777;
}

Test(test_keys, secrets_are_private_whatever_the_umask)
{
    bed b;
    char pub[KEY_ROOM], again[KEY_ROOM], secret[KEY_ROOM], derived[KEY_ROOM];

    umask(0);
    make_keys(&b);
    cr_assert_eq(mode_of(&b, "."), 0700);
    cr_assert_eq(mode_of(&b, "clients"), 0700);
    cr_assert_eq(mode_of(&b, "server.key_secret"), 0600);
    cr_assert_eq(mode_of(&b, "client.key_secret"), 0600);
    cr_assert_eq(mode_of(&b, "server.key"), 0644);
    cr_assert_eq(mode_of(&b, "client.key"), 0644);
    read_key(&b, "client.key", pub);
    read_key(&b, "clients/client.key", again);
    read_key(&b, "client.key_secret", secret);
    cr_assert_eq(zmq_curve_public(derived, secret), 0);
    cr_assert_str_eq(pub, again);
    cr_assert_str_eq(pub, derived);
    cr_assert_eq(pl_dir_remove(b.dir, NULL), PL_OK);
}

Test(test_keys, keys_are_never_overwritten_nor_put_among_other_files)
{
    bed b;
    pl_error err = {0};
    char before[KEY_ROOM], after[KEY_ROOM];

    make_keys(&b);
    read_key(&b, "server.key", before);
    cr_assert_eq(pl_keys_make(b.keys, &err), PL_E_CONFIG);
    cr_assert(strstr(err.msg, "keys already") != NULL, "%s", err.msg);
    read_key(&b, "server.key", after);
    cr_assert_str_eq(before, after);
    cr_assert_eq(pl_keys_make(b.dir, &err), PL_E_CONFIG);
    cr_assert(strstr(err.msg, "empty") != NULL, "%s", err.msg);
    cr_assert_eq(pl_keys_make("/proc/none", &err), PL_E_IO);
    cr_assert_eq(pl_dir_remove(b.dir, NULL), PL_OK);
}

static void refuses(const bed *b, int is_server, pl_status want, const char *says)
{
    pl_error err = {0};
    pl_ipc *ipc = NULL;
    const pl_ipc_options o = {.keys = b->keys, .is_server = is_server};
    const pl_status st = pl_ipc_new(&ipc, &o, NULL, &err);

    cr_assert_eq(st, want, "%d %s", st, err.msg);
    cr_assert(strstr(err.msg, says) != NULL, "%s", err.msg);
    cr_assert(ipc == NULL);
}

static void put_key(const bed *b, const char *name, const char *text, size_t n, mode_t mode)
{
    char path[160];

    path_of(b, name, path);
    cr_assert_eq(pl_file_write(path, text, n, NULL), PL_OK);
    cr_assert_eq(chmod(path, mode), 0);
}

Test(test_keys, a_key_file_that_others_can_read_or_write_is_refused)
{
    bed b;
    char path[160];

    make_keys(&b);
    path_of(&b, "server.key_secret", path);
    cr_assert_eq(chmod(path, 0640), 0);
    refuses(&b, 1, PL_E_CONFIG, "chmod 600");
    cr_assert_eq(chmod(path, 0604), 0);
    refuses(&b, 1, PL_E_CONFIG, "chmod 600");
    path_of(&b, "server.key", path);
    cr_assert_eq(chmod(path, 0666), 0);
    refuses(&b, 0, PL_E_CONFIG, "chmod go-w");
    cr_assert_eq(chmod(path, 0644), 0);
    if (geteuid() == 0) {
        path_of(&b, "client.key_secret", path);
        cr_assert_eq(chown(path, 12345, 12345), 0);
        refuses(&b, 0, PL_E_CONFIG, "12345");
    }
    cr_assert_eq(pl_dir_remove(b.dir, NULL), PL_OK);
}

Test(test_keys, a_file_that_is_no_key_is_refused_without_showing_it)
{
    bed b;
    char key[KEY_ROOM], text[64], path[160];

    make_keys(&b);
    read_key(&b, "server.key_secret", key);
    for (int i = 0; i < 6; i++) {
        snprintf(text, sizeof text, "%s\n", key);
        size_t n = i == 0 ? 0 : i == 1 ? 39 : i == 2 ? 42 : 41;
        if (i == 2)
            text[41] = '\n';
        if (i == 3)
            text[7] = '"'; /* not of Z85 */
        if (i == 4)
            text[7] = 0;
        if (i == 5)
            text[40] = 'x';
        put_key(&b, "server.key_secret", text, n, 0600);
        refuses(&b, 1, PL_E_FORMAT, "Z85");
    }
    path_of(&b, "server.key_secret", path);
    cr_assert_eq(unlink(path), 0);
    refuses(&b, 1, PL_E_NOENT, "keygen");
    cr_assert_eq(mkfifo(path, 0600), 0);
    refuses(&b, 1, PL_E_FORMAT, "not a file");
    cr_assert_eq(pl_dir_remove(b.dir, NULL), PL_OK);
}

/* ---- who is admitted ---- */

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* A client with a pl_socket of its own is heard. */
static void is_heard(const bed *b)
{
    const int64_t end = now_ms() + PATIENCE_MS;
    const pl_ipc_options o = {.keys = b->keys};
    const pl_msg m = {.h.type = PL_MSG_LEAVE};
    pl_error err = {0};
    pl_status st = PL_E_TIMEOUT;
    pl_ipc *ipc = NULL;
    pl_socket *c = NULL;
    pl_peer from;
    pl_msg got;

    cr_assert_eq(pl_ipc_new(&ipc, &o, NULL, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(
        pl_socket_connect(&c, ipc, pl_socket_address(b->server), PL_ROLE_WORKER, &err), PL_OK);
    while (st != PL_OK && now_ms() < end) {
        (void)pl_socket_send(c, NULL, &m, NULL);
        st = pl_socket_recv(b->server, 50, &from, &got, NULL);
    }
    cr_assert_eq(st, PL_OK, "a legitimate client was not admitted");
    pl_socket_close(c);
    pl_ipc_free(ipc);
    while (pl_socket_recv(b->server, 0, &from, &got, NULL) == PL_OK) {
    }
}

/* What a client of libzmq's own comes to: 1 admitted, 0 refused.  NULL keys: no CURVE. */
static int is_admitted(const bed *b, const char *server, const char *pub, const char *secret)
{
    const int zero = 0, patience = PATIENCE_MS;
    void *ctx = zmq_ctx_new(), *s = zmq_socket(ctx, ZMQ_DEALER), *mon = zmq_socket(ctx, ZMQ_PAIR);
    unsigned char frame[6];
    char rest[256];
    uint16_t event;

    zmq_setsockopt(s, ZMQ_LINGER, &zero, sizeof zero);
    zmq_setsockopt(s, ZMQ_ROUTING_ID, "\1\0\0\0\0\0\0\0raw peer", PL_PEER_BYTES);
    if (pub) {
        cr_assert_eq(zmq_setsockopt(s, ZMQ_CURVE_SERVERKEY, server, strlen(server)), 0);
        cr_assert_eq(zmq_setsockopt(s, ZMQ_CURVE_PUBLICKEY, pub, strlen(pub)), 0);
        cr_assert_eq(zmq_setsockopt(s, ZMQ_CURVE_SECRETKEY, secret, strlen(secret)), 0);
    } else if (secret) {
        zmq_setsockopt(s, ZMQ_PLAIN_USERNAME, "root", 4);
        zmq_setsockopt(s, ZMQ_PLAIN_PASSWORD, secret, strlen(secret));
    }
    cr_assert_eq(zmq_socket_monitor(s, "inproc://m",
                     ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |
                         ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH |
                         ZMQ_EVENT_DISCONNECTED),
        0);
    zmq_setsockopt(mon, ZMQ_RCVTIMEO, &patience, sizeof patience);
    cr_assert_eq(zmq_connect(mon, "inproc://m"), 0);
    cr_assert_eq(zmq_connect(s, pl_socket_address(b->server)), 0);
    cr_assert_eq(zmq_recv(mon, frame, sizeof frame, 0), (int)sizeof frame, "neither yes nor no");
    (void)zmq_recv(mon, rest, sizeof rest, 0);
    memcpy(&event, frame, sizeof event);
    zmq_socket_monitor(s, NULL, 0);
    zmq_close(mon);
    zmq_close(s);
    zmq_ctx_term(ctx);
    return event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED;
}

typedef struct texts {
    char server[KEY_ROOM], pub[KEY_ROOM], secret[KEY_ROOM];
} texts;

static texts read_texts(const bed *b)
{
    texts t;

    read_key(b, "server.key", t.server);
    read_key(b, "client.key", t.pub);
    read_key(b, "client.key_secret", t.secret);
    return t;
}

Test(test_keys, only_listed_keys_are_admitted)
{
    bed b;
    char pub[KEY_ROOM], secret[KEY_ROOM], server_secret[KEY_ROOM];

    open_bed(&b);
    const texts t = read_texts(&b);
    is_heard(&b);
    cr_assert(is_admitted(&b, t.server, t.pub, t.secret), "the listed key");
    cr_assert_eq(zmq_curve_keypair(pub, secret), 0);
    cr_assert_not(is_admitted(&b, t.server, pub, secret), "a random key");
    read_key(&b, "server.key_secret", server_secret);
    cr_assert_not(is_admitted(&b, t.server, t.server, server_secret), "the server's own key");
    cr_assert_not(is_admitted(&b, pub, t.pub, t.secret), "a client of another server");
    cr_assert_not(is_admitted(&b, t.server, NULL, NULL), "no key at all");
    cr_assert_not(is_admitted(&b, t.server, NULL, "password"), "a password");
    is_heard(&b);
    close_bed(&b);
}

/* The directory looks as if nobody had touched it for long, so that what was read is relied on. */
static void age_clients(const bed *b, time_t seconds)
{
    char path[160];
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}};

    path_of(b, "clients", path);
    times[1].tv_sec = time(NULL) - seconds;
    cr_assert_eq(utimensat(AT_FDCWD, path, times, 0), 0);
}

static void write_in_place(const bed *b, const char *name, const char *key)
{
    char path[160];

    path_of(b, name, path);
    FILE *f = fopen(path, "r+");
    cr_assert(f != NULL);
    cr_assert_geq(fprintf(f, "%s\n", key), 0);
    cr_assert_eq(fclose(f), 0);
}

Test(test_keys, a_key_that_is_removed_or_added_counts_from_the_next_connection_on)
{
    bed b;
    char path[160], pub[KEY_ROOM], secret[KEY_ROOM], line[64];

    open_bed(&b);
    const texts t = read_texts(&b);
    cr_assert_eq(zmq_curve_keypair(pub, secret), 0);
    snprintf(line, sizeof line, "%s\n", pub);
    path_of(&b, "clients/second.key", path);
    for (int i = 0; i < 4; i++) {
        if (i % 2)
            age_clients(&b, 1000 - i);
        cr_assert_not(is_admitted(&b, t.server, pub, secret), "not yet, round %d", i);
        put_key(&b, "clients/second.key", line, KEY_ROOM, 0600);
        if (i % 2)
            age_clients(&b, 900 - i);
        cr_assert(is_admitted(&b, t.server, pub, secret), "added, round %d", i);
        cr_assert(is_admitted(&b, t.server, t.pub, t.secret), "the first, round %d", i);
        write_in_place(&b, "clients/second.key", t.pub);
        cr_assert_not(is_admitted(&b, t.server, pub, secret), "rewritten, round %d", i);
        write_in_place(&b, "clients/second.key", pub);
        cr_assert_eq(unlink(path), 0);
        cr_assert_not(is_admitted(&b, t.server, pub, secret), "removed, round %d", i);
        cr_assert(is_admitted(&b, t.server, t.pub, t.secret), "the first again, round %d", i);
    }
    close_bed(&b);
}

Test(test_keys, key_files_that_others_can_write_admit_nobody)
{
    bed b;
    char path[160];

    open_bed(&b);
    const texts t = read_texts(&b);
    path_of(&b, "clients/client.key", path);
    cr_assert_eq(chmod(path, 0666), 0);
    cr_assert_not(is_admitted(&b, t.server, t.pub, t.secret));
    cr_assert_eq(chmod(path, 0644), 0);
    path_of(&b, "clients", path);
    cr_assert_eq(chmod(path, 0777), 0);
    cr_assert_not(is_admitted(&b, t.server, t.pub, t.secret));
    cr_assert_eq(chmod(path, 0700), 0);
    cr_assert(is_admitted(&b, t.server, t.pub, t.secret));
    close_bed(&b);
}

Test(test_keys, ipc_beside_tcp_needs_no_key)
{
    bed b;
    char address[160];
    pl_ipc *ipc;
    pl_socket *local, *c;
    pl_status st = PL_E_TIMEOUT;
    const pl_msg m = {.h.type = PL_MSG_LEAVE};

    open_bed(&b);
    snprintf(address, sizeof address, "ipc://%s/s", b.dir);
    cr_assert_eq(pl_socket_bind(&local, b.ipc, address, NULL), PL_OK);
    cr_assert_eq(pl_ipc_new(&ipc, NULL, NULL, NULL), PL_OK);
    cr_assert_eq(pl_socket_connect(&c, ipc, address, PL_ROLE_WORKER, NULL), PL_OK);
    for (const int64_t end = now_ms() + PATIENCE_MS; st != PL_OK && now_ms() < end;) {
        pl_peer from;
        pl_msg got;
        (void)pl_socket_send(c, NULL, &m, NULL);
        st = pl_socket_recv(local, 50, &from, &got, NULL);
    }
    cr_assert_eq(st, PL_OK);
    pl_socket_close(c);
    pl_socket_close(local);
    pl_ipc_free(ipc);
    close_bed(&b);
}

Test(test_keys, a_client_cannot_listen_with_its_keys_nor_a_server_connect)
{
    bed b;
    pl_error err = {0};
    pl_ipc *ipc;
    pl_socket *s = NULL;

    open_bed(&b);
    const pl_ipc_options o = {.keys = b.keys};
    cr_assert_eq(pl_ipc_new(&ipc, &o, NULL, NULL), PL_OK);
    cr_assert_eq(pl_socket_bind(&s, ipc, "tcp://127.0.0.1:0", &err), PL_E_CONFIG);
    cr_assert(strstr(err.msg, "server's keys") != NULL, "%s", err.msg);
    cr_assert_eq(
        pl_socket_connect(&s, b.ipc, "tcp://127.0.0.1:1", PL_ROLE_WORKER, &err), PL_E_CONFIG);
    pl_ipc_free(ipc);
    close_bed(&b);
}
