/* rollout/round.c - one round of all running samples: the main data path.
 *
 * pl_engine_round is the place to start reading.  What a round emits is a function of weights,
 * prompts and keys alone; who runs, how many rows are drafted and how the pass is cut only decide
 * when. */
#include "rollout/internal.h"

#include <assert.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

double engine_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- work spread over the team, one sample at a time ---- */

typedef struct job_list {
    pl_engine *e;
    job_fn fn;
    int n;
    atomic_int next;
} job_list;

static void run_jobs_on_thread(void *ctx, int i_thread, int n_threads)
{
    job_list *list = ctx;
    (void)n_threads;
    for (;;) {
        const int i = atomic_fetch_add(&list->next, 1);
        if (i >= list->n)
            return;
        list->fn(list->e, list->e->jobs[i], i_thread);
    }
}

void engine_run_jobs(pl_engine *e, int n, job_fn fn)
{
    job_list list = {.e = e, .fn = fn, .n = n};
    if (n == 1)
        fn(e, e->jobs[0], 0);
    else if (n > 1)
        pl_team_run(pl_model_team(e->model), run_jobs_on_thread, &list);
}

/* ---- verification ---- */

pl_draw engine_draw_of(const sequence *s)
{
    return (pl_draw){.temperature = s->r.temperature,
        .top_k = s->r.top_k,
        .top_p = s->r.top_p,
        .min_p = s->r.min_p,
        .key = s->r.noise_key,
        .uid = s->r.uid,
        .position = (uint32_t)(s->r.n_prompt + s->n),
        .purpose = s->r.purpose};
}

typedef struct logits_source {
    const pl_engine *e;
    const work *w;
} logits_source;

static const float *logits_of_row(void *ctx, int i_row)
{
    const logits_source *l = ctx;
    return l->w->logits ? l->w->logits : pl_pass_logits(l->e->pass, l->w->i_seg, i_row);
}

/* Draw, append, and commit the rows of the accepted path. */
static void verify_job(pl_engine *e, work *w, int i_thread)
{
    sequence *s = w->s;
    const pl_draw draw = engine_draw_of(s);
    const int n_vocab = e->arch->n_vocab;
    logits_source source = {e, w};
    float *scratch = e->scratch + (size_t)i_thread * (size_t)pl_pad32(n_vocab);
    w->n_kept = 0;
    w->status = e->record ? recorded_verify(s, &w->draft, &w->verdict, &w->err)
                          : pl_verify(&w->draft, n_vocab, &draw, pl_model_ops(e->model),
                                logits_of_row, &source, scratch, &w->verdict, &w->err);
    if (w->status != PL_OK)
        return;
    w->n_kept = sequence_accept(e, s, &w->verdict);
    if (s->finish != PL_FINISH_NONE || w->draft.n == 1)
        return;
    if (e->record)
        s->kv.n_tokens += w->verdict.n;
    else
        pl_pass_commit(e->pass, e->pool, w->i_seg, w->verdict.row, w->verdict.n);
}

static int is_learned(const controller_item *it, int row)
{
    return it->kind[row] == ROW_LEARNED || it->kind[row] == ROW_BOTH;
}

/* Levels of the draft that were reached and held rows of the learned drafter, and those that held
 * the drawn token. */
static void count_levels(pl_engine_stats *st, const work *w)
{
    const controller_item *it = &w->item;
    const pl_draft *d = &it->proposal;
    int row = 0;
    for (int i = 0; i < w->n_kept && i < LEARNED_LEVELS && row >= 0; i++) {
        int n_rows = 0, next = -1;
        for (int k = row + 1; k < d->n; k++) {
            if (d->parent[k] != row || !it->keep[k])
                continue;
            n_rows += is_learned(it, k);
            next = d->token[k] == w->verdict.token[i] ? k : next;
        }
        st->n_reached[i] += n_rows > 0;
        st->n_hit[i] += next >= 0 && is_learned(it, next);
        row = next;
    }
}

