/* drafter/suffix.c - what is known about one prompt: texts, their ages, and each sample's place.
 *
 * Counts.  A token that is appended ends one place of every suffix of its text.  The suffixes of at
 * most SUFFIX_DEPTH tokens are the states on the link path from `at`; each gets the token's weight:
 * at most SUFFIX_DEPTH additions a token, whatever the text, and exact counts of all substrings up
 * to that length.  Ageing is the other way round: instead of decaying all counts, tokens of a new
 * policy version weigh 1 / decay more than those of the last; only shares are ever read.
 *
 * Bound.  When max_tokens is reached, the oldest finished texts are dropped and the automaton is
 * built again from the rest, but only if that frees a quarter of max_tokens: 4 tokens replayed for
 * each one appended at most, so appending stays amortised O(1).  When only running samples are
 * left, a sample stops being recorded and goes on reading. */
#include "drafter/internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

pl_status pl_suffix_new(pl_suffix **out, const pl_suffix_options *o, pl_error *err)
{
    if (o->min_match < 0 || o->min_match >= SUFFIX_DEPTH)
        return pl_fail(err, PL_E_INVAL, "suffix drafter: min_match %d is not in 0..%d",
            o->min_match, SUFFIX_DEPTH - 1);
    if (o->max_tokens < 16 || o->max_tokens > 1 << 26)
        return pl_fail(err, PL_E_INVAL, "suffix drafter: max_tokens %d is not in 16..%d",
            o->max_tokens, 1 << 26);
    if (!(o->decay > 0) || o->decay > 1)
        return pl_fail(
            err, PL_E_INVAL, "suffix drafter: decay %g is not in (0, 1]", (double)o->decay);
    pl_suffix *s = calloc(1, sizeof *s);
    if (!s)
        return pl_fail(err, PL_E_NOMEM, "suffix drafter: no memory for its head");
    s->o = *o;
    s->weight = 1;
    automaton_init(&s->a, (uint64_t)(uintptr_t)s * 0x9e3779b97f4a7c15u);
    if (!automaton_reserve(&s->a, 32)) {
        pl_suffix_free(s);
        return pl_fail(err, PL_E_NOMEM, "suffix drafter: no memory for 32 tokens");
    }
    *out = s;
    return PL_OK;
}

static void free_text(suffix_text *t)
{
    if (t)
        free(t->tokens);
    free(t);
}

void pl_suffix_free(pl_suffix *s)
{
    if (!s)
        return;
    for (int i = 0; i < s->n_texts; i++)
        free_text(s->texts[i]);
    free(s->texts);
    free(s->prompt);
    automaton_done(&s->a);
    free(s);
}

size_t pl_suffix_tokens(const pl_suffix *s)
{
    return s->n_tokens;
}

void pl_suffix_age(pl_suffix *s)
{
    s->version++;
    s->weight /= s->o.decay;
    if (s->weight < 1e6f)
        return;
    for (int i = 0; i < s->a.n_states; i++)
        s->a.count[i] /= s->weight;
    s->weight = 1;
}

/* Step the match of a text by one token: longer by one, or the longest suffix that goes on. */
static void follow(const automaton *a, suffix_place *p, int32_t token)
{
    p->at = suffix_settle(a, p->at, p->at_len);
    for (;;) {
        const int to = automaton_next(a, p->at, token);
        if (to >= 0) {
            p->at_len = p->at_len < SUFFIX_DEPTH ? p->at_len + 1 : SUFFIX_DEPTH;
            p->at = suffix_settle(a, to, p->at_len);
            return;
        }
        if (p->at == 0) {
            p->at_len = 0;
            return;
        }
        p->at = a->link[p->at];
        p->at_len = a->len[p->at];
    }
}

/* Append one token of a text to the automaton, with its counts. */
static void learn(automaton *a, suffix_place *p, int32_t token, float weight)
{
    p->last = automaton_extend(a, p->last, token);
    follow(a, p, token);
    for (int v = p->at; v >= 0; v = a->link[v])
        a->count[v] += weight;
}

static suffix_place learn_all(
    automaton *a, suffix_place p, const int32_t *tokens, int n, float weight)
{
    for (int i = 0; i < n; i++)
        learn(a, &p, tokens[i], weight);
    return p;
}

pl_status pl_suffix_set_prompt(pl_suffix *s, const int32_t *prompt, int n, pl_error *err)
{
    if (s->n_prompt > 0 || s->n_texts > 0 || n <= 0)
        return PL_OK;
    const int keep = n < s->o.max_tokens / 2 ? n : s->o.max_tokens / 2;
    s->prompt = malloc((size_t)keep * sizeof *s->prompt);
    if (!s->prompt || !automaton_reserve(&s->a, (size_t)keep))
        return pl_fail(err, PL_E_NOMEM, "suffix drafter: no memory for a prompt of %d tokens", n);
    memcpy(s->prompt, prompt + (n - keep), (size_t)keep * sizeof *s->prompt);
    s->n_prompt = keep;
    s->n_tokens = (size_t)keep;
    s->start = learn_all(&s->a, (suffix_place){0}, s->prompt, keep, s->weight);
    return PL_OK;
}

