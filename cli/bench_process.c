/* cli/bench_process.c - paceline bench start, memory: whole processes; children of a bench. */
#include "cli/bench.h"
#include "core/file.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

enum { PROMPT_TOKENS = 24, POLL_MS = 20, ARGS_MAX = 64, OUTPUT_MAX = 1 << 16 };

/* ---- children ---- */

pl_status bench_program(char *path, size_t size, const char *name, pl_error *err)
{
    const ssize_t n = readlink("/proc/self/exe", path, size);
    char *slash;

    if (n < 0 || (size_t)n >= size)
        return pl_fail(err, PL_E_IO, "/proc/self/exe: %s", n < 0 ? strerror(errno) : "too long");
    path[n] = 0;
    if (!name[0])
        return PL_OK;
    slash = strrchr(path, '/');
    const size_t room = size - (size_t)(slash + 1 - path);
    if (strlen(name) >= room)
        return pl_fail(err, PL_E_IO, "'%s': the path is too long", path);
    memcpy(slash + 1, name, strlen(name) + 1);
    return PL_OK;
}

pl_status bench_child_start(bench_child *c, const char *const *argv, pl_error *err)
{
    posix_spawn_file_actions_t actions;
    int ends[2], rc;
    pid_t pid = 0;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
        return pl_fail(err, PL_E_IO, "socketpair: %s", strerror(errno));
    rc = posix_spawn_file_actions_init(&actions);
    if (rc == 0) {
        rc = posix_spawn_file_actions_adddup2(&actions, ends[1], STDIN_FILENO);
        if (rc == 0)
            rc = posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
        if (rc == 0)
            rc = posix_spawn(&pid, argv[0], &actions, NULL, (char *const *)argv, environ);
        posix_spawn_file_actions_destroy(&actions);
    }
    close(ends[1]);
    if (rc != 0) {
        close(ends[0]);
        return pl_fail(err, PL_E_IO, "'%s' cannot be started: %s", argv[0], strerror(rc));
    }
    c->pid = pid;
    c->fd = ends[0];
    return PL_OK;
}

int bench_child_end(bench_child *c)
{
    int status = 0;

    if (c->pid == 0)
        return 0;
    close(c->fd);
    while (waitpid(c->pid, &status, 0) < 0 && errno == EINTR)
        ;
    c->pid = 0;
    return status;
}

/* How a child ended, as a failure of ours unless it went well. */
static pl_status check_end(int status, const char *what, pl_error *err)
{
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return PL_OK;
    if (WIFSIGNALED(status))
        return pl_fail(err, PL_E_PEER, "%s ended by signal %d", what, WTERMSIG(status));
    return pl_fail(err, PL_E_PEER, "%s ended with exit code %d: its reason stands above", what,
        WEXITSTATUS(status));
}

/* Read what comes next, at most size bytes.  Returns 0 at the end or after a failure. */
static size_t read_some(int fd, char *to, size_t size)
{
    for (;;) {
        const ssize_t n = read(fd, to, size);
        if (n >= 0)
            return (size_t)n;
        if (errno != EINTR)
            return 0;
    }
}

/* ---- start ---- */

/* Text of exactly PROMPT_TOKENS tokens of the model: words until there are enough. */
static pl_status make_prompt(const bench *b, char *text, size_t size, pl_error *err)
{
    pl_source *source = NULL;
    pl_tokenizer *tok = NULL;
    int32_t *ids = NULL;
    int n = 0;

    text[0] = 0;
    pl_status st = pl_source_open(&source, b->model, err);
    if (st == PL_OK)
        st = pl_tokenizer_open(&tok, source, err);
    while (st == PL_OK && n < PROMPT_TOKENS && strlen(text) + 8 < size) {
        strcat(text, n == 0 ? "1" : " 1"); /* digits are single tokens in every vocabulary */
        free(ids);
        ids = NULL;
        st = pl_tokenizer_encode(tok, text, strlen(text), 0, &ids, &n, err);
    }
    free(ids);
    pl_tokenizer_free(tok);
    pl_source_close(source);
    return st;
}

