/* model/gguf_meta.c - look-up in a parsed GGUF file: metadata by key, tensors by name. */
#include "model/gguf_file.h"

#include <string.h>

size_t gguf_type_bytes(int type)
{
    static const unsigned char bytes[GGUF_N_TYPES] = {
        [GGUF_U8] = 1,
        [GGUF_I8] = 1,
        [GGUF_U16] = 2,
        [GGUF_I16] = 2,
        [GGUF_U32] = 4,
        [GGUF_I32] = 4,
        [GGUF_F32] = 4,
        [GGUF_BOOL] = 1,
        [GGUF_U64] = 8,
        [GGUF_I64] = 8,
        [GGUF_F64] = 8,
    };
    return type >= 0 && type < GGUF_N_TYPES ? bytes[type] : 0;
}

int gguf_load_int(int type, const unsigned char *p, int64_t *value)
{
    uint64_t u = 0;

    memcpy(&u, p, gguf_type_bytes(type));
    switch (type) {
    case GGUF_U8:
    case GGUF_U16:
    case GGUF_U32:
    case GGUF_BOOL:
        break;
    case GGUF_I8:
        u = (uint64_t)(int64_t)(int8_t)u;
        break;
    case GGUF_I16:
        u = (uint64_t)(int64_t)(int16_t)u;
        break;
    case GGUF_I32:
        u = (uint64_t)(int64_t)(int32_t)u;
        break;
    case GGUF_I64:
        break;
    case GGUF_U64:
        if (u > INT64_MAX)
            return 0;
        break;
    default:
        return 0;
    }
    *value = (int64_t)u;
    return 1;
}

int gguf_key_order(const char *a, size_t n_a, const char *b, size_t n_b)
{
    const int order = memcmp(a, b, n_a < n_b ? n_a : n_b);
    if (order != 0)
        return order;
    return n_a < n_b ? -1 : n_a > n_b;
}

const gguf_pair *gguf_pair_find(const pl_gguf *g, const char *key)
{
    const size_t len = strlen(key);
    uint64_t low = 0, high = g->n_pairs;

    while (low < high) {
        const uint64_t mid = low + (high - low) / 2;
        const gguf_pair *p = &g->pairs[mid];
        const int order = gguf_key_order(p->key, p->key_len, key, len);
        if (order == 0)
            return p;
        if (order < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return NULL;
}

static const gguf_pair *find_scalar(const pl_gguf *g, const char *key)
{
    const gguf_pair *p = gguf_pair_find(g, key);
    return p != NULL && !p->is_array ? p : NULL;
}

static const gguf_pair *find_strings(const pl_gguf *g, const char *key)
{
    const gguf_pair *p = gguf_pair_find(g, key);
    return p != NULL && p->is_array && p->type == GGUF_STRING ? p : NULL;
}

/* The string whose u64 length stands at p. */
static void load_string(const unsigned char *p, const char **s, size_t *len)
{
    uint64_t n;
    memcpy(&n, p, sizeof n);
    *s = (const char *)p + sizeof n;
    *len = (size_t)n;
}

int pl_gguf_get_int(const pl_gguf *g, const char *key, int64_t *value)
{
    const gguf_pair *p = find_scalar(g, key);
    return p != NULL && gguf_load_int(p->type, p->value, value);
}

int pl_gguf_get_float(const pl_gguf *g, const char *key, double *value)
{
    const gguf_pair *p = find_scalar(g, key);
    int64_t i;
    float f;

    if (p == NULL)
        return 0;
    if (p->type == GGUF_F32) {
        memcpy(&f, p->value, sizeof f);
        *value = (double)f;
    } else if (p->type == GGUF_F64) {
        memcpy(value, p->value, sizeof *value);
    } else if (p->type != GGUF_BOOL && gguf_load_int(p->type, p->value, &i)) {
        *value = (double)i;
    } else {
        return 0;
    }
    return 1;
}

int pl_gguf_get_string(const pl_gguf *g, const char *key, const char **s, size_t *len)
{
    const gguf_pair *p = find_scalar(g, key);

    if (p == NULL || p->type != GGUF_STRING)
        return 0;
    load_string(p->value, s, len);
    return 1;
}

int pl_gguf_get_string_array(const pl_gguf *g, const char *key, uint64_t *count)
{
    const gguf_pair *p = find_strings(g, key);

    if (p == NULL)
        return 0;
    *count = p->count;
    return 1;
}

int pl_gguf_string_at(const pl_gguf *g, const char *key, uint64_t i, const char **s, size_t *len)
{
    const gguf_pair *p = find_strings(g, key);

    if (p == NULL || i >= p->count)
        return 0;
    load_string(p->texts[i], s, len);
    return 1;
}

int pl_gguf_get_int_array(const pl_gguf *g, const char *key, const int64_t **v, uint64_t *count)
{
    const gguf_pair *p = gguf_pair_find(g, key);

    if (p == NULL || !p->is_array || p->ints == NULL)
        return 0;
    *v = p->ints;
    *count = p->count;
    return 1;
}

int pl_gguf_n_tensors(const pl_gguf *g)
{
    return g->n_tensors;
}

const pl_gguf_tensor *pl_gguf_tensor_at(const pl_gguf *g, int i)
{
    return i >= 0 && i < g->n_tensors ? &g->tensors[i] : NULL;
}

const pl_gguf_tensor *pl_gguf_find(const pl_gguf *g, const char *name)
{
    int low = 0, high = g->n_tensors;

    while (low < high) {
        const int mid = low + (high - low) / 2;
        const int order = strcmp(g->by_name[mid]->name, name);
        if (order == 0)
            return g->by_name[mid];
        if (order < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return NULL;
}
