/* ipc/codec.c - messages to bytes and back.
 *
 * Header, PL_HEADER_BYTES, little endian:
 *
 *      0  magic "PLM1"
 *      4  protocol     u16  PL_PROTOCOL
 *      6  type         u16  pl_msg_type
 *      8  epoch        u64
 *     16  incarnation  u64
 *     24  seq          u64
 *     32  n_body       u32  bytes of the body, at most PL_BODY_MAX
 *     36  reserved     8 bytes, zero
 *     44  crc          u32  CRC-32C of the 44 bytes before it and of the body
 *
 * Size, magic, protocol, type, n_body and crc stay where they are in every protocol to come, so
 * that a peer of another one can be told from line noise, and be answered.  The rest may change.
 *
 * Body: one msgpack map, field by field as the tables of ipc/fields.c say.  Written with msgpack-c,
 * each integer in its shortest form; read by ipc/walker.c, which takes the longer forms too: their
 * value is the same, and some writers use them.  Floats are float32 only, since a double in between
 * would lose bits of a NaN.  No field is a container, hence the depth is 1.
 *
 * The same bodies are the records of the ledger. */
#include "core/hash.h"
#include "ipc/fields.h"
#include "ipc/ipc.h"
#include "ipc/walker.h"

#include <assert.h>
#include <msgpack/pack.h>
#include <stdlib.h>
#include <string.h>

enum {
    AT_PROTOCOL = 4,
    AT_TYPE = 6,
    AT_EPOCH = 8,
    AT_INCARNATION = 16,
    AT_SEQ = 24,
    AT_N_BODY = 32,
    AT_RESERVED = 36,
    AT_CRC = 44,
    RESERVED_BYTES = 8,
    KEY_MAX = 31, /* the short form of a msgpack string */
};

static const char magic[4] = {'P', 'L', 'M', '1'};

/* ---- buffer ---- */

void pl_bytes_done(pl_bytes *b)
{
    free(b->data);
    *b = (pl_bytes){0};
}

/* Empty b, with room for n bytes. */
static pl_status reserve(pl_bytes *b, size_t n, pl_error *err)
{
    b->n = 0;
    if (n <= b->room)
        return PL_OK;
    const size_t room = (n + 4095) / 4096 * 4096;
    unsigned char *data = malloc(room);
    if (data == NULL)
        return pl_fail(err, PL_E_NOMEM, "no memory for a message of %zu bytes", n);
    free(b->data);
    *b = (pl_bytes){.data = data, .room = room};
    return PL_OK;
}

/* msgpack_packer_write: the room was reserved. */
static int append(void *to, const char *data, size_t n)
{
    pl_bytes *b = to;
    if (n > b->room - b->n)
        return -1;
    memcpy(b->data + b->n, data, n);
    b->n += n;
    return 0;
}

/* ---- encode ---- */

static const void *field_at(const pl_msg *m, const ipc_field *f)
{
    return (const char *)m + f->offset;
}

static pl_span span_of(const pl_msg *m, const ipc_field *f)
{
    pl_span s;
    memcpy(&s, field_at(m, f), sizeof s);
    return s;
}

static const char *text_of(const pl_msg *m, const ipc_field *f)
{
    const char *s;
    memcpy(&s, field_at(m, f), sizeof s);
    return s == NULL ? "" : s;
}

static pl_status check_span(const pl_msg *m, const ipc_field *f, pl_error *err)
{
    const pl_span s = span_of(m, f);
    if (s.n > f->max)
        return pl_fail(err, PL_E_INVAL, "'%s' has %u elements, at most %u go into one message",
            f->key, s.n, f->max);
    if (s.n > 0 && s.data == NULL)
        return pl_fail(err, PL_E_INVAL, "'%s' has %u elements and no data", f->key, s.n);
    if (f->as_before && s.n != span_of(m, f - 1).n)
        return pl_fail(err, PL_E_INVAL, "'%s' has %u elements beside %u of '%s'", f->key, s.n,
            span_of(m, f - 1).n, f[-1].key);
    return PL_OK;
}

