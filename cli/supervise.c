/* cli/supervise.c - paceline run with worker processes: starts them, starts again what a signal
 * killed, stops them.  It knows nothing of samples or weights; if it dies they go on, and the next
 * paceline run on the directory adopts them. */
#define _GNU_SOURCE /* CPU sets */
#include "cli/run.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    ARGS_MAX = 64,
    RESTARTS_MAX = 5, /* a minute and process */
    EXIT_PEER = 69,   /* cli_report of PL_E_PEER */
    POLL_MS = 200,
    FAREWELL_S = 3, /* of the coordinator, once the run is complete */
    GRACE_S = 15    /* between SIGTERM and SIGKILL */
};

typedef struct child {
    char name[32]; /* "worker-0": its lock is RUN/name.lock */
    char *argv[ARGS_MAX];
    int n_args;
    cpu_set_t cpus;
    pid_t pid;   /* 0: not running */
    int fd;      /* pidfd; -1 */
    int is_ours; /* started here: waitpid tells how it ended */
    int is_over; /* ended by itself: not to be started again */
    int code;    /* exit code, once it is over */
    double starts[RESTARTS_MAX];
    int n_starts; /* of the array */
} child;

typedef struct supervisor {
    const run_config *config;
    pl_log log;
    child *children; /* coordinator, trainer, workers */
    int n;
    int failed;     /* exit code of what ended the run; 0 */
    double left_at; /* the coordinator, behind END; 0: it is there */
    char dir[PL_CONFIG_STR + 16];
} supervisor;

enum { COORDINATOR, TRAINER, FIRST_WORKER };

static int lock_name(const child *c, char out[48])
{
    return snprintf(out, 48, "%s.lock", c->name);
}

static int open_pidfd(pid_t pid)
{
    return (int)syscall(SYS_pidfd_open, pid, 0);
}

/* ---- starting ---- */

static void become(const child *c)
{
    setpgid(0, 0); /* Ctrl-C is for the supervisor, who tells the others in order */
    sched_setaffinity(0, sizeof c->cpus, &c->cpus);
    execv("/proc/self/exe", c->argv);
    fprintf(stderr, "paceline: cannot start %s: %s\n", c->name, strerror(errno));
    _exit(70);
}

static pl_status start(child *c, pl_error *err)
{
    fflush(NULL);
    const pid_t pid = fork();
    if (pid == 0)
        become(c);
    if (pid < 0)
        return pl_fail(err, PL_E_IO, "cannot start %s: %s", c->name, strerror(errno));
    c->pid = pid;
    c->is_ours = 1;
    c->is_over = 0;
    c->fd = open_pidfd(pid);
    return PL_OK;
}

/* A process of an earlier supervisor that is still there. */
static int adopt(const supervisor *s, child *c)
{
    char name[48];

    lock_name(c, name);
    const pid_t pid = run_locked_by(s->dir, name);
    if (pid <= 0)
        return 0;
    c->fd = open_pidfd(pid);
    if (c->fd < 0)
        return 0;
    c->pid = pid;
    c->is_ours = 0;
    pl_log_info(&s->log, "%s runs already (process %d): adopted%s", c->name, (int)pid,
        c == s->children + TRAINER
            ? "; its table goes where it was started, its figures to metrics.jsonl"
            : "");
    return 1;
}

/* Not more than RESTARTS_MAX in a minute. */
static int may_start_again(child *c)
{
    const double now = run_seconds();
    int n = 0;

    for (int i = 0; i < c->n_starts; i++)
        if (now - c->starts[i] < 60)
            c->starts[n++] = c->starts[i];
    c->n_starts = n;
    if (n == RESTARTS_MAX)
        return 0;
    c->starts[c->n_starts++] = now;
    return 1;
}

/* ---- ending ---- */

static void tell(const child *c, int sig)
{
    if (c->pid <= 0)
        return;
    if (c->fd >= 0)
        (void)syscall(SYS_pidfd_send_signal, c->fd, sig, NULL, 0);
    else
        kill(c->pid, sig);
}

static void forget(child *c)
{
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->pid = 0;
}

