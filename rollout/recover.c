/* rollout/recover.c - the state from the ledger, and what it looks like in words.
 *
 * Every record is applied by the function that applied it when it was made; only what is said to
 * peers is left out.  Leases are in no ledger: a sample without a result is pending, and may have
 * been leased. */
#include "rollout/coordinator_internal.h"

#include <string.h>

static pl_status replay_epoch(pl_coordinator *c, const pl_msg_epoch *e, pl_error *err)
{
    if (e->epoch != c->epoch + 1)
        return pl_fail(err, PL_E_FORMAT, "epoch %llu follows epoch %llu in the ledger",
            (unsigned long long)e->epoch, (unsigned long long)c->epoch);
    if (c->has_runs &&
        (strcmp(c->ledger_run, e->run) != 0 || strcmp(c->ledger_class, e->numeric_class) != 0))
        return pl_fail(err, PL_E_FORMAT, "epoch %llu is of run '%.40s', those before of '%.40s'",
            (unsigned long long)e->epoch, e->run, c->ledger_run);
    pl_status st = coordinator_copy(&c->ledger_run, e->run, err);
    if (st == PL_OK)
        st = coordinator_copy(&c->ledger_class, e->numeric_class, err);
    c->has_runs = 1;
    c->ledger_config = e->config_hash;
    c->epoch = e->epoch;
    return st;
}

static pl_status replay_group(pl_coordinator *c, const pl_msg_group *m, pl_error *err)
{
    char why[320];
    batch *b = batches_find(c, m->batch);
    if (batches_contradicts(c, m, why, sizeof why))
        return pl_fail(err, PL_E_FORMAT, "ledger: %s", why);
    if (b && b->groups[m->i_group])
        return pl_fail(err, PL_E_FORMAT, "ledger: group %u of batch %llu is there twice",
            m->i_group, (unsigned long long)m->batch);
    const pl_status st = batches_add(c, m, 1, err);
    if (st == PL_OK)
        c->current = batches_find(c, m->batch);
    c->end = NOT_RECORDED; /* a run that was continued */
    return st;
}

static pl_status replay_result(pl_coordinator *c, const pl_msg_result *r, pl_error *err)
{
    char why[320];
    group *g = NULL;
    batch *b = batches_find(c, r->batch);
    sample *s = b ? batches_sample(b, r->uid, &g) : NULL;
    if (!s || s->state == SAMPLE_DURABLE || r->attempt != s->attempt)
        return pl_fail(err, PL_E_FORMAT, "ledger: result of sample %u of batch %llu, %s", r->uid,
            (unsigned long long)r->batch,
            !s                         ? "which is not known"
            : r->attempt != s->attempt ? "of another attempt"
                                       : "which has one");
    if (results_is_wrong(g, r, why, sizeof why))
        return pl_fail(err, PL_E_FORMAT, "ledger: %s", why);
    pl_status st = results_put(s, r, err);
    if (st == PL_OK)
        st = batches_learn(c, g->m.prompt_key, s->n, err);
    batches_move(b, s, SAMPLE_DURABLE);
    return st;
}

/* A REWARD or a REFUSE: of a sample that has a result. */
static pl_status replay_of_result(pl_coordinator *c, const pl_msg *m, pl_error *err)
{
    const int is_reward = m->h.type == PL_MSG_REWARD;
    const uint64_t id = is_reward ? m->u.reward.batch : m->u.refuse.batch;
    const uint32_t uid = is_reward ? m->u.reward.uid : m->u.refuse.uid;
    const uint32_t attempt = is_reward ? m->u.reward.attempt : m->u.refuse.attempt;
    batch *b = batches_find(c, id);
    sample *s = b ? batches_sample(b, uid, NULL) : NULL;
    if (!s || s->state != SAMPLE_DURABLE || attempt != s->attempt ||
        (is_reward && s->reward_state == DURABLE))
        return pl_fail(err, PL_E_FORMAT, "ledger: %s of sample %u of batch %llu, which has %s",
            is_reward ? "reward" : "refusal", uid, (unsigned long long)id,
            s && s->state == SAMPLE_DURABLE ? "one" : "no result");
    if (is_reward) {
        s->reward_state = DURABLE;
        s->reward = m->u.reward.score;
        s->reward_mark = m->u.reward.mark;
    } else {
        results_refuse(s);
        batches_move(b, s, SAMPLE_PENDING);
    }
    return PL_OK;
}

