/* tensor/ops.h - the one list of ops.  Each is work for one thread on the range it is given:
 * callers split ranges over a team.  All pointers are to fp32 unless the comment says bf16
 * (uint16_t). Formulas and orders of summation: NUMERICS 1 and 2; "16-lane sum" is the sum defined
 * there. */
#ifndef PL_TENSOR_OPS_H
#define PL_TENSOR_OPS_H

#include <stddef.h>
#include <stdint.h>

enum { PL_BLOCK = 64 }; /* logical positions of one attention block, and of one KV page */

/* y[r, j] = (accumulate ? y[r, j] : 0) + canonical dot of x[r, :] and w[j, :], for r in [0, m) and
 * j in the panels [panel_begin, panel_end) of 32 outputs, j < n.  The accumulator continues from
 * y's value, so a K split into calls of multiples of 32 gives the bits of one call. */
typedef struct pl_gemm {
    const uint16_t *x; /* bf16 [m, ldx], the first k of a row are read */
    size_t ldx;        /* elements; rows aligned to 64 bytes */
    const uint16_t *w; /* bf16 packed, n x k (pl_packed_index) */
    float *y;          /* [m, ldy], n of a row are written */
    size_t ldy;
    int m, n, k; /* k: a multiple of 32, padding is zero in x and w */
    int accumulate;
    int panel_begin, panel_end;
    void *scratch; /* PL_GEMM_SCRATCH bytes, of this thread only, aligned to 64 */
} pl_gemm;
enum { PL_GEMM_SCRATCH = 1 << 20 };

/* How one token is drawn from a row of logits.  T = 0 (under FTZ also any denormal T) is greedy: no
 * noise, log-probs at T = 1.  Filters in this order, by (logit, then lower id): the top_k best; of
 * their distribution at T the shortest prefix that reaches top_p, at least one token; of these the
 * tokens with at least min_p times the largest probability. */
typedef struct pl_draw {
    float temperature; /* >= 0 */
    int top_k;         /* 0: off */
    float top_p;       /* 1 or more: off */
    float min_p;       /* 0: off */
    uint64_t key;      /* pl_noise_key(seed) */
    uint32_t uid;      /* of the sample */
    uint32_t position; /* absolute index of the token to be drawn */
    uint32_t purpose;  /* pl_purpose */
} pl_draw;

typedef struct pl_drawn {
    /* argmax of z/T + g over the filtered support, ties to the lowest id; -1 (and NaN below) if a
     * logit is NaN or +inf, or the largest z/T is not finite: the caller's PL_E_NUMERIC */
    int32_t token;
    float logprob; /* of the unfiltered distribution at T (at 1 when T = 0) */
    float lse;     /* log-sum-exp of z/T */
    float max;     /* max of z/T */
    int n_exact;   /* candidates whose exact score was needed (the shortcut's survivors) */
} pl_drawn;

/* AdamW (Loshchilov and Hutter 2019) over a flat range. */
typedef struct pl_adamw {
    float lr, beta1, beta2, eps, weight_decay;
    float bias1, bias2; /* 1 - beta1^t, 1 - beta2^t */
    float grad_scale;   /* the gradient is multiplied by this first (clipping) */
} pl_adamw;

