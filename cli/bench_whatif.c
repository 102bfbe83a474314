/* cli/bench_whatif.c - paceline bench whatif: what `paceline replay --what-if` would have said of a
 * tree or a controller, against a live run of it.
 *
 * One run is recorded (goodput): its tokens, and what its passes took.  Each alternative is run
 * live and over that record; acceptance length and seconds of both are reported, round by round so
 * that a machine which changes its speed changes it for both. */
#include "cli/bench.h"
#include "cli/whatif.h"
#include "core/rng.h"
#include "drafter/eagle.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    PROMPTS = 4,
    GROUP = 4,
    SAMPLES = PROMPTS * GROUP,
    MAX_PROMPT = 128,
    LENGTH = 96,
    QUICK = 24
};

static const char *const questions[PROMPTS] = {
    "List the months of the year, each with its number of days.",
    "Tell a story about a lighthouse keeper who counts the waves, in short sentences.",
    "Explain how to bake bread, step by step.",
    "What is 17 times 23? Show every step of the calculation.",
};

typedef struct way {
    const char *name; /* of the case */
    pl_controller_kind controller;
    int rows, levels, topk, is_learned;
} way;

static const way ways[] = {
    {"goodput=1", PL_CONTROLLER_GOODPUT, 0, 0, 0, 0},
    {"plain=1", PL_CONTROLLER_OFF, 0, 0, 0, 0},
    {"fixed=4", PL_CONTROLLER_FIXED, 4, 3, 2, 0},
    {"fixed=12", PL_CONTROLLER_FIXED, 12, 6, 4, 0},
    {"goodput=8", PL_CONTROLLER_GOODPUT, 8, 4, 2, 0},
    {"fixed=12,learned=1", PL_CONTROLLER_FIXED, 12, 6, 4, 1},
    {"goodput=1,learned=1", PL_CONTROLLER_GOODPUT, 0, 0, 0, 1},
};
enum { WAYS = sizeof ways / sizeof ways[0], PLAIN_WAYS = 5 };

typedef struct bed {
    cli_model m;
    pl_eagle *eagle;
    int32_t *prompts[PROMPTS];
    int32_t tokens[SAMPLES][LENGTH]; /* of the recorded run */
    int length;                      /* of responses, at most */
    whatif_sample samples[SAMPLES];
    whatif_batch batch;
    whatif_features features;
} bed;

/* ---- a live run ---- */

typedef struct outcome {
    pl_engine_stats stats;
    double seconds;
} outcome;

static int keep_tokens(void *ctx, const pl_response *r, int n_before)
{
    bed *d = ctx;

    (void)n_before;
    if (cli_stop)
        return 1;
    memcpy(d->tokens[r->uid], r->tokens, (size_t)r->n_tokens * sizeof *r->tokens);
    d->samples[r->uid].n = r->n_tokens;
    return 0;
}

static void engine_options(const bed *d, const way *w, pl_engine_options *o)
{
    pl_engine_defaults(o);
    o->max_num_seqs = SAMPLES;
    o->max_ctx = MAX_PROMPT + LENGTH;
    o->controller = w->controller;
    if (w->rows > 0) {
        o->fixed_rows = o->max_spec_rows = w->rows;
        o->max_spec_depth = w->levels;
        o->suffix.max_children = w->topk;
    }
    if (w->is_learned && d->eagle) {
        o->learned_window = 256;
        o->learned_depth = w->levels > 0 ? w->levels : o->learned_depth;
        o->learned_topk = w->topk > 0 ? w->topk : o->learned_topk;
    }
}

