/* cli/score.c - paceline score: log-probs of given tokens, one JSON object a line in and out. */
#include "cli/cli.h"
#include "core/json.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

typedef struct score {
    cli_model_options model;
    const char *input;
    int json;
    int64_t top, max_ctx;
    double temperature;
    cli_model m;
    pl_pass *pass;
    pl_kv_pool *pool;
    int32_t *ids; /* of the line at hand */
    int n_ids;
    float *logprobs;
    int32_t *top_ids;
    float *top_logprobs;
    pl_json out;
} score;

enum { PASS_ROWS = 512, LOGIT_ROWS = 64 };

static pl_status read_tokens(score *s, json_t *list, const char *where, pl_error *err)
{
    const size_t n = json_array_size(list);
    const int vocab = pl_source_arch(s->m.source)->n_vocab;

    s->ids = malloc((n + 1) * sizeof *s->ids);
    if (!s->ids)
        return pl_fail(err, PL_E_NOMEM, "%s: no memory", where);
    for (size_t i = 0; i < n; i++) {
        const json_t *x = json_array_get(list, i);
        const json_int_t id = json_integer_value(x);
        if (!json_is_integer(x) || id < 0 || id >= vocab)
            return pl_fail(
                err, PL_E_FORMAT, "%s: token %zu is not an id of 0 .. %d", where, i, vocab - 1);
        s->ids[i] = (int32_t)id;
    }
    s->n_ids = (int)n;
    return PL_OK;
}

static pl_status read_line(score *s, const char *text, size_t n, const char *where, pl_error *err)
{
    json_error_t je;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &je);
    pl_status st;

    if (!root)
        return pl_fail(err, PL_E_FORMAT, "%s:%d: %s", where, je.column, je.text);
    json_t *tokens = json_object_get(root, "tokens"), *plain = json_object_get(root, "text");
    if (json_is_array(tokens) && !plain)
        st = read_tokens(s, tokens, where, err);
    else if (json_is_string(plain) && !tokens)
        st = pl_tokenizer_encode(s->m.tokenizer, json_string_value(plain),
            json_string_length(plain), 1, &s->ids, &s->n_ids, err);
    else
        st = pl_fail(err, PL_E_FORMAT, "%s: wants either 'tokens' (ids) or 'text'", where);
    json_decref(root);
    if (st == PL_OK && s->n_ids < 1)
        st = pl_fail(err, PL_E_FORMAT, "%s: no tokens", where);
    return st;
}

static void put_top(score *s)
{
    const size_t k = (size_t)s->top;

    pl_json_text(&s->out, ",\"top\":[");
    for (size_t i = 0; i < (size_t)s->n_ids; i++) {
        pl_json_text(&s->out, i > 0 ? ",[" : "[");
        for (size_t t = 0; t < k; t++) {
            pl_json_text(&s->out, t > 0 ? ",[" : "[");
            pl_json_int(&s->out, s->top_ids[i * k + t]);
            pl_json_text(&s->out, ",");
            pl_json_float(&s->out, s->top_logprobs[i * k + t]);
            pl_json_text(&s->out, "]");
        }
        pl_json_text(&s->out, "]");
    }
    pl_json_text(&s->out, "]");
}

static pl_status write_json(score *s, pl_error *err)
{
    pl_json_clear(&s->out);
    pl_json_text(&s->out, "{\"tokens\":[");
    for (int i = 0; i < s->n_ids; i++) {
        pl_json_text(&s->out, i > 0 ? "," : "");
        pl_json_int(&s->out, s->ids[i]);
    }
    pl_json_text(&s->out, "],\"logprobs\":[null");
    for (int i = 1; i < s->n_ids; i++) {
        pl_json_text(&s->out, ",");
        pl_json_float(&s->out, s->logprobs[i]);
    }
    pl_json_text(&s->out, "]");
    if (s->top > 0)
        put_top(s);
    pl_json_text(&s->out, "}\n");
    const pl_status st = pl_json_check(&s->out, "score", err);
    if (st == PL_OK)
        fwrite(s->out.data, 1, s->out.n, stdout);
    return st;
}

static void write_table(const score *s)
{
    double sum = 0;
    for (int i = 0; i < s->n_ids; i++) {
        const char *bytes;
        size_t n;
        pl_tokenizer_piece(s->m.tokenizer, s->ids[i], 0, &bytes, &n);
        char *clean = pl_utf8_clean(bytes, n, &n);
        if (i == 0)
            printf("%8s %10s  %s\n", "id", "log-prob", "token");
        if (i == 0)
            printf("%8d %10s  %.*s\n", s->ids[i], "-", (int)n, clean ? clean : "");
        else
            printf("%8d %10.4f  %.*s\n", s->ids[i], (double)s->logprobs[i], (int)n,
                clean ? clean : "");
        free(clean);
        sum += i > 0 ? (double)s->logprobs[i] : 0;
    }
    printf("sum %.4f, mean %.4f over %d tokens\n", sum, s->n_ids > 1 ? sum / (s->n_ids - 1) : 0.0,
        s->n_ids - 1);
}

