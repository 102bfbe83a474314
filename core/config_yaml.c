/* core/config_yaml.c - the events of one YAML document, turned into keys and values.
 *
 * The reader looks at events, not at a tree: what it refuses (aliases, tags, lists, a second
 * document, a ninth level) is refused where it stands, before anything is built from it. */
#include "core/config_internal.h"

#include <libfyaml.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct reader {
    const config_tables *tables;
    config_seen *seen; /* [config_count] */
    const char *name;  /* of the file, in messages */
    int line, column;  /* of the event at hand, from 1 */
    int n_documents;
    int depth;                        /* open maps */
    size_t lengths[CONFIG_MAX_DEPTH]; /* of path, for each open map */
    int has_key;                      /* path ends in a key that waits for its value */
    int key_line, key_column;         /* of that key */
    char path[CONFIG_NAME];           /* dotted name of the open map, or of the key */
    char complaint[160];              /* of libfyaml, when it has no place to point at */
} reader;

#define fail_here(r, err, ...) (set_here((r), (err), __VA_ARGS__), PL_E_CONFIG)

__attribute__((format(printf, 3, 4))) static void set_here(
    const reader *r, pl_error *err, const char *fmt, ...)
{
    char text[sizeof err->msg];
    va_list args;

    va_start(args, fmt);
    const int n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    pl_error_set(err, PL_E_CONFIG, "%s:%d:%d: %s", r->name, r->line, r->column, n < 0 ? "" : text);
}

static pl_status unknown_key(reader *r, pl_error *err)
{
    char hint[2 * CONFIG_NAME];
    config_suggest(r->tables, r->path, hint, sizeof hint);
    r->line = r->key_line;
    r->column = r->key_column;
    return fail_here(r, err, "unknown key '%s'%s", r->path, hint);
}

static void end_value(reader *r)
{
    r->has_key = 0;
    r->path[r->lengths[r->depth - 1]] = '\0';
}

/* "", ~ and null say "nothing"; only for plain scalars. */
static int is_null(const char *text)
{
    return text[0] == '\0' || strcmp(text, "~") == 0 || strcmp(text, "null") == 0 ||
           strcmp(text, "Null") == 0 || strcmp(text, "NULL") == 0;
}

static pl_status take_key(reader *r, const char *text, int is_plain, pl_error *err)
{
    const size_t before = r->lengths[r->depth - 1];
    const size_t room = sizeof r->path - before;

    if (is_plain && strcmp(text, "<<") == 0)
        return fail_here(r, err, "merge keys (<<) are not taken; write the values out");
    if (text[0] == '\0')
        return fail_here(r, err, "a key is empty");
    const int n = snprintf(r->path + before, room, "%s%s", before > 0 ? "." : "", text);
    if (n < 0 || (size_t)n >= room) {
        r->path[before] = '\0';
        return fail_here(r, err, "unknown key '%.*s...': no key is so long", CONFIG_CLIP, text);
    }
    r->has_key = 1;
    r->key_line = r->line;
    r->key_column = r->column;
    return PL_OK;
}

/* Refuse a key that was given before, by this or by its other name. */
static pl_status mark_seen(reader *r, int i, pl_error *err)
{
    config_seen *seen = &r->seen[i];

    if (seen->line == 0) {
        seen->line = r->key_line;
        seen->column = r->key_column;
        memcpy(seen->spelled, r->path, sizeof seen->spelled);
        return PL_OK;
    }
    r->line = r->key_line;
    r->column = r->key_column;
    if (strcmp(seen->spelled, r->path) == 0)
        return fail_here(
            r, err, "duplicate key '%s' (first at %d:%d)", r->path, seen->line, seen->column);
    return fail_here(r, err, "duplicate key '%s': the same as '%s' at %d:%d; keep one", r->path,
        seen->spelled, seen->line, seen->column);
}

