/* cli/generate.c - paceline generate: prompts in, responses out, in uid order. */
#include "cli/cli.h"
#include "core/json.h"
#include "core/rng.h"
#include "drafter/eagle.h"
#include "rollout/rollout.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DRAFTER_WINDOW = 256 }; /* positions that a learned drafter looks back */

typedef struct prompt {
    int32_t *ids;
    int n_ids;
} prompt;

typedef struct generate {
    /* options */
    cli_model_options model;
    const char *prompt, *prompts, *drafter;
    cli_list stop;
    int raw, json, no_speculative, ignore_eos, stats;
    int64_t n, top_k, seed, max_tokens, batch;
    double temperature, top_p, min_p;
    /* state */
    cli_model m;
    pl_log log;
    prompt *list;
    int n_prompts;
    pl_response *done; /* [n_prompts * n] copies; tokens NULL until finished */
    int n_printed;
    int stream;        /* one sample, to a terminal */
    size_t n_streamed; /* bytes of it printed */
    pl_json line;
    pl_error err; /* of a callback */
} generate;

static pl_status add_prompt(generate *g, int32_t *ids, int n_ids, const char *where, pl_error *err)
{
    const int n_ctx = pl_source_arch(g->m.source)->n_ctx;
    if (n_ids < 1 || n_ids + g->max_tokens > n_ctx) {
        free(ids);
        return pl_fail(err, PL_E_SHAPE,
            "%s: a prompt of %d tokens and %lld new ones, the model's context is %d: shorten it or "
            "lower --max-tokens",
            where, n_ids, (long long)g->max_tokens, n_ctx);
    }
    prompt *list = realloc(g->list, (size_t)(g->n_prompts + 1) * sizeof *list);
    if (!list) {
        free(ids);
        return pl_fail(err, PL_E_NOMEM, "%s: no memory", where);
    }
    g->list = list;
    g->list[g->n_prompts++] = (prompt){ids, n_ids};
    return PL_OK;
}

static pl_status add_text(generate *g, const char *text, size_t n, const char *where, pl_error *err)
{
    int32_t *ids;
    int n_ids;
    pl_status st = cli_check_utf8(text, n, where, err);

    if (st != PL_OK)
        return st;
    if (g->raw) {
        st = pl_tokenizer_encode(g->m.tokenizer, text, n, 1, &ids, &n_ids, err);
    } else {
        const pl_message m = {"user", text};
        st = pl_chat_encode(g->m.tokenizer, &m, 1, &ids, &n_ids, err);
    }
    if (st != PL_OK)
        return pl_wrap(err, st, "%s", where);
    return add_prompt(g, ids, n_ids, where, err);
}

static pl_status add_messages(generate *g, json_t *list, const char *where, pl_error *err)
{
    const size_t n = json_array_size(list);
    int32_t *ids;
    int n_ids;

    if (g->raw)
        return pl_fail(err, PL_E_USAGE, "%s: --raw wants prompts that are plain strings", where);
    if (n < 1 || n > 4096)
        return pl_fail(err, PL_E_FORMAT, "%s: a prompt of %zu messages", where, n);
    pl_message *m = calloc(n, sizeof *m);
    if (!m)
        return pl_fail(err, PL_E_NOMEM, "%s: no memory", where);
    for (size_t i = 0; i < n; i++) {
        const json_t *x = json_array_get(list, i);
        m[i].role = json_string_value(json_object_get(x, "role"));
        m[i].content = json_string_value(json_object_get(x, "content"));
        if (!m[i].role || !m[i].content) {
            free(m);
            return pl_fail(
                err, PL_E_FORMAT, "%s: message %zu has no string 'role' and 'content'", where, i);
        }
    }
    const pl_status st = pl_chat_encode(g->m.tokenizer, m, (int)n, &ids, &n_ids, err);
    free(m);
    if (st != PL_OK)
        return pl_wrap(err, st, "%s", where);
    return add_prompt(g, ids, n_ids, where, err);
}

static pl_status add_line(generate *g, const char *text, size_t n, const char *where, pl_error *err)
{
    json_error_t je;
    pl_status st;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &je);

    if (!root)
        return pl_fail(err, PL_E_FORMAT, "%s:%d: %s", where, je.column, je.text);
    json_t *p = json_is_object(root) ? json_object_get(root, "prompt") : root;
    if (json_is_string(p))
        st = add_text(g, json_string_value(p), json_string_length(p), where, err);
    else if (json_is_array(p))
        st = add_messages(g, p, where, err);
    else
        st = pl_fail(
            err, PL_E_FORMAT, "%s: no 'prompt' that is a string or a list of messages", where);
    json_decref(root);
    return st;
}

