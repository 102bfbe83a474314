/* trainer/rollouts_record.c - one line of rollouts as a sample: ids where the line has them, else
 * encoded from its text.
 *
 * What other systems mean: slime's tokens begin with the prompt, response_length tells where it
 * ends; a prompt that is a string is text for the chat template, but where it holds special tokens
 * it has been through it; response text ends with the end token unless the line says that it was
 * cut off. */
#include "core/file.h"
#include "core/json.h"
#include "trainer/rollouts_internal.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum {
    PROMPT_MAX_BYTES = 1 << 20, /* of messages, or extra_info: as in prompts */
    MESSAGES_MAX = 1024,
};

typedef struct record {
    const rollouts_reader *r;
    rollouts_fields f;
    rollouts_entry *e;
    int is_joint; /* tokens begin with those of the prompt */
} record;

static pl_status no_memory(pl_error *err)
{
    return pl_fail(err, PL_E_NOMEM, "no memory for a sample");
}

void entry_free(rollouts_entry *e)
{
    pl_prompt *p;

    if (!e)
        return;
    p = &e->prompt;
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
    free(e->response.tokens);
    free(e->response.logprobs);
    free(e->response.token_source);
    free(e->sample.text);
    free(e);
}

static pl_status find_joint(record *c, pl_error *err)
{
    int64_t own = 0;
    int n = 0;

    if (!c->f.names[FIELD_LENGTH] || !c->f.names[FIELD_TOKENS] || c->f.names[FIELD_PROMPT_IDS])
        return PL_OK;
    pl_status st = fields_count(&c->f, FIELD_TOKENS, c->r->max_tokens, &n, err);
    if (st == PL_OK)
        st = fields_int(&c->f, FIELD_LENGTH, 0, n, &own, err);
    c->is_joint = own < n;
    return st;
}

/* ---- the prompt ---- */

static pl_status load_nested(record *c, rollouts_field which, json_t **out, pl_error *err)
{
    const scan_text raw = c->f.items[which].raw;
    json_error_t cause;

    if (raw.end - raw.p > PROMPT_MAX_BYTES)
        return pl_fail(err, PL_E_FORMAT, "field '%s' has %zu bytes, at most %d are allowed",
            c->f.names[which], (size_t)(raw.end - raw.p), PROMPT_MAX_BYTES);
    *out = json_loadb(raw.p, (size_t)(raw.end - raw.p), JSON_REJECT_DUPLICATES, &cause);
    return *out ? PL_OK
                : pl_fail(err, PL_E_FORMAT, "field '%s': %s", c->f.names[which], cause.text);
}

static pl_status add_message(pl_prompt *p, const char *role, const char *content, pl_error *err)
{
    pl_message *m = &p->messages[p->n_messages++];

    m->role = strdup(role);
    m->content = strdup(content);
    return m->role && m->content ? PL_OK : no_memory(err);
}

static pl_status take_messages(record *c, json_t *list, pl_error *err)
{
    pl_prompt *p = &c->e->prompt;
    const size_t n = json_array_size(list);

    if (n < 1 || n > MESSAGES_MAX)
        return pl_fail(err, PL_E_FORMAT, "field '%s' has %zu messages, not 1 to %d",
            c->f.names[FIELD_PROMPT], n, MESSAGES_MAX);
    p->messages = calloc(n, sizeof *p->messages);
    if (!p->messages)
        return no_memory(err);
    for (size_t i = 0; i < n; i++) {
        json_t *m = json_array_get(list, i);
        const char *role = json_string_value(json_object_get(m, "role"));
        const char *content = json_string_value(json_object_get(m, "content"));
        if (!role || !content)
            return pl_fail(err, PL_E_FORMAT,
                "message %zu of '%s' has no text as 'role' and 'content'", i + 1,
                c->f.names[FIELD_PROMPT]);
        const pl_status st = add_message(p, role, content, err);
        if (st != PL_OK)
            return st;
    }
    return PL_OK;
}

static pl_status keep_json(record *c, const char *text, size_t n, pl_error *err)
{
    c->e->prompt.messages_json = strndup(text, n);
    return c->e->prompt.messages_json ? PL_OK : no_memory(err);
}

