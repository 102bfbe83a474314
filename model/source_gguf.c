/* model/source_gguf.c - a Llama in a GGUF file: shape from the metadata, parameters by ggml name.
 */
#include "model/files.h"
#include "model/gguf_file.h"
#include "model/source_file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* An integer >= 0.  A key that is not there leaves *value alone unless it is needed. */
static pl_status get_int(
    const pl_gguf *g, const char *key, int is_needed, int *value, pl_error *err)
{
    int64_t v;

    if (gguf_pair_find(g, key) == NULL) {
        if (!is_needed)
            return PL_OK;
        return pl_fail(err, PL_E_FORMAT, "key '%s' is missing: this is no complete Llama", key);
    }
    if (!pl_gguf_get_int(g, key, &v))
        return pl_fail(err, PL_E_FORMAT,
            "key '%s' is not one integer (layers of different shape are not supported)", key);
    if (v < 0 || v > INT32_MAX)
        return pl_fail(err, PL_E_SHAPE, "key '%s' is %lld", key, (long long)v);
    *value = (int)v;
    return PL_OK;
}

static pl_status get_float(
    const pl_gguf *g, const char *key, int is_needed, double *value, pl_error *err)
{
    if (gguf_pair_find(g, key) == NULL) {
        if (!is_needed)
            return PL_OK;
        return pl_fail(err, PL_E_FORMAT, "key '%s' is missing: this is no complete Llama", key);
    }
    if (!pl_gguf_get_float(g, key, value))
        return pl_fail(err, PL_E_FORMAT, "key '%s' is not a number", key);
    return PL_OK;
}

static int text_is(const char *s, size_t len, const char *word)
{
    return len == strlen(word) && memcmp(s, word, len) == 0;
}

static pl_status check_kind(const pl_gguf *g, pl_error *err)
{
    char quoted[FILES_QUOTE];
    const char *s;
    size_t len;
    int n_experts = 0;

    if (!pl_gguf_get_string(g, "general.architecture", &s, &len))
        return pl_fail(err, PL_E_FORMAT, "key 'general.architecture' is missing or no string");
    if (!text_is(s, len, "llama"))
        return pl_fail(err, PL_E_FORMAT, "architecture '%s' is not supported; only llama is",
            files_quote(quoted, s, len));
    const pl_status st = get_int(g, "llama.expert_count", 0, &n_experts, err);
    if (st == PL_OK && n_experts > 0)
        return pl_fail(err, PL_E_FORMAT, "a mixture of %d experts is not supported", n_experts);
    return st;
}

static pl_status read_sizes(const pl_gguf *g, pl_arch *a, pl_error *err)
{
    int n_rot, n_value;
    pl_status st = get_int(g, "llama.block_count", 1, &a->n_layers, err);

    if (st == PL_OK)
        st = get_int(g, "llama.embedding_length", 1, &a->n_embd, err);
    if (st == PL_OK)
        st = get_int(g, "llama.attention.head_count", 1, &a->n_heads, err);
    a->n_kv_heads = a->n_heads;
    if (st == PL_OK)
        st = get_int(g, "llama.attention.head_count_kv", 0, &a->n_kv_heads, err);
    if (st == PL_OK)
        st = get_int(g, "llama.feed_forward_length", 1, &a->n_ff, err);
    if (st == PL_OK)
        st = get_int(g, "llama.context_length", 1, &a->n_ctx, err);
    a->head_dim = a->n_heads > 0 ? a->n_embd / a->n_heads : 0;
    if (st == PL_OK)
        st = get_int(g, "llama.attention.key_length", 0, &a->head_dim, err);
    n_rot = n_value = a->head_dim;
    if (st == PL_OK)
        st = get_int(g, "llama.attention.value_length", 0, &n_value, err);
    if (st == PL_OK)
        st = get_int(g, "llama.rope.dimension_count", 0, &n_rot, err);
    if (st == PL_OK && (n_rot != a->head_dim || n_value != a->head_dim))
        return pl_fail(err, PL_E_SHAPE,
            "keys have %d elements, %d of them rotary, and values %d; they must be equal",
            a->head_dim, n_rot, n_value);
    return st;
}

static pl_status read_scalars(const pl_gguf *g, pl_arch *a, pl_error *err)
{
    double eps = 0.0;
    pl_status st = get_float(g, "llama.attention.layer_norm_rms_epsilon", 1, &eps, err);

    a->rms_eps = (float)eps;
    a->rope_theta = 10000.0; /* what ggml takes when the key is not there */
    if (st == PL_OK)
        st = get_float(g, "llama.rope.freq_base", 0, &a->rope_theta, err);
    return st;
}

