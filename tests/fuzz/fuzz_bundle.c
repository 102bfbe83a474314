/* tests/fuzz/fuzz_bundle.c - the table of a bundle from any bytes.  The first two bytes are added
 * to the length that the file claims, so that tables without their files are reached too.  What is
 * accepted has plain names in rising order, and files that fill the bundle exactly. */
#include "ipc/channel_internal.h"

#include <stdlib.h>
#include <string.h>

static void must(int is_true)
{
    if (!is_true)
        abort();
}

static void check_entry(const bundle_table *t, int i)
{
    const bundle_entry *e = &t->files[i];
    const size_t n = strlen(e->name);

    must(n >= 1 && n <= BUNDLE_NAME_MAX && e->name[0] != '.');
    for (size_t k = 0; k < n; k++)
        must((unsigned char)e->name[k] < 0x7f && e->name[k] > ' ' && e->name[k] != '/');
    must(n < 12 || strcmp(e->name + n - 12, ".safetensors") != 0);
    must(strcmp(e->name, PL_BUNDLE_FILE) != 0);
    must(e->n_bytes <= BUNDLE_FILE_BYTES_MAX);
    must(i == 0 || strcmp(t->files[i - 1].name, e->name) < 0);
    must(i == 0 || e->offset == t->files[i - 1].offset + t->files[i - 1].n_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    pl_error err = {0};

    if (size < 2)
        return 0;
    const size_t n = size - 2;
    const uint64_t n_file = n + ((uint64_t)data[0] << 16 | (uint64_t)data[1] << 4);
    unsigned char *head = malloc(n > 0 ? n : 1); /* of exactly this size, for ASan */
    bundle_table *t = malloc(sizeof *t);
    must(head && t);
    memcpy(head, data + 2, n);
    const pl_status st = bundle_parse(t, head, n, n_file, &err);
    must(st == PL_OK || (st == PL_E_FORMAT && err.msg[0] != 0));
    if (st == PL_OK) {
        for (int i = 0; i < t->n; i++)
            check_entry(t, i);
        const bundle_entry *last = t->n > 0 ? &t->files[t->n - 1] : NULL;
        must(n_file == (last ? last->offset + last->n_bytes : 12));
    }
    free(t);
    free(head);
    return 0;
}
