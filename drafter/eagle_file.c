/* drafter/eagle_file.c - the drafter as a directory in the EAGLE-3 layout, and the trainer's state.
 *
 * config.json and model.safetensors as SGLang and vLLM read them: architecture
 * LlamaForCausalLMEagle3, d2t[i] = id_i - i (int64), t2d a mask over the target's vocabulary
 * (bool). EAGLE-3.1 is said by fc_norm and norm_output.  The layers that are read are named twice:
 * for SGLang (eagle_config) by the layer whose output it is, for vLLM (top level) by the layer
 * whose input it is, one more.  Weights are fp32, so that training goes on from the same bits. */
#include "drafter/eagle_trainer.h"

#include "core/file.h"
#include "core/json.h"
#include "model/json_file.h"
#include "model/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONFIG_BYTES = 1 << 20, N_TENSORS = 17, HEADER_BYTES = 8192 };

static const char weights_file[] = "model.safetensors";

typedef enum tensor_type { T_F32, T_I64, T_BOOL } tensor_type;

/* A tensor of the file: rows of a parameter, or one of the two tables. */
typedef struct tensor {
    char name[64];
    tensor_type type;
    int rows, cols; /* rows 0: one dimension */
    eagle_param param;
    int first; /* row of the parameter */
} tensor;

static tensor of_param(const char *name, eagle_param p, int first, int rows, int cols)
{
    tensor t = {.type = T_F32, .rows = rows, .cols = cols, .param = p, .first = first};
    snprintf(t.name, sizeof t.name, "%s", name);
    return t;
}

/* All tensors; 8-byte ones first, so that every tensor is aligned. */
static void list_tensors(const pl_eagle *e, tensor out[N_TENSORS])
{
    const eagle_dims *d = &e->dims;
    const int q = d->h * d->d, kv = d->hkv * d->d;
    int n = 0;

    out[n++] = (tensor){.name = "d2t", .type = T_I64, .cols = d->v};
    out[n++] = of_param("fc.weight", EAGLE_FC, 0, d->c, 3 * d->c);
    out[n++] = of_param("fc_norm.0.weight", EAGLE_FC_NORM, 0, 0, d->c);
    out[n++] = of_param("fc_norm.1.weight", EAGLE_FC_NORM, 1, 0, d->c);
    out[n++] = of_param("fc_norm.2.weight", EAGLE_FC_NORM, 2, 0, d->c);
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
}

/* t2d, which stands behind the others: one byte an element. */
static tensor mask_tensor(const pl_eagle *e)
{
    return (tensor){.name = "t2d", .type = T_BOOL, .cols = e->dims.vt};
}

static size_t elements(const tensor *t)
{
    return (size_t)(t->rows ? t->rows : 1) * (size_t)t->cols;
}

static size_t bytes(const tensor *t)
{
    return elements(t) * (t->type == T_F32 ? 4 : t->type == T_I64 ? 8 : 1);
}

static float *values(const pl_eagle *e, const tensor *t)
{
    const eagle_matrix *m = &e->p[t->param];
    return e->w + m->offset + (size_t)t->first * (size_t)m->cols;
}

/* ---- writing ---- */

static size_t add_entry(char *out, const tensor *t, size_t *begin)
{
    static const char *const types[] = {"F32", "I64", "BOOL"};
    const size_t end = *begin + bytes(t);
    int n = sprintf(out, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name, types[t->type]);

    if (t->rows)
        n += sprintf(out + n, "%d,", t->rows);
    n += sprintf(out + n, "%d],\"data_offsets\":[%zu,%zu]}", t->cols, *begin, end);
    *begin = end;
    return (size_t)n;
}

static pl_status put_header(pl_writer *w, const tensor *list, const tensor *mask, pl_error *err)
{
    char text[HEADER_BYTES];
    char *p = text + sizeof(uint64_t);
    size_t begin = 0;

    p += sprintf(p, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int i = 0; i < N_TENSORS; i++)
        p += add_entry(p, &list[i], &begin);
    p += add_entry(p, mask, &begin);
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
    const tensor mask = mask_tensor(e);
    tensor list[N_TENSORS];

    list_tensors(e, list);
    pl_status st = put_header(w, list, &mask, err);
    if (st == PL_OK)
        st = put_tables(w, e, 0, err);
    for (int i = 1; i < N_TENSORS && st == PL_OK; i++)
        st = pl_writer_put(w, values(e, &list[i]), bytes(&list[i]), err);
    return st == PL_OK ? put_tables(w, e, 1, err) : st;
}