/* A list: as it stands there for the record; its messages only if they must be encoded. */
static pl_status take_prompt_list(record *c, pl_error *err)
{
    const scan_text raw = c->f.items[FIELD_PROMPT].raw;
    json_t *list = NULL;

    pl_status st = load_nested(c, FIELD_PROMPT, &list, err);
    if (st == PL_OK)
        st = keep_json(c, raw.p, (size_t)(raw.end - raw.p), err);
    if (st == PL_OK && !c->f.names[FIELD_PROMPT_IDS] && !c->is_joint)
        st = take_messages(c, list, err);
    json_decref(list);
    return st;
}

static pl_status encode_text(
    const record *c, const char *text, size_t n, int32_t **ids, int *n_ids, pl_error *err)
{
    const pl_message m = {"user", text};

    pl_status st = pl_tokenizer_encode(c->r->tok, text, n, 1, ids, n_ids, err);
    for (int i = 0; st == PL_OK && i < *n_ids; i++)
        if (pl_tokenizer_is_special(c->r->tok, (*ids)[i]))
            return PL_OK;
    if (st != PL_OK)
        return st;
    free(*ids);
    *ids = NULL;
    return pl_chat_encode(c->r->tok, &m, 1, ids, n_ids, err);
}

static pl_status take_prompt_text(record *c, pl_error *err)
{
    pl_prompt *p = &c->e->prompt;
    const int must_encode = !c->f.names[FIELD_PROMPT_IDS] && !c->is_joint;
    pl_json j = {0};
    char *text = NULL;
    size_t n = 0;

    pl_status st = fields_text(&c->f, FIELD_PROMPT, &text, &n, err);
    if (st != PL_OK)
        return st;
    pl_json_text(&j, "[{\"role\":\"user\",\"content\":");
    pl_json_string(&j, text, n);
    pl_json_text(&j, "}]");
    st = pl_json_check(&j, "prompt", err);
    if (st == PL_OK)
        st = keep_json(c, j.data, j.n, err);
    if (st == PL_OK && must_encode && c->r->tok)
        st = encode_text(c, text, n, &p->ids, &p->n_ids, err);
    pl_json_done(&j);
    free(text);
    return st;
}

static pl_status check_ids(const record *c, const int32_t *ids, int n, pl_error *err)
{
    for (int i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= c->r->n_vocab)
            return pl_fail(err, PL_E_SHAPE, "the tokenizer gives id %d, the model has %d",
                (int)ids[i], c->r->n_vocab);
    return PL_OK;
}

/* Ids of the prompt, but where they stand before those of the response. */
static pl_status take_prompt(record *c, pl_error *err)
{
    pl_prompt *p = &c->e->prompt;
    pl_status st = PL_OK;

    if (c->f.names[FIELD_PROMPT])
        st = c->f.items[FIELD_PROMPT].kind == SCAN_ARRAY ? take_prompt_list(c, err)
                                                         : take_prompt_text(c, err);
    if (st != PL_OK)
        return st;
    if (c->f.names[FIELD_PROMPT_IDS]) {
        st = fields_count(&c->f, FIELD_PROMPT_IDS, c->r->max_tokens, &p->n_ids, err);
        if (st != PL_OK)
            return st;
        p->ids = malloc(((size_t)p->n_ids + 1) * sizeof *p->ids);
        if (!p->ids)
            return no_memory(err);
        return fields_ids(&c->f, FIELD_PROMPT_IDS, c->r->n_vocab, p->ids, err);
    }
    if (c->is_joint)
        return PL_OK;
    if (!c->r->tok || !c->f.names[FIELD_PROMPT])
        return pl_fail(err, PL_E_FORMAT, "has no 'prompt_ids'%s",
            c->r->tok ? ", and no 'prompt' to make them from" : "");
    if (p->n_messages > 0)
        st = pl_chat_encode(c->r->tok, p->messages, p->n_messages, &p->ids, &p->n_ids, err);
    return st == PL_OK ? check_ids(c, p->ids, p->n_ids, err) : st;
}

/* ---- the response ---- */

static pl_finish finish_of(const rollouts_fields *f)
{
    static const struct {
        const char *word;
        pl_finish finish;
    } words[] = {
        {"stop", PL_FINISH_STOP},
        {"completed", PL_FINISH_STOP},
        {"eos", PL_FINISH_STOP},
        {"length", PL_FINISH_LENGTH},
        {"truncated", PL_FINISH_LENGTH},
        {"max_tokens", PL_FINISH_LENGTH},
        {"aborted", PL_FINISH_ABORTED},
        {"abort", PL_FINISH_ABORTED},
        {"failed", PL_FINISH_ABORTED},
        {"pending", PL_FINISH_ABORTED},
    };
    const scan_item v = f->items[FIELD_FINISH];
    const size_t n = f->names[FIELD_FINISH] ? (size_t)(v.raw.end - v.raw.p) : 0;

    for (size_t i = 0; n > 0 && v.kind == SCAN_STRING && i < sizeof words / sizeof *words; i++)
        if (strlen(words[i].word) == n && memcmp(words[i].word, v.raw.p, n) == 0)
            return words[i].finish;
    return PL_FINISH_NONE;
}

