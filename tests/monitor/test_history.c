/* Claims: the history is what metrics.jsonl says, by whomever and in whatever order it was written;
 * it follows the file as it grows, is cut or replaced, and nothing in it costs more than its line.
 */
#include "core/file.h"
#include "monitor/lines.h"
#include "monitor/monitor.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[] = "/tmp/pl_history_XXXXXX";
static char path[128];
static pl_error err;
static pl_history *h;

static void begin(void)
{
    cr_assert_not_null(mkdtemp(dir));
    cr_assert(snprintf(path, sizeof path, "%s/metrics.jsonl", dir) > 0);
    cr_assert_eq(pl_history_open(&h, dir, &err), PL_OK, "%s", err.msg);
}

static void end(void)
{
    pl_history_close(h);
    cr_assert_eq(pl_dir_remove(dir, &err), PL_OK, "%s", err.msg);
}

TestSuite(history, .init = begin, .fini = end);

static void append(const char *text)
{
    FILE *f = fopen(path, "a");
    cr_assert_not_null(f);
    cr_assert(fputs(text, f) >= 0);
    cr_assert_eq(fclose(f), 0);
}

/* The steps, and of each the value of name. */
static void expect(const char *name, int n, const int64_t *steps, const double *values)
{
    const int64_t *have;
    cr_assert_eq(pl_history_steps(h, &have), n, "%d steps", pl_history_steps(h, NULL));
    const double *column = pl_history_column(h, name);
    cr_assert_not_null(column, "%s", name);
    for (int i = 0; i < n; i++) {
        cr_assert_eq(have[i], steps[i]);
        cr_assert(isnan(values[i]) ? isnan(column[i]) : column[i] == values[i],
            "%s at step %lld: %g", name, (long long)steps[i], column[i]);
    }
}

Test(history, what_a_run_writes_comes_back_to_the_bit)
{
    const double x[] = {-0.1, 1e-300, 123456789012345678.0, 0.30000000000000004, 5e-324,
        1.7976931348623157e308, 2.2250738585072011e-308, 9007199254740993.0, 1e23, 8.5e-7};
    enum { N = sizeof x / sizeof x[0] };
    int64_t steps[N];
    pl_metrics *m = NULL;

    cr_assert_eq(pl_metrics_open(&m, dir, 0, &err), PL_OK);
    for (int i = 0; i < N; i++) {
        const pl_metric all[] = {{"actor/pg_loss", x[i]}, {"perf/throughput", NAN}};
        steps[i] = i + 1;
        cr_assert_eq(pl_metrics_put(m, i + 1, all, 2, &err), PL_OK);
    }
    pl_metrics_close(m);
    cr_assert_eq(pl_history_poll(h), 1);
    cr_assert_eq(pl_history_poll(h), 0);
    expect("actor/pg_loss", N, steps, x);
    cr_assert(isnan(pl_history_column(h, "perf/throughput")[0]));
    cr_assert_null(pl_history_column(h, "step"));
    cr_assert_eq(pl_history_names(h, NULL), 2);
}

Test(history, a_torn_last_line_is_waited_for)
{
    append("{\"step\":1,\"a\":1}\n{\"step\":2,\"a\"");
    cr_assert_eq(pl_history_poll(h), 1);
    expect("a", 1, (const int64_t[]){1}, (const double[]){1});
    append(":2}");
    (void)pl_history_poll(h);
    expect("a", 1, (const int64_t[]){1}, (const double[]){1});
    append("\n");
    cr_assert_eq(pl_history_poll(h), 1);
    expect("a", 2, (const int64_t[]){1, 2}, (const double[]){1, 2});
    cr_assert_eq(pl_history_bad_lines(h), 0);
}

Test(history, lines_of_one_step_are_merged_and_the_later_wins_in_any_order)
{
    append("{\"step\":5,\"a\":5}\n{\"step\":3,\"a\":3,\"b\":30}\n{\"step\":5,\"b\":50}\n"
           "{\"step\":3,\"a\":33}\n{\"step\":4,\"a\":4}\n{\"step\":5,\"a\":null}\n");
    cr_assert_eq(pl_history_poll(h), 1);
    expect("a", 3, (const int64_t[]){3, 4, 5}, (const double[]){33, 4, NAN});
    expect("b", 3, (const int64_t[]){3, 4, 5}, (const double[]){30, NAN, 50});
    append("{\"step\":4,\"b\":40}\n");
    cr_assert_eq(pl_history_poll(h), 1);
    expect("b", 3, (const int64_t[]){3, 4, 5}, (const double[]){30, 40, 50});
}

Test(history, what_is_no_line_of_figures_is_counted_and_passed_over)
{
    append(
        "\n{\"step\":1,\"a\":1}\nnot json\n{\"a\":1}\n{\"step\":-1,\"a\":1}\n"
        "{\"step\":1.5}\n[1]\n{\"step\":2,\"a\":2} x\n{\"step\":3,\"a\":[1,{\"b\":2}],\"c\":\"t\"}"
        "\r\n{\"step\":1e300}\n{\"step\":\"4\"}\n{\"step\":4,\"a\":1e999}\n{\"step\":5,,}\n");
    cr_assert_eq(pl_history_poll(h), 1);
    expect("a", 3, (const int64_t[]){1, 3, 4}, (const double[]){1, NAN, NAN});
    cr_assert_eq(pl_history_bad_lines(h), 9);
    cr_assert_null(pl_history_column(h, "c"));
}

