/* rollout/trace_walk.c - the records of a trace in their order, for its reader and for the writer
 * that goes on with it.
 *
 *   start --RUN--> between --STEP--> inside --last SAMPLE--> between --END--> ended --RUN-->
 * between
 *
 *   inside --RUN--> between: a process died while it wrote a step, and another went on.
 *   any other record in any other state is damage. */
#include "rollout/trace_internal.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int64_t n_announced(const trace_walk *w)
{
    return (int64_t)w->at->s.n_groups * w->at->s.n;
}

/* Hand it to the visitor; its refusal is kept apart from damage. */
static pl_status visited(trace_walk *w, pl_status st, pl_error *err)
{
    if (st == PL_OK)
        return PL_OK;
    w->visitor_failed = 1;
    if (err)
        w->why = *err;
    w->why.code = st;
    return st;
}

static pl_status take_run(trace_walk *w, const pl_journal_record *r, pl_error *err)
{
    const int32_t n_vocab = w->run.r.n_vocab;

    pl_status st = trace_reserve(&w->run_bytes, &w->room_run_bytes, r->n, 1, err);
    if (st == PL_OK)
        st = trace_parse_run(&w->run, r->data, r->n, err);
    if (st != PL_OK)
        return st;
    memcpy(w->run_bytes, r->data, r->n);
    w->n_run_bytes = r->n;
    if (w->has_run && w->run.r.n_vocab != n_vocab)
        return pl_fail(err, PL_E_FORMAT,
            "the run goes on with a vocabulary of %" PRId32 " tokens, it had %" PRId32,
            w->run.r.n_vocab, n_vocab);
    if (w->has_run && w->run.r.step > w->report->step)
        return pl_fail(err, PL_E_FORMAT,
            "the run goes on after step %" PRId64 ", the trace knows steps up to %" PRId64,
            w->run.r.step, w->report->step);
    if (!w->has_run)
        w->report->step = w->run.r.step;
    w->prev = w->run.r.step;
    w->has_run = 1;
    w->has_end = w->in_step = 0;
    w->n_parts = 0; /* of a record that was not finished */
    w->n_bytes = 0;
    w->report->n_runs++;
    return w->v && w->v->run ? visited(w, w->v->run(w->v->ctx, &w->run.r, err), err) : PL_OK;
}

static pl_status take_step(trace_walk *w, const unsigned char *data, size_t n, pl_error *err)
{
    if (!w->at && !(w->at = calloc(1, sizeof *w->at)))
        return pl_fail(err, PL_E_NOMEM, "trace: no memory for a step");
    if (!w->has_run || w->has_end)
        return pl_fail(err, PL_E_FORMAT, "a STEP record %s",
            w->has_end ? "behind END" : "and no RUN record before it");
    if (w->in_step)
        return pl_fail(err, PL_E_FORMAT,
            "step %" PRId64 " has %zu of %" PRId64 " samples, and another step begins",
            w->at->s.step, w->at->n_samples, n_announced(w));
    const pl_status st = trace_parse_step(w->at, data, n, err);
    if (st != PL_OK)
        return st;
    if (w->at->s.step != w->prev + 1)
        return pl_fail(err, PL_E_FORMAT, "step %" PRId64 " stands behind step %" PRId64,
            w->at->s.step, w->prev);
    w->in_step = 1;
    return PL_OK;
}

/* Digests of the step at hand, and what was said of it before. */
static pl_status compare(trace_walk *w, pl_error *err)
{
    const pl_trace_step *s = &w->at->s;

    pl_status st =
        trace_reserve(&w->digests, &w->room_digests, w->at->n_samples, sizeof *w->digests, err);
    if (st != PL_OK)
        return st;
    for (size_t i = 0; i < w->at->n_samples; i++)
        w->digests[i] = trace_digest(&s->samples[i], s->samples[i].hashes);
    const trace_seen_step *seen = trace_seen_find(&w->seen, s->step);
    if (!seen)
        return trace_seen_add(&w->seen, s, w->digests, err);
    w->report->n_repeated++;
    return trace_seen_compare(&w->seen, seen, s, w->digests, err);
}

