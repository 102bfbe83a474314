/* model/hf_config.c - config.json of a Hugging Face Llama into a pl_arch, and back.
 *
 * Keys that change what the model computes and are not supported are refused by name; others are
 * ignored, as transformers does. */
#include "model/hf_config.h"

#include "core/file.h"
#include "model/files.h"
#include "model/json_file.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CONFIG = 4 << 20 }; /* bytes of a config file */

/* null counts as missing. */
static const json_t *get(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return json_is_null(v) ? NULL : v;
}

/* An integer >= 0; a missing key leaves *value alone unless it is needed. */
static pl_status get_int(const json_t *o, const char *key, int is_needed, int *value, pl_error *err)
{
    const json_t *v = get(o, key);

    if (v == NULL && !is_needed)
        return PL_OK;
    if (v == NULL)
        return pl_fail(err, PL_E_FORMAT, "key '%s' is missing", key);
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > INT32_MAX)
        return pl_fail(err, PL_E_FORMAT, "key '%s' is no whole number of 0 or more", key);
    *value = (int)json_integer_value(v);
    return PL_OK;
}

static pl_status get_double(
    const json_t *o, const char *key, int is_needed, double *value, pl_error *err)
{
    const json_t *v = get(o, key);

    if (v == NULL && !is_needed)
        return PL_OK;
    if (v == NULL)
        return pl_fail(err, PL_E_FORMAT, "key '%s' is missing", key);
    if (!json_is_number(v))
        return pl_fail(err, PL_E_FORMAT, "key '%s' is no number", key);
    *value = json_number_value(v);
    return PL_OK;
}

/* A key that must be absent, null or equal to word. */
static pl_status need_text(
    const json_t *o, const char *key, const char *word, int is_needed, pl_error *err)
{
    char quoted[FILES_QUOTE];
    const json_t *v = get(o, key);
    const char *have = json_string_value(v);

    if (v == NULL && !is_needed)
        return PL_OK;
    if (have == NULL)
        return pl_fail(err, PL_E_FORMAT, "key '%s' is missing or no string", key);
    if (strcmp(have, word) != 0)
        return pl_fail(err, PL_E_FORMAT, "%s '%s' is not supported; only '%s' is", key,
            files_quote(quoted, have, strlen(have)), word);
    return PL_OK;
}

static pl_status check_kind(const json_t *o, pl_error *err)
{
    static const char *const unsupported[] = {"attention_bias", "mlp_bias", "rope_interleaved"};
    const json_t *list = get(o, "architectures");
    pl_status st = need_text(o, "model_type", "llama", 1, err);

    if (st == PL_OK)
        st = need_text(o, "hidden_act", "silu", 0, err);
    if (st != PL_OK)
        return st;
    if (list != NULL) {
        const char *first = json_string_value(json_array_get(list, 0));
        if (json_array_size(list) != 1 || first == NULL || strcmp(first, "LlamaForCausalLM") != 0)
            return pl_fail(
                err, PL_E_FORMAT, "architectures must be [\"LlamaForCausalLM\"], it is not");
    }
    for (size_t i = 0; i < sizeof unsupported / sizeof unsupported[0]; i++)
        if (json_is_true(get(o, unsupported[i])))
            return pl_fail(err, PL_E_FORMAT, "%s is true, which is not supported", unsupported[i]);
    if (get(o, "quantization_config") != NULL)
        return pl_fail(err, PL_E_FORMAT,
            "the weights are quantized (quantization_config), which is supported in GGUF only");
    return PL_OK;
}

static pl_status read_sizes(const json_t *o, pl_arch *a, pl_error *err)
{
    pl_status st = get_int(o, "hidden_size", 1, &a->n_embd, err);

    if (st == PL_OK)
        st = get_int(o, "intermediate_size", 1, &a->n_ff, err);
    if (st == PL_OK)
        st = get_int(o, "num_hidden_layers", 1, &a->n_layers, err);
    if (st == PL_OK)
        st = get_int(o, "num_attention_heads", 1, &a->n_heads, err);
    a->n_kv_heads = a->n_heads;
    a->head_dim = a->n_heads > 0 ? a->n_embd / a->n_heads : 0;
    a->n_ctx = 2048; /* transformers' default */
    if (st == PL_OK)
        st = get_int(o, "num_key_value_heads", 0, &a->n_kv_heads, err);
    if (st == PL_OK)
        st = get_int(o, "head_dim", 0, &a->head_dim, err);
    if (st == PL_OK)
        st = get_int(o, "max_position_embeddings", 0, &a->n_ctx, err);
    if (st == PL_OK)
        st = get_int(o, "vocab_size", 1, &a->n_vocab, err);
    return st;
}

static pl_status read_llama3(const json_t *rope, pl_arch *a, pl_error *err)
{
    pl_status st = get_double(rope, "factor", 1, &a->rope_factor, err);

    a->rope_type = PL_ROPE_LLAMA3;
    if (st == PL_OK)
        st = get_double(rope, "low_freq_factor", 1, &a->rope_low_freq_factor, err);
    if (st == PL_OK)
        st = get_double(rope, "high_freq_factor", 1, &a->rope_high_freq_factor, err);
    if (st == PL_OK)
        st = get_int(rope, "original_max_position_embeddings", 1, &a->rope_original_ctx, err);
    return st;
}

