/* model/bpe.c - the tables of a byte-level BPE tokenizer: tokens, merge rules, added tokens. */
#include "model/bpe.h"
#include "model/utf8.h"

#include "core/file.h"

#include <stdlib.h>
#include <string.h>

enum { N_CODES = 0x144 }; /* code points below this one stand for bytes */

/* GPT-2's table: printable Latin-1 characters stand for themselves, the other 68 bytes follow from
 * U+0100 on, in order. */
static int is_plain(unsigned b)
{
    return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
}

static uint32_t code_of_byte(unsigned char byte)
{
    if (is_plain(byte))
        return byte;
    return byte <= 0x20 ? 0x100U + byte : byte < 0xAD ? 0x121U + byte - 0x7F : 0x143;
}

/* Byte of a code point, or -1.  The 68 in order: 0x00-0x20, 0x7F-0xA0, 0xAD. */
static int byte_of_code(uint32_t c)
{
    if (c < 0x100)
        return is_plain(c) ? (int)c : -1;
    if (c >= N_CODES)
        return -1;
    c -= 0x100;
    return c <= 0x20 ? (int)c : c < 0x43 ? (int)c - 0x21 + 0x7F : 0xAD;
}

/* The bytes that a byte-level text stands for, into out[n]; returns how many, or -1 when one of its
 * characters stands for none. */
static int64_t bytes_of_text(const char *text, size_t n, char *out)
{
    int64_t n_out = 0;
    for (size_t i = 0; i < n;) {
        size_t len;
        utf8_step(text + i, n - i, &len);
        const int b = byte_of_code(utf8_decode(text + i, len));
        if (b < 0)
            return -1;
        out[n_out++] = (char)b;
        i += len;
    }
    return n_out;
}

static uint64_t hash_pair(uint64_t key)
{
    key *= 0x9E3779B97F4A7C15U; /* 2^64 / golden ratio */
    return key ^ key >> 32;
}

/* Smallest power of two with room for n at a load of at most one half. */
static uint32_t table_size(uint64_t n)
{
    uint32_t size = 16;
    while (size < 2 * n)
        size *= 2;
    return size;
}

static int is_token(
    const pl_tokenizer *t, int32_t id, const char *bytes, size_t n, uint32_t is_text)
{
    const bpe_token *k = &t->tokens[id];
    return k->n_bytes == n && (k->flags & BPE_TEXT) == is_text &&
           memcmp(t->bytes + k->offset, bytes, n) == 0;
}

/* Slot that holds the token, or the empty one where it would go. */
static int32_t *find_slot(const pl_tokenizer *t, const char *bytes, size_t n, uint32_t is_text)
{
    uint32_t i = (uint32_t)pl_hash64(bytes, n) & t->slot_mask;
    while (t->slots[i] >= 0 && !is_token(t, t->slots[i], bytes, n, is_text))
        i = (i + 1) & t->slot_mask;
    return &t->slots[i];
}

int32_t bpe_find(const pl_tokenizer *t, const char *bytes, size_t n)
{
    return *find_slot(t, bytes, n, 0);
}

int32_t bpe_find_text(const pl_tokenizer *t, const char *text, size_t n)
{
    int32_t id = -1;
    char small[256];
    char *bytes = n <= sizeof small ? small : malloc(n);
    if (bytes) {
        const int64_t n_bytes = bytes_of_text(text, n, bytes);
        id = n_bytes < 0 ? *find_slot(t, text, n, BPE_TEXT) : bpe_find(t, bytes, (size_t)n_bytes);
    }
    if (bytes != small)
        free(bytes);
    for (int set = 0; set < 2 && id < 0; set++) {
        const bpe_added *a = &t->added[set];
        for (int i = 0; i < a->n && id < 0; i++)
            if (is_token(t, a->ids[i], text, n, t->tokens[a->ids[i]].flags & BPE_TEXT))
                id = a->ids[i];
    }
    return id;
}

size_t bpe_token_text(const pl_tokenizer *t, int32_t id, char *out)
{
    const bpe_token *k = &t->tokens[id];
    size_t n = 0;
    if (k->flags & BPE_TEXT) {
        memcpy(out, t->bytes + k->offset, k->n_bytes);
        n = k->n_bytes;
    } else {
        for (uint32_t i = 0; i < k->n_bytes; i++)
            n += utf8_put2(out + n, code_of_byte((unsigned char)t->bytes[k->offset + i]));
    }
    out[n] = '\0';
    return n;
}

