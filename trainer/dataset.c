/* trainer/dataset.c - prompts from JSON lines, strict: every fault is named by file and line.
 *
 * The record is verl's (data_source, prompt, ability, reward_model, extra_info); fields beyond it
 * are ignored, as its users expect of extra columns. */
#include "core/file.h"
#include "core/json.h"
#include "core/rng.h"
#include "trainer/internal.h"
#include "trainer/trainer.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum {
    LINE_MAX_BYTES = 1 << 20,
    MESSAGES_MAX = 1024, /* of one prompt */
};
#define FILE_MAX_BYTES ((size_t)1 << 30)

/* Where a line comes from, and what its prompt is encoded with. */
typedef struct reader {
    const char *name;
    const pl_tokenizer *tok; /* or NULL */
    int max_prompt;          /* tokens; 0: no limit */
    int is_any;              /* rewards come from elsewhere: no verifier need exist */
} reader;

/* ---- one record ---- */

static pl_status get_text(const json_t *object, const char *key, const char **out, pl_error *err)
{
    const json_t *v = json_object_get(object, key);

    if (!v)
        return pl_fail(err, PL_E_FORMAT, "field '%s' is missing", key);
    if (!json_is_string(v))
        return pl_fail(err, PL_E_FORMAT, "field '%s' must be a string in quotes", key);
    *out = json_string_value(v);
    return PL_OK;
}

static pl_status copy_text(char **out, const char *text, pl_error *err)
{
    *out = strdup(text);
    return *out ? PL_OK : pl_fail(err, PL_E_NOMEM, "no memory for a prompt");
}

static pl_status add_message(pl_prompt *p, const char *role, const char *content, pl_error *err)
{
    pl_message *m = &p->messages[p->n_messages];
    char *text = NULL;

    if (strcmp(role, "system") != 0 && strcmp(role, "user") != 0 && strcmp(role, "assistant") != 0)
        return pl_fail(err, PL_E_FORMAT,
            "role '%.32s' is not known; use 'system', 'user' or 'assistant'", role);
    pl_status st = copy_text(&text, role, err);
    if (st != PL_OK)
        return st;
    m->role = text;
    p->n_messages++;
    st = copy_text(&text, content, err);
    m->content = st == PL_OK ? text : NULL;
    return st;
}

/* A list of messages, or a string: one message of the user. */
static pl_status get_messages(pl_prompt *p, const json_t *record, pl_error *err)
{
    const json_t *prompt = json_object_get(record, "prompt");
    const size_t n = json_is_array(prompt) ? json_array_size(prompt) : 1;
    const char *role, *content;
    size_t n_text = 0;

    if (!prompt)
        return pl_fail(err, PL_E_FORMAT, "field 'prompt' is missing");
    if (!json_is_string(prompt) && !json_is_array(prompt))
        return pl_fail(
            err, PL_E_FORMAT, "field 'prompt' must be a list of messages (role, content)");
    if (n > MESSAGES_MAX)
        return pl_fail(err, PL_E_FORMAT, "field 'prompt' has more than %d messages", MESSAGES_MAX);
    p->messages = calloc(n + 1, sizeof *p->messages);
    if (!p->messages)
        return pl_fail(err, PL_E_NOMEM, "no memory for a prompt");
    if (json_is_string(prompt)) {
        n_text = json_string_length(prompt);
        const pl_status st = add_message(p, "user", json_string_value(prompt), err);
        if (st != PL_OK)
            return st;
    }
    for (size_t i = 0; json_is_array(prompt) && i < n; i++) {
        const json_t *m = json_array_get(prompt, i);
        if (!json_is_object(m))
            return pl_fail(err, PL_E_FORMAT, "message %zu of 'prompt' is not an object", i + 1);
        pl_status st = get_text(m, "role", &role, err);
        if (st == PL_OK)
            st = get_text(m, "content", &content, err);
        if (st == PL_OK)
            st = add_message(p, role, content, err);
        if (st != PL_OK)
            return pl_wrap(err, st, "message %zu of 'prompt'", i + 1);
        n_text += strlen(content);
    }
    return n_text > 0 ? PL_OK : pl_fail(err, PL_E_FORMAT, "the prompt is empty");
}

static pl_status write_messages(pl_prompt *p, pl_error *err)
{
    pl_json j = {0};

    for (int i = 0; i < p->n_messages; i++) {
        pl_json_text(&j, i == 0 ? "[{\"role\":" : ",{\"role\":");
        pl_json_string(&j, p->messages[i].role, strlen(p->messages[i].role));
        pl_json_text(&j, ",\"content\":");
        pl_json_string(&j, p->messages[i].content, strlen(p->messages[i].content));
        pl_json_text(&j, "}");
    }
    pl_json_text(&j, "]");
    p->messages_json = j.data;
    return pl_json_check(&j, "prompt", err);
}