static pl_status score_line(score *s, const char *text, size_t n, const char *where, pl_error *err)
{
    pl_status st = read_line(s, text, n, where, err);
    if (st != PL_OK)
        goto done;
    if (s->n_ids > s->max_ctx) {
        st = pl_fail(err, PL_E_SHAPE, "%s: %d tokens, the context is %lld", where, s->n_ids,
            (long long)s->max_ctx);
        goto done;
    }
    const size_t k = (size_t)s->n_ids * (size_t)(s->top > 0 ? s->top : 1);
    s->logprobs = malloc((size_t)s->n_ids * sizeof *s->logprobs);
    s->top_ids = malloc(k * sizeof *s->top_ids);
    s->top_logprobs = malloc(k * sizeof *s->top_logprobs);
    if (!s->logprobs || !s->top_ids || !s->top_logprobs) {
        st = pl_fail(err, PL_E_NOMEM, "%s: no memory", where);
        goto done;
    }
    st = pl_score(s->pass, s->pool, s->ids, s->n_ids, (float)s->temperature, s->logprobs,
        (int)s->top, s->top_ids, s->top_logprobs, err);
    if (st != PL_OK)
        goto done;
    if (s->json)
        st = write_json(s, err);
    else
        write_table(s);
done:
    free(s->ids);
    free(s->logprobs);
    free(s->top_ids);
    free(s->top_logprobs);
    s->ids = s->top_ids = NULL;
    s->logprobs = s->top_logprobs = NULL;
    return st;
}

static pl_status open_pass(score *s, pl_error *err)
{
    const pl_arch *a = pl_source_arch(s->m.source);
    if (s->max_ctx == 0 || s->max_ctx > a->n_ctx)
        s->max_ctx = a->n_ctx;
    if (s->top > a->n_vocab)
        s->top = a->n_vocab;
    const pl_pass_options o = {.max_rows = PASS_ROWS,
        .max_logits = LOGIT_ROWS,
        .max_segments = 1,
        .max_ctx = (int)s->max_ctx};
    const pl_status st = pl_pass_new(&s->pass, s->m.model, &o, err);
    if (st != PL_OK)
        return st;
    return pl_kv_pool_new(&s->pool, a, ((int)s->max_ctx + PL_BLOCK - 1) / PL_BLOCK, err);
}

static pl_status score_input(score *s, pl_error *err)
{
    cli_lines l;
    size_t n;
    int got;
    pl_status st = cli_lines_open(&l, s->input, err);

    if (st != PL_OK)
        return st;
    while ((got = cli_lines_next(&l, &n, err)) > 0 && st == PL_OK && !cli_stop) {
        char where[512];
        snprintf(where, sizeof where, "%.480s:%d", l.name, l.line);
        st = score_line(s, l.text, n, where, err);
        if (st == PL_OK)
            st = cli_flush(err);
    }
    const int n_lines = l.line;
    cli_lines_close(&l);
    if (got >= 0 && st == PL_OK && cli_stop)
        return pl_fail(err, PL_E_STOPPED, "stopped by a signal");
    if (got >= 0 && st == PL_OK && n_lines == 0)
        return pl_fail(err, PL_E_FORMAT, "'%s' holds no line to score", s->input);
    return got < 0 ? err->code : st;
}

int cmd_score(int argc, char **argv)
{
    score s = {.model = {.isa = "auto"}, .input = "-", .temperature = 1};
    const char *text = NULL;
    const pl_log log = {PL_LOG_WARN, 2, 0};
    const cli_option options[] = {
        {"model", CLI_STRING, &s.model.path, 0, 0, "PATH", "GGUF file or Hugging Face directory"},
        {"input", CLI_STRING, &s.input, 0, 0, "FILE",
            "JSON lines with 'tokens' or 'text'; - is stdin (-)"},
        {"text", CLI_STRING, &text, 0, 0, "TEXT", "score this text instead"},
        {"temperature", CLI_FLOAT, &s.temperature, 0, 1000, "T", "0 counts as 1 (1)"},
        {"top", CLI_INT, &s.top, 0, 1000, "K", "also the K likeliest next tokens (0)"},
        {"max-ctx", CLI_INT, &s.max_ctx, 0, 1 << 24, "N", "longest text, tokens (the model's)"},
        {"threads", CLI_INT, &s.model.threads, 0, 1024, "N", "0: one a core (0)"},
        {"isa", CLI_STRING, &s.model.isa, 0, 0, "ISA", "auto, amx, avx512, avx2 or ref (auto)"},
        {"json", CLI_FLAG, &s.json, 0, 0, NULL, "one object a line"},
        {0},
    };
    pl_error err = {0};
    int n_positional, helped;

    pl_status st = cli_parse(argc, argv, "score --model PATH [--json] [--text TEXT | --input FILE]",
        options, &n_positional, &helped, &err);
    if (st == PL_OK && !helped && n_positional > 0)
        st = pl_fail(&err, PL_E_USAGE, "score takes no argument '%s'", argv[1]);
    if (st != PL_OK)
        return cli_report(&err);
    if (helped)
        return 0;
    cli_catch_signals(0);
    st = cli_model_open(&s.m, &s.model, &log, &err);
    if (st == PL_OK)
        st = open_pass(&s, &err);
    if (st == PL_OK && text) {
        json_t *o = json_pack("{s:s}", "text", text);
        char *line = o ? json_dumps(o, 0) : NULL;
        st = line ? score_line(&s, line, strlen(line), "--text", &err)
                  : pl_fail(&err, PL_E_FORMAT, "--text is not valid UTF-8");
        free(line);
        json_decref(o);
    } else if (st == PL_OK) {
        st = score_input(&s, &err);
    }
    if (st == PL_OK)
        st = cli_flush(&err);
    pl_pass_free(s.pass);
    pl_kv_pool_free(s.pool);
    pl_json_done(&s.out);
    cli_model_close(&s.m);
    return st == PL_OK ? 0 : cli_report(&err);
}
