/* trainer/rollouts_fields.c - one line of rollouts: which fields it has, and their values.
 *
 * The line stays where it is; arrays are counted before memory is taken for them.  Numbers are not
 * jansson's: it rounds them to double, and a float rounded twice may lose its last bit. */
#include "trainer/rollouts_internal.h"

#include "model/draft.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { NUMBER_MAX = 64 /* bytes of a number */ };

/* Ours first, then those of verl, slime, TRL and vLLM. */
static const struct {
    rollouts_field field;
    const char *name;
} known[] = {
    {FIELD_UID, "uid"},
    {FIELD_GROUP, "group"},
    {FIELD_GROUP, "group_index"},
    {FIELD_GROUP, "group_id"},
    {FIELD_STEP, "step"},
    {FIELD_STEP, "global_step"},
    {FIELD_STEP, "global_steps"},
    {FIELD_PROMPT, "prompt"},
    {FIELD_PROMPT, "messages"},
    {FIELD_PROMPT, "input"},
    {FIELD_PROMPT_IDS, "prompt_ids"},
    {FIELD_PROMPT_IDS, "prompt_token_ids"},
    {FIELD_TOKENS, "tokens"},
    {FIELD_TOKENS, "response_ids"},
    {FIELD_TOKENS, "completion_ids"},
    {FIELD_TOKENS, "output_ids"},
    {FIELD_LENGTH, "response_length"},
    {FIELD_MASK, "loss_mask"},
    {FIELD_MASK, "response_mask"},
    {FIELD_LOGPROBS, "logprobs"},
    {FIELD_LOGPROBS, "rollout_log_probs"},
    {FIELD_LOGPROBS, "response_logprobs"},
    {FIELD_TEXT, "text"},
    {FIELD_TEXT, "response"},
    {FIELD_TEXT, "completion"},
    {FIELD_TEXT, "output"},
    {FIELD_REWARD, "reward"},
    {FIELD_REWARD, "score"},
    {FIELD_ADVANTAGE, "advantage"},
    {FIELD_FINISH, "finish_reason"},
    {FIELD_FINISH, "status"},
    {FIELD_VERSION, "policy_version"},
    {FIELD_TEMPERATURE, "temperature"},
    {FIELD_DRAFT, "spec_num_draft_tokens"},
    {FIELD_ACCEPTED, "spec_num_accepted_tokens"},
    {FIELD_STEPS, "spec_num_verify_steps"},
    {FIELD_SOURCES, "token_source"},
    {FIELD_TRUTH, "ground_truth"},
    {FIELD_TRUTH, "label"},
    {FIELD_TRUTH, "gts"},
    {FIELD_TRUTH, "answer"},
    {FIELD_DATA_SOURCE, "data_source"},
    {FIELD_EXTRA, "extra_info"},
};
enum { N_KNOWN = sizeof known / sizeof known[0] };

static size_t length(scan_text t)
{
    return (size_t)(t.end - t.p);
}

static int is_word(scan_text t, const char *word)
{
    return length(t) == strlen(word) && memcmp(t.p, word, length(t)) == 0;
}

/* ---- which ---- */

static pl_status take(rollouts_fields *f, scan_text key, scan_item v, uint64_t *seen, pl_error *err)
{
    for (int i = 0; i < N_KNOWN; i++) {
        const rollouts_field at = known[i].field;
        if (!is_word(key, known[i].name))
            continue;
        if (*seen >> i & 1)
            return pl_fail(err, PL_E_FORMAT, "has the field '%s' twice", known[i].name);
        *seen |= (uint64_t)1 << i;
        if (v.kind == SCAN_NULL || (f->names[at] && f->places[at] < i))
            continue;
        f->names[at] = known[i].name;
        f->items[at] = v;
        f->places[at] = (unsigned char)i;
    }
    return PL_OK;
}

static pl_status broken(const scan_text *t, const char *line, pl_error *err)
{
    return pl_fail(err, PL_E_FORMAT,
        "is not valid JSON, or nested too deep, near byte %zu: was the file cut off?",
        (size_t)(t->p - line) + 1);
}

