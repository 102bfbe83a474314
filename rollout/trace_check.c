/* rollout/trace_check.c - what a trace may say: numbers in their ranges, and steps that stand twice
 * with the same samples.  The writer asks before it writes, the reader before it believes. */
#include "rollout/trace_internal.h"

#include "core/file.h"
#include "model/draft.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

pl_status trace_check_run(const pl_trace_run *r, pl_error *err)
{
    if (r->step < 0)
        return pl_fail(err, PL_E_FORMAT, "a run that begins after step %" PRId64, r->step);
    if (r->n_vocab < 1)
        return pl_fail(err, PL_E_FORMAT, "a vocabulary of %" PRId32 " tokens", r->n_vocab);
    return PL_OK;
}

enum { MOST_ROWS = 1 << 20 }; /* of a pass */

static int is_time(double s)
{
    return isfinite(s) && s >= 0;
}

static int is_sampling(const pl_sampling *s)
{
    return isfinite(s->temperature) && s->temperature >= 0 && isfinite(s->top_p) &&
           isfinite(s->min_p) && s->ignore_eos <= 1 && s->speculative <= PL_SPECULATE_FIRST;
}

pl_status trace_check_step(const pl_trace_step *s, pl_error *err)
{
    const int64_t n = (int64_t)s->n_groups * s->n;

    if (s->step < 1)
        return pl_fail(err, PL_E_FORMAT, "step %" PRId64 ": steps count from 1", s->step);
    if (s->n_groups < 1 || s->n < 1 || n > PL_TRACE_SAMPLES)
        return pl_fail(err, PL_E_FORMAT,
            "step %" PRId64 ": %d groups of %d samples; 1 to %d samples are possible", s->step,
            s->n_groups, s->n, PL_TRACE_SAMPLES);
    if (n - 1 > (int64_t)(UINT32_MAX - s->first_uid))
        return pl_fail(err, PL_E_FORMAT,
            "step %" PRId64 ": %" PRId64 " samples from uid %" PRIu32 " on do not fit 32 bits",
            s->step, n, s->first_uid);
    if (s->n_workers < 1 || s->n_workers > TRACE_WORKERS)
        return pl_fail(err, PL_E_FORMAT, "step %" PRId64 ": %d workers; 1 to %d are possible",
            s->step, s->n_workers, TRACE_WORKERS);
    if (!is_sampling(&s->sampling))
        return pl_fail(
            err, PL_E_FORMAT, "step %" PRId64 ": no sampling has such parameters", s->step);
    if (!is_time(s->gen_s) || !is_time(s->update_s) || !is_time(s->step_s) ||
        !is_time(s->draft_s) || !is_time(s->verify_s))
        return pl_fail(err, PL_E_FORMAT, "step %" PRId64 ": a time that is no time", s->step);
    return PL_OK;
}

pl_status trace_check_cost(const pl_trace_step *s, const pl_trace_cost *c, pl_error *err)
{
    if (c->worker >= (uint32_t)s->n_workers)
        return pl_fail(err, PL_E_FORMAT,
            "step %" PRId64 ": a cost of worker %" PRIu32 ", there are %d", s->step, c->worker,
            s->n_workers);
    if (!is_time(c->seconds) || c->rows > MOST_ROWS)
        return pl_fail(err, PL_E_FORMAT,
            "step %" PRId64 ": a cost of %" PRIu32 " rows and %g s is none", s->step, c->rows,
            c->seconds);
    return PL_OK;
}

