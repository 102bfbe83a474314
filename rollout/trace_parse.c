/* rollout/trace_parse.c - the records of a trace from bytes that anyone may have written.
 *
 * A count is believed only as far as the bytes behind it can hold so many: what is allocated is at
 * most a few times what was read. */
#include "rollout/trace_internal.h"

#include "model/draft.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    PROMPT_BYTES = 9, /* of a prompt in a STEP record, at least: hash, varint */
    COST_BYTES = 11,  /* of a cost, at least: three varints, seconds */
};

static size_t left(const trace_in *in)
{
    return (size_t)(in->end - in->p);
}

void trace_run_done(trace_run *r)
{
    free(r->text);
    memset(r, 0, sizeof *r);
}

void trace_step_free(trace_step *s)
{
    if (!s)
        return;
    trace_run_done(&s->run);
    free(s->text);
    free(s->workers);
    free(s->prompts);
    free(s->n_prompt);
    free(s->costs);
    free(s->samples);
    free(s->tokens);
    free(s->sources);
    free(s->hashes);
    free(s);
}

/* A string of at most max bytes without NUL goes to *text, which moves behind it. */
static const char *get_string(trace_in *in, size_t max, char **text, size_t *n_bytes)
{
    const size_t n = (size_t)trace_get_varint(in, max);
    const unsigned char *from = trace_get_span(in, n);
    char *to = *text;

    if (!from || in->bad || memchr(from, 0, n)) {
        in->bad = 1;
        return "";
    }
    if (n > 0)
        memcpy(to, from, n);
    to[n] = '\0';
    *text = to + n + 1;
    if (n_bytes)
        *n_bytes = n;
    return to;
}

pl_status trace_parse_run(trace_run *r, const unsigned char *data, size_t n, pl_error *err)
{
    trace_in in = {data, data + n, 0};
    pl_trace_run *o = &r->r;

    /* a string takes no more with its NUL than with its length */
    pl_status st = trace_reserve(&r->text, &r->room, n + 8, 1, err);
    if (st != PL_OK)
        return st;
    char *text = r->text;
    memset(o, 0, sizeof *o);
    o->build = get_string(&in, TRACE_NAME, &text, NULL);
    o->numeric_class = get_string(&in, TRACE_NAME, &text, NULL);
    o->isa = get_string(&in, TRACE_NAME, &text, NULL);
    o->machine = get_string(&in, TRACE_NAME, &text, NULL);
    o->config = get_string(&in, TRACE_CONFIG, &text, &o->n_config);
    o->config_hash = trace_get_fixed(&in, 8);
    trace_get_bytes(&in, o->weights, sizeof o->weights);
    o->step = (int64_t)trace_get_varint(&in, INT64_MAX);
    o->n_vocab = (int32_t)trace_get_varint(&in, INT32_MAX);
    o->unix_ms = (int64_t)trace_get_fixed(&in, 8);
    if (in.bad || left(&in) > 0)
        return pl_fail(err, PL_E_FORMAT, "its RUN record does not parse");
    return trace_check_run(o, err);
}

static void get_sampling(trace_in *in, pl_sampling *s)
{
    s->max_tokens = (uint32_t)trace_get_varint(in, UINT32_MAX);
    s->temperature = trace_get_f32(in);
    s->top_p = trace_get_f32(in);
    s->min_p = trace_get_f32(in);
    s->top_k = (uint32_t)trace_get_varint(in, UINT32_MAX);
    s->noise_key = trace_get_fixed(in, 8);
    s->purpose = (uint32_t)trace_get_varint(in, UINT32_MAX);
    s->ignore_eos = (uint32_t)trace_get_varint(in, 1);
    s->speculative = (uint32_t)trace_get_varint(in, UINT32_MAX);
}

static pl_status get_workers(trace_step *s, trace_in *in, pl_error *err)
{
    const size_t n = (size_t)s->s.n_workers;

    if (n > left(in)) {
        in->bad = 1;
        return PL_OK;
    }
    pl_status st = trace_reserve(&s->workers, &s->room_workers, n, sizeof *s->workers, err);
    if (st == PL_OK)
        st = trace_reserve(&s->text, &s->room_text, n * (TRACE_NAME + 1), 1, err);
    if (st != PL_OK)
        return st;
    char *text = s->text;
    for (size_t i = 0; i < n; i++)
        s->workers[i] = get_string(in, TRACE_NAME, &text, NULL);
    s->s.workers = s->workers;
    return PL_OK;
}

