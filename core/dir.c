/* core/dir.c - directory trees: made, removed, made durable and moved into place.  Walks go by
 * openat and never through a symbolic link. */
#define _GNU_SOURCE
#include "core/file.h"
#include "core/internal.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A level of a walk holds one descriptor; ours are three deep. */
enum { MAX_DEPTH = 64 };

static pl_status make_one(const char *path, pl_error *err)
{
    struct stat info;

    if (mkdir(path, 0777) == 0) /* and the umask, which is 022 for mode 0755 */
        return PL_OK;
    const int code = errno;
    if (stat(path, &info) == 0) /* EEXIST, but also EROFS or EACCES above what is there */
        return S_ISDIR(info.st_mode) ? PL_OK : core_fail_errno(err, ENOTDIR, "create", path);
    return core_fail_errno(err, code, "create directory", path);
}

pl_status pl_dir_make(const char *path, pl_error *err)
{
    char part[PATH_MAX];
    const size_t len = strlen(path);

    if (len == 0)
        return pl_fail(err, PL_E_INVAL, "create directory '': the name is empty");
    if (len >= sizeof part)
        return core_fail_errno(err, ENAMETOOLONG, "create directory", path);
    memcpy(part, path, len + 1);
    for (size_t i = 1; i < len; i++) {
        if (part[i] != '/' || part[i - 1] == '/')
            continue;
        part[i] = '\0';
        const pl_status st = make_one(part, err);
        if (st != PL_OK)
            return st;
        part[i] = '/';
    }
    return make_one(part, err);
}

/* What a walk does with each entry, with a directory after all that it holds.  fd is open for
 * directories, -1 for the others.  Returns 0, or -1 with errno. */
typedef int (*visit_fn)(int parent, const char *name, mode_t mode, int fd);

typedef struct walk {
    visit_fn visit;
    int repeat;               /* read a directory again until it stays empty */
    int code;                 /* errno of the first failure */
    char where[NAME_MAX + 1]; /* name of the entry that failed */
} walk;

static int stop(walk *w, int code, const char *name)
{
    w->code = code;
    if (snprintf(w->where, sizeof w->where, "%s", name) < 0)
        w->where[0] = '\0';
    return -1;
}

static int walk_dir(walk *w, int parent, const char *name, int depth);

static int walk_entry(walk *w, int parent, const char *name, int depth)
{
    struct stat info;

    if (fstatat(parent, name, &info, AT_SYMLINK_NOFOLLOW) != 0)
        return errno == ENOENT ? 0 : stop(w, errno, name);
    if (S_ISDIR(info.st_mode))
        return walk_dir(w, parent, name, depth);
    if (w->visit(parent, name, info.st_mode, -1) != 0 && errno != ENOENT)
        return stop(w, errno, name);
    return 0;
}

/* One pass over an open directory.  Returns the number of entries, -1 on failure. */
static int walk_pass(walk *w, DIR *dir, const char *name, int depth)
{
    int n = 0;

    rewinddir(dir);
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        if (!entry)
            return errno == 0 ? n : stop(w, errno, name);
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (walk_entry(w, dirfd(dir), entry->d_name, depth + 1) != 0)
            return -1;
        n++;
    }
}

static int walk_dir(walk *w, int parent, const char *name, int depth)
{
    int n;

    if (depth > MAX_DEPTH)
        return stop(w, ELOOP, name);
    const int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return stop(w, errno, name);
    DIR *dir = fdopendir(fd);
    if (!dir) {
        const int code = errno;
        (void)close(fd);
        return stop(w, code, name);
    }
    do /* removing while reading may hide entries from some file systems */
        n = walk_pass(w, dir, name, depth);
    while (n > 0 && w->repeat);
    int rc = n < 0 ? -1 : 0;
    if (rc == 0 && w->visit(parent, name, S_IFDIR, fd) != 0)
        rc = stop(w, errno, name);
    (void)closedir(dir);
    return rc;
}

static int remove_entry(int parent, const char *name, mode_t mode, int fd)
{
    (void)fd;
    return unlinkat(parent, name, S_ISDIR(mode) ? AT_REMOVEDIR : 0);
}

pl_status pl_dir_remove(const char *path, pl_error *err)
{
    char bare[PATH_MAX]; /* without slashes at the end: "link/" would be what the link points to */
    struct stat info;
    walk w = {.visit = remove_entry, .repeat = 1};

    size_t len = strlen(path);
    if (len >= sizeof bare)
        return core_fail_errno(err, ENAMETOOLONG, "remove", path);
    while (len > 1 && path[len - 1] == '/')
        len--;
    memcpy(bare, path, len);
    bare[len] = '\0';

    if (lstat(bare, &info) != 0)
        return errno == ENOENT ? PL_OK : core_fail_errno(err, errno, "remove", path);
    if (!S_ISDIR(info.st_mode))
        return pl_fail(err, PL_E_IO, "remove '%s': is not a directory; remove it by hand", path);
    if (walk_dir(&w, AT_FDCWD, bare, 0) == 0)
        return PL_OK;
    return pl_fail(err, PL_E_IO, "remove '%s': %s: %s", path, w.where, strerror(w.code));
}

static int sync_retry(int fd)
{
    int rc;
    do
        rc = fsync(fd);
    while (rc != 0 && errno == EINTR);
    return rc;
}

/* fsync what holds bytes, regular files and directories; not links, not pipes. */
static int sync_entry(int parent, const char *name, mode_t mode, int fd)
{
    if (S_ISDIR(mode))
        return sync_retry(fd) == 0 || errno == EINVAL ? 0 : -1;
    if (!S_ISREG(mode))
        return 0;
    const int file = openat(parent, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (file < 0)
        return -1;
    const int rc = sync_retry(file);
    const int code = errno;
    (void)close(file);
    errno = code;
    return rc;
}

/* rename(2) would replace an empty directory without a word. */
static int rename_new(const char *from, const char *to)
{
    struct stat info;

    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0)
        return 0;
    if (errno != EINVAL && errno != ENOSYS)
        return -1;
    if (lstat(to, &info) == 0) { /* a file system without that flag */
        errno = EEXIST;
        return -1;
    }
    return rename(from, to);
}

pl_status pl_dir_commit(const char *from, const char *to, pl_error *err)
{
    walk w = {.visit = sync_entry};

    if (walk_dir(&w, AT_FDCWD, from, 0) != 0) {
        if (w.code == ENOENT)
            return core_fail_errno(err, ENOENT, "commit", from);
        return pl_fail(err, PL_E_IO, "commit '%s': %s: %s", from, w.where,
            w.code == ENOSPC ? "disk full; free space there" : strerror(w.code));
    }
    if (rename_new(from, to) != 0) {
        if (errno == EEXIST || errno == ENOTEMPTY)
            return pl_fail(
                err, PL_E_IO, "rename '%s' to '%s': the latter is there already", from, to);
        return core_fail_errno(err, errno, "rename into place", to);
    }
    return core_sync_parent(to, err);
}

int pl_dir_is_free(const char *path)
{
    DIR *d = opendir(path);
    int is_free = 1;

    if (!d)
        return errno == ENOENT;
    for (const struct dirent *e = readdir(d); e && is_free; e = readdir(d))
        is_free = strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0;
    closedir(d);
    return is_free;
}
