/* model/tokenizer_load.c - the tokenizer of a model on disk. */
#include "model/bpe.h"
#include "model/json_file.h"
#include "model/source.h"

#include "core/file.h"

#include <stdlib.h>

enum {
    MAX_JSON = 128 << 20, /* bytes of tokenizer.json; Llama 3's has 9 MB */
    MAX_CONFIG = 4 << 20, /* bytes of tokenizer_config.json */
};

/* Read dir/file, *returned owned* with a NUL after it; not there: *text stays NULL and PL_OK. */
static pl_status read_optional(
    char **text, const char *dir, const char *file, size_t max_bytes, pl_error *err)
{
    char path[4096];
    size_t n;
    pl_status st = json_file_path(path, sizeof path, dir, file, err);
    if (st != PL_OK || !pl_path_exists(path))
        return st;
    return pl_file_read(text, &n, path, max_bytes, err);
}

static pl_status from_directory(pl_tokenizer **out, const char *dir, int n_vocab, pl_error *err)
{
    char path[4096];
    char *json = NULL, *config = NULL, *chat = NULL;
    size_t n = 0;
    pl_status st = json_file_path(path, sizeof path, dir, "tokenizer.json", err);
    if (st == PL_OK && !pl_path_exists(path))
        st = pl_fail(err, PL_E_NOENT,
            "there is no tokenizer.json: copy the one of the model there (older formats are not "
            "read)");
    if (st == PL_OK)
        st = pl_file_read(&json, &n, path, MAX_JSON, err);
    if (st == PL_OK)
        st = read_optional(&config, dir, "tokenizer_config.json", MAX_CONFIG, err);
    if (st == PL_OK)
        st = read_optional(&chat, dir, "chat_template.jinja", BPE_MAX_TEMPLATE, err);
    if (st == PL_OK)
        st = pl_tokenizer_parse(out, json, n, config, chat, n_vocab, err);
    free(chat);
    free(config);
    free(json);
    return st;
}

pl_status pl_tokenizer_open(pl_tokenizer **out, const pl_source *src, pl_error *err)
{
    const struct pl_gguf *g = pl_source_gguf(src);
    const int n_vocab = pl_source_arch(src)->n_vocab;
    const pl_status st = g ? tokenizer_from_gguf(out, g, n_vocab, err)
                           : from_directory(out, pl_source_path(src), n_vocab, err);
    if (st != PL_OK)
        return pl_wrap(err, st, "tokenizer of '%s'", pl_source_path(src));
    return PL_OK;
}
