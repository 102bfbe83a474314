/* Claims: a data buffer takes the bytes it was given and no more; what a reader copies out is what
 * was put, whoever writes meanwhile and wherever a writer was killed; whatever else is in the file
 * is refused or passed over; what goes and what is chosen is as trainer/windows.h says. */
#include "core/file.h"
#include "trainer/windows_internal.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { C = 40, ROW = 64, WINDOW = 4, SLOTS = 16, V = 1000, MAX = 64 };

static char dir[] = "/tmp/pl_windows_XXXXXX";
static char path[64], other[64];
static pl_error err;
static _Alignas(64) unsigned char storage[MAX * 8192];
static pl_feature_window out[MAX];

static pl_windows_options options(int n_slots)
{
    windows_shape s;
    pl_windows_options o = {
        .max_bytes = 1 << 20, .window = WINDOW, .n_embd = C, .target = 77, .n_vocab = V};

    cr_assert_eq(windows_plan(&s, &o, &err), PL_OK);
    o.max_bytes = WINDOWS_HEADER + ((size_t)n_slots * s.slot_bytes + 4095) / 4096 * 4096;
    cr_assert_eq(windows_plan(&s, &o, &err), PL_OK);
    cr_assert_geq(s.n_slots, n_slots);
    return o;
}

static void begin(void)
{
    cr_assert_not_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/a", dir);
    snprintf(other, sizeof other, "%s/b", dir);
    memset(&err, 0, sizeof err);
}

static void end(void)
{
    cr_assert_eq(pl_dir_remove(dir, &err), PL_OK, "%s", err.msg);
}

TestSuite(windows, .init = begin, .fini = end);

/* ---- windows whose every number follows from uid, version and position ---- */

typedef struct made {
    pl_feature_window w;
    int32_t tokens[WINDOW];
    uint16_t features[WINDOW * PL_FEATURE_LAYERS * ROW], hidden[WINDOW * ROW];
} made;

static uint16_t number(const pl_feature_window *w, int i)
{
    const uint32_t x = w->uid * 2654435761u + w->policy_version * 40503u +
                       (uint32_t)w->position * 977u + (uint32_t)i * 31u;
    return (uint16_t)(x >> 9 & 0x3fff);
}

static void make(made *m, uint32_t uid, uint32_t version, int position)
{
    m->w = (pl_feature_window){.uid = uid,
        .policy_version = version,
        .noise_key = 5 + (uint64_t)uid,
        .temperature = 1,
        .top_p = 1,
        .n_prompt = 10,
        .max_tokens = 40 + (int)uid,
        .position = position,
        .n = 1 + (int)((uid + (uint32_t)position) % WINDOW),
        .is_last = (int)(uid % 2),
        .served_from = (int)(uid % 2),
        .drafter = 1 + uid % 3,
        .tokens = m->tokens,
        .features = m->features,
        .hidden = m->hidden};
    for (int i = 0; i < WINDOW; i++)
        m->tokens[i] = number(&m->w, 7 + i) % V;
    for (int i = 0; i < WINDOW * PL_FEATURE_LAYERS * ROW; i++)
        m->features[i] = number(&m->w, i);
    for (int i = 0; i < WINDOW * ROW; i++)
        m->hidden[i] = number(&m->w, 3 + i);
}

static int is_as_made(const pl_feature_window *w)
{
    made m;

    make(&m, w->uid, w->policy_version, w->position);
    return w->n == m.w.n && w->is_last == m.w.is_last && w->noise_key == m.w.noise_key &&
           w->n_prompt == 10 && w->max_tokens == m.w.max_tokens && w->temperature == 1.0f &&
           w->top_p == 1.0f && w->min_p == 0 && w->top_k == 0 &&
           w->served_from == m.w.served_from && w->drafter == m.w.drafter &&
           memcmp(w->tokens, m.tokens, sizeof(int32_t) * (size_t)w->n) == 0 &&
           memcmp(w->features, m.features, (size_t)w->n * 2 * PL_FEATURE_LAYERS * ROW) == 0 &&
           memcmp(w->hidden, m.hidden, (size_t)w->n * 2 * ROW) == 0;
}

static void put(pl_windows *b, uint32_t uid, uint32_t version, int position)
{
    made m;

    make(&m, uid, version, position);
    cr_assert_eq(pl_windows_put(b, &m.w, &err), PL_OK, "%s", err.msg);
}

static pl_windows *writer(const char *at, const pl_windows_options *o)
{
    pl_windows *b = NULL;
    cr_assert_eq(pl_windows_open(&b, at, o, &err), PL_OK, "%s", err.msg);
    return b;
}

static pl_windows *reader(const char *at, const pl_windows_options *o)
{
    pl_windows *b = NULL;
    cr_assert_eq(pl_windows_attach(&b, at, o, &err), PL_OK, "%s", err.msg);
    return b;
}