static pl_status run_live(bed *d, const way *w, outcome *out, pl_error *err)
{
    pl_engine_options o;
    pl_engine *e = NULL;

    engine_options(d, w, &o);
    pl_status st = pl_engine_new(&e, d->m.model, d->m.tokenizer, &o, NULL, err);
    if (st == PL_OK && o.learned_window > 0)
        st = pl_engine_set_drafter(e, d->eagle, err);
    for (int i = 0; i < SAMPLES && st == PL_OK; i++) {
        const whatif_sample *s = &d->samples[i];
        const pl_request r = {.uid = (uint32_t)i,
            .group = (uint32_t)(i / GROUP),
            .prompt = s->prompt,
            .n_prompt = s->n_prompt,
            .max_tokens = d->length,
            .temperature = d->batch.sampling.temperature,
            .top_p = 1,
            .noise_key = pl_noise_key(d->batch.sampling.seed),
            .purpose = PL_NOISE_SAMPLE};
        st = pl_engine_submit(e, &r, err);
    }
    const double t0 = bench_now();
    if (st == PL_OK)
        st = pl_engine_run(e, keep_tokens, d, err);
    out->seconds = bench_now() - t0;
    if (st == PL_OK)
        pl_engine_get_stats(e, &out->stats);
    pl_engine_free(e);
    return st;
}

/* ---- over the record ---- */

static pl_status run_recorded(
    bed *d, const way *w, const pl_costs *costs, pl_engine_stats *stats, pl_error *err)
{
    pl_engine_options o;
    whatif_engine *e = NULL;

    engine_options(d, w, &o);
    pl_status st = whatif_engine_new(&e, d->m.model, &o, costs, err);
    if (st == PL_OK && o.learned_window > 0)
        st = pl_engine_set_drafter(e->engine, d->eagle, err);
    if (st == PL_OK)
        st = whatif_engine_play(e, &d->batch, -1, stats, err);
    whatif_engine_free(e);
    return st;
}

static double spent(const pl_engine_stats *s)
{
    return s->pass_s + s->draft_s + s->verify_s;
}

/* What the recorded run tells by: costs, drawing, and what neither explains. */
static pl_status learn(bed *d, const outcome *live, pl_costs *costs, double *rest_s, pl_error *err)
{
    pl_engine_stats again;
    double pure = 0, predicted = 0;

    memset(costs, 0, sizeof *costs);
    for (int b = 0; b < PL_COST_BUCKETS; b++)
        pl_costs_add(
            costs, pl_cost_rows(b), (double)live->stats.n_passes[b], live->stats.passes_s[b]);
    if (!pl_costs_fit(costs))
        return pl_fail(err, PL_E_INVAL, "responses are too short to time a pass");
    d->batch.draw_s = live->stats.verify_s / (double)live->stats.n_emitted;
    const pl_status st = run_recorded(d, &ways[0], costs, &again, err);
    for (int b = 0; b < PL_COST_BUCKETS; b++) {
        pure += live->stats.passes_s[b];
        predicted += again.passes_s[b];
    }
    const double mixed = again.pass_s - predicted;
    *rest_s = live->seconds - (pure + mixed + live->stats.draft_s + live->stats.verify_s);
    *rest_s = *rest_s > 0 ? *rest_s : 0;
    return st;
}

/* ---- the bench ---- */

typedef struct series {
    double live[BENCH_ROUNDS_MAX], ratio[BENCH_ROUNDS_MAX];
    double tau[BENCH_ROUNDS_MAX], tau_ratio[BENCH_ROUNDS_MAX];
    int64_t n_rows_live, n_rows_said;
} series;

static pl_status compare(
    bed *d, int i_way, const pl_costs *costs, double rest_s, series *v, int round, pl_error *err)
{
    outcome live;
    pl_engine_stats said;

    pl_status st = run_live(d, &ways[i_way], &live, err);
    if (st == PL_OK)
        st = run_recorded(d, &ways[i_way], costs, &said, err);
    if (st != PL_OK)
        return st;
    v->live[round] = live.seconds;
    v->ratio[round] = (spent(&said) + rest_s) / live.seconds;
    v->tau[round] = run_acceptance_length(&live.stats);
    v->tau_ratio[round] = run_acceptance_length(&said) / v->tau[round];
    v->n_rows_live = live.stats.n_rows - live.stats.n_prefill_rows;
    v->n_rows_said = said.n_rows - said.n_prefill_rows;
    return PL_OK;
}

