/* cli/inspect.c - paceline inspect: what stands in a model file, a model directory, a checkpoint or
 * a run directory; paceline tiny: a random model to try things with. */
#include "cli/cli.h"
#include "core/file.h"
#include "trainer/trainer.h"

#include <stdlib.h>
#include <string.h>

static pl_status describe_model(const char *path, pl_error *err)
{
    pl_source *s;
    pl_tokenizer *t;
    pl_error tok_err = {0};
    pl_status st = pl_source_open(&s, path, err);

    if (st != PL_OK)
        return st;
    st = pl_source_describe(s, stdout, err);
    if (st == PL_OK && pl_tokenizer_open(&t, s, &tok_err) == PL_OK) {
        printf("vocabulary    %d tokens, chat template %s\n", pl_tokenizer_n_vocab(t),
            pl_chat_name(t));
        pl_tokenizer_free(t);
    } else if (st == PL_OK) {
        printf("vocabulary    %s\n", tok_err.msg);
    }
    pl_source_close(s);
    return st;
}

static pl_status describe_checkpoint(const char *dir, pl_error *err)
{
    char path[4096];
    char *text;
    size_t n;

    if (snprintf(path, sizeof path, "%s/state.json", dir) >= (int)sizeof path)
        return pl_fail(err, PL_E_NOENT, "the path '%.80s...' is too long", dir);
    pl_status st = pl_file_read(&text, &n, path, 1 << 20, err);
    if (st != PL_OK)
        return st;
    printf("checkpoint    %s\nstate         %s", dir, text);
    free(text);
    if (snprintf(path, sizeof path, "%s/policy", dir) >= (int)sizeof path)
        return pl_fail(err, PL_E_NOENT, "the path '%.80s...' is too long", dir);
    return describe_model(path, err);
}

static pl_status inspect(const char *path, pl_error *err)
{
    char inner[4096];

    if (snprintf(inner, sizeof inner, "%s/state.json", path) < (int)sizeof inner &&
        pl_path_exists(inner))
        return describe_checkpoint(path, err);
    if (snprintf(inner, sizeof inner, "%s/checkpoints", path) < (int)sizeof inner &&
        pl_path_exists(inner)) {
        const pl_status st = pl_checkpoint_find(path, inner, sizeof inner, err);
        return st == PL_OK ? describe_checkpoint(inner, err) : st;
    }
    return describe_model(path, err);
}

int cmd_inspect(int argc, char **argv)
{
    const cli_option options[] = {{0}};
    pl_error err = {0};
    int n, helped;

    pl_status st = cli_parse(argc, argv, "inspect PATH (model, checkpoint or run directory)",
        options, &n, &helped, &err);
    if (st == PL_OK && helped)
        return 0;
    if (st == PL_OK && n != 1)
        st = pl_fail(&err, PL_E_USAGE, "inspect wants one path");
    if (st == PL_OK)
        st = inspect(argv[1], &err);
    if (st == PL_OK)
        st = cli_flush(&err);
    return st == PL_OK ? 0 : cli_report(&err);
}

int cmd_tiny(int argc, char **argv)
{
    pl_tiny_options o;
    int64_t seed = 1, layers, embd, heads, kv_heads, head_dim, ff, vocab;
    double init_std = 0;
    int untied = 0, n, helped;
    pl_error err = {0};

    pl_tiny_defaults(&o);
    layers = o.arch.n_layers;
    embd = o.arch.n_embd;
    heads = o.arch.n_heads;
    kv_heads = o.arch.n_kv_heads;
    head_dim = o.arch.head_dim;
    ff = o.arch.n_ff;
    vocab = o.arch.n_vocab;
    const cli_option options[] = {
        {"seed", CLI_INT, &seed, 0, 9e18, "S", "of the weights (1)"},
        {"layers", CLI_INT, &layers, 1, 128, "N", "(2)"},
        {"hidden", CLI_INT, &embd, 2, 16384, "N", "hidden size (64)"},
        {"heads", CLI_INT, &heads, 1, 256, "N", "query heads (4)"},
        {"kv-heads", CLI_INT, &kv_heads, 1, 256, "N", "key and value heads (2)"},
        {"head-dim", CLI_INT, &head_dim, 2, 512, "N", "(16)"},
        {"ffn", CLI_INT, &ff, 1, 65536, "N", "inner size (160)"},
        {"vocab", CLI_INT, &vocab, 300, 1 << 20, "N", "(512)"},
        {"untied", CLI_FLAG, &untied, 0, 0, NULL, "a head of its own"},
        {"init-std", CLI_FLOAT, &init_std, 0, 10, "X", "spread of the weights; 0: 0.05 (0)"},
        {0},
    };
    pl_status st = cli_parse(argc, argv, "tiny DIR [options]", options, &n, &helped, &err);
    if (st == PL_OK && helped)
        return 0;
    if (st == PL_OK && n != 1)
        st = pl_fail(&err, PL_E_USAGE, "tiny wants one directory to write");
    if (st == PL_OK) {
        o.seed = (uint64_t)seed;
        o.init_std = (float)init_std;
        o.arch.n_layers = (int)layers;
        o.arch.n_embd = (int)embd;
        o.arch.n_heads = (int)heads;
        o.arch.n_kv_heads = (int)kv_heads;
        o.arch.head_dim = (int)head_dim;
        o.arch.n_ff = (int)ff;
        o.arch.n_vocab = (int)vocab;
        o.arch.tied = !untied;
        st = pl_dir_is_free(argv[1])
                 ? pl_dir_make(argv[1], &err)
                 : pl_fail(&err, PL_E_USAGE, "'%s' is not empty: name a new directory", argv[1]);
    }
    if (st == PL_OK)
        st = pl_tiny_write(argv[1], &o, &err);
    if (st == PL_OK)
        printf("%s: a random model of %lld layers, hidden %lld, vocabulary %lld\n", argv[1],
            (long long)layers, (long long)embd, (long long)vocab);
    return st == PL_OK ? 0 : cli_report(&err);
}