static pl_status take_value(reader *r, const char *text, int is_plain, pl_error *err)
{
    char full[CONFIG_NAME];
    void *options;
    pl_error cause;

    const int i = config_find(r->tables, r->path, full);
    if (i < 0) {
        if (!config_is_section(r->tables, r->path))
            return unknown_key(r, err);
        if (!is_plain || !is_null(text))
            return fail_here(r, err, "'%s' is a section of keys, not a value", r->path);
        end_value(r);
        return PL_OK;
    }

    const pl_config_key *key = config_key_at(r->tables, i, &options);
    pl_status st = mark_seen(r, i, err);
    if (st != PL_OK)
        return st;
    if (is_plain && is_null(text))
        return fail_here(r, err, "'%s' has no value; it takes %s%s", key->key,
            config_type_words(key->type),
            key->type == PL_STRING ? ", \"\" for an empty one" : "; leave it out for its default");
    if (!is_plain && key->type != PL_STRING && key->type != PL_ENUM)
        return fail_here(
            r, err, "'%s' takes %s, not a quoted text", key->key, config_type_words(key->type));
    st = config_assign(r->tables, i, text, &cause);
    if (st != PL_OK) {
        pl_error_set(err, st, "%s:%d:%d: %s", r->name, r->line, r->column, cause.msg);
        return st;
    }
    end_value(r);
    return PL_OK;
}

static pl_status take_scalar(reader *r, struct fy_token *token, pl_error *err)
{
    size_t len = 0;
    const char *bytes = token ? fy_token_get_text(token, &len) : "";
    const int is_plain = !token || fy_token_scalar_style(token) == FYSS_PLAIN;

    if (!bytes)
        return pl_fail(err, PL_E_NOMEM, "%s: out of memory", r->name);
    if (memchr(bytes, 0, len))
        return fail_here(r, err, "a text holds a NUL byte");
    char *text = malloc(len + 1);
    if (!text)
        return pl_fail(err, PL_E_NOMEM, "%s: no memory for %zu bytes", r->name, len + 1);
    memcpy(text, bytes, len);
    text[len] = '\0';

    pl_status st = PL_OK;
    if (r->depth == 0 && !(is_plain && is_null(text)))
        st = fail_here(r, err, "the file must be a map of keys, not one value");
    else if (r->depth > 0)
        st = r->has_key ? take_value(r, text, is_plain, err) : take_key(r, text, is_plain, err);
    free(text);
    return st;
}

static pl_status open_map(reader *r, pl_error *err)
{
    char full[CONFIG_NAME];
    void *options;

    if (r->depth == CONFIG_MAX_DEPTH)
        return fail_here(r, err, "more than %d maps inside each other", CONFIG_MAX_DEPTH);
    if (r->depth > 0) {
        if (!r->has_key)
            return fail_here(r, err, "a map cannot be a key");
        const int i = config_find(r->tables, r->path, full);
        if (i >= 0)
            return fail_here(r, err, "'%s' takes %s, not a map", r->path,
                config_type_words(config_key_at(r->tables, i, &options)->type));
        if (!config_is_section(r->tables, r->path))
            return unknown_key(r, err);
    }
    r->lengths[r->depth++] = strlen(r->path);
    r->has_key = 0;
    return PL_OK;
}

static pl_status refuse_list(reader *r, pl_error *err)
{
    char full[CONFIG_NAME];
    void *options;

    if (r->depth == 0)
        return fail_here(r, err, "the file must be a map of keys, not a list");
    if (!r->has_key)
        return fail_here(r, err, "a list cannot be a key");
    const int i = config_find(r->tables, r->path, full);
    if (i >= 0)
        return fail_here(r, err, "'%s' takes %s, not a list (no key takes one)", r->path,
            config_type_words(config_key_at(r->tables, i, &options)->type));
    if (!config_is_section(r->tables, r->path))
        return unknown_key(r, err);
    return fail_here(r, err, "'%s' is a section of keys, not a list", r->path);
}

static pl_status take_event(reader *r, struct fy_event *event, pl_error *err)
{
    const struct fy_mark *mark = fy_event_start_mark(event);
    struct fy_token *anchor = NULL, *tag = NULL;

    if (mark) {
        r->line = mark->line + 1;
        r->column = mark->column + 1;
    }
    if (event->type == FYET_SCALAR) {
        anchor = event->scalar.anchor;
        tag = event->scalar.tag;
    } else if (event->type == FYET_MAPPING_START) {
        anchor = event->mapping_start.anchor;
        tag = event->mapping_start.tag;
    }
    if (anchor)
        return fail_here(r, err, "anchors (&name) are not taken; write the value out");
    if (tag)
        return fail_here(r, err, "tags (!type) are not taken; the key decides the type");

    switch (event->type) {
    case FYET_DOCUMENT_START:
        if (r->n_documents++ > 0)
            return fail_here(r, err, "a second document starts here; one file holds one");
        return PL_OK;
    case FYET_MAPPING_START:
        return open_map(r, err);
    case FYET_MAPPING_END:
        r->depth--;
        if (r->depth > 0)
            end_value(r);
        return PL_OK;
    case FYET_SEQUENCE_START:
        return refuse_list(r, err);
    case FYET_SCALAR:
        return take_scalar(r, event->scalar.value, err);
    case FYET_ALIAS:
        return fail_here(r, err, "aliases (*name) are not taken; write the value out");
    default:
        return PL_OK;
    }
}

