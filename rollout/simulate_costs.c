/* rollout/simulate_costs.c - seconds of a round by its rows, and rows and tokens of a verify step.
 *
 * What a sample's record says of drafting is taken for a chain: the chance that a drafted row
 * holds, given that the one before does, is the one that explains its accepted tokens with its mean
 * number of rows.  The production controller is asked with such chains and the table of passes. */
#include "core/rng.h"
#include "rollout/simulate_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    MOST_ROWS = 4096,  /* of a pass, that the table tells apart */
    FED_PASSES = 40,   /* of a size, that the controller is shown */
    FED_LABELS = 400,  /* verify steps, that it is shown */
    ASKED_ROUNDS = 16, /* until its answer has settled */
    DRAW_DEPTH = 0,    /* words of the noise of a verify step */
    DRAW_HITS = 1,
};
static const double MOST_CHANCE = 0.98;
static const double LEAST_ROW = 0.25;
static const double MOST_SECONDS = 1000; /* of a round */

/* ---- what was measured ---- */

void pl_sim_costs_add(pl_sim_costs *c, const pl_trace_step *s)
{
    const double rest_s = s->step_s - s->gen_s - s->update_s;
    for (int i = 0; i < s->n_costs; i++)
        if (s->costs[i].rows <= MOST_ROWS)
            pl_costs_add(&c->pass, s->costs[i].rows, (double)s->costs[i].n, s->costs[i].seconds);
    for (int i = 0; i < s->n_groups * s->n; i++) {
        const pl_trace_sample *x = &s->samples[i];
        c->n_drafted += x->draft;
        c->n_tokens += x->n_tokens;
        c->n_trained += x->n_tokens + (double)s->n_prompt[i / s->n];
    }
    c->sum_draft_s += s->draft_s > 0 ? s->draft_s : 0;
    c->sum_verify_s += s->verify_s > 0 ? s->verify_s : 0;
    c->sum_update_s += s->update_s > 0 ? s->update_s : 0;
    c->sum_rest_s += rest_s > 0 ? rest_s : 0;
    c->n_steps++;
}

pl_status pl_sim_costs_fit(pl_sim_costs *c, pl_error *err)
{
    c->draft_s = c->n_drafted > 0 ? c->sum_draft_s / c->n_drafted : 0;
    c->verify_s = c->n_tokens > 0 ? c->sum_verify_s / c->n_tokens : 0;
    c->update_s = c->n_trained > 0 ? c->sum_update_s / c->n_trained : 0;
    c->rest_s = c->n_steps > 0 ? c->sum_rest_s / c->n_steps : 0;
    c->round_s = 0;
    c->factor = 1;
    if (!pl_costs_fit(&c->pass))
        return pl_fail(err, PL_E_FORMAT,
            "no pass was measured in these steps: take the costs of another run (--cost-from)");
    return PL_OK;
}

void pl_sim_costs_settle(pl_sim_costs *c, double recorded_s, double simulated_s, double n_rounds)
{
    if (!(recorded_s > 0) || !(simulated_s > 0) || !(n_rounds > 0))
        return;
    if (recorded_s >= simulated_s)
        c->round_s = (recorded_s - simulated_s) / n_rounds;
    else
        c->factor = recorded_s / simulated_s;
}

double sim_round_seconds(const pl_sim *s, double n_rows, double n_drafted, int n_emitted)
{
    const pl_sim_costs *c = s->costs;
    double seconds = 0;
    if (n_rows > 0) { /* rows of a mean may be broken ones */
        const int low = n_rows < s->n_pass_s - 1 ? (int)n_rows : s->n_pass_s - 2;
        seconds =
            (double)s->pass_s[low] + (double)(s->pass_s[low + 1] - s->pass_s[low]) * (n_rows - low);
    }
    seconds += n_drafted * c->draft_s + n_emitted * c->verify_s + c->round_s;
    seconds *= c->factor * s->o.pace * (s->n_training > 0 ? s->o.slowdown : 1);
    return seconds < MOST_SECONDS ? seconds : MOST_SECONDS; /* NaN too */
}

/* ---- chains ---- */

/* Accepted tokens of a chain of so many rows. */
static double hits_of(double chance, double rows)
{
    double sum = 0, reached = 1;
    for (; rows > 0 && reached > 1e-6; rows--) {
        reached *= chance;
        sum += reached * (rows < 1 ? rows : 1);
    }
    return sum;
}

static double chance_of(double hits, double rows)
{
    double low = 0, high = MOST_CHANCE;
    if (!(rows > 0) || !(hits > 0))
        return 0;
    for (int i = 0; i < 40; i++) {
        const double middle = (low + high) / 2;
        if (hits_of(middle, rows) < hits)
            low = middle;
        else
            high = middle;
    }
    return (low + high) / 2;
}

