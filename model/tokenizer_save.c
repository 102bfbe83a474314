/* model/tokenizer_save.c - a tokenizer written as Hugging Face reads it. */
#include "model/bpe.h"
#include "model/json_file.h"

#include "core/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* json_pack and friends give NULL when there is no memory, and every function that takes a value
 * accepts NULL and fails: failures add up to one check at the end. */

static json_t *pack_byte_level(int use_regex)
{
    return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0,
        "trim_offsets", 1, "use_regex", use_regex);
}

static json_t *pack_pre_tokenizer(bpe_family family)
{
    if (family == BPE_GPT2)
        return pack_byte_level(1);
    if (family == BPE_SMOLLM)
        return json_pack("{s:s, s:[{s:s, s:b}, o]}", "type", "Sequence", "pretokenizers", "type",
            "Digits", "individual_digits", 1, pack_byte_level(1));
    return json_pack("{s:s, s:[{s:s, s:{s:s}, s:s, s:b}, o]}", "type", "Sequence", "pretokenizers",
        "type", "Split", "pattern", "Regex", pretokenize_pattern(family), "behavior", "Isolated",
        "invert", 0, pack_byte_level(0));
}

/* Text of a token in the form of the file, *borrowed* from the scratch buffer. */
static const char *text_of(const pl_tokenizer *t, int32_t id, char *scratch)
{
    bpe_token_text(t, id, scratch);
    return scratch;
}

static json_t *pack_post_processor(const pl_tokenizer *t, char *scratch)
{
    if (t->add_bos_id < 0)
        return pack_byte_level(1);
    const char *bos = text_of(t, t->add_bos_id, scratch);
    return json_pack("{s:s, s:[{s:{s:s, s:i}}, {s:{s:s, s:i}}],"
                     " s:[{s:{s:s, s:i}}, {s:{s:s, s:i}}, {s:{s:s, s:i}}, {s:{s:s, s:i}}],"
                     " s:{s:{s:s, s:[i], s:[s]}}}",
        "type", "TemplateProcessing", "single", "SpecialToken", "id", bos, "type_id", 0, "Sequence",
        "id", "A", "type_id", 0, "pair", "SpecialToken", "id", bos, "type_id", 0, "Sequence", "id",
        "A", "type_id", 0, "SpecialToken", "id", bos, "type_id", 1, "Sequence", "id", "B",
        "type_id", 1, "special_tokens", bos, "id", bos, "ids", t->add_bos_id, "tokens", bos);
}

static json_t *pack_added(const pl_tokenizer *t, int32_t id, char *scratch)
{
    const uint32_t flags = t->tokens[id].flags;
    return json_pack("{s:s, s:b, s:b, s:b, s:b, s:b}", "content", text_of(t, id, scratch),
        "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", (flags & BPE_NORMALIZED) != 0,
        "special", (flags & BPE_SPECIAL) != 0);
}

/* Both lists of added tokens: with the id inside, and by the id's digits. */
static int pack_added_lists(const pl_tokenizer *t, json_t *list, json_t *by_id, char *scratch)
{
    int failed = 0;
    for (int32_t id = 0; id < t->n_tokens; id++) {
        char key[16];
        if (!(t->tokens[id].flags & BPE_ADDED))
            continue;
        json_t *item = json_pack("{s:i}", "id", id);
        json_t *content = pack_added(t, id, scratch);
        snprintf(key, sizeof key, "%d", id);
        failed |= json_object_update(item, content) | json_array_append_new(list, item) |
                  json_object_set_new(by_id, key, content);
    }
    return failed;
}