/* May f be sent, and in how many bytes at most? */
static pl_status measure(const pl_msg *m, const ipc_field *f, size_t *n_bytes, pl_error *err)
{
    pl_status st = PL_OK;
    *n_bytes = 1 + strlen(f->key) + 9; /* the longest number, and the longest head */
    if (f->kind == IPC_STR || f->kind == IPC_PROSE) {
        const char *s = text_of(m, f);
        const size_t n = strnlen(s, (size_t)f->max + 1);
        *n_bytes += f->max < n ? f->max : n;
        if (f->kind == IPC_STR && n > f->max)
            st = pl_fail(
                err, PL_E_INVAL, "'%s' is longer than %u bytes: '%.48s...'", f->key, f->max, s);
        else if (f->kind == IPC_STR && !walker_is_text((const unsigned char *)s, n))
            st = pl_fail(err, PL_E_INVAL, "'%s' is not valid UTF-8", f->key);
    } else if (f->kind == IPC_SPAN) {
        st = check_span(m, f, err);
        *n_bytes += (size_t)span_of(m, f).n * f->size;
    } else if (f->kind == IPC_HASH) {
        *n_bytes += f->size;
    }
    return st;
}

static int pack_text(msgpack_packer *pk, const char *s, size_t n)
{
    return msgpack_pack_str(pk, n) | msgpack_pack_str_body(pk, s, n);
}

static int pack_bin(msgpack_packer *pk, const void *data, size_t n)
{
    return msgpack_pack_bin(pk, n) | (n == 0 ? 0 : msgpack_pack_bin_body(pk, data, n));
}

static int pack_prose(msgpack_packer *pk, const char *s, size_t max)
{
    char clean[512];
    const size_t n = strnlen(s, max);

    assert(max <= sizeof clean);
    memcpy(clean, s, n);
    for (size_t i = 0; i < n;) {
        const size_t len = walker_char((const unsigned char *)clean + i, n - i);
        if (len == 0)
            clean[i] = '?';
        i += len == 0 ? 1 : len;
    }
    return pack_text(pk, clean, n);
}

static int pack_field(msgpack_packer *pk, const pl_msg *m, const ipc_field *f)
{
    const void *p = field_at(m, f);
    const int rc = pack_text(pk, f->key, strlen(f->key));
    uint32_t u32;
    uint64_t u64;
    float f32;

    switch (f->kind) {
    case IPC_U32:
        memcpy(&u32, p, sizeof u32);
        return rc | msgpack_pack_uint32(pk, u32);
    case IPC_U64:
        memcpy(&u64, p, sizeof u64);
        return rc | msgpack_pack_uint64(pk, u64);
    case IPC_F32:
        memcpy(&f32, p, sizeof f32);
        return rc | msgpack_pack_float(pk, f32);
    case IPC_STR:
        return rc | pack_text(pk, text_of(m, f), strlen(text_of(m, f)));
    case IPC_PROSE:
        return rc | pack_prose(pk, text_of(m, f), f->max);
    case IPC_SPAN:
        return rc | pack_bin(pk, span_of(m, f).data, (size_t)span_of(m, f).n * f->size);
    case IPC_HASH:
        return rc | pack_bin(pk, p, f->size);
    }
    return -1;
}