/* The step at hand is the one that pl_trace_load wants: keep it with its RUN. */
static pl_status keep(trace_walk *w, pl_error *err)
{
    const pl_status st = trace_parse_run(&w->at->run, w->run_bytes, w->n_run_bytes, err);
    if (st != PL_OK)
        return st;
    trace_step_free(w->kept);
    w->kept = w->at;
    w->at = NULL;
    return PL_OK;
}

static pl_status finish_step(trace_walk *w, const pl_journal_record *r, pl_error *err)
{
    pl_trace_report *report = w->report;
    pl_trace_step *s = &w->at->s;

    trace_step_finish(w->at);
    s->n_bytes = w->n_bytes + (r->seq - w->first_seq + 1) * TRACE_BLOCK_OVERHEAD;
    w->n_bytes = 0;
    pl_status st = compare(w, err);
    if (st != PL_OK)
        return st;
    w->in_step = 0;
    w->prev = s->step;
    report->step = s->step > report->step ? s->step : report->step;
    report->n_steps++;
    report->n_samples += (int64_t)w->at->n_samples;
    report->n_tokens += (int64_t)w->at->n_tokens;
    if (w->v && w->v->step)
        st = visited(w, w->v->step(w->v->ctx, s, err), err);
    return st == PL_OK && s->step == w->wanted ? keep(w, err) : st;
}

static pl_status take_sample(
    trace_walk *w, const pl_journal_record *r, const unsigned char *data, size_t n, pl_error *err)
{
    if (!w->in_step)
        return pl_fail(err, PL_E_FORMAT, "a SAMPLE record outside a step");
    const pl_status st = trace_parse_sample(w->at, w->run.r.n_vocab, data, n, err);
    if (st != PL_OK)
        return st;
    return (int64_t)w->at->n_samples == n_announced(w) ? finish_step(w, r, err) : PL_OK;
}

static pl_status take_cost(trace_walk *w, const unsigned char *data, size_t n, pl_error *err)
{
    if (!w->in_step || w->at->n_samples > 0 || w->at->s.n_costs > 0)
        return pl_fail(err, PL_E_FORMAT, "a COST record that is not right behind its STEP");
    return trace_parse_cost(w->at, data, n, err);
}

static pl_status take_end(trace_walk *w, const unsigned char *data, size_t n, pl_error *err)
{
    trace_in in = {data, data + n, 0};
    const int64_t step = (int64_t)trace_get_varint(&in, INT64_MAX);

    if (in.bad || in.p < in.end)
        return pl_fail(err, PL_E_FORMAT, "its END record does not parse");
    if (!w->has_run || w->has_end || w->in_step || step != w->prev)
        return pl_fail(err, PL_E_FORMAT, "the run ends after step %" PRId64 " %s", step,
            w->in_step    ? "in the middle of a step"
            : !w->has_run ? "and no RUN record is before it"
            : w->has_end  ? "twice"
                          : "and that was not its last one");
    w->has_end = 1;
    return PL_OK;
}

static pl_status take_part(trace_walk *w, const pl_journal_record *r, pl_error *err)
{
    if (r->n == 0 && w->n_parts == 0)
        return pl_fail(err, PL_E_FORMAT, "an empty part of a record");
    if (r->n > TRACE_RECORD - w->n_parts)
        return pl_fail(err, PL_E_FORMAT, "a record of more than %d bytes", TRACE_RECORD);
    const pl_status st = trace_reserve(&w->parts, &w->room_parts, w->n_parts + r->n, 1, err);
    if (st != PL_OK)
        return st;
    memcpy(w->parts + w->n_parts, r->data, r->n);
    w->n_parts += r->n;
    return PL_OK;
}

