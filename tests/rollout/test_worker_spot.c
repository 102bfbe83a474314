/* Claims tested: a worker trains only when it has nothing to roll out and is asked to; whatever is
 * wanted of it in the middle of a piece of training is done as soon as one op is over, and never
 * within it; a session ends as it should and takes nothing with it; versions of the drafter are
 * swapped in between rounds, rise, and are tried again; handed-over samples go on elsewhere, bit
 * for bit.  The spot trainer is a script: so many ops, between each of which the world may say
 * something. */
#include "tests/rollout/worker_bed.h"

static bed the_bed;
static world w;

/* ---- the script ---- */

static struct script {
    int n_ops; /* of a piece */
    int at_op; /* before this op the messages come in; -1: never */
    int n_inbox, n_heard;
    pl_msg inbox[4], kept; /* kept: deferred */
    int is_kept;
    pl_status returns; /* of a whole piece */
    /* what was seen */
    int n_pieces, n_ends, n_done, n_stopped, is_within;
    uint64_t session;
    uint32_t is_lead;
    char buffers[64];
    int op;
    int n_drafters, drafter_fails, drafter_breaths; /* 100 ms each, that taking one lasts */
    int drafter_waits;                              /* calls that it is not yet taken in */
    uint32_t drafter, published;
    uint32_t n_figures; /* told */
} sc;

static pl_status hear(void *ctx, pl_error *err)
{
    world *x = ctx;
    (void)err;
    while (!sc.is_kept && sc.op == sc.at_op && sc.n_heard < sc.n_inbox) {
        pl_msg *m = &sc.inbox[sc.n_heard++];
        const uint16_t type = m->h.type;
        m->h = (pl_header){
            .type = type, .epoch = x->epoch, .incarnation = x->incarnation, .seq = ++x->seq};
        if (worker_defers(x->w, m)) {
            sc.kept = *m;
            sc.is_kept = 1;
            return PL_OK;
        }
        const pl_status st = worker_message(x->w, m, &x->err);
        if (st != PL_OK)
            return st;
    }
    return PL_OK;
}

static pl_status train(
    void *ctx, const pl_msg_train *t, int (*keep_on)(void *), void *k_ctx, pl_error *err)
{
    world *x = ctx;
    cr_assert_eq(x->w->n_running, 0, "it trains while something is rolled out");
    cr_assert(!sc.is_within);
    sc.is_within = 1;
    sc.n_pieces++;
    sc.session = t->session;
    sc.is_lead = t->is_lead;
    snprintf(sc.buffers, sizeof sc.buffers, "%s", t->buffers);
    for (sc.op = 0; sc.op < sc.n_ops; sc.op++) {
        x->now += 5 * WORKER_MS;
        if (!keep_on(k_ctx)) {
            sc.n_stopped++;
            sc.is_within = 0;
            cr_assert_not(keep_on(k_ctx), "no means no");
            return pl_fail(err, PL_E_STOPPED, "asked to stop");
        }
    }
    sc.is_within = 0;
    sc.n_done++;
    return sc.returns == PL_OK ? PL_OK : pl_fail(err, sc.returns, "the script says so");
}

static void train_end(void *ctx)
{
    (void)ctx;
    cr_assert(!sc.is_within, "the session ends in the middle of a piece");
    sc.n_ends++;
}

static pl_status take_drafter(
    void *ctx, const pl_msg_drafter *d, void (*keep_alive)(void *), void *ka_ctx, pl_error *err)
{
    (void)ctx;
    for (int i = 0; i < sc.drafter_breaths; i++) {
        w.now += 100 * WORKER_MS;
        keep_alive(ka_ctx);
    }
    cr_assert(!sc.is_within, "a version in the middle of a piece");
    cr_assert_str_eq(d->dir, "/d");
    sc.n_drafters++;
    if (sc.drafter_waits-- > 0)
        return pl_fail(err, PL_E_TIMEOUT, "samples run");
    if (sc.drafter_fails-- > 0)
        return pl_fail(err, PL_E_FORMAT, "torn");
    sc.drafter = d->version;
    return PL_OK;
}

static int publish(void *ctx, pl_msg_drafter *d)
{
    (void)ctx;
    *d = (pl_msg_drafter){.version = sc.published, .dir = "/d", .host = "h", .endpoint = ""};
    return sc.published != 0;
}

