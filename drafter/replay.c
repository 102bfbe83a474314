/* drafter/replay.c - rounds of recorded texts, replayed with a drafter and without the target.
 *
 * A round is what the engine does: the features of all positions before the pending token are
 * known, a tree is drafted, and the recorded tokens walk down it.  Where a window ends before the
 * response does, the round that runs into its end is left out: what the tree had beyond it is
 * unknown.  Where the response ends, so does the round, whether the tree had its last token or not.
 */
#include "drafter/replay.h"

#include "drafter/learned.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    BATCH = 16,
    WINDOW = 256, /* positions that the drafter looks back, as the engine's */
};

/* One window at work. */
typedef struct lane {
    int place, window; /* window: -1: none */
    int pending;       /* index of the pending token in the window */
    int depth;         /* levels that the round may draft */
    pl_draw draw;
    pl_draft draft;
    float expected[PL_DRAFT_MAX];
} lane;

typedef struct replay {
    const pl_feature_window *w;
    int n_windows, next; /* next: window to begin */
    const pl_replay_options *o;
    pl_replay_window *out;
    pl_learned *l;
    size_t stride;
    int n_lanes;
    lane *lanes;
    pl_learned_ask *asks;
} replay;

static void feed(replay *r, const lane *x, int from, int to)
{
    const pl_feature_window *w = &r->w[x->window];
    pl_learned_feed(r->l, x->place, w->position + from, w->tokens + from,
        w->features + (size_t)from * r->stride, r->stride, to - from);
}

/* Is there a round at the pending token?  Then a token is known to come after it, and there is room
 * for a draft. */
static int has_round(const replay *r, lane *x, const pl_feature_window *w)
{
    const int n_drawn = w->position + x->pending + 1 - w->n_prompt;

    x->depth = r->o->steps;
    if (w->max_tokens > 0 && x->depth > w->max_tokens - n_drawn - 1)
        x->depth = w->max_tokens - n_drawn - 1;
    return x->pending + 1 < w->n + (w->is_last != 0) && x->depth > 0;
}

/* Give a lane the next window that has a round: a pending token of the response with a feature
 * before it. */
static void begin_window(replay *r, lane *x)
{
    x->window = -1;
    while (r->next < r->n_windows) {
        const int i = r->next++;
        const pl_feature_window *w = &r->w[i];
        const int first = w->n_prompt - w->position, served = r->o->is_served ? w->served_from : 0;
        x->pending = first > 1 ? first : 1;
        x->pending = served > x->pending ? served : x->pending;
        if (!has_round(r, x, w))
            continue;
        x->window = i;
        x->place = pl_learned_open(r->l);
        feed(r, x, 0, x->pending);
        return;
    }
}

static pl_learned_ask ask_for(replay *r, lane *x)
{
    const pl_feature_window *w = &r->w[x->window];

    x->draw = (pl_draw){.temperature = w->temperature,
        .top_k = w->top_k,
        .top_p = w->top_p,
        .min_p = w->min_p,
        .key = w->noise_key,
        .uid = w->uid,
        .position = (uint32_t)(w->position + x->pending + 1),
        .purpose = w->purpose};
    pl_draft_begin(&x->draft, w->tokens[x->pending]);
    return (pl_learned_ask){.place = x->place,
        .draw = &x->draw,
        .max_rows = r->o->verify,
        .max_depth = x->depth,
        .draft = &x->draft,
        .expected = x->expected};
}

/* Walk down the draft with the recorded tokens; the window ends when they do. */
static void settle(replay *r, lane *x)
{
    const pl_feature_window *w = &r->w[x->window];
    pl_replay_window *out = &r->out[x->window];
    const int left = w->n - 1 - x->pending; /* tokens drawn after the pending one */
    int n = 0, row = 0;

    while (n < left) {
        row = pl_draft_child(&x->draft, row, w->tokens[x->pending + n + 1]);
        if (row < 0)
            break;
        n++;
    }
    const int is_cut = n == left, from = x->pending;
    if (!is_cut || w->is_last) {
        out->n_rounds++;
        out->n_tokens += n + 1;
        out->n_plain += x->draft.n == 1;
        for (int d = 0; d < x->depth && d <= n && d < left; d++) {
            out->reached[d]++;
            out->hit[d] += d < n;
        }
    }
    x->pending += n + 1;
    if (is_cut || !has_round(r, x, w)) {
        pl_learned_close(r->l, x->place);
        begin_window(r, x);
        return;
    }
    feed(r, x, from, x->pending);
}

