/* cli/bench.h - what the benches share: options, the record of a figure, children, medians. */
#ifndef PL_CLI_BENCH_H
#define PL_CLI_BENCH_H

#include "cli/cli.h"
#include "core/json.h"

#include <sys/types.h>

enum { BENCH_ROUNDS_MAX = 101 };

typedef struct bench {
    /* options */
    const char *model, *isa, *config;
    const char *rollouts;             /* of bench idle and packing */
    const char *dir, *arms, *drafter; /* of bench arms */
    int64_t threads, rounds, steps;   /* 0: the default of the bench */
    int json, quick;
    char **overrides; /* key=value arguments of bench memory and arms */
    int n_overrides;
    /* state */
    const char *name;
    pl_cpu cpu;
    int n_threads; /* of the team at work; 0 until known */
    FILE *notes;   /* headings and notes: stdout, or stderr with --json */
    int n_figures;
    pl_json line;
} bench;

/* One figure: a line of the table or a JSON object (NAMES 5.7).  ratio NAN: there is none. */
typedef struct bench_figure {
    char name[96]; /* key=value,key=value */
    double value;
    const char *unit;
    double ratio;
    const char *ratio_to; /* NULL: the figure has no reference */
} bench_figure;
pl_status bench_report(bench *b, const bench_figure *f, pl_error *err);

/* Open the model for a bench, and print the heading. */
pl_status bench_open(bench *b, cli_model *m, int with_backward, pl_error *err);
void bench_heading(bench *b, const char *isa);

double bench_now(void); /* monotonic seconds */
/* Sorts v.  The mean of the middle two when n is even. */
double bench_median(double *v, int n);
/* Rounds to run: what was asked, else 1 with --quick, else n. */
int bench_rounds(const bench *b, int n);

/* ---- bench_engine.c ---- */

enum { BENCH_SEQS_MAX = 32 };

/* A model and sequences that hold a context each, and that timed passes leave as they were. */
typedef struct bench_bed {
    cli_model m;
    pl_kv_pool *pool;
    pl_pass *pass;
    pl_kv_seq seqs[BENCH_SEQS_MAX];
    int n_seqs;
    int context;     /* positions that every sequence holds, once filled */
    int32_t *tokens; /* [context] scratch */
} bench_bed;
/* n_seqs empty sequences with room for context positions, or as many as the model has, and a tree.
 */
pl_status bench_bed_open(bench_bed *e, bench *b, int n_seqs, int context, int tree, pl_error *err);
void bench_bed_close(bench_bed *e);
/* Run e->context tokens through sequence i, with logits for the last. */
pl_status bench_bed_fill(bench_bed *e, int i, pl_error *err);
/* Seconds of one step of the first `batch` sequences.  The first of the steps is not counted: it
 * brings the caches to where they are in a long decode. */
pl_status bench_bed_decode(bench_bed *e, int batch, double *seconds, pl_error *err);

pl_status bench_decode(bench *b, pl_error *err);
pl_status bench_verify(bench *b, pl_error *err);
pl_status bench_prefill(bench *b, pl_error *err);
pl_status bench_train(bench *b, pl_error *err);

/* ---- bench_idle.c ---- */
pl_status bench_idle(bench *b, pl_error *err);

/* ---- bench_process.c ---- */
pl_status bench_start(bench *b, pl_error *err);
pl_status bench_memory(bench *b, pl_error *err);

/* ---- bench_checkpoint.c, bench_preempt.c ---- */
pl_status bench_checkpoint(bench *b, pl_error *err);
pl_status bench_preempt(bench *b, pl_error *err);

/* ---- bench_channel.c ---- */
pl_status bench_channel(bench *b, pl_error *err);

/* ---- bench_processes.c ---- */
pl_status bench_processes(bench *b, pl_error *err);

/* ---- bench_packing.c ---- */
pl_status bench_packing(bench *b, pl_error *err);

/* ---- bench_trace.c ---- */
pl_status bench_trace(bench *b, pl_error *err);

/* ---- bench_monitor.c ---- */
pl_status bench_monitor(bench *b, pl_error *err);

/* ---- bench_arms.c ---- */
pl_status bench_arms(bench *b, pl_error *err);

/* ---- bench_whatif.c ---- */
pl_status bench_whatif(bench *b, pl_error *err);

/* ---- bench_simulate.c ---- */
pl_status bench_simulate(bench *b, pl_error *err);

/* A child with one stream socket as its stdin and stdout; stderr is ours. */
typedef struct bench_child {
    pid_t pid; /* 0: none */
    int fd;
} bench_child;

/* Path of a program beside this one ("": this one).  Errors: PL_E_IO. */
pl_status bench_program(char *path, size_t size, const char *name, pl_error *err);
/* argv[0] is the path; argv ends with NULL.  Errors: PL_E_IO.  Pair: bench_child_end. */
pl_status bench_child_start(bench_child *c, const char *const *argv, pl_error *err);
/* Close the socket and wait.  Returns the exit status as of waitpid; 0 when there is no child. */
int bench_child_end(bench_child *c);

/* ---- bench_peer.c: the list of GEMMs of a pass, done by oneDNN in a helper ---- */

/* *found is 0 when there is no helper; then a note says how to get it.  rows of every layer's
 * products, head_rows of the head's; backward: dX and dW too. */
pl_status bench_peer_open(bench *b, bench_child *peer, const pl_arch *a, int rows, int head_rows,
    int backward, int *found, pl_error *err);
/* Have one round timed. */
pl_status bench_peer_round(bench_child *peer, double *seconds, pl_error *err);

#endif
