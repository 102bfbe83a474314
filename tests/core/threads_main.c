/* The thread team, as a plain program that the thread sanitizer can watch.  Claims: every thread
 * runs every region once; a barrier orders what lies before it; FTZ and DAZ are set everywhere; a
 * team larger than the machine does not hang; shares cover all items once. */
#include "core/threads.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

enum { MAX_TEAM = 16, N_PHASES = 40 };

static void check_at(int ok, const char *what, int line)
{
    if (ok)
        return;
    fprintf(stderr, "threads_main.c:%d: %s\n", line, what);
    exit(1);
}
#define CHECK(x) check_at((x), #x, __LINE__)

typedef struct shared {
    pl_team *team;
    long counts[MAX_TEAM * 16]; /* plain: each thread its own, the caller reads after the run */
    int phase[MAX_TEAM * 16];
    int n_wrong[MAX_TEAM * 16];
    unsigned modes[MAX_TEAM];
} shared;

static void count(void *ctx, int i, int n)
{
    shared *s = ctx;
    s->counts[16 * i] += n;
}

/* After each barrier, every thread must see the phase of every other one. */
static void walk_phases(void *ctx, int i, int n)
{
    shared *s = ctx;
    for (int phase = 1; phase <= N_PHASES; phase++) {
        s->phase[16 * i] = phase;
        pl_team_barrier(s->team);
        for (int j = 0; j < n; j++)
            s->n_wrong[16 * i] += s->phase[16 * j] != phase;
        pl_team_barrier(s->team);
    }
}

static void read_mode(void *ctx, int i, int n)
{
    shared *s = ctx;
    (void)n;
#ifdef __x86_64__
    s->modes[i] = _mm_getcsr();
#else
    s->modes[i] = 0x8040u;
#endif
}

/* As some library might: new threads inherit the mode of the thread that creates them. */
static void clear_mode(void)
{
#ifdef __x86_64__
    _mm_setcsr(_mm_getcsr() & ~0x8040u);
#endif
}

static void check_team(int n_threads, int n_runs, int pin)
{
    pl_error err = {0};
    shared s = {0};

    clear_mode();
    CHECK(pl_team_new(&s.team, n_threads, pin, &err) == PL_OK);
    const int n = pl_team_size(s.team);
    CHECK(n_threads == 0 ? n >= 1 : n == n_threads);
    CHECK(n <= MAX_TEAM);
    for (int r = 0; r < n_runs; r++)
        pl_team_run(s.team, count, &s);
    for (int i = 0; i < n; i++)
        CHECK(s.counts[16 * i] == (long)n_runs * n);

    for (int r = 0; r < n_runs / 50 + 1; r++)
        pl_team_run(s.team, walk_phases, &s);
    for (int i = 0; i < n; i++)
        CHECK(s.n_wrong[16 * i] == 0);

    clear_mode();
    pl_team_run(s.team, read_mode, &s);
    for (int i = 0; i < n; i++)
        CHECK((s.modes[i] & 0x8040u) == 0x8040u);
    pl_team_free(s.team);
}

static void check_shares(void)
{
    static const int ns[] = {0, 1, 7, 64, 1000, INT32_MAX};
    static const int grains[] = {1, 16, 64, 1000};
    for (int k = 0; k < 6 * 4 * 9; k++) {
        const int n = ns[k % 6], grain = grains[k / 6 % 4], n_threads = 1 + k / 24;
        int next = 0;
        for (int i = 0; i < n_threads; i++) {
            int begin, end;
            pl_share(n, grain, i, n_threads, &begin, &end);
            CHECK(begin == next && end >= begin && end <= n);
            CHECK(begin % grain == 0 || begin == n);
            next = end;
        }
        CHECK(next == n);
    }
}

static void *own_team(void *arg)
{
    (void)arg;
    check_team(2, 300, 0);
    return NULL;
}

/* Two callers, each with its own team, at once. */
static void check_two_teams(void)
{
    pthread_t a, b;
    CHECK(pthread_create(&a, NULL, own_team, NULL) == 0);
    CHECK(pthread_create(&b, NULL, own_team, NULL) == 0);
    CHECK(pthread_join(a, NULL) == 0);
    CHECK(pthread_join(b, NULL) == 0);
}

static void check_arguments(void)
{
    pl_team *team = NULL;
    pl_error err = {0};
    CHECK(pl_team_new(&team, -1, 0, &err) == PL_E_INVAL);
    CHECK(strstr(err.msg, "-1 threads") != NULL);
    CHECK(pl_team_new(&team, 1 << 20, 0, &err) == PL_E_INVAL);
    CHECK(team == NULL);
    pl_team_free(NULL);
}

int main(void)
{
    check_shares();
    check_arguments();
    for (int pin = 0; pin < 2; pin++) {
        check_team(1, 1000, pin);
        check_team(2, 2000, pin);
        check_team(3, 500, pin);
        check_team(8, 200, pin); /* more than the CPUs of a small machine: sleeps, never spins */
    }
    for (int i = 0; i < 30; i++) /* born and gone without and with work */
        check_team(2 + i % 3, i % 2, 1);
    check_two_teams();
    puts("threads: ok");
    return 0;
}
