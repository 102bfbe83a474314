/* rollout/trace_write.c - the trace of a run as it is written.
 *
 * A step is a STEP record, what its passes cost, and its samples in uid order; one sync makes all
 * of it durable.  A record that is longer than a journal takes goes in parts.  What the reader
 * would refuse is refused before the first byte is put, so a trace that was written can be read. */
#include "rollout/trace_internal.h"

#include "core/file.h"
#include "model/draft.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct pl_trace {
    pl_journal *journal;
    trace_seen seen; /* steps of earlier sittings */
    trace_out out;   /* the record at hand */
    uint64_t *hashes, *digests;
    size_t room_hashes, room_digests;
    int64_t prev; /* the last step */
    int32_t n_vocab;
    int has_end;
    pl_status failed; /* with its message in why */
    pl_error why;
};

uint64_t pl_trace_hash(const float *logprobs, int n)
{
    return pl_hash64(logprobs, (size_t)n * sizeof *logprobs);
}

static pl_status die(pl_trace *t, pl_status st, pl_error *err)
{
    if (err && t->failed == PL_OK) {
        t->failed = st;
        t->why = *err;
    }
    return st;
}

/* Put the record in t->out. */
static pl_status put_record(pl_trace *t, uint32_t type, pl_error *err)
{
    const unsigned char *data = t->out.data;
    size_t n = t->out.n;
    pl_status st = PL_OK;

    if (t->out.failed)
        return pl_fail(err, PL_E_NOMEM, "trace: no memory for a record");
    if (n > TRACE_RECORD)
        return pl_fail(err, PL_E_INVAL, "trace: a record of %zu bytes, at most %d are possible", n,
            TRACE_RECORD);
    for (; n > PL_JOURNAL_RECORD_MAX && st == PL_OK; n -= PL_JOURNAL_RECORD_MAX) {
        st = pl_journal_put(t->journal, TRACE_PART, data, PL_JOURNAL_RECORD_MAX, err);
        data += PL_JOURNAL_RECORD_MAX;
    }
    return st == PL_OK ? pl_journal_put(t->journal, type, data, n, err) : st;
}

/* ---- opening ---- */

static pl_status check_string(const char *what, const char *s, size_t n, size_t max, pl_error *err)
{
    if (n <= max && !memchr(s, 0, n))
        return PL_OK;
    return pl_fail(err, PL_E_INVAL, "%s of %zu bytes%s; at most %zu, without NUL, are kept", what,
        n, n <= max ? " with a NUL" : "", max);
}

static pl_status put_run(pl_trace *t, const pl_trace_run *r, pl_error *err)
{
    const char *const names[4] = {r->build, r->numeric_class, r->isa, r->machine};
    trace_out *o = &t->out;

    pl_status st = check_string("a config", r->config, r->n_config, TRACE_CONFIG, err);
    if (st == PL_OK)
        st = trace_check_run(r, err);
    if (st != PL_OK)
        return st;
    o->n = 0;
    for (int i = 0; i < 4; i++) { /* these are for people: cut, not refused */
        const size_t n = strlen(names[i]);
        trace_put_string(o, names[i], n < TRACE_NAME ? n : TRACE_NAME);
    }
    trace_put_string(o, r->config, r->n_config);
    trace_put_fixed(o, r->config_hash, 8);
    trace_put_bytes(o, r->weights, sizeof r->weights);
    trace_put_varint(o, (uint64_t)r->step);
    trace_put_varint(o, (uint64_t)r->n_vocab);
    trace_put_fixed(o, (uint64_t)r->unix_ms, 8);
    st = put_record(t, TRACE_RUN, err);
    return st == PL_OK ? pl_journal_sync(t->journal, err) : st;
}

/* The old trace, read by w, and the run that goes on with it. */
static pl_status check_continues(const trace_walk *w, const pl_trace_run *r, pl_error *err)
{
    if (!w->has_run)
        return PL_OK;
    if (r->n_vocab != w->run.r.n_vocab)
        return pl_fail(err, PL_E_FORMAT,
            "the run has a vocabulary of %" PRId32 " tokens, its trace one of %" PRId32
            ": move trace/ away to begin a new one",
            r->n_vocab, w->run.r.n_vocab);
    if (r->step > w->report->step)
        return pl_fail(err, PL_E_FORMAT,
            "the run goes on after step %" PRId64 ", its trace ends with step %" PRId64
            ": move trace/ away to begin a new one there",
            r->step, w->report->step);
    return PL_OK;
}

