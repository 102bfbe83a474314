/* monitor/web_token.c - the token of a page that others than this machine can reach. */
#define _GNU_SOURCE
#include "monitor/web_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ENTROPY = PL_WEB_TOKEN / 2 };

int web_token_is(const pl_web *w, const char *text, size_t n)
{
    unsigned differs = n != PL_WEB_TOKEN;

    for (size_t i = 0; i < PL_WEB_TOKEN; i++)
        differs |= (unsigned)((unsigned char)w->token[i] ^ (unsigned char)(i < n ? text[i] : 0));
    return differs == 0;
}

static pl_status make(char token[PL_WEB_TOKEN + 1], pl_error *err)
{
    unsigned char bytes[ENTROPY];

    if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes)
        return pl_fail(err, PL_E_IO, "monitor token: getrandom: %s", strerror(errno));
    for (int i = 0; i < ENTROPY; i++)
        snprintf(token + 2 * i, 3, "%02x", bytes[i]);
    return PL_OK;
}

/* PL_E_NOENT: no file.  One that others may read, or that holds no token, is refused. */
static pl_status read_token(pl_web *w, pl_error *err)
{
    char text[PL_WEB_TOKEN + 2] = {0};
    struct stat s;
    const int fd = open(w->token_path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);

    if (fd < 0)
        return errno == ENOENT ? PL_E_NOENT
                               : pl_fail(err, PL_E_IO, "monitor token '%s': %s", w->token_path,
                                     errno == ELOOP ? "a symbolic link; name the file itself"
                                                    : strerror(errno));
    const int is_ours =
        fstat(fd, &s) == 0 && S_ISREG(s.st_mode) && s.st_uid == geteuid() && (s.st_mode & 077) == 0;
    const ssize_t n = is_ours ? read(fd, text, sizeof text) : 0;
    close(fd);
    if (!is_ours)
        return pl_fail(err, PL_E_IO,
            "monitor token '%s': others may read it, or it is not ours: remove it, or chmod 600",
            w->token_path);
    if (n < PL_WEB_TOKEN || strspn(text, "0123456789abcdef") != PL_WEB_TOKEN ||
        (n > PL_WEB_TOKEN && text[PL_WEB_TOKEN] != '\n'))
        return pl_fail(err, PL_E_FORMAT,
            "monitor token '%s': not %d hexadecimal digits; remove the file for a new token",
            w->token_path, (int)PL_WEB_TOKEN);
    memcpy(w->token, text, PL_WEB_TOKEN);
    w->token[PL_WEB_TOKEN] = 0;
    return PL_OK;
}

/* Whole or not at all, and never over one that is there. */
static int write_token(const pl_web *w)
{
    char path[sizeof w->token_path + 32];

    snprintf(path, sizeof path, "%s.tmp.%d", w->token_path, (int)getpid());
    const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -1;
    int bad = dprintf(fd, "%s\n", w->token) != PL_WEB_TOKEN + 1 || fsync(fd) != 0;
    bad |= close(fd) != 0;
    bad = bad || link(path, w->token_path) != 0;
    const int code = errno;
    unlink(path);
    errno = code;
    return bad ? -1 : 0;
}

static pl_status take(pl_web *w, pl_error *err)
{
    pl_status st = read_token(w, err);

    if (st != PL_E_NOENT)
        return st;
    st = make(w->token, err);
    if (st != PL_OK || write_token(w) == 0)
        return st;
    return errno == EEXIST ? read_token(w, err)
                           : pl_fail(err, PL_E_IO,
                                 "monitor token '%s': %s: name a place with "
                                 "--token-file",
                                 w->token_path, strerror(errno));
}

pl_status web_token_open(pl_web *w, const pl_web_options *o, pl_error *err)
{
    int n = 0;

    if (o->token_file)
        n = snprintf(w->token_path, sizeof w->token_path, "%s", o->token_file);
    else if (access(w->run_dir, W_OK) == 0 || !o->runtime_dir)
        n = snprintf(w->token_path, sizeof w->token_path, "%s/monitor.token", w->run_dir);
    else
        n = snprintf(
            w->token_path, sizeof w->token_path, "%s/paceline-monitor.token", o->runtime_dir);
    if (n >= (int)sizeof w->token_path)
        return pl_fail(err, PL_E_INVAL, "monitor token: a path of more than 4095 bytes");
    return take(w, err);
}
