/* trainer/trainer.c - one step of GRPO.  pl_trainer_step is the main data path: start reading
 * there.
 *
 * What decides the bits: the order of the samples (that of their uids), their lengths, which of
 * them carry a gradient (decided by rewards alone) and ppo_max_token_len.  Sequences are packed
 * greedily in that order.  A weight gradient is a dot over the packed token index, so the sequences
 * with a gradient are packed by themselves; those without (a group of equal rewards and no KL term)
 * only pass the check of law 1, forward, which saves two thirds of their work and changes no
 * gradient. */
#include "core/rng.h"
#include "trainer/internal.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef enum run_kind {
    RUN_REFERENCE, /* log-probs of the initial policy, for KL */
    RUN_CHECK,     /* compare with the rollout's log-probs */
    RUN_TRAIN,     /* forward, loss and backward */
} run_kind;

/* A backward pass costs two forward passes: for the progress bar. */
static const int work_of[] = {1, 1, 3};

/* The running step. */
typedef struct step_run {
    pl_trainer *t;
    int n_groups, n; /* groups, samples of a group */
    run_kind kind;
    int is_first;   /* no update has been made: every log-prob must equal the rollout's */
    const int *ids; /* sequences of the micro-batch */
    pl_step_stats *stats;

    double pg_loss, kl_loss, entropy, old_minus_new, n_clipped; /* sums */
    int64_t n_seen, n_trained; /* tokens through RUN_TRAIN; tokens of all mini-batches */
    double grad_norm;          /* sum over updates */
    int n_updates;
    double old_minus_first, k3, weights, squares; /* sums before the first update */

    const pl_sample *bad; /* with the first log-prob that differs */
    int bad_position;
    float bad_here, bad_there;

    pl_progress_fn progress;
    pl_stop_fn should_stop;
    void *ctx;
    double work, work_total; /* rows of forward passes */
} step_run;

/* ---- one token ---- */

/* The first fault of a sample counts. */
static void blame(step_run *s, pl_sample *x, pl_audit why, int position)
{
    if (x->audit != PL_AUDIT_OK)
        return;
    x->audit = why;
    x->audit_position = position;
    s->stats->n_bad++;
}

/* The two of pl_train_redraw. */
static int wants_redraw(void *ctx, int i_seq, int i_token, pl_draw *draw)
{
    const step_run *s = ctx;

    return s->is_first &&
           audit_wants(&s->t->audit, s->t->seqs[s->ids[i_seq]].sample->response, i_token, draw);
}

static void on_redrawn(void *ctx, int i_seq, int i_token, int32_t token)
{
    step_run *s = ctx;
    pl_sample *x = s->t->seqs[s->ids[i_seq]].sample;

    s->stats->n_redrawn++;
    if (x->response->tokens[i_token - x->response->n_prompt] != token)
        blame(s, x, PL_AUDIT_TOKEN, i_token);
}

/* How far the policy is from the one that drew the token; d: log of their ratio. */
static void weigh_token(step_run *s, double d)
{
    const double held = d > 20 ? 20 : d < -20 ? -20 : d; /* as the loss holds it */
    const double w = pl_exp_d(held);

    s->old_minus_first -= d;
    s->k3 += w - held - 1;
    s->weights += w;
    s->squares += w * w;
}

static void check_token(step_run *s, pl_sample *x, int i_token, float logprob, float entropy)
{
    const pl_response *r = x->response;
    const float old = r->logprobs[i_token - r->n_prompt];
    const double deviation = fabs(pl_exp_d((double)logprob - (double)old) - 1);

    s->entropy += (double)entropy;
    if (!(deviation <= s->stats->ratio_max_abs_dev))
        s->stats->ratio_max_abs_dev = deviation;
    weigh_token(s, (double)logprob - (double)old);
    if (memcmp(&old, &logprob, sizeof old) == 0)
        return;
    if (s->stats->logprob_mismatches++ == 0) {
        s->bad = x;
        s->bad_position = i_token;
        s->bad_here = logprob;
        s->bad_there = old;
    }
    if (!s->t->is_off_policy)
        blame(s, x, PL_AUDIT_LOGPROB, i_token);
}

