/* cli/drafter.c - paceline drafter warmup | eval | export | import. */
#include "cli/drafter.h"
#include "cli/run.h"
#include "core/file.h"

#include <stdlib.h>
#include <string.h>

enum { PATH_ROOM = 4096 };

void drafter_student_done(drafter_student *s)
{
    pl_eagle_trainer_free(s->trainer);
    pl_eagle_free(s->eagle);
    memset(s, 0, sizeof *s);
}

pl_status drafter_loss_parse(pl_eagle_loss *out, const char *word, pl_error *err)
{
    static const char *const words[] = {[PL_EAGLE_LOSS_MIX] = "mix",
        [PL_EAGLE_LOSS_LK] = "lk",
        [PL_EAGLE_LOSS_CE] = "ce",
        [PL_EAGLE_LOSS_EAGLE1] = "eagle1"};

    for (int i = 0; i < (int)(sizeof words / sizeof *words); i++)
        if (strcmp(word, words[i]) == 0) {
            *out = (pl_eagle_loss)i;
            return PL_OK;
        }
    return pl_fail(err, PL_E_USAGE, "--loss '%s' is none of mix, lk, ce and eagle1", word);
}

/* Of the configuration's prompts, by this model, with the options that were given over its keys. */
static pl_status make_rollouts(const drafter_options *o, const cli_model *m, const char *path,
    int64_t n_tokens, drafter_noise *noise, const pl_log *log, pl_error *err)
{
    char model[PATH_ROOM], seed[64], temperature[64], *overrides[3] = {model, seed};
    int n = 1;

    if (snprintf(model, sizeof model, "actor_rollout_ref.model.path=%s", o->model.path) >=
        PATH_ROOM)
        return pl_fail(err, PL_E_USAGE, "--model '%s': name too long", o->model.path);
    if (o->noise_seed >= 0) {
        snprintf(
            seed, sizeof seed, "actor_rollout_ref.rollout.seed=%lld", (long long)o->noise_seed);
        overrides[n++] = seed;
    }
    if (o->temperature > 0) {
        snprintf(temperature, sizeof temperature, "actor_rollout_ref.rollout.temperature=%.9g",
            o->temperature);
        overrides[n++] = temperature;
    }
    return drafter_make_rollouts(m, o->config, overrides, n, path, n_tokens, noise, log, err);
}

pl_status drafter_open_data(drafter_data *d, drafter_noise *noise, const drafter_options *o,
    const cli_model *m, const pl_log *log, pl_error *err)
{
    const pl_arch *a = pl_model_arch(m->model);
    char path[PATH_ROOM];
    drafter_hold hold;

    *noise = (drafter_noise){o->noise_seed < 0 ? 0 : (uint64_t)o->noise_seed,
        o->temperature > 0 ? (float)o->temperature : 1};
    pl_status st = drafter_hold_parse(&hold, o->hold, err);
    if (st != PL_OK)
        return st;
    if (o->data)
        return drafter_data_read(d, o->data, a, a->n_ctx, hold, err);
    if (snprintf(path, sizeof path, "%s.rollouts.jsonl", o->out) >= PATH_ROOM)
        return pl_fail(err, PL_E_USAGE, "--out '%s': name too long", o->out);
    if (pl_path_exists(path))
        return pl_fail(err, PL_E_USAGE, "'%s' is there already: --data %s uses it", path, path);
    const int64_t n = o->tokens > 0 ? o->tokens : 150000;
    st = make_rollouts(o, m, path, n + n / DRAFTER_HELD_OF, noise, log, err);
    return st == PL_OK ? drafter_data_read(d, path, a, a->n_ctx, hold, err) : st;
}

