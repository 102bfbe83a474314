/* cli/coordinate.c - paceline coordinator: the process that grants leases and keeps the ledger. */
#include "cli/observe.h"
#include "cli/run.h"
#include "cli/version.h"
#include "core/file.h"
#include "rollout/coordinator.h"
#include "tensor/tensor.h"
#include "trainer/spot.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct watch {
    const char *run_dir;
    double orphan_since;
    const run_config *config;
    observer *observer; /* NULL: nobody can watch */
    int has_begun;
} watch;

enum { PATIENCE_S = 60, CONFIG_BYTES_MAX = 256 << 10 };

/* A signal, or no supervisor for a minute, and it leaves. */
static int should_stop(void *ctx)
{
    watch *w = ctx;

    if (cli_stop)
        return 1;
    if (run_is_locked(w->run_dir, "lock"))
        w->orphan_since = run_seconds();
    return run_seconds() - w->orphan_since > PATIENCE_S;
}

/* ---- for who watches ---- */

static void take_worker(void *ctx, const pl_coordinator_worker *w)
{
    const pl_snapshot_worker row = {.state = (uint8_t)w->state,
        .pid = w->pid,
        .n_threads = w->n_threads,
        .policy_version = w->policy_version,
        .drafter_version = w->drafter_version,
        .n_running = w->n_leased,
        .n_held = w->n_held,
        .rate = w->rate};
    watch *o = ctx;

    observe_worker(o->observer, w->name, &row);
    if (w->state == PL_WORKER_BUSY)
        o->observer->now.rate += (double)w->rate;
}

static void take_length(void *ctx, uint32_t n_tokens, int is_done)
{
    pl_snapshot *s = ctx;
    const int bucket = pl_snapshot_bucket((int)n_tokens);

    if (is_done)
        s->lengths[bucket]++;
    else
        s->running_lengths[bucket]++;
}

/* What a batch is for says its id; that rewards or the update are awaited, how far it is. */
static pl_phase phase_of(const watch *w, const pl_coordinator_view *v)
{
    const uint64_t kind = v->batch >> 32;
    const uint64_t freq = (uint64_t)w->config->trainer.save_freq;

    if (v->is_done)
        return PL_PHASE_DONE;
    if (!v->has_batch)
        return PL_PHASE_STARTING;
    if (kind != RUN_TRAIN)
        return kind == RUN_EVAL ? PL_PHASE_EVAL : PL_PHASE_COMPARE;
    if (!v->is_complete)
        return PL_PHASE_ROLLOUT;
    if (v->n_rewarded < v->n_samples && !v->is_consumed)
        return PL_PHASE_REWARD;
    if (v->is_consumed && freq > 0 && v->step % freq == 0 && v->checkpoint < v->step)
        return PL_PHASE_CHECKPOINT;
    return PL_PHASE_UPDATE;
}

/* A ledger of its first epoch: what trained the drafter here before it was numbered by another. */
static void disown_drafter(const char *run_dir)
{
    const pl_log log = {PL_LOG_WARN, STDERR_FILENO, isatty(STDERR_FILENO)};
    char dir[PL_CONFIG_STR + 16];
    pl_error err = {0};

    snprintf(dir, sizeof dir, "%s/drafter", run_dir);
    if (pl_spot_disown(dir, &err) != PL_OK)
        pl_log_warn(&log, "the drafter is not trained: %s", err.msg);
}

static void observe(void *ctx, const pl_coordinator *machine, int64_t now_ns)
{
    watch *w = ctx;
    pl_coordinator_view v;

    if (!w->has_begun && pl_coordinator_epoch(machine) == 1)
        disown_drafter(w->run_dir);
    w->has_begun = 1;
    if (!w->observer)
        return;
    pl_snapshot *s = &w->observer->now;
    pl_coordinator_watch(machine, now_ns, &v);
    observe_begin(w->observer);
    observe_phase(w->observer, phase_of(w, &v));
    s->step = (int64_t)v.step;
    s->batch = v.batch;
    s->n_samples = v.n_samples;
    s->n_done = v.n_done;
    s->n_running = v.n_running;
    s->n_queued = v.n_queued;
    s->n_tokens = v.n_tokens;
    s->policy_version = v.policy_version;
    s->drafter_version = v.drafter_version;
    s->session = v.session;
    s->n_lost = v.n_lost;
    s->n_quarantined = v.n_quarantined;
    s->n_leased_again = v.n_leased_again;
    s->n_recomputed = v.n_recomputed;
    snprintf(s->awaited, sizeof s->awaited, "%s", v.awaited);
    memset(s->lengths, 0, sizeof s->lengths);
    memset(s->running_lengths, 0, sizeof s->running_lengths);
    pl_coordinator_each_length(machine, take_length, s);
    s->rate = 0;
    pl_coordinator_each_worker(machine, take_worker, w);
    observe_end(w->observer);
}

/* ---- the process ---- */

/* The run's own number: of its ledger, and of nothing else. */
static pl_status run_id(const char *dir, char out[20], pl_error *err)
{
    char path[PL_CONFIG_STR + 16], *text = NULL;
    size_t n = 0;
    uint64_t id;

    snprintf(path, sizeof path, "%s/id", dir);
    pl_status st = pl_file_read(&text, &n, path, 64, err);
    if (st == PL_E_NOENT) {
        if (getrandom(&id, sizeof id, 0) != sizeof id)
            return pl_fail(err, PL_E_IO, "getrandom: %s", strerror(errno));
        snprintf(out, 20, "%016llx\n", (unsigned long long)id);
        st = pl_file_write(path, out, 17, err);
    } else if (st == PL_OK) {
        snprintf(out, 20, "%s", text);
    }
    out[strcspn(out, "\n")] = 0;
    free(text);
    return st;
}

