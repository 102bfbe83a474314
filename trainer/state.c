/* trainer/state.c - state.json: where a run stands, and what every file of its checkpoint is.
 *
 * It is written last.  A checkpoint whose files have the sizes and hashes told there is whole; this
 * finds torn writes and flipped bits before a run goes on from them. */
#include "core/file.h"
#include "core/json.h"
#include "trainer/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STATE_VERSION = 1, STATE_MAX_BYTES = 1 << 20, NAME_ROOM = 300 };

pl_status checkpoint_join(
    char out[CHECKPOINT_PATH], const char *dir, const char *name, pl_error *err)
{
    const int n = snprintf(out, CHECKPOINT_PATH, "%s/%s", dir, name);

    if (n < 0 || n >= CHECKPOINT_PATH)
        return pl_fail(err, PL_E_IO, "'%s/%s': name too long", dir, name);
    return PL_OK;
}

/* ---- the list of files ---- */

typedef struct file_list {
    int n;
    char name[CHECKPOINT_FILES][NAME_ROOM]; /* relative to the checkpoint */
} file_list;

static int by_name(const void *a, const void *b)
{
    return strcmp(a, b);
}

/* Names in dir, those of policy/ with that before them, sorted.  drafter/ decides no bit: damage
 * there must not cost the checkpoint. */
static pl_status list_dir(file_list *l, const char *dir, const char *prefix, pl_error *err)
{
    char path[CHECKPOINT_PATH];
    const struct dirent *entry;
    pl_status st = checkpoint_join(path, dir, prefix, err);

    DIR *d = st == PL_OK ? opendir(path) : NULL;
    if (!d)
        return st == PL_OK ? pl_fail(err, PL_E_IO, "open '%s': %s", path, strerror(errno)) : st;
    while (st == PL_OK && (entry = readdir(d)) != NULL) {
        const int is_own = entry->d_name[0] == '.' || strcmp(entry->d_name, "state.json") == 0 ||
                           strcmp(entry->d_name, "policy") == 0 ||
                           strcmp(entry->d_name, "drafter") == 0;
        if (is_own)
            continue;
        if (l->n == CHECKPOINT_FILES)
            st = pl_fail(err, PL_E_IO, "'%s' holds more than %d files", path, CHECKPOINT_FILES);
        else if (snprintf(l->name[l->n++], NAME_ROOM, "%s%s", prefix, entry->d_name) < 0)
            st = pl_fail(err, PL_E_IO, "'%s': a name cannot be used", path);
    }
    (void)closedir(d);
    return st;
}

static pl_status list_files(file_list *l, const char *dir, pl_error *err)
{
    l->n = 0;
    pl_status st = list_dir(l, dir, "", err);
    if (st == PL_OK)
        st = list_dir(l, dir, "policy/", err);
    if (st == PL_OK)
        qsort(l->name, (size_t)l->n, sizeof l->name[0], by_name);
    return st;
}

static pl_status measure(
    const char *dir, const char *name, size_t *n_bytes, uint64_t *hash, pl_error *err)
{
    char path[CHECKPOINT_PATH];
    pl_file f;
    pl_status st = checkpoint_join(path, dir, name, err);

    if (st == PL_OK)
        st = pl_file_open(&f, path, err);
    if (st != PL_OK)
        return st;
    *n_bytes = f.size;
    *hash = pl_hash64(f.data, f.size);
    pl_file_close(&f);
    return PL_OK;
}

/* ---- writing ---- */

static void put_hex(pl_json *j, uint64_t v)
{
    char text[32];

    if (snprintf(text, sizeof text, "\"%016" PRIx64 "\"", v) > 0)
        pl_json_text(j, text);
}

static void put_int(pl_json *j, const char *key, int64_t v)
{
    pl_json_text(j, key);
    pl_json_int(j, v);
}

