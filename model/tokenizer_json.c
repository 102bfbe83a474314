/* model/tokenizer_json.c - a tokenizer from tokenizer.json and tokenizer_config.json.
 *
 * The file is untrusted.  Every part is compared with what this program does; what it would do
 * differently is refused by name.  Order: model, added tokens, pre-tokenizer, post-processor, then
 * the names in tokenizer_config.json. */
#include "model/bpe.h"
#include "model/json_file.h"

#include <string.h>

enum { MAX_DEPTH = 12 };

/* A string member, or "" when it is another type or not there. */
static const char *text_of(const json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));
    return s ? s : "";
}

static int is_type(const json_t *object, const char *type)
{
    return strcmp(text_of(object, "type"), type) == 0;
}

/* Not there, null, false or "": an option that is off. */
static int is_off(const json_t *object, const char *key)
{
    const json_t *v = json_object_get(object, key);
    return !v || json_is_null(v) || json_is_false(v) ||
           (json_is_string(v) && json_string_length(v) == 0);
}

static pl_status check_model(const json_t *model, pl_error *err)
{
    static const char *const off[] = {
        "dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"};
    if (!json_is_object(model) || !(is_type(model, "BPE") || !json_object_get(model, "type")))
        return pl_fail(err, PL_E_FORMAT,
            "model type '%.40s' is not supported: only byte-level BPE is", text_of(model, "type"));
    for (size_t i = 0; i < sizeof off / sizeof *off; i++)
        if (!is_off(model, off[i]))
            return pl_fail(err, PL_E_FORMAT, "model option '%s' is not supported", off[i]);
    if (!is_off(model, "fuse_unk") && !is_off(model, "unk_token"))
        return pl_fail(err, PL_E_FORMAT, "model option 'fuse_unk' is not supported");
    if (!json_is_object(json_object_get(model, "vocab")) ||
        !json_is_array(json_object_get(model, "merges")))
        return pl_fail(err, PL_E_FORMAT, "model has no 'vocab' object or no 'merges' list");
    return PL_OK;
}

static pl_status read_vocab(pl_tokenizer *t, json_t *vocab, pl_error *err)
{
    const char *text;
    size_t n;
    json_t *id;
    json_object_keylen_foreach(vocab, text, n, id)
    {
        if (!json_is_integer(id))
            return pl_fail(err, PL_E_FORMAT, "the id of token '%.40s' is not an integer", text);
        const pl_status st = bpe_add_vocab(t, json_integer_value(id), text, n, err);
        if (st != PL_OK)
            return st;
    }
    return PL_OK;
}

/* A rule is "left right" or ["left", "right"]. */
static pl_status read_rule(pl_tokenizer *t, const json_t *rule, size_t i, pl_error *err)
{
    if (json_is_string(rule))
        return bpe_add_rule_text(t, json_string_value(rule), json_string_length(rule), err);
    const json_t *left = json_array_get(rule, 0), *right = json_array_get(rule, 1);
    if (json_array_size(rule) != 2 || !json_is_string(left) || !json_is_string(right))
        return pl_fail(err, PL_E_FORMAT, "merge rule %zu is neither a string nor a pair", i);
    return bpe_add_rule(t, json_string_value(left), json_string_length(left),
        json_string_value(right), json_string_length(right), err);
}

static pl_status read_rules(pl_tokenizer *t, const json_t *merges, pl_error *err)
{
    size_t i;
    json_t *rule;
    json_array_foreach(merges, i, rule)
    {
        const pl_status st = read_rule(t, rule, i, err);
        if (st != PL_OK)
            return st;
    }
    return PL_OK;
}

static pl_status read_model(pl_tokenizer *t, const json_t *model, pl_error *err)
{
    pl_status st = read_vocab(t, json_object_get(model, "vocab"), err);
    if (st == PL_OK)
        st = read_rules(t, json_object_get(model, "merges"), err);
    if (st != PL_OK)
        return st;
    t->ignore_merges = json_is_true(json_object_get(model, "ignore_merges"));
    if (!is_off(model, "unk_token")) {
        const char *unk = text_of(model, "unk_token");
        t->model_unk_id = bpe_find_text(t, unk, strlen(unk));
        if (t->model_unk_id < 0)
            return pl_fail(err, PL_E_FORMAT, "the unk_token '%.40s' is not in the vocabulary", unk);
    }
    return PL_OK;
}