static json_t *pack_model(const pl_tokenizer *t, char *scratch)
{
    int failed = 0;
    json_t *vocab = json_object(), *merges = json_array();
    for (int32_t id = 0; id < t->n_tokens && !failed; id++)
        if (t->tokens[id].flags & BPE_VOCAB)
            failed = json_object_set_new(vocab, text_of(t, id, scratch), json_integer(id));
    for (int i = 0; i < t->n_rules && !failed; i++) {
        size_t n = bpe_token_text(t, t->rules[i].left, scratch);
        scratch[n++] = ' ';
        n += bpe_token_text(t, t->rules[i].right, scratch + n);
        failed = json_array_append_new(merges, json_stringn(scratch, n));
    }
    json_t *unk =
        t->model_unk_id < 0 ? json_null() : json_string(text_of(t, t->model_unk_id, scratch));
    json_t *model = failed
                        ? NULL
                        : json_pack("{s:s, s:n, s:O, s:n, s:n, s:b, s:b, s:b, s:O, s:O}", "type",
                              "BPE", "dropout", "unk_token", unk, "continuing_subword_prefix",
                              "end_of_word_suffix", "fuse_unk", 0, "byte_fallback", 0,
                              "ignore_merges", t->ignore_merges, "vocab", vocab, "merges", merges);
    json_decref(unk);
    json_decref(vocab);
    json_decref(merges);
    return model;
}

/* bos_token and the like, those that are named. */
static int pack_names(const pl_tokenizer *t, json_t *object, char *scratch)
{
    const struct {
        const char *key;
        int32_t id;
    } names[] = {{"bos_token", t->bos_id}, {"eos_token", t->eos_id}, {"unk_token", t->unk_id},
        {"pad_token", t->pad_id}};
    int failed = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].id >= 0)
            failed |= json_object_set_new(
                object, names[i].key, json_string(text_of(t, names[i].id, scratch)));
    return failed;
}

static pl_status write_json(const char *dir, const char *file, const json_t *v, pl_error *err)
{
    char path[4096];
    pl_status st = json_file_path(path, sizeof path, dir, file, err);
    if (st != PL_OK)
        return st;
    char *text = v ? json_dumps(v, JSON_INDENT(2)) : NULL;
    if (!text)
        return pl_fail(err, PL_E_NOMEM, "writing '%s'", path);
    st = pl_file_write(path, text, strlen(text), err);
    free(text);
    return st;
}

static pl_status save(const pl_tokenizer *t, const char *dir, char *scratch, pl_error *err)
{
    json_t *added = json_array(), *by_id = json_object(), *names = json_object();
    const int failed = pack_added_lists(t, added, by_id, scratch) | pack_names(t, names, scratch);
    json_t *post = pack_post_processor(t, scratch);
    json_t *root = failed
                       ? NULL
                       : json_pack("{s:s, s:n, s:n, s:O, s:n, s:o, s:O, s:o, s:o}", "version",
                             "1.0", "truncation", "padding", "added_tokens", added, "normalizer",
                             "pre_tokenizer", pack_pre_tokenizer(t->family), "post_processor", post,
                             "decoder", pack_byte_level(1), "model", pack_model(t, scratch));
    json_t *config = failed ? NULL
                            : json_pack("{s:O, s:b, s:b, s:s}", "added_tokens_decoder", by_id,
                                  "add_prefix_space", 0, "clean_up_tokenization_spaces", 0,
                                  "tokenizer_class", "PreTrainedTokenizerFast");
    if (config && (json_object_update(config, names) ||
                      (t->chat_template && json_object_set_new(config, "chat_template",
                                               json_string(t->chat_template))))) {
        json_decref(config);
        config = NULL;
    }
    pl_status st = write_json(dir, "tokenizer.json", root, err);
    if (st == PL_OK)
        st = write_json(dir, "tokenizer_config.json", config, err);
    if (st == PL_OK)
        st = write_json(dir, "special_tokens_map.json", failed ? NULL : names, err);
    json_decref(config);
    json_decref(root);
    json_decref(post);
    json_decref(names);
    json_decref(by_id);
    json_decref(added);
    return st;
}

pl_status pl_tokenizer_save(const pl_tokenizer *t, const char *dir, pl_error *err)
{
    uint32_t longest = 0;
    for (int i = 0; i < t->n_tokens; i++)
        if (t->tokens[i].n_bytes > longest)
            longest = t->tokens[i].n_bytes;
    char *scratch = malloc(4 * (size_t)longest + 8); /* two tokens, two bytes a byte, a space */
    if (!scratch)
        return pl_fail(err, PL_E_NOMEM, "saving the tokenizer to '%s'", dir);
    const pl_status st = save(t, dir, scratch, err);
    free(scratch);
    return st;
}
