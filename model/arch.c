/* model/arch.c - limits of a Llama shape, and the flat layout of its parameters. */
#include "model/arch.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* Far above every published Llama, low enough that rows * cols stays inside int64 with room. */
enum {
    MAX_LAYERS = 1024,
    MAX_EMBD = 1 << 16,
    MAX_HEADS = 1024,
    MAX_HEAD_DIM = 1024,
    MAX_FF = 1 << 20,
    MAX_VOCAB = 1 << 20,
    MAX_CTX = 1 << 26,
    ALIGN_ELEMENTS = 16, /* one cache line of fp32 */
};

static pl_status check_range(
    const char *what, long long value, long long min, long long max, pl_error *err)
{
    if (value < min || value > max)
        return pl_fail(err, PL_E_SHAPE, "%s is %lld, it must be %lld..%lld", what, value, min, max);
    return PL_OK;
}

static pl_status check_sizes(const pl_arch *a, pl_error *err)
{
    const struct {
        const char *what;
        int value, max;
    } rows[] = {
        {"number of layers", a->n_layers, MAX_LAYERS},
        {"hidden size", a->n_embd, MAX_EMBD},
        {"number of heads", a->n_heads, MAX_HEADS},
        {"number of key-value heads", a->n_kv_heads, MAX_HEADS},
        {"head size", a->head_dim, MAX_HEAD_DIM},
        {"feed-forward size", a->n_ff, MAX_FF},
        {"vocabulary", a->n_vocab, MAX_VOCAB},
        {"context length", a->n_ctx, MAX_CTX},
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const pl_status st = check_range(rows[i].what, rows[i].value, 1, rows[i].max, err);
        if (st != PL_OK)
            return st;
    }
    if (a->n_heads % a->n_kv_heads != 0)
        return pl_fail(err, PL_E_SHAPE, "%d heads cannot be shared by %d key-value heads",
            a->n_heads, a->n_kv_heads);
    if (a->head_dim % 2 != 0)
        return pl_fail(
            err, PL_E_SHAPE, "head size %d is odd; rotary embedding needs pairs", a->head_dim);
    return PL_OK;
}

static pl_status check_rope(const pl_arch *a, pl_error *err)
{
    if (!isfinite(a->rope_theta) || a->rope_theta < 1.0)
        return pl_fail(err, PL_E_SHAPE, "rope base %g; it must be 1 or more", a->rope_theta);
    if (a->rope_type == PL_ROPE_DEFAULT)
        return PL_OK;
    if (a->rope_type != PL_ROPE_LLAMA3)
        return pl_fail(err, PL_E_SHAPE, "rope type %d is not known", (int)a->rope_type);
    if (!isfinite(a->rope_factor) || a->rope_factor < 1.0)
        return pl_fail(err, PL_E_SHAPE, "rope factor %g; it must be 1 or more", a->rope_factor);
    if (!(a->rope_low_freq_factor > 0.0) || !isfinite(a->rope_high_freq_factor) ||
        !(a->rope_high_freq_factor > a->rope_low_freq_factor))
        return pl_fail(err, PL_E_SHAPE,
            "rope low and high frequency factors are %g and %g; 0 < low < high is needed",
            a->rope_low_freq_factor, a->rope_high_freq_factor);
    return check_range("original context length of rope", a->rope_original_ctx, 1, MAX_CTX, err);
}

pl_status pl_arch_check(const pl_arch *a, pl_error *err)
{
    pl_status st = check_sizes(a, err);

    if (st == PL_OK)
        st = check_rope(a, err);
    if (st != PL_OK)
        return st;
    if (!(a->rms_eps >= 0.0f && a->rms_eps < 1.0f))
        return pl_fail(
            err, PL_E_SHAPE, "epsilon of the norms is %g; it must be 0..1", (double)a->rms_eps);
    if (a->bos_id < -1 || a->bos_id >= a->n_vocab)
        return pl_fail(err, PL_E_SHAPE, "first token %d is outside the vocabulary of %d", a->bos_id,
            a->n_vocab);
    st = check_range("number of end tokens", a->n_eos, 0, PL_MAX_EOS, err);
    if (st != PL_OK)
        return st;
    for (int i = 0; i < a->n_eos; i++)
        if (a->eos_ids[i] < 0 || a->eos_ids[i] >= a->n_vocab)
            return pl_fail(err, PL_E_SHAPE, "end token %d is outside the vocabulary of %d",
                a->eos_ids[i], a->n_vocab);
    return PL_OK;
}

