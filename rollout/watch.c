/* rollout/watch.c - what the coordinator does now, for who watches. */
#include "rollout/coordinator_internal.h"

#include <string.h>

static void count(const batch *b, pl_coordinator_view *out)
{
    out->has_batch = 1;
    out->batch = b->id;
    out->n_samples = b->n_samples;
    for (uint32_t i = 0; i < b->n_groups; i++) {
        const group *g = b->groups[i];
        for (uint32_t k = 0; g && k < g->m.n; k++) {
            const sample *s = &g->samples[k];
            out->n_done += s->state == SAMPLE_DURABLE;
            out->n_running += s->state == SAMPLE_LEASED;
            out->n_queued += s->state == SAMPLE_PENDING || s->state == SAMPLE_VOID;
            out->n_rewarded += s->reward_state == DURABLE;
            out->n_tokens += s->n;
        }
    }
    out->is_complete = batches_is_complete(b);
}

static void count_steps(const pl_coordinator *c, pl_coordinator_view *out)
{
    out->checkpoint = c->has_checkpoint ? c->checkpoint : 0;
    out->step = out->checkpoint;
    for (int i = 0; i < c->n_steps; i++) {
        const consumed *s = &c->steps[i];
        if (s->state == DURABLE && s->m.step > out->step)
            out->step = s->m.step;
        if (s->state == DURABLE && c->current && s->m.batch == c->current->id)
            out->is_consumed = 1;
    }
}

/* The sample that has been out for longest; NULL: none is. */
static const sample *oldest_lease(const batch *b)
{
    const sample *oldest = NULL;

    for (uint32_t i = 0; i < b->n_groups; i++) {
        const group *g = b->groups[i];
        for (uint32_t k = 0; g && k < g->m.n; k++) {
            const sample *s = &g->samples[k];
            if (s->state == SAMPLE_LEASED && (!oldest || s->leased_ns < oldest->leased_ns))
                oldest = s;
        }
    }
    return oldest;
}

static void say_rollout(const pl_coordinator *c, int64_t now_ns, pl_coordinator_view *v)
{
    const sample *s = oldest_lease(c->current);

    if (c->current->n_durable < c->current->n_groups)
        snprintf(v->awaited, sizeof v->awaited, "prompts %u of %u from the trainer",
            c->current->n_durable, c->current->n_groups);
    else if (s)
        snprintf(v->awaited, sizeof v->awaited,
            "%u samples; longest: sample %u from %s, %u tokens in %.0f s",
            v->n_running + v->n_queued, s->uid, s->holder->name, s->n,
            (double)(now_ns - s->leased_ns) / 1e9);
    else if (v->n_queued)
        snprintf(v->awaited, sizeof v->awaited, "a worker with version %u for %u samples",
            c->version.version, v->n_queued);
}

static void say_awaited(const pl_coordinator *c, int64_t now_ns, pl_coordinator_view *v)
{
    if (c->is_done)
        return;
    if (!members_trainer(c))
        snprintf(v->awaited, sizeof v->awaited, "a trainer");
    else if (v->n_workers == 0)
        snprintf(v->awaited, sizeof v->awaited, "a worker");
    else if (!c->current)
        snprintf(v->awaited, sizeof v->awaited, "the first prompts from the trainer");
    else if (!v->is_complete)
        say_rollout(c, now_ns, v);
    else if (!v->is_consumed && v->n_rewarded > 0 && v->n_rewarded < v->n_samples)
        snprintf(v->awaited, sizeof v->awaited, "%u of %u rewards from the trainer",
            v->n_samples - v->n_rewarded, v->n_samples);
    else
        snprintf(v->awaited, sizeof v->awaited, "the trainer");
}

void pl_coordinator_watch(const pl_coordinator *c, int64_t now_ns, pl_coordinator_view *out)
{
    memset(out, 0, sizeof *out);
    if (c->current)
        count(c->current, out);
    count_steps(c, out);
    for (int i = 0; i < c->n_members; i++)
        out->n_workers +=
            c->members[i]->role == PL_ROLE_WORKER && c->members[i]->state != PL_WORKER_LOST;
    out->policy_version = c->version_state == DURABLE ? c->version.version : 0;
    out->drafter_version = c->drafter_state == DURABLE ? c->drafter.version : 0;
    out->session = c->session.id;
    out->n_lost = (uint32_t)c->stats.n_lost;
    out->n_quarantined = (uint32_t)c->stats.n_quarantined;
    out->n_leased_again = c->stats.n_releases;
    out->n_recomputed = c->stats.recomputed_tokens;
    out->is_done = c->is_done;
    say_awaited(c, now_ns, out);
}

void pl_coordinator_each_worker(
    const pl_coordinator *c, void (*take)(void *ctx, const pl_coordinator_worker *w), void *ctx)
{
    for (int i = 0; i < c->n_members; i++) {
        const member *m = c->members[i];
        const pl_coordinator_worker w = {.name = m->name,
            .state = m->state,
            .pid = m->pid,
            .n_threads = m->n_threads,
            .policy_version = m->policy_version,
            .drafter_version = m->drafter_version,
            .n_leased = m->n_leased,
            .n_held = m->n_held,
            .rate = m->rate};
        if (m->role == PL_ROLE_WORKER)
            take(ctx, &w);
    }
}

void pl_coordinator_each_length(
    const pl_coordinator *c, void (*take)(void *ctx, uint32_t n_tokens, int is_done), void *ctx)
{
    for (uint32_t i = 0; c->current && i < c->current->n_groups; i++) {
        const group *g = c->current->groups[i];
        for (uint32_t k = 0; g && k < g->m.n; k++) {
            const sample *s = &g->samples[k];
            if (s->state == SAMPLE_LEASED || s->state == SAMPLE_DURABLE)
                take(ctx, s->n, s->state == SAMPLE_DURABLE);
        }
    }
}