static pl_status open_journal(pl_trace *t, const char *run_dir, const unsigned char run_uid[16],
    const pl_trace_run *run, pl_journal_report *report, pl_error *err)
{
    char path[4096];
    pl_journal_options o = {.magic = TRACE_MAGIC};
    pl_trace_report found = {0};
    trace_walk w = {.report = &found, .wanted = -1};

    const int n = snprintf(path, sizeof path, "%s/trace", run_dir);
    if (n < 0 || n >= (int)sizeof path - 32)
        return pl_fail(err, PL_E_IO, "trace: the path '%.80s...' is too long", run_dir);
    pl_status st = pl_dir_make(path, err);
    if (st != PL_OK)
        return st;
    memcpy(path + n, "/000001.journal", sizeof "/000001.journal");
    memcpy(o.run_uid, run_uid, sizeof o.run_uid);
    st = pl_journal_open(&t->journal, path, &o, trace_walk_record, &w, report, err);
    if (st == PL_OK)
        st = check_continues(&w, run, err);
    else if (st == PL_E_FORMAT)
        st = pl_wrap(err, st, "the trace is damaged (move trace/ away to begin a new one)");
    t->seen = w.seen;
    memset(&w.seen, 0, sizeof w.seen);
    trace_walk_done(&w);
    return st;
}

pl_status pl_trace_open(pl_trace **out, const char *run_dir, const unsigned char run_uid[16],
    const pl_trace_run *run, pl_journal_report *report, pl_error *err)
{
    pl_journal_report own;

    assert(out && run_dir && run_uid && run);
    pl_trace *t = calloc(1, sizeof *t);
    if (!t)
        return pl_fail(err, PL_E_NOMEM, "trace of '%s': out of memory", run_dir);
    t->prev = run->step;
    t->n_vocab = run->n_vocab;
    pl_status st = open_journal(t, run_dir, run_uid, run, report ? report : &own, err);
    if (st == PL_OK)
        st = put_run(t, run, err);
    if (st != PL_OK) {
        pl_trace_close(t);
        return st;
    }
    *out = t;
    return PL_OK;
}

/* ---- a step ---- */

static pl_status check_tokens(const pl_trace *t, const pl_trace_sample *a, pl_error *err)
{
    for (int i = 0; i < a->n_tokens; i++) {
        if (a->tokens[i] < 0 || a->tokens[i] >= t->n_vocab)
            return pl_fail(err, PL_E_INVAL,
                "uid %" PRIu32 ": token %d is id %" PRId32 ", the vocabulary has %" PRId32, a->uid,
                i, a->tokens[i], t->n_vocab);
        if (a->source && a->source[i] > PL_SOURCE_LEARNED)
            return pl_fail(err, PL_E_INVAL, "uid %" PRIu32 ": token %d is of source %d", a->uid, i,
                a->source[i]);
    }
    return PL_OK;
}

static pl_status check(const pl_trace *t, const pl_trace_step *s, pl_error *err)
{
    pl_status st = trace_check_step(s, err);

    if (st == PL_OK && s->n_costs > TRACE_COSTS)
        st = pl_fail(err, PL_E_INVAL, "%d costs; at most %d are possible", s->n_costs, TRACE_COSTS);
    for (int i = 0; i < s->n_costs && st == PL_OK; i++)
        st = trace_check_cost(s, &s->costs[i], err);
    for (int i = 0; i < s->n_workers && st == PL_OK; i++)
        st = check_string("a worker's name", s->workers[i], strlen(s->workers[i]), TRACE_NAME, err);
    for (int i = 0; i < s->n_groups && st == PL_OK; i++)
        if (s->n_prompt[i] > INT32_MAX)
            st = pl_fail(err, PL_E_INVAL, "a prompt of %" PRIu32 " tokens", s->n_prompt[i]);
    for (int i = 0; st == PL_OK && i < s->n_groups * s->n; i++) {
        const pl_trace_sample *a = &s->samples[i];
        if (a->uid != s->first_uid + (uint32_t)i)
            st = pl_fail(err, PL_E_INVAL,
                "step %" PRId64 ": uid %" PRIu32 " stands where %" PRIu32 " belongs", s->step,
                a->uid, s->first_uid + (uint32_t)i);
        if (st == PL_OK)
            st = trace_check_sample(s, a, err);
        if (st == PL_OK)
            st = check_tokens(t, a, err);
    }
    if (st == PL_OK && (t->has_end || s->step != t->prev + 1))
        st = pl_fail(err, PL_E_INVAL, "step %" PRId64 " cannot follow %s%" PRId64, s->step,
            t->has_end ? "the end of the run after step " : "step ", t->prev);
    if (st == PL_OK)
        return PL_OK;
    err->code = PL_E_INVAL;
    return pl_wrap(err, PL_E_INVAL, "trace");
}

