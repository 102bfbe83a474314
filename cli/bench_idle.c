/* cli/bench_idle.c - paceline bench idle: what workers wait for at the end of a step, with and
 * without putting the last samples together on one worker.
 *
 * Lengths are those of recorded responses; the time of a pass by its number of samples is measured
 * here, on one thread, as a worker of one core has it.  With these two a step is simulated as the
 * coordinator runs it: the prompts with the longest responses first, siblings together, each to the
 * worker with the least.  As soon as at most `below` samples run in all and none is pending, all go
 * to the worker that has the most, which must first prefill what they have so far.
 *
 * With drafting a sample is several rows of a pass, as many as give the most tokens a second by the
 * acceptance below, and some samples go faster than others.
 *
 * What the simulation leaves out: the drafter's own passes, the memory that workers of one machine
 * share, and the messages. */
#include "cli/bench.h"
#include "cli/drafter.h"
#include "core/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    CONTEXT = 256, /* positions that a timed sequence holds at most: about the mean of a step */
    N_BATCHES = 6,
    STEP_SAMPLES = 64,
    WORKERS_MAX = 8
};
static const int batches[N_BATCHES] = {1, 2, 4, 8, 16, 32};
static const int worker_counts[] = {2, 4, 8};
static const int thresholds[] = {0, 2, 4, 8, 16};
enum { N_THRESHOLDS = sizeof thresholds / sizeof *thresholds };

/* Assumed, not measured here: tokens that a pass emits by a sample's rows.  At two and at 17 rows
 * what DRAFTING 10 measured of a drafter that saw 155 k tokens, estimates between them. */
static const struct {
    int rows;
    double tokens;
} acceptance[] = {{1, 1.0}, {2, 1.36}, {4, 1.6}, {8, 1.9}, {17, 2.2}};
/* Assumed too: a sample takes so much of the mean time, by chance, evenly between the two. */
static const double least_time = 0.7, most_time = 1.3;

/* ---- times ---- */

typedef struct times {
    double pass[N_BATCHES];         /* seconds of a pass by batches[] */
    double rising[N_BATCHES];       /* the same, none below the one before */
    double prefill;                 /* seconds of one row of a prompt */
    double token[STEP_SAMPLES + 1]; /* seconds from token to token by the samples that run */
    int is_drafting;
} times;

/* Give every sequence its context; the median tells what a row costs. */
static pl_status time_prefill(bench_bed *e, times *t, pl_error *err)
{
    double v[BENCH_SEQS_MAX];
    pl_status st = PL_OK;

    for (int i = 0; st == PL_OK && i < e->n_seqs; i++) {
        const double t0 = bench_now();
        st = bench_bed_fill(e, i, err);
        v[i] = bench_now() - t0;
        if (st == PL_OK)
            st = pl_kv_reserve(e->pool, &e->seqs[i], 1, err);
    }
    if (st == PL_OK)
        t->prefill = bench_median(v, e->n_seqs) / e->context;
    return st;
}

static pl_status measure(bench_bed *e, bench *b, times *t, pl_error *err)
{
    double v[N_BATCHES][BENCH_ROUNDS_MAX];
    const int rounds = bench_rounds(b, 9);

    pl_status st = time_prefill(e, t, err);
    for (int r = 0; st == PL_OK && r < rounds; r++)
        for (int i = 0; st == PL_OK && i < N_BATCHES; i++)
            st = bench_bed_decode(e, batches[i], &v[i][r], err);
    for (int i = 0; st == PL_OK && i < N_BATCHES; i++) {
        bench_figure f = {.unit = "ms", .ratio_to = "one sample"};
        t->pass[i] = bench_median(v[i], rounds);
        f.value = t->pass[i] * 1e3;
        f.ratio = t->pass[i] / t->pass[0];
        snprintf(f.name, sizeof f.name, "batch=%d,context=%d,threads=1", batches[i], e->context);
        st = bench_report(b, &f, err);
    }
    if (st == PL_OK)
        fprintf(b->notes, "    prefill: %.0f tokens/s\n", 1 / t->prefill);
    return st;
}

