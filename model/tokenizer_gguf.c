/* model/tokenizer_gguf.c - a tokenizer from the metadata of a GGUF file (keys tokenizer.ggml.*). */
#include "model/bpe.h"
#include "model/gguf.h"

#include <string.h>

/* tokenizer.ggml.token_type, ggml's llama_token_type. */
enum { TYPE_NORMAL = 1, TYPE_CONTROL = 3, TYPE_USER_DEFINED = 4, TYPE_UNUSED = 5 };

static int has_value(const pl_gguf *g, const char *key, const char *value)
{
    const char *s;
    size_t n;
    return pl_gguf_get_string(g, key, &s, &n) && n == strlen(value) && memcmp(s, value, n) == 0;
}

/* Families by tokenizer.ggml.pre; the Llama 3 ones add a BOS unless the file says otherwise. */
static const struct {
    const char *pre;
    bpe_family family;
    int ignore_merges, add_bos;
} known[] = {
    {"smollm", BPE_SMOLLM, 0, 0},
    {"gpt-2", BPE_GPT2, 0, 0},
    {"llama-bpe", BPE_LLAMA3, 1, 1},
    {"llama3", BPE_LLAMA3, 1, 1},
    {"llama-v3", BPE_LLAMA3, 1, 1},
};

static pl_status read_family(pl_tokenizer *t, const pl_gguf *g, int *add_bos, pl_error *err)
{
    const char *pre = "(none)";
    size_t n = strlen(pre);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (has_value(g, "tokenizer.ggml.pre", known[i].pre)) {
            t->family = known[i].family;
            t->ignore_merges = known[i].ignore_merges;
            *add_bos = known[i].add_bos;
            return PL_OK;
        }
    pl_gguf_get_string(g, "tokenizer.ggml.pre", &pre, &n);
    return pl_fail(err, PL_E_FORMAT,
        "pre-tokenizer '%.*s' is not known (known: smollm, gpt-2, llama-bpe)", n < 60 ? (int)n : 60,
        pre);
}

static pl_status read_tokens(pl_tokenizer *t, const pl_gguf *g, uint64_t n, pl_error *err)
{
    const int64_t *types = NULL;
    uint64_t n_types = 0;
    if (pl_gguf_get_int_array(g, "tokenizer.ggml.token_type", &types, &n_types) && n_types != n)
        return pl_fail(err, PL_E_FORMAT, "%llu tokens, but %llu token types", (unsigned long long)n,
            (unsigned long long)n_types);

    for (uint64_t i = 0; i < n; i++) {
        const int64_t type = n_types ? types[i] : TYPE_NORMAL;
        const char *s;
        size_t len;
        if (!pl_gguf_string_at(g, "tokenizer.ggml.tokens", i, &s, &len))
            return pl_fail(err, PL_E_FORMAT, "token %llu cannot be read", (unsigned long long)i);
        if (type == TYPE_UNUSED)
            continue; /* a filler that the converter made */
        pl_status st = bpe_add_vocab(t, (int64_t)i, s, len, err);
        if (st == PL_OK && (type == TYPE_CONTROL || type == TYPE_USER_DEFINED))
            st = bpe_add_added(t, (int64_t)i, s, len, type == TYPE_CONTROL ? BPE_SPECIAL : 0, err);
        if (st != PL_OK)
            return st;
    }
    return PL_OK;
}

static pl_status read_rules(pl_tokenizer *t, const pl_gguf *g, pl_error *err)
{
    uint64_t n;
    if (!pl_gguf_get_string_array(g, "tokenizer.ggml.merges", &n))
        return pl_fail(err, PL_E_FORMAT, "the file has no tokenizer.ggml.merges");
    for (uint64_t i = 0; i < n; i++) {
        const char *s;
        size_t len;
        if (!pl_gguf_string_at(g, "tokenizer.ggml.merges", i, &s, &len))
            return pl_fail(
                err, PL_E_FORMAT, "merge rule %llu cannot be read", (unsigned long long)i);
        const pl_status st = bpe_add_rule_text(t, s, len, err);
        if (st != PL_OK)
            return st;
    }
    return PL_OK;
}

static pl_status read_id(
    const pl_tokenizer *t, const pl_gguf *g, const char *key, int32_t *id, pl_error *err)
{
    int64_t value;
    if (!pl_gguf_get_int(g, key, &value) || value == -1 || value == UINT32_MAX)
        return PL_OK;
    if (value < 0 || value >= t->n_tokens || !t->tokens[value].flags)
        return pl_fail(err, PL_E_FORMAT, "%s is %lld, which is no token", key, (long long)value);
    *id = (int32_t)value;
    return PL_OK;
}

static pl_status read_named(pl_tokenizer *t, const pl_gguf *g, int add_bos, pl_error *err)
{
    int64_t value;
    pl_status st = read_id(t, g, "tokenizer.ggml.bos_token_id", &t->bos_id, err);
    if (st == PL_OK)
        st = read_id(t, g, "tokenizer.ggml.eos_token_id", &t->eos_id, err);
    if (st == PL_OK)
        st = read_id(t, g, "tokenizer.ggml.unknown_token_id", &t->unk_id, err);
    if (st == PL_OK)
        st = read_id(t, g, "tokenizer.ggml.padding_token_id", &t->pad_id, err);
    if (pl_gguf_get_int(g, "tokenizer.ggml.add_bos_token", &value))
        add_bos = value != 0;
    t->add_bos_id = add_bos ? t->bos_id : -1;
    return st;
}

pl_status tokenizer_from_gguf(pl_tokenizer **out, const pl_gguf *g, int n_vocab, pl_error *err)
{
    uint64_t n;
    int add_bos = 0;
    pl_tokenizer *t = NULL;
    const char *text = NULL;
    size_t len = 0;
    if (!has_value(g, "tokenizer.ggml.model", "gpt2"))
        return pl_fail(
            err, PL_E_FORMAT, "tokenizer.ggml.model is not gpt2: only byte-level BPE is supported");
    if (!pl_gguf_get_string_array(g, "tokenizer.ggml.tokens", &n))
        return pl_fail(err, PL_E_FORMAT, "the file has no tokenizer.ggml.tokens");
    if (n > (uint64_t)n_vocab)
        return pl_fail(err, PL_E_SHAPE, "%llu tokens, but the model's vocabulary has %d",
            (unsigned long long)n, n_vocab);

    pl_status st = bpe_new(&t, n, (uint64_t)n_vocab, err);
    if (st == PL_OK)
        st = read_family(t, g, &add_bos, err);
    if (st == PL_OK)
        st = read_tokens(t, g, n, err);
    if (st == PL_OK)
        st = read_rules(t, g, err);
    if (st == PL_OK)
        st = read_named(t, g, add_bos, err);
    if (st == PL_OK)
        st = bpe_finish(t, err);
    if (st == PL_OK) {
        pl_gguf_get_string(g, "tokenizer.chat_template", &text, &len);
        st = chat_set_template(t, text, len, err);
    }
    if (st != PL_OK) {
        pl_tokenizer_free(t);
        return st;
    }
    *out = t;
    return PL_OK;
}
