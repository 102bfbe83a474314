/* cli/run_wire.c - the trainer's connection to the coordinator, and the weights that it publishes.
 */
#include "cli/run_wire.h"
#include "cli/version.h"
#include "core/file.h"
#include "model/source.h"
#include "tensor/tensor.h"

#include <string.h>
#include <unistd.h>

enum { KEPT_VERSIONS = 2, PATIENCE_S = 60, START_LOST_S = 5 };
static const double hello_s = 0.1;

/* ---- talking ---- */

void run_wire_say(run_wire *w, pl_msg *m, pl_msg_type type)
{
    pl_error lost = {0};
    m->h.type = (uint16_t)type;
    (void)pl_socket_send(w->socket, NULL, m, &lost); /* said again by its timer */
}

int run_is_due(double *at, double every)
{
    const double now = run_seconds();
    if (now - *at < every)
        return 0;
    *at = now;
    return 1;
}

static void keep_alive(run_wire *w)
{
    pl_msg m = {0};

    if (!w->welcomed && run_is_due(&w->hello_at, hello_s)) {
        m.u.hello = (pl_msg_hello){.role = PL_ROLE_TRAINER,
            .name = "trainer",
            .numeric_class = PL_NUMERIC_CLASS,
            .build = PL_VERSION " " PL_COMMIT,
            .host = w->host,
            .pid = (uint32_t)getpid(),
            .n_threads = (uint32_t)pl_team_size(w->m->team)};
        run_wire_say(w, &m, PL_MSG_HELLO);
    } else if (w->welcomed && run_is_due(&w->status_at, w->heartbeat_s)) {
        m.u.status = (pl_msg_status){.state = PL_WORKER_BUSY,
            .policy_version = w->version,
            .batch = w->batch,
            .drafter_version = w->drafter};
        run_wire_say(w, &m, PL_MSG_STATUS);
    }
}

/* The supervisor holds RUN/lock while it lives.  Without one the trainer goes on for a minute. */
static pl_status check_supervisor(run_wire *w, pl_error *err)
{
    const double now = run_seconds();

    if (run_is_locked(w->dir, "lock"))
        w->orphan_since = now;
    else if (now - w->orphan_since > PATIENCE_S)
        return pl_fail(err, PL_E_STOPPED, "paceline run is gone for %d seconds", (int)PATIENCE_S);
    return PL_OK;
}

static pl_status rejected(run_wire *w, const pl_msg_reject *reject, pl_error *err)
{
    if (reject->code != PL_E_PEER && reject->code != PL_E_TIMEOUT)
        return pl_fail(err, PL_E_PEER, "the coordinator refuses the trainer: %s", reject->reason);
    w->welcomed = 0; /* it began anew, or does not know us: say HELLO */
    return PL_OK;
}

/* A coordinator that is there says BATCH four times a second, or answers HELLO.  If it says nothing
 * it may have forgotten this peer for good (a message with a frame missing): come as another one.
 * Time spent on an update is no silence: nobody listened. */
static pl_status reconnect_if_silent(run_wire *w, pl_error *err)
{
    const double now = run_seconds();

    if (now - w->listened_at > 0.5 * w->lost_s)
        w->heard_at = now;
    w->listened_at = now;
    if (now - w->heard_at < 2 * w->lost_s)
        return PL_OK;
    pl_log_warn(
        w->log, "no word from the coordinator for %.0f s: connecting anew", now - w->heard_at);
    pl_socket_close(w->socket);
    w->socket = NULL;
    w->welcomed = 0;
    w->heard_at = now;
    return pl_socket_connect(&w->socket, w->ipc, w->address, PL_ROLE_TRAINER, err);
}

/* What is told of the drafter concerns no dialogue.  1: it was that. */
static int take_drafter(run_wire *w, const pl_msg *m)
{
    if (m->h.type != PL_MSG_DRAFTING && m->h.type != PL_MSG_DRAFTER)
        return 0;
    if (w->on_drafter && m->h.epoch == w->epoch)
        w->on_drafter(w->ctx, m);
    return 1;
}

pl_status run_wire_listen(run_wire *w, int timeout_ms, pl_msg *m, pl_error *err)
{
    keep_alive(w);
    pl_status st = check_supervisor(w, err);
    if (st != PL_OK)
        return st;
    if (cli_stop)
        return pl_fail(err, PL_E_STOPPED, "stopped by a signal");
    st = reconnect_if_silent(w, err);
    if (st != PL_OK)
        return st;
    if (pl_socket_recv(w->socket, timeout_ms, NULL, m, err) != PL_OK)
        return PL_E_TIMEOUT; /* nothing, or a broken message: it comes again */
    w->heard_at = run_seconds();
    switch (m->h.type) {
    case PL_MSG_WELCOME:
        if (m->h.epoch < w->epoch)
            return PL_E_TIMEOUT; /* of a coordinator that was replaced */
        w->is_anew |= !w->welcomed || m->h.epoch > w->epoch;
        w->epoch = m->h.epoch;
        w->welcomed = 1;
        w->heartbeat_s = m->u.welcome.heartbeat_ms * 1e-3;
        w->lost_s = m->u.welcome.lost_ms * 1e-3;
        pl_socket_set_epoch(w->socket, m->h.epoch);
        return PL_E_TIMEOUT;
    case PL_MSG_REJECT:
        if (m->h.epoch < w->epoch)
            return PL_E_TIMEOUT;
        st = rejected(w, &m->u.reject, err);
        return st == PL_OK ? PL_E_TIMEOUT : st;
    default:
        if (m->h.epoch > w->epoch)
            w->welcomed = 0; /* it began anew: say HELLO */
        if (take_drafter(w, m))
            return PL_E_TIMEOUT;
        return m->h.epoch == w->epoch ? PL_OK : PL_E_TIMEOUT;
    }
}

