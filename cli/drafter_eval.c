/* cli/drafter_eval.c - figures of a drafter on held-out samples: alpha, coupled acceptance, tau;
 * and the acceptance length that whole trees of a budget would have had, by replay of the recorded
 * text.  It is that of a run as far as the text is what the target draws with the noise given,
 * top_p 1 and top_k 0. */
#include "cli/drafter.h"
#include "cli/run.h"
#include "core/json.h"
#include "core/rng.h"
#include "drafter/replay.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const int drafter_widths[DRAFTER_WIDTHS] = {1, 2, 4, 8};
enum { MOST_WIDE = 8, AT_ONCE = 64 };

typedef struct measure {
    const drafter_noise *noise;
    const pl_ops *ops;
    const int32_t *vocab;
    int n_vocab;
    const drafter_span *span[AT_ONCE]; /* of the windows at hand */
    pl_eagle_window windows[AT_ONCE];
    int64_t hits[PL_EAGLE_DEPTH_MAX][DRAFTER_WIDTHS];
    int64_t n[PL_EAGLE_DEPTH_MAX];
} measure;

/* Is the token that the target draws among the drafter's best by the same noise? */
static void take_row(void *ctx, int i_window, int i_row, int depth, const float *logits)
{
    measure *m = ctx;
    const pl_eagle_window *w = &m->windows[i_window];
    const drafter_span *s = m->span[i_window];
    const int position = w->position + i_row + 2 + depth;
    const int32_t want = s->drawn[position - 1 - s->begin];
    const pl_draw draw = {.temperature = m->noise->temperature,
        .top_p = 1,
        .key = pl_noise_key(m->noise->seed),
        .uid = s->sample->uid,
        .position = (uint32_t)position,
        .purpose = PL_NOISE_SAMPLE};
    int32_t ids[MOST_WIDE];
    double scores[MOST_WIDE];

    const int n = m->ops->draw_topk(logits, m->n_vocab, m->vocab, &draw, MOST_WIDE, ids, scores);
    m->n[depth]++;
    for (int i = 0; i < n; i++)
        for (int k = 0; ids[i] == want && k < DRAFTER_WIDTHS; k++)
            m->hits[depth][k] += i < drafter_widths[k];
}

static void finish(drafter_figures *out, const measure *m)
{
    for (int k = 0; k < DRAFTER_WIDTHS; k++) {
        double path = 1;
        out->tau[k] = 1;
        for (int d = 0; d < out->depth; d++) {
            out->coupled[d][k] = m->n[d] > 0 ? (double)m->hits[d][k] / (double)m->n[d] : 0;
            path *= out->coupled[d][k];
            out->tau[k] += path;
        }
    }
    for (int d = 0; d < out->depth; d++) {
        out->n[d] = m->n[d];
        out->alpha[d] = m->n[d] > 0 ? out->alpha[d] / (double)m->n[d] : 0;
    }
    if (m->n[0] > 0) {
        out->loss /= (double)m->n[0];
        out->coverage /= (double)m->n[0];
    }
}

/* The windows at hand; a stats mean weighs as the positions that it is of. */
static pl_status flush(measure *m, drafter_figures *out, pl_eagle_trainer *t, int n, pl_error *err)
{
    pl_eagle_step_stats stats;
    int64_t before[PL_EAGLE_DEPTH_MAX];

    memcpy(before, m->n, sizeof before);
    const pl_status st = pl_eagle_eval_rows(t, m->windows, n, take_row, m, &stats, err);
    if (st != PL_OK)
        return st;
    for (int d = 0; d < out->depth; d++)
        if (m->n[d] > before[d])
            out->alpha[d] += stats.alpha[d] * (double)(m->n[d] - before[d]);
    if (m->n[0] > before[0]) {
        out->loss += stats.loss * (double)(m->n[0] - before[0]);
        out->coverage += stats.coverage * (double)(m->n[0] - before[0]);
    }
    return PL_OK;
}