Test(history, a_line_beyond_one_mebibyte_is_passed_over_and_the_next_is_read)
{
    const size_t n = (1 << 20) + 1;
    char *line = malloc(n + 1);

    cr_assert_not_null(line);
    append("{\"step\":1,\"a\":1");
    memset(line, ' ', n);
    line[n] = '\0';
    append(line);
    (void)pl_history_poll(h);
    append("}\n{\"step\":2,\"a\":2}\n");
    (void)pl_history_poll(h);
    expect("a", 1, (const int64_t[]){2}, (const double[]){2});
    cr_assert_eq(pl_history_bad_lines(h), 1);
    free(line);
}

Test(history, a_file_that_was_cut_or_replaced_is_read_anew)
{
    char other[160];

    append("{\"step\":1,\"a\":1}\n{\"step\":2,\"a\":2}\n{\"step\":3,\"z\":3}\n");
    (void)pl_history_poll(h);
    cr_assert_eq(truncate(path, 17), 0);                      /* after step 1 */
    append("{\"step\":2,\"a\":20}\n{\"step\":3,\"a\":30}\n"); /* longer than it was */
    cr_assert_eq(pl_history_poll(h), 1);
    expect("a", 3, (const int64_t[]){1, 2, 3}, (const double[]){1, 20, 30});
    cr_assert_null(pl_history_column(h, "z"));

    cr_assert(snprintf(other, sizeof other, "%s/other", dir) > 0);
    cr_assert_eq(rename(path, other), 0);
    cr_assert_eq(pl_history_poll(h), 0); /* gone: what is known stays */
    cr_assert_eq(pl_history_steps(h, NULL), 3);
    append("{\"step\":9,\"a\":9}\n");
    cr_assert_eq(pl_history_poll(h), 1);
    expect("a", 1, (const int64_t[]){9}, (const double[]){9});
}

Test(history, names_are_bounded_and_clean)
{
    char line[64];

    append(
        "{\"step\":1,\"a\\u0041\":1,\"x\x01\":1,\"\":1,\"\xff\":1,\"val-core/caf\xc3\xa9\":1}\n");
    for (int i = 0; i < PL_HISTORY_NAMES + 20; i++) {
        cr_assert(snprintf(line, sizeof line, "{\"step\":2,\"n%d\":%d}\n", i, i) > 0);
        append(line);
    }
    (void)pl_history_poll(h);
    cr_assert_eq(pl_history_names(h, NULL), PL_HISTORY_NAMES);
    cr_assert_not_null(pl_history_column(h, "val-core/caf\xc3\xa9"));
    cr_assert_eq(pl_history_column(h, "n7")[1], 7);
    cr_assert_eq(pl_history_bad_lines(h), 0);
}

Test(history, the_newest_hundred_thousand_steps_are_kept)
{
    enum { N = 260000 };
    FILE *f = fopen(path, "w");
    const int64_t *steps;

    cr_assert_not_null(f);
    for (int i = 0; i < N; i++) /* pairs in the wrong order, a fifth of them twice */
        fprintf(f, "{\"step\":%d,\"a\":%d}\n", i ^ 1, i % 5 == 0 ? -1 : i ^ 1);
    for (int i = 0; i < N; i += 5)
        fprintf(f, "{\"step\":%d,\"a\":%d}\n", i ^ 1, i ^ 1);
    cr_assert_eq(fclose(f), 0);
    (void)pl_history_poll(h);
    cr_assert_eq(pl_history_steps(h, &steps), PL_HISTORY_STEPS);
    const double *a = pl_history_column(h, "a");
    for (int i = 0; i < PL_HISTORY_STEPS; i++)
        if (steps[i] != N - PL_HISTORY_STEPS + i || a[i] != (double)steps[i])
            cr_assert_fail("row %d: step %lld, %g", i, (long long)steps[i], a[i]);
}

Test(history, a_directory_that_is_not_there_is_named)
{
    pl_history *none = NULL;
    cr_assert_eq(pl_history_open(&none, "/nowhere/at/all", &err), PL_E_NOENT);
    cr_assert_not_null(strstr(err.msg, "/nowhere/at/all"));
    cr_assert_eq(pl_history_poll(h), 0); /* no file yet */
    cr_assert_eq(pl_history_steps(h, NULL), 0);
}

Test(history, a_string_of_many_escapes_takes_linear_time)
{
    const size_t n = 1 << 19;
    char *line = malloc(2 * n + 64);
    scan s;
    scan_value v;

    cr_assert_not_null(line);
    size_t at = (size_t)sprintf(line, "{\"a\":\"");
    for (size_t i = 0; i < n; i++) {
        line[at++] = '\\';
        line[at++] = i % 2 ? 'n' : '"';
    }
    at += (size_t)sprintf(line + at, "\"}");
    scan_begin(&s, line, at);
    cr_assert_eq(scan_next(&s, &v), 1); /* quadratic: minutes, and the test's time limit */
    cr_assert_eq(v.n, 2 * n);
    cr_assert_eq(scan_string(&v, line), n);
    free(line);
}
