/* cli/monitor_web.c - the page of a run: the model's tokenizer, when it is at hand, and the server.
 */
#include "cli/monitor_web.h"
#include "cli/cli.h"
#include "cli/run.h"
#include "monitor/web.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

/* The text of single tokens; without the model's files they are shown by number. */
static pl_tokenizer *open_tokenizer(const char *run_dir)
{
    char path[PL_CONFIG_STR + 16];
    run_config *c = calloc(1, sizeof *c);
    pl_source *source = NULL;
    pl_tokenizer *t = NULL;

    snprintf(path, sizeof path, "%s/config.yaml", run_dir);
    if (c && run_config_load(c, path, NULL, 0, NULL) == PL_OK &&
        pl_source_open(&source, c->rollout.model_path, NULL) == PL_OK &&
        pl_tokenizer_open(&t, source, NULL) != PL_OK)
        t = NULL;
    pl_source_close(source);
    free(c);
    return t;
}

static int piece(void *ctx, int32_t token, const char **bytes)
{
    size_t n = 0;

    if (token < 0 || token >= pl_tokenizer_n_vocab(ctx))
        return -1;
    pl_tokenizer_piece(ctx, token, 0, bytes, &n);
    return (int)n;
}

int monitor_web_serve(const char *run_dir, const char *addr, const char *token_file)
{
    pl_tokenizer *t = open_tokenizer(run_dir);
    const pl_web_options o = {.run_dir = run_dir,
        .address = addr,
        .token_file = token_file,
        .runtime_dir = getenv("XDG_RUNTIME_DIR"),
        .piece = t ? piece : NULL,
        .piece_ctx = t};
    pl_error err = {0};
    pl_web *w = NULL;

    cli_catch_signals(1);
    pl_status st = pl_web_open(&w, &o, &err);
    if (st == PL_OK) {
        printf("%s\n", pl_web_url(w));
        if (pl_web_token_path(w))
            printf("token in %s: open %s?token=TOKEN once\n", pl_web_token_path(w), pl_web_url(w));
        st = cli_flush(&err);
    }
    if (st == PL_OK)
        st = pl_web_run(w, &cli_stop, &err);
    pl_web_close(w);
    pl_tokenizer_free(t);
    return st == PL_OK ? 0 : cli_report(&err);
}