static pl_status read_prompts(generate *g, pl_error *err)
{
    cli_lines l;
    size_t n;
    pl_status st;
    int got;

    if (!g->prompts)
        return add_text(g, g->prompt, strlen(g->prompt), "--prompt", err);
    st = cli_lines_open(&l, g->prompts, err);
    if (st != PL_OK)
        return st;
    while ((got = cli_lines_next(&l, &n, err)) > 0 && st == PL_OK) {
        char where[512];
        snprintf(where, sizeof where, "%.480s:%d", l.name, l.line);
        st = n > 0 ? add_line(g, l.text, n, where, err)
                   : pl_fail(err, PL_E_FORMAT, "%s: the line is empty", where);
    }
    cli_lines_close(&l);
    if (got < 0)
        return err->code;
    if (st == PL_OK && g->n_prompts == 0)
        return pl_fail(err, PL_E_FORMAT, "'%s' holds no prompt", g->prompts);
    return st;
}

static const char *finish_name(pl_finish f)
{
    return f == PL_FINISH_STOP ? "stop" : f == PL_FINISH_LENGTH ? "length" : "aborted";
}

static void put_ids(pl_json *j, const int32_t *ids, int n)
{
    pl_json_text(j, "[");
    for (int i = 0; i < n; i++) {
        if (i > 0)
            pl_json_text(j, ",");
        pl_json_int(j, ids[i]);
    }
    pl_json_text(j, "]");
}

static pl_status print_json(generate *g, const pl_response *r, const char *text, size_t n)
{
    pl_json *j = &g->line;

    pl_json_clear(j);
    pl_json_text(j, "{\"uid\":");
    pl_json_int(j, r->uid);
    pl_json_text(j, ",\"prompt_ids\":");
    put_ids(j, r->prompt, r->n_prompt);
    pl_json_text(j, ",\"tokens\":");
    put_ids(j, r->tokens, r->n_tokens);
    pl_json_text(j, ",\"logprobs\":[");
    for (int i = 0; i < r->n_tokens; i++) {
        if (i > 0)
            pl_json_text(j, ",");
        pl_json_float(j, r->logprobs[i]);
    }
    pl_json_text(j, "],\"text\":");
    pl_json_string(j, text, n);
    pl_json_text(j, ",\"finish_reason\":\"");
    pl_json_text(j, finish_name(r->finish));
    pl_json_text(j, "\"}\n");
    const pl_status st = pl_json_check(j, "response", &g->err);
    if (st == PL_OK)
        fwrite(j->data, 1, j->n, stdout);
    return st;
}

/* Text of a response: the end token has none. */
static pl_status print_response(generate *g, const pl_response *r)
{
    char *text;
    size_t n;
    pl_status st =
        pl_tokenizer_decode(g->m.tokenizer, r->tokens, r->n_tokens, 1, &text, &n, &g->err);

    if (st != PL_OK)
        return st;
    if (g->json) {
        st = print_json(g, r, text, n);
    } else {
        if (g->n_prompts * g->n > 1)
            printf("--- %u (%s, %d tokens)\n", r->uid, finish_name(r->finish), r->n_tokens);
        fwrite(text, 1, n, stdout);
        putchar('\n');
    }
    free(text);
    return st == PL_OK ? cli_flush(&g->err) : st;
}

static pl_status print_stream(generate *g, const pl_response *r)
{
    char *text;
    size_t n;
    const pl_status st =
        pl_tokenizer_decode(g->m.tokenizer, r->tokens, r->n_tokens, 1, &text, &n, &g->err);

    if (st != PL_OK)
        return st;
    const size_t whole = r->finish ? n : pl_utf8_complete(text, n);
    if (whole > g->n_streamed)
        fwrite(text + g->n_streamed, 1, whole - g->n_streamed, stdout);
    g->n_streamed = whole;
    free(text);
    if (r->finish)
        putchar('\n');
    return cli_flush(&g->err);
}

/* Keep a finished response; print every one whose turn it is. */
static int on_tokens(void *ctx, const pl_response *r, int n_before)
{
    generate *g = ctx;
    (void)n_before;
    if (cli_stop)
        return pl_fail(&g->err, PL_E_STOPPED, "stopped by a signal");
    if (g->stream)
        return print_stream(g, r);
    if (!r->finish)
        return 0;
    pl_response *d = &g->done[r->uid];
    *d = *r;
    d->tokens = malloc((size_t)(r->n_tokens + 1) * sizeof *d->tokens);
    d->logprobs = malloc((size_t)(r->n_tokens + 1) * sizeof *d->logprobs);
    if (!d->tokens || !d->logprobs)
        return pl_fail(&g->err, PL_E_NOMEM, "response %u: no memory", r->uid);
    memcpy(d->tokens, r->tokens, (size_t)r->n_tokens * sizeof *d->tokens);
    memcpy(d->logprobs, r->logprobs, (size_t)r->n_tokens * sizeof *d->logprobs);
    while (g->n_printed < g->n_prompts * g->n && g->done[g->n_printed].tokens) {
        pl_response *next = &g->done[g->n_printed++];
        if (print_response(g, next) != PL_OK)
            return 1;
    }
    return 0;
}

