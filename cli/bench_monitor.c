/* cli/bench_monitor.c - paceline bench monitor: rollouts by a worker process while nobody looks,
 * and while two monitors (JSON lines and the page), ten browsers and one that reads nothing do.
 *
 * Pairs of the same batch, without drafters, so that both do the same work; who goes first
 * alternates.  The monitors are stopped (SIGSTOP) while nobody is to look: starting them anew would
 * be measured too. */
#define _GNU_SOURCE
#include "cli/bench.h"
#include "cli/monitor.h"
#include "cli/run.h"
#include "core/file.h"
#include "core/rng.h"

#include <math.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PAIRS = 30, GROUPS = 4, SAMPLES = 8, TOKENS = 32, QUICK_TOKENS = 8 };
enum { BROWSERS = 10, CLIENTS = BROWSERS + 1 /* the last one reads nothing */ };
enum { ALONE, WATCHED, FORMS };

typedef struct bed {
    bench *b;
    char dir[64];
    int lock_fd;
    run_config config;
    cli_model m;
    run_data data;
    run_scorer scorer;
    run_source source;
    const pl_prompt *prompts[GROUPS];
    run_batch batch;
    bench_child coordinator, worker, lines, page;
    int clients[CLIENTS];
    pthread_t reader;
    int has_reader;
    atomic_int is_over;
    _Atomic(uint64_t) n_read; /* bytes that the browsers got */
    double seconds[FORMS][BENCH_ROUNDS_MAX];
} bed;

/* ---- who looks ---- */

static void *read_all(void *ctx)
{
    bed *p = ctx;
    struct pollfd at[BROWSERS];
    char text[65536];

    while (!atomic_load(&p->is_over)) {
        for (int i = 0; i < BROWSERS; i++)
            at[i] = (struct pollfd){.fd = p->clients[i], .events = POLLIN};
        if (poll(at, BROWSERS, 50) < 1)
            continue;
        for (int i = 0; i < BROWSERS; i++) {
            const ssize_t n = at[i].revents ? recv(at[i].fd, text, sizeof text, MSG_DONTWAIT) : 0;
            if (n > 0)
                atomic_fetch_add(&p->n_read, (uint64_t)n);
            else if (at[i].revents && n == 0)
                p->clients[i] = -1; /* closed by the page: seen in n_read */
        }
    }
    return NULL;
}

static pl_status open_client(const monitor_server *s, int *fd, pl_error *err)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *a = NULL;
    char request[512];

    const int n = snprintf(request, sizeof request,
        "GET /api/events HTTP/1.1\r\nHost: %s:%s\r\nAccept: text/event-stream\r\n\r\n", s->host,
        s->port);
    if (getaddrinfo(s->host, s->port, &hints, &a) != 0)
        return pl_fail(err, PL_E_PEER, "bench monitor: no address for '%s'", s->host);
    *fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int is_sent = *fd >= 0 && connect(*fd, a->ai_addr, a->ai_addrlen) == 0 &&
                        send(*fd, request, (size_t)n, MSG_NOSIGNAL) == n;
    freeaddrinfo(a);
    return is_sent ? PL_OK : pl_fail(err, PL_E_PEER, "bench monitor: no connection to the page");
}

/* The page says where it is on its first line. */
static pl_status read_url(const bench_child *page, monitor_server *s, pl_error *err)
{
    char text[256];
    size_t n = 0;

    while (n < sizeof text - 1) {
        if (read(page->fd, text + n, 1) != 1)
            return pl_fail(err, PL_E_PEER, "bench monitor: the page did not start");
        if (text[n] == '\n')
            break;
        n++;
    }
    text[n] = '\0';
    return monitor_parse_url(s, text, err);
}

