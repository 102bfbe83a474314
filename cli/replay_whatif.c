/* cli/replay_whatif.c - paceline replay --what-if: what acceptance length, verified rows and time
 * would have been with another drafter, tree or controller.
 *
 * The trace is read twice: for what passes cost and how much was rolled out, then step by step.
 * Each alternative has an engine a worker, which lives from step to step, as the run's did, so that
 * what is known of a prompt is known there too.  Only when something learned drafts is the policy
 * of a step needed: for the features, by one prefill, shared by all alternatives.
 *
 * A step that was trained again is played each time it stands in the trace, as the engines of each
 * sitting had it, and counts where it stands last.
 *
 * Seconds: those of passes from the run's own, drawing as in the run, drafting as measured here,
 * brought to the run's pace where both drafted alike.  The same is predicted of the run's own way;
 * what it took beside that (rewards, say) is taken to be the same for all. */
#include "cli/replay_parts.h"
#include "cli/trace.h"
#include "cli/whatif.h"
#include "core/rng.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ALTERNATIVES = 32, WORKERS = 1024 };
static const double MOST_PACE = 16; /* that two machines differ by; more is noise */

typedef struct whatif {
    const replay_options *o;
    replay_options plain; /* without alternatives: what opens the run */
    replay r;
    run_data data;
    int has_replay;
    int wants_features;
    int n;
    whatif_alternative *list; /* [ALTERNATIVES] the first is the run's own way */
    pl_costs costs;
    whatif_recorded recorded;
    int64_t first, last; /* steps that are asked about; 0: all */
    trace_rows rows;     /* where each step stands last */
    int64_t i_next;      /* STEP record that comes next, from 0 */
    int n_trace_steps, n_played;
    uint32_t version; /* of the policy that the engines know */
    int has_version;
    uint32_t drafter; /* version when the step began: the step tells the one when it ended */
} whatif;

/* It stands last in the record that was read last. */
static int is_last(const whatif *w, int64_t step)
{
    const trace_row *row = trace_rows_find(&w->rows, step);
    return row && row->ordinal == w->i_next - 1;
}

static int counts(const whatif *w, int64_t step)
{
    return is_last(w, step) && step >= w->first && (w->last == 0 || step <= w->last);
}

/* ---- the first reading: costs, and what the run counted ---- */

static void count_step(whatif_recorded *r, const pl_trace_step *s)
{
    r->first_step = r->n_steps == 0 || s->step < r->first_step ? s->step : r->first_step;
    r->last_step = s->step > r->last_step ? s->step : r->last_step;
    r->n_steps++;
    r->gen_s += s->gen_s;
    r->n_workers = s->n_workers > r->n_workers ? s->n_workers : r->n_workers;
    for (int i = 0; i < s->n_groups * s->n; i++) {
        const pl_trace_sample *x = &s->samples[i];
        r->n_samples++;
        r->n_tokens += x->n_tokens;
        r->n_draft += x->draft;
        r->n_accepted += x->accepted;
        r->n_verify_steps += x->steps;
        for (int k = 0; k < x->n_tokens; k++)
            r->n_from[x->source[k] < 3 ? x->source[k] : 0]++;
    }
    for (int i = 0; i < s->n_costs; i++)
        r->n_rounds += (int64_t)s->costs[i].n;
}

static pl_status survey_step(void *ctx, const pl_trace_step *s, pl_error *err)
{
    whatif *w = ctx;

    w->i_next++;
    if (w->last > 0 && s->step > w->last)
        return PL_OK;
    if (s->n_workers < 1 || s->n_workers > WORKERS)
        return pl_fail(
            err, PL_E_FORMAT, "trace: step %lld of %d workers", (long long)s->step, s->n_workers);
    w->n_trace_steps++;
    for (int i = 0; i < s->n_costs; i++)
        pl_costs_add(&w->costs, s->costs[i].rows, (double)s->costs[i].n, s->costs[i].seconds);
    if (counts(w, s->step))
        count_step(&w->recorded, s);
    return PL_OK;
}

