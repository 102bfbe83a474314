/* tests/model/test_source.c - a model survives write, open, read and save with equal bits, in both
 * kinds of file; and whatever does not fit is refused by name.  Each test works in a directory of
 * its own below /tmp, which it removes. */
#include "core/file.h"
#include "model/gguf.h"
#include "model/source.h"
#include "tests/model/gguf_builder.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char dir[64];

static void make_dir(void)
{
    strcpy(dir, "/tmp/pl-test-source-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
}

static void remove_dir(void)
{
    cr_expect_eq(pl_dir_remove(dir, NULL), PL_OK);
}

TestSuite(source, .init = make_dir, .fini = remove_dir);

static const char *in_dir(const char *name)
{
    static char path[2][256];
    static int turn;
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s", dir, name);
    return path[turn];
}

static void write_tiny(const char *where, const pl_tiny_options *o)
{
    pl_error err = {0};
    cr_assert_eq(pl_tiny_write(where, o, &err), PL_OK, "%s", err.msg);
}

static pl_source *open_source(const char *path)
{
    pl_source *s = NULL;
    pl_error err = {0};
    cr_assert_eq(pl_source_open(&s, path, &err), PL_OK, "%s", err.msg);
    return s;
}

static void expect_refusal(const char *path, pl_status code, const char *words)
{
    pl_source *s = NULL;
    pl_error err = {0};
    const pl_status st = pl_source_open(&s, path, &err);
    cr_expect_eq(st, code, "status %d for '%s': %s", (int)st, words, err.msg);
    cr_expect_not_null(strstr(err.msg, words), "'%s' lacks '%s'", err.msg, words);
    pl_source_close(s);
}

/* All parameters, laid out by the table; free. */
static float *read_all(const pl_source *s)
{
    const pl_param_table *t = pl_source_params(s);
    float *m = calloc(t->n_elements, sizeof *m);
    pl_error err = {0};

    cr_assert_not_null(m);
    for (int i = 0; i < t->n_params; i++)
        cr_assert_eq(
            pl_source_read(s, &t->params[i], m + t->params[i].offset, &err), PL_OK, "%s", err.msg);
    return m;
}

/* Replace the first occurrence of old in a small text file. */
static void edit(const char *path, const char *old, const char *new)
{
    char *text = NULL, *at;
    size_t n;
    char *out = calloc(1, 1 << 20);

    cr_assert_eq(pl_file_read(&text, &n, path, 1 << 19, NULL), PL_OK);
    at = strstr(text, old);
    cr_assert_not_null(at, "'%s' not in %s", old, path);
    memcpy(out, text, (size_t)(at - text));
    strcat(out, new);
    strcat(out, at + strlen(old));
    cr_assert_eq(pl_file_write(path, out, strlen(out), NULL), PL_OK);
    free(out);
    free(text);
}

static void odd_shape(pl_tiny_options *o)
{
    pl_tiny_defaults(o);
    o->arch.n_embd = 112;
    o->arch.n_heads = 7;
    o->arch.n_kv_heads = 1;
    o->arch.head_dim = 48;
    o->arch.n_vocab = 1003;
    o->arch.tied = 0;
    o->arch.rope_type = PL_ROPE_LLAMA3;
    o->arch.rope_theta = 500000.0;
    o->arch.rope_factor = 8.0;
    o->arch.rope_low_freq_factor = 1.0;
    o->arch.rope_high_freq_factor = 4.0;
    o->arch.rope_original_ctx = 128;
    o->arch.eos_ids[1] = 0;
    o->arch.n_eos = 2;
}

static int same_arch(const pl_arch *a, const pl_arch *c)
{
    int same = a->n_layers == c->n_layers && a->n_embd == c->n_embd && a->n_heads == c->n_heads &&
               a->n_kv_heads == c->n_kv_heads && a->head_dim == c->head_dim && a->n_ff == c->n_ff &&
               a->n_vocab == c->n_vocab && a->n_ctx == c->n_ctx && a->tied == c->tied &&
               a->rms_eps == c->rms_eps && a->rope_theta == c->rope_theta &&
               a->rope_type == c->rope_type && a->rope_factor == c->rope_factor &&
               a->rope_low_freq_factor == c->rope_low_freq_factor &&
               a->rope_high_freq_factor == c->rope_high_freq_factor &&
               a->rope_original_ctx == c->rope_original_ctx && a->bos_id == c->bos_id &&
               a->n_eos == c->n_eos;
    for (int i = 0; same && i < a->n_eos; i++)
        same = a->eos_ids[i] == c->eos_ids[i];
    return same;
}

Test(source, save_and_open_keep_every_bit)
{
    for (int round = 0; round < 4; round++) {
        pl_tiny_options o;
        pl_error err = {0};
        if (round % 2)
            odd_shape(&o);
        else
            pl_tiny_defaults(&o);
        if (round == 2) { /* no first and no end token */
            o.arch.bos_id = -1;
            o.arch.n_eos = o.arch.eos_ids[0] = 0;
        }
        write_tiny(in_dir("tiny"), &o);
        pl_source *a = open_source(in_dir("tiny"));
        cr_expect(same_arch(pl_source_arch(a), &o.arch), "shape changed");
        float *m = read_all(a);
        cr_assert_eq(pl_dir_make(in_dir("saved"), &err), PL_OK);
        cr_assert_eq(pl_model_save(in_dir("saved"), pl_source_arch(a), pl_source_params(a), m,
                         round / 2, NULL, &err),
            PL_OK, "%s", err.msg);
        pl_source *c = open_source(in_dir("saved"));
        float *again = read_all(c);
        cr_expect(same_arch(pl_source_arch(c), &o.arch), "shape changed");
        cr_expect_eq(memcmp(m, again, pl_source_params(a)->n_elements * sizeof *m), 0);
        free(again);
        free(m);
        pl_source_close(c);
        pl_source_close(a);
        cr_assert_eq(pl_dir_remove(in_dir("tiny"), &err), PL_OK);
    }
}

Test(source, a_seed_decides_the_weights)
{
    pl_tiny_options o;
    pl_tiny_defaults(&o);
    write_tiny(in_dir("a"), &o);
    write_tiny(in_dir("b"), &o);
    o.seed++;
    write_tiny(in_dir("c"), &o);
    pl_source *s[3] = {
        open_source(in_dir("a")), open_source(in_dir("b")), open_source(in_dir("c"))};
    float *m[3];
    for (int i = 0; i < 3; i++)
        m[i] = read_all(s[i]);
    const size_t n = pl_source_params(s[0])->n_elements;
    cr_expect_eq(memcmp(m[0], m[1], n * sizeof *m[0]), 0);
    cr_expect_neq(memcmp(m[0], m[2], n * sizeof *m[0]), 0);
    double sum = 0.0, squares = 0.0;
    const pl_param *p = pl_param_find(pl_source_params(s[0]), PL_P_EMBED, -1);
    const int count = p->rows * p->cols;
    int repeats = 0;
    for (int i = 0; i < count; i++) {
        sum += (double)m[0][i];
        repeats += i > 0 && m[0][i] == m[0][i - 1];
        squares += (double)m[0][i] * (double)m[0][i];
    }
    cr_expect_lt(repeats, count / 50); /* bf16 has few values */
    cr_expect_float_eq(sum / count, 0.0, 0.001);
    cr_expect_float_eq(sqrt(squares / count), 0.05, 0.001);
    for (int i = 0; i < 3; i++) {
        free(m[i]);
        pl_source_close(s[i]);
    }
}

Test(source, saving_rounds_to_nearest_even_and_refuses_nan)
{
    pl_tiny_options o;
    pl_param_table *t = NULL;
    pl_error err = {0};
    pl_tiny_defaults(&o);
    cr_assert_eq(pl_param_table_new(&t, &o.arch, &err), PL_OK);
    float *m = calloc(t->n_elements, sizeof *m);
    m[0] = 1.0f + 0x1p-8f;           /* half way, even below */
    m[1] = 1.0f + 0x1p-7f + 0x1p-8f; /* half way, even above */
    m[2] = -(1.0f + 0x1p-8f + 0x1p-20f);
    m[3] = 0x1p-130f; /* a denormal of both formats */
    cr_assert_eq(pl_model_save(dir, &o.arch, t, m, 1, NULL, &err), PL_OK, "%s", err.msg);
    pl_source *s = open_source(dir);
    float *got = read_all(s);
    cr_expect_eq(got[0], 1.0f);
    cr_expect_eq(got[1], 1.0f + 0x1p-6f);
    cr_expect_eq(got[2], -(1.0f + 0x1p-7f));
    cr_expect(memcmp(&got[3], &m[3], sizeof m[3]) == 0 && got[4] == 0.0f);
    free(got);
    pl_source_close(s);
    m[t->n_elements - 20] = NAN;
    cr_expect_eq(pl_model_save(dir, &o.arch, t, m, 0, NULL, &err), PL_E_NUMERIC);
    cr_expect_not_null(strstr(err.msg, "model.norm.weight"), "%s", err.msg);
    m[t->n_elements - 20] = 3.4e38f; /* infinite in bf16 */
    cr_expect_eq(pl_model_save(dir, &o.arch, t, m, 1, NULL, &err), PL_E_NUMERIC);
    s = open_source(dir); /* the old file is still whole */
    pl_source_close(s);
    free(m);
    pl_param_table_free(t);
}

Test(source, config_that_asks_for_more_is_refused_by_key)
{
    static const struct {
        const char *old, *new, *words;
        pl_status code;
    } rows[] = {
        {"\"llama\"", "\"qwen2\"", "model_type 'qwen2'", PL_E_FORMAT},
        {"LlamaForCausalLM", "LlamaForCausalLMEagle3", "architectures", PL_E_FORMAT},
        {"\"silu\"", "\"gelu\"", "hidden_act 'gelu'", PL_E_FORMAT},
        {"\"attention_bias\": false", "\"attention_bias\": true", "attention_bias", PL_E_FORMAT},
        {"\"mlp_bias\": false", "\"mlp_bias\": true", "mlp_bias", PL_E_FORMAT},
        {"\"use_cache\": true", "\"quantization_config\": {}", "quantized", PL_E_FORMAT},
        {"\"default\"", "\"yarn\"", "rope type 'yarn'", PL_E_FORMAT},
        {"\"default\"", "\"llama3\"", "'factor' is missing", PL_E_FORMAT},
        {"\"hidden_size\": 64", "\"hidden_size\": \"64\"", "hidden_size", PL_E_FORMAT},
        {"\"hidden_size\": 64", "\"hidden_size\": -64", "hidden_size", PL_E_FORMAT},
        {"\"hidden_size\": 64", "\"hidden_size\": 64, \"hidden_size\": 64", "duplicate",
            PL_E_FORMAT},
        {"\"hidden_size\": 64", "\"hidden_size\": 128", "'model.embed_tokens.weight'", PL_E_SHAPE},
        {"\"num_attention_heads\": 4", "\"num_attention_heads\": 3", "3 heads", PL_E_SHAPE},
        {"\"head_dim\": 16", "\"head_dim\": 15", "head size 15 is odd", PL_E_SHAPE},
        {"\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "'model.layers.2.input_layernorm",
            PL_E_SHAPE},
        {"\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1", "belongs to no Llama", PL_E_SHAPE},
        {"\"num_hidden_layers\": 2", "\"num_hidden_layers\": 2000000000", "number of layers",
            PL_E_SHAPE},
        {"\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false", "'lm_head.weight'",
            PL_E_SHAPE},
        {"\"eos_token_id\": 2", "\"eos_token_id\": 512", "eos_token_id", PL_E_SHAPE},
        {"\"eos_token_id\": 2", "\"eos_token_id\": [2, \"x\"]", "eos_token_id", PL_E_SHAPE},
        {"\"bos_token_id\": 1", "\"bos_token_id\": 512", "first token 512", PL_E_SHAPE},
        {"1e-05", "2.0", "epsilon", PL_E_SHAPE},
        {"{", "[{", "config.json", PL_E_FORMAT},
        {"{", "{\"x\": [[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]], ", "nested", PL_E_FORMAT},
    };
    pl_tiny_options o;
    pl_tiny_defaults(&o);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        write_tiny(dir, &o);
        edit(in_dir("config.json"), rows[i].old, rows[i].new);
        expect_refusal(dir, rows[i].code, rows[i].words);
    }
}

