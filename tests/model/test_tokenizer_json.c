/* tests/model/test_tokenizer_json.c - claims: what tokenizer.json may say is understood, and
 * whatever would be done differently here is refused by name. */
#include "core/file.h"
#include "model/tokenizer.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pl_error err;

#define DIGITS     "{'type':'Digits','individual_digits':true}"
#define BYTE_LEVEL "{'type':'ByteLevel','add_prefix_space':false,'use_regex':true}"
#define VOCAB      "{'a':0,'b':1,'c':2,'ab':3,'abc':4,'<e>':5}"

/* The parts of a small file; quotes are written ' here. */
typedef struct parts {
    const char *model; /* after the type */
    const char *vocab, *merges, *added, *normalizer, *pre, *post;
} parts;

static const parts good = {"", VOCAB, "['a b','ab c']", "{'id':5,'content':'<e>','special':true}",
    "null", BYTE_LEVEL, "null"};

static pl_status parse(pl_tokenizer **t, const parts *p, const char *config, int n_vocab)
{
    static char json[1 << 16];
    const int n = snprintf(json, sizeof json,
        "{'added_tokens':[%s],'normalizer':%s,'pre_tokenizer':%s,'post_processor':%s,"
        "'model':{'type':'BPE'%s,'vocab':%s,'merges':%s}}",
        p->added, p->normalizer, p->pre, p->post, p->model, p->vocab, p->merges);
    cr_assert(n > 0 && n < (int)sizeof json);
    for (int i = 0; i < n; i++)
        if (json[i] == '\'')
            json[i] = '"';
    *t = NULL;
    err.msg[0] = '\0';
    return pl_tokenizer_parse(t, json, (size_t)n, config, NULL, n_vocab, &err);
}

static void expect_ids(const pl_tokenizer *t, const char *text, const int32_t *want, int n_want)
{
    int32_t *ids = NULL;
    int n = 0;
    cr_assert(pl_tokenizer_encode(t, text, strlen(text), 1, &ids, &n, &err) == PL_OK);
    cr_assert(n == n_want && memcmp(ids, want, (size_t)n * sizeof *ids) == 0, "'%s'", text);
    free(ids);
}

static void expect_refused(const parts *p, pl_status want, const char *words)
{
    pl_tokenizer *t;
    const pl_status st = parse(&t, p, NULL, 100);
    cr_expect(st == want && t == NULL, "status %d, expected '%s'", st, words);
    cr_expect(strstr(err.msg, words) != NULL, "'%s' has no '%s'", err.msg, words);
    pl_tokenizer_free(t);
}

/* expect_refused with one part replaced. */
#define REFUSED(status, words, ...)                                                                \
    do {                                                                                           \
        parts changed = good;                                                                      \
        changed.__VA_ARGS__;                                                                       \
        expect_refused(&changed, status, words);                                                   \
    } while (0)

Test(tokenizer_json, joins_by_rank_and_knows_added_tokens)
{
    pl_tokenizer *t;
    cr_assert(parse(&t, &good, "{\"eos_token\":\"<e>\"}", 100) == PL_OK, "%s", err.msg);
    expect_ids(t, "abc", (int32_t[]){4}, 1);
    expect_ids(t, "abab<e>c", (int32_t[]){3, 3, 5, 2}, 4);
    expect_ids(t, "bcaabc", (int32_t[]){1, 2, 0, 4}, 4);
    cr_expect(pl_tokenizer_eos(t) == 5);
    cr_expect(pl_tokenizer_n_vocab(t) == 6);
    cr_expect_str_eq(pl_chat_name(t), "none");
    pl_tokenizer_free(t);
}

Test(tokenizer_json, takes_merges_as_pairs)
{
    parts p = good;
    pl_tokenizer *t;
    p.merges = "[['a','b'],['ab','c']]";
    cr_assert(parse(&t, &p, NULL, 100) == PL_OK, "%s", err.msg);
    expect_ids(t, "abc", (int32_t[]){4}, 1);
    pl_tokenizer_free(t);
}