static pl_status survey(whatif *w, pl_error *err)
{
    const pl_trace_visitor v = {.ctx = w, .step = survey_step};
    pl_trace_report report;

    pl_status st = trace_rows_read(&w->rows, w->o->run_dir, err);
    if (st == PL_OK)
        st = pl_trace_read(w->o->run_dir, &v, &report, err);
    if (st != PL_OK)
        return st;
    if (w->recorded.n_steps == 0)
        return pl_fail(err, PL_E_NOENT,
            w->last > 0 ? "the trace of '%s' has no step %lld"
                        : "the trace of '%s' has no step yet",
            w->o->run_dir, (long long)w->last);
    for (int b = 0; b < PL_COST_BUCKETS; b++)
        w->recorded.n_passes += w->costs.n[b];
    if (!pl_costs_fit(&w->costs)) { /* no unit of time: what is counted can be told all the same */
        pl_costs_add(&w->costs, 1, 1, 1);
        (void)pl_costs_fit(&w->costs);
    }
    w->recorded.most_rows = pl_costs_most(&w->costs);
    return PL_OK;
}

/* ---- one step ---- */

static pl_status fill_batch(const whatif *w, const pl_trace_step *s, whatif_batch *b, pl_error *err)
{
    const run_config *c = &w->r.config;
    const int total = s->n_groups * s->n;
    const pl_dataset *d = w->data.train;
    const int n_vocab = pl_model_arch(w->r.m.model)->n_vocab;
    int64_t n_tokens = 0;

    *b = (whatif_batch){.first_uid = s->first_uid, .n_groups = s->n_groups, .n = s->n};
    b->sampling = (run_sampling){.temperature = (float)c->rollout.temperature,
        .top_p = (float)c->rollout.top_p,
        .min_p = (float)c->rollout.min_p,
        .top_k = (int)c->rollout.top_k,
        .ignore_eos = c->rollout.ignore_eos,
        .max_tokens = (int)c->data.max_response_length,
        .seed = (uint64_t)c->rollout.seed,
        .purpose = PL_NOISE_SAMPLE};
    b->samples = calloc((size_t)total, sizeof *b->samples);
    if (!b->samples)
        return pl_fail(err, PL_E_NOMEM, "no memory for %d samples", total);
    for (int i = 0; i < total; i++) {
        const pl_trace_sample *x = &s->samples[i];
        const int g = i / s->n;
        const pl_prompt *p = &d->prompts[pl_dataset_order(
            d, s->first_uid / (uint32_t)s->n + g, c->data.shuffle, c->data.seed)];
        if (p->key != s->prompts[g] || p->n_ids != (int)s->n_prompt[g])
            return pl_fail(err, PL_E_FORMAT,
                "prompt %d of step %lld is not the one in '%s' (line %d): the file was changed "
                "since the run; bring back the old one",
                g, (long long)s->step, c->data.train_files, p->line);
        b->samples[i] = (whatif_sample){.prompt = p->ids,
            .n_prompt = p->n_ids,
            .tokens = x->tokens,
            .n = x->n_tokens,
            .worker = x->worker,
            .prompt_key = p->key};
        n_tokens += x->n_tokens;
        for (int k = 0; k < x->n_tokens; k++)
            if (x->tokens[k] < 0 || x->tokens[k] >= n_vocab)
                return pl_fail(err, PL_E_FORMAT,
                    "trace: token %d of sample %u is id %d, the vocabulary has %d", k, x->uid,
                    (int)x->tokens[k], n_vocab);
    }
    b->draw_s = n_tokens > 0 ? s->verify_s / (double)n_tokens : 0;
    return PL_OK;
}

/* What a worker did in a step, by the trace. */
typedef struct worker_share {
    double scale;  /* of the costs of all */
    double busy_s; /* passes without prefill, its share of drafting and drawing */
    double tokens; /* share */
} worker_share;

