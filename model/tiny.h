/* model/tiny.h - the tokenizer half of the tiny model generator. */
#ifndef PL_MODEL_TINY_H
#define PL_MODEL_TINY_H

#include "core/error.h"

/* Write tokenizer.json, tokenizer_config.json and special_tokens_map.json of a byte-level BPE with
 * the structure of SmolLM2's: ids 0..2 are <|endoftext|>, <|im_start|>, <|im_end|>, then 256 bytes,
 * then merges until n_vocab or until the list of merges ends. */
pl_status tiny_tokenizer_write(const char *dir, int n_vocab, int n_ctx, pl_error *err);

#endif
