/* model/source.h - a model on disk, GGUF file or Hugging Face directory, behind one face. */
#ifndef PL_MODEL_SOURCE_H
#define PL_MODEL_SOURCE_H

#include "core/error.h"
#include "core/file.h"
#include "model/arch.h"

#include <stdio.h>

typedef struct pl_source pl_source;
typedef struct pl_tokenizer pl_tokenizer;
struct pl_gguf;

/* Open a .gguf file, or a directory with config.json and model.safetensors (or shards with an
 * index), or a directory that holds exactly one .gguf.  All tensors that the architecture needs are
 * there with the right shape, and no others (tolerated and ignored: rotary_emb.inv_freq,
 * rope_freqs, a head equal in name on a tied model).  Errors: PL_E_NOENT with the two ways out,
 * PL_E_IO, PL_E_FORMAT, PL_E_SHAPE. */
pl_status pl_source_open(pl_source **out, const char *path, pl_error *err);
void pl_source_close(pl_source *s);

const pl_arch *pl_source_arch(const pl_source *s);
const pl_param_table *pl_source_params(const pl_source *s);
const char *pl_source_path(const pl_source *s);
/* The mapped file behind it, *borrowed*, where that is one model.safetensors of bf16; else NULL. */
const pl_file *pl_source_file(const pl_source *s);
/* The GGUF behind it, NULL for a directory: the tokenizer reads its vocabulary there. */
const struct pl_gguf *pl_source_gguf(const pl_source *s);

/* Dequantize one parameter into fp32, [rows, cols] as in the param table; F16 and BF16 exactly.
 * Q and K rows of a GGUF are put back into Hugging Face order.  Reading a parameter with NaN or
 * infinity is PL_E_NUMERIC. */
pl_status pl_source_read(const pl_source *s, const pl_param *p, float *out, pl_error *err);
/* Rows row_begin .. row_begin + n_rows - 1 of it only.  Thread-safe. */
pl_status pl_source_read_rows(
    const pl_source *s, const pl_param *p, int row_begin, int n_rows, float *out, pl_error *err);

/* Print what `paceline inspect` shows: kind, architecture, parameter counts, dtypes, tokenizer. */
pl_status pl_source_describe(const pl_source *s, FILE *out, pl_error *err);

/* Write a Hugging Face model directory (config.json, model.safetensors with format pt, and, when
 * tok is not NULL, tokenizer.json, tokenizer_config.json, special_tokens_map.json,
 * generation_config.json) that transformers loads.  masters: flat fp32 by the param table; written
 * as fp32 (bf16 = 0) or rounded to nearest even (bf16 = 1).  dir must exist; the caller commits it.
 */
pl_status pl_model_save(const char *dir, const pl_arch *a, const pl_param_table *t,
    const float *masters, int bf16, const pl_tokenizer *tok, pl_error *err);

/* A tiny random Llama with a byte-level BPE tokenizer, as a Hugging Face directory: so that no test
 * needs a download.  Weights are a pure function of (arch, seed). */
typedef struct pl_tiny_options {
    uint64_t seed;
    pl_arch arch;   /* n_vocab >= 300 */
    float init_std; /* 0: 0.05; large values sharpen the distribution */
} pl_tiny_options;
void pl_tiny_defaults(pl_tiny_options *o); /* 2 layers, C 64, H 4, Hkv 2, D 16, F 160, V 512 */
pl_status pl_tiny_write(const char *dir, const pl_tiny_options *o, pl_error *err);

#endif