static void weigh_worker(
    const whatif *w, const pl_trace_step *s, const whatif_batch *b, int i_worker, worker_share *out)
{
    double here = 0, usual = 0;
    int64_t n = 0, all = 0;

    for (int i = 0; i < s->n_costs; i++)
        if (s->costs[i].worker == (uint32_t)i_worker) {
            here += s->costs[i].seconds;
            usual += (double)s->costs[i].n * pl_costs_of(&w->costs, (int)s->costs[i].rows);
        }
    for (int i = 0; i < b->n_groups * b->n; i++) {
        all += b->samples[i].n;
        n += b->samples[i].worker == (uint32_t)i_worker ? b->samples[i].n : 0;
    }
    out->tokens = all > 0 ? (double)n / (double)all : 0;
    out->scale = here > 0 && usual > 0 ? here / usual : 1;
    out->busy_s = here + out->tokens * (s->draft_s + s->verify_s);
}

/* One alternative in one step, all its workers. */
typedef struct played {
    pl_engine_stats stats; /* sums */
    double busy_s;         /* of the slowest worker */
    double guessed_s;
} played;

static void add_stats(pl_engine_stats *to, const pl_engine_stats *s)
{
    to->n_rounds += s->n_rounds;
    to->n_rows += s->n_rows;
    to->n_prefill_rows += s->n_prefill_rows;
    to->n_emitted += s->n_emitted;
    to->n_verify_steps += s->n_verify_steps;
    to->n_draft += s->n_draft;
    to->n_accepted += s->n_accepted;
    to->n_drafted_steps += s->n_drafted_steps;
    to->n_drafted_emitted += s->n_drafted_emitted;
    to->pass_s += s->pass_s;
    to->draft_s += s->draft_s;
    to->verify_s += s->verify_s;
    for (int i = 0; i < 3; i++) {
        to->n_draft_of[i] += s->n_draft_of[i];
        to->n_accepted_of[i] += s->n_accepted_of[i];
    }
    for (int i = 0; i < PL_COST_BUCKETS; i++) {
        to->n_passes[i] += s->n_passes[i];
        to->passes_s[i] += s->passes_s[i];
    }
}

static double mixed_seconds(const pl_engine_stats *s)
{
    double pure = 0;
    for (int i = 0; i < PL_COST_BUCKETS; i++)
        pure += s->passes_s[i];
    return s->pass_s > pure ? s->pass_s - pure : 0;
}

/* Workers' samples one worker after the other; shares [n_workers]. */
static pl_status play(whatif *w, whatif_alternative *a, const pl_trace_step *s,
    const whatif_batch *b, const worker_share *shares, double draft_scale, double *mixed,
    played *out, pl_error *err)
{
    pl_status st = PL_OK;

    memset(out, 0, sizeof *out);
    for (int i = 0; i < s->n_workers && st == PL_OK; i++) {
        whatif_engine *e = NULL;
        pl_engine_stats stats;
        if (!(shares[i].tokens > 0))
            continue;
        st = whatif_alternative_engine(a, s->workers[i], w->r.m.model, &w->costs, &e, err);
        if (st == PL_OK && w->has_version && w->version != s->policy_version)
            st = pl_engine_new_version(e->engine, s->policy_version, err);
        if (st != PL_OK)
            break;
        e->scale = shares[i].scale;
        st = whatif_engine_play(e, b, i, &stats, err);
        const double busy = stats.pass_s + draft_scale * stats.draft_s + stats.verify_s;
        if (mixed)
            mixed[i] = mixed_seconds(&stats);
        out->busy_s = busy > out->busy_s ? busy : out->busy_s;
        out->guessed_s += e->guessed_s;
        add_stats(&out->stats, &stats);
    }
    return st;
}

