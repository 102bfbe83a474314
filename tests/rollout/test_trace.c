/* Claims: what is written is read back, also steps that are trained again, runs that go on and
 * steps of more than one block; the reader says complete, open or damaged, and where; it believes
 * nothing that a trace cannot say. */
#include "tests/rollout/trace_bed.h"

#include <math.h>

TestSuite(trace, .init = trace_enter, .fini = trace_leave, .timeout = 60);

typedef struct heard {
    int n_runs, n_steps;
    int64_t steps[64];
} heard;

static pl_status hear_run(void *ctx, const pl_trace_run *r, pl_error *err)
{
    heard *h = ctx;
    const pl_trace_run want = make_run(r->step);

    (void)err;
    cr_assert_str_eq(r->build, want.build);
    cr_assert_str_eq(r->numeric_class, want.numeric_class);
    cr_assert_str_eq(r->isa, want.isa);
    cr_assert_str_eq(r->machine, want.machine);
    cr_assert_str_eq(r->config, want.config);
    cr_assert(r->n_config == want.n_config && r->config_hash == want.config_hash);
    cr_assert(memcmp(r->weights, want.weights, 16) == 0);
    cr_assert(r->n_vocab == want.n_vocab && r->unix_ms == want.unix_ms);
    h->n_runs++;
    return PL_OK;
}

static pl_status hear_step(void *ctx, const pl_trace_step *s, pl_error *err)
{
    heard *h = ctx;

    (void)err;
    check_made(s);
    cr_assert_lt(h->n_steps, 64);
    h->steps[h->n_steps++] = s->step;
    return PL_OK;
}

static pl_status listen(const char *path, heard *h, pl_trace_report *report, pl_error *err)
{
    const pl_trace_visitor v = {h, hear_run, hear_step};
    memset(h, 0, sizeof *h);
    return pl_trace_read(path, &v, report, err);
}

