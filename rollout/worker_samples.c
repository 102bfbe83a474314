/* rollout/worker_samples.c - leases of a worker: begun, reported, held until acknowledged. */
#include "rollout/worker_internal.h"

#include <assert.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

static const int PROGRESS_TOKENS = 64;
static const int64_t PROGRESS_NS = 250 * 1000000LL;
static const unsigned PROGRESS_WHOLE = 8; /* every so many start at 0: a lost one heals */
static const int64_t RESEND_NS = 1000 * 1000000LL;
static const double RATE_S = 2; /* of busy rounds, at most */

int worker_mark_pass(worker_mark *mark, const pl_header *h)
{
    if (h->incarnation == mark->incarnation && h->seq < mark->seq)
        return 0;
    *mark = (worker_mark){.incarnation = h->incarnation, .seq = h->seq};
    return 1;
}

/* ---- the table, by uid ---- */

/* Where uid is or would stand. */
static int place_of(const worker *w, uint32_t uid)
{
    int lo = 0, hi = w->n_samples;
    while (lo < hi) {
        const int mid = lo + (hi - lo) / 2;
        if (w->samples[mid]->uid < uid)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static sample *find(const worker *w, uint32_t uid)
{
    const int i = place_of(w, uid);
    return i < w->n_samples && w->samples[i]->uid == uid ? w->samples[i] : NULL;
}

static pl_status make_room(worker *w, pl_error *err)
{
    if (w->n_samples < w->room)
        return PL_OK;
    const int room = w->room ? 2 * w->room : 64;
    sample **samples = realloc(w->samples, (size_t)room * sizeof(sample *));
    if (samples)
        w->samples = samples;
    uint32_t *uids = realloc(w->uids, (size_t)room * sizeof *uids);
    if (uids)
        w->uids = uids;
    if (!samples || !uids)
        return pl_fail(err, PL_E_NOMEM, "no memory for a table of %d samples", room);
    w->room = room;
    return PL_OK;
}

static void insert(worker *w, sample *s)
{
    const int i = place_of(w, s->uid);
    memmove(w->samples + i + 1, w->samples + i, (size_t)(w->n_samples - i) * sizeof(sample *));
    w->samples[i] = s;
    w->n_samples++;
    w->n_running++;
}

static void drop(worker *w, int i)
{
    sample *s = w->samples[i];
    if (!s->is_held) {
        pl_engine_cancel(w->engine, s->uid);
        w->n_running--;
    }
    w->n_samples--;
    memmove(w->samples + i, w->samples + i + 1, (size_t)(w->n_samples - i) * sizeof(sample *));
    free(s);
}

static void drop_if(worker *w, int held_too)
{
    for (int i = w->n_samples - 1; i >= 0; i--)
        if (held_too || !w->samples[i]->is_held)
            drop(w, i);
}

void worker_drop_running(worker *w)
{
    drop_if(w, 0);
}

void worker_drop_all(worker *w)
{
    drop_if(w, 1);
}

/* ---- what goes out ---- */

static void send_result(worker *w, sample *s, int64_t now)
{
    const uint32_t n = (uint32_t)s->n;
    const pl_msg m = {.h.type = PL_MSG_RESULT,
        .u.result = {.batch = w->batch,
            .uid = s->uid,
            .group = s->group,
            .policy_version = s->policy_version,
            .finish = (uint32_t)s->finish,
            .tokens = {s->tokens, n},
            .logprobs = {s->logprobs, n},
            .sources = {s->sources, n},
            .draft = (uint32_t)s->draft,
            .accepted = (uint32_t)s->accepted,
            .steps = (uint32_t)s->steps,
            .temperature = s->temperature,
            .worker = "",
            .attempt = s->attempt}};
    w->wire.send(w->wire.ctx, &m);
    s->sent_ns = now;
}

static void send_progress(worker *w, sample *s, int64_t now)
{
    const int pos0 = s->n_progress % PROGRESS_WHOLE == 0 ? 0 : s->n_sent;
    const uint32_t n = (uint32_t)(s->n - pos0);
    const pl_msg m = {.h.type = PL_MSG_PROGRESS,
        .u.progress = {.batch = w->batch,
            .uid = s->uid,
            .policy_version = s->policy_version,
            .pos0 = (uint32_t)pos0,
            .tokens = {s->tokens + pos0, n},
            .logprobs = {s->logprobs + pos0, n},
            .sources = {s->sources + pos0, n},
            .draft = (uint32_t)s->draft,
            .accepted = (uint32_t)s->accepted,
            .steps = (uint32_t)s->steps,
            .attempt = s->attempt}};
    s->sent_ns = now;
    if (!w->wire.send(w->wire.ctx, &m))
        return;
    s->n_sent = s->n;
    s->n_progress++;
}

void worker_report(worker *w)
{
    if (!w->is_joined)
        return;
    const int64_t now = w->wire.now_ns(w->wire.ctx);
    for (int i = 0; i < w->n_samples; i++) {
        sample *s = w->samples[i];
        const int64_t age = now - s->sent_ns;
        const int n_new = s->n - s->n_sent;
        if (s->is_held && age >= RESEND_NS)
            send_result(w, s, now);
        if (!s->is_held && n_new > 0 && (n_new >= PROGRESS_TOKENS || age >= PROGRESS_NS))
            send_progress(w, s, now);
    }
}

void worker_report_all(worker *w)
{
    const int64_t now = w->wire.now_ns(w->wire.ctx);
    for (int i = 0; i < w->n_samples; i++) {
        sample *s = w->samples[i];
        if (s->is_held || s->n == 0)
            continue;
        s->n_progress = 0;
        send_progress(w, s, now);
    }
}

void worker_report_anew(worker *w)
{
    const int64_t now = w->wire.now_ns(w->wire.ctx);
    for (int i = 0; i < w->n_samples; i++) {
        w->samples[i]->n_progress = 0;
        w->samples[i]->sent_ns = now - RESEND_NS;
    }
}

/* ---- leases ---- */

static pl_status check_lease(const pl_msg_lease *l, pl_error *err)
{
    if (l->sampling.max_tokens < 1 || l->sampling.max_tokens > WORKER_TOKENS_MAX)
        return pl_fail(err, PL_E_INVAL, "sample %u: response of %u tokens, 1..%d can be sent",
            l->uid, l->sampling.max_tokens, WORKER_TOKENS_MAX);
    if (l->sampling.top_k > INT_MAX)
        return pl_fail(
            err, PL_E_INVAL, "sample %u: top_k %u is too large", l->uid, l->sampling.top_k);
    if (l->prefix.n > l->sampling.max_tokens || l->prefix_logprobs.n != l->prefix.n ||
        l->prefix_sources.n != l->prefix.n)
        return pl_fail(err, PL_E_INVAL,
            "sample %u: prefix of %u tokens, %u log-probs, %u sources for a response of %u", l->uid,
            l->prefix.n, l->prefix_logprobs.n, l->prefix_sources.n, l->sampling.max_tokens);
    return PL_OK;
}

/* A copy of the lease that begins with its prefix. */
static sample *sample_of(const pl_msg_lease *l, int64_t now)
{
    const size_t n_prompt = l->prompt.n, n_max = l->sampling.max_tokens, n = l->prefix.n;
    sample *s = calloc(1, sizeof *s + 4 * n_prompt + 9 * n_max);
    if (!s)
        return NULL;
    s->uid = l->uid;
    s->group = l->group;
    s->policy_version = l->policy_version;
    s->attempt = l->attempt;
    s->n_prompt = (int)n_prompt;
    s->max_tokens = (int)n_max;
    s->n = s->n_sent = (int)n;
    s->sent_ns = now;
    s->draft = (int)l->draft;
    s->accepted = (int)l->accepted;
    s->steps = (int)l->steps;
    s->temperature = l->sampling.temperature;
    s->prompt = (int32_t *)(s + 1);
    s->tokens = s->prompt + n_prompt;
    s->logprobs = (float *)(s->tokens + n_max);
    s->sources = (uint8_t *)(s->logprobs + n_max);
    if (n_prompt > 0)
        memcpy(s->prompt, l->prompt.data, 4 * n_prompt);
    if (n > 0) {
        memcpy(s->tokens, l->prefix.data, 4 * n);
        memcpy(s->logprobs, l->prefix_logprobs.data, 4 * n);
        memcpy(s->sources, l->prefix_sources.data, n);
    }
    return s;
}

static pl_status submit(worker *w, const sample *s, const pl_msg_lease *l, pl_error *err)
{
    const pl_sampling *o = &l->sampling;
    const pl_request r = {.uid = s->uid,
        .group = s->group,
        .prompt = s->prompt,
        .n_prompt = s->n_prompt,
        .max_tokens = s->max_tokens,
        .temperature = o->temperature,
        .top_p = o->top_p,
        .min_p = o->min_p,
        .top_k = (int)o->top_k,
        .noise_key = o->noise_key,
        .purpose = o->purpose,
        .ignore_eos = o->ignore_eos != 0,
        .prompt_key = l->prompt_key,
        .prefix = s->tokens,
        .prefix_logprobs = s->logprobs,
        .prefix_source = s->sources,
        .n_prefix = s->n,
        .prefix_draft = s->draft,
        .prefix_accepted = s->accepted,
        .prefix_steps = s->steps};
    if (w->n_running == 0 && w->io.speculate)
        w->io.speculate(w->io.ctx, o->speculative);
    else if (w->n_running == 0)
        pl_engine_set_speculative(w->engine, o->speculative != PL_SPECULATE_OFF);
    return pl_engine_submit(w->engine, &r, err);
}

static pl_status start(worker *w, const pl_msg_lease *l, pl_error *err)
{
    pl_status st = check_lease(l, err);
    if (st == PL_OK)
        st = make_room(w, err);
    if (st != PL_OK)
        return st;
    sample *s = sample_of(l, w->wire.now_ns(w->wire.ctx));
    if (!s)
        return pl_fail(err, PL_E_NOMEM, "sample %u: no memory for its lease", l->uid);
    st = submit(w, s, l, err);
    if (st == PL_E_INVAL && s->n > 0) { /* who wrote that prefix?  Not this worker: go without */
        pl_log_warn(w->log, "worker=%s lease=%u prefix=%d refused: %s", w->o.name, s->uid, s->n,
            err ? err->msg : "");
        s->n = s->n_sent = s->draft = s->accepted = s->steps = 0;
        st = submit(w, s, l, err);
    }
    if (st != PL_OK) {
        free(s);
        return st;
    }
    insert(w, s);
    return PL_OK;
}

/* STATUS will not list the sample, so that it is leased again: here, if there is no other worker.
 * What fails every time would go round for ever. */
static pl_status count_refused(worker *w, uint32_t uid, pl_status why, pl_error *err)
{
    int i = 0;
    while (i < w->n_refused && w->refused[i].uid != uid)
        i++;
    pl_log_warn(w->log, "worker=%s lease=%u refused: %s", w->o.name, uid, err->msg);
    if (i == WORKER_REFUSED_MAX)
        return pl_wrap(err, why, "%d leases cannot be run, the last one", i + 1);
    if (i == w->n_refused) {
        w->refused[i].uid = uid;
        w->refused[i].n = 0;
        w->n_refused++;
    }
    if (++w->refused[i].n >= WORKER_TRIES)
        return pl_wrap(err, why, "a lease failed %d times", WORKER_TRIES);
    return PL_OK;
}

static void begin_batch(worker *w, uint64_t batch)
{
    worker_drop_all(w);
    worker_next_figures(w, batch);
    w->n_refused = 0;
    w->batch = batch;
    w->has_batch = 1;
}

pl_status worker_lease(worker *w, const pl_msg *m, pl_error *err)
{
    const pl_msg_lease *l = &m->u.lease;
    pl_error why;
    if (w->is_draining || w->version == WORKER_NONE || l->policy_version != w->version)
        return PL_OK;
    const int is_newest = worker_mark_pass(&w->lease_mark, &m->h);
    if (!w->has_batch || l->batch != w->batch) {
        if (!is_newest)
            return PL_OK; /* late: a lease of a later batch was here already */
        begin_batch(w, l->batch);
    }
    sample *s = find(w, l->uid);
    if (s && l->attempt > s->attempt) { /* what it has was refused */
        drop(w, place_of(w, l->uid));
        s = NULL;
    }
    if (s) {
        if (s->is_held)
            send_result(w, s, w->wire.now_ns(w->wire.ctx));
        return PL_OK;
    }
    if (w->n_running >= 2 * w->o.max_seqs)
        return PL_OK;
    w->is_status_due = 1;
    const pl_status st = start(w, l, &why);
    if (st == PL_OK)
        return PL_OK;
    const pl_status end = count_refused(w, l->uid, st, &why);
    if (end != PL_OK && err)
        *err = why;
    return end;
}

static void drop_uids(worker *w, const pl_msg_uids *m, int held_only)
{
    if (!w->has_batch || m->batch != w->batch)
        return;
    for (uint32_t i = 0; i < m->uids.n; i++) {
        uint32_t uid;
        memcpy(&uid, (const char *)m->uids.data + 4 * (size_t)i, sizeof uid);
        const sample *s = find(w, uid);
        if (s && (s->is_held || !held_only))
            drop(w, place_of(w, uid));
    }
    w->is_status_due = 1;
}

void worker_revoke(worker *w, const pl_msg_uids *m)
{
    drop_uids(w, m, 0);
}

void worker_ack(worker *w, const pl_msg_uids *m)
{
    drop_uids(w, m, 1);
}

/* All that is known of them goes to the coordinator, and they on elsewhere.  What cannot be sent
 * now stays: it is asked for again. */
void worker_handover(worker *w, const pl_msg_uids *m)
{
    const int64_t now = w->wire.now_ns(w->wire.ctx);
    if (!w->has_batch || m->batch != w->batch)
        return;
    for (uint32_t i = 0; i < m->uids.n; i++) {
        uint32_t uid;
        memcpy(&uid, (const char *)m->uids.data + 4 * (size_t)i, sizeof uid);
        sample *s = find(w, uid);
        if (!s || s->is_held)
            continue;
        const unsigned n_before = s->n_progress = s->n_progress / PROGRESS_WHOLE * PROGRESS_WHOLE;
        if (s->n > 0)
            send_progress(w, s, now);
        if (s->n == 0 || s->n_progress != n_before)
            drop(w, place_of(w, uid));
    }
    w->is_status_due = 1;
}

/* ---- rounds ---- */

static int keep_tokens(void *ctx, const pl_response *r, int n_before)
{
    worker *w = ctx;
    sample *s = find(w, r->uid);
    assert(s && !s->is_held && s->n == n_before && r->n_tokens <= s->max_tokens);
    const size_t at = (size_t)n_before, n = (size_t)(r->n_tokens - n_before);
    memcpy(s->tokens + at, r->tokens + at, n * sizeof *s->tokens);
    memcpy(s->logprobs + at, r->logprobs + at, n * sizeof *s->logprobs);
    memcpy(s->sources + at, r->token_source + at, n);
    s->n = r->n_tokens;
    s->draft = r->spec_num_draft_tokens;
    s->accepted = r->spec_num_accepted_tokens;
    s->steps = r->spec_num_verify_steps;
    w->n_emitted += (double)n;
    if (r->finish == PL_FINISH_NONE)
        return 0;
    s->finish = r->finish;
    s->is_held = 1;
    s->sent_ns = w->wire.now_ns(w->wire.ctx) - RESEND_NS; /* due */
    w->n_running--;
    w->is_status_due = 1;
    return 0;
}

pl_status worker_round(worker *w, pl_error *err)
{
    int n_left = 0;
    const int64_t begin = w->wire.now_ns(w->wire.ctx);
    const pl_status st = pl_engine_round(w->engine, keep_tokens, w, &n_left, err);
    if (st != PL_OK)
        return pl_wrap(err, st, "worker '%s'", w->o.name);
    w->busy_s += (double)(w->wire.now_ns(w->wire.ctx) - begin) * 1e-9;
    if (w->busy_s > RATE_S) {
        w->busy_s /= 2;
        w->n_emitted /= 2;
    }
    return PL_OK;
}