Test(source, older_spellings_of_rope_are_read)
{
    pl_tiny_options o;
    pl_tiny_defaults(&o);
    write_tiny(dir, &o);
    edit(in_dir("config.json"),
        "\"rope_parameters\": {\"rope_theta\": 10000.0, \"rope_type\": \"default\"},", "");
    edit(in_dir("config.json"), "\"rope_scaling\": null",
        "\"rope_scaling\": {\"type\": \"llama3\", \"factor\": 32, \"low_freq_factor\": 1, "
        "\"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 256}");
    edit(in_dir("config.json"), "\"rope_theta\": 10000.0", "\"rope_theta\": 500000");
    edit(in_dir("config.json"), "\"head_dim\": 16,", "\"head_dim\": null,");
    pl_source *s = open_source(dir);
    const pl_arch *a = pl_source_arch(s);
    cr_expect(a->rope_type == PL_ROPE_LLAMA3 && a->rope_theta == 500000.0);
    cr_expect(a->rope_factor == 32.0 && a->rope_original_ctx == 256 && a->head_dim == 16);
    pl_source_close(s);
}

Test(source, generation_config_comes_first_and_adds)
{
    pl_tiny_options o;
    pl_tiny_defaults(&o);
    write_tiny(dir, &o);
    edit(in_dir("generation_config.json"), "\"eos_token_id\": 2", "\"eos_token_id\": [7, 5, 7]");
    pl_source *s = open_source(dir);
    const pl_arch *a = pl_source_arch(s);
    cr_expect(a->n_eos == 3 && a->eos_ids[0] == 7 && a->eos_ids[1] == 5 && a->eos_ids[2] == 2);
    pl_source_close(s);
}

