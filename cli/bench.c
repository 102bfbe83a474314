/* cli/bench.c - paceline bench NAME: figures against what the machine can do.
 *
 * A shared machine changes its speed within minutes, so every ratio is taken inside one run: the
 * thing and its reference alternate, and the median over the rounds of their ratio is reported. How
 * noisy the run was (stolen time, other processes) is printed with it. */
#include "cli/bench.h"
#include "cli/version.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static const char default_model[] = "models/SmolLM2-135M-Instruct.Q4_1.gguf";
static const char default_config[] = "configs/quickstart.yaml";
static const char arms_config[] = "configs/arms.yaml";
static const char all_arms[] = "none,none-1,suffix,frozen,adaptive,frozen-1,adaptive-1";

typedef struct bench_entry {
    const char *name;
    pl_status (*run)(bench *b, pl_error *err);
    const char *summary;
} bench_entry;

static const bench_entry benches[] = {
    {"decode", bench_decode, "batch 1, 8, 32 at context 512, against reading as many bytes"},
    {"verify", bench_verify, "trees of 2 to 32 rows at context 512, against one row"},
    {"prefill", bench_prefill, "512 tokens, against oneDNN's GEMMs alone"},
    {"train", bench_train, "forward and backward of 2048 tokens, against oneDNN's GEMMs alone"},
    {"start", bench_start, "from starting paceline generate to its first token"},
    {"memory", bench_memory, "peak anonymous memory of a run, against the plan it prints"},
    {"processes", bench_processes, "rollouts by a worker process, against those in process"},
    {"arms", bench_arms, "a run's steps by drafter: none, suffix, frozen, adaptive; on DIR"},
    {"idle", bench_idle, "what workers wait for at a step's end, by rollout.consolidate_below"},
    {"packing", bench_packing, "training the drafter on packed samples, against padded ones"},
    {"checkpoint", bench_checkpoint, "of the drafter's training: time that it stands still"},
    {"preempt", bench_preempt, "from the order to stop training the drafter to the core returned"},
    {"whatif", bench_whatif, "what replay --what-if says of a tree, against a live run of it"},
    {"trace", bench_trace, "writing the trace, against the rollouts; its bytes"},
    {"simulate", bench_simulate,
        "paceline simulate with the costs of another run, against the run"},
    {"monitor", bench_monitor, "rollouts while monitors and ten browsers look, against nobody"},
    {"channel", bench_channel, "new weights to two workers, against hashing or copying them"},
};
enum { N_BENCHES = sizeof benches / sizeof benches[0] };

double bench_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, by_value);
    return (v[(n - 1) / 2] + v[n / 2]) / 2;
}

int bench_rounds(const bench *b, int n)
{
    return b->rounds > 0 ? (int)b->rounds : b->quick ? 1 : n;
}

void bench_heading(bench *b, const char *isa)
{
    fprintf(b->notes, "%s: model %s, isa %s, %d threads, commit %s\nmachine: %s\n", b->name,
        b->model, isa, b->n_threads, PL_COMMIT, b->cpu.name);
}

pl_status bench_open(bench *b, cli_model *m, int with_backward, pl_error *err)
{
    const cli_model_options o = {b->model, b->isa, b->threads, with_backward};
    const pl_log log = {PL_LOG_WARN, STDERR_FILENO, isatty(STDERR_FILENO)};

    const pl_status st = cli_model_open(m, &o, &log, err);
    if (st != PL_OK)
        return st;
    b->n_threads = pl_team_size(m->team);
    bench_heading(b, m->ops->name);
    return PL_OK;
}

