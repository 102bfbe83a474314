/* Claims: pieces are aligned, disjoint and zeroed at first; a full arena says so; costs add up. */
#include "core/arena.h"

#include <criterion/criterion.h>
#include <stdint.h>
#include <string.h>

static void check_pieces(size_t size)
{
    pl_arena a;
    pl_error err;
    size_t planned = 0;
    unsigned char *last = NULL;
    size_t last_size = 0;

    cr_assert_eq(pl_arena_init(&a, size, "test", &err), PL_OK);
    cr_assert_geq(a.size, size);
    for (size_t n = 0; planned + pl_arena_cost(n) <= size; n = n * 2 + 1) {
        unsigned char *p = pl_arena_alloc(&a, n);
        cr_assert_not_null(p);
        cr_assert_eq((uintptr_t)p % 64, 0);
        cr_assert(!last || p >= last + last_size);
        for (size_t i = 0; i < n; i++)
            cr_assert_eq(p[i], 0);
        memset(p, 0xaa, n);
        planned += pl_arena_cost(n);
        last = p;
        last_size = n;
    }
    cr_assert_eq(a.used, planned);
    pl_arena_done(&a);
}

Test(arena, pieces_are_aligned_disjoint_and_zero)
{
    check_pieces(1000);
    check_pieces((5 << 20) + 123); /* with huge pages */
}

Test(arena, a_full_arena_returns_null_and_stays_usable)
{
    pl_arena a;
    cr_assert_eq(pl_arena_init(&a, 4096, "test", NULL), PL_OK);
    cr_assert_null(pl_arena_alloc(&a, 4097));
    cr_assert_null(pl_arena_alloc(&a, SIZE_MAX));
    cr_assert_null(pl_arena_alloc(&a, SIZE_MAX - 70));
    cr_assert_not_null(pl_arena_alloc(&a, 4096));
    cr_assert_null(pl_arena_alloc(&a, 1));
    cr_assert_null(pl_arena_alloc(&a, 0));
    pl_arena_done(&a);
}

Test(arena, a_plan_by_cost_fits_exactly)
{
    const size_t sizes[] = {1, 64, 65, 1000, 0, 3};
    size_t plan = 0;
    pl_arena a;

    for (size_t i = 0; i < 6; i++)
        plan += pl_arena_cost(sizes[i]);
    cr_assert_eq(plan, 64 + 64 + 128 + 1024 + 64 + 64);
    cr_assert_eq(pl_arena_init(&a, plan, "test", NULL), PL_OK);
    for (size_t i = 0; i < 6; i++)
        cr_assert_not_null(pl_arena_alloc(&a, sizes[i]));
    cr_assert_eq(a.used, plan);
    pl_arena_done(&a);
}

Test(arena, reset_gives_the_same_memory_again_and_keeps_the_peak)
{
    pl_arena a;
    cr_assert_eq(pl_arena_init(&a, 4096, "test", NULL), PL_OK);
    void *first = pl_arena_alloc(&a, 1000);
    pl_arena_reset(&a);
    cr_assert_eq(a.used, 0);
    cr_assert_eq(pl_arena_alloc(&a, 10), first);
    cr_assert_eq(a.peak, 1024);
    pl_arena_done(&a);
}

Test(arena, impossible_sizes_are_refused_by_name)
{
    pl_arena a;
    pl_error err;
    cr_assert_eq(pl_arena_init(&a, SIZE_MAX, "KV cache", &err), PL_E_NOMEM);
    cr_assert(strstr(err.msg, "KV cache"));
    cr_assert_eq(pl_arena_init(&a, (size_t)1 << 50, "KV cache", &err), PL_E_NOMEM);
    cr_assert(strstr(err.msg, "1125899906842624 bytes"), "%s", err.msg);
    pl_arena_done(&a);
}

Test(arena, done_accepts_a_zeroed_arena)
{
    pl_arena a = {0};
    pl_arena_done(&a);
    pl_arena_done(NULL);
}
