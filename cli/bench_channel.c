/* cli/bench_channel.c - paceline bench channel: a full version of the weights to two workers on one
 * machine, by mapped file, as the run hands it over.
 *
 * Two processes, each on its half of the cores, hold a model.  A round times, from the word to the
 * slower one's answer: the version checked and loaded; the same bytes only hashed; only copied. */
#define _GNU_SOURCE
#include "cli/bench.h"
#include "cli/run.h"
#include "core/file.h"
#include "ipc/ipc.h"

#include <errno.h>
#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { READERS = 2, ROUNDS = 9, LOAD = 0, HASH, COPY, TASKS };

typedef struct reader_process {
    bench_child child;
    int first_cpu, n_cpus; /* its share */
} reader_process;

typedef struct channel {
    bench *b;
    char dir[4096], path[4200]; /* of the version */
    reader_process readers[READERS];
    pl_hash root;
    size_t n_bytes;
    double save_s, sync_s, hash_s; /* of publishing */
    double seconds[TASKS][BENCH_ROUNDS_MAX];
} channel;

/* ---- a reader ---- */

typedef struct order { /* from the parent */
    int32_t task;
    pl_hash root;
} order;

typedef struct reader {
    cli_model m;
    pl_file file;
    unsigned char *copy;
} reader;

typedef struct copy_job {
    unsigned char *to;
    const unsigned char *from;
    size_t n;
} copy_job;

static void copy_share(void *ctx, int i_thread, int n_threads)
{
    const copy_job *j = ctx;
    const size_t share = j->n / (size_t)n_threads + 1, begin = (size_t)i_thread * share;

    if (begin < j->n)
        memcpy(j->to + begin, j->from + begin, j->n - begin < share ? j->n - begin : share);
}

static pl_status reader_open(reader *r, const channel *c, int i, pl_error *err)
{
    const reader_process *p = &c->readers[i];
    const cli_model_options o = {.path = c->dir, .isa = c->b->isa, .threads = p->n_cpus};
    cpu_set_t all, own;
    int n = 0;

    CPU_ZERO(&own);
    if (sched_getaffinity(0, sizeof all, &all) != 0)
        return pl_fail(err, PL_E_IO, "CPU affinity: %s", strerror(errno));
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &all)) {
            if (n >= p->first_cpu && n < p->first_cpu + p->n_cpus)
                CPU_SET(cpu, &own);
            n++;
        }
    if (CPU_COUNT(&own) > 0 && sched_setaffinity(0, sizeof own, &own) != 0)
        return pl_fail(err, PL_E_IO, "CPU affinity: %s", strerror(errno));
    pl_status st = cli_model_open(&r->m, &o, NULL, err);
    if (st == PL_OK)
        st = pl_file_open(&r->file, c->path, err);
    if (st == PL_OK && !(r->copy = malloc(r->file.size)))
        st = pl_fail(err, PL_E_NOMEM, "no memory for a copy of '%s'", c->path);
    return st;
}

static pl_status reader_do(reader *r, const channel *c, const order *o, pl_error *err)
{
    copy_job j = {r->copy, r->file.data, r->file.size};
    pl_hash root;

    switch (o->task) {
    case LOAD:
        return run_load_checked(r->m.model, c->dir, &o->root, NULL, NULL, err);
    case HASH:
        return pl_content_hash(
            r->file.data, r->file.size, pl_team_size(r->m.team), NULL, &root, err);
    default:
        pl_team_run(r->m.team, copy_share, &j);
        return PL_OK;
    }
}

/* The life of a reader process; returns its exit code. */
static int read_on(const channel *c, int i, int fd)
{
    reader r = {0};
    order o;
    pl_error err = {0};

    pl_status st = reader_open(&r, c, i, &err);
    for (;;) {
        const char answer = st == PL_OK ? 'y' : 'n';
        if (st != PL_OK)
            cli_report(&err);
        if (send(fd, &answer, 1, MSG_NOSIGNAL) != 1 || st != PL_OK)
            break;
        if (recv(fd, &o, sizeof o, MSG_WAITALL) != sizeof o)
            break;
        st = reader_do(&r, c, &o, &err);
    }
    free(r.copy);
    pl_file_close(&r.file);
    cli_model_close(&r.m);
    return st == PL_OK ? 0 : 1;
}