/* The policy of the step, and from it the features. */
static pl_status make_features(
    whatif *w, const pl_trace_step *s, whatif_features *f, whatif_batch *b, pl_error *err)
{
    unsigned char policy[16];
    pl_step_stats stats;
    pl_status st = PL_OK;

    if (w->r.state.step > s->step - 1)
        return pl_fail(err, PL_E_TIMEOUT,
            "step %lld is trained again just now, behind step %lld: ask when the run is past that, "
            "or for one step (--step)",
            (long long)s->step, (long long)w->r.state.step);
    while (w->r.state.step < s->step - 1 && st == PL_OK)
        st = replay_train_step(&w->r, &stats, NULL, err);
    if (st != PL_OK)
        return pl_wrap(err, st, "the policy of step %lld", (long long)s->step);
    pl_trainer_hash(w->r.trainer, policy);
    if (memcmp(policy, s->before, sizeof policy) != 0)
        return pl_fail(err, PL_E_NUMERIC,
            "the policy of step %lld, trained again, is not the recorded one: paceline replay %s "
            "--train-only tells where they part",
            (long long)s->step, w->o->run_dir);
    return whatif_features_make(f, b, w->r.m.model, &w->r.report, err);
}

/* What relates predicted seconds to those of the run: where more is predicted of the run's own way
 * than it took, all passes are quicker; where less, something beside them took the rest. */
typedef struct clock_fit {
    double scale, rest_s;
} clock_fit;

static clock_fit fit_clock(double gen_s, double own_s)
{
    if (!(own_s > 0) || !(gen_s > 0))
        return (clock_fit){1, 0};
    return own_s > gen_s ? (clock_fit){gen_s / own_s, 0} : (clock_fit){1, gen_s - own_s};
}

static void count_played(whatif_alternative *a, const played *p, clock_fit fit, double draft_scale)
{
    whatif_figures *f = &a->sum;

    add_stats(&f->stats, &p->stats);
    f->predicted_s += fit.scale * p->busy_s + fit.rest_s;
    f->rest_s += fit.rest_s;
    f->pass_s += fit.scale * p->stats.pass_s;
    f->draft_s += fit.scale * draft_scale * p->stats.draft_s;
    f->verify_s += fit.scale * p->stats.verify_s;
    f->guessed_s += fit.scale * p->guessed_s;
}

/* Drafting here against drafting there, where both drafted alike; 1: not known. */
static double draft_pace(const pl_trace_step *s, const played *base)
{
    const double here = base->stats.draft_s;
    if (!(here > 0) || !(s->draft_s > 0))
        return 1;
    const double pace = s->draft_s / here;
    return pace < 1 / MOST_PACE ? 1 / MOST_PACE : pace > MOST_PACE ? MOST_PACE : pace;
}

static int has_learned(const whatif_alternative *a)
{
    return a->drafter != WHATIF_NONE;
}

/* Seconds of the run's own way, as far as they are modelled; of one that is not shown (its drafter
 * is not asked about) what the trace tells of it, and the passes of prefill. */
static double own_seconds(const whatif *w, const pl_trace_step *s, const worker_share *shares,
    const double *mixed, played *p, double pace)
{
    double most = 0;

    if (w->list[0].is_shown) {
        p->busy_s += (pace - 1) * p->stats.draft_s / s->n_workers;
        return p->busy_s;
    }
    for (int i = 0; i < s->n_workers; i++)
        if (shares[i].busy_s + mixed[i] > most)
            most = shares[i].busy_s + mixed[i];
    return most;
}

static pl_status play_alternatives(
    whatif *w, const pl_trace_step *s, const whatif_batch *b, pl_error *err)
{
    worker_share shares[WORKERS];
    double mixed[WORKERS] = {0};
    const int is_counted = counts(w, s->step);
    played p;

    for (int i = 0; i < s->n_workers; i++)
        weigh_worker(w, s, b, i, &shares[i]);
    pl_status st = play(w, &w->list[0], s, b, shares, 1, mixed, &p, err);
    if (st != PL_OK)
        return st;
    const double pace = w->list[0].is_shown ? draft_pace(s, &p) : 1;
    const clock_fit fit = fit_clock(s->gen_s, own_seconds(w, s, shares, mixed, &p, pace));
    if (is_counted)
        count_played(&w->list[0], &p, fit, pace);
    for (int i = 1; i < w->n && st == PL_OK; i++) {
        const double scale = has_learned(&w->list[i]) == has_learned(&w->list[0]) ? pace : 1;
        st = play(w, &w->list[i], s, b, shares, scale, NULL, &p, err);
        if (st == PL_OK && is_counted)
            count_played(&w->list[i], &p, fit, scale);
    }
    return st;
}

