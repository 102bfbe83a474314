/* model/json_file.h - JSON of a model directory, parsed with limits; for this folder only. */
#ifndef PL_MODEL_JSON_FILE_H
#define PL_MODEL_JSON_FILE_H

#include "core/error.h"

#include <jansson.h>
#include <stddef.h>

/* Parse text into *out, *returns owned* (json_decref).  Repeated keys, nesting deeper than
 * max_depth and bytes after the value are refused.  name stands in messages.  Errors: PL_E_FORMAT.
 */
pl_status json_file_parse(
    json_t **out, const char *text, size_t n_bytes, int max_depth, const char *name, pl_error *err);
/* Read dir/file of at most max_bytes and parse it; the value must be an object.
 * Errors: PL_E_NOENT, PL_E_IO, PL_E_FORMAT. */
pl_status json_file_read(
    json_t **out, const char *dir, const char *file, size_t max_bytes, pl_error *err);
/* dir/file into out[size].  Errors: PL_E_NOENT when it is too long. */
pl_status json_file_path(char *out, size_t size, const char *dir, const char *file, pl_error *err);

#endif
