/* trainer/rollouts_read.c - a file of rollout records, plain or compressed, read as a stream: never
 * more than one line and one piece of the file beside the samples that were kept. */
#include "core/file.h"
#include "trainer/rollouts_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

enum {
    PIECE = 128 << 10,        /* bytes read, and decompressed, at once */
    LINE_MAX_BYTES = 8 << 20, /* some 250,000 tokens with all that is said of them */
    SAMPLES_MAX = 1 << 20,    /* of a step: as run_config has it */
    WINDOW_LOG = 27,          /* of zstd: what its decoder takes without being asked */
};
static const uint64_t max_bytes = (uint64_t)2 << 30; /* of all lines together */

/* What pl_rollouts_read returns; pub comes first. */
typedef struct rollouts_all {
    pl_rollouts pub;
    rollouts_entry **entries; /* [pub.n] */
    int room;
} rollouts_all;

typedef struct stream {
    const rollouts_reader *r;
    rollouts_all *all;
    int fd;                    /* -1: data */
    const unsigned char *data; /* [n_data] left */
    size_t n_data;
    unsigned char in[PIECE], out[PIECE];
    char *line; /* [n_line] begun */
    size_t n_line, room_line;
    uint64_t n_bytes; /* of text so far */
    int n_lines;
} stream;

/* ---- samples ---- */

static pl_status have_room(rollouts_all *a, pl_error *err)
{
    if (a->pub.n < a->room)
        return PL_OK;
    const int room = a->room > 0 ? 2 * a->room : 64;
    rollouts_entry **p = realloc(a->entries, (size_t)room * sizeof *p);
    if (!p)
        return pl_fail(err, PL_E_NOMEM, "no memory for %d samples", room);
    a->entries = p;
    a->room = room;
    return PL_OK;
}

static pl_status check_alike(const rollouts_all *a, const rollouts_entry *e, pl_error *err)
{
    const rollouts_entry *first = a->entries[0];

    if (e->step != first->step)
        return pl_fail(err, PL_E_FORMAT,
            "is of step %lld, line %d of step %lld: one file a step is wanted", (long long)e->step,
            first->line, (long long)first->step);
    if (e->has_uid != first->has_uid)
        return pl_fail(err, PL_E_FORMAT, "has %s 'uid', other than line %d",
            e->has_uid ? "a" : "no", first->line);
    return PL_OK;
}

static int is_blank(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (s[i] != ' ' && s[i] != '\t' && s[i] != '\r')
            return 0;
    return 1;
}

static pl_status take_line(stream *s, const char *line, size_t n, pl_error *err)
{
    rollouts_all *a = s->all;
    rollouts_entry *e = NULL;

    if (is_blank(line, n))
        return pl_fail(err, PL_E_FORMAT, "is empty; remove the line");
    if (a->pub.n == SAMPLES_MAX)
        return pl_fail(err, PL_E_FORMAT, "is one more than %d samples: one file a step is wanted",
            SAMPLES_MAX);
    pl_status st = have_room(a, err);
    if (st != PL_OK)
        return st;
    e = calloc(1, sizeof *e);
    if (!e)
        return pl_fail(err, PL_E_NOMEM, "no memory for a sample");
    e->line = s->n_lines;
    st = entry_read(s->r, e, line, n, err);
    if (st == PL_OK && a->pub.n > 0)
        st = check_alike(a, e, err);
    if (st != PL_OK) {
        entry_free(e);
        return st;
    }
    if (!e->has_uid)
        e->response.uid = (uint32_t)a->pub.n;
    a->entries[a->pub.n++] = e;
    return PL_OK;
}

/* ---- lines ---- */

static pl_status end_line(stream *s, pl_error *err)
{
    const pl_status st = take_line(s, s->line, s->n_line, err);

    s->n_line = 0;
    return st == PL_OK ? st : pl_wrap(err, st, "%s:%d", s->r->name, s->n_lines);
}