static pl_status load_drafters(whatif *w, pl_error *err)
{
    pl_status st = PL_OK;

    for (int i = 0; i < w->n && st == PL_OK; i++)
        if (i > 0 || w->list[0].is_shown)
            st = whatif_alternative_load(&w->list[i], w->r.m.model, w->drafter, err);
    return st;
}

static pl_status play_step(void *ctx, const pl_trace_step *s, pl_error *err)
{
    whatif *w = ctx;
    whatif_features f = {0};
    whatif_batch b = {0};
    char detail[64];

    w->i_next++;
    if (w->last > 0 && s->step > w->last)
        return PL_OK;
    pl_status st = cli_stop ? pl_fail(err, PL_E_STOPPED, "stopped by a signal") : PL_OK;
    if (st == PL_OK)
        st = fill_batch(w, s, &b, err);
    if (st == PL_OK && w->wants_features && counts(w, s->step)) {
        st = make_features(w, s, &f, &b, err);
        if (st == PL_OK)
            st = load_drafters(w, err);
    }
    snprintf(detail, sizeof detail, "step %lld", (long long)s->step);
    run_progress(&w->r.report, "what if", (double)w->n_played / (double)w->n_trace_steps, detail);
    if (st == PL_OK)
        st = play_alternatives(w, s, &b, err);
    run_progress_clear(&w->r.report);
    w->version = s->policy_version;
    w->has_version = 1;
    w->drafter = s->drafter_version;
    w->n_played++;
    whatif_features_done(&f);
    free(b.samples);
    return st == PL_E_STOPPED && cli_stop ? pl_fail(err, st, "stopped by a signal") : st;
}

/* A sitting begins with engines that know nothing. */
static pl_status begin_sitting(void *ctx, const pl_trace_run *r, pl_error *err)
{
    whatif *w = ctx;

    (void)r;
    (void)err;
    for (int i = 0; i < w->n; i++)
        whatif_alternative_forget(&w->list[i]);
    return PL_OK;
}

/* ---- opening ---- */

/* The model alone: nothing is trained. */
static pl_status open_plain(whatif *w, pl_error *err)
{
    replay *r = &w->r;
    const cli_model_options mo = {.path = r->config.rollout.model_path,
        .isa = r->config.trainer.isa,
        .threads = r->config.trainer.threads};

    r->o = &w->plain;
    r->log = (pl_log){PL_LOG_INFO, STDERR_FILENO, isatty(STDERR_FILENO)};
    r->report = (run_report){.is_tty = r->log.is_tty, .t0 = run_seconds()};
    w->has_replay = 1;
    return cli_model_open(&r->m, &mo, &r->log, err);
}

static pl_status open_run(whatif *w, pl_error *err)
{
    pl_status st = PL_OK;

    if (w->wants_features) {
        st = replay_open(&w->r, &w->plain, w->recorded.first_step - 1, err);
        w->has_replay = st == PL_OK;
    } else {
        st = open_plain(w, err);
    }
    if (st != PL_OK)
        return st;
    const int n_ctx = pl_source_arch(w->r.m.source)->n_ctx;
    st = run_data_open(&w->data, &w->r.config, w->r.m.tokenizer, n_ctx, err);
    if (st != PL_OK)
        return st;
    const int max_ctx = run_data_longest(&w->data) + (int)w->r.config.data.max_response_length;
    for (int i = 0; i < w->n; i++)
        run_engine_options(&w->list[i].config, max_ctx, &w->list[i].options);
    if (!w->wants_features) /* a run's learned way is not asked about: passes of prefill alone */
        w->list[0].options.learned_window = 0;
    return PL_OK;
}

/* Words without a dot before their = are alternatives; the others are keys for all. */
static int is_alternative(const char *word)
{
    return memchr(word, '.', strcspn(word, "=")) == NULL;
}

