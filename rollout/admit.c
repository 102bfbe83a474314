/* rollout/admit.c - who runs, and on which pages.
 *
 * Samples queue by order of submission and run by it.  A prompt is prefilled once a group, into the
 * group's own pages; each sample forks them and copies the last one when it writes.
 *
 * Pages run out like this: first the prompts of groups that nobody runs from give theirs, then the
 * youngest running sample does and returns to the queue with its tokens, to be prefilled anew
 * (noise is keyed by position: the same text follows).  A sample takes from younger ones only, so
 * the oldest always goes on; and since pl_engine_submit refuses what cannot fit alone, it ends: no
 * deadlock. */
#include "rollout/internal.h"

#include <stdlib.h>
#include <string.h>

static int pages_of(int n_tokens)
{
    return (n_tokens + PL_BLOCK - 1) / PL_BLOCK;
}

/* ---- groups ---- */

void group_forget(pl_engine *e, group *g)
{
    features_forget(e, g);
    pl_kv_seq_clear(e->pool, &g->kv);
    g->is_ready = 0;
}

static void group_free(pl_engine *e, group *g)
{
    group **at = &e->groups;
    while (*at && *at != g)
        at = &(*at)->next;
    if (*at)
        *at = g->next;
    features_forget(e, g);
    pl_kv_seq_done(e->pool, &g->kv);
    store_put(&e->store, g->knowledge);
    free(g->logits);
    free(g->prompt);
    free(g);
}

pl_status group_get(pl_engine *e, const pl_request *r, group **out, pl_error *err)
{
    const size_t n_bytes = (size_t)r->n_prompt * sizeof *r->prompt;
    group *g = e->groups;
    while (g && g->id != r->group)
        g = g->next;
    if (g) {
        if (g->n_prompt != r->n_prompt || memcmp(g->prompt, r->prompt, n_bytes) != 0)
            return pl_fail(err, PL_E_INVAL,
                "sample %u: its prompt is not that of group %u; give it a group of its own", r->uid,
                r->group);
        *out = g;
        return PL_OK;
    }
    g = calloc(1, sizeof *g);
    if (g)
        g->prompt = malloc(n_bytes);
    if (!g || !g->prompt) {
        free(g);
        return pl_fail(
            err, PL_E_NOMEM, "sample %u: no memory for its group of %zu bytes", r->uid, n_bytes);
    }
    memcpy(g->prompt, r->prompt, n_bytes);
    g->id = r->group;
    g->n_prompt = r->n_prompt;
    g->place = -1;
    g->next = e->groups;
    e->groups = g;
    *out = g;
    return PL_OK;
}

/* ---- samples ---- */

void engine_queue(pl_engine *e, sequence *s)
{
    sequence **at = &e->queue;
    e->n_queued++;
    if (e->queue_last && e->queue_last->order < s->order) {
        s->next = NULL;
        e->queue_last->next = s;
        e->queue_last = s;
        return;
    }
    while (*at && (*at)->order < s->order)
        at = &(*at)->next;
    s->next = *at;
    *at = s;
    if (!s->next)
        e->queue_last = s;
}

static sequence *take_queued(pl_engine *e)
{
    sequence *s = e->queue;
    e->queue = s->next;
    if (!e->queue)
        e->queue_last = NULL;
    e->n_queued--;
    s->next = NULL;
    return s;
}

/* All memory of a response is taken before it runs, none in its rounds. */
int sequence_alloc(sequence *s)
{
    const size_t n = (size_t)s->r.max_tokens;
    if (!s->tokens)
        s->tokens = malloc(n * sizeof *s->tokens);
    if (!s->logprobs)
        s->logprobs = malloc(n * sizeof *s->logprobs);
    if (!s->source)
        s->source = malloc(n);
    if (!s->tail && s->tail_max > 0)
        s->tail = malloc(2 * (size_t)s->tail_max);
    return s->tokens && s->logprobs && s->source && (s->tail_max == 0 || s->tail);
}

void sequence_free(pl_engine *e, sequence *s)
{
    group *g = s->group;
    features_close(e, s);
    pl_kv_seq_done(e->pool, &s->kv);
    pl_suffix_cursor_free(s->cursor);
    free(s->tokens);
    free(s->logprobs);
    free(s->source);
    free(s->tail);
    free(s);
    if (g && --g->n_live == 0)
        group_free(e, g);
}

static void take_running(pl_engine *e, int i)
{
    e->running[i]->group->n_running--;
    memmove(
        &e->running[i], &e->running[i + 1], (size_t)(e->n_running - 1 - i) * sizeof(sequence *));
    e->n_running--;
}

sequence *engine_take(pl_engine *e, uint32_t uid)
{
    for (int i = 0; i < e->n_running; i++) {
        sequence *s = e->running[i];
        if (s->r.uid != uid)
            continue;
        take_running(e, i);
        return s;
    }
    sequence *before = NULL, *s = e->queue;
    while (s && s->r.uid != uid) {
        before = s;
        s = s->next;
    }
    if (!s)
        return NULL;
    *(before ? &before->next : &e->queue) = s->next;
    if (e->queue_last == s)
        e->queue_last = before;
    s->next = NULL;
    e->n_queued--;
    return s;
}

