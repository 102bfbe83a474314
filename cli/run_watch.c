/* cli/run_watch.c - what others see of a run: metrics.jsonl and TensorBoard's events for each step,
 * the trace, the timeline, and of a run in one process the snapshot of now (with workers the
 * coordinator writes it, cli/coordinate.c). */
#include "cli/run.h"
#include "cli/version.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/rng.h"
#include "rollout/trace.h"
#include "tensor/tensor.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const double watch_every_s = 0.25;
enum { TIMELINE_BYTES = 64 << 20 };

struct run_watch {
    const run_config *c;
    const pl_log *log;
    int is_remote;
    pl_metrics *metrics;
    pl_events *events;      /* NULL: none */
    pl_timeline *timeline;  /* NULL: none */
    pl_snapshot_file *file; /* NULL: none, or another process writes it */
    pl_trace *trace;        /* NULL: none is kept */
    unsigned char uid[16];
    unsigned char policy[16]; /* hash of the weights that roll out now */
    pl_snapshot s;
    double written_at, counted_at, second_at;
    uint64_t counted;             /* tokens when the rate was taken last */
    int64_t phase_us, phase_step; /* of the phase: when it began; the step that it works at */
    double step_s;                /* mean of the steps so far */
    int64_t n_steps;
};

static int64_t unix_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* ---- the trace ---- */

/* What names the run: RUN/id, which a run with workers has, else its directory.  name [40]. */
static void name_run(const char *dir, char *name, unsigned char uid[16])
{
    char path[PL_CONFIG_STR + 16], *text = NULL;
    unsigned char hash[PL_HASH_BYTES];
    size_t n = 0;
    pl_error none;

    snprintf(path, sizeof path, "%s/id", dir);
    if (pl_file_read(&text, &n, path, 32, &none) == PL_OK)
        snprintf(name, 40, "%.*s", (int)strcspn(text, "\n"), text);
    else
        snprintf(name, 40, "%016llx", (unsigned long long)pl_hash64(dir, strlen(dir)));
    free(text);
    pl_hash256(hash, name, strlen(name));
    memcpy(uid, hash, 16);
}

static pl_status open_trace(run_watch *w, const run_watch_begin *b, pl_error *err)
{
    char path[PL_CONFIG_STR + 16], *text = NULL;
    pl_trace_run run = {.build = PL_VERSION " " PL_COMMIT,
        .numeric_class = PL_NUMERIC_CLASS,
        .isa = b->isa,
        .machine = b->machine,
        .config_hash = b->config_hash,
        .step = b->step,
        .n_vocab = b->n_vocab,
        .unix_ms = unix_us() / 1000};
    pl_journal_report report;

    memcpy(run.weights, w->policy, sizeof run.weights);
    snprintf(path, sizeof path, "%s/config.yaml", w->c->trainer.default_local_dir);
    pl_status st = pl_file_read(&text, &run.n_config, path, 256 << 10, err);
    if (st != PL_OK)
        return st;
    run.config = text;
    st = pl_trace_open(&w->trace, w->c->trainer.default_local_dir, w->uid, &run, &report, err);
    free(text);
    if (st == PL_OK && report.torn_bytes > 0)
        pl_log_warn(w->log, "event=torn_trace cut_bytes=%llu: a crash in mid-write",
            (unsigned long long)report.torn_bytes);
    return st;
}

/* The step's samples as the trace has them; *out borrows from b. */
static pl_trace_sample *trace_samples(const run_batch *b)
{
    const int total = b->n_groups * b->n;
    pl_trace_sample *out = calloc((size_t)total, sizeof *out);

    for (int i = 0; out && i < total; i++) {
        const pl_response *r = &b->responses[i];
        out[i] = (pl_trace_sample){.uid = r->uid,
            .n_tokens = r->n_tokens,
            .tokens = r->tokens,
            .source = r->token_source,
            .logprobs = r->logprobs,
            .finish = r->finish,
            .reward = b->samples[i].reward,
            .draft = (uint32_t)r->spec_num_draft_tokens,
            .accepted = (uint32_t)r->spec_num_accepted_tokens,
            .steps = (uint32_t)r->spec_num_verify_steps,
            .worker = b->workers[i]};
    }
    return out;
}

