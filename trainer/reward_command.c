/* trainer/reward_command.c - the samples of a reward command: asked, answered, asked again.
 *
 *                 send_some                reply with a score
 *   submit -> waiting -----------> in flight --------------------> done -> callback
 *                ^                    |  |                          ^
 *                |   the child ended  |  | error, deadline          | second failure
 *                +--------------------+  +----------- blame --------+
 *                |                                      |
 *                +--------------------------------------+ first failure, behind all others
 *
 * In flight stands in the order of writing.  Only its first sample has a clock: a child that works
 * through its input one by one has not begun with the others.  Each sample sits in one queue, as
 * the line that is written, so sending it again needs no memory. */
#include "trainer/reward_command.h"

#include "core/json.h"
#include "trainer/reward_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    IN_FLIGHT_MAX = 64,
    LINE_MAX_BYTES = 64 << 10, /* of a reply */
    GARBAGE_MAX = 1 << 20,     /* bytes without a usable reply */
    READ_MAX = 256 << 10,      /* bytes of one pass, so that a flood cannot hold the caller */
    DEATHS_MAX = 5,            /* a minute */
    MINUTE_MS = 60000,
    START_MS = 60000, /* most that the first answer of a child may take more */
    RETRY_FACTOR = 4, /* second try's deadline, first try's = 1 */
    SLICE_MS = 100,   /* a child that ended while others hold its pipes is seen after this */
    EXIT_MS = 200,    /* between the end of its output and its own */
};

typedef reward_sample sample;

struct pl_rewarder {
    char *command;
    int64_t timeout_ms, memory_mb;
    float timeout_value;
    reward_queue waiting, in_flight, done;
    int64_t n_submitted;
    sample *sending; /* last of in_flight, partly written; or NULL */
    size_t n_sent;
    int64_t head_since_ms; /* the clock of in_flight.first */
    reward_child child;
    int has_replied;  /* this child */
    int ever_replied; /* this or an earlier one */
    size_t n_garbage; /* bytes since its last usable reply */
    size_t n_line;
    int is_skipping; /* in a line that is too long */
    int64_t deaths_ms[DEATHS_MAX];
    int n_deaths;
    int is_broken;
    pl_error broken; /* why */
    reward_notes notes;
    pl_rewarder_stats stats;
    char line[LINE_MAX_BYTES];
};

/* ---- life ---- */

pl_status pl_rewarder_new(pl_rewarder **out, const pl_rewarder_options *o, pl_error *err)
{
    if (!o->command || o->command[0] == '\0')
        return pl_fail(err, PL_E_CONFIG, "reward.command is empty: there is nothing to run");
    if (!(o->timeout_s > 0) || o->timeout_s > 1e9)
        return pl_fail(err, PL_E_CONFIG, "reward.timeout is %g: it must be positive, in seconds",
            o->timeout_s);
    pl_rewarder *r = calloc(1, sizeof *r);
    if (!r || !(r->command = strdup(o->command))) {
        free(r);
        return pl_fail(err, PL_E_NOMEM, "no memory for the rewards");
    }
    r->timeout_ms = (int64_t)(o->timeout_s * 1000) > 0 ? (int64_t)(o->timeout_s * 1000) : 1;
    r->timeout_value = o->timeout_value;
    r->memory_mb = o->memory_mb;
    r->notes.log = o->log;
    r->child = (reward_child){0, -1, -1, -1};
    *out = r;
    return PL_OK;
}

/* What this child had sent so far is worth nothing to the next. */
static void forget_output(pl_rewarder *r)
{
    r->sending = NULL;
    r->n_line = 0;
    r->n_garbage = 0;
    r->is_skipping = 0;
    r->has_replied = 0;
}

void pl_rewarder_clear(pl_rewarder *r)
{
    if (r->in_flight.n > 0) {
        reward_child_stop(&r->child, NULL);
        reward_note_end(&r->notes);
        forget_output(r);
    }
    reward_drop_all(&r->waiting);
    reward_drop_all(&r->in_flight);
    reward_drop_all(&r->done);
    if (r->is_broken)
        r->n_deaths = 0;
    r->is_broken = 0;
}