static pl_status coordinate(
    const run_config *c, const run_supervise_options *wire, const char *dir, pl_error *err)
{
    char ledger[PL_CONFIG_STR + 16], endpoint[PL_CONFIG_STR + 16], config[PL_CONFIG_STR + 16];
    char absolute[PL_CONFIG_STR + 16], address[512], run[20], *text = NULL;
    size_t n_text = 0;
    int fd = -1;
    watch w = {dir, run_seconds(), c, NULL, 0};
    pl_error unwatched = {0};
    const pl_log log = {PL_LOG_WARN, STDERR_FILENO, isatty(STDERR_FILENO)};
    const pl_log told = {PL_LOG_INFO, log.fd, log.is_tty};

    snprintf(ledger, sizeof ledger, "%s/ledger", dir);
    snprintf(endpoint, sizeof endpoint, "%s/endpoint", dir);
    snprintf(config, sizeof config, "%s/config.yaml", dir);
    pl_status st = run_lock(dir, "coordinator.lock", &fd, err);
    if (st == PL_OK)
        st = run_coordinator_address(dir, address, sizeof address, err);
    if (st == PL_OK)
        st = run_absolute(dir, absolute, sizeof absolute, err);
    if (st == PL_OK && !strstr(address, absolute))
        pl_log_warn(
            &log, "the path of '%s' is too long for a socket: listening at %s", dir, address);
    if (st == PL_OK)
        st = pl_file_read(&text, &n_text, config, CONFIG_BYTES_MAX, err);
    if (st == PL_OK)
        st = run_id(dir, run, err);
    const int is_training = run_has_learned(c) && c->speculative.train;
    const pl_coordinate_options o = {
        .machine = {.run = run,
            .build = PL_VERSION " " PL_COMMIT,
            .numeric_class = PL_NUMERIC_CLASS,
            .config_hash = run_config_hash(c),
            .config = text,
            .n_config = (uint32_t)n_text,
            .heartbeat_ms = 500,
            .lost_ms = 1000 * (uint32_t)c->rollout.heartbeat_timeout,
            .resend_ms = 1000,
            .n_workers = (uint32_t)c->rollout.num_workers,
            .stall_s = (uint32_t)c->trainer.stall_seconds,
            .spot_min_idle = is_training ? (int)c->speculative.min_workers : 0,
            .spot_budget_s = (uint32_t)c->speculative.session_seconds,
            .consolidate_below = is_training ? (uint32_t)c->rollout.consolidate_below : 0,
            .join_timeout_s = c->trainer.stall_seconds > 0 ? 60 : 0},
        .ledger = ledger,
        .address = address,
        .listen = wire->listen,
        .keys = wire->keys,
        .endpoint_file = endpoint,
        .should_stop = should_stop,
        .observe = observe,
        .ctx = &w};
    if (st == PL_OK)
        st = pl_dir_make(ledger, err);
    if (st == PL_OK && chmod(ledger, 0700) != 0) /* it holds the prompts and the responses */
        st = pl_fail(err, PL_E_IO, "'%s': %s", ledger, strerror(errno));
    if (st == PL_OK && wire->listen)
        pl_log_info(&told, "listening at %s for workers with keys of '%s'", wire->listen,
            wire->keys ? wire->keys : "");
    if (st == PL_OK &&
        observe_open(&w.observer, dir, run, c->trainer.total_training_steps, &unwatched) != PL_OK)
        pl_log_warn(&log, "%s; continuing, paceline monitor will see less", unwatched.msg);
    if (st == PL_OK)
        st = pl_coordinate(&o, &log, err);
    observe_close(w.observer, st == PL_OK);
    free(text);
    if (fd >= 0)
        close(fd);
    return st;
}

/* A flood of connections must not leave the next worker without a descriptor. */
static void raise_file_limit(void)
{
    struct rlimit r;

    if (getrlimit(RLIMIT_NOFILE, &r) != 0)
        return;
    r.rlim_cur = r.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &r);
}

int cmd_coordinator(int argc, char **argv)
{
    run_config config;
    run_supervise_options wire = {0};
    char path[PL_CONFIG_STR + 16];
    int n, helped;
    const cli_option options[] = {
        {"listen", CLI_STRING, &wire.listen, 0, 0, "ADDRESS", "as of paceline run"},
        {"keys", CLI_STRING, &wire.keys, 0, 0, "DIR", "as of paceline run"},
        {0},
    };
    pl_error err = {0};

    pl_status st = cli_parse(argc, argv, "coordinator RUN_DIR", options, &n, &helped, &err);
    if (st == PL_OK && helped)
        return 0;
    if (st == PL_OK && (n != 1 || strlen(argv[1]) >= PL_CONFIG_STR))
        st = pl_fail(&err, PL_E_USAGE, "coordinator wants RUN_DIR: paceline run starts it");
    if (st == PL_OK) {
        snprintf(path, sizeof path, "%s/config.yaml", argv[1]);
        st = run_config_load(&config, path, NULL, 0, &err);
    }
    if (st == PL_OK) {
        (void)prctl(PR_SET_NAME, "pl-coordinator"); /* the program is started as /proc/self/exe */
        cli_catch_signals(1);
        raise_file_limit();
        st = coordinate(&config, &wire, argv[1], &err);
    }
    if (st == PL_E_STOPPED)
        return 0; /* who asked it to stop knows */
    return st == PL_OK ? 0 : cli_report(&err);
}