static pl_status replay_consume(pl_coordinator *c, const pl_msg_consume *m, pl_error *err)
{
    const consumed *known = steps_find(c, m->step);
    if (known && (memcmp(&known->m.samples, &m->samples, sizeof m->samples) != 0 ||
                     memcmp(&known->m.weights, &m->weights, sizeof m->weights) != 0))
        return pl_fail(err, PL_E_FORMAT, "ledger: step %llu is consumed twice, with other hashes",
            (unsigned long long)m->step);
    return steps_add(c, m, DURABLE, 0, err);
}

pl_status pl_coordinator_replay(pl_coordinator *c, const pl_msg *m, pl_error *err)
{
    if (m->h.type != PL_MSG_EPOCH && !c->has_runs)
        return pl_fail(
            err, PL_E_FORMAT, "ledger: record type %u before the first epoch", (unsigned)m->h.type);
    switch (m->h.type) {
    case PL_MSG_EPOCH:
        return replay_epoch(c, &m->u.epoch, err);
    case PL_MSG_GROUP:
        return replay_group(c, &m->u.group, err);
    case PL_MSG_RESULT:
        return replay_result(c, &m->u.result, err);
    case PL_MSG_REWARD:
    case PL_MSG_REFUSE:
        return replay_of_result(c, m, err);
    case PL_MSG_CONSUME:
        return replay_consume(c, &m->u.consume, err);
    case PL_MSG_VERSION:
        return steps_set_version(c, &m->u.version, DURABLE, err);
    case PL_MSG_DRAFTER:
        return m->u.drafter.version >= c->drafter.version
                   ? drafters_set(c, &m->u.drafter, DURABLE, err)
                   : PL_OK;
    case PL_MSG_CHECKPOINT:
        c->has_checkpoint = 1;
        c->checkpoint = m->u.step.step;
        batches_forget(c, c->checkpoint);
        return PL_OK;
    case PL_MSG_END:
        c->end = DURABLE;
        return PL_OK;
    default:
        return pl_fail(err, PL_E_FORMAT,
            "ledger: record type %u is not known here: a newer build "
            "wrote it",
            (unsigned)m->h.type);
    }
}

/* Any sample of a batch that was whole may have been leased in an earlier epoch. */
static void mark_leased(pl_coordinator *c)
{
    for (int i = 0; i < c->n_batches; i++) {
        const batch *b = c->batches[i];
        for (uint32_t k = 0; k < b->n_groups && b->n_durable == b->n_groups; k++)
            for (uint32_t j = 0; j < b->groups[k]->m.n; j++)
                b->groups[k]->samples[j].was_leased = b->groups[k]->samples[j].may_run = 1;
    }
}

pl_status pl_coordinator_begin(pl_coordinator *c, int64_t now_ns, pl_error *err)
{
    if (c->has_runs && strcmp(c->ledger_run, c->run) != 0)
        return pl_fail(err, PL_E_CONFIG,
            "the ledger is of run '%.60s', not of '%.60s': use the "
            "run's own directory",
            c->ledger_run, c->run);
    if (c->has_runs && strcmp(c->ledger_class, c->numeric_class) != 0)
        return pl_fail(err, PL_E_CONFIG,
            "the ledger is of numeric class '%.100s', this build of "
            "'%.100s': go on with a build of that class",
            c->ledger_class, c->numeric_class);
    if (c->has_runs && c->ledger_config != c->o.config_hash)
        pl_log_info(c->log, "event=config_changed since epoch %llu", (unsigned long long)c->epoch);
    mark_leased(c);
    c->is_waiting = c->has_runs;
    c->epoch++;
    c->begin_ns = c->told_batch_ns = c->told_join_ns = now_ns;
    coordinator_progressed(c, now_ns);
    pl_msg m = {.u.epoch = {.epoch = c->epoch,
                    .run = c->run,
                    .build = c->build,
                    .numeric_class = c->numeric_class,
                    .config_hash = c->o.config_hash}};
    const waiting w = {0};
    return coordinator_record(c, &m, PL_MSG_EPOCH, &w, err);
}

/* ---- in words ---- */