void pl_rewarder_free(pl_rewarder *r)
{
    if (!r)
        return;
    reward_child_stop(&r->child, NULL);
    pl_rewarder_clear(r);
    pl_rewarder_settle(r);
    free(r->command);
    free(r);
}

static void put_field(pl_json *j, const char *key, const char *text, size_t n_bytes)
{
    pl_json_text(j, key);
    if (text)
        pl_json_string(j, text, n_bytes);
    else
        pl_json_text(j, "null");
}

/* JSON text may be laid out over lines; between its tokens a line break is a blank, and inside
 * strings it cannot stand. */
static void put_json(pl_json *j, const char *text)
{
    const size_t at = j->n;

    pl_json_text(j, text);
    for (size_t i = at; i < j->n; i++)
        if (j->data[i] == '\n' || j->data[i] == '\r')
            j->data[i] = ' ';
}

pl_status pl_rewarder_submit(pl_rewarder *r, int64_t id, const char *data_source,
    const char *solution, size_t n_solution, const char *ground_truth, const char *extra_info_json,
    pl_error *err)
{
    pl_json j = {0};
    sample *s = calloc(1, sizeof *s);

    if (!s)
        return pl_fail(err, PL_E_NOMEM, "no memory for the request of a reward");
    s->id = id;
    s->serial = r->n_submitted;
    pl_json_text(&j, "{\"id\":");
    pl_json_int(&j, s->serial);
    put_field(&j, ",\"data_source\":", data_source, data_source ? strlen(data_source) : 0);
    put_field(&j, ",\"solution_str\":", solution ? solution : "", n_solution);
    put_field(&j, ",\"ground_truth\":", ground_truth, ground_truth ? strlen(ground_truth) : 0);
    pl_json_text(&j, ",\"extra_info\":");
    put_json(&j, extra_info_json ? extra_info_json : "null");
    pl_json_text(&j, "}\n");
    const pl_status st = pl_json_check(&j, "the request of a reward", err);
    if (st != PL_OK) {
        pl_json_done(&j);
        free(s);
        return st;
    }
    s->line = j.data;
    s->n_line = j.n;
    r->n_submitted++;
    reward_push(&r->waiting, s);
    return PL_OK;
}

int pl_rewarder_pending(const pl_rewarder *r)
{
    return r->waiting.n + r->in_flight.n + r->done.n;
}

void pl_rewarder_stats_get(const pl_rewarder *r, pl_rewarder_stats *out)
{
    *out = r->stats;
}

int pl_rewarder_describe(const pl_rewarder *r, char *out, size_t n)
{
    const sample *s = r->in_flight.first;
    char head[64] = "";

    if (s)
        snprintf(head, sizeof head, ", sample %lld since %.1f s", (long long)s->id,
            (double)(reward_now_ms() - r->head_since_ms) / 1000);
    snprintf(out, n, "%d scores of reward.command (process %d)%s", pl_rewarder_pending(r),
        (int)r->child.pid, head);
    return pl_rewarder_pending(r);
}

void pl_rewarder_settle(pl_rewarder *r)
{
    reward_notes_settle(&r->notes);
}

/* ---- the fate of a sample ---- */

static void leave_flight(pl_rewarder *r, sample *s)
{
    if (r->in_flight.first == s)
        r->head_since_ms = reward_now_ms(); /* of the next one */
    reward_unlink(&r->in_flight, s);
}

static void finish(pl_rewarder *r, sample *s, float score, pl_reward_mark mark)
{
    s->score = score;
    s->mark = mark;
    reward_push(&r->done, s);
    if (mark == PL_REWARD_OK)
        r->stats.n_scored++;
    else if (mark == PL_REWARD_TIMED_OUT)
        r->stats.n_timed_out++;
    else
        r->stats.n_failed++;
}

/* A try of s has failed: it goes to again, or, returning 1, it was the last. */
static int blame(pl_rewarder *r, sample *s, pl_reward_mark mark, reward_queue *again)
{
    leave_flight(r, s);
    if (++s->n_failed > 1) {
        finish(r, s, r->timeout_value, mark);
        return 1;
    }
    r->stats.n_retries++;
    reward_push(again, s);
    return 0;
}

