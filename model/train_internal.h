/* model/train_internal.h - what train.c and the backward share. */
#ifndef PL_MODEL_TRAIN_INTERNAL_H
#define PL_MODEL_TRAIN_INTERNAL_H

#include "model/internal.h"
#include "model/train.h"

enum {
    TRAIN_BLOCK = 32,    /* rows of one sequence that share a block of the token index */
    TRAIN_DW_ROWS = 256, /* rows of a weight gradient at a time: their operand stays in L2 */
    TRAIN_COLS = 512,    /* columns of an elementwise gradient at a time, likewise */
};

/* A sequence of the micro-batch that has log-probs; the others have no rows. */
typedef struct train_slot {
    int i_seq;       /* in the caller's array */
    int row, n_rows; /* of the pass; row r is position r: n_tokens - 1 rows */
    int has_grad;    /* some d loss / d logprob is not zero */
    int k0;          /* has_grad: first element of its tokens in the packed token index */
} train_slot;

/* Rows [row, row + n) of the pass, at element k0 of the packed token index. */
typedef struct train_span {
    int row, n, k0;
} train_span;

/* Up to TRAIN_BLOCK neighbouring response tokens of one sequence. */
typedef struct head_block {
    int slot, token, n; /* tokens [token, token + n) of the sequence */
    int first;          /* row in its chunk */
    int has_grad;
} head_block;

/* One row of a head chunk: it predicts one token. */
typedef struct head_row {
    int slot, token;
    int row; /* of the pass */
    float inv, lse, logprob, entropy, g;
    int is_redrawn;
    pl_draw draw; /* is_redrawn: how */
    int32_t drawn;
} head_row;

typedef struct train_head {
    head_block *blocks; /* [max_tokens / 32] of the micro-batch */
    int n_blocks;
    int begin, end;    /* blocks of the chunk */
    int n_rows;        /* of the chunk */
    int n_active;      /* blocks of the chunk with gradients */
    int *active;       /* [head_rows / 32] */
    head_row *rows;    /* [head_rows] */
    uint16_t *hidden;  /* [head_rows, cp] final normed */
    float *logits;     /* [head_rows, vp] */
    float *e;          /* [threads, vp] scratch of the draws */
    uint16_t *dlogits; /* [head_rows, vp] */
    float *dhidden;    /* [head_rows, cp] */
    uint16_t *packed;  /* hidden by (C, active rows) */
    float *dnorm;      /* [head_rows / 32, cp] */
} train_head;

/* Scratch of one thread in the backward. */
typedef struct back_scratch {
    uint16_t *turned;                      /* [TRAIN_DW_ROWS, head_rows] dlogits transposed */
    float *dgate, *dup;                    /* [32, TRAIN_COLS] */
    uint16_t *q_nk, *q_kn, *do_nk, *do_kn; /* one head, packed both ways; tq x dp */
    uint16_t *k_kn;                        /* [tq / 64][dp * 64] */
    float *wide;                           /* [tq, dp] */
    float *dq, *dk, *dv;                   /* [tq, dp] */
    float *s, *dp;        /* [64, tq] scores and their gradients, keys by queries */
    uint16_t *p, *ds;     /* [64, tq] */
    uint16_t *ds_t;       /* [tq, 64] */
    float *m, *inv_l, *d; /* [tq] */
} back_scratch;

struct pl_train {
    pl_model *m;
    pl_train_options o;
    model_dims dims;
    int n_threads;
    pl_pass *pass;
    pl_kv_pool *pool; /* one layer deep */
    pl_kv_seq *kv;    /* [max_seqs] */
    int n_kv;
    pl_arena arena;

    /* the micro-batch */
    const pl_train_seq *seqs;
    pl_segment *segs;  /* [max_seqs] */
    train_slot *slots; /* [max_seqs] */
    int n_slots;
    pl_train_loss_fn loss;
    void *loss_ctx;
    pl_train_redraw redraw; /* wants NULL: off */
    float *grads;           /* NULL: forward only */
    pl_status st;           /* of the head; written by thread 0 */
    pl_error *err;
    train_head head;

    /* forward */
    layer_acts *acts; /* [L] when kept, else [1] */
    float **x;        /* [L + 1] residual entering each layer, and leaving the last */

    /* backward */
    train_span *blocks; /* [max_tokens / 32] of the slots with gradients */
    int n_blocks;
    train_span *runs; /* [max_seqs] longest ranges of neighbouring rows with gradients */
    int n_runs;
    int k;                     /* length of the packed token index: 32 * n_blocks */
    size_t ldt;                /* row stride of transposed operands */
    float *dx;                 /* [rows, C] gradient of the residual */
    uint16_t *dx16;            /* [rows, cp] rounded */
    uint16_t *dx_t;            /* [C, ldt] */
    float *dnorm;              /* [max_tokens / 32, cp] a norm's gradient by block */
    float *dy;                 /* [rows, fp or aop] of the FFN's inner or the attention's output */
    float *dxn;                /* [rows, cp] of a norm's output */
    float *dqkv;               /* [rows, qkv] */
    uint16_t *dqkv16;          /* [rows, pad32(qkv)] */
    uint16_t *dqkv_t;          /* [qkv, ldt] */
    uint16_t *dgate16, *dup16; /* [rows, fp] */
    uint16_t *dgate_t, *dup_t; /* [F, ldt] */
    uint16_t *x_packed;        /* normed input by (C, tokens) */
    uint16_t *y_packed;        /* FFN inner or attention output by (F or ao, tokens) */
    back_scratch *scratch;     /* [threads] */
};

/* Inside a team region, all threads. */
void train_head_run(pl_train *t, int i_thread, int n_threads);
void train_layers_back(pl_train *t, int i_thread, int n_threads);
/* d loss / d qkv from t->dy (of the attention output) of one layer. */
void train_attention_back(pl_train *t, const layer_acts *a, int i_thread, int n_threads);

/* This thread's columns of n, in multiples of 32. */
void train_columns(int n, int i_thread, int n_threads, int *begin, int *end);
/* grads[kind][c] += the rows of partial in ascending order, on this thread's columns. */
void train_add_norm(const pl_train *t, pl_param_kind kind, int layer, const float *partial, int n,
    int i_thread, int n_threads);

#endif
