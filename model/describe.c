/* model/describe.c - what `paceline inspect` shows of a model. */
#include "model/files.h"
#include "model/source_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static void print_arch(const pl_arch *a, FILE *out)
{
    fprintf(out, "architecture  llama, %d layers, hidden %d, feed-forward %d\n", a->n_layers,
        a->n_embd, a->n_ff);
    fprintf(out, "attention     %d heads of %d, %d key-value heads\n", a->n_heads, a->head_dim,
        a->n_kv_heads);
    fprintf(out, "vocabulary    %d tokens, head %s\n", a->n_vocab,
        a->tied ? "tied to the embedding" : "of its own");
    fprintf(out, "context       %d tokens, rope base %g", a->n_ctx, a->rope_theta);
    if (a->rope_type == PL_ROPE_LLAMA3)
        fprintf(out, ", llama3 scaling %g (low %g, high %g, made for %d tokens)", a->rope_factor,
            a->rope_low_freq_factor, a->rope_high_freq_factor, a->rope_original_ctx);
    fprintf(out, "\nnorms         epsilon %g\n", (double)a->rms_eps);
    fprintf(out, "end tokens   ");
    for (int i = 0; i < a->n_eos; i++)
        fprintf(out, " %d", a->eos_ids[i]);
    fprintf(out, a->n_eos > 0 ? "\n" : " none\n");
}

/* Parameters in all, without the embedding, and by type. */
static void print_counts(const pl_source *s, FILE *out)
{
    uint64_t total = 0, embedding = 0, by_type[FILES_BF16 + 1] = {0};
    int tensors[FILES_BF16 + 1] = {0};

    for (int i = 0; i < s->table->n_params; i++) {
        const pl_param *p = &s->table->params[i];
        const uint64_t n = (uint64_t)p->rows * (uint64_t)p->cols;
        total += n;
        embedding += p->kind == PL_P_EMBED ? n : 0;
        by_type[s->tensors[i].type] += n;
        tensors[s->tensors[i].type]++;
    }
    fprintf(out, "parameters    %" PRIu64 " in %d tensors, %" PRIu64 " of them in the embedding\n",
        total, s->table->n_params, embedding);
    for (int type = 0; type <= FILES_BF16; type++)
        if (tensors[type] > 0)
            fprintf(out, "  %-6s      %" PRIu64 " in %d tensors\n", dequant_type_name(type),
                by_type[type], tensors[type]);
}

static void print_gguf_tokenizer(const pl_gguf *g, FILE *out)
{
    char quoted[FILES_QUOTE];
    const char *s;
    size_t len;
    uint64_t n_tokens = 0, n_merges = 0;

    pl_gguf_get_string_array(g, "tokenizer.ggml.tokens", &n_tokens);
    pl_gguf_get_string_array(g, "tokenizer.ggml.merges", &n_merges);
    fprintf(out, "tokenizer     ");
    if (!pl_gguf_get_string(g, "tokenizer.ggml.model", &s, &len)) {
        fprintf(out, "none\n");
        return;
    }
    fprintf(out, "%s", files_quote(quoted, s, len));
    if (pl_gguf_get_string(g, "tokenizer.ggml.pre", &s, &len))
        fprintf(out, " (%s)", files_quote(quoted, s, len));
    fprintf(out, ", %" PRIu64 " tokens, %" PRIu64 " merges, %s chat template\n", n_tokens, n_merges,
        pl_gguf_get_string(g, "tokenizer.chat_template", &s, &len) ? "a" : "no");
}

static void print_hf_tokenizer(const char *dir, FILE *out)
{
    char path[4096 + 32];

    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    const int has_file = pl_path_exists(path);
    fprintf(out, "tokenizer     %s\n", has_file ? "tokenizer.json" : "none");
}

pl_status pl_source_describe(const pl_source *s, FILE *out, pl_error *err)
{
    if (s->gguf != NULL)
        fprintf(out, "model         %s (GGUF)\n", s->path);
    else
        fprintf(out, "model         %s (Hugging Face directory, %d safetensors file%s)\n", s->path,
            s->n_shards, s->n_shards == 1 ? "" : "s");
    print_arch(&s->arch, out);
    print_counts(s, out);
    if (s->gguf != NULL)
        print_gguf_tokenizer(s->gguf, out);
    else
        print_hf_tokenizer(s->path, out);
    if (fflush(out) != 0 || ferror(out))
        return pl_fail(err, PL_E_IO, "cannot print the description of '%s'", s->path);
    return PL_OK;
}
