/* cli/drafter_warmup.c - paceline drafter warmup: train a drafter on recorded samples.
 *
 * A pass over the data visits its samples in keyed random order, as many at a time as their
 * features fit in memory; of these, windows in random order.  All of the order follows from seed,
 * data and options, so a resumed warm-up goes on where it stopped. */
#include "cli/drafter.h"
#include "cli/run.h"
#include "core/file.h"
#include "core/rng.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SHORTEST = 4, SAY_EVERY = 20, BAD_IN_A_ROW = 3, PATH_ROOM = 4096 };

enum { PART = 32768 }; /* positions whose windows are shuffled together */

typedef struct piece { /* a window to be */
    int sample, begin, n;
} piece;

typedef struct warmup {
    const drafter_options *o;
    cli_model *m;
    drafter_data data;
    drafter_features held, pool;
    drafter_student s;
    drafter_place place;
    int *order;      /* [n_train] samples of this pass */
    int n_train, at; /* the next of them */
    int *span_at;    /* [data.n] a sample's span in the pool, -1: not there */
    int fits;        /* the pool can hold every sample: what is made once stays */
    piece *pieces;
    int n_pieces, room_pieces;
    int64_t wanted; /* tokens */
    int n_bad;
    /* since the last line */
    double t0, loss, alpha[PL_EAGLE_DEPTH_MAX];
    int64_t n_steps, n_tokens;
} warmup;

/* Uniform in 0 .. n - 1, by seed, pass and ordinal. */
static int draw_below(const warmup *w, uint32_t what, uint32_t i, int n)
{
    const uint32_t x = pl_noise_word(
        pl_noise_key((uint64_t)w->o->seed), (uint32_t)w->place.epoch, what, PL_NOISE_SHUFFLE, i);
    return (int)((uint64_t)x * (uint64_t)n >> 32);
}

static void shuffle_samples(warmup *w)
{
    int n = 0;

    for (int i = 0; i < w->data.n; i++)
        if (!w->data.samples[i].held)
            w->order[n++] = i;
    for (int i = n - 1; i > 0; i--) {
        const int j = draw_below(w, 0, (uint32_t)i, i + 1), kept = w->order[i];
        w->order[i] = w->order[j];
        w->order[j] = kept;
    }
    w->n_train = n;
    w->at = 0;
}

static pl_status add_piece(warmup *w, piece p, pl_error *err)
{
    if (p.n < SHORTEST)
        return PL_OK;
    if (w->n_pieces == w->room_pieces) {
        const int room = w->room_pieces > 0 ? w->room_pieces * 2 : 256;
        piece *grown = realloc(w->pieces, (size_t)room * sizeof *grown);
        if (!grown)
            return pl_fail(err, PL_E_NOMEM, "no memory for %d windows", room);
        w->pieces = grown;
        w->room_pieces = room;
    }
    w->pieces[w->n_pieces++] = p;
    return PL_OK;
}

/* Cut a sample into windows, another way in each pass: the first one is of random length. */
static pl_status cut_sample(warmup *w, int i_sample, pl_error *err)
{
    const drafter_sample *s = &w->data.samples[i_sample];
    const int window = w->s.o.window, first = drafter_first_position(s);
    pl_status st = PL_OK;
    int n = s->n - first;

    if (n > window) {
        const int low = window / 4;
        n = low + draw_below(w, 1, (uint32_t)i_sample, window - low + 1);
    }
    for (int at = first; at < s->n && st == PL_OK;) {
        st = add_piece(w, (piece){i_sample, at, n}, err);
        at += n;
        n = s->n - at < window ? s->n - at : window;
    }
    return st;
}