static pl_sampling sampling_of(const run_sampling *s)
{
    return (pl_sampling){.max_tokens = (uint32_t)s->max_tokens,
        .temperature = s->temperature,
        .top_p = s->top_p,
        .min_p = s->min_p,
        .top_k = (uint32_t)s->top_k,
        .noise_key = pl_noise_key(s->seed),
        .purpose = s->purpose,
        .ignore_eos = (uint32_t)s->ignore_eos,
        .speculative = (uint32_t)s->speculative};
}

pl_status run_watch_trace(run_watch *w, const run_watch_step *x, run_batch *b, pl_error *err)
{
    const char **names = NULL;
    uint64_t *prompts = NULL;
    uint32_t *n_prompt = NULL;
    pl_trace_sample *samples = NULL;
    pl_status st = PL_OK;

    if (!w->trace)
        return PL_OK;
    names = calloc((size_t)b->n_names + 1, sizeof *names);
    prompts = calloc((size_t)b->n_groups, sizeof *prompts);
    n_prompt = calloc((size_t)b->n_groups, sizeof *n_prompt);
    samples = trace_samples(b);
    if (!names || !prompts || !n_prompt || !samples) {
        st = pl_fail(err, PL_E_NOMEM, "trace: no memory for %d samples", b->n_groups * b->n);
        goto done;
    }
    for (int i = 0; i < b->n_names; i++)
        names[i] = b->names[i];
    for (int i = 0; i < b->n_groups; i++) {
        prompts[i] = b->prompts[i]->key;
        n_prompt[i] = (uint32_t)b->prompts[i]->n_ids;
    }
    pl_trace_step s = {.step = x->step,
        .policy_version = x->policy_version,
        .drafter_version = b->drafting.version,
        .first_uid = b->first_uid,
        .n_groups = b->n_groups,
        .n = b->n,
        .sampling = sampling_of(x->sampling),
        .prompts = prompts,
        .n_prompt = n_prompt,
        .gen_s = b->seconds,
        .update_s = x->update_s,
        .step_s = x->step_s,
        .draft_s = b->stats.draft_s,
        .verify_s = b->stats.verify_s,
        .unix_ms = unix_us() / 1000,
        .n_workers = b->n_names,
        .workers = names,
        .n_costs = b->n_costs,
        .costs = b->costs,
        .samples = samples};
    memcpy(s.before, w->policy, sizeof s.before);
    memcpy(s.after, x->after, sizeof s.after);
    st = pl_trace_put(w->trace, &s, b->trace.b, err);
    if (st == PL_OK)
        memcpy(w->policy, x->after, sizeof w->policy);
done:
    free(names);
    free(prompts);
    free(n_prompt);
    free(samples);
    return st;
}

/* ---- metrics ---- */

pl_status run_watch_metrics(
    run_watch *w, int64_t step, const pl_metric *metrics, int n, pl_error *err)
{
    pl_error lost = {0};

    if (w->events && pl_events_put(w->events, step, (double)unix_us() * 1e-6, metrics, n, &lost) !=
                         PL_OK) { /* a copy for one reader: the run goes on without */
        pl_log_warn(w->log, "event=events_ended %s; metrics.jsonl goes on", lost.msg);
        pl_events_close(w->events);
        w->events = NULL;
    }
    return pl_metrics_put(w->metrics, step, metrics, n, err);
}

/* ---- now ---- */

