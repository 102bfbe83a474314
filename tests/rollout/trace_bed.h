/* tests/rollout/trace_bed.h - traces made of nothing: every number is a function of step and uid.
 */
#ifndef PL_TESTS_TRACE_BED_H
#define PL_TESTS_TRACE_BED_H

#include "core/file.h"
#include "core/journal_internal.h"
#include "rollout/trace_internal.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BED_VOCAB = 49152, BED_N = 4, BED_TOKENS_MAX = 400 };

static char trace_home[64];

static inline void trace_enter(void)
{
    snprintf(trace_home, sizeof trace_home, "%s/pl_test_trace_XXXXXX", P_tmpdir);
    cr_assert_not_null(mkdtemp(trace_home));
    cr_assert_eq(chdir(trace_home), 0);
}

static inline void trace_leave(void)
{
    cr_assert_eq(chdir("/"), 0);
    cr_assert_eq(pl_dir_remove(trace_home, NULL), PL_OK);
}

/* A step and the memory of its samples. */
typedef struct made_step {
    pl_trace_step s;
    pl_trace_sample samples[64];
    int32_t tokens[64][BED_TOKENS_MAX];
    uint8_t source[64][BED_TOKENS_MAX];
    float logprobs[64][BED_TOKENS_MAX];
    uint64_t prompts[16];
    uint32_t n_prompt[16];
    pl_trace_cost costs[3];
} made_step;

static inline uint32_t made_random(uint32_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 17;
    return *x ^= *x << 5;
}

static const char *const made_workers[2] = {"worker-0", "worker-1"};

/* salt: another text. */
static inline void make_sample(made_step *m, int i, uint32_t salt)
{
    pl_trace_sample *a = &m->samples[i];
    uint32_t x = 0x9e3779b9u ^ (m->s.first_uid + (uint32_t)i) * 2654435761u ^ salt * 40503u;

    for (int k = 0; k < 8; k++)
        made_random(&x);
    *a = (pl_trace_sample){.uid = m->s.first_uid + (uint32_t)i,
        .n_tokens = (int)(made_random(&x) % (BED_TOKENS_MAX / 4)),
        .tokens = m->tokens[i],
        .source = m->source[i],
        .logprobs = m->logprobs[i],
        .finish = i % 3 ? PL_FINISH_STOP : PL_FINISH_LENGTH,
        .reward = (float)(i % 2),
        .draft = made_random(&x) % 500,
        .accepted = made_random(&x) % 100,
        .steps = made_random(&x) % 300,
        .worker = (uint32_t)(i % 2)};
    if (i == 1)
        a->n_tokens = BED_TOKENS_MAX - 7;
    for (int k = 0; k < a->n_tokens; k++) {
        m->tokens[i][k] = (int32_t)(made_random(&x) % BED_VOCAB >> made_random(&x) % 9);
        m->source[i][k] = (uint8_t)(k / 5 % 3);
        m->logprobs[i][k] = -(float)(made_random(&x) % 10000) / 777;
    }
}

static inline made_step *make_step(int64_t step, int n_groups)
{
    made_step *m = calloc(1, sizeof *m);

    cr_assert_not_null(m);
    cr_assert_leq(n_groups * BED_N, 64);
    for (int g = 0; g < n_groups; g++) {
        m->prompts[g] = (uint64_t)step * 1000003u + (uint64_t)g;
        m->n_prompt[g] = (uint32_t)(20 + g);
    }
    for (int i = 0; i < 3; i++)
        m->costs[i] = (pl_trace_cost){
            (uint32_t)(i % 2), (uint32_t)(1 << i), (uint64_t)(10 + i), 0.25 * (double)step};
    m->s = (pl_trace_step){.step = step,
        .policy_version = (uint32_t)step,
        .drafter_version = 3,
        .first_uid = (uint32_t)((step - 1) * n_groups * BED_N),
        .n_groups = n_groups,
        .n = BED_N,
        .sampling = {.max_tokens = BED_TOKENS_MAX,
            .temperature = 1,
            .top_p = 1,
            .noise_key = 77,
            .purpose = 1,
            .speculative = 1},
        .prompts = m->prompts,
        .n_prompt = m->n_prompt,
        .gen_s = 1.5,
        .update_s = 0.5,
        .step_s = 2.25,
        .draft_s = 0.125,
        .verify_s = 1.25,
        .unix_ms = 1700000000000 + step,
        .n_workers = 2,
        .workers = made_workers,
        .n_costs = 3,
        .costs = m->costs,
        .samples = m->samples};
    memset(m->s.before, (int)step, sizeof m->s.before);
    memset(m->s.after, (int)step + 1, sizeof m->s.after);
    for (int i = 0; i < n_groups * BED_N; i++)
        make_sample(m, i, 0);
    return m;
}

