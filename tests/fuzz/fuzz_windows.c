/* tests/fuzz/fuzz_windows.c - a reader of data buffers against any file.  The first byte chooses:
 * even, the rest is the file as it stands; odd, the rest becomes the fields and numbers of slots
 * behind a right header, with right sums (so that what is behind them is reached), and a last byte
 * of which a bit spoils each of them; the more, the fewer slots are said to have been written. What
 * is given out is always a window that a sample can have.
 */
#define _GNU_SOURCE
#include "core/hash.h"
#include "trainer/windows_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { C = 3, ROW = 32, WINDOW = 2, V = 100, SLOTS = 4, OUT = 8 };

static void must(int is_true)
{
    if (!is_true)
        abort();
}

static const pl_windows_options options = {
    .max_bytes = 12288, .window = WINDOW, .n_embd = C, .target = 5, .n_vocab = V};

/* The next n bytes of the input, zeros behind its end. */
typedef struct source {
    const uint8_t *data;
    size_t n;
} source;

static void take(source *s, void *out, size_t n)
{
    const size_t k = n < s->n ? n : s->n;

    memset(out, 0, n);
    memcpy(out, s->data, k);
    s->data += k;
    s->n -= k;
}

static void build_slot(source *s, unsigned char *slot, const windows_shape *shape)
{
    int32_t tokens[WINDOW];
    uint16_t numbers[4];
    windows_small f;
    uint64_t sequence = 0;
    uint8_t spoil = 0;

    uint8_t small[2];
    take(s, small, sizeof small); /* the sequence number, how many rows */
    sequence = small[0];
    take(s, &f, sizeof f);
    f.n = small[1] % 8 == 7 ? f.n : small[1] % 4;
    f.served_from = small[1] & 64 ? f.served_from : small[1] >> 4 & 3;
    f.drafter %= 4;
    take(s, tokens, sizeof tokens);
    take(s, numbers, sizeof numbers);
    take(s, &spoil, 1);
    memcpy(slot + WINDOWS_HEAD, tokens, sizeof tokens);
    memcpy(slot + shape->features, numbers, sizeof numbers);
    memcpy(slot + shape->hidden, numbers, sizeof numbers);
    const int n = f.n < 0 ? 0 : f.n > WINDOW ? WINDOW : f.n;
    if (!(spoil & 1)) {
        f.tokens = pl_crc32c(0, tokens, (size_t)n * sizeof *tokens);
        f.hash = windows_hash(tokens, (const uint16_t *)(const void *)(slot + shape->features),
            (const uint16_t *)(const void *)(slot + shape->hidden), n, ROW);
    }
    if (!(spoil & 2))
        f.crc = windows_crc(&f, sequence);
    memcpy(slot, &sequence, sizeof sequence);
    memcpy(slot + 8, &f, sizeof f);
}

/* n_touched: slots that are said to have been written. */
static size_t build(unsigned char *file, source *s, uint64_t n_touched)
{
    windows_shape shape;
    windows_header h;

    must(windows_plan(&shape, &options, NULL) == PL_OK && shape.n_slots >= SLOTS);
    memset(file, 0, shape.file_bytes);
    windows_make_header(&h, &shape, options.target);
    memcpy(file, &h, sizeof h);
    memcpy(file + WINDOWS_TOUCHED, &n_touched, sizeof n_touched);
    for (int i = 0; i < shape.n_slots && s->n > 0; i++)
        build_slot(s, file + WINDOWS_HEADER + (size_t)i * shape.slot_bytes, &shape);
    return shape.file_bytes;
}

enum { TRAINS, HELD_OUT, SERVED, SERVED_BY = 2 };

static void check_text(const pl_feature_window *w, int kind)
{
    must(w->n >= 1 && w->n <= WINDOW && w->position >= 0 && w->n_prompt >= 0 && w->top_k >= 0);
    must(w->position <= WINDOWS_PLACE_MAX && w->n_prompt <= WINDOWS_PLACE_MAX);
    must(isfinite(w->temperature) && w->temperature >= 0 && w->top_p > 0 && w->top_p <= 1);
    must(w->min_p >= 0 && w->min_p <= 1 && (w->is_last == 0 || w->is_last == 1));
    must(w->served_from >= 0 && w->served_from <= w->n);
    must(kind == SERVED ? w->drafter == SERVED_BY
                        : (w->uid % PL_HELD_OUT == 0) == (kind == HELD_OUT));
    for (int i = 0; i < w->n; i++)
        must(w->tokens[i] >= 0 && w->tokens[i] < V);
}

static void check_window(const pl_feature_window *w, int kind)
{
    check_text(w, kind);
    must(windows_is_finite(w->features, (size_t)w->n * PL_FEATURE_LAYERS * ROW));
    must(windows_is_finite(w->hidden, (size_t)w->n * ROW));
}

static void check_choice(pl_windows *b, int kind)
{
    const pl_windows_pick p = {.is_held_out = kind == HELD_OUT,
        .served_by = kind == SERVED ? SERVED_BY : 0,
        .newest = 3,
        .seed = 1};
    const size_t room = pl_windows_room(&options);
    pl_feature_window out[OUT];
    unsigned char *storage = malloc(OUT * room); /* of exactly this size, for ASan */

    must(storage != NULL);
    const int n = pl_windows_choose(&b, 1, &p, storage, out, OUT);
    must(n >= 0 && n <= OUT);
    for (int i = 0; i < n; i++)
        check_window(&out[i], kind);
    free(storage);

    int32_t *tokens = malloc(OUT * WINDOW * sizeof *tokens);
    must(tokens != NULL);
    const int n_read = pl_windows_read(&b, 1, &p, tokens, out, OUT);
    must(n_read >= n && n_read <= OUT); /* the numbers of some may be damaged */
    for (int i = 0; i < n_read; i++)
        check_text(&out[i], kind);
    free(tokens);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    pl_windows_stats stats;
    pl_windows *b = NULL;
    pl_error err = {0};
    char path[64];

    if (size < 1 || size > 65536)
        return 0;
    unsigned char *file = malloc(options.max_bytes + size);
    const int fd = memfd_create("fuzz", MFD_CLOEXEC);
    must(file && fd >= 0);
    size_t n = size - 1;
    source s = {data + 1, n};
    if (data[0] % 2 == 0)
        memcpy(file, data + 1, n);
    else
        n = build(file, &s, 255u - data[0]); /* a 255 says none, most say all */
    must(write(fd, file, n) == (ssize_t)n);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);

    const pl_status st = pl_windows_attach(&b, path, &options, &err);
    must(st == PL_OK || (st == PL_E_FORMAT && err.msg[0] != 0 && !b));
    if (st == PL_OK) {
        check_choice(b, TRAINS);
        check_choice(b, HELD_OUT);
        check_choice(b, SERVED);
        pl_windows_get_stats(b, &stats);
        must(stats.n_used <= stats.n_slots && stats.bytes == n && stats.n_put >= 0);
    }
    must(st == PL_OK || data[0] % 2 == 0);
    pl_windows_close(b);
    (void)close(fd);
    free(file);
    return 0;
}
