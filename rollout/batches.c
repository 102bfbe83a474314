/* rollout/batches.c - what is to be rolled out: batches of groups of samples, and how long their
 * responses will probably be.
 *
 * One batch is current: the one that the trainer's newest GROUP or WANT names.  Others are
 * remembered with their results, because a trainer that was lost trains them again: training
 * batches until a checkpoint holds them, others (evaluation) until the next one of their kind
 * begins. */
#include "rollout/coordinator_internal.h"

#include <stdlib.h>
#include <string.h>

batch *batches_find(const pl_coordinator *c, uint64_t id)
{
    for (int i = c->n_batches - 1; i >= 0; i--)
        if (c->batches[i]->id == id)
            return c->batches[i];
    return NULL;
}

static int has_uid(const group *g, uint32_t uid)
{
    return g && uid >= g->m.first_uid && uid - g->m.first_uid < g->m.n;
}

/* Groups are mostly of one size and in order of their uids: the first guess is right then. */
sample *batches_sample(const batch *b, uint32_t uid, group **g)
{
    const group *first = b->groups[0];
    uint32_t i = first && uid >= first->m.first_uid ? (uid - first->m.first_uid) / first->m.n : 0;
    if (i >= b->n_groups || !has_uid(b->groups[i], uid))
        for (i = 0; i < b->n_groups && !has_uid(b->groups[i], uid);)
            i++;
    if (i == b->n_groups)
        return NULL;
    if (g)
        *g = b->groups[i];
    return &b->groups[i]->samples[uid - b->groups[i]->m.first_uid];
}

void batches_move(batch *b, sample *s, sample_state to)
{
    b->n_in[s->state]--;
    s->state = to;
    b->n_in[to]++;
}

static void free_group(group *g)
{
    if (!g)
        return;
    for (uint32_t i = 0; g->samples && i < g->m.n; i++) {
        free(g->samples[i].tokens);
        free(g->samples[i].logprobs);
        free(g->samples[i].sources);
        authors_free(&g->samples[i]);
    }
    free(g->samples);
    free((void *)(uintptr_t)g->m.prompt.data);
    free(g);
}

static void free_batch(batch *b)
{
    for (uint32_t i = 0; b->groups && i < b->n_groups; i++)
        free_group(b->groups[i]);
    free(b->groups);
    free(b->order);
    free(b);
}

void batches_free(pl_coordinator *c)
{
    for (int i = 0; i < c->n_batches; i++)
        free_batch(c->batches[i]);
    free(c->batches);
    c->batches = NULL;
    c->n_batches = 0;
}

static void forget(pl_coordinator *c, int i)
{
    batch *b = c->batches[i];
    if (c->current == b) {
        leases_revoke_all(c, b);
        c->current = NULL;
    }
    members_release(c, b->id);
    memmove(
        &c->batches[i], &c->batches[i + 1], (size_t)(c->n_batches - i - 1) * sizeof c->batches[0]);
    c->n_batches--;
    free_batch(b);
}

void batches_forget(pl_coordinator *c, uint64_t step)
{
    /* The current one too: what is forgotten may depend on records only, or a recovery would
     * remember something else. */
    for (int i = c->n_batches - 1; i >= 0; i--)
        if (c->batches[i]->id >> 32 == 0 && c->batches[i]->id <= step)
            forget(c, i);
}

/* ---- GROUP ---- */

static int is_same_sampling(const pl_sampling *a, const pl_sampling *b)
{
    return a->max_tokens == b->max_tokens && a->temperature == b->temperature &&
           a->top_p == b->top_p && a->min_p == b->min_p && a->top_k == b->top_k &&
           a->noise_key == b->noise_key && a->purpose == b->purpose &&
           a->ignore_eos == b->ignore_eos && a->speculative == b->speculative;
}

static int is_same_group(const pl_msg_group *a, const pl_msg_group *b)
{
    return a->n_groups == b->n_groups && a->first_uid == b->first_uid && a->group == b->group &&
           a->n == b->n && a->policy_version == b->policy_version &&
           is_same_sampling(&a->sampling, &b->sampling) && a->prompt_key == b->prompt_key &&
           a->prompt.n == b->prompt.n &&
           (!a->prompt.n || memcmp(a->prompt.data, b->prompt.data, (size_t)a->prompt.n * 4) == 0);
}

