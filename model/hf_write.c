/* model/hf_write.c - config.json and generation_config.json that every transformers reads. */
#include "model/hf_config.h"

#include "core/file.h"
#include "model/json_file.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static pl_status put(pl_writer *w, pl_error *err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static pl_status put(pl_writer *w, pl_error *err, const char *fmt, ...)
{
    char line[1024];
    va_list args;

    va_start(args, fmt);
    const int n = vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    if (n < 0 || n >= (int)sizeof line)
        return pl_fail(err, PL_E_INVAL, "a line of config.json is too long");
    return pl_writer_put(w, line, (size_t)n, err);
}

/* Shortest text that reads back as v, as a float when is_float: 1e-5f is "1e-05".  Whole numbers
 * keep a ".0": transformers warns of integers where it expects a float. */
static const char *number(char out[32], double v, int is_float)
{
    if (v == floor(v) && fabs(v) < 1e15) {
        snprintf(out, 32, "%.1f", v);
        return out;
    }
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(out, 32, "%.*g", digits, v);
        if (is_float ? strtof(out, NULL) == (float)v : strtod(out, NULL) == v)
            break;
    }
    return out;
}

/* "7", "[1, 2]" or "null". */
static const char *id_list(char *out, size_t size, const int *ids, int n)
{
    size_t used = 0;

    if (n == 0)
        snprintf(out, size, "null");
    else if (n == 1)
        snprintf(out, size, "%d", ids[0]);
    for (int i = 0; n > 1 && i < n; i++)
        used += (size_t)snprintf(
            out + used, size - used, "%s%d%s", i ? ", " : "[", ids[i], i + 1 < n ? "" : "]");
    return out;
}

static pl_status put_sizes(pl_writer *w, const pl_arch *a, const char *dtype, pl_error *err)
{
    char eps[32];

    return put(w, err,
        "{\n  \"architectures\": [\"LlamaForCausalLM\"],\n"
        "  \"model_type\": \"llama\",\n"
        "  \"hidden_size\": %d,\n  \"intermediate_size\": %d,\n  \"num_hidden_layers\": %d,\n"
        "  \"num_attention_heads\": %d,\n  \"num_key_value_heads\": %d,\n  \"head_dim\": %d,\n"
        "  \"max_position_embeddings\": %d,\n  \"vocab_size\": %d,\n  \"rms_norm_eps\": %s,\n"
        "  \"hidden_act\": \"silu\",\n  \"attention_bias\": false,\n  \"mlp_bias\": false,\n"
        "  \"attention_dropout\": 0.0,\n  \"initializer_range\": 0.02,\n"
        "  \"tie_word_embeddings\": %s,\n  \"use_cache\": true,\n  \"torch_dtype\": \"%s\",\n",
        a->n_embd, a->n_ff, a->n_layers, a->n_heads, a->n_kv_heads, a->head_dim, a->n_ctx,
        a->n_vocab, number(eps, (double)a->rms_eps, 1), a->tied ? "true" : "false", dtype);
}

/* rope_theta and rope_scaling are what transformers 4 reads, rope_parameters what 5 reads. */
static pl_status put_rope(pl_writer *w, const pl_arch *a, pl_error *err)
{
    char theta[32], factor[32], low[32], high[32], scaling[256];

    number(theta, a->rope_theta, 0);
    if (a->rope_type == PL_ROPE_DEFAULT)
        return put(w, err,
            "  \"rope_theta\": %s,\n  \"rope_scaling\": null,\n"
            "  \"rope_parameters\": {\"rope_theta\": %s, \"rope_type\": \"default\"},\n",
            theta, theta);
    snprintf(scaling, sizeof scaling,
        "\"rope_type\": \"llama3\", \"factor\": %s, \"low_freq_factor\": %s, "
        "\"high_freq_factor\": %s, \"original_max_position_embeddings\": %d",
        number(factor, a->rope_factor, 0), number(low, a->rope_low_freq_factor, 0),
        number(high, a->rope_high_freq_factor, 0), a->rope_original_ctx);
    return put(w, err,
        "  \"rope_theta\": %s,\n  \"rope_scaling\": {%s},\n"
        "  \"rope_parameters\": {\"rope_theta\": %s, %s},\n",
        theta, scaling, theta, scaling);
}

static pl_status put_ids(pl_writer *w, const pl_arch *a, const char *end, pl_error *err)
{
    char bos[16], eos[16 * PL_MAX_EOS];

    return put(w, err, "  \"bos_token_id\": %s,\n  \"eos_token_id\": %s\n%s",
        id_list(bos, sizeof bos, &a->bos_id, a->bos_id >= 0),
        id_list(eos, sizeof eos, a->eos_ids, a->n_eos), end);
}

static pl_status finish(pl_writer *w, pl_status st, pl_error *err)
{
    if (st == PL_OK)
        return pl_writer_commit(w, err);
    pl_writer_abort(w);
    return st;
}

static pl_status write_config(const char *dir, const pl_arch *a, const char *dtype, pl_error *err)
{
    char path[4096];
    pl_writer *w = NULL;
    pl_status st = json_file_path(path, sizeof path, dir, "config.json", err);

    if (st == PL_OK)
        st = pl_writer_open(&w, path, err);
    if (st != PL_OK)
        return st;
    st = put_sizes(w, a, dtype, err);
    if (st == PL_OK)
        st = put_rope(w, a, err);
    if (st == PL_OK)
        st = put_ids(w, a, "}\n", err);
    return finish(w, st, err);
}

static pl_status write_generation(const char *dir, const pl_arch *a, pl_error *err)
{
    char path[4096];
    pl_writer *w = NULL;
    pl_status st = json_file_path(path, sizeof path, dir, "generation_config.json", err);

    if (st == PL_OK)
        st = pl_writer_open(&w, path, err);
    if (st != PL_OK)
        return st;
    st = pl_writer_put(w, "{\n", 2, err);
    if (st == PL_OK)
        st = put_ids(w, a, "}\n", err);
    return finish(w, st, err);
}

pl_status hf_config_write(const char *dir, const pl_arch *a, const char *dtype, pl_error *err)
{
    const pl_status st = write_config(dir, a, dtype, err);
    return st == PL_OK ? write_generation(dir, a, err) : st;
}
