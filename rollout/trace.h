/* rollout/trace.h - the trace of a run: what was drawn, by which weights, by whom and how fast.
 *
 * RUN/trace/000001.journal is a journal (core/journal.h, magic "PLTRACE1"): one RUN record a
 * sitting, one STEP record and its samples a step, an END record when the run is complete
 * (docs/TRACE.md).  Tokens are in it; log-probs are not (they stand in rollouts/), but one hash of
 * their bits for each 64 tokens is, so that what is generated again can be compared to the bit.
 * A step that is trained twice (a run that went on from an older checkpoint) stands in it twice:
 * the last one counts, and both must say the same samples. */
#ifndef PL_ROLLOUT_TRACE_H
#define PL_ROLLOUT_TRACE_H

#include "core/error.h"
#include "core/journal.h"
#include "ipc/schema.h"

#include <stddef.h>
#include <stdint.h>

enum {
    PL_TRACE_HASHED = 64,       /* tokens whose log-prob bits share a hash */
    PL_TRACE_SAMPLES = 1 << 20, /* of a step, at most */
    PL_TRACE_TOKENS = 1 << 20,  /* of a response, at most */
};

/* RUN: one sitting begins, or goes on. */
typedef struct pl_trace_run {
    const char *build, *numeric_class, *isa, *machine;
    const char *config; /* [n_config] resolved config.yaml */
    size_t n_config;
    uint64_t config_hash;      /* of the keys that decide bits, and of the prompts */
    unsigned char weights[16]; /* pl_trainer_hash where it begins */
    int64_t step;              /* steps done before: 0 a fresh run */
    int32_t n_vocab;
    int64_t unix_ms;
} pl_trace_run;

/* One finished sample. */
typedef struct pl_trace_sample {
    uint32_t uid;
    int n_tokens;
    const int32_t *tokens;  /* [n_tokens] */
    const uint8_t *source;  /* [n_tokens] pl_draft_source; NULL for the writer: all the target's */
    const float *logprobs;  /* [n_tokens] for the writer; NULL from the reader */
    const uint64_t *hashes; /* from the reader: pl_trace_hashes(n_tokens) of them; else NULL */
    pl_finish finish;
    float reward;
    uint32_t draft, accepted, steps; /* spec_ counters */
    uint32_t worker;                 /* index into the step's workers: who finished it */
} pl_trace_sample;

/* Passes without prefill of one size on one worker in one step: what a round of so many rows
 * costs. */
typedef struct pl_trace_cost {
    uint32_t worker, rows; /* rows: the middle of the bucket, pl_cost_rows */
    uint64_t n;            /* passes */
    double seconds;        /* of all of them */
} pl_trace_cost;

/* One step: all that was sampled for it, in uid order. */
typedef struct pl_trace_step {
    int64_t step;
    uint32_t policy_version; /* that rolled it out */
    uint32_t drafter_version;
    uint32_t first_uid;
    int n_groups, n; /* samples a group: uid = first_uid + group * n + k */
    pl_sampling sampling;
    const uint64_t *prompts;             /* [n_groups] XXH3-64 of the prompt's ids */
    const uint32_t *n_prompt;            /* [n_groups] tokens */
    unsigned char before[16], after[16]; /* pl_trainer_hash: the policy that sampled, and what came
                                            of the step */
    double gen_s, update_s, step_s;      /* seconds: rollouts, update, all of it */
    double draft_s, verify_s;            /* seconds of engines, all workers together */
    int64_t unix_ms;                     /* when it ended */
    int n_workers;                       /* 1..1024 */
    const char *const *workers;          /* [n_workers] names; "local" in one process */
    int n_costs;
    const pl_trace_cost *costs;
    const pl_trace_sample *samples; /* [n_groups * n] */
    /* From the reader: bytes in the file, with its blocks; of those, of tokens, sources and hashes.
     */
    uint64_t n_bytes, n_token_bytes;
} pl_trace_step;

