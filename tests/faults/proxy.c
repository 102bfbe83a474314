/* tests/faults/proxy.c - a wire that loses, doubles, holds back, delays, cuts and flips.
 *
 *   proxy FRONT BACK [--seed N] [--loss P] [--dup P] [--reorder P] [--delay P] [--truncate P]
 *         [--flip P] [--headless P]
 *
 * Peers connect to FRONT; for each there is a socket with its routing id towards BACK.  Percentages
 * are of the messages, each direction, drawn from keyed noise: message i of a peer and direction
 * meets the same fate whenever it comes.  --headless takes a whole frame away, --truncate bytes of
 * one.  SIGTERM ends it; what it did is then printed. */
#include "core/rng.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zmq.h>

enum {
    PEERS_MAX = 64,
    HELD_MAX = 4096,
    ID_MAX = 32,
    FRAMES = 2,
    HOLD_MESSAGES = 5, /* reordered: behind 1 .. 5 messages */
    HOLD_MS = 50,      /* or so long */
    DELAY_MS = 500,    /* delayed: at most */
    BURST_MAX = 64
};
enum { UP, DOWN, DIRECTIONS };
enum { LOSS, DUP, REORDER, DELAY, TRUNCATE, FLIP, HEADLESS, FAULTS };
static const char *const fault_names[FAULTS] = {
    "lost", "doubled", "reordered", "delayed", "truncated", "flipped", "headless"};
static const char *const option_names[FAULTS] = {
    "--loss", "--dup", "--reorder", "--delay", "--truncate", "--flip", "--headless"};

typedef struct peer {
    unsigned char id[ID_MAX];
    size_t n_id;
    uint32_t key; /* of its draws: role, and which of the role it is */
    void *back;
    uint32_t n_seen[DIRECTIONS];
} peer;

typedef struct letter { /* one message */
    zmq_msg_t frames[FRAMES];
    int n_frames;
} letter;

typedef struct held {
    letter what;
    int i_peer, direction;
    int behind; /* messages of the peer and direction that still pass first; -1: only time counts */
    int64_t due_ms;
} held;

typedef struct proxy {
    void *ctx, *front;
    const char *back_address;
    peer peers[PEERS_MAX];
    int n_peers;
    held held[HELD_MAX];
    int n_held;
    double percent[FAULTS];
    uint64_t key;
    uint64_t n_messages[DIRECTIONS], n_faults[DIRECTIONS][FAULTS];
    uint64_t n_damaged, n_overflow;
} proxy;

static volatile sig_atomic_t is_over;

static void on_signal(int sig)
{
    (void)sig;
    is_over = 1;
}

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- letters ---- */

static void letter_close(letter *l)
{
    for (int i = 0; i < l->n_frames; i++)
        zmq_msg_close(&l->frames[i]);
    l->n_frames = 0;
}

static void letter_copy(letter *to, letter *from)
{
    for (int i = 0; i < from->n_frames; i++) {
        zmq_msg_init(&to->frames[i]);
        zmq_msg_copy(&to->frames[i], &from->frames[i]);
    }
    to->n_frames = from->n_frames;
}

/* Frames of its own in place of shared ones, of the first n bytes. */
static void own_frame(zmq_msg_t *f, size_t n)
{
    zmq_msg_t copy;

    if (zmq_msg_init_size(&copy, n) != 0)
        return;
    memcpy(zmq_msg_data(&copy), zmq_msg_data(f), n);
    zmq_msg_move(f, &copy);
    zmq_msg_close(&copy);
}

/* To BACK as the peer, or to the peer at FRONT.  Never waits: a full queue loses it. */
static void deliver(proxy *p, int i_peer, int direction, letter *l)
{
    peer *who = &p->peers[i_peer];
    void *to = direction == UP ? who->back : p->front;
    int rc = 0;

    if (direction == DOWN)
        rc = zmq_send(to, who->id, who->n_id, ZMQ_SNDMORE | ZMQ_DONTWAIT);
    for (int i = 0; i < l->n_frames && rc >= 0; i++)
        rc =
            zmq_msg_send(&l->frames[i], to, ZMQ_DONTWAIT | (i + 1 < l->n_frames ? ZMQ_SNDMORE : 0));
    p->n_overflow += rc < 0;
    letter_close(l);
}

/* ---- faults ---- */

/* The n-th peer of a role that came: routing ids are random, fates shall not be. */
static uint32_t draw(const proxy *p, const peer *who, uint32_t i, int direction, uint32_t what)
{
    return pl_noise_word(p->key, who->key, i, PL_NOISE_FAULT, 4 * what + (uint32_t)direction);
}

static int meets(proxy *p, const peer *who, uint32_t i, int direction, int fault)
{
    const double u = draw(p, who, i, direction, (uint32_t)fault) / 4294967296.0;
    const int does = u * 100 < p->percent[fault];
    p->n_faults[direction][fault] += (uint64_t)does;
    return does;
}

