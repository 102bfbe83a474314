/* drafter/eagle_trainer.h - what the files of the drafter's training share.
 *
 * A step runs over micro-batches of whole windows.  A window takes pad32(n) rows; row i holds the
 * feature of its token i.  At depth k the row reads token i + 1 + k and is scored with the target's
 * p of position i + 1 + k.  Every phase is one region of the team, split by rows or by columns of
 * the result; between phases the caller may stop. */
#ifndef PL_DRAFTER_EAGLE_TRAINER_H
#define PL_DRAFTER_EAGLE_TRAINER_H

#include "drafter/eagle_internal.h"

enum {
    EAGLE_MICRO_ROWS = 512, /* of a micro-batch, unless one window is longer */
    EAGLE_SLAB = 256,       /* rows of a weight gradient at a time: their operand stays in L2 */
    EAGLE_TILE = 512,       /* columns of the target's head that a thread looks at at a time */
};

/* A window of the micro-batch. */
typedef struct eagle_slot {
    const pl_eagle_window *w;
    int row, rows; /* of the micro-batch: rows = pad32(w->n) */
    int position;  /* RoPE of row 0 */
} eagle_slot;

/* Activations of one depth, [rows, ..]. */
typedef struct eagle_acts {
    float *x_in;                 /* [C] recurrent state that enters */
    uint16_t *u;                 /* [ld2] [norm(emb); norm(state)] */
    float *inv_emb, *inv_hid;    /* [1] */
    uint16_t *q, *k, *v;         /* [H, dp], [Hkv, dp] */
    uint16_t *probs;             /* [H][rows][window] weights over the keys of depth 0 */
    float *diag;                 /* [H][rows][depth] weights of the keys of later depths */
    uint16_t *ao;                /* [aop] */
    float *x_mid, *x_out;        /* [C] */
    uint16_t *xn;                /* [cp] normed, input of the feed-forward */
    float *inv_post, *inv_final; /* [1] */
    float *gate, *up;            /* [fp] */
    uint16_t *hid;               /* [fp] */
    uint16_t *s;                 /* [cp] normed: what the head reads, and what recurs */
    float *ds;                   /* [cp] gradient of s through the head */
    float *dk, *dv;              /* [Hkv, dp] */
} eagle_acts;

/* What the loss says of one row at one depth. */
typedef struct eagle_row {
    float loss, alpha, coverage;
    int8_t counts, is_known, is_hit;
} eagle_row;

/* Scratch of one thread. */
typedef struct eagle_scratch {
    void *gemm;
    uint16_t *turned;    /* [EAGLE_SLAB, ldt] */
    float *tile;         /* [window, EAGLE_TILE], or 32 rows of [C] */
    float *lse;          /* [window] over the columns of this thread */
    float *row;          /* [max(vp, window + 32, 2 cp, ..)] */
    float *scores;       /* [window, window + 32] */
    float *wide;         /* [window, dp] */
    uint16_t *nk, *kn;   /* window x dp */
    uint16_t *x16;       /* [window, dp] */
    uint16_t *ds, *flip; /* [window, window] */
    float *head;         /* [window, dp] */
    float *dnorm;        /* [(3 + 4), C] gradients of the norms, this thread's rows */
    double sum;          /* of squares */
} eagle_scratch;

struct pl_eagle_trainer {
    pl_eagle *e;
    pl_eagle_train_options o;
    int n_threads, rows_max, window; /* window: padded to 32 */
    size_t ldt;
    pl_arena arena;
    float *grads, *m, *v, *average; /* [n_elements]; average: NULL without EMA */
    int64_t step;
    size_t state_bytes; /* of the arena: gradients, moments, average, which stand first */
    size_t backed_work, backed_state; /* bytes of the arena that memory was asked for, so far */

    /* the call */
    int (*should_stop)(void *ctx);
    void *stop_ctx;
    const pl_eagle_window *windows;
    int n_windows, is_eval;
    double measured[PL_EAGLE_DEPTH_MAX]; /* running mean of acceptance by depth; [0] 0: none yet */
    float weight[PL_EAGLE_DEPTH_MAX];    /* of a row's loss */
    int64_t counted[PL_EAGLE_DEPTH_MAX];

