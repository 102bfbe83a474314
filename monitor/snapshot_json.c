/* monitor/snapshot_json.c - the snapshot as JSON, for scripts, the page and other machines, and
 * back from what another machine says it is. */
#include "core/json.h"
#include "monitor/lines.h"
#include "monitor/monitor.h"
#include "monitor/text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A second of a strip is one letter: of the state, or '.' when the worker was not there. */
static const char letters[] = ".JBITSDL";

static const char *const states[] = {
    "JOINING", "BUSY", "IDLE", "TRAINING", "STOPPING", "DRAINING", "LOST"};
enum { N_STATES = PL_WORKER_LOST + 1 };

const char *pl_worker_state_name(unsigned state)
{
    return state < N_STATES ? states[state] : "?";
}

/* ---- out ---- */

static void put_key(pl_json *j, const char *key)
{
    const char last = j->n > 0 ? j->data[j->n - 1] : '{';

    pl_json_text(j, last == '{' || last == '[' ? "\"" : ",\"");
    pl_json_text(j, key);
    pl_json_text(j, "\":");
}

static void put_int(pl_json *j, const char *key, int64_t v)
{
    put_key(j, key);
    pl_json_int(j, v);
}

static void put_number(pl_json *j, const char *key, double v)
{
    put_key(j, key);
    pl_json_double(j, v);
}

static void put_text(pl_json *j, const char *key, const char *v)
{
    put_key(j, key);
    pl_json_string(j, v, strlen(v));
}

static void put_version(pl_json *j, const char *key, uint32_t v)
{
    put_key(j, key);
    if (v == UINT32_MAX)
        pl_json_text(j, "null");
    else
        pl_json_int(j, v);
}

static void put_lengths(pl_json *j, const char *key, const uint32_t *v)
{
    put_key(j, key);
    pl_json_text(j, "[");
    for (int i = 0; i < PL_SNAPSHOT_LENGTHS; i++) {
        if (i > 0)
            pl_json_text(j, ",");
        pl_json_int(j, v ? (int64_t)v[i] : pl_snapshot_length(i));
    }
    pl_json_text(j, "]");
}

static void put_worker(pl_json *j, const pl_snapshot_worker *w)
{
    char strip[PL_SNAPSHOT_STRIP + 1];

    for (int i = 0; i < PL_SNAPSHOT_STRIP; i++)
        strip[i] = letters[w->strip[i] <= N_STATES ? w->strip[i] : 0];
    strip[PL_SNAPSHOT_STRIP] = '\0';
    pl_json_text(j, "{");
    put_text(j, "name", w->name);
    put_text(j, "state", pl_worker_state_name(w->state));
    put_text(j, "strip", strip);
    put_int(j, "n_threads", w->n_threads);
    put_int(j, "pid", w->pid);
    put_version(j, "policy_version", w->policy_version);
    put_int(j, "drafter_version", w->drafter_version);
    put_int(j, "n_running", w->n_running);
    put_int(j, "n_held", w->n_held);
    put_number(j, "rate", (double)w->rate);
    put_number(j, "busy_s", (double)w->busy_s);
    put_number(j, "training_s", (double)w->training_s);
    put_number(j, "idle_s", (double)w->idle_s);
    pl_json_text(j, "}");
}

static void put_batch(pl_json *j, const pl_snapshot *s)
{
    put_int(j, "batch", (int64_t)(s->batch & INT64_MAX));
    put_int(j, "n_samples", s->n_samples);
    put_int(j, "n_done", s->n_done);
    put_int(j, "n_running", s->n_running);
    put_int(j, "n_queued", s->n_queued);
    put_int(j, "n_tokens", (int64_t)(s->n_tokens & INT64_MAX));
    put_number(j, "rate", s->rate);
    put_number(j, "eta_s", s->eta_s);
    put_version(j, "policy_version", s->policy_version);
    put_int(j, "drafter_version", s->drafter_version);
    put_int(j, "session", (int64_t)(s->session & INT64_MAX));
    put_lengths(j, "length_from", NULL);
    put_lengths(j, "lengths", s->lengths);
    put_lengths(j, "running_lengths", s->running_lengths);
}

