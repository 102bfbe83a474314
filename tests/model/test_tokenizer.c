/* tests/model/test_tokenizer.c - claims: the same ids as Hugging Face; text comes back exactly; no
 * bytes and no length upset it; what is saved encodes the same. */
#include "core/file.h"
#include "model/source.h"
#include "model/tokenizer.h"

#include <criterion/criterion.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DATA  "tests/data/"
#define MODEL "models/SmolLM2-135M-Instruct.Q4_1.gguf"

static pl_error err;

static pl_tokenizer *load(const char *dir)
{
    char path[256];
    char *json = NULL, *config = NULL;
    size_t n, n_config;
    pl_tokenizer *t = NULL;
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    cr_assert(pl_file_read(&json, &n, path, 1 << 26, &err) == PL_OK, "%s", err.msg);
    snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
    cr_assert(pl_file_read(&config, &n_config, path, 1 << 20, &err) == PL_OK, "%s", err.msg);
    cr_assert(pl_tokenizer_parse(&t, json, n, config, NULL, 1 << 20, &err) == PL_OK, "%s", err.msg);
    free(json);
    free(config);
    return t;
}

/* SmolLM2's tokenizer; the test is skipped when the model is not there. */
static pl_tokenizer *load_model(void)
{
    pl_source *src = NULL;
    pl_tokenizer *t = NULL;
    if (!pl_path_exists(MODEL))
        cr_skip_test("no " MODEL ": 'make demo' fetches it");
    cr_assert(pl_source_open(&src, MODEL, &err) == PL_OK, "%s", err.msg);
    cr_assert(pl_tokenizer_open(&t, src, &err) == PL_OK, "%s", err.msg);
    pl_source_close(src);
    return t;
}

static int encodes_to(
    const pl_tokenizer *t, const json_t *text, int with_special, const json_t *want)
{
    int32_t *ids = NULL;
    int n = 0;
    cr_assert(pl_tokenizer_encode(t, json_string_value(text), json_string_length(text),
                  with_special, &ids, &n, &err) == PL_OK,
        "%s", err.msg);
    int is_same = (size_t)n == json_array_size(want);
    for (int i = 0; i < n && is_same; i++)
        is_same = ids[i] == json_integer_value(json_array_get(want, (size_t)i));
    free(ids);
    return is_same;
}

/* Lines of {"text", "tokens", "plain"} after one of provenance; returns how many. */
static int check_golden(const pl_tokenizer *t, const char *path)
{
    char *line = NULL;
    size_t cap = 0;
    int n = 0;
    FILE *f = fopen(path, "r");
    cr_assert(f != NULL, "%s", path);
    cr_assert(getline(&line, &cap, f) > 0);
    while (getline(&line, &cap, f) > 0) {
        json_t *row = json_loads(line, JSON_ALLOW_NUL, NULL);
        const json_t *text = json_object_get(row, "text"), *tokens = json_object_get(row, "tokens");
        const json_t *plain = json_object_get(row, "plain");
        cr_assert(json_is_string(text) && json_is_array(tokens));
        cr_assert(encodes_to(t, text, 1, tokens), "special tokens as tokens: %s", line);
        cr_assert(encodes_to(t, text, 0, plain ? plain : tokens), "as text: %s", line);
        json_decref(row);
        n++;
    }
    free(line);
    fclose(f);
    return n;
}

static void check_fixture(const char *family)
{
    char path[256];
    snprintf(path, sizeof path, DATA "tokenizer_%s_small", family);
    pl_tokenizer *t = load(path);
    snprintf(path, sizeof path, DATA "tokenizer_%s_small.jsonl", family);
    cr_assert(check_golden(t, path) == 500);
    pl_tokenizer_free(t);
}

Test(tokenizer, gives_hugging_faces_ids_with_the_pre_tokenizer_of_smollm2)
{
    check_fixture("smollm2");
}

Test(tokenizer, gives_hugging_faces_ids_with_the_pre_tokenizer_of_gpt2)
{
    check_fixture("gpt2");
}

