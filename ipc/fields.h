/* ipc/fields.h - what the messages consist of: one table a type, from which they are written, read
 * and tested; included only inside ipc/ and by its tests. */
#ifndef PL_IPC_FIELDS_H
#define PL_IPC_FIELDS_H

#include <stdint.h>

typedef enum ipc_kind {
    IPC_U32,
    IPC_U64,
    IPC_F32,   /* the bits survive, those of a NaN too: sense is the receiver's to judge */
    IPC_STR,   /* const char *, at most max bytes before the NUL */
    IPC_PROSE, /* the same for people: made to fit, never refused by the sender */
    IPC_SPAN,  /* pl_span, at most max elements of size bytes; msgpack bin */
    IPC_HASH,  /* pl_hash; msgpack bin of 32 bytes */
} ipc_kind;

typedef struct ipc_field {
    const char *key;
    ipc_kind kind;
    uint32_t max;
    uint16_t size;      /* bytes of an element */
    uint16_t as_before; /* 1: as many elements as the field before */
    uint32_t offset;    /* in pl_msg */
} ipc_field;

typedef struct ipc_layout {
    const char *name;        /* "HELLO" */
    const ipc_field *fields; /* [n_fields] in the order of the struct */
    uint32_t n_fields;       /* at most 32 */
} ipc_layout;

/* NULL: no message has this type. */
const ipc_layout *ipc_layout_of(uint16_t type);

#endif
