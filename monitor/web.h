/* monitor/web.h - the page of a run, served by a process of its own: it only reads the run's files,
 * so whatever is done to it is not done to the run.
 *
 * GET and HEAD alone, a fixed table of paths, 127.0.0.1 unless another address is named; any other
 * address wants the token.  Everything that a client can make this process hold is bounded. */
#ifndef PL_MONITOR_WEB_H
#define PL_MONITOR_WEB_H

#include "core/error.h"

#include <signal.h>
#include <stddef.h>
#include <stdint.h>

enum { PL_WEB_PORT = 8780, PL_WEB_TOKEN = 32 }; /* the token: hexadecimal digits of 128 bits */

typedef struct pl_web_options {
    const char *run_dir;
    const char *address;     /* HOST:PORT, HOST, PORT, [IP6]:PORT; NULL or "": 127.0.0.1, port 8780
                                or the next free one.  Port 0: any */
    const char *token_file;  /* wanted on every address; NULL: on others than
                                loopback, in RUN/monitor.token, or in runtime_dir when
                                the run is read-only */
    const char *runtime_dir; /* the user's own directory (XDG_RUNTIME_DIR); may be NULL */
    /* Bytes of one token (may be NULL: tokens are shown by number).  Returns how many; -1 when
     * there is no such token. */
    int (*piece)(void *ctx, int32_t token, const char **bytes);
    void *piece_ctx;
} pl_web_options;

typedef struct pl_web pl_web;

/* Listen.  Errors: PL_E_NOENT (no run there), PL_E_USAGE (address), PL_E_IO (taken; no place for
 * the token), PL_E_NOMEM. */
pl_status pl_web_open(pl_web **out, const pl_web_options *o, pl_error *err);
/* Where it listens, for the user: "http://127.0.0.1:8780/". */
const char *pl_web_url(const pl_web *w);
/* Path of the token's file; NULL when none is wanted. */
const char *pl_web_token_path(const pl_web *w);
/* Serve until *stop is not 0.  Errors: PL_E_IO. */
pl_status pl_web_run(pl_web *w, const volatile sig_atomic_t *stop, pl_error *err);
void pl_web_close(pl_web *w); /* accepts NULL */

#endif
