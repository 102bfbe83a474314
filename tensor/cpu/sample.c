/* tensor/cpu/sample.c - log-sum-exp, the keyed Gumbel race and its exact shortcut (NUMERICS 2, 3),
 * compiled once an ISA.
 *
 * The shortcut.  Token v scores s_v = a_v + g_v with a_v = z_v / T in fp32 and g_v = -log(-log u).
 * Since -log u >= 1 - u, g_v <= -log(1 - u), and 1 - u > t := (~hi >> 8) * 2^-24 for the first word
 * hi of the noise.  With m = max a and any score S that is reached, s_v >= S needs
 *     1 - u <= exp(a_v - S) = X := exp(a_v - m) * exp(m - S),
 * so v may be skipped if t > X.  Computed is y := e_v * c with e_v = exp_f32(a_v - m) and
 * c = exp(m - S') * (1 + 2^-10), where S' is S less its rounding errors.  Why no winner is skipped:
 *   - t is 0 (always kept) or at least 2^-24.  If X < 2^-24, skipping is right, whatever y is: an
 *     e_v or y that underflows to +0 does no harm.
 *   - If X >= 2^-24, then a_v - m > -21 (c < 38 because g >= -3.61 for the argmax of z), so the
 *     difference is rounded by less than 2^-20, exp_f32 and the product by 2^-22 relative: the
 *     2^-10 covers all of it, and the 1e-14 of g in double.
 *   - Huge |a|: a score in double is off by |s| * 2^-53.  S' = S - (|S| + |m|) * 2^-50 allows for
 *     it; then distinct a_v differ by far more than that (fp32 against double).
 * The race starts with the argmax of z, since most rows are won near it. */
#include "tensor/cpu/cpu.h"
#include "tensor/cpu/math.h"
#include "tensor/cpu/philox.h"

#include "core/rng.h"

#include <assert.h>

enum {
    CHUNK = 256,     /* tokens looked at together: a multiple of 16 (lanes) and of 4 (Philox) */
    MAX_CHUNK = 1024 /* tokens whose maximum is taken together */
};

/* What is known of a row of logits before any noise. */
typedef struct row {
    const float *z;
    int n;
    float t;    /* what z is divided by */
    float max;  /* of z/t */
    int argmax; /* of z, the lowest id */
} row;

/* Zeros of both signs compare equal, as do denormals under DAZ: adding +0 makes them one key. */
static int32_t max_key(const float *z, int n, int32_t *lowest)
{
    int32_t high = INT32_MIN, low = INT32_MAX;
    for (int i = 0; i < n; i++) {
        const int32_t k = f32_key(z[i] + 0.0f);
        high = k > high ? k : high;
        low = k < low ? k : low;
    }
    *lowest = low < *lowest ? low : *lowest;
    return high;
}

/* Fill *r.  Returns 0 if there is a NaN or +inf, or if the maximum of z/t is not finite (all -inf,
 * or t so small that z/t overflows). */
static int measure(row *r, const float *z, int n, float t)
{
    int32_t high = INT32_MIN, low = INT32_MAX;
    int begin = 0;
    assert(n >= 1 && t > 0);

    for (int b = 0; b < n; b += MAX_CHUNK) {
        const int32_t k = max_key(z + b, n - b < MAX_CHUNK ? n - b : MAX_CHUNK, &low);
        if (k > high) {
            high = k;
            begin = b;
        }
    }
    *r = (row){.z = z, .n = n, .t = t, .max = f32_of_key(high) / t, .argmax = begin};
    while (r->argmax < n - 1 && f32_key(z[r->argmax] + 0.0f) != high)
        r->argmax++;
    const int32_t max = f32_key(r->max);
    return high < PL_KEY_PLUS_INF && low >= PL_KEY_MINUS_INF && max < PL_KEY_PLUS_INF &&
           max > PL_KEY_MINUS_INF;
}

/* e[i] = exp(z[begin + i] / t - base).  z / 1 is z, but for a denormal, which the difference
 * takes for 0 as well: not dividing at T = 1 saves a seventh of the pass. */
static void exp_chunk(float *e, const row *r, int begin, int n, float base)
{
    const float *z = r->z + begin;
    const float t = r->t;
    for (int i = 0; t == 1.0f && i < n; i++)
        e[i] = exp_f32(z[i] - base);
    for (int i = 0; t != 1.0f && i < n; i++)
        e[i] = exp_f32(z[i] / t - base);
}

