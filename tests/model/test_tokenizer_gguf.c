/* tests/model/test_tokenizer_gguf.c - claims: a tokenizer is read from GGUF metadata as written
 * there, and what does not fit is refused by name. */
#include "model/bpe.h"
#include "model/gguf.h"
#include "model/tokenizer.h"
#include "tests/model/gguf_builder.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

static pl_error err;

/* What the file says; NULL and -1: the key is left out. */
typedef struct file {
    const char *model, *pre, *template;
    const char *tokens[8], *merges[4];
    int32_t types[8];
    int n_tokens, n_merges, n_types, bos, eos, add_bos;
} file;

static const file good = {.model = "gpt2",
    .pre = "smollm",
    .tokens = {"<e>", "a", "b", "ab", "1", "<u>", "[PAD6]"},
    .merges = {"a b"},
    .types = {3, 1, 1, 1, 1, 4, 5},
    .n_tokens = 7,
    .n_merges = 1,
    .n_types = 7,
    .bos = 1,
    .eos = 0,
    .add_bos = -1};

static void put_texts(builder *b, const char *key, const char *const *v, int n)
{
    put_text(b, key);
    put_u32(b, 9);
    put_u32(b, 8);
    put_u64(b, (uint64_t)n);
    for (int i = 0; i < n; i++)
        put_text(b, v[i]);
}

static pl_status load(pl_tokenizer **t, const file *f, int n_vocab)
{
    static builder b;
    pl_gguf *g = NULL;
    const int n_pairs = (f->model != NULL) + (f->pre != NULL) + (f->template != NULL) +
                        (f->n_tokens > 0) + (f->n_merges > 0) + (f->n_types > 0) + (f->bos >= 0) +
                        (f->eos >= 0) + (f->add_bos >= 0);
    put_head(&b, 0, (uint64_t)n_pairs);
    if (f->model)
        put_key_text(&b, "tokenizer.ggml.model", f->model);
    if (f->pre)
        put_key_text(&b, "tokenizer.ggml.pre", f->pre);
    if (f->template)
        put_key_text(&b, "tokenizer.chat_template", f->template);
    if (f->n_tokens > 0)
        put_texts(&b, "tokenizer.ggml.tokens", f->tokens, f->n_tokens);
    if (f->n_merges > 0)
        put_texts(&b, "tokenizer.ggml.merges", f->merges, f->n_merges);
    if (f->n_types > 0) {
        put_text(&b, "tokenizer.ggml.token_type");
        put_u32(&b, 9);
        put_u32(&b, 5);
        put_u64(&b, (uint64_t)f->n_types);
        put(&b, f->types, (size_t)f->n_types * sizeof *f->types);
    }
    if (f->bos >= 0)
        put_key_u32(&b, "tokenizer.ggml.bos_token_id", (uint32_t)f->bos);
    if (f->eos >= 0)
        put_key_u32(&b, "tokenizer.ggml.eos_token_id", (uint32_t)f->eos);
    if (f->add_bos >= 0)
        put_key_u32(&b, "tokenizer.ggml.add_bos_token", (uint32_t)f->add_bos);
    pad(&b);
    cr_assert(pl_gguf_parse(&g, b.data, b.n, "test", &err) == PL_OK, "%s", err.msg);
    *t = NULL;
    const pl_status st = tokenizer_from_gguf(t, g, n_vocab, &err);
    pl_gguf_close(g);
    return st;
}

static void expect_refused(const file *f, int n_vocab, pl_status want, const char *words)
{
    pl_tokenizer *t;
    cr_expect(load(&t, f, n_vocab) == want && t == NULL, "expected '%s'", words);
    cr_expect(strstr(err.msg, words) != NULL, "'%s' has no '%s'", err.msg, words);
    pl_tokenizer_free(t);
}