static void figures_of(void *ctx, pl_msg_drafting *m)
{
    (void)ctx;
    cr_assert(!sc.is_within);
    m->n_optimizer_steps = sc.n_figures;
}

static void begin(int max_seqs)
{
    find_base(&the_bed);
    world_open(&w, &the_bed, max_seqs);
    (void)got;
    sc = (struct script){.n_ops = 10, .at_op = -1};
    w.w->io.train = train;
    w.w->io.train_end = train_end;
    w.w->io.drafter = take_drafter;
    w.w->io.publish = publish;
    w.w->io.drafting = figures_of;
    w.w->wire.listen = hear;
}

static void end(void)
{
    world_close(&w);
    bed_close(&the_bed);
}

static pl_msg train_of(uint64_t session, uint32_t is_lead)
{
    return (pl_msg){.h.type = PL_MSG_TRAIN,
        .u.train = {.session = session,
            .is_lead = is_lead,
            .batch = BATCH,
            .policy_version = w.version,
            .buffers = "worker-0\nworker-1"}};
}

static void ask(uint64_t session, uint32_t is_lead)
{
    pl_msg m = train_of(session, is_lead);
    cr_assert_eq(say(&w, &m, PL_MSG_TRAIN), PL_OK);
}

static void halt(uint64_t session)
{
    pl_msg m = {.u.halt = {session}};
    cr_assert_eq(say(&w, &m, PL_MSG_HALT), PL_OK);
}

static void say_drafter(uint32_t version)
{
    pl_msg m = {
        .u.drafter = {.version = version, .dir = "/d", .host = "h", .endpoint = "ipc:///x"}};
    cr_assert_eq(say(&w, &m, PL_MSG_DRAFTER), PL_OK);
}

/* One turn of the loop of rollout/worker.c. */
static pl_status piece(int ms)
{
    pl_status st = PL_OK;
    w.now += ms * WORKER_MS;
    if (sc.is_kept) {
        sc.is_kept = 0;
        st = worker_message(w.w, &sc.kept, &w.err);
    }
    if (st == PL_OK)
        st = worker_tick(w.w, &w.err);
    if (st != PL_OK || w.w->is_over)
        return st;
    if (w.w->n_running > 0)
        return worker_round(w.w, &w.err);
    if (worker_has_session(w.w))
        return worker_train(w.w, &w.err);
    return PL_E_TIMEOUT;
}

static void go_on(int n)
{
    for (int i = 0; i < n; i++) {
        const pl_status st = piece(30);
        cr_assert(st == PL_OK || st == PL_E_TIMEOUT, "%s", w.err.msg);
    }
}

/* Let these come in the middle of a piece, before its third op. */
static void bring(const pl_msg *m, int n)
{
    memcpy(sc.inbox, m, (size_t)n * sizeof *m);
    sc.n_inbox = n;
    sc.n_heard = 0;
    sc.at_op = 2;
}

static void in_session(uint64_t session)
{
    begin(8);
    join(&w);
    ask(session, 1);
    go_on(1);
    cr_assert_eq(sc.n_pieces, 1);
    cr_assert_eq(sc.n_done, 1);
}

/* ---- sessions ---- */

Test(worker_spot, trains_when_asked_and_says_so_at_once, .timeout = 60)
{
    begin(8);
    join(&w);
    go_on(2);
    cr_assert_eq(sc.n_pieces, 0, "nobody asked");
    ask(7, 1);
    sc.n_ops = 1;
    w.now += 30 * WORKER_MS;
    cr_assert_eq(worker_tick(w.w, &w.err), PL_OK);
    cr_assert_eq(w.status.state, PL_WORKER_TRAINING, "before the first piece");
    cr_assert_eq(w.status.session, 7);
    go_on(3);
    cr_assert_eq(sc.n_pieces, 3, "piece after piece");
    cr_assert_eq(sc.session, 7);
    cr_assert_eq(sc.is_lead, 1);
    cr_assert_str_eq(sc.buffers, "worker-0\nworker-1");
    cr_assert_eq(sc.n_ends, 0);
    halt(7);
    go_on(2);
    cr_assert_eq(sc.n_pieces, 3);
    cr_assert_eq(sc.n_ends, 1, "once");
    cr_assert_eq(w.status.state, PL_WORKER_IDLE);
    cr_assert_eq(w.status.session, 0);
    end();
}