pl_status trace_check_sample(const pl_trace_step *s, const pl_trace_sample *a, pl_error *err)
{
    if (a->n_tokens < 0 || a->n_tokens > PL_TRACE_TOKENS)
        return pl_fail(err, PL_E_FORMAT,
            "step %" PRId64 ", uid %" PRIu32 ": %d tokens; at most %d are possible", s->step,
            a->uid, a->n_tokens, PL_TRACE_TOKENS);
    if (a->finish != PL_FINISH_STOP && a->finish != PL_FINISH_LENGTH &&
        a->finish != PL_FINISH_ABORTED)
        return pl_fail(err, PL_E_FORMAT,
            "step %" PRId64 ", uid %" PRIu32 ": finish %d is none of stop, length and aborted",
            s->step, a->uid, (int)a->finish);
    if (a->worker >= (uint32_t)s->n_workers)
        return pl_fail(err, PL_E_FORMAT,
            "step %" PRId64 ", uid %" PRIu32 ": worker %" PRIu32 ", there are %d", s->step, a->uid,
            a->worker, s->n_workers);
    return PL_OK;
}

/* ---- steps that stand twice ---- */

uint64_t trace_digest(const pl_trace_sample *s, const uint64_t *hashes)
{
    uint32_t reward;
    memcpy(&reward, &s->reward, sizeof reward);
    const uint64_t parts[4] = {
        pl_hash64(s->tokens, (size_t)s->n_tokens * sizeof *s->tokens),
        pl_hash64(hashes, (size_t)pl_trace_hashes(s->n_tokens) * sizeof *hashes),
        (uint64_t)s->n_tokens << 8 | (uint64_t)s->finish,
        reward,
    };
    return pl_hash64(parts, sizeof parts);
}

void trace_seen_done(trace_seen *t)
{
    free(t->steps);
    free(t->digests);
    memset(t, 0, sizeof *t);
}

/* Where step stands or would stand. */
static size_t place(const trace_seen *t, int64_t step)
{
    size_t low = 0, high = t->n;

    if (t->n > 0 && t->steps[t->n - 1].step < step)
        return t->n;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (t->steps[middle].step < step)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const trace_seen_step *trace_seen_find(const trace_seen *t, int64_t step)
{
    const size_t at = place(t, step);
    return at < t->n && t->steps[at].step == step ? &t->steps[at] : NULL;
}

pl_status trace_seen_compare(const trace_seen *t, const trace_seen_step *seen,
    const pl_trace_step *s, const uint64_t *digests, pl_error *err)
{
    const size_t n = (size_t)s->n_groups * (size_t)s->n;

    if (seen->first_uid != s->first_uid || seen->n_groups != s->n_groups || seen->n != s->n)
        return pl_fail(err, PL_E_FORMAT,
            "step %" PRId64 " stands twice with other samples: uid %" PRIu32
            "; first %d groups of %d from uid %" PRIu32 ", then %d of %d",
            s->step, s->first_uid, seen->n_groups, seen->n, seen->first_uid, s->n_groups, s->n);
    for (size_t i = 0; i < n; i++)
        if (t->digests[seen->first + i] != digests[i])
            return pl_fail(err, PL_E_FORMAT,
                "step %" PRId64 " stands twice with other samples: uid %" PRIu32, s->step,
                s->first_uid + (uint32_t)i);
    return PL_OK;
}

pl_status trace_seen_add(
    trace_seen *t, const pl_trace_step *s, const uint64_t *digests, pl_error *err)
{
    const size_t n = (size_t)s->n_groups * (size_t)s->n, at = place(t, s->step);

    pl_status st = trace_reserve(&t->steps, &t->room, t->n + 1, sizeof *t->steps, err);
    if (st == PL_OK)
        st =
            trace_reserve(&t->digests, &t->room_digests, t->n_digests + n, sizeof *t->digests, err);
    if (st != PL_OK)
        return st;
    memmove(&t->steps[at + 1], &t->steps[at], (t->n - at) * sizeof *t->steps);
    t->steps[at] = (trace_seen_step){s->step, s->first_uid, s->n_groups, s->n, t->n_digests};
    memcpy(t->digests + t->n_digests, digests, n * sizeof *digests);
    t->n_digests += n;
    t->n++;
    return PL_OK;
}