static pl_status get_reward(const reader *r, pl_prompt *p, const json_t *record, pl_error *err)
{
    const json_t *model = json_object_get(record, "reward_model");
    const json_t *style = json_object_get(model, "style");
    const char *truth;

    if (!model)
        return pl_fail(err, PL_E_FORMAT, "field 'reward_model' is missing");
    if (!json_is_object(model))
        return pl_fail(
            err, PL_E_FORMAT, "field 'reward_model' must be an object (style, ground_truth)");
    if (style && (!json_is_string(style) || strcmp(json_string_value(style), "rule") != 0))
        return pl_fail(err, PL_E_FORMAT, "reward_model.style must be 'rule': there is no other");
    pl_status st = get_text(model, "ground_truth", &truth, err);
    if (st == PL_OK && !r->is_any)
        st = rewards_check_truth(p->data_source, truth, err);
    if (st == PL_OK)
        st = copy_text(&p->ground_truth, truth, err);
    return st == PL_OK ? PL_OK : pl_wrap(err, st, "reward_model");
}

static pl_status get_extra(pl_prompt *p, const json_t *record, pl_error *err)
{
    const json_t *ability = json_object_get(record, "ability");
    const json_t *extra = json_object_get(record, "extra_info");

    if (ability && !json_is_string(ability))
        return pl_fail(err, PL_E_FORMAT, "field 'ability' must be a string in quotes");
    if (!extra || json_is_null(extra))
        return PL_OK;
    if (!json_is_object(extra))
        return pl_fail(err, PL_E_FORMAT, "field 'extra_info' must be an object");
    p->extra_info = json_dumps(extra, JSON_COMPACT);
    return p->extra_info ? PL_OK : pl_fail(err, PL_E_NOMEM, "no memory for a prompt");
}

static pl_status encode(const reader *r, pl_prompt *p, pl_error *err)
{
    const pl_status st =
        pl_chat_encode(r->tok, p->messages, p->n_messages, &p->ids, &p->n_ids, err);

    if (st != PL_OK)
        return st;
    if (r->max_prompt > 0 && p->n_ids > r->max_prompt)
        return pl_fail(err, PL_E_SHAPE,
            "the prompt has %d tokens, %d are allowed; shorten it or raise data.max_prompt_length",
            p->n_ids, r->max_prompt);
    p->key = pl_hash64(p->ids, (size_t)p->n_ids * sizeof *p->ids);
    return PL_OK;
}

static pl_status read_record(const reader *r, pl_prompt *p, const json_t *record, pl_error *err)
{
    const char *source;

    if (!json_is_object(record))
        return pl_fail(err, PL_E_FORMAT, "is not a JSON object");
    pl_status st = get_text(record, "data_source", &source, err);
    if (st == PL_OK)
        st = copy_text(&p->data_source, source, err);
    if (st == PL_OK)
        st = get_messages(p, record, err);
    if (st == PL_OK)
        st = write_messages(p, err);
    if (st == PL_OK)
        st = get_reward(r, p, record, err);
    if (st == PL_OK)
        st = get_extra(p, record, err);
    if (st == PL_OK && r->tok)
        st = encode(r, p, err);
    return st;
}

/* ---- lines ---- */

static int is_blank(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (s[i] != ' ' && s[i] != '\t' && s[i] != '\r')
            return 0;
    return 1;
}

static pl_status read_line(const reader *r, pl_prompt *p, const char *line, size_t n, pl_error *err)
{
    json_error_t cause;

    if (n > LINE_MAX_BYTES)
        return pl_fail(
            err, PL_E_FORMAT, "longer than %d bytes: is this JSON lines?", LINE_MAX_BYTES);
    if (is_blank(line, n))
        return pl_fail(err, PL_E_FORMAT, "is empty; remove the line");
    if (memchr(line, '\0', n))
        return pl_fail(err, PL_E_FORMAT, "holds a NUL byte: this is no text file");
    if (n >= 3 && memcmp(line, "\xef\xbb\xbf", 3) == 0)
        return pl_fail(err, PL_E_FORMAT, "begins with a byte order mark; save without it");
    json_t *record = json_loadb(line, n, JSON_REJECT_DUPLICATES, &cause);
    if (!record)
        return pl_fail(
            err, PL_E_FORMAT, "is not valid JSON, column %d: %s", cause.column, cause.text);
    const pl_status st = read_record(r, p, record, err);
    json_decref(record);
    return st;
}

static void prompt_done(pl_prompt *p)
{
    for (int i = 0; i < p->n_messages; i++) {
        free((char *)(uintptr_t)p->messages[i].role);
        free((char *)(uintptr_t)p->messages[i].content);
    }
    free(p->messages);
    free(p->data_source);
    free(p->ground_truth);
    free(p->extra_info);
    free(p->messages_json);
    free(p->ids);
}

