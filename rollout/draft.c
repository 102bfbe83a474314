/* rollout/draft.c - trees for the samples that decode: the suffix drafter's, then the learned
 * drafter's rows beside them, and of both what pays. */
#include "rollout/internal.h"

#include <assert.h>

/* Tokens that a draft may hold beyond the one that comes anyway. */
static int room_of(const pl_engine *e, const sequence *s)
{
    const int room = s->r.max_tokens - s->n - 1;
    return room < e->o.max_spec_depth ? room : e->o.max_spec_depth;
}

static void propose_job(pl_engine *e, work *w, int i_thread)
{
    sequence *s = w->s;
    const int depth = room_of(e, s), max_rows = w->item.n_keep;
    (void)i_thread;
    w->draw = engine_draw_of(s);
    w->item.expected[0] = 1;
    pl_draft_begin(&w->item.proposal, s->tokens[s->n - 1]);
    if (depth > 0 && max_rows > 1 && s->cursor)
        e->propose(s, &w->draw, max_rows, depth, &w->item.proposal, w->item.expected);
    controller_describe(&w->item, 0);
}

static void propose_suffix(pl_engine *e, int n, int rows)
{
    int n_proposed = 0;
    const double t = engine_seconds();
    for (int i = 0; i < n; i++)
        e->jobs[i]->item.n_keep = rows + 1;
    engine_run_jobs(e, n, propose_job);
    for (int i = 0; i < n; i++)
        n_proposed += e->jobs[i]->item.proposal.n - 1;
    controller_observe_draft(&e->controller, n_proposed, engine_seconds() - t);
}

/* All of the sample that is in the cache is known to the learned drafter. */
static int can_learn(const pl_engine *e, const sequence *s)
{
    return e->eagle && s->place >= 0 &&
           pl_learned_position(e->learned, s->place) == engine_known(s);
}

static void propose_learned(pl_engine *e, int n, const controller_offer_rows *o)
{
    int n_asks = 0;
    const double t = engine_seconds();
    pl_learned_stats stats;
    for (int i = 0; i < n && n_asks < o->n_asks; i++) {
        work *w = e->jobs[i];
        const int depth = room_of(e, w->s), rows = w->item.proposal.n + o->learned;
        if (depth < 1 || !can_learn(e, w->s))
            continue;
        e->asks[n_asks++] = (pl_learned_ask){.place = w->s->place,
            .draw = &w->draw,
            .max_rows = rows < o->most ? rows : o->most,
            .max_depth = depth < o->levels ? depth : o->levels,
            .draft = &w->item.proposal,
            .expected = w->item.expected};
    }
    if (n_asks == 0)
        return;
    pl_learned_propose(e->learned, e->asks, n_asks);
    pl_learned_get_stats(e->learned, &stats, 1);
    controller_observe_learned(&e->controller, n, n_asks, &stats, engine_seconds() - t);
    for (int i = 0, k = 0; i < n && k < n_asks; i++)
        if (e->asks[k].draft == &e->jobs[i]->item.proposal) {
            controller_describe(&e->jobs[i]->item, 1);
            k++;
        }
}

/* The rows that were chosen, as the tree to verify.  0 when pages are short: decode plainly then.
 */
static int take_chosen(pl_engine *e, work *w)
{
    const pl_draft *all = &w->item.proposal;
    pl_draft *d = &w->draft;
    int16_t at[PL_DRAFT_MAX] = {0};
    int depth = 0;
    for (int i = 1; i < all->n; i++) {
        if (!w->item.keep[i])
            continue;
        assert(w->item.keep[all->parent[i]]);
        at[i] = (int16_t)pl_draft_add(
            d, at[all->parent[i]], all->token[i], (pl_draft_source)all->source[i], PL_DRAFT_MAX);
        depth = all->depth[i] > depth ? all->depth[i] : depth;
    }
    if (d->n == 1)
        return 1;
    if (pl_kv_reserve(e->pool, &w->s->kv, depth + 1, NULL) == PL_OK)
        return 1;
    d->n = 1;
    return 0;
}

/* Samples that decode and have a drafter, into jobs; *n_learned of them with the learned one. */
static int gather(pl_engine *e, const plan *p, int *n_learned)
{
    int n = 0;
    *n_learned = 0;
    for (int i = 0; i < p->n_segs; i++) {
        work *w = &e->work[i];
        if (w->is_prefill)
            continue;
        const int is_learned = can_learn(e, w->s);
        if (!w->s->cursor && !is_learned)
            continue;
        *n_learned += is_learned;
        e->jobs[n++] = w;
    }
    return n;
}

static void extend_segments(pl_engine *e, plan *p, int n)
{
    for (int i = 0; i < n; i++) {
        work *w = e->jobs[i];
        pl_segment *seg = &e->segs[w->i_seg];
        if (!take_chosen(e, w) || w->draft.n == 1)
            continue;
        seg->tokens = w->draft.token;
        seg->parent = w->draft.parent;
        seg->n_rows = seg->n_logits = w->draft.n;
        p->n_rows += w->draft.n - 1;
        p->rows_left -= w->draft.n - 1;
    }
    assert(p->rows_left >= 0);
}

/* Positions in the cache of all samples that decode. */
static long positions_of(const pl_engine *e, const plan *p)
{
    long n = 0;
    for (int i = 0; i < p->n_segs; i++)
        n += e->work[i].is_prefill ? 0 : e->work[i].s->kv.n_tokens;
    return n;
}

void engine_draft(pl_engine *e, plan *p)
{
    int n_learned = 0;
    controller_begin(&e->controller, positions_of(e, p));
    const int n = e->is_speculative ? gather(e, p, &n_learned) : 0;
    if (n == 0)
        return;
    const double t = engine_seconds();
    const controller_offer_rows o = controller_offer(&e->controller, n, n_learned, p->rows_left);
    if (o.suffix < 1 && o.learned < 1)
        return;
    for (int i = 0; i < n; i++)
        e->items[i] = &e->jobs[i]->item;
    propose_suffix(e, n, o.suffix);
    if (o.learned > 0)
        propose_learned(e, n, &o);
    controller_choose(&e->controller, e->items, n, p->n_rows - n, p->rows_left);
    extend_segments(e, p, n);
    p->draft_s = engine_seconds() - t;
    e->stats.draft_s += p->draft_s;
}
