/* cli/trace_rows.c - a trace as a table of its steps, and text from it that a terminal may get. */
#include "cli/trace.h"

#include "core/file.h"
#include "model/draft.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- text ---- */

const char *trace_clean(char *out, size_t size, const char *text)
{
    size_t n = 0;

    for (; n + 1 < size && text[n]; n++)
        out[n] = text[n] >= 0x20 && text[n] <= 0x7e ? text[n] : '?';
    out[n] = '\0';
    return out;
}

void trace_json_string(pl_json *j, const char *text, size_t n)
{
    char *copy = malloc(n + 1);

    if (!copy) {
        j->failed = 1;
        return;
    }
    memcpy(copy, text, n);
    for (size_t i = 0; i < n; i++) {
        const unsigned char c = (unsigned char)copy[i];
        const unsigned char next = i + 1 < n ? (unsigned char)copy[i + 1] : 0;
        if ((c < 0x20 && c != '\n') || c == 0x7f)
            copy[i] = '?';
        else if (c == 0xc2 && next >= 0x80 && next <= 0x9f) /* U+0080 .. U+009F */
            copy[i] = copy[i + 1] = '?';
    }
    pl_json_string(j, copy, n);
    free(copy);
}

void trace_json_hash(pl_json *j, const unsigned char hash[16])
{
    static const char digits[] = "0123456789abcdef";
    char text[33];

    for (int i = 0; i < 16; i++) {
        text[2 * i] = digits[hash[i] >> 4];
        text[2 * i + 1] = digits[hash[i] & 15];
    }
    pl_json_string(j, text, 32);
}

void trace_json_int(pl_json *j, const char *key, int64_t v)
{
    pl_json_text(j, key);
    pl_json_int(j, v);
}

const char *trace_finish_name(pl_finish f)
{
    return f == PL_FINISH_STOP ? "stop" : f == PL_FINISH_LENGTH ? "length" : "aborted";
}

const char *trace_source_name(uint8_t source)
{
    return source == PL_SOURCE_SUFFIX    ? "suffix"
           : source == PL_SOURCE_LEARNED ? "learned"
                                         : "target";
}

const char *trace_steps(char out[64], int64_t first, int64_t last)
{
    if (first == last)
        (void)snprintf(out, 64, "step %" PRId64, first);
    else
        (void)snprintf(out, 64, "steps %" PRId64 " to %" PRId64, first, last);
    return out;
}

/* ---- rows ---- */

void trace_rows_done(trace_rows *t)
{
    free(t->rows);
    memset(t, 0, sizeof *t);
}

/* Where the step stands or would stand. */
static size_t place(const trace_rows *t, int64_t step)
{
    size_t low = 0, high = t->n;

    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (t->rows[middle].step < step)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const trace_row *trace_rows_find(const trace_rows *t, int64_t step)
{
    const size_t at = place(t, step);
    return at < t->n && t->rows[at].step == step ? &t->rows[at] : NULL;
}

static uint64_t mix(uint64_t h, uint64_t v)
{
    const uint64_t pair[2] = {h, v};
    return pl_hash64(pair, sizeof pair);
}

static void add_sample(trace_row *r, const pl_trace_sample *a)
{
    uint32_t reward;

    memcpy(&reward, &a->reward, sizeof reward);
    r->n_tokens += a->n_tokens;
    r->draft += a->draft;
    r->accepted += a->accepted;
    r->steps += a->steps;
    r->samples = mix(r->samples, pl_hash64(a->tokens, (size_t)a->n_tokens * sizeof *a->tokens));
    r->samples = mix(
        r->samples, pl_hash64(a->hashes, (size_t)pl_trace_hashes(a->n_tokens) * sizeof *a->hashes));
    r->samples = mix(r->samples, (uint64_t)a->finish << 32 | reward);
    r->sources = mix(r->sources, pl_hash64(a->source, (size_t)a->n_tokens));
    r->sources = mix(r->sources, (uint64_t)a->draft << 32 | a->accepted);
    r->sources = mix(r->sources, a->steps);
}

static uint64_t hash_shape(const pl_trace_step *s)
{
    const pl_sampling *p = &s->sampling;
    const float f[3] = {p->temperature, p->top_p, p->min_p};
    const uint64_t parts[] = {(uint64_t)s->n_groups, (uint64_t)s->n, s->first_uid, p->max_tokens,
        p->top_k, p->noise_key, p->purpose, p->ignore_eos, pl_hash64(f, sizeof f),
        pl_hash64(s->prompts, (size_t)s->n_groups * sizeof *s->prompts),
        pl_hash64(s->n_prompt, (size_t)s->n_groups * sizeof *s->n_prompt)};
    return pl_hash64(parts, sizeof parts);
}

static void add_passes(trace_rows *t, const pl_trace_step *s)
{
    for (int i = 0; i < s->n_costs; i++) {
        const pl_trace_cost *c = &s->costs[i];
        int at = 0;
        while (at < t->n_passes && t->passes[at].rows < c->rows)
            at++;
        if (at == t->n_passes || t->passes[at].rows != c->rows) {
            if (t->n_passes == TRACE_PASSES)
                continue;
            memmove(&t->passes[at + 1], &t->passes[at],
                (size_t)(t->n_passes - at) * sizeof t->passes[0]);
            t->passes[at] = (trace_pass){.rows = c->rows};
            t->n_passes++;
        }
        t->passes[at].n += c->n;
        t->passes[at].seconds += c->seconds;
    }
}

static pl_status add_run(void *ctx, const pl_trace_run *r, pl_error *err)
{
    (void)err;
    ((trace_rows *)ctx)->config_hash = r->config_hash;
    return PL_OK;
}

static pl_status add_step(void *ctx, const pl_trace_step *s, pl_error *err)
{
    trace_rows *t = ctx;
    const size_t at = place(t, s->step);
    const int is_known = at < t->n && t->rows[at].step == s->step;

    if (!is_known && t->n == t->room) {
        const size_t room = t->room ? 2 * t->room : 64;
        trace_row *p = realloc(t->rows, room * sizeof *p);
        if (!p)
            return pl_fail(err, PL_E_NOMEM, "no memory for %zu steps", room);
        t->rows = p;
        t->room = room;
    }
    trace_row *r = &t->rows[at];
    const int n_times = is_known ? r->n_times + 1 : 1;
    if (!is_known) {
        memmove(r + 1, r, (t->n - at) * sizeof *r);
        t->n++;
    }
    *r = (trace_row){.step = s->step,
        .ordinal = t->n_read++,
        .n_times = n_times,
        .n_groups = s->n_groups,
        .n = s->n,
        .n_workers = s->n_workers,
        .policy_version = s->policy_version,
        .drafter_version = s->drafter_version,
        .first_uid = s->first_uid,
        .n_samples = (int64_t)s->n_groups * s->n,
        .n_bytes = s->n_bytes,
        .n_token_bytes = s->n_token_bytes,
        .gen_s = s->gen_s,
        .update_s = s->update_s,
        .step_s = s->step_s,
        .draft_s = s->draft_s,
        .verify_s = s->verify_s,
        .shape = hash_shape(s)};
    memcpy(r->before, s->before, sizeof r->before);
    memcpy(r->after, s->after, sizeof r->after);
    for (int64_t i = 0; i < r->n_samples; i++)
        add_sample(r, &s->samples[i]);
    add_passes(t, s);
    return PL_OK;
}

pl_status trace_rows_read(trace_rows *t, const char *path, pl_error *err)
{
    const pl_trace_visitor v = {t, add_run, add_step};

    memset(t, 0, sizeof *t);
    return pl_trace_read(path, &v, &t->report, err);
}
