/* cli/main.c - paceline COMMAND ...: find the command, run it. */
#include "cli/cli.h"
#include "cli/version.h"
#include "tensor/tensor.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const cli_command commands[] = {
    {"run", cmd_run,
        "post-train a model by reinforcement learning: paceline run CONFIG [key=value ...]"},
    {"monitor", cmd_monitor, "look into a run, live or over: in the terminal, as a page, as JSON"},
    {"worker", cmd_worker, "join a run as a rollout worker, from another terminal or machine"},
    {"keygen", cmd_keygen, "keys for workers on other machines"},
    {"drafter", cmd_drafter, "warm up, measure, export or import a learned drafter"},
    {"simulate", cmd_simulate, "what a recorded run would take with other workers and thresholds"},
    {"trace", cmd_trace, "verify, print, measure, compare or export the trace of a run"},
    {"replay", cmd_replay,
        "a run's trace: generate it again and compare, train on it, ask what if"},
    {"generate", cmd_generate, "sample responses"},
    {"score", cmd_score, "log-probs of given tokens or texts"},
    {"tokenize", cmd_tokenize, "text to token ids and back"},
    {"inspect", cmd_inspect, "what a model file, model directory or checkpoint holds"},
    {"doctor", cmd_doctor, "what this machine can do, what is used and why; self-test"},
    {"bench", cmd_bench,
        "measure against the machine: decode, verify, prefill, train, start, memory"},
    {"coordinator", cmd_coordinator, NULL}, /* started by run */
    {"trainer", cmd_trainer, NULL},
    {"tiny", cmd_tiny, "write a tiny random model, to try things without a download"},
};
enum { N_COMMANDS = sizeof commands / sizeof commands[0] };

static void print_help(FILE *out)
{
    fprintf(out, "usage: paceline COMMAND [options]\n\n");
    for (int i = 0; i < N_COMMANDS; i++)
        if (commands[i].summary)
            fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].summary);
    fprintf(out,
        "\npaceline COMMAND --help shows the options of a command, paceline run --help-config "
        "every\n"
        "configuration key.  Exit codes: 0, 64 usage, 65 bad data, 66 no input, 69 peer gone,\n"
        "70 internal, 74 I/O, 75 interrupted but checkpointed, 78 configuration.\n");
}

int main(int argc, char **argv)
{
    pl_error err = {0};

    /* A closed stream's number must not go to the next file that is opened. */
    int fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO)
        fd = open("/dev/null", O_RDWR);
    if (fd >= 0)
        close(fd);
    if (argc < 2) {
        print_help(stderr);
        return pl_status_exit_code(PL_E_USAGE);
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        print_help(stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("paceline %s, commit %s, numeric classes: %s\n", PL_VERSION, PL_COMMIT,
            PL_NUMERIC_CLASS);
        return 0;
    }
    for (int i = 0; i < N_COMMANDS; i++)
        if (strcmp(argv[1], commands[i].name) == 0)
            return commands[i].run(argc - 1, argv + 1);
    pl_error_set(&err, PL_E_USAGE, "unknown command '%s': paceline --help lists them", argv[1]);
    return cli_report(&err);
}
