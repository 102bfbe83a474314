/* model/source.c - open a model of either kind, and read its parameters. */
#include "model/files.h"
#include "model/source_file.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int ends_with(const char *s, const char *end)
{
    const size_t n = strlen(s), n_end = strlen(end);
    return n >= n_end && strcmp(s + n - n_end, end) == 0;
}

/* Find the one .gguf of a directory without config.json. */
static pl_status find_gguf(char *out, size_t size, const char *dir, pl_error *err)
{
    DIR *d = opendir(dir);
    int n_found = 0, is_cut = 0;

    if (d == NULL)
        return pl_fail(err, PL_E_IO, "model directory '%s': %s", dir, strerror(errno));
    for (const struct dirent *e = readdir(d); e != NULL; e = readdir(d)) {
        if (e->d_name[0] == '.' || !ends_with(e->d_name, ".gguf"))
            continue;
        n_found++;
        is_cut |= snprintf(out, size, "%s/%s", dir, e->d_name) >= (int)size;
    }
    closedir(d);
    if (is_cut)
        return pl_fail(err, PL_E_NOENT, "model directory '%s': the path is too long", dir);
    if (n_found == 0)
        return pl_fail(err, PL_E_NOENT,
            "no model in directory '%s': it needs config.json with model.safetensors, or one .gguf "
            "file",
            dir);
    if (n_found > 1)
        return pl_fail(
            err, PL_E_NOENT, "directory '%s' holds %d .gguf files: name one", dir, n_found);
    return PL_OK;
}

static pl_status open_path(pl_source *s, const char *path, pl_error *err)
{
    char inner[4096];
    struct stat info;

    if (stat(path, &info) != 0) {
        if (errno != ENOENT && errno != ENOTDIR)
            return pl_fail(err, PL_E_IO, "model '%s': %s", path, strerror(errno));
        return pl_fail(err, PL_E_NOENT,
            "no model at '%s': give the path of any Llama (.gguf file or Hugging Face directory), "
            "or generate a tiny random one",
            path);
    }
    if (!S_ISDIR(info.st_mode)) {
        if (ends_with(path, ".safetensors"))
            return pl_fail(err, PL_E_FORMAT,
                "model '%s': give the directory that holds it and config.json", path);
        return source_from_gguf(s, path, err);
    }
    if (snprintf(inner, sizeof inner, "%s/config.json", path) >= (int)sizeof inner)
        return pl_fail(err, PL_E_NOENT, "model directory '%s': the path is too long", path);
    if (stat(inner, &info) == 0)
        return source_from_directory(s, path, err);
    const pl_status st = find_gguf(inner, sizeof inner, path, err);
    return st == PL_OK ? source_from_gguf(s, inner, err) : st;
}

pl_status pl_source_open(pl_source **out, const char *path, pl_error *err)
{
    pl_source *s = calloc(1, sizeof *s);
    pl_status st;

    if (s == NULL)
        return pl_fail(err, PL_E_NOMEM, "model '%s': no memory", path);
    if (snprintf(s->path, sizeof s->path, "%s", path) >= (int)sizeof s->path)
        st = pl_fail(
            err, PL_E_NOENT, "the path of the model is longer than %zu bytes", sizeof s->path - 1);
    else
        st = open_path(s, path, err);
    if (st != PL_OK) {
        pl_source_close(s);
        return st;
    }
    *out = s;
    return PL_OK;
}

void pl_source_close(pl_source *s)
{
    if (s == NULL)
        return;
    pl_param_table_free(s->table);
    free(s->tensors);
    pl_gguf_close(s->gguf);
    for (int i = 0; i < s->n_shards; i++)
        safetensors_close(s->shards[i]);
    free(s->shards);
    free(s);
}

