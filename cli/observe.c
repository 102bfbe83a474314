/* cli/observe.c - keeps the snapshot of a run and the rows of its timeline. */
#include "cli/observe.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    FLUSH_MS =
        30000,     /* a state that lasts is written to the timeline in pieces: a kill loses one */
    GAP_MS = 2000, /* a longer pause between two rounds is of the observer: counted for nobody */
};
#define TIMELINE_BYTES ((size_t)64 << 20)

static int64_t unix_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

pl_status observe_open(
    observer **out, const char *run_dir, const char *run, int64_t total_steps, pl_error *err)
{
    observer *o = calloc(1, sizeof *o);
    pl_error ignored;

    if (!o)
        return pl_fail(err, PL_E_NOMEM, "observer: no memory");
    const int64_t at = unix_ms();
    const int is_known = pl_snapshot_read(run_dir, &o->now, &ignored) == PL_OK &&
                         strncmp(o->now.run, run, sizeof o->now.run - 1) == 0;
    if (!is_known)
        o->now = (pl_snapshot){.started_ms = at, .eta_s = (double)NAN};
    snprintf(o->now.run, sizeof o->now.run, "%s", run);
    o->now.pid = (uint32_t)getpid();
    o->now.total_steps = total_steps;
    o->now.phase = PL_PHASE_STARTING;
    o->now.phase_ms = at;
    o->second = is_known ? o->now.updated_ms / 1000 : at / 1000;
    o->n_rows =
        o->now.n_workers < PL_SNAPSHOT_WORKERS ? o->now.n_workers : (uint32_t)PL_SNAPSHOT_WORKERS;
    for (uint32_t i = 0; i < o->n_rows; i++)
        o->tracks[i].since_us = at * 1000;
    o->at_ms = at;
    o->is_first = 1;
    const pl_status st = pl_snapshot_open(&o->file, run_dir, err);
    if (st != PL_OK) {
        free(o);
        return st;
    }
    /* A run without its timeline is a run all the same. */
    (void)pl_timeline_open(&o->timeline, run_dir, TIMELINE_BYTES, &ignored);
    *out = o;
    return PL_OK;
}

/* ---- workers ---- */

static const char *state_name(uint8_t state)
{
    static const char *const names[] = {
        "JOINING", "BUSY", "IDLE", "TRAINING", "STOPPING", "DRAINING", "LOST"};
    return state < sizeof names / sizeof names[0] ? names[state] : "?";
}

/* The state that lasted until now, as a piece of the worker's row. */
static void flush_state(observer *o, uint32_t i)
{
    const pl_snapshot_worker *w = &o->now.workers[i];
    const int64_t us = o->at_ms * 1000 - o->tracks[i].since_us;
    char detail[96];

    snprintf(detail, sizeof detail, "{\"policy_version\":%lld,\"drafter_version\":%u}",
        w->policy_version == UINT32_MAX ? -1LL : (long long)w->policy_version, w->drafter_version);
    if (o->timeline && us > 0 && w->state != PL_WORKER_LOST && w->state != PL_WORKER_DRAINING)
        pl_timeline_put(
            o->timeline, w->name, state_name(w->state), o->tracks[i].since_us, us, detail);
    o->tracks[i].since_us = o->at_ms * 1000;
}

/* Seconds have passed: the strips move on. */
static void shift_strips(observer *o)
{
    const int64_t second = o->at_ms / 1000;
    const int64_t by = second - o->second;
    const size_t n = by > PL_SNAPSHOT_STRIP ? PL_SNAPSHOT_STRIP : (size_t)(by > 0 ? by : 0);

    for (uint32_t i = 0; i < o->n_rows && n > 0; i++) {
        uint8_t *strip = o->now.workers[i].strip;
        memmove(strip, strip + n, PL_SNAPSHOT_STRIP - n);
        memset(strip + PL_SNAPSHOT_STRIP - n, 0, n);
    }
    o->second = second;
}

/* A second's cell shows its busiest state. */
static void mark_strip(uint8_t *cell, uint8_t state)
{
    static const uint8_t rank[] = {[PL_WORKER_JOINING] = 3,
        [PL_WORKER_BUSY] = 6,
        [PL_WORKER_IDLE] = 2,
        [PL_WORKER_TRAINING] = 5,
        [PL_WORKER_STOPPING] = 4,
        [PL_WORKER_DRAINING] = 1,
        [PL_WORKER_LOST] = 1};

    if (*cell == 0 || rank[state] > rank[*cell - 1])
        *cell = (uint8_t)(state + 1);
}