/* A sentence into why; 1. */
#define complain(why, room, ...) (snprintf((why), (room), __VA_ARGS__), 1)

int batches_contradicts(const pl_coordinator *c, const pl_msg_group *m, char *why, size_t room)
{
    const unsigned long long id = (unsigned long long)m->batch;
    if (!m->n_groups || m->n_groups > GROUPS_MAX || m->i_group >= m->n_groups)
        return complain(why, room, "group %u of %u in batch %llu: at most %d", m->i_group,
            m->n_groups, id, GROUPS_MAX);
    if (!m->n || m->n > GROUP_MAX || m->first_uid > UINT32_MAX - m->n)
        return complain(why, room,
            "group %u of batch %llu: %u samples from uid %u on; a group has "
            "1 to %d",
            m->i_group, id, m->n, m->first_uid, GROUP_MAX);
    if (!m->sampling.max_tokens || m->sampling.max_tokens > TOKENS_MAX || m->prompt.n > PROMPT_MAX)
        return complain(why, room,
            "group %u of batch %llu: max_tokens %u (1 to %d), prompt of %u "
            "tokens (at most %d)",
            m->i_group, id, m->sampling.max_tokens, TOKENS_MAX, m->prompt.n, PROMPT_MAX);
    const batch *b = batches_find(c, m->batch);
    if (!b)
        return 0;
    if (b->n_groups != m->n_groups)
        return complain(why, room, "batch %llu has %u groups in the ledger, not %u", id,
            b->n_groups, m->n_groups);
    const group *known = b->groups[m->i_group];
    if (known && !is_same_group(&known->m, m))
        return complain(why, room,
            "group %u of batch %llu differs from the one in the ledger "
            "(first uid %u and %u, %u and %u samples, version %u and %u)",
            m->i_group, id, m->first_uid, known->m.first_uid, m->n, known->m.n, m->policy_version,
            known->m.policy_version);
    for (uint32_t i = 0; i < b->n_groups && !known; i++) {
        const group *g = b->groups[i];
        if (g && m->first_uid < g->m.first_uid + g->m.n && g->m.first_uid < m->first_uid + m->n)
            return complain(
                why, room, "group %u of batch %llu has uids of group %u", m->i_group, id, i);
    }
    return 0;
}

static pl_status new_group(
    const pl_coordinator *c, group **out, const pl_msg_group *m, pl_error *err)
{
    group *g = calloc(1, sizeof *g);
    if (!g)
        return pl_fail(err, PL_E_NOMEM, "coordinator: no memory for a group");
    g->m = *m;
    const size_t n_bytes = (size_t)m->prompt.n * 4;
    void *prompt = malloc(n_bytes ? n_bytes : 1);
    if (prompt && n_bytes)
        memcpy(prompt, m->prompt.data, n_bytes);
    g->m.prompt.data = prompt;
    g->samples = calloc(m->n, sizeof *g->samples);
    if (!prompt || !g->samples) {
        free_group(g);
        return pl_fail(err, PL_E_NOMEM, "coordinator: no memory for a group of %u", m->n);
    }
    for (uint32_t i = 0; i < m->n; i++) {
        g->samples[i].uid = m->first_uid + i;
        /* A trainer that resumed may begin a batch again that was forgotten. */
        g->samples[i].may_run = c->n_trainers > 1;
    }
    *out = g;
    return PL_OK;
}

static pl_status new_batch(pl_coordinator *c, batch **out, const pl_msg_group *m, pl_error *err)
{
    const pl_status st = coordinator_grow(
        (void **)&c->batches, c->n_batches, &c->room_batches, sizeof c->batches[0], err);
    if (st != PL_OK)
        return st;
    batch *b = calloc(1, sizeof *b);
    if (b)
        b->groups = calloc(m->n_groups, sizeof *b->groups);
    if (!b || !b->groups) {
        free(b);
        return pl_fail(err, PL_E_NOMEM, "coordinator: no memory for %u groups", m->n_groups);
    }
    b->id = m->batch;
    b->n_groups = m->n_groups;
    for (int i = c->n_batches - 1; i >= 0; i--)
        if (b->id >> 32 && c->batches[i]->id >> 32 == b->id >> 32)
            forget(c, i);
    c->batches[c->n_batches++] = b;
    *out = b;
    return PL_OK;
}

