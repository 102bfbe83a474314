/* cli/replay_compare.c - a step as it was recorded, in the trace and in RUN/rollouts: the two
 * against each other, and against what was generated again.
 *
 * Both are needed: the trace has the tokens and one hash of 64 log-probs, the rollouts have the
 * log-probs themselves, and may be gone. */
#include "cli/replay_parts.h"
#include "core/file.h"

#include <string.h>

/* ---- samples ---- */

/* First token at which a and b differ, or -1; n of each. */
static int find_token(const int32_t *a, int n_a, const int32_t *b, int n_b)
{
    const int n = n_a < n_b ? n_a : n_b;

    for (int i = 0; i < n; i++)
        if (a[i] != b[i])
            return i;
    return n_a == n_b ? -1 : n;
}

/* First token of the first block of log-probs whose hash is another one; -1: none. */
static int find_hash(const pl_trace_sample *t, const float *logprobs)
{
    for (int i = 0; i < pl_trace_hashes(t->n_tokens); i++) {
        const int first = i * PL_TRACE_HASHED, left = t->n_tokens - first;
        const int n = left < PL_TRACE_HASHED ? left : PL_TRACE_HASHED;
        if (pl_trace_hash(logprobs + first, n) != t->hashes[i])
            return first;
    }
    return -1;
}

static int find_bits(const float *a, const float *b, int n)
{
    for (int i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], sizeof *a) != 0)
            return i;
    return -1;
}

static const char *finish_name(pl_finish f)
{
    return f == PL_FINISH_STOP ? "stop" : f == PL_FINISH_LENGTH ? "length" : "aborted";
}

static void say_token(char out[48], const int32_t *tokens, int n, int at)
{
    if (at < n)
        snprintf(out, 48, "%d", tokens[at]);
    else
        snprintf(out, 48, "none, %d tokens", n);
}

static void say_logprob(char out[48], float v)
{
    uint32_t bits;

    memcpy(&bits, &v, sizeof bits);
    snprintf(out, 48, "%.9g (bits %08x)", (double)v, bits);
}

/* ---- the record ---- */

/* What sample i of the file says otherwise than the trace, in words; 0: nothing. */
static int disagree(const replay_record *x, int i, char what[128])
{
    const pl_trace_step *t = x->trace;
    const pl_trace_sample *a = &t->samples[i];
    const pl_sample *s = &x->rollouts->samples[i];
    const pl_response *b = s->response;
    char is[48], was[48];
    int at;

    if (b->uid != a->uid)
        return snprintf(what, 128, "stands where sample %u is to stand", a->uid);
    if (pl_hash64(b->prompt, (size_t)b->n_prompt * sizeof *b->prompt) != t->prompts[i / t->n])
        return snprintf(what, 128, "has another prompt than in the trace");
    at = find_token(b->tokens, b->n_tokens, a->tokens, a->n_tokens);
    if (at >= 0) {
        say_token(is, b->tokens, b->n_tokens, at);
        say_token(was, a->tokens, a->n_tokens, at);
        return snprintf(what, 128, "token %d is %s, in the trace %s", at, is, was);
    }
    at = b->logprobs ? find_hash(a, b->logprobs) : -1;
    if (at >= 0)
        return snprintf(what, 128, "log-probs of tokens %d to %d are not those of the trace", at,
            (at + PL_TRACE_HASHED < a->n_tokens ? at + PL_TRACE_HASHED : a->n_tokens) - 1);
    if (b->finish != a->finish)
        return snprintf(what, 128, "finish is %s, in the trace %s", finish_name(b->finish),
            finish_name(a->finish));
    if (memcmp(&s->reward, &a->reward, sizeof a->reward) != 0)
        return snprintf(
            what, 128, "reward is %.9g, in the trace %.9g", (double)s->reward, (double)a->reward);
    return 0;
}