/* "worker-0.4711", that paceline run starts again when it was killed, goes on in the row of
 * "worker-0". */
static void row_name(char out[32], const char *name, uint32_t pid)
{
    char tail[16];
    const char *dot = strrchr(name, '.');

    snprintf(tail, sizeof tail, ".%u", pid);
    snprintf(out, 32, "%.31s", name);
    if (dot && strncmp(name, "worker-", 7) == 0 && strcmp(dot, tail) == 0 && dot - name < 32)
        out[dot - name] = '\0';
}

static int find_row(const observer *o, const char *name)
{
    for (uint32_t i = 0; i < o->n_rows; i++)
        if (strcmp(o->now.workers[i].name, name) == 0)
            return (int)i;
    return -1;
}

static int is_gone(uint8_t state)
{
    return state == PL_WORKER_LOST || state == PL_WORKER_DRAINING;
}

static void remove_row(observer *o, uint32_t i)
{
    const size_t after = o->n_rows - i - 1;
    memmove(&o->now.workers[i], &o->now.workers[i + 1], after * sizeof o->now.workers[0]);
    memmove(&o->tracks[i], &o->tracks[i + 1], after * sizeof o->tracks[0]);
    o->n_rows--;
    memset(&o->now.workers[o->n_rows], 0, sizeof o->now.workers[0]);
}

/* Rows are sorted: shorter names first, so that worker-10 follows worker-9.  -1: no room. */
static int add_row(observer *o, const char *name)
{
    uint32_t at = 0;

    for (uint32_t i = 0; o->n_rows == PL_SNAPSHOT_WORKERS && i < o->n_rows; i++)
        if (!o->tracks[i].is_seen && is_gone(o->now.workers[i].state))
            remove_row(o, i);
    if (o->n_rows == PL_SNAPSHOT_WORKERS)
        return -1;
    while (at < o->n_rows) {
        const char *other = o->now.workers[at].name;
        const size_t a = strlen(name), b = strlen(other);
        if (a < b || (a == b && strcmp(name, other) < 0))
            break;
        at++;
    }
    const size_t after = o->n_rows - at;
    memmove(&o->now.workers[at + 1], &o->now.workers[at], after * sizeof o->now.workers[0]);
    memmove(&o->tracks[at + 1], &o->tracks[at], after * sizeof o->tracks[0]);
    memset(&o->now.workers[at], 0, sizeof o->now.workers[0]);
    snprintf(o->now.workers[at].name, sizeof o->now.workers[at].name, "%.31s", name);
    o->tracks[at] = (observe_track){.since_us = o->at_ms * 1000};
    o->n_rows++;
    return (int)at;
}

void observe_worker(observer *o, const char *name, const pl_snapshot_worker *w)
{
    char row[32];
    const float s = (float)(o->at_ms - o->before_ms) / 1000.0f;

    row_name(row, name, w->pid);
    int i = find_row(o, row);
    if (i >= 0 && o->tracks[i].is_seen) { /* two of this name: who is there keeps the row */
        if (w->state == PL_WORKER_LOST)
            return;
        if (o->now.workers[i].state != PL_WORKER_LOST) {
            snprintf(row, sizeof row, "%.31s", name);
            i = find_row(o, row);
        }
    }
    if (i < 0)
        i = add_row(o, row);
    if (i < 0) {
        o->n_beyond++;
        return;
    }
    pl_snapshot_worker *to = &o->now.workers[i];
    const int64_t lasted_ms = o->at_ms - o->tracks[i].since_us / 1000;
    if (to->state != w->state || to->policy_version != w->policy_version || lasted_ms > FLUSH_MS)
        flush_state(o, (uint32_t)i);
    o->tracks[i].is_seen = 1;
    to->state = w->state;
    to->n_threads = w->n_threads;
    to->pid = w->pid;
    to->policy_version = w->policy_version;
    to->drafter_version = w->drafter_version;
    to->n_running = w->n_running;
    to->n_held = w->n_held;
    to->rate = w->rate;
    to->busy_s += w->state == PL_WORKER_BUSY ? s : 0;
    to->training_s += w->state == PL_WORKER_TRAINING ? s : 0;
    to->idle_s += w->state == PL_WORKER_IDLE ? s : 0;
    mark_strip(&to->strip[PL_SNAPSHOT_STRIP - 1], w->state);
}

