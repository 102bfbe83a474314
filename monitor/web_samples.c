/* monitor/web_samples.c - /api/samples, /api/sample and /api/prompt: fields in, JSON out. */
#include "monitor/text.h"
#include "monitor/web_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LOOK_MS = 1000, PIECE_MAX = 256 };
#define LOOK_BYTES ((size_t)64 << 20) /* of records, indexed for one request */

static int status_of(pl_status st)
{
    return st == PL_E_NOENT ? 404 : st == PL_E_INVAL ? 400 : 500;
}

static void look(pl_web *w)
{
    pl_samples_info info;

    pl_samples_info_get(w->samples, &info);
    if (info.n_pending == 0 && web_now_ms() < w->samples_at)
        return;
    (void)pl_samples_poll(w->samples, LOOK_BYTES);
    w->samples_at = web_now_ms() + LOOK_MS;
}

static enum MHD_Result finish(
    struct MHD_Connection *c, const web_query *q, pl_status st, pl_json *j, const pl_error *err)
{
    if (st == PL_OK)
        return web_reply_json(c, 200, j);
    pl_json_done(j);
    return web_refuse(c, q->path, status_of(st), err->msg);
}

/* Name of the first field that does not hold what it must; NULL: all do. */
static const char *read_search(pl_samples_query *s, const web_query *q)
{
    const struct {
        const char *name;
        int64_t min, *at;
    } whole[] = {{"step_min", 0, &s->step_min}, {"step_max", 0, &s->step_max},
        {"min_length", 0, &s->length_min}, {"max_length", 0, &s->length_max},
        {"offset", 0, &s->offset}};
    int64_t step = -1, limit = s->limit;

    for (size_t i = 0; i < sizeof whole / sizeof whole[0]; i++)
        if (web_query_int(q, whole[i].name, whole[i].min, INT64_MAX / 4, whole[i].at) < 0)
            return whole[i].name;
    if (web_query_int(q, "step", 0, INT64_MAX / 4, &step) < 0)
        return "step";
    if (step >= 0)
        s->step_min = s->step_max = step;
    if (web_query_number(q, "min_reward", &s->reward_min) < 0)
        return "min_reward";
    if (web_query_number(q, "max_reward", &s->reward_max) < 0)
        return "max_reward";
    if (web_query_int(q, "limit", 1, PL_SAMPLES_PAGE, &limit) < 0)
        return "limit";
    s->limit = (int)limit;
    const char *prompt = web_query_text(q, "prompt"), *order = web_query_text(q, "order");
    if (prompt && *prompt && (s->prompt = pl_samples_prompt_key(prompt)) == 0)
        return "prompt";
    if (order && *order) {
        const int o = pl_samples_order_of(order);
        if (o < 0)
            return "order";
        s->order = (pl_samples_order)o;
    }
    s->text = web_query_text(q, "text");
    return NULL;
}

static enum MHD_Result refuse_field(struct MHD_Connection *c, const web_query *q, const char *name)
{
    char why[WEB_REASON];

    snprintf(
        why, sizeof why, "field '%s' does not hold what it may: see the page's search form", name);
    return web_refuse(c, q->path, 400, why);
}

enum MHD_Result web_samples(pl_web *w, struct MHD_Connection *c, const web_query *q)
{
    pl_samples_query s = pl_samples_any();
    pl_error err = {0};
    pl_json j = {0};
    const char *wrong = read_search(&s, q);

    if (wrong)
        return refuse_field(c, q, wrong);
    look(w);
    const pl_status st = pl_samples_query_json(w->samples, &s, &j, &err);
    return finish(c, q, st, &j, &err);
}

/* ---- pieces of tokens, when the record does not hold where they end ---- */

/* Text that is whole characters goes out as one piece; a character that several tokens make stands
 * at the last of them. */
typedef struct held {
    char bytes[4];
    size_t n;
} held;

static void put_piece(pl_json *j, held *h, const char *bytes, size_t n)
{
    char text[PIECE_MAX + 4];
    uint32_t code;
    size_t whole = 0;

    n = n < PIECE_MAX ? n : PIECE_MAX;
    memcpy(text, h->bytes, h->n);
    memcpy(text + h->n, bytes, n);
    n += h->n;
    while (whole < n) {
        const int k = text_char(text + whole, n - whole, &code);
        /* at the end, a character may only have begun */
        if (k == 0 && n - whole < 4 && (unsigned char)text[whole] >= 0xC2)
            break;
        whole += k > 0 ? (size_t)k : 1;
    }
    h->n = n - whole;
    memcpy(h->bytes, text + whole, h->n);
    pl_json_string(j, text, whole);
}

static void put_pieces(pl_web *w, pl_json *j, const char *ids)
{
    held h = {.n = 0};
    char *end = NULL;

    pl_json_text(j, "[");
    for (int i = 0;; i++) {
        errno = 0;
        const long id = strtol(ids, &end, 10);
        if (end == ids || errno)
            break;
        const char *bytes = "";
        const int n = id < 0 || id > INT32_MAX ? -1 : w->piece(w->piece_ctx, (int32_t)id, &bytes);
        pl_json_text(j, i == 0 ? "" : ",");
        put_piece(j, &h, n > 0 ? bytes : "", n > 0 ? (size_t)n : 0);
        if (*end != ',')
            break;
        ids = end + 1;
    }
    pl_json_text(j, "]");
}

/* A string cannot hold these keys: its quotes are escaped. */
static void add_pieces(pl_web *w, pl_json *j)
{
    static const char none[] = "\"pieces\":null", tokens[] = "\"tokens\":[";
    pl_json out = {0};

    const char *at = j->data ? strstr(j->data, none) : NULL;
    const char *ids = j->data ? strstr(j->data, tokens) : NULL;
    if (!w->piece || !at || !ids)
        return;
    pl_json_bytes(&out, j->data, (size_t)(at - j->data) + strlen("\"pieces\":"));
    put_pieces(w, &out, ids + strlen(tokens));
    pl_json_text(&out, at + strlen(none));
    if (out.failed) {
        pl_json_done(&out);
        return;
    }
    pl_json_done(j);
    *j = out;
}

enum MHD_Result web_sample(pl_web *w, struct MHD_Connection *c, const web_query *q)
{
    int64_t uid = -1, step = -1;
    pl_error err = {0};
    pl_json j = {0};

    if (web_query_int(q, "uid", 0, UINT32_MAX, &uid) != 1)
        return refuse_field(c, q, "uid");
    if (web_query_int(q, "step", 0, INT64_MAX / 4, &step) < 0)
        return refuse_field(c, q, "step");
    look(w);
    const pl_status st = pl_samples_get(w->samples, step, (uint32_t)uid, &j, &err);
    if (st == PL_OK)
        add_pieces(w, &j);
    return finish(c, q, st, &j, &err);
}

enum MHD_Result web_prompt(pl_web *w, struct MHD_Connection *c, const web_query *q)
{
    const char *hex = web_query_text(q, "prompt");
    const uint64_t key = hex ? pl_samples_prompt_key(hex) : 0;
    pl_error err = {0};
    pl_json j = {0};

    if (key == 0)
        return refuse_field(c, q, "prompt");
    look(w);
    const pl_status st = pl_samples_prompt_json(w->samples, key, &j, &err);
    return finish(c, q, st, &j, &err);
}