pl_status pl_body_encode(const pl_msg *m, pl_bytes *out, pl_error *err)
{
    const ipc_layout *l = ipc_layout_of(m->h.type);
    size_t n_bytes = 3; /* head of the map */
    out->n = 0;
    if (l == NULL)
        return pl_fail(err, PL_E_INVAL, "there is no message of type %u", m->h.type);

    /* 1. Everything is checked and measured before anything is written. */
    for (uint32_t i = 0; i < l->n_fields; i++) {
        size_t n;
        const pl_status st = measure(m, &l->fields[i], &n, err);
        if (st != PL_OK)
            return pl_wrap(err, st, "message %s", l->name);
        n_bytes += n;
    }
    if (n_bytes > PL_BODY_MAX)
        return pl_fail(
            err, PL_E_INVAL, "message %s: %zu bytes, at most %d", l->name, n_bytes, PL_BODY_MAX);
    pl_status st = reserve(out, n_bytes, err);
    if (st != PL_OK)
        return pl_wrap(err, st, "message %s", l->name);

    /* 2. Written: cannot fail, the room is there. */
    msgpack_packer pk;
    msgpack_packer_init(&pk, out, append);
    int rc = msgpack_pack_map(&pk, l->n_fields);
    for (uint32_t i = 0; i < l->n_fields; i++)
        rc |= pack_field(&pk, m, &l->fields[i]);
    assert(rc == 0);
    (void)rc;
    return PL_OK;
}

/* ---- decode ---- */

typedef struct reader {
    walker w;
    pl_msg *m;
    const ipc_layout *layout;
    size_t n_text;  /* bytes of m->text that are taken */
    uint32_t found; /* bit i: fields[i] was there */
} reader;

/* The field of a key.  Senders keep the order of the table, therefore it is tried first at i. */
static const ipc_field *find_field(const ipc_layout *l, const walker_item *key, uint32_t i)
{
    for (uint32_t k = 0; k < l->n_fields; k++) {
        const ipc_field *f = &l->fields[(i + k) % l->n_fields];
        if (strlen(f->key) == key->value && memcmp(f->key, key->data, (size_t)key->value) == 0)
            return f;
    }
    return NULL;
}

static pl_status store_text(reader *r, const ipc_field *f, const walker_item *v, pl_error *err)
{
    const size_t n = (size_t)v->value;
    char *to = r->m->text + r->n_text;

    if (n > f->max || n >= sizeof r->m->text - r->n_text)
        return pl_fail(err, PL_E_SHAPE, "a string of %zu bytes, at most %u", n, f->max);
    if (!walker_is_text(v->data, n))
        return pl_fail(err, PL_E_FORMAT, "not valid UTF-8, or NUL in it");
    memcpy(to, v->data, n);
    to[n] = 0;
    r->n_text += n + 1;
    memcpy((char *)r->m + f->offset, &to, sizeof to);
    return PL_OK;
}

static pl_status store_bytes(reader *r, const ipc_field *f, const walker_item *v, pl_error *err)
{
    const pl_span s = {v->data, (uint32_t)(v->value / f->size)};
    void *to = (char *)r->m + f->offset;

    if (v->value % f->size != 0)
        return pl_fail(err, PL_E_SHAPE, "%llu bytes are no whole number of elements of %u",
            (unsigned long long)v->value, f->size);
    if (s.n > f->max)
        return pl_fail(err, PL_E_SHAPE, "%u elements, at most %u", s.n, f->max);
    if (f->kind == IPC_SPAN) {
        memcpy(to, &s, sizeof s);
        return PL_OK;
    }
    if (s.n != 1)
        return pl_fail(
            err, PL_E_SHAPE, "%llu bytes, a hash has %u", (unsigned long long)v->value, f->size);
    memcpy(to, s.data, f->size);
    return PL_OK;
}

static pl_status store_number(reader *r, const ipc_field *f, const walker_item *v, pl_error *err)
{
    const uint32_t low = (uint32_t)v->value;
    void *to = (char *)r->m + f->offset;

    if (f->kind != IPC_U64 && v->value > UINT32_MAX)
        return pl_fail(err, PL_E_FORMAT, "%llu is over 32 bits", (unsigned long long)v->value);
    if (f->kind == IPC_U64)
        memcpy(to, &v->value, sizeof v->value);
    else
        memcpy(to, &low, sizeof low);
    return PL_OK;
}

