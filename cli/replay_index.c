/* cli/replay_index.c - the steps of a trace as they count, without their samples. */
#include "cli/replay_parts.h"
#include "cli/trace.h"
#include "tensor/tensor.h"

#include <stdlib.h>
#include <string.h>

/* The run went on with other keys: in words. */
static void note_keys(replay_index *x, const pl_trace_run *r)
{
    enum { ROOM = 480 };
    char keys[400];
    run_config *c = calloc(1, sizeof *c);
    pl_error none = {0};

    if (!c || !r->config || run_config_parse(c, r->config, r->n_config, "trace", &none) != PL_OK) {
        free(c);
        return;
    }
    keys[0] = 0;
    if (x->config)
        replay_config_differ(c, x->config, keys, sizeof keys);
    free(x->config);
    x->config = c;
    char *text = keys[0] ? malloc(ROOM) : NULL;
    if (!text)
        return;
    snprintf(text, ROOM, "after step %lld the run went on with other keys: %s", (long long)r->step,
        keys);
    free(x->changed);
    x->changed = text;
}

static pl_status on_run(void *ctx, const pl_trace_run *r, pl_error *err)
{
    replay_index *x = ctx;

    if (strcmp(r->numeric_class, PL_NUMERIC_CLASS) != 0)
        return pl_fail(err, PL_E_CONFIG,
            "the trace is of numeric class '%.64s', this program of '%s': replay it with the build "
            "that wrote it ('%.80s')",
            r->numeric_class, PL_NUMERIC_CLASS, r->build);
    note_keys(x, r);
    return PL_OK;
}

/* The place of a step: where it stands already, or behind those before it. */
static pl_status place(replay_index *x, int64_t step, replay_step **out, pl_error *err)
{
    int at = x->n;

    while (at > 0 && x->steps[at - 1].step >= step)
        at--;
    if (at == x->n || x->steps[at].step != step) {
        if (x->n == x->room) {
            const int room = x->room ? 2 * x->room : 64;
            replay_step *more = realloc(x->steps, (size_t)room * sizeof *more);
            if (!more)
                return pl_fail(err, PL_E_NOMEM, "no memory for the steps of the trace");
            x->steps = more;
            x->room = room;
        }
        memmove(&x->steps[at + 1], &x->steps[at], (size_t)(x->n - at) * sizeof *x->steps);
        x->n++;
    }
    *out = &x->steps[at];
    return PL_OK;
}

static pl_status on_step(void *ctx, const pl_trace_step *s, pl_error *err)
{
    replay_index *x = ctx;
    replay_step *d = NULL;
    const pl_status st = place(x, s->step, &d, err);

    if (st != PL_OK)
        return st;
    *d = (replay_step){.step = s->step,
        .first_uid = s->first_uid,
        .policy_version = s->policy_version,
        .drafter_version = s->drafter_version,
        .n_groups = s->n_groups,
        .n = s->n};
    if (s->sampling.max_tokens > x->max_tokens)
        x->max_tokens = s->sampling.max_tokens;
    memcpy(d->before, s->before, sizeof d->before);
    for (int g = 0; g < s->n_groups; g++)
        if ((int64_t)s->n_prompt[g] > x->longest)
            x->longest = s->n_prompt[g] < PL_TRACE_TOKENS ? (int)s->n_prompt[g] : PL_TRACE_TOKENS;
    return PL_OK;
}

pl_status replay_index_read(replay_index *x, const char *run_dir, pl_error *err)
{
    const pl_trace_visitor v = {.ctx = x, .run = on_run, .step = on_step};
    char beyond[320];

    memset(x, 0, sizeof *x);
    pl_status st = pl_trace_read(run_dir, &v, &x->report, err);
    if (st == PL_OK && trace_beyond(run_dir, beyond, sizeof beyond))
        fprintf(stderr, "paceline: %s\n", beyond);
    if (st == PL_OK && x->n == 0)
        st = pl_fail(err, PL_E_NOENT, "no step is done in the trace of '%s' yet", run_dir);
    if (st != PL_OK)
        replay_index_done(x);
    return st;
}

void replay_index_done(replay_index *x)
{
    free(x->steps);
    free(x->changed);
    free(x->config);
    x->steps = NULL;
    x->changed = NULL;
    x->config = NULL;
    x->n = x->room = 0;
}

const replay_step *replay_index_step(const replay_index *x, int64_t step)
{
    for (int i = 0; i < x->n; i++)
        if (x->steps[i].step == step)
            return &x->steps[i];
    return NULL;
}

const replay_step *replay_index_sample(const replay_index *x, int64_t uid)
{
    for (int i = 0; i < x->n; i++) {
        const replay_step *s = &x->steps[i];
        if (uid >= s->first_uid && uid - s->first_uid < (int64_t)s->n_groups * s->n)
            return s;
    }
    return NULL;
}
