/* rollout/features.c - the target's features of rows that stay in the cache, on their way to the
 * learned drafter and into windows.
 *
 * The pass writes the features of all its rows in passing; after verification those of the accepted
 * path are known.  The row that processed token x_t belongs to position t, the prompt counted.
 *
 * A prompt has a place of its own with the learned drafter, which its samples fork; it is taken
 * away when places run short.  A sample without a place is drafted for by the suffix drafter. */
#include "rollout/internal.h"

#include <stdlib.h>
#include <string.h>

enum { PROMPT_PLACES = 16 }; /* beside those of samples, at most */

static pl_learned_options learned_options(const pl_engine_options *o)
{
    const int n = o->max_num_seqs;
    return (pl_learned_options){.max_places = n + (n < PROMPT_PLACES ? n : PROMPT_PLACES),
        .window = o->learned_window,
        .max_rows = controller_max_proposal(o),
        .max_depth = controller_max_levels(o),
        .topk = o->learned_topk < LEARNED_TOPK_MAX ? o->learned_topk : LEARNED_TOPK_MAX};
}

static int has_learned(const pl_engine_options *o)
{
    return o->speculative && o->learned_window > 0;
}

static size_t row_bytes(const pl_arch *a)
{
    return PL_FEATURE_LAYERS * (size_t)pl_pad32(a->n_embd) * sizeof(uint16_t);
}

size_t features_plan(const pl_arch *a, const pl_engine_options *o, int n_threads)
{
    if (!has_learned(o))
        return 0;
    const pl_learned_options lo = learned_options(o);
    return pl_learned_plan(a, &lo, n_threads) + (size_t)o->max_rows * row_bytes(a) +
           (size_t)o->max_num_seqs * sizeof(pl_learned_ask);
}

pl_status features_new(pl_engine *e, pl_error *err)
{
    e->features.room = e->o.max_rows;
    if (!has_learned(&e->o))
        return PL_OK;
    const pl_learned_options lo = learned_options(&e->o);
    e->asks = calloc((size_t)e->o.max_num_seqs, sizeof *e->asks);
    e->features.rows = malloc((size_t)e->o.max_rows * row_bytes(e->arch));
    if (!e->asks || !e->features.rows)
        return pl_fail(err, PL_E_NOMEM, "no memory for the features of %d rows", e->o.max_rows);
    return pl_learned_new(&e->learned, e->model, &lo, err);
}

void features_done(pl_engine *e)
{
    windows_done(e);
    pl_learned_free(e->learned);
    e->learned = NULL;
    free(e->asks);
    free(e->features.rows);
    e->features.rows = NULL;
}

static int feeds_learned(const pl_engine *e)
{
    return e->learned && e->is_speculative;
}

void features_begin_pass(pl_engine *e)
{
    const int is_wanted = feeds_learned(e) || e->windows.fn;
    if (e->record)
        return;
    pl_pass_set_features(e->pass, is_wanted ? &e->features : NULL);
}

/* ---- places ---- */

static void close_place(pl_engine *e, int *place)
{
    if (*place >= 0)
        pl_learned_close(e->learned, *place);
    *place = -1;
}

/* A place, if need be one of a prompt other than keep: of one that no queued sample waits for
 * first.  -1: none. */
static int open_place(pl_engine *e, const group *keep)
{
    const int place = pl_learned_open(e->learned);
    group *victim = NULL;
    if (place >= 0)
        return place;
    for (group *g = e->groups; g; g = g->next)
        if (g->place >= 0 && g != keep && (!victim || g->n_running == g->n_live))
            victim = g;
    if (!victim)
        return -1;
    close_place(e, &victim->place);
    return pl_learned_open(e->learned);
}

void features_open(pl_engine *e, sequence *s)
{
    windows_open(e, s);
    if (!feeds_learned(e) || s->place >= 0)
        return;
    s->place = open_place(e, s->group);
    if (s->place >= 0 && s->group->place >= 0)
        pl_learned_fork(e->learned, s->place, s->group->place);
}

void features_close(pl_engine *e, sequence *s)
{
    windows_close(e, s);
    close_place(e, &s->place);
}

void features_forget(pl_engine *e, group *g)
{
    windows_forget(e, g);
    close_place(e, &g->place);
}

