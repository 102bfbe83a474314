/* cli/work.c - paceline worker: joins a run, here or on another machine, and leaves it again. */
#include "cli/work.h"
#include "cli/version.h"
#include "core/file.h"
#include "tensor/tensor.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATIENCE_S = 60 };

typedef struct life { /* of a long call: the coordinator hears from us */
    void (*keep_alive)(void *);
    void *ctx;
} life;

static int on_fetched(void *ctx, uint64_t done, uint64_t total)
{
    const life *l = ctx;
    (void)done;
    (void)total;
    l->keep_alive(l->ctx);
    return cli_stop > 0;
}

pl_status work_make_cache(work *w, pl_error *err)
{
    const char *base = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");

    if (w->cache[0])
        return PL_OK;
    if (base && base[0])
        snprintf(w->cache, sizeof w->cache, "%s/paceline", base);
    else
        snprintf(w->cache, sizeof w->cache, "%s/.cache/paceline", home && home[0] ? home : "/tmp");
    const pl_status st = pl_dir_make(w->cache, err);
    const size_t n = strlen(w->cache);
    snprintf(w->cache + n, sizeof w->cache - n, "/worker-XXXXXX");
    if (st == PL_OK && !mkdtemp(w->cache))
        return pl_fail(err, PL_E_IO, "'%s': %s", w->cache, strerror(errno));
    return st;
}

/* Who serves names the address that it bound, which may be 0.0.0.0; it is on the host of the
 * coordinator. */
void work_reach(const work *w, const char *endpoint, char *out, size_t n)
{
    const char *host_end = strrchr(w->o.address, ':'), *port = strrchr(endpoint, ':');

    if (strncmp(w->o.address, "tcp://", 6) == 0 && strncmp(endpoint, "tcp://", 6) == 0)
        snprintf(out, n, "%.*s%s", (int)(host_end - w->o.address), w->o.address, port);
    else
        snprintf(out, n, "%s", endpoint);
}

/* The version as a model directory in the cache: the small files once, the weights each time. */
static pl_status fetch(work *w, const pl_msg_version *v, const life *l, pl_error *err)
{
    char path[sizeof w->cache + 32], endpoint[512];

    work_reach(w, v->endpoint, endpoint, sizeof endpoint);
    pl_status st = work_make_cache(w, err);
    if (st == PL_OK && !w->engine) {
        snprintf(path, sizeof path, "%s/" PL_BUNDLE_FILE, w->cache);
        st = pl_fetch(w->ipc, endpoint, &v->bundle, v->n_bundle, path, WORK_FETCH_MS, on_fetched,
            (void *)(uintptr_t)l, err);
        if (st == PL_OK)
            st = pl_bundle_unpack(path, w->cache, err);
    }
    snprintf(path, sizeof path, "%s/model.safetensors", w->cache);
    if (st == PL_OK)
        st = pl_fetch(w->ipc, endpoint, &v->hash, v->n_bytes, path, WORK_FETCH_MS, on_fetched,
            (void *)(uintptr_t)l, err);
    return st == PL_OK ? st : pl_wrap(err, st, "weights of version %u", v->version);
}

pl_status work_check_file(
    int n_threads, const char *path, const pl_hash *root, uint64_t n_bytes, pl_error *err)
{
    pl_file f = {0};
    pl_hash is;

    pl_status st = pl_file_open(&f, path, err);
    if (st != PL_OK)
        return st;
    st = pl_content_hash(f.data, f.size, n_threads, NULL, &is, err);
    if (st == PL_OK && (f.size != n_bytes || memcmp(is.b, root->b, sizeof is.b) != 0))
        st = pl_fail(err, PL_E_FORMAT,
            "'%s' is not the weights that were announced: it was changed on disk", path);
    pl_file_close(&f);
    return st;
}

/* On the trainer's machine the files are there; that they are the ones is checked all the same. */
static pl_status check_files(const work *w, const pl_msg_version *v, const life *l, pl_error *err)
{
    char path[PL_CONFIG_STR + 128];

    snprintf(path, sizeof path, "%s/model.safetensors", v->dir);
    l->keep_alive(l->ctx);
    const pl_status st = work_check_file(w->o.n_threads, path, &v->hash, v->n_bytes, err);
    l->keep_alive(l->ctx);
    return st == PL_OK ? st : pl_wrap(err, st, "version %u", v->version);
}