/* Have the features of samples from .. at - 1 of the pass in the pool. */
static pl_status fill_pool(warmup *w, int from, pl_error *err)
{
    const double before = w->pool.seconds;
    pl_status st = PL_OK;

    if (!w->fits) {
        drafter_features_clear(&w->pool);
        for (int i = 0; i < w->data.n; i++)
            w->span_at[i] = -1;
    }
    for (int k = from; k < w->at && st == PL_OK; k++) {
        const int i = w->order[k];
        int taken;
        if (w->span_at[i] >= 0)
            continue;
        if (cli_stop)
            return pl_fail(err, PL_E_STOPPED, "stopped by a signal");
        st = drafter_features_add(&w->pool, &w->data.samples[i], NULL, &taken, err);
        assert(st != PL_OK || taken);
        w->span_at[i] = w->pool.n_spans - 1;
    }
    w->t0 += w->pool.seconds - before; /* not of the training */
    return st;
}

/* The next samples of the pass and their windows.  Their features are not made when all of the
 * windows lie before the place where training goes on. */
static pl_status next_part(warmup *w, int64_t *skip, pl_error *err)
{
    const int from = w->at;
    const size_t most = w->pool.room < PART ? w->pool.room : PART;
    size_t rows = 0;
    pl_status st = PL_OK;

    w->n_pieces = 0;
    for (; w->at < w->n_train && st == PL_OK; w->at++) {
        const drafter_sample *s = &w->data.samples[w->order[w->at]];
        rows += (size_t)(s->n - drafter_first_position(s));
        if (rows > most)
            break;
        st = cut_sample(w, w->order[w->at], err);
    }
    for (int i = w->n_pieces - 1; i > 0; i--) {
        const int j = draw_below(w, 2 + (uint32_t)from, (uint32_t)i, i + 1);
        const piece kept = w->pieces[i];
        w->pieces[i] = w->pieces[j];
        w->pieces[j] = kept;
    }
    if (st == PL_OK && *skip >= w->n_pieces) {
        *skip -= w->n_pieces;
        w->n_pieces = 0;
    }
    return st == PL_OK && w->n_pieces > 0 ? fill_pool(w, from, err) : st;
}

static int asked_to_stop(void *ctx)
{
    (void)ctx;
    return cli_stop != 0;
}

/* Constant or a cosine to a tenth; the trainer adds its ramp. */
static double rate_now(const warmup *w)
{
    const double done = (double)w->place.tokens / (double)w->wanted, pi = 3.14159265358979;
    double rate = w->o->lr;

    if (strcmp(w->o->schedule, "cosine") == 0)
        rate *= 0.1 + 0.45 * (1 + cos(pi * (done < 1 ? done : 1)));
    return rate;
}

static void say_progress(warmup *w)
{
    const double seconds = run_seconds() - w->t0, n = (double)w->n_steps;

    fprintf(stderr, "step %lld  %lld of %lld tokens  loss %.3f  alpha", (long long)w->place.step,
        (long long)w->place.tokens, (long long)w->wanted, w->loss / n);
    for (int d = 0; d < w->s.o.depth; d++)
        fprintf(stderr, " %.3f", w->alpha[d] / n);
    fprintf(stderr, "  rate %.1e  %.0f tokens/s\n", rate_now(w), (double)w->n_tokens / seconds);
    w->t0 = run_seconds();
    w->loss = 0;
    w->n_steps = w->n_tokens = 0;
    memset(w->alpha, 0, sizeof w->alpha);
}

static pl_status train_once(warmup *w, const pl_eagle_window *windows, int n, pl_error *err)
{
    pl_eagle_step_stats stats;

    pl_eagle_trainer_set_lr(w->s.trainer, (float)rate_now(w));
    const pl_status st =
        pl_eagle_train_step(w->s.trainer, windows, n, asked_to_stop, w, &stats, err);
    if (st == PL_E_NUMERIC && ++w->n_bad < BAD_IN_A_ROW) {
        fprintf(stderr, "step %lld: %s; its windows are dropped, continuing\n",
            (long long)w->place.step + 1, err->msg);
        w->place.window += n;
        return PL_OK;
    }
    if (st != PL_OK)
        return st;
    w->n_bad = 0;
    w->place.step++;
    w->place.window += n;
    for (int i = 0; i < n; i++) {
        w->place.tokens += windows[i].n;
        w->n_tokens += windows[i].n;
    }
    w->n_steps++;
    w->loss += stats.loss;
    for (int d = 0; d < w->s.o.depth; d++)
        w->alpha[d] += stats.alpha[d];
    if (w->place.step % SAY_EVERY == 0)
        say_progress(w);
    return PL_OK;
}