pl_status bpe_new(pl_tokenizer **out, uint64_t n_vocab, uint64_t n_ids, pl_error *err)
{
    if (n_vocab == 0 || n_vocab > BPE_MAX_VOCAB || n_ids > BPE_MAX_VOCAB)
        return pl_fail(err, PL_E_FORMAT, "vocabulary of %llu tokens (1 to %d are supported)",
            (unsigned long long)n_vocab, BPE_MAX_VOCAB);

    pl_tokenizer *t = calloc(1, sizeof *t);
    if (!t)
        return pl_fail(err, PL_E_NOMEM, "tokenizer");
    t->model_unk_id = t->add_bos_id = t->bos_id = t->eos_id = t->unk_id = t->pad_id = -1;
    t->slot_mask = table_size(n_vocab) - 1;
    t->slots = malloc(((size_t)t->slot_mask + 1) * sizeof *t->slots);
    t->n_cap = (int)n_ids;
    t->tokens = calloc(n_ids ? n_ids : 1, sizeof *t->tokens);
    if (!t->slots || !t->tokens) {
        pl_tokenizer_free(t);
        return pl_fail(err, PL_E_NOMEM, "tokenizer of %llu tokens", (unsigned long long)n_vocab);
    }
    memset(t->slots, 0xFF, ((size_t)t->slot_mask + 1) * sizeof *t->slots);
    *out = t;
    return PL_OK;
}

/* Room for n more bytes of token text. */
static pl_status reserve_bytes(pl_tokenizer *t, size_t n, pl_error *err)
{
    if (t->n_bytes + n <= t->bytes_cap)
        return PL_OK;
    const size_t cap = 2 * (t->bytes_cap + n) + 4096;
    char *bytes = cap <= UINT32_MAX ? realloc(t->bytes, cap) : NULL;
    if (!bytes)
        return pl_fail(err, PL_E_NOMEM, "tokenizer: %zu bytes of token text", cap);
    t->bytes = bytes;
    t->bytes_cap = cap;
    return PL_OK;
}

static pl_status check_text(
    const pl_tokenizer *t, int64_t id, const char *text, size_t n, pl_error *err)
{
    if (id < 0 || id >= t->n_cap)
        return pl_fail(err, PL_E_SHAPE,
            "token id %lld, but the model has %d: the tokenizer belongs to another model",
            (long long)id, t->n_cap);
    if (n == 0 || n > BPE_MAX_TOKEN)
        return pl_fail(err, PL_E_FORMAT, "token %lld has %zu bytes (1 to %d are supported)",
            (long long)id, n, BPE_MAX_TOKEN);
    if (utf8_valid(text, n) != n)
        return pl_fail(err, PL_E_FORMAT, "token %lld is not valid UTF-8", (long long)id);
    return PL_OK;
}

static void set_token(pl_tokenizer *t, int64_t id, size_t n_bytes, uint32_t flags)
{
    t->tokens[id] = (bpe_token){(uint32_t)t->n_bytes, (uint32_t)n_bytes, flags};
    t->n_bytes += n_bytes;
    if (id >= t->n_tokens)
        t->n_tokens = (int)id + 1;
}

pl_status bpe_add_vocab(pl_tokenizer *t, int64_t id, const char *text, size_t n, pl_error *err)
{
    pl_status st = check_text(t, id, text, n, err);
    if (st == PL_OK)
        st = reserve_bytes(t, n, err);
    if (st != PL_OK)
        return st;
    if (t->tokens[id].flags)
        return pl_fail(err, PL_E_FORMAT, "two tokens have the id %lld", (long long)id);

    char *bytes = t->bytes + t->n_bytes;
    int64_t n_bytes = bytes_of_text(text, n, bytes);
    const uint32_t is_text = n_bytes < 0 ? BPE_TEXT : 0;
    if (is_text) {
        memcpy(bytes, text, n);
        n_bytes = (int64_t)n;
    }
    int32_t *slot = find_slot(t, bytes, (size_t)n_bytes, is_text);
    if (*slot >= 0)
        return pl_fail(err, PL_E_FORMAT, "tokens %d and %lld are the same", *slot, (long long)id);
    set_token(t, id, (size_t)n_bytes, BPE_THERE | BPE_VOCAB | is_text);
    *slot = (int32_t)id;
    return PL_OK;
}

pl_status bpe_add_added(
    pl_tokenizer *t, int64_t id, const char *text, size_t n, uint32_t flags, pl_error *err)
{
    pl_status st = check_text(t, id, text, n, err);
    if (st == PL_OK)
        st = reserve_bytes(t, n, err);
    if (st != PL_OK)
        return st;
    if (n > BPE_MAX_ADDED_TEXT || ++t->n_added > BPE_MAX_ADDED)
        return pl_fail(err, PL_E_FORMAT,
            "added token %lld: at most %d added tokens of at most %d bytes are supported",
            (long long)id, BPE_MAX_ADDED, BPE_MAX_ADDED_TEXT);

    bpe_token *k = &t->tokens[id];
    const int32_t same = bpe_find_text(t, text, n);
    if (k->flags & BPE_ADDED)
        return pl_fail(err, PL_E_FORMAT, "two added tokens have the id %lld", (long long)id);
    if (same != id && (same >= 0 || k->flags))
        return pl_fail(err, PL_E_FORMAT,
            "added token %lld does not agree with the vocabulary: its text or its id is taken",
            (long long)id);
    flags |= BPE_THERE | BPE_ADDED | (k->flags & (BPE_VOCAB | BPE_TEXT));
    if (k->flags && is_token(t, (int32_t)id, text, n, k->flags & BPE_TEXT)) {
        k->flags = flags; /* the usual case: plain ASCII, the same in both forms */
        return PL_OK;
    }
    memcpy(t->bytes + t->n_bytes, text, n);
    set_token(t, id, n, flags | BPE_TEXT);
    return PL_OK;
}