static pl_status finish(pl_writer *w, pl_status st, pl_error *err)
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
                    "  \"torch_dtype\": \"float32\",\n  \"fc_norm\": true,\n"
                    "  \"norm_output\": true,\n  ");
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
    pl_status st = json_file_path(path, sizeof path, dir, weights_file, err);

    if (st == PL_OK)
        st = pl_writer_open(&w, path, err);
    if (st != PL_OK)
        return st;
    return finish(w, put_weights(w, e, err), err);
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

/* ---- reading ---- */

static pl_status get_int(const json_t *o, const char *key, int fallback, int *out, pl_error *err)
{
    const json_t *v = json_object_get(o, key);

    if (!v && fallback >= 0) {
        *out = fallback;
        return PL_OK;
    }
    if (!json_is_integer(v) || json_integer_value(v) < 1 || json_integer_value(v) > 1 << 24)
        return pl_fail(err, PL_E_FORMAT, "config.json: '%s' is missing or no positive number", key);
    *out = (int)json_integer_value(v);
    return PL_OK;
}

static pl_status expect(const json_t *o, const char *key, int want, pl_error *err)
{
    int got;
    const pl_status st = get_int(o, key, -1, &got, err);

    if (st == PL_OK && got != want)
        return pl_fail(err, PL_E_SHAPE,
            "%s is %d, the target's is %d: it is the drafter of another model", key, got, want);
    return st;
}

/* What the drafter must share with its target; its own sizes. */
static pl_status read_shape(
    const json_t *o, const pl_arch *a, eagle_shape *shape, int *n_vocab, pl_error *err)
{
    int layers = a->n_layers;
    pl_status st = expect(o, "hidden_size", a->n_embd, err);

    if (st == PL_OK)
        st = expect(o, "vocab_size", a->n_vocab, err);
    if (st == PL_OK && json_object_get(o, "head_dim"))
        st = expect(o, "head_dim", a->head_dim, err);
    if (st == PL_OK)
        st = get_int(o, "target_num_hidden_layers", a->n_layers, &layers, err);
    if (st == PL_OK && layers != a->n_layers)
        return pl_fail(err, PL_E_SHAPE,
            "its target has %d layers, this one %d: it is the drafter of another model", layers,
            a->n_layers);
    if (st == PL_OK && !(json_is_true(json_object_get(o, "fc_norm")) &&
                           json_is_true(json_object_get(o, "norm_output"))))
        return pl_fail(err, PL_E_SHAPE,
            "fc_norm and norm_output are not both true: only EAGLE-3.1 drafters are read");
    if (st == PL_OK)
        st = get_int(o, "draft_vocab_size", a->n_vocab, n_vocab, err);
    if (st == PL_OK)
        st = get_int(o, "intermediate_size", -1, &shape->n_ff, err);
    if (st == PL_OK)
        st = get_int(o, "num_attention_heads", -1, &shape->n_heads, err);
    if (st == PL_OK)
        st = get_int(o, "num_key_value_heads", shape->n_heads, &shape->n_kv_heads, err);
    if (st != PL_OK)
        return st;
    if (*n_vocab > a->n_vocab || shape->n_heads % shape->n_kv_heads != 0)
        return pl_fail(err, PL_E_SHAPE,
            "draft vocabulary of %d (target: %d), %d heads, %d KV heads: they do not fit", *n_vocab,
            a->n_vocab, shape->n_heads, shape->n_kv_heads);
    return PL_OK;
}

static pl_status check_tensor(const safetensors *f, const tensor *t, const char *dtype,
    const safetensors_tensor **out, pl_error *err)
{
    char name[96];
    const safetensors_tensor *s = safetensors_find(f, t->name);

    /* Some trainers put "model." before the names. */
    snprintf(name, sizeof name, "model.%s", t->name);
    if (!s)
        s = safetensors_find(f, name);
    if (!s)
        return pl_fail(err, PL_E_FORMAT, "tensor '%s' is missing", t->name);
    const int n_dims = t->rows ? 2 : 1;
    const uint64_t want[2] = {(uint64_t)(t->rows ? t->rows : t->cols), (uint64_t)t->cols};
    if (s->n_dims != n_dims || s->dims[0] != want[0] || (n_dims == 2 && s->dims[1] != want[1]))
        return pl_fail(err, PL_E_SHAPE,
            "tensor '%s' has %d dimensions, the first %llu; expected "
            "%d x %d",
            t->name, s->n_dims, (unsigned long long)(s->n_dims ? s->dims[0] : 0), t->rows, t->cols);
    if (dtype && strcmp(s->dtype, dtype) != 0)
        return pl_fail(
            err, PL_E_FORMAT, "tensor '%s' is of type %s, not %s", t->name, s->dtype, dtype);
    *out = s;
    return PL_OK;
}

