/* tests/fuzz/fuzz_tokenizer.c - tokenizer.json against any bytes.  What is accepted must encode any
 * text to its own ids, and text of known bytes must come back. */
#include "model/tokenizer.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_TEXT = 4096, N_VOCAB = 1000 };

static void check(const pl_tokenizer *t, const char *text, size_t n, int with_special)
{
    int32_t *ids = NULL;
    int n_ids = 0;
    char *back = NULL;
    size_t n_back = 0;
    pl_error err;
    if (pl_tokenizer_encode(t, text, n, with_special, &ids, &n_ids, &err) != PL_OK)
        abort();
    for (int i = 0; i < n_ids; i++)
        if (ids[i] < 0 || ids[i] >= pl_tokenizer_n_vocab(t))
            abort();
    if (pl_tokenizer_decode(t, ids, n_ids, 0, &back, &n_back, &err) != PL_OK)
        abort();
    char *clean = pl_utf8_clean(back, n_back, NULL);
    if (!clean || pl_utf8_complete(back, n_back) > n_back)
        abort();
    free(clean);
    free(back);
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const pl_message hello = {"user", "hello 12"};
    const char *text = (const char *)data;
    pl_tokenizer *t = NULL;
    pl_error err;

    const pl_status st = pl_tokenizer_parse(&t, text, size, NULL, NULL, N_VOCAB, &err);
    if (st != PL_OK) {
        if (st != err.code || strlen(err.msg) < 5)
            abort();
        return 0;
    }
    const size_t n = size < MAX_TEXT ? size : MAX_TEXT;
    check(t, text, n, 0);
    check(t, text, n, 1);
    check(t, text + size / 2, size - size / 2 < n ? size - size / 2 : n, 1);
    int32_t *ids = NULL;
    int n_ids = 0;
    if (pl_chat_encode(t, &hello, 1, &ids, &n_ids, &err) == PL_OK)
        abort(); /* no template was given */
    pl_tokenizer_free(t);
    return 0;
}