Test(tokenizer_json, prefers_the_longest_added_token)
{
    parts p = good;
    pl_tokenizer *t;
    p.added = "{'id':5,'content':'<e>'},{'id':6,'content':'<e><e>'},{'id':7,'content':'<'},"
              "{'id':8,'content':'\\u00e9 \\u6f22'}";
    cr_assert(parse(&t, &p, NULL, 100) == PL_OK, "%s", err.msg);
    expect_ids(t, "<e><e><e><a<", (int32_t[]){6, 5, 7, 0, 7}, 5);
    expect_ids(t,
        "a\xC3\xA9 \xE6\xBC\xA2"
        "a",
        (int32_t[]){0, 8, 0}, 3);
    const char *bytes;
    size_t n;
    pl_tokenizer_piece(t, 8, 1, &bytes, &n);
    cr_expect(n == 6 && memcmp(bytes, "\xC3\xA9 \xE6\xBC\xA2", 6) == 0);
    pl_tokenizer_free(t);
}

Test(tokenizer_json, looks_for_normalized_added_tokens_last)
{
    parts p = good;
    pl_tokenizer *t;
    p.added = "{'id':6,'content':'a<','normalized':true},{'id':5,'content':'<e>'}";
    cr_assert(parse(&t, &p, NULL, 100) == PL_OK, "%s", err.msg);
    expect_ids(t, "a<e>a<", (int32_t[]){0, 5, 6}, 3);
    pl_tokenizer_free(t);
}

Test(tokenizer_json, uses_the_token_of_the_whole_word_first_when_merges_are_ignored)
{
    parts p = good;
    pl_tokenizer *t;
    p.merges = "['b c']";
    p.vocab = "{'a':0,'b':1,'c':2,'bc':3,'abc':4}";
    p.added = "";
    cr_assert(parse(&t, &p, NULL, 100) == PL_OK, "%s", err.msg);
    expect_ids(t, "abc", (int32_t[]){0, 3}, 2);
    pl_tokenizer_free(t);
    p.model = ",'ignore_merges':true";
    cr_assert(parse(&t, &p, NULL, 100) == PL_OK, "%s", err.msg);
    expect_ids(t, "abc", (int32_t[]){4}, 1);
    pl_tokenizer_free(t);
}

Test(tokenizer_json, puts_the_unknown_token_where_one_is_named)
{
    parts p = good;
    pl_tokenizer *t;
    p.model = ",'unk_token':'<e>'";
    cr_assert(parse(&t, &p, NULL, 100) == PL_OK, "%s", err.msg);
    expect_ids(t, "axxb", (int32_t[]){0, 5, 5, 1}, 4);
    pl_tokenizer_free(t);
}

/* Save t, free it, and load what was written. */
static pl_tokenizer *saved(pl_tokenizer *t)
{
    char dir[] = "/tmp/pl_tokenizer_XXXXXX", path[64], *json = NULL;
    size_t n;
    cr_assert(mkdtemp(dir) != NULL);
    cr_assert(pl_tokenizer_save(t, dir, &err) == PL_OK, "%s", err.msg);
    pl_tokenizer_free(t);
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    cr_assert(pl_file_read(&json, &n, path, 1 << 20, &err) == PL_OK, "%s", err.msg);
    cr_assert(pl_tokenizer_parse(&t, json, n, NULL, NULL, 100, &err) == PL_OK, "%s", err.msg);
    free(json);
    cr_expect(pl_dir_remove(dir, &err) == PL_OK);
    return t;
}

Test(tokenizer_json, keeps_what_is_rare_when_it_is_saved)
{
    parts p = good;
    pl_tokenizer *t;
    p.model = ",'ignore_merges':true,'unk_token':'a'";
    p.vocab = "{'a':0,'b':1,'c':2,'bc':3,'abc':4}";
    p.merges = "['b c']";
    p.added = "{'id':6,'content':'<'},{'id':7,'content':'\\u00e9 \\u6f22','normalized':true},"
              "{'id':9,'content':'<e>','special':true}";
    p.post = "{'type':'TemplateProcessing','single':[{'SpecialToken':{'id':'<e>'}},"
             "{'Sequence':{'id':'A'}}],'special_tokens':{'<e>':{'ids':[9]}}}";
    cr_assert(parse(&t, &p, NULL, 100) == PL_OK, "%s", err.msg);
    t = saved(t);
    expect_ids(t, "abc", (int32_t[]){4}, 1);
    expect_ids(t, "cbc<e><\xC3\xA9 \xE6\xBC\xA2!", (int32_t[]){2, 3, 9, 6, 7, 0}, 6);
    cr_expect(pl_tokenizer_is_special(t, 9) && !pl_tokenizer_is_special(t, 6));
    cr_expect(pl_tokenizer_bos(t) == 9);
    cr_expect(pl_tokenizer_n_vocab(t) == 10);
    pl_tokenizer_free(t);
}