static void add_param(
    pl_param_table *t, pl_param_kind kind, int layer, int rows, int cols, const char *suffix)
{
    pl_param *p = &t->params[t->n_params++];
    const size_t n = (size_t)rows * (size_t)cols;

    p->kind = kind;
    p->layer = layer;
    p->rows = rows;
    p->cols = cols;
    p->offset = t->n_elements;
    if (layer >= 0)
        snprintf(p->name, sizeof p->name, "model.layers.%d.%s.weight", layer, suffix);
    else
        snprintf(p->name, sizeof p->name, "%s.weight", suffix);
    t->n_elements += (n + ALIGN_ELEMENTS - 1) / ALIGN_ELEMENTS * ALIGN_ELEMENTS;
}

static void add_layer(pl_param_table *t, const pl_arch *a, int layer)
{
    const int c = a->n_embd, q = a->n_heads * a->head_dim, kv = a->n_kv_heads * a->head_dim;

    add_param(t, PL_P_ATTN_NORM, layer, 1, c, "input_layernorm");
    add_param(t, PL_P_Q, layer, q, c, "self_attn.q_proj");
    add_param(t, PL_P_K, layer, kv, c, "self_attn.k_proj");
    add_param(t, PL_P_V, layer, kv, c, "self_attn.v_proj");
    add_param(t, PL_P_O, layer, c, q, "self_attn.o_proj");
    add_param(t, PL_P_FFN_NORM, layer, 1, c, "post_attention_layernorm");
    add_param(t, PL_P_GATE, layer, a->n_ff, c, "mlp.gate_proj");
    add_param(t, PL_P_UP, layer, a->n_ff, c, "mlp.up_proj");
    add_param(t, PL_P_DOWN, layer, c, a->n_ff, "mlp.down_proj");
}

enum { PER_LAYER = PL_P_DOWN - PL_P_ATTN_NORM + 1 };

pl_status pl_param_table_new(pl_param_table **out, const pl_arch *a, pl_error *err)
{
    const pl_status st = pl_arch_check(a, err);
    if (st != PL_OK)
        return st;

    const size_t n_max = 3 + (size_t)a->n_layers * PER_LAYER;
    pl_param_table *t = calloc(1, sizeof *t);
    if (t != NULL)
        t->params = calloc(n_max, sizeof *t->params);
    if (t == NULL || t->params == NULL) {
        free(t);
        return pl_fail(err, PL_E_NOMEM, "no memory for a table of %zu parameters", n_max);
    }
    add_param(t, PL_P_EMBED, -1, a->n_vocab, a->n_embd, "model.embed_tokens");
    for (int i = 0; i < a->n_layers; i++)
        add_layer(t, a, i);
    add_param(t, PL_P_FINAL_NORM, -1, 1, a->n_embd, "model.norm");
    if (!a->tied)
        add_param(t, PL_P_HEAD, -1, a->n_vocab, a->n_embd, "lm_head");
    *out = t;
    return PL_OK;
}

void pl_param_table_free(pl_param_table *t)
{
    if (t == NULL)
        return;
    free(t->params);
    free(t);
}

const pl_param *pl_param_find(const pl_param_table *t, pl_param_kind kind, int layer)
{
    int i;

    if (kind == PL_P_EMBED)
        i = 0;
    else if (kind == PL_P_FINAL_NORM || kind == PL_P_HEAD)
        i = t->n_params - 1; /* checked below; FINAL_NORM stands before HEAD */
    else if (layer >= 0 && layer < 1024)
        i = 1 + layer * PER_LAYER + (int)kind - PL_P_ATTN_NORM;
    else
        return NULL;
    if (kind == PL_P_FINAL_NORM && t->params[i].kind == PL_P_HEAD)
        i--;
    if (i >= t->n_params || t->params[i].kind != kind || t->params[i].layer != layer)
        return NULL;
    return &t->params[i];
}
