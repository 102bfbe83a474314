/* model/source_hf.c - a Llama in a Hugging Face directory: config.json, and safetensors in one file
 * or in shards named by an index. */
#include "model/files.h"
#include "model/hf_config.h"
#include "model/json_file.h"
#include "model/source_file.h"

#include "core/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_INDEX = 64 << 20, /* bytes of model.safetensors.index.json */
    MAX_SHARDS = 1024,
};

#define INDEX "model.safetensors.index.json"

/* The last part of a path. */
static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

/* The index may name files of its own directory only. */
static int is_shard_name(const char *s)
{
    const size_t n = strlen(s), n_end = strlen(".safetensors");

    return n > n_end && n < 256 && s[0] != '.' && strchr(s, '/') == NULL &&
           strcmp(s + n - n_end, ".safetensors") == 0;
}

static pl_status open_shard(pl_source *s, const char *dir, const char *name, pl_error *err)
{
    char path[4096];
    pl_status st = json_file_path(path, sizeof path, dir, name, err);

    for (int i = 0; i < s->n_shards; i++)
        if (strcmp(base_name(safetensors_name(s->shards[i])), name) == 0)
            return PL_OK;
    if (st == PL_OK && s->n_shards == MAX_SHARDS)
        return pl_fail(err, PL_E_FORMAT, "more than %d shards", MAX_SHARDS);
    if (st == PL_OK)
        st = safetensors_open(&s->shards[s->n_shards], path, err);
    if (st == PL_OK)
        s->n_shards++;
    return st;
}

static pl_status open_shards(pl_source *s, const char *dir, json_t *map, pl_error *err)
{
    char quoted[FILES_QUOTE];
    pl_status st = PL_OK;

    if (!json_is_object(map) || json_object_size(map) == 0)
        return pl_fail(err, PL_E_FORMAT, "'%s/%s' has no weight_map", dir, INDEX);
    for (void *it = json_object_iter(map); it != NULL && st == PL_OK;
         it = json_object_iter_next(map, it)) {
        const char *shard = json_string_value(json_object_iter_value(it));
        if (shard == NULL || !is_shard_name(shard))
            return pl_fail(err, PL_E_FORMAT,
                "'%s/%s' names the shard '%s', which is no plain .safetensors file name", dir,
                INDEX, files_quote(quoted, shard != NULL ? shard : "", shard ? strlen(shard) : 0));
        st = open_shard(s, dir, shard, err);
    }
    return st;
}

/* Index and shards must say the same: every tensor in the shard that the index names, and in no
 * other. */
static pl_status check_index(const pl_source *s, const json_t *map, pl_error *err)
{
    size_t n_tensors = 0;

    for (int i = 0; i < s->n_shards; i++) {
        const char *shard = base_name(safetensors_name(s->shards[i]));
        n_tensors += (size_t)safetensors_count(s->shards[i]);
        for (int k = 0; k < safetensors_count(s->shards[i]); k++) {
            const char *name = safetensors_at(s->shards[i], k)->name;
            const char *named = json_string_value(json_object_get(map, name));
            if (named == NULL || strcmp(named, shard) != 0)
                return pl_fail(err, PL_E_SHAPE, "tensor '%s' is in shard '%s', the index %s", name,
                    shard, named == NULL ? "does not know it" : "puts it elsewhere");
        }
    }
    if (n_tensors != json_object_size(map))
        return pl_fail(err, PL_E_SHAPE, "the index names %zu tensors, the shards hold %zu",
            json_object_size(map), n_tensors);
    return PL_OK;
}

static pl_status open_indexed(pl_source *s, const char *dir, pl_error *err)
{
    json_t *index = NULL;
    pl_status st = json_file_read(&index, dir, INDEX, MAX_INDEX, err);

    if (st != PL_OK)
        return st;
    json_t *map = json_object_get(index, "weight_map");
    st = open_shards(s, dir, map, err);
    if (st == PL_OK)
        st = check_index(s, map, err);
    json_decref(index);
    return st;
}