/* log-sum-exp; e (may be NULL) as in the op. */
static float log_sum_exp(const row *r, float *e)
{
    float lane[16] = {0};
    float buffer[CHUNK];

    for (int b = 0; b < r->n; b += CHUNK) {
        const int n = r->n - b < CHUNK ? r->n - b : CHUNK;
        float *out = e ? e + b : buffer;
        exp_chunk(out, r, b, n, r->max);
        PL_LANES_ADD(lane, n, out[i_]);
    }
    return r->max + (float)pl_log_d((double)lanes_sum(lane));
}

void PL_FN(logsumexp)(const float *z, int n, float t, float *e, float *max, float *lse)
{
    row r;
    if (measure(&r, z, n, t)) {
        *max = r.max;
        *lse = log_sum_exp(&r, e);
        return;
    }
    *max = *lse = PL_F32_NAN;
    for (int i = 0; e && i < n; i++)
        e[i] = PL_F32_NAN;
}

/* hi[i] = first noise word of token begin + i, for a whole chunk; begin is a multiple of 4. */
static void words_dense(uint32_t hi[CHUNK], uint32_t begin, const pl_draw *d)
{
    enum { N = CHUNK / 4 };
    uint64_t block[N], word[4 * N], pair[2 * N];

    for (uint32_t i = 0; i < N; i++)
        block[i] = begin / 4 + i;
    philox_many(word, N, block, N, d);
    for (int i = 0; i < N; i++) {
        pair[2 * i] = (word[i] & UINT32_MAX) | word[N + i] << 32;
        pair[2 * i + 1] = (word[2 * N + i] & UINT32_MAX) | word[3 * N + i] << 32;
    }
    for (int i = 0; i < 2 * N; i++) {
        hi[2 * i] = (uint32_t)pair[i];
        hi[2 * i + 1] = (uint32_t)(pair[i] >> 32);
    }
}

/* hi[i] = first noise word of token map[i], for n <= CHUNK. */
static void words_mapped(uint32_t hi[CHUNK], const int32_t *map, int n, const pl_draw *d)
{
    uint64_t block[CHUNK] = {0}, word[4 * CHUNK];

    for (int i = 0; i < n; i++)
        block[i] = (uint32_t)map[i] / 4;
    philox_many(word, CHUNK, block, (n + 7) & ~7, d);
    for (int i = 0; i < n; i++)
        hi[i] = (uint32_t)word[map[i] % 4 * CHUNK + i];
}

/* The c of the shortcut, from the base m and a score that is reached. */
static float skip_factor(float base, double score)
{
    const double m = (double)base;
    const double rounding = (__builtin_fabs(score) + __builtin_fabs(m)) * 0x1p-50;
    const double x = m - score + rounding;
    return (float)(pl_exp_d(x < 60.0 ? x : 60.0) * (1.0 + 0x1p-10));
}

/* 1 unless the shortcut rules the token out; a NaN (0 times infinity) keeps it. */
static inline int survives(uint32_t hi, float e, float c)
{
    return !((float)(int32_t)(~hi >> 8) * 0x1p-24f > e * c);
}

static int any_survivor(const uint32_t *hi, const float *e, float c, int n)
{
    int any = 0;
    for (int i = 0; i < n; i++)
        any |= survives(hi[i], e[i], c);
    return any;
}

static double noisy_score(const row *r, int i, int32_t id, const pl_draw *d)
{
    return (double)(r->z[i] / r->t) +
           pl_noise_gumbel(d->key, d->uid, d->position, d->purpose, (uint32_t)id);
}

/* The race over tokens with e >= 0 (e < 0: filtered out). */
static int32_t race(const row *r, const float *e, const pl_draw *d, int *n_exact)
{
    int32_t best = r->argmax;
    double score = noisy_score(r, best, best, d);
    float c = skip_factor(r->max, score);
    uint32_t hi[CHUNK];
    *n_exact = 1;

    for (int b = 0; b < r->n; b += CHUNK) {
        const int n = r->n - b < CHUNK ? r->n - b : CHUNK;
        words_dense(hi, (uint32_t)b, d);
        if (!any_survivor(hi, e + b, c, n))
            continue;
        for (int i = 0; i < n; i++) {
            if (b + i == r->argmax || !survives(hi[i], e[b + i], c))
                continue;
            const double s = noisy_score(r, b + i, b + i, d);
            *n_exact += 1;
            if (s > score || (s == score && b + i < best)) {
                best = b + i;
                score = s;
                c = skip_factor(r->max, score);
            }
        }
    }
    return best;
}

