/* Claims: every message comes back bit for bit, with every field at its limits; msgpack-c reads
 * what is sent and is read; what is cut, changed, doubled, missing, unknown, too long or of another
 * type is refused with a sentence, and no byte outside the body is touched (run it under ASan).
 * Filled from the tables of ipc/fields.h by a keyed generator; those tables are held against
 * ipc/schema.h and against a ledger of an earlier build. */
#include "core/hash.h"
#include "core/journal.h"
#include "ipc/fields.h"
#include "ipc/ipc.h"
#include "messages.h"

#include <criterion/criterion.h>
#include <msgpack.h>
#include <stdlib.h>
#include <string.h>

enum { N_RANDOM = 40 };

static const messages_size sizes[] = {MESSAGES_LOW, MESSAGES_RANDOM, MESSAGES_HIGH};

/* Decode a copy that ends where the memory ends. */
static pl_status decode(pl_msg *m, uint16_t type, const void *body, size_t n, pl_error *err)
{
    unsigned char *copy = malloc(n > 0 ? n : 1);
    memcpy(copy, body, n);
    *err = (pl_error){0};
    const pl_status st = pl_body_decode(m, type, copy, n, err);
    cr_assert((st == PL_OK) == (err->msg[0] == 0), "status %d: '%s'", (int)st, err->msg);
    cr_assert(st == PL_OK || st == PL_E_FORMAT || st == PL_E_SHAPE, "status %d", (int)st);
    free(copy);
    return st;
}

/* A random body of the type, in b. */
static void make(pl_bytes *b, uint16_t type, uint64_t key)
{
    pl_msg m;
    pl_error err = {0};
    unsigned char *store = messages_fill(&m, type, MESSAGES_RANDOM, key);
    cr_assert_eq(pl_body_encode(&m, b, &err), PL_OK, "%s", err.msg);
    free(store);
}

/* ---- the tables ---- */

#define SIZE(type, member)                                                                         \
    {                                                                                              \
        PL_MSG_##type, #type, sizeof(((pl_msg *)0)->u.member)                                      \
    }
static const struct {
    uint16_t type;
    const char *name;
    size_t size;
} schema[] = {
    SIZE(HELLO, hello),
    SIZE(WELCOME, welcome),
    SIZE(REJECT, reject),
    SIZE(STATUS, status),
    {PL_MSG_DRAIN, "DRAIN", 0},
    {PL_MSG_LEAVE, "LEAVE", 0},
    {PL_MSG_STOP, "STOP", 0},
    SIZE(GROUP, group),
    SIZE(LEASE, lease),
    SIZE(REVOKE, uids),
    SIZE(PROGRESS, progress),
    SIZE(RESULT, result),
    SIZE(ACK, uids),
    SIZE(BATCH, batch),
    SIZE(WANT, uids),
    SIZE(REWARD, reward),
    SIZE(REFUSE, refuse),
    SIZE(HANDOVER, uids),
    SIZE(CONSUME, consume),
    SIZE(VERSION, version),
    SIZE(CHECKPOINT, step),
    SIZE(DONE, step),
    SIZE(TRACED, traced),
    SIZE(TRAIN, train),
    SIZE(HALT, halt),
    SIZE(DRAFTER, drafter),
    SIZE(DRAFTING, drafting),
    SIZE(FETCH, fetch),
    SIZE(LEAVES, leaves),
    SIZE(CHUNK, chunk),
    SIZE(GONE, gone),
    SIZE(EPOCH, epoch),
    {PL_MSG_END, "END", 0},
};
enum { N_SCHEMA = sizeof schema / sizeof schema[0] };

static size_t align(size_t at, size_t to)
{
    return (at + to - 1) / to * to;
}

