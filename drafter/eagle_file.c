/* drafter/eagle_file.c - the drafter as a directory in the EAGLE-3 layout: its tensors, writing.
 *
 * config.json and model.safetensors as SGLang and vLLM read them: architecture
 * LlamaForCausalLMEagle3, d2t[i] = id_i - i (int64), t2d a mask over the target's vocabulary
 * (bool), both only where the draft vocabulary is a part of the target's.  EAGLE-3.1 is said by fc_norm and norm_output, which a plain EAGLE-3 lacks.  The layers
 * that are read are named twice: for SGLang (eagle_config) by the layer whose output it is, for
 * vLLM (top level) by the layer whose input it is, one more.  Weights are fp32, so that training
 * goes on from the same bits. */
#include "drafter/eagle_layout.h"

#include "core/file.h"
#include "core/json.h"
#include "model/json_file.h"

#include <stdio.h>
#include <string.h>

enum { HEADER_BYTES = 8192 };

static eagle_tensor of_param(const char *name, eagle_param p, int first, int rows, int cols)
{
    eagle_tensor t = {.type = EAGLE_F32, .rows = rows, .cols = cols, .param = p, .first = first};
    snprintf(t.name, sizeof t.name, "%s", name);
    return t;
}

int eagle_list_tensors(const pl_eagle *e, eagle_tensor out[EAGLE_MAX_TENSORS])
{
    const eagle_dims *d = &e->dims;
    const int q = d->h * d->d, kv = d->hkv * d->d;
    int n = 0;

    /* A draft vocabulary that is the target's has no tables: vLLM refuses them there. */
    const int is_reduced = d->v < d->vt;
    if (is_reduced)
        out[n++] = (eagle_tensor){.name = "d2t", .type = EAGLE_I64, .cols = d->v};
    out[n++] = of_param("fc.weight", EAGLE_FC, 0, d->c, 3 * d->c);
    if (e->has_fc_norm) {
        out[n++] = of_param("fc_norm.0.weight", EAGLE_FC_NORM, 0, 0, d->c);
        out[n++] = of_param("fc_norm.1.weight", EAGLE_FC_NORM, 1, 0, d->c);
        out[n++] = of_param("fc_norm.2.weight", EAGLE_FC_NORM, 2, 0, d->c);
    }
    out[n++] = of_param("midlayer.input_layernorm.weight", EAGLE_NORM_EMB, 0, 0, d->c);
    out[n++] = of_param("midlayer.hidden_norm.weight", EAGLE_NORM_HID, 0, 0, d->c);
    out[n++] = of_param("midlayer.self_attn.q_proj.weight", EAGLE_QKV, 0, q, 2 * d->c);
    out[n++] = of_param("midlayer.self_attn.k_proj.weight", EAGLE_QKV, q, kv, 2 * d->c);
    out[n++] = of_param("midlayer.self_attn.v_proj.weight", EAGLE_QKV, q + kv, kv, 2 * d->c);
    out[n++] = of_param("midlayer.self_attn.o_proj.weight", EAGLE_O, 0, d->c, d->ao);
    out[n++] = of_param("midlayer.post_attention_layernorm.weight", EAGLE_NORM_POST, 0, 0, d->c);
    out[n++] = of_param("midlayer.mlp.gate_proj.weight", EAGLE_GATE, 0, d->f, d->c);
    out[n++] = of_param("midlayer.mlp.up_proj.weight", EAGLE_UP, 0, d->f, d->c);
    out[n++] = of_param("midlayer.mlp.down_proj.weight", EAGLE_DOWN, 0, d->c, d->f);
    out[n++] = of_param("norm.weight", EAGLE_NORM_FINAL, 0, 0, d->c);
    out[n++] = of_param("lm_head.weight", EAGLE_HEAD, 0, d->v, d->c);
    /* One byte an element: behind the others, which are aligned then. */
    if (is_reduced)
        out[n++] = (eagle_tensor){.name = "t2d", .type = EAGLE_BOOL, .cols = d->vt};
    return n;
}

size_t eagle_tensor_elements(const eagle_tensor *t)
{
    return (size_t)(t->rows ? t->rows : 1) * (size_t)t->cols;
}