static pl_status time_start(const char *const *argv, double *first_s, double *end_s, pl_error *err)
{
    bench_child c = {0};
    char buffer[4096];

    const double t0 = bench_now();
    const pl_status st = bench_child_start(&c, argv, err);
    if (st != PL_OK)
        return st;
    const size_t n = read_some(c.fd, buffer, 1);
    *first_s = bench_now() - t0;
    while (n > 0 && read_some(c.fd, buffer, sizeof buffer) > 0)
        ;
    const int status = bench_child_end(&c);
    *end_s = bench_now() - t0;
    if (n == 0 && status == 0)
        return pl_fail(err, PL_E_PEER, "paceline generate printed nothing");
    return check_end(status, "paceline generate", err);
}

pl_status bench_start(bench *b, pl_error *err)
{
    char program[4096], prompt[512], threads[16];
    const char *argv[] = {program, "generate", "--model", b->model, "--isa", b->isa, "--threads",
        threads, "--raw", "--max-tokens", "1", "--prompt", prompt, NULL};
    double first[BENCH_ROUNDS_MAX], end[BENCH_ROUNDS_MAX], warm;
    const int rounds = bench_rounds(b, 7);
    bench_figure f = {.unit = "s", .ratio = (double)NAN};

    bench_heading(b, b->isa);
    pl_status st = bench_program(program, sizeof program, "", err);
    if (st == PL_OK)
        st = make_prompt(b, prompt, sizeof prompt, err);
    snprintf(threads, sizeof threads, "%d", b->n_threads);
    if (st == PL_OK)
        st = time_start(argv, &warm, &warm, err); /* the page cache holds the files from here on */
    for (int r = 0; st == PL_OK && r < rounds; r++)
        st = time_start(argv, &first[r], &end[r], err);
    if (st != PL_OK)
        return st;
    snprintf(f.name, sizeof f.name, "prompt=%d,threads=%d", (int)PROMPT_TOKENS, b->n_threads);
    f.value = bench_median(first, rounds);
    st = bench_report(b, &f, err);
    fprintf(b->notes,
        "    to the first byte, median of %d (%.3f .. %.3f s); to the end of the "
        "process %.3f s\n",
        rounds, first[0], first[rounds - 1], bench_median(end, rounds));
    return st;
}

/* ---- memory ---- */

/* Anonymous memory of a process that is resident or swapped out, bytes; 0 when it is gone. */
static size_t anonymous_bytes(pid_t pid)
{
    char path[64], line[256];
    size_t sum = 0;
    unsigned long long kib;

    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "RssAnon: %llu kB", &kib) == 1 ||
            sscanf(line, "VmSwap: %llu kB", &kib) == 1)
            sum += (size_t)kib << 10;
    if (f)
        fclose(f);
    return sum;
}

/* "  total    1234 MB": bytes; 0 when the text has no such line. */
static double plan_total(char *text)
{
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        double mb;
        while (isspace((unsigned char)*line))
            line++;
        if (sscanf(line, "total %lf MB", &mb) == 1)
            return mb * 1e6;
    }
    return 0;
}

/* The plan that the run prints for itself. */
static pl_status read_plan(const char *const *argv, double *bytes, pl_error *err)
{
    bench_child c = {0};
    size_t n = 0, got;
    char *text = malloc(OUTPUT_MAX);

    if (!text)
        return pl_fail(err, PL_E_NOMEM, "bench memory: no memory for the plan");
    pl_status st = bench_child_start(&c, argv, err);
    if (st == PL_OK) {
        do {
            got = read_some(c.fd, text + n, OUTPUT_MAX - 1 - n);
            n += got;
        } while (got > 0);
        text[n] = 0;
        st = check_end(bench_child_end(&c), "paceline run --dry-run", err);
    }
    if (st == PL_OK) {
        *bytes = plan_total(text);
        if (*bytes <= 0)
            st = pl_fail(err, PL_E_PEER, "paceline run --dry-run printed no line 'total'");
    }
    free(text);
    return st;
}