Test(tokenizer, gives_hugging_faces_ids_with_the_pre_tokenizer_of_llama3)
{
    check_fixture("llama3");
}

Test(tokenizer, gives_hugging_faces_ids_on_2000_strings_with_the_vocabulary_of_smollm2)
{
    pl_tokenizer *t = load_model();
    cr_assert(check_golden(t, DATA "tokenizer_smollm2.jsonl") == 2000);
    pl_tokenizer_free(t);
}

Test(tokenizer, of_the_gguf_names_its_tokens)
{
    pl_tokenizer *t = load_model();
    cr_assert(pl_tokenizer_n_vocab(t) == 49152);
    cr_assert(pl_tokenizer_bos(t) == -1);
    cr_assert(pl_tokenizer_eos(t) == 2);
    cr_assert(pl_tokenizer_is_special(t, 2));
    cr_assert(!pl_tokenizer_is_special(t, 17));
    cr_assert_str_eq(pl_chat_name(t), "smollm2");
    pl_tokenizer_free(t);
}

static void check_round_trip(const pl_tokenizer *t, const char *s, size_t n)
{
    int32_t *ids = NULL;
    int n_ids = 0;
    char *text = NULL;
    size_t n_text = 0;
    cr_assert(pl_tokenizer_encode(t, s, n, 0, &ids, &n_ids, &err) == PL_OK, "%s", err.msg);
    cr_assert(pl_tokenizer_decode(t, ids, n_ids, 0, &text, &n_text, &err) == PL_OK);
    cr_assert(n_text == n && memcmp(text, s, n) == 0 && text[n] == '\0');
    free(ids);
    free(text);
}

Test(tokenizer, brings_any_bytes_back)
{
    pl_tokenizer *t = load(DATA "tokenizer_smollm2_small");
    uint32_t state = 1;
    for (int round = 0; round < 2000; round++) {
        char s[64];
        const size_t n = (size_t)round % sizeof s;
        for (size_t i = 0; i < n; i++) {
            state = state * 1664525U + 1013904223U;
            /* one half ASCII, so that valid and invalid stretches alternate */
            s[i] = (char)(state >> 24 & (state & 0x10000 ? 0xFF : 0x7F));
        }
        check_round_trip(t, s, n);
    }
    pl_tokenizer_free(t);
}

Test(tokenizer, encodes_invalid_utf8_byte_by_byte)
{
    pl_tokenizer *t = load(DATA "tokenizer_smollm2_small");
    const char s[] = "a\xE2\x80 b\xFF\xFE";
    int32_t *ids = NULL;
    int n = 0;
    cr_assert(pl_tokenizer_encode(t, s, sizeof s - 1, 0, &ids, &n, &err) == PL_OK);
    cr_assert(n == 6, "%d: 'a', E2, 80, ' b', FF, FE", n);
    const char *bytes;
    size_t n_bytes;
    pl_tokenizer_piece(t, ids[2], 0, &bytes, &n_bytes);
    cr_assert(n_bytes == 1 && (unsigned char)bytes[0] == 0x80);
    free(ids);
    pl_tokenizer_free(t);
}

Test(tokenizer, drops_the_bytes_that_the_vocabulary_lacks_as_hugging_face_does)
{
    pl_tokenizer *t = load(DATA "tokenizer_gpt2_small");
    int32_t *ids = NULL, *same = NULL;
    int n = 0, n_same = 0;
    cr_assert(pl_tokenizer_encode(t, "if\x04", 3, 0, &ids, &n, &err) == PL_OK);
    cr_assert(pl_tokenizer_encode(t, "if", 2, 0, &same, &n_same, &err) == PL_OK);
    cr_assert(n > 0 && n == n_same && memcmp(ids, same, (size_t)n * sizeof *ids) == 0);
    free(ids);
    free(same);
    pl_tokenizer_free(t);
}