static int choose(pl_windows *b, int is_held_out, uint32_t newest, uint64_t seed, int max)
{
    const pl_windows_pick p = {
        .is_held_out = is_held_out, .newest = newest, .seed = seed, .min_rows = 1};

    const int n = pl_windows_choose(&b, 1, &p, storage, out, max);
    for (int i = 0; i < n; i++)
        cr_assert(is_as_made(&out[i]), "window %d of sample %u", i, out[i].uid);
    return n;
}

static int holds(pl_windows *b, uint32_t uid, uint32_t version, int position)
{
    windows_small f;

    for (int i = 0; i < b->shape.n_slots; i++)
        if (windows_peek(b, i, &f) && f.uid == uid && f.policy_version == version &&
            f.position == position)
            return 1;
    return 0;
}

static pl_windows_stats stats(const pl_windows *b)
{
    pl_windows_stats s;
    pl_windows_get_stats(b, &s);
    return s;
}

/* Change a byte of the file as something else than the program would. */
static void poke(off_t offset, unsigned char x)
{
    const int fd = open(path, O_WRONLY);
    cr_assert_geq(fd, 0);
    cr_assert_eq(pwrite(fd, &x, 1, offset), 1);
    cr_assert_eq(close(fd), 0);
}

/* ---- keeping ---- */

Test(windows, give_back_what_was_put)
{
    const pl_windows_options o = options(SLOTS);
    pl_windows *w = writer(path, &o), *r = reader(path, &o);

    for (uint32_t uid = 1; uid < 7; uid++)
        put(w, uid, 3, 10);
    cr_assert_eq(choose(r, 0, 3, 1, MAX), 6);
    const pl_windows_stats s = stats(r);
    cr_assert_eq(s.n_put, 6);
    cr_assert_eq(s.n_used, 6);
    cr_assert_eq(s.n_tokens,
        (1 + 11 % 4) + (1 + 12 % 4) + (1 + 13 % 4) + (1 + 14 % 4) + (1 + 15 % 4) + (1 + 16 % 4));
    pl_windows_close(r);
    pl_windows_close(w);
}

Test(windows, never_take_more_bytes_than_given_and_take_them_at_once)
{
    const size_t slot = windows_room(WINDOW, C) + WINDOWS_HEAD;

    for (size_t given = 4096 + slot; given < 4096 + 9 * slot; given += slot / 3 + 1) {
        const pl_windows_options o = {
            .max_bytes = given, .window = WINDOW, .n_embd = C, .target = 77};
        pl_windows *w = NULL;
        struct stat a, b;
        const pl_status st = pl_windows_open(&w, path, &o, &err);
        if (st == PL_E_INVAL) /* less than the pages of one window */
            continue;
        cr_assert_eq(st, PL_OK, "%s", err.msg);
        cr_assert_eq(stat(path, &a), 0);
        cr_assert_leq((size_t)a.st_size, given);
        cr_assert_leq((size_t)a.st_blocks * 512, given);
        cr_assert_geq((size_t)a.st_blocks * 512, (size_t)a.st_size);
        for (uint32_t uid = 0; uid < 40; uid++)
            put(w, uid, uid / 8, 10);
        cr_assert_eq(stat(path, &b), 0);
        cr_assert_eq(a.st_size, b.st_size);
        cr_assert_eq(a.st_blocks, b.st_blocks);
        cr_assert_eq(stats(w).bytes, (size_t)a.st_size);
        cr_assert_eq(stats(w).n_used, stats(w).n_slots);
        pl_windows_close(w);
    }
}

Test(windows, say_how_many_bytes_one_window_needs)
{
    const pl_windows_options o = {.max_bytes = 6000, .window = WINDOW, .n_embd = C};
    pl_windows *w = NULL;

    cr_assert_eq(pl_windows_open(&w, path, &o, &err), PL_E_INVAL);
    cr_assert_not_null(strstr(err.msg, "bytes or more"), "%s", err.msg);
    cr_assert_null(w);
    cr_assert(!pl_path_exists(path));
}

Test(windows, say_that_the_disk_is_full_and_leave_nothing)
{
    const pl_windows_options o = options(SLOTS);
    const struct rlimit limit = {8192, 8192};
    pl_windows *w = NULL;

    cr_assert_neq((void *)signal(SIGXFSZ, SIG_IGN), (void *)SIG_ERR);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    cr_assert_eq(pl_windows_open(&w, path, &o, &err), PL_E_IO);
    cr_assert_not_null(strstr(err.msg, "bytes"), "%s", err.msg);
    cr_assert(!pl_path_exists(path));
}