void engine_preempt(pl_engine *e, sequence *s)
{
    int i = 0;
    while (e->running[i] != s)
        i++;
    take_running(e, i);
    e->stats.n_preempted += s->kv.n_tokens > 0;
    features_close(e, s);
    pl_kv_seq_clear(e->pool, &s->kv);
    s->is_forked = 0;
    engine_queue(e, s);
}

/* ---- pages ---- */

/* Forget one prompt that nobody runs from, other than keep.  0: there is none. */
static int drop_idle_prompt(pl_engine *e, const group *keep)
{
    for (group *g = e->groups; g; g = g->next)
        if (g != keep && g->n_running == 0 && g->kv.n_pages > 0) {
            group_forget(e, g);
            return 1;
        }
    return 0;
}

static int give_pages(pl_engine *e, sequence *s)
{
    group *g = s->group;
    if (drop_idle_prompt(e, NULL))
        return 1;
    sequence *youngest = e->running[e->n_running - 1];
    if (youngest->order > s->order) {
        engine_preempt(e, youngest);
        return 1;
    }
    /* Nobody else runs from this prompt: the sample's fork is all that is needed of it. */
    if (s->is_forked && g->n_running == 1 && g->kv.n_pages > 0) {
        group_forget(e, g);
        return 1;
    }
    return 0;
}

int engine_reserve(pl_engine *e, sequence *s, pl_kv_seq *kv, int n)
{
    while (pl_kv_reserve(e->pool, kv, n, NULL) != PL_OK)
        if (!give_pages(e, s)) {
            engine_preempt(e, s);
            return 0;
        }
    return 1;
}

/* ---- admission ---- */

/* Pages that a sample takes soon: its prompt's, its own, and a copy of the prompt's last one. */
static int pages_to_start(const sequence *s)
{
    const group *g = s->group;
    int n = pages_of(g->n_prompt + s->n + 1) - pages_of(g->n_prompt);
    if (g->kv.n_pages == 0 && g->n_running == 0)
        n += pages_of(g->n_prompt);
    return n + (g->n_prompt % PL_BLOCK != 0);
}

/* One page of headroom for each that runs keeps preemption rare. */
static int can_start(pl_engine *e, const sequence *s)
{
    if (e->n_running == 0)
        return 1;
    do {
        if (pl_kv_pool_free_pages(e->pool) >= pages_to_start(s) + e->n_running)
            return 1;
    } while (drop_idle_prompt(e, s->group));
    return 0;
}

static int prepare_group(pl_engine *e, group *g, uint64_t prompt_key)
{
    if (!g->logits) {
        g->logits = malloc((size_t)e->arch->n_vocab * sizeof *g->logits);
        if (!g->logits)
            return 0;
    }
    if (!g->kv.pages && pl_kv_seq_init(&g->kv, g->n_prompt, NULL) != PL_OK)
        return 0;
    if (e->is_speculative && !g->knowledge)
        g->knowledge = store_get(&e->store, prompt_key, g->prompt, g->n_prompt);
    return 1;
}

/* The sample's place in what is known of its prompt; a prefix is its own text like any other.  A
 * sample without a cursor is decoded plainly: the same text. */
static void prepare_cursor(pl_engine *e, sequence *s)
{
    if (!e->is_speculative || !s->group->knowledge || s->cursor || s->n != s->r.n_prefix)
        return;
    if (pl_suffix_cursor_new(&s->cursor, s->group->knowledge->suffix, NULL) != PL_OK) {
        s->cursor = NULL;
        return;
    }
    /* Short memory costs knowledge, not text: the cursor goes on without recording. */
    (void)pl_suffix_append(s->cursor, s->tokens, s->n, NULL);
}

static int prepare(pl_engine *e, sequence *s)
{
    if (!prepare_group(e, s->group, s->r.prompt_key) || !sequence_alloc(s))
        return 0;
    if (!s->kv.pages && pl_kv_seq_init(&s->kv, s->r.n_prompt + s->r.max_tokens, NULL) != PL_OK)
        return 0;
    prepare_cursor(e, s);
    return 1;
}

pl_status engine_admit(pl_engine *e, pl_error *err)
{
    while (e->queue && e->n_running < e->o.max_num_seqs && can_start(e, e->queue)) {
        sequence *s = e->queue;
        if (!prepare(e, s)) {
            if (e->n_running > 0)
                return PL_OK; /* when others are done there may be memory */
            return pl_fail(err, PL_E_NOMEM, "sample %u: no memory for a response of %d tokens",
                s->r.uid, s->r.max_tokens);
        }
        take_queued(e);
        int i = e->n_running++;
        for (; i > 0 && e->running[i - 1]->order > s->order; i--)
            e->running[i] = e->running[i - 1];
        e->running[i] = s;
        s->group->n_running++;
    }
    return PL_OK;
}

void engine_fork_ready(pl_engine *e)
{
    for (int i = 0; i < e->n_running; i++) {
        sequence *s = e->running[i];
        if (s->is_forked || !s->group->is_ready)
            continue;
        pl_kv_fork(e->pool, &s->group->kv, &s->kv);
        s->is_forked = 1;
        features_open(e, s);
    }
}
