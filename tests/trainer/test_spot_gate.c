/* tests/trainer/test_spot_gate.c - what is published, and what is taken back.
 *
 * Claims: a drafter that replays better than none, or than the one in service, is published,
 * durable and readable; a worse one is not; with too little held out there is no gate; a gate that
 * is stopped goes on where it was; a state begins in sessions that are all stopped at once; a
 * version whose parent replays better is taken back; a full disk stops publishing and nothing else;
 * a checkpoint resumes to the same bits and says when it cannot be written; the vocabulary follows
 * the text. */
#include "tests/trainer/spot_bed.h"

#include "core/file.h"
#include "model/json_file.h"

#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static json_t *read_gate(const spot_bed *b, uint32_t version)
{
    char dir[128];
    json_t *root = NULL;

    snprintf(dir, sizeof dir, "%s/versions/%u", b->drafter, (unsigned)version);
    cr_assert_eq(json_file_read(&root, dir, "gate.json", 4096, NULL), PL_OK);
    return root;
}

/* Of a published drafter, read anew, on the last gate's windows. */
static double replay_tau(const pl_spot *s, const char *dir)
{
    const pl_replay_options o = {.steps = 6, .topk = 4, .verify = 16};
    const spot_batch *b = &s->gate.batch;
    pl_replay_window *rounds = calloc((size_t)b->n, sizeof *rounds);
    pl_eagle *e = NULL;
    pl_error err = {0};

    cr_assert_not_null(rounds);
    cr_assert_eq(pl_eagle_load(&e, s->target, dir, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_replay(s->target, e, b->windows, b->n, &o, NULL, NULL, rounds, &err), PL_OK);
    const double tau = pl_replay_tau(rounds, b->n);
    pl_eagle_free(e);
    free(rounds);
    return tau;
}

static void expect_weights_of(const spot_bed *b, const pl_eagle *e, uint32_t version)
{
    char dir[128];
    pl_eagle *read = NULL;
    pl_error err = {0};

    snprintf(dir, sizeof dir, "%s/versions/%u", b->drafter, (unsigned)version);
    cr_assert_eq(pl_eagle_load(&read, b->m, dir, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_eagle_n_elements(read), pl_eagle_n_elements(e));
    cr_expect_arr_eq(pl_eagle_get_weights(e), pl_eagle_get_weights(read),
        pl_eagle_n_elements(e) * sizeof(float));
    pl_eagle_free(read);
}

Test(spot_gate, publishes_what_is_better_than_no_drafting)
{
    pl_spot_published p;
    pl_spot_stats stats;
    pl_eagle *e = NULL;
    pl_error err = {0};
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 33);
    b.o.gate_s = 0;
    pl_spot *s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 1, 1);
    cr_assert_eq(spot_bed_publish(s, 400, &p), 1);
    cr_expect_eq(p.parent, 0);
    cr_expect_gt(p.tau, 1 + p.se);
    cr_expect_eq(p.tau_parent, 1);
    cr_expect_eq(pl_eagle_load(&e, b.m, p.dir, &err), PL_OK, "%s", err.msg);
    pl_eagle_free(e);
    pl_spot_published told; /* whose lead died before it said so */
    cr_assert_eq(pl_spot_version(b.drafter, 1, &told), 1);
    cr_expect_str_eq(told.dir, p.dir);
    cr_expect_eq(told.step, p.step);
    cr_expect_float_eq(told.tau, p.tau, 1e-9);
    cr_expect_float_eq(told.tau_parent, 1, 1e-9);
    cr_expect_float_eq(told.se, p.se, 1e-9);
    json_t *root = read_gate(&b, 1);
    cr_expect_float_eq(json_number_value(json_object_get(root, "tau")), p.tau, 1e-9);
    cr_expect_eq(json_integer_value(json_object_get(root, "step")), p.step);
    json_decref(root);
    pl_spot_get_stats(s, &stats);
    cr_expect_eq(stats.n_published, 1);
    cr_expect_gt(stats.gate_s, 0);
    /* And goes on to a better one, which has the first as its parent. */
    cr_assert_eq(spot_bed_publish(s, 2000, &p), 2);
    cr_expect_eq(p.parent, 1);
    cr_expect_gt(p.tau, p.tau_parent + p.se);
    /* Drafters go round: what was judged is what was published, the parent what served. */
    cr_expect_float_eq(replay_tau(s, p.dir), p.tau, 1e-12);
    cr_assert_eq(s->gate.parent.version, 1);
    expect_weights_of(&b, s->gate.parent.e, 1);
    cr_assert_eq(spot_bed_publish(s, 4000, &p), 3);
    cr_expect_float_eq(replay_tau(s, p.dir), p.tau, 1e-12);
    expect_weights_of(&b, s->gate.parent.e, 2);
    expect_weights_of(&b, s->serving, 3);
    pl_spot_free(s);
    /* Another worker finds it. */
    s = spot_bed_spot(&b, "w1");
    cr_expect_eq(s->serving_version, 3);
    cr_expect_eq(s->serving_parent, 2);
    pl_spot_free(s);
    spot_bed_close(&b);
}