Test(windows, are_not_kept_with_numbers_that_are_not_finite)
{
    const pl_windows_options o = options(SLOTS);
    pl_windows *w = writer(path, &o);
    made m;

    make(&m, 3, 1, 10);
    m.features[m.w.n * PL_FEATURE_LAYERS * ROW - 1] = 0x7fc0; /* NaN */
    cr_assert_eq(pl_windows_put(w, &m.w, &err), PL_E_NUMERIC);
    make(&m, 3, 1, 10);
    m.hidden[0] = 0xff80; /* minus infinity */
    cr_assert_eq(pl_windows_put(w, &m.w, &err), PL_E_NUMERIC);
    make(&m, 3, 1, 10);
    m.w.temperature = NAN;
    cr_assert_eq(pl_windows_put(w, &m.w, &err), PL_E_NUMERIC);
    cr_assert_eq(stats(w).n_bad, 3);
    cr_assert_eq(stats(w).n_used, 0);
    make(&m, 3, 1, 10);
    m.tokens[0] = V;
    cr_assert_eq(pl_windows_put(w, &m.w, &err), PL_E_INVAL);
    make(&m, 3, 1, 10);
    m.w.n = WINDOW + 1;
    cr_assert_eq(pl_windows_put(w, &m.w, &err), PL_E_INVAL);
    cr_assert_eq(stats(w).n_bad, 3);
    cr_assert_eq(stats(w).n_put, 0);
    pl_windows_close(w);
}

Test(windows, are_kept_once)
{
    const pl_windows_options o = options(SLOTS);
    pl_windows *w = writer(path, &o);

    put(w, 3, 1, 10);
    put(w, 3, 1, 10);
    put(w, 3, 1, 14);
    cr_assert_eq(stats(w).n_used, 2);
    pl_windows_close(w);
}

/* ---- what goes ---- */

static void fill(pl_windows *w, uint32_t version)
{
    for (int i = 0; i < w->shape.n_slots; i++)
        put(w, (uint32_t)i, version, 10);
}

Test(windows, of_the_oldest_version_go_first_and_in_order)
{
    const pl_windows_options o = options(SLOTS);
    pl_windows *w = writer(path, &o);
    const int n = w->shape.n_slots;

    put(w, 100, 2, 10);
    for (int i = 1; i < n; i++)
        put(w, 100 + (uint32_t)i, i % 2 ? 1 : 2, 10);
    for (int i = 0; i < n / 2; i++) { /* the odd ones, oldest first */
        cr_assert(holds(w, 101 + 2 * (uint32_t)i, 1, 10));
        put(w, 500 + (uint32_t)i, 3, 10);
        cr_assert(!holds(w, 101 + 2 * (uint32_t)i, 1, 10));
        cr_assert(i == n / 2 - 1 || holds(w, 103 + 2 * (uint32_t)i, 1, 10));
    }
    for (int i = 0; i < n; i += 2)
        cr_assert(holds(w, 100 + (uint32_t)i, 2, 10));
    cr_assert_eq(stats(w).n_evicted, n / 2);
    pl_windows_close(w);
}

Test(windows, of_long_responses_of_the_version_before_stay_longest)
{
    const pl_windows_options o = options(SLOTS);
    pl_windows *w = writer(path, &o);
    const int n = w->shape.n_slots;

    for (int i = 0; i < n; i++) /* long and short in turn; the long ones are older */
        put(w, (uint32_t)i, 7, i % 2 ? 10 + i : 400 + i);
    for (int i = 0; i < n / 2; i++) {
        put(w, 100 + (uint32_t)i, 8, 10);
        cr_assert(!holds(w, 2 * (uint32_t)i + 1, 7, 11 + 2 * i));
    }
    for (int i = 0; i < n; i += 2)
        cr_assert(holds(w, (uint32_t)i, 7, 400 + i));
    put(w, 200, 8, 10); /* now the least long one */
    cr_assert(!holds(w, 0, 7, 400));
    cr_assert(holds(w, 2, 7, 402));
    put(w, 300, 9, 10); /* two behind the newest: length does not count any more */
    put(w, 301, 9, 10);
    cr_assert(!holds(w, 2, 7, 402));
    cr_assert(!holds(w, 4, 7, 404));
    pl_windows_close(w);
}

Test(windows, that_come_late_do_not_push_out_newer_ones)
{
    const pl_windows_options o = options(SLOTS);
    pl_windows *w = writer(path, &o);

    fill(w, 9);
    put(w, 1000, 8, 10);
    cr_assert(!holds(w, 1000, 8, 10));
    cr_assert_eq(stats(w).n_used, w->shape.n_slots);
    cr_assert_eq(stats(w).n_evicted, 1);
    for (int i = 0; i < w->shape.n_slots; i++)
        cr_assert(holds(w, (uint32_t)i, 9, 10));
    pl_windows_close(w);
}

Test(windows, of_a_run_that_was_set_back_go_first)
{
    const pl_windows_options o = options(SLOTS);
    pl_windows *w = writer(path, &o);

    fill(w, 9);
    pl_windows_close(w);
    w = writer(path, &o);
    put(w, 1000, 4, 10);
    put(w, 1001, 4, 10);
    cr_assert(holds(w, 1000, 4, 10));
    cr_assert(holds(w, 1001, 4, 10));
    pl_windows_close(w);
}

/* ---- who may open ---- */

Test(windows, have_one_writer)
{
    const pl_windows_options o = options(SLOTS);
    pl_windows *w = writer(path, &o), *second = NULL, *r = reader(path, &o);
    made m;

    cr_assert_eq(pl_windows_open(&second, path, &o, &err), PL_E_PEER);
    cr_assert_null(second);
    make(&m, 1, 1, 10);
    cr_assert_eq(pl_windows_put(r, &m.w, &err), PL_E_INVAL);
    pl_windows_close(r);
    pl_windows_close(w);
    pl_windows_close(writer(path, &o));
}

