/* model/model.h - Llama for running: packed bf16 weights, the paged KV cache and the one forward
 * pass that decodes, verifies trees, prefills, scores and feeds the trainer (DESIGN, law 1). */
#ifndef PL_MODEL_MODEL_H
#define PL_MODEL_MODEL_H

#include "core/error.h"
#include "core/threads.h"
#include "model/arch.h"
#include "model/source.h"
#include "tensor/tensor.h"

#include <stddef.h>
#include <stdint.h>

/* ---- weights ---- */

typedef struct pl_model pl_model;

/* Allocate for an architecture; weights are zero until loaded.  with_backward also holds the
 * packing that gradients with respect to inputs need (twice the memory).  *borrows* ops and team.
 */
pl_status pl_model_new(pl_model **out, const pl_arch *arch, const pl_ops *ops, pl_team *team,
    int with_backward, pl_error *err);
void pl_model_free(pl_model *m);
size_t pl_model_plan(const pl_arch *arch, int with_backward); /* bytes */

/* Read every parameter of a source, round to bf16, pack.  masters (may be NULL): flat fp32 copy in
 * the order of the param table.  Errors: those of pl_source_read. */
pl_status pl_model_load(pl_model *m, const pl_source *src, float *masters, pl_error *err);
/* The same from bytes begin .. end - 1 of a source that is one file of bf16 (pl_source_file), so
 * that they can be checked while they are in cache: packs what begins there, 32 rows at a time, and
 * reads on to their end.  Several threads may load ranges that do not overlap.  Until the whole
 * file is loaded, and after a failure, the weights are a mixture and the model must not run.  Not
 * with_backward.  Errors: PL_E_IO (the file became shorter), PL_E_NUMERIC, PL_E_INVAL (the source
 * is of another kind or shape). */
pl_status pl_model_load_bytes(
    pl_model *m, const pl_source *src, size_t begin, size_t end, pl_error *err);
/* Pack anew from fp32 masters, after an optimizer step.  Errors: PL_E_NOMEM, weights unchanged. */
pl_status pl_model_pack(pl_model *m, const float *masters, pl_error *err);

const pl_arch *pl_model_arch(const pl_model *m);
const pl_param_table *pl_model_params(const pl_model *m);
const pl_ops *pl_model_ops(const pl_model *m);
pl_team *pl_model_team(const pl_model *m);
/* Bytes of weights that one pass with logits reads. */
size_t pl_model_weight_bytes(const pl_model *m);

/* ---- KV cache: pages of PL_BLOCK positions, shared by samples of a prompt, copied on write ----
 */

typedef struct pl_kv_pool pl_kv_pool;

typedef struct pl_kv_seq {
    int n_tokens; /* positions committed */
    int n_pages;
    int max_pages;
    int32_t *pages; /* [max_pages] page ids */
} pl_kv_seq;

pl_status pl_kv_pool_new(pl_kv_pool **out, const pl_arch *arch, int n_pages, pl_error *err);
void pl_kv_pool_free(pl_kv_pool *pool);
void pl_kv_pool_prefault(pl_kv_pool *pool); /* see pl_arena_prefault */
size_t pl_kv_page_bytes(const pl_arch *arch);
int pl_kv_pool_free_pages(const pl_kv_pool *pool);

/* An empty sequence of at most max_tokens positions.  Pair: pl_kv_seq_done (gives pages back). */
pl_status pl_kv_seq_init(pl_kv_seq *s, int max_tokens, pl_error *err);
void pl_kv_seq_done(pl_kv_pool *pool, pl_kv_seq *s);
/* Forget every token, keep the object. */
void pl_kv_seq_clear(pl_kv_pool *pool, pl_kv_seq *s);
/* Make dst (empty) share all of src's pages. */
void pl_kv_fork(pl_kv_pool *pool, const pl_kv_seq *src, pl_kv_seq *dst);
/* Have own, writable pages for positions n_tokens .. n_tokens + n - 1; copies a shared last page.
 * Errors: PL_E_NOMEM when the pool is empty (nothing changed). */
pl_status pl_kv_reserve(pl_kv_pool *pool, pl_kv_seq *s, int n, pl_error *err);

/* ---- the pass ---- */

/* Rows of one sequence in a pass.  parent NULL: a chain, rows continue the sequence at n_tokens and
 * are committed by the pass itself (space must have been reserved).  parent given: a tree as in
 * pl_draft; its rows stay in scratch until pl_pass_commit. */
typedef struct pl_segment {
    pl_kv_seq *kv;
    const int32_t *tokens; /* [n_rows] */
    const int16_t *parent; /* [n_rows] or NULL */
    int n_rows;
    int n_logits; /* logits of the last n_logits rows are wanted; trees: 0 or n_rows */
} pl_segment;

typedef struct pl_pass_options {
    int max_rows;   /* rows of all segments together */
    int max_logits; /* rows with logits */
    int max_segments;
    int max_ctx; /* longest sequence, positions */
    int tree;    /* trees will be verified: hold the scratch for them */
} pl_pass_options;

typedef struct pl_pass pl_pass; /* the workspace; one pass at a time */

pl_status pl_pass_new(pl_pass **out, pl_model *m, const pl_pass_options *o, pl_error *err);
void pl_pass_free(pl_pass *p);
size_t pl_pass_plan(const pl_arch *arch, const pl_pass_options *o, int n_threads); /* bytes */

/* Run the model over all rows.  Segments name different sequences.  Errors: PL_E_INVAL when an
 * option's limit is passed or a token is out of the vocabulary. */
pl_status pl_pass_run(
    pl_pass *p, pl_kv_pool *pool, const pl_segment *segs, int n_segs, pl_error *err);

/* Logits [V] of row i_row (0-based in the segment; one of those wanted) of segment i_seg of the
 * last run.  *borrowed* until the next run. */
const float *pl_pass_logits(const pl_pass *p, int i_seg, int i_row);
/* Seconds that the last run spent in attention: what grows with the positions in the cache. */
double pl_pass_attention_seconds(const pl_pass *p);
/* Final normed hidden states (bf16, [rows, pad32(C)]) of the rows with logits, in order. */
const uint16_t *pl_pass_hidden(const pl_pass *p, int i_seg, int i_row);

/* Copy the K and V of n accepted rows of a tree segment (rows[0] = 0, each the child of the one
 * before) into its pages and advance the sequence.  Space must have been reserved before the run.
 */
void pl_pass_commit(pl_pass *p, pl_kv_pool *pool, int i_seg, const int16_t *rows, int n);

/* ---- scoring ---- */

/* Log-probs of tokens 1 .. n-1 of a sequence under temperature t (1 when t = 0), chunked over the
 * vocabulary head; logprobs[0] is left.  top_k > 0 also gives the best ids and their log-probs of
 * every position's own prediction of the NEXT token ([n][top_k], position i predicts token i+1).
 * The bits equal those of decoding. */
pl_status pl_score(pl_pass *p, pl_kv_pool *pool, const int32_t *tokens, int n, float t,
    float *logprobs, int top_k, int32_t *top_ids, float *top_logprobs, pl_error *err);

#endif