static pl_status read_field(reader *r, const ipc_field *f, pl_error *err)
{
    static const struct {
        walker_kind wire;
        const char *what;
        pl_status (*store)(reader *, const ipc_field *, const walker_item *, pl_error *);
    } forms[] = {
        [IPC_U32] = {WALKER_UINT, "an integer from 0", store_number},
        [IPC_U64] = {WALKER_UINT, "an integer from 0", store_number},
        [IPC_F32] = {WALKER_F32, "a float", store_number},
        [IPC_STR] = {WALKER_STR, "a string", store_text},
        [IPC_PROSE] = {WALKER_STR, "a string", store_text},
        [IPC_SPAN] = {WALKER_BIN, "bytes", store_bytes},
        [IPC_HASH] = {WALKER_BIN, "bytes", store_bytes},
    };
    const uint32_t bit = (uint32_t)1 << (f - r->layout->fields);
    walker_item v;

    if (r->found & bit)
        return pl_fail(err, PL_E_FORMAT, "the key stands there twice");
    r->found |= bit;
    const pl_status st = walker_next(&r->w, &v, err);
    if (st != PL_OK)
        return st;
    if (v.kind != forms[f->kind].wire)
        return pl_fail(err, PL_E_FORMAT, "%s instead of %s", v.what, forms[f->kind].what);
    return forms[f->kind].store(r, f, &v, err);
}

/* The i-th pair of the map. */
static pl_status read_pair(reader *r, uint32_t i, pl_error *err)
{
    const size_t start = r->w.pos;
    walker_item key;
    pl_status st = walker_next(&r->w, &key, err);
    if (st != PL_OK)
        return st;
    if (key.kind != WALKER_STR)
        return pl_fail(err, PL_E_FORMAT, "byte %zu: %s instead of a key", start, key.what);
    const ipc_field *f = find_field(r->layout, &key, i);
    if (f == NULL) {
        const int shown = key.value <= KEY_MAX && walker_is_text(key.data, (size_t)key.value);
        return pl_fail(err, PL_E_FORMAT, "byte %zu: unknown key '%.*s'", start,
            shown ? (int)key.value : 3, shown ? (const char *)key.data : "...");
    }
    st = read_field(r, f, err);
    return st == PL_OK ? PL_OK : pl_wrap(err, st, "'%s' at byte %zu", f->key, start);
}

static pl_status read_body(reader *r, pl_error *err)
{
    const ipc_layout *l = r->layout;
    walker_item map;

    /* 1. As many pairs as the type has fields, each another one: then none is missing. */
    pl_status st = walker_next(&r->w, &map, err);
    if (st != PL_OK)
        return st;
    if (map.kind != WALKER_MAP)
        return pl_fail(err, PL_E_FORMAT, "%s instead of a map", map.what);
    if (map.value != l->n_fields)
        return pl_fail(err, PL_E_FORMAT, "%llu keys instead of %u", (unsigned long long)map.value,
            l->n_fields);
    for (uint32_t i = 0; i < l->n_fields; i++) {
        st = read_pair(r, i, err);
        if (st != PL_OK)
            return st;
    }

    /* 2. Nothing behind it. */
    if (r->w.pos != r->w.n)
        return pl_fail(err, PL_E_FORMAT, "%zu bytes after its end", r->w.n - r->w.pos);

    /* 3. What belongs together is equally long. */
    for (uint32_t i = 0; i < l->n_fields; i++) {
        const ipc_field *f = &l->fields[i];
        if (f->as_before && span_of(r->m, f).n != span_of(r->m, f - 1).n)
            return pl_fail(err, PL_E_SHAPE, "'%s' has %u elements beside %u of '%s'", f->key,
                span_of(r->m, f).n, span_of(r->m, f - 1).n, f[-1].key);
    }
    return PL_OK;
}

