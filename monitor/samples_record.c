/* monitor/samples_record.c - one rollout record: figures for the index, clean JSON for the page.
 * What comes out is put together anew from the values found; nothing is copied as it stands. */
#include "core/file.h"
#include "ipc/schema.h"
#include "monitor/samples_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WORD_BYTES = 32 }; /* of a token's source, with escapes */

static int is_continuation(char c)
{
    return ((unsigned char)c & 0xc0) == 0x80;
}

/* Members of the array v, by its commas: exact for arrays of plain values. */
static uint32_t count(const scan_value *v)
{
    const char *p = v->at + 1, *end = v->at + v->n - 1;
    uint32_t n = 0;
    int is_any = 0;

    for (; p < end; p++) {
        n += *p == ',';
        is_any |= *p > ' ';
    }
    return n + (uint32_t)is_any;
}

static uint32_t to_u32(const scan_value *v)
{
    return (uint32_t)scan_int(v, 0, UINT32_MAX, 0);
}

static float to_float(const scan_value *v)
{
    const double x = scan_number(v);
    return fabs(x) <= 3e38 ? (float)x : NAN;
}

static uint8_t to_finish(const scan_value *v)
{
    if (v->n == 4 && memcmp(v->at, "stop", 4) == 0)
        return PL_FINISH_STOP;
    return v->n == 6 && memcmp(v->at, "length", 6) == 0 ? PL_FINISH_LENGTH : PL_FINISH_ABORTED;
}

int samples_parse_row(const char *line, size_t n, pl_samples_row *row)
{
    uint64_t prompt = 0, prompt_ids = 0;
    int has_uid = 0, more;
    scan s;
    scan_value v;

    memset(row, 0, sizeof *row);
    row->reward = row->advantage = NAN;
    scan_begin(&s, line, n);
    while ((more = scan_next(&s, &v)) == 1) {
        if (scan_is_key(&v, "uid")) {
            has_uid = scan_int(&v, 0, UINT32_MAX, -1) >= 0;
            row->uid = to_u32(&v);
        } else if (scan_is_key(&v, "prompt"))
            prompt = pl_hash64(v.at, v.n);
        else if (scan_is_key(&v, "prompt_ids") && v.kind == '[') {
            prompt_ids = pl_hash64(v.at, v.n);
            row->n_prompt = count(&v);
        } else if (scan_is_key(&v, "tokens") && v.kind == '[')
            row->n_tokens = count(&v);
        else if (scan_is_key(&v, "reward"))
            row->reward = to_float(&v);
        else if (scan_is_key(&v, "advantage"))
            row->advantage = to_float(&v);
        else if (scan_is_key(&v, "finish_reason"))
            row->finish = to_finish(&v);
        else if (scan_is_key(&v, "policy_version"))
            row->policy_version = to_u32(&v);
        else if (scan_is_key(&v, "spec_num_draft_tokens"))
            row->n_drafted = to_u32(&v);
        else if (scan_is_key(&v, "spec_num_accepted_tokens"))
            row->n_accepted = to_u32(&v);
        else if (scan_is_key(&v, "spec_num_verify_steps"))
            row->n_verify_steps = to_u32(&v);
    }
    row->prompt = prompt ? prompt : prompt_ids ? prompt_ids : 1;
    return more == 0 && has_uid;
}

/* The member key of the record; 0: it has none. */
static int find(const char *line, size_t n, const char *key, scan_value *out)
{
    int is_found = 0;
    scan s;
    scan_value v;

    scan_begin(&s, line, n);
    while (scan_next(&s, &v) == 1)
        if (scan_is_key(&v, key)) {
            *out = v;
            is_found = 1;
        }
    return is_found;
}

int64_t samples_text(const char *line, size_t n, char **buffer, size_t *room)
{
    scan_value v;

    if (!find(line, n, "text", &v) || v.kind != '"')
        return -1;
    if (v.n + 1 > *room) {
        char *p = realloc(*buffer, v.n + 1);
        if (!p)
            return -1;
        *buffer = p;
        *room = v.n + 1;
    }
    return (int64_t)scan_string(&v, *buffer);
}

/* ---- JSON ---- */

static void put_int(pl_json *j, const char *key, int64_t v)
{
    pl_json_text(j, key);
    pl_json_int(j, v);
}

static const char *finish_name(uint8_t finish)
{
    return finish == PL_FINISH_STOP ? "stop" : finish == PL_FINISH_LENGTH ? "length" : "aborted";
}

static void put_key_of(pl_json *j, uint64_t prompt)
{
    static const char digits[] = "0123456789abcdef";
    char text[17];

    for (int i = 0; i < 16; i++)
        text[i] = digits[prompt >> (60 - 4 * i) & 15];
    text[16] = '\0';
    pl_json_text(j, "\"");
    pl_json_text(j, text);
    pl_json_text(j, "\"");
}

void samples_put_row(pl_json *j, const pl_samples_row *r)
{
    const double n_steps = (double)r->n_verify_steps;

    put_int(j, "\"step\":", r->step);
    put_int(j, ",\"uid\":", r->uid);
    pl_json_text(j, ",\"reward\":");
    pl_json_float(j, r->reward);
    pl_json_text(j, ",\"advantage\":");
    pl_json_float(j, r->advantage);
    put_int(j, ",\"n_tokens\":", r->n_tokens);
    put_int(j, ",\"n_prompt\":", r->n_prompt);
    pl_json_text(j, ",\"finish_reason\":\"");
    pl_json_text(j, finish_name(r->finish));
    put_int(j, "\",\"policy_version\":", r->policy_version);
    put_int(j, ",\"spec_num_draft_tokens\":", r->n_drafted);
    put_int(j, ",\"spec_num_accepted_tokens\":", r->n_accepted);
    put_int(j, ",\"spec_num_verify_steps\":", r->n_verify_steps);
    pl_json_text(j, ",\"acceptance_length\":");
    pl_json_double(j, n_steps > 0 ? (double)r->n_tokens / n_steps : NAN);
    pl_json_text(j, ",\"prompt\":");
    put_key_of(j, r->prompt);
}