/* The loss of pl_train: i_token is the position in prompt and response. */
static float on_token(void *ctx, int i_seq, int i_token, float logprob, float entropy)
{
    step_run *s = ctx;
    pl_trainer *t = s->t;
    const step_seq *q = &t->seqs[s->ids[i_seq]];
    const pl_response *r = q->sample->response;
    const size_t i_ref = q->offset + (size_t)(i_token - r->n_prompt);
    grpo_terms terms;

    if (s->kind == RUN_REFERENCE) {
        t->ref_logprobs[i_ref] = logprob;
        return 0;
    }
    if (s->is_first)
        check_token(s, q->sample, i_token, logprob, entropy);
    if (s->kind == RUN_CHECK || s->stats->n_bad > 0) /* bad: no update will come of it */
        return 0;

    const grpo_coef coef = {
        .clip_low = 1 - t->o.clip_ratio_low,
        .clip_high = 1 + t->o.clip_ratio_high,
        .kl = t->o.use_kl_loss ? t->o.kl_loss_coef : 0,
    };
    const float old = r->logprobs[i_token - r->n_prompt];
    grpo_token(&coef, (double)q->sample->advantage, logprob, old,
        t->o.use_kl_loss ? &t->ref_logprobs[i_ref] : NULL, &terms);
    s->pg_loss += q->weight * terms.pg_loss;
    s->kl_loss += q->weight * terms.kl_loss;
    s->n_clipped += terms.is_clipped;
    s->old_minus_new += (double)old - (double)logprob;
    s->n_seen++;
    return (float)(q->weight * terms.d_logprob);
}

/* ---- packing ---- */

static int seq_len(const step_seq *q)
{
    return q->sample->response->n_prompt + q->sample->response->n_tokens;
}

/* Put the sequences of ids[0 ..] that fit the budget into the micro-batch.  Returns how many. */
static int fill_batch(pl_trainer *t, const int *ids, int n, int budget)
{
    int rows = 0, at = 0;

    for (int i = 0; i < n; i++) {
        const step_seq *q = &t->seqs[ids[i]];
        const pl_response *r = q->sample->response;
        const int len = seq_len(q);
        rows += pl_train_rows(len);
        if (rows > budget)
            return i;
        memcpy(t->tokens + at, r->prompt, (size_t)r->n_prompt * sizeof *t->tokens);
        memcpy(t->tokens + at + r->n_prompt, r->tokens, (size_t)r->n_tokens * sizeof *t->tokens);
        t->batch[i] = (pl_train_seq){
            .tokens = t->tokens + at,
            .n_tokens = len,
            .n_prompt = r->n_prompt,
            .temperature = r->temperature > 0 ? r->temperature : 1, /* as greedy reports them */
        };
        at += len;
    }
    return n;
}

static double work(const pl_trainer *t, int n, run_kind kind)
{
    double rows = 0;

    for (int i = 0; i < n; i++)
        rows += pl_train_rows(seq_len(&t->seqs[t->ids[i]]));
    return rows * work_of[kind];
}

/* Run the sequences t->ids[0 .. n - 1] in micro-batches. */
static pl_status run_ids(step_run *s, int n, run_kind kind, pl_error *err)
{
    pl_trainer *t = s->t;
    const int is_ref = kind == RUN_REFERENCE;
    const int budget = is_ref ? t->ref_budget : t->budget;
    pl_status st = PL_OK;

    s->kind = kind;
    for (int at = 0; at < n && st == PL_OK;) {
        if (s->is_first && s->should_stop && s->should_stop(s->ctx))
            return pl_fail(err, PL_E_STOPPED, "asked to stop before the update began");
        s->ids = t->ids + at;
        const int taken = fill_batch(t, s->ids, n - at, budget);
        if (kind == RUN_TRAIN)
            st = pl_train_step(t->train, t->batch, taken, on_token, s, t->grads, err);
        else
            st = pl_train_logprobs(
                is_ref ? t->ref_train : t->train, t->batch, taken, on_token, s, err);
        for (int i = 0; i < taken; i++)
            s->work += (double)pl_train_rows(t->batch[i].n_tokens) * work_of[kind];
        at += taken;
        s->stats->n_micro_batches++;
        if (s->progress && st == PL_OK)
            s->progress(s->ctx, s->work / s->work_total);
    }
    return st;
}

/* ---- mini-batches ---- */

typedef struct mini_batch {
    int begin, end; /* of the step's sequences */
} mini_batch;

static int n_minis(const step_run *s)
{
    const int64_t size = s->t->o.ppo_mini_batch_size;
    return size == 0 || size >= s->n_groups ? 1 : (int)((s->n_groups + size - 1) / size);
}

static mini_batch mini_at(const step_run *s, int i)
{
    const int n = n_minis(s);
    const int size = n == 1 ? s->n_groups : (int)s->t->o.ppo_mini_batch_size;
    const int end = (i + 1) * size;
    return (mini_batch){i * size * s->n, (end < s->n_groups ? end : s->n_groups) * s->n};
}

