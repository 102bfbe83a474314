/* model/safetensors.c - parse and check a safetensors file: u64 length of the header, a JSON header
 * that maps names to dtype, shape and [begin, end), and the data, without holes or overlap. */
#include "model/safetensors.h"

#include "model/files.h"
#include "model/json_file.h"

#include <stdlib.h>
#include <string.h>

enum {
    MAX_HEADER = 16 << 20, /* bytes; the format allows 100 MB, a model needs some hundred KB */
    MAX_TENSORS = 65536,
    MAX_NAME = 256,
    MAX_DEPTH = 8,
};

struct safetensors {
    pl_file file; /* zero when parsed from memory */
    char *name;
    json_t *header; /* owns the names */
    int n_tensors;
    safetensors_tensor *tensors;  /* by place */
    safetensors_tensor **by_name; /* sorted */
};

static const struct {
    const char *name;
    unsigned n_bytes;
    int type;
} dtypes[] = {
    {"F32", 4, FILES_F32},
    {"F16", 2, FILES_F16},
    {"BF16", 2, FILES_BF16},
    {"BOOL", 1, -1},
    {"U8", 1, -1},
    {"I8", 1, -1},
    {"F8_E4M3", 1, -1},
    {"F8_E5M2", 1, -1},
    {"U16", 2, -1},
    {"I16", 2, -1},
    {"U32", 4, -1},
    {"I32", 4, -1},
    {"U64", 8, -1},
    {"I64", 8, -1},
    {"F64", 8, -1},
};

/* The file being parsed and the tensor at hand, for messages. */
typedef struct context {
    const char *file;
    const char *tensor; /* "" between tensors */
    pl_error *err;
} context;

#define fail_in(c, ...)                                                                            \
    (pl_error_set((c)->err, PL_E_FORMAT, __VA_ARGS__), name_place(c), PL_E_FORMAT)

static void name_place(const context *c)
{
    char quoted[FILES_QUOTE];

    if (c->tensor[0] != 0)
        pl_error_prefix(c->err, "safetensors file '%s', tensor '%s'", c->file,
            files_quote(quoted, c->tensor, strlen(c->tensor)));
    else
        pl_error_prefix(c->err, "safetensors file '%s'", c->file);
}

static int is_clean_name(const char *s)
{
    const size_t len =
        strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._/-");
    return len > 0 && len <= MAX_NAME && s[len] == 0 && strstr(s, "..") == NULL;
}

/* A JSON integer >= 0. */
static int get_u64(const json_t *v, uint64_t *out)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return 0;
    *out = (uint64_t)json_integer_value(v);
    return 1;
}

static pl_status read_dtype(
    const context *c, const json_t *v, safetensors_tensor *t, unsigned *n_bytes)
{
    char quoted[FILES_QUOTE];
    const char *name = json_string_value(v);

    if (name == NULL)
        return fail_in(c, "dtype is missing or no string");
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        if (strcmp(name, dtypes[i].name) == 0) {
            t->dtype = dtypes[i].name;
            t->type = dtypes[i].type;
            *n_bytes = dtypes[i].n_bytes;
            return PL_OK;
        }
    }
    return fail_in(c, "dtype '%s' is not known; models have F32, F16 or BF16",
        files_quote(quoted, name, strlen(name)));
}

static pl_status read_shape(const context *c, const json_t *v, safetensors_tensor *t, size_t *n)
{
    if (!json_is_array(v))
        return fail_in(c, "shape is missing or no list");
    if (json_array_size(v) > SAFETENSORS_MAX_DIMS)
        return fail_in(
            c, "%zu dimensions; at most %d are possible", json_array_size(v), SAFETENSORS_MAX_DIMS);
    t->n_dims = (int)json_array_size(v);
    for (int d = 0; d < t->n_dims; d++) {
        if (!get_u64(json_array_get(v, (size_t)d), &t->dims[d]))
            return fail_in(c, "dimension %d is no whole number >= 0", d);
        if (!files_mul(*n, (size_t)t->dims[d], n))
            return fail_in(c, "the product of its dimensions exceeds 64 bits");
    }
    return PL_OK;
}