/* ---- filters: prefixes of the total order (value, then lower id) ---- */

static inline uint32_t order_key(float z)
{
    return (uint32_t)f32_key(z + 0.0f) ^ 0x80000000u;
}

/* Mass in units of 2^-40 of the most likely token: integers, so that sums have no order. */
static inline uint64_t mass(float e)
{
    return (uint64_t)(e * 0x1p40f);
}

/* Remove (e = -1) what comes after the shortest prefix whose weights reach target, among the tokens
 * with e >= 0.  A token's weight is 1, or its mass.  1 <= target <= the sum of the weights.  Three
 * rounds of counting narrow the border's key digit by digit; ids decide among its equals. */
static void keep_prefix(const float *z, float *e, int n, uint64_t target, int by_mass)
{
    static const int shifts[3] = {21, 10, 0};
    uint64_t bins[2048];
    uint32_t key = 0, fixed = 0; /* the border's key, and which of its bits are known */

    for (int round = 0; round < 3; round++) {
        const int shift = shifts[round];
        const uint32_t digits = round < 2 ? 2047 : 1023;
        memset(bins, 0, sizeof bins);
        for (int i = 0; i < n; i++) {
            const uint32_t k = order_key(z[i]);
            if (e[i] >= 0 && (k & fixed) == key)
                bins[k >> shift & digits] += by_mass ? mass(e[i]) : 1;
        }
        uint32_t b = digits;
        for (; b > 0 && bins[b] < target; b--)
            target -= bins[b];
        key |= b << shift;
        fixed |= digits << shift;
    }
    for (int i = 0; i < n; i++) {
        const uint32_t k = order_key(z[i]);
        if (e[i] < 0 || k > key)
            continue;
        if (k == key && target > 0) {
            const uint64_t w = by_mass ? mass(e[i]) : 1;
            target -= w < target ? w : target;
        } else {
            e[i] = -1.0f;
        }
    }
}

/* top-k, then top-p of what is left, then min-p; the argmax of z always stays. */
static void filter(const row *r, float *e, const pl_draw *d)
{
    if (d->top_k > 0 && d->top_k < r->n)
        keep_prefix(r->z, e, r->n, (uint64_t)d->top_k, 0);
    if (d->top_p < 1) {
        uint64_t total = 0;
        for (int i = 0; i < r->n; i++)
            total += e[i] >= 0 ? mass(e[i]) : 0;
        const double share = (double)d->top_p * (double)total;
        uint64_t target = share >= 1 ? (uint64_t)share : 1;
        target += (double)target < share;
        keep_prefix(r->z, e, r->n, target < total ? target : total, 1);
    }
    if (d->min_p > 0) {
        const float least = d->min_p < 1 ? d->min_p : 1.0f;
        for (int i = 0; i < r->n; i++)
            e[i] = e[i] < least ? -1.0f : e[i];
    }
}

void PL_FN(draw)(const float *z, int n, const pl_draw *d, float *e, pl_drawn *out)
{
    const int greedy = !(d->temperature > 0);
    row r;

    if (!measure(&r, z, n, greedy ? 1.0f : d->temperature)) {
        *out = (pl_drawn){-1, PL_F32_NAN, PL_F32_NAN, PL_F32_NAN, 0};
        return;
    }
    out->max = r.max;
    out->lse = log_sum_exp(&r, e);
    out->token = r.argmax;
    out->n_exact = 0;
    if (!greedy) {
        filter(&r, e, d);
        out->token = race(&r, e, d, &out->n_exact);
    }
    out->logprob = z[out->token] / r.t - out->lse;
}

/* ---- the k best ---- */

typedef struct best_list {
    int32_t *ids; /* best first */
    double *scores;
    int n, k;
} best_list;

