/* tests/drafter/test_eagle_file.c - the EAGLE-3 layout.
 *
 * Claims: a drafter is written with the names, shapes and types that the loaders of SGLang
 * (srt/models/llama_eagle3.py) and vLLM (model_executor/models/llama_eagle3.py) look up, and with
 * the keys of config.json that they read; a plain EAGLE-3 is read, drafts and is written as one;
 * other trainers' names and 16-bit weights are understood; what this drafter cannot compute is
 * refused in words. */
#include "tests/drafter/eagle_bed.h"

#include "core/file.h"
#include "model/safetensors.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <unistd.h>

typedef struct home {
    char dir[64], weights[96], config[96];
} home;

static void home_init(home *h)
{
    strcpy(h->dir, "/tmp/pl_eagle_XXXXXX");
    cr_assert_not_null(mkdtemp(h->dir));
    snprintf(h->weights, sizeof h->weights, "%s/model.safetensors", h->dir);
    snprintf(h->config, sizeof h->config, "%s/config.json", h->dir);
}

static void home_done(home *h)
{
    pl_dir_remove(h->dir, NULL);
}

/* What vLLM and SGLang look up, sizes those of `small` and a vocabulary of Vd. */
typedef struct row {
    const char *name, *dtype;
    int rows, cols; /* rows 0: one dimension; -1: Vd */
} row;

static const row table[] = {{"d2t", "I64", 0, -1}, {"t2d", "BOOL", 0, 320},
    {"fc.weight", "F32", 40, 120}, {"fc_norm.0.weight", "F32", 0, 40},
    {"fc_norm.1.weight", "F32", 0, 40}, {"fc_norm.2.weight", "F32", 0, 40},
    {"midlayer.input_layernorm.weight", "F32", 0, 40},
    {"midlayer.hidden_norm.weight", "F32", 0, 40},
    {"midlayer.self_attn.q_proj.weight", "F32", 48, 80},
    {"midlayer.self_attn.k_proj.weight", "F32", 24, 80},
    {"midlayer.self_attn.v_proj.weight", "F32", 24, 80},
    {"midlayer.self_attn.o_proj.weight", "F32", 40, 48},
    {"midlayer.post_attention_layernorm.weight", "F32", 0, 40},
    {"midlayer.mlp.gate_proj.weight", "F32", 56, 40},
    {"midlayer.mlp.up_proj.weight", "F32", 56, 40},
    {"midlayer.mlp.down_proj.weight", "F32", 40, 56}, {"norm.weight", "F32", 0, 40},
    {"lm_head.weight", "F32", -1, 40}};
enum { N_ROWS = sizeof table / sizeof *table };

static void check_names(const home *h, int n_vocab, int is_plain)
{
    safetensors *f;
    pl_error err = {0};

    cr_assert_eq(safetensors_open(&f, h->weights, &err), PL_OK, "%s", err.msg);
    cr_expect_eq(safetensors_count(f), N_ROWS - (is_plain ? 3 : 0));
    for (int i = 0; i < N_ROWS; i++) {
        const safetensors_tensor *t = safetensors_find(f, table[i].name);
        if (is_plain && strncmp(table[i].name, "fc_norm", 7) == 0) {
            cr_expect_null(t);
            continue;
        }
        cr_assert_not_null(t, "%s is missing", table[i].name);
        const int n_dims = table[i].rows ? 2 : 1, last = n_dims - 1;
        const int rows = table[i].rows < 0 ? n_vocab : table[i].rows;
        const int cols = table[i].cols < 0 ? n_vocab : table[i].cols;
        cr_expect(strcmp(t->dtype, table[i].dtype) == 0 && t->n_dims == n_dims &&
                      t->dims[last] == (uint64_t)cols &&
                      (last == 0 || t->dims[0] == (uint64_t)rows),
            "%s", table[i].name);
    }
    safetensors_close(f);
}

static int is_list(const json_t *list, int a, int b, int c)
{
    return json_array_size(list) == 3 && json_integer_value(json_array_get(list, 0)) == a &&
           json_integer_value(json_array_get(list, 1)) == b &&
           json_integer_value(json_array_get(list, 2)) == c;
}

