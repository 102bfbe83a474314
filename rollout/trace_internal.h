/* rollout/trace_internal.h - what the writer and the reader of traces share: records, bytes in and
 * out, what a step may hold, and the steps that were seen. */
#ifndef PL_ROLLOUT_TRACE_INTERNAL_H
#define PL_ROLLOUT_TRACE_INTERNAL_H

#include "rollout/trace.h"

#define TRACE_MAGIC "PLTRACE1"

/* Types of records; odd ones are critical (core/journal.h). */
enum {
    TRACE_RUN = 1,
    TRACE_COST = 2,
    TRACE_STEP = 3,
    TRACE_SAMPLE = 5,
    TRACE_END = 7,
    TRACE_PART = 9, /* bytes that stand before those of the next record that is no PART */
};

enum {
    TRACE_NAME = 255,          /* bytes of a string but the config, at most */
    TRACE_CONFIG = 512 << 10,  /* of the config */
    TRACE_WORKERS = 1024,      /* of a step, at most */
    TRACE_COSTS = 1 << 16,     /* of a step, at most */
    TRACE_RECORD = 32 << 20,   /* bytes of a record with its parts, at most */
    TRACE_BLOCK_OVERHEAD = 60, /* bytes of a block beside its records */
};

/* A growing array: have room for need elements of size bytes, or fail. */
pl_status trace_reserve(void *array, size_t *room, size_t need, size_t size, pl_error *err);

/* ---- bytes out ---- */

typedef struct trace_out {
    unsigned char *data;
    size_t n, room;
    int failed; /* an allocation did */
} trace_out;

void trace_put_bytes(trace_out *o, const void *data, size_t n);
void trace_put_varint(trace_out *o, uint64_t v);
size_t trace_varint_bytes(uint64_t v);
void trace_put_fixed(trace_out *o, uint64_t v, int n_bytes); /* little endian */
void trace_put_f32(trace_out *o, float v);
void trace_put_f64(trace_out *o, double v);
void trace_put_string(trace_out *o, const char *s, size_t n);

/* ---- bytes in: a get past the end gives 0 and sets bad ---- */

typedef struct trace_in {
    const unsigned char *p, *end;
    int bad;
} trace_in;

uint64_t trace_get_varint(trace_in *in, uint64_t max); /* as short as can be */
uint64_t trace_get_fixed(trace_in *in, int n_bytes);
float trace_get_f32(trace_in *in);
double trace_get_f64(trace_in *in);
void trace_get_bytes(trace_in *in, void *out, size_t n);
/* n bytes where they stand; NULL when there are not so many. */
const unsigned char *trace_get_span(trace_in *in, size_t n);

/* ---- records as they are read (trace_parse.c) ---- */

typedef struct trace_run {
    pl_trace_run r;
    char *text; /* strings, each with its NUL */
    size_t room;
} trace_run;

/* A step and its memory; samples point into the columns once it is whole. */
typedef struct trace_step {
    pl_trace_step s; /* first: what pl_trace_load returns is freed by it */
    trace_run run;   /* of pl_trace_load */
    char *text;
    const char **workers;
    uint64_t *prompts;
    uint32_t *n_prompt;
    pl_trace_cost *costs;
    pl_trace_sample *samples; /* [n_samples] */
    int32_t *tokens;          /* [n_tokens] of all samples, one behind the other */
    uint8_t *sources;
    uint64_t *hashes; /* [n_hashes] */
    size_t n_samples, n_tokens, n_hashes;
    size_t room_text, room_workers, room_prompts, room_n_prompt, room_costs, room_samples,
        room_tokens, room_sources, room_hashes;
} trace_step;

void trace_run_done(trace_run *r);
void trace_step_free(trace_step *s);

/* Errors: PL_E_FORMAT in words, PL_E_NOMEM. */
pl_status trace_parse_run(trace_run *r, const unsigned char *data, size_t n, pl_error *err);
pl_status trace_parse_step(trace_step *s, const unsigned char *data, size_t n, pl_error *err);
pl_status trace_parse_cost(trace_step *s, const unsigned char *data, size_t n, pl_error *err);
pl_status trace_parse_sample(
    trace_step *s, int n_vocab, const unsigned char *data, size_t n, pl_error *err);
void trace_step_finish(trace_step *s); /* all samples are there: let them point into the columns */

/* ---- what may stand in them (trace_check.c) ---- */

/* PL_E_FORMAT, in words, for numbers that no step has. */
pl_status trace_check_run(const pl_trace_run *r, pl_error *err);
pl_status trace_check_step(const pl_trace_step *s, pl_error *err); /* without its samples */
pl_status trace_check_cost(const pl_trace_step *s, const pl_trace_cost *c, pl_error *err);
/* All but uid, tokens and sources. */
pl_status trace_check_sample(const pl_trace_step *s, const pl_trace_sample *a, pl_error *err);

/* What all sittings must say alike of a sample. */
uint64_t trace_digest(const pl_trace_sample *s, const uint64_t *hashes);

/* The steps of a trace by number, with the digests of their samples. */
typedef struct trace_seen_step {
    int64_t step;
    uint32_t first_uid;
    int n_groups, n;
    size_t first; /* digest */
} trace_seen_step;

typedef struct trace_seen {
    trace_seen_step *steps; /* [n] rising */
    uint64_t *digests;      /* [n_digests] */
    size_t n, room, n_digests, room_digests;
} trace_seen;

void trace_seen_done(trace_seen *t);
/* NULL: not there. */
const trace_seen_step *trace_seen_find(const trace_seen *t, int64_t step);
/* Compare s with what was seen of that step, digests [n_groups * n]. Errors: PL_E_FORMAT naming the
 * first sample that differs. */
pl_status trace_seen_compare(const trace_seen *t, const trace_seen_step *seen,
    const pl_trace_step *s, const uint64_t *digests, pl_error *err);
pl_status trace_seen_add(
    trace_seen *t, const pl_trace_step *s, const uint64_t *digests, pl_error *err);

/* ---- the walk along the records (trace_walk.c) ---- */

typedef struct trace_walk {
    const pl_trace_visitor *v; /* may be NULL */
    pl_trace_report *report;
    int64_t wanted;           /* step that is kept; -1: none */
    trace_step *kept;         /* the last of that number */
    unsigned char *run_bytes; /* [n_run_bytes] of the RUN record at hand */
    size_t n_run_bytes, room_run_bytes;
    trace_run run;
    trace_step *at; /* the step at hand */
    trace_seen seen;
    uint64_t *digests; /* [n_digests] of the step at hand */
    size_t room_digests;
    unsigned char *parts;
    size_t n_parts, room_parts;
    int64_t prev;       /* step before the next one */
    uint64_t n_bytes;   /* of records since the last step */
    uint64_t first_seq; /* block where they begin */
    int has_run, has_end, in_step;
    int visitor_failed; /* its error is in why */
    pl_error why;       /* of a visitor, or of the record that was refused, without its place */
} trace_walk;

pl_status trace_walk_record(void *walk, const pl_journal_record *r, pl_error *err);
/* Judge the end: state and words into the report.  st, err: what reading the journal returned. */
pl_status trace_walk_end(trace_walk *w, pl_status st, pl_error *err);
void trace_walk_done(trace_walk *w);

#endif