Test(tokenizer_gguf, reads_tokens_rules_and_types)
{
    pl_tokenizer *t;
    const int32_t want[] = {3, 4, 4, 0, 5};
    int32_t *ids = NULL;
    int n = 0;
    cr_assert(load(&t, &good, 10) == PL_OK, "%s", err.msg);
    cr_assert(pl_tokenizer_encode(t, "ab11<e><u>", 10, 1, &ids, &n, &err) == PL_OK);
    cr_expect(n == 5 && memcmp(ids, want, sizeof want) == 0);
    free(ids);
    cr_expect(pl_tokenizer_is_special(t, 0) && !pl_tokenizer_is_special(t, 5));
    cr_expect(pl_tokenizer_n_vocab(t) == 6, "the filler has no token");
    cr_expect(pl_tokenizer_bos(t) == -1 && pl_tokenizer_eos(t) == 0);
    cr_expect_str_eq(pl_chat_name(t), "none");
    pl_tokenizer_free(t);
}

Test(tokenizer_gguf, adds_a_bos_where_the_file_or_the_family_says_so)
{
    pl_tokenizer *t;
    file f = good;
    f.add_bos = 1;
    cr_assert(load(&t, &f, 10) == PL_OK, "%s", err.msg);
    cr_expect(pl_tokenizer_bos(t) == 1);
    pl_tokenizer_free(t);
    f = good;
    f.pre = "llama-bpe";
    cr_assert(load(&t, &f, 10) == PL_OK, "%s", err.msg);
    cr_expect(pl_tokenizer_bos(t) == 1);
    pl_tokenizer_free(t);
    f.add_bos = 0;
    cr_assert(load(&t, &f, 10) == PL_OK, "%s", err.msg);
    cr_expect(pl_tokenizer_bos(t) == -1);
    pl_tokenizer_free(t);
}

Test(tokenizer_gguf, keeps_an_unknown_template_and_says_so)
{
    pl_tokenizer *t;
    file f = good;
    f.template = "{{ messages }}";
    cr_assert(load(&t, &f, 10) == PL_OK, "%s", err.msg);
    cr_expect_str_eq(pl_chat_name(t), "unknown");
    pl_tokenizer_free(t);
}

/* expect_refused with one part replaced. */
#define REFUSED(status, words, ...)                                                                \
    do {                                                                                           \
        file changed = good;                                                                       \
        changed.__VA_ARGS__;                                                                       \
        expect_refused(&changed, 10, status, words);                                               \
    } while (0)

Test(tokenizer_gguf, refuses_what_it_does_not_know)
{
    REFUSED(PL_E_FORMAT, "is not gpt2", model = "llama");
    REFUSED(PL_E_FORMAT, "is not gpt2", model = NULL);
    REFUSED(PL_E_FORMAT, "'qwen2' is not known", pre = "qwen2");
    REFUSED(PL_E_FORMAT, "'(none)' is not known", pre = NULL);
    REFUSED(PL_E_FORMAT, "no tokenizer.ggml.tokens", n_tokens = 0);
    REFUSED(PL_E_FORMAT, "no tokenizer.ggml.merges", n_merges = 0);
}

Test(tokenizer_gguf, refuses_what_contradicts_itself)
{
    REFUSED(PL_E_FORMAT, "7 tokens, but 6 token types", n_types = 6);
    REFUSED(PL_E_FORMAT, "tokens 1 and 2 are the same", tokens[2] = "a");
    REFUSED(PL_E_FORMAT, "not valid UTF-8", tokens[2] = "\xC3");
    REFUSED(PL_E_FORMAT, "0 bytes", tokens[2] = "");
    REFUSED(PL_E_FORMAT, "merge rule 0 ('b' 'a')", merges[0] = "b a");
    REFUSED(PL_E_FORMAT, "eos_token_id is 6", eos = 6);
    REFUSED(PL_E_FORMAT, "eos_token_id is 7", eos = 7);
    expect_refused(&good, 6, PL_E_SHAPE, "7 tokens, but the model's vocabulary has 6");
}
