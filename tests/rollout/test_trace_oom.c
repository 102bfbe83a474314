/* Claims: whichever allocation fails while a trace is opened, written, read or loaded, it is
 * PL_E_NOMEM with a message, nothing is left behind, and the trace is whole up to the step before.
 */
#include "tests/rollout/trace_bed.h"

TestSuite(trace_oom, .init = trace_enter, .fini = trace_leave, .timeout = 60);

static int n_calls; /* since arm */
static int fail_at; /* number of the call that fails, from 1; 0: none */

static int is_failing(void)
{
    return ++n_calls == fail_at;
}

static void arm(int at)
{
    n_calls = 0;
    fail_at = at;
}

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);

void *__wrap_malloc(size_t n)
{
    return is_failing() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return is_failing() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
    return is_failing() ? NULL : __real_realloc(p, n);
}

/* A sitting after step 1 that writes steps 2 and 3. */
static pl_status write_more(const made_step *two, const made_step *three, pl_error *err)
{
    const pl_trace_run r = make_run(1);
    const unsigned char uid[16] = {1};
    unsigned char head[PL_HASH_BYTES];
    pl_trace *t = NULL;

    pl_status st = pl_trace_open(&t, "run", uid, &r, NULL, err);
    if (st == PL_OK)
        st = pl_trace_put(t, &two->s, head, err);
    if (st == PL_OK)
        st = pl_trace_put(t, &three->s, head, err);
    pl_trace_close(t);
    return st;
}

Test(trace_oom, a_writer_without_memory_leaves_whole_steps)
{
    made_step *two = make_step(2, 4), *three = make_step(3, 16);
    pl_trace_report report;
    int is_through = 0;

    pl_trace *t = open_trace("run", 1, 0);
    put_made(t, 1, 4);
    pl_trace_close(t);
    for (int at = 1; !is_through && at < 200; at++) {
        pl_error err = {0};
        arm(at);
        const pl_status st = write_more(two, three, &err);
        is_through = n_calls < at;
        arm(0);
        cr_assert_eq(st, is_through ? PL_OK : PL_E_NOMEM, "call %d: %s", at, err.msg);
        cr_assert(st == PL_OK || err.msg[0]);
        cr_assert_eq(pl_trace_read("run", NULL, &report, &err), PL_OK, "call %d: %s", at, err.msg);
    }
    cr_assert(is_through);
    cr_assert_eq(report.step, 3);
    free(two);
    free(three);
}

Test(trace_oom, a_reader_without_memory_says_so_and_calls_nothing_damaged)
{
    pl_trace_report report;
    int is_through = 0;

    pl_trace *t = open_trace("run", 1, 0);
    put_made(t, 1, 4);
    put_made(t, 2, 16);
    pl_trace_close(t);
    for (int at = 1; !is_through && at < 200; at++) {
        pl_trace_step *s = NULL;
        const pl_trace_run *run = NULL;
        pl_error err = {0};
        arm(at);
        const pl_status st = pl_trace_load("run", 2, &s, &run, &report, &err);
        is_through = n_calls < at;
        arm(0);
        cr_assert_eq(st, is_through ? PL_OK : PL_E_NOMEM, "call %d: %s", at, err.msg);
        cr_assert_neq(report.state, PL_TRACE_DAMAGED);
        cr_assert(st == PL_OK ? s != NULL : err.msg[0] && !s);
        pl_trace_step_free(s);
    }
    cr_assert(is_through);
}
