/* Claims: what is written is read; a reader beside a writer never sees a mixture, whatever ends the
 * writer; a file that is not ours, or was made to harm, is refused or made harmless; the JSON form
 * reads back.
 *
 * How: every field of a written snapshot is a function of one number, so a mixture of two shows. */
#define _GNU_SOURCE
#include "core/file.h"
#include "monitor/monitor.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char dir[64], path[96];

static void make_dir(void)
{
    snprintf(dir, sizeof dir, "/tmp/pl-snapshot-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/snapshot", dir);
}

static void remove_dir(void)
{
    cr_assert_eq(pl_dir_remove(dir, NULL), PL_OK);
}

TestSuite(snapshot, .init = make_dir, .fini = remove_dir);

static void fill(pl_snapshot *s, uint32_t k)
{
    memset(s, 0, sizeof *s);
    snprintf(s->run, sizeof s->run, "run %u", k);
    s->phase = PL_PHASE_ROLLOUT;
    s->pid = s->n_samples = s->n_done = s->policy_version = k;
    s->started_ms = s->updated_ms = s->phase_ms = k;
    s->step = s->total_steps = k;
    s->batch = s->session = s->n_tokens = s->n_leased_again = k;
    s->rate = s->eta_s = k;
    s->n_workers = PL_SNAPSHOT_WORKERS;
    for (int i = 0; i < PL_SNAPSHOT_LENGTHS; i++)
        s->lengths[i] = s->running_lengths[i] = k;
    snprintf(s->awaited, sizeof s->awaited, "awaited %u", k);
    for (int i = 0; i < PL_SNAPSHOT_WORKERS; i++) {
        pl_snapshot_worker *w = &s->workers[i];
        snprintf(w->name, sizeof w->name, "worker-%u", k);
        w->state = (uint8_t)(k % (PL_WORKER_LOST + 1));
        memset(w->strip, (int)(k % (PL_WORKER_LOST + 2)), sizeof w->strip);
        w->pid = w->n_running = w->n_held = w->policy_version = k;
        w->rate = (float)(k & 0xffff);
    }
}

static void write_one(const pl_snapshot *s)
{
    pl_snapshot_file *f = NULL;
    pl_error err = {0};

    cr_assert_eq(pl_snapshot_open(&f, dir, &err), PL_OK, "%s", err.msg);
    pl_snapshot_write(f, s);
    pl_snapshot_close(f);
}

static pl_status read_one(pl_snapshot *s, pl_error *err)
{
    *err = (pl_error){0};
    return pl_snapshot_read(dir, s, err);
}

Test(snapshot, is_read_as_it_was_written_and_counts_on_after_a_restart)
{
    static pl_snapshot a, b;
    pl_error err;

    cr_assert_eq(read_one(&b, &err), PL_E_NOENT);
    for (uint32_t k = 1; k < 6; k++) { /* a new writer each time: the newest counts */
        fill(&a, k);
        write_one(&a);
        cr_assert_eq(read_one(&b, &err), PL_OK, "%s", err.msg);
        cr_assert_eq(memcmp(&a, &b, sizeof a), 0);
    }
}

