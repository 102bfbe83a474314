/* monitor/samples_internal.h - internal: the index behind monitor/samples.h. */
#ifndef PL_MONITOR_SAMPLES_INTERNAL_H
#define PL_MONITOR_SAMPLES_INTERNAL_H

#include "monitor/lines.h"
#include "monitor/samples.h"

#include <sys/types.h>

enum { SAMPLES_PATH = 4096 };

typedef enum samples_state {
    SAMPLES_PENDING,
    SAMPLES_INDEXED,
    SAMPLES_DAMAGED,  /* its rows are those before the damage */
    SAMPLES_FORGOTTEN /* for the bound on rows: it has none */
} samples_state;

/* One file of rollouts/. */
typedef struct samples_file {
    int64_t step;
    ino_t inode;
    int64_t size, mtime_ns;
    pl_samples_row *rows; /* [n_rows] by line */
    uint32_t n_rows;
    uint32_t n_bad; /* lines */
    samples_state state;
} samples_file;

struct pl_samples {
    char dir[SAMPLES_PATH - 64]; /* RUN/rollouts */
    samples_file *files;         /* [n_files] by step */
    int64_t n_files, n_rows;
    int64_t dir_ns, listed_ns; /* change of the directory, when it was listed; 0: not yet */
};

/* The file of a step; NULL: there is none. */
samples_file *samples_find(const pl_samples *s, int64_t step);
/* Call fn for each line of the file until it returns not 0.  *n_bytes grows by what was unpacked.
 * Errors: PL_E_NOENT (gone or another one by now), PL_E_FORMAT (damaged, or too much in it),
 * PL_E_IO, PL_E_NOMEM. */
pl_status samples_read(const pl_samples *s, const samples_file *f, lines_fn fn, void *ctx,
    size_t *n_bytes, pl_error *err);

/* List the directory again when it changed.  1: the files are others than before. */
int samples_list(pl_samples *s);
void samples_file_done(samples_file *f);

/* Figures of a line; 0: it is no record. */
int samples_parse_row(const char *line, size_t n, pl_samples_row *row);
/* The members of a row, without brackets. */
void samples_put_row(pl_json *j, const pl_samples_row *r);
/* Whole record as pl_samples_get gives it.  0: the line is no JSON object. */
int samples_put_record(pl_json *j, const pl_samples_row *r, const char *line, size_t n);
/* "messages":..,"ground_truth":.. of a record, without brackets. */
int samples_put_prompt(pl_json *j, const char *line, size_t n);
/* Text of the record to *buffer, which grows as needed (*room); -1: it has none, or no memory. */
int64_t samples_text(const char *line, size_t n, char **buffer, size_t *room);

#endif
