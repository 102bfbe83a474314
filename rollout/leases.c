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
    batches_move(c->current, s, SAMPLE_PENDING); /* no other batch has leases */
    s->holder = NULL;
    s->is_listed = 0;
    s->held_ns = 0;
    s->handing_ns = 0;
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
    leases_cut(s, 0);
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

void leases_cut(sample *s, uint32_t n)
{
    if (n >= s->n)
        return;
    s->n = s->n_prefix = n;
    s->is_disputed = 1; /* what comes there may be another text */
    authors_cut(s, n);
}

void leases_distrust(pl_coordinator *c, uint64_t incarnation)
{
    for (uint32_t i = 0; c->current && i < c->current->n_groups; i++) {
        group *g = c->current->groups[i];
        for (uint32_t k = 0; g && k < g->m.n; k++)
            if (g->samples[k].state <= SAMPLE_LEASED)
                leases_cut(&g->samples[k], authors_first(&g->samples[k], incarnation));
    }
}

/* ---- granting ---- */

static void send_lease(pl_coordinator *c, int64_t now_ns, const batch *b, const group *g, sample *s)
{
    /* The last known token may have ended the sample (then its worker would have sent the RESULT
     * next), and a prefix must not: it is drawn again. */
    const uint32_t n = s->n_prefix;
    authors_hand(s, s->holder->incarnation, n);
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
                    .steps = n ? s->steps : 0,
                    .attempt = s->attempt}};
    s->sent_lease_ns = now_ns;
    coordinator_send(c, &s->holder->peer, &m, PL_MSG_LEASE);
}

static void hold(pl_coordinator *c, int64_t now_ns, sample *s, member *m)
{
    c->stats.n_leases++;
    c->stats.n_releases += s->was_leased != 0;
    batches_move(c->current, s, SAMPLE_LEASED);
    s->was_leased = 1;
    s->holder = m;
    s->is_listed = 0;
    s->handing_ns = 0;
    s->heir = 0;
    s->leased_ns = now_ns;
    m->n_leased++;
    members_update(c, m);
}

int leases_can_take(const pl_coordinator *c, const member *m, uint32_t version)
{
    return m->role == PL_ROLE_WORKER && m->policy_version == version && !m->is_draining &&
           !c->is_draining && (m->state == PL_WORKER_BUSY || m->state == PL_WORKER_IDLE);
}

/* It, or one that trains the drafter and gives its device back when it is asked to. */
static int could_take(const pl_coordinator *c, const member *m, uint32_t version)
{
    if (leases_can_take(c, m, version))
        return 1;
    const int is_late = m->halted_ns && coordinator_is_late(c->tick_ns, m->halted_ns, HALT_WAIT_MS);
    return m->role == PL_ROLE_WORKER && m->policy_version == version && !m->is_draining &&
           !c->is_draining && !is_late &&
           (m->state == PL_WORKER_TRAINING || m->state == PL_WORKER_STOPPING);
}

/* Rates of workers that may take leases of a version. */
typedef struct shares {
    uint32_t version;
    double mean, sum; /* tokens/s; the mean of those who have loaded it, if any has */
    double n_samples; /* that are pending or leased; while others are awaited all */
    int is_shared;    /* nobody takes more than his share: others will be here soon */
} shares;

static int is_awaited(const member *m)
{
    return m->role == PL_ROLE_WORKER && !m->is_draining &&
           (m->state == PL_WORKER_JOINING || m->state == PL_WORKER_BUSY ||
               m->state == PL_WORKER_IDLE || m->state == PL_WORKER_TRAINING ||
               m->state == PL_WORKER_STOPPING);
}

static int is_loading(const pl_coordinator *c, uint32_t version)
{
    for (int i = 0; i < c->n_members; i++)
        if (is_awaited(c->members[i]) && c->members[i]->policy_version != version)
            return 1;
    return 0;
}

/* The first to have loaded a version must not take the whole batch.  Nobody starves meanwhile: who
 * ends a sample of his share takes another. */
static int is_shared(const pl_coordinator *c, int64_t now_ns, const batch *b)
{
    if (!coordinator_is_late(now_ns, b->open_ns, SHARE_MS))
        return 1;
    if (c->n_seen < (int)c->o.n_workers && !coordinator_is_late(now_ns, c->begin_ns, START_MS))
        return 1;
    return b->n_in[SAMPLE_PENDING] && !coordinator_is_late(now_ns, b->open_ns, LOAD_MS) &&
           is_loading(c, b->groups[b->n_groups - 1]->m.policy_version);
}

