/* cli/trace_cat.c - the records of a trace as lines for people, and as JSON lines; its samples for
 * other tools. */
#include "cli/trace.h"

#include "cli/cli.h"
#include "model/draft.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { NAME_ROOM = 256 };

typedef struct printer {
    const trace_options *o;
    pl_json line;
    const trace_rows *rows; /* of export: which of the steps of one number counts */
    int64_t ordinal;
    int64_t n_shown;     /* steps */
    int64_t first, last; /* steps that there are; 0: none */
    int64_t first_uid, last_uid;
} printer;

static pl_status print_line(printer *p, pl_error *err)
{
    const pl_status st = pl_json_check(&p->line, "record", err);

    if (st != PL_OK)
        return st;
    if (fwrite(p->line.data, 1, p->line.n, stdout) != p->line.n)
        return cli_flush(err);
    return PL_OK;
}

static int is_wanted(const trace_options *o, const pl_trace_step *s)
{
    const int64_t n = (int64_t)s->n_groups * s->n;

    return (o->step == 0 || o->step == s->step) &&
           (o->sample < 0 || (o->sample >= s->first_uid && o->sample < s->first_uid + n));
}

static int is_wanted_sample(const trace_options *o, const pl_trace_sample *a)
{
    return o->sample < 0 || o->sample == a->uid;
}

static double acceptance(const pl_trace_sample *a)
{
    return a->steps > 0 ? 1 + (double)a->accepted / a->steps : 0;
}

static void note_step(printer *p, const pl_trace_step *s)
{
    const int64_t last_uid = s->first_uid + (int64_t)s->n_groups * s->n - 1;

    p->first_uid = p->first == 0 || s->first_uid < p->first_uid ? s->first_uid : p->first_uid;
    p->last_uid = p->first == 0 || last_uid > p->last_uid ? last_uid : p->last_uid;
    p->first = p->first == 0 || s->step < p->first ? s->step : p->first;
    p->last = s->step > p->last ? s->step : p->last;
}

/* What was asked for is not there. */
static pl_status check_shown(const printer *p, pl_error *err)
{
    const trace_options *o = p->o;
    char steps[64];

    if (p->n_shown > 0 || (o->step == 0 && o->sample < 0))
        return PL_OK;
    if (p->first == 0)
        return pl_fail(err, PL_E_NOENT, "the trace of '%s' has no step yet", o->path);
    if (o->step > 0 && (o->step < p->first || o->step > p->last))
        return pl_fail(err, PL_E_NOENT, "no step %" PRId64 ": the trace has %s", o->step,
            trace_steps(steps, p->first, p->last));
    if (o->sample < p->first_uid || o->sample > p->last_uid)
        return pl_fail(err, PL_E_NOENT,
            "no sample %" PRId64 ": the trace has samples %" PRId64 " to %" PRId64, o->sample,
            p->first_uid, p->last_uid);
    return pl_fail(
        err, PL_E_NOENT, "sample %" PRId64 " is not of step %" PRId64, o->sample, o->step);
}

/* ---- JSON ---- */

static void put_text(pl_json *j, const char *key, const char *text)
{
    pl_json_text(j, key);
    trace_json_string(j, text, strlen(text));
}

static void put_double(pl_json *j, const char *key, double v)
{
    pl_json_text(j, key);
    pl_json_double(j, v);
}

static void put_float(pl_json *j, const char *key, float v)
{
    pl_json_text(j, key);
    pl_json_float(j, v);
}

static void put_u64(pl_json *j, const char *key, uint64_t v)
{
    char text[17];

    (void)snprintf(text, sizeof text, "%016" PRIx64, v);
    pl_json_text(j, key);
    pl_json_string(j, text, strlen(text));
}

static void run_json(pl_json *j, const pl_trace_run *r)
{
    pl_json_clear(j);
    trace_json_int(j, "{\"record\":\"run\",\"step\":", r->step);
    put_text(j, ",\"build\":", r->build);
    put_text(j, ",\"numeric_class\":", r->numeric_class);
    put_text(j, ",\"isa\":", r->isa);
    put_text(j, ",\"machine\":", r->machine);
    put_u64(j, ",\"config_hash\":", r->config_hash);
    pl_json_text(j, ",\"weights\":");
    trace_json_hash(j, r->weights);
    trace_json_int(j, ",\"n_vocab\":", r->n_vocab);
    trace_json_int(j, ",\"unix_ms\":", r->unix_ms);
    pl_json_text(j, ",\"config\":");
    trace_json_string(j, r->config, r->n_config);
    pl_json_text(j, "}\n");
}

