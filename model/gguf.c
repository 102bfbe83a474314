/* model/gguf.c - parse and check a GGUF v3 file.
 *
 * The file is hostile until proven otherwise: a cursor hands out bytes only after comparing with
 * what is left, counts are compared with the smallest space that their elements take, products are
 * checked.  After parsing every pointer in a pl_gguf lies inside the file.  Layout: magic "GGUF",
 * u32 version, u64 tensors, u64 pairs, the pairs, the tensor directory, padding, tensor data. */
#include "model/files.h"
#include "model/gguf_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    VERSION = 3,
    MAX_PAIRS = 65536,
    MAX_TENSORS = 65536,
    MAX_NAME = 256,       /* bytes of a tensor name; ggml itself stops at 63 */
    MIN_PAIR_BYTES = 13,  /* key length, value type, one byte */
    MIN_ENTRY_BYTES = 32, /* name length, dims count, one dim, type, offset */
    DEFAULT_ALIGNMENT = 32,
};

typedef struct reader {
    const unsigned char *data;
    size_t size, pos;
    const char *name;
    char item[FILES_QUOTE + 16]; /* ", key 'x'" or ", tensor 'y'": what is being parsed */
    pl_error *err;
} reader;

#define fail_at(r, ...)                                                                            \
    (pl_error_set((r)->err, PL_E_FORMAT, __VA_ARGS__), name_place(r), PL_E_FORMAT)

static void name_place(const reader *r)
{
    pl_error_prefix(r->err, "GGUF file '%s' at byte %zu%s", r->name, r->pos, r->item);
}

static void set_item(reader *r, const char *kind, const char *name, size_t len)
{
    char quoted[FILES_QUOTE];
    snprintf(r->item, sizeof r->item, ", %s '%s'", kind, files_quote(quoted, name, len));
}

static pl_status take(reader *r, uint64_t n, const unsigned char **p, const char *what)
{
    if (n > r->size - r->pos)
        return fail_at(r,
            "%s takes %llu bytes, %zu are left (cut off or damaged: fetch the file again)", what,
            (unsigned long long)n, r->size - r->pos);
    *p = r->data + r->pos;
    r->pos += (size_t)n;
    return PL_OK;
}

static pl_status take_u32(reader *r, uint32_t *v, const char *what)
{
    const unsigned char *p;
    const pl_status st = take(r, sizeof *v, &p, what);
    if (st == PL_OK)
        memcpy(v, p, sizeof *v);
    return st;
}

static pl_status take_u64(reader *r, uint64_t *v, const char *what)
{
    const unsigned char *p;
    const pl_status st = take(r, sizeof *v, &p, what);
    if (st == PL_OK)
        memcpy(v, p, sizeof *v);
    return st;
}

static pl_status take_string(reader *r, const char **s, size_t *len, const char *what)
{
    const unsigned char *p;
    uint64_t n;
    pl_status st = take_u64(r, &n, what);

    if (st == PL_OK)
        st = take(r, n, &p, what);
    if (st != PL_OK)
        return st;
    *s = (const char *)p;
    *len = (size_t)n;
    return PL_OK;
}

static pl_status parse_texts(reader *r, gguf_pair *pair)
{
    const char *s;
    size_t len;

    if (pair->count > (r->size - r->pos) / sizeof(uint64_t))
        return fail_at(r, "an array of %llu strings does not fit in the file",
            (unsigned long long)pair->count);
    pair->texts = malloc((size_t)pair->count * sizeof *pair->texts + 1);
    if (pair->texts == NULL)
        return pl_fail(r->err, PL_E_NOMEM, "GGUF file '%s': no memory for %llu strings", r->name,
            (unsigned long long)pair->count);
    for (uint64_t i = 0; i < pair->count; i++) {
        pair->texts[i] = r->data + r->pos;
        const pl_status st = take_string(r, &s, &len, "a string");
        if (st != PL_OK)
            return st;
    }
    return PL_OK;
}

static pl_status copy_ints(const reader *r, gguf_pair *pair)
{
    const size_t step = gguf_type_bytes(pair->type);

    pair->ints = malloc((size_t)pair->count * sizeof *pair->ints + 1);
    if (pair->ints == NULL)
        return pl_fail(r->err, PL_E_NOMEM, "GGUF file '%s': no memory for %llu integers", r->name,
            (unsigned long long)pair->count);
    for (size_t i = 0; i < pair->count; i++) {
        if (!gguf_load_int(pair->type, pair->value + i * step, &pair->ints[i]))
            return fail_at(r, "an array holds an integer above 2^63");
    }
    return PL_OK;
}