/* Cut the tiny model's file after n bytes. */
static void cut(long n)
{
    cr_assert_eq(truncate(in_dir("model.safetensors"), n), 0);
}

Test(source, a_file_that_is_cut_off_is_refused)
{
    pl_tiny_options o;
    pl_tiny_defaults(&o);
    static const long lengths[] = {0, 7, 8, 100, 3000, 200000};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        write_tiny(dir, &o);
        cut(lengths[i]);
        expect_refusal(dir, PL_E_FORMAT, "model.safetensors");
    }
}

Test(source, a_file_that_shrinks_while_open_is_an_error_not_a_signal)
{
    pl_tiny_options o;
    pl_tiny_defaults(&o);
    write_tiny(dir, &o);
    pl_source *s = open_source(dir);
    const pl_param *p = pl_param_find(pl_source_params(s), PL_P_FINAL_NORM, -1);
    float row[64];
    pl_error err = {0};
    cr_expect_eq(pl_source_read(s, p, row, &err), PL_OK);
    cut(4096);
    cr_expect_eq(pl_source_read(s, p, row, &err), PL_E_IO);
    cr_expect_not_null(strstr(err.msg, "shorter"), "%s", err.msg);
    pl_source_close(s);
}

/* Two shards: all of the tiny model, and a second file made of one extra tensor. */
static void write_shards(const char *index_entry)
{
    pl_tiny_options o;
    pl_tiny_defaults(&o);
    write_tiny(dir, &o);
    pl_source *s = open_source(dir);
    FILE *f = fopen(in_dir("model.safetensors.index.json"), "w");
    cr_assert_not_null(f);
    fprintf(f, "{\"metadata\": {}, \"weight_map\": {");
    for (int i = 0; i < pl_source_params(s)->n_params; i++)
        fprintf(f, "\"%s\": \"one.safetensors\",", pl_source_params(s)->params[i].name);
    fprintf(f, "%s}}", index_entry);
    fclose(f);
    pl_source_close(s);
    cr_assert_eq(rename(in_dir("model.safetensors"), in_dir("one.safetensors")), 0);
    const char extra[] = "{\"model.layers.0.self_attn.rotary_emb.inv_freq\":"
                         "{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}";
    char file[256] = {(char)(sizeof extra - 1)};
    memcpy(file + 8, extra, sizeof extra - 1);
    cr_assert_eq(pl_file_write(in_dir("two.safetensors"), file, 8 + sizeof extra - 1, NULL), PL_OK);
}