static pl_status get_prompts(trace_step *s, trace_in *in, pl_error *err)
{
    const size_t n = (size_t)s->s.n_groups;

    if (in->bad || n > left(in) / PROMPT_BYTES) {
        in->bad = 1;
        return PL_OK;
    }
    pl_status st = trace_reserve(&s->prompts, &s->room_prompts, n, sizeof *s->prompts, err);
    if (st == PL_OK)
        st = trace_reserve(&s->n_prompt, &s->room_n_prompt, n, sizeof *s->n_prompt, err);
    if (st != PL_OK)
        return st;
    for (size_t i = 0; i < n; i++) {
        s->prompts[i] = trace_get_fixed(in, 8);
        s->n_prompt[i] = (uint32_t)trace_get_varint(in, INT32_MAX);
    }
    s->s.prompts = s->prompts;
    s->s.n_prompt = s->n_prompt;
    return PL_OK;
}

pl_status trace_parse_step(trace_step *s, const unsigned char *data, size_t n, pl_error *err)
{
    trace_in in = {data, data + n, 0};
    pl_trace_step *o = &s->s;

    memset(o, 0, sizeof *o);
    s->n_samples = s->n_tokens = s->n_hashes = 0;
    o->step = (int64_t)trace_get_varint(&in, INT64_MAX);
    o->policy_version = (uint32_t)trace_get_varint(&in, UINT32_MAX);
    o->drafter_version = (uint32_t)trace_get_varint(&in, UINT32_MAX);
    o->first_uid = (uint32_t)trace_get_varint(&in, UINT32_MAX);
    o->n_groups = (int)trace_get_varint(&in, INT32_MAX);
    o->n = (int)trace_get_varint(&in, INT32_MAX);
    get_sampling(&in, &o->sampling);
    trace_get_bytes(&in, o->before, sizeof o->before);
    trace_get_bytes(&in, o->after, sizeof o->after);
    o->gen_s = trace_get_f64(&in);
    o->update_s = trace_get_f64(&in);
    o->step_s = trace_get_f64(&in);
    o->draft_s = trace_get_f64(&in);
    o->verify_s = trace_get_f64(&in);
    o->unix_ms = (int64_t)trace_get_fixed(&in, 8);
    o->n_workers = (int)trace_get_varint(&in, INT32_MAX);
    if (in.bad)
        return pl_fail(err, PL_E_FORMAT, "its STEP record does not parse");
    pl_status st = trace_check_step(o, err);
    if (st == PL_OK)
        st = get_workers(s, &in, err);
    if (st == PL_OK)
        st = get_prompts(s, &in, err);
    if (st == PL_OK && (in.bad || left(&in) > 0))
        st = pl_fail(err, PL_E_FORMAT,
            "the STEP record of step %" PRId64 " has other lengths than it says", o->step);
    return st;
}

pl_status trace_parse_cost(trace_step *s, const unsigned char *data, size_t n_bytes, pl_error *err)
{
    trace_in in = {data, data + n_bytes, 0};
    const size_t n = (size_t)trace_get_varint(&in, TRACE_COSTS);

    if (in.bad || n > left(&in) / COST_BYTES)
        return pl_fail(
            err, PL_E_FORMAT, "the COST record of step %" PRId64 " does not parse", s->s.step);
    pl_status st = trace_reserve(&s->costs, &s->room_costs, n + 1, sizeof *s->costs, err);
    for (size_t i = 0; i < n && st == PL_OK; i++) {
        pl_trace_cost *c = &s->costs[i];
        c->worker = (uint32_t)trace_get_varint(&in, UINT32_MAX);
        c->rows = (uint32_t)trace_get_varint(&in, UINT32_MAX);
        c->n = trace_get_varint(&in, UINT64_MAX);
        c->seconds = trace_get_f64(&in);
        st = trace_check_cost(&s->s, c, err);
    }
    if (st == PL_OK && (in.bad || left(&in) > 0))
        st = pl_fail(err, PL_E_FORMAT,
            "the COST record of step %" PRId64 " has another length than it says", s->s.step);
    s->s.costs = s->costs;
    s->s.n_costs = st == PL_OK ? (int)n : 0;
    return st;
}

/* ---- samples ---- */

static pl_status get_tokens(
    trace_step *s, trace_in *in, const pl_trace_sample *a, int n_vocab, pl_error *err)
{
    const size_t n = (size_t)a->n_tokens;

    if (n > left(in)) {
        in->bad = 1;
        return PL_OK;
    }
    pl_status st =
        trace_reserve(&s->tokens, &s->room_tokens, s->n_tokens + n + 1, sizeof *s->tokens, err);
    if (st != PL_OK)
        return st;
    for (size_t i = 0; i < n && !in->bad; i++) {
        const uint64_t id = trace_get_varint(in, UINT32_MAX);
        if (id >= (uint64_t)n_vocab)
            return pl_fail(err, PL_E_FORMAT,
                "step %" PRId64 ", uid %" PRIu32 ": token %zu is id %" PRIu64
                ", the vocabulary has %d",
                s->s.step, a->uid, i, id, n_vocab);
        s->tokens[s->n_tokens + i] = (int32_t)id;
    }
    return PL_OK;
}