static pl_status submit_all(generate *g, pl_engine *e, pl_error *err)
{
    for (int p = 0; p < g->n_prompts; p++)
        for (int k = 0; k < g->n; k++) {
            const pl_request r = {.uid = (uint32_t)(p * g->n + k),
                .group = (uint32_t)p,
                .prompt = g->list[p].ids,
                .n_prompt = g->list[p].n_ids,
                .max_tokens = (int)g->max_tokens,
                .temperature = (float)g->temperature,
                .top_p = (float)g->top_p,
                .min_p = (float)g->min_p,
                .top_k = (int)g->top_k,
                .noise_key = pl_noise_key((uint64_t)g->seed),
                .purpose = PL_NOISE_SAMPLE,
                .ignore_eos = g->ignore_eos,
                .stop = g->stop.items,
                .n_stop = g->stop.n};
            const pl_status st = pl_engine_submit(e, &r, err);
            if (st != PL_OK)
                return st;
        }
    return PL_OK;
}

static void print_learned(const pl_engine_stats *s)
{
    const int64_t n = s->n_draft_of[PL_SOURCE_LEARNED], hit = s->n_accepted_of[PL_SOURCE_LEARNED];
    fprintf(stderr, "of which by the learned drafter: drafted %lld, accepted %lld (%.1f %%)",
        (long long)n, (long long)hit,
        s->n_accepted > 0 ? 100.0 * (double)hit / (double)s->n_accepted : 0.0);
    for (int i = 0; i < 16 && s->n_reached[i] > 0; i++)
        fprintf(stderr, "%s%.2f", i == 0 ? "; right by depth: " : " ",
            (double)s->n_hit[i] / (double)s->n_reached[i]);
    fputc('\n', stderr);
}

static void print_stats(const generate *g, const pl_engine *e)
{
    pl_engine_stats s;
    pl_engine_get_stats(e, &s);
    const double total = s.pass_s + s.draft_s + s.verify_s;
    fprintf(stderr,
        "%lld tokens in %.2f s, %.1f tokens/s, acceptance length %.2f, %lld rounds, drafted %lld, "
        "accepted %lld\n",
        (long long)s.n_emitted, total, total > 0 ? (double)s.n_emitted / total : 0.0,
        s.n_verify_steps > 0 ? 1.0 + (double)s.n_accepted / (double)s.n_verify_steps : 1.0,
        (long long)s.n_rounds, (long long)s.n_draft, (long long)s.n_accepted);
    if (g->drafter)
        print_learned(&s);
}

static pl_status run_engine(generate *g, pl_error *err)
{
    pl_engine_options o;
    pl_engine *e = NULL;
    pl_eagle *eagle = NULL;
    int longest = 1;

    for (int i = 0; i < g->n_prompts; i++)
        if (g->list[i].n_ids > longest)
            longest = g->list[i].n_ids;
    pl_engine_defaults(&o);
    o.max_num_seqs = (int)g->batch;
    if (g->n_prompts * g->n < o.max_num_seqs)
        o.max_num_seqs = (int)(g->n_prompts * g->n);
    o.max_ctx = longest + (int)g->max_tokens;
    o.speculative = !g->no_speculative;
    o.learned_window = g->drafter ? DRAFTER_WINDOW : 0;
    g->done = calloc((size_t)(g->n_prompts * g->n), sizeof *g->done);
    if (!g->done)
        return pl_fail(err, PL_E_NOMEM, "no memory for %d responses", g->n_prompts * (int)g->n);
    g->stream = !g->json && g->n_prompts * g->n == 1 && isatty(STDOUT_FILENO);
    pl_status st = g->drafter ? pl_eagle_load(&eagle, g->m.model, g->drafter, err) : PL_OK;
    if (st == PL_OK)
        st = pl_engine_new(&e, g->m.model, g->m.tokenizer, &o, &g->log, err);
    if (st == PL_OK && eagle)
        st = pl_engine_set_drafter(e, eagle, err);
    if (st == PL_OK)
        st = submit_all(g, e, err);
    if (st == PL_OK)
        st = pl_engine_run(e, on_tokens, g, err);
    if (st == PL_E_STOPPED)
        *err = g->err;
    if (st == PL_OK && g->stats)
        print_stats(g, e);
    pl_engine_free(e);
    pl_eagle_free(eagle);
    return st == PL_E_STOPPED ? err->code : st;
}