/* Between what was measured the time is a line, and above it the last one goes on.  More samples
 * never take less: noise may say so, and the line above would end below zero. */
static double pass_seconds(const times *t, int n)
{
    int i = 0;

    while (i < N_BATCHES - 2 && batches[i + 1] < n)
        i++;
    const double part = (double)(n - batches[i]) / (batches[i + 1] - batches[i]);
    return t->rising[i] + part * (t->rising[i + 1] - t->rising[i]);
}

/* Derive from what was measured how fast n samples go. */
static void set_pace(times *t, int is_drafting)
{
    t->is_drafting = is_drafting;
    for (int i = 0; i < N_BATCHES; i++)
        t->rising[i] = i > 0 ? fmax(t->pass[i], t->rising[i - 1]) : t->pass[0];
    for (int n = 1; n <= STEP_SAMPLES; n++) {
        t->token[n] = pass_seconds(t, n);
        for (size_t i = 1; is_drafting && i < sizeof acceptance / sizeof *acceptance; i++)
            t->token[n] =
                fmin(t->token[n], pass_seconds(t, n * acceptance[i].rows) / acceptance[i].tokens);
    }
}

/* ---- one step ---- */

typedef struct member {         /* a worker */
    double left[STEP_SAMPLES];  /* tokens that its samples have to go */
    double known[STEP_SAMPLES]; /* positions that they have: prompt and response */
    int n;
    double busy_until; /* with prefilling what it was handed */
    double idle;       /* seconds since it drained */
} member;

typedef struct outcome {
    double seconds, idle; /* of the step; of workers, added up */
    double longest;       /* idle seconds of one worker, at most: what a session of training has */
    int n_moved;
} outcome;

static void prefill(member *m, const times *t, double now, double rows)
{
    m->busy_until = (m->busy_until > now ? m->busy_until : now) + rows * t->prefill;
}

static double slowness(const times *t, uint32_t uid)
{
    const double u = pl_noise_word(1, uid, 0, PL_NOISE_SHUFFLE, 0) * 0x1p-32;
    return t->is_drafting ? least_time + u * (most_time - least_time) : 1;
}

/* Siblings stand together, longest first.  Everybody may run all that is his share. */
static void share_out(
    member *m, int n_workers, const times *t, const drafter_sample *const *samples)
{
    const int share = STEP_SAMPLES / n_workers;
    int at = 0;

    for (int i = 0; i < STEP_SAMPLES; i++) {
        const drafter_sample *s = samples[i];
        const int is_sibling =
            i > 0 && s->n_prompt == samples[i - 1]->n_prompt &&
            memcmp(s->tokens, samples[i - 1]->tokens, (size_t)s->n_prompt * sizeof *s->tokens) == 0;
        if (!is_sibling || m[at].n >= share) {
            for (int k = 0; k < n_workers; k++)
                if (m[k].n < m[at].n)
                    at = k;
            prefill(&m[at], t, 0, s->n_prompt);
        }
        m[at].left[m[at].n] = (s->n - s->n_prompt) * slowness(t, s->uid);
        m[at].known[m[at].n++] = s->n_prompt;
    }
}

static void consolidate(member *m, int n_workers, const times *t, double now, outcome *out)
{
    int most = 0;

    for (int k = 1; k < n_workers; k++)
        if (m[k].n > m[most].n)
            most = k;
    for (int k = 0; k < n_workers; k++)
        for (; k != most && m[k].n > 0; m[k].n--) {
            member *to = &m[most];
            to->left[to->n] = m[k].left[m[k].n - 1];
            to->known[to->n] = m[k].known[m[k].n - 1];
            prefill(to, t, now, to->known[to->n]);
            to->n++;
            out->n_moved++;
        }
}

