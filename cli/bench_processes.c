/* cli/bench_processes.c - paceline bench processes: one worker process with all threads against the
 * engine in this process, the same batches in turn. */
#include "cli/bench.h"
#include "cli/run.h"
#include "core/file.h"
#include "core/rng.h"

#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ROUNDS = 30, GROUPS = 8, SAMPLES = 8, TOKENS = 32, QUICK_TOKENS = 8 };
enum { LOCAL, REMOTE, FORMS };

typedef struct processes {
    bench *b;
    char dir[64];
    int lock_fd;
    run_config config;
    cli_model m;
    run_data data;
    run_scorer scorer;
    run_source sources[FORMS];
    const pl_prompt *prompts[GROUPS];
    run_batch batches[FORMS];
    bench_child coordinator, worker;
    double seconds[FORMS][BENCH_ROUNDS_MAX];
} processes;

static pl_status load_config(processes *p, pl_error *err)
{
    char model[PL_CONFIG_STR + 32], dir[PL_CONFIG_STR];
    char workers[] = "actor_rollout_ref.rollout.num_workers=1",
         method[] = "speculative.method=suffix";
    char *overrides[] = {model, dir, workers, method};

    snprintf(model, sizeof model, "actor_rollout_ref.model.path=%s", p->b->model);
    snprintf(dir, sizeof dir, "trainer.default_local_dir=%s", p->dir);
    return run_config_load(&p->config, p->b->config, overrides, 4, err);
}

static pl_status start_processes(processes *p, pl_error *err)
{
    char program[4096], threads[16];

    snprintf(threads, sizeof threads, "%d", p->b->n_threads);
    pl_status st = bench_program(program, sizeof program, "", err);
    const char *const coordinator[] = {program, "coordinator", p->dir, NULL};
    const char *const worker[] = {program, "worker", "--connect", p->dir, "--name", "worker-0",
        "--threads", threads, "--isa", p->b->isa, NULL};
    if (st == PL_OK)
        st = bench_child_start(&p->coordinator, coordinator, err);
    return st == PL_OK ? bench_child_start(&p->worker, worker, err) : st;
}

static pl_status open_forms(processes *p, pl_error *err)
{
    const int longest = run_data_longest(&p->data);

    p->scorer.tokenizer = p->m.tokenizer;
    pl_status st =
        run_local_open(&p->sources[LOCAL], &p->config, &p->m, longest, &p->scorer, NULL, err);
    if (st == PL_OK)
        st = run_remote_open(
            &p->sources[REMOTE], &p->config, &p->m, p->m.masters, longest, &p->scorer, NULL, err);
    for (int i = 0; i < FORMS && st == PL_OK; i++)
        st = p->sources[i].begin(p->sources[i].self, 0, err);
    return st;
}

static pl_status open_all(processes *p, pl_error *err)
{
    snprintf(p->dir, sizeof p->dir, "/tmp/paceline-bench-XXXXXX");
    if (!mkdtemp(p->dir))
        return pl_fail(err, PL_E_IO, "no temporary directory under /tmp");
    pl_status st = load_config(p, err);
    if (st == PL_OK)
        st = run_lock_directory(p->dir, &p->lock_fd, err);
    if (st == PL_OK)
        st = run_config_write(&p->config, err);
    if (st == PL_OK)
        st = bench_open(p->b, &p->m, 1, err);
    if (st == PL_OK)
        st = run_data_open(
            &p->data, &p->config, p->m.tokenizer, pl_source_arch(p->m.source)->n_ctx, err);
    if (st == PL_OK)
        st = start_processes(p, err);
    return st == PL_OK ? open_forms(p, err) : st;
}