void pl_dataset_free(pl_dataset *d)
{
    if (!d)
        return;
    for (int i = 0; i < d->n; i++)
        prompt_done(&d->prompts[i]);
    free(d->prompts);
    free(d);
}

/* Room for one prompt more, zeroed. */
static pl_status grow(pl_dataset *d, int *room, pl_error *err)
{
    if (d->n < *room)
        return PL_OK;
    const int larger = *room ? 2 * *room : 64;
    pl_prompt *p = larger < 1 << 29 ? realloc(d->prompts, (size_t)larger * sizeof *p) : NULL;
    if (!p)
        return pl_fail(err, PL_E_NOMEM, "no memory for %d prompts", larger);
    memset(p + d->n, 0, (size_t)(larger - d->n) * sizeof *p);
    d->prompts = p;
    *room = larger;
    return PL_OK;
}

static pl_status read_lines(
    const reader *r, pl_dataset *d, const char *text, size_t n_bytes, pl_error *err)
{
    int room = 0, line = 0;

    for (size_t at = 0; at < n_bytes;) {
        const char *end = memchr(text + at, '\n', n_bytes - at);
        const size_t n = end ? (size_t)(end - (text + at)) : n_bytes - at;
        pl_status st = grow(d, &room, err);
        line++;
        if (st == PL_OK) {
            d->prompts[d->n].line = line;
            st = read_line(r, &d->prompts[d->n++], text + at, n, err);
        }
        if (st != PL_OK)
            return pl_wrap(err, st, "%s:%d", r->name, line);
        at += n + 1;
    }
    return d->n > 0 ? PL_OK : pl_fail(err, PL_E_FORMAT, "%s: holds no prompt", r->name);
}

static pl_status parse(
    pl_dataset **out, const reader *r, const char *text, size_t n_bytes, pl_error *err)
{
    pl_dataset *d = calloc(1, sizeof *d);

    if (!d)
        return pl_fail(err, PL_E_NOMEM, "%s: no memory", r->name);
    const pl_status st = read_lines(r, d, text, n_bytes, err);
    if (st != PL_OK) {
        pl_dataset_free(d);
        return st;
    }
    *out = d;
    return PL_OK;
}

static pl_status read_file(pl_dataset **out, const reader *r, pl_error *err)
{
    char *text = NULL;
    size_t n = 0;
    pl_status st = pl_file_read(&text, &n, r->name, FILE_MAX_BYTES, err);

    if (st != PL_OK)
        return pl_wrap(err, st, "prompts");
    st = parse(out, r, text, n, err);
    free(text);
    return st;
}

pl_status pl_dataset_parse(pl_dataset **out, const char *text, size_t n_bytes, const char *name,
    const pl_tokenizer *tok, int max_prompt, pl_error *err)
{
    const reader r = {.name = name, .tok = tok, .max_prompt = max_prompt};

    return parse(out, &r, text, n_bytes, err);
}

pl_status pl_dataset_open(
    pl_dataset **out, const char *path, const pl_tokenizer *tok, int max_prompt, pl_error *err)
{
    const reader r = {.name = path, .tok = tok, .max_prompt = max_prompt};

    return read_file(out, &r, err);
}

pl_status pl_dataset_open_any(
    pl_dataset **out, const char *path, const pl_tokenizer *tok, int max_prompt, pl_error *err)
{
    const reader r = {.name = path, .tok = tok, .max_prompt = max_prompt, .is_any = 1};

    return read_file(out, &r, err);
}

/* ---- order ---- */

/* Fisher and Yates' shuffle of 0 .. n-1, for i = n-1 down to 1: swap a[i] with a[j], j drawn from
 * 0 .. i.  One place of the result is followed back through the swaps, the last one (i = 1) first;
 * swaps below the place do not touch it.  No memory, O(n). */
static int shuffled(int n, int place, uint64_t key, uint32_t epoch)
{
    int at = place;

    for (int i = place > 1 ? place : 1; i < n; i++) {
        const uint64_t word = pl_noise_word(key, epoch, (uint32_t)i, PL_NOISE_SHUFFLE, 0);
        const int j = (int)(word * ((uint64_t)i + 1) >> 32); /* bias below n / 2^32 */
        if (at == i)
            at = j;
        else if (at == j)
            at = i;
    }
    return at;
}

int pl_dataset_order(const pl_dataset *d, int64_t i, int shuffle, int64_t seed)
{
    const int place = (int)(i % d->n);

    if (!shuffle)
        return place;
    return shuffled(d->n, place, pl_noise_key((uint64_t)seed), (uint32_t)(i / d->n));
}