static void check_layout(const ipc_layout *l, size_t size)
{
    size_t at = 0;
    for (uint32_t i = 0; i < l->n_fields; i++) {
        static const struct {
            size_t size, align;
        } form[] = {{4, 4}, {8, 8}, {4, 4}, {8, 8}, {8, 8}, {16, 8}, {32, 1}};
        const ipc_field *f = &l->fields[i];
        const int is_struct = strcmp(f->key, "max_tokens") == 0; /* pl_sampling begins */
        at = align(at, is_struct ? _Alignof(pl_sampling) : form[f->kind].align);
        cr_assert_eq(f->offset - offsetof(pl_msg, u), at, "%s.%s or one before", l->name, f->key);
        at += form[f->kind].size;
        cr_assert_leq(strlen(f->key), 31);
        for (uint32_t k = 0; k < i; k++)
            cr_assert_str_neq(f->key, l->fields[k].key, "%s", l->name);
    }
    cr_assert(align(at, 4) == size || align(at, 8) == size, "%s: not all is in the table", l->name);
}

Test(codec, tables_have_every_field_of_every_message)
{
    int n = 0;
    for (int i = 0; i < N_SCHEMA; i++) {
        const ipc_layout *l = ipc_layout_of(schema[i].type);
        cr_assert_not_null(l, "%s", schema[i].name);
        cr_assert_str_eq(pl_msg_name(schema[i].type), schema[i].name);
        cr_assert_leq(l->n_fields, 32);
        check_layout(l, schema[i].size);
    }
    for (int type = 0; type <= UINT16_MAX; type++)
        n += ipc_layout_of((uint16_t)type) != NULL;
    cr_assert_eq(n, N_SCHEMA, "%d types", n);
    cr_assert_str_eq(pl_msg_name(0), "?");
    cr_assert_str_eq(pl_msg_name(UINT16_MAX), "?");
}

/* ---- round trips ---- */

static void round_trip(
    uint16_t type, messages_size size, uint64_t key, pl_bytes *b, pl_bytes *again)
{
    pl_msg m, back;
    pl_error err = {0};
    unsigned char *store = messages_fill(&m, type, size, key);

    memset(&back, 0xa5, sizeof back);
    back.h = (pl_header){.seq = 9, .epoch = 7};
    cr_assert_eq(pl_body_encode(&m, b, &err), PL_OK, "%s", err.msg);
    cr_assert_leq(b->n, PL_BODY_MAX);
    cr_assert_eq(pl_body_decode(&back, type, b->data, b->n, &err), PL_OK, "%s", err.msg);
    const char *differs = messages_differ(&m, &back);
    cr_assert_null(differs, "%s.%s at size %d", pl_msg_name(type), differs, (int)size);
    cr_assert(back.h.seq == 9 && back.h.epoch == 7, "the header was touched");
    cr_assert_eq(pl_body_encode(&back, again, &err), PL_OK, "%s", err.msg);
    cr_assert(again->n == b->n && memcmp(again->data, b->data, b->n) == 0);
    free(store);
}

Test(codec, every_message_comes_back_with_every_field_at_its_limits)
{
    pl_bytes b = {0}, again = {0};
    for (int i = 0; i < N_SCHEMA; i++) {
        round_trip(schema[i].type, MESSAGES_LOW, 1, &b, &again);
        round_trip(schema[i].type, MESSAGES_HIGH, 1, &b, &again);
        if (schema[i].type == PL_MSG_RESULT)
            cr_assert_leq(b.n, PL_JOURNAL_RECORD_MAX, "%zu bytes: no record of a ledger", b.n);
        for (uint64_t key = 0; key < N_RANDOM; key++)
            round_trip(schema[i].type, MESSAGES_RANDOM, key, &b, &again);
    }
    pl_bytes_done(&b);
    pl_bytes_done(&b); /* twice is harmless */
    pl_bytes_done(&again);
}