/* Version `version` of random weights, as if it had been published after `parent`. */
static void plant_bad(const spot_bed *b, uint32_t version, uint32_t parent)
{
    const pl_eagle_options o = {.n_vocab = b->o.n_vocab, .seed = 1234};
    char dir[128], path[160], note[128];
    pl_eagle *e = NULL;
    pl_error err = {0};

    snprintf(dir, sizeof dir, "%s/versions/%u", b->drafter, (unsigned)version);
    cr_assert_eq(pl_eagle_new(&e, b->m, &o, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_eagle_save(e, dir, &err), PL_OK, "%s", err.msg);
    pl_eagle_free(e);
    snprintf(path, sizeof path, "%s/gate.json", dir);
    const int n = snprintf(note, sizeof note, "{\"version\": %u, \"parent\": %u}",
        (unsigned)version, (unsigned)parent);
    cr_assert_eq(pl_file_write(path, note, (size_t)n, &err), PL_OK);
}

/* A trained drafter at dir, and a spot trainer in drafter/ that is to begin from it. */
static pl_spot *begin_from(spot_bed *b, const char *dir)
{
    pl_error err = {0};
    char other[128];

    b->o.gate_s = 0;
    pl_spot *s = spot_bed_spot(b, NULL);
    spot_bed_begin(b, s, 1, 1);
    spot_bed_work(s, 20);
    cr_assert_eq(pl_dir_make(dir, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_eagle_save(s->e, dir, &err), PL_OK, "%s", err.msg);
    pl_spot_free(s);
    snprintf(other, sizeof other, "%s.2", b->drafter);
    cr_assert_eq(pl_dir_make(other, &err), PL_OK);
    b->o.dir = other;
    b->o.init = dir;
    s = spot_bed_spot(b, NULL);
    b->o.dir = b->drafter;
    return s;
}

Test(spot_gate, without_what_the_run_began_with_trains_and_publishes_nothing)
{
    pl_spot_published p;
    pl_spot_stats stats;
    pl_error err = {0};
    char dir[128], away[128];
    int n_lost = 0;
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 33);
    snprintf(dir, sizeof dir, "%s/handed-in", b.dir);
    snprintf(away, sizeof away, "%s/away", b.dir);
    pl_spot *s = begin_from(&b, dir);
    spot_bed_begin(&b, s, 1, 1);
    spot_bed_work(s, 1);
    pl_eagle_free(s->serving); /* as after a restart: there is a state, and nothing was published */
    s->serving = NULL;
    cr_assert_eq(rename(dir, away), 0);
    for (int i = 0; i < 60; i++) {
        const pl_status st = pl_spot_work(s, NULL, NULL, &p, &err);
        cr_assert(st == PL_OK || st == PL_E_IO, "%s", err.msg);
        cr_assert_eq(p.version, 0, "it beat nothing");
        n_lost += st == PL_E_IO;
    }
    pl_spot_get_stats(s, &stats);
    cr_expect_gt(n_lost, 0);
    cr_expect_gt(stats.n_steps, 30, "%d steps", (int)stats.n_steps);
    cr_expect_eq(stats.n_gates, 0);
    cr_assert_eq(rename(away, dir), 0); /* back again */
    s->gate.check_us = 0;
    for (int i = 0; i < 60; i++)
        cr_assert_eq(pl_spot_work(s, NULL, NULL, &p, &err), PL_OK, "%s", err.msg);
    pl_spot_get_stats(s, &stats);
    cr_expect_gt(stats.n_gates, 0);
    pl_spot_free(s);
    spot_bed_close(&b);
}

static int stop_at_second(void *ctx)
{
    return ++*(int *)ctx >= 2;
}

Test(spot_gate, a_state_begins_in_sessions_that_are_all_stopped_at_once)
{
    const struct timespec rest = {.tv_nsec = 1000000};
    pl_spot_published p;
    char dir[128];
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 33);
    snprintf(dir, sizeof dir, "%s/handed-in", b.dir);
    pl_spot *s = begin_from(&b, dir);
    cr_assert_lt(strlen(s->dir), sizeof b.drafter);
    memcpy(b.drafter, s->dir, strlen(s->dir) + 1);
    plant_bad(&b, 1, 0); /* a version serves, so what init says is read for the state alone */
    cr_assert_eq(spot_versions_open(s, NULL), PL_OK);
    cr_assert_eq(s->serving_version, 1);
    for (uint64_t i = 1; s->file.fd < 0 && i < 1000; i++) {
        spot_bed_begin(&b, s, i, 1);
        int n = 0;
        cr_assert_eq(pl_spot_work(s, stop_at_second, &n, &p, NULL), PL_E_STOPPED);
        pl_spot_end(s);
        (void)nanosleep(&rest, NULL); /* others have the device; the thread goes on */
    }
    cr_expect_geq(s->file.fd, 0, "it is read again and again");
    spot_bed_begin(&b, s, 1000, 1);
    spot_bed_work(s, 2);
    cr_expect_null(s->starting.e, "what the state was made from is held");
    pl_spot_free(s);
    spot_bed_close(&b);
}

