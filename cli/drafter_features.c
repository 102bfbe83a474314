/* cli/drafter_features.c - the target is run over recorded samples once, and what a drafter reads
 * of it stays in arrays of a fixed size. */
#include "cli/drafter.h"
#include "cli/run.h"
#include "core/rng.h"
#include "model/features.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PASS_ROWS = 256, DRAW_ROWS = 64 };

size_t drafter_position_bytes(const pl_arch *a, int with_draws)
{
    return (size_t)(PL_FEATURE_LAYERS + 1) * (size_t)pl_pad32(a->n_embd) * sizeof(uint16_t) +
           sizeof(float) + (with_draws ? sizeof(int32_t) : 0);
}

int drafter_first_position(const drafter_sample *s)
{
    return s->n_prompt > DRAFTER_LEAD ? s->n_prompt - DRAFTER_LEAD : 0;
}

static pl_status allocate(drafter_features *f, const pl_arch *a, int with_draws, pl_error *err)
{
    const size_t rows = f->room, cp = (size_t)f->cp;

    f->features = malloc(rows * PL_FEATURE_LAYERS * cp * sizeof *f->features);
    f->hidden = malloc(rows * cp * sizeof *f->hidden);
    f->lse = malloc(rows * sizeof *f->lse);
    f->drawn = with_draws ? malloc(rows * sizeof *f->drawn) : NULL;
    if (!f->features || !f->hidden || !f->lse || (with_draws && !f->drawn))
        return pl_fail(err, PL_E_NOMEM, "no memory for the features of %zu positions", f->room);
    const pl_pass_options o = {.max_rows = with_draws ? DRAW_ROWS : PASS_ROWS,
        .max_logits = with_draws ? DRAW_ROWS : 0,
        .max_segments = 1,
        .max_ctx = f->max_len};
    pl_status st = pl_pass_new(&f->pass, f->m->model, &o, err);
    if (st == PL_OK)
        st = pl_kv_pool_new(&f->pool, a, f->max_len / PL_BLOCK + 2, err);
    if (st == PL_OK)
        st = pl_kv_seq_init(&f->kv, f->max_len, err);
    f->has_kv = st == PL_OK;
    return st;
}

pl_status drafter_features_new(
    drafter_features *f, cli_model *m, int max_len, size_t n_bytes, int with_draws, pl_error *err)
{
    const pl_arch *a = pl_model_arch(m->model);
    const size_t bytes = drafter_position_bytes(a, with_draws);

    memset(f, 0, sizeof *f);
    f->m = m;
    f->max_len = max_len;
    f->cp = pl_pad32(a->n_embd);
    f->room = n_bytes / bytes;
    if (f->room < (size_t)max_len)
        return pl_fail(err, PL_E_USAGE,
            "%zu MiB hold the features of %zu positions, one sample may have %d: raise --memory-mb",
            n_bytes >> 20, f->room, max_len);
    return allocate(f, a, with_draws, err);
}

void drafter_features_clear(drafter_features *f)
{
    f->n_rows = 0;
    f->n_spans = 0;
}

void drafter_features_done(drafter_features *f)
{
    if (f->has_kv)
        pl_kv_seq_done(f->pool, &f->kv);
    pl_kv_pool_free(f->pool);
    pl_pass_free(f->pass);
    free(f->features);
    free(f->hidden);
    free(f->lse);
    free(f->drawn);
    free(f->spans);
    memset(f, 0, sizeof *f);
}

/* Draw token t + 1 anew from the logits of each row, as the run did. */
static pl_status draw_rows(drafter_features *f, const drafter_sample *s, int from, int n,
    const drafter_noise *noise, int32_t *out, float *scratch, pl_error *err)
{
    const pl_arch *a = pl_model_arch(f->m->model);

    for (int r = 0; r < n; r++) {
        const pl_draw draw = {.temperature = noise->temperature,
            .top_p = 1,
            .key = pl_noise_key(noise->seed),
            .uid = s->uid,
            .position = (uint32_t)(from + r + 1),
            .purpose = PL_NOISE_SAMPLE};
        pl_drawn drawn;
        f->m->ops->draw(pl_pass_logits(f->pass, 0, r), a->n_vocab, &draw, scratch, &drawn);
        if (drawn.token < 0)
            return pl_fail(err, PL_E_NUMERIC,
                "sample %u: the target's logits at position %d are not finite: the model is "
                "damaged",
                s->uid, from + r);
        out[r] = drawn.token;
        if (s->is_target[from + r]) {
            f->n_drawn++;
            f->n_as_drawn += drawn.token == s->tokens[from + r + 1];
        }
    }
    return PL_OK;
}