/* 1 when it has ended; *sig is what killed it, or 0 and *code its exit code. */
static int has_ended(const child *c, int *sig, int *code)
{
    int status;
    struct pollfd p = {.fd = c->fd, .events = POLLIN};

    *sig = *code = 0;
    if (c->is_ours) {
        if (waitpid(c->pid, &status, WNOHANG) != c->pid)
            return 0;
        *sig = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
        *code = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
        return 1;
    }
    if (poll(&p, 1, 0) < 1)
        return 0;
    *sig = SIGKILL; /* how an adopted process ended is not known: started again, it finds out */
    return 1;
}

static void on_end(supervisor *s, child *c, int sig, int code)
{
    pl_error err = {0};

    forget(c);
    /* Its place was taken: a supervisor that was killed had just started one as well. */
    if (sig == 0 && code == EXIT_PEER && adopt(s, c))
        return;
    if (sig == 0) {
        c->is_over = 1;
        c->code = code;
        return;
    }
    if (may_start_again(c)) {
        if (c->is_ours)
            pl_log_warn(&s->log, "%s was killed by signal %d: started again (%d of %d in a minute)",
                c->name, sig, c->n_starts, (int)RESTARTS_MAX);
        else
            pl_log_info(&s->log, "%s, which was adopted, has ended: started again", c->name);
        if (start(c, &err) == PL_OK)
            return;
        pl_log_error(&s->log, "%s", err.msg);
    } else {
        pl_log_error(&s->log, "%s was killed %d times in a minute: it is not started again%s",
            c->name, (int)RESTARTS_MAX + 1, c < s->children + FIRST_WORKER ? ", the run ends" : "");
    }
    c->is_over = 1;
    c->code = 70;
}

static void reap(supervisor *s)
{
    int sig, code;

    for (int i = 0; i < s->n; i++) {
        child *c = &s->children[i];
        if (c->pid > 0 && has_ended(c, &sig, &code))
            on_end(s, c, sig, code);
    }
}

/* All of them have failed: the code of one.  Workers that were asked to leave have not failed; the
 * run waits for others then. */
static int workers_code(const supervisor *s)
{
    int code = 0;
    for (int i = FIRST_WORKER; i < s->n; i++) {
        if (s->children[i].pid > 0)
            return 0;
        code = s->children[i].code ? s->children[i].code : code;
    }
    return code;
}

/* Until they are over, at most seconds.  Returns how many are not. */
static int settle(supervisor *s, int first, int end, double seconds)
{
    const double t0 = run_seconds();
    int sig, code;

    for (;;) {
        int n = 0;
        for (int i = first; i < end; i++) {
            child *c = &s->children[i];
            if (c->pid > 0 && has_ended(c, &sig, &code)) {
                forget(c);
                c->is_over = 1;
                /* before it could listen; or adopted, and how it ended is not known */
                c->code = sig == SIGTERM || !c->is_ours ? 75 : sig ? 70 : code;
            }
            n += c->pid > 0;
        }
        if (n == 0 || run_seconds() - t0 > seconds)
            return n;
        poll(NULL, 0, 20);
    }
}

static void tell_all(const supervisor *s, int first, int end, int sig)
{
    for (int i = first; i < end; i++)
        tell(&s->children[i], sig);
}

static void stop(supervisor *s, int first, int end, double grace_s)
{
    tell_all(s, first, end, SIGTERM);
    if (settle(s, first, end, grace_s) > 0) {
        tell_all(s, first, end, SIGKILL);
        settle(s, first, end, grace_s);
    }
}

/* ---- the run ---- */

static void add(child *c, const char *arg)
{
    if (arg && c->n_args < ARGS_MAX - 1)
        c->argv[c->n_args++] = strdup(arg);
}

static child *add_child(supervisor *s, const char *name, const char *command)
{
    child *c = &s->children[s->n++];

    snprintf(c->name, sizeof c->name, "%s", name);
    c->fd = -1;
    sched_getaffinity(0, sizeof c->cpus, &c->cpus);
    add(c, "paceline");
    add(c, command);
    return c;
}

static void add_wire(const supervisor *s, child *c)
{
    const run_supervise_options *o = &s->config->wire;

    if (o->listen) {
        add(c, "--listen");
        add(c, o->listen);
    }
    if (o->keys) {
        add(c, "--keys");
        add(c, o->keys);
    }
}

/* Worker i of n gets its share of the cores: neighbours, all of them in use. */
static int share_cores(const cpu_set_t *all, int i, int n, cpu_set_t *out)
{
    const int total = CPU_COUNT(all);
    const int begin = n > total ? i % total : i * total / n;
    const int end = n > total ? begin + 1 : (i + 1) * total / n;
    int at = 0;

    CPU_ZERO(out);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, all) && at++ >= begin && at <= end)
            CPU_SET(cpu, out);
    return end - begin;
}