/* The rules grow by doubling; the pair table is built at the end. */
static pl_status reserve_rule(pl_tokenizer *t, pl_error *err)
{
    if (t->n_rules < t->rules_cap)
        return PL_OK;
    if (t->n_rules >= BPE_MAX_MERGES)
        return pl_fail(err, PL_E_FORMAT, "more than %d merge rules", BPE_MAX_MERGES);
    const int cap = t->rules_cap ? 2 * t->rules_cap : 65536;
    bpe_rule *rules = realloc(t->rules, (size_t)cap * sizeof *rules);
    if (!rules)
        return pl_fail(err, PL_E_NOMEM, "tokenizer: %d merge rules", cap);
    t->rules = rules;
    t->rules_cap = cap;
    return PL_OK;
}

pl_status bpe_add_rule(pl_tokenizer *t, const char *left, size_t n_left, const char *right,
    size_t n_right, pl_error *err)
{
    char joined[2 * BPE_MAX_ADDED_TEXT];
    const size_t n = n_left + n_right;
    const pl_status st = reserve_rule(t, err);
    if (st != PL_OK)
        return st;

    char *both = n <= sizeof joined ? joined : malloc(n);
    if (!both)
        return pl_fail(err, PL_E_NOMEM, "tokenizer: merge rule of %zu bytes", n);
    memcpy(both, left, n_left);
    memcpy(both + n_left, right, n_right);
    const bpe_rule rule = {bpe_find_text(t, left, n_left), bpe_find_text(t, right, n_right),
        bpe_find_text(t, both, n)};
    if (both != joined)
        free(both);
    if (rule.left < 0 || rule.right < 0 || rule.id < 0)
        return pl_fail(err, PL_E_FORMAT,
            "merge rule %d ('%.*s' '%.*s') names a token that is not in the vocabulary", t->n_rules,
            n_left < 40 ? (int)n_left : 40, left, n_right < 40 ? (int)n_right : 40, right);
    t->rules[t->n_rules++] = rule;
    return PL_OK;
}

pl_status bpe_add_rule_text(pl_tokenizer *t, const char *text, size_t n, pl_error *err)
{
    const char *space = memchr(text, ' ', n);
    const size_t n_left = space ? (size_t)(space - text) : 0;
    if (!space || n_left == 0 || n_left + 1 == n || memchr(space + 1, ' ', n - n_left - 1))
        return pl_fail(
            err, PL_E_FORMAT, "merge rule %d is not two tokens with one space between", t->n_rules);
    return bpe_add_rule(t, text, n_left, space + 1, n - n_left - 1, err);
}

static bpe_pair *find_pair(const pl_tokenizer *t, uint64_t key)
{
    uint32_t i = (uint32_t)hash_pair(key) & t->pair_mask;
    while (t->pairs[i].rank >= 0 && t->pairs[i].key != key)
        i = (i + 1) & t->pair_mask;
    return &t->pairs[i];
}

int32_t bpe_rank(const pl_tokenizer *t, int32_t left, int32_t right, int32_t *id)
{
    const bpe_pair *p = find_pair(t, (uint64_t)(uint32_t)left << 32 | (uint32_t)right);
    *id = p->id;
    return p->rank < 0 ? INT32_MAX : p->rank;
}

/* A pair that is listed twice has its last rank, as in Hugging Face. */
static pl_status build_pairs(pl_tokenizer *t, pl_error *err)
{
    const size_t size = table_size((uint64_t)t->n_rules);
    t->pairs = malloc(size * sizeof *t->pairs);
    if (!t->pairs)
        return pl_fail(err, PL_E_NOMEM, "tokenizer: table of %d merge rules", t->n_rules);
    t->pair_mask = (uint32_t)size - 1;
    for (size_t i = 0; i < size; i++)
        t->pairs[i] = (bpe_pair){0, -1, -1};
    for (int i = 0; i < t->n_rules; i++) {
        const bpe_rule *r = &t->rules[i];
        const uint64_t key = (uint64_t)(uint32_t)r->left << 32 | (uint32_t)r->right;
        *find_pair(t, key) = (bpe_pair){key, i, r->id};
    }
    return PL_OK;
}

pl_status bpe_finish(pl_tokenizer *t, pl_error *err)
{
    pl_status st = build_pairs(t, err);
    if (st == PL_OK)
        st = bpe_build_added(t, err);
    if (st != PL_OK)
        return st;
    for (int b = 0; b < 256; b++) {
        const char byte = (char)b;
        t->byte_id[b] = bpe_find(t, &byte, 1);
    }
    return pretokenize_init(t, err);
}