static pl_status check_scaling(const pl_gguf *g, pl_error *err)
{
    char quoted[FILES_QUOTE];
    const char *s = "none";
    size_t len = 4;
    double factor = 1.0;
    pl_status st = PL_OK;

    if (gguf_pair_find(g, "llama.rope.scaling.type") != NULL &&
        !pl_gguf_get_string(g, "llama.rope.scaling.type", &s, &len))
        return pl_fail(err, PL_E_FORMAT, "key 'llama.rope.scaling.type' is no string");
    st = get_float(g, "llama.rope.scale_linear", 0, &factor, err);
    if (st == PL_OK)
        st = get_float(g, "llama.rope.scaling.factor", 0, &factor, err);
    if (st != PL_OK || text_is(s, len, "none"))
        return st;
    if (!text_is(s, len, "linear") || factor != 1.0)
        return pl_fail(err, PL_E_FORMAT,
            "rope scaling '%s' by %g is not supported; none and llama3 are",
            files_quote(quoted, s, len), factor);
    return PL_OK;
}

/* Divisor of rotary frequency i that llama3 scaling prescribes (transformers,
 * modeling_rope_utils.py, _compute_llama3_parameters). */
static double llama3_divisor(const pl_arch *a, int i)
{
    const double pi = 3.14159265358979323846;
    const double wave = 2.0 * pi * pow(a->rope_theta, 2.0 * i / a->head_dim);
    const double turns = a->rope_original_ctx / wave;

    if (turns < a->rope_low_freq_factor)
        return a->rope_factor;
    if (turns > a->rope_high_freq_factor)
        return 1.0;
    const double smooth =
        (turns - a->rope_low_freq_factor) / (a->rope_high_freq_factor - a->rope_low_freq_factor);
    return 1.0 / ((1.0 - smooth) / a->rope_factor + smooth);
}

static int matches_llama3(const pl_arch *a, const float *divisors)
{
    for (int i = 0; i < a->head_dim / 2; i++) {
        const double want = llama3_divisor(a, i);
        if (!(fabs((double)divisors[i] - want) <= 1e-5 * want))
            return 0;
    }
    return 1;
}

/* A GGUF keeps the divisors that llama3 scaling gives, not what they were computed from: find the
 * numbers again, or refuse.  low 1 and high 4 are those of every published Llama 3. */
static pl_status derive_llama3(pl_arch *a, const float *divisors, pl_error *err)
{
    int is_plain = 1;

    for (int i = 0; i < a->head_dim / 2; i++)
        is_plain &= divisors[i] == 1.0f;
    if (is_plain)
        return PL_OK;
    a->rope_type = PL_ROPE_LLAMA3;
    a->rope_factor = (double)divisors[a->head_dim / 2 - 1];
    a->rope_low_freq_factor = 1.0;
    a->rope_high_freq_factor = 4.0;
    for (a->rope_original_ctx = 8192; a->rope_original_ctx >= 64; a->rope_original_ctx /= 2)
        if (matches_llama3(a, divisors))
            return PL_OK;
    for (a->rope_original_ctx = 16384; a->rope_original_ctx <= 1 << 20; a->rope_original_ctx *= 2)
        if (matches_llama3(a, divisors))
            return PL_OK;
    return pl_fail(err, PL_E_FORMAT,
        "tensor 'rope_freqs.weight' is no llama3 scaling with factors 1 and 4; use the Hugging "
        "Face "
        "directory of this model");
}

static pl_status read_rope_freqs(const pl_gguf *g, pl_arch *a, pl_error *err)
{
    const pl_gguf_tensor *t = pl_gguf_find(g, "rope_freqs.weight");

    if (t == NULL)
        return PL_OK;
    if (a->head_dim < 2 || t->type != FILES_F32 || t->dims[0] != (uint64_t)(a->head_dim / 2) ||
        t->n_bytes != t->dims[0] * sizeof(float))
        return pl_fail(err, PL_E_SHAPE, "tensor 'rope_freqs.weight' must be %d values of F32",
            a->head_dim / 2);
    float *divisors = malloc(t->n_bytes);
    if (divisors == NULL)
        return pl_fail(err, PL_E_NOMEM, "no memory for rope_freqs.weight");
    dequant_row(FILES_F32, t->data, (size_t)t->dims[0], divisors);
    const pl_status st = derive_llama3(a, divisors, err);
    free(divisors);
    return st;
}

static pl_status read_vocabulary(const pl_gguf *g, pl_arch *a, pl_error *err)
{
    const pl_gguf_tensor *t = pl_gguf_find(g, "token_embd.weight");
    int n_vocab, eot = -1;

    if (t == NULL)
        return pl_fail(err, PL_E_SHAPE, "tensor 'token_embd.weight' is missing");
    if (t->dims[1] > INT32_MAX)
        return pl_fail(
            err, PL_E_SHAPE, "the embedding has %llu rows", (unsigned long long)t->dims[1]);
    a->n_vocab = n_vocab = (int)t->dims[1];
    pl_status st = get_int(g, "llama.vocab_size", 0, &n_vocab, err);
    if (st == PL_OK && n_vocab != a->n_vocab)
        return pl_fail(err, PL_E_SHAPE, "the vocabulary has %d tokens, the embedding %d rows",
            n_vocab, a->n_vocab);
    a->tied = pl_gguf_find(g, "output.weight") == NULL;
    a->bos_id = -1;
    a->eos_ids[0] = -1;
    if (st == PL_OK)
        st = get_int(g, "tokenizer.ggml.bos_token_id", 0, &a->bos_id, err);
    if (st == PL_OK)
        st = get_int(g, "tokenizer.ggml.eos_token_id", 0, &a->eos_ids[0], err);
    if (st == PL_OK)
        st = get_int(g, "tokenizer.ggml.eot_token_id", 0, &eot, err);
    a->n_eos = a->eos_ids[0] >= 0;
    if (eot >= 0 && eot != a->eos_ids[0])
        a->eos_ids[a->n_eos++] = eot;
    return st;
}