static void count_verdict(pl_engine_stats *st, const work *w)
{
    st->n_verify_steps++;
    st->n_emitted += w->n_kept;
    st->n_draft += w->draft.n - 1;
    for (int k = 0; k < w->n_kept; k++) {
        st->n_accepted += w->verdict.source[k] != PL_SOURCE_TARGET;
        st->n_accepted_of[w->verdict.source[k]]++;
    }
    if (w->draft.n == 1)
        return;
    for (int k = 1; k < w->draft.n; k++)
        st->n_draft_of[w->draft.source[k]]++;
    st->n_drafted_steps++;
    st->n_drafted_emitted += w->n_kept;
    count_levels(st, w);
}

/* Decide n jobs; what siblings and the controller learn from them is written one after the other.
 */
static pl_status verify(pl_engine *e, int n, pl_error *err)
{
    engine_run_jobs(e, n, verify_job);
    for (int i = 0; i < n; i++) {
        work *w = e->jobs[i];
        sequence *s = w->s;
        if (w->status != PL_OK) {
            if (err)
                *err = w->err;
            return w->status;
        }
        s->n_verify++;
        s->n_draft += w->draft.n - 1;
        count_verdict(&e->stats, w);
        /* Short memory costs knowledge, not text: the cursor goes on without recording. */
        if (s->cursor)
            (void)pl_suffix_append(s->cursor, s->tokens + s->n - w->n_kept, w->n_kept, NULL);
    }
    return PL_OK;
}

/* The prompt's last row gave logits that all samples of the group draw from, each with its noise.
 */
static pl_status draw_first_tokens(pl_engine *e, pl_error *err)
{
    int n = 0;
    const double t = engine_seconds();
    for (int i = 0; i < e->n_running; i++) {
        sequence *s = e->running[i];
        if (!s->is_forked || s->n > 0)
            continue;
        work *w = &e->work[n];
        w->s = s;
        w->i_seg = -1;
        w->logits = s->group->logits;
        pl_draft_begin(&w->draft, 0);
        w->item.proposal.n = 1;
        e->jobs[n++] = w;
    }
    const pl_status st = verify(e, n, err);
    e->stats.verify_s += e->record ? n * e->record->draw_s : engine_seconds() - t;
    return st;
}

/* ---- planning the pass ---- */

int engine_known(const sequence *s)
{
    return s->r.n_prompt + s->n - 1;
}

static int is_decoding(const sequence *s)
{
    return s->is_forked && s->n > 0 && s->kv.n_tokens == engine_known(s);
}

static void add_segment(pl_engine *e, plan *p, sequence *s, pl_segment seg, int is_prefill)
{
    work *w = &e->work[p->n_segs];
    w->s = s;
    w->i_seg = p->n_segs;
    w->is_prefill = is_prefill;
    w->logits = NULL;
    w->item.proposal.n = 1;
    e->segs[p->n_segs++] = seg;
    p->rows_left -= seg.n_rows;
    p->n_rows += seg.n_rows;
    p->n_prefill += is_prefill ? seg.n_rows : 0;
}

/* A chunk of the prompt (once a group) or, after a preemption, of the response. */
static int plan_prefill(pl_engine *e, plan *p, sequence *s)
{
    group *g = s->group;
    const int is_prompt = !s->is_forked;
    pl_kv_seq *kv = is_prompt ? &g->kv : &s->kv;
    const int n_todo = (is_prompt ? g->n_prompt : engine_known(s)) - kv->n_tokens;
    int n = p->rows_left - p->n_decode_left;
    n = n < 1 ? 1 : n;
    n = n < n_todo ? n : n_todo;
    if (is_prompt && g->planned == e->round)
        return 1;
    if (!engine_reserve(e, s, kv, n))
        return 0;
    const pl_segment seg = {.kv = kv,
        .tokens = is_prompt ? g->prompt + kv->n_tokens : s->tokens + (kv->n_tokens - s->r.n_prompt),
        .n_rows = n,
        .n_logits = is_prompt && n == n_todo};
    if (is_prompt)
        g->planned = e->round;
    add_segment(e, p, s, seg, 1);
    return 1;
}