static int counts(const pl_coordinator *c, const member *m, const shares *sh)
{
    return sh->is_shared ? is_awaited(m) : could_take(c, m, sh->version);
}

/* Who has yet to load is kept no more than the mean: a claimed rate must not keep all from others.
 */
static double rate_of(const member *m, const shares *sh)
{
    const double rate = m->fair_rate > 0 ? (double)m->fair_rate : sh->mean;
    return m->policy_version != sh->version && rate > sh->mean ? sh->mean : rate;
}

/* Those who cannot take as many as would be theirs leave the rest to the others. */
static void share_rest(const pl_coordinator *c, shares *sh)
{
    const double samples = sh->n_samples, sum = sh->sum;

    for (int pass = 0; pass < 4; pass++) {
        const double each = sh->n_samples / sh->sum;
        double rest = samples, rates = sum;
        for (int i = 0; i < c->n_members; i++) {
            const member *m = c->members[i];
            if (counts(c, m, sh) && each * rate_of(m, sh) > m->max_seqs) {
                rest -= m->max_seqs;
                rates -= rate_of(m, sh);
            }
        }
        if (rest <= 0 || rates <= 0)
            return;
        sh->n_samples = rest;
        sh->sum = rates;
    }
}

/* The mean rate of those that are counted and known, of all or of those that have loaded. */
static double mean_rate(const pl_coordinator *c, const shares *sh, int is_of_loaded)
{
    double sum = 0;
    int n = 0;
    for (int i = 0; i < c->n_members; i++) {
        const member *m = c->members[i];
        if (counts(c, m, sh) && m->fair_rate > 0 &&
            (!is_of_loaded || m->policy_version == sh->version)) {
            sum += (double)m->fair_rate;
            n++;
        }
    }
    return n ? sum / n : 0;
}

static shares share_out(pl_coordinator *c, int64_t now_ns, const batch *b, uint32_t version)
{
    shares sh = {.is_shared = is_shared(c, now_ns, b), .version = version};
    int n = 0;

    sh.mean = mean_rate(c, &sh, 1);
    if (sh.mean <= 0)
        sh.mean = mean_rate(c, &sh, 0);
    if (sh.mean <= 0)
        sh.mean = 1;
    for (int i = 0; i < c->n_members; i++)
        if (counts(c, c->members[i], &sh)) {
            sh.sum += rate_of(c->members[i], &sh);
            n++;
        }
    c->n_seen = n > c->n_seen ? n : c->n_seen;
    if (c->n_seen < (int)c->o.n_workers && !coordinator_is_late(now_ns, c->begin_ns, START_MS))
        sh.sum += sh.mean * ((int)c->o.n_workers - n); /* the rest is being started */
    for (uint32_t i = 0; i < b->n_groups; i++)
        for (uint32_t k = 0; k < b->groups[i]->m.n; k++)
            sh.n_samples += sh.is_shared || b->groups[i]->samples[k].state <= SAMPLE_LEASED;
    share_rest(c, &sh);
    return sh;
}

static double share_of(const member *m, const shares *sh)
{
    return ceil(sh->n_samples * rate_of(m, sh) / sh->sum);
}

/* The worker that would be done first, among those that have room.  NULL: none, or it is one that
 * trains: then it is asked to stop, and the sample waits for it. */
static member *pick(pl_coordinator *c, int64_t now_ns, uint32_t version, const shares *sh)
{
    member *best = NULL, *trains = NULL;
    double least = INFINITY, least_trains = INFINITY;
    for (int i = 0; i < c->n_members; i++) {
        member *m = c->members[i];
        if (!could_take(c, m, version) || m->n_leased >= m->max_seqs ||
            (sh->is_shared && (double)m->n_leased >= share_of(m, sh)))
            continue;
        const double load = (m->n_leased + 1) / rate_of(m, sh);
        if (leases_can_take(c, m, version) && load < least) {
            least = load;
            best = m;
        } else if (!leases_can_take(c, m, version) && load < least_trains) {
            least_trains = load;
            trains = m;
        }
    }
    if (!trains || (best && (!best->n_leased || least <= least_trains)))
        return best;
    if (trains->state == PL_WORKER_TRAINING)
        sessions_call_back(c, now_ns, trains);
    return NULL;
}