typedef enum pick { PICK_ALL, PICK_CARRYING, PICK_OTHERS } pick;

/* List sequences of a mini-batch in t->ids, but for those that the model must not see.  A sequence
 * carries a gradient when its advantage is not zero, or by the KL term. */
static int select_ids(pl_trainer *t, mini_batch b, pick which)
{
    int n = 0;

    for (int i = b.begin; i < b.end; i++) {
        const int carries = t->o.use_kl_loss || t->seqs[i].sample->advantage != 0;
        if (t->seqs[i].sample->audit == PL_AUDIT_SHAPE)
            continue;
        if (which == PICK_ALL || carries == (which == PICK_CARRYING))
            t->ids[n++] = i;
    }
    return n;
}

/* Weight of each token: the loss is a mean over the whole mini-batch. */
static void weigh(step_run *s, mini_batch b)
{
    const int by_seq = strcmp(s->t->o.loss_agg_mode, "seq-mean-token-mean") == 0;
    int64_t n_tokens = 0;

    for (int i = b.begin; i < b.end; i++)
        n_tokens += s->t->seqs[i].sample->response->n_tokens;
    for (int i = b.begin; i < b.end; i++) {
        const int own = s->t->seqs[i].sample->response->n_tokens;
        s->t->seqs[i].weight = by_seq ? 1.0 / (b.end - b.begin) / own : 1.0 / (double)n_tokens;
    }
    s->n_trained += n_tokens;
}

static pl_status refuse_logprobs(const step_run *s, pl_error *err)
{
    const pl_step_stats *stats = s->stats;

    return pl_fail(err, PL_E_NUMERIC,
        "%lld of %lld log-probs differ from the rollout's, first uid %u position %d (%.9g here, "
        "%.9g there); nothing was changed: rollout and trainer must run the same weights and build",
        (long long)stats->logprob_mismatches, (long long)stats->n_tokens, s->bad->response->uid,
        s->bad_position, (double)s->bad_here, (double)s->bad_there);
}

/* Every sample has been seen: is any bad? */
static pl_status check_law(const step_run *s, pl_error *err)
{
    static const char *const faults[] = {
        [PL_AUDIT_OK] = "",
        [PL_AUDIT_LOGPROB] = "the log-prob is not this policy's",
        [PL_AUDIT_TOKEN] = "logits and noise give another token",
        [PL_AUDIT_SHAPE] = "no response to this run's requests ends or reads so",
    };
    const int n = s->n_groups * s->n;
    const pl_sample *first = NULL;
    int by_logprob = 1;

    if (s->stats->n_bad == 0)
        return PL_OK;
    for (int i = n - 1; i >= 0; i--)
        if (s->t->seqs[i].sample->audit != PL_AUDIT_OK) {
            first = s->t->seqs[i].sample;
            by_logprob &= first->audit == PL_AUDIT_LOGPROB;
        }
    if (by_logprob)
        return refuse_logprobs(s, err);
    return pl_fail(err, PL_E_NUMERIC,
        "%d of %d samples are not what was asked for, first uid %u position %d: %s; nothing was "
        "changed: discard them, and do not trust who sent them",
        s->stats->n_bad, n, first->response ? first->response->uid : 0, first->audit_position,
        faults[first->audit]);
}

/* Check what is to be checked before the first update, then gradients and update. */
static pl_status run_mini(step_run *s, mini_batch b, double lr, pl_error *err)
{
    pl_trainer *t = s->t;
    double norm = 0;
    pl_status st = PL_OK;

    weigh(s, b);
    optimizer_clear_grads(t);
    if (s->is_first)
        st = run_ids(s, select_ids(t, b, PICK_OTHERS), RUN_CHECK, err);
    if (st == PL_OK)
        st = run_ids(s, select_ids(t, b, PICK_CARRYING), RUN_TRAIN, err);
    if (st == PL_OK && s->is_first)
        st = check_law(s, err);
    if (st != PL_OK)
        return st;
    if (s->is_first && s->should_stop && s->should_stop(s->ctx))
        return pl_fail(err, PL_E_STOPPED, "asked to stop before the update began");
    st = optimizer_update(t, lr, &norm, err);
    if (st != PL_OK)
        return st;
    s->is_first = 0;
    s->grad_norm += norm;
    s->n_updates++;
    return PL_OK;
}

/* ---- the step ---- */

