/* model/tiny_tokenizer.c - a small byte-level BPE with the structure of SmolLM2's.
 *
 * Merges are made in two passes: common words, each built letter by letter from the left, then
 * pairs of frequent letters.  A merge whose result is a token already is left out, so every token
 * has one way to be made. */
#include "model/tiny.h"

#include "core/file.h"
#include "model/json_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    N_SPECIAL = 3,
    N_BYTES = 256,
    MAX_TOKENS = 2048, /* more than the lists below can fill */
    MAX_PIECE = 16,    /* plain bytes of a token */
};

static const char *const specials[N_SPECIAL] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};

/* A space stands for itself here, and for U+0120 in the file. */
static const char *const words[] = {" the", " is", " and", " of", " to", " times", " plus",
    " answer", " What", "What", "assistant", "user", "system", " in", " that", " it", " for",
    " you", " are", " with", " on", " as", " be", " this", " have", " not", " equals", " number"};

static const char letters[] = " etaoinshrdlucmfwypvbgkqjxz";

typedef struct vocabulary {
    int n, n_max;
    char pieces[MAX_TOKENS][MAX_PIECE + 1]; /* after the bytes: text of the token */
    char lefts[MAX_TOKENS];                 /* length of the left half of its merge */
} vocabulary;

static int has_piece(const vocabulary *v, const char *s, size_t len)
{
    if (len == 1)
        return 1;
    for (int i = N_SPECIAL + N_BYTES; i < v->n; i++)
        if (strlen(v->pieces[i]) == len && memcmp(v->pieces[i], s, len) == 0)
            return 1;
    return 0;
}

static void add_piece(vocabulary *v, const char *s, size_t len, size_t left)
{
    if (v->n == v->n_max || has_piece(v, s, len))
        return;
    memcpy(v->pieces[v->n], s, len);
    v->pieces[v->n][len] = 0;
    v->lefts[v->n++] = (char)left;
}

static void fill(vocabulary *v, int n_vocab)
{
    const int n_letters = (int)sizeof letters - 1;

    v->n = N_SPECIAL + N_BYTES;
    v->n_max = n_vocab < MAX_TOKENS ? n_vocab : MAX_TOKENS;
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        for (size_t len = 2; len <= strlen(words[i]); len++)
            add_piece(v, words[i], len, len - 1);
    for (int sum = 1; sum < 2 * n_letters; sum++) { /* frequent pairs first */
        for (int i = 0; i < n_letters; i++) {
            const int k = sum - i; /* second letter, never the space */
            const char pair[2] = {letters[i], k > 0 && k < n_letters ? letters[k] : 0};
            if (pair[1] != 0)
                add_piece(v, pair, 2, 1);
        }
    }
}

/* Code point that stands for a byte in byte-level BPE: printable Latin-1 is itself, the rest follow
 * from 256 on (GPT-2, bytes_to_unicode). */
