/* rollout/authors.c - who drew which token of a sample, so that a fault is blamed on the one who
 * made it, or on nobody.
 *
 * The known tokens of a sample may be of several workers: PROGRESS of one that was lost is the
 * prefix that the next one is leased.  Kept of each sample, until it is refused: how long a prefix
 * each worker was handed at most, and who said the tokens from where on.  A worker is sure to have
 * drawn what lies behind its prefix, and always the last token of its result, which no prefix has.
 * A sample that was refused starts from its prompt, so from then on everything is the finisher's:
 * what cannot be decided costs one attempt more. */
#include "rollout/coordinator_internal.h"

#include <stdlib.h>
#include <string.h>

/* Tokens that the worker may have been given; UINT32_MAX: any number. */
static uint32_t handed_to(const sample *s, uint64_t incarnation)
{
    for (int i = 0; i < s->n_handed; i++)
        if (s->handed[i].incarnation == incarnation)
            return s->handed[i].n;
    return s->may_run ? UINT32_MAX : 0; /* nobody gave it anything: it is all its own */
}

void authors_hand(sample *s, uint64_t incarnation, uint32_t n)
{
    pl_error ignored;
    for (int i = 0; i < s->n_handed; i++)
        if (s->handed[i].incarnation == incarnation) {
            if (s->handed[i].n < n)
                s->handed[i].n = n;
            return;
        }
    if (coordinator_grow((void **)&s->handed, s->n_handed, &s->room_handed, sizeof s->handed[0],
            &ignored) == PL_OK)
        s->handed[s->n_handed++] = (handed){incarnation, n};
    else
        s->may_run = 1; /* who knows what it was handed?  Nobody is blamed for that */
}

void authors_adopt(sample *s, uint64_t incarnation)
{
    authors_hand(s, incarnation, handed_to(s, incarnation));
}

/* The tokens from here on were said by name; NULL: by nobody that is known. */
static pl_status add(
    sample *s, uint32_t from, const char *name, uint64_t incarnation, pl_error *err)
{
    if (s->n_writers && s->writers[s->n_writers - 1].incarnation == incarnation)
        return PL_OK;
    const pl_status st = coordinator_grow(
        (void **)&s->writers, s->n_writers, &s->room_writers, sizeof s->writers[0], err);
    if (st != PL_OK)
        return st;
    writer *w = &s->writers[s->n_writers++];
    *w = (writer){.from = from, .incarnation = incarnation};
    if (name)
        memcpy(w->name, name, strnlen(name, NAME_ROOM - 1));
    return PL_OK;
}

pl_status authors_add(sample *s, uint32_t from, uint32_t to, const member *who, pl_error *err)
{
    const uint32_t own = handed_to(s, who->incarnation);
    pl_status st = PL_OK;
    if (from < own)
        st = add(s, from, NULL, 0, err);
    if (st == PL_OK && to > own)
        st = add(s, from < own ? own : from, who->name, who->incarnation, err);
    s->n_written = to;
    return st;
}

void authors_cut(sample *s, uint32_t n)
{
    while (s->n_writers && s->writers[s->n_writers - 1].from >= n)
        s->n_writers--;
    if (s->n_written > n)
        s->n_written = n;
}

uint32_t authors_agree(
    const sample *s, uint32_t from, const pl_span *tokens, const pl_span *logprobs)
{
    uint32_t i = 0;
    while (i < tokens->n && from + i < s->n &&
           memcmp(&s->tokens[from + i], (const char *)tokens->data + (size_t)i * 4, 4) == 0 &&
           memcmp(&s->logprobs[from + i], (const char *)logprobs->data + (size_t)i * 4, 4) == 0)
        i++;
    return i;
}

void authors_finish(sample *s, const member *who, const pl_msg_result *r)
{
    const uint32_t n_same = authors_agree(s, 0, &r->tokens, &r->logprobs);
    uint32_t own = handed_to(s, who->incarnation);
    /* It changed what it was handed, unless something else may have been handed to it. */
    if (own != UINT32_MAX && n_same < own && n_same < s->n && !s->is_disputed)
        own = n_same;
    s->own = own < r->tokens.n - 1 ? own : r->tokens.n - 1;
    authors_cut(s, n_same);
}

int authors_wrote(const sample *s, uint64_t incarnation, uint32_t position)
{
    const uint32_t n = handed_to(s, incarnation);
    return n != UINT32_MAX && position >= n;
}

int authors_blame(const sample *s, uint32_t position, writer *out)
{
    *out = (writer){.incarnation = s->by};
    memcpy(out->name, s->worker, sizeof out->name);
    if (position < s->own) {
        *out = (writer){0};
        for (int i = 0; i < s->n_writers && position < s->n_written; i++)
            if (s->writers[i].from <= position)
                *out = s->writers[i];
    }
    return out->incarnation != 0;
}

uint32_t authors_first(const sample *s, uint64_t incarnation)
{
    for (int i = 0; i < s->n_writers; i++)
        if (s->writers[i].incarnation == incarnation)
            return s->writers[i].from;
    return UINT32_MAX;
}

void authors_clear(sample *s)
{
    s->n_writers = s->n_handed = s->is_disputed = 0;
    s->n_written = s->own = 0;
    s->may_run = 0; /* whatever an earlier epoch leased is of an earlier attempt */
}

void authors_free(sample *s)
{
    free(s->writers);
    free(s->handed);
}