pl_status batches_add(pl_coordinator *c, const pl_msg_group *m, int is_durable, pl_error *err)
{
    batch *b = batches_find(c, m->batch);
    group *g = NULL;
    pl_status st = new_group(c, &g, m, err);
    if (st == PL_OK && !b)
        st = new_batch(c, &b, m, err);
    if (st != PL_OK) {
        free_group(g);
        return st;
    }
    b->groups[m->i_group] = g;
    b->n_known++;
    b->n_samples += m->n;
    b->n_in[SAMPLE_PENDING] += m->n;
    if (is_durable)
        batches_group_durable(c, b, m->i_group);
    return PL_OK;
}

/* ---- expected lengths ---- */

static length_mean *find_length(const pl_coordinator *c, uint64_t key)
{
    size_t i = (size_t)(key * 0x9e3779b97f4a7c15u >> 20) & (c->room_lengths - 1);
    while (c->lengths[i].n && c->lengths[i].prompt_key != key)
        i = (i + 1) & (c->room_lengths - 1);
    return &c->lengths[i];
}

pl_status batches_learn(pl_coordinator *c, uint64_t prompt_key, uint32_t n, pl_error *err)
{
    if (2 * (c->n_lengths + 1) > c->room_lengths) {
        length_mean *old = c->lengths;
        const size_t n_old = c->room_lengths;
        const size_t room = n_old ? 2 * n_old : 64;
        length_mean *bigger = calloc(room, sizeof *bigger);
        if (!bigger)
            return pl_fail(err, PL_E_NOMEM, "coordinator: no memory for lengths of prompts");
        c->lengths = bigger;
        c->room_lengths = room;
        for (size_t i = 0; i < n_old; i++)
            if (old[i].n)
                *find_length(c, old[i].prompt_key) = old[i];
        free(old);
    }
    length_mean *l = find_length(c, prompt_key);
    if (!l->n)
        c->n_lengths++;
    l->prompt_key = prompt_key;
    l->n++;
    l->sum += n;
    return PL_OK;
}

static double expected_length(const pl_coordinator *c, const pl_msg_group *m)
{
    if (c->n_lengths && m->prompt_key) {
        const length_mean *l = find_length(c, m->prompt_key);
        if (l->n)
            return (double)l->sum / (double)l->n;
    }
    return m->sampling.max_tokens;
}

static int compare_expected(const void *a, const void *b)
{
    const group *x = *(group *const *)a;
    const group *y = *(group *const *)b;
    if (x->expected != y->expected)
        return x->expected > y->expected ? -1 : 1;
    return x->m.first_uid < y->m.first_uid ? -1 : x->m.first_uid > y->m.first_uid;
}

/* All groups are durable: samples may be leased, longest expected first.  Without memory for an
 * order of its own the batch goes in the trainer's order. */
static void set_order(pl_coordinator *c, batch *b)
{
    free(b->order);
    b->order = calloc(b->n_groups, sizeof *b->order);
    for (uint32_t i = 0; i < b->n_groups; i++) {
        b->groups[i]->expected = expected_length(c, &b->groups[i]->m);
        if (b->order)
            b->order[i] = b->groups[i];
    }
    if (b->order)
        qsort(b->order, b->n_groups, sizeof *b->order, compare_expected);
    c->want_grant = 1;
}

void batches_group_durable(pl_coordinator *c, batch *b, uint32_t i_group)
{
    if (i_group >= b->n_groups || !b->groups[i_group] || b->groups[i_group]->is_durable)
        return;
    b->groups[i_group]->is_durable = 1;
    if (++b->n_durable == b->n_groups)
        set_order(c, b);
}

