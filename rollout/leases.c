/* rollout/leases.c - who rolls out which sample, and what is known of it meanwhile.
 *
 * A lease is a promise of nobody: it is in no ledger.  A sample whose holder is lost, leaves or is
 * thrown out is pending again, and goes on elsewhere behind the tokens that are known; keyed noise
 * gives it the same text.  After a coordinator's restart workers say what they run, and that is
 * leased to them again. */
#include "rollout/coordinator_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LIST_MAX = 65536 }; /* uids of a STATUS that are looked at */

static uint32_t uid_at(const pl_span *s, uint32_t i)
{
    uint32_t v; /* spans are not aligned */
    memcpy(&v, (const unsigned char *)s->data + (size_t)i * 4, 4);
    return v;
}

static int lists(const pl_span *s, uint32_t uid)
{
    for (uint32_t i = 0; i < s->n && i < LIST_MAX; i++)
        if (uid_at(s, i) == uid)
            return 1;
    return 0;
}

void leases_end(pl_coordinator *c, sample *s)
{
    if (s->state != SAMPLE_LEASED)
        return;
    member *holder = s->holder;
    s->state = SAMPLE_PENDING;
    s->holder = NULL;
    holder->n_leased--;
    members_update(c, holder);
}

/* Calls visit for every sample that is leased to m (NULL: to anyone) in batch b. */
static void for_leases(pl_coordinator *c, batch *b, const member *m,
    void (*visit)(pl_coordinator *c, batch *b, sample *s))
{
    for (uint32_t i = 0; b && i < b->n_groups; i++)
        for (uint32_t k = 0; b->groups[i] && k < b->groups[i]->m.n; k++) {
            sample *s = &b->groups[i]->samples[k];
            if (s->state == SAMPLE_LEASED && (!m || s->holder == m))
                visit(c, b, s);
        }
}

static void end_and_keep(pl_coordinator *c, batch *b, sample *s)
{
    (void)b;
    leases_end(c, s);
}

static void end_and_forget(pl_coordinator *c, batch *b, sample *s)
{
    (void)b;
    c->stats.recomputed_tokens += s->n;
    results_discard(s);
    leases_end(c, s);
}

static void revoke(pl_coordinator *c, batch *b, sample *s)
{
    coordinator_send_uid(c, &s->holder->peer, PL_MSG_REVOKE, b->id, s->uid);
    leases_end(c, s);
}

void leases_return(pl_coordinator *c, member *m, int keep)
{
    if (m->n_leased)
        for_leases(c, c->current, m, keep ? end_and_keep : end_and_forget);
}

void leases_revoke_all(pl_coordinator *c, batch *b)
{
    for_leases(c, b, NULL, revoke);
}

/* ---- granting ---- */

static void send_lease(pl_coordinator *c, int64_t now_ns, const batch *b, const group *g, sample *s)
{
    /* The last known token may have ended the sample (then its worker would have sent the RESULT
     * next), and a prefix must not: it is drawn again. */
    const uint32_t n = s->n ? s->n - 1 : 0;
    pl_msg m = {.u.lease = {.batch = b->id,
                    .uid = s->uid,
                    .group = g->m.group,
                    .policy_version = g->m.policy_version,
                    .sampling = g->m.sampling,
                    .prompt_key = g->m.prompt_key,
                    .prompt = g->m.prompt,
                    .prefix = {s->tokens, n},
                    .prefix_logprobs = {s->logprobs, n},
                    .prefix_sources = {s->sources, n},
                    .draft = n ? s->draft : 0,
                    .accepted = n ? s->accepted : 0,
                    .steps = n ? s->steps : 0}};
    s->sent_lease_ns = now_ns;
    coordinator_send(c, &s->holder->peer, &m, PL_MSG_LEASE);
}

static void hold(pl_coordinator *c, int64_t now_ns, sample *s, member *m)
{
    c->stats.n_leases++;
    c->stats.n_releases += s->was_leased != 0;
    s->state = SAMPLE_LEASED;
    s->was_leased = 1;
    s->holder = m;
    s->leased_ns = now_ns;
    m->n_leased++;
    members_update(c, m);
}

static int can_take(const pl_coordinator *c, const member *m, uint32_t version)
{
    return m->role == PL_ROLE_WORKER && m->policy_version == version && !m->is_draining &&
           !c->is_draining && (m->state == PL_WORKER_BUSY || m->state == PL_WORKER_IDLE);
}