void pl_snapshot_json(const pl_snapshot *s, pl_json *j)
{
    const uint32_t n =
        s->n_workers < PL_SNAPSHOT_WORKERS ? s->n_workers : (uint32_t)PL_SNAPSHOT_WORKERS;

    pl_json_text(j, "{");
    put_text(j, "run", s->run);
    put_int(j, "pid", s->pid);
    put_text(j, "phase", pl_phase_name((pl_phase)s->phase));
    put_int(j, "started_ms", s->started_ms);
    put_int(j, "updated_ms", s->updated_ms);
    put_int(j, "phase_ms", s->phase_ms);
    put_int(j, "step", s->step);
    put_int(j, "total_steps", s->total_steps);
    put_batch(j, s);
    put_int(j, "n_lost", s->n_lost);
    put_int(j, "n_quarantined", s->n_quarantined);
    put_int(j, "n_leased_again", (int64_t)(s->n_leased_again & INT64_MAX));
    put_int(j, "n_recomputed", (int64_t)(s->n_recomputed & INT64_MAX));
    put_text(j, "awaited", s->awaited);
    put_int(j, "n_workers", s->n_workers);
    put_key(j, "workers");
    pl_json_text(j, "[");
    for (uint32_t i = 0; i < n; i++) {
        if (i > 0)
            pl_json_text(j, ",");
        put_worker(j, &s->workers[i]);
    }
    pl_json_text(j, "]}");
}

/* ---- in: what another machine sends is a claim ---- */

static uint32_t count_of(const scan_value *v)
{
    return (uint32_t)scan_int(v, 0, UINT32_MAX, 0);
}

static uint64_t big_of(const scan_value *v)
{
    return (uint64_t)scan_int(v, 0, INT64_MAX, 0);
}

static int64_t time_of(const scan_value *v)
{
    return scan_int(v, 0, 100000000000000, 0);
}

static uint32_t version_of(const scan_value *v)
{
    return v->kind == 'n' ? UINT32_MAX : count_of(v);
}

static double number_of(const scan_value *v)
{
    const double x = scan_number(v);
    return x >= 0 && x < 1e15 ? x : 0;
}

/* A string, cut to room. */
static void text_of(const scan_value *v, char *out, size_t room)
{
    char *text = v->kind == '"' && v->n > 0 && v->n < 4096 ? malloc(v->n) : NULL;

    out[0] = '\0';
    if (text)
        text_clean(out, room, text, scan_string(v, text));
    free(text);
}

/* Which of n names it is; missing: none of them. */
static uint32_t name_of(
    const scan_value *v, const char *(*name)(unsigned), unsigned n, uint32_t missing)
{
    for (unsigned i = 0; v->kind == '"' && i < n; i++)
        if (strlen(name(i)) == v->n && memcmp(name(i), v->at, v->n) == 0)
            return i;
    return missing;
}

static const char *phase_name(unsigned i)
{
    return pl_phase_name((pl_phase)i);
}

static void take_lengths(const scan_value *v, uint32_t *out)
{
    scan s;
    scan_value e;

    if (v->kind != '[')
        return;
    scan_begin_array(&s, v);
    for (int i = 0; i < PL_SNAPSHOT_LENGTHS && scan_next_element(&s, &e) == 1; i++)
        out[i] = count_of(&e);
}

static void take_strip(const scan_value *v, uint8_t *out)
{
    for (size_t i = 0; v->kind == '"' && i < v->n && i < PL_SNAPSHOT_STRIP; i++) {
        const char *at = v->at[i] ? strchr(letters, v->at[i]) : NULL;
        out[i] = at ? (uint8_t)(at - letters) : 0;
    }
}

static void take_worker(const scan_value *object, pl_snapshot_worker *w)
{
    scan s;
    scan_value v;

    scan_begin(&s, object->at, object->n);
    while (scan_next(&s, &v) == 1) {
        if (scan_is_key(&v, "name"))
            text_of(&v, w->name, sizeof w->name);
        else if (scan_is_key(&v, "state"))
            w->state = (uint8_t)name_of(&v, pl_worker_state_name, N_STATES, PL_WORKER_LOST);
        else if (scan_is_key(&v, "strip"))
            take_strip(&v, w->strip);
        else if (scan_is_key(&v, "n_threads"))
            w->n_threads = count_of(&v);
        else if (scan_is_key(&v, "pid"))
            w->pid = count_of(&v);
        else if (scan_is_key(&v, "policy_version"))
            w->policy_version = version_of(&v);
        else if (scan_is_key(&v, "drafter_version"))
            w->drafter_version = count_of(&v);
        else if (scan_is_key(&v, "n_running"))
            w->n_running = count_of(&v);
        else if (scan_is_key(&v, "n_held"))
            w->n_held = count_of(&v);
        else if (scan_is_key(&v, "rate"))
            w->rate = (float)number_of(&v);
        else if (scan_is_key(&v, "busy_s"))
            w->busy_s = (float)number_of(&v);
        else if (scan_is_key(&v, "training_s"))
            w->training_s = (float)number_of(&v);
        else if (scan_is_key(&v, "idle_s"))
            w->idle_s = (float)number_of(&v);
    }
}