/* With an audit a sample that is not whole is blamed, without it is an error of the caller. */
static pl_status check_sample(step_run *s, pl_sample *x, pl_error *err)
{
    const pl_trainer *t = s->t;
    const pl_response *r = x->response;
    int position;

    x->audit = PL_AUDIT_OK;
    x->audit_position = 0;
    if (!isfinite(x->reward))
        return pl_fail(err, PL_E_NUMERIC, "the reward of uid %u is not finite", r ? r->uid : 0);
    if (t->is_audited) {
        if (!audit_has_shape(t, x, &position))
            blame(s, x, PL_AUDIT_SHAPE, position);
        return PL_OK;
    }
    if (!r || r->n_prompt < 1 || r->n_tokens < 1 || !r->logprobs || r->finish == PL_FINISH_ABORTED)
        return pl_fail(err, PL_E_INVAL, "sample of uid %u is not whole: it cannot be trained on",
            r ? r->uid : 0);
    if (r->n_prompt + r->n_tokens > t->max_len)
        return pl_fail(err, PL_E_SHAPE, "sample of uid %u has %d tokens, %d are planned for",
            r->uid, r->n_prompt + r->n_tokens, t->max_len);
    if (pl_train_rows(r->n_prompt + r->n_tokens) > t->budget)
        return pl_fail(err, PL_E_INVAL,
            "sample of uid %u has %d tokens: a micro-batch (ppo_max_token_len) holds %d", r->uid,
            r->n_prompt + r->n_tokens, t->budget);
    return PL_OK;
}

static pl_status make_room(pl_trainer *t, int n_seqs, size_t n_tokens, pl_error *err)
{
    if (n_seqs > t->room_seqs) {
        free(t->seqs);
        free(t->ids);
        free(t->group_rewards);
        t->seqs = calloc((size_t)n_seqs, sizeof *t->seqs);
        t->ids = calloc((size_t)n_seqs, sizeof *t->ids);
        t->group_rewards = calloc((size_t)n_seqs, 2 * sizeof *t->group_rewards);
        t->room_seqs = t->seqs && t->ids && t->group_rewards ? n_seqs : 0;
    }
    if (t->o.use_kl_loss && n_tokens > t->room_ref) {
        free(t->ref_logprobs);
        t->ref_logprobs = calloc(n_tokens, sizeof *t->ref_logprobs);
        t->room_ref = t->ref_logprobs ? n_tokens : 0;
    }
    if (t->room_seqs < n_seqs || (t->o.use_kl_loss && t->room_ref < n_tokens))
        return pl_fail(err, PL_E_NOMEM, "no memory for a step of %d samples", n_seqs);
    return PL_OK;
}

static void set_advantages(const step_run *s, pl_sample *group)
{
    const pl_trainer *t = s->t;
    float *rewards = t->group_rewards;
    float *advantages = rewards + s->n;
    int is_mixed = 0;

    for (int k = 0; k < s->n; k++) {
        rewards[k] = group[k].reward;
        is_mixed |= group[k].reward != group[0].reward;
    }
    pl_grpo_advantages(rewards, s->n, t->o.norm_adv_by_std_in_grpo, advantages);
    for (int k = 0; k < s->n; k++)
        group[k].advantage = advantages[k];
    s->stats->n_zero_std_groups += !is_mixed;
}

/* Response tokens that will be trained on. */
static size_t n_tokens_of(const pl_sample *x)
{
    return x->audit == PL_AUDIT_SHAPE ? 0 : (size_t)x->response->n_tokens;
}

/* Check the samples, fill in their advantages, lay the step out. */
static pl_status begin_step(step_run *s, pl_sample *samples, pl_error *err)
{
    pl_trainer *t = s->t;
    const int n_seqs = s->n_groups * s->n;
    size_t n_tokens = 0;

    for (int i = 0; i < n_seqs; i++) {
        const pl_status st = check_sample(s, &samples[i], err);
        if (st != PL_OK)
            return st;
        n_tokens += n_tokens_of(&samples[i]);
    }
    const pl_status st = make_room(t, n_seqs, n_tokens, err);
    if (st != PL_OK)
        return st;
    for (int g = 0; g < s->n_groups; g++)
        set_advantages(s, samples + (size_t)g * (size_t)s->n);
    s->stats->n_groups = s->n_groups;
    s->stats->n_tokens = (int64_t)n_tokens;
    n_tokens = 0;
    for (int i = 0; i < n_seqs; i++) {
        t->seqs[i] = (step_seq){.sample = &samples[i], .offset = n_tokens};
        n_tokens += n_tokens_of(&samples[i]);
    }
    return PL_OK;
}

