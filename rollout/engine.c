/* rollout/engine.c - life of the engine: its memory, its queue, its options. */
#include "rollout/internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const size_t SUFFIX_TOKEN_BYTES = 160; /* an automaton takes, about */

void pl_engine_defaults(pl_engine_options *o)
{
    *o = (pl_engine_options){.max_num_seqs = 64,
        .max_rows = 256,
        .max_ctx = 2048,
        .speculative = 1,
        .controller = PL_CONTROLLER_GOODPUT,
        .fixed_rows = 8,
        .max_spec_rows = 16,
        .max_spec_depth = 8,
        .learned_depth = 6,
        .learned_topk = 4,
        .suffix = {.min_match = 0, .max_tokens = 1 << 16, .decay = 0.7f}};
}

/* ---- memory ---- */

static size_t available_bytes(void)
{
    unsigned long long kb = 0;
    char line[128];
    FILE *f = fopen("/proc/meminfo", "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kb) == 1)
            break;
    if (f)
        fclose(f);
    return kb ? (size_t)kb * 1024 : (size_t)1 << 30;
}

static int pages_of(int n_tokens)
{
    return (n_tokens + PL_BLOCK - 1) / PL_BLOCK;
}

static int plan_pages(const pl_arch *a, const pl_engine_options *o)
{
    const size_t page = pl_kv_page_bytes(a);
    const size_t full = (size_t)o->max_num_seqs * (size_t)(pages_of(o->max_ctx) + 1);
    size_t n = o->kv_bytes / page;
    if (o->kv_bytes == 0) {
        const size_t half = available_bytes() / 2 / page;
        n = full < half ? full : half;
    }
    n = n < full ? n : full; /* more could never be used, but for idle prompts */
    return n < 1 ? 1 : (int)n;
}

static pl_pass_options pass_options(const pl_engine_options *o)
{
    const int decode = o->max_num_seqs < o->max_rows ? o->max_num_seqs : o->max_rows;
    return (pl_pass_options){.max_rows = o->max_rows,
        .max_logits = o->speculative ? o->max_rows : decode,
        .max_segments = o->max_num_seqs,
        .max_ctx = o->max_ctx,
        .tree = o->speculative};
}

static size_t sample_bytes(void)
{
    return sizeof(work) + sizeof(work *) + sizeof(controller_item *) + sizeof(pl_segment) +
           sizeof(sequence *) + sizeof(sequence);
}

size_t pl_engine_plan(const pl_arch *arch, const pl_engine_options *o, int n_threads)
{
    const pl_pass_options po = pass_options(o);
    const size_t vocab = (size_t)pl_pad32(arch->n_vocab) * sizeof(float);
    const size_t n_groups = ((size_t)o->max_num_seqs + 7) / 8; /* of 8 samples, as a guess */
    const size_t knowledge =
        o->speculative ? (size_t)STORE_AUTOMATA * (size_t)o->suffix.max_tokens : 0;
    return pl_pass_plan(arch, &po, n_threads) +
           (size_t)plan_pages(arch, o) * pl_kv_page_bytes(arch) +
           (size_t)o->max_num_seqs * sample_bytes() + ((size_t)n_threads + n_groups) * vocab +
           knowledge * SUFFIX_TOKEN_BYTES + features_plan(arch, o, n_threads) + controller_plan(o);
}

static pl_status check_options(const pl_engine_options *o, const pl_arch *a, pl_error *err)
{
    if (o->max_num_seqs < 1 || o->max_num_seqs > 1024)
        return pl_fail(err, PL_E_INVAL, "max_num_seqs %d is not in 1..1024", o->max_num_seqs);
    if (o->max_rows < 1 || o->max_rows > 1 << 16)
        return pl_fail(err, PL_E_INVAL, "max_rows %d is not in 1..65536", o->max_rows);
    if (o->max_ctx < 2 || o->max_ctx > a->n_ctx)
        return pl_fail(err, PL_E_INVAL, "max_ctx %d is not in 2..%d, the context of the model",
            o->max_ctx, a->n_ctx);
    if (!o->speculative)
        return PL_OK;
    if (o->max_spec_rows < 1 || o->max_spec_rows > PL_DRAFT_MAX || o->max_spec_depth < 1)
        return pl_fail(err, PL_E_INVAL, "drafts of %d rows and %d levels: 1..%d rows, 1 or more",
            o->max_spec_rows, o->max_spec_depth, PL_DRAFT_MAX);
    if (o->controller == PL_CONTROLLER_FIXED && o->fixed_rows < 1)
        return pl_fail(err, PL_E_INVAL, "fixed_rows %d is less than 1", o->fixed_rows);
    if (o->learned_window < 0 ||
        (o->learned_window > 0 && (o->learned_depth < 1 || o->learned_topk < 1)))
        return pl_fail(err, PL_E_INVAL,
            "learned_window %d, learned_depth %d, learned_topk %d: 0 or more, 1 or more, 1 or more",
            o->learned_window, o->learned_depth, o->learned_topk);
    /* The same checks as the drafter's own, before any sample meets them. */
    pl_suffix *s = NULL;
    const pl_status st = pl_suffix_new(&s, &o->suffix, err);
    pl_suffix_free(s);
    return st;
}

static int suffix_propose(
    sequence *s, const pl_draw *draw, int max_rows, int max_depth, pl_draft *draft, float *expected)
{
    return pl_suffix_propose(s->cursor, draw, max_rows, max_depth, draft, expected);
}

static pl_status allocate(pl_engine *e, pl_error *err)
{
    const size_t n = (size_t)e->o.max_num_seqs;
    const size_t n_threads = (size_t)pl_team_size(pl_model_team(e->model));
    const pl_pass_options po = pass_options(&e->o);
    const pl_arch pages = e->record ? recorded_arch(e->arch) : *e->arch;
    pl_status st = e->record ? PL_OK : pl_pass_new(&e->pass, e->model, &po, err);
    if (st != PL_OK)
        return st;
    e->n_pages = plan_pages(e->arch, &e->o);
    st = pl_kv_pool_new(&e->pool, &pages, e->n_pages, err);
    if (st != PL_OK)
        return st;
    if (e->o.prefault && !e->record)
        pl_kv_pool_prefault(e->pool);
    st = controller_init(&e->controller, &e->o, err);
    if (st != PL_OK)
        return st;
    e->running = calloc(n, sizeof *e->running);
    e->work = calloc(n, sizeof *e->work);
    e->jobs = calloc(n, sizeof *e->jobs);
    e->items = calloc(n, sizeof *e->items);
    e->segs = calloc(n, sizeof *e->segs);
    e->scratch =
        aligned_alloc(64, n_threads * (size_t)pl_pad32(e->arch->n_vocab) * sizeof *e->scratch);
    if (!e->running || !e->work || !e->jobs || !e->items || !e->segs || !e->scratch)
        return pl_fail(err, PL_E_NOMEM, "no memory for %zu samples", n);
    return features_new(e, err);
}

static pl_status make_engine(pl_engine **out, pl_model *model, const pl_tokenizer *tok,
    const pl_engine_options *o, const pl_recorded *record, const pl_log *log, pl_error *err)
{
    pl_status st = check_options(o, pl_model_arch(model), err);
    if (st != PL_OK)
        return pl_wrap(err, st, "engine");
    pl_engine *e = calloc(1, sizeof *e);
    if (!e)
        return pl_fail(err, PL_E_NOMEM, "engine: no memory");
    e->o = *o;
    e->model = model;
    e->arch = pl_model_arch(model);
    e->tok = tok;
    e->record = record;
    e->log = log;
    e->is_speculative = o->speculative;
    e->propose = suffix_propose;
    e->store.o = o->suffix;
    st = allocate(e, err);
    if (st != PL_OK) {
        pl_engine_free(e);
        return pl_wrap(err, st, "engine");
    }
    pl_log_debug(log, "engine kv_pages=%d max_num_seqs=%d max_rows=%d speculative=%d", e->n_pages,
        o->max_num_seqs, o->max_rows, o->speculative);
    *out = e;
    return PL_OK;
}

pl_status pl_engine_new(pl_engine **out, pl_model *model, const pl_tokenizer *tok,
    const pl_engine_options *o, const pl_log *log, pl_error *err)
{
    return make_engine(out, model, tok, o, NULL, log, err);
}

pl_status pl_engine_new_recorded(pl_engine **out, pl_model *model, const pl_engine_options *o,
    const pl_recorded *record, const pl_log *log, pl_error *err)
{
    if (o->speculative && o->learned_window > 0 && !record->features)
        return pl_fail(err, PL_E_INVAL, "engine: a learned drafter, and a record without features");
    return make_engine(out, model, NULL, o, record, log, err);
}

void pl_engine_clear(pl_engine *e)
{
    for (int i = 0; i < e->n_running; i++)
        sequence_free(e, e->running[i]);
    e->n_running = 0;
    while (e->queue) {
        sequence *next = e->queue->next;
        sequence_free(e, e->queue);
        e->queue = next;
    }
    e->queue_last = NULL;
    e->n_queued = 0;
    e->is_broken = 0;
}

void pl_engine_free(pl_engine *e)
{
    if (!e)
        return;
    pl_engine_clear(e);
    features_done(e);
    store_done(&e->store);
    controller_done(&e->controller);
    pl_pass_free(e->pass);
    pl_kv_pool_free(e->pool);
    free(e->running);
    free(e->work);
    free(e->jobs);
    free(e->items);
    free(e->segs);
    free(e->scratch);
    free(e);
}

/* ---- requests ---- */

static pl_status check_prefix(const pl_engine *e, const pl_request *r, pl_error *err)
{
    if (r->n_prefix < 0 || (r->n_prefix > 0 && (!r->prefix || !r->prefix_logprobs)))
        return pl_fail(err, PL_E_INVAL,
            "prefix of %d tokens: 0 or more, with their ids and log-probs", r->n_prefix);
    if (r->n_prefix >= r->max_tokens)
        return pl_fail(err, PL_E_INVAL,
            "prefix of %d tokens ends a response of at most %d (its length); report it as done",
            r->n_prefix, r->max_tokens);
    for (int i = 0; i < r->n_prefix; i++)
        if (r->prefix[i] < 0 || r->prefix[i] >= e->arch->n_vocab)
            return pl_fail(err, PL_E_INVAL, "prefix token %d is id %d, the vocabulary has %d", i,
                (int)r->prefix[i], e->arch->n_vocab);
    return PL_OK;
}

static pl_status check_request(const pl_engine *e, const pl_request *r, pl_error *err)
{
    if (!(r->temperature >= 0) || isinf(r->temperature))
        return pl_fail(err, PL_E_INVAL, "temperature %g is not 0 or more", (double)r->temperature);
    if (r->top_k < 0 || !(r->top_p > 0) || r->top_p > 1 || !(r->min_p >= 0) || r->min_p > 1)
        return pl_fail(err, PL_E_INVAL,
            "top_k %d, top_p %g, min_p %g: top_k is 0 or more, top_p in (0, 1], min_p in [0, 1]",
            r->top_k, (double)r->top_p, (double)r->min_p);
    if (r->n_prompt < 1 || r->max_tokens < 1)
        return pl_fail(err, PL_E_INVAL, "prompt of %d tokens, response of %d: both at least 1",
            r->n_prompt, r->max_tokens);
    for (int i = 0; i < r->n_prompt; i++)
        if (r->prompt[i] < 0 || r->prompt[i] >= e->arch->n_vocab)
            return pl_fail(err, PL_E_INVAL, "prompt token %d is id %d, the vocabulary has %d", i,
                (int)r->prompt[i], e->arch->n_vocab);
    if (r->n_stop > 0 && !e->tok)
        return pl_fail(err, PL_E_INVAL, "stop strings need a tokenizer");
    for (int i = 0; i < r->n_stop; i++) {
        const size_t n = strlen(r->stop[i]);
        if (n < 1 || n > MAX_STOP_BYTES)
            return pl_fail(err, PL_E_INVAL, "stop string %d has %zu bytes, 1..%d are allowed", i, n,
                MAX_STOP_BYTES);
    }
    const long total = (long)r->n_prompt + r->max_tokens;
    if (total > e->o.max_ctx)
        return pl_fail(err, PL_E_SHAPE,
            "prompt of %d and response of %d tokens are %ld over the context of %d", r->n_prompt,
            r->max_tokens, total - e->o.max_ctx, e->o.max_ctx);
    if (pages_of((int)total - 1) > e->n_pages)
        return pl_fail(err, PL_E_SHAPE,
            "prompt of %d and response of %d tokens need %d pages of the KV cache, it has %d; "
            "give it more memory",
            r->n_prompt, r->max_tokens, pages_of((int)total - 1), e->n_pages);
    return check_prefix(e, r, err);
}

/* A sample of its own, of no group yet; with the tokens of its prefix. */
static pl_status make_sequence(pl_engine *e, const pl_request *r, sequence **out, pl_error *err)
{
    sequence *s = calloc(1, sizeof *s);
    if (!s)
        return pl_fail(err, PL_E_NOMEM, "no memory to queue it");
    s->r = *r;
    s->place = -1;
    for (int i = 0; i < r->n_stop; i++) {
        const int n = (int)strlen(r->stop[i]);
        s->tail_max = n > s->tail_max ? n : s->tail_max;
    }
    if (r->n_prefix > 0) {
        pl_status st = PL_OK;
        if (!sequence_alloc(s))
            st = pl_fail(err, PL_E_NOMEM, "no memory for a response of %d tokens", r->max_tokens);
        else
            st = sequence_resume(e, s, err);
        if (st != PL_OK) {
            sequence_free(e, s);
            return st;
        }
    }
    s->r.prefix = NULL; /* copied: the caller's arrays may go */
    s->r.prefix_logprobs = NULL;
    s->r.prefix_source = NULL;
    *out = s;
    return PL_OK;
}

pl_status pl_engine_submit(pl_engine *e, const pl_request *r, pl_error *err)
{
    group *g = NULL;
    sequence *s = NULL;
    if (e->is_broken)
        return pl_fail(err, PL_E_INVAL,
            "sample %u: the last round failed midway; clear the engine first", r->uid);
    pl_status st = check_request(e, r, err);
    if (st == PL_OK)
        st = make_sequence(e, r, &s, err);
    if (st == PL_OK && e->record)
        st = recorded_take(e, s, err);
    if (st != PL_OK) {
        if (s)
            sequence_free(e, s);
        return pl_wrap(err, st, "sample %u", r->uid);
    }
    st = group_get(e, r, &g, err);
    if (st != PL_OK) {
        sequence_free(e, s);
        return st;
    }
    s->group = g;
    s->order = e->next_order++;
    g->n_live++;
    engine_queue(e, s);
    return PL_OK;
}

int pl_engine_cancel(pl_engine *e, uint32_t uid)
{
    sequence *s = engine_take(e, uid);
    if (!s)
        return 0;
    sequence_free(e, s);
    return 1;
}

void pl_engine_counts(const pl_engine *e, int *n_running, int *n_queued)
{
    *n_running = e->n_running;
    *n_queued = e->n_queued;
}

/* ---- versions, counters ---- */

pl_status pl_engine_new_version(pl_engine *e, uint32_t version, pl_error *err)
{
    if (e->n_running > 0)
        return pl_fail(err, PL_E_INVAL,
            "engine: new weights while %d samples run; finish or clear them first", e->n_running);
    for (group *g = e->groups; g; g = g->next)
        group_forget(e, g);
    for (sequence *s = e->queue; s; s = s->next)
        if (s->n > 0)
            return pl_fail(err, PL_E_INVAL,
                "engine: new weights while sample %u waits half done; finish or clear it first",
                s->r.uid);
    e->version = version;
    store_age(&e->store);
    controller_new_drafter(&e->controller);
    return PL_OK;
}

void pl_engine_set_speculative(pl_engine *e, int on)
{
    e->is_speculative = on && e->o.speculative;
}

void pl_engine_get_stats(const pl_engine *e, pl_engine_stats *s)
{
    *s = e->stats;
}

void pl_engine_reset_stats(pl_engine *e)
{
    memset(&e->stats, 0, sizeof e->stats);
}