static pl_status run(replay *r, int (*should_stop)(void *ctx), void *ctx, pl_error *err)
{
    for (int i = 0; i < r->n_lanes; i++)
        begin_window(r, &r->lanes[i]);
    for (;;) {
        int n = 0;
        for (int i = 0; i < r->n_lanes; i++)
            if (r->lanes[i].window >= 0)
                r->asks[n++] = ask_for(r, &r->lanes[i]);
        if (n == 0)
            return PL_OK;
        if (should_stop && should_stop(ctx))
            return pl_fail(err, PL_E_STOPPED, "drafter replay: asked to stop");
        pl_learned_propose(r->l, r->asks, n);
        for (int i = 0; i < r->n_lanes; i++)
            if (r->lanes[i].window >= 0)
                settle(r, &r->lanes[i]);
    }
}

static pl_status prepare(replay *r, const pl_model *target, const pl_eagle *e, pl_error *err)
{
    const pl_learned_options o = {.max_places = r->n_lanes,
        .window = WINDOW,
        .max_rows = r->o->verify,
        .max_depth = r->o->steps,
        .topk = r->o->topk};

    r->lanes = calloc((size_t)r->n_lanes, sizeof *r->lanes);
    r->asks = calloc((size_t)r->n_lanes, sizeof *r->asks);
    if (!r->lanes || !r->asks)
        return pl_fail(err, PL_E_NOMEM, "drafter replay: no memory for %d windows", r->n_lanes);
    pl_status st = pl_learned_new(&r->l, target, &o, err);
    if (st == PL_OK)
        st = pl_learned_set(r->l, e, err);
    return st == PL_OK ? st : pl_wrap(err, st, "drafter replay");
}

pl_status pl_replay(const pl_model *target, const pl_eagle *e, const pl_feature_window *w, int n,
    const pl_replay_options *o, int (*should_stop)(void *ctx), void *ctx, pl_replay_window *out,
    pl_error *err)
{
    const int batch = o->batch > 0 ? o->batch : BATCH;
    replay r = {.w = w, .n_windows = n, .o = o, .out = out, .n_lanes = batch < n ? batch : n};

    if (n < 1)
        return pl_fail(err, PL_E_INVAL, "drafter replay: %d windows; at least 1", n);
    for (int i = 0; i < n; i++)
        if (w[i].n < 0 || w[i].position < 0)
            return pl_fail(err, PL_E_INVAL, "drafter replay: window %d: %d tokens at position %d",
                i, w[i].n, w[i].position);
    memset(out, 0, (size_t)n * sizeof *out);
    r.stride = (size_t)(PL_FEATURE_LAYERS * pl_pad32(pl_model_arch(target)->n_embd));
    pl_status st = prepare(&r, target, e, err);
    if (st == PL_OK)
        st = run(&r, should_stop, ctx, err);
    pl_learned_free(r.l);
    free(r.lanes);
    free(r.asks);
    return st;
}

/* ---- figures ---- */

double pl_replay_tau(const pl_replay_window *w, int n)
{
    int64_t tokens = 0, rounds = 0;

    for (int i = 0; i < n; i++) {
        tokens += w[i].n_tokens;
        rounds += w[i].n_rounds;
    }
    return rounds > 0 ? (double)tokens / (double)rounds : 0;
}

static int64_t rounds_of(const pl_replay_window *w, int n)
{
    int64_t rounds = 0;
    for (int i = 0; i < n; i++)
        rounds += w[i].n_rounds;
    return rounds;
}

static int is_first_of_sample(const uint32_t *uids, int i)
{
    for (int j = 0; j < i; j++)
        if (uids[j] == uids[i])
            return 0;
    return 1;
}

void pl_replay_compare(const pl_replay_window *a, const pl_replay_window *b, const uint32_t *uids,
    int n, double *difference, double *se)
{
    const double tau_a = pl_replay_tau(a, n), tau_b = pl_replay_tau(b, n);
    const double rounds_a = (double)rounds_of(a, n), rounds_b = (double)rounds_of(b, n);
    double sum = 0;
    int n_samples = 0;

    *difference = tau_a - tau_b;
    *se = INFINITY;
    if (!(rounds_a > 0) || !(rounds_b > 0))
        return;
    /* What a sample adds to the difference of the two ratios, to first order; these sum to 0. */
    for (int i = 0; i < n; i++) {
        double x = 0;
        if (!is_first_of_sample(uids, i))
            continue;
        for (int j = i; j < n; j++)
            if (uids[j] == uids[i])
                x += ((double)a[j].n_tokens - tau_a * (double)a[j].n_rounds) / rounds_a -
                     ((double)b[j].n_tokens - tau_b * (double)b[j].n_rounds) / rounds_b;
        sum += x * x;
        n_samples++;
    }
    if (n_samples >= 2)
        *se = sqrt(sum * n_samples / (n_samples - 1));
}