/* Run to the end, watching.  What it prints is read and dropped. */
static pl_status watch_run(const char *const *argv, size_t *peak, double *seconds, pl_error *err)
{
    const struct timespec pause = {.tv_nsec = POLL_MS * 1000000};
    bench_child c = {0};
    char buffer[4096];
    ssize_t n = 0;

    const double t0 = bench_now();
    const pl_status st = bench_child_start(&c, argv, err);
    if (st != PL_OK)
        return st;
    *peak = 0;
    do {
        const size_t now = anonymous_bytes(c.pid);
        *peak = now > *peak ? now : *peak;
        nanosleep(&pause, NULL);
        n = recv(c.fd, buffer, sizeof buffer, MSG_DONTWAIT);
    } while (n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR)));
    const int status = bench_child_end(&c);
    *seconds = bench_now() - t0;
    return check_end(status, "paceline run", err);
}

/* The command line of the run, in storage of the caller. */
typedef struct run_line {
    char program[4096], dir[4352], model[4352], steps[64], isa[64], threads[64];
    const char *argv[ARGS_MAX];
    int n;
} run_line;

static pl_status make_run_line(run_line *l, bench *b, const char *dir, pl_error *err)
{
    const pl_status st = bench_program(l->program, sizeof l->program, "", err);
    const char *const fixed[] = {
        l->program, "run", b->config, l->dir, l->model, l->steps, l->isa, l->threads};

    if (st != PL_OK)
        return st;
    if (strlen(b->model) >= 4096 || b->n_overrides > ARGS_MAX - 16)
        return pl_fail(err, PL_E_USAGE, "bench memory: too long a path or too many arguments");
    snprintf(l->dir, sizeof l->dir, "trainer.default_local_dir=%s/run", dir);
    snprintf(l->model, sizeof l->model, "actor_rollout_ref.model.path=%s", b->model);
    snprintf(l->steps, sizeof l->steps, "trainer.total_training_steps=%lld", (long long)b->steps);
    snprintf(l->isa, sizeof l->isa, "trainer.isa=%s", b->isa);
    snprintf(l->threads, sizeof l->threads, "trainer.threads=%d", b->n_threads);
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
        l->argv[l->n++] = fixed[i];
    if (b->quick) {
        l->argv[l->n++] = "trainer.val_before_train=false";
        l->argv[l->n++] = "trainer.compare_prompts=0";
    }
    for (int i = 0; i < b->n_overrides; i++)
        l->argv[l->n++] = b->overrides[i];
    return PL_OK;
}

static pl_status report_memory(bench *b, size_t peak, double plan, double seconds, pl_error *err)
{
    bench_figure f = {.value = (double)peak / 1e6,
        .unit = "MB",
        .ratio = (double)peak / plan,
        .ratio_to = "the plan printed"};

    snprintf(f.name, sizeof f.name, "steps=%lld,threads=%d", (long long)b->steps, b->n_threads);
    const pl_status st = bench_report(b, &f, err);
    fprintf(b->notes,
        "    peak anonymous memory of %s over %.0f s, looked at every %d ms; planned "
        "%.0f MB\n",
        b->config, seconds, (int)POLL_MS, plan / 1e6);
    return st;
}

pl_status bench_memory(bench *b, pl_error *err)
{
    const char *tmp = getenv("TMPDIR");
    char dir[4096];
    double plan, seconds;
    size_t peak;
    run_line *l = calloc(1, sizeof *l);

    if (!l)
        return pl_fail(err, PL_E_NOMEM, "bench memory: no memory");
    bench_heading(b, b->isa);
    snprintf(dir, sizeof dir, "%s/paceline-bench-XXXXXX", tmp && tmp[0] ? tmp : "/tmp");
    if (!mkdtemp(dir)) {
        free(l);
        return pl_fail(err, PL_E_IO, "'%s': %s", dir, strerror(errno));
    }
    pl_status st = make_run_line(l, b, dir, err);
    if (st == PL_OK) {
        l->argv[l->n] = "--dry-run";
        st = read_plan(l->argv, &plan, err);
        l->argv[l->n] = NULL;
    }
    if (st == PL_OK)
        st = watch_run(l->argv, &peak, &seconds, err);
    if (st == PL_OK)
        st = report_memory(b, peak, plan, seconds, err);
    pl_error ignored = {0};
    const pl_status removed = pl_dir_remove(dir, &ignored);
    if (st == PL_OK && removed != PL_OK)
        st = pl_fail(err, removed, "%s", ignored.msg);
    free(l);
    return st;
}
