#include "messages.h"

#include "core/rng.h"
#include "ipc/fields.h"

#include <stdlib.h>
#include <string.h>

typedef struct filler {
    messages_size size;
    uint64_t key;
    uint32_t index;      /* of the next random word */
    unsigned char *next; /* in what messages_fill returns */
    uint32_t n_before;   /* elements of the span before */
} filler;

static uint32_t word(filler *r)
{
    return pl_noise_word(r->key, 0, 0, PL_NOISE_FAULT, r->index++);
}

/* Numbers of every width: a random one, shifted by a random number of bits. */
static uint64_t number(filler *r, int n_bits, ipc_kind kind)
{
    const uint64_t all = UINT64_MAX >> (64 - n_bits);
    if (r->size == MESSAGES_LOW)
        return kind == IPC_F32 ? 0x80000000u : 0; /* minus zero */
    if (r->size == MESSAGES_HIGH)
        return kind == IPC_F32 ? 0xffa00001u | (word(r) & 0x1ffffe) : all;
    const uint64_t value = (uint64_t)word(r) << 32 | word(r);
    return (value & all) >> (kind == IPC_F32 ? 0 : word(r) % (uint32_t)n_bits);
}

static uint32_t count(filler *r, const ipc_field *f)
{
    const uint32_t most = f->max < 9 ? f->max : 9;
    if (f->as_before)
        return r->n_before;
    return r->size == MESSAGES_LOW ? 0 : r->size == MESSAGES_HIGH ? f->max : word(r) % (most + 1);
}

static const char *text(filler *r, const ipc_field *f)
{
    static const char euro[] = "\xe2\x82\xac";
    const uint32_t n = count(r, f);
    char *s = (char *)r->next;

    for (uint32_t i = 0; i < n; i++)
        s[i] = (char)(' ' + word(r) % 95);
    if (n >= 3)
        memcpy(s + n - 3, euro, 3);
    s[n] = 0;
    r->next += n + 1;
    return s;
}

static pl_span span(filler *r, const ipc_field *f)
{
    const pl_span s = {r->next, count(r, f)};
    const uint32_t n_bytes = s.n * f->size;

    for (uint32_t i = 0; i < n_bytes; i++)
        r->next[i] = (unsigned char)word(r);
    r->next += n_bytes;
    r->n_before = s.n;
    return s;
}

static void fill_field(filler *r, pl_msg *m, const ipc_field *f)
{
    char *to = (char *)m + f->offset;
    const uint64_t value = number(r, f->kind == IPC_U64 ? 64 : 32, f->kind);
    const uint32_t low = (uint32_t)value;

    if (f->kind == IPC_STR || f->kind == IPC_PROSE) {
        const char *s = text(r, f);
        memcpy(to, &s, sizeof s);
    } else if (f->kind == IPC_SPAN) {
        const pl_span s = span(r, f);
        memcpy(to, &s, sizeof s);
    } else if (f->kind == IPC_HASH) {
        for (int i = 0; i < f->size; i++)
            to[i] = (char)word(r);
    } else if (f->kind == IPC_U64) {
        memcpy(to, &value, sizeof value);
    } else {
        memcpy(to, &low, sizeof low);
    }
}

unsigned char *messages_fill(pl_msg *m, uint16_t type, messages_size size, uint64_t key)
{
    const ipc_layout *l = ipc_layout_of(type);
    size_t room = 1;
    for (uint32_t i = 0; i < l->n_fields; i++)
        room += (size_t)l->fields[i].max * l->fields[i].size + 1;
    unsigned char *store = malloc(room);
    if (store == NULL)
        return NULL;

    filler r = {.size = size, .key = key ^ type, .next = store};
    memset(m, 0, sizeof *m);
    m->h.type = type;
    for (uint32_t i = 0; i < l->n_fields; i++)
        fill_field(&r, m, &l->fields[i]);
    return store;
}

static int is_equal(const pl_msg *a, const pl_msg *b, const ipc_field *f)
{
    const char *x = (const char *)a + f->offset, *y = (const char *)b + f->offset;
    pl_span s, t;
    const char *p, *q;

    switch (f->kind) {
    case IPC_STR:
    case IPC_PROSE:
        memcpy(&p, x, sizeof p);
        memcpy(&q, y, sizeof q);
        return strcmp(p, q) == 0;
    case IPC_SPAN:
        memcpy(&s, x, sizeof s);
        memcpy(&t, y, sizeof t);
        return s.n == t.n && memcmp(s.data, t.data, (size_t)s.n * f->size) == 0;
    default:
        return memcmp(x, y, f->size) == 0;
    }
}

const char *messages_differ(const pl_msg *a, const pl_msg *b)
{
    const ipc_layout *l = ipc_layout_of(a->h.type);
    if (a->h.type != b->h.type)
        return "type";
    for (uint32_t i = 0; i < l->n_fields; i++)
        if (!is_equal(a, b, &l->fields[i]))
            return l->fields[i].key;
    return NULL;
}
