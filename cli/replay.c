/* cli/replay.c - paceline replay: the command line, and which way of replaying it asks for. */
#include "cli/replay_parts.h"

#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

static const char usage[] =
    "replay RUN [--step N] [--sample UID] [key=value ...]\n"
    "       paceline replay RUN --train-only [key=value ...]\n"
    "       paceline replay RUN --what-if drafter=... controller=...\n\n"
    "Generates what a run has traced once more and compares it to the bit: the policy of each "
    "step\n"
    "comes of the nearest checkpoint and the recorded rollouts.  --train-only trains on the "
    "recorded\n"
    "rollouts without generating any; --what-if reckons with another drafter or controller.  The\n"
    "run's directory is only read; key=value changes a key of its configuration.";

static pl_status check_way(const replay_options *o, pl_error *err)
{
    if (o->train_only + o->rollout_only + o->what_if > 1)
        return pl_fail(
            err, PL_E_USAGE, "--train-only, --rollout-only and --what-if are different ways: one");
    if ((o->rollouts || o->reward) && !o->train_only)
        return pl_fail(
            err, PL_E_USAGE, "--%s is for --train-only", o->rollouts ? "rollouts" : "reward");
    if ((o->train_only || o->what_if) && (o->workers > 0 || o->drafter || o->sample >= 0))
        return pl_fail(err, PL_E_USAGE,
            "--%s generates nothing: --workers, --drafter and --sample do not go with it%s",
            o->train_only ? "train-only" : "what-if",
            o->what_if && o->drafter ? " (alternatives are words: drafter=...)" : "");
    return PL_OK;
}

pl_status replay_parse(int argc, char **argv, replay_options *o, int *helped, pl_error *err)
{
    int n = 0;
    const cli_option options[] = {
        {"step", CLI_INT, &o->step, 1, 1e9, "N", "this step alone (default: all of the trace)"},
        {"sample", CLI_INT, &o->sample, 0, 4294967295.0, "UID", "this sample alone"},
        {"workers", CLI_INT, &o->workers, 0, 1024, "N",
            "worker processes; 0: in this process (default)"},
        {"threads", CLI_INT, &o->threads, 0, 1024, "N", "0: one a core (default)"},
        {"isa", CLI_STRING, &o->isa, 0, 0, "NAME",
            "auto, amx, avx512, avx2 or ref (default: as the run)"},
        {"drafter", CLI_STRING, &o->drafter, 0, 0, "WHO",
            "none, suffix, random, or a version of RUN/drafter (default: as the run)"},
        {"controller", CLI_STRING, &o->controller, 0, 0, "HOW",
            "speculative.controller (default: as the run)"},
        {"rollout-only", CLI_FLAG, &o->rollout_only, 0, 0, NULL,
            "only steps whose policy is in a checkpoint: nothing is trained"},
        {"train-only", CLI_FLAG, &o->train_only, 0, 0, NULL,
            "train on the recorded rollouts; generate nothing"},
        {"rollouts", CLI_STRING, &o->rollouts, 0, 0, "FILE|DIR",
            "train-only: rollouts of another system, JSONL"},
        {"reward", CLI_STRING, &o->reward, 0, 0, "WHAT",
            "train-only: score again by a built-in verifier or a command"},
        {"what-if", CLI_FLAG, &o->what_if, 0, 0, NULL,
            "reckon with other drafters and controllers; generate nothing"},
        {"json", CLI_FLAG, &o->json, 0, 0, NULL, "one JSON object a line, the verdict last"},
        {0},
    };

    *o = (replay_options){.sample = -1, .workers = -1};
    pl_status st = cli_parse(argc, argv, usage, options, &n, helped, err);
    if (st != PL_OK || *helped)
        return st;
    if (n < 1)
        return pl_fail(err, PL_E_USAGE, "replay wants the directory of a run");
    if (strlen(argv[1]) >= PL_CONFIG_STR)
        return pl_fail(err, PL_E_USAGE, "the run's path is too long");
    o->run_dir = argv[1];
    o->overrides = argv + 2;
    o->n_overrides = n - 1;
    return check_way(o, err);
}

/* More threads than cores give the same bits, many times slower. */
static void cap_threads(replay_options *o)
{
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);

    if (cores < 1 || o->threads <= cores)
        return;
    if (!o->is_quiet)
        fprintf(stderr, "paceline: --threads %lld: this machine has %ld cores, so %ld are taken\n",
            (long long)o->threads, cores, cores);
    o->threads = cores;
}

/* The exit code; with --json the verdict too (a good one of --train-only is said there, --what-if
 * compares nothing). */
static int finish(const replay_options *o, pl_status st, pl_error *err)
{
    pl_error none = {0};

    if (o->json && st != PL_OK)
        replay_say_end(st == PL_E_NUMERIC ? "different" : "error", err->msg);
    else if (o->json && !o->train_only && !o->what_if)
        replay_say_end("equal", "");
    if (st == PL_OK)
        st = cli_flush(err);
    else
        (void)cli_flush(&none);
    return st == PL_OK ? 0 : cli_report(err);
}

int cmd_replay(int argc, char **argv)
{
    replay_options o = {0};
    int helped = 0;
    pl_error err = {0};
    char **words = calloc((size_t)argc + 1, sizeof *words); /* as they were given */

    if (!words)
        pl_error_set(&err, PL_E_NOMEM, "no memory for the command line");
    else
        memcpy(words, argv, (size_t)argc * sizeof *words);
    pl_status st = words ? replay_parse(argc, argv, &o, &helped, &err) : PL_E_NOMEM;
    if (st == PL_OK && !helped) {
        cli_catch_signals(0);
        (void)signal(SIGPIPE, SIG_IGN); /* the write fails, and what was made is removed */
        cap_threads(&o);
        if (o.workers > 0) {
            const int code = replay_with_workers(&o, argc, words);
            free(words);
            return code;
        }
        st = o.train_only ? replay_train_only(&o, &err)
             : o.what_if  ? replay_what_if(&o, &err)
                          : replay_rollouts(&o, &err);
    }
    free(words);
    return helped ? 0 : finish(&o, st, &err);
}

int replay_in_trainer(int argc, char **argv)
{
    replay_options o;
    int helped = 0, fd = -1;
    pl_error err = {0};

    if (argc < 3) {
        pl_error_set(&err, PL_E_USAGE, "trainer replay: paceline replay --workers starts it");
        return cli_report(&err);
    }
    const char *dir = argv[1];
    argv[1] = argv[0];
    pl_status st = replay_parse(argc - 1, argv + 1, &o, &helped, &err);
    if (st == PL_OK && !helped) {
        (void)prctl(PR_SET_NAME, "pl-trainer"); /* the program is started as /proc/self/exe */
        cli_catch_signals(1);
        o.is_quiet = 1;
        cap_threads(&o);
        st = run_lock(dir, "trainer.lock", &fd, &err);
    }
    if (st == PL_OK && !helped)
        st = replay_rollouts_in(&o, dir, &err);
    const int code = finish(&o, st, &err);
    if (fd >= 0)
        close(fd);
    return code;
}
