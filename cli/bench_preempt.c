/* cli/bench_preempt.c - paceline bench preempt: from the order to stop to the device given back, in
 * the middle of a drafter's training.
 *
 * Another thread raises a flag at a random moment of a step (or of what is done instead: a gate, a
 * version being published), and notes when; the delay is that until pl_spot_work has returned. */
#include "cli/bench_spot.h"
#include "core/rng.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ORDERS = 300, ORDERS_QUICK = 10, TRAIN = 28, HELD = 12 };

/* Longer than a step, so that its last part is hit as often as its first. */
#define REACH 1.1

typedef struct order {
    pthread_t thread;
    double after; /* seconds */
    double at;    /* when it was given */
    atomic_int is_given;
} order;

static void *give(void *arg)
{
    order *o = arg;
    const struct timespec t = {(time_t)o->after, (long)(1e9 * (o->after - floor(o->after)))};

    (void)nanosleep(&t, NULL);
    o->at = bench_now();
    atomic_store(&o->is_given, 1);
    return NULL;
}

static int is_ordered(void *ctx)
{
    return atomic_load(&((order *)ctx)->is_given);
}

/* Work until an order given after so many seconds is obeyed. */
static pl_status preempt_once(bench_spot *x, double after, double *delay, pl_error *err)
{
    order o = {.after = after};
    pl_spot_published p;
    pl_status st = bench_spot_begin(x, err);

    if (st != PL_OK)
        return st;
    if (pthread_create(&o.thread, NULL, give, &o) != 0)
        return pl_fail(err, PL_E_NOMEM, "no thread");
    do
        st = pl_spot_work(x->s, is_ordered, &o, &p, err);
    while (st == PL_OK || st == PL_E_TIMEOUT);
    const double back = bench_now();
    (void)pthread_join(o.thread, NULL);
    pl_spot_end(x->s);
    *delay = back - o.at;
    return st == PL_E_STOPPED ? PL_OK : st;
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static pl_status report(bench *b, double *delay, int n, double step_s, pl_error *err)
{
    static const int percent[] = {50, 90, 99, 100};
    pl_status st = PL_OK;

    qsort(delay, (size_t)n, sizeof *delay, by_size);
    fprintf(b->notes, "%d orders at random moments; a step takes %.0f ms\n", n, 1e3 * step_s);
    for (int i = 0; i < 4 && st == PL_OK; i++) {
        const int at = (percent[i] * n + 99) / 100 - 1;
        bench_figure f = {.value = 1e3 * delay[at > 0 ? at : 0],
            .unit = "ms",
            .ratio = delay[at > 0 ? at : 0] / 0.05,
            .ratio_to = "50 ms"};
        snprintf(f.name, sizeof f.name, "percentile=%d,orders=%d", percent[i], n);
        st = bench_report(b, &f, err);
    }
    return st;
}

static pl_status measure(bench *b, bench_spot *x, pl_error *err)
{
    const int n = b->rounds > 0 ? (int)b->rounds : b->quick ? ORDERS_QUICK : ORDERS;
    double *delay = malloc((size_t)n * sizeof *delay), step_s = 0;
    pl_spot_published p;
    pl_status st = delay ? PL_OK : pl_fail(err, PL_E_NOMEM, "no memory for %d orders", n);

    for (int i = 0; i < 3 && st == PL_OK; i++) {
        const double t0 = bench_now();
        st = pl_spot_work(x->s, NULL, NULL, &p, err);
        step_s = bench_now() - t0;
    }
    for (int i = 0; i < n && st == PL_OK; i++) {
        const double u = pl_noise_uniform(7, 0, (uint32_t)i, 0, 0);
        st = preempt_once(x, REACH * step_s * u, &delay[i], err);
    }
    if (st == PL_OK)
        st = report(b, delay, n, step_s, err);
    free(delay);
    return st;
}

pl_status bench_preempt(bench *b, pl_error *err)
{
    bench_spot x = {0};
    cli_model m = {0};

    if (b->threads == 0)
        b->threads = 1; /* a worker of one core */
    pl_status st = bench_open(b, &m, 0, err);
    if (st == PL_OK)
        st = bench_spot_open(&x, m.model, TRAIN, HELD, err);
    if (st == PL_OK)
        st = measure(b, &x, err);
    bench_spot_close(&x);
    cli_model_close(&m);
    return st;
}