pl_status fields_find(rollouts_fields *f, const char *line, size_t n_bytes, pl_error *err)
{
    scan_text t = {line, line + n_bytes}, key;
    scan_item v;
    uint64_t seen = 0;

    _Static_assert(N_KNOWN <= 64, "a bit for each name");
    memset(f, 0, sizeof *f);
    if (!scan_eat(&t, '{'))
        return pl_fail(err, PL_E_FORMAT, "is not a JSON object");
    if (!scan_eat(&t, '}')) {
        do {
            if (!scan_eat(&t, '"') || !scan_quoted(&t, &key) || !scan_eat(&t, ':') ||
                !scan_value(&t, &v, 1))
                return broken(&t, line, err);
            const pl_status st = take(f, key, v, &seen, err);
            if (st != PL_OK)
                return st;
        } while (scan_eat(&t, ','));
        if (!scan_eat(&t, '}'))
            return broken(&t, line, err);
    }
    scan_space(&t);
    return t.p == t.end ? PL_OK : pl_fail(err, PL_E_FORMAT, "goes on after its object");
}

/* ---- numbers ---- */

/* The digits without their point, and an exponent instead: text that strtof reads alike in every
 * locale, rounded once.  *is_whole: a finite number that fits. */
static float to_float(scan_text raw, int *is_whole)
{
    char text[NUMBER_MAX + 32];
    int n = 0, after_point = 0, point = 0;
    long exponent = 0;

    *is_whole = length(raw) <= NUMBER_MAX;
    for (const char *p = raw.p; *is_whole && p < raw.end; p++) {
        if (*p == 'N' || *p == 'I')
            *is_whole = 0;
        if (*p == 'e' || *p == 'E') { /* what follows ends within raw: digits of at most 64 bytes */
            char tail[NUMBER_MAX + 1];
            memcpy(tail, p + 1, (size_t)(raw.end - p - 1));
            tail[raw.end - p - 1] = '\0';
            exponent = strtol(tail, NULL, 10);
            break;
        }
        if (*p == '.') {
            point = 1;
            continue;
        }
        text[n++] = *p;
        after_point += point;
    }
    if (!*is_whole)
        return 0;
    exponent = exponent > 9999 ? 9999 : exponent < -9999 ? -9999 : exponent;
    (void)snprintf(text + n, sizeof text - (size_t)n, "e%ld", exponent - after_point);
    const float v = strtof(text, NULL);
    *is_whole = isfinite(v);
    return v;
}

static int to_int(scan_item v, int64_t min, int64_t max, int64_t *out)
{
    const int is_negative = v.raw.p < v.raw.end && *v.raw.p == '-';
    int64_t x = 0;

    if (v.kind != SCAN_NUMBER || length(v.raw) > 18)
        return 0;
    for (const char *p = v.raw.p + is_negative; p < v.raw.end; p++) {
        if (*p < '0' || *p > '9')
            return 0;
        x = x * 10 + (*p - '0');
    }
    *out = is_negative ? -x : x;
    return *out >= min && *out <= max;
}

/* A number as it stands there, for a message. */
static int shown(scan_item v)
{
    return (int)(length(v.raw) < 24 ? length(v.raw) : 24);
}

pl_status fields_int(const rollouts_fields *f, rollouts_field which, int64_t min, int64_t max,
    int64_t *out, pl_error *err)
{
    const scan_item v = f->items[which];

    if (to_int(v, min, max, out))
        return PL_OK;
    return pl_fail(err, PL_E_FORMAT, "field '%s' is %.*s, not a whole number of %lld to %lld",
        f->names[which], shown(v), v.raw.p, (long long)min, (long long)max);
}

pl_status fields_float(const rollouts_fields *f, rollouts_field which, float *out, pl_error *err)
{
    const scan_item v = f->items[which];
    int is_whole = v.kind == SCAN_TRUE || v.kind == SCAN_FALSE;

    *out = v.kind == SCAN_TRUE ? 1 : 0;
    if (v.kind == SCAN_NUMBER)
        *out = to_float(v.raw, &is_whole);
    if (is_whole)
        return PL_OK;
    return pl_fail(err, PL_E_FORMAT, "field '%s' is %.*s, not a finite number", f->names[which],
        shown(v), v.raw.p);
}