static pl_status judge(warmup *w, pl_error *err)
{
    drafter_figures g;
    const double t0 = run_seconds();
    pl_eagle_trainer_swap_average(w->s.trainer);
    const pl_status st = drafter_measure(&g, &w->held, &w->s, w->o->eval_tokens, err);
    pl_eagle_trainer_swap_average(w->s.trainer);

    if (st != PL_OK)
        return pl_wrap(err, st, "held-out figures");
    if (w->o->json)
        drafter_print_json(&g, w->place.step, w->place.tokens);
    else
        drafter_print_figures(&g, w->place.tokens);
    w->t0 += run_seconds() - t0; /* not of the training */
    return PL_OK;
}

static int is_done(const warmup *w)
{
    return w->place.tokens >= w->wanted || (w->o->steps > 0 && w->place.step >= w->o->steps);
}

static pl_status train_part(warmup *w, int64_t *skip, pl_error *err)
{
    pl_eagle_window windows[64];
    pl_status st = PL_OK;
    int n = 0;

    for (int i = 0; i < w->n_pieces && st == PL_OK && !is_done(w); i++) {
        const piece *p = &w->pieces[i];
        if (*skip > 0) {
            --*skip;
            continue;
        }
        windows[n++] = drafter_window(&w->pool, &w->pool.spans[w->span_at[p->sample]], p->begin,
            p->n, w->s.noise.temperature);
        if (n < w->s.o.max_windows && i + 1 < w->n_pieces)
            continue;
        st = train_once(w, windows, n, err);
        n = 0;
        if (st == PL_OK && w->place.step % w->o->every == 0 && !is_done(w)) {
            st = judge(w, err);
            if (st == PL_OK)
                st = drafter_save(&w->s, &w->place, w->o->out, err);
        }
    }
    return st;
}

static pl_status plan_pool(warmup *w, pl_error *err)
{
    const size_t bytes = drafter_position_bytes(pl_model_arch(w->m->model), 0);
    size_t rows = 0;

    w->span_at = malloc((size_t)w->data.n * sizeof *w->span_at);
    if (!w->span_at)
        return pl_fail(err, PL_E_NOMEM, "no memory for %d samples", w->data.n);
    for (int i = 0; i < w->data.n; i++) {
        const drafter_sample *s = &w->data.samples[i];
        w->span_at[i] = -1;
        rows += s->held ? 0 : (size_t)(s->n - drafter_first_position(s));
    }
    w->fits = rows <= w->pool.room;
    fprintf(stderr, "features of %zu positions: %.0f MiB%s\n", rows,
        (double)rows * (double)bytes / 1048576,
        w->fits ? "" : ", more than --memory-mb, so they are made anew in every pass");
    return PL_OK;
}

static pl_status train_all(warmup *w, pl_error *err)
{
    int64_t skip = w->place.window;
    pl_status st = plan_pool(w, err);

    w->t0 = run_seconds();
    while (st == PL_OK && !is_done(w)) {
        shuffle_samples(w);
        while (w->at < w->n_train && st == PL_OK && !is_done(w)) {
            st = next_part(w, &skip, err);
            if (st == PL_OK)
                st = train_part(w, &skip, err);
        }
        if (st == PL_OK && !is_done(w)) {
            w->place.epoch++;
            w->place.window = skip = 0;
        }
    }
    if (w->pool.seconds > 0)
        fprintf(stderr, "%lld tokens through the target at %.0f tokens/s\n",
            (long long)w->pool.n_prefilled, (double)w->pool.n_prefilled / w->pool.seconds);
    return st;
}

