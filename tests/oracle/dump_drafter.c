/* tests/oracle/dump_drafter.c - a drafter's logits over one window, for tests/oracle/drafter.py.
 *
 *   dump_drafter MODEL DRAFTER IN OUT
 *
 * IN: int32 n, depth, n token ids, then bf16 features [n][3][pad32(C)], hidden [n][pad32(C)].
 * OUT: for every prediction int32 row, depth and fp32 logits [n_vocab].  DRAFTER is also written
 * anew, to OUT.drafter. */
#include "core/file.h"
#include "drafter/eagle.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct job {
    pl_cpu cpu;
    const pl_ops *ops;
    pl_team *team;
    pl_source *src;
    pl_model *m;
    pl_eagle *e;
    pl_eagle_trainer *t;
    FILE *out;
} job;

static void put_row(void *ctx, int i_window, int i_row, int depth, const float *logits)
{
    const job *j = ctx;
    const int32_t head[2] = {i_row, depth};

    (void)i_window;
    fwrite(head, sizeof head, 1, j->out);
    fwrite(logits, sizeof *logits, (size_t)pl_eagle_n_vocab(j->e), j->out);
}

static pl_status open_all(job *j, char **argv, pl_error *err)
{
    pl_fp_enter();
    pl_cpu_read(&j->cpu);
    pl_status st = pl_ops_select(&j->ops, PL_ISA_AUTO, &j->cpu, NULL, 0, err);
    if (st == PL_OK)
        st = pl_team_new(&j->team, 0, 0, err);
    if (st == PL_OK)
        st = pl_source_open(&j->src, argv[1], err);
    if (st == PL_OK)
        st = pl_model_new(&j->m, pl_source_arch(j->src), j->ops, j->team, 0, err);
    if (st == PL_OK)
        st = pl_model_load(j->m, j->src, NULL, err);
    return st == PL_OK ? pl_eagle_load(&j->e, j->m, argv[2], err) : st;
}

static pl_status run(job *j, const char *in, size_t n_bytes, pl_error *err)
{
    const size_t cp = (size_t)pl_pad32(pl_model_arch(j->m)->n_embd);
    pl_eagle_train_options o;
    pl_eagle_step_stats s;
    int32_t head[2] = {0};

    if (n_bytes >= sizeof head)
        memcpy(head, in, sizeof head);
    const size_t n = (size_t)head[0];
    if (head[0] < 2 || n_bytes != sizeof head + n * (4 + 2 * (PL_FEATURE_LAYERS + 1) * cp))
        return pl_fail(err, PL_E_FORMAT, "%zu bytes are no window", n_bytes);
    uint8_t *is_target = malloc(n);
    if (!is_target)
        return pl_fail(err, PL_E_NOMEM, "no memory for %zu rows", n);
    memset(is_target, 1, n);
    pl_eagle_window w = {.tokens = (const int32_t *)(in + sizeof head), .n = head[0]};
    w.is_target = is_target;
    w.features = (const uint16_t *)(w.tokens + n);
    w.hidden = w.features + n * PL_FEATURE_LAYERS * cp;
    pl_eagle_train_defaults(&o);
    o.window = head[0];
    o.depth = head[1];
    pl_status st = pl_eagle_trainer_new(&j->t, j->e, &o, err);
    if (st == PL_OK)
        st = pl_eagle_eval_rows(j->t, &w, 1, put_row, j, &s, err);
    free(is_target);
    return st;
}

int main(int argc, char **argv)
{
    char *in = NULL, dir[4096];
    size_t n_bytes = 0;
    pl_error err = {0};
    job j = {0};

    if (argc != 5) {
        fprintf(stderr, "dump_drafter MODEL DRAFTER IN OUT\n");
        return 64;
    }
    j.out = fopen(argv[4], "wb");
    pl_status st = j.out ? open_all(&j, argv, &err) : pl_fail(&err, PL_E_IO, "'%s'", argv[4]);
    if (st == PL_OK)
        st = pl_file_read(&in, &n_bytes, argv[3], 1 << 28, &err);
    if (st == PL_OK)
        st = run(&j, in, n_bytes, &err);
    snprintf(dir, sizeof dir, "%s.drafter", argv[4]);
    if (st == PL_OK)
        st = pl_eagle_save(j.e, dir, &err);
    if (j.out && fclose(j.out) != 0 && st == PL_OK)
        st = pl_fail(&err, PL_E_IO, "'%s'", argv[4]);
    if (st != PL_OK)
        fprintf(stderr, "%s\n", err.msg);
    free(in);
    pl_eagle_trainer_free(j.t);
    pl_eagle_free(j.e);
    pl_model_free(j.m);
    pl_source_close(j.src);
    pl_team_free(j.team);
    return st == PL_OK ? 0 : 1;
}