/* ---- arrays ---- */

/* Ready to step through the elements, the bracket behind it. */
static scan_text inside(scan_item v)
{
    return (scan_text){v.raw.p + 1, v.raw.end};
}

/* The next element.  0: there is none. */
static int next(scan_text *t, scan_item *v)
{
    if (scan_eat(t, ']'))
        return 0;
    (void)scan_eat(t, ',');
    return scan_value(t, v, 2);
}

pl_status fields_count(
    const rollouts_fields *f, rollouts_field which, int max, int *out, pl_error *err)
{
    scan_text t;
    scan_item v;

    if (f->items[which].kind != SCAN_ARRAY)
        return pl_fail(err, PL_E_FORMAT, "field '%s' is no list", f->names[which]);
    t = inside(f->items[which]);
    for (*out = 0; next(&t, &v); ++*out)
        if (*out == max)
            return pl_fail(err, PL_E_SHAPE,
                "field '%s' has more than %d elements, and prompt and response together may have "
                "no more",
                f->names[which], max);
    return PL_OK;
}

pl_status fields_ids(
    const rollouts_fields *f, rollouts_field which, int32_t limit, int32_t *out, pl_error *err)
{
    scan_text t = inside(f->items[which]);
    scan_item v;
    int64_t id;

    for (int i = 0; next(&t, &v); i++) {
        if (!to_int(v, 0, limit - 1, &id))
            return pl_fail(err, PL_E_FORMAT,
                "element %d of '%s' is %.*s, not an id of 0 to %d: of another model?", i + 1,
                f->names[which], shown(v), v.raw.p, limit - 1);
        out[i] = (int32_t)id;
    }
    return PL_OK;
}

pl_status fields_floats(const rollouts_fields *f, rollouts_field which, float *out, pl_error *err)
{
    scan_text t = inside(f->items[which]);
    scan_item v;

    for (int i = 0; next(&t, &v); i++) {
        int is_whole = 0;
        if (v.kind == SCAN_NUMBER)
            out[i] = to_float(v.raw, &is_whole);
        if (!is_whole)
            return pl_fail(err, PL_E_FORMAT, "element %d of '%s' is %.*s, not a finite number",
                i + 1, f->names[which], shown(v), v.raw.p);
    }
    return PL_OK;
}

pl_status fields_sources(
    const rollouts_fields *f, rollouts_field which, uint8_t *out, pl_error *err)
{
    scan_text t = inside(f->items[which]);
    scan_item v;

    for (int i = 0; next(&t, &v); i++) {
        const int is_text = v.kind == SCAN_STRING;
        if (is_text && is_word(v.raw, "target"))
            out[i] = PL_SOURCE_TARGET;
        else if (is_text && is_word(v.raw, "suffix"))
            out[i] = PL_SOURCE_SUFFIX;
        else if (is_text && is_word(v.raw, "learned"))
            out[i] = PL_SOURCE_LEARNED;
        else
            return pl_fail(err, PL_E_FORMAT,
                "element %d of '%s' is none of target, suffix, learned", i + 1, f->names[which]);
    }
    return PL_OK;
}

/* ---- text ---- */

pl_status fields_text(
    const rollouts_fields *f, rollouts_field which, char **out, size_t *n_bytes, pl_error *err)
{
    const scan_item v = f->items[which];
    json_error_t cause;

    if (v.kind != SCAN_STRING)
        return pl_fail(err, PL_E_FORMAT, "field '%s' is no string", f->names[which]);
    json_t *s =
        json_loadb(v.raw.p - 1, length(v.raw) + 2, JSON_DECODE_ANY | JSON_ALLOW_NUL, &cause);
    if (!s)
        return pl_fail(err, PL_E_FORMAT, "field '%s': %s", f->names[which], cause.text);
    *n_bytes = json_string_length(s);
    *out = malloc(*n_bytes + 1);
    if (*out)
        memcpy(*out, json_string_value(s), *n_bytes + 1);
    json_decref(s);
    return *out ? PL_OK : pl_fail(err, PL_E_NOMEM, "no memory for field '%s'", f->names[which]);
}