    /* the micro-batch */
    eagle_slot *slots; /* [max_windows] */
    int n_slots, n_rows;
    int k;                     /* depth at work */
    int group_row, group_rows; /* of the micro-batch: windows whose heads are at work */
    int is_known;              /* all of them bring their log-sum-exp */
    int v0;          /* first column of the target's head, or row of the draft head, at work */
    uint16_t *fused; /* [rows, ld3] normed features */
    float *inv_fc;   /* [rows, 3] */
    eagle_acts acts[PL_EAGLE_DEPTH_MAX];
    eagle_row *stat[PL_EAGLE_DEPTH_MAX]; /* [rows] */

    /* shared scratch */
    float *qkv;                /* [rows, qkvp], gradients too */
    float *proj;               /* [rows, max(cp, fp, ld2, ld3)] */
    float *dx;                 /* [rows, C] */
    uint16_t *dx16;            /* [rows, cp] */
    float *dao;                /* [rows, aop] */
    uint16_t *dqkv16;          /* [rows, qkvp] */
    float *dhid;               /* [rows, fp] */
    uint16_t *dgate16, *dup16; /* [rows, fp] */
    uint16_t *packed;          /* inputs of a weight gradient */

    /* the heads, of a group */
    uint16_t *hidden;  /* [window, cp] */
    uint16_t *kept;    /* packed: the rows of the target's head that the draft vocabulary has */
    int has_kept;      /* it is that of this step */
    float *p;          /* [window, vp] the target's, on the draft vocabulary */
    float *p_log_p;    /* [window] sum of p log p */
    float *logits;     /* [window, vp] */
    uint16_t *dlogits; /* [depth][window, vp] */
    eagle_scratch *scratch;
};

/* Run one phase, or PL_E_STOPPED. */
pl_status eagle_phase(pl_eagle_trainer *t, pl_team_fn fn, pl_error *err);

/* Phases of a micro-batch; t->k, the group and t->v0 are set between them. */
pl_status eagle_forward(pl_eagle_trainer *t, pl_error *err);
pl_status eagle_head(pl_eagle_trainer *t, pl_error *err);
pl_status eagle_backward(pl_eagle_trainer *t, pl_error *err);
void eagle_attend(void *ctx, int i_thread, int n_threads);
void eagle_attend_back(void *ctx, int i_thread, int n_threads);

/* L2 norm of t->grads, in phases; clipping and AdamW with grads of that norm, never stopped. */
pl_status eagle_grad_norm(pl_eagle_trainer *t, double *norm, pl_error *err);
void eagle_update(pl_eagle_trainer *t, const float *grads, double norm);

/* Inside a phase: y = x w^T on this thread's panels. */
void eagle_multiply(const pl_eagle_trainer *t, const uint16_t *x, size_t ldx, const uint16_t *w,
    float *y, size_t ldy, int m, int n, int k, int accumulate, int i_thread, int n_threads);
/* grads of a matrix += dy^T x over the rows of the micro-batch; holds a barrier. */
void eagle_weight_back(pl_eagle_trainer *t, eagle_param i, const uint16_t *dy, size_t ldy,
    const uint16_t *x, size_t ldx, int i_thread, int n_threads);
/* The token that a row reads at a depth; the window's last one past its end. */
static inline int32_t eagle_token(const eagle_slot *s, int row, int depth)
{
    const int at = row + 1 + depth;
    return s->w->tokens[at < s->w->n ? at : s->w->n - 1];
}
/* The window of a row. */
const eagle_slot *eagle_slot_of(const pl_eagle_trainer *t, int row);
/* Whether row i of a window is scored at a depth. */
static inline int eagle_counts(const pl_eagle_window *w, int i, int depth)
{
    return i + 1 + depth < w->n && w->is_target[i + 1 + depth];
}

/* The loss of one row (pl_eagle_loss), p not renormalised, q = softmax(z / temperature) over the n
 * tokens.  q becomes weight * d loss / dz. */
typedef struct eagle_goal {
    pl_eagle_loss kind;
    float alpha_weight; /* of the mix */
    float temperature, lse;
    float p_log_p; /* sum of p log p: makes CE the divergence, in the value of LK */
    float weight;
} eagle_goal;
typedef struct eagle_loss {
    float alpha, ce, coverage, loss;
} eagle_loss;
eagle_loss eagle_loss_row(float *restrict q, const float *restrict p, const float *restrict z,
    int n, const eagle_goal *g);
/* Mean of SmoothL1(s - target) over n; ds += weight times its gradient. */
float eagle_match_row(float *ds, const uint16_t *s, const uint16_t *target, int n, float weight);

#endif
