/* tests/model/reference.c - forward and reverse mode of a Llama in double, one sequence at a time.
 */
#include "tests/model/reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Activations of one layer, [n, ..]. */
typedef struct layer {
    double *x, *inv1, *xn, *q, *k, *v, *p, *ao, *mid, *inv2, *xn2, *gate, *up, *hid;
} layer;

typedef struct tape {
    const pl_arch *a;
    const pl_param_table *t;
    const double *w;
    double *g; /* gradients or NULL */
    int n;     /* rows */
    int c, f, v, h, hkv, d;
    layer *layers;
    double *cosine, *sine; /* [n, d/2] */
} tape;

static double *zeros(size_t n)
{
    double *x = calloc(n > 0 ? n : 1, sizeof *x);
    if (!x)
        abort();
    return x;
}

static const double *weight(const tape *m, pl_param_kind kind, int l)
{
    return m->w + pl_param_find(m->t, kind, l)->offset;
}

static double *grad(const tape *m, pl_param_kind kind, int l)
{
    return m->g + pl_param_find(m->t, kind, l)->offset;
}

/* y[r, :] = w x[r, :], w [n_out, n_in] */
static void linear(double *y, const double *x, const double *w, int rows, int n_out, int n_in)
{
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < n_out; o++) {
            double s = 0;
            for (int i = 0; i < n_in; i++)
                s += x[r * n_in + i] * w[o * n_in + i];
            y[r * n_out + o] = s;
        }
}

static void linear_back(double *dx, double *dw, const double *dy, const double *x, const double *w,
    int rows, int n_out, int n_in)
{
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < n_out; o++) {
            const double g = dy[r * n_out + o];
            for (int i = 0; i < n_in; i++) {
                dx[r * n_in + i] += g * w[o * n_in + i];
                dw[o * n_in + i] += g * x[r * n_in + i];
            }
        }
}

static void norm(const tape *m, double *y, double *inv, const double *x, const double *w)
{
    for (int r = 0; r < m->n; r++) {
        double s = 0;
        for (int i = 0; i < m->c; i++)
            s += x[r * m->c + i] * x[r * m->c + i];
        inv[r] = 1 / sqrt(s / m->c + (double)m->a->rms_eps);
        for (int i = 0; i < m->c; i++)
            y[r * m->c + i] = x[r * m->c + i] * inv[r] * w[i];
    }
}

static void norm_back(const tape *m, double *dx, double *dw, const double *dy, const double *x,
    const double *inv, const double *w)
{
    for (int r = 0; r < m->n; r++) {
        const double *xr = x + r * m->c, *dyr = dy + r * m->c;
        double s = 0;
        for (int i = 0; i < m->c; i++)
            s += dyr[i] * w[i] * xr[i];
        for (int i = 0; i < m->c; i++) {
            dx[r * m->c + i] += inv[r] * (dyr[i] * w[i] - xr[i] * s * inv[r] * inv[r] / m->c);
            dw[i] += dyr[i] * xr[i] * inv[r];
        }
    }
}

static double frequency(const pl_arch *a, int i)
{
    const double pi = acos(-1.0);
    const double f = pow(a->rope_theta, -2.0 * i / a->head_dim);
    if (a->rope_type == PL_ROPE_DEFAULT)
        return f;
    const double turns = a->rope_original_ctx * f / (2 * pi);
    if (turns < a->rope_low_freq_factor)
        return f / a->rope_factor;
    if (turns > a->rope_high_freq_factor)
        return f;
    const double s =
        (turns - a->rope_low_freq_factor) / (a->rope_high_freq_factor - a->rope_low_freq_factor);
    return (1 - s) * f / a->rope_factor + s * f;
}

/* Rotate heads in place; direction -1 undoes it. */
static void rotate(const tape *m, double *x, int heads, double direction)
{
    const int half = m->d / 2;
    for (int r = 0; r < m->n; r++)
        for (int h = 0; h < heads; h++)
            for (int i = 0; i < half; i++) {
                double *a = x + ((size_t)r * (size_t)heads + (size_t)h) * (size_t)m->d + i;
                const double c = m->cosine[r * half + i], s = direction * m->sine[r * half + i];
                const double a0 = a[0], a1 = a[half];
                a[0] = a0 * c - a1 * s;
                a[half] = a1 * c + a0 * s;
            }
}