/* A state of random weights, and training that does not help. */
static void begin_anew(spot_bed *b)
{
    char path[128];

    snprintf(path, sizeof path, "%s/state", b->drafter);
    cr_assert_eq(unlink(path), 0);
    b->o.train.lr = 1e-9f;
    b->o.gate_s = 0;
}

Test(spot_gate, does_not_publish_what_is_worse)
{
    pl_spot_published p;
    pl_spot_stats stats;
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 33);
    pl_spot *s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 1, 1);
    spot_bed_work(s, 150);
    s->o.gate_s = 0;
    cr_assert_eq(spot_bed_publish(s, 400, &p), 1);
    pl_spot_free(s);
    begin_anew(&b);
    s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 2, 1);
    cr_expect_eq(spot_bed_publish(s, 200, &p), 0);
    pl_spot_get_stats(s, &stats);
    cr_expect_gt(stats.n_gates, 5);
    cr_expect_eq(s->serving_version, 1);
    pl_spot_free(s);
    spot_bed_close(&b);
}

Test(spot_gate, waits_until_enough_is_held_out)
{
    pl_spot_published p;
    pl_spot_stats stats;
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 9); /* one held-out sample: uid 8 */
    b.o.gate_s = 0;
    b.o.gate_tokens = 10;
    pl_spot *s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 1, 1);
    cr_expect_eq(spot_bed_publish(s, 20, &p), 0);
    pl_spot_get_stats(s, &stats);
    cr_expect_eq(stats.n_gates, 0);
    cr_expect_eq(stats.n_steps, 20);
    pl_spot_free(s);
    spot_bed_close(&b);
}

typedef struct stopper {
    int n, at;
} stopper;

static int stop_at(void *ctx)
{
    stopper *s = ctx;
    return ++s->n >= s->at;
}

/* A gate of several pieces, over n held-out samples, after so much work; session 1. */
static pl_spot *with_long_gate(spot_bed *b, uint32_t n, int n_work)
{
    spot_bed_open(b);
    for (uint32_t i = 1; i <= n; i++)
        spot_bed_put(b, 8 * i, 1, 4);
    spot_bed_fill(b, 1, 8);
    b->o.gate_tokens = 23 * (int)n;
    pl_spot *s = spot_bed_spot(b, NULL);
    spot_bed_begin(b, s, 1, 1);
    spot_bed_work(s, n_work);
    return s;
}

