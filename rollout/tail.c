/* rollout/tail.c - the last samples of a batch, put together on fewer workers.
 *
 * Few samples leave a machine waiting for memory: one worker runs them all hardly slower than some
 * of them, and another is free to train the drafter.  When nothing of a training batch waits for a
 * worker and at most consolidate_below samples run, the worker with the fewest hands its own over
 * to the one with the most.
 *
 *   HANDOVER --> last PROGRESS, STATUS without them --> pending --> LEASE to the heir
 *
 * They go on behind what is known, so they say the same.  A worker hands over once a batch: nothing
 * goes to and fro. */
#include "rollout/coordinator_internal.h"

#include <string.h>

typedef struct running { /* samples that a worker runs */
    member *m;
    uint32_t n;
    int is_fixed; /* one of them cannot be handed over: its lease is on the way, or its text is not
                     to be handed on */
} running;

enum { WORKERS_MAX = 64 }; /* of which some are looked at */

/* Calls visit for every leased sample of the batch. */
static void for_leased(pl_coordinator *c, void (*visit)(void *ctx, sample *s), void *ctx)
{
    const batch *b = c->current;
    uint32_t n_left = b->n_in[SAMPLE_LEASED];
    for (uint32_t i = 0; n_left && i < b->n_groups; i++)
        for (uint32_t k = 0; n_left && k < b->groups[i]->m.n; k++)
            if (b->groups[i]->samples[k].state == SAMPLE_LEASED) {
                visit(ctx, &b->groups[i]->samples[k]);
                n_left--;
            }
}

typedef struct table {
    running at[WORKERS_MAX];
    int n;
    uint32_t n_samples;
    int is_handing;
} table;

static void count(void *ctx, sample *s)
{
    table *t = ctx;
    int i = 0;
    t->n_samples++;
    t->is_handing |= s->handing_ns != 0;
    while (i < t->n && t->at[i].m != s->holder)
        i++;
    if (i == WORKERS_MAX)
        return;
    if (i == t->n)
        t->at[t->n++] = (running){.m = s->holder};
    t->at[i].n++;
    t->at[i].is_fixed |= !s->is_listed || s->attempt > 0;
}

/* a gives rather than b: fewer samples, slower, the later name. */
static int gives_rather(const running *a, const running *b)
{
    if (a->n != b->n)
        return a->n < b->n;
    if (a->m->rate != b->m->rate)
        return a->m->rate < b->m->rate;
    return strcmp(a->m->name, b->m->name) > 0;
}

static running *find_giver(pl_coordinator *c, table *t)
{
    running *giver = NULL;
    for (int i = 0; i < t->n; i++) {
        running *r = &t->at[i];
        if (!r->is_fixed && r->m->gave != c->current->id + 1 && r->m->state == PL_WORKER_BUSY &&
            (!giver || gives_rather(r, giver)))
            giver = r;
    }
    return giver;
}

/* With room for the giver's, and not fewer of its own. */
static running *find_heir(pl_coordinator *c, table *t, const running *giver)
{
    running *heir = NULL;
    for (int i = 0; i < t->n; i++) {
        running *r = &t->at[i];
        if (r != giver && leases_can_take(c, r->m, giver->m->policy_version) &&
            r->m->n_leased + giver->n <= r->m->max_seqs && gives_rather(giver, r) &&
            (!heir || gives_rather(heir, r)))
            heir = r;
    }
    return heir;
}

/* ---- HANDOVER ---- */

typedef struct order {
    pl_coordinator *c;
    int64_t now_ns;
    const member *giver;
    uint64_t heir;
} order;

static void say(pl_coordinator *c, int64_t now_ns, sample *s)
{
    s->sent_hand_ns = now_ns;
    coordinator_send_uid(c, &s->holder->peer, PL_MSG_HANDOVER, c->current->id, s->uid);
}

static void ask_back(void *ctx, sample *s)
{
    const order *o = ctx;
    if (s->holder != o->giver)
        return;
    s->handing_ns = o->now_ns;
    s->heir = o->heir;
    o->c->stats.n_handovers++;
    say(o->c, o->now_ns, s);
}

/* Said again; after lost_ms the worker keeps it. */
static void wait_for(void *ctx, sample *s)
{
    const order *o = ctx;
    if (!s->handing_ns)
        return;
    if (coordinator_is_late(o->now_ns, s->handing_ns, o->c->o.lost_ms)) {
        s->handing_ns = 0;
        s->heir = 0;
    } else if (coordinator_is_late(o->now_ns, s->sent_hand_ns, o->c->o.resend_ms)) {
        say(o->c, o->now_ns, s);
    }
}

void tail_tick(pl_coordinator *c, int64_t now_ns)
{
    table t = {0};
    order o = {.c = c, .now_ns = now_ns};
    if (!c->o.consolidate_below || c->is_draining || c->is_done || c->is_waiting || !c->current ||
        c->current->id >> 32 != 0 || !c->current->open_ns ||
        !coordinator_is_late(now_ns, c->current->open_ns, SHARE_MS) || !sessions_is_tail(c) ||
        (!c->current->was_handed && c->current->n_in[SAMPLE_LEASED] > c->o.consolidate_below))
        return;
    for_leased(c, count, &t);
    if (t.is_handing) {
        for_leased(c, wait_for, &o);
        return;
    }
    if (t.n_samples > c->o.consolidate_below || t.n < 2)
        return;
    running *giver = find_giver(c, &t);
    const running *heir = giver ? find_heir(c, &t, giver) : NULL;
    if (!heir)
        return;
    giver->m->gave = c->current->id + 1;
    c->current->was_handed = 1;
    o.giver = giver->m;
    o.heir = heir->m->incarnation;
    pl_log_info(
        c->log, "event=handover from=%s to=%s samples=%u", giver->m->name, heir->m->name, giver->n);
    for_leased(c, ask_back, &o);
}