static pl_status parse_value(reader *r, gguf_pair *pair)
{
    const unsigned char *p;
    pl_status st;

    if (pair->type < 0 || pair->type >= GGUF_N_TYPES)
        return fail_at(r, "value type %d is not known", pair->type);
    if (pair->type == GGUF_ARRAY)
        return fail_at(r, "arrays of arrays are not supported");
    pair->value = r->data + r->pos;
    if (pair->type == GGUF_STRING)
        return parse_texts(r, pair);

    const size_t bytes = gguf_type_bytes(pair->type);
    if (pair->count > (r->size - r->pos) / bytes)
        return fail_at(
            r, "an array of %llu values does not fit in the file", (unsigned long long)pair->count);
    st = take(r, pair->count * bytes, &p, "a value");
    if (st == PL_OK && pair->is_array && pair->type != GGUF_F32 && pair->type != GGUF_F64)
        st = copy_ints(r, pair);
    return st;
}

static pl_status parse_pair(reader *r, gguf_pair *pair)
{
    uint32_t type = 0;
    pl_status st = take_string(r, &pair->key, &pair->key_len, "a key");

    if (st == PL_OK) {
        set_item(r, "key", pair->key, pair->key_len);
        st = take_u32(r, &type, "the type of a value");
    }
    pair->count = 1;
    if (st == PL_OK && type == GGUF_ARRAY) {
        pair->is_array = 1;
        st = take_u32(r, &type, "the type of an array");
        if (st == PL_OK)
            st = take_u64(r, &pair->count, "the length of an array");
    }
    if (st != PL_OK)
        return st;
    pair->type = type < GGUF_N_TYPES ? (int)type : GGUF_N_TYPES;
    return parse_value(r, pair);
}

static int pair_order(const void *a, const void *b)
{
    const gguf_pair *x = a, *y = b;
    return gguf_key_order(x->key, x->key_len, y->key, y->key_len);
}

static pl_status parse_pairs(pl_gguf *g, reader *r, uint64_t n_pairs)
{
    char quoted[FILES_QUOTE];

    if (n_pairs > MAX_PAIRS || n_pairs > (r->size - r->pos) / MIN_PAIR_BYTES)
        return fail_at(r, "%llu metadata keys do not fit (%zu bytes are left, %d keys are allowed)",
            (unsigned long long)n_pairs, r->size - r->pos, MAX_PAIRS);
    g->pairs = calloc((size_t)n_pairs + 1, sizeof *g->pairs);
    if (g->pairs == NULL)
        return pl_fail(r->err, PL_E_NOMEM, "GGUF file '%s': no memory for %llu keys", r->name,
            (unsigned long long)n_pairs);
    g->n_pairs = n_pairs;
    for (uint64_t i = 0; i < n_pairs; i++) {
        const pl_status st = parse_pair(r, &g->pairs[i]);
        if (st != PL_OK)
            return st;
    }
    r->item[0] = 0;
    qsort(g->pairs, (size_t)n_pairs, sizeof *g->pairs, pair_order);
    for (uint64_t i = 1; i < n_pairs; i++)
        if (pair_order(&g->pairs[i - 1], &g->pairs[i]) == 0)
            return fail_at(r, "key '%s' stands twice",
                files_quote(quoted, g->pairs[i].key, g->pairs[i].key_len));
    return PL_OK;
}

static pl_status read_alignment(pl_gguf *g, const reader *r)
{
    int64_t value = DEFAULT_ALIGNMENT;

    if (gguf_pair_find(g, "general.alignment") != NULL &&
        !pl_gguf_get_int(g, "general.alignment", &value))
        return fail_at(r, "general.alignment is no integer");
    if (value < 8 || value > 1 << 20 || (value & (value - 1)) != 0)
        return fail_at(r, "general.alignment is %lld; it must be a power of two, 8..1048576",
            (long long)value);
    g->alignment = (uint64_t)value;
    return PL_OK;
}

/* Only names that no tool could misread: these end up in messages and in other files. */
static int is_clean_name(const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        const char c = s[i];
        const int is_alnum =
            (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
        if (!is_alnum && c != '.' && c != '_' && c != '-' && c != '/')
            return 0;
    }
    return len > 0 && len <= MAX_NAME;
}

