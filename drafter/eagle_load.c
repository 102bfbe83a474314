/* drafter/eagle_load.c - a drafter read from a directory in the EAGLE-3 layout, its own or another
 * trainer's: EAGLE-3.1 or plain EAGLE-3, checked against the target that it is to draft for. */
#include "drafter/eagle_layout.h"

#include "model/json_file.h"
#include "model/safetensors.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONFIG_BYTES = 1 << 20 };

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

/* A flag at the top, or in eagle_config. */
static int is_set(const json_t *o, const char *key)
{
    return json_is_true(json_object_get(o, key)) ||
           json_is_true(json_object_get(json_object_get(o, "eagle_config"), key));
}

/* What other drafters have and this one cannot compute. */
static pl_status check_kind(const json_t *o, pl_error *err)
{
    static const char *const unknown[] = {
        "norm_before_residual", "norm_before_fc", "attention_bias", "mlp_bias", "bias"};
    const json_t *act = json_object_get(o, "hidden_act");

    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
        if (is_set(o, unknown[i]))
            return pl_fail(err, PL_E_SHAPE,
                "'%s' is true: drafters without it are read, EAGLE-3 and EAGLE-3.1", unknown[i]);
    if (act && (!json_is_string(act) || strcmp(json_string_value(act), "silu") != 0))
        return pl_fail(err, PL_E_SHAPE, "'hidden_act' is not silu");
    return PL_OK;
}

/* The rotation is the target's: a drafter that learned another one would be blind. */
static pl_status check_rope(const json_t *o, const pl_arch *a, pl_error *err)
{
    const json_t *v = json_object_get(o, "rope_theta");
    const json_t *scaling = json_object_get(o, "rope_scaling");

    if (!v)
        v = json_object_get(json_object_get(o, "rope_parameters"), "rope_theta");
    const double theta = v ? json_number_value(v) : 10000.0;
    if (!(fabs(theta - a->rope_theta) <= 1e-6 * a->rope_theta))
        return pl_fail(err, PL_E_SHAPE, "rope_theta is %g%s, the target's is %g", theta,
            v ? "" : " (when not given)", a->rope_theta);
    if (scaling && json_is_object(scaling) != (a->rope_type == PL_ROPE_LLAMA3))
        return pl_fail(err, PL_E_SHAPE, "rope_scaling is %sgiven, the target's is %s",
            json_is_object(scaling) ? "" : "not ",
            a->rope_type == PL_ROPE_LLAMA3 ? "llama3" : "none");
    return PL_OK;
}

/* The layers that it reads; shift: how their numbers are counted. */
static pl_status check_layers(const json_t *list, const pl_arch *a, int shift, pl_error *err)
{
    int want[PL_FEATURE_LAYERS];

    if (!json_is_array(list))
        return PL_OK; /* not said: the usual ones */
    pl_feature_layers(a, want);
    for (size_t i = 0; i < PL_FEATURE_LAYERS; i++)
        if (json_array_size(list) != PL_FEATURE_LAYERS ||
            json_integer_value(json_array_get(list, i)) != want[i] + shift)
            return pl_fail(err, PL_E_SHAPE,
                "it reads other layers of the target than %d, %d and %d (their outputs, from 0)",
                want[0], want[1], want[2]);
    return PL_OK;
}

/* What the drafter must share with its target. */
static pl_status check_target(const json_t *o, const pl_arch *a, pl_error *err)
{
    static const char key[] = "eagle_aux_hidden_state_layer_ids";
    const json_t *inner = json_object_get(json_object_get(o, "eagle_config"), key);
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
    if (st == PL_OK)
        st = check_rope(o, a, err);
    if (st == PL_OK && inner)
        return check_layers(inner, a, 0, err);
    return st == PL_OK ? check_layers(json_object_get(o, key), a, 1, err) : st;
}