static void report_json(bench *b, const bench_figure *f)
{
    pl_json *j = &b->line;
    const char *const keys[] = {"bench", "case", "machine", "commit"};
    const char *const texts[] = {b->name, f->name, b->cpu.name, PL_COMMIT};

    pl_json_clear(j);
    for (int i = 0; i < 4; i++) {
        pl_json_text(j, i == 0 ? "{\"" : ",\"");
        pl_json_text(j, keys[i]);
        pl_json_text(j, "\":");
        pl_json_string(j, texts[i], strlen(texts[i]));
    }
    pl_json_text(j, ",\"threads\":");
    pl_json_int(j, b->n_threads);
    pl_json_text(j, ",\"value\":");
    pl_json_double(j, f->value);
    pl_json_text(j, ",\"unit\":");
    pl_json_string(j, f->unit, strlen(f->unit));
    pl_json_text(j, ",\"ratio\":");
    pl_json_double(j, f->ratio);
    pl_json_text(j, ",\"ratio_to\":");
    if (f->ratio_to)
        pl_json_string(j, f->ratio_to, strlen(f->ratio_to));
    else
        pl_json_text(j, "null");
    pl_json_text(j, "}\n");
}

pl_status bench_report(bench *b, const bench_figure *f, pl_error *err)
{
    b->n_figures++;
    if (!b->json) {
        printf("  %-34s %10.4g %-9s", f->name, f->value, f->unit);
        if (isfinite(f->ratio))
            printf(" %6.3f of %s", f->ratio, f->ratio_to);
        printf("\n");
        return cli_flush(err);
    }
    report_json(b, f);
    const pl_status st = pl_json_check(&b->line, "figure", err);
    if (st != PL_OK)
        return st;
    fwrite(b->line.data, 1, b->line.n, stdout);
    return cli_flush(err);
}

/* ---- how noisy the machine was ---- */

typedef struct cpu_time {
    double total, busy, stolen; /* of all CPUs, seconds */
    double own;                 /* of this process and its ended children */
} cpu_time;

static double seconds_of(struct timeval t)
{
    return (double)t.tv_sec + (double)t.tv_usec * 1e-6;
}

/* All zero where the system does not tell. */
static void read_cpu_time(cpu_time *t)
{
    unsigned long long v[8] = {0}; /* user nice system idle iowait irq softirq steal */
    struct rusage self, children;
    FILE *f = fopen("/proc/stat", "r");

    memset(t, 0, sizeof *t);
    if (!f)
        return;
    const int n = fscanf(f, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &v[0], &v[1], &v[2],
        &v[3], &v[4], &v[5], &v[6], &v[7]);
    fclose(f);
    if (n != 8 || getrusage(RUSAGE_SELF, &self) != 0 || getrusage(RUSAGE_CHILDREN, &children) != 0)
        return;
    const double tick = 1.0 / (double)sysconf(_SC_CLK_TCK);
    for (int i = 0; i < 8; i++)
        t->total += (double)v[i] * tick;
    t->stolen = (double)v[7] * tick;
    t->busy = t->total - (double)(v[3] + v[4] + v[7]) * tick;
    t->own = seconds_of(self.ru_utime) + seconds_of(self.ru_stime) + seconds_of(children.ru_utime) +
             seconds_of(children.ru_stime);
}

static void print_noise(FILE *out, const cpu_time *a, const cpu_time *b)
{
    const double total = b->total - a->total;
    double load = 0, others = b->busy - a->busy - (b->own - a->own);

    /* The count goes on by ticks; idle and iowait may even go back. */
    if (a->total <= 0 || total <= 0 || getloadavg(&load, 1) != 1) {
        fprintf(out,
            "noise: not known: the system's count of CPU time did not go on, or is not told\n");
        return;
    }
    if (others < 0) /* ticks and microseconds are counted apart */
        others = 0;
    fprintf(out, "noise: steal %.1f %%, other processes %.1f %% of the CPU time, load %.2f%s\n",
        100 * (b->stolen - a->stolen) / total, 100 * others / total, load,
        others > 0.1 * total ? "; run it again when the machine is quiet" : "");
}

/* ---- the command ---- */

static const bench_entry *find(const char *name)
{
    for (int i = 0; i < N_BENCHES; i++)
        if (strcmp(name, benches[i].name) == 0)
            return &benches[i];
    return NULL;
}

