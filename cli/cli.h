/* cli/cli.h - the commands of paceline, and what they share. */
#ifndef PL_CLI_CLI_H
#define PL_CLI_CLI_H

#include "core/cpu.h"
#include "core/error.h"
#include "core/log.h"
#include "core/threads.h"
#include "model/model.h"
#include "model/tokenizer.h"

#include <signal.h>
#include <stdint.h>
#include <stdio.h>

/* ---- command lines: one table a command gives the parser and the help ---- */

typedef enum cli_type { CLI_FLAG, CLI_INT, CLI_FLOAT, CLI_STRING, CLI_LIST } cli_type;

typedef struct cli_option {
    const char *name; /* without the dashes; NULL ends the table */
    cli_type type;
    void *value;      /* int *, int64_t *, double *, const char **, cli_list * */
    double min, max;  /* of numbers, inclusive */
    const char *meta; /* "FILE"; NULL for flags */
    const char *help; /* with the default */
} cli_option;

enum { CLI_LIST_MAX = 16 };
typedef struct cli_list {
    int n;
    const char *items[CLI_LIST_MAX];
} cli_list;

typedef struct cli_command {
    const char *name;
    int (*run)(int argc, char **argv); /* argv[0] is the command's name; returns the exit code */
    const char *summary;               /* NULL: not for users */
} cli_command;

/* Parse argv[1..]; positionals are moved to the front of argv and counted.  --help prints usage (a
 * line), the table and returns 1 in *helped.  Errors: PL_E_USAGE. */
pl_status cli_parse(int argc, char **argv, const char *usage, const cli_option *options,
    int *n_positional, int *helped, pl_error *err);

/* Print "paceline: message" on stderr and return the exit code of the error. */
int cli_report(const pl_error *err);

/* 1 after SIGINT or SIGTERM once cli_catch_signals has been called, 2 after the second one.  quiet:
 * another process tells the user. */
extern volatile sig_atomic_t cli_stop;
void cli_catch_signals(int quiet);

/* ---- a model ready to run ---- */

typedef struct cli_model_options {
    const char *path;
    const char *isa;
    int64_t threads;   /* 0: all */
    int with_backward; /* masters are kept too */
} cli_model_options;

typedef struct cli_model {
    pl_cpu cpu;
    const pl_ops *ops;
    pl_team *team;
    pl_source *source;
    pl_tokenizer *tokenizer;
    pl_model *model;
    float *masters; /* fp32, only with_backward; ownership passes to the trainer */
    char note[512]; /* why a faster backend was not taken */
} cli_model;

pl_status cli_model_open(
    cli_model *m, const cli_model_options *o, const pl_log *log, pl_error *err);
void cli_model_close(cli_model *m);

/* Backend and threads alone (doctor, bench). */
pl_status cli_backend_open(cli_model *m, const char *isa, int64_t threads, pl_error *err);

/* One line of a text file at a time, of at most 8 MiB.  Returns 1, 0 at the end, -1 with *err set.
 */
typedef struct cli_lines {
    FILE *file;
    const char *name;
    char *text;
    size_t capacity;
    int line; /* of text, from 1 */
} cli_lines;
pl_status cli_lines_open(cli_lines *l, const char *path, pl_error *err); /* "-": stdin */
int cli_lines_next(cli_lines *l, size_t *n_bytes, pl_error *err);
void cli_lines_close(cli_lines *l);

/* Errors: PL_E_FORMAT when text is not valid UTF-8; what names it. */
pl_status cli_check_utf8(const char *text, size_t n_bytes, const char *what, pl_error *err);

/* stdout is the product: a failed write is an error like any other. */
pl_status cli_flush(pl_error *err);

/* ---- commands ---- */

int cmd_bench(int argc, char **argv);
int cmd_coordinator(int argc, char **argv);
int cmd_doctor(int argc, char **argv);
int cmd_drafter(int argc, char **argv);
int cmd_generate(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_keygen(int argc, char **argv);
int cmd_monitor(int argc, char **argv);
int cmd_replay(int argc, char **argv);
int cmd_run(int argc, char **argv);
int cmd_score(int argc, char **argv);
int cmd_simulate(int argc, char **argv);
int cmd_tiny(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);
int cmd_trace(int argc, char **argv);
int cmd_trainer(int argc, char **argv);
int cmd_worker(int argc, char **argv);

#endif