static void write_snapshot(run_watch *w, double now)
{
    pl_snapshot *s = &w->s;
    const double passed = now - w->counted_at;

    if (passed >= 1) {
        const double rate = (double)(s->n_tokens - w->counted) / passed;
        s->rate = s->n_tokens >= w->counted ? 0.5 * s->rate + 0.5 * rate : 0;
        w->counted = s->n_tokens;
        w->counted_at = now;
    }
    s->updated_ms = unix_us() / 1000;
    s->eta_s = w->n_steps > 0 ? (double)(s->total_steps - s->step) * w->step_s : (double)NAN;
    w->written_at = now;
    pl_snapshot_write(w->file, s);
}

/* One cell of the strip for each second that began since. */
static void count_seconds(run_watch *w, double now)
{
    pl_snapshot_worker *k = &w->s.workers[0];
    const double passed = now - w->written_at;

    k->busy_s += k->state == PL_WORKER_BUSY ? (float)passed : 0;
    k->training_s += k->state == PL_WORKER_TRAINING ? (float)passed : 0;
    k->idle_s += k->state == PL_WORKER_IDLE ? (float)passed : 0;
    for (; w->second_at + 1 <= now; w->second_at += 1) {
        memmove(k->strip, k->strip + 1, sizeof k->strip - 1);
        k->strip[sizeof k->strip - 1] = (uint8_t)(k->state + 1);
    }
    k->strip[sizeof k->strip - 1] = (uint8_t)(k->state + 1);
}

static uint8_t state_of(pl_phase p)
{
    const int is_busy = p == PL_PHASE_ROLLOUT || p == PL_PHASE_EVAL || p == PL_PHASE_COMPARE;
    return is_busy ? PL_WORKER_BUSY : PL_WORKER_IDLE;
}

void run_watch_tick(run_watch *w)
{
    const double now = run_seconds();

    if (!w || !w->file || now - w->written_at < watch_every_s)
        return;
    count_seconds(w, now);
    write_snapshot(w, now);
}

void run_watch_phase(run_watch *w, pl_phase phase, const run_batch *b)
{
    const int64_t us = unix_us();
    char detail[64];

    if (!w)
        return;
    if (w->timeline && w->phase_us > 0) {
        snprintf(detail, sizeof detail, "{\"step\":%lld}", (long long)w->phase_step);
        pl_timeline_put(w->timeline, w->is_remote ? "trainer" : "local",
            pl_phase_name((pl_phase)w->s.phase), w->phase_us, us - w->phase_us, detail);
    }
    w->phase_us = us;
    w->phase_step =
        phase == PL_PHASE_ROLLOUT || phase == PL_PHASE_UPDATE ? w->s.step + 1 : w->s.step;
    w->s.phase = (uint32_t)phase;
    w->s.phase_ms = us / 1000;
    if (!w->file)
        return;
    if (w->s.n_workers > 0)
        count_seconds(w, run_seconds());
    w->s.n_workers = 1;
    w->s.workers[0].state = state_of(phase);
    w->s.batch = b ? b->id : w->s.batch;
    w->s.n_samples = b ? (uint32_t)(b->n_groups * b->n) : 0;
    w->s.n_done = w->s.n_running = w->s.n_queued = 0;
    w->s.n_tokens = w->counted = 0;
    w->counted_at = run_seconds();
    memset(w->s.lengths, 0, sizeof w->s.lengths);
    memset(w->s.running_lengths, 0, sizeof w->s.running_lengths);
    write_snapshot(w, run_seconds());
}

void run_watch_batch(run_watch *w, const run_batch *b, const run_watch_now *now)
{
    pl_snapshot *s = w ? &w->s : NULL;
    const int total = b->n_groups * b->n;

    if (!w || !w->file || run_seconds() - w->written_at < watch_every_s)
        return;
    memset(s->lengths, 0, sizeof s->lengths);
    memset(s->running_lengths, 0, sizeof s->running_lengths);
    for (int i = 0; i < total; i++) {
        const int n = (int)b->lengths[i];
        if (b->responses[i].tokens)
            s->lengths[pl_snapshot_bucket(n)]++;
        else if (n > 0)
            s->running_lengths[pl_snapshot_bucket(n)]++;
    }
    s->n_done = (uint32_t)b->n_done;
    s->n_running = (uint32_t)now->n_running;
    s->n_queued = (uint32_t)now->n_queued;
    s->n_tokens = (uint64_t)b->n_tokens;
    s->session = now->is_training;
    s->drafter_version = now->drafter_version;
    s->workers[0].state = now->is_training                     ? PL_WORKER_TRAINING
                          : now->n_running + now->n_queued > 0 ? PL_WORKER_BUSY
                                                               : PL_WORKER_IDLE;
    s->workers[0].n_running = (uint32_t)now->n_running;
    s->workers[0].drafter_version = now->drafter_version;
    s->workers[0].rate = (float)s->rate;
    run_watch_tick(w);
}