static inline pl_trace_run make_run(int64_t step)
{
    static const char config[] = "trainer:\n  total_training_steps: 9\n";
    pl_trace_run r = {.build = "0.1 abc",
        .numeric_class = "f32-fma",
        .isa = "avx512",
        .machine = "a machine",
        .config = config,
        .n_config = sizeof config - 1,
        .config_hash = 0x123456789abcdef0,
        .step = step,
        .n_vocab = BED_VOCAB,
        .unix_ms = 1700000000000};
    memset(r.weights, (int)step + 1, sizeof r.weights);
    return r;
}

static inline pl_trace *open_trace(const char *dir, int uid, int64_t step)
{
    const pl_trace_run r = make_run(step);
    const unsigned char run_uid[16] = {(unsigned char)uid};
    pl_trace *t = NULL;
    pl_error err = {0};

    cr_assert_eq(pl_trace_open(&t, dir, run_uid, &r, NULL, &err), PL_OK, "%s", err.msg);
    return t;
}

static inline void put_made(pl_trace *t, int64_t step, int n_groups)
{
    unsigned char head[PL_HASH_BYTES];
    pl_error err = {0};
    made_step *m = make_step(step, n_groups);

    cr_assert_eq(pl_trace_put(t, &m->s, head, &err), PL_OK, "%s", err.msg);
    free(m);
}

/* What the reader gave is what was made. */
static inline void check_made(const pl_trace_step *s)
{
    made_step *m = make_step(s->step, s->n_groups);

    cr_assert_eq(s->first_uid, m->s.first_uid);
    cr_assert(s->n == BED_N && s->policy_version == m->s.policy_version && s->drafter_version == 3);
    cr_assert_arr_eq(&s->sampling, &m->s.sampling, sizeof s->sampling);
    cr_assert_arr_eq(s->prompts, m->s.prompts, (size_t)s->n_groups * sizeof *s->prompts);
    cr_assert_arr_eq(s->n_prompt, m->s.n_prompt, (size_t)s->n_groups * sizeof *s->n_prompt);
    cr_assert(memcmp(s->before, m->s.before, 16) == 0 && memcmp(s->after, m->s.after, 16) == 0);
    cr_assert(s->gen_s == m->s.gen_s && s->update_s == m->s.update_s && s->step_s == m->s.step_s);
    cr_assert(s->draft_s == m->s.draft_s && s->verify_s == m->s.verify_s);
    cr_assert(s->unix_ms == m->s.unix_ms && s->n_workers == 2);
    cr_assert_str_eq(s->workers[1], "worker-1");
    cr_assert_eq(s->n_costs, 3);
    for (int i = 0; i < 3; i++)
        cr_assert(s->costs[i].worker == m->costs[i].worker &&
                  s->costs[i].rows == m->costs[i].rows && s->costs[i].n == m->costs[i].n &&
                  s->costs[i].seconds == m->costs[i].seconds);
    for (int i = 0; i < s->n_groups * s->n; i++) {
        const pl_trace_sample *a = &s->samples[i], *b = &m->samples[i];
        cr_assert(a->uid == b->uid && a->n_tokens == b->n_tokens && a->finish == b->finish &&
                  a->reward == b->reward && a->draft == b->draft && a->accepted == b->accepted &&
                  a->steps == b->steps && a->worker == b->worker && !a->logprobs);
        const size_t n = (size_t)a->n_tokens;
        cr_assert(n == 0 || memcmp(a->tokens, b->tokens, n * sizeof *a->tokens) == 0);
        cr_assert(n == 0 || memcmp(a->source, b->source, n) == 0);
        for (int k = 0; k < pl_trace_hashes(a->n_tokens); k++) {
            const int rest = a->n_tokens - k * PL_TRACE_HASHED;
            cr_assert_eq(a->hashes[k], pl_trace_hash(b->logprobs + (ptrdiff_t)k * PL_TRACE_HASHED,
                                           rest < PL_TRACE_HASHED ? rest : PL_TRACE_HASHED));
        }
    }
    free(m);
}

/* ---- records, to be put together in other ways ---- */

enum { MADE_RECORDS = 1024 };

typedef struct made_record {
    uint32_t type;
    unsigned char *data;
    size_t n;
} made_record;

typedef struct made_records {
    int n;
    made_record r[MADE_RECORDS];
} made_records;

static inline void add_record(made_records *l, int at, uint32_t type, const void *data, size_t n)
{
    cr_assert(l->n < MADE_RECORDS && at <= l->n);
    memmove(&l->r[at + 1], &l->r[at], (size_t)(l->n - at) * sizeof l->r[0]);
    l->r[at] = (made_record){type, malloc(n + 1), n};
    cr_assert_not_null(l->r[at].data);
    if (n > 0)
        memcpy(l->r[at].data, data, n);
    l->n++;
}

