/* tests/oracle/dump_logits.c - a model's weights and full logits, for tests/oracle/logits.py.
 *
 *   dump_logits MODEL OUT [isa]      lines of token ids on standard input
 *
 * Writes OUT/weights, the model as a directory of bf16 weights (with its tokenizer, if it has one),
 * and OUT/logits, fp32 [tokens of all lines][vocabulary], and prints the number of rows. */
#include "core/file.h"
#include "model/draft.h"
#include "model/model.h"
#include "model/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 64, MAX_TOKENS = 4096, LINE = 16 * MAX_TOKENS };

typedef struct job {
    pl_cpu cpu;
    const pl_ops *ops;
    pl_team *team;
    pl_source *src;
    pl_tokenizer *tokenizer; /* NULL: the model has none */
    pl_model *m;
    pl_pass *pass;
    pl_kv_pool *pool;
    float *masters;
    char line[LINE];
    int32_t ids[MAX_TOKENS];
    long n_rows;
} job;

static pl_status open_model(job *j, const char *path, const char *isa, pl_error *err)
{
    pl_fp_enter();
    pl_cpu_read(&j->cpu);
    pl_status st = pl_ops_select(&j->ops, pl_isa_parse(isa), &j->cpu, NULL, 0, err);
    if (st == PL_OK)
        st = pl_team_new(&j->team, 0, 0, err);
    if (st == PL_OK)
        st = pl_source_open(&j->src, path, err);
    if (st != PL_OK)
        return st;
    st = pl_tokenizer_open(&j->tokenizer, j->src, err);
    if (st != PL_OK && st != PL_E_NOENT)
        return st;
    st = pl_model_new(&j->m, pl_source_arch(j->src), j->ops, j->team, 0, err);
    if (st != PL_OK)
        return st;
    j->masters = calloc(pl_model_params(j->m)->n_elements, sizeof *j->masters);
    if (!j->masters)
        return pl_fail(err, PL_E_NOMEM, "no memory for the weights of '%s'", path);
    return pl_model_load(j->m, j->src, j->masters, err);
}

static pl_status save_weights(const job *j, const char *out, pl_error *err)
{
    char dir[4096];
    const int n = snprintf(dir, sizeof dir, "%s/weights", out);

    if (n < 0 || (size_t)n >= sizeof dir)
        return pl_fail(err, PL_E_IO, "path '%s' is too long", out);
    const pl_status st = pl_dir_make(dir, err);
    if (st != PL_OK)
        return st;
    return pl_model_save(
        dir, pl_model_arch(j->m), pl_model_params(j->m), j->masters, 1, j->tokenizer, err);
}

static pl_status open_pass(job *j, pl_error *err)
{
    const pl_arch *a = pl_model_arch(j->m);
    const pl_pass_options o = {.max_rows = CHUNK,
        .max_logits = CHUNK,
        .max_segments = 1,
        .max_ctx = a->n_ctx < MAX_TOKENS ? a->n_ctx : MAX_TOKENS};
    const pl_status st = pl_pass_new(&j->pass, j->m, &o, err);

    if (st != PL_OK)
        return st;
    return pl_kv_pool_new(&j->pool, a, (o.max_ctx + PL_BLOCK - 1) / PL_BLOCK, err);
}

static int read_ids(job *j)
{
    int n = 0;
    char *at = j->line, *end;

    for (; n < MAX_TOKENS; n++, at = end) {
        const long id = strtol(at, &end, 10);
        if (end == at)
            break;
        j->ids[n] = (int32_t)id;
    }
    return n;
}

static pl_status run_text(job *j, pl_kv_seq *kv, int n, FILE *out, pl_error *err)
{
    const size_t v = (size_t)pl_model_arch(j->m)->n_vocab;

    for (int i = 0; i < n; i += CHUNK) {
        const int rows = n - i < CHUNK ? n - i : CHUNK;
        const pl_segment seg = {.kv = kv, .tokens = j->ids + i, .n_rows = rows, .n_logits = rows};
        pl_status st = pl_kv_reserve(j->pool, kv, rows, err);
        if (st == PL_OK)
            st = pl_pass_run(j->pass, j->pool, &seg, 1, err);
        if (st != PL_OK)
            return st;
        for (int r = 0; r < rows; r++)
            if (fwrite(pl_pass_logits(j->pass, 0, r), sizeof(float), v, out) != v)
                return pl_fail(err, PL_E_IO, "the logits cannot be written: is the disk full?");
    }
    j->n_rows += n;
    return PL_OK;
}

static pl_status run_texts(job *j, FILE *out, pl_error *err)
{
    pl_status st = PL_OK;

    while (st == PL_OK && fgets(j->line, LINE, stdin)) {
        const int n = read_ids(j);
        pl_kv_seq kv;
        if (n == 0)
            continue;
        st = pl_kv_seq_init(&kv, n, err);
        if (st != PL_OK)
            return st;
        st = run_text(j, &kv, n, out, err);
        pl_kv_seq_done(j->pool, &kv);
    }
    return st;
}

static pl_status run(job *j, const char *dir, pl_error *err)
{
    char path[4096];
    const int n = snprintf(path, sizeof path, "%s/logits", dir);

    if (n < 0 || (size_t)n >= sizeof path)
        return pl_fail(err, PL_E_IO, "path '%s' is too long", dir);
    pl_status st = open_pass(j, err);
    if (st != PL_OK)
        return st;
    FILE *out = fopen(path, "wb");
    if (!out)
        return pl_fail(err, PL_E_IO, "'%s' cannot be written", path);
    st = run_texts(j, out, err);
    if (fclose(out) != 0 && st == PL_OK)
        st = pl_fail(err, PL_E_IO, "'%s' cannot be written: is the disk full?", path);
    printf("%ld\n", j->n_rows);
    return st;
}

int main(int argc, char **argv)
{
    static job j;
    pl_error err = {0};

    if (argc < 3) {
        fprintf(stderr, "usage: dump_logits MODEL OUT [isa] < ids\n");
        return 64;
    }
    pl_status st = open_model(&j, argv[1], argc > 3 ? argv[3] : "auto", &err);
    if (st == PL_OK)
        st = save_weights(&j, argv[2], &err);
    if (st == PL_OK)
        st = run(&j, argv[2], &err);
    if (st != PL_OK)
        fprintf(stderr, "dump_logits: %s\n", err.msg);
    pl_pass_free(j.pass);
    pl_kv_pool_free(j.pool);
    pl_model_free(j.m);
    pl_tokenizer_free(j.tokenizer);
    pl_source_close(j.src);
    pl_team_free(j.team);
    free(j.masters);
    return pl_status_exit_code(st);
}
