/* Claims: any changed byte of a trace is found and placed; a trace that is cut anywhere is open or
 * torn, never complete, and shows whole steps only; a block of another run, twice, or in another
 * place is found.  How: a trace of small blocks, so that steps cross them, harmed in every possible
 * place.  make test: every bit of a few KiB, and some of 64 KiB; with PL_TEST_ROWS (make soak)
 * every byte of 64 KiB. */
#define _GNU_SOURCE
#include "tests/rollout/trace_bed.h"

#include <sys/mman.h>

#ifdef PL_TEST_ROWS
enum { STRIDE = 1, PATTERNS = 3, SECONDS = 3600 };
#else
enum { STRIDE = 211, PATTERNS = 3, SECONDS = 120 };
#endif

TestSuite(trace_harm, .init = trace_enter, .fini = trace_leave, .timeout = SECONDS);

enum { BLOCK = 512, STEPS_MAX = 64 };

/* A trace, and what its steps say: a hash of each in order. */
typedef struct whole {
    made_file f;
    int n_steps;
    uint64_t steps[STEPS_MAX];
} whole;

static uint64_t hash_step(const pl_trace_step *s)
{
    uint64_t h = pl_hash64(&s->step, sizeof s->step);

    for (int i = 0; i < s->n_groups * s->n; i++) {
        const pl_trace_sample *a = &s->samples[i];
        const uint64_t parts[5] = {h, trace_digest(a, a->hashes),
            pl_hash64(a->source, (size_t)a->n_tokens), (uint64_t)a->draft << 32 | a->accepted,
            (uint64_t)a->steps << 32 | a->worker};
        h = pl_hash64(parts, sizeof parts);
    }
    return h;
}

typedef struct heard {
    int n;
    uint64_t steps[STEPS_MAX];
} heard;

static pl_status hear(void *ctx, const pl_trace_step *s, pl_error *err)
{
    heard *h = ctx;

    (void)err;
    cr_assert_lt(h->n, STEPS_MAX);
    h->steps[h->n++] = hash_step(s);
    return PL_OK;
}

/* A file in memory: thousands of them are read. */
typedef struct place {
    int fd;
    char path[64];
} place;

static place open_place(void)
{
    place p = {.fd = memfd_create("trace", MFD_CLOEXEC)};

    cr_assert_geq(p.fd, 0);
    snprintf(p.path, sizeof p.path, "/proc/self/fd/%d", p.fd);
    return p;
}

static void fill(const place *p, const void *bytes, size_t n)
{
    cr_assert_eq(ftruncate(p->fd, (off_t)n), 0);
    cr_assert_eq(pwrite(p->fd, bytes, n, 0), (ssize_t)n);
}

static pl_status read_place(const place *p, heard *h, pl_trace_report *r)
{
    const pl_trace_visitor v = {h, NULL, hear};

    h->n = 0;
    return pl_trace_read(p->path, &v, r, NULL);
}

/* All that was said is what the whole trace says first. */
static void check_prefix(const heard *h, const whole *w)
{
    cr_assert_leq(h->n, w->n_steps);
    cr_assert_arr_eq(h->steps, w->steps, (size_t)h->n * sizeof h->steps[0]);
}

/* n_bytes or a little more; two sittings, the second of which trains a step again; END. */
static void make_whole(whole *w, int uid, size_t n_bytes)
{
    static made_records l;
    char dir[16];
    int64_t last = 3;

    memset(w, 0, sizeof *w);
    snprintf(dir, sizeof dir, "run%d", uid);
    pl_trace *t = open_trace(dir, uid, 0);
    for (int64_t step = 1; step <= 3; step++)
        put_made(t, step, 1);
    pl_trace_close(t);
    t = open_trace(dir, uid, 2);
    for (;;) {
        put_made(t, last, 1);
        free_records(&l);
        char path[64];
        snprintf(path, sizeof path, "%s/trace/000001.journal", dir);
        read_records(&l, path);
        build_file(&w->f, &l, uid, BLOCK);
        if (w->f.n >= n_bytes)
            break;
        last++;
    }
    cr_assert_eq(pl_trace_end(t, last, NULL), PL_OK);
    pl_trace_close(t);
    cr_assert_eq(pl_dir_remove(dir, NULL), PL_OK);
    unsigned char end = (unsigned char)last;
    add_record(&l, l.n, TRACE_END, &end, 1);
    build_file(&w->f, &l, uid, BLOCK);
    free_records(&l);

    const place p = open_place();
    heard h;
    pl_trace_report r;
    fill(&p, w->f.bytes, w->f.n);
    cr_assert_eq(read_place(&p, &h, &r), PL_OK, "%s", r.what);
    cr_assert(r.state == PL_TRACE_COMPLETE && r.step == last && r.n_repeated == 1);
    w->n_steps = h.n;
    memcpy(w->steps, h.steps, sizeof w->steps);
    close(p.fd);
}