static double *p_row(const tape *m, const layer *l, int h, int i)
{
    return l->p + ((size_t)h * (size_t)m->n + (size_t)i) * (size_t)m->n;
}

static void attend(const tape *m, layer *l)
{
    const double scale = 1 / sqrt(m->d);
    for (int h = 0; h < m->h; h++)
        for (int i = 0; i < m->n; i++) {
            double *p = p_row(m, l, h, i), sum = 0, max = -INFINITY;
            const int kv = h / (m->h / m->hkv);
            for (int j = 0; j <= i; j++) {
                p[j] = 0;
                for (int e = 0; e < m->d; e++)
                    p[j] += l->q[(i * m->h + h) * m->d + e] * l->k[(j * m->hkv + kv) * m->d + e];
                p[j] *= scale;
                max = p[j] > max ? p[j] : max;
            }
            for (int j = 0; j <= i; j++)
                sum += p[j] = exp(p[j] - max);
            double *o = l->ao + (i * m->h + h) * m->d;
            memset(o, 0, (size_t)m->d * sizeof *o);
            for (int j = 0; j <= i; j++) {
                p[j] /= sum;
                for (int e = 0; e < m->d; e++)
                    o[e] += p[j] * l->v[(j * m->hkv + kv) * m->d + e];
            }
        }
}

static void attend_back(
    const tape *m, const layer *l, const double *dao, double *dq, double *dk, double *dv)
{
    const double scale = 1 / sqrt(m->d);
    double *dp = zeros((size_t)m->n);
    for (int h = 0; h < m->h; h++)
        for (int i = 0; i < m->n; i++) {
            const double *p = p_row(m, l, h, i), *d_o = dao + (i * m->h + h) * m->d;
            const int kv = h / (m->h / m->hkv);
            double sum = 0;
            for (int j = 0; j <= i; j++) {
                dp[j] = 0;
                for (int e = 0; e < m->d; e++) {
                    dp[j] += d_o[e] * l->v[(j * m->hkv + kv) * m->d + e];
                    dv[(j * m->hkv + kv) * m->d + e] += p[j] * d_o[e];
                }
                sum += p[j] * dp[j];
            }
            for (int j = 0; j <= i; j++) {
                const double ds = p[j] * (dp[j] - sum) * scale;
                for (int e = 0; e < m->d; e++) {
                    dq[(i * m->h + h) * m->d + e] += ds * l->k[(j * m->hkv + kv) * m->d + e];
                    dk[(j * m->hkv + kv) * m->d + e] += ds * l->q[(i * m->h + h) * m->d + e];
                }
            }
        }
    free(dp);
}

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static void layer_forward(const tape *m, int i, double *x_out)
{
    layer *l = &m->layers[i];
    const int qn = m->h * m->d, kn = m->hkv * m->d;

    norm(m, l->xn, l->inv1, l->x, weight(m, PL_P_ATTN_NORM, i));
    linear(l->q, l->xn, weight(m, PL_P_Q, i), m->n, qn, m->c);
    linear(l->k, l->xn, weight(m, PL_P_K, i), m->n, kn, m->c);
    linear(l->v, l->xn, weight(m, PL_P_V, i), m->n, kn, m->c);
    rotate(m, l->q, m->h, 1);
    rotate(m, l->k, m->hkv, 1);
    attend(m, l);
    linear(l->mid, l->ao, weight(m, PL_P_O, i), m->n, m->c, qn);
    for (int j = 0; j < m->n * m->c; j++)
        l->mid[j] += l->x[j];
    norm(m, l->xn2, l->inv2, l->mid, weight(m, PL_P_FFN_NORM, i));
    linear(l->gate, l->xn2, weight(m, PL_P_GATE, i), m->n, m->f, m->c);
    linear(l->up, l->xn2, weight(m, PL_P_UP, i), m->n, m->f, m->c);
    for (int j = 0; j < m->n * m->f; j++)
        l->hid[j] = l->gate[j] * sigmoid(l->gate[j]) * l->up[j];
    linear(x_out, l->hid, weight(m, PL_P_DOWN, i), m->n, m->c, m->f);
    for (int j = 0; j < m->n * m->c; j++)
        x_out[j] += l->mid[j];
}