static pl_status open_files(pl_source *s, const char *dir, pl_error *err)
{
    char path[4096];
    pl_status st = json_file_path(path, sizeof path, dir, INDEX, err);

    if (st != PL_OK)
        return st;
    const int has_index = pl_path_exists(path);
    st = json_file_path(path, sizeof path, dir, "model.safetensors", err);
    if (st != PL_OK)
        return st;
    const int has_single = pl_path_exists(path);
    if (!has_single && !has_index)
        return pl_fail(err, PL_E_NOENT,
            "directory '%s' has config.json, but neither model.safetensors nor %s: fetch the "
            "weights, or convert them to safetensors",
            dir, INDEX);
    s->shards = calloc(MAX_SHARDS, sizeof *s->shards);
    if (s->shards == NULL)
        return pl_fail(err, PL_E_NOMEM, "no memory for %d shards", MAX_SHARDS);
    return has_single ? open_shard(s, dir, "model.safetensors", err) : open_indexed(s, dir, err);
}

static const safetensors_tensor *find(
    const pl_source *s, const char *name, const safetensors **shard)
{
    for (int i = 0; i < s->n_shards; i++) {
        const safetensors_tensor *t = safetensors_find(s->shards[i], name);
        *shard = s->shards[i];
        if (t != NULL)
            return t;
    }
    return NULL;
}

static pl_status bind(pl_source *s, int i, pl_error *err)
{
    const pl_param *p = &s->table->params[i];
    const safetensors *shard = NULL;
    const safetensors_tensor *t = find(s, p->name, &shard);
    const int is_norm =
        p->kind == PL_P_ATTN_NORM || p->kind == PL_P_FFN_NORM || p->kind == PL_P_FINAL_NORM;

    if (t == NULL)
        return pl_fail(err, PL_E_SHAPE, "tensor '%s' is missing", p->name);
    if (t->type < 0)
        return pl_fail(err, PL_E_FORMAT,
            "tensor '%s' has dtype %s; F32, F16 and BF16 are supported", p->name, t->dtype);
    const int fits = is_norm ? t->n_dims == 1 && t->dims[0] == (uint64_t)p->cols
                             : t->n_dims == 2 && t->dims[0] == (uint64_t)p->rows &&
                                   t->dims[1] == (uint64_t)p->cols;
    if (!fits)
        return pl_fail(err, PL_E_SHAPE,
            "tensor '%s' has %d dimensions, the first %llu x %llu; config.json needs %d x %d",
            p->name, t->n_dims, (unsigned long long)t->dims[0], (unsigned long long)t->dims[1],
            p->rows, p->cols);
    s->tensors[i].type = t->type;
    s->tensors[i].data = t->data;
    s->tensors[i].file = safetensors_file(shard);
    return PL_OK;
}

/* Buffers that old files carry, and the head of a tied model, which transformers ignores too. */
static int is_tolerated(const pl_source *s, const char *name)
{
    static const char end[] = "rotary_emb.inv_freq";
    const size_t n = strlen(name), n_end = sizeof end - 1;

    if (s->arch.tied && strcmp(name, "lm_head.weight") == 0)
        return 1;
    return n >= n_end && strcmp(name + n - n_end, end) == 0;
}

static int is_param(const pl_source *s, const char *name)
{
    for (int i = 0; i < s->table->n_params; i++)
        if (strcmp(s->table->params[i].name, name) == 0)
            return 1;
    return 0;
}

static pl_status check_strangers(const pl_source *s, pl_error *err)
{
    int n_rest = -s->table->n_params;

    for (int i = 0; i < s->n_shards; i++)
        for (int k = 0; k < safetensors_count(s->shards[i]); k++)
            n_rest += !is_tolerated(s, safetensors_at(s->shards[i], k)->name);
    if (n_rest == 0)
        return PL_OK;
    for (int i = 0; i < s->n_shards; i++) {
        for (int k = 0; k < safetensors_count(s->shards[i]); k++) {
            const char *name = safetensors_at(s->shards[i], k)->name;
            if (!is_tolerated(s, name) && !is_param(s, name))
                return pl_fail(
                    err, PL_E_SHAPE, "tensor '%s' belongs to no Llama of this shape", name);
        }
    }
    return PL_OK;
}

pl_status source_from_directory(pl_source *s, const char *dir, pl_error *err)
{
    pl_status st = hf_config_read(&s->arch, dir, err);

    if (st != PL_OK)
        return st;
    st = open_files(s, dir, err);
    if (st != PL_OK)
        return st;
    st = source_make_table(s, err);
    for (int i = 0; st == PL_OK && i < s->table->n_params; i++)
        st = bind(s, i, err);
    if (st == PL_OK)
        st = check_strangers(s, err);
    if (st != PL_OK)
        pl_error_prefix(err, "model '%s'", dir);
    return st;
}