/* TRL's completion: one message, of which the content counts. */
static pl_status take_completion(record *c, pl_error *err)
{
    pl_sample *x = &c->e->sample;
    json_t *list = NULL;

    const pl_status st = load_nested(c, FIELD_TEXT, &list, err);
    if (st != PL_OK)
        return st;
    json_t *m = json_array_size(list) == 1 ? json_array_get(list, 0) : NULL;
    const char *content = json_string_value(json_object_get(m, "content"));
    if (content)
        x->text = strdup(content);
    x->n_text = x->text ? strlen(x->text) : 0;
    json_decref(list);
    if (x->text)
        return PL_OK;
    return content ? no_memory(err)
                   : pl_fail(err, PL_E_FORMAT,
                         "field '%s' is no single message with a text as 'content': responses of "
                         "several turns cannot be read",
                         c->f.names[FIELD_TEXT]);
}

static pl_status take_text(record *c, pl_error *err)
{
    pl_sample *x = &c->e->sample;

    if (!c->f.names[FIELD_TEXT])
        return PL_OK;
    if (c->f.items[FIELD_TEXT].kind == SCAN_ARRAY)
        return take_completion(c, err);
    return fields_text(&c->f, FIELD_TEXT, &x->text, &x->n_text, err);
}

/* Prompt and response in one list: response_length of them are the response. */
static pl_status split(record *c, int n, pl_error *err)
{
    pl_response *r = &c->e->response;
    pl_prompt *p = &c->e->prompt;
    int64_t own = 0;

    const pl_status st = fields_int(&c->f, FIELD_LENGTH, 1, n - 1, &own, err);
    if (st != PL_OK)
        return pl_wrap(err, st, "prompt and response in one list of %d", n);
    p->n_ids = n - (int)own;
    p->ids = malloc(((size_t)p->n_ids + 1) * sizeof *p->ids);
    if (!p->ids)
        return no_memory(err);
    memcpy(p->ids, r->tokens, (size_t)p->n_ids * sizeof *p->ids);
    memmove(r->tokens, r->tokens + p->n_ids, (size_t)own * sizeof *r->tokens);
    r->n_tokens = (int)own;
    return PL_OK;
}

static pl_status encode_response(record *c, pl_error *err)
{
    pl_response *r = &c->e->response;
    const pl_sample *x = &c->e->sample;
    const pl_tokenizer *tok = c->r->tok;
    int32_t *ids = NULL;
    int n = 0, n_logprobs = -1;

    if (!tok || !x->text)
        return pl_fail(err, PL_E_FORMAT, "has no 'tokens'%s",
            tok ? ", and no 'text' or 'response' to make them from" : "");
    pl_status st = PL_OK;
    if (c->f.names[FIELD_LOGPROBS])
        st = fields_count(&c->f, FIELD_LOGPROBS, c->r->max_tokens, &n_logprobs, err);
    if (st == PL_OK)
        st = pl_tokenizer_encode(tok, x->text, x->n_text, 0, &ids, &n, err);
    if (st != PL_OK)
        return st;
    r->tokens = realloc(ids, ((size_t)n + 1) * sizeof *ids);
    if (!r->tokens) {
        free(ids);
        return no_memory(err);
    }
    if (r->finish != PL_FINISH_LENGTH && n_logprobs != n && pl_tokenizer_eos(tok) >= 0)
        r->tokens[n++] = pl_tokenizer_eos(tok);
    r->n_tokens = n;
    return check_ids(c, r->tokens, n, err);
}