static pl_status read_added(pl_tokenizer *t, const json_t *list, pl_error *err)
{
    static const char *const off[] = {"single_word", "lstrip", "rstrip"};
    size_t i;
    json_t *item;
    json_array_foreach(list, i, item)
    {
        const json_t *id = json_object_get(item, "id");
        const json_t *content = json_object_get(item, "content");
        if (!json_is_integer(id) || !json_is_string(content))
            return pl_fail(err, PL_E_FORMAT, "added token %zu has no id or no content", i);
        for (size_t k = 0; k < sizeof off / sizeof *off; k++)
            if (!is_off(item, off[k]))
                return pl_fail(err, PL_E_FORMAT, "added token '%.40s': '%s' is not supported",
                    json_string_value(content), off[k]);
        const uint32_t flags = (is_off(item, "special") ? 0 : BPE_SPECIAL) |
                               (is_off(item, "normalized") ? 0 : BPE_NORMALIZED);
        const pl_status st = bpe_add_added(t, json_integer_value(id), json_string_value(content),
            json_string_length(content), flags, err);
        if (st != PL_OK)
            return st;
    }
    return PL_OK;
}

/* ByteLevel without a space put in front; use_regex as wanted. */
static int is_byte_level(const json_t *p, int use_regex)
{
    const json_t *regex = json_object_get(p, "use_regex");
    return is_type(p, "ByteLevel") && json_is_false(json_object_get(p, "add_prefix_space")) &&
           (!regex || json_is_true(regex)) == use_regex;
}

/* Digits one at a time, or Split by a pattern that is known. */
static int is_known_step(const json_t *p, bpe_family *family, int *use_regex)
{
    *use_regex = is_type(p, "Digits");
    if (*use_regex) {
        *family = BPE_SMOLLM;
        return json_is_true(json_object_get(p, "individual_digits"));
    }
    return is_type(p, "Split") && strcmp(text_of(p, "behavior"), "Isolated") == 0 &&
           is_off(p, "invert") &&
           pretokenize_known(text_of(json_object_get(p, "pattern"), "Regex"), family);
}

static pl_status read_pre_tokenizer(pl_tokenizer *t, const json_t *p, pl_error *err)
{
    const json_t *steps = json_object_get(p, "pretokenizers");
    const json_t *first = json_array_get(steps, 0);
    int use_regex;
    if (is_byte_level(p, 1)) {
        t->family = BPE_GPT2;
        return PL_OK;
    }
    if (is_type(p, "Sequence") && json_array_size(steps) == 2 &&
        is_known_step(first, &t->family, &use_regex) &&
        is_byte_level(json_array_get(steps, 1), use_regex))
        return PL_OK;
    return pl_fail(err, PL_E_FORMAT,
        "pre-tokenizer '%.40s'%s%.40s%s is not known (known: ByteLevel of GPT-2, Digits + "
        "ByteLevel "
        "of SmolLM2, Split + ByteLevel of Llama 3)",
        text_of(p, "type"), first ? " of '" : "", text_of(first, "type"), first ? "' ..." : "");
}

/* A template that puts at most one token, the BOS, before the text. */
static pl_status read_template(pl_tokenizer *t, const json_t *p, pl_error *err)
{
    const json_t *single = json_object_get(p, "single");
    const size_t n = json_array_size(single);
    const json_t *text = json_object_get(json_array_get(single, n - 1), "Sequence");
    const json_t *bos = json_object_get(json_array_get(single, 0), "SpecialToken");
    if (n == 1 && text)
        return PL_OK;
    if (n != 2 || !text || !bos)
        return pl_fail(err, PL_E_FORMAT,
            "post-processor TemplateProcessing adds more than one token before the text");
    const char *name = text_of(bos, "id");
    const json_t *token = json_object_get(json_object_get(p, "special_tokens"), name);
    const json_t *ids = json_object_get(token, "ids");
    const json_int_t id = json_integer_value(json_array_get(ids, 0));
    if (json_array_size(ids) != 1 || !json_is_integer(json_array_get(ids, 0)) || id < 0 ||
        id >= t->n_tokens || !t->tokens[id].flags)
        return pl_fail(err, PL_E_FORMAT, "post-processor: '%.40s' is not one token", name);
    t->add_bos_id = t->bos_id = (int32_t)id;
    return PL_OK;
}

static pl_status read_post_processor(pl_tokenizer *t, const json_t *p, int depth, pl_error *err)
{
    const json_t *steps = json_object_get(p, "processors");
    pl_status st = PL_OK;
    if (!p || json_is_null(p) || is_type(p, "ByteLevel"))
        return PL_OK;
    if (is_type(p, "TemplateProcessing"))
        return read_template(t, p, err);
    if (!is_type(p, "Sequence") || depth > 0)
        return pl_fail(
            err, PL_E_FORMAT, "post-processor '%.40s' is not supported", text_of(p, "type"));
    for (size_t i = 0; st == PL_OK && i < json_array_size(steps); i++)
        st = read_post_processor(t, json_array_get(steps, i), 1, err);
    return st;
}