/* Sessions that are all too short for a gate; is_moving: each of another policy. */
static void stop_again_and_again(int is_moving)
{
    pl_spot_published p = {0};
    spot_bed b;
    int n_stopped = 0;

    pl_spot *s = with_long_gate(&b, 30, 100);
    s->o.gate_s = 0;
    for (uint64_t i = 2; p.version == 0 && i < 400; i++) {
        stopper stop = {0, 40}; /* a piece asks once a round */
        const uint32_t newest = is_moving ? (uint32_t)i : 1;
        pl_error err = {0};
        cr_assert_eq(pl_spot_begin(s, i, 1, b.buffers, 1, newest, &err), PL_OK, "%s", err.msg);
        pl_status st = PL_OK;
        while (st == PL_OK && p.version == 0)
            st = pl_spot_work(s, stop_at, &stop, &p, NULL);
        n_stopped += st == PL_E_STOPPED;
        pl_spot_end(s);
    }
    cr_expect_eq(p.version, 1);
    cr_expect_gt(n_stopped, 1);
    pl_spot_free(s);
    spot_bed_close(&b);
}

Test(spot_gate, goes_on_where_it_was_stopped)
{
    stop_again_and_again(0);
}

Test(spot_gate, goes_on_under_the_next_policies)
{
    stop_again_and_again(1);
}