/* Its own sizes and kind. */
static pl_status read_shape(
    const json_t *o, const pl_arch *a, eagle_shape *shape, int *n_vocab, pl_error *err)
{
    pl_status st = check_target(o, a, err);

    if (st == PL_OK)
        st = check_kind(o, err);
    *shape =
        (eagle_shape){.no_fc_norm = !is_set(o, "fc_norm"), .raw_output = !is_set(o, "norm_output")};
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

/* A tensor by its name, or by one of those that other trainers give it; NULL. */
static const safetensors_tensor *find_tensor(const safetensors *f, const char *name)
{
    static const char layer[] = "midlayer.";
    const size_t n = sizeof layer - 1;
    const int is_layer = strncmp(name, layer, n) == 0;
    const safetensors_tensor *s = safetensors_find(f, name);
    char other[96];

    snprintf(other, sizeof other, "model.%s", name);
    if (!s)
        s = safetensors_find(f, other);
    for (int i = 0; i < 2 && !s && is_layer; i++) {
        snprintf(other, sizeof other, "%slayers.0.%s", i ? "model." : "", name + n);
        s = safetensors_find(f, other);
    }
    return s;
}

static pl_status check_tensor(const safetensors *f, const eagle_tensor *t, const char *dtype,
    const safetensors_tensor **out, pl_error *err)
{
    const safetensors_tensor *s = find_tensor(f, t->name);

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

/* t2d, if it is there, must keep what d2t names and no more. */
static pl_status check_mask(const safetensors *f, const int32_t *vocab, int n_vocab,
    const eagle_tensor *mask, pl_error *err)
{
    const safetensors_tensor *t2d;
    int kept = 0;

    if (!find_tensor(f, mask->name))
        return PL_OK;
    const pl_status st = check_tensor(f, mask, "BOOL", &t2d, err);
    if (st != PL_OK)
        return st;
    for (int i = 0; i < n_vocab; i++)
        if (t2d->data[vocab[i]] != 1)
            return pl_fail(
                err, PL_E_SHAPE, "d2t names token %d, which t2d does not keep", (int)vocab[i]);
    for (int i = 0; i < mask->cols; i++)
        kept += t2d->data[i] != 0;
    if (kept != n_vocab)
        return pl_fail(err, PL_E_SHAPE, "t2d keeps %d tokens, d2t has %d", kept, n_vocab);
    return PL_OK;
}

/* Target ids of the draft vocabulary, *returned owned*. */
static pl_status read_vocab(
    const safetensors *f, int n_vocab, int n_target, int32_t **out, pl_error *err)
{
    const eagle_tensor table = {.name = "d2t", .cols = n_vocab};
    const eagle_tensor mask = {.name = "t2d", .cols = n_target};
    const safetensors_tensor *d2t;
    pl_status st = check_tensor(f, &table, "I64", &d2t, err);

    if (st != PL_OK)
        return st;
    int32_t *vocab = malloc((size_t)n_vocab * sizeof *vocab);
    if (!vocab)
        return pl_fail(err, PL_E_NOMEM, "no memory for a draft vocabulary of %d", n_vocab);
    for (int i = 0; i < n_vocab && st == PL_OK; i++) {
        int64_t offset;
        memcpy(&offset, d2t->data + (size_t)i * sizeof offset, sizeof offset);
        if (offset < 0 || offset >= n_target - i)
            st = pl_fail(err, PL_E_SHAPE, "d2t[%d] = %lld points beyond %d tokens", i,
                (long long)offset, n_target);
        else
            vocab[i] = (int32_t)(i + offset);
    }
    if (st == PL_OK)
        st = check_mask(f, vocab, n_vocab, &mask, err);
    if (st != PL_OK) {
        free(vocab);
        return st;
    }
    *out = vocab;
    return PL_OK;
}

static float of_half(const unsigned char *p)
{
    const unsigned bits = p[0] | (unsigned)p[1] << 8;
    const unsigned exponent = bits >> 10 & 31, fraction = bits & 1023;
    float x = exponent == 31 ? (fraction ? NAN : INFINITY)
              : exponent     ? ldexpf((float)(1024 + fraction), (int)exponent - 25)
                             : ldexpf((float)fraction, -24);
    return bits >> 15 ? -x : x;
}

static float of_bf16(const unsigned char *p)
{
    return pl_bf16_to_f32((uint16_t)(p[0] | (unsigned)p[1] << 8));
}

static pl_status read_values(
    float *out, const safetensors_tensor *s, const eagle_tensor *t, pl_error *err)
{
    const size_t n = eagle_tensor_elements(t);

    if (strcmp(s->dtype, "F32") == 0)
        memcpy(out, s->data, n * sizeof *out);
    else if (strcmp(s->dtype, "BF16") == 0)
        for (size_t i = 0; i < n; i++)
            out[i] = of_bf16(s->data + 2 * i);
    else if (strcmp(s->dtype, "F16") == 0)
        for (size_t i = 0; i < n; i++)
            out[i] = of_half(s->data + 2 * i);
    else
        return pl_fail(err, PL_E_FORMAT, "tensor '%s' is of type %s; F32, BF16 and F16 are read",
            t->name, s->dtype);
    for (size_t i = 0; i < n; i++)
        if (!isfinite(out[i]))
            return pl_fail(err, PL_E_NUMERIC, "tensor '%s' holds NaN or infinity", t->name);
    return PL_OK;
}

static pl_status read_weights(pl_eagle *e, const safetensors *f, pl_error *err)
{
    eagle_tensor list[EAGLE_MAX_TENSORS];
    const int n = eagle_list_tensors(e, list);
    pl_status st = PL_OK;

    if (find_tensor(f, "layers.1.self_attn.q_proj.weight") ||
        find_tensor(f, "additional_layers.0.self_attn.q_proj.weight"))
        return pl_fail(err, PL_E_SHAPE, "it has more than one layer; drafters of one are read");
    if (!e->has_fc_norm && find_tensor(f, "fc_norm.0.weight"))
        return pl_fail(
            err, PL_E_SHAPE, "there are fc_norm tensors, but config.json has no fc_norm");
    for (int i = 0; i < n && st == PL_OK; i++) {
        const safetensors_tensor *s;
        if (list[i].type != EAGLE_F32)
            continue;
        st = check_tensor(f, &list[i], NULL, &s, err);
        if (st == PL_OK)
            st = read_values(eagle_tensor_values(e, &list[i]), s, &list[i], err);
    }
    return st;
}

/* Norms that are not used keep a gain of one. */
static void fill_fc_norm(pl_eagle *e)
{
    const eagle_matrix *m = &e->p[EAGLE_FC_NORM];
    for (size_t i = 0; i < (size_t)m->rows * (size_t)m->cols; i++)
        e->w[m->offset + i] = 1.0f;
}

static pl_status load(pl_eagle **out, const pl_model *target, const safetensors *f,
    const json_t *config, pl_error *err)
{
    const pl_arch *a = pl_model_arch(target);
    int32_t *vocab = NULL;
    pl_eagle *e = NULL;
    eagle_shape shape;
    int n_vocab;
    const json_t *given = json_object_get(config, "rms_norm_eps");
    const double eps = given ? json_number_value(given) : (double)a->rms_eps;
    pl_status st = read_shape(config, a, &shape, &n_vocab, err);

    if (st == PL_OK && !(eps > 0 && eps < 1))
        return pl_fail(err, PL_E_FORMAT, "config.json: 'rms_norm_eps' is %g", eps);

    if (st == PL_OK && (n_vocab < a->n_vocab || find_tensor(f, "d2t")))
        st = read_vocab(f, n_vocab, a->n_vocab, &vocab, err);
    if (st == PL_OK)
        st = eagle_alloc(&e, target, &shape, vocab, n_vocab, err);
    if (st == PL_OK) {
        e->eps = (float)eps;
        fill_fc_norm(e);
        st = read_weights(e, f, err);
    }
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
        st = json_file_path(path, sizeof path, dir, eagle_weights_file, err);
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