static int64_t head_deadline(const pl_rewarder *r)
{
    const int64_t longer = r->timeout_ms * RETRY_FACTOR;
    int64_t limit = r->in_flight.first->n_failed > 0 ? longer : r->timeout_ms;

    if (!r->has_replied) {
        const int64_t start = longer < START_MS ? longer : START_MS;
        limit = limit > start ? limit : start;
    }
    return r->head_since_ms + limit;
}

/* ---- replies ---- */

static void drop_line(pl_rewarder *r, const char *line, size_t n, const char *why)
{
    char text[REWARD_TEXT_MAX];

    r->stats.n_bad_lines++;
    r->n_garbage += n + 1;
    reward_escape(text, sizeof text, line, n);
    reward_note(&r->notes, "line on stdout dropped, it %s: %s", why, text);
}

static void take_line(pl_rewarder *r, const char *line, size_t n)
{
    reward_reply reply;
    pl_error err;

    if (reward_reply_parse(&reply, line, n, &err) != PL_OK) {
        drop_line(r, line, n, err.msg);
        return;
    }
    sample *s = r->in_flight.first;
    while (s && (s->serial != reply.id || s == r->sending))
        s = s->next;
    if (!s) {
        drop_line(r, line, n, "answers no open request");
        return;
    }
    r->n_garbage = 0;
    r->has_replied = 1;
    r->ever_replied = 1;
    if (reply.answer == REWARD_SCORE) {
        leave_flight(r, s);
        finish(r, s, reply.score, PL_REWARD_OK);
        return;
    }
    const int is_last = blame(r, s, PL_REWARD_FAILED, &r->waiting);
    reward_note(&r->notes, "sample %lld %s%s: %s", (long long)s->id,
        reply.answer == REWARD_ERROR ? "failed" : "has no finite score",
        is_last ? ", it gets reward.timeout_value" : ", it is asked again", reply.text);
}

static void take_bytes(pl_rewarder *r, const char *data, size_t n)
{
    while (n > 0) {
        const char *newline = memchr(data, '\n', n);
        const size_t part = newline ? (size_t)(newline - data) : n;
        if (r->is_skipping) {
            r->n_garbage += part;
        } else if (part > sizeof r->line - r->n_line) {
            drop_line(r, r->line, r->n_line, "is longer than 64 KiB");
            r->n_garbage += part;
            r->is_skipping = 1;
        } else {
            memcpy(r->line + r->n_line, data, part);
            r->n_line += part;
        }
        if (!newline)
            return;
        if (!r->is_skipping)
            take_line(r, r->line, r->n_line);
        r->is_skipping = 0;
        r->n_line = 0;
        data += part + 1;
        n -= part + 1;
    }
}

/* Returns 0 when the child has closed its end. */
static int read_stdout(pl_rewarder *r)
{
    char data[16 << 10];
    size_t n_bytes = 0;
    ssize_t n = 1;

    while (n > 0 && n_bytes < READ_MAX && r->n_garbage <= GARBAGE_MAX) {
        n = reward_child_read(r->child.out, data, sizeof data);
        if (n > 0) {
            take_bytes(r, data, (size_t)n);
            n_bytes += (size_t)n;
        }
    }
    return n != 0;
}

static int read_stderr(pl_rewarder *r)
{
    char data[4 << 10];
    size_t n_bytes = 0;
    ssize_t n = 1;

    while (n > 0 && n_bytes < READ_MAX) {
        n = reward_child_read(r->child.error, data, sizeof data);
        if (n > 0) {
            reward_note_stderr(&r->notes, data, (size_t)n);
            n_bytes += (size_t)n;
        }
    }
    return n != 0;
}

/* ---- requests ---- */

/* A suspect goes alone. */
static int may_send(const pl_rewarder *r)
{
    if (!r->waiting.first || r->in_flight.n >= IN_FLIGHT_MAX)
        return 0;
    return r->in_flight.n == 0 ||
           (!r->waiting.first->is_suspect && !r->in_flight.first->is_suspect);
}

/* The child reads no more: what it has not got whole waits for the next one. */
static void stop_sending(pl_rewarder *r)
{
    reward_queue back = {0};

    reward_unlink(&r->in_flight, r->sending);
    reward_push(&back, r->sending);
    reward_put_before(&r->waiting, &back);
    r->sending = NULL;
    reward_child_close_in(&r->child);
}

