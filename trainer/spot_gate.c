/* trainer/spot_gate.c - is the drafter in training better than the one that serves?
 *
 * Exact replays (drafter/replay.h) on held-out windows, a few windows at a time: each piece that is
 * done stays done when the device is taken away in the next one.
 *
 *     due --(it served enough)--> pieces of serving, parent --> verdict on the serving one
 *      |                                                         | it stays
 *      +--(enough held out)--> candidate copied <----------------+
 *                                   |
 *                                   +--> pieces of serving, candidate --> verdict on the candidate
 *
 *   the serving one's parent is better than it by two standard errors,     the parent's weights
 *     paired, on the rounds that it served                                  under a new number
 *   the candidate is better than it by more than one, on what is held out  published
 * The rounds that a version served came after it was trained (unless a run was set back and draws
 * them again), so they need not be held out.  It is
 * weighed once a policy version.  With none in service the candidate is held against a token a
 * round: no drafting. */
#include "core/file.h"
#include "trainer/spot_internal.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const pl_replay_options gate_replay = {.steps = 6, .topk = 4, .verify = 16};

/* Standard errors. */
#define BETTER   1.0
#define ROLLBACK 2.0

/* Training between two gates is at least so many times what a gate takes. */
#define GATE_PAUSE 2.0

enum {
    LOOK_AGAIN_US = 1000000, /* training between two looks for windows, when there were too few */
    GATE_AGE = 8 /* policy versions that a gate's text may be behind: sessions can be too short for
                    a whole gate, and both drafters are weighed on the same text */
};

static uint64_t trained_us(const pl_spot *s)
{
    spot_record r;
    return spot_valid(&s->file, &r) >= 0 ? r.trained_us : 0;
}

/* After a gate without a verdict, or it never trains. */
static void wait_for_more(pl_spot *s)
{
    s->gate.check_us = trained_us(s) + (uint64_t)(GATE_PAUSE * s->gate.cost_s * 1e6);
}

int spot_gate_is_due(const pl_spot *s)
{
    spot_record r;

    if (s->gate.is_on)
        return 1;
    if (s->publish.job.is_running || spot_valid(&s->file, &r) < 0 || r.trained_us == 0)
        return 0;
    const uint64_t gated = atomic_load(&spot_claim_of(&s->file)->gated_us);
    const double pause = s->o.gate_s > 0 ? GATE_PAUSE * s->gate.cost_s : 0;
    const double after = pause > s->o.gate_s ? pause : s->o.gate_s;
    return (double)r.trained_us >= (double)gated + after * 1e6 &&
           r.trained_us >= s->gate.check_us && r.step != s->gate.step;
}

void spot_gate_drop(pl_spot *s)
{
    spot_gate *g = &s->gate;

    g->candidate.n_done = g->parent.n_done = 0;
    g->is_on = g->is_back = 0;
}

void spot_gate_done(pl_spot *s)
{
    spot_gate *g = &s->gate;

    spot_gate_drop(s);
    pl_eagle_free(g->candidate.e);
    pl_eagle_free(g->parent.e);
    spot_batch_done(&g->batch);
    free(g->candidate.rounds);
    free(g->serving.rounds);
    free(g->served.rounds);
    free(g->parent.rounds);
}

void spot_gate_serve(pl_spot *s, pl_eagle *e, uint32_t version)
{
    spot_gate *g = &s->gate;
    pl_eagle *oldest = g->parent.e;

    g->parent.e = s->serving;
    g->parent.version = s->serving_version;
    s->serving = e;
    s->serving_version = version;
    g->has_serving = 0;
    g->serving.n_done = 0;
    if (g->candidate.e)
        pl_eagle_free(oldest);
    else
        g->candidate.e = oldest;
}

/* ---- the windows ---- */

static int64_t counted(const spot_batch *b, int i, int from)
{
    int64_t n = 0;
    for (int r = from; r < b->train[i].n; r++)
        n += b->train[i].is_target[r];
    return n;
}

static int is_new_uid(const spot_batch *b, int i)
{
    for (int k = 0; k < i; k++)
        if (b->uids[k] == b->uids[i])
            return 0;
    return 1;
}

/* Keep as many as a gate needs, whole samples, of what is held out or of what a version served.
 * Returns 0 when there are too few. */