static void refuse(const pl_windows_options *o, pl_status want)
{
    pl_windows *r = NULL;

    memset(&err, 0, sizeof err);
    cr_assert_eq(pl_windows_attach(&r, path, o, &err), want, "%s", err.msg);
    cr_assert_null(r);
    cr_assert_not_null(strstr(err.msg, path), "%s", err.msg);
}

Test(windows, of_another_target_or_size_are_refused_by_readers_and_replaced_by_the_writer)
{
    const pl_windows_options o = options(SLOTS);
    pl_windows_options p[] = {o, o, o, o};

    p[0].target = 78;
    p[1].window = 8;
    p[2].n_embd = 64;
    p[3].max_bytes *= 2; /* of the writer only */
    for (int i = 0; i < 4; i++) {
        pl_windows *w = writer(path, &o);
        put(w, 1, 1, 10);
        pl_windows *r = reader(path, &o);
        if (i < 3)
            refuse(&p[i], PL_E_FORMAT);
        pl_windows_close(w);
        pl_windows *fresh = writer(path, &p[i]);
        cr_assert_eq(stats(fresh).n_used, 0);
        pl_windows_close(fresh);
        cr_assert_eq(choose(r, 0, 1, 1, MAX), 1); /* who reads the old one is not disturbed */
        pl_windows_close(r);
    }
}

Test(windows, that_are_missing_truncated_or_no_data_buffer_are_refused)
{
    const pl_windows_options o = options(SLOTS);
    pl_windows *w;

    refuse(&o, PL_E_NOENT);
    pl_windows_close(writer(path, &o));
    struct stat s;
    cr_assert_eq(stat(path, &s), 0);
    const off_t cuts[] = {s.st_size - 1, s.st_size - 4096, 4096, 4095, 56, 1, 0};
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        cr_assert_eq(truncate(path, cuts[i]), 0);
        refuse(&o, PL_E_FORMAT);
    }
    pl_windows_close(writer(path, &o)); /* which makes it whole */
    pl_windows_close(reader(path, &o));
    for (int i = 0; i < 56; i++) {
        pl_windows_close(writer(path, &o));
        char *text;
        size_t n;
        cr_assert_eq(pl_file_read(&text, &n, path, 1 << 20, &err), PL_OK);
        poke(i, (unsigned char)(text[i] ^ 1));
        refuse(&o, PL_E_FORMAT);
        poke(i, (unsigned char)text[i]);
        free(text);
    }
    poke(0, 'X'); /* somebody's file */
    cr_assert_eq(pl_windows_open(&w, path, &o, &err), PL_E_FORMAT);
    cr_assert_eq(stat(path, &s), 0);
    cr_assert_eq(unlink(path), 0);
    cr_assert_eq(mkdir(path, 0700), 0);
    refuse(&o, PL_E_FORMAT);
}

Test(windows, that_lose_their_end_while_they_are_read_are_empty)
{
    const pl_windows_options o = options(SLOTS);
    pl_windows *w = writer(path, &o), *r = reader(path, &o);

    fill(w, 1);
    pl_windows_close(w);
    cr_assert_gt(choose(r, 0, 1, 1, MAX), 0);
    cr_assert_eq(truncate(path, 4096), 0);
    cr_assert_eq(choose(r, 0, 1, 1, MAX), 0);
    pl_windows_close(r);
}

/* ---- torn and damaged slots ---- */

Test(windows, that_were_being_written_are_passed_over_and_their_slot_is_used_again)
{
    const pl_windows_options o = options(SLOTS);
    pl_windows *w = writer(path, &o);

    put(w, 1, 1, 10);
    put(w, 2, 1, 10);
    pl_windows_close(w);
    poke(WINDOWS_HEADER, 3); /* the sequence word of slot 0: odd, as a killed writer leaves it */
    w = writer(path, &o);
    cr_assert_eq(choose(w, 0, 1, 1, MAX), 1);
    cr_assert_eq(out[0].uid, 2);
    cr_assert_eq(stats(w).n_used, 1);
    put(w, 3, 1, 10);
    put(w, 4, 1, 10);
    cr_assert(holds(w, 3, 1, 10));
    cr_assert_eq(stats(w).n_used, 3);
    cr_assert_eq(choose(w, 0, 1, 1, MAX), 3);
    pl_windows_close(w);
}