pl_status drafter_open_held(drafter_features *f, const drafter_data *d, const drafter_options *o,
    const drafter_noise *noise, cli_model *m, pl_error *err)
{
    const size_t bytes = drafter_position_bytes(pl_model_arch(m->model), 1);
    const size_t limit = ((size_t)o->memory_mb << 20) / 2;
    size_t wanted = 0;
    int longest = 1;

    for (int i = 0; i < d->n; i++) {
        const drafter_sample *s = &d->samples[i];
        longest = s->n > longest ? s->n : longest;
        wanted += s->held ? (size_t)(s->n - drafter_first_position(s)) : 0;
    }
    if (wanted > (size_t)o->eval_tokens + (size_t)longest)
        wanted = (size_t)o->eval_tokens + (size_t)longest;
    wanted = wanted > (size_t)longest ? wanted : (size_t)longest;
    pl_status st = drafter_features_new(
        f, m, longest, wanted * bytes < limit ? wanted * bytes : limit, 1, err);
    for (int i = 0; i < d->n && st == PL_OK; i++) {
        int taken;
        if (!d->samples[i].held || f->n_rows >= (size_t)o->eval_tokens)
            continue;
        if (cli_stop)
            return pl_fail(err, PL_E_STOPPED, "stopped by a signal");
        st = drafter_features_add(f, &d->samples[i], noise, &taken, err);
    }
    if (st != PL_OK)
        return st;
    const double same = f->n_drawn > 0 ? (double)f->n_as_drawn / (double)f->n_drawn : 0;
    fprintf(stderr,
        "held out: %d samples, %zu positions; %.1f %% of the recorded tokens are what "
        "the target draws at seed %llu, temperature %g%s\n",
        f->n_spans, f->n_rows, 100 * same, (unsigned long long)noise->seed,
        (double)noise->temperature,
        same < 1 ? " (not all: another --noise-seed or --temperature, or another policy)" : "");
    return PL_OK;
}

/* ---- the other commands ---- */

static pl_status load(drafter_student *s, const drafter_options *o, cli_model *m, pl_error *err)
{
    if (!o->drafter)
        return pl_fail(err, PL_E_USAGE,
            "--drafter is missing: a directory that paceline drafter warmup or import has made");
    if (!pl_path_exists(o->drafter))
        return pl_fail(err, PL_E_NOENT,
            "drafter '%s' is not there: paceline drafter warmup makes one", o->drafter);
    return pl_eagle_load(&s->eagle, m->model, o->drafter, err);
}

static pl_status run_eval(const drafter_options *o, cli_model *m, const pl_log *log, pl_error *err)
{
    drafter_student s = {0};
    drafter_data data = {0};
    drafter_features held = {0};
    drafter_figures g;

    pl_eagle_train_defaults(&s.o);
    s.o.window = (int)o->window;
    s.o.max_windows = (int)o->windows;
    s.o.depth = (int)o->depth;
    pl_status st = drafter_check_budgets(o->budget, err);
    if (st == PL_OK)
        st = load(&s, o, m, err);
    if (st == PL_OK && !o->data)
        st = pl_fail(err, PL_E_USAGE, "--data is missing: rollout records to measure on");
    if (st == PL_OK)
        st = drafter_open_data(&data, &s.noise, o, m, log, err);
    if (st == PL_OK && data.n_held == 0)
        st = pl_fail(err, PL_E_USAGE,
            "none of %d samples is held out by --hold-out %s: --hold-out all takes every one",
            data.n, o->hold);
    if (st == PL_OK)
        st = pl_eagle_trainer_new(&s.trainer, s.eagle, &s.o, err);
    if (st == PL_OK)
        st = drafter_open_held(&held, &data, o, &s.noise, m, err);
    if (st == PL_OK)
        st = drafter_measure(&g, &held, &s, o->eval_tokens, err);
    if (st == PL_OK && o->json)
        drafter_print_json(&g, 0, 0);
    if (st == PL_OK && !o->json) {
        drafter_print_heading(g.depth);
        drafter_print_figures(&g, g.n[0]);
    }
    if (st == PL_OK)
        st = drafter_measure_budgets(o->budget, &held, &s, o->json, err);
    drafter_student_done(&s);
    drafter_features_done(&held);
    drafter_data_done(&data);
    return st;
}

static pl_status check_out(const drafter_options *o, pl_error *err)
{
    if (!o->out)
        return pl_fail(err, PL_E_USAGE, "--out is missing: the directory to write");
    if (!pl_dir_is_free(o->out))
        return pl_fail(err, PL_E_USAGE, "'%s' is there already: name another --out", o->out);
    return PL_OK;
}

/* Export and import are one: the layout is the same, and loading checks it against the model. */
static pl_status run_copy(const drafter_options *o, cli_model *m, const pl_log *log, pl_error *err)
{
    drafter_student s = {0};

    (void)log;
    pl_status st = check_out(o, err);
    if (st == PL_OK)
        st = load(&s, o, m, err);
    if (st == PL_OK)
        st = pl_dir_make(o->out, err);
    if (st == PL_OK)
        st = pl_eagle_save(s.eagle, o->out, err);
    if (st == PL_OK)
        printf("'%s': EAGLE-3 layout, draft vocabulary of %d, fits the model\n", o->out,
            pl_eagle_n_vocab(s.eagle));
    drafter_student_done(&s);
    return st;
}