static pl_status take_tokens(record *c, pl_error *err)
{
    pl_response *r = &c->e->response;
    int n = 0;

    if (!c->f.names[FIELD_TOKENS])
        return encode_response(c, err);
    pl_status st = fields_count(&c->f, FIELD_TOKENS, c->r->max_tokens, &n, err);
    if (st != PL_OK)
        return st;
    r->n_tokens = n;
    r->tokens = malloc(((size_t)n + 1) * sizeof *r->tokens);
    if (!r->tokens)
        return no_memory(err);
    st = fields_ids(&c->f, FIELD_TOKENS, c->r->n_vocab, r->tokens, err);
    return st == PL_OK && c->is_joint ? split(c, n, err) : st;
}

/* ---- what goes along with the tokens ---- */

static pl_status check_length(const record *c, rollouts_field which, int *n, pl_error *err)
{
    const int own = c->e->response.n_tokens;
    const pl_status st = fields_count(&c->f, which, c->r->max_tokens, n, err);

    if (st != PL_OK || *n == own)
        return st;
    return pl_fail(err, PL_E_FORMAT, "field '%s' has %d elements for %d tokens of the response",
        c->f.names[which], *n, own);
}

static pl_status take_logprobs(record *c, pl_error *err)
{
    pl_response *r = &c->e->response;
    int n = 0;

    if (!c->f.names[FIELD_LOGPROBS])
        return PL_OK;
    const pl_status st = check_length(c, FIELD_LOGPROBS, &n, err);
    if (st != PL_OK)
        return st;
    r->logprobs = malloc(((size_t)n + 1) * sizeof *r->logprobs);
    return r->logprobs ? fields_floats(&c->f, FIELD_LOGPROBS, r->logprobs, err) : no_memory(err);
}

static pl_status take_sources(record *c, pl_error *err)
{
    pl_response *r = &c->e->response;
    int n = 0;

    if (!c->f.names[FIELD_SOURCES])
        return PL_OK;
    pl_status st = fields_count(&c->f, FIELD_SOURCES, c->r->max_tokens, &n, err);
    if (st != PL_OK || n == 0)
        return st;
    st = check_length(c, FIELD_SOURCES, &n, err);
    if (st != PL_OK)
        return st;
    r->token_source = malloc((size_t)n);
    return r->token_source ? fields_sources(&c->f, FIELD_SOURCES, r->token_source, err)
                           : no_memory(err);
}

/* Tokens that the other system did not train on would be trained on here. */
static pl_status check_mask(const record *c, pl_error *err)
{
    int n = 0;

    if (!c->f.names[FIELD_MASK])
        return PL_OK;
    pl_status st = check_length(c, FIELD_MASK, &n, err);
    if (st != PL_OK)
        return st;
    int32_t *mask = malloc(((size_t)n + 1) * sizeof *mask);
    if (!mask)
        return no_memory(err);
    st = fields_ids(&c->f, FIELD_MASK, 2, mask, err);
    for (int i = 0; i < n && st == PL_OK; i++)
        if (mask[i] == 0)
            st = pl_fail(err, PL_E_FORMAT,
                "field '%s' leaves out token %d: responses of several turns cannot be trained on",
                c->f.names[FIELD_MASK], i + 1);
    free(mask);
    return st;
}

static pl_status take_int(
    const record *c, rollouts_field which, int64_t max, int64_t *out, pl_error *err)
{
    *out = 0;
    return c->f.names[which] ? fields_int(&c->f, which, 0, max, out, err) : PL_OK;
}

static pl_status take_counters(record *c, pl_error *err)
{
    pl_response *r = &c->e->response;
    int64_t version = 0, draft = 0, accepted = 0, steps = 0;

    pl_status st = take_int(c, FIELD_VERSION, UINT32_MAX, &version, err);
    if (st == PL_OK)
        st = take_int(c, FIELD_DRAFT, INT32_MAX, &draft, err);
    if (st == PL_OK)
        st = take_int(c, FIELD_ACCEPTED, INT32_MAX, &accepted, err);
    if (st == PL_OK)
        st = take_int(c, FIELD_STEPS, INT32_MAX, &steps, err);
    r->policy_version = (uint32_t)version;
    r->spec_num_draft_tokens = (int)draft;
    r->spec_num_accepted_tokens = (int)accepted;
    r->spec_num_verify_steps = (int)steps;
    return st;
}