/* Several leads in turn: what another published meanwhile is what must be beaten. */
Test(spot_gate, that_was_begun_before_another_version_served_is_dropped)
{
    pl_spot_published p = {0};
    pl_spot_stats stats;
    stopper stop = {0, 40};
    pl_error err = {0};
    spot_bed b;

    pl_spot *s = with_long_gate(&b, 30, 100);
    s->o.gate_s = 0;
    while (pl_spot_work(s, stop_at, &stop, &p, NULL) == PL_OK)
        continue;
    cr_assert(s->gate.is_on && p.version == 0, "it was stopped within its gate");
    plant_bad(&b, 1, 0);
    cr_assert_eq(pl_spot_begin(s, 3, 1, b.buffers, 1, 1, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(spot_bed_publish(s, 400, &p), 2);
    cr_expect_eq(p.parent, 1);
    cr_expect_gt(p.tau_parent, 1, "weighed against version 1, not against no drafting");
    pl_spot_get_stats(s, &stats);
    cr_expect_gt(stats.n_steps, 0, "a new gate is of a new step");
    pl_spot_free(s);
    spot_bed_close(&b);
}

/* Policies come faster than gates end: what is between them is training. */
Test(spot_gate, that_never_ends_leaves_time_to_train)
{
    pl_spot_published p = {0};
    pl_error err = {0};
    spot_record first, last;
    spot_bed b;

    pl_spot *s = with_long_gate(&b, 60, 5);
    spot_bed_hash(s, &first);
    s->o.gate_s = 0.001;
    for (uint32_t i = 2; i < 30; i++) {
        stopper stop = {0, 120};
        cr_assert_eq(pl_spot_begin(s, i, 1, b.buffers, 1, 20 * i, &err), PL_OK, "%s", err.msg);
        for (pl_status st = PL_OK; st == PL_OK;)
            st = pl_spot_work(s, stop_at, &stop, &p, NULL);
        pl_spot_end(s);
    }
    spot_bed_hash(s, &last);
    cr_expect_eq(p.version, 0);
    cr_expect_gt(
        last.step, first.step + 5, "%lld, then %lld", (long long)first.step, (long long)last.step);
    pl_spot_free(s);
    spot_bed_close(&b);
}

/* Version 1 is good, version 2 bad and in service, the candidate no help; text of uids 1 to 64. */
static pl_spot *with_bad_in_service(spot_bed *b)
{
    pl_spot_published p;

    spot_bed_open(b);
    spot_bed_fill(b, 1, 65);
    pl_spot *s = spot_bed_spot(b, NULL);
    spot_bed_begin(b, s, 1, 1);
    spot_bed_work(s, 150);
    s->o.gate_s = 0;
    cr_assert_eq(spot_bed_publish(s, 400, &p), 1);
    pl_spot_free(s);
    plant_bad(b, 2, 1);
    begin_anew(b);
    s = spot_bed_spot(b, NULL);
    s->o.train.lr = 1e-9f;
    cr_assert_eq(s->serving_version, 2);
    spot_bed_begin(b, s, 2, 1);
    spot_bed_work(s, 3);
    return s;
}

/* Text that `version` served from row `from` on. */
static void put_served(spot_bed *b, uint32_t begin, uint32_t end, uint32_t version, int from)
{
    b->served_by = version;
    b->served_from = from;
    spot_bed_fill(b, begin, end);
}

Test(spot_gate, takes_back_a_version_whose_parent_replays_better_what_it_served)
{
    pl_spot_published p;
    pl_spot_stats stats;
    spot_bed b;

    pl_spot *s = with_bad_in_service(&b);
    put_served(&b, 1, 8, 2, 20); /* of these none is held out */
    spot_bed_work(s, 2);
    cr_assert_eq(spot_bed_publish(s, 100, &p), 3);
    cr_expect(p.is_rollback);
    cr_expect_gt(p.tau, p.tau_parent);
    pl_spot_get_stats(s, &stats);
    cr_expect_eq(stats.n_rollbacks, 1);
    cr_expect_leq(s->gate.served.rounds[0].n_tokens, SPOT_ROWS - 20, "no other rounds");
    cr_expect_leq(s->gate.parent.rounds[0].n_tokens, SPOT_ROWS - 20);
    pl_spot_free(s);
    /* The weights are those of version 1. */
    char one[160], three[160];
    pl_file f = {0}, g = {0};
    snprintf(one, sizeof one, "%s/versions/1/model.safetensors", b.drafter);
    snprintf(three, sizeof three, "%s/versions/3/model.safetensors", b.drafter);
    cr_assert_eq(pl_file_open(&f, one, NULL), PL_OK);
    cr_assert_eq(pl_file_open(&g, three, NULL), PL_OK);
    cr_assert_eq(f.size, g.size);
    cr_expect_eq(memcmp(f.data, g.data, f.size), 0);
    pl_file_close(&f);
    pl_file_close(&g);
    spot_bed_close(&b);
}

Test(spot_gate, takes_nothing_back_for_rounds_that_others_served)
{
    static const struct {
        uint32_t end, version; /* of text that was put */
        int from;
    } cases[] = {{8, 0, 0}, /* by nobody */
        {8, 1, 0}, {8, 3, 0},
        {8, 2, SPOT_ROWS - 8}, /* fewer tokens than a gate needs, though of enough rows */
        {2, 2, 0}};            /* fewer samples */
    spot_bed b;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        pl_spot_published p;
        pl_spot *s = with_bad_in_service(&b);
        put_served(&b, 1, cases[i].end, cases[i].version, cases[i].from);
        const uint32_t v = spot_bed_publish(s, 60, &p);
        cr_expect(v == 0 || !p.is_rollback, "case %zu: version %u of %u", i, (unsigned)v,
            (unsigned)p.parent);
        pl_spot_free(s);
        spot_bed_close(&b);
    }
}

/* A version is weighed once on the text of a policy, and stays when it is no worse. */
Test(spot_gate, weighs_a_version_on_what_it_served_once_a_policy)
{
    pl_spot_published p;
    pl_error err = {0};
    spot_bed b;

    pl_spot *s = with_bad_in_service(&b);
    put_served(&b, 1, 8, 2, 0);
    s->serving_parent = 2; /* its own: no better */
    s->gate.back_version = 0;
    for (int i = 0; i < 60 && s->gate.back_version == 0; i++)
        cr_assert_eq(pl_spot_work(s, NULL, NULL, &p, &err), PL_OK, "%s", err.msg);
    cr_expect_eq(s->gate.back_version, 2);
    cr_expect_eq(s->gate.back_newest, 1);
    const int64_t n_done = s->stats.n_gates;
    for (int i = 0; i < 60; i++) {
        cr_assert_eq(pl_spot_work(s, NULL, NULL, &p, &err), PL_OK, "%s", err.msg);
        cr_expect(!s->gate.is_back && !p.is_rollback);
    }
    cr_expect_gt(s->stats.n_gates, n_done, "candidates go on being weighed");
    cr_assert_eq(pl_spot_begin(s, 3, 1, b.buffers, 1, 2, &err), PL_OK, "%s", err.msg);
    int n_back = 0;
    for (int i = 0; i < 60; i++) {
        cr_assert_eq(pl_spot_work(s, NULL, NULL, &p, &err), PL_OK, "%s", err.msg);
        n_back += s->gate.is_back;
    }
    cr_expect_gt(n_back, 0, "another policy");
    pl_spot_free(s);
    spot_bed_close(&b);
}

Test(spot_gate, keeps_no_more_versions_than_asked)
{
    pl_spot_published p;
    char path[128];
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 33);
    b.o.max_versions = 2;
    for (uint32_t v = 1; v <= 4; v++)
        plant_bad(&b, v, v - 1);
    pl_spot *s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 1, 1);
    spot_bed_work(s, 120);
    s->o.gate_s = 0;
    cr_assert_eq(spot_bed_publish(s, 400, &p), 5);
    for (uint32_t v = 1; v <= 5; v++) {
        snprintf(path, sizeof path, "%s/versions/%u", b.drafter, (unsigned)v);
        cr_expect_eq(pl_path_exists(path), v >= 4, "version %u", (unsigned)v);
    }
    pl_spot_free(s);
    spot_bed_close(&b);
}

