/* cli/trace_diff.c - where two traces first differ: by the hash of each step, then in its samples
 * token by token, and by the hashes of 64 log-probs each.
 *
 * Sources, spec_ counters, times and workers may differ: no law fixes them. */
#include "cli/trace.h"

#include "cli/cli.h"

#include <inttypes.h>
#include <string.h>

enum { WHAT_ROOM = 512 };

typedef struct difference {
    int64_t step, uid, position; /* -1: of no sample, of no token */
    char what[WHAT_ROOM];
} difference;

typedef struct pair {
    const pl_trace_step *a, *b;
} pair;

static int is_known(const unsigned char hash[16])
{
    static const unsigned char none[16];
    return memcmp(hash, none, sizeof none) != 0;
}

static int differ(const unsigned char a[16], const unsigned char b[16])
{
    return is_known(a) && is_known(b) && memcmp(a, b, 16) != 0;
}

/* ---- in a step ---- */

/* First token that differs, or the end of the shorter; -1: none. */
static int first_token(const pl_trace_sample *a, const pl_trace_sample *b)
{
    const int n = a->n_tokens < b->n_tokens ? a->n_tokens : b->n_tokens;

    for (int i = 0; i < n; i++)
        if (a->tokens[i] != b->tokens[i])
            return i;
    return a->n_tokens == b->n_tokens ? -1 : n;
}

/* First of the hashes over the same tokens that differs; -1: none. */
static int first_hash(const pl_trace_sample *a, const pl_trace_sample *b, int token)
{
    const int n = token < 0 ? pl_trace_hashes(a->n_tokens) : token / PL_TRACE_HASHED;

    for (int i = 0; i < n; i++)
        if (a->hashes[i] != b->hashes[i])
            return i;
    return -1;
}

static void describe_token(difference *d, const pl_trace_sample *a, const pl_trace_sample *b, int i)
{
    d->position = i;
    if (i < a->n_tokens && i < b->n_tokens)
        (void)snprintf(d->what, sizeof d->what, "token %d is %" PRId32 " in A, %" PRId32 " in B", i,
            a->tokens[i], b->tokens[i]);
    else
        (void)snprintf(d->what, sizeof d->what, "A has %d tokens, B %d; the first %d are the same",
            a->n_tokens, b->n_tokens, i);
}

static int sample_differs(const pl_trace_sample *a, const pl_trace_sample *b, difference *d)
{
    const int token = first_token(a, b), hash = first_hash(a, b, token);

    d->uid = a->uid;
    if (hash >= 0) {
        const int first = hash * PL_TRACE_HASHED, end = first + PL_TRACE_HASHED;
        d->position = first;
        (void)snprintf(d->what, sizeof d->what,
            "log-probs of tokens %d to %d differ (hash %d: %016" PRIx64 " in A, %016" PRIx64
            " in B); %s",
            first, (end < a->n_tokens ? end : a->n_tokens) - 1, hash, a->hashes[hash],
            b->hashes[hash], token < 0 ? "all tokens are the same" : "a token behind them too");
        return 1;
    }
    if (token >= 0) {
        describe_token(d, a, b, token);
        return 1;
    }
    if (a->finish != b->finish) {
        (void)snprintf(d->what, sizeof d->what, "finish is %s in A, %s in B",
            trace_finish_name(a->finish), trace_finish_name(b->finish));
        return 1;
    }
    if (memcmp(&a->reward, &b->reward, sizeof a->reward) != 0) {
        (void)snprintf(d->what, sizeof d->what, "reward is %.9g in A, %.9g in B", (double)a->reward,
            (double)b->reward);
        return 1;
    }
    return 0;
}

