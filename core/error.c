/* core/error.c - messages that read outside-in, cut off at the size of pl_error.msg. */
#include "core/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Copy text into err->msg; a text that does not fit ends in "...". */
static void store(pl_error *err, const char *text)
{
    const size_t room = sizeof err->msg - 1;
    const size_t len = strlen(text);
    const size_t kept = len < room ? len : room;

    memcpy(err->msg, text, kept);
    err->msg[kept] = '\0';
    if (len > room)
        memcpy(err->msg + room - 3, "...", 3);
}

void pl_error_set(pl_error *err, pl_status code, const char *fmt, ...)
{
    char text[2 * sizeof err->msg]; /* the arguments may point into err->msg */
    va_list args;

    if (!err)
        return;
    va_start(args, fmt);
    const int n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    err->code = code;
    store(err, n < 0 ? "(message could not be formatted)" : text);
}

void pl_error_prefix(pl_error *err, const char *fmt, ...)
{
    char text[3 * sizeof err->msg + 2]; /* prefix, ": ", message */
    va_list args;

    if (!err)
        return;
    va_start(args, fmt);
    int n = vsnprintf(text, 2 * sizeof err->msg, fmt, args);
    va_end(args);
    if (n < 0)
        return;
    if (n >= (int)(2 * sizeof err->msg))
        n = (int)(2 * sizeof err->msg) - 1;
    memcpy(text + n, ": ", 2);
    memcpy(text + n + 2, err->msg, strnlen(err->msg, sizeof err->msg - 1) + 1);
    store(err, text);
}

int pl_status_exit_code(pl_status st)
{
    switch (st) {
    case PL_OK:
        return 0;
    case PL_E_USAGE:
        return 64;
    case PL_E_FORMAT:
    case PL_E_SHAPE:
        return 65;
    case PL_E_NOENT:
        return 66;
    case PL_E_PEER:
    case PL_E_TIMEOUT:
        return 69;
    case PL_E_IO:
        return 74;
    case PL_E_STOPPED:
        return 75;
    case PL_E_CONFIG:
        return 78;
    case PL_E_INVAL:
    case PL_E_NOMEM:
    case PL_E_DEVICE:
    case PL_E_NUMERIC:
        break;
    }
    return 70;
}