Test(worker_spot, a_late_train_does_not_begin_what_was_halted, .timeout = 60)
{
    pl_msg late;
    in_session(7);
    late = train_of(7, 1);
    late.h = (pl_header){.protocol = PL_PROTOCOL,
        .type = PL_MSG_TRAIN,
        .epoch = w.epoch,
        .incarnation = w.incarnation,
        .seq = w.seq};
    halt(7);
    go_on(1);
    cr_assert_eq(worker_message(w.w, &late, &w.err), PL_OK);
    go_on(2);
    cr_assert_eq(sc.n_pieces, 1);
    halt(7);
    ask(7, 0); /* a new one does: it joins again */
    go_on(1);
    cr_assert_eq(sc.n_pieces, 2);
    cr_assert_eq(sc.is_lead, 0);
    end();
}

Test(worker_spot, a_lease_is_begun_one_op_after_it_came, .timeout = 60)
{
    pl_msg m[1];
    in_session(7);
    make_lease(&w, 0, NULL, &m[0]);
    m[0].h.type = PL_MSG_LEASE;
    bring(m, 1);
    go_on(1);
    cr_assert_eq(sc.n_stopped, 1);
    cr_assert_eq(sc.op, 2, "stopped before op %d, the lease came before op 2", sc.op);
    cr_assert_eq(sc.n_done, 1, "the piece was not finished");
    sc.at_op = -1;
    go_on(1);
    cr_assert_eq(sc.n_ends, 1, "the session gave everything back before the round");
    cr_assert_eq(w.status.state, PL_WORKER_BUSY);
    cr_assert_eq(w.status.session, 0);
    for (int i = 0; i < 500 && w.w->n_running > 0; i++)
        go_on(1);
    go_on(3);
    expect_result(&w, 0);
    cr_assert_eq(sc.n_pieces, 2, "nobody asked it again");
    end();
}

static pl_status load_alone(void *ctx, const pl_msg_version *v, void (*keep)(void *),
    void *keep_ctx, pl_engine **engine, pl_error *err)
{
    cr_assert_eq(w.w->session.m.session, 0, "loaded while the session still has the device");
    cr_assert_eq(sc.n_ends, sc.n_pieces > 0);
    return world_load(ctx, v, keep, keep_ctx, engine, err);
}

Test(worker_spot, a_version_is_loaded_after_the_session_has_ended, .timeout = 60)
{
    pl_msg m[2] = {{.h.type = PL_MSG_VERSION,
                       .u.version = {.version = 3, .dir = "", .host = "", .endpoint = ""}},
        {.h.type = PL_MSG_VERSION,
            .u.version = {.version = 4, .dir = "", .host = "", .endpoint = ""}}};
    in_session(7);
    m[0].u.version.hash.b[0] = 3;
    m[1].u.version.hash.b[0] = 4;
    w.w->io.load = load_alone;
    bring(m, 2);
    go_on(1);
    cr_assert_eq(w.n_loads, 1, "not within");
    cr_assert_eq(sc.n_stopped, 1);
    cr_assert_eq(sc.op, 2);
    cr_assert_eq(sc.n_heard, 2, "the loaded version stops nothing");
    go_on(1);
    cr_assert_eq(w.n_loads, 2);
    cr_assert_eq(sc.n_ends, 1);
    cr_assert_eq(sc.n_pieces, 2);
    end();
}

Test(worker_spot, halt_drain_and_stop_end_a_piece_at_the_next_op, .timeout = 60)
{
    static const uint16_t types[] = {PL_MSG_HALT, PL_MSG_DRAIN, PL_MSG_STOP, PL_MSG_REJECT};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        pl_msg m = {.h.type = types[i]};
        if (types[i] == PL_MSG_HALT)
            m.u.halt.session = 7;
        if (types[i] == PL_MSG_REJECT)
            m.u.reject = (pl_msg_reject){PL_E_PEER, "say HELLO"};
        in_session(7);
        bring(&m, 1);
        (void)piece(30);
        cr_assert_eq(sc.n_stopped, 1, "message %u", types[i]);
        cr_assert_eq(sc.op, 2, "message %u", types[i]);
        sc.at_op = -1;
        (void)piece(30);
        if (types[i] == PL_MSG_DRAIN)
            cr_assert_eq(w.status.state, PL_WORKER_DRAINING);
        if (types[i] == PL_MSG_STOP)
            cr_assert(w.w->is_over);
        if (types[i] == PL_MSG_REJECT)
            cr_assert(worker_has_session(w.w), "the session is no affair of the connection");
        worker_end_session(w.w);
        cr_assert_eq(sc.n_ends, 1, "message %u", types[i]);
        end();
    }
}