/* X(return type, name, arguments) */
#define PL_OPS(X)                                                                                  \
    /* -- products: the canonical bf16 dot -- */                                                   \
    X(void, gemm, (const pl_gemm *g))                                                              \
    /* -- layouts: rounding to bf16 where the source is fp32 -- */                                 \
    /* packed <- src[n, k] (outputs are rows), rows [32 * panel_begin, 32 * panel_end) */          \
    X(void, pack_nk,                                                                               \
        (uint16_t * dst, const float *src, size_t ld, int n, int k, int panel_begin,               \
            int panel_end))                                                                        \
    /* packed <- src[k, n] (outputs are columns); pads with zeros */                               \
    X(void, pack_kn,                                                                               \
        (uint16_t * dst, const float *src, size_t ld, int n, int k, int panel_begin,               \
            int panel_end))                                                                        \
    X(void, pack_kn_bf16,                                                                          \
        (uint16_t * dst, const uint16_t *src, size_t ld, int n, int k, int panel_begin,            \
            int panel_end))                                                                        \
    /* dst[c, r] (bf16, ldd) <- src[r, c], r in [0, rows), c in [col_begin, col_end); dst columns  \
     * rows .. pad32(rows) - 1 are set to zero */                                                  \
    X(void, transpose,                                                                             \
        (uint16_t * dst, size_t ldd, const float *src, size_t lds, int rows, int col_begin,        \
            int col_end))                                                                          \
    X(void, transpose_bf16,                                                                        \
        (uint16_t * dst, size_t ldd, const uint16_t *src, size_t lds, int rows, int col_begin,     \
            int col_end))                                                                          \
    X(void, round_bf16, (uint16_t * y, const float *x, int n))                                     \
    X(void, widen_bf16, (float *y, const uint16_t *x, int n))                                      \
    /* row v of a packed matrix as fp32: the embedding of token v */                               \
    X(void, packed_row, (float *y, const uint16_t *w, int row, int k))                             \
    /* -- rows -- */                                                                               \
    /* y (bf16 [n], zero up to pad32(n)) = (x * (1 / sqrt(16-lane sum of x*x / n + eps))) * w;     \
     * returns the 1 / sqrt(..) */                                                                 \
    X(float, rmsnorm, (uint16_t * y, const float *x, const float *w, int n, float eps))            \
    /* one head: y (bf16 [d]) = rotated x; cos, sin [d/2]; y[i] = x[i]*c - x[i+d/2]*s,             \
     * y[i+d/2] = x[i+d/2]*c + x[i]*s */                                                           \
    X(void, rope, (uint16_t * y, const float *x, const float *cosine, const float *sine, int d))   \
    /* y (bf16) = silu(gate) * up; silu(g) = g / (1 + exp(-g)) */                                  \
    X(void, silu_mul, (uint16_t * y, const float *gate, const float *up, int n))                   \
    X(void, add, (float *y, const float *x, int n)) /* y += x */                                   \
    /* -- attention, one row against one block of 64 keys (NUMERICS 2) -- */                       \
    /* s[64] raw dots; the first n_valid keys count.  p (bf16 [64]) = bf16(exp(s*scale - m)), +0   \
     * beyond; *m the maximum of s*scale, *l the 16-lane sum of the rounded p */                   \
    X(void, attn_softmax,                                                                          \
        (uint16_t * p, float *m, float *l, const float *s, int n_valid, float scale))              \
    /* o[d] = canonical dot over the 64 keys of p and rows v[0..63] (bf16, row-major [d]); v[i] is \
     * not read for i >= n_valid */                                                                \
    X(void, attn_pv_rows,                                                                          \
        (float *o, const uint16_t *p, const uint16_t *const *v, int n_valid, int d))               \
    /* (O, M, L) <- combine with the next block (o, m, l); first: copy */                          \
    X(void, attn_combine,                                                                          \
        (float *O, float *M, float *L, const float *o, float m, float l, int d, int first))        \
    /* y (bf16 [d]) = O / L */                                                                     \
    X(void, attn_finish, (uint16_t * y, const float *O, float L, int d))                           \
    /* -- logits -- */                                                                             \
    /* max and log-sum-exp of z/t over n; e (may be NULL) [n] = exp(z/t - max); all NaN where draw \
     * gives -1 */                                                                                 \
    X(void, logsumexp, (const float *z, int n, float t, float *e, float *max, float *lse))         \
    /* Draw a token; e is scratch of n floats */                                                   \
    X(void, draw, (const float *z, int n, const pl_draw *d, float *e, pl_drawn *out))              \
    /* The k best ids by z/T + g (drafter's candidates), best first; returns how many.  z over the \
     * ids of map (NULL: identity, ascending ids otherwise).  Unfiltered; no token of probability  \
     * 0; none at all where draw gives -1 */                                                       \
    X(int, draw_topk,                                                                              \
        (const float *z, int n, const int32_t *map, const pl_draw *d, int k, int32_t *ids,         \
            double *scores))                                                                       \
    /* -- backward: rounding to bf16 counts as the identity -- */                                  \
    /* dx += gradient of rmsnorm; dw += dy * x * inv (16-lane sums inside) */                      \
    X(void, rmsnorm_back,                                                                          \
        (float *dx, float *dw, const float *dy, const float *x, const float *w, float inv, int n)) \
    /* dx = dy turned back; dx may be dy */                                                        \
    X(void, rope_back,                                                                             \
        (float *dx, const float *dy, const float *cosine, const float *sine, int d))               \
    /* dgate and dup are set; they may be gate and up */                                           \
    X(void, silu_mul_back,                                                                         \
        (float *dgate, float *dup, const float *dy, const float *gate, const float *up, int n))    \
    /* one key against n queries; m, inv_l: maximum and 1 / sum of each query's softmax; d: its    \
     * sum of dO*O.  w = exp(s*scale - m) * inv_l; p (bf16) = w; ds (bf16) = w * (dp - d) *        \
     * scale */                                                                                    \
    X(void, attn_back,                                                                             \
        (uint16_t * p, uint16_t * ds, const float *s, const float *dp, const float *m,             \
            const float *inv_l, const float *d, float scale, int n))                               \
    /* fp32 helpers of the attention gradient; sdot is a 16-lane sum of a[i]*b[i] */               \
    X(float, sdot, (const float *a, const float *b, int n))                                        \
    X(void, saxpy, (float *y, float a, const float *x, int n)) /* y += a * x, mul then add */      \
    X(void, scale, (float *y, float a, int n))                                                     \
    /* dz (bf16 [n], zero up to pad32(n)) = g * ((v == token) - exp(z/t - lse)) / t: gradient of   \
     * g * log p(token).  Also usable with g = 0 (all +0). */                                      \
    X(void, logprob_back,                                                                          \
        (uint16_t * dz, const float *z, int n, float t, float lse, int32_t token, float g))        \
    /* -(sum p log p) of softmax(z/t), from lse */                                                 \
    X(float, entropy, (const float *z, int n, float t, float lse))                                 \
    /* -- optimiser, flat ranges -- */                                                             \
    X(double, sum_squares, (const float *x, size_t n)) /* in double, ascending in 16 lanes */      \
    X(void, adamw, (float *w, float *m, float *v, const float *g, size_t n, const pl_adamw *o))

#define PL_OPS_MEMBER(ret, name, args) ret(*name) args;
typedef struct pl_ops {
    const char *name; /* "ref", "avx2", "avx512", "amx" */
    PL_OPS(PL_OPS_MEMBER)
} pl_ops;

#endif