/* dx: of the layer's output, becomes that of its input. */
static void layer_back(const tape *m, int i, double *dx)
{
    const layer *l = &m->layers[i];
    const size_t n = (size_t)m->n, nc = n * (size_t)m->c, nf = n * (size_t)m->f;
    const int qn = m->h * m->d, kn = m->hkv * m->d;
    double *dhid = zeros(nf), *dgate = zeros(nf), *dup = zeros(nf), *dxn2 = zeros(nc);
    double *dao = zeros(n * (size_t)qn), *dq = zeros(n * (size_t)qn), *dxn = zeros(nc);
    double *dk = zeros(n * (size_t)kn), *dv = zeros(n * (size_t)kn);

    linear_back(dhid, grad(m, PL_P_DOWN, i), dx, l->hid, weight(m, PL_P_DOWN, i), m->n, m->c, m->f);
    for (size_t j = 0; j < nf; j++) {
        const double s = sigmoid(l->gate[j]);
        dup[j] = dhid[j] * l->gate[j] * s;
        dgate[j] = dhid[j] * l->up[j] * (s + l->gate[j] * s * (1 - s));
    }
    linear_back(
        dxn2, grad(m, PL_P_GATE, i), dgate, l->xn2, weight(m, PL_P_GATE, i), m->n, m->f, m->c);
    linear_back(dxn2, grad(m, PL_P_UP, i), dup, l->xn2, weight(m, PL_P_UP, i), m->n, m->f, m->c);
    norm_back(m, dx, grad(m, PL_P_FFN_NORM, i), dxn2, l->mid, l->inv2, weight(m, PL_P_FFN_NORM, i));
    linear_back(dao, grad(m, PL_P_O, i), dx, l->ao, weight(m, PL_P_O, i), m->n, m->c, qn);
    attend_back(m, l, dao, dq, dk, dv);
    rotate(m, dq, m->h, -1);
    rotate(m, dk, m->hkv, -1);
    linear_back(dxn, grad(m, PL_P_Q, i), dq, l->xn, weight(m, PL_P_Q, i), m->n, qn, m->c);
    linear_back(dxn, grad(m, PL_P_K, i), dk, l->xn, weight(m, PL_P_K, i), m->n, kn, m->c);
    linear_back(dxn, grad(m, PL_P_V, i), dv, l->xn, weight(m, PL_P_V, i), m->n, kn, m->c);
    norm_back(m, dx, grad(m, PL_P_ATTN_NORM, i), dxn, l->x, l->inv1, weight(m, PL_P_ATTN_NORM, i));
    double *all[] = {dhid, dgate, dup, dxn2, dao, dq, dxn, dk, dv};
    for (size_t j = 0; j < sizeof all / sizeof *all; j++)
        free(all[j]);
}

static void make_layer(const tape *m, layer *l)
{
    const size_t n = (size_t)m->n, c = (size_t)m->c, f = (size_t)m->f;
    const size_t q = (size_t)(m->h * m->d), k = (size_t)(m->hkv * m->d);
    *l = (layer){.x = zeros(n * c),
        .inv1 = zeros(n),
        .xn = zeros(n * c),
        .q = zeros(n * q),
        .k = zeros(n * k),
        .v = zeros(n * k),
        .p = zeros((size_t)m->h * n * n),
        .ao = zeros(n * q),
        .mid = zeros(n * c),
        .inv2 = zeros(n),
        .xn2 = zeros(n * c),
        .gate = zeros(n * f),
        .up = zeros(n * f),
        .hid = zeros(n * f)};
}

static void free_layer(layer *l)
{
    double *all[] = {l->x, l->inv1, l->xn, l->q, l->k, l->v, l->p, l->ao, l->mid, l->inv2, l->xn2,
        l->gate, l->up, l->hid};
    for (size_t j = 0; j < sizeof all / sizeof *all; j++)
        free(all[j]);
}

