/* trainer/reward_child.c - the process of a reward command: start with limits, pipes, end.
 *
 * This program has threads that are pinned and memory of gigabytes, therefore vfork: nothing is
 * copied, and between it and exec there are system calls only.  All signals are blocked meanwhile,
 * because a handler that ran in the child would write into our memory. */
#define _GNU_SOURCE
#include "trainer/reward_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { FILES_MAX = 256 }; /* RLIMIT_NOFILE of the child */

extern char **environ;

int64_t reward_now_ms(void)
{
    struct timespec t = {0, 0};

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- start ---- */

/* What the child needs, worked out before it is made. */
typedef struct plan {
    int ours[3], theirs[3]; /* ends of stdin, stdout, stderr */
    pid_t parent;
    struct rlimit memory, files, core;
    int has_memory;
    const char *argv[4];
} plan;

static void close_fd(int *fd)
{
    if (*fd >= 0)
        (void)close(*fd);
    *fd = -1;
}

static void close_ends(int fds[3])
{
    for (int i = 0; i < 3; i++)
        close_fd(&fds[i]);
}

/* An end that is 0, 1 or 2 (someone closed them) would be overwritten by dup2 in the child. */
static pl_status lift(int *fd, pl_error *err)
{
    if (*fd > 2)
        return PL_OK;
    const int high = fcntl(*fd, F_DUPFD_CLOEXEC, 3);
    if (high < 0)
        return pl_fail(err, PL_E_IO, "no file descriptor for a pipe: %s", strerror(errno));
    (void)close(*fd);
    *fd = high;
    return PL_OK;
}

static pl_status make_pipes(plan *p, pl_error *err)
{
    pl_status st = PL_OK;

    for (int i = 0; i < 3 && st == PL_OK; i++) {
        int ends[2];
        if (pipe2(ends, O_CLOEXEC) != 0)
            return pl_fail(err, PL_E_IO, "no pipe: %s", strerror(errno));
        p->ours[i] = ends[i == 0];
        p->theirs[i] = ends[i != 0];
        st = lift(&p->ours[i], err);
        if (st == PL_OK)
            st = lift(&p->theirs[i], err);
        if (st == PL_OK && fcntl(p->ours[i], F_SETFL, O_NONBLOCK) != 0)
            st = pl_fail(err, PL_E_IO, "a pipe cannot be non-blocking: %s", strerror(errno));
    }
    return st;
}

static void say(const char *text)
{
    if (write(STDERR_FILENO, text, strlen(text)) < 0)
        return;
}

/* In the child, in the parent's memory: system calls only. */
__attribute__((noinline, noreturn)) static void become(const plan *p)
{
    struct sigaction plain = {.sa_handler = SIG_DFL};
    sigset_t none;
    cpu_set_t all;

    (void)setpgid(0, 0);
    for (int i = 0; i < 3; i++)
        if (dup2(p->theirs[i], i) < 0)
            _exit(127);
    (void)syscall(SYS_close_range, 3u, UINT_MAX, 0u); /* an old kernel: they are O_CLOEXEC */
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != p->parent)
        _exit(127);                 /* it died before that */
    memset(&all, 0xff, sizeof all); /* the threads here are pinned; the kernel takes what may be */
    (void)sched_setaffinity(0, sizeof all, &all);
    if (setrlimit(RLIMIT_CORE, &p->core) != 0 || setrlimit(RLIMIT_NOFILE, &p->files) != 0 ||
        (p->has_memory && setrlimit(RLIMIT_AS, &p->memory) != 0)) {
        say("paceline: the limits of the reward command cannot be set\n");
        _exit(127);
    }
    for (int s = 1; s < NSIG; s++)
        (void)sigaction(s, &plain, NULL);
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)execve(p->argv[0], (char *const *)p->argv, environ);
    say("paceline: /bin/sh cannot be run\n");
    _exit(127);
}

/* A limit that is lower already stays. */
static struct rlimit limit_of(int resource, rlim_t most)
{
    struct rlimit l = {most, most};
    struct rlimit now;

    if (getrlimit((__rlimit_resource_t)resource, &now) == 0 && now.rlim_max < most)
        l.rlim_cur = l.rlim_max = now.rlim_max;
    return l;
}

static pid_t spawn(const plan *p)
{
    sigset_t all, before;

    (void)sigfillset(&all);
    if (pthread_sigmask(SIG_SETMASK, &all, &before) != 0)
        return -1;
    const pid_t pid = vfork(); /* NOLINT: its child is become() above, see the top */
    if (pid == 0)
        become(p);
    const int saved = errno;
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = saved;
    return pid;
}