static int block_of(const whole *w, size_t at)
{
    int block = 0;
    while (at >= w->f.begin[block + 1])
        block++;
    return block;
}

/* patterns: bits of each byte, and all of them; 3: the lowest, the highest, all. */
static void flip_all(const whole *w, size_t stride, int n_patterns)
{
    static const unsigned char patterns[9] = {1, 0x80, 0xff, 2, 4, 8, 16, 32, 64};
    const place p = open_place();
    heard h;
    pl_trace_report r;

    fill(&p, w->f.bytes, w->f.n);
    for (size_t at = 0; at < w->f.n; at += stride) {
        const int block = block_of(w, at);
        const uint64_t begin = at < JOURNAL_SUPER ? 0 : w->f.begin[block];
        for (int i = 0; i < n_patterns; i++) {
            const unsigned char harmed = w->f.bytes[at] ^ patterns[i];
            cr_assert_eq(pwrite(p.fd, &harmed, 1, (off_t)at), 1);
            const pl_status st = read_place(&p, &h, &r);
            cr_assert_neq(r.state, PL_TRACE_COMPLETE, "byte %zu", at);
            if (block < w->f.n_blocks - 1)
                cr_assert(st == PL_E_FORMAT && r.state == PL_TRACE_DAMAGED, "byte %zu", at);
            cr_assert_neq(r.journal.state, PL_JOURNAL_WHOLE, "byte %zu", at);
            cr_assert_eq(r.journal.bad_offset, begin, "byte %zu", at);
            cr_assert(r.what[0]);
            check_prefix(&h, w);
        }
        cr_assert_eq(pwrite(p.fd, &w->f.bytes[at], 1, (off_t)at), 1);
    }
    close(p.fd);
}

Test(trace_harm, any_flipped_byte_is_found_in_its_block)
{
    static whole w;

    make_whole(&w, 1, 5 << 10);
    flip_all(&w, 1, 9);
    free_file(&w.f);
    make_whole(&w, 1, 64 << 10);
    flip_all(&w, STRIDE, PATTERNS);
    free_file(&w.f);
}

static void cut_all(const whole *w, size_t stride)
{
    const place p = open_place();
    heard h;
    pl_trace_report r;
    int n_borders = 0;

    fill(&p, w->f.bytes, w->f.n);
    for (size_t n = w->f.n - 1;; n -= n < stride ? n : stride) {
        cr_assert_eq(ftruncate(p.fd, (off_t)n), 0);
        cr_assert_eq(read_place(&p, &h, &r), PL_OK, "cut at %zu: %s", n, r.what);
        cr_assert_eq(r.state, PL_TRACE_OPEN, "cut at %zu", n);
        check_prefix(&h, w);
        cr_assert_eq(r.journal.n_bytes + r.journal.torn_bytes, n);
        const int is_border = r.journal.state == PL_JOURNAL_WHOLE;
        n_borders += is_border;
        if (n == 0) {
            cr_assert_str_eq(r.what, "empty");
            break;
        }
        cr_assert_eq(strstr(r.what, "torn") != NULL, !is_border, "cut at %zu: %s", n, r.what);
        cr_assert_eq(strncmp(r.what, "open at step ", 13), 0);
    }
    for (int i = 0; i < w->f.n_blocks; i++) { /* and each border */
        fill(&p, w->f.bytes, w->f.begin[i]);
        cr_assert_eq(read_place(&p, &h, &r), PL_OK);
        cr_assert(r.state == PL_TRACE_OPEN && r.journal.state == PL_JOURNAL_WHOLE);
        cr_assert_eq(r.journal.n_blocks, (uint64_t)i);
        check_prefix(&h, w);
    }
    cr_assert(stride > 1 || n_borders == w->f.n_blocks);
    close(p.fd);
}

