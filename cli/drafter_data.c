/* cli/drafter_data.c - recorded samples: read, split, counted. */
#include "cli/drafter.h"
#include "core/file.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zstd.h>

enum { PATH_ROOM = 4096 };
static const size_t max_file = (size_t)2 << 30; /* bytes of records in one file */

typedef struct reader {
    drafter_data *d;
    const pl_arch *arch;
    int max_len;
    drafter_hold hold;
    const char *name; /* of the file at hand */
    int line;
} reader;

pl_status drafter_hold_parse(drafter_hold *out, const char *word, pl_error *err)
{
    static const char *const words[] = {"prompt", "uid", "all"};

    for (int i = 0; i < 3; i++)
        if (strcmp(word, words[i]) == 0) {
            *out = (drafter_hold)i;
            return PL_OK;
        }
    return pl_fail(err, PL_E_USAGE, "--hold-out '%s' is none of prompt, uid, all", word);
}

void drafter_data_done(drafter_data *d)
{
    for (int i = 0; i < d->n; i++) {
        free(d->samples[i].tokens);
        free(d->samples[i].is_target);
    }
    free(d->samples);
    memset(d, 0, sizeof *d);
}

static int is_held(drafter_hold hold, uint32_t uid, const int32_t *prompt, int n_prompt)
{
    if (hold == DRAFTER_HOLD_PROMPT)
        return pl_hash64(prompt, (size_t)n_prompt * sizeof *prompt) % DRAFTER_HELD_OF == 0;
    return hold == DRAFTER_HOLD_ALL || uid % DRAFTER_HELD_OF == 0;
}

static pl_status make_room(drafter_data *d, pl_error *err)
{
    if (d->n < d->room)
        return PL_OK;
    const int room = d->room > 0 ? d->room * 2 : 64;
    drafter_sample *grown = realloc(d->samples, (size_t)room * sizeof *grown);
    if (!grown)
        return pl_fail(err, PL_E_NOMEM, "no memory for %d samples", room);
    d->samples = grown;
    d->room = room;
    return PL_OK;
}

pl_status drafter_data_add(drafter_data *d, uint32_t uid, const int32_t *prompt, int n_prompt,
    const int32_t *tokens, int n, drafter_hold hold, pl_error *err)
{
    drafter_sample s = {.uid = uid, .n = n_prompt + n, .n_prompt = n_prompt};

    pl_status st = make_room(d, err);
    if (st != PL_OK)
        return st;
    s.tokens = malloc((size_t)(s.n + 1) * sizeof *s.tokens);
    s.is_target = calloc((size_t)s.n + 1, 1);
    if (!s.tokens || !s.is_target) {
        free(s.tokens);
        free(s.is_target);
        return pl_fail(err, PL_E_NOMEM, "no memory for a sample of %d tokens", s.n);
    }
    memcpy(s.tokens, prompt, (size_t)n_prompt * sizeof *prompt);
    memcpy(s.tokens + n_prompt, tokens, (size_t)n * sizeof *tokens);
    for (int t = n_prompt - 1; t + 1 < s.n; t++)
        s.is_target[t] = 1;
    s.held = is_held(hold, uid, prompt, n_prompt);
    *(s.held ? &d->n_held_tokens : &d->n_train_tokens) += n;
    d->n_held += s.held;
    const uint64_t mix[3] = {d->hash, uid, pl_hash64(s.tokens, (size_t)s.n * sizeof *s.tokens)};
    d->hash = pl_hash64(mix, sizeof mix);
    d->samples[d->n++] = s;
    return PL_OK;
}

/* The ids of one array of a record behind what is in *ids already. */
static pl_status take_ids(
    const reader *r, const json_t *root, const char *key, int32_t *ids, pl_error *err)
{
    const json_t *list = json_object_get(root, key);

    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *x = json_array_get(list, i);
        const json_int_t id = json_integer_value(x);
        if (!json_is_integer(x))
            return pl_fail(err, PL_E_FORMAT, "%s:%d: '%s' holds what is not a whole number",
                r->name, r->line, key);
        if (id < 0 || id >= r->arch->n_vocab)
            return pl_fail(err, PL_E_SHAPE,
                "%s:%d: id %lld of '%s' is not of the model's vocabulary of %d: these are rollouts "
                "of another model",
                r->name, r->line, (long long)id, key, r->arch->n_vocab);
        ids[i] = (int32_t)id;
    }
    return PL_OK;
}