/* ---- the drafter at the start ---- */

static pl_status start_fresh(warmup *w, pl_error *err)
{
    const pl_arch *a = pl_model_arch(w->m->model);
    int n = w->o->vocab > 0 ? (int)w->o->vocab : 8192;

    n = n < a->n_vocab ? n : a->n_vocab;
    int32_t *ids = malloc((size_t)n * sizeof *ids);
    if (!ids)
        return pl_fail(err, PL_E_NOMEM, "no memory for %d ids", n);
    pl_status st = drafter_count_vocab(ids, n, &w->data, a->n_vocab, err);
    const pl_eagle_options o = {.n_vocab = n, .vocab = ids, .seed = (uint64_t)w->o->seed};
    if (st == PL_OK)
        st = pl_eagle_new(&w->s.eagle, w->m->model, &o, err);
    if (st == PL_OK)
        fprintf(stderr, "random start, seed %lld: draft vocabulary of %d by counting, %.1f MiB\n",
            (long long)w->o->seed, n, (double)pl_eagle_bytes(w->s.eagle) / 1048576);
    free(ids);
    return st;
}

static pl_status start_again(warmup *w, pl_error *err)
{
    drafter_place p;
    char path[PATH_ROOM];

    pl_status st = drafter_read_place(&p, w->o->out, err);
    if (st != PL_OK)
        return pl_wrap(err, st, "--resume");
    if (p.data != w->place.data || p.options != w->place.options || p.model != w->place.model)
        return pl_fail(err, PL_E_USAGE,
            "--resume: '%s' was warmed up with %s; give the same, or another --out", w->o->out,
            p.model != w->place.model ? "another model"
            : p.data != w->place.data ? "other data"
                                      : "other options");
    st = pl_eagle_load(&w->s.eagle, w->m->model, w->o->out, err);
    if (st == PL_OK)
        st = pl_eagle_trainer_new(&w->s.trainer, w->s.eagle, &w->s.o, err);
    snprintf(path, sizeof path, "%s/trainer.state", w->o->out);
    if (st == PL_OK)
        st = pl_eagle_trainer_load(w->s.trainer, path, err);
    w->place = p;
    if (st != PL_OK)
        return st;
    pl_eagle_trainer_swap_average(w->s.trainer); /* saved was the average */
    fprintf(stderr, "going on with '%s' after step %lld, %lld tokens\n", w->o->out,
        (long long)p.step, (long long)p.tokens);
    return st;
}

static uint64_t options_hash(const drafter_options *o, const drafter_noise *noise)
{
    const double mix[] = {(double)o->vocab, (double)o->window, (double)o->windows, (double)o->depth,
        (double)o->seed, (double)o->memory_mb, (double)noise->temperature, o->lr, o->alpha_weight,
        o->depth_decay, o->ema, strcmp(o->schedule, "cosine") == 0};
    return pl_hash64(mix, sizeof mix) ^ pl_hash64(o->loss, strlen(o->loss));
}

static uint64_t model_hash(const pl_model *m)
{
    const pl_arch *a = pl_model_arch(m);
    return pl_hash64(
        pl_model_lend(m).embed, pl_packed_elements(a->n_vocab, a->n_embd) * sizeof(uint16_t));
}