Test(worker_spot, a_signal_ends_a_piece_at_the_next_op, .timeout = 60)
{
    in_session(7);
    w.stop = 2;
    sc.n_ops = 1000;
    cr_assert_eq(worker_train(w.w, &w.err), PL_E_STOPPED);
    cr_assert_eq(sc.op, 0);
    cr_assert(strstr(w.err.msg, "leave at once") != NULL, "%s", w.err.msg);
    end();
}

Test(worker_spot, the_heartbeat_goes_on_within_a_long_piece, .timeout = 60)
{
    in_session(7);
    const int n_before = w.n_status;
    sc.n_ops = 400; /* 2 s */
    go_on(1);
    cr_assert_geq(w.n_status - n_before, 3);
    cr_assert_eq(w.status.state, PL_WORKER_TRAINING);
    end();
}

Test(worker_spot, another_session_or_role_is_another_beginning, .timeout = 60)
{
    pl_msg m;
    in_session(7);
    m = train_of(8, 0);
    bring(&m, 1);
    go_on(1);
    cr_assert_eq(sc.op, 2, "the one before is over");
    sc.at_op = -1;
    go_on(1);
    cr_assert_eq(sc.n_ends, 1);
    cr_assert_eq(sc.session, 8);
    cr_assert_eq(sc.is_lead, 0);
    ask(8, 1);
    go_on(1);
    cr_assert_eq(sc.n_ends, 2);
    cr_assert_eq(sc.is_lead, 1);
    end();
}

Test(worker_spot, what_fails_in_training_fails_no_worker, .timeout = 60)
{
    begin(8);
    join(&w);
    ask(7, 1);
    sc.returns = PL_E_TIMEOUT;
    cr_assert_eq(piece(30), PL_E_TIMEOUT, "it may rest");
    cr_assert_eq(w.status.state, PL_WORKER_TRAINING);
    sc.returns = PL_E_PEER;
    go_on(2);
    cr_assert_eq(sc.n_ends, 1);
    cr_assert_eq(sc.n_pieces, 2);
    ask(7, 1); /* that one is over */
    go_on(1);
    cr_assert_eq(sc.n_pieces, 2);
    sc.returns = PL_E_NUMERIC; /* and this one */
    ask(8, 1);
    go_on(2);
    cr_assert_eq(sc.n_pieces, 3);
    sc.returns = PL_E_IO; /* a full disk may have room again */
    ask(9, 1);
    go_on(2);
    cr_assert_eq(sc.n_pieces, 5);
    sc.returns = PL_E_CONFIG;
    go_on(2);
    cr_assert_eq(sc.n_pieces, 6);
    ask(10, 1);
    go_on(2);
    cr_assert_eq(sc.n_pieces, 6, "no session any more");
    cr_assert_eq(w.status.state, PL_WORKER_IDLE);
    say_lease(&w, 0, NULL);
    for (int i = 0; i < 500 && w.w->n_running > 0; i++)
        go_on(1);
    go_on(1);
    expect_result(&w, 0);
    end();
}

Test(worker_spot, who_has_work_or_no_trainer_is_not_to_be_asked, .timeout = 60)
{
    begin(8);
    join(&w);
    say_lease(&w, 0, NULL);
    ask(7, 1);
    go_on(1);
    cr_assert_eq(sc.n_pieces, 0);
    cr_assert_eq(w.status.state, PL_WORKER_BUSY);
    for (int i = 0; i < 500 && w.w->n_running > 0; i++)
        go_on(1);
    go_on(3);
    cr_assert_eq(sc.n_pieces, 0, "an order of another time");
    w.w->io.train = NULL;
    ask(8, 1);
    go_on(1);
    cr_assert_eq(w.status.state, PL_WORKER_IDLE);
    cr_assert_eq(w.status.session, 0);
    end();
}