/* ---- rounds ---- */

void observe_begin(observer *o)
{
    o->before_ms = o->at_ms;
    o->at_ms = unix_ms();
    if (o->is_first || o->at_ms < o->before_ms || o->at_ms - o->before_ms > GAP_MS)
        o->before_ms = o->at_ms;
    o->is_first = 0;
    o->n_beyond = 0;
    shift_strips(o);
    for (uint32_t i = 0; i < o->n_rows; i++)
        o->tracks[i].is_seen = 0;
}

void observe_phase(observer *o, pl_phase phase)
{
    if (o->now.phase != (uint32_t)phase)
        o->now.phase_ms = o->at_ms;
    o->now.phase = (uint32_t)phase;
}

static void forget_pace(observer *o, int n)
{
    o->n_pace -= n;
    memmove(o->pace_step, o->pace_step + n, (size_t)o->n_pace * sizeof o->pace_step[0]);
    memmove(o->pace_ms, o->pace_ms + n, (size_t)o->n_pace * sizeof o->pace_ms[0]);
}

/* The first time is not the end of a step, but when it was first looked at: it goes soon. */
static void note_pace(observer *o, int64_t step)
{
    if (o->n_pace > 0 && o->pace_step[o->n_pace - 1] == step)
        return;
    if (o->n_pace > 0 && step < o->pace_step[o->n_pace - 1])
        forget_pace(o, o->n_pace);
    if (o->n_pace == OBSERVE_PACE || (o->n_pace == 2 && !o->has_pace)) {
        o->has_pace = 1;
        forget_pace(o, 1);
    }
    o->pace_step[o->n_pace] = step;
    o->pace_ms[o->n_pace++] = o->at_ms;
}

/* Seconds to the last step, from the pace of the newest ones. */
static double guess_end(observer *o)
{
    const int64_t left = o->now.total_steps - o->now.step;

    note_pace(o, o->now.step);
    const int last = o->n_pace - 1;
    if (left <= 0 || last < 1)
        return left <= 0 ? 0 : (double)NAN;
    const double a_step = (double)(o->pace_ms[last] - o->pace_ms[0]) / 1000 /
                          (double)(o->pace_step[last] - o->pace_step[0]);
    const double of_this = (double)(o->at_ms - o->pace_ms[last]) / 1000;
    return a_step * (double)left - (of_this < a_step ? of_this : a_step);
}

void observe_end(observer *o)
{
    for (uint32_t i = 0; i < o->n_rows; i++) {
        pl_snapshot_worker *w = &o->now.workers[i];
        if (o->tracks[i].is_seen)
            continue;
        if (!is_gone(w->state))
            flush_state(o, i);
        if (w->state != PL_WORKER_LOST)
            w->state = PL_WORKER_DRAINING;
        w->n_running = w->n_held = 0;
        w->rate = 0;
    }
    o->now.n_workers = o->n_rows + o->n_beyond;
    o->now.updated_ms = o->at_ms;
    o->now.eta_s = guess_end(o);
    pl_snapshot_write(o->file, &o->now);
}

void observe_close(observer *o, int is_finished)
{
    if (!o)
        return;
    observe_begin(o);
    for (uint32_t i = 0; i < o->n_rows; i++)
        if (!is_gone(o->now.workers[i].state))
            flush_state(o, i);
    /* After the last step whoever started it may be quicker than the trainer's farewell. */
    is_finished |= o->now.total_steps > 0 && o->now.step >= o->now.total_steps;
    observe_phase(o, is_finished ? PL_PHASE_DONE : PL_PHASE_STOPPED);
    o->now.awaited[0] = '\0';
    o->now.n_running = 0;
    o->now.rate = 0;
    memset(o->now.running_lengths, 0, sizeof o->now.running_lengths);
    observe_end(o);
    pl_timeline_close(o->timeline);
    pl_snapshot_close(o->file);
    free(o);
}