/* Build the automaton again from what is kept; its memory is large enough already. */
static void rebuild(pl_suffix *s)
{
    automaton_reset(&s->a);
    s->weight = 1;
    s->start = learn_all(&s->a, (suffix_place){0}, s->prompt, s->n_prompt, 1);
    s->n_tokens = (size_t)s->n_prompt;
    for (int i = 0; i < s->n_texts; i++) {
        const suffix_text *t = s->texts[i];
        float weight = 1;
        for (int v = t->version; v < s->version && weight > 1e-6f; v++)
            weight *= s->o.decay;
        const suffix_place p = learn_all(&s->a, s->start, t->tokens, t->n, weight);
        s->n_tokens += (size_t)t->n;
        if (t->cursor)
            t->cursor->place = p;
    }
}

/* Drop the oldest finished texts down to half of max_tokens.  0 when that would free too little. */
static int make_room(pl_suffix *s)
{
    size_t n_finished = 0;
    for (int i = 0; i < s->n_texts; i++)
        n_finished += s->texts[i]->cursor ? 0 : (size_t)s->texts[i]->n;
    if (n_finished < (size_t)s->o.max_tokens / 4)
        return 0;

    size_t left = s->n_tokens;
    int n = 0;
    for (int i = 0; i < s->n_texts; i++) {
        suffix_text *t = s->texts[i];
        if (!t->cursor && left > (size_t)s->o.max_tokens / 2) {
            left -= (size_t)t->n;
            free_text(t);
            continue;
        }
        s->texts[n++] = t;
    }
    s->n_texts = n;
    rebuild(s);
    return 1;
}

/* A new text in the list; NULL when memory is short. */
static suffix_text *add_text(pl_suffix *s, pl_suffix_cursor *c)
{
    if (s->n_texts == s->cap_texts) {
        const int cap = s->cap_texts ? 2 * s->cap_texts : 16;
        suffix_text **texts = realloc(s->texts, (size_t)cap * sizeof *texts);
        if (!texts)
            return NULL;
        s->texts = texts;
        s->cap_texts = cap;
    }
    suffix_text *t = calloc(1, sizeof *t);
    if (!t)
        return NULL;
    t->version = s->version;
    t->cursor = c;
    s->texts[s->n_texts++] = t;
    return t;
}

pl_status pl_suffix_cursor_new(pl_suffix_cursor **out, pl_suffix *s, pl_error *err)
{
    pl_suffix_cursor *c = calloc(1, sizeof *c);
    if (!c)
        return pl_fail(err, PL_E_NOMEM, "suffix drafter: no memory for a cursor");
    c->s = s;
    c->place = s->start;
    c->text = add_text(s, c);
    if (!c->text) {
        free(c);
        return pl_fail(err, PL_E_NOMEM, "suffix drafter: no memory for text %d", s->n_texts);
    }
    *out = c;
    return PL_OK;
}

/* The cursor goes on reading only; what it wrote stays known. */
static void stop_writing(pl_suffix_cursor *c)
{
    if (c->text)
        c->text->cursor = NULL;
    c->text = NULL;
}

void pl_suffix_cursor_free(pl_suffix_cursor *c)
{
    if (!c)
        return;
    suffix_text *t = c->text;
    pl_suffix *s = c->s;
    stop_writing(c);
    /* A text without tokens would only fill the list. */
    if (t && t->n == 0) {
        for (int i = s->n_texts - 1; i >= 0; i--)
            if (s->texts[i] == t) {
                memmove(&s->texts[i], &s->texts[i + 1],
                    (size_t)(s->n_texts - 1 - i) * sizeof(suffix_text *));
                s->n_texts--;
                break;
            }
        free_text(t);
    }
    free(c);
}

/* Room for n more tokens in the text and in the automaton; 0: memory is short. */
static int reserve(pl_suffix_cursor *c, int n)
{
    suffix_text *t = c->text;
    if (t->n + n > t->cap) {
        const int cap = t->n + n > 2 * t->cap ? t->n + n + 64 : 2 * t->cap;
        int32_t *p = realloc(t->tokens, (size_t)cap * sizeof *p);
        if (!p)
            return 0;
        t->tokens = p;
        t->cap = cap;
    }
    return automaton_reserve(&c->s->a, c->s->n_tokens + (size_t)n);
}

pl_status pl_suffix_append(pl_suffix_cursor *c, const int32_t *tokens, int n, pl_error *err)
{
    pl_suffix *s = c->s;
    pl_status st = PL_OK;
    assert(n >= 0);
    if (c->text && s->n_tokens + (size_t)n > (size_t)s->o.max_tokens &&
        (!make_room(s) || s->n_tokens + (size_t)n > (size_t)s->o.max_tokens))
        stop_writing(c);
    if (c->text && !reserve(c, n)) {
        st = pl_fail(err, PL_E_NOMEM,
            "suffix drafter: no memory for %d more tokens after %zu; the sample is not recorded", n,
            s->n_tokens);
        stop_writing(c);
    }
    for (int i = 0; i < n; i++) {
        if (!c->text) {
            follow(&s->a, &c->place, tokens[i]);
            continue;
        }
        learn(&s->a, &c->place, tokens[i], s->weight);
        c->text->tokens[c->text->n++] = tokens[i];
        s->n_tokens++;
    }
    return st;
}