static pl_status measure(bench *b, bed *d, series *v, int n_ways, int rounds, pl_error *err)
{
    pl_status st = PL_OK;

    for (int r = 0; r < rounds && st == PL_OK; r++) {
        outcome recorded;
        pl_costs costs;
        double rest_s = 0;
        st = run_live(d, &ways[0], &recorded, err);
        if (st == PL_OK && r == 0 && d->eagle)
            st = whatif_features_make(&d->features, &d->batch, d->m.model, NULL, err);
        if (st == PL_OK)
            st = learn(d, &recorded, &costs, &rest_s, err);
        for (int i = 1; i < n_ways && st == PL_OK; i++)
            st = compare(d, i, &costs, rest_s, &v[i], r, err);
    }
    for (int i = 1; i < n_ways && st == PL_OK; i++) {
        bench_figure f = {.value = bench_median(v[i].tau, rounds),
            .unit = "tokens",
            .ratio = bench_median(v[i].tau_ratio, rounds),
            .ratio_to = "said / live"};
        snprintf(f.name, sizeof f.name, "%s,threads=%d", ways[i].name, b->n_threads);
        st = bench_report(b, &f, err);
        f.value = bench_median(v[i].live, rounds);
        f.unit = "s";
        f.ratio = bench_median(v[i].ratio, rounds);
        if (st == PL_OK)
            st = bench_report(b, &f, err);
        fprintf(b->notes, "    verified rows: %lld live, %lld over the record\n",
            (long long)v[i].n_rows_live, (long long)v[i].n_rows_said);
    }
    return st;
}

static pl_status open_bed(bench *b, bed *d, pl_error *err)
{
    pl_status st = bench_open(b, &d->m, 0, err);

    if (st == PL_OK && b->drafter && strcmp(b->drafter, "random") == 0)
        st = pl_eagle_new(&d->eagle, d->m.model, &(pl_eagle_options){.seed = 1}, err);
    else if (st == PL_OK && b->drafter)
        st = pl_eagle_load(&d->eagle, d->m.model, b->drafter, err);
    d->length = b->quick ? QUICK : LENGTH;
    for (int i = 0; i < PROMPTS && st == PL_OK; i++) {
        const pl_message message = {.role = "user", .content = questions[i]};
        int n = 0;
        st = pl_chat_encode(d->m.tokenizer, &message, 1, &d->prompts[i], &n, err);
        for (int k = 0; k < GROUP && st == PL_OK; k++)
            d->samples[i * GROUP + k] = (whatif_sample){.prompt = d->prompts[i],
                .n_prompt = n < MAX_PROMPT ? n : MAX_PROMPT,
                .tokens = d->tokens[i * GROUP + k]};
    }
    d->batch = (whatif_batch){.n_groups = PROMPTS,
        .n = GROUP,
        .samples = d->samples,
        .sampling = {.temperature = 1,
            .top_p = 1,
            .max_tokens = d->length,
            .seed = 7,
            .purpose = PL_NOISE_SAMPLE}};
    return st;
}

pl_status bench_whatif(bench *b, pl_error *err)
{
    bed *d = calloc(1, sizeof *d);
    series *v = calloc(WAYS, sizeof *v);
    pl_status st = d && v ? PL_OK : pl_fail(err, PL_E_NOMEM, "no memory for the bench");

    if (st == PL_OK)
        st = open_bed(b, d, err);
    if (st == PL_OK)
        st = measure(b, d, v, d->eagle ? WAYS : PLAIN_WAYS, bench_rounds(b, 5), err);
    if (d) {
        whatif_features_done(&d->features);
        pl_eagle_free(d->eagle);
        for (int i = 0; i < PROMPTS; i++)
            free(d->prompts[i]);
        cli_model_close(&d->m);
    }
    free(v);
    free(d);
    return st;
}