static void print_benches(void)
{
    printf("\nbenches:\n");
    for (int i = 0; i < N_BENCHES; i++)
        printf("  %-10s %s\n", benches[i].name, benches[i].summary);
}

static const bench_entry *choose(bench *b, int n_args, char **args, pl_error *err)
{
    if (n_args < 1) {
        pl_error_set(err, PL_E_USAGE, "bench wants a name: paceline bench --help lists them");
        return NULL;
    }
    const bench_entry *e = find(args[0]);
    if (!e) {
        pl_error_set(
            err, PL_E_USAGE, "unknown bench '%s': paceline bench --help lists them", args[0]);
        return NULL;
    }
    b->name = e->name;
    if (!b->config)
        b->config = e->run == bench_arms ? arms_config : default_config;
    if (!b->arms)
        b->arms = all_arms;
    b->overrides = args + 1;
    b->n_overrides = n_args - 1;
    if (b->n_overrides > 0 && e->run != bench_memory && e->run != bench_arms &&
        e->run != bench_simulate) {
        pl_error_set(err, PL_E_USAGE, "bench %s takes no argument '%s'", e->name, args[1]);
        return NULL;
    }
    return e;
}

static pl_status measure(bench *b, const bench_entry *e, pl_error *err)
{
    cpu_time before, after;

    b->notes = b->json ? stderr : stdout;
    pl_cpu_read(&b->cpu);
    b->n_threads = b->threads > 0 ? (int)b->threads : b->cpu.n_cpus;
    read_cpu_time(&before);
    pl_status st = e->run(b, err);
    if (st == PL_OK) {
        read_cpu_time(&after);
        print_noise(b->notes, &before, &after);
        st = cli_flush(err);
    }
    pl_json_done(&b->line);
    return st;
}

int cmd_bench(int argc, char **argv)
{
    bench b = {.model = default_model, .isa = "auto", .steps = 1};
    const cli_option options[] = {
        {"model", CLI_STRING, &b.model, 0, 0, "PATH", "a .gguf file or a model directory"},
        {"threads", CLI_INT, &b.threads, 0, 1024, "N", "0: one a core (0)"},
        {"isa", CLI_STRING, &b.isa, 0, 0, "ISA", "auto, amx, avx512, avx2, ref (auto)"},
        {"rounds", CLI_INT, &b.rounds, 0, BENCH_ROUNDS_MAX, "N",
            "0: as many as the bench needs (0)"},
        {"config", CLI_STRING, &b.config, 0, 0, "FILE",
            "memory, arms: of the run (configs/quickstart.yaml, configs/arms.yaml); then key=value "
            "..."},
        {"dir", CLI_STRING, &b.dir, 0, 0, "DIR", "arms: of the bench; the same one goes on"},
        {"arms", CLI_STRING, &b.arms, 0, 0, "LIST", "arms: those that take part (all)"},
        {"drafter", CLI_STRING, &b.drafter, 0, 0, "DIR", "arms, whatif: the drafter to begin with"},
        {"rollouts", CLI_STRING, &b.rollouts, 0, 0, "FILE",
            "idle, packing: recorded responses, or a run directory"},
        {"steps", CLI_INT, &b.steps, 1, 1000000, "N", "memory, arms: steps of the run (1; 24)"},
        {"quick", CLI_FLAG, &b.quick, 0, 0, NULL, "one round: does it work, not how fast it is"},
        {"json", CLI_FLAG, &b.json, 0, 0, NULL, "one JSON object a figure on standard output"},
        {0},
    };
    pl_error err = {0};
    int n, helped;

    pl_status st = cli_parse(argc, argv, "bench NAME [options]", options, &n, &helped, &err);
    if (st == PL_OK && helped) {
        print_benches();
        return 0;
    }
    const bench_entry *e = st == PL_OK ? choose(&b, n, argv + 1, &err) : NULL;
    if (!e)
        return cli_report(&err);
    st = measure(&b, e, &err);
    return st == PL_OK ? 0 : cli_report(&err);
}
