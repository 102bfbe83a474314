/* trainer/reward_reply.c - one line of a reward command: JSON read in place, bounded in depth.
 *
 * Not jansson, for three reasons: Python writes NaN and Infinity, which must cost that sample a try
 * and not be a line without an id; most of a line is skipped, so nothing is allocated; and a line
 * is what code that a model may have written sends.  jansson converts the number, whatever the
 * locale. */
#include "trainer/reward_internal.h"
#include "trainer/scan.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { NUMBER_MAX = 64 /* bytes of a number that is converted; Python writes up to 25 */ };

/* ---- the keys ---- */

/* Infinity for what no double holds: it is refused as that. */
static double number_of(scan_text raw)
{
    const size_t n = (size_t)(raw.end - raw.p);

    if (n > NUMBER_MAX)
        return HUGE_VAL;
    json_t *v = json_loadb(raw.p, n, JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL, NULL);
    const double out = v ? json_number_value(v) : HUGE_VAL;
    json_decref(v);
    return out;
}

static int id_of(scan_item v, int64_t *out)
{
    const int is_negative = v.raw.p < v.raw.end && *v.raw.p == '-';
    int64_t id = 0;

    if (v.kind != SCAN_NUMBER)
        return 0;
    for (const char *p = v.raw.p + is_negative; p < v.raw.end; p++) {
        if (*p < '0' || *p > '9' || id > (INT64_MAX - 9) / 10)
            return 0;
        id = id * 10 + (*p - '0');
    }
    *out = is_negative ? -id : id;
    return 1;
}

static void take_score(reward_reply *out, scan_item v)
{
    const double d = v.kind == SCAN_NUMBER ? number_of(v.raw) : v.kind == SCAN_TRUE ? 1 : 0;
    const float score = (float)d;

    out->answer = REWARD_NO_SCORE;
    reward_escape(out->text, sizeof out->text, v.raw.p, (size_t)(v.raw.end - v.raw.p));
    if (v.kind == SCAN_STRING || v.kind == SCAN_NULL || v.kind == SCAN_OBJECT ||
        v.kind == SCAN_ARRAY)
        (void)snprintf(out->text, sizeof out->text, "score is not a number");
    else if (isfinite(score)) {
        out->answer = REWARD_SCORE;
        out->score = score;
    }
}

enum { KEY_ID, KEY_SCORE, KEY_REWARD, KEY_ERROR, N_KEYS };

static int key_of(scan_text raw)
{
    static const char *const names[N_KEYS] = {"id", "score", "reward", "error"};
    const size_t n = (size_t)(raw.end - raw.p);

    for (int i = 0; i < N_KEYS; i++)
        if (strlen(names[i]) == n && memcmp(names[i], raw.p, n) == 0)
            return i;
    return -1;
}

static pl_status read_keys(scan_text *t, scan_item found[N_KEYS], unsigned *seen, pl_error *err)
{
    scan_item v;
    scan_text key;

    if (!scan_eat(t, '{'))
        return pl_fail(err, PL_E_FORMAT, "is not a JSON object");
    if (!scan_eat(t, '}')) {
        do {
            if (!scan_eat(t, '"') || !scan_quoted(t, &key) || !scan_eat(t, ':') ||
                !scan_value(t, &v, 1))
                return pl_fail(err, PL_E_FORMAT, "is broken JSON");
            const int k = key_of(key);
            if (k < 0)
                continue;
            if (*seen >> k & 1)
                return pl_fail(err, PL_E_FORMAT, "has a key twice");
            *seen |= 1u << k;
            found[k] = v;
        } while (scan_eat(t, ','));
        if (!scan_eat(t, '}'))
            return pl_fail(err, PL_E_FORMAT, "is broken JSON");
    }
    scan_space(t);
    return t->p == t->end ? PL_OK : pl_fail(err, PL_E_FORMAT, "goes on after its object");
}

pl_status reward_reply_parse(reward_reply *out, const char *line, size_t n_bytes, pl_error *err)
{
    scan_text t = {line, line + n_bytes};
    scan_item found[N_KEYS];
    unsigned seen = 0;

    const pl_status st = read_keys(&t, found, &seen, err);
    if (st != PL_OK)
        return st;
    memset(out, 0, sizeof *out);
    if (!(seen >> KEY_ID & 1) || !id_of(found[KEY_ID], &out->id))
        return pl_fail(err, PL_E_FORMAT, "has no whole number \"id\"");
    if (seen >> KEY_ERROR & 1 && found[KEY_ERROR].kind != SCAN_NULL) {
        const scan_text raw = found[KEY_ERROR].raw;
        out->answer = REWARD_ERROR;
        reward_escape(out->text, sizeof out->text, raw.p, (size_t)(raw.end - raw.p));
    } else if (seen >> KEY_SCORE & 1) {
        take_score(out, found[KEY_SCORE]);
    } else if (seen >> KEY_REWARD & 1) {
        take_score(out, found[KEY_REWARD]);
    } else {
        out->answer = REWARD_NO_SCORE;
        (void)snprintf(out->text, sizeof out->text, "neither \"score\" nor \"error\"");
    }
    return PL_OK;
}

void reward_escape(char *out, size_t size, const char *s, size_t n_bytes)
{
    static const char hex[] = "0123456789abcdef";
    size_t n = 0;

    for (size_t i = 0; i < n_bytes; i++) {
        const unsigned char c = (unsigned char)s[i];
        const int is_plain = c >= 0x20 && c < 0x7f;
        if (n + (is_plain ? 1 : 4) + 3 >= size) { /* room for "..." and the NUL */
            memcpy(out + n, "...", 3);
            n += 3;
            break;
        }
        if (is_plain) {
            out[n++] = (char)c;
        } else {
            const char coded[] = {'\\', 'x', hex[c >> 4], hex[c & 15]};
            memcpy(out + n, coded, sizeof coded);
            n += sizeof coded;
        }
    }
    out[n] = '\0';
}