static void check_config(const home *h, int n_vocab, int is_plain)
{
    static const char layers[] = "eagle_aux_hidden_state_layer_ids";
    static const struct {
        const char *key;
        int value;
    } want[] = {{"hidden_size", 40}, {"intermediate_size", 56}, {"num_hidden_layers", 1},
        {"num_attention_heads", 4}, {"num_key_value_heads", 2}, {"head_dim", 12},
        {"max_position_embeddings", 128}, {"vocab_size", 320}, {"target_hidden_size", 40},
        {"num_aux_hidden_states", 3}};
    json_t *c = json_load_file(h->config, 0, NULL);

    cr_assert_not_null(c);
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        cr_expect_eq(
            json_integer_value(json_object_get(c, want[i].key)), want[i].value, "%s", want[i].key);
    cr_expect_eq(json_integer_value(json_object_get(c, "draft_vocab_size")), n_vocab);
    const json_t *arch = json_array_get(json_object_get(c, "architectures"), 0);
    cr_expect_str_eq(json_string_value(arch), "LlamaForCausalLMEagle3");
    cr_expect_str_eq(json_string_value(json_object_get(c, "model_type")), "llama");
    cr_expect_str_eq(json_string_value(json_object_get(c, "hidden_act")), "silu");
    cr_expect_str_eq(json_string_value(json_object_get(c, "torch_dtype")), "bfloat16");
    /* SGLang shares the embedding as the head when it is tied. */
    cr_expect(json_is_false(json_object_get(c, "tie_word_embeddings")));
    cr_expect_eq(json_is_true(json_object_get(c, "fc_norm")), !is_plain);
    cr_expect_eq(json_is_true(json_object_get(c, "norm_output")), !is_plain);
    cr_expect_float_eq(json_number_value(json_object_get(c, "rope_theta")), 10000.0, 0);
    cr_expect_float_eq(json_number_value(json_object_get(c, "rms_norm_eps")), 1e-5, 1e-12);
    /* A target of two layers is read after 0, 0 and 1: SGLang adds one, vLLM does not. */
    const json_t *e = json_object_get(c, "eagle_config");
    cr_expect(json_is_true(json_object_get(e, "use_aux_hidden_state")));
    cr_expect(is_list(json_object_get(e, layers), 0, 0, 1));
    cr_expect(is_list(json_object_get(c, layers), 1, 1, 2));
    json_decref(c);
}

Test(eagle_file, the_layout_has_the_names_and_shapes_that_sglang_and_vllm_load)
{
    pl_error err = {0};
    home h;
    bed b;

    home_init(&h);
    bed_init(&b, &small, 1);
    for (int is_plain = 0; is_plain < 2; is_plain++) {
        b.e->has_fc_norm = b.e->norm_output = !is_plain;
        cr_assert_eq(pl_eagle_save(b.e, h.dir, &err), PL_OK, "%s", err.msg);
        check_names(&h, b.n_vocab, is_plain);
        check_config(&h, b.n_vocab, is_plain);
    }
    home_done(&h);
    bed_done(&b);
}