static void take_workers(const scan_value *v, pl_snapshot *out)
{
    scan s;
    scan_value e;

    if (v->kind != '[')
        return;
    scan_begin_array(&s, v);
    for (int i = 0; i < PL_SNAPSHOT_WORKERS && scan_next_element(&s, &e) == 1; i++)
        if (e.kind == '{')
            take_worker(&e, &out->workers[i]);
}

/* Of the batch, 1 when it was one of these. */
static int take_batch(const scan_value *v, pl_snapshot *s)
{
    if (scan_is_key(v, "batch"))
        s->batch = big_of(v);
    else if (scan_is_key(v, "n_samples"))
        s->n_samples = count_of(v);
    else if (scan_is_key(v, "n_done"))
        s->n_done = count_of(v);
    else if (scan_is_key(v, "n_running"))
        s->n_running = count_of(v);
    else if (scan_is_key(v, "n_queued"))
        s->n_queued = count_of(v);
    else if (scan_is_key(v, "n_tokens"))
        s->n_tokens = big_of(v);
    else if (scan_is_key(v, "rate"))
        s->rate = number_of(v);
    else if (scan_is_key(v, "eta_s"))
        s->eta_s = v->kind == '0' && number_of(v) < 1e10 ? number_of(v) : (double)NAN;
    else if (scan_is_key(v, "policy_version"))
        s->policy_version = version_of(v);
    else if (scan_is_key(v, "drafter_version"))
        s->drafter_version = count_of(v);
    else if (scan_is_key(v, "session"))
        s->session = big_of(v);
    else if (scan_is_key(v, "lengths"))
        take_lengths(v, s->lengths);
    else if (scan_is_key(v, "running_lengths"))
        take_lengths(v, s->running_lengths);
    else
        return 0;
    return 1;
}

static void take(const scan_value *v, pl_snapshot *s)
{
    if (scan_is_key(v, "run"))
        text_of(v, s->run, sizeof s->run);
    else if (scan_is_key(v, "pid"))
        s->pid = count_of(v);
    else if (scan_is_key(v, "phase"))
        s->phase = name_of(v, phase_name, PL_PHASES, PL_PHASE_STARTING);
    else if (scan_is_key(v, "started_ms"))
        s->started_ms = time_of(v);
    else if (scan_is_key(v, "updated_ms"))
        s->updated_ms = time_of(v);
    else if (scan_is_key(v, "phase_ms"))
        s->phase_ms = time_of(v);
    else if (scan_is_key(v, "step"))
        s->step = scan_int(v, 0, INT32_MAX, 0);
    else if (scan_is_key(v, "total_steps"))
        s->total_steps = scan_int(v, 0, INT32_MAX, 0);
    else if (scan_is_key(v, "n_lost"))
        s->n_lost = count_of(v);
    else if (scan_is_key(v, "n_quarantined"))
        s->n_quarantined = count_of(v);
    else if (scan_is_key(v, "n_leased_again"))
        s->n_leased_again = big_of(v);
    else if (scan_is_key(v, "n_recomputed"))
        s->n_recomputed = big_of(v);
    else if (scan_is_key(v, "awaited"))
        text_of(v, s->awaited, sizeof s->awaited);
    else if (scan_is_key(v, "n_workers"))
        s->n_workers = count_of(v) <= 1u << 24 ? count_of(v) : 0;
    else if (scan_is_key(v, "workers"))
        take_workers(v, s);
    else
        (void)take_batch(v, s);
}

pl_status pl_snapshot_parse(const char *text, size_t n, pl_snapshot *out, pl_error *err)
{
    scan s;
    scan_value v;
    int more, has_phase = 0;

    memset(out, 0, sizeof *out);
    out->eta_s = (double)NAN;
    scan_begin(&s, text, n);
    for (more = scan_next(&s, &v); more == 1; more = scan_next(&s, &v)) {
        has_phase |= scan_is_key(&v, "phase");
        take(&v, out);
    }
    if (more < 0 || !has_phase)
        return pl_fail(err, PL_E_FORMAT, "what came is no snapshot of a run: is it a paceline?");
    return PL_OK;
}
