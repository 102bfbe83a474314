/* Claims: the text is Prometheus' form 0.0.4 (tests/oracle/prometheus_check.py asks Prometheus' own
 * parser): families with HELP and TYPE, no family and no labels twice, names and labels well formed
 * whatever the run calls things, workers bounded, and values that read back. */
#include "core/file.h"
#include "monitor/prometheus.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char dir[] = "/tmp/pl_prometheus_XXXXXX";
static pl_error err;
static pl_snapshot s;
static pl_json out;

static void begin(void)
{
    cr_assert_not_null(mkdtemp(dir));
    s = (pl_snapshot){.run = "run-1",
        .phase = PL_PHASE_UPDATE,
        .step = 7,
        .total_steps = 30,
        .rate = 123.5,
        .eta_s = NAN,
        .n_done = 3,
        .n_workers = 2,
        .n_lost = 1};
    s.workers[0] = (pl_snapshot_worker){
        .name = "worker-0", .state = PL_WORKER_BUSY, .rate = 1.5f, .policy_version = UINT32_MAX};
    s.workers[1] = (pl_snapshot_worker){.name = "a\"b\\c\nd", .state = 200};
}

static void end(void)
{
    pl_json_done(&out);
    cr_assert_eq(pl_dir_remove(dir, &err), PL_OK, "%s", err.msg);
}

TestSuite(prometheus, .init = begin, .fini = end);

static void expect_line(const char *line)
{
    char with_ends[256];

    cr_assert(snprintf(with_ends, sizeof with_ends, "\n%s\n", line) > 0);
    cr_assert_not_null(strstr(out.data, with_ends), "no line %s", line);
}

static int n_times(const char *text)
{
    int n = 0;
    for (const char *p = out.data; (p = strstr(p, text)) != NULL; p++)
        n++;
    return n;
}

static pl_history *history(const char *text)
{
    char path[128];
    pl_history *h = NULL;

    cr_assert(snprintf(path, sizeof path, "%s/metrics.jsonl", dir) > 0);
    cr_assert_eq(pl_file_write(path, text, strlen(text), &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_history_open(&h, dir, &err), PL_OK, "%s", err.msg);
    (void)pl_history_poll(h);
    return h;
}

Test(prometheus, the_snapshot_is_families_with_help_and_type)
{
    pl_prometheus_text(&s, 1, NULL, &out);
    cr_assert_eq(strncmp(out.data, "# HELP paceline_run_info ", 25), 0);
    expect_line("paceline_run_info{run=\"run-1\"} 1");
    expect_line("# TYPE paceline_steps_total counter");
    expect_line("paceline_steps_total 7");
    expect_line("paceline_phase{phase=\"update\"} 1");
    expect_line("paceline_phase{phase=\"rollout\"} 0");
    expect_line("paceline_tokens_per_second 123.5");
    expect_line("paceline_batch_samples{state=\"done\"} 3");
    expect_line("paceline_worker_state{worker=\"worker-0\",state=\"BUSY\"} 1");
    expect_line("paceline_worker_state{worker=\"a\\\"b\\\\c\\nd\",state=\"?\"} 1");
    expect_line("paceline_worker_tokens_per_second{worker=\"worker-0\"} 1.5");
    expect_line("# TYPE paceline_worker_busy_seconds_total counter");
    cr_assert_eq(n_times("paceline_eta_seconds"), 0);
    cr_assert_eq(n_times("paceline_worker_policy_version{worker=\"worker-0\"}"), 0);
    cr_assert_eq(out.data[out.n - 1], '\n');
}

Test(prometheus, workers_are_bounded_and_no_name_comes_twice)
{
    s.n_workers = 10000;
    for (int i = 0; i < PL_SNAPSHOT_WORKERS; i++) {
        memset(&s.workers[i], 0, sizeof s.workers[i]);
        memset(s.workers[i].name, 'a' + i % 20, sizeof s.workers[i].name); /* no NUL */
    }
    pl_prometheus_text(&s, 1, NULL, &out);
    cr_assert_eq(n_times("\npaceline_worker_held_samples{"), 20);
    expect_line("paceline_workers 10000");
}

Test(prometheus, the_newest_figure_of_each_name_is_a_gauge)
{
    pl_history *h = history("{\"step\":1,\"actor/pg_loss\":1,\"val-core/x y/mean@4\":0.5}\n"
                            "{\"step\":2,\"actor/pg_loss\":-0.25,\"gone\":null}\n");

    pl_prometheus_text(NULL, 1, h, &out);
    expect_line("paceline_metrics_step 2");
    expect_line("# TYPE paceline_actor_pg_loss gauge");
    expect_line("# HELP paceline_actor_pg_loss Newest actor/pg_loss of metrics.jsonl.");
    expect_line("paceline_actor_pg_loss -0.25");
    expect_line("paceline_val_core_x_y_mean_4 0.5");
    cr_assert_eq(n_times("paceline_gone"), 0);
    pl_history_close(h);
}

Test(prometheus, names_that_become_the_same_come_once)
{
    pl_history *h = history("{\"step\":1,\"a/b\":1,\"a_b\":2,\"steps_total\":9,\"workers\":9}\n");

    pl_prometheus_text(&s, 1, h, &out);
    cr_assert_eq(n_times("\n# TYPE paceline_a_b "), 1);
    cr_assert_eq(n_times("\n# TYPE paceline_steps_total "), 1);
    cr_assert_eq(n_times("\npaceline_workers "), 1);
    expect_line("paceline_steps_total 7");
    pl_history_close(h);
}

Test(prometheus, a_run_that_has_nothing_yet_is_an_empty_text)
{
    pl_history *h = history("");

    pl_prometheus_text(NULL, 1, h, &out);
    cr_assert_eq(out.n, 0);
    pl_history_close(h);
}
