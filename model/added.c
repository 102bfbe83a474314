/* model/added.c - added tokens ("<|im_end|>"): finding the longest one at a place of a text.
 *
 * The tokens are sorted by their bytes, so those that share a prefix are neighbours: a match
 * narrows a range byte by byte, which is a trie without nodes.  At most BPE_MAX_ADDED_TEXT steps a
 * place. */
#include "model/bpe.h"

#include <stdlib.h>
#include <string.h>

/* Compare the texts of two ids. */
static int compare(const pl_tokenizer *t, int32_t a, int32_t b)
{
    const bpe_token *x = &t->tokens[a], *y = &t->tokens[b];
    const uint32_t n = x->n_bytes < y->n_bytes ? x->n_bytes : y->n_bytes;
    const int order = memcmp(t->bytes + x->offset, t->bytes + y->offset, n);
    return order ? order : (x->n_bytes > y->n_bytes) - (x->n_bytes < y->n_bytes);
}

/* Merge sort: qsort would need the tokenizer in a global. */
static void sort(const pl_tokenizer *t, int32_t *v, int32_t *scratch, int n)
{
    if (n < 2)
        return;
    const int half = n / 2;
    sort(t, v, scratch, half);
    sort(t, v + half, scratch, n - half);
    memcpy(scratch, v, (size_t)n * sizeof *v);
    for (int k = 0, i = 0, j = half; k < n; k++) {
        const int take_left = j == n || (i < half && compare(t, scratch[i], scratch[j]) <= 0);
        v[k] = take_left ? scratch[i++] : scratch[j++];
    }
}

static unsigned char byte_at(const pl_tokenizer *t, int32_t id, uint32_t i)
{
    return (unsigned char)t->bytes[t->tokens[id].offset + i];
}

pl_status bpe_build_added(pl_tokenizer *t, pl_error *err)
{
    pl_status st = PL_OK;
    int32_t *scratch = malloc(((size_t)t->n_added + 1) * sizeof *scratch);
    for (int set = 0; set < 2; set++)
        t->added[set].ids = malloc(((size_t)t->n_added + 1) * sizeof *scratch);
    if (!scratch || !t->added[0].ids || !t->added[1].ids) {
        st = pl_fail(err, PL_E_NOMEM, "tokenizer: %d added tokens", t->n_added);
        goto done;
    }
    for (int32_t id = 0; id < t->n_tokens; id++)
        if (t->tokens[id].flags & BPE_ADDED) {
            bpe_added *a = &t->added[(t->tokens[id].flags & BPE_NORMALIZED) != 0];
            a->ids[a->n++] = id;
        }
    for (int set = 0; set < 2; set++) {
        bpe_added *a = &t->added[set];
        sort(t, a->ids, scratch, a->n);
        for (int i = 1; i < a->n; i++)
            if (compare(t, a->ids[i - 1], a->ids[i]) == 0) {
                st = pl_fail(err, PL_E_FORMAT, "added tokens %d and %d are the same", a->ids[i - 1],
                    a->ids[i]);
                goto done;
            }
        for (int b = 0, i = 0; b <= 256; b++) {
            while (i < a->n && byte_at(t, a->ids[i], 0) < b)
                i++;
            a->begin[b] = i;
        }
    }
done:
    free(scratch);
    return st;
}

/* First place in [low, high) whose byte number i is at least b. */
static int lower(const pl_tokenizer *t, const int32_t *ids, int low, int high, uint32_t i, int b)
{
    while (low < high) {
        const int mid = low + (high - low) / 2;
        if (byte_at(t, ids[mid], i) < b)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

size_t bpe_match_added(const pl_tokenizer *t, int set, const char *s, size_t n, int32_t *id)
{
    const bpe_added *a = &t->added[set];
    const unsigned char *u = (const unsigned char *)s;
    int low = a->begin[u[0]], high = a->begin[u[0] + 1];
    size_t found = 0;

    for (uint32_t i = 1; low < high; i++) {
        /* All of [low, high) share i bytes with s; the shortest, if it ends here, comes first. */
        if (t->tokens[a->ids[low]].n_bytes == i) {
            found = i;
            *id = a->ids[low++];
        }
        if (i == n)
            break;
        low = lower(t, a->ids, low, high, i, u[i]);
        high = lower(t, a->ids, low, high, i, u[i] + 1);
    }
    return found;
}