static int is_direct(int byte)
{
    return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

static int code_point(int byte)
{
    int n_before = 0;

    if (is_direct(byte))
        return byte;
    for (int i = 0; i < byte; i++)
        n_before += !is_direct(i);
    return 256 + n_before;
}

/* The bytes s as JSON text without quotes.  Returns out. */
static const char *spell(char *out, const char *s, size_t len)
{
    char *p = out;

    for (size_t i = 0; i < len; i++) {
        const int c = code_point((unsigned char)s[i]);
        if (c == '"' || c == '\\')
            *p++ = '\\';
        if (c < 128) {
            *p++ = (char)c;
        } else {
            *p++ = (char)(0xc0 | c >> 6);
            *p++ = (char)(0x80 | (c & 63));
        }
    }
    *p = 0;
    return out;
}

static void print_vocabulary(FILE *out, const vocabulary *v)
{
    char text[2 * MAX_PIECE + 1];
    int id = 0;

    for (; id < N_SPECIAL; id++)
        fprintf(out, "%s\n      \"%s\": %d", id ? "," : "", specials[id], id);
    for (int pass = 0; pass < 2; pass++) { /* by code point, as GPT-2 orders them */
        for (int byte = 0; byte < N_BYTES; byte++) {
            const char c = (char)byte;
            if (is_direct(byte) == !pass)
                fprintf(out, ",\n      \"%s\": %d", spell(text, &c, 1), id++);
        }
    }
    for (; id < v->n; id++)
        fprintf(out, ",\n      \"%s\": %d", spell(text, v->pieces[id], strlen(v->pieces[id])), id);
}

static void print_merges(FILE *out, const vocabulary *v)
{
    char left[2 * MAX_PIECE + 1], right[2 * MAX_PIECE + 1];

    for (int id = N_SPECIAL + N_BYTES; id < v->n; id++) {
        const size_t n_left = (size_t)v->lefts[id];
        const char *s = v->pieces[id];
        fprintf(out, "%s\n      \"%s %s\"", id > N_SPECIAL + N_BYTES ? "," : "",
            spell(left, s, n_left), spell(right, s + n_left, strlen(s) - n_left));
    }
}

/* The list of tokenizer.json, or the map by id of tokenizer_config.json. */
static void print_added(FILE *out, int is_map)
{
    for (int id = 0; id < N_SPECIAL; id++) {
        fprintf(out, "%s\n    ", id ? "," : "");
        if (is_map)
            fprintf(out, "\"%d\": {", id);
        else
            fprintf(out, "{\"id\": %d, ", id);
        fprintf(out,
            "\"content\": \"%s\", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, "
            "\"normalized\": false, \"special\": true}",
            specials[id]);
    }
}

static void print_tokenizer(FILE *out, const vocabulary *v)
{
    fprintf(out, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n"
                 "  \"added_tokens\": [");
    print_added(out, 0);
    fprintf(out,
        "],\n  \"normalizer\": null,\n"
        "  \"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [\n"
        "    {\"type\": \"Digits\", \"individual_digits\": true},\n"
        "    {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, "
        "\"use_regex\": true}]},\n"
        "  \"post_processor\": null,\n"
        "  \"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"trim_offsets\": "
        "true, \"use_regex\": true},\n"
        "  \"model\": {\n    \"type\": \"BPE\", \"dropout\": null, \"unk_token\": null,\n"
        "    \"continuing_subword_prefix\": null, \"end_of_word_suffix\": null,\n"
        "    \"fuse_unk\": false, \"byte_fallback\": false,\n    \"vocab\": {");
    print_vocabulary(out, v);
    fprintf(out, "},\n    \"merges\": [");
    print_merges(out, v);
    fprintf(out, "]\n  }\n}\n");
}

static void print_names(FILE *out)
{
    fprintf(out,
        "  \"bos_token\": \"%s\",\n  \"eos_token\": \"%s\",\n  \"pad_token\": \"%s\",\n"
        "  \"unk_token\": \"%s\"",
        specials[1], specials[2], specials[2], specials[0]);
}

static void print_config(FILE *out, int n_ctx)
{
    fprintf(out, "{\n  \"added_tokens_decoder\": {");
    print_added(out, 1);
    fprintf(out, "},\n");
    print_names(out);
    fprintf(out,
        ",\n  \"add_prefix_space\": false,\n  \"clean_up_tokenization_spaces\": false,\n"
        "  \"model_max_length\": %d,\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n"
        "  \"chat_template\": \"{%% for message in messages %%}{{'<|im_start|>' + message['role'] "
        "+ "
        "'\\n' + message['content'] + '<|im_end|>' + '\\n'}}{%% endfor %%}{%% if "
        "add_generation_prompt %%}{{ '<|im_start|>assistant\\n' }}{%% endif %%}\"\n}\n",
        n_ctx);
}

static void print_map(FILE *out)
{
    fprintf(out, "{\n");
    print_names(out);
    fprintf(out, "\n}\n");
}

enum file_kind { TOKENIZER, CONFIG, MAP };

static pl_status write_file(const char *dir, const char *file, enum file_kind kind,
    const vocabulary *v, int n_ctx, pl_error *err)
{
    char path[4096], *text = NULL;
    size_t n_bytes = 0;
    pl_status st = json_file_path(path, sizeof path, dir, file, err);

    if (st != PL_OK)
        return st;
    FILE *out = open_memstream(&text, &n_bytes);
    if (out == NULL)
        return pl_fail(err, PL_E_NOMEM, "no memory to write '%s'", path);
    if (kind == TOKENIZER)
        print_tokenizer(out, v);
    else if (kind == CONFIG)
        print_config(out, n_ctx);
    else
        print_map(out);
    const int is_bad = ferror(out);
    if (fclose(out) != 0 || is_bad)
        st = pl_fail(err, PL_E_NOMEM, "no memory to write '%s'", path);
    else
        st = pl_file_write(path, text, n_bytes, err);
    free(text);
    return st;
}

pl_status tiny_tokenizer_write(const char *dir, int n_vocab, int n_ctx, pl_error *err)
{
    vocabulary *v = calloc(1, sizeof *v);

    if (v == NULL)
        return pl_fail(err, PL_E_NOMEM, "no memory for a vocabulary of %d", n_vocab);
    fill(v, n_vocab);
    pl_status st = write_file(dir, "tokenizer.json", TOKENIZER, v, n_ctx, err);
    if (st == PL_OK)
        st = write_file(dir, "tokenizer_config.json", CONFIG, v, n_ctx, err);
    if (st == PL_OK)
        st = write_file(dir, "special_tokens_map.json", MAP, v, n_ctx, err);
    free(v);
    return st;
}