/* One bit of header or body, or the end of one of them, or a whole frame. */
static void damage(proxy *p, const peer *who, uint32_t i, int direction, letter *l)
{
    const uint32_t where = draw(p, who, i, direction, FAULTS);
    int is_damaged = 0;
    zmq_msg_t *f = &l->frames[where % (unsigned)l->n_frames];
    size_t n = zmq_msg_size(f);

    if (n == 0) {
        f = &l->frames[0];
        n = zmq_msg_size(f);
    }
    if (n > 0 && meets(p, who, i, direction, TRUNCATE)) {
        n = where / 2 % n;
        own_frame(f, n);
        is_damaged = 1;
    }
    if (n > 0 && meets(p, who, i, direction, FLIP)) {
        own_frame(f, n);
        ((unsigned char *)zmq_msg_data(f))[where / 16 % n] ^=
            (unsigned char)(1u << (where >> 1 & 7));
        is_damaged = 1;
    }
    if (l->n_frames == FRAMES && meets(p, who, i, direction, HEADLESS)) {
        zmq_msg_close(&l->frames[--l->n_frames]);
        is_damaged = 1;
    }
    p->n_damaged += (uint64_t)is_damaged;
}

static void hold(proxy *p, int i_peer, int direction, letter *l, int behind, int ms)
{
    if (p->n_held == HELD_MAX) {
        deliver(p, i_peer, direction, l);
        return;
    }
    p->held[p->n_held++] = (held){*l, i_peer, direction, behind, now_ms() + ms};
    l->n_frames = 0;
}

/* Time has passed, or a message of (i_peer, direction) did: i_peer -1 for time alone. */
static void release(proxy *p, int i_peer, int direction)
{
    const int64_t now = now_ms();
    int n = 0;

    for (int i = 0; i < p->n_held; i++) {
        held *h = &p->held[i];
        if (h->behind > 0 && h->i_peer == i_peer && h->direction == direction)
            h->behind--;
        if (h->behind == 0 || now >= h->due_ms)
            deliver(p, h->i_peer, h->direction, &h->what);
        else
            p->held[n++] = *h;
    }
    p->n_held = n;
}

static void pass(proxy *p, int i_peer, int direction, letter *l)
{
    const peer *who = &p->peers[i_peer];
    const uint32_t i = p->peers[i_peer].n_seen[direction]++;
    const uint32_t how = draw(p, who, i, direction, FAULTS + 1);
    letter second = {0};

    p->n_messages[direction]++;
    if (meets(p, who, i, direction, LOSS)) {
        letter_close(l);
        return;
    }
    if (meets(p, who, i, direction, DUP))
        letter_copy(&second, l); /* before it is damaged: the copy may be the true one */
    damage(p, who, i, direction, l);
    if (meets(p, who, i, direction, DELAY))
        hold(p, i_peer, direction, l, -1, (int)(how % DELAY_MS));
    else if (meets(p, who, i, direction, REORDER))
        hold(p, i_peer, direction, l, 1 + (int)(how % HOLD_MESSAGES), HOLD_MS);
    if (l->n_frames > 0) {
        deliver(p, i_peer, direction, l);
        release(p, i_peer, direction);
    }
    if (second.n_frames > 0 && how & 1u << 31)
        hold(p, i_peer, direction, &second, -1, (int)(how % DELAY_MS));
    if (second.n_frames > 0)
        deliver(p, i_peer, direction, &second);
}

/* ---- sockets ---- */

static void set_limits(void *zmq)
{
    const int zero = 0, many = 100000;
    zmq_setsockopt(zmq, ZMQ_LINGER, &zero, sizeof zero);
    zmq_setsockopt(zmq, ZMQ_SNDHWM, &many, sizeof many);
    zmq_setsockopt(zmq, ZMQ_RCVHWM, &many, sizeof many);
}

/* The peer of a routing id, made if there is none; -1: too many. */
static int peer_of(proxy *p, const void *id, size_t n_id)
{
    for (int i = 0; i < p->n_peers; i++)
        if (p->peers[i].n_id == n_id && memcmp(p->peers[i].id, id, n_id) == 0)
            return i;
    if (p->n_peers == PEERS_MAX || n_id > ID_MAX || n_id < sizeof(uint32_t))
        return -1;
    peer *who = &p->peers[p->n_peers];
    *who = (peer){.n_id = n_id, .back = zmq_socket(p->ctx, ZMQ_DEALER)};
    if (!who->back)
        return -1;
    memcpy(who->id, id, n_id);
    who->key = (uint32_t)who->id[0] << 16;
    for (int i = 0; i < p->n_peers; i++)
        who->key += p->peers[i].id[0] == who->id[0];
    set_limits(who->back);
    if (zmq_setsockopt(who->back, ZMQ_ROUTING_ID, id, n_id) != 0 ||
        zmq_connect(who->back, p->back_address) != 0) {
        zmq_close(who->back);
        return -1;
    }
    return p->n_peers++;
}

