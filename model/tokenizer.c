/* model/tokenizer.c - text to tokens and back. */
#include "model/bpe.h"
#include "model/utf8.h"

#include "model/source.h"

#include <stdlib.h>
#include <string.h>

void pl_tokenizer_free(pl_tokenizer *t)
{
    if (!t)
        return;
    pretokenize_done(t);
    free(t->added[0].ids);
    free(t->added[1].ids);
    free(t->chat_template);
    free(t->pairs);
    free(t->rules);
    free(t->slots);
    free(t->bytes);
    free(t->tokens);
    free(t);
}

int pl_tokenizer_n_vocab(const pl_tokenizer *t)
{
    return t->n_tokens;
}

int pl_tokenizer_bos(const pl_tokenizer *t)
{
    return t->add_bos_id;
}

int pl_tokenizer_eos(const pl_tokenizer *t)
{
    return t->eos_id;
}

static pl_status no_memory(size_t n_bytes, pl_error *err)
{
    return pl_fail(err, PL_E_NOMEM, "tokenizer: no memory for a text of %zu bytes", n_bytes);
}

/* Text between added tokens: valid stretches are split into words, other bytes stand alone. */
static pl_status encode_plain(
    const pl_tokenizer *t, const char *s, size_t n, bpe_ids *out, pl_error *err)
{
    pl_status st = PL_OK;
    for (size_t i = 0; st == PL_OK && i < n;) {
        const size_t n_valid = utf8_valid(s + i, n - i);
        if (n_valid > 0) {
            st = pretokenize_encode(t, s + i, n_valid, out, err);
            i += n_valid;
            continue;
        }
        size_t len;
        utf8_step(s + i, n - i, &len);
        for (size_t k = 0; st == PL_OK && k < len; k++)
            if (!bpe_encode_word(t, s + i + k, 1, out))
                st = no_memory(n, err);
        i += len;
    }
    return st;
}

/* Cut out the added tokens of this set (the leftmost, and there the longest), then of the next. */
static pl_status encode_added(
    const pl_tokenizer *t, int set, const char *s, size_t n, bpe_ids *out, pl_error *err)
{
    pl_status st = PL_OK;
    size_t done = 0;
    if (set == 2)
        return encode_plain(t, s, n, out, err);
    if (t->added[set].n == 0)
        return encode_added(t, set + 1, s, n, out, err);

    for (size_t i = 0; i < n;) {
        int32_t id;
        const size_t len = bpe_match_added(t, set, s + i, n - i, &id);
        if (len == 0) {
            i++;
            continue;
        }
        st = encode_added(t, set + 1, s + done, i - done, out, err);
        if (st == PL_OK && !bpe_ids_reserve(out, 1))
            st = no_memory(n, err);
        if (st != PL_OK)
            return st;
        out->v[out->n++] = id;
        i += len;
        done = i;
    }
    return encode_added(t, set + 1, s + done, n - done, out, err);
}

pl_status pl_tokenizer_encode(const pl_tokenizer *t, const char *text, size_t n_bytes,
    int with_special, int32_t **out, int *n_out, pl_error *err)
{
    bpe_ids ids = {0};
    if (n_bytes > PL_TOKENIZER_MAX_INPUT)
        return pl_fail(err, PL_E_FORMAT,
            "a text of %zu bytes, at most %d are supported: cut it into smaller ones", n_bytes,
            PL_TOKENIZER_MAX_INPUT);

    pl_status st = bpe_ids_reserve(&ids, 1) ? PL_OK : no_memory(n_bytes, err);
    if (st == PL_OK)
        st = encode_added(t, with_special ? 0 : 2, text, n_bytes, &ids, err);
    if (st != PL_OK) {
        free(ids.v);
        return st;
    }
    *out = ids.v;
    *n_out = ids.n;
    return PL_OK;
}

static uint32_t flags_of(const pl_tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->n_tokens ? t->tokens[id].flags : 0;
}

int pl_tokenizer_is_special(const pl_tokenizer *t, int32_t id)
{
    return (flags_of(t, id) & BPE_SPECIAL) != 0;
}

void pl_tokenizer_piece(
    const pl_tokenizer *t, int32_t id, int skip_special, const char **bytes, size_t *n_bytes)
{
    const uint32_t flags = flags_of(t, id);
    *bytes = "";
    *n_bytes = 0;
    if (!flags || (skip_special && (flags & BPE_SPECIAL)))
        return;
    *bytes = t->bytes + t->tokens[id].offset;
    *n_bytes = t->tokens[id].n_bytes;
}

pl_status pl_tokenizer_decode(const pl_tokenizer *t, const int32_t *ids, int n, int skip_special,
    char **out, size_t *n_bytes, pl_error *err)
{
    const char *piece;
    size_t n_piece, n_all = 0;
    for (int i = 0; i < n; i++) {
        pl_tokenizer_piece(t, ids[i], skip_special, &piece, &n_piece);
        n_all += n_piece;
    }

    char *text = malloc(n_all + 1);
    if (!text)
        return pl_fail(err, PL_E_NOMEM, "decoding %d tokens to %zu bytes", n, n_all);
    *n_bytes = n_all;
    *out = text;
    for (int i = 0; i < n; i++) {
        pl_tokenizer_piece(t, ids[i], skip_special, &piece, &n_piece);
        memcpy(text, piece, n_piece);
        text += n_piece;
    }
    *text = '\0';
    return PL_OK;
}
