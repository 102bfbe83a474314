/* trainer/windows_slot.c - what a data buffer's file looks like: sizes, header, one slot in and
 * out. Whatever is read here may have been written by anything. */
#include "trainer/windows_internal.h"

#include "core/file.h"
#include "core/hash.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

static const char magic[8] = {'P', 'L', 'W', 'I', 'N', 'D', 'O', 'W'};

static size_t round_up(size_t n, size_t unit)
{
    return (n + unit - 1) / unit * unit;
}

/* ---- sizes and header ---- */

static void lay_out(windows_shape *s, int window, int n_embd)
{
    s->window = window;
    s->n_embd = n_embd;
    s->row = round_up((size_t)n_embd, 32);
    s->features = WINDOWS_HEAD + round_up((size_t)window * sizeof(int32_t), 64);
    s->hidden = s->features + (size_t)window * PL_FEATURE_LAYERS * s->row * sizeof(uint16_t);
    s->slot_bytes = s->hidden + (size_t)window * s->row * sizeof(uint16_t);
}

/* Whole pages, so that no file system takes more than the size says. */
static uint64_t file_bytes(uint64_t n_slots, uint64_t slot_bytes)
{
    return round_up(WINDOWS_HEADER + n_slots * slot_bytes, 4096);
}

static pl_status check_options(const pl_windows_options *o, pl_error *err)
{
    if (o->window < 1 || o->window > WINDOWS_ROWS_MAX || o->n_embd < 1 ||
        o->n_embd > WINDOWS_EMBD_MAX)
        return pl_fail(err, PL_E_INVAL,
            "data buffer: windows of %d rows of %d numbers: 1 to %d rows, 1 to %d numbers",
            o->window, o->n_embd, WINDOWS_ROWS_MAX, WINDOWS_EMBD_MAX);
    return PL_OK;
}

pl_status windows_plan(windows_shape *s, const pl_windows_options *o, pl_error *err)
{
    const pl_status st = check_options(o, err);

    if (st != PL_OK)
        return st;
    memset(s, 0, sizeof *s);
    lay_out(s, o->window, o->n_embd);
    const uint64_t room = o->max_bytes / 4096 * 4096;
    const uint64_t n = room < WINDOWS_HEADER ? 0 : (room - WINDOWS_HEADER) / s->slot_bytes;
    if (n < 1)
        return pl_fail(err, PL_E_INVAL,
            "data buffer of %zu bytes holds no window of %d rows: give it %llu bytes or more",
            o->max_bytes, o->window, (unsigned long long)file_bytes(1, s->slot_bytes));
    s->n_slots = n > WINDOWS_SLOTS_MAX ? WINDOWS_SLOTS_MAX : (int)n;
    s->file_bytes = file_bytes((uint64_t)s->n_slots, s->slot_bytes);
    return PL_OK;
}

size_t windows_room(int window, int n_embd)
{
    windows_shape s;
    lay_out(&s, window, n_embd);
    return s.slot_bytes - WINDOWS_HEAD;
}

void windows_make_header(windows_header *h, const windows_shape *s, uint64_t target)
{
    memset(h, 0, sizeof *h);
    memcpy(h->magic, magic, sizeof magic);
    h->layout = WINDOWS_LAYOUT;
    h->head_bytes = WINDOWS_HEAD;
    h->target = target;
    h->file_bytes = s->file_bytes;
    h->slot_bytes = s->slot_bytes;
    h->n_slots = (uint32_t)s->n_slots;
    h->window = (uint32_t)s->window;
    h->n_embd = (uint32_t)s->n_embd;
    h->crc = pl_crc32c(0, h, offsetof(windows_header, crc));
}

pl_status windows_check_header(windows_shape *s, const windows_header *h, uint64_t n_bytes,
    const pl_windows_options *o, pl_error *err)
{
    const pl_status st = check_options(o, err);

    if (st != PL_OK)
        return st;
    memset(s, 0, sizeof *s);
    lay_out(s, o->window, o->n_embd);
    if (memcmp(h->magic, magic, sizeof magic) != 0)
        return pl_fail(err, PL_E_FORMAT, "not a data buffer, or one that is not ready yet");
    if (h->crc != pl_crc32c(0, h, offsetof(windows_header, crc)))
        return pl_fail(err, PL_E_FORMAT, "its header is damaged");
    if (h->layout != WINDOWS_LAYOUT || h->head_bytes != WINDOWS_HEAD)
        return pl_fail(err, PL_E_FORMAT, "layout %u, this program's is %d: made by another version",
            h->layout, WINDOWS_LAYOUT);
    if (h->target != o->target || h->n_embd != (uint32_t)o->n_embd)
        return pl_fail(err, PL_E_FORMAT, "it holds another model's features");
    if (h->window != (uint32_t)o->window || h->slot_bytes != s->slot_bytes)
        return pl_fail(err, PL_E_FORMAT, "windows of %u rows, wanted are %d: another configuration",
            h->window, o->window);
    if (h->n_slots < 1 || h->n_slots > WINDOWS_SLOTS_MAX ||
        h->file_bytes != file_bytes(h->n_slots, s->slot_bytes) || h->file_bytes != n_bytes)
        return pl_fail(err, PL_E_FORMAT, "%llu bytes, its header says %llu: truncated or damaged",
            (unsigned long long)n_bytes, (unsigned long long)h->file_bytes);
    s->n_slots = (int)h->n_slots;
    s->file_bytes = h->file_bytes;
    return PL_OK;
}

