/* tests/oracle/dump_gradients.c - gradients of a model on given texts, for
 * tests/oracle/gradients.py.
 *
 *   dump_gradients MODEL OUT [isa]      lines of text on standard input
 *
 * The loss is the sum of advantage(line) log p(token) over the second half of each line, at
 * temperature 0.9.  Writes OUT/weights (bf16, what the gradients are of) and OUT/gradients (fp32)
 * as model directories and prints the ids of each line, then the log-probs. */
#include "core/file.h"
#include "model/tokenizer.h"
#include "model/train.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_SEQS = 16 };

typedef struct job {
    pl_cpu cpu;
    const pl_ops *ops;
    pl_team *team;
    pl_source *src;
    pl_tokenizer *tokenizer;
    pl_model *m;
    pl_train *t;
    float *masters, *grads;
    pl_train_seq seqs[MAX_SEQS];
    int n_seqs;
    int budget, longest;
} job;

static float loss(void *ctx, int i_seq, int i_token, float logprob, float entropy)
{
    static const float advantages[] = {1.0f, -0.7f, 0.4f, -1.2f, 0.9f, 0.3f, -0.5f, 1.1f};
    (void)ctx;
    (void)entropy;
    printf("logprob %d %d %.9g\n", i_seq, i_token, (double)logprob);
    return advantages[i_seq % 8];
}

static pl_status open_model(job *j, const char *path, const char *isa, pl_error *err)
{
    pl_cpu_read(&j->cpu);
    pl_status st = pl_ops_select(&j->ops, pl_isa_parse(isa), &j->cpu, NULL, 0, err);
    if (st == PL_OK)
        st = pl_team_new(&j->team, 0, 0, err);
    if (st == PL_OK)
        st = pl_source_open(&j->src, path, err);
    if (st == PL_OK)
        st = pl_tokenizer_open(&j->tokenizer, j->src, err);
    if (st == PL_OK)
        st = pl_model_new(&j->m, pl_source_arch(j->src), j->ops, j->team, 1, err);
    if (st != PL_OK)
        return st;
    const size_t n = pl_model_params(j->m)->n_elements;
    j->masters = calloc(n, sizeof *j->masters);
    j->grads = calloc(n, sizeof *j->grads);
    if (!j->masters || !j->grads)
        return pl_fail(err, PL_E_NOMEM, "no memory for %zu gradients", n);
    return pl_model_load(j->m, j->src, j->masters, err);
}

static pl_status read_texts(job *j, pl_error *err)
{
    char line[8192];
    while (j->n_seqs < MAX_SEQS && fgets(line, sizeof line, stdin)) {
        int32_t *ids;
        int n;
        const pl_status st =
            pl_tokenizer_encode(j->tokenizer, line, strcspn(line, "\n"), 1, &ids, &n, err);
        if (st != PL_OK)
            return st;
        if (n < 2)
            return pl_fail(err, PL_E_INVAL, "line %d has %d tokens; 2 are needed", j->n_seqs, n);
        j->seqs[j->n_seqs++] = (pl_train_seq){
            .tokens = ids, .n_tokens = n, .n_prompt = (n + 1) / 2, .temperature = 0.9f};
        j->budget += pl_train_rows(n);
        j->longest = n > j->longest ? n : j->longest;
        printf("tokens %d", (n + 1) / 2);
        for (int i = 0; i < n; i++)
            printf(" %d", (int)ids[i]);
        printf("\n");
    }
    return PL_OK;
}

static pl_status save(
    const job *j, const char *out, const char *name, const float *x, int bf16, pl_error *err)
{
    char dir[4096];
    const int n = snprintf(dir, sizeof dir, "%s/%s", out, name);
    if (n < 0 || (size_t)n >= sizeof dir || mkdir(dir, 0777) != 0)
        return pl_fail(err, PL_E_IO, "'%s/%s' cannot be made; OUT must be empty", out, name);
    return pl_model_save(
        dir, pl_model_arch(j->m), pl_model_params(j->m), x, bf16, j->tokenizer, err);
}

static pl_status run(job *j, const char *out, pl_error *err)
{
    pl_status st = read_texts(j, err);
    if (st != PL_OK)
        return st;
    const pl_train_options o = {
        .max_tokens = j->budget, .max_seqs = MAX_SEQS, .max_len = j->longest};
    st = pl_train_new(&j->t, j->m, &o, err);
    if (st == PL_OK)
        st = pl_train_step(j->t, j->seqs, j->n_seqs, loss, NULL, j->grads, err);
    if (st == PL_OK)
        st = save(j, out, "weights", j->masters, 1, err);
    if (st == PL_OK)
        st = save(j, out, "gradients", j->grads, 0, err);
    return st;
}

int main(int argc, char **argv)
{
    job j = {0};
    pl_error err = {0};

    if (argc < 3) {
        fprintf(stderr, "usage: dump_gradients MODEL OUT [isa] < texts\n");
        return 64;
    }
    pl_status st = open_model(&j, argv[1], argc > 3 ? argv[3] : "auto", &err);
    if (st == PL_OK)
        st = run(&j, argv[2], &err);
    if (st != PL_OK)
        fprintf(stderr, "dump_gradients: %s\n", err.msg);
    for (int i = 0; i < j.n_seqs; i++)
        free((int32_t *)(uintptr_t)j.seqs[i].tokens);
    pl_train_free(j.t);
    pl_model_free(j.m);
    pl_tokenizer_free(j.tokenizer);
    pl_source_close(j.src);
    pl_team_free(j.team);
    free(j.masters);
    free(j.grads);
    return pl_status_exit_code(st);
}
