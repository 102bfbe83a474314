/* core/threads.c - a fixed team that meets at gates: spin a little, then sleep in a futex.
 *
 * A gate is a counter that only grows.  To wait is to see it differ from the value read before; to
 * open is to add one and, only if somebody sleeps, to make the system call.  Neither a wake-up can
 * be lost: the sleeper announces itself before the kernel compares the word, the opener changes the
 * word before it looks for sleepers, and both orders are sequentially consistent.
 *
 * A team with more threads than CPUs never spins: the thread it waits for needs the CPU. */
#define _GNU_SOURCE
#include "core/threads.h"

#include "core/internal.h"

#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

enum {
    MAX_THREADS = 4096,
    /* PAUSE costs 10 to 60 ns by CPU: tens of microseconds, a few times a futex round trip. */
    SPIN_PAUSES = 1500,
    LINE = 64,
};

typedef struct gate {
    _Alignas(LINE) _Atomic uint32_t count;
    _Atomic uint32_t n_sleepers;
} gate;

typedef struct worker {
    pl_team *team;
    pthread_t thread;
    int i_thread;
    int cpu; /* -1: not pinned */
} worker;

struct pl_team {
    gate start;                           /* opened by run and by free */
    gate done;                            /* opened by the last worker that returns */
    gate barrier;                         /* opened by the last thread that arrives */
    _Alignas(LINE) _Atomic int n_running; /* workers still inside fn */
    _Alignas(LINE) _Atomic int n_arrived; /* threads at the barrier */
    _Alignas(LINE) pl_team_fn fn;         /* written by run before it opens start */
    void *ctx;
    int is_stopping;
    int n_threads;
    int n_spins;
    int n_created;   /* workers whose thread exists */
    worker *workers; /* [n_threads - 1], i_thread 1.. */
};

unsigned pl_fp_enter(void)
{
#ifdef __x86_64__
    const unsigned old = _mm_getcsr();
    _mm_setcsr(old | 0x8040u); /* bit 15 flush to zero, bit 6 denormals are zero */
    return old;
#else
    return 0;
#endif
}

static void pause_cpu(void)
{
#ifdef __x86_64__
    _mm_pause();
#endif
}

static uint32_t gate_read(gate *g)
{
    return atomic_load_explicit(&g->count, memory_order_acquire);
}

