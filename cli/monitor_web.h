/* cli/monitor_web.h - paceline monitor RUN --web [ADDR] [--token-file FILE]. */
#ifndef PL_CLI_MONITOR_WEB_H
#define PL_CLI_MONITOR_WEB_H

/* Serve the page of a run until SIGINT or SIGTERM; addr, token_file: as in pl_web_options, may be
 * NULL.  Returns the exit code. */
int monitor_web_serve(const char *run_dir, const char *addr, const char *token_file);

#endif