static pl_status take_record(reader *r, const json_t *root, pl_error *err)
{
    const json_t *uid = json_object_get(root, "uid");
    const size_t n_prompt = json_array_size(json_object_get(root, "prompt_ids"));
    const size_t n = json_array_size(json_object_get(root, "tokens"));

    if (!json_is_integer(uid) || json_integer_value(uid) < 0 ||
        json_integer_value(uid) > (json_int_t)UINT32_MAX ||
        !json_is_array(json_object_get(root, "tokens")) || n_prompt < 1)
        return pl_fail(err, PL_E_FORMAT,
            "%s:%d: not a rollout record: it wants 'uid', 'prompt_ids' and 'tokens' (as paceline "
            "generate --json writes them)",
            r->name, r->line);
    if (n_prompt + 2 > (size_t)r->max_len || n < 2) /* nothing to learn from */
        return PL_OK;
    int32_t *ids = malloc((n_prompt + n) * sizeof *ids);
    if (!ids)
        return pl_fail(err, PL_E_NOMEM, "%s:%d: no memory", r->name, r->line);
    pl_status st = take_ids(r, root, "prompt_ids", ids, err);
    if (st == PL_OK)
        st = take_ids(r, root, "tokens", ids + n_prompt, err);
    const size_t fits = (size_t)r->max_len - n_prompt;
    if (st == PL_OK)
        st = drafter_data_add(r->d, (uint32_t)json_integer_value(uid), ids, (int)n_prompt,
            ids + n_prompt, (int)(n < fits ? n : fits), r->hold, err);
    free(ids);
    return st;
}

static pl_status take_lines(reader *r, const char *text, size_t n_bytes, pl_error *err)
{
    pl_status st = PL_OK;

    r->line = 0;
    for (size_t at = 0; at < n_bytes && st == PL_OK;) {
        const char *end = memchr(text + at, '\n', n_bytes - at);
        const size_t n = end ? (size_t)(end - text) - at : n_bytes - at;
        json_error_t je;
        r->line++;
        if (n > 0) {
            json_t *root = json_loadb(text + at, n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &je);
            st = root ? take_record(r, root, err)
                      : pl_fail(err, PL_E_FORMAT, "%s:%d: %s", r->name, r->line, je.text);
            json_decref(root);
        }
        at += n + 1;
    }
    return st;
}

/* A whole zstd file, several frames too; *returns owned*. */
static pl_status decompress(
    char **out, size_t *n_out, const char *name, const char *data, size_t n, pl_error *err)
{
    ZSTD_DCtx *z = ZSTD_createDCtx();
    ZSTD_inBuffer in = {data, n, 0};
    ZSTD_outBuffer to = {NULL, 0, 0};
    size_t left = 1;
    pl_status st = z ? PL_OK : pl_fail(err, PL_E_NOMEM, "zstd: no memory");

    while (st == PL_OK && (in.pos < in.size || left > 0)) {
        if (to.pos == to.size) {
            const size_t room = to.size > 0 ? to.size * 2 : (size_t)1 << 20;
            char *grown = room <= max_file ? realloc(to.dst, room) : NULL;
            if (!grown) {
                st = pl_fail(err, PL_E_NOMEM, "'%s': no memory for %zu bytes", name, room);
                break;
            }
            to.dst = grown;
            to.size = room;
        }
        const size_t before = to.pos;
        left = ZSTD_decompressStream(z, &to, &in);
        if (ZSTD_isError(left))
            st = pl_fail(err, PL_E_FORMAT, "'%s': %s", name, ZSTD_getErrorName(left));
        else if (left > 0 && in.pos == in.size && to.pos == before)
            st = pl_fail(err, PL_E_FORMAT, "'%s': ends in the middle of a frame", name);
    }
    ZSTD_freeDCtx(z);
    if (st != PL_OK) {
        free(to.dst);
        return st;
    }
    *out = to.dst;
    *n_out = to.pos;
    return PL_OK;
}

