/* Claims: metrics.jsonl is whole lines of JSON, also after a kill, a resumed run and a full disk.
 */
#include "core/file.h"
#include "monitor/monitor.h"

#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static char dir[] = "/tmp/pl_metrics_XXXXXX";
static char path[128];
static pl_error err;

static void begin(void)
{
    cr_assert_not_null(mkdtemp(dir));
    cr_assert(snprintf(path, sizeof path, "%s/metrics.jsonl", dir) > 0);
}

static void end(void)
{
    cr_assert_eq(pl_dir_remove(dir, &err), PL_OK, "%s", err.msg);
}

TestSuite(metrics, .init = begin, .fini = end);

static void expect_file(const char *want)
{
    char *text = NULL;

    cr_assert_eq(pl_file_read(&text, NULL, path, 1 << 20, &err), PL_OK, "%s", err.msg);
    cr_assert_str_eq(text, want);
    free(text);
}

static pl_metrics *open_at(int64_t last_step)
{
    pl_metrics *m = NULL;
    cr_assert_eq(pl_metrics_open(&m, dir, last_step, &err), PL_OK, "%s", err.msg);
    return m;
}

static void put(pl_metrics *m, int64_t step, double v)
{
    const pl_metric metric = {"a/b", v};
    cr_assert_eq(pl_metrics_put(m, step, &metric, 1, &err), PL_OK, "%s", err.msg);
}

Test(metrics, a_line_is_one_object_and_what_is_not_a_number_is_null)
{
    const pl_metric all[] = {
        {"actor/pg_loss", -0.125}, {"actor/entropy", NAN}, {"perf/total_num_tokens", 123456}};
    pl_metrics *m = open_at(0);

    cr_assert_eq(pl_metrics_put(m, 1, all, 3, &err), PL_OK);
    cr_assert_eq(pl_metrics_put(m, 2, all, 0, &err), PL_OK);
    pl_metrics_close(m);
    expect_file("{\"step\":1,\"actor/pg_loss\":-0.125,\"actor/entropy\":null,"
                "\"perf/total_num_tokens\":123456}\n{\"step\":2}\n");
}

Test(metrics, a_resumed_run_drops_the_lines_beyond_its_checkpoint)
{
    pl_metrics *m = open_at(0);
    for (int step = 0; step < 12; step++)
        put(m, step, step);
    pl_metrics_close(m);

    m = open_at(2);
    put(m, 3, 30);
    pl_metrics_close(m);
    expect_file("{\"step\":0,\"a/b\":0}\n{\"step\":1,\"a/b\":1}\n{\"step\":2,\"a/b\":2}\n"
                "{\"step\":3,\"a/b\":30}\n");
    pl_metrics_close(open_at(0));
    expect_file("{\"step\":0,\"a/b\":0}\n");
    pl_metrics_close(open_at(-1));
    expect_file("");
}

Test(metrics, a_torn_last_line_is_cut_and_foreign_lines_stay)
{
    static const char text[] = "note\n{\"step\":1}\n{\"step\":9";

    cr_assert_eq(pl_file_write(path, text, sizeof text - 1, &err), PL_OK);
    pl_metrics_close(open_at(9));
    expect_file("note\n{\"step\":1}\n");
}

Test(metrics, a_full_disk_leaves_whole_lines)
{
    const struct rlimit small = {30, 30};
    const pl_metric metric = {"a/b", 1};
    pl_metrics *m = open_at(0);

    put(m, 1, 1); /* 19 bytes; the second line is cut by the limit */
    (void)signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    cr_assert_eq(pl_metrics_put(m, 2, &metric, 1, &err), PL_E_IO);
    cr_assert_not_null(strstr(err.msg, "metrics.jsonl"), "%s", err.msg);
    pl_metrics_close(m);
    expect_file("{\"step\":1,\"a/b\":1}\n");
}

Test(metrics, a_missing_directory_is_named)
{
    pl_metrics *m = NULL;
    cr_assert_eq(pl_metrics_open(&m, "/nowhere/at/all", 0, &err), PL_E_NOENT);
    cr_assert_not_null(strstr(err.msg, "/nowhere/at/all"));
}