static int shape_differs(pair p, difference *d)
{
    const pl_trace_step *a = p.a, *b = p.b;

    if (a->first_uid != b->first_uid || a->n_groups != b->n_groups || a->n != b->n) {
        (void)snprintf(d->what, sizeof d->what,
            "A has %d groups of %d from uid %" PRIu32 ", B %d of %d from uid %" PRIu32, a->n_groups,
            a->n, a->first_uid, b->n_groups, b->n, b->first_uid);
        return 1;
    }
    for (int i = 0; i < a->n_groups; i++)
        if (a->prompts[i] != b->prompts[i] || a->n_prompt[i] != b->n_prompt[i]) {
            d->uid = (int64_t)a->first_uid + (int64_t)i * a->n;
            (void)snprintf(d->what, sizeof d->what,
                "another prompt (%" PRIu32 " tokens in A, %" PRIu32 " in B)", a->n_prompt[i],
                b->n_prompt[i]);
            return 1;
        }
    return 0;
}

/* A number that differs, behind what d->what says already. */
static void add_number(difference *d, const char *name, double a, double b)
{
    const size_t n = strlen(d->what);

    if (memcmp(&a, &b, sizeof a) != 0)
        (void)snprintf(d->what + n, sizeof d->what - n, "%s %s %.9g in A, %.9g in B",
            n == 0 ? "sampled in another way:" : ",", name, a, b);
}

static int sampling_differs(const pl_sampling *a, const pl_sampling *b, difference *d)
{
    add_number(d, "temperature", (double)a->temperature, (double)b->temperature);
    add_number(d, "top_p", (double)a->top_p, (double)b->top_p);
    add_number(d, "min_p", (double)a->min_p, (double)b->min_p);
    add_number(d, "top_k", a->top_k, b->top_k);
    add_number(d, "max_tokens", a->max_tokens, b->max_tokens);
    add_number(d, "purpose", a->purpose, b->purpose);
    add_number(d, "ignore_eos", a->ignore_eos, b->ignore_eos);
    const size_t n = strlen(d->what);
    if (a->noise_key != b->noise_key)
        (void)snprintf(d->what + n, sizeof d->what - n,
            "%s noise key (of the seed) %016" PRIx64 " in A, %016" PRIx64 " in B",
            n == 0 ? "sampled in another way:" : ",", a->noise_key, b->noise_key);
    return d->what[0] != '\0';
}

/* What differs in a step whose rows do. */
static void find_in_step(pair p, difference *d)
{
    d->step = p.a->step;
    if (shape_differs(p, d))
        return;
    if (!sampling_differs(&p.a->sampling, &p.b->sampling, d) && differ(p.a->before, p.b->before))
        (void)snprintf(d->what, sizeof d->what, "the policy before it differs");
    char cause[WHAT_ROOM];
    memcpy(cause, d->what, sizeof cause);
    for (int64_t i = 0; i < (int64_t)p.a->n_groups * p.a->n; i++)
        if (sample_differs(&p.a->samples[i], &p.b->samples[i], d)) {
            const size_t n = strlen(d->what);
            if (cause[0])
                (void)snprintf(d->what + n, sizeof d->what - n, "; %.200s", cause);
            return;
        }
    d->uid = -1;
    if (!cause[0])
        (void)snprintf(d->what, sizeof d->what, "the same samples, but other weights came of it");
}

static pl_status look(const trace_options *o, int64_t step, difference *d, pl_error *err)
{
    pl_trace_step *a = NULL, *b = NULL;

    pl_status st = pl_trace_load(o->path, step, &a, NULL, NULL, err);
    if (st == PL_OK)
        st = pl_trace_load(o->other, step, &b, NULL, NULL, err);
    if (st == PL_OK)
        find_in_step((pair){a, b}, d);
    pl_trace_step_free(a);
    pl_trace_step_free(b);
    return st;
}

/* ---- steps ---- */

static int row_differs(const trace_row *a, const trace_row *b)
{
    return a->shape != b->shape || a->samples != b->samples || differ(a->before, b->before) ||
           differ(a->after, b->after);
}

/* The first step that differs, or that only one has; 0: none.  *only: the trace that has it. */
static int64_t first_step(const trace_rows *a, const trace_rows *b, const char **only)
{
    size_t i = 0, k = 0;

    *only = NULL;
    while (i < a->n || k < b->n) {
        const trace_row *x = i < a->n ? &a->rows[i] : NULL, *y = k < b->n ? &b->rows[k] : NULL;
        if (!x || !y || x->step != y->step) {
            *only = x && (!y || x->step < y->step) ? "A" : "B";
            return **only == 'A' ? x->step : y->step;
        }
        if (row_differs(x, y))
            return x->step;
        i++;
        k++;
    }
    return 0;
}