/* Target ids of the draft vocabulary, *returned owned*; t2d must say the same. */
static pl_status read_vocab(
    const safetensors *f, int n_vocab, int n_target, int32_t **out, pl_error *err)
{
    const tensor table = {.name = "d2t", .cols = n_vocab}, mask = {.name = "t2d", .cols = n_target};
    const safetensors_tensor *d2t, *t2d;
    int kept = 0;
    pl_status st = check_tensor(f, &table, "I64", &d2t, err);

    if (st == PL_OK)
        st = check_tensor(f, &mask, "BOOL", &t2d, err);
    if (st != PL_OK)
        return st;
    int32_t *vocab = malloc((size_t)n_vocab * sizeof *vocab);
    if (!vocab)
        return pl_fail(err, PL_E_NOMEM, "no memory for a draft vocabulary of %d", n_vocab);
    for (int i = 0; i < n_vocab; i++) {
        int64_t offset;
        memcpy(&offset, d2t->data + (size_t)i * sizeof offset, sizeof offset);
        if (offset < 0 || offset >= n_target - i || t2d->data[i + offset] != 1) {
            free(vocab);
            return pl_fail(err, PL_E_SHAPE, "d2t[%d] = %lld and t2d do not agree on %d tokens", i,
                (long long)offset, n_target);
        }
        vocab[i] = (int32_t)(i + offset);
    }
    for (int i = 0; i < n_target; i++)
        kept += t2d->data[i] != 0;
    if (kept != n_vocab) {
        free(vocab);
        return pl_fail(err, PL_E_SHAPE, "t2d keeps %d tokens, d2t has %d", kept, n_vocab);
    }
    *out = vocab;
    return PL_OK;
}

static pl_status read_weights(pl_eagle *e, const safetensors *f, pl_error *err)
{
    tensor list[N_TENSORS];
    pl_status st = PL_OK;

    list_tensors(e, list);
    for (int i = 1; i < N_TENSORS && st == PL_OK; i++) {
        const safetensors_tensor *s;
        float *out = values(e, &list[i]);
        st = check_tensor(f, &list[i], NULL, &s, err);
        if (st != PL_OK)
            return st;
        if (strcmp(s->dtype, "F32") == 0)
            memcpy(out, s->data, bytes(&list[i]));
        else if (strcmp(s->dtype, "BF16") == 0)
            for (size_t j = 0; j < elements(&list[i]); j++)
                out[j] =
                    pl_bf16_to_f32((uint16_t)(s->data[2 * j] | (unsigned)s->data[2 * j + 1] << 8));
        else
            return pl_fail(err, PL_E_FORMAT, "tensor '%s' is of type %s; F32 and BF16 are read",
                list[i].name, s->dtype);
        for (size_t j = 0; j < elements(&list[i]); j++)
            if (!__builtin_isfinite(out[j]))
                return pl_fail(
                    err, PL_E_NUMERIC, "tensor '%s' holds NaN or infinity", list[i].name);
    }
    return st;
}

static pl_status load(pl_eagle **out, const pl_model *target, const safetensors *f,
    const json_t *config, pl_error *err)
{
    const pl_arch *a = pl_model_arch(target);
    int32_t *vocab = NULL;
    pl_eagle *e = NULL;
    eagle_shape shape;
    int n_vocab;
    pl_status st = read_shape(config, a, &shape, &n_vocab, err);

    if (st == PL_OK && (n_vocab < a->n_vocab || safetensors_find(f, "d2t")))
        st = read_vocab(f, n_vocab, a->n_vocab, &vocab, err);
    if (st == PL_OK)
        st = eagle_alloc(&e, target, &shape, vocab, n_vocab, err);
    if (st == PL_OK)
        st = read_weights(e, f, err);
    free(vocab);
    if (st != PL_OK) {
        pl_eagle_free(e);
        return st;
    }
    *out = e;
    return PL_OK;
}