/* Rates of workers that may take leases of a version. */
typedef struct shares {
    double mean, sum; /* tokens/s */
    double n_samples; /* that are pending or leased */
} shares;

static shares share_out(const pl_coordinator *c, const batch *b, uint32_t version)
{
    shares sh = {0};
    double known = 0;
    int n_known = 0, n = 0;
    for (int i = 0; i < c->n_members; i++) {
        const member *m = c->members[i];
        if (!can_take(c, m, version))
            continue;
        n++;
        n_known += m->rate > 0;
        known += (double)m->rate;
    }
    sh.mean = n_known ? known / n_known : 1;
    sh.sum = known + sh.mean * (n - n_known);
    for (uint32_t i = 0; i < b->n_groups; i++)
        for (uint32_t k = 0; k < b->groups[i]->m.n; k++)
            sh.n_samples += b->groups[i]->samples[k].state <= SAMPLE_LEASED;
    return sh;
}

static double rate_of(const member *m, const shares *sh)
{
    return m->rate > 0 ? (double)m->rate : sh->mean;
}

/* The worker that would be done first, among those that have room. */
static member *pick(const pl_coordinator *c, uint32_t version, const shares *sh)
{
    member *best = NULL;
    double least = INFINITY;
    for (int i = 0; i < c->n_members; i++) {
        member *m = c->members[i];
        if (!can_take(c, m, version) || m->n_leased >= m->max_seqs)
            continue;
        const double load = (m->n_leased + 1) / rate_of(m, sh);
        if (load < least) {
            least = load;
            best = m;
        }
    }
    return best;
}

/* How many siblings m takes at once: what is left of its share, at least one. */
static uint32_t how_many(const member *m, const shares *sh)
{
    const uint32_t room = m->max_seqs - m->n_leased;
    const double share = ceil(sh->n_samples * rate_of(m, sh) / sh->sum);
    if (share <= (double)m->n_leased + 1)
        return 1;
    return share - m->n_leased < (double)room ? (uint32_t)(share - m->n_leased) : room;
}

void leases_grant(pl_coordinator *c, int64_t now_ns)
{
    batch *b = c->current;
    if (!c->want_grant || !b || b->n_durable != b->n_groups)
        return;
    c->want_grant = 0;
    group *const *order = b->order ? b->order : b->groups;
    for (uint32_t i = 0; i < b->n_groups; i++) {
        group *g = order[i];
        member *m = NULL;
        uint32_t left = 0;
        shares sh = {0};
        for (uint32_t k = 0; k < g->m.n; k++) {
            sample *s = &g->samples[k];
            if (s->state != SAMPLE_PENDING)
                continue;
            if (!left) {
                if (sh.sum == 0)
                    sh = share_out(c, b, g->m.policy_version);
                m = pick(c, g->m.policy_version, &sh);
                if (!m)
                    break;
                left = how_many(m, &sh);
            }
            left--;
            c->stats.recomputed_tokens += s->n > 0; /* send_lease drops the last one */
            hold(c, now_ns, s, m);
            send_lease(c, now_ns, b, g, s);
        }
    }
    c->want_grant = 0; /* members_update asked for it again */
}

/* ---- STATUS ---- */

/* What it says that it runs: its own, adopted when nobody has it, else revoked. */
static void check_running(
    pl_coordinator *c, int64_t now_ns, member *who, const pl_msg_status *s, int is_first)
{
    batch *b = batches_find(c, s->batch);
    const int is_current = b && b == c->current && b->n_durable == b->n_groups;
    for (uint32_t i = 0; i < s->running.n && i < LIST_MAX; i++) {
        const uint32_t uid = uid_at(&s->running, i);
        group *g = NULL;
        sample *at = is_current ? batches_sample(b, uid, &g) : NULL;
        if (at && at->state == SAMPLE_PENDING && is_first && !who->is_draining &&
            who->policy_version == g->m.policy_version) {
            hold(c, now_ns, at, who);
            at->sent_lease_ns = now_ns;
        } else if (!at || at->state == SAMPLE_DURABLE || at->state == SAMPLE_VOID ||
                   (at->state != SAMPLE_RECORDED && at->holder != who)) {
            coordinator_send_uid(c, &who->peer, PL_MSG_REVOKE, s->batch, uid);
        }
    }
}