Test(codec, null_strings_are_sent_empty)
{
    pl_bytes b = {0};
    pl_error err = {0};
    pl_msg m = {.h.type = PL_MSG_RESULT}, back;
    cr_assert_eq(pl_body_encode(&m, &b, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_body_decode(&back, PL_MSG_RESULT, b.data, b.n, &err), PL_OK, "%s", err.msg);
    cr_assert_str_eq(back.u.result.worker, "");
    pl_bytes_done(&b);
}

/* Provenance: written by tests/oracle/messages_driver.c corpus: two bytes of type and a body a
 * file. What a ledger may have, and all but STATUS, is of protocol 1; STATUS and the messages of
 * the spot trainer are of protocol 2, TRACED of 3, DRAFTING of 5.  A ledger of then must be read
 * now, and mean the same. */
Test(codec, bodies_of_earlier_builds_are_read_and_written_again_to_the_byte)
{
    for (int i = 0; i < N_SCHEMA; i++) {
        char path[128];
        unsigned char bytes[4096];
        pl_bytes b = {0};
        pl_msg m;
        pl_error err = {0};
        snprintf(path, sizeof path, "tests/fuzz/corpus/message/%s", schema[i].name);
        FILE *f = fopen(path, "rb");
        cr_assert_not_null(f, "%s", path);
        const size_t n = fread(bytes, 1, sizeof bytes, f);
        fclose(f);
        cr_assert(n > 2 && bytes[0] == schema[i].type && bytes[1] == 0, "%s", path);
        cr_assert_eq(pl_body_decode(&m, bytes[0], bytes + 2, n - 2, &err), PL_OK, "%s", err.msg);
        cr_assert_eq(pl_body_encode(&m, &b, &err), PL_OK, "%s", err.msg);
        cr_assert(b.n == n - 2 && memcmp(b.data, bytes + 2, b.n) == 0, "%s", path);
        pl_bytes_done(&b);
    }
}

/* ---- msgpack-c ---- */

static void check_object(const pl_msg *m, const ipc_field *f, const msgpack_object *o)
{
    const char *p = (const char *)m + f->offset, *s;
    uint32_t u32;
    uint64_t u64;
    float f32;
    pl_span span;

    if (f->kind == IPC_U32 || f->kind == IPC_U64) {
        memcpy(&u32, p, sizeof u32);
        memcpy(&u64, p, f->kind == IPC_U64 ? sizeof u64 : sizeof u32);
        cr_assert_eq(o->type, MSGPACK_OBJECT_POSITIVE_INTEGER, "%s", f->key);
        cr_assert_eq(o->via.u64, f->kind == IPC_U64 ? u64 : u32, "%s", f->key);
    } else if (f->kind == IPC_F32) {
        memcpy(&f32, p, sizeof f32);
        cr_assert_eq(o->type, MSGPACK_OBJECT_FLOAT32, "%s", f->key);
        cr_assert(o->via.f64 == (double)f32 || f32 != f32, "%s", f->key);
    } else if (f->kind == IPC_STR || f->kind == IPC_PROSE) {
        memcpy(&s, p, sizeof s);
        cr_assert_eq(o->type, MSGPACK_OBJECT_STR, "%s", f->key);
        cr_assert_eq(o->via.str.size, strlen(s), "%s", f->key);
        cr_assert_eq(memcmp(o->via.str.ptr, s, strlen(s)), 0, "%s", f->key);
    } else {
        span = (pl_span){p, 1};
        if (f->kind == IPC_SPAN)
            memcpy(&span, p, sizeof span);
        cr_assert_eq(o->type, MSGPACK_OBJECT_BIN, "%s", f->key);
        cr_assert_eq(o->via.bin.size, span.n * f->size, "%s", f->key);
        cr_assert_eq(memcmp(o->via.bin.ptr, span.data, o->via.bin.size), 0, "%s", f->key);
    }
}

/* Unpack b with msgpack-c and compare it with m. */
static void check_unpacked(const pl_msg *m, const pl_bytes *b)
{
    const ipc_layout *l = ipc_layout_of(m->h.type);
    msgpack_unpacked u;
    size_t end = 0;

    msgpack_unpacked_init(&u);
    const msgpack_unpack_return rc = msgpack_unpack_next(&u, (const char *)b->data, b->n, &end);
    cr_assert_eq(rc, MSGPACK_UNPACK_SUCCESS, "%s", l->name);
    cr_assert_eq(end, b->n);
    cr_assert_eq(u.data.type, MSGPACK_OBJECT_MAP);
    cr_assert_eq(u.data.via.map.size, l->n_fields);
    for (uint32_t i = 0; i < l->n_fields; i++) {
        const msgpack_object_kv *kv = &u.data.via.map.ptr[i];
        cr_assert_eq(kv->key.via.str.size, strlen(l->fields[i].key));
        cr_assert_eq(memcmp(kv->key.via.str.ptr, l->fields[i].key, kv->key.via.str.size), 0);
        check_object(m, &l->fields[i], &kv->val);
    }
    msgpack_unpacked_destroy(&u);
}

Test(codec, msgpack_c_reads_every_message)
{
    pl_bytes b = {0};
    for (int i = 0; i < N_SCHEMA; i++) {
        for (int k = 0; k < 3; k++) {
            pl_msg m;
            pl_error err = {0};
            unsigned char *store = messages_fill(&m, schema[i].type, sizes[k], 3);
            cr_assert_eq(pl_body_encode(&m, &b, &err), PL_OK, "%s", err.msg);
            check_unpacked(&m, &b);
            free(store);
        }
    }
    pl_bytes_done(&b);
}

/* Write m the other way round, with integers of full width and unsigned or signed as they fit. */
static void pack_reversed(msgpack_packer *pk, const pl_msg *m)
{
    pl_bytes b = {0};
    pl_error err = {0};
    msgpack_unpacked u;

    msgpack_unpacked_init(&u);
    cr_assert_eq(pl_body_encode(m, &b, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(msgpack_unpack_next(&u, (const char *)b.data, b.n, NULL), MSGPACK_UNPACK_SUCCESS);
    const msgpack_object_map *map = &u.data.via.map;
    msgpack_pack_map(pk, map->size);
    for (uint32_t i = map->size; i-- > 0;) {
        const msgpack_object *val = &map->ptr[i].val;
        msgpack_pack_object(pk, map->ptr[i].key);
        if (val->type != MSGPACK_OBJECT_POSITIVE_INTEGER)
            msgpack_pack_object(pk, *val);
        else if (val->via.u64 > INT64_MAX || i % 2)
            msgpack_pack_fix_uint64(pk, val->via.u64);
        else
            msgpack_pack_fix_int64(pk, (int64_t)val->via.u64);
    }
    msgpack_unpacked_destroy(&u);
    pl_bytes_done(&b);
}

Test(codec, any_order_of_keys_and_any_width_of_integers_is_read)
{
    for (int i = 0; i < N_SCHEMA; i++) {
        for (int k = 0; k < 2; k++) {
            pl_msg m, back;
            pl_error err = {0};
            msgpack_sbuffer out;
            msgpack_packer pk;
            unsigned char *store = messages_fill(&m, schema[i].type, sizes[k], 5);
            msgpack_sbuffer_init(&out);
            msgpack_packer_init(&pk, &out, msgpack_sbuffer_write);
            pack_reversed(&pk, &m);
            const pl_status st = pl_body_decode(&back, schema[i].type, out.data, out.size, &err);
            cr_assert_eq(st, PL_OK, "%s", err.msg);
            const char *differs = messages_differ(&m, &back);
            cr_assert_null(differs, "%s.%s", schema[i].name, differs);
            msgpack_sbuffer_destroy(&out);
            free(store);
        }
    }
}

/* ---- harm on the way ---- */

Test(codec, a_body_cut_at_any_length_is_refused)
{
    for (int i = 0; i < N_SCHEMA; i++) {
        pl_bytes b = {0};
        pl_msg m;
        pl_error err;
        make(&b, schema[i].type, 11);
        for (size_t n = 0; n < b.n; n++)
            cr_assert_neq(decode(&m, schema[i].type, b.data, n, &err), PL_OK, "%zu", n);
        pl_bytes_done(&b);
    }
}

Test(codec, any_wrong_byte_of_header_or_body_is_detected)
{
    for (int i = 0; i < N_SCHEMA; i++) {
        unsigned char head[PL_HEADER_BYTES];
        pl_bytes b = {0};
        pl_error err = {0};
        make(&b, schema[i].type, 12);
        pl_header h = {PL_PROTOCOL, schema[i].type, 3, UINT64_MAX - 1, 1ull << 40, (uint32_t)b.n};
        pl_header back, untouched;
        memset(&untouched, 0xa5, sizeof untouched);
        pl_header_encode(&h, b.data, head);
        cr_assert_eq(pl_header_decode(&back, head, sizeof head, b.data, b.n, &err), PL_OK);
        cr_assert(back.protocol == h.protocol && back.type == h.type && back.epoch == h.epoch &&
                  back.incarnation == h.incarnation && back.seq == h.seq && back.n_body == b.n);
        for (size_t at = 0; at < sizeof head + b.n; at++) {
            unsigned char *byte = at < sizeof head ? head + at : b.data + at - sizeof head;
            for (int x = 1; x < 256; x = 2 * x + (x & 1)) {
                *byte ^= (unsigned char)x;
                back = untouched;
                cr_assert_eq(pl_header_decode(&back, head, sizeof head, b.data, b.n, &err),
                    PL_E_FORMAT, "%s, byte %zu ^ %02x", schema[i].name, at, x);
                cr_assert_eq(memcmp(&back, &untouched, sizeof back), 0);
                *byte ^= (unsigned char)x;
            }
        }
        pl_bytes_done(&b);
    }
}

/* With the checksum made right again there is only the codec. */
Test(codec, any_wrong_byte_under_a_right_checksum_is_refused_or_means_something)
{
    int n_read = 0, n_refused = 0;
    for (int i = 0; i < N_SCHEMA; i++) {
        pl_bytes b = {0}, again = {0};
        make(&b, schema[i].type, 13);
        for (size_t at = 0; at < b.n; at++) {
            for (int x = 1; x < 256; x++) {
                pl_msg m, back;
                pl_error err = {0};
                b.data[at] ^= (unsigned char)x;
                if (decode(&m, schema[i].type, b.data, b.n, &err) != PL_OK) {
                    n_refused++;
                } else { /* within the limits, or it could not be sent; again: m's copy is gone */
                    cr_assert_eq(pl_body_decode(&m, schema[i].type, b.data, b.n, &err), PL_OK);
                    cr_assert_eq(pl_body_encode(&m, &again, &err), PL_OK, "%s", err.msg);
                    cr_assert_eq(
                        pl_body_decode(&back, schema[i].type, again.data, again.n, &err), PL_OK);
                    cr_assert_null(messages_differ(&m, &back));
                    n_read++;
                }
                b.data[at] ^= (unsigned char)x;
            }
        }
        pl_bytes_done(&b);
        pl_bytes_done(&again);
    }
    cr_assert(n_read > 1000 && n_refused > 1000, "%d read, %d refused", n_read, n_refused);
}

/* ---- headers ---- */

static pl_status read_header(
    pl_header *h, const pl_header *written, const void *body, size_t n_body, pl_error *err)
{
    unsigned char head[PL_HEADER_BYTES];
    pl_header_encode(written, body, head);
    return pl_header_decode(h, head, sizeof head, body, n_body, err);
}

Test(codec, headers_of_another_size_length_or_protocol_are_refused)
{
    const unsigned char body[2] = {0x80, 0};
    unsigned char head[PL_HEADER_BYTES + 1] = {0};
    pl_header h = {PL_PROTOCOL, PL_MSG_STOP, 1, 2, 3, 1}, back = {0};
    pl_error err = {0};

    cr_assert_eq(read_header(&back, &h, body, 1, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(read_header(&back, &h, body, 2, &err), PL_E_FORMAT);
    cr_assert_eq(read_header(&back, &h, body, 0, &err), PL_E_FORMAT);
    for (size_t n = 0; n <= sizeof head; n++) {
        pl_header_encode(&h, body, head);
        const pl_status st = pl_header_decode(&back, head, n, body, 1, &err);
        cr_assert_eq(st, n == PL_HEADER_BYTES ? PL_OK : PL_E_FORMAT, "%zu", n);
    }

    /* Reserved bytes under a right checksum. */
    pl_header_encode(&h, body, head);
    head[40] = 1;
    const uint32_t crc = pl_crc32c(pl_crc32c(0, head, 44), body, 1);
    memcpy(head + 44, &crc, sizeof crc);
    cr_assert_eq(pl_header_decode(&back, head, PL_HEADER_BYTES, body, 1, &err), PL_E_FORMAT);
    cr_assert(strstr(err.msg, "reserved") != NULL, "%s", err.msg);

    h.protocol = PL_PROTOCOL + 1;
    cr_assert_eq(read_header(&back, &h, body, 1, &err), PL_E_PEER);
    cr_assert_eq(back.protocol, PL_PROTOCOL + 1);
    cr_assert(strstr(err.msg, "protocol 6") != NULL, "%s", err.msg);
}
