/* ipc/keys.c - CURVE keys in files: made by paceline keygen, read with suspicion.  A secret is
 * never logged and is wiped from memory after use. */
#include "core/file.h"
#include "ipc/socket_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { KEY_PATH_BYTES = 4096 };

static pl_status check_file(int fd, const char *path, int is_secret, pl_error *err)
{
    struct stat s;

    if (fstat(fd, &s) != 0)
        return pl_fail(err, PL_E_IO, "key '%s': %s", path, strerror(errno));
    if (!S_ISREG(s.st_mode))
        return pl_fail(err, PL_E_FORMAT, "key '%s': not a file", path);
    if (s.st_uid != geteuid() && s.st_uid != 0)
        return pl_fail(err, PL_E_CONFIG,
            "key '%s': belongs to user %u: it must be yours or root's (chown)", path,
            (unsigned)s.st_uid);
    if (is_secret && (s.st_mode & 077) != 0)
        return pl_fail(err, PL_E_CONFIG,
            "key '%s': mode %04o lets others at a secret: chmod 600 it, and make new keys if "
            "others may have read it",
            path, (unsigned)(s.st_mode & 07777));
    if ((s.st_mode & 022) != 0)
        return pl_fail(err, PL_E_CONFIG, "key '%s': mode %04o lets others change it: chmod go-w it",
            path, (unsigned)(s.st_mode & 07777));
    return PL_OK;
}

static pl_status parse_key(const char *path, char *text, ssize_t n, pl_error *err)
{
    unsigned char raw[crypto_box_PUBLICKEYBYTES];

    if (n == KEY_CHARS + 1 && text[KEY_CHARS] == '\n')
        n = KEY_CHARS;
    text[n] = 0;
    const int is_key = n == KEY_CHARS && strlen(text) == KEY_CHARS && zmq_z85_decode(raw, text);
    sodium_memzero(raw, sizeof raw);
    if (!is_key)
        return pl_fail(err, PL_E_FORMAT,
            "key '%s': wants one line of %d Z85 characters, as paceline keygen writes", path,
            KEY_CHARS);
    return PL_OK;
}

pl_status keys_read(
    const char *dir, const char *name, int is_secret, char out[KEY_TEXT], pl_error *err)
{
    char path[KEY_PATH_BYTES], text[64];
    ssize_t n;

    if (snprintf(path, sizeof path, "%s/%s", dir, name) >= (int)sizeof path)
        return pl_fail(err, PL_E_CONFIG, "key directory '%.100s...': the path is too long", dir);
    /* Not blocked by a fifo of that name. */
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
        return pl_fail(
            err, PL_E_NOENT, "key '%s' is not there: make it with paceline keygen DIR", path);
    if (fd < 0)
        return pl_fail(err, PL_E_IO, "key '%s': %s", path, strerror(errno));
    pl_status st = check_file(fd, path, is_secret, err);
    if (st == PL_OK) {
        do
            n = read(fd, text, sizeof text - 1);
        while (n < 0 && errno == EINTR);
        st = n < 0 ? pl_fail(err, PL_E_IO, "key '%s': %s", path, strerror(errno))
                   : parse_key(path, text, n, err);
    }
    close(fd);
    if (st == PL_OK)
        memcpy(out, text, KEY_TEXT);
    sodium_memzero(text, sizeof text);
    return st;
}

/* ---- making them ---- */

typedef struct key_file {
    const char *name;
    const char *text; /* [KEY_CHARS] */
    mode_t mode;
} key_file;

static pl_status write_all(int fd, const char *text, size_t n)
{
    while (n > 0) {
        const ssize_t w = write(fd, text, n);
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0)
            return PL_E_IO;
        text += w;
        n -= (size_t)w;
    }
    return PL_OK;
}