/* ---- versions of the drafter ---- */

Test(worker_spot, the_heartbeat_goes_on_while_a_version_is_fetched, .timeout = 60)
{
    in_session(7);
    sc.drafter_breaths = 20;
    const int n_before = w.n_status;
    say_drafter(2);
    sc.at_op = -1;
    go_on(1);
    cr_assert_eq(sc.drafter, 2);
    cr_assert_geq(w.n_status - n_before, 3);
    end();
}

Test(worker_spot, versions_are_swapped_between_rounds_and_rise, .timeout = 60)
{
    pl_msg m = {.h.type = PL_MSG_DRAFTER,
        .u.drafter = {.version = 2, .dir = "/d", .host = "h", .endpoint = ""}};
    in_session(7);
    bring(&m, 1);
    go_on(1);
    cr_assert_eq(sc.n_stopped, 0, "a version stops no training");
    cr_assert_eq(sc.n_drafters, 0);
    sc.at_op = -1;
    go_on(1);
    cr_assert_eq(sc.drafter, 2);
    cr_assert_eq(w.status.drafter_version, 2);
    say_drafter(2);
    say_drafter(1);
    go_on(1);
    cr_assert_eq(sc.n_drafters, 1, "old and doubled ones are nothing");
    say_drafter(3);
    say_drafter(5);
    say_drafter(4);
    go_on(2);
    cr_assert_eq(sc.n_drafters, 2, "the newest alone");
    cr_assert_eq(sc.drafter, 5);
    end();
}

Test(worker_spot, a_version_that_fails_is_tried_three_times_and_the_old_one_goes_on, .timeout = 60)
{
    begin(8);
    join(&w);
    say_drafter(1);
    go_on(1);
    sc.drafter_fails = 100;
    for (int i = 0; i < 10; i++) {
        say_drafter(2);
        go_on(2);
    }
    cr_assert_eq(sc.n_drafters, 1 + WORKER_TRIES);
    cr_assert_eq(w.status.drafter_version, 1);
    sc.drafter_fails = 1;
    say_drafter(3);
    go_on(2);
    cr_assert_eq(w.status.drafter_version, 1);
    say_drafter(3);
    go_on(2);
    cr_assert_eq(w.status.drafter_version, 3, "said again, tried again");
    end();
}

Test(worker_spot, a_version_that_must_wait_is_asked_again_and_not_given_up, .timeout = 60)
{
    enum { WAITS = 5 * WORKER_TRIES };
    begin(8);
    join(&w);
    sc.drafter_waits = WAITS;
    say_drafter(2);
    go_on(WAITS);
    cr_assert_eq(sc.n_drafters, WAITS);
    cr_assert_eq(w.status.drafter_version, 0);
    go_on(1);
    cr_assert_eq(w.status.drafter_version, 2);
    go_on(3);
    cr_assert_eq(sc.n_drafters, WAITS + 1, "it is here");
    end();
}

Test(worker_spot, no_version_before_there_is_an_engine, .timeout = 60)
{
    begin(8);
    expect_turns(&w, 1, 10);
    cr_assert_eq(say_welcome(&w), PL_OK);
    say_drafter(1);
    expect_turns(&w, 2, 30);
    cr_assert_eq(sc.n_drafters, 0);
    cr_assert_eq(say_version(&w, w.version), PL_OK);
    expect_turns(&w, 1, 30);
    cr_assert_eq(w.status.drafter_version, 1);
    end();
}

Test(worker_spot, a_version_is_announced_until_it_comes_back, .timeout = 60)
{
    in_session(7);
    sc.published = 4;
    go_on(1);
    cr_assert_eq(w.n_drafter, 1);
    cr_assert_eq(w.drafter_said, 4);
    w.now += 1000 * WORKER_MS;
    go_on(1);
    cr_assert_eq(w.n_drafter, 2, "once a second");
    say_drafter(4);
    w.now += 1000 * WORKER_MS;
    go_on(1);
    cr_assert_eq(w.n_drafter, 2);
    sc.published = 5;
    for (int i = 0; i < 2 * WORKER_ANNOUNCES; i++) {
        w.now += 1000 * WORKER_MS;
        cr_assert_eq(say_welcome(&w), PL_OK);
        go_on(1);
    }
    cr_assert_eq(w.n_drafter, 2 + WORKER_ANNOUNCES, "it gives up");
    end();
}