Test(tokenizer_json, reads_the_bos_of_a_template)
{
    parts p = good;
    pl_tokenizer *t;
    p.post = "{'type':'Sequence','processors':[{'type':'ByteLevel'},{'type':'TemplateProcessing',"
             "'single':[{'SpecialToken':{'id':'<e>','type_id':0}},{'Sequence':{'id':'A'}}],"
             "'special_tokens':{'<e>':{'id':'<e>','ids':[5],'tokens':['<e>']}}}]}";
    cr_assert(parse(&t, &p, NULL, 100) == PL_OK, "%s", err.msg);
    cr_expect(pl_tokenizer_bos(t) == 5);
    expect_ids(t, "ab", (int32_t[]){3}, 1);
    pl_tokenizer_free(t);
}

Test(tokenizer_json, cuts_digits_only_where_told)
{
    parts p = good;
    pl_tokenizer *t;
    p.vocab = "{'1':0,'11':1,'a':2}";
    p.merges = "['1 1']";
    p.added = "";
    cr_assert(parse(&t, &p, NULL, 100) == PL_OK, "%s", err.msg);
    expect_ids(t, "11a", (int32_t[]){1, 2}, 2);
    pl_tokenizer_free(t);
    p.pre = "{'type':'Sequence','pretokenizers':[" DIGITS "," BYTE_LEVEL "]}";
    cr_assert(parse(&t, &p, NULL, 100) == PL_OK, "%s", err.msg);
    expect_ids(t, "11a", (int32_t[]){0, 0, 2}, 3);
    pl_tokenizer_free(t);
}

Test(tokenizer_json, refuses_other_models_by_name)
{
    REFUSED(PL_E_FORMAT, "'byte_fallback'", model = ",'byte_fallback':true");
    REFUSED(PL_E_FORMAT, "'dropout'", model = ",'dropout':0.1");
    REFUSED(PL_E_FORMAT, "'end_of_word_suffix'", model = ",'end_of_word_suffix':'</w>'");
    REFUSED(PL_E_FORMAT, "'fuse_unk'", model = ",'fuse_unk':true,'unk_token':'<e>'");
    REFUSED(PL_E_FORMAT, "unk_token 'zz'", model = ",'unk_token':'zz'");
    REFUSED(PL_E_FORMAT, "normalizer 'NFC'", normalizer = "{'type':'NFC'}");
    REFUSED(PL_E_FORMAT, "pre-tokenizer 'Metaspace'", pre = "{'type':'Metaspace'}");
    REFUSED(PL_E_FORMAT, "pre-tokenizer ''", pre = "null");
    REFUSED(PL_E_FORMAT, "pre-tokenizer 'ByteLevel'",
        pre = "{'type':'ByteLevel','add_prefix_space':true}");
    REFUSED(PL_E_FORMAT, "'Split'",
        pre = "{'type':'Sequence','pretokenizers':[{'type':'Split',"
              "'pattern':{'Regex':'(a+)+$'},'behavior':'Isolated'},"
              "{'type':'ByteLevel','add_prefix_space':false,"
              "'use_regex':false}]}");
    REFUSED(PL_E_FORMAT, "post-processor 'BertProcessing'", post = "{'type':'BertProcessing'}");
    REFUSED(PL_E_FORMAT, "more than one token",
        post = "{'type':'TemplateProcessing','single':[{'Sequence':{'id':'A'}},"
               "{'SpecialToken':{'id':'<e>'}}]}");
}

