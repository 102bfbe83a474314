/* bench/onednn_gemms.c - oneDNN's time for the products of one pass, asked for line by line.
 *
 *   onednn_gemms THREADS forward|train LAYERS MxNxK ... head MxNxK ...
 *
 * The shapes before "head" are done LAYERS times, each with weights of its own in the order of the
 * layers (so that they come cold from memory, as in a model), then those of the head.  A product is
 * y[M, N] = x[M, K] * w[K, N], bf16 in, fp32 out, weights packed the way oneDNN likes best;
 * "train" adds dX = dY * w^T and dW = x^T * dY, in the order of a backward pass.  Each line read
 * from stdin makes one round; its seconds are printed as a line.
 *
 * A program of its own, so that paceline itself never links the library. */
#include <dnnl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { SHAPES_MAX = 16, PRODUCTS = 3 };

typedef struct product {
    dnnl_primitive_desc_t desc;
    dnnl_primitive_t prim;
    dnnl_memory_desc_t src, weights, dst, scratchpad;
} product;

typedef struct shape {
    long m, n, k;
    product p[PRODUCTS]; /* forward, dX, dW */
} shape;

typedef struct gemms {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    shape shapes[SHAPES_MAX];
    int n_layer_shapes, n_shapes, n_layers, n_products;
    unsigned char *
        *weights; /* [layer shapes of every layer, head shapes][2] packed for y, for dX */
    unsigned char *x, *y, *dw, *scratch; /* shared: the largest of any product */
    size_t x_bytes, y_bytes, dw_bytes, scratch_bytes;
} gemms;

static void check(dnnl_status_t st, const char *what)
{
    if (st == dnnl_success)
        return;
    fprintf(stderr, "onednn_gemms: %s failed with status %d of oneDNN\n", what, (int)st);
    exit(70);
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Huge pages, and pages that are really there. */
static unsigned char *take(size_t n_bytes)
{
    const size_t size = (n_bytes + 64 + (2u << 20) - 1) & ~(size_t)((2u << 20) - 1);
    unsigned char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED) {
        fprintf(stderr, "onednn_gemms: no memory for %zu bytes\n", size);
        exit(70);
    }
    madvise(p, size, MADV_HUGEPAGE);
    memset(p, 0, size);
    return p;
}

/* Small bf16 numbers, different from each other: neither zeros nor denormals. */
static void fill(unsigned char *p, size_t n_bytes)
{
    unsigned short *v = (unsigned short *)(void *)p;
    unsigned state = 12345;

    for (size_t i = 0; i < n_bytes / 2; i++) {
        state = state * 1664525u + 1013904223u;
        v[i] = (unsigned short)(0x3c00u | (state >> 16 & 0x80ffu));
    }
}

/* y[m, n] = a[m, k] * b[k, n]; a and b may be given as transposed views of row-major matrices;
 * any_weights lets oneDNN choose the layout of b. */
static void make_product(gemms *g, product *p, long m, long n, long k, int transposed_a,
    int transposed_b, int any_weights)
{
    const dnnl_dims_t a_dims = {m, k}, b_dims = {k, n}, y_dims = {m, n};
    dnnl_memory_desc_t a, b, y;
    dnnl_matmul_desc_t d;
    dnnl_primitive_attr_t attr;

    check(dnnl_memory_desc_init_by_tag(&a, 2, a_dims, dnnl_bf16, transposed_a ? dnnl_ba : dnnl_ab),
        "descriptor");
    check(dnnl_memory_desc_init_by_tag(&b, 2, b_dims, dnnl_bf16,
              any_weights    ? dnnl_format_tag_any
              : transposed_b ? dnnl_ba
                             : dnnl_ab),
        "descriptor");
    check(dnnl_memory_desc_init_by_tag(&y, 2, y_dims, dnnl_f32, dnnl_ab), "descriptor");
    check(dnnl_matmul_desc_init(&d, &a, &b, NULL, &y), "matmul descriptor");
    check(dnnl_primitive_attr_create(&attr), "attributes");
    check(dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user), "attributes");
    check(dnnl_primitive_desc_create(&p->desc, &d, attr, g->engine, NULL), "matmul");
    dnnl_primitive_attr_destroy(attr);
    check(dnnl_primitive_create(&p->prim, p->desc), "matmul");
    p->src = *dnnl_primitive_desc_query_md(p->desc, dnnl_query_src_md, 0);
    p->weights = *dnnl_primitive_desc_query_md(p->desc, dnnl_query_weights_md, 0);
    p->dst = *dnnl_primitive_desc_query_md(p->desc, dnnl_query_dst_md, 0);
    p->scratchpad = *dnnl_primitive_desc_query_md(p->desc, dnnl_query_scratchpad_md, 0);
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static void make_shape(gemms *g, shape *s)
{
    make_product(g, &s->p[0], s->m, s->n, s->k, 0, 0, 1);
    if (g->n_products > 1) {
        make_product(g, &s->p[1], s->m, s->k, s->n, 0, 1, 1);
        make_product(g, &s->p[2], s->k, s->n, s->m, 1, 0, 0);
    }
    for (int i = 0; i < g->n_products; i++)
        g->scratch_bytes = larger(g->scratch_bytes, dnnl_memory_desc_get_size(&s->p[i].scratchpad));
    g->x_bytes = larger(g->x_bytes, (size_t)s->m * (size_t)(s->k > s->n ? s->k : s->n) * 2);
    g->y_bytes = larger(g->y_bytes, (size_t)s->m * (size_t)(s->k > s->n ? s->k : s->n) * 4);
    g->dw_bytes = larger(g->dw_bytes, (size_t)s->n * (size_t)s->k * 4);
}