static pl_status add_to_line(stream *s, const char *text, size_t n, pl_error *err)
{
    if (n > LINE_MAX_BYTES - s->n_line)
        return pl_fail(err, PL_E_FORMAT, "%s:%d: longer than %d MiB: is this JSON lines?",
            s->r->name, s->n_lines + 1, LINE_MAX_BYTES >> 20);
    if (s->n_line + n > s->room_line) {
        const size_t room = 2 * (s->n_line + n);
        char *p = realloc(s->line, room);
        if (!p)
            return pl_fail(err, PL_E_NOMEM, "%s: no memory for a line of %zu bytes", s->r->name,
                s->n_line + n);
        s->line = p;
        s->room_line = room;
    }
    if (n > 0)
        memcpy(s->line + s->n_line, text, n);
    s->n_line += n;
    return PL_OK;
}

static pl_status take_text(stream *s, const unsigned char *bytes, size_t n_bytes, pl_error *err)
{
    const char *text = (const char *)bytes;
    pl_status st = PL_OK;

    s->n_bytes += n_bytes;
    if (s->n_bytes > max_bytes)
        return pl_fail(err, PL_E_FORMAT, "%s: more than %d GiB of records", s->r->name,
            (int)(max_bytes >> 30));
    for (size_t at = 0; at < n_bytes && st == PL_OK;) {
        const char *end = memchr(text + at, '\n', n_bytes - at);
        const size_t n = end ? (size_t)(end - text) - at : n_bytes - at;
        st = add_to_line(s, text + at, n, err);
        if (st == PL_OK && end) {
            s->n_lines++;
            st = end_line(s, err);
        }
        at += n + 1;
    }
    return st;
}

/* ---- bytes ---- */