/* Rows from .. from + n - 1 of a sample; kept from position first on. */
static pl_status run_chunk(drafter_features *f, const drafter_sample *s, int from, int n, int first,
    const drafter_noise *noise, float *scratch, pl_error *err)
{
    const size_t at = f->n_rows + (size_t)(from > first ? from - first : 0);
    const pl_features to = {.rows = f->features + at * PL_FEATURE_LAYERS * (size_t)f->cp,
        .hidden = f->hidden + at * (size_t)f->cp,
        .room = PASS_ROWS};
    const int wanted = from >= first;
    const pl_segment seg = {
        .kv = &f->kv, .tokens = s->tokens + from, .n_rows = n, .n_logits = noise && wanted ? n : 0};

    pl_pass_set_features(f->pass, wanted ? &to : NULL);
    pl_status st = pl_kv_reserve(f->pool, &f->kv, n, err);
    if (st == PL_OK)
        st = pl_pass_run(f->pass, f->pool, &seg, 1, err);
    if (st == PL_OK && noise && wanted)
        st = draw_rows(f, s, from, n, noise, f->drawn + at, scratch, err);
    return st;
}

static pl_status add_span(drafter_features *f, const drafter_sample *s, int first, pl_error *err)
{
    if (f->n_spans == f->room_spans) {
        const int room = f->room_spans > 0 ? f->room_spans * 2 : 64;
        drafter_span *grown = realloc(f->spans, (size_t)room * sizeof *grown);
        if (!grown)
            return pl_fail(err, PL_E_NOMEM, "no memory for %d samples", room);
        f->spans = grown;
        f->room_spans = room;
    }
    f->spans[f->n_spans++] = (drafter_span){.sample = s,
        .begin = first,
        .row = f->n_rows,
        .drawn = f->drawn ? f->drawn + f->n_rows : NULL};
    for (int i = first; i < s->n; i++)
        f->lse[f->n_rows++] = NAN;
    return PL_OK;
}

pl_status drafter_features_add(drafter_features *f, const drafter_sample *s,
    const drafter_noise *noise, int *taken, pl_error *err)
{
    const int first = drafter_first_position(s), most = noise ? DRAW_ROWS : PASS_ROWS;
    const double t0 = run_seconds();
    float *scratch = NULL;
    pl_status st = PL_OK;

    *taken = f->n_rows + (size_t)(s->n - first) <= f->room;
    if (!*taken)
        return PL_OK;
    if (noise) {
        scratch = malloc((size_t)pl_model_arch(f->m->model)->n_vocab * sizeof *scratch);
        if (!scratch)
            return pl_fail(err, PL_E_NOMEM, "no memory for a row of logits");
    }
    pl_kv_seq_clear(f->pool, &f->kv);
    for (int from = 0; from < s->n && st == PL_OK;) {
        const int end = from < first ? first : s->n;
        const int n = end - from < most ? end - from : most;
        st = run_chunk(f, s, from, n, first, noise, scratch, err);
        from += n;
    }
    free(scratch);
    if (st == PL_OK)
        st = add_span(f, s, first, err);
    f->n_prefilled += s->n;
    f->seconds += run_seconds() - t0;
    return st;
}

pl_eagle_window drafter_window(
    const drafter_features *f, const drafter_span *s, int begin, int n, float temperature)
{
    const size_t row = s->row + (size_t)(begin - s->begin), cp = (size_t)f->cp;

    return (pl_eagle_window){.tokens = s->sample->tokens + begin,
        .features = f->features + row * PL_FEATURE_LAYERS * cp,
        .hidden = f->hidden + row * cp,
        .lse = f->lse + row,
        .is_target = s->sample->is_target + begin,
        .n = n,
        .position = begin,
        .temperature = temperature};
}
