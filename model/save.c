/* model/save.c - write a model as a Hugging Face directory. */
#include "model/source.h"

#include "core/file.h"
#include "model/hf_config.h"
#include "model/json_file.h"
#include "model/tokenizer.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    CHUNK = 8192,      /* elements converted at a time */
    ENTRY_BYTES = 256, /* header bytes that one tensor takes, at most */
};

static int is_norm(const pl_param *p)
{
    return p->kind == PL_P_ATTN_NORM || p->kind == PL_P_FFN_NORM || p->kind == PL_P_FINAL_NORM;
}

static size_t count(const pl_param *p)
{
    return (size_t)p->rows * (size_t)p->cols;
}

static int name_order(const void *a, const void *b)
{
    const pl_param *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

/* Header with its length before it, padded with spaces to 8 bytes.  The order of tensors is that of
 * the Rust writer: by name, as all have one dtype.  Returns the bytes used. */
static size_t build_header(char *out, const pl_param **order, int n, int bf16)
{
    const size_t item = bf16 ? 2 : 4;
    char *p = out + sizeof(uint64_t);
    size_t begin = 0;

    p += sprintf(p, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int i = 0; i < n; i++) {
        const size_t end = begin + count(order[i]) * item;
        p += sprintf(
            p, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", order[i]->name, bf16 ? "BF16" : "F32");
        if (!is_norm(order[i]))
            p += sprintf(p, "%d,", order[i]->rows);
        p += sprintf(p, "%d],\"data_offsets\":[%zu,%zu]}", order[i]->cols, begin, end);
        begin = end;
    }
    *p++ = '}';
    while ((size_t)(p - out) % 8 != 0)
        *p++ = ' ';
    const uint64_t length = (uint64_t)(p - out) - sizeof length;
    memcpy(out, &length, sizeof length);
    return (size_t)(p - out);
}

/* Round n bit patterns of fp32 to bf16, nearest, ties to even. */
static void round_bf16(const uint32_t *bits, size_t n, uint16_t *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (uint16_t)((bits[i] + 0x7fff + (bits[i] >> 16 & 1)) >> 16);
}

static int has_bad_bits(const uint32_t *bits, size_t n, int bf16)
{
    /* From here up a value is infinite or NaN, or becomes infinite by rounding. */
    const uint32_t limit = bf16 ? 0x7f7f8000 : 0x7f800000;
    uint32_t bad = 0;

    for (size_t i = 0; i < n; i++)
        bad |= (bits[i] & 0x7fffffff) >= limit;
    return (int)bad;
}

static pl_status put_param(
    pl_writer *w, const pl_param *p, const float *values, int bf16, pl_error *err)
{
    uint32_t bits[CHUNK];
    uint16_t halves[CHUNK];
    pl_status st = PL_OK;

    for (size_t at = 0; at < count(p) && st == PL_OK; at += CHUNK) {
        const size_t n = count(p) - at < CHUNK ? count(p) - at : CHUNK;
        memcpy(bits, values + at, n * sizeof *bits);
        if (has_bad_bits(bits, n, bf16))
            return pl_fail(err, PL_E_NUMERIC,
                "parameter '%s' holds NaN or infinity: the model is not saved", p->name);
        if (bf16) {
            round_bf16(bits, n, halves);
            st = pl_writer_put(w, halves, n * sizeof *halves, err);
        } else {
            st = pl_writer_put(w, bits, n * sizeof *bits, err);
        }
    }
    return st;
}

static pl_status put_all(pl_writer *w, const pl_param_table *t, const float *masters, int bf16,
    const pl_param **order, pl_error *err)
{
    char *header = malloc(64 + (size_t)t->n_params * ENTRY_BYTES);

    if (header == NULL)
        return pl_fail(err, PL_E_NOMEM, "no memory for the header of model.safetensors");
    for (int i = 0; i < t->n_params; i++)
        order[i] = &t->params[i];
    qsort(order, (size_t)t->n_params, sizeof *order, name_order);
    const size_t n_header = build_header(header, order, t->n_params, bf16);
    pl_status st = pl_writer_put(w, header, n_header, err);
    free(header);
    for (int i = 0; i < t->n_params && st == PL_OK; i++)
        st = put_param(w, order[i], masters + order[i]->offset, bf16, err);
    return st;
}

static pl_status write_weights(
    const char *dir, const pl_param_table *t, const float *masters, int bf16, pl_error *err)
{
    char path[4096];
    pl_writer *w = NULL;
    pl_status st = json_file_path(path, sizeof path, dir, "model.safetensors", err);

    if (st == PL_OK)
        st = pl_writer_open(&w, path, err);
    if (st != PL_OK)
        return st;
    const pl_param **order = malloc((size_t)t->n_params * sizeof *order);
    if (order == NULL)
        st = pl_fail(err, PL_E_NOMEM, "no memory to save %d tensors", t->n_params);
    else
        st = put_all(w, t, masters, bf16, order, err);
    free(order);
    if (st == PL_OK)
        return pl_writer_commit(w, err);
    pl_writer_abort(w);
    return st;
}

pl_status pl_model_save(const char *dir, const pl_arch *a, const pl_param_table *t,
    const float *masters, int bf16, const pl_tokenizer *tok, pl_error *err)
{
    pl_status st = write_weights(dir, t, masters, bf16, err);

    if (st == PL_OK)
        st = hf_config_write(dir, a, bf16 ? "bfloat16" : "float32", err);
    if (st == PL_OK && tok != NULL)
        st = pl_tokenizer_save(tok, dir, err);
    if (st != PL_OK)
        return pl_wrap(err, st, "saving the model to '%s'", dir);
    return PL_OK;
}
