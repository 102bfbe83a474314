/* Claims: a reward command scores every sample exactly once, whatever it does: it may answer in any
 * order, write rubbish, hang, die, fork, be killed from outside, or fill every pipe.  A sample at
 * fault is found, has one more try and is marked; the others lose nothing.  The faults are
 * committed by tests/data/reward/scorer.sh, where a solution that is a number is its own score. */
#define _GNU_SOURCE
#include "core/file.h"
#include "trainer/reward_internal.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MANY = 2000 };

static char dir[64], command[256];
static pl_rewarder *rewarder;
static pl_error err;

/* What came back, by id. */
static int n_seen[MANY];
static float scores[MANY];
static pl_reward_mark marks[MANY];
static int n_delivered;

static void take(void *ctx, int64_t id, float score, pl_reward_mark mark)
{
    (void)ctx;
    cr_assert(id >= 0 && id < MANY);
    n_seen[id]++;
    scores[id] = score;
    marks[id] = mark;
    n_delivered++;
}

static void start_command(const char *text, double timeout_s, int64_t memory_mb, const pl_log *log)
{
    const pl_rewarder_options o = {.command = text,
        .timeout_s = timeout_s,
        .timeout_value = -5,
        .memory_mb = memory_mb,
        .log = log};

    cr_assert_eq(pl_rewarder_new(&rewarder, &o, &err), PL_OK, "%s", err.msg);
}

static void start(double timeout_s)
{
    start_command(command, timeout_s, 4096, NULL);
}