Test(tokenizer_json, refuses_what_contradicts_itself)
{
    REFUSED(PL_E_FORMAT, "two tokens have the id 0", vocab = "{'a':0,'b':0}");
    REFUSED(PL_E_FORMAT, "merge rule 1 ('ab' 'x')", merges = "['a b','ab x']");
    REFUSED(PL_E_FORMAT, "merge rule 0 ('b' 'c')", merges = "['b c']");
    REFUSED(PL_E_FORMAT, "not two tokens", merges = "['a b c']");
    REFUSED(PL_E_FORMAT, "not two tokens", merges = "['ab']");
    REFUSED(PL_E_FORMAT, "neither a string nor a pair", merges = "[['a']]");
    REFUSED(PL_E_FORMAT, "neither a string nor a pair", merges = "[7]");
    REFUSED(PL_E_FORMAT, "not an integer", vocab = "{'a':'0'}");
    REFUSED(PL_E_SHAPE, "belongs to another model", vocab = "{'a':100}");
    REFUSED(PL_E_SHAPE, "belongs to another model", vocab = "{'a':-1}");
    REFUSED(PL_E_SHAPE, "belongs to another model", vocab = "{'a':9223372036854775807}");
    REFUSED(PL_E_FORMAT, "0 tokens", vocab = "{}");
    REFUSED(PL_E_FORMAT, "0 bytes", vocab = "{'':0}");
    REFUSED(PL_E_FORMAT, "duplicate object key", vocab = "{'a':0,'a':1}");
    REFUSED(PL_E_FORMAT, "its id is taken", added = "{'id':0,'content':'<e>'}");
    REFUSED(PL_E_FORMAT, "its id is taken", added = "{'id':9,'content':'<e>'}");
    REFUSED(
        PL_E_FORMAT, "are the same", added = "{'id':8,'content':'<x>'},{'id':9,'content':'<x>'}");
    REFUSED(PL_E_FORMAT, "no id or no content", added = "{'id':5}");
    REFUSED(PL_E_FORMAT, "'lstrip'", added = "{'id':5,'content':'<e>','lstrip':true}");
    REFUSED(PL_E_FORMAT, "'single_word'", added = "{'id':5,'content':'<e>','single_word':true}");
}

Test(tokenizer_json, refuses_broken_text)
{
    static const char *const texts[] = {"", "{", "[]", "7", "{}", "\xEF\xBB\xBF{}",
        "{\"model\":[]}", "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"\\ud800\":0},\"merges\":[]}}",
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\\u0000\":0},\"merges\":[]}}",
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0}}}"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        pl_tokenizer *t = NULL;
        cr_expect(
            pl_tokenizer_parse(&t, texts[i], strlen(texts[i]), NULL, NULL, 10, &err) == PL_E_FORMAT,
            "%s", texts[i]);
        cr_expect(t == NULL);
    }
}

Test(tokenizer_json, refuses_deep_nesting_and_endless_tokens)
{
    static char deep[200001], vocab[70032];
    pl_tokenizer *t = NULL;
    memset(deep, '[', sizeof deep - 1);
    cr_expect(pl_tokenizer_parse(&t, deep, sizeof deep - 1, NULL, NULL, 10, &err) == PL_E_FORMAT);
    memset(vocab, 'x', sizeof vocab - 1);
    memcpy(vocab, "{'", 2);
    strcpy(vocab + 70000, "':0}");
    static char json[80000];
    snprintf(json, sizeof json, "{\"model\":{\"type\":\"BPE\",\"vocab\":%s,\"merges\":[]}}", vocab);
    for (char *c = json; *c; c++)
        *c = *c == '\'' ? '"' : *c;
    cr_expect(pl_tokenizer_parse(&t, json, strlen(json), NULL, NULL, 10, &err) == PL_E_FORMAT);
    cr_expect(strstr(err.msg, "bytes (1 to 65536") != NULL, "%s", err.msg);
}

Test(tokenizer_json, refuses_a_name_that_is_no_token)
{
    pl_tokenizer *t;
    cr_expect(parse(&t, &good, "{\"eos_token\":{\"content\":\"<nope>\"}}", 100) == PL_E_FORMAT);
    cr_expect(strstr(err.msg, "eos_token '<nope>'") != NULL, "%s", err.msg);
}