static int ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

static pl_status read_file(reader *r, const char *path, pl_error *err)
{
    char *data = NULL, *text = NULL;
    size_t n = 0;

    r->name = path;
    pl_status st = pl_file_read(&data, &n, path, max_file, err);
    if (st != PL_OK)
        return st;
    if (ends_with(path, ".zst")) {
        st = decompress(&text, &n, path, data, n, err);
        free(data);
        data = text;
    }
    if (st == PL_OK)
        st = take_lines(r, data, n, err);
    free(data);
    return st;
}

static int is_record_file(const struct dirent *e)
{
    return ends_with(e->d_name, ".jsonl") || ends_with(e->d_name, ".jsonl.zst");
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static pl_status read_dir(reader *r, const char *path, pl_error *err)
{
    struct dirent **list = NULL;
    char name[PATH_ROOM];
    pl_status st = PL_OK;
    const int n = scandir(path, &list, is_record_file, by_name);

    if (n < 0)
        return pl_fail(err, PL_E_IO, "'%s': %s", path, strerror(errno));
    if (n == 0)
        st = pl_fail(err, PL_E_NOENT, "'%s' holds no .jsonl or .jsonl.zst file", path);
    for (int i = 0; i < n; i++) {
        if (st == PL_OK && snprintf(name, sizeof name, "%s/%s", path, list[i]->d_name) >= PATH_ROOM)
            st = pl_fail(err, PL_E_IO, "'%s': name too long", path);
        if (st == PL_OK)
            st = read_file(r, name, err);
        free(list[i]);
    }
    free(list);
    return st;
}

static int is_dir(const char *path)
{
    struct stat s;
    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

pl_status drafter_data_read(drafter_data *d, const char *path, const pl_arch *arch, int max_len,
    drafter_hold hold, pl_error *err)
{
    reader r = {.d = d, .arch = arch, .max_len = max_len, .hold = hold};
    char inner[PATH_ROOM];

    if (snprintf(inner, sizeof inner, "%s/rollouts", path) >= PATH_ROOM)
        return pl_fail(err, PL_E_IO, "'%s': name too long", path);
    pl_status st = is_dir(inner)  ? read_dir(&r, inner, err)
                   : is_dir(path) ? read_dir(&r, path, err)
                                  : read_file(&r, path, err);
    if (st != PL_OK)
        return pl_wrap(err, st, "--data");
    if (d->n == 0)
        return pl_fail(
            err, PL_E_FORMAT, "--data '%s' holds no sample with two tokens of response", path);
    return PL_OK;
}

/* ---- the draft vocabulary ---- */

typedef struct counted {
    int64_t n;
    int32_t id;
} counted;

static int more_first(const void *a, const void *b)
{
    const counted *x = a, *y = b;
    if (x->n != y->n)
        return x->n > y->n ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int ascending(const void *a, const void *b)
{
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return x < y ? -1 : x > y;
}

pl_status drafter_count_vocab(
    int32_t *ids, int n, const drafter_data *d, int n_vocab, pl_error *err)
{
    counted *counts = malloc((size_t)n_vocab * sizeof *counts);

    if (!counts)
        return pl_fail(err, PL_E_NOMEM, "no memory to count %d ids", n_vocab);
    for (int i = 0; i < n_vocab; i++)
        counts[i] = (counted){0, i};
    for (int i = 0; i < d->n; i++) {
        const drafter_sample *s = &d->samples[i];
        for (int t = s->n_prompt; t < s->n && !s->held; t++)
            counts[s->tokens[t]].n++;
    }
    qsort(counts, (size_t)n_vocab, sizeof *counts, more_first);
    for (int i = 0; i < n; i++)
        ids[i] = counts[i].id;
    qsort(ids, (size_t)n, sizeof *ids, ascending);
    free(counts);
    return PL_OK;
}