static int plan_decode(pl_engine *e, plan *p, sequence *s)
{
    if (!engine_reserve(e, s, &s->kv, 1))
        return 0;
    work *w = &e->work[p->n_segs];
    pl_draft_begin(&w->draft, s->tokens[s->n - 1]);
    const pl_segment seg = {.kv = &s->kv, .tokens = w->draft.token, .n_rows = 1, .n_logits = 1};
    add_segment(e, p, s, seg, 0);
    return 1;
}

/* From the oldest on, so that pages are only ever taken from samples that are not planned yet. */
static plan plan_rows(pl_engine *e)
{
    plan p = {.rows_left = e->o.max_rows};
    for (int i = 0; i < e->n_running; i++)
        p.n_decode_left += e->running[i]->finish == PL_FINISH_NONE && is_decoding(e->running[i]);
    for (int i = 0; i < e->n_running && p.rows_left > 0;) {
        sequence *s = e->running[i];
        int is_still_here = 1;
        if (s->finish == PL_FINISH_NONE && is_decoding(s)) {
            p.n_decode_left--;
            is_still_here = plan_decode(e, &p, s);
        } else if (s->finish == PL_FINISH_NONE) {
            is_still_here = plan_prefill(e, &p, s);
        }
        i += is_still_here;
    }
    return p;
}

/* ---- after the pass ---- */

/* Prompts that are complete now: keep the logits of their last row. */
static void settle_prompts(pl_engine *e, const plan *p)
{
    for (int i = 0; i < p->n_segs; i++) {
        const work *w = &e->work[i];
        group *g = w->s->group;
        if (!w->is_prefill || e->segs[i].n_logits == 0)
            continue;
        if (!e->record)
            memcpy(g->logits, pl_pass_logits(e->pass, i, e->segs[i].n_rows - 1),
                (size_t)e->arch->n_vocab * sizeof *g->logits);
        g->is_ready = 1;
    }
}

static void count_pass(
    pl_engine *e, const plan *p, double pass_s, int n_samples, int n_emitted, double verify_s)
{
    const double attention_s = e->record ? 0 : pl_pass_attention_seconds(e->pass);
    if (e->record) { /* nothing ran: the controller decides by what it would have taken */
        pass_s = recorded_pass_s(e, p->n_rows);
        verify_s = n_emitted * e->record->draw_s;
    }
    controller_observe_pass(
        &e->controller, p->n_rows, p->n_prefill == 0, pass_s, attention_s, n_emitted, verify_s);
    if (p->n_prefill == 0) {
        controller_observe_round(
            &e->controller, n_samples, n_emitted, p->draft_s, pass_s + verify_s);
        e->stats.n_passes[pl_cost_bucket(p->n_rows)]++;
        e->stats.passes_s[pl_cost_bucket(p->n_rows)] += pass_s;
    }
    e->stats.n_rows += p->n_rows;
    e->stats.n_prefill_rows += p->n_prefill;
    e->stats.pass_s += pass_s;
    e->stats.verify_s += verify_s;
}

static pl_status run_rows(pl_engine *e, const plan *p, pl_error *err)
{
    if (!e->record)
        return pl_pass_run(e->pass, e->pool, e->segs, p->n_segs, err);
    recorded_pass(e, p);
    return PL_OK;
}

static pl_status run_pass(pl_engine *e, plan *p, pl_error *err)
{
    int n = 0, n_emitted = 0;
    features_begin_pass(e);
    const double begin = engine_seconds();
    pl_status st = run_rows(e, p, err);
    if (st != PL_OK)
        return st;
    const double passed = engine_seconds();
    settle_prompts(e, p);
    for (int i = 0; i < p->n_segs; i++)
        if (!e->work[i].is_prefill)
            e->jobs[n++] = &e->work[i];
    st = verify(e, n, err);
    if (st != PL_OK)
        return st;
    features_settle(e, p);
    const double verified = engine_seconds();
    for (int i = 0; i < n; i++) {
        const work *w = e->jobs[i];
        n_emitted += w->n_kept;
        if (w->item.proposal.n > 1)
            controller_observe_item(&e->controller, &w->item, w->verdict.token, w->n_kept);
    }
    count_pass(e, p, passed - begin, n, n_emitted, verified - passed);
    return PL_OK;
}