/* begin and end are relative to the data, which holds n_data bytes. */
static pl_status read_tensor(const context *c, const json_t *info, const unsigned char *data,
    size_t n_data, safetensors_tensor *t)
{
    const json_t *offsets = json_object_get(info, "data_offsets");
    uint64_t begin, end;
    unsigned item_bytes = 0;
    size_t n = 1;

    t->name = c->tensor;
    if (!is_clean_name(t->name))
        return fail_in(
            c, "the name has bytes outside A-Za-z0-9._/-, '..' or a length over %d", MAX_NAME);
    if (!json_is_object(info))
        return fail_in(c, "its entry is no JSON object");
    pl_status st = read_dtype(c, json_object_get(info, "dtype"), t, &item_bytes);
    if (st == PL_OK)
        st = read_shape(c, json_object_get(info, "shape"), t, &n);
    if (st != PL_OK)
        return st;
    if (!files_mul(n, item_bytes, &n))
        return fail_in(c, "the product of its dimensions exceeds 64 bits");
    if (json_array_size(offsets) != 2 || !get_u64(json_array_get(offsets, 0), &begin) ||
        !get_u64(json_array_get(offsets, 1), &end))
        return fail_in(c, "data_offsets is no pair of whole numbers");
    if (begin > end || end > n_data)
        return fail_in(c, "data_offsets %llu..%llu leave the %zu bytes of data (cut off?)",
            (unsigned long long)begin, (unsigned long long)end, n_data);
    if (end - begin != n)
        return fail_in(c, "shape and dtype need %zu bytes, data_offsets span %llu", n,
            (unsigned long long)(end - begin));
    t->data = data + begin;
    t->n_bytes = n;
    return PL_OK;
}