/* Standard output of a child that nobody listens to would fill up: lines go to a file. */
static pl_status start_watchers(bed *p, pl_error *err)
{
    char program[4096], command[8400];
    monitor_server s = {0};

    pl_status st = bench_program(program, sizeof program, "", err);
    snprintf(command, sizeof command, "exec '%s' monitor '%s' --json --interval 0.25 >/dev/null",
        program, p->dir);
    const char *const lines[] = {"/bin/sh", "-c", command, NULL};
    const char *const page[] = {program, "monitor", p->dir, "--web", "127.0.0.1:0", NULL};
    if (st == PL_OK)
        st = bench_child_start(&p->lines, lines, err);
    if (st == PL_OK)
        st = bench_child_start(&p->page, page, err);
    if (st == PL_OK)
        st = read_url(&p->page, &s, err);
    for (int i = 0; i < CLIENTS && st == PL_OK; i++)
        st = open_client(&s, &p->clients[i], err);
    if (st == PL_OK && pthread_create(&p->reader, NULL, read_all, p) != 0)
        st = pl_fail(err, PL_E_NOMEM, "bench monitor: no thread");
    else if (st == PL_OK)
        p->has_reader = 1;
    return st;
}

static void let_look(const bed *p, int is_watched)
{
    const int sig = is_watched ? SIGCONT : SIGSTOP;

    if (p->lines.pid > 0)
        kill(p->lines.pid, sig);
    if (p->page.pid > 0)
        kill(p->page.pid, sig);
}

/* ---- the run ---- */

static pl_status load_config(bed *p, pl_error *err)
{
    char model[PL_CONFIG_STR + 32], dir[PL_CONFIG_STR];
    char workers[] = "actor_rollout_ref.rollout.num_workers=1",
         method[] = "speculative.method=suffix";
    char *overrides[] = {model, dir, workers, method};

    snprintf(model, sizeof model, "actor_rollout_ref.model.path=%s", p->b->model);
    snprintf(dir, sizeof dir, "trainer.default_local_dir=%s", p->dir);
    return run_config_load(&p->config, p->b->config, overrides, 4, err);
}

static pl_status start_run(bed *p, pl_error *err)
{
    char program[4096], threads[16];

    snprintf(threads, sizeof threads, "%d", p->b->n_threads);
    pl_status st = bench_program(program, sizeof program, "", err);
    const char *const coordinator[] = {program, "coordinator", p->dir, NULL};
    const char *const worker[] = {program, "worker", "--connect", p->dir, "--name", "worker-0",
        "--threads", threads, "--isa", p->b->isa, NULL};
    if (st == PL_OK)
        st = bench_child_start(&p->coordinator, coordinator, err);
    if (st == PL_OK)
        st = bench_child_start(&p->worker, worker, err);
    p->scorer.tokenizer = p->m.tokenizer;
    if (st == PL_OK)
        st = run_remote_open(&p->source, &p->config, &p->m, p->m.masters,
            run_data_longest(&p->data), &p->scorer, NULL, err);
    return st == PL_OK ? p->source.begin(p->source.self, 0, err) : st;
}

static pl_status open_all(bed *p, pl_error *err)
{
    snprintf(p->dir, sizeof p->dir, "/tmp/bench-monitor-XXXXXX");
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
    return st == PL_OK ? start_run(p, err) : st;
}

static void end_child(bench_child *c)
{
    if (c->pid > 0) {
        kill(c->pid, SIGCONT);
        kill(c->pid, SIGTERM);
    }
    (void)bench_child_end(c);
}

static void close_all(bed *p)
{
    pl_error ignored = {0};

    atomic_store(&p->is_over, 1);
    if (p->has_reader)
        (void)pthread_join(p->reader, NULL);
    for (int i = 0; i < CLIENTS; i++)
        if (p->clients[i] >= 0)
            close(p->clients[i]);
    end_child(&p->lines);
    end_child(&p->page);
    if (p->source.close)
        p->source.close(p->source.self);
    run_batch_done(&p->batch);
    end_child(&p->worker);
    end_child(&p->coordinator);
    run_data_close(&p->data);
    cli_model_close(&p->m);
    if (p->lock_fd >= 0)
        close(p->lock_fd);
    (void)pl_dir_remove(p->dir, &ignored);
}

/* ---- pairs ---- */

