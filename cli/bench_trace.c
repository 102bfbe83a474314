/* cli/bench_trace.c - paceline bench trace: what the trace takes of a run's time, and its size.
 *
 * A batch is rolled out as a run does it, then its trace is written, round after round; the ratio
 * is that of the two in one round.  Processor time (sync=0) is the trace's own work (hashes, bytes,
 * the chain); wall time (sync=1) has the disk's fdatasync in it too, once a step however long that
 * is. */
#include "cli/bench.h"
#include "cli/run.h"
#include "core/file.h"
#include "core/rng.h"
#include "rollout/trace.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROUNDS = 5, GROUPS = 4, SAMPLES = 8, ALL = GROUPS * SAMPLES, TOKENS = 128, QUICK = 16 };
enum { CPU, WALL, TIMES };

typedef struct traced {
    bench *b;
    char dir[64];
    run_config config;
    cli_model m;
    run_data data;
    run_scorer scorer;
    run_source source;
    run_batch batch;
    const pl_prompt *prompts[GROUPS];
    pl_trace *trace;
    pl_trace_sample samples[ALL];
    double seconds[TIMES][BENCH_ROUNDS_MAX], ratio[TIMES][BENCH_ROUNDS_MAX]; /* by round */
    int64_t n_tokens;                                                        /* of all rounds */
} traced;

static pl_status load_config(traced *t, pl_error *err)
{
    char model[PL_CONFIG_STR + 32], dir[PL_CONFIG_STR];
    char method[] = "speculative.method=suffix";
    char *overrides[] = {model, dir, method};

    snprintf(model, sizeof model, "actor_rollout_ref.model.path=%s", t->b->model);
    snprintf(dir, sizeof dir, "trainer.default_local_dir=%s", t->dir);
    return run_config_load(&t->config, t->b->config, overrides, 3, err);
}

static pl_status open_trace(traced *t, pl_error *err)
{
    static const unsigned char uid[16] = "paceline bench";
    const pl_trace_run run = {.build = "bench",
        .numeric_class = "",
        .isa = t->m.ops->name,
        .machine = t->b->cpu.name,
        .config = "",
        .n_vocab = pl_model_arch(t->m.model)->n_vocab};

    return pl_trace_open(&t->trace, t->dir, uid, &run, NULL, err);
}

static pl_status open_all(traced *t, pl_error *err)
{
    snprintf(t->dir, sizeof t->dir, "/tmp/paceline-bench-XXXXXX");
    if (!mkdtemp(t->dir))
        return pl_fail(err, PL_E_IO, "no temporary directory under /tmp");
    pl_status st = load_config(t, err);
    if (st == PL_OK)
        st = bench_open(t->b, &t->m, 0, err);
    if (st == PL_OK)
        st = run_data_open(
            &t->data, &t->config, t->m.tokenizer, pl_source_arch(t->m.source)->n_ctx, err);
    t->scorer.tokenizer = t->m.tokenizer;
    if (st == PL_OK)
        st = run_local_open(
            &t->source, &t->config, &t->m, run_data_longest(&t->data), &t->scorer, NULL, err);
    if (st == PL_OK)
        st = t->source.begin(t->source.self, 0, err);
    return st == PL_OK ? open_trace(t, err) : st;
}

static void close_all(traced *t)
{
    pl_error ignored = {0};

    pl_trace_close(t->trace);
    if (t->source.close)
        t->source.close(t->source.self);
    run_batch_done(&t->batch);
    run_data_close(&t->data);
    cli_model_close(&t->m);
    (void)pl_dir_remove(t->dir, &ignored);
}

static pl_status roll_out(traced *t, int round, pl_error *err)
{
    const run_report quiet = {0};
    run_batch *b = &t->batch;
    const run_sampling s = {.temperature = 1,
        .top_p = 1,
        .max_tokens = t->b->quick ? QUICK : TOKENS,
        .ignore_eos = 1,
        .speculative = t->config.speculative.enable ? PL_SPECULATE_ON : PL_SPECULATE_OFF,
        .purpose = PL_NOISE_SAMPLE};

    for (int i = 0; i < GROUPS; i++)
        t->prompts[i] = &t->data.train->prompts[(round * GROUPS + i) % t->data.train->n];
    b->prompts = t->prompts;
    b->n_groups = GROUPS;
    b->n = SAMPLES;
    b->first_uid = (uint32_t)(round * ALL);
    b->id = (uint64_t)RUN_TRAIN << 32 | (uint64_t)(round + 1);
    b->report = &quiet;
    b->phase = "bench";
    const pl_status st = t->source.collect(t->source.self, b, &s, err);
    b->report = NULL;
    return st;
}

static double cpu_now(void)
{
    struct timespec c;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &c);
    return (double)c.tv_sec + (double)c.tv_nsec * 1e-9;
}