/* The worker that the sample was handed over for, while it can take it. */
static member *heir_of(const pl_coordinator *c, sample *s, uint32_t version)
{
    for (int i = 0; s->heir && i < c->n_members; i++) {
        member *m = c->members[i];
        if (m->incarnation == s->heir && leases_can_take(c, m, version) &&
            m->n_leased < m->max_seqs)
            return m;
    }
    s->heir = 0;
    return NULL;
}

static void grant(pl_coordinator *c, int64_t now_ns, const batch *b, group *g, sample *s, member *m)
{
    c->stats.recomputed_tokens += s->n - s->n_prefix;
    authors_cut(s, s->n = s->n_prefix); /* another draws the last one again */
    hold(c, now_ns, s, m);
    send_lease(c, now_ns, b, g, s);
}

/* How many siblings m takes before another is asked: they share its cache and its drafter's text,
 * but lengths go by prompts, and who got all the long ones would hold the batch up. */
static uint32_t how_many(const member *m, const shares *sh)
{
    const double share = share_of(m, sh), left = share - m->n_leased;
    double n = floor(share / SHARE_PARTS);
    n = n < left ? n : left;
    n = n < m->max_seqs - m->n_leased ? n : m->max_seqs - m->n_leased;
    return n > 1 ? (uint32_t)n : 1;
}

void leases_grant(pl_coordinator *c, int64_t now_ns)
{
    batch *b = c->current;
    if (!c->want_grant || !b || b->n_durable != b->n_groups)
        return;
    c->want_grant = 0;
    if (!b->open_ns)
        b->open_ns = now_ns;
    group *const *order = b->order ? b->order : b->groups;
    shares sh = {0}; /* the same for all groups of a version: what is granted meanwhile counts on */
    uint32_t version = 0;
    int is_full = 0; /* nobody has room: only heirs get some */
    for (uint32_t i = 0; b->n_in[SAMPLE_PENDING] && i < b->n_groups; i++) {
        group *g = order[i];
        member *m = NULL;
        uint32_t left = 0;
        if (g->m.policy_version != version) {
            sh = (shares){0};
            version = g->m.policy_version;
            is_full = 0;
        }
        for (uint32_t k = 0; k < g->m.n; k++) {
            sample *s = &g->samples[k];
            if (s->state != SAMPLE_PENDING || (s->may_run && c->is_waiting))
                continue;
            member *heir = heir_of(c, s, g->m.policy_version);
            if (heir) {
                grant(c, now_ns, b, g, s, heir);
                continue;
            }
            if (is_full)
                continue;
            if (!left) {
                if (sh.sum == 0)
                    sh = share_out(c, now_ns, b, g->m.policy_version);
                m = pick(c, now_ns, g->m.policy_version, &sh);
                is_full = !m;
                if (is_full)
                    continue;
                left = how_many(m, &sh);
            }
            left--;
            grant(c, now_ns, b, g, s, m);
        }
    }
    c->is_kept = is_shared(c, now_ns, b); /* for others: offered to all later */
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
        if (at && at->state == SAMPLE_PENDING && is_first && !who->is_draining && !at->attempt &&
            who->policy_version == g->m.policy_version) {
            authors_adopt(at, who->incarnation);
            hold(c, now_ns, at, who);
            at->sent_lease_ns = now_ns;
        } else if (!at || at->state == SAMPLE_DURABLE || at->state == SAMPLE_VOID ||
                   (at->state != SAMPLE_RECORDED && at->holder != who)) {
            coordinator_send_uid(c, &who->peer, PL_MSG_REVOKE, s->batch, uid);
        }
    }
}

/* A finished sample is said each second until it is acknowledged.  One that never comes (said under
 * another number, or kept back) must not hold the batch up: it goes to whoever else has least to
 * do.  Returns 1 when it was taken away. */
static int take_held(
    pl_coordinator *c, int64_t now_ns, batch *b, const group *g, sample *s, int is_held)
{
    const member *other = NULL;
    if (!is_held || !s->held_ns)
        s->held_ns = is_held ? now_ns : 0;
    if (!is_held || !coordinator_is_late(now_ns, s->held_ns, HELD_MS))
        return 0;
    for (int i = 0; i < c->n_members; i++) {
        const member *m = c->members[i];
        if (m != s->holder && leases_can_take(c, m, g->m.policy_version) &&
            (!other || m->n_leased < other->n_leased))
            other = m;
    }
    pl_log_warn(c->log, "event=kept_back worker=%s sample=%u: it goes to %s", s->holder->name,
        s->uid, other ? other->name : "whoever comes");
    revoke(c, b, s);
    s->heir = other ? other->incarnation : 0;
    return 1;
}