static void sampling_json(pl_json *j, const pl_sampling *s)
{
    trace_json_int(j, ",\"max_tokens\":", s->max_tokens);
    put_float(j, ",\"temperature\":", s->temperature);
    put_float(j, ",\"top_p\":", s->top_p);
    put_float(j, ",\"min_p\":", s->min_p);
    trace_json_int(j, ",\"top_k\":", s->top_k);
    put_u64(j, ",\"noise_key\":", s->noise_key);
    trace_json_int(j, ",\"purpose\":", s->purpose);
    pl_json_text(j, s->ignore_eos ? ",\"ignore_eos\":true" : ",\"ignore_eos\":false");
}

static void costs_json(pl_json *j, const pl_trace_step *s)
{
    pl_json_text(j, ",\"costs\":[");
    for (int i = 0; i < s->n_costs; i++) {
        trace_json_int(j, i ? ",{\"worker\":" : "{\"worker\":", s->costs[i].worker);
        trace_json_int(j, ",\"rows\":", s->costs[i].rows);
        trace_json_int(j, ",\"passes\":", (int64_t)s->costs[i].n);
        put_double(j, ",\"seconds\":", s->costs[i].seconds);
        pl_json_text(j, "}");
    }
    pl_json_text(j, "]");
}

static void step_json(pl_json *j, const pl_trace_step *s)
{
    pl_json_clear(j);
    trace_json_int(j, "{\"record\":\"step\",\"step\":", s->step);
    trace_json_int(j, ",\"policy_version\":", s->policy_version);
    trace_json_int(j, ",\"drafter_version\":", s->drafter_version);
    trace_json_int(j, ",\"first_uid\":", s->first_uid);
    trace_json_int(j, ",\"n_groups\":", s->n_groups);
    trace_json_int(j, ",\"n\":", s->n);
    sampling_json(j, &s->sampling);
    pl_json_text(j, ",\"before\":");
    trace_json_hash(j, s->before);
    pl_json_text(j, ",\"after\":");
    trace_json_hash(j, s->after);
    put_double(j, ",\"gen_s\":", s->gen_s);
    put_double(j, ",\"update_s\":", s->update_s);
    put_double(j, ",\"step_s\":", s->step_s);
    put_double(j, ",\"draft_s\":", s->draft_s);
    put_double(j, ",\"verify_s\":", s->verify_s);
    trace_json_int(j, ",\"unix_ms\":", s->unix_ms);
    pl_json_text(j, ",\"workers\":[");
    for (int i = 0; i < s->n_workers; i++)
        put_text(j, i ? "," : "", s->workers[i]);
    pl_json_text(j, "],\"prompts\":[");
    for (int i = 0; i < s->n_groups; i++) {
        put_u64(j, i ? ",{\"hash\":" : "{\"hash\":", s->prompts[i]);
        trace_json_int(j, ",\"tokens\":", s->n_prompt[i]);
        pl_json_text(j, "}");
    }
    pl_json_text(j, "]");
    costs_json(j, s);
    pl_json_text(j, "}\n");
}

static void tokens_json(pl_json *j, const pl_trace_sample *a)
{
    pl_json_text(j, ",\"tokens\":[");
    for (int i = 0; i < a->n_tokens; i++)
        trace_json_int(j, i ? "," : "", a->tokens[i]);
    pl_json_text(j, "],\"token_source\":[");
    for (int i = 0; i < a->n_tokens; i++) {
        pl_json_text(j, i ? ",\"" : "\"");
        pl_json_text(j, trace_source_name(a->source[i]));
        pl_json_text(j, "\"");
    }
    pl_json_text(j, "]");
}

