/* core/arena.h - one block of memory per lifetime: sized by a plan, carved, reset, freed whole. */
#ifndef PL_CORE_ARENA_H
#define PL_CORE_ARENA_H

#include "core/error.h"

#include <stddef.h>

typedef struct pl_arena {
    unsigned char *base;
    size_t size; /* bytes mapped */
    size_t used; /* bytes handed out since the last reset, each piece rounded up to 64 */
    size_t peak; /* largest used so far */
} pl_arena;

/* Map n_bytes of zeroed anonymous memory (huge pages advised from 2 MiB on).  what names it in the
 * error message.  Errors: PL_E_NOMEM.  Pair: pl_arena_done (accepts a zeroed arena). */
pl_status pl_arena_init(pl_arena *a, size_t n_bytes, const char *what, pl_error *err);
void pl_arena_done(pl_arena *a);
/* Have the kernel back all of it now, so that what was planned is there later.  Advice: without
 * MADV_POPULATE_WRITE (Linux 5.14) memory is taken when it is first touched, as always. */
void pl_arena_prefault(pl_arena *a);

/* Hand out n_bytes, aligned to 64.  Returns NULL when the arena is full: the plan was wrong, which
 * the caller reports as PL_E_NOMEM.  The memory is NOT cleared again after a reset. */
void *pl_arena_alloc(pl_arena *a, size_t n_bytes);
void pl_arena_reset(pl_arena *a);

/* Bytes that pl_arena_alloc(a, n) takes: for plan functions. */
size_t pl_arena_cost(size_t n_bytes);

#endif