/* The string v, or null. */
static void put_string(pl_json *j, const scan_value *v, char *buffer)
{
    if (v->kind == '"')
        pl_json_string(j, buffer, scan_string(v, buffer));
    else
        pl_json_text(j, "null");
}

static void put_message(pl_json *j, const scan_value *message, char *buffer)
{
    scan_value role = {.kind = 'n'}, content = {.kind = 'n'}, v;
    scan s;

    scan_begin(&s, message->at, message->n);
    while (scan_next(&s, &v) == 1) {
        if (scan_is_key(&v, "role"))
            role = v;
        else if (scan_is_key(&v, "content"))
            content = v;
    }
    pl_json_text(j, "{\"role\":");
    put_string(j, &role, buffer);
    pl_json_text(j, ",\"content\":");
    put_string(j, &content, buffer);
    pl_json_text(j, "}");
}

static void put_messages(pl_json *j, const scan_value *v, char *buffer)
{
    scan_value message;
    scan s;
    int n = 0;

    if (v->kind != '[') {
        put_string(j, v, buffer);
        return;
    }
    pl_json_text(j, "[");
    scan_begin_array(&s, v);
    while (scan_next_element(&s, &message) == 1) {
        pl_json_text(j, n++ > 0 ? "," : "");
        put_message(j, &message, buffer);
    }
    pl_json_text(j, "]");
}

static void put_prompt(pl_json *j, const char *line, size_t n, char *buffer)
{
    scan_value v = {.kind = 'n'}, truth = {.kind = 'n'};

    (void)find(line, n, "prompt", &v);
    (void)find(line, n, "ground_truth", &truth);
    pl_json_text(j, "\"messages\":");
    put_messages(j, &v, buffer);
    pl_json_text(j, ",\"ground_truth\":");
    put_string(j, &truth, buffer);
}

int samples_put_prompt(pl_json *j, const char *line, size_t n)
{
    char *buffer = malloc(n + 1);

    if (!buffer)
        return 0;
    put_prompt(j, line, n, buffer);
    free(buffer);
    return 1;
}

typedef enum kind { KIND_ID, KIND_LOGPROB, KIND_SOURCE } kind;

static void put_element(pl_json *j, const scan_value *v, kind k)
{
    char word[WORD_BYTES];

    if (k == KIND_ID && scan_int(v, 0, INT32_MAX, -1) >= 0)
        pl_json_int(j, scan_int(v, 0, INT32_MAX, -1));
    else if (k == KIND_LOGPROB)
        pl_json_float(j, to_float(v));
    else if (k == KIND_SOURCE && v->kind == '"' && v->n <= sizeof word)
        pl_json_string(j, word, scan_string(v, word));
    else
        pl_json_text(j, "null");
}

static void put_array(pl_json *j, const char *line, size_t n, const char *key, kind k)
{
    scan_value array, v;
    scan s;
    int i = 0;

    pl_json_text(j, ",\"");
    pl_json_text(j, key);
    pl_json_text(j, "\":[");
    if (find(line, n, key, &array) && array.kind == '[') {
        scan_begin_array(&s, &array);
        while (scan_next_element(&s, &v) == 1) {
            pl_json_text(j, i++ > 0 ? "," : "");
            put_element(j, &v, k);
        }
    }
    pl_json_text(j, "]");
}

/* Text of each token, or null when token_ends does not fit the text. */
static void put_pieces(pl_json *j, const char *line, size_t n, const char *text, size_t n_text)
{
    const size_t begin = j->n;
    scan_value ends, v;
    scan s;
    size_t from = 0, last = 0;
    int more = -1, i = 0;

    if (find(line, n, "token_ends", &ends) && ends.kind == '[') {
        pl_json_text(j, "[");
        scan_begin_array(&s, &ends);
        while ((more = scan_next_element(&s, &v)) == 1) {
            const int64_t end = scan_int(&v, (int64_t)last, (int64_t)n_text, -1);
            if (end < 0)
                break;
            last = (size_t)end;
            size_t to = last;
            while (to > from && to < n_text && is_continuation(text[to]))
                to--;
            pl_json_text(j, i++ > 0 ? "," : "");
            pl_json_string(j, text + from, to - from);
            from = to;
        }
        pl_json_text(j, "]");
    }
    if (more != 0 || last != n_text) {
        j->n = begin;
        pl_json_text(j, "null");
    }
}

int samples_put_record(pl_json *j, const pl_samples_row *r, const char *line, size_t n)
{
    pl_samples_row again;
    scan_value v;
    char *buffer = samples_parse_row(line, n, &again) ? malloc(n + 1) : NULL;

    if (!buffer)
        return 0;
    pl_json_text(j, "{");
    samples_put_row(j, r);
    pl_json_text(j, ",");
    put_prompt(j, line, n, buffer);
    put_array(j, line, n, "tokens", KIND_ID);
    put_array(j, line, n, "logprobs", KIND_LOGPROB);
    put_array(j, line, n, "token_source", KIND_SOURCE);
    const size_t n_text = find(line, n, "text", &v) && v.kind == '"' ? scan_string(&v, buffer) : 0;
    pl_json_text(j, ",\"text\":");
    pl_json_string(j, buffer, n_text);
    pl_json_text(j, ",\"pieces\":");
    put_pieces(j, line, n, buffer, n_text);
    pl_json_text(j, "}");
    free(buffer);
    return 1;
}
