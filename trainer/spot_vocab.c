/* trainer/spot_vocab.c - the draft vocabulary of a new drafter, counted from responses, and another
 * one when the policy has moved away from it; how a state begins. */
#include "core/file.h"
#include "trainer/spot_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
    DEFAULT_VOCAB = 8192,
    COUNT_MAX = 2048,     /* tokens that are counted before a vocabulary is made, at most */
    COUNT_WINDOWS = 160,  /* that they are counted in, at most */
    REFRESH_COUNT = 1000, /* tokens of the newest policy version that a refresh goes by */
    NEWEST = 4            /* what its tokens weigh, against those of older ones */
};

/* Tokens of the newest policy version that are not in the vocabulary and came more than once: above
 * this share of all it is made anew. */
#define MISSED_MAX 0.02

typedef struct ranked {
    int64_t n;
    int32_t id;
} ranked;

static int by_count(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    return x->n != y->n ? (x->n < y->n) - (x->n > y->n) : (x->id > y->id) - (x->id < y->id);
}

static int ascending(const void *a, const void *b)
{
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* The n most frequent ids, ascending; of those that are equally frequent, old ones (may be NULL)
 * first, then lower ones.  *returns owned*, NULL: no memory. */
static int32_t *choose_ids(const int64_t *counts, const uint8_t *is_old, int n_target, int n)
{
    ranked *list = malloc((size_t)n_target * sizeof *list);
    int32_t *ids = malloc((size_t)n * sizeof *ids);

    if (!list || !ids) {
        free(list);
        free(ids);
        return NULL;
    }
    for (int i = 0; i < n_target; i++)
        list[i] = (ranked){2 * counts[i] + (is_old && is_old[i]), i};
    qsort(list, (size_t)n_target, sizeof *list, by_count);
    for (int i = 0; i < n; i++)
        ids[i] = list[i].id;
    qsort(ids, (size_t)n, sizeof *ids, ascending);
    free(list);
    return ids;
}

static int64_t count_window(
    const pl_feature_window *w, int n_target, int64_t *counts, int64_t *newest)
{
    int64_t total = 0;

    for (int r = 0; r < w->n; r++) {
        if (w->position + r < w->n_prompt || w->tokens[r] < 0 || w->tokens[r] >= n_target)
            continue;
        counts[w->tokens[r]]++;
        if (newest)
            newest[w->tokens[r]]++;
        total++;
    }
    return total;
}

/* Response tokens of the windows that are there, by id; newest (may be NULL): of the newest policy
 * version.  Errors: PL_E_NOMEM, PL_E_STOPPED. */
static pl_status count_tokens(
    pl_spot *s, int64_t *counts, int64_t *newest, int64_t *total, pl_error *err)
{
    const int n_target = pl_model_arch(s->target)->n_vocab;
    const pl_windows_pick p = spot_pick_rule(s, 0);
    int32_t *tokens = malloc((size_t)COUNT_WINDOWS * (size_t)s->o.windows.window * sizeof *tokens);
    pl_feature_window *w = malloc(COUNT_WINDOWS * sizeof *w);
    pl_status st = PL_OK;

    *total = 0;
    if (!tokens || !w)
        st = pl_fail(err, PL_E_NOMEM, "no memory to count the tokens of %d windows", COUNT_WINDOWS);
    const int n = st == PL_OK && s->n_views > 0
                      ? pl_windows_read(s->views, s->n_views, &p, tokens, w, COUNT_WINDOWS)
                      : 0;
    for (int i = 0; i < n; i++)
        *total +=
            count_window(&w[i], n_target, counts, w[i].policy_version >= s->newest ? newest : NULL);
    free(tokens);
    free(w);
    return st == PL_OK && spot_stopped(s) ? spot_stop(err) : st;
}

/* ---- the first state ---- */

static pl_status make_random(spot_aside *a, pl_error *err)
{
    const pl_eagle_state none = {0};

    pl_eagle_fill(a->e, a->s->o.seed);
    return spot_file_write(a->s, a->e, &none, err);
}

/* Its vocabulary, by counting, and what is of the target, whose weights change between sessions. */
static pl_status count_random(pl_spot *s, int64_t *counts, pl_eagle **out, pl_error *err)
{
    const int n_target = pl_model_arch(s->target)->n_vocab;
    const int n_most = s->o.n_vocab > 0 ? s->o.n_vocab : DEFAULT_VOCAB;
    const int n = n_most < n_target ? n_most : n_target;
    const int64_t want = n == n_target ? 1 : 2 * n < COUNT_MAX ? 2 * n : COUNT_MAX;
    int64_t total;
    pl_status st = count_tokens(s, counts, NULL, &total, err);

    if (st != PL_OK)
        return st;
    if (total < want)
        return pl_fail(err, PL_E_TIMEOUT,
            "drafter training: nothing to train on yet (%" PRId64 " of %" PRId64
            " tokens for a vocabulary)",
            total, want);
    int32_t *ids = choose_ids(counts, NULL, n_target, n);
    if (!ids)
        return pl_fail(err, PL_E_NOMEM, "no memory for a draft vocabulary of %d", n);
    const pl_eagle_options o = {.n_vocab = n, .vocab = ids};
    st = pl_eagle_begin(out, s->target, &o, err);
    free(ids);
    if (st == PL_OK)
        pl_log_info(
            s->log, "drafter begins from random weights vocabulary=%d counted=%" PRId64, n, total);
    return st;
}

static pl_status begin_random(pl_spot *s, pl_error *err)
{
    const int n_target = pl_model_arch(s->target)->n_vocab;
    pl_status st = spot_aside_begin(s, &s->starting, make_random, s->init, err);

    if (st != PL_OK)
        return st;
    int64_t *counts = calloc((size_t)n_target, sizeof *counts);
    st = counts ? count_random(s, counts, &s->starting.e, err)
                : pl_fail(err, PL_E_NOMEM, "no memory to count %d tokens", n_target);
    free(counts);
    return st;
}

static pl_status start_random(pl_spot *s, pl_error *err)
{
    pl_status st = PL_OK;

    if (!spot_aside_is(&s->starting, make_random, s->init))
        st = begin_random(s, err);
    return st == PL_OK ? spot_aside_work(s, &s->starting, err) : st;
}

static pl_status make_of_drafter(spot_aside *a, pl_error *err)
{
    const pl_eagle_state trained = {.step = SPOT_INIT_STEPS};
    return spot_file_write(a->s, a->from ? a->from : a->e, &trained, err);
}

/* The one that serves is it, unless a version does. */
static pl_status begin_from(pl_spot *s, pl_error *err)
{
    pl_eagle *own = NULL;

    pl_status st = spot_init_load(s, err);
    const int serves = st == PL_OK && s->serving && s->serving_version == 0;
    if (st == PL_OK && !serves)
        st = spot_drafter_read(s, s->init, &own, err);
    if (st == PL_OK)
        st = spot_aside_begin(s, &s->starting, make_of_drafter, s->init, err);
    if (st != PL_OK) {
        pl_eagle_free(own);
        return st;
    }
    s->starting.from = serves ? s->serving : NULL;
    s->starting.e = own;
    pl_log_info(s->log, "drafter training begins from '%s'", s->init);
    return PL_OK;
}

static pl_status start_from(pl_spot *s, pl_error *err)
{
    struct stat info;
    pl_status st = PL_OK;

    if (stat(s->init, &info) == 0 && S_ISREG(info.st_mode))
        return spot_checkpoint_load(s, s->init, err);
    if (!spot_aside_is(&s->starting, make_of_drafter, s->init))
        st = begin_from(s, err);
    return st == PL_OK ? spot_aside_work(s, &s->starting, err) : st;
}

/* A state that was made some sessions ago may be gone: the next call makes it again. */
static pl_status open_made(pl_spot *s, pl_error *err)
{
    const pl_status st = spot_file_open(s, err);
    return st == PL_E_NOENT ? pl_fail(err, PL_E_TIMEOUT, "'%s' is made again", s->state_path) : st;
}

/* What was saved last, when it is whole and of this target; else anew. */
static pl_status start(pl_spot *s, pl_error *err)
{
    char path[SPOT_PATH + 16];
    pl_error why = {0};

    snprintf(path, sizeof path, "%s/checkpoint", s->dir);
    if (!s->is_begun_anew && pl_path_exists(path)) {
        const pl_status st = spot_checkpoint_load(s, path, &why);
        if (st == PL_OK)
            return open_made(s, err);
        if (st == PL_E_FORMAT || st == PL_E_SHAPE)
            pl_log_warn(s->log, "drafter training begins anew: %s", why.msg);
        else if (st != PL_E_NOENT)
            return pl_fail(err, st, "%s", why.msg);
    }
    s->is_begun_anew = 1;
    const pl_status st = strcmp(s->init, "random") == 0 ? start_random(s, err) : start_from(s, err);
    return st == PL_OK ? open_made(s, err) : st;
}

pl_status spot_start(pl_spot *s, pl_error *err)
{
    pl_error why = {0};
    const int is_sound = s->is_lead && s->init[0];
    const pl_status st = is_sound ? spot_file_open_sound(s, &why) : spot_file_open(s, &why);

    if (st != PL_E_NOENT && !(st == PL_E_FORMAT && s->init[0]))
        return st == PL_OK ? st : pl_fail(err, st, "%s", why.msg);
    if (s->init[0] == '\0')
        return pl_fail(err, PL_E_CONFIG,
            "there is no drafter: '%s' is not there, and drafter.init says neither 'random' nor "
            "where one is",
            s->state_path);
    if (!s->is_lead)
        return pl_fail(err, PL_E_TIMEOUT, "drafter training: the lead has not begun yet");
    return start(s, err);
}

/* ---- another vocabulary ---- */

pl_status spot_vocab_change(pl_spot *s, const int32_t *ids, pl_error *err)
{
    pl_eagle_shape shape = pl_eagle_get_shape(s->e);
    pl_eagle *fresh = NULL;
    spot_change c;
    pl_status st = pl_eagle_from(&fresh, s->target, &shape, ids, NULL, err);

    if (st == PL_OK)
        st = spot_change_begin(s, &c, err);
    if (st != PL_OK) {
        pl_eagle_free(fresh);
        return st;
    }
    pl_eagle_remap(s->e, fresh, &c.src, &c.dst);
    memcpy(spot_vocab(&s->file, c.to), ids, (size_t)shape.n_vocab * sizeof *ids);
    c.next.vocab_id = c.old.vocab_id + 1;
    st = spot_claim_check(s, err);
    if (st == PL_OK)
        spot_change_flip(s, &c);
    spot_change_end(s);
    pl_eagle_free(fresh);
    return st == PL_OK ? spot_sync(s, err) : st;
}

static pl_status refresh(
    pl_spot *s, int64_t *counts, int64_t *newest, uint8_t *is_old, pl_error *err)
{
    const int n_target = pl_model_arch(s->target)->n_vocab, n = pl_eagle_n_vocab(s->e);
    int64_t total = 0, missed = 0, n_counted;
    pl_status st = count_tokens(s, counts, newest, &n_counted, err);

    if (st != PL_OK)
        return st;
    for (int i = 0; i < n; i++)
        is_old[pl_eagle_vocab(s->e)[i]] = 1;
    for (int i = 0; i < n_target; i++) {
        total += newest[i];
        missed += !is_old[i] && newest[i] > 1 ? newest[i] : 0;
        counts[i] += (NEWEST - 1) * newest[i];
    }
    if (total < REFRESH_COUNT)
        return PL_OK;
    s->looked_at = s->newest;
    s->has_looked = 1;
    if ((double)missed <= MISSED_MAX * (double)total)
        return PL_OK;
    int32_t *ids = choose_ids(counts, is_old, n_target, n);
    if (!ids)
        return pl_fail(err, PL_E_NOMEM, "no memory for a draft vocabulary of %d", n);
    int n_new = 0;
    for (int i = 0; i < n; i++)
        n_new += !is_old[ids[i]];
    st = spot_vocab_change(s, ids, err);
    free(ids);
    if (st == PL_OK)
        pl_log_info(s->log,
            "draft vocabulary made anew: it missed %.3f of %" PRId64 " tokens, %d of %d changed",
            (double)missed / (double)total, total, n_new, n);
    return st;
}

pl_status spot_refresh(pl_spot *s, pl_error *err)
{
    const size_t n_target = (size_t)pl_model_arch(s->target)->n_vocab;

    s->is_look_due = 0;
    if ((s->has_looked && s->looked_at == s->newest) ||
        (size_t)pl_eagle_n_vocab(s->e) == n_target || s->gate.is_on)
        return PL_OK;
    int64_t *counts = calloc(2 * n_target, sizeof *counts);
    uint8_t *is_old = calloc(n_target, 1);
    const pl_status st = counts && is_old
                             ? refresh(s, counts, counts + n_target, is_old, err)
                             : pl_fail(err, PL_E_NOMEM, "no memory to count %zu tokens", n_target);
    free(counts);
    free(is_old);
    return st;
}