Test(tokenizer, takes_a_word_of_a_mebibyte)
{
    pl_tokenizer *t = load(DATA "tokenizer_llama3_small");
    const size_t n = 1 << 20;
    char *s = malloc(n);
    for (int k = 0; k < 3; k++) {
        memset(s, " a\n"[k], n);
        check_round_trip(t, s, n);
    }
    free(s);
    pl_tokenizer_free(t);
}

Test(tokenizer, refuses_a_text_above_the_limit)
{
    pl_tokenizer *t = load(DATA "tokenizer_gpt2_small");
    int32_t *ids = NULL;
    int n = 0;
    char *s = calloc(1, PL_TOKENIZER_MAX_INPUT + 1);
    cr_assert(
        pl_tokenizer_encode(t, s, PL_TOKENIZER_MAX_INPUT + 1, 0, &ids, &n, &err) == PL_E_FORMAT);
    cr_assert(strstr(err.msg, "8388609 bytes") != NULL, "%s", err.msg);
    free(s);
    pl_tokenizer_free(t);
}

Test(tokenizer, leaves_special_tokens_out_on_demand)
{
    pl_tokenizer *t = load(DATA "tokenizer_smollm2_small");
    const char s[] = "x<|im_end|>";
    int32_t *ids = NULL;
    int n = 0;
    char *text = NULL;
    size_t n_text;
    cr_assert(pl_tokenizer_encode(t, s, strlen(s), 1, &ids, &n, &err) == PL_OK);
    cr_assert(n == 2 && ids[1] == pl_tokenizer_eos(t));
    cr_assert(pl_tokenizer_decode(t, ids, n, 0, &text, &n_text, &err) == PL_OK);
    cr_assert_str_eq(text, s);
    free(text);
    cr_assert(pl_tokenizer_decode(t, ids, n, 1, &text, &n_text, &err) == PL_OK);
    cr_assert_str_eq(text, "x");
    free(text);
    free(ids);
    pl_tokenizer_free(t);
}

Test(tokenizer, gives_no_bytes_for_ids_without_a_token)
{
    pl_tokenizer *t = load(DATA "tokenizer_smollm2_small");
    const int32_t ids[] = {-1, pl_tokenizer_n_vocab(t), INT32_MAX, INT32_MIN};
    char *text = NULL;
    size_t n_text = 1;
    cr_assert(pl_tokenizer_decode(t, ids, 4, 0, &text, &n_text, &err) == PL_OK);
    cr_assert(n_text == 0 && text[0] == '\0');
    free(text);
    pl_tokenizer_free(t);
}

static void check_saved(pl_tokenizer *t, const char *golden, int n_rows)
{
    char dir[] = "/tmp/pl_tokenizer_XXXXXX";
    cr_assert(mkdtemp(dir) != NULL);
    cr_assert(pl_tokenizer_save(t, dir, &err) == PL_OK, "%s", err.msg);
    pl_tokenizer *again = load(dir);
    cr_expect(check_golden(again, golden) == n_rows);
    cr_expect(pl_tokenizer_n_vocab(again) == pl_tokenizer_n_vocab(t));
    cr_expect(pl_tokenizer_bos(again) == pl_tokenizer_bos(t));
    cr_expect(pl_tokenizer_eos(again) == pl_tokenizer_eos(t));
    cr_expect_str_eq(pl_chat_name(again), pl_chat_name(t));
    for (int id = 0; id < pl_tokenizer_n_vocab(t); id++)
        cr_assert(pl_tokenizer_is_special(again, id) == pl_tokenizer_is_special(t, id));
    pl_tokenizer_free(again);
    pl_tokenizer_free(t);
    cr_expect(pl_dir_remove(dir, &err) == PL_OK);
}

Test(tokenizer, that_is_saved_encodes_the_same)
{
    check_saved(load(DATA "tokenizer_smollm2_small"), DATA "tokenizer_smollm2_small.jsonl", 500);
    check_saved(load(DATA "tokenizer_gpt2_small"), DATA "tokenizer_gpt2_small.jsonl", 500);
    check_saved(load(DATA "tokenizer_llama3_small"), DATA "tokenizer_llama3_small.jsonl", 500);
}