static pl_status read_piece(stream *s, size_t *n, pl_error *err)
{
    if (s->fd < 0) {
        *n = s->n_data < PIECE ? s->n_data : PIECE;
        if (*n > 0)
            memcpy(s->in, s->data, *n);
        s->data += *n;
        s->n_data -= *n;
        return PL_OK;
    }
    for (*n = 0; *n < PIECE;) {
        const ssize_t got = read(s->fd, s->in + *n, PIECE - *n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return pl_fail(err, PL_E_IO, "'%s': %s", s->r->name, strerror(errno));
        if (got == 0)
            break;
        *n += (size_t)got;
    }
    return PL_OK;
}

/* *left: 0 at the end of a frame. */
static pl_status decompress(stream *s, ZSTD_DCtx *z, size_t n, size_t *left, pl_error *err)
{
    ZSTD_inBuffer in = {s->in, n, 0};
    ZSTD_outBuffer out;

    do {
        out = (ZSTD_outBuffer){s->out, sizeof s->out, 0};
        *left = ZSTD_decompressStream(z, &out, &in);
        if (ZSTD_isError(*left))
            return pl_fail(err, PL_E_FORMAT, "%s:%d: the compressed bytes are damaged: %s",
                s->r->name, s->n_lines + 1, ZSTD_getErrorName(*left));
        const pl_status st = take_text(s, s->out, out.pos, err);
        if (st != PL_OK)
            return st;
    } while (in.pos < in.size || (*left > 0 && out.pos == out.size));
    return PL_OK;
}

static pl_status read_compressed(stream *s, size_t n, pl_error *err)
{
    ZSTD_DCtx *z = ZSTD_createDCtx();
    size_t left = 1;
    pl_status st = PL_OK;

    if (!z || ZSTD_isError(ZSTD_DCtx_setParameter(z, ZSTD_d_windowLogMax, WINDOW_LOG)))
        st = pl_fail(err, PL_E_NOMEM, "zstd: no memory");
    while (st == PL_OK && n > 0) {
        st = decompress(s, z, n, &left, err);
        if (st == PL_OK)
            st = read_piece(s, &n, err);
    }
    if (st == PL_OK && left > 0)
        st = pl_fail(err, PL_E_FORMAT,
            "%s:%d: ends in the middle of a compressed frame: the file was cut off", s->r->name,
            s->n_lines + 1);
    ZSTD_freeDCtx(z);
    return st;
}

static int begins(const stream *s, size_t n, const char *magic, size_t n_magic)
{
    return n >= n_magic && memcmp(s->in, magic, n_magic) == 0;
}

static pl_status read_all(stream *s, pl_error *err)
{
    size_t n = 0;
    pl_status st = read_piece(s, &n, err);

    if (st != PL_OK)
        return st;
    if (begins(s, n, "\x1f\x8b", 2) || begins(s, n, "PAR1", 4))
        return pl_fail(err, PL_E_FORMAT,
            "%s: is %s: JSON lines are wanted, plain or compressed with zstd", s->r->name,
            s->in[0] == 'P' ? "a Parquet file" : "compressed with gzip");
    if (begins(s, n, "\x28\xb5\x2f\xfd", 4)) {
        st = read_compressed(s, n, err);
        n = 0;
    }
    while (st == PL_OK && n > 0) {
        st = take_text(s, s->in, n, err);
        if (st == PL_OK)
            st = read_piece(s, &n, err);
    }
    if (st == PL_OK && s->n_line > 0) { /* the last line without its end */
        s->n_lines++;
        st = end_line(s, err);
    }
    if (st == PL_OK && s->all->pub.n == 0)
        st = pl_fail(err, PL_E_FORMAT, "%s: holds no sample", s->r->name);
    return st;
}

/* ---- the whole ---- */

static int by_uid(const void *a, const void *b)
{
    const rollouts_entry *x = *(rollouts_entry *const *)a, *y = *(rollouts_entry *const *)b;

    if (x->response.uid != y->response.uid)
        return x->response.uid < y->response.uid ? -1 : 1;
    return x->line < y->line ? -1 : x->line > y->line;
}

static pl_status check_uids(const rollouts_all *a, const char *name, pl_error *err)
{
    const int n = a->pub.n;
    rollouts_entry **sorted = malloc((size_t)n * sizeof *sorted);
    pl_status st = PL_OK;

    if (!sorted)
        return pl_fail(err, PL_E_NOMEM, "no memory for %d samples", n);
    memcpy(sorted, a->entries, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, by_uid);
    for (int i = 1; i < n && st == PL_OK; i++)
        if (sorted[i]->response.uid == sorted[i - 1]->response.uid)
            st = pl_fail(err, PL_E_FORMAT, "%s:%d: uid %u stands twice, first on line %d", name,
                sorted[i]->line, sorted[i]->response.uid, sorted[i - 1]->line);
    free(sorted);
    return st;
}

static int is_same_group(const rollouts_entry *a, const rollouts_entry *b)
{
    const pl_prompt *p = &a->prompt, *q = &b->prompt;

    return a->group == b->group && p->n_ids == q->n_ids &&
           memcmp(p->ids, q->ids, (size_t)p->n_ids * sizeof *p->ids) == 0;
}

/* Samples of the group that begins at i. */
static int group_at(const rollouts_all *a, int i)
{
    int end = i + 1;

    while (end < a->pub.n && is_same_group(a->entries[i], a->entries[end]))
        end++;
    return end - i;
}

/* The smallest group, when all others hold a whole number of it and uids go up by one from a
 * multiple of it: a prompt that stands twice in a row.  Else 0. */
static int split_size(const rollouts_all *a)
{
    int smallest = a->pub.n;

    for (int i = 0; i < a->pub.n; i += group_at(a, i))
        smallest = group_at(a, i) < smallest ? group_at(a, i) : smallest;
    for (int i = 0; i < a->pub.n; i += group_at(a, i))
        if (group_at(a, i) % smallest != 0)
            return 0;
    const uint32_t first = a->entries[0]->response.uid;
    for (int i = 0; i < a->pub.n; i++)
        if (!a->entries[i]->has_uid || a->entries[i]->response.uid != first + (uint32_t)i)
            return 0;
    return first % (uint32_t)smallest == 0 ? smallest : 0;
}

static void find_groups(rollouts_all *a)
{
    const int split = split_size(a);
    int size = group_at(a, 0);

    if (split > 0)
        size = split;
    a->pub.group_size = size;
    for (int i = 0, n = 0; i < a->pub.n; i += n) {
        n = split > 0 ? split : group_at(a, i);
        for (int k = 0; k < n; k++)
            a->entries[i + k]->response.group = (uint32_t)a->pub.n_groups;
        a->pub.n_groups++;
        if (n != size)
            a->pub.group_size = 0;
    }
}

static void find_logprobs(rollouts_all *a)
{
    a->pub.has_logprobs = 1;
    for (int i = 0; i < a->pub.n; i++)
        a->pub.has_logprobs &= a->entries[i]->response.logprobs != NULL;
    for (int i = 0; i < a->pub.n && !a->pub.has_logprobs; i++) {
        free(a->entries[i]->response.logprobs);
        a->entries[i]->response.logprobs = NULL;
    }
}

static pl_status finish(rollouts_all *a, const char *name, pl_error *err)
{
    const pl_status st = check_uids(a, name, err);

    if (st != PL_OK)
        return st;
    find_groups(a);
    find_logprobs(a);
    a->pub.step = a->entries[0]->step;
    a->pub.samples = malloc((size_t)a->pub.n * sizeof *a->pub.samples);
    if (!a->pub.samples)
        return pl_fail(err, PL_E_NOMEM, "no memory for %d samples", a->pub.n);
    for (int i = 0; i < a->pub.n; i++)
        a->pub.samples[i] = a->entries[i]->sample;
    return PL_OK;
}

void pl_rollouts_free(pl_rollouts *r)
{
    rollouts_all *a = (rollouts_all *)r;

    if (!r)
        return;
    for (int i = 0; i < r->n; i++)
        entry_free(a->entries[i]);
    free(a->entries);
    free(r->samples);
    free(a);
}

static pl_status read_stream(pl_rollouts **out, stream *s, pl_error *err)
{
    s->all = calloc(1, sizeof *s->all);
    if (!s->all)
        return pl_fail(err, PL_E_NOMEM, "%s: no memory", s->r->name);
    pl_status st = read_all(s, err);
    if (st == PL_OK)
        st = finish(s->all, s->r->name, err);
    free(s->line);
    if (st == PL_OK)
        *out = &s->all->pub;
    else
        pl_rollouts_free(&s->all->pub);
    return st;
}

static pl_status open_stream(stream **out, const rollouts_reader *r, pl_error *err)
{
    *out = calloc(1, sizeof **out);
    if (!*out)
        return pl_fail(err, PL_E_NOMEM, "%s: no memory", r->name);
    (*out)->r = r;
    (*out)->fd = -1;
    return PL_OK;
}

pl_status rollouts_parse(pl_rollouts **out, const void *data, size_t n_bytes, const char *name,
    const pl_tokenizer *tok, int n_vocab, int max_tokens, pl_error *err)
{
    const rollouts_reader r = {name, tok, n_vocab, max_tokens};
    stream *s = NULL;
    pl_status st = open_stream(&s, &r, err);

    if (st != PL_OK)
        return st;
    s->data = data;
    s->n_data = n_bytes;
    st = read_stream(out, s, err);
    free(s);
    return st;
}

pl_status pl_rollouts_read(pl_rollouts **out, const char *path, const pl_tokenizer *tok,
    int n_vocab, int max_tokens, pl_error *err)
{
    const rollouts_reader r = {path, tok, n_vocab, max_tokens};
    stream *s = NULL;
    pl_status st = open_stream(&s, &r, err);

    if (st != PL_OK)
        return st;
    s->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (s->fd < 0)
        st =
            pl_fail(err, errno == ENOENT ? PL_E_NOENT : PL_E_IO, "'%s': %s", path, strerror(errno));
    else
        st = read_stream(out, s, err);
    if (s->fd >= 0)
        (void)close(s->fd);
    free(s);
    return st;
}