static pl_status check(const replay_record *x, pl_error *err)
{
    const pl_trace_step *t = x->trace;
    const int total = t->n_groups * t->n;
    char what[128];

    if (x->rollouts->n != total)
        return pl_fail(err, PL_E_FORMAT,
            "'%s' has %d samples, the trace %d: the file is another one", x->path, x->rollouts->n,
            total);
    for (int i = 0; i < total; i++)
        if (disagree(x, i, what))
            return pl_fail(err, PL_E_FORMAT,
                "'%s': sample %u: %s: the file was changed, or is another run's (with it moved "
                "away "
                "the step is compared with the trace alone)",
                x->path, x->rollouts->samples[i].response->uid, what);
    return PL_OK;
}

pl_status replay_record_open(
    replay_record *x, const char *run_dir, int64_t step, int n_vocab, int max_tokens, pl_error *err)
{
    memset(x, 0, sizeof *x);
    snprintf(
        x->path, sizeof x->path, "%s/rollouts/step_%06lld.jsonl.zst", run_dir, (long long)step);
    pl_status st = pl_trace_load(run_dir, step, &x->trace, NULL, NULL, err);
    if (st == PL_OK && pl_path_exists(x->path))
        st = pl_rollouts_read(&x->rollouts, x->path, NULL, n_vocab, max_tokens, err);
    if (st == PL_OK && x->rollouts)
        st = check(x, err);
    if (st != PL_OK)
        replay_record_close(x);
    return st;
}

void replay_record_close(replay_record *x)
{
    pl_trace_step_free(x->trace);
    pl_rollouts_free(x->rollouts);
    x->trace = NULL;
    x->rollouts = NULL;
}

/* ---- what was generated again ---- */

/* Position, and what is there; -1: the same bits. */
static int compare_sample(
    const replay_record *x, int i, const pl_response *now, replay_difference *d)
{
    const pl_trace_sample *t = &x->trace->samples[i];
    const float *recorded = x->rollouts && x->rollouts->has_logprobs
                                ? x->rollouts->samples[i].response->logprobs
                                : NULL;
    const int token = find_token(now->tokens, now->n_tokens, t->tokens, t->n_tokens);
    const int n = token >= 0 ? token : t->n_tokens; /* log-probs up to there can be compared */
    int at = recorded ? find_bits(now->logprobs, recorded, n) : -1;

    if (at >= 0) {
        d->what = "log-prob";
        say_logprob(d->now, now->logprobs[at]);
        say_logprob(d->then, recorded[at]);
        return at;
    }
    at = !recorded && token < 0 ? find_hash(t, now->logprobs) : -1;
    if (at >= 0) {
        d->what = "hash of up to 64 log-probs from there on";
        snprintf(d->now, sizeof d->now, "another one");
        snprintf(d->then, sizeof d->then, "%016llx",
            (unsigned long long)t->hashes[at / PL_TRACE_HASHED]);
        return at;
    }
    if (token >= 0) {
        d->what = "token";
        say_token(d->now, now->tokens, now->n_tokens, token);
        say_token(d->then, t->tokens, t->n_tokens, token);
        return token;
    }
    if (now->finish == t->finish)
        return -1;
    d->what = "finish";
    snprintf(d->now, sizeof d->now, "%s", finish_name(now->finish));
    snprintf(d->then, sizeof d->then, "%s", finish_name(t->finish));
    return t->n_tokens - 1;
}

void replay_compare(
    const replay_record *x, const run_batch *b, int first, replay_difference *difference)
{
    replay_difference d = {0};
    int64_t n_samples = 0, n_tokens = 0, n_drafted = 0;

    memset(difference, 0, sizeof *difference);
    for (int i = 0; i < b->n_groups * b->n; i++) {
        const int at = compare_sample(x, first + i, &b->responses[i], &d);
        n_tokens += b->responses[i].n_tokens;
        n_drafted += b->responses[i].spec_num_draft_tokens;
        if (at >= 0 && n_samples++ == 0) {
            *difference = d;
            difference->uid = b->responses[i].uid;
            difference->position = at;
        }
    }
    difference->n_samples = n_samples;
    difference->n_tokens = n_tokens;
    difference->n_drafted = n_drafted;
}
