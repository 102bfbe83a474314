/* model/json_file.c - JSON of a model directory: jansson behind a limit on depth. */
#include "model/json_file.h"

#include "core/file.h"

#include <stdio.h>
#include <stdlib.h>

enum { MAX_DEPTH = 16 }; /* of config files; published ones reach 3 */

/* Deepest nesting of brackets outside strings.  jansson would follow 2048 levels. */
static int nesting(const char *text, size_t n_bytes)
{
    int depth = 0, deepest = 0, in_string = 0;

    for (size_t i = 0; i < n_bytes; i++) {
        const char c = text[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = 0;
        } else if (c == '"') {
            in_string = 1;
        } else if (c == '{' || c == '[') {
            depth++;
            deepest = depth > deepest ? depth : deepest;
        } else if (c == '}' || c == ']') {
            depth--;
        }
    }
    return deepest;
}

pl_status json_file_parse(
    json_t **out, const char *text, size_t n_bytes, int max_depth, const char *name, pl_error *err)
{
    json_error_t cause;

    if (nesting(text, n_bytes) > max_depth)
        return pl_fail(err, PL_E_FORMAT, "'%s': JSON nested deeper than %d", name, max_depth);
    json_t *v = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &cause);
    if (v == NULL)
        return pl_fail(err, PL_E_FORMAT, "'%s': line %d, column %d: %s", name, cause.line,
            cause.column, cause.text);
    *out = v;
    return PL_OK;
}

pl_status json_file_path(char *out, size_t size, const char *dir, const char *file, pl_error *err)
{
    if (snprintf(out, size, "%s/%s", dir, file) >= (int)size)
        return pl_fail(err, PL_E_NOENT, "directory '%s': the path is too long", dir);
    return PL_OK;
}

pl_status json_file_read(
    json_t **out, const char *dir, const char *file, size_t max_bytes, pl_error *err)
{
    char path[4096], *text = NULL;
    size_t n_bytes = 0;
    json_t *v = NULL;
    pl_status st = json_file_path(path, sizeof path, dir, file, err);

    if (st == PL_OK)
        st = pl_file_read(&text, &n_bytes, path, max_bytes, err);
    if (st == PL_OK)
        st = json_file_parse(&v, text, n_bytes, MAX_DEPTH, path, err);
    free(text);
    if (st != PL_OK)
        return st;
    if (!json_is_object(v)) {
        json_decref(v);
        return pl_fail(err, PL_E_FORMAT, "'%s': the file holds no JSON object", path);
    }
    *out = v;
    return PL_OK;
}