#define FREQ "\"model.layers.0.self_attn.rotary_emb.inv_freq\""

Test(source, shards_are_read_where_the_index_says)
{
    write_shards(FREQ ": \"two.safetensors\"");
    pl_source *s = open_source(dir);
    free(read_all(s));
    pl_source_close(s);
}

Test(source, an_index_that_lies_is_refused)
{
    write_shards(FREQ ": \"one.safetensors\"");
    expect_refusal(dir, PL_E_SHAPE, "the index names 21 tensors, the shards hold 20");
    write_shards(FREQ ": \"../two.safetensors\"");
    expect_refusal(dir, PL_E_FORMAT, "no plain .safetensors file name");
    write_shards(FREQ ": \"sub/two.safetensors\"");
    expect_refusal(dir, PL_E_FORMAT, "no plain .safetensors file name");
    write_shards(FREQ ": \"/etc/passwd\"");
    expect_refusal(dir, PL_E_FORMAT, "no plain .safetensors file name");
    write_shards(FREQ ": 7");
    expect_refusal(dir, PL_E_FORMAT, "no plain .safetensors file name");
    write_shards(FREQ ": \"three.safetensors\"");
    expect_refusal(dir, PL_E_NOENT, "three.safetensors");
    write_shards("\"x\": \"two.safetensors\"");
    expect_refusal(dir, PL_E_SHAPE, "the index does not know it");
}