static pl_status put_step(pl_trace *t, const pl_trace_step *s, pl_error *err)
{
    trace_out *o = &t->out;

    o->n = 0;
    trace_put_varint(o, (uint64_t)s->step);
    trace_put_varint(o, s->policy_version);
    trace_put_varint(o, s->drafter_version);
    trace_put_varint(o, s->first_uid);
    trace_put_varint(o, (uint64_t)s->n_groups);
    trace_put_varint(o, (uint64_t)s->n);
    trace_put_varint(o, s->sampling.max_tokens);
    trace_put_f32(o, s->sampling.temperature);
    trace_put_f32(o, s->sampling.top_p);
    trace_put_f32(o, s->sampling.min_p);
    trace_put_varint(o, s->sampling.top_k);
    trace_put_fixed(o, s->sampling.noise_key, 8);
    trace_put_varint(o, s->sampling.purpose);
    trace_put_varint(o, s->sampling.ignore_eos);
    trace_put_varint(o, s->sampling.speculative);
    trace_put_bytes(o, s->before, sizeof s->before);
    trace_put_bytes(o, s->after, sizeof s->after);
    trace_put_f64(o, s->gen_s);
    trace_put_f64(o, s->update_s);
    trace_put_f64(o, s->step_s);
    trace_put_f64(o, s->draft_s);
    trace_put_f64(o, s->verify_s);
    trace_put_fixed(o, (uint64_t)s->unix_ms, 8);
    trace_put_varint(o, (uint64_t)s->n_workers);
    for (int i = 0; i < s->n_workers; i++)
        trace_put_string(o, s->workers[i], strlen(s->workers[i]));
    for (int i = 0; i < s->n_groups; i++) {
        trace_put_fixed(o, s->prompts[i], 8);
        trace_put_varint(o, s->n_prompt[i]);
    }
    return put_record(t, TRACE_STEP, err);
}

static pl_status put_costs(pl_trace *t, const pl_trace_step *s, pl_error *err)
{
    trace_out *o = &t->out;

    if (s->n_costs == 0)
        return PL_OK;
    o->n = 0;
    trace_put_varint(o, (uint64_t)s->n_costs);
    for (int i = 0; i < s->n_costs; i++) {
        trace_put_varint(o, s->costs[i].worker);
        trace_put_varint(o, s->costs[i].rows);
        trace_put_varint(o, s->costs[i].n);
        trace_put_f64(o, s->costs[i].seconds);
    }
    return put_record(t, TRACE_COST, err);
}

static void put_sources(trace_out *o, const uint8_t *source, int n)
{
    if (!source && n > 0) {
        trace_put_varint(o, (uint64_t)n << 2 | PL_SOURCE_TARGET);
        return;
    }
    for (int begin = 0, i = 1; begin < n; i++)
        if (i == n || source[i] != source[begin]) {
            trace_put_varint(o, (uint64_t)(i - begin) << 2 | source[begin]);
            begin = i;
        }
}

/* hashes: of its log-probs. */
static pl_status put_sample(
    pl_trace *t, const pl_trace_sample *a, int index, const uint64_t *hashes, pl_error *err)
{
    trace_out *o = &t->out;

    o->n = 0;
    trace_put_varint(o, (uint64_t)index);
    trace_put_fixed(o, (uint64_t)a->finish, 1);
    trace_put_varint(o, a->worker);
    trace_put_f32(o, a->reward);
    trace_put_varint(o, a->draft);
    trace_put_varint(o, a->accepted);
    trace_put_varint(o, a->steps);
    trace_put_varint(o, (uint64_t)a->n_tokens);
    for (int i = 0; i < a->n_tokens; i++)
        trace_put_varint(o, (uint64_t)a->tokens[i]);
    put_sources(o, a->source, a->n_tokens);
    for (int i = 0; i < pl_trace_hashes(a->n_tokens); i++)
        trace_put_fixed(o, hashes[i], 8);
    return put_record(t, TRACE_SAMPLE, err);
}