static void put_state(pl_json *j, const checkpoint_state *s)
{
    char hex[4];

    put_int(j, "{\n\"version\":", STATE_VERSION);
    pl_json_text(j, ",\n\"numeric_class\":\"" PL_NUMERIC_CLASS "\"");
    put_int(j, ",\n\"step\":", s->run.step);
    put_int(j, ",\n\"next_group\":", s->run.next_group);
    put_int(j, ",\n\"samples_per_group\":", s->run.samples_per_group);
    put_int(j, ",\n\"policy_version\":", s->run.policy_version);
    put_int(j, ",\n\"optimizer_updates\":", s->n_updates);
    pl_json_text(j, ",\n\"config_hash\":");
    put_hex(j, s->run.config_hash);
    pl_json_text(j, ",\n\"trace_head\":\"");
    for (size_t i = 0; i < sizeof s->run.trace; i++)
        if (snprintf(hex, sizeof hex, "%02x", s->run.trace[i]) == 2)
            pl_json_text(j, hex);
    pl_json_text(j, "\"");
    pl_json_text(j, ",\n\"val_before\":");
    pl_json_double(j, s->run.val_before);
    pl_json_text(j, ",\n\"elapsed_s\":");
    pl_json_double(j, s->run.elapsed_s);
}

pl_status state_save(const char *dir, const checkpoint_state *s, pl_error *err)
{
    char path[CHECKPOINT_PATH];
    pl_json j = {0};
    file_list *list = calloc(1, sizeof *list);
    pl_status st = list ? list_files(list, dir, err) : pl_fail(err, PL_E_NOMEM, "state.json");

    put_state(&j, s);
    for (int i = 0; st == PL_OK && i < list->n; i++) {
        size_t n_bytes = 0;
        uint64_t hash = 0;
        st = measure(dir, list->name[i], &n_bytes, &hash, err);
        pl_json_text(&j, i == 0 ? ",\n\"files\":{\n" : ",\n");
        pl_json_string(&j, list->name[i], strlen(list->name[i]));
        put_int(&j, ":{\"bytes\":", (int64_t)n_bytes);
        pl_json_text(&j, ",\"xxh3\":");
        put_hex(&j, hash);
        pl_json_text(&j, "}");
    }
    pl_json_text(&j, "}\n}\n");
    if (st == PL_OK)
        st = pl_json_check(&j, "state.json", err);
    if (st == PL_OK)
        st = checkpoint_join(path, dir, "state.json", err);
    if (st == PL_OK)
        st = pl_file_write(path, j.data, j.n, err);
    pl_json_done(&j);
    free(list);
    return st;
}

/* ---- reading ---- */

static pl_status get_int(const json_t *o, const char *key, int64_t *out, pl_error *err)
{
    const json_t *v = json_object_get(o, key);

    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return pl_fail(err, PL_E_FORMAT, "'%s' is missing or no count", key);
    *out = (int64_t)json_integer_value(v);
    return PL_OK;
}

/* A number, or null for NaN. */
static pl_status get_double(const json_t *o, const char *key, double *out, pl_error *err)
{
    const json_t *v = json_object_get(o, key);

    if (!json_is_number(v) && !json_is_null(v))
        return pl_fail(err, PL_E_FORMAT, "'%s' is missing or no number", key);
    *out = json_is_null(v) ? NAN : json_number_value(v);
    return PL_OK;
}

static pl_status get_hex(const json_t *o, const char *key, uint64_t *out, pl_error *err)
{
    const char *text = json_string_value(json_object_get(o, key));

    if (!text || strlen(text) != 16 || strspn(text, "0123456789abcdef") != 16)
        return pl_fail(err, PL_E_FORMAT, "'%s' is missing or not 16 hexadecimal digits", key);
    *out = strtoull(text, NULL, 16);
    return PL_OK;
}

