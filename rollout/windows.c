/* rollout/windows.c - windows of features for whoever trains a drafter.
 *
 * A sample that runs has a recorder; each row of a pass that stays in the cache is copied into it,
 * once.  A full recorder is handed over and begins anew behind its last row.  A sample that loses
 * its pages gives its recorder back: what was not handed over is computed again when the sample is
 * prefilled anew, to the same bits (law 1), and what was handed over is passed by.  The last rows
 * of a prompt are held once a group, for every sample of it to begin with. */
#include "core/rng.h"
#include "rollout/internal.h"

#include <stdlib.h>
#include <string.h>

static size_t row_elements(const pl_engine *e)
{
    return (size_t)pl_pad32(e->arch->n_embd);
}

/* ---- memory ---- */

static size_t store_bytes(const pl_arch *a, int n, int rows)
{
    const size_t row = (PL_FEATURE_LAYERS + 1) * (size_t)pl_pad32(a->n_embd) * sizeof(uint16_t);
    return (size_t)n * ((size_t)rows + LEAD_ROWS) * (row + sizeof(int32_t));
}

size_t pl_engine_windows_plan(const pl_arch *arch, const pl_engine_options *o, int rows)
{
    const size_t hidden = (size_t)o->max_rows * (size_t)pl_pad32(arch->n_embd) * sizeof(uint16_t);
    return store_bytes(arch, o->max_num_seqs, rows) +
           2 * (size_t)o->max_num_seqs * sizeof(recorder) +
           hidden * (o->learned_window > 0 ? 1 : PL_FEATURE_LAYERS + 1);
}

/* Cut the store into recorders of `rows` rows and leads of LEAD_ROWS. */
static void cut(pl_engine *e, int n, int rows)
{
    window_set *w = &e->windows;
    const size_t cp = row_elements(e), total = (size_t)n * (size_t)(rows + LEAD_ROWS);
    uint16_t *features = w->store;
    uint16_t *hidden = features + total * PL_FEATURE_LAYERS * cp;
    int32_t *tokens = (int32_t *)(void *)(hidden + total * cp); /* cp is a multiple of 32 */
    for (int i = 0; i < 2 * n; i++) {
        recorder *r = &w->recorders[i], **list = i < n ? &w->free : &w->free_leads;
        const size_t room = (size_t)(i < n ? rows : LEAD_ROWS);
        *r = (recorder){.tokens = tokens, .features = features, .hidden = hidden, .next = *list};
        *list = r;
        tokens += room;
        features += room * PL_FEATURE_LAYERS * cp;
        hidden += room * cp;
    }
}

/* Forget all that is recorded; the buffers of the pass stay while the learned drafter reads them.
 */
void windows_done(pl_engine *e)
{
    for (int i = 0; i < e->n_running; i++)
        windows_close(e, e->running[i]);
    for (group *g = e->groups; g; g = g->next)
        windows_forget(e, g);
    free(e->windows.recorders);
    free(e->windows.store);
    e->windows = (window_set){0};
    free(e->features.hidden);
    e->features.hidden = NULL;
    if (!e->learned) {
        free(e->features.rows);
        e->features.rows = NULL;
    }
}

static pl_status allocate(pl_engine *e, int rows, pl_error *err)
{
    window_set *w = &e->windows;
    const size_t n = (size_t)e->o.max_num_seqs, room = (size_t)e->o.max_rows;
    const size_t cp = row_elements(e), n_bytes = store_bytes(e->arch, (int)n, rows);
    w->recorders = calloc(2 * n, sizeof *w->recorders);
    w->store = malloc(n_bytes);
    e->features.hidden = malloc(room * cp * sizeof *e->features.hidden);
    if (!e->features.rows)
        e->features.rows = malloc(room * PL_FEATURE_LAYERS * cp * sizeof *e->features.rows);
    if (!w->recorders || !w->store || !e->features.hidden || !e->features.rows) {
        windows_done(e);
        return pl_fail(err, PL_E_NOMEM,
            "engine: no memory for windows of %d rows (%zu MiB); ask for shorter ones, or run "
            "fewer samples at once",
            rows, n_bytes >> 20);
    }
    cut(e, (int)n, rows);
    return PL_OK;
}

pl_status pl_engine_set_windows(pl_engine *e, pl_window_fn fn, void *ctx, int rows, pl_error *err)
{
    if (fn && rows < 1)
        return pl_fail(err, PL_E_INVAL, "engine: windows of %d rows; at least 1", rows);
    if (fn && e->record)
        return pl_fail(err, PL_E_INVAL, "engine: windows of a record, which are known already");
    windows_done(e);
    if (!fn)
        return PL_OK;
    const pl_status st = allocate(e, rows, err);
    if (st != PL_OK)
        return st;
    e->windows.fn = fn;
    e->windows.ctx = ctx;
    e->windows.rows = rows;
    for (int i = 0; i < e->n_running; i++)
        if (e->running[i]->is_forked)
            windows_open(e, e->running[i]);
    return PL_OK;
}

/* ---- recording ---- */