/* ---- the parent ---- */

static pl_status start_reader(channel *c, int i, pl_error *err)
{
    const int n = c->b->n_threads, half = n / READERS > 0 ? n / READERS : 1;
    int ends[2];

    c->readers[i].n_cpus = half;
    c->readers[i].first_cpu = i * half < c->b->cpu.n_cpus ? i * half : 0;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
        return pl_fail(err, PL_E_IO, "socketpair: %s", strerror(errno));
    fflush(NULL);
    const pid_t pid = fork();
    if (pid == 0) {
        for (int k = 0; k < i; k++)
            close(c->readers[k].child.fd);
        close(ends[0]);
        _exit(read_on(c, i, ends[1]));
    }
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return pl_fail(err, PL_E_IO, "fork: %s", strerror(errno));
    }
    c->readers[i].child = (bench_child){pid, ends[0]};
    return PL_OK;
}

static pl_status await(channel *c, pl_error *err)
{
    for (int i = 0; i < READERS; i++) {
        char answer = 'n';
        if (recv(c->readers[i].child.fd, &answer, 1, MSG_WAITALL) != 1 || answer != 'y')
            return pl_fail(err, PL_E_PEER, "a reader failed: its reason stands above");
    }
    return PL_OK;
}

static pl_status run_task(channel *c, int task, double *seconds, pl_error *err)
{
    const order o = {task, c->root};
    const double t0 = bench_now();

    for (int i = 0; i < READERS; i++)
        if (send(c->readers[i].child.fd, &o, sizeof o, MSG_NOSIGNAL) != sizeof o)
            return pl_fail(err, PL_E_PEER, "a reader is gone");
    const pl_status st = await(c, err);
    *seconds = bench_now() - t0;
    return st;
}

/* Write the model as the trainer publishes it; the parts of that are noted. */
static pl_status publish(channel *c, pl_source *source, pl_error *err)
{
    const pl_param_table *t = pl_source_params(source);
    float *masters = calloc(t->n_elements, sizeof *masters);
    pl_tokenizer *tok = NULL;
    char beside[sizeof c->dir + 8];

    if (!masters)
        return pl_fail(err, PL_E_NOMEM, "no memory for %zu parameters", t->n_elements);
    snprintf(beside, sizeof beside, "%s.tmp", c->dir);
    pl_status st = pl_tokenizer_open(&tok, source, err);
    for (int i = 0; i < t->n_params && st == PL_OK; i++)
        st = pl_source_read(source, &t->params[i], masters + t->params[i].offset, err);
    if (st == PL_OK)
        st = pl_dir_make(beside, err);
    const double t0 = bench_now();
    if (st == PL_OK)
        st = pl_model_save(beside, pl_source_arch(source), t, masters, 1, tok, err);
    if (st == PL_OK)
        st = pl_bundle_write(beside, err);
    const double t1 = bench_now();
    if (st == PL_OK)
        st = pl_dir_commit(beside, c->dir, err);
    c->save_s = t1 - t0;
    c->sync_s = bench_now() - t1;
    pl_tokenizer_free(tok);
    free(masters);
    return st;
}

static pl_status prepare(channel *c, const char *model, pl_error *err)
{
    pl_source *source = NULL;
    pl_file f = {0};

    pl_status st = pl_source_open(&source, model, err);
    if (st == PL_OK)
        st = publish(c, source, err);
    pl_source_close(source);
    for (int i = 0; i < READERS && st == PL_OK; i++) /* before this process has threads */
        st = start_reader(c, i, err);
    if (st == PL_OK)
        st = await(c, err);
    if (st == PL_OK)
        st = pl_file_open(&f, c->path, err);
    const double t0 = bench_now();
    if (st == PL_OK)
        st = pl_content_hash(f.data, f.size, c->b->n_threads, NULL, &c->root, err);
    c->hash_s = bench_now() - t0;
    c->n_bytes = f.size;
    pl_file_close(&f);
    return st;
}