static void print_rest(const trace_rows *a, const trace_rows *b)
{
    for (size_t i = 0; i < a->n; i++) {
        const trace_row *x = &a->rows[i], *y = trace_rows_find(b, x->step);
        if (!y)
            continue;
        printf("step %" PRId64 ": %s; drafted %" PRIu64 " / %" PRIu64 ", accepted %" PRIu64
               " / %" PRIu64 ", passes %" PRIu64 " / %" PRIu64 "; workers %d / %d, drafter %" PRIu32
               " / %" PRIu32 "; gen %.3f / %.3f s, update %.3f / %.3f s, step %.3f / %.3f s\n",
            x->step,
            row_differs(x, y)          ? "other samples or weights"
            : x->sources != y->sources ? "the same samples, drafted in other ways"
                                       : "the same samples, drafted the same way",
            x->draft, y->draft, x->accepted, y->accepted, x->steps, y->steps, x->n_workers,
            y->n_workers, x->drafter_version, y->drafter_version, x->gen_s, y->gen_s, x->update_s,
            y->update_s, x->step_s, y->step_s);
    }
}

static pl_status print_json(const difference *d, int is_same, pl_error *err)
{
    pl_json j = {0};

    pl_json_text(&j, is_same ? "{\"same\":true" : "{\"same\":false");
    if (!is_same) {
        trace_json_int(&j, ",\"step\":", d->step);
        pl_json_text(&j, ",\"uid\":");
        d->uid >= 0 ? pl_json_int(&j, d->uid) : pl_json_text(&j, "null");
        pl_json_text(&j, ",\"position\":");
        d->position >= 0 ? pl_json_int(&j, d->position) : pl_json_text(&j, "null");
        pl_json_text(&j, ",\"what\":");
        trace_json_string(&j, d->what, strlen(d->what));
    }
    pl_json_text(&j, "}\n");
    const pl_status st = pl_json_check(&j, "difference", err);
    if (st == PL_OK)
        fwrite(j.data, 1, j.n, stdout);
    pl_json_done(&j);
    return st;
}

static void print_difference(const difference *d)
{
    printf("differ at step %" PRId64, d->step);
    if (d->uid >= 0)
        printf(", uid %" PRId64, d->uid);
    printf(": %s\n", d->what);
}

static pl_status compare(
    const trace_options *o, const trace_rows *a, const trace_rows *b, int *exit_code, pl_error *err)
{
    difference d = {.uid = -1, .position = -1};
    const char *only = NULL;
    pl_status st = PL_OK;

    d.step = first_step(a, b, &only);
    if (only)
        (void)snprintf(
            d.what, sizeof d.what, "only %s has it; the steps before are the same", only);
    else if (d.step > 0)
        st = look(o, d.step, &d, err);
    if (st != PL_OK)
        return st;
    *exit_code = d.step > 0;
    if (o->json)
        return print_json(&d, d.step == 0, err);
    if (a->config_hash != b->config_hash)
        printf("note: other configurations, %016" PRIx64 " and %016" PRIx64 "\n", a->config_hash,
            b->config_hash);
    if (o->all)
        print_rest(a, b);
    if (d.step > 0)
        print_difference(&d);
    else
        printf("the same: %zu step%s\n", a->n, trace_s((int64_t)a->n));
    return PL_OK;
}

pl_status trace_diff(const trace_options *o, int *exit_code, pl_error *err)
{
    trace_rows a, b = {0};

    pl_status st = trace_rows_read(&a, o->path, err);
    if (st == PL_OK)
        st = trace_rows_read(&b, o->other, err);
    if (st == PL_OK)
        st = compare(o, &a, &b, exit_code, err);
    trace_rows_done(&a);
    trace_rows_done(&b);
    return st;
}