Test(tokenizer, of_the_gguf_that_is_saved_encodes_the_same)
{
    check_saved(load_model(), DATA "tokenizer_smollm2.jsonl", 2000);
}

/* The ends of every range of letters and numbers that Unicode 15 and 16 brought, and their
 * neighbours: letter, number or neither, as Oniguruma in tokenizers 0.23.3 has it. */
static const struct {
    uint32_t c;
    char kind;
} recent[] = {
    {0x1C88, 'L'},
    {0x1C89, 'L'},
    {0x1C8A, 'L'},
    {0x1C8B, '-'},
    {0xA7CA, 'L'},
    {0xA7CB, 'L'},
    {0xA7CD, 'L'},
    {0xA7CE, '-'},
    {0xA7D9, 'L'},
    {0xA7DA, 'L'},
    {0xA7DC, 'L'},
    {0xA7DD, '-'},
    {0x105BF, '-'},
    {0x105C0, 'L'},
    {0x105F3, 'L'},
    {0x105F4, '-'},
    {0x10D3F, '-'},
    {0x10D40, 'N'},
    {0x10D49, 'N'},
    {0x10D4A, 'L'},
    {0x10D65, 'L'},
    {0x10D66, '-'},
    {0x10D6E, '-'},
    {0x10D6F, 'L'},
    {0x10D85, 'L'},
    {0x10D86, '-'},
    {0x10EC1, '-'},
    {0x10EC2, 'L'},
    {0x10EC4, 'L'},
    {0x10EC5, '-'},
    {0x1123E, '-'},
    {0x1123F, 'L'},
    {0x11240, 'L'},
    {0x11241, '-'},
    {0x1137F, '-'},
    {0x11380, 'L'},
    {0x11389, 'L'},
    {0x1138A, '-'},
    {0x1138B, 'L'},
    {0x1138C, '-'},
    {0x1138D, '-'},
    {0x1138E, 'L'},
    {0x1138F, '-'},
    {0x11390, 'L'},
    {0x113B5, 'L'},
    {0x113B6, '-'},
    {0x113B7, 'L'},
    {0x113B8, '-'},
    {0x113D0, '-'},
    {0x113D1, 'L'},
    {0x113D2, '-'},
    {0x113D3, 'L'},
    {0x113D4, '-'},
    {0x116CF, '-'},
    {0x116D0, 'N'},
    {0x116E3, 'N'},
    {0x116E4, '-'},
    {0x11BBF, '-'},
    {0x11BC0, 'L'},
    {0x11BE0, 'L'},
    {0x11BE1, '-'},
    {0x11BEF, '-'},
    {0x11BF0, 'N'},
    {0x11BF9, 'N'},
    {0x11BFA, '-'},
    {0x11F01, '-'},
    {0x11F02, 'L'},
    {0x11F03, '-'},
    {0x11F04, 'L'},
    {0x11F10, 'L'},
    {0x11F11, '-'},
    {0x11F12, 'L'},
    {0x11F33, 'L'},
    {0x11F34, '-'},
    {0x11F4F, '-'},
    {0x11F50, 'N'},
    {0x11F59, 'N'},
    {0x11F5A, '-'},
    {0x1342E, 'L'},
    {0x1342F, 'L'},
    {0x13430, '-'},
    {0x13440, '-'},
    {0x13441, 'L'},
    {0x13446, 'L'},
    {0x13447, '-'},
    {0x1345F, '-'},
    {0x13460, 'L'},
    {0x143FA, 'L'},
    {0x143FB, '-'},
    {0x160FF, '-'},
    {0x16100, 'L'},
    {0x1611D, 'L'},
    {0x1611E, '-'},
    {0x1612F, '-'},
    {0x16130, 'N'},
    {0x16139, 'N'},
    {0x1613A, '-'},
    {0x16D3F, '-'},
    {0x16D40, 'L'},
    {0x16D6C, 'L'},
    {0x16D6D, '-'},
    {0x16D6F, '-'},
    {0x16D70, 'N'},
    {0x16D79, 'N'},
    {0x16D7A, '-'},
    {0x18CFE, '-'},
    {0x18CFF, 'L'},
    {0x18D00, 'L'},
    {0x1B131, '-'},
    {0x1B132, 'L'},
    {0x1B133, '-'},
    {0x1B154, '-'},
    {0x1B155, 'L'},
    {0x1B156, '-'},
    {0x1CCEF, '-'},
    {0x1CCF0, 'N'},
    {0x1CCF9, 'N'},
    {0x1CCFA, '-'},
    {0x1D2BF, '-'},
    {0x1D2C0, 'N'},
    {0x1D2D3, 'N'},
    {0x1D2D4, '-'},
    {0x1DF24, '-'},
    {0x1DF25, 'L'},
    {0x1DF2A, 'L'},
    {0x1DF2B, '-'},
    {0x1E02F, '-'},
    {0x1E030, 'L'},
    {0x1E06D, 'L'},
    {0x1E06E, '-'},
    {0x1E4CF, '-'},
    {0x1E4D0, 'L'},
    {0x1E4EB, 'L'},
    {0x1E4EC, '-'},
    {0x1E4EF, '-'},
    {0x1E4F0, 'N'},
    {0x1E4F9, 'N'},
    {0x1E4FA, '-'},
    {0x1E5CF, '-'},
    {0x1E5D0, 'L'},
    {0x1E5ED, 'L'},
    {0x1E5EE, '-'},
    {0x1E5EF, '-'},
    {0x1E5F0, 'L'},
    {0x1E5F1, 'N'},
    {0x1E5FA, 'N'},
    {0x1E5FB, '-'},
    {0x2B738, 'L'},
    {0x2B739, 'L'},
    {0x2B73A, '-'},
    {0x2EBEF, '-'},
    {0x2EBF0, 'L'},
    {0x2EE5D, 'L'},
    {0x2EE5E, '-'},
    {0x3134F, '-'},
    {0x31350, 'L'},
    {0x323AF, 'L'},
    {0x323B0, '-'},
};