void run_watch_step_done(run_watch *w, int64_t step, uint32_t policy_version, double seconds)
{
    w->n_steps += seconds > 0;
    if (seconds > 0)
        w->step_s += (seconds - w->step_s) / (double)w->n_steps;
    w->s.step = step;
    w->s.policy_version = w->s.workers[0].policy_version = policy_version;
}

pl_status run_watch_end(run_watch *w, pl_error *err)
{
    run_watch_phase(w, PL_PHASE_DONE, NULL);
    return w->trace ? pl_trace_end(w->trace, w->s.step, err) : PL_OK;
}

/* ---- opening ---- */

/* What fails here is a view less, not the run. */
static void open_views(run_watch *w)
{
    const char *dir = w->c->trainer.default_local_dir;
    pl_error lost = {0};

    if (pl_events_open(&w->events, dir, &lost) != PL_OK)
        pl_log_warn(w->log, "no TensorBoard events: %s", lost.msg);
    if (pl_timeline_open(&w->timeline, dir, TIMELINE_BYTES, &lost) != PL_OK)
        pl_log_warn(w->log, "no timeline: %s", lost.msg);
    if (!w->is_remote && pl_snapshot_open(&w->file, dir, &lost) != PL_OK)
        pl_log_warn(w->log, "no snapshot for monitors: %s", lost.msg);
}

pl_status run_watch_open(run_watch **out, const run_config *c, int is_remote,
    const run_watch_begin *b, const pl_log *log, pl_error *err)
{
    run_watch *w = calloc(1, sizeof *w);

    if (!w)
        return pl_fail(err, PL_E_NOMEM, "no memory to keep records");
    w->c = c;
    w->log = log;
    w->is_remote = is_remote;
    memcpy(w->policy, b->policy, sizeof w->policy);
    name_run(c->trainer.default_local_dir, w->s.run, w->uid);
    pl_status st = pl_metrics_open(&w->metrics, c->trainer.default_local_dir, b->last_line, err);
    if (st == PL_OK && c->trainer.trace)
        st = open_trace(w, b, err);
    if (st != PL_OK) {
        run_watch_close(w);
        return st;
    }
    open_views(w);
    w->s.pid = (uint32_t)getpid();
    w->s.started_ms = unix_us() / 1000;
    w->s.step = b->step;
    w->s.total_steps = c->trainer.total_training_steps;
    w->s.policy_version = (uint32_t)b->policy_version;
    w->s.workers[0].n_threads = (uint32_t)b->n_threads;
    w->s.workers[0].pid = w->s.pid;
    snprintf(w->s.workers[0].name, sizeof w->s.workers[0].name, "local");
    w->second_at = w->counted_at = run_seconds();
    run_watch_phase(w, PL_PHASE_STARTING, NULL);
    *out = w;
    return PL_OK;
}

void run_watch_close(run_watch *w)
{
    if (!w)
        return;
    if (w->s.phase != PL_PHASE_DONE)
        run_watch_phase(w, PL_PHASE_STOPPED, NULL);
    pl_trace_close(w->trace);
    pl_snapshot_close(w->file);
    pl_timeline_close(w->timeline);
    pl_events_close(w->events);
    pl_metrics_close(w->metrics);
    free(w);
}