static void setup(void)
{
    (void)snprintf(dir, sizeof dir, "/tmp/pl_reward_XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
    (void)snprintf(command, sizeof command, "exec sh tests/data/reward/scorer.sh %s", dir);
}

static void teardown(void)
{
    pl_rewarder_free(rewarder);
    (void)pl_dir_remove(dir, &err);
}

TestSuite(reward_command, .init = setup, .fini = teardown);

static void submit(int64_t id, const char *solution)
{
    cr_assert_eq(
        pl_rewarder_submit(rewarder, id, "words", solution, strlen(solution), "truth", NULL, &err),
        PL_OK, "%s", err.msg);
}

/* Ids from begin to end - 1: each is its own score. */
static void submit_numbers(int begin, int end)
{
    char text[16];

    for (int i = begin; i < end; i++) {
        (void)snprintf(text, sizeof text, "%d", i);
        submit(i, text);
    }
}

static pl_status finish(void)
{
    pl_status st = PL_OK;

    for (int i = 0; i < 5000 && st == PL_OK && pl_rewarder_pending(rewarder) > 0; i++)
        st = pl_rewarder_poll(rewarder, 1000, take, NULL, &err);
    return st;
}

static void expect(int id, float score, pl_reward_mark mark)
{
    cr_expect_eq(n_seen[id], 1, "sample %d was delivered %d times", id, n_seen[id]);
    cr_expect_eq(marks[id], mark, "sample %d has mark %d", id, (int)marks[id]);
    cr_expect_float_eq(scores[id], score, 0, "sample %d has %g", id, (double)scores[id]);
}

static void expect_numbers(int begin, int end)
{
    for (int i = begin; i < end; i++)
        expect(i, (float)i, PL_REWARD_OK);
}

/* One fault among numbers. */
static void among_numbers(double timeout_s, const char *fault, float score, pl_reward_mark mark)
{
    start(timeout_s);
    submit_numbers(0, 10);
    submit(10, fault);
    submit_numbers(11, 100);
    cr_assert_eq(finish(), PL_OK, "%s", err.msg);
    expect_numbers(0, 10);
    expect(10, score, mark);
    expect_numbers(11, 100);
    cr_assert_eq(n_delivered, 100);
}

static pl_rewarder_stats stats(void)
{
    pl_rewarder_stats s;
    pl_rewarder_stats_get(rewarder, &s);
    return s;
}

/* ---- replies ---- */

Test(reward_command, scores_are_the_ones_that_the_command_writes)
{
    start(60);
    cr_assert_eq(pl_rewarder_poll(rewarder, 0, take, NULL, &err), PL_OK);
    cr_assert_eq(stats().n_starts, 0, "nothing to ask, nothing to run");
    submit(0, "0.1");
    submit(1, "-3.5e-2");
    submit(2, "true");
    submit(3, "alias");
    cr_assert_eq(pl_rewarder_pending(rewarder), 4);
    cr_assert_eq(finish(), PL_OK, "%s", err.msg);
    expect(0, 0.1f, PL_REWARD_OK);
    expect(1, -3.5e-2f, PL_REWARD_OK);
    expect(2, 1, PL_REWARD_OK);
    expect(3, 0.5f, PL_REWARD_OK);
    cr_assert_eq(stats().n_scored, 4);
    cr_assert_eq(stats().n_starts, 1);
}

Test(reward_command, replies_in_another_order_find_their_samples)
{
    start_command("sh tests/data/reward/backwards.sh", 60, 4096, NULL);
    for (int i = 0; i < 200; i++)
        submit(i, "x");
    cr_assert_eq(finish(), PL_OK, "%s", err.msg);
    for (int i = 0; i < 200; i++)
        expect(i, (float)(i % 2 + 1), PL_REWARD_OK);
}

Test(reward_command, every_byte_value_arrives_or_is_replaced)
{
    char all[256];

    for (int i = 0; i < 256; i++)
        all[i] = (char)i;
    start_command("exec python3 -IS tests/data/reward/fields.py", 60, 4096, NULL);
    cr_assert_eq(pl_rewarder_submit(rewarder, 0, "my \"task\"", all, sizeof all, "4\n2",
                     "{\"index\":\n 7,\r\n\"list\":[1,2]}", &err),
        PL_OK);
    cr_assert_eq(finish(), PL_OK, "%s", err.msg);
    expect(0, 1, PL_REWARD_OK);
}

Test(reward_command, two_thousand_samples_fill_both_pipes_and_all_come_back)
{
    static char text[4096];
    char truth[16];

    memset(text, 'a', sizeof text);
    start_command("exec python3 -IS tests/data/reward/fields.py 4000", 60, 4096, NULL);
    for (int i = 0; i < MANY; i++) {
        (void)snprintf(truth, sizeof truth, "%d", i);
        cr_assert_eq(
            pl_rewarder_submit(rewarder, i, "s", text, sizeof text, truth, NULL, &err), PL_OK);
    }
    cr_assert_eq(finish(), PL_OK, "%s", err.msg);
    expect_numbers(0, MANY);
    cr_assert_eq(n_delivered, MANY);
    cr_assert_eq(stats().n_starts, 1);
}

Test(reward_command, rubbish_between_the_replies_is_dropped)
{
    among_numbers(60, "garbage", 1, PL_REWARD_OK);
    cr_assert_eq(stats().n_bad_lines, 9);
    cr_assert_eq(stats().n_starts, 1);
}

Test(reward_command, a_line_over_64_kib_is_dropped)
{
    among_numbers(60, "long-line", 1, PL_REWARD_OK);
    cr_assert_eq(stats().n_bad_lines, 1);
}

Test(reward_command, a_second_reply_to_a_sample_changes_nothing)
{
    among_numbers(60, "twice", 1, PL_REWARD_OK);
    cr_assert_eq(stats().n_bad_lines, 1);
}

/* ---- samples that fail ---- */

Test(reward_command, an_error_is_tried_once_more_and_then_marked)
{
    among_numbers(60, "error", -5, PL_REWARD_FAILED);
    cr_assert_eq(stats().n_retries, 1);
    cr_assert_eq(stats().n_starts, 1);
}

Test(reward_command, an_error_that_happens_once_does_no_harm)
{
    among_numbers(60, "error-once", 1, PL_REWARD_OK);
    cr_assert_eq(stats().n_retries, 1);
}

Test(reward_command, a_score_that_is_not_finite_is_no_score)
{
    static const char *const words[] = {"nan", "inf", "huge", "none"};

    start(60);
    for (int i = 0; i < 4; i++)
        submit(i, words[i]);
    cr_assert_eq(finish(), PL_OK, "%s", err.msg);
    for (int i = 0; i < 4; i++)
        expect(i, -5, PL_REWARD_FAILED);
    cr_assert_eq(stats().n_retries, 4);
}

Test(reward_command, a_sample_that_hangs_has_two_tries_and_the_others_lose_none)
{
    among_numbers(0.3, "hang", -5, PL_REWARD_TIMED_OUT);
    cr_assert_eq(stats().n_timed_out, 1);
}

Test(reward_command, a_sample_that_hangs_once_is_scored)
{
    among_numbers(0.5, "hang-once", 1, PL_REWARD_OK);
    cr_assert_geq(stats().n_retries, 1);
}

Test(reward_command, a_queue_inside_the_command_costs_nobody_a_try)
{
    start(1.2); /* ten samples of 0.2 s, all written at once */
    for (int i = 0; i < 10; i++)
        submit(i, "slow");
    cr_assert_eq(finish(), PL_OK, "%s", err.msg);
    for (int i = 0; i < 10; i++)
        expect(i, 1, PL_REWARD_OK);
    cr_assert_eq(stats().n_retries, 0);
}

/* ---- a command that ends ---- */

Test(reward_command, a_sample_that_ends_the_command_is_found_and_marked)
{
    among_numbers(60, "crash", -5, PL_REWARD_FAILED);
    cr_assert_eq(stats().n_starts, 4, "ended with others, alone, alone again");
}

/* More of them than deaths are allowed in a minute, so far apart that each ends its own child. */
Test(reward_command, many_such_samples_are_found_and_do_not_end_the_run)
{
    static const char *const words[] = {"crash", "segv", "flood", "flood-line"};

    start(60);
    for (int i = 0; i < 8; i++) {
        submit_numbers(100 * i, 100 * i + 99);
        submit(100 * i + 99, words[i % 4]);
    }
    cr_assert_eq(finish(), PL_OK, "%s", err.msg);
    for (int i = 0; i < 8; i++) {
        expect_numbers(100 * i, 100 * i + 99);
        expect(100 * i + 99, -5, PL_REWARD_FAILED);
    }
}

Test(reward_command, a_first_sample_that_ends_the_command_is_found_too)
{
    start(60);
    submit(0, "crash");
    submit_numbers(1, 100);
    cr_assert_eq(finish(), PL_OK, "%s", err.msg);
    expect(0, -5, PL_REWARD_FAILED);
    expect_numbers(1, 100);
}

Test(reward_command, a_kill_from_outside_blames_no_sample)
{
    start(60);
    submit(0, "1");
    cr_assert_eq(finish(), PL_OK, "%s", err.msg); /* the command works, so a death would blame */
    submit(1, "killed-once");
    cr_assert_eq(finish(), PL_OK, "%s", err.msg);
    expect(1, 1, PL_REWARD_OK);
    cr_assert_eq(stats().n_retries, 0);
    cr_assert_eq(stats().n_starts, 2);
}

static pid_t pid_of_command(void)
{
    char path[96];
    char *text = NULL;
    size_t n;

    (void)snprintf(path, sizeof path, "%s/pid", dir);
    cr_assert_eq(pl_file_read(&text, &n, path, 64, &err), PL_OK, "%s", err.msg);
    const long pid = strtol(text, NULL, 10);
    free(text);
    cr_assert_gt(pid, 1);
    return (pid_t)pid;
}

Test(reward_command, kills_in_the_middle_of_a_batch_lose_and_double_nothing)
{
    int n_kills = 0;

    start(60);
    submit_numbers(0, MANY);
    while (pl_rewarder_pending(rewarder) > 0) {
        cr_assert_eq(pl_rewarder_poll(rewarder, 1000, take, NULL, &err), PL_OK, "%s", err.msg);
        if (n_delivered > 400 * (n_kills + 1) && n_kills < 4) {
            cr_assert_eq(kill(pid_of_command(), SIGKILL), 0);
            n_kills++;
        }
    }
    expect_numbers(0, MANY);
    cr_assert_eq(n_delivered, MANY);
    cr_assert_eq(n_kills, 4);
    cr_assert_eq(stats().n_starts, 5);
    cr_assert_eq(stats().n_retries, 0);
}

Test(reward_command, a_command_that_cannot_live_is_an_error_with_its_last_words)
{
    start_command("echo oops >&2; exit 7", 60, 4096, NULL);
    submit_numbers(0, 100);
    cr_assert_eq(finish(), PL_E_PEER);
    cr_assert_eq(err.code, PL_E_PEER);
    cr_assert_not_null(strstr(err.msg, "'echo oops >&2; exit 7'"), "%s", err.msg);
    cr_assert_not_null(strstr(err.msg, "exited with status 7"), "%s", err.msg);
    cr_assert_not_null(strstr(err.msg, "'oops'"), "%s", err.msg);
    cr_assert_eq(stats().n_starts, 6);
    cr_assert_eq(n_delivered, 0);
    cr_assert_eq(finish(), PL_E_PEER, "it stays so");
    pl_rewarder_clear(rewarder);
    cr_assert_eq(pl_rewarder_pending(rewarder), 0);
    cr_assert_eq(finish(), PL_OK);
}

/* The request is longer than a pipe, so that the end of its reader is met while writing. */
Test(reward_command, a_command_that_closes_its_input_does_not_kill_us_by_sigpipe)
{
    static char text[300000];

    memset(text, 'a', sizeof text - 1);
    start_command("exec <&-; sleep 1000", 60, 4096, NULL);
    submit(0, text);
    cr_assert_eq(finish(), PL_E_PEER);
    cr_assert_not_null(strstr(err.msg, "closed its standard input"), "%s", err.msg);
}

Test(reward_command, a_command_that_closes_its_output_is_an_error)
{
    start_command("exec >&-; sleep 1000", 60, 4096, NULL);
    submit(0, "1");
    cr_assert_eq(finish(), PL_E_PEER);
    cr_assert_not_null(strstr(err.msg, "closed its standard output"), "%s", err.msg);
}

/* ---- what the child may do ---- */

static float score_of(const char *word)
{
    submit(0, word);
    n_seen[0] = 0;
    cr_assert_eq(finish(), PL_OK, "%s", err.msg);
    cr_assert_eq(n_seen[0], 1);
    cr_assert_eq(marks[0], PL_REWARD_OK, "%s", word);
    return scores[0];
}

Test(reward_command, the_child_has_its_limits_and_none_of_our_files)
{
    const struct rlimit no_limit = {RLIM_INFINITY, RLIM_INFINITY};

    (void)setrlimit(RLIMIT_CORE, &no_limit); /* so that there is something to lower */
    cr_assert_eq(dup2(1, 77), 77);
    start_command(command, 60, 512, NULL);
    cr_assert_eq(score_of("limit-v"), 512 * 1024);
    cr_assert_eq(score_of("limit-c"), 0);
    cr_assert_leq(score_of("limit-n"), 256);
    cr_assert_eq(score_of("has-fd-77"), 0);
}

Test(reward_command, without_a_memory_limit_there_is_none)
{
    start_command(command, 60, 0, NULL);
    cr_assert_eq(score_of("limit-v"), -1);
}

Test(reward_command, the_child_of_a_pinned_thread_has_all_cpus_and_plain_signals)
{
    cpu_set_t before, one;
    sigset_t blocked;
    int cpu = 0;

    cr_assert_eq(sched_getaffinity(0, sizeof before, &before), 0);
    while (!CPU_ISSET(cpu, &before))
        cpu++;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    cr_assert_eq(sched_setaffinity(0, sizeof one, &one), 0);
    (void)sigemptyset(&blocked);
    (void)sigaddset(&blocked, SIGTERM);
    cr_assert_eq(sigprocmask(SIG_BLOCK, &blocked, NULL), 0);
    cr_assert_neq(signal(SIGHUP, SIG_IGN), SIG_ERR);
    start(60);
    cr_assert_geq(score_of("cpus"), CPU_COUNT(&before));
    cr_assert_eq(score_of("signals"), 0);
}

/* The process that it leaves behind holds a fifo open; when it is gone the fifo is at its end. */
Test(reward_command, free_kills_what_the_command_forked)
{
    char path[96], byte;

    (void)snprintf(path, sizeof path, "%s/fifo", dir);
    cr_assert_eq(mkfifo(path, 0600), 0);
    const int fd = open(path, O_RDONLY | O_NONBLOCK);
    cr_assert_geq(fd, 0);
    start(60);
    submit(0, "fork");
    cr_assert_eq(finish(), PL_OK, "%s", err.msg);
    struct pollfd p = {fd, POLLIN, 0};
    for (int i = 0; i < 500 && read(fd, &byte, 1) == 0; i++)
        (void)poll(NULL, 0, 10); /* until the fork has opened it */
    cr_assert_eq(read(fd, &byte, 1), -1, "nobody has opened the fifo");
    pl_rewarder_free(rewarder);
    rewarder = NULL;
    cr_assert_eq(poll(&p, 1, 10000), 1);
    cr_assert_eq(read(fd, &byte, 1), 0);
}

Test(reward_command, its_stderr_reaches_the_log_escaped_and_bounded)
{
    char path[96];
    char *text = NULL;
    size_t n, n_lines = 0;

    (void)snprintf(path, sizeof path, "%s/log", dir);
    const int fd = open(path, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
    const pl_log log = {PL_LOG_WARN, fd, 0};
    start_command(command, 60, 4096, &log);
    submit(0, "stderr");
    cr_assert_eq(finish(), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_file_read(&text, &n, path, 1 << 20, &err), PL_OK, "%s", err.msg);
    for (size_t i = 0; i < n; i++)
        n_lines += text[i] == '\n';
    cr_assert_not_null(strstr(text, "stderr: \\x1b[31mred\n"), "%s", text);
    cr_assert_eq(n_lines, 3, "%s", text);
    free(text);
    pl_rewarder_settle(rewarder);
    pl_rewarder_settle(rewarder); /* it is said once */
    cr_assert_eq(pl_file_read(&text, &n, path, 1 << 20, &err), PL_OK, "%s", err.msg);
    cr_assert_not_null(
        strstr(text, " more lines on its stderr, the last one: stderr: "), "%s", text);
    for (size_t i = 0; i < n; i++)
        n_lines += text[i] == '\n';
    cr_assert_eq(n_lines, 3 + 4, "%s", text);
    free(text);
    (void)close(fd);
}

Test(reward_command, what_is_awaited_has_words)
{
    char text[160];

    start(60);
    cr_assert_eq(pl_rewarder_describe(rewarder, text, sizeof text), 0);
    submit(7, "hang");
    cr_assert_eq(pl_rewarder_poll(rewarder, 100, take, NULL, &err), PL_OK);
    cr_assert_eq(pl_rewarder_describe(rewarder, text, sizeof text), 1);
    cr_assert_eq(strncmp(text, "1 scores of reward.command (process ", 36), 0, "%s", text);
    cr_assert_not_null(strstr(text, "), sample 7 since "), "%s", text);
}

/* ---- the caller's side ---- */

Test(reward_command, after_clear_no_late_reply_counts)
{
    start(60);
    submit_numbers(0, 5);
    submit(5, "hang");
    submit_numbers(6, 200);
    while (n_delivered < 5)
        cr_assert_eq(pl_rewarder_poll(rewarder, 1000, take, NULL, &err), PL_OK, "%s", err.msg);
    pl_rewarder_clear(rewarder);
    cr_assert_eq(pl_rewarder_pending(rewarder), 0);
    memset(n_seen, 0, sizeof n_seen);
    submit_numbers(0, 100);
    cr_assert_eq(finish(), PL_OK, "%s", err.msg);
    expect_numbers(0, 100);
    cr_assert_eq(n_delivered, 105);
}

static void submit_next(void *ctx, int64_t id, float score, pl_reward_mark mark)
{
    take(ctx, id, score, mark);
    if (id + 1 < 50)
        submit_numbers((int)id + 1, (int)id + 2);
    else
        pl_rewarder_clear(rewarder);
}

Test(reward_command, the_callback_may_submit_and_clear)
{
    start(60);
    submit_numbers(0, 1);
    while (pl_rewarder_pending(rewarder) > 0)
        cr_assert_eq(
            pl_rewarder_poll(rewarder, 1000, submit_next, NULL, &err), PL_OK, "%s", err.msg);
    expect_numbers(0, 50);
}

/* As in a loop that has sockets of its own: never a wait inside the rewarder. */
Test(reward_command, a_caller_may_wait_by_itself)
{
    struct pollfd fds[PL_REWARDER_FDS];

    start(60);
    cr_assert_eq(pl_rewarder_wait_ms(rewarder), -1);
    cr_assert_eq(pl_rewarder_fds(rewarder, fds), 0);
    submit_numbers(0, 300);
    cr_assert_eq(pl_rewarder_wait_ms(rewarder), 0);
    for (int i = 0; i < 100000 && pl_rewarder_pending(rewarder) > 0; i++) {
        const int n = pl_rewarder_fds(rewarder, fds);
        (void)poll(fds, (nfds_t)n, pl_rewarder_wait_ms(rewarder));
        cr_assert_eq(pl_rewarder_poll(rewarder, 0, take, NULL, &err), PL_OK, "%s", err.msg);
    }
    expect_numbers(0, 300);
    cr_assert_eq(pl_rewarder_wait_ms(rewarder), -1);
}

Test(reward_command, options_that_cannot_be_are_refused)
{
    pl_rewarder_options o = {.command = "", .timeout_s = 1};

    cr_assert_eq(pl_rewarder_new(&rewarder, &o, &err), PL_E_CONFIG);
    o.command = "cat";
    o.timeout_s = NAN;
    cr_assert_eq(pl_rewarder_new(&rewarder, &o, &err), PL_E_CONFIG);
    cr_assert_null(rewarder);
}