static pl_status open_engine(
    work *w, const char *dir, const pl_msg_version *v, const life *l, pl_error *err)
{
    const cli_model_options mo = {.path = dir, .isa = w->isa, .threads = w->threads};
    pl_engine_options eo;

    pl_status st = cli_model_open(&w->m, &mo, &w->log, err);
    if (st != PL_OK)
        return st;
    run_engine_options(&w->config, (int)v->max_ctx, &eo);
    l->keep_alive(l->ctx);
    st = pl_engine_new(&w->engine, w->m.model, w->m.tokenizer, &eo, &w->log, err);
    l->keep_alive(l->ctx);
    if (st == PL_OK && run_has_learned(&w->config))
        st = run_drafting_open(&w->drafting, &w->config, w->run_dir[0] ? w->run_dir : NULL,
            w->o.name, &w->m, w->engine, &w->log, err);
    if (st == PL_OK)
        return st;
    pl_engine_free(w->engine);
    w->engine = NULL;
    cli_model_close(&w->m);
    return st;
}

static pl_status reload(work *w, const char *dir, pl_error *err)
{
    pl_source *s = NULL;

    pl_status st = pl_source_open(&s, dir, err);
    if (st == PL_OK)
        st = pl_model_load(w->m.model, s, NULL, err);
    pl_source_close(s);
    return st;
}

static pl_status load(void *ctx, const pl_msg_version *v, void (*keep_alive)(void *), void *ka_ctx,
    pl_engine **engine, pl_error *err)
{
    work *w = ctx;
    const life l = {keep_alive, ka_ctx};
    const int is_here = strcmp(v->host, w->host) == 0 && access(v->dir, R_OK) == 0;
    pl_status st;

    if (is_here && w->engine) {
        st = run_load_checked(w->m.model, v->dir, &v->hash, keep_alive, ka_ctx, err);
    } else {
        const char *dir;
        st = is_here ? check_files(w, v, &l, err) : fetch(w, v, &l, err);
        dir = is_here ? v->dir : w->cache;
        if (st == PL_OK)
            st = w->engine ? reload(w, dir, err) : open_engine(w, dir, v, &l, err);
    }
    if (st == PL_OK)
        st = pl_engine_new_version(w->engine, v->version, err);
    *engine = w->engine;
    return st;
}

static pl_status joined(void *ctx, const pl_msg_welcome *m, pl_error *err)
{
    work *w = ctx;

    if (w->engine)
        return PL_OK; /* the engine is made: a run's configuration does not change */
    return run_config_parse(&w->config, m->config.data, m->config.n, "the run's config.yaml", err);
}

static int should_stop(void *ctx)
{
    (void)ctx;
    return cli_stop;
}

static pl_status work_all(
    work *w, const char *connect, const char *keys, const char *name, pl_error *err)
{
    const int is_local = strncmp(connect, "tcp://", 6) != 0;
    const pl_ipc_options io = {.keys = keys};
    const pl_worker_io callbacks = {.ctx = w,
        .load = load,
        .speculate = work_speculate,
        .should_stop = should_stop,
        .joined = joined,
        .train = is_local ? work_train : NULL,
        .train_end = work_train_end,
        .drafter = work_drafter,
        .drafting = work_figures,
        .publish = work_publish};
    char address[512], lock[80];
    int fd = -1;
    pl_status st = PL_OK;

    snprintf(address, sizeof address, "%s", connect);
    if (is_local)
        st = run_absolute(connect, w->run_dir, sizeof w->run_dir, err);
    if (st == PL_OK && is_local && name) { /* one of the supervisor's */
        snprintf(lock, sizeof lock, "%.64s.lock", name);
        st = run_lock(connect, lock, &fd, err);
    }
    if (st == PL_OK && is_local)
        st = run_find_coordinator(connect, PATIENCE_S, address, sizeof address, err);
    if (st == PL_OK)
        st = pl_ipc_new(&w->ipc, &io, &w->log, err);
    w->o.address = address;
    if (st == PL_OK)
        st = pl_work(&w->o, &callbacks, w->ipc, &w->log, err);
    pl_ipc_free(w->ipc);
    work_drafting_close(w);
    pl_engine_free(w->engine);
    cli_model_close(&w->m);
    if (w->cache[0]) {
        pl_error ignored = {0};
        (void)pl_dir_remove(w->cache, &ignored);
    }
    if (fd >= 0)
        close(fd);
    return st;
}