pl_status source_make_table(pl_source *s, pl_error *err)
{
    const pl_status st = pl_param_table_new(&s->table, &s->arch, err);

    if (st != PL_OK)
        return st;
    s->tensors = calloc((size_t)s->table->n_params, sizeof *s->tensors);
    if (s->tensors == NULL)
        return pl_fail(err, PL_E_NOMEM, "no memory for %d tensors", s->table->n_params);
    return PL_OK;
}

const pl_arch *pl_source_arch(const pl_source *s)
{
    return &s->arch;
}

const pl_param_table *pl_source_params(const pl_source *s)
{
    return s->table;
}

const char *pl_source_path(const pl_source *s)
{
    return s->path;
}

const struct pl_gguf *pl_source_gguf(const pl_source *s)
{
    return s->gguf;
}

const pl_file *pl_source_file(const pl_source *s)
{
    if (s->n_shards != 1)
        return NULL;
    for (int i = 0; i < s->table->n_params; i++)
        if (s->tensors[i].type != FILES_BF16 || (uintptr_t)s->tensors[i].data % 2 != 0)
            return NULL;
    return safetensors_file(s->shards[0]);
}

/* Row of the file that holds row r of the parameter.  convert_hf_to_gguf stores the two halves of a
 * head alternately: file row 2 j + half of a head is Hugging Face row half * D / 2 + j. */
static size_t file_row(const source_tensor *t, const pl_param *p, size_t r)
{
    if (t->n_paired == 0)
        return r;
    const size_t head_dim = (size_t)(p->rows / t->n_paired), half = head_dim / 2;
    const size_t within = r % head_dim;
    return r - within + 2 * (within % half) + within / half;
}

/* Touching a mapped page beyond the end of a file is a signal, not an error code: look first. */
static pl_status check_length(
    const source_tensor *t, const pl_param *p, size_t n_bytes, pl_error *err)
{
    struct stat info;

    if (stat(t->file->path, &info) != 0)
        return PL_OK; /* removed or renamed: the mapping keeps the old file */
    if ((uint64_t)info.st_size < (uint64_t)(t->data - t->file->data) + n_bytes)
        return pl_fail(err, PL_E_IO,
            "model file '%s' became shorter while it was in use: parameter '%s' is gone",
            t->file->path, p->name);
    return PL_OK;
}

pl_status pl_source_read_rows(
    const pl_source *s, const pl_param *p, int row_begin, int n_rows, float *out, pl_error *err)
{
    const pl_param *known = pl_param_find(s->table, p->kind, p->layer);
    size_t block, block_bytes;

    if (known == NULL || known->rows != p->rows || known->cols != p->cols)
        return pl_fail(
            err, PL_E_INVAL, "model '%s' has no parameter '%s' of that shape", s->path, p->name);
    assert(row_begin >= 0 && n_rows >= 0 && row_begin + n_rows <= p->rows);
    const source_tensor *t = &s->tensors[known - s->table->params];
    const size_t cols = (size_t)p->cols;
    if (!dequant_type_block(t->type, &block, &block_bytes))
        return pl_fail(err, PL_E_INVAL, "parameter '%s' has no readable type", p->name);
    const size_t row_bytes = cols / block * block_bytes;
    if (row_begin == 0) { /* once a parameter; callers that read row by row cannot pay more */
        const pl_status st = check_length(t, p, row_bytes * (size_t)p->rows, err);
        if (st != PL_OK)
            return st;
    }
    for (size_t i = 0; i < (size_t)n_rows; i++) {
        const size_t r = (size_t)row_begin + i;
        float *row = out + i * cols;
        dequant_row(t->type, t->data + file_row(t, p, r) * row_bytes, cols, row);
        if (!dequant_is_finite(row, cols))
            return pl_fail(err, PL_E_NUMERIC,
                "model '%s': parameter '%s' holds NaN or infinity in row %zu: the file is damaged",
                s->path, p->name, r);
    }
    return PL_OK;
}

pl_status pl_source_read(const pl_source *s, const pl_param *p, float *out, pl_error *err)
{
    return pl_source_read_rows(s, p, 0, p->rows, out, err);
}
