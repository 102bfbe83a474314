/* cli/tokenize.c - paceline tokenize: text to ids, ids to text. */
#include "cli/cli.h"
#include "core/json.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

typedef struct tokenize {
    const char *model, *text, *input;
    int json, decode, chat, no_special;
    pl_source *source;
    pl_tokenizer *tokenizer;
    pl_json out;
} tokenize;

static void put_ids(tokenize *t, const int32_t *ids, int n)
{
    pl_json_text(&t->out, "[");
    for (int i = 0; i < n; i++) {
        pl_json_text(&t->out, i > 0 ? "," : "");
        pl_json_int(&t->out, ids[i]);
    }
    pl_json_text(&t->out, "]");
}

static pl_status encode(tokenize *t, const char *text, size_t n_bytes, pl_error *err)
{
    int32_t *ids;
    int n;
    pl_status st = cli_check_utf8(text, n_bytes, "the text", err);

    if (st != PL_OK)
        return st;
    if (t->chat && memchr(text, 0, n_bytes))
        return pl_fail(err, PL_E_FORMAT, "a chat message cannot hold U+0000");
    if (t->chat) {
        const pl_message m = {"user", text};
        st = pl_chat_encode(t->tokenizer, &m, 1, &ids, &n, err);
    } else {
        st = pl_tokenizer_encode(t->tokenizer, text, n_bytes, !t->no_special, &ids, &n, err);
    }
    if (st != PL_OK)
        return st;
    pl_json_clear(&t->out);
    if (t->json)
        pl_json_text(&t->out, "{\"tokens\":");
    put_ids(t, ids, n);
    pl_json_text(&t->out, t->json ? "}\n" : "\n");
    free(ids);
    return PL_OK;
}

static pl_status decode(tokenize *t, const json_t *list, const char *where, pl_error *err)
{
    const size_t n = json_array_size(list);
    const int vocab = pl_source_arch(t->source)->n_vocab;
    char *text;
    size_t n_text;

    if (!json_is_array(list))
        return pl_fail(err, PL_E_FORMAT, "%s: wants {\"tokens\":[...]} or a list of ids", where);
    int32_t *ids = malloc((n + 1) * sizeof *ids);
    if (!ids)
        return pl_fail(err, PL_E_NOMEM, "%s: no memory", where);
    for (size_t i = 0; i < n; i++) {
        const json_t *x = json_array_get(list, i);
        if (!json_is_integer(x) || json_integer_value(x) < 0 || json_integer_value(x) >= vocab) {
            free(ids);
            return pl_fail(
                err, PL_E_FORMAT, "%s: token %zu is not an id of 0 .. %d", where, i, vocab - 1);
        }
        ids[i] = (int32_t)json_integer_value(x);
    }
    const pl_status st = pl_tokenizer_decode(t->tokenizer, ids, (int)n, 0, &text, &n_text, err);
    free(ids);
    if (st != PL_OK)
        return st;
    pl_json_clear(&t->out);
    if (t->json)
        pl_json_string(&t->out, text, n_text);
    else
        pl_json_bytes(&t->out, text, n_text);
    pl_json_text(&t->out, "\n");
    free(text);
    return PL_OK;
}

static pl_status one_line(tokenize *t, const char *text, size_t n, const char *where, pl_error *err)
{
    json_error_t je;
    json_t *root = NULL;
    pl_status st;

    if (t->json || t->decode) {
        root = json_loadb(text, n, JSON_DECODE_ANY | JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &je);
        if (!root)
            return pl_fail(err, PL_E_FORMAT, "%s:%d: %s", where, je.column, je.text);
    }
    if (t->decode)
        st = decode(t, json_is_object(root) ? json_object_get(root, "tokens") : root, where, err);
    else if (root && !json_is_string(root))
        st = pl_fail(err, PL_E_FORMAT, "%s: wants a JSON string", where);
    else if (root)
        st = encode(t, json_string_value(root), json_string_length(root), err);
    else
        st = encode(t, text, n, err);
    json_decref(root);
    if (st == PL_OK)
        st = pl_json_check(&t->out, where, err);
    if (st == PL_OK)
        fwrite(t->out.data, 1, t->out.n, stdout);
    return st;
}

static pl_status all_lines(tokenize *t, pl_error *err)
{
    cli_lines l;
    size_t n;
    int got;
    pl_status st = cli_lines_open(&l, t->input, err);

    if (st != PL_OK)
        return st;
    while ((got = cli_lines_next(&l, &n, err)) > 0 && st == PL_OK) {
        char where[512];
        snprintf(where, sizeof where, "%.480s:%d", l.name, l.line);
        st = one_line(t, l.text, n, where, err);
    }
    cli_lines_close(&l);
    return got < 0 ? err->code : st;
}

int cmd_tokenize(int argc, char **argv)
{
    tokenize t = {.input = "-"};
    const cli_option options[] = {
        {"model", CLI_STRING, &t.model, 0, 0, "PATH", "GGUF file or Hugging Face directory"},
        {"text", CLI_STRING, &t.text, 0, 0, "TEXT", "this text (or, with --decode, this list)"},
        {"input", CLI_STRING, &t.input, 0, 0, "FILE", "one a line; - is stdin (-)"},
        {"decode", CLI_FLAG, &t.decode, 0, 0, NULL, "ids to text"},
        {"chat", CLI_FLAG, &t.chat, 0, 0, NULL, "through the chat template, as a user message"},
        {"no-special", CLI_FLAG, &t.no_special, 0, 0, NULL, "text of special tokens is plain text"},
        {"json", CLI_FLAG, &t.json, 0, 0, NULL,
            "a JSON string a line in, {\"tokens\":[...]} out; --decode the other way"},
        {0},
    };
    pl_error err = {0};
    int n_positional, helped;

    pl_status st = cli_parse(argc, argv, "tokenize --model PATH [--json] [--decode] [options]",
        options, &n_positional, &helped, &err);
    if (st == PL_OK && helped)
        return 0;
    if (st == PL_OK && (n_positional > 0 || !t.model))
        st = pl_fail(&err, PL_E_USAGE, "tokenize wants --model PATH and no other argument");
    if (st == PL_OK)
        st = pl_source_open(&t.source, t.model, &err);
    if (st == PL_OK)
        st = pl_tokenizer_open(&t.tokenizer, t.source, &err);
    if (st == PL_OK)
        st = t.text ? one_line(&t, t.text, strlen(t.text), "--text", &err) : all_lines(&t, &err);
    if (st == PL_OK)
        st = cli_flush(&err);
    pl_json_done(&t.out);
    pl_tokenizer_free(t.tokenizer);
    pl_source_close(t.source);
    return st == PL_OK ? 0 : cli_report(&err);
}