Test(trace_harm, a_trace_that_is_cut_anywhere_is_open_and_never_complete)
{
    static whole w;

    make_whole(&w, 1, 5 << 10);
    cut_all(&w, 1);
    free_file(&w.f);
    make_whole(&w, 1, 64 << 10);
    cut_all(&w, STRIDE);
    free_file(&w.f);
}

/* Blocks in this order, [n]; those from n_own on are of other. */
static size_t arrange(
    unsigned char *out, const whole *w, const whole *other, const int *order, int n)
{
    size_t at = JOURNAL_SUPER;

    memcpy(out, w->f.bytes, at);
    for (int i = 0; i < n; i++) {
        const int k = order[i] % w->f.n_blocks;
        const made_file *from = order[i] < w->f.n_blocks ? &w->f : &other->f;
        memcpy(out + at, from->bytes + from->begin[k], from->begin[k + 1] - from->begin[k]);
        at += from->begin[k + 1] - from->begin[k];
    }
    return at;
}

typedef struct splice {
    const whole *w, *other;
    place p;
    unsigned char *bytes;
    int order[MADE_RECORDS + 2];
    int n_tried;
} splice;

/* order [n]: the first `good` blocks are where they belong, the next one is not. */
static void check_spliced(splice *s, int n, int good)
{
    const size_t n_bytes = arrange(s->bytes, s->w, s->other, s->order, n);
    heard h;
    pl_trace_report r;

    fill(&s->p, s->bytes, n_bytes);
    cr_assert_eq(read_place(&s->p, &h, &r), PL_E_FORMAT, "%d blocks, bad is %d", n, good);
    cr_assert_eq(r.state, PL_TRACE_DAMAGED);
    cr_assert(r.journal.bad_seq == (uint64_t)good && r.journal.bad_offset == s->w->f.begin[good]);
    check_prefix(&h, s->w);
    s->n_tried++;
}

static void in_order(splice *s)
{
    for (int i = 0; i < s->w->f.n_blocks; i++)
        s->order[i] = i;
}

/* Block k once more, or that of another run, so that it stands as block at. */
static void check_inserted(splice *s, int k, int at)
{
    const int n = s->w->f.n_blocks;

    in_order(s);
    memmove(&s->order[at + 1], &s->order[at], (size_t)(n - at) * sizeof s->order[0]);
    s->order[at] = k;
    check_spliced(s, n + 1, at);
}

static void check_swapped(splice *s, int a, int b)
{
    in_order(s);
    s->order[a] = b;
    s->order[b] = a;
    check_spliced(s, s->w->f.n_blocks, a);
}

static void check_instead(splice *s, int at, int k, int n)
{
    in_order(s);
    s->order[at] = k;
    check_spliced(s, n, at);
}

Test(trace_harm, a_block_spliced_doubled_swapped_or_dropped_is_found_where_the_order_breaks)
{
    static whole w, other;
    static splice s;

    make_whole(&w, 1, 64 << 10);
    make_whole(&other, 2, 64 << 10);
    cr_assert_eq(w.f.n_blocks, other.f.n_blocks);
    s = (splice){.w = &w, .other = &other, .p = open_place(), .bytes = malloc(w.f.n + 2 * BLOCK)};
    cr_assert_not_null(s.bytes);
    const int n = w.f.n_blocks;
    const int far = STRIDE == 1 ? 1 : 17; /* of places */
    for (int i = 0; i < n; i++) {
        check_instead(&s, i, n + i, n);     /* of another run, in its own place */
        check_instead(&s, i, n + i, i + 1); /* as the last one */
        check_inserted(&s, i, i + 1);       /* doubled */
        check_inserted(&s, n + i, i);
        if (i + 1 < n)
            check_swapped(&s, i, i + 1);
        for (int k = i + 2; k < n; k += far)
            check_swapped(&s, i, k);
        for (int k = i % far; k <= n; k += far)
            if (k != i)
                check_inserted(&s, i, k);
        if (i + 1 < n) { /* dropped */
            in_order(&s);
            memmove(&s.order[i], &s.order[i + 1], (size_t)(n - i - 1) * sizeof s.order[0]);
            check_spliced(&s, n - 1, i);
        }
    }
    printf("trace: %d spliced traces of %zu bytes in %d blocks\n", s.n_tried, w.f.n, n);
    free(s.bytes);
    close(s.p.fd);
    free_file(&w.f);
    free_file(&other.f);
}
