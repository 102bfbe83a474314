/* tests/drafter/naive.h - the learned drafter in double precision, token by token. */
#ifndef TESTS_DRAFTER_NAIVE_H
#define TESTS_DRAFTER_NAIVE_H

#include "tests/drafter/bed.h"

#include <math.h>

enum { NAIVE_DEPTH = 8, KV = 24, MAX_KEYS = BED_TEXT + NAIVE_DEPTH };

typedef struct naive {
    const bed *b;
    const pl_eagle *e;
    int n; /* keys */
    double k[MAX_KEYS][KV], v[MAX_KEYS][KV];
} naive;

static inline double weight(const pl_eagle *e, eagle_param p, size_t i)
{
    const float w = eagle_weights(e, p)[i];
    return (double)(p < EAGLE_FC ? w : pl_bf16_to_f32(pl_f32_to_bf16(w)));
}

static inline void norm(const pl_eagle *e, eagle_param p, int row, const double *x, double *y)
{
    double sum = 0;
    for (int i = 0; i < BED_C; i++)
        sum += x[i] * x[i];
    for (int i = 0; i < BED_C; i++)
        y[i] = x[i] / sqrt(sum / BED_C + (double)e->eps) * weight(e, p, (size_t)(row * BED_C + i));
}

static inline void times(const pl_eagle *e, eagle_param p, const double *x, double *y)
{
    const eagle_matrix *m = &e->p[p];
    for (int r = 0; r < m->rows; r++) {
        y[r] = 0;
        for (int c = 0; c < m->cols; c++)
            y[r] += weight(e, p, (size_t)r * (size_t)m->cols + (size_t)c) * x[c];
    }
}

static inline void turn(double *x, int position, int d)
{
    for (int i = 0; i < d / 2; i++) {
        const double a = position / pow(10000.0, 2.0 * i / d);
        const double lo = x[i], hi = x[i + d / 2];
        x[i] = lo * cos(a) - hi * sin(a);
        x[i + d / 2] = hi * cos(a) + lo * sin(a);
    }
}

static inline void fuse(const naive *n, const text *x, int t, double *g)
{
    double f[BED_C], all[3 * BED_C];
    for (int i = 0; i < PL_FEATURE_LAYERS; i++) {
        for (int c = 0; c < BED_C; c++)
            f[c] = (double)pl_bf16_to_f32(x->features[t][i][c]);
        if (n->e->has_fc_norm)
            norm(n->e, EAGLE_FC_NORM, i, f, all + i * BED_C);
        else
            memcpy(all + i * BED_C, f, sizeof f);
    }
    times(n->e, EAGLE_FC, all, g);
}

/* The query of a state and a token; its key and value are added. */
static inline void project(naive *n, const double *g, int32_t token, int position, double *q)
{
    const eagle_dims *d = &n->e->dims;
    double emb[BED_C], u[2 * BED_C], all[96 + 2 * KV];

    for (int c = 0; c < BED_C; c++)
        emb[c] = (double)n->b->masters[token * BED_C + c];
    norm(n->e, EAGLE_NORM_EMB, 0, emb, u);
    norm(n->e, EAGLE_NORM_HID, 0, g, u + BED_C);
    times(n->e, EAGLE_QKV, u, all);
    for (int h = 0; h < d->h + d->hkv; h++)
        turn(all + h * d->d, position, d->d);
    memcpy(q, all, (size_t)d->ao * sizeof *q);
    memcpy(n->k[n->n], all + d->ao, sizeof n->k[0]);
    memcpy(n->v[n->n++], all + d->ao + KV, sizeof n->v[0]);
}

/* State g to the next one, seeing all keys; logits. */
static inline void step(const naive *n, const double *q, double *g, double *logits)
{
    const eagle_dims *d = &n->e->dims;
    double o[96], y[BED_C], x[BED_C], gate[64], up[64], w[MAX_KEYS];

    for (int h = 0; h < d->h; h++) {
        const int at = h / d->group * d->d;
        double sum = 0;
        for (int j = 0; j < n->n; j++) {
            double s = 0;
            for (int c = 0; c < d->d; c++)
                s += q[h * d->d + c] * n->k[j][at + c];
            w[j] = exp(s / sqrt(d->d));
            sum += w[j];
        }
        for (int c = 0; c < d->d; c++) {
            o[h * d->d + c] = 0;
            for (int j = 0; j < n->n; j++)
                o[h * d->d + c] += w[j] / sum * n->v[j][at + c];
        }
    }
    times(n->e, EAGLE_O, o, y);
    for (int c = 0; c < BED_C; c++)
        y[c] += g[c];
    norm(n->e, EAGLE_NORM_POST, 0, y, x);
    times(n->e, EAGLE_GATE, x, gate);
    times(n->e, EAGLE_UP, x, up);
    for (int f = 0; f < d->f; f++)
        gate[f] = gate[f] / (1 + exp(-gate[f])) * up[f];
    times(n->e, EAGLE_DOWN, gate, x);
    for (int c = 0; c < BED_C; c++)
        y[c] += x[c];
    norm(n->e, EAGLE_NORM_FINAL, 0, y, x);
    times(n->e, EAGLE_HEAD, x, logits);
    memcpy(g, n->e->norm_output ? x : y, sizeof x);
}

/* Logits of depth `depth` after position first .. p - 1 of the text, along the tokens of chain
 * (chain[0] is pending). */
static inline void naive_logits(
    naive *n, const text *x, int first, int p, const int32_t *chain, int depth, double *logits)
{
    double g[BED_C], q[96];

    n->n = 0;
    for (int t = first; t < p; t++) {
        fuse(n, x, t, g);
        project(n, g, t + 1 < p ? x->tokens[t + 1] : chain[0], t, q);
    }
    step(n, q, g, logits);
    for (int k = 1; k <= depth; k++) {
        project(n, g, chain[k], p - 1 + k, q);
        step(n, q, g, logits);
    }
}

/* Of logits, relative to how much they differ among themselves. */
static inline double distance(const double *want, const float *got, int n)
{
    double diff = 0, size = 0, mean = 0;
    for (int i = 0; i < n; i++)
        mean += want[i] / n;
    for (int i = 0; i < n; i++) {
        diff += (want[i] - (double)got[i]) * (want[i] - (double)got[i]);
        size += (want[i] - mean) * (want[i] - mean);
    }
    return sqrt(diff / size);
}

#endif