pl_status drafter_measure(drafter_figures *out, const drafter_features *f, const drafter_student *s,
    int64_t max_tokens, pl_error *err)
{
    measure m = {.noise = &s->noise,
        .ops = f->m->ops,
        .vocab = pl_eagle_vocab(s->eagle),
        .n_vocab = pl_eagle_n_vocab(s->eagle)};
    const int at_once = s->o.max_windows < AT_ONCE ? s->o.max_windows : AT_ONCE;
    const double t0 = run_seconds();
    pl_status st = PL_OK;
    int n = 0;

    memset(out, 0, sizeof *out);
    out->depth = s->o.depth;
    for (int i = 0; i < f->n_spans && st == PL_OK && max_tokens > 0; i++) {
        const drafter_span *span = &f->spans[i];
        const int end = span->sample->n;
        /* The prediction at the first position of a window is not its own: windows overlap by it.
         */
        for (int at = span->begin; at + 2 < end && st == PL_OK; at += s->o.window - 1) {
            const int len = end - at < s->o.window ? end - at : s->o.window;
            m.span[n] = span;
            m.windows[n++] = drafter_window(f, span, at, len, s->noise.temperature);
            max_tokens -= len;
            if (n == at_once) {
                st = flush(&m, out, s->trainer, n, err);
                n = 0;
            }
        }
    }
    if (st == PL_OK && n > 0)
        st = flush(&m, out, s->trainer, n, err);
    finish(out, &m);
    out->seconds = run_seconds() - t0;
    if (st == PL_OK && m.n[0] == 0)
        st = pl_fail(err, PL_E_INVAL, "no held-out position to measure: more data is needed");
    return st;
}

void drafter_print_heading(int depth)
{
    printf("%9s %7s %6s  %-*s  %-*s  %-*s  %s\n", "tokens", "loss", "cover", depth * 6 - 1,
        "alpha by depth", depth * 6 - 1, "coupled@1", depth * 6 - 1, "coupled@4", "tau@1 @2 @4 @8");
}

static void print_row(const char *format, const double *x, int n, int stride)
{
    for (int i = 0; i < n; i++)
        printf(format, x[i * stride]);
    printf("  ");
}

void drafter_print_figures(const drafter_figures *g, int64_t tokens)
{
    printf("%9lld %7.3f %6.3f ", (long long)tokens, g->loss, g->coverage);
    print_row(" %.3f", g->alpha, g->depth, 1);
    print_row(" %.3f", &g->coupled[0][0], g->depth, DRAFTER_WIDTHS);
    print_row(" %.3f", &g->coupled[0][2], g->depth, DRAFTER_WIDTHS);
    for (int k = 0; k < DRAFTER_WIDTHS; k++)
        printf(" %.2f", g->tau[k]);
    printf("\n");
    fflush(stdout);
}

static void put_list(pl_json *j, const char *key, const double *x, int n, int stride)
{
    pl_json_text(j, key);
    for (int i = 0; i < n; i++) {
        pl_json_text(j, i > 0 ? "," : "");
        pl_json_double(j, round(x[i * stride] * 1e5) / 1e5);
    }
    pl_json_text(j, "]");
}

void drafter_print_json(const drafter_figures *g, int64_t step, int64_t tokens)
{
    pl_json j = {0};

    pl_json_text(&j, "{\"step\":");
    pl_json_int(&j, step);
    pl_json_text(&j, ",\"tokens\":");
    pl_json_int(&j, tokens);
    pl_json_text(&j, ",\"held_out\":");
    pl_json_int(&j, g->n[0]);
    put_list(&j, ",\"loss\":[", &g->loss, 1, 1);
    put_list(&j, ",\"coverage\":[", &g->coverage, 1, 1);
    put_list(&j, ",\"alpha\":[", g->alpha, g->depth, 1);
    put_list(&j, ",\"coupled_1\":[", &g->coupled[0][0], g->depth, DRAFTER_WIDTHS);
    put_list(&j, ",\"coupled_2\":[", &g->coupled[0][1], g->depth, DRAFTER_WIDTHS);
    put_list(&j, ",\"coupled_4\":[", &g->coupled[0][2], g->depth, DRAFTER_WIDTHS);
    put_list(&j, ",\"coupled_8\":[", &g->coupled[0][3], g->depth, DRAFTER_WIDTHS);
    put_list(&j, ",\"tau\":[", g->tau, DRAFTER_WIDTHS, 1);
    pl_json_text(&j, "}\n");
    if (!j.failed)
        fwrite(j.data, 1, j.n, stdout);
    fflush(stdout);
    pl_json_done(&j);
}