void run_wire_alive(run_wire *w)
{
    pl_msg m;
    pl_error ignored = {0};

    keep_alive(w);
    for (int i = 0; i < 16; i++) /* BATCH and the like: nobody waits for them now */
        if (pl_socket_recv(w->socket, 0, NULL, &m, &ignored) == PL_E_TIMEOUT)
            break;
        else if (m.h.type == PL_MSG_REJECT && m.h.epoch >= w->epoch)
            (void)rejected(w, &m.u.reject, &ignored);
        else
            (void)take_drafter(w, &m);
}

/* ---- weights ---- */

void run_wire_say_version(run_wire *w)
{
    pl_msg m = {.u.version = {.version = w->version,
                    .hash = w->weights,
                    .n_bytes = w->n_weights,
                    .dir = w->version_dir,
                    .host = w->host,
                    .endpoint = pl_publisher_address(w->publisher),
                    .bundle = w->bundle,
                    .n_bundle = w->n_bundle,
                    .max_ctx = (uint32_t)w->max_ctx}};
    run_wire_say(w, &m, PL_MSG_VERSION);
    w->version_at = run_seconds();
}

static void forget_version(const run_wire *w, uint32_t version)
{
    char dir[sizeof w->version_dir];
    pl_error ignored = {0};

    snprintf(dir, sizeof dir, "%s/weights/v%08u", w->dir, version);
    (void)pl_dir_remove(dir, &ignored); /* a reader keeps what it has mapped */
}

/* Write the policy as a model directory, durable, and hold it for those who fetch it. */
pl_status run_wire_publish(run_wire *w, uint32_t version, pl_error *err)
{
    char beside[sizeof w->version_dir + 8], path[sizeof w->version_dir + 32];

    snprintf(w->version_dir, sizeof w->version_dir, "%s/weights/v%08u", w->dir, version);
    snprintf(beside, sizeof beside, "%s.tmp", w->version_dir);
    pl_status st = pl_dir_remove(beside, err);
    if (st == PL_OK)
        st = pl_dir_make(beside, err);
    if (st == PL_OK)
        st = pl_model_save(beside, pl_source_arch(w->m->source), pl_source_params(w->m->source),
            w->masters, 1, w->m->tokenizer, err);
    if (st == PL_OK)
        st = pl_bundle_write(beside, err);
    if (st == PL_OK)
        st = pl_dir_remove(w->version_dir, err);
    if (st == PL_OK)
        st = pl_dir_commit(beside, w->version_dir, err);
    snprintf(path, sizeof path, "%s/model.safetensors", w->version_dir);
    if (st == PL_OK)
        st = pl_publisher_add(w->publisher, path, version, &w->weights, &w->n_weights, err);
    snprintf(path, sizeof path, "%s/" PL_BUNDLE_FILE, w->version_dir);
    if (st == PL_OK)
        st = pl_publisher_add(w->publisher, path, version, &w->bundle, &w->n_bundle, err);
    if (st != PL_OK)
        return pl_wrap(err, st, "weights of version %u", version);
    w->version = version;
    if (version >= KEPT_VERSIONS)
        forget_version(w, version - KEPT_VERSIONS);
    return PL_OK;
}

/* ---- opening ---- */

pl_status run_wire_open(run_wire *w, pl_error *err)
{
    char weights[512];
    const run_supervise_options *o = &w->config->wire;
    const pl_ipc_options io = {.keys = o->keys, .is_server = 1};

    w->orphan_since = w->listened_at = w->heard_at = run_seconds();
    w->lost_s = START_LOST_S;
    run_host(w->host);
    w->drafter_before = run_drafting_newest(w->config->trainer.default_local_dir);
    pl_status st = run_absolute(w->config->trainer.default_local_dir, w->dir, sizeof w->dir, err);
    if (st == PL_OK)
        st = run_find_coordinator(w->dir, PATIENCE_S, w->address, sizeof w->address, err);
    if (st == PL_OK)
        st = pl_ipc_new(&w->ipc, &io, w->log, err);
    if (st == PL_OK)
        st = pl_socket_connect(&w->socket, w->ipc, w->address, PL_ROLE_TRAINER, err);
    if (st == PL_OK)
        st = run_weights_address(w->dir, o->listen, weights, sizeof weights, err);
    const pl_publisher_options po = {
        .address = weights, .max_contents = 2 * KEPT_VERSIONS, .max_bytes = 64 << 20};
    if (st == PL_OK)
        st = pl_publisher_new(&w->publisher, w->ipc, &po, w->log, err);
    if (st == PL_OK && run_has_learned(w->config) && o->listen) /* for other machines only */
        st = pl_publisher_new(&w->drafters, w->ipc, &po, w->log, err);
    return st;
}

void run_wire_close(run_wire *w)
{
    pl_msg leave = {0};

    if (w->socket && w->welcomed) /* it ends by itself: nobody has lost it */
        run_wire_say(w, &leave, PL_MSG_LEAVE);
    pl_socket_close(w->socket);
    pl_publisher_free(w->drafters);
    pl_publisher_free(w->publisher);
    pl_ipc_free(w->ipc);
}