Test(eagle_file, a_draft_vocabulary_that_is_the_target_s_has_no_tables)
{
    const pl_eagle_options o = {.seed = 3}; /* all 320 */
    pl_error err = {0};
    pl_eagle *all = NULL, *back = NULL;
    safetensors *f;
    home h;
    bed b;

    home_init(&h);
    bed_init(&b, &small, 1);
    cr_assert_eq(pl_eagle_new(&all, b.m, &o, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_eagle_save(all, h.dir, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(safetensors_open(&f, h.weights, &err), PL_OK, "%s", err.msg);
    cr_expect_eq(safetensors_count(f), N_ROWS - 2);
    cr_expect(!safetensors_find(f, "d2t") && !safetensors_find(f, "t2d"));
    safetensors_close(f);
    cr_assert_eq(pl_eagle_load(&back, b.m, h.dir, &err), PL_OK, "%s", err.msg);
    cr_expect_eq(pl_eagle_n_vocab(back), 320);
    cr_expect_arr_eq(pl_eagle_vocab(back), pl_eagle_vocab(all), 320 * sizeof(int32_t));
    cr_expect_arr_eq(pl_eagle_get_weights(back), pl_eagle_get_weights(all),
        pl_eagle_n_elements(all) * sizeof(float));
    pl_eagle_free(all);
    pl_eagle_free(back);
    home_done(&h);
    bed_done(&b);
}

Test(eagle_file, weights_that_come_in_parts_and_are_packed_alone_are_the_same)
{
    const pl_eagle_options o = {.seed = 3}, o2 = {.seed = 4};
    pl_error err = {0};
    pl_eagle *x = NULL, *y = NULL;
    bed b;

    bed_init(&b, &small, 2);
    cr_assert_eq(pl_eagle_new(&x, b.m, &o, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_eagle_new(&y, b.m, &o2, &err), PL_OK, "%s", err.msg);
    pl_eagle_pack_alone(y); /* of the other weights: they are old when these come */
    const size_t n = pl_eagle_n_elements(x), part = n / 3;
    for (size_t i = 0; i < n; i += part)
        pl_eagle_set_part(y, pl_eagle_get_weights(x), i, n - i < part ? n - i : part);
    while (pl_eagle_pack_one(x))
        continue;
    pl_eagle_pack_alone(y);
    cr_expect_eq(pl_eagle_pack_one(y), 0);
    cr_expect_arr_eq(pl_eagle_get_weights(x), pl_eagle_get_weights(y), n * sizeof(float));
    for (int i = EAGLE_FC; i < EAGLE_N_PARAMS; i++) {
        const eagle_matrix *m = &x->p[i];
        if (m->packed)
            cr_expect_arr_eq(m->packed, y->p[i].packed,
                pl_packed_elements(m->rows, m->cols) * sizeof *m->packed);
    }
    pl_eagle_free(x);
    pl_eagle_free(y);
    bed_done(&b);
}

/* Every place of a text of the same length. */
static void replace_all(const char *path, const char *from, const char *to)
{
    pl_error err = {0};
    char *text;
    size_t n, n_found = 0;
    const size_t len = strlen(from);

    cr_assert_eq(strlen(to), len);
    cr_assert_eq(pl_file_read(&text, &n, path, 1 << 26, &err), PL_OK, "%s", err.msg);
    for (size_t i = 0; i + len <= n; i++)
        if (memcmp(text + i, from, len) == 0) {
            memcpy(text + i, to, len);
            n_found++;
        }
    cr_assert_gt(n_found, 0, "'%s' is not there", from);
    cr_assert_eq(pl_file_write(path, text, n, &err), PL_OK, "%s", err.msg);
    free(text);
}

static double loss_of(pl_eagle *e, data *x)
{
    const pl_eagle_train_options o = options();
    pl_eagle_step_stats s;
    pl_eagle_trainer *t = trainer(e, &o);
    cr_assert_eq(pl_eagle_eval(t, &x->w, 1, &s, NULL), PL_OK);
    pl_eagle_trainer_free(t);
    return s.loss;
}

Test(eagle_file, a_plain_eagle_3_is_read_and_drafts_as_one)
{
    static data x;
    pl_error err = {0};
    pl_eagle *e;
    home h;
    bed b;

    home_init(&h);
    bed_init(&b, &small, 1);
    data_init(&x, &small, 30, 1);
    disturb(b.e);
    const double other = loss_of(b.e, &x);
    b.e->has_fc_norm = b.e->norm_output = 0;
    b.e->eps = 1e-3f;
    for (int i = 0; i < 2; i++) {
        const double want = loss_of(b.e, &x);
        cr_expect(fabs(want - other) > 1e-3);
        cr_assert_eq(pl_eagle_save(b.e, h.dir, &err), PL_OK, "%s", err.msg);
        if (i == 1) /* as speculators names its layer */
            replace_all(h.weights, "midlayer.", "layers.0.");
        cr_assert_eq(pl_eagle_load(&e, b.m, h.dir, &err), PL_OK, "%s", err.msg);
        cr_expect(!e->has_fc_norm && !e->norm_output && e->eps == 1e-3f);
        const size_t from = e->p[EAGLE_NORM_EMB].offset;
        cr_expect(memcmp(e->w + from, b.e->w + from, (e->n_elements - from) * sizeof *e->w) == 0);
        cr_expect_eq(loss_of(e, &x), want);
        pl_eagle_free(e);
    }
    home_done(&h);
    bed_done(&b);
}

/* The weights file again with its fp32 tensors in 16 bits. */
static void halve(const home *h, const char *dtype, uint16_t (*turn)(float))
{
    pl_error err = {0};
    safetensors *f;
    char *out = malloc(1 << 20), *body = malloc(1 << 20);
    size_t n = 0, at = 8;

    cr_assert(out && body);
    cr_assert_eq(safetensors_open(&f, h->weights, &err), PL_OK, "%s", err.msg);
    out[at++] = '{';
    for (int i = 0; i < safetensors_count(f); i++) {
        const safetensors_tensor *t = safetensors_at(f, i);
        const int is_f32 = strcmp(t->dtype, "F32") == 0;
        const size_t begin = n;
        for (size_t j = 0; is_f32 && j < t->n_bytes / 4; j++, n += 2) {
            float v;
            memcpy(&v, t->data + 4 * j, 4);
            const uint16_t half = turn(v);
            memcpy(body + n, &half, 2);
        }
        if (!is_f32) {
            memcpy(body + n, t->data, t->n_bytes);
            n += t->n_bytes;
        }
        at += (size_t)sprintf(out + at, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", i ? "," : "",
            t->name, is_f32 ? dtype : t->dtype);
        for (int d = 0; d < t->n_dims; d++)
            at += (size_t)sprintf(out + at, "%s%llu", d ? "," : "", (unsigned long long)t->dims[d]);
        at += (size_t)sprintf(out + at, "],\"data_offsets\":[%zu,%zu]}", begin, n);
    }
    out[at++] = '}';
    while (at % 8 != 0)
        out[at++] = ' ';
    const uint64_t length = at - 8;
    memcpy(out, &length, sizeof length);
    memcpy(out + at, body, n);
    safetensors_close(f);
    cr_assert_eq(pl_file_write(h->weights, out, at + n, &err), PL_OK, "%s", err.msg);
    free(out);
    free(body);
}

/* IEEE half of a value with at most 11 bits. */
static uint16_t to_half(float x)
{
    int exponent;
    const float f = frexpf(fabsf(x), &exponent);
    const unsigned sign = signbit(x) ? 0x8000u : 0;
    if (f == 0)
        return (uint16_t)sign;
    if (exponent < -13) /* subnormal */
        return (uint16_t)(sign | (unsigned)ldexpf(f, exponent + 24));
    return (uint16_t)(sign | (unsigned)(exponent + 14) << 10 | ((unsigned)ldexpf(f, 11) & 1023));
}

static uint16_t to_bf16(float x)
{
    return pl_f32_to_bf16(x);
}

Test(eagle_file, weights_of_16_bits_are_read_exactly)
{
    static const char *const types[] = {"BF16", "F16"};
    pl_error err = {0};
    pl_eagle *e;
    home h;
    bed b;

    home_init(&h);
    bed_init(&b, &small, 1);
    for (size_t i = 0; i < b.e->n_elements; i++) /* 8 bits, none too small for a half */
        b.e->w[i] = ldexpf(rintf(ldexpf(rounded((double)b.e->w[i]), 17)), -17);
    for (size_t i = 0; i < b.e->n_elements; i++)
        b.e->w[i] = rounded((double)b.e->w[i]);
    for (int i = 0; i < 2; i++) {
        cr_assert_eq(pl_eagle_save(b.e, h.dir, &err), PL_OK, "%s", err.msg);
        halve(&h, types[i], i ? to_half : to_bf16);
        cr_assert_eq(pl_eagle_load(&e, b.m, h.dir, &err), PL_OK, "%s", err.msg);
        cr_expect(same_weights(b.e, e->w), "%s", types[i]);
        pl_eagle_free(e);
    }
    home_done(&h);
    bed_done(&b);
}

Test(eagle_file, what_another_drafter_has_and_this_one_has_not_is_refused_in_words)
{
    static const struct {
        const char *from, *to, *word;
        pl_status want;
    } cases[] = {
        {"\"attention_bias\": false", "\"attention_bias\": true ", "attention_bias", PL_E_SHAPE},
        {"\"torch_dtype\": \"bfloat16\"", "\"norm_before_fc\": true   ", "norm_before_fc",
            PL_E_SHAPE},
        {"\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\"", "hidden_act", PL_E_SHAPE},
        {"\"fc_norm\": true", "\"fc_nrom\": true", "fc_norm", PL_E_SHAPE},
        {"[0, 0, 1]", "[0, 1, 1]", "other layers", PL_E_SHAPE},
        {"\"rope_theta\": 10000", "\"rope_theta\": 50000", "rope_theta", PL_E_SHAPE},
        {"\"rms_norm_eps\": ", "\"rms_norm_eps\":-", "rms_norm_eps", PL_E_FORMAT},
    };
    pl_error err = {0};
    pl_eagle *e;
    home h;
    bed b;

    home_init(&h);
    bed_init(&b, &small, 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cr_assert_eq(pl_eagle_save(b.e, h.dir, &err), PL_OK, "%s", err.msg);
        replace_all(h.config, cases[i].from, cases[i].to);
        cr_expect_eq(pl_eagle_load(&e, b.m, h.dir, &err), cases[i].want, "%s", cases[i].to);
        cr_expect(strstr(err.msg, cases[i].word) != NULL, "%s: %s", cases[i].word, err.msg);
    }
    cr_assert_eq(pl_eagle_save(b.e, h.dir, &err), PL_OK, "%s", err.msg);
    replace_all(h.weights, "fc_norm.1", "fc_nrom.1");
    cr_expect_eq(pl_eagle_load(&e, b.m, h.dir, &err), PL_E_FORMAT);
    cr_expect(strstr(err.msg, "fc_norm.1") != NULL, "%s", err.msg);
    home_done(&h);
    bed_done(&b);
}