pl_status reward_child_start(reward_child *c, const char *command, int64_t memory_mb, pl_error *err)
{
    plan p = {
        .ours = {-1, -1, -1},
        .theirs = {-1, -1, -1},
        .parent = getpid(),
        .memory = limit_of(RLIMIT_AS, (rlim_t)memory_mb << 20),
        .files = limit_of(RLIMIT_NOFILE, FILES_MAX),
        .has_memory = memory_mb > 0,
        .argv = {"/bin/sh", "-c", command, NULL},
    };

    pl_status st = make_pipes(&p, err);
    const pid_t pid = st == PL_OK ? spawn(&p) : -1;
    if (st == PL_OK && pid < 0)
        st = pl_fail(err, PL_E_IO, "no process: %s", strerror(errno));
    close_ends(p.theirs);
    if (st != PL_OK) {
        close_ends(p.ours);
        return pl_wrap(err, st, "reward.command '%.120s' cannot be started", command);
    }
    *c = (reward_child){pid, p.ours[0], p.ours[1], p.ours[2]};
    return PL_OK;
}

/* ---- end ---- */

int reward_child_has_ended(const reward_child *c)
{
    siginfo_t info = {0};

    if (c->pid == 0)
        return 0;
    if (waitid(P_PID, (id_t)c->pid, &info, WEXITED | WNOHANG | WNOWAIT) != 0)
        return errno == ECHILD;
    return info.si_pid == c->pid;
}

void reward_child_kill(const reward_child *c)
{
    if (c->pid > 0)
        (void)kill(-c->pid, SIGKILL);
}

static void reap(pid_t pid, reward_end *end)
{
    int status = 0;
    pid_t got;

    do
        got = waitpid(pid, &status, 0);
    while (got < 0 && errno == EINTR);
    memset(end, 0, sizeof *end);
    end->is_known = got == pid;
    end->is_signal = WIFSIGNALED(status);
    end->code = end->is_signal ? WTERMSIG(status) : WEXITSTATUS(status);
    /* A shell reports its command's signal as 128 and more. */
    const int sig = end->is_signal ? end->code : end->code - 128;
    end->is_from_outside =
        !end->is_known || sig == SIGKILL || sig == SIGTERM || sig == SIGINT || sig == SIGHUP;
}

void reward_child_stop(reward_child *c, reward_end *end)
{
    reward_end unused;

    if (c->pid == 0)
        return;
    reward_child_kill(c); /* before it is reaped: until then nobody else can have its number */
    close_fd(&c->in);
    close_fd(&c->out);
    close_fd(&c->error);
    reap(c->pid, end ? end : &unused);
    c->pid = 0;
}

void reward_end_text(char *out, size_t size, const reward_end *end)
{
    if (!end->is_known)
        (void)snprintf(out, size, "ended with a status that is not known");
    else if (end->is_signal)
        (void)snprintf(out, size, "was killed by signal %d (%s)", end->code,
            sigabbrev_np(end->code) ? sigabbrev_np(end->code) : "?");
    else
        (void)snprintf(out, size, "exited with status %d", end->code);
}

/* ---- pipes ---- */

void reward_child_close_in(reward_child *c)
{
    close_fd(&c->in);
}

void reward_child_close_error(reward_child *c)
{
    close_fd(&c->error);
}

ssize_t reward_child_write(const reward_child *c, const char *data, size_t n_bytes)
{
    const struct timespec now = {0, 0};
    sigset_t pipe_only, before;
    ssize_t n;

    (void)sigemptyset(&pipe_only);
    (void)sigaddset(&pipe_only, SIGPIPE);
    if (pthread_sigmask(SIG_BLOCK, &pipe_only, &before) != 0)
        return 0;
    do
        n = write(c->in, data, n_bytes);
    while (n < 0 && errno == EINTR);
    const int is_closed = n < 0 && errno != EAGAIN;
    /* The signal is this thread's own.  Take it, unless the caller held one back himself. */
    if (is_closed && errno == EPIPE && !sigismember(&before, SIGPIPE))
        while (sigtimedwait(&pipe_only, NULL, &now) < 0 && errno == EINTR)
            continue;
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    return is_closed ? -1 : n < 0 ? 0 : n;
}

ssize_t reward_child_read(int fd, char *data, size_t n_bytes)
{
    ssize_t n;

    do
        n = read(fd, data, n_bytes);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return errno == EAGAIN ? -1 : 0;
    return n;
}