/* The frames of one message, at most FRAMES kept.  0: there is none. */
static int take(void *from, letter *l)
{
    zmq_msg_t m;
    int more = 1;

    l->n_frames = 0;
    while (more) {
        zmq_msg_init(&m);
        if (zmq_msg_recv(&m, from, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&m);
            break;
        }
        more = zmq_msg_more(&m);
        if (l->n_frames < FRAMES) {
            zmq_msg_init(&l->frames[l->n_frames]);
            zmq_msg_move(&l->frames[l->n_frames++], &m);
        }
        zmq_msg_close(&m);
    }
    return l->n_frames > 0;
}

static int from_front(proxy *p)
{
    zmq_msg_t id;
    letter l;

    zmq_msg_init(&id);
    if (zmq_msg_recv(&id, p->front, ZMQ_DONTWAIT) < 0) {
        zmq_msg_close(&id);
        return 0;
    }
    const int i = peer_of(p, zmq_msg_data(&id), zmq_msg_size(&id));
    if (zmq_msg_more(&id) && take(p->front, &l)) {
        if (i >= 0)
            pass(p, i, UP, &l);
        else
            letter_close(&l);
    }
    zmq_msg_close(&id);
    return 1;
}

static void serve(proxy *p)
{
    zmq_pollitem_t items[PEERS_MAX + 1] = {{.socket = p->front, .events = ZMQ_POLLIN}};
    letter l;

    for (int i = 0; i < p->n_peers; i++)
        items[i + 1] = (zmq_pollitem_t){.socket = p->peers[i].back, .events = ZMQ_POLLIN};
    zmq_poll(items, p->n_peers + 1, p->n_held > 0 ? 2 : 50);
    for (int i = p->n_peers - 1; i >= 0; i--)
        for (int n = 0; n < BURST_MAX && items[i + 1].revents && take(p->peers[i].back, &l); n++)
            pass(p, i, DOWN, &l);
    for (int n = 0; n < BURST_MAX && from_front(p); n++) {
    }
    release(p, -1, 0);
}

static void report(const proxy *p)
{
    static const char *const names[] = {"to the coordinator", "from it"};

    for (int d = 0; d < DIRECTIONS; d++) {
        printf("proxy: %" PRIu64 " messages %s:", p->n_messages[d], names[d]);
        for (int i = 0; i < FAULTS; i++)
            if (p->percent[i] > 0)
                printf(" %" PRIu64 " %s", p->n_faults[d][i], fault_names[i]);
        printf("\n");
    }
    printf("proxy: damaged=%" PRIu64 " routing_ids=%d undelivered=%" PRIu64 "\n", p->n_damaged,
        p->n_peers, p->n_overflow);
}

static int parse(proxy *p, int argc, char **argv)
{
    uint64_t seed = 1;

    if (argc < 3 || argc % 2 == 0)
        return 0;
    p->back_address = argv[2];
    for (int i = 3; i < argc; i += 2) {
        int k = 0;
        while (k < FAULTS && strcmp(argv[i], option_names[k]) != 0)
            k++;
        if (k < FAULTS)
            p->percent[k] = atof(argv[i + 1]);
        else if (strcmp(argv[i], "--seed") == 0)
            seed = strtoull(argv[i + 1], NULL, 10);
        else
            return 0;
    }
    p->key = pl_noise_key(seed);
    return 1;
}

int main(int argc, char **argv)
{
    static proxy p;
    const struct sigaction action = {.sa_handler = on_signal};

    if (!parse(&p, argc, argv)) {
        fprintf(stderr, "proxy FRONT BACK [--seed N] [--loss|--dup|--reorder|--delay|--truncate|"
                        "--flip|--headless PERCENT]\n");
        return 64;
    }
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    p.ctx = zmq_ctx_new();
    p.front = p.ctx ? zmq_socket(p.ctx, ZMQ_ROUTER) : NULL;
    if (p.front)
        set_limits(p.front);
    if (!p.front || zmq_bind(p.front, argv[1]) != 0) {
        fprintf(stderr, "proxy: %s: %s\n", argv[1], zmq_strerror(errno));
        return 70;
    }
    while (!is_over)
        serve(&p);
    report(&p);
    for (int i = 0; i < p.n_held; i++)
        letter_close(&p.held[i].what);
    for (int i = 0; i < p.n_peers; i++)
        zmq_close(p.peers[i].back);
    zmq_close(p.front);
    zmq_ctx_term(p.ctx);
    return 0;
}