static pl_status read_arch(const pl_gguf *g, pl_arch *a, pl_error *err)
{
    pl_status st = check_kind(g, err);

    if (st == PL_OK)
        st = read_sizes(g, a, err);
    if (st == PL_OK)
        st = read_scalars(g, a, err);
    if (st == PL_OK)
        st = check_scaling(g, err);
    if (st == PL_OK)
        st = read_vocabulary(g, a, err);
    if (st == PL_OK)
        st = pl_arch_check(a, err);
    if (st == PL_OK)
        st = read_rope_freqs(g, a, err);
    return st;
}

static void ggml_name(char *out, size_t size, const pl_param *p)
{
    static const char *const names[] = {
        [PL_P_EMBED] = "token_embd",
        [PL_P_ATTN_NORM] = "attn_norm",
        [PL_P_Q] = "attn_q",
        [PL_P_K] = "attn_k",
        [PL_P_V] = "attn_v",
        [PL_P_O] = "attn_output",
        [PL_P_FFN_NORM] = "ffn_norm",
        [PL_P_GATE] = "ffn_gate",
        [PL_P_UP] = "ffn_up",
        [PL_P_DOWN] = "ffn_down",
        [PL_P_FINAL_NORM] = "output_norm",
        [PL_P_HEAD] = "output",
    };
    if (p->layer >= 0)
        snprintf(out, size, "blk.%d.%s.weight", p->layer, names[p->kind]);
    else
        snprintf(out, size, "%s.weight", names[p->kind]);
}

static pl_status bind(pl_source *s, int i, pl_error *err)
{
    const pl_param *p = &s->table->params[i];
    char name[96];

    ggml_name(name, sizeof name, p);
    const pl_gguf_tensor *t = pl_gguf_find(s->gguf, name);
    if (t == NULL)
        return pl_fail(err, PL_E_SHAPE, "tensor '%s' is missing", name);
    if (t->dims[0] != (uint64_t)p->cols || t->dims[1] != (uint64_t)p->rows || t->dims[2] != 1 ||
        t->dims[3] != 1)
        return pl_fail(err, PL_E_SHAPE,
            "tensor '%s' is %llu x %llu x %llu, the model needs %d x %d", name,
            (unsigned long long)t->dims[0], (unsigned long long)t->dims[1],
            (unsigned long long)(t->dims[2] * t->dims[3]), p->cols, p->rows);
    s->tensors[i].type = t->type;
    s->tensors[i].data = t->data;
    s->tensors[i].file = &s->gguf->file;
    if (p->kind == PL_P_Q)
        s->tensors[i].n_paired = s->arch.n_heads;
    if (p->kind == PL_P_K)
        s->tensors[i].n_paired = s->arch.n_kv_heads;
    return PL_OK;
}

/* Every tensor of the file belongs to the model: as many as were bound, or one is a stranger. */
static pl_status check_strangers(const pl_source *s, pl_error *err)
{
    const int n_file = pl_gguf_n_tensors(s->gguf);
    const int has_freqs = pl_gguf_find(s->gguf, "rope_freqs.weight") != NULL;
    char name[96];

    if (n_file - has_freqs == s->table->n_params)
        return PL_OK;
    for (int i = 0; i < n_file; i++) {
        const char *have = pl_gguf_tensor_at(s->gguf, i)->name;
        int is_known = strcmp(have, "rope_freqs.weight") == 0;
        for (int k = 0; k < s->table->n_params && !is_known; k++) {
            ggml_name(name, sizeof name, &s->table->params[k]);
            is_known = strcmp(have, name) == 0;
        }
        if (!is_known)
            return pl_fail(err, PL_E_SHAPE, "tensor '%s' belongs to no Llama of %d layers", have,
                s->arch.n_layers);
    }
    return PL_OK;
}

pl_status source_from_gguf(pl_source *s, const char *path, pl_error *err)
{
    pl_status st = pl_gguf_open(&s->gguf, path, err);

    if (st != PL_OK)
        return st;
    st = read_arch(s->gguf, &s->arch, err);
    if (st == PL_OK)
        st = source_make_table(s, err);
    for (int i = 0; st == PL_OK && i < s->table->n_params; i++)
        st = bind(s, i, err);
    if (st == PL_OK)
        st = check_strangers(s, err);
    if (st != PL_OK)
        pl_error_prefix(err, "model '%s'", path);
    return st;
}