/* Seconds until the first sample of m is done. */
static double until_done(const member *m, const times *t, double now)
{
    double least = INFINITY;

    for (int i = 0; i < m->n; i++)
        least = m->left[i] < least ? m->left[i] : least;
    return (m->busy_until > now ? m->busy_until - now : 0) + least * t->token[m->n];
}

/* Let dt seconds pass; samples that are done go.  Returns how many are left. */
static int advance(member *m, const times *t, double now, double dt)
{
    const double work = now + dt - (m->busy_until > now ? m->busy_until : now);
    const double tokens = m->n > 0 && work > 0 ? work / t->token[m->n] : 0;

    m->idle += m->n == 0 ? dt : 0;
    for (int i = 0; i < m->n;) {
        m->left[i] -= tokens;
        m->known[i] += tokens;
        if (m->left[i] > 1e-6) {
            i++;
            continue;
        }
        m->n--;
        m->left[i] = m->left[m->n];
        m->known[i] = m->known[m->n];
    }
    return m->n;
}

static void simulate(
    outcome *out, const times *t, const drafter_sample *const *samples, int n_workers, int below)
{
    member m[WORKERS_MAX];
    int n_left = STEP_SAMPLES;

    memset(m, 0, sizeof m);
    memset(out, 0, sizeof *out);
    share_out(m, n_workers, t, samples);
    while (n_left > 0) {
        double dt = INFINITY;
        if (n_left <= below)
            consolidate(m, n_workers, t, out->seconds, out);
        for (int k = 0; k < n_workers; k++)
            if (m[k].n > 0)
                dt = fmin(dt, until_done(&m[k], t, out->seconds));
        n_left = 0;
        for (int k = 0; k < n_workers; k++)
            n_left += advance(&m[k], t, out->seconds, dt);
        out->seconds += dt;
    }
    for (int k = 0; k < n_workers; k++) {
        out->idle += m[k].idle;
        out->longest = fmax(out->longest, m[k].idle);
    }
}

/* ---- all steps ---- */

typedef struct entry {
    const drafter_sample *s;
    double expected; /* mean length of the prompt's responses */
    int i_prompt;
} entry;

static int longest_first(const void *a, const void *b)
{
    const entry *x = a, *y = b;

    if (x->expected != y->expected)
        return x->expected > y->expected ? -1 : 1;
    if (x->i_prompt != y->i_prompt)
        return x->i_prompt - y->i_prompt;
    return x->s->uid < y->s->uid ? -1 : x->s->uid > y->s->uid;
}

static int by_uid(const void *a, const void *b)
{
    const drafter_sample *x = a, *y = b;
    return x->uid < y->uid ? -1 : x->uid > y->uid;
}

/* The samples of one step in the order in which they are leased. */
static void order_step(const drafter_sample *samples, const drafter_sample *out[STEP_SAMPLES])
{
    entry e[STEP_SAMPLES];

    for (int i = 0; i < STEP_SAMPLES; i++) {
        const drafter_sample *s = &samples[i];
        int j = 0, n = 0;
        double sum = 0;
        for (int k = STEP_SAMPLES - 1; k >= 0; k--) {
            const drafter_sample *o = &samples[k];
            if (o->n_prompt != s->n_prompt ||
                memcmp(o->tokens, s->tokens, (size_t)s->n_prompt * sizeof *s->tokens) != 0)
                continue;
            j = k;
            sum += o->n - o->n_prompt;
            n++;
        }
        e[i] = (entry){s, sum / n, j};
    }
    qsort(e, STEP_SAMPLES, sizeof *e, longest_first);
    for (int i = 0; i < STEP_SAMPLES; i++)
        out[i] = e[i].s;
}

typedef struct scenario {
    int n_steps, n_workers, below, is_drafting;
} scenario;