static void copy_rows(const pl_engine *e, recorder *r, const int32_t *tokens, size_t i_row, int n)
{
    const size_t cp = row_elements(e), k = (size_t)n, at = (size_t)r->n;
    memcpy(r->tokens + at, tokens, k * sizeof *tokens);
    memcpy(r->features + at * PL_FEATURE_LAYERS * cp,
        e->features.rows + i_row * PL_FEATURE_LAYERS * cp,
        k * PL_FEATURE_LAYERS * cp * sizeof *r->features);
    memcpy(r->hidden + at * cp, e->features.hidden + i_row * cp, k * cp * sizeof *r->hidden);
    r->n += n;
}

static void hand_over(pl_engine *e, sequence *s, int is_last)
{
    recorder *r = s->rec;
    const pl_feature_window w = {.uid = s->r.uid,
        .policy_version = e->version,
        .noise_key = s->r.noise_key,
        .purpose = s->r.purpose,
        .temperature = s->r.temperature,
        .top_p = s->r.top_p,
        .min_p = s->r.min_p,
        .top_k = s->r.top_k,
        .n_prompt = s->r.n_prompt,
        .max_tokens = s->r.max_tokens,
        .position = r->position,
        .n = r->n,
        .is_last = is_last,
        .served_from = r->served_from,
        .tokens = r->tokens,
        .features = r->features,
        .hidden = r->hidden};
    s->recorded = r->position + r->n;
    if (r->n > 0)
        e->windows.fn(e->windows.ctx, &w);
    r->position = s->recorded;
    r->n = r->served_from = 0;
}

void windows_serve(sequence *s)
{
    if (s->rec)
        s->rec->served_from = s->rec->n;
}

void windows_take(pl_engine *e, sequence *s, int position, const int32_t *tokens, size_t i_row,
    int n, int is_known)
{
    recorder *r = s->rec;
    const int skip = s->recorded > position ? s->recorded - position : 0; /* handed over already */
    if (!r || skip >= n)
        return;
    position += skip;
    tokens += skip;
    i_row += (size_t)skip;
    n -= skip;
    if (r->n > 0 && position != r->position + r->n)
        hand_over(e, s, 0); /* a gap begins a new window */
    while (n > 0) {
        if (r->n == e->windows.rows)
            hand_over(e, s, 0);
        if (r->n == 0)
            r->position = position;
        const int room = e->windows.rows - r->n, k = n < room ? n : room;
        copy_rows(e, r, tokens, i_row, k);
        position += k;
        tokens += k;
        i_row += (size_t)k;
        n -= k;
        if (is_known)
            windows_serve(s);
    }
}

void windows_settle(pl_engine *e, sequence *s)
{
    if (!s->rec)
        return;
    if (s->finish != PL_FINISH_NONE)
        hand_over(e, s, 1);
    else if (s->rec->n == e->windows.rows)
        hand_over(e, s, 0);
}

void windows_take_prompt(pl_engine *e, group *g, int position, size_t i_row, int n)
{
    const int first = g->n_prompt > LEAD_ROWS ? g->n_prompt - LEAD_ROWS : 0;
    if (!e->windows.fn || position + n <= first)
        return;
    if (!g->lead) {
        g->lead = e->windows.free_leads;
        if (!g->lead)
            return;
        e->windows.free_leads = g->lead->next;
        g->lead->n = 0;
    }
    const int skip = first > position ? first - position : 0;
    recorder *r = g->lead;
    position += skip;
    if (r->n == 0 || position != r->position + r->n) {
        r->position = position;
        r->n = 0;
    }
    copy_rows(e, r, g->prompt + position, i_row + (size_t)skip, n - skip);
}

/* ---- who has one ---- */

/* Begin with the prompt's last rows, if they are known to its end and nothing came after them. */
static void begin_with_lead(const pl_engine *e, sequence *s)
{
    const recorder *lead = s->group->lead;
    recorder *r = s->rec;
    const size_t cp = row_elements(e);
    if (!lead || s->recorded > 0 || lead->position + lead->n != s->r.n_prompt)
        return;
    const int n = lead->n < e->windows.rows ? lead->n : e->windows.rows;
    const size_t skip = (size_t)(lead->n - n), k = (size_t)n;
    r->position = lead->position + (int)skip;
    r->n = n;
    memcpy(r->tokens, lead->tokens + skip, k * sizeof *r->tokens);
    memcpy(r->features, lead->features + skip * PL_FEATURE_LAYERS * cp,
        k * PL_FEATURE_LAYERS * cp * sizeof *r->features);
    memcpy(r->hidden, lead->hidden + skip * cp, k * cp * sizeof *r->hidden);
}

void windows_open(pl_engine *e, sequence *s)
{
    recorder *r = e->windows.free;
    if (!e->windows.fn || s->rec || !r || s->r.purpose != PL_NOISE_SAMPLE)
        return;
    e->windows.free = r->next;
    r->n = 0;
    s->rec = r;
    begin_with_lead(e, s);
    windows_serve(s);
}

void windows_close(pl_engine *e, sequence *s)
{
    if (!s->rec)
        return;
    s->rec->next = e->windows.free;
    e->windows.free = s->rec;
    s->rec = NULL;
}

void windows_forget(pl_engine *e, group *g)
{
    if (!g->lead)
        return;
    g->lead->next = e->windows.free_leads;
    e->windows.free_leads = g->lead;
    g->lead = NULL;
}