/* ---- fields and data ---- */

windows_word *windows_slot(const pl_windows *b, int i)
{
    return b->words + (WINDOWS_HEADER + (uint64_t)i * b->shape.slot_bytes) / 8;
}

int windows_touched(const pl_windows *b)
{
    const uint64_t n = atomic_load_explicit(&b->words[WINDOWS_TOUCHED / 8], memory_order_acquire);
    return n < (uint64_t)b->shape.n_slots ? (int)n : b->shape.n_slots;
}

uint32_t windows_crc(const windows_small *f, uint64_t sequence)
{
    const uint32_t seed = pl_crc32c(0, &sequence, sizeof sequence);
    return pl_crc32c(seed, f, offsetof(windows_small, crc));
}

uint64_t windows_hash(
    const int32_t *tokens, const uint16_t *features, const uint16_t *hidden, int n, size_t row)
{
    const size_t wide = (size_t)n * row * sizeof(uint16_t);
    const uint64_t h[] = {pl_hash64(tokens, (size_t)n * sizeof *tokens),
        pl_hash64(features, wide * PL_FEATURE_LAYERS), pl_hash64(hidden, wide)};

    return pl_hash64(h, sizeof h);
}

int windows_is_sane(const windows_small *f, int window)
{
    const int has_place = f->n >= 1 && f->n <= window && f->position >= 0 &&
                          f->position <= WINDOWS_PLACE_MAX && f->n_prompt >= 0 &&
                          f->n_prompt <= WINDOWS_PLACE_MAX;

    const int has_end = f->max_tokens >= 0 && f->max_tokens <= WINDOWS_PLACE_MAX &&
                        f->served_from >= 0 && f->served_from <= f->n;

    return has_place && has_end && (f->is_last == 0 || f->is_last == 1) && f->top_k >= 0 &&
           isfinite(f->temperature) && f->temperature >= 0 && isfinite(f->top_p) && f->top_p > 0 &&
           f->top_p <= 1 && isfinite(f->min_p) && f->min_p >= 0 && f->min_p <= 1;
}

/* bf16: NaN and infinity have an exponent of ones.  No early exit, so that it is a vector loop. */
int windows_is_finite(const uint16_t *x, size_t n)
{
    uint16_t worst = 0;

    for (size_t i = 0; i < n; i++) {
        const uint16_t e = x[i] & 0x7f80;
        worst = e > worst ? e : worst;
    }
    return worst != 0x7f80;
}

/* ---- a slot in and out ---- */

static void load_words(const windows_word *from, void *to, size_t n_bytes)
{
    unsigned char *p = to;

    for (size_t i = 0; i < n_bytes; i += 8) {
        const uint64_t x = atomic_load_explicit(&from[i / 8], memory_order_acquire);
        memcpy(p + i, &x, n_bytes - i < 8 ? n_bytes - i : 8);
    }
}

static void store_words(windows_word *to, const void *from, size_t n_bytes)
{
    const unsigned char *p = from;

    for (size_t i = 0; i < n_bytes; i += 8) {
        uint64_t x = 0;
        memcpy(&x, p + i, n_bytes - i < 8 ? n_bytes - i : 8);
        atomic_store_explicit(&to[i / 8], x, memory_order_release);
    }
}

/* The small fields under sequence number *sequence, which may be old by now. */
static int load_small(const windows_word *slot, int window, windows_small *f, uint64_t *sequence)
{
    *sequence = atomic_load_explicit(slot, memory_order_acquire);
    if (*sequence == 0 || *sequence % 2 != 0)
        return 0;
    load_words(slot + 1, f, sizeof *f);
    return f->crc == windows_crc(f, *sequence) && windows_is_sane(f, window);
}

static int stood_still(const windows_word *slot, uint64_t sequence)
{
    return atomic_load_explicit(slot, memory_order_relaxed) == sequence;
}