/* Hashes of all samples, one behind the other, and the digest of each. */
static pl_status hash_samples(pl_trace *t, const pl_trace_step *s, pl_error *err)
{
    const size_t n = (size_t)s->n_groups * (size_t)s->n;
    size_t n_hashes = 1;

    for (size_t i = 0; i < n; i++)
        n_hashes += (size_t)pl_trace_hashes(s->samples[i].n_tokens);
    pl_status st = trace_reserve(&t->hashes, &t->room_hashes, n_hashes, sizeof *t->hashes, err);
    if (st == PL_OK)
        st = trace_reserve(&t->digests, &t->room_digests, n, sizeof *t->digests, err);
    uint64_t *h = t->hashes;
    for (size_t i = 0; i < n && st == PL_OK; i++) {
        const pl_trace_sample *a = &s->samples[i];
        const int n_blocks = pl_trace_hashes(a->n_tokens);
        for (int k = 0; k < n_blocks; k++) {
            const int at = k * PL_TRACE_HASHED, rest = a->n_tokens - at;
            h[k] = pl_trace_hash(a->logprobs + at, rest < PL_TRACE_HASHED ? rest : PL_TRACE_HASHED);
        }
        t->digests[i] = trace_digest(a, h);
        h += n_blocks;
    }
    return st;
}

static pl_status put_all(pl_trace *t, const pl_trace_step *s, pl_error *err)
{
    const uint64_t *h = t->hashes;

    pl_status st = put_step(t, s, err);
    if (st == PL_OK)
        st = put_costs(t, s, err);
    for (int i = 0; i < s->n_groups * s->n && st == PL_OK; i++) {
        st = put_sample(t, &s->samples[i], i, h, err);
        h += pl_trace_hashes(s->samples[i].n_tokens);
    }
    return st == PL_OK ? pl_journal_sync(t->journal, err) : st;
}

pl_status pl_trace_put(
    pl_trace *t, const pl_trace_step *s, unsigned char head[PL_HASH_BYTES], pl_error *err)
{
    pl_error own, why = {0};

    err = err ? err : &own;
    if (t->failed != PL_OK)
        return pl_fail(err, t->failed, "%s", t->why.msg);
    pl_status st = check(t, s, err);
    if (st != PL_OK)
        return st;
    st = hash_samples(t, s, err);
    if (st != PL_OK)
        return die(t, st, err);
    const trace_seen_step *seen = trace_seen_find(&t->seen, s->step);
    if (seen && trace_seen_compare(&t->seen, seen, s, t->digests, &why) != PL_OK)
        return die(t,
            pl_fail(err, PL_E_NUMERIC,
                "trace: %.300s: rewards or keys are not those of then; move trace/ away to go on",
                why.msg),
            err);
    st = put_all(t, s, err);
    if (st != PL_OK)
        return die(t, st, err);
    t->prev = s->step;
    pl_journal_head(t->journal, head);
    return PL_OK;
}

pl_status pl_trace_end(pl_trace *t, int64_t step, pl_error *err)
{
    pl_error own;

    err = err ? err : &own;
    if (t->failed != PL_OK)
        return pl_fail(err, t->failed, "%s", t->why.msg);
    if (t->has_end || step != t->prev)
        return pl_fail(err, PL_E_INVAL,
            "trace: the run cannot end after step %" PRId64 ", it %s after step %" PRId64, step,
            t->has_end ? "has ended" : "is", t->prev);
    t->out.n = 0;
    trace_put_varint(&t->out, (uint64_t)step);
    pl_status st = put_record(t, TRACE_END, err);
    if (st == PL_OK)
        st = pl_journal_sync(t->journal, err);
    t->has_end = st == PL_OK;
    return st == PL_OK ? PL_OK : die(t, st, err);
}

void pl_trace_close(pl_trace *t)
{
    if (!t)
        return;
    pl_journal_close(t->journal);
    trace_seen_done(&t->seen);
    free(t->out.data);
    free(t->hashes);
    free(t->digests);
    free(t);
}