pl_status pl_eagle_load(pl_eagle **out, const pl_model *target, const char *dir, pl_error *err)
{
    char path[4096];
    json_t *config = NULL;
    safetensors *f = NULL;
    pl_status st = json_file_read(&config, dir, "config.json", CONFIG_BYTES, err);

    if (st == PL_OK)
        st = json_file_path(path, sizeof path, dir, weights_file, err);
    if (st == PL_OK)
        st = safetensors_open(&f, path, err);
    if (st == PL_OK)
        st = load(out, target, f, config, err);
    safetensors_close(f);
    json_decref(config);
    if (st != PL_OK)
        return pl_wrap(err, st, "drafter '%s'", dir);
    return PL_OK;
}

/* ---- the trainer's state ---- */

typedef struct state_header {
    char magic[8];
    uint64_t n_elements;
    int64_t step;
    uint64_t has_average;
    uint64_t hash[3]; /* of m, v, average */
} state_header;

static const char state_magic[8] = "PLEAGLE1";

static state_header header_of(const pl_eagle_trainer *t)
{
    const size_t n = t->e->n_elements * sizeof(float);
    state_header h = {.n_elements = t->e->n_elements,
        .step = t->step,
        .has_average = t->average != NULL,
        .hash = {
            pl_hash64(t->m, n), pl_hash64(t->v, n), t->average ? pl_hash64(t->average, n) : 0}};

    memcpy(h.magic, state_magic, sizeof h.magic);
    return h;
}

pl_status pl_eagle_trainer_save(const pl_eagle_trainer *t, const char *path, pl_error *err)
{
    const state_header h = header_of(t);
    const size_t n = t->e->n_elements * sizeof(float);
    pl_writer *w;
    pl_status st = pl_writer_open(&w, path, err);

    if (st != PL_OK)
        return st;
    st = pl_writer_put(w, &h, sizeof h, err);
    if (st == PL_OK)
        st = pl_writer_put(w, t->m, n, err);
    if (st == PL_OK)
        st = pl_writer_put(w, t->v, n, err);
    if (st == PL_OK && t->average)
        st = pl_writer_put(w, t->average, n, err);
    return finish(w, st, err);
}

static pl_status check_state(const pl_eagle_trainer *t, const pl_file *f, pl_error *err)
{
    const size_t n = t->e->n_elements * sizeof(float);
    state_header h;

    if (f->size < sizeof h || memcmp(f->data, state_magic, sizeof h.magic) != 0)
        return pl_fail(err, PL_E_FORMAT, "it is no state of a drafter's training");
    memcpy(&h, f->data, sizeof h);
    if (h.n_elements != t->e->n_elements || h.has_average != (t->average != NULL))
        return pl_fail(err, PL_E_SHAPE, "%llu parameters %s average; this drafter has %zu, %s",
            (unsigned long long)h.n_elements, h.has_average ? "with" : "without", t->e->n_elements,
            t->average ? "with" : "without");
    const size_t n_arrays = h.has_average ? 3 : 2;
    if (f->size != sizeof h + n_arrays * n || h.step < 0)
        return pl_fail(err, PL_E_FORMAT, "%zu bytes, expected %zu: it is torn", f->size,
            sizeof h + n_arrays * n);
    for (size_t i = 0; i < n_arrays; i++)
        if (pl_hash64(f->data + sizeof h + i * n, n) != h.hash[i])
            return pl_fail(err, PL_E_FORMAT, "array %zu does not match its hash", i);
    return PL_OK;
}

pl_status pl_eagle_trainer_load(pl_eagle_trainer *t, const char *path, pl_error *err)
{
    const size_t n = t->e->n_elements * sizeof(float);
    pl_file f = {0};
    state_header h;
    pl_status st = pl_file_open(&f, path, err);

    if (st != PL_OK)
        return st;
    st = check_state(t, &f, err);
    if (st == PL_OK) {
        memcpy(&h, f.data, sizeof h);
        t->step = h.step;
        memcpy(t->m, f.data + sizeof h, n);
        memcpy(t->v, f.data + sizeof h + n, n);
        if (t->average)
            memcpy(t->average, f.data + sizeof h + 2 * n, n);
    }
    pl_file_close(&f);
    return st == PL_OK ? PL_OK : pl_wrap(err, st, "'%s'", path);
}
