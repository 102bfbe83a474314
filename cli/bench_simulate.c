/* cli/bench_simulate.c - paceline bench simulate [RUN_A RUN_B]: the costs of one run, applied to
 * the lengths of another, against what that one took; and how long simulating many workers takes.
 *
 * Without arguments the runs are made here: a short workload and one of longer responses, one after
 * the other, a pair a round; the median over the rounds is reported, for one worker and for two. */
#include "cli/bench.h"
#include "cli/simulate.h"
#include "core/file.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum { MANY = 1000, SAMPLES_EACH = 8, ARGS = 24, PATH_ROOM = 4352 };

/* ---- runs of our own ---- */

typedef struct workload {
    const char *name;
    int n, length, steps; /* samples of a prompt; response tokens at most */
} workload;
/* As many samples: the costs of large passes cannot be had from small ones. */
static const workload workloads[] = {{"a", 8, 64, 4}, {"b", 8, 160, 2}};
static const workload quick[] = {{"a", 2, 8, 1}, {"b", 2, 16, 1}};

static pl_status check_end(int status, pl_error *err)
{
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return PL_OK;
    return pl_fail(err, PL_E_PEER, "paceline run ended with %s %d",
        WIFEXITED(status) ? "exit code" : "signal",
        WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
}

/* What it prints is read and dropped. */
static pl_status run(const char *const *argv, pl_error *err)
{
    bench_child c = {0};
    char buffer[4096];
    ssize_t n;
    const pl_status st = bench_child_start(&c, argv, err);
    if (st != PL_OK)
        return st;
    do {
        n = recv(c.fd, buffer, sizeof buffer, 0);
    } while (n > 0 || (n < 0 && errno == EINTR));
    return check_end(bench_child_end(&c), err);
}

static pl_status make_run(
    const bench *b, const workload *w, int n_workers, const char *dir, pl_error *err)
{
    char program[4096], text[8][PATH_ROOM];
    const pl_status st = bench_program(program, sizeof program, "", err);
    if (st != PL_OK)
        return st;
    if (strlen(b->model) >= 4096 || strlen(dir) >= 4096)
        return pl_fail(err, PL_E_USAGE, "bench simulate: too long a path");
    snprintf(text[0], PATH_ROOM, "trainer.default_local_dir=%s", dir);
    snprintf(text[1], PATH_ROOM, "actor_rollout_ref.model.path=%s", b->model);
    snprintf(text[2], PATH_ROOM, "trainer.total_training_steps=%d", w->steps);
    snprintf(text[3], PATH_ROOM, "trainer.isa=%s", b->isa);
    snprintf(text[4], PATH_ROOM, "rollout.num_workers=%d", n_workers);
    snprintf(text[5], PATH_ROOM, "rollout.n=%d", w->n);
    snprintf(text[6], PATH_ROOM, "data.max_response_length=%d", w->length);
    snprintf(text[7], PATH_ROOM, "trainer.threads=%d", b->n_threads);
    const char *const argv[ARGS] = {program, "run", b->config, text[0], text[1], text[2], text[3],
        text[4], text[5], text[6], text[7], "data.train_batch_size=4",
        "trainer.val_before_train=false", "trainer.compare_prompts=0", "trainer.save_freq=1000",
        "speculative.method=suffix"};
    fprintf(b->notes, "    running %s: %d workers, responses of %d tokens at most ...\n", w->name,
        n_workers, w->length);
    fflush(b->notes);
    return run(argv, err);
}

/* ---- predicted against recorded ---- */

static pl_status add_one(
    void *ctx, const pl_trace_step *step, const pl_sim_result *result, pl_error *err)
{
    (void)step;
    (void)err;
    simulate_add(ctx, result);
    return PL_OK;
}

/* Of some pairs of runs with the same number of workers. */
typedef struct pairs {
    double step[BENCH_ROUNDS_MAX], rollout[BENCH_ROUNDS_MAX]; /* predicted over recorded */
    double step_s[BENCH_ROUNDS_MAX], rollout_s[BENCH_ROUNDS_MAX];
    int n, n_workers;
} pairs;

static void add_pair(pairs *p, const simulate_sum *s)
{
    p->step_s[p->n] = s->r.step_s / s->n;
    p->rollout_s[p->n] = s->r.gen_s / s->n;
    p->step[p->n] = s->r.step_s / s->r.recorded_step_s;
    p->rollout[p->n++] = s->r.gen_s / s->r.recorded_gen_s;
    p->n_workers = s->r.n_workers;
}

static pl_status report_pairs(bench *b, pairs *p, pl_error *err)
{
    bench_figure step = {.value = bench_median(p->step_s, p->n),
        .unit = "s a step",
        .ratio = bench_median(p->step, p->n),
        .ratio_to = "the recorded"};
    bench_figure rollout = {.value = bench_median(p->rollout_s, p->n),
        .unit = "s rollout",
        .ratio = bench_median(p->rollout, p->n),
        .ratio_to = "the recorded"};
    snprintf(step.name, sizeof step.name, "workers=%d,rollout=0", p->n_workers);
    snprintf(rollout.name, sizeof rollout.name, "workers=%d,rollout=1", p->n_workers);
    const pl_status st = bench_report(b, &step, err);
    fprintf(b->notes, "    %d pairs, steps from %.3f to %.3f of the recorded\n", p->n, p->step[0],
        p->step[p->n - 1]);
    return st == PL_OK ? bench_report(b, &rollout, err) : st;
}

/* Many workers over the lengths of r. */
static pl_status time_many(bench *b, const simulate_run *r, pl_error *err)
{
    pl_sim_options o = r->o;
    simulate_sum sum = {0};
    simulate_run one = *r;
    bench_figure f = {.unit = "s to simulate", .ratio = NAN};
    one.first = one.last = r->steps[r->n_records - 1].step;
    pl_status st = simulate_steps(&one, &o, &r->costs, add_one, &sum, err);
    if (st != PL_OK)
        return st;
    o.scale = (MANY * SAMPLES_EACH + sum.r.n_samples - 1) / sum.r.n_samples;
    o.n_workers = MANY;
    o.spot_min_idle = 1;
    o.consolidate_below = 64;
    sum = (simulate_sum){0};
    const double t0 = bench_now();
    st = simulate_steps(&one, &o, &r->costs, add_one, &sum, err);
    f.value = bench_now() - t0;
    snprintf(f.name, sizeof f.name, "workers=%d,samples=%d,messages=%lld", MANY, sum.r.n_samples,
        (long long)sum.r.n_messages);
    return st == PL_OK ? bench_report(b, &f, err) : st;
}

static pl_status compare(
    bench *b, const char *from, const char *to, pairs *p, int with_many, pl_error *err)
{
    simulate_run costs, lengths;
    simulate_sum sum = {0};
    memset(&lengths, 0, sizeof lengths);
    pl_status st = simulate_open(&costs, from, 0, INT64_MAX, err);
    if (st == PL_OK)
        st = simulate_settle(&costs, err);
    if (st == PL_OK)
        st = simulate_open(&lengths, to, 0, INT64_MAX, err);
    if (st == PL_OK && costs.o.n_workers != lengths.o.n_workers)
        fprintf(b->notes, "    '%s' had %d workers, '%s' %d: passes may cost other seconds\n", from,
            costs.o.n_workers, to, lengths.o.n_workers);
    if (st == PL_OK)
        st = simulate_steps(&lengths, &lengths.o, &costs.costs, add_one, &sum, err);
    if (st == PL_OK)
        add_pair(p, &sum);
    if (st == PL_OK && with_many)
        st = time_many(b, &costs, err);
    simulate_close(&costs);
    simulate_close(&lengths);
    return st;
}

static pl_status run_pairs(bench *b, const char *dir, int n_workers, pl_error *err)
{
    const workload *w = b->quick ? quick : workloads;
    const int rounds = bench_rounds(b, 3);
    char at[2][PATH_ROOM];
    pairs p = {0};
    pl_status st = PL_OK;
    for (int r = 0; st == PL_OK && r < rounds; r++) {
        for (int i = 0; st == PL_OK && i < 2; i++) {
            snprintf(at[i], PATH_ROOM, "%s/%s-%d-%d", dir, w[i].name, n_workers, r);
            st = make_run(b, &w[i], n_workers, at[i], err);
        }
        if (st == PL_OK)
            st = compare(b, at[0], at[1], &p, n_workers != 1 && r == rounds - 1, err);
    }
    return st == PL_OK ? report_pairs(b, &p, err) : st;
}

static pl_status compare_given(bench *b, pl_error *err)
{
    pairs p = {0};
    const pl_status st = compare(b, b->overrides[0], b->overrides[1], &p, 1, err);
    return st == PL_OK ? report_pairs(b, &p, err) : st;
}

pl_status bench_simulate(bench *b, pl_error *err)
{
    const char *tmp = getenv("TMPDIR");
    char dir[4096];
    if (b->n_overrides == 2)
        return compare_given(b, err);
    if (b->n_overrides > 0)
        return pl_fail(err, PL_E_USAGE,
            "bench simulate wants two run directories or none: the costs of the first are applied "
            "to the lengths of the second");
    if (b->threads == 0)
        b->n_threads = 1; /* a worker's */
    bench_heading(b, b->isa);
    if (snprintf(dir, sizeof dir, "%s/paceline-bench-XXXXXX", tmp && tmp[0] ? tmp : "/tmp") >=
            (int)sizeof dir ||
        !mkdtemp(dir))
        return pl_fail(err, PL_E_IO, "'%s': %s", dir, strerror(errno));
    /* Figures of workers come twice a second: the steps of --quick are over before. */
    pl_status st = run_pairs(b, dir, b->quick ? 0 : 1, err);
    if (st == PL_OK && !b->quick)
        st = run_pairs(b, dir, 2, err);
    pl_error ignored = {0};
    const pl_status removed = pl_dir_remove(dir, &ignored);
    if (st == PL_OK && removed != PL_OK)
        st = pl_fail(err, removed, "%s", ignored.msg);
    return st;
}
