/* tests/faults/shim.c - a disk that fails on demand: preloaded into the processes of a run, it
 * fails the k-th call of one of them that changes what is stored under a directory.
 *
 *   FAULT_DIR     only paths that begin so count; without it nothing happens
 *   FAULT_LOG     each call that counts is appended there: "role k call path"
 *   FAULT_ROLE    first argument of the process that is hit: coordinator, trainer, worker, run
 *   FAULT_AT      the number of the call that is hit, from 1, counted by process
 *   FAULT_STICKY  1: every later call, too
 *   FAULT_WITH    ENOSPC, EIO, EROFS, EMFILE, EINTR, or short: half of a write is done
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

enum { SHORT = -1 };

static atomic_int n_calls;

static int number(const char *name)
{
    static const struct {
        const char *name;
        int code;
    } all[] = {{"ENOSPC", ENOSPC}, {"EIO", EIO}, {"EROFS", EROFS}, {"EMFILE", EMFILE},
        {"EINTR", EINTR}, {"short", SHORT}};

    for (size_t i = 0; name && i < sizeof all / sizeof all[0]; i++)
        if (strcmp(name, all[i].name) == 0)
            return all[i].code;
    return 0;
}

static const char *role(void)
{
    static char text[256];
    static const char *found;

    if (found)
        return found;
    const int fd = (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    const long n = fd < 0 ? 0 : syscall(SYS_read, fd, text, sizeof text - 2);
    if (fd >= 0)
        syscall(SYS_close, fd);
    const size_t first = n > 0 ? strlen(text) + 1 : 0;
    return found = text + (first < sizeof text ? first : 0);
}

static void record(int k, const char *call, const char *path)
{
    char line[4600];
    const char *log = getenv("FAULT_LOG");

    if (!log)
        return;
    const int fd =
        (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    const int n = snprintf(line, sizeof line, "%s %d %s %s\n", role(), k, call, path);
    if (fd >= 0 && n > 0)
        syscall(SYS_write, fd, line, (size_t)n);
    if (fd >= 0)
        syscall(SYS_close, fd);
}

/* 0: let the call happen.  Otherwise an errno, or SHORT. */
static int strike(const char *call, const char *path)
{
    const char *dir = getenv("FAULT_DIR"), *who = getenv("FAULT_ROLE"), *at = getenv("FAULT_AT");
    const char *sticky = getenv("FAULT_STICKY");

    if (!dir || strncmp(path, dir, strlen(dir)) != 0)
        return 0;
    const int k = atomic_fetch_add(&n_calls, 1) + 1;
    record(k, call, path);
    if (!who || !at || strcmp(role(), who) != 0)
        return 0;
    return k == atoi(at) || (sticky && k > atoi(at)) ? number(getenv("FAULT_WITH")) : 0;
}

static int strike_fd(const char *call, int fd)
{
    char link[64], path[4096];

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const long n = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (n <= 0 || path[0] != '/')
        return 0;
    path[n] = '\0';
    return strike(call, path);
}

static int strike_at(const char *call, int dirfd, const char *name)
{
    char link[64], path[8192];

    if (dirfd == AT_FDCWD || name[0] == '/')
        return strike(call, name);
    snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
    const long n = syscall(SYS_readlinkat, AT_FDCWD, link, path, 4095);
    if (n <= 0)
        return 0;
    snprintf(path + n, sizeof path - (size_t)n, "/%s", name);
    return strike(call, path);
}

#define FAIL_IF(code)                                                                              \
    do {                                                                                           \
        const int struck = (code);                                                                 \
        if (struck > 0) {                                                                          \
            errno = struck;                                                                        \
            return -1;                                                                             \
        }                                                                                          \
    } while (0)

static int open_at(int dirfd, const char *path, int flags, mode_t mode)
{
    if (flags & O_CREAT)
        FAIL_IF(strike_at("open", dirfd, path));
    return (int)syscall(SYS_openat, dirfd, path, flags, mode);
}

static mode_t mode_of(int flags, va_list *args)
{
    return flags & (O_CREAT | __O_TMPFILE) ? va_arg(*args, mode_t) : 0;
}

#define OPEN(name)                                                                                 \
    int name(const char *path, int flags, ...);                                                    \
    int name(const char *path, int flags, ...)                                                     \
    {                                                                                              \
        va_list args;                                                                              \
        va_start(args, flags);                                                                     \
        const mode_t mode = mode_of(flags, &args);                                                 \
        va_end(args);                                                                              \
        return open_at(AT_FDCWD, path, flags, mode);                                               \
    }
#define OPENAT(name)                                                                               \
    int name(int dirfd, const char *path, int flags, ...);                                         \
    int name(int dirfd, const char *path, int flags, ...)                                          \
    {                                                                                              \
        va_list args;                                                                              \
        va_start(args, flags);                                                                     \
        const mode_t mode = mode_of(flags, &args);                                                 \
        va_end(args);                                                                              \
        return open_at(dirfd, path, flags, mode);                                                  \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t n)
{
    const int code = strike_fd("write", fd);
    FAIL_IF(code);
    return syscall(SYS_write, fd, data, code == SHORT && n > 1 ? n / 2 : n);
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t at)
{
    const int code = strike_fd("pwrite", fd);
    FAIL_IF(code);
    return syscall(SYS_pwrite64, fd, data, code == SHORT && n > 1 ? n / 2 : n, at);
}

int fsync(int fd)
{
    FAIL_IF(strike_fd("fsync", fd));
    return (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd)
{
    FAIL_IF(strike_fd("fdatasync", fd));
    return (int)syscall(SYS_fdatasync, fd);
}

int ftruncate(int fd, off_t n)
{
    FAIL_IF(strike_fd("ftruncate", fd));
    return (int)syscall(SYS_ftruncate, fd, n);
}

int rename(const char *from, const char *to)
{
    FAIL_IF(strike("rename", to));
    return (int)syscall(SYS_rename, from, to);
}

int renameat2(int fd_from, const char *from, int fd_to, const char *to, unsigned flags)
{
    FAIL_IF(strike_at("rename", fd_to, to));
    return (int)syscall(SYS_renameat2, fd_from, from, fd_to, to, flags);
}

int mkdir(const char *path, mode_t mode)
{
    FAIL_IF(strike("mkdir", path));
    return (int)syscall(SYS_mkdir, path, mode);
}

int unlink(const char *path)
{
    FAIL_IF(strike("unlink", path));
    return (int)syscall(SYS_unlink, path);
}

int unlinkat(int dirfd, const char *name, int flags)
{
    FAIL_IF(strike_at("unlink", dirfd, name));
    return (int)syscall(SYS_unlinkat, dirfd, name, flags);
}

int bind(int fd, const struct sockaddr *address, socklen_t n)
{
    const struct sockaddr_un *local = (const struct sockaddr_un *)(const void *)address;
    if (n > sizeof local->sun_family && address->sa_family == AF_UNIX)
        FAIL_IF(strike("bind", local->sun_path));
    return (int)syscall(SYS_bind, fd, address, n);
}
