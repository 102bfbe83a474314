/* trainer/spot_train.c - one optimizer step of the lead, one gradient of a joiner.
 *
 *   1. read the valid half's weights, if they are not here     spot_sync
 *   2. choose windows                                          spot_pick
 *   3. gradients                                               pl_eagle_gradients
 *   4. the joiners' that are there within a quarter of 3       spot_joiners_add
 *   5. from the valid half into the other, and flip            apply
 *
 * A stop before the flip leaves the state as it was. */
#include "core/file.h"
#include "trainer/spot_internal.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    PART = 32 << 10,  /* elements of an update between two looks at should_stop */
    COPY = 256 << 10, /* of a copy: in fresh memory, 3 ms */
    JOINER_POLLS = 20 /* of a millisecond, before a joiner says that nothing is new */
};

/* Of an own gradient's time, that a step waits for others. */
#define JOINER_WAIT 0.25

/* ---- windows ---- */

pl_status spot_batch_init(spot_batch *b, const pl_spot *s, int room, pl_error *err)
{
    const size_t rows = (size_t)s->o.windows.window, n = (size_t)room;

    *b = (spot_batch){.room = room};
    b->storage = malloc(n * pl_windows_room(&s->o.windows));
    b->windows = calloc(n, sizeof *b->windows);
    b->train = calloc(n, sizeof *b->train);
    b->is_target = calloc(n * rows, sizeof *b->is_target);
    b->lse = malloc(n * rows * sizeof *b->lse);
    b->uids = calloc(n, sizeof *b->uids);
    if (!b->storage || !b->windows || !b->train || !b->is_target || !b->lse || !b->uids) {
        spot_batch_done(b);
        return pl_fail(err, PL_E_NOMEM, "drafter training: no memory for %d windows", room);
    }
    return PL_OK;
}

void spot_batch_done(spot_batch *b)
{
    free(b->storage);
    free(b->windows);
    free(b->train);
    free(b->is_target);
    free(b->lse);
    free(b->uids);
    *b = (spot_batch){0};
}

/* What the drafter's training reads of a recorded window.  The prediction at position t counts when
 * token t + 1 belongs to the response. */
static void convert(const pl_spot *s, spot_batch *b, int i)
{
    const pl_feature_window *w = &b->windows[i];
    uint8_t *is_target = b->is_target + (size_t)i * (size_t)s->o.windows.window;
    float *lse = b->lse + (size_t)i * (size_t)s->o.windows.window;

    for (int r = 0; r < w->n; r++) {
        is_target[r] = w->position + r + 1 >= w->n_prompt && !(w->is_last && r == w->n - 1);
        lse[r] = NAN; /* the trainer finds it: the target's weights may have changed */
    }
    b->train[i] = (pl_eagle_window){.tokens = w->tokens,
        .features = w->features,
        .hidden = w->hidden,
        .is_target = is_target,
        .n = w->n,
        .position = w->position,
        .temperature = w->temperature,
        .lse = lse};
    b->uids[i] = w->uid;
}

pl_windows_pick spot_pick_rule(pl_spot *s, int is_held_out)
{
    const uint64_t mix[3] = {s->o.seed, s->mark, is_held_out ? 0 : ++s->n_picks};

    return (pl_windows_pick){.is_held_out = is_held_out,
        .newest = s->newest,
        .seed = pl_hash64(mix, sizeof mix),
        .min_rows = s->o.train.depth + 2,
        .should_stop = spot_stopped,
        .stop_ctx = s};
}

void spot_pick(pl_spot *s, spot_batch *b, const pl_windows_pick *p)
{
    const double t0 = spot_now();

    b->n = s->n_views > 0
               ? pl_windows_choose(s->views, s->n_views, p, b->storage, b->windows, b->room)
               : 0;
    for (int i = 0; i < b->n; i++)
        convert(s, b, i);
    s->stats.pack_s += spot_now() - t0;
}

static pl_status pick_training(pl_spot *s, pl_error *err)
{
    const pl_windows_pick rule = spot_pick_rule(s, 0);

    spot_pick(s, &s->batch, &rule);
    if (spot_stopped(s))
        return spot_stop(err);
    if (s->batch.n == 0)
        return pl_fail(err, PL_E_TIMEOUT, "drafter training: nothing to train on yet");
    return PL_OK;
}

/* ---- weights ---- */

pl_status spot_copy_weights(pl_spot *s, pl_eagle *e, const float *weights, pl_error *err)
{
    const size_t n_all = pl_eagle_n_elements(e);

    for (size_t i = 0; i < n_all; i += COPY) {
        if (spot_stopped(s))
            return spot_stop(err);
        pl_eagle_set_part(e, weights, i, n_all - i < COPY ? n_all - i : COPY);
    }
    return PL_OK;
}

/* ---- gradients ---- */

/* A bad batch is dropped; three in a row end the session. */
static pl_status drop_batch(pl_spot *s, pl_status st, pl_error *err)
{
    s->stats.n_dropped++;
    if (st == PL_E_INVAL) /* no prediction in it counts */
        return pl_fail(err, PL_E_TIMEOUT, "drafter training: nothing to train on yet");
    if (st != PL_E_NUMERIC)
        return st;
    if (++s->n_bad < SPOT_BAD_MAX) {
        pl_log_warn(s->log, "%s; continuing", err ? err->msg : "drafter training: NaN");
        return PL_E_NUMERIC;
    }
    s->is_over = 1;
    return pl_wrap(
        err, st, "%d bad batches in a row, the drafter's training session is over", s->n_bad);
}