pl_status pl_body_decode(pl_msg *m, uint16_t type, const void *body, size_t n, pl_error *err)
{
    const ipc_layout *l = ipc_layout_of(type);
    reader r = {.w = {.body = body, .n = n}, .m = m, .layout = l};

    if (l == NULL)
        return pl_fail(
            err, PL_E_FORMAT, "message of type %u: protocol %d has none such", type, PL_PROTOCOL);
    if (n > PL_BODY_MAX)
        return pl_fail(err, PL_E_SHAPE, "message %s: a body of %zu bytes, at most %d", l->name, n,
            PL_BODY_MAX);
    m->h.type = type;
    memset(&m->u, 0, sizeof m->u);
    const pl_status st = read_body(&r, err);
    return st == PL_OK ? PL_OK : pl_wrap(err, st, "message %s", l->name);
}

/* ---- header ---- */

static void put(unsigned char *to, uint64_t value, int n_bytes)
{
    for (int i = 0; i < n_bytes; i++)
        to[i] = (unsigned char)(value >> (8 * i));
}

static uint64_t get(const unsigned char *from, int n_bytes)
{
    uint64_t value = 0;
    for (int i = n_bytes - 1; i >= 0; i--)
        value = value << 8 | from[i];
    return value;
}

static uint32_t checksum(const unsigned char *head, const void *body, size_t n_body)
{
    const uint32_t crc = pl_crc32c(0, head, AT_CRC);
    return n_body == 0 ? crc : pl_crc32c(crc, body, n_body);
}

void pl_header_encode(const pl_header *h, const void *body, unsigned char out[PL_HEADER_BYTES])
{
    memcpy(out, magic, sizeof magic);
    put(out + AT_PROTOCOL, h->protocol, 2);
    put(out + AT_TYPE, h->type, 2);
    put(out + AT_EPOCH, h->epoch, 8);
    put(out + AT_INCARNATION, h->incarnation, 8);
    put(out + AT_SEQ, h->seq, 8);
    put(out + AT_N_BODY, h->n_body, 4);
    put(out + AT_RESERVED, 0, RESERVED_BYTES);
    put(out + AT_CRC, checksum(out, body, h->n_body), 4);
}

pl_status pl_header_decode(
    pl_header *h, const void *head, size_t n_head, const void *body, size_t n_body, pl_error *err)
{
    const unsigned char *p = head;

    /* 1. Is it a message, and whole?  That much is the same in every protocol. */
    if (n_head != PL_HEADER_BYTES)
        return pl_fail(
            err, PL_E_FORMAT, "a header of %zu bytes, it has %d", n_head, PL_HEADER_BYTES);
    if (memcmp(p, magic, sizeof magic) != 0)
        return pl_fail(err, PL_E_FORMAT, "not a message of Paceline: it does not begin with PLM1");
    if (n_body > PL_BODY_MAX || n_body != get(p + AT_N_BODY, 4))
        return pl_fail(err, PL_E_FORMAT, "a body of %zu bytes, the header says %llu, at most %d",
            n_body, (unsigned long long)get(p + AT_N_BODY, 4), PL_BODY_MAX);
    if (get(p + AT_CRC, 4) != checksum(p, body, n_body))
        return pl_fail(err, PL_E_FORMAT, "the checksum is wrong: damaged on the way");

    /* 2. Ours? */
    const uint16_t protocol = (uint16_t)get(p + AT_PROTOCOL, 2);
    if (protocol == PL_PROTOCOL && get(p + AT_RESERVED, RESERVED_BYTES) != 0)
        return pl_fail(err, PL_E_FORMAT, "the reserved bytes of the header are not zero");
    *h = (pl_header){.protocol = protocol,
        .type = (uint16_t)get(p + AT_TYPE, 2),
        .epoch = get(p + AT_EPOCH, 8),
        .incarnation = get(p + AT_INCARNATION, 8),
        .seq = get(p + AT_SEQ, 8),
        .n_body = (uint32_t)n_body};
    if (protocol != PL_PROTOCOL)
        return pl_fail(err, PL_E_PEER, "the peer speaks protocol %u, this build %d: run one build",
            protocol, PL_PROTOCOL);
    return PL_OK;
}
