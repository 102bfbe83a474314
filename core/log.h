/* core/log.h - one line a message on stderr: level, text of key=value.  Modules get a pl_log and
 * never print; NULL is a valid log that drops everything. */
#ifndef PL_CORE_LOG_H
#define PL_CORE_LOG_H

typedef enum pl_log_level { PL_LOG_ERROR, PL_LOG_WARN, PL_LOG_INFO, PL_LOG_DEBUG } pl_log_level;

typedef struct pl_log {
    pl_log_level level; /* messages above it are dropped */
    int fd;             /* where lines go, 2 for stderr */
    int is_tty;         /* colour allowed; a progress bar may be on the last line */
} pl_log;

void pl_log_write(const pl_log *log, pl_log_level level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#define pl_log_error(log, ...) pl_log_write((log), PL_LOG_ERROR, __VA_ARGS__)
#define pl_log_warn(log, ...)  pl_log_write((log), PL_LOG_WARN, __VA_ARGS__)
#define pl_log_info(log, ...)  pl_log_write((log), PL_LOG_INFO, __VA_ARGS__)
#define pl_log_debug(log, ...) pl_log_write((log), PL_LOG_DEBUG, __VA_ARGS__)

#endif