/* ---- figures ---- */

Test(worker_spot, figures_are_said_while_they_change_and_at_the_end_of_a_batch, .timeout = 60)
{
    begin(8);
    join(&w);
    go_on(100);
    cr_assert_eq(w.n_drafting, 0, "no batch yet");
    say_lease(&w, 0, NULL);
    for (int i = 0; i < 500 && w.w->n_running > 0; i++)
        go_on(1);
    w.now += 500 * WORKER_MS;
    go_on(1);
    const int n = w.n_drafting;
    cr_assert_gt(n, 0);
    w.now += 600 * WORKER_MS;
    go_on(1);
    cr_assert_eq(w.n_drafting, n, "nothing has changed");
    sc.n_figures = 3;
    w.now += 500 * WORKER_MS;
    go_on(1);
    cr_assert_eq(w.n_drafting, n + 1);
    cr_assert_eq(w.drafting.n_optimizer_steps, 3);
    cr_assert_eq(w.drafting.batch, BATCH);
    cr_assert_geq(w.drafting.idle_ms, 1500);
    sc.n_figures = 4;
    pl_msg m;
    make_lease(&w, 1, NULL, &m);
    m.u.lease.batch = BATCH + 1;
    cr_assert_eq(say(&w, &m, PL_MSG_LEASE), PL_OK);
    cr_assert_eq(w.n_drafting, n + 2, "the last ones of the batch before");
    cr_assert_eq(w.drafting.n_optimizer_steps, 4);
    cr_assert_eq(w.drafting.batch, BATCH);
    end();
}

Test(worker_spot, who_trains_in_a_batch_without_a_lease_of_it_has_figures_of_it, .timeout = 60)
{
    in_session(7); /* of BATCH */
    sc.n_figures = 2;
    w.now += 500 * WORKER_MS;
    go_on(1);
    cr_assert_eq(w.drafting.batch, BATCH);
    cr_assert_eq(w.drafting.n_optimizer_steps, 2);
    const int n = w.n_drafting;
    say_lease(&w, 0, NULL); /* the same batch: it goes on */
    cr_assert_eq(w.n_drafting, n);
    go_on(1);
    end();
}

/* ---- tail consolidation ---- */

Test(worker_spot, a_sample_that_is_handed_over_goes_on_elsewhere_bit_for_bit, .timeout = 60)
{
    static heard known;
    pl_msg m;
    begin(8);
    join(&w);
    make_lease(&w, 0, NULL, &m);
    m.u.lease.sampling.speculative = 0;
    cr_assert_eq(say(&w, &m, PL_MSG_LEASE), PL_OK);
    say_lease(&w, 1, NULL);
    while (w.w->samples[0]->n < 3)
        go_on(1);
    const int n = w.w->samples[0]->n;
    cr_assert_eq(say_uid(&w, PL_MSG_HANDOVER, BATCH + 1, 0), PL_OK);
    cr_assert_eq(w.w->n_running, 2, "of another batch");
    cr_assert_eq(say_uid(&w, PL_MSG_HANDOVER, BATCH, 0), PL_OK);
    cr_assert_eq(w.heard[0].progress.n, n, "everything was said");
    cr_assert_eq(w.w->n_running, 1);
    cr_assert_eq(say_uid(&w, PL_MSG_HANDOVER, BATCH, 0), PL_OK); /* twice is once */
    go_on(1);
    cr_assert(!lists(&w.status.running, 0));
    known = w.heard[0];
    for (int i = 0; i < 500 && w.w->n_running > 0; i++)
        go_on(1);
    go_on(1);
    cr_assert_eq(say_uid(&w, PL_MSG_HANDOVER, BATCH, 1), PL_OK);
    cr_assert_eq(w.w->n_samples, 1, "a result is kept until it is acknowledged");
    world_close(&w);

    world_open(&w, &the_bed, 8);
    join(&w);
    say_lease(&w, 0, &known);
    for (int i = 0; i < 500 && w.w->n_running > 0; i++)
        expect_turns(&w, 1, 10);
    expect_turns(&w, 1, 10);
    expect_result(&w, 0);
    end();
}