/* Dimensions and type into n_bytes. */
static pl_status measure(const reader *r, pl_gguf_tensor *t)
{
    size_t block, block_bytes, n = 1;

    for (int d = 0; d < t->n_dims; d++)
        if (t->dims[d] == 0 || !files_mul(n, (size_t)t->dims[d], &n))
            return fail_at(r, "dimension %d of %llu elements is impossible", d,
                (unsigned long long)t->dims[d]);
    if (!dequant_type_block(t->type, &block, &block_bytes))
        return fail_at(r,
            "its type %s (%d) is not supported; F32, F16, BF16, Q4_0, Q4_1 and Q8_0 are",
            dequant_type_name(t->type), t->type);
    if (t->dims[0] % block != 0)
        return fail_at(r, "rows of %llu elements cannot be of type %s (blocks of %zu)",
            (unsigned long long)t->dims[0], dequant_type_name(t->type), block);
    if (!files_mul(n / block, block_bytes, &t->n_bytes))
        return fail_at(
            r, "%zu elements of type %s do not fit in memory", n, dequant_type_name(t->type));
    return PL_OK;
}

/* One entry of the directory, its name excepted. */
static pl_status parse_tensor(reader *r, pl_gguf_tensor *t, uint64_t *offset)
{
    uint32_t n_dims = 0, type = 0;
    pl_status st = take_u32(r, &n_dims, "the number of dimensions");

    if (st != PL_OK)
        return st;
    if (n_dims < 1 || n_dims > 4)
        return fail_at(r, "%u dimensions; 1..4 are possible", n_dims);
    t->n_dims = (int)n_dims;
    for (uint32_t d = 0; d < 4; d++)
        t->dims[d] = 1;
    for (uint32_t d = 0; d < n_dims && st == PL_OK; d++)
        st = take_u64(r, &t->dims[d], "a dimension");
    if (st == PL_OK)
        st = take_u32(r, &type, "the type");
    if (st == PL_OK)
        st = take_u64(r, offset, "the offset");
    if (st != PL_OK)
        return st;
    t->type = type <= INT32_MAX ? (int)type : -1;
    return measure(r, t);
}