Test(source, a_path_without_a_model_names_the_ways_out)
{
    expect_refusal(in_dir("nothing"), PL_E_NOENT, "generate a tiny random one");
    expect_refusal(dir, PL_E_NOENT, "one .gguf file");
    cr_assert_eq(pl_file_write(in_dir("config.json"), "{}", 2, NULL), PL_OK);
    expect_refusal(dir, PL_E_FORMAT, "model_type");
    expect_refusal(in_dir("config.json"), PL_E_FORMAT, "GGUF");
    cr_assert_eq(pl_file_write(in_dir("x.safetensors"), "{}", 2, NULL), PL_OK);
    expect_refusal(in_dir("x.safetensors"), PL_E_FORMAT, "directory");
}

/* ---- GGUF ---- */

static builder b;

typedef struct gguf_options {
    const char *architecture;
    int with_stranger, without_head_norm, kv_as_array;
    float freqs[2]; /* rope_freqs.weight when freqs[0] != 0 */
} gguf_options;

/* L 1, C 8, H 2, Hkv 1, D 4, F 8, V 4: every element of every tensor is its row number. */
static const struct {
    const char *name;
    int cols, rows;
} shapes[] = {
    {"output_norm.weight", 8, 1}, /* not in the order of the table */
    {"token_embd.weight", 8, 4},
    {"blk.0.attn_norm.weight", 8, 1},
    {"blk.0.attn_q.weight", 8, 8},
    {"blk.0.attn_k.weight", 8, 4},
    {"blk.0.attn_v.weight", 8, 4},
    {"blk.0.attn_output.weight", 8, 8},
    {"blk.0.ffn_norm.weight", 8, 1},
    {"blk.0.ffn_gate.weight", 8, 8},
    {"blk.0.ffn_up.weight", 8, 8},
    {"blk.0.ffn_down.weight", 8, 8},
    {"stranger.weight", 8, 1},
};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

