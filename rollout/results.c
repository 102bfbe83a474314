/* rollout/results.c - what came back: results, their rewards, and results that the trainer's audit
 * disproved.
 *
 * The first durable result of a sample counts.  Keyed noise makes a second one equal, whoever made
 * it; one that is not was made by a liar or by broken hardware. */
#include "rollout/coordinator_internal.h"

#include <stdlib.h>
#include <string.h>

/* A sentence into why; 1. */
#define complain(why, room, ...) (snprintf((why), (room), __VA_ARGS__), 1)

int results_is_wrong(const group *g, const pl_msg_result *r, char *why, size_t room)
{
    const uint32_t n = r->tokens.n, n_max = g->m.sampling.max_tokens;
    if (!n || n > n_max || r->logprobs.n != n || r->sources.n != n)
        return complain(why, room, "sample %u has %u tokens, %u log-probs, %u sources; 1 to %u",
            r->uid, n, r->logprobs.n, r->sources.n, n_max);
    if (r->finish != PL_FINISH_STOP && r->finish != PL_FINISH_LENGTH)
        return complain(why, room, "sample %u: finish reason %u", r->uid, r->finish);
    if (r->finish == PL_FINISH_LENGTH && n != n_max)
        return complain(
            why, room, "sample %u ends by length after %u of %u tokens", r->uid, n, n_max);
    if (r->policy_version != g->m.policy_version || r->group != g->m.group)
        return complain(why, room, "sample %u is of version %u and group %u, not %u and %u", r->uid,
            r->policy_version, r->group, g->m.policy_version, g->m.group);
    if (memcmp(&r->temperature, &g->m.sampling.temperature, sizeof r->temperature) != 0)
        return complain(why, room, "sample %u was drawn at temperature %g, not %g", r->uid,
            (double)r->temperature, (double)g->m.sampling.temperature);
    for (uint32_t i = 0; i < n; i++) {
        int32_t token;
        memcpy(&token, (const unsigned char *)r->tokens.data + (size_t)i * 4, 4);
        const unsigned source = ((const unsigned char *)r->sources.data)[i];
        if (token < 0 || source > SOURCE_MAX)
            return complain(
                why, room, "sample %u: token %d from source %u at %u", r->uid, token, source, i);
    }
    return 0;
}

int results_is_equal(const sample *s, const pl_msg_result *r)
{
    return s->n == r->tokens.n && s->finish == r->finish &&
           memcmp(s->tokens, r->tokens.data, (size_t)s->n * 4) == 0 &&
           memcmp(s->logprobs, r->logprobs.data, (size_t)s->n * 4) == 0;
}

void results_discard(sample *s)
{
    s->n = s->n_prefix = s->draft = s->accepted = s->steps = s->finish = 0;
    s->worker[0] = '\0';
    s->by = 0;
    s->reward_state = NOT_RECORDED;
    s->sent_to = 0;
}

void results_refuse(sample *s)
{
    results_discard(s);
    authors_clear(s);
    s->attempt++;
}

pl_status results_put(sample *s, const pl_msg_result *r, pl_error *err)
{
    const pl_status st = leases_store(s, 0, &r->tokens, &r->logprobs, &r->sources, err);
    if (st != PL_OK)
        return st;
    s->draft = r->draft;
    s->accepted = r->accepted;
    s->steps = r->steps;
    s->finish = r->finish;
    s->by = r->author;
    s->own = r->own;
    s->n_prefix = 0;
    s->reward_state = NOT_RECORDED;
    s->sent_to = 0;
    const size_t n = strnlen(r->worker, NAME_ROOM - 1);
    memcpy(s->worker, r->worker, n);
    s->worker[n] = '\0';
    return PL_OK;
}

static pl_status record_first(pl_coordinator *c, int64_t now_ns, member *who, batch *b, sample *s,
    const pl_msg *m, pl_error *err)
{
    if (s->state == SAMPLE_LEASED) {
        if (s->holder != who)
            coordinator_send_uid(c, &s->holder->peer, PL_MSG_REVOKE, b->id, s->uid);
        leases_end(c, s);
    }
    authors_finish(s, who, &m->u.result);
    pl_msg record = *m;
    record.u.result.worker = who->name;
    record.u.result.author = who->incarnation;
    record.u.result.own = s->own;
    record.u.result.has_reward = 0;
    record.u.result.reward = 0;
    record.u.result.reward_mark = 0;
    const waiting w = {.batch = b->id, .id = s->uid, .to = who->peer};
    pl_status st = coordinator_record(c, &record, PL_MSG_RESULT, &w, err);
    if (st != PL_OK)
        return st;
    coordinator_progressed(c, now_ns);
    st = results_put(s, &record.u.result, err);
    if (st == PL_OK)
        batches_move(b, s, SAMPLE_RECORDED);
    return st;
}