/* ---- budgets ---- */

/* A sample as one window.  The drafter looks back to its begin, DRAFTER_LEAD tokens before the
 * response; in a run it sees more of the prompt. */
static pl_feature_window whole_window(
    const drafter_features *f, const drafter_span *s, const drafter_noise *noise)
{
    const size_t cp = (size_t)f->cp;

    return (pl_feature_window){.uid = s->sample->uid,
        .noise_key = pl_noise_key(noise->seed),
        .purpose = PL_NOISE_SAMPLE,
        .temperature = noise->temperature,
        .top_p = 1,
        .n_prompt = s->sample->n_prompt,
        .position = s->begin,
        .n = s->sample->n - s->begin,
        .tokens = s->sample->tokens + s->begin,
        .features = f->features + s->row * PL_FEATURE_LAYERS * cp,
        .hidden = f->hidden + s->row * cp};
}

static void print_budget(
    const pl_replay_options *o, const pl_replay_window *w, int n, double as_drawn, int as_json)
{
    long long tokens = 0, rounds = 0;

    for (int i = 0; i < n; i++) {
        tokens += w[i].n_tokens;
        rounds += w[i].n_rounds;
    }
    printf(as_json ? "{\"budget\":\"%d_%d_%d\",\"acceptance_length\":%.4f,\"tokens\":%lld,"
                     "\"rounds\":%lld,\"as_drawn\":%.4f}\n"
                   : "fixed:%d_%d_%d  acceptance length %.3f  (%lld tokens, %lld rounds)\n",
        o->steps, o->topk, o->verify, pl_replay_tau(w, n), tokens, rounds, as_drawn);
    fflush(stdout);
}

static int is_stopped(void *ctx)
{
    (void)ctx;
    return cli_stop != 0;
}

/* The next of "STEPS_TOPK_VERIFY,..."; NULL: none, or it is wrong (rest). */
static const char *next_budget(const char *list, pl_replay_options *o)
{
    int n = 0;

    *o = (pl_replay_options){0};
    if (sscanf(list, "%d_%d_%d%n", &o->steps, &o->topk, &o->verify, &n) != 3 || n == 0 ||
        (list[n] && list[n] != ',') || o->steps < 1 || o->steps > 16 || o->topk < 1 ||
        o->topk > MOST_WIDE || o->verify < 2 || o->verify > PL_DRAFT_MAX)
        return NULL;
    return list + n + (list[n] == ',');
}

pl_status drafter_check_budgets(const char *list, pl_error *err)
{
    pl_replay_options o;

    for (const char *p = list; *p;) {
        const char *next = next_budget(p, &o);
        if (!next)
            return pl_fail(err, PL_E_USAGE,
                "--budget '%s' is no list of STEPS_TOPK_VERIFY (1 to 16, 1 to %d, 2 to %d), as "
                "6_4_16,1_1_2",
                list, MOST_WIDE, PL_DRAFT_MAX);
        p = next;
    }
    return PL_OK;
}

pl_status drafter_measure_budgets(const char *list, const drafter_features *f,
    const drafter_student *s, int as_json, pl_error *err)
{
    const size_t n = (size_t)f->n_spans;
    pl_feature_window *windows = calloc(n, sizeof *windows);
    pl_replay_window *out = calloc(n, sizeof *out);
    pl_replay_options o;
    pl_status st =
        windows && out ? PL_OK : pl_fail(err, PL_E_NOMEM, "no memory for %zu windows", n);

    for (size_t i = 0; i < n && st == PL_OK; i++)
        windows[i] = whole_window(f, &f->spans[i], &s->noise);
    for (const char *p = list; *p && st == PL_OK;) {
        p = next_budget(p, &o);
        st = pl_replay(f->m->model, s->eagle, windows, (int)n, &o, is_stopped, NULL, out, err);
        if (st == PL_OK)
            print_budget(&o, out, (int)n,
                f->n_drawn > 0 ? (double)f->n_as_drawn / (double)f->n_drawn : 0, as_json);
    }
    free(windows);
    free(out);
    return st;
}