static int choose_windows(pl_spot *s, uint32_t served_by)
{
    spot_batch *b = &s->gate.batch;
    pl_windows_pick rule = spot_pick_rule(s, 1);
    int64_t n_tokens = 0;
    int n_samples = 0;

    rule.served_by = served_by;
    spot_pick(s, b, &rule);
    for (int i = 0; i < b->n; i++) {
        const int is_new = is_new_uid(b, i);
        if (is_new && n_tokens >= s->o.gate_tokens && n_samples >= s->o.gate_samples) {
            b->n = i;
            break;
        }
        n_samples += is_new;
        n_tokens += counted(b, i, served_by ? b->windows[i].served_from : 0);
    }
    return b->n > 0 && n_tokens >= s->o.gate_tokens && n_samples >= s->o.gate_samples;
}

static uint64_t key_of(const pl_spot *s)
{
    const spot_batch *b = &s->gate.batch;
    uint64_t key = 0;

    for (int i = 0; i < b->n; i++) {
        const pl_feature_window *w = &b->windows[i];
        const uint64_t mix[5] = {key, w->uid, w->policy_version,
            (uint64_t)(uint32_t)w->position << 32 | (uint32_t)w->n,
            pl_hash64(w->tokens, (size_t)w->n * sizeof *w->tokens)};
        key = pl_hash64(mix, sizeof mix);
    }
    return key;
}

/* ---- begin ---- */

static int is_alike(const pl_eagle *a, const pl_eagle *b)
{
    const pl_eagle_shape x = pl_eagle_get_shape(a), y = pl_eagle_get_shape(b);

    return x.n_ff == y.n_ff && x.n_heads == y.n_heads && x.n_kv_heads == y.n_kv_heads &&
           x.n_vocab == y.n_vocab && x.no_fc_norm == y.no_fc_norm && x.raw_output == y.raw_output &&
           x.eps == y.eps &&
           memcmp(pl_eagle_vocab(a), pl_eagle_vocab(b), (size_t)x.n_vocab * sizeof(int32_t)) == 0;
}

/* The average when there is one: it is what would serve. */
static pl_status copy_candidate(pl_spot *s, pl_error *err)
{
    const pl_eagle_shape shape = pl_eagle_get_shape(s->e);
    spot_record r;
    const int half = spot_valid(&s->file, &r);

    if (half < 0 || r.seq != s->seq)
        return pl_fail(err, PL_E_TIMEOUT, "drafter gate: the state moved on");
    const pl_eagle_state state = spot_half(&s->file, half, r.step);
    const float *weights = state.average ? state.average : state.weights;
    pl_eagle **e = &s->gate.candidate.e;
    pl_status st = PL_OK;
    if (!*e || !is_alike(*e, s->e)) {
        pl_eagle_free(*e);
        *e = NULL;
        st = pl_eagle_from(e, s->target, &shape, pl_eagle_vocab(s->e), NULL, err);
    }
    if (st != PL_OK)
        return st;
    st = spot_copy_weights(s, *e, weights, err);
    if (st == PL_OK)
        s->gate.step = r.step;
    return st;
}

static int is_back_due(const pl_spot *s)
{
    const spot_gate *g = &s->gate;

    return s->serving && s->serving_parent != 0 && !s->serving_is_rollback &&
           (g->back_version != s->serving_version || g->back_newest != s->newest);
}

static void set_back_done(pl_spot *s)
{
    s->gate.back_version = s->serving_version;
    s->gate.back_newest = s->newest;
}

static pl_status load_parent(pl_spot *s, pl_error *err)
{
    spot_side *parent = &s->gate.parent;

    if (parent->e && parent->version == s->serving_parent)
        return PL_OK;
    pl_eagle_free(parent->e);
    parent->e = NULL;
    parent->version = s->serving_parent;
    return spot_version_load(s, s->serving_parent, &parent->e, err);
}

