/* core/config.c - layers of a configuration: defaults, then the file, then the overrides. */
#include "core/config.h"

#include "core/config_internal.h"
#include "core/file.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static pl_status set_defaults(const config_tables *t, pl_error *err)
{
    for (int s = 0; s < t->n_sections; s++) {
        for (const pl_config_key *k = t->sections[s].keys; k->key; k++) {
            const pl_status st = config_set(k, t->sections[s].options, k->def, err);
            if (st == PL_E_CONFIG) /* the table is wrong, not the user */
                return pl_wrap(err, PL_E_INVAL, "default of a configuration table");
            if (st != PL_OK)
                return st;
        }
    }
    return PL_OK;
}

pl_status config_assign(const config_tables *t, int i, const char *text, pl_error *err)
{
    void *options;
    const char *name = config_key_at(t, i, &options)->key;

    for (int s = 0; s < t->n_sections; s++) {
        for (const pl_config_key *k = t->sections[s].keys; k->key; k++) {
            if (strcmp(k->key, name) != 0)
                continue;
            const pl_status st = config_set(k, t->sections[s].options, text, err);
            if (st != PL_OK)
                return st;
        }
    }
    return PL_OK;
}

/* The same key twice by one name: the last one counts, as with any option.  By two names: one of
 * them is a slip. */
static pl_status apply_override(
    const config_tables *t, config_seen *seen, const char *text, pl_error *err)
{
    char name[CONFIG_NAME], full[CONFIG_NAME], hint[2 * CONFIG_NAME];
    const char *equals = strchr(text, '=');
    const size_t len = equals ? (size_t)(equals - text) : 0;

    if (len == 0)
        return pl_fail(err, PL_E_CONFIG, "is not of the form key=value");
    if (len >= sizeof name)
        return pl_fail(err, PL_E_CONFIG, "unknown key: no key is so long");
    memcpy(name, text, len);
    name[len] = '\0';

    const int i = config_find(t, name, full);
    if (i < 0 && config_is_section(t, name))
        return pl_fail(err, PL_E_CONFIG, "'%s' is a section; name one key of it, as '%s.KEY=VALUE'",
            name, name);
    if (i < 0) {
        config_suggest(t, name, hint, sizeof hint);
        return pl_fail(err, PL_E_CONFIG, "unknown key '%s'%s", name, hint);
    }
    if (seen[i].line > 0 && strcmp(seen[i].spelled, name) != 0)
        return pl_fail(
            err, PL_E_CONFIG, "'%s' and '%s' are the same key; keep one", name, seen[i].spelled);
    seen[i].line = 1;
    memcpy(seen[i].spelled, name, len + 1);
    return config_assign(t, i, equals + 1, err);
}

static config_seen *new_seen(const config_tables *t, pl_error *err)
{
    const int n = config_count(t);
    config_seen *seen = calloc(n > 0 ? (size_t)n : 1, sizeof *seen);
    if (!seen)
        pl_error_set(err, PL_E_NOMEM, "configuration: no memory for %d keys", n);
    return seen;
}

static pl_status apply_overrides(
    const config_tables *t, char *const *overrides, int n_overrides, pl_error *err)
{
    pl_status st = PL_OK;

    if (n_overrides == 0)
        return PL_OK;
    config_seen *seen = new_seen(t, err);
    if (!seen)
        return PL_E_NOMEM;
    for (int i = 0; i < n_overrides && st == PL_OK; i++) {
        st = apply_override(t, seen, overrides[i], err);
        if (st != PL_OK)
            pl_error_prefix(err, "override '%.*s'", CONFIG_CLIP, overrides[i]);
    }
    free(seen);
    return st;
}

static pl_status apply_text(
    const config_tables *t, const char *text, size_t n_bytes, const char *name, pl_error *err)
{
    if (n_bytes > CONFIG_MAX_FILE)
        return pl_fail(err, PL_E_CONFIG, "%s: %zu bytes; a configuration has at most %d", name,
            n_bytes, CONFIG_MAX_FILE);
    config_seen *seen = new_seen(t, err);
    if (!seen)
        return PL_E_NOMEM;
    const pl_status st = config_read_yaml(t, seen, text, n_bytes, name, err);
    free(seen);
    return st;
}

static pl_status apply_file(const config_tables *t, const char *path, pl_error *err)
{
    char *text = NULL;
    size_t n_bytes = 0;

    pl_status st = pl_file_read(&text, &n_bytes, path, CONFIG_MAX_FILE, err);
    if (st == PL_E_FORMAT) /* too large */
        return pl_wrap(err, PL_E_CONFIG, "configuration");
    if (st != PL_OK)
        return pl_wrap(err, st, "configuration");
    st = apply_text(t, text, n_bytes, path, err);
    free(text);
    return st;
}

pl_status pl_config_load(const pl_config_section *sections, int n_sections,
    const pl_config_alias *aliases, const char *path, char *const *overrides, int n_overrides,
    pl_error *err)
{
    const config_tables t = {sections, n_sections, aliases};

    pl_status st = set_defaults(&t, err);
    if (st == PL_OK && path)
        st = apply_file(&t, path, err);
    if (st == PL_OK)
        st = apply_overrides(&t, overrides, n_overrides, err);
    return st;
}

pl_status pl_config_parse(const pl_config_section *sections, int n_sections,
    const pl_config_alias *aliases, const char *text, size_t n_bytes, const char *name,
    pl_error *err)
{
    const config_tables t = {sections, n_sections, aliases};

    const pl_status st = set_defaults(&t, err);
    return st == PL_OK ? apply_text(&t, text, n_bytes, name, err) : st;
}