static pl_status run_warmup(
    const drafter_options *o, cli_model *m, const pl_log *log, pl_error *err)
{
    if (!o->resume && !pl_dir_is_free(o->out))
        return pl_fail(err, PL_E_USAGE,
            "'%s' is there already: --resume goes on with a warm-up, or name another --out",
            o->out);
    const pl_status st = drafter_try_out(o->out, err);
    return st == PL_OK ? drafter_warmup(o, m, log, err) : st;
}

/* ---- command line ---- */

#define COPY_OPTIONS " model drafter out threads isa "

typedef struct verb {
    const char *name, *usage, *options; /* names, a blank before and behind each */
    pl_status (*run)(const drafter_options *o, cli_model *m, const pl_log *log, pl_error *err);
} verb;

static const verb verbs[] = {
    {"warmup", "drafter warmup --model PATH [--data FILE|DIR] [--out DIR] [options]",
        " model data out config vocab steps tokens window windows depth lr schedule loss "
        "alpha-weight depth-decay ema seed hold-out noise-seed temperature memory-mb eval-every "
        "eval-tokens threads isa resume json ",
        run_warmup},
    {"eval", "drafter eval --model PATH --drafter DIR --data FILE|DIR [options]",
        " model data drafter window windows depth hold-out noise-seed temperature memory-mb "
        "eval-tokens budget threads isa json ",
        run_eval},
    {"export", "drafter export --model PATH --drafter DIR --out DIR", COPY_OPTIONS, run_copy},
    {"import", "drafter import --model PATH --drafter DIR --out DIR", COPY_OPTIONS, run_copy},
};
enum { N_VERBS = sizeof verbs / sizeof verbs[0] };

static const verb *find_verb(const char *name)
{
    for (int i = 0; i < N_VERBS; i++)
        if (name && strcmp(name, verbs[i].name) == 0)
            return &verbs[i];
    return NULL;
}

/* Keep those that the verb reads: what it would pass over in silence is an error. */
static void keep_own(cli_option *options, const verb *v)
{
    cli_option *to = options;
    char name[64];

    for (const cli_option *o = options; o->name; o++) {
        snprintf(name, sizeof name, " %s ", o->name);
        if (strstr(v->options, name))
            *to++ = *o;
    }
    *to = (cli_option){0};
}