static void sample_json(pl_json *j, const pl_trace_step *s, const pl_trace_sample *a, int tokens)
{
    pl_json_clear(j);
    trace_json_int(j, "{\"record\":\"sample\",\"uid\":", a->uid);
    trace_json_int(j, ",\"step\":", s->step);
    trace_json_int(j, ",\"n_tokens\":", a->n_tokens);
    put_text(j, ",\"finish_reason\":", trace_finish_name(a->finish));
    put_float(j, ",\"reward\":", a->reward);
    trace_json_int(j, ",\"spec_num_draft_tokens\":", a->draft);
    trace_json_int(j, ",\"spec_num_accepted_tokens\":", a->accepted);
    trace_json_int(j, ",\"spec_num_verify_steps\":", a->steps);
    put_text(j, ",\"worker\":", s->workers[a->worker]);
    if (tokens)
        tokens_json(j, a);
    pl_json_text(j, ",\"logprob_hashes\":[");
    for (int i = 0; i < pl_trace_hashes(a->n_tokens); i++)
        put_u64(j, i ? "," : "", a->hashes[i]);
    pl_json_text(j, "]}\n");
}

/* ---- lines ---- */

static const char *moment(char out[32], int64_t unix_ms)
{
    const time_t t = (time_t)(unix_ms / 1000);
    struct tm parts;

    if (!gmtime_r(&t, &parts) || strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &parts) == 0)
        (void)snprintf(out, 32, "?");
    return out;
}

static void hex(char out[33], const unsigned char hash[16])
{
    for (int i = 0; i < 16; i++)
        (void)snprintf(out + (ptrdiff_t)2 * i, 3, "%02x", hash[i]);
}

static void run_line(const pl_trace_run *r)
{
    char when[32], weights[33], clean[4][NAME_ROOM];

    hex(weights, r->weights);
    printf("RUN after step %" PRId64 ", %s: build %s, class %s, isa %s, on %s\n"
           "    vocabulary %" PRId32 ", config %016" PRIx64 " (%zu bytes), weights %s\n",
        r->step, moment(when, r->unix_ms), trace_clean(clean[0], NAME_ROOM, r->build),
        trace_clean(clean[1], NAME_ROOM, r->numeric_class),
        trace_clean(clean[2], NAME_ROOM, r->isa), trace_clean(clean[3], NAME_ROOM, r->machine),
        r->n_vocab, r->config_hash, r->n_config, weights);
}

static void step_line(const pl_trace_step *s)
{
    char when[32], before[33], after[33], name[NAME_ROOM];
    int64_t n_tokens = 0;

    for (int64_t i = 0; i < (int64_t)s->n_groups * s->n; i++)
        n_tokens += s->samples[i].n_tokens;
    hex(before, s->before);
    hex(after, s->after);
    printf("STEP %" PRId64 ", %s: %d groups of %d from uid %" PRIu32 ", %" PRId64
           " tokens, policy %" PRIu32 ", drafter %" PRIu32 "\n"
           "    rollouts %.3f s (drafts %.3f, verification %.3f), update %.3f s, step %.3f s\n"
           "    weights %s -> %s\n",
        s->step, moment(when, s->unix_ms), s->n_groups, s->n, s->first_uid, n_tokens,
        s->policy_version, s->drafter_version, s->gen_s, s->draft_s, s->verify_s, s->update_s,
        s->step_s, before, after);
    for (int i = 0; i < s->n_costs; i++)
        printf("  COST %s: %" PRIu32 " rows, %" PRIu64 " passes, %.6f s\n",
            trace_clean(name, sizeof name, s->workers[s->costs[i].worker]), s->costs[i].rows,
            s->costs[i].n, s->costs[i].seconds);
}

static void sample_line(const pl_trace_step *s, const pl_trace_sample *a, int tokens)
{
    static const char marks[] = {
        [PL_SOURCE_TARGET] = '\0', [PL_SOURCE_SUFFIX] = 's', [PL_SOURCE_LEARNED] = 'l'};
    char name[NAME_ROOM];

    printf("  SAMPLE uid %" PRIu32
           ": %d tokens, %s, reward %.9g, %s, acceptance length %.2f (%" PRIu32 " drafted, %" PRIu32
           " accepted, %" PRIu32 " passes)\n",
        a->uid, a->n_tokens, trace_finish_name(a->finish), (double)a->reward,
        trace_clean(name, sizeof name, s->workers[a->worker]), acceptance(a), a->draft, a->accepted,
        a->steps);
    for (int i = 0; tokens && i < a->n_tokens; i++) {
        const char mark[2] = {marks[a->source[i]], '\0'};
        printf("%s%" PRId32 "%s%s", i % 16 == 0 ? "    " : " ", a->tokens[i], mark,
            i % 16 == 15 || i + 1 == a->n_tokens ? "\n" : "");
    }
}