/* Keyed noise: one of the two lies, and the trainer's audit of the first will tell which.  Until
 * then the second's sender is out, unless it may have been handed where they differ. */
static void take_second(
    pl_coordinator *c, member *who, const batch *b, const sample *s, const pl_msg_result *r)
{
    if (results_is_equal(s, r)) {
        c->stats.n_duplicates++;
        if (s->state == SAMPLE_DURABLE)
            coordinator_send_uid(c, &who->peer, PL_MSG_ACK, b->id, s->uid);
        return;
    }
    char why[320];
    c->stats.n_conflicts++;
    if (!authors_wrote(s, who->incarnation, authors_agree(s, 0, &r->tokens, &r->logprobs))) {
        coordinator_send_uid(c, &who->peer, PL_MSG_REVOKE, b->id, s->uid);
        return;
    }
    snprintf(why, sizeof why,
        "sample %u of batch %llu from %s differs from the durable one of %s (%u and %u tokens); "
        "the trainer's audit decides about the first",
        s->uid, (unsigned long long)b->id, who->name, s->worker, r->tokens.n, s->n);
    members_suspend(c, who, b, s, why);
}

pl_status results_on_result(
    pl_coordinator *c, int64_t now_ns, member *who, const pl_msg *m, pl_error *err)
{
    const pl_msg_result *r = &m->u.result;
    char why[320];
    group *g = NULL;
    batch *b = batches_find(c, r->batch);
    if (!b) { /* trained and forgotten */
        coordinator_send_uid(c, &who->peer, PL_MSG_REVOKE, r->batch, r->uid);
        return PL_OK;
    }
    sample *s = batches_sample(b, r->uid, &g);
    if (!s || !s->was_leased || r->attempt != s->attempt) {
        /* An old one: of an attempt that was refused, or of a batch of this name that was forgotten
         * and is rolled out again. */
        c->stats.n_stale++;
        coordinator_send_uid(c, &who->peer, PL_MSG_REVOKE, r->batch, r->uid);
        return PL_OK;
    }
    if (results_is_wrong(g, r, why, sizeof why)) {
        c->stats.n_invalid++;
        members_quarantine(c, who->name, who->incarnation, why);
        return PL_OK;
    }
    if (s->state == SAMPLE_RECORDED || s->state == SAMPLE_DURABLE) {
        take_second(c, who, b, s, r);
        return PL_OK;
    }
    if (b != c->current) { /* its trainer has gone on without it */
        coordinator_send_uid(c, &who->peer, PL_MSG_REVOKE, b->id, r->uid);
        return PL_OK;
    }
    return record_first(c, now_ns, who, b, s, m, err);
}

void results_send(pl_coordinator *c, const batch *b, const group *g, sample *s)
{
    const member *trainer = members_trainer(c);
    if (!trainer)
        return;
    pl_msg m = {.u.result = {.batch = b->id,
                    .uid = s->uid,
                    .group = g->m.group,
                    .policy_version = g->m.policy_version,
                    .finish = s->finish,
                    .tokens = {s->tokens, s->n},
                    .logprobs = {s->logprobs, s->n},
                    .sources = {s->sources, s->n},
                    .draft = s->draft,
                    .accepted = s->accepted,
                    .steps = s->steps,
                    .temperature = g->m.sampling.temperature,
                    .worker = s->worker,
                    .attempt = s->attempt}};
    if (s->reward_state == DURABLE) {
        m.u.result.has_reward = 1;
        m.u.result.reward = s->reward;
        m.u.result.reward_mark = s->reward_mark;
    }
    s->sent_to = trainer->incarnation;
    coordinator_send(c, &trainer->peer, &m, PL_MSG_RESULT);
}

