/* rollout/steps.c - what was made of the samples: steps consumed, versions announced, the end.
 *
 * A step is consumed once.  A trainer that was lost and trains it again must reach the same hashes;
 * that is recorded too (again = 1).  A version is announced after the CONSUME that made it is
 * durable. */
#include "rollout/coordinator_internal.h"

#include <string.h>

enum { HEX_ROOM = 17 };

static const char *hex(char out[HEX_ROOM], const pl_hash *h)
{
    for (int i = 0; i < 8; i++)
        snprintf(out + 2 * i, 3, "%02x", h->b[i]);
    return out;
}

static int is_same_hash(const pl_hash *a, const pl_hash *b)
{
    return memcmp(a->b, b->b, sizeof a->b) == 0;
}

consumed *steps_find(const pl_coordinator *c, uint64_t step)
{
    for (int i = c->n_steps - 1; i >= 0; i--)
        if (c->steps[i].m.step == step)
            return &c->steps[i];
    return NULL;
}

pl_status steps_add(
    pl_coordinator *c, const pl_msg_consume *m, record_state state, uint64_t by, pl_error *err)
{
    consumed *known = steps_find(c, m->step);
    if (!known) {
        const pl_status st = coordinator_grow(
            (void **)&c->steps, c->n_steps, &c->room_steps, sizeof c->steps[0], err);
        if (st != PL_OK)
            return st;
        known = &c->steps[c->n_steps++];
    }
    *known = (consumed){.m = *m, .state = state, .by = by};
    c->i_newest = (int)(known - c->steps);
    return PL_OK;
}

static void echo(pl_coordinator *c, const consumed *s)
{
    const member *trainer = members_trainer(c);
    if (!trainer)
        return;
    pl_msg m = {.u.consume = s->m};
    coordinator_send(c, &trainer->peer, &m, PL_MSG_CONSUME);
}

/* Is it another step than the ledger's?  Then the trainer is told. */
static int contradicts(
    pl_coordinator *c, const member *who, const consumed *known, const pl_msg_consume *m)
{
    if (is_same_hash(&known->m.samples, &m->samples) &&
        is_same_hash(&known->m.weights, &m->weights) && known->m.batch == m->batch &&
        known->m.n_samples == m->n_samples)
        return 0;
    char a[4][HEX_ROOM];
    pl_log_error(
        c->log, "event=contradiction step=%llu trainer=%s", (unsigned long long)m->step, who->name);
    members_reject(c, &who->peer, PL_E_NUMERIC,
        "step %llu was trained before with samples %s (%u of batch %llu) and weights %s; now "
        "samples %s (%u of batch %llu) and weights %s: same data must give the same bits",
        (unsigned long long)m->step, hex(a[0], &known->m.samples), known->m.n_samples,
        (unsigned long long)known->m.batch, hex(a[1], &known->m.weights), hex(a[2], &m->samples),
        m->n_samples, (unsigned long long)m->batch, hex(a[3], &m->weights));
    return 1;
}

pl_status steps_on_consume(
    pl_coordinator *c, int64_t now_ns, member *who, const pl_msg *m, pl_error *err)
{
    const pl_msg_consume *s = &m->u.consume;
    const consumed *known = steps_find(c, s->step);
    const batch *b = batches_find(c, s->batch);
    if (known && contradicts(c, who, known, s))
        return PL_OK;
    if (known && known->by == m->h.incarnation) { /* said again, not trained again */
        if (known->state == DURABLE)
            echo(c, known);
        return PL_OK;
    }
    if (b && !batches_is_complete(b)) {
        members_reject(c, &who->peer, PL_E_INVAL,
            "step %llu consumes batch %llu, of which not every sample is durable",
            (unsigned long long)s->step, (unsigned long long)s->batch);
        return PL_OK;
    }
    pl_msg record = *m;
    record.u.consume.again = known || s->again;
    const waiting w = {.batch = s->step, .to = who->peer};
    const pl_status st = coordinator_record(c, &record, PL_MSG_CONSUME, &w, err);
    if (st != PL_OK)
        return st;
    members_convict(c, s->batch); /* the audit found nothing */
    coordinator_progressed(c, now_ns);
    if (known)
        pl_log_info(c->log, "event=resume step=%llu", (unsigned long long)s->step);
    return steps_add(c, &record.u.consume, RECORDED, m->h.incarnation, err);
}

void steps_consume_durable(pl_coordinator *c, uint64_t step)
{
    consumed *s = steps_find(c, step);
    if (!s || s->state != RECORDED)
        return;
    s->state = DURABLE;
    echo(c, s);
}

/* ---- versions ---- */

pl_status steps_set_version(
    pl_coordinator *c, const pl_msg_version *v, record_state state, pl_error *err)
{
    pl_status st = coordinator_copy(&c->version_dir, v->dir, err);
    if (st == PL_OK)
        st = coordinator_copy(&c->version_host, v->host, err);
    if (st == PL_OK)
        st = coordinator_copy(&c->version_endpoint, v->endpoint, err);
    if (st != PL_OK)
        return st;
    c->version = *v;
    c->version.dir = c->version_dir;
    c->version.host = c->version_host;
    c->version.endpoint = c->version_endpoint;
    c->version_state = state;
    return PL_OK;
}