/* PL_E_TIMEOUT: it cannot be weighed now. */
static pl_status begin_back(pl_spot *s, pl_error *err)
{
    spot_gate *g = &s->gate;
    spot_record r;

    const int is_enough = choose_windows(s, s->serving_version);
    if (spot_stopped(s))
        return spot_stop(err);
    if (!is_enough)
        return pl_fail(err, PL_E_TIMEOUT, "drafter gate: it served too little yet");
    const pl_status st = load_parent(s, err);
    if (st == PL_E_STOPPED)
        return st;
    if (st != PL_OK) {
        set_back_done(s);
        pl_log_debug(s->log, "drafter gate: no parent to compare with: %s", err ? err->msg : "");
        return PL_E_TIMEOUT;
    }
    if (spot_valid(&s->file, &r) >= 0)
        g->step = r.step;
    g->newest = s->newest;
    g->served.e = s->serving;
    g->served.version = s->serving_version;
    g->served.n_done = g->parent.n_done = 0;
    g->is_back = g->is_on = 1;
    return PL_OK;
}

static pl_status begin_candidate(pl_spot *s, pl_error *err)
{
    spot_gate *g = &s->gate;

    const int is_enough = choose_windows(s, 0);
    if (spot_stopped(s))
        return spot_stop(err);
    if (!is_enough) {
        g->check_us = trained_us(s) + LOOK_AGAIN_US;
        return pl_fail(err, PL_E_TIMEOUT, "drafter gate: too little is held out yet");
    }
    const uint64_t key = key_of(s);
    if (key != g->key || !g->has_serving)
        g->serving.n_done = 0; /* else what it reached on these windows is known */
    g->key = key;
    g->newest = s->newest;
    g->serving.e = s->serving;
    g->serving.version = s->serving_version;
    g->has_serving = s->serving != NULL;
    if (spot_stopped(s))
        return spot_stop(err);
    const pl_status st = copy_candidate(s, err);
    if (st != PL_OK)
        return st;
    g->is_on = 1;
    return PL_OK;
}

static pl_status begin(pl_spot *s, pl_error *err)
{
    spot_gate *g = &s->gate;
    pl_status st = spot_sync(s, err);

    if (st == PL_OK)
        st = spot_versions_open(s, err); /* another lead may have published */
    if (st != PL_OK)
        return st;
    st = spot_init_load(s, err);
    if (st == PL_E_STOPPED)
        return st;
    if (st != PL_OK) { /* without it nothing can be weighed; training goes on meanwhile */
        g->check_us = trained_us(s) + LOOK_AGAIN_US;
        return st;
    }
    st = is_back_due(s) ? begin_back(s, err) : PL_E_TIMEOUT;
    if (st == PL_E_TIMEOUT)
        st = begin_candidate(s, err);
    if (st == PL_OK)
        g->cost_s = 0;
    return st;
}

/* ---- the verdict ---- */

/* A token a round. */
static void without_drafting(pl_spot *s)
{
    spot_gate *g = &s->gate;

    for (int i = 0; i < g->batch.n; i++) {
        const int64_t n = g->candidate.rounds[i].n_tokens;
        g->serving.rounds[i] = (pl_replay_window){.n_tokens = n, .n_rounds = n};
    }
}

/* Of a gate that has ended. */
static pl_status publish(
    pl_spot *s, spot_side *better, const spot_side *than, int is_rollback, double se, pl_error *err)
{
    const int n = s->gate.batch.n;
    const pl_spot_published what = {.parent = s->serving_version,
        .tau = pl_replay_tau(better->rounds, n),
        .tau_parent = pl_replay_tau(than->rounds, n),
        .se = se,
        .step = s->gate.step,
        .is_rollback = is_rollback};
    pl_eagle *e = better->e;

    better->e = NULL;
    return spot_publish_begin(s, e, &what, err);
}

static void count_gate(pl_spot *s)
{
    s->stats.n_gates++;
    atomic_store(&spot_claim_of(&s->file)->gated_us, trained_us(s));
}