static int place_order(const void *a, const void *b)
{
    const safetensors_tensor *x = a, *y = b;

    if (x->data != y->data)
        return x->data < y->data ? -1 : 1;
    if (x->n_bytes != y->n_bytes) /* empty tensors stand before the one at the same place */
        return x->n_bytes < y->n_bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int name_order(const void *a, const void *b)
{
    const safetensors_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static pl_status check_places(safetensors *f, context *c, const unsigned char *data, size_t n_data)
{
    const unsigned char *next = data;

    qsort(f->tensors, (size_t)f->n_tensors, sizeof *f->tensors, place_order);
    for (int i = 0; i < f->n_tensors; i++) {
        const safetensors_tensor *t = &f->tensors[i];
        c->tensor = t->name;
        if (t->data != next)
            return fail_in(c, "its data %s the tensor before it",
                t->data < next ? "overlaps" : "leaves a hole after");
        next += t->n_bytes;
        f->by_name[i] = &f->tensors[i];
    }
    c->tensor = "";
    if (next != data + n_data)
        return fail_in(c, "%zu bytes stand after the last tensor", (size_t)(data + n_data - next));
    qsort(f->by_name, (size_t)f->n_tensors, sizeof *f->by_name, name_order);
    return PL_OK;
}

static pl_status check_metadata(const context *c, const json_t *v)
{
    void *it = json_object_iter((json_t *)v);

    if (!json_is_object(v))
        return fail_in(c, "__metadata__ is no JSON object");
    for (; it != NULL; it = json_object_iter_next((json_t *)v, it))
        if (!json_is_string(json_object_iter_value(it)))
            return fail_in(c, "__metadata__ holds something else than strings");
    return PL_OK;
}

static pl_status read_header(safetensors *f, context *c, const unsigned char *data, size_t n_data)
{
    const size_t n = json_object_size(f->header);

    if (!json_is_object(f->header))
        return fail_in(c, "the header is no JSON object");
    if (n > MAX_TENSORS)
        return fail_in(c, "%zu tensors; at most %d are read", n, MAX_TENSORS);
    f->tensors = calloc(n + 1, sizeof *f->tensors);
    f->by_name = calloc(n + 1, sizeof *f->by_name);
    if (f->tensors == NULL || f->by_name == NULL)
        return pl_fail(
            c->err, PL_E_NOMEM, "safetensors file '%s': no memory for %zu tensors", c->file, n);
    for (void *it = json_object_iter(f->header); it != NULL;
         it = json_object_iter_next(f->header, it)) {
        const json_t *info = json_object_iter_value(it);
        pl_status st;
        c->tensor = json_object_iter_key(it);
        if (strcmp(c->tensor, "__metadata__") == 0)
            st = check_metadata(c, info);
        else
            st = read_tensor(c, info, data, n_data, &f->tensors[f->n_tensors++]);
        if (st != PL_OK)
            return st;
    }
    c->tensor = "";
    return check_places(f, c, data, n_data);
}

static pl_status parse(safetensors *f, context *c, const unsigned char *data, size_t size)
{
    uint64_t n_header;

    if (size < sizeof n_header)
        return fail_in(c, "%zu bytes are no safetensors file", size);
    memcpy(&n_header, data, sizeof n_header);
    if (n_header > MAX_HEADER)
        return fail_in(c, "a header of %llu bytes; at most %d are read",
            (unsigned long long)n_header, MAX_HEADER);
    if (n_header > size - sizeof n_header)
        return fail_in(c, "a header of %llu bytes in a file of %zu (cut off: fetch it again)",
            (unsigned long long)n_header, size);
    const char *text = (const char *)data + sizeof n_header;
    if (n_header == 0 || text[0] != '{')
        return fail_in(c, "the header does not begin with '{'");
    const pl_status st =
        json_file_parse(&f->header, text, (size_t)n_header, MAX_DEPTH, "header", c->err);
    if (st != PL_OK)
        return pl_wrap(c->err, st, "safetensors file '%s'", c->file);
    const size_t n_before = sizeof n_header + (size_t)n_header;
    return read_header(f, c, data + n_before, size - n_before);
}

pl_status safetensors_parse(
    safetensors **out, const void *data, size_t size, const char *name, pl_error *err)
{
    context c = {.file = name, .tensor = "", .err = err};
    safetensors *f = calloc(1, sizeof *f);

    if (f != NULL)
        f->name = strdup(name);
    if (f == NULL || f->name == NULL) {
        free(f);
        return pl_fail(err, PL_E_NOMEM, "safetensors file '%s': no memory", name);
    }
    const pl_status st = parse(f, &c, data, size);
    if (st != PL_OK) {
        safetensors_close(f);
        return st;
    }
    *out = f;
    return PL_OK;
}

pl_status safetensors_open(safetensors **out, const char *path, pl_error *err)
{
    pl_file file = {0};
    pl_status st = pl_file_open(&file, path, err);

    if (st != PL_OK)
        return st;
    st = safetensors_parse(out, file.data, file.size, path, err);
    if (st == PL_OK)
        (*out)->file = file;
    else
        pl_file_close(&file);
    return st;
}

void safetensors_close(safetensors *f)
{
    if (f == NULL)
        return;
    free(f->tensors);
    free(f->by_name);
    json_decref(f->header);
    free(f->name);
    pl_file_close(&f->file);
    free(f);
}

int safetensors_count(const safetensors *f)
{
    return f->n_tensors;
}

const safetensors_tensor *safetensors_at(const safetensors *f, int i)
{
    return i >= 0 && i < f->n_tensors ? &f->tensors[i] : NULL;
}

const safetensors_tensor *safetensors_find(const safetensors *f, const char *name)
{
    int low = 0, high = f->n_tensors;

    while (low < high) {
        const int mid = low + (high - low) / 2;
        const int order = strcmp(f->by_name[mid]->name, name);
        if (order == 0)
            return f->by_name[mid];
        if (order < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return NULL;
}

const char *safetensors_name(const safetensors *f)
{
    return f->name;
}

const pl_file *safetensors_file(const safetensors *f)
{
    return &f->file;
}