/* Wait until g no longer counts seen. */
static void gate_wait(gate *g, uint32_t seen, int n_spins)
{
    for (int i = 0; i < n_spins; i++) {
        if (gate_read(g) != seen)
            return;
        pause_cpu();
    }
    if (gate_read(g) != seen)
        return;

    atomic_fetch_add(&g->n_sleepers, 1);
    while (atomic_load(&g->count) == seen) /* EAGAIN, EINTR and false wake-ups come here again */
        (void)syscall(SYS_futex, &g->count, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    atomic_fetch_sub(&g->n_sleepers, 1);
}

static void gate_open(gate *g)
{
    atomic_fetch_add(&g->count, 1);
    if (atomic_load(&g->n_sleepers) > 0)
        (void)syscall(SYS_futex, &g->count, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

static void pin_self(int cpu)
{
    cpu_set_t sets[CORE_MAX_CPUS / CPU_SETSIZE];

    CPU_ZERO_S(sizeof sets, sets);
    CPU_SET_S((size_t)cpu, sizeof sets, sets);
    (void)sched_setaffinity(0, sizeof sets, sets); /* unpinned is slower, not wrong */
}

static void *worker_main(void *arg)
{
    const worker *w = arg;
    pl_team *team = w->team;
    uint32_t seen = 0; /* start counts 0 until the first run, which waits for this thread */
    char name[16];

    if (w->cpu >= 0)
        pin_self(w->cpu);
    if (snprintf(name, sizeof name, "pl-team-%d", w->i_thread) < (int)sizeof name)
        (void)pthread_setname_np(pthread_self(), name);

    for (;;) {
        gate_wait(&team->start, seen, team->n_spins);
        seen++;
        if (team->is_stopping)
            return NULL;
        (void)pl_fp_enter(); /* every time: fn may have changed it */
        team->fn(team->ctx, w->i_thread, team->n_threads);
        if (atomic_fetch_sub(&team->n_running, 1) == 1)
            gate_open(&team->done);
    }
}

/* Workers leave every signal to the threads of the caller. */
static pl_status start_workers(pl_team *team, pl_error *err)
{
    sigset_t all, old;
    int rc = 0;

    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    for (int i = 0; i < team->n_threads - 1; i++) {
        worker *w = &team->workers[i];
        rc = pthread_create(&w->thread, NULL, worker_main, w);
        if (rc != 0)
            break;
        team->n_created++;
    }
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc != 0)
        return pl_fail(err, PL_E_NOMEM,
            "thread team: cannot create thread %d of %d: %s; ask for fewer threads or raise "
            "ulimit -u",
            team->n_created + 1, team->n_threads, strerror(rc));
    return PL_OK;
}

static void place_workers(pl_team *team, int pin, const int *cpus, int n_cpus)
{
    for (int i = 0; i < team->n_threads - 1; i++) {
        worker *w = &team->workers[i];
        w->team = team;
        w->i_thread = i + 1;
        w->cpu = pin && team->n_threads <= n_cpus ? cpus[i + 1] : -1;
    }
}

pl_status pl_team_new(pl_team **out, int n_threads, int pin, pl_error *err)
{
    int cpus[MAX_THREADS];
    const int n_mask = core_affinity(cpus, MAX_THREADS);
    const int n_cpus = n_mask < MAX_THREADS ? n_mask : MAX_THREADS;

    if (n_threads == 0)
        n_threads = n_cpus;
    if (n_threads < 0 || n_threads > MAX_THREADS)
        return pl_fail(err, PL_E_INVAL, "thread team: %d threads asked for, 0 .. %d are possible",
            n_threads, MAX_THREADS);

    pl_team *team = aligned_alloc(LINE, sizeof *team);
    if (!team)
        return pl_fail(err, PL_E_NOMEM, "thread team: no memory for its state");
    memset(team, 0, sizeof *team);
    team->n_threads = n_threads;
    team->n_spins = n_threads <= n_cpus ? SPIN_PAUSES : 0;
    if (n_threads > 1) {
        team->workers = calloc((size_t)n_threads - 1, sizeof *team->workers);
        if (!team->workers) {
            pl_team_free(team);
            return pl_fail(err, PL_E_NOMEM, "thread team: no memory for %d threads", n_threads);
        }
        place_workers(team, pin, cpus, n_cpus);
    }

    const pl_status st = start_workers(team, err);
    if (st != PL_OK) {
        pl_team_free(team);
        return st;
    }
    (void)pl_fp_enter();
    *out = team;
    return PL_OK;
}

void pl_team_free(pl_team *team)
{
    if (!team)
        return;
    team->is_stopping = 1;
    gate_open(&team->start);
    for (int i = 0; i < team->n_created; i++)
        (void)pthread_join(team->workers[i].thread, NULL);
    free(team->workers);
    free(team);
}

int pl_team_size(const pl_team *team)
{
    return team->n_threads;
}

void pl_team_run(pl_team *team, pl_team_fn fn, void *ctx)
{
    assert(team && fn);
    (void)pl_fp_enter();
    if (team->n_threads == 1) {
        fn(ctx, 0, 1);
        return;
    }

    const uint32_t seen = gate_read(&team->done);
    team->fn = fn;
    team->ctx = ctx;
    atomic_store(&team->n_running, team->n_threads - 1);
    gate_open(&team->start);
    fn(ctx, 0, team->n_threads);
    gate_wait(&team->done, seen, team->n_spins);
}

void pl_team_barrier(pl_team *team)
{
    if (team->n_threads == 1)
        return;

    const uint32_t seen = gate_read(&team->barrier); /* before arriving: it cannot open yet */
    if (atomic_fetch_add(&team->n_arrived, 1) == team->n_threads - 1) {
        atomic_store(&team->n_arrived, 0); /* nobody arrives again before the gate opens */
        gate_open(&team->barrier);
        return;
    }
    gate_wait(&team->barrier, seen, team->n_spins);
}

void pl_share(int n, int grain, int i_thread, int n_threads, int *begin, int *end)
{
    assert(n >= 0 && grain > 0 && i_thread >= 0 && i_thread < n_threads);
    const int64_t n_grains = ((int64_t)n + grain - 1) / grain;
    const int64_t first = n_grains * i_thread / n_threads * grain;
    const int64_t last = n_grains * (i_thread + 1) / n_threads * grain;

    *begin = (int)(first < n ? first : n);
    *end = (int)(last < n ? last : n);
}