static void add_workers(supervisor *s)
{
    const int n = (int)s->config->rollout.num_workers;
    char name[32], threads[16];

    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "worker-%d", i);
        child *c = add_child(s, name, "worker");
        const cpu_set_t all = c->cpus;
        int n_threads = share_cores(&all, i, n, &c->cpus);
        if (s->config->trainer.threads > 0 && s->config->trainer.threads < n_threads)
            n_threads = (int)s->config->trainer.threads;
        snprintf(threads, sizeof threads, "%d", n_threads);
        add(c, "--connect");
        add(c, s->config->trainer.default_local_dir);
        add(c, "--name");
        add(c, name);
        add(c, "--threads");
        add(c, threads);
        add(c, "--isa");
        add(c, s->config->trainer.isa);
    }
}

static pl_status start_all(supervisor *s, pl_error *err)
{
    const char *dir = s->config->trainer.default_local_dir;

    s->children = calloc((size_t)s->config->rollout.num_workers + 2, sizeof *s->children);
    if (!s->children)
        return pl_fail(err, PL_E_NOMEM, "no memory to supervise");
    child *c = add_child(s, "coordinator", "coordinator");
    add(c, dir);
    add_wire(s, c);
    c = add_child(s, "trainer", "trainer");
    for (int i = 0; i < s->config->wire.n_trainer; i++)
        add(c, s->config->wire.trainer[i]);
    if (s->config->wire.n_trainer == 0) {
        add(c, "--connect");
        add(c, dir);
        add_wire(s, c);
    }
    add_workers(s);
    for (int i = 0; i < s->n; i++) {
        if (adopt(s, &s->children[i]))
            continue;
        const pl_status st = start(&s->children[i], err);
        if (st != PL_OK)
            return st;
    }
    return PL_OK;
}

/* The coordinator has left behind END, but the trainer goes on: it was killed there, and has begun
 * again.  All are needed once more. */
static void call_back(supervisor *s)
{
    pl_error err = {0};

    if (!s->children[COORDINATOR].is_over || s->children[COORDINATOR].code) {
        s->left_at = 0;
        return;
    }
    if (s->left_at == 0)
        s->left_at = run_seconds();
    if (run_seconds() - s->left_at < FAREWELL_S)
        return;
    for (int i = 0; i < s->n; i++)
        if (s->children[i].pid == 0 && s->children[i].code == 0 &&
            start(&s->children[i], &err) != PL_OK)
            pl_log_error(&s->log, "%s", err.msg); /* tried again */
}

/* Processes that a lost supervisor left go on with the configuration that they have. */
static pl_status check_orphans(const supervisor *s, pl_error *err)
{
    const pid_t trainer = run_locked_by(s->dir, "trainer.lock");

    if (trainer <= 0 || run_config_is_written(s->config))
        return PL_OK;
    return pl_fail(err, PL_E_CONFIG,
        "the processes of '%s' still run (trainer: %d), with another configuration than this one: "
        "take them over with the one in config.yaml, or stop them first (kill %d)",
        s->dir, (int)trainer, (int)trainer);
}

/* An address or keys that cannot work are said before anything is started.  A coordinator that was
 * left by a lost supervisor has the address already. */
static pl_status check_wire(const run_config *c, pl_error *err)
{
    const run_supervise_options *o = &c->wire;
    const pl_ipc_options io = {.keys = o->keys, .is_server = 1};
    pl_socket *probe = NULL;
    pl_ipc *ipc = NULL;

    if (!o->listen || run_is_locked(c->trainer.default_local_dir, "coordinator.lock"))
        return PL_OK;
    pl_status st = pl_ipc_new(&ipc, &io, NULL, err);
    if (st == PL_OK)
        st = pl_socket_bind(&probe, ipc, o->listen, err);
    pl_socket_close(probe);
    pl_ipc_free(ipc);
    return st == PL_OK ? st : pl_wrap(err, st, "--listen");
}

static void warn_of_cores(const supervisor *s)
{
    cpu_set_t all;
    const int n = (int)s->config->rollout.num_workers;

    sched_getaffinity(0, sizeof all, &all);
    if (n > 2 * CPU_COUNT(&all))
        pl_log_warn(&s->log,
            "rollout.num_workers is %d and there are %d cores: workers share them, which is slower "
            "than %d of them; continuing",
            n, CPU_COUNT(&all), CPU_COUNT(&all));
}

