/* drafter/internal.h - the automaton under the suffix drafter; no other folder includes it. */
#ifndef PL_DRAFTER_INTERNAL_H
#define PL_DRAFTER_INTERNAL_H

#include "drafter/drafter.h"

/* Counts are exact for substrings of at most this many tokens; longer ones are not counted, so that
 * periodic text costs no more than any other. */
enum { SUFFIX_DEPTH = 32 };

/* ---- generalised suffix automaton over token ids ---- */

typedef struct automaton_edge {
    int32_t from, token, to;
    int32_t next; /* next edge of the same state, -1: last */
} automaton_edge;

/* State 0 is the empty string.  A state stands for the substrings of (len[link], len] tokens that
 * end at the same places; count is the weight of those places. */
typedef struct automaton {
    int n_states, cap_states;
    int32_t *len, *link, *head; /* [cap_states] link -1: the root; head: first edge or -1 */
    float *count;               /* [cap_states] */
    int n_edges, cap_edges;
    automaton_edge *edges; /* [cap_edges] newest first within a state */
    int32_t *slots;        /* [n_slots] edge index + 1, open addressing, at most half full */
    uint32_t n_slots;
    uint64_t seed; /* of the hash: chosen text cannot aim at one slot */
} automaton;

void automaton_init(automaton *a, uint64_t seed);
void automaton_done(automaton *a);
/* Forget everything, keep the memory. */
void automaton_reset(automaton *a);
/* Have room for n_tokens tokens in all (2 states and 3 edges a token).  0 when memory is short:
 * nothing changed. */
int automaton_reserve(automaton *a, size_t n_tokens);
/* The state after token, or -1. */
int automaton_next(const automaton *a, int state, int32_t token);
/* Append token to the text that ends in last (the state whose longest string is the whole text);
 * returns the new last.  Room must have been reserved.  Amortised O(1). */
int automaton_extend(automaton *a, int last, int32_t token);

/* ---- the place of one text ---- */

typedef struct suffix_place {
    int32_t last;   /* state of the whole text */
    int32_t at;     /* state of its longest suffix of at most SUFFIX_DEPTH tokens that is known */
    int32_t at_len; /* length of that suffix */
} suffix_place;

/* Siblings may have split the state since: step to the part that holds a string of len tokens. */
static inline int32_t suffix_settle(const automaton *a, int32_t state, int32_t len)
{
    while (state > 0 && a->len[a->link[state]] >= len)
        state = a->link[state];
    return state;
}

typedef struct suffix_text {
    int32_t *tokens;
    int n, cap;
    int version;              /* of the policy that wrote it */
    pl_suffix_cursor *cursor; /* who still writes it, or NULL */
} suffix_text;

struct pl_suffix {
    pl_suffix_options o;
    automaton a;
    int32_t *prompt; /* what every text continues */
    int n_prompt;
    suffix_place start; /* after the prompt */
    suffix_text **texts;
    int n_texts, cap_texts;
    size_t n_tokens; /* prompt and texts */
    int version;
    float weight; /* of a token added now: grows by 1 / decay a version */
};

struct pl_suffix_cursor {
    pl_suffix *s;
    suffix_text *text; /* NULL: reads only, the automaton is full */
    suffix_place place;
};

/* Tokens that followed a context and their shares (they sum to 1): the longest suffix of at most
 * match_max tokens of the cursor's text that was continued.  Returns how many, at most max; *match
 * its length.  For tests. */
int suffix_shares(
    const pl_suffix_cursor *c, int match_max, int max, int32_t *tokens, float *shares, int *match);

#endif