static pl_status write_key(int dir, const char *where, const key_file *k, pl_error *err)
{
    const int fd = openat(dir, k->name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0)
        return pl_fail(err, PL_E_IO, "key '%s/%s': %s", where, k->name, strerror(errno));
    /* fchmod: the mode is what is meant, whatever the umask. */
    int ok = write_all(fd, k->text, KEY_CHARS) == PL_OK && write_all(fd, "\n", 1) == PL_OK &&
             fchmod(fd, k->mode) == 0 && fsync(fd) == 0;
    const int cause = errno;
    if (close(fd) != 0)
        ok = 0;
    if (ok)
        return PL_OK;
    unlinkat(dir, k->name, 0);
    return pl_fail(err, PL_E_IO, "key '%s/%s': %s: free the disk or choose another directory",
        where, k->name, strerror(cause));
}

/* Either all files are there and durable, or none. */
static pl_status write_keys(int dir, const char *where, const key_file *files, int n, pl_error *err)
{
    int i = 0;
    pl_status st = PL_OK;

    if (mkdirat(dir, "clients", 0700) != 0)
        return pl_fail(err, PL_E_IO, "key directory '%s/clients': %s", where, strerror(errno));
    while (i < n && st == PL_OK) {
        st = write_key(dir, where, &files[i], err);
        i += st == PL_OK;
    }
    if (st == PL_OK && fsync(dir) != 0)
        st = pl_fail(err, PL_E_IO, "key directory '%s': %s", where, strerror(errno));
    if (st == PL_OK)
        return PL_OK;
    while (i > 0)
        unlinkat(dir, files[--i].name, 0);
    unlinkat(dir, "clients", AT_REMOVEDIR);
    return st;
}

/* A directory of our own: new, or empty and made private. */
static pl_status open_dir(const char *dir, int *fd, pl_error *err)
{
    char parent[KEY_PATH_BYTES], there[KEY_PATH_BYTES];

    if (!dir || dir[0] == 0 || strlen(dir) + 32 > sizeof parent)
        return pl_fail(err, PL_E_CONFIG, "paceline keygen wants the name of a directory");
    snprintf(there, sizeof there, "%s/server.key_secret", dir);
    if (pl_path_exists(there))
        return pl_fail(err, PL_E_CONFIG,
            "'%s' holds keys already: choose another directory, or remove it if no run uses them",
            dir);
    if (!pl_dir_is_free(dir))
        return pl_fail(err, PL_E_CONFIG,
            "'%s' is not an empty directory: choose a new one, it is made private to you", dir);
    snprintf(parent, sizeof parent, "%s", dir);
    char *slash = strrchr(parent, '/');
    while (slash && slash > parent && slash[1] == 0) { /* trailing ones */
        *slash = 0;
        slash = strrchr(parent, '/');
    }
    if (slash && slash > parent) {
        *slash = 0;
        const pl_status st = pl_dir_make(parent, err);
        if (st != PL_OK)
            return st;
    }
    if (mkdir(dir, 0700) != 0 && errno != EEXIST)
        return pl_fail(err, PL_E_IO, "key directory '%s': %s", dir, strerror(errno));
    *fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*fd >= 0 && fchmod(*fd, 0700) == 0)
        return PL_OK;
    const int cause = errno;
    if (*fd >= 0)
        close(*fd);
    return pl_fail(err, PL_E_IO, "key directory '%s': %s", dir, strerror(cause));
}

pl_status pl_keys_make(const char *dir, pl_error *err)
{
    char pair[4][KEY_TEXT]; /* server public, secret, client public, secret */
    int fd;
    pl_status st = open_dir(dir, &fd, err);

    if (st != PL_OK)
        return st;
    if (zmq_curve_keypair(pair[0], pair[1]) != 0 || zmq_curve_keypair(pair[2], pair[3]) != 0) {
        st = pl_fail(err, PL_E_CONFIG, "keys cannot be made: libzmq was built without CURVE");
    } else {
        const key_file files[] = {
            {"server.key", pair[0], 0644}, {"client.key_secret", pair[3], 0600},
            {"client.key", pair[2], 0644}, {"clients/client.key", pair[2], 0644},
            {"server.key_secret", pair[1], 0600}, /* last: what says that keys are here */
        };
        st = write_keys(fd, dir, files, sizeof files / sizeof files[0], err);
    }
    close(fd);
    sodium_memzero(pair, sizeof pair);
    return st;
}