/* It runs all that is leased to it, as it said before: nothing follows from that. */
static int is_as_before(const batch *b, const member *who, const pl_msg_status *s)
{
    uint32_t n = 0;
    if (!b || s->batch != b->id || s->held.n || s->running.n != who->n_leased ||
        who->n_leased > LIST_MAX)
        return 0;
    for (uint32_t i = 0; i < s->running.n; i++) {
        group *g = NULL;
        const sample *at = batches_sample(b, uid_at(&s->running, i), &g);
        n += at && at->state == SAMPLE_LEASED && at->holder == who && at->is_listed &&
             !at->held_ns && g->m.policy_version == who->policy_version;
    }
    return n == who->n_leased;
}

void leases_on_status(
    pl_coordinator *c, int64_t now_ns, member *who, const pl_msg_status *s, int is_first)
{
    batch *b = c->current;
    check_running(c, now_ns, who, s, is_first);
    if (is_as_before(b, who, s))
        return;
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
            at->is_listed = s->batch == b->id && lists(&s->running, at->uid);
            const int is_held = s->batch == b->id && lists(&s->held, at->uid);
            if (take_held(c, now_ns, b, g, at, is_held))
                continue;
            const int is_known = at->is_listed || is_held;
            if (is_held)
                at->handing_ns = 0, at->heir = 0; /* its result comes */
            if (!is_known && at->handing_ns)
                leases_end(c, at); /* it has handed it over */
            else if (!is_known && !who->is_draining &&
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

/* What a RESULT could not be either. */
static int is_wrong(const group *g, const pl_msg_progress *p)
{
    if ((uint64_t)p->pos0 + p->tokens.n > g->m.sampling.max_tokens ||
        p->logprobs.n != p->tokens.n || p->sources.n != p->tokens.n)
        return 1;
    for (uint32_t i = 0; i < p->tokens.n; i++)
        if ((int32_t)uid_at(&p->tokens, i) < 0 ||
            ((const unsigned char *)p->sources.data)[i] > SOURCE_MAX)
            return 1;
    return 0;
}

pl_status leases_on_progress(
    pl_coordinator *c, int64_t now_ns, member *who, const pl_msg_progress *p, pl_error *err)
{
    group *g = NULL;
    batch *b = batches_find(c, p->batch);
    sample *s = b && b == c->current ? batches_sample(b, p->uid, &g) : NULL;
    if (!s || s->state != SAMPLE_LEASED || s->holder != who || p->attempt != s->attempt ||
        p->policy_version != g->m.policy_version)
        return PL_OK; /* late: somebody else has it, or it is done */
    if (is_wrong(g, p)) {
        c->stats.n_invalid++;
        return PL_OK;
    }
    if (s->attempt) { /* nothing is handed on: see authors.c */
        coordinator_progressed(c, now_ns);
        return PL_OK;
    }
    if (p->pos0 > s->n)
        return PL_OK; /* a gap: what lies between was lost */
    const uint32_t n_same = authors_agree(s, p->pos0, &p->tokens, &p->logprobs);
    if (n_same == p->tokens.n)
        return PL_OK; /* nothing new */
    if (p->pos0 + n_same < s->n) {
        pl_log_warn(c->log,
            "event=progress_differs sample=%u worker=%s: tokens from %u on are not those known "
            "before; both are dropped, the RESULT will tell",
            s->uid, who->name, p->pos0 + n_same);
        c->stats.recomputed_tokens += s->n - (p->pos0 + n_same);
        leases_cut(s, p->pos0 + n_same);
        return PL_OK;
    }
    const pl_span tokens = {
        (const unsigned char *)p->tokens.data + (size_t)n_same * 4, p->tokens.n - n_same};
    const pl_span logprobs = {
        (const unsigned char *)p->logprobs.data + (size_t)n_same * 4, tokens.n};
    const pl_span sources = {(const unsigned char *)p->sources.data + n_same, tokens.n};
    const uint32_t from = s->n;
    pl_status st = leases_store(s, from, &tokens, &logprobs, &sources, err);
    if (st == PL_OK)
        st = authors_add(s, from, s->n, who, err);
    if (st != PL_OK)
        return st;
    s->n_prefix = s->n - 1;
    s->draft = p->draft;
    s->accepted = p->accepted;
    s->steps = p->steps;
    coordinator_progressed(c, now_ns);
    return PL_OK;
}