/* Rows of work in the whole step, the same as what run_ids counts up to. */
static double plan_work(const step_run *s)
{
    pl_trainer *t = s->t;
    const mini_batch all = {0, s->n_groups * s->n};
    double sum = 0;

    if (t->o.use_kl_loss)
        sum += work(t, select_ids(t, all, PICK_ALL), RUN_REFERENCE);
    for (int i = 0; i < n_minis(s); i++) {
        const mini_batch b = mini_at(s, i);
        const double train = work(t, select_ids(t, b, PICK_CARRYING), RUN_TRAIN);
        sum += train * (double)t->o.ppo_epochs;
        sum += work(t, select_ids(t, b, i == 0 ? PICK_OTHERS : PICK_ALL), RUN_CHECK);
    }
    return sum > 0 ? sum : 1;
}

static double now_s(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void end_step(const step_run *s, double lr)
{
    pl_step_stats *stats = s->stats;

    stats->pg_loss = s->pg_loss / s->n_updates;
    stats->kl_loss = s->kl_loss / s->n_updates;
    stats->grad_norm = s->grad_norm / s->n_updates;
    stats->pg_clipfrac = s->n_clipped / (double)s->n_trained;
    stats->ppo_kl = s->n_seen > 0 ? s->old_minus_new / (double)s->n_seen : 0;
    stats->entropy = s->entropy / (double)stats->n_tokens;
    stats->lr = lr;
    stats->rollout_kl = s->old_minus_first / (double)stats->n_tokens;
    stats->rollout_k3 = s->k3 / (double)stats->n_tokens;
    stats->rollout_ess = s->weights * s->weights / (s->squares * (double)stats->n_tokens);
}

/* 1. the samples are laid out and get their advantages;  2. log-probs of the reference, when KL is
 * asked for;  3. mini-batches that come after the first update are checked against the rollout now,
 * while the weights are still the rollout's;  4. per epoch and mini-batch: the check (first one),
 * gradients, update. */
static pl_status run_step(step_run *s, pl_sample *samples, double lr, pl_error *err)
{
    pl_trainer *t = s->t;
    const mini_batch all = {0, s->n_groups * s->n};

    pl_status st = begin_step(s, samples, err); /* 1 */
    if (st != PL_OK)
        return st;
    s->work_total = plan_work(s);
    if (s->stats->n_bad > 0) { /* no update will come of it: find the other bad ones */
        st = run_ids(s, select_ids(t, all, PICK_ALL), RUN_CHECK, err);
        return st == PL_OK ? check_law(s, err) : st;
    }
    if (t->o.use_kl_loss) /* 2 */
        st = run_ids(s, select_ids(t, all, PICK_ALL), RUN_REFERENCE, err);
    for (int i = 1; i < n_minis(s) && st == PL_OK; i++) /* 3 */
        st = run_ids(s, select_ids(t, mini_at(s, i), PICK_ALL), RUN_CHECK, err);
    for (int epoch = 0; epoch < t->o.ppo_epochs; epoch++) /* 4 */
        for (int i = 0; i < n_minis(s) && st == PL_OK; i++)
            st = run_mini(s, mini_at(s, i), lr, err);
    return st;
}

pl_status pl_trainer_step(pl_trainer *t, int64_t step, pl_sample *samples, int n_groups, int n,
    pl_progress_fn progress, pl_stop_fn should_stop, void *ctx, pl_step_stats *stats, pl_error *err)
{
    assert(t && samples && stats && n_groups > 0 && n > 0 && step > 0);
    assert(n_groups <= INT32_MAX / n);
    const double began = now_s();
    const double lr = schedule_lr(&t->o, step, t->total_steps);
    step_run s = {
        .t = t,
        .n_groups = n_groups,
        .n = n,
        .is_first = 1,
        .stats = stats,
        .progress = progress,
        .should_stop = should_stop,
        .ctx = ctx,
    };
    const pl_train_redraw redraw = {.wants = wants_redraw, .drawn = on_redrawn, .ctx = &s};

    memset(stats, 0, sizeof *stats);
    if (t->is_audited && t->audit.share > 0)
        pl_train_set_redraw(t->train, &redraw);
    const pl_status st = run_step(&s, samples, lr, err);
    pl_train_set_redraw(t->train, NULL);
    if (st != PL_OK)
        return pl_wrap(err, st, "step %lld", (long long)step);
    end_step(&s, lr);
    stats->update_s = now_s() - began;
    return PL_OK;
}
