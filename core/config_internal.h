/* core/config_internal.h - the parts of the configuration reader: names, values, the file. */
#ifndef PL_CORE_CONFIG_INTERNAL_H
#define PL_CORE_CONFIG_INTERNAL_H

#include "core/config.h"

enum {
    CONFIG_NAME = 256,         /* longest dotted name, with its NUL, bytes */
    CONFIG_MAX_DEPTH = 8,      /* nested maps */
    CONFIG_CLIP = 80,          /* characters of a foreign text that a message repeats */
    CONFIG_MAX_FILE = 1 << 20, /* bytes */
};

/* Where a key was given, to name both places when it is given twice. */
typedef struct config_seen {
    int line, column;          /* line 0: not yet */
    char spelled[CONFIG_NAME]; /* as written, perhaps by a short name */
} config_seen;

typedef struct config_tables {
    const pl_config_section *sections;
    int n_sections;
    const pl_config_alias *aliases; /* may be NULL */
} config_tables;

/* config_names.c */

/* Number of keys of all tables. */
int config_count(const config_tables *t);

/* Key number i, tables in order.  *options is the struct that it lives in. */
const pl_config_key *config_key_at(const config_tables *t, int i, void **options);

/* Number of the first key that name means, itself or through an alias, or -1.  full [CONFIG_NAME]
 * receives the long name, also of an unknown key. */
int config_find(const config_tables *t, const char *name, char *full);

/* 1 if keys lie below name, itself or through an alias. */
int config_is_section(const config_tables *t, const char *name);

/* Write " (did you mean 'y'?)" to out, or nothing when no key or section is near name. */
void config_suggest(const config_tables *t, const char *name, char *out, size_t n_out);

/* Fill out with the closest of the words "a|b|c".  Returns 0 when none is near. */
int config_near_choice(const char *choices, const char *word, char *out, size_t n_out);

/* config_value.c */

/* Parse text into the field of key.  The message names the key, not the place. */
pl_status config_set(const pl_config_key *key, void *options, const char *text, pl_error *err);

/* "an integer", "true or false" ... */
const char *config_type_words(pl_config_type type);

/* "1 .. 32", "at least 0", "a, b or c"; empty when anything goes. */
void config_range(const pl_config_key *key, char *out, size_t n_out);

/* Offset of the first byte that is not part of valid UTF-8 or is a NUL; n when all is well. */
size_t config_bad_utf8(const char *text, size_t n);

/* config_yaml.c: walk the events of one document and set what it names. */
pl_status config_read_yaml(const config_tables *t, config_seen *seen, const char *text,
    size_t n_bytes, const char *name, pl_error *err);

/* config.c: set key number i and every other key of the same name to text. */
pl_status config_assign(const config_tables *t, int i, const char *text, pl_error *err);

#endif