static void put_llama_keys(const gguf_options *o)
{
    put_key_text(&b, "general.architecture", o->architecture ? o->architecture : "llama");
    put_key_u32(&b, "llama.block_count", 1);
    put_key_u32(&b, "llama.embedding_length", 8);
    put_key_u32(&b, "llama.attention.head_count", 2);
    put_key_u32(&b, "llama.feed_forward_length", 8);
    put_key_u32(&b, "llama.context_length", 64);
    put_key_f32(&b, "llama.attention.layer_norm_rms_epsilon", 1e-6f);
    put_key_u32(&b, "tokenizer.ggml.eos_token_id", 3);
    if (!o->kv_as_array) {
        put_key_u32(&b, "llama.attention.head_count_kv", 1);
        return;
    }
    put_text(&b, "llama.attention.head_count_kv");
    put_u32(&b, 9);
    put_u32(&b, 4);
    put_u64(&b, 1);
    put_u32(&b, 1);
}

static void write_gguf(const char *path, const gguf_options *o)
{
    const int skip = o->without_head_norm, n = N_SHAPES - !o->with_stranger;
    const int has_freqs = o->freqs[0] != 0.0f;
    uint64_t offset = 32;

    put_head(&b, (uint64_t)(n - skip + has_freqs), 9);
    put_llama_keys(o);
    if (has_freqs)
        put_tensor(&b, "rope_freqs.weight", 0, 2, 1, 0);
    for (int i = skip; i < n; i++) {
        put_tensor(
            &b, shapes[i].name, 0, (uint64_t)shapes[i].cols, (uint64_t)shapes[i].rows, offset);
        offset += (uint64_t)(shapes[i].cols * shapes[i].rows) * 4;
    }
    pad(&b);
    put(&b, o->freqs, sizeof o->freqs);
    pad(&b);
    for (int i = skip; i < n; i++) {
        for (int k = 0; k < shapes[i].cols * shapes[i].rows; k++) {
            const float row = (float)(k / shapes[i].cols);
            put(&b, &row, sizeof row);
        }
    }
    cr_assert_leq(b.n, sizeof b.data);
    cr_assert_eq(pl_file_write(path, b.data, b.n, NULL), PL_OK);
}

Test(source, gguf_query_and_key_rows_come_back_in_hugging_face_order)
{
    static const float want_q[8] = {0, 2, 1, 3, 4, 6, 5, 7};
    float q[64], k[32], v[32];
    pl_error err = {0};

    write_gguf(in_dir("m.gguf"), &(gguf_options){0});
    pl_source *s = open_source(dir); /* the only .gguf of a directory */
    const pl_param_table *t = pl_source_params(s);
    const pl_arch *a = pl_source_arch(s);
    cr_expect(a->head_dim == 4 && a->n_kv_heads == 1 && a->tied && a->rope_theta == 10000.0);
    cr_expect(a->n_eos == 1 && a->eos_ids[0] == 3 && a->bos_id == -1 && a->n_vocab == 4);
    cr_expect_not_null(pl_source_gguf(s));
    cr_assert_eq(pl_source_read(s, pl_param_find(t, PL_P_Q, 0), q, &err), PL_OK);
    cr_assert_eq(pl_source_read(s, pl_param_find(t, PL_P_K, 0), k, &err), PL_OK);
    cr_assert_eq(pl_source_read(s, pl_param_find(t, PL_P_V, 0), v, &err), PL_OK);
    for (int i = 0; i < 64; i++)
        cr_expect_eq(q[i], want_q[i / 8]);
    for (int i = 0; i < 32; i++)
        cr_expect(k[i] == want_q[i / 8] && v[i] == (float)(i / 8));
    pl_source_close(s);
}

