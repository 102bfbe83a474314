/* trainer/windows_choose.c - which windows are trained on, and which a drafter is judged by.
 *
 * Early in a step the newest version has given short responses only: who finishes first is short.
 * With n0(d) windows of the newest version d windows behind their prompt, and n1(d) of the version
 * before, n1(d) - n0(d) are missing.  That share of the windows of the version before, the same
 * ones at every choice, is as good as new; the rest of them, and older ones, fill up.  Among equals
 * the one that was chosen least goes first, then chance, which depends on the seed and on the
 * window, and not on the slot or the order of the buffers. */
#include "trainer/windows_internal.h"

#include "core/file.h"

#include <string.h>
#include <sys/stat.h>

enum {
    BUCKETS = 256, /* the last one holds all behind it */
    TIER_NEW = 0,
    TIER_BEFORE = 1,
    TIER_OLD = 2
};

typedef struct choice {
    pl_windows *const *b;
    int n_buffers;
    const pl_windows_pick *pick;
} choice;

size_t pl_windows_room(const pl_windows_options *o)
{
    return windows_room(o->window, o->n_embd);
}

/* The same everywhere for one window (or, with position 0, one sample). */
static uint64_t chance(uint64_t seed, uint32_t uid, uint32_t version, int position)
{
    const uint64_t words[] = {seed, (uint64_t)version << 32 | uid, (uint64_t)position};
    return pl_hash64(words, sizeof words);
}

static int bucket_of(const windows_small *f, int window)
{
    const int behind = f->position > f->n_prompt ? (f->position - f->n_prompt) / window : 0;
    return behind < BUCKETS ? behind : BUCKETS - 1;
}

/* ---- who may be chosen ---- */

/* A file that somebody cut short would end us with a signal when it is read. */
static int is_whole(const pl_windows *b)
{
    struct stat s;
    return fstat(b->fd, &s) == 0 && (uint64_t)s.st_size >= b->shape.file_bytes;
}

/* What a drafter is judged by comes sample by sample. */
static int is_to_judge(const pl_windows_pick *p)
{
    return p->is_held_out || p->served_by;
}

static int is_wanted(const windows_small *f, const pl_windows_pick *p)
{
    if (p->served_by)
        return f->drafter == p->served_by && f->n - f->served_from >= p->min_rows;
    return f->n >= p->min_rows && (f->uid % PL_HELD_OUT == 0) == (p->is_held_out != 0);
}

static void look_at(const choice *c, pl_windows *b, int i, int is_readable)
{
    windows_candidate *k = &b->candidates[i];
    const pl_windows_pick *p = c->pick;
    windows_small f;

    k->is_open = 0;
    if (!is_readable || !windows_peek(b, i, &f))
        return;
    if (k->seen != f.serial)
        k->n_chosen = 0;
    k->seen = f.serial;
    if (!is_wanted(&f, p))
        return;
    k->is_open = 1;
    k->serial = f.serial;
    k->uid = f.uid;
    k->policy_version = f.policy_version;
    k->age = p->newest - f.policy_version;
    k->position = f.position;
    k->bucket = bucket_of(&f, b->shape.window);
    k->key = chance(p->seed, f.uid, f.policy_version, is_to_judge(p) ? 0 : f.position);
}

/* Which of the version before stand in for what the newest has not given yet. */
static void set_tiers(const choice *c)
{
    int n_new[BUCKETS] = {0}, n_before[BUCKETS] = {0};

    for (int i = 0; i < c->n_buffers; i++)
        for (int j = 0; j < c->b[i]->shape.n_slots; j++) {
            const windows_candidate *k = &c->b[i]->candidates[j];
            n_new[k->is_open ? k->bucket : 0] += k->is_open && k->age == 0;
            n_before[k->is_open ? k->bucket : 0] += k->is_open && k->age == 1;
        }
    for (int i = 0; i < c->n_buffers; i++)
        for (int j = 0; j < c->b[i]->shape.n_slots; j++) {
            windows_candidate *k = &c->b[i]->candidates[j];
            if (!k->is_open)
                continue;
            k->tier = k->age == 0 ? TIER_NEW : k->age == 1 ? TIER_BEFORE : TIER_OLD;
            if (k->age != 1)
                continue;
            const double missing = n_before[k->bucket] - n_new[k->bucket];
            const double part = (double)(chance(0, k->uid, k->policy_version, k->position) >> 11);
            if (part * 0x1p-53 * n_before[k->bucket] < missing)
                k->tier = TIER_NEW;
        }
}