static sim_record record_of(const pl_trace_sample *x)
{
    /* The first token comes with the prompt. */
    const double n_rounds = x->steps > 1 ? x->steps - 1 : 1;
    sim_record r = {.n_tokens = x->n_tokens, .source = x->source};
    r.drafted = x->draft / n_rounds;
    r.extra = x->accepted / n_rounds;
    if (r.extra > x->n_tokens)
        r.extra = x->n_tokens;
    if (r.drafted > PL_DRAFT_MAX)
        r.drafted = PL_DRAFT_MAX;
    r.chance = chance_of(r.extra, r.drafted);
    return r;
}

pl_status sim_costs_begin(pl_sim *s, const pl_trace_step *step, pl_error *err)
{
    const int n = step->n_groups * step->n;
    double sum = 0, weight = 0;
    if (n > s->room_records) {
        sim_record *records = realloc(s->records, (size_t)n * sizeof *records);
        if (!records)
            return pl_fail(err, PL_E_NOMEM, "simulation: no memory for %d samples", n);
        s->records = records;
        s->room_records = n;
    }
    s->n_recorded = n;
    for (int i = 0; i < n; i++) {
        s->records[i] = record_of(&step->samples[i]);
        sum += s->records[i].chance * step->samples[i].draft;
        weight += step->samples[i].draft;
    }
    s->mean_chance = weight > 0 ? sum / weight : 0;
    for (int i = 0; i < n; i++) /* nothing was drafted for it: it may be as any other */
        if (step->samples[i].draft == 0)
            s->records[i].chance = s->mean_chance;
    for (int i = 0; i <= s->o.max_num_seqs; i++)
        s->kept[i] = -1;
    if (s->has_control)
        controller_done(&s->control);
    s->has_control = 0;
    return PL_OK;
}

/* ---- the controller ---- */

static double uniform(const pl_sim *s, uint32_t uid, int position, uint32_t word)
{
    return pl_noise_uniform(s->o.seed, uid, (uint32_t)position, PL_NOISE_EXPLORE, word);
}

static void make_chain(controller_item *it, double chance, int n_rows)
{
    double reached = 1;
    pl_draft_begin(&it->proposal, 0);
    it->expected[0] = 1;
    for (int i = 1; i < n_rows && i < PL_DRAFT_MAX; i++) {
        reached *= chance;
        (void)pl_draft_add(&it->proposal, i - 1, i, PL_SOURCE_SUFFIX, PL_DRAFT_MAX);
        it->expected[i] = (float)reached;
    }
    controller_describe(it, 0);
}

/* Show it the table, what drafting and an emitted token take, and how often chains hold. */
static void teach(pl_sim *s)
{
    controller *c = &s->control;
    const pl_costs *pass = &s->costs->pass;
    const int depth =
        s->o.max_spec_depth < PL_DRAFT_MAX - 1 ? s->o.max_spec_depth : PL_DRAFT_MAX - 2;
    for (int i = 0; i < FED_LABELS; i++) {
        int32_t drawn[PL_DRAFT_MAX];
        int n = 0;
        make_chain(&s->items[0], s->mean_chance, depth + 1);
        while (n < depth && uniform(s, UINT32_MAX, i, (uint32_t)n) < s->mean_chance) {
            drawn[n] = n + 1;
            n++;
        }
        drawn[n] = -1; /* the target's own */
        controller_observe_item(c, &s->items[0], drawn, n + 1);
    }
    controller_observe_draft(c, 1, s->costs->draft_s);
    for (int i = 0; i < pass->n_points; i++) {
        const int rows = (int)pass->at[i];
        const int n = pass->n[pl_cost_bucket(rows)] < FED_PASSES
                          ? (int)pass->n[pl_cost_bucket(rows)]
                          : FED_PASSES;
        for (int k = 0; k <= n; k++)
            controller_observe_pass(c, rows, 1, pass->mean[i], 0, 1, s->costs->verify_s);
    }
}

static pl_status open_control(pl_sim *s, pl_error *err)
{
    pl_engine_options o;
    pl_engine_defaults(&o);
    o.controller = PL_CONTROLLER_GOODPUT;
    o.max_num_seqs = s->o.max_num_seqs;
    o.max_rows = s->o.max_rows;
    o.max_spec_rows = s->o.max_spec_rows;
    o.max_spec_depth = s->o.max_spec_depth;
    const pl_status st = controller_init(&s->control, &o, err);
    if (st != PL_OK)
        return st;
    s->has_control = 1;
    teach(s);
    return PL_OK;
}

/* Rows that it keeps of a sample when n decode, once it has settled.  Its plain rounds, one of 25,
 * are left out. */