/* ---- the trainer's side ---- */

/* Results that this trainer has not been sent: it trains a remembered batch again. */
static void send_known(pl_coordinator *c, const batch *b, group *g, uint64_t trainer)
{
    for (uint32_t i = 0; i < g->m.n; i++)
        if (g->samples[i].state == SAMPLE_DURABLE && g->samples[i].sent_to != trainer)
            results_send(c, b, g, &g->samples[i]);
}

void batches_make_current(pl_coordinator *c, batch *b)
{
    if (c->current == b)
        return;
    if (c->current) {
        leases_revoke_all(c, c->current);
        members_release(c, c->current->id); /* if it was audited, its CONSUME has told */
    }
    const uint64_t before = c->current ? c->current->id : UINT64_MAX;
    c->current = b;
    for (int i = 0; i < c->n_members; i++) {
        c->members[i]->batch_before = before;
        c->members[i]->idle_before = c->members[i]->idle_ns;
        c->members[i]->idle_ns = 0;
        c->members[i]->has_figures = 0;
    }
    b->was_complete = 0;
    c->want_grant = 1;
}

pl_status batches_on_group(
    pl_coordinator *c, int64_t now_ns, member *from, const pl_msg *m, pl_error *err)
{
    char why[320];
    const int is_late = from->group_seq && m->h.seq <= from->group_seq;
    batch *b = batches_find(c, m->u.group.batch);
    /* One that was overtaken says nothing about which batch is the newest. */
    if (is_late && (!b || b != c->current))
        return PL_OK;
    if (batches_contradicts(c, &m->u.group, why, sizeof why)) {
        pl_log_error(c->log, "event=contradiction trainer=%s: %s", from->name, why);
        members_reject(c, &from->peer, PL_E_INVAL, "%s", why);
        return PL_OK;
    }
    if (!is_late)
        from->group_seq = m->h.seq;
    if (!b || !b->groups[m->u.group.i_group]) {
        pl_msg record = *m;
        const waiting w = {.batch = m->u.group.batch, .id = m->u.group.i_group};
        pl_status st = coordinator_record(c, &record, PL_MSG_GROUP, &w, err);
        if (st == PL_OK)
            st = batches_add(c, &m->u.group, 0, err);
        if (st != PL_OK)
            return st;
        b = batches_find(c, m->u.group.batch);
        c->end = NOT_RECORDED; /* a run that is continued */
        coordinator_progressed(c, now_ns);
    }
    batches_make_current(c, b);
    send_known(c, b, b->groups[m->u.group.i_group], from->incarnation);
    return PL_OK;
}

void batches_count(const batch *b, pl_msg_batch *out)
{
    /* A group that is not durable may be forgotten yet: the trainer has to say it again. */
    *out =
        (pl_msg_batch){.batch = b->id, .n_groups_known = b->n_durable, .n_samples = b->n_samples};
    for (uint32_t i = 0; i < b->n_groups; i++) {
        const group *g = b->groups[i];
        for (uint32_t k = 0; g && k < g->m.n; k++) {
            out->n_done += g->samples[k].state == SAMPLE_DURABLE;
            out->n_running += g->samples[k].state == SAMPLE_LEASED;
            out->n_tokens += g->samples[k].n;
        }
    }
}

int batches_is_complete(const batch *b)
{
    return b->n_durable == b->n_groups && b->n_in[SAMPLE_DURABLE] == b->n_samples;
}

void batches_tell(pl_coordinator *c, int64_t now_ns)
{
    const member *trainer = members_trainer(c);
    c->told_batch_ns = now_ns;
    if (!trainer || !c->current)
        return;
    pl_msg m = {0};
    batches_count(c->current, &m.u.batch);
    m.u.batch.n_lost = (uint32_t)c->stats.n_lost;
    m.u.batch.n_quarantined = (uint32_t)c->stats.n_quarantined;
    m.u.batch.n_leased_again = c->stats.n_releases;
    m.u.batch.n_recomputed = c->stats.recomputed_tokens;
    coordinator_send(c, &trainer->peer, &m, PL_MSG_BATCH);
}