size_t eagle_tensor_bytes(const eagle_tensor *t)
{
    const size_t size = t->type == EAGLE_F32 ? 4 : t->type == EAGLE_I64 ? 8 : 1;
    return eagle_tensor_elements(t) * size;
}

float *eagle_tensor_values(const pl_eagle *e, const eagle_tensor *t)
{
    const eagle_matrix *m = &e->p[t->param];
    return e->w + m->offset + (size_t)t->first * (size_t)m->cols;
}

/* ---- writing ---- */

static size_t add_entry(char *out, const eagle_tensor *t, size_t *begin)
{
    static const char *const types[] = {"F32", "I64", "BOOL"};
    const size_t end = *begin + eagle_tensor_bytes(t);
    int n = sprintf(out, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name, types[t->type]);

    if (t->rows)
        n += sprintf(out + n, "%d,", t->rows);
    n += sprintf(out + n, "%d],\"data_offsets\":[%zu,%zu]}", t->cols, *begin, end);
    *begin = end;
    return (size_t)n;
}

static pl_status put_header(pl_writer *w, const eagle_tensor *list, int n, pl_error *err)
{
    char text[HEADER_BYTES];
    char *p = text + sizeof(uint64_t);
    size_t begin = 0;

    p += sprintf(p, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int i = 0; i < n; i++)
        p += add_entry(p, &list[i], &begin);
    *p++ = '}';
    while ((size_t)(p - text) % 8 != 0)
        *p++ = ' ';
    const uint64_t length = (uint64_t)(p - text) - sizeof length;
    memcpy(text, &length, sizeof length);
    return pl_writer_put(w, text, (size_t)(p - text), err);
}

static pl_status put_tables(pl_writer *w, const pl_eagle *e, int is_mask, pl_error *err)
{
    pl_status st = PL_OK;

    for (int i = 0; !is_mask && i < e->dims.v && st == PL_OK; i++) {
        const int64_t offset = (int64_t)e->vocab[i] - i;
        st = pl_writer_put(w, &offset, sizeof offset, err);
    }
    for (int i = 0; is_mask && i < e->dims.vt && st == PL_OK; i++) {
        const unsigned char kept = e->to_draft[i] >= 0;
        st = pl_writer_put(w, &kept, 1, err);
    }
    return st;
}

static pl_status put_weights(pl_writer *w, const pl_eagle *e, pl_error *err)
{
    eagle_tensor list[EAGLE_MAX_TENSORS];
    const int n = eagle_list_tensors(e, list);
    pl_status st = put_header(w, list, n, err);

    for (int i = 0; i < n && st == PL_OK; i++) {
        if (list[i].type == EAGLE_F32)
            st = pl_writer_put(
                w, eagle_tensor_values(e, &list[i]), eagle_tensor_bytes(&list[i]), err);
        else
            st = put_tables(w, e, list[i].type == EAGLE_BOOL, err);
    }
    return st;
}

pl_status eagle_finish(pl_writer *w, pl_status st, pl_error *err)
{
    if (st == PL_OK)
        return pl_writer_commit(w, err);
    pl_writer_abort(w);
    return st;
}

static void add_int(pl_json *j, const char *key, int v)
{
    pl_json_text(j, "  \"");
    pl_json_text(j, key);
    pl_json_text(j, "\": ");
    pl_json_int(j, v);
    pl_json_text(j, ",\n");
}

static void add_flag(pl_json *j, const char *key, int is_set)
{
    pl_json_text(j, "  \"");
    pl_json_text(j, key);
    pl_json_text(j, is_set ? "\": true,\n" : "\": false,\n");
}

static void add_layers(pl_json *j, const pl_arch *a, int shift)
{
    int layers[PL_FEATURE_LAYERS];

    pl_feature_layers(a, layers);
    pl_json_text(j, "\"eagle_aux_hidden_state_layer_ids\": [");
    for (int i = 0; i < PL_FEATURE_LAYERS; i++) {
        pl_json_text(j, i ? ", " : "");
        pl_json_int(j, layers[i] + shift);
    }
    pl_json_text(j, "]");
}

