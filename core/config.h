/* core/config.h - YAML files and dotted overrides, checked against option tables.
 *
 * Each module has one table (pl_config_key[]) for its section; the tables together give the parser,
 * the help text and the resolved dump.  Subset of YAML: nested maps of scalars, at most eight deep,
 * one document of at most 1 MiB; lists, anchors, aliases, tags, merge keys and repeated keys are
 * refused.  A dot in a key of the file means what a map inside a map means. */
#ifndef PL_CORE_CONFIG_H
#define PL_CORE_CONFIG_H

#include "core/error.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef enum pl_config_type {
    PL_INT,    /* int64_t, range [min, max] */
    PL_FLOAT,  /* double, range [min, max] */
    PL_BOOL,   /* int, true or false */
    PL_STRING, /* char[PL_CONFIG_STR] */
    PL_ENUM,   /* char[PL_CONFIG_STR], one of choices ("a|b|c") */
} pl_config_type;

enum { PL_CONFIG_STR = 1024 };

typedef struct pl_config_key {
    const char *key; /* dotted, full name, as "actor_rollout_ref.rollout.n"; NULL ends the table */
    size_t offset;   /* into the options struct */
    pl_config_type type;
    double min, max;     /* for PL_INT and PL_FLOAT, inclusive */
    const char *def;     /* default, as text, never NULL */
    const char *choices; /* for PL_ENUM */
    const char *help;    /* meaning, with unit */
} pl_config_key;

/* One table with the struct that it fills. */
typedef struct pl_config_section {
    const pl_config_key *keys;
    void *options;
} pl_config_section;

/* A prefix that may stand for a longer one: {"rollout.", "actor_rollout_ref.rollout."}; without the
 * dot at its end, a whole key.  A key that a table has is never replaced.  To give a key under both
 * its names is an error. */
typedef struct pl_config_alias {
    const char *from, *to; /* NULL, NULL ends the list */
} pl_config_alias;

/* Fill every options struct: defaults, then the file (NULL: none), then the overrides "key=value"
 * (of two for one key the last counts).  After an error the structs hold a mixture.
 * Errors: PL_E_CONFIG with "file:line:column: unknown key 'x' (did you mean 'y'?)" or the
 * override's text; PL_E_NOENT, PL_E_IO for the file. */
pl_status pl_config_load(const pl_config_section *sections, int n_sections,
    const pl_config_alias *aliases, const char *path, char *const *overrides, int n_overrides,
    pl_error *err);

/* Parse from memory (name stands in messages); for tests and fuzzing. */
pl_status pl_config_parse(const pl_config_section *sections, int n_sections,
    const pl_config_alias *aliases, const char *text, size_t n_bytes, const char *name,
    pl_error *err);

/* Write the resolved configuration as YAML that pl_config_load reads back to the same values; with
 * help: a comment of type, range, default and meaning above each key (--help-config). */
void pl_config_dump(const pl_config_section *sections, int n_sections, int with_help, FILE *out);

#endif