/* Insert unless the list is full of better ones, or holds the id already. */
static void offer(best_list *l, int32_t id, double score)
{
    int at = l->n;
    for (int i = 0; i < l->n; i++)
        if (l->ids[i] == id)
            return;
    while (at > 0 &&
           (score > l->scores[at - 1] || (score == l->scores[at - 1] && id < l->ids[at - 1])))
        at--;
    if (at == l->k)
        return;
    if (l->n < l->k)
        l->n++;
    for (int i = l->n - 1; i > at; i--) {
        l->ids[i] = l->ids[i - 1];
        l->scores[i] = l->scores[i - 1];
    }
    l->ids[at] = id;
    l->scores[at] = score;
}

typedef struct topk {
    const row *r;
    const int32_t *map;
    const pl_draw *d;
    int greedy;
    best_list list;
} topk;

/* Offer number i with its exact score; a token of probability 0 is no candidate. */
static void offer_exact(topk *t, int i)
{
    const int32_t id = t->map ? t->map[i] : i;
    const float a = t->r->z[i] / t->r->t;
    if (f32_key(a) <= PL_KEY_MINUS_INF)
        return;
    offer(&t->list, id, t->greedy ? (double)a : noisy_score(t->r, i, id, t->d));
}

/* Offer the largest logit of each of up to 64 equal parts, so that the k-th best is high from the
 * start, wherever the large logits stand. */
static void offer_seeds(topk *t)
{
    const row *r = t->r;
    const int part = r->n < 64 ? 1 : (r->n + 63) / 64;
    for (int b = 0; b < r->n; b += part) {
        const int n = r->n - b < part ? r->n - b : part;
        int32_t low = INT32_MAX;
        const int32_t high = max_key(r->z + b, n, &low);
        int i = b;
        while (i < b + n - 1 && f32_key(r->z[i] + 0.0f) != high)
            i++;
        offer_exact(t, i);
    }
}

/* Without noise: offer what reaches the k-th best. */
static void offer_chunk_greedy(topk *t, int begin, int n)
{
    const best_list *l = &t->list;
    const float *z = t->r->z + begin;
    const float last = l->n == l->k ? (float)l->scores[l->k - 1] : -PL_F32_INF;
    int any = 0;

    for (int i = 0; i < n; i++)
        any |= !(z[i] < last);
    for (int i = 0; any && i < n; i++)
        if (!(z[i] < last))
            offer_exact(t, begin + i);
}

/* With noise: the shortcut with the k-th best for S.  Its base m is near S, not the maximum: the
 * k-th best may be so far below it that every e_v there underflows.  (|m - S| <= 36.74: m is the
 * float next to a_v + g_v, so no further from it than a_v.)  Until the list is full c is infinite
 * and all survive. */
static void offer_chunk(topk *t, int begin, int n)
{
    float e[CHUNK];
    uint32_t hi[CHUNK];
    const best_list *l = &t->list;
    const int full = l->n == l->k;
    const float base = full ? (float)l->scores[l->k - 1] : t->r->max;
    float c = full ? skip_factor(base, l->scores[l->k - 1]) : PL_F32_INF;

    exp_chunk(e, t->r, begin, n, base);
    if (t->map)
        words_mapped(hi, t->map + begin, n, t->d);
    else
        words_dense(hi, (uint32_t)begin, t->d);
    if (!any_survivor(hi, e, c, n))
        return;
    for (int i = 0; i < n; i++) {
        if (!survives(hi[i], e[i], c))
            continue;
        offer_exact(t, begin + i);
        if (full)
            c = skip_factor(base, l->scores[l->k - 1]);
    }
}

int PL_FN(draw_topk)(const float *z, int n, const int32_t *map, const pl_draw *d, int k,
    int32_t *ids, double *scores)
{
    row r;
    topk t = {&r, map, d, !(d->temperature > 0), {ids, scores, 0, k}};

    if (k < 1 || !measure(&r, z, n, t.greedy ? 1.0f : d->temperature))
        return 0;
    offer_seeds(&t);
    for (int b = 0; b < n; b += CHUNK) {
        if (t.greedy)
            offer_chunk_greedy(&t, b, n - b < CHUNK ? n - b : CHUNK);
        else
            offer_chunk(&t, b, n - b < CHUNK ? n - b : CHUNK);
    }
    return t.list.n;
}