Test(snapshot, is_never_seen_half_written_even_when_its_writer_is_killed)
{
    static pl_snapshot a, b;
    pl_error err;
    int n_read = 0;

    for (int round = 0; round < 4; round++) {
        fill(&a, 1);
        write_one(&a);
        const pid_t child = fork();
        if (child == 0) {
            pl_snapshot_file *f = NULL;
            (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* when a claim fails */
            if (pl_snapshot_open(&f, dir, NULL) != PL_OK)
                _exit(1);
            for (uint32_t k = 2;; k++) {
                fill(&a, k & 0x3fffffff);
                pl_snapshot_write(f, &a);
            }
        }
        cr_assert_gt(child, 0);
        uint32_t before = 0, moved = 0;
        const time_t late = time(NULL) + 60; /* a writer that never gets a processor */
        for (int i = 0; (i < 300 || moved < 3) && time(NULL) < late; i++) {
            const pl_status st = read_one(&b, &err);
            if (st == PL_E_TIMEOUT)
                continue; /* overtaken in every try: it says so */
            cr_assert_eq(st, PL_OK, "%s", err.msg);
            fill(&a, b.pid);
            cr_assert_eq(memcmp(&a, &b, sizeof a), 0, "a mixture at %u", b.pid);
            moved += b.pid != before;
            before = b.pid;
            n_read++;
        }
        cr_assert_geq(moved, 3, "the writer stood still");
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        cr_assert_eq(read_one(&b, &err), PL_OK, "after a kill: %s", err.msg);
        fill(&a, b.pid);
        cr_assert_eq(memcmp(&a, &b, sizeof a), 0);
    }
    cr_assert_gt(n_read, 100);
}

/* Change one byte of the file. */
static void flip(off_t at)
{
    unsigned char byte;
    const int fd = open(path, O_RDWR);
    cr_assert_geq(fd, 0);
    cr_assert_eq(pread(fd, &byte, 1, at), 1);
    byte ^= 0x10;
    cr_assert_eq(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

Test(snapshot, of_a_damaged_place_is_not_read_the_one_before_is)
{
    static pl_snapshot a, b;
    pl_snapshot_file *f = NULL;
    pl_error err;

    cr_assert_eq(pl_snapshot_open(&f, dir, &err), PL_OK);
    for (uint32_t k = 1; k <= 2; k++) { /* 1 goes to the second place, 2 to the first */
        fill(&a, k);
        pl_snapshot_write(f, &a);
    }
    pl_snapshot_close(f);
    flip(16 + 16 + 5000);
    cr_assert_eq(read_one(&b, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(b.pid, 1);
    flip(16 + 16 + (off_t)sizeof(pl_snapshot) + 16 + 5000);
    cr_assert_eq(read_one(&b, &err), PL_E_TIMEOUT);
    cr_assert_not_null(strstr(err.msg, "no whole snapshot"));
}

Test(snapshot, that_is_no_ordinary_file_is_refused_by_both_sides)
{
    static pl_snapshot b;
    char target[96];
    pl_snapshot_file *f = NULL;
    pl_error err;

    snprintf(target, sizeof target, "%s/precious", dir);
    cr_assert_eq(pl_file_write(target, "precious", 8, NULL), PL_OK);
    cr_assert_eq(symlink(target, path), 0);
    cr_assert_eq(pl_snapshot_open(&f, dir, &err), PL_E_FORMAT);
    cr_assert_eq(read_one(&b, &err), PL_E_FORMAT);
    unlink(path);
    cr_assert_eq(mkfifo(path, 0600), 0); /* and nobody waits for its other end */
    cr_assert_eq(pl_snapshot_open(&f, dir, &err), PL_E_FORMAT);
    cr_assert_eq(read_one(&b, &err), PL_E_FORMAT);
    unlink(path);
    cr_assert_eq(mkdir(path, 0700), 0);
    cr_assert_eq(pl_snapshot_open(&f, dir, &err), PL_E_FORMAT);
    cr_assert_eq(read_one(&b, &err), PL_E_FORMAT);
    cr_assert_null(f);
    char *text = NULL;
    size_t n = 0;
    cr_assert_eq(pl_file_read(&text, &n, target, 64, NULL), PL_OK);
    cr_assert_str_eq(text, "precious");
    free(text);
}

Test(snapshot, of_any_length_is_no_harm_and_a_writer_outlives_a_cut)
{
    static pl_snapshot a, b;
    pl_snapshot_file *f = NULL;
    pl_error err;

    fill(&a, 7);
    write_one(&a);
    for (off_t n = 0; n < 90000; n += n < 17 ? 1 : 24989) {
        write_one(&a);
        cr_assert_eq(truncate(path, n), 0);
        const pl_status st = read_one(&b, &err);
        cr_assert(st == PL_OK || st == PL_E_FORMAT || st == PL_E_TIMEOUT, "cut at %ld", (long)n);
        if (st == PL_OK)
            cr_assert_eq(memcmp(&a, &b, sizeof a), 0);
    }
    cr_assert_eq(pl_snapshot_open(&f, dir, &err), PL_OK);
    cr_assert_eq(truncate(path, 0), 0); /* a mapping would end this process here */
    pl_snapshot_write(f, &a);
    pl_snapshot_write(f, &a);
    pl_snapshot_close(f);
    cr_assert_eq(pl_file_write(path, "PLSNAP\r\n of another kind", 24, NULL), PL_OK);
    cr_assert_eq(read_one(&b, &err), PL_E_FORMAT);
    write_one(&a); /* the run goes on with a new one */
    cr_assert_eq(read_one(&b, &err), PL_OK);
}

Test(snapshot, with_fields_out_of_range_is_refused_or_made_harmless)
{
    static pl_snapshot a, b;
    pl_error err;

    fill(&a, 3);
    a.phase = PL_PHASES;
    write_one(&a);
    cr_assert_eq(read_one(&b, &err), PL_E_FORMAT);
    fill(&a, 3);
    a.workers[5].state = 200;
    write_one(&a);
    cr_assert_eq(read_one(&b, &err), PL_E_FORMAT);
    fill(&a, 3);
    a.workers[5].strip[17] = 99;
    write_one(&a);
    cr_assert_eq(read_one(&b, &err), PL_E_FORMAT);
    fill(&a, 3);
    a.updated_ms = INT64_MIN;
    write_one(&a);
    cr_assert_eq(read_one(&b, &err), PL_E_FORMAT);

    fill(&a, 3);
    a.rate = (double)NAN;
    a.eta_s = -(double)INFINITY;
    a.workers[0].rate = -INFINITY;
    memset(a.run, 'r', sizeof a.run); /* no NUL anywhere */
    memset(a.workers[1].name, '\xff', sizeof a.workers[1].name);
    memcpy(a.awaited, "\x1b]0;owned\x07 caf\xc3\xa9 \xe2\x80\xae\xc3", 22);
    write_one(&a);
    cr_assert_eq(read_one(&b, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(b.rate, 0);
    cr_assert(isnan(b.eta_s));
    cr_assert_eq(b.workers[0].rate, 0);
    cr_assert_eq(strlen(b.run), sizeof b.run - 1);
    cr_assert_eq(strspn(b.workers[1].name, "?"), sizeof b.workers[1].name - 1);
    cr_assert_eq(strncmp(b.awaited, "?]0;owned? caf\xc3\xa9 ??", 20), 0, "%s", b.awaited);
}

Test(snapshot, as_json_reads_back)
{
    static pl_snapshot a, b;
    pl_json j = {0};
    pl_error err = {0};

    fill(&a, 11);
    a.eta_s = (double)NAN;
    a.policy_version = UINT32_MAX;
    a.n_workers = 3;
    memset(&a.workers[3], 0, (PL_SNAPSHOT_WORKERS - 3) * sizeof a.workers[0]);
    snprintf(a.workers[2].name, sizeof a.workers[2].name, "\"<b>\\ \xc3\xa9");
    pl_snapshot_json(&a, &j);
    cr_assert_null(memchr(j.data, '\n', j.n), "one line");
    cr_assert_eq(pl_snapshot_parse(j.data, j.n, &b, &err), PL_OK, "%s", err.msg);
    cr_assert(isnan(b.eta_s));
    b.eta_s = a.eta_s;
    cr_assert_eq(memcmp(&a, &b, sizeof a), 0);
    /* Cut anywhere it is refused, and so is another object. */
    for (size_t n = 0; n < j.n; n += 37)
        cr_assert_eq(pl_snapshot_parse(j.data, n, &b, &err), PL_E_FORMAT, "cut at %zu", n);
    pl_json_done(&j);
    cr_assert_eq(pl_snapshot_parse("{\"a\":1}", 7, &b, &err), PL_E_FORMAT);
    static const char bad[] =
        "{\"phase\":7,\"workers\":[1,{\"state\":\"?\",\"strip\":\"\xff\\u0000zB\","
        "\"rate\":-1e999}],\"lengths\":[\"x\",{}],\"step\":-5,"
        "\"awaited\":\"\\u001b[2J\"}";
    cr_assert_eq(pl_snapshot_parse(bad, sizeof bad - 1, &b, &err), PL_OK);
    cr_assert_eq(b.step, 0);
    cr_assert_eq(b.workers[1].state, PL_WORKER_LOST);
    cr_assert_eq(b.workers[1].rate, 0);
    cr_assert_str_eq(b.awaited, "?[2J");
}

Test(snapshot, buckets_hold_the_lengths_that_they_name)
{
    cr_assert_eq(pl_snapshot_bucket(-5), 0);
    for (int n = 0; n < 40000; n++) {
        const int b = pl_snapshot_bucket(n);
        cr_assert(b >= 0 && b < PL_SNAPSHOT_LENGTHS);
        cr_assert_leq(pl_snapshot_length(b), n);
        if (b + 1 < PL_SNAPSHOT_LENGTHS)
            cr_assert_gt(pl_snapshot_length(b + 1), n);
    }
    cr_assert_eq(pl_snapshot_bucket(1 << 30), PL_SNAPSHOT_LENGTHS - 1);
}