/* May this version be known to workers?  Its CONSUME is durable, or it is where this trainer
 * began: from nothing, or from a checkpoint. */
static int may_announce(const pl_coordinator *c, const member *who, const pl_msg_version *v)
{
    const consumed *newest = c->i_newest >= 0 ? &c->steps[c->i_newest] : NULL;
    const int is_made = newest && is_same_hash(&newest->m.weights, &v->hash);
    if (is_made)
        return newest->state == DURABLE;
    const int is_current = c->version_state == DURABLE && v->version == c->version.version &&
                           is_same_hash(&v->hash, &c->version.hash);
    return v->version == 0 || is_current || who->n_versions == 0;
}

static int is_same_version(const pl_msg_version *a, const pl_msg_version *b)
{
    return a->version == b->version && is_same_hash(&a->hash, &b->hash) &&
           a->n_bytes == b->n_bytes && is_same_hash(&a->bundle, &b->bundle) &&
           a->n_bundle == b->n_bundle && a->max_ctx == b->max_ctx && strcmp(a->dir, b->dir) == 0 &&
           strcmp(a->host, b->host) == 0 && strcmp(a->endpoint, b->endpoint) == 0;
}

pl_status steps_on_version(
    pl_coordinator *c, int64_t now_ns, member *who, const pl_msg *m, pl_error *err)
{
    const pl_msg_version *v = &m->u.version;
    if (m->h.seq <= who->version_seq)
        return PL_OK; /* it was overtaken by the one of a later step, or is a double */
    who->version_seq = m->h.seq;
    if (c->version_state != NOT_RECORDED && is_same_version(&c->version, v)) {
        who->n_versions++;
        return PL_OK;
    }
    if (!may_announce(c, who, v)) {
        char a[HEX_ROOM];
        members_reject(c, &who->peer, PL_E_INVAL,
            "version %u (weights %s) is not that of the newest durable CONSUME: a version is "
            "announced after the echo of its CONSUME",
            v->version, hex(a, &v->hash));
        return PL_OK;
    }
    pl_msg record = *m;
    const waiting w = {.batch = v->version};
    pl_status st = coordinator_record(c, &record, PL_MSG_VERSION, &w, err);
    if (st == PL_OK)
        st = steps_set_version(c, v, RECORDED, err);
    who->n_versions++;
    coordinator_progressed(c, now_ns);
    return st;
}

void steps_send_version(pl_coordinator *c, int64_t now_ns, member *to)
{
    if (c->version_state != DURABLE)
        return;
    to->told_version_ns = now_ns;
    pl_msg m = {.u.version = c->version};
    coordinator_send(c, &to->peer, &m, PL_MSG_VERSION);
}

void steps_version_durable(pl_coordinator *c, int64_t now_ns)
{
    if (c->version_state != RECORDED)
        return;
    c->version_state = DURABLE;
    for (int i = 0; i < c->n_members; i++)
        if (c->members[i]->role == PL_ROLE_WORKER && c->members[i]->state != PL_WORKER_LOST)
            steps_send_version(c, now_ns, c->members[i]);
}

/* ---- checkpoints, the end ---- */

pl_status steps_on_checkpoint(pl_coordinator *c, const pl_msg *m, pl_error *err)
{
    const uint64_t step = m->u.step.step;
    if (c->has_checkpoint && step <= c->checkpoint)
        return PL_OK;
    pl_msg record = *m;
    const waiting w = {.batch = step};
    const pl_status st = coordinator_record(c, &record, PL_MSG_CHECKPOINT, &w, err);
    if (st != PL_OK)
        return st;
    c->has_checkpoint = 1;
    c->checkpoint = step;
    batches_forget(c, step);
    return PL_OK;
}

/* Said again with its CONSUME: recorded once, unless the trace has grown another way since. */
pl_status steps_on_traced(pl_coordinator *c, const pl_msg *m, pl_error *err)
{
    const pl_msg_traced *t = &m->u.traced;
    if (t->step == c->traced.step && is_same_hash(&t->head, &c->traced.head))
        return PL_OK;
    pl_msg record = *m;
    const waiting w = {.batch = t->step};
    const pl_status st = coordinator_record(c, &record, PL_MSG_TRACED, &w, err);
    if (st == PL_OK)
        c->traced = *t;
    return st;
}

pl_status steps_on_done(pl_coordinator *c, const pl_msg *m, pl_error *err)
{
    if (c->end == DURABLE) {
        c->is_done = 1;
        members_stop(c);
        return PL_OK;
    }
    if (c->end == RECORDED)
        return PL_OK;
    pl_msg record = *m;
    const waiting w = {0};
    c->end = RECORDED;
    return coordinator_record(c, &record, PL_MSG_END, &w, err);
}

void steps_finish(pl_coordinator *c)
{
    pl_log_info(c->log, "event=done");
    c->is_done = 1;
    members_stop(c);
}
