/* core/config_dump.c - the resolved configuration as YAML that reads back to the same values. */
#include "core/config.h"

#include "core/config_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HELP_COLUMNS = 96 };

typedef struct dumper {
    config_tables tables;
    int n_keys;
    int with_help;
    FILE *out;
} dumper;

/* Shortest of 15 to 17 digits that reads back; whatever the locale writes for the decimal point
 * becomes a dot. */
static void put_float(FILE *out, double v)
{
    char text[64];
    int was_point = 0;

    for (int digits = 15; digits <= 17; digits++) {
        if (snprintf(text, sizeof text, "%.*g", digits, v) < 0)
            return;
        if (strtod(text, NULL) == v) /* the same locale as snprintf */
            break;
    }
    for (const char *c = text; *c; c++) {
        const int is_plain = strchr("0123456789+-einfa", *c) != NULL;
        if (is_plain)
            fputc(*c, out);
        else if (!was_point)
            fputc('.', out);
        was_point = !is_plain;
    }
}

/* Words that some YAML reader takes for a truth value, a null or a number. */
static int is_special_word(const char *text)
{
    static const char *const words[] = {"true", "false", "yes", "no", "on", "off", "null", "y", "n",
        "True", "False", "Yes", "No", "On", "Off", "Null", "TRUE", "FALSE", "YES", "NO", "ON",
        "OFF", "NULL", "Y", "N"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strcmp(text, words[i]) == 0)
            return 1;
    }
    return 0;
}

static int is_plain_text(const char *text)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_/";
    static const char others[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_/"
                                 "0123456789.-";
    return text[0] && strchr(letters, text[0]) && strspn(text, others) == strlen(text) &&
           !is_special_word(text);
}

/* Code point at s of valid UTF-8; *len is its number of bytes. */
static unsigned code_point(const char *s, size_t *len)
{
    const unsigned char *u = (const unsigned char *)s;

    *len = u[0] < 0x80 ? 1 : u[0] < 0xe0 ? 2 : u[0] < 0xf0 ? 3 : 4;
    unsigned c = *len == 1 ? u[0] : u[0] & (0x7fu >> *len);
    for (size_t i = 1; i < *len; i++)
        c = c << 6 | (u[i] & 0x3fu);
    return c;
}

/* Code points that YAML or a terminal does not take as they are. */
static int needs_escape(unsigned c)
{
    return c < 0x20 || (c >= 0x7f && c <= 0xa0) || c == 0x2028 || c == 0x2029 || c == 0xfeff ||
           c == 0xfffe || c == 0xffff;
}

static void put_text(FILE *out, const char *text)
{
    const size_t n = strlen(text);

    if (is_plain_text(text) || config_bad_utf8(text, n) != n) {
        fputs(text, out); /* the latter only if the program itself set it so */
        return;
    }
    fputc('"', out);
    for (size_t len, i = 0; i < n; i += len) {
        const unsigned c = code_point(text + i, &len);
        if (c == '"' || c == '\\')
            fprintf(out, "\\%c", (int)c);
        else if (needs_escape(c))
            fprintf(out, c < 0x100 ? "\\x%02x" : "\\u%04x", c);
        else
            fwrite(text + i, 1, len, out);
    }
    fputc('"', out);
}

static void put_value(FILE *out, const pl_config_key *key, const void *options)
{
    const void *field = (const char *)options + key->offset;

    switch (key->type) {
    case PL_INT:
        fprintf(out, "%" PRId64, *(const int64_t *)field);
        break;
    case PL_FLOAT:
        put_float(out, *(const double *)field);
        break;
    case PL_BOOL:
        fputs(*(const int *)field ? "true" : "false", out);
        break;
    case PL_STRING:
    case PL_ENUM:
        put_text(out, field);
        break;
    }
}

static void indent(const dumper *d, int depth)
{
    fprintf(d->out, "%*s", 2 * depth, "");
}

/* Words of text as comment lines. */
static void put_comment(const dumper *d, int depth, const char *text)
{
    size_t column = 0;

    while (*text) {
        text += strspn(text, " \n");
        const size_t len = strcspn(text, " \n");
        if (len == 0)
            break;
        if (column > 0 && column + 1 + len > HELP_COLUMNS) {
            fputc('\n', d->out);
            column = 0;
        }
        if (column == 0) {
            indent(d, depth);
            fputc('#', d->out);
            column = (size_t)(2 * depth) + 1;
        }
        fprintf(d->out, " %.*s", (int)len, text);
        column += 1 + len;
        text += len;
    }
    if (column > 0)
        fputc('\n', d->out);
}

static void put_help(const dumper *d, int depth, const pl_config_key *key)
{
    static const char *const names[] = {"integer", "number", "true or false", "text", "one of"};
    char range[512], text[1024];

    if (key->help)
        put_comment(d, depth, key->help);
    config_range(key, range, sizeof range);
    const int n = snprintf(text, sizeof text, "%s%s%s; default %s", names[key->type],
        range[0] ? key->type == PL_ENUM ? " " : ", " : "", range, key->def[0] ? key->def : "\"\"");
    if (n > 0)
        put_comment(d, depth, text);
}

/* Does key i lie under the same first n_name bytes, ending there or at a dot? */
static int shares_name(const dumper *d, int i, const char *name, size_t n_name)
{
    void *options;
    const char *key = config_key_at(&d->tables, i, &options)->key;
    return strncmp(key, name, n_name) == 0 && (key[n_name] == '\0' || key[n_name] == '.');
}

/* Was that name, a key or a section, printed when an earlier key met it? */
static int is_printed(const dumper *d, int i, const char *name, size_t n_name)
{
    for (int j = 0; j < i; j++) {
        if (shares_name(d, j, name, n_name))
            return 1;
    }
    return 0;
}

/* Print all keys below the section prefix (its first n_prefix bytes count), each component where
 * its first key stands, whatever table the others are in. */
static void put_section(const dumper *d, const char *prefix, size_t n_prefix, int depth)
{
    for (int i = 0; i < d->n_keys; i++) {
        void *options;
        const pl_config_key *key = config_key_at(&d->tables, i, &options);
        if (n_prefix > 0 && (!shares_name(d, i, prefix, n_prefix) || !key->key[n_prefix]))
            continue;
        const size_t start = n_prefix > 0 ? n_prefix + 1 : 0;
        const size_t len = strcspn(key->key + start, ".");
        if (is_printed(d, i, key->key, start + len))
            continue;

        const int is_leaf = key->key[start + len] == '\0';
        if (is_leaf && d->with_help)
            put_help(d, depth, key);
        indent(d, depth);
        fprintf(d->out, "%.*s:", (int)len, key->key + start);
        if (is_leaf) {
            fputc(' ', d->out);
            put_value(d->out, key, options);
        }
        fputc('\n', d->out);
        if (!is_leaf)
            put_section(d, key->key, start + len, depth + 1);
    }
}

void pl_config_dump(const pl_config_section *sections, int n_sections, int with_help, FILE *out)
{
    dumper d = {.tables = {sections, n_sections, NULL}, .with_help = with_help, .out = out};

    d.n_keys = config_count(&d.tables);
    put_section(&d, "", 0, 0);
}
