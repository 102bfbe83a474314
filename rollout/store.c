/* rollout/store.c - suffix automata by prompt, kept across groups and policy versions.
 *
 * Bounded: when the kept automata hold more than STORE_AUTOMATA * suffix.max_tokens tokens, those
 * used longest ago and by nobody now are dropped. */
#include "rollout/internal.h"

#include <stdlib.h>

static void free_entry(suffix_entry *e)
{
    pl_suffix_free(e->suffix);
    free(e);
}

static void drop_entry(suffix_store *s, suffix_entry *e)
{
    suffix_entry **at = &s->entries;
    while (*at != e)
        at = &(*at)->next;
    *at = e->next;
    free_entry(e);
}

/* Drop what was used longest ago until the bound holds. */
static void trim(suffix_store *s)
{
    const size_t bound = (size_t)STORE_AUTOMATA * (size_t)s->o.max_tokens;
    for (;;) {
        size_t total = 0;
        suffix_entry *oldest = NULL;
        for (suffix_entry *e = s->entries; e; e = e->next) {
            total += pl_suffix_tokens(e->suffix);
            if (e->n_users == 0 && (!oldest || e->used < oldest->used))
                oldest = e;
        }
        if (total <= bound || !oldest)
            return;
        drop_entry(s, oldest);
    }
}

suffix_entry *store_get(suffix_store *s, uint64_t key, const int32_t *prompt, int n_prompt)
{
    suffix_entry *e = NULL;
    trim(s);
    if (key != 0)
        for (e = s->entries; e && e->key != key;)
            e = e->next;
    if (!e) {
        e = calloc(1, sizeof *e);
        if (!e || pl_suffix_new(&e->suffix, &s->o, NULL) != PL_OK) {
            free(e);
            return NULL;
        }
        e->key = key;
        e->next = s->entries;
        s->entries = e;
        /* Without memory for the prompt the automaton learns from the responses alone. */
        (void)pl_suffix_set_prompt(e->suffix, prompt, n_prompt, NULL);
    }
    e->used = ++s->tick;
    e->n_users++;
    return e;
}

void store_put(suffix_store *s, suffix_entry *e)
{
    if (!e)
        return;
    if (--e->n_users == 0 && e->key == 0)
        drop_entry(s, e);
}

void store_age(suffix_store *s)
{
    for (suffix_entry *e = s->entries; e; e = e->next)
        pl_suffix_age(e->suffix);
}

void store_done(suffix_store *s)
{
    while (s->entries) {
        suffix_entry *next = s->entries->next;
        free_entry(s->entries);
        s->entries = next;
    }
}