static pl_status roll_out(bed *p, int pair, int nth, double *seconds, pl_error *err)
{
    const run_report quiet = {0};
    run_batch *b = &p->batch;
    const run_sampling s = {.temperature = 1,
        .top_p = 1,
        .max_tokens = p->b->quick ? QUICK_TOKENS : TOKENS,
        .ignore_eos = 1,
        .speculative = PL_SPECULATE_OFF,
        .purpose = PL_NOISE_SAMPLE};

    for (int i = 0; i < GROUPS; i++)
        p->prompts[i] = &p->data.train->prompts[(pair * GROUPS + i) % p->data.train->n];
    b->prompts = p->prompts;
    b->n_groups = GROUPS;
    b->n = SAMPLES;
    b->first_uid = (uint32_t)(pair * GROUPS * SAMPLES);
    b->id = (uint64_t)RUN_TRAIN << 32 | (uint64_t)(2 * pair + nth + 1);
    b->report = &quiet;
    b->phase = "bench";
    const double t0 = bench_now();
    const pl_status st = p->source.collect(p->source.self, b, &s, err);
    *seconds = bench_now() - t0;
    return st;
}

/* Pair 0 warms up. */
static pl_status measure(bed *p, int pairs, pl_error *err)
{
    pl_status st = PL_OK;

    for (int i = 0; i <= pairs && st == PL_OK; i++)
        for (int k = 0; k < FORMS && st == PL_OK; k++) {
            const int form = (i + k) % FORMS;
            double seconds = 0;
            let_look(p, form == WATCHED);
            st = roll_out(p, i, k, &seconds, err);
            if (i > 0)
                p->seconds[form][i - 1] = seconds;
        }
    return st;
}

/* Tokens a second while they look, against nobody: the mean over pairs, and its 95 % interval. */
static pl_status report(bed *p, int pairs, pl_error *err)
{
    const double n_tokens = GROUPS * SAMPLES * (p->b->quick ? QUICK_TOKENS : TOKENS);
    bench_figure f = {.unit = "tokens/s", .ratio_to = "nobody looks"};
    double mean = 0, spread = 0;

    for (int i = 0; i < pairs; i++)
        mean += p->seconds[ALONE][i] / p->seconds[WATCHED][i] / pairs;
    for (int i = 0; i < pairs; i++) {
        const double apart = p->seconds[ALONE][i] / p->seconds[WATCHED][i] - mean;
        spread += apart * apart;
    }
    const double half = pairs > 1 ? 1.96 * sqrt(spread / (pairs - 1) / pairs) : 0;
    snprintf(f.name, sizeof f.name, "monitors=2,browsers=%d,hung=1,threads=%d,pairs=%d", BROWSERS,
        p->b->n_threads, pairs);
    f.value = n_tokens / bench_median(p->seconds[WATCHED], pairs);
    f.ratio = mean;
    const pl_status st = bench_report(p->b, &f, err);
    fprintf(p->b->notes,
        "    nobody looks %.1f tokens/s; ratio: mean %.4f, 95 %% interval %.4f to %.4f; the "
        "browsers "
        "read %llu bytes\n",
        n_tokens / bench_median(p->seconds[ALONE], pairs), mean, mean - half, mean + half,
        (unsigned long long)atomic_load(&p->n_read));
    return st;
}

pl_status bench_monitor(bench *b, pl_error *err)
{
    bed *p = calloc(1, sizeof *p);
    const int pairs = bench_rounds(b, PAIRS);

    if (!p)
        return pl_fail(err, PL_E_NOMEM, "no memory for a bench");
    p->b = b;
    p->lock_fd = -1;
    for (int i = 0; i < CLIENTS; i++)
        p->clients[i] = -1;
    pl_status st = open_all(p, err);
    if (st == PL_OK)
        st = start_watchers(p, err);
    if (st == PL_OK)
        st = measure(p, pairs, err);
    if (st == PL_OK && atomic_load(&p->n_read) == 0)
        st = pl_fail(err, PL_E_PEER, "bench monitor: the browsers got nothing");
    if (st == PL_OK)
        st = report(p, pairs, err);
    close_all(p);
    free(p);
    return st;
}