static inline void drop_record(made_records *l, int at)
{
    free(l->r[at].data);
    l->n--;
    memmove(&l->r[at], &l->r[at + 1], (size_t)(l->n - at) * sizeof l->r[0]);
}

static inline void free_records(made_records *l)
{
    while (l->n > 0)
        drop_record(l, l->n - 1);
}

static inline pl_status take_record(void *ctx, const pl_journal_record *r, pl_error *err)
{
    made_records *l = ctx;
    (void)err;
    add_record(l, l->n, r->type, r->data, r->n);
    return PL_OK;
}

static inline void read_records(made_records *l, const char *path)
{
    cr_assert_eq(pl_journal_read(path, TRACE_MAGIC, take_record, l, NULL, NULL), PL_OK);
}

/* A file in memory. */
typedef struct made_file {
    unsigned char *bytes;
    size_t n;
    int n_blocks;
    size_t begin[MADE_RECORDS + 1]; /* of blocks; the last: the end */
} made_file;

static inline void free_file(made_file *f)
{
    free(f->bytes);
    memset(f, 0, sizeof *f);
}

typedef struct made_block {
    unsigned char bytes[PL_JOURNAL_BLOCK_MAX + JOURNAL_OVERHEAD], head[PL_HASH_BYTES];
    size_t n; /* of its payload */
} made_block;

static inline void end_block(made_file *f, made_block *b)
{
    if (b->n == 0)
        return;
    cr_assert_lt(f->n_blocks, MADE_RECORDS);
    const size_t n = journal_close_block(b->bytes, b->n, (uint64_t)f->n_blocks, 1, b->head);
    f->bytes = realloc(f->bytes, f->n + n);
    cr_assert_not_null(f->bytes);
    memcpy(f->bytes + f->n, b->bytes, n);
    pl_hash256(b->head, b->bytes, n);
    f->begin[f->n_blocks++] = f->n;
    f->n += n;
    f->begin[f->n_blocks] = f->n;
    b->n = 0;
}

static inline void put_in_block(
    made_file *f, made_block *b, size_t max_bytes, uint32_t type, const void *data, size_t n)
{
    unsigned char front[2 * JOURNAL_VARINT];
    size_t n_front = journal_put_varint(front, type);

    n_front += journal_put_varint(front + n_front, (uint32_t)n);
    if (b->n + n_front + n > max_bytes)
        end_block(f, b);
    memcpy(b->bytes + JOURNAL_HEADER + b->n, front, n_front);
    if (n > 0)
        memcpy(b->bytes + JOURNAL_HEADER + b->n + n_front, data, n);
    b->n += n_front + n;
}

/* As the writer would have it, in blocks of at most max_bytes (0: as large as can be): a step ends
 * its block, records that are too long go in parts. */
static inline void build_file(made_file *f, const made_records *l, int uid, size_t max_bytes)
{
    static made_block b;
    const unsigned char run_uid[16] = {(unsigned char)uid};

    max_bytes = max_bytes ? max_bytes : PL_JOURNAL_BLOCK_MAX;
    const size_t most = max_bytes - PL_JOURNAL_RECORD_ROOM;
    free_file(f);
    f->bytes = malloc(JOURNAL_SUPER);
    cr_assert_not_null(f->bytes);
    journal_make_super(f->bytes, TRACE_MAGIC, run_uid);
    pl_hash256(b.head, f->bytes, JOURNAL_SUPER);
    f->n = f->begin[0] = JOURNAL_SUPER;
    for (int i = 0; i < l->n; i++) {
        const unsigned char *data = l->r[i].data;
        size_t n = l->r[i].n;
        if (l->r[i].type != TRACE_SAMPLE && l->r[i].type != TRACE_COST)
            end_block(f, &b);
        for (; n > most; n -= most, data += most)
            put_in_block(f, &b, max_bytes, TRACE_PART, data, most);
        put_in_block(f, &b, max_bytes, l->r[i].type, data, n);
    }
    end_block(f, &b);
}

static inline void write_raw(const char *path, const void *bytes, size_t n)
{
    (void)unlink(path); /* some file systems sync what is written over */
    FILE *f = fopen(path, "wb");

    cr_assert_not_null(f);
    cr_assert_eq(fwrite(bytes, 1, n, f), n);
    cr_assert_eq(fclose(f), 0);
}

static inline void write_records(const made_records *l, const char *path)
{
    static made_file f;

    build_file(&f, l, 1, 0);
    write_raw(path, f.bytes, f.n);
    free_file(&f);
}

#endif