static pl_status parse_alternatives(whatif *w, pl_error *err)
{
    const replay_options *o = w->o;
    char *words[CLI_LIST_MAX], line[PL_CONFIG_STR + 64];
    int n_words = 0;
    pl_status st = PL_OK;

    for (int i = 0; i < o->n_overrides && n_words < CLI_LIST_MAX - 1; i++)
        if (!is_alternative(o->overrides[i]))
            words[n_words++] = o->overrides[i];
    if (o->controller) {
        snprintf(line, sizeof line, "speculative.controller=%s", o->controller);
        words[n_words++] = line;
    }
    whatif_alternative_base(&w->list[0], &w->r.config);
    w->n = 1;
    for (int i = 0; i < o->n_overrides && st == PL_OK; i++) {
        if (!is_alternative(o->overrides[i]))
            continue;
        if (w->n == ALTERNATIVES)
            return pl_fail(
                err, PL_E_USAGE, "more than %d alternatives: ask twice", ALTERNATIVES - 1);
        whatif_alternative *a = &w->list[w->n++];
        st = whatif_alternative_parse(
            a, o->overrides[i], &w->r.config, o->run_dir, words, n_words, err);
        w->wants_features |= has_learned(a);
    }
    if (st == PL_OK && has_learned(&w->list[0]) && !w->wants_features) {
        w->list[0].is_shown = w->n == 1; /* alone, it is what was asked for */
        w->wants_features = w->n == 1;
    }
    return st;
}

/* Keys for all may move the model or the data, but not change what was sampled. */
static pl_status check_keys(replay_options *o, const run_config *c, pl_error *err)
{
    char *const *words = o->overrides;
    const int n = o->n_overrides;
    run_config *own = malloc(sizeof *own);

    o->overrides = NULL;
    o->n_overrides = 0;
    pl_status st = own ? replay_config(o, own, err) : pl_fail(err, PL_E_NOMEM, "no memory");
    o->overrides = words;
    o->n_overrides = n;
    if (st == PL_OK) {
        memcpy(own->rollout.model_path, c->rollout.model_path, sizeof own->rollout.model_path);
        if (run_config_hash(own) != run_config_hash(c))
            st = pl_fail(err, PL_E_CONFIG,
                "a key of the command line changes what is sampled or trained, and the record "
                "would be another one: only drafting can be asked about");
    }
    free(own);
    return st;
}

static pl_status run_whatif(whatif *w, pl_error *err)
{
    const pl_trace_visitor v = {.ctx = w, .run = begin_sitting, .step = play_step};
    const replay_options *o = w->o;
    pl_trace_report report;
    char beyond[320];

    if (trace_beyond(o->run_dir, beyond, sizeof beyond))
        fprintf(stderr, "paceline: %s\n", beyond);
    w->plain = *o;
    w->plain.controller = NULL;
    w->first = w->last = o->step;
    pl_status st = replay_config(&w->plain, &w->r.config, err);
    if (st == PL_OK)
        st = check_keys(&w->plain, &w->r.config, err);
    if (st == PL_OK)
        st = parse_alternatives(w, err);
    if (st == PL_OK)
        st = survey(w, err);
    if (st == PL_OK)
        st = open_run(w, err);
    w->i_next = 0;
    if (st == PL_OK)
        st = pl_trace_read(o->run_dir, &v, &report, err);
    if (st != PL_OK)
        return st;
    return whatif_print(o->run_dir, &w->recorded, w->list, w->n, o->json, err);
}

pl_status replay_what_if(const replay_options *o, pl_error *err)
{
    whatif *w = calloc(1, sizeof *w);

    if (!w)
        return pl_fail(err, PL_E_NOMEM, "no memory");
    w->o = o;
    w->list = calloc(ALTERNATIVES, sizeof *w->list);
    pl_status st = w->list ? run_whatif(w, err) : pl_fail(err, PL_E_NOMEM, "no memory");
    for (int i = 0; w->list && i < w->n; i++)
        whatif_alternative_done(&w->list[i]);
    free(w->list);
    trace_rows_done(&w->rows);
    run_data_close(&w->data);
    if (w->has_replay)
        replay_close(&w->r);
    free(w);
    return st;
}
