/* tests/fuzz/fuzz_safetensors.c - any bytes as a safetensors file: refused with a sentence, or
 * every tensor lies inside the input and together they fill it. */
#include "model/safetensors.h"

#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    safetensors *f = NULL;
    pl_error err = {0};
    size_t sum = 0;

    if (safetensors_parse(&f, data, size, "fuzz", &err) != PL_OK) {
        if (err.msg[0] == 0)
            abort();
        return 0;
    }
    for (int i = 0; i < safetensors_count(f); i++) {
        const safetensors_tensor *t = safetensors_at(f, i);
        if (t->data < data || t->data + t->n_bytes > data + size)
            abort();
        if (safetensors_find(f, t->name) != t)
            abort();
        sum += t->n_bytes;
    }
    if (sum > size - 8)
        abort();
    safetensors_close(f);
    return 0;
}