static void close_all(generate *g)
{
    for (int i = 0; g->done && i < g->n_prompts * g->n; i++) {
        free(g->done[i].tokens);
        free(g->done[i].logprobs);
    }
    for (int i = 0; i < g->n_prompts; i++)
        free(g->list[i].ids);
    free(g->done);
    free(g->list);
    pl_json_done(&g->line);
    cli_model_close(&g->m);
}

int cmd_generate(int argc, char **argv)
{
    generate g = {.model = {.isa = "auto"},
        .n = 1,
        .max_tokens = 256,
        .batch = 32,
        .temperature = 1,
        .top_p = 1,
        .log = {PL_LOG_WARN, 2, 0}};
    const cli_option options[] = {
        {"model", CLI_STRING, &g.model.path, 0, 0, "PATH", "GGUF file or Hugging Face directory"},
        {"prompt", CLI_STRING, &g.prompt, 0, 0, "TEXT", "one user message"},
        {"prompts", CLI_STRING, &g.prompts, 0, 0, "FILE",
            "JSON lines with 'prompt': a string or a list of messages; - is stdin"},
        {"raw", CLI_FLAG, &g.raw, 0, 0, NULL, "prompts are plain text, no chat template"},
        {"n", CLI_INT, &g.n, 1, 4096, "N", "samples a prompt (1)"},
        {"temperature", CLI_FLOAT, &g.temperature, 0, 1000, "T", "0 is greedy (1)"},
        {"top-k", CLI_INT, &g.top_k, 0, 1e9, "K", "keep the K likeliest tokens; 0: all (0)"},
        {"top-p", CLI_FLOAT, &g.top_p, 1e-6, 1, "P", "keep the likeliest tokens up to mass P (1)"},
        {"min-p", CLI_FLOAT, &g.min_p, 0, 1, "P", "drop tokens below P times the likeliest (0)"},
        {"seed", CLI_INT, &g.seed, 0, 9e18, "S", "of the noise; same seed, same text (0)"},
        {"max-tokens", CLI_INT, &g.max_tokens, 1, 1 << 24, "N",
            "new tokens a sample, at most (256)"},
        {"stop", CLI_LIST, &g.stop, 0, 0, "TEXT", "end a sample after this text; may be repeated"},
        {"ignore-eos", CLI_FLAG, &g.ignore_eos, 0, 0, NULL, "go on after the end token (benches)"},
        {"threads", CLI_INT, &g.model.threads, 0, 1024, "N", "0: one a core (0)"},
        {"batch", CLI_INT, &g.batch, 1, 1024, "N", "samples at once (32)"},
        {"isa", CLI_STRING, &g.model.isa, 0, 0, "ISA", "auto, amx, avx512, avx2 or ref (auto)"},
        {"no-speculative", CLI_FLAG, &g.no_speculative, 0, 0, NULL,
            "plain decoding; the text is the same"},
        {"drafter", CLI_STRING, &g.drafter, 0, 0, "DIR",
            "draft with the learned drafter of this directory too (EAGLE-3)"},
        {"json", CLI_FLAG, &g.json, 0, 0, NULL, "one object a sample and line, in uid order"},
        {"stats", CLI_FLAG, &g.stats, 0, 0, NULL, "tokens/s and acceptance length on stderr"},
        {0},
    };
    pl_error err = {0};
    int n_positional, helped;

    pl_status st = cli_parse(argc, argv, "generate --model PATH --prompt TEXT [options]", options,
        &n_positional, &helped, &err);
    if (st != PL_OK)
        return cli_report(&err);
    if (helped)
        return 0;
    if (n_positional > 0) {
        pl_error_set(
            &err, PL_E_USAGE, "generate takes no argument '%s': quote the prompt", argv[1]);
        return cli_report(&err);
    }
    if (!g.prompt == !g.prompts) {
        pl_error_set(&err, PL_E_USAGE, "generate wants either --prompt TEXT or --prompts FILE");
        return cli_report(&err);
    }
    if (g.drafter && g.no_speculative) {
        pl_error_set(&err, PL_E_USAGE, "--drafter and --no-speculative exclude each other");
        return cli_report(&err);
    }
    cli_catch_signals(0);
    st = cli_model_open(&g.m, &g.model, &g.log, &err);
    if (st == PL_OK)
        st = read_prompts(&g, &err);
    if (st == PL_OK && (int64_t)g.n_prompts * g.n > INT32_MAX / 2)
        st = pl_fail(&err, PL_E_USAGE, "%d prompts of %lld samples are too many", g.n_prompts,
            (long long)g.n);
    if (st == PL_OK)
        st = run_engine(&g, &err);
    close_all(&g);
    return st == PL_OK ? 0 : cli_report(&err);
}