/* What cannot become a run in a minute is said at once. */
static pl_status check_target(
    const char *connect, const char *name, const char *keys, pl_error *err)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    char path[PL_CONFIG_STR + 32];

    if (name && (!name[0] || name[0] == '.' || strlen(name) > 32 || name[strspn(name, plain)]))
        return pl_fail(err, PL_E_USAGE,
            "--name '%.40s' is not a name: 1 to 32 letters, digits, dots, dashes or underscores",
            name);
    if (strncmp(connect, "tcp://", 6) == 0)
        return keys ? PL_OK
                    : pl_fail(err, PL_E_USAGE,
                          "tcp wants --keys DIR, with the client's keys of paceline keygen");
    if (strstr(connect, "://"))
        return pl_fail(err, PL_E_USAGE,
            "--connect '%.100s' is neither a run directory nor tcp://HOST:PORT", connect);
    snprintf(path, sizeof path, "%.*s/config.yaml", PL_CONFIG_STR, connect);
    if (!pl_path_exists(path))
        return pl_fail(err, PL_E_NOENT,
            "'%.200s' is not the directory of a run: it has no config.yaml", connect);
    if (!name && !run_is_locked(connect, "lock") && !run_is_locked(connect, "coordinator.lock"))
        return pl_fail(err, PL_E_PEER,
            "nothing runs in '%.200s': start it with paceline run and rollout.num_workers=1 or "
            "more",
            connect);
    return PL_OK;
}

int cmd_worker(int argc, char **argv)
{
    work w = {.isa = "auto", .log = {PL_LOG_WARN, STDERR_FILENO, isatty(STDERR_FILENO)}};
    const char *connect = NULL, *name = NULL, *keys = NULL;
    int64_t max_seqs = 64;
    char own_name[64];
    int n, helped;
    const cli_option options[] = {
        {"connect", CLI_STRING, &connect, 0, 0, "RUN_DIR|tcp://HOST:PORT", "the run to join"},
        {"name", CLI_STRING, &name, 0, 0, "NAME", "unique in the run (default: host and process)"},
        {"threads", CLI_INT, &w.threads, 0, 1024, "N", "0: one a core"},
        {"isa", CLI_STRING, &w.isa, 0, 0, "NAME", "auto, amx, avx512, avx2 or ref"},
        {"max-seqs", CLI_INT, &max_seqs, 1, 1024, "N", "samples at once (default 64)"},
        {"keys", CLI_STRING, &keys, 0, 0, "DIR", "client keys of paceline keygen, for tcp"},
        {0},
    };
    pl_error err = {0};
    cli_model probe = {0};

    pl_status st = cli_parse(argc, argv,
        "worker --connect RUN_DIR|tcp://HOST:PORT\n\n"
        "Joins a run and rolls out samples for it with the cores of this machine; model and\n"
        "tokenizer come from the run.  Ctrl-C leaves: its samples go on elsewhere.",
        options, &n, &helped, &err);
    if (st == PL_OK && helped)
        return 0;
    if (st == PL_OK && (!connect || n > 0))
        st = pl_fail(&err, PL_E_USAGE,
            "worker wants --connect RUN_DIR, or tcp://HOST:PORT of a run with --listen");
    if (st == PL_OK)
        st = check_target(connect, name, keys, &err);
    if (st == PL_OK) /* what this machine is, before anything is promised */
        st = cli_backend_open(&probe, w.isa, w.threads, &err);
    if (st != PL_OK)
        return cli_report(&err);
    run_host(w.host);
    /* One that was killed keeps its name for a while: the next one has another. */
    snprintf(own_name, sizeof own_name, "%.32s.%d", name ? name : w.host, (int)getpid());
    char process_name[16]; /* as the kernel keeps it */
    snprintf(process_name, sizeof process_name, "pl-%.12s", name ? name : "worker");
    (void)prctl(PR_SET_NAME, process_name);
    w.o = (pl_worker_options){.name = own_name,
        .numeric_class = PL_NUMERIC_CLASS,
        .build = PL_VERSION " " PL_COMMIT,
        .host = w.host,
        .n_threads = pl_team_size(probe.team),
        .max_seqs = (int)max_seqs,
        .patience_s = PATIENCE_S};
    cli_model_close(&probe);
    if (!name)
        w.log.level = PL_LOG_INFO; /* somebody looks at this terminal */
    cli_catch_signals(1);
    st = work_all(&w, connect, keys, name, &err);
    if (st == PL_E_STOPPED)
        return 0; /* asked to leave: its samples go on elsewhere */
    return st == PL_OK ? 0 : cli_report(&err);
}
