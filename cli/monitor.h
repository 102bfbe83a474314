/* cli/monitor.h - the parts of `paceline monitor`: where a run is read from, and where it is shown.
 */
#ifndef PL_CLI_MONITOR_H
#define PL_CLI_MONITOR_H

#include "cli/cli.h"
#include "monitor/monitor.h"
#include "monitor/view.h"

/* ---- one GET of a server that may be anything (monitor_http.c) ---- */

typedef struct monitor_server {
    char host[256], port[8]; /* of http://HOST:PORT */
    char token[128];         /* empty: none */
} monitor_server;

/* Errors: PL_E_USAGE when url is not http://HOST[:PORT][/]. */
pl_status monitor_parse_url(monitor_server *s, const char *url, pl_error *err);
/* The token in a file: printable characters, to the end of the line.  Errors: PL_E_NOENT, PL_E_IO,
 * PL_E_FORMAT. */
pl_status monitor_read_token(monitor_server *s, const char *path, pl_error *err);
/* Body of the answer to GET path: at most max_bytes, within 10 seconds; *returns owned*, with a NUL
 * after it.  Errors: PL_E_PEER (no connection, no HTTP, another status than 200), PL_E_NOENT (404),
 * PL_E_TIMEOUT, PL_E_FORMAT (too long), PL_E_NOMEM. */
pl_status monitor_get(const monitor_server *s, const char *path, size_t max_bytes, char **out,
    size_t *n, pl_error *err);

/* ---- a run, from its directory or from a server (monitor_source.c) ---- */

typedef struct monitor_source monitor_source;

/* where: RUN_DIR or http://HOST:PORT; token_file may be NULL.  Errors: PL_E_NOENT (no such
 * directory, or not a run's), PL_E_USAGE, PL_E_NOMEM; a server need not answer yet. */
pl_status monitor_source_open(
    monitor_source **out, const char *where, const char *token_file, pl_error *err);
void monitor_source_close(monitor_source *s); /* accepts NULL */
/* Look again.  What cannot be had is in data->note; what was had before stays.  Errors: of a server
 * alone: those of monitor_get. */
pl_status monitor_source_poll(monitor_source *s, pl_error *err);
/* What is known; until the next poll. */
const pl_view_data *monitor_source_data(const monitor_source *s);

/* ---- the terminal (monitor_screen.c) ---- */

/* The page until q, or a signal.  Errors: PL_E_IO. */
pl_status monitor_screen(monitor_source *s, double interval_s, pl_error *err);

#endif