Test(source, gguf_rope_divisors_become_llama3_numbers_or_are_refused)
{
    /* D 4, base 10000: wavelengths 2 pi and 200 pi; made for 8192 tokens both turn often enough, so
     * only an original context of 512 (0.81 turns of the slow one) divides it by the factor. */
    write_gguf(in_dir("a.gguf"), &(gguf_options){.freqs = {1.0f, 8.0f}});
    pl_source *s = open_source(in_dir("a.gguf"));
    const pl_arch *a = pl_source_arch(s);
    cr_expect(a->rope_type == PL_ROPE_LLAMA3 && a->rope_factor == 8.0);
    cr_expect_eq(a->rope_original_ctx, 512);
    pl_source_close(s);
    write_gguf(in_dir("b.gguf"), &(gguf_options){.freqs = {1.0f, 1.0f}});
    s = open_source(in_dir("b.gguf"));
    cr_expect_eq(pl_source_arch(s)->rope_type, PL_ROPE_DEFAULT);
    pl_source_close(s);
    write_gguf(in_dir("c.gguf"), &(gguf_options){.freqs = {3.0f, 8.0f}});
    expect_refusal(in_dir("c.gguf"), PL_E_FORMAT, "rope_freqs.weight");
}

Test(source, gguf_that_is_no_plain_llama_is_refused_by_name)
{
    write_gguf(in_dir("a.gguf"), &(gguf_options){.architecture = "qwen2"});
    expect_refusal(in_dir("a.gguf"), PL_E_FORMAT, "architecture 'qwen2'");
    write_gguf(in_dir("a.gguf"), &(gguf_options){.with_stranger = 1});
    expect_refusal(in_dir("a.gguf"), PL_E_SHAPE, "'stranger.weight'");
    write_gguf(in_dir("a.gguf"), &(gguf_options){.without_head_norm = 1});
    expect_refusal(in_dir("a.gguf"), PL_E_SHAPE, "'output_norm.weight' is missing");
    write_gguf(in_dir("a.gguf"), &(gguf_options){.kv_as_array = 1});
    expect_refusal(in_dir("a.gguf"), PL_E_FORMAT, "head_count_kv");
    write_gguf(in_dir("b.gguf"), &(gguf_options){0});
    expect_refusal(dir, PL_E_NOENT, "holds 2 .gguf files");
}

Test(source, reading_a_parameter_with_nan_is_refused)
{
    const float nan = NAN;
    float out[64];
    pl_error err = {0};

    write_gguf(in_dir("a.gguf"), &(gguf_options){0});
    memcpy(b.data + b.n - 4, &nan, 4); /* the end of ffn_down */
    cr_assert_eq(pl_file_write(in_dir("a.gguf"), b.data, b.n, NULL), PL_OK);
    pl_source *s = open_source(in_dir("a.gguf"));
    const pl_param *p = pl_param_find(pl_source_params(s), PL_P_DOWN, 0);
    cr_expect_eq(pl_source_read(s, p, out, &err), PL_E_NUMERIC);
    cr_expect_not_null(strstr(err.msg, "mlp.down_proj.weight"), "%s", err.msg);
    pl_source_close(s);
}

Test(source, description_names_what_matters)
{
    char *text = NULL;
    size_t n;
    pl_tiny_options o;
    pl_error err = {0};

    odd_shape(&o);
    write_tiny(dir, &o);
    pl_source *s = open_source(dir);
    FILE *f = open_memstream(&text, &n);
    cr_assert_eq(pl_source_describe(s, f, &err), PL_OK);
    fclose(f);
    static const char *const words[] = {
        "2 layers", "7 heads of 48", "1003 tokens", "llama3", "BF16", "tokenizer.json"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        cr_expect_not_null(strstr(text, words[i]), "no '%s' in %s", words[i], text);
    free(text);
    pl_source_close(s);
}
