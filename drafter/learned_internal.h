/* drafter/learned_internal.h - drafting with the learned drafter: what its files share.
 *
 * The drafter has one layer, so the keys and values of a position depend on its feature and the
 * token after it alone: extending a cache needs no attention, and a cache that is made anew holds
 * the bits of one that grew. */
#ifndef PL_DRAFTER_LEARNED_INTERNAL_H
#define PL_DRAFTER_LEARNED_INTERNAL_H

#include "drafter/eagle_internal.h"
#include "drafter/learned.h"

enum {
    LEARNED_ROWS = 64,      /* of one product; more are cut up */
    LEARNED_LEVEL_ROWS = 8, /* of one tree that are run at one depth */
    LEARNED_TOPK = 8,       /* children of a row at most */
    LEARNED_DEPTH = 16,     /* levels at most */
    LEARNED_VOCAB = 32768,  /* of a drafter at most, or the target's when smaller */
};

/* One sample.  Position t stands in slot t % ring of every ring. */
typedef struct learned_place {
    int is_open;
    int first, position; /* positions first .. position - 1 are known */
    int n_cached;        /* keys of first .. n_cached - 1 are made */
    int n_stale;         /* those before it were made once, with other weights */
    int32_t pending;     /* the token that the last cached key was made with */
    int32_t *tokens;     /* [ring] */
    uint16_t *features;  /* [ring][3][cp] */
    uint16_t *k, *v;     /* [Hkv] packed, ring x D and D x ring */
} learned_place;

typedef struct learned_node {
    float reach; /* chance that it is reached */
    int32_t token;
    int16_t parent, depth;
    int16_t run; /* its place among the rows that were run, -1 */
    int16_t row; /* of the draft, where it stands already, -1 */
    int8_t is_alive;
} learned_node;

/* The growth of one ask. */
typedef struct learned_tree {
    const pl_learned_ask *ask;
    learned_place *place;
    int max_depth, room; /* room: rows that may be added */
    int n_nodes, level;  /* level: first node of the last level */
    int n_runs, n_best;
    learned_node *nodes;        /* [max_nodes]; 0 is the root */
    int16_t best[PL_DRAFT_MAX]; /* nodes that are added if nothing better comes, best first */
    float *root;                /* [C] fused feature of the last position */
    float *states;              /* [max_runs][C] what recurs */
    float *k, *v;               /* [max_runs][Hkv][dp] */
} learned_tree;

/* A row of a run: a position whose key is made, or a node that gets children. */
typedef struct learned_row {
    learned_tree *tree;
    int position; /* RoPE; of a key: the position itself */
    int32_t token;
    int node, run;
    /* what a node's row gives: candidates, best first */
    int n;
    int32_t ids[LEARNED_TOPK];
    double scores[LEARNED_TOPK]; /* log q + noise */
    double logs[LEARNED_TOPK];   /* log q */
} learned_row;

/* Scratch of one thread. */
typedef struct learned_scratch {
    void *gemm;
    float *row;      /* [max(cp, ring + 32)] */
    float *scores;   /* [LEVEL_ROWS * group, ring + 32] */
    uint16_t *q;     /* [LEVEL_ROWS * group, dp] */
    uint16_t *probs; /* [LEVEL_ROWS * group, ring] */
    float *diag;     /* [LEVEL_ROWS * group, DEPTH] */
    float *out;      /* [LEVEL_ROWS * group, dp] */
    float *query;    /* [dp] */
} learned_scratch;

struct pl_learned {
    const pl_model *target;
    const pl_ops *ops;
    pl_team *team;
    pl_model_parts parts;
    const pl_eagle *e;
    pl_learned_options o;
    eagle_dims max; /* sizes that there is room for */
    int ring, n_ctx, n_threads;
    int max_runs, max_nodes;    /* of one tree */
    float least_row, least_run; /* reach that is worth a row of the target's pass, one of ours */
    pl_arena arena;
    learned_place *places; /* [max_places] */
    learned_tree *trees;   /* [max_places] */

    /* the run */
    learned_row rows[LEARNED_ROWS];
    int n_rows, n_cols; /* n_cols: outputs of the projection that are needed */
    uint16_t *fused;    /* [ROWS, ld3] */
    float *g;           /* [ROWS, C] entering states, then residuals */
    uint16_t *u;        /* [ROWS, ld2] */
    float *qkv;         /* [ROWS, qkvp] */
    uint16_t *ao;       /* [ROWS, aop] */
    float *proj;        /* [ROWS, cp] */
    uint16_t *xn;       /* [ROWS, cp] */
    float *gate, *up;   /* [ROWS, fp] */
    uint16_t *hid;      /* [ROWS, fp] */
    uint16_t *s;        /* [ROWS, cp] */
    float *logits;      /* [ROWS, vp] */
    learned_scratch *scratch;
    pl_learned_stats stats;
};

/* Make the keys of l->rows, and of the last position of each tree its fused feature. */
void learned_run_keys(pl_learned *l);
/* Run the nodes of l->rows (those of one tree side by side) and choose their candidates. */
void learned_run_nodes(pl_learned *l);

static inline float *learned_tree_k(const pl_learned *l, const learned_tree *t, int run, int kv)
{
    return t->k + (size_t)(run * l->max.hkv + kv) * (size_t)l->max.dp;
}

static inline float *learned_tree_v(const pl_learned *l, const learned_tree *t, int run, int kv)
{
    return t->v + (size_t)(run * l->max.hkv + kv) * (size_t)l->max.dp;
}

static inline uint16_t *learned_features(const pl_learned *l, const learned_place *p, int position)
{
    return p->features + (size_t)(position % l->ring) * (size_t)(PL_FEATURE_LAYERS * l->max.cp);
}

#endif