static void send_some(pl_rewarder *r)
{
    while (r->child.in >= 0) {
        if (!r->sending) {
            if (!may_send(r))
                return;
            r->sending = reward_pop(&r->waiting);
            r->n_sent = 0;
            reward_push(&r->in_flight, r->sending);
            if (r->in_flight.n == 1)
                r->head_since_ms = reward_now_ms();
        }
        sample *s = r->sending;
        const ssize_t n = reward_child_write(&r->child, s->line + r->n_sent, s->n_line - r->n_sent);
        if (n < 0)
            stop_sending(r);
        if (n <= 0)
            return;
        r->n_sent += (size_t)n;
        if (r->in_flight.first == s)
            r->head_since_ms = reward_now_ms();
        if (r->n_sent == s->n_line)
            r->sending = NULL;
    }
}

/* ---- the end of a child ---- */

/* One more death that no sample answers for. */
static pl_status count_death(pl_rewarder *r, const char *how, pl_error *err)
{
    const int64_t now = reward_now_ms();
    char command[96];

    if (r->n_deaths == DEATHS_MAX && now - r->deaths_ms[0] < MINUTE_MS) {
        reward_escape(command, sizeof command, r->command, strlen(r->command));
        r->is_broken = 1;
        (void)pl_fail(&r->broken, PL_E_PEER,
            "reward.command '%s' ended more than %d times in a minute; the last time it %s, and "
            "its last line on stderr was '%s': run it by hand, mind reward.memory_mb",
            command, DEATHS_MAX, how, r->notes.last);
        if (err)
            *err = r->broken;
        return PL_E_PEER;
    }
    if (r->n_deaths == DEATHS_MAX)
        memmove(r->deaths_ms, r->deaths_ms + 1, sizeof r->deaths_ms - sizeof r->deaths_ms[0]);
    else
        r->n_deaths++;
    r->deaths_ms[r->n_deaths - 1] = now;
    return PL_OK;
}

/* The child is gone by its own fault or from outside: who of those in flight has done it?  One that
 * was alone is asked again at once, so that it is known before the next death is counted. */
static pl_status judge(pl_rewarder *r, int is_from_outside, const char *how, pl_error *err)
{
    sample *only = r->in_flight.n == 1 ? r->in_flight.first : NULL;
    reward_queue again = {0};

    if (only && !is_from_outside && r->ever_replied) {
        const int is_last = blame(r, only, PL_REWARD_FAILED, &again);
        reward_put_before(&r->waiting, &again);
        if (is_last && only->is_suspect && r->n_deaths > 0)
            r->n_deaths--; /* the death that made it one is its own */
        reward_note(&r->notes, "the command %s over sample %lld, which %s", how,
            (long long)only->id, is_last ? "gets reward.timeout_value" : "is asked again");
        return PL_OK;
    }
    reward_note(&r->notes, "the command %s with %d samples open, which are asked again", how,
        r->in_flight.n);
    for (sample *s = r->in_flight.first; s && !is_from_outside; s = s->next)
        s->is_suspect = 1;
    if (only && !is_from_outside) { /* the command has never worked: let others prove that it can */
        leave_flight(r, only);
        reward_push(&r->waiting, only);
    }
    reward_put_before(&r->waiting, &r->in_flight);
    return count_death(r, how, err);
}

/* how NULL: it ended by itself, and its status tells how. */
static pl_status lose_child(pl_rewarder *r, const char *how, pl_error *err)
{
    reward_end end;
    char text[96];

    reward_child_kill(&r->child);
    if (!how && r->child.out >= 0)
        (void)read_stdout(r); /* the replies that it left */
    if (r->child.error >= 0)
        (void)read_stderr(r);
    reward_note_end(&r->notes);
    reward_child_stop(&r->child, &end);
    if (!how)
        reward_end_text(text, sizeof text, &end);
    forget_output(r);
    return judge(r, !how && end.is_from_outside, how ? how : text, err);
}