static inline int pl_trace_hashes(int n_tokens)
{
    return (n_tokens + PL_TRACE_HASHED - 1) / PL_TRACE_HASHED;
}
/* Hash of the bits of at most PL_TRACE_HASHED log-probs. */
uint64_t pl_trace_hash(const float *logprobs, int n);

/* ---- writing ---- */

typedef struct pl_trace pl_trace; /* one thread at a time */

/* Open RUN/trace for appending, made if it is not there, and put the RUN record, durable.  run_uid
 * names a new one.  An old one is verified from its first byte; a torn tail is cut and said in
 * *report (may be NULL).
 * Errors: PL_E_FORMAT damaged, or it ends before run->step, or has another vocabulary; PL_E_IO,
 * PL_E_NOMEM; PL_E_INVAL config too long. */
pl_status pl_trace_open(pl_trace **out, const char *run_dir, const unsigned char run_uid[16],
    const pl_trace_run *run, pl_journal_report *report, pl_error *err);
/* Append a step, durable when this returns; head: hash of the trace up to here, for the ledger.
 * Errors: PL_E_IO, PL_E_NOMEM, PL_E_NUMERIC (the step stands in it already, with other samples):
 * the trace is dead then, whole up to the step before.  PL_E_INVAL (what a reader would refuse):
 * nothing is written, and it lives on. */
pl_status pl_trace_put(
    pl_trace *t, const pl_trace_step *s, unsigned char head[PL_HASH_BYTES], pl_error *err);
/* The run is complete after step, the last that was put.  Errors: as pl_trace_put. */
pl_status pl_trace_end(pl_trace *t, int64_t step, pl_error *err);
void pl_trace_close(pl_trace *t); /* accepts NULL */

/* ---- reading: every byte is hostile ---- */

typedef enum pl_trace_state {
    PL_TRACE_COMPLETE, /* the last record is END */
    PL_TRACE_OPEN,     /* whole so far, or torn in the block that was being written */
    PL_TRACE_DAMAGED,
} pl_trace_state;

typedef struct pl_trace_report {
    pl_trace_state state;
    int64_t step; /* the last whole one; 0: none */
    int64_t n_runs, n_steps, n_samples,
        n_tokens;       /* steps and samples that stand twice count twice */
    int64_t n_repeated; /* steps that were trained again, with the same samples */
    pl_journal_report journal;
    char what[512]; /* DAMAGED: what, the place is in journal; OPEN: at which step, what was torn */
} pl_trace_report;

/* Receives what is read, in order; pointers live during the call.  A status other than PL_OK ends
 * the reading. */
typedef struct pl_trace_visitor {
    void *ctx;
    pl_status (*run)(void *ctx, const pl_trace_run *r, pl_error *err);   /* may be NULL */
    pl_status (*step)(void *ctx, const pl_trace_step *s, pl_error *err); /* may be NULL */
} pl_trace_visitor;

/* Read all of RUN/trace (or of a journal file, when path is one); the file is neither changed nor
 * locked.  PL_OK for complete and open traces.
 * Errors: PL_E_FORMAT damaged (report->what says where), PL_E_NOENT, PL_E_IO, PL_E_NOMEM; what a
 * visitor returned. */
pl_status pl_trace_read(
    const char *path, const pl_trace_visitor *v, pl_trace_report *report, pl_error *err);
/* One step as it counts (the last of that number), *owned* by the caller: pl_trace_step_free.
 * run (may be NULL): the RUN record before it, in the same memory.
 * Errors: PL_E_NOENT when the trace has no such step; as pl_trace_read. */
pl_status pl_trace_load(const char *path, int64_t step, pl_trace_step **out,
    const pl_trace_run **run, pl_trace_report *report, pl_error *err);
void pl_trace_step_free(pl_trace_step *s); /* accepts NULL */

#endif