static pl_status report(channel *c, int n, pl_error *err)
{
    const double delivered = (double)READERS * (double)c->n_bytes;
    bench_figure f = {.unit = "GB/s", .ratio_to = "the slower of hashing and copying"};
    double ratios[BENCH_ROUNDS_MAX], gb_s[TASKS];

    for (int i = 0; i < n; i++)
        ratios[i] = fmax(c->seconds[HASH][i], c->seconds[COPY][i]) / c->seconds[LOAD][i];
    for (int t = 0; t < TASKS; t++)
        gb_s[t] = delivered / bench_median(c->seconds[t], n) / 1e9;
    snprintf(f.name, sizeof f.name, "workers=%d,bytes=%zu,threads=%d", READERS, c->n_bytes,
        c->readers[0].n_cpus);
    f.value = gb_s[LOAD];
    f.ratio = bench_median(ratios, n);
    const pl_status st = bench_report(c->b, &f, err);
    fprintf(c->b->notes,
        "    alone, to both: hashing %.3f GB/s, copying %.3f GB/s\n"
        "    publishing it: save %.0f ms, commit %.0f ms, hash %.0f ms with %d threads\n",
        gb_s[HASH], gb_s[COPY], c->save_s * 1e3, c->sync_s * 1e3, c->hash_s * 1e3, c->b->n_threads);
    return st;
}

static pl_status measure(channel *c, const char *model, pl_error *err)
{
    const int n = bench_rounds(c->b, ROUNDS);
    double ignored;

    pl_status st = prepare(c, model, err);
    for (int t = 0; t < TASKS && st == PL_OK; t++) /* touch everything once */
        st = run_task(c, t, &ignored, err);
    for (int i = 0; i < n && st == PL_OK; i++)
        for (int t = 0; t < TASKS && st == PL_OK; t++)
            st = run_task(c, (t + i) % TASKS, &c->seconds[(t + i) % TASKS][i], err);
    if (st == PL_OK)
        st = report(c, n, err);
    for (int i = 0; i < READERS; i++)
        (void)bench_child_end(&c->readers[i].child);
    return st;
}

/* A model of some megabytes: does it work, not how fast it is. */
static pl_status write_small(const char *dir, pl_error *err)
{
    pl_tiny_options o;

    pl_tiny_defaults(&o);
    o.arch.n_layers = 4;
    o.arch.n_embd = 256;
    o.arch.n_ff = 640;
    const pl_status st = pl_dir_make(dir, err);
    return st == PL_OK ? pl_tiny_write(dir, &o, err) : st;
}

pl_status bench_channel(bench *b, pl_error *err)
{
    const char *tmp = getenv("TMPDIR");
    char top[1024], small[1100];
    channel *c = calloc(1, sizeof *c);

    if (!c)
        return pl_fail(err, PL_E_NOMEM, "bench channel: no memory");
    snprintf(top, sizeof top, "%s/paceline-bench-XXXXXX", tmp && tmp[0] ? tmp : "/tmp");
    if (!mkdtemp(top)) {
        free(c);
        return pl_fail(err, PL_E_IO, "'%s': %s", top, strerror(errno));
    }
    c->b = b;
    snprintf(c->dir, sizeof c->dir, "%s/version", top);
    snprintf(c->path, sizeof c->path, "%s/model.safetensors", c->dir);
    snprintf(small, sizeof small, "%s/small", top);
    bench_heading(b, b->isa);
    pl_status st = b->quick ? write_small(small, err) : PL_OK;
    if (st == PL_OK)
        st = measure(c, b->quick ? small : b->model, err);
    pl_error ignored = {0};
    const pl_status removed = pl_dir_remove(top, &ignored);
    if (st == PL_OK && removed != PL_OK)
        st = pl_fail(err, removed, "%s", ignored.msg);
    free(c);
    return st;
}
