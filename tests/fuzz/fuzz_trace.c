/* tests/fuzz/fuzz_trace.c - the reader of traces against any bytes.  The first byte chooses: even,
 * the rest is the file as it stands; odd, the rest is cut into records (a type, two bytes of
 * length, data; type 0 begins a block), which get right blocks, hashes and CRCs, so that what is
 * behind them is reached.  What is given out is always what a trace can say, and the same when it
 * is asked again. */
#define _GNU_SOURCE
#include "core/file.h"
#include "core/journal_internal.h"
#include "rollout/trace_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void must(int is_true)
{
    if (!is_true)
        abort();
}

typedef struct heard {
    int32_t n_vocab;
    int64_t n_runs, n_steps, n_samples, n_tokens;
    uint64_t hash;
    int64_t last;       /* step that was heard last */
    uint64_t last_hash; /* of it */
} heard;

static uint64_t mix(uint64_t h, const void *data, size_t n)
{
    const uint64_t pair[2] = {h, n > 0 ? pl_hash64(data, n) : 0};
    return pl_hash64(pair, sizeof pair);
}

static pl_status hear_run(void *ctx, const pl_trace_run *r, pl_error *err)
{
    heard *h = ctx;

    (void)err;
    must(r->step >= 0 && r->n_vocab > 0 && strlen(r->config) == r->n_config);
    must(strlen(r->build) + strlen(r->numeric_class) + strlen(r->isa) + strlen(r->machine) <= 1020);
    h->n_vocab = r->n_vocab;
    h->n_runs++;
    h->hash = mix(h->hash, r->config, r->n_config);
    return PL_OK;
}

static uint64_t check_sample(const heard *h, const pl_trace_step *s, int i)
{
    const pl_trace_sample *a = &s->samples[i];
    const size_t n = (size_t)a->n_tokens;

    must(a->uid == s->first_uid + (uint32_t)i && a->n_tokens >= 0 && !a->logprobs);
    must(a->worker < (uint32_t)s->n_workers && a->finish > PL_FINISH_NONE);
    for (size_t k = 0; k < n; k++)
        must(a->tokens[k] >= 0 && a->tokens[k] < h->n_vocab && a->source[k] <= 2);
    uint64_t hash = mix(0, a->tokens, n * sizeof *a->tokens);
    hash = mix(hash, a->source, n);
    return mix(hash, a->hashes, (size_t)pl_trace_hashes(a->n_tokens) * sizeof *a->hashes);
}

static uint64_t check_step(heard *h, const pl_trace_step *s)
{
    uint64_t hash = (uint64_t)s->step;

    must(s->step > 0 && s->n_groups > 0 && s->n > 0 && s->n_workers > 0);
    must(isfinite(s->gen_s) && isfinite(s->sampling.temperature));
    for (int i = 0; i < s->n_workers; i++)
        hash = mix(hash, s->workers[i], strlen(s->workers[i]));
    hash = mix(hash, s->prompts, (size_t)s->n_groups * sizeof *s->prompts);
    hash = mix(hash, s->n_prompt, (size_t)s->n_groups * sizeof *s->n_prompt);
    for (int i = 0; i < s->n_costs; i++)
        must(s->costs[i].worker < (uint32_t)s->n_workers && isfinite(s->costs[i].seconds));
    for (int i = 0; i < s->n_groups * s->n; i++) {
        const uint64_t one = check_sample(h, s, i);
        hash = mix(hash, &one, sizeof one);
        h->n_samples++;
        h->n_tokens += s->samples[i].n_tokens;
    }
    return hash;
}

static pl_status hear_step(void *ctx, const pl_trace_step *s, pl_error *err)
{
    heard *h = ctx;

    (void)err;
    h->last = s->step;
    h->last_hash = check_step(h, s);
    h->hash = mix(h->hash, &h->last_hash, sizeof h->last_hash);
    h->n_steps++;
    return PL_OK;
}

/* A file of right blocks, in out; returns its bytes. */
static size_t build(unsigned char *out, const uint8_t *data, size_t size)
{
    static const unsigned char uid[16];
    unsigned char head[PL_HASH_BYTES];
    size_t at = JOURNAL_SUPER, n = 0;
    uint64_t seq = 0;

    journal_make_super(out, TRACE_MAGIC, uid);
    pl_hash256(head, out, JOURNAL_SUPER);
    while (size > 0) {
        const size_t rest = size > 3 ? size - 3 : 0;
        size_t length = size > 2 ? data[1] | (size_t)data[2] << 8 : 0;
        length = length < rest ? length : rest;
        const int is_record = data[0] > 0;
        if (is_record) {
            unsigned char *to = out + at + JOURNAL_HEADER + n;
            size_t front = journal_put_varint(to, data[0]);
            front += journal_put_varint(to + front, (uint32_t)length);
            if (length > 0)
                memcpy(to + front, data + 3, length);
            n += front + length;
        }
        const size_t used = !is_record ? 1 : size > 3 ? 3 + length : size;
        data += used;
        size -= used;
        if (n > 0 && (!is_record || size == 0)) {
            const size_t block = journal_close_block(out + at, n, seq++, 0, head);
            pl_hash256(head, out + at, block);
            at += block;
            n = 0;
        }
    }
    return at;
}

static void check_load(const char *path, const heard *h, const pl_trace_report *report)
{
    pl_trace_step *s = NULL;
    const pl_trace_run *run = NULL;
    pl_trace_report again;
    pl_error err = {0};

    must(pl_trace_load(path, 0, &s, &run, &again, &err) == PL_E_NOENT && !s);
    must(memcmp(&again, report, sizeof again) == 0);
    if (h->n_steps == 0)
        return;
    must(pl_trace_load(path, h->last, &s, &run, &again, &err) == PL_OK);
    heard one = {.n_vocab = run->n_vocab};
    must(s->step == h->last && check_step(&one, s) == h->last_hash && run->step < s->step);
    pl_trace_step_free(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    heard h = {0};
    const pl_trace_visitor v = {&h, hear_run, hear_step};
    pl_trace_report report;
    pl_error err = {0};
    char path[64];

    if (size < 1 || size > 1 << 16)
        return 0;
    unsigned char *file = malloc(JOURNAL_SUPER + (JOURNAL_OVERHEAD + 8) * size);
    const int fd = memfd_create("fuzz", MFD_CLOEXEC);
    must(file && fd >= 0);
    size_t n = size - 1;
    if (data[0] % 2 == 0)
        memcpy(file, data + 1, n);
    else
        n = build(file, data + 1, n);
    must(write(fd, file, n) == (ssize_t)n);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);

    const pl_status st = pl_trace_read(path, &v, &report, &err);
    must(st == PL_OK || st == PL_E_FORMAT);
    must((st == PL_OK) == (report.state != PL_TRACE_DAMAGED));
    must(report.n_runs == h.n_runs && report.n_steps == h.n_steps);
    must(report.n_samples == h.n_samples && report.n_tokens == h.n_tokens);
    must(report.state == PL_TRACE_COMPLETE || report.what[0]);
    if (st == PL_OK)
        check_load(path, &h, &report);
    (void)close(fd);
    free(file);
    return 0;
}