static pl_status parse(
    int argc, char **argv, const verb *v, drafter_options *o, int *helped, pl_error *err)
{
    cli_option options[] = {
        {"model", CLI_STRING, &o->model.path, 0, 0, "PATH", "the target: GGUF file or directory"},
        {"data", CLI_STRING, &o->data, 0, 0, "PATH",
            "rollout records: .jsonl, .jsonl.zst, a directory of them, a run; none: made first"},
        {"drafter", CLI_STRING, &o->drafter, 0, 0, "DIR", "to measure, export or import"},
        {"out", CLI_STRING, &o->out, 0, 0, "DIR", "to write (warmup: drafter)"},
        {"config", CLI_STRING, &o->config, 0, 0, "FILE",
            "whose prompts are answered without --data (configs/quickstart.yaml)"},
        {"vocab", CLI_INT, &o->vocab, 0, 1 << 24, "N", "ids that can be drafted (8192)"},
        {"steps", CLI_INT, &o->steps, 0, 1e9, "N", "stop after so many updates; 0: by --tokens"},
        {"tokens", CLI_INT, &o->tokens, 0, 1e12, "N", "train on so many; 0: the data twice (0)"},
        {"window", CLI_INT, &o->window, 32, 4096, "N", "tokens of a window (256)"},
        {"windows", CLI_INT, &o->windows, 1, 64, "N", "windows of an update (2)"},
        {"depth", CLI_INT, &o->depth, 1, PL_EAGLE_DEPTH_MAX, "N",
            "steps of test-time training (4)"},
        {"lr", CLI_FLOAT, &o->lr, 1e-9, 1, "R", "learning rate of AdamW (1e-3)"},
        {"schedule", CLI_STRING, &o->schedule, 0, 0, "WORD", "constant or cosine (cosine)"},
        {"loss", CLI_STRING, &o->loss, 0, 0, "WORD",
            "mix (-log alpha and cross-entropy), lk (hybrid), ce or eagle1 (mix)"},
        {"alpha-weight", CLI_FLOAT, &o->alpha_weight, 0, 1, "R",
            "of -log alpha in the mix, the rest is cross-entropy (0.5)"},
        {"depth-decay", CLI_FLOAT, &o->depth_decay, 0, 1, "R",
            "weight of a depth; 0: measured, as the tokens that it gains (0)"},
        {"ema", CLI_FLOAT, &o->ema, 0, 0.99999, "R", "decay of averaged weights; 0: none (0)"},
        {"seed", CLI_INT, &o->seed, 0, 9e18, "S", "of the random start and of the order (0)"},
        {"hold-out", CLI_STRING, &o->hold, 0, 0, "WORD",
            "an eighth of the data by prompt or uid; eval: also all (prompt)"},
        {"noise-seed", CLI_INT, &o->noise_seed, 0, 9e18, "S",
            "rollout.seed of the data (0; made here: --config's)"},
        {"temperature", CLI_FLOAT, &o->temperature, 0.01, 100, "T",
            "of the data (1; made here: --config's)"},
        {"memory-mb", CLI_INT, &o->memory_mb, 1, 1 << 20, "N", "MiB of features at most (1024)"},
        {"eval-every", CLI_INT, &o->every, 1, 1e9, "N", "updates between held-out figures (100)"},
        {"eval-tokens", CLI_INT, &o->eval_tokens, 256, 1e9, "N", "held-out positions (8192)"},
        {"budget", CLI_STRING, &o->budget, 0, 0, "LIST",
            "STEPS_TOPK_VERIFY of trees, commas between (1_1_2,4_2_8,6_4_16)"},
        {"threads", CLI_INT, &o->model.threads, 0, 1024, "N", "0: one a core (0)"},
        {"isa", CLI_STRING, &o->model.isa, 0, 0, "ISA", "auto, amx, avx512, avx2 or ref (auto)"},
        {"resume", CLI_FLAG, &o->resume, 0, 0, NULL, "go on with the warm-up in --out"},
        {"json", CLI_FLAG, &o->json, 0, 0, NULL, "figures as one object a line"},
        {0},
    };
    int n_positional;

    keep_own(options, v);
    const pl_status st = cli_parse(argc, argv, v->usage, options, &n_positional, helped, err);
    if (st != PL_OK || *helped)
        return st;
    if (n_positional > 0)
        return pl_fail(err, PL_E_USAGE, "drafter %s takes no argument '%s'", v->name, argv[1]);
    if (strcmp(o->schedule, "constant") != 0 && strcmp(o->schedule, "cosine") != 0)
        return pl_fail(
            err, PL_E_USAGE, "--schedule '%s' is neither constant nor cosine", o->schedule);
    return PL_OK;
}

int cmd_drafter(int argc, char **argv)
{
    drafter_options o = {.model = {.isa = "auto"},
        .config = "configs/quickstart.yaml",
        .hold = "prompt",
        .schedule = "cosine",
        .loss = "mix",
        .budget = "1_1_2,4_2_8,6_4_16",
        .window = 256,
        .windows = 2,
        .depth = 4,
        .lr = 1e-3,
        .alpha_weight = 0.5,
        .noise_seed = -1,
        .memory_mb = 1024,
        .every = 100,
        .eval_tokens = 8192};
    const pl_log log = {PL_LOG_WARN, 2, 0};
    const verb *v = find_verb(argc > 1 ? argv[1] : NULL);
    pl_error err = {0};
    cli_model m = {0};
    int helped = 0;

    if (argc > 1 && strcmp(argv[1], "--help") == 0) {
        for (size_t i = 0; i < sizeof verbs / sizeof *verbs; i++)
            printf("%s%s\n", i == 0 ? "usage: paceline " : "       paceline ", verbs[i].usage);
        return 0;
    }
    if (!v) {
        pl_error_set(&err, PL_E_USAGE,
            "drafter wants one of warmup, eval, export, import (drafter warmup --help)");
        return cli_report(&err);
    }
    pl_status st = parse(argc - 1, argv + 1, v, &o, &helped, &err);
    if (st == PL_OK && helped)
        return 0;
    if (st == PL_OK && v->run == run_warmup && !o.out)
        o.out = "runs/drafter";
    if (st == PL_OK) {
        cli_catch_signals(0);
        st = cli_model_open(&m, &o.model, &log, &err);
    }
    if (st == PL_OK)
        st = v->run(&o, &m, &log, &err);
    if (st == PL_OK)
        st = cli_flush(&err);
    cli_model_close(&m);
    return st == PL_OK ? 0 : cli_report(&err);
}