/* No file may grow beyond n bytes. */
static void limit_files(rlim_t n)
{
    struct rlimit r;

    cr_assert_eq(getrlimit(RLIMIT_FSIZE, &r), 0);
    r.rlim_cur = n;
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &r), 0);
    cr_assert_neq(signal(SIGXFSZ, SIG_IGN), SIG_ERR);
}

Test(spot_gate, a_full_disk_stops_publishing_and_checkpoints_but_not_training)
{
    pl_spot_published p;
    spot_record r;
    pl_error err = {0};
    char path[128];
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_fill(&b, 1, 33);
    pl_spot *s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 1, 1);
    spot_bed_work(s, 120);
    limit_files(20000);
    snprintf(path, sizeof path, "%s/checkpoint", b.dir);
    cr_expect_eq(pl_spot_checkpoint(s, path, &err), PL_OK, "%s", err.msg);
    spot_bed_work(s, 1);
    cr_expect_eq(pl_spot_checkpoint_wait(s, &err), PL_E_IO);
    cr_expect(strstr(err.msg, path) != NULL, "%s", err.msg);
    cr_expect(!pl_path_exists(path));
    s->o.gate_s = 0;
    pl_status st = PL_OK;
    for (int i = 0; i < 200 && !s->publish.job.is_running; i++)
        cr_assert_eq(pl_spot_work(s, NULL, NULL, &p, &err), PL_OK, "%s", err.msg);
    cr_assert(s->publish.job.is_running);
    st = spot_publish_poll(s, 1, &p, &err);
    cr_expect_eq(st, PL_E_IO);
    cr_expect(strstr(err.msg, "was not published") != NULL, "%s", err.msg);
    s->o.gate_s = 1e9;
    spot_bed_hash(s, &r);
    const int64_t step = r.step;
    spot_bed_work(s, 2);
    spot_bed_hash(s, &r);
    cr_expect_eq(r.step, step + 2);
    limit_files(RLIM_INFINITY);
    s->o.gate_s = 0;
    cr_expect_eq(spot_bed_publish(s, 200, &p), 1);
    pl_spot_free(s);
    spot_bed_close(&b);
}

/* One window, so that every step sees the same. */
static pl_spot *spot_of_one(spot_bed *b, const char *dir, const char *init)
{
    b->o.dir = dir;
    b->o.init = init;
    b->o.windows_a_step = 1;
    b->o.train.ema = 0.9f;
    pl_spot *s = spot_bed_spot(b, NULL);
    spot_bed_begin(b, s, 1, 1);
    return s;
}

Test(spot_gate, a_checkpoint_resumes_to_the_same_bits)
{
    char path[128], other[128];
    spot_record r, again;
    pl_error err = {0};
    spot_bed b;

    spot_bed_open(&b);
    spot_bed_put(&b, 1, 1, 4);
    snprintf(path, sizeof path, "%s/checkpoint", b.dir);
    snprintf(other, sizeof other, "%s/other", b.dir);
    pl_spot *s = spot_of_one(&b, b.drafter, "random");
    cr_expect_eq(pl_spot_checkpoint(s, path, &err), PL_E_NOENT);
    spot_bed_work(s, 3);
    cr_assert_eq(pl_spot_checkpoint(s, path, &err), PL_OK, "%s", err.msg);
    spot_bed_work(s, 3); /* the checkpoint is of step 3 all the same */
    cr_assert_eq(pl_spot_checkpoint_wait(s, &err), PL_OK, "%s", err.msg);
    const uint64_t hash = spot_bed_hash(s, &r);
    cr_expect_eq(r.step, 6);
    pl_spot_free(s);

    s = spot_of_one(&b, other, path);
    spot_bed_work(s, 3);
    cr_expect_eq(spot_bed_hash(s, &again), hash);
    cr_expect_eq(again.step, 6);
    pl_spot_free(s);
    /* A damaged one is refused. */
    char *text = NULL;
    size_t n;
    cr_assert_eq(pl_file_read(&text, &n, path, 1 << 26, &err), PL_OK);
    text[n / 2] ^= 1;
    cr_assert_eq(pl_file_write(path, text, n, &err), PL_OK);
    free(text);
    cr_assert_eq(pl_dir_remove(other, &err), PL_OK);
    s = spot_of_one(&b, other, path);
    pl_spot_published p;
    cr_expect_eq(pl_spot_work(s, NULL, NULL, &p, &err), PL_E_FORMAT);
    cr_expect(strstr(err.msg, "hash") != NULL, "%s", err.msg);
    pl_spot_free(s);
    spot_bed_close(&b);
}

