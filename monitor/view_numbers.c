/* monitor/view_numbers.c - figures of a run, looked up and written down for people. */
#include "monitor/view_internal.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

const double *view_column(const pl_view_data *d, const char *name)
{
    return d->column && d->n_steps > 0 ? d->column(d->history, name) : NULL;
}

double view_at(const pl_view_data *d, const char *name, int i)
{
    const double *column = view_column(d, name);
    return column && i >= 0 && i < d->n_steps ? column[i] : (double)NAN;
}

double view_last(const pl_view_data *d, const char *name)
{
    const double *column = view_column(d, name);

    for (int i = d->n_steps - 1; column && i >= 0; i--)
        if (isfinite(column[i]))
            return column[i];
    return (double)NAN;
}

int view_bucket_end(const pl_view_data *d, int bucket)
{
    const double *longest = view_column(d, "response_length/max");
    const int from = pl_snapshot_length(bucket);
    int end = pl_snapshot_length(bucket + 1), seen = 0;

    end = end > from ? end : from + from / 4;
    for (int i = 0; longest && i < d->n_steps; i++)
        if (longest[i] > seen && longest[i] < 1e9)
            seen = (int)longest[i];
    return seen >= from && seen < end ? seen : end;
}

int view_percentile(const pl_view_data *d, double share)
{
    const pl_snapshot *s = d->now;
    uint64_t n = 0, below = 0;

    for (int i = 0; s && i < PL_SNAPSHOT_LENGTHS; i++)
        n += (uint64_t)s->lengths[i] + s->running_lengths[i];
    for (int i = 0; n > 0 && i < PL_SNAPSHOT_LENGTHS; i++) {
        const uint64_t here = (uint64_t)s->lengths[i] + s->running_lengths[i];
        const double want = share * (double)n;
        if (here > 0 && (double)(below + here) >= want) {
            const int from = pl_snapshot_length(i), end = view_bucket_end(d, i);
            const double part = (want - (double)below) / (double)here;
            return from + (int)((part > 0 ? part : 0) * (end - from));
        }
        below += here;
    }
    return -1;
}

void view_duration(char out[24], double seconds)
{
    if (!(seconds >= 0 && seconds < 1e10)) {
        snprintf(out, 24, "?");
        return;
    }
    const long long s = (long long)seconds;
    if (s >= 86400)
        snprintf(out, 24, "%lldd %02lld:%02lld", s / 86400, s / 3600 % 24, s / 60 % 60);
    else if (s >= 3600)
        snprintf(out, 24, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(out, 24, "%lld:%02lld", s / 60, s % 60);
}

void view_number(char out[24], double v)
{
    const double a = fabs(v);

    if (!isfinite(v))
        snprintf(out, 24, "-");
    else if (a >= 1e9 || (a > 0 && a < 1e-3))
        snprintf(out, 24, "%.2e", v);
    else if (a >= 1e6)
        snprintf(out, 24, "%.1fM", v / 1e6);
    else if (a >= 1e4)
        snprintf(out, 24, "%.1fk", v / 1e3);
    else
        snprintf(out, 24, "%.*f", v == floor(v) ? 0 : a >= 100 ? 1 : a >= 10 ? 2 : 3, v);
}
