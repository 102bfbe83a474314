/* tests/fuzz/fuzz_message.c - two bytes of type and any bytes as a body: refused with a sentence,
 * or every string and span lies in its place, msgpack-c reads the same bytes, and what they mean is
 * packed and read again to the bit.  The same bytes as header and body of a frame.
 * Corpus: one good message a type, written by tests/oracle/messages_driver.c. */
#include "ipc/fields.h"
#include "ipc/ipc.h"

#include <msgpack.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void demand(int is_true)
{
    if (!is_true)
        abort();
}

static void check_field(const pl_msg *m, const ipc_field *f, const uint8_t *body, size_t n)
{
    const char *p = (const char *)m + f->offset, *s;
    pl_span span;

    if (f->kind == IPC_STR || f->kind == IPC_PROSE) {
        memcpy(&s, p, sizeof s);
        demand(s >= m->text && s < m->text + sizeof m->text && strlen(s) <= f->max);
        demand(s + strlen(s) < m->text + sizeof m->text);
    } else if (f->kind == IPC_SPAN) {
        memcpy(&span, p, sizeof span);
        const uint8_t *at = span.data;
        demand(span.n <= f->max && at >= body && at + (size_t)span.n * f->size <= body + n);
    }
}

static void check_message(const pl_msg *m, const uint8_t *body, size_t n)
{
    const ipc_layout *l = ipc_layout_of(m->h.type);
    pl_bytes once = {0}, twice = {0};
    pl_msg back;
    pl_error err;
    msgpack_unpacked u;
    size_t end = 0;

    for (uint32_t i = 0; i < l->n_fields; i++)
        check_field(m, &l->fields[i], body, n);
    msgpack_unpacked_init(&u);
    demand(msgpack_unpack_next(&u, (const char *)body, n, &end) == MSGPACK_UNPACK_SUCCESS);
    demand(end == n && u.data.type == MSGPACK_OBJECT_MAP && u.data.via.map.size == l->n_fields);
    msgpack_unpacked_destroy(&u);
    demand(pl_body_encode(m, &once, &err) == PL_OK);
    demand(pl_body_decode(&back, m->h.type, once.data, once.n, &err) == PL_OK);
    demand(pl_body_encode(&back, &twice, &err) == PL_OK);
    demand(once.n == twice.n && memcmp(once.data, twice.data, once.n) == 0);
    demand(once.n <= n); /* the shortest form */
    pl_bytes_done(&once);
    pl_bytes_done(&twice);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static pl_msg m;
    pl_header h;
    pl_error err = {0};

    if (size < 2)
        return 0;
    const size_t n_head = size < PL_HEADER_BYTES ? size : PL_HEADER_BYTES;
    const pl_status st = pl_header_decode(&h, data, n_head, data + n_head, size - n_head, &err);
    demand(st == PL_OK || err.msg[0] != 0);
    err = (pl_error){0};
    if (pl_body_decode(&m, (uint16_t)(data[0] | data[1] << 8), data + 2, size - 2, &err) == PL_OK)
        check_message(&m, data + 2, size - 2);
    else
        demand(err.msg[0] != 0);
    return 0;
}