Test(windows, with_a_byte_changed_are_never_given_out)
{
    const pl_windows_options o = options(SLOTS);
    pl_windows *w = writer(path, &o);
    const windows_shape s = w->shape;

    put(w, 3, 1, 10); /* of 1 + 13 % 4 = 2 rows */
    char *text;
    size_t n;
    cr_assert_eq(pl_file_read(&text, &n, path, 1 << 20, &err), PL_OK);
    const size_t ranges[][2] = {{0, 80}, {WINDOWS_HEAD, WINDOWS_HEAD + 8},
        {s.features, s.features + 2 * 3 * ROW * 2}, {s.hidden, s.hidden + 2 * ROW * 2}};
    for (int k = 0; k < 4; k++)
        for (size_t i = ranges[k][0]; i < ranges[k][1]; i++) {
            poke((off_t)(WINDOWS_HEADER + i), (unsigned char)(text[WINDOWS_HEADER + i] ^ 0x10));
            cr_assert_eq(choose(w, 0, 1, 1, MAX), 0, "byte %zu of the slot", i);
            poke((off_t)(WINDOWS_HEADER + i), (unsigned char)text[WINDOWS_HEADER + i]);
        }
    cr_assert_eq(choose(w, 0, 1, 1, MAX), 1);
    free(text);
    pl_windows_close(w);
}

/* Slot 0 anew, with fields and numbers as a liar writes them, but with right sums. */
static void forge(pl_windows *w, const made *m, const windows_small *f)
{
    windows_small g = *f;
    g.hash = windows_hash(m->tokens, m->features, m->hidden, m->w.n, w->shape.row);
    windows_store(w, 0, &g, &m->w);
}