static float ask_control(pl_sim *s, int n)
{
    controller *c = &s->control;
    const int rows_left = s->o.max_rows - n;
    double kept = n;
    c->kept = 2;
    c->skip = c->backoff = 0;
    for (int round = 0; round < ASKED_ROUNDS; round++) {
        const controller_offer_rows offer = controller_offer(c, n, 0, rows_left);
        kept = n;
        if (offer.suffix < 1)
            continue;
        const int rows = offer.suffix < s->o.max_spec_depth ? offer.suffix : s->o.max_spec_depth;
        for (int i = 0; i < n; i++)
            make_chain(&s->items[i], s->mean_chance, rows + 1);
        controller_choose(c, s->at, n, 0, rows_left);
        kept = 0;
        for (int i = 0; i < n; i++)
            kept += s->items[i].n_keep;
    }
    return (float)(kept / n);
}

/* Rows of a sample, the root included. */
static double rows_of(pl_sim *s, int n_running)
{
    const int n = n_running < s->o.max_num_seqs ? n_running : s->o.max_num_seqs;
    if (s->o.rows == PL_SIM_OFF || !(s->mean_chance > 0))
        return 1;
    if (s->o.rows == PL_SIM_FIXED)
        return s->o.fixed_rows;
    if (s->kept[n] < 0 && !s->has_control && s->status == PL_OK)
        s->status = open_control(s, &s->err);
    if (s->kept[n] < 0 && s->has_control)
        s->kept[n] = ask_control(s, n);
    return s->kept[n] < 1 ? 1 : (double)s->kept[n];
}

/* ---- tokens of a verify step ---- */

static int emit_recorded(const pl_sim *s, const sim_record *r, uint32_t uid, int n)
{
    if (r->source && s->o.acceptance == 1) {
        int k = n;
        while (k < r->n_tokens - 1 && r->source[k] != PL_SOURCE_TARGET)
            k++;
        return k + 1 - n;
    }
    const double extra = r->extra * s->o.acceptance;
    return 1 + (int)extra + (uniform(s, uid, n, DRAW_HITS) < extra - floor(extra));
}

int sim_emit(pl_sim *s, uint32_t uid, int n, int n_running, double *drafted)
{
    const sim_record *r = &s->records[uid % (uint32_t)s->n_recorded];
    if (s->o.rows == PL_SIM_RECORDED) {
        *drafted = r->drafted;
        return emit_recorded(s, r, uid, n);
    }
    const double most =
        r->n_tokens - n - 1 < s->o.max_spec_depth ? r->n_tokens - n - 1 : s->o.max_spec_depth;
    const double rows = rows_of(s, n_running) - 1, depth = rows < most ? rows : most;
    *drafted = depth;
    if (!(depth > 0) || !(r->chance > 0))
        return 1;
    const double chance = s->o.acceptance == 1
                              ? r->chance
                              : chance_of(hits_of(r->chance, depth) * s->o.acceptance, depth);
    const int levels = (int)depth + (uniform(s, uid, n, DRAW_DEPTH) < depth - floor(depth));
    const double hits = log(uniform(s, uid, n, DRAW_HITS)) / log(chance);
    return 1 + (hits < levels ? (int)hits : levels);
}

/* ---- opening ---- */

/* Passes of alike sizes say little of a larger one: what lies beyond them costs no less than
 * LEAST_ROW of what their rows did. */
static void fill_passes(pl_sim *s)
{
    const pl_costs *c = &s->costs->pass;
    const double most = pl_costs_most(c), at_most = pl_costs_of(c, (int)most);
    for (int i = 0; i < s->n_pass_s; i++) {
        const double seconds = pl_costs_of(c, i);
        const double least = i > most ? at_most * (1 + LEAST_ROW * (i - most) / most) : 0;
        s->pass_s[i] = (float)(seconds > least ? seconds : least);
    }
}

pl_status sim_costs_open(pl_sim *s, pl_error *err)
{
    const size_t n = (size_t)s->o.max_num_seqs;
    s->n_pass_s = MOST_ROWS + 2;
    s->pass_s = calloc((size_t)s->n_pass_s, sizeof *s->pass_s);
    s->kept = calloc(n + 1, sizeof *s->kept);
    if (s->o.rows == PL_SIM_GOODPUT) {
        s->items = calloc(n, sizeof *s->items);
        s->at = calloc(n, sizeof(controller_item *));
    }
    if (!s->pass_s || !s->kept || (s->o.rows == PL_SIM_GOODPUT && (!s->items || !s->at)))
        return pl_fail(err, PL_E_NOMEM, "simulation: no memory for %zu samples a round", n);
    fill_passes(s);
    for (size_t i = 0; s->at && i < n; i++)
        s->at[i] = &s->items[i];
    return PL_OK;
}

void sim_costs_close(pl_sim *s)
{
    if (s->has_control)
        controller_done(&s->control);
    free(s->pass_s);
    free(s->kept);
    free(s->items);
    free(s->at);
}
