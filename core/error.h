/* core/error.h - how a function says what went wrong: a status code and one sentence. */
#ifndef PL_CORE_ERROR_H
#define PL_CORE_ERROR_H

#ifdef __cplusplus
extern "C" {
#endif

typedef enum pl_status {
    PL_OK = 0,
    PL_E_INVAL,   /* the caller broke a documented precondition */
    PL_E_NOMEM,   /* host or device allocation failed */
    PL_E_IO,      /* open, read, write, mmap */
    PL_E_NOENT,   /* a named file or directory is not there */
    PL_E_FORMAT,  /* bytes from outside do not parse */
    PL_E_SHAPE,   /* parsed, but sizes disagree with the model */
    PL_E_CONFIG,  /* a configuration key or value is wrong */
    PL_E_USAGE,   /* a command line is wrong */
    PL_E_PEER,    /* the other process is gone or speaks another version */
    PL_E_TIMEOUT, /* a deadline passed; the operation may be retried */
    PL_E_DEVICE,  /* CUDA or cuBLAS reported a failure */
    PL_E_STOPPED, /* asked to stop (signal); what was done is checkpointed */
    PL_E_NUMERIC, /* NaN, infinity or a broken law: the result must not be used */
} pl_status;

typedef struct pl_error {
    pl_status code;
    char msg[504]; /* "outer context: inner cause", always NUL-terminated */
} pl_error;

/* Set and prefix the message; err may be NULL.  Use the macros below. */
void pl_error_set(pl_error *err, pl_status code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void pl_error_prefix(pl_error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* sysexits code of a status (DESIGN 7): 0, 64, 65, 66, 69, 70, 74, 75, 78. */
int pl_status_exit_code(pl_status st);

/* Record the cause and yield the code, so that `return pl_fail(err, PL_E_IO, ...)` is the whole
 * error path.  Macros, so that compilers and analysers see which code comes back.  pl_wrap puts
 * "context: " before the message that is already in *err. */
#define pl_fail(err, code, ...) (pl_error_set((err), (code), __VA_ARGS__), (code))
#define pl_wrap(err, code, ...) (pl_error_prefix((err), __VA_ARGS__), (code))

#ifdef __cplusplus
}
#endif
#endif