static void close_all(processes *p)
{
    pl_error ignored = {0};

    for (int i = 0; i < FORMS; i++) {
        if (p->sources[i].close)
            p->sources[i].close(p->sources[i].self);
        run_batch_done(&p->batches[i]);
    }
    if (p->worker.pid > 0)
        kill(p->worker.pid, SIGTERM);
    (void)bench_child_end(&p->worker);
    if (p->coordinator.pid > 0)
        kill(p->coordinator.pid, SIGTERM);
    (void)bench_child_end(&p->coordinator);
    run_data_close(&p->data);
    cli_model_close(&p->m);
    if (p->lock_fd >= 0)
        close(p->lock_fd);
    (void)pl_dir_remove(p->dir, &ignored);
}

/* The same samples in one form; round 0 warms up. */
static pl_status run_round(processes *p, int form, int round, pl_error *err)
{
    const run_report quiet = {0};
    run_batch *b = &p->batches[form];
    const run_sampling s = {.temperature = 1,
        .top_p = 1,
        .max_tokens = p->b->quick ? QUICK_TOKENS : TOKENS,
        .ignore_eos = 1,
        .speculative = p->config.speculative.enable,
        .purpose = PL_NOISE_SAMPLE};

    for (int i = 0; i < GROUPS; i++)
        p->prompts[i] = &p->data.train->prompts[(round * GROUPS + i) % p->data.train->n];
    b->prompts = p->prompts;
    b->n_groups = GROUPS;
    b->n = SAMPLES;
    b->first_uid = (uint32_t)(round * GROUPS * SAMPLES);
    b->id = (uint64_t)RUN_TRAIN << 32 | (uint64_t)(round + 1);
    b->report = &quiet;
    b->phase = "bench";
    return p->sources[form].collect(p->sources[form].self, b, &s, err);
}

static pl_status measure(processes *p, int rounds, pl_error *err)
{
    pl_status st = PL_OK;

    for (int r = 0; r <= rounds && st == PL_OK; r++) {
        for (int k = 0; k < FORMS && st == PL_OK; k++) {
            const int form = (k + r) % FORMS; /* each is first in turn */
            st = run_round(p, form, r, err);
            if (r > 0)
                p->seconds[form][r - 1] = p->batches[form].seconds;
        }
        if (st == PL_OK && run_batch_differ(&p->batches[LOCAL], &p->batches[REMOTE]) > 0)
            st = pl_fail(err, PL_E_NUMERIC, "the two forms gave different samples");
    }
    return st;
}

static pl_status report(processes *p, int rounds, pl_error *err)
{
    double ratio[BENCH_ROUNDS_MAX], mean = 0, spread = 0;
    const double n_tokens = GROUPS * SAMPLES * (p->b->quick ? QUICK_TOKENS : TOKENS);
    bench_figure f = {.unit = "tokens/s", .ratio_to = "in process"};

    for (int r = 0; r < rounds; r++) {
        ratio[r] = p->seconds[LOCAL][r] / p->seconds[REMOTE][r];
        mean += ratio[r] / rounds;
    }
    for (int r = 0; r < rounds; r++)
        spread += (ratio[r] - mean) * (ratio[r] - mean);
    const double half = rounds > 1 ? 1.96 * sqrt(spread / (rounds - 1) / rounds) : 0;
    snprintf(f.name, sizeof f.name, "workers=1,threads=%d,samples=%d,pairs=%d", p->b->n_threads,
        GROUPS * SAMPLES, rounds);
    f.value = n_tokens / bench_median(p->seconds[REMOTE], rounds);
    f.ratio = bench_median(ratio, rounds);
    const pl_status st = bench_report(p->b, &f, err);
    fprintf(p->b->notes,
        "    in process %.1f tokens/s; ratio: mean %.4f, 95 %% interval %.4f to %.4f; all samples "
        "equal\n",
        n_tokens / bench_median(p->seconds[LOCAL], rounds), mean, mean - half, mean + half);
    return st;
}

pl_status bench_processes(bench *b, pl_error *err)
{
    processes p = {.b = b, .lock_fd = -1};
    const int rounds = bench_rounds(b, ROUNDS);

    pl_status st = open_all(&p, err);
    if (st == PL_OK)
        st = measure(&p, rounds, err);
    if (st == PL_OK)
        st = report(&p, rounds, err);
    close_all(&p);
    return st;
}