static pl_status report(
    bench *b, const scenario *s, const outcome *o, const outcome *without, pl_error *err)
{
    const double n = s->n_steps;
    bench_figure idle = {.value = o->idle / n,
        .unit = "s idle",
        .ratio = o->idle / (s->n_workers * o->seconds),
        .ratio_to = "the worker seconds"};
    bench_figure step = {.value = o->seconds / n,
        .unit = "s a step",
        .ratio = o->seconds / without->seconds,
        .ratio_to = "below=0"};

    snprintf(idle.name, sizeof idle.name, "workers=%d,below=%d,drafting=%d", s->n_workers, s->below,
        s->is_drafting);
    snprintf(step.name, sizeof step.name, "workers=%d,below=%d,drafting=%d,step=%d", s->n_workers,
        s->below, s->is_drafting, STEP_SAMPLES);
    pl_status st = bench_report(b, &idle, err);
    if (st == PL_OK)
        st = bench_report(b, &step, err);
    fprintf(b->notes, "    the longest of a worker: %.2f s; samples handed over: %.1f\n",
        o->longest / n, o->n_moved / n);
    return st;
}

static void add(outcome *sum, const outcome *o)
{
    sum->seconds += o->seconds;
    sum->idle += o->idle;
    sum->longest += o->longest;
    sum->n_moved += o->n_moved;
}

/* All steps with so many workers, by threshold. */
static pl_status run_steps(
    bench *b, const drafter_data *d, const times *t, int n_workers, pl_error *err)
{
    scenario s = {d->n / STEP_SAMPLES, n_workers, 0, t->is_drafting};
    outcome sum[N_THRESHOLDS];
    pl_status st = PL_OK;

    memset(sum, 0, sizeof sum);
    for (int i = 0; i < s.n_steps; i++) {
        const drafter_sample *step[STEP_SAMPLES];
        order_step(d->samples + (size_t)i * STEP_SAMPLES, step);
        for (int k = 0; k < N_THRESHOLDS; k++) {
            outcome o;
            simulate(&o, t, step, n_workers, thresholds[k]);
            add(&sum[k], &o);
        }
    }
    for (int k = 0; st == PL_OK && k < N_THRESHOLDS; k++) {
        s.below = thresholds[k];
        st = report(b, &s, &sum[k], &sum[0], err);
    }
    return st;
}

static pl_status run_all(bench *b, const drafter_data *d, times *t, pl_error *err)
{
    pl_status st = PL_OK;

    fprintf(b->notes, "%d steps of %d samples, mean response %.0f tokens\n", d->n / STEP_SAMPLES,
        STEP_SAMPLES, (double)d->n_held_tokens / d->n);
    for (int is_drafting = 0; is_drafting <= 1; is_drafting++) {
        set_pace(t, is_drafting);
        for (size_t i = 0; st == PL_OK && i < sizeof worker_counts / sizeof *worker_counts; i++)
            st = run_steps(b, d, t, worker_counts[i], err);
    }
    return st;
}

pl_status bench_idle(bench *b, pl_error *err)
{
    drafter_data d = {0};
    times t = {0};
    bench_bed e;

    if (!b->rollouts)
        return pl_fail(err, PL_E_USAGE,
            "bench idle wants --rollouts FILE: a run directory, its rollouts/, or a file of them");
    memset(&e, 0, sizeof e); /* what a failed open leaves is closed too */
    b->threads = 1;          /* a worker's */
    pl_status st = bench_bed_open(&e, b, BENCH_SEQS_MAX, CONTEXT, 0, err);
    if (st == PL_OK) {
        const pl_arch *a = pl_model_arch(e.m.model);
        st = drafter_data_read(&d, b->rollouts, a, a->n_ctx, DRAFTER_HOLD_ALL, err);
    }
    if (st == PL_OK && d.n < STEP_SAMPLES)
        st = pl_fail(err, PL_E_FORMAT, "'%s' holds %d samples, a step has %d", b->rollouts, d.n,
            STEP_SAMPLES);
    if (st == PL_OK) {
        qsort(d.samples, (size_t)d.n, sizeof *d.samples, by_uid);
        st = measure(&e, b, &t, err);
    }
    if (st == PL_OK)
        st = run_all(b, &d, &t, err);
    drafter_data_done(&d);
    bench_bed_close(&e);
    return st;
}