Test(tokenizer, knows_the_letters_and_numbers_of_unicode_16)
{
    /* "a" and "1" join the first byte of a character, if they are in one word with it. */
    const char json[] =
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"1\":1,\"\\u00e1\":2,\"\\u00ea\":3,"
        "\"\\u00f0\":4,"
        "\"a\\u00e1\":5,\"a\\u00ea\":6,\"a\\u00f0\":7,\"1\\u00f0\":8},\"merges\":[\"a "
        "\\u00e1\",\"a \\u00ea\","
        "\"a \\u00f0\",\"1 "
        "\\u00f0\"]},\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":"
        "false}}";
    pl_tokenizer *t = NULL;
    cr_assert(
        pl_tokenizer_parse(&t, json, strlen(json), NULL, NULL, 9, &err) == PL_OK, "%s", err.msg);
    for (size_t i = 0; i < sizeof recent / sizeof *recent; i++) {
        char kind = '-';
        for (int k = 0; k < 2; k++) {
            const uint32_t c = recent[i].c;
            char s[5] = {k ? '1' : 'a'};
            int32_t *ids = NULL;
            int n = 0;
            size_t len = 1;
            if (c >= 0x10000)
                s[len++] = (char)(0xF0 | c >> 18);
            s[len++] = (char)(c >= 0x10000 ? 0x80 | (c >> 12 & 63) : 0xE0 | c >> 12);
            s[len++] = (char)(0x80 | (c >> 6 & 63));
            s[len++] = (char)(0x80 | (c & 63));
            cr_assert(pl_tokenizer_encode(t, s, len, 0, &ids, &n, &err) == PL_OK);
            if (n > 0 && ids[0] >= 5)
                kind = k ? 'N' : 'L';
            free(ids);
        }
        cr_expect(kind == recent[i].kind, "U+%04X is '%c'", recent[i].c, kind);
    }
    pl_tokenizer_free(t);
}