static pl_status check_file(const char *dir, const char *name, const json_t *o, pl_error *err)
{
    int64_t n_bytes = 0;
    uint64_t hash = 0, found_hash = 0;
    size_t found_bytes = 0;

    if (name[0] == '/' || strstr(name, ".."))
        return pl_fail(err, PL_E_FORMAT, "file '%.100s' lies outside the checkpoint", name);
    pl_status st = get_int(o, "bytes", &n_bytes, err);
    if (st == PL_OK)
        st = get_hex(o, "xxh3", &hash, err);
    if (st == PL_OK)
        st = measure(dir, name, &found_bytes, &found_hash, err);
    if (st != PL_OK)
        return st;
    if (found_bytes != (size_t)n_bytes)
        return pl_fail(err, PL_E_FORMAT, "file '%.100s' has %zu bytes instead of %lld", name,
            found_bytes, (long long)n_bytes);
    if (found_hash != hash)
        return pl_fail(err, PL_E_FORMAT, "file '%.100s' is damaged: its hash differs", name);
    return PL_OK;
}

static pl_status check_files(const char *dir, json_t *root, pl_error *err)
{
    json_t *files = json_object_get(root, "files");
    const char *name;
    json_t *entry;

    if (!json_is_object(files) || !json_object_get(files, "optimizer.safetensors"))
        return pl_fail(err, PL_E_FORMAT, "'files' is missing or not complete");
    json_object_foreach(files, name, entry)
    {
        const pl_status st = check_file(dir, name, entry, err);
        if (st != PL_OK)
            return st;
    }
    return PL_OK;
}

static pl_status get_state(const json_t *root, checkpoint_state *s, pl_error *err)
{
    const char *class = json_string_value(json_object_get(root, "numeric_class"));
    int64_t version = 0, policy_version = 0;

    pl_status st = get_int(root, "version", &version, err);
    if (st == PL_OK && version != STATE_VERSION)
        st = pl_fail(err, PL_E_FORMAT, "version %lld is not known, only %d", (long long)version,
            STATE_VERSION);
    if (st == PL_OK && (!class || strcmp(class, PL_NUMERIC_CLASS) != 0))
        st = pl_fail(err, PL_E_FORMAT, "numeric class '%.64s' is not that of this program, '%s'",
            class ? class : "", PL_NUMERIC_CLASS);
    if (st == PL_OK)
        st = get_int(root, "step", &s->run.step, err);
    if (st == PL_OK)
        st = get_int(root, "next_group", &s->run.next_group, err);
    if (st == PL_OK)
        st = get_int(root, "samples_per_group", &s->run.samples_per_group, err);
    if (st == PL_OK)
        st = get_int(root, "policy_version", &policy_version, err);
    if (st == PL_OK && policy_version > UINT32_MAX)
        st = pl_fail(err, PL_E_FORMAT, "'policy_version' is out of range");
    if (st == PL_OK)
        st = get_int(root, "optimizer_updates", &s->n_updates, err);
    if (st == PL_OK)
        st = get_hex(root, "config_hash", &s->run.config_hash, err);
    if (st == PL_OK)
        st = get_double(root, "val_before", &s->run.val_before, err);
    if (st == PL_OK)
        st = get_double(root, "elapsed_s", &s->run.elapsed_s, err);
    s->run.policy_version = (uint32_t)policy_version;
    return st;
}

pl_status state_load(const char *dir, checkpoint_state *s, pl_error *err)
{
    char path[CHECKPOINT_PATH];
    char *text = NULL;
    size_t n = 0;
    json_error_t cause;

    memset(s, 0, sizeof *s);
    pl_status st = checkpoint_join(path, dir, "state.json", err);
    if (st == PL_OK)
        st = pl_file_read(&text, &n, path, STATE_MAX_BYTES, err);
    if (st != PL_OK)
        return st;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &cause);
    if (!root)
        st = pl_fail(err, PL_E_FORMAT, "line %d: %s", cause.line, cause.text);
    if (st == PL_OK)
        st = get_state(root, s, err);
    if (st == PL_OK)
        st = check_files(dir, root, err);
    json_decref(root);
    free(text);
    return st == PL_OK ? PL_OK : pl_wrap(err, st, "'%s'", path);
}