/* The first in flight has used its time. */
static void kill_hung(pl_rewarder *r)
{
    sample *s = r->in_flight.first;

    reward_child_kill(&r->child);
    if (r->child.error >= 0)
        (void)read_stderr(r);
    reward_note_end(&r->notes);
    reward_child_stop(&r->child, NULL);
    forget_output(r);
    const int is_last = blame(r, s, PL_REWARD_TIMED_OUT, &r->waiting);
    reward_put_before(&r->waiting, &r->in_flight);
    reward_note(&r->notes, "the command was killed over sample %lld, which took too long and %s",
        (long long)s->id, is_last ? "gets reward.timeout_value" : "is asked again");
}

/* The end of its output comes a moment before its status. */
static pl_status lose_silent(pl_rewarder *r, pl_error *err)
{
    for (int ms = 0; ms < EXIT_MS && !reward_child_has_ended(&r->child); ms += 10)
        (void)poll(NULL, 0, 10);
    return lose_child(
        r, reward_child_has_ended(&r->child) ? NULL : "closed its standard output", err);
}

/* ---- one pass ---- */

int pl_rewarder_fds(const pl_rewarder *r, struct pollfd fds[PL_REWARDER_FDS])
{
    int n = 0;

    if (r->child.pid == 0)
        return 0;
    if (r->child.out >= 0)
        fds[n++] = (struct pollfd){r->child.out, POLLIN, 0};
    if (r->child.error >= 0)
        fds[n++] = (struct pollfd){r->child.error, POLLIN, 0};
    if (r->child.in >= 0 && r->sending)
        fds[n++] = (struct pollfd){r->child.in, POLLOUT, 0};
    return n;
}

int pl_rewarder_wait_ms(const pl_rewarder *r)
{
    if (r->done.first || r->is_broken || (r->child.pid == 0 && r->waiting.first) ||
        (!r->sending && r->child.in >= 0 && may_send(r)))
        return 0;
    if (!r->in_flight.first)
        return -1;
    const int64_t left = head_deadline(r) - reward_now_ms();
    return left < 0 ? 0 : left < SLICE_MS ? (int)left : SLICE_MS;
}

static pl_status start(pl_rewarder *r, pl_error *err)
{
    const pl_status st = reward_child_start(&r->child, r->command, r->memory_mb, err);

    if (st == PL_OK)
        r->stats.n_starts++;
    return st;
}

static pl_status pass(pl_rewarder *r, int64_t until_ms, pl_error *err)
{
    struct pollfd fds[PL_REWARDER_FDS];

    if (r->is_broken) {
        if (err)
            *err = r->broken;
        return r->broken.code;
    }
    if (r->child.pid == 0) {
        const pl_status st = r->waiting.first ? start(r, err) : PL_OK;
        if (st != PL_OK || r->child.pid == 0)
            return st;
    }
    send_some(r);
    const int64_t left = until_ms - reward_now_ms();
    const int own = pl_rewarder_wait_ms(r);
    (void)poll(fds, (nfds_t)pl_rewarder_fds(r, fds),
        own < 0 || left <= 0 ? 0
        : left < own         ? (int)left
                             : own);

    const int has_ended = reward_child_has_ended(&r->child); /* before the last read */
    if (r->child.error >= 0 && !read_stderr(r))
        reward_child_close_error(&r->child);
    const int is_open = read_stdout(r);
    if (r->n_garbage > GARBAGE_MAX)
        return lose_child(r, "wrote more than 1 MiB without a reply", err);
    if (has_ended)
        return lose_child(r, NULL, err);
    if (!is_open)
        return lose_silent(r, err);
    send_some(r);
    if (r->child.in < 0 && !r->in_flight.first && r->waiting.first)
        return lose_child(r, "closed its standard input", err);
    if (r->in_flight.first && reward_now_ms() >= head_deadline(r))
        kill_hung(r);
    return PL_OK;
}

pl_status pl_rewarder_poll(
    pl_rewarder *r, int timeout_ms, pl_reward_fn fn, void *ctx, pl_error *err)
{
    const int64_t until = reward_now_ms() + (timeout_ms > 0 ? timeout_ms : 0);
    pl_status st;

    do
        st = pass(r, until, err);
    while (st == PL_OK && !r->done.first && pl_rewarder_pending(r) > 0 && reward_now_ms() < until);
    while (r->done.first) {
        sample *s = reward_pop(&r->done);
        fn(ctx, s->id, s->score, s->mark);
        reward_sample_free(s);
    }
    return st;
}