/* ---- who comes first ---- */

static int is_before_training(const windows_candidate *x, const windows_candidate *y)
{
    if (x->tier != y->tier)
        return x->tier < y->tier;
    if (x->n_chosen != y->n_chosen)
        return x->n_chosen < y->n_chosen;
    return x->key < y->key;
}

static int is_before_judged(const windows_candidate *x, const windows_candidate *y)
{
    if (x->age != y->age)
        return x->age < y->age;
    if (x->key != y->key)
        return x->key < y->key;
    if (x->uid != y->uid)
        return x->uid < y->uid;
    return x->position < y->position;
}

/* The first of those that are open, in buffer *at; NULL: none is left. */
static windows_candidate *find_first(const choice *c, int *at)
{
    windows_candidate *best = NULL;

    for (int i = 0; i < c->n_buffers; i++)
        for (int j = 0; j < c->b[i]->shape.n_slots; j++) {
            windows_candidate *k = &c->b[i]->candidates[j];
            if (!k->is_open)
                continue;
            if (!best ||
                (is_to_judge(c->pick) ? is_before_judged(k, best) : is_before_training(k, best))) {
                best = k;
                *at = i;
            }
        }
    return best;
}

/* A sample that moved to another worker may be in two buffers. */
static int is_chosen(const pl_feature_window *out, int n, const windows_candidate *k)
{
    for (int i = 0; i < n; i++)
        if (out[i].uid == k->uid && out[i].position == k->position &&
            out[i].policy_version == k->policy_version)
            return 1;
    return 0;
}

/* Every slot that may be chosen is open, and knows its place. */
static void open_all(const choice *c)
{
    for (int i = 0; i < c->n_buffers; i++) {
        const int n = is_whole(c->b[i]) ? windows_touched(c->b[i]) : 0;
        for (int j = 0; j < c->b[i]->shape.n_slots; j++)
            look_at(c, c->b[i], j, j < n);
    }
    if (!is_to_judge(c->pick))
        set_tiers(c);
}

/* The next one that is in no other's place; NULL: none is left, or no more is wanted. */
static windows_candidate *take_next(const choice *c, const pl_feature_window *out, int n, int *at)
{
    windows_candidate *k = NULL;

    if (c->pick->should_stop && c->pick->should_stop(c->pick->stop_ctx))
        return NULL;
    do {
        k = find_first(c, at);
        if (k)
            k->is_open = 0;
    } while (k && is_chosen(out, n, k));
    return k;
}

int pl_windows_choose(pl_windows *const *b, int n_buffers, const pl_windows_pick *p, void *storage,
    pl_feature_window *out, int max)
{
    const choice c = {b, n_buffers, p};
    windows_candidate *k;
    int n = 0, at = 0;

    open_all(&c);
    while (n < max && (k = take_next(&c, out, n, &at)) != NULL) {
        const size_t room = b[at]->shape.slot_bytes - WINDOWS_HEAD;
        if (!windows_copy(b[at], (int)(k - b[at]->candidates), k->serial,
                (unsigned char *)storage + (size_t)n * room, &out[n]))
            continue;
        k->n_chosen += !is_to_judge(p);
        n++;
    }
    return n;
}

int pl_windows_read(pl_windows *const *b, int n_buffers, const pl_windows_pick *p, int32_t *storage,
    pl_feature_window *out, int max)
{
    const choice c = {b, n_buffers, p};
    windows_candidate *k;
    int n = 0, at = 0;

    open_all(&c);
    while (n < max && (k = take_next(&c, out, n, &at)) != NULL)
        n += windows_copy_tokens(b[at], (int)(k - b[at]->candidates), k->serial,
            storage + (size_t)n * (size_t)b[at]->shape.window, &out[n]);
    return n;
}