Test(windows, that_no_sample_can_have_are_passed_over_though_their_sums_are_right)
{
    const pl_windows_options o = options(SLOTS);
    pl_windows *w = writer(path, &o);
    windows_small f, g;
    made m;

    put(w, 3, 1, 10);
    cr_assert(windows_peek(w, 0, &f));
    make(&m, 3, 1, 10);
#define FORGE(change)                                                                              \
    do {                                                                                           \
        g = f;                                                                                     \
        make(&m, 3, 1, 10);                                                                        \
        change;                                                                                    \
        forge(w, &m, &g);                                                                          \
        cr_assert_eq(choose(w, 0, 1, 1, MAX), 0, #change);                                         \
    } while (0)
    FORGE(g.n = 0);
    FORGE(g.n = -1);
    FORGE(g.n = WINDOW + 1);
    FORGE(g.n = INT32_MAX);
    FORGE(g.position = -1);
    FORGE(g.position = INT32_MAX);
    FORGE(g.n_prompt = INT32_MIN);
    FORGE(g.is_last = 2);
    FORGE(g.served_from = -1);
    FORGE(g.served_from = g.n + 1);
    FORGE(g.max_tokens = -1);
    FORGE(g.max_tokens = INT32_MAX);
    FORGE(g.top_k = -1);
    FORGE(g.temperature = -1);
    FORGE(g.temperature = NAN);
    FORGE(g.temperature = INFINITY);
    FORGE(g.top_p = 0);
    FORGE(g.min_p = 2);
    FORGE(m.tokens[1] = -1);
    FORGE(m.tokens[1] = V);
    FORGE(m.features[5] = 0x7f80);
    FORGE(m.hidden[5] = 0xffff);
    FORGE(g.n = 1); /* the hash is of two rows */
#undef FORGE
    make(&m, 3, 1, 10);
    forge(w, &m, &f);
    cr_assert_eq(choose(w, 0, 1, 1, MAX), 1);
    pl_windows_close(w);
}

/* ---- others at work ---- */

typedef struct reading {
    pl_windows *b;
    const atomic_int *stop;
    int64_t n_windows;
    int n_wrong;
} reading;

static void *read_on(void *arg)
{
    reading *r = arg;
    unsigned char *room = malloc(4 * windows_room(WINDOW, C));
    pl_feature_window w[4];
    uint64_t seed = 0;

    while (room && !atomic_load(r->stop)) {
        const pl_windows_pick p = {
            .is_held_out = seed % 4 == 0, .newest = (uint32_t)(seed % 50), .seed = seed};
        const int n = pl_windows_choose(&r->b, 1, &p, room, w, 4);
        for (int i = 0; i < n; i++)
            r->n_wrong += !is_as_made(&w[i]);
        r->n_windows += n;
        seed++;
    }
    free(room);
    return NULL;
}

Test(windows, are_whole_for_two_readers_while_one_writes)
{
    const pl_windows_options o = options(2); /* few slots: every put meets the readers */
    pl_windows *w = writer(path, &o);
    atomic_int stop = 0;
    reading r[2];
    pthread_t threads[2];

    for (int i = 0; i < 2; i++) {
        r[i] = (reading){.b = reader(path, &o), .stop = &stop};
        cr_assert_eq(pthread_create(&threads[i], NULL, read_on, &r[i]), 0);
    }
    for (uint32_t uid = 0; uid < 60000; uid++)
        put(w, uid, uid / 1200, 10 + (int)(uid % 100));
    atomic_store(&stop, 1);
    for (int i = 0; i < 2; i++) {
        cr_assert_eq(pthread_join(threads[i], NULL), 0);
        cr_assert_eq(r[i].n_wrong, 0);
        cr_assert_gt(r[i].n_windows, 100);
        pl_windows_close(r[i].b);
    }
    pl_windows_close(w);
}

/* The child never closes: it is killed wherever it is, most likely in the middle of a put. */
static void write_until_killed(const pl_windows_options *o)
{
    pl_windows *w = NULL;
    made m;

    if (pl_windows_open(&w, path, o, NULL) != PL_OK)
        _exit(1);
    for (uint32_t uid = 0;; uid++) {
        make(&m, uid, uid >> 20, 10 + (int)(uid % 100));
        if (pl_windows_put(w, &m.w, NULL) != PL_OK)
            _exit(1);
    }
}

Test(windows, are_as_they_were_after_their_writer_is_killed)
{
    const pl_windows_options o = options(SLOTS);
    pl_windows_close(writer(path, &o));

    for (int round = 0; round < 10; round++) {
        pl_windows *r = reader(path, &o);
        const pid_t pid = fork();
        cr_assert_geq(pid, 0);
        if (pid == 0)
            write_until_killed(&o);
        int status = 0;
        while (stats(r).n_put < 100 + 37 * round) /* or the child ended: then it fails below */
            if (waitpid(pid, &status, WNOHANG) == pid)
                cr_assert_fail("the writer ended");
        cr_assert_eq(kill(pid, SIGKILL), 0);
        cr_assert_eq(waitpid(pid, &status, 0), pid);
        pl_windows *w = writer(path, &o);
        const int n_used = stats(w).n_used;
        cr_assert_geq(n_used, w->shape.n_slots - 1);
        int n = choose(w, 0, 0, 1, MAX);
        n += choose(w, 1, 0, 1, MAX);
        cr_assert_eq(n, n_used);
        put(w, 1, 1, 10);
        cr_assert(holds(w, 1, 1, 10));
        pl_windows_close(w);
        pl_windows_close(r);
        cr_assert_eq(unlink(path), 0);
        pl_windows_close(writer(path, &o));
    }
}

/* ---- choice ---- */

Test(windows, that_are_held_out_never_train_and_stand_together)
{
    const pl_windows_options o = options(48);
    pl_windows *w = writer(path, &o);

    for (int position = 10; position < 22; position += 4)
        for (uint32_t uid = 0; uid < 16; uid++)
            put(w, uid, uid < 8 ? 5 : 6, position);
    for (uint64_t seed = 0; seed < 20; seed++) {
        cr_assert_eq(choose(w, 0, 6, seed, MAX), 42);
        for (int i = 0; i < 42; i++)
            cr_assert_neq(out[i].uid % 8, 0);
    }
    cr_assert_eq(choose(w, 1, 6, 3, MAX), 6);
    for (int i = 0; i < 6; i++) { /* the newest first, in order */
        cr_assert_eq(out[i].uid, i < 3 ? 8 : 0);
        cr_assert_eq(out[i].position, 10 + 4 * (i % 3));
    }
    cr_assert_eq(choose(w, 1, 6, 3, 2), 2);
    cr_assert_eq(out[1].uid, 8);
    pl_windows_close(w);
}

Test(windows, that_a_version_served_are_chosen_whether_they_train_or_not)
{
    const pl_windows_options o = options(48);
    pl_windows *w = writer(path, &o);
    pl_windows_pick p = {.newest = 6, .served_by = 3, .min_rows = 1, .is_held_out = 1};
    int n_want = 0, n_held_out = 0, n = 0;

    for (uint32_t uid = 0; uid < 16; uid++)
        for (int position = 10; position < 12; position++) {
            put(w, uid, uid < 8 ? 5 : 6, position);
            /* drafter: 1 + uid % 3; rows of the rounds that it served: n - uid % 2 */
            n_want += uid % 3 == 2 && 1 + ((int)uid + position) % WINDOW > (int)uid % 2;
        }
    for (uint64_t seed = 0; seed < 20; seed++, n_held_out = 0) {
        p.seed = seed;
        n = pl_windows_choose(&w, 1, &p, storage, out, MAX);
        cr_assert_eq(n, n_want);
        for (int i = 0; i < n; i++) {
            cr_assert(is_as_made(&out[i]));
            cr_assert_eq(out[i].drafter, 3);
            cr_assert_gt(out[i].n, out[i].served_from);
            cr_assert(i == 0 || out[i].uid == out[i - 1].uid ||
                          out[i].policy_version <= out[i - 1].policy_version,
                "the newest first, samples together");
            n_held_out += out[i].uid % 8 == 0;
        }
        cr_assert(n_held_out > 0 && n_held_out < n);
    }
    p.served_by = 9;
    cr_assert_eq(pl_windows_choose(&w, 1, &p, storage, out, MAX), 0);
    /* Nor is what was judged by trained on less. */
    for (int i = 0; i < w->shape.n_slots; i++)
        cr_assert_eq(w->candidates[i].n_chosen, 0);
    pl_windows_close(w);
}

Test(windows, are_chosen_alike_for_a_seed_in_whatever_slots_and_order_of_buffers)
{
    const pl_windows_options o = options(40);
    pl_windows *a = writer(path, &o), *b = writer(other, &o);
    const pl_windows_pick p = {.newest = 2, .seed = 9, .min_rows = 1};
    uint32_t first[8], second[8];

    for (uint32_t uid = 0; uid < 36; uid++) {
        put(a, uid, 2, 10);
        put(b, 100 + uid, 2, 10);
    }
    pl_windows *ab[] = {reader(path, &o), reader(other, &o)};
    cr_assert_eq(pl_windows_choose(ab, 2, &p, storage, out, 8), 8);
    for (int i = 0; i < 8; i++)
        first[i] = out[i].uid;
    pl_windows *ba[] = {reader(other, &o), reader(path, &o)};
    cr_assert_eq(pl_windows_choose(ba, 2, &p, storage, out, 8), 8);
    for (int i = 0; i < 8; i++)
        second[i] = out[i].uid;
    cr_assert_arr_eq(first, second, sizeof first);
    const pl_windows_pick q = {.newest = 2, .seed = 10, .min_rows = 1};
    pl_windows *fresh[] = {reader(path, &o), reader(other, &o)};
    cr_assert_eq(pl_windows_choose(fresh, 2, &q, storage, out, 8), 8);
    int n_same = 0;
    for (int i = 0; i < 8; i++)
        n_same += out[i].uid == first[i];
    cr_assert_lt(n_same, 8);
    pl_windows *all[] = {a, b, ab[0], ab[1], ba[0], ba[1], fresh[0], fresh[1]};
    for (int i = 0; i < 8; i++)
        pl_windows_close(all[i]);
}

Test(windows, that_were_chosen_least_go_first)
{
    const pl_windows_options o = options(40);
    pl_windows *w = writer(path, &o);
    int n_times[40] = {0};

    for (uint32_t uid = 0; uid < 40; uid++)
        put(w, uid, 2, 10);
    for (uint64_t seed = 0; seed < 30; seed++) { /* 35 that train, 7 at a time: six rounds of all */
        cr_assert_eq(choose(w, 0, 2, seed, 7), 7);
        for (int i = 0; i < 7; i++)
            n_times[out[i].uid]++;
    }
    for (int uid = 0; uid < 40; uid++)
        cr_assert_eq(n_times[uid], uid % 8 == 0 ? 0 : 6, "sample %d: %d times", uid, n_times[uid]);
    put(w, 41, 2, 10); /* a new one is behind by six */
    cr_assert_eq(choose(w, 0, 2, 99, 1), 1);
    cr_assert_eq(out[0].uid, 41);
    pl_windows_close(w);
}

Test(windows, of_long_responses_of_the_version_before_stand_in_for_those_that_are_missing)
{
    const pl_windows_options o = options(64);
    pl_windows *w = writer(path, &o);
    int n_before[2] = {0}, n_new = 0, n_old = 0;

    for (uint32_t i = 0; i < 14; i++) { /* as many short ones of both; long ones of the last only */
        put(w, 8 * i + 1, 5, 10);
        put(w, 8 * i + 2, 5, 410);
        put(w, 8 * i + 3, 6, 10);
        put(w, 8 * i + 4, 3, 10);
    }
    for (uint64_t seed = 0; seed < 28; seed++) {
        cr_assert_eq(choose(w, 0, 6, seed, 4), 4);
        for (int i = 0; i < 4; i++) {
            n_new += out[i].policy_version == 6;
            n_old += out[i].policy_version == 3;
            if (out[i].policy_version == 5)
                n_before[out[i].position > 100]++;
        }
    }
    cr_assert_eq(n_new, 56);
    cr_assert_eq(n_before[0], 0);
    cr_assert_eq(n_before[1], 56);
    cr_assert_eq(n_old, 0);
    pl_windows_close(w);
}

Test(windows, that_are_old_or_short_are_used_when_there_is_nothing_better)
{
    const pl_windows_options o = options(16);
    pl_windows *w = writer(path, &o);
    const pl_windows_pick p = {.newest = 9, .min_rows = 3};

    put(w, 1, 9, 10);  /* 1 + 11 % 4 = 4 rows */
    put(w, 2, 8, 10);  /* 1 row */
    put(w, 3, 2, 10);  /* 2 rows */
    put(w, 4, 12, 11); /* 4 rows, of a version that is gone */
    cr_assert_eq(choose(w, 0, 9, 1, MAX), 4);
    cr_assert_eq(out[0].uid, 1);
    cr_assert_eq(pl_windows_choose(&w, 1, &p, storage, out, MAX), 2);
    cr_assert_eq(pl_windows_choose(&w, 0, &p, storage, out, MAX), 0);
    pl_windows_close(w);
    w = writer(other, &o);
    cr_assert_eq(pl_windows_choose(&w, 1, &p, storage, out, MAX), 0);
    pl_windows_close(w);
}

Test(windows, of_a_sample_that_is_in_two_buffers_are_chosen_once)
{
    const pl_windows_options o = options(16);
    pl_windows *b[] = {writer(path, &o), writer(other, &o)};

    for (int i = 0; i < 2; i++) {
        put(b[i], 1, 1, 10);
        put(b[i], 8, 1, 10);
        put(b[i], 2 + (uint32_t)i, 1, 10);
    }
    const pl_windows_pick train = {.newest = 1}, held_out = {.newest = 1, .is_held_out = 1};
    cr_assert_eq(pl_windows_choose(b, 2, &train, storage, out, MAX), 3);
    cr_assert_eq(pl_windows_choose(b, 2, &held_out, storage, out, MAX), 1);
    pl_windows_close(b[0]);
    pl_windows_close(b[1]);
}

/* ---- text alone ---- */

static int read_text(pl_windows *b, const pl_windows_pick *p, int max)
{
    static int32_t tokens[MAX * WINDOW];

    const int n = pl_windows_read(&b, 1, p, tokens, out, max);
    for (int i = 0; i < n; i++) {
        made m;
        make(&m, out[i].uid, out[i].policy_version, out[i].position);
        cr_assert_eq(out[i].n, m.w.n);
        cr_assert_arr_eq(out[i].tokens, m.tokens, (size_t)m.w.n * sizeof *m.tokens);
        cr_assert_null(out[i].features);
        cr_assert_null(out[i].hidden);
    }
    return n;
}

Test(windows, are_read_as_text_without_counting_as_chosen)
{
    const pl_windows_options o = options(16);
    const pl_windows_pick p = {.newest = 1, .seed = 3};
    pl_windows *w = writer(path, &o), *b = reader(path, &o);
    uint32_t first[4];

    for (uint32_t uid = 1; uid < 8; uid++)
        put(w, uid, 1, 10);
    cr_assert_eq(read_text(b, &p, MAX), 7);
    cr_assert_eq(read_text(b, &p, 4), 4);
    for (int i = 0; i < 4; i++)
        first[i] = out[i].uid;
    cr_assert_eq(choose(b, 0, 1, 3, 4), 4); /* the same ones: none had been chosen */
    for (int i = 0; i < 4; i++)
        cr_expect_eq(out[i].uid, first[i]);
    pl_windows_close(b);
    pl_windows_close(w);
}

Test(windows, whose_text_is_damaged_are_not_read)
{
    const pl_windows_options o = options(16);
    const pl_windows_pick p = {.newest = 1};
    pl_windows *w = writer(path, &o), *b = reader(path, &o);

    for (uint32_t uid = 1; uid < 4; uid++)
        put(w, uid, 1, 10);
    unsigned char *slot = (unsigned char *)(void *)windows_slot(w, 1);
    slot[WINDOWS_HEAD] ^= 1; /* of a token: still one of the vocabulary */
    cr_expect_eq(read_text(b, &p, MAX), 2);
    slot[WINDOWS_HEAD] ^= 1;
    slot[w->shape.features] ^= 1; /* text does not care */
    cr_expect_eq(read_text(b, &p, MAX), 3);
    cr_expect_eq(pl_windows_choose(&b, 1, &p, storage, out, MAX), 2);
    pl_windows_close(b);
    pl_windows_close(w);
}

static int stop_at(void *ctx)
{
    int *left = ctx;
    return --*left < 0;
}

Test(windows, are_copied_until_it_is_told_to_stop)
{
    const pl_windows_options o = options(16);
    pl_windows *w = writer(path, &o);
    int left = 3;
    const pl_windows_pick p = {.newest = 1, .should_stop = stop_at, .stop_ctx = &left};

    for (uint32_t uid = 1; uid < 8; uid++)
        put(w, uid, 1, 10);
    cr_expect_eq(pl_windows_choose(&w, 1, &p, storage, out, MAX), 3);
    cr_expect_eq(left, -1, "asked again after the stop");
    left = 2;
    cr_expect_eq(read_text(w, &p, MAX), 2);
    pl_windows_close(w);
}

Test(windows, in_slots_that_nobody_wrote_are_not_looked_for)
{
    const pl_windows_options o = options(16);
    pl_windows *w = writer(path, &o), *b = reader(path, &o);

    cr_expect_eq(windows_touched(b), 0);
    for (uint32_t uid = 1; uid < 4; uid++)
        put(w, uid, 1, 10);
    put(w, 2, 1, 10); /* again: its own slot */
    cr_expect_eq(windows_touched(b), 3);
    cr_expect_eq(choose(b, 0, 1, 1, MAX), 3);
    pl_windows_close(w);
    w = writer(path, &o); /* another writer knows */
    cr_expect_eq(windows_touched(w), 3);
    put(w, 5, 1, 10);
    cr_expect_eq(choose(b, 0, 1, 1, MAX), 4);
    atomic_store(&w->words[WINDOWS_TOUCHED / 8], 2); /* no others are looked at */
    cr_expect_eq(choose(b, 0, 1, 1, MAX), 2);
    atomic_store(&w->words[WINDOWS_TOUCHED / 8], UINT64_MAX); /* no more than there are */
    cr_expect_eq(windows_touched(b), b->shape.n_slots);
    cr_expect_eq(choose(b, 0, 1, 1, MAX), 4);
    pl_windows_close(b);
    pl_windows_close(w);
}
