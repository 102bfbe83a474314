/* model/bpe.h - inside of the tokenizer; included only inside model/.
 *
 * Everything that the encoder touches is bytes: a token of a byte-level vocabulary is written in
 * the file as text in which each character stands for one byte (GPT-2's table), and is turned back
 * into those bytes when it is loaded. */
#ifndef PL_MODEL_BPE_H
#define PL_MODEL_BPE_H

#define PCRE2_CODE_UNIT_WIDTH 8

#include "core/error.h"
#include "model/tokenizer.h"

#include <pcre2.h>
#include <stddef.h>
#include <stdint.h>

enum {
    BPE_MAX_VOCAB = 1 << 20,
    BPE_MAX_MERGES = 1 << 21,
    BPE_MAX_ADDED = 4096,
    BPE_MAX_TOKEN = 1 << 16,    /* bytes of one token */
    BPE_MAX_ADDED_TEXT = 256,   /* bytes of one added token */
    BPE_MAX_TEMPLATE = 1 << 18, /* bytes of a chat template */
};

enum {
    BPE_THERE = 1,   /* the id has a token */
    BPE_VOCAB = 2,   /* it stands in the vocabulary of the BPE model */
    BPE_ADDED = 4,   /* its text is looked for before anything is split */
    BPE_SPECIAL = 8, /* control token: left out of decoded text on demand */
    BPE_TEXT = 16,   /* the file's text is not byte-level: bytes are the text itself */
    BPE_NORMALIZED = 32,
};

typedef struct bpe_token {
    uint32_t offset; /* into bytes */
    uint32_t n_bytes;
    uint32_t flags;
} bpe_token;

/* One merge rule; its rank is its place in the list, lower goes first. */
typedef struct bpe_rule {
    int32_t left, right, id;
} bpe_rule;

/* Slot of the pair table: key = left << 32 | right, empty when rank < 0. */
typedef struct bpe_pair {
    uint64_t key;
    int32_t rank, id;
} bpe_pair;

/* Added tokens in the order of their bytes; begin[b] is the first that starts with byte b. */
typedef struct bpe_added {
    int32_t *ids; /* [n] */
    int n;
    int begin[257];
} bpe_added;

typedef enum bpe_family { BPE_GPT2, BPE_SMOLLM, BPE_LLAMA3 } bpe_family;

typedef enum bpe_chat { CHAT_NONE, CHAT_UNKNOWN, CHAT_SMOLLM2, CHAT_CHATML } bpe_chat;

struct pl_tokenizer {
    bpe_token *tokens; /* [n_cap] */
    int n_tokens;      /* highest id with a token, plus one */
    int n_cap;
    char *bytes; /* of all tokens */
    size_t n_bytes, bytes_cap;

    int32_t *slots; /* [slot_mask + 1] ids by text, -1 empty */
    uint32_t slot_mask;
    bpe_rule *rules; /* [n_rules] by rank */
    int n_rules, rules_cap;
    bpe_pair *pairs; /* [pair_mask + 1] */
    uint32_t pair_mask;
    int32_t byte_id[256]; /* token of a single byte, -1 none */

    int n_added;
    bpe_added added[2]; /* looked for in this order: not normalized, normalized */

    bpe_family family;
    pcre2_code *digits; /* what is cut out one character at a time; NULL: nothing */
    pcre2_code *words;
    pcre2_match_context *limits;

    int ignore_merges;                      /* a word that is a token is that token */
    int32_t model_unk_id;                   /* for a byte that has no token; -1: it is dropped */
    int32_t add_bos_id;                     /* put before plain text; -1: none */
    int32_t bos_id, eos_id, unk_id, pad_id; /* named in the file; -1: not */

    char *chat_template; /* NULL: none */
    bpe_chat chat;
};

/* A growing list of ids. */
typedef struct bpe_ids {
    int32_t *v;
    int n, cap;
} bpe_ids;

/* Room for n more ids; 0 when there is no memory. */
int bpe_ids_reserve(bpe_ids *ids, size_t n);

/* --- building: bpe_new, vocabulary, rules, added tokens, bpe_finish --- */

/* Empty tokenizer for a vocabulary of n_vocab tokens with ids below n_ids. */
pl_status bpe_new(pl_tokenizer **out, uint64_t n_vocab, uint64_t n_ids, pl_error *err);
/* A token of the vocabulary in the text form of the file. */
pl_status bpe_add_vocab(pl_tokenizer *t, int64_t id, const char *text, size_t n, pl_error *err);
/* The next merge rule. */
pl_status bpe_add_rule(pl_tokenizer *t, const char *left, size_t n_left, const char *right,
    size_t n_right, pl_error *err);
/* The next merge rule, written "left right". */
pl_status bpe_add_rule_text(pl_tokenizer *t, const char *text, size_t n, pl_error *err);
/* An added token: flags of BPE_SPECIAL and BPE_NORMALIZED.  The id may stand in the vocabulary with
 * the same text, or not at all. */
pl_status bpe_add_added(
    pl_tokenizer *t, int64_t id, const char *text, size_t n, uint32_t flags, pl_error *err);
/* Sort the added tokens (by bpe_finish). */
pl_status bpe_build_added(pl_tokenizer *t, pl_error *err);
/* Build the tables and compile the patterns of t->family. */
pl_status bpe_finish(pl_tokenizer *t, pl_error *err);
/* Id of a token by its text in the file, or -1. */
int32_t bpe_find_text(const pl_tokenizer *t, const char *text, size_t n);
/* Text of a token as it stands in the file into out[2 * n_bytes + 1]; returns its length. */
size_t bpe_token_text(const pl_tokenizer *t, int32_t id, char *out);

/* --- encoding --- */

/* Id of the token with these bytes, or -1. */
int32_t bpe_find(const pl_tokenizer *t, const char *bytes, size_t n);
/* Rank and result of a pair; the rank is INT32_MAX when no rule joins it. */
int32_t bpe_rank(const pl_tokenizer *t, int32_t left, int32_t right, int32_t *id);
/* Append the tokens of one word.  0 when there is no memory. */
int bpe_encode_word(const pl_tokenizer *t, const char *word, size_t n, bpe_ids *out);

/* Compile the patterns of the family. */
pl_status pretokenize_init(pl_tokenizer *t, pl_error *err);
void pretokenize_done(pl_tokenizer *t);
/* Split valid UTF-8 into words and append their tokens. */
pl_status pretokenize_encode(
    const pl_tokenizer *t, const char *s, size_t n, bpe_ids *out, pl_error *err);
/* Family by the pattern text of a Split pre-tokenizer; 0 when it is not known. */
int pretokenize_known(const char *pattern, bpe_family *family);
/* The pattern as it is written in files, for BPE_LLAMA3. */
const char *pretokenize_pattern(bpe_family family);

/* Length of the added token at s, 0 none; *id its id. */
size_t bpe_match_added(const pl_tokenizer *t, int set, const char *s, size_t n, int32_t *id);

/* --- loading --- */

struct pl_gguf;
pl_status tokenizer_from_gguf(
    pl_tokenizer **out, const struct pl_gguf *g, int n_vocab, pl_error *err);
/* Take a chat template's text (copied) and recognise it; text NULL: none. */
pl_status chat_set_template(pl_tokenizer *t, const char *text, size_t n, pl_error *err);

#endif