static int name_order(const void *a, const void *b)
{
    const pl_gguf_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static pl_status check_names(pl_gguf *g, const reader *r)
{
    qsort(g->by_name, (size_t)g->n_tensors, sizeof *g->by_name, name_order);
    for (int i = 1; i < g->n_tensors; i++)
        if (name_order(&g->by_name[i - 1], &g->by_name[i]) == 0)
            return fail_at(r, "tensor '%s' stands twice", g->by_name[i]->name);
    return PL_OK;
}

static int offset_order(const void *a, const void *b)
{
    const pl_gguf_tensor *const *x = a, *const *y = b;
    if ((*x)->data != (*y)->data)
        return (*x)->data < (*y)->data ? -1 : 1;
    return 0;
}

/* Offsets into pointers: aligned, inside the file, no two sharing a byte.  by_name serves as the
 * list that is sorted by place, and is sorted by name afterwards. */
static pl_status place_tensors(pl_gguf *g, reader *r, const uint64_t *offsets)
{
    const size_t begin = (size_t)((r->pos + g->alignment - 1) / g->alignment * g->alignment);
    const size_t room = begin <= g->size ? g->size - begin : 0;

    for (int i = 0; i < g->n_tensors; i++) {
        pl_gguf_tensor *t = &g->tensors[i];
        if (offsets[i] % g->alignment != 0)
            return fail_at(r, "tensor '%s' stands at offset %llu, no multiple of %llu", t->name,
                (unsigned long long)offsets[i], (unsigned long long)g->alignment);
        if (offsets[i] > room || t->n_bytes > room - (size_t)offsets[i])
            return fail_at(r,
                "tensor '%s' of %zu bytes at offset %llu leaves the file, whose data section has "
                "%zu bytes (cut off: fetch the file again)",
                t->name, t->n_bytes, (unsigned long long)offsets[i], room);
        t->data = g->data + begin + offsets[i];
        g->by_name[i] = t;
    }
    qsort(g->by_name, (size_t)g->n_tensors, sizeof *g->by_name, offset_order);
    for (int i = 1; i < g->n_tensors; i++)
        if (g->by_name[i - 1]->data + g->by_name[i - 1]->n_bytes > g->by_name[i]->data)
            return fail_at(
                r, "tensors '%s' and '%s' overlap", g->by_name[i - 1]->name, g->by_name[i]->name);
    return check_names(g, r);
}

static pl_status parse_directory(pl_gguf *g, reader *r, uint64_t *offsets)
{
    char quoted[FILES_QUOTE], *names = g->names;
    const char *s;
    size_t len;

    for (int i = 0; i < g->n_tensors; i++) {
        pl_status st = take_string(r, &s, &len, "a tensor name");
        if (st != PL_OK)
            return st;
        if (!is_clean_name(s, len))
            return fail_at(r,
                "tensor name '%s' has bytes outside A-Za-z0-9._/- or a length over %d",
                files_quote(quoted, s, len), MAX_NAME);
        memcpy(names, s, len);
        g->tensors[i].name = names;
        names += len + 1; /* the block was cleared: a NUL stands there */
        set_item(r, "tensor", s, len);
        st = parse_tensor(r, &g->tensors[i], &offsets[i]);
        if (st != PL_OK)
            return st;
    }
    r->item[0] = 0;
    return place_tensors(g, r, offsets);
}

static pl_status parse_tensors(pl_gguf *g, reader *r, uint64_t n_tensors)
{
    if (n_tensors > MAX_TENSORS || n_tensors > (r->size - r->pos) / MIN_ENTRY_BYTES)
        return fail_at(r, "%llu tensors do not fit (%zu bytes are left, %d tensors are allowed)",
            (unsigned long long)n_tensors, r->size - r->pos, MAX_TENSORS);
    const size_t n = (size_t)n_tensors;
    uint64_t *offsets = calloc(n + 1, sizeof *offsets);
    pl_status st;

    g->tensors = calloc(n + 1, sizeof *g->tensors);
    g->by_name = calloc(n + 1, sizeof *g->by_name);
    g->names = calloc(n + 1, MAX_NAME + 1);
    g->n_tensors = (int)n;
    if (offsets == NULL || g->tensors == NULL || g->by_name == NULL || g->names == NULL)
        st = pl_fail(r->err, PL_E_NOMEM, "GGUF file '%s': no memory for %zu tensors", r->name, n);
    else
        st = parse_directory(g, r, offsets);
    free(offsets);
    return st;
}

static pl_status parse_head(reader *r, uint64_t *n_tensors, uint64_t *n_pairs)
{
    const unsigned char *p;
    uint32_t version = 0;
    pl_status st = take(r, 4, &p, "the magic");

    if (st != PL_OK)
        return st;
    if (memcmp(p, "GGUF", 4) != 0) {
        r->pos = 0;
        return fail_at(r, "it does not begin with the letters GGUF: it is another kind of file");
    }
    st = take_u32(r, &version, "the version");
    if (st == PL_OK && version == (uint32_t)VERSION << 24)
        st = fail_at(r, "the file is big endian; convert it for this machine");
    if (st == PL_OK && version != VERSION)
        st = fail_at(
            r, "version %u; only version %d is read: convert the file again", version, VERSION);
    if (st == PL_OK)
        st = take_u64(r, n_tensors, "the number of tensors");
    if (st == PL_OK)
        st = take_u64(r, n_pairs, "the number of keys");
    return st;
}

static pl_status parse(pl_gguf *g, reader *r)
{
    uint64_t n_tensors = 0, n_pairs = 0;
    pl_status st = parse_head(r, &n_tensors, &n_pairs);

    if (st == PL_OK)
        st = parse_pairs(g, r, n_pairs);
    if (st == PL_OK)
        st = read_alignment(g, r);
    if (st == PL_OK)
        st = parse_tensors(g, r, n_tensors);
    return st;
}

pl_status pl_gguf_parse(
    pl_gguf **out, const void *data, size_t size, const char *name, pl_error *err)
{
    reader r = {.data = data, .size = size, .name = name, .err = err};
    pl_gguf *g = calloc(1, sizeof *g);

    if (g == NULL)
        return pl_fail(err, PL_E_NOMEM, "GGUF file '%s': no memory", name);
    g->data = data;
    g->size = size;
    const pl_status st = parse(g, &r);
    if (st != PL_OK) {
        pl_gguf_close(g);
        return st;
    }
    *out = g;
    return PL_OK;
}

pl_status pl_gguf_open(pl_gguf **out, const char *path, pl_error *err)
{
    pl_file file = {0};
    pl_status st = pl_file_open(&file, path, err);

    if (st != PL_OK)
        return st;
    st = pl_gguf_parse(out, file.data, file.size, path, err);
    if (st == PL_OK)
        (*out)->file = file;
    else
        pl_file_close(&file);
    return st;
}

void pl_gguf_close(pl_gguf *g)
{
    if (g == NULL)
        return;
    for (uint64_t i = 0; i < g->n_pairs; i++) {
        free(g->pairs[i].texts);
        free(g->pairs[i].ints);
    }
    free(g->pairs);
    free(g->tensors);
    free(g->by_name);
    free(g->names);
    pl_file_close(&g->file);
    free(g);
}
