/* tests/ipc/messages.h - messages of every type, filled from the tables of the codec by a key. */
#ifndef PL_TESTS_MESSAGES_H
#define PL_TESTS_MESSAGES_H

#include "ipc/ipc.h"

enum { MESSAGES_TYPES = 256 }; /* types are looked for below this */

typedef enum messages_size {
    MESSAGES_LOW,    /* zeros, empty strings, no elements */
    MESSAGES_RANDOM, /* short ones */
    MESSAGES_HIGH,   /* every field at its limit; floats are NaNs with a payload */
} messages_size;

/* Fill m as a message of the type.  Returns what its strings and spans point into: free() it. */
unsigned char *messages_fill(pl_msg *m, uint16_t type, messages_size size, uint64_t key);

/* The key of the first field that differs in any bit; "type"; NULL: none. */
const char *messages_differ(const pl_msg *a, const pl_msg *b);

#endif