static pl_status read_pipeline(pl_tokenizer *t, const json_t *root, pl_error *err)
{
    const json_t *normalizer = json_object_get(root, "normalizer");
    const json_t *decoder = json_object_get(root, "decoder");
    if (normalizer && !json_is_null(normalizer))
        return pl_fail(
            err, PL_E_FORMAT, "normalizer '%.40s' is not supported", text_of(normalizer, "type"));
    if (decoder && !json_is_null(decoder) && !is_type(decoder, "ByteLevel"))
        return pl_fail(
            err, PL_E_FORMAT, "decoder '%.40s' is not supported", text_of(decoder, "type"));
    const pl_status st = read_pre_tokenizer(t, json_object_get(root, "pre_tokenizer"), err);
    if (st != PL_OK)
        return st;
    return read_post_processor(t, json_object_get(root, "post_processor"), 0, err);
}

/* A token named in tokenizer_config.json: a string or {"content": string}. */
static pl_status read_name(
    const pl_tokenizer *t, const json_t *config, const char *key, int32_t *id, pl_error *err)
{
    const json_t *v = json_object_get(config, key);
    if (json_is_object(v))
        v = json_object_get(v, "content");
    if (!json_is_string(v))
        return PL_OK;
    *id = bpe_find_text(t, json_string_value(v), json_string_length(v));
    if (*id < 0)
        return pl_fail(err, PL_E_FORMAT, "tokenizer_config.json: %s '%.40s' is no token", key,
            json_string_value(v));
    return PL_OK;
}

/* The template is a string, or a list of {"name", "template"} of which "default" counts. */
static const json_t *find_template(const json_t *config)
{
    const json_t *v = json_object_get(config, "chat_template");
    for (size_t i = 0; i < json_array_size(v); i++)
        if (strcmp(text_of(json_array_get(v, i), "name"), "default") == 0)
            return json_object_get(json_array_get(v, i), "template");
    return v;
}

static pl_status read_config(pl_tokenizer *t, const json_t *config, pl_error *err)
{
    const json_t *template = find_template(config);
    pl_status st = read_name(t, config, "bos_token", &t->bos_id, err);
    if (st == PL_OK)
        st = read_name(t, config, "eos_token", &t->eos_id, err);
    if (st == PL_OK)
        st = read_name(t, config, "unk_token", &t->unk_id, err);
    if (st == PL_OK)
        st = read_name(t, config, "pad_token", &t->pad_id, err);
    if (st == PL_OK)
        st = chat_set_template(t, json_string_value(template), json_string_length(template), err);
    return st;
}

static pl_status read_all(
    pl_tokenizer *t, const json_t *root, const json_t *config, const char *chat, pl_error *err)
{
    pl_status st = read_model(t, json_object_get(root, "model"), err);
    if (st == PL_OK)
        st = read_added(t, json_object_get(root, "added_tokens"), err);
    if (st == PL_OK)
        st = read_pipeline(t, root, err);
    if (st == PL_OK)
        st = bpe_finish(t, err);
    if (st != PL_OK)
        return pl_wrap(err, st, "tokenizer.json");
    if (config)
        st = read_config(t, config, err);
    if (st == PL_OK && chat)
        st = chat_set_template(t, chat, strlen(chat), err);
    return st;
}

pl_status pl_tokenizer_parse(pl_tokenizer **out, const char *json, size_t n_bytes,
    const char *tokenizer_config, const char *chat_template, int n_vocab, pl_error *err)
{
    json_t *root = NULL, *config = NULL;
    pl_tokenizer *t = NULL;
    pl_status st = json_file_parse(&root, json, n_bytes, MAX_DEPTH, "tokenizer.json", err);
    if (st != PL_OK)
        return st;
    if (tokenizer_config)
        st = json_file_parse(&config, tokenizer_config, strlen(tokenizer_config), MAX_DEPTH,
            "tokenizer_config.json", err);
    if (st != PL_OK)
        goto done;

    const json_t *model = json_object_get(root, "model");
    st = check_model(model, err);
    if (st == PL_OK)
        st = bpe_new(&t, json_object_size(json_object_get(model, "vocab")),
            n_vocab > 0 ? (uint64_t)n_vocab : 0, err);
    if (st != PL_OK)
        st = pl_wrap(err, st, "tokenizer.json");
    if (st == PL_OK)
        st = read_all(t, root, config, chat_template, err);
    if (st == PL_OK)
        *out = t;
    else
        pl_tokenizer_free(t);
done:
    json_decref(config);
    json_decref(root);
    return st;
}