/* Loss of the rows of the head and, when asked, dx of the residual that leaves the last layer. */
static double head(const tape *m, const pl_train_seq *s, int i_seq, const double *x, double *dx,
    reference_weight_fn token_weight, double *logprobs)
{
    const pl_param_kind kind = m->a->tied ? PL_P_EMBED : PL_P_HEAD;
    double *xn = zeros((size_t)(m->n * m->c)), *inv = zeros((size_t)m->n);
    double *dxn = zeros((size_t)(m->n * m->c)), *z = zeros((size_t)m->v), loss = 0;

    norm(m, xn, inv, x, weight(m, PL_P_FINAL_NORM, -1));
    for (int i = s->n_prompt; i < s->n_tokens; i++) {
        const double *row = xn + (i - 1) * m->c;
        double sum = 0, max = -INFINITY;
        linear(z, row, weight(m, kind, -1), 1, m->v, m->c);
        for (int v = 0; v < m->v; v++) {
            z[v] /= (double)s->temperature;
            max = z[v] > max ? z[v] : max;
        }
        for (int v = 0; v < m->v; v++)
            sum += exp(z[v] - max);
        const double lse = max + log(sum), lp = z[s->tokens[i]] - lse;
        const double g = token_weight(i_seq, i);
        loss += g * lp;
        if (logprobs)
            logprobs[i] = lp;
        if (!m->g)
            continue;
        for (int v = 0; v < m->v; v++)
            z[v] = g * ((v == s->tokens[i]) - exp(z[v] - lse)) / (double)s->temperature;
        linear_back(
            dxn + (i - 1) * m->c, grad(m, kind, -1), z, row, weight(m, kind, -1), 1, m->v, m->c);
    }
    if (m->g)
        norm_back(m, dx, grad(m, PL_P_FINAL_NORM, -1), dxn, x, inv, weight(m, PL_P_FINAL_NORM, -1));
    free(xn);
    free(inv);
    free(dxn);
    free(z);
    return loss;
}

static double one_sequence(
    tape *m, const pl_train_seq *s, int i_seq, reference_weight_fn token_weight, double *logprobs)
{
    const int half = m->d / 2, n_layers = m->a->n_layers;

    m->n = s->n_tokens - 1;
    double *x = zeros((size_t)(m->n * m->c)), *dx = zeros((size_t)(m->n * m->c));
    m->cosine = zeros((size_t)(m->n * half));
    m->sine = zeros((size_t)(m->n * half));
    for (int i = 0; i < m->n * half; i++) {
        m->cosine[i] = cos(i / half * frequency(m->a, i % half));
        m->sine[i] = sin(i / half * frequency(m->a, i % half));
    }
    for (int l = 0; l < n_layers; l++)
        make_layer(m, &m->layers[l]);
    for (int r = 0; r < m->n; r++)
        memcpy((n_layers > 0 ? m->layers[0].x : x) + r * m->c,
            weight(m, PL_P_EMBED, -1) + (size_t)s->tokens[r] * (size_t)m->c,
            (size_t)m->c * sizeof *x);
    for (int l = 0; l < n_layers; l++)
        layer_forward(m, l, l + 1 < n_layers ? m->layers[l + 1].x : x);
    const double loss = head(m, s, i_seq, x, dx, token_weight, logprobs);
    for (int l = n_layers - 1; m->g && l >= 0; l--)
        layer_back(m, l, dx);
    for (int r = 0; m->g && r < m->n; r++)
        for (int i = 0; i < m->c; i++)
            grad(m, PL_P_EMBED, -1)[(size_t)s->tokens[r] * (size_t)m->c + (size_t)i] +=
                dx[r * m->c + i];
    for (int l = 0; l < n_layers; l++)
        free_layer(&m->layers[l]);
    free(m->cosine);
    free(m->sine);
    free(x);
    free(dx);
    return loss;
}

double reference_loss(const pl_arch *a, const pl_param_table *t, const double *w,
    const pl_train_seq *seqs, int n_seqs, reference_weight_fn token_weight, double *grads,
    double **logprobs)
{
    tape m = {.a = a,
        .t = t,
        .w = w,
        .g = grads,
        .c = a->n_embd,
        .f = a->n_ff,
        .v = a->n_vocab,
        .h = a->n_heads,
        .hkv = a->n_kv_heads,
        .d = a->head_dim};
    double loss = 0;

    m.layers = calloc((size_t)a->n_layers, sizeof *m.layers);
    if (!m.layers)
        abort();
    for (int i = 0; i < n_seqs; i++)
        if (seqs[i].n_tokens > 1)
            loss += one_sequence(&m, &seqs[i], i, token_weight, logprobs ? logprobs[i] : NULL);
    free(m.layers);
    return loss;
}