static pl_status take_record(trace_walk *w, const pl_journal_record *r, pl_error *err)
{
    const unsigned char *data = r->data;
    size_t n = r->n;

    if (r->type == TRACE_RUN)
        return take_run(w, r, err);
    if (w->n_bytes == 0)
        w->first_seq = r->seq;
    w->n_bytes += r->n + trace_varint_bytes(r->type) + trace_varint_bytes(r->n);
    if (w->n_parts > 0 || r->type == TRACE_PART) {
        const pl_status st = take_part(w, r, err);
        if (st != PL_OK || r->type == TRACE_PART)
            return st;
        data = w->parts;
        n = w->n_parts;
        w->n_parts = 0;
    }
    switch (r->type) {
    case TRACE_STEP:
        return take_step(w, data, n, err);
    case TRACE_COST:
        return take_cost(w, data, n, err);
    case TRACE_SAMPLE:
        return take_sample(w, r, data, n, err);
    case TRACE_END:
        return take_end(w, data, n, err);
    default:
        break;
    }
    if (!r->is_critical)
        return PL_OK;
    return pl_fail(err, PL_E_FORMAT,
        "a critical record that this version does not know: a newer paceline may read it");
}

pl_status trace_walk_record(void *walk, const pl_journal_record *r, pl_error *err)
{
    trace_walk *w = walk;
    const pl_status st = take_record(w, r, err);

    if (st != PL_OK && !w->visitor_failed && err)
        w->why = *err;
    return st;
}

/* ---- the end ---- */

/* What an open trace lacks, in words. */
static void describe_open(const trace_walk *w, char *out, size_t room)
{
    const pl_journal_report *j = &w->report->journal;
    char sitting[64] = "", part[96] = "", torn[128] = "";

    if (j->n_bytes == 0 && j->torn_bytes == 0) {
        (void)snprintf(out, room, "empty");
        return;
    }
    if (w->prev != w->report->step)
        (void)snprintf(
            sitting, sizeof sitting, " (its last sitting is at step %" PRId64 ")", w->prev);
    if (w->in_step)
        (void)snprintf(part, sizeof part, "; step %" PRId64 " has %zu of %" PRId64 " samples",
            w->at->s.step, w->at->n_samples, n_announced(w));
    if (j->state == PL_JOURNAL_TORN)
        (void)snprintf(torn, sizeof torn,
            "; %" PRIu64 " bytes of block %" PRIu64 " at byte %" PRIu64 " are torn", j->torn_bytes,
            j->bad_seq, j->bad_offset);
    (void)snprintf(
        out, room, "open at step %" PRId64 "%s%s%s", w->report->step, sitting, part, torn);
}

pl_status trace_walk_end(trace_walk *w, pl_status st, pl_error *err)
{
    pl_trace_report *report = w->report;
    pl_journal_report *j = &report->journal;

    report->state = PL_TRACE_OPEN;
    if (w->visitor_failed)
        *err = w->why;
    if (st != PL_OK)
        (void)snprintf(report->what, sizeof report->what, "%s",
            j->why                                   ? j->why
            : st == PL_E_FORMAT && w->why.code == st ? w->why.msg
                                                     : err->msg);
    if (st == PL_E_FORMAT && !w->visitor_failed) {
        report->state = PL_TRACE_DAMAGED;
        if (j->state != PL_JOURNAL_DAMAGED) { /* its records are wrong, not its bytes */
            j->bad_offset = j->n_bytes;
            j->bad_seq = j->n_blocks;
        }
        j->state = PL_JOURNAL_DAMAGED;
    }
    if (st != PL_OK)
        return w->visitor_failed ? w->why.code : st;
    if (w->has_end && !w->in_step && j->state == PL_JOURNAL_WHOLE)
        report->state = PL_TRACE_COMPLETE;
    else
        describe_open(w, report->what, sizeof report->what);
    return PL_OK;
}

void trace_walk_done(trace_walk *w)
{
    trace_step_free(w->at);
    trace_step_free(w->kept);
    trace_run_done(&w->run);
    trace_seen_done(&w->seen);
    free(w->run_bytes);
    free(w->digests);
    free(w->parts);
    memset(w, 0, sizeof *w);
}