Test(trace, what_was_written_is_read_back)
{
    pl_trace_report report;
    heard h;
    pl_error err = {0};
    pl_trace *t = open_trace("run", 1, 0);

    for (int64_t step = 1; step <= 5; step++)
        put_made(t, step, 2);
    cr_assert_eq(listen("run", &h, &report, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(report.state, PL_TRACE_OPEN);
    cr_assert_str_eq(report.what, "open at step 5");
    cr_assert_eq(pl_trace_end(t, 5, &err), PL_OK, "%s", err.msg);
    pl_trace_close(t);
    const char *const paths[] = {"run", "run/trace", "run/trace/000001.journal"};
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(listen(paths[i], &h, &report, &err), PL_OK, "%s", err.msg);
        cr_assert(report.state == PL_TRACE_COMPLETE && report.step == 5 && report.n_steps == 5);
        cr_assert(report.n_runs == 1 && report.n_samples == 40 && report.n_repeated == 0);
        cr_assert(h.n_runs == 1 && h.n_steps == 5);
    }
    cr_assert_eq(pl_trace_read("no", NULL, &report, &err), PL_E_NOENT);
}

Test(trace, steps_that_are_trained_again_stand_twice_and_the_last_counts)
{
    static const int64_t order[] = {1, 2, 3, 4, 5, 4, 5, 6, 7};
    pl_trace_report report;
    const pl_trace_run *run;
    pl_trace_step *s;
    heard h;
    pl_error err = {0};
    unsigned char head[PL_HASH_BYTES];
    pl_trace *t = open_trace("run", 1, 0);

    for (int64_t step = 1; step <= 5; step++)
        put_made(t, step, 2);
    pl_trace_close(t);
    t = open_trace("run", 1, 3); /* the checkpoint of step 3 */
    put_made(t, 4, 2);
    pl_trace_close(t);
    cr_assert_eq(pl_trace_read("run", NULL, &report, &err), PL_OK);
    cr_assert(report.step == 5 && report.n_repeated == 1);
    cr_assert_str_eq(report.what, "open at step 5 (its last sitting is at step 4)");
    t = open_trace("run", 1, 4);
    made_step *m = make_step(5, 2); /* the same samples, drafted otherwise and slower */
    m->s.gen_s = 99;
    m->samples[3].draft++;
    m->source[1][0] ^= 1;
    cr_assert_eq(pl_trace_put(t, &m->s, head, &err), PL_OK, "%s", err.msg);
    free(m);
    cr_assert_eq(pl_trace_load("run", 5, &s, &run, NULL, &err), PL_OK, "%s", err.msg);
    cr_assert(s->step == 5 && s->gen_s == 99 && run->step == 4 && s->samples[1].source[0] == 1);
    cr_assert_str_eq(run->machine, "a machine");
    pl_trace_step_free(s);
    cr_assert_eq(pl_trace_end(t, 5, &err), PL_OK);
    pl_trace_close(t);
    cr_assert_eq(pl_trace_load("run", 6, &s, NULL, &report, &err), PL_E_NOENT);
    cr_assert(strstr(err.msg, "no step 6; its last one is step 5"), "%s", err.msg);
    cr_assert_eq(report.state, PL_TRACE_COMPLETE);

    cr_assert_eq(pl_dir_remove("run", NULL), PL_OK); /* and to the end, with the same figures */
    t = open_trace("run", 1, 0);
    for (int i = 0; i < 9; i++) {
        if (i == 5) {
            pl_trace_close(t);
            t = open_trace("run", 1, 3);
        }
        put_made(t, order[i], 2);
    }
    pl_trace_close(t);
    cr_assert_eq(listen("run", &h, &report, &err), PL_OK, "%s", err.msg);
    cr_assert(h.n_runs == 2 && h.n_steps == 9 && report.n_repeated == 2);
    cr_assert_arr_eq(h.steps, order, sizeof order);
    cr_assert_str_eq(report.what, "open at step 7");
}

Test(trace, a_complete_run_may_go_on)
{
    pl_trace_report report;
    heard h;
    pl_error err = {0};
    pl_trace *t = open_trace("run", 1, 0);

    put_made(t, 1, 1);
    cr_assert_eq(pl_trace_end(t, 2, &err), PL_E_INVAL);
    cr_assert_eq(pl_trace_end(t, 1, &err), PL_OK);
    cr_assert_eq(pl_trace_end(t, 1, &err), PL_E_INVAL);
    pl_trace_close(t);
    cr_assert_eq(pl_trace_read("run", NULL, &report, &err), PL_OK);
    cr_assert_eq(report.state, PL_TRACE_COMPLETE);
    t = open_trace("run", 1, 1);
    pl_trace_close(t);
    const off_t n = (off_t)report.journal.n_bytes + 20; /* the RUN record is torn */
    cr_assert_eq(truncate("run/trace/000001.journal", n), 0);
    cr_assert_eq(pl_trace_read("run", NULL, &report, &err), PL_OK);
    cr_assert_eq(report.state, PL_TRACE_OPEN);
    cr_assert(strstr(report.what, "open at step 1; 20 bytes of block 3 "), "%s", report.what);
    t = open_trace("run", 1, 1);
    cr_assert_eq(listen("run", &h, &report, &err), PL_OK);
    cr_assert(report.state == PL_TRACE_OPEN && report.step == 1);
    put_made(t, 2, 1);
    cr_assert_eq(pl_trace_end(t, 2, &err), PL_OK);
    pl_trace_close(t);
    cr_assert_eq(listen("run", &h, &report, &err), PL_OK, "%s", err.msg);
    cr_assert(report.state == PL_TRACE_COMPLETE && report.step == 2 && report.n_runs == 2);
}

/* Step 2 of m as the only one of a second sitting. */
static void put_other(const char *dir, const made_step *m, pl_status want)
{
    unsigned char head[PL_HASH_BYTES];
    pl_error err = {0};
    pl_trace *t = open_trace(dir, 1, 1);

    cr_assert_eq(pl_trace_put(t, &m->s, head, &err), want, "%s", err.msg);
    if (want != PL_OK) {
        cr_assert(strstr(err.msg, "step 2 stands twice with other samples: uid 13"), "%s", err.msg);
        cr_assert_eq(pl_trace_end(t, 1, NULL), want, "it is dead");
    }
    pl_trace_close(t);
}

Test(trace, other_samples_of_a_step_that_stands_twice_are_damage_and_no_writer_puts_them)
{
    pl_error err = {0};
    pl_trace_report report;

    for (int what = 0; what < 5; what++) {
        static made_records a, b;
        unsigned char head[PL_HASH_BYTES];
        for (int i = 0; i < 2; i++) {
            pl_trace *t = open_trace(i == 0 ? "run" : "other", 1, 0);
            put_made(t, 1, 2);
            made_step *m = make_step(2, 2);
            m->samples[5].n_tokens = 70; /* uid 13 */
            m->samples[5].reward = 1;
            if (i == 0)
                cr_assert_eq(pl_trace_put(t, &m->s, head, NULL), PL_OK);
            free(m);
            pl_trace_close(t);
        }
        made_step *m = make_step(2, 2);
        pl_trace_sample *s = &m->samples[5];
        s->n_tokens = 70 - (what == 0);
        m->tokens[5][69] ^= what == 1;
        m->logprobs[5][0] -= what == 2;
        s->finish = what == 3 ? PL_FINISH_ABORTED : s->finish;
        s->reward = what == 4 ? -1 : 1;
        put_other("other", m, PL_OK);
        put_other("run", m, PL_E_NUMERIC);
        cr_assert_eq(pl_trace_read("run", NULL, &report, &err), PL_OK, "%s", err.msg);
        read_records(&a, "run/trace/000001.journal");
        read_records(&b, "other/trace/000001.journal");
        for (int i = b.n - 11; i < b.n; i++) /* RUN, STEP, COST, 8 SAMPLE */
            add_record(&a, a.n, b.r[i].type, b.r[i].data, b.r[i].n);
        write_records(&a, "both");
        cr_assert_eq(pl_trace_read("both", NULL, &report, &err), PL_E_FORMAT);
        cr_assert(strstr(report.what, "step 2 stands twice with other samples: uid 13"), "%s",
            report.what);
        cr_assert_eq(report.state, PL_TRACE_DAMAGED);
        free_records(&a);
        free_records(&b);
        free(m);
        cr_assert_eq(pl_dir_remove("run", NULL), PL_OK);
        cr_assert_eq(pl_dir_remove("other", NULL), PL_OK);
    }
}

Test(trace, the_writer_refuses_what_the_reader_would_and_lives_on)
{
    unsigned char head[PL_HASH_BYTES];
    pl_error err = {0};
    pl_trace_report report;
    pl_trace *t = open_trace("run", 1, 0);

    for (int what = 0; what < 12; what++) {
        made_step *m = make_step(what == 11 ? 3 : 1, 2);
        m->tokens[1][5] = what == 0 ? -1 : what == 1 ? BED_VOCAB : 5;
        m->source[1][6] = what == 2 ? 3 : 0;
        m->samples[2].uid += what == 3;
        m->samples[2].finish = what == 4 ? PL_FINISH_NONE : PL_FINISH_STOP;
        m->samples[2].worker = what == 5 ? 2 : 0;
        m->s.gen_s = what == 6 ? (double)NAN : 1;
        m->s.sampling.temperature = what == 7 ? NAN : 1;
        m->s.n_workers = what == 8 ? 0 : 2;
        m->s.n_groups = what == 9 ? 0 : 2;
        m->costs[1].seconds = what == 10 ? -1 : 1;
        cr_assert_eq(pl_trace_put(t, &m->s, head, &err), PL_E_INVAL, "case %d", what);
        cr_assert_eq(err.code, PL_E_INVAL);
        free(m);
    }
    put_made(t, 1, 2);
    pl_trace_close(t);
    cr_assert_eq(pl_trace_read("run", NULL, &report, &err), PL_OK, "%s", err.msg);
    cr_assert(report.n_steps == 1 && report.n_samples == 8);
    const pl_trace_run late = make_run(2);
    const unsigned char uid[16] = {1};
    cr_assert_eq(pl_trace_open(&t, "run", uid, &late, NULL, &err), PL_E_FORMAT);
    cr_assert(strstr(err.msg, "goes on after step 2, its trace ends with step 1"), "%s", err.msg);
    cr_assert_eq(pl_trace_read("run", NULL, &report, &err), PL_OK, "refused before it wrote");
}

/* A response that no record of a journal holds, and a step that no block holds. */
Test(trace, a_long_response_goes_in_parts)
{
    enum { N = 600000 };
    static int32_t tokens[N];
    static uint8_t source[N];
    static float logprobs[N];
    unsigned char head[PL_HASH_BYTES], last[PL_HASH_BYTES];
    pl_trace_report report;
    pl_trace_step *s;
    pl_error err = {0};
    pl_trace *t = open_trace("run", 1, 0);
    made_step *m = make_step(1, 2);

    for (int i = 0; i < N; i++) {
        tokens[i] = BED_VOCAB - 1 - i % 30000;
        source[i] = (uint8_t)(i % 2);
        logprobs[i] = -(float)i;
    }
    for (int i = 2; i < 4; i++) {
        m->samples[i].n_tokens = N;
        m->samples[i].tokens = tokens;
        m->samples[i].source = source;
        m->samples[i].logprobs = logprobs;
    }
    cr_assert_eq(pl_trace_put(t, &m->s, head, &err), PL_OK, "%s", err.msg);
    free(m);
    put_made(t, 2, 2);
    pl_trace_close(t);
    cr_assert_eq(pl_trace_load("run", 1, &s, NULL, &report, &err), PL_OK, "%s", err.msg);
    cr_assert(report.step == 2 && report.journal.n_blocks > 5);
    cr_assert(s->samples[3].n_tokens == N && s->n_bytes > 4 * N);
    cr_assert(memcmp(s->samples[3].tokens, tokens, sizeof tokens) == 0);
    cr_assert(memcmp(s->samples[2].source, source, sizeof source) == 0);
    cr_assert_eq(s->samples[3].hashes[100], pl_trace_hash(logprobs + 6400, PL_TRACE_HASHED));
    pl_trace_step_free(s);
    memcpy(last, report.journal.head, sizeof last);
    cr_assert(memcmp(head, last, sizeof head) != 0);
}

Test(trace, the_head_of_a_step_is_the_hash_of_its_last_block)
{
    unsigned char head[PL_HASH_BYTES];
    pl_trace_report report;
    pl_trace *t = open_trace("run", 1, 0);
    made_step *m = make_step(1, 2);

    cr_assert_eq(pl_trace_put(t, &m->s, head, NULL), PL_OK);
    free(m);
    cr_assert_eq(pl_trace_read("run", NULL, &report, NULL), PL_OK);
    cr_assert_arr_eq(report.journal.head, head, sizeof head);
    pl_trace_close(t);
}

static pl_status stop_at_two(void *ctx, const pl_trace_step *s, pl_error *err)
{
    (void)ctx;
    return s->step == 2 ? pl_fail(err, PL_E_STOPPED, "enough") : PL_OK;
}

Test(trace, a_visitor_may_end_the_reading_and_that_is_no_damage)
{
    const pl_trace_visitor v = {NULL, NULL, stop_at_two};
    pl_trace_report report;
    pl_error err = {0};
    pl_trace *t = open_trace("run", 1, 0);

    for (int64_t step = 1; step <= 3; step++)
        put_made(t, step, 1);
    pl_trace_close(t);
    cr_assert_eq(pl_trace_read("run", &v, &report, &err), PL_E_STOPPED);
    cr_assert_str_eq(err.msg, "enough");
    cr_assert(report.state == PL_TRACE_OPEN && report.n_steps == 2);
}

Test(trace, a_torn_tail_is_cut_when_the_run_goes_on_and_that_is_told)
{
    pl_trace_report report;
    pl_journal_report cut;
    pl_error err = {0};
    pl_trace *t = open_trace("run", 1, 0);
    const pl_trace_run r = make_run(1);
    const unsigned char uid[16] = {1};

    put_made(t, 1, 1);
    put_made(t, 2, 1);
    pl_trace_close(t);
    char *bytes;
    size_t n;
    cr_assert_eq(pl_file_read(&bytes, &n, "run/trace/000001.journal", 1 << 20, NULL), PL_OK);
    free(bytes);
    cr_assert_eq(truncate("run/trace/000001.journal", (off_t)n - 7), 0);
    cr_assert_eq(pl_trace_read("run", NULL, &report, &err), PL_OK);
    cr_assert(report.state == PL_TRACE_OPEN && report.step == 1);
    cr_assert(strstr(report.what, "open at step 1; ") && strstr(report.what, "of block 2 at byte "),
        "%s", report.what);
    cr_assert_eq(pl_trace_open(&t, "run", uid, &r, &cut, &err), PL_OK, "%s", err.msg);
    cr_assert(cut.state == PL_JOURNAL_TORN && cut.torn_bytes > 0 && cut.bad_seq == 2);
    put_made(t, 2, 1);
    pl_trace_close(t);
    cr_assert_eq(pl_trace_read("run", NULL, &report, &err), PL_OK, "%s", err.msg);
    cr_assert(report.step == 2 && report.n_steps == 2 && report.n_repeated == 0);
}

/* As the budget has it: samples of some hundred tokens of a vocabulary of 49152. */
Test(trace, a_sample_takes_at_most_forty_bytes_and_a_token_three)
{
    pl_trace_step *s;
    pl_error err = {0};
    unsigned char head[PL_HASH_BYTES];
    pl_trace *t = open_trace("run", 1, 0);
    made_step *m = make_step(1, 8);
    uint32_t x = 1;

    for (int i = 0; i < 32; i++)
        for (int k = 0; k < m->samples[i].n_tokens; k++) {
            m->tokens[i][k] = (int32_t)(made_random(&x) % BED_VOCAB); /* the worst text there is */
            m->source[i][k] = (uint8_t)(k / 40 % 3);
        }
    cr_assert_eq(pl_trace_put(t, &m->s, head, &err), PL_OK, "%s", err.msg);
    free(m);
    pl_trace_close(t);
    cr_assert_eq(pl_trace_load("run", 1, &s, NULL, NULL, &err), PL_OK, "%s", err.msg);
    int64_t n = 0;
    for (int i = 0; i < 32; i++)
        n += s->samples[i].n_tokens;
    const double sample = (double)(s->n_bytes - s->n_token_bytes) / 32;
    const double token = (double)s->n_token_bytes / (double)n;
    printf("trace: %.1f bytes a sample, %.2f a token (uniform over %d ids)\n", sample, token,
        BED_VOCAB);
    cr_assert(sample <= 40 && token <= 3, "%.1f bytes a sample, %.2f a token", sample, token);
    pl_trace_step_free(s);
}

/* ---- records that no writer makes ---- */

/* RUN; per step STEP, COST, 4 SAMPLE; END: of steps 1 .. 3. */
static made_records *three_steps(void)
{
    static made_records l;
    pl_trace *t = open_trace("three", 1, 0);

    free_records(&l);
    for (int64_t step = 1; step <= 3; step++)
        put_made(t, step, 1);
    cr_assert_eq(pl_trace_end(t, 3, NULL), PL_OK);
    pl_trace_close(t);
    read_records(&l, "three/trace/000001.journal");
    cr_assert_eq(pl_dir_remove("three", NULL), PL_OK);
    cr_assert_eq(l.n, 20);
    return &l;
}

/* Damaged, with these words; the journal of it is whole. */
static void check_refused(const made_records *l, const char *words)
{
    pl_trace_report report;
    pl_error err = {0};

    write_records(l, "harmed");
    cr_assert_eq(pl_journal_read("harmed", TRACE_MAGIC, NULL, NULL, NULL, NULL), PL_OK);
    cr_assert_eq(
        pl_trace_read("harmed", NULL, &report, &err), PL_E_FORMAT, "not refused: %s", words);
    cr_assert_eq(report.state, PL_TRACE_DAMAGED);
    cr_assert(strstr(report.what, words), "'%s' in '%s'", words, report.what);
    cr_assert(!strstr(report.what, "block ") && report.journal.bad_offset >= 64);
    cr_assert(
        strstr(err.msg, "'harmed': damaged at block ") && strstr(err.msg, words), "%s", err.msg);
}

Test(trace, records_in_another_order_are_damage)
{
    static const struct {
        int drop, add, like; /* -1: none; like: of the record that is added at `add` */
        const char *words;
    } cases[] = {
        {0, -1, 0, "a STEP record and no RUN record before it"},
        {1, -1, 0, "a COST record that is not right behind its STEP"},
        {3, -1, 0, "step 1: sample 1 stands where uid 0 belongs"},
        {5, -1, 0, "step 1: sample 3 stands where uid 2 belongs"},
        {6, -1, 0, "step 1 has 3 of 4 samples, and another step begins"},
        {-1, 4, 3, "step 1: sample 0 stands where uid 1 belongs"},
        {-1, 7, 6, "a SAMPLE record outside a step"},
        {-1, 3, 2, "a COST record that is not right behind"},
        {-1, 5, 2, "a COST record that is not right behind"},
        {-1, 7, 1, "step 1 stands behind step 1"},
        {-1, 7, 13, "step 3 stands behind step 1"},
        {-1, 4, 19, "after step 3 in the middle of a step"},
        {-1, 13, 19, "after step 3 and that was not its last one"},
        {-1, 20, 19, "after step 3 twice"},
        {-1, 20, 1, "a STEP record behind END"},
        {-1, 0, 19, "and no RUN record is before it"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        made_records *l = three_steps();
        const made_record like = l->r[cases[i].like];
        if (cases[i].add >= 0)
            add_record(l, cases[i].add, like.type, like.data, like.n);
        if (cases[i].drop >= 0)
            drop_record(l, cases[i].drop);
        check_refused(l, cases[i].words);
    }
}

Test(trace, unknown_critical_records_are_refused_and_optional_ones_skipped)
{
    pl_trace_report report;
    pl_error err = {0};

    for (int at = 0; at <= 20; at++) {
        made_records *l = three_steps();
        add_record(l, at, 12, "anything", 8);
        write_records(l, "skipped");
        heard h;
        cr_assert_eq(listen("skipped", &h, &report, &err), PL_OK, "%s", err.msg);
        cr_assert(report.state == PL_TRACE_COMPLETE && h.n_steps == 3);
        l->r[at].type = 11;
        check_refused(l, "a critical record that this version does not know");
    }
}

Test(trace, a_record_of_another_length_is_damage)
{
    static const int records[] = {0, 1, 2, 4, 19}; /* RUN, STEP, COST, SAMPLE, END */

    for (size_t i = 0; i < sizeof records / sizeof records[0]; i++) {
        made_records *l = three_steps();
        made_record *r = &l->r[records[i]];
        const size_t n = r->n;
        r->data[n] = 0; /* there is room for a byte */
        r->n = n + 1;
        check_refused(l, "");
        for (r->n = 0; r->n < n; r->n++)
            check_refused(l, "");
    }
}

/* A changed byte gives another trace or damage, never anything else. */
Test(trace, any_byte_of_a_record_may_be_any)
{
    static const unsigned char values[] = {0, 1, 0x7f, 0x80, 0xff};
    pl_trace_report report;
    pl_error err = {0};
    int n_refused = 0;

    made_records *l = three_steps();
    for (int i = 0; i < 5; i++)
        for (size_t at = 0; at < l->r[i].n; at++)
            for (size_t k = 0; k < sizeof values; k++) {
                const unsigned char was = l->r[i].data[at];
                l->r[i].data[at] = values[k];
                write_records(l, "harmed");
                const pl_status st = pl_trace_read("harmed", NULL, &report, &err);
                cr_assert(st == PL_OK || st == PL_E_FORMAT, "%d %zu: %s", i, at, err.msg);
                n_refused += st != PL_OK;
                l->r[i].data[at] = was;
            }
    cr_assert_gt(n_refused, 100);
}

/* Counts that promise more than there is: refused before anything of that size is taken. */
Test(trace, counts_are_not_believed)
{
    made_records *l = three_steps();
    made_step *m = make_step(1, 1);
    trace_out o = {0};
    const uint64_t big = INT32_MAX;

    trace_put_varint(&o, 1); /* step; versions, uid */
    for (int i = 0; i < 3; i++)
        trace_put_varint(&o, 0);
    trace_put_varint(&o, big); /* groups */
    trace_put_varint(&o, big);
    trace_put_bytes(&o, l->r[1].data + 6, l->r[1].n - 6);
    drop_record(l, 1);
    add_record(l, 1, TRACE_STEP, o.data, o.n);
    check_refused(l, "step 1: 2147483647 groups of 2147483647 samples");
    l = three_steps();
    o.n = 0;
    trace_put_varint(&o, TRACE_COSTS);
    drop_record(l, 2);
    add_record(l, 2, TRACE_COST, o.data, o.n);
    check_refused(l, "the COST record of step 1 does not parse");
    l = three_steps();
    o.n = 0;
    trace_put_varint(&o, 0); /* index */
    trace_put_fixed(&o, PL_FINISH_STOP, 1);
    trace_put_varint(&o, 0);
    trace_put_f32(&o, 1);
    for (int i = 0; i < 3; i++)
        trace_put_varint(&o, 7);
    trace_put_varint(&o, PL_TRACE_TOKENS);
    drop_record(l, 3);
    add_record(l, 3, TRACE_SAMPLE, o.data, o.n);
    check_refused(l, "step 1, uid 0: 1048576 tokens, their sources and hashes do not fit");
    free(o.data);
    free(m);
}

Test(trace, parts_are_for_the_next_record_and_bounded)
{
    static unsigned char zeros[PL_JOURNAL_RECORD_MAX];
    pl_trace_report report;
    pl_error err = {0};

    made_records *l = three_steps();
    for (int i = 0; i < TRACE_RECORD / (int)sizeof zeros + 1; i++)
        add_record(l, 4, TRACE_PART, zeros, sizeof zeros);
    check_refused(l, "a record of more than");
    l = three_steps();
    add_record(l, 4, TRACE_PART, "x", 1);
    check_refused(l, "step 1: sample 120 stands where uid 1 belongs"); /* 'x' is 120 */
    l = three_steps();
    add_record(l, 7, TRACE_PART, "x", 1); /* a process died, and a RUN went on */
    add_record(l, 8, l->r[0].type, l->r[0].data, l->r[0].n);
    for (int i = 0; i < 6; i++)
        add_record(l, 9 + i, l->r[1 + i].type, l->r[1 + i].data, l->r[1 + i].n);
    write_records(l, "resumed");
    cr_assert_eq(pl_trace_read("resumed", NULL, &report, &err), PL_OK, "%s", err.msg);
    cr_assert(report.state == PL_TRACE_COMPLETE && report.n_repeated == 1 && report.n_runs == 2);
}

Test(trace, a_step_that_a_crash_cut_short_is_open_and_the_next_sitting_writes_it_anew)
{
    pl_trace_report report;
    pl_error err = {0};
    heard h;

    made_records *l = three_steps();
    while (l->n > 10) /* RUN, step 1, STEP 2, COST, 1 SAMPLE */
        drop_record(l, l->n - 1);
    cr_assert_eq(pl_dir_make("run/trace", NULL), PL_OK);
    write_records(l, "run/trace/000001.journal");
    cr_assert_eq(pl_trace_read("run", NULL, &report, &err), PL_OK, "%s", err.msg);
    cr_assert_str_eq(report.what, "open at step 1; step 2 has 1 of 4 samples");
    pl_trace *t = open_trace("run", 1, 1);
    put_made(t, 2, 1);
    pl_trace_close(t);
    cr_assert_eq(listen("run", &h, &report, &err), PL_OK, "%s", err.msg);
    cr_assert(h.n_runs == 2 && h.n_steps == 2 && report.n_repeated == 0 && report.step == 2);
}

Test(trace, a_token_beyond_the_vocabulary_is_damage)
{
    pl_trace_run r = make_run(0);
    pl_trace *t = NULL;
    const unsigned char uid[16] = {1};
    made_records *l = three_steps();
    static made_records small;

    r.n_vocab = 10;
    cr_assert_eq(pl_trace_open(&t, "run", uid, &r, NULL, NULL), PL_OK);
    pl_trace_close(t);
    read_records(&small, "run/trace/000001.journal");
    add_record(l, 1, TRACE_RUN, small.r[0].data, small.r[0].n);
    check_refused(l, "a vocabulary of 10 tokens, it had 49152");
    drop_record(l, 0);
    check_refused(l, "step 1, uid 0: token 0 is id ");
}