static int n_weights(const gemms *g)
{
    return g->n_layers * g->n_layer_shapes + (g->n_shapes - g->n_layer_shapes);
}

static const shape *shape_of(const gemms *g, int i)
{
    const int n = g->n_layers * g->n_layer_shapes;
    return &g->shapes[i < n ? i % g->n_layer_shapes : g->n_layer_shapes + (i - n)];
}

static void take_all(gemms *g)
{
    const int packings = g->n_products > 1 ? 2 : 1;

    g->weights = calloc((size_t)n_weights(g) * 2, sizeof *g->weights);
    if (!g->weights)
        check(dnnl_out_of_memory, "calloc");
    for (int j = 0; j < packings; j++)
        for (int i = 0; i < n_weights(g); i++) {
            const size_t n = dnnl_memory_desc_get_size(&shape_of(g, i)->p[j].weights);
            g->weights[2 * i + j] = take(n);
            fill(g->weights[2 * i + j], n);
        }
    g->x = take(g->x_bytes);
    fill(g->x, g->x_bytes);
    g->y = take(g->y_bytes);
    g->dw = take(g->dw_bytes);
    g->scratch = take(g->scratch_bytes);
}

static dnnl_memory_t memory(const gemms *g, const dnnl_memory_desc_t *d, void *data)
{
    dnnl_memory_t m;
    check(dnnl_memory_create(&m, d, g->engine, data), "memory");
    return m;
}

static void run(const gemms *g, const product *p, void *src, void *weights, void *dst)
{
    const dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC, memory(g, &p->src, src)},
        {DNNL_ARG_WEIGHTS, memory(g, &p->weights, weights)},
        {DNNL_ARG_DST, memory(g, &p->dst, dst)},
        {DNNL_ARG_SCRATCHPAD, memory(g, &p->scratchpad, g->scratch)},
    };

    check(dnnl_primitive_execute(p->prim, g->stream, 4, args), "execute");
    check(dnnl_stream_wait(g->stream), "wait");
    for (int i = 0; i < 4; i++)
        dnnl_memory_destroy(args[i].memory);
}

static double one_round(const gemms *g)
{
    const double t0 = now_s();

    for (int i = 0; i < n_weights(g); i++)
        run(g, &shape_of(g, i)->p[0], g->x, g->weights[2 * i], g->y);
    for (int i = n_weights(g) - 1; g->n_products > 1 && i >= 0; i--) {
        run(g, &shape_of(g, i)->p[1], g->x, g->weights[2 * i + 1], g->y);
        /* x serves as x and as dY: the values do not matter to the time */
        run(g, &shape_of(g, i)->p[2], g->x, g->x, g->dw);
    }
    return now_s() - t0;
}

static int usage(void)
{
    fprintf(stderr, "usage: onednn_gemms THREADS forward|train LAYERS MxNxK ... head MxNxK ...\n");
    return 64;
}

static int parse(gemms *g, int argc, char **argv)
{
    if (argc < 5 || atoi(argv[1]) < 1 || atoi(argv[3]) < 1)
        return 0;
    omp_set_num_threads(atoi(argv[1]));
    g->n_products = strcmp(argv[2], "train") == 0 ? PRODUCTS : 1;
    g->n_layers = atoi(argv[3]);
    g->n_layer_shapes = -1;
    for (int i = 4; i < argc; i++) {
        shape *s = &g->shapes[g->n_shapes];
        if (strcmp(argv[i], "head") == 0) {
            g->n_layer_shapes = g->n_shapes;
            continue;
        }
        if (g->n_shapes == SHAPES_MAX || sscanf(argv[i], "%ldx%ldx%ld", &s->m, &s->n, &s->k) != 3 ||
            s->m < 1 || s->n < 1 || s->k < 1)
            return 0;
        g->n_shapes++;
    }
    return g->n_layer_shapes > 0;
}

int main(int argc, char **argv)
{
    gemms g = {0};
    char line[64];

    if (!parse(&g, argc, argv))
        return usage();
    check(dnnl_engine_create(&g.engine, dnnl_cpu, 0), "engine");
    check(dnnl_stream_create(&g.stream, g.engine, dnnl_stream_default_flags), "stream");
    for (int i = 0; i < g.n_shapes; i++)
        make_shape(&g, &g.shapes[i]);
    take_all(&g);
    while (fgets(line, sizeof line, stdin)) {
        printf("%.9f\n", one_round(&g));
        fflush(stdout);
    }
    free(g.weights);
    return 0;
}