/* ---- the verbs ---- */

static pl_status cat_run(void *ctx, const pl_trace_run *r, pl_error *err)
{
    printer *p = ctx;

    if (p->o->step > 0 || p->o->sample >= 0)
        return PL_OK;
    if (p->o->json) {
        run_json(&p->line, r);
        return print_line(p, err);
    }
    run_line(r);
    return PL_OK;
}

static pl_status cat_step(void *ctx, const pl_trace_step *s, pl_error *err)
{
    printer *p = ctx;
    pl_status st = PL_OK;

    note_step(p, s);
    if (!is_wanted(p->o, s))
        return PL_OK;
    p->n_shown++;
    if (p->o->json) {
        step_json(&p->line, s);
        st = print_line(p, err);
    } else {
        step_line(s);
    }
    for (int64_t i = 0; i < (int64_t)s->n_groups * s->n && st == PL_OK; i++) {
        const pl_trace_sample *a = &s->samples[i];
        if (!is_wanted_sample(p->o, a))
            continue;
        if (p->o->json) {
            sample_json(&p->line, s, a, p->o->tokens);
            st = print_line(p, err);
        } else {
            sample_line(s, a, p->o->tokens);
        }
    }
    return st == PL_OK && ferror(stdout) ? cli_flush(err) : st;
}

pl_status trace_cat(const trace_options *o, int *exit_code, pl_error *err)
{
    printer p = {.o = o};
    const pl_trace_visitor v = {&p, cat_run, cat_step};
    pl_trace_report r;

    (void)exit_code;
    pl_status st = pl_trace_read(o->path, &v, &r, err);
    pl_json_done(&p.line);
    if (st == PL_OK)
        st = check_shown(&p, err);
    if (st == PL_OK && !o->json && o->step == 0 && o->sample < 0) {
        if (r.state == PL_TRACE_COMPLETE)
            printf("END after step %" PRId64 "\n", r.step);
        else
            printf("%s\n", r.what);
    }
    return st;
}

/* The keys of rollouts/ (NAMES 5.7) as far as the trace has them. */
static void export_json(pl_json *j, const pl_trace_step *s, const pl_trace_sample *a)
{
    pl_json_clear(j);
    trace_json_int(j, "{\"uid\":", a->uid);
    trace_json_int(j, ",\"step\":", s->step);
    tokens_json(j, a);
    put_text(j, ",\"finish_reason\":", trace_finish_name(a->finish));
    put_float(j, ",\"reward\":", a->reward);
    trace_json_int(j, ",\"policy_version\":", s->policy_version);
    trace_json_int(j, ",\"spec_num_draft_tokens\":", a->draft);
    trace_json_int(j, ",\"spec_num_accepted_tokens\":", a->accepted);
    trace_json_int(j, ",\"spec_num_verify_steps\":", a->steps);
    pl_json_text(j, "}\n");
}

static pl_status export_step(void *ctx, const pl_trace_step *s, pl_error *err)
{
    printer *p = ctx;
    const trace_row *row = trace_rows_find(p->rows, s->step);
    pl_status st = PL_OK;

    note_step(p, s);
    if (p->ordinal++ != (row ? row->ordinal : -1) || !is_wanted(p->o, s))
        return PL_OK;
    p->n_shown++;
    for (int64_t i = 0; i < (int64_t)s->n_groups * s->n && st == PL_OK; i++) {
        if (!is_wanted_sample(p->o, &s->samples[i]))
            continue;
        export_json(&p->line, s, &s->samples[i]);
        st = print_line(p, err);
    }
    return st;
}

pl_status trace_export(const trace_options *o, int *exit_code, pl_error *err)
{
    trace_rows rows;
    printer p = {.o = o, .rows = &rows};
    const pl_trace_visitor v = {&p, NULL, export_step};

    (void)exit_code;
    pl_status st = trace_rows_read(&rows, o->path, err);
    if (st == PL_OK)
        st = pl_trace_read(o->path, &v, NULL, err);
    pl_json_done(&p.line);
    if (st == PL_OK)
        st = check_shown(&p, err);
    trace_rows_done(&rows);
    return st;
}