/* Hand new tokens over and let go of what is done.  0: the callback wants to stop. */
static int report(pl_engine *e, pl_response_fn on_tokens, void *ctx)
{
    int n = 0, i = 0, is_stopped = 0;
    for (; i < e->n_running && !is_stopped; i++) {
        sequence *s = e->running[i];
        if (s->n > s->n_reported) {
            const pl_response r = {.uid = s->r.uid,
                .group = s->r.group,
                .n_prompt = s->r.n_prompt,
                .prompt = s->r.prompt,
                .n_tokens = s->n,
                .tokens = s->tokens,
                .logprobs = s->logprobs,
                .token_source = s->source,
                .finish = s->finish,
                .policy_version = e->version,
                .spec_num_draft_tokens = s->n_draft,
                .spec_num_accepted_tokens = s->n_accepted,
                .spec_num_verify_steps = s->n_verify,
                .temperature = s->r.temperature};
            const int n_before = s->n_reported;
            s->n_reported = s->n;
            is_stopped = on_tokens && on_tokens(ctx, &r, n_before) != 0;
        }
        if (s->finish == PL_FINISH_NONE) {
            e->running[n++] = s;
            continue;
        }
        s->group->n_running--;
        sequence_free(e, s);
    }
    for (; i < e->n_running; i++)
        e->running[n++] = e->running[i];
    e->n_running = n;
    return !is_stopped;
}

static void count_tail(pl_engine_stats *st, const pl_engine_stats *before)
{
    st->n_tail_emitted += st->n_emitted - before->n_emitted;
    st->n_tail_steps += st->n_verify_steps - before->n_verify_steps;
    st->tail_s += st->pass_s - before->pass_s + st->draft_s - before->draft_s + st->verify_s -
                  before->verify_s;
}

pl_status pl_engine_round(
    pl_engine *e, pl_response_fn on_tokens, void *ctx, int *n_left, pl_error *err)
{
    if (e->is_broken)
        return pl_fail(
            err, PL_E_INVAL, "engine: the last round failed midway; clear the engine first");
    e->round++;
    const pl_engine_stats before = e->stats;

    /* 1. Who runs; prompts that are in the cache give each sample its first token. */
    pl_status st = engine_admit(e, err);
    if (st != PL_OK)
        return st;
    engine_fork_ready(e);
    e->is_broken = 1; /* until this round is through */
    st = draw_first_tokens(e, err);
    if (st != PL_OK)
        return st;

    /* 2. One row for each that decodes, chunks of what must be prefilled. */
    plan p = plan_rows(e);

    /* 3. What is left of the pass goes to drafts, as far as they pay. */
    engine_draft(e, &p);

    /* 4. One pass scores all rows; each sample keeps what the target draws. */
    if (p.n_segs > 0) {
        st = run_pass(e, &p, err);
        if (st != PL_OK)
            return st;
    }
    e->stats.n_rounds++;
    e->is_broken = 0;
    if (e->n_running <= TAIL_RUNNING)
        count_tail(&e->stats, &before);

    /* 5. Report, and let go of what is done. */
    const int goes_on = report(e, on_tokens, ctx);
    *n_left = e->n_running + e->n_queued;
    return goes_on ? PL_OK : pl_fail(err, PL_E_STOPPED, "rollout stopped by its caller");
}

pl_status pl_engine_run(pl_engine *e, pl_response_fn on_tokens, void *ctx, pl_error *err)
{
    pl_status st = PL_OK;
    int n_left = e->n_running + e->n_queued;
    while (n_left > 0 && st == PL_OK)
        st = pl_engine_round(e, on_tokens, ctx, &n_left, err);
    return st;
}
