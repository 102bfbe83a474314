/* core/arena.c - anonymous mappings handed out front to back.  Under AddressSanitizer whatever is
 * not handed out is poisoned, so a pointer that outlives a reset is caught at its first use. */
#define _GNU_SOURCE
#include "core/arena.h"

#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#define POISON(p, n)   __asan_poison_memory_region((p), (n))
#define UNPOISON(p, n) __asan_unpoison_memory_region((p), (n))
#else
#define POISON(p, n)   ((void)(p), (void)(n))
#define UNPOISON(p, n) ((void)(p), (void)(n))
#endif

#define ALIGNMENT ((size_t)64)      /* a cache line, and a row of an AMX tile */
#define PAGE      ((size_t)4096)    /* smallest x86-64 page */
#define HUGE_PAGE ((size_t)2 << 20) /* transparent huge page of x86-64 */

/* Map size bytes at a multiple of a huge page: map one huge page more, give the ends back. */
static unsigned char *map_huge(size_t size)
{
    if (size > SIZE_MAX - HUGE_PAGE) {
        errno = ENOMEM;
        return NULL;
    }
    unsigned char *p =
        mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;

    const size_t head = (HUGE_PAGE - (uintptr_t)p % HUGE_PAGE) % HUGE_PAGE;
    const size_t tail = HUGE_PAGE - head;
    /* A failed trim only wastes address space, a failed advice only speed. */
    if (head > 0)
        (void)munmap(p, head);
    (void)munmap(p + head + size, tail);
    (void)madvise(p + head, size, MADV_HUGEPAGE);
    return p + head;
}

static unsigned char *map_small(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

pl_status pl_arena_init(pl_arena *a, size_t n_bytes, const char *what, pl_error *err)
{
    assert(a && what);
    memset(a, 0, sizeof *a);
    if (n_bytes > SIZE_MAX / 2)
        return pl_fail(err, PL_E_NOMEM, "%s: %zu bytes cannot be addressed; make the plan smaller",
            what, n_bytes);

    const size_t size = n_bytes == 0 ? PAGE : (n_bytes + PAGE - 1) / PAGE * PAGE;
    unsigned char *base = size >= HUGE_PAGE ? map_huge(size) : map_small(size);
    if (!base)
        return pl_fail(err, PL_E_NOMEM,
            "%s: cannot map %zu bytes (%.1f MiB): %s; free memory or make the plan smaller", what,
            size, (double)size / (1 << 20), strerror(errno));

    a->base = base;
    a->size = size;
    POISON(a->base, a->size);
    return PL_OK;
}

void pl_arena_done(pl_arena *a)
{
    if (!a)
        return;
    if (a->base) {
        UNPOISON(a->base, a->size);
        (void)munmap(a->base, a->size);
    }
    memset(a, 0, sizeof *a);
}

size_t pl_arena_cost(size_t n_bytes)
{
    if (n_bytes == 0)
        return ALIGNMENT; /* distinct pointers for empty pieces too */
    if (n_bytes > SIZE_MAX - (ALIGNMENT - 1))
        return SIZE_MAX;
    return (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

void pl_arena_prefault(pl_arena *a)
{
#ifdef MADV_POPULATE_WRITE
    if (a->base)
        (void)madvise(a->base, a->size, MADV_POPULATE_WRITE);
#else
    (void)a;
#endif
}

void *pl_arena_alloc(pl_arena *a, size_t n_bytes)
{
    const size_t cost = pl_arena_cost(n_bytes);
    if (cost > a->size - a->used)
        return NULL;

    unsigned char *p = a->base + a->used;
    a->used += cost;
    if (a->used > a->peak)
        a->peak = a->used;
    UNPOISON(p, n_bytes);
    return p;
}

void pl_arena_reset(pl_arena *a)
{
    if (a->base)
        POISON(a->base, a->size);
    a->used = 0;
}