static pl_status take_figures(record *c, pl_error *err)
{
    pl_sample *x = &c->e->sample;

    if (!c->f.names[FIELD_REWARD])
        return pl_fail(err, PL_E_FORMAT, "has no 'reward' or 'score'");
    pl_status st = fields_float(&c->f, FIELD_REWARD, &x->reward, err);
    if (st == PL_OK && c->f.names[FIELD_ADVANTAGE])
        st = fields_float(&c->f, FIELD_ADVANTAGE, &x->advantage, err);
    if (st == PL_OK && c->f.names[FIELD_TEMPERATURE])
        st = fields_float(&c->f, FIELD_TEMPERATURE, &c->e->response.temperature, err);
    if (st == PL_OK && c->e->response.temperature < 0)
        st = pl_fail(err, PL_E_FORMAT, "field 'temperature' is negative");
    return st;
}

static pl_status take_names(record *c, pl_error *err)
{
    pl_prompt *p = &c->e->prompt;
    json_t *extra = NULL;
    size_t n = 0;
    pl_status st = PL_OK;

    if (c->f.names[FIELD_TRUTH] && c->f.items[FIELD_TRUTH].kind == SCAN_STRING)
        st = fields_text(&c->f, FIELD_TRUTH, &p->ground_truth, &n, err);
    if (st == PL_OK && c->f.names[FIELD_DATA_SOURCE])
        st = fields_text(&c->f, FIELD_DATA_SOURCE, &p->data_source, &n, err);
    if (st != PL_OK || !c->f.names[FIELD_EXTRA] || c->f.items[FIELD_EXTRA].kind != SCAN_OBJECT)
        return st;
    st = load_nested(c, FIELD_EXTRA, &extra, err);
    if (st != PL_OK)
        return st;
    p->extra_info = json_dumps(extra, JSON_COMPACT);
    json_decref(extra);
    return p->extra_info ? PL_OK : no_memory(err);
}

/* uid is a number here, and the name of the group in verl. */
static pl_status take_who(record *c, pl_error *err)
{
    rollouts_entry *e = c->e;
    rollouts_field group = FIELD_GROUP;
    int64_t uid = 0;
    pl_status st = PL_OK;

    if (c->f.names[FIELD_UID] && c->f.items[FIELD_UID].kind == SCAN_STRING)
        group = FIELD_UID;
    else if (c->f.names[FIELD_UID])
        st = fields_int(&c->f, FIELD_UID, 0, UINT32_MAX, &uid, err);
    e->has_uid = c->f.names[FIELD_UID] && group != FIELD_UID;
    e->response.uid = (uint32_t)uid;
    if (st == PL_OK)
        st = take_int(c, FIELD_STEP, INT32_MAX, &e->step, err);
    if (c->f.names[group]) {
        const scan_text raw = c->f.items[group].raw;
        e->group = pl_hash64(raw.p, (size_t)(raw.end - raw.p)) | 1;
    }
    return st;
}

static pl_status check_whole(const record *c, pl_error *err)
{
    const int n_prompt = c->e->prompt.n_ids, n = c->e->response.n_tokens;

    if (n_prompt < 1)
        return pl_fail(err, PL_E_FORMAT, "the prompt has no tokens");
    if (n < 1)
        return pl_fail(err, PL_E_FORMAT, "the response has no tokens");
    if (n_prompt <= c->r->max_tokens - n)
        return PL_OK;
    return pl_fail(err, PL_E_SHAPE,
        "prompt and response have %d and %d tokens, together at most %d are planned for: raise "
        "data.max_response_length",
        n_prompt, n, c->r->max_tokens);
}

pl_status entry_read(
    const rollouts_reader *r, rollouts_entry *e, const char *line, size_t n_bytes, pl_error *err)
{
    static pl_status (*const parts[])(record *, pl_error *) = {find_joint, take_who, take_prompt,
        take_text, take_tokens, take_logprobs, take_sources, take_counters, take_figures,
        take_names};
    record c = {.r = r, .e = e};

    pl_status st = fields_find(&c.f, line, n_bytes, err);
    e->response.finish = finish_of(&c.f);
    for (size_t i = 0; i < sizeof parts / sizeof *parts && st == PL_OK; i++)
        st = parts[i](&c, err);
    if (st == PL_OK)
        st = check_mask(&c, err);
    if (st == PL_OK)
        st = check_whole(&c, err);
    e->response.n_prompt = e->prompt.n_ids;
    e->response.prompt = e->prompt.ids;
    e->prompt.key = e->prompt.ids
                        ? pl_hash64(e->prompt.ids, (size_t)e->prompt.n_ids * sizeof *e->prompt.ids)
                        : 0;
    e->sample.response = &e->response;
    e->sample.prompt = &e->prompt;
    return st;
}