int windows_peek(const pl_windows *b, int i, windows_small *out)
{
    const windows_word *slot = windows_slot(b, i);
    uint64_t sequence;

    return load_small(slot, b->shape.window, out, &sequence) && stood_still(slot, sequence);
}

static int are_tokens(const int32_t *tokens, int n, int n_vocab)
{
    for (int i = 0; i < n; i++)
        if (tokens[i] < 0 || (n_vocab > 0 && tokens[i] >= n_vocab))
            return 0;
    return 1;
}

static void fill_window(pl_feature_window *w, const windows_small *f)
{
    memset(w, 0, sizeof *w);
    w->uid = f->uid;
    w->policy_version = f->policy_version;
    w->noise_key = f->noise_key;
    w->purpose = f->purpose;
    w->temperature = f->temperature;
    w->top_p = f->top_p;
    w->min_p = f->min_p;
    w->top_k = f->top_k;
    w->n_prompt = f->n_prompt;
    w->position = f->position;
    w->n = f->n;
    w->is_last = f->is_last;
    w->max_tokens = f->max_tokens;
    w->served_from = f->served_from;
    w->drafter = f->drafter;
}

int windows_copy(const pl_windows *b, int i, uint64_t serial, void *storage, pl_feature_window *out)
{
    const windows_shape *s = &b->shape;
    const windows_word *slot = windows_slot(b, i);
    unsigned char *base = storage;
    windows_small f;
    uint64_t sequence;

    if (!load_small(slot, s->window, &f, &sequence) || f.serial != serial)
        return 0;
    int32_t *tokens = storage;
    uint16_t *features = (uint16_t *)(void *)(base + s->features - WINDOWS_HEAD);
    uint16_t *hidden = (uint16_t *)(void *)(base + s->hidden - WINDOWS_HEAD);
    const size_t n = (size_t)f.n, n_hidden = n * s->row;
    load_words(slot + WINDOWS_HEAD / 8, tokens, n * sizeof *tokens);
    load_words(slot + s->features / 8, features, n_hidden * PL_FEATURE_LAYERS * sizeof *features);
    load_words(slot + s->hidden / 8, hidden, n_hidden * sizeof *hidden);
    if (!stood_still(slot, sequence) || pl_crc32c(0, tokens, n * sizeof *tokens) != f.tokens ||
        windows_hash(tokens, features, hidden, f.n, s->row) != f.hash ||
        !are_tokens(tokens, f.n, b->n_vocab) ||
        !windows_is_finite(features, n_hidden * PL_FEATURE_LAYERS) ||
        !windows_is_finite(hidden, n_hidden))
        return 0;
    fill_window(out, &f);
    out->tokens = tokens;
    out->features = features;
    out->hidden = hidden;
    return 1;
}

int windows_copy_tokens(
    const pl_windows *b, int i, uint64_t serial, int32_t *storage, pl_feature_window *out)
{
    const windows_word *slot = windows_slot(b, i);
    windows_small f;
    uint64_t sequence;

    if (!load_small(slot, b->shape.window, &f, &sequence) || f.serial != serial)
        return 0;
    const size_t n_bytes = (size_t)f.n * sizeof *storage;
    load_words(slot + WINDOWS_HEAD / 8, storage, n_bytes);
    if (!stood_still(slot, sequence) || pl_crc32c(0, storage, n_bytes) != f.tokens ||
        !are_tokens(storage, f.n, b->n_vocab))
        return 0;
    fill_window(out, &f);
    out->tokens = storage;
    return 1;
}

void windows_store(pl_windows *b, int i, const windows_small *f, const pl_feature_window *w)
{
    const windows_shape *s = &b->shape;
    windows_word *slot = windows_slot(b, i);
    const size_t n = (size_t)w->n, wide = n * s->row * sizeof(uint16_t);
    const uint64_t odd = (atomic_load_explicit(slot, memory_order_relaxed) + 1) | 1;
    windows_small sealed = *f;

    sealed.tokens = pl_crc32c(0, w->tokens, n * sizeof *w->tokens);
    sealed.crc = windows_crc(&sealed, odd + 1);
    atomic_store_explicit(slot, odd, memory_order_relaxed);
    store_words(slot + 1, &sealed, sizeof sealed);
    store_words(slot + WINDOWS_HEAD / 8, w->tokens, n * sizeof *w->tokens);
    store_words(slot + s->features / 8, w->features, wide * PL_FEATURE_LAYERS);
    store_words(slot + s->hidden / 8, w->hidden, wide);
    atomic_store_explicit(slot, odd + 1, memory_order_release);
    if (i >= windows_touched(b))
        atomic_store_explicit(
            &b->words[WINDOWS_TOUCHED / 8], (uint64_t)i + 1, memory_order_release);
}
