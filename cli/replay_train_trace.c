/* cli/replay_train_trace.c - what the trace says of each step: the weights before and after it, and
 * one hash of its samples, so that a trace is read once however many steps are trained. */
#include "cli/replay_parts.h"
#include "cli/replay_train.h"
#include "core/file.h"

#include <stdlib.h>
#include <string.h>

/* What the trace and a file of rollouts both tell of a sample. */
typedef struct told {
    uint64_t before, prompt, tokens, logprobs;
    uint32_t uid, n_tokens, finish, reward;
} told;

static uint64_t add(told *t, float reward)
{
    memcpy(&t->reward, &reward, sizeof t->reward);
    return pl_hash64(t, sizeof *t);
}

static uint64_t hash_trace(const pl_trace_step *s)
{
    uint64_t h = 0;

    for (int i = 0; i < s->n_groups * s->n; i++) {
        const pl_trace_sample *x = &s->samples[i];
        const size_t n = (size_t)x->n_tokens;
        told t = {.before = h,
            .prompt = s->prompts[i / s->n],
            .tokens = pl_hash64(x->tokens, n * sizeof *x->tokens),
            .logprobs =
                pl_hash64(x->hashes, (size_t)pl_trace_hashes(x->n_tokens) * sizeof *x->hashes),
            .uid = x->uid,
            .n_tokens = (uint32_t)x->n_tokens,
            .finish = x->finish};
        h = add(&t, x->reward);
    }
    return h;
}

/* The same of records.  Errors: PL_E_NOMEM. */
static pl_status hash_rollouts(const pl_rollouts *r, uint64_t *out, pl_error *err)
{
    uint64_t h = 0, *hashes = NULL;
    int room = 0;

    for (int i = 0; i < r->n; i++) {
        const pl_response *x = r->samples[i].response;
        const int n_hashes = x->logprobs ? pl_trace_hashes(x->n_tokens) : 0;
        if (n_hashes > room) {
            free(hashes);
            room = 2 * n_hashes;
            hashes = malloc((size_t)room * sizeof *hashes);
            if (!hashes)
                return pl_fail(err, PL_E_NOMEM, "no memory for %d hashes", room);
        }
        for (int k = 0; k < n_hashes; k++) {
            const int first = k * PL_TRACE_HASHED, left = x->n_tokens - first;
            hashes[k] =
                pl_trace_hash(x->logprobs + first, left < PL_TRACE_HASHED ? left : PL_TRACE_HASHED);
        }
        told t = {.before = h,
            .prompt = pl_hash64(x->prompt, (size_t)x->n_prompt * sizeof *x->prompt),
            .tokens = pl_hash64(x->tokens, (size_t)x->n_tokens * sizeof *x->tokens),
            .logprobs = pl_hash64(hashes, (size_t)n_hashes * sizeof *hashes),
            .uid = x->uid,
            .n_tokens = (uint32_t)x->n_tokens,
            .finish = x->finish};
        h = add(&t, r->samples[i].reward);
    }
    free(hashes);
    *out = h;
    return PL_OK;
}

/* ---- the list ---- */

/* A step that stands twice: the later one counts, and all after it are to come again. */
static pl_status on_step(void *ctx, const pl_trace_step *s, pl_error *err)
{
    train_marks *m = ctx;

    int at = m->n;
    while (at > 0 && m->marks[at - 1].step >= s->step)
        at--;
    const int is_again = at < m->n && m->marks[at].step == s->step;
    if (!is_again && m->n == m->room) {
        const int room = m->room > 0 ? 2 * m->room : 64;
        train_mark *p = realloc(m->marks, (size_t)room * sizeof *p);
        if (!p)
            return pl_fail(err, PL_E_NOMEM, "no memory for %d steps of the trace", room);
        m->marks = p;
        m->room = room;
    }
    train_mark *d = &m->marks[at];
    if (!is_again)
        memmove(d + 1, d, (size_t)(m->n++ - at) * sizeof *d);
    *d = (train_mark){.step = s->step, .samples = hash_trace(s)};
    memcpy(d->before, s->before, sizeof d->before);
    memcpy(d->after, s->after, sizeof d->after);
    return PL_OK;
}

pl_status train_marks_read(train_marks *m, const char *run_dir, pl_error *err)
{
    const pl_trace_visitor v = {.ctx = m, .step = on_step};
    pl_trace_report report;

    memset(m, 0, sizeof *m);
    const pl_status st = pl_trace_read(run_dir, &v, &report, err);
    if (st != PL_OK)
        train_marks_done(m);
    return st;
}

void train_marks_done(train_marks *m)
{
    free(m->marks);
    memset(m, 0, sizeof *m);
}

const train_mark *train_marks_find(const train_marks *m, int64_t step)
{
    for (int i = m->n - 1; i >= 0; i--)
        if (m->marks[i].step == step)
            return &m->marks[i];
    return NULL;
}

pl_status train_marks_check(
    const train_mark *m, const char *run_dir, const pl_rollouts *x, int n_vocab, pl_error *err)
{
    replay_record record = {0};
    uint64_t h = 0;

    pl_status st = hash_rollouts(x, &h, err);
    if (st != PL_OK || h == m->samples)
        return st;
    st = replay_record_open(&record, run_dir, m->step, n_vocab, PL_TRACE_TOKENS, err);
    replay_record_close(&record); /* it names the sample */
    return st != PL_OK ? st
                       : pl_fail(err, PL_E_FORMAT,
                             "the rollouts of step %lld are not those of the trace: was the file "
                             "changed just now?",
                             (long long)m->step);
}