/* Runs of one source: varint length << 2 | source, no run empty or of the source before it. */
static pl_status get_sources(trace_step *s, trace_in *in, const pl_trace_sample *a, pl_error *err)
{
    const size_t n = (size_t)a->n_tokens;
    unsigned before = UINT8_MAX;

    const pl_status st =
        trace_reserve(&s->sources, &s->room_sources, s->n_tokens + n + 1, sizeof *s->sources, err);
    if (st != PL_OK)
        return st;
    for (size_t done = 0; done < n && !in->bad;) {
        const uint64_t run = trace_get_varint(in, UINT32_MAX);
        const size_t length = (size_t)(run >> 2);
        const unsigned source = (unsigned)(run & 3);
        if (length == 0 || length > n - done || source > PL_SOURCE_LEARNED || source == before) {
            in->bad = 1;
            break;
        }
        memset(s->sources + s->n_tokens + done, (int)source, length);
        done += length;
        before = source;
    }
    return PL_OK;
}

static pl_status get_hashes(trace_step *s, trace_in *in, const pl_trace_sample *a, pl_error *err)
{
    const size_t n = (size_t)pl_trace_hashes(a->n_tokens);

    const pl_status st =
        trace_reserve(&s->hashes, &s->room_hashes, s->n_hashes + n + 1, sizeof *s->hashes, err);
    for (size_t i = 0; i < n && st == PL_OK; i++)
        s->hashes[s->n_hashes + i] = trace_get_fixed(in, 8);
    return st;
}

pl_status trace_parse_sample(
    trace_step *s, int n_vocab, const unsigned char *data, size_t n, pl_error *err)
{
    trace_in in = {data, data + n, 0};
    pl_trace_sample a = {.uid = s->s.first_uid + (uint32_t)s->n_samples};

    const uint64_t index = trace_get_varint(&in, UINT32_MAX);
    a.finish = (pl_finish)trace_get_fixed(&in, 1);
    a.worker = (uint32_t)trace_get_varint(&in, UINT32_MAX);
    a.reward = trace_get_f32(&in);
    a.draft = (uint32_t)trace_get_varint(&in, UINT32_MAX);
    a.accepted = (uint32_t)trace_get_varint(&in, UINT32_MAX);
    a.steps = (uint32_t)trace_get_varint(&in, UINT32_MAX);
    a.n_tokens = (int)trace_get_varint(&in, INT32_MAX);
    if (in.bad)
        return pl_fail(err, PL_E_FORMAT, "step %" PRId64 ", uid %" PRIu32 ": does not parse",
            s->s.step, a.uid);
    if (index != s->n_samples)
        return pl_fail(err, PL_E_FORMAT,
            "step %" PRId64 ": sample %" PRIu64 " stands where uid %" PRIu32 " belongs", s->s.step,
            index, a.uid);
    const size_t n_front = (size_t)(in.p - data);
    pl_status st = trace_check_sample(&s->s, &a, err);
    if (st == PL_OK)
        st =
            trace_reserve(&s->samples, &s->room_samples, s->n_samples + 1, sizeof *s->samples, err);
    if (st == PL_OK)
        st = get_tokens(s, &in, &a, n_vocab, err);
    if (st == PL_OK && !in.bad)
        st = get_sources(s, &in, &a, err);
    if (left(&in) != 8 * (size_t)pl_trace_hashes(a.n_tokens))
        in.bad = 1;
    if (st == PL_OK && !in.bad)
        st = get_hashes(s, &in, &a, err);
    if (st == PL_OK && in.bad)
        st = pl_fail(err, PL_E_FORMAT,
            "step %" PRId64 ", uid %" PRIu32 ": %d tokens, their sources and hashes do not fit its "
            "record",
            s->s.step, a.uid, a.n_tokens);
    if (st != PL_OK)
        return st;
    s->samples[s->n_samples++] = a;
    s->n_tokens += (size_t)a.n_tokens;
    s->n_hashes += (size_t)pl_trace_hashes(a.n_tokens);
    s->s.n_token_bytes += n - n_front;
    return PL_OK;
}

void trace_step_finish(trace_step *s)
{
    size_t token = 0, hash = 0;

    for (size_t i = 0; i < s->n_samples; i++) {
        pl_trace_sample *a = &s->samples[i];
        a->tokens = s->tokens + token;
        a->source = s->sources + token;
        a->hashes = s->hashes + hash;
        token += (size_t)a->n_tokens;
        hash += (size_t)pl_trace_hashes(a->n_tokens);
    }
    s->s.samples = s->samples;
}