static pl_status make_gradients(
    pl_spot *s, int (*stop)(void *ctx), void *ctx, float *grads, pl_error *err)
{
    const pl_status st =
        pl_eagle_gradients(s->t, s->batch.train, s->batch.n, stop, ctx, grads, &s->stats.last, err);

    if (st != PL_OK)
        return drop_batch(s, st, err);
    s->n_bad = 0;
    return PL_OK;
}

/* ---- the lead ---- */

/* Steps as large as a random start needs them spoil a drafter that has learned: batches are small.
 */
static float rate_at(const pl_spot *s, int64_t step)
{
    const double falling = 1 / (1 + (double)step / SPOT_DECAY_STEPS);
    return s->o.train.lr * (float)(falling > SPOT_DECAY_MIN ? falling : SPOT_DECAY_MIN);
}

/* From the valid half into the other. */
static pl_status apply(pl_spot *s, double norm, double t0, pl_error *err)
{
    const size_t n = (size_t)s->file.head.n_elements;
    pl_eagle_train_options o = s->o.train;
    spot_change c;
    pl_status st = spot_change_begin(s, &c, err);

    if (st != PL_OK)
        return st;
    o.lr = rate_at(s, c.old.step);
    for (size_t at = 0; at < n && st == PL_OK; at += PART) {
        pl_eagle_update_part(
            s->e, &o, &c.src, s->grads, norm, &c.dst, at, n - at < PART ? n - at : PART);
        st = spot_stopped(s) ? spot_stop(err) : spot_claim_check(s, err);
    }
    if (st == PL_OK) {
        memcpy(c.next.measured, pl_eagle_trainer_measured(s->t), sizeof c.next.measured);
        c.next.trained_us = c.old.trained_us + (uint64_t)((spot_now() - t0) * 1e6);
        spot_change_flip(s, &c);
        pl_eagle_set_weights(s->e, c.dst.weights);
        s->seq = c.next.seq;
    } else
        s->stats.n_dropped++;
    spot_change_end(s);
    return st;
}

pl_status spot_step_lead(pl_spot *s, pl_error *err)
{
    const double t0 = spot_now();
    pl_status st = spot_sync(s, err);

    if (st == PL_OK)
        st = pick_training(s, err);
    if (st != PL_OK)
        return st;
    const double t1 = spot_now();
    spot_joiners_scan(s);
    st = make_gradients(s, spot_stopped, s, s->grads, err);
    int64_t n_tokens = s->stats.last.n_tokens;
    if (st == PL_OK)
        st = spot_joiners_add(s, s->seq, JOINER_WAIT * (spot_now() - t1), &n_tokens, err);
    if (st == PL_OK) {
        s->stats.last.grad_norm = pl_eagle_norm(s->e, s->grads);
        st = isfinite(s->stats.last.grad_norm)
                 ? apply(s, s->stats.last.grad_norm, t0, err)
                 : drop_batch(s,
                       pl_fail(err, PL_E_NUMERIC, "drafter training: a gradient is not finite"),
                       err);
    }
    s->stats.train_s += spot_now() - t1;
    if (st == PL_OK) {
        s->stats.n_steps++;
        s->stats.n_tokens += n_tokens;
    }
    return st == PL_E_NUMERIC && !s->is_over ? PL_OK : st;
}

/* ---- a joiner ---- */

/* The lead went on without us: what we do is for nothing. */
static int is_late(void *ctx)
{
    pl_spot *s = ctx;
    spot_record r;

    return spot_stopped(s) || spot_valid(&s->file, &r) < 0 || r.seq != s->seq;
}

/* Wait a little for weights that we have not worked on. */
static pl_status wait_for_step(pl_spot *s, pl_error *err)
{
    const uint64_t last = s->seq;
    spot_record r;

    for (int i = 0; i < JOINER_POLLS; i++) {
        if (spot_stopped(s))
            return spot_stop(err);
        if (spot_valid(&s->file, &r) >= 0 && r.seq != last)
            return PL_OK;
        spot_sleep(0.001);
    }
    return pl_fail(err, PL_E_TIMEOUT, "drafter training: the lead has finished no step since");
}

pl_status spot_step_joiner(pl_spot *s, pl_error *err)
{
    pl_status st = s->own_seq == s->seq && s->seq != 0 ? wait_for_step(s, err) : PL_OK;

    if (st == PL_OK)
        st = spot_sync(s, err);
    if (st == PL_OK)
        st = spot_own_open(s, err);
    if (st == PL_OK)
        st = pick_training(s, err);
    if (st != PL_OK)
        return st;
    const double t0 = spot_now();
    float *grads = spot_own_begin(s);
    st = make_gradients(s, is_late, s, grads, err);
    if (st == PL_OK) {
        spot_own_commit(s, s->seq, s->stats.last.n_tokens);
        s->own_seq = s->seq;
        s->stats.n_steps++;
        s->stats.n_tokens += s->stats.last.n_tokens;
    } else if (st == PL_E_STOPPED && !spot_stopped(s)) {
        s->own_seq = 0;
        st = pl_fail(err, PL_E_TIMEOUT, "drafter training: the lead was faster");
    }
    s->stats.train_s += spot_now() - t0;
    return st == PL_E_NUMERIC && !s->is_over ? PL_OK : st;
}