Test(spot_gate, the_vocabulary_is_counted_and_follows_the_text)
{
    spot_record r;
    spot_bed b;

    spot_bed_open(&b);
    b.o.n_vocab = 40;
    b.o.windows.max_bytes = 8 << 20;
    spot_bed_fill(&b, 1, 70);
    pl_spot *s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 1, 1);
    spot_bed_work(s, 5);
    const int32_t *vocab = pl_eagle_vocab(s->e);
    for (int i = 0; i < 40; i++) /* the text has tokens 0 .. 31 */
        cr_assert_eq(vocab[i], i);
    spot_bed_hash(s, &r);
    const int half = spot_valid(&s->file, &r);
    const pl_eagle_state old = spot_half(&s->file, half, r.step);
    const size_t n = s->file.head.n_elements;
    float *weights = malloc(n * sizeof *weights), *m = malloc(n * sizeof *m);
    cr_assert(weights && m);
    memcpy(weights, old.weights, n * sizeof *weights);
    memcpy(m, old.m, n * sizeof *m);

    /* A text of other tokens: ids 8 .. 39 of the vocabulary are of no use. */
    int32_t ids[40];
    for (int i = 0; i < 40; i++)
        ids[i] = i < 8 ? i : 100 + i;
    cr_assert_eq(spot_vocab_change(s, ids, NULL), PL_OK);
    const int now = spot_valid(&s->file, &r);
    const pl_eagle_state new = spot_half(&s->file, now, r.step);
    const size_t head = n - 40 * 40;
    cr_expect_eq(memcmp(pl_eagle_vocab(s->e), ids, sizeof ids), 0);
    cr_expect_eq(memcmp(new.weights, weights, (head + 8 * 40) * sizeof(float)), 0);
    cr_expect_eq(memcmp(new.m, m, (head + 8 * 40) * sizeof(float)), 0);
    for (int i = 8; i < 40; i++)
        for (int c = 0; c < 40; c++) {
            const size_t at = head + (size_t)(i * 40 + c);
            cr_assert_float_eq(new.weights[at], b.masters[(size_t)ids[i] * 40 + (size_t)c], 4e-3);
            cr_assert_eq(new.m[at], 0);
        }
    cr_expect_eq(r.step, 5, "it is no step");
    spot_bed_work(s, 2);
    free(weights);
    free(m);
    pl_spot_free(s);
    spot_bed_close(&b);
}

Test(spot_gate, a_new_policy_that_speaks_differently_gets_another_vocabulary)
{
    pl_error err = {0};
    spot_bed b;

    spot_bed_open(&b);
    b.o.n_vocab = 40;
    b.o.windows.max_bytes = 8 << 20;
    spot_bed_fill(&b, 1, 90);
    pl_spot *s = spot_bed_spot(&b, NULL);
    spot_bed_begin(&b, s, 1, 1);
    spot_bed_work(s, 1);
    spot_bed_begin(&b, s, 2, 1); /* the same policy: looked at once */
    spot_bed_work(s, 1);
    const uint64_t before = s->vocab_id;
    b.token_shift = 200;
    for (uint32_t uid = 1; uid < 90; uid++)
        spot_bed_put(&b, uid, 2, 4);
    cr_assert_eq(pl_spot_begin(s, 3, 1, b.buffers, 1, 2, &err), PL_OK, "%s", err.msg);
    spot_bed_work(s, 1);
    cr_expect_eq(s->vocab_id, before + 1);
    cr_expect_eq(pl_eagle_vocab(s->e)[39], 231);
    cr_expect_eq(pl_eagle_vocab(s->e)[8], 200, "the rest is kept of the old one");
    spot_bed_work(s, 3);
    cr_expect_eq(s->vocab_id, before + 1, "once");
    pl_spot_free(s);
    spot_bed_close(&b);
}