/* Some of libfyaml's complaints (a %YAML directive of the future) are not collected but printed:
 * keep the first instead. */
static void keep_complaint(struct fy_diag *diag, void *user, const char *text, size_t n_bytes)
{
    reader *r = user;

    (void)diag;
    if (r->complaint[0] || !text)
        return;
    const size_t n = n_bytes < sizeof r->complaint ? n_bytes : sizeof r->complaint - 1;
    memcpy(r->complaint, text, n);
    r->complaint[n] = '\0';
    r->complaint[strcspn(r->complaint, "\n")] = '\0';
}

/* What libfyaml collected: the first error has the place. */
static pl_status syntax_error(reader *r, struct fy_diag *diag, pl_error *err)
{
    void *cursor = NULL;
    const struct fy_diag_error *e = fy_diag_errors_iterate(diag, &cursor);

    if (!e)
        return fail_here(r, err, "is not YAML%s%s", r->complaint[0] ? ": " : "", r->complaint);
    return pl_fail(err, PL_E_CONFIG, "%s:%d:%d: %s", r->name, e->line, e->column, e->msg);
}

static pl_status read_events(
    reader *r, struct fy_parser *parser, struct fy_diag *diag, pl_error *err)
{
    for (;;) {
        struct fy_event *event = fy_parser_parse(parser);
        if (!event)
            break;
        const pl_status st = take_event(r, event, err);
        fy_parser_event_free(parser, event);
        if (st != PL_OK)
            return st;
    }
    return fy_parser_get_stream_error(parser) ? syntax_error(r, diag, err) : PL_OK;
}

/* libfyaml reads what its caller vouches for: no NUL, valid UTF-8. */
static pl_status check_bytes(reader *r, const char *text, size_t n_bytes, pl_error *err)
{
    const size_t bad = config_bad_utf8(text, n_bytes);
    if (bad == n_bytes)
        return PL_OK;
    r->line = 1;
    r->column = 1;
    for (size_t i = 0; i < bad; i++) {
        r->column = text[i] == '\n' ? 1 : r->column + 1;
        r->line += text[i] == '\n';
    }
    return fail_here(r, err, "byte 0x%02x is not UTF-8 text", (unsigned char)text[bad]);
}

pl_status config_read_yaml(const config_tables *t, config_seen *seen, const char *text,
    size_t n_bytes, const char *name, pl_error *err)
{
    reader r = {.tables = t, .seen = seen, .name = name, .line = 1, .column = 1};
    struct fy_diag_cfg diag_cfg;

    pl_status st = check_bytes(&r, text, n_bytes, err);
    if (st != PL_OK || n_bytes == 0)
        return st;

    fy_diag_cfg_default(&diag_cfg);
    diag_cfg.fp = NULL;
    diag_cfg.output_fn = keep_complaint;
    diag_cfg.user = &r;
    diag_cfg.show_type = false;
    struct fy_diag *diag = fy_diag_create(&diag_cfg);
    if (!diag)
        return pl_fail(err, PL_E_NOMEM, "%s: no memory for the YAML parser", name);
    fy_diag_set_collect_errors(diag, true);

    const struct fy_parse_cfg cfg = {.flags = FYPCF_DEFAULT_PARSE, .diag = diag};
    struct fy_parser *parser = fy_parser_create(&cfg);
    if (!parser || fy_parser_set_string(parser, text, n_bytes) != 0)
        st = pl_fail(err, PL_E_NOMEM, "%s: no memory for the YAML parser", name);
    else
        st = read_events(&r, parser, diag, err);
    if (parser)
        fy_parser_destroy(parser);
    fy_diag_destroy(diag);
    return st;
}