static pl_status prepare(warmup *w, const pl_log *log, pl_error *err)
{
    const drafter_options *o = w->o;
    const size_t bytes = (size_t)o->memory_mb << 20;

    pl_status st = drafter_open_data(&w->data, &w->s.noise, o, w->m, log, err);
    if (st != PL_OK)
        return st;
    if (w->data.n_held == 0 || w->data.n_held == w->data.n)
        return pl_fail(err, PL_E_USAGE,
            "%d of %d samples are held out by --hold-out %s: more prompts, or --hold-out uid",
            w->data.n_held, w->data.n, o->hold);
    fprintf(stderr,
        "%d samples, %lld response tokens to train on; %d samples, %lld held out by "
        "%s\n",
        w->data.n - w->data.n_held, (long long)w->data.n_train_tokens, w->data.n_held,
        (long long)w->data.n_held_tokens, o->hold);
    w->wanted = o->tokens > 0  ? o->tokens
                : o->steps > 0 ? o->steps * o->windows * o->window
                               : 2 * w->data.n_train_tokens;
    w->place.data = w->data.hash;
    w->place.options = options_hash(o, &w->s.noise);
    w->place.model = model_hash(w->m->model);
    w->order = calloc((size_t)w->data.n, sizeof *w->order);
    if (!w->order)
        return pl_fail(err, PL_E_NOMEM, "no memory for %d samples", w->data.n);
    st = o->resume ? start_again(w, err) : start_fresh(w, err);
    if (st == PL_OK && !w->s.trainer)
        st = pl_eagle_trainer_new(&w->s.trainer, w->s.eagle, &w->s.o, err);
    if (st == PL_OK)
        st = drafter_open_held(&w->held, &w->data, o, &w->s.noise, w->m, err);
    if (st != PL_OK)
        return st;
    const size_t held = w->held.room * drafter_position_bytes(pl_model_arch(w->m->model), 1);
    return drafter_features_new(
        &w->pool, w->m, w->held.max_len, bytes > held ? bytes - held : 0, 0, err);
}

static pl_status run_warmup(warmup *w, pl_error *err)
{
    pl_error cause = {0};

    if (!w->o->json)
        drafter_print_heading(w->s.o.depth);
    pl_status st = judge(w, err);
    if (st == PL_OK)
        st = train_all(w, err);
    if (st != PL_OK && st != PL_E_STOPPED)
        return st;
    const int was_stopped = st == PL_E_STOPPED;
    if (!was_stopped)
        st = judge(w, err);
    cause = *err;
    const pl_status saved = drafter_save(&w->s, &w->place, w->o->out, err);
    if (saved != PL_OK)
        return saved;
    if (was_stopped)
        return pl_fail(err, PL_E_STOPPED,
            "stopped after step %lld: saved in '%s'; --resume goes on from there",
            (long long)w->place.step, w->o->out);
    *err = cause;
    fprintf(stderr, "%lld steps, %lld tokens; saved in '%s'\n", (long long)w->place.step,
        (long long)w->place.tokens, w->o->out);
    return st;
}

pl_status drafter_warmup(const drafter_options *o, cli_model *m, const pl_log *log, pl_error *err)
{
    warmup *w = calloc(1, sizeof *w);

    if (!w)
        return pl_fail(err, PL_E_NOMEM, "warm-up: no memory");
    w->o = o;
    w->m = m;
    pl_eagle_train_defaults(&w->s.o);
    w->s.o.window = (int)o->window;
    w->s.o.max_windows = (int)o->windows;
    w->s.o.depth = (int)o->depth;
    w->s.o.lr = (float)o->lr;
    w->s.o.alpha_weight = (float)o->alpha_weight;
    w->s.o.depth_decay = (float)o->depth_decay;
    w->s.o.ema = (float)o->ema;
    pl_status st = drafter_loss_parse(&w->s.o.loss, o->loss, err);
    if (st == PL_OK)
        st = prepare(w, log, err);
    if (st == PL_OK)
        st = run_warmup(w, err);
    drafter_student_done(&w->s);
    drafter_features_done(&w->pool);
    drafter_features_done(&w->held);
    drafter_data_done(&w->data);
    free(w->pieces);
    free(w->order);
    free(w->span_at);
    free(w);
    return st;
}
