/* ipc/walker.h - msgpack bytes of a stranger, one value at a time; included only inside ipc/.
 *
 * The walker allocates nothing and believes no length: every declared length or count is compared
 * with the bytes that remain before it is handed out (an element costs at least one byte, a pair of
 * a map two).  It does not descend by itself: a caller that reads no container inside its one map
 * cannot be led deeper, whatever the bytes say. */
#ifndef PL_IPC_WALKER_H
#define PL_IPC_WALKER_H

#include "core/error.h"

#include <stddef.h>
#include <stdint.h>

typedef enum walker_kind {
    WALKER_UINT,  /* any width, also more than needed; a signed one that is not negative too */
    WALKER_F32,   /* value: its bits */
    WALKER_STR,   /* data [value] */
    WALKER_BIN,   /* data [value] */
    WALKER_ARRAY, /* value elements follow */
    WALKER_MAP,   /* value pairs follow */
    WALKER_OTHER, /* nil, a boolean, a negative integer, a double, an extension: no field has it,
                     and the walker cannot go on after it */
} walker_kind;

typedef struct walker_item {
    walker_kind kind;
    const char *what; /* "a string": for messages */
    uint64_t value;
    const unsigned char *data;
} walker_item;

typedef struct walker {
    const unsigned char *body; /* [n] borrowed */
    size_t n, pos;
} walker;

/* Read the value at pos and step over it; of a container, over its head only.
 * Errors: PL_E_FORMAT for a value that is cut, longer than what remains, or 0xc1. */
pl_status walker_next(walker *w, walker_item *item, pl_error *err);

/* Length of the UTF-8 character at s, n > 0 bytes; 0: none begins here, or it is NUL. */
size_t walker_char(const unsigned char *s, size_t n);
/* All n bytes are such characters. */
int walker_is_text(const unsigned char *s, size_t n);

#endif