/* transformers 5 writes rope_parameters with rope_theta inside; older ones rope_theta beside
 * rope_scaling, whose kind was once called "type". */
static pl_status read_rope(const json_t *o, pl_arch *a, pl_error *err)
{
    char quoted[FILES_QUOTE];
    const json_t *rope = get(o, "rope_parameters");
    const char *kind = "default";
    double partial = 1.0;

    a->rope_theta = 10000.0; /* transformers' default */
    pl_status st = get_double(o, "rope_theta", 0, &a->rope_theta, err);
    if (rope == NULL)
        rope = get(o, "rope_scaling");
    if (st != PL_OK || rope == NULL)
        return st;
    if (!json_is_object(rope))
        return pl_fail(err, PL_E_FORMAT, "rope_parameters or rope_scaling is no JSON object");
    st = get_double(rope, "rope_theta", 0, &a->rope_theta, err);
    if (st == PL_OK)
        st = get_double(rope, "partial_rotary_factor", 0, &partial, err);
    if (st != PL_OK)
        return st;
    const json_t *named =
        get(rope, "rope_type") != NULL ? get(rope, "rope_type") : get(rope, "type");
    if (named != NULL)
        kind = json_string_value(named);
    if (kind == NULL || partial != 1.0)
        return pl_fail(err, PL_E_FORMAT, "rope_type is no string, or the rotation is partial");
    if (strcmp(kind, "default") == 0)
        return PL_OK;
    if (strcmp(kind, "llama3") != 0)
        return pl_fail(err, PL_E_FORMAT, "rope type '%s' is not supported; default and llama3 are",
            files_quote(quoted, kind, strlen(kind)));
    return read_llama3(rope, a, err);
}

static pl_status add_eos(pl_arch *a, const json_t *v, pl_error *err)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= a->n_vocab)
        return pl_fail(err, PL_E_SHAPE,
            "eos_token_id is neither a token of the vocabulary of %d nor a list of such",
            a->n_vocab);
    const int id = (int)json_integer_value(v);
    for (int i = 0; i < a->n_eos; i++)
        if (a->eos_ids[i] == id)
            return PL_OK;
    if (a->n_eos == PL_MAX_EOS)
        return pl_fail(err, PL_E_SHAPE, "more than %d end tokens", PL_MAX_EOS);
    a->eos_ids[a->n_eos++] = id;
    return PL_OK;
}

static pl_status add_all_eos(pl_arch *a, const json_t *config, pl_error *err)
{
    const json_t *v = get(config, "eos_token_id");
    pl_status st = PL_OK;

    if (v == NULL)
        return PL_OK;
    if (!json_is_array(v))
        return add_eos(a, v, err);
    for (size_t i = 0; i < json_array_size(v) && st == PL_OK; i++)
        st = add_eos(a, json_array_get(v, i), err);
    return st;
}

/* generation_config.json comes first: its first end token is the one that a tokenizer writes. */
static pl_status read_eos(pl_arch *a, const char *dir, const json_t *config, pl_error *err)
{
    static const char file[] = "generation_config.json";
    char path[4096];
    json_t *generation = NULL;
    pl_status st = json_file_path(path, sizeof path, dir, file, err);

    if (st == PL_OK && pl_path_exists(path)) {
        st = json_file_read(&generation, dir, file, MAX_CONFIG, err);
        if (st == PL_OK)
            st = add_all_eos(a, generation, err);
        json_decref(generation);
        if (st != PL_OK)
            return pl_wrap(err, st, "%s", file);
    }
    return st == PL_OK ? add_all_eos(a, config, err) : st;
}

static pl_status read_config(pl_arch *a, const char *dir, const json_t *o, pl_error *err)
{
    double eps = 1e-6; /* transformers' default */
    pl_status st = check_kind(o, err);

    if (st == PL_OK)
        st = read_sizes(o, a, err);
    if (st == PL_OK)
        st = read_rope(o, a, err);
    if (st == PL_OK)
        st = get_double(o, "rms_norm_eps", 0, &eps, err);
    a->rms_eps = (float)eps;
    a->tied = json_is_true(get(o, "tie_word_embeddings"));
    a->bos_id = -1;
    if (st == PL_OK)
        st = get_int(o, "bos_token_id", 0, &a->bos_id, err);
    if (st == PL_OK)
        st = read_eos(a, dir, o, err);
    if (st == PL_OK)
        st = pl_arch_check(a, err);
    return st;
}

pl_status hf_config_read(pl_arch *a, const char *dir, pl_error *err)
{
    json_t *o = NULL;
    pl_status st = json_file_read(&o, dir, "config.json", MAX_CONFIG, err);

    if (st != PL_OK)
        return st;
    memset(a, 0, sizeof *a);
    st = read_config(a, dir, o, err);
    json_decref(o);
    if (st != PL_OK)
        return pl_wrap(err, st, "'%s/config.json'", dir);
    return PL_OK;
}