/* ---- what is left behind ---- */

static void remove_socket(const char *address)
{
    const char *path = address + strlen("ipc://");
    char dir[512];

    (void)unlink(path);
    snprintf(dir, sizeof dir, "%.*s", (int)(strrchr(path, '/') - path), path);
    if (strstr(dir, "/paceline-")) /* a short place for the sockets of a long path */
        (void)rmdir(dir);
}

/* Nobody is there any more, and nobody begins while RUN/lock is held: it alone stays.  Killed
 * processes leave their sockets, and a worker that finds an endpoint waits for it. */
static void tidy(const supervisor *s)
{
    char address[512], path[sizeof s->dir + 64], name[48];
    pl_error ignored = {0};

    for (int i = 0; i < s->n; i++) {
        lock_name(&s->children[i], name);
        if (run_is_locked(s->dir, name))
            return;
    }
    for (int i = 0; i < s->n; i++) {
        lock_name(&s->children[i], name);
        snprintf(path, sizeof path, "%s/%s", s->dir, name);
        (void)unlink(path);
    }
    snprintf(path, sizeof path, "%s/endpoint", s->dir);
    (void)unlink(path);
    if (run_weights_address(s->dir, NULL, address, sizeof address, &ignored) == PL_OK)
        remove_socket(address);
    if (run_coordinator_address(s->dir, address, sizeof address, &ignored) == PL_OK)
        remove_socket(address);
}

/* ---- from start to end ---- */

/* Until the trainer is done, something failed, or a signal came. */
static void watch(supervisor *s)
{
    while (!cli_stop && !s->failed) {
        reap(s);
        const child *coordinator = &s->children[COORDINATOR], *trainer = &s->children[TRAINER];
        if (trainer->is_over) {
            s->failed = trainer->code;
            return;
        }
        if (coordinator->is_over && coordinator->code) { /* 0: complete, the trainer ends it */
            pl_log_error(
                &s->log, "the coordinator has ended (exit %d): the run ends", coordinator->code);
            s->failed = coordinator->code;
        }
        call_back(s);
        if (workers_code(s) && !s->config->wire.listen) {
            pl_log_error(&s->log, "no worker is left: the run ends");
            s->failed = workers_code(s);
        }
        poll(NULL, 0, POLL_MS);
    }
}

static int finish(supervisor *s)
{
    const int is_done = s->children && s->children[TRAINER].is_over && !s->failed;

    if (!s->children)
        return 70;
    if (is_done) /* the coordinator sends them home; who did not hear it is told here */
        settle(s, COORDINATOR, COORDINATOR + 1, FAREWELL_S);
    if (is_done || s->failed)
        stop(s, COORDINATOR, s->n, GRACE_S);
    else {
        stop(s, TRAINER, TRAINER + 1, 3600); /* it finishes a step that it has begun to update */
        s->failed = s->children[TRAINER].code;
        stop(s, COORDINATOR, s->n, GRACE_S);
    }
    tidy(s);
    for (int i = 0; i < s->n; i++) {
        forget(&s->children[i]);
        for (int k = 0; k < s->children[i].n_args; k++)
            free(s->children[i].argv[k]);
    }
    free(s->children);
    return s->failed;
}

int run_supervise(const run_config *c)
{
    supervisor s = {.config = c, .log = {PL_LOG_INFO, STDERR_FILENO, isatty(STDERR_FILENO)}};
    pl_error err = {0};
    int lock_fd = -1;

    pl_status st = check_wire(c, &err);
    if (st == PL_OK)
        st = run_lock_directory(c->trainer.default_local_dir, &lock_fd, &err);
    if (st == PL_OK)
        st = run_absolute(c->trainer.default_local_dir, s.dir, sizeof s.dir, &err);
    if (st == PL_OK)
        st = check_orphans(&s, &err);
    if (st == PL_OK)
        st = run_config_write(c, &err);
    if (st == PL_OK) {
        warn_of_cores(&s);
        st = start_all(&s, &err);
    }
    if (st == PL_OK)
        watch(&s);
    else
        s.failed = cli_report(&err);
    const int code = finish(&s);
    if (lock_fd >= 0)
        close(lock_fd);
    return st == PL_OK ? code : s.failed;
}
