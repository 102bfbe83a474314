/* model/tokenizer.h - byte-level BPE (GPT-2 family) and the chat template of a model. */
#ifndef PL_MODEL_TOKENIZER_H
#define PL_MODEL_TOKENIZER_H

#include "core/error.h"
#include "model/source.h"

#include <stddef.h>
#include <stdint.h>

enum { PL_TOKENIZER_MAX_INPUT = 8 << 20 }; /* bytes of one text */

/* Load from tokenizer.json (directory) or from the GGUF metadata; at most the model's n_vocab ids.
 * A pre-tokenizer, normalizer or model type that is not known is refused by name; no pattern of the
 * file is ever run.  Thread-safe after loading.  Errors: PL_E_NOENT, PL_E_FORMAT, PL_E_SHAPE. */
pl_status pl_tokenizer_open(pl_tokenizer **out, const pl_source *src, pl_error *err);
/* From tokenizer.json text (tests, fuzzing); tokenizer_config is the text of tokenizer_config.json
 * or NULL, chat_template that of chat_template.jinja or NULL. */
pl_status pl_tokenizer_parse(pl_tokenizer **out, const char *json, size_t n_bytes,
    const char *tokenizer_config, const char *chat_template, int n_vocab, pl_error *err);
void pl_tokenizer_free(pl_tokenizer *t);

int pl_tokenizer_n_vocab(const pl_tokenizer *t); /* ids 0..n-1 that have a token */
int pl_tokenizer_bos(const pl_tokenizer *t);     /* to put before plain text; -1: none */
int pl_tokenizer_eos(const pl_tokenizer *t);     /* -1: none */

/* Encode n_bytes of text.  with_special: text of added tokens ("<|im_end|>") becomes that token, as
 * in Hugging Face; otherwise it is plain text.  No BOS is added: the caller puts pl_tokenizer_bos()
 * before text that is not a rendered chat.  *out is *returned owned* (free).  Invalid UTF-8 is
 * encoded byte by byte.  A byte that has no token is dropped, as in Hugging Face (SmolLM2 has none
 * for 04 06 13 14 16 1d c0 c1 f1 f2 f5..ff): all other text comes back exactly.
 * Errors: PL_E_FORMAT (input too long), PL_E_NOMEM. */
pl_status pl_tokenizer_encode(const pl_tokenizer *t, const char *text, size_t n_bytes,
    int with_special, int32_t **out, int *n_out, pl_error *err);

/* Bytes of one token; special tokens have none when skip_special is set.  *borrowed*; ids that have
 * no token give zero bytes. */
void pl_tokenizer_piece(
    const pl_tokenizer *t, int32_t id, int skip_special, const char **bytes, size_t *n_bytes);
int pl_tokenizer_is_special(const pl_tokenizer *t, int32_t id);

/* Concatenated bytes of n ids, *returned owned* with a NUL after them. */
pl_status pl_tokenizer_decode(const pl_tokenizer *t, const int32_t *ids, int n, int skip_special,
    char **out, size_t *n_bytes, pl_error *err);

/* Length of the longest prefix of s that ends at a character border (streaming holds the rest). */
size_t pl_utf8_complete(const char *s, size_t n_bytes);
/* Copy with every invalid UTF-8 sequence replaced by U+FFFD (as Python's errors="replace"),
 * *returned owned*: what goes into JSON. */
char *pl_utf8_clean(const char *s, size_t n_bytes, size_t *n_out);

/* One message of a conversation. */
typedef struct pl_message {
    const char *role; /* "system", "user", "assistant" */
    const char *content;
} pl_message;

/* Render with the model's chat template and the generation prompt, and encode with special tokens.
 * Known templates, recognised by their text: SmolLM2's (default system message) and plain ChatML.
 * Errors: PL_E_FORMAT "chat template of 'X' is not known ...". */
pl_status pl_chat_encode(const pl_tokenizer *t, const pl_message *messages, int n_messages,
    int32_t **out, int *n_out, pl_error *err);
/* The rendered text, *returned owned*. */
pl_status pl_chat_render(const pl_tokenizer *t, const pl_message *messages, int n_messages,
    char **out, size_t *n_bytes, pl_error *err);
/* "smollm2", "chatml", "unknown", "none". */
const char *pl_chat_name(const pl_tokenizer *t);

/* Write tokenizer.json, tokenizer_config.json (with the chat template) and special_tokens_map.json
 * into dir: a tokenizer that Hugging Face loads and that encodes the same. */
pl_status pl_tokenizer_save(const pl_tokenizer *t, const char *dir, pl_error *err);

#endif