void results_durable(pl_coordinator *c, const waiting *w, batch *b)
{
    group *g = NULL;
    sample *s = batches_sample(b, w->id, &g);
    if (!s || s->state != SAMPLE_RECORDED)
        return;
    pl_error ignored;
    batches_move(b, s, SAMPLE_DURABLE);
    (void)batches_learn(c, g->m.prompt_key, s->n, &ignored); /* lengths only order the work */
    const member *who = members_find(c, &w->to);
    if (who && who->state != PL_WORKER_LOST)
        coordinator_send_uid(c, &w->to, PL_MSG_ACK, b->id, s->uid);
    results_send(c, b, g, s);
}

void results_on_want(pl_coordinator *c, member *who, const pl_msg *m)
{
    const pl_msg_uids *w = &m->u.uids;
    batch *b = batches_find(c, w->batch);
    /* It waits for this batch; a recovered coordinator may have another one at hand. */
    if (b && b->n_durable == b->n_groups && m->h.seq > who->group_seq) {
        who->group_seq = m->h.seq;
        batches_make_current(c, b);
    }
    for (uint32_t i = 0; b && i < w->uids.n; i++) {
        uint32_t uid;
        memcpy(&uid, (const unsigned char *)w->uids.data + (size_t)i * 4, 4);
        group *g = NULL;
        sample *s = batches_sample(b, uid, &g);
        if (s && s->state == SAMPLE_DURABLE)
            results_send(c, b, g, s);
    }
}

/* ---- rewards and refusals ---- */

static void send_reward(pl_coordinator *c, const pl_peer *to, const batch *b, const sample *s)
{
    pl_msg m = {.u.reward = {.batch = b->id,
                    .uid = s->uid,
                    .score = s->reward,
                    .mark = s->reward_mark,
                    .attempt = s->attempt}};
    coordinator_send(c, to, &m, PL_MSG_REWARD);
}

pl_status results_on_reward(
    pl_coordinator *c, int64_t now_ns, member *who, const pl_msg *m, pl_error *err)
{
    const pl_msg_reward *r = &m->u.reward;
    batch *b = batches_find(c, r->batch);
    sample *s = b ? batches_sample(b, r->uid, NULL) : NULL;
    if (!s || s->state != SAMPLE_DURABLE || r->attempt != s->attempt)
        return PL_OK;                      /* of a result that was refused since */
    if (s->reward_state != NOT_RECORDED) { /* the first one stands, whatever this one says */
        if (s->reward_state == DURABLE)
            send_reward(c, &who->peer, b, s);
        return PL_OK;
    }
    pl_msg record = *m;
    const waiting w = {.batch = b->id, .id = s->uid, .to = who->peer};
    const pl_status st = coordinator_record(c, &record, PL_MSG_REWARD, &w, err);
    if (st != PL_OK)
        return st;
    s->reward_state = RECORDED;
    s->reward = r->score;
    s->reward_mark = r->mark;
    coordinator_progressed(c, now_ns);
    return PL_OK;
}

void results_reward_durable(pl_coordinator *c, const waiting *w, batch *b)
{
    sample *s = batches_sample(b, w->id, NULL);
    if (!s || s->reward_state != RECORDED)
        return;
    s->reward_state = DURABLE;
    send_reward(c, &w->to, b, s);
}

pl_status results_on_refuse(pl_coordinator *c, const pl_msg *m, pl_error *err)
{
    const pl_msg_refuse *r = &m->u.refuse;
    batch *b = batches_find(c, r->batch);
    sample *s = b ? batches_sample(b, r->uid, NULL) : NULL;
    if (!s || s->state != SAMPLE_DURABLE || r->attempt != s->attempt)
        return PL_OK; /* what it means is refused already */
    pl_msg record = *m;
    const waiting w = {.batch = b->id, .id = s->uid};
    const pl_status st = coordinator_record(c, &record, PL_MSG_REFUSE, &w, err);
    if (st != PL_OK)
        return st;
    writer liar;
    char why[320];
    c->stats.n_refused++;
    snprintf(why, sizeof why, "sample %u of batch %llu was disproved by the audit (%u): %.200s",
        r->uid, (unsigned long long)r->batch, r->code, r->reason);
    if (authors_blame(s, r->position, &liar))
        members_quarantine(c, liar.name, liar.incarnation, why);
    else
        pl_log_warn(c->log,
            "event=nobody_blamed worker=%s reason=%s: it went on behind what another had said; "
            "the next attempt starts from the prompt",
            s->worker, why);
    members_pardon(c, b->id, s);
    c->stats.recomputed_tokens += s->n;
    results_refuse(s);
    batches_move(b, s, SAMPLE_VOID);
    b->was_complete = 0;
    return PL_OK;
}
