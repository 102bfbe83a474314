/* monitor/web_columns.c - metrics as columns of at most so many points, and one row a drafter
 * version. */
#include "monitor/web_internal.h"

#include <math.h>
#include <string.h>

enum { EDGE = 5, VERSIONS = 200, DEPTHS = 8 };

/* ---- /api/metrics ---- */

/* Several steps share a point: their mean; of a version, the last. */
static double point_of(const double *column, int begin, int end, int is_last)
{
    double sum = 0, last = NAN;
    int n = 0;

    for (int i = begin; i < end; i++)
        if (isfinite(column[i])) {
            sum += column[i];
            last = column[i];
            n++;
        }
    return is_last || n == 0 ? last : sum / n;
}

static int is_empty(const double *column, int begin, int end)
{
    for (int i = begin; i < end; i++)
        if (isfinite(column[i]))
            return 0;
    return 1;
}

static void put_column(
    pl_json *j, const char *name, const double *column, int begin, int n, int stride)
{
    const int is_last = strstr(name, "version") != NULL;

    pl_json_string(j, name, strlen(name));
    pl_json_text(j, ":[");
    for (int i = begin; i < n; i += stride) {
        const int end = i + stride < n ? i + stride : n;
        pl_json_text(j, i == begin ? "" : ",");
        pl_json_float(j, (float)point_of(column, i, end, is_last));
    }
    pl_json_text(j, "]");
}

void web_columns(pl_json *j, const pl_history *h, int64_t from, int64_t points)
{
    const int64_t *steps = NULL;
    const char *const *names = NULL;
    const int n = pl_history_steps(h, &steps), n_names = pl_history_names(h, &names);
    int begin = n, n_columns = 0;

    while (begin > 0 && steps[begin - 1] >= from)
        begin--;
    const int stride =
        points > 0 && n - begin > points ? (int)((n - begin + points - 1) / points) : 1;
    pl_json_text(j, "{\"n\":");
    pl_json_int(j, n);
    pl_json_text(j, ",\"stride\":");
    pl_json_int(j, stride);
    pl_json_text(j, ",\"last\":");
    pl_json_int(j, n > 0 ? steps[n - 1] : -1);
    pl_json_text(j, ",\"bad_lines\":");
    pl_json_int(j, pl_history_bad_lines(h));
    pl_json_text(j, ",\"steps\":[");
    for (int i = begin; i < n; i += stride) {
        pl_json_text(j, i == begin ? "" : ",");
        pl_json_int(j, steps[i + stride < n ? i + stride - 1 : n - 1]);
    }
    pl_json_text(j, "],\"columns\":{");
    for (int k = 0; k < n_names; k++) {
        const double *column = pl_history_column(h, names[k]);
        if (!column || is_empty(column, begin, n))
            continue;
        pl_json_text(j, n_columns++ == 0 ? "" : ",");
        put_column(j, names[k], column, begin, n, stride);
    }
    pl_json_text(j, "}}\n");
}

/* ---- /api/versions ---- */

typedef struct span {
    int begin, end; /* indexes into the steps */
    double version;
} span;

/* The newest spans of one drafter version each, oldest first; returns how many. */
static int find_spans(span out[VERSIONS], const double *version, int n)
{
    int n_spans = 0;

    for (int i = n; i > 0 && n_spans < VERSIONS;) {
        const int end = i;
        const double v = version[i - 1];
        /* A step that does not tell belongs to its neighbours. */
        while (i > 0 && (version[i - 1] == v || !isfinite(version[i - 1]) || !isfinite(v)) &&
               (isfinite(v) || !isfinite(version[i - 1])))
            i--;
        if (isfinite(v))
            out[n_spans++] = (span){i, end, v};
    }
    for (int i = 0; i < n_spans / 2; i++) {
        const span s = out[i];
        out[i] = out[n_spans - 1 - i];
        out[n_spans - 1 - i] = s;
    }
    return n_spans;
}

static void put_mean(
    pl_json *j, const char *key, const pl_history *h, const char *name, int begin, int end)
{
    const double *column = pl_history_column(h, name);

    pl_json_text(j, key);
    pl_json_float(j, column && begin < end ? (float)point_of(column, begin, end, 0) : NAN);
}

static void put_span(pl_json *j, const pl_history *h, const span *s, const int64_t *steps)
{
    static const char *const alpha[DEPTHS] = {"drafter/alpha_pos_1", "drafter/alpha_pos_2",
        "drafter/alpha_pos_3", "drafter/alpha_pos_4", "drafter/alpha_pos_5", "drafter/alpha_pos_6",
        "drafter/alpha_pos_7", "drafter/alpha_pos_8"};
    static const char length[] = "rollout/spec_accept_length";
    const int begin = s->begin, end = s->end;

    pl_json_text(j, "{\"version\":");
    pl_json_int(j, s->version > -1 && s->version < 1e15 ? (int64_t)s->version : -1);
    pl_json_text(j, ",\"first_step\":");
    pl_json_int(j, steps[begin]);
    pl_json_text(j, ",\"last_step\":");
    pl_json_int(j, steps[end - 1]);
    put_mean(j, ",\"accept_length\":", h, length, begin, end);
    put_mean(j, ",\"drafted_length\":", h, "drafter/accept_length", begin, end);
    put_mean(j, ",\"before\":", h, length, begin > EDGE ? begin - EDGE : 0, begin);
    put_mean(j, ",\"after\":", h, length, begin, begin + EDGE < end ? begin + EDGE : end);
    put_mean(j, ",\"loss\":", h, "drafter/loss", begin, end);
    pl_json_text(j, ",\"alpha\":[");
    for (int i = 0; i < DEPTHS; i++)
        put_mean(j, i == 0 ? "" : ",", h, alpha[i], begin, end);
    pl_json_text(j, "]}");
}

static void put_sum(pl_json *j, const char *key, const pl_history *h, const char *name, int n)
{
    const double *column = pl_history_column(h, name);
    double sum = 0;

    for (int i = 0; column && i < n; i++)
        sum += isfinite(column[i]) ? column[i] : 0;
    pl_json_text(j, key);
    pl_json_double(j, sum);
}

void web_versions(pl_json *j, const pl_history *h)
{
    const int64_t *steps = NULL;
    const int n = pl_history_steps(h, &steps);
    const double *version = pl_history_column(h, "drafter/version");
    span spans[VERSIONS];
    const int n_spans = version ? find_spans(spans, version, n) : 0;

    pl_json_text(j, "{\"versions\":[");
    for (int i = 0; i < n_spans; i++) {
        pl_json_text(j, i == 0 ? "" : ",");
        put_span(j, h, &spans[i], steps);
    }
    put_sum(j, "],\"totals\":{\"published\":", h, "drafter/published", n);
    put_sum(j, ",\"rollbacks\":", h, "drafter/rollbacks", n);
    put_sum(j, ",\"idle_s\":", h, "bubble/idle_s", n);
    put_sum(j, ",\"drafter_s\":", h, "bubble/drafter_s", n);
    pl_json_text(j, "}}\n");
}