/* ---- rows of a pass ---- */

static void feed(pl_engine *e, int place, int position, const int32_t *tokens, size_t i_row, int n)
{
    const size_t stride = PL_FEATURE_LAYERS * (size_t)pl_pad32(e->arch->n_embd);
    pl_learned_feed(
        e->learned, place, position, tokens, e->features.rows + i_row * stride, stride, n);
}

static void settle_prompt(pl_engine *e, group *g, int position, size_t i_row, int n)
{
    windows_take_prompt(e, g, position, i_row, n);
    /* What lies further back than the drafter looks is not worth the copy. */
    const int first = g->n_prompt - e->o.learned_window;
    const int skip = first > position ? first - position : 0;
    if (!feeds_learned(e) || skip >= n)
        return;
    if (g->place < 0)
        g->place = open_place(e, g);
    if (g->place >= 0)
        feed(e, g->place, position + skip, g->prompt + position + skip, i_row + (size_t)skip,
            n - skip);
}

/* is_known: the tokens were drawn before, here or elsewhere. */
static void settle_response(pl_engine *e, sequence *s, int position, const int32_t *tokens,
    size_t i_row, int n, int is_known)
{
    windows_take(e, s, position, tokens, i_row, n, is_known);
    if (feeds_learned(e) && s->place >= 0 && s->finish == PL_FINISH_NONE)
        feed(e, s->place, position, tokens, i_row, n);
}

/* The accepted path, in pieces of rows that follow one another. */
static void settle_draft(pl_engine *e, const work *w, size_t i_row)
{
    const int position = engine_known(w->s) - w->n_kept;
    const int16_t *row = w->verdict.row;
    for (int i = 0, n; i < w->n_kept; i += n) {
        for (n = 1; i + n < w->n_kept && row[i + n] == row[i] + n;)
            n++;
        settle_response(
            e, w->s, position + i, w->draft.token + row[i], i_row + (size_t)row[i], n, 0);
    }
    windows_settle(e, w->s);
}

void features_settle(pl_engine *e, const plan *p)
{
    size_t i_row = 0;
    if (!feeds_learned(e) && !e->windows.fn)
        return;
    if (e->record)
        recorded_features(e, p);
    for (int i = 0; i < p->n_segs; i++) {
        const work *w = &e->work[i];
        const pl_segment *seg = &e->segs[i];
        const int position = seg->kv->n_tokens - seg->n_rows; /* of a chain */
        if (!w->is_prefill)
            settle_draft(e, w, i_row);
        else if (seg->kv == &w->s->group->kv)
            settle_prompt(e, w->s->group, position, i_row, seg->n_rows);
        else
            settle_response(e, w->s, position, seg->tokens, i_row, seg->n_rows, 1);
        i_row += (size_t)seg->n_rows;
    }
}

/* ---- drafters ---- */

static int has_same_vocab(const pl_eagle *a, const pl_eagle *b)
{
    const int n = pl_eagle_n_vocab(a);
    return pl_eagle_n_vocab(b) == n &&
           memcmp(pl_eagle_vocab(a), pl_eagle_vocab(b), (size_t)n * sizeof(int32_t)) == 0;
}

pl_status pl_engine_set_drafter(pl_engine *e, const pl_eagle *drafter, pl_error *err)
{
    if (!e->learned)
        return drafter ? pl_fail(err, PL_E_INVAL,
                             "engine: a learned drafter, and it was made without room for one "
                             "(speculative and learned_window)")
                       : PL_OK;
    if (drafter && e->eagle && e->n_running > 0 && !has_same_vocab(drafter, e->eagle))
        return pl_fail(err, PL_E_TIMEOUT,
            "engine: a drafter with another vocabulary waits until no sample runs");
    const pl_status st = pl_learned_set(e->learned, drafter, err);
    if (st != PL_OK)
        return pl_wrap(err, st, "engine");
    e->eagle = drafter;
    for (int i = 0; i < e->n_running; i++)
        windows_serve(e->running[i]);
    e->stats.n_swaps++;
    e->stats.n_before_steps = e->stats.n_drafted_steps;
    e->stats.n_before_emitted = e->stats.n_drafted_emitted;
    controller_new_drafter(&e->controller);
    return PL_OK;
}
