/* tests/rollout/coordinator_bed.h - messages that outlive their buffers, and samples whose text is
 * a function of their uid. */
#ifndef PL_TESTS_COORDINATOR_BED_H
#define PL_TESTS_COORDINATOR_BED_H

#include "core/rng.h"
#include "ipc/ipc.h"
#include "rollout/coordinator.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

enum { BED_TOKENS = 24, BED_MAX_TOKENS = 20 };

typedef struct packet {
    pl_peer peer; /* where it goes, or comes from */
    pl_header h;
    unsigned char *body;
    size_t n;
    pl_msg *open; /* decoded, once it was looked at */
} packet;

/* Through the codec, as on the wire. */
static inline packet packet_of(const pl_peer *peer, const pl_msg *m)
{
    pl_bytes b = {0};
    pl_error err = {0};
    packet p = {.h = m->h};
    if (peer)
        p.peer = *peer;
    cr_assert_eq(pl_body_encode(m, &b, &err), PL_OK, "type %u: %s", (unsigned)m->h.type, err.msg);
    p.body = b.data;
    p.n = b.n;
    return p;
}

/* Spans and strings point into the packet. */
static inline pl_msg packet_open(packet *p)
{
    pl_error err = {0};
    if (!p->open) {
        p->open = calloc(1, sizeof *p->open);
        cr_assert_not_null(p->open);
        cr_assert_eq(pl_body_decode(p->open, p->h.type, p->body, p->n, &err), PL_OK, "type %u: %s",
            (unsigned)p->h.type, err.msg);
        p->open->h = p->h;
    }
    return *p->open;
}

static inline void packet_free(packet *p)
{
    free(p->body);
    free(p->open);
}

static inline packet packet_copy(const packet *p)
{
    packet q = *p;
    q.open = NULL;
    q.body = malloc(p->n + 1);
    cr_assert_not_null(q.body);
    memcpy(q.body, p->body, p->n);
    return q;
}

typedef struct packets {
    packet *at;
    int n, room;
} packets;

static inline void packets_add(packets *ps, packet p)
{
    if (ps->n == ps->room) {
        ps->room = ps->room ? 2 * ps->room : 64;
        ps->at = realloc(ps->at, (size_t)ps->room * sizeof *ps->at);
        cr_assert_not_null(ps->at);
    }
    ps->at[ps->n++] = p;
}

static inline packet packets_take(packets *ps, int i)
{
    const packet p = ps->at[i];
    memmove(&ps->at[i], &ps->at[i + 1], (size_t)(ps->n - i - 1) * sizeof p);
    ps->n--;
    return p;
}

static inline void packets_cut(packets *ps, int n)
{
    while (ps->n > n)
        packet_free(&ps->at[--ps->n]);
}

static inline void packets_free(packets *ps)
{
    packets_cut(ps, 0);
    free(ps->at);
    *ps = (packets){0};
}

static inline pl_peer bed_peer(uint32_t role, uint64_t incarnation)
{
    pl_peer p = {{0}};
    memcpy(p.id, &role, sizeof role);
    memcpy(p.id + 8, &incarnation, sizeof incarnation);
    return p;
}

static inline pl_hash bed_hash(uint64_t v)
{
    pl_hash h = {{0}};
    memcpy(h.b, &v, sizeof v);
    return h;
}

/* The one text of a sample: what any honest worker makes of it. */
typedef struct text {
    uint32_t n, finish;
    int32_t tokens[BED_TOKENS];
    float logprobs[BED_TOKENS];
    uint8_t sources[BED_TOKENS];
} text;

static inline text bed_text(uint64_t batch, uint32_t uid)
{
    text t = {0};
    t.n = 1 + pl_noise_word(7, uid, (uint32_t)batch, 0, 0) % BED_MAX_TOKENS;
    t.finish = t.n == BED_MAX_TOKENS ? PL_FINISH_LENGTH : PL_FINISH_STOP;
    for (uint32_t i = 0; i < t.n; i++) {
        t.tokens[i] = (int32_t)(pl_noise_word(7, uid, (uint32_t)batch, 1, i) >> 8);
        t.logprobs[i] = -(float)i / 7;
        t.sources[i] = (uint8_t)(i % 3);
    }
    return t;
}

static inline pl_msg bed_group(
    uint64_t batch, uint32_t n_groups, uint32_t i, uint32_t n, uint32_t version)
{
    static const int32_t prompt[] = {5, 6, 7};
    return (pl_msg){.h.type = PL_MSG_GROUP,
        .u.group = {.batch = batch,
            .n_groups = n_groups,
            .i_group = i,
            .first_uid = 100 + i * n,
            .group = 50 + i,
            .n = n,
            .policy_version = version,
            .sampling = {.max_tokens = BED_MAX_TOKENS, .temperature = 0.75f, .top_p = 1},
            .prompt_key = 1000 + i,
            .prompt = {prompt, 3}}};
}

/* t must live as long as the message. */
static inline pl_msg bed_result(
    uint64_t batch, uint32_t uid, uint32_t group, uint32_t version, const text *t)
{
    return (pl_msg){.h.type = PL_MSG_RESULT,
        .u.result = {.batch = batch,
            .uid = uid,
            .group = group,
            .policy_version = version,
            .finish = t->finish,
            .tokens = {t->tokens, t->n},
            .logprobs = {t->logprobs, t->n},
            .sources = {t->sources, t->n},
            .temperature = 0.75f,
            .worker = ""}};
}

static inline uint32_t bed_u32(const pl_span *s, uint32_t i)
{
    uint32_t v;
    memcpy(&v, (const unsigned char *)s->data + (size_t)i * 4, 4);
    return v;
}

static inline int bed_has(const pl_span *s, uint32_t v)
{
    for (uint32_t i = 0; i < s->n; i++)
        if (bed_u32(s, i) == v)
            return 1;
    return 0;
}

static inline pl_coordinator_options bed_options(void)
{
    return (pl_coordinator_options){.run = "00112233445566778899aabbccddeeff",
        .build = "test",
        .numeric_class = "class-a",
        .config_hash = 4,
        .heartbeat_ms = 500,
        .lost_ms = 3000,
        .resend_ms = 1000,
        .stall_s = 30,
        .join_timeout_s = 60};
}

#endif