static pl_status decide_back(pl_spot *s, pl_error *err)
{
    spot_gate *g = &s->gate;
    double back, se;

    pl_replay_compare(g->parent.rounds, g->served.rounds, g->batch.uids, g->batch.n, &back, &se);
    set_back_done(s);
    pl_log_debug(s->log, "drafter gate: version %u served windows=%d tau=%.3f parent=%.3f se=%.3f",
        (unsigned)s->serving_version, g->batch.n, pl_replay_tau(g->served.rounds, g->batch.n),
        pl_replay_tau(g->parent.rounds, g->batch.n), se);
    if (!isfinite(se) || !(back > ROLLBACK * se) || !(back > 0)) {
        g->is_on = g->is_back = 0;
        const pl_status st = begin_candidate(s, err);
        if (st == PL_E_TIMEOUT)
            wait_for_more(s);
        return st;
    }
    pl_log_warn(s->log,
        "drafter version %u is taken back: on the rounds that it served %u replays better by %.3f "
        "(se %.3f)",
        (unsigned)s->serving_version, (unsigned)s->serving_parent, back, se);
    count_gate(s);
    const pl_status st = publish(s, &g->parent, &g->served, 1, se, err);
    spot_gate_drop(s);
    return st;
}

static pl_status decide(pl_spot *s, pl_error *err)
{
    spot_gate *g = &s->gate;
    const int n = g->batch.n;
    double gain, se;

    if (!g->has_serving)
        without_drafting(s);
    pl_replay_compare(g->candidate.rounds, g->serving.rounds, g->batch.uids, n, &gain, &se);
    const int is_better = isfinite(se) && gain > BETTER * se && gain > 0;
    count_gate(s);
    pl_log_debug(s->log,
        "drafter gate step=%" PRId64 " windows=%d tau=%.3f serving=%.3f gain=%.3f se=%.3f %s",
        g->step, n, pl_replay_tau(g->candidate.rounds, n), pl_replay_tau(g->serving.rounds, n),
        gain, se, is_better ? "better" : "not better");
    const pl_status st = is_better ? publish(s, &g->candidate, &g->serving, 0, se, err) : PL_OK;
    g->has_serving = s->serving != NULL;
    spot_gate_drop(s);
    return st;
}

/* ---- pieces ---- */

static pl_status replay_piece(pl_spot *s, spot_side *side, pl_error *err)
{
    spot_gate *g = &s->gate;
    const int left = g->batch.n - side->n_done, n = left < SPOT_PIECE ? left : SPOT_PIECE;
    pl_replay_options o = gate_replay;

    o.is_served = g->is_back;
    if (pl_eagle_pack_one(side->e))
        return PL_OK; /* a piece of its own */
    const pl_status st = pl_replay(s->target, side->e, g->batch.windows + side->n_done, n, &o,
        spot_stopped, s, side->rounds + side->n_done, err);

    if (st == PL_OK)
        side->n_done += n;
    return st;
}

static pl_status work(pl_spot *s, pl_error *err)
{
    spot_gate *g = &s->gate;
    const int n = g->batch.n;

    if (g->is_back && g->served.n_done < n)
        return replay_piece(s, &g->served, err);
    if (g->is_back && g->parent.n_done < n)
        return replay_piece(s, &g->parent, err);
    if (g->is_back)
        return decide_back(s, err);
    if (g->has_serving && g->serving.n_done < n)
        return replay_piece(s, &g->serving, err);
    if (g->candidate.n_done < n)
        return replay_piece(s, &g->candidate, err);
    return decide(s, err);
}

/* Is what was begun, in another session perhaps, still worth its end? */
static pl_status go_on(pl_spot *s, pl_error *err)
{
    spot_gate *g = &s->gate;

    if (s->newest > g->newest + GATE_AGE) {
        wait_for_more(s);
        return pl_fail(err, PL_E_TIMEOUT, "drafter gate: its text is of a policy long gone");
    }
    const pl_status st = spot_versions_open(s, err); /* another lead may have published */
    if (st == PL_OK && (g->is_back ? g->served.version : g->serving.version) != s->serving_version)
        return pl_fail(err, PL_E_TIMEOUT, "drafter gate: another version serves");
    return st;
}

pl_status spot_gate_work(pl_spot *s, pl_error *err)
{
    const double t0 = spot_now();
    pl_status st = PL_OK;

    if (s->gate.is_on)
        st = go_on(s, err);
    else
        st = begin(s, err);
    if (st == PL_OK)
        st = work(s, err);
    if (st != PL_OK && st != PL_E_STOPPED)
        spot_gate_drop(s);
    s->stats.gate_s += spot_now() - t0;
    if (st != PL_E_TIMEOUT)
        s->gate.cost_s += spot_now() - t0;
    return st;
}