static void add_rope(pl_json *j, const pl_arch *a)
{
    pl_json_text(j, "  \"rope_theta\": ");
    pl_json_double(j, a->rope_theta);
    pl_json_text(j, ",\n  \"rope_scaling\": ");
    if (a->rope_type == PL_ROPE_DEFAULT) {
        pl_json_text(j, "null,\n");
        return;
    }
    pl_json_text(j, "{\"rope_type\": \"llama3\", \"factor\": ");
    pl_json_double(j, a->rope_factor);
    pl_json_text(j, ", \"low_freq_factor\": ");
    pl_json_double(j, a->rope_low_freq_factor);
    pl_json_text(j, ", \"high_freq_factor\": ");
    pl_json_double(j, a->rope_high_freq_factor);
    pl_json_text(j, ", \"original_max_position_embeddings\": ");
    pl_json_int(j, a->rope_original_ctx);
    pl_json_text(j, "},\n");
}

/* torch_dtype is that of the passes of the target here, and of the drafter there: SGLang takes it
 * from this file, and makes float16 of float32 beside a target of bfloat16. */
static void describe(pl_json *j, const pl_eagle *e)
{
    const pl_arch *a = pl_model_arch(e->target);
    const eagle_dims *d = &e->dims;

    pl_json_text(j, "{\n  \"architectures\": [\"LlamaForCausalLMEagle3\"],\n"
                    "  \"model_type\": \"llama\",\n");
    add_int(j, "hidden_size", d->c);
    add_int(j, "target_hidden_size", d->c);
    add_int(j, "intermediate_size", d->f);
    add_int(j, "num_hidden_layers", 1);
    add_int(j, "num_attention_heads", d->h);
    add_int(j, "num_key_value_heads", d->hkv);
    add_int(j, "head_dim", d->d);
    add_int(j, "max_position_embeddings", a->n_ctx);
    add_int(j, "vocab_size", d->vt);
    add_int(j, "draft_vocab_size", d->v);
    add_int(j, "num_aux_hidden_states", PL_FEATURE_LAYERS);
    add_int(j, "target_num_hidden_layers", a->n_layers);
    pl_json_text(j, "  \"rms_norm_eps\": ");
    pl_json_float(j, e->eps);
    pl_json_text(j, ",\n");
    add_rope(j, a);
    pl_json_text(j, "  \"hidden_act\": \"silu\",\n  \"attention_bias\": false,\n"
                    "  \"mlp_bias\": false,\n  \"tie_word_embeddings\": false,\n"
                    "  \"torch_dtype\": \"bfloat16\",\n");
    add_flag(j, "fc_norm", e->has_fc_norm);
    add_flag(j, "norm_output", e->norm_output);
    pl_json_text(j, "  ");
    add_layers(j, a, 1);
    pl_json_text(j, ",\n  \"eagle_config\": {\"use_aux_hidden_state\": true, ");
    add_layers(j, a, 0);
    pl_json_text(j, "}\n}\n");
}

static pl_status save_config(const pl_eagle *e, const char *dir, pl_error *err)
{
    char path[4096];
    pl_json j = {0};

    describe(&j, e);
    pl_status st = pl_json_check(&j, "config.json", err);
    if (st == PL_OK)
        st = json_file_path(path, sizeof path, dir, "config.json", err);
    if (st == PL_OK)
        st = pl_file_write(path, j.data, j.n, err);
    pl_json_done(&j);
    return st;
}

static pl_status save_weights(const pl_eagle *e, const char *dir, pl_error *err)
{
    char path[4096];
    pl_writer *w;
    pl_status st = json_file_path(path, sizeof path, dir, eagle_weights_file, err);

    if (st == PL_OK)
        st = pl_writer_open(&w, path, err);
    if (st != PL_OK)
        return st;
    return eagle_finish(w, put_weights(w, e, err), err);
}

pl_status pl_eagle_save(const pl_eagle *e, const char *dir, pl_error *err)
{
    pl_status st = pl_dir_make(dir, err);

    if (st == PL_OK)
        st = save_weights(e, dir, err);
    if (st == PL_OK)
        st = save_config(e, dir, err);
    if (st != PL_OK)
        return pl_wrap(err, st, "saving the drafter to '%s'", dir);
    return PL_OK;
}
