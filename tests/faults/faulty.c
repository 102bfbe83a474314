/* tests/faults/faulty.c - paceline that says what it does and, if asked, lies: the product's own
 * sources, linked with --wrap (CMakeLists.txt here), so that nothing of this is in the product.
 *
 *   SEEN=1     every log line, debug too, with the time; leases as they leave, samples as they
 *              begin to run, counters when sockets and coordinator close.
 *   SLOW_MS=N  rounds of an engine take so much longer, without work.
 *   LIE=MODE   a worker that lies in RESULTs, from the LIE_FROM-th on (default 3):
 *     token, logprob, nan, finish, version, cut    one thing of the sample is another
 *     uid        the sample under the number of one that another worker is likely to have
 *     sibling    the sample under the number of its sibling: prompt and log-probs are true
 *     second     a true RESULT, and then another one of the same sample
 *     redraw     the sample as other noise would have drawn it: every token, its log-prob and all
 *                that follows fit together, and only drawing it again tells
 *     prefix     in PROGRESS instead; then it dies, and others go on behind what it said
 */
#include "ipc/ipc.h"
#include "rollout/coordinator.h"
#include "rollout/rollout.h"

#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 32, GROUP = 8 }; /* samples, as tests/e2e/common.sh runs them */

/* The linker's names: __real_ is the product's function, __wrap_ what its callers get. */
void __real_pl_log_write(const pl_log *log, pl_log_level level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void __wrap_pl_log_write(const pl_log *log, pl_log_level level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
pl_status __real_pl_socket_send(pl_socket *s, const pl_peer *to, const pl_msg *m, pl_error *err);
pl_status __wrap_pl_socket_send(pl_socket *s, const pl_peer *to, const pl_msg *m, pl_error *err);
void __real_pl_socket_close(pl_socket *s);
void __wrap_pl_socket_close(pl_socket *s);
void __real_pl_coordinator_free(pl_coordinator *c);
void __wrap_pl_coordinator_free(pl_coordinator *c);
pl_status __real_pl_engine_submit(pl_engine *e, const pl_request *r, pl_error *err);
pl_status __wrap_pl_engine_submit(pl_engine *e, const pl_request *r, pl_error *err);

pl_status __real_pl_engine_round(
    pl_engine *e, pl_response_fn on_tokens, void *ctx, int *n_left, pl_error *err);
pl_status __wrap_pl_engine_round(
    pl_engine *e, pl_response_fn on_tokens, void *ctx, int *n_left, pl_error *err);

static int is_seen(void)
{
    const char *seen = getenv("SEEN");
    return seen && seen[0] == '1';
}

/* ---- what happens is seen ---- */

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void __wrap_pl_log_write(const pl_log *log, pl_log_level level, const char *fmt, ...)
{
    const pl_log all = {PL_LOG_DEBUG, STDERR_FILENO, 0};
    char text[2048];
    va_list args;

    va_start(args, fmt);
    (void)vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (is_seen())
        __real_pl_log_write(&all, level, "t=%.3f pid=%d %s", seconds(), (int)getpid(), text);
    else
        __real_pl_log_write(log, level, "%s", text);
}

#define see(...) __wrap_pl_log_write(NULL, PL_LOG_DEBUG, __VA_ARGS__)

void __wrap_pl_socket_close(pl_socket *s)
{
    pl_socket_stats t;

    if (s) {
        pl_socket_get_stats(s, &t);
        see("event=counted socket=%s received=%" PRIu64 " sent=%" PRIu64 " malformed=%" PRIu64
            " unsent=%" PRIu64,
            pl_socket_address(s), t.n_received, t.n_sent, t.n_malformed, t.n_dropped);
    }
    __real_pl_socket_close(s);
}

void __wrap_pl_coordinator_free(pl_coordinator *c)
{
    pl_coordinator_stats t;

    if (c) {
        pl_coordinator_get_stats(c, &t);
        see("event=counted leases=%" PRIu64 " again=%" PRIu64 " duplicates=%" PRIu64
            " conflicts=%" PRIu64 " old_epoch=%" PRIu64 " rejected=%" PRIu64 " refused=%" PRIu64
            " invalid=%" PRIu64 " lost=%d quarantined=%d",
            t.n_leases, t.n_releases, t.n_duplicates, t.n_conflicts, t.n_old_epoch, t.n_rejected,
            t.n_refused, t.n_invalid, t.n_lost, t.n_quarantined);
    }
    __real_pl_coordinator_free(c);
}

static const char *lie(void)
{
    const char *mode = getenv("LIE");
    return mode ? mode : "";
}

static int is_lie(const char *mode)
{
    return strcmp(lie(), mode) == 0;
}

/* From the LIE_FROM-th sample on, if they are drawn from the start. */
static pl_status submit_redrawn(pl_engine *e, const pl_request *r, pl_error *err)
{
    static int n_samples;
    const char *from = getenv("LIE_FROM");
    pl_request other = *r;

    if (r->n_prefix == 0 && ++n_samples >= (from ? atoi(from) : 3)) {
        other.noise_key ^= 1;
        fprintf(stderr, "lied: redraw of sample %u\n", r->uid);
    }
    return __real_pl_engine_submit(e, &other, err);
}

pl_status __wrap_pl_engine_submit(pl_engine *e, const pl_request *r, pl_error *err)
{
    if (is_lie("redraw"))
        return submit_redrawn(e, r, err);
    const pl_status st = __real_pl_engine_submit(e, r, err);
    see("event=runs uid=%u prefix=%d status=%d", r->uid, r->n_prefix, (int)st);
    return st;
}

pl_status __wrap_pl_engine_round(
    pl_engine *e, pl_response_fn on_tokens, void *ctx, int *n_left, pl_error *err)
{
    const char *ms = getenv("SLOW_MS");
    const struct timespec t = {.tv_nsec = (ms ? atol(ms) : 0) * 1000000};

    if (t.tv_nsec > 0)
        nanosleep(&t, NULL);
    return __real_pl_engine_round(e, on_tokens, ctx, n_left, err);
}

/* ---- lies ---- */

/* Copies of n elements of 4 bytes, with room to be changed; the message is sent before they go. */
static void *own(pl_span *span, void *room, size_t n_room)
{
    if (span->n * (size_t)4 > n_room)
        return NULL;
    memcpy(room, span->data, (size_t)span->n * 4);
    span->data = room;
    return room;
}

static void change(pl_msg_result *r, int32_t *tokens, float *logprobs)
{
    const uint32_t at = r->tokens.n / 2;
    uint32_t bits;

    if (is_lie("token") || is_lie("second"))
        tokens[at] ^= 1;
    if (is_lie("nan"))
        logprobs[at] = NAN;
    if (is_lie("logprob")) {
        memcpy(&bits, &logprobs[at], sizeof bits);
        bits ^= 1;
        memcpy(&logprobs[at], &bits, sizeof bits);
    }
    if (is_lie("finish"))
        r->finish = r->finish == PL_FINISH_STOP ? PL_FINISH_LENGTH : PL_FINISH_STOP;
    if (is_lie("version"))
        r->policy_version++;
    if (is_lie("cut") && r->tokens.n > 1) {
        r->tokens.n = r->logprobs.n = --r->sources.n;
        r->finish = PL_FINISH_STOP;
    }
    if (is_lie("uid")) {
        r->uid = r->uid / BATCH * BATCH + (r->uid + BATCH / 2) % BATCH;
        r->group = r->uid / GROUP;
    }
    if (is_lie("sibling"))
        r->uid ^= 1;
}

static pl_status lie_in_result(pl_socket *s, const pl_msg *m, pl_error *err)
{
    int32_t tokens[4096];
    float logprobs[4096];
    pl_msg other;

    other.h = m->h; /* not the room for strings: it may be uninitialised */
    other.u = m->u;
    pl_msg_result *r = &other.u.result;
    if (!own(&r->tokens, tokens, sizeof tokens) || !own(&r->logprobs, logprobs, sizeof logprobs))
        return __real_pl_socket_send(s, NULL, m, err);
    change(r, tokens, logprobs);
    fprintf(stderr, "lied: %s of sample %u as %u\n", lie(), m->u.result.uid, r->uid);
    if (is_lie("second"))
        (void)__real_pl_socket_send(s, NULL, m, err);
    return __real_pl_socket_send(s, NULL, &other, err);
}

/* Then it is gone, when the lie has left. */
static pl_status lie_in_progress(pl_socket *s, const pl_msg *m, pl_error *err)
{
    const struct timespec a_moment = {.tv_nsec = 100 * 1000 * 1000};
    int32_t tokens[4096];
    pl_msg other;

    other.h = m->h;
    other.u = m->u;
    if (!own(&other.u.progress.tokens, tokens, sizeof tokens))
        return __real_pl_socket_send(s, NULL, m, err);
    tokens[other.u.progress.tokens.n / 2] ^= 1;
    const pl_status st = __real_pl_socket_send(s, NULL, &other, err);
    fprintf(stderr, "lied: prefix of sample %u\n", m->u.progress.uid);
    nanosleep(&a_moment, NULL);
    raise(SIGKILL);
    return st;
}

pl_status __wrap_pl_socket_send(pl_socket *s, const pl_peer *to, const pl_msg *m, pl_error *err)
{
    static int n_results;
    const char *from = getenv("LIE_FROM");

    if (m->h.type == PL_MSG_LEASE)
        see("event=lease batch=%" PRIu64 " uid=%u prefix=%u", m->u.lease.batch, m->u.lease.uid,
            m->u.lease.prefix.n);
    if (to || !lie()[0] || is_lie("redraw"))
        return __real_pl_socket_send(s, to, m, err);
    if (m->h.type == PL_MSG_RESULT && !is_lie("prefix") && ++n_results >= (from ? atoi(from) : 3))
        return lie_in_result(s, m, err);
    if (m->h.type == PL_MSG_PROGRESS && is_lie("prefix") && m->u.progress.tokens.n > 1)
        return lie_in_progress(s, m, err);
    return __real_pl_socket_send(s, to, m, err);
}
