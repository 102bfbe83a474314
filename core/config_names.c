/* core/config_names.c - which key a dotted name means, and which one a wrong name was meant to be.
 */
#include "core/config_internal.h"

#include <stdio.h>
#include <string.h>

int config_count(const config_tables *t)
{
    int n = 0;
    for (int s = 0; s < t->n_sections; s++) {
        for (const pl_config_key *k = t->sections[s].keys; k->key; k++)
            n++;
    }
    return n;
}

const pl_config_key *config_key_at(const config_tables *t, int i, void **options)
{
    for (int s = 0; s < t->n_sections; s++) {
        for (const pl_config_key *k = t->sections[s].keys; k->key; k++) {
            if (i-- > 0)
                continue;
            *options = t->sections[s].options;
            return k;
        }
    }
    return NULL;
}

static int find_exact(const config_tables *t, const char *name)
{
    int i = 0;
    for (int s = 0; s < t->n_sections; s++) {
        for (const pl_config_key *k = t->sections[s].keys; k->key; k++, i++) {
            if (strcmp(k->key, name) == 0)
                return i;
        }
    }
    return -1;
}

/* An alias that ends in a dot stands for the start of a name, another one for a whole name. */
static int expand(const pl_config_alias *a, const char *name, char *full)
{
    const size_t len = strlen(a->from);
    const int is_prefix = len > 0 && a->from[len - 1] == '.';

    if (is_prefix ? strncmp(name, a->from, len) != 0 : strcmp(name, a->from) != 0)
        return 0;
    const int n = snprintf(full, CONFIG_NAME, "%s%s", a->to, name + len);
    return n > 0 && n < CONFIG_NAME;
}

int config_find(const config_tables *t, const char *name, char *full)
{
    char long_name[CONFIG_NAME];
    int n_expanded = 0;

    int i = find_exact(t, name);
    if (snprintf(full, CONFIG_NAME, "%s", name) < 0)
        full[0] = '\0';
    for (const pl_config_alias *a = t->aliases; i < 0 && a && a->from; a++) {
        if (!expand(a, name, long_name))
            continue;
        i = find_exact(t, long_name);
        if (i >= 0 || n_expanded++ == 0)
            memcpy(full, long_name, sizeof long_name);
    }
    return i;
}

static int has_keys_below(const config_tables *t, const char *prefix)
{
    const size_t len = strlen(prefix);
    for (int s = 0; s < t->n_sections; s++) {
        for (const pl_config_key *k = t->sections[s].keys; k->key; k++) {
            if (strncmp(k->key, prefix, len) == 0)
                return 1;
        }
    }
    return 0;
}

int config_is_section(const config_tables *t, const char *name)
{
    char prefix[CONFIG_NAME];
    char long_name[CONFIG_NAME];
    const int n = snprintf(prefix, sizeof prefix, "%s.", name);

    if (n < 0 || n >= (int)sizeof prefix)
        return 0;
    if (has_keys_below(t, prefix))
        return 1;
    for (const pl_config_alias *a = t->aliases; a && a->from; a++) {
        if (strncmp(a->from, prefix, (size_t)n) == 0)
            return 1;
        if (expand(a, prefix, long_name) && has_keys_below(t, long_name))
            return 1;
    }
    return 0;
}

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* Insertions, deletions, substitutions and swaps of neighbours that turn a into b (the restricted
 * Damerau-Levenshtein distance), with three rows of the table. */
static int distance(const char *a, size_t n_a, const char *b, size_t n_b)
{
    int rows[3][CONFIG_NAME];
    int *before = rows[0], *above = rows[1], *row = rows[2];

    if (n_a >= CONFIG_NAME || n_b >= CONFIG_NAME)
        return CONFIG_NAME;
    for (size_t j = 0; j <= n_b; j++)
        above[j] = (int)j;
    for (size_t i = 1; i <= n_a; i++) {
        row[0] = (int)i;
        for (size_t j = 1; j <= n_b; j++) {
            const int cost = a[i - 1] != b[j - 1];
            row[j] = min_int(min_int(above[j], row[j - 1]) + 1, above[j - 1] + cost);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = min_int(row[j], before[j - 2] + 1);
        }
        int *const spare = before;
        before = above;
        above = row;
        row = spare;
    }
    return above[n_b];
}

/* Typing errors that a word of this length may hold and still be recognised. */
static int tolerance(size_t len)
{
    return len < 3 ? 0 : len < 6 ? 1 : len < 12 ? 2 : 3;
}

typedef struct best {
    int distance;
    const char *word;
    size_t len;
} best;

static void offer(best *b, int d, const char *word, size_t len)
{
    if (d >= b->distance)
        return;
    b->distance = d;
    b->word = word;
    b->len = len;
}

static size_t last_component(const char *name, size_t len)
{
    while (len > 0 && name[len - 1] != '.')
        len--;
    return len;
}

/* Compare with one name (a key or a section): whole against whole, and, one worse, last component
 * against last component, for a key that stands under the wrong section or under none. */
static void compare(best *b, const char *name, const char *word, size_t n_word)
{
    const size_t n_name = strlen(name);
    const int whole = distance(name, n_name, word, n_word);
    const size_t tail = last_component(name, n_name);
    const size_t tail_word = last_component(word, n_word);

    if (whole <= tolerance(n_name))
        offer(b, whole, word, n_word);
    const int part = distance(name + tail, n_name - tail, word + tail_word, n_word - tail_word);
    if (part <= tolerance(n_name - tail) && n_name - tail > 2)
        offer(b, part + 1, word, n_word);
}

static void compare_all(best *b, const config_tables *t, const char *name)
{
    for (int s = 0; s < t->n_sections; s++) {
        for (const pl_config_key *k = t->sections[s].keys; k->key; k++) {
            compare(b, name, k->key, strlen(k->key));
            for (const char *dot = strchr(k->key, '.'); dot; dot = strchr(dot + 1, '.'))
                compare(b, name, k->key, (size_t)(dot - k->key));
        }
    }
}

void config_suggest(const config_tables *t, const char *name, char *out, size_t n_out)
{
    best b = {CONFIG_NAME, NULL, 0};
    char full[CONFIG_NAME];

    compare_all(&b, t, name);
    (void)config_find(t, name, full);
    if (strcmp(full, name) != 0)
        compare_all(&b, t, full);
    if (!b.word || snprintf(out, n_out, " (did you mean '%.*s'?)", (int)b.len, b.word) < 0)
        out[0] = '\0';
}

int config_near_choice(const char *choices, const char *word, char *out, size_t n_out)
{
    best b = {CONFIG_NAME, NULL, 0};
    const size_t n_word = strlen(word);

    for (const char *c = choices; *c;) {
        const size_t len = strcspn(c, "|");
        const int d = distance(word, n_word, c, len);
        if (d <= tolerance(n_word))
            offer(&b, d, c, len);
        c += len + (c[len] == '|');
    }
    return b.word && snprintf(out, n_out, "%.*s", (int)b.len, b.word) > 0;
}
