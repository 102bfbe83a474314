/* cli/open.c - from a path to a model that runs; lines of text; the product's stream. */
#include "cli/cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LINE = 8 << 20 };

pl_status cli_backend_open(cli_model *m, const char *isa, int64_t threads, pl_error *err)
{
    const int which = pl_isa_parse(isa);

    if (which < 0)
        return pl_fail(err, PL_E_USAGE, "--isa '%s' is none of auto, amx, avx512, avx2, ref", isa);
    pl_fp_enter();
    pl_cpu_read(&m->cpu);
    const pl_status st =
        pl_ops_select(&m->ops, (pl_isa)which, &m->cpu, m->note, sizeof m->note, err);
    if (st != PL_OK)
        return st;
    return pl_team_new(&m->team, (int)threads, 1, err);
}

pl_status cli_model_open(cli_model *m, const cli_model_options *o, const pl_log *log, pl_error *err)
{
    memset(m, 0, sizeof *m);
    if (!o->path)
        return pl_fail(err, PL_E_USAGE, "--model is missing: a .gguf file or a model directory");
    pl_status st = cli_backend_open(m, o->isa, o->threads, err);
    if (st != PL_OK)
        goto fail;
    if (m->note[0])
        pl_log_warn(log, "%s", m->note);
    st = pl_source_open(&m->source, o->path, err);
    if (st != PL_OK)
        goto fail;
    st = pl_tokenizer_open(&m->tokenizer, m->source, err);
    if (st != PL_OK)
        goto fail;
    const pl_arch *arch = pl_source_arch(m->source);
    st = pl_model_new(&m->model, arch, m->ops, m->team, o->with_backward, err);
    if (st != PL_OK)
        goto fail;
    if (o->with_backward) {
        m->masters = calloc(pl_source_params(m->source)->n_elements, sizeof *m->masters);
        if (!m->masters) {
            st = pl_fail(err, PL_E_NOMEM, "model '%s': no memory for fp32 masters", o->path);
            goto fail;
        }
    }
    st = pl_model_load(m->model, m->source, m->masters, err);
    if (st == PL_OK)
        return PL_OK;

fail:
    cli_model_close(m);
    return st;
}

void cli_model_close(cli_model *m)
{
    pl_model_free(m->model);
    pl_tokenizer_free(m->tokenizer);
    pl_source_close(m->source);
    pl_team_free(m->team);
    free(m->masters);
    memset(m, 0, sizeof *m);
}

pl_status cli_lines_open(cli_lines *l, const char *path, pl_error *err)
{
    memset(l, 0, sizeof *l);
    l->name = strcmp(path, "-") == 0 ? "stdin" : path;
    l->file = strcmp(path, "-") == 0 ? stdin : fopen(path, "r");
    if (!l->file)
        return pl_fail(
            err, errno == ENOENT ? PL_E_NOENT : PL_E_IO, "'%s': %s", path, strerror(errno));
    return PL_OK;
}

int cli_lines_next(cli_lines *l, size_t *n_bytes, pl_error *err)
{
    errno = 0;
    const ssize_t n = getline(&l->text, &l->capacity, l->file);
    if (n < 0) {
        if (!ferror(l->file) && errno != ENOMEM)
            return 0;
        pl_error_set(err, PL_E_IO, "'%s' after line %d: %s", l->name, l->line, strerror(errno));
        return -1;
    }
    l->line++;
    *n_bytes = (size_t)n;
    while (*n_bytes > 0 && (l->text[*n_bytes - 1] == '\n' || l->text[*n_bytes - 1] == '\r'))
        l->text[--*n_bytes] = 0;
    if (*n_bytes > MAX_LINE) {
        pl_error_set(err, PL_E_FORMAT, "%s:%d: a line of %zu bytes, at most %d", l->name, l->line,
            *n_bytes, (int)MAX_LINE);
        return -1;
    }
    return 1;
}

void cli_lines_close(cli_lines *l)
{
    if (l->file && l->file != stdin)
        fclose(l->file);
    free(l->text);
    memset(l, 0, sizeof *l);
}

pl_status cli_check_utf8(const char *text, size_t n_bytes, const char *what, pl_error *err)
{
    size_t n_clean;
    char *clean = pl_utf8_clean(text, n_bytes, &n_clean);

    if (!clean)
        return pl_fail(err, PL_E_NOMEM, "%s: no memory", what);
    const int is_valid = n_clean == n_bytes && memcmp(clean, text, n_bytes) == 0;
    free(clean);
    if (is_valid)
        return PL_OK;
    return pl_fail(err, PL_E_FORMAT, "%s is not valid UTF-8: convert it first (iconv)", what);
}

pl_status cli_flush(pl_error *err)
{
    if (fflush(stdout) != 0 || ferror(stdout))
        return pl_fail(err, PL_E_IO, "standard output: %s", strerror(errno));
    return PL_OK;
}