/* The batch as a step of the trace; *cpu, *wall: seconds that it took. */
static pl_status put(traced *t, int round, double *cpu, double *wall, pl_error *err)
{
    static const char *const workers[] = {"local"};
    const run_batch *b = &t->batch;
    unsigned char head[PL_HASH_BYTES];
    uint64_t prompts[GROUPS];
    uint32_t n_prompt[GROUPS];

    for (int i = 0; i < GROUPS; i++) {
        prompts[i] = b->prompts[i]->key;
        n_prompt[i] = (uint32_t)b->prompts[i]->n_ids;
    }
    for (int i = 0; i < ALL; i++) {
        const pl_response *r = &b->responses[i];
        t->samples[i] = (pl_trace_sample){.uid = r->uid,
            .n_tokens = r->n_tokens,
            .tokens = r->tokens,
            .source = r->token_source,
            .logprobs = r->logprobs,
            .finish = r->finish,
            .reward = b->samples[i].reward,
            .draft = (uint32_t)r->spec_num_draft_tokens,
            .accepted = (uint32_t)r->spec_num_accepted_tokens,
            .steps = (uint32_t)r->spec_num_verify_steps};
        t->n_tokens += r->n_tokens;
    }
    const pl_trace_step s = {.step = round + 1,
        .first_uid = b->first_uid,
        .n_groups = GROUPS,
        .n = SAMPLES,
        .sampling = {.temperature = 1, .top_p = 1},
        .prompts = prompts,
        .n_prompt = n_prompt,
        .gen_s = b->seconds,
        .n_workers = 1,
        .workers = workers,
        .n_costs = b->n_costs,
        .costs = b->costs,
        .samples = t->samples};
    const double t0 = bench_now(), c0 = cpu_now();
    const pl_status st = pl_trace_put(t->trace, &s, head, err);
    *cpu = cpu_now() - c0;
    *wall = bench_now() - t0;
    return st;
}

/* Round 0 warms up. */
static pl_status measure(traced *t, int rounds, pl_error *err)
{
    pl_status st = PL_OK;

    for (int r = 0; r <= rounds && st == PL_OK; r++) {
        double s[TIMES] = {0};
        st = roll_out(t, r, err);
        const int64_t before = t->n_tokens;
        if (st == PL_OK)
            st = put(t, r, &s[CPU], &s[WALL], err);
        const double n = (double)(t->n_tokens - before);
        for (int i = 0; i < TIMES && r > 0; i++) {
            t->seconds[i][r - 1] = s[i] / n * 1e6;
            t->ratio[i][r - 1] = s[i] / t->batch.seconds;
        }
    }
    return st;
}

typedef struct sizes {
    double bytes, token_bytes, samples, tokens;
} sizes;

static pl_status add_sizes(void *ctx, const pl_trace_step *s, pl_error *err)
{
    sizes *z = ctx;

    (void)err;
    z->bytes += (double)s->n_bytes;
    z->token_bytes += (double)s->n_token_bytes;
    z->samples += s->n_groups * s->n;
    for (int i = 0; i < s->n_groups * s->n; i++)
        z->tokens += s->samples[i].n_tokens;
    return PL_OK;
}

static pl_status report(traced *t, int rounds, pl_error *err)
{
    sizes z = {0};
    const pl_trace_visitor v = {&z, NULL, add_sizes};

    pl_status st = pl_trace_read(t->dir, &v, NULL, err);
    for (int i = 0; i < TIMES && st == PL_OK; i++) {
        bench_figure f = {.unit = "s/Mtoken", .ratio_to = "rollouts"};
        snprintf(f.name, sizeof f.name, "samples=%d,rounds=%d,sync=%d", ALL, rounds, i == WALL);
        f.value = bench_median(t->seconds[i], rounds);
        f.ratio = bench_median(t->ratio[i], rounds);
        st = bench_report(t->b, &f, err);
    }
    bench_figure sample = {.unit = "B/sample", .ratio_to = "40 bytes"};
    bench_figure token = {.unit = "B/token", .ratio_to = "3 bytes"};
    snprintf(sample.name, sizeof sample.name, "samples=%.0f", z.samples);
    snprintf(token.name, sizeof token.name, "tokens=%.0f", z.tokens);
    sample.value = (z.bytes - z.token_bytes) / z.samples;
    token.value = z.token_bytes / z.tokens;
    sample.ratio = sample.value / 40;
    token.ratio = token.value / 3;
    if (st == PL_OK)
        st = bench_report(t->b, &sample, err);
    if (st == PL_OK)
        st = bench_report(t->b, &token, err);
    if (st == PL_OK)
        fprintf(t->b->notes,
            "    rollouts: %.1f tokens/s; the trace took %.5f %% of their time by processor time, "
            "%.4f %% with its fdatasync (bar: 1 %%)\n",
            z.tokens / (rounds + 1) / t->batch.seconds, 100 * bench_median(t->ratio[CPU], rounds),
            100 * bench_median(t->ratio[WALL], rounds));
    return st;
}

pl_status bench_trace(bench *b, pl_error *err)
{
    traced *t = calloc(1, sizeof *t);
    const int rounds = bench_rounds(b, ROUNDS);

    if (!t)
        return pl_fail(err, PL_E_NOMEM, "bench trace: out of memory");
    t->b = b;
    pl_status st = open_all(t, err);
    if (st == PL_OK)
        st = measure(t, rounds, err);
    if (st == PL_OK)
        st = report(t, rounds, err);
    close_all(t);
    free(t);
    return st;
}