void pl_coordinator_get_stats(const pl_coordinator *c, pl_coordinator_stats *s)
{
    *s = c->stats;
    s->session = c->session.id;
    s->drafter_version = c->drafter_state == DURABLE ? c->drafter.version : 0;
    for (int i = 0; i < c->n_members; i++)
        s->n_workers +=
            c->members[i]->role == PL_ROLE_WORKER && c->members[i]->state != PL_WORKER_LOST;
    for (uint32_t i = 0; c->current && i < c->current->n_groups; i++) {
        const group *g = c->current->groups[i];
        for (uint32_t k = 0; g && k < g->m.n; k++) {
            const sample_state state = g->samples[k].state;
            s->n_pending += state == SAMPLE_PENDING || state == SAMPLE_VOID;
            s->n_leased += state == SAMPLE_LEASED;
            s->n_done += state == SAMPLE_DURABLE;
        }
    }
}

static double seconds(int64_t now_ns, int64_t since_ns)
{
    return (double)(now_ns - since_ns) / 1e9;
}

static void describe_members(const pl_coordinator *c, int64_t now_ns, FILE *out)
{
    for (int i = 0; i < c->n_members; i++) {
        const member *m = c->members[i];
        fprintf(out, "%s %s: %s, heard %.1f s ago",
            m->role == PL_ROLE_TRAINER ? "trainer" : "worker", m->name,
            members_state_name(m->state), seconds(now_ns, m->heard_ns));
        if (m->role == PL_ROLE_WORKER) {
            fprintf(out, ", %u samples", m->n_leased);
            if (m->policy_version == UINT32_MAX)
                fprintf(out, ", no version loaded");
            else
                fprintf(out, ", version %u", m->policy_version);
            if (c->version_state == DURABLE && m->policy_version != c->version.version)
                fprintf(out, " (awaited: %u)", c->version.version);
        }
        if (m->session)
            fprintf(out, ", %s session %llu", m->is_lead ? "leads" : "in",
                (unsigned long long)m->session);
        if (m->state == PL_WORKER_STOPPING)
            fprintf(out, " (awaited: its device)");
        fprintf(out, "\n");
    }
    if (!members_trainer(c))
        fprintf(out, "awaited: a trainer\n");
}

/* The leases that are oldest: at most as many lines. */
enum { DESCRIBE_LEASES = 16 };

static void describe_batch(const pl_coordinator *c, const batch *b, int64_t now_ns, FILE *out)
{
    pl_coordinator_stats s;
    pl_coordinator_get_stats(c, &s);
    fprintf(out,
        "batch %llu: %u of %u groups known, %u durable; samples: %d pending, %d leased, "
        "%d done\n",
        (unsigned long long)b->id, b->n_known, b->n_groups, b->n_durable, s.n_pending, s.n_leased,
        s.n_done);
    int n_lines = 0;
    for (uint32_t i = 0; i < b->n_groups && n_lines < DESCRIBE_LEASES; i++) {
        const group *g = b->groups[i];
        if (!g)
            fprintf(out, "awaited: group %u of batch %llu from the trainer\n", i,
                (unsigned long long)b->id);
        n_lines += !g;
        for (uint32_t k = 0; g && k < g->m.n && n_lines < DESCRIBE_LEASES; k++) {
            const sample *at = &g->samples[k];
            if (at->state != SAMPLE_LEASED)
                continue;
            n_lines++;
            fprintf(out, "awaited: sample %u from %s since %.1f s, %u tokens known%s\n", at->uid,
                at->holder->name, seconds(now_ns, at->leased_ns), at->n,
                at->handing_ns ? ", to be handed over" : "");
        }
    }
    if (s.n_pending && !s.n_leased)
        fprintf(out, "awaited: a worker with the version of the batch\n");
    if (b->n_samples && (uint32_t)s.n_done == b->n_samples)
        fprintf(out, "awaited: the trainer's CONSUME of batch %llu, or its next batch\n",
            (unsigned long long)b->id);
}

void pl_coordinator_describe(const pl_coordinator *c, int64_t now_ns, FILE *out)
{
    fprintf(out, "epoch %llu, last progress %.1f s ago, %d records not durable\n",
        (unsigned long long)c->epoch, seconds(now_ns, c->stats.last_progress_ns), c->n_waiting);
    describe_members(c, now_ns, out);
    if (c->current)
        describe_batch(c, c->current, now_ns, out);
    else
        fprintf(out, "awaited: the first GROUP of the trainer\n");
}
