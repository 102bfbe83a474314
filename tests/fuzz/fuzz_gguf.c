/* tests/fuzz/fuzz_gguf.c - any bytes as a GGUF file: refused with a sentence, or every string and
 * tensor that it yields lies inside the input. */
#include "model/gguf.h"

#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Read the first and last byte; a pointer outside the input is caught by the sanitizer. */
static void touch(const void *p, size_t n)
{
    const volatile unsigned char *bytes = p;
    if (n > 0 && (unsigned)bytes[0] + bytes[n - 1] > 510)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const keys[] = {
        "a", "tokens", "general.architecture", "tokenizer.ggml.tokens", "general.alignment"};
    pl_gguf *g = NULL;
    pl_error err = {0};

    if (pl_gguf_parse(&g, data, size, "fuzz", &err) != PL_OK) {
        if (err.msg[0] == 0)
            abort();
        return 0;
    }
    for (int i = 0; i < pl_gguf_n_tensors(g); i++) {
        const pl_gguf_tensor *t = pl_gguf_tensor_at(g, i);
        touch(t->data, t->n_bytes);
        if (pl_gguf_find(g, t->name) != t)
            abort();
    }
    for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++) {
        const int64_t *v;
        const char *s;
        uint64_t n = 0;
        size_t len;
        if (pl_gguf_get_string(g, keys[k], &s, &len))
            touch(s, len);
        if (pl_gguf_get_int_array(g, keys[k], &v, &n))
            touch(v, n * sizeof *v);
        n = 0;
        pl_gguf_get_string_array(g, keys[k], &n);
        for (uint64_t i = 0; i < n; i++)
            if (pl_gguf_string_at(g, keys[k], i, &s, &len))
                touch(s, len);
    }
    pl_gguf_close(g);
    return 0;
}