void leases_on_status(
    pl_coordinator *c, int64_t now_ns, member *who, const pl_msg_status *s, int is_first)
{
    batch *b = c->current;
    check_running(c, now_ns, who, s, is_first);
    for (uint32_t i = 0; b && who->n_leased && i < b->n_groups; i++) {
        group *g = b->groups[i];
        for (uint32_t k = 0; g && k < g->m.n; k++) {
            sample *at = &g->samples[k];
            if (at->state != SAMPLE_LEASED || at->holder != who)
                continue;
            if (who->policy_version != g->m.policy_version) {
                revoke(c, b, at); /* it loaded other weights meanwhile */
                continue;
            }
            const int is_listed =
                s->batch == b->id && (lists(&s->running, at->uid) || lists(&s->held, at->uid));
            if (!is_listed && !who->is_draining &&
                coordinator_is_late(now_ns, at->sent_lease_ns, c->o.resend_ms))
                send_lease(c, now_ns, b, g, at);
        }
    }
}

/* ---- what is known of a sample ---- */

static pl_status make_room(sample *s, uint32_t n, pl_error *err)
{
    if (n <= s->room)
        return PL_OK;
    uint32_t room = s->room ? s->room : 64;
    while (room < n)
        room *= 2;
    int32_t *tokens = realloc(s->tokens, (size_t)room * sizeof *tokens);
    if (tokens)
        s->tokens = tokens;
    float *logprobs = realloc(s->logprobs, (size_t)room * sizeof *logprobs);
    if (logprobs)
        s->logprobs = logprobs;
    uint8_t *sources = realloc(s->sources, room);
    if (sources)
        s->sources = sources;
    if (!tokens || !logprobs || !sources)
        return pl_fail(
            err, PL_E_NOMEM, "coordinator: no memory for %u tokens of sample %u", n, s->uid);
    s->room = room;
    return PL_OK;
}

pl_status leases_store(sample *s, uint32_t from, const pl_span *tokens, const pl_span *logprobs,
    const pl_span *sources, pl_error *err)
{
    const pl_status st = make_room(s, from + tokens->n, err);
    if (st != PL_OK)
        return st;
    if (tokens->n) {
        memcpy(s->tokens + from, tokens->data, (size_t)tokens->n * 4);
        memcpy(s->logprobs + from, logprobs->data, (size_t)tokens->n * 4);
        memcpy(s->sources + from, sources->data, tokens->n);
    }
    s->n = from + tokens->n;
    return PL_OK;
}

pl_status leases_on_progress(
    pl_coordinator *c, int64_t now_ns, member *who, const pl_msg_progress *p, pl_error *err)
{
    group *g = NULL;
    batch *b = batches_find(c, p->batch);
    sample *s = b && b == c->current ? batches_sample(b, p->uid, &g) : NULL;
    if (!s || s->state != SAMPLE_LEASED || s->holder != who ||
        p->policy_version != g->m.policy_version)
        return PL_OK; /* late: somebody else has it, or it is done */
    const uint64_t end = (uint64_t)p->pos0 + p->tokens.n;
    if (end > g->m.sampling.max_tokens || p->logprobs.n != p->tokens.n ||
        p->sources.n != p->tokens.n) {
        c->stats.n_invalid++;
        return PL_OK;
    }
    if (p->pos0 > s->n || end <= s->n)
        return PL_OK; /* a gap: what lies between was lost; or nothing new */
    const uint32_t n_known = s->n - p->pos0;
    if (n_known && memcmp(s->tokens + p->pos0, p->tokens.data, (size_t)n_known * 4) != 0) {
        pl_log_warn(c->log,
            "event=progress_differs sample=%u worker=%s: tokens from %u on are not those known "
            "before; both are dropped, the RESULT will tell",
            s->uid, who->name, p->pos0);
        c->stats.recomputed_tokens += s->n;
        results_discard(s);
        return PL_OK;
    }
    const pl_span tokens = {
        (const unsigned char *)p->tokens.data + (size_t)n_known * 4, p->tokens.n - n_known};
    const pl_span logprobs = {
        (const unsigned char *)p->logprobs.data + (size_t)n_known * 4, tokens.n};
    const pl_span sources = {(const unsigned char *)p->sources.data + n_known, tokens.n};
    const pl_status st = leases_store(s, s->n, &tokens, &logprobs, &sources, err);
    if (st != PL_OK)
        return st;
    s->draft = p->draft;
    s->accepted = p->accepted;
    s->steps = p->steps;
    coordinator_progressed(c, now_ns);
    return PL_OK;
}
